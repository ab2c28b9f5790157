//! Loads the BPF programs, attaches them, and writes the maps that steer them.
//!
//! With `source`, `evictions`, `loading` and `undertaker` the only module that
//! names aya. It decides nothing: what to trace comes from `run`, where to probe
//! from `target`.

mod evictions;
mod loading;
mod undertaker;

use std::num::NonZeroU32;
use std::path::Path;
use std::time::Duration;

use abi::counter::Counter;
use abi::map::{
    CodeKey, Connection, Descriptor, Filter, KernelOffsets, Layout, Recipes, SqliteCaller,
    SqliteLayout, SqlitePlace, Target, recipes_flag,
};
use aya::maps::{Array, HashMap, MapData, MapError, PerCpuArray, ProgramArray};
use aya::programs::uprobe::{UProbeAttachLocation, UProbeLink, UProbeLinkId, UProbeScope};
use aya::programs::{Program, ProgramError, ProgramFd, RawTracePoint, UProbe};
use aya::{Ebpf, EbpfError, EbpfLoader};
use aya_log::EbpfLogger;

use self::evictions::Evictions;
pub use self::evictions::TableEntries;
use self::loading::load_programs;
use self::undertaker::Undertaker;
use crate::source::Source;
use crate::target::placement::result::Holder;
use crate::target::tls::TlsSite;

/// The object that `build.rs` made.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/otel-ebpf-bpf"));

/// Programs on tracepoints, with the tracepoint of each.
const TRACEPOINTS: [(&str, &str); 5] = [
    ("process_fork", "sched_process_fork"),
    ("process_exec", "sched_process_exec"),
    ("process_exit", "sched_process_exit"),
    ("syscall_enter", "sys_enter"),
    ("syscall_exit", "sys_exit"),
];

/// Programs that another continues with, in the order of their numbers in
/// `STEPS`.
const STEPS: [&str; 6] = [
    "vector_element",
    "walk_frames",
    "run_recipe",
    "copy_exception",
    "transfer",
    "copy_notes",
];

/// The same in `FUNCTION_STEPS`, from number 1 on.
const FUNCTION_STEPS: [&str; 7] = [
    "probe_frames",
    "probe_recipe",
    "probe_exception",
    "server_frames",
    "server_recipe",
    "query_begun",
    "probe_notes",
];

/// Programs on functions, attached when an interpreter is found.
const FUNCTIONS: [&str; 25] = [
    "context_returned",
    "context_created",
    "context_explicit",
    "transport_write",
    "work_queued",
    "work_wanted",
    "variable_reset",
    "exception_raised",
    "tls_read",
    "tls_read_ex",
    "tls_write",
    "tls_write_ex",
    "tls_read_done",
    "tls_write_done",
    "tls_handshake",
    "tls_free",
    "tls_feed",
    "greenlet_born",
    "greenlet_ended",
    "sqlite_begin",
    "sqlite_end",
    "sqlite_many",
    "sqlite_script",
    "sqlite_compile",
    "sqlite_compiled",
];

/// Programs on places where a new context is in a register: a copy of the
/// current one, and any other. On aarch64 the names stand for x0 and x19 to
/// x25.
const BIRTHS: [(Holder, &str, &str); 8] = [
    (Holder::Rax, "copied_in_rax", "created_in_rax"),
    (Holder::Rbx, "copied_in_rbx", "created_in_rbx"),
    (Holder::Rbp, "copied_in_rbp", "created_in_rbp"),
    (Holder::Rdi, "copied_in_rdi", "created_in_rdi"),
    (Holder::R12, "copied_in_r12", "created_in_r12"),
    (Holder::R13, "copied_in_r13", "created_in_r13"),
    (Holder::R14, "copied_in_r14", "created_in_r14"),
    (Holder::R15, "copied_in_r15", "created_in_r15"),
];

