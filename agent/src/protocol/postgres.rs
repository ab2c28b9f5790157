//! PostgreSQL's protocol, version 3, as its clients speak it.
//!
//! A simple query is an exchange, and so is every execution of the extended
//! protocol; the same statement executed several times in a row, with nothing
//! awaited in between, is one exchange, a batch. Statements that were prepared
//! and portals that were bound are remembered, so that an execution has its
//! text. Of authentication nothing is kept.
//!
//! Messages are counted through, never kept whole. Where bytes are missing,
//! that side is *lost*. It is taken up at a boundary that cannot be anything
//! else: a transfer that ends with `ReadyForQuery` or `Sync`, or a query that
//! a client sends after the server spoke. A connection that ever pipelined has
//! no such boundary, so there a loss is final.
//!
//! `message` reads frames, `detect` recognises the protocol, `statements` has
//! what is remembered, `series` what is not answered, `operation` what an
//! exchange says, `ending` what the last bytes of a long answer prove.

mod detect;
mod ending;
mod message;
mod operation;
mod series;
mod statements;

use std::collections::VecDeque;
use std::sync::Arc;

use self::ending::Columns;
use self::message::{Found, STARTUP, number, requests, responses, string};
use self::operation::{Failure, Pending, Reply};
use self::series::{Group, GroupKind, Half};
use self::statements::Statements;
use super::database::Server;
use super::reader::Reader;
use super::sql::{self, Dialect, Statement};
use super::{Connection, Defect, MAX_IN_FLIGHT, Parser, Protocol, Side, Step};

/// PostgreSQL.
pub const PROTOCOL: Protocol = Protocol {
    name: "postgres",
    client_only: true,
    detect: detect::detect,
    parser,
};

/// Series of messages without an answer that are followed.
const MAX_GROUPS: usize = 1024;
/// Transfers of an encrypted connection before it is muted.
const MAX_SEALED: u32 = 64;

fn parser(connection: &Connection) -> Box<dyn Parser> {
    Box::new(Postgres::new(connection))
}

/// A parser of one connection.
#[derive(Debug)]
struct Postgres {
    server: Server,
    database: Option<String>,
    dialect: Dialect,
    statements: Statements,
    request: Half,
    response: Half,
    /// What the server has not answered, oldest first; each is answered by
    /// one `ReadyForQuery`.
    groups: VecDeque<Group>,
    /// The number of the next exchange.
    next: u64,
    /// The side that spoke last.
    last: Option<Side>,
    /// Whether a series began before its predecessor was answered.
    pipelined: bool,
    /// What was asked in place of a start-up message: the answer is one byte.
    negotiating: bool,
    /// What follows is encrypted: transfers of it that were seen.
    sealed: Option<u32>,
    /// Whether the rest of the connection is of no interest.
    muted: bool,
}

impl Parser for Postgres {
    fn bytes(&mut self, side: Side, bytes: &[u8], steps: &mut Vec<Step>) {
        if self.muted || bytes.is_empty() || self.is_sealed(steps) {
            return;
        }
        let turned = self.last.replace(side) != Some(side);
        let mut input = Reader::new(bytes);
        match side {
            Side::Request => {
                if turned {
                    self.client_speaks(bytes, steps);
                }
                self.requests(&mut input, steps);
            }
            Side::Response => self.responses(&mut input, steps),
        }
        self.settle(side, bytes, steps);
    }

    fn skip(&mut self, side: Side, count: u64, tail: &[u8], steps: &mut Vec<Step>) {
        if self.muted || count == 0 || self.is_sealed(steps) {
            return;
        }
        self.last = Some(side);
        match side {
            Side::Request => self.skip_request(count, tail, steps),
            Side::Response => self.skip_response(count, tail, steps),
        }
    }

    fn divide(&mut self) {
        if let Some(group) = self.groups.back_mut().filter(|group| !group.complete) {
            group.divided = true;
        }
    }

    fn follows(&self, side: Side) -> bool {
        !self.muted && self.sealed.is_none() && !self.half(side).frames.is_lost()
    }

    fn close(&mut self, steps: &mut Vec<Step>) {
        if self.muted {
            return;
        }
        self.muted = true;
        let lost = self.response.frames.is_lost();
        while let Some(group) = self.groups.pop_front() {
            for pending in group.pending {
                if pending.failure.is_none() && lost {
                    abandon(pending, Defect::Gap, steps);
                } else if !pending.is_executed() {
                    self.end_unexecuted(pending, steps);
                } else {
                    self.end(pending, Some(Failure::Closed), steps);
                }
            }
        }
    }
}

impl Postgres {
    fn new(connection: &Connection) -> Self {
        Self {
            server: Server::new(connection),
            database: None,
            dialect: Dialect::default(),
            statements: Statements::default(),
            request: Half::default(),
            response: Half::default(),
            groups: VecDeque::new(),
            next: 0,
            last: None,
            pipelined: false,
            negotiating: false,
            sealed: None,
            muted: false,
        }
    }

    fn half(&self, side: Side) -> &Half {
        match side {
            Side::Request => &self.request,
            Side::Response => &self.response,
        }
    }

    /// Whether the connection is encrypted. It may yet be seen from within, as
    /// another connection would be; if it is not, it is muted.
    fn is_sealed(&mut self, steps: &mut Vec<Step>) -> bool {
        let Some(seen) = &mut self.sealed else {
            return false;
        };
        *seen += 1;
        if *seen >= MAX_SEALED {
            self.mute(Defect::Encrypted, steps);
        }
        true
    }

    /// Counts the bytes that were given, and looks at their end where nobody
    /// knows what they are.
    fn settle(&mut self, side: Side, bytes: &[u8], steps: &mut Vec<Step>) {
        let half = match side {
            Side::Request => &mut self.request,
            Side::Response => &mut self.response,
        };
        half.offset = half.offset.saturating_add(bytes.len() as u64);
        if half.frames.is_lost() {
            half.note(bytes);
            if side == Side::Response {
                self.ready_by_tail(steps);
            }
        }
    }

    // === What the client sends ===

    /// The client speaks, for the first time or after the server did.
    fn client_speaks(&mut self, bytes: &[u8], steps: &mut Vec<Step>) {
        if self.last.is_some() && self.request.offset == 0 && self.groups.is_empty() {
            self.request.frames.startup = bytes.first() == Some(&0);
        }
        let lost = self.request.frames.is_lost() || self.response.frames.is_lost();
        let begins = matches!(bytes.first(), Some(b'Q' | b'P' | b'B' | b'E'));
        if !lost || !begins {
            return;
        }
        // Whoever does not pipeline sends this when all is answered.
        while let Some(group) = self.groups.pop_front() {
            for pending in group.pending {
                abandon(pending, Defect::Gap, steps);
            }
        }
        self.request.resume();
        self.response.resume();
    }

