//! One connection: puts its bytes in order, finds its protocol and role, feeds
//! the parser, and stamps what the parser finds with the time and the evidence
//! of the bytes at hand.

use abi::map::Descriptor;
use abi::record::{self, Data, Owner, TAIL, direction};

use super::evidence::{Read, Touched};
use super::{Evidence, ExchangeId, Opening, Progress, StreamStats};
use crate::protocol::{
    Connection, Defect, Endpoint, PROTOCOLS, Parser, Protocol, Role, Side, Step, Verdict,
};

/// Transfers of a new connection that may look like no protocol before it is
/// muted: one each way.
const TRIES_NEW: u32 = 2;
/// The same for a connection older than the attach.
pub(super) const TRIES_OLD: u32 = 64;
/// Such a connection may be in the middle of a body: of transfers that follow
/// each other one way, the first and then one in so many are counted, or a long
/// body would mute it before the next request. That is 4 GiB by 64 KiB each.
pub(super) const ONE_WAY: u32 = 1024;
/// After how many transfers of a muted connection the kernel is asked again to
/// leave it out: it asks with every 16th, and may have forgotten by then.
pub(super) const REMIND: u32 = 64;
/// Bytes kept while the protocol is in doubt.
const MAX_DOUBT: usize = 1024;

/// A connection that is followed.
pub(super) struct Stream {
    pub(super) descriptor: Descriptor,
    pub(super) role: Option<Role>,
    pub(super) local: Option<Endpoint>,
    pub(super) peer: Option<Endpoint>,
    pub(super) state: State,
    /// Expected offset of the next byte, by direction.
    pub(super) next: [u64; 2],
    /// When the last bytes of each direction were transferred.
    pub(super) last: [u64; 2],
    /// What `next` was when the parser was made, which counts from there.
    pub(super) base: [u64; 2],
    /// Whether bytes of each direction came out of a TLS session.
    pub(super) tls: [bool; 2],
    /// The exchange whose request is being read: begun and not ended, and
    /// known to be the one that the next bytes continue.
    pub(super) current: Option<u64>,
    /// Bytes went before it was looked at.
    pub(super) old: bool,
    /// On whose behalf a client sent last.
    pub(super) sent: Option<Evidence>,
    /// The last transfer of a server connection.
    pub(super) read: Option<Read>,
}

/// What is made of its bytes.
pub(super) enum State {
    /// Nothing recognised yet.
    Doubt {
        tries: u32,
        /// Which way the last transfer went that looked like no protocol, and
        /// how many of that way it followed.
        run: Option<(u8, u32)>,
        held: Vec<Held>,
    },
    /// A parser is at work.
    Known(Box<dyn Parser>),
    /// Of no interest.
    Muted {
        /// Transfers that came all the same.
        transfers: u32,
    },
}

/// A transfer kept while the protocol is in doubt.
pub(super) struct Held {
    pub(super) data: Data,
    pub(super) bytes: Vec<u8>,
}

impl Stream {
    /// One of which nothing was seen yet.
    pub(super) fn new(opening: Opening) -> Self {
        let tries = if opening.old { TRIES_OLD } else { TRIES_NEW };
        Self {
            descriptor: opening.descriptor,
            role: opening.role,
            local: opening.local,
            peer: opening.peer,
            state: State::Doubt {
                tries,
                run: None,
                held: Vec::new(),
            },
            next: [0; 2],
            last: [0; 2],
            base: [0; 2],
            tls: [false; 2],
            current: None,
            old: opening.old,
            sent: None,
            read: None,
        }
    }