/// Why the kernel side could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// The object was left out of this build (`AYA_BUILD_SKIP=1`).
    #[error("this agent was built without its bpf programs (AYA_BUILD_SKIP=1)")]
    NoObject,
    /// The object or its maps were refused.
    #[error("cannot load the bpf object: {0}")]
    Object(#[from] EbpfError),
    /// A program was refused; the source carries the verifier's log.
    #[error("cannot load or attach the bpf program {name}: {source}")]
    Program {
        /// Which program.
        name: String,
        /// Why, with the verifier's output.
        source: Box<ProgramError>,
    },
    /// A map operation failed.
    #[error("bpf map {name}: {source}")]
    Map {
        /// Which map.
        name: &'static str,
        /// Why.
        source: MapError,
    },
    /// The kernel side's log cannot be read.
    #[error("cannot read the kernel side's log: {0}")]
    Log(String),
    /// The object lacks a map or program: the build is broken.
    #[error("the bpf object has no {0}")]
    Missing(String),
}

/// What can be set before the load.
#[derive(Clone, Copy, Debug)]
pub struct ProbeSettings {
    /// Offsets of the running kernel.
    pub offsets: KernelOffsets,
    /// Size of the event ring, bytes; a power of two of pages.
    pub ring_bytes: u32,
    /// Whether the kernel side may log through aya-log.
    pub kernel_log: bool,
    /// Room in the tables that evict, if it is not as they have it.
    pub table_entries: Option<TableEntries>,
}

/// A place in a file where a function probe goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Hook {
    /// `PyContext_CopyCurrent` itself, by return probe.
    ContextReturned,
    /// A function that returns a new `PyContext`, by return probe.
    ContextCreated,
    /// A place where a new copy of the current `PyContext` is in a register.
    ContextCopiedIn(Holder),
    /// A place where another new `PyContext` is in a register.
    ContextCreatedIn(Holder),
    /// The entry of a function that copies a `PyContext` it was given, and
    /// then passes a place of [`Hook::ContextCopiedIn`].
    ContextExplicit,
    /// `write` or `writelines` of uvloop's transport.
    TransportWrite,
    /// `put` or `put_nowait` of `_queue.SimpleQueue`.
    WorkQueued,
    /// `get` or `get_nowait` of `_queue.SimpleQueue`.
    WorkWanted,
    /// `PyContextVar_Reset`.
    VariableReset,
    /// `PyTraceBack_Here`.
    Raised,
    /// A call of one of OpenSSL's functions, or the place after it.
    Tls(TlsSite),
    /// `tp_init` of `greenlet.greenlet`.
    GreenletBorn,
    /// `tp_dealloc` of `greenlet.greenlet`.
    GreenletEnded,
    /// The place inside `sqlite3_step` where a statement begins.
    SqliteBegin,
    /// `sqlite3_reset` or `sqlite3_finalize`.
    SqliteEnd,
    /// A place inside them, or inside what they call, where a statement that
    /// has run ends.
    SqliteEndInside,
    /// `executemany` of `sqlite3.Cursor`.
    SqliteMany,
    /// `executescript` of `sqlite3.Cursor`.
    SqliteScript,
    /// `sqlite3_prepare_v2` or `sqlite3_prepare_v3`.
    SqliteCompile,
    /// The place inside them where what came of it is known.
    SqliteCompiled,
}

impl Hook {
    fn program(self) -> &'static str {
        match self {
            Self::ContextReturned => "context_returned",
            Self::ContextCreated => "context_created",
            Self::ContextCopiedIn(holder) => birth(holder).0,
            Self::ContextCreatedIn(holder) => birth(holder).1,
            Self::ContextExplicit => "context_explicit",
            Self::TransportWrite => "transport_write",
            Self::WorkQueued => "work_queued",
            Self::WorkWanted => "work_wanted",
            Self::VariableReset => "variable_reset",
            Self::Raised => "exception_raised",
            Self::Tls(site) => match site {
                TlsSite::Read => "tls_read",
                TlsSite::ReadEx => "tls_read_ex",
                TlsSite::Write => "tls_write",
                TlsSite::WriteEx => "tls_write_ex",
                TlsSite::ReadDone => "tls_read_done",
                TlsSite::WriteDone => "tls_write_done",
                TlsSite::Handshake => "tls_handshake",
                TlsSite::Free => "tls_free",
                TlsSite::Feed => "tls_feed",
            },
            Self::GreenletBorn => "greenlet_born",
            Self::GreenletEnded => "greenlet_ended",
            Self::SqliteBegin => "sqlite_begin",
            Self::SqliteEnd | Self::SqliteEndInside => "sqlite_end",
            Self::SqliteMany => "sqlite_many",
            Self::SqliteScript => "sqlite_script",
            Self::SqliteCompile => "sqlite_compile",
            Self::SqliteCompiled => "sqlite_compiled",
        }
    }
}

