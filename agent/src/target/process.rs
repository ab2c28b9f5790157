//! What `/proc` tells about one process: identity, command line, environment
//! and namespaces.
//!
//! Everything here is written by the process itself or by whoever started
//! it, so every read is bounded and nothing is believed to be well-formed.
//! Nothing is interpreted: `service` and `resource` do that.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

/// Longest command line that is read, in bytes.
pub const MAX_COMMAND_LINE: usize = 64 << 10;
/// Longest environment that is read, in bytes; the kernel's own limit for
/// arguments and environment together is 6 MiB.
pub const MAX_ENVIRONMENT: usize = 1 << 20;
/// Longest other file of `/proc` that is read, in bytes.
const MAX_PROC_FILE: usize = 256 << 10;
/// Longest file of the process's own file system that is read, in bytes.
pub const MAX_TARGET_FILE: usize = 256 << 10;

/// Why a process cannot be looked at.
#[derive(Debug, thiserror::Error)]
pub enum ProcessError {
    /// There is no process of that id.
    #[error("there is no process {pid}")]
    NoSuchProcess {
        /// The id asked for.
        pid: u32,
    },
    /// It ended, or its id was reused, while it was being looked at.
    #[error("process {pid} has exited")]
    Exited {
        /// The id asked for.
        pid: u32,
    },
    /// The id is that of a thread other than the first of its process.
    #[error("{pid} is a thread of process {process}, not a process")]
    Thread {
        /// The id asked for.
        pid: u32,
        /// The process it belongs to.
        process: u32,
    },
    /// It is a thread of the kernel.
    #[error("process {pid} is a kernel thread")]
    KernelThread {
        /// The id asked for.
        pid: u32,
    },
    /// The kernel refused for want of privileges.
    #[error("not permitted to read {path} (needs root or CAP_SYS_PTRACE)")]
    NotPermitted {
        /// What was being read.
        path: PathBuf,
        /// The refusal.
        source: io::Error,
    },
    /// Reading failed otherwise.
    #[error("cannot read {path}")]
    Unreadable {
        /// What was being read.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file of `/proc` does not look as documented.
    #[error("{path} is not as expected: no {field}")]
    Unexpected {
        /// Which file.
        path: PathBuf,
        /// What is missing.
        field: &'static str,
    },
}

/// The environment a process was started with.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Environment {
    /// Names and values in order; bytes that are not UTF-8 are replaced.
    pub variables: Vec<(String, String)>,
    /// Whether it was seen whole. Programs that set their title in place
    /// (setproctitle, uWSGI) overwrite it, and a huge one is cut off.
    pub complete: bool,
}

impl Environment {
    /// The value of a variable; empty values count as unset, as the
    /// OpenTelemetry specification has it.
    pub fn value(&self, name: &str) -> Option<&str> {
        self.variables
            .iter()
            .find(|(key, _)| key == name)
            .map(|(_, value)| value.as_str())
            .filter(|value| !value.is_empty())
    }
}

/// What is known of a process from `/proc/PID`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ProcessInfo {
    /// Process id as this agent sees it.
    pub pid: u32,
    /// Parent's process id; 0 if outside the agent's pid namespace.
    pub parent: u32,
    /// Process id in the innermost pid namespace it belongs to.
    pub namespace_pid: u32,
    /// Start time in clock ticks since boot; with `pid` it is unique until
    /// the next boot.
    pub start_ticks: u64,
    /// Start time in nanoseconds since the Unix epoch. Derived from the
    /// kernel's boot time, which has a resolution of one second.
    pub created: u64,
    /// Arguments, the program's name first.
    pub command_line: Vec<String>,
    /// The environment at `exec`.
    pub environment: Environment,
    /// The executable, without the mark of a deleted file; a path in the
    /// process's own mount namespace.
    pub executable: Option<PathBuf>,
    /// Current directory, in the process's own mount namespace.
    pub working_directory: Option<PathBuf>,
    /// Effective user id.
    pub uid: u32,
    /// The user's name in the process's own user database.
    pub owner: Option<String>,
    /// Name of the first thread, at most 15 bytes.
    pub comm: String,
    /// Text of `/proc/PID/cgroup`.
    pub cgroup: String,
    /// Text of `/proc/PID/mountinfo`, bounded.
    pub mountinfo: String,
}

