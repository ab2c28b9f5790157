//! Events in, spans out: the middle of the agent, without a kernel before it
//! or an exporter behind it.
//!
//! It does no I/O and reads neither clock nor randomness, so that a recorded
//! run gives the same spans again. `run` feeds it from the ring, and acts on
//! what it leaves to others: processes that change, connections to mute.

use std::sync::Arc;

use abi::map::{Descriptor, tls};
use abi::record::Process;

use crate::assemble::{Assembler, Ids, Span, UnixTime};
use crate::insight::Insight;
use crate::instrumentations::Disabled;
use crate::resource::Resource;
use crate::source::Event;
use crate::statements::Statements;
use crate::stream::{Opening, Progress, Streams};

/// Connections, and the exchanges and spans that they yield.
pub struct Tracer {
    /// Bytes to exchanges.
    pub streams: Streams,
    /// Statements of databases in the processes to exchanges.
    pub statements: Statements,
    /// Exchanges to spans.
    pub assembler: Assembler,
    progress: Vec<Progress>,
}

impl Tracer {
    /// Traces nothing yet; takes span and trace ids from `ids`.
    pub fn new(ids: Box<dyn Ids>) -> Self {
        Self {
            streams: Streams::default(),
            statements: Statements::default(),
            assembler: Assembler::new(ids),
            progress: Vec::new(),
        }
    }

    /// Takes the next event of the ring. What happened to a process is given
    /// back: whether its connections are gone depends on more than the event.
    pub fn event(&mut self, event: Event<'_>) -> Option<Process> {
        match event {
            Event::Data(data, bytes) => self.streams.data(&data, bytes, &mut self.progress),
            Event::Held(data, bytes) => self.streams.hold(&data, bytes),
            Event::Join(join) => self.streams.join(&join, &mut self.progress),
            Event::Open(open) => self.streams.open(Opening::from(&open), &mut self.progress),
            Event::Close(close) => {
                if close.tls == tls::SEALED {
                    self.streams.stats.sealed.one();
                }
                self.streams
                    .close(close.conn, Some(close.at), &mut self.progress);
            }
            Event::Query(query) => self.statements.begin(&query, &mut self.progress),
            Event::QueryEnd(end, name, text) => {
                self.statements.end(&end, name, text, &mut self.progress);
            }
            Event::Process(process) => return Some(process),
            // Only the process's memory explains it: `run` has it resolved.
            Event::Stack(_) => {}
        }
        None
    }

    /// The interpreter told something of an exchange.
    pub fn insight(&mut self, insight: Insight) {
        self.progress.push(Progress::Insight(insight));
    }

    /// A process is traced from now on, with this resource.
    pub fn process(&mut self, pid: u32, resource: Arc<Resource>) {
        self.assembler.process(pid, resource);
    }

    /// Spans that a process does not want, from now on.
    pub fn disable(&mut self, pid: u32, disabled: Option<Disabled>) {
        self.assembler.disable(pid, disabled);
    }

    /// A connection that is older than the attach.
    pub fn open(&mut self, opening: Opening) {
        self.streams.open(opening, &mut self.progress);
    }

    /// Every event before `now`, in monotonic nanoseconds, was taken.
    pub fn quiet(&mut self, now: u64) {
        self.statements.quiet(now, &mut self.progress);
    }

    /// No event comes any more.
    pub fn finish(&mut self) {
        self.statements.flush(&mut self.progress);
    }

    /// Ends every connection of a process that ended or changed its image at
    /// `at`, in monotonic nanoseconds; returns them.
    pub fn disconnect(&mut self, pid: u32, at: u64) -> Vec<(Descriptor, u64)> {
        self.statements.exit(pid, &mut self.progress);
        self.streams.exit(pid, at, &mut self.progress)
    }

    /// Hands on the spans that came of it all so far; `watch` sees what they
    /// came of.
    pub fn spans(
        &mut self,
        clock: &dyn UnixTime,
        mut watch: impl FnMut(&Progress),
        mut spans: impl FnMut(Span),
    ) {
        let Self {
            assembler,
            progress,
            ..
        } = self;
        for progress in progress.drain(..) {
            watch(&progress);
            assembler.progress(progress, clock, &mut spans);
        }
    }
}
