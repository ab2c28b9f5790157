//! Interpreters of other systems than this one: Debian's, in a root directory
//! each under `target/roots`, which tests enter with `chroot`; and those that
//! Debian does not have, built from its source: free-threaded ones, and one
//! that is a single static file with its standard modules in it, for musl.
//!
//! Distributions strip their interpreters and link them as they please, so
//! what holds for a self-built one need not hold for theirs. What cannot be
//! had is told, and the tests do without.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;

use anyhow::{Context, Result, bail};

use crate::debian::Apt;
use crate::group::run;
use crate::toolchain::ensure_programs;
use crate::{say, target};

/// A Python of a suite of Debian's.
struct Python {
    suite: &'static str,
    minor: u32,
}

/// What the tests read. Of 3.15 no structures are known: what is said of such
/// a process is tested with it.
const PYTHONS: &[Python] = &[
    Python {
        suite: "bullseye",
        minor: 9,
    },
    Python {
        suite: "trixie",
        minor: 13,
    },
    Python {
        suite: "forky",
        minor: 14,
    },
    Python {
        suite: "forky",
        minor: 15,
    },
];

/// Whose source the free-threaded interpreters are built from.
const FREE_THREADED: &[Python] = &[
    Python {
        suite: "trixie",
        minor: 13,
    },
    Python {
        suite: "forky",
        minor: 14,
    },
];

/// Whose source the static interpreter is built from.
const STATIC: Python = Python {
    suite: "trixie",
    minor: 13,
};

/// An interpreter that cannot be had.
pub(crate) struct Missing {
    /// As the tests name it.
    pub(crate) name: String,
    /// What it is, and why it is not there.
    pub(crate) what: String,
}

/// Makes what is not there yet; returns what cannot be had.
pub(crate) fn ensure() -> Vec<Missing> {
    let mut missing = Vec::new();
    for python in PYTHONS {
        if let Err(error) = of_this_machine().and_then(|()| python.ensure()) {
            let Python { suite, minor } = python;
            missing.push(Missing {
                name: format!("{suite}-3.{minor}"),
                what: format!("Debian {suite}'s Python 3.{minor} ({error:#})"),
            });
        }
    }
    for python in FREE_THREADED {
        if let Err(error) = of_this_machine().and_then(|()| python.ensure_free_threaded()) {
            let minor = python.minor;
            missing.push(Missing {
                name: format!("free-threaded-3.{minor}"),
                what: format!("free-threaded CPython 3.{minor} ({error:#})"),
            });
        }
    }
    if let Err(error) = of_this_machine().and_then(|()| STATIC.ensure_static()) {
        let minor = STATIC.minor;
        missing.push(Missing {
            name: format!("static-3.{minor}"),
            what: format!("static CPython 3.{minor} for musl ({error:#})"),
        });
    }
    missing
}

/// Installs what the static interpreter is built with.
pub(crate) fn ensure_compiler() -> Result<()> {
    of_this_machine()?;
    ensure_programs(&[("musl-gcc", "musl-tools")], "build a static Python")
}

fn of_this_machine() -> Result<()> {
    if cfg!(not(target_arch = "x86_64")) {
        bail!("the roots are for x86_64");
    }
    Ok(())
}

/// `cargo xtask roots`.
pub(crate) fn run_task() -> Result<()> {
    for python in ensure() {
        println!("MISSING: {}", python.what);
    }
    println!("{}", directory().display());
    Ok(())
}

/// Where the roots are.
pub(crate) fn directory() -> PathBuf {
    target().join("roots")
}

impl Python {
    /// Unpacks it, with all that it needs, into the suite's root.
    fn ensure(&self) -> Result<()> {
        let package = self.package();
        let root = directory().join(self.suite);
        let stamp = root.join(format!(".{package}.complete"));
        if stamp.is_file() {
            return Ok(());
        }
        say(format!("downloading Debian {}'s {package}", self.suite));
        let apt = Apt::with(&directory(), self.suite)?;
        apt.install(&[&package], &root)?;
        let program = format!("/usr/bin/{package}");
        if !root.join(program.trim_start_matches('/')).exists() {
            bail!("{package} has no {program}");
        }
        fs::write(stamp, "").map_err(Into::into)
    }

    /// Builds it without the GIL.
    fn ensure_free_threaded(&self) -> Result<()> {
        let configure = ["./configure", "--disable-gil", "CFLAGS=-O1 -g0"];
        let what = "free-threaded";
        self.ensure_built(what, &configure, &["python", "sharedmods"], |_| Ok(()))
    }