    fn requests(&mut self, input: &mut Reader<'_>, steps: &mut Vec<Step>) {
        let mut frames = std::mem::take(&mut self.request.frames);
        loop {
            let start = self.request.offset + input.position() as u64;
            match frames.next(input, requests) {
                None => break,
                Some(Found::Begun(kind)) => {
                    self.request.begun = start;
                    self.request_begins(kind, steps);
                }
                Some(Found::Message {
                    kind: STARTUP,
                    kept,
                }) => {
                    let again = self.startup(kept, steps);
                    frames.startup = again;
                }
                Some(Found::Message { kind, kept }) => self.request(kind, kept, steps),
                Some(Found::Damaged) => self.lose_requests(Defect::Malformed, steps),
            }
            if self.muted {
                return;
            }
        }
        self.request.frames = frames;
    }

    /// Takes a message without a type; whether another may follow.
    fn startup(&mut self, body: &[u8], steps: &mut Vec<Step>) -> bool {
        let mut body = Reader::new(body);
        match number(&mut body) {
            Some(detect::SSL_REQUEST | detect::GSSENC_REQUEST) => {
                self.negotiating = true;
                return true;
            }
            Some(detect::CANCEL_REQUEST) => {
                self.muted = true;
                return false;
            }
            _ => {}
        }
        let mut user = None;
        let mut database = None;
        while let Some(key) = string(&mut body).filter(|key| !key.is_empty()) {
            let Some(value) = string(&mut body) else {
                break;
            };
            let text = String::from_utf8_lossy(value);
            match key {
                b"user" => user = super::database::clean(&text),
                b"database" => database = super::database::clean(&text),
                // Its streams are no operations of an application.
                b"replication" if !matches!(&*text, "off" | "false" | "no" | "0") => {
                    self.mute(Defect::Upgraded, steps);
                    return false;
                }
                _ => {}
            }
        }
        // By default a user's database has its name.
        self.database = database.or(user);
        self.groups.push_back(Group {
            kind: GroupKind::Startup,
            complete: true,
            ..Group::default()
        });
        false
    }

    /// The first byte of a message.
    fn request_begins(&mut self, kind: u8, steps: &mut Vec<Step>) {
        match kind {
            b'Q' | b'F' => {
                self.group(GroupKind::Simple, steps);
                self.begin(None, steps);
            }
            b'P' | b'B' | b'E' => {
                self.group(GroupKind::Extended, steps);
                let begins = self.newest().is_none_or(|last| {
                    // What was prepared before, in a round trip of its own,
                    // is not this execution.
                    !last.is_executed() && last.prepared
                });
                if begins {
                    self.drop_prepared(steps);
                    self.begin(None, steps);
                }
            }
            b'S' | b'D' | b'C' => self.group(GroupKind::Extended, steps),
            _ => {}
        }
    }

    /// All of a message.
    fn request(&mut self, kind: u8, body: &[u8], steps: &mut Vec<Step>) {
        let mut body = Reader::new(body);
        match kind {
            b'Q' => {
                let text = body.take_while(|byte| byte != 0);
                let statement = Arc::new(sql::describe(text, self.dialect));
                if let Some(group) = self.groups.back_mut() {
                    group.complete = true;
                    if let Some(pending) = group.pending.back_mut() {
                        pending.statement = Some(statement);
                        pending.executions = 1;
                    }
                }
            }
            b'F' => {
                if let Some(group) = self.groups.back_mut() {
                    group.complete = true;
                    if let Some(pending) = group.pending.back_mut() {
                        pending.executions = 1;
                    }
                }
            }
            b'P' => {
                let name = string(&mut body).unwrap_or_default().to_vec();
                let text = body.take_while(|byte| byte != 0);
                let statement = Arc::new(sql::describe_parameterized(text, self.dialect));
                self.continues(Some(&statement), steps);
                self.statements.prepare(&name, &statement);
                if let Some(pending) = self.newest() {
                    pending.statement = Some(statement);
                    pending.parsed = Some(name);
                }
            }
            b'B' => {
                let portal = string(&mut body);
                let prepared = string(&mut body).and_then(|name| self.statements.get(name));
                let (statement, columns) = match prepared {
                    Some(prepared) => (Some(prepared.statement), prepared.columns),
                    None => (None, Columns::Unknown),
                };
                self.continues(statement.as_ref(), steps);
                if let Some(portal) = portal {
                    self.statements.bind(portal, statement.clone());
                }
                if let Some(pending) = self.newest() {
                    pending.statement = statement;
                    pending.columns = columns;
                }
            }
            b'E' => {
                let statement = string(&mut body).and_then(|name| self.statements.portal(name));
                let bound = self.newest().is_some_and(|pending| !pending.bound_executed);
                if !bound {
                    // The portal goes on: a round trip of its own.
                    self.continues(None, steps);
                }
                if let Some(pending) = self.newest() {
                    pending.executions += 1;
                    pending.bound_executed = true;
                    if pending.statement.is_none() {
                        pending.statement = statement;
                    }
                }
            }
            b'D' if body.byte() == Some(b'S') => {
                if let Some(pending) = self.newest() {
                    pending.described = true;
                }
            }
            b'C' => match (body.byte(), string(&mut body)) {
                (Some(b'S'), Some(name)) => self.statements.forget(name),
                (Some(b'P'), Some(name)) => self.statements.unbind(name),
                _ => {}
            },
            b'S' => {
                if let Some(group) = self.groups.back_mut() {
                    group.complete = true;
                }
            }
            _ => {}
        }
    }

    /// A `Parse` or `Bind`, or an `Execute` without one: does it continue the
    /// newest exchange, or begin another?
    fn continues(&mut self, statement: Option<&Arc<Statement>>, steps: &mut Vec<Step>) {
        let divided = self.groups.back().is_some_and(|group| group.divided);
        let Some(pending) = self.newest() else {
            return;
        };
        if !pending.is_executed() {
            return;
        }
        let same = match (&pending.statement, statement) {
            (Some(before), Some(now)) => Arc::ptr_eq(before, now) || before == now,
            _ => false,
        };
        if same && !divided {
            pending.bound_executed = false;
            return;
        }
        let offset = self.request.begun;
        self.begin(Some(offset), steps);
        self.end_answered(steps);
    }

    fn newest(&mut self) -> Option<&mut Pending> {
        self.groups.back_mut()?.pending.back_mut()
    }

