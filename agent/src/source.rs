//! Reads the event ring and decodes records into [`Event`]s.
//!
//! The kernel side is trusted to write records of the agreed layout; lengths
//! and kinds are checked all the same, and a record that does not fit is
//! counted and skipped.

use std::ops::ControlFlow;
use std::os::fd::{AsFd, BorrowedFd};

use abi::record::{
    self, Close, Data, Frame, Open, Owner, Process, QUERY_NAME, Query, QueryEnd, Stack, TlsJoin,
    Traceback, Value, query_flag, stack_flag,
};
use aya::maps::{MapData, RingBuf};
use zerocopy::FromBytes;

use crate::python::StackEvent;

/// A decoded record.
#[derive(Debug)]
pub enum Event<'a> {
    /// Bytes went through a connection; with the captured ones.
    Data(Data, &'a [u8]),
    /// Bytes were written to a TLS session of no known connection.
    Held(Data, &'a [u8]),
    /// What becomes of them.
    Join(TlsJoin),
    /// A connection was opened.
    Open(Open),
    /// A connection was closed.
    Close(Close),
    /// A statement of a database in the process began.
    Query(Query),
    /// It ended; with the name of the database's file and its text.
    QueryEnd(QueryEnd, &'a [u8], &'a [u8]),
    /// A process forked, executed, ended or listened.
    Process(Process),
    /// Where a thread was in Python.
    Stack(StackEvent<'a>),
}

/// The reading end of the ring.
pub struct Source {
    ring: RingBuf<MapData>,
    /// Records that could not be decoded.
    pub undecodable: u64,
}

impl Source {
    pub(crate) fn new(ring: RingBuf<MapData>) -> Self {
        Self {
            ring,
            undecodable: 0,
        }
    }

    /// Hands up to `limit` waiting events to `take`, oldest first, until it
    /// breaks off; returns how many it took.
    pub fn drain(
        &mut self,
        limit: usize,
        mut take: impl FnMut(Event<'_>) -> ControlFlow<()>,
    ) -> usize {
        let mut count = 0;
        while count < limit {
            let Some(item) = self.ring.next() else {
                break;
            };
            count += 1;
            match decode(&item) {
                Some(event) => {
                    let query = begun(&event);
                    let mut flow = take(event);
                    if let Some(query) = query
                        && flow.is_continue()
                    {
                        flow = take(Event::Query(query));
                    }
                    if flow.is_break() {
                        break;
                    }
                }
                None => self.undecodable += 1,
            }
        }
        count
    }
}

impl AsFd for Source {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.ring.as_fd()
    }
}

/// The begin of a statement that the record of its stack stands for.
fn begun(event: &Event<'_>) -> Option<Query> {
    let Event::Stack(StackEvent { stack, .. }) = event else {
        return None;
    };
    (stack.flags & stack_flag::BEGINS != 0).then_some(Query {
        kind: record::kind::QUERY,
        rule: stack.rule,
        part: stack.flags >> stack_flag::PART_SHIFT,
        pad: 0,
        pid: stack.pid,
        tid: stack.tid,
        pad2: 0,
        id: stack.conn,
        at: stack.at,
        owner: stack.owner,
    })
}

/// Decodes one record; none if kind or length are wrong.
pub fn decode(bytes: &[u8]) -> Option<Event<'_>> {
    let (&kind, _) = bytes.split_first()?;
    match kind {
        record::kind::DATA | record::kind::TLS_HELD => {
            let (data, payload) = Data::read_from_prefix(bytes).ok()?;
            let captured = usize::try_from(data.captured).ok()?;
            if data.captured > data.len {
                return None;
            }
            let payload = payload.get(..captured)?;
            Some(match kind {
                record::kind::DATA => Event::Data(data, payload),
                _ => Event::Held(data, payload),
            })
        }
        record::kind::TLS_JOIN => Some(Event::Join(TlsJoin::read_from_prefix(bytes).ok()?.0)),
        record::kind::OPEN => Some(Event::Open(Open::read_from_prefix(bytes).ok()?.0)),
        record::kind::CLOSE => Some(Event::Close(Close::read_from_prefix(bytes).ok()?.0)),
        record::kind::FORK | record::kind::EXEC | record::kind::EXIT | record::kind::LISTEN => {
            Some(Event::Process(Process::read_from_prefix(bytes).ok()?.0))
        }
        record::kind::QUERY => Some(Event::Query(Query::read_from_prefix(bytes).ok()?.0)),
        record::kind::QUERY_END => query_end(bytes),
        record::kind::STACK => stack(bytes).map(Event::Stack),
        _ => None,
    }
}

/// Decodes the end of a statement; its texts without the zero bytes. A further
/// run of the same statement in a call has none.
fn query_end(bytes: &[u8]) -> Option<Event<'_>> {
    let (end, rest) = QueryEnd::read_from_prefix(bytes).ok()?;
    let further = end.flags & query_flag::PART != 0 && (end.name_len, end.text_len) == (0, 0);
    if further || end.flags & (query_flag::VOID | query_flag::OVER) != 0 {
        return Some(Event::QueryEnd(end, &[], &[]));
    }
    let (name, text) = rest.split_at_checked(QUERY_NAME)?;
    let upto = |bytes: &'_ [u8], len: u32| -> Option<usize> {
        let len = usize::try_from(len).ok()?;
        (len <= bytes.len()).then(|| len.saturating_sub(1))
    };
    let name = name.get(..upto(name, end.name_len)?)?;
    let text = text.get(..upto(text, end.text_len)?)?;
    Some(Event::QueryEnd(end, name, text))
}

