//! Puts exchanges under their parents and gives them ids: progress in, spans
//! out.
//!
//! Whose child a client exchange is was found by the kernel side, at the
//! moment its first byte was sent, as an `Owner`: bytes of a server
//! connection. Here that owner becomes an exchange, checked against what the
//! parser understood of those bytes; any doubt means no parent, counted by
//! reason. It does no I/O and reads neither clock nor randomness.

mod findings;
mod stats;

use std::collections::{HashMap, HashSet, VecDeque};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use abi::record::{Owner, rule};

use self::findings::Findings;
pub use self::stats::AssembleStats;
use crate::attribute::Attributes;
use crate::insight::{Insight, Subject};
use crate::instrumentations::Disabled;
use crate::propagation::TraceContext;
use crate::protocol::{Exchange, Role};
use crate::resource::Resource;
use crate::stats::Count;
use crate::stream::{Evidence, ExchangeId, Progress};

/// Server connections whose requests can still be found as parents after
/// they were closed (background tasks outlive the connection).
const MAX_CLOSED: usize = 4096;
/// Runs of transfers remembered per server connection.
const MAX_RUNS: usize = 1024;
/// Server exchanges remembered per connection.
const MAX_SERVERS: usize = 512;
/// Server exchanges remembered in all: what a busy service answers within
/// seconds, as its background tasks may call that much later.
const MAX_REMEMBERED: usize = 16_384;
/// Span ids that applications sent or received, remembered to notice a
/// second use.
const MAX_RECENT: usize = 4096;
/// Different statements of a request that are counted.
const MAX_STATEMENTS: usize = 64;
/// A statement that one request issued so many times is flagged.
const REPEATED: u32 = 5;
/// How often a request issued its most frequent statement.
const REPEATED_KEY: &str = "otel_ebpf.db.query.repeated";
/// Connections of which something is known before their request begins.
const MAX_EXPECTED: usize = 4096;
/// W3C trace flag: sampled.
const SAMPLED: u8 = 1;
/// Flags of a trace that begins here: sampled, and its id is random (W3C
/// Trace Context level 2).
const ROOT_FLAGS: u8 = 0x03;

/// A source of ids.
pub trait Ids: Send {
    /// A trace id, not all zero.
    fn trace_id(&mut self) -> [u8; 16];
    /// A span id, not all zero.
    fn span_id(&mut self) -> [u8; 8];
}

/// Turns monotonic nanoseconds into nanoseconds since the Unix epoch.
pub trait UnixTime {
    /// The Unix time of a monotonic time.
    fn unix(&self, monotonic: u64) -> u64;
}

/// A finished span, not yet OTLP.
#[derive(Clone, Debug)]
pub struct Span {
    /// Who emitted it.
    pub resource: Arc<Resource>,
    /// Trace id.
    pub trace_id: [u8; 16],
    /// Span id.
    pub span_id: [u8; 8],
    /// Parent span id, if it has a parent.
    pub parent: Option<Parent>,
    /// W3C trace flags of the span's context.
    pub flags: u8,
    /// W3C tracestate; empty where there is none.
    pub trace_state: String,
    /// Server or client.
    pub role: Role,
    /// Nanoseconds since the Unix epoch.
    pub start: u64,
    /// Nanoseconds since the Unix epoch.
    pub end: u64,
    /// Name, attributes, status.
    pub exchange: Exchange,
    /// What happened during the span.
    pub events: Vec<SpanEvent>,
}

/// Something that happened during a span.
#[derive(Clone, Debug, PartialEq)]
pub struct SpanEvent {
    /// Its name.
    pub name: &'static str,
    /// Nanoseconds since the Unix epoch.
    pub at: u64,
    /// Its attributes.
    pub attributes: Attributes,
}

/// A span's parent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parent {
    /// Its span id.
    pub span_id: [u8; 8],
    /// Whether its context came over the wire.
    pub remote: bool,
}

/// The identity of a span that is not finished, or of one that may yet
/// become a parent.
#[derive(Clone, Debug)]
struct Identity {
    trace_id: [u8; 16],
    span_id: [u8; 8],
    parent: Option<Parent>,
    flags: u8,
    trace_state: String,
}

/// Why something has no owner: the counter of the reason.
type Refusal = fn(&AssembleStats) -> &Count;

/// An exchange under way.
struct Open {
    pid: u32,
    role: Role,
    start: u64,
    identity: Identity,
    /// For a client exchange with a parent: the span that called the parent.
    caller: Option<[u8; 8]>,
    /// The server exchange that it is under.
    parent: Option<ExchangeId>,
    /// What the interpreter told of it.
    findings: Findings,
}

/// The last so many of the things seen.
struct Recent<T> {
    order: VecDeque<T>,
    known: HashSet<T>,
}

impl<T> Default for Recent<T> {
    fn default() -> Self {
        Self {
            order: VecDeque::new(),
            known: HashSet::new(),
        }
    }
}

impl<T: Copy + Eq + Hash> Recent<T> {
    /// Remembers a thing; false if it is known already.
    fn insert(&mut self, thing: T) -> bool {
        if !self.known.insert(thing) {
            return false;
        }
        self.order.push_back(thing);
        if self.order.len() > MAX_RECENT
            && let Some(oldest) = self.order.pop_front()
        {
            self.known.remove(&oldest);
        }
        true
    }

    fn contains(&self, thing: &T) -> bool {
        self.known.contains(thing)
    }
}

/// What is remembered of a server connection.
#[derive(Default)]
struct ServerConnection {
    /// Which exchange the transfers belong to, in the order of their bytes.
    runs: VecDeque<Run>,
    /// Its last exchanges.
    servers: VecDeque<Server>,
    closed: bool,
}

/// Bytes of one exchange. Bytes that no run holds were not understood, or
/// not seen: whose they are is unknown.
struct Run {
    from: u64,
    end: u64,
    exchange: Option<u64>,
    /// The transfer at `from` completed the exchange's head.
    completes_head: bool,
}

struct Server {
    number: u64,
    identity: Identity,
    /// Its head is known, and with it its trace.
    known: bool,
    ended: bool,
    /// The next request came before this one was answered, or this one came
    /// before its predecessor was. A server that goes on with a queued
    /// request does so in the context of the one before, so that neither can
    /// be told from the other.
    pipelined: bool,
    /// It yields no span: its process does not want any.
    disabled: bool,
    /// How often it issued each statement, by a hash of its text.
    statements: HashMap<u64, u32>,
}

impl Server {
    /// Counts a statement that was issued on its behalf.
    fn issued(&mut self, statement: &str) {
        let mut hasher = DefaultHasher::new();
        statement.hash(&mut hasher);
        let key = hasher.finish();
        if self.statements.len() < MAX_STATEMENTS || self.statements.contains_key(&key) {
            *self.statements.entry(key).or_default() += 1;
        }
    }

    /// How often it issued the same statement, if that is conspicuous.
    fn repeated(&self) -> Option<u32> {
        let most = self.statements.values().copied().max();
        most.filter(|count| *count >= REPEATED)
    }
}

/// Exchanges under way and the requests that may own them.
pub struct Assembler {
    ids: Box<dyn Ids>,
    resources: HashMap<u32, Arc<Resource>>,
    /// What processes have turned off.
    disabled: HashMap<u32, Disabled>,
    open: HashMap<ExchangeId, Open>,
    connections: HashMap<u64, ServerConnection>,
    closed: VecDeque<u64>,
    /// What is known of the request that a connection is about to send.
    expected: HashMap<u64, Insight>,
    /// Server exchanges, oldest first.
    remembered: VecDeque<ExchangeId>,
    /// Span ids that client spans took over.
    adopted: Recent<[u8; 8]>,
    /// Span ids of callers, and the process that they called.
    received: Recent<(u32, [u8; 8])>,
    /// What was refused, and why.
    pub stats: AssembleStats,
}

