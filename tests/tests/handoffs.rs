//! Work that is handed to other threads and processes: every call must be
//! under the request that handed it over, or under none. Rows of the
//! attribution suite, see `tests/tests/attribution.rs`; and processes that end
//! before their work does.
//!
//! Needs root, BPF and the Python environments of `cargo xtask test`.

use std::collections::BTreeSet;
use std::io::Read as _;
use std::net::{Ipv4Addr, TcpListener};

use anyhow::{Result, ensure};

use otel_ebpf_tests::agent::Agent;
use otel_ebpf_tests::app::Service;
use otel_ebpf_tests::attribution::{Expected, Interpreter, Model, run};
use otel_ebpf_tests::load::{Manner, placements};
use otel_ebpf_tests::process::{PATIENCE, Signal, path_from, send, wait_for};
use otel_ebpf_tests::python::Python;
use otel_ebpf_tests::trace::brief;

/// Ways that have so many requests that it comes to 2,000 over all models, and
/// how many the others have.
const MANY: [(&str, usize); 6] = [
    ("/handoff/process", 667),
    ("/handoff/shell", 667),
    ("/handoff/map", 667),
    ("/handoff/run_in_executor", 780),
    ("/handoff/threadsafe", 780),
    ("/handoff/call_soon_threadsafe", 1000),
];
const EACH: usize = 190;
/// Requests of a load for one of many interpreters.
const FEW: usize = 40;
/// Requests that each start another Python.
const STARTS: usize = 16;

/// Ways out of a task of an event loop; the first of them start processes.
const TASKS: [&str; 11] = [
    "/handoff/process",
    "/handoff/shell",
    "/handoff/run_in_executor",
    "/handoff/submit",
    "/handoff/map",
    "/handoff/own_executor",
    "/handoff/nested",
    "/handoff/loop_in_executor",
    "/handoff/threadsafe",
    "/handoff/call_soon_threadsafe",
    "/handoff/thread",
];

/// Ways out of a thread; likewise.
const THREADS: [&str; 10] = [
    "/handoff/process",
    "/handoff/shell",
    "/handoff/submit",
    "/handoff/map",
    "/handoff/own_executor",
    "/handoff/nested",
    "/handoff/loop_in_executor",
    "/handoff/other_loop",
    "/handoff/thread",
    "/handoff/timer",
];

fn threads_of_gunicorn() -> Service {
    Service::gunicorn("flask_app").arguments(&["--threads", "16"])
}

/// The interpreters that have no packages: every version, stripped ones and
/// one without the GIL.
fn interpreters() -> Vec<(Service, Interpreter)> {
    let own = (8..=13).filter_map(|minor| Python::pyenv(&format!("3.{minor}")));
    let named = own.map(|python| (python, "")).chain(
        [
            (Python::system(), "Debian"),
            (Python::debian("bullseye", "3.9"), "Debian"),
            (Python::debian("trixie", "3.13"), "Debian"),
            (Python::debian("forky", "3.14"), "Debian"),
            (Python::free_threaded("3.13"), ""),
            (Python::free_threaded("3.14"), ""),
        ]
        .into_iter()
        .filter_map(|(python, kind)| Some((python?, kind))),
    );
    named
        .map(|(python, kind)| {
            let source = path_from("OTEL_EBPF_APPS", "apps").expect("the applications");
            let source = source.join("handoffs.py");
            let script = python.script(&source).expect("made known to it");
            let words = script.display().to_string();
            let service = Service::command("handoffs", &[&words, "{host}", "{port}"]);
            let interpreter = Interpreter::of(&python, kind).expect("its version");
            (service, interpreter)
        })
        .collect()
}

mod attribution {
    use super::*;

    #[test]
    fn handoffs() {
        let services = [
            (
                "uvicorn asyncio",
                Service::uvicorn("fastapi_app"),
                &TASKS[..],
            ),
            ("uvicorn uvloop", Service::uvloop("fastapi_app"), &TASKS[..]),
            ("gunicorn gthread", threads_of_gunicorn(), &THREADS[..]),
        ];
        let models = services.into_iter().map(|(name, service, ways)| {
            let model = Model::new(&format!("{name}, handed over"), service);
            let model = model.load("/handoff/program").times(STARTS);
            ways.iter().fold(model, |model, &way| {
                let many = MANY.iter().find(|(known, _)| *known == way);
                model
                    .load(way)
                    .times(many.map_or(EACH, |&(_, count)| count))
            })
        });
        run("handoffs", models.collect());
    }