/// The programs for a register.
fn birth(holder: Holder) -> (&'static str, &'static str) {
    BIRTHS
        .iter()
        .find(|(known, ..)| *known == holder)
        .map_or(("", ""), |&(_, copied, created)| (copied, created))
}

/// An attached function probe.
struct Hooked {
    hook: Hook,
    offset: u64,
    link: UProbeLinkId,
}

/// The loaded kernel side. Dropping it detaches and frees everything.
pub struct Probes {
    ebpf: Ebpf,
    targets: HashMap<MapData, u32, Target>,
    connections: HashMap<MapData, Descriptor, Connection>,
    evictions: Evictions,
    counters: PerCpuArray<MapData, u64>,
    recipes: HashMap<MapData, CodeKey, Recipes>,
    filter: Array<MapData, Filter>,
    /// Keys that have recipes.
    cooked: std::collections::HashSet<CodeKey>,
    ends: Array<MapData, CodeKey>,
    /// What is in `ends`, by its place.
    ended: std::collections::HashMap<u32, CodeKey>,
    hooks: std::collections::HashMap<u32, Vec<Hooked>>,
    sqlite: HashMap<MapData, SqlitePlace, SqliteLayout>,
    sqlite_callers: HashMap<MapData, SqlitePlace, SqliteCaller>,
    /// Keys of both, by process.
    sqlite_places: std::collections::HashMap<u32, Vec<SqlitePlace>>,
    /// Takes down the probes of processes that have ended.
    undertaker: Option<Undertaker>,
    /// The kernel empties it when its last holder lets go.
    _steps: [ProgramArray<MapData>; 2],
    /// Hands the kernel side's log lines on.
    flush_log: Option<Box<dyn FnMut()>>,
}

impl Probes {
    /// Loads every program; nothing is attached yet.
    pub fn load(settings: &ProbeSettings) -> Result<Self, ProbeError> {
        if OBJECT.is_empty() {
            return Err(ProbeError::NoObject);
        }
        let log_level: u8 = if settings.kernel_log { 5 } else { 0 };
        let mut loader = EbpfLoader::new();
        loader
            // Nothing is relocated by the kernel's types, of which aya would
            // keep some 20 MiB: `kernel` finds the offsets.
            .btf(None)
            .override_global("KERNEL_OFFSETS", &settings.offsets, true)
            .override_global("AYA_LOG_LEVEL", &log_level, false)
            .map_max_entries("EVENTS", settings.ring_bytes);
        if let Some(room) = settings.table_entries {
            for name in room.tables() {
                loader.map_max_entries(name, room.entries);
            }
        }
        let mut ebpf = loader.load(OBJECT)?;
        load_programs(&mut ebpf)?;
        let steps = continuations(&mut ebpf)?;
        set_layouts(&mut ebpf)?;
        let flush_log = if settings.kernel_log {
            let mut logger =
                EbpfLogger::init(&mut ebpf).map_err(|error| ProbeError::Log(error.to_string()))?;
            Some(Box::new(move || logger.flush()) as Box<dyn FnMut()>)
        } else {
            None
        };
        Ok(Self {
            targets: map(&mut ebpf, "TARGETS")?,
            connections: map(&mut ebpf, "CONNECTIONS")?,
            evictions: Evictions::open(&mut ebpf)?,
            counters: map(&mut ebpf, "COUNTERS")?,
            recipes: map(&mut ebpf, "RECIPES")?,
            filter: map(&mut ebpf, "FILTER")?,
            cooked: std::collections::HashSet::new(),
            ends: map(&mut ebpf, "ENDS")?,
            ended: std::collections::HashMap::new(),
            hooks: std::collections::HashMap::new(),
            sqlite: map(&mut ebpf, "SQLITE")?,
            sqlite_callers: map(&mut ebpf, "SQLITE_CALLERS")?,
            sqlite_places: std::collections::HashMap::new(),
            undertaker: None,
            _steps: steps,
            flush_log,
            ebpf,
        })
    }

