//! `cargo xtask test`: every test of the project, with what they need.

use std::env;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::python::{Venv, apps, interpreters};
use crate::service::ensure_privileges;
use crate::toolchain::{Toolchain, agent, apt_install, ensure_programs, is_root};
use crate::{attribution, grace, group, parity, root, roots, say};

/// Minor versions of CPython 3 whose memory the tests read, each from pyenv.
const MINORS: RangeInclusive<u32> = 8..=13;

/// Live tests of which two run at a time, since much of their time is spent
/// waiting for programs to start and for the kernel to detach probes. They
/// start programs that nobody has written a moment ago, and measure nothing.
/// Of the models of the attribution suite two run at a time whatever is said
/// here: with two groups there are always two.
const PAIRED: [&str; 11] = [
    "attribution",
    "cli",
    "databases",
    "evictions",
    "frameworks",
    "greenlets",
    "http",
    "http_context",
    "parity",
    "servers",
    "tls",
];

#[derive(clap::Args)]
pub(crate) struct Options {
    /// Runs only the tests whose name contains this
    filter: Option<String>,
}

/// What `cargo test` counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Counts {
    passed: u64,
    failed: u64,
}

/// Where the environments are that the live tests run applications in.
struct Environments {
    tools: Venv,
    python: String,
    pythons: String,
    greenlets: String,
    frameworks: Venv,
    servers: Venv,
    parity: Venv,
    databases: Venv,
    parity_databases: Venv,
}

impl Environments {
    /// Installs what is missing.
    fn ensure(stages: &mut Stages) -> Result<Self> {
        let tools = Venv::ensure("tools", "requirements-tools.txt")?;
        let (python, pythons) = stages.time("python", environments)?;
        let greenlets = stages.time("greenlets", || {
            versions_of("greenlets", "requirements-greenlets.txt")
        })?;
        let (frameworks, parity, servers) = stages.time("frameworks", || {
            let frameworks = Venv::ensure("frameworks", "requirements-frameworks.txt")?;
            let servers = Venv::ensure("servers", "requirements-servers.txt")?;
            let (name, requirements) = parity::REQUIREMENTS;
            anyhow::Ok((frameworks, Venv::ensure(name, requirements)?, servers))
        })?;
        let (databases, parity_databases) = stages.time("database clients", || {
            let databases = Venv::ensure("databases", "requirements-databases.txt")?;
            let (name, requirements) = parity::DATABASES;
            anyhow::Ok((databases, Venv::ensure(name, requirements)?))
        })?;
        Ok(Self {
            tools,
            python,
            pythons,
            greenlets,
            frameworks,
            servers,
            parity,
            databases,
            parity_databases,
        })
    }
}

/// Everything that is compiled: the agent as operators run it, and the tests.
fn build(stages: &mut Stages) -> Result<(Toolchain, PathBuf)> {
    let toolchain = stages.time("toolchain", Toolchain::ensure)?;
    let agent = stages.time("release agent", agent)?;
    let mut tests = workspace_tests(&toolchain);
    tests.args(["--lib", "--bins", "--tests", "--no-run"]);
    stages.time("tests, built", || group::run(&mut tests))?;
    Ok((toolchain, agent))
}

/// `cargo test` of everything that runs here. The same packages each time, so
/// that what they depend on is built once.
fn workspace_tests(toolchain: &Toolchain) -> Command {
    let mut command = toolchain.cargo("test");
    command.args(["--workspace", "--exclude", "otel-ebpf-bpf"]);
    command
}