impl ProcessInfo {
    /// Reads `/proc/PID`.
    pub fn read(pid: u32) -> Result<Self, ProcessError> {
        let directory = PathBuf::from(format!("/proc/{pid}"));
        let stat = read_stat(pid, &directory)?;
        let status = Status::parse(&read_text(pid, &directory.join("status"))?);
        if let Some(process) = status.tgid.filter(|tgid| *tgid != pid) {
            return Err(ProcessError::Thread { pid, process });
        }
        let executable = match std::fs::read_link(directory.join("exe")) {
            Ok(path) => Some(without_deleted_mark(path)),
            // The kernel's own threads have no executable, and neither has a
            // process between its last breath and its burial.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(match stat.kernel_thread {
                    true => ProcessError::KernelThread { pid },
                    false => ProcessError::Exited { pid },
                });
            }
            Err(error) => return Err(failure(pid, directory.join("exe"), error)),
        };
        let (command_line, _) = read_bytes(pid, &directory.join("cmdline"), MAX_COMMAND_LINE)?;
        let (environ, whole) = read_bytes(pid, &directory.join("environ"), MAX_ENVIRONMENT)?;
        let mut environment = parse_environment(&environ);
        environment.complete &= whole;
        let uid = status.uid.ok_or(ProcessError::Unexpected {
            path: directory.join("status"),
            field: "Uid",
        })?;
        let info = Self {
            pid,
            parent: stat.parent,
            namespace_pid: status.namespace_pid.unwrap_or(pid),
            start_ticks: stat.start_ticks,
            created: creation_time(stat.start_ticks),
            command_line: parse_command_line(&command_line),
            environment,
            executable,
            working_directory: std::fs::read_link(directory.join("cwd"))
                .ok()
                .map(without_deleted_mark),
            uid,
            owner: owner(pid, uid),
            comm: stat.comm,
            cgroup: read_text(pid, &directory.join("cgroup")).unwrap_or_default(),
            mountinfo: read_text(pid, &directory.join("mountinfo")).unwrap_or_default(),
        };
        // All of the above must have been one process.
        match read_stat(pid, &directory) {
            Ok(again) if again.start_ticks == info.start_ticks => Ok(info),
            Ok(_) | Err(ProcessError::NoSuchProcess { .. }) => Err(ProcessError::Exited { pid }),
            Err(error) => Err(error),
        }
    }

    /// What is known of a child that this process forked at `at` (monotonic
    /// nanoseconds) and that is gone already: all but its own numbers.
    pub fn forked(&self, child: u32, at: u64) -> Self {
        /// Nanoseconds of a clock tick as `/proc` tells it (`USER_HZ` is 100).
        const TICK: u64 = 10_000_000;
        let start_ticks = at / TICK;
        let age = start_ticks.saturating_sub(self.start_ticks);
        Self {
            pid: child,
            parent: self.pid,
            namespace_pid: child,
            start_ticks,
            created: self.created.saturating_add(age.saturating_mul(TICK)),
            ..self.clone()
        }
    }

    /// The executable's file name, else the thread's name.
    pub fn executable_name(&self) -> &str {
        self.executable
            .as_deref()
            .and_then(Path::file_name)
            .and_then(|name| name.to_str())
            .unwrap_or(&self.comm)
    }

    /// Whether this is still the same running process.
    pub fn is_alive(&self) -> bool {
        read_stat(self.pid, Path::new(&format!("/proc/{}", self.pid)))
            .is_ok_and(|stat| stat.start_ticks == self.start_ticks)
    }
}

