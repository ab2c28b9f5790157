//! HTTP/1.0 and HTTP/1.1 (RFC 9110, RFC 9112).
//!
//! Matches requests with responses in order and tells where each begins and
//! ends. Bodies are counted, never kept. Where bytes are missing it keeps
//! counting if the grammar allows for it; else that side is *lost*, and is
//! taken up again only at a boundary that cannot be anything else: a message
//! that begins with the first bytes after the other side spoke. A connection
//! that ever pipelined has no such boundary, so there a loss is final.
//!
//! `message` finds the ends of messages, `semantics` turns heads into
//! attributes, `url` takes targets apart and hides their secrets.

mod message;
mod semantics;
mod url;

use std::borrow::Cow;
use std::collections::VecDeque;
use std::sync::{Arc, LazyLock};

use self::message::{Body, HeadBuffer, Progress, Taken};
use self::semantics::{Ends, Outcome, RequestHead, ResponseHead};
use super::reader::Reader;
use super::{
    Connection, Defect, Exchange, MAX_IN_FLIGHT, Parser, Protocol, Role, Side, Step, Verdict,
};

/// Longest head that is kept, bytes; servers refuse more than 8 to 64 KiB.
pub const MAX_HEAD: usize = 64 * 1024;

/// HTTP/1.
pub const PROTOCOL: Protocol = Protocol {
    name: "http1",
    client_only: false,
    detect,
    parser,
};

/// What an operator may choose.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Methods that keep their name; every other is `_OTHER`.
    pub known_methods: Vec<Cow<'static, str>>,
    /// Query keys whose values are hidden.
    pub sensitive_query_keys: Vec<Cow<'static, str>>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            known_methods: KNOWN_METHODS.iter().map(|m| Cow::Borrowed(*m)).collect(),
            sensitive_query_keys: SENSITIVE_KEYS.iter().map(|k| Cow::Borrowed(*k)).collect(),
        }
    }
}

/// The conventions' list: RFC 9110, PATCH (RFC 5789) and QUERY; the most
/// frequent first.
const KNOWN_METHODS: [&str; 10] = [
    "GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH", "CONNECT", "TRACE", "QUERY",
];

/// The conventions' list (`url.query`, `url.full`).
const SENSITIVE_KEYS: [&str; 7] = [
    "X-Amz-Signature",
    "X-Amz-Credential",
    "X-Amz-Security-Token",
    "AWSAccessKeyId",
    "Signature",
    "sig",
    "X-Goog-Signature",
];

/// Longest beginning of a request line that may still become one, bytes.
const MAX_UNSURE: usize = 2048;

/// Longest method name that is believed, bytes; the registered ones have up
/// to 17.
const MAX_METHOD: usize = 32;

/// Judges the first bytes that either end sent.
///
/// A known method is believed with the first byte of its target, any other
/// only with the version behind it.
fn detect(first: &[u8]) -> Verdict {
    const RESPONSE: &[u8] = b"HTTP/1.";
    const SCHEME: &[u8] = b"http";
    let mut reader = Reader::new(first);
    reader.take_while(is_line_break);
    if reader.position() > 8 {
        return Verdict::No;
    }
    let unsure = |reader: &Reader<'_>| match reader.is_empty() && first.len() < MAX_UNSURE {
        true => Verdict::Unsure,
        false => Verdict::No,
    };
    if reader.rest().starts_with(RESPONSE) {
        return Verdict::Yes(Side::Response);
    }
    if RESPONSE.starts_with(reader.rest()) {
        return Verdict::Unsure;
    }
    let method = reader.take_while(is_token);
    if method.is_empty() || method.len() > MAX_METHOD || !reader.take_literal(b" ") {
        return match method.len() {
            0..=MAX_METHOD => unsure(&reader),
            _ => Verdict::No,
        };
    }
    let known = KNOWN_METHODS.iter().any(|known| known.as_bytes() == method);
    let target = reader.rest();
    let plausible = match reader.peek() {
        None => return unsure(&reader),
        Some(b'/' | b'*') => true,
        Some(byte) if method == b"CONNECT" => byte == b'[' || byte.is_ascii_alphanumeric(),
        Some(_) => {
            let scheme = target.get(..SCHEME.len()).unwrap_or(target);
            let absolute = SCHEME
                .get(..scheme.len())
                .is_some_and(|begin| begin.eq_ignore_ascii_case(scheme));
            if absolute && scheme.len() < SCHEME.len() {
                return Verdict::Unsure;
            }
            absolute
        }
    };
    if !plausible {
        return Verdict::No;
    }
    if known {
        return Verdict::Yes(Side::Request);
    }
    reader.take_while(|byte| byte > b' ' && byte != 0x7f);
    if reader.take_literal(b" HTTP/1.") {
        return Verdict::Yes(Side::Request);
    }
    match b" HTTP/1.".starts_with(reader.rest()) && first.len() < MAX_UNSURE {
        true => Verdict::Unsure,
        false => Verdict::No,
    }
}

fn is_line_break(byte: u8) -> bool {
    matches!(byte, b'\r' | b'\n')
}

/// `tchar`, RFC 9110 section 5.6.2.
fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

fn parser(connection: &Connection) -> Box<dyn Parser> {
    static DEFAULT: LazyLock<Arc<Settings>> = LazyLock::new(Arc::default);
    Box::new(Http1::new(connection, Arc::clone(&DEFAULT)))
}

/// A parser of one HTTP/1 connection.
#[derive(Debug)]
pub struct Http1 {
    settings: Arc<Settings>,
    ends: Ends,
    request: Half,
    response: Half,
    /// Requests whose response is not complete, oldest first.
    in_flight: VecDeque<Pending>,
    /// The number of the next exchange.
    next: u64,
    /// The side that spoke last.
    last: Option<Side>,
    /// Whether a request began before its predecessor was answered.
    pipelined: bool,
    /// Whether a side was lost, or a response came without a request.
    damaged: bool,
    /// Whether the rest of the connection is of no interest.
    muted: bool,
}

/// One direction.
#[derive(Debug, Default)]
struct Half {
    phase: Phase,
    head: HeadBuffer,
    /// Bytes before the current ones.
    offset: u64,
}

/// What the next byte of a direction belongs to.
#[derive(Debug, Default)]
enum Phase {
    /// The first byte of a message.
    #[default]
    Start,
    Head,
    Body(Body),
    /// The body of a request that was answered before it sent a byte of it,
    /// and which may therefore never come (RFC 9110, section 10.1.1).
    Withheld(Body),
    /// Nobody knows.
    Lost,
    /// The same, but what came may be the beginning of a message.
    Probe,
}

impl Phase {
    fn is_lost(&self) -> bool {
        match self {
            Self::Lost | Self::Probe => true,
            Self::Body(body) => body.is_lost(),
            Self::Start | Self::Head | Self::Withheld(_) => false,
        }
    }
}

/// An exchange whose response is not complete.
#[derive(Debug)]
struct Pending {
    number: u64,
    request: Request,
    /// Whether all of the request's body was transferred.
    sent: bool,
    /// Bytes of the request's body, if all were counted.
    size: Option<u64>,
    /// Whether a 100 (Continue) came.
    continued: bool,
    response: Option<ResponseHead>,
}

#[derive(Debug)]
enum Request {
    /// Its head is incomplete.
    Reading,
    Known(Box<RequestFacts>),
    /// It was abandoned, but its response may still come.
    Abandoned,
}

/// What of a request's head is needed until the end.
#[derive(Debug)]
struct RequestFacts {
    exchange: Box<Exchange>,
    is_head: bool,
    is_connect: bool,
    expects_continue: bool,
}

impl Parser for Http1 {
    fn bytes(&mut self, side: Side, bytes: &[u8], steps: &mut Vec<Step>) {
        if self.muted || bytes.is_empty() {
            return;
        }
        let turned = self.last.replace(side) != Some(side);
        if self.half(side).phase.is_lost() {
            self.bytes_when_lost(side, bytes, turned, steps);
        } else {
            self.feed(side, bytes, steps);
        }
        let half = self.half(side);
        half.offset = half.offset.saturating_add(bytes.len() as u64);
    }

