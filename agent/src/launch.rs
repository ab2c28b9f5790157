//! Starts the command of `otel-ebpf run` so that it is traced from its first
//! instruction.
//!
//! The command is started through this program itself ([`exec`]), which stops
//! before it becomes the command, until the agent has made it a target.

use std::ffi::OsString;
use std::io;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::process::{Child, Command, ExitCode};

use anyhow::Context as _;
use rustix::process::{Pid, Signal, WaitOptions, getpid, kill_process, waitpid};

/// The hidden subcommand that [`exec`] serves.
pub const SUBCOMMAND: &str = "__exec";

/// A command started by [`Launched::start`].
pub struct Launched {
    child: std::cell::RefCell<Child>,
    pid: Pid,
}

impl Launched {
    /// Starts the command up to the point before its first instruction.
    pub fn start(command: &[OsString]) -> anyhow::Result<Self> {
        let this = std::env::current_exe().context("cannot find this program's own file")?;
        let child = Command::new(this)
            .arg(SUBCOMMAND)
            .arg("--")
            .args(command)
            .spawn()
            .context("cannot start the command")?;
        let pid = Pid::from_child(&child);
        let status = waitpid(Some(pid), WaitOptions::UNTRACED)
            .context("cannot wait for the command to stop")?;
        match status {
            Some((_, status)) if status.stopped() => {}
            _ => anyhow::bail!("the command ended before it began"),
        }
        Ok(Self {
            child: std::cell::RefCell::new(child),
            pid,
        })
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.pid.as_raw_nonzero().get().unsigned_abs()
    }

    /// Lets it go.
    pub fn go(&self) -> io::Result<()> {
        Ok(kill_process(self.pid, Signal::CONT)?)
    }

    /// Asks it to end.
    pub fn ask_to_end(&self) {
        if let Err(error) = kill_process(self.pid, Signal::TERM) {
            tracing::debug!(%error, "the command has ended already");
        }
    }

    /// Waits for its end; its exit code is ours.
    pub fn finish(self) -> anyhow::Result<ExitCode> {
        let status = self
            .child
            .into_inner()
            .wait()
            .context("cannot wait for the command")?;
        let code = match (status.code(), status.signal()) {
            (Some(code), _) => code,
            // As a shell tells it.
            (None, Some(signal)) => 128 + signal,
            (None, None) => 1,
        };
        Ok(ExitCode::from(u8::try_from(code).unwrap_or(1)))
    }
}

/// Becomes the command, once somebody continues us.
pub fn exec(command: &[OsString]) -> anyhow::Result<ExitCode> {
    let Some((program, arguments)) = command.split_first() else {
        anyhow::bail!("no command");
    };
    kill_process(getpid(), Signal::STOP).context("cannot stop")?;
    let error = Command::new(program).args(arguments).exec();
    Err(error).with_context(|| format!("cannot run {}", program.to_string_lossy()))
}
