//! Every BPF map, with its key, value, writer, reader and eviction.

use abi::counter::Evicting;
use abi::map::{
    CodeKey, Connection, Descriptor, Filter, Layout, Recipes, SqliteCaller, SqliteLayout,
    SqlitePlace, Target,
};
use abi::record::{Data, Owner, Stack};
use aya_ebpf::bindings::BPF_F_NO_PREALLOC;
use aya_ebpf::macros::map;
use aya_ebpf::maps::{Array, HashMap, LruHashMap, PerCpuArray, ProgramArray, RingBuf};
use pyframes::frame::{NEAR_LOCALS, Walker};
use pyframes::recipe::Scratch;

use crate::stacks::Moment;

/// Records for the agent. Written by every program, read by `source`. When
/// full, records are dropped and counted. The agent sets the size.
#[map]
pub(crate) static EVENTS: RingBuf = RingBuf::with_byte_size(8 * 1024 * 1024, 0);

/// Counter number → count. Written here, read by the agent's statistics.
#[map]
pub(crate) static COUNTERS: PerCpuArray<u64> = PerCpuArray::with_max_entries(64, 0);

/// Number of an [`Evicting`] table → the entries made in it less those
/// removed. Written here, read by the agent, which counts what was evicted.
#[map]
pub(crate) static HELD: PerCpuArray<u64> = PerCpuArray::with_max_entries(Evicting::SLOTS, 0);

/// Process id → how to read it. Written by the agent, and by the fork program
/// for children; removed at the end of the process.
#[map]
pub(crate) static TARGETS: HashMap<u32, Target> = HashMap::with_max_entries(4096, 0);

/// Descriptor → connection. Written at accept and connect and, for older
/// connections, by the agent; removed at close, and by the agent when the
/// process ends. When full, new connections are not recorded (counted).
#[map]
pub(crate) static CONNECTIONS: HashMap<Descriptor, Connection> =
    HashMap::with_max_entries(65536, 0);

/// Connection id → 1, written by the agent for connections of no interest,
/// read now and then. Evicts the oldest.
#[map]
pub(crate) static MUTED: LruHashMap<u64, u8> = LruHashMap::with_max_entries(16384, 0);

/// Thread (`pid_tgid`) → what it is doing. Written here, removed at the
/// thread's end. Evicts nothing: a thread whose entry was lost would pass for
/// one that is no event loop. When full, what further threads do is not seen
/// (counted), and see [`THREADS_LOST`].
#[map]
pub(crate) static THREADS: HashMap<u64, Thread> = HashMap::with_max_entries(32768, 0);

/// 0 → non-zero once [`THREADS`] had no room for a thread. Written here.
#[map]
pub(crate) static THREADS_LOST: Array<u32> = Array::with_max_entries(1, 0);

/// `PyContext` → owner. Written when a context is copied or a request is read
/// in it. Evicts the least used, which costs a parent.
#[map]
pub(crate) static CONTEXTS: LruHashMap<ContextKey, ContextOwner> =
    LruHashMap::with_max_entries(131_072, 0);

/// Greenlet → owner. Written when a greenlet is made on behalf of a request,
/// reads one or waits for many descriptors; removed when it ends. Evicts the
/// least used, which costs a parent.
#[map]
pub(crate) static GREENLETS: LruHashMap<GreenletKey, GreenletOwner> =
    LruHashMap::with_max_entries(65536, 0);

/// Object that was put into a `SimpleQueue` → on whose behalf. Written when
/// it is put: as long as somebody holds it, which is until it was worked on,
/// its address is no other object's. Evicts the least used, which costs a
/// parent.
#[map]
pub(crate) static WORK: LruHashMap<WorkKey, Work> = LruHashMap::with_max_entries(65536, 0);

