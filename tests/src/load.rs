//! Load with a name on every request, and the judgement of where the calls
//! that it caused were placed.
//!
//! A request carries its id in its query, and each call that it causes
//! carries that id and a number of its own, so that the exact set of children
//! of every server span is known.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;

use anyhow::{Context, Result, ensure};
use rustix::process::{Resource, getrlimit, setrlimit};

use crate::client::{Address, Connection};
use crate::trace::{Kind, Span};

/// Requests in flight at a time.
pub const CONCURRENCY: usize = 64;
/// The most calls that a request makes.
pub const MOST_CALLS: usize = 5;
/// Connections of [`Manner::Crowd`].
pub const CROWD: usize = 10_000;
/// From one connection of the crowd to the next that is used: no divisor of
/// [`CROWD`], so that every one gets its turn.
const STRIDE: usize = 4_999;
/// Descriptors of a crowd, and of all else.
const DESCRIPTORS: u64 = CROWD as u64 + 4_000;

/// How a request is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Manner {
    /// In one piece, on a connection that is kept.
    Whole,
    /// A `POST` in four pieces: half a head, the rest of it, half a body, the
    /// rest of it. Each is read by the server before the next is sent.
    Pieces,
    /// In one piece, on a connection of its own.
    Close,
    /// In one piece, and every third request without waiting for the answer:
    /// the connection is closed at once or in the middle of the work.
    Impatient,
    /// Two requests at a time, the second before the first is answered.
    Pipelined,
    /// Each request in one of the manners above but the last, by its number.
    Mixed,
    /// In one piece, each on another of [`CROWD`] connections, which are all
    /// open from before the first request until after the last.
    Crowd,
}

impl Manner {
    /// Its name in the report, if it is not the common one.
    pub const fn name(self) -> Option<&'static str> {
        match self {
            Self::Whole => None,
            Self::Pieces => Some("in pieces"),
            Self::Close => Some("closed"),
            Self::Impatient => Some("impatient"),
            Self::Pipelined => Some("pipelined"),
            Self::Mixed => Some("mixed"),
            Self::Crowd => Some("in a crowd"),
        }
    }
}

/// Requests that are to be sent.
#[derive(Clone, Debug)]
pub struct Load {
    address: Address,
    /// Path and query, without id and number of calls.
    target: String,
    tag: String,
    /// Those that are to be answered; what is given up comes on top.
    requests: usize,
    manner: Manner,
}

/// A load under way.
#[derive(Debug, Default)]
pub struct Progress {
    /// Set to end it before all was sent.
    pub stop: AtomicBool,
    /// Requests that were answered so far.
    pub answered: AtomicUsize,
}

/// How many requests were sent, and what went wrong.
#[derive(Debug, Default)]
pub struct Sent {
    /// Requests that were answered with 200.
    pub answered: usize,
    /// Calls that those were to make.
    pub calls: usize,
    /// What happened to the others.
    pub failures: Vec<String>,
}

impl Load {
    /// Requests for a target, with ids that begin with the tag.
    pub fn new(address: &Address, target: &str, tag: &str, requests: usize) -> Self {
        Self {
            address: address.clone(),
            target: target.to_owned(),
            tag: tag.to_owned(),
            requests,
            manner: Manner::Whole,
        }
    }

    /// How they are sent.
    pub fn manner(mut self, manner: Manner) -> Self {
        self.manner = manner;
        self
    }

    /// Sends all of them, [`CONCURRENCY`] at a time.
    pub fn run(&self) -> Sent {
        self.run_with(&Progress::default())
    }

    /// Sends all of them, or those until it is told to stop.
    pub fn run_with(&self, progress: &Progress) -> Sent {
        let crowd = match self.manner {
            Manner::Crowd => match self.crowd() {
                Ok(crowd) => crowd,
                Err(error) => {
                    let failures = vec![format!("the crowd: {error:#}")];
                    return Sent {
                        failures,
                        ..Sent::default()
                    };
                }
            },
            _ => Vec::new(),
        };
        let (next, awaited) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let sent = Mutex::new(Sent::default());
        thread::scope(|scope| {
            for _ in 0..CONCURRENCY {
                scope.spawn(|| {
                    let mut client = Client::default();
                    while !progress.stop.load(Ordering::Relaxed) {
                        let number = next.fetch_add(1, Ordering::Relaxed);
                        let answers = self.answers(number);
                        if awaited.fetch_add(answers, Ordering::Relaxed) >= self.requests {
                            return;
                        }
                        let result = match crowd.get(number * STRIDE % CROWD) {
                            Some(connection) => self.send_in_crowd(connection, number),
                            None => self.send(&mut client, number),
                        };
                        let mut sent = sent.lock().unwrap_or_else(PoisonError::into_inner);
                        match result {
                            Ok(ids) => {
                                progress.answered.fetch_add(ids.len(), Ordering::Relaxed);
                                sent.answered += ids.len();
                                sent.calls += ids.iter().map(|id| calls_of(id)).sum::<usize>();
                            }
                            Err(error) => {
                                client = Client::default();
                                sent.failures.push(format!("{number}: {error:#}"));
                            }
                        }
                    }
                });
            }
        });
        sent.into_inner().unwrap_or_else(PoisonError::into_inner)
    }

