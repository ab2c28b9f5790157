//! One HTTP/1 message: gathers its head, counts its body.
//!
//! A head that arrives whole is parsed where it lies; only one that arrives
//! in parts is copied. A body is never kept: its end is found by counting
//! (RFC 9112, section 6).

use std::mem::MaybeUninit;

use super::MAX_HEAD;
use crate::protocol::Defect;
use crate::protocol::reader::Reader;

/// Headers that one head may hold; servers refuse more than 100 to 200.
pub(super) const MAX_HEADERS: usize = 128;

/// Room for the headers of one head.
pub(super) type Headers<'a> = [MaybeUninit<httparse::Header<'a>>; MAX_HEADERS];

/// How a message's body is delimited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Framing {
    /// There is none.
    Empty,
    /// That many bytes follow.
    Sized(u64),
    /// `Transfer-Encoding: chunked`.
    Chunked,
    /// It ends with the connection.
    UntilClose,
    /// The headers contradict each other: its end cannot be told.
    Unknown,
}

/// Reads the headers that delimit a body.
#[derive(Debug, Default)]
pub(super) struct FramingHeaders {
    length: Option<u64>,
    contradiction: bool,
    /// Whether the last transfer coding is `chunked`, where there is any.
    chunked: Option<bool>,
}

impl FramingHeaders {
    /// Takes note of a `Content-Length`; a list of equal numbers is one.
    pub(super) fn content_length(&mut self, value: &[u8]) {
        for item in value.split(|byte| *byte == b',') {
            let number = decimal(item.trim_ascii());
            if number.is_none() || self.length.is_some_and(|known| Some(known) != number) {
                self.contradiction = true;
            }
            self.length = number.or(self.length);
        }
    }

    /// Takes note of a `Transfer-Encoding`.
    pub(super) fn transfer_encoding(&mut self, value: &[u8]) {
        let last = value
            .rsplit(|byte| *byte == b',')
            .next()
            .unwrap_or_default();
        self.chunked = Some(last.trim_ascii().eq_ignore_ascii_case(b"chunked"));
    }

    /// A request's framing: without either header it has no body.
    pub(super) fn of_request(&self) -> Framing {
        self.framing(Framing::Empty, Framing::Unknown)
    }

    /// The framing of a response that may have a body.
    pub(super) fn of_response(&self) -> Framing {
        self.framing(Framing::UntilClose, Framing::UntilClose)
    }

    fn framing(&self, absent: Framing, not_chunked: Framing) -> Framing {
        match (self.chunked, self.contradiction, self.length) {
            // Transfer-Encoding overrides Content-Length (RFC 9112, 6.3).
            (Some(true), ..) => Framing::Chunked,
            (Some(false), ..) => not_chunked,
            (None, true, _) => Framing::Unknown,
            (None, false, Some(0)) => Framing::Empty,
            (None, false, Some(length)) => Framing::Sized(length),
            (None, false, None) => absent,
        }
    }
}

fn decimal(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() {
        return None;
    }
    digits.iter().try_fold(0_u64, |number, digit| {
        let digit = digit.is_ascii_digit().then(|| digit - b'0')?;
        number.checked_mul(10)?.checked_add(u64::from(digit))
    })
}

/// What taking bytes into a head came to.
#[derive(Debug)]
pub(super) enum Taken<T> {
    /// The head is complete; it took that many of the bytes.
    Complete { head: T, consumed: usize },
    /// All bytes were taken and more are needed.
    Partial,
    /// It cannot be a head.
    Failed(Defect),
}

/// A parser of a whole head: what it says and its length, or none where the
/// head is incomplete.
pub(super) type ParseHead<'p, T> = &'p dyn Fn(&[u8]) -> Result<Option<(T, usize)>, Defect>;

/// Gathers a head that arrives in parts.
#[derive(Debug, Default)]
pub(super) struct HeadBuffer {
    bytes: Vec<u8>,
    line: Line,
}

/// Where in a head's lines the last byte was.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Line {
    /// Inside a line.
    #[default]
    Inside,
    /// Just after a line feed.
    Start,
    /// Just after a line feed and a carriage return.
    Return,
}

