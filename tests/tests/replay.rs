//! Recorded runs through the pipeline, without a kernel: the same bytes come
//! out each time, and nothing that is lost or damaged on the way gives a call
//! a wrong parent.
//!
//! `fixtures/recordings` holds the runs, made by `record.py` there, and beside
//! each what comes of it; `UPDATE_EXPECT=1` writes that anew.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use abi::record::{Data, kind};
use otel_ebpf::assemble::{Ids, Span, UnixTime};
use otel_ebpf::attribute::Value;
use otel_ebpf::config::SpanLimits;
use otel_ebpf::export::Exporter as _;
use otel_ebpf::export::file::File;
use otel_ebpf::protocol::Role;
use otel_ebpf::recording::{self, Entry};
use otel_ebpf::source::{Event, decode};
use otel_ebpf::tracer::Tracer;
use rand::rngs::SmallRng;
use rand::seq::IndexedRandom as _;
use rand::{Rng as _, SeedableRng as _};
use zerocopy::{FromBytes as _, IntoBytes as _};

const RECORDINGS: [&str; 3] = ["flask-gthread", "fastapi-asyncio", "fastapi-uvloop"];

/// How often each recording is damaged in a test.
const ROUNDS: usize = 2_000;

/// Numbers for ids, in order.
#[derive(Default)]
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 += 1;
        self.0
    }
}

impl Ids for Numbers {
    fn trace_id(&mut self) -> [u8; 16] {
        u128::from(self.next()).to_be_bytes()
    }

    fn span_id(&mut self) -> [u8; 8] {
        self.next().to_be_bytes()
    }
}

/// A clock that was started in October 2025.
struct Fixed;

impl UnixTime for Fixed {
    fn unix(&self, monotonic: u64) -> u64 {
        monotonic.saturating_add(1_760_000_000_000_000_000)
    }
}

fn path(name: &str, extension: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("fixtures/recordings")
        .join(format!("{name}.{extension}"))
}

fn entries(name: &str) -> Vec<Entry> {
    let bytes = std::fs::read(path(name, "events")).unwrap();
    assert!(bytes.len() < 100 * 1024, "{name}: {}", bytes.len());
    recording::read(&bytes).unwrap()
}

/// Spans of a run. With `to_the_end`, every connection is closed after it.
fn replay(entries: &[Entry], to_the_end: bool) -> Vec<Span> {
    let mut tracer = Tracer::new(Box::new(Numbers::default()));
    let mut spans = Vec::new();
    let mut pids = Vec::new();
    for entry in entries {
        match entry {
            Entry::Record(bytes) => {
                if let Some(process) = decode(bytes).and_then(|event| tracer.event(event)) {
                    if matches!(process.kind, kind::EXEC | kind::EXIT) {
                        tracer.disconnect(process.pid, process.at);
                    }
                    if process.kind == kind::EXIT {
                        tracer.spans(&Fixed, |_| {}, |span| spans.push(span));
                        tracer.assembler.process_gone(process.pid);
                    }
                }
            }
            Entry::Process(pid, resource) => {
                pids.push(*pid);
                tracer.process(*pid, Arc::clone(resource));
            }
            Entry::Disabled(pid, disabled) => tracer.disable(*pid, disabled.clone()),
            Entry::Opening(opening) => tracer.open(opening.clone()),
            Entry::Insight(insight) => tracer.insight((**insight).clone()),
        }
        tracer.spans(&Fixed, |_| {}, |span| spans.push(span));
    }
    if to_the_end {
        for pid in pids {
            tracer.disconnect(pid, u64::MAX);
        }
        tracer.spans(&Fixed, |_| {}, |span| spans.push(span));
    }
    spans
}

/// What the file exporter makes of spans.
fn exported(spans: Vec<Span>) -> Vec<u8> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("spans.jsonl");
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap();
    let mut file = File::open(&path, SpanLimits::default()).unwrap();
    runtime.block_on(file.export(spans)).unwrap();
    std::fs::read(&path).unwrap()
}

