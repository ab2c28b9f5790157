//! HTTP/1.0 and HTTP/1.1.
use super::{Connection, Parser, Protocol, Verdict};
/// Longest head that is kept, bytes.
pub const MAX_HEAD: usize = 64 * 1024;
/// HTTP/1.
pub const PROTOCOL: Protocol = Protocol { name: "http1", detect, parser };
fn detect(_first: &[u8]) -> Verdict { Verdict::Unsure }
fn parser(_connection: &Connection) -> Box<dyn Parser> { unimplemented!() }
