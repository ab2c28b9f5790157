//! Redis's protocol, RESP2 and RESP3, as its clients speak it.
//!
//! A command and its reply are an exchange; commands that are sent before the
//! first of their replies comes are one, a pipeline, or a transaction where
//! `MULTI` and `EXEC` are around them. Commands that set a connection up
//! (credentials among them) are none. A connection that subscribes is muted.
//!
//! Arguments and replies are counted through, never kept. Where bytes are
//! missing and no length covers them, the connection is *lost* until the
//! client sends a command after the server spoke. If it ever sent one while
//! others were not answered there is no such boundary, and a loss is final.
//!
//! `command` reads what clients send, `reply` what servers do.

mod command;
mod reply;

use std::borrow::Cow;
use std::collections::VecDeque;

use self::command::{Command, Commands, Meaning};
use self::reply::{Replies, Reply};
use super::database::{CONNECTION_CLOSED, OTHER, Operation, Server};
use super::reader::Reader;
use super::{Connection, Defect, Exchange, MAX_IN_FLIGHT, Parser, Protocol, Side, Step, Verdict};

/// Redis.
pub const PROTOCOL: Protocol = Protocol {
    name: "redis",
    client_only: true,
    detect: command::detect,
    parser,
};

/// Instrumentation scope of every Redis exchange.
const SCOPE: &str = "otel-ebpf.redis";
/// `db.system.name`.
const SYSTEM: &str = "redis";
/// Longest text of a pipeline.
const MAX_TEXT: usize = 4096;
/// Runs of commands of one kind whose replies have not come.
const MAX_WAITING: usize = 4096;

fn parser(connection: &Connection) -> Box<dyn Parser> {
    Box::new(Redis::new(connection))
}

/// A parser of one connection.
#[derive(Debug)]
struct Redis {
    server: Server,
    /// The database's number, where it is known.
    database: Option<u32>,
    commands: Commands,
    replies: Replies,
    /// Bytes of the client before the current ones.
    offset: u64,
    /// Where the command under way began.
    begun: u64,
    /// Commands whose replies have not come, oldest first.
    waiting: VecDeque<Waiting>,
    /// Their exchanges, oldest first.
    in_flight: VecDeque<Batch>,
    /// The next command belongs to another exchange than the one before.
    divided: bool,
    /// The number of the next exchange.
    next: u64,
    /// The side that spoke last.
    last: Option<Side>,
    /// Whether an exchange began before its predecessor was answered.
    multiplexed: bool,
    /// Whether the rest of the connection is of no interest.
    muted: bool,
}

/// Commands in a row that are answered alike.
#[derive(Debug)]
struct Waiting {
    count: u64,
    meaning: Meaning,
    /// They are of the oldest exchange that is not complete.
    exchange: Option<u64>,
}

/// The commands of an exchange.
#[derive(Debug)]
struct Batch {
    number: u64,
    /// The first command but for `MULTI`, and whether all have its name.
    name: String,
    same_name: bool,
    procedure: Option<String>,
    text: String,
    /// The last command's text; more than one is told by the whole.
    same_text: bool,
    /// Commands, and those without `MULTI` and `EXEC`.
    commands: u64,
    inner: u64,
    multi: bool,
    exec: bool,
    answered: u64,
    error: Option<String>,
    /// Its only reply was seen to begin, and not to end.
    cut: bool,
}

impl Parser for Redis {
    fn bytes(&mut self, side: Side, bytes: &[u8], steps: &mut Vec<Step>) {
        if self.muted || bytes.is_empty() {
            return;
        }
        let turned = self.last.replace(side) != Some(side);
        let mut input = Reader::new(bytes);
        match side {
            Side::Request => {
                if turned {
                    self.client_speaks(bytes, steps);
                }
                self.commands(&mut input, steps);
                self.offset = self.offset.saturating_add(bytes.len() as u64);
            }
            Side::Response => {
                self.divided = true;
                self.replies(&mut input, steps);
            }
        }
    }