    fn skip(&mut self, side: Side, count: u64, tail: &[u8], steps: &mut Vec<Step>) {
        if self.muted || count == 0 {
            return;
        }
        self.last = Some(side);
        let half = self.half(side);
        half.offset = half.offset.saturating_add(count);
        let body = match &mut half.phase {
            Phase::Body(body) | Phase::Withheld(body) => body,
            _ => return self.lose(side, Defect::Gap, steps),
        };
        let (progress, excess) = body.skip(count, tail);
        match progress {
            Progress::Within => {}
            Progress::Lost => self.body_lost(side, steps),
            Progress::Done => {
                self.body_done(side, steps);
                if excess > 0 && !self.muted {
                    self.lose(side, Defect::Gap, steps);
                }
            }
        }
    }

    fn follows(&self, side: Side) -> bool {
        let half = match side {
            Side::Request => &self.request,
            Side::Response => &self.response,
        };
        !self.muted && !half.phase.is_lost()
    }

    fn close(&mut self, steps: &mut Vec<Step>) {
        if self.muted {
            return;
        }
        self.muted = true;
        let response_lost = matches!(self.response.phase, Phase::Lost | Phase::Probe);
        while let Some(pending) = self.in_flight.front() {
            match (&pending.request, &pending.response) {
                (Request::Known(_), Some(_)) => {
                    // A client that closes has perhaps seen enough: its
                    // exchange ends with the head of the answer.
                    let cut = match &self.response.phase {
                        Phase::Body(body) => {
                            self.ends.role == Role::Server && body.is_cut_by_close()
                        }
                        _ => false,
                    };
                    self.end(cut, steps);
                }
                (Request::Known(_), None) if !response_lost => self.end(true, steps),
                _ => self.abandon_front(Defect::Gap, steps),
            }
        }
    }
}

impl Http1 {
    /// Makes a parser that goes by `settings`.
    pub fn new(connection: &Connection, settings: Arc<Settings>) -> Self {
        Self {
            settings,
            ends: Ends::new(connection),
            request: Half::default(),
            response: Half::default(),
            in_flight: VecDeque::new(),
            next: 0,
            last: None,
            pipelined: false,
            damaged: false,
            muted: false,
        }
    }

    fn half(&mut self, side: Side) -> &mut Half {
        match side {
            Side::Request => &mut self.request,
            Side::Response => &mut self.response,
        }
    }

    /// Takes bytes of a side that is in step.
    fn feed(&mut self, side: Side, bytes: &[u8], steps: &mut Vec<Step>) {
        let mut input = Reader::new(bytes);
        while !input.is_empty() && !self.muted {
            match &mut self.half(side).phase {
                Phase::Start => {
                    // Empty lines before a message mean nothing (RFC 9112,
                    // section 2.2).
                    input.take_while(is_line_break);
                    if !input.is_empty() {
                        match side {
                            Side::Request => self.begin(&input, steps),
                            Side::Response => self.begin_response(steps),
                        }
                    }
                }
                Phase::Head => match side {
                    Side::Request => self.request_head(&mut input, steps),
                    Side::Response => self.response_head(&mut input, steps),
                },
                Phase::Body(body) => match body.take(&mut input) {
                    Progress::Within => {}
                    Progress::Done => self.body_done(side, steps),
                    Progress::Lost => {
                        self.body_lost(side, steps);
                        return;
                    }
                },
                Phase::Withheld(_) => self.resume_withheld(&input),
                Phase::Lost | Phase::Probe => return,
            }
        }
    }

    /// Takes bytes of a lost side: is this where it can be taken up again?
    fn bytes_when_lost(&mut self, side: Side, bytes: &[u8], turned: bool, steps: &mut Vec<Step>) {
        let probing = matches!(self.half(side).phase, Phase::Probe);
        if probing && turned {
            self.half(side).head.clear();
            self.half(side).phase = Phase::Lost;
        }
        let probing = probing && !turned;
        if probing || (turned && self.may_resume(side)) {
            let half = self.half(side);
            let kept = match probing {
                true => half.head.keep(bytes),
                false => bytes,
            };
            match detect(kept) {
                Verdict::Yes(found) if found == side => {
                    let kept = half.head.release();
                    return self.resume(side, &kept, bytes, steps);
                }
                Verdict::Unsure if !probing => {
                    half.head.keep(bytes);
                    half.phase = Phase::Probe;
                    return;
                }
                Verdict::Unsure => return,
                _ if probing => {
                    half.head.clear();
                    half.phase = Phase::Lost;
                }
                _ => {}
            }
        }
        // The response may be orphaned, or its last chunk may be found.
        match &mut self.half(side).phase {
            Phase::Body(body) => {
                if body.take(&mut Reader::new(bytes)) == Progress::Done {
                    self.body_done(side, steps);
                }
            }
            _ => {
                let alone = side == Side::Response && turned && self.in_flight.is_empty();
                if alone && detect(bytes) == Verdict::Yes(Side::Response) {
                    self.orphan(steps);
                }
            }
        }
    }

    /// Whether a message of that side may begin now, both sides considered.
    fn may_resume(&self, side: Side) -> bool {
        match side {
            Side::Request => self.in_flight.is_empty() || self.response.phase.is_lost(),
            Side::Response => self
                .in_flight
                .front()
                .is_some_and(|pending| pending.response.is_none()),
        }
    }

    /// Takes a side up again at the beginning of a message.
    fn resume(&mut self, side: Side, kept: &[u8], bytes: &[u8], steps: &mut Vec<Step>) {
        if self.pipelined {
            return self.mute(Defect::Gap, steps);
        }
        if side == Side::Request {
            self.end_lost_response(steps);
            while !self.in_flight.is_empty() {
                self.abandon_front(Defect::Gap, steps);
            }
        }
        self.half(side).phase = Phase::Start;
        if kept.is_empty() {
            return self.feed(side, bytes, steps);
        }
        let half = self.half(side);
        let now = half.offset;
        half.offset = (now + bytes.len() as u64).saturating_sub(kept.len() as u64);
        self.feed(side, kept, steps);
        self.half(side).offset = now;
    }

    // === Requests ===

    /// A request begins with the next byte.
    fn begin(&mut self, input: &Reader<'_>, steps: &mut Vec<Step>) {
        let offset = self.request.offset + input.position() as u64;
        self.end_lost_response(steps);
        let unanswered = self.in_flight.back().is_some_and(|p| p.response.is_none());
        if unanswered && self.damaged {
            // It pipelines, or a response was missed: which answer belongs to
            // which request is no longer certain.
            return self.mute(Defect::Gap, steps);
        }
        if self.in_flight.len() >= MAX_IN_FLIGHT {
            while !self.in_flight.is_empty() {
                self.abandon_front(Defect::TooManyInFlight, steps);
            }
            return self.mute(Defect::TooManyInFlight, steps);
        }
        self.pipelined |= !self.in_flight.is_empty();
        let number = self.number();
        let plausible = input.peek().is_some_and(is_token);
        self.in_flight.push_back(Pending {
            number,
            request: Request::Reading,
            sent: false,
            size: None,
            continued: false,
            response: None,
        });
        if plausible {
            self.request.phase = Phase::Head;
            steps.push(Step::Begin {
                exchange: number,
                offset,
            });
        } else {
            self.lose_request(Defect::Malformed, steps);
        }
    }

