//! Live: the agent comes and goes under load, is killed, and falls behind.
//! The application must not notice, and no call may get a wrong parent.
//!
//! Needs root, BPF and the Python environments of `cargo xtask test`.

#![expect(clippy::print_stderr, reason = "the counts are what the test is for")]

use std::sync::atomic::Ordering;
use std::{fs, thread};

use anyhow::{Context, Result, ensure};
use otel_ebpf_tests::agent::{Agent, AgentOptions};
use otel_ebpf_tests::app::{App, Service};
use otel_ebpf_tests::load::{Load, Progress, Sent, placements};
use otel_ebpf_tests::process::{PATIENCE, wait_for};
use otel_ebpf_tests::trace::Kind;
use rustix::process::Signal;

/// More requests than any test gets through: the load ends when it is told.
const ENDLESS: usize = usize::MAX / 2;

fn servers() -> [(&'static str, &'static str, Service); 3] {
    [
        (
            "gthread",
            "/downstream?client=requests",
            Service::gunicorn("flask_app"),
        ),
        (
            "asyncio",
            "/gather?client=httpx",
            Service::uvicorn("fastapi_app"),
        ),
        (
            "uvloop",
            "/gather?client=aiohttp",
            Service::uvloop("fastapi_app"),
        ),
    ]
}

fn downstream() -> Result<App> {
    Service::uvloop("downstream")
        .arguments(&["--no-access-log"])
        .start()
}

/// Does something while the application is under load; what became of the
/// load.
fn under_load<T>(app: &App, target: &str, work: impl FnOnce() -> Result<T>) -> Result<(T, Sent)> {
    let progress = Progress::default();
    let load = Load::new(&app.address, target, "stress", ENDLESS);
    thread::scope(|scope| {
        let sent = scope.spawn(|| load.run_with(&progress));
        let done = work();
        progress.stop.store(true, Ordering::Relaxed);
        let sent = sent
            .join()
            .map_err(|_| anyhow::anyhow!("the load panicked"))?;
        Ok((done?, sent))
    })
}

fn assert_unharmed(name: &str, app: &mut App, sent: &Sent) -> Result<()> {
    eprintln!("{name}: {} requests answered", sent.answered);
    ensure!(sent.failures.is_empty(), "{name}: {:#?}", sent.failures);
    ensure!(sent.answered > 0, "{name}: no load");
    app.group.expect_running().context(name.to_owned())
}

/// Descriptors that the server holds when nobody is connected.
fn idle_descriptors(app: &App) -> Result<usize> {
    let folder = format!("/proc/{}/fd", app.server_pid());
    let mut before = 0;
    wait_for("steady descriptors", PATIENCE, || {
        let now = fs::read_dir(&folder)?.count();
        let steady = now == before;
        before = now;
        Ok(steady.then_some(now))
    })
}

