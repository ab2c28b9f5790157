//! The applications under `tests/apps`, served by real servers.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::path::PathBuf;
use std::process::Command;
use std::sync::Mutex;

use anyhow::{Context, Result};
use tempfile::TempDir;

use crate::client::{Address, Connection};
use crate::process::{Group, PATIENCE, locked, path_from, wait_for};
use crate::tls;

/// A service that is to be started: [`Service::gunicorn`],
/// [`Service::uvicorn`], [`Service::hypercorn`] or [`Service::command`], then
/// what differs from the default, then [`Service::start`].
///
/// A module may name its application, as `module:application`; by default it
/// is `app`.
#[derive(Clone)]
pub struct Service {
    module: String,
    server: Server,
    bind: Bind,
    workers: usize,
    tls: bool,
    arguments: Vec<OsString>,
    environment: Vec<(String, OsString)>,
    python: Option<PathBuf>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Server {
    Gunicorn,
    Uvicorn,
    Hypercorn,
    /// Words that follow the interpreter, with `{host}`, `{port}`, `{key}` and
    /// `{certificate}` in them.
    Command,
}

/// What a service listens on; ports are free ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bind {
    /// 127.0.0.1.
    V4,
    /// ::1.
    V6,
    /// A Unix socket.
    Unix,
}

/// A service that has answered; it ends when dropped.
pub struct App {
    /// Where it listens.
    pub address: Address,
    /// Its processes.
    pub group: Group,
    folder: TempDir,
}

impl Service {
    /// gunicorn with one gthread worker of four threads.
    pub fn gunicorn(module: &str) -> Self {
        Self::new(module, Server::Gunicorn)
    }

    /// uvicorn with asyncio and h11, one process.
    pub fn uvicorn(module: &str) -> Self {
        Self::new(module, Server::Uvicorn)
    }

    /// uvicorn with uvloop and httptools, one process.
    pub fn uvloop(module: &str) -> Self {
        Self::new(module, Server::Uvicorn).arguments(&["--loop", "uvloop", "--http", "httptools"])
    }

    /// hypercorn with asyncio, one worker.
    pub fn hypercorn(module: &str) -> Self {
        Self::new(module, Server::Hypercorn)
    }

    /// A server of the application's own: words that follow the interpreter,
    /// where `{host}` and `{port}` stand for what to listen on, `{key}` and
    /// `{certificate}` for files with its identity.
    pub fn command(name: &str, words: &[&str]) -> Self {
        Self::new(name, Server::Command).arguments(words)
    }

    fn new(module: &str, server: Server) -> Self {
        Self {
            module: module.to_owned(),
            server,
            bind: Bind::V4,
            workers: 1,
            tls: false,
            arguments: Vec::new(),
            environment: Vec::new(),
            python: None,
        }
    }

    /// What to listen on.
    pub fn bind(mut self, bind: Bind) -> Self {
        self.bind = bind;
        self
    }

    /// Served over TLS, on 127.0.0.1.
    pub fn tls(mut self) -> Self {
        self.tls = true;
        self
    }

    /// How many workers.
    pub fn workers(mut self, workers: usize) -> Self {
        self.workers = workers;
        self
    }

    /// Further arguments of the server; the last of a kind wins.
    pub fn arguments(mut self, arguments: &[&str]) -> Self {
        self.arguments.extend(arguments.iter().map(OsString::from));
        self
    }

    /// A variable of its environment.
    pub fn env(mut self, name: &str, value: impl Into<OsString>) -> Self {
        self.environment.push((name.to_owned(), value.into()));
        self
    }

    /// The service that the application calls where a request names none.
    pub fn downstream(self, app: &App) -> Self {
        let url = app.url("/");
        self.env("APP_DOWNSTREAM", url)
    }

    /// Another interpreter than that of `OTEL_EBPF_PYTHON`.
    pub fn python(mut self, python: impl Into<PathBuf>) -> Self {
        self.python = Some(python.into());
        self
    }

    /// Starts it and waits for its first answer.
    pub fn start(self) -> Result<App> {
        self.start_under(&[])
    }

