//! The traced processes: found, prepared for the kernel side, followed
//! through fork and exec until they end.
//!
//! This is the slow path beside the pipeline. `run` calls it when a process
//! is named, forks, executes, listens or ends; it reads `/proc` and process
//! memory and steers `probes`.

mod connections;
mod files;
mod frameworks;
mod greenlets;
mod handoffs;
mod lineage;
mod message;
mod pace;
mod sqlite;
mod tls;

use std::collections::{HashMap, HashSet};
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use abi::map::{Target, target_flag};

use self::files::{FileId, Files};
use self::frameworks::{Moments, RELOOK};
use self::greenlets::Following;
use self::lineage::Lineage;
pub use self::lineage::Traffic;
use self::pace::Pace;
use self::tls::Calls;
use crate::instrumentations::{Disabled, Libraries};
use crate::probes::{Hook, ProbeError, Probes};
use crate::python::Python;
use crate::remote::{self, Process};
use crate::resource::{Host, Resource, Runtime};
use crate::stats::counters;
use crate::stream::Opening;
use crate::target::interpreter::{Imports, Interpreter, InterpreterError, Location};
use crate::target::placement::{self, Placement};
use crate::target::process::{ProcessError, ProcessInfo};
use crate::target::service::{TargetSettings, derive_service_name};

/// Modules of event loops that read outside any context.
const LOOPS_OUTSIDE: [&str; 2] = ["uvloop.loop", "twisted.internet.base"];
/// Ids of connections that the agent makes known have this bit; the kernel's
/// never do.
const SEEDED: u64 = 1 << 63;
/// How often an interpreter that is still starting is looked for again.
const RETRY: Duration = Duration::from_millis(50);
/// How long a process may take to become a Python process, and how long its
/// modules are looked at again while it starts.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long a process may run something else until the operator is told.
const SILENCE: Duration = Duration::from_secs(5);

counters! {
    /// Counters of `discovery`.
    pub struct DiscoveryStats {
        /// Processes traced.
        processes => "discovery.processes",
        /// Processes that ended.
        ended => "discovery.ended",
        /// Connections older than the attach that were made known.
        seeded => "discovery.seeded_connections",
        /// Connections older than the attach that were left out: too many.
        unseeded => "discovery.dropped.connections",
        /// Processes that asked for no traces in their environment, and were
        /// left alone when they began another program.
        unwanted => "discovery.unwanted",
        /// Connections older than the attach that were closed while they were
        /// looked at: nothing of them is missing that began later.
        closed => "discovery.closed_connections",
        /// Processes whose Python could not be read: sockets only.
        without_python => "discovery.without_python",
        /// Processes whose contexts were no longer followed, as they made no
        /// calls.
        paused => "discovery.lineage_paused",
        /// Processes whose contexts were followed again.
        resumed => "discovery.lineage_resumed",
        /// Function probes that could not be attached.
        hooks_failed => "discovery.hooks_failed",
        /// Processes whose greenlets are followed.
        greenlets => "discovery.greenlets",
        /// Processes with greenlets that cannot be followed.
        without_greenlets => "discovery.without_greenlets",
        /// Processes whose executors cannot be followed.
        queues_failed => "discovery.queues_failed",
        /// Calls of OpenSSL whose results cannot be seen, by file.
        tls_unseen => "discovery.tls_calls_unseen",
        /// Copies of SQLite in a process whose statements are followed.
        sqlite => "discovery.sqlite",
        /// Processes that use SQLite, and a copy whose statements cannot be
        /// followed.
        without_sqlite => "discovery.without_sqlite",
        /// `executemany` or `executescript` of Python's `sqlite3`, by process,
        /// whose statements are told one by one.
        sqlite_calls_unseen => "discovery.sqlite_calls_unseen",
        /// Copies of SQLite that do not show which statements do not compile.
        sqlite_failures_unseen => "discovery.sqlite_failures_unseen",
        /// Recipes that the kernel side has no room for.
        recipes_failed => "discovery.dropped.recipes",
    }
}

/// The target's flags that hold only where every probe for them is in place.
const FOLLOWED: u32 = target_flag::TASK_AFTER_READ
    | target_flag::LINEAGE
    | target_flag::WORK_ITEMS
    | target_flag::GREENLET_OWNERS;