impl HeadBuffer {
    /// Takes bytes until the head is complete.
    pub(super) fn take<T>(&mut self, input: &[u8], parse: ParseHead<'_, T>) -> Taken<T> {
        if self.bytes.is_empty() {
            match parse(input) {
                Ok(Some((head, length))) if length <= MAX_HEAD => {
                    return Taken::Complete {
                        head,
                        consumed: length,
                    };
                }
                Ok(Some(_)) => return Taken::Failed(Defect::HeadTooLong),
                Err(defect) => return Taken::Failed(defect),
                Ok(None) => {}
            }
        }
        let (consumed, complete) = self.fill(input);
        if self.bytes.len() > MAX_HEAD {
            self.clear();
            return Taken::Failed(Defect::HeadTooLong);
        }
        if !complete {
            return Taken::Partial;
        }
        let parsed = parse(&self.bytes);
        self.clear();
        match parsed {
            Ok(Some((head, _))) => Taken::Complete { head, consumed },
            Ok(None) => Taken::Failed(Defect::Malformed),
            Err(defect) => Taken::Failed(defect),
        }
    }

    /// Keeps bytes of which it is not certain that they begin a head.
    pub(super) fn keep(&mut self, input: &[u8]) -> &[u8] {
        self.bytes.extend_from_slice(input);
        &self.bytes
    }

    /// Bytes that are allocated.
    #[cfg(test)]
    pub(super) fn kept(&self) -> usize {
        self.bytes.capacity()
    }

    /// Gives back what was kept.
    pub(super) fn release(&mut self) -> Vec<u8> {
        self.line = Line::Inside;
        std::mem::take(&mut self.bytes)
    }

    /// Forgets what was kept; a big allocation is given back.
    pub(super) fn clear(&mut self) {
        self.line = Line::Inside;
        self.bytes.clear();
        self.bytes.shrink_to(KEPT);
    }

    /// Copies up to the end of the head, never much more than a head holds.
    fn fill(&mut self, input: &[u8]) -> (usize, bool) {
        let room = (MAX_HEAD + 1).saturating_sub(self.bytes.len());
        let mut reader = Reader::new(input);
        let mut complete = false;
        let mut line = self.line;
        let taken = reader.take_while(|byte| {
            let wanted = !complete && room > 0;
            (line, complete) = match (line, byte) {
                (Line::Start | Line::Return, b'\n') => (Line::Start, true),
                (_, b'\n') => (Line::Start, complete),
                (Line::Start, b'\r') => (Line::Return, complete),
                _ => (Line::Inside, complete),
            };
            wanted
        });
        self.line = line;
        let taken = taken.get(..room.min(taken.len())).unwrap_or_default();
        self.bytes.extend_from_slice(taken);
        (taken.len(), complete)
    }
}

/// Bytes of a head buffer that stay allocated between messages.
const KEPT: usize = 2048;

/// A body while its bytes pass.
#[derive(Debug)]
pub(super) struct Body {
    place: Place,
    size: u64,
    /// Whether `size` is all that was transferred so far.
    exact: bool,
}

#[derive(Debug)]
enum Place {
    Sized {
        left: u64,
    },
    Chunked(Chunked),
    UntilClose,
    /// The end cannot be told from the position; a chunked body may still
    /// show it.
    Unknown {
        chunked: bool,
        tail: Tail,
    },
}

/// What passing bytes through a body came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Progress {
    /// The body goes on after the bytes.
    Within,
    /// The body ended.
    Done,
    /// The body goes on, but from now its end cannot be told.
    Lost,
}

impl Body {
    /// A body of that framing, or none where it has no bytes.
    pub(super) fn new(framing: Framing) -> Option<Self> {
        let place = match framing {
            Framing::Empty => return None,
            Framing::Sized(left) => Place::Sized { left },
            Framing::Chunked => Place::Chunked(Chunked::Size {
                value: 0,
                digits: 0,
            }),
            Framing::UntilClose => Place::UntilClose,
            Framing::Unknown => Place::unknown(false),
        };
        let exact = !matches!(place, Place::Unknown { .. });
        Some(Self {
            place,
            size: 0,
            exact,
        })
    }