#[test]
fn recorded_events_replay_to_the_same_bytes() {
    for name in RECORDINGS {
        let entries = entries(name);
        let bytes = exported(replay(&entries, false));
        assert_eq!(bytes, exported(replay(&entries, false)), "{name}");

        let json: serde_json::Value = serde_json::from_slice(&bytes).unwrap();
        let found = format!("{}\n", serde_json::to_string_pretty(&json).unwrap());
        let golden = path(name, "json");
        if std::env::var_os("UPDATE_EXPECT").is_some_and(|value| value == "1") {
            std::fs::write(&golden, &found).unwrap();
        }
        let expected = std::fs::read_to_string(&golden).unwrap_or_default();
        let differs = found
            .lines()
            .zip(expected.lines())
            .position(|(a, b)| a != b);
        assert!(
            found == expected,
            "{}: differs from line {:?} on; UPDATE_EXPECT=1 writes it anew",
            golden.display(),
            differs.map(|line| line + 1)
        );
    }
}

#[test]
fn every_call_of_a_whole_recording_is_under_its_own_request() {
    for name in RECORDINGS {
        let spans = replay(&entries(name), false);
        let calls = spans.iter().filter(|span| span.role == Role::Client);
        assert!(calls.clone().count() >= 10, "{name}");
        assert!(calls.clone().all(|call| call.parent.is_some()), "{name}");
        assert_eq!(parents_of_their_own(name, &spans), calls.count(), "{name}");
    }
}

#[test]
fn what_is_lost_gives_no_call_a_wrong_parent() {
    for (seed, name) in RECORDINGS.into_iter().enumerate() {
        let whole = entries(name);
        let mut random = SmallRng::seed_from_u64(seed as u64);
        let mut parented = 0;
        let mut calls = 0;
        for round in 0..ROUNDS {
            let mut entries = whole.clone();
            for _ in 0..random.random_range(1..=6) {
                lose(&mut entries, &mut random);
            }
            let spans = replay(&entries, true);
            calls += spans.iter().filter(|s| s.role == Role::Client).count();
            parented += parents_of_their_own(&format!("{name}, round {round}"), &spans);
        }
        // Losses must not be answered by giving up on everything.
        assert!(parented * 2 > calls, "{name}: {parented} of {calls}");
        assert!(parented < calls, "{name}: nothing was lost");
    }
}

#[test]
fn damaged_recordings_are_taken_as_they_are() {
    for (seed, name) in RECORDINGS.into_iter().enumerate() {
        let whole = entries(name);
        let mut random = SmallRng::seed_from_u64(100 + seed as u64);
        for round in 0..ROUNDS {
            let mut entries = whole.clone();
            for _ in 0..random.random_range(1..=6) {
                if random.random_bool(0.3) {
                    lose(&mut entries, &mut random);
                } else {
                    flip(&mut entries, &mut random);
                }
            }
            let spans = replay(&entries, true);
            exist_before_their_children(&format!("{name}, round {round}"), &spans);
        }
    }
}

/// Takes something from a run as a full ring, a page fault, or two processors
/// at once might.
fn lose(entries: &mut Vec<Entry>, random: &mut SmallRng) {
    let Some(at) = (0..entries.len())
        .collect::<Vec<_>>()
        .choose(random)
        .copied()
    else {
        return;
    };
    match random.random_range(0..10) {
        0..4 => {
            let end = (at + random.random_range(1..=4)).min(entries.len());
            // What discovery finds does not come through the ring.
            let mut index = 0;
            entries.retain(|entry| {
                index += 1;
                !(at..end).contains(&(index - 1)) || !matches!(entry, Entry::Record(_))
            });
        }
        4..6 => {
            let again = entries[at].clone();
            let later = random.random_range(at..entries.len());
            entries.insert(later + 1, again);
        }
        6..8 => {
            let next = (at + 1).min(entries.len() - 1);
            entries.swap(at, next);
        }
        _ => {
            if let Entry::Record(bytes) = &mut entries[at]
                && let Some(Event::Data(mut data, payload)) = decode(bytes)
            {
                let kept = random.random_range(0..=payload.len());
                let mut faulted = payload[..kept].to_vec();
                data.captured = u32::try_from(kept).unwrap();
                let mut record = data.as_bytes().to_vec();
                record.append(&mut faulted);
                *bytes = record;
            }
        }
    }
}

