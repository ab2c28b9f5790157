//! For the tests of parsers: what happens on a connection, recorded or made
//! up, and what a parser says of it.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use super::{Connection, Endpoint, Parser, Protocol, Role, Side, Step};
use crate::attribute::Value;

/// One thing that happens on a connection.
#[derive(Clone, Debug)]
pub(super) enum Event {
    Bytes(Side, Vec<u8>),
    Skip(Side, u64, Vec<u8>),
    Divide,
    Close,
}

/// A client's connection.
pub(super) fn connection() -> Connection {
    let end = |text: &str| Some(Endpoint::Ip(text.parse().expect("an address")));
    Connection {
        role: Role::Client,
        local: end("127.0.0.1:40000"),
        peer: end("192.0.2.7:5432"),
        tls: false,
        old: false,
    }
}

pub(super) fn apply(parser: &mut dyn Parser, event: &Event, steps: &mut Vec<Step>) {
    match event {
        Event::Bytes(side, bytes) => parser.bytes(*side, bytes, steps),
        Event::Skip(side, count, tail) => parser.skip(*side, *count, tail, steps),
        Event::Divide => parser.divide(),
        Event::Close => parser.close(steps),
    }
}

pub(super) fn run(protocol: &Protocol, events: &[Event]) -> Vec<Step> {
    let mut parser = (protocol.parser)(&connection());
    let mut steps = Vec::new();
    for event in events {
        apply(&mut *parser, event, &mut steps);
    }
    steps
}

/// The same conversation in single bytes.
pub(super) fn split(events: &[Event]) -> Vec<Event> {
    let mut single = Vec::new();
    for event in events {
        match event {
            Event::Bytes(side, bytes) => {
                single.extend(bytes.iter().map(|byte| Event::Bytes(*side, vec![*byte])));
            }
            other => single.push(other.clone()),
        }
    }
    single
}

fn plain(value: &Value) -> String {
    match value {
        Value::Str(text) => format!("{text:?}"),
        Value::Int(number) => number.to_string(),
        other => format!("{other:?}"),
    }
}

/// Steps in short words: an end with its name, rows and error.
pub(super) fn brief(steps: &[Step]) -> String {
    let mut lines = Vec::new();
    for step in steps {
        lines.push(match step {
            Step::Begin { exchange, .. } => format!("begin {exchange}"),
            Step::Head { exchange, .. } => format!("head {exchange}"),
            Step::Abandon { exchange, reason } => format!("abandon {exchange} {reason:?}"),
            Step::Mute(reason) => format!("mute {reason:?}"),
            Step::End { exchange, result } => {
                let mut line = format!("end {exchange} {}", result.name);
                for (key, mark) in [
                    ("db.operation.batch.size", "x"),
                    ("db.response.returned_rows", "rows "),
                    ("error.type", "failed "),
                ] {
                    let found = result.attributes.iter().find(|(known, _)| known == key);
                    if let Some((_, value)) = found {
                        let value = plain(value);
                        write!(line, ", {mark}{}", value.trim_matches('"')).expect("a string");
                    }
                }
                line
            }
        });
    }
    lines.join("; ")
}

/// Everything that the steps say.
pub(super) fn golden(steps: &[Step]) -> String {
    let mut text = String::new();
    for step in steps {
        match step {
            Step::Begin { exchange, offset } => writeln!(text, "begin {exchange} at {offset}"),
            Step::End { exchange, result } => {
                writeln!(
                    text,
                    "end {exchange} {:?} {} {:?}",
                    result.name, result.scope, result.status
                )
            }
            other => writeln!(text, "{}", brief(std::slice::from_ref(other))),
        }
        .expect("a string");
        if let Step::End { result, .. } = step {
            for (key, value) in &result.attributes {
                writeln!(text, "    {key} = {}", plain(value)).expect("a string");
            }
        }
    }
    text
}

/// The recorded conversations of a protocol.
pub(super) fn fixtures(protocol: &Protocol) -> Vec<(PathBuf, Vec<Event>)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../tests/fixtures")
        .join(protocol.name);
    let mut found: Vec<_> = std::fs::read_dir(&folder)
        .expect("the fixtures' folder")
        .map(|entry| entry.expect("a folder entry").path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "txt"))
        .map(|path| {
            let text = std::fs::read_to_string(&path).expect("a fixture");
            let events = text.lines().filter_map(event).collect();
            (path, events)
        })
        .collect();
    found.sort_by(|(a, _), (b, _)| a.cmp(b));
    assert!(found.len() > 5, "fixtures in {}", folder.display());
    found
}