    /// Bytes were transferred.
    pub(super) fn data(
        &mut self,
        data: &Data,
        bytes: &[u8],
        steps: &mut Vec<Step>,
        stats: &StreamStats,
        out: &mut Vec<Progress>,
    ) {
        match &mut self.state {
            State::Doubt { .. } => self.recognise(data, bytes, steps, stats, out),
            State::Known(_) => self.feed(data, bytes, steps, stats, out),
            State::Muted { transfers } => {
                *transfers = transfers.wrapping_add(1);
                if transfers.is_multiple_of(REMIND) {
                    out.push(Progress::Mute { conn: data.conn });
                }
            }
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
        let State::Doubt { tries, run, held } = &mut self.state else {
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
        let received = data.direction == direction::RECEIVED;
        let role_of = |side| match (received, side) {
            (true, Side::Request) | (false, Side::Response) => Role::Server,
            (false, Side::Request) | (true, Side::Response) => Role::Client,
        };
        let known = self.role;
        // What an answer holds may look like a request, and on a connection
        // older than the attach it may come first: who connected decides.
        let possible = |protocol: &Protocol, side: Side| {
            let agrees = known.is_none_or(|known| known == role_of(side));
            let sends = role_of(Side::Request) == Role::Client && known != Some(Role::Server);
            agrees && (sends || !protocol.client_only)
        };
        let (protocol, verdict) = judge(if joined { &first } else { bytes }, possible);
        match verdict {
            Verdict::Yes(side) => {
                let role = role_of(side);
                self.role = Some(role);
                let connection = Connection {
                    role,
                    local: self.local.clone(),
                    peer: self.peer.clone(),
                    tls: self.tls != [false; 2],
                    old: self.old,
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
                self.base = self.next;
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
                let followed = match *run {
                    Some((way, followed)) if way == data.direction => followed.wrapping_add(1),
                    _ => 0,
                };
                *run = Some((data.direction, followed));
                if !self.old || followed.is_multiple_of(ONE_WAY) {
                    *tries = tries.saturating_sub(1);
                }
                if *tries == 0 {
                    self.state = State::Muted { transfers: 0 };
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
        let request = side == Side::Request;
        let missing = data.offset - expected;
        if missing > 0 {
            stats.gap_bytes.add(missing);
            parser.skip(side, missing, &[], steps);
        }
        // Where the end of a request was not seen, what comes after a gap or
        // looks like another request need not be a part of it.
        if request
            && !parser.follows(side)
            && (missing > 0 || judge(bytes, |_, _| true).1 == Verdict::Yes(Side::Request))
        {
            self.current = None;
        }
        let evidence = Evidence {
            owner: data.owner,
            rule: data.rule,
        };
        let sends = request && role == Role::Client;
        if sends
            && self
                .sent
                .replace(evidence)
                .is_some_and(|before| before != evidence)
        {
            parser.divide();
        }
        let end = data.offset.saturating_add(u64::from(data.len));
        self.next[way] = end;
        if !bytes.is_empty() {
            parser.bytes(side, bytes, steps);
        }
        let unseen = u64::from(data.len).saturating_sub(bytes.len() as u64);
        if unseen > 0 {
            let has_tail = data.len as usize >= TAIL && data.flags & record::flag::UNSEEN == 0;
            parser.skip(side, unseen, if has_tail { &data.tail } else { &[] }, steps);
        }
        self.last[way] = data.at;
        let begin = if received || data.started == 0 {
            data.at
        } else {
            data.started
        };
        let mut touched = Touched::new(self.current);
        for step in steps.iter() {
            touched.step(step, data.offset.saturating_sub(self.base[way]));
        }
        if !parser.follows(side) {
            // Some of the bytes may belong to another exchange, seen or not.
            touched.exchange = None;
        }
        // An exchange that a request's bytes end (the next one begins) ended
        // with its last response byte, which was earlier.
        let ended = match (side, self.last[1 - way]) {
            (Side::Response, _) | (Side::Request, 0) => data.at,
            (Side::Request, response) => response,
        };
        let begins = |step: &Step| matches!(step, Step::Begin { .. });
        if sends && self.current.is_none() && !steps.iter().any(begins) {
            out.push(Progress::Unclaimed { conn: data.conn });
        }
        self.deliver(data.conn, steps, stats, begin, ended, evidence, out);
        if request && role == Role::Server {
            let read = Read::of(data, missing > 0, &touched, self.read);
            self.read = Some(read);
            out.push(Progress::Read {
                bytes: Owner {
                    conn: data.conn,
                    offset: read.from,
                },
                end,
                exchange: read.exchange,
                completes_head: read.completes_head,
            });
        }
    }

    /// Translates the parser's steps.
    #[expect(clippy::too_many_arguments, reason = "the moment's facts, used once")]
    pub(super) fn deliver(
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
                    self.state = State::Muted { transfers: 0 };
                    out.push(Progress::Mute { conn });
                }
            }
        }
    }
}

/// Asks every protocol that is possible.
fn judge(first: &[u8], possible: impl Fn(&Protocol, Side) -> bool) -> (&'static Protocol, Verdict) {
    let mut unsure = None;
    for protocol in PROTOCOLS {
        match (protocol.detect)(first) {
            Verdict::Yes(side) if possible(protocol, side) => {
                return (protocol, Verdict::Yes(side));
            }
            Verdict::Unsure
                if [Side::Request, Side::Response].map(|side| possible(protocol, side))
                    != [false; 2] =>
            {
                unsure = Some(protocol);
            }
            _ => {}
        }
    }
    match unsure {
        Some(protocol) => (protocol, Verdict::Unsure),
        None => (&PROTOCOLS[0], Verdict::No),
    }
}