/// Why a process cannot be traced.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    /// Its files in `/proc` cannot be read.
    #[error(transparent)]
    Process(#[from] ProcessError),
    /// Its memory cannot be read.
    #[error("process {pid}: {source}")]
    Memory {
        /// Which process.
        pid: u32,
        /// Why.
        source: remote::ProcessError,
    },
    /// It runs no Python that we know.
    #[error("process {pid}: {source}")]
    Interpreter {
        /// Which process.
        pid: u32,
        /// Why.
        source: InterpreterError,
    },
    /// The kernel refused.
    #[error("process {pid}: {source}")]
    Probe {
        /// Which process.
        pid: u32,
        /// Why.
        source: ProbeError,
    },
    /// Its own environment asks for no traces.
    #[error("process {pid} asks for no traces ({variable} in its environment)")]
    Unwanted {
        /// Which process.
        pid: u32,
        /// By which variable.
        variable: &'static str,
    },
}

impl AttachError {
    /// Whether a capability would have prevented it.
    pub fn is_for_want_of_rights(&self) -> bool {
        match self {
            Self::Process(error) => matches!(error, ProcessError::NotPermitted { .. }),
            Self::Memory { source, .. } => {
                matches!(source, remote::ProcessError::PermissionDenied(_))
            }
            Self::Probe { .. } => true,
            Self::Interpreter { .. } | Self::Unwanted { .. } => false,
        }
    }
}

/// A traced process.
struct Tracee {
    settings: TargetSettings,
    service: String,
    interpreter: Option<Arc<Interpreter>>,
    target: Target,
    lineage: Lineage,
    /// Whether its transports' writes are probed.
    writes_probed: bool,
    /// How its greenlets are followed.
    greenlets: Following,
    /// Whether the queues of its executors are probed, or cannot be.
    queues_probed: bool,
    /// Mapped files that were searched for calls of OpenSSL.
    searched: HashSet<FileId>,
    /// What is known of its SQLite.
    sqlite: sqlite::Followed,
    moments: Moments,
    /// The server that runs it, with its version.
    server: Option<(&'static str, Option<String>)>,
    /// What it has imported of what it may turn off.
    imported: Libraries,
    /// When it is asked again what it has imported.
    next_frameworks: Instant,
    /// Until when it is looked at again, as it may still be starting.
    until: Option<Instant>,
    next_look: Instant,
    /// When it is looked at in full.
    pace: Pace<Imports>,
    /// When to tell the operator that no Python was found yet.
    tell: Option<Instant>,
}

/// What the pipeline must know of a change.
#[derive(Default)]
pub struct Changes {
    /// Processes with their resources, new or changed.
    pub processes: Vec<(u32, Arc<Resource>)>,
    /// What processes have turned off, new or changed.
    pub disabled: Vec<(u32, Option<Disabled>)>,
    /// Connections older than the attach.
    pub openings: Vec<Opening>,
    /// Lines for the operator.
    pub messages: Vec<String>,
}

/// All traced processes.
pub struct Discovery {
    tracees: HashMap<u32, Tracee>,
    /// What is known of their frameworks.
    pub python: Python,
    /// Whether Python's frames are looked into.
    frames: bool,
    host: Host,
    next_seed: u64,
    /// The next `Target::greenlet_epoch`.
    next_greenlet_epoch: u32,
    /// The last [`Target::epoch`] that was given.
    last_epoch: u32,
    /// Which files call OpenSSL, and where.
    callers: Files<Arc<Calls>>,
    /// Which files have SQLite.
    copies: Files<sqlite::Found>,
    /// What happened, counted.
    pub stats: DiscoveryStats,
}

impl Discovery {
    /// Traces nothing yet; `frames` says whether Python's frames are to be
    /// looked into.
    pub fn new(frames: bool) -> Self {
        Self {
            tracees: HashMap::new(),
            python: Python::new(),
            frames,
            host: Host::read(),
            next_seed: SEEDED,
            next_greenlet_epoch: 1,
            last_epoch: 0,
            callers: Files::default(),
            copies: Files::default(),
            stats: DiscoveryStats::default(),
        }
    }

