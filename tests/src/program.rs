//! The agent, and programs for it to trace, as processes whose output can be
//! waited for. For the tests of the command line.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How long anything may take before a test fails.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Prints a line and waits until its input ends; for any Python.
pub const IDLE: &str =
    "import sys\nsys.stdout.write('up\\n')\nsys.stdout.flush()\nsys.stdin.read()\n";

/// Prints its port and answers every GET.
pub const SERVER: &str = r#"
import http.server
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.send_header("content-length", "2")
        self.end_headers()
        self.wfile.write(b"ok")
    def log_message(self, *arguments):
        pass
server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
print(server.server_port, flush=True)
server.serve_forever()
"#;

// === the agent ===

/// Where the agent is.
pub fn agent_path() -> PathBuf {
    if let Some(path) = std::env::var_os("OTEL_EBPF_AGENT") {
        return path.into();
    }
    let test = std::env::current_exe().expect("this test's path");
    let profile = test.parent().and_then(Path::parent).expect("deps");
    let path = profile.join("otel-ebpf");
    assert!(path.exists(), "build the agent first: {}", path.display());
    path
}

/// The agent with these arguments and no settings of the environment.
pub fn agent(arguments: &[&str]) -> Command {
    let mut command = Command::new(agent_path());
    command.args(arguments);
    without_settings(&mut command);
    command
}

/// Settings of whoever runs the tests are not the agent's.
pub fn without_settings(command: &mut Command) {
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("OTEL_") {
            command.env_remove(name);
        }
    }
}

/// Lines that a thread reads as they come.
#[derive(Clone, Default)]
pub struct Lines(Arc<(Mutex<Gathered>, Condvar)>);

/// The lines so far, and whether these are all.
type Gathered = (Vec<String>, bool);

impl Lines {
    fn read(from: impl Read + Send + 'static) -> Self {
        let lines = Self::default();
        let into = lines.clone();
        std::thread::spawn(move || {
            let (state, changed) = &*into.0;
            for line in BufReader::new(from).split(b'\n').map_while(Result::ok) {
                let line = String::from_utf8_lossy(&line).into_owned();
                state
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .0
                    .push(line);
                changed.notify_all();
            }
            state.lock().unwrap_or_else(PoisonError::into_inner).1 = true;
            changed.notify_all();
        });
        lines
    }

    /// Waits for the end and returns everything.
    pub fn all(&self) -> String {
        self.wait(|(_, ended)| ended.then_some(()));
        self.so_far().join("\n")
    }

    /// The lines so far.
    pub fn so_far(&self) -> Vec<String> {
        let (state, _) = &*self.0;
        state
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .0
            .clone()
    }

    /// Waits for a line that contains `part`.
    pub fn line_with(&self, part: &str) -> String {
        self.wait(|(lines, ended)| {
            let found = lines.iter().find(|line| line.contains(part)).cloned();
            assert!(
                found.is_some() || !ended,
                "ended without {part:?}: {lines:#?}"
            );
            found
        })
    }

    fn wait<T>(&self, mut until: impl FnMut(&Gathered) -> Option<T>) -> T {
        let deadline = Instant::now() + PATIENCE;
        let (state, changed) = &*self.0;
        let mut guard = state.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if let Some(found) = until(&guard) {
                return found;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "too late; so far: {:#?}", guard.0);
            guard = changed
                .wait_timeout(guard, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }
}

/// A running program whose output is read; killed when dropped.
pub struct Program {
    /// The process.
    pub child: Child,
    /// What it wrote to standard output.
    pub out: Lines,
    /// What it wrote to standard error.
    pub err: Lines,
}

/// A program that ended.
#[derive(Debug)]
pub struct Ended {
    /// Its exit code; none if a signal ended it.
    pub code: Option<i32>,
    /// What it wrote to standard output.
    pub out: String,
    /// What it wrote to standard error.
    pub err: String,
}

impl Program {
    /// Starts it without input.
    pub fn start(command: &mut Command) -> Self {
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("{command:?}: {error}"));
        Self {
            out: Lines::read(child.stdout.take().expect("piped")),
            err: Lines::read(child.stderr.take().expect("piped")),
            child,
        }
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Asks it to end.
    pub fn terminate(&self) {
        let sent = Command::new("kill").arg(self.pid().to_string()).status();
        assert!(sent.expect("kill").success());
    }

