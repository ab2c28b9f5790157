//! Live: what requests carry along. W3C trace context in and out, what proxies
//! say about the original request, and what must not be shown.
//!
//! `cargo xtask test` runs it; it needs root.

use anyhow::{Context, Result};
use otel_ebpf_tests::agent::Agent;
use otel_ebpf_tests::app::{App, Service};
use otel_ebpf_tests::client::Response;
use otel_ebpf_tests::trace::{Kind, Span, brief, only};
use serde_json::json;

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const CALLER: &str = "00f067aa0ba902b7";
const OWN: &str = "b7ad6b7169203331";

/// Each server with a client library of its own kind.
fn servers() -> [(&'static str, Service); 4] {
    [
        ("requests", Service::gunicorn("flask_app")),
        ("urllib3", Service::gunicorn("flask_app")),
        ("httpx", Service::uvicorn("fastapi_app")),
        ("aiohttp", Service::uvloop("fastapi_app")),
    ]
}

/// Traces both services while a request with these headers is made.
fn traced(
    app: &App,
    downstream: &App,
    target: &str,
    headers: &[(&str, &str)],
) -> Result<(Response, otel_ebpf_tests::agent::Ended)> {
    let mut pids = app.pids();
    pids.extend(downstream.pids());
    let agent = Agent::attach_without_frames(&pids)?;
    let response = app.connect()?.request("GET", target, headers, b"")?;
    let ended = agent.stop()?;
    ended.counters.assert_nothing_lost();
    Ok((response, ended))
}

/// The server span, its call's client span, and the server span of that call.
#[track_caller]
fn three(spans: &[Span]) -> (&Span, &Span, &Span) {
    assert_eq!(spans.len(), 3, "{}", brief(spans));
    (
        only(spans, Kind::Server, "/downstream"),
        only(spans, Kind::Client, "call=0"),
        only(spans, Kind::Server, "/?id=none&call=0"),
    )
}

/// Asserts trace, parent with whether it is remote, and flags.
#[track_caller]
fn assert_place(span: &Span, trace: &str, parent: Option<&str>, remote: bool, flags: u32) {
    assert_eq!(
        (
            span.trace_id.as_str(),
            span.parent.as_deref(),
            span.remote,
            span.flags
        ),
        (trace, parent, remote, flags),
        "{span:#?}"
    );
}

#[test]
fn a_callers_trace_is_continued() -> Result<()> {
    let downstream = Service::uvicorn("downstream").start()?;
    let parent = format!("00-{TRACE}-{CALLER}-01");
    let headers = [
        ("traceparent", parent.as_str()),
        ("tracestate", "vendor=a:b, other@sys=1"),
        ("TraceState", "third=3"),
    ];
    for (library, service) in servers() {
        let app = service.downstream(&downstream).start()?;
        let target = format!("/downstream?client={library}");
        let (_, ended) = traced(&app, &downstream, &target, &headers)?;
        let (server, client, other) = three(&ended.spans);
        assert_place(server, TRACE, Some(CALLER), true, 1);
        assert_eq!(server.trace_state, "vendor=a:b,other@sys=1,third=3");
        assert_place(client, TRACE, Some(&server.span_id), false, 1);
        assert_eq!(client.trace_state, server.trace_state);
        // Nothing went over the wire to the other service.
        other.assert_root();
        assert_ne!(other.trace_id, TRACE, "{library}");
    }
    Ok(())
}

#[test]
fn a_trace_that_is_not_sampled_yields_no_spans() -> Result<()> {
    let downstream = Service::uvicorn("downstream").start()?;
    let parent = format!("00-{TRACE}-{CALLER}-00");
    for (library, service) in servers() {
        let app = service.downstream(&downstream).start()?;
        let target = format!("/downstream?client={library}&traceparent=forward");
        let headers = [("traceparent", parent.as_str())];
        let (response, ended) = traced(&app, &downstream, &target, &headers)?;
        assert_eq!(response.status, 200, "{library}");
        assert!(ended.spans.is_empty(), "{library}: {}", brief(&ended.spans));
        assert_eq!(ended.counters.get("spans.not_sampled"), 3, "{library}");
    }
    Ok(())
}

#[test]
fn a_malformed_context_is_ignored() -> Result<()> {
    let app = Service::uvloop("fastapi_app").start()?;
    let malformed = [
        format!("00-{TRACE}-{CALLER}"),
        format!("00-{TRACE}-{CALLER}-01-more"),
        format!("ff-{TRACE}-{CALLER}-01"),
        format!("00-{}-{CALLER}-01", "0".repeat(32)),
        format!("00-{TRACE}-{}-01", "0".repeat(16)),
        format!("00-{}-{CALLER}-01", TRACE.to_uppercase()),
        "nonsense".to_owned(),
        String::new(),
    ];
    let agent = Agent::attach_without_frames(&app.pids())?;
    let mut connection = app.connect()?;
    for text in &malformed {
        let headers = [("traceparent", text.as_str()), ("tracestate", "a=1")];
        connection.request("GET", "/items/1", &headers, b"")?;
    }
    let good = format!("00-{TRACE}-{CALLER}-01");
    let twice = [("traceparent", good.as_str()); 2];
    connection.request("GET", "/items/1", &twice, b"")?;
    let ended = agent.stop()?;
    assert_eq!(ended.spans.len(), malformed.len() + 1);
    for span in &ended.spans {
        span.assert_root();
        assert_ne!(span.trace_id, TRACE);
        assert_eq!((span.flags, span.trace_state.as_str()), (3, ""));
    }
    Ok(())
}

#[test]
fn a_context_that_the_application_sends_is_its_client_spans() -> Result<()> {
    let downstream = Service::uvicorn("downstream").start()?;
    let caller = format!("00-{TRACE}-{CALLER}-01");
    for (library, service) in servers() {
        let app = service.downstream(&downstream).start()?;
        let target = format!("/downstream?client={library}&traceparent=00-{TRACE}-{OWN}-01");
        // As its own SDK would: the same trace, a span of its own.
        let headers = [("traceparent", caller.as_str())];
        let (_, ended) = traced(&app, &downstream, &target, &headers).context(library)?;
        let (server, client, other) = three(&ended.spans);
        assert_place(server, TRACE, Some(CALLER), true, 1);
        assert_place(client, TRACE, Some(&server.span_id), false, 1);
        assert_eq!(client.span_id, OWN, "{library}");
        assert_place(other, TRACE, Some(OWN), true, 1);
        assert_eq!(ended.counters.get("spans.client.id_adopted"), 1);

        // Of another trace than the request's: no span may have its parent in
        // another trace.
        let (_, ended) = traced(&app, &downstream, &target, &[]).context(library)?;
        let (server, client, other) = three(&ended.spans);
        server.assert_root();
        assert_place(client, TRACE, None, false, 1);
        assert_eq!(client.span_id, OWN, "{library}");
        assert_place(other, TRACE, Some(OWN), true, 1);
        assert_eq!(ended.counters.get("spans.no_parent.other_trace"), 1);
    }
    Ok(())
}

#[test]
fn a_forwarded_context_stays_its_callers() -> Result<()> {
    let downstream = Service::uvicorn("downstream").start()?;
    let caller = format!("00-{TRACE}-{CALLER}-01");
    for (library, service) in servers() {
        let app = service.downstream(&downstream).start()?;
        let target = format!("/downstream?client={library}&traceparent=forward");
        let headers = [("traceparent", caller.as_str()), ("tracestate", "a=1")];
        let (_, ended) = traced(&app, &downstream, &target, &headers).context(library)?;
        let (server, client, other) = three(&ended.spans);
        assert_place(server, TRACE, Some(CALLER), true, 1);
        assert_place(client, TRACE, Some(&server.span_id), false, 1);
        assert_ne!(client.span_id, CALLER, "{library}");
        // The wire says so: the caller's id went through.
        assert_place(other, TRACE, Some(CALLER), true, 1);
        assert_eq!(other.trace_state, "a=1");
        assert_eq!(ended.counters.get("spans.client.id_not_adopted"), 1);
    }
    Ok(())
}

// === Addresses and secrets ===

#[test]
fn proxies_tell_of_the_original_request() -> Result<()> {
    let app = Service::gunicorn("flask_app").start()?;
    let agent = Agent::attach_without_frames(&app.pids())?;
    let mut connection = app.connect()?;
    // Headers; client.address, url.scheme, server.address, server.port.
    type Case<'a> = (&'a [(&'a str, &'a str)], [&'a str; 3], Option<u16>);
    let own = Some(app.port());
    let cases: [Case<'_>; 5] = [
        (&[], ["127.0.0.1", "http", "127.0.0.1"], own),
        (
            &[
                ("X-Forwarded-For", "203.0.113.7, 10.0.0.1"),
                ("X-Forwarded-Proto", "https"),
                ("X-Forwarded-Host", "shop.example:8443, inner"),
            ],
            ["203.0.113.7", "https", "shop.example"],
            Some(8443),
        ),
        (
            &[(
                "Forwarded",
                "for=\"[2001:db8::1]:4711\";proto=https;host=example.org, for=10.0.0.1",
            )],
            ["2001:db8::1", "https", "example.org"],
            None,
        ),
        (
            &[
                ("Forwarded", "for=192.0.2.60"),
                ("X-Forwarded-For", "203.0.113.7"),
            ],
            ["192.0.2.60", "http", "127.0.0.1"],
            own,
        ),
        (
            &[("X-Forwarded-For", "unknown"), ("User-Agent", "mozilla/5")],
            ["127.0.0.1", "http", "127.0.0.1"],
            own,
        ),
    ];
    for (idx, (headers, ..)) in cases.iter().enumerate() {
        connection.request("GET", &format!("/items/{idx}"), headers, b"")?;
    }
    let ended = agent.stop()?;
    for (idx, (headers, [client, scheme, server], port)) in cases.iter().enumerate() {
        let path = format!("/items/{idx}");
        let span = only(&ended.spans, Kind::Server, &path);
        let mut expected = json!({
            "http.request.method": "GET",
            "http.request.body.size": 0,
            "http.response.status_code": 200,
            "http.response.body.size": span.number("http.response.body.size"),
            "url.scheme": scheme,
            "url.path": path,
            "server.address": server,
            "client.address": client,
            "network.peer.address": "127.0.0.1",
            "network.peer.port": connection.port(),
            "network.protocol.version": "1.1",
        });
        if let Some(port) = port {
            expected["server.port"] = json!(port);
        }
        if let Some((_, agent)) = headers.iter().find(|(name, _)| *name == "User-Agent") {
            expected["user_agent.original"] = json!(agent);
        }
        span.assert_attributes(&expected);
    }
    Ok(())
}

#[test]
fn secrets_of_urls_are_hidden() -> Result<()> {
    const KEYS: [&str; 7] = [
        "X-Amz-Signature",
        "X-Amz-Credential",
        "X-Amz-Security-Token",
        "AWSAccessKeyId",
        "Signature",
        "sig",
        "X-Goog-Signature",
    ];
    let downstream = Service::uvicorn("downstream").start()?;
    let query = |value: &str| {
        let pairs = KEYS.map(|key| format!("{key}={value}"));
        format!("open=1&{}&last", pairs.join("&"))
    };
    for (library, service) in servers() {
        let app = service.downstream(&downstream).start()?;
        let agent = Agent::attach_without_frames(&app.pids())?;
        let mut connection = app.connect()?;
        connection.get(&format!("/items/1?{}", query("s3cret")))?;
        // The same towards the service that it calls.
        let url = downstream.url(&format!("/?{}", query("s3cret")));
        let escaped = url
            .replace('?', "%3F")
            .replace('&', "%26")
            .replace('=', "%3D");
        connection.get(&format!("/downstream?client={library}&url={escaped}"))?;
        // A target as proxies get it, with credentials.
        let absolute =
            "GET http://ann:s3cret@shop.example:81/items/2 HTTP/1.1\r\nHost: h\r\n\r\n".to_owned();
        connection.send(absolute)?;
        connection.response(false)?;
        let ended = agent.stop()?;
        assert_eq!(ended.spans.len(), 4, "{library}: {}", brief(&ended.spans));
        let span = only(&ended.spans, Kind::Server, "/items/1");
        assert_eq!(span.text("url.query"), query("REDACTED"));
        let span = only(&ended.spans, Kind::Client, "REDACTED");
        let shown = downstream.url(&format!("/?{}", query("REDACTED")));
        let full = span.text("url.full");
        // Libraries differ in how they write a key without a value.
        let full = full.replace("&last=&", "&last&");
        assert_eq!(full, format!("{shown}&id=none&call=0"), "{library}");
        let span = only(&ended.spans, Kind::Server, "/items/2");
        assert_eq!(span.text("server.address"), "shop.example");
        assert_eq!(span.number("server.port"), Some(81));
        for span in &ended.spans {
            if !span.target().contains("/downstream") {
                assert!(!format!("{span:?}").contains("s3cret"), "{span:#?}");
            }
        }
    }
    Ok(())
}