    /// Begins to trace a running Python process.
    pub fn attach(&mut self, pid: u32, probes: &mut Probes) -> Result<Changes, AttachError> {
        let info = ProcessInfo::read(pid)?;
        let settings = wanted(pid, &info)?;
        let process = open(pid)?;
        let mut changes = Changes::default();
        let interpreter = match Interpreter::find(&process) {
            Ok(interpreter) => Some(interpreter),
            Err(InterpreterError::NotInitialized) => None,
            Err(error) if degradable(&error) => {
                self.stats.without_python.one();
                changes.messages.push(format!(
                    "tracing {pid}: its sockets only, so no span will have a parent: {error}"
                ));
                None
            }
            Err(source) => return Err(AttachError::Interpreter { pid, source }),
        };
        self.begin(pid, settings, derive_service_name(&info), probes)?;
        self.learn(pid, &process, interpreter, probes, &mut changes);
        self.seed(pid, probes, &mut changes);
        Ok(changes)
    }

    /// Begins to trace a process that will become the command of `run`.
    pub fn expect(&mut self, pid: u32, probes: &mut Probes) -> Result<(), AttachError> {
        let info = ProcessInfo::read(pid)?;
        let settings = TargetSettings::new(&info.environment);
        self.begin(pid, settings, derive_service_name(&info), probes)
    }

    /// A traced process forked. The kernel side follows the child already;
    /// its resource is made at once, the rest by [`Discovery::settle`].
    pub fn forked(&mut self, child: u32, parent: u32, at: u64, probes: &mut Probes) -> Changes {
        let mut changes = Changes::default();
        self.starts(parent, probes);
        let Some(from) = self.tracees.get(&parent) else {
            return changes;
        };
        let tracee = Tracee {
            settings: from.settings.clone(),
            service: from.service.clone(),
            // The child runs the parent's program at the same addresses.
            interpreter: from.interpreter.clone(),
            target: from.target,
            lineage: Lineage::Never,
            writes_probed: false,
            greenlets: Following::default(),
            queues_probed: false,
            searched: HashSet::new(),
            sqlite: sqlite::Followed::default(),
            moments: from.moments,
            server: from.server.clone(),
            imported: from.imported,
            next_frameworks: Instant::now() + RELOOK,
            until: None,
            next_look: Instant::now(),
            pace: Pace::new(),
            tell: None,
        };
        self.stats.processes.one();
        self.tracees.insert(child, tracee);
        self.python.forked(child, parent);
        let info = ProcessInfo::read(child)
            .or_else(|_| ProcessInfo::read(parent).map(|parent| parent.forked(child, at)));
        if let Ok(info) = info {
            self.describe(child, &info, &mut changes);
        }
        changes
    }

    /// A forked process goes on with its parent's program: it needs probes of
    /// its own, and may have inherited connections.
    ///
    /// Not to be called for one that executes another program at once; such a
    /// child may share its parent's memory until then (`vfork`).
    pub fn settle(&mut self, child: u32, probes: &mut Probes) -> Changes {
        let mut changes = Changes::default();
        let now = Instant::now();
        let Some(tracee) = self.tracees.get_mut(&child) else {
            return changes;
        };
        tracee.until = Some(now + PATIENCE);
        tracee.next_look = now + RETRY;
        let message = format!("tracing {child}: forked, as {}", tracee.service_name());
        let Ok(process) = open(child) else {
            return changes;
        };
        if tracee.interpreter.is_some() {
            changes.messages.push(message);
            tracee.target.flags &= !(FOLLOWED | target_flag::TLS);
            self.follow(child, &process, probes);
            self.hook_moments(child, probes);
        }
        self.seed(child, probes, &mut changes);
        changes
    }