/// Reads a regular file of the process's own file system as text.
///
/// The path is resolved inside the process's root, symbolic links included
/// (`openat2`, Linux 5.6), and nothing but a regular file is opened for
/// reading, so that a process cannot lead the agent astray or make it wait.
pub fn read_target_file(pid: u32, path: &Path) -> Option<String> {
    let root = rustix::fs::openat(
        CWD,
        format!("/proc/{pid}/root"),
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .ok()?;
    let file = rustix::fs::openat2(
        &root,
        path,
        OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC,
        Mode::empty(),
        ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS,
    )
    .ok()?;
    let file = File::from(file);
    if !file.metadata().ok()?.is_file() {
        return None;
    }
    let mut bytes = Vec::new();
    file.take(MAX_TARGET_FILE as u64)
        .read_to_end(&mut bytes)
        .ok()?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

/// The fields of `/proc/PID/stat` that are used.
#[derive(Debug, PartialEq, Eq)]
struct Stat {
    comm: String,
    zombie: bool,
    parent: u32,
    kernel_thread: bool,
    start_ticks: u64,
}

impl Stat {
    /// `PF_KTHREAD` of `include/linux/sched.h`.
    const KERNEL_THREAD: u64 = 0x0020_0000;

    /// The name in parentheses may itself contain parentheses, spaces and
    /// line ends, so the fields are counted from the last `)`.
    fn parse(text: &str) -> Option<Self> {
        let (head, tail) = text.rsplit_once(')')?;
        let (_, comm) = head.split_once('(')?;
        // Numbers are those of proc_pid_stat(5), which counts from 1.
        let fields: Vec<&str> = tail.split_ascii_whitespace().take(20).collect();
        let field = |number: usize| fields.get(number - 3).copied();
        Some(Self {
            comm: comm.to_owned(),
            zombie: matches!(field(3)?, "Z" | "X" | "x"),
            parent: field(4)?.parse().ok()?,
            kernel_thread: field(9)?.parse::<u64>().ok()? & Self::KERNEL_THREAD != 0,
            start_ticks: field(22)?.parse().ok()?,
        })
    }
}

/// The fields of `/proc/PID/status` that are used.
#[derive(Debug, Default, PartialEq, Eq)]
struct Status {
    tgid: Option<u32>,
    uid: Option<u32>,
    namespace_pid: Option<u32>,
}

impl Status {
    fn parse(text: &str) -> Self {
        let mut status = Self::default();
        for line in text.lines() {
            let Some((name, rest)) = line.split_once(':') else {
                continue;
            };
            let mut numbers = rest.split_ascii_whitespace().map(str::parse::<u32>);
            match name {
                "Tgid" => status.tgid = numbers.next().and_then(Result::ok),
                // Real, effective, saved, file system.
                "Uid" => status.uid = numbers.nth(1).and_then(Result::ok),
                "NSpid" => status.namespace_pid = numbers.next_back().and_then(Result::ok),
                _ => {}
            }
        }
        status
    }
}

fn read_stat(pid: u32, directory: &Path) -> Result<Stat, ProcessError> {
    let path = directory.join("stat");
    let text = match read_text(pid, &path) {
        Err(ProcessError::Exited { .. }) => return Err(absent(pid, path)),
        other => other?,
    };
    let stat = Stat::parse(&text).ok_or(ProcessError::Unexpected {
        path,
        field: "start time",
    })?;
    match stat.zombie {
        true => Err(ProcessError::Exited { pid }),
        false => Ok(stat),
    }
}

/// Tells a process that is not there from one that `hidepid` hides.
fn absent(pid: u32, path: PathBuf) -> ProcessError {
    let hidden = i32::try_from(pid)
        .ok()
        .and_then(rustix::process::Pid::from_raw)
        .is_some_and(|pid| rustix::process::test_kill_process(pid) == Err(Errno::PERM));
    match hidden {
        true => ProcessError::NotPermitted {
            path,
            source: Errno::PERM.into(),
        },
        false => ProcessError::NoSuchProcess { pid },
    }
}

fn failure(pid: u32, path: PathBuf, source: io::Error) -> ProcessError {
    match source.kind() {
        io::ErrorKind::NotFound => ProcessError::Exited { pid },
        io::ErrorKind::PermissionDenied => ProcessError::NotPermitted { path, source },
        _ if source.raw_os_error() == Some(Errno::SRCH.raw_os_error()) => {
            ProcessError::Exited { pid }
        }
        _ => ProcessError::Unreadable { path, source },
    }
}

/// Reads at most `limit` bytes; the flag tells whether that was all.
fn read_bytes(pid: u32, path: &Path, limit: usize) -> Result<(Vec<u8>, bool), ProcessError> {
    let mut bytes = Vec::new();
    File::open(path)
        .and_then(|file| file.take(limit as u64 + 1).read_to_end(&mut bytes))
        .map_err(|error| failure(pid, path.to_owned(), error))?;
    let whole = bytes.len() <= limit;
    bytes.truncate(limit);
    Ok((bytes, whole))
}

fn read_text(pid: u32, path: &Path) -> Result<String, ProcessError> {
    let (bytes, _) = read_bytes(pid, path, MAX_PROC_FILE)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Arguments end with a zero byte each. A title set in place is one argument
/// followed by the zeros that blank the rest.
fn parse_command_line(bytes: &[u8]) -> Vec<String> {
    let end = bytes
        .iter()
        .rposition(|byte| *byte != 0)
        .map_or(0, |last| last + 1);
    if end == 0 {
        return Vec::new();
    }
    let mut arguments: Vec<String> = bytes
        .split(|byte| *byte == 0)
        .map(|argument| String::from_utf8_lossy(argument).into_owned())
        .collect();
    // `python -c ''` ends in an argument that is empty, a title in blanks:
    // one empty argument is kept, several are padding.
    arguments.pop_if(|last| last.is_empty());
    let written = arguments
        .iter()
        .rposition(|argument| !argument.is_empty())
        .map_or(0, |last| last + 1);
    if arguments.len() > written + 1 {
        arguments.truncate(written);
    }
    arguments
}

fn parse_environment(bytes: &[u8]) -> Environment {
    let mut environment = Environment {
        variables: Vec::new(),
        complete: true,
    };
    let content = bytes.strip_suffix(&[0]).unwrap_or(bytes);
    if content.is_empty() {
        // Really empty, or blanked: a blanked one is all zeros.
        environment.complete = bytes.is_empty();
        return environment;
    }
    for entry in content.split(|byte| *byte == 0) {
        let entry = String::from_utf8_lossy(entry);
        match entry.split_once('=') {
            Some((name, value)) if is_variable_name(name) => {
                environment
                    .variables
                    .push((name.to_owned(), value.to_owned()));
            }
            _ => environment.complete = false,
        }
    }
    environment
}

/// Anything a shell or an orchestrator lets pass; not the middle of a title.
fn is_variable_name(name: &str) -> bool {
    !name.is_empty() && !name.contains(|letter: char| letter.is_whitespace() || letter.is_control())
}

fn without_deleted_mark(path: PathBuf) -> PathBuf {
    match path
        .to_str()
        .and_then(|text| text.strip_suffix(" (deleted)"))
    {
        Some(text) => PathBuf::from(text),
        None => path,
    }
}

/// Boot time plus start time, in Unix nanoseconds; 0 if the boot time cannot
/// be read.
fn creation_time(start_ticks: u64) -> u64 {
    let boot_seconds = read_text(0, Path::new("/proc/stat"))
        .ok()
        .and_then(|text| boot_time(&text));
    let ticks_per_second = rustix::param::clock_ticks_per_second().max(1);
    boot_seconds.map_or(0, |boot| {
        unix_nanoseconds(boot, start_ticks, ticks_per_second)
    })
}

fn boot_time(stat: &str) -> Option<u64> {
    stat.lines()
        .find_map(|line| line.strip_prefix("btime ")?.trim().parse().ok())
}

fn unix_nanoseconds(boot_seconds: u64, ticks: u64, ticks_per_second: u64) -> u64 {
    let nanoseconds = u128::from(boot_seconds) * 1_000_000_000
        + u128::from(ticks) * 1_000_000_000 / u128::from(ticks_per_second);
    u64::try_from(nanoseconds).unwrap_or(u64::MAX)
}

fn owner(pid: u32, uid: u32) -> Option<String> {
    user_name(&read_target_file(pid, Path::new("/etc/passwd"))?, uid)
}

fn user_name(passwd: &str, uid: u32) -> Option<String> {
    passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next().filter(|name| !name.is_empty())?;
        (fields.nth(1)?.parse() == Ok(uid)).then(|| name.to_owned())
    })
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn stat_fields_survive_a_hostile_name() {
        let text = "77 (a) b (c)\n) S 12 77 77 0 -1 4194560 1 0 0 0 1 2 0 0 20 0 3 0 98765 1 2 3";
        assert_eq!(
            Stat::parse(text),
            Some(Stat {
                comm: "a) b (c)\n".into(),
                zombie: false,
                parent: 12,
                kernel_thread: false,
                start_ticks: 98765
            })
        );
        assert_eq!(Stat::parse("77 (x) S 1 2"), None);
        assert_eq!(Stat::parse(""), None);
    }

    #[test]
    fn status_takes_the_effective_user_and_the_innermost_pid() {
        let text = "Name:\tx\nTgid:\t5\nUid:\t1\t1000\t1\t1\nNSpid:\t5\t3\t1\nnonsense\n";
        assert_eq!(
            Status::parse(text),
            Status {
                tgid: Some(5),
                uid: Some(1000),
                namespace_pid: Some(1)
            }
        );
    }

    #[test]
    fn command_lines() {
        let check =
            |bytes: &[u8], expected: &[&str]| assert_eq!(parse_command_line(bytes), expected);
        check(b"python3\0-c\0\0", &["python3", "-c", ""]);
        check(b"python3\0a b\0", &["python3", "a b"]);
        check(
            b"gunicorn: worker [app:app]\0\0\0\0\0\0",
            &["gunicorn: worker [app:app]"],
        );
        check(b"no end", &["no end"]);
        check(b"", &[]);
        check(b"\0\0\0", &[]);
        check(b"a\xff\0b", &["a\u{fffd}", "b"]);
    }

    #[test]
    fn environments_and_what_is_left_of_them() {
        let whole = parse_environment(b"A=1\0B=x=y\0EMPTY=\0");
        assert!(whole.complete);
        assert_eq!(whole.value("A"), Some("1"));
        assert_eq!(whole.value("B"), Some("x=y"));
        assert_eq!(whole.value("EMPTY"), None);
        assert_eq!(whole.value("C"), None);
        assert!(parse_environment(b"").complete);
        assert!(!parse_environment(&[0; 64]).complete);
        let damaged = parse_environment(b"er [shop]\0\0\0LANG=C\0");
        assert!(!damaged.complete);
        assert_eq!(damaged.value("LANG"), Some("C"));
        assert!(parse_environment(b"K=\xff\xfe\0").value("K").is_some());
    }

    #[test]
    fn times_are_added_without_overflow() {
        assert_eq!(
            unix_nanoseconds(1_700_000_000, 150, 100),
            1_700_000_001_500_000_000
        );
        assert_eq!(unix_nanoseconds(u64::MAX, u64::MAX, 1), u64::MAX);
        assert_eq!(boot_time("cpu 1\nbtime 1700000000\n"), Some(1_700_000_000));
    }

    #[test]
    fn users_are_looked_up_by_number() {
        let passwd = "root:x:0:0::/root:/bin/sh\nbroken\n:x:7:7::/:\nweb:x:33:33::/:/bin/false\n";
        assert_eq!(user_name(passwd, 33).as_deref(), Some("web"));
        assert_eq!(user_name(passwd, 7), None);
    }

    #[test]
    fn reads_a_child_process_and_notices_its_end() {
        let mut child = Command::new("sleep")
            .arg("600")
            .env_clear()
            .env("OTEL_SERVICE_NAME", "shop")
            .current_dir("/")
            .stdout(Stdio::null())
            .spawn()
            .expect("sleep starts");
        // `spawn` returns after `exec` has succeeded.
        let info = ProcessInfo::read(child.id()).expect("readable");
        assert_eq!(info.pid, child.id());
        assert_eq!(info.parent, std::process::id());
        assert_eq!(info.command_line, ["sleep", "600"]);
        assert_eq!(info.environment.value("OTEL_SERVICE_NAME"), Some("shop"));
        assert!(info.environment.complete);
        assert_eq!(info.working_directory.as_deref(), Some(Path::new("/")));
        assert_eq!(info.comm, "sleep");
        assert!(info.is_alive());
        let now = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .expect("after 1970")
            .as_nanos();
        assert!(now.abs_diff(u128::from(info.created)) < 5_000_000_000);
        child.kill().expect("killed");
        child.wait().expect("ended");
        assert!(!info.is_alive());
        assert!(matches!(
            ProcessInfo::read(child.id()),
            Err(ProcessError::NoSuchProcess { .. } | ProcessError::Exited { .. })
        ));
    }

    #[test]
    fn names_what_is_wrong_with_an_id() {
        assert!(matches!(
            ProcessInfo::read(0),
            Err(ProcessError::NoSuchProcess { pid: 0 })
        ));
        assert!(matches!(
            ProcessInfo::read(u32::MAX),
            Err(ProcessError::NoSuchProcess { .. })
        ));
        // 2 is kthreadd wherever the initial pid namespace is visible.
        if std::fs::read_to_string("/proc/2/comm").is_ok_and(|comm| comm == "kthreadd\n") {
            assert!(matches!(
                ProcessInfo::read(2),
                Err(ProcessError::KernelThread { pid: 2 })
            ));
        }
        let (id, thread) = std::sync::mpsc::channel();
        let (end, ended) = std::sync::mpsc::channel::<()>();
        let handle = std::thread::spawn(move || {
            let link = std::fs::read_link("/proc/thread-self").expect("linked");
            let tid = link
                .file_name()
                .and_then(|name| name.to_str())
                .and_then(|name| name.parse::<u32>().ok());
            id.send(tid.expect("a number")).expect("received");
            assert!(ended.recv().is_err(), "the sender is only dropped");
        });
        let tid = thread.recv().expect("sent");
        assert!(matches!(
            ProcessInfo::read(tid),
            Err(ProcessError::Thread { process, .. }) if process == std::process::id()
        ));
        drop(end);
        handle.join().expect("ends");
    }

    #[test]
    fn a_fifo_in_place_of_a_file_does_not_block() {
        let directory = tempfile::tempdir().expect("made");
        let fifo = directory.path().join("passwd");
        assert!(
            Command::new("mkfifo")
                .arg(&fifo)
                .status()
                .expect("runs")
                .success()
        );
        assert_eq!(read_target_file(std::process::id(), &fifo), None);
        let plain = directory.path().join("plain");
        std::fs::write(&plain, "text").expect("written");
        assert_eq!(
            read_target_file(std::process::id(), &plain).as_deref(),
            Some("text")
        );
    }
}
