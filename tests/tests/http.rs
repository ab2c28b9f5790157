//! Live HTTP: real servers and clients under the agent, and for every request
//! exactly the span that it must yield.
//!
//! `cargo xtask test` runs it; it needs root.

use std::collections::BTreeMap;
use std::io::Read;
use std::net::{TcpListener, TcpStream};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use otel_ebpf_tests::agent::{Agent, AgentOptions, Ended};
use otel_ebpf_tests::app::{App, Bind, Service, free_port};
use otel_ebpf_tests::client::Response;
use otel_ebpf_tests::process::{PATIENCE, Signal, send, wait_for};
use otel_ebpf_tests::trace::{Kind, Span, brief, children, matching, only};
use serde_json::{Value, json};

/// The servers, each with its application.
fn servers() -> [(&'static str, Service); 3] {
    [
        ("gunicorn", Service::gunicorn("flask_app")),
        ("uvicorn", Service::uvicorn("fastapi_app")),
        ("uvloop", Service::uvloop("fastapi_app")),
    ]
}

/// What every server span of a plain request over TCP says.
fn server_attributes(
    app: &App,
    port: u16,
    method: &str,
    target: &str,
    sent: usize,
    response: &Response,
) -> Value {
    let (path, query) = match target.split_once('?') {
        Some((path, query)) => (path, Some(query)),
        None => (target, None),
    };
    with(
        json!({
            "http.request.method": method,
            "http.request.body.size": sent,
            "http.response.status_code": response.status,
            "http.response.body.size": response.body.len(),
            "url.scheme": "http",
            "url.path": path,
            "url.query": query,
            "server.address": "127.0.0.1",
            "server.port": app.port(),
            "client.address": "127.0.0.1",
            "network.peer.address": "127.0.0.1",
            "network.peer.port": port,
            "network.protocol.version": "1.1",
            "error.type": (response.status >= 500).then(|| response.status.to_string()),
        }),
        json!({}),
    )
}

/// An object with further or other members; null removes one.
fn with(object: Value, other: Value) -> Value {
    let (Value::Object(mut object), Value::Object(other)) = (object, other) else {
        panic!("both are objects");
    };
    object.extend(other);
    object.retain(|_, value| !value.is_null());
    Value::Object(object)
}

/// Asserts what holds of every span of a server whose caller sent no context.
#[track_caller]
fn assert_server(span: &Span, name: &str, error: bool, attributes: &Value) {
    assert_eq!((span.kind, span.name.as_str()), (Kind::Server, name));
    span.assert_attributes(attributes);
    assert_eq!(span.error, error, "{span:#?}");
    assert_eq!((span.flags, span.trace_state.as_str()), (3, ""));
    assert_eq!(span.scope, "otel-ebpf.http");
    assert!(span.start <= span.end, "{span:#?}");
    span.assert_root();
}

fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| since.as_nanos() as u64)
}

/// Stops the agent; nothing may have been lost, and so many spans are there.
#[track_caller]
fn stop(agent: Agent, spans: usize) -> Result<Ended> {
    let ended = agent.stop()?;
    assert_eq!(ended.spans.len(), spans, "{}", brief(&ended.spans));
    ended.counters.assert_nothing_lost();
    Ok(ended)
}

// === One server at a time ===

