//! Live: each table that evicts has too little room, and all others have enough.
//! What is forgotten is counted and costs what it is said to cost: a parent, a
//! join, a span of SQLite, or a second look at a connection. It never leads to
//! a wrong parent, and everything else is as ever.
//!
//! Contexts, work of executors and TLS sessions are the small tables of
//! `limits`. Needs root, BPF and the Python environments of `cargo xtask test`.

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use otel_ebpf_tests::agent::{Agent, AgentOptions, Counters, Ended};
use otel_ebpf_tests::app::{App, Service};
use otel_ebpf_tests::attribution::{Expected, Interpreter, Model, run};
use otel_ebpf_tests::client::Connection;
use otel_ebpf_tests::load::{Load, Manner, placements};
use otel_ebpf_tests::process::{PATIENCE, wait_for};
use otel_ebpf_tests::trace::{Kind, Span, children, only};

mod attribution {
    use super::*;

    /// Each of 64 requests has a greenlet and makes more, also such as are
    /// older than all requests: an evicted one owns nothing, nor does what it
    /// makes.
    #[test]
    fn a_small_table_of_greenlets() {
        const REFUSED: Expected = Expected::Refused("spans.no_parent.unowned_greenlet");
        let found = Interpreter::greenlets();
        let service = Service::gunicorn("greenlet_app")
            .arguments(&["--worker-class", "gevent"])
            .env("APP_SCHEDULER", "gevent")
            .env("APP_UNOWNED", "1");
        let model = Model::new("gunicorn gevent, small table of greenlets", service)
            .on(&found[0])
            .agent(&["--table-entries", "GREENLETS=64"])
            .load_as("/spawned?client=urllib3", Manner::Whole, REFUSED)
            .load_as("/later", Manner::Close, REFUSED)
            .unowned(&["background-greenlet", "background-thread"])
            .evicts(&["kernel.evicted.greenlets"]);
        run("a_small_table_of_greenlets", vec![model]);
    }
}

/// Traces the service with so much room in a table.
fn attach(app: &App, room: &str, further: &[&str]) -> Result<Agent> {
    AgentOptions::new(&[app.server_pid()])
        .arguments(&["--table-entries", room])
        .arguments(further)
        .start()
}

/// Fails unless this table has evicted something, and no other one.
fn expect_evictions(counters: &Counters, of: &str) -> Result<u64> {
    let names = counters.0.keys();
    for name in names.filter(|name| name.starts_with("kernel.evicted.")) {
        let evicted = counters.get(name) > 0;
        ensure!(evicted == (name == of), "{name}: {counters:#?}");
    }
    ensure!(counters.get(of) > 0, "{of}: {counters:#?}");
    Ok(counters.get(of))
}

fn ask(app: &App, target: &str) -> Result<()> {
    let answer = app.connect()?.get(target)?;
    ensure!(answer.status == 200, "{target}: {}", answer.text());
    Ok(())
}

/// Requests to a service whose TLS sessions take turns, so that what they
/// received waits for them all at a time and most of it is forgotten.
fn with_sessions(way: &str) -> Result<(usize, Ended)> {
    const REQUESTS: usize = 5;
    const CALLS: usize = 48;
    let downstream = Service::uvloop("downstream")
        .arguments(&["--no-access-log"])
        .tls()
        .start()?;
    let app = Service::gunicorn("flask_app")
        .downstream(&downstream)
        .start()?;
    let agent = attach(&app, "RECORDS=8", &[])?;
    for number in 0..REQUESTS {
        ask(
            &app,
            &format!("/sessions/{way}?n={CALLS}&id={way}-{number}"),
        )?;
    }
    let ended = agent.stop()?;
    expect_evictions(&ended.counters, "kernel.evicted.tls_records")?;
    Ok((REQUESTS * CALLS, ended))
}

/// A session that was not joined by the first records that it received is
/// joined by later ones. What it sent before is not lost.
#[test]
fn tls_sessions_whose_first_records_are_forgotten_are_joined_later() -> Result<()> {
    let (calls, ended) = with_sessions("handshakes")?;
    ended.counters.assert_nothing_lost();
    let found = &placements(&ended.spans)["handshakes"];
    ensure!(
        found.placed == calls && found.calls() == calls,
        "{found:#?}"
    );
    Ok(())
}

/// A session that reads an answer and is not joined yet: the call is lost and
/// counted.
#[test]
fn tls_sessions_whose_records_are_all_forgotten_lose_what_they_read() -> Result<()> {
    let (calls, ended) = with_sessions("everything")?;
    let found = &placements(&ended.spans)["everything"];
    ensure!(found.calls() == found.placed, "{found:#?}");
    let (lost, counters) = (calls - found.placed, &ended.counters);
    ensure!(found.placed > 0 && lost > 0, "{found:#?} {counters:#?}");
    ensure!(
        counters.get("kernel.lost.tls_unjoined") >= lost as u64,
        "{counters:#?}"
    );
    Ok(())
}

