//! Child processes that end with their task.
//!
//! Each service runs in a process group of its own, so that a server's
//! workers end with it. Dropping a [`Group`] ends the whole group.

use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::io::Errno;
use rustix::process::{Pid, Signal, kill_process_group, test_kill_process_group};

use crate::interrupt;

/// How long a group may take to end after SIGTERM before it is killed.
const PATIENCE: Duration = Duration::from_secs(10);
/// How often a condition is looked at again.
const POLL: Duration = Duration::from_millis(20);

/// A child and its process group.
pub(crate) struct Group {
    child: Child,
    name: String,
    ended: Option<ExitStatus>,
}

impl Group {
    /// Starts the command as leader of a new process group.
    pub(crate) fn spawn(name: &str, command: &mut Command) -> Result<Self> {
        let child = command
            .process_group(0)
            .spawn()
            .with_context(|| format!("cannot start {name}: {command:?}"))?;
        Ok(Self {
            child,
            name: name.to_owned(),
            ended: None,
        })
    }

    /// The leader's process id.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The leader, for its pipes.
    pub(crate) fn child(&mut self) -> &mut Child {
        &mut self.child
    }

    /// How the leader ended, if it has.
    pub(crate) fn ended(&mut self) -> Result<Option<ExitStatus>> {
        if self.ended.is_none() {
            self.ended = self.child.try_wait()?;
        }
        Ok(self.ended)
    }

    /// Fails if the leader has ended.
    pub(crate) fn expect_running(&mut self) -> Result<()> {
        match self.ended()? {
            None => Ok(()),
            Some(status) => bail!("{} ended early: {status}", self.name),
        }
    }

    /// Asks the group to end with SIGTERM, kills what is left after ten
    /// seconds, and returns how the leader ended.
    pub(crate) fn end(&mut self) -> Result<ExitStatus> {
        let deadline = Instant::now() + PATIENCE;
        self.signal(Signal::TERM);
        let mut killed = false;
        loop {
            if let Some(status) = self.ended()?
                && !self.alive()
            {
                return Ok(status);
            }
            if !killed && Instant::now() > deadline {
                crate::say(format!("{} does not end, killing it", self.name));
                self.signal(Signal::KILL);
                killed = true;
            } else if killed && Instant::now() > deadline + PATIENCE {
                bail!("{} cannot be killed", self.name);
            }
            thread::sleep(POLL);
        }
    }

    fn signal(&self, signal: Signal) {
        let Some(pid) = self.pgid() else { return };
        if kill_process_group(pid, signal) == Err(Errno::PERM) {
            // It was started through sudo, whose ticket is still good.
            let group = format!("-{}", pid.as_raw_nonzero());
            let number = format!("-{}", signal.as_raw());
            if let Err(error) =
                run(Command::new("sudo").args(["-n", "kill", &number, "--", &group]))
            {
                crate::say(format!("cannot end {}: {error:#}", self.name));
            }
        }
    }

    fn alive(&self) -> bool {
        self.pgid()
            .is_some_and(|pid| test_kill_process_group(pid) != Err(Errno::SRCH))
    }

    fn pgid(&self) -> Option<Pid> {
        i32::try_from(self.child.id()).ok().and_then(Pid::from_raw)
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if let Err(error) = self.end() {
            crate::say(format!("{error:#}"));
        }
    }
}

/// Runs a command to its end; its failure is an error that names it.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let status = command
        .status()
        .with_context(|| format!("cannot start {command:?}"))?;
    if !status.success() {
        bail!("{status}: {command:?}");
    }
    Ok(())
}

/// Runs a command to its end and returns what it wrote to standard output.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    let output = command
        .output()
        .with_context(|| format!("cannot start {command:?}"))?;
    if !output.status.success() {
        let error = String::from_utf8_lossy(&output.stderr);
        bail!("{}: {command:?}: {}", output.status, error.trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Waits until the condition gives a value, at most for `limit`.
pub(crate) fn wait_for<T>(
    what: &str,
    limit: Duration,
    mut condition: impl FnMut() -> Result<Option<T>>,
) -> Result<T> {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(value) = condition()? {
            return Ok(value);
        }
        interrupt::check()?;
        if Instant::now() > deadline {
            bail!("{what} did not happen within {limit:?}");
        }
        thread::sleep(POLL);
    }
}

/// Whether a process ended because it was asked to.
pub(crate) fn ended_well(status: ExitStatus) -> bool {
    status.success() || status.signal() == Some(Signal::TERM.as_raw())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_the_children_of_the_leader_too() {
        let mut command = Command::new("sh");
        command.args(["-c", "sleep 1000 & wait"]);
        let mut group = Group::spawn("sleepers", &mut command).unwrap();
        assert!(group.alive());
        assert!(ended_well(group.end().unwrap()));
        assert!(!group.alive());
    }

    #[test]
    fn names_a_command_that_fails() {
        let error = run(Command::new("sh").args(["-c", "exit 3"])).unwrap_err();
        assert!(error.to_string().contains("exit 3"), "{error}");
    }

    #[test]
    fn a_condition_that_never_comes_true_ends_at_its_deadline() {
        let error = wait_for("the moon", Duration::ZERO, || Ok(None::<()>)).unwrap_err();
        assert!(error.to_string().starts_with("the moon did not happen"));
    }
}
