//! Database servers for the tests: Debian's, as an unprivileged user, on free
//! ports, with their data in a folder that goes when they do.

use std::ffi::OsStr;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use tempfile::TempDir;

use crate::app::free_port;
use crate::process::{Group, PATIENCE, wait_for};
use crate::tls::Files;

/// Where Debian keeps the server of each major version.
const BINARIES: &str = "/usr/lib/postgresql";
/// The user that Debian's package makes; no server runs as root.
const USER: &str = "postgres";

/// A running database server; it is killed when dropped.
pub struct Database {
    /// Where it listens.
    pub address: SocketAddr,
    /// Its processes.
    pub group: Group,
    folder: TempDir,
}

impl Database {
    /// PostgreSQL, with a database `shop` of the user `me`, in which there are
    /// `items`.
    pub fn postgres() -> Result<Self> {
        Self::start_postgres(false)
    }

    /// The same, for clients that want TLS.
    pub fn postgres_with_tls() -> Result<Self> {
        Self::start_postgres(true)
    }

    fn start_postgres(tls: bool) -> Result<Self> {
        let binaries = binaries()?;
        let folder = open_folder()?;
        let data = folder.path().join("data");
        run(unprivileged(binaries.join("initdb"))
            .args([
                "--no-sync",
                "--locale=C.UTF-8",
                "-A",
                "trust",
                "-U",
                "me",
                "-D",
            ])
            .arg(&data))?;
        let mut settings = Vec::new();
        if tls {
            let Files { certificate, key } = Files::write(folder.path())?;
            run(Command::new("chown").arg(USER).args([&certificate, &key]))?;
            run(Command::new("chmod").arg("600").arg(&key))?;
            settings = vec![
                "ssl=on".to_owned(),
                format!("ssl_cert_file={}", certificate.display()),
                format!("ssl_key_file={}", key.display()),
            ];
        }
        let address = free_port(Ipv4Addr::LOCALHOST.into())?;
        let mut command = unprivileged(binaries.join("postgres"));
        command.arg("-D").arg(&data);
        command.args(["-p", &address.port().to_string()]);
        for setting in [
            "listen_addresses=127.0.0.1",
            "fsync=off",
            "max_connections=200",
            &format!("unix_socket_directories={}", folder.path().display()),
        ] {
            command.args(["-c", setting]);
        }
        for setting in &settings {
            command.args(["-c", setting]);
        }
        let database = Self {
            address,
            group: Group::spawn("PostgreSQL", &mut command)?,
            folder,
        };
        let psql = |database: &str, statement: &str| {
            let mut command = Command::new(binaries.join("psql"));
            command.args(["-h", "127.0.0.1", "-p", &address.port().to_string()]);
            command.args(["-U", "me", "-d", database, "-qc", statement]);
            command
        };
        wait_for("PostgreSQL", PATIENCE, || {
            let answer = psql("postgres", "create database shop").output()?;
            let text = String::from_utf8_lossy(&answer.stderr);
            Ok((answer.status.success() || text.contains("already exists")).then_some(()))
        })
        .with_context(|| database.group.log())?;
        run(&mut psql(
            "shop",
            "create table items (id int, name text); insert into items values (1, 'a'), (2, 'b')",
        ))?;
        Ok(database)
    }

    /// Redis.
    pub fn redis() -> Result<Self> {
        let folder = open_folder()?;
        let address = free_port(Ipv4Addr::LOCALHOST.into())?;
        let mut command = unprivileged("redis-server");
        command.args(["--port", &address.port().to_string()]);
        command.args(["--bind", "127.0.0.1", "--save", "", "--dir"]);
        command.arg(folder.path());
        let database = Self {
            address,
            group: Group::spawn("Redis", &mut command)?,
            folder,
        };
        wait_for("Redis", PATIENCE, || Ok(TcpStream::connect(address).ok()))
            .with_context(|| database.group.log())?;
        Ok(database)
    }

    /// The folder of its Unix socket.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }
}

/// The newest PostgreSQL there is.
fn binaries() -> Result<PathBuf> {
    let mut found: Vec<PathBuf> = std::fs::read_dir(BINARIES)
        .map(|entries| {
            entries
                .flatten()
                .map(|entry| entry.path().join("bin"))
                .collect()
        })
        .unwrap_or_default();
    found.retain(|path| path.join("postgres").exists());
    found.sort();
    let newest = found.pop();
    newest.with_context(|| format!("no PostgreSQL in {BINARIES}: run `cargo xtask test`"))
}

/// A folder that the servers' user may write to.
fn open_folder() -> Result<TempDir> {
    let folder = tempfile::tempdir()?;
    run(Command::new("chown").arg(USER).arg(folder.path()))?;
    Ok(folder)
}

/// The command, as a user without rights.
fn unprivileged(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--reuid", USER, "--regid", USER, "--clear-groups"]);
    command.arg(program).current_dir("/");
    command
}

fn run(command: &mut Command) -> Result<()> {
    let output = match command.output() {
        Ok(output) => output,
        Err(error) => bail!("cannot run {command:?}: {error}"),
    };
    ensure!(
        output.status.success(),
        "{command:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}
