//! Replies as a server sends them, RESP2 and RESP3: where each ends, and
//! whether it is an error. Of their contents nothing is kept.

use crate::protocol::reader::Reader;

/// Deepest nesting that is followed; Redis's own replies have some three
/// levels.
const MAX_DEPTH: usize = 32;
/// Bytes kept of a line: a number, or the first word of an error.
const MAX_KEPT: usize = 64;
/// Most elements of an aggregate that are believed.
const MAX_ELEMENTS: u64 = 1 << 32;
/// Longest bulk string that is believed.
const MAX_BULK: u64 = 1 << 40;

/// A reply that is complete.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Reply {
    /// Whether it is `+OK`.
    pub(super) ok: bool,
    /// The first word of an error; empty where it has none.
    pub(super) error: Option<String>,
    /// The same of an error among the elements of an array.
    pub(super) inner: Option<String>,
}

/// What was read.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Found {
    Reply(Reply),
    /// What came is no reply.
    Damaged,
}

/// Reads replies.
#[derive(Debug, Default)]
pub(super) struct Replies {
    state: State,
    line: Vec<u8>,
    /// Elements that are still to come, by level.
    levels: Vec<Level>,
    reply: Reply,
}

#[derive(Clone, Copy, Debug)]
struct Level {
    left: u64,
    kind: LevelKind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum LevelKind {
    /// An element of what it is in.
    Element,
    /// Something beside the element that follows.
    Attribute,
    /// Something that nobody asked for.
    Push,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    /// The first byte of an element.
    #[default]
    Kind,
    /// A line.
    Line(u8),
    /// A bulk string and the line break after it.
    Bulk { left: u64, error: bool },
    /// Nobody knows what comes next.
    Lost,
}

impl Replies {
    pub(super) fn is_lost(&self) -> bool {
        self.state == State::Lost
    }

    /// Whether a reply, not an error, was begun.
    pub(super) fn is_within(&self) -> bool {
        let begun = !self.levels.is_empty() || matches!(self.state, State::Bulk { .. });
        let pushed = self
            .levels
            .first()
            .is_some_and(|level| level.kind == LevelKind::Push);
        begun && !pushed && self.reply == Reply::default()
    }

    pub(super) fn lose(&mut self) {
        *self = Self {
            state: State::Lost,
            ..Self::default()
        };
    }

    /// Reads on; none where the input is used up.
    pub(super) fn next(&mut self, input: &mut Reader<'_>) -> Option<Found> {
        while !input.is_empty() {
            let found = match self.state {
                State::Kind => {
                    let kind = input.byte()?;
                    self.line.clear();
                    match b"+-:$*_#,(!=%~>|".contains(&kind) {
                        true => self.state = State::Line(kind),
                        false => return Some(self.damaged()),
                    }
                    None
                }
                State::Line(kind) => {
                    let text = input.take_while(|byte| byte != b'\n');
                    let room = MAX_KEPT.saturating_sub(self.line.len());
                    self.line.extend(text.iter().take(room));
                    match input.byte() {
                        Some(_) => self.end_line(kind),
                        None => None,
                    }
                }
                State::Bulk { left, error } => {
                    let taken = input.take_up_to(left);
                    if error {
                        let room = MAX_KEPT.saturating_sub(self.line.len());
                        self.line.extend(taken.iter().take(room));
                    }
                    self.pass(left, error, taken.len() as u64)
                }
                State::Lost => {
                    input.advance(usize::MAX);
                    None
                }
            };
            if found.is_some() {
                return found;
            }
        }
        None
    }

    /// Takes note of bytes that were not seen; gives back how many of them
    /// are beyond what can be counted through.
    pub(super) fn skip(&mut self, count: u64) -> (Option<Found>, u64) {
        let State::Bulk { left, error } = self.state else {
            return (None, count);
        };
        let passed = count.min(left);
        let found = self.pass(left, error, passed);
        (found, count - passed)
    }

    fn pass(&mut self, left: u64, error: bool, count: u64) -> Option<Found> {
        let left = left - count.min(left);
        if left > 0 {
            self.state = State::Bulk { left, error };
            return None;
        }
        if error {
            self.note_error();
        }
        self.end_element()
    }

