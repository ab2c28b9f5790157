//! Tells PostgreSQL by the first bytes that a client sends.
//!
//! A new connection begins with a start-up message. On one that is older than
//! the attach only what cannot be anything else counts: a query that begins
//! with a word of SQL, or a whole series of messages up to its `Sync`, each of
//! them built as it must be.

use super::message::{number, short, string};
use crate::protocol::reader::Reader;
use crate::protocol::sql;
use crate::protocol::{Side, Verdict};

/// Code of a request for TLS.
pub(super) const SSL_REQUEST: u32 = 80_877_103;
/// Code of a request for GSSAPI encryption.
pub(super) const GSSENC_REQUEST: u32 = 80_877_104;
/// Code of a request to cancel a query of another connection.
pub(super) const CANCEL_REQUEST: u32 = 80_877_102;

pub(super) fn detect(first: &[u8]) -> Verdict {
    match first {
        [] => Verdict::Unsure,
        [0, ..] => startup(first),
        [b'Q', ..] => query(first),
        [b'P' | b'B' | b'E' | b'D' | b'C', ..] => series(first),
        _ => Verdict::No,
    }
}

/// A start-up message of version 3, or what may precede it.
fn startup(first: &[u8]) -> Verdict {
    let mut reader = Reader::new(first);
    let Some(length) = number(&mut reader) else {
        return Verdict::Unsure;
    };
    if !(8..=10_000).contains(&length) {
        return Verdict::No;
    }
    let Some(code) = number(&mut reader) else {
        return Verdict::Unsure;
    };
    let known = match code {
        SSL_REQUEST | GSSENC_REQUEST => length == 8,
        CANCEL_REQUEST => (16..=268).contains(&length),
        version => {
            let user = |rest: &[u8]| {
                let expected = b"user\0";
                let known = rest.len().min(expected.len());
                rest.is_empty() || rest.get(..known) == expected.get(..known) || is_option(rest)
            };
            version >> 16 == 3 && version & 0xffff < 0x100 && user(reader.rest())
        }
    };
    match known {
        true => Verdict::Yes(Side::Request),
        false => Verdict::No,
    }
}

/// Options of a start-up message have names of letters and may come in any
/// order.
fn is_option(rest: &[u8]) -> bool {
    let mut reader = Reader::new(rest);
    let name = reader.take_while(|byte| byte.is_ascii_alphanumeric() || b"_.".contains(&byte));
    !name.is_empty() && matches!(reader.byte(), Some(0) | None)
}

/// A simple query.
fn query(first: &[u8]) -> Verdict {
    let mut reader = Reader::new(first);
    reader.byte();
    // Shorter than the header: it is of any kind.
    let Some(length) = number(&mut reader) else {
        return match first.get(1) {
            None | Some(0) => Verdict::Unsure,
            Some(_) => Verdict::No,
        };
    };
    if !(6..=1 << 28).contains(&length) {
        return Verdict::No;
    }
    let body = reader.take_up_to(u64::from(length - 4));
    let complete = body.len() as u64 == u64::from(length - 4);
    if !complete && body.len() < MIN_TEXT {
        return Verdict::Unsure;
    }
    let text = match body.split_last() {
        Some((0, text)) if complete => text,
        _ if complete => return Verdict::No,
        _ => body,
    };
    match !text.contains(&0) && sql::is_statement(text) {
        true => Verdict::Yes(Side::Request),
        false => Verdict::No,
    }
}

/// Bytes of a text that surely hold its first word.
const MIN_TEXT: usize = 64;

/// Messages of the extended protocol, up to the end of the bytes.
fn series(first: &[u8]) -> Verdict {
    let mut reader = Reader::new(first);
    let mut any = false;
    while let Some(kind) = reader.byte() {
        let Some(length) = number(&mut reader) else {
            return Verdict::No;
        };
        let Some(left) = length.checked_sub(4).filter(|left| *left < 1 << 28) else {
            return Verdict::No;
        };
        let available = reader.rest().len();
        let body = reader.take_up_to(u64::from(left));
        let whole = available >= left as usize;
        match kind {
            b'P' => {
                let Some(built) = is_parse(body, whole) else {
                    return Verdict::No;
                };
                // A statement's text says enough.
                any |= built;
                if !whole {
                    break;
                }
            }
            b'B' if whole && is_bind(body) => any = true,
            b'D' | b'C' if whole && is_named(body) => {}
            b'E' if whole && is_execute(body) => any = true,
            b'H' if left == 0 => {}
            b'S' if left == 0 && any && reader.is_empty() => return Verdict::Yes(Side::Request),
            _ => return Verdict::No,
        }
        if kind == b'P' && any {
            return Verdict::Yes(Side::Request);
        }
    }
    match any && matches!(first.first(), Some(b'P')) {
        true => Verdict::Yes(Side::Request),
        false => Verdict::No,
    }
}

/// Whether a `Parse` has a statement's text; none where it is built wrongly.
fn is_parse(body: &[u8], whole: bool) -> Option<bool> {
    let mut reader = Reader::new(body);
    string(&mut reader)?;
    let text = reader.take_while(|byte| byte != 0);
    let statement = sql::is_statement(text);
    if !whole {
        return Some(statement);
    }
    reader.byte()?;
    let types = short(&mut reader)?;
    reader.take(4 * usize::from(types))?;
    reader.is_empty().then_some(statement)
}

fn is_bind(body: &[u8]) -> bool {
    let mut reader = Reader::new(body);
    let built = (|| {
        string(&mut reader)?;
        string(&mut reader)?;
        let formats = short(&mut reader)?;
        reader.take(2 * usize::from(formats))?;
        for _ in 0..short(&mut reader)? {
            let length = number(&mut reader)?;
            if length != u32::MAX {
                reader.take(usize::try_from(length).ok()?)?;
            }
        }
        let formats = short(&mut reader)?;
        reader.take(2 * usize::from(formats))?;
        Some(())
    })();
    built.is_some() && reader.is_empty()
}

/// `Describe` and `Close`: of a statement or a portal, by name.
fn is_named(body: &[u8]) -> bool {
    let mut reader = Reader::new(body);
    let kind = reader.byte();
    matches!(kind, Some(b'S' | b'P')) && string(&mut reader).is_some() && reader.is_empty()
}

fn is_execute(body: &[u8]) -> bool {
    let mut reader = Reader::new(body);
    string(&mut reader).is_some() && number(&mut reader).is_some() && reader.is_empty()
}