    fn skip(&mut self, side: Side, count: u64, _tail: &[u8], steps: &mut Vec<Step>) {
        if self.muted || count == 0 {
            return;
        }
        self.last = Some(side);
        let rest = match side {
            Side::Request => {
                let (found, rest) = self.commands.skip(count);
                if let Some(found) = found {
                    self.command(found, steps);
                }
                self.offset = self.offset.saturating_add(count);
                rest
            }
            Side::Response => {
                self.divided = true;
                let (found, rest) = self.replies.skip(count);
                if let Some(found) = found {
                    self.reply(found, steps);
                }
                rest
            }
        };
        if rest > 0 && !self.muted {
            self.lose(side, Defect::Gap, steps);
        }
    }

    fn divide(&mut self) {
        self.divided = true;
    }

    fn follows(&self, side: Side) -> bool {
        let lost = match side {
            Side::Request => self.commands.is_lost(),
            Side::Response => self.replies.is_lost(),
        };
        !self.muted && !lost
    }

    fn close(&mut self, steps: &mut Vec<Step>) {
        if self.muted {
            return;
        }
        self.muted = true;
        while let Some(mut batch) = self.in_flight.pop_front() {
            if batch.cut {
                abandon(&batch, Defect::Gap, steps);
                continue;
            }
            let closed = batch.error.is_none();
            batch.error.get_or_insert_default();
            self.end(batch, closed, steps);
        }
    }
}

impl Redis {
    fn new(connection: &Connection) -> Self {
        Self {
            server: Server::new(connection),
            database: (!connection.old).then_some(0),
            commands: Commands::default(),
            replies: Replies::default(),
            offset: 0,
            begun: 0,
            waiting: VecDeque::new(),
            in_flight: VecDeque::new(),
            divided: false,
            next: 0,
            last: None,
            multiplexed: false,
            muted: false,
        }
    }

    // === Commands ===

    /// The client speaks after the server did: where the connection was lost,
    /// it is taken up again, and what was under way is over.
    fn client_speaks(&mut self, bytes: &[u8], steps: &mut Vec<Step>) {
        let lost = self.commands.is_lost() || self.replies.is_lost();
        if !lost || !matches!(command::detect(bytes), Verdict::Yes(_)) {
            return;
        }
        while let Some(batch) = self.in_flight.pop_front() {
            match batch.cut {
                true => self.end(batch, false, steps),
                false => abandon(&batch, Defect::Gap, steps),
            }
        }
        self.waiting.clear();
        self.commands = Commands::default();
        self.replies = Replies::default();
    }

    fn commands(&mut self, input: &mut Reader<'_>, steps: &mut Vec<Step>) {
        while !input.is_empty() && !self.muted {
            if self.commands.is_between() {
                self.begun = self.offset + input.position() as u64;
            }
            // One command at a time, so that each is known by its beginning.
            match self.commands.next(input) {
                Some(found) => self.command(found, steps),
                None => return,
            }
        }
    }

    fn command(&mut self, found: command::Found, steps: &mut Vec<Step>) {
        let command = match found {
            command::Found::Named(command) => command,
            command::Found::Complete => return,
            command::Found::Damaged => return self.lose(Side::Request, Defect::Malformed, steps),
        };
        let exchange = match command.meaning {
            Meaning::Subscribe => return self.mute(Defect::Subscribed, steps),
            Meaning::Setup => None,
            _ => match self.join(&command, steps) {
                Some(number) => Some(number),
                None => return,
            },
        };
        match self.waiting.back_mut() {
            Some(last) if last.meaning == command.meaning && last.exchange == exchange => {
                last.count += 1;
            }
            _ => self.waiting.push_back(Waiting {
                count: 1,
                meaning: command.meaning,
                exchange,
            }),
        }
        if self.waiting.len() > MAX_WAITING {
            self.mute(Defect::TooManyInFlight, steps);
        }
    }

    /// Adds a command to the exchange under way, or begins one; its number.
    fn join(&mut self, command: &Command, steps: &mut Vec<Step>) -> Option<u64> {
        let joins = !self.divided && self.in_flight.back().is_some();
        if !joins {
            if self.in_flight.len() >= MAX_IN_FLIGHT {
                self.mute(Defect::TooManyInFlight, steps);
                return None;
            }
            self.multiplexed |= !self.in_flight.is_empty();
            self.divided = false;
            steps.push(Step::Begin {
                exchange: self.next,
                offset: self.begun,
            });
            self.in_flight.push_back(Batch::new(self.next));
            self.next += 1;
        }
        let batch = self.in_flight.back_mut()?;
        batch.add(command);
        Some(batch.number)
    }

    // === Replies ===

