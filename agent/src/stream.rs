//! Follows every connection: puts its bytes in order, finds its protocol and
//! role, feeds the parser, and stamps what the parser finds with the time and
//! the evidence of the bytes at hand.
//!
//! It knows no protocol by name, does no I/O and reads no clock. `assemble`
//! takes what it returns; `run` mutes in the kernel what it gives up on.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use abi::map::Descriptor;
use abi::record::{self, Data, Open, Owner, direction};

use crate::propagation::TraceContext;
use crate::protocol::{
    Connection, Defect, Endpoint, Exchange, PROTOCOLS, Parser, Protocol, Role, Side, Step, Verdict,
};
use crate::stats::{Count, counters};

/// Connections followed at a time; more are refused and counted.
pub const MAX_CONNECTIONS: usize = 65_536;
/// Transfers of a new connection that may look like no protocol before it is
/// muted: one each way.
const TRIES_NEW: u32 = 2;
/// The same for a connection older than the attach, which may be in the
/// middle of a body.
const TRIES_OLD: u32 = 64;
/// Bytes kept while the protocol is in doubt.
const MAX_DOUBT: usize = 1024;

counters! {
    /// Counters of `stream`.
    pub struct StreamStats {
        /// Connections opened or found.
        connections => "stream.connections",
        /// Connections refused because too many are followed.
        refused => "stream.dropped.too_many_connections",
        /// Transfers on connections whose opening was not seen.
        unannounced => "stream.unannounced_connections",
        /// Bytes missing between transfers.
        gap_bytes => "stream.gap_bytes",
        /// Transfers that came twice or out of order, and were left out.
        overlaps => "stream.dropped.overlaps",
        /// Connections muted: of no known protocol.
        unknown_protocol => "stream.muted.unknown_protocol",
        /// Connections muted: upgraded to another protocol.
        upgraded => "stream.muted.upgraded",
        /// Exchanges abandoned: the grammar was broken.
        malformed => "stream.abandoned.malformed",
        /// Exchanges abandoned: the head was too long.
        head_too_long => "stream.abandoned.head_too_long",
        /// Exchanges abandoned: bytes were missing.
        gap => "stream.abandoned.gap",
        /// Responses without a request.
        orphan => "stream.abandoned.orphan",
        /// Exchanges abandoned: too many in flight on one connection.
        too_many_in_flight => "stream.abandoned.too_many_in_flight",
    }
}

impl StreamStats {
    fn of(&self, defect: Defect) -> &Count {
        match defect {
            Defect::UnknownProtocol => &self.unknown_protocol,
            Defect::Upgraded => &self.upgraded,
            Defect::Malformed => &self.malformed,
            Defect::HeadTooLong => &self.head_too_long,
            Defect::Gap => &self.gap,
            Defect::Orphan => &self.orphan,
            Defect::TooManyInFlight => &self.too_many_in_flight,
        }
    }
}

/// Names an exchange across connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ExchangeId {
    /// Connection id.
    pub conn: u64,
    /// Number of the exchange on it.
    pub number: u64,
}

/// What the kernel side knew when bytes were transferred.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Evidence {
    /// Whose bytes they are.
    pub owner: Owner,
    /// See `abi::record::rule`.
    pub rule: u8,
}

/// What `assemble` is told. Times are monotonic nanoseconds.
#[derive(Debug)]
pub enum Progress {
    /// An exchange began.
    Begin {
        /// Which.
        id: ExchangeId,
        /// The traced process.
        pid: u32,
        /// Which end it is.
        role: Role,
        /// When its first byte was transferred.
        at: u64,
        /// Whose it is; meaningful for clients.
        evidence: Evidence,
    },
    /// Its head is known.
    Head {
        /// Which.
        id: ExchangeId,
        /// The context that travels with it.
        context: Option<Box<TraceContext>>,
    },
    /// It ended.
    End {
        /// Which.
        id: ExchangeId,
        /// When its last byte was transferred.
        at: u64,
        /// What it was.
        result: Box<Exchange>,
    },
    /// It yields no span.
    Abandon {
        /// Which.
        id: ExchangeId,
    },
    /// A server connection's transfer was understood: which exchange its
    /// bytes belong to.
    Read {
        /// The connection and the transfer's first byte.
        bytes: Owner,
        /// How many bytes.
        len: u64,
        /// The exchange all its bytes belong to; none if they belong to
        /// several, or to none.
        exchange: Option<u64>,
        /// Whether the exchange's head ended in these bytes.
        completes_head: bool,
    },
    /// A connection is gone.
    Closed {
        /// Which.
        conn: u64,
    },
    /// The kernel need not report this connection any more.
    Mute {
        /// Which.
        conn: u64,
    },
}