    /// The same, by a command that starts the server's command.
    pub fn start_under(self, prefix: &[OsString]) -> Result<App> {
        let folder = tempfile::tempdir()?;
        let address = match self.bind {
            Bind::V4 if self.tls => Address::Tls(free_port(Ipv4Addr::LOCALHOST.into())?),
            Bind::V4 => Address::Tcp(free_port(Ipv4Addr::LOCALHOST.into())?),
            Bind::V6 => Address::Tcp(free_port(Ipv6Addr::LOCALHOST.into())?),
            Bind::Unix => Address::Unix(folder.path().join("app.sock")),
        };
        let python = match &self.python {
            Some(python) => python.clone(),
            None => path_from("OTEL_EBPF_PYTHON", "../target/python/apps/bin/python")?,
        };
        let mut words = prefix.to_vec();
        words.push(python.into_os_string());
        let files = tls::Files::write(folder.path())?;
        words.extend(self.server_words(&address, &files));
        let mut words = words.into_iter();
        let mut command = Command::new(words.next().context("no command")?);
        command
            .args(words)
            .current_dir(path_from("OTEL_EBPF_APPS", "apps")?)
            .env("PYTHONDONTWRITEBYTECODE", "1")
            .env("PYTHONUNBUFFERED", "1")
            // Whom it trusts as a client, whichever library asks.
            .env("SSL_CERT_FILE", &files.certificate)
            .env("REQUESTS_CA_BUNDLE", &files.certificate)
            .envs(self.environment);
        // For those that are given no paths, as they may have another root.
        command.env("APP_AUTHORITY", fs::read_to_string(&files.certificate)?);
        if self.tls {
            let identity = [&files.key, &files.certificate].map(fs::read_to_string);
            let [key, certificate] = identity;
            command.env("APP_IDENTITY", key? + &certificate?);
        }
        // The test's own settings are none of the application's.
        for name in ["OTEL_SERVICE_NAME", "OTEL_RESOURCE_ATTRIBUTES"] {
            if !command.get_envs().any(|(set, _)| set == name) {
                command.env_remove(name);
            }
        }
        let mut app = App {
            address,
            group: Group::spawn(&self.module, &mut command)?,
            folder,
        };
        app.wait_until_it_answers()?;
        if self.workers > 1 {
            // Each of them: what comes to one that still starts is another test.
            wait_for("its workers", PATIENCE, || {
                let workers = app.workers();
                let ready = workers.iter().filter(|pid| is_waiting(**pid)).count();
                Ok((ready >= self.workers).then_some(()))
            })?;
        }
        Ok(app)
    }

    fn server_words(&self, address: &Address, files: &tls::Files) -> Vec<OsString> {
        let application = match self.module.contains(':') {
            true => self.module.clone(),
            false => format!("{}:app", self.module),
        };
        let mut words: Vec<OsString> = vec!["-m".into()];
        match self.server {
            Server::Gunicorn => {
                words.extend(["gunicorn".into(), application.into(), "--bind".into()]);
                words.push(match address {
                    Address::Tcp(address) | Address::Tls(address) => address.to_string().into(),
                    Address::Unix(path) => format!("unix:{}", path.display()).into(),
                });
                words.extend(["--worker-class", "gthread", "--threads", "4"].map(OsString::from));
                words.extend(["--keep-alive", "75", "--no-control-socket"].map(OsString::from));
            }
            Server::Hypercorn => {
                words.extend(["hypercorn".into(), application.into(), "--bind".into()]);
                words.push(match address {
                    Address::Tcp(address) | Address::Tls(address) => address.to_string().into(),
                    Address::Unix(path) => format!("unix:{}", path.display()).into(),
                });
                words.extend(["--keep-alive", "75"].map(OsString::from));
            }
            Server::Command => return self.command_words(address, files),
            Server::Uvicorn => {
                words.extend(["uvicorn".into(), application.into()]);
                match address {
                    Address::Tcp(address) | Address::Tls(address) => {
                        words.extend(["--host".into(), address.ip().to_string().into()]);
                        words.extend(["--port".into(), address.port().to_string().into()]);
                    }
                    Address::Unix(path) => words.extend(["--uds".into(), path.into()]),
                }
                words.extend(
                    [
                        "--loop",
                        "asyncio",
                        "--http",
                        "h11",
                        "--timeout-keep-alive",
                        "75",
                    ]
                    .map(OsString::from),
                );
            }
        }
        if self.workers > 1 {
            words.extend(["--workers".into(), self.workers.to_string().into()]);
        }
        if self.tls {
            let [certificate, key] = match self.server {
                Server::Uvicorn => ["--ssl-certfile", "--ssl-keyfile"],
                _ => ["--certfile", "--keyfile"],
            };
            words.extend([certificate.into(), files.certificate.clone().into()]);
            words.extend([key.into(), files.key.clone().into()]);
        }
        words.extend(self.arguments.iter().cloned());
        words
    }

