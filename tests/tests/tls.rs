//! Live TLS: what the spans of both sides say, and sessions and libraries that
//! are older or younger than the agent. Where calls are placed under load is
//! told by the table in `attribution`.
//!
//! `cargo xtask test` runs it; it needs root.

use std::process::Command;

use anyhow::{Context, Result};
use otel_ebpf_tests::agent::Agent;
use otel_ebpf_tests::app::{App, Service};
use otel_ebpf_tests::client::Connection;
use otel_ebpf_tests::process::{Group, PATIENCE, path_from, wait_for};
use otel_ebpf_tests::trace::{Kind, brief, matching, only};
use serde_json::json;

/// Servers with the clients that their application has: on the event loop
/// with memory buffers between TLS and the socket, on threads without.
fn servers() -> [(Service, &'static [&'static str]); 3] {
    let all = &["httpx", "aiohttp", "requests", "urllib3"];
    [
        (Service::uvicorn("fastapi_app"), all),
        (Service::uvloop("fastapi_app"), all),
        (Service::gunicorn("flask_app"), &["requests", "urllib3"]),
    ]
}

fn downstream() -> Result<App> {
    Service::uvloop("downstream")
        .arguments(&["--no-access-log"])
        .tls()
        .start()
}

fn get(connection: &mut Connection, target: &str) -> Result<String> {
    let answer = connection.get(target)?;
    assert_eq!(answer.status, 200, "{target}: {}", answer.text());
    Ok(answer.text())
}

#[test]
fn both_sides_tell_the_scheme_and_the_peer() -> Result<()> {
    let downstream = downstream()?;
    for (service, clients) in servers() {
        let app = service.tls().downstream(&downstream).start()?;
        let mut agent = Agent::attach(&[app.server_pid()])?;
        let mut connection = app.connect()?;
        for client in clients {
            get(
                &mut connection,
                &format!("/downstream?client={client}&n=1&id={client}"),
            )?;
        }
        agent.wait_for_spans(2 * clients.len())?;
        let ended = agent.stop()?;
        assert_eq!(
            ended.spans.len(),
            2 * clients.len(),
            "{}",
            brief(&ended.spans)
        );
        ended.counters.assert_nothing_lost();
        for client in clients {
            let server = only(&ended.spans, Kind::Server, &format!("id={client}"));
            let call = only(&ended.spans, Kind::Client, &format!("id={client}"));
            call.assert_child_of(server);
            for (span, key, expected) in [
                (server, "url.scheme", json!("https")),
                (server, "http.response.status_code", json!(200)),
                (server, "server.port", json!(app.port())),
                (server, "network.peer.address", json!("127.0.0.1")),
                (server, "network.peer.port", json!(connection.port())),
                (
                    call,
                    "url.full",
                    json!(downstream.url(&format!("/?id={client}&call=0"))),
                ),
                (call, "http.response.status_code", json!(200)),
                (call, "server.address", json!("127.0.0.1")),
                (call, "server.port", json!(downstream.port())),
                (call, "network.peer.address", json!("127.0.0.1")),
                (call, "network.peer.port", json!(downstream.port())),
            ] {
                assert_eq!(span.attributes.get(key), Some(&expected), "{span:#?}");
            }
        }
    }
    Ok(())
}

/// A body that fills many records, one way and the other.
#[test]
fn long_bodies_in_many_records() -> Result<()> {
    for service in [
        Service::uvicorn("fastapi_app"),
        Service::uvloop("fastapi_app"),
        Service::gunicorn("flask_app"),
    ] {
        let app = service.tls().start()?;
        let mut agent = Agent::attach_without_frames(&[app.server_pid()])?;
        let mut connection = app.connect()?;
        let body = vec![b'x'; 300_000];
        for _ in 0..2 {
            let answer = connection.request("POST", "/echo", &[], &body)?;
            assert_eq!((answer.status, answer.body.len()), (200, body.len()));
        }
        agent.wait_for_spans(2)?;
        let ended = agent.stop()?;
        ended.counters.assert_nothing_lost();
        let spans = matching(&ended.spans, Kind::Server, "/echo");
        assert_eq!(spans.len(), 2, "{}", brief(&ended.spans));
        for span in spans {
            for key in ["http.request.body.size", "http.response.body.size"] {
                assert_eq!(span.number(key), Some(300_000), "{span:#?}");
            }
        }
    }
    Ok(())
}

