//! Messages that a process passes to the kernel in pieces (`sendmsg`,
//! `recvmsg`, `readv`, `writev`), one of them in more pieces than are looked
//! at, are traced as if they came in one.

use std::process::Command;

use anyhow::{Context, ensure};
use serde_json::Value;

/// A server and its client in one process: two requests on one connection.
/// The first answer has 25 pieces, the second request begins where it ends.
const PROGRAM: &str = r#"
import os, socket, threading

def read(connection, end):
    got = b""
    while not got.endswith(end):
        pieces = [bytearray(7), bytearray(0), bytearray(4096)]
        if end == b"\r\n\r\n":
            n = os.readv(connection.fileno(), pieces)
        else:
            n = connection.recvmsg_into(pieces)[0]
        assert n, got
        got += b"".join(pieces)[:n]
    return got

def serve(listener):
    connection, _ = listener.accept()
    for _ in range(2):
        read(connection, b"\r\n\r\n")
        head = [b"HTTP/1.1 ", b"200", b" OK\r\n", b"", b"Content-Length: 20\r\n\r\n"]
        os.writev(connection.fileno(), head + [b"."] * 20)

listener = socket.create_server(("127.0.0.1", 0))
server = threading.Thread(target=serve, args=(listener,))
server.start()
client = socket.create_connection(listener.getsockname())
for number in b"1", b"2":
    client.sendmsg([b"GET /in/", b"pieces/" + number, b" HTTP/1.1\r\n", b"Host: x\r\n\r\n"])
    read(client, b"." * 20)
server.join()
"#;

fn attribute<'a>(span: &'a Value, name: &str) -> Option<&'a Value> {
    let attributes = span["attributes"].as_array()?;
    let found = attributes.iter().find(|it| it["key"] == name)?;
    found["value"].as_object()?.values().next()
}

/// Kind, path or URL, and status of every span, in order.
fn spans(lines: &str) -> anyhow::Result<Vec<String>> {
    let mut found = Vec::new();
    for line in lines.lines() {
        let line: Value = serde_json::from_str(line).with_context(|| line.to_owned())?;
        for resource in line["resourceSpans"].as_array().into_iter().flatten() {
            for scope in resource["scopeSpans"].as_array().into_iter().flatten() {
                for span in scope["spans"].as_array().into_iter().flatten() {
                    let path = attribute(span, "url.path").or(attribute(span, "url.full"));
                    let path = path.and_then(Value::as_str).unwrap_or_default();
                    let path = path.find("/in/").map_or(path, |at| &path[at..]);
                    let status = attribute(span, "http.response.status_code");
                    let status = status.map(ToString::to_string).unwrap_or_default();
                    found.push(format!("{} {path} {status}", span["kind"]).replace('"', ""));
                }
            }
        }
    }
    found.sort();
    Ok(found)
}

#[test]
fn a_message_in_pieces_is_one_message() -> anyhow::Result<()> {
    let variable = |name: &str| {
        std::env::var_os(name).with_context(|| format!("{name} is not set; run cargo xtask test"))
    };
    let output = Command::new(variable("OTEL_EBPF_AGENT")?)
        .args(["--traces-exporter", "otlp/stdout", "run", "--"])
        .arg(variable("OTEL_EBPF_PYTHON")?)
        .args(["-c", PROGRAM])
        .output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{}: {said}", output.status);
    assert!(said.contains("lost=0"), "{said}");
    // 2 is a server's span, 3 a client's.
    assert_eq!(
        spans(&String::from_utf8(output.stdout)?)?,
        [
            "2 /in/pieces/1 200",
            "2 /in/pieces/2 200",
            "3 /in/pieces/1 200",
            "3 /in/pieces/2 200",
        ],
        "{said}"
    );
    Ok(())
}
