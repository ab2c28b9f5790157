//! Starts the command of `otel-ebpf run` so that it is traced from its first
//! instruction.
//!
//! The command is started through this program itself ([`exec`]), which stops
//! before it becomes the command, until the agent has made it a target.

use std::cell::{Cell, RefCell};
use std::ffi::OsString;
use std::io;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::process::{Child, Command, ExitCode};

use anyhow::Context as _;
use rustix::process::{
    Pid, Signal, WaitOptions, getpid, kill_process, set_parent_process_death_signal, waitpid,
};

/// The hidden subcommand that [`exec`] serves.
pub const SUBCOMMAND: &str = "__exec";

/// A command started by [`Launched::start`]; one that was never let go does
/// not outlive it.
pub struct Launched {
    child: RefCell<Child>,
    pid: Pid,
    waits: Cell<bool>,
}

/// Exit codes of a command that could not be started, as shells have them.
mod code {
    /// There is such a file, and it cannot be executed.
    pub(super) const NOT_EXECUTABLE: u8 = 126;
    /// There is no such command.
    pub(super) const NOT_FOUND: u8 = 127;
    /// Something else failed.
    pub(super) const FAILURE: u8 = 1;
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
            child: RefCell::new(child),
            pid,
            waits: Cell::new(true),
        })
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.pid.as_raw_nonzero().get().unsigned_abs()
    }

    /// Lets it go.
    pub fn go(&self) -> io::Result<()> {
        self.waits.set(false);
        Ok(kill_process(self.pid, Signal::CONT)?)
    }

    /// Whether it has ended.
    pub fn has_ended(&self) -> bool {
        // What cannot be waited for is not there any more.
        !matches!(self.child.borrow_mut().try_wait(), Ok(None))
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
            .borrow_mut()
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

impl Drop for Launched {
    fn drop(&mut self) {
        if self.waits.get()
            && let Err(error) = self.child.get_mut().kill()
        {
            tracing::debug!(%error, "the command has ended already");
        }
    }
}

/// Becomes the command, once somebody continues us; returns only if that
/// fails, with the exit code to end with.
pub fn exec(command: &[OsString]) -> (anyhow::Error, u8) {
    let Some((program, arguments)) = command.split_first() else {
        return (anyhow::anyhow!("no command"), code::FAILURE);
    };
    if let Err(error) = stop() {
        return (error, code::FAILURE);
    }
    let error = Command::new(program).args(arguments).exec();
    let code = match error.kind() {
        io::ErrorKind::NotFound => code::NOT_FOUND,
        _ => code::NOT_EXECUTABLE,
    };
    let error = anyhow::Error::new(error);
    (
        error.context(format!("cannot run {}", program.to_string_lossy())),
        code,
    )
}

/// Stops until somebody continues us. If the agent dies meanwhile, nobody
/// will: so do we.
fn stop() -> anyhow::Result<()> {
    set_parent_process_death_signal(Some(Signal::KILL)).context("cannot follow the agent")?;
    kill_process(getpid(), Signal::STOP).context("cannot stop")?;
    set_parent_process_death_signal(None).context("cannot leave the agent")
}
