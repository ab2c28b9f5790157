//! What a protocol parser is given and what it returns.
//!
//! A parser sees the bytes of one connection, in order, per side, and returns
//! [`Step`]s. It knows no process, no clock, no span and no OTLP; `stream`
//! puts the time and the evidence of the current bytes to each step.
//! [`PROTOCOLS`] is the only place that lists the parsers.

#[cfg(test)]
mod conversation;
mod database;
pub mod http1;
pub mod postgres;
pub mod reader;
pub mod redis;
pub mod sql;
pub mod sqlite;

use std::borrow::Cow;
use std::net::SocketAddr;

use crate::attribute::{Attributes, Key, Value};
use crate::propagation::TraceContext;

/// Who of the two ends of a connection a traced process is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// It sends requests.
    Client,
    /// It answers requests.
    Server,
}

/// The two halves of an exchange.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// Bytes from the client to the server.
    Request,
    /// Bytes from the server to the client.
    Response,
}

/// One end of a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Endpoint {
    /// An IP address and a port.
    Ip(SocketAddr),
    /// A Unix socket's path; empty where it has none.
    Unix(String),
}

/// What is known of a connection before its first byte.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Connection {
    /// Which end the traced process is.
    pub role: Role,
    /// The traced process's end.
    pub local: Option<Endpoint>,
    /// The other end.
    pub peer: Option<Endpoint>,
    /// Whether the bytes were carried inside TLS.
    pub tls: bool,
    /// Whether bytes went before it was looked at.
    pub old: bool,
}

/// Span status (specification, Trace API: Set Status).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Status {
    /// Nothing is known to have gone wrong.
    #[default]
    Unset,
    /// It went wrong; the description is empty where attributes tell it.
    Error(String),
}

/// One request and its response, in the words of the semantic conventions.
#[derive(Clone, Debug, PartialEq)]
pub struct Exchange {
    /// Instrumentation scope, for example `otel-ebpf.http`.
    pub scope: Cow<'static, str>,
    /// Span name.
    pub name: Cow<'static, str>,
    /// Span attributes.
    pub attributes: Attributes,
    /// The attribute that holds the route by which the process chose what
    /// serves the request; the route then also follows the name. None for
    /// exchanges that have no route.
    pub route_key: Option<&'static str>,
    /// Span status.
    pub status: Status,
}

impl Exchange {
    /// Tells the statement as the process has it, before its driver put the
    /// parameters in, if it is certain that this is the statement that was
    /// sent; false if it is another one.
    pub fn restate(&mut self, statement: &str) -> bool {
        let is_text = |(key, _): &&mut (Key, Value)| key == "db.query.text";
        let Some((_, Value::Str(text))) = self.attributes.iter_mut().find(is_text) else {
            return true;
        };
        if !sql::template::has_places(statement) {
            return true;
        }
        let Some(original) = sql::template::original(statement, text) else {
            return false;
        };
        *text = original.into();
        true
    }

    /// What was asked of a database; the same many times for one request is
    /// conspicuous.
    pub fn statement(&self) -> Option<&str> {
        let is_text = |(key, _): &&(Key, Value)| key == "db.query.text";
        match self.attributes.iter().find(is_text) {
            Some((_, Value::Str(text))) => Some(text),
            _ => None,
        }
    }
}

/// What a parser found in the bytes it was just given.
///
/// `exchange` numbers the exchanges of a connection from 0 upwards, in the
/// order in which their requests begin.
#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    /// The first byte of a request.
    Begin {
        /// Which exchange.
        exchange: u64,
        /// Offset of that byte in the request side's stream.
        offset: u64,
    },
    /// The request's head is complete: its last byte is in these bytes.
    Head {
        /// Which exchange.
        exchange: u64,
        /// The context that the caller sent, if it sent a valid one.
        context: Option<Box<TraceContext>>,
        /// Offset just past the head in the request side's stream.
        end: u64,
    },
    /// The exchange is over; it ended with the last byte of its response, or
    /// now where it had none.
    End {
        /// Which exchange.
        exchange: u64,
        /// What it was.
        result: Box<Exchange>,
    },
    /// The exchange cannot be told (damaged, or its head was never seen);
    /// it yields no span.
    Abandon {
        /// Which exchange.
        exchange: u64,
        /// Why.
        reason: Defect,
    },
    /// The rest of the connection is of no interest to this parser: it was
    /// upgraded, or is not of this protocol after all.
    Mute(Defect),
}

/// Why bytes yielded no exchange; each is counted by this name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Defect {
    /// The bytes are of no known protocol.
    UnknownProtocol,
    /// A message breaks the grammar.
    Malformed,
    /// A head is longer than its parser keeps, or has too many headers.
    HeadTooLong,
    /// Bytes are missing where the grammar needs them.
    Gap,
    /// The connection was upgraded to another protocol.
    Upgraded,
    /// What follows is encrypted.
    Encrypted,
    /// What is received from now on is no answer to a request.
    Subscribed,
    /// The exchange was no operation: a statement was prepared, and no more.
    NoOperation,
    /// A response came without a request (attached in between).
    Orphan,
    /// More requests are in flight on one connection than
    /// [`MAX_IN_FLIGHT`].
    TooManyInFlight,
}

/// Requests without a response that one connection may hold.
pub const MAX_IN_FLIGHT: usize = 128;

/// A parser of one connection.
pub trait Parser: Send {
    /// Takes the next bytes of one side, all of which were seen.
    fn bytes(&mut self, side: Side, bytes: &[u8], steps: &mut Vec<Step>);

    /// Takes note of `count` bytes of one side that were transferred but not
    /// seen; `tail` holds the last of them where the kernel kept them (empty
    /// or up to `abi::record::TAIL` bytes).
    fn skip(&mut self, side: Side, count: u64, tail: &[u8], steps: &mut Vec<Step>);

    /// Takes note that the next request bytes were sent on behalf of another
    /// than those before: what they begin is not part of an exchange that
    /// those began.
    fn divide(&mut self) {}

    /// Whether it is certain what the next byte of that side belongs to.
    fn follows(&self, side: Side) -> bool;

    /// Takes note that the connection is closed in both directions.
    fn close(&mut self, steps: &mut Vec<Step>);
}

/// What the first bytes of a connection say about a protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is this protocol; the bytes were sent by this side.
    Yes(Side),
    /// It is not.
    No,
    /// More bytes are needed to tell.
    Unsure,
}

/// A row of [`PROTOCOLS`].
pub struct Protocol {
    /// Name, as in fixtures and counters.
    pub name: &'static str,
    /// Whether only what a process sends is of interest: one that answers
    /// requests of this protocol is a server of another kind.
    pub client_only: bool,
    /// Judges the first bytes that either end sent after a quiet moment.
    pub detect: fn(&[u8]) -> Verdict,
    /// Makes a parser for a connection.
    pub parser: fn(&Connection) -> Box<dyn Parser>,
}

/// Every protocol we know.
pub const PROTOCOLS: &[Protocol] = &[http1::PROTOCOL, postgres::PROTOCOL, redis::PROTOCOL];