/// A connection at its start, or as found at the attach.
#[derive(Clone, Debug)]
pub struct Opening {
    /// Its id.
    pub conn: u64,
    /// Where it is.
    pub descriptor: Descriptor,
    /// Which end the process is, where known.
    pub role: Option<Role>,
    /// The process's end.
    pub local: Option<Endpoint>,
    /// The other end.
    pub peer: Option<Endpoint>,
    /// Whether bytes went before we looked.
    pub old: bool,
}

/// Every connection that is followed.
#[derive(Default)]
pub struct Streams {
    streams: HashMap<u64, Stream>,
    descriptors: HashMap<Descriptor, u64>,
    steps: Vec<Step>,
    /// What was left out, and why.
    pub stats: StreamStats,
}

struct Stream {
    descriptor: Descriptor,
    role: Option<Role>,
    local: Option<Endpoint>,
    peer: Option<Endpoint>,
    state: State,
    /// Expected offset of the next byte, by direction.
    next: [u64; 2],
    /// When the last bytes of each direction were transferred.
    last: [u64; 2],
    /// The exchange whose request is being read: begun and not ended.
    current: Option<u64>,
}

enum State {
    /// Nothing recognised yet.
    Doubt { tries: u32, held: Vec<Held> },
    /// A parser is at work.
    Known(Box<dyn Parser>),
    /// Of no interest.
    Muted,
}

/// A transfer kept while the protocol is in doubt.
struct Held {
    data: Data,
    bytes: Vec<u8>,
}

impl Streams {
    /// A connection was opened.
    pub fn open(&mut self, opening: Opening, out: &mut Vec<Progress>) {
        if let Some(&before) = self.descriptors.get(&opening.descriptor) {
            // The close was not seen; the descriptor has a new connection.
            self.close(before, None, out);
        }
        if self.streams.len() >= MAX_CONNECTIONS {
            self.stats.refused.one();
            return;
        }
        self.stats.connections.one();
        self.descriptors.insert(opening.descriptor, opening.conn);
        let tries = if opening.old { TRIES_OLD } else { TRIES_NEW };
        self.streams.insert(
            opening.conn,
            Stream {
                descriptor: opening.descriptor,
                role: opening.role,
                local: opening.local,
                peer: opening.peer,
                state: State::Doubt {
                    tries,
                    held: Vec::new(),
                },
                next: [0; 2],
                last: [0; 2],
                current: None,
            },
        );
    }

    /// Bytes were transferred.
    pub fn data(&mut self, data: &Data, bytes: &[u8], out: &mut Vec<Progress>) {
        if !self.streams.contains_key(&data.conn) {
            self.stats.unannounced.one();
            let opening = Opening {
                conn: data.conn,
                descriptor: Descriptor {
                    pid: data.pid,
                    fd: data.fd,
                },
                role: None,
                local: None,
                peer: None,
                old: true,
            };
            self.open(opening, out);
        }
        let Some(stream) = self.streams.get_mut(&data.conn) else {
            return;
        };
        self.steps.clear();
        stream.data(data, bytes, &mut self.steps, &self.stats, out);
    }