    fn id(&self, number: usize) -> String {
        format!("{}-{number}", self.tag)
    }

    /// How the request of this number is sent.
    fn manner_of(&self, number: usize) -> Manner {
        match self.manner {
            Manner::Mixed => MIX[calls_of(&self.id(number)) % MIX.len()],
            manner => manner,
        }
    }

    /// How many answers are waited for at this number.
    fn answers(&self, number: usize) -> usize {
        match self.manner_of(number) {
            Manner::Impatient if given_up(number) => 0,
            Manner::Pipelined => 2,
            _ => 1,
        }
    }

    /// The connections of a crowd, all open.
    fn crowd(&self) -> Result<Vec<Mutex<Connection>>> {
        allow_crowds()?;
        let open = |_| Ok(Mutex::new(Connection::open(&self.address)?));
        (0..CROWD).map(open).collect()
    }

    fn send_in_crowd(&self, connection: &Mutex<Connection>, number: usize) -> Result<Vec<String>> {
        let id = self.id(number);
        let mut connection = connection.lock().unwrap_or_else(PoisonError::into_inner);
        let answer = connection.get(&self.target_of(&id))?;
        ensure!(answer.status == 200, "{}", answer.text());
        Ok(vec![id])
    }

    /// Sends one request; returns the ids of those that were answered.
    fn send(&self, client: &mut Client, number: usize) -> Result<Vec<String>> {
        let id = self.id(number);
        let target = self.target_of(&id);
        match self.manner_of(number) {
            Manner::Whole | Manner::Mixed | Manner::Crowd => {
                let answer = client.kept(&self.address)?.get(&target)?;
                ensure!(answer.status == 200, "{}", answer.text());
            }
            Manner::Close => {
                let mut connection = Connection::open(&self.address)?;
                let headers = [("connection", "close")];
                let answer = connection.request("GET", &target, &headers, b"")?;
                ensure!(answer.status == 200, "{}", answer.text());
            }
            Manner::Impatient if given_up(number) => {
                let mut connection = Connection::open(&self.address)?;
                let head = connection.head("GET", &target, &[], 0);
                connection.send(head)?;
                if number.is_multiple_of(2) {
                    // By then the server is at work on it, or nearly so.
                    client.pace(&self.address)?;
                }
                return Ok(Vec::new());
            }
            Manner::Impatient => {
                let answer = client.kept(&self.address)?.get(&target)?;
                ensure!(answer.status == 200, "{}", answer.text());
            }
            Manner::Pieces => self.pieces(client, &target)?,
            Manner::Pipelined => {
                let second = format!("{id}b");
                client.kept(&self.address)?;
                for target in [&target, &self.target_of(&second)] {
                    let connection = client.kept(&self.address)?;
                    let head = connection.head("GET", target, &[], 0);
                    connection.send(head)?;
                    client.pace(&self.address)?;
                }
                for _ in 0..2 {
                    let answer = client.kept(&self.address)?.response(false)?;
                    ensure!(answer.status == 200, "{}", answer.text());
                }
                return Ok(vec![id, second]);
            }
        }
        Ok(vec![id])
    }

    fn pieces(&self, client: &mut Client, target: &str) -> Result<()> {
        let body = [b'x'; 300];
        let head = client
            .kept(&self.address)?
            .head("POST", target, &[], body.len());
        let head = head.as_bytes();
        let (begin, rest) = head.split_at(head.len() / 2);
        let (half, end) = body.split_at(body.len() / 2);
        for piece in [begin, rest, half, end] {
            client.kept(&self.address)?.send(piece)?;
            if piece != end {
                client.pace(&self.address)?;
            }
        }
        let answer = client.kept(&self.address)?.response(false)?;
        ensure!(answer.status == 200, "{}", answer.text());
        Ok(())
    }

    fn target_of(&self, id: &str) -> String {
        let join = if self.target.contains('?') { '&' } else { '?' };
        format!("{}{join}n={}&id={id}", self.target, calls_of(id))
    }
}