    /// Builds it as one static file, with musl and without symbols beside one
    /// that has them: what single-file distributions of Python are like.
    fn ensure_static(&self) -> Result<()> {
        ensure_compiler()?;
        let configure = [
            "./configure",
            "--disable-test-modules",
            "--without-ensurepip",
            "MODULE_BUILDTYPE=static",
            "CC=./musl-cc",
            "CFLAGS=-O1 -g0",
            "LDFLAGS=-static",
            "LINKFORSHARED= ",
            // What it finds is of the other C library.
            "PKG_CONFIG=false",
        ];
        let targets = ["python", "pybuilddir.txt"];
        self.ensure_built("static", &configure, &targets, |source| {
            // The build asks gcc which C library it is for.
            let compiler = "#!/bin/sh\n[ \"$1\" = --print-multiarch ] && exit 1\n\
                            exec musl-gcc \"$@\"\n";
            let path = source.join("musl-cc");
            fs::write(&path, compiler)?;
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).map_err(Into::into)
        })?;
        let place = self.built("static");
        let [whole, stripped] = ["python", "python-stripped"].map(|name| place.join(name));
        if stripped.is_file() {
            return Ok(());
        }
        run(Command::new("strip")
            .arg("--strip-all")
            .arg("-o")
            .arg(&stripped)
            .arg(&whole))
    }

    /// Where it is built, and runs.
    fn built(&self, what: &str) -> PathBuf {
        directory().join(format!("{what}-3.{}", self.minor))
    }

    /// Builds it from source.
    fn ensure_built(
        &self,
        what: &str,
        configure: &[&str],
        targets: &[&str],
        prepare: impl FnOnce(&Path) -> Result<()>,
    ) -> Result<()> {
        let place = self.built(what);
        if place.join("python").is_file() {
            return Ok(());
        }
        say(format!(
            "building a {what} Python 3.{} (some minutes, once)",
            self.minor
        ));
        fs::create_dir_all(directory())?;
        let building = tempfile::tempdir_in(directory())?;
        self.unpack_source(building.path())?;
        let source = building.path().join("source");
        prepare(&source)?;
        let log = directory().join(format!("{what}-3.{}.log", self.minor));
        let jobs = thread::available_parallelism().map_or(1, usize::from);
        let jobs = format!("-j{jobs}");
        let make = [&["make", &jobs], targets].concat();
        // It finds its library relative to its program, so it may be moved.
        for step in [configure, &make] {
            logged(step, &source, &log)?;
        }
        fs::rename(&source, &place).map_err(Into::into)
    }

    /// The original source of the suite's package, as `source` below a
    /// directory.
    fn unpack_source(&self, directory_of_it: &Path) -> Result<()> {
        let apt = Apt::with_source(&directory(), self.suite)?;
        run(apt
            .command("apt-get")
            .args(["--quiet=2", "--download-only", "source"])
            .arg(self.package())
            .current_dir(directory_of_it))?;
        let archive = fs::read_dir(directory_of_it)?
            .flatten()
            .map(|entry| entry.path())
            .find(|path| is_original_source(&path.to_string_lossy()))
            .context("the source package has no original source")?;
        let source = directory_of_it.join("source");
        fs::create_dir(&source)?;
        run(Command::new("tar")
            .args(["--strip-components=1", "-xf"])
            .arg(&archive)
            .arg("-C")
            .arg(&source))
    }

    fn package(&self) -> String {
        format!("python3.{}", self.minor)
    }
}

/// Whether a file of a source package is the original source, and not its
/// signature or what Debian adds.
fn is_original_source(name: &str) -> bool {
    name.contains(".orig.tar.") && !name.ends_with(".asc")
}

/// Runs a command whose output goes to a file, which the error names.
fn logged(command: &[&str], directory: &Path, log: &Path) -> Result<()> {
    let (program, arguments) = command.split_first().context("no command")?;
    let file = fs::File::create(log)?;
    let status = Command::new(program)
        .args(arguments)
        .current_dir(directory)
        .stdin(Stdio::null())
        .stdout(file.try_clone()?)
        .stderr(file)
        .status()
        .with_context(|| format!("cannot start {program}"))?;
    if !status.success() {
        bail!("{} failed, see {}", command.join(" "), log.display());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_source_package_the_original_source_is_taken() {
        assert!(is_original_source("python3.13_3.13.5.orig.tar.xz"));
        for other in [
            "python3.13_3.13.5.orig.tar.xz.asc",
            "python3.13_3.13.5-2.debian.tar.xz",
            "python3.13_3.13.5-2.dsc",
        ] {
            assert!(!is_original_source(other), "{other}");
        }
    }

    #[test]
    fn a_step_that_fails_names_its_log() {
        let directory = tempfile::tempdir().unwrap();
        let log = directory.path().join("log");
        let error = logged(&["sh", "-c", "echo why; exit 3"], directory.path(), &log);
        assert!(error.unwrap_err().to_string().contains("/log"));
        assert_eq!(fs::read_to_string(log).unwrap(), "why\n");
    }
}