    /// Waits for its end.
    pub fn ended(mut self) -> Ended {
        let mut code = None;
        wait_until("the program's end", || {
            let status = self.child.try_wait().expect("waits");
            code = status.and_then(|status| status.code());
            status.is_some()
        });
        Ended {
            code,
            out: self.out.all(),
            err: self.err.all(),
        }
    }

    /// Memory that it has in use, KiB.
    pub fn rss_kib(&self) -> u64 {
        let status =
            std::fs::read_to_string(format!("/proc/{}/status", self.pid())).expect("it runs");
        status
            .lines()
            .find_map(|line| line.strip_prefix("VmRSS:"))
            .and_then(|rest| rest.split_whitespace().next()?.parse().ok())
            .expect("VmRSS")
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        _ = self.child.kill();
        _ = self.child.wait();
    }
}

/// Waits for a condition, and panics where it does not come.
pub fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "too late: {what}");
        std::thread::park_timeout(Duration::from_millis(5));
    }
}

/// Runs the agent to its end.
pub fn run(arguments: &[&str]) -> Ended {
    Program::start(&mut agent(arguments)).ended()
}

/// The agent must end with this code and say all of these.
#[track_caller]
pub fn refuses(ended: &Ended, code: i32, parts: &[&str]) {
    assert_eq!(ended.code, Some(code), "{ended:#?}");
    for part in parts {
        assert!(ended.err.contains(part), "no {part:?} in {ended:#?}");
    }
    assert!(!ended.err.contains("panicked"), "{ended:#?}");
}

/// The value of a counter in the summary; 0 where it is not named.
pub fn counter(err: &str, name: &str) -> u64 {
    let summary = err
        .lines()
        .rfind(|line| line.contains("summary lost="))
        .unwrap_or_else(|| panic!("no summary in {err}"));
    summary
        .split_whitespace()
        .find_map(|word| word.strip_prefix(name)?.strip_prefix('='))
        .map_or(0, |value| value.parse().expect("a number"))
}

// === what is traced ===

/// The Python of a pyenv version such as `3.12`, or `None` if it is missing
/// and that is allowed.
#[expect(clippy::print_stderr, reason = "a test that is skipped must say so")]
pub fn pyenv(series: &str) -> Option<PathBuf> {
    let versions = PathBuf::from(std::env::var_os("HOME").expect("HOME")).join(".pyenv/versions");
    let found = std::fs::read_dir(&versions)
        .into_iter()
        .flatten()
        .flatten()
        .find(|entry| {
            let name = entry.file_name().to_string_lossy().into_owned();
            name.strip_prefix(series)
                .is_some_and(|rest| rest.starts_with('.'))
        });
    if found.is_none() {
        let allowed =
            std::env::var_os("OTEL_EBPF_ALLOW_MISSING_PYTHONS").is_some_and(|it| it == "1");
        assert!(allowed, "missing: Python {series} in {versions:?}");
        eprintln!("skipped, missing: Python {series}");
    }
    found.map(|entry| entry.path().join("bin/python"))
}

/// A Python that is traced.
pub fn python() -> PathBuf {
    match std::env::var_os("OTEL_EBPF_PYTHON") {
        Some(path) => path.into(),
        None => pyenv("3.12").expect("Python 3.12"),
    }
}

/// A Python that waits until it is dropped.
pub fn idle(python: &Path, settings: &[(&str, &str)]) -> Program {
    let mut command = Command::new(python);
    command.args(["-c", IDLE]);
    without_settings(&mut command);
    command.envs(settings.iter().copied());
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("Python");
    let program = Program {
        out: Lines::read(child.stdout.take().expect("piped")),
        err: Lines::read(child.stderr.take().expect("piped")),
        child,
    };
    program.out.line_with("up");
    program
}

/// Lets an idle Python end.
pub fn let_go(program: &mut Program) {
    drop(program.child.stdin.take());
}

/// A service and its port.
pub fn server() -> (Program, u16) {
    let mut command = Command::new(python());
    command.args(["-c", SERVER]);
    without_settings(&mut command);
    let program = Program::start(&mut command);
    let port = program.out.line_with("").parse().expect("a port");
    (program, port)
}

/// One request; how long the answer took.
pub fn request(port: u16) -> Duration {
    let began = Instant::now();
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).expect("connects");
    stream.set_read_timeout(Some(PATIENCE)).expect("set");
    stream
        .write_all(b"GET /items HTTP/1.1\r\nhost: test\r\n\r\n")
        .expect("sent");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("answered");
    assert!(answer.ends_with("\r\n\r\nok"), "{answer:?}");
    began.elapsed()
}