    fn request_head(&mut self, input: &mut Reader<'_>, steps: &mut Vec<Step>) {
        let (ends, settings) = (&self.ends, &*self.settings);
        let parse = |bytes: &[u8]| semantics::parse_request(bytes, ends, settings);
        let (head, consumed) = match self.request.head.take(input.rest(), &parse) {
            Taken::Complete { head, consumed } => (head, consumed),
            Taken::Partial => return input.advance(usize::MAX),
            Taken::Failed(defect) => return self.lose_request(defect, steps),
        };
        input.advance(consumed);
        let RequestHead {
            exchange,
            framing,
            context,
            is_head,
            is_connect,
            expects_continue,
        } = head;
        let Some(pending) = self.in_flight.back_mut() else {
            self.request.phase = Phase::Lost;
            return;
        };
        steps.push(Step::Head {
            exchange: pending.number,
            context,
            end: self.request.offset + input.position() as u64,
        });
        pending.request = Request::Known(Box::new(RequestFacts {
            exchange,
            is_head,
            is_connect,
            expects_continue,
        }));
        match Body::new(framing) {
            Some(body) => {
                self.damaged |= body.is_lost();
                self.request.phase = Phase::Body(body);
            }
            None => {
                pending.sent = true;
                pending.size = Some(0);
                self.request.phase = Phase::Start;
            }
        }
    }

    /// A request's body was withheld: does a request follow in its place?
    fn resume_withheld(&mut self, input: &Reader<'_>) {
        let phase = std::mem::take(&mut self.request.phase);
        // A body may run into the next request's line and look like a method
        // of its own, so only a known one is believed.
        let first = input.rest();
        let is_request = detect(first) == Verdict::Yes(Side::Request)
            && KNOWN_METHODS
                .iter()
                .any(|known| first.starts_with(known.as_bytes()));
        if let (Phase::Withheld(body), false) = (phase, is_request) {
            self.request.phase = Phase::Body(body);
        }
    }

    /// The current request cannot be followed any further.
    fn lose_request(&mut self, defect: Defect, steps: &mut Vec<Step>) {
        self.damaged = true;
        self.request.head.clear();
        self.request.phase = Phase::Lost;
        if let Some(pending) = self.in_flight.back_mut()
            && matches!(pending.request, Request::Reading)
        {
            pending.request = Request::Abandoned;
            steps.push(Step::Abandon {
                exchange: pending.number,
                reason: defect,
            });
        }
    }

    // === Responses ===

    fn begin_response(&mut self, steps: &mut Vec<Step>) {
        match self.in_flight.is_empty() {
            true => self.orphan(steps),
            false => self.response.phase = Phase::Head,
        }
    }

    /// A response that belongs to no request; its framing depends on one, so
    /// it cannot be followed.
    fn orphan(&mut self, steps: &mut Vec<Step>) {
        self.damaged = true;
        self.response.phase = Phase::Lost;
        let exchange = self.number();
        steps.push(Step::Abandon {
            exchange,
            reason: Defect::Orphan,
        });
    }

    fn response_head(&mut self, input: &mut Reader<'_>, steps: &mut Vec<Step>) {
        let parse = |bytes: &[u8]| semantics::parse_response(bytes);
        let (head, consumed) = match self.response.head.take(input.rest(), &parse) {
            Taken::Complete { head, consumed } => (head, consumed),
            Taken::Partial => return input.advance(usize::MAX),
            Taken::Failed(defect) => return self.lose_response(defect, steps),
        };
        input.advance(consumed);
        self.response.phase = Phase::Start;
        let Some(pending) = self.in_flight.front_mut() else {
            return;
        };
        let interim = (100..200).contains(&head.status) && head.status != 101;
        if interim {
            pending.continued |= head.status == 100;
            return;
        }
        let (upgrades, framing) = match &pending.request {
            Request::Known(facts) => {
                let tunnel = facts.is_connect && (200..300).contains(&head.status);
                let framing = match facts.is_head {
                    true => message::Framing::Empty,
                    false => head.framing,
                };
                (tunnel || head.status == 101, framing)
            }
            // Without the request it is unknown whether a body follows.
            _ if head.status == 101 => (true, head.framing),
            _ => return self.lose_response(Defect::Gap, steps),
        };
        pending.response = Some(head);
        if upgrades {
            self.end(false, steps);
            return self.mute(Defect::Upgraded, steps);
        }
        match Body::new(framing) {
            Some(body) => {
                let lost = body.is_lost();
                self.response.phase = Phase::Body(body);
                if lost {
                    self.body_lost(Side::Response, steps);
                }
            }
            None => self.end(false, steps),
        }
    }

    /// The current response cannot be followed any further.
    fn lose_response(&mut self, defect: Defect, steps: &mut Vec<Step>) {
        self.damaged = true;
        self.response.head.clear();
        self.response.phase = Phase::Lost;
        if let Some(Pending {
            request: Request::Reading,
            ..
        }) = self.in_flight.front()
        {
            // It was answered before its head was complete.
            self.lose_request(defect, steps);
        }
        self.abandon_front(defect, steps);
        if self.pipelined && !self.in_flight.is_empty() {
            self.mute(Defect::Gap, steps);
        }
    }

    /// A new request tells that a response whose end was not seen is over.
    fn end_lost_response(&mut self, steps: &mut Vec<Step>) {
        let answered = self.in_flight.front().is_some_and(|p| p.response.is_some());
        if answered && self.response.phase.is_lost() {
            self.end(false, steps);
            self.response.phase = Phase::Lost;
        }
    }

    // === Both ===

    fn number(&mut self) -> u64 {
        let number = self.next;
        self.next += 1;
        number
    }

    /// Bytes are missing and no body's count covers them.
    fn lose(&mut self, side: Side, defect: Defect, steps: &mut Vec<Step>) {
        let half = self.half(side);
        if matches!(half.phase, Phase::Lost | Phase::Probe) {
            half.head.clear();
            half.phase = Phase::Lost;
            return;
        }
        match side {
            Side::Request => {
                self.end_lost_response(steps);
                self.lose_request(defect, steps);
            }
            Side::Response => self.lose_response(defect, steps),
        }
    }

    /// A body's end cannot be told any more.
    fn body_lost(&mut self, side: Side, steps: &mut Vec<Step>) {
        self.damaged = true;
        if side == Side::Response && self.pipelined {
            self.end(false, steps);
            self.mute(Defect::Gap, steps);
        }
    }

    fn body_done(&mut self, side: Side, steps: &mut Vec<Step>) {
        match side {
            Side::Response => self.end(false, steps),
            Side::Request => {
                let phase = std::mem::take(&mut self.request.phase);
                let (Phase::Body(body) | Phase::Withheld(body)) = phase else {
                    return;
                };
                // An exchange that ended early is no longer in flight.
                if let Some(pending) = self.in_flight.back_mut()
                    && !pending.sent
                {
                    pending.sent = true;
                    pending.size = body.size();
                }
            }
        }
    }

    /// Ends the oldest exchange; `closed` where the connection cut it short.
    fn end(&mut self, closed: bool, steps: &mut Vec<Step>) {
        let phase = std::mem::take(&mut self.response.phase);
        let Some(pending) = self.in_flight.pop_front() else {
            return;
        };
        let Request::Known(facts) = pending.request else {
            return;
        };
        let response_size = match (&phase, pending.response) {
            (Phase::Body(body), _) => body.size(),
            (Phase::Start, Some(_)) => Some(0),
            _ => None,
        };
        let withheld = facts.expects_continue && !pending.continued && !pending.sent;
        if withheld
            && let Phase::Body(body) = &self.request.phase
            && body.size() == Some(0)
            && let Phase::Body(body) = std::mem::take(&mut self.request.phase)
        {
            self.request.phase = Phase::Withheld(body);
        }
        let outcome = Outcome {
            response: pending.response,
            closed,
            request_size: pending.size,
            response_size,
        };
        steps.push(Step::End {
            exchange: pending.number,
            result: semantics::finish(facts.exchange, self.ends.role, outcome),
        });
    }

    /// Gives the oldest exchange up.
    fn abandon_front(&mut self, reason: Defect, steps: &mut Vec<Step>) {
        if let Some(pending) = self.in_flight.pop_front()
            && !matches!(pending.request, Request::Abandoned)
        {
            steps.push(Step::Abandon {
                exchange: pending.number,
                reason,
            });
        }
    }

    /// Gives up the connection and what is in flight on it.
    fn mute(&mut self, reason: Defect, steps: &mut Vec<Step>) {
        while !self.in_flight.is_empty() {
            self.abandon_front(reason, steps);
        }
        self.muted = true;
        self.request = Half::default();
        self.response = Half::default();
        steps.push(Step::Mute(reason));
    }
}

