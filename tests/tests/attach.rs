//! Live: attaching in the middle of things. What began before the attach may
//! be left out, but nothing after it may be wrong.
//!
//! `cargo xtask test` runs it; it needs root.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

use anyhow::{Context, Result, ensure};
use otel_ebpf_tests::agent::Agent;
use otel_ebpf_tests::app::Service;
use otel_ebpf_tests::process::{PATIENCE, wait_for};
use otel_ebpf_tests::trace::{Kind, Span, brief, only};

fn servers() -> [(&'static str, &'static str, Service); 3] {
    [
        ("gunicorn", "requests", Service::gunicorn("flask_app")),
        ("uvicorn", "httpx", Service::uvicorn("fastapi_app")),
        ("uvloop", "aiohttp", Service::uvloop("fastapi_app")),
    ]
}

/// Clients go on without a pause while the agent comes: half of them on one
/// connection each, half on a new one for each request.
#[test]
fn under_load_every_request_after_the_attach_has_one_span() -> Result<()> {
    const CLIENTS: usize = 4;
    /// Requests that each client makes once the agent traces.
    const AFTER: usize = 200;
    for (name, _, service) in servers() {
        let app = service.start()?;
        let attached = AtomicBool::new(false);
        let failed = AtomicBool::new(false);
        let before = AtomicUsize::new(0);
        let client = |client: usize| -> Result<()> {
            let mut connection = app.connect()?;
            let mut after = 0;
            let mut id = client;
            while after < AFTER && !failed.load(Ordering::Relaxed) {
                // Known before it begins: only such a request must be seen.
                let counts = attached.load(Ordering::SeqCst);
                if client.is_multiple_of(2) {
                    connection = app.connect()?;
                }
                let query = if counts { "?after" } else { "" };
                let response = connection.get(&format!("/items/{id}{query}"))?;
                ensure!(response.status == 200, "{response:?}");
                ensure!(
                    response.text().contains(&format!("item {id}\"")),
                    "{response:?}"
                );
                if counts {
                    after += 1;
                } else {
                    before.fetch_add(1, Ordering::Relaxed);
                }
                id += CLIENTS;
            }
            Ok(())
        };
        let ended = thread::scope(|scope| {
            let clients: Vec<_> = (0..CLIENTS)
                .map(|number| scope.spawn(move || client(number)))
                .collect();
            let attach = || -> Result<Agent> {
                wait_for("load", PATIENCE, || {
                    Ok((before.load(Ordering::Relaxed) > 100).then_some(()))
                })?;
                Agent::attach(&app.pids())
            };
            let agent = attach();
            failed.store(agent.is_err(), Ordering::Relaxed);
            attached.store(true, Ordering::SeqCst);
            for client in clients {
                let joined = client.join();
                joined.map_err(|_| anyhow::anyhow!("a client panicked"))??;
            }
            agent?.stop()
        })
        .context(name)?;
        ended.counters.assert_nothing_lost();
        let mut seen: HashMap<&str, usize> = HashMap::new();
        for span in &ended.spans {
            *seen.entry(span.text("url.path")).or_default() += 1;
            let status = span.number("http.response.status_code");
            assert_eq!(
                (status, span.error),
                (Some(200), false),
                "{name}: {span:#?}"
            );
        }
        let twice: Vec<_> = seen.iter().filter(|(_, count)| **count > 1).collect();
        assert!(twice.is_empty(), "{name}: {twice:?}");
        let after = ended
            .spans
            .iter()
            .filter(|span| span.text("url.query") == "after")
            .count();
        assert_eq!(after, CLIENTS * AFTER, "{name}: {:#?}", ended.counters);
    }
    Ok(())
}

/// A request is being worked on, and waits for a call, when the agent comes.
/// Both are left out; the next ones on the same connections are right.
#[test]
fn in_the_middle_of_a_request_only_that_one_is_left_out() -> Result<()> {
    let downstream = Service::uvicorn("downstream").start()?;
    for (name, library, service) in servers() {
        let app = service.downstream(&downstream).start()?;
        let mut connection = app.connect()?;
        // Afterwards its pool holds one connection.
        connection.get(&format!("/downstream?client={library}&id=first"))?;
        let slow = downstream.url("/?delay_ms=3000").replace('&', "%26");
        let target = format!("/downstream?client={library}&id=middle&url={slow}");
        let head = connection.head("GET", &target, &[], 0);
        connection.send(head)?;
        let agent = Agent::attach(&app.pids())?;
        assert_eq!(connection.response(false).context(name)?.status, 200);
        let target = format!("/downstream?client={library}&id=next");
        assert_eq!(connection.get(&target)?.status, 200);
        let ended = agent.stop()?;
        ended.counters.assert_nothing_lost();
        let middle: Vec<&Span> = ended
            .spans
            .iter()
            .filter(|span| span.target().contains("middle"))
            .collect();
        assert!(middle.is_empty(), "{name}: {middle:#?}");
        assert_eq!(ended.spans.len(), 2, "{name}: {}", brief(&ended.spans));
        let server = only(&ended.spans, Kind::Server, "id=next");
        let client = only(&ended.spans, Kind::Client, "id=next");
        server.assert_root();
        client.assert_child_of(server);
        for span in [server, client] {
            assert_eq!(span.number("http.response.status_code"), Some(200));
        }
    }
    Ok(())
}