    /// A traced process replaced its image.
    pub fn executed(&mut self, pid: u32, probes: &mut Probes) -> Changes {
        let mut changes = Changes::default();
        probes.unhook(pid);
        self.forget_frameworks(pid, probes);
        let Ok(info) = ProcessInfo::read(pid) else {
            return changes;
        };
        let now = Instant::now();
        let Some(tracee) = self.tracees.get_mut(&pid) else {
            return changes;
        };
        tracee.settings = match wanted(pid, &info) {
            Ok(settings) => settings,
            Err(unwanted) => {
                self.tracees.remove(&pid);
                probes.remove_target(pid);
                self.stats.unwanted.one();
                changes.messages.push(unwanted.to_string());
                return changes;
            }
        };
        tracee.service = derive_service_name(&info);
        tracee.interpreter = None;
        tracee.target = Target::default();
        tracee.lineage = Lineage::Never;
        tracee.writes_probed = false;
        tracee.greenlets = Following::default();
        tracee.queues_probed = false;
        tracee.searched.clear();
        tracee.sqlite = sqlite::Followed::default();
        tracee.moments = Moments::default();
        tracee.server = None;
        tracee.imported = Libraries::default();
        tracee.until = Some(now + PATIENCE);
        tracee.next_look = now;
        tracee.pace = Pace::new();
        tracee.tell = Some(now + SILENCE);
        self.look(pid, probes, &mut changes, false);
        changes
    }

    /// A traced process listens: its server's modules are loaded now.
    pub fn listening(&mut self, pid: u32, probes: &mut Probes) -> Changes {
        let mut changes = Changes::default();
        self.look(pid, probes, &mut changes, true);
        changes
    }

    /// A traced process ended.
    pub fn exited(&mut self, pid: u32, probes: &mut Probes) {
        if self.tracees.remove(&pid).is_some() {
            self.stats.ended.one();
            probes.remove_target(pid);
            probes.abandon(pid);
            self.forget_frameworks(pid, probes);
        }
    }

    /// Looks again at processes that may still be starting.
    pub fn tick(&mut self, now: Instant, probes: &mut Probes) -> Changes {
        let mut changes = Changes::default();
        let due: Vec<u32> = self
            .tracees
            .iter()
            .filter(|(_, tracee)| tracee.until.is_some() && tracee.next_look <= now)
            .map(|(&pid, _)| pid)
            .collect();
        for pid in due {
            self.look(pid, probes, &mut changes, false);
            if let Some(tracee) = self.tracees.get_mut(&pid) {
                tracee.next_look = now + RETRY;
                if tracee.until.is_some_and(|until| until <= now) {
                    tracee.until = None;
                    if tracee.interpreter.is_none() {
                        self.stats.without_python.one();
                    }
                }
                let silent = tracee.tell.is_some_and(|tell| tell <= now);
                if silent || tracee.interpreter.is_some() {
                    tracee.tell = None;
                }
                if silent && tracee.interpreter.is_none() {
                    changes.messages.extend(message::no_python(pid));
                }
            }
        }
        self.relook(now, probes, &mut changes);
        changes
    }

    /// Whether the process is traced.
    pub fn traces(&self, pid: u32) -> bool {
        self.tracees.contains_key(&pid)
    }

    /// The traced processes.
    pub fn pids(&self) -> impl Iterator<Item = u32> {
        self.tracees.keys().copied()
    }

    /// Whether no process is traced (any more).
    pub fn is_empty(&self) -> bool {
        self.tracees.is_empty()
    }

    /// An epoch that no process had before: what was noted of one is never
    /// found by another of the same id.
    fn next_epoch(&mut self) -> u32 {
        self.last_epoch = self.last_epoch.wrapping_add(1);
        self.last_epoch
    }

    fn begin(
        &mut self,
        pid: u32,
        settings: TargetSettings,
        service: String,
        probes: &mut Probes,
    ) -> Result<(), AttachError> {
        for warning in &settings.warnings {
            tracing::warn!(pid, %warning, "in the environment of the process");
        }
        let target = Target::default();
        probes
            .set_target(pid, &target)
            .map_err(|source| AttachError::Probe { pid, source })?;
        let now = Instant::now();
        self.stats.processes.one();
        self.tracees.insert(
            pid,
            Tracee {
                settings,
                service,
                interpreter: None,
                target,
                lineage: Lineage::Never,
                writes_probed: false,
                greenlets: Following::default(),
                queues_probed: false,
                searched: HashSet::new(),
                sqlite: sqlite::Followed::default(),
                moments: Moments::default(),
                server: None,
                imported: Libraries::default(),
                next_frameworks: now + RELOOK,
                until: Some(now + PATIENCE),
                next_look: now + RETRY,
                pace: Pace::new(),
                tell: Some(now + SILENCE),
            },
        );
        Ok(())
    }