    fn replies(&mut self, input: &mut Reader<'_>, steps: &mut Vec<Step>) {
        while !self.muted
            && let Some(found) = self.replies.next(input)
        {
            self.reply(found, steps);
        }
    }

    fn reply(&mut self, found: reply::Found, steps: &mut Vec<Step>) {
        let reply = match found {
            reply::Found::Reply(reply) => reply,
            reply::Found::Damaged => return self.lose(Side::Response, Defect::Malformed, steps),
        };
        let Some(waiting) = self.waiting.front_mut() else {
            steps.push(Step::Abandon {
                exchange: self.next,
                reason: Defect::Orphan,
            });
            self.next += 1;
            return self.lose(Side::Response, Defect::Orphan, steps);
        };
        let (meaning, exchange) = (waiting.meaning.clone(), waiting.exchange);
        waiting.count -= 1;
        if waiting.count == 0 {
            self.waiting.pop_front();
        }
        match meaning {
            Meaning::Select(number) if reply.ok => self.database = number,
            // Queued in a transaction: nobody knows whether it will be.
            Meaning::Select(_) if reply.error.is_none() => self.database = None,
            Meaning::Reset if reply.error.is_none() => self.database = Some(0),
            _ => {}
        }
        if exchange.is_none() {
            return;
        }
        let Some(batch) = self.in_flight.front_mut() else {
            return;
        };
        batch.answer(reply, &meaning);
        let next = self.waiting.iter().find_map(|waiting| waiting.exchange);
        if next != exchange
            && let Some(batch) = self.in_flight.pop_front()
        {
            self.end(batch, false, steps);
        }
    }

    // === Both ===

    /// Bytes are missing, or are not what they should be.
    fn lose(&mut self, side: Side, defect: Defect, steps: &mut Vec<Step>) {
        if self.multiplexed {
            return self.mute(defect, steps);
        }
        // A single reply that was seen to begin is no error.
        let single = self.waiting.len() == 1 && self.waiting.iter().all(|w| w.count == 1);
        let cut = side == Side::Response && defect == Defect::Gap && single;
        let within = self.replies.is_within();
        self.commands.lose();
        self.replies.lose();
        self.waiting.clear();
        let mut kept = VecDeque::new();
        for mut batch in self.in_flight.drain(..) {
            if cut && within {
                batch.cut = true;
                kept.push_back(batch);
            } else {
                abandon(&batch, defect, steps);
            }
        }
        self.in_flight = kept;
    }

    fn end(&self, batch: Batch, closed: bool, steps: &mut Vec<Step>) {
        let exchange = batch.number;
        let result = batch.exchange(self.database, closed, &self.server);
        steps.push(Step::End { exchange, result });
    }

    /// Gives up the connection and what is in flight on it.
    fn mute(&mut self, reason: Defect, steps: &mut Vec<Step>) {
        for batch in self.in_flight.drain(..) {
            abandon(&batch, reason, steps);
        }
        self.waiting = VecDeque::new();
        self.muted = true;
        steps.push(Step::Mute(reason));
    }
}

fn abandon(batch: &Batch, reason: Defect, steps: &mut Vec<Step>) {
    steps.push(Step::Abandon {
        exchange: batch.number,
        reason,
    });
}

impl Batch {
    fn new(number: u64) -> Self {
        Self {
            number,
            name: String::new(),
            same_name: true,
            procedure: None,
            text: String::new(),
            same_text: true,
            commands: 0,
            inner: 0,
            multi: false,
            exec: false,
            answered: 0,
            error: None,
            cut: false,
        }
    }

    fn add(&mut self, command: &Command) {
        let first = self.commands == 0;
        self.commands += 1;
        match command.meaning {
            Meaning::Multi if first => {
                self.multi = true;
                return;
            }
            Meaning::Exec if self.multi && !self.exec => {
                self.exec = true;
                return;
            }
            _ => {}
        }
        self.inner += 1;
        let text = command.text();
        if self.inner == 1 {
            self.name.clone_from(&command.name);
            self.procedure.clone_from(&command.procedure);
            self.text = text;
            return;
        }
        self.procedure = None;
        self.same_name &= self.name.eq_ignore_ascii_case(&command.name);
        if self.same_text && self.text == text {
            return;
        }
        if self.same_text {
            // The texts before were all the same: tell each of them.
            self.same_text = false;
            let repeated = self.inner.saturating_sub(2);
            let before = self.text.clone();
            for _ in 0..repeated {
                self.append(&before);
            }
        }
        self.append(&text);
    }