/// Sessions that are older than the attach are joined with their connections
/// when they next receive; what is written before that is held until then.
#[test]
fn sessions_that_are_older_than_the_agent() -> Result<()> {
    let downstream = downstream()?;
    for (service, clients) in servers() {
        let app = service.tls().downstream(&downstream).start()?;
        let ids = ["first", "second"];
        let target =
            |client: &str, id: &str| format!("/downstream?client={client}&n=1&id={client}-{id}");
        let mut connection = app.connect()?;
        for client in clients {
            get(&mut connection, &target(client, "before"))?;
        }
        let mut agent = Agent::attach_without_frames(&[app.server_pid()])?;
        for client in clients {
            for id in ids {
                get(&mut connection, &target(client, id))?;
            }
        }
        let count = 2 * ids.len() * clients.len();
        agent.wait_for_spans(count)?;
        let ended = agent.stop()?;
        assert_eq!(ended.spans.len(), count, "{}", brief(&ended.spans));
        ended.counters.assert_nothing_lost();
        for client in clients {
            for id in ids {
                let id = format!("id={client}-{id}");
                let server = only(&ended.spans, Kind::Server, &id);
                only(&ended.spans, Kind::Client, &id).assert_child_of(server);
            }
        }
    }
    Ok(())
}

/// HTTP/2, which client and server agree on inside TLS, is not taken for
/// anything else, and the next connection's requests are told as ever.
#[test]
fn http2_inside_is_given_up() -> Result<()> {
    const CLIENT: &str = "import httpx, sys\n\
        client = httpx.Client(http2=True)\n\
        for number in range(5):\n\
        \x20   answer = client.get(f'{sys.argv[1]}?id=second-{number}')\n\
        \x20   assert (answer.status_code, answer.http_version) == (200, 'HTTP/2'), answer\n";
    let default = "../target/python/frameworks/bin/python";
    let python = path_from("OTEL_EBPF_FRAMEWORKS_PYTHON", default)?;
    let app = Service::hypercorn("servers.asgi_app")
        .python(&python)
        .tls()
        .start()?;
    let mut agent = Agent::attach_without_frames(&[app.server_pid()])?;
    let mut command = Command::new(&python);
    command
        .args(["-c", CLIENT, &app.url("/")])
        .env("SSL_CERT_FILE", app.certificate());
    let mut client = Group::spawn("a client", &mut command)?;
    let status = client.wait(PATIENCE)?;
    assert!(status.success(), "{}", client.log());
    get(&mut app.connect()?, "/?id=first")?;
    agent.wait_for_spans(1)?;
    let ended = agent.stop()?;
    only(&ended.spans, Kind::Server, "id=first");
    assert_eq!(ended.spans.len(), 1, "{}", brief(&ended.spans));
    for counter in ["stream.muted.unknown_protocol", "spans.server"] {
        assert_eq!(ended.counters.get(counter), 1, "{:#?}", ended.counters);
    }
    Ok(())
}

#[test]
fn a_library_that_is_loaded_later() -> Result<()> {
    let downstream = downstream()?;
    let app = Service::command("late", &["late_tls.py", "{host}", "{port}"])
        .downstream(&downstream)
        .start()?;
    let agent = Agent::attach_without_frames(&[app.server_pid()])?;
    let mut connection = app.connect()?;
    let mut number = 0;
    wait_for("a call over TLS", PATIENCE, || {
        number += 1;
        get(&mut connection, &format!("/secure?id=late-{number}"))?;
        let spans = agent.spans()?;
        Ok((!matching(&spans, Kind::Client, "id=late-").is_empty()).then_some(()))
    })?;
    let ended = agent.stop()?;
    let calls = matching(&ended.spans, Kind::Client, "id=late-");
    let call = calls.first().context("a call")?;
    let id = call
        .text("url.full")
        .rsplit('?')
        .next()
        .context("a query")?;
    let servers = matching(&ended.spans, Kind::Server, "/secure");
    let server = servers
        .iter()
        .find(|server| server.text("url.query") == id)
        .context("its request")?;
    call.assert_child_of(server);
    assert!(call.text("url.full").starts_with("https://"), "{call:#?}");
    Ok(())
}
