//! Commands as a client sends them: arrays of bulk strings, of which only
//! what names the command is kept.
//!
//! Every argument may be secret, so none is told: a text has `?` for each, as
//! the in-process instrumentation has it. It knows which commands are none of
//! an application's, and which change what the connection is for.

use crate::protocol::reader::Reader;
use crate::protocol::{Side, Verdict};

/// Longest name of a command, and of what follows it in its name.
const MAX_WORD: usize = 64;
/// Most arguments of a command (Redis's own limit).
const MAX_ARGUMENTS: u64 = 1024 * 1024;
/// Longest argument (Redis's `proto-max-bulk-len`).
const MAX_BULK: u64 = 512 * 1024 * 1024;
/// Longest line that has a length.
const MAX_LINE: usize = 16;
/// Longest text of one command.
const MAX_TEXT: usize = 1000;

/// Commands whose second word is a part of their name.
const CONTAINERS: &[&str] = &[
    "ACL", "CLIENT", "CLUSTER", "COMMAND", "CONFIG", "DEBUG", "FUNCTION", "LATENCY", "MEMORY",
    "MODULE", "OBJECT", "PUBSUB", "SCRIPT", "SLOWLOG", "XGROUP", "XINFO",
];

/// What a command means for its connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Meaning {
    /// An operation.
    Plain,
    /// It sets the connection up: credentials, the protocol, what the client
    /// is called.
    Setup,
    /// It changes the database; with its number where that can be read.
    Select(Option<u32>),
    /// It resets the connection, and with it the database.
    Reset,
    /// It begins a transaction.
    Multi,
    /// It ends a transaction, and is answered by all of its results.
    Exec,
    /// What is received from now on is no answer to a request.
    Subscribe,
}

/// A command of which enough was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Command {
    /// Its name, as the application wrote it.
    pub(super) name: String,
    /// The script or function that it calls.
    pub(super) procedure: Option<String>,
    /// Its arguments, but for those that are in the name.
    pub(super) arguments: u64,
    pub(super) meaning: Meaning,
}

impl Command {
    fn new(words: &[Vec<u8>], arguments: u64) -> Self {
        let first = words.first().map(Vec::as_slice).unwrap_or_default();
        let second = words.get(1).map(Vec::as_slice).unwrap_or_default();
        let mut name = String::from_utf8_lossy(first).into_owned();
        let mut left = arguments.saturating_sub(1);
        let upper = name.to_ascii_uppercase();
        let word = |text: &[u8]| is_name(text).then(|| String::from_utf8_lossy(text).into_owned());
        let mut procedure = None;
        if CONTAINERS.contains(&&*upper)
            && let Some(word) = word(second)
        {
            name.push(' ');
            name.push_str(&word);
            left = left.saturating_sub(1);
        } else if matches!(&*upper, "EVALSHA" | "EVALSHA_RO" | "FCALL" | "FCALL_RO") {
            procedure = second
                .iter()
                .all(|byte| byte.is_ascii_alphanumeric() || *byte == b'_')
                .then(|| String::from_utf8_lossy(second).into_owned())
                .filter(|name| !name.is_empty());
        }
        let second = String::from_utf8_lossy(second).to_ascii_uppercase();
        let meaning = match (&*upper, &*second) {
            ("AUTH" | "HELLO", _)
            | ("CLIENT", "SETINFO" | "SETNAME" | "MAINT_NOTIFICATIONS" | "NO-EVICT" | "NO-TOUCH") => {
                Meaning::Setup
            }
            ("SELECT", number) => Meaning::Select(number.parse().ok()),
            ("RESET", _) => Meaning::Reset,
            ("MULTI", _) => Meaning::Multi,
            ("EXEC", _) => Meaning::Exec,
            ("SUBSCRIBE" | "PSUBSCRIBE" | "SSUBSCRIBE" | "MONITOR" | "SYNC" | "PSYNC", _)
            | ("CLIENT", "REPLY") => Meaning::Subscribe,
            _ => Meaning::Plain,
        };
        Self {
            name,
            procedure,
            arguments: left,
            meaning,
        }
    }

    /// `db.query.text`: the command with `?` for each of its arguments.
    pub(super) fn text(&self) -> String {
        let mut text = self.name.clone();
        for _ in 0..self.arguments {
            if text.len() + 2 > MAX_TEXT {
                text.push_str("...");
                break;
            }
            text.push_str(" ?");
        }
        text
    }
}

