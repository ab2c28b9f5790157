//! Live tests of an agent whose receiver is down, silent, refuses or talks
//! garbage while a service is traced. They need what the tests of `cli` need.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use otel_ebpf_tests::app::free_port;
use otel_ebpf_tests::program::{
    PATIENCE, Program, agent, counter, refuses, request, server, wait_until,
};
use otel_ebpf_tests::receiver::{Options, Receiver};

/// How long the agent waits for its receiver.
const TIMEOUT: Duration = Duration::from_secs(2);

/// Something that listens where a receiver should, gives every connection the
/// same bytes after its first, and stops when dropped.
struct Nuisance {
    port: u16,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<usize>>,
}

impl Nuisance {
    /// Without an answer it keeps connections open and silent.
    fn start(answer: Option<&'static [u8]>) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("binds");
        let port = listener.local_addr().expect("bound").port();
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let mut silent = Vec::new();
            let mut connections = 0;
            while let Ok((mut stream, _)) = listener.accept() {
                if stopped.load(Ordering::Relaxed) {
                    break;
                }
                connections += 1;
                let Some(answer) = answer else {
                    silent.push(stream);
                    continue;
                };
                let mut head = [0; 512];
                _ = stream.set_read_timeout(Some(PATIENCE));
                _ = stream.read(&mut head);
                _ = stream.write_all(answer);
            }
            connections
        });
        Self {
            port,
            stop,
            thread: Some(thread),
        }
    }

    /// Stops it; returns how many connections came.
    fn stop(mut self) -> usize {
        self.end()
    }

    fn end(&mut self) -> usize {
        let Some(thread) = self.thread.take() else {
            return 0;
        };
        self.stop.store(true, Ordering::Relaxed);
        _ = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port));
        thread.join().unwrap_or_default()
    }
}

impl Drop for Nuisance {
    fn drop(&mut self) {
        self.end();
    }
}

/// Traces a service while `answer` is all that its receiver says, then lets a
/// real receiver take the port: the service never waits, what is lost is
/// counted, memory stays where it is, and spans arrive again.
fn recovers(nuisance: Option<Option<&'static [u8]>>) {
    let (service, port) = server();
    let nuisance = nuisance.map(Nuisance::start);
    let receiver_port = match &nuisance {
        Some(nuisance) => nuisance.port,
        // Free, for now: nobody listens there.
        None => free_port(Ipv4Addr::LOCALHOST.into())
            .expect("a port")
            .port(),
    };
    let endpoint = format!("http://127.0.0.1:{receiver_port}");
    let pid = service.pid().to_string();
    let running = Program::start(&mut agent(&[
        "--stats",
        "--pid",
        &pid,
        "--otlp-endpoint",
        &endpoint,
        "--otlp-timeout",
        &TIMEOUT.as_millis().to_string(),
        "--bsp-schedule-delay",
        "50",
        "--bsp-max-queue-size",
        "64",
        "--bsp-max-export-batch-size",
        "32",
    ]));
    running.err.line_with("tracing ");
    for _ in 0..100 {
        request(port);
    }
    let before = running.rss_kib();
    let mut took: Vec<_> = (0..1000).map(|_| request(port)).collect();
    took.sort_unstable();
    // A wait for the receiver would last its timeout, and come again with each
    // batch; a busy machine may hold a request up now and then.
    let slow = took[took.len() - 10];
    assert!(slow < TIMEOUT / 2, "{:?}", &took[took.len() - 10..]);
    running.err.line_with("export.dropped.");
    let grown = running.rss_kib().saturating_sub(before);
    assert!(grown < 8 << 10, "{grown} KiB more");

    if let Some(nuisance) = nuisance {
        assert!(nuisance.stop() > 0, "nobody connected");
    }
    let receiver = Receiver::with(&Options {
        http_port: receiver_port,
        ..Options::default()
    })
    .expect("takes the port");
    wait_until("spans after the receiver came back", || {
        request(port);
        !receiver.spans().is_empty()
    });
    running.terminate();
    let ended = running.ended();
    refuses(&ended, 0, &["summary lost="]);
    let value = |name| counter(&ended.err, name);
    let lost = value("export.dropped.queue_full")
        + value("export.dropped.gave_up")
        + value("export.dropped.refused")
        + value("export.dropped.shutdown");
    assert!(lost > 0, "{ended:#?}");
    assert_eq!(
        value("export.spans"),
        lost + value("export.exported"),
        "{ended:#?}"
    );
    assert_eq!(
        value("export.exported"),
        receiver.spans().len() as u64,
        "{ended:#?}"
    );
}

#[test]
fn a_receiver_that_is_down_costs_spans_only() {
    recovers(None);
}

#[test]
fn a_receiver_that_is_silent_costs_spans_only() {
    recovers(Some(None));
}

#[test]
fn a_receiver_that_refuses_costs_spans_only() {
    recovers(Some(Some(
        b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\nconnection: close\r\n\r\n",
    )));
}

#[test]
fn a_receiver_that_answers_garbage_costs_spans_only() {
    recovers(Some(Some(
        b"\x16\x03\x01 not what you think \x00\xff\r\n\r\n",
    )));
}
