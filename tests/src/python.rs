//! The interpreters that tests read, and Python programs that run in them.
//!
//! pyenv's, the system's own, and those of other systems that `cargo xtask
//! roots` unpacks or builds. One that is not there fails its test, unless
//! `OTEL_EBPF_ALLOW_MISSING_PYTHONS=1` is set, or for those of other systems
//! `OTEL_EBPF_MISSING_ROOTS` names it.

use std::ffi::{OsStr, OsString};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};

use anyhow::{Context, Result};

/// An interpreter of this machine or of a root directory.
#[derive(Clone, Debug)]
pub struct Python {
    /// The program, as its own root has it.
    pub program: PathBuf,
    /// Where it must be run with `chroot`.
    pub root: Option<PathBuf>,
    /// Whether it runs in namespaces of its own for processes and mounts.
    pub contained: bool,
}

/// Starts a command in namespaces of its own, in which it is process 1.
pub const CONTAINER: [&str; 5] = ["unshare", "--pid", "--fork", "--kill-child", "--mount"];

impl Python {
    /// Of pyenv's versions the one such as `3.12`.
    pub fn pyenv(series: &str) -> Option<Self> {
        let home = std::env::var_os("HOME").unwrap_or_default();
        let versions = PathBuf::from(home).join(".pyenv/versions");
        let found = std::fs::read_dir(&versions)
            .into_iter()
            .flatten()
            .flatten()
            .find(|entry| {
                let name = entry.file_name().to_string_lossy().into_owned();
                name.strip_prefix(series)
                    .is_some_and(|rest| rest.starts_with('.'))
            });
        present(
            found.map(|entry| Self::here(entry.path().join("bin/python"))),
            &format!("Python {series} in {}", versions.display()),
        )
    }

    /// The system's.
    pub fn system() -> Option<Self> {
        let program = PathBuf::from("/usr/bin/python3");
        let found = program.exists().then(|| Self::here(program));
        present(found, "/usr/bin/python3")
    }

    /// The one of a suite of Debian's, such as `3.9` of `bullseye`.
    pub fn debian(suite: &str, series: &str) -> Option<Self> {
        let root = roots().join(suite);
        let program = PathBuf::from(format!("/usr/bin/python{series}"));
        let there = root.join(format!("usr/bin/python{series}")).exists();
        let found = there.then(|| Self {
            program,
            root: Some(root.clone()),
            contained: false,
        });
        let what = format!(
            "Debian {suite}'s Python {series} in {} (run `cargo xtask roots`)",
            root.display()
        );
        present_root(found, &what, &format!("{suite}-{series}"))
    }

    /// A build without the GIL.
    pub fn free_threaded(series: &str) -> Option<Self> {
        let place = roots().join(format!("free-threaded-{series}"));
        let program = place.join("python");
        let found = program.exists().then(|| Self::here(program));
        let what = format!(
            "free-threaded Python {series} in {} (run `cargo xtask roots`)",
            place.display()
        );
        present_root(found, &what, &format!("free-threaded-{series}"))
    }

    /// A static program for musl, with its standard modules in it, as it was
    /// linked.
    pub fn single_file(series: &str) -> Option<Self> {
        Self::of_static_build(series, "python")
    }

    /// The same without any symbols.
    pub fn stripped_single_file(series: &str) -> Option<Self> {
        Self::of_static_build(series, "python-stripped")
    }

    fn of_static_build(series: &str, program: &str) -> Option<Self> {
        let program = roots().join(format!("static-{series}")).join(program);
        let what = format!(
            "static Python {series}, {} (run `cargo xtask roots`)",
            program.display()
        );
        let found = program.exists().then(|| Self::here(program));
        present_root(found, &what, &format!("static-{series}"))
    }

    /// A program of this machine.
    pub fn here(program: PathBuf) -> Self {
        Self {
            program,
            root: None,
            contained: false,
        }
    }

    /// The same in a container, as far as processes and files go.
    pub fn in_a_container(mut self) -> Self {
        self.contained = true;
        self
    }

    /// The command that runs it.
    pub fn command(&self) -> Command {
        let mut words = self.prefix();
        words.push(self.program.clone().into());
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]);
        command
    }

    /// What comes before the program in that command.
    pub fn prefix(&self) -> Vec<OsString> {
        let mut words = Vec::new();
        if self.contained {
            words.extend(CONTAINER.map(OsString::from));
        }
        if let Some(root) = &self.root {
            words.extend(["chroot".into(), root.into()]);
        }
        words
    }

    /// Makes a script of ours known to it; returns the path that it has there.
    pub fn script(&self, script: &Path) -> Result<PathBuf> {
        let name = script.file_name().context("a script has a name")?;
        match &self.root {
            None => Ok(script.to_owned()),
            Some(root) => {
                std::fs::copy(script, root.join(name))?;
                Ok(Path::new("/").join(name))
            }
        }
    }
}

/// What was found, or `None` if it is missing and that is allowed.
pub fn present<T>(found: Option<T>, what: &str) -> Option<T> {
    let allowed = std::env::var_os("OTEL_EBPF_ALLOW_MISSING_PYTHONS");
    present_if(found, what, allowed.is_some_and(|it| it == "1"))
}

/// The same of one that `cargo xtask roots` makes under this name.
fn present_root<T>(found: Option<T>, what: &str, name: &str) -> Option<T> {
    let missing = std::env::var("OTEL_EBPF_MISSING_ROOTS").unwrap_or_default();
    present_if(found, what, missing.split(':').any(|it| it == name))
}

#[expect(clippy::print_stderr, reason = "a test that is skipped must say so")]
fn present_if<T>(found: Option<T>, what: &str, allowed: bool) -> Option<T> {
    if found.is_none() {
        assert!(allowed, "missing: {what}");
        eprintln!("skipped, missing: {what}");
    }
    found
}

/// A child that is talked to line by line, and ends with the test.
#[derive(Debug)]
pub struct Running {
    child: Child,
    output: BufReader<ChildStdout>,
}

impl Running {
    /// Starts any program.
    pub fn start(command: &mut Command) -> Result<Self> {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start {command:?}"))?;
        let output = BufReader::new(child.stdout.take().context("piped")?);
        Ok(Self { child, output })
    }

    /// Runs Python code.
    pub fn python(python: &Python, code: impl AsRef<OsStr>) -> Result<Self> {
        Self::start(python.command().arg("-c").arg(code))
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The next line of output; an ended child gives an empty one.
    pub fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        self.output.read_line(&mut line)?;
        line.truncate(line.trim_end().len());
        Ok(line)
    }

    /// Writes to its input.
    pub fn tell(&mut self, text: &str) -> Result<()> {
        let input = self.child.stdin.as_mut().context("its input is closed")?;
        input.write_all(text.as_bytes())?;
        input.flush().map_err(Into::into)
    }

    /// Closes its input, and waits until it has closed its output; it is still
    /// to be waited for.
    pub fn end_input(&mut self) -> Result<()> {
        drop(self.child.stdin.take());
        std::io::copy(&mut self.output, &mut std::io::sink())?;
        Ok(())
    }

    /// Waits for its end.
    pub fn wait(&mut self) -> Result<()> {
        self.child.wait().map(drop).map_err(Into::into)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended already.
        _ = self.child.kill();
        _ = self.child.wait();
    }
}

fn roots() -> PathBuf {
    std::env::var_os("OTEL_EBPF_ROOTS").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/roots"),
        PathBuf::from,
    )
}
