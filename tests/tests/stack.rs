//! Live tests of `otel-ebpf stack`: what it reads out of real processes is
//! what their interpreters say of themselves, frame by frame and variable by
//! variable.
//!
//! They need permission to read other processes (root), but no BPF.
//! `OTEL_EBPF_PY_SPY` names py-spy, which is asked for a second opinion.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use otel_ebpf::stack::{Reader, Stack, State, Thread};
use otel_ebpf_tests::process::wait_for;
use otel_ebpf_tests::program::{agent, agent_path};
use otel_ebpf_tests::python::{Python, Running, present};
use serde_json::Value;

/// The process that is looked at, all in place.
struct Target {
    running: Running,
    pid: u32,
    /// What it printed when all was in place.
    first: String,
}

impl Target {
    fn start(python: &Python, mode: &str) -> Result<Self> {
        let script = python.script(&target_script())?;
        let mode = mode.split(' ');
        let running = Running::start(python.command().arg(script).args(mode))?;
        let pid = running.pid();
        Self::of(running, pid)
    }

    fn of(mut running: Running, pid: u32) -> Result<Self> {
        let first = running.line()?;
        ensure!(!first.is_empty(), "the target ended");
        Ok(Self {
            running,
            pid,
            first,
        })
    }

    /// What the interpreter says.
    fn truth(&mut self) -> Result<Value> {
        self.running.tell("t")?;
        serde_json::from_str(&self.running.line()?).context("the truth")
    }

    /// What is read from outside.
    fn stacks(&self, options: &[&str]) -> Result<Value> {
        let output = stack(self.pid, options)?;
        let error = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.code() == Some(0), "{error}");
        ensure!(output.stderr.is_empty(), "{error}");
        serde_json::from_slice(&output.stdout).context("JSON")
    }
}

fn target_script() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("apps/stack_target.py")
}

fn stack(pid: u32, options: &[&str]) -> Result<Output> {
    let mut command = agent(&["stack", "--pid", &pid.to_string()]);
    command.args(options).output().context("the agent runs")
}

/// Stacks and variables of every thread are what the interpreter says.
fn check(python: Option<Python>) -> Result<()> {
    let Some(python) = python else { return Ok(()) };
    let mut target = Target::start(&python, "parked")?;
    // To be asked for them changes an interpreter: it makes objects of frames.
    let before = target.stacks(&["--json", "--locals"])?;
    let truth = target.truth()?;
    let after = target.stacks(&["--json", "--locals"])?;
    assert_eq!(before, after);
    check_threads(&truth, &before)
}