    /// A connection was closed at `at`, or is known to be gone.
    pub fn close(&mut self, conn: u64, at: Option<u64>, out: &mut Vec<Progress>) {
        let Some(mut stream) = self.streams.remove(&conn) else {
            return;
        };
        if self.descriptors.get(&stream.descriptor) == Some(&conn) {
            self.descriptors.remove(&stream.descriptor);
        }
        self.steps.clear();
        if let State::Known(parser) = &mut stream.state {
            parser.close(&mut self.steps);
        }
        // A response that was under way ended with its last byte, not when
        // the descriptor was closed.
        let [received, sent] = stream.last;
        let (request, response) = match stream.role {
            Some(Role::Client) => (sent, received),
            _ => (received, sent),
        };
        let now = at.unwrap_or(received.max(sent));
        let end = if response > request { response } else { now };
        let evidence = Evidence {
            owner: Owner::default(),
            rule: record::rule::NONE,
        };
        stream.deliver(conn, &mut self.steps, &self.stats, now, end, evidence, out);
        out.push(Progress::Closed { conn });
    }

    /// A process is gone: so are its connections. Returns them.
    pub fn exit(&mut self, pid: u32, at: u64, out: &mut Vec<Progress>) -> Vec<(Descriptor, u64)> {
        let gone: Vec<_> = self
            .descriptors
            .iter()
            .filter(|(descriptor, _)| descriptor.pid == pid)
            .map(|(&descriptor, &conn)| (descriptor, conn))
            .collect();
        for &(_, conn) in &gone {
            self.close(conn, Some(at), out);
        }
        gone
    }

    /// How many connections are followed.
    pub fn len(&self) -> usize {
        self.streams.len()
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.streams.is_empty()
    }
}

impl Stream {
    fn data(
        &mut self,
        data: &Data,
        bytes: &[u8],
        steps: &mut Vec<Step>,
        stats: &StreamStats,
        out: &mut Vec<Progress>,
    ) {
        if let State::Doubt { .. } = self.state {
            self.recognise(data, bytes, steps, stats, out);
        } else {
            self.feed(data, bytes, steps, stats, out);
        }
    }

    /// Looks for the protocol in the first bytes.
    fn recognise(
        &mut self,
        data: &Data,
        bytes: &[u8],
        steps: &mut Vec<Step>,
        stats: &StreamStats,
        out: &mut Vec<Progress>,
    ) {
        let State::Doubt { tries, held } = &mut self.state else {
            return;
        };
        let way = usize::from(data.direction & 1);
        // Bytes of this direction that came before and did not suffice.
        let mut first: Vec<u8> = Vec::new();
        for earlier in held
            .iter()
            .filter(|earlier| earlier.data.direction == data.direction)
        {
            first.extend_from_slice(&earlier.bytes);
        }
        let joined = !first.is_empty();
        if joined {
            first.extend_from_slice(bytes);
        }
        let (protocol, verdict) = judge(if joined { &first } else { bytes });
        match verdict {
            Verdict::Yes(side) => {
                let role = match (data.direction == direction::RECEIVED, side) {
                    (true, Side::Request) | (false, Side::Response) => Role::Server,
                    (false, Side::Request) | (true, Side::Response) => Role::Client,
                };
                self.role = Some(role);
                let connection = Connection {
                    role,
                    local: self.local.clone(),
                    peer: self.peer.clone(),
                    tls: false,
                };
                let held = std::mem::take(held);
                self.state = State::Known((protocol.parser)(&connection));
                // What came before was nothing, or belongs to this message.
                let replay = held
                    .iter()
                    .filter(|earlier| joined && earlier.data.direction == data.direction);
                let from = replay
                    .clone()
                    .next()
                    .map_or(data.offset, |earlier| earlier.data.offset);
                self.next[way] = from;
                for earlier in replay {
                    self.feed(&earlier.data, &earlier.bytes, steps, stats, out);
                }
                self.feed(data, bytes, steps, stats, out);
            }
            Verdict::Unsure if first.len() + bytes.len() <= MAX_DOUBT && held.len() < 16 => {
                held.push(Held {
                    data: *data,
                    bytes: bytes.to_vec(),
                });
                self.next[way] = data.offset.saturating_add(u64::from(data.len));
            }
            Verdict::Unsure | Verdict::No => {
                self.next[way] = data.offset.saturating_add(u64::from(data.len));
                held.clear();
                *tries = tries.saturating_sub(1);
                if *tries == 0 {
                    self.state = State::Muted;
                    stats.of(Defect::UnknownProtocol).one();
                    out.push(Progress::Mute { conn: data.conn });
                }
            }
        }
    }