/// Changes a byte of a record's header or payload, or cuts it off.
fn flip(entries: &mut [Entry], random: &mut SmallRng) {
    let mut records: Vec<_> = entries
        .iter_mut()
        .filter_map(|entry| match entry {
            Entry::Record(bytes) => Some(bytes),
            _ => None,
        })
        .collect();
    let at = random.random_range(0..records.len());
    let record = &mut records[at];
    let header = size_of::<Data>().min(record.len());
    let at = match random.random_bool(0.5) {
        true => random.random_range(0..header),
        false => random.random_range(0..record.len()),
    };
    if random.random_bool(0.05) {
        record.truncate(at);
    } else {
        record[at] = random.random();
    }
    if record.is_empty() {
        record.push(0);
    }
}

/// The id of the request in a span's query, or in that of the call's URL.
fn request_id(span: &Span) -> Option<&str> {
    let (_, query) = span.exchange.attributes.iter().find_map(|(key, value)| {
        let Value::Str(text) = value else {
            return None;
        };
        match key.as_ref() {
            "url.query" => Some(("", text.as_ref())),
            "url.full" => text.split_once('?'),
            _ => None,
        }
    })?;
    query.split('&').find_map(|pair| pair.strip_prefix("id="))
}

/// Checks that no call is under a request of another id, and tells how many
/// are under one that was seen to its end.
#[track_caller]
fn parents_of_their_own(what: &str, spans: &[Span]) -> usize {
    let servers: HashMap<_, _> = spans
        .iter()
        .filter(|span| span.role == Role::Server)
        .map(|span| (span.span_id, span))
        .collect();
    let mut found = 0;
    for span in spans.iter().filter(|span| span.role == Role::Client) {
        let Some(parent) = span.parent else {
            continue;
        };
        assert!(!parent.remote, "{what}");
        let Some(server) = servers.get(&parent.span_id) else {
            continue;
        };
        let own = request_id(span);
        assert!(own.is_some(), "{what}: {span:?}");
        assert_eq!(own, request_id(server), "{what}: {span:?} under {server:?}");
        assert_eq!(span.trace_id, server.trace_id, "{what}");
        found += 1;
    }
    found
}

/// Checks that whatever is a parent is a server span, and began no later than
/// its id was given.
#[track_caller]
fn exist_before_their_children(what: &str, spans: &[Span]) {
    let roles: HashMap<_, _> = spans.iter().map(|span| (span.span_id, span.role)).collect();
    for span in spans.iter().filter(|span| span.role == Role::Client) {
        let Some(parent) = span.parent else {
            continue;
        };
        assert!(!parent.remote, "{what}");
        let role = roles.get(&parent.span_id).copied();
        assert!(role.is_none_or(|role| role == Role::Server), "{what}");
        // Ids are given in order.
        let number = u64::from_be_bytes(parent.span_id);
        assert!(number < u64::from_be_bytes(span.span_id), "{what}");
    }
}

#[test]
fn records_are_as_long_as_the_kernel_side_makes_them() {
    for name in RECORDINGS {
        for entry in entries(name) {
            if let Entry::Record(bytes) = entry
                && let Ok((data, payload)) = Data::read_from_prefix(&bytes)
                && data.kind == kind::DATA
            {
                assert_eq!(payload.len(), data.captured as usize, "{name}");
            }
        }
    }
}
