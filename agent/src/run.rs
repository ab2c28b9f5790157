//! Ties the parts together: one thread for the pipeline, one runtime for the
//! exporters, and the order in which all of it starts and stops.

use std::collections::{HashMap, HashSet};
use std::io::{self, Write};
use std::mem::MaybeUninit;
use std::ops::ControlFlow;
use std::os::fd::OwnedFd;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use abi::record::{Process, kind};
use anyhow::Context as _;
use rand::rngs::SmallRng;
use rand::{RngCore, SeedableRng};

use rustix::event::{Timespec, epoll};
use rustix::io::Errno;

use crate::assemble::{Ids, UnixTime};
use crate::batch::{Processor, Sender};
use crate::check::{self, Trials};
use crate::cli::{Command, Options, explain};
use crate::clock::{Adjustment, Clock};
use crate::config::ExportConfig;
use crate::discovery::{Changes, Discovery, Traffic};
use crate::launch::Launched;
use crate::probes::{ProbeSettings, Probes};
use crate::protocol::Role;
use crate::recording::Recorder;
use crate::source::{Event, Source};
use crate::stats::{ExportStats, counters};
use crate::stream::Progress;
use crate::target::interpreter::Interpreter;
use crate::target::process::ProcessInfo;
use crate::tracer::Tracer;
use crate::{export, kernel, remote};

/// Longest time between two looks at the ring. The kernel side wakes us
/// earlier only when much has gathered.
const POLL: Duration = Duration::from_millis(20);
/// How long the answers that are due at a stop are waited for. A caller may
/// have an answer in its hands before the system call that sent it has ended,
/// which is when we see it.
const GRACE: Duration = Duration::from_secs(1);
/// Events taken before other work gets its turn.
const BATCH: usize = 4096;
/// How often the clocks are compared.
const RESAMPLE: Duration = Duration::from_secs(10);
/// How often `--stats` prints.
const STATS: Duration = Duration::from_secs(1);

counters! {
    /// Counters of `run`.
    pub struct RunStats {
        /// Events read from the ring.
        events => "run.events",
        /// Records that could not be decoded.
        undecodable => "run.dropped.undecodable",
        /// Times the wall clock was set.
        clock_steps => "run.clock_steps",
    }
}