/// Decodes a stack; every value in it is looked at.
fn stack(bytes: &[u8]) -> Option<StackEvent<'_>> {
    let (stack, rest) = Stack::read_from_prefix(bytes).ok()?;
    let frames_len = usize::try_from(stack.n_frames)
        .ok()?
        .checked_mul(size_of::<Frame>())?;
    let (frames, rest) = rest.split_at_checked(frames_len)?;
    let values = rest.get(..usize::try_from(stack.values_len).ok()?)?;
    let mut left = values;
    while !left.is_empty() {
        (_, left) = split_value(left)?;
    }
    Some(StackEvent {
        stack,
        frames,
        values,
    })
}

/// What a recipe led to, with the bytes that belong to it.
#[derive(Clone, Copy, Debug)]
pub struct Found<'a> {
    /// What it is.
    pub value: Value,
    /// Its bytes, without the padding.
    pub bytes: &'a [u8],
}

impl<'a> Found<'a> {
    /// The text, if it is one; code points that are no characters become
    /// U+FFFD.
    pub fn text(&self) -> Option<String> {
        if self.value.kind != record::value::TEXT {
            return None;
        }
        let width = usize::from(self.value.width);
        let points = self.bytes.chunks_exact(width).map(|point| {
            let point = point
                .iter()
                .rev()
                .fold(0, |all, byte| all << 8 | u32::from(*byte));
            char::from_u32(point).unwrap_or(char::REPLACEMENT_CHARACTER)
        });
        Some(points.collect())
    }

    /// The number, if it is an `int`.
    pub fn int(&self) -> Option<i64> {
        let bytes = self.bytes.first_chunk::<8>()?;
        (self.value.kind == record::value::INT).then(|| i64::from_le_bytes(*bytes))
    }

    /// The number, if it is a `float`.
    pub fn float(&self) -> Option<f64> {
        let bytes = self.bytes.first_chunk::<8>()?;
        (self.value.kind == record::value::FLOAT).then(|| f64::from_le_bytes(*bytes))
    }

    /// The entries of an exception's traceback, outermost first; none of
    /// anything else.
    pub fn traceback(&self) -> impl Iterator<Item = Traceback> + use<'a> {
        let bytes = match self.value.kind {
            record::value::EXCEPTION => self.bytes,
            _ => &[],
        };
        let entries = bytes.chunks_exact(size_of::<Traceback>());
        entries.filter_map(|entry| Traceback::read_from_bytes(entry).ok())
    }
}

impl<'a> StackEvent<'a> {
    /// The frames, innermost first.
    pub fn frames(&self) -> impl Iterator<Item = Frame> + use<'a> {
        let frames = self.frames.chunks_exact(size_of::<Frame>());
        frames.filter_map(|frame| Frame::read_from_bytes(frame).ok())
    }

    /// The values, in the order of their frames.
    pub fn values(&self) -> impl Iterator<Item = Found<'a>> + use<'a> {
        let mut left = self.values;
        std::iter::from_fn(move || {
            let found;
            (found, left) = split_value(left)?;
            Some(found)
        })
    }
}