    /// Looks for the interpreter, or for modules that were loaded meanwhile.
    fn look(&mut self, pid: u32, probes: &mut Probes, changes: &mut Changes, urgent: bool) {
        let Some(tracee) = self.tracees.get_mut(&pid) else {
            return;
        };
        let Ok(process) = open(pid) else {
            return;
        };
        if let Some(interpreter) = &tracee.interpreter {
            let imported = interpreter.imports(&process).ok();
            let due = tracee.pace.due(imported, Instant::now());
            if !due && !urgent {
                if tracee.greenlets == Following::Imported {
                    self.greenlets(pid, &process, probes);
                }
                return;
            }
            self.greenlets(pid, &process, probes);
            self.modules(pid, &process, probes);
            self.handoffs(pid, &process, probes);
            self.hook_tls(pid, &process, probes);
            self.hook_sqlite(pid, &process, probes);
            self.frameworks(pid, &process, probes, changes, urgent);
            return;
        }
        let found = match Interpreter::find_now(&process) {
            Ok(interpreter) => Some(interpreter),
            Err(error) => {
                tracing::debug!(pid, %error, "no interpreter yet");
                None
            }
        };
        if found.is_some() {
            self.learn(pid, &process, found, probes, changes);
        } else {
            self.resource(pid, changes);
        }
    }

    /// Takes note of the interpreter and tells everybody.
    fn learn(
        &mut self,
        pid: u32,
        process: &Process,
        interpreter: Option<Interpreter>,
        probes: &mut Probes,
        changes: &mut Changes,
    ) {
        if let Some(interpreter) = interpreter {
            let message = message::found(pid, process, &interpreter);
            if let Some(tracee) = self.tracees.get_mut(&pid) {
                tracee.target = interpreter.target();
                // One that is loaded later has its first turn before our eyes.
                let loaded =
                    |module: &&str| interpreter.has_module(process, module).unwrap_or(true);
                if LOOPS_OUTSIDE.iter().any(loaded) {
                    tracee.target.flags |= target_flag::LOOPS_OUTSIDE;
                }
                tracee.interpreter = Some(Arc::new(interpreter));
                changes
                    .messages
                    .push(format!("{message} as {}", tracee.service_name()));
            }
            self.follow(pid, process, probes);
            self.frameworks(pid, process, probes, changes, true);
        }
        self.resource(pid, changes);
    }

    /// Makes the process's resource anew.
    fn resource(&mut self, pid: u32, changes: &mut Changes) {
        if let Ok(info) = ProcessInfo::read(pid) {
            self.describe(pid, &info, changes);
        }
    }

    fn describe(&self, pid: u32, info: &ProcessInfo, changes: &mut Changes) {
        let Some(tracee) = self.tracees.get(&pid) else {
            return;
        };
        let runtime = tracee.interpreter.as_ref().map(|interpreter| Runtime {
            name: "cpython".to_owned(),
            version: interpreter.version.release(),
            description: interpreter.description.clone(),
            server: tracee.server.clone(),
        });
        let resource = Resource::new(
            info,
            &tracee.settings,
            &tracee.service,
            runtime.as_ref(),
            &self.host,
        );
        changes.processes.push((pid, Arc::new(resource)));
        let names = &tracee.settings.disabled_instrumentations;
        let disabled = Disabled::new(names, tracee.imported);
        changes.disabled.push((pid, disabled));
    }

    /// Attaches the probes and tells the kernel side: only now, with the
    /// probes in place, does what they see count.
    fn follow(&mut self, pid: u32, process: &Process, probes: &mut Probes) {
        self.hook_contexts(pid, process, probes);
        self.greenlets(pid, process, probes);
        self.modules(pid, process, probes);
        self.handoffs(pid, process, probes);
        self.hook_tls(pid, process, probes);
        self.hook_sqlite(pid, process, probes);
        if let Some(tracee) = self.tracees.get(&pid) {
            tell(pid, tracee, probes);
        }
    }
}

impl Tracee {
    fn service_name(&self) -> &str {
        self.settings
            .service_name
            .as_deref()
            .unwrap_or(&self.service)
    }
}

impl DiscoveryStats {
    /// Attaches a probe; whether that went well.
    fn hook_at(&self, pid: u32, probes: &mut Probes, hook: Hook, place: &Location) -> bool {
        self.hook(pid, probes, hook, &place.path, place.file_offset)
    }