/// `SSL` → the connection that carries it. Written when they are found to
/// belong together, or when something goes through a session before that;
/// removed when the session is freed. Evicts the least used,
/// which costs what it transfers from then on (counted).
#[map]
pub(crate) static SESSIONS: LruHashMap<TlsObject, TlsSession> =
    LruHashMap::with_max_entries(16384, 0);

/// First bytes of TLS records that were received → the connection that they
/// came from. Removed when they are put into a `BIO`. Evicts the least used,
/// which delays a join.
#[map]
pub(crate) static RECORDS: LruHashMap<TlsRecord, Received> = LruHashMap::with_max_entries(8192, 0);

/// The key of [`RECORDS`] that a program on system calls looks for; on the
/// stack it would not fit.
#[map]
pub(crate) static RECORD_KEY: PerCpuArray<TlsRecord> = PerCpuArray::with_max_entries(1, 0);

/// Probed place in a copy of SQLite → where that keeps what. Written by the
/// agent before it probes there, removed by it with the process.
#[map]
pub(crate) static SQLITE: HashMap<SqlitePlace, SqliteLayout> =
    HashMap::with_max_entries(8192, BPF_F_NO_PREALLOC);

/// Probed place in a function of Python's `sqlite3` → what its stack holds
/// where. Written and removed by the agent as `SQLITE`.
#[map]
pub(crate) static SQLITE_CALLERS: HashMap<SqlitePlace, SqliteCaller> =
    HashMap::with_max_entries(8192, BPF_F_NO_PREALLOC);

/// Statement of SQLite that runs, has rows left or has done so → this run of
/// it. Stays when it is reset or freed, for the next at its address. Evicts the
/// least used, whose run cannot be told of then, if it had not ended (the agent
/// counts it).
#[map]
pub(crate) static STATEMENTS: LruHashMap<StatementKey, Statement> =
    LruHashMap::with_max_entries(16384, 0);

/// The transfer that `syscall_exit` and its continuations are recording; no
/// other program may use it. On the stack it would not fit.
#[map]
pub(crate) static SCRATCH: PerCpuArray<Pending> = PerCpuArray::with_max_entries(1, 0);

/// Index of a CPython version → its structure offsets. Written by the agent
/// before it attaches anything.
#[map]
pub(crate) static LAYOUTS: Array<Layout> = Array::with_max_entries(16, 0);

/// Code object → what is to be read of its frames. Written by the agent, and
/// removed by it with the last process of the group.
#[map]
pub(crate) static RECIPES: HashMap<CodeKey, Recipes> =
    HashMap::with_max_entries(4096, BPF_F_NO_PREALLOC);

/// 0 → which code objects may be in [`RECIPES`] or [`ENDS`]. Written by the
/// agent, always so that none is missing.
#[map]
pub(crate) static FILTER: Array<Filter> = Array::with_max_entries(1, 0);

/// [`CodeKey::end_slot`] → a code object that a walk may end at. Written by
/// the agent, which replaces what is there; stale ones it finds by what a walk
/// then tells.
#[map]
pub(crate) static ENDS: Array<CodeKey> = Array::with_max_entries(abi::map::ENDS, 0);

/// The walk that is under way, for each [`chain`]; on the stack it would not
/// fit.
#[map]
pub(crate) static WALK: PerCpuArray<Walk> = PerCpuArray::with_max_entries(2, 0);

/// Processor → 1 while a program on a function walks there. A kernel may
/// interrupt it for another thread's, which then finds the entry. Written
/// and removed here.
#[map]
pub(crate) static WALKING: HashMap<u32, u32> = HashMap::with_max_entries(1024, 0);

/// Keys of [`WALK`]: programs on system calls run undisturbed, those on
/// functions may be interrupted by either.
pub(crate) mod chain {
    /// Programs on system calls.
    pub(crate) const SYSCALL: u32 = 0;
    /// Programs on functions.
    pub(crate) const FUNCTION: u32 = 1;
}

/// Number of a [`step`] → the program on system calls that does it. Written
/// by the agent before it attaches anything.
#[map]
pub(crate) static STEPS: ProgramArray = ProgramArray::with_max_entries(8, 0);