impl Assembler {
    /// An assembler that takes ids from `ids`.
    pub fn new(ids: Box<dyn Ids>) -> Self {
        Self {
            ids,
            resources: HashMap::new(),
            disabled: HashMap::new(),
            open: HashMap::new(),
            connections: HashMap::new(),
            closed: VecDeque::new(),
            expected: HashMap::new(),
            remembered: VecDeque::new(),
            adopted: Recent::default(),
            received: Recent::default(),
            stats: AssembleStats::default(),
        }
    }

    /// A process is traced from now on, with this resource.
    pub fn process(&mut self, pid: u32, resource: Arc<Resource>) {
        self.resources.insert(pid, resource);
    }

    /// Spans that a process does not want, from now on.
    pub fn disable(&mut self, pid: u32, disabled: Option<Disabled>) {
        match disabled {
            Some(disabled) => self.disabled.insert(pid, disabled),
            None => self.disabled.remove(&pid),
        };
    }

    /// A process is gone; its connections were closed before.
    pub fn process_gone(&mut self, pid: u32) {
        self.disabled.remove(&pid);
        self.resources.remove(&pid);
    }

    /// Whether an exchange that had begun before then has not ended.
    pub fn is_due(&self, before: u64) -> bool {
        self.open.values().any(|open| open.start < before)
    }

    /// Nothing comes any more: what is under way yields no span.
    pub fn finish(&mut self) {
        self.stats.unfinished.add(self.open.len() as u64);
        self.open.clear();
    }

    /// Takes the next progress; a finished exchange becomes a span.
    pub fn progress(
        &mut self,
        progress: Progress,
        clock: &dyn UnixTime,
        spans: &mut impl FnMut(Span),
    ) {
        match progress {
            Progress::Begin {
                id,
                pid,
                role,
                at,
                evidence,
            } => {
                self.begin(id, pid, role, at, evidence);
            }
            Progress::Head { id, context } => self.head(id, context),
            Progress::Read {
                bytes,
                end,
                exchange,
                completes_head,
            } => {
                self.read(bytes, end, exchange, completes_head);
            }
            Progress::End { id, at, result } => self.end(id, at, *result, clock, spans),
            Progress::Abandon { id } => {
                self.open.remove(&id);
                // No span of it will come: it can be nobody's parent.
                if let Some(connection) = self.connections.get_mut(&id.conn) {
                    connection
                        .servers
                        .retain(|server| server.number != id.number);
                }
            }
            Progress::Insight(insight) => self.insight(insight),
            Progress::Closed { conn } => self.close(conn),
            // Nor is it of the next request, or will one come that we could
            // tell.
            Progress::Unclaimed { conn } | Progress::Mute { conn } => {
                _ = self.expected.remove(&conn)
            }
        }
    }

    fn begin(&mut self, id: ExchangeId, pid: u32, role: Role, at: u64, evidence: Evidence) {
        let mut caller = None;
        let mut parent = None;
        let identity = match role {
            Role::Server => self.root(),
            Role::Client => match self.parent_of_call(id.conn, at, evidence) {
                Ok((of, server)) => {
                    self.stats.parented.one();
                    parent = Some(of);
                    caller = server.parent.map(|caller| caller.span_id);
                    Identity {
                        trace_id: server.trace_id,
                        span_id: self.ids.span_id(),
                        parent: Some(Parent {
                            span_id: server.span_id,
                            remote: false,
                        }),
                        flags: server.flags,
                        trace_state: server.trace_state,
                    }
                }
                Err(reason) => {
                    reason(&self.stats).one();
                    self.root()
                }
            },
        };
        if role == Role::Server {
            let disabled = self.disabled.get(&pid).is_some_and(Disabled::served);
            let servers = &mut self.connection(id.conn).servers;
            let mut pipelined = false;
            if let Some(before) = servers.back_mut().filter(|before| !before.ended) {
                before.pipelined = true;
                pipelined = true;
            }
            if servers.len() >= MAX_SERVERS {
                servers.pop_front();
            }
            servers.push_back(Server {
                number: id.number,
                identity: identity.clone(),
                known: false,
                ended: false,
                pipelined,
                disabled,
                statements: HashMap::new(),
            });
            self.remembered.push_back(id);
            self.forget();
        }
        let mut findings = Findings::default();
        if role == Role::Client
            && let Some(insight) = self.expected.remove(&id.conn)
        {
            findings.add(insight);
        }
        self.open.insert(
            id,
            Open {
                pid,
                role,
                start: at,
                identity,
                caller,
                parent,
                findings,
            },
        );
    }

    /// Adds what the interpreter told to the exchange that it is about.
    fn insight(&mut self, insight: Insight) {
        let id = match insight.subject {
            Subject::Sending(conn) => {
                // Any other may go for it: one that never begins a request
                // must not stand in the way for good.
                if self.expected.len() >= MAX_EXPECTED
                    && !self.expected.contains_key(&conn)
                    && let Some(&other) = self.expected.keys().next()
                {
                    self.expected.remove(&other);
                    self.stats.stray_insights.one();
                }
                self.expected.insert(conn, insight);
                return;
            }
            Subject::Answering(conn) => self.answering(conn),
            Subject::Owned(evidence) => self.owner(evidence).ok().map(|(id, _)| id),
        };
        match id.and_then(|id| self.open.get_mut(&id)) {
            Some(open) => open.findings.add(insight),
            None => self.stats.stray_insights.one(),
        }
    }

    /// The oldest request of a server connection whose answer has not ended.
    fn answering(&self, conn: u64) -> Option<ExchangeId> {
        let servers = &self.connections.get(&conn)?.servers;
        let server = servers.iter().find(|server| !server.ended)?;
        Some(ExchangeId {
            conn,
            number: server.number,
        })
    }

    /// A trace that begins here.
    fn root(&mut self) -> Identity {
        Identity {
            trace_id: self.ids.trace_id(),
            span_id: self.ids.span_id(),
            parent: None,
            flags: ROOT_FLAGS,
            trace_state: String::new(),
        }
    }

    /// The identity of the server exchange that a call is made for: by what
    /// the kernel side found, or by what a server's frame told when the call
    /// was sent.
    fn parent_of_call(
        &self,
        conn: u64,
        at: u64,
        evidence: Evidence,
    ) -> Result<(ExchangeId, Identity), Refusal> {
        let told = self.expected.get(&conn);
        // An earlier stack is of something that was sent before.
        let serving = told
            .filter(|told| told.at >= at)
            .and_then(|told| told.serving);
        match serving {
            Some(owner) if evidence.owner.conn == 0 && evidence.rule != rule::MIXED_QUEUE => self
                .parent(Evidence {
                    owner,
                    rule: rule::FRAME,
                }),
            _ => self.parent(evidence),
        }
    }

    /// The identity of the server exchange that the evidence points to, or why
    /// there is none.
    fn parent(&self, evidence: Evidence) -> Result<(ExchangeId, Identity), Refusal> {
        let (id, server) = self.owner(evidence)?;
        if server.disabled {
            return Err(|stats| &stats.under_disabled);
        }
        Ok((id, server.identity.clone()))
    }

