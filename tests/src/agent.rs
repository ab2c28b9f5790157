//! The agent under test, as an operator starts it.

use std::collections::{BTreeMap, VecDeque};
use std::ffi::OsString;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use tempfile::TempDir;

use crate::process::{Group, PATIENCE, Signal, empty_file, locked, path_from, wait_for};
use crate::trace::{Kind, Span, brief, children, complete_lines, from_file, from_lines};

/// Longest end of an agent that is waited for: the kernel takes 0.1 s and more
/// for each probe, those of processes that have ended included, one after the
/// other for all agents of the machine.
const DETACHING: Duration = Duration::from_secs(600);

/// How its last line begins.
const SUMMARY: &str = "otel-ebpf: summary";

/// Waits for the ends of agents that detach their probes.
static LEAVING: Mutex<VecDeque<JoinHandle<Result<()>>>> = Mutex::new(VecDeque::new());
/// How many of them may be on their way when another agent starts.
const MOST_LEAVING: usize = 2;

/// How the agent is to be started; by default it writes its spans to a file.
#[derive(Clone, Default)]
pub struct AgentOptions {
    pids: Vec<u32>,
    arguments: Vec<OsString>,
    environment: Vec<(String, OsString)>,
    elsewhere: bool,
}

/// A running agent; it is killed when dropped.
pub struct Agent {
    /// Its process.
    pub group: Group,
    folder: TempDir,
}

/// An agent that ended.
pub struct Ended {
    /// What it printed.
    pub lines: Vec<String>,
    /// Every span that it wrote to its file, by start.
    pub spans: Vec<Span>,
    /// The counters of its summary; those not printed are 0.
    pub counters: Counters,
}

/// Where a reader of the agent's file is.
pub struct Follower {
    path: PathBuf,
    offset: u64,
}

impl Follower {
    /// Reads from the start the file in the folder that
    /// [`AgentOptions::words`] was given.
    pub fn new(folder: &Path) -> Self {
        Self {
            path: folder.join("spans.jsonl"),
            offset: 0,
        }
    }

    /// The spans that were written since the last time.
    pub fn spans(&mut self) -> Result<Vec<Span>> {
        let mut file = File::open(&self.path)?;
        file.seek(SeekFrom::Start(self.offset))?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        let complete = complete_lines(&bytes)?;
        self.offset += complete.len() as u64;
        from_lines(complete)
    }
}

/// Counters by name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counters(pub BTreeMap<String, u64>);

impl AgentOptions {
    /// Traces these processes.
    pub fn new(pids: &[u32]) -> Self {
        Self {
            pids: pids.to_vec(),
            ..Self::default()
        }
    }

    /// Further arguments.
    pub fn arguments(mut self, arguments: &[&str]) -> Self {
        self.arguments.extend(arguments.iter().map(OsString::from));
        self
    }

    /// A variable of its environment.
    pub fn env(mut self, name: &str, value: impl Into<OsString>) -> Self {
        self.environment.push((name.to_owned(), value.into()));
        self
    }

    /// Writes no file: the arguments or variables say where spans go.
    pub fn elsewhere(mut self) -> Self {
        self.elsewhere = true;
        self
    }

    /// Starts it and waits until it traces every process.
    pub fn start(self) -> Result<Agent> {
        expect_good_ends()?;
        let folder = tempfile::tempdir()?;
        let words = self.words(folder.path())?;
        let mut words = words.into_iter();
        let mut command = Command::new(words.next().context("no command")?);
        clean(&mut command);
        command.args(words).envs(self.environment);
        let mut agent = Agent {
            group: Group::spawn("the agent", &mut command)?,
            folder,
        };
        for &pid in &self.pids {
            agent.wait_until_it_traces(pid)?;
        }
        Ok(agent)
    }

    /// The command line, for a test that starts it in its own way; spans go
    /// to `spans.jsonl` in the folder.
    pub fn words(&self, folder: &Path) -> Result<Vec<OsString>> {
        ensure!(
            rustix::process::geteuid().is_root(),
            "live tests load BPF programs, which needs root: run `cargo xtask test`"
        );
        let mut words = vec![binary()?.into_os_string()];
        for pid in &self.pids {
            words.extend(["--pid".into(), pid.to_string().into()]);
        }
        if !self.elsewhere {
            let file = folder.join("spans.jsonl");
            empty_file(&file)?;
            words.extend(["--otlp-file".into(), file.into_os_string()]);
            words.extend(["--bsp-schedule-delay".into(), "50".into()]);
        }
        words.extend(self.arguments.iter().cloned());
        Ok(words)
    }
}

/// Fails if an agent that was stopped earlier has ended badly, and waits until
/// few are still on their way: each holds up all that come after it.
fn expect_good_ends() -> Result<()> {
    loop {
        let gone = {
            let mut leaving = locked(&LEAVING);
            let crowded = leaving.len() > MOST_LEAVING;
            leaving.pop_front_if(|oldest| crowded || oldest.is_finished())
        };
        let Some(gone) = gone else {
            return Ok(());
        };
        match gone.join() {
            Ok(ended) => ended.context("an agent of an earlier test")?,
            Err(_) => bail!("a wait for the end of an agent panicked"),
        }
    }
}

impl Agent {
    /// Traces these processes, with spans to a file.
    pub fn attach(pids: &[u32]) -> Result<Self> {
        AgentOptions::new(pids).start()
    }

    /// The same without Python's frames, for what is on the wire alone: those
    /// have their own tests.
    pub fn attach_without_frames(pids: &[u32]) -> Result<Self> {
        AgentOptions::new(pids).arguments(&["--no-frames"]).start()
    }