/// Number of a [`step`] → the program on functions that does it; the kernel
/// wants programs of one kind in an array. Written as [`STEPS`].
#[map]
pub(crate) static FUNCTION_STEPS: ProgramArray = ProgramArray::with_max_entries(8, 0);

/// Keys of [`STEPS`] and [`FUNCTION_STEPS`].
pub(crate) mod step {
    /// `vector_element`; on system calls only.
    pub(crate) const ELEMENT: u32 = 0;
    /// `walk_frames`.
    pub(crate) const FRAMES: u32 = 1;
    /// `run_recipe`.
    pub(crate) const RECIPE: u32 = 2;
    /// `copy_exception`.
    pub(crate) const EXCEPTION: u32 = 3;
    /// `transfer`; on system calls only.
    pub(crate) const TRANSFER: u32 = 4;
    /// `server_frames`; on functions only.
    pub(crate) const SERVER: u32 = 4;
    /// `server_recipe`; on functions only.
    pub(crate) const CONNECTION: u32 = 5;
    /// `copy_notes`; on system calls only.
    pub(crate) const NOTES: u32 = 5;
    /// `query_begun`; on functions only.
    pub(crate) const QUERY: u32 = 6;
    /// `judge_transfer`; on system calls only.
    pub(crate) const JUDGE: u32 = 6;
    /// `probe_notes`; on functions only.
    pub(crate) const FUNCTION_NOTES: u32 = 7;
}

/// Value of [`SCRATCH`].
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Pending {
    /// The record to be written.
    pub(crate) data: Data,
    /// Address of the next element of its I/O vector, or of its buffer.
    pub(crate) vector: u64,
    /// Elements that may still be looked at, or that it is one buffer.
    pub(crate) elements: u64,
    /// Bytes that those hold.
    pub(crate) left: u64,
    /// The walk that is made before.
    pub(crate) walk: Moment,
}

/// Value of [`WALK`].
#[repr(C)]
pub(crate) struct Walk {
    /// The frames that are left.
    pub(crate) walker: Walker,
    /// For running recipes.
    pub(crate) scratch: Scratch,
    /// Address of the thread's `PyThreadState`.
    pub(crate) tstate: u64,
    /// Moments whose recipes are run, a bit each.
    pub(crate) moments: u32,
    /// Index in [`LAYOUTS`].
    pub(crate) layout: u32,
    /// Non-zero: the walker has begun.
    pub(crate) started: u32,
    /// Non-zero: a transfer waits for the walk's end, or the end of a statement
    /// that does not compile.
    pub(crate) transfer: u32,
    /// Values that may still be looked for.
    pub(crate) left: u32,
    /// How many [`Walk::hits`] there are.
    pub(crate) hits_len: u32,
    /// The hit whose recipes are being run.
    pub(crate) hit: u32,
    /// Which of them is next.
    pub(crate) recipe: u32,
    /// Bytes of [`Walk::body`] in use.
    pub(crate) used: u32,
    /// Frames so far.
    pub(crate) depth: u32,
    /// Non-zero: goes on beyond [`abi::map::recipes_flag::LAST`].
    pub(crate) whole: u32,
    /// Non-zero: may end at a frame in [`ENDS`], unless a statement is still
    /// asked for.
    pub(crate) ends: u32,
    /// Non-zero: a statement is asked for and was not met yet.
    pub(crate) statement: u32,
    /// Non-zero: the owner of [`Walk::child`] is known, unless the copy turns
    /// out to be made for somebody else.
    pub(crate) known: u32,
    /// The context that is about to get an owner, or 0.
    pub(crate) child: u64,
    /// The entered context that it is a copy of, or 0.
    pub(crate) parent: u64,
    /// The variable that was read last.
    pub(crate) local: Local,
    /// Frames whose code has recipes.
    pub(crate) hits: [Hit; MAX_HITS],
    /// The exception that is being copied.
    pub(crate) exception: Raised,
    /// The record's beginning; the rest follows it.
    pub(crate) stack: Stack,
    /// Frames and values, with room for a length that is not checked yet.
    pub(crate) body: [u8; BODY_BYTES + MAX_VALUE_BYTES],
}