#[cfg(test)]
mod tests {
    use std::fmt::Write as _;
    use std::path::{Path, PathBuf};

    use proptest::prelude::*;

    use super::*;
    use crate::attribute::Value;
    use crate::protocol::{Endpoint, Role, Status};

    /// One thing that happens on a connection.
    #[derive(Clone, Debug)]
    enum Event {
        Bytes(Side, Vec<u8>),
        Skip(Side, u64, Vec<u8>),
        Close,
    }

    fn req(text: &str) -> Event {
        Event::Bytes(Side::Request, text.as_bytes().to_vec())
    }

    fn res(text: &str) -> Event {
        Event::Bytes(Side::Response, text.as_bytes().to_vec())
    }

    fn gap(side: Side, count: u64, tail: &str) -> Event {
        Event::Skip(side, count, tail.as_bytes().to_vec())
    }

    fn connection(role: Role) -> Connection {
        let end = |text: &str| Some(Endpoint::Ip(text.parse().expect("an address")));
        let (local, peer) = match role {
            Role::Server => (end("127.0.0.1:8000"), end("192.0.2.9:40000")),
            Role::Client => (end("127.0.0.1:40000"), end("192.0.2.7:8000")),
        };
        Connection {
            role,
            local,
            peer,
            tls: false,
            old: false,
        }
    }

    fn run(connection: &Connection, events: &[Event]) -> Vec<Step> {
        let mut parser = (PROTOCOL.parser)(connection);
        let mut steps = Vec::new();
        for event in events {
            match event {
                Event::Bytes(side, bytes) => parser.bytes(*side, bytes, &mut steps),
                Event::Skip(side, count, tail) => parser.skip(*side, *count, tail, &mut steps),
                Event::Close => parser.close(&mut steps),
            }
        }
        steps
    }

    fn plain(value: &Value) -> String {
        match value {
            Value::Str(text) => format!("{text:?}"),
            Value::Int(number) => number.to_string(),
            other => format!("{other:?}"),
        }
    }

    /// Steps in short words, an end with its status and sizes only.
    fn brief(steps: &[Step]) -> String {
        let mut lines = Vec::new();
        for step in steps {
            lines.push(match step {
                Step::Begin { exchange, offset } => format!("begin {exchange} at {offset}"),
                Step::Head {
                    exchange,
                    context,
                    end,
                } => {
                    let context = if context.is_some() { " context" } else { "" };
                    format!("head {exchange} to {end}{context}")
                }
                Step::Abandon { exchange, reason } => format!("abandon {exchange} {reason:?}"),
                Step::Mute(reason) => format!("mute {reason:?}"),
                Step::End { exchange, result } => {
                    let find = |key: &str| {
                        let found = result.attributes.iter().find(|(known, _)| known == key);
                        found.map_or("-".to_owned(), |(_, value)| plain(value))
                    };
                    format!(
                        "end {exchange} {} {} {}/{} {}",
                        result.name,
                        find("http.response.status_code"),
                        find("http.request.body.size"),
                        find("http.response.body.size"),
                        find("error.type"),
                    )
                }
            });
        }
        lines.join("; ")
    }

    /// A conversation on a server's connection and its steps in short words.
    #[track_caller]
    fn check(events: &[Event], expected: &str) {
        assert_eq!(brief(&run(&connection(Role::Server), events)), expected);
    }

    /// The same, and the same again for single bytes.
    #[track_caller]
    fn check_split(events: &[Event], expected: &str) {
        check(events, expected);
        check(&split(events), expected);
    }