    /// Gives a transfer to the parser.
    fn feed(
        &mut self,
        data: &Data,
        bytes: &[u8],
        steps: &mut Vec<Step>,
        stats: &StreamStats,
        out: &mut Vec<Progress>,
    ) {
        let State::Known(parser) = &mut self.state else {
            return;
        };
        let Some(role) = self.role else {
            return;
        };
        let received = data.direction == direction::RECEIVED;
        let side = match (received, role) {
            (true, Role::Server) | (false, Role::Client) => Side::Request,
            (false, Role::Server) | (true, Role::Client) => Side::Response,
        };
        let way = usize::from(data.direction & 1);
        let expected = self.next[way];
        if data.offset < expected {
            stats.overlaps.one();
            return;
        }
        let missing = data.offset - expected;
        if missing > 0 {
            stats.gap_bytes.add(missing);
            parser.skip(side, missing, &[], steps);
        }
        self.next[way] = data.offset.saturating_add(u64::from(data.len));
        if !bytes.is_empty() {
            parser.bytes(side, bytes, steps);
        }
        let unseen = u64::from(data.len).saturating_sub(bytes.len() as u64);
        if unseen > 0 {
            let has_tail = data.len >= 8 && data.flags & record::flag::UNSEEN == 0;
            parser.skip(side, unseen, if has_tail { &data.tail } else { &[] }, steps);
        }
        self.last[way] = data.at;
        let begin = if received || data.started == 0 {
            data.at
        } else {
            data.started
        };
        let evidence = Evidence {
            owner: data.owner,
            rule: data.rule,
        };
        let before = self.current;
        let mut touched = Touched::new(before);
        for step in steps.iter() {
            touched.step(step, data.offset);
        }
        // An exchange that a request's bytes end (the next one begins) ended
        // with its last response byte, which was earlier.
        let end = match (side, self.last[1 - way]) {
            (Side::Response, _) | (Side::Request, 0) => data.at,
            (Side::Request, response) => response,
        };
        self.deliver(data.conn, steps, stats, begin, end, evidence, out);
        if side == Side::Request && role == Role::Server {
            out.push(Progress::Read {
                bytes: Owner {
                    conn: data.conn,
                    offset: data.offset,
                },
                len: data.len.into(),
                exchange: touched.exchange(),
                completes_head: touched.completes_head,
            });
        }
    }

    /// Translates the parser's steps.
    #[expect(clippy::too_many_arguments, reason = "the moment's facts, used once")]
    fn deliver(
        &mut self,
        conn: u64,
        steps: &mut Vec<Step>,
        stats: &StreamStats,
        begin: u64,
        end: u64,
        evidence: Evidence,
        out: &mut Vec<Progress>,
    ) {
        let pid = self.descriptor.pid;
        let Some(role) = self.role else {
            return;
        };
        for step in steps.drain(..) {
            match step {
                Step::Begin {
                    exchange,
                    offset: _,
                } => {
                    self.current = Some(exchange);
                    let id = ExchangeId {
                        conn,
                        number: exchange,
                    };
                    out.push(Progress::Begin {
                        id,
                        pid,
                        role,
                        at: begin,
                        evidence,
                    });
                }
                Step::Head {
                    exchange,
                    context,
                    end: _,
                } => {
                    let id = ExchangeId {
                        conn,
                        number: exchange,
                    };
                    out.push(Progress::Head { id, context });
                }
                Step::End { exchange, result } => {
                    if self.current == Some(exchange) {
                        self.current = None;
                    }
                    let id = ExchangeId {
                        conn,
                        number: exchange,
                    };
                    out.push(Progress::End {
                        id,
                        at: end,
                        result,
                    });
                }
                Step::Abandon { exchange, reason } => {
                    if self.current == Some(exchange) {
                        self.current = None;
                    }
                    stats.of(reason).one();
                    out.push(Progress::Abandon {
                        id: ExchangeId {
                            conn,
                            number: exchange,
                        },
                    });
                }
                Step::Mute(reason) => {
                    stats.of(reason).one();
                    self.state = State::Muted;
                    out.push(Progress::Mute { conn });
                }
            }
        }
    }
}