/// What [`Manner::Mixed`] is made of.
const MIX: [Manner; 4] = [
    Manner::Whole,
    Manner::Close,
    Manner::Impatient,
    Manner::Whole,
];

/// Whether an impatient client leaves before the answer.
fn given_up(number: usize) -> bool {
    number.is_multiple_of(3)
}

/// Lets this process, and those that it starts from now on, have as many
/// descriptors as a crowd needs.
pub fn allow_crowds() -> Result<()> {
    let mut limit = getrlimit(Resource::Nofile);
    if limit.current.is_none_or(|current| current >= DESCRIPTORS) {
        return Ok(());
    }
    limit.current = Some(DESCRIPTORS);
    limit.maximum = limit.maximum.map(|maximum| maximum.max(DESCRIPTORS));
    setrlimit(Resource::Nofile, limit).context("cannot allow so many descriptors")
}

/// How many calls the request of this id makes: one to [`MOST_CALLS`], as if
/// by chance, but the same each time (FNV-1a).
pub fn calls_of(id: &str) -> usize {
    let hash = id.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    1 + (hash >> 32) as usize % MOST_CALLS
}

/// The connections of one sender.
#[derive(Default)]
struct Client {
    kept: Option<Connection>,
    pace: Option<Connection>,
}

impl Client {
    fn kept(&mut self, address: &Address) -> Result<&mut Connection> {
        open(&mut self.kept, address)
    }

    /// Waits until an event loop has read what was sent before: it answers
    /// what comes later on another connection.
    fn pace(&mut self, address: &Address) -> Result<()> {
        let answer = open(&mut self.pace, address)?.get("/")?;
        ensure!(answer.status == 200, "{}", answer.text());
        Ok(())
    }
}

fn open<'a>(slot: &'a mut Option<Connection>, address: &Address) -> Result<&'a mut Connection> {
    if slot.is_none() {
        *slot = Some(Connection::open(address)?);
    }
    slot.as_mut().context("no connection")
}

/// Where the calls of a load were placed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Placement {
    /// Server spans of the load.
    pub requests: usize,
    /// Calls that they were to make.
    pub expected: usize,
    /// Calls under their own request.
    pub placed: usize,
    /// Calls under no request.
    pub unparented: usize,
    /// Calls under another span.
    pub misplaced: usize,
    /// Calls under a span that was not exported: it did not end in time, or
    /// its end was lost.
    pub orphaned: usize,
    /// Server spans whose calls are not each there exactly once.
    pub incomplete: usize,
    /// What was misplaced, in words; a few of them.
    pub examples: Vec<String>,
}

impl Placement {
    /// Calls that were seen.
    pub fn calls(&self) -> usize {
        self.placed + self.unparented + self.misplaced + self.orphaned
    }

    /// Asserts that no call is under a wrong span.
    #[track_caller]
    pub fn assert_none_misplaced(&self) {
        assert_eq!(self.misplaced, 0, "{self:#?}");
    }

    /// Fails unless every call of what was answered is there, none under a
    /// wrong span and at most one in a thousand under none.
    pub fn expect_exact(&self, sent: &Sent) -> Result<()> {
        self.expect_all(sent)?;
        ensure!(self.unparented * 1000 <= self.calls(), "unparented calls");
        ensure!(self.incomplete <= self.unparented, "incomplete requests");
        Ok(())
    }

    /// Fails unless every call of what was answered is there, and none under
    /// a wrong span.
    pub fn expect_all(&self, sent: &Sent) -> Result<()> {
        ensure!(self.misplaced == 0, "misplaced calls");
        ensure!(self.orphaned == 0, "calls under spans that are not there");
        ensure!(
            self.requests == sent.answered,
            "{} requests were answered",
            sent.answered
        );
        ensure!(
            self.calls() == sent.calls && self.expected == sent.calls,
            "{} calls were to be made",
            sent.calls
        );
        Ok(())
    }
}

impl fmt::Display for Placement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:>8} {:>8} {:>10} {:>9} {:>10}",
            self.requests, self.placed, self.unparented, self.misplaced, self.incomplete
        )
    }
}

