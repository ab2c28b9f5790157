//! A receiver of OTLP over HTTP that throws everything away and counts the
//! bytes.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;

use super::load::pin_to;

/// Longer heads than any exporter's end the connection.
const MAX_HEAD: u64 = 64 << 10;

/// An export response without a message: nothing was rejected.
const ANSWER: &[u8] =
    b"HTTP/1.1 200 OK\r\ncontent-type: application/x-protobuf\r\ncontent-length: 0\r\n\r\n";

/// The receiver; it ends when dropped.
pub(super) struct Sink {
    address: SocketAddr,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    bytes: AtomicU64,
    done: AtomicBool,
}

impl Sink {
    /// Listens on a free port, with its threads on the given core.
    pub(super) fn start(core: usize) -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared::default());
        let accepting = Arc::clone(&shared);
        thread::spawn(move || {
            // The benchmark noticed already if the core is not there.
            pin_to(core).ok();
            for stream in listener.incoming().map_while(Result::ok) {
                if accepting.done.load(Ordering::Relaxed) {
                    break;
                }
                let shared = Arc::clone(&accepting);
                // Threads inherit the core.
                thread::spawn(move || serve(&stream, &shared).ok());
            }
        });
        Ok(Self { address, shared })
    }

    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Bytes of bodies received so far.
    pub(super) fn bytes(&self) -> u64 {
        self.shared.bytes.load(Ordering::Relaxed)
    }

    /// Whether anything arrives within the limit.
    pub(super) fn wait_for_bytes(&self, limit: Duration) -> bool {
        let deadline = Instant::now() + limit;
        while self.bytes() == 0 && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(20));
        }
        self.bytes() > 0
    }
}

impl Drop for Sink {
    fn drop(&mut self) {
        self.shared.done.store(true, Ordering::Relaxed);
        // Wakes the accepting thread, which then sees that it is over.
        if let Ok(stream) = TcpStream::connect(self.address) {
            stream.shutdown(Shutdown::Both).ok();
        }
    }
}

fn serve(stream: &TcpStream, shared: &Shared) -> io::Result<()> {
    let mut reader = BufReader::new(stream);
    loop {
        let Some(length) = read_head(&mut reader)? else {
            return Ok(());
        };
        let read = io::copy(&mut reader.by_ref().take(length), &mut io::sink())?;
        shared.bytes.fetch_add(read, Ordering::Relaxed);
        let mut writer = stream;
        writer.write_all(ANSWER)?;
    }
}

/// Reads a request's head; returns the length of its body, or nothing at the
/// connection's end.
fn read_head(reader: &mut impl BufRead) -> io::Result<Option<u64>> {
    let mut head = reader.take(MAX_HEAD);
    let mut length = 0;
    let mut line = String::new();
    loop {
        line.clear();
        if head.read_line(&mut line)? == 0 {
            return Ok(None);
        }
        let text = line.trim_end();
        if text.is_empty() {
            return Ok(Some(length));
        }
        if let Some((name, value)) = text.split_once(':')
            && name.eq_ignore_ascii_case("content-length")
        {
            length = value
                .trim()
                .parse()
                .map_err(|_| io::Error::from(io::ErrorKind::InvalidData))?;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_each_request_and_counts_its_body() {
        let sink = Sink::start(0).unwrap();
        let mut stream = TcpStream::connect(sink.address()).unwrap();
        for _ in 0..2 {
            stream
                .write_all(b"POST /v1/traces HTTP/1.1\r\nContent-Length: 5\r\n\r\nhello")
                .unwrap();
            let mut answer = [0; ANSWER.len()];
            stream.read_exact(&mut answer).unwrap();
            assert_eq!(answer, ANSWER);
        }
        assert_eq!(sink.bytes(), 10);
    }
}
