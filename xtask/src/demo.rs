//! `cargo xtask demo`: a shop and its inventory under load, traced.
//!
//! Nothing is needed beforehand; what is missing is installed. The waterfalls
//! appear on standard output, everything else on standard error.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use crate::http::Client;
use crate::python::Venv;
use crate::service::{Agent, AgentOptions, Running, Server, Service, ensure_privileges};
use crate::toolchain::agent;
use crate::{interrupt, say};

#[derive(clap::Args)]
pub(crate) struct Options {
    /// Ends after this many seconds instead of at Ctrl-C
    #[arg(long)]
    seconds: Option<u64>,
    /// Runs the services and the load alone
    #[arg(long, hide = true)]
    without_agent: bool,
    /// Further arguments of the agent
    #[arg(last = true)]
    agent: Vec<OsString>,
}

/// The shop's visitors: what they ask for, in turn, and what they get.
const VISITS: &[(&str, &str, u16)] = &[
    ("GET", "/", 200),
    ("GET", "/items/7", 200),
    ("GET", "/compare?ids=3,14,15", 200),
    ("POST", "/orders/7", 200),
    ("GET", "/items/42", 200),
    ("GET", "/report", 200),
    ("GET", "/items/9999", 404),
    ("GET", "/compare?ids=1,2,3,4,5", 200),
    ("POST", "/orders/11", 200),
    ("GET", "/audit", 500),
];
/// A pace that can be read along.
const PAUSE: Duration = Duration::from_millis(400);

pub(crate) fn run(options: &Options) -> Result<()> {
    let agent = if options.without_agent {
        None
    } else {
        let agent = agent()?;
        ensure_privileges()?;
        Some(agent)
    };
    let venv = Venv::ensure("apps", "requirements.txt")?;
    interrupt::watch()?;

    let directory = tempfile::tempdir()?;
    let mut inventory = Service {
        module: "inventory",
        server: Server::GunicornThreads(4),
        probe: "/items/1",
        env: vec![("APP_DATABASE", directory.path().join("stock.db").into())],
        prefix: Vec::new(),
        venv: &venv,
        logs: directory.path(),
    }
    .start()?;
    let mut shop = Service {
        module: "shop",
        server: Server::Uvicorn,
        probe: "/items/1",
        env: vec![(
            "APP_INVENTORY",
            format!("http://{}", inventory.address).into(),
        )],
        prefix: Vec::new(),
        venv: &venv,
        logs: directory.path(),
    }
    .start()?;
    say(format!(
        "the shop (FastAPI) serves http://{}, the inventory (Flask, SQLite) http://{}",
        shop.address, inventory.address
    ));

    let pids = [shop.pids(), inventory.pids()].concat();
    let mut agent = agent
        .map(|binary| {
            Agent::start(AgentOptions {
                binary: &binary,
                pids: &pids,
                arguments: options.agent.clone(),
                prefix: Vec::new(),
                show: true,
            })
        })
        .transpose()?;

    let visited = visit_until_done(options.seconds, &mut shop, &mut inventory, &mut agent);
    let ended = agent.map(Agent::end).transpose();
    shop.end()?;
    inventory.end()?;
    let visits = visited?;
    ended?;
    say(format!(
        "{visits} requests to the shop, all answered as expected"
    ));
    Ok(())
}

fn visit_until_done(
    seconds: Option<u64>,
    shop: &mut Running,
    inventory: &mut Running,
    agent: &mut Option<Agent>,
) -> Result<u64> {
    let deadline = seconds.map(|seconds| Instant::now() + Duration::from_secs(seconds));
    let done = AtomicBool::new(false);
    let address = shop.address;
    thread::scope(|scope| {
        let visitor = scope.spawn(|| visit(address, &done));
        let mut watch = || -> Result<()> {
            while !visitor.is_finished()
                && !interrupt::requested()
                && deadline.is_none_or(|deadline| Instant::now() < deadline)
            {
                shop.expect_running()?;
                inventory.expect_running()?;
                agent.as_mut().map_or(Ok(()), Agent::expect_running)?;
                thread::sleep(Duration::from_millis(50));
            }
            Ok(())
        };
        let watched = watch();
        done.store(true, Ordering::Relaxed);
        let Ok(visits) = visitor.join() else {
            bail!("the visitor broke off");
        };
        watched.and(visits)
    })
}

fn visit(shop: SocketAddr, done: &AtomicBool) -> Result<u64> {
    let mut client = Client::new(shop);
    let mut visits = 0;
    for (method, path, expected) in VISITS.iter().cycle() {
        if done.load(Ordering::Relaxed) {
            break;
        }
        let status = client.send(method, path)?;
        if status != *expected {
            bail!("{method} {path} answered {status} instead of {expected}");
        }
        visits += 1;
        thread::sleep(PAUSE);
    }
    Ok(visits)
}