    /// Work of no request that goes through threads that requests started is
    /// under none, and so are the calls of a pool that cannot be followed.
    #[test]
    fn handoffs_of_nobody() {
        let services = [
            ("uvicorn asyncio", Service::uvicorn("fastapi_app")),
            ("gunicorn gthread", threads_of_gunicorn()),
        ];
        let refused = Expected::Refused("spans.no_parent.foreign_start");
        let models = services.into_iter().map(|(name, service)| {
            let name = format!("{name}, unowned work");
            Model::new(&name, service.env("APP_UNOWNED", "1"))
                .load("/handoff/submit")
                .load_as("/handoff/library", Manner::Whole, refused)
                .load("/handoff/thread")
                .unowned(&["background-work"])
        });
        run("handoffs_of_nobody", models.collect());
    }

    #[test]
    fn handoffs_in_every_interpreter() {
        let models = interpreters().into_iter().map(|(service, interpreter)| {
            Model::new("asyncio without packages", service)
                .on(&interpreter)
                .loads(&[
                    "/handoff/run_in_executor",
                    "/handoff/own_executor",
                    "/handoff/nested",
                    "/handoff/loop_in_executor",
                    "/handoff/threadsafe",
                    "/handoff/thread",
                ])
                .each(FEW)
        });
        run("handoffs_in_every_interpreter", models.collect());
    }

    /// Workers are forked on behalf of nobody; what they hand over is their
    /// requests'.
    #[test]
    fn handoffs_of_workers() {
        let services = [
            ("gunicorn", threads_of_gunicorn().workers(2)),
            ("uvicorn", Service::uvicorn("fastapi_app").workers(2)),
        ];
        let models = services.into_iter().map(|(name, service)| {
            Model::new(&format!("{name}, two workers"), service)
                .every_process()
                .loads(&["/downstream", "/handoff/submit", "/handoff/thread"])
        });
        run("handoffs_of_workers", models.collect());
    }
}

/// Workers that are killed while their requests wait for calls: those leave no
/// span, or one that tells of an error, and nothing of them is found by the
/// workers that come after them.
#[test]
fn workers_that_die_leave_nothing_behind() -> Result<()> {
    const VICTIMS: usize = 4;
    const LATER: usize = 40;
    let silent = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let nowhere = format!("http://{}/", silent.local_addr()?);
    let downstream = Service::uvloop("downstream").start()?;
    for (name, service) in [
        ("gunicorn", Service::gunicorn("flask_app")),
        ("uvicorn", Service::uvicorn("fastapi_app")),
    ] {
        let mut app = service.workers(2).downstream(&downstream).start()?;
        let before: BTreeSet<u32> = app.workers().into_iter().collect();
        let agent = Agent::attach(&app.pids())?;
        let mut waiting = Vec::new();
        let mut calls = Vec::new();
        for number in 0..VICTIMS {
            let mut connection = app.connect()?;
            let target = format!("/downstream?n=1&id=victim-{number}&url={nowhere}");
            let head = connection.head("GET", &target, &[], 0);
            connection.send(head)?;
            waiting.push(connection);
            // The call is under way.
            let (mut call, _) = silent.accept()?;
            ensure!(call.read(&mut [0; 512])? > 0, "{name}: no call came");
            calls.push(call);
        }
        for &worker in &before {
            send(worker, Signal::KILL)?;
        }
        wait_for("two new workers", PATIENCE, || {
            app.group.expect_running()?;
            let workers: BTreeSet<u32> = app.workers().into_iter().collect();
            Ok((workers.len() == 2 && workers.is_disjoint(&before)).then_some(()))
        })?;
        let ask = |id: &str| -> Result<()> {
            let target = format!("/downstream?n=3&id={id}");
            let answer = app.connect()?.get(&target)?;
            ensure!(answer.status == 200, "{name}: {}", answer.text());
            Ok(())
        };
        // Until a worker's contexts are followed, its calls have no parent.
        let mut asked = 0;
        wait_for("a call under its request", PATIENCE, || {
            ask(&format!("early-{asked}"))?;
            asked += 1;
            let placements = placements(&agent.spans()?);
            let placed = placements.get("early").map_or(0, |early| early.placed);
            Ok((placed > 0).then_some(()))
        })?;
        for number in 0..LATER {
            ask(&format!("later-{number}"))?;
        }
        let ended = agent.stop()?;
        ended.counters.assert_nothing_lost();
        let victims = ended.spans.iter().filter(|span| {
            let victim = |key| span.text(key).contains("id=victim");
            victim("url.full") || victim("url.query")
        });
        for span in victims {
            ensure!(span.error, "{name}: {}", brief(std::slice::from_ref(span)));
        }
        let later = &placements(&ended.spans)["later"];
        ensure!(later.misplaced == 0 && later.orphaned == 0, "{later:#?}");
        ensure!(later.requests == LATER, "{name}: {later:#?}");
        // The other worker may not be followed yet.
        ensure!(later.placed > 0, "{name}: {later:#?}");
    }
    Ok(())
}