    /// Every program's name and how many instructions the verifier looked
    /// at, where the kernel tells (5.16).
    pub fn programs(&self) -> Vec<(String, Option<u32>)> {
        let mut programs: Vec<_> = self
            .ebpf
            .programs()
            .map(|(name, program)| {
                let verified = program
                    .info()
                    .ok()
                    .and_then(|info| info.verified_instruction_count());
                (name.to_owned(), verified)
            })
            .collect();
        programs.sort();
        programs
    }

    /// Every program's name, how long it ran and how often, since the kernel
    /// keeps such statistics (`kernel.bpf_stats_enabled`). A program's time
    /// includes those that continue it.
    pub fn run_times(&self) -> Vec<(String, Duration, u64)> {
        self.ebpf
            .programs()
            .filter_map(|(name, program)| {
                let info = program.info().ok()?;
                Some((name.to_owned(), info.run_time(), info.run_count()))
            })
            .collect()
    }

    /// Attaches the tracepoint programs. Targets should be in place, so that
    /// nothing of theirs is missed.
    pub fn attach(&mut self) -> Result<(), ProbeError> {
        for (name, tracepoint) in TRACEPOINTS {
            let program: &mut RawTracePoint = program(&mut self.ebpf, name)?;
            program
                .attach(tracepoint)
                .map_err(|source| ProbeError::Program {
                    name: name.to_owned(),
                    source: Box::new(source),
                })?;
        }
        Ok(())
    }

    /// Attaches a function probe at an offset of a file, in one process and
    /// once per place.
    pub fn hook(
        &mut self,
        hook: Hook,
        pid: u32,
        path: &Path,
        offset: u64,
    ) -> Result<(), ProbeError> {
        let hooks = self.hooks.entry(pid).or_default();
        if hooks
            .iter()
            .any(|known| known.hook == hook && known.offset == offset)
        {
            return Ok(());
        }
        let scope = match NonZeroU32::new(pid) {
            Some(pid) => UProbeScope::OneProcess(pid),
            None => UProbeScope::CallingProcess,
        };
        let name = hook.program();
        let program: &mut UProbe = program(&mut self.ebpf, name)?;
        let link = program
            .attach(UProbeAttachLocation::AbsoluteOffset(offset), path, scope)
            .map_err(|source| ProbeError::Program {
                name: name.to_owned(),
                source: Box::new(source),
            })?;
        hooks.push(Hooked { hook, offset, link });
        Ok(())
    }

    /// Detaches the function probes of a process that has ended. Nobody comes
    /// to them any more, so that there is no need to wait, which would take
    /// seconds while the ring fills up.
    pub fn abandon(&mut self, pid: u32) {
        self.forget_sqlite(pid);
        let hooks = self.hooks.remove(&pid).unwrap_or_default();
        let links = self.take_links(hooks);
        if links.is_empty() {
            return;
        }
        let undertaker = match self.undertaker.take() {
            Some(undertaker) => undertaker,
            None => match Undertaker::start() {
                Ok(undertaker) => undertaker,
                // They are detached here and now.
                Err(error) => return tracing::warn!(%error, "cannot start a thread"),
            },
        };
        undertaker.take(links);
        self.undertaker = Some(undertaker);
    }

    /// Detaches the function probes of a process that changed its image.
    pub fn unhook(&mut self, pid: u32) {
        self.unhook_only(pid, |_| true);
        self.forget_sqlite(pid);
    }