    /// Waits until it says that it traces the process.
    pub fn wait_until_it_traces(&mut self, pid: u32) -> Result<()> {
        let start = format!("otel-ebpf: tracing {pid}:");
        self.wait_for_line(|line| line.starts_with(&start))?;
        Ok(())
    }

    /// Waits for a line that it prints.
    pub fn wait_for_line(&mut self, wanted: impl Fn(&str) -> bool) -> Result<String> {
        let find = |lines: &[String]| lines.iter().find(|line| wanted(line)).cloned();
        self.group
            .wait_for_lines("a line of the agent", PATIENCE, find)
    }

    /// The spans it wrote so far, by start.
    pub fn spans(&self) -> Result<Vec<Span>> {
        from_file(&self.folder.path().join("spans.jsonl"))
    }

    /// Reads the spans as they are written, each once.
    pub fn follow(&self) -> Follower {
        Follower::new(self.folder.path())
    }

    /// Waits for so many spans; there may be more. Returns all.
    pub fn wait_for_spans(&mut self, count: usize) -> Result<Vec<Span>> {
        let found = wait_for(&format!("{count} spans"), PATIENCE, || {
            let spans = self.spans()?;
            Ok((spans.len() >= count).then_some(spans))
        });
        found.with_context(|| {
            let spans = self.spans().unwrap_or_default();
            format!("{}\nthere are {spans:#?}", self.group.log())
        })
    }

    /// Waits until so many spans are the children of the server span of a path;
    /// returns all.
    pub fn spans_under(&self, path: &str, count: usize) -> Result<Vec<Span>> {
        let found = wait_for(&format!("{count} spans under {path}"), PATIENCE, || {
            let spans = self.spans()?;
            let server = spans
                .iter()
                .find(|span| span.kind == Kind::Server && span.text("url.path") == path);
            let complete = server.is_some_and(|server| children(&spans, server).len() >= count);
            Ok(complete.then_some(spans))
        });
        found.with_context(|| brief(&self.spans().unwrap_or_default()))
    }

    /// Stops it with SIGINT and does not wait for its probes to be detached.
    pub fn stop(self) -> Result<Ended> {
        self.hand_over(Signal::INT, DETACHING)
    }

    /// Stops it with a signal; it has to end well, and in time.
    pub fn stop_with(self, signal: Signal, limit: Duration) -> Result<Ended> {
        self.group.signal(signal)?;
        self.wait(limit)
    }

    /// Stops it with a signal. Returns when it has said and written everything,
    /// which it has to in time; while it detaches its probes, the test goes on.
    /// Should it end badly, another agent does not start.
    pub fn hand_over(mut self, signal: Signal, limit: Duration) -> Result<Ended> {
        self.group.signal(signal)?;
        let summary = |lines: &[String]| {
            let said = lines.iter().any(|line| line.starts_with(SUMMARY));
            said.then(|| lines.to_vec())
        };
        let lines = self
            .group
            .wait_for_lines("the agent's summary", limit, summary)?;
        let ended = self.ended(lines)?;
        let leaving = thread::spawn(move || self.leave(DETACHING).map(drop));
        locked(&LEAVING).push_back(leaving);
        Ok(ended)
    }

    /// Waits for its end, which has to be a good one.
    pub fn wait(mut self, limit: Duration) -> Result<Ended> {
        let lines = self.leave(limit)?;
        self.ended(lines)
    }

    /// Waits until the process is gone; returns what it said.
    fn leave(&mut self, limit: Duration) -> Result<Vec<String>> {
        let status = self.group.wait(limit)?;
        let lines = self.group.lines();
        ensure!(
            status.success(),
            "the agent failed: {status}\n{}",
            lines.join("\n")
        );
        Ok(lines)
    }

    /// What it left behind.
    fn ended(&self, lines: Vec<String>) -> Result<Ended> {
        let path = self.folder.path().join("spans.jsonl");
        let spans = if path.exists() {
            from_file(&path)?
        } else {
            Vec::new()
        };
        let counters = Counters::of(&lines)?;
        Ok(Ended {
            lines,
            spans,
            counters,
        })
    }
}

impl Counters {
    /// Reads the last summary among the agent's lines.
    pub fn of(lines: &[String]) -> Result<Self> {
        let summary = lines
            .iter()
            .rev()
            .find_map(|line| line.strip_prefix(SUMMARY));
        let Some(summary) = summary else {
            bail!("the agent printed no summary:\n{}", lines.join("\n"));
        };
        let pairs = summary.split_whitespace().map(|pair| {
            let (name, value) = pair.split_once('=').context("no name=value")?;
            Ok((name.to_owned(), value.parse()?))
        });
        pairs.collect::<Result<_>>().map(Self)
    }

    /// A counter's value.
    pub fn get(&self, name: &str) -> u64 {
        self.0.get(name).copied().unwrap_or(0)
    }

    /// Asserts that nothing was lost, in the kernel or here.
    #[track_caller]
    pub fn assert_nothing_lost(&self) {
        assert_eq!(self.get("lost"), 0, "{self:#?}");
    }
}

/// The agent's binary.
pub fn binary() -> Result<PathBuf> {
    path_from("OTEL_EBPF_AGENT", "../target/release/otel-ebpf")
}

/// Takes the test's own settings away from a command.
pub fn clean(command: &mut Command) {
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        if text.starts_with("OTEL_") && !text.starts_with("OTEL_EBPF_") {
            command.env_remove(name);
        }
    }
}