/// Names of commands are letters, those of modules have a point.
fn is_name(text: &[u8]) -> bool {
    text.first().is_some_and(u8::is_ascii_alphabetic)
        && text.len() <= MAX_WORD
        && text
            .iter()
            .all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(byte))
}

/// Judges the first bytes that a client sends: a command as an array, with a
/// name.
pub(super) fn detect(first: &[u8]) -> Verdict {
    let mut commands = Commands::default();
    let mut input = Reader::new(first);
    match commands.next(&mut input) {
        Some(Found::Named(_)) => Verdict::Yes(Side::Request),
        Some(Found::Damaged) => Verdict::No,
        _ => match commands.words.first() {
            // The name is complete, and more of the command is to come.
            Some(word) if commands.index > 0 && is_name(word) => Verdict::Yes(Side::Request),
            _ => Verdict::Unsure,
        },
    }
}

/// What was read.
#[derive(Debug)]
pub(super) enum Found {
    /// Enough of a command to know what it is; it may not be complete yet.
    Named(Command),
    /// The end of a command that was named before.
    Complete,
    /// What came is no command.
    Damaged,
}

/// Reads commands.
#[derive(Debug, Default)]
pub(super) struct Commands {
    state: State,
    line: Vec<u8>,
    /// Arguments of the command under way, and how many were read.
    arguments: u64,
    index: u64,
    words: Vec<Vec<u8>>,
    named: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    /// The number of arguments.
    #[default]
    Array,
    /// The length of an argument.
    Length,
    /// An argument, and the line break after it.
    Bulk { left: u64, length: u64 },
    /// Nobody knows what comes next.
    Lost,
}

impl Commands {
    pub(super) fn is_lost(&self) -> bool {
        self.state == State::Lost
    }

    /// Whether the next byte is the first of a command.
    pub(super) fn is_between(&self) -> bool {
        self.state == State::Array && self.line.is_empty()
    }

    pub(super) fn lose(&mut self) {
        *self = Self {
            state: State::Lost,
            ..Self::default()
        };
    }

    /// Reads on; none where the input is used up. Each command is found
    /// once, and nothing is read past its end.
    pub(super) fn next(&mut self, input: &mut Reader<'_>) -> Option<Found> {
        while !input.is_empty() {
            match self.state {
                State::Array => match self.number(input, b'*') {
                    None => {}
                    Some(Some(count @ 1..=MAX_ARGUMENTS)) => {
                        self.arguments = count;
                        self.index = 0;
                        self.words.clear();
                        self.named = false;
                        self.state = State::Length;
                    }
                    Some(_) => return Some(self.damaged()),
                },
                State::Length => match self.number(input, b'$') {
                    None => {}
                    Some(Some(length @ 0..=MAX_BULK)) => {
                        if self.index < 2 {
                            self.words.push(Vec::new());
                        }
                        self.state = State::Bulk {
                            left: length + 2,
                            length,
                        };
                    }
                    Some(_) => return Some(self.damaged()),
                },
                State::Bulk { left, length } => {
                    let taken = input.take_up_to(left);
                    let before = length + 2 - left;
                    self.keep(taken, length.saturating_sub(before));
                    if let Some(found) = self.advance(left, length, taken.len() as u64) {
                        return Some(found);
                    }
                }
                State::Lost => input.advance(usize::MAX),
            }
        }
        None
    }

    /// Takes note of bytes that were not seen; gives back how many of them
    /// are beyond what can be counted through.
    pub(super) fn skip(&mut self, count: u64) -> (Option<Found>, u64) {
        let State::Bulk { left, length } = self.state else {
            return (None, count);
        };
        let passed = count.min(left);
        let found = self.advance(left, length, passed);
        (found, count - passed)
    }

    /// Keeps what names the command; `wanted` bytes of these are the word's.
    fn keep(&mut self, bytes: &[u8], wanted: u64) {
        if self.index >= 2 {
            return;
        }
        let Some(word) = self.words.last_mut() else {
            return;
        };
        let wanted = usize::try_from(wanted).unwrap_or(usize::MAX);
        let room = (MAX_WORD + 1).saturating_sub(word.len()).min(wanted);
        word.extend(bytes.iter().take(room));
    }