    /// Makes the kernel forget a process's copies of SQLite.
    fn forget_sqlite(&mut self, pid: u32) {
        for place in self.sqlite_places.remove(&pid).unwrap_or_default() {
            let _absent = self.sqlite.remove(&place);
            let _absent = self.sqlite_callers.remove(&place);
        }
    }

    /// Tells the kernel how to read a copy of SQLite at a place that is to be
    /// probed.
    pub fn set_sqlite(
        &mut self,
        place: SqlitePlace,
        layout: &SqliteLayout,
    ) -> Result<(), ProbeError> {
        insert(&mut self.sqlite, "SQLITE", place, layout)?;
        self.sqlite_places.entry(place.pid).or_default().push(place);
        Ok(())
    }

    /// Tells the kernel what the stack of a function of Python's `sqlite3`
    /// holds, at a place that is to be probed.
    pub fn set_sqlite_caller(
        &mut self,
        place: SqlitePlace,
        caller: &SqliteCaller,
    ) -> Result<(), ProbeError> {
        insert(&mut self.sqlite_callers, "SQLITE_CALLERS", place, caller)?;
        self.sqlite_places.entry(place.pid).or_default().push(place);
        Ok(())
    }

    /// Detaches those function probes of a process that are of no use now.
    pub fn unhook_only(&mut self, pid: u32, useless: impl Fn(Hook) -> bool) {
        let hooks = self.hooks.remove(&pid).unwrap_or_default();
        let (gone, kept): (Vec<_>, Vec<_>) =
            hooks.into_iter().partition(|hooked| useless(hooked.hook));
        if !kept.is_empty() {
            self.hooks.insert(pid, kept);
        }
        self.detach(gone);
    }

    /// Detaches probes one after the other: the kernel waits for each until no
    /// processor can still be at it, and holds a lock of the whole machine
    /// meanwhile (`perf_uprobe_destroy`, kernel/trace/trace_event_perf.c).
    fn detach(&mut self, gone: Vec<Hooked>) {
        drop(self.take_links(gone));
    }

    /// Takes the links out of their programs: dropping one detaches its probe.
    fn take_links(&mut self, hooks: Vec<Hooked>) -> Vec<UProbeLink> {
        let mut links = Vec::new();
        for Hooked { hook, link, .. } in hooks {
            let program: Result<&mut UProbe, _> = program(&mut self.ebpf, hook.program());
            match program.map(|program| program.take_link(link)) {
                Ok(Ok(link)) => links.push(link),
                Ok(Err(error)) => tracing::debug!(%error, ?hook, "cannot detach a probe"),
                Err(_) => {}
            }
        }
        links
    }

    /// Begins to trace a process, or changes how it is read.
    pub fn set_target(&mut self, pid: u32, target: &Target) -> Result<(), ProbeError> {
        insert(&mut self.targets, "TARGETS", pid, target)
    }

    /// Stops tracing a process. It may be gone already.
    pub fn remove_target(&mut self, pid: u32) {
        let _absent = self.targets.remove(&pid);
    }

    /// Tells the kernel of a connection older than the attach; false if the
    /// kernel has seen the descriptor by itself meanwhile.
    pub fn seed(&mut self, descriptor: Descriptor, connection: &Connection) -> bool {
        /// `BPF_NOEXIST`: what the kernel side has seen is newer.
        const NO_EXIST: u64 = 1;
        self.connections
            .insert(descriptor, connection, NO_EXIST)
            .is_ok()
    }

    /// Makes the kernel forget a descriptor if it still holds this
    /// connection.
    pub fn forget(&mut self, descriptor: Descriptor, conn: u64) {
        let held = self.connections.get(&descriptor, 0);
        if held.is_ok_and(|connection| connection.id == conn) {
            let _absent = self.connections.remove(&descriptor);
        }
    }

    /// Tells the kernel what to read of the frames of a code object.
    pub fn set_recipes(&mut self, key: CodeKey, recipes: &Recipes) -> Result<(), ProbeError> {
        let mut recipes = *recipes;
        recipes.flags |= moments(&recipes);
        insert(&mut self.recipes, "RECIPES", key, &recipes)?;
        if self.cooked.insert(key) {
            self.filter(&key)?;
        }
        Ok(())
    }

