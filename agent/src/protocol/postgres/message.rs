//! The frames of the protocol: a type, a length, and a body of which only the
//! beginning is kept, and that only where it is asked for.
//!
//! It counts through bodies of any length and through what was not seen. It
//! knows what types there are and how long they may be, but not what they
//! mean; `postgres` does.

use crate::protocol::reader::Reader;
use crate::protocol::sql;

/// Longest body that PostgreSQL itself accepts, bytes (`MaxAllocSize`).
const MAX_LENGTH: u32 = 0x3fff_ffff;
/// Longest start-up message (`MAX_STARTUP_PACKET_LENGTH`).
const MAX_STARTUP: u32 = 10_000;
/// Bytes kept of a message that has names.
const NAMES: usize = 512;
/// Bytes kept of a description of columns: what is copied of an answer.
const COLUMNS: usize = 4096;
/// Type of a message that has none: start-up and what precedes it.
pub(super) const STARTUP: u8 = 0;

/// A kind of message: how much of it is kept, and how long it may be.
pub(super) struct Rule {
    pub(super) kept: usize,
    pub(super) min: u32,
    pub(super) max: u32,
}

impl Rule {
    pub(super) const fn any(kept: usize) -> Self {
        Self {
            kept,
            min: 0,
            max: MAX_LENGTH,
        }
    }

    /// Exactly this long.
    pub(super) const fn fixed(length: u32) -> Self {
        Self {
            kept: length as usize,
            min: length,
            max: length,
        }
    }

    pub(super) const fn startup() -> Self {
        Self {
            kept: MAX_STARTUP as usize,
            min: 4,
            max: MAX_STARTUP,
        }
    }
}

/// Says what a type of message may be; none for a type that there is not.
pub(super) type Rules = fn(u8) -> Option<Rule>;

/// Messages that clients send.
pub(super) fn requests(kind: u8) -> Option<Rule> {
    Some(match kind {
        STARTUP => Rule::startup(),
        b'Q' => Rule::any(sql::MAX_STATEMENT + 1),
        b'P' => Rule::any(sql::MAX_STATEMENT + NAMES),
        b'B' | b'D' | b'C' | b'E' => Rule::any(NAMES),
        b'S' | b'H' | b'X' | b'c' => Rule::fixed(0),
        // Passwords and what is to be stored: nothing is kept.
        b'p' | b'd' | b'f' | b'F' => Rule::any(0),
        _ => return None,
    })
}

/// Messages that servers send.
pub(super) fn responses(kind: u8) -> Option<Rule> {
    Some(match kind {
        b'Z' => Rule::fixed(1),
        b'1' | b'2' | b'3' | b'n' | b's' | b'I' | b'c' => Rule::fixed(0),
        b'C' => Rule::any(64),
        b'E' => Rule::any(1024),
        b'S' => Rule::any(128),
        b'T' => Rule::any(COLUMNS),
        b'N' | b'A' | b'D' | b't' | b'G' | b'H' | b'W' | b'd' | b'R' | b'K' | b'V' | b'v' => {
            Rule::any(0)
        }
        _ => return None,
    })
}

/// Reads the frames of one direction.
#[derive(Debug, Default)]
pub(super) struct Frames {
    state: State,
    /// Type and length as far as they came.
    header: Vec<u8>,
    kept: Vec<u8>,
    /// The next message has no type.
    pub(super) startup: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    /// Type and length.
    #[default]
    Header,
    Body {
        kind: u8,
        left: u32,
        /// Bytes of it that are still to be kept.
        wanted: usize,
    },
    /// Nobody knows what comes next.
    Lost,
}

/// What was read.
#[derive(Debug)]
pub(super) enum Found<'a> {
    /// The first byte of a message, its type; it may yet prove damaged.
    Begun(u8),
    /// All of a message.
    Message {
        kind: u8,
        /// The beginning of its body, as far as it was to be kept and was
        /// seen.
        kept: &'a [u8],
    },
    /// What came is no message.
    Damaged,
}