/// Which exchanges the bytes of one transfer belong to.
struct Touched {
    exchange: Option<u64>,
    several: bool,
    completes_head: bool,
    head_of: Option<u64>,
}

impl Touched {
    fn new(current: Option<u64>) -> Self {
        Self {
            exchange: current,
            several: false,
            completes_head: false,
            head_of: None,
        }
    }

    fn step(&mut self, step: &Step, transfer_offset: u64) {
        match *step {
            Step::Begin { exchange, offset } => {
                // An earlier exchange has none of these bytes if the new one
                // begins with the first of them.
                if offset != transfer_offset {
                    self.several = true;
                }
                self.exchange = Some(exchange);
            }
            Step::Head { exchange, .. } => {
                self.completes_head = true;
                self.head_of = Some(exchange);
            }
            Step::Abandon { exchange, .. } if self.exchange == Some(exchange) => {
                self.exchange = None;
            }
            _ => {}
        }
    }

    fn exchange(&self) -> Option<u64> {
        if self.several { None } else { self.exchange }
    }
}

/// Asks every protocol.
fn judge(first: &[u8]) -> (&'static Protocol, Verdict) {
    let mut unsure = None;
    for protocol in PROTOCOLS {
        match (protocol.detect)(first) {
            Verdict::Yes(side) => return (protocol, Verdict::Yes(side)),
            Verdict::Unsure => unsure = Some(protocol),
            Verdict::No => {}
        }
    }
    match unsure {
        Some(protocol) => (protocol, Verdict::Unsure),
        None => (&PROTOCOLS[0], Verdict::No),
    }
}

impl From<&Open> for Opening {
    fn from(open: &Open) -> Self {
        let role = match open.role {
            record::role::CLIENT => Some(Role::Client),
            record::role::SERVER => Some(Role::Server),
            _ => None,
        };
        let (local, peer) = match open.family {
            1 => {
                let path = unix_path(&open.path);
                match role {
                    Some(Role::Client) => (None, Some(Endpoint::Unix(path))),
                    _ => (
                        Some(Endpoint::Unix(path)),
                        Some(Endpoint::Unix(String::new())),
                    ),
                }
            }
            family => (
                address(family, &open.local, open.local_port),
                address(family, &open.peer, open.peer_port),
            ),
        };
        Self {
            conn: open.conn,
            descriptor: Descriptor {
                pid: open.pid,
                fd: open.fd,
            },
            role,
            local,
            peer,
            old: false,
        }
    }
}

/// An IP endpoint; IPv4-mapped addresses are shown as IPv4.
fn address(family: u8, bytes: &[u8; 16], port: u16) -> Option<Endpoint> {
    let ip = match family {
        2 => {
            let [a, b, c, d, ..] = *bytes;
            IpAddr::V4(Ipv4Addr::new(a, b, c, d))
        }
        10 => IpAddr::V6(Ipv6Addr::from(*bytes)).to_canonical(),
        _ => return None,
    };
    if port == 0 && ip.is_unspecified() {
        return None;
    }
    Some(Endpoint::Ip(SocketAddr::new(ip, port)))
}

/// A path, or an abstract name with `@` for its leading zero byte.
fn unix_path(bytes: &[u8]) -> String {
    let name = match bytes {
        [0, rest @ ..] => rest,
        all => all,
    };
    let end = name
        .iter()
        .position(|&byte| byte == 0)
        .unwrap_or(name.len());
    let text = String::from_utf8_lossy(name.get(..end).unwrap_or_default());
    match (bytes.first(), text.is_empty()) {
        (_, true) => String::new(),
        (Some(0), false) => format!("@{text}"),
        _ => text.into_owned(),
    }
}
