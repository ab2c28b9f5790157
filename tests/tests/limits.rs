//! Whose child is it at the limits: ten thousand connections, a hundred
//! thousand tasks, tables that are much too small, contexts that live for a
//! moment (models of the attribution suite, see `attribution.rs`); requests
//! that never end, process ids that are used again, and an attach in the
//! middle of a loop's turn.
//!
//! Needs root, BPF and the Python environments of `cargo xtask test`.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread;

use anyhow::{Context, Result, ensure};
use otel_ebpf_tests::agent::Agent;
use otel_ebpf_tests::app::{App, Service};
use otel_ebpf_tests::attribution::{Expected, Interpreter, Model, run};
use otel_ebpf_tests::load::{Load, Manner, allow_crowds, placements};
use otel_ebpf_tests::process::{PATIENCE, Signal, send, wait_for};
use otel_ebpf_tests::trace::{Kind, Span, brief};

/// Entries of tables that are much too small for 64 requests at a time.
const SMALL: [&str; 2] = ["--table-entries", "64"];

/// uvicorn on either event loop.
fn event_loops(module: &str) -> [(&'static str, Service); 2] {
    [
        ("uvicorn asyncio", Service::uvicorn(module)),
        ("uvicorn uvloop", Service::uvloop(module)),
    ]
}

/// Ten thousand connections are open; those that send a request change.
fn crowded((name, service): (&str, Service)) -> Vec<Model> {
    allow_crowds().expect("descriptors");
    let model = Model::new(&format!("{name}, ten thousand connections"), service);
    vec![model.load_as("/gather?client=aiohttp", Manner::Crowd, Expected::Exact)]
}

mod attribution {
    use super::*;

    /// One after the other, for want of descriptors.
    #[test]
    fn ten_thousand_connections_of_asyncio() {
        let [asyncio, _] = event_loops("fastapi_app");
        run("ten_thousand_connections_of_asyncio", crowded(asyncio));
    }

    #[test]
    fn ten_thousand_connections_of_uvloop() {
        let [_, uvloop] = event_loops("fastapi_app");
        run("ten_thousand_connections_of_uvloop", crowded(uvloop));
    }

    /// 64 requests of 2,000 tasks each at a time, each task with a context of
    /// its own: about as many as the table of contexts holds.
    #[test]
    fn a_hundred_thousand_tasks() {
        let models = event_loops("flows_app").map(|(name, service)| {
            Model::new(&format!("{name}, a hundred thousand tasks"), service)
                .load_as(
                    "/swarm?client=aiohttp&tasks=2000",
                    Manner::Whole,
                    Expected::NoneMisplaced,
                )
                .times(128)
                .load("/gather?client=aiohttp")
                .evicts(&[])
                .nothing_need_be_placed()
        });
        run("a_hundred_thousand_tasks", models.into());
    }

    /// What is evicted has no parent, and no other one.
    #[test]
    fn small_tables() {
        let none = Expected::NoneMisplaced;
        let models = event_loops("fastapi_app").map(|(name, service)| {
            Model::new(&format!("{name}, small tables"), service)
                .load_as("/gather?client=aiohttp", Manner::Whole, none)
                .load_as("/tasks?client=aiohttp", Manner::Close, none)
                .load_as("/to_thread", Manner::Whole, none)
                .load_as("/background?client=aiohttp", Manner::Whole, none)
                .load_as("/handoff/submit", Manner::Whole, none)
                .evicts(&["kernel.evicted.contexts", "kernel.evicted.work"])
        });
        let mut models = Vec::from(models);
        let threads = Service::gunicorn("flask_app").arguments(&["--threads", "16"]);
        models.push(
            Model::new("gunicorn gthread, small tables", threads)
                .load_as("/downstream", Manner::Whole, none)
                .load_as("/handoff/submit", Manner::Whole, none)
                .evicts(&[]),
        );
        let plain = Service::command("plain", &[&plain(), "threads", "{host}", "{port}"]);
        // A thread for each connection, and so more than there is room for.
        models.push(
            Model::new("http.server, more threads than room", plain)
                .loses("kernel.lost.thread_table_full")
                .evicts(&[])
                .load_as("/downstream", Manner::Whole, none)
                .load_as("/downstream", Manner::Close, none),
        );
        let models = models
            .into_iter()
            .map(|model| model.agent(&SMALL).nothing_need_be_placed());
        run("small_tables", models.collect());
    }

    /// The same with sessions of TLS: those of clients and of the pools of the
    /// application's own are more than there is room for.
    #[test]
    fn small_tables_with_tls() {
        let none = Expected::NoneMisplaced;
        let models = event_loops("fastapi_app").map(|(name, service)| {
            Model::new(&format!("{name}, TLS, small tables"), service.tls())
                .load_as("/gather?client=aiohttp", Manner::Close, none)
                .load_as("/to_thread", Manner::Whole, none)
        });
        let mut models = Vec::from(models);
        let threads = Service::gunicorn("flask_app").arguments(&["--threads", "16"]);
        models.push(
            Model::new("gunicorn gthread, TLS, small tables", threads.tls())
                .load_as("/downstream", Manner::Close, none)
                .load_as("/downstream", Manner::Whole, none),
        );
        let models = models.into_iter().map(|model| {
            model
                .calls_tls()
                .agent(&SMALL)
                .loses("kernel.lost.tls_unjoined")
                .evicts(&["kernel.evicted.tls_sessions"])
                .nothing_need_be_placed()
        });
        run("small_tables_with_tls", models.collect());
    }

    /// The free list of contexts hands an address out again at once, also to
    /// tasks that no request began.
    #[test]
    fn contexts_recycled_at_once() {
        let models = event_loops("flows_app").map(|(name, service)| {
            let name = format!("{name}, recycled contexts");
            Model::new(&name, service.env("APP_UNOWNED", "1"))
                .load("/recycled?client=aiohttp")
                .unowned(&["background-task", "background-thread"])
        });
        run("contexts_recycled_at_once", models.into());
    }
}

/// The script of the service that needs no packages.
fn plain() -> String {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("apps/plain.py");
    script.display().to_string()
}

fn downstream() -> Result<App> {
    Service::uvloop("downstream").start()
}

/// Whether the span is of a request whose id begins so, or a call of one.
fn is_of(span: &Span, tag: &str) -> bool {
    let mark = format!("id={tag}-");
    ["url.query", "url.full"]
        .iter()
        .any(|key| span.text(key).contains(&mark))
}

/// Requests that hang make their calls, others go on beside them, and when
/// their workers are killed each has a span with an error or none.
#[test]
fn requests_that_never_end() -> Result<()> {
    const HANGING: usize = 64;
    const OTHERS: usize = 300;
    let downstream = downstream()?;
    for (name, service) in event_loops("flows_app") {
        let mut app = service.workers(2).downstream(&downstream).start()?;
        let workers: BTreeSet<u32> = app.workers().into_iter().collect();
        let agent = Agent::attach(&app.pids())?;
        let mut hanging = Vec::new();
        for number in 0..HANGING {
            let mut connection = app.connect()?;
            let target = format!("/forever?client=aiohttp&n=2&id=hang-{number}");
            let head = connection.head("GET", &target, &[], 0);
            connection.send(head)?;
            hanging.push(connection);
        }
        let mut follower = agent.follow();
        let mut calls = 0;
        wait_for("the calls of what hangs", PATIENCE, || {
            let spans = follower.spans()?;
            let of_hanging = |span: &&Span| span.kind == Kind::Client && is_of(span, "hang");
            calls += spans.iter().filter(of_hanging).count();
            Ok((calls >= 2 * HANGING).then_some(()))
        })?;
        let others = Load::new(&app.address, "/gather?client=aiohttp", "others", OTHERS).run();
        ensure!(others.failures.is_empty(), "{name}: {:#?}", others.failures);
        for &worker in &workers {
            send(worker, Signal::KILL)?;
        }
        wait_for("new workers", PATIENCE, || {
            app.group.expect_running()?;
            let now: BTreeSet<u32> = app.workers().into_iter().collect();
            Ok((now.len() == 2 && now.is_disjoint(&workers)).then_some(()))
        })?;
        let ended = agent.stop()?;
        ended.counters.assert_nothing_lost();
        let found = placements(&ended.spans);
        found["others"].expect_exact(&others).context(name)?;
        let hung = &found["hang"];
        ensure!(hung.misplaced == 0, "{name}: {hung:#?}");
        ensure!(hung.calls() == 2 * HANGING, "{name}: {hung:#?}");
        ensure!(hung.unparented == 0, "{name}: {hung:#?}");
        let told = |span: &&Span| span.kind == Kind::Server && is_of(span, "hang");
        for span in ended.spans.iter().filter(told) {
            ensure!(span.error, "{name}: {}", brief(std::slice::from_ref(span)));
        }
    }
    Ok(())
}

/// A loop that reads outside contexts, off the first thread, is in the middle
/// of a turn when the agent comes: it reads a request, and then makes a call
/// of another, which is older. That call has no parent.
#[test]
fn the_turn_of_a_loop_that_is_older_than_the_attach() -> Result<()> {
    let downstream = downstream()?;
    let words = ["twisted_thread.py", "{host}", "{port}"];
    let service = Service::command("twisted_thread", &words).downstream(&downstream);
    let app = Interpreter::servers().start(service, &[])?;
    let mut held = 0;
    let mut wait_until_held = || {
        held += 1;
        wait_for("a turn that is held", PATIENCE, || {
            let lines = app.group.lines();
            let said = lines.iter().filter(|line| *line == "held").count();
            Ok((said == held).then_some(()))
        })
    };
    let go_on = || send(app.server_pid(), Signal::USR1);
    // Known to the loop, so that none is accepted later.
    let ids = [
        "/hold?n=0&id=first-0",
        "/hold?n=1&id=old-0",
        "/?n=1&id=new-0",
    ];
    let mut connections = Vec::new();
    for id in ids {
        let mut connection = app.connect()?;
        ensure!(connection.get("/?id=none")?.status == 200);
        connections.push((connection, id));
    }
    // While the first holds the loop the others arrive, so that it finds both
    // in its next turn, one after the other.
    for (connection, id) in &mut connections {
        let head = connection.head("GET", id, &[], 0);
        connection.send(head)?;
        if id.contains("first") {
            wait_until_held()?;
        }
    }
    go_on()?;
    wait_until_held()?;
    let agent = Agent::attach(&app.pids())?;
    go_on()?;
    for (connection, id) in &mut connections {
        let answer = connection.response(false)?;
        ensure!(answer.status == 200, "{id}");
    }
    let ended = agent.stop()?;
    ended.counters.assert_nothing_lost();
    let found = placements(&ended.spans);
    ensure!(found["new"].requests == 1, "{found:#?}");
    let old = &found["old"];
    ensure!(old.unparented == 1 && old.calls() == 1, "{old:#?}");
    ensure!(found["new"].misplaced == 0, "{found:#?}");
    Ok(())
}

/// Does something while the next process or thread of the machine gets this
/// id, if it is free.
fn with_next_pid<T>(pid: u32, work: impl FnOnce() -> Result<T>) -> Result<T> {
    const LAST_PID: &str = "/proc/sys/kernel/ns_last_pid";
    let before = (pid - 1).to_string();
    let done = AtomicBool::new(false);
    // The thread that says so has an id by then, or it would take this one.
    let (said, first) = mpsc::channel();
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut said = Some(said);
            // Others start processes, too: it is said again and again.
            while !done.load(Ordering::Relaxed) {
                let written = fs::write(LAST_PID, &before);
                if let Some(said) = said.take() {
                    let _unheard = said.send(written);
                }
                thread::yield_now();
            }
        });
        let result = first
            .recv()
            .context("nothing was written")
            .and_then(|written| written.context(LAST_PID))
            .and_then(|()| work());
        done.store(true, Ordering::Relaxed);
        result
    })
}