impl Frames {
    pub(super) fn is_lost(&self) -> bool {
        self.state == State::Lost
    }

    pub(super) fn lose(&mut self) {
        self.state = State::Lost;
        self.header.clear();
        self.kept.clear();
    }

    /// The next byte is the first of a message.
    pub(super) fn resume(&mut self) {
        *self = Self::default();
    }

    /// Reads on; none where the input is used up.
    pub(super) fn next(&mut self, input: &mut Reader<'_>, rules: Rules) -> Option<Found<'_>> {
        if self.state == State::Header {
            if self.header.is_empty() && !self.startup {
                let kind = input.byte()?;
                self.header.push(kind);
                return Some(match rules(kind) {
                    Some(_) => Found::Begun(kind),
                    None => self.damaged(),
                });
            }
            let size = if self.startup { 4 } else { 5 };
            let missing = size - self.header.len();
            self.header
                .extend_from_slice(input.take_up_to(missing as u64));
            if self.header.len() < size {
                return None;
            }
            let (kind, length) = match *self.header.as_slice() {
                [a, b, c, d] => (STARTUP, u32::from_be_bytes([a, b, c, d])),
                [kind, a, b, c, d] => (kind, u32::from_be_bytes([a, b, c, d])),
                _ => return Some(self.damaged()),
            };
            self.header.clear();
            // A long statement's room is not kept for good.
            self.kept = Vec::new();
            let Some(rule) = rules(kind) else {
                return Some(self.damaged());
            };
            // The length counts itself.
            let left = match length.checked_sub(4) {
                Some(left) if rule.min <= left && left <= rule.max => left,
                _ => return Some(self.damaged()),
            };
            self.state = State::Body {
                kind,
                left,
                wanted: rule.kept,
            };
        }
        let State::Body { kind, left, wanted } = &mut self.state else {
            input.advance(usize::MAX);
            return None;
        };
        let taken = input.take_up_to(u64::from(*left));
        *left -= u32::try_from(taken.len()).unwrap_or(*left);
        let kept = taken.get(..*wanted).unwrap_or(taken);
        self.kept.extend_from_slice(kept);
        *wanted -= kept.len();
        if *left > 0 {
            return None;
        }
        let kind = *kind;
        Some(self.complete(kind))
    }

    /// Takes note of bytes that were not seen. If they end in the middle of a
    /// message that was begun, or with it, that can be told; the rest is
    /// given back, and what it is nobody knows.
    pub(super) fn skip(&mut self, count: u64) -> (Option<Found<'_>>, u64) {
        let State::Body { kind, left, wanted } = &mut self.state else {
            return (None, count);
        };
        *wanted = 0;
        let passed = count.min(u64::from(*left));
        *left -= u32::try_from(passed).unwrap_or(*left);
        let rest = count - passed;
        if *left > 0 {
            return (None, rest);
        }
        let kind = *kind;
        (Some(self.complete(kind)), rest)
    }

    fn complete(&mut self, kind: u8) -> Found<'_> {
        self.state = State::Header;
        Found::Message {
            kind,
            kept: &self.kept,
        }
    }

    fn damaged(&mut self) -> Found<'static> {
        self.lose();
        Found::Damaged
    }
}

/// Takes a string that ends with a zero byte; what there is of it where its
/// end is missing.
pub(super) fn string<'a>(input: &mut Reader<'a>) -> Option<&'a [u8]> {
    let text = input.take_while(|byte| byte != 0);
    input.byte().map(|_| text)
}

/// Takes a 32-bit number.
pub(super) fn number(input: &mut Reader<'_>) -> Option<u32> {
    let bytes = input.take(4)?;
    bytes.try_into().ok().map(u32::from_be_bytes)
}

/// Takes a 16-bit number.
pub(super) fn short(input: &mut Reader<'_>) -> Option<u16> {
    let bytes = input.take(2)?;
    bytes.try_into().ok().map(u16::from_be_bytes)
}