#[test]
fn every_kind_of_request_yields_its_span() -> Result<()> {
    const BODY: &[u8] = b"twelve bytes";
    let agent_header = [("User-Agent", "test/1.0 (live)")];
    // Method, target, headers, body, status.
    type Case<'a> = (&'a str, &'a str, &'a [(&'a str, &'a str)], &'a [u8], u16);
    let cases: [Case<'_>; 10] = [
        ("GET", "/", &[], b"", 200),
        ("GET", "/items/7?color=red&size=2", &agent_header, b"", 200),
        ("HEAD", "/missing", &[], b"", 0),
        ("POST", "/echo", &[], BODY, 200),
        ("PUT", "/echo?again", &[], BODY, 200),
        ("GET", "/status/204", &[], b"", 204),
        ("GET", "/status/304", &[], b"", 304),
        ("GET", "/missing", &[], b"", 404),
        ("GET", "/stream?parts=20", &[], b"", 200),
        ("GET", "/error", &[], b"", 500),
    ];
    for (name, service) in servers() {
        let app = service.env("OTEL_SERVICE_NAME", name).start()?;
        let agent = Agent::attach_without_frames(&app.pids())?;
        let before = now();
        // All on one connection.
        let mut connection = app.connect()?;
        let mut expected = Vec::new();
        for (method, target, headers, body, status) in cases {
            let response = connection
                .request(method, target, headers, body)
                .with_context(|| format!("{name}: {method} {target}"))?;
            ensure!(
                status == 0 || response.status == status,
                "{name}: {target} answers {response:?}"
            );
            let port = connection.port();
            let attributes = server_attributes(&app, port, method, target, body.len(), &response);
            let user_agent = headers.first().map(|(_, value)| value);
            let attributes = with(attributes, json!({ "user_agent.original": user_agent }));
            expected.push((method, response.status >= 500, attributes));
        }
        let after = now();
        let ended = stop(agent, cases.len()).with_context(|| name.to_owned())?;
        let ids: std::collections::HashSet<_> =
            ended.spans.iter().map(|span| &span.trace_id).collect();
        assert_eq!(
            ids.len(),
            cases.len(),
            "every request is a trace of its own"
        );
        for (span, (method, error, attributes)) in ended.spans.iter().zip(&expected) {
            assert_server(span, method, *error, attributes);
            assert_eq!((span.service(), span.pid()), (name, app.server_pid()));
            let second = 1_000_000_000;
            assert!(
                before < span.start + second && span.end < after + second,
                "{span:#?}"
            );
        }
    }
    Ok(())
}

#[test]
fn chunked_requests_and_awaited_bodies_are_counted() -> Result<()> {
    for (name, service) in servers() {
        let app = service.start()?;
        let agent = Agent::attach_without_frames(&app.pids())?;
        let mut connection = app.connect()?;
        let port = connection.port();
        let chunked = connection.head("POST", "/echo", &[("Transfer-Encoding", "chunked")], 0);
        connection.send(chunked + "4\r\nabcd\r\n")?;
        connection.send("b;x=y\r\nefghijklmno\r\n0\r\n\r\n")?;
        let first = connection.response(false).context(name)?;
        assert_eq!(first.text(), "abcdefghijklmno", "{name}");

        let expecting = connection.head("POST", "/echo", &[("Expect", "100-continue")], 6);
        connection.send(expecting)?;
        let interim = connection.response(false).context(name)?;
        assert_eq!(interim.status, 100, "{name}");
        connection.send("abcdef")?;
        let second = connection.response(false).context(name)?;
        assert_eq!(second.text(), "abcdef", "{name}");

        let ended = stop(agent, 2)?;
        for (span, (sent, response)) in ended.spans.iter().zip([(15, first), (6, second)]) {
            let expected = server_attributes(&app, port, "POST", "/echo", sent, &response);
            assert_server(span, "POST", false, &expected);
        }
    }
    Ok(())
}

#[test]
fn large_bodies_are_counted_both_ways() -> Result<()> {
    const SIZE: usize = 10 * 1024 * 1024;
    let body: Vec<u8> = (0..SIZE).map(|idx| (idx % 251) as u8).collect();
    for (name, service) in servers() {
        let app = service.start()?;
        let agent = Agent::attach_without_frames(&app.pids())?;
        let mut connection = app.connect()?;
        let port = connection.port();
        let response = connection.request("POST", "/echo", &[], &body)?;
        assert!(response.body == body, "{name}: the body came back changed");
        let after = connection.get("/items/1")?;
        let ended = stop(agent, 2)?;
        let expected = server_attributes(&app, port, "POST", "/echo", SIZE, &response);
        assert_server(&ended.spans[0], "POST", false, &expected);
        let expected = server_attributes(&app, port, "GET", "/items/1", 0, &after);
        assert_server(&ended.spans[1], "GET", false, &expected);
        assert!(ended.counters.get("kernel.bytes_over_budget") > SIZE as u64);
    }
    Ok(())
}