/// The first of some values, and the others; none if it is not whole or of an
/// unknown kind.
fn split_value(bytes: &[u8]) -> Option<(Found<'_>, &[u8])> {
    use abi::record::{part, value as kind};

    let (value, rest) = Value::read_from_prefix(bytes).ok()?;
    let len = usize::try_from(value.len).ok()?;
    let unit = match value.kind {
        kind::NONE | kind::OBJECT | kind::FAILED if len == 0 => 1,
        kind::INT | kind::FLOAT if len == 8 => 8,
        kind::CONNECTION if len == size_of::<Owner>() => len,
        kind::BYTES => 1,
        kind::TEXT if matches!(value.width, 1 | 2 | 4) => usize::from(value.width),
        kind::EXCEPTION => size_of::<Traceback>(),
        _ => return None,
    };
    if len % unit != 0 || value.part > part::MEMBER {
        return None;
    }
    let bytes = rest.get(..len)?;
    let rest = rest.get(len.checked_next_multiple_of(8)?..)?;
    Some((Found { value, bytes }, rest))
}

#[cfg(test)]
mod tests {
    use zerocopy::IntoBytes;

    use super::*;

    fn data(len: u32, captured: u32) -> Vec<u8> {
        let mut data = Data::read_from_bytes(&[0; size_of::<Data>()]).expect("size");
        data.kind = record::kind::DATA;
        data.len = len;
        data.captured = captured;
        data.as_bytes().to_vec()
    }

    #[test]
    fn gives_captured_bytes_without_the_padding_of_the_record() {
        let mut bytes = data(3, 3);
        bytes.extend_from_slice(b"GET padding");
        match decode(&bytes) {
            Some(Event::Data(data, payload)) => {
                assert_eq!(data.len, 3);
                assert_eq!(payload, b"GET");
            }
            other => panic!("decoded {other:?}"),
        }
    }

    #[test]
    fn rejects_lengths_past_the_end() {
        let mut bytes = data(100, 100);
        bytes.extend_from_slice(b"short");
        assert!(decode(&bytes).is_none());
        assert!(decode(&data(1, 2)).is_none());
    }

    /// A stack of two frames with these values.
    fn stack_with(values: &[(Value, &[u8])]) -> Vec<u8> {
        let mut stack = Stack::read_from_bytes(&[0; size_of::<Stack>()]).expect("size");
        stack.kind = record::kind::STACK;
        stack.n_frames = 2;
        let mut rest = Vec::new();
        for (value, bytes) in values {
            rest.extend_from_slice(value.as_bytes());
            rest.extend_from_slice(bytes);
            rest.resize(rest.len().next_multiple_of(8), 0);
        }
        stack.values_len = u32::try_from(rest.len()).expect("short");
        let mut all = stack.as_bytes().to_vec();
        for code in [0x1000, 0x2000] {
            let frame = Frame {
                code,
                instruction: code + 8,
            };
            all.extend_from_slice(frame.as_bytes());
        }
        all.extend(rest);
        all
    }

    fn value(kind: u8, width: u8, len: usize) -> Value {
        let mut value = Value::read_from_bytes(&[0; size_of::<Value>()]).expect("size");
        value.kind = kind;
        value.width = width;
        value.len = u32::try_from(len).expect("short");
        value
    }