fn check_threads(truth: &Value, read: &Value) -> Result<()> {
    let told = threads_by_id(truth);
    let found = threads_by_id(read);
    assert_eq!(
        told.keys().collect::<Vec<_>>(),
        found.keys().collect::<Vec<_>>()
    );
    let mut wrong = Vec::new();
    let (mut n_frames, mut n_locals) = (0, 0);
    for (id, told) in &told {
        let found = found[id];
        assert_eq!(found["name"], told["name"]);
        assert_eq!(found["ident"], told["ident"]);
        assert_eq!(found["stack"], "whole", "{found:#}");
        assert_eq!(found["state"], "idle");
        assert_eq!(found["interpreter"], 0);
        let (told_frames, found_frames) = (frames(told), frames(found));
        assert_eq!(
            places(told_frames),
            places(found_frames),
            "thread {}",
            told["name"]
        );
        for (told, found) in told_frames.iter().zip(found_frames) {
            n_frames += 1;
            let found = locals(found);
            let expected = told["locals"].as_object().context("locals")?;
            n_locals += expected.len();
            assert!(found.keys().eq(expected.keys()), "{told:#}\n{found:#?}");
            // Too much to be shown whole.
            if told["name"] == "too_large" {
                check_bounded(&found);
                continue;
            }
            wrong.extend(
                expected
                    .iter()
                    .filter(|(name, value)| found[name.as_str()] != **value)
                    .map(|(name, value)| {
                        let function = &told["name"];
                        format!("{function} {name} = {value}, read {}", found[name.as_str()])
                    }),
            );
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    // Not that nothing was compared.
    assert!(n_frames > 450 && n_locals > 1000, "{n_frames}, {n_locals}");
    Ok(())
}

fn check_bounded(found: &BTreeMap<String, Value>) {
    for (name, value) in found.iter().filter(|(name, _)| *name != "_") {
        let value = value.as_str().unwrap_or_default();
        assert!(value.contains("..."), "{name} = {value}");
        assert!(value.len() < 1100, "{name} = {value}");
    }
}

fn threads_by_id(document: &Value) -> BTreeMap<u64, &Value> {
    let threads = document["threads"].as_array().into_iter().flatten();
    threads
        .filter_map(|thread| Some((thread["native_id"].as_u64()?, thread)))
        .collect()
}

fn frames(thread: &Value) -> &[Value] {
    thread["frames"].as_array().map_or(&[], Vec::as_slice)
}

/// Function, file and line of each frame.
fn places(frames: &[Value]) -> Vec<[&Value; 4]> {
    frames
        .iter()
        .map(|frame| ["name", "qualname", "file", "line"].map(|key| &frame[key]))
        .collect()
}

fn locals(frame: &Value) -> BTreeMap<String, Value> {
    let locals = frame["locals"].as_array().into_iter().flatten();
    locals
        .map(|local| {
            let name = local["name"].as_str().unwrap_or_default().to_owned();
            (name, local["value"].clone())
        })
        .collect()
}

macro_rules! checks {
    ($($name:ident: $python:expr;)*) => {
        $(
            #[test]
            fn $name() -> Result<()> {
                check($python)
            }
        )*
    };
}

checks! {
    python_3_8: Python::pyenv("3.8");
    python_3_9: Python::pyenv("3.9");
    python_3_10: Python::pyenv("3.10");
    python_3_11: Python::pyenv("3.11");
    python_3_12: Python::pyenv("3.12");
    python_3_13: Python::pyenv("3.13");
    the_stripped_python_of_the_distribution: Python::system();
    the_stripped_python_of_debian_11: Python::debian("bullseye", "3.9");
    the_stripped_python_of_debian_13: Python::debian("trixie", "3.13");
    the_stripped_python_of_debian_14: Python::debian("forky", "3.14");
    a_static_python_for_musl: Python::single_file("3.13");
    a_static_python_for_musl_without_symbols: Python::stripped_single_file("3.13");
    free_threaded_python_3_13: Python::free_threaded("3.13");
    free_threaded_python_3_14: Python::free_threaded("3.14");
}

// === other interpreters, other namespaces ===

fn every_version() -> impl Iterator<Item = Python> {
    let own = (8..=13).filter_map(|minor| Python::pyenv(&format!("3.{minor}")));
    let others = [
        Python::debian("forky", "3.14"),
        Python::free_threaded("3.13"),
        Python::free_threaded("3.14"),
    ];
    own.chain(others.into_iter().flatten())
}

#[test]
fn sub_interpreters_are_told_apart() -> Result<()> {
    for python in every_version() {
        let target = Target::start(&python, "interpreters")?;
        let read = target.stacks(&["--json"])?;
        let threads = read["threads"].as_array().context("threads")?;
        let inside: Vec<_> = threads
            .iter()
            .filter(|thread| thread["interpreter"] != 0 && !frames(thread).is_empty())
            .collect();
        assert_eq!(inside.len(), 2, "{python:?}: {read:#}");
        for thread in inside {
            assert_eq!(thread["stack"], "whole");
            let names: Vec<_> = frames(thread)
                .iter()
                .map(|frame| {
                    let name = frame["name"].as_str().unwrap_or_default();
                    (name, frame["line"].as_u64().unwrap_or_default())
                })
                .collect();
            assert_eq!(
                names,
                [
                    ("inside", 7),
                    ("inside", 6),
                    ("inside", 6),
                    ("inside", 6),
                    ("<module>", 9)
                ],
                "{python:?}"
            );
            // The same thread waits in the main interpreter for that one.
            let outside: Vec<_> = threads
                .iter()
                .filter(|it| it["interpreter"] == 0 && it["tid"] == thread["tid"])
                .collect();
            assert_eq!(outside.len(), 1, "{python:?}: {read:#}");
            assert_eq!(frames(outside[0])[0]["name"], "in_an_interpreter");
        }
    }
    Ok(())
}

/// In a container a process has other ids and other files.
#[test]
fn a_process_of_other_namespaces_is_read() -> Result<()> {
    for python in every_version().chain(Python::debian("bullseye", "3.9")) {
        let script = python.script(&target_script())?;
        let mut command = python.in_a_container().command();
        command.arg(&script);
        let running = Running::start(&mut command)?;
        let child = only_child(running.pid())?;
        let mut target = Target::of(running, child)?;
        let truth = target.truth()?;
        assert_eq!(truth["pid"], 1);
        let read = target.stacks(&["--json", "--locals"])?;
        assert_eq!(read["pid"], child);
        check_threads(&truth, &read)?;
        let tasks: BTreeSet<u64> = std::fs::read_dir(format!("/proc/{child}/task"))?
            .flatten()
            .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
            .collect();
        let tids = threads_by_id(&read)
            .values()
            .map(|thread| thread["tid"].as_u64().unwrap_or_default())
            .collect();
        assert_eq!(tasks, tids);
        let text = String::from_utf8(stack(child, &[])?.stdout)?;
        assert!(text.contains(", 1 in its own namespace)"), "{text}");
    }
    Ok(())
}

fn only_child(pid: u32) -> Result<u32> {
    let path = format!("/proc/{pid}/task/{pid}/children");
    wait_for("a child", PATIENCE, || {
        let text = std::fs::read_to_string(&path)?;
        Ok(text.trim().parse().ok())
    })
}

// === a second opinion ===

#[test]
#[expect(clippy::print_stderr, reason = "what was not compared must be told")]
fn py_spy_says_the_same() -> Result<()> {
    let named = std::env::var_os("OTEL_EBPF_PY_SPY").map(PathBuf::from);
    let Some(py_spy) = present(named, "py-spy (set OTEL_EBPF_PY_SPY)") else {
        return Ok(());
    };
    let mut compared = 0;
    for python in every_version().chain(Python::system()) {
        let target = Target::start(&python, "parked")?;
        let read = target.stacks(&["--json"])?;
        let by_tid: HashMap<u64, &Value> = read["threads"]
            .as_array()
            .context("threads")?
            .iter()
            .filter_map(|thread| Some((thread["tid"].as_u64()?, thread)))
            .collect();
        let output = Command::new(&py_spy)
            .args(["dump", "--json", "--pid", &target.pid.to_string()])
            .output()?;
        if !output.status.success() {
            let error = String::from_utf8_lossy(&output.stderr);
            eprintln!("py-spy does not read {python:?}: {error}");
            continue;
        }
        let opinion: Value = serde_json::from_slice(&output.stdout)?;
        for thread in opinion.as_array().context("threads")? {
            let tid = thread["os_thread_id"].as_u64().context("a thread id")?;
            let found = by_tid.get(&tid).context("the same threads")?;
            let theirs: Vec<_> = frames(thread)
                .iter()
                .map(|frame| ["name", "filename", "line"].map(|key| frame[key].to_string()))
                .collect();
            let ours: Vec<_> = frames(found)
                .iter()
                .map(|frame| {
                    let name = py_spys_name(frame).to_string();
                    [name, frame["file"].to_string(), frame["line"].to_string()]
                })
                .collect();
            assert_eq!(theirs, ours, "{python:?} {}", thread["thread_name"]);
            compared += 1;
        }
    }
    assert!(compared > 200, "{compared}");
    Ok(())
}

/// py-spy shows the qualified name where there is one.
fn py_spys_name(frame: &Value) -> &Value {
    match &frame["qualname"] {
        Value::Null => &frame["name"],
        qualname => qualname,
    }
}

// === threads that run ===

#[test]
fn threads_that_run_in_turn_are_never_told_wrongly() -> Result<()> {
    for python in every_version() {
        let seen = watch_busy_threads(&python, 8, SNAPSHOTS)?;
        // A GIL lets one thread run, so that the others stand still.
        if !seen.free_threaded {
            assert!(seen.whole * 2 > SNAPSHOTS * 8, "{seen:?}");
            assert!(seen.deepest > 15, "{seen:?}");
        }
    }
    Ok(())
}

/// Alone, a thread runs all the time, and what is read may be torn.
#[test]
fn a_thread_that_always_runs_is_never_told_wrongly() -> Result<()> {
    for python in every_version() {
        let seen = watch_busy_threads(&python, 1, SNAPSHOTS / 5)?;
        assert!(seen.whole + seen.changing > SNAPSHOTS / 10, "{seen:?}");
    }
    Ok(())
}

/// How the stacks of running threads were told.
#[derive(Debug)]
struct Seen {
    free_threaded: bool,
    whole: usize,
    changing: usize,
    unreadable: usize,
    deepest: usize,
}

/// Frames that cannot have called each other were never there together.
#[expect(
    clippy::print_stderr,
    reason = "how much was seen is part of the result"
)]
fn watch_busy_threads(python: &Python, n_threads: usize, n_snapshots: usize) -> Result<Seen> {
    let source = std::fs::read_to_string(target_script())?;
    let lines: Vec<&str> = source.lines().collect();
    let target = Target::start(python, &format!("busy {n_threads}"))?;
    let edges: HashMap<String, Vec<String>> = serde_json::from_str(&target.first)?;
    let reader = Reader::open(target.pid)?;
    let mut seen = Seen {
        free_threaded: reader.snapshot(false)?.version.free_threaded,
        whole: 0,
        changing: 0,
        unreadable: 0,
        deepest: 0,
    };
    // Where all of them run at once, each takes as long as it may.
    let share = if seen.free_threaded { n_threads } else { 1 };
    for _ in 0..n_snapshots / share {
        let snapshot = reader.snapshot(true)?;
        let busy: Vec<_> = snapshot.threads.iter().filter(|it| is_busy(it)).collect();
        assert_eq!(busy.len(), n_threads);
        for thread in busy {
            check_possible(thread, &edges, &lines)
                .with_context(|| format!("{python:?}: {thread:#?}"))?;
            seen.deepest = seen.deepest.max(thread.stack.frames().len());
            match &thread.stack {
                Stack::Whole(_) => seen.whole += 1,
                Stack::Changing(_) => seen.changing += 1,
                Stack::Unreadable(_) => seen.unreadable += 1,
            }
        }
    }
    eprintln!("{} x {n_threads}: {seen:?}", python.program.display());
    Ok(seen)
}

