//! HTTP/1.1 by raw sockets: bytes go out as the test wrote them, and answers
//! are read by their framing.

use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};

use crate::process::PATIENCE;
use crate::tls::{self, TlsStream};

/// Where a service listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// IP address and port.
    Tcp(SocketAddr),
    /// The path of a Unix socket.
    Unix(PathBuf),
    /// IP address and port, with TLS.
    Tls(SocketAddr),
}

/// A connection of the test's own.
pub struct Connection {
    stream: BufReader<Stream>,
    host: String,
}

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Response {
    /// Status code.
    pub status: u16,
    /// Names in lower case, and values.
    pub headers: Vec<(String, String)>,
    /// The body, without chunk framing.
    pub body: Vec<u8>,
}

impl Connection {
    /// Connects; reads and writes fail after [`PATIENCE`].
    pub fn open(address: &Address) -> Result<Self> {
        let stream = match address {
            Address::Tcp(address) => Stream::Tcp(tcp(address)?),
            Address::Tls(address) => Stream::Tls(Box::new(tls::connect(tcp(address)?)?)),
            Address::Unix(path) => {
                let stream = UnixStream::connect(path)?;
                stream.set_read_timeout(Some(PATIENCE))?;
                stream.set_write_timeout(Some(PATIENCE))?;
                Stream::Unix(stream)
            }
        };
        let host = match address {
            Address::Tcp(address) | Address::Tls(address) => address.to_string(),
            Address::Unix(_) => "localhost".to_owned(),
        };
        Ok(Self {
            stream: BufReader::new(stream),
            host,
        })
    }

    /// The test's own port, or 0.
    pub fn port(&self) -> u16 {
        match self.stream.get_ref() {
            Stream::Tcp(stream) => stream.local_addr().map_or(0, |address| address.port()),
            Stream::Tls(stream) => {
                let address = stream.sock.local_addr();
                address.map_or(0, |address| address.port())
            }
            Stream::Unix(_) => 0,
        }
    }

    /// Sends bytes as they are.
    pub fn send(&mut self, bytes: impl AsRef<[u8]>) -> Result<()> {
        Ok(self.stream.get_mut().write_all(bytes.as_ref())?)
    }

    /// Sends no more; the other side reads the end.
    pub fn finish(&mut self) -> Result<()> {
        match self.stream.get_ref() {
            Stream::Tcp(stream) => stream.shutdown(Shutdown::Write)?,
            Stream::Tls(stream) => stream.sock.shutdown(Shutdown::Write)?,
            Stream::Unix(stream) => stream.shutdown(Shutdown::Write)?,
        }
        Ok(())
    }

    /// `GET` with nothing but a `Host`.
    pub fn get(&mut self, target: &str) -> Result<Response> {
        self.request("GET", target, &[], b"")
    }

    /// A request and its answer. A body comes with its length.
    pub fn request(
        &mut self,
        method: &str,
        target: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> Result<Response> {
        let head = self.head(method, target, headers, body.len());
        self.send([head.as_bytes(), body].concat())?;
        self.response(method == "HEAD")
    }

    /// The head of such a request.
    pub fn head(
        &self,
        method: &str,
        target: &str,
        headers: &[(&str, &str)],
        body: usize,
    ) -> String {
        let mut head = format!("{method} {target} HTTP/1.1\r\nHost: {}\r\n", self.host);
        for (name, value) in headers {
            let _infallible = write!(head, "{name}: {value}\r\n");
        }
        if body > 0 {
            let _infallible = write!(head, "Content-Length: {body}\r\n");
        }
        head + "\r\n"
    }

    /// Reads the next answer; one to `HEAD` has no body.
    pub fn response(&mut self, to_head: bool) -> Result<Response> {
        let (status, headers) = self.response_head()?;
        let mut body = Vec::new();
        let find = |wanted: &str| {
            let found = headers.iter().find(|(name, _)| name == wanted);
            found.map(|(_, value)| value.as_str())
        };
        if to_head || status < 200 || status == 204 || status == 304 {
            // Nothing follows.
        } else if find("transfer-encoding") == Some("chunked") {
            self.chunks(&mut body)?;
        } else if let Some(length) = find("content-length") {
            body.resize(length.parse()?, 0);
            self.stream.read_exact(&mut body)?;
        } else {
            self.stream.read_to_end(&mut body)?;
        }
        Ok(Response {
            status,
            headers,
            body,
        })
    }

    /// Reads the next answer's status and headers only.
    pub fn response_head(&mut self) -> Result<(u16, Vec<(String, String)>)> {
        let line = self.line()?;
        let status = line.split(' ').nth(1).and_then(|code| code.parse().ok());
        let status = status.with_context(|| format!("no status line: {line:?}"))?;
        let mut headers = Vec::new();
        loop {
            let line = self.line()?;
            match line.split_once(':') {
                Some((name, value)) => {
                    headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
                }
                None => return Ok((status, headers)),
            }
        }
    }

    /// Reads so many bytes.
    pub fn read(&mut self, count: usize) -> Result<Vec<u8>> {
        let mut bytes = vec![0; count];
        self.stream.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    /// Reads until the other side closes; a reset is an end too.
    pub fn read_to_end(&mut self) -> Vec<u8> {
        let mut bytes = Vec::new();
        // What came before an error is kept.
        let _end = self.stream.read_to_end(&mut bytes);
        bytes
    }

    fn chunks(&mut self, body: &mut Vec<u8>) -> Result<()> {
        loop {
            let line = self.line()?;
            let size = usize::from_str_radix(line.split(';').next().unwrap_or_default(), 16)
                .with_context(|| format!("no chunk size: {line:?}"))?;
            let from = body.len();
            body.resize(from + size, 0);
            self.stream.read_exact(&mut body[from..])?;
            self.line()?;
            if size == 0 {
                return Ok(());
            }
        }
    }

    /// A line without its end.
    fn line(&mut self) -> Result<String> {
        let mut line = Vec::new();
        self.stream.read_until(b'\n', &mut line)?;
        if line.pop() != Some(b'\n') {
            bail!("the connection ended in the middle of a head");
        }
        if line.last() == Some(&b'\r') {
            line.pop();
        }
        Ok(String::from_utf8_lossy(&line).into_owned())
    }
}

impl Response {
    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
    Tls(Box<TlsStream>),
}

fn tcp(address: &SocketAddr) -> Result<TcpStream> {
    let stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

impl Read for Stream {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.read(buffer),
            Self::Unix(stream) => stream.read(buffer),
            Self::Tls(stream) => stream.read(buffer),
        }
    }
}

impl Write for Stream {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.write(bytes),
            Self::Unix(stream) => stream.write(bytes),
            Self::Tls(stream) => {
                let written = stream.write(bytes)?;
                stream.flush()?;
                Ok(written)
            }
        }
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
