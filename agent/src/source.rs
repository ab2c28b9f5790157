//! Reads the event ring and decodes records into [`Event`]s.
//!
//! The kernel side is trusted to write records of the agreed layout; lengths
//! and kinds are checked all the same, and a record that does not fit is
//! counted and skipped.

use std::ops::ControlFlow;
use std::os::fd::{AsFd, BorrowedFd};

use abi::record::{self, Close, Data, Open, Process};
use aya::maps::{MapData, RingBuf};
use zerocopy::FromBytes;

/// A decoded record.
#[derive(Debug)]
pub enum Event<'a> {
    /// Bytes went through a connection; with the captured ones.
    Data(Data, &'a [u8]),
    /// A connection was opened.
    Open(Open),
    /// A connection was closed.
    Close(Close),
    /// A process forked, executed, ended or listened.
    Process(Process),
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
                    if take(event).is_break() {
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

/// Decodes one record; none if kind or length are wrong.
pub fn decode(bytes: &[u8]) -> Option<Event<'_>> {
    let (&kind, _) = bytes.split_first()?;
    match kind {
        record::kind::DATA => {
            let (data, payload) = Data::read_from_prefix(bytes).ok()?;
            let captured = usize::try_from(data.captured).ok()?;
            if data.captured > data.len {
                return None;
            }
            Some(Event::Data(data, payload.get(..captured)?))
        }
        record::kind::OPEN => Some(Event::Open(Open::read_from_prefix(bytes).ok()?.0)),
        record::kind::CLOSE => Some(Event::Close(Close::read_from_prefix(bytes).ok()?.0)),
        record::kind::FORK | record::kind::EXEC | record::kind::EXIT | record::kind::LISTEN => {
            Some(Event::Process(Process::read_from_prefix(bytes).ok()?.0))
        }
        _ => None,
    }
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