#[test]
fn pipelined_requests_are_told_apart() -> Result<()> {
    for service in [
        Service::uvicorn("fastapi_app"),
        Service::uvloop("fastapi_app"),
    ] {
        let app = service.start()?;
        let agent = Agent::attach_without_frames(&app.pids())?;
        let mut connection = app.connect()?;
        let port = connection.port();
        let targets = ["/items/1", "/missing", "/items/3"];
        let heads: String = targets
            .iter()
            .map(|target| connection.head("GET", target, &[], 0))
            .collect();
        connection.send(heads)?;
        let mut expected = BTreeMap::new();
        for target in targets {
            let response = connection.response(false)?;
            expected.insert(
                target,
                server_attributes(&app, port, "GET", target, 0, &response),
            );
        }
        let ended = stop(agent, targets.len())?;
        for target in targets {
            let span = only(&ended.spans, Kind::Server, target);
            assert_server(span, "GET", false, &expected[target]);
        }
    }
    Ok(())
}

#[test]
fn an_upgrade_ends_its_span_and_mutes_the_connection() -> Result<()> {
    /// Between two looks at what the agent tells.
    const FRAMES: usize = 40;
    for service in [
        Service::uvicorn("fastapi_app"),
        Service::uvloop("fastapi_app"),
    ] {
        let app = service.start()?;
        let agent = AgentOptions::new(&app.pids())
            .arguments(&["--no-frames", "--stats"])
            .start()?;
        let mut connection = app.connect()?;
        let port = connection.port();
        let headers = [
            ("Connection", "Upgrade"),
            ("Upgrade", "websocket"),
            ("Sec-WebSocket-Version", "13"),
            ("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="),
        ];
        let response = connection.request("GET", "/ws", &headers, b"")?;
        assert_eq!(response.status, 101);
        // Until the agent tells that what comes now is of no interest.
        wait_for("a connection that is muted", PATIENCE, || {
            for _ in 0..FRAMES {
                // RFC 6455, 5.2: a final text frame of five bytes, masked by 0.
                connection.send(b"\x81\x85\0\0\0\0GET /")?;
                assert_eq!(connection.read(7)?, b"\x81\x05GET /");
            }
            let lines = agent.group.lines();
            let muted = lines
                .iter()
                .any(|line| line.contains("kernel.muted_calls="));
            Ok(muted.then_some(()))
        })?;
        let mut other = app.connect()?;
        other.get("/items/1")?;
        let ended = stop(agent, 2)?;
        let span = only(&ended.spans, Kind::Server, "/ws");
        let expected = server_attributes(&app, port, "GET", "/ws", 0, &response);
        assert_server(span, "GET", false, &expected);
        assert!(span.end < ended.spans[1].start, "it ends with the answer");
        assert_eq!(ended.counters.get("stream.muted.upgraded"), 1);
        assert!(ended.counters.get("kernel.muted_calls") > 0);
    }
    Ok(())
}

#[test]
fn old_versions_and_unknown_methods_are_told() -> Result<()> {
    for (name, service) in servers() {
        let app = service.start()?;
        let agent = Agent::attach_without_frames(&app.pids())?;
        let mut old = app.connect()?;
        old.send("GET /items/1 HTTP/1.0\r\n\r\n")?;
        let first = old.response(false).context(name)?;
        let mut unknown = app.connect()?;
        let second = unknown
            .request("PURGE", "/items/2", &[], b"")
            .context(name)?;
        assert_eq!(second.status, 405, "{name}");
        let ended = stop(agent, 2)?;
        let expected = with(
            server_attributes(&app, old.port(), "GET", "/items/1", 0, &first),
            json!({
                "network.protocol.version": "1.0",
                "server.address": null,
                "server.port": null,
            }),
        );
        assert_server(&ended.spans[0], "GET", false, &expected);
        let expected = with(
            server_attributes(&app, unknown.port(), "_OTHER", "/items/2", 0, &second),
            json!({ "http.request.method_original": "PURGE" }),
        );
        assert_server(&ended.spans[1], "HTTP", false, &expected);
    }
    Ok(())
}