    fn split(events: &[Event]) -> Vec<Event> {
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

    /// Attributes of the only exchange of a request and a response.
    fn exchange(connection: &Connection, request: &str, response: &str) -> Exchange {
        let steps = run(connection, &[req(request), res(response)]);
        let Some(Step::End { result, .. }) =
            steps.into_iter().find(|s| matches!(s, Step::End { .. }))
        else {
            panic!("no exchange for {request:?}");
        };
        *result
    }

    const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
    const GET: &str = "GET / HTTP/1.1\r\nHost: h\r\n\r\n";

    // === Detection ===

    #[test]
    fn detects_requests_and_responses() {
        let check = |bytes: &[u8], expected| assert_eq!(detect(bytes), expected, "{bytes:?}");
        let request = Verdict::Yes(Side::Request);
        for yes in [
            &b"GET / HTTP/1.1\r\n"[..],
            b"GET /",
            b"\r\nPOST /",
            b"OPTIONS *",
            b"GET http://h/",
            b"CONNECT h:443",
            b"CONNECT [::1]:443",
            b"FOO /x HTTP/1.1",
            b"M-SEARCH * HTTP/1.1",
        ] {
            check(yes, request);
        }
        check(b"HTTP/1.1 200 OK", Verdict::Yes(Side::Response));
        check(b"HTTP/1.0", Verdict::Yes(Side::Response));
        for unsure in [
            &b""[..],
            b"\r\n",
            b"G",
            b"GET",
            b"GET ",
            b"H",
            b"HTTP/",
            b"FOO /x",
            b"FOO /x HTT",
            b"GET htt",
        ] {
            check(unsure, Verdict::Unsure);
        }
        for no in [
            &b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"[..],
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
            b"HTTP/2 200",
            b"*1\r\n$4\r\nPING\r\n",
            b"PING\r\n",
            b"get key\r\n",
            b"SELECT * FROM t",
            b"{\"GET /\": 1}",
            b"\0\0\0\x08",
            b"GET  /",
            b"GET hello",
            b"GET key\r\n",
            b"EHLO example.com\r\n",
            b"FOO /x FTP/1.1",
            b"\r\n\r\n\r\n\r\n\r\nGET /",
        ] {
            check(no, Verdict::No);
        }
        check(&[b'A'; MAX_METHOD + 1], Verdict::No);
        check(
            format!("FOO /{}", "x".repeat(MAX_UNSURE)).as_bytes(),
            Verdict::No,
        );
    }

    // === Bodies and boundaries ===

    #[test]
    fn follows_a_kept_connection() {
        check_split(
            &[req(GET), res(OK), req(GET), res(OK), Event::Close],
            "begin 0 at 0; head 0 to 27; end 0 GET 200 0/2 -; \
             begin 1 at 27; head 1 to 54; end 1 GET 200 0/2 -",
        );
    }

    #[test]
    fn matches_pipelined_requests_in_order() {
        check_split(
            &[
                req("GET /a HTTP/1.1\r\n\r\nHEAD /b HTTP/1.1\r\n\r\nPUT /c HTTP/1.1\r\n\r\n"),
                res(
                    "HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\naHTTP/1.1 404 No\r\nContent-Length: 9\r\n\r\n",
                ),
                res("HTTP/1.1 204 None\r\n\r\n"),
            ],
            "begin 0 at 0; head 0 to 19; begin 1 at 19; head 1 to 39; begin 2 at 39; head 2 to 58; \
             end 0 GET 200 0/1 -; end 1 HEAD 404 0/0 -; end 2 PUT 204 0/0 -",
        );
    }

    #[test]
    fn counts_chunked_bodies_both_ways() {
        check_split(
            &[
                req("POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"),
                res(
                    "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n4;x=1\r\nabcd\r\n1\r\ne\r\n0\r\nT: 1\r\n\r\n",
                ),
                req(GET),
                res("HTTP/1.1 304 Not Modified\r\nContent-Length: 77\r\n\r\n"),
            ],
            "begin 0 at 0; head 0 to 47; end 0 POST 200 3/5 -; \
             begin 1 at 60; head 1 to 87; end 1 GET 304 0/0 -",
        );
    }

    #[test]
    fn ends_an_unframed_response_with_the_connection() {
        check_split(
            &[
                req("GET / HTTP/1.0\r\n\r\n"),
                res("HTTP/1.0 200 OK\r\n\r\nhello"),
                Event::Close,
            ],
            "begin 0 at 0; head 0 to 18; end 0 GET 200 0/5 -",
        );
    }

    #[test]
    fn goes_past_interim_responses() {
        check_split(
            &[
                req("PUT / HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n"),
                res("HTTP/1.1 100 Continue\r\n\r\n"),
                req("ab"),
                res(
                    "HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
                ),
            ],
            "begin 0 at 0; head 0 to 59; end 0 PUT 200 2/2 -",
        );
    }

    #[test]
    fn accepts_a_request_in_place_of_a_withheld_body() {
        let put = "PUT / HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n";
        let refused = "HTTP/1.1 417 No\r\nContent-Length: 0\r\n\r\n";
        let begun = "begin 0 at 0; head 0 to 59; end 0 PUT 417 -/0 -; ";
        check(
            &[req(put), res(refused), req(GET), res(OK)],
            &format!("{begun}begin 1 at 59; head 1 to 86; end 1 GET 200 0/2 -"),
        );
        check_split(
            &[
                req(put),
                res(refused),
                req("abGET / HTTP/1.1\r\n\r\n"),
                res(OK),
            ],
            &format!("{begun}begin 1 at 61; head 1 to 79; end 1 GET 200 0/2 -"),
        );
    }

    #[test]
    fn answers_before_the_request_is_complete() {
        check_split(
            &[
                req("PUT / HTTP/1.1\r\nContent-Length: 4\r\n\r\nab"),
                res("HTTP/1.1 413 No\r\nContent-Length: 0\r\n\r\n"),
                req("cdGET / HTTP/1.1\r\n\r\n"),
                res(OK),
            ],
            "begin 0 at 0; head 0 to 37; end 0 PUT 413 -/0 -; \
             begin 1 at 41; head 1 to 59; end 1 GET 200 0/2 -",
        );
    }

    #[test]
    fn ends_at_an_upgrade_and_mutes() {
        check_split(
            &[
                req("GET /ws HTTP/1.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n"),
                res("HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\n\x01\x02"),
                req(GET),
                Event::Close,
            ],
            "begin 0 at 0; head 0 to 61; end 0 GET 101 0/0 -; mute Upgraded",
        );
        check_split(
            &[
                req("CONNECT h:443 HTTP/1.1\r\nHost: h:443\r\n\r\n"),
                res("HTTP/1.1 200 Established\r\n\r\n\x16\x03"),
            ],
            "begin 0 at 0; head 0 to 39; end 0 CONNECT 200 0/0 -; mute Upgraded",
        );
        check_split(
            &[
                req("CONNECT h:443 HTTP/1.1\r\n\r\n"),
                res("HTTP/1.1 407 No\r\nContent-Length: 1\r\n\r\nx"),
                req(GET),
            ],
            "begin 0 at 0; head 0 to 26; end 0 CONNECT 407 0/1 -; begin 1 at 26; head 1 to 53",
        );
    }

    // === Early ends ===

    #[test]
    fn ends_with_an_error_when_no_response_came() {
        let expected = "begin 0 at 0; head 0 to 27; end 0 GET - 0/- \"connection_closed\"";
        check_split(&[req(GET), Event::Close, req(GET)], expected);
        let interim = res("HTTP/1.1 100 Continue\r\n\r\n");
        check_split(&[req(GET), interim, Event::Close], expected);
    }

    #[test]
    fn a_client_may_close_when_it_has_seen_the_head() {
        let head = "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc";
        let steps = run(
            &connection(Role::Client),
            &[req(GET), res(head), Event::Close],
        );
        let expected = "begin 0 at 0; head 0 to 27; end 0 GET 200 0/3 -";
        assert_eq!(brief(&steps), expected);
        let steps = run(&connection(Role::Client), &[req(GET), Event::Close]);
        let expected = "begin 0 at 0; head 0 to 27; end 0 GET - 0/- \"connection_closed\"";
        assert_eq!(brief(&steps), expected);
    }

    #[test]
    fn ends_with_an_error_when_the_response_was_cut() {
        check_split(
            &[
                req(GET),
                res("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc"),
                Event::Close,
            ],
            "begin 0 at 0; head 0 to 27; end 0 GET 200 0/3 \"connection_closed\"",
        );
        check_split(
            &[
                req(GET),
                res("HTTP/1.1 500 No\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n"),
                Event::Close,
            ],
            "begin 0 at 0; head 0 to 27; end 0 GET 500 0/2 \"500\"",
        );
    }

    #[test]
    fn abandons_a_request_whose_head_never_ended() {
        check_split(
            &[req("GET / HTTP/1.1\r\nHost"), Event::Close],
            "begin 0 at 0; abandon 0 Gap",
        );
        check_split(
            &[
                req("GET / HT"),
                res("HTTP/1.1 408 Request Timeout\r\n\r\n"),
                Event::Close,
            ],
            "begin 0 at 0; abandon 0 Gap",
        );
        check(&[Event::Close], "");
    }

    // === Damage ===

    #[test]
    fn abandons_malformed_requests_and_their_answer() {
        check(
            &[
                req("GET / HTTP/9.9\r\n\r\n"),
                res("HTTP/1.1 400 Bad\r\nContent-Length: 3\r\n\r\nbad"),
                req(GET),
                res(OK),
            ],
            "begin 0 at 0; abandon 0 Malformed; begin 1 at 18; head 1 to 45; end 1 GET 200 0/2 -",
        );
        check(&[req("\x01\x02"), Event::Close], "abandon 0 Malformed");
        check(
            &[req(GET), res("NOPE\r\n\r\n"), req(GET), res(OK)],
            "begin 0 at 0; head 0 to 27; abandon 0 Malformed; \
             begin 1 at 27; head 1 to 54; end 1 GET 200 0/2 -",
        );
    }

    #[test]
    fn abandons_heads_that_are_too_long() {
        let long = format!("GET / HTTP/1.1\r\nX: {}\r\n\r\n", "x".repeat(MAX_HEAD));
        let expected = "begin 0 at 0; abandon 0 HeadTooLong";
        check(&[req(&long)], expected);
        let pieces: Vec<_> = long
            .as_bytes()
            .chunks(999)
            .map(|c| Event::Bytes(Side::Request, c.to_vec()))
            .collect();
        check(&pieces, expected);
        let many = format!("GET / HTTP/1.1\r\n{}\r\n", "X: y\r\n".repeat(200));
        check_split(&[req(&many)], expected);
        let fits = format!("GET / HTTP/1.1\r\nX: {}\r\n\r\n", "x".repeat(MAX_HEAD - 23));
        assert_eq!(fits.len(), MAX_HEAD);
        check_split(&[req(&fits)], "begin 0 at 0; head 0 to 65536");
    }

    #[test]
    fn counts_responses_without_a_request() {
        check(
            &[res(OK), req(GET), res(OK), Event::Close],
            "abandon 0 Orphan; begin 1 at 0; head 1 to 27; end 1 GET 200 0/2 -",
        );
        check(
            &[req(GET), res(OK), res(OK), req(GET), res(OK)],
            "begin 0 at 0; head 0 to 27; end 0 GET 200 0/2 -; abandon 1 Orphan; \
             begin 2 at 27; head 2 to 54; end 2 GET 200 0/2 -",
        );
    }

    #[test]
    fn counts_skipped_bodies() {
        check(
            &[
                req("PUT / HTTP/1.1\r\nContent-Length: 1000\r\n\r\nab"),
                gap(Side::Request, 998, ""),
                res("HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n"),
                gap(Side::Response, 500, "abcdefgh"),
                req(GET),
                res(OK),
            ],
            "begin 0 at 0; head 0 to 40; end 0 PUT 200 1000/500 -; \
             begin 1 at 1040; head 1 to 1067; end 1 GET 200 0/2 -",
        );
        check(
            &[
                req("GET / HTTP/1.0\r\n\r\n"),
                res("HTTP/1.0 200 OK\r\n\r\nab"),
                gap(Side::Response, 500, ""),
                Event::Close,
            ],
            "begin 0 at 0; head 0 to 18; end 0 GET 200 0/502 -",
        );
    }

    #[test]
    fn ends_skipped_chunks_by_their_tail_or_the_next_request() {
        let chunked = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nff\r\nab";
        let next = "begin 1 at 27; head 1 to 54; end 1 GET 200 0/2 -";
        for tail in [
            gap(Side::Response, 900, "d\r\n0\r\n\r\n"),
            gap(Side::Response, 900, "abcdefgh"),
        ] {
            check(
                &[req(GET), res(chunked), tail, req(GET), res(OK)],
                &format!("begin 0 at 0; head 0 to 27; end 0 GET 200 0/- -; {next}"),
            );
        }
        check(
            &[
                req(GET),
                res(chunked),
                gap(Side::Response, 900, ""),
                Event::Close,
            ],
            "begin 0 at 0; head 0 to 27; end 0 GET 200 0/- -",
        );
        check(
            &[
                req("PUT / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nff\r\nab"),
                gap(Side::Request, 900, "abcdefgh"),
                req("GET / looks like one"),
                res(OK),
                req(GET),
                res(OK),
            ],
            "begin 0 at 0; head 0 to 46; end 0 PUT 200 -/2 -; \
             begin 1 at 972; head 1 to 999; end 1 GET 200 0/2 -",
        );
    }

    #[test]
    fn abandons_what_has_a_gap_in_its_head() {
        check(
            &[
                req("GET / HTTP/1.1\r\nHo"),
                gap(Side::Request, 100, "\r\n\r\n"),
                res(OK),
                req(GET),
                res(OK),
            ],
            "begin 0 at 0; abandon 0 Gap; begin 1 at 118; head 1 to 145; end 1 GET 200 0/2 -",
        );
        check(
            &[req(GET), gap(Side::Response, 100, ""), req(GET), res(OK)],
            "begin 0 at 0; head 0 to 27; abandon 0 Gap; \
             begin 1 at 27; head 1 to 54; end 1 GET 200 0/2 -",
        );
        check(
            &[gap(Side::Request, 100, ""), res(OK), req(GET), res(OK)],
            "abandon 0 Orphan; begin 1 at 100; head 1 to 127; end 1 GET 200 0/2 -",
        );
    }

    #[test]
    fn takes_a_side_up_again_byte_by_byte() {
        let mut events = vec![req(GET), gap(Side::Response, 100, "")];
        events.extend(split(&[req(GET), res(OK), req(GET), res(OK)]));
        check(
            &events,
            "begin 0 at 0; head 0 to 27; abandon 0 Gap; \
             begin 1 at 27; head 1 to 54; end 1 GET 200 0/2 -; \
             begin 2 at 54; head 2 to 81; end 2 GET 200 0/2 -",
        );
        let mut events = vec![gap(Side::Request, 5, ""), res(OK)];
        events.extend(split(&[req(GET), res(OK)]));
        check(
            &events,
            "abandon 0 Orphan; begin 1 at 5; head 1 to 32; end 1 GET 200 0/2 -",
        );
    }

    #[test]
    fn never_guesses_after_a_loss_among_pipelined_requests() {
        let two = req("GET /a HTTP/1.1\r\n\r\nGET /b HTTP/1.1\r\n\r\n");
        let begun = "begin 0 at 0; head 0 to 19; begin 1 at 19; head 1 to 38";
        check(
            &[two.clone(), gap(Side::Response, 100, ""), res(OK)],
            &format!("{begun}; abandon 0 Gap; abandon 1 Gap; mute Gap"),
        );
        check(
            &[
                two,
                res(OK),
                gap(Side::Request, 10, ""),
                res(OK),
                req(GET),
                res(OK),
            ],
            &format!("{begun}; end 0 GET 200 0/2 -; end 1 GET 200 0/2 -; mute Gap"),
        );
        check(
            &[res(OK), req(GET), req(GET), res(OK)],
            "abandon 0 Orphan; begin 1 at 0; head 1 to 27; abandon 1 Gap; mute Gap",
        );
    }

    #[test]
    fn bounds_requests_in_flight() {
        let mut parser = Http1::new(&connection(Role::Server), Arc::default());
        let mut steps = Vec::new();
        for _ in 0..MAX_IN_FLIGHT {
            parser.bytes(Side::Request, GET.as_bytes(), &mut steps);
        }
        assert_eq!(steps.len(), 2 * MAX_IN_FLIGHT);
        steps.clear();
        parser.bytes(Side::Request, GET.as_bytes(), &mut steps);
        assert_eq!(steps.len(), MAX_IN_FLIGHT + 1);
        assert_eq!(steps.last(), Some(&Step::Mute(Defect::TooManyInFlight)));
    }

    #[test]
    fn treats_contradictory_lengths_as_unknown() {
        check(
            &[
                req(GET),
                res("HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nok"),
                req(GET),
                res(OK),
            ],
            "begin 0 at 0; head 0 to 27; end 0 GET 200 0/- -; \
             begin 1 at 27; head 1 to 54; end 1 GET 200 0/2 -",
        );
    }

    // === Semantics ===

    #[track_caller]
    fn check_attributes(exchange: &Exchange, expected: &[(&str, &str)]) {
        for (key, value) in expected {
            let found = exchange.attributes.iter().filter(|(known, _)| known == key);
            let found: Vec<_> = found.map(|(_, value)| plain(value)).collect();
            let wanted: &[&str] = if value.is_empty() { &[] } else { &[value] };
            assert_eq!(found, wanted, "{key}");
        }
    }

    #[track_caller]
    fn check_server(request: &str, expected: &[(&str, &str)]) {
        check_attributes(&exchange(&connection(Role::Server), request, OK), expected);
    }

    #[track_caller]
    fn check_client(request: &str, expected: &[(&str, &str)]) {
        check_attributes(&exchange(&connection(Role::Client), request, OK), expected);
    }

    #[test]
    fn tells_a_server_request() {
        check_server(
            "GET /a/b?q=1&sig=x HTTP/1.1\r\nHost: shop.example:8080\r\nUser-Agent: ua/1\r\n\r\n",
            &[
                ("http.request.method", "\"GET\""),
                ("http.request.method_original", ""),
                ("url.scheme", "\"http\""),
                ("url.path", "\"/a/b\""),
                ("url.query", "\"q=1&sig=REDACTED\""),
                ("server.address", "\"shop.example\""),
                ("server.port", "8080"),
                ("client.address", "\"192.0.2.9\""),
                ("client.port", ""),
                ("network.peer.address", "\"192.0.2.9\""),
                ("network.peer.port", "40000"),
                ("network.transport", ""),
                ("network.protocol.name", ""),
                ("network.protocol.version", "\"1.1\""),
                ("user_agent.original", "\"ua/1\""),
                ("http.response.status_code", "200"),
                ("error.type", ""),
                ("url.full", ""),
            ],
        );
    }

    #[test]
    fn believes_forwarded_headers_in_order() {
        let all = "Host: h:1\r\nX-Forwarded-Proto: https, http\r\nX-Forwarded-Host: x.example:2, y\r\nX-Forwarded-For: 10.0.0.1, 10.0.0.2\r\n";
        check_server(
            &format!("GET / HTTP/1.1\r\n{all}\r\n"),
            &[
                ("url.scheme", "\"https\""),
                ("server.address", "\"x.example\""),
                ("server.port", "2"),
                ("client.address", "\"10.0.0.1\""),
            ],
        );
        check_server(
            &format!(
                "GET / HTTP/1.1\r\n{all}Forwarded: for=\"[2001:db8::1]:47\";Proto=HTTPS;host=\"f.example:3\", for=1.1.1.1\r\n\r\n"
            ),
            &[
                ("url.scheme", "\"https\""),
                ("server.address", "\"f.example\""),
                ("server.port", "3"),
                ("client.address", "\"2001:db8::1\""),
            ],
        );
        check_server(
            "GET / HTTP/1.1\r\nHost: h\r\nForwarded: for=unknown;host=\"\r\nX-Forwarded-Proto: a b\r\nX-Forwarded-For: ,\r\n\r\n",
            &[
                ("url.scheme", "\"http\""),
                ("server.address", "\"h\""),
                ("server.port", ""),
                ("client.address", "\"192.0.2.9\""),
            ],
        );
    }

    #[test]
    fn tells_targets_of_every_form() {
        check_server(
            "GET http://u:p@abs.example:81/x?y HTTP/1.1\r\nHost: h\r\n\r\n",
            &[
                ("url.path", "\"/x\""),
                ("url.query", "\"y\""),
                ("server.address", "\"abs.example\""),
                ("server.port", "81"),
            ],
        );
        check_server(
            "OPTIONS * HTTP/1.1\r\nHost: [::1]:5\r\n\r\n",
            &[
                ("url.path", "\"*\""),
                ("server.address", "\"::1\""),
                ("server.port", "5"),
            ],
        );
        check_client(
            "GET http://u:p@abs.example:81/x?sig=1 HTTP/1.1\r\nHost: h\r\n\r\n",
            &[
                (
                    "url.full",
                    "\"http://REDACTED:REDACTED@abs.example:81/x?sig=REDACTED\"",
                ),
                ("server.address", "\"abs.example\""),
                ("server.port", "81"),
            ],
        );
        check_client(
            "OPTIONS * HTTP/1.1\r\nHost: h\r\n\r\n",
            &[("url.full", "\"http://h\"")],
        );
        check_client(
            "CONNECT h:443 HTTP/1.1\r\nHost: h:443\r\n\r\n",
            &[("url.full", "\"h:443\""), ("server.port", "443")],
        );
    }

    #[test]
    fn tells_a_client_request() {
        check_client(
            "GET /a?b=c HTTP/1.1\r\nHost: api.example:8000\r\nUser-Agent: ua\r\nX-Forwarded-For: 1.1.1.1\r\n\r\n",
            &[
                ("url.full", "\"http://api.example:8000/a?b=c\""),
                ("server.address", "\"api.example\""),
                ("server.port", "8000"),
                ("network.peer.address", "\"192.0.2.7\""),
                ("network.peer.port", "8000"),
                ("user_agent.original", ""),
                ("client.address", ""),
                ("url.path", ""),
                ("url.scheme", ""),
            ],
        );
        check_client(
            "GET / HTTP/1.1\r\nHost: h:80\r\n\r\n",
            &[("url.full", "\"http://h/\""), ("server.port", "80")],
        );
        check_client(
            "GET / HTTP/1.0\r\n\r\n",
            &[
                ("url.full", "\"http://192.0.2.7:8000/\""),
                ("server.address", "\"192.0.2.7\""),
                ("server.port", "8000"),
                ("network.protocol.version", "\"1.1\""),
            ],
        );
        let mut tls = connection(Role::Client);
        tls.tls = true;
        let found = exchange(&tls, "GET / HTTP/1.1\r\nHost: [::1]\r\n\r\n", OK);
        check_attributes(
            &found,
            &[
                ("url.full", "\"https://[::1]/\""),
                ("server.address", "\"::1\""),
                ("server.port", "443"),
            ],
        );
    }

    #[test]
    fn names_unknown_methods_http() {
        for method in ["FOO", "get"] {
            let found = exchange(
                &connection(Role::Server),
                &format!("{method} / HTTP/1.1\r\n\r\n"),
                OK,
            );
            assert_eq!(found.name, "HTTP");
            check_attributes(
                &found,
                &[
                    ("http.request.method", "\"_OTHER\""),
                    ("http.request.method_original", &format!("{method:?}")),
                ],
            );
        }
    }

    #[test]
    fn goes_by_the_operators_methods_and_keys() {
        let settings = Settings {
            known_methods: vec!["FOO".into()],
            sensitive_query_keys: vec!["token".into()],
        };
        let mut parser = Http1::new(&connection(Role::Server), Arc::new(settings));
        let mut steps = Vec::new();
        parser.bytes(
            Side::Request,
            b"FOO /?token=1&sig=2 HTTP/1.1\r\n\r\n",
            &mut steps,
        );
        parser.bytes(Side::Response, OK.as_bytes(), &mut steps);
        let Some(Step::End { result, .. }) = steps.last() else {
            panic!("no exchange");
        };
        assert_eq!(result.name, "FOO");
        check_attributes(
            result,
            &[
                ("http.request.method", "\"FOO\""),
                ("url.query", "\"token=REDACTED&sig=2\""),
            ],
        );
    }

    #[test]
    fn sets_the_status_by_role() {
        for (role, code, error) in [
            (Role::Server, 302, false),
            (Role::Server, 404, false),
            (Role::Server, 500, true),
            (Role::Server, 700, true),
            (Role::Client, 302, false),
            (Role::Client, 404, true),
            (Role::Client, 503, true),
        ] {
            let response = format!("HTTP/1.1 {code} X\r\nContent-Length: 0\r\n\r\n");
            let found = exchange(&connection(role), GET, &response);
            let text = format!("\"{code}\"");
            check_attributes(&found, &[("error.type", if error { &text } else { "" })]);
            let expected = if error {
                Status::Error(String::new())
            } else {
                Status::Unset
            };
            assert_eq!(found.status, expected, "{role:?} {code}");
        }
    }

    #[test]
    fn tells_unix_and_mapped_addresses() {
        let mut unix = connection(Role::Server);
        unix.peer = Some(Endpoint::Unix(String::new()));
        let found = exchange(&unix, GET, OK);
        check_attributes(
            &found,
            &[
                ("network.transport", "\"unix\""),
                ("network.peer.address", ""),
            ],
        );
        unix.role = Role::Client;
        unix.peer = Some(Endpoint::Unix("/run/a.sock".to_owned()));
        let found = exchange(&unix, GET, OK);
        check_attributes(
            &found,
            &[
                ("network.peer.address", "\"/run/a.sock\""),
                ("network.peer.port", ""),
                ("server.port", "80"),
            ],
        );
        let mut mapped = connection(Role::Server);
        mapped.peer = Some(Endpoint::Ip(
            "[::ffff:10.1.2.3]:9".parse().expect("an address"),
        ));
        check_attributes(
            &exchange(&mapped, GET, OK),
            &[("client.address", "\"10.1.2.3\"")],
        );
    }

    #[test]
    fn keeps_odd_bytes_out_of_attributes() {
        let request =
            b"GET /caf\xe9?\xff HTTP/1.1\r\nHost: h\xff\r\nUser-Agent: a\tb\xc2\x85\r\n\r\n";
        let events = [Event::Bytes(Side::Request, request.to_vec()), res(OK)];
        for events in [events.to_vec(), split(&events)] {
            let steps = run(&connection(Role::Server), &events);
            assert_eq!(
                brief(&steps[..2]),
                format!("begin 0 at 0; head 0 to {}", request.len())
            );
            let Some(Step::End { result, .. }) = steps.last() else {
                panic!("no exchange");
            };
            check_attributes(
                result,
                &[
                    ("url.path", "\"/caf%E9\""),
                    ("url.query", "\"%FF\""),
                    ("server.address", "\"h\u{fffd}\""),
                    ("user_agent.original", "\"a\u{fffd}b\u{fffd}\""),
                ],
            );
        }
    }

    #[test]
    fn reads_the_callers_context() {
        let parent = "traceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01\r\n";
        let context = |headers: &str| {
            let request = format!("GET / HTTP/1.1\r\n{headers}\r\n");
            let steps = run(&connection(Role::Server), &[req(&request)]);
            match steps.into_iter().nth(1) {
                Some(Step::Head { context, .. }) => context.map(|context| context.state),
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(context(""), None);
        assert_eq!(context(parent).as_deref(), Some(""));
        let states = format!("TraceState: a=1\r\n{parent}tracestate: b=2\r\n");
        assert_eq!(context(&states).as_deref(), Some("a=1,b=2"));
        assert_eq!(
            context(&format!("{parent}tracestate: no\r\n")).as_deref(),
            Some("")
        );
        assert_eq!(context(&format!("{parent}{parent}")), None);
        assert_eq!(context("tracestate: a=1\r\n"), None);
    }

    // === Recorded conversations ===

    fn fixtures() -> Vec<(PathBuf, Vec<Event>)> {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/http1");
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
        assert!(found.len() > 10, "fixtures in {}", folder.display());
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
        let (count, text) = match rest.split_once(" * ") {
            Some((count, text)) if !rest.starts_with('"') => {
                (count.parse().expect("a count"), text)
            }
            _ => (1, rest),
        };
        let text: String = serde_json::from_str(text).expect("a JSON string");
        let bytes: Vec<u8> = text
            .chars()
            .map(|c| u8::try_from(c).expect("Latin-1"))
            .collect();
        Some(Event::Bytes(side, bytes.repeat(count)))
    }

    fn golden(steps: &[Step]) -> String {
        let mut text = String::new();
        for step in steps {
            writeln!(text, "{}", brief(std::slice::from_ref(step))).expect("a string");
            match step {
                Step::Head {
                    context: Some(context),
                    ..
                } => {
                    writeln!(text, "    {context:02x?}").expect("a string");
                }
                Step::End { result, .. } => {
                    writeln!(text, "    {} {:?}", result.scope, result.status).expect("a string");
                    for (key, value) in &result.attributes {
                        writeln!(text, "    {key} = {}", plain(value)).expect("a string");
                    }
                }
                _ => {}
            }
        }
        text
    }

    #[test]
    fn tells_recorded_conversations() {
        for (path, events) in fixtures() {
            for (role, extension) in [
                (Role::Server, "server.golden"),
                (Role::Client, "client.golden"),
            ] {
                let found = golden(&run(&connection(role), &events));
                let path = path.with_extension(extension);
                if std::env::var_os("UPDATE_EXPECT").is_some() {
                    std::fs::write(&path, &found).expect("a golden file");
                }
                let expected = std::fs::read_to_string(&path).unwrap_or_default();
                assert_eq!(found, expected, "{}", path.display());
            }
        }
    }

    /// Distance of the places to try: every byte, save for a megabyte, which
    /// takes its time and is the same all over.
    fn stride(events: &[Event]) -> usize {
        let size = |event: &Event| match event {
            Event::Bytes(_, bytes) => bytes.len(),
            _ => 0,
        };
        let total: usize = events.iter().map(size).sum();
        if total < 100_000 { 1 } else { 37 }
    }

    #[test]
    fn splits_recorded_conversations_anywhere() {
        for (path, events) in fixtures() {
            let whole = run(&connection(Role::Server), &events);
            let stride = stride(&events);
            for (index, event) in events.iter().enumerate() {
                let Event::Bytes(side, bytes) = event else {
                    continue;
                };
                let last = bytes.len().saturating_sub(1);
                for at in (1..bytes.len().min(2000)).step_by(stride).chain([last]) {
                    let (first, second) = bytes.split_at(at);
                    let mut events = events.clone();
                    events[index] = Event::Bytes(*side, second.to_vec());
                    events.insert(index, Event::Bytes(*side, first.to_vec()));
                    assert!(
                        run(&connection(Role::Server), &events) == whole,
                        "{} {index} {at}",
                        path.display()
                    );
                }
            }
            assert!(
                run(&connection(Role::Server), &split(&events)) == whole,
                "{}",
                path.display()
            );
        }
    }

    /// Every exchange that begins ends once, and none ends that did not begin.
    fn check_balance(steps: &[Step]) {
        let mut open = std::collections::BTreeSet::new();
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
                    assert!(open.remove(exchange));
                    let bound = url::MAX_VALUE + 64;
                    for (key, value) in &result.attributes {
                        let same = result.attributes.iter().filter(|(other, _)| other == key);
                        assert_eq!(same.count(), 1, "{key}");
                        if let Value::Str(text) = value {
                            assert!(text.len() <= bound && !text.contains(char::is_control));
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

    #[test]
    fn survives_truncation_anywhere() {
        for (_, events) in fixtures() {
            let total = events.len();
            let stride = stride(&events);
            for (index, event) in events.iter().enumerate() {
                let Event::Bytes(side, bytes) = event else {
                    continue;
                };
                for at in (0..bytes.len().min(600)).step_by(stride) {
                    let mut cut: Vec<_> = events[..index].to_vec();
                    cut.push(Event::Bytes(*side, bytes[..at].to_vec()));
                    cut.push(Event::Close);
                    check_balance(&run(&connection(Role::Client), &cut));
                    // What is cut off may as well have been missed.
                    if total < 12 {
                        cut.pop();
                        let missed = bytes.len() - at;
                        cut.push(Event::Skip(*side, missed as u64, Vec::new()));
                        cut.extend_from_slice(&events[index + 1..]);
                        cut.push(Event::Close);
                        check_balance(&run(&connection(Role::Server), &cut));
                    }
                }
            }
        }
    }

    /// Pieces that conversations are made of, whole and broken.
    fn piece() -> impl Strategy<Value = Vec<u8>> {
        prop_oneof![
            Just(GET.as_bytes().to_vec()),
            Just(OK.as_bytes().to_vec()),
            Just(b"POST /e HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n".to_vec()),
            Just(b"PUT /e HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n".to_vec()),
            Just(b"HEAD /h HTTP/1.0\r\nForwarded: for=\"\\\"\r\n\r\n".to_vec()),
            Just(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec()),
            Just(b"HTTP/1.1 100 Continue\r\n\r\n".to_vec()),
            Just(b"HTTP/1.0 500 No\r\n\r\n".to_vec()),
            Just(b"0\r\n\r\n".to_vec()),
            Just(b"\r\n".to_vec()),
            Just(b"GE".to_vec()),
            Just(b"HTT".to_vec()),
            proptest::collection::vec(any::<u8>(), 0..40),
        ]
    }

    fn any_event() -> impl Strategy<Value = Event> {
        let side = prop_oneof![Just(Side::Request), Just(Side::Response)];
        let mutated = (
            piece(),
            any::<proptest::sample::Index>(),
            any::<u8>(),
            0..6_u8,
        )
            .prop_map(|(mut bytes, index, byte, how)| {
                if how == 0 && !bytes.is_empty() {
                    let at = index.index(bytes.len());
                    bytes[at] = byte;
                } else if how == 1 {
                    bytes.truncate(index.index(bytes.len() + 1));
                }
                bytes
            });
        (side, mutated, 0..8_u8, 0..2000_u64).prop_map(|(side, bytes, kind, count)| match kind {
            0 => Event::Skip(side, count, bytes.into_iter().take(8).collect()),
            _ => Event::Bytes(side, bytes),
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn survives_any_conversation(events in proptest::collection::vec(any_event(), 0..40)) {
            for role in [Role::Server, Role::Client] {
                let connection = connection(role);
                let mut parser = Http1::new(&connection, Arc::default());
                let mut steps = Vec::new();
                for event in &events {
                    match event {
                        Event::Bytes(side, bytes) => parser.bytes(*side, bytes, &mut steps),
                        Event::Skip(side, count, tail) => parser.skip(*side, *count, tail, &mut steps),
                        Event::Close => parser.close(&mut steps),
                    }
                    prop_assert!(parser.in_flight.len() <= MAX_IN_FLIGHT);
                }
                parser.close(&mut steps);
                check_balance(&steps);
            }
        }

        #[test]
        fn keeps_no_more_than_a_head(bytes in proptest::collection::vec(any::<u8>(), 1..300), times in 1..900_usize) {
            let mut parser = Http1::new(&connection(Role::Server), Arc::default());
            let mut steps = Vec::new();
            parser.bytes(Side::Request, b"GET / HTTP/1.1\r\nX: ", &mut steps);
            for _ in 0..times {
                parser.bytes(Side::Request, &bytes, &mut steps);
                prop_assert!(parser.request.head.kept() <= 2 * MAX_HEAD);
            }
            parser.close(&mut steps);
            check_balance(&steps);
        }

        #[test]
        fn detects_without_panic(bytes in piece()) {
            detect(&bytes);
        }
    }
}