    /// The server exchange that the evidence points to, or why none.
    fn owner(&self, evidence: Evidence) -> Result<(ExchangeId, &Server), Refusal> {
        let inferred = match evidence.rule {
            rule::CONTEXT | rule::THREAD | rule::QUEUED | rule::WORK_ITEM | rule::STARTED => false,
            rule::GREENLET | rule::SPAWNED | rule::FRAME | rule::BOUND => false,
            rule::CONTEXT_AFTER_READ | rule::QUEUED_AFTER_READ => true,
            rule::EVENT_LOOP => return Err(|stats| &stats.event_loop),
            rule::IDLE_THREAD => return Err(|stats| &stats.idle_thread),
            rule::NO_THREAD_STATE | rule::NONE => return Err(|stats| &stats.no_thread_state),
            rule::MIXED_QUEUE => return Err(|stats| &stats.mixed_queue),
            rule::UNOWNED_GREENLET => return Err(|stats| &stats.unowned_greenlet),
            rule::UNSEEN_GREENLET => return Err(|stats| &stats.unseen_greenlet),
            rule::AFTER_ANSWER => return Err(|stats| &stats.after_answer),
            rule::UNOWNED_WORK => return Err(|stats| &stats.unowned_work),
            rule::FOREIGN_START => return Err(|stats| &stats.foreign_start),
            rule::FRAME_UNRESOLVED => return Err(|stats| &stats.frame_unresolved),
            rule::FRAME_AHEAD => return Err(|stats| &stats.frame_ahead),
            _ => return Err(|stats| &stats.unowned_context),
        };
        let Owner { conn, offset } = evidence.owner;
        let connection = self
            .connections
            .get(&conn)
            .ok_or::<Refusal>(|stats| &stats.forgotten)?;
        let run = connection
            .runs
            .iter()
            .rev()
            .find(|run| run.from <= offset && offset < run.end)
            .ok_or::<Refusal>(|stats| &stats.forgotten)?;
        let Some(number) = run.exchange else {
            return Err(|stats| &stats.pipelined);
        };
        if inferred && !(run.from == offset && run.completes_head) {
            return Err(|stats| &stats.inference_failed);
        }
        let server = connection
            .servers
            .iter()
            .find(|server| server.number == number)
            .ok_or::<Refusal>(|stats| &stats.forgotten)?;
        if !server.known {
            return Err(|stats| &stats.head_incomplete);
        }
        if server.pipelined {
            return Err(|stats| &stats.pipelined);
        }
        if server.ended && matches!(evidence.rule, rule::THREAD | rule::GREENLET) {
            return Err(|stats| &stats.ended);
        }
        Ok((ExchangeId { conn, number }, server))
    }

    fn head(&mut self, id: ExchangeId, context: Option<Box<TraceContext>>) {
        let Some(open) = self.open.get_mut(&id) else {
            return;
        };
        match (open.role, context) {
            (Role::Server, context) => {
                if let Some(context) = context {
                    self.received.insert((open.pid, context.span_id));
                    let identity = &mut open.identity;
                    identity.trace_id = context.trace_id;
                    identity.parent = Some(Parent {
                        span_id: context.span_id,
                        remote: true,
                    });
                    identity.flags = context.flags;
                    identity.trace_state = context.state;
                }
                let identity = open.identity.clone();
                if let Some(server) = self.server(id) {
                    server.identity = identity;
                    server.known = true;
                }
            }
            (Role::Client, Some(context)) => self.adopt(id, *context),
            (Role::Client, None) => {}
        }
    }

    /// The application sent a context: its span id becomes the client
    /// span's, unless it is somebody else's.
    ///
    /// An application that forwards its caller's header unchanged sends the
    /// caller's id; one that repeats a request sends the same id again.
    fn adopt(&mut self, id: ExchangeId, context: TraceContext) {
        let Some(open) = self.open.get_mut(&id) else {
            return;
        };
        let forwarded = open.caller == Some(context.span_id)
            || self.received.contains(&(open.pid, context.span_id));
        if forwarded || !self.adopted.insert(context.span_id) {
            self.stats.not_adopted.one();
            return;
        }
        self.stats.adopted.one();
        let identity = &mut open.identity;
        identity.span_id = context.span_id;
        if identity.trace_id != context.trace_id {
            if identity.parent.take().is_some() {
                self.stats.other_trace.one();
            }
            identity.trace_id = context.trace_id;
        }
        identity.flags = context.flags;
        identity.trace_state = context.state;
    }

    fn read(&mut self, bytes: Owner, end: u64, exchange: Option<u64>, completes_head: bool) {
        let runs = &mut self.connection(bytes.conn).runs;
        while let Some(last) = runs.back_mut()
            && last.end > bytes.offset
        {
            last.end = bytes.offset;
            if last.from < last.end {
                break;
            }
            runs.pop_back();
        }
        if let Some(last) = runs.back_mut()
            && last.end == bytes.offset
            && last.exchange == exchange
            && !completes_head
        {
            last.end = end;
            return;
        }
        if runs.len() >= MAX_RUNS {
            runs.pop_front();
        }
        runs.push_back(Run {
            from: bytes.offset,
            end,
            exchange,
            completes_head,
        });
    }

    fn end(
        &mut self,
        id: ExchangeId,
        at: u64,
        mut exchange: Exchange,
        clock: &dyn UnixTime,
        spans: &mut impl FnMut(Span),
    ) {
        let Some(Open {
            pid,
            role,
            start,
            identity,
            caller: _,
            parent: under,
            findings,
        }) = self.open.remove(&id)
        else {
            return;
        };
        self.server_ended(id);
        let unwanted = match role {
            Role::Server => self.server(id).is_some_and(|server| server.disabled),
            Role::Client => self
                .disabled
                .get(&pid)
                .is_some_and(|disabled| disabled.call(&exchange.scope, findings.libraries())),
        };
        if unwanted {
            if role == Role::Client {
                self.expected.remove(&id.conn);
            }
            self.stats.disabled.one();
            return;
        }
        if let Some(statement) = exchange.statement()
            && let Some(server) = under.and_then(|under| self.server(under))
        {
            server.issued(statement);
        }
        if let Some(count) = self.server(id).and_then(|server| server.repeated()) {
            let count = i64::from(count);
            exchange
                .attributes
                .push((REPEATED_KEY.into(), count.into()));
        }
        if role == Role::Client {
            // What was told while it was under way is not of the next one.
            self.expected.remove(&id.conn);
        }
        let Some(resource) = self.resources.get(&pid) else {
            self.stats.unknown_process.one();
            return;
        };
        if identity.flags & SAMPLED == 0 {
            self.stats.not_sampled.one();
            return;
        }
        match role {
            Role::Server => self.stats.server_spans.one(),
            Role::Client => self.stats.client_spans.one(),
        }
        let (events, disagreed) = findings.complete(&mut exchange, role, at, clock);
        if disagreed {
            self.stats.other_statement.one();
        }
        let start_unix = clock.unix(start);
        let Identity {
            trace_id,
            span_id,
            parent,
            flags,
            trace_state,
        } = identity;
        spans(Span {
            resource: Arc::clone(resource),
            trace_id,
            span_id,
            parent,
            flags,
            trace_state,
            role,
            start: start_unix,
            end: start_unix.saturating_add(at.saturating_sub(start)),
            exchange,
            events,
        });
    }

    fn server(&mut self, id: ExchangeId) -> Option<&mut Server> {
        self.connections
            .get_mut(&id.conn)?
            .servers
            .iter_mut()
            .find(|server| server.number == id.number)
    }

    fn server_ended(&mut self, id: ExchangeId) {
        if let Some(server) = self.server(id) {
            server.ended = true;
        }
    }

    /// Forgets the oldest server exchanges beyond [`MAX_REMEMBERED`].
    fn forget(&mut self) {
        while self.remembered.len() > MAX_REMEMBERED
            && let Some(oldest) = self.remembered.pop_front()
        {
            let Some(connection) = self.connections.get_mut(&oldest.conn) else {
                continue;
            };
            let ServerConnection { runs, servers, .. } = connection;
            while servers
                .front()
                .is_some_and(|server| server.number <= oldest.number)
            {
                servers.pop_front();
            }
            while runs
                .front()
                .is_some_and(|run| run.exchange.is_none_or(|number| number <= oldest.number))
            {
                runs.pop_front();
            }
        }
    }

    /// What is remembered of a server connection that is in use.
    fn connection(&mut self, conn: u64) -> &mut ServerConnection {
        let connection = self.connections.entry(conn).or_default();
        if connection.closed {
            // It was taken up anew, and its exchanges are numbered anew.
            *connection = ServerConnection::default();
        }
        connection
    }