    fn append(&mut self, text: &str) {
        if self.text.len() + 1 + text.len() <= MAX_TEXT {
            self.text.push('\n');
            self.text.push_str(text);
        }
    }

    fn answer(&mut self, reply: Reply, meaning: &Meaning) {
        self.answered += 1;
        let Reply {
            ok: _,
            error,
            inner,
        } = reply;
        let error = error.or(inner.filter(|_| *meaning == Meaning::Exec));
        if self.error.is_none() {
            self.error = error;
        }
    }

    fn exchange(self, database: Option<u32>, closed: bool, server: &Server) -> Box<Exchange> {
        let transaction = self.multi && self.exec;
        let size = if transaction {
            self.inner
        } else {
            self.commands
        };
        let prefix = match (transaction, size > 1) {
            (true, _) => Some("MULTI"),
            (false, true) => Some("PIPELINE"),
            (false, false) => None,
        };
        let same = self.inner > 0 && self.same_name && (transaction || !self.multi);
        let name: Cow<'static, str> = match (prefix, same) {
            (Some(prefix), true) => format!("{prefix} {}", self.name).into(),
            (Some(prefix), false) => prefix.into(),
            (None, true) => self.name.into(),
            // Nothing but `MULTI`.
            (None, false) => "MULTI".into(),
        };
        let (status_code, error): (_, Option<Cow<'static, str>>) = match self.error {
            _ if closed => (None, Some(CONNECTION_CLOSED.into())),
            None => (None, None),
            Some(prefix) if prefix.is_empty() => (None, Some(OTHER.into())),
            Some(prefix) => (Some(prefix.clone()), Some(prefix.into())),
        };
        Operation {
            namespace: database.map(|number| number.to_string()),
            namespace_in_name: false,
            name: Some(name),
            summary: None,
            text: Some(self.text).filter(|text| !text.is_empty()),
            procedure: self.procedure,
            batch: (size > 1).then_some(size),
            status_code,
            error,
            rows: None,
        }
        .exchange(SCOPE, SYSTEM, server)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::protocol::conversation::{
        Event, apply, brief, check_balance, check_golden, check_splits, check_truncation,
        connection, golden, run, split,
    };

    fn req(text: &str) -> Event {
        let mut bytes = Vec::new();
        for line in text.split("; ") {
            let words: Vec<_> = line.split(' ').collect();
            bytes.extend(format!("*{}\r\n", words.len()).into_bytes());
            for word in words {
                bytes.extend(format!("${}\r\n{word}\r\n", word.len()).into_bytes());
            }
        }
        Event::Bytes(Side::Request, bytes)
    }

    fn res(text: &str) -> Event {
        Event::Bytes(Side::Response, text.as_bytes().to_vec())
    }

    fn skip(side: Side, count: u64) -> Event {
        Event::Skip(side, count, Vec::new())
    }

    #[track_caller]
    fn check(events: &[Event], expected: &str) -> String {
        let steps = run(&PROTOCOL, events);
        assert_eq!(brief(&steps), expected);
        if !events.iter().any(|event| matches!(event, Event::Skip(..))) {
            assert_eq!(brief(&run(&PROTOCOL, &split(events))), expected);
        }
        let mut closed = events.to_vec();
        closed.push(Event::Close);
        check_balance(&run(&PROTOCOL, &closed));
        golden(&steps)
    }

    #[test]
    fn tells_commands_without_their_arguments() {
        let told = check(
            &[
                req("SET secret secret"),
                res("+OK\r\n"),
                req("get secret"),
                res("$6\r\nsecret\r\n"),
                req("LPUSH secret 1"),
                res("-WRONGTYPE secret\r\n"),
                req("EVAL secret 0"),
                res("-secret\r\n"),
            ],
            "begin 0; end 0 SET; begin 1; end 1 get; begin 2; end 2 LPUSH, failed WRONGTYPE; \
             begin 3; end 3 EVAL, failed _OTHER",
        );
        assert!(told.contains("db.query.text = \"SET ? ?\"") && !told.contains("secret"));
    }

