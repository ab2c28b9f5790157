//! Debian's packages, without touching the system's package manager.
//!
//! apt runs with a configuration and a state of its own, one per suite, in a
//! directory that the caller names, from the mirror that the system uses; no
//! root is needed. apt checks the suite's signature, and by it the SHA256 of
//! every package. What was downloaded once stays.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::group::{output, run};

/// Where Debian is when the system's own sources do not tell.
const MIRROR: &str = "http://deb.debian.org/debian";
/// Where suites go that the mirrors no longer have.
const ARCHIVE: &str = "http://archive.debian.org/debian";
/// Checks the signatures; Debian's releases sign each other's archives.
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// Downloads a package of a suite and unpacks it.
pub(crate) fn unpack(
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
pub(crate) struct Apt {
    directory: PathBuf,
}

impl Apt {
    /// Reads the suite's index from the first mirror that has it.
    pub(crate) fn with(directory: &Path, suite: &str) -> Result<Self> {
        Self::open(directory, suite, &["deb"])
    }

    /// The same with the index of its source packages.
    pub(crate) fn with_source(directory: &Path, suite: &str) -> Result<Self> {
        Self::open(directory, suite, &["deb", "deb-src"])
    }

    fn open(directory: &Path, suite: &str, kinds: &[&str]) -> Result<Self> {
        let apt = Self {
            directory: directory.join("apt").join(suite),
        };
        for part in ["lists/partial", "cache/archives/partial"] {
            fs::create_dir_all(apt.directory.join(part))?;
        }
        fs::write(apt.directory.join("status"), "")?;
        let mut refusals = Vec::new();
        for mirror in [configured_mirror(), ARCHIVE.to_owned()] {
            let sources: String = kinds
                .iter()
                .map(|kind| format!("{kind} [signed-by={KEYRING}] {mirror} {suite} main\n"))
                .collect();
            fs::write(apt.directory.join("sources.list"), sources)?;
            match output(apt.command("apt-get").args(["--quiet=2", "update"])) {
                Ok(_) => return Ok(apt),
                Err(error) => refusals.push(format!("{error:#}")),
            }
        }
        bail!("no mirror has {suite}:\n{}", refusals.join("\n"))
    }

    /// Downloads packages with all that they depend on, as on a system where
    /// nothing is installed, and unpacks them below `root`.
    pub(crate) fn install(&self, packages: &[&str], root: &Path) -> Result<()> {
        let archives = self.directory.join("cache/archives");
        // What another installation left there need not belong to this one.
        if archives.exists() {
            fs::remove_dir_all(&archives)?;
        }
        fs::create_dir_all(archives.join("partial"))?;
        run(self
            .command("apt-get")
            .args(["--quiet=2", "--yes", "--download-only"])
            .args(["-o", "Debug::NoLocking=1"])
            .args(["-o", "APT::Install-Recommends=false"])
            .arg("install")
            .args(packages))
        .with_context(|| format!("cannot download {}", packages.join(", ")))?;
        fs::create_dir_all(root)?;
        for archive in fs::read_dir(&archives)?.flatten() {
            let path = archive.path();
            if path.extension().is_some_and(|extension| extension == "deb") {
                run(Command::new("dpkg-deb").arg("-x").arg(&path).arg(root))?;
            }
        }
        // Since bookworm these are links, which a package makes that nothing
        // depends on.
        for name in ["bin", "lib", "lib64", "sbin"] {
            let link = root.join(name);
            if !link.exists() && root.join("usr").join(name).exists() {
                std::os::unix::fs::symlink(format!("usr/{name}"), &link)?;
            }
        }
        Ok(())
    }

    /// A command of apt's, with this state instead of the system's.
    pub(crate) fn command(&self, program: &str) -> Command {
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
            "Acquire::http::Timeout=20",
            "Acquire::Retries=2",
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
}