/// Key of [`STATEMENTS`].
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct StatementKey {
    /// Its address.
    pub(crate) statement: u64,
    /// Process id.
    pub(crate) pid: u32,
    /// Zero.
    pub(crate) pad: u32,
}

/// A run of a statement: value of [`STATEMENTS`].
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Statement {
    /// See [`abi::record::Query::id`]; 0 if the run is over.
    pub(crate) id: u64,
    /// See [`statement_part`].
    pub(crate) part: u64,
    /// See [`crate::seal`].
    pub(crate) seal: u64,
}

/// Values of [`Statement::part`].
pub(crate) mod statement_part {
    /// Of no call that runs several.
    pub(crate) const SINGLE: u64 = 0;
    /// Of a call, and its text is to be told.
    pub(crate) const TOLD: u64 = 1;
    /// Of a call, with the text that was told with the first.
    pub(crate) const REPEATED: u64 = 2;
}

/// A call of Python's `sqlite3` that runs several statements.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct SqliteCall {
    /// See [`sqlite_call`]; 0 if there is none.
    pub(crate) kind: u32,
    /// Where the frame that called it stands as long as it goes on.
    pub(crate) standing: u32,
    /// 1 while a statement of it runs.
    pub(crate) running: u32,
    /// How many statements have ended under `id`.
    pub(crate) ran: u32,
    /// The stack pointer at the function's entry.
    pub(crate) entry: u64,
    /// What it returns to.
    pub(crate) back: u64,
    /// Where the function holds that it runs a statement many times.
    pub(crate) many: u64,
    /// The Python frame that called it.
    pub(crate) frame: u64,
    /// [`abi::record::Query::id`] of what it runs; 0 if it has run nothing yet.
    pub(crate) id: u64,
    /// The first statement, and its connection.
    pub(crate) statement: u64,
    /// See `statement`.
    pub(crate) connection: u64,
    /// The stack pointer where the first began.
    pub(crate) stack: u64,
    /// When the last one began or ended.
    pub(crate) last: u64,
}

impl SqliteCall {
    /// No call.
    pub(crate) const NONE: Self = Self {
        kind: 0,
        standing: 0,
        running: 0,
        ran: 0,
        entry: 0,
        back: 0,
        many: 0,
        frame: 0,
        id: 0,
        statement: 0,
        connection: 0,
        stack: 0,
        last: 0,
    };
}

/// A statement that SQLite was asked to compile.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Compiled {
    /// Where its text is; 0 for none.
    pub(crate) text: u64,
    /// Its connection.
    pub(crate) connection: u64,
    /// The stack pointer at the call.
    pub(crate) entry: u64,
    /// What the call returns to.
    pub(crate) back: u64,
    /// The stack pointer where what came of it is known.
    pub(crate) done: u64,
    /// When.
    pub(crate) at: u64,
    /// The error's code, if it was looked at.
    pub(crate) code: u64,
}

impl Compiled {
    /// No statement.
    pub(crate) const NONE: Self = Self {
        text: 0,
        connection: 0,
        entry: 0,
        back: 0,
        done: 0,
        at: 0,
        code: 0,
    };
}

/// Values of [`SqliteCall::kind`].
pub(crate) mod sqlite_call {
    /// `executemany`.
    pub(crate) const MANY: u32 = 1;
    /// `executescript`.
    pub(crate) const SCRIPT: u32 = 2;
}

/// A local variable of a frame.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Local {
    /// The frame's address, or 0 for none.
    pub(crate) frame: u64,
    /// See [`abi::map::Recipe::slot`].
    pub(crate) slot: u64,
    /// The object that it holds, or 0 if it is not bound.
    pub(crate) object: u64,
}