    /// Makes sure that the newest group is open and of this kind. A query ends
    /// what was sent before it without a `Sync`.
    fn group(&mut self, kind: GroupKind, steps: &mut Vec<Step>) {
        if let Some(open) = self.groups.back_mut().filter(|group| !group.complete) {
            if kind == GroupKind::Simple {
                open.kind = kind;
                self.drop_prepared(steps);
            }
            return;
        }
        self.pipelined |= self
            .groups
            .iter()
            .any(|group| group.kind != GroupKind::Startup);
        self.groups.push_back(Group {
            kind,
            ..Group::default()
        });
    }

    /// An exchange begins, at the message under way unless the offset says
    /// otherwise.
    fn begin(&mut self, offset: Option<u64>, steps: &mut Vec<Step>) {
        if self.groups.len() > MAX_GROUPS {
            return self.mute(Defect::TooManyInFlight, steps);
        }
        let in_flight: usize = self.groups.iter().map(|group| group.pending.len()).sum();
        let Some(group) = self.groups.back_mut() else {
            return;
        };
        group.divided = false;
        if in_flight >= MAX_IN_FLIGHT {
            // Those beyond are one, which yields nothing.
            if group.pending.back().is_none_or(|last| !last.abandoned) {
                let mut pending = Pending::new(self.next);
                pending.abandoned = true;
                group.pending.push_back(pending);
                steps.push(Step::Abandon {
                    exchange: self.next,
                    reason: Defect::TooManyInFlight,
                });
                self.next += 1;
            }
            return;
        }
        group.pending.push_back(Pending::new(self.next));
        steps.push(Step::Begin {
            exchange: self.next,
            offset: offset.unwrap_or(self.request.begun),
        });
        self.next += 1;
    }

    /// Leaves out the newest exchange if it only prepared a statement.
    fn drop_prepared(&mut self, steps: &mut Vec<Step>) {
        if let Some(group) = self.groups.back_mut()
            && group.pending.back().is_some_and(|last| !last.is_executed())
            && let Some(pending) = group.pending.pop_back()
        {
            abandon(pending, Defect::NoOperation, steps);
        }
    }

    fn skip_request(&mut self, count: u64, tail: &[u8], steps: &mut Vec<Step>) {
        let mut frames = std::mem::take(&mut self.request.frames);
        let (found, rest) = frames.skip(count);
        match found {
            Some(Found::Message { kind: STARTUP, .. }) => self.mute(Defect::Gap, steps),
            Some(Found::Message { kind, kept }) => self.request(kind, kept, steps),
            _ => {}
        }
        self.request.frames = frames;
        self.request.offset = self.request.offset.saturating_add(count);
        if rest == 0 || self.muted {
            return;
        }
        self.lose_requests(Defect::Gap, steps);
        // A series ends with its Sync: what follows is another.
        if tail.ends_with(b"S\0\0\0\x04") && !self.muted {
            self.request.resume();
        }
    }

    /// Messages of the client are missing. Nobody knows how many operations
    /// they were, but the server says how they ended.
    fn lose_requests(&mut self, defect: Defect, steps: &mut Vec<Step>) {
        self.request.frames.lose();
        if self.pipelined {
            return self.mute(defect, steps);
        }
        match self.groups.back_mut() {
            Some(group) => {
                group.complete = true;
                group.uncertain = true;
            }
            None => steps.push(Step::Abandon {
                exchange: self.take_number(),
                reason: defect,
            }),
        }
    }

    fn take_number(&mut self) -> u64 {
        let number = self.next;
        self.next += 1;
        number
    }

    // === What the server sends ===

    fn responses(&mut self, input: &mut Reader<'_>, steps: &mut Vec<Step>) {
        if self.negotiating && !self.response.frames.is_lost() {
            self.negotiating = false;
            match input.byte() {
                // It has none: the client goes on as it is, or gives up.
                Some(b'N') => {}
                // What follows is encrypted.
                Some(b'S' | b'G') => {
                    self.sealed = Some(0);
                    return;
                }
                // An error message of an old server.
                _ => return self.mute(Defect::Malformed, steps),
            }
        }
        let mut frames = std::mem::take(&mut self.response.frames);
        loop {
            match frames.next(input, responses) {
                None => break,
                Some(Found::Begun(_)) => {}
                Some(Found::Message { kind, kept }) => self.response(kind, kept, steps),
                Some(Found::Damaged) => {
                    self.lose_responses(Defect::Malformed, steps);
                    break;
                }
            }
            if self.muted {
                return;
            }
        }
        self.response.frames = frames;
    }

    fn response(&mut self, kind: u8, body: &[u8], steps: &mut Vec<Step>) {
        match kind {
            b'S' => self.parameter(body),
            b'W' => self.mute(Defect::Upgraded, steps),
            b'Z' => self.ready(steps),
            b'E' => self.error(Failure::State(operation::state(body)), steps),
            _ => {
                if kind == b'T' {
                    self.columns(body);
                }
                let Some(reply) = Reply::of(kind, body) else {
                    return;
                };
                if let Some(group) = self.groups.front_mut()
                    && let Some(pending) = group.current()
                {
                    pending.take(reply);
                }
                self.end_answered(steps);
            }
        }
    }

    /// The columns of a statement, or of the rows that follow.
    fn columns(&mut self, body: &[u8]) {
        let Some(pending) = self.groups.front_mut().and_then(Group::current) else {
            return;
        };
        pending.columns = Columns::of(body, pending.described);
        if let (true, Some(name)) = (pending.described, &pending.parsed) {
            self.statements.describe(name, pending.columns);
        }
    }

    /// A setting of the server that was reported.
    fn parameter(&mut self, body: &[u8]) {
        let mut body = Reader::new(body);
        if string(&mut body) == Some(b"standard_conforming_strings") {
            self.dialect.backslash_escapes = string(&mut body) == Some(b"off");
        }
    }

    /// An operation failed; those of its series that follow are not done.
    fn error(&mut self, failure: Failure, steps: &mut Vec<Step>) {
        let Some(group) = self.groups.front_mut() else {
            // The server ends the connection, and nobody waits for it.
            return;
        };
        group.failed = true;
        let Some(pending) = group.current() else {
            return;
        };
        pending.failure = Some(failure);
        // What was to be prepared is not.
        let parsed = pending.parsed.take().filter(|_| !pending.prepared);
        if let Some(name) = parsed {
            self.statements.forget(&name);
        }
        self.end_answered(steps);
    }

