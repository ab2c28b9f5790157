//! Debian's packages, without touching the system's package manager.
//!
//! apt runs with a configuration and a state of its own under
//! `target/kernels`, one per suite, from the mirror that the system uses; no
//! root is needed. What was downloaded once stays.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::group::{output, run};
use crate::say;

/// Where Debian is when the system's own sources do not tell.
const MIRROR: &str = "http://deb.debian.org/debian";
/// Where suites go that the mirrors no longer have.
const ARCHIVE: &str = "http://archive.debian.org/debian";
/// Checks the signatures; Debian's releases sign each other's archives.
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

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

/// Downloads a package of a suite and unpacks it.
fn unpack(
    directory: &Path,
    suite: &str,
    package: impl Fn(&Apt) -> Result<String>,
) -> Result<tempfile::TempDir> {
    let apt = Apt::with(directory, suite)?;
    let package = package(&apt)?;
    let unpacked = tempfile::tempdir_in(directory)?;
    run(apt
        .command("apt-get")
        .args(["--quiet=2", "download", &package])
        .current_dir(unpacked.path()))
    .with_context(|| format!("cannot download {package} of {suite}"))?;
    let archive = fs::read_dir(unpacked.path())?
        .flatten()
        .map(|entry| entry.path())
        .find(|path| path.extension().is_some_and(|extension| extension == "deb"))
        .context("apt downloaded nothing")?;
    run(Command::new("dpkg-deb")
        .arg("-x")
        .arg(&archive)
        .arg(unpacked.path()))?;
    Ok(unpacked)
}

/// apt with one suite, and a directory of its own.
struct Apt {
    directory: PathBuf,
}

impl Apt {
    /// Reads the suite's index from the first mirror that has it.
    fn with(directory: &Path, suite: &str) -> Result<Self> {
        let apt = Self {
            directory: directory.join("apt").join(suite),
        };
        for part in ["lists/partial", "cache/archives/partial"] {
            fs::create_dir_all(apt.directory.join(part))?;
        }
        fs::write(apt.directory.join("status"), "")?;
        let mut refusals = Vec::new();
        for mirror in [configured_mirror(), ARCHIVE.to_owned()] {
            fs::write(
                apt.directory.join("sources.list"),
                format!("deb [signed-by={KEYRING}] {mirror} {suite} main\n"),
            )?;
            match output(apt.command("apt-get").args(["--quiet=2", "update"])) {
                Ok(_) => return Ok(apt),
                Err(error) => refusals.push(format!("{error:#}")),
            }
        }
        bail!("no mirror has {suite}:\n{}", refusals.join("\n"))
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        for (setting, place) in [
            ("Dir::Etc::SourceList", "sources.list"),
            ("Dir::State::Lists", "lists"),
            ("Dir::State::Status", "status"),
            ("Dir::Cache", "cache"),
        ] {
            let place = self.directory.join(place);
            command.args(["-o", &format!("{setting}={}", place.display())]);
        }
        for setting in [
            "Dir::Etc::SourceParts=/dev/null",
            "Acquire::Languages=none",
            "Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false",
            "APT::Architecture=amd64",
            "APT::Sandbox::User=",
            "APT::Update::Error-Mode=any",
            // An archived suite's index has expired.
            "Acquire::Check-Valid-Until=false",
        ] {
            command.args(["-o", setting]);
        }
        command.stdin(Stdio::null());
        command
    }
}

/// The Debian mirror that the system uses.
fn configured_mirror() -> String {
    let mut files = vec![PathBuf::from("/etc/apt/sources.list")];
    if let Ok(entries) = fs::read_dir("/etc/apt/sources.list.d") {
        files.extend(entries.flatten().map(|entry| entry.path()));
    }
    files.sort();
    files
        .iter()
        .filter_map(|file| fs::read_to_string(file).ok())
        .find_map(|text| mirror_in(&text))
        .unwrap_or_else(|| MIRROR.to_owned())
}

/// The first address of a source list, of either format, that ends in
/// `/debian`.
fn mirror_in(sources: &str) -> Option<String> {
    sources
        .lines()
        .filter(|line| line.starts_with("URIs:") || line.starts_with("deb "))
        .flat_map(str::split_whitespace)
        .map(|word| word.trim_end_matches('/'))
        .find(|word| word.starts_with("http") && word.ends_with("/debian"))
        .map(str::to_owned)
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
    fn finds_the_mirror_in_either_format() {
        let new = "Types: deb\nURIs: http://mirror.example/debian/\nSuites: bookworm\n";
        assert_eq!(mirror_in(new).unwrap(), "http://mirror.example/debian");
        let old = "deb [arch=amd64] https://other.example/debian trixie main\n";
        assert_eq!(mirror_in(old).unwrap(), "https://other.example/debian");
    }

    #[test]
    fn other_archives_are_no_mirror() {
        let sources = "# http://old.example/debian\ndeb http://x.example/debian-security s main\n";
        assert_eq!(mirror_in(sources), None);
    }

    #[test]
    fn reads_the_kernel_that_apt_names() {
        let text = "linux-image-cloud-amd64\n  Depends: linux-image-5.10.0-32-cloud-amd64\n";
        assert_eq!(
            kernel_package(text).unwrap(),
            "linux-image-5.10.0-32-cloud-amd64"
        );
    }
}