    fn decoded(bytes: &[u8]) -> Option<StackEvent<'_>> {
        match decode(bytes)? {
            Event::Stack(event) => Some(event),
            other => panic!("decoded {other:?}"),
        }
    }

    #[test]
    fn gives_the_statement_that_a_stack_stands_for() {
        let mut stack = Stack::read_from_bytes(&[0; size_of::<Stack>()]).expect("size");
        stack.kind = record::kind::STACK;
        stack.rule = record::rule::THREAD;
        stack.conn = 7;
        stack.at = 9;
        let query = |stack: &Stack| begun(&Event::Stack(decoded(stack.as_bytes())?));
        assert!(query(&stack).is_none());
        for part in record::query_part::SINGLE..=record::query_part::FAILED {
            stack.flags = stack_flag::BEGINS | stack_flag::ENDED | part << stack_flag::PART_SHIFT;
            let query = query(&stack).expect("begins");
            assert_eq!((query.part, query.rule), (part, record::rule::THREAD));
            assert_eq!((query.id, query.at), (7, 9));
        }
    }

    #[test]
    fn gives_the_frames_and_values_of_a_stack() {
        use record::value::{EXCEPTION, FLOAT, INT, NONE, TEXT};

        let entry = Traceback {
            code: 0x3000,
            lasti: 4,
            lineno: 7,
        };
        let bytes = stack_with(&[
            (value(TEXT, 1, 3), b"/\xe9x"),
            (value(TEXT, 2, 4), &[0x20, 0xac, 0x00, 0xd8]),
            (value(TEXT, 4, 4), &[0x00, 0xf6, 0x01, 0x00]),
            (value(INT, 0, 8), &(-5i64).to_le_bytes()),
            (value(FLOAT, 0, 8), &1.5f64.to_le_bytes()),
            (value(EXCEPTION, 0, 16), entry.as_bytes()),
            (value(NONE, 0, 0), &[]),
        ]);
        let event = decoded(&bytes).expect("a stack");
        let codes: Vec<u64> = event.frames().map(|frame| frame.code).collect();
        assert_eq!(codes, [0x1000, 0x2000]);
        let found: Vec<Found<'_>> = event.values().collect();
        assert_eq!(found.len(), 7);
        let texts: Vec<String> = found.iter().filter_map(Found::text).collect();
        assert_eq!(texts, ["/\u{e9}x", "\u{ac20}\u{fffd}", "\u{1f600}"]);
        assert_eq!(found[3].int(), Some(-5));
        assert_eq!(found[3].float(), None);
        assert_eq!(found[4].float(), Some(1.5));
        assert_eq!(found[5].traceback().collect::<Vec<_>>(), [entry]);
        assert_eq!(found[6].traceback().count(), 0);
    }

    #[test]
    fn rejects_values_that_are_not_whole_or_unknown() {
        let text = stack_with(&[(value(record::value::TEXT, 1, 3), b"abc")]);
        assert!(decoded(&text).is_some());
        for len in 1..text.len() {
            assert!(decoded(&text[..len]).is_none(), "{len}");
        }
        for bad in [
            value(99, 0, 0),
            value(record::value::TEXT, 3, 3),
            value(record::value::TEXT, 0, 0),
            value(record::value::TEXT, 2, 3),
            value(record::value::INT, 0, 4),
            value(record::value::NONE, 0, 8),
            value(record::value::EXCEPTION, 0, 15),
            Value {
                part: 9,
                ..value(record::value::NONE, 0, 0)
            },
            Value {
                len: u32::MAX,
                ..value(record::value::TEXT, 1, 0)
            },
        ] {
            let bytes = stack_with(&[(bad, &[0; 16])]);
            assert!(decoded(&bytes).is_none(), "{bad:?}");
        }
    }

    #[test]
    fn rejects_more_frames_than_there_are() {
        let mut bytes = stack_with(&[]);
        let at = std::mem::offset_of!(Stack, n_frames);
        for n_frames in [3, u32::MAX] {
            bytes[at..at + 4].copy_from_slice(&n_frames.to_le_bytes());
            assert!(decoded(&bytes).is_none());
        }
    }

    #[test]
    fn gives_the_texts_of_a_statement_that_ended() {
        let mut end = QueryEnd::read_from_bytes(&[0; size_of::<QueryEnd>()]).expect("size");
        end.kind = record::kind::QUERY_END;
        end.name_len = 5;
        end.text_len = 9;
        let mut bytes = end.as_bytes().to_vec();
        bytes.extend_from_slice(b"/a/b\0");
        bytes.resize(size_of::<QueryEnd>() + QUERY_NAME, b'x');
        bytes.extend_from_slice(b"select 1\0old");
        match decode(&bytes) {
            Some(Event::QueryEnd(_, name, text)) => {
                assert_eq!((name, text), (&b"/a/b"[..], &b"select 1"[..]));
            }
            other => panic!("decoded {other:?}"),
        }
        for len in 0..size_of::<QueryEnd>() + QUERY_NAME + 9 {
            assert!(decode(&bytes[..len]).is_none(), "{len}");
        }
        end.flags = query_flag::PART;
        (end.name_len, end.text_len) = (0, 0);
        let further = decode(end.as_bytes());
        assert!(matches!(further, Some(Event::QueryEnd(_, b"", b""))));
        end.flags = query_flag::OVER;
        let over = decode(end.as_bytes());
        assert!(matches!(over, Some(Event::QueryEnd(_, b"", b""))));
    }

    #[test]
    fn rejects_unknown_kinds_and_truncation_anywhere() {
        assert!(decode(&[]).is_none());
        assert!(decode(&[0; 200]).is_none());
        assert!(decode(&[255; 200]).is_none());
        let bytes = data(0, 0);
        for len in 0..bytes.len() {
            assert!(decode(&bytes[..len]).is_none(), "{len}");
        }
    }
}
