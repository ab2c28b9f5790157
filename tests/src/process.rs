//! Child processes of a test: each in a group of its own that ends with it,
//! its output kept for a failure's message; and waiting with a deadline.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
pub use rustix::process::Signal;
use rustix::process::{Pid, kill_process, kill_process_group, test_kill_process_group};

/// Longer than anything takes that a live test waits for, on a machine that is
/// ten times slower than most, too: it is only waited for in vain.
pub const PATIENCE: Duration = Duration::from_secs(120);
/// How often a condition is looked at again.
const POLL: Duration = Duration::from_millis(5);

/// Waits until the condition gives a value, at most for `limit`.
pub fn wait_for<T>(
    what: &str,
    limit: Duration,
    mut condition: impl FnMut() -> Result<Option<T>>,
) -> Result<T> {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(value) = condition()? {
            return Ok(value);
        }
        if Instant::now() > deadline {
            bail!("{what}: did not happen within {limit:?}");
        }
        thread::sleep(POLL);
    }
}

/// The path that an environment variable names, or its default; it exists.
pub fn path_from(variable: &str, default: &str) -> Result<PathBuf> {
    let path = std::env::var_os(variable).map_or_else(
        || PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(default),
        PathBuf::from,
    );
    if !path.exists() {
        bail!(
            "{} does not exist: run `cargo xtask test`, which makes it, or name it in {variable}",
            path.display()
        );
    }
    Ok(path)
}

/// A child, leader of its process group, with everything it printed.
pub struct Group {
    child: Child,
    name: String,
    lines: Arc<Mutex<Vec<String>>>,
    readers: Vec<thread::JoinHandle<()>>,
}

impl Group {
    /// Starts the command as leader of a new process group.
    pub fn spawn(name: &str, command: &mut Command) -> Result<Self> {
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .spawn()
            .with_context(|| format!("cannot start {name}: {command:?}"))?;
        let lines = Arc::<Mutex<Vec<String>>>::default();
        let mut readers = Vec::new();
        if let Some(output) = child.stdout.take() {
            readers.push(keep(output, Arc::clone(&lines)));
        }
        if let Some(output) = child.stderr.take() {
            readers.push(keep(output, Arc::clone(&lines)));
        }
        Ok(Self {
            child,
            name: name.to_owned(),
            lines,
            readers,
        })
    }

    /// The leader's process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The leader and its descendants.
    pub fn pids(&self) -> Vec<u32> {
        let mut pids = vec![self.pid()];
        let mut next = 0;
        while let Some(&pid) = pids.get(next) {
            pids.extend(children(pid));
            next += 1;
        }
        pids
    }

    /// The lines it printed so far, of both outputs.
    pub fn lines(&self) -> Vec<String> {
        locked(&self.lines).clone()
    }

    /// Its last lines, for a failure's message.
    pub fn log(&self) -> String {
        let lines = self.lines();
        let last = &lines[lines.len().saturating_sub(40)..];
        format!("{} said:\n{}", self.name, last.join("\n"))
    }

    /// Waits until what it printed so far gives a value. Fails if the leader
    /// ends without, once the last of its lines was read.
    pub fn wait_for_lines<T>(
        &mut self,
        what: &str,
        limit: Duration,
        mut wanted: impl FnMut(&[String]) -> Option<T>,
    ) -> Result<T> {
        let found = wait_for(what, limit, || {
            // Asked for first: what it says at its end is waited for.
            let ended = self.child.try_wait()?;
            if ended.is_some() {
                self.read_to_end()?;
            }
            let found = wanted(&locked(&self.lines));
            match (found, ended) {
                (None, Some(status)) => bail!("{} ended: {status}", self.name),
                (found, _) => Ok(found),
            }
        });
        found.with_context(|| self.log())
    }

    /// Fails, with its last lines, if the leader has ended.
    pub fn expect_running(&mut self) -> Result<()> {
        match self.child.try_wait()? {
            None => Ok(()),
            Some(status) => bail!("{} ended: {status}; {}", self.name, self.log()),
        }
    }

    /// Sends the leader a signal.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        send(self.pid(), signal)
    }

    /// Waits for the leader's end and for the rest of its output.
    pub fn wait(&mut self, limit: Duration) -> Result<ExitStatus> {
        let name = self.name.clone();
        let ended = wait_for(&format!("the end of {name}"), limit, || {
            Ok(self.child.try_wait()?)
        });
        let status = ended.with_context(|| self.log())?;
        self.read_to_end()?;
        Ok(status)
    }

    /// Waits for the rest of the output.
    fn read_to_end(&mut self) -> Result<()> {
        for reader in self.readers.drain(..) {
            if reader.join().is_err() {
                bail!("a reader of {}'s output panicked", self.name);
            }
        }
        Ok(())
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let Some(group) = i32::try_from(self.pid()).ok().and_then(Pid::from_raw) else {
            return;
        };
        // Whoever has ended already needs no signal.
        let _gone = kill_process_group(group, Signal::KILL);
        let _status = self.child.wait();
        let _gone = wait_for("the end of a process group", PATIENCE, || {
            Ok(test_kill_process_group(group).is_err().then_some(()))
        });
    }
}

/// Sends a process a signal.
pub fn send(pid: u32, signal: Signal) -> Result<()> {
    let raw = i32::try_from(pid).ok().and_then(Pid::from_raw);
    let pid = raw.with_context(|| format!("{pid} is no process id"))?;
    kill_process(pid, signal).with_context(|| format!("cannot send {signal:?} to {pid:?}"))
}

/// The children of a process, of all its threads.
pub fn children(pid: u32) -> Vec<u32> {
    let Ok(threads) = std::fs::read_dir(format!("/proc/{pid}/task")) else {
        return Vec::new();
    };
    let mut found = Vec::new();
    for thread in threads.flatten() {
        let text = std::fs::read_to_string(thread.path().join("children")).unwrap_or_default();
        found.extend(
            text.split_whitespace()
                .filter_map(|pid| pid.parse::<u32>().ok()),
        );
    }
    found.sort_unstable();
    found
}

/// The exit code as a shell tells it.
pub fn shell_code(status: ExitStatus) -> i32 {
    match (status.code(), status.signal()) {
        (Some(code), _) => code,
        (None, signal) => 128 + signal.unwrap_or_default(),
    }
}

/// An empty file that ends with the test's folder.
pub fn empty_file(path: &std::path::Path) -> Result<()> {
    File::create(path).with_context(|| format!("cannot create {}", path.display()))?;
    Ok(())
}

fn keep(
    output: impl Read + Send + 'static,
    lines: Arc<Mutex<Vec<String>>>,
) -> thread::JoinHandle<()> {
    thread::spawn(move || {
        for line in BufReader::new(output).split(b'\n').map_while(Result::ok) {
            locked(&lines).push(String::from_utf8_lossy(&line).into_owned());
        }
    })
}

/// What a mutex guards, whatever became of those who held it.
pub(crate) fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