    fn close(&mut self, conn: u64) {
        self.expected.remove(&conn);
        let Some(connection) = self.connections.get_mut(&conn) else {
            return;
        };
        connection.closed = true;
        self.closed.push_back(conn);
        if self.closed.len() > MAX_CLOSED
            && let Some(oldest) = self.closed.pop_front()
        {
            self.connections.remove(&oldest);
        }
    }
}

#[cfg(test)]
mod ownership_tests {
    use super::*;

    const SERVER: u64 = 1;
    const CLIENT: u64 = 2;

    struct Counting(u8);

    impl Ids for Counting {
        fn trace_id(&mut self) -> [u8; 16] {
            [self.next(); 16]
        }

        fn span_id(&mut self) -> [u8; 8] {
            [self.next(); 8]
        }
    }

    impl Counting {
        fn next(&mut self) -> u8 {
            self.0 += 1;
            self.0
        }
    }

    /// An assembler, and what happens on one server connection.
    struct Scene(Assembler);

    impl Scene {
        fn new() -> Self {
            Self(Assembler::new(Box::new(Counting(0))))
        }

        fn begin(&mut self, conn: u64, number: u64, role: Role, evidence: Evidence) {
            let id = ExchangeId { conn, number };
            self.0.begin(id, 7, role, 0, evidence);
        }

        /// A request of ten bytes is read, from that offset on.
        fn request(&mut self, number: u64, offset: u64) {
            let nobody = evidence(0, rule::NONE);
            self.begin(SERVER, number, Role::Server, nobody);
            let bytes = Owner {
                conn: SERVER,
                offset,
            };
            let id = ExchangeId {
                conn: SERVER,
                number,
            };
            self.0.head(id, None);
            self.0.read(bytes, offset + 10, Some(number), true);
        }

        fn answered(&mut self, number: u64) {
            self.0.server_ended(ExchangeId {
                conn: SERVER,
                number,
            });
        }

        /// Makes a call; the number of the request that it is put under.
        fn call(&mut self, evidence: Evidence) -> Option<u64> {
            self.begin(CLIENT, 0, Role::Client, evidence);
            let id = ExchangeId {
                conn: CLIENT,
                number: 0,
            };
            let parent = self.0.open.remove(&id)?.identity.parent?;
            let servers = &self.0.connections[&SERVER].servers;
            servers
                .iter()
                .find(|server| server.identity.span_id == parent.span_id)
                .map(|server| server.number)
        }
    }

    fn evidence(offset: u64, rule: u8) -> Evidence {
        Evidence {
            owner: Owner {
                conn: SERVER,
                offset,
            },
            rule,
        }
    }

    #[test]
    fn a_call_is_under_the_request_whose_bytes_own_it() {
        let mut scene = Scene::new();
        scene.request(0, 0);
        scene.answered(0);
        scene.request(1, 10);
        assert_eq!(scene.call(evidence(0, rule::CONTEXT)), Some(0));
        assert_eq!(scene.call(evidence(10, rule::CONTEXT)), Some(1));
        assert_eq!(scene.call(evidence(10, rule::THREAD)), Some(1));
        assert_eq!(scene.call(evidence(10, rule::QUEUED_AFTER_READ)), Some(1));
    }

    #[test]
    fn a_request_whose_record_was_lost_owns_nothing() {
        let mut scene = Scene::new();
        scene.request(0, 0);
        scene.answered(0);
        // What came at 10 was lost.
        assert_eq!(scene.call(evidence(10, rule::CONTEXT)), None);
        scene.request(1, 20);
        assert_eq!(scene.call(evidence(10, rule::CONTEXT)), None);
        assert_eq!(scene.call(evidence(20, rule::CONTEXT)), Some(1));
        assert_eq!(scene.call(evidence(30, rule::CONTEXT)), None);
        assert_eq!(scene.0.stats.forgotten.value(), 3);
    }

    #[test]
    fn a_body_in_pieces_belongs_to_its_request_but_for_lost_ones() {
        let mut scene = Scene::new();
        scene.request(0, 0);
        for offset in [10, 20, 40] {
            let bytes = Owner {
                conn: SERVER,
                offset,
            };
            scene.0.read(bytes, bytes.offset + 10, Some(0), false);
        }
        assert_eq!(scene.call(evidence(20, rule::CONTEXT)), Some(0));
        assert_eq!(scene.call(evidence(30, rule::CONTEXT)), None);
        assert_eq!(scene.call(evidence(40, rule::CONTEXT)), Some(0));
    }

    #[test]
    fn a_link_that_was_inferred_needs_the_end_of_a_head() {
        let mut scene = Scene::new();
        scene.request(0, 0);
        let bytes = Owner {
            conn: SERVER,
            offset: 10,
        };
        scene.0.read(bytes, bytes.offset + 10, Some(0), false);
        assert_eq!(scene.call(evidence(0, rule::CONTEXT_AFTER_READ)), Some(0));
        assert_eq!(scene.call(evidence(10, rule::CONTEXT_AFTER_READ)), None);
        assert_eq!(scene.0.stats.inference_failed.value(), 1);
    }

    #[test]
    fn a_thread_owns_nothing_after_the_answer_but_a_context_does() {
        let mut scene = Scene::new();
        scene.request(0, 0);
        scene.answered(0);
        assert_eq!(scene.call(evidence(0, rule::THREAD)), None);
        assert_eq!(scene.call(evidence(0, rule::CONTEXT)), Some(0));
    }

    #[test]
    fn pipelined_requests_own_nothing() {
        let mut scene = Scene::new();
        scene.request(0, 0);
        assert_eq!(scene.call(evidence(0, rule::CONTEXT)), Some(0));
        // Queued by the server, and begun in the context of the first.
        scene.request(1, 10);
        assert_eq!(scene.call(evidence(0, rule::CONTEXT)), None);
        scene.answered(0);
        assert_eq!(scene.call(evidence(0, rule::CONTEXT)), None);
        assert_eq!(scene.call(evidence(10, rule::CONTEXT_AFTER_READ)), None);
        scene.answered(1);
        scene.request(2, 20);
        assert_eq!(scene.call(evidence(20, rule::CONTEXT)), Some(2));
    }
}

#[cfg(test)]
mod tests {
    use abi::map::Descriptor;
    use abi::record::{Data, TAIL};
    use proptest::prelude::*;
    use zerocopy::FromZeros;

    use super::*;
    use crate::attribute::Value;
    use crate::insight::CodeLocation;
    use crate::protocol::Status;
    use crate::stream::{Opening, Streams};

    /// Numbers for ids, in order.
    #[derive(Default)]
    struct Numbers(u64);

    impl Ids for Numbers {
        fn trace_id(&mut self) -> [u8; 16] {
            self.0 += 1;
            u128::from(self.0).to_be_bytes()
        }

        fn span_id(&mut self) -> [u8; 8] {
            self.0 += 1;
            self.0.to_be_bytes()
        }
    }

    /// A clock that is ahead by a thousand.
    struct Ahead;

    impl UnixTime for Ahead {
        fn unix(&self, monotonic: u64) -> u64 {
            monotonic + 1000
        }
    }

    const SERVER: u64 = 1;
    const CLIENT: u64 = 2;
    const PID: u32 = 7;
    const REMOTE: [u8; 8] = [0xee; 8];
    const TRACE: [u8; 16] = [0xdd; 16];

    fn context(trace_id: [u8; 16], span_id: [u8; 8], flags: u8) -> Option<Box<TraceContext>> {
        Some(Box::new(TraceContext {
            trace_id,
            span_id,
            flags,
            state: "a=1".to_owned(),
        }))
    }

    struct Bench {
        assembler: Assembler,
        spans: Vec<Span>,
        calls: u64,
    }

