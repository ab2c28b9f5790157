//! The PostgreSQL server behind a measured service: Debian's, with its data in
//! a folder that goes when it does, on the core that is not the service's.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};
use tempfile::TempDir;

use crate::group::{Group, run, wait_for};
use crate::service::free_port;

/// Where Debian keeps the server of each major version.
const BINARIES: &str = "/usr/lib/postgresql";
/// The user that Debian's package makes; the server does not run as root.
const USER: &str = "postgres";
/// How long the server may take to accept connections.
const READY: Duration = Duration::from_secs(60);

/// A server with the database `postgres` of the user `me`.
pub(super) struct Postgres {
    /// Where it listens.
    pub(super) address: SocketAddr,
    // Ends before its folder goes.
    _group: Group,
    _folder: TempDir,
}

impl Postgres {
    pub(super) fn start(core: usize) -> Result<Self> {
        let binaries = binaries()?;
        let folder = tempfile::tempdir()?;
        run(Command::new("chown").arg(USER).arg(folder.path()))?;
        let data = folder.path().join("data");
        run(unprivileged(&binaries.join("initdb"), core)
            .args(["--no-sync", "--locale=C.UTF-8", "-A", "trust", "-U", "me"])
            .arg("-D")
            .arg(&data)
            .stdout(Stdio::null()))?;
        let address = free_port()?;
        let mut command = unprivileged(&binaries.join("postgres"), core);
        command.arg("-D").arg(&data);
        for setting in [
            format!("port={}", address.port()),
            "listen_addresses=127.0.0.1".to_owned(),
            format!("unix_socket_directories={}", folder.path().display()),
            "fsync=off".to_owned(),
        ] {
            command.args(["-c", &setting]);
        }
        command.stdout(Stdio::null()).stderr(Stdio::null());
        let mut group = Group::spawn("PostgreSQL", &mut command)?;
        wait_for("PostgreSQL", READY, || {
            group.expect_running()?;
            let ready = Command::new(binaries.join("pg_isready"))
                .args(["-q", "-h", "127.0.0.1", "-p", &address.port().to_string()])
                .status()?;
            Ok(ready.success().then_some(()))
        })?;
        Ok(Self {
            address,
            _group: group,
            _folder: folder,
        })
    }
}

/// The newest PostgreSQL there is.
fn binaries() -> Result<PathBuf> {
    let mut found: Vec<PathBuf> = fs::read_dir(BINARIES)
        .with_context(|| format!("no PostgreSQL in {BINARIES}"))?
        .flatten()
        .map(|entry| entry.path().join("bin"))
        .filter(|path| path.join("postgres").exists())
        .collect();
    found.sort();
    let newest = found.pop();
    newest.with_context(|| format!("no PostgreSQL in {BINARIES}"))
}

/// The command, on a core, as a user without rights.
fn unprivileged(program: &Path, core: usize) -> Command {
    let mut command = Command::new("taskset");
    command.args(["-c", &core.to_string(), "setpriv"]);
    command.args(["--reuid", USER, "--regid", USER, "--clear-groups"]);
    command.arg(program).current_dir("/").stdin(Stdio::null());
    command
}