    /// Tells the kernel that walks may end at a code object, or that they may
    /// not. Another one that has the same place loses it.
    pub fn set_end(&mut self, key: CodeKey, ends: bool) -> Result<(), ProbeError> {
        let slot = key.end_slot();
        let before = if ends {
            self.ended.insert(slot, key)
        } else if self.ended.get(&slot) == Some(&key) {
            self.ended.remove(&slot)
        } else {
            return Ok(());
        };
        let entry = if ends { key } else { CodeKey::default() };
        self.ends
            .set(slot, entry, 0)
            .map_err(|source| ProbeError::Map {
                name: "ENDS",
                source,
            })?;
        if let Some(before) = before {
            self.filter(&before)?;
        }
        self.filter(&key)
    }

    /// Makes the kernel forget a code object, which it may not know.
    pub fn remove_recipes(&mut self, key: CodeKey) {
        // The kernel refuses no write to an array.
        let _never_fails = self.set_end(key, false);
        if self.cooked.remove(&key) {
            // Without the recipes the filter may let through what it likes.
            let _too_much = self.filter(&key);
            let _absent = self.recipes.remove(&key);
        }
    }

    /// Makes the kernel forget all code objects of a group of processes.
    pub fn remove_group(&mut self, group: u32) {
        let of_group = |key: &&CodeKey| key.group == group;
        let known = self.cooked.iter().chain(self.ended.values());
        let keys: Vec<CodeKey> = known.filter(of_group).copied().collect();
        for key in keys {
            self.remove_recipes(key);
        }
    }

    /// Sets the key's bit in the filter, or clears it where no other key
    /// needs it.
    fn filter(&mut self, key: &CodeKey) -> Result<(), ProbeError> {
        let failed = |source| ProbeError::Map {
            name: "FILTER",
            source,
        };
        let bit = key.filter_bit();
        let mut known = self.cooked.iter().chain(self.ended.values());
        let needed = known.any(|other| other.filter_bit() == bit);
        let mut filter = self.filter.get(&0, 0).map_err(failed)?;
        let word = usize::try_from(bit / 64).unwrap_or(usize::MAX);
        if let Some(word) = filter.words.get_mut(word) {
            let mask = 1 << (bit % 64);
            *word = if needed { *word | mask } else { *word & !mask };
        }
        self.filter.set(0, filter, 0).map_err(failed)
    }

    /// Asks the kernel to record nothing more of a connection.
    pub fn mute(&mut self, conn: u64) {
        self.evictions.mute(conn);
    }

    /// Every kernel counter: name, value over all processors, whether it
    /// counts a loss.
    pub fn counters(&self) -> Vec<(&'static str, u64, bool)> {
        Counter::ALL
            .iter()
            .map(|&(counter, name, loss)| {
                let value = self
                    .counters
                    .get(&(counter as u32), 0)
                    .map_or(0, |per_cpu| per_cpu.iter().sum());
                (name, value, loss)
            })
            .collect()
    }

    /// How many entries of each table that evicts were evicted; as many at
    /// least, unless no process is a target any more.
    pub fn evictions(&self, settled: bool) -> Vec<(&'static str, u64)> {
        self.evictions.counters(settled)
    }

    /// Hands what the kernel side logged meanwhile to `tracing`.
    pub fn flush_log(&mut self) {
        if let Some(flush) = &mut self.flush_log {
            flush();
        }
    }

    /// Takes the event ring; there is only one reader.
    pub fn source(&mut self) -> Result<Source, ProbeError> {
        let ring = self
            .ebpf
            .take_map("EVENTS")
            .ok_or_else(|| ProbeError::Missing("map EVENTS".to_owned()))?;
        let ring = ring.try_into().map_err(|source| ProbeError::Map {
            name: "EVENTS",
            source,
        })?;
        Ok(Source::new(ring))
    }
}

