//! Whose child is it: real servers under load, 64 requests in flight, each
//! with calls that carry its id. Every call must be under its own request.
//!
//! Needs root, BPF and the Python environments of `cargo xtask test`.

#![expect(clippy::print_stderr, reason = "the counts are what the test is for")]

use std::collections::BTreeMap;

use otel_ebpf_tests::agent::{Agent, AgentOptions, Counters};
use otel_ebpf_tests::app::{App, Service};
use otel_ebpf_tests::load::{CALLS, Load, Manner, Placement, placements};
use otel_ebpf_tests::process::{PATIENCE, wait_for};
use otel_ebpf_tests::trace::{Kind, Span, matching};

/// Requests of each case, unless `OTEL_EBPF_REQUESTS` says otherwise.
const REQUESTS: usize = 400;
/// A ring in which nothing is lost while two cores do the work of three.
const RING: [&str; 2] = ["--ring-size", "64"];

fn requests() -> usize {
    let wanted = std::env::var("OTEL_EBPF_REQUESTS").ok();
    wanted
        .and_then(|wanted| wanted.parse().ok())
        .unwrap_or(REQUESTS)
}

/// A load on one service.
struct Case {
    target: &'static str,
    manner: Manner,
}

const fn case(target: &'static str) -> Case {
    Case {
        target,
        manner: Manner::Whole,
    }
}

const fn sent(target: &'static str, manner: Manner) -> Case {
    Case { target, manner }
}

/// Every way out of a request's task, with the clients of the event loop.
const TASKS: &[Case] = &[
    case("/downstream?client=httpx"),
    case("/downstream?client=aiohttp"),
    case("/gather?client=httpx"),
    case("/gather?client=aiohttp"),
    case("/tasks?client=aiohttp"),
    case("/background?client=httpx"),
    case("/background?client=aiohttp"),
    case("/to_thread?client=requests"),
    case("/threadpool?client=requests"),
    sent("/receive?client=aiohttp", Manner::Pieces),
];

fn downstream() -> App {
    Service::uvloop("downstream")
        .arguments(&["--no-access-log"])
        .start()
        .expect("the service that is called")
}

/// What was found of a service's loads.
struct Findings {
    placements: BTreeMap<String, Placement>,
    spans: Vec<Span>,
    counters: Counters,
}

/// Puts a service under its loads, and judges the spans.
fn check(name: &str, app: &App, cases: &[Case]) -> Findings {
    let agent = AgentOptions::new(&[app.server_pid()])
        .arguments(&RING)
        .start()
        .expect("the agent");
    check_under(name, agent, app, cases, requests())
}

fn check_under(name: &str, agent: Agent, app: &App, cases: &[Case], requests: usize) -> Findings {
    let mut expected = 0;
    for (index, Case { target, manner }) in cases.iter().enumerate() {
        let load = Load::new(&app.address, target, &format!("case{index}"), requests);
        let sent = load.manner(*manner).run();
        assert!(
            sent.failures.is_empty(),
            "{name} {target}: {:#?}\n{}",
            sent.failures,
            app.group.log()
        );
        expected += sent.answered;
    }
    // What runs after the responses is not over with them.
    let wanted = expected * CALLS;
    let all = wait_for("every call", PATIENCE, || {
        let spans = agent.spans()?;
        let placements = placements(&spans);
        let seen: usize = placements.values().map(Placement::calls).sum();
        Ok((seen >= wanted).then_some(()))
    });
    let ended = agent.stop().expect("the agent ends");
    let placements = placements(&ended.spans);
    eprintln!(
        "{name:<44} {:>8} {:>8} {:>10} {:>9} {:>10}",
        "requests", "placed", "unparented", "misplaced", "incomplete"
    );
    for (index, Case { target, .. }) in cases.iter().enumerate() {
        let placement = placements.get(&format!("case{index}"));
        let placement = placement.cloned().unwrap_or_default();
        eprintln!("  {target:<42} {placement}");
    }
    if let Err(error) = all {
        eprintln!("{name}: {error:#}: {:#?}", ended.counters);
    }
    Findings {
        placements,
        spans: ended.spans,
        counters: ended.counters,
    }
}

/// The same, and every call must be in its place.
fn check_exact(name: &str, app: &App, cases: &[Case]) {
    let findings = check(name, app, cases);
    findings.counters.assert_nothing_lost();
    for index in 0..cases.len() {
        findings.placements[&format!("case{index}")].assert_exact(requests());
    }
}

/// A service, and the one that it calls.
fn serve(base: Service, arguments: &[&str]) -> (App, App) {
    let downstream = downstream();
    let app = base
        .downstream(&downstream)
        .arguments(arguments)
        .start()
        .expect("the service");
    (downstream, app)
}

#[test]
fn asyncio_with_h11() {
    let (_downstream, app) = serve(Service::uvicorn("fastapi_app"), &[]);
    check_exact("uvicorn asyncio h11", &app, TASKS);
}

