//! What the kernel matrix takes from Debian: kernels, and a busybox.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::debian::unpack;
use crate::group::output;
use crate::say;

/// A suite's newest kernel, built for virtual machines: `vmlinuz`.
pub(super) fn kernel(directory: &Path, version: &str, suite: &str) -> Result<PathBuf> {
    let vmlinuz = directory.join(format!("vmlinuz-{version}"));
    if vmlinuz.is_file() {
        return Ok(vmlinuz);
    }
    say(format!("downloading Debian's kernel {version} ({suite})"));
    let unpacked = unpack(directory, suite, |apt| {
        let text = output(
            apt.command("apt-cache")
                .args(["depends", "linux-image-cloud-amd64"]),
        )?;
        kernel_package(&text).context("linux-image-cloud-amd64 depends on no kernel")
    })?;
    let found = fs::read_dir(unpacked.path().join("boot"))?
        .flatten()
        .map(|entry| entry.path())
        .find(|path| {
            path.file_name()
                .is_some_and(|name| name.to_string_lossy().starts_with("vmlinuz-"))
        })
        .context("the kernel's package has no vmlinuz")?;
    let release = found.to_string_lossy();
    if !release.contains(&format!("vmlinuz-{version}.")) {
        bail!("{suite} has {release} where {version} was expected");
    }
    place(&found, &vmlinuz)?;
    Ok(vmlinuz)
}

/// A statically linked busybox.
pub(super) fn busybox(directory: &Path) -> Result<PathBuf> {
    let busybox = directory.join("busybox");
    if busybox.is_file() {
        return Ok(busybox);
    }
    say("downloading Debian's busybox-static");
    let unpacked = unpack(directory, "bookworm", |_| Ok("busybox-static".to_owned()))?;
    let candidates = ["bin/busybox", "usr/bin/busybox"];
    let found = candidates
        .iter()
        .map(|path| unpacked.path().join(path))
        .find(|path| path.is_file())
        .context("the package busybox-static has no busybox")?;
    place(&found, &busybox)?;
    Ok(busybox)
}

/// Moves a file to its place at once, so that an interrupted download leaves
/// none that looks complete.
fn place(from: &Path, to: &Path) -> Result<()> {
    let partial = to.with_extension("partial");
    fs::copy(from, &partial)?;
    fs::rename(&partial, to)?;
    Ok(())
}

/// The kernel's package in what `apt-cache depends` says of the one that
/// always depends on the newest.
fn kernel_package(depends: &str) -> Option<String> {
    depends
        .lines()
        .filter_map(|line| line.trim().strip_prefix("Depends: "))
        .find(|package| package.starts_with("linux-image-"))
        .map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_kernel_that_apt_names() {
        let text = "linux-image-cloud-amd64\n  Depends: linux-image-5.10.0-32-cloud-amd64\n";
        assert_eq!(
            kernel_package(text).unwrap(),
            "linux-image-5.10.0-32-cloud-amd64"
        );
    }
}