    impl Bench {
        /// A process with a server connection, which has read nothing yet.
        fn new() -> Self {
            let mut assembler = Assembler::new(Box::<Numbers>::default());
            let attributes = vec![("service.name".into(), "shop".into())];
            assembler.process(PID, Arc::new(Resource { attributes }));
            Self {
                assembler,
                spans: Vec::new(),
                calls: 0,
            }
        }

        fn take(&mut self, progress: Progress) {
            let spans = &mut self.spans;
            self.assembler
                .progress(progress, &Ahead, &mut |span| spans.push(span));
        }

        fn begin(&mut self, conn: u64, number: u64, role: Role, at: u64, evidence: Evidence) {
            self.take(Progress::Begin {
                id: ExchangeId { conn, number },
                pid: PID,
                role,
                at,
                evidence,
            });
        }

        fn head(&mut self, conn: u64, number: u64, context: Option<Box<TraceContext>>) {
            let id = ExchangeId { conn, number };
            self.take(Progress::Head { id, context });
        }

        fn read(&mut self, from: u64, end: u64, exchange: Option<u64>, completes_head: bool) {
            let bytes = Owner {
                conn: SERVER,
                offset: from,
            };
            self.take(Progress::Read {
                bytes,
                end,
                exchange,
                completes_head,
            });
        }

        fn end(&mut self, conn: u64, number: u64, at: u64) {
            let result = Box::new(Exchange {
                scope: "otel-ebpf.http".into(),
                route_key: (conn == SERVER).then_some("http.route"),
                name: "GET".into(),
                attributes: Vec::new(),
                status: Status::Unset,
            });
            let id = ExchangeId { conn, number };
            self.take(Progress::End { id, at, result });
        }

        /// A whole request in the bytes from `from` on, a hundred of them.
        fn request(&mut self, number: u64, from: u64) {
            self.request_with(number, from, None);
        }

        fn request_with(&mut self, number: u64, from: u64, context: Option<Box<TraceContext>>) {
            self.begin(SERVER, number, Role::Server, from, none());
            self.head(SERVER, number, context);
            self.read(from, from + 100, Some(number), true);
        }

        /// A call with this evidence, begun and ended; its span.
        fn call(&mut self, rule: u8, offset: u64) -> Span {
            self.call_with(rule, offset, None)
        }

        fn call_with(&mut self, rule: u8, offset: u64, context: Option<Box<TraceContext>>) -> Span {
            let number = self.calls;
            self.calls += 1;
            self.begin(CLIENT, number, Role::Client, 5, by(rule, offset));
            self.head(CLIENT, number, context);
            self.end(CLIENT, number, 6);
            self.spans.pop().unwrap()
        }

        /// The span of a request that ends now.
        fn served(&mut self, number: u64) -> Span {
            self.end(SERVER, number, 900);
            self.spans.pop().unwrap()
        }
    }

    fn by(rule: u8, offset: u64) -> Evidence {
        let owner = Owner {
            conn: SERVER,
            offset,
        };
        Evidence { owner, rule }
    }

    fn none() -> Evidence {
        let owner = Owner::default();
        let rule = rule::NONE;
        Evidence { owner, rule }
    }

    #[test]
    fn what_began_before_a_moment_is_due_until_it_ends() {
        let mut bench = Bench::new();
        assert!(!bench.assembler.is_due(u64::MAX));
        bench.begin(SERVER, 0, Role::Server, 10, none());
        bench.head(SERVER, 0, None);
        assert!(!bench.assembler.is_due(10));
        assert!(bench.assembler.is_due(11));
        bench.served(0);
        assert!(!bench.assembler.is_due(11));
    }

    #[track_caller]
    fn assert_child(child: &Span, parent: &Span) {
        let expected = Parent {
            span_id: parent.span_id,
            remote: false,
        };
        assert_eq!(child.parent, Some(expected));
        assert_eq!(child.trace_id, parent.trace_id);
    }

    #[track_caller]
    fn assert_root(bench: &Bench, span: &Span, count: impl Fn(&AssembleStats) -> &Count) {
        assert_eq!(span.parent, None);
        assert_eq!(span.flags, ROOT_FLAGS);
        assert_eq!(count(&bench.assembler.stats).value(), 1);
    }

    #[test]
    fn evidence_that_found_an_owner_gives_a_parent() {
        for rule in [
            rule::CONTEXT,
            rule::THREAD,
            rule::CONTEXT_AFTER_READ,
            rule::QUEUED,
            rule::QUEUED_AFTER_READ,
            rule::GREENLET,
            rule::SPAWNED,
        ] {
            let mut bench = Bench::new();
            bench.request(0, 0);
            let call = bench.call(rule, 0);
            let server = bench.served(0);
            assert_child(&call, &server);
            assert_eq!(bench.assembler.stats.parented.value(), 1);
            assert_ne!(call.span_id, server.span_id);
        }
    }

    #[test]
    fn evidence_that_found_none_is_counted_by_its_reason() {
        type Counter = fn(&AssembleStats) -> &Count;
        let reasons: [(u8, Counter); 10] = [
            (rule::UNOWNED_CONTEXT, |stats| &stats.unowned_context),
            (rule::EVENT_LOOP, |stats| &stats.event_loop),
            (rule::IDLE_THREAD, |stats| &stats.idle_thread),
            (rule::NO_THREAD_STATE, |stats| &stats.no_thread_state),
            (rule::NONE, |stats| &stats.no_thread_state),
            (rule::MIXED_QUEUE, |stats| &stats.mixed_queue),
            (rule::UNOWNED_GREENLET, |stats| &stats.unowned_greenlet),
            (rule::UNSEEN_GREENLET, |stats| &stats.unseen_greenlet),
            (17, |stats| &stats.unowned_context),
            (255, |stats| &stats.unowned_context),
        ];
        for (rule, count) in reasons {
            let mut bench = Bench::new();
            bench.request(0, 0);
            let call = bench.call(rule, 0);
            assert_root(&bench, &call, count);
        }
    }

    #[test]
    fn every_byte_of_a_request_leads_to_it_and_to_no_other() {
        let mut bench = Bench::new();
        bench.request(0, 0);
        bench.read(100, 150, Some(0), false);
        bench.end(SERVER, 0, 3);
        let first = bench.spans.pop().unwrap();
        bench.request(1, 150);
        for offset in [0, 99, 100, 149] {
            let call = bench.call(rule::CONTEXT, offset);
            assert_child(&call, &first);
        }
        let calls = [150, 249].map(|offset| bench.call(rule::CONTEXT, offset));
        let second = bench.served(1);
        for call in &calls {
            assert_child(call, &second);
        }
        let call = bench.call(rule::CONTEXT, 250);
        assert_root(&bench, &call, |stats| &stats.forgotten);
    }

    #[test]
    fn bytes_that_were_not_seen_lead_nowhere() {
        let mut bench = Bench::new();
        bench.request(0, 100);
        bench.request(1, 300);
        for (calls, offset) in [0, 99, 200, 299, 400, u64::MAX].into_iter().enumerate() {
            let call = bench.call(rule::CONTEXT, offset);
            assert_eq!(call.parent, None, "{offset}");
            let forgotten = bench.assembler.stats.forgotten.value();
            assert_eq!(forgotten, calls as u64 + 1);
        }
        // The same connection, but another one's bytes.
        let owner = Owner {
            conn: 77,
            offset: 100,
        };
        let rule = rule::CONTEXT;
        bench.begin(CLIENT, 50, Role::Client, 5, Evidence { owner, rule });
        bench.end(CLIENT, 50, 6);
        assert_eq!(bench.spans.pop().unwrap().parent, None);
    }

