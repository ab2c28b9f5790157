//! Follows every connection: which there are, and what happens to each. What
//! becomes of the bytes of one is in `connection`, whose they are in
//! `evidence`.
//!
//! It knows no protocol by name, does no I/O and reads no clock. `assemble`
//! takes what it returns; `run` mutes in the kernel what it gives up on.

mod connection;
mod evidence;
mod opening;
mod tls;

use std::collections::HashMap;

use abi::map::Descriptor;
use abi::record::{self, Data, Owner};

use self::connection::{Held, State, Stream};
pub use self::evidence::Evidence;
pub use self::opening::Opening;
use crate::insight::Insight;
use crate::propagation::TraceContext;
use crate::protocol::{Defect, Exchange, Role, Step};
use crate::stats::{Count, counters};

/// Connections followed at a time; more are refused and counted.
pub const MAX_CONNECTIONS: usize = 65_536;
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
        /// Connections whose TLS sessions were found.
        tls => "stream.tls",
        /// Connections that carried TLS of sessions that were not found.
        sealed => "stream.tls_sealed",
        /// TLS sessions of which bytes were held that no connection came for.
        unheld => "stream.dropped.tls_held",
        /// Connections muted: of no known protocol.
        unknown_protocol => "stream.muted.unknown_protocol",
        /// Connections muted: upgraded to another protocol.
        upgraded => "stream.muted.upgraded",
        /// Connections muted: encrypted.
        encrypted => "stream.muted.encrypted",
        /// Connections muted: what they receive is no answer to a request.
        subscribed => "stream.muted.subscribed",
        /// Exchanges left out: a statement was prepared, and no more.
        no_operation => "stream.abandoned.no_operation",
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
            Defect::Encrypted => &self.encrypted,
            Defect::Subscribed => &self.subscribed,
            Defect::NoOperation => &self.no_operation,
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
        /// Offset just past the transfer. What is said of these bytes
        /// replaces what was said of them before.
        end: u64,
        /// The exchange all its bytes belong to; none if they belong to
        /// several, to none, or nobody can tell.
        exchange: Option<u64>,
        /// Whether the exchange's head ended in these bytes.
        completes_head: bool,
    },
    /// A client's transfer began no exchange, nor did it continue one: what
    /// was told of its sender is of no exchange, either.
    Unclaimed {
        /// The connection.
        conn: u64,
    },
    /// The interpreter told something of an exchange.
    Insight(Insight),
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

/// Every connection that is followed.
#[derive(Default)]
pub struct Streams {
    streams: HashMap<u64, Stream>,
    descriptors: HashMap<Descriptor, u64>,
    steps: Vec<Step>,
    /// What was written to TLS sessions of no known connection, by process and
    /// session.
    held: HashMap<(u32, u64), Vec<Held>>,
    /// What was left out, and why.
    pub stats: StreamStats,
}