    #[test]
    fn commands_that_set_a_connection_up_are_none() {
        let told = check(
            &[
                req("HELLO 3 AUTH default secret"),
                res("%1\r\n+proto\r\n:3\r\n"),
                req("AUTH secret; CLIENT SETNAME secret; SELECT 5"),
                res("+OK\r\n-ERR no\r\n+OK\r\n"),
                req("GET a"),
                res("_\r\n"),
            ],
            "begin 0; end 0 SELECT; begin 1; end 1 GET",
        );
        assert!(told.contains("db.namespace = \"5\"") && !told.contains("secret"));
    }

    #[test]
    fn a_pipeline_is_one_exchange() {
        let told = check(
            &[
                req("GET a; GET b; GET c"),
                res("$-1\r\n$-1\r\n:1\r\n"),
                req("GET a; GET b; SET a 1"),
                res("$-1\r\n-ERR no\r\n-WRONGTYPE no\r\n"),
                req("MULTI; INCR a; INCR b; EXEC"),
                res("+OK\r\n+QUEUED\r\n+QUEUED\r\n*2\r\n:1\r\n-WRONGTYPE no\r\n"),
                req("MULTI"),
                res("+OK\r\n"),
                req("EXEC"),
                res("*0\r\n"),
            ],
            "begin 0; end 0 PIPELINE GET, x3; begin 1; end 1 PIPELINE, x3, failed ERR; \
             begin 2; end 2 MULTI INCR, x2, failed WRONGTYPE; begin 3; end 3 MULTI; \
             begin 4; end 4 EXEC",
        );
        assert!(told.contains("\"GET ?\\nGET ?\\nSET ? ?\""), "{told}");
    }

    #[test]
    fn a_transaction_that_is_refused_or_given_up_is_told() {
        check(
            &[
                req("MULTI; NOSUCH; GET a; EXEC"),
                res("+OK\r\n-ERR unknown\r\n+QUEUED\r\n-EXECABORT discarded\r\n"),
                req("MULTI"),
                res("+OK\r\n"),
                req("GET a"),
                res("+QUEUED\r\n"),
                req("DISCARD"),
                res("+OK\r\n"),
            ],
            "begin 0; end 0 MULTI, x2, failed ERR; begin 1; end 1 MULTI; \
             begin 2; end 2 GET; begin 3; end 3 DISCARD",
        );
    }

    #[test]
    fn what_another_request_sends_is_another_exchange() {
        check(
            &[
                req("GET a"),
                Event::Divide,
                req("GET b; SET a 1"),
                res("+a\r\n+b\r\n+OK\r\n"),
            ],
            "begin 0; begin 1; end 0 GET; end 1 PIPELINE, x2",
        );
        // So is what follows when the first replies have come.
        check(
            &[
                req("GET a; GET b"),
                res("+a\r\n"),
                req("GET c"),
                res("+b\r\n+c\r\n"),
            ],
            "begin 0; begin 1; end 0 PIPELINE GET, x2; end 1 GET",
        );
    }

    #[test]
    fn a_subscriber_is_muted_and_pushes_are_no_replies() {
        check(
            &[
                req("GET a"),
                res(">2\r\n+invalidate\r\n*0\r\n+a\r\n"),
                req("SUBSCRIBE a"),
                res("*3\r\n+subscribe\r\n+a\r\n:1\r\n"),
                req("GET a"),
            ],
            "begin 0; end 0 GET; mute Subscribed",
        );
    }

    #[test]
    fn a_blocking_command_lasts_until_its_reply() {
        check(
            &[
                req("BLPOP a 1"),
                res("*-1\r\n"),
                req("BLPOP a 0"),
                res("*2\r\n$1\r\na\r\n$1\r\nb\r\n"),
                req("XREAD BLOCK 0 STREAMS a 0"),
                res("-UNBLOCKED no\r\n"),
            ],
            "begin 0; end 0 BLPOP; begin 1; end 1 BLPOP; \
             begin 2; end 2 XREAD, failed UNBLOCKED",
        );
    }

    #[test]
    fn replies_of_resp3_are_replies_as_others_are() {
        check(
            &[
                req("HGETALL a; SMEMBERS b; ZSCORE c d"),
                res("%1\r\n+f\r\n+v\r\n~1\r\n+m\r\n,1.5\r\n"),
                req("GET a"),
                res("|1\r\n+ttl\r\n:5\r\n=7\r\ntxt:abc\r\n"),
                req("GET a"),
                res("!15\r\nWRONGTYPE a b c\r\n"),
                req("EXISTS a"),
                res(">2\r\n+invalidate\r\n_\r\n#t\r\n"),
            ],
            "begin 0; end 0 PIPELINE, x3; begin 1; end 1 GET; \
             begin 2; end 2 GET, failed WRONGTYPE; begin 3; end 3 EXISTS",
        );
    }

