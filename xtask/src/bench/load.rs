//! A closed loop of keep-alive connections: each sends its next request when
//! it has the answer to the last one.

use std::net::SocketAddr;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::thread::{CpuSet, sched_setaffinity};

use crate::http::Client;
use crate::interrupt;
use crate::service::Running;

/// Enough to keep one core of Python busy, as a proxy in front of it would.
const CONNECTIONS: usize = 16;

/// What the load met.
pub(super) struct Load {
    /// How long each answer took, shortest first.
    pub(super) latencies: Vec<Duration>,
    /// From the first request to the last answer.
    pub(super) took: Duration,
    /// What the service's processes used of their core meanwhile.
    pub(super) cpu: Duration,
}

/// Sends requests for this long; an answer other than 200 fails.
pub(super) fn run(service: &Running, path: &str, length: Duration, core: usize) -> Result<Load> {
    let server = service.address;
    let before = service.cpu_time()?;
    let start = Instant::now();
    let end = start + length;
    let results: Vec<Result<Vec<Duration>>> = thread::scope(|scope| {
        let threads: Vec<_> = (0..CONNECTIONS)
            .map(|_| {
                scope.spawn(move || {
                    pin_to(core)?;
                    requests(server, path, end)
                })
            })
            .collect();
        threads
            .into_iter()
            .map(|thread| match thread.join() {
                Ok(result) => result,
                Err(_) => bail!("a connection of the load broke off"),
            })
            .collect()
    });
    let took = start.elapsed();
    let mut latencies = Vec::new();
    for result in results {
        latencies.extend(result?);
    }
    latencies.sort_unstable();
    Ok(Load {
        latencies,
        took,
        cpu: service.cpu_time()?.saturating_sub(before),
    })
}

/// Keeps the calling thread on one core.
pub(super) fn pin_to(core: usize) -> Result<()> {
    let mut cores = CpuSet::new();
    cores.set(core);
    sched_setaffinity(None, &cores).with_context(|| format!("cannot run on core {core}"))
}

fn requests(server: SocketAddr, path: &str, end: Instant) -> Result<Vec<Duration>> {
    let mut client = Client::new(server);
    let mut latencies = Vec::new();
    let mut now = Instant::now();
    while now < end {
        interrupt::check()?;
        let status = client.send("GET", path)?;
        if status != 200 {
            bail!("{path} answered {status}");
        }
        let after = Instant::now();
        latencies.push(after - now);
        now = after;
    }
    Ok(latencies)
}