    /// The server is ready: the oldest series is over.
    fn ready(&mut self, steps: &mut Vec<Step>) {
        let Some(mut group) = self.groups.pop_front() else {
            return;
        };
        let mut failed = false;
        while let Some(mut pending) = group.pending.pop_front() {
            let here = pending.failure.is_some();
            if group.uncertain {
                pending.uncertain = true;
            }
            if here || pending.is_answered() || (group.uncertain && pending.completed > 0) {
                self.end(pending, None, steps);
            } else if failed && pending.is_executed() {
                self.end(pending, Some(Failure::Skipped), steps);
            } else if !pending.is_executed() && !group.uncertain {
                self.end_unexecuted(pending, steps);
            } else {
                abandon(pending, Defect::Gap, steps);
            }
            failed |= here;
        }
    }

    /// Ends exchanges of the oldest series that are answered and over: others
    /// follow them. The last one waits for the server to be ready.
    fn end_answered(&mut self, steps: &mut Vec<Step>) {
        loop {
            let Some(group) = self.groups.front_mut() else {
                return;
            };
            let over = group.pending.len() > 1
                && group
                    .pending
                    .front()
                    .is_some_and(|first| first.failure.is_none() && first.is_answered());
            if !over {
                return;
            }
            if let Some(pending) = group.pending.pop_front() {
                self.end(pending, None, steps);
            }
        }
    }

    fn skip_response(&mut self, count: u64, tail: &[u8], steps: &mut Vec<Step>) {
        let mut frames = std::mem::take(&mut self.response.frames);
        let (found, rest) = frames.skip(count);
        if let Some(Found::Message { kind, kept }) = found {
            // Its body was not seen to its end.
            match kind {
                b'E' if operation::state(kept).is_none() => {
                    self.error(Failure::State(None), steps);
                }
                _ => self.response(kind, kept, steps),
            }
        }
        self.response.frames = frames;
        self.response.offset = self.response.offset.saturating_add(count);
        if rest == 0 || self.muted {
            return;
        }
        if !self.response.frames.is_lost() {
            self.lose_responses(Defect::Gap, steps);
        }
        self.response.tail.clear();
        self.response.note(tail);
        self.response.blind |= tail.is_empty();
        self.ready_by_tail(steps);
    }

    /// Messages of the server are missing.
    fn lose_responses(&mut self, defect: Defect, steps: &mut Vec<Step>) {
        self.response.frames.lose();
        self.response.tail.clear();
        self.response.blind = defect != Defect::Gap;
        if self.pipelined {
            return self.mute(defect, steps);
        }
        for group in &mut self.groups {
            for pending in &mut group.pending {
                pending.uncertain = true;
            }
        }
    }

    /// An answer whose messages were lost is over where its last bytes say
    /// that the server is ready, and how its last operation went.
    fn ready_by_tail(&mut self, steps: &mut Vec<Step>) {
        let waits = matches!(self.groups.front(), Some(group) if group.complete);
        if self.muted || self.groups.len() != 1 || !waits {
            return;
        }
        let last: Vec<u8> = self.response.tail.iter().copied().collect();
        let [.., before, end, b'Z', 0, 0, 0, 5, b'I' | b'T' | b'E'] = *last.as_slice() else {
            return;
        };
        let ending = ending::ending(&last).filter(|ending| {
            let front = self.groups.front().filter(|_| !self.response.blind);
            front.is_some_and(|group| group.ends_with(*ending))
        });
        let rows = ending.map(|ending| ending.rows);
        let failure = match (before, end) {
            // A command's tag, which ends with a word or a number.
            (before, 0) if before.is_ascii_alphanumeric() => None,
            // The fields of an error end with an empty one.
            (0, 0) => Some(Failure::State(None)),
            // A portal is suspended, or the query was empty.
            (0, 4) => None,
            _ => return,
        };
        self.response.resume();
        if let Some(group) = self.groups.front_mut() {
            group.uncertain = true;
            if let Some(pending) = group.current() {
                pending.counted = rows;
                match failure {
                    None => pending.completed = pending.completed.max(1),
                    Some(failure) if pending.failure.is_none() => pending.failure = Some(failure),
                    Some(_) => {}
                }
            }
        }
        self.ready(steps);
    }

    // === Both ===

    fn end(&self, mut pending: Pending, failure: Option<Failure>, steps: &mut Vec<Step>) {
        if pending.abandoned {
            return;
        }
        if pending.failure.is_none() {
            pending.failure = failure;
        }
        let exchange = pending.number;
        steps.push(Step::End {
            exchange,
            result: pending.exchange(self.database.as_ref(), &self.server),
        });
    }

    /// Nothing was executed: unless that failed it is no operation.
    fn end_unexecuted(&self, pending: Pending, steps: &mut Vec<Step>) {
        match pending.failure.is_some() {
            true => self.end(pending, None, steps),
            false => abandon(pending, Defect::NoOperation, steps),
        }
    }

    /// Gives up the connection and what is in flight on it.
    fn mute(&mut self, reason: Defect, steps: &mut Vec<Step>) {
        while let Some(group) = self.groups.pop_front() {
            for pending in group.pending {
                abandon(pending, reason, steps);
            }
        }
        self.muted = true;
        self.statements = Statements::default();
        steps.push(Step::Mute(reason));
    }
}