pub(crate) fn run(options: &Options) -> Result<()> {
    let mut stages = Stages::default();
    ensure_privileges().context("the live tests load BPF programs")?;
    ensure_programs(&[("python3", "python3")], "read the memory of one")?;
    let missing = missing_pythons();
    // Debian's packages come first, since only one may install some at a time.
    // Without the compiler the interpreters tell what is missing.
    stages.time("database servers", database_servers)?;
    let _told_later = roots::ensure_compiler();
    // One waits for downloads, or for its last step, while another computes.
    let (mut building, mut of_roots) = (Stages::default(), Stages::default());
    let (environments, built, missing_roots) = thread::scope(|scope| {
        let built = scope.spawn(|| build(&mut building));
        let missing = scope.spawn(|| of_roots.time("interpreters", || Ok(roots::ensure())));
        let environments = Environments::ensure(&mut stages);
        (environments, built.join(), missing.join())
    });
    let (Ok(built), Ok(missing_roots)) = (built, missing_roots) else {
        bail!("the build broke off");
    };
    let (toolchain, agent) = built?;
    let (environments, missing_roots) = (environments?, missing_roots?);
    stages.0.append(&mut of_roots.0);
    stages.0.append(&mut building.0);

    attribution::clear()?;
    let mut counts = Counts::default();
    let mut failures = Vec::new();
    let filter = options.filter.as_slice();
    let tests = |targets: &[&str]| {
        let mut command = workspace_tests(&toolchain);
        command
            .arg("--no-fail-fast")
            .args(targets)
            .arg("--")
            .args(filter);
        command
    };
    let unit = tests(&["--lib", "--bins"]);
    let names: Vec<&str> = missing_roots.iter().map(|root| &*root.name).collect();
    let live = |paired: bool| -> Result<Command> {
        let binaries = live_tests()?;
        let chosen = binaries
            .iter()
            .filter(|name| PAIRED.contains(&name.as_str()) == paired);
        let targets: Vec<&str> = chosen.flat_map(|name| ["--test", name]).collect();
        let mut live = tests(&targets);
        live.arg(if paired {
            "--test-threads=2"
        } else {
            "--test-threads=1"
        })
        .env("OTEL_EBPF_AGENT", &agent)
        .env("OTEL_EBPF_APPS", apps())
        .env("OTEL_EBPF_PYTHON", &environments.python)
        .env("OTEL_EBPF_PYTHONS", &environments.pythons)
        .env("OTEL_EBPF_GREENLETS_PYTHONS", &environments.greenlets)
        .env(
            "OTEL_EBPF_FRAMEWORKS_PYTHON",
            environments.frameworks.python(),
        )
        .env("OTEL_EBPF_PARITY_PYTHON", environments.parity.python())
        .env("OTEL_EBPF_SERVERS_PYTHON", environments.servers.python())
        .env(
            "OTEL_EBPF_DATABASES_PYTHON",
            environments.databases.python(),
        )
        .env(
            "OTEL_EBPF_PARITY_DATABASES_PYTHON",
            environments.parity_databases.python(),
        )
        .env("OTEL_EBPF_UVLOOP_PYTHON", &environments.python)
        .env("OTEL_EBPF_ROOTS", roots::directory())
        .env("OTEL_EBPF_ATTRIBUTION", attribution::directory())
        .env("OTEL_EBPF_PY_SPY", environments.tools.program("py-spy"))
        .env("OTEL_EBPF_ROTEL_PYTHON", environments.tools.python())
        .env("OTEL_EBPF_MISSING_ROOTS", names.join(":"));
        if !missing.is_empty() {
            live.env("OTEL_EBPF_ALLOW_MISSING_PYTHONS", "1");
        }
        as_root(&mut live);
        Ok(live)
    };
    let _hurry = grace::hurry();
    let live = [("live tests", live(false)?), ("paired tests", live(true)?)];
    for (name, mut command) in [("unit tests", unit)].into_iter().chain(live) {
        let (counted, success) = stages.time(name, || count(&mut command, std::io::stdout()))?;
        counts.passed += counted.passed;
        counts.failed += counted.failed;
        if !success {
            failures.push(name);
        }
    }

    let roots = missing_roots.into_iter().map(|root| root.what);
    let untested: Vec<String> = missing.into_iter().chain(roots).collect();
    let whole = attribution::is_whole(options.filter.as_deref());
    attribution::report(whole, &untested)?;
    stages.print();
    for python in &untested {
        println!("NOT TESTED: {python}");
    }
    println!("{} passed, {} failed", counts.passed, counts.failed);
    if !failures.is_empty() || counts.failed > 0 {
        bail!("failed: {}", failures.join(", "));
    }
    if counts.passed == 0 {
        bail!("no test ran");
    }
    Ok(())
}

/// The names of all binaries of live tests.
fn live_tests() -> Result<Vec<String>> {
    let folder = root().join("tests/tests");
    let mut names = Vec::new();
    for entry in fs::read_dir(&folder).with_context(|| folder.display().to_string())? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "rs") {
            names.extend(
                path.file_stem()
                    .map(|stem| stem.to_string_lossy().into_owned()),
            );
        }
    }
    names.sort();
    Ok(names)
}

/// Lets cargo run the tests as root.
pub(crate) fn as_root(command: &mut Command) {
    if !is_root() {
        command.env("CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUNNER", "sudo -E");
        command.env("CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER", "sudo -E");
    }
}