fn is_busy(thread: &Thread) -> bool {
    let name = thread.name.as_deref().unwrap_or_default();
    name.starts_with("busy-")
}

fn check_possible(
    thread: &Thread,
    edges: &HashMap<String, Vec<String>>,
    lines: &[&str],
) -> Result<()> {
    let frames = thread.stack.frames();
    for pair in frames.windows(2) {
        let [callee, caller] = pair else { continue };
        let callers = edges.get(&callee.name);
        if !callers.is_some_and(|callers| callers.contains(&caller.name)) {
            bail!("{} does not call {}", caller.name, callee.name);
        }
        // The line of the target's own functions names what it calls, but for
        // the one that goes on with a generator at its `for`.
        if caller.file.ends_with("stack_target.py") {
            let line = caller.line.context("a caller is on a line")?;
            let text = lines.get(line as usize - 1).context("a line of the file")?;
            if !text.contains(&callee.name) {
                bail!("line {line} does not call {}", callee.name);
            }
        }
    }
    if let (Stack::Whole(_), Some(outermost)) = (&thread.stack, frames.last()) {
        ensure!(outermost.name == "_bootstrap", "the outermost is missing");
    }
    Ok(())
}

/// A function in C that runs for long has Python callers, which stand still.
#[test]
fn a_thread_that_computes_in_c_is_told() -> Result<()> {
    let code = "import re, sys\n\
        def search(text):\n    return re.match('(a+)+$', text)\n\
        print('up', flush=True)\nsearch('a' * 60 + 'b')\n";
    for python in every_version() {
        let mut running = Running::python(&python, code)?;
        ensure!(running.line()? == "up");
        let reader = Reader::open(running.pid())?;
        let thread = wait_for("the search", PATIENCE, || {
            let thread = reader.snapshot(false)?.threads.pop();
            let inside = |thread: &Thread| {
                matches!(thread.stack, Stack::Whole(_)) && thread.stack.frames().len() == 3
            };
            Ok(thread.filter(inside))
        })?;
        assert_eq!(thread.state, State::Running);
        let told: Vec<_> = thread
            .stack
            .frames()
            .iter()
            .map(|frame| (frame.name.as_str(), frame.line))
            .skip(1)
            .collect();
        assert_eq!(told, [("search", Some(3)), ("<module>", Some(5))]);
    }
    Ok(())
}

