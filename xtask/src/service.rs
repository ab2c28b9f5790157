//! The Python applications under their servers, and the agent that traces
//! them.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::group::{Group, ended_well, wait_for};
use crate::http::Client;
use crate::python::{Venv, apps};
use crate::say;
use crate::toolchain::{is_root, which};

/// How long a server may take to answer its first request; the in-process
/// SDK under emulation of nothing at all takes four seconds on one core.
const READY: Duration = Duration::from_secs(60);
/// How long the agent may take to attach; the budget is one second.
const ATTACHED: Duration = Duration::from_secs(60);

/// What serves an application.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Server {
    /// ASGI, one process.
    Uvicorn,
    /// WSGI, a master and one worker with threads.
    GunicornThreads(u32),
}

/// What is to be started.
pub(crate) struct Service<'a> {
    /// The module in `tests/apps`.
    pub(crate) module: &'static str,
    pub(crate) server: Server,
    /// A path that answers 200 when all is well.
    pub(crate) probe: &'static str,
    pub(crate) env: Vec<(&'static str, OsString)>,
    /// A command that starts the server's command.
    pub(crate) prefix: Vec<OsString>,
    pub(crate) venv: &'a Venv,
    /// Where its output goes.
    pub(crate) logs: &'a Path,
}

/// A service that has answered its probe.
pub(crate) struct Running {
    pub(crate) address: SocketAddr,
    group: Group,
    log: PathBuf,
}

impl Service<'_> {
    /// Starts it on a free port and waits for its first answer.
    pub(crate) fn start(self) -> Result<Running> {
        let address = free_port()?;
        let log = self
            .logs
            .join(format!("{}-{}.log", self.module, address.port()));
        let file = File::create(&log)?;
        let mut words = self.prefix.into_iter();
        let mut line: Vec<OsString> = words.by_ref().collect();
        line.extend(server_command(self.server, self.venv, self.module, address));
        let mut line = line.into_iter();
        let mut command = Command::new(line.next().context("no server command")?);
        command
            .args(line)
            .current_dir(apps())
            .env("PYTHONDONTWRITEBYTECODE", "1")
            .envs(self.env)
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file);
        let group = Group::spawn(self.module, &mut command)?;
        let mut running = Running {
            address,
            group,
            log,
        };
        running.wait_until_ready(self.module, self.probe)?;
        Ok(running)
    }
}

impl Running {
    fn wait_until_ready(&mut self, module: &str, probe: &str) -> Result<()> {
        let address = self.address;
        let ready = wait_for(&format!("an answer of {module}"), READY, || {
            self.group.expect_running()?;
            match Client::new(address).send("GET", probe) {
                Ok(200) => Ok(Some(())),
                Ok(status) => bail!("{module} answers its probe {probe} with {status}"),
                Err(_) => Ok(None),
            }
        });
        ready.with_context(|| format!("{module} logged:\n{}", self.log_text()))
    }

    /// Fails, with its log, if the service has ended.
    pub(crate) fn expect_running(&mut self) -> Result<()> {
        let checked = self.group.expect_running();
        checked.with_context(|| format!("it logged:\n{}", self.log_text()))
    }

    /// What it wrote so far, for a failure's message: the last lines.
    fn log_text(&self) -> String {
        let text = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(40)..].join("\n")
    }

    /// The server's processes: the leader and its workers.
    pub(crate) fn pids(&self) -> Vec<u32> {
        let mut pids = vec![self.group.pid()];
        let mut next = 0;
        while let Some(pid) = pids.get(next).copied() {
            let children = format!("/proc/{pid}/task/{pid}/children");
            let children = fs::read_to_string(children).unwrap_or_default();
            pids.extend(
                children
                    .split_whitespace()
                    .filter_map(|pid| pid.parse::<u32>().ok()),
            );
            next += 1;
        }
        pids
    }

    /// What its threads have run on processors so far, in user space and in the
    /// kernel (`/proc/PID/task/TID/schedstat`, Documentation/scheduler/sched-stats.rst).
    pub(crate) fn cpu_time(&self) -> Result<Duration> {
        let mut nanos = 0;
        for pid in self.pids() {
            for thread in fs::read_dir(format!("/proc/{pid}/task"))? {
                // One that has ended meanwhile has used nothing that matters.
                let Ok(line) = fs::read_to_string(thread?.path().join("schedstat")) else {
                    continue;
                };
                let first = line.split_whitespace().next();
                let ran: u64 = first.context("an empty schedstat")?.parse()?;
                nanos += ran;
            }
        }
        Ok(Duration::from_nanos(nanos))
    }

    /// Ends the server and its workers.
    pub(crate) fn end(mut self) -> Result<()> {
        self.group.end().map(drop)
    }
}