    fn hook(
        &self,
        pid: u32,
        probes: &mut Probes,
        hook: Hook,
        path: &std::path::Path,
        offset: u64,
    ) -> bool {
        let Placement {
            offset: skipped,
            single_stepped,
        } = place(hook, path, offset);
        if single_stepped {
            tracing::info!(pid, ?hook, path = %path.display(), "a probe is single-stepped");
        }
        let offset = offset + skipped;
        match probes.hook(hook, pid, path, offset) {
            Ok(()) => {
                tracing::debug!(pid, ?hook, path = %path.display(), offset, "attached");
                true
            }
            Err(error) => {
                self.hooks_failed.one();
                tracing::warn!(pid, %error, ?hook, "cannot attach a probe");
                false
            }
        }
    }
}

/// The cheapest place of a probe on the function at an offset of a file.
fn place(hook: Hook, path: &std::path::Path, offset: u64) -> Placement {
    let mut code = [0; 64];
    // What cannot be read is probed at its entry.
    let read = std::fs::File::open(path)
        .and_then(|file| file.read_at(&mut code, offset))
        .unwrap_or(0);
    let code = code.get(..read).unwrap_or_default();
    match hook {
        Hook::TransportWrite
        | Hook::WorkQueued
        | Hook::WorkWanted
        | Hook::ContextExplicit
        | Hook::VariableReset
        | Hook::Raised
        | Hook::GreenletBorn
        | Hook::GreenletEnded
        | Hook::SqliteEnd
        | Hook::SqliteMany
        | Hook::SqliteScript
        | Hook::SqliteCompile => placement::entry(code),
        // Chosen by instruction already.
        Hook::ContextCopiedIn(_)
        | Hook::ContextCreatedIn(_)
        | Hook::Tls(_)
        | Hook::SqliteBegin
        | Hook::SqliteEndInside
        | Hook::SqliteCompiled => Placement {
            offset: 0,
            single_stepped: false,
        },
        Hook::ContextReturned | Hook::ContextCreated => placement::return_probe(code),
    }
}

/// The settings of a process that wants to be traced.
fn wanted(pid: u32, info: &ProcessInfo) -> Result<TargetSettings, AttachError> {
    let settings = TargetSettings::new(&info.environment);
    if settings.disabled {
        return Err(AttachError::Unwanted {
            pid,
            variable: "OTEL_SDK_DISABLED",
        });
    }
    if settings.traces_suppressed {
        return Err(AttachError::Unwanted {
            pid,
            variable: "OTEL_TRACES_EXPORTER",
        });
    }
    if settings.instrumented {
        tracing::warn!(
            pid,
            "opentelemetry-instrument is already in this process: its spans will be doubled"
        );
    }
    Ok(settings)
}

/// Tells the kernel side what is known of a process.
///
/// It may have executed another program since it was looked at. The kernel side
/// knew then before us, and of that program this is not true.
fn tell(pid: u32, tracee: &Tracee, probes: &mut Probes) {
    let mut set = |target| {
        if let Err(error) = probes.set_target(pid, target) {
            tracing::warn!(pid, %error, "cannot tell the kernel side about the process");
        }
    };
    set(&tracee.target);
    if let Some(interpreter) = &tracee.interpreter
        && !open(pid).is_ok_and(|process| interpreter.is_in(&process))
    {
        set(&Target::default());
    }
}

fn open(pid: u32) -> Result<Process, AttachError> {
    Process::open(pid).map_err(|source| AttachError::Memory { pid, source })
}

/// Errors with which sockets can be traced all the same.
fn degradable(error: &InterpreterError) -> bool {
    matches!(
        error,
        InterpreterError::UnknownVersion(_) | InterpreterError::LayoutMismatch { .. }
    )
}