impl Streams {
    /// A connection was opened.
    pub fn open(&mut self, opening: Opening, out: &mut Vec<Progress>) {
        if let Some(&before) = self.descriptors.get(&opening.descriptor) {
            // The close was not seen; the descriptor has a new connection.
            self.close(before, None, out);
        }
        // Announced twice, or too late.
        self.close(opening.conn, None, out);
        if self.streams.len() >= MAX_CONNECTIONS {
            self.stats.refused.one();
            return;
        }
        self.stats.connections.one();
        self.descriptors.insert(opening.descriptor, opening.conn);
        self.streams.insert(opening.conn, Stream::new(opening));
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
        if data.flags & record::flag::TLS != 0 {
            stream.unseal(data, &mut self.steps, &self.stats, out);
        }
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
        let mut gone: Vec<_> = self
            .descriptors
            .iter()
            .filter(|(descriptor, _)| descriptor.pid == pid)
            .map(|(&descriptor, &conn)| (descriptor, conn))
            .collect();
        self.held.retain(|&(owner, _), _| owner != pid);
        gone.sort_unstable_by_key(|&(_, conn)| conn);
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

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

    use abi::record::direction::{RECEIVED, SENT};
    use abi::record::{Open, TAIL, TlsJoin};
    use proptest::prelude::*;
    use zerocopy::FromZeros;

    use super::connection::{ONE_WAY, REMIND, TRIES_OLD};
    use super::*;
    use crate::attribute::Value;
    use crate::protocol::Endpoint;

    const GET: &str = "GET /a HTTP/1.1\r\nHost: h\r\n\r\n";
    const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

    /// Streams, and the kernel's part: offsets and a clock that goes on by
    /// ten with each record. A send begins three earlier.
    #[derive(Default)]
    struct Wire {
        streams: Streams,
        offsets: HashMap<(u64, u8), u64>,
        now: u64,
        out: Vec<Progress>,
    }

    impl Wire {
        fn open(&mut self, conn: u64, fd: i32, role: Option<Role>, old: bool) {
            let end = |port| Some(Endpoint::Ip(SocketAddr::from(([127, 0, 0, 1], port))));
            let opening = Opening {
                conn,
                descriptor: Descriptor { pid: 7, fd },
                role,
                local: end(1000),
                peer: end(2000),
                old,
            };
            self.streams.open(opening, &mut self.out);
        }

        fn record(&mut self, conn: u64, way: u8, len: usize) -> Data {
            self.now += 10;
            let offset = self.offsets.entry((conn, way)).or_default();
            let mut data = Data::new_zeroed();
            data.direction = way;
            data.pid = 7;
            data.fd = i32::try_from(conn).unwrap();
            data.conn = conn;
            data.offset = *offset;
            data.len = u32::try_from(len).unwrap();
            data.at = self.now;
            data.started = if way == SENT { self.now - 3 } else { 0 };
            *offset += len as u64;
            data
        }

        fn bytes(&mut self, conn: u64, way: u8, text: &str) {
            let data = self.record(conn, way, text.len());
            self.streams.data(&data, text.as_bytes(), &mut self.out);
        }

        fn received(&mut self, text: &str) {
            self.bytes(1, RECEIVED, text);
        }

        fn sent(&mut self, text: &str) {
            self.bytes(1, SENT, text);
        }

        /// A transfer of which only the last bytes were seen.
        fn unseen(&mut self, way: u8, len: usize, tail: &[u8; 8]) {
            let mut data = self.record(1, way, len);
            data.tail[TAIL - 8..].copy_from_slice(tail);
            self.streams.data(&data, b"", &mut self.out);
        }

        /// A transfer whose record never comes.
        fn lost(&mut self, way: u8, text: &str) {
            self.record(1, way, text.len());
        }

        fn close(&mut self) {
            self.now += 10;
            self.streams.close(1, Some(self.now), &mut self.out);
        }

        /// What came out since the last look, in short words.
        fn brief(&mut self) -> String {
            let lines: Vec<_> = self
                .out
                .drain(..)
                .map(|progress| brief(&progress))
                .collect();
            lines.join("; ")
        }
    }

    fn find(exchange: &Exchange, key: &str) -> String {
        let found = exchange.attributes.iter().find(|(known, _)| known == key);
        match found {
            Some((_, Value::Int(number))) => number.to_string(),
            Some((_, Value::Str(text))) => text.to_string(),
            _ => "-".to_owned(),
        }
    }

    fn brief(progress: &Progress) -> String {
        match progress {
            Progress::Begin { id, role, at, .. } => format!("{role:?} {} at {at}", id.number),
            Progress::Head { id, .. } => format!("head {}", id.number),
            Progress::End { id, at, result } => format!(
                "end {} at {at} with {}",
                id.number,
                find(result, "http.response.status_code")
            ),
            Progress::Abandon { id } => format!("abandon {}", id.number),
            Progress::Read {
                bytes,
                end,
                exchange,
                completes_head,
            } => {
                let whose = exchange.map_or("nobody".to_owned(), |number| number.to_string());
                let head = if *completes_head { ", head" } else { "" };
                format!("{}..{end} of {whose}{head}", bytes.offset)
            }
            Progress::Closed { conn } => format!("closed {conn}"),
            Progress::Mute { conn } => format!("mute {conn}"),
            Progress::Unclaimed { conn } => format!("unclaimed {conn}"),
            Progress::Insight(insight) => format!("{insight:?}"),
        }
    }

    /// A wire with a server connection.
    fn server() -> Wire {
        let mut wire = Wire::default();
        wire.open(1, 1, Some(Role::Server), false);
        wire
    }

    #[track_caller]
    fn check(mut wire: Wire, act: impl FnOnce(&mut Wire), expected: &str) -> Wire {
        act(&mut wire);
        assert_eq!(wire.brief(), expected);
        wire
    }

    #[test]
    fn tells_the_role_by_the_first_bytes() {
        for (way, text, expected) in [
            (RECEIVED, GET, "Server 0 at 10; head 0; 0..28 of 0, head"),
            (SENT, GET, "Client 0 at 7; head 0"),
            (SENT, OK, "abandon 0"),
            (RECEIVED, OK, "abandon 0"),
        ] {
            for old in [true, false] {
                let mut wire = Wire::default();
                wire.open(1, 1, None, old);
                check(wire, |wire| wire.bytes(1, way, text), expected);
            }
        }
        // A response tells as much: the next request is understood.
        let wire = check(server(), |wire| wire.sent(OK), "abandon 0");
        let expected = "Server 1 at 20; head 1; 0..28 of 1, head";
        check(wire, |wire| wire.received(GET), expected);
    }

    #[test]
    fn tells_both_ends_to_the_parser() {
        for role in [Role::Server, Role::Client] {
            let mut wire = Wire::default();
            wire.open(1, 1, Some(role), false);
            let (there, back) = match role {
                Role::Server => (RECEIVED, SENT),
                Role::Client => (SENT, RECEIVED),
            };
            wire.bytes(1, there, "GET /a HTTP/1.1\r\n\r\n");
            wire.bytes(1, back, OK);
            let Some(Progress::End { result, .. }) = wire.out.last() else {
                panic!("{:?}", wire.out);
            };
            assert_eq!(find(result, "network.peer.port"), "2000", "{role:?}");
        }
    }

    /// Text out of a connection's TLS session.
    fn unsealed(wire: &mut Wire, way: u8, text: &str) {
        let mut data = wire.record(1, way, text.len());
        data.flags = record::flag::TLS;
        wire.streams.data(&data, text.as_bytes(), &mut wire.out);
    }

    fn scheme(wire: &mut Wire) -> String {
        let scheme = wire.out.iter().find_map(|progress| match progress {
            Progress::End { result, .. } => Some(find(result, "url.scheme")),
            _ => None,
        });
        scheme.unwrap_or_default()
    }

    #[test]
    fn tells_the_parser_of_tls() {
        let mut wire = server();
        unsealed(&mut wire, RECEIVED, GET);
        unsealed(&mut wire, SENT, OK);
        assert_eq!(scheme(&mut wire), "https");
        assert_eq!(wire.streams.stats.tls.value(), 1);
        let mut wire = server();
        wire.received(GET);
        wire.sent(OK);
        assert_eq!(scheme(&mut wire), "http");
    }

    /// Text that was written to a session of no known connection.
    fn hold(wire: &mut Wire, offset: u64, text: &str) {
        let mut data = wire.record(99, SENT, text.len());
        data.flags = record::flag::TLS;
        data.offset = offset;
        data.conn = 0xbeef;
        wire.streams.hold(&data, text.as_bytes());
    }

    fn joined(wire: &mut Wire, conn: u64, held: u64, offset: u64) {
        let mut join = TlsJoin::new_zeroed();
        join.pid = 7;
        join.ssl = 0xbeef;
        join.conn = conn;
        join.held = held;
        join.offset = offset;
        wire.streams.join(&join, &mut wire.out);
    }

    #[test]
    fn what_was_held_belongs_to_the_connection_that_is_found() {
        let mut wire = Wire::default();
        wire.open(1, 1, Some(Role::Client), true);
        check(
            wire,
            |wire| {
                hold(wire, 0, &GET[..10]);
                hold(wire, 10, &GET[10..]);
                joined(wire, 1, 28, 0);
                unsealed(wire, RECEIVED, OK);
            },
            "Client 0 at 7; head 0; end 0 at 30 with 200",
        );
    }

    #[test]
    fn what_was_held_in_part_or_for_nobody_is_dropped() {
        for (from, conn, held) in [(0, 0, 28), (0, 1, 29), (3, 1, 28)] {
            let mut wire = Wire::default();
            wire.open(1, 1, Some(Role::Client), true);
            let wire = check(
                wire,
                |wire| {
                    hold(wire, from, GET);
                    joined(wire, conn, held, 0);
                    joined(wire, 1, 28, 0);
                },
                "",
            );
            assert_eq!(wire.streams.stats.unheld.value(), 1);
            assert!(wire.streams.held.is_empty());
        }
    }

    #[test]
    fn what_came_before_tls_is_over() {
        // Records of a session that was not known yet, then its plaintext.
        let mut wire = Wire::default();
        wire.open(1, 1, Some(Role::Server), true);
        let wire = check(
            wire,
            |wire| {
                wire.received("\x17 ciphertext, in the middle of a record");
                unsealed(wire, RECEIVED, GET);
                unsealed(wire, SENT, OK);
            },
            "Server 0 at 20; head 0; 39..67 of 0, head; end 0 at 30 with 200",
        );
        assert_eq!(wire.streams.stats.gap_bytes.value(), 0);
        // A request that was never answered, then a session.
        check(
            server(),
            |wire| {
                wire.received(GET);
                unsealed(wire, RECEIVED, GET);
                unsealed(wire, SENT, OK);
            },
            "Server 0 at 10; head 0; 0..28 of 0, head; end 0 at 10 with -; \
             closed 1; \
             Server 0 at 20; head 0; 28..56 of 0, head; end 0 at 30 with 200",
        );
    }

    #[test]
    fn stamps_a_server_exchange_with_its_first_and_last_byte() {
        check(
            server(),
            |wire| {
                wire.received("POST /a HTTP/1.1\r\nContent-Length: 4\r\n\r\n12");
                wire.received("34");
                wire.sent("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n");
                wire.sent("ok");
                wire.close();
            },
            "Server 0 at 10; head 0; 0..41 of 0, head; 41..43 of 0; \
             end 0 at 40 with 200; closed 1",
        );
    }

    #[test]
    fn a_sent_request_begins_when_its_system_call_does() {
        let mut wire = Wire::default();
        wire.open(1, 1, Some(Role::Client), false);
        let wire = check(
            wire,
            |wire| {
                wire.sent(GET);
                wire.received(OK);
            },
            "Client 0 at 7; head 0; end 0 at 20 with 200",
        );
        // Where the call's begin is not known, its end has to do.
        check(
            wire,
            |wire| {
                let mut data = wire.record(1, SENT, GET.len());
                data.started = 0;
                wire.streams.data(&data, GET.as_bytes(), &mut wire.out);
            },
            "Client 1 at 30; head 1",
        );
    }

    #[test]
    fn an_exchange_that_the_next_request_ends_ended_with_its_last_response_byte() {
        check(
            server(),
            |wire| {
                wire.received(GET);
                wire.sent("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");
                wire.unseen(SENT, 5000, b"unending");
                wire.received(GET);
            },
            "Server 0 at 10; head 0; 0..28 of 0, head; \
             end 0 at 30 with 200; Server 1 at 40; head 1; 28..56 of 1, head",
        );
    }

    #[test]
    fn a_close_ends_an_unfinished_response_with_its_last_byte() {
        check(
            server(),
            |wire| {
                wire.received(GET);
                wire.sent("HTTP/1.1 200 OK\r\n\r\nuntil the close");
                wire.now += 1000;
                wire.close();
            },
            "Server 0 at 10; head 0; 0..28 of 0, head; end 0 at 20 with 200; closed 1",
        );
        // Without a response it ends now.
        check(
            server(),
            |wire| {
                wire.received(GET);
                wire.close();
            },
            "Server 0 at 10; head 0; 0..28 of 0, head; end 0 at 20 with -; closed 1",
        );
    }

    #[test]
    fn first_bytes_in_doubt_are_kept_until_they_tell() {
        for at in 1..GET.len() {
            let mut wire = server();
            wire.received(&GET[..at]);
            wire.received(&GET[at..]);
            wire.sent(OK);
            let text = wire.brief();
            assert!(text.contains("end 0 at 30 with 200"), "{at}: {text}");
            assert!(text.contains("Server 0 at "), "{at}: {text}");
            assert!(text.contains(&format!("0..{at} of 0")), "{at}: {text}");
            assert!(
                text.contains(&format!("{at}..28 of 0, head")),
                "{at}: {text}"
            );
            // Kept bytes have kept their time.
            assert!(text.starts_with("Server 0 at 10"), "{at}: {text}");
        }
        let mut wire = server();
        for at in 0..GET.len() {
            wire.received(&GET[at..=at]);
        }
        wire.sent(OK);
        let text = wire.brief();
        assert!(
            text.starts_with("Server 0 at 10; 0..1 of 0; 1..2 of 0"),
            "{text}"
        );
        assert!(
            text.ends_with("27..28 of 0, head; end 0 at 290 with 200"),
            "{text}"
        );
    }

    #[test]
    fn kept_bytes_that_have_a_hole_make_no_exchange() {
        check(
            server(),
            |wire| {
                wire.received("GE");
                wire.lost(RECEIVED, "T /one HTTP/1.1\r\n\r\nGE");
                wire.received("T /two HTTP/1.1\r\n\r\n");
            },
            "Server 0 at 10; 0..2 of 0; abandon 0; 23..42 of nobody",
        );
    }

    #[test]
    fn connections_of_no_known_protocol_are_muted() {
        let wire = check(
            server(),
            |wire| {
                wire.received("\x16\x03\x01");
                wire.sent("\x16\x03\x03");
                wire.received(GET);
            },
            "mute 1",
        );
        assert_eq!(wire.streams.stats.unknown_protocol.value(), 1);
        assert_eq!(wire.streams.len(), 1);
    }

    /// The kernel's table of them evicts.
    #[test]
    fn a_connection_that_is_told_of_after_all_is_muted_again() {
        let mut wire = server();
        wire.received("\x16\x03\x01");
        wire.sent("\x16\x03\x03");
        assert_eq!(wire.brief(), "mute 1");
        for _ in 0..REMIND {
            assert_eq!(wire.brief(), "");
            wire.received(GET);
        }
        assert_eq!(wire.brief(), "mute 1");
        assert_eq!(wire.streams.stats.unknown_protocol.value(), 1);
    }

    #[test]
    fn old_connections_get_longer_to_show_a_protocol() {
        let mut wire = Wire::default();
        wire.open(1, 1, None, true);
        for turn in 1..TRIES_OLD {
            let way = if turn % 2 == 0 { SENT } else { RECEIVED };
            wire.bytes(1, way, "\0the middle of a body");
        }
        let wire = check(
            wire,
            |wire| wire.received(GET),
            "Server 0 at 640; head 0; 672..700 of 0, head",
        );
        // Its bytes are counted from where it was taken up.
        check(
            wire,
            |wire| {
                wire.sent(OK);
                wire.received(GET);
            },
            "end 0 at 650 with 200; Server 1 at 660; head 1; 700..728 of 1, head",
        );
        let mut wire = Wire::default();
        for turn in 0..TRIES_OLD {
            let way = if turn % 2 == 0 { SENT } else { RECEIVED };
            wire.bytes(1, way, "\0the middle of a body");
        }
        assert_eq!(wire.streams.stats.unannounced.value(), 1);
        assert_eq!(wire.brief(), "mute 1");
    }

    /// A pool's connection in the middle of a download, a server's in the
    /// middle of an upload.
    #[test]
    fn a_long_body_does_not_mute_an_old_connection() {
        for (role, expected) in [
            (
                Role::Client,
                "Client 0 at 10007; head 0; end 0 at 10020 with 200",
            ),
            (
                Role::Server,
                "Server 0 at 10010; head 0; 3000..3028 of 0, head; end 0 at 10020 with 200",
            ),
        ] {
            let mut wire = Wire::default();
            wire.open(1, 1, Some(role), true);
            let (asks, answers) = match role {
                Role::Client => (SENT, RECEIVED),
                Role::Server => (RECEIVED, SENT),
            };
            for _ in 0..1000 {
                wire.received("\0\0\0");
            }
            check(
                wire,
                |wire| {
                    wire.bytes(1, asks, GET);
                    wire.bytes(1, answers, OK);
                },
                expected,
            );
        }
        // What goes on for ever is no body.
        let mut wire = Wire::default();
        wire.open(1, 1, Some(Role::Client), true);
        for _ in 0..=(TRIES_OLD - 1) * ONE_WAY {
            wire.received("\0");
        }
        assert_eq!(wire.brief(), "mute 1");
    }

    #[test]
    fn upgraded_connections_are_muted() {
        let wire = check(
            server(),
            |wire| {
                wire.received("GET /ws HTTP/1.1\r\nUpgrade: websocket\r\n\r\n");
                wire.sent("HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\n");
                wire.received(GET);
            },
            "Server 0 at 10; head 0; 0..40 of 0, head; end 0 at 20 with 101; mute 1",
        );
        assert_eq!(wire.streams.stats.upgraded.value(), 1);
    }

    /// A start-up message of PostgreSQL, and a command of Redis.
    const STARTUP: &str = "\0\0\0\x11\0\x03\0\0user\0me\0\0";
    const COMMAND: &str = "*2\r\n$3\r\nGET\r\n$1\r\na\r\n";

    #[test]
    fn what_a_database_server_receives_is_not_traced() {
        for text in [STARTUP, COMMAND] {
            let wire = check(
                server(),
                |wire| {
                    wire.received(text);
                    wire.sent("$1\r\na\r\n");
                    wire.received(text);
                },
                "mute 1",
            );
            assert_eq!(wire.streams.stats.unknown_protocol.value(), 1);
        }
    }

    #[test]
    fn an_answer_that_looks_like_a_request_is_none() {
        let client = || {
            let mut wire = Wire::default();
            wire.open(1, 1, Some(Role::Client), true);
            wire
        };
        check(
            client(),
            |wire| {
                wire.received("*2\r\n$3\r\nfoo\r\n$3\r\nbar\r\n");
                wire.sent(COMMAND);
                wire.received("$1\r\na\r\n");
            },
            "Client 0 at 17; end 0 at 30 with -",
        );
        // The echo of a request, and a message that holds a whole one.
        for body in ["GET /a", GET] {
            check(
                client(),
                |wire| {
                    wire.received(body);
                    wire.sent(GET);
                    wire.received(OK);
                },
                "Client 0 at 17; head 0; end 0 at 30 with 200",
            );
        }
    }

    #[test]
    fn an_upload_that_looks_like_an_answer_is_none() {
        let mut wire = Wire::default();
        wire.open(1, 1, Some(Role::Server), true);
        check(
            wire,
            |wire| {
                wire.received(OK);
                wire.sent(OK);
                wire.received(GET);
            },
            "abandon 0; Server 1 at 30; head 1; 40..68 of 1, head",
        );
    }

    #[test]
    fn what_was_told_of_a_sender_without_an_exchange_is_of_none() {
        let mut wire = Wire::default();
        wire.open(1, 1, Some(Role::Client), false);
        check(
            wire,
            |wire| {
                wire.sent(STARTUP);
                wire.received("R\0\0\0\x08\0\0\0\0Z\0\0\0\x05I");
                wire.sent("Q\0\0\0\x0dselect 1\0");
                wire.received("C\0\0\0\x0dSELECT 1\0Z\0\0\0\x05I");
            },
            "unclaimed 1; Client 0 at 27; end 0 at 40 with -",
        );
    }

    #[test]
    fn what_is_sent_for_another_is_another_exchange() {
        let mut wire = Wire::default();
        wire.open(1, 1, Some(Role::Client), false);
        for owner in [5, 5, 6] {
            let mut data = wire.record(1, SENT, COMMAND.len());
            data.owner.conn = owner;
            data.rule = record::rule::CONTEXT;
            wire.streams.data(&data, COMMAND.as_bytes(), &mut wire.out);
        }
        check(
            wire,
            |wire| wire.received("$-1\r\n$-1\r\n$-1\r\n"),
            "Client 0 at 7; Client 1 at 27; end 0 at 40 with -; end 1 at 40 with -",
        );
    }

    #[test]
    fn transfers_that_come_twice_are_left_out() {
        let wire = check(
            server(),
            |wire| {
                wire.received(GET);
                wire.offsets.clear();
                wire.received(GET);
            },
            "Server 0 at 10; head 0; 0..28 of 0, head",
        );
        assert_eq!(wire.streams.stats.overlaps.value(), 1);
        assert_eq!(wire.streams.stats.gap_bytes.value(), 0);
    }

    #[test]
    fn a_lost_request_is_nobodys_and_so_is_what_may_continue_it() {
        let wire = check(
            server(),
            |wire| {
                wire.received(GET);
                wire.lost(SENT, OK);
                wire.lost(RECEIVED, GET);
                wire.received(GET);
            },
            "Server 0 at 10; head 0; 0..28 of 0, head; 56..84 of nobody",
        );
        assert_eq!(wire.streams.stats.gap_bytes.value(), 28);
    }

    #[test]
    fn a_counted_body_goes_on_after_a_gap() {
        check(
            server(),
            |wire| {
                wire.received("POST /a HTTP/1.1\r\nContent-Length: 9\r\n\r\n123");
                wire.lost(RECEIVED, "456");
                wire.received("789");
            },
            "Server 0 at 10; head 0; 0..42 of 0, head; 45..48 of 0",
        );
    }

    #[test]
    fn a_chunked_body_that_is_not_seen_is_its_requests_where_its_end_shows() {
        let wire = check(
            server(),
            |wire| {
                wire.received("POST /a HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n");
                wire.unseen(RECEIVED, 5000, b"chunkdat");
                wire.unseen(RECEIVED, 5000, b"a\r\n0\r\n\r\n");
            },
            "Server 0 at 10; head 0; 0..48 of 0, head; 48..5048 of nobody; 5048..10048 of 0",
        );
        drop(wire);
        // The answer is lost, and another upload follows: not the first's.
        let mut wire = server();
        wire.received("POST /a HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n");
        wire.unseen(RECEIVED, 5000, b"chunkdat");
        wire.lost(SENT, OK);
        wire.brief();
        check(
            wire,
            |wire| {
                wire.received("POST /b HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n");
                wire.received("1\r\na\r\n0\r\n\r\n");
            },
            "5048..5096 of nobody; 5096..5107 of nobody",
        );
    }

    #[test]
    fn bytes_of_several_requests_in_one_transfer_are_nobodys() {
        let twice = format!("{GET}{GET}");
        check(
            server(),
            |wire| wire.received(&twice),
            "Server 0 at 10; head 0; Server 1 at 10; head 1; 0..56 of nobody, head",
        );
        // The end of one and the beginning of the next.
        check(
            server(),
            |wire| {
                wire.received(&GET[..20]);
                wire.received(&format!("{}{}", &GET[20..], &GET[..9]));
                wire.received(&GET[9..]);
            },
            "Server 0 at 10; 0..20 of 0; head 0; Server 1 at 20; 20..37 of nobody, head; \
             head 1; 37..56 of 1, head",
        );
    }

    #[test]
    fn the_buffers_of_one_call_are_one_transfer() {
        let mut wire = server();
        for text in [&GET[..20], &GET[20..], GET] {
            let mut data = wire.record(1, RECEIVED, text.len());
            data.tid = 3;
            data.at = 99;
            wire.streams.data(&data, text.as_bytes(), &mut wire.out);
        }
        assert_eq!(
            wire.brief(),
            "Server 0 at 99; 0..20 of 0; head 0; 0..28 of 0, head; \
             Server 1 at 99; head 1; 0..56 of nobody, head"
        );
    }

    #[test]
    fn the_first_bytes_carry_the_evidence() {
        let mut wire = Wire::default();
        wire.open(1, 1, Some(Role::Client), false);
        let owners = [(5, record::rule::CONTEXT), (6, record::rule::THREAD)];
        for (text, (conn, rule)) in [&GET[..3], &GET[3..]].into_iter().zip(owners) {
            let mut data = wire.record(1, SENT, text.len());
            data.owner = Owner { conn, offset: 8 };
            data.rule = rule;
            wire.streams.data(&data, text.as_bytes(), &mut wire.out);
        }
        let Some(Progress::Begin { evidence, pid, .. }) = wire.out.first() else {
            panic!("{:?}", wire.out);
        };
        let owner = Owner { conn: 5, offset: 8 };
        let rule = record::rule::CONTEXT;
        assert_eq!((*evidence, *pid), (Evidence { owner, rule }, 7));
    }

    #[test]
    fn a_descriptor_used_again_closes_what_it_was_before() {
        let mut wire = server();
        wire.received(GET);
        wire.brief();
        let wire = check(
            wire,
            |wire| {
                wire.open(2, 1, Some(Role::Server), false);
                wire.close();
                wire.bytes(2, RECEIVED, GET);
            },
            "end 0 at 10 with -; closed 1; Server 0 at 30; head 0; 0..28 of 0, head",
        );
        assert_eq!(wire.streams.len(), 1);
    }

    #[test]
    fn a_connection_announced_twice_begins_anew() {
        let mut wire = server();
        wire.received(GET);
        wire.brief();
        let mut wire = check(
            wire,
            |wire| wire.open(1, 8, Some(Role::Server), false),
            "end 0 at 10 with -; closed 1",
        );
        assert_eq!((wire.streams.len(), wire.streams.descriptors.len()), (1, 1));
        wire.close();
        assert!(wire.streams.is_empty() && wire.streams.descriptors.is_empty());
    }

    #[test]
    fn an_ended_process_closes_its_connections_in_order() {
        let mut wire = Wire::default();
        for conn in [3, 1, 2] {
            wire.open(conn, i32::try_from(conn).unwrap(), None, false);
        }
        let gone = wire.streams.exit(7, 50, &mut wire.out);
        assert_eq!(wire.brief(), "closed 1; closed 2; closed 3");
        assert_eq!(gone.len(), 3);
        assert!(wire.streams.exit(7, 50, &mut wire.out).is_empty());
    }

    #[test]
    fn more_connections_than_the_limit_are_refused() {
        let mut wire = Wire::default();
        let limit = i32::try_from(MAX_CONNECTIONS).unwrap();
        for fd in 0..limit + 2 {
            wire.open(u64::try_from(fd).unwrap() + 1, fd, None, false);
        }
        let over = u64::try_from(limit).unwrap() + 1;
        wire.bytes(over, RECEIVED, GET);
        assert_eq!(wire.streams.len(), MAX_CONNECTIONS);
        assert_eq!(wire.streams.stats.refused.value(), 3);
        assert_eq!(wire.brief(), "");
        // There is room again.
        wire.close();
        wire.bytes(over, RECEIVED, GET);
        assert!(wire.brief().contains("Server 0"));
    }

    #[test]
    fn reads_the_addresses_of_both_ends() {
        let mut open = Open::new_zeroed();
        open.family = 2;
        open.role = record::role::CLIENT;
        open.peer[..4].copy_from_slice(&[192, 0, 2, 1]);
        open.peer_port = 80;
        let ip = |text: &str| Some(Endpoint::Ip(text.parse().unwrap()));
        let opening = Opening::from(&open);
        assert_eq!(opening.peer, ip("192.0.2.1:80"));
        assert_eq!((opening.local, opening.role), (None, Some(Role::Client)));

        open.family = 10;
        open.peer = Ipv4Addr::new(192, 0, 2, 1).to_ipv6_mapped().octets();
        assert_eq!(Opening::from(&open).peer, ip("192.0.2.1:80"));
        open.peer = Ipv6Addr::LOCALHOST.octets();
        assert_eq!(Opening::from(&open).peer, ip("[::1]:80"));

        open.family = 1;
        for (path, expected) in [
            (&b"/run/app.sock\0rest"[..], "/run/app.sock"),
            (b"\0abstract\0", "@abstract"),
            (b"\0\0", ""),
            (&[b'x'; 112], &"x".repeat(112)),
        ] {
            open.path = [0; 112];
            open.path[..path.len()].copy_from_slice(path);
            let unix = Some(Endpoint::Unix(expected.to_owned()));
            open.role = record::role::CLIENT;
            assert_eq!(Opening::from(&open).peer, unix);
            open.role = record::role::SERVER;
            assert_eq!(Opening::from(&open).local, unix);
        }
        open.family = 99;
        assert_eq!(Opening::from(&open).peer, None);
    }

    proptest! {
        #[test]
        fn split_anywhere_the_same_is_found(cuts in prop::collection::vec(0..200_usize, 0..6)) {
            let post = "POST /b HTTP/1.1\r\nContent-Length: 5\r\n\r\n";
            let text = format!("{post}hello");
            let mut cuts: Vec<_> = cuts.iter().map(|cut| cut % text.len()).collect();
            cuts.extend([0, text.len()]);
            cuts.sort_unstable();
            cuts.dedup();
            let mut wire = server();
            for pair in cuts.windows(2) {
                wire.received(&text[pair[0]..pair[1]]);
            }
            wire.sent(OK);
            let found = wire.brief();
            let ended = format!("end 0 at {} with 200", wire.now);
            prop_assert!(found.starts_with("Server 0 at 10"), "{}", found);
            prop_assert!(found.ends_with(&ended), "{}", found);
            prop_assert!(!found.contains("nobody"), "{}", found);
            prop_assert_eq!(found.matches(", head").count(), 1);
        }
    }
}