    #[test]
    fn a_closed_connection_fails_what_is_under_way() {
        check(
            &[req("BLPOP a 0"), Event::Close],
            "begin 0; end 0 BLPOP, failed connection_closed",
        );
    }

    #[test]
    fn long_values_are_counted_through() {
        let long = b"*3\r\n$3\r\nSET\r\n$1\r\na\r\n$100000000\r\nxxxx".to_vec();
        check(
            &[
                Event::Bytes(Side::Request, long),
                skip(Side::Request, 99_999_998),
                res("+OK\r\n"),
                req("GET a"),
                res("$100000000\r\nxxxx"),
                skip(Side::Response, 99_999_998),
                req("GET b"),
                res("$-1\r\n"),
            ],
            "begin 0; end 0 SET; begin 1; end 1 GET; begin 2; end 2 GET",
        );
    }

    #[test]
    fn is_taken_up_again_after_a_loss() {
        check(
            &[
                req("LRANGE a 0 -1"),
                res("*5000\r\n$1\r\na\r\n"),
                skip(Side::Response, 10_000),
                req("GET a"),
                res("$-1\r\n"),
                req("GET a; GET b"),
                skip(Side::Response, 10),
                req("GET a"),
                res("$-1\r\n"),
                req("GET a"),
                skip(Side::Request, 100),
                res("$-1\r\n$-1\r\n"),
                req("SET a 1"),
                res("+OK\r\n"),
            ],
            "begin 0; end 0 LRANGE; begin 1; end 1 GET; begin 2; abandon 2 Gap; \
             begin 3; end 3 GET; begin 4; abandon 4 Gap; begin 5; end 5 SET",
        );
    }

    #[test]
    fn an_older_connection_does_not_tell_its_database() {
        let mut connection = connection();
        connection.old = true;
        let mut parser = Redis::new(&connection);
        let mut steps = Vec::new();
        for event in [req("GET a"), res("_\r\n")] {
            apply(&mut parser, &event, &mut steps);
        }
        assert!(!golden(&steps).contains("db.namespace"));
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

    fn any_event() -> impl Strategy<Value = Event> {
        let request = prop_oneof![
            Just(req("GET a")),
            Just(req("SET a b; GET c")),
            Just(req("AUTH a")),
            Just(req("MULTI; GET a; EXEC")),
            Just(req("SELECT 1")),
            Just(Event::Bytes(Side::Request, b"*2\r\n$3".to_vec())),
            proptest::collection::vec(any::<u8>(), 0..20)
                .prop_map(|bytes| Event::Bytes(Side::Request, bytes)),
        ];
        let response = prop_oneof![
            Just(res("+OK\r\n")),
            Just(res("$3\r\nabc\r\n")),
            Just(res("*2\r\n:1\r\n-ERR no\r\n")),
            Just(res("-ERR no\r\n")),
            Just(res(">1\r\n+a\r\n")),
            Just(res("$100\r\n")),
            proptest::collection::vec(any::<u8>(), 0..20)
                .prop_map(|bytes| Event::Bytes(Side::Response, bytes)),
        ];
        prop_oneof![
            6 => request,
            6 => response,
            1 => Just(Event::Divide),
            1 => (any::<bool>(), 0..300_u64).prop_map(|(request, count)| {
                skip(if request { Side::Request } else { Side::Response }, count)
            }),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 1024, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn survives_any_conversation(events in proptest::collection::vec(any_event(), 0..60)) {
            let mut parser = Redis::new(&connection());
            let mut steps = Vec::new();
            for event in &events {
                apply(&mut parser, event, &mut steps);
                prop_assert!(parser.in_flight.len() <= MAX_IN_FLIGHT);
                prop_assert!(parser.waiting.len() <= MAX_WAITING + 1);
            }
            parser.close(&mut steps);
            check_balance(&steps);
        }

        #[test]
        fn detects_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..60)) {
            command::detect(&bytes);
        }
    }
}