fn abandon(pending: Pending, reason: Defect, steps: &mut Vec<Step>) {
    if !pending.abandoned {
        steps.push(Step::Abandon {
            exchange: pending.number,
            reason,
        });
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;
    use crate::attribute::Value;
    use crate::protocol::Verdict;
    use crate::protocol::conversation::{
        Event, apply, brief, check_balance, check_golden, check_splits, check_truncation,
        connection, fixtures, golden, run, split,
    };

    /// A message: its type and its body.
    fn message(kind: u8, body: &[u8]) -> Vec<u8> {
        let length = u32::try_from(body.len() + 4).expect("a short message");
        [&[kind], &length.to_be_bytes()[..], body].concat()
    }

    fn startup(options: &str) -> Vec<u8> {
        let body = [&[0, 3, 0, 0], options.as_bytes(), b"\0"].concat();
        let length = u32::try_from(body.len() + 4).expect("a short message");
        [&length.to_be_bytes()[..], &body].concat()
    }

    fn query(text: &str) -> Vec<u8> {
        message(b'Q', &[text.as_bytes(), b"\0"].concat())
    }

    fn parse(name: &str, text: &str) -> Vec<u8> {
        message(b'P', format!("{name}\0{text}\0\0\0").as_bytes())
    }

    fn bind(name: &str) -> Vec<u8> {
        let mut body = format!("\0{name}\0\0\0").into_bytes();
        body.extend(b"\0\x01\0\0\0\x06secret\0\0");
        message(b'B', &body)
    }

    fn execute() -> Vec<u8> {
        message(b'E', b"\0\0\0\0\0")
    }

    fn sync() -> Vec<u8> {
        message(b'S', b"")
    }

    fn complete(tag: &str) -> Vec<u8> {
        message(b'C', format!("{tag}\0").as_bytes())
    }

    fn ready() -> Vec<u8> {
        message(b'Z', b"I")
    }

    fn rows(count: usize) -> Vec<u8> {
        message(b'D', b"\0\x01\0\0\0\x01x").repeat(count)
    }

    fn error(state: &str) -> Vec<u8> {
        message(b'E', format!("SERROR\0C{state}\0Mno such\0\0").as_bytes())
    }

    fn req(parts: &[Vec<u8>]) -> Event {
        Event::Bytes(Side::Request, parts.concat())
    }

    fn res(parts: &[Vec<u8>]) -> Event {
        Event::Bytes(Side::Response, parts.concat())
    }

    fn skip(side: Side, count: u64, tail: &[u8]) -> Event {
        Event::Skip(side, count, tail.to_vec())
    }

    fn opened() -> Vec<Event> {
        vec![
            req(&[startup("user\0me\0database\0shop\0")]),
            res(&[
                message(b'R', &[0; 4]),
                message(b'S', b"server_version\x0015\0"),
                ready(),
            ]),
        ]
    }

    #[track_caller]
    fn check(events: &[Event], expected: &str) {
        let steps = run(&PROTOCOL, events);
        assert_eq!(brief(&steps), expected);
        if !events.iter().any(|event| matches!(event, Event::Skip(..))) {
            assert_eq!(brief(&run(&PROTOCOL, &split(events))), expected);
        }
        let mut closed = events.to_vec();
        closed.push(Event::Close);
        check_balance(&run(&PROTOCOL, &closed));
    }

    #[test]
    fn tells_simple_queries() {
        let mut events = opened();
        events.push(req(&[query("select 'secret' from a")]));
        events.push(res(&[
            message(b'T', b"\0\0"),
            rows(3),
            complete("SELECT 3"),
            ready(),
        ]));
        events.push(req(&[query("insert into a values (1)")]));
        events.push(res(&[complete("INSERT 0 1"), ready()]));
        events.push(req(&[query("select * from nosuch")]));
        events.push(res(&[error("42P01"), ready()]));
        check(
            &events,
            "begin 0; end 0 select a, rows 3; begin 1; end 1 insert a; \
             begin 2; end 2 select nosuch, failed 42P01",
        );
        let told = golden(&run(&PROTOCOL, &events));
        assert!(told.contains("db.namespace = \"shop\"") && !told.contains("secret"));
    }

    #[test]
    fn tells_executions_by_their_prepared_statements() {
        let mut events = opened();
        let describe = message(b'D', b"Ss1\0");
        events.extend([
            req(&[
                parse("s1", "select * from a where b = $1"),
                describe,
                message(b'H', b""),
            ]),
            res(&[
                message(b'1', b""),
                message(b't', b"\0\0"),
                message(b'T', b"\0\0"),
            ]),
            req(&[bind("s1"), execute(), sync()]),
            res(&[message(b'2', b""), rows(2), complete("SELECT 2"), ready()]),
            req(&[bind("s1"), execute(), sync()]),
            res(&[message(b'2', b""), complete("SELECT 0"), ready()]),
            req(&[message(b'C', b"Ss1\0"), sync()]),
            res(&[message(b'3', b""), ready()]),
            req(&[bind("s1"), execute(), sync()]),
            res(&[error("26000"), ready()]),
        ]);
        check(
            &events,
            "begin 0; abandon 0 NoOperation; begin 1; end 1 select a, rows 2; \
             begin 2; end 2 select a, rows 0; begin 3; end 3 shop, failed 26000",
        );
    }

    #[test]
    fn tells_pipelines_execution_by_execution() {
        let mut events = opened();
        events.extend([
            req(&[
                parse("", "insert into a values ($1)"),
                bind(""),
                execute(),
                bind(""),
                execute(),
                parse("", "select * from b where c = $1"),
                bind(""),
                execute(),
                parse("", "select 1 from c where c = $1"),
                bind(""),
                execute(),
                sync(),
            ]),
            res(&[
                message(b'1', b""),
                message(b'2', b""),
                complete("INSERT 0 1"),
                message(b'2', b""),
                complete("INSERT 0 1"),
                message(b'1', b""),
                error("22P02"),
                ready(),
            ]),
        ]);
        check(
            &events,
            "begin 0; begin 1; begin 2; end 0 BATCH insert a, x2; \
             end 1 select b, failed 22P02; end 2 select c, failed pipeline_aborted",
        );
        // For another request it is another exchange.
        let mut events = opened();
        events.extend([
            req(&[parse("", "insert into a values ($1)"), bind(""), execute()]),
            Event::Divide,
            req(&[bind(""), execute(), sync()]),
            res(&[
                message(b'1', b""),
                message(b'2', b""),
                complete("INSERT 0 1"),
                message(b'2', b""),
                complete("INSERT 0 1"),
                ready(),
            ]),
        ]);
        let expected = "begin 0; begin 1; end 0 insert a; end 1";
        let steps = run(&PROTOCOL, &events);
        assert!(brief(&steps).starts_with(expected), "{}", brief(&steps));
    }

    #[test]
    fn a_query_ends_what_has_no_sync() {
        let mut events = opened();
        events.extend([
            req(&[parse("s1", "select 1 from a"), message(b'H', b"")]),
            res(&[message(b'1', b"")]),
            req(&[query("BEGIN")]),
            res(&[complete("BEGIN"), ready()]),
            req(&[bind("s1"), execute(), message(b'H', b"")]),
            res(&[message(b'2', b""), rows(1), complete("SELECT 1")]),
            req(&[sync(), message(b'H', b"")]),
            res(&[ready()]),
            req(&[query("COMMIT")]),
            res(&[complete("COMMIT"), ready()]),
        ]);
        check(
            &events,
            "begin 0; abandon 0 NoOperation; begin 1; end 1 BEGIN; \
             begin 2; end 2 select a, rows 1; begin 3; end 3 COMMIT",
        );
    }

    #[test]
    fn tells_portals_and_copies() {
        let mut events = opened();
        let portal = message(b'B', b"p\0\0\0\0\0\0\0\0");
        let fetch = message(b'E', b"p\0\0\0\0\x02");
        events.extend([
            req(&[parse("", "select * from a"), portal, fetch.clone(), sync()]),
            res(&[
                message(b'1', b""),
                message(b'2', b""),
                rows(2),
                message(b's', b""),
                ready(),
            ]),
            req(&[fetch, sync()]),
            res(&[rows(1), complete("SELECT 1"), ready()]),
            req(&[query("copy a from stdin")]),
            res(&[message(b'G', b"\0\0\0")]),
            req(&[message(b'd', b"1\n2\n"), message(b'c', b"")]),
            res(&[complete("COPY 2"), ready()]),
            req(&[query("copy a to stdout")]),
            res(&[
                message(b'H', b"\0\0\0"),
                message(b'd', b"1\n"),
                message(b'd', b"2\n"),
                message(b'c', b""),
                complete("COPY 2"),
                ready(),
            ]),
        ]);
        check(
            &events,
            "begin 0; end 0 select a, rows 2; begin 1; end 1 select a, rows 1; \
             begin 2; end 2 copy a; begin 3; end 3 copy a, rows 2",
        );
    }

    #[test]
    fn a_transaction_that_failed_goes_on_failing() {
        let mut events = opened();
        events.extend([
            req(&[query("BEGIN")]),
            res(&[complete("BEGIN"), ready()]),
            req(&[query("select 1/0 from a")]),
            res(&[error("22012"), ready()]),
            req(&[query("select * from b")]),
            res(&[error("25P02"), ready()]),
            req(&[query("ROLLBACK")]),
            res(&[message(b'N', b"SNOTICE\0C00000\0\0"), complete("ROLLBACK")]),
            res(&[message(b'S', b"a\0b\0"), ready()]),
            req(&[query("copy a from stdin")]),
            res(&[message(b'G', b"\0\0\0")]),
            req(&[message(b'd', b"Z\0\0\0\x05I"), message(b'f', b"no\0")]),
            res(&[error("57014"), ready()]),
        ]);
        check(
            &events,
            "begin 0; end 0 BEGIN; begin 1; end 1 select a, failed 22012; \
             begin 2; end 2 select b, failed 25P02; begin 3; end 3 ROLLBACK; \
             begin 4; end 4 copy a, failed 57014",
        );
    }

    #[test]
    fn data_that_looks_like_messages_is_counted_through() {
        let mut events = opened();
        let data = [query("select secret"), sync(), ready(), error("42P01")].concat();
        let mut bound = b"\0\0\0\x01\0\x01\0\x01".to_vec();
        bound.extend(u32::try_from(data.len()).expect("short").to_be_bytes());
        bound.extend(&data);
        let mut row = b"\0\x01".to_vec();
        row.extend(u32::try_from(data.len()).expect("short").to_be_bytes());
        row.extend(&data);
        events.extend([
            req(&[
                parse("", "select * from a where b = $1"),
                message(b'B', &bound),
                execute(),
                sync(),
            ]),
            res(&[
                message(b'1', b""),
                message(b'2', b""),
                message(b'D', &row),
                message(b'D', &row),
                complete("SELECT 2"),
                ready(),
            ]),
        ]);
        check(&events, "begin 0; end 0 select a, rows 2");
    }

    #[test]
    fn a_stream_of_replication_is_no_query() {
        check(
            &[req(&[startup("user\0me\0replication\0database\0")])],
            "mute Upgraded",
        );
        let mut events = opened();
        events.push(req(&[query("START_REPLICATION SLOT a LOGICAL 0/0")]));
        events.push(res(&[message(b'W', b"\0\0\0")]));
        check(&events, "begin 0; abandon 0 Upgraded; mute Upgraded");
    }

    #[test]
    fn follows_the_negotiation_of_encryption() {
        let ssl = vec![0, 0, 0, 8, 4, 210, 22, 47];
        let mut events = vec![req(std::slice::from_ref(&ssl)), res(&[b"N".to_vec()])];
        events.extend(opened());
        events.push(req(&[query("select 1")]));
        events.push(res(&[complete("SELECT 1"), ready()]));
        check(&events, "begin 0; end 0 select, rows 0");
        // As libpq asks: for the one, then for the other, then for none.
        let gss = vec![0, 0, 0, 8, 4, 210, 22, 48];
        let mut events = vec![req(std::slice::from_ref(&gss)), res(&[b"N".to_vec()])];
        events.extend([req(std::slice::from_ref(&ssl)), res(&[b"N".to_vec()])]);
        events.extend(opened());
        events.push(req(&[query("select 1")]));
        events.push(res(&[complete("SELECT 1"), ready()]));
        check(&events, "begin 0; end 0 select, rows 0");
        for (asked, granted) in [(ssl, b"S"), (gss, b"G")] {
            let mut events = vec![req(&[asked]), res(&[granted.to_vec()])];
            events.extend(vec![req(&[vec![22]]); 63]);
            check(&events, "");
            events.push(req(&[vec![22]]));
            check(&events, "mute Encrypted");
        }
        let cancel = [&[0, 0, 0, 16, 4, 210, 22, 46][..], &[1; 8]].concat();
        check(&[req(&[cancel]), Event::Close], "");
    }

    #[test]
    fn a_closed_connection_fails_what_is_under_way() {
        let mut events = opened();
        events.push(req(&[query("select pg_terminate_backend(1)")]));
        events.push(res(&[rows(1)]));
        events.push(Event::Close);
        check(&events, "begin 0; end 0 select, failed connection_closed");
        let last = events.len() - 1;
        events.insert(last, res(&[error("57P01")]));
        check(&events, "begin 0; end 0 select, failed 57P01");
    }

    #[test]
    fn a_row_of_100_mb_is_counted_through() {
        let mut events = opened();
        let length = 100_000_000_u32;
        let mut row = message(b'D', b"\0\x01");
        row[1..5].copy_from_slice(&length.to_be_bytes());
        let left = u64::from(length) - 6;
        let looks_so = [complete("SELECT 7"), ready()].concat();
        events.extend([
            req(&[query("select * from a")]),
            res(&[row]),
            skip(Side::Response, left / 2, &looks_so),
            skip(Side::Response, left - left / 2, &looks_so),
            res(&[rows(1), complete("SELECT 2"), ready()]),
            req(&[query("select 1")]),
            res(&[complete("SELECT 1"), ready()]),
        ]);
        check(
            &events,
            "begin 0; end 0 select a, rows 2; begin 1; end 1 select, rows 0",
        );
    }

    #[test]
    fn a_long_answer_ends_with_its_last_bytes() {
        let select = || req(&[query("select * from a")]);
        let long = || res(&[message(b'T', b"\0\0"), rows(40)]);
        for (tail, expected) in [
            (&b"0\0Z\0\0\0\x05I"[..], "begin 0; end 0 select a; "),
            (
                b"\0\0Z\0\0\0\x05E",
                "begin 0; end 0 select a, failed _OTHER; ",
            ),
            (b"nothing.", "begin 0; abandon 0 Gap; "),
        ] {
            let mut events = opened();
            events.extend([
                select(),
                long(),
                skip(Side::Response, 100_000_000, tail),
                select(),
                res(&[
                    message(b'T', b"\0\0"),
                    rows(1),
                    complete("SELECT 1"),
                    ready(),
                ]),
            ]);
            check(
                &events,
                &format!("{expected}begin 1; end 1 select a, rows 1"),
            );
        }
        // A row of any length is counted through.
        let mut events = opened();
        let mut row = message(b'D', b"");
        row[1..5].copy_from_slice(&100_000_004_u32.to_be_bytes());
        events.extend([
            select(),
            res(&[row]),
            skip(Side::Response, 100_000_000, b""),
            res(&[complete("SELECT 1"), ready()]),
        ]);
        check(&events, "begin 0; end 0 select a, rows 1");
    }

    /// A description of one column of this type, sent as text.
    fn described(kind: u8) -> Vec<u8> {
        let body = [b"\0\x01a\0\0\0\0\0\0\0\0\0\0", &[kind][..], &[0; 8]].concat();
        message(b'T', &body)
    }

    #[test]
    fn a_long_answer_says_at_its_end_how_many_rows_it_had() {
        let ended = [complete("SELECT 4000"), ready()].concat();
        let unseen = |tail: &[u8]| skip(Side::Response, 100_000, tail);
        let select = || req(&[query("select a from b;")]);
        let begun = || res(&[described(25), rows(40)]);
        let counted = "begin 0; end 0 select b, rows 4000";
        let told = |conversation: Vec<Event>, expected: &str| {
            check(&[opened(), conversation].concat(), expected);
        };
        told(vec![select(), begun(), unseen(&ended)], counted);
        // In several transfers, the last of them seen as a whole.
        let (first, second) = ended.split_at(7);
        let seen = res(&[second.to_vec()]);
        told(
            vec![select(), begun(), unseen(b"row"), unseen(first), seen],
            counted,
        );
        // As asyncpg and psycopg ask for it.
        let described_first = vec![
            req(&[parse("s1", "select a from b"), message(b'D', b"Ss1\0")]),
            req(&[message(b'H', b"")]),
            res(&[message(b'1', b""), message(b't', b"\0\0"), described(25)]),
            req(&[bind("s1"), execute(), sync()]),
            res(&[message(b'2', b""), rows(40)]),
            unseen(&ended),
            req(&[bind("s1"), execute(), sync()]),
            res(&[message(b'2', b""), rows(40)]),
            unseen(&ended),
        ];
        told(
            described_first,
            "begin 0; abandon 0 NoOperation; begin 1; end 1 select b, rows 4000; \
             begin 2; end 2 select b, rows 4000",
        );
        let at_once = |columns| {
            vec![
                req(&[parse("", "select a from b"), bind("")]),
                req(&[message(b'D', b"P\0"), execute(), sync()]),
                res(&[message(b'1', b""), message(b'2', b""), columns, rows(40)]),
                unseen(&ended),
            ]
        };
        told(at_once(described(17)), counted);
    }

    #[test]
    fn rows_that_are_not_certain_are_left_out() {
        let ended = [complete("SELECT 4000"), ready()].concat();
        let unseen = |tail: &[u8]| skip(Side::Response, 100_000, tail);
        let uncounted = |conversation: &[Event]| {
            let told = brief(&run(&PROTOCOL, &[&opened(), conversation].concat()));
            assert!(told.contains("end 0"), "{told}");
            assert!(!told.contains("rows"), "{told}");
        };
        let select = |text: &str| req(&[query(text)]);
        let begun = || res(&[described(25), rows(40)]);
        // Several statements, of which this is the last one's number.
        uncounted(&[select("select 1; select 2"), begun(), unseen(&ended)]);
        // Bytes of the answer are missing.
        let missing = skip(Side::Response, 100, b"");
        uncounted(&[select("select 1"), begun(), missing, unseen(&ended)]);
        // More rows were seen than the server says there were.
        let fewer = [complete("SELECT 39"), ready()].concat();
        uncounted(&[select("select 1"), begun(), unseen(&fewer)]);
        // No row came, so that it may be a table that was made.
        let made = res(&[message(b'N', b"\0")]);
        uncounted(&[select("create table a as select 1"), made, unseen(&ended)]);
        // Columns that nobody described, or in whatever form.
        uncounted(&[select("select 1"), res(&[rows(40)]), unseen(&ended)]);
        uncounted(&[
            req(&[parse("s1", "select a from b"), message(b'D', b"Ss1\0")]),
            req(&[bind("s1"), execute(), sync()]),
            res(&[message(b'1', b""), described(17), message(b'2', b"")]),
            res(&[rows(40)]),
            unseen(&ended),
        ]);
    }

    #[test]
    fn a_long_request_ends_with_its_sync() {
        let mut events = opened();
        let mut bound = message(b'B', b"\0\0\0\0\0\x01");
        bound[1..5].copy_from_slice(&100_010_u32.to_be_bytes());
        events.extend([
            req(&[parse("", "insert into a values ($1)"), bound]),
            skip(Side::Request, 100_030, b"\0\0\0S\0\0\0\x04"),
            res(&[
                message(b'1', b""),
                message(b'2', b""),
                complete("INSERT 0 1"),
                ready(),
            ]),
            req(&[query("select 1")]),
            res(&[complete("SELECT 1"), ready()]),
        ]);
        check(
            &events,
            "begin 0; end 0 insert a; begin 1; end 1 select, rows 0",
        );
        // A statement of a megabyte is told by its beginning.
        let mut events = opened();
        let mut long = query(&format!("select '{}", "secret".repeat(1000)));
        long[1..5].copy_from_slice(&1_000_000_u32.to_be_bytes());
        let seen = long.len() as u64 - 1;
        events.extend([
            req(&[long]),
            skip(Side::Request, 1_000_000 - seen, b""),
            res(&[complete("SELECT 1"), ready()]),
        ]);
        check(&events, "begin 0; end 0 select, rows 0");
        assert!(!golden(&run(&PROTOCOL, &events)).contains("secret"));
    }

    #[test]
    fn a_pipelined_connection_is_muted_by_a_loss() {
        let mut events = opened();
        events.extend([
            req(&[query("select 1"), query("select 2")]),
            skip(Side::Response, 100, b""),
            req(&[query("select 3")]),
        ]);
        check(
            &events,
            "begin 0; begin 1; abandon 0 Gap; abandon 1 Gap; mute Gap",
        );
    }

    #[test]
    fn reads_backslashes_as_the_server_does() {
        let mut events = opened();
        events.push(res(&[message(b'S', b"standard_conforming_strings\0off\0")]));
        events.push(req(&[query("select 'it\\'s secret', a")]));
        events.push(res(&[complete("SELECT 1"), ready()]));
        let told = golden(&run(&PROTOCOL, &events));
        assert!(told.contains("\"select ?, a\""), "{told}");
    }

    #[test]
    fn an_older_connection_is_recognised_by_whole_messages() {
        let yes = Verdict::Yes(Side::Request);
        let series = [parse("", "select $1"), bind(""), execute(), sync()].concat();
        for (bytes, expected) in [
            (query("select 1"), yes),
            (query("BEGIN"), yes),
            (query("hello"), Verdict::No),
            (b"Quite".to_vec(), Verdict::No),
            (b"QUERY / HTTP/1.1".to_vec(), Verdict::No),
            (series.clone(), yes),
            ([bind("s1"), execute(), sync()].concat(), yes),
            ([bind("s1"), execute()].concat(), Verdict::No),
            (sync(), Verdict::No),
            (b"POST / HTTP/1.1\r\n".to_vec(), Verdict::No),
            (startup("user\0me\0"), yes),
            (vec![0, 0, 0, 8, 4, 210, 22, 47], yes),
            (vec![0, 0, 0, 9, 4, 210, 22, 47], Verdict::No),
            (vec![0, 0, 0, 0], Verdict::No),
            (vec![0, 0], Verdict::Unsure),
            (b"Q".to_vec(), Verdict::Unsure),
        ] {
            assert_eq!(
                (PROTOCOL.detect)(&bytes),
                expected,
                "{}",
                bytes.escape_ascii()
            );
        }
        check(
            &[
                req(&[bind("s1"), execute(), sync()]),
                res(&[message(b'2', b""), rows(2), complete("SELECT 2"), ready()]),
            ],
            "begin 0; end 0 SELECT, rows 2",
        );
    }

    // === Recorded conversations ===

    #[test]
    fn tells_recorded_conversations() {
        check_golden(&PROTOCOL);
    }

    #[test]
    fn splits_recorded_conversations_anywhere() {
        check_splits(&PROTOCOL);
    }

    #[test]
    fn survives_truncation_anywhere() {
        check_truncation(&PROTOCOL);
    }

    /// Rows of every exchange that tells any.
    fn rows_told(steps: &[Step]) -> BTreeMap<u64, Value> {
        let rows = steps.iter().filter_map(|step| match step {
            Step::End { exchange, result } => {
                let mut attributes = result.attributes.iter();
                let found = attributes.find(|(key, _)| key == "db.response.returned_rows");
                found.map(|(_, value)| (*exchange, value.clone()))
            }
            _ => None,
        });
        rows.collect()
    }

    #[test]
    fn recorded_answers_that_are_cut_tell_the_same_rows_or_none() {
        let mut kept = 0;
        for (path, events) in fixtures(&PROTOCOL) {
            let whole = rows_told(&run(&PROTOCOL, &events));
            for (index, event) in events.iter().enumerate() {
                let Event::Bytes(Side::Response, bytes) = event else {
                    continue;
                };
                for at in (1..bytes.len().saturating_sub(1)).step_by(3).take(2000) {
                    let (seen, missed) = bytes.split_at(at);
                    let tail = &missed[missed.len().saturating_sub(32)..];
                    let count = missed.len() as u64;
                    let mut cut = events.clone();
                    cut[index] = res(&[seen.to_vec()]);
                    cut.insert(index + 1, skip(Side::Response, count, tail));
                    for (exchange, rows) in rows_told(&run(&PROTOCOL, &cut)) {
                        let expected = whole.get(&exchange);
                        assert_eq!(Some(&rows), expected, "{} {index} {at}", path.display());
                        kept += 1;
                    }
                }
            }
        }
        assert!(kept > 1000, "{kept}");
    }

    fn piece() -> impl Strategy<Value = (Side, Vec<u8>)> {
        let request = prop_oneof![
            Just(startup("user\0me\0")),
            Just(query("select 1")),
            Just(parse("s", "select $1")),
            Just(bind("s")),
            Just(execute()),
            Just(sync()),
            Just(message(b'H', b"")),
            Just(message(b'C', b"Ss\0")),
            Just(message(b'd', b"data")),
            Just(b"Q\0".to_vec()),
            proptest::collection::vec(any::<u8>(), 0..20),
        ];
        let response = prop_oneof![
            Just(message(b'1', b"")),
            Just(message(b'2', b"")),
            Just(rows(2)),
            Just(complete("SELECT 2")),
            Just(error("42P01")),
            Just(ready()),
            Just(message(b's', b"")),
            Just(b"N".to_vec()),
            proptest::collection::vec(any::<u8>(), 0..20),
        ];
        prop_oneof![
            request.prop_map(|bytes| (Side::Request, bytes)),
            response.prop_map(|bytes| (Side::Response, bytes)),
        ]
    }

    fn any_event() -> impl Strategy<Value = Event> {
        (piece(), 0..16_u8, 0..3000_u64).prop_map(|((side, bytes), kind, count)| match kind {
            0 => Event::Skip(side, count, bytes.into_iter().take(8).collect()),
            1 => Event::Skip(side, count, b"1\0Z\0\0\0\x05I".to_vec()),
            2 => Event::Divide,
            _ => Event::Bytes(side, bytes),
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 1024, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn survives_any_conversation(events in proptest::collection::vec(any_event(), 0..60)) {
            let mut parser = Postgres::new(&connection());
            let mut steps = Vec::new();
            for event in &events {
                apply(&mut parser, event, &mut steps);
                let pending: usize = parser.groups.iter().map(|group| group.pending.len()).sum();
                prop_assert!(pending <= MAX_IN_FLIGHT + parser.groups.len());
                prop_assert!(parser.groups.len() <= MAX_GROUPS + 1);
            }
            parser.close(&mut steps);
            check_balance(&steps);
        }

        #[test]
        fn detects_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..60), (_, piece) in piece()) {
            (PROTOCOL.detect)(&bytes);
            (PROTOCOL.detect)(&[piece, bytes].concat());
        }
    }
}