    fn end_line(&mut self, kind: u8) -> Option<Found> {
        match kind {
            b'$' | b'=' | b'!' => match self.length() {
                Some(Some(length @ 0..=MAX_BULK)) => {
                    self.line.clear();
                    self.state = State::Bulk {
                        left: length + 2,
                        error: kind == b'!',
                    };
                    None
                }
                Some(None) => self.end_element(),
                _ => Some(self.damaged()),
            },
            b'*' | b'%' | b'~' | b'>' | b'|' => {
                let (kind, factor) = match kind {
                    b'%' => (LevelKind::Element, 2),
                    b'|' => (LevelKind::Attribute, 2),
                    b'>' => (LevelKind::Push, 1),
                    _ => (LevelKind::Element, 1),
                };
                match self.length() {
                    Some(None) => self.end_element(),
                    Some(Some(count @ 0..=MAX_ELEMENTS)) if self.levels.len() < MAX_DEPTH => {
                        self.state = State::Kind;
                        self.levels.push(Level {
                            left: count * factor,
                            kind,
                        });
                        self.end_levels()
                    }
                    _ => Some(self.damaged()),
                }
            }
            b'-' => {
                self.note_error();
                self.end_element()
            }
            b'+' => {
                self.reply.ok |= self.levels.is_empty() && self.line == b"OK\r";
                self.end_element()
            }
            _ => self.end_element(),
        }
    }

    /// A length; none within for what is not there at all.
    fn length(&self) -> Option<Option<u64>> {
        let text = std::str::from_utf8(&self.line).ok()?.strip_suffix('\r')?;
        match text {
            "-1" => Some(None),
            text => text.parse().ok().map(Some),
        }
    }

    /// Keeps the first word of an error, where it is a prefix.
    fn note_error(&mut self) {
        let mut line = Reader::new(&self.line);
        let word = line
            .take_while(|byte| byte.is_ascii_uppercase() || byte.is_ascii_digit() || byte == b'_');
        let complete = matches!(line.peek(), Some(b' ' | b'\r' | b'\n') | None);
        let word = match complete {
            true => String::from_utf8_lossy(word).into_owned(),
            false => String::new(),
        };
        let place = match self.levels.len() {
            0 => &mut self.reply.error,
            _ => &mut self.reply.inner,
        };
        place.get_or_insert(word);
    }

    /// An element is complete, and perhaps what it is in.
    fn end_element(&mut self) -> Option<Found> {
        self.state = State::Kind;
        match self.levels.last_mut() {
            None => Some(Found::Reply(std::mem::take(&mut self.reply))),
            Some(level) => {
                level.left = level.left.saturating_sub(1);
                self.end_levels()
            }
        }
    }

    fn end_levels(&mut self) -> Option<Found> {
        while let Some(level) = self.levels.last().copied().filter(|level| level.left == 0) {
            self.levels.pop();
            match (level.kind, self.levels.last_mut()) {
                // What it is beside follows.
                (LevelKind::Attribute, _) => return None,
                (_, Some(outer)) => outer.left = outer.left.saturating_sub(1),
                (LevelKind::Push, None) => {
                    self.reply = Reply::default();
                    return None;
                }
                (LevelKind::Element, None) => {
                    return Some(Found::Reply(std::mem::take(&mut self.reply)));
                }
            }
        }
        None
    }

    fn damaged(&mut self) -> Found {
        self.lose();
        Found::Damaged
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How many replies there are, and the errors among them.
    #[track_caller]
    fn check(text: &str, expected: &str) {
        for size in [1, 3, text.len()] {
            let mut replies = Replies::default();
            let mut found = Vec::new();
            for part in text.as_bytes().chunks(size) {
                let mut input = Reader::new(part);
                while let Some(next) = replies.next(&mut input) {
                    found.push(match next {
                        Found::Reply(Reply { ok: true, .. }) => "ok".to_owned(),
                        Found::Reply(Reply { error, inner, .. }) => {
                            format!(
                                "{}/{}",
                                error.unwrap_or_default(),
                                inner.unwrap_or_default()
                            )
                        }
                        Found::Damaged => "damaged".to_owned(),
                    });
                }
            }
            assert_eq!(found.join(" "), expected, "{text:?} by {size}");
        }
    }

    #[test]
    fn tells_where_replies_end() {
        check("+OK\r\n:1\r\n$3\r\na\nb\r\n$-1\r\n_\r\n", "ok / / / /");
        check("*2\r\n:1\r\n*2\r\n+a\r\n*0\r\n*-1\r\n", "/ /");
        check(
            "%1\r\n+a\r\n~2\r\n:1\r\n:2\r\n#t\r\n,1.5\r\n(123\r\n=5\r\ntxt:a\r\n",
            "/ / / / /",
        );
        check(">2\r\n+a\r\n*1\r\n+b\r\n+OK\r\n", "ok");
        check("|1\r\n+a\r\n+b\r\n*1\r\n+c\r\n", "/");
        check(
            "-ERR no\r\n*1\r\n-WRONGTYPE no\r\n!9\r\nBUSY no !\r\n-oops\r\n",
            "ERR/ /WRONGTYPE BUSY/ /",
        );
        check("HTTP", "damaged");
        check("*x\r\n", "damaged");
        check(&"*1\r\n".repeat(40), "damaged");
    }
}