impl Drop for Probes {
    fn drop(&mut self) {
        let hooks = std::mem::take(&mut self.hooks);
        self.detach(hooks.into_values().flatten().collect());
        // It ends when it has taken down what it was given.
        self.undertaker = None;
    }
}

fn insert<K: aya::Pod, V: aya::Pod>(
    map: &mut HashMap<MapData, K, V>,
    name: &'static str,
    key: K,
    value: &V,
) -> Result<(), ProbeError> {
    map.insert(key, value, 0)
        .map_err(|source| ProbeError::Map { name, source })
}

fn map<T: TryFrom<aya::maps::Map, Error = MapError>>(
    ebpf: &mut Ebpf,
    name: &'static str,
) -> Result<T, ProbeError> {
    ebpf.take_map(name)
        .ok_or_else(|| ProbeError::Missing(format!("map {name}")))?
        .try_into()
        .map_err(|source| ProbeError::Map { name, source })
}

/// Puts the programs that others continue with where those look for them.
fn continuations(ebpf: &mut Ebpf) -> Result<[ProgramArray<MapData>; 2], ProbeError> {
    let mut steps: ProgramArray<MapData> = map(ebpf, "STEPS")?;
    for (number, name) in (0..).zip(STEPS) {
        let program: &mut RawTracePoint = program(ebpf, name)?;
        continuation(&mut steps, number, name, "STEPS", program.fd())?;
    }
    let mut function_steps: ProgramArray<MapData> = map(ebpf, "FUNCTION_STEPS")?;
    for (number, name) in (1..).zip(FUNCTION_STEPS) {
        let program: &mut UProbe = program(ebpf, name)?;
        continuation(
            &mut function_steps,
            number,
            name,
            "FUNCTION_STEPS",
            program.fd(),
        )?;
    }
    Ok([steps, function_steps])
}

fn continuation(
    steps: &mut ProgramArray<MapData>,
    number: u32,
    name: &str,
    map: &'static str,
    descriptor: Result<&ProgramFd, ProgramError>,
) -> Result<(), ProbeError> {
    let descriptor = descriptor.map_err(|source| ProbeError::Program {
        name: name.to_owned(),
        source: Box::new(source),
    })?;
    steps
        .set(number, descriptor, 0)
        .map_err(|source| ProbeError::Map { name: map, source })
}

/// Tells the kernel where every CPython version keeps what.
fn set_layouts(ebpf: &mut Ebpf) -> Result<(), ProbeError> {
    let mut layouts: Array<MapData, Layout> = map(ebpf, "LAYOUTS")?;
    for (number, (_, layout)) in (0..).zip(&pyframes::layout::LAYOUTS) {
        layouts
            .set(number, Layout(*layout), 0)
            .map_err(|source| ProbeError::Map {
                name: "LAYOUTS",
                source,
            })?;
    }
    Ok(())
}

/// The moments of all recipes together, as [`Recipes::flags`] has them.
fn moments(recipes: &Recipes) -> u32 {
    let count = usize::try_from(recipes.count).unwrap_or(usize::MAX);
    let all = recipes.recipes.iter().take(count);
    all.fold(0, |moments, recipe| moments | recipe.moments) << recipes_flag::MOMENTS_SHIFT
}

fn program<'a, T>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut T, ProbeError>
where
    &'a mut T: TryFrom<&'a mut Program, Error = ProgramError>,
{
    ebpf.program_mut(name)
        .ok_or_else(|| ProbeError::Missing(format!("program {name}")))?
        .try_into()
        .map_err(|source| ProbeError::Program {
            name: name.to_owned(),
            source: Box::new(source),
        })
}

/// The names of all programs, for tests and `--load-only`.
pub fn program_names() -> Vec<&'static str> {
    let mut names: Vec<_> = TRACEPOINTS.iter().map(|&(name, _)| name).collect();
    names.extend(STEPS);
    names.extend(FUNCTION_STEPS);
    names.extend(FUNCTIONS);
    for (_, copied, created) in BIRTHS {
        names.extend([copied, created]);
    }
    names.sort_unstable();
    names
}