/// Runs the command of the command line.
pub fn run(options: Options) -> anyhow::Result<ExitCode> {
    if let Some(Command::Check { pid }) = &options.command {
        return check(&options, *pid);
    }
    if options.load_only {
        return load_only(&options);
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    let (config, warnings) = ExportConfig::from(|name| std::env::var(name).ok(), &options.export)?;
    for warning in warnings {
        tracing::warn!(%warning, "a setting was not understood, its default is used");
    }
    let stop = Arc::new(AtomicBool::new(false));
    runtime.spawn(signals(Arc::clone(&stop)));

    let recorder = options
        .record_events
        .as_deref()
        .map(|path| {
            Recorder::create(path).with_context(|| format!("cannot make {}", path.display()))
        })
        .transpose()?;
    let mut probes = load(&options)?;
    let source = probes.source()?;
    let stats = Arc::new(ExportStats::default());
    let exporters = {
        let _context = runtime.enter();
        export::build(&config, &stats)?
    };
    let processor = Processor::start(exporters, &config.batch, &stats, runtime.handle());
    let mut agent = Agent {
        probes,
        pipeline: Pipeline::new(source, processor.sender(), recorder)?,
        discovery: Discovery::new(!options.no_frames),
        stats: RunStats::default(),
        export_stats: Arc::clone(&stats),
        show_stats: options.stats,
        forked: Vec::new(),
    };
    let launched = agent.start(&options)?;
    let ended = agent.trace(&stop, launched.as_ref());
    let code = match launched {
        Some(launched) => launched.finish()?,
        None => ExitCode::SUCCESS,
    };
    ended?;
    let Agent {
        mut probes,
        mut pipeline,
        mut discovery,
        stats: run_stats,
        mut forked,
        ..
    } = agent;
    let kernel = probes.counters();
    // The kernel side forgets the processes before their probes go, which it
    // does one after the other: a context that is made when its probe is gone
    // has its predecessor's owner.
    for pid in discovery.pids() {
        probes.remove_target(pid);
    }
    pipeline.finish(&mut Processes {
        discovery: &mut discovery,
        probes: None,
        forked: &mut forked,
        messages: Vec::new(),
    });
    runtime.block_on(processor.shutdown(config.batch.export_timeout));
    let summary = Summary {
        kernel,
        agent: [
            probes.evictions(true),
            run_stats.values(),
            discovery.stats.values(),
            discovery.python.stats.values(),
            pipeline.tracer.streams.stats.values(),
            pipeline.tracer.statements.stats.values(),
            pipeline.tracer.assembler.stats.values(),
            stats.values(),
        ]
        .concat(),
    };
    say(&format!("otel-ebpf: summary{}", summary.line()));
    // Last, as the kernel takes a tenth of a second for each: nobody should
    // wait for spans until then, or lose them to an impatient supervisor.
    drop(probes);
    Ok(code)
}

/// The agent while it traces.
struct Agent {
    probes: Probes,
    pipeline: Pipeline,
    discovery: Discovery,
    stats: RunStats,
    export_stats: Arc<ExportStats>,
    show_stats: bool,
    /// Processes that forked off in the current batch.
    forked: Vec<u32>,
}

impl Agent {
    /// Attaches to what the command line names.
    fn start(&mut self, options: &Options) -> anyhow::Result<Option<Launched>> {
        // Attached before the first target, so that nothing falls between
        // what is read from /proc and what the programs see.
        self.probes.attach()?;
        let mut seen = HashSet::new();
        for &pid in options.pid.iter().filter(|&&pid| seen.insert(pid)) {
            let attached = self.discovery.attach(pid, &mut self.probes);
            let changes = attached.map_err(|error| match error.is_for_want_of_rights() {
                true => error_with_rights(error.into()),
                false => error.into(),
            })?;
            self.apply(changes);
        }
        let Some(Command::Run { command }) = &options.command else {
            return Ok(None);
        };
        let launched = Launched::start(command)?;
        self.discovery.expect(launched.pid(), &mut self.probes)?;
        launched.go()?;
        Ok(Some(launched))
    }

    /// Traces until told to stop or until every process has ended.
    fn trace(&mut self, stop: &AtomicBool, launched: Option<&Launched>) -> anyhow::Result<()> {
        let mut next_resample = Instant::now() + RESAMPLE;
        let mut next_stats = Instant::now() + STATS;
        let mut asked = false;
        loop {
            self.pipeline.wait(POLL)?;
            let before = Clock::monotonic();
            let full = self.batch();
            if !full {
                self.pipeline.quiet(before);
            }
            let now = Instant::now();
            let changes = self.discovery.tick(now, &mut self.probes);
            self.apply(changes);
            self.probes.flush_log();
            if now >= next_resample {
                next_resample = now + RESAMPLE;
                if let Adjustment::Stepped(by) = self.pipeline.clock.0.resample() {
                    self.stats.clock_steps.one();
                    tracing::warn!(nanoseconds = by, "the wall clock was set");
                }
            }
            if self.show_stats && now >= next_stats {
                next_stats = now + STATS;
                say(&format!("otel-ebpf: stats{}", self.summary().line()));
            }
            if full {
                continue;
            }
            // A command may run on untraced; it is waited for, and gets our
            // signals.
            if self.discovery.is_empty() && launched.is_none_or(Launched::has_ended) {
                say("otel-ebpf: every traced process has ended");
                return Ok(());
            }
            if stop.load(Ordering::Relaxed) {
                match launched {
                    // The command decides when it ends; it was asked to.
                    Some(launched) if !asked => {
                        asked = true;
                        launched.ask_to_end();
                        stop.store(false, Ordering::Relaxed);
                    }
                    _ => return self.linger(),
                }
            }
        }
    }

    /// Traces until every exchange has ended that had begun by now, or [`GRACE`]
    /// is over.
    fn linger(&mut self) -> anyhow::Result<()> {
        let until = Instant::now() + GRACE;
        let asked = Clock::monotonic();
        loop {
            let full = self.batch();
            let idle = !full && !self.pipeline.tracer.assembler.is_due(asked);
            if idle || Instant::now() >= until {
                return Ok(());
            }
            if !full {
                self.pipeline.wait(POLL)?;
            }
        }
    }

    /// Takes one batch of events; true if more are waiting.
    fn batch(&mut self) -> bool {
        let Self {
            pipeline,
            discovery,
            probes,
            forked,
            ..
        } = self;
        let mut processes = Processes {
            discovery,
            probes: Some(probes),
            forked,
            messages: Vec::new(),
        };
        let taken = pipeline.drain(&mut processes);
        let messages = processes.messages;
        self.stats.events.add(taken as u64);
        let undecodable = std::mem::take(&mut self.pipeline.source.undecodable);
        self.stats.undecodable.add(undecodable);
        for conn in self.pipeline.muted.drain(..) {
            self.probes.mute(conn);
        }
        self.discovery.ends(&mut self.probes);
        let now = Instant::now();
        for (pid, traffic) in self.pipeline.traffic.drain() {
            self.discovery.traffic(pid, traffic, now, &mut self.probes);
        }
        for message in messages {
            say(&format!("otel-ebpf: {message}"));
        }
        for pid in std::mem::take(&mut self.forked) {
            let changes = self.discovery.settle(pid, &mut self.probes);
            self.apply(changes);
        }
        taken >= BATCH
    }

    fn apply(&mut self, changes: Changes) {
        for message in self.pipeline.apply(changes) {
            say(&format!("otel-ebpf: {message}"));
        }
    }

    fn summary(&self) -> Summary {
        Summary {
            kernel: self.probes.counters(),
            agent: [
                self.probes.evictions(false),
                self.stats.values(),
                self.discovery.stats.values(),
                self.discovery.python.stats.values(),
                self.pipeline.tracer.streams.stats.values(),
                self.pipeline.tracer.statements.stats.values(),
                self.pipeline.tracer.assembler.stats.values(),
                self.export_stats.values(),
            ]
            .concat(),
        }
    }
}

/// What the pipeline meets on its way that is not its own: processes that
/// change, and stacks that only their memory explains.
struct Processes<'a> {
    discovery: &'a mut Discovery,
    /// None when tracing has ended: then nobody is followed any more.
    probes: Option<&'a mut Probes>,
    forked: &'a mut Vec<u32>,
    /// Lines for the operator.
    messages: Vec<String>,
}