/// A line as `record.py` describes it.
fn event(line: &str) -> Option<Event> {
    let (mark, rest) = line.split_once(' ').unwrap_or((line, ""));
    let side = match mark {
        ">" => Side::Request,
        "<" => Side::Response,
        "." => return Some(Event::Close),
        _ => return None,
    };
    let text: String = serde_json::from_str(rest).expect("a JSON string");
    let bytes = text
        .chars()
        .map(|c| u8::try_from(c).expect("Latin-1"))
        .collect();
    Some(Event::Bytes(side, bytes))
}

/// Every recorded conversation is told as its golden file says.
pub(super) fn check_golden(protocol: &Protocol) {
    for (path, events) in fixtures(protocol) {
        let found = golden(&run(protocol, &events));
        // What the recorded clients sent as data and as passwords.
        assert!(!found.contains("hidden-"), "{}", path.display());
        let path = path.with_extension("golden");
        if std::env::var_os("UPDATE_EXPECT").is_some() {
            std::fs::write(&path, &found).expect("a golden file");
        }
        let expected = std::fs::read_to_string(&path).unwrap_or_default();
        assert_eq!(found, expected, "{}", path.display());
    }
}

/// It makes no difference where bytes are split.
pub(super) fn check_splits(protocol: &Protocol) {
    for (path, events) in fixtures(protocol) {
        let whole = run(protocol, &events);
        for (index, event) in events.iter().enumerate() {
            let Event::Bytes(side, bytes) = event else {
                continue;
            };
            for at in 1..bytes.len().min(1500) {
                let (first, second) = bytes.split_at(at);
                let mut events = events.clone();
                events[index] = Event::Bytes(*side, second.to_vec());
                events.insert(index, Event::Bytes(*side, first.to_vec()));
                assert!(
                    run(protocol, &events) == whole,
                    "{} {index} {at}",
                    path.display()
                );
            }
        }
        let found = run(protocol, &split(&events));
        assert_eq!(golden(&found), golden(&whole), "{}", path.display());
    }
}

/// Where a conversation is cut, or bytes of it are missed, nothing is said
/// twice or left open.
pub(super) fn check_truncation(protocol: &Protocol) {
    for (_, events) in fixtures(protocol) {
        for (index, event) in events.iter().enumerate() {
            let Event::Bytes(side, bytes) = event else {
                continue;
            };
            for at in (0..bytes.len().min(60)).chain((60..bytes.len().min(600)).step_by(29)) {
                let mut cut: Vec<_> = events[..index].to_vec();
                cut.push(Event::Bytes(*side, bytes[..at].to_vec()));
                cut.push(Event::Close);
                check_balance(&run(protocol, &cut));
                // What is cut off may as well have been missed.
                cut.pop();
                let tail = &bytes[at.max(bytes.len().saturating_sub(8))..];
                let missed = (bytes.len() - at) as u64;
                for tail in [&[][..], tail] {
                    let mut events_left = cut.clone();
                    events_left.push(Event::Skip(*side, missed, tail.to_vec()));
                    events_left.extend_from_slice(&events[index + 1..]);
                    events_left.push(Event::Close);
                    check_balance(&run(protocol, &events_left));
                }
            }
        }
    }
}

/// Every exchange that begins ends once, and none ends that did not begin.
pub(super) fn check_balance(steps: &[Step]) {
    let mut open = BTreeSet::new();
    let mut next = 0;
    for step in steps {
        match step {
            Step::Begin { exchange, .. } => {
                assert_eq!(*exchange, next);
                assert!(open.insert(*exchange));
                next += 1;
            }
            Step::Head { exchange, .. } => assert!(open.contains(exchange)),
            Step::End { exchange, result } => {
                assert!(open.remove(exchange), "{exchange}");
                for (key, value) in &result.attributes {
                    let same = result.attributes.iter().filter(|(other, _)| other == key);
                    assert_eq!(same.count(), 1, "{key}");
                    if let Value::Str(text) = value {
                        let odd = |c: char| c.is_control() && !"\n\r\t".contains(c);
                        assert!(text.len() <= 4096 && !text.contains(odd));
                    }
                }
            }
            Step::Abandon { exchange, .. } => {
                if !open.remove(exchange) {
                    assert_eq!(*exchange, next);
                    next += 1;
                }
            }
            Step::Mute(_) => assert!(open.is_empty()),
        }
    }
    assert!(open.is_empty(), "{open:?}");
}