    #[test]
    fn what_is_said_last_of_bytes_holds() {
        let mut bench = Bench::new();
        bench.request(0, 0);
        bench.read(100, 120, Some(0), false);
        bench.end(SERVER, 0, 1);
        bench.begin(SERVER, 1, Role::Server, 1, none());
        bench.head(SERVER, 1, None);
        bench.read(100, 200, None, true);
        let call = bench.call(rule::CONTEXT, 99);
        assert!(call.parent.is_some());
        let call = bench.call(rule::CONTEXT, 100);
        assert_root(&bench, &call, |stats| &stats.pipelined);
    }

    #[test]
    fn the_thread_of_a_request_is_free_after_its_end_but_its_context_is_not() {
        let mut bench = Bench::new();
        bench.request(0, 0);
        let server = bench.served(0);
        let call = bench.call(rule::THREAD, 0);
        assert_root(&bench, &call, |stats| &stats.ended);
        let background = bench.call(rule::CONTEXT, 0);
        assert_child(&background, &server);
    }

    #[test]
    fn an_inferred_link_holds_only_where_the_head_ended() {
        for rule in [rule::CONTEXT_AFTER_READ, rule::QUEUED_AFTER_READ] {
            let mut bench = Bench::new();
            bench.begin(SERVER, 0, Role::Server, 1, none());
            bench.read(0, 10, Some(0), false);
            bench.head(SERVER, 0, None);
            bench.read(10, 20, Some(0), true);
            bench.read(20, 30, Some(0), false);
            for (offset, parented) in [(0, false), (10, true), (11, false), (20, false)] {
                let call = bench.call(rule, offset);
                assert_eq!(call.parent.is_some(), parented, "{rule} {offset}");
                // What was seen needs no such check.
                assert!(bench.call(rule::CONTEXT, offset).parent.is_some());
            }
            assert_eq!(bench.assembler.stats.inference_failed.value(), 3);
        }
    }

    #[test]
    fn a_request_without_its_head_is_no_parent_yet() {
        let mut bench = Bench::new();
        bench.begin(SERVER, 0, Role::Server, 1, none());
        bench.read(0, 10, Some(0), false);
        let call = bench.call(rule::CONTEXT, 0);
        assert_root(&bench, &call, |stats| &stats.head_incomplete);
    }

    #[test]
    fn an_abandoned_request_is_nobodys_parent() {
        let mut bench = Bench::new();
        bench.request(0, 0);
        let id = ExchangeId {
            conn: SERVER,
            number: 0,
        };
        bench.take(Progress::Abandon { id });
        let call = bench.call(rule::CONTEXT, 0);
        assert_root(&bench, &call, |stats| &stats.forgotten);
        bench.end(SERVER, 0, 9);
        assert!(bench.spans.is_empty());
    }

    #[test]
    fn continues_the_callers_trace_and_passes_it_on() {
        let mut bench = Bench::new();
        bench.request_with(0, 0, context(TRACE, REMOTE, 1));
        let call = bench.call(rule::CONTEXT, 0);
        let server = bench.served(0);
        let remote = Parent {
            span_id: REMOTE,
            remote: true,
        };
        assert_eq!(server.parent, Some(remote));
        for span in [&server, &call] {
            assert_eq!((span.trace_id, span.flags), (TRACE, 1));
            assert_eq!(span.trace_state, "a=1");
        }
        assert_child(&call, &server);
    }

    #[test]
    fn adopts_the_span_id_that_the_application_sent() {
        let mut bench = Bench::new();
        bench.request_with(0, 0, context(TRACE, REMOTE, 1));
        let call = bench.call_with(rule::CONTEXT, 0, context(TRACE, [5; 8], 3));
        let server = bench.served(0);
        assert_child(&call, &server);
        assert_eq!((call.span_id, call.flags), ([5; 8], 3));
        assert_eq!(bench.assembler.stats.adopted.value(), 1);
        // A repeated request is a call of its own.
        let again = bench.call_with(rule::CONTEXT, 0, context(TRACE, [5; 8], 3));
        assert_ne!(again.span_id, [5; 8]);
        assert_child(&again, &server);
        assert_eq!(bench.assembler.stats.not_adopted.value(), 1);
    }

    #[test]
    fn leaves_the_callers_id_to_the_caller() {
        let mut bench = Bench::new();
        bench.request_with(0, 0, context(TRACE, REMOTE, 1));
        // Forwarded unchanged, whether or not it is known for whom.
        let known = bench.call_with(rule::CONTEXT, 0, context(TRACE, REMOTE, 1));
        let unknown = bench.call_with(rule::EVENT_LOOP, 0, context(TRACE, REMOTE, 1));
        assert_ne!(known.span_id, REMOTE);
        assert_ne!(unknown.span_id, REMOTE);
        assert_eq!(bench.assembler.stats.not_adopted.value(), 2);
        assert_child(&known, &bench.served(0));
    }

    #[test]
    fn an_id_that_another_process_received_may_be_adopted() {
        // Both ends of a call are traced, and the server's came first.
        let mut bench = Bench::new();
        bench.take(Progress::Begin {
            id: ExchangeId { conn: 9, number: 0 },
            pid: PID + 1,
            role: Role::Server,
            at: 1,
            evidence: none(),
        });
        bench.head(9, 0, context(TRACE, [5; 8], 1));
        let call = bench.call_with(rule::EVENT_LOOP, 0, context(TRACE, [5; 8], 1));
        assert_eq!((call.span_id, call.trace_id), ([5; 8], TRACE));
    }

    #[test]
    fn a_call_that_joins_another_trace_leaves_its_parent() {
        let mut bench = Bench::new();
        bench.request(0, 0);
        let call = bench.call_with(rule::CONTEXT, 0, context(TRACE, [5; 8], 1));
        assert_eq!((call.trace_id, call.span_id), (TRACE, [5; 8]));
        assert_eq!(call.parent, None);
        assert_eq!(bench.assembler.stats.other_trace.value(), 1);
    }

    #[test]
    fn traces_that_the_caller_did_not_sample_yield_no_spans() {
        let mut bench = Bench::new();
        bench.request_with(0, 0, context(TRACE, REMOTE, 0));
        bench.begin(CLIENT, 0, Role::Client, 5, by(rule::CONTEXT, 0));
        bench.head(CLIENT, 0, None);
        bench.end(CLIENT, 0, 6);
        bench.end(SERVER, 0, 7);
        assert!(bench.spans.is_empty());
        assert_eq!(bench.assembler.stats.not_sampled.value(), 2);
    }

    #[test]
    fn a_statement_that_a_request_repeats_is_told_of_it() {
        for (times, expected) in [(4, None), (5, Some(Value::Int(5)))] {
            let mut bench = Bench::new();
            bench.request(0, 0);
            for number in 0..times + 4 {
                bench.begin(CLIENT, number, Role::Client, 5, by(rule::CONTEXT, 0));
                let text = match number {
                    0..4 => format!("SELECT {number}"),
                    _ => "SELECT * FROM items WHERE id = ?".to_owned(),
                };
                let result = Box::new(Exchange {
                    scope: "otel-ebpf.postgresql".into(),
                    route_key: None,
                    name: "SELECT items".into(),
                    attributes: vec![("db.query.text".into(), text.into())],
                    status: Status::Unset,
                });
                let id = ExchangeId {
                    conn: CLIENT,
                    number,
                };
                bench.take(Progress::End { id, at: 6, result });
            }
            let served = bench.served(0);
            let mut attributes = served.exchange.attributes.iter();
            let found = attributes.find(|(key, _)| key == REPEATED_KEY);
            assert_eq!(found.map(|(_, value)| value.clone()), expected);
        }
    }

    #[test]
    fn exchanges_of_a_process_that_is_gone_yield_no_spans() {
        let mut bench = Bench::new();
        bench.request(0, 0);
        bench.assembler.process_gone(PID);
        bench.end(SERVER, 0, 7);
        assert!(bench.spans.is_empty());
        assert_eq!(bench.assembler.stats.unknown_process.value(), 1);
    }

