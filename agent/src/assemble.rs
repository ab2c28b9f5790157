//! Puts exchanges under their parents and gives them ids: progress in, spans
//! out.
//!
//! Whose child a client exchange is was found by the kernel side, at the
//! moment its first byte was sent, as an `Owner`: bytes of a server
//! connection. Here that owner becomes an exchange, checked against what the
//! parser understood of those bytes; any doubt means no parent, counted by
//! reason. It does no I/O and reads neither clock nor randomness.

use std::collections::{HashMap, HashSet, VecDeque};
use std::hash::Hash;
use std::sync::Arc;

use abi::record::{Owner, rule};

use crate::propagation::TraceContext;
use crate::protocol::{Exchange, Role};
use crate::resource::Resource;
use crate::stats::{Count, counters};
use crate::stream::{Evidence, ExchangeId, Progress};

/// Server connections whose requests can still be found as parents after
/// they were closed (background tasks outlive the connection).
const MAX_CLOSED: usize = 4096;
/// Runs of transfers remembered per server connection.
const MAX_RUNS: usize = 32;
/// Server exchanges remembered per connection.
const MAX_SERVERS: usize = 16;
/// Span ids that applications sent or received, remembered to notice a
/// second use.
const MAX_RECENT: usize = 4096;
/// W3C trace flag: sampled.
const SAMPLED: u8 = 1;
/// Flags of a trace that begins here: sampled, and its id is random (W3C
/// Trace Context level 2).
const ROOT_FLAGS: u8 = 0x03;

counters! {
    /// Counters of `assemble`.
    pub struct AssembleStats {
        /// Server spans made.
        server_spans => "spans.server",
        /// Client spans made.
        client_spans => "spans.client",
        /// Client spans put under a parent.
        parented => "spans.client.parented",
        /// Spans not made: the caller did not sample the trace.
        not_sampled => "spans.not_sampled",
        /// Exchanges of a process that is not known (any more).
        unknown_process => "spans.dropped.unknown_process",
        /// No parent: the context descends from no request that was seen.
        unowned_context => "spans.no_parent.unowned_context",
        /// No parent: sent by an event loop outside any context.
        event_loop => "spans.no_parent.event_loop",
        /// No parent: the thread was working on no request.
        idle_thread => "spans.no_parent.idle_thread",
        /// No parent: the thread's state could not be read.
        no_thread_state => "spans.no_parent.no_thread_state",
        /// No parent: bytes of several owners in one write.
        mixed_queue => "spans.no_parent.mixed_queue",
        /// No parent: the owner's bytes hold several requests, or its next
        /// request came before it was answered.
        pipelined => "spans.no_parent.pipelined",
        /// No parent: the owner's request is forgotten.
        forgotten => "spans.no_parent.forgotten",
        /// No parent: the owner's request was not read to the end of its
        /// head, so nothing can be done for it yet.
        head_incomplete => "spans.no_parent.head_incomplete",
        /// No parent: the thread's request had ended.
        ended => "spans.no_parent.ended",
        /// No parent: the link was inferred and did not hold.
        inference_failed => "spans.no_parent.inference_failed",
        /// No parent: the application sent a context of another trace.
        other_trace => "spans.no_parent.other_trace",
        /// Span ids the application sent and the client span took over.
        adopted => "spans.client.id_adopted",
        /// Span ids the application sent that were its caller's, or used
        /// before.
        not_adopted => "spans.client.id_not_adopted",
    }
}

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

/// An exchange under way.
struct Open {
    pid: u32,
    role: Role,
    start: u64,
    identity: Identity,
    /// For a client exchange with a parent: the span that called the parent.
    caller: Option<[u8; 8]>,
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
}

/// Exchanges under way and the requests that may own them.
pub struct Assembler {
    ids: Box<dyn Ids>,
    resources: HashMap<u32, Arc<Resource>>,
    open: HashMap<ExchangeId, Open>,
    connections: HashMap<u64, ServerConnection>,
    closed: VecDeque<u64>,
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
            open: HashMap::new(),
            connections: HashMap::new(),
            closed: VecDeque::new(),
            adopted: Recent::default(),
            received: Recent::default(),
            stats: AssembleStats::default(),
        }
    }

    /// A process is traced from now on, with this resource.
    pub fn process(&mut self, pid: u32, resource: Arc<Resource>) {
        self.resources.insert(pid, resource);
    }

    /// A process is gone; its connections were closed before.
    pub fn process_gone(&mut self, pid: u32) {
        self.resources.remove(&pid);
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
            Progress::Closed { conn } => self.close(conn),
            Progress::Mute { .. } => {}
        }
    }

    fn begin(&mut self, id: ExchangeId, pid: u32, role: Role, at: u64, evidence: Evidence) {
        let mut caller = None;
        let identity = match role {
            Role::Server => self.root(),
            Role::Client => match self.parent(evidence) {
                Ok(server) => {
                    self.stats.parented.one();
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
            });
        }
        self.open.insert(
            id,
            Open {
                pid,
                role,
                start: at,
                identity,
                caller,
            },
        );
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

    /// The server exchange that the evidence points to, or why none.
    fn parent(&self, evidence: Evidence) -> Result<Identity, fn(&AssembleStats) -> &Count> {
        let inferred = match evidence.rule {
            rule::CONTEXT | rule::THREAD | rule::QUEUED => false,
            rule::CONTEXT_AFTER_READ | rule::QUEUED_AFTER_READ => true,
            rule::EVENT_LOOP => return Err(|stats| &stats.event_loop),
            rule::IDLE_THREAD => return Err(|stats| &stats.idle_thread),
            rule::NO_THREAD_STATE | rule::NONE => return Err(|stats| &stats.no_thread_state),
            rule::MIXED_QUEUE => return Err(|stats| &stats.mixed_queue),
            _ => return Err(|stats| &stats.unowned_context),
        };
        let Owner { conn, offset } = evidence.owner;
        let connection = self
            .connections
            .get(&conn)
            .ok_or::<fn(&AssembleStats) -> &Count>(|stats| &stats.forgotten)?;
        let run = connection
            .runs
            .iter()
            .rev()
            .find(|run| run.from <= offset && offset < run.end)
            .ok_or::<fn(&AssembleStats) -> &Count>(|stats| &stats.forgotten)?;
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
            .ok_or::<fn(&AssembleStats) -> &Count>(|stats| &stats.forgotten)?;
        if !server.known {
            return Err(|stats| &stats.head_incomplete);
        }
        if server.pipelined {
            return Err(|stats| &stats.pipelined);
        }
        if server.ended && evidence.rule == rule::THREAD {
            return Err(|stats| &stats.ended);
        }
        Ok(server.identity.clone())
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
        exchange: Exchange,
        clock: &dyn UnixTime,
        spans: &mut impl FnMut(Span),
    ) {
        let Some(Open {
            pid,
            role,
            start,
            identity,
            caller: _,
        }) = self.open.remove(&id)
        else {
            return;
        };
        self.server_ended(id);
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
mod tests {
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