#[test]
fn uvloop_with_httptools() {
    let (_downstream, app) = serve(Service::uvloop("fastapi_app"), &[]);
    check_exact("uvicorn uvloop httptools", &app, TASKS);
}

/// Greenlets copy slices of the stack: lineage must do without return probes.
#[test]
fn greenlets_that_drive_the_loop() {
    for (name, base) in [
        (
            "uvicorn asyncio, greenlets",
            Service::uvicorn("fastapi_app"),
        ),
        ("uvicorn uvloop, greenlets", Service::uvloop("fastapi_app")),
    ] {
        let (_downstream, app) = serve(base.env("APP_GREENLETS", "1"), &[]);
        let cases = [
            case("/greenlets?client=aiohttp"),
            case("/greenlets?client=requests"),
            case("/gather?client=httpx"),
        ];
        check_exact(name, &app, &cases);
    }
}

/// Calls of no request are under none, whatever else is going on.
fn check_unowned(spans: &[Span]) {
    for id in ["background-task", "background-thread"] {
        let calls = matching(spans, Kind::Client, &format!("id={id}&"));
        let owned = calls.iter().filter(|call| call.parent.is_some()).count();
        eprintln!("  {id:<42} {:>8} calls, {owned} with a parent", calls.len());
        assert!(calls.len() > 10, "{id}: {}", calls.len());
        assert_eq!(owned, 0, "{id}");
    }
}

#[test]
fn calls_of_no_request_stay_without_a_parent() {
    for (name, base) in [
        (
            "uvicorn asyncio, unowned calls",
            Service::uvicorn("fastapi_app"),
        ),
        (
            "uvicorn uvloop, unowned calls",
            Service::uvloop("fastapi_app"),
        ),
    ] {
        let (_downstream, app) = serve(base.env("APP_UNOWNED", "1"), &[]);
        let findings = check(
            name,
            &app,
            &[case("/gather?client=aiohttp"), case("/threadpool")],
        );
        for placement in findings.placements.values() {
            placement.assert_none_misplaced();
        }
        check_unowned(&findings.spans);
    }
}

#[test]
fn a_context_of_its_own_for_every_request() {
    for (name, base) in [
        (
            "uvicorn asyncio, reset contexts",
            Service::uvicorn("fastapi_app"),
        ),
        (
            "uvicorn uvloop, reset contexts",
            Service::uvloop("fastapi_app"),
        ),
    ] {
        let (_downstream, app) = serve(base, &["--reset-contextvars"]);
        check_exact(name, &app, &[case("/gather?client=aiohttp")]);
    }
}

#[test]
fn pipelined_requests_are_never_mixed_up() {
    for (name, base) in [
        (
            "uvicorn asyncio, pipelined",
            Service::uvicorn("fastapi_app"),
        ),
        ("uvicorn uvloop, pipelined", Service::uvloop("fastapi_app")),
    ] {
        let (_downstream, app) = serve(base, &[]);
        let pipelined = sent("/downstream?client=aiohttp", Manner::Pipelined);
        check(name, &app, &[pipelined]).placements["case0"].assert_none_misplaced();
    }
}

#[test]
fn connections_that_are_closed_and_reopened() {
    for (name, base) in [
        ("uvicorn asyncio, closed", Service::uvicorn("fastapi_app")),
        ("uvicorn uvloop, closed", Service::uvloop("fastapi_app")),
    ] {
        let (_downstream, app) = serve(base, &[]);
        check_exact(name, &app, &[sent("/gather?client=aiohttp", Manner::Close)]);
    }
}

#[test]
fn threads_and_processes_of_gunicorn() {
    let (_downstream, app) = serve(Service::gunicorn("flask_app"), &["--threads", "16"]);
    check_exact(
        "gunicorn gthread",
        &app,
        &[
            case("/downstream?client=requests"),
            case("/downstream?client=urllib3"),
            sent("/downstream?client=requests", Manner::Close),
        ],
    );
    drop(app);
    let (_downstream, app) = serve(Service::gunicorn("flask_app"), &["--worker-class", "sync"]);
    let sync = sent("/downstream?client=requests", Manner::Close);
    check_exact("gunicorn sync", &app, &[sync]);
}

#[test]
fn clients_that_leave_and_calls_that_are_given_up() {
    for (name, base) in [
        ("uvicorn asyncio, chaos", Service::uvicorn("fastapi_app")),
        ("uvicorn uvloop, chaos", Service::uvloop("fastapi_app")),
    ] {
        let (_downstream, app) = serve(base, &[]);
        let cases = [
            sent("/impatient?client=aiohttp", Manner::Impatient),
            sent("/gather?client=httpx", Manner::Impatient),
        ];
        let findings = check(name, &app, &cases);
        for (case, placement) in &findings.placements {
            placement.assert_none_misplaced();
            assert!(placement.placed > 0, "{case}: {placement:?}");
        }
    }
}