/// A process that gets the id of a traced one that has ended is another: it is
/// not traced, and nothing of it is found under what was known of the first.
#[test]
fn a_process_with_the_id_of_a_traced_one_is_not_traced() -> Result<()> {
    const REQUESTS: usize = 20;
    let script = plain();
    let downstream = downstream()?;
    for kind in ["threads", "asyncio"] {
        let words = [&*script, kind, "{host}", "{port}"];
        let service = Service::command("plain", &words).downstream(&downstream);
        let (kept, first) = (service.clone().start()?, service.clone().start()?);
        let pid = first.server_pid();
        let mut agent = Agent::attach(&[kept.server_pid(), pid])?;
        let ask = |app: &App, tag: &str| {
            let target = "/downstream";
            let sent = Load::new(&app.address, target, tag, REQUESTS).run();
            ensure!(sent.failures.is_empty(), "{tag}: {:#?}", sent.failures);
            Ok(sent)
        };
        let before = ask(&first, "first")?;
        agent.wait_for_spans(before.answered + before.calls)?;
        drop(first);
        let second = wait_for("a process of the same id", PATIENCE, || {
            let second = with_next_pid(pid, || service.clone().start())?;
            Ok((second.server_pid() == pid).then_some(second))
        })?;
        ask(&second, "second")?;
        let kept_sent = ask(&kept, "kept")?;
        let traced = before.answered + before.calls + kept_sent.answered + kept_sent.calls;
        agent.wait_for_spans(traced)?;
        let ended = agent.stop()?;
        ended.counters.assert_nothing_lost();
        let found = placements(&ended.spans);
        ensure!(!found.contains_key("second"), "{kind}: {found:#?}");
        found["first"].expect_exact(&before).context(kind)?;
        found["kept"].expect_exact(&kept_sent).context(kind)?;
        let start = format!("otel-ebpf: tracing {pid}:");
        let told = ended.lines.iter().filter(|line| line.starts_with(&start));
        ensure!(told.count() == 1, "{kind}: {:#?}", ended.lines);
    }
    Ok(())
}