/// Judges every load in the spans, by the tag of its ids: where the id ends
/// before its last `-`.
pub fn placements(spans: &[Span]) -> BTreeMap<String, Placement> {
    let by_id: HashMap<&str, &Span> = spans
        .iter()
        .map(|span| (span.span_id.as_str(), span))
        .collect();
    let mut calls: HashMap<&str, Vec<usize>> = HashMap::new();
    let mut found = BTreeMap::<String, Placement>::new();
    for span in spans.iter().filter(|span| span.kind == Kind::Client) {
        let url = span.text("url.full");
        let (Some(id), Some(call)) = (parameter(url, "id"), parameter(url, "call")) else {
            continue;
        };
        let placement = found.entry(tag(id).to_owned()).or_default();
        let Some(parent) = &span.parent else {
            placement.unparented += 1;
            continue;
        };
        let Some(parent) = by_id.get(parent.as_str()) else {
            placement.orphaned += 1;
            continue;
        };
        let own = parent.kind == Kind::Server
            && parent.trace_id == span.trace_id
            && parameter(parent.text("url.query"), "id") == Some(id);
        if own {
            placement.placed += 1;
            let number = call.parse().unwrap_or(usize::MAX);
            calls
                .entry(span.parent.as_deref().unwrap_or_default())
                .or_default()
                .push(number);
        } else {
            placement.misplaced += 1;
            if placement.examples.len() < 5 {
                let under = format!("{} {}", parent.name, parent.target());
                placement.examples.push(format!("{url} under {under}"));
            }
        }
    }
    for span in spans.iter().filter(|span| span.kind == Kind::Server) {
        let Some(id) = parameter(span.text("url.query"), "id") else {
            continue;
        };
        if parameter(span.text("url.query"), "call").is_some() {
            // The service that is called, traced too.
            continue;
        }
        let placement = found.entry(tag(id).to_owned()).or_default();
        let count = parameter(span.text("url.query"), "n");
        let count = count.and_then(|count| count.parse().ok()).unwrap_or(0);
        placement.requests += 1;
        placement.expected += count;
        let mut made = calls.remove(span.span_id.as_str()).unwrap_or_default();
        made.sort_unstable();
        if made.into_iter().ne(0..count) {
            placement.incomplete += 1;
        }
    }
    found
}

/// A parameter of a URL or a query.
pub fn parameter<'a>(url: &'a str, name: &str) -> Option<&'a str> {
    let query = url.split_once('?').map_or(url, |(_, query)| query);
    query
        .split('&')
        .filter_map(|pair| pair.split_once('='))
        .find(|(key, _)| *key == name)
        .map(|(_, value)| value)
}

fn tag(id: &str) -> &str {
    id.rsplit_once('-').map_or(id, |(tag, _)| tag)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn span(kind: Kind, id: &str, parent: Option<&str>, attribute: (&str, &str)) -> Span {
        Span {
            name: "GET".to_owned(),
            kind,
            trace_id: "t".to_owned(),
            span_id: id.to_owned(),
            parent: parent.map(str::to_owned),
            remote: false,
            flags: 1,
            trace_state: String::new(),
            start: 0,
            end: 1,
            error: false,
            message: String::new(),
            events: Vec::new(),
            attributes: [(attribute.0.to_owned(), attribute.1.into())].into(),
            resource: BTreeMap::new(),
            scope: String::new(),
        }
    }

    fn server(id: &str, request: &str) -> Span {
        let query = format!("n=3&id={request}");
        span(Kind::Server, id, None, ("url.query", &query))
    }

    fn call(id: &str, request: &str, call: usize, parent: Option<&str>) -> Span {
        let url = format!("http://h/?id={request}&call={call}");
        span(Kind::Client, id, parent, ("url.full", &url))
    }

    #[test]
    fn every_call_is_judged_by_its_id() {
        let spans = [
            server("s1", "a-1"),
            server("s2", "a-2"),
            call("c1", "a-1", 0, Some("s1")),
            call("c2", "a-1", 1, Some("s1")),
            call("c3", "a-1", 2, Some("s1")),
            call("c4", "a-2", 0, Some("s1")),
            call("c5", "a-2", 1, None),
            call("c6", "a-2", 2, Some("gone")),
        ];
        let found = &placements(&spans)["a"];
        assert_eq!(
            (found.requests, found.placed, found.unparented),
            (2, 3, 1),
            "{found:?}"
        );
        assert_eq!((found.misplaced, found.orphaned), (1, 1), "{found:?}");
        assert_eq!(found.incomplete, 1, "{found:?}");
    }

    #[test]
    fn a_call_that_came_twice_is_no_exact_set() {
        let spans = [
            server("s1", "a-1"),
            call("c1", "a-1", 0, Some("s1")),
            call("c2", "a-1", 1, Some("s1")),
            call("c3", "a-1", 1, Some("s1")),
        ];
        assert_eq!(placements(&spans)["a"].incomplete, 1);
    }
}