#[test]
fn what_is_no_request_is_counted_and_harms_nothing() -> Result<()> {
    for (name, service) in servers() {
        let app = service.start()?;
        let agent = Agent::attach_without_frames(&app.pids())?;
        let mut garbage = app.connect()?;
        let bytes: Vec<u8> = (0..4096_u32).map(|idx| (idx * 7 % 256) as u8).collect();
        garbage.send(&bytes)?;
        garbage.finish()?;
        garbage.read_to_end();
        let mut long = app.connect()?;
        let head = format!(
            "GET / HTTP/1.1\r\nHost: h\r\nX: {}\r\n\r\n",
            "x".repeat(1 << 20)
        );
        // The server may close before it has read everything.
        let _refused = long.send(head);
        let _refused = long.finish();
        long.read_to_end();
        let mut good = app.connect()?;
        let response = good.get("/items/1").context(name)?;
        let ended = agent.stop()?;
        ended.counters.assert_nothing_lost();
        let span = only(&ended.spans, Kind::Server, "/items/1");
        let expected = server_attributes(&app, good.port(), "GET", "/items/1", 0, &response);
        assert_server(span, "GET", false, &expected);
        assert_eq!(ended.spans.len(), 1, "{name}: {}", brief(&ended.spans));
        let abandoned: u64 = ["malformed", "head_too_long", "gap"]
            .iter()
            .map(|reason| ended.counters.get(&format!("stream.abandoned.{reason}")))
            .sum();
        assert_eq!(abandoned, 1, "{name}: {:#?}", ended.counters);
    }
    Ok(())
}

#[test]
fn a_client_that_leaves_ends_its_request() -> Result<()> {
    let downstream = Service::uvicorn("downstream").start()?;
    let slow = downstream.url("/?delay_ms=300");
    for (name, service) in servers() {
        let app = service.start()?;
        let mut agent = Agent::attach_without_frames(&app.pids())?;
        // In the middle of a head: nothing is known of such a request.
        let mut head = app.connect()?;
        head.send("GET /items/1 HTTP/1.1\r\nHos")?;
        drop(head);
        // In the middle of a body.
        let mut body = app.connect()?;
        let port = body.port();
        let text = body.head("POST", "/echo", &[], 100);
        body.send(text + "only these")?;
        drop(body);
        // Before the answer.
        let mut early = app.connect()?;
        let target = format!("/downstream?url={slow}");
        let text = early.head("GET", &target, &[], 0);
        early.send(text)?;
        drop(early);
        let mut good = app.connect()?;
        good.get("/items/2").context(name)?;
        let is_there = |spans: &[Span], target| !matching(spans, Kind::Server, target).is_empty();
        wait_for("the span of the abandoned request", PATIENCE, || {
            agent.group.expect_running()?;
            let spans = agent.spans()?;
            let done = ["/downstream", "/echo", "/items/2"]
                .iter()
                .all(|target| is_there(&spans, target));
            Ok(done.then_some(()))
        })
        .with_context(|| format!("{name}: {}", brief(&agent.spans().unwrap_or_default())))?;
        let ended = agent.stop()?;
        ended.counters.assert_nothing_lost();
        let span = only(&ended.spans, Kind::Server, "/echo");
        assert_eq!(span.number("network.peer.port"), Some(i64::from(port)));
        assert_eq!(span.number("http.request.body.size"), None, "{span:#?}");
        assert!(matching(&ended.spans, Kind::Server, "/items/1").is_empty());
    }
    Ok(())
}

#[test]
fn a_worker_that_is_killed_ends_its_requests() -> Result<()> {
    let downstream = Service::uvicorn("downstream").start()?;
    let slow = downstream.url("/?delay_ms=20000");
    let app = Service::gunicorn("flask_app").start()?;
    let worker = app.server_pid();
    let mut agent = Agent::attach_without_frames(&app.pids())?;
    let mut waiting = app.connect()?;
    let port = waiting.port();
    let text = waiting.head("GET", &format!("/downstream?url={slow}"), &[], 0);
    waiting.send(text)?;
    // The call is under way once the downstream service has been asked.
    wait_for("the call", PATIENCE, || {
        let lines = downstream.group.lines();
        Ok(lines
            .iter()
            .any(|line| line == "the request waits")
            .then_some(()))
    })?;
    send(worker, Signal::KILL)?;
    waiting.read_to_end();
    let spans = agent.wait_for_spans(2)?;
    let server = only(&spans, Kind::Server, "/downstream");
    server.assert_attributes(&json!({
        "http.request.method": "GET",
        "http.request.body.size": 0,
        "url.scheme": "http",
        "url.path": "/downstream",
        "url.query": format!("url={slow}"),
        "server.address": "127.0.0.1",
        "server.port": app.port(),
        "client.address": "127.0.0.1",
        "network.peer.address": "127.0.0.1",
        "network.peer.port": port,
        "network.protocol.version": "1.1",
        "error.type": "connection_closed",
    }));
    assert!(server.error);
    let client = only(&spans, Kind::Client, "delay_ms");
    client.assert_child_of(server);
    assert!(client.error);
    assert_eq!(client.text("error.type"), "connection_closed");
    // The master starts another one, which is traced too.
    let respawned = wait_for("another worker", PATIENCE, || {
        Ok(app.workers().into_iter().find(|&pid| pid != worker))
    })?;
    agent.wait_until_it_traces(respawned)?;
    let mut after = app.connect()?;
    after.get("/items/1")?;
    let ended = stop(agent, 3)?;
    assert_eq!(
        only(&ended.spans, Kind::Server, "/items/1").pid(),
        respawned
    );
    Ok(())
}