/// Debian's database servers, which the tests start by themselves.
pub(crate) fn database_servers() -> Result<()> {
    let why = "trace their clients";
    let versions = fs::read_dir("/usr/lib/postgresql");
    let found = versions.is_ok_and(|mut versions| {
        versions.any(|version| {
            version.is_ok_and(|version| version.path().join("bin/postgres").exists())
        })
    });
    if !found {
        apt_install(&["postgresql"], why)?;
    }
    ensure_programs(&[("redis-server", "redis-server")], why)
}

/// The interpreter of most live tests, and `MINOR=PATH` of all, `:` between.
fn environments() -> Result<(String, String)> {
    let main = Venv::ensure("apps", "requirements.txt")?;
    let all = versions_of("apps", "requirements.txt")?;
    Ok((main.python().display().to_string(), all))
}

/// An environment for each interpreter, `MINOR=PATH`, `:` between.
fn versions_of(name: &str, requirements: &str) -> Result<String> {
    let mut all = Vec::new();
    for (minor, interpreter) in interpreters() {
        let name = format!("{name}-3.{minor}");
        let venv = Venv::ensure_with(&interpreter, &name, requirements)?;
        all.push(format!("3.{minor}={}", venv.python().display()));
    }
    Ok(all.join(":"))
}

/// The Pythons that the tests must do without: those that pyenv would have,
/// on a machine without pyenv. Where there is pyenv, a missing one fails.
fn missing_pythons() -> Vec<String> {
    let versions = Path::new(&env::var_os("HOME").unwrap_or_default()).join(".pyenv/versions");
    if fs::exists(&versions).unwrap_or(true) {
        return Vec::new();
    }
    MINORS
        .map(|minor| format!("CPython 3.{minor} (there is no {})", versions.display()))
        .collect()
}

/// Runs `cargo test`, passes its output on and adds up its result lines.
fn count(command: &mut Command, mut terminal: impl Write) -> Result<(Counts, bool)> {
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot start cargo")?;
    let stdout = child.stdout.take().context("cargo has no output")?;
    let mut counts = Counts::default();
    for line in BufReader::new(stdout).split(b'\n') {
        let line = line?;
        let text = String::from_utf8_lossy(&line);
        if let Some(found) = result_line(&text) {
            counts.passed += found.passed;
            counts.failed += found.failed;
        }
        writeln!(terminal, "{text}")?;
    }
    Ok((counts, child.wait()?.success()))
}

/// Reads `test result: ok. 3 passed; 0 failed; ...`, colored or not.
fn result_line(line: &str) -> Option<Counts> {
    let (_, rest) = line.split_once("test result: ")?;
    let number = |label: &str| {
        let (before, _) = rest.split_once(label)?;
        before.split_whitespace().next_back()?.parse().ok()
    };
    Some(Counts {
        passed: number(" passed")?,
        failed: number(" failed")?,
    })
}

/// How long each stage took.
#[derive(Default)]
struct Stages(Vec<(&'static str, Duration)>);

impl Stages {
    fn time<T>(&mut self, name: &'static str, stage: impl FnOnce() -> Result<T>) -> Result<T> {
        say(format!("stage: {name}"));
        let start = Instant::now();
        let value = stage().with_context(|| format!("stage {name}"))?;
        self.0.push((name, start.elapsed()));
        Ok(value)
    }

    fn print(&self) {
        for (name, took) in &self.0 {
            println!("{name:<26} {:>8.1} s", took.as_secs_f64());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_cargo_test_counts() {
        let line = "test result: FAILED. 3 passed; 12 failed; 0 ignored; 0 measured; 1 filtered";
        assert_eq!(
            result_line(line),
            Some(Counts {
                passed: 3,
                failed: 12
            })
        );
    }

    #[test]
    fn other_lines_count_nothing() {
        assert_eq!(result_line("test result: unknown"), None);
        assert_eq!(result_line("3 passed; 4 failed"), None);
    }

    #[test]
    fn a_failing_command_is_not_a_success() {
        let mut command = Command::new("sh");
        command.args(["-c", "echo 'test result: ok. 2 passed; 0 failed;'; exit 1"]);
        let mut shown = Vec::new();
        let (counts, success) = count(&mut command, &mut shown).unwrap();
        assert!(shown.starts_with(b"test result: ok"));
        assert_eq!((counts.passed, success), (2, false));
    }
}