fn server_command(server: Server, venv: &Venv, module: &str, address: SocketAddr) -> Vec<OsString> {
    let application = format!("{module}:app");
    let (program, arguments) = match server {
        Server::Uvicorn => (
            "uvicorn",
            vec![
                application,
                "--host".to_owned(),
                address.ip().to_string(),
                "--port".to_owned(),
                address.port().to_string(),
                "--no-access-log".to_owned(),
            ],
        ),
        Server::GunicornThreads(threads) => (
            "gunicorn",
            vec![
                application,
                "--bind".to_owned(),
                address.to_string(),
                "--workers".to_owned(),
                "1".to_owned(),
                "--worker-class".to_owned(),
                "gthread".to_owned(),
                "--threads".to_owned(),
                threads.to_string(),
                "--keep-alive".to_owned(),
                "75".to_owned(),
            ],
        ),
    };
    let program = venv.program(program).into_os_string();
    std::iter::once(program)
        .chain(arguments.into_iter().map(OsString::from))
        .collect()
}

/// An address that nobody listens on at the moment.
pub(crate) fn free_port() -> Result<SocketAddr> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("no free port")?;
    Ok(listener.local_addr()?)
}

/// The agent, attached.
pub(crate) struct Agent {
    group: Group,
    reader: Option<JoinHandle<()>>,
    lines: Arc<Mutex<Vec<String>>>,
}

/// How to start the agent.
pub(crate) struct AgentOptions<'a> {
    pub(crate) binary: &'a Path,
    pub(crate) pids: &'a [u32],
    pub(crate) arguments: Vec<OsString>,
    /// A command that starts the agent's command.
    pub(crate) prefix: Vec<OsString>,
    /// Whether its standard error goes on to ours.
    pub(crate) show: bool,
}

/// Makes sure that the agent may be started: as root, or through sudo.
pub(crate) fn ensure_privileges() -> Result<()> {
    if is_root() {
        return Ok(());
    }
    if which("sudo").is_none() {
        bail!("attaching needs root, and there is no sudo: run this task as root");
    }
    say("attaching needs root: asking sudo");
    crate::group::run(Command::new("sudo").arg("-v"))
}

impl Agent {
    /// Starts it and waits until it says that it traces.
    pub(crate) fn start(options: AgentOptions<'_>) -> Result<Self> {
        let mut line: Vec<OsString> = Vec::new();
        if !is_root() {
            line.extend(["sudo".into(), "-n".into(), "-E".into()]);
        }
        line.extend(options.prefix);
        line.push(options.binary.into());
        for pid in options.pids {
            line.extend(["--pid".into(), pid.to_string().into()]);
        }
        line.extend(options.arguments);
        let mut words = line.into_iter();
        let mut command = Command::new(words.next().context("no agent command")?);
        command
            .args(words)
            .stdin(Stdio::null())
            .stderr(Stdio::piped());
        let mut group = Group::spawn("the agent", &mut command)?;
        let stderr = group
            .child()
            .stderr
            .take()
            .context("the agent has no standard error")?;
        let lines = Arc::new(Mutex::new(Vec::new()));
        let kept = Arc::clone(&lines);
        let show = options.show;
        let reader = thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                if show {
                    eprintln!("{line}");
                }
                locked(&kept).push(line);
            }
        });
        let mut agent = Self {
            group,
            reader: Some(reader),
            lines,
        };
        agent.wait_until_attached(options.pids.len())?;
        Ok(agent)
    }

    fn wait_until_attached(&mut self, processes: usize) -> Result<()> {
        let attached = wait_for("attaching", ATTACHED, || {
            self.group.expect_running()?;
            let ready = locked(&self.lines)
                .iter()
                .filter(|line| line.contains("tracing"))
                .count();
            Ok((ready >= processes).then_some(()))
        });
        attached.with_context(|| format!("the agent said:\n{}", locked(&self.lines).join("\n")))
    }

    /// Its process id (of sudo, where that was needed).
    pub(crate) fn pid(&self) -> u32 {
        self.group.pid()
    }

    /// Fails if it has ended.
    pub(crate) fn expect_running(&mut self) -> Result<()> {
        self.group.expect_running()
    }

    /// Ends it; returns what it wrote to standard error.
    pub(crate) fn end(mut self) -> Result<Vec<String>> {
        let status = self.group.end()?;
        if let Some(reader) = self.reader.take() {
            reader.join().ok();
        }
        let lines = locked(&self.lines).clone();
        if !ended_well(status) {
            bail!("the agent failed: {status}\n{}", lines.join("\n"));
        }
        Ok(lines)
    }
}

fn locked(lines: &Mutex<Vec<String>>) -> std::sync::MutexGuard<'_, Vec<String>> {
    lines.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn free_ports_are_free() {
        let address = free_port().unwrap();
        assert!(TcpListener::bind(address).is_ok());
    }
}
