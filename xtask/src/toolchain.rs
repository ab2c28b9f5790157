//! What must be installed before anything can be built or run, and the agent's
//! build.
//!
//! On a fresh machine with rustup and Python this installs the rest; on a
//! prepared one it only looks. Debian packages are installed only as root, and
//! otherwise named.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::group::{output, run};
use crate::{root, say, target};

/// The linker of BPF objects; the version that the object was checked with.
const BPF_LINKER: &str = "0.10.3";

/// Names an agent to use, instead of the release build.
const OVERRIDE: &str = "OTEL_EBPF_AGENT";

/// The agent as operators run it: the release build, brought up to date.
pub(crate) fn agent() -> Result<PathBuf> {
    match env::var_os(OVERRIDE) {
        Some(path) => {
            say(format!("using the agent that {OVERRIDE} names"));
            Ok(fs::canonicalize(path)?)
        }
        None => Toolchain::ensure()?.build_agent(),
    }
}

/// Proof that the Rust side is installed, and the environment it needs.
pub(crate) struct Toolchain {
    path: OsString,
}

impl Toolchain {
    /// Installs what is missing.
    pub(crate) fn ensure() -> Result<Self> {
        ensure_rust_src()?;
        let mut directories = vec![ensure_bpf_linker()?];
        directories.extend(env::split_paths(&env::var_os("PATH").unwrap_or_default()));
        Ok(Self {
            path: env::join_paths(directories)?,
        })
    }

    /// `cargo` in the workspace, able to build the BPF object.
    pub(crate) fn cargo(&self, subcommand: &str) -> Command {
        let mut command = Command::new("cargo");
        command
            .current_dir(root())
            .env("PATH", &self.path)
            .arg(subcommand);
        // `cargo xtask` tells us what package we are. Build scripts that look
        // at it (ring's) would run again whenever cargo is started by us after
        // it was started by hand, and all that depends on them be built again.
        for (name, _) in env::vars_os() {
            let text = name.to_string_lossy();
            if text.starts_with("CARGO_PKG_") || text.starts_with("CARGO_MANIFEST_") {
                command.env_remove(name);
            }
        }
        command
    }

    /// Builds the agent as operators run it; returns its path.
    pub(crate) fn build_agent(&self) -> Result<PathBuf> {
        say("building the release agent");
        run(self.cargo("build").args(["--release", "-p", "otel-ebpf"]))?;
        Ok(target().join("release/otel-ebpf"))
    }
}

/// Makes sure that programs are installed, each with the Debian package that
/// has it. `why` ends the sentence "needed to".
pub(crate) fn ensure_programs(programs: &[(&str, &str)], why: &str) -> Result<()> {
    let missing: Vec<&str> = programs
        .iter()
        .filter(|(program, _)| which(program).is_none())
        .map(|(_, package)| *package)
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    apt_install(&missing, why)
}

/// Installs Debian packages as root; elsewhere says what to install.
pub(crate) fn apt_install(packages: &[&str], why: &str) -> Result<()> {
    let list = packages.join(" ");
    if !is_root() || which("apt-get").is_none() {
        bail!("{list} needed to {why}; install with: sudo apt-get install {list}");
    }
    say(format!("installing {list}, needed to {why}"));
    let apt = || {
        let mut command = Command::new("apt-get");
        command
            .env("DEBIAN_FRONTEND", "noninteractive")
            .stdin(Stdio::null())
            .stdout(Stdio::null());
        command
    };
    run(apt().arg("update"))?;
    run(apt()
        .args(["install", "--yes", "--no-install-recommends"])
        .args(packages))
}

/// Where a program is on PATH.
pub(crate) fn which(program: &str) -> Option<PathBuf> {
    env::split_paths(&env::var_os("PATH")?)
        .map(|directory| directory.join(program))
        .find(|path| path.is_file())
}

/// Whether this process may do anything.
pub(crate) fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

fn ensure_rust_src() -> Result<()> {
    let sysroot = output(
        Command::new("rustc")
            .current_dir(root())
            .args(["--print", "sysroot"]),
    )?;
    if Path::new(sysroot.trim())
        .join("lib/rustlib/src/rust/library/core")
        .is_dir()
    {
        return Ok(());
    }
    say("adding rust-src: core is built from source for the BPF target");
    run(Command::new("rustup")
        .current_dir(root())
        .args(["component", "add", "rust-src"]))
}

/// The directory with the right bpf-linker; builds it where there is none.
fn ensure_bpf_linker() -> Result<PathBuf> {
    let tools = target().join("tools");
    let ours = tools.join("bin/bpf-linker");
    for candidate in which("bpf-linker").into_iter().chain([ours.clone()]) {
        if linker_version(&candidate).as_deref() == Some(BPF_LINKER) {
            return parent(&candidate);
        }
    }
    say(format!(
        "building bpf-linker {BPF_LINKER} into target/tools, once (about three minutes)"
    ));
    fs::create_dir_all(&tools)?;
    run(Command::new("cargo")
        .current_dir(root())
        .args([
            "install",
            "--locked",
            "--quiet",
            "--version",
            BPF_LINKER,
            "--root",
        ])
        .arg(&tools)
        .arg("bpf-linker"))?;
    parent(&ours)
}

fn parent(path: &Path) -> Result<PathBuf> {
    path.parent()
        .map(Path::to_path_buf)
        .context("a program outside of any directory")
}

fn linker_version(linker: &Path) -> Option<String> {
    let text = output(Command::new(linker).arg("--version")).ok()?;
    text.split_whitespace().nth(1).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_programs_on_the_path() {
        assert!(which("sh").is_some());
        assert!(which("no-such-program-anywhere").is_none());
    }

    #[test]
    fn asks_for_nothing_that_is_there() {
        ensure_programs(&[("sh", "dash")], "run tests").unwrap();
    }
}