    /// Bytes after decoding; none where some were not seen.
    pub(super) fn size(&self) -> Option<u64> {
        self.exact.then_some(self.size)
    }

    /// Whether its end cannot be told.
    pub(super) fn is_lost(&self) -> bool {
        matches!(self.place, Place::Unknown { .. })
    }

    /// Whether a connection that closes now cuts it short.
    pub(super) fn is_cut_by_close(&self) -> bool {
        matches!(self.place, Place::Sized { .. } | Place::Chunked(_))
    }

    /// Takes the body's bytes and leaves what follows it.
    pub(super) fn take(&mut self, input: &mut Reader<'_>) -> Progress {
        match &mut self.place {
            Place::Sized { left } => {
                let taken = input.take_up_to(*left).len() as u64;
                *left -= taken;
                self.size += taken;
                match left {
                    0 => Progress::Done,
                    _ => Progress::Within,
                }
            }
            Place::Chunked(state) => match state.take(input, &mut self.size) {
                Ok(true) => Progress::Done,
                Ok(false) => Progress::Within,
                Err(Broken) => self.lose(false),
            },
            Place::UntilClose => {
                self.size += input.take_up_to(u64::MAX).len() as u64;
                Progress::Within
            }
            Place::Unknown { chunked, tail } => {
                tail.push(input.take_up_to(u64::MAX));
                match *chunked && tail.ends_message() {
                    true => Progress::Done,
                    false => Progress::Within,
                }
            }
        }
    }

    /// Takes note of bytes that were not seen; gives those after the body.
    pub(super) fn skip(&mut self, count: u64, last: &[u8]) -> (Progress, u64) {
        match &mut self.place {
            Place::Sized { left } => {
                let taken = count.min(*left);
                *left -= taken;
                self.size += taken;
                match left {
                    0 => (Progress::Done, count - taken),
                    _ => (Progress::Within, 0),
                }
            }
            Place::Chunked(Chunked::Data { left }) if count <= *left => {
                *left -= count;
                self.size += count;
                if *left == 0 {
                    self.place = Place::Chunked(Chunked::DataEnd { carriage: false });
                }
                (Progress::Within, 0)
            }
            Place::Chunked(_) => {
                let lost = self.lose(true);
                (self.skip_unknown(count, last, lost), 0)
            }
            Place::UntilClose => {
                self.size = self.size.saturating_add(count);
                (Progress::Within, 0)
            }
            Place::Unknown { .. } => (self.skip_unknown(count, last, Progress::Within), 0),
        }
    }

    fn skip_unknown(&mut self, count: u64, last: &[u8], otherwise: Progress) -> Progress {
        let Place::Unknown { chunked, tail } = &mut self.place else {
            return otherwise;
        };
        // What the tail does not tell separates it from what came before.
        if count > last.len() as u64 {
            *tail = Tail::default();
        }
        tail.push(last);
        match *chunked && tail.ends_message() {
            true => Progress::Done,
            false => otherwise,
        }
    }

    fn lose(&mut self, chunked: bool) -> Progress {
        self.place = Place::unknown(chunked);
        self.exact = false;
        Progress::Lost
    }
}

impl Place {
    fn unknown(chunked: bool) -> Self {
        Self::Unknown {
            chunked,
            tail: Tail::default(),
        }
    }
}

/// The last bytes of a chunked body whose chunks are no longer followed.
#[derive(Debug, Default)]
struct Tail {
    bytes: [u8; Self::SIZE],
    filled: usize,
}

impl Tail {
    const SIZE: usize = 7;

    fn push(&mut self, input: &[u8]) {
        let skipped = input.len().saturating_sub(Self::SIZE);
        for byte in input.iter().skip(skipped) {
            self.bytes.rotate_left(1);
            if let Some(last) = self.bytes.last_mut() {
                *last = *byte;
            }
            self.filled = Self::SIZE.min(self.filled + 1);
        }
    }

    /// Whether a last chunk without trailers ends here. Where the line break
    /// before it was seen it must be one, else `10\r\n\r\n` would do.
    fn ends_message(&self) -> bool {
        let (before, last) = self.bytes.split_at(2);
        last == b"0\r\n\r\n"
            && match self.filled {
                Self::SIZE => before == b"\r\n",
                6 => before.ends_with(b"\n"),
                _ => true,
            }
    }
}