// === what a terminal must not obey, and errors ===

#[test]
fn names_and_values_cannot_drive_the_terminal() -> Result<()> {
    let code = "import os, sys, threading\n\
        def wait(text):\n    print('up', flush=True)\n    os.read(0, 1)\n\
        evil = 'e\\x1b[2Jvil\\x9b\\n\\u202e'\n\
        wait.__code__ = wait.__code__.replace(co_name=evil, co_filename='/f\\x07' + evil)\n\
        threading.current_thread().name = evil\n\
        wait(evil)\n";
    for python in every_version() {
        let mut running = Running::python(&python, code)?;
        ensure!(running.line()? == "up");
        let output = stack(running.pid(), &["--locals"])?;
        let text = String::from_utf8(output.stdout)?;
        let hidden = text
            .chars()
            .find(|it| *it != '\n' && (it.is_control() || *it == '\u{202e}'));
        assert_eq!(hidden, None, "{text}");
        assert!(
            text.contains("/f\\x07e\\x1b[2Jvil\\x9b\\x0a\\u202e:4)"),
            "{text}"
        );
        assert!(
            text.contains("text = 'e\\x1b[2Jvil\\x9b\\n\\u202e'"),
            "{text}"
        );
    }
    Ok(())
}

#[track_caller]
fn refused(output: &Output, code: i32, part: &str) {
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{error}");
    assert!(error.contains(part), "no {part:?} in {error}");
    assert!(output.stdout.is_empty());
}