/// A frame whose code has recipes.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Hit {
    /// Its address.
    pub(crate) frame: u64,
    /// Its code object.
    pub(crate) code: u64,
    /// Its index in the walk.
    pub(crate) index: u64,
    /// How many of its first variables were read with it.
    pub(crate) near: u64,
    /// These, as they were read.
    pub(crate) locals: [u64; NEAR_LOCALS],
}

/// An exception that is being copied.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Raised {
    /// Address of the exception; up to 3.11 of what it is to be made of.
    pub(crate) address: u64,
    /// Address of its type, where that is known, or 0.
    pub(crate) type_address: u64,
    /// Its traceback as the thread has it, or 0.
    pub(crate) traceback: u64,
    /// The code object and instruction of a frame that the traceback lacks
    /// yet; no code object if it lacks none.
    pub(crate) code: u64,
    /// See `code`: as [`abi::record::Traceback::lasti`].
    pub(crate) lasti: i32,
    /// Exceptions before it in its chain.
    pub(crate) depth: u32,
    /// [`abi::map::Recipe::id`] of the recipe that led to it.
    pub(crate) recipe: u32,
    /// Index of its frame in the walk.
    pub(crate) frame: u16,
    /// [`abi::record::Value::part`].
    pub(crate) part: u8,
    /// Zero.
    pub(crate) pad: u8,
    /// The next entry of its traceback.
    pub(crate) entry: u64,
    /// How many were copied.
    pub(crate) entries: u64,
    /// Address of a tuple of its arguments, or 0.
    pub(crate) args: u64,
    /// Address of what is its only argument, or 0.
    pub(crate) only: u64,
    /// Address of the exception that is next in its chain, or 0.
    pub(crate) next: u64,
    /// [`abi::record::Value::part`] of that one.
    pub(crate) next_part: u64,
    /// Address of its `__dict__`, or 0.
    pub(crate) dict: u64,
    /// Address of the tuple of its members, if it may be a group, or 0.
    pub(crate) members: u64,
    /// The same of the exception that the recipe led to.
    pub(crate) group: u64,
    /// How many of those were looked at.
    pub(crate) member: u64,
}

/// Frames whose code has recipes that a walk notes.
pub(crate) const MAX_HITS: usize = 16;
/// Bytes of a record behind its beginning, at most, and less than a power of
/// two: 64 frames and 6 KiB of values.
pub(crate) const BODY_BYTES: usize = 8192;
/// The most bytes that a value takes.
pub(crate) const MAX_VALUE_BYTES: usize = 2048;

/// A thread of a target process.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Thread {
    /// When its current system call began, nanoseconds.
    pub(crate) entered: u64,
    /// The request it read last and may work on, by the thread rule.
    pub(crate) owner: Owner,
    /// The server bytes it read last.
    pub(crate) read: Owner,
    /// The entered context in which it waited last for many descriptors: that
    /// of its event loop. 0 if that was outside any context.
    pub(crate) loop_context: u64,
    /// The greenlet in which it waited last for many descriptors, or 0.
    pub(crate) loop_greenlet: u64,
    /// The frame of `concurrent.futures.thread._worker` that the thread runs
    /// in, its code object and the slot of its `work_item`; 0 if it is not
    /// known to be an executor's.
    pub(crate) work_frame: u64,
    /// See `work_frame`.
    pub(crate) work_code: u64,
    /// See `work_frame`.
    pub(crate) work_slot: u32,
    /// [`Target::epoch`] when the thread last asked for a work item.
    pub(crate) work_epoch: u32,
    /// The descriptor whose bytes `read` names.
    pub(crate) read_fd: i32,
    /// See [`thread_flag`].
    pub(crate) flags: u32,
    /// `Target::greenlet_epoch` when one of its greenlets waited last for
    /// many descriptors: had another one been an event loop then, that would
    /// be known.
    pub(crate) greenlet_epoch: u32,
    /// The rule by which `owner` is the thread's, or why it has none; 0 for
    /// [`abi::record::rule::THREAD`].
    pub(crate) rule: u32,
    /// With [`thread_flag::IN_TLS`] the call.
    pub(crate) call: TlsCall,
    /// What it put into a `BIO` last; no connection if that was used.
    pub(crate) fed: Fed,
    /// The call of Python's `sqlite3` that it is in, or was.
    pub(crate) sqlite: SqliteCall,
    /// The statement of SQLite that it compiles; no text if it does not.
    pub(crate) compiled: Compiled,
}