    fn advance(&mut self, left: u64, length: u64, count: u64) -> Option<Found> {
        let left = left - count.min(left);
        if left > 0 {
            self.state = State::Bulk { left, length };
            return None;
        }
        self.index += 1;
        self.state = match self.index >= self.arguments {
            true => State::Array,
            false => State::Length,
        };
        if self.named {
            return (self.state == State::Array).then_some(Found::Complete);
        }
        if self.index < self.arguments.min(2) {
            return None;
        }
        self.named = true;
        let arguments = self.arguments;
        match self.words.first().is_some_and(|word| is_name(word)) {
            true => Some(Found::Named(Command::new(&self.words, arguments))),
            false => Some(self.damaged()),
        }
    }

    /// Reads a line that has a mark and a number; none where it goes on.
    fn number(&mut self, input: &mut Reader<'_>, mark: u8) -> Option<Option<u64>> {
        while let Some(byte) = input.byte() {
            if byte == b'\n' {
                let line = std::mem::take(&mut self.line);
                return Some(parse(&line, mark));
            }
            let wrong = match self.line.len() {
                0 => byte != mark,
                1..MAX_LINE => !(byte.is_ascii_digit() || byte == b'\r'),
                _ => true,
            };
            if wrong {
                return Some(None);
            }
            self.line.push(byte);
        }
        None
    }

    fn damaged(&mut self) -> Found {
        self.lose();
        Found::Damaged
    }
}

/// The number of a line, which ends with a carriage return.
fn parse(line: &[u8], mark: u8) -> Option<u64> {
    let mut reader = Reader::new(line);
    if reader.byte() != Some(mark) {
        return None;
    }
    let digits = reader.take_while(|byte| byte.is_ascii_digit());
    if reader.rest() != b"\r" {
        return None;
    }
    std::str::from_utf8(digits).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(words: &[&str], name: &str, text: &str, meaning: Meaning) {
        let words: Vec<Vec<u8>> = words.iter().map(|word| word.as_bytes().to_vec()).collect();
        let command = Command::new(&words, words.len() as u64);
        let found = (&*command.name, &*command.text(), command.meaning.clone());
        assert_eq!(found, (name, text, meaning));
    }

    #[test]
    fn names_commands_without_their_arguments() {
        check(&["get", "a"], "get", "get ?", Meaning::Plain);
        check(&["AUTH", "x"], "AUTH", "AUTH ?", Meaning::Setup);
        check(
            &["CONFIG", "SET", "a", "b"],
            "CONFIG SET",
            "CONFIG SET ? ?",
            Meaning::Plain,
        );
        check(&["CONFIG", "\u{e9}"], "CONFIG", "CONFIG ?", Meaning::Plain);
        check(
            &["select", "7"],
            "select",
            "select ?",
            Meaning::Select(Some(7)),
        );
        check(
            &["CLIENT", "SETNAME", "x"],
            "CLIENT SETNAME",
            "CLIENT SETNAME ?",
            Meaning::Setup,
        );
        let sha = Command::new(&[b"EVALSHA".to_vec(), b"abc123".to_vec()], 3);
        assert_eq!(sha.procedure.as_deref(), Some("abc123"));
        let many = Command::new(&[b"MSET".to_vec()], 100_000).text();
        assert!(many.len() <= MAX_TEXT + 3 && many.ends_with(" ?..."));
    }

    #[test]
    fn is_told_by_a_command_with_a_name() {
        let yes = Verdict::Yes(Side::Request);
        for (text, expected) in [
            ("*1\r\n$4\r\nPING\r\n", yes),
            ("*3\r\n$3\r\nSET\r\n$1\r\na", yes),
            ("*2\r\n$7\r\nFT.INFO\r\n$1\r\na\r\n", yes),
            ("*2\r\n$3\r\nGE", Verdict::Unsure),
            ("*", Verdict::Unsure),
            ("*2\r\n$3\r\n123\r\n$1\r\na\r\n", Verdict::No),
            ("*0\r\n", Verdict::No),
            ("*-1\r\n", Verdict::No),
            ("*2\r\n:1\r\n", Verdict::No),
            ("+OK\r\n", Verdict::No),
            ("* / HTTP/1.1", Verdict::No),
            ("PING\r\n", Verdict::No),
            ("*2\n$3\nGET\n", Verdict::No),
        ] {
            assert_eq!(detect(text.as_bytes()), expected, "{text:?}");
        }
    }
}