    #[test]
    fn a_span_lasts_as_long_as_its_exchange() {
        let mut bench = Bench::new();
        bench.request(0, 50);
        bench.end(SERVER, 0, 80);
        let span = bench.spans.pop().unwrap();
        assert_eq!((span.start, span.end), (1050, 1080));
        // A clock of two processors may run backwards.
        bench.request(1, 150);
        bench.end(SERVER, 1, 140);
        let span = bench.spans.pop().unwrap();
        assert_eq!((span.start, span.end), (1150, 1150));
    }

    #[test]
    fn closed_connections_are_remembered_up_to_a_limit() {
        let mut bench = Bench::new();
        bench.request(0, 0);
        let server = bench.served(0);
        bench.take(Progress::Closed { conn: SERVER });
        let call = bench.call(rule::CONTEXT, 0);
        assert_child(&call, &server);
        for conn in 0..2 * MAX_CLOSED as u64 {
            let conn = 100 + conn;
            bench.begin(conn, 0, Role::Server, 1, none());
            bench.end(conn, 0, 2);
            bench.take(Progress::Closed { conn });
        }
        assert_eq!(bench.assembler.connections.len(), MAX_CLOSED);
        assert_eq!(bench.assembler.closed.len(), MAX_CLOSED);
        assert!(bench.assembler.open.is_empty());
        let call = bench.call(rule::CONTEXT, 0);
        assert_root(&bench, &call, |stats| &stats.forgotten);
    }

    #[test]
    fn requests_are_remembered_up_to_a_limit_over_all_connections() {
        let mut bench = Bench::new();
        bench.request(0, 0);
        let server = bench.served(0);
        assert_child(&bench.call(rule::CONTEXT, 0), &server);
        for conn in 0..MAX_REMEMBERED as u64 {
            let conn = 100 + conn;
            bench.begin(conn, 0, Role::Server, 1, none());
            bench.end(conn, 0, 2);
        }
        let call = bench.call(rule::CONTEXT, 0);
        assert_root(&bench, &call, |stats| &stats.forgotten);
        assert_eq!(bench.assembler.remembered.len(), MAX_REMEMBERED);
    }

    #[test]
    fn a_connection_taken_up_anew_remembers_nothing_of_before() {
        let mut bench = Bench::new();
        bench.request(0, 0);
        bench.end(SERVER, 0, 1);
        bench.take(Progress::Closed { conn: SERVER });
        bench.request(0, 500);
        let call = bench.call(rule::CONTEXT, 0);
        assert_root(&bench, &call, |stats| &stats.forgotten);
        let call = bench.call(rule::CONTEXT, 500);
        assert_child(&call, &bench.served(0));
    }

    #[test]
    fn what_is_forgotten_for_want_of_room_is_no_parent() {
        let mut bench = Bench::new();
        let requests = 2 * (MAX_RUNS + MAX_SERVERS) as u64;
        let mut servers = Vec::new();
        for number in 0..requests {
            bench.request(number, number * 100);
            servers.push(bench.served(number));
        }
        let connection = bench.assembler.connections.get(&SERVER).unwrap();
        assert_eq!(connection.runs.len(), MAX_RUNS);
        assert_eq!(connection.servers.len(), MAX_SERVERS);
        let mut kept = 0;
        for (offset, server) in (0..).step_by(100).zip(&servers) {
            let call = bench.call(rule::CONTEXT, offset);
            if call.parent.is_some() {
                assert_child(&call, server);
                kept += 1;
            }
        }
        assert_eq!(kept, MAX_SERVERS);
    }

    #[test]
    fn only_so_many_sent_ids_are_remembered() {
        let mut recent = Recent::default();
        for number in 0..MAX_RECENT + 10 {
            assert!(recent.insert(number));
        }
        assert!(!recent.insert(MAX_RECENT));
        assert!(recent.insert(0));
        assert_eq!(
            (recent.order.len(), recent.known.len()),
            (MAX_RECENT, MAX_RECENT)
        );
    }

    /// Something the kernel might report.
    #[derive(Clone, Debug)]
    enum Report {
        Open(u64, i32, bool),
        Data(Box<Data>, &'static [u8]),
        Close(u64),
        Exit,
    }

    const TEXTS: [&[u8]; 10] = [
        b"GET /a HTTP/1.1\r\n\r\n",
        b"GET /a HTTP/1.1\r\n\r\nGET /b HTTP/1.1\r\n\r\n",
        b"POST /c HTTP/1.1\r\nContent-Length: 30\r\n\r\n12345",
        b"POST /d HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"1\r\na\r\n0\r\n\r\n",
        b"GET /e HT",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\n\r\nuntil",
        b"\0nonsense",
        b"",
    ];

    fn report() -> impl Strategy<Value = Report> {
        // In step most of the time, so that exchanges come about.
        let offset = prop_oneof![
            6 => Just(None),
            2 => (0..200_u64).prop_map(Some),
            1 => any::<u64>().prop_map(Some)
        ];
        let extra = prop_oneof![6 => Just(0), 1 => 0..9000_u32, 1 => Just(u32::MAX - 100)];
        let rules = prop_oneof![0..6_u8, any::<u8>()];
        let owner = (0..6_u64, 0..200_u64);
        let data = (
            1..6_u64,
            0..2_u8,
            offset,
            0..TEXTS.len(),
            extra,
            rules,
            owner,
            0..1000_u64,
        );
        let data = data.prop_map(|(conn, way, offset, text, extra, rule, owner, at)| {
            let bytes = TEXTS[text];
            let mut data = Data::new_zeroed();
            data.pid = PID;
            data.fd = i32::try_from(conn).unwrap();
            data.conn = conn;
            data.direction = way;
            // Filled in where none was chosen.
            data.offset = offset.unwrap_or(u64::MAX);
            data.len = u32::try_from(bytes.len()).unwrap() + extra;
            data.rule = rule;
            data.owner = Owner {
                conn: owner.0,
                offset: owner.1,
            };
            data.at = at;
            data.tail[TAIL - 8..].copy_from_slice(b"\r\n0\r\n\r\n\n");
            Report::Data(Box::new(data), bytes)
        });
        prop_oneof![
            1 => (1..6_u64, 1..6_i32, any::<bool>()).prop_map(|(c, f, o)| Report::Open(c, f, o)),
            12 => data,
            1 => (1..6_u64).prop_map(Report::Close),
            1 => Just(Report::Exit),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(1000))]

        #[test]
        fn whatever_is_reported_ends_once_under_a_parent_that_began_before(
            reports in prop::collection::vec(report(), 0..80)
        ) {
            let mut streams = Streams::default();
            let mut bench = Bench::new();
            let mut out = Vec::new();
            let mut next: HashMap<(u64, u8), u64> = HashMap::new();
            let mut under_way = HashSet::new();
            let mut servers = HashSet::new();
            let closing = (1..6).map(Report::Close);
            for report in reports.into_iter().chain(closing) {
                match report {
                    Report::Open(conn, fd, old) => {
                        let descriptor = Descriptor { pid: PID, fd };
                        let (role, local, peer) = (None, None, None);
                        streams.open(Opening { conn, descriptor, role, local, peer, old }, &mut out);
                    }
                    Report::Data(mut data, bytes) => {
                        let next = next.entry((data.conn, data.direction)).or_default();
                        if data.offset == u64::MAX {
                            data.offset = *next;
                        }
                        *next = data.offset.saturating_add(u64::from(data.len));
                        streams.data(&data, bytes, &mut out);
                    }
                    Report::Close(conn) => streams.close(conn, Some(500), &mut out),
                    Report::Exit => {
                        streams.exit(PID, 500, &mut out);
                    }
                }
                for progress in out.drain(..) {
                    let begun = match &progress {
                        Progress::Begin { id, role, .. } => {
                            prop_assert!(under_way.insert(*id));
                            Some((*id, *role))
                        }
                        Progress::End { id, .. } => {
                            prop_assert!(under_way.remove(id));
                            None
                        }
                        Progress::Abandon { id } => {
                            under_way.remove(id);
                            None
                        }
                        Progress::Read { bytes, end, .. } => {
                            prop_assert!(bytes.offset <= *end);
                            None
                        }
                        _ => None,
                    };
                    bench.take(progress);
                    match begun {
                        Some((id, Role::Server)) => {
                            servers.insert(bench.assembler.open[&id].identity.span_id);
                        }
                        Some((id, Role::Client)) => {
                            if let Some(parent) = bench.assembler.open[&id].identity.parent {
                                prop_assert!(!parent.remote);
                                prop_assert!(servers.contains(&parent.span_id));
                            }
                        }
                        None => {}
                    }
                }
                prop_assert!(streams.len() <= 5);
            }
            prop_assert!(under_way.is_empty());
            prop_assert!(bench.assembler.open.is_empty());
            prop_assert!(bench.assembler.connections.len() <= 5);
            for connection in bench.assembler.connections.values() {
                prop_assert!(connection.runs.len() <= MAX_RUNS);
                prop_assert!(connection.servers.len() <= MAX_SERVERS);
                let runs = connection.runs.iter();
                prop_assert!(runs.is_sorted_by(|a, b| a.end <= b.from));
            }
        }
    }