/// Where in a chunked body the next byte stands (RFC 9112, section 7.1).
#[derive(Debug)]
enum Chunked {
    Size {
        value: u64,
        digits: u32,
    },
    /// Behind the size, up to the line's end; `last` where the size is 0.
    Extension {
        value: u64,
    },
    Data {
        left: u64,
    },
    /// The line break after the data.
    DataEnd {
        carriage: bool,
    },
    /// A trailer line, and whether it has bytes other than a return.
    Trailer {
        empty: bool,
    },
}

/// The chunk grammar is broken.
#[derive(Debug)]
struct Broken;

impl Chunked {
    /// Takes bytes up to the body's end, and says whether it was reached.
    fn take(&mut self, input: &mut Reader<'_>, size: &mut u64) -> Result<bool, Broken> {
        while !input.is_empty() {
            if let Self::Data { left } = self {
                let taken = input.take_up_to(*left).len() as u64;
                *left -= taken;
                *size = size.saturating_add(taken);
                if *left == 0 {
                    *self = Self::DataEnd { carriage: false };
                }
                continue;
            }
            let Some(byte) = input.byte() else { break };
            *self = match (&*self, byte) {
                (Self::Size { value, digits }, b'0'..=b'9' | b'a'..=b'f' | b'A'..=b'F') => {
                    let digit = char::from(byte).to_digit(16).ok_or(Broken)?;
                    let value = value.checked_mul(16).ok_or(Broken)? | u64::from(digit);
                    let digits = digits + 1;
                    Self::Size { value, digits }
                }
                (Self::Size { digits: 0, .. }, _) => return Err(Broken),
                (Self::Size { value, .. } | Self::Extension { value }, b'\n') => match *value {
                    0 => Self::Trailer { empty: true },
                    left => Self::Data { left },
                },
                (Self::Size { value, .. }, b'\r' | b';' | b' ' | b'\t')
                | (Self::Extension { value }, _) => Self::Extension { value: *value },
                (Self::Size { .. }, _) => return Err(Broken),
                (Self::DataEnd { .. }, b'\n') => Self::Size {
                    value: 0,
                    digits: 0,
                },
                (Self::DataEnd { carriage: false }, b'\r') => Self::DataEnd { carriage: true },
                (Self::DataEnd { .. }, _) => return Err(Broken),
                (Self::Trailer { empty: true }, b'\n') => return Ok(true),
                (Self::Trailer { empty: false }, b'\n') => Self::Trailer { empty: true },
                (Self::Trailer { empty }, b'\r') => Self::Trailer { empty: *empty },
                (Self::Trailer { .. }, _) => Self::Trailer { empty: false },
                (Self::Data { .. }, _) => return Err(Broken),
            };
        }
        Ok(false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Feeds a body whole and byte by byte: size and bytes left over.
    #[track_caller]
    fn check(framing: Framing, input: &[u8], expected: (Progress, Option<u64>, usize)) {
        for step in [input.len().max(1), 1] {
            let mut body = Body::new(framing).expect("a framing with a body");
            let mut progress = Progress::Within;
            let mut lost = false;
            let mut used = 0;
            for piece in input.chunks(step) {
                let mut reader = Reader::new(piece);
                while !reader.is_empty() && progress != Progress::Done {
                    progress = body.take(&mut reader);
                    lost |= progress == Progress::Lost;
                }
                used += reader.position();
            }
            if lost && progress != Progress::Done {
                progress = Progress::Lost;
            }
            assert_eq!(
                (progress, body.size(), input.len() - used),
                expected,
                "{step}"
            );
        }
    }

    #[test]
    fn counts_sized_bodies() {
        check(Framing::Sized(3), b"abcGET", (Progress::Done, Some(3), 3));
        check(Framing::Sized(7), b"abc", (Progress::Within, Some(3), 0));
        check(Framing::UntilClose, b"abc", (Progress::Within, Some(3), 0));
    }

    #[test]
    fn follows_chunks_extensions_and_trailers() {
        let done = |size, left| (Progress::Done, Some(size), left);
        check(Framing::Chunked, b"0\r\n\r\n", done(0, 0));
        check(Framing::Chunked, b"3\r\nabc\r\n0\r\n\r\nHTTP", done(3, 4));
        check(
            Framing::Chunked,
            b"A;x=\"y;\"\r\n0\r\n\r\n0\r\n\r\n\r\n0\r\n\r\n",
            done(10, 0),
        );
        check(
            Framing::Chunked,
            b"3 ;q\r\nabc\r\n0\r\nX: y\r\nZ: 1\r\n\r\n",
            done(3, 0),
        );
        check(Framing::Chunked, b"000\n\n", done(0, 0));
        check(Framing::Chunked, b"2\nab\n0\n\n", done(2, 0));
    }

    #[test]
    fn loses_broken_chunks() {
        for broken in [
            &b"x\r\n"[..],
            b"\r\n",
            b"3x\r\n",
            b"10000000000000000\r\n",
            b"1\r\nab\r\n",
            b"-1\r\n",
        ] {
            check(Framing::Chunked, broken, (Progress::Lost, None, 0));
        }
    }

    #[test]
    fn counts_unseen_bytes_of_one_chunk() {
        let mut body = Body::new(Framing::Chunked).expect("a body");
        body.take(&mut Reader::new(b"a\r\nab"));
        assert_eq!(body.skip(8, b"h\r\n0\r\n\r\n"), (Progress::Within, 0));
        assert_eq!(
            body.take(&mut Reader::new(b"\r\n0\r\n\r\n")),
            Progress::Done
        );
        assert_eq!(body.size(), Some(10));
    }

    #[test]
    fn finds_the_end_of_unseen_chunks_by_their_tail() {
        let skip = |count, tail: &[u8]| {
            let mut body = Body::new(Framing::Chunked).expect("a body");
            body.take(&mut Reader::new(b"a\r\nab"));
            body.skip(count, tail).0
        };
        assert_eq!(skip(100, b"x\r\n0\r\n\r\n"), Progress::Done);
        assert_eq!(skip(100, b"0\r\n\r\n"), Progress::Done);
        assert_eq!(skip(100, b"xy10\r\n\r\n"), Progress::Lost);
        assert_eq!(skip(100, b"10\r\n\r\n"), Progress::Lost);
        assert_eq!(skip(100, b""), Progress::Lost);
        assert_eq!(skip(9, b"\r\n\r\n"), Progress::Lost);
    }

    #[test]
    fn finds_the_end_of_chunks_after_a_loss() {
        let mut body = Body::new(Framing::Chunked).expect("a body");
        assert_eq!(body.skip(100, b"abcdefgh"), (Progress::Lost, 0));
        assert_eq!(body.take(&mut Reader::new(b"\r\n")), Progress::Within);
        assert_eq!(body.take(&mut Reader::new(b"0\r\n\r\n")), Progress::Done);
        assert_eq!(body.size(), None);
    }

    #[test]
    fn tells_the_framing_from_the_headers() {
        let framing = |lengths: &[&str], codings: &[&str]| {
            let mut headers = FramingHeaders::default();
            lengths
                .iter()
                .for_each(|v| headers.content_length(v.as_bytes()));
            codings
                .iter()
                .for_each(|v| headers.transfer_encoding(v.as_bytes()));
            (headers.of_request(), headers.of_response())
        };
        let both = |framing| (framing, framing);
        assert_eq!(framing(&[], &[]), (Framing::Empty, Framing::UntilClose));
        assert_eq!(framing(&["0"], &[]), both(Framing::Empty));
        assert_eq!(framing(&["5", " 5 , 5"], &[]), both(Framing::Sized(5)));
        assert_eq!(framing(&["5"], &["gzip, Chunked "]), both(Framing::Chunked));
        assert_eq!(
            framing(&["5"], &["gzip"]),
            (Framing::Unknown, Framing::UntilClose)
        );
        for wrong in ["5, 6", "", "+5", "0x5", "5 5", "18446744073709551616"] {
            assert_eq!(framing(&[wrong], &[]), both(Framing::Unknown), "{wrong}");
        }
    }
}