/// A worker that is forked with the id of the one before is followed like any
/// other, and has nothing of what was known of that one.
#[test]
fn a_worker_with_the_id_of_the_one_before_is_followed() -> Result<()> {
    const REQUESTS: usize = 100;
    let downstream = downstream()?;
    let service = Service::gunicorn("flask_app").arguments(&["--threads", "8"]);
    let mut app = service.downstream(&downstream).start()?;
    let agent = Agent::attach(&app.pids())?;
    let load = |tag: &str| {
        let sent = Load::new(&app.address, "/downstream", tag, REQUESTS).run();
        ensure!(sent.failures.is_empty(), "{tag}: {:#?}", sent.failures);
        Ok(sent)
    };
    let before = load("before")?;
    // The workers that were followed so far, the last one last.
    let followed = || -> Vec<u32> {
        let forked = |line: &String| {
            let line = line.strip_prefix("otel-ebpf: tracing ")?;
            line.split_once(": forked")?.0.parse().ok()
        };
        agent.group.lines().iter().filter_map(forked).collect()
    };
    let same = wait_for("a worker of the same id", PATIENCE, || {
        let (old, known) = (app.server_pid(), followed().len());
        let new = with_next_pid(old, || {
            send(old, Signal::KILL)?;
            wait_for("another worker", PATIENCE, || {
                Ok(followed().get(known).copied())
            })
        })?;
        wait_for("its turn", PATIENCE, || {
            Ok((app.workers() == [new]).then_some(()))
        })?;
        Ok((new == old).then_some(new))
    })?;
    app.group.expect_running()?;
    // Until its contexts and queues are followed, its calls have no parent.
    let mut asked = 0;
    wait_for("a call under its request", PATIENCE, || {
        let answer = app
            .connect()?
            .get(&format!("/downstream?n=1&id=early-{asked}"))?;
        ensure!(answer.status == 200, "{}", answer.text());
        asked += 1;
        let placements = placements(&agent.spans()?);
        Ok(placements
            .get("early")
            .is_some_and(|early| early.placed > 0)
            .then_some(()))
    })?;
    let after = Load::new(&app.address, "/downstream", "after", REQUESTS).run();
    ensure!(after.failures.is_empty(), "{:#?}", after.failures);
    let ended = agent.stop()?;
    ended.counters.assert_nothing_lost();
    let found = placements(&ended.spans);
    found["before"].expect_exact(&before)?;
    found["after"]
        .expect_exact(&after)
        .with_context(|| format!("process {same}"))?;
    ensure!(found["early"].misplaced == 0, "{found:#?}");
    Ok(())
}