#[test]
fn ipv6_and_unix_sockets_are_named() -> Result<()> {
    for (name, service) in servers() {
        let app = service.clone().bind(Bind::V6).start()?;
        let agent = Agent::attach_without_frames(&app.pids())?;
        let mut connection = app.connect()?;
        let response = connection.get("/items/1").context(name)?;
        let ended = stop(agent, 1)?;
        let expected = with(
            server_attributes(&app, connection.port(), "GET", "/items/1", 0, &response),
            json!({
                "server.address": "::1",
                "client.address": "::1",
                "network.peer.address": "::1",
            }),
        );
        assert_server(&ended.spans[0], "GET", false, &expected);
        drop(app);

        let app = service.bind(Bind::Unix).start()?;
        let agent = Agent::attach_without_frames(&app.pids())?;
        let mut connection = app.connect()?;
        let response = connection.get("/items/1").context(name)?;
        let ended = stop(agent, 1)?;
        let expected = with(
            server_attributes(&app, 0, "GET", "/items/1", 0, &response),
            json!({
                "server.address": "localhost",
                "server.port": null,
                "client.address": null,
                "network.transport": "unix",
                "network.peer.address": null,
                "network.peer.port": null,
            }),
        );
        assert_server(&ended.spans[0], "GET", false, &expected);
    }
    Ok(())
}

// === Servers that call others ===

/// Both ends of each call are traced: the client span encloses the server's.
#[test]
fn calls_are_children_and_enclose_what_they_cause() -> Result<()> {
    let downstream = Service::uvicorn("downstream").start()?;
    // Stack, endpoint, client library, calls.
    let cases = [
        (0, "downstream", "requests", 2),
        (0, "downstream", "urllib3", 2),
        (1, "downstream", "httpx", 2),
        (1, "gather", "aiohttp", 3),
        (1, "gather", "httpx", 3),
        (1, "to_thread", "urllib3", 2),
        (2, "downstream", "aiohttp", 2),
        (2, "gather", "httpx", 3),
        (2, "threadpool", "requests", 2),
    ];
    for (stack, (name, service)) in servers().into_iter().enumerate() {
        let app = service.downstream(&downstream).start()?;
        let mut pids = app.pids();
        pids.extend(downstream.pids());
        let agent = Agent::attach_without_frames(&pids)?;
        let mut connection = app.connect()?;
        let mut expected = 0;
        for (idx, (_, endpoint, library, calls)) in
            cases.iter().enumerate().filter(|(_, case)| case.0 == stack)
        {
            let response = connection.get(&format!(
                "/{endpoint}?client={library}&n={calls}&id=case{idx}"
            ))?;
            ensure!(
                response.status == 200,
                "{name} {endpoint} {library}: {response:?}"
            );
            expected += 1 + 2 * calls;
        }
        let ended = stop(agent, expected)?;
        for (idx, (_, endpoint, library, calls)) in
            cases.iter().enumerate().filter(|(_, case)| case.0 == stack)
        {
            let id = format!("id=case{idx}");
            let parent = only(
                &ended.spans,
                Kind::Server,
                &format!("{endpoint}?client={library}"),
            );
            parent.assert_root();
            let found = children(&ended.spans, parent);
            assert_eq!(
                found.len(),
                *calls,
                "{name} {endpoint} {library}: {}",
                brief(&ended.spans)
            );
            for call in 0..*calls {
                let query = format!("{id}&call={call}");
                let client = only(&ended.spans, Kind::Client, &query);
                client.assert_child_of(parent);
                let server = only(&ended.spans, Kind::Server, &query);
                check_call(&downstream, client, server, &query);
                assert!(parent.start <= client.start && client.end <= parent.end);
            }
        }
    }
    Ok(())
}