impl Thread {
    /// A thread of which nothing is known.
    pub(crate) const NONE: Self = Self {
        entered: 0,
        owner: Owner { conn: 0, offset: 0 },
        read: Owner { conn: 0, offset: 0 },
        loop_context: 0,
        loop_greenlet: 0,
        work_frame: 0,
        work_code: 0,
        work_slot: 0,
        work_epoch: 0,
        read_fd: 0,
        flags: 0,
        greenlet_epoch: 0,
        rule: 0,
        call: TlsCall {
            ssl: 0,
            buffer: 0,
            len: 0,
            transferred: 0,
            started: 0,
        },
        fed: Fed {
            bio: 0,
            carrier: TlsCarrier::NOWHERE,
        },
        sqlite: SqliteCall::NONE,
        compiled: Compiled::NONE,
    };
}

/// Bits of [`Thread::flags`].
pub(crate) mod thread_flag {
    /// It waits on many descriptors at a time: an event loop.
    pub(crate) const EVENT_LOOP: u32 = 1;
    /// `read` was not followed by a wait or a context copy yet.
    pub(crate) const FRESH_READ: u32 = 2;
    /// It sent something on the connection of `owner`.
    pub(crate) const ANSWERED: u32 = 4;
    /// It was seen to return from a wait or an `accept`: had it been an event
    /// loop, that would be known.
    pub(crate) const WAITED: u32 = 8;
    /// A context took `read` over, and there was no wait or read since.
    pub(crate) const TAKEN: u32 = 16;
    /// It is inside a function that copies a context it was given, not the
    /// current one.
    pub(crate) const EXPLICIT: u32 = 32;
    /// It is an executor's, has done nothing since it asked for its next work
    /// item that would say otherwise, and so belongs to who submitted that.
    pub(crate) const WORKS: u32 = 64;
    /// It was started while its process was traced: all that it ever did was
    /// seen.
    pub(crate) const BORN: u32 = 128;
    /// It may be one for which there was no room for a while: what it did
    /// then is not known. Until it waits.
    pub(crate) const UNSURE: u32 = 256;
    /// It has executed its program while its process was traced, or its process
    /// was forked by such a thread: what the agent has told of the process may
    /// be true of the program before.
    pub(crate) const EXECUTED: u32 = 512;
    /// It is inside a call that reads from or writes to a TLS session.
    pub(crate) const IN_TLS: u32 = 1 << 16;
}

/// Key of [`CONTEXTS`].
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct ContextKey {
    /// Address of the `PyContext`.
    pub(crate) context: u64,
    /// Process id.
    pub(crate) pid: u32,
    /// `Target::epoch` at the time of writing: what was noted before a pause
    /// is not found any more.
    pub(crate) epoch: u32,
}

/// Value of [`CONTEXTS`].
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct ContextOwner {
    /// Whose; `conn` 0 means nobody's.
    pub(crate) owner: Owner,
    /// The rule by which events in this context are owned.
    pub(crate) rule: u32,
    /// Non-zero: the owner's bytes were read in this very context, which is
    /// therefore the server's own.
    pub(crate) direct: u32,
    /// Of [`abi::record::rule::BOUND`] the owner's descriptor.
    pub(crate) fd: i32,
    /// Zero.
    pub(crate) pad: u32,
    /// See [`crate::seal`].
    pub(crate) seal: u64,
}