impl Processes<'_> {
    /// Something happened to a process, just here among the bytes.
    fn changed(&mut self, pipeline: &mut Pipeline, process: &Process) {
        let Self {
            discovery,
            probes: Some(probes),
            forked,
            messages,
        } = self
        else {
            return;
        };
        let pid = process.pid;
        let changes = match process.kind {
            kind::FORK => {
                forked.push(pid);
                discovery.forked(pid, process.parent, process.at, probes)
            }
            kind::EXEC => {
                forked.retain(|&forked| forked != pid);
                pipeline.disconnect(pid, process.at, probes);
                let changes = discovery.executed(pid, probes);
                if !discovery.traces(pid) {
                    pipeline.tracer.assembler.process_gone(pid);
                }
                changes
            }
            kind::EXIT => {
                forked.retain(|&forked| forked != pid);
                pipeline.disconnect(pid, process.at, probes);
                pipeline.tracer.assembler.process_gone(pid);
                discovery.exited(pid, probes);
                Changes::default()
            }
            _ => discovery.listening(pid, probes),
        };
        messages.extend(pipeline.apply(changes));
    }
}

/// The way of the data, from the ring to the batch processor.
struct Pipeline {
    source: Source,
    tracer: Tracer,
    clock: PipelineClock,
    spans: Sender,
    /// Connections to mute in the kernel.
    muted: Vec<u64>,
    /// What each process did in the current batch.
    traffic: HashMap<u32, Traffic>,
    recorder: Option<Recorder>,
    /// An epoll instance that holds the ring.
    waiting: OwnedFd,
}

impl Pipeline {
    fn new(source: Source, spans: Sender, recorder: Option<Recorder>) -> io::Result<Self> {
        let waiting = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        // Edge-triggered: waiting bytes alone do not wake us, or every event
        // would be taken singly; only the kernel side's call for attention
        // does, or the time.
        let flags = epoll::EventFlags::IN | epoll::EventFlags::ET;
        epoll::add(&waiting, &source, epoll::EventData::new_u64(0), flags)?;
        Ok(Self {
            source,
            tracer: Tracer::new(Box::new(RandomIds(SmallRng::from_os_rng()))),
            clock: PipelineClock(Clock::new()),
            spans,
            muted: Vec::new(),
            traffic: HashMap::new(),
            recorder,
            waiting,
        })
    }