#[track_caller]
fn check_call(downstream: &App, client: &Span, server: &Span, query: &str) {
    let size = format!("GET /?{query}").len();
    assert_eq!((client.name.as_str(), client.error), ("GET", false));
    client.assert_attributes(&json!({
        "http.request.method": "GET",
        "http.request.body.size": 0,
        "http.response.status_code": 200,
        "http.response.body.size": size,
        "url.full": downstream.url(&format!("/?{query}")),
        "server.address": "127.0.0.1",
        "server.port": downstream.port(),
        "network.peer.address": "127.0.0.1",
        "network.peer.port": downstream.port(),
        "network.protocol.version": "1.1",
    }));
    assert_eq!(server.number("http.response.body.size"), Some(size as i64));
    assert_eq!(server.pid(), downstream.server_pid());
    // Its last system call may end when the client has had the answer for long.
    assert!(client.start <= server.start, "{client:#?} {server:#?}");
    assert!(server.start <= client.end, "{client:#?} {server:#?}");
}

/// What the other service answers is the client span's status and sizes, and
/// what it leaves out is told too.
#[test]
fn answers_to_calls_are_told() -> Result<()> {
    const SIZE: usize = 10 * 1024 * 1024;
    let downstream = Service::uvicorn("downstream").start()?;
    let nobody = free_port([127, 0, 0, 1].into())?;
    // Accepts, reads, and closes without an answer.
    let rude = TcpListener::bind("127.0.0.1:0")?;
    let rude_address = rude.local_addr()?;
    let thread = std::thread::spawn(move || {
        while let Ok((mut stream, _)) = rude.accept() {
            let mut bytes = [0; 4096];
            // A connection that breaks is as good as one that is closed.
            if let Ok(0) | Err(_) = stream.read(&mut bytes) {
                break;
            }
        }
    });
    for (name, service) in servers() {
        let libraries = match name {
            "gunicorn" => ["requests", "urllib3"],
            _ => ["httpx", "aiohttp"],
        };
        for library in libraries {
            let app = service.clone().start()?;
            let agent = Agent::attach_without_frames(&app.pids())?;
            let call = |url: String| -> Result<()> {
                let escaped = url.replace('&', "%26");
                let target = format!("/downstream?client={library}&url={escaped}");
                app.connect()?.get(&target)?;
                Ok(())
            };
            // Path, status, size. Chunks beyond the budget are seen only
            // where a transfer begins; a size that would have to be guessed
            // is left out.
            let echo = |path: &str| Some(format!("GET {path}&id=none&call=0").len() as i64);
            let cases = [
                ("/a?status=404", 404, echo("/a?status=404")),
                ("/b?status=503", 503, echo("/b?status=503")),
                ("/c?size=0", 200, Some(0)),
                ("/d?chunked=1&size=1000", 200, Some(1000)),
                ("/h?chunked=1&size=1000000", 200, None),
            ];
            for (path, ..) in cases {
                call(downstream.url(path))?;
            }
            call(downstream.url(&format!("/e?size={SIZE}")))?;
            call(format!("http://{nobody}/f"))?;
            call(format!("http://{rude_address}/g"))?;
            let ended = agent.stop()?;
            ended.counters.assert_nothing_lost();
            let find = |path: &str| {
                let path = path.split('?').next().unwrap_or_default();
                let calls: Vec<&Span> = ended
                    .spans
                    .iter()
                    .filter(|span| span.kind == Kind::Client)
                    .filter(|span| span.text("url.full").contains(&format!("{path}?")))
                    .collect();
                calls
            };
            for (path, status, size) in cases {
                let [span] = find(path)[..] else {
                    panic!("{name} {library} {path}: {}", brief(&ended.spans));
                };
                assert_eq!(span.number("http.response.status_code"), Some(status));
                assert_eq!(span.error, status >= 400, "{span:#?}");
                let error = if status >= 400 {
                    status.to_string()
                } else {
                    String::new()
                };
                assert_eq!(span.text("error.type"), error);
                let told = span.number("http.response.body.size");
                match size {
                    Some(_) => assert_eq!(told, size, "{span:#?}"),
                    None => assert!(matches!(told, None | Some(1_000_000)), "{span:#?}"),
                }
            }
            let [large] = find("/e")[..] else {
                panic!("{name} {library}: {}", brief(&ended.spans));
            };
            assert_eq!(large.number("http.response.body.size"), Some(SIZE as i64));
            // Where nothing was sent there was no exchange.
            assert!(find("/f").is_empty(), "{}", brief(&ended.spans));
            let unanswered = find("/g");
            assert!(!unanswered.is_empty(), "{}", brief(&ended.spans));
            for span in unanswered {
                assert!(span.error, "{span:#?}");
                assert_eq!(span.text("error.type"), "connection_closed");
                assert_eq!(span.number("http.response.status_code"), None);
            }
            let orphans: Vec<_> = ended
                .spans
                .iter()
                .filter(|span| span.kind == Kind::Client && span.parent.is_none())
                .collect();
            assert!(orphans.is_empty(), "{name} {library}: {orphans:#?}");
        }
    }
    // An empty connection ends the thread.
    drop(TcpStream::connect(rude_address)?);
    ensure!(thread.join().is_ok(), "the rude server panicked");
    Ok(())
}