/// Of cursors that are open at a time, those that are forgotten are not told,
/// and the others are told as they were.
#[test]
fn statements_that_are_forgotten_are_not_told() -> Result<()> {
    const CURSORS: usize = 200;
    const REQUESTS: usize = 100;
    let folder = tempfile::tempdir()?;
    let app = Service::uvicorn("sqlite_app")
        .env("APP_DATABASE", folder.path().join("shop.db"))
        .start()?;
    let agent = attach(&app, "STATEMENTS=64", &["--ring-size", "64"])?;
    ask(&app, &format!("/cursors?id=cursors&n={CURSORS}"))?;
    // One statement at a time.
    let sent = Load::new(&app.address, "/loop", "loop", REQUESTS).run();
    ensure!(sent.failures.is_empty(), "{:#?}", sent.failures);
    let ended = agent.stop()?;
    ended.counters.assert_nothing_lost();
    let evicted = expect_evictions(&ended.counters, "kernel.evicted.statements")?;

    let server = only(&ended.spans, Kind::Server, "/cursors");
    let told = children(&ended.spans, server);
    let numbers: BTreeSet<usize> = told
        .iter()
        .filter_map(|span| marked(span, "cursors")?.parse().ok())
        .collect();
    ensure!(numbers.len() == told.len() && !told.is_empty(), "{told:#?}");
    ensure!(numbers.iter().all(|number| *number < CURSORS), "{told:#?}");
    for span in &told {
        ensure!(
            span.number("db.response.returned_rows") == Some(3),
            "{span:#?}"
        );
    }
    let queries = ended.spans.iter().filter(|span| span.kind == Kind::Client);
    let others = queries.filter(|span| marked(span, "cursors").is_none());
    ensure!(
        told.len() as u64 + evicted == CURSORS as u64,
        "{} told, {evicted} evicted",
        told.len()
    );
    ensure!(others.count() == sent.calls, "{:#?}", ended.counters);
    for span in ended.spans.iter().filter(|span| span.kind == Kind::Client) {
        let mut servers = ended.spans.iter();
        let parent = servers.find(|server| Some(&*server.span_id) == span.parent.as_deref());
        let parent = parent.with_context(|| format!("{span:#?}"))?;
        let id = parent
            .text("url.query")
            .split('&')
            .find_map(|pair| pair.strip_prefix("id="));
        ensure!(
            id.is_some_and(|id| marked(span, id).is_some()),
            "{span:#?} under {parent:#?}"
        );
    }
    Ok(())
}

/// The number of a query that carries this id.
fn marked<'a>(span: &'a Span, id: &str) -> Option<&'a str> {
    let text = span.text("db.query.text");
    let (_, rest) = text.split_once(&format!("\"{id}_"))?;
    Some(rest.split_once('"')?.0)
}

/// Connections of no known protocol that are forgotten are looked at again and
/// muted again, while nothing is told of them; what comes after them on their
/// descriptors is traced.
#[test]
fn muted_connections_that_are_forgotten_are_muted_again() -> Result<()> {
    const CONNECTIONS: usize = 64;
    const REQUESTS: usize = 300;
    let downstream = Service::uvloop("downstream").start()?;
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("apps/plain.py");
    let words = [
        &*script.display().to_string(),
        "asyncio",
        "{host}",
        "{port}",
    ];
    let app = Service::command("plain", &words)
        .downstream(&downstream)
        .start()?;
    let agent = attach(&app, "MUTED=8", &["--stats"])?;
    let connections = (0..CONNECTIONS).map(|_| app.connect());
    let mut connections: Vec<Connection> = connections.collect::<Result<_>>()?;
    let mut transfers = 0;
    let (mut told, mut before) = (0, (0, 0));
    wait_for("all of them to be muted", PATIENCE, || {
        for connection in &mut connections {
            connection.send(b"\0ping")?;
            ensure!(connection.read(5)? == b"\0ping", "another answer");
            transfers += 2;
        }
        // What the agent says once a second: of what was transferred since it
        // did so last, nearly all was left out.
        let mut lines = agent.group.lines();
        lines.retain(|line| line.starts_with("otel-ebpf: stats"));
        let Some(line) = lines.last().filter(|_| lines.len() > told) else {
            return Ok(None);
        };
        told = lines.len();
        let muted = value(line, "kernel.muted_calls");
        let (more, left_out) = (transfers - before.0, muted - before.1);
        before = (transfers, muted);
        Ok((left_out * 10 > more * 9).then_some(()))
    })?;
    drop(connections);
    let sent = Load::new(&app.address, "/downstream", "after", REQUESTS).run();
    ensure!(sent.failures.is_empty(), "{:#?}", sent.failures);
    let ended = agent.stop()?;
    ended.counters.assert_nothing_lost();
    expect_evictions(&ended.counters, "kernel.evicted.muted")?;
    let unknown = ended.counters.get("stream.muted.unknown_protocol");
    ensure!(unknown == CONNECTIONS as u64, "{:#?}", ended.counters);
    ensure!(
        ended.spans.len() == sent.answered + sent.calls,
        "{:#?}",
        ended.counters
    );
    placements(&ended.spans)["after"].expect_exact(&sent)
}

/// A counter in a line of the agent.
fn value(line: &str, name: &str) -> u64 {
    let mut pairs = line
        .split_whitespace()
        .filter_map(|pair| pair.split_once('='));
    let found = pairs.find(|(key, _)| *key == name);
    found.and_then(|(_, value)| value.parse().ok()).unwrap_or(0)
}