    fn told(subject: Subject, route: &str) -> Progress {
        Progress::Insight(Insight {
            subject,
            at: 3,
            framework: None,
            route: Some(route.into()),
            code: Some(Arc::new(CodeLocation {
                function: "shop.views.index".to_owned(),
                path: "/srv/views.py".to_owned(),
                line: 3,
            })),
            serving: None,
            libraries: None,
            statement: None,
            exception: None,
        })
    }

    fn code(span: &Span) -> Option<&Value> {
        let mut attributes = span.exchange.attributes.iter();
        attributes
            .find(|(key, _)| key == "code.function.name")
            .map(|(_, value)| value)
    }

    #[test]
    fn an_insight_goes_to_the_request_that_is_answered() {
        let mut bench = Bench::new();
        bench.request(0, 0);
        bench.request(1, 100);
        bench.take(told(Subject::Answering(SERVER), "/a"));
        assert_eq!(bench.served(0).exchange.name, "GET /a");
        bench.take(told(Subject::Answering(SERVER), "/b"));
        assert_eq!(bench.served(1).exchange.name, "GET /b");
        bench.take(told(Subject::Answering(SERVER), "/c"));
        bench.take(told(Subject::Answering(CLIENT), "/d"));
        assert_eq!(bench.assembler.stats.stray_insights.value(), 2);
    }

    #[test]
    fn an_insight_goes_to_the_request_that_its_evidence_leads_to() {
        let mut bench = Bench::new();
        bench.request(0, 0);
        bench.end(SERVER, 0, 90);
        bench.spans.clear();
        bench.request(1, 100);
        let owned = |offset| Subject::Owned(by(rule::CONTEXT, offset));
        bench.take(told(owned(150), "/b"));
        // Of a request that is over, or of none.
        bench.take(told(owned(50), "/a"));
        bench.take(told(owned(900), "/c"));
        bench.take(told(Subject::Owned(by(rule::EVENT_LOOP, 150)), "/d"));
        assert_eq!(bench.served(1).exchange.name, "GET /b");
        assert_eq!(bench.assembler.stats.stray_insights.value(), 3);
    }

    #[test]
    fn an_insight_waits_for_the_request_that_is_sent() {
        let mut bench = Bench::new();
        bench.take(told(Subject::Sending(CLIENT), "/a"));
        let span = bench.call(rule::IDLE_THREAD, 0);
        assert_eq!(code(&span), Some(&"shop.views.index".into()));
        let span = bench.call(rule::IDLE_THREAD, 0);
        assert_eq!(code(&span), None);
        bench.take(told(Subject::Sending(CLIENT), "/a"));
        bench.take(Progress::Closed { conn: CLIENT });
        let span = bench.call(rule::IDLE_THREAD, 0);
        assert_eq!(code(&span), None);
    }

    #[test]
    fn what_was_told_of_a_request_is_not_of_the_next() {
        let mut bench = Bench::new();
        bench.begin(CLIENT, 0, Role::Client, 5, none());
        bench.take(told(Subject::Sending(CLIENT), "/a"));
        bench.end(CLIENT, 0, 6);
        bench.begin(CLIENT, 1, Role::Client, 7, none());
        bench.end(CLIENT, 1, 8);
        assert_eq!(bench.spans.len(), 2);
        assert!(bench.spans.iter().all(|span| code(span).is_none()));
        bench.take(told(Subject::Sending(9), "/a"));
        bench.take(Progress::Mute { conn: 9 });
        assert!(bench.assembler.expected.is_empty());
    }

    /// A server's frame that was on the stack of what is sent at this time.
    fn framed(at: u64, offset: u64) -> Progress {
        let Progress::Insight(insight) = told(Subject::Sending(CLIENT), "/a") else {
            unreachable!("it is one");
        };
        Progress::Insight(Insight {
            at,
            serving: Some(by(rule::FRAME, offset).owner),
            ..insight
        })
    }

    #[test]
    fn a_frame_tells_whose_a_call_is_where_nothing_else_does() {
        let mut bench = Bench::new();
        bench.request(0, 0);
        bench.end(SERVER, 0, 90);
        let first = bench.spans.pop().unwrap();
        bench.request(1, 100);
        let nobody = |rule| Evidence { rule, ..none() };
        for (rule, begins) in [
            (rule::IDLE_THREAD, true),
            (rule::UNOWNED_CONTEXT, true),
            (rule::MIXED_QUEUE, false),
        ] {
            bench.take(framed(5, 99));
            let number = u64::from(rule);
            bench.begin(CLIENT, number, Role::Client, 5, nobody(rule));
            bench.end(CLIENT, number, 6);
            let span = bench.spans.pop().unwrap();
            if begins {
                assert_child(&span, &first);
            } else {
                assert_root(&bench, &span, |stats| &stats.mixed_queue);
            }
        }
        // The kernel side's own evidence comes first.
        bench.take(framed(5, 99));
        let span = bench.call(rule::CONTEXT, 150);
        assert_child(&span, &bench.served(1));
        // The same rule where the kernel side has seen the frame.
        let span = bench.call(rule::BOUND, 99);
        assert_child(&span, &first);
    }

    #[test]
    fn the_frame_of_what_was_sent_before_tells_nothing() {
        let mut bench = Bench::new();
        bench.request(0, 0);
        bench.take(framed(4, 99));
        bench.begin(
            CLIENT,
            0,
            Role::Client,
            5,
            Evidence {
                rule: rule::IDLE_THREAD,
                ..none()
            },
        );
        bench.end(CLIENT, 0, 6);
        let span = bench.spans.pop().unwrap();
        assert_root(&bench, &span, |stats| &stats.idle_thread);
        let span = bench.call(rule::FRAME_AHEAD, 0);
        assert_root(&bench, &span, |stats| &stats.frame_ahead);
        let span = bench.call(rule::FRAME_UNRESOLVED, 0);
        assert_root(&bench, &span, |stats| &stats.frame_unresolved);
    }

    #[test]
    fn what_waits_for_requests_is_bounded() {
        let mut bench = Bench::new();
        for conn in 100..100 + MAX_EXPECTED as u64 + 1 {
            bench.take(told(Subject::Sending(conn), "/a"));
        }
        assert_eq!(bench.assembler.expected.len(), MAX_EXPECTED);
        assert_eq!(bench.assembler.stats.stray_insights.value(), 1);
        // The newest is not the one that had to go.
        let newest = 100 + MAX_EXPECTED as u64;
        assert!(bench.assembler.expected.contains_key(&newest));
    }
}