    /// Waits until the ring asks for attention or the time is over.
    fn wait(&self, time: Duration) -> io::Result<()> {
        let timeout = Timespec {
            tv_sec: 0,
            tv_nsec: time.subsec_nanos().into(),
        };
        let mut ready = [const { MaybeUninit::<epoll::Event>::uninit() }; 1];
        match epoll::wait(&self.waiting, &mut ready, Some(&timeout)) {
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Takes up to [`BATCH`] events through the pipeline; `processes` are told
    /// what concerns them, in its place among the bytes.
    fn drain(&mut self, processes: &mut Processes<'_>) -> usize {
        let mut taken = 0;
        let mut pending = None;
        while taken < BATCH {
            let Self {
                source,
                tracer,
                recorder,
                ..
            } = self;
            taken += source.drain(BATCH - taken, |event| {
                if let Event::Stack(stack) = &event {
                    if let Some(insight) = processes.discovery.python.resolve(stack) {
                        if let Some(recorder) = recorder {
                            recorder.insight(&insight);
                        }
                        tracer.insight(insight);
                    }
                    return ControlFlow::Continue(());
                }
                if let Some(recorder) = recorder {
                    recorder.event(&event);
                }
                pending = tracer.event(event);
                match pending {
                    Some(_) => ControlFlow::Break(()),
                    None => ControlFlow::Continue(()),
                }
            });
            self.assemble();
            match pending.take() {
                Some(process) => processes.changed(self, &process),
                None => break,
            }
        }
        taken
    }

    /// Every event before `now` was taken.
    fn quiet(&mut self, now: u64) {
        self.tracer.quiet(now);
        self.assemble();
    }

    /// Turns progress into spans and hands them on.
    fn assemble(&mut self) {
        let Self {
            tracer,
            clock,
            spans,
            muted,
            traffic,
            ..
        } = self;
        let watch = |progress: &Progress| match progress {
            Progress::Mute { conn } => muted.push(*conn),
            Progress::Begin { pid, role, .. } => {
                let traffic = traffic.entry(*pid).or_default();
                match role {
                    Role::Server => traffic.served += 1,
                    Role::Client => traffic.called += 1,
                }
            }
            _ => {}
        };
        tracer.spans(clock, watch, |span| spans.push(span));
    }

    /// Takes over what discovery found; returns its messages.
    fn apply(&mut self, changes: Changes) -> Vec<String> {
        let Changes {
            processes,
            disabled,
            openings,
            messages,
        } = changes;
        for (pid, resource) in processes {
            if let Some(recorder) = &mut self.recorder {
                recorder.process(pid, &resource);
            }
            self.tracer.process(pid, resource);
        }
        for (pid, disabled) in disabled {
            if let Some(recorder) = &mut self.recorder {
                recorder.disabled(pid, disabled.as_ref());
            }
            self.tracer.disable(pid, disabled);
        }
        for opening in openings {
            if let Some(recorder) = &mut self.recorder {
                recorder.opening(&opening);
            }
            self.tracer.open(opening);
        }
        self.assemble();
        messages
    }

    /// Ends every connection of a process that ended or changed its image.
    fn disconnect(&mut self, pid: u32, at: u64, probes: &mut Probes) {
        for (descriptor, conn) in self.tracer.disconnect(pid, at) {
            probes.forget(descriptor, conn);
        }
        self.assemble();
    }

    /// Takes what is left in the ring. Exchanges that are still under way
    /// yield no span, and are counted.
    fn finish(&mut self, processes: &mut Processes<'_>) {
        while self.drain(processes) >= BATCH {}
        self.tracer.finish();
        self.assemble();
        self.tracer.assembler.finish();
        if let Some(recorder) = &mut self.recorder {
            let left_out = recorder.left_out;
            if let Err(error) = recorder.finish() {
                tracing::error!(%error, "cannot write the recording");
            } else if left_out > 0 {
                tracing::warn!(left_out, "the recording is full");
            }
        }
    }
}

/// The process's clock, as `assemble` asks for it.
struct PipelineClock(Clock);

impl UnixTime for PipelineClock {
    fn unix(&self, monotonic: u64) -> u64 {
        self.0.unix(monotonic)
    }
}

/// Random ids; `SmallRng` is seeded by the operating system.
struct RandomIds(SmallRng);

impl RandomIds {
    fn nonzero<const N: usize>(&mut self) -> [u8; N] {
        let mut id = [0; N];
        while id == [0; N] {
            self.0.fill_bytes(&mut id);
        }
        id
    }
}

impl Ids for RandomIds {
    fn trace_id(&mut self) -> [u8; 16] {
        self.nonzero()
    }

    fn span_id(&mut self) -> [u8; 8] {
        self.nonzero()
    }
}

/// Every counter that is not zero.
struct Summary {
    kernel: Vec<(&'static str, u64, bool)>,
    agent: Vec<(&'static str, u64)>,
}

impl Summary {
    /// ` lost=N` and then ` name=value` for each.
    ///
    /// Lost is what should have become a span and did not, for want of room
    /// or time, in the kernel or here.
    fn line(&self) -> String {
        let kernel: u64 = self
            .kernel
            .iter()
            .filter(|row| row.2)
            .map(|row| row.1)
            .sum();
        let agent: u64 = self
            .agent
            .iter()
            .filter(|(name, _)| name.contains(".dropped."))
            .map(|row| row.1)
            .sum();
        let mut line = format!(" lost={}", kernel + agent);
        let kernel = self.kernel.iter().map(|&(name, value, _)| (name, value));
        for (name, value) in kernel.chain(self.agent.iter().copied()) {
            if value > 0 {
                line.push_str(&format!(" {name}={value}"));
            }
        }
        line
    }
}

/// Loads the kernel side; names the rights that are lacking if it fails.
fn load(options: &Options) -> anyhow::Result<Probes> {
    load_programs(options).map_err(error_with_rights)
}

fn load_programs(options: &Options) -> anyhow::Result<Probes> {
    let settings = ProbeSettings {
        offsets: kernel::offsets()?,
        ring_bytes: options.ring_bytes(),
        kernel_log: options.kernel_log,
        table_entries: options.table_entries,
    };
    Ok(Probes::load(&settings)?)
}

/// Names the rights that are lacking, where that is why something failed.
fn error_with_rights(error: anyhow::Error) -> anyhow::Error {
    let lacking = check::Privileges::read().lacking();
    if lacking.is_empty() {
        return error;
    }
    error.context(format!(
        "lacking {}: run it as root, or see `otel-ebpf check`",
        lacking.join(", ")
    ))
}

/// Loads every program and prints what the verifier made of it.
fn load_only(options: &Options) -> anyhow::Result<ExitCode> {
    let mut out = io::stdout().lock();
    for (name, verified) in load(options)?.programs() {
        match verified {
            Some(count) => writeln!(out, "{name} {count}")?,
            None => writeln!(out, "{name} unknown")?,
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// What this host allows.
fn check(options: &Options, pid: Option<u32>) -> anyhow::Result<ExitCode> {
    let trials = Trials {
        try_load: || {
            load_programs(options)
                .map(drop)
                .map_err(|error| explain(error.as_ref()))
        },
        find_interpreter: |info: &ProcessInfo| {
            let process = remote::Process::open(info.pid).map_err(|error| error.to_string())?;
            match Interpreter::find(&process) {
                Ok(interpreter) => Ok(format!("CPython {}", interpreter.version)),
                Err(error) => Err(error.to_string()),
            }
        },
    };
    let code = check::run(pid, trials, &mut io::stdout().lock())?;
    Ok(ExitCode::from(code))
}

/// Sets `stop` at SIGINT or SIGTERM.
async fn signals(stop: Arc<AtomicBool>) {
    use tokio::signal::unix::{SignalKind, signal};
    let (Ok(mut interrupt), Ok(mut terminate)) = (
        signal(SignalKind::interrupt()),
        signal(SignalKind::terminate()),
    ) else {
        tracing::error!("cannot listen for signals");
        return;
    };
    loop {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        stop.store(true, Ordering::Relaxed);
    }
}

/// Tells the operator something. A closed standard error is no reason to end.
fn say(line: &str) {
    let _closed = writeln!(io::stderr(), "{line}");
}