#[test]
fn what_cannot_be_read_is_said_and_ends_with_1() -> Result<()> {
    // Beyond the kernel's greatest process id.
    refused(&stack(1 << 23, &[])?, 1, "there is no process 8388608");
    let sleep = Running::start(Command::new("/bin/sleep").arg("600"))?;
    wait_for("the exec", PATIENCE, || {
        let output = stack(sleep.pid(), &[])?;
        let error = String::from_utf8_lossy(&output.stderr);
        Ok(error.contains("not a Python process").then_some(()))
    })?;
    refused(&stack(sleep.pid(), &["--json"])?, 1, "not a Python process");
    let threads = Target::start(
        &Python::system().unwrap_or(Python::here("python3".into())),
        "parked",
    )?;
    let thread = threads.stacks(&["--json"])?["threads"][1]["tid"].clone();
    let thread = u32::try_from(thread.as_u64().context("a thread")?)?;
    refused(&stack(thread, &[])?, 1, "is a thread of process");
    refused(&agent(&["stack"]).output()?, 2, "--pid");
    refused(
        &agent(&["stack", "--pid", "x"]).output()?,
        2,
        "a process id",
    );
    Ok(())
}

#[test]
fn a_version_that_is_not_known_is_named_with_those_that_are() -> Result<()> {
    let Some(python) = Python::debian("forky", "3.15") else {
        return Ok(());
    };
    let mut running = Running::python(
        &python,
        "import sys\nprint('up', flush=True)\nsys.stdin.read()",
    )?;
    ensure!(running.line()? == "up");
    let output = stack(running.pid(), &[])?;
    refused(&output, 1, "the structures of Python 3.15.");
    refused(&output, 1, "3.8 to 3.14");
    Ok(())
}

#[test]
fn another_users_process_needs_permission() -> Result<()> {
    let Some(python) = Python::system() else {
        return Ok(());
    };
    let target = Target::start(&python, "parked")?;
    let directory = tempfile::tempdir()?;
    let program = directory.path().join("agent");
    std::fs::copy(agent_path(), &program)?;
    std::fs::set_permissions(directory.path(), std::fs::Permissions::from_mode(0o755))?;
    let output = Command::new(&program)
        .args(["stack", "--pid", &target.pid.to_string()])
        .uid(NOBODY)
        .gid(NOBODY)
        .current_dir("/")
        .output()?;
    refused(&output, 1, "CAP_SYS_PTRACE");
    Ok(())
}

/// How often running threads are read, for each Python.
const SNAPSHOTS: usize = 300;

/// Longer than any of these processes takes to start.
const PATIENCE: Duration = Duration::from_secs(60);

/// The user without rights.
const NOBODY: u32 = 65534;