/// A hundred attaches and detaches and two more, under load. The kernel takes
/// a tenth of a second for each probe that is detached, whoever detaches it, so
/// that all else is done meanwhile: each agent traces all three servers, and
/// the next one starts while one ends.
#[test]
fn a_hundred_attaches_go_unnoticed() -> Result<()> {
    /// Rows of agents, one after the other in each.
    const LANES: usize = 2;
    /// Agents of a row; each attaches to the three servers.
    const AGENTS: usize = 17;
    let downstream = downstream()?;
    let mut started = Vec::new();
    for (name, target, service) in servers() {
        let app = service.downstream(&downstream).start()?;
        let clean = idle_descriptors(&app)?;
        started.push((name, target, app, clean));
    }
    let pids: Vec<u32> = started
        .iter()
        .map(|(.., app, _)| app.server_pid())
        .collect();
    let agents = || -> Result<usize> {
        let mut spans = 0;
        for number in 0..AGENTS {
            let agent = Agent::attach(&pids).with_context(|| format!("agent {number}"))?;
            let ended = agent.stop_with(Signal::INT, 2 * PATIENCE)?;
            for placement in placements(&ended.spans).values() {
                ensure!(placement.misplaced == 0, "{placement:#?}");
            }
            spans += ended.spans.len();
        }
        Ok(spans)
    };
    let progress = Progress::default();
    let (loads, spans) = thread::scope(|scope| {
        let progress = &progress;
        let loads: Vec<_> = started
            .iter()
            .map(|(name, target, app, _)| {
                let load = Load::new(&app.address, target, name, ENDLESS);
                scope.spawn(move || load.run_with(progress))
            })
            .collect();
        let lanes = [(); LANES].map(|()| scope.spawn(agents));
        let spans: Vec<_> = lanes
            .into_iter()
            .map(thread::ScopedJoinHandle::join)
            .collect();
        progress.stop.store(true, Ordering::Relaxed);
        let loads: Vec<_> = loads
            .into_iter()
            .map(thread::ScopedJoinHandle::join)
            .collect();
        (loads, spans)
    });
    for lane in spans {
        let spans = lane.map_err(|_| anyhow::anyhow!("a lane panicked"))??;
        eprintln!("{spans} spans");
        ensure!(spans > 0, "no agent saw anything");
    }
    for ((name, _, mut app, clean), sent) in started.into_iter().zip(loads) {
        let sent = sent.map_err(|_| anyhow::anyhow!("the load panicked"))?;
        assert_unharmed(name, &mut app, &sent)?;
        wait_for("the descriptors as before", PATIENCE, || {
            Ok((idle_descriptors(&app)? <= clean + POOL).then_some(()))
        })?;
    }
    Ok(())
}

/// Connections that the applications' clients keep open.
const POOL: usize = 128;

#[test]
fn an_agent_that_is_killed_is_not_missed() -> Result<()> {
    const AGENTS: usize = 4;
    let downstream = downstream()?;
    for (name, target, service) in servers() {
        let mut app = service.downstream(&downstream).start()?;
        let agents = || -> Result<()> {
            for _ in 0..AGENTS {
                let mut agent = Agent::attach(&[app.server_pid()])?;
                agent.wait_for_spans(1)?;
                agent.group.signal(Signal::KILL)?;
                agent.group.wait(PATIENCE)?;
            }
            Ok(())
        };
        let ((), sent) = under_load(&app, target, agents)?;
        assert_unharmed(name, &mut app, &sent)?;
    }
    Ok(())
}

/// A stopped agent lets the ring run full: what is dropped is counted, and
/// what is left is not put together wrongly.
#[test]
fn what_is_lost_is_counted_and_misplaces_nothing() -> Result<()> {
    let downstream = downstream()?;
    for (name, target, service) in servers() {
        let mut app = service.downstream(&downstream).start()?;
        let agent = AgentOptions::new(&[app.server_pid()])
            .arguments(&["--ring-size", "1"])
            .start()?;
        let behind = || -> Result<Agent> {
            let mut agent = agent;
            agent.wait_for_spans(1)?;
            agent.group.signal(Signal::STOP)?;
            // One ring is about 2,000 requests' records.
            let load = Load::new(&app.address, target, "flood", 4000);
            let flood = load.run();
            ensure!(flood.failures.is_empty(), "{:#?}", flood.failures);
            let spans = agent.spans()?.len();
            agent.group.signal(Signal::CONT)?;
            agent.wait_for_spans(spans + 1000)?;
            Ok(agent)
        };
        let (agent, sent) = under_load(&app, target, behind)?;
        assert_unharmed(name, &mut app, &sent)?;
        let ended = agent.stop()?;
        let lost = ended.counters.get("kernel.lost.data_ring_full");
        ensure!(lost > 0, "{name}: nothing was lost: {:#?}", ended.counters);
        ensure!(ended.counters.get("lost") >= lost, "{:#?}", ended.counters);
        let served = ended.spans.iter().filter(|span| span.kind == Kind::Server);
        eprintln!(
            "{name}: {lost} records lost, {} requests seen",
            served.count()
        );
        for (tag, placement) in placements(&ended.spans) {
            eprintln!("{name}: {tag:<8} {placement}");
            placement.assert_none_misplaced();
        }
    }
    Ok(())
}