#[test]
fn connections_older_than_the_attach_are_known() -> Result<()> {
    let downstream = Service::uvicorn("downstream").start()?;
    for (name, service) in servers() {
        let app = service.downstream(&downstream).start()?;
        let mut connection = app.connect()?;
        let port = connection.port();
        let libraries = if name == "gunicorn" {
            ["requests", "urllib3"]
        } else {
            ["httpx", "aiohttp"]
        };
        for library in libraries {
            connection.get(&format!("/downstream?client={library}&id=before"))?;
        }
        let agent = Agent::attach_without_frames(&app.pids())?;
        for library in libraries {
            let target = format!("/downstream?client={library}&id={library}");
            let response = connection.get(&target)?;
            assert_eq!(response.status, 200, "{name} {library}");
        }
        let ended = stop(agent, 4)?;
        for library in libraries {
            let server = only(&ended.spans, Kind::Server, &format!("&id={library}"));
            assert_eq!(
                server.number("network.peer.port"),
                Some(i64::from(port)),
                "{name}"
            );
            assert_eq!(server.text("client.address"), "127.0.0.1");
            let client = only(&ended.spans, Kind::Client, &format!("id={library}&call=0"));
            client.assert_child_of(server);
            assert_eq!(
                client.number("network.peer.port"),
                Some(downstream.port().into())
            );
        }
    }
    Ok(())
}

// === Many ===

#[test]
fn short_connections_are_each_counted_once() -> Result<()> {
    const THREADS: usize = 4;
    const EACH: usize = 500;
    for (name, service) in servers() {
        let app = service.start()?;
        let agent = Agent::attach_without_frames(&app.pids())?;
        std::thread::scope(|scope| {
            let threads: Vec<_> = (0..THREADS)
                .map(|thread| {
                    let app = &app;
                    scope.spawn(move || -> Result<()> {
                        for number in 0..EACH {
                            let mut connection = app.connect()?;
                            let id = thread * EACH + number;
                            let close = [("Connection", "close")];
                            let target = format!("/items/{id}");
                            let response = connection.request("GET", &target, &close, b"")?;
                            ensure!(response.status == 200, "{response:?}");
                        }
                        Ok(())
                    })
                })
                .collect();
            for thread in threads {
                thread
                    .join()
                    .map_err(|_| anyhow::anyhow!("a client panicked"))??;
            }
            anyhow::Ok(())
        })
        .context(name)?;
        let ended = stop(agent, THREADS * EACH)?;
        let paths: std::collections::HashSet<_> = ended
            .spans
            .iter()
            .map(|span| span.text("url.path"))
            .collect();
        assert_eq!(paths.len(), THREADS * EACH, "{name}: none twice");
        let right = |span: &&Span| span.number("http.response.status_code") == Some(200);
        assert_eq!(ended.spans.iter().filter(right).count(), THREADS * EACH);
    }
    Ok(())
}