    fn command_words(&self, address: &Address, files: &tls::Files) -> Vec<OsString> {
        let (Address::Tcp(address) | Address::Tls(address)) = address else {
            return self.arguments.clone();
        };
        let filled = self.arguments.iter().map(|word| {
            word.to_string_lossy()
                .replace("{host}", &address.ip().to_string())
                .replace("{port}", &address.port().to_string())
                .replace("{key}", &files.key.to_string_lossy())
                .replace("{certificate}", &files.certificate.to_string_lossy())
        });
        filled.map(OsString::from).collect()
    }
}

impl App {
    /// Its processes: the leader, then its descendants.
    pub fn pids(&self) -> Vec<u32> {
        self.group.pids()
    }

    /// The processes that share its listening socket, without the leader.
    pub fn workers(&self) -> Vec<u32> {
        let mut pids = self.pids();
        pids.remove(0);
        pids.retain(|&pid| !command_line(pid).contains("resource_tracker"));
        pids
    }

    /// The process that answers, of a service with one worker.
    pub fn server_pid(&self) -> u32 {
        self.workers().first().copied().unwrap_or(self.group.pid())
    }

    /// A URL on it; only over TCP.
    pub fn url(&self, path: &str) -> String {
        match &self.address {
            Address::Tcp(address) => format!("http://{address}{path}"),
            Address::Tls(address) => format!("https://{address}{path}"),
            Address::Unix(socket) => format!("unix:{}{path}", socket.display()),
        }
    }

    /// Its port, or 0.
    pub fn port(&self) -> u16 {
        match &self.address {
            Address::Tcp(address) | Address::Tls(address) => address.port(),
            Address::Unix(_) => 0,
        }
    }

    /// The file of its certificate, if it is served over TLS.
    pub fn certificate(&self) -> PathBuf {
        self.folder.path().join("certificate.pem")
    }

    /// A new connection to it.
    pub fn connect(&self) -> Result<Connection> {
        Connection::open(&self.address)
    }

    fn wait_until_it_answers(&mut self) -> Result<()> {
        let Self { address, group, .. } = self;
        let answered = wait_for("the first answer", PATIENCE, || {
            group.expect_running()?;
            let answer = Connection::open(address).and_then(|mut connection| connection.get("/"));
            Ok(answer.ok().map(|_| ()))
        });
        answered.with_context(|| group.log())
    }
}

/// Ports that were given away: who got one may not listen on it yet, or may
/// count on that nobody does.
static GIVEN: Mutex<BTreeSet<u16>> = Mutex::new(BTreeSet::new());

/// An address that nobody listens on at the moment, and that no other test of
/// this process is given.
pub fn free_port(ip: IpAddr) -> Result<SocketAddr> {
    // Kept until another was found, so that they are not found again.
    let mut taken = Vec::new();
    loop {
        let listener = TcpListener::bind((ip, 0)).context("no free port")?;
        let address = listener.local_addr()?;
        if locked(&GIVEN).insert(address.port()) {
            return Ok(address);
        }
        taken.push(listener);
    }
}

/// Whether a process's first thread waits for connections or for whatever else
/// may come, as a server does that has started.
fn is_waiting(pid: u32) -> bool {
    const CALLS: &[i64] = &[
        libc::SYS_epoll_pwait,
        libc::SYS_ppoll,
        libc::SYS_pselect6,
        #[cfg(target_arch = "x86_64")]
        libc::SYS_epoll_wait,
        #[cfg(target_arch = "x86_64")]
        libc::SYS_poll,
        #[cfg(target_arch = "x86_64")]
        libc::SYS_select,
    ];
    let text = fs::read_to_string(format!("/proc/{pid}/syscall")).unwrap_or_default();
    let number = text.split(' ').next().and_then(|word| word.parse().ok());
    number.is_some_and(|number| CALLS.contains(&number))
}

fn command_line(pid: u32) -> String {
    let bytes = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    String::from_utf8_lossy(&bytes).replace('\0', " ")
}