/// Key of [`GREENLETS`].
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct GreenletKey {
    /// Address of the greenlet.
    pub(crate) greenlet: u64,
    /// Process id.
    pub(crate) pid: u32,
    /// `Target::greenlet_epoch`.
    pub(crate) epoch: u32,
}

/// Value of [`GREENLETS`].
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct GreenletOwner {
    /// Whose; `conn` 0 means nobody's.
    pub(crate) owner: Owner,
    /// The rule by which events in this greenlet are owned, or
    /// `rule::EVENT_LOOP`: it waits for many descriptors, and never owns.
    pub(crate) rule: u32,
    /// The thread that noted it. A greenlet that was made on one thread and
    /// runs on another (as gevent's workers of a thread pool) is not the
    /// maker's.
    pub(crate) tid: u32,
    /// See [`crate::seal`].
    pub(crate) seal: u64,
}

/// Key of [`WORK`].
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct WorkKey {
    /// Address of the object.
    pub(crate) item: u64,
    /// Process id.
    pub(crate) pid: u32,
    /// `Target::epoch` at the time of writing.
    pub(crate) epoch: u32,
}

/// Value of [`WORK`].
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Work {
    /// Whose; `conn` 0 means nobody's.
    pub(crate) owner: Owner,
    /// By which rule what is done with the object is owned, or why not.
    pub(crate) rule: u64,
    /// See [`crate::seal`].
    pub(crate) seal: u64,
}

/// A call that reads from or writes to a TLS session.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct TlsCall {
    /// Address of the `SSL`.
    pub(crate) ssl: u64,
    /// The plaintext's buffer.
    pub(crate) buffer: u64,
    /// Its length, bytes.
    pub(crate) len: u64,
    /// Where the call puts the number of bytes transferred, or 0 if it
    /// returns it.
    pub(crate) transferred: u64,
    /// When it began.
    pub(crate) started: u64,
}

/// Key of [`SESSIONS`].
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct TlsObject {
    /// Address of the `SSL`.
    pub(crate) ssl: u64,
    /// Process id.
    pub(crate) pid: u32,
    /// Zero.
    pub(crate) pad: u32,
}

/// Value of [`SESSIONS`].
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct TlsSession {
    /// Its connection; no id if that is not known.
    pub(crate) carrier: TlsCarrier,
    /// Bytes that were written before it was known.
    pub(crate) held: u64,
    /// Non-zero: bytes were read before it was known, and are lost.
    pub(crate) torn: u64,
    /// See [`crate::seal`].
    pub(crate) seal: u64,
}

/// A connection that carries TLS.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct TlsCarrier {
    /// Connection id; 0 if none is known.
    pub(crate) conn: u64,
    /// Its descriptor.
    pub(crate) fd: i32,
    /// Zero.
    pub(crate) pad: u32,
}

impl TlsCarrier {
    /// No connection.
    pub(crate) const NOWHERE: Self = Self {
        conn: 0,
        fd: -1,
        pad: 0,
    };
}

/// Value of [`RECORDS`].
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Received {
    /// Where they came from; no id if several connections came with the same
    /// bytes.
    pub(crate) carrier: TlsCarrier,
    /// See [`crate::seal`].
    pub(crate) seal: u64,
}

/// Bytes by which TLS records are recognised.
pub(crate) const RECORD_BYTES: usize = 64;

/// Key of [`RECORDS`].
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct TlsRecord {
    /// The first bytes of what was received.
    pub(crate) bytes: [u8; RECORD_BYTES],
    /// Process id.
    pub(crate) pid: u32,
    /// Zero.
    pub(crate) pad: u32,
}

/// What a thread put into a `BIO`.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Fed {
    /// Address of the `BIO`.
    pub(crate) bio: u64,
    /// The connection whose records it was given.
    pub(crate) carrier: TlsCarrier,
}
