//! A small blocking HTTP/1.1 client on one kept-alive connection.
//!
//! It sends requests without a body and reads answers of any framing; it is
//! what drives the demo and the benchmark, where a client library would cost
//! more than the service.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// Longer than any request of the tasks takes.
const TIMEOUT: Duration = Duration::from_secs(30);
/// No service of ours answers with more.
const MAX_BODY: u64 = 64 << 20;
/// No header line of ours is longer.
const MAX_LINE: u64 = 64 << 10;

/// A client of one server; connects when needed.
pub(crate) struct Client {
    address: SocketAddr,
    connection: Option<BufReader<TcpStream>>,
    line: String,
}

impl Client {
    pub(crate) fn new(address: SocketAddr) -> Self {
        Self {
            address,
            connection: None,
            line: String::new(),
        }
    }

    /// Sends a request and reads the whole answer; returns its status. A kept
    /// connection that the server closed meanwhile is replaced.
    pub(crate) fn send(&mut self, method: &str, path: &str) -> io::Result<u16> {
        if let Some(kept) = self.connection.take() {
            match self.send_on(kept, method, path) {
                Err(error) if was_closed(&error) => {}
                sent => return sent,
            }
        }
        let fresh = self.connect()?;
        self.send_on(fresh, method, path)
    }

    fn send_on(
        &mut self,
        mut connection: BufReader<TcpStream>,
        method: &str,
        path: &str,
    ) -> io::Result<u16> {
        let request = format!(
            "{method} {path} HTTP/1.1\r\nhost: {}\r\ncontent-length: 0\r\n\r\n",
            self.address
        );
        connection.get_mut().write_all(request.as_bytes())?;
        let answer = read_answer(&mut connection, &mut self.line)?;
        if answer.keep_alive {
            self.connection = Some(connection);
        }
        Ok(answer.status)
    }

    fn connect(&self) -> io::Result<BufReader<TcpStream>> {
        let stream = TcpStream::connect_timeout(&self.address, TIMEOUT)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(TIMEOUT))?;
        stream.set_write_timeout(Some(TIMEOUT))?;
        Ok(BufReader::new(stream))
    }
}

#[derive(Debug, PartialEq, Eq)]
struct Answer {
    status: u16,
    keep_alive: bool,
}

fn read_answer(from: &mut impl BufRead, line: &mut String) -> io::Result<Answer> {
    read_line(from, line)?;
    let status = line
        .split(' ')
        .nth(1)
        .and_then(|status| status.parse().ok())
        .ok_or_else(|| wrong("no status line"))?;
    let (mut length, mut chunked, mut close) = (None, false, line.starts_with("HTTP/1.0"));
    loop {
        read_line(from, line)?;
        if line.is_empty() {
            break;
        }
        let Some((name, value)) = line.split_once(':') else {
            return Err(wrong("a header without a colon"));
        };
        let value = value.trim();
        if name.eq_ignore_ascii_case("content-length") {
            length = Some(value.parse().map_err(|_| wrong("no content length"))?);
        } else if name.eq_ignore_ascii_case("transfer-encoding") {
            chunked = value.eq_ignore_ascii_case("chunked");
        } else if name.eq_ignore_ascii_case("connection") {
            close |= value.eq_ignore_ascii_case("close");
        }
    }
    match (status, chunked, length) {
        (204 | 304, _, _) => {}
        (_, true, _) => skip_chunks(from, line)?,
        (_, false, Some(length)) => skip(from, length)?,
        (_, false, None) => {
            close = true;
            io::copy(&mut from.take(MAX_BODY), &mut io::sink())?;
        }
    }
    Ok(Answer {
        status,
        keep_alive: !close,
    })
}

fn skip_chunks(from: &mut impl BufRead, line: &mut String) -> io::Result<()> {
    loop {
        read_line(from, line)?;
        let digits = line.split(';').next().unwrap_or_default().trim();
        let length = u64::from_str_radix(digits, 16).map_err(|_| wrong("no chunk size"))?;
        skip(from, length)?;
        read_line(from, line)?;
        if length == 0 {
            return Ok(());
        }
    }
}

fn skip(from: &mut impl BufRead, length: u64) -> io::Result<()> {
    if length > MAX_BODY {
        return Err(wrong("a body over 64 MiB"));
    }
    if io::copy(&mut from.take(length), &mut io::sink())? < length {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(())
}

fn read_line(from: &mut impl BufRead, line: &mut String) -> io::Result<()> {
    line.clear();
    from.take(MAX_LINE).read_line(line)?;
    if !line.ends_with('\n') {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    line.truncate(line.trim_end().len());
    Ok(())
}

fn was_closed(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionReset, UnexpectedEof};
    matches!(error.kind(), BrokenPipe | ConnectionReset | UnexpectedEof)
}

fn wrong(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(bytes: &[u8], status: u16, keep_alive: bool) {
        let mut rest = bytes;
        let answer = read_answer(&mut rest, &mut String::new()).unwrap();
        assert_eq!(answer, Answer { status, keep_alive });
        assert!(rest.is_empty(), "{} bytes left", rest.len());
    }

    #[test]
    fn reads_a_body_with_a_length() {
        check(
            b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc",
            200,
            true,
        );
    }

    #[test]
    fn reads_chunks_to_the_last() {
        check(
            b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
            200,
            true,
        );
    }

    #[test]
    fn reads_to_the_end_without_a_length() {
        check(b"HTTP/1.1 500 No\r\n\r\nabc", 500, false);
    }

    #[test]
    fn a_204_has_no_body() {
        check(b"HTTP/1.1 204 No Content\r\n\r\n", 204, true);
    }

    #[test]
    fn a_cut_answer_is_an_error_everywhere() {
        let whole = b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc";
        for end in 0..whole.len() {
            let mut part = &whole[..end];
            assert!(read_answer(&mut part, &mut String::new()).is_err(), "{end}");
        }
    }
}
