//! Keys and values of the BPF maps that the agent writes or reads.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::record::Owner;

/// Bits of [`Target::flags`].
pub mod target_flag {
    /// The offsets in [`super::Target`] are filled in.
    pub const PYTHON: u32 = 1;
    /// The thread pointer leads to the key slot through one more pointer
    /// (musl), see [`super::Target::tss_indirect`].
    pub const TSS_INDIRECT: u32 = 2;
    /// The server creates a request's task inside the callback that reads
    /// the end of its head, on an event loop that reads outside any context
    /// (uvicorn on uvloop).
    pub const TASK_AFTER_READ: u32 = 4;
    /// Every way in which a `PyContext` comes into being is probed. Without
    /// it a context at a recycled address would keep its predecessor's owner,
    /// so contexts own nothing.
    pub const LINEAGE: u32 = 8;
    /// Stacks are walked where an answer begins, see
    /// [`crate::record::moment::RESPONSE`].
    pub const STACK_AT_RESPONSE: u32 = 16;
    /// Stacks are walked where a request begins, see
    /// [`crate::record::moment::REQUEST`].
    pub const STACK_AT_REQUEST: u32 = 32;
    /// The current greenlet of a thread can be read: the `greenlet_` fields of
    /// [`super::Target`] are filled in.
    pub const GREENLETS: u32 = 1 << 12;
    /// Births and ends of greenlets are probed. Without it a greenlet at a
    /// recycled address would keep its predecessor's owner, so greenlets own
    /// nothing.
    pub const GREENLET_OWNERS: u32 = 1 << 13;
    /// The process schedules greenlets, and which one is current cannot be
    /// read: outside entered contexts nothing is known of whose an event is.
    pub const GREENLETS_UNREADABLE: u32 = 1 << 14;
    /// `threading.Thread` runs in an entered context of its own (3.14).
    pub const THREAD_CONTEXTS: u32 = 64;
    /// The queues of executors are probed. Without it the thread of one would
    /// keep what it knew of an earlier work item.
    pub const WORK_ITEMS: u32 = 128;
    /// The calls through which plaintext passes to and from TLS sessions are
    /// probed.
    pub const TLS: u32 = 1 << 16;
    /// There are recipes of servers whose requests are served elsewhere than
    /// where they are read, see [`crate::record::moment::COPY`].
    pub const SERVERS: u32 = 1 << 8;
    /// There are functions that go on with what others have queued, see
    /// [`super::recipes_flag::FOREIGN`].
    pub const FOREIGN: u32 = 1 << 9;
    /// An event loop was loaded that reads and writes outside any context
    /// (uvloop's, Twisted's): any thread may have been in the middle of its
    /// turn when the agent came.
    pub const LOOPS_OUTSIDE: u32 = 1 << 10;
    /// A walk at [`crate::record::moment::REQUEST`] may end at the first frame
    /// whose code object is in `ENDS`, if nothing but the caller is asked for.
    pub const ENDS: u32 = 1 << 17;
    /// There are recipes for [`crate::record::moment::STATEMENT`].
    pub const STATEMENTS: u32 = 1 << 11;
    /// There are recipes for [`crate::record::moment::SERVING`].
    pub const SERVINGS: u32 = 1 << 15;
}

/// A traced process: value of `TARGETS`, keyed by process id.
///
/// Written by the agent, copied to children by the fork program.
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct Target {
    /// See [`target_flag`].
    pub flags: u32,
    /// Offset of `PyThreadState.thread_id`, bytes.
    pub tstate_thread_id: u32,
    /// Offset of `PyThreadState.context`, bytes.
    pub tstate_context: u32,
    /// Offset of `PyContext.ctx_entered`, bytes.
    pub context_entered: u32,
    /// Distance from the thread pointer (or, with
    /// [`target_flag::TSS_INDIRECT`], from the pointer found there) to the
    /// slot of CPython's `autoTSSkey`, bytes.
    pub tss_slot: i64,
    /// With [`target_flag::TSS_INDIRECT`]: distance from the thread pointer
    /// to the pointer to the slots, bytes.
    pub tss_indirect: i64,
    /// Offset of `_handle` in uvloop's `UVHandle` object, bytes.
    pub uv_handle: u32,
    /// Offset of `io_watcher.fd` in libuv's `uv_stream_t`, bytes.
    pub uv_fd: u32,
    /// Part of the key of every context; raised when lineage was not followed
    /// for a while, as addresses were used again unseen.
    pub epoch: u32,
    /// Index of the interpreter's layout in `LAYOUTS`.
    pub layout: u32,
    /// Part of the key of every recipe. A forked child runs its parent's code
    /// objects at the same addresses, and so has its group.
    pub group: u32,
    /// Zero.
    pub pad: u32,
    /// Address of the `ContextVar` whose reset is of interest, or 0.
    pub context_variable: u64,
    /// Address of the type `greenlet.greenlet`.
    pub greenlet_type: u64,
    /// Where a thread keeps the pointer to greenlet's state of it: the offset
    /// in the thread's block of [`Target::greenlet_module`], or without a
    /// module the distance from the thread pointer; bytes.
    pub greenlet_slot: i64,
    /// Number of greenlet's module of thread-local variables, or 0 if they
    /// are at a fixed distance from the thread pointer.
    pub greenlet_module: u32,
    /// Part of the key of every greenlet; never given twice by an agent, as
    /// an earlier one's greenlets ended unseen.
    pub greenlet_epoch: u32,
}

/// Offsets in kernel structures, taken from the running kernel's BTF by the
/// agent and patched into the programs as one global.
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct KernelOffsets {
    /// `task_struct.tgid`.
    pub task_tgid: u32,
    /// `task_struct.pid`.
    pub task_pid: u32,
    /// `task_struct.files`.
    pub task_files: u32,
    /// `task_struct.thread.fsbase` (x86_64) or `.thread.uw.tp_value`
    /// (aarch64).
    pub task_thread_pointer: u32,
    /// `task_struct.signal`.
    pub task_signal: u32,
    /// `signal_struct.live`.
    pub signal_live: u32,
    /// `files_struct.fdt`.
    pub files_fdt: u32,
    /// `fdtable.max_fds`.
    pub fdt_max_fds: u32,
    /// `fdtable.fd`.
    pub fdt_fd: u32,
    /// `file.private_data`.
    pub file_private_data: u32,
    /// `socket.file`: points back, which proves a file to be a socket.
    pub socket_file: u32,
    /// `socket.sk`.
    pub socket_sk: u32,
    /// `socket.type`.
    pub socket_type: u32,
    /// `sock_common.skc_family`.
    pub skc_family: u32,
    /// `sock_common.skc_daddr`.
    pub skc_daddr: u32,
    /// `sock_common.skc_rcv_saddr`.
    pub skc_rcv_saddr: u32,
    /// `sock_common.skc_dport`.
    pub skc_dport: u32,
    /// `sock_common.skc_num`.
    pub skc_num: u32,
    /// `sock_common.skc_v6_daddr`.
    pub skc_v6_daddr: u32,
    /// `sock_common.skc_v6_rcv_saddr`.
    pub skc_v6_rcv_saddr: u32,
    /// `unix_sock.addr`.
    pub unix_addr: u32,
    /// `unix_sock.peer`.
    pub unix_peer: u32,
    /// `unix_address.len`.
    pub unix_address_len: u32,
    /// `unix_address.name`.
    pub unix_address_name: u32,
}

/// Key of `CONNECTIONS`.
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct Descriptor {
    /// Process id.
    pub pid: u32,
    /// File descriptor.
    pub fd: i32,
}

/// A connection in the kernel: value of `CONNECTIONS`.
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct Connection {
    /// Unique id; also the generation of the descriptor.
    pub id: u64,
    /// Bytes received so far.
    pub received: u64,
    /// Bytes sent so far.
    pub sent: u64,
    /// The entered context in which bytes were received last, or 0: no other
    /// is owned by what was read in it.
    pub reader: u64,
    /// Payload bytes that may still be copied of the current message.
    pub budget: u32,
    /// System calls seen, wrapping.
    pub calls: u32,
    /// See [`crate::record::role`].
    pub role: u8,
    /// Direction of the last bytes, see [`crate::record::direction`].
    pub direction: u8,
    /// Non-zero: nothing of this connection is recorded any more.
    pub muted: u8,
    /// Non-zero: the stack was walked for the message that is being sent.
    pub walked: u8,
    /// See [`tls`].
    pub tls: u8,
    /// Non-zero: TLS records were last received outside any entered
    /// `PyContext`.
    pub outside: u8,
    /// Zero.
    pub pad: [u8; 2],
    /// With [`tls::JOINED`] the address of the process's `SSL`.
    pub ssl: u64,
    /// Whose the bytes are that an event loop's transport has queued and not
    /// yet written.
    pub queued: Owner,
    /// The rule by which, or why nobody's; 0 if nothing is queued.
    pub queued_rule: u32,
    /// Zero.
    pub pad2: u32,
}

/// Values of [`Connection::tls`].
pub mod tls {
    /// Nothing is known.
    pub const UNKNOWN: u8 = 0;
    /// Its bytes are no TLS.
    pub const PLAIN: u8 = 1;
    /// Its bytes are TLS records of a session that was not found (yet): they
    /// are not recorded.
    pub const SEALED: u8 = 2;
    /// Its session is known: what goes through that is recorded.
    pub const JOINED: u8 = 3;
    /// Its session was freed; another may follow.
    pub const PARTED: u8 = 4;
}

/// The structure offsets of one CPython version: value of `LAYOUTS`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Layout(pub pyframes::Layout);

/// Key of `SQLITE`: a probed place in a copy of SQLite.
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct SqlitePlace {
    /// Its address in the process.
    pub address: u64,
    /// Process id.
    pub pid: u32,
    /// Zero.
    pub pad: u32,
}

/// Where a copy of SQLite keeps what, found in its code: value of `SQLITE`.
/// Offsets in bytes.
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct SqliteLayout {
    /// Number of the register that holds the statement at the place: rax,
    /// rbx, rbp, rdi, r12 to r15.
    pub register: u32,
    /// Of a statement's text, in it.
    pub sql: u32,
    /// Of three numbers in a statement: of rows (twice, and one), the
    /// instruction's, and the result.
    pub counters: u32,
    /// Of the number of columns in a statement.
    pub columns: u32,
    /// In a connection, of the number of statements that run inside of each
    /// other.
    pub executing: u32,
    /// Of a file's name in the pager; 0 if that is not known.
    pub file_name: u32,
    /// Of the byte that says that there is no file, likewise.
    pub in_memory: u32,
    /// In a connection, of the last error's code.
    pub error: u32,
}

/// What the stack of a function of Python's `sqlite3` holds where: value of
/// `SQLITE_CALLERS`. Distances in bytes from the stack pointer at its entry.
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct SqliteCaller {
    /// The stack pointer at the probed place.
    pub moved: i32,
    /// Where a 1 says that a statement is run many times; 0 if it never is.
    pub many: i32,
    /// Of a function that compiles a statement, the stack pointer where what
    /// came of it is known.
    pub done: i32,
}

/// Key of `RECIPES`.
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct CodeKey {
    /// Address of the code object.
    pub code: u64,
    /// [`Target::group`].
    pub group: u32,
    /// Zero.
    pub pad: u32,
}

impl CodeKey {
    /// The bit of [`Filter`] that stands for the key, and others.
    #[inline(always)]
    pub const fn filter_bit(&self) -> u32 {
        // Objects are aligned to sixteen bytes; the product's highest bits
        // depend on all others.
        (self.hash() >> (64 - FILTER_BITS.ilog2())) as u32
    }

    /// The entry of `ENDS` that the key has, and others.
    #[inline(always)]
    pub const fn end_slot(&self) -> u32 {
        (self.hash() >> (64 - FILTER_BITS.ilog2() - ENDS.ilog2())) as u32 % ENDS
    }

    #[inline(always)]
    const fn hash(&self) -> u64 {
        let mixed = self.code >> 4 ^ (self.group as u64) << 32;
        mixed.wrapping_mul(0x9e37_79b9_7f4a_7c15)
    }
}

/// Entries of `ENDS`, a power of two: code objects at which a walk may end,
/// each in the one place that its key has.
pub const ENDS: u32 = 1 << 10;

/// Bits of a [`Filter`]: a power of two, many times the code objects with
/// recipes of a few processes. More would take more memory than a walk finds
/// in the processor's caches.
pub const FILTER_BITS: usize = 1 << 12;

/// Which code objects may be in `RECIPES` or `ENDS`: the only value of
/// `FILTER`. Most are in neither, and this is cheaper to ask.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Filter {
    /// See [`CodeKey::filter_bit`].
    pub words: [u64; FILTER_BITS / 64],
}

impl Filter {
    /// Lets nothing through.
    pub const EMPTY: Self = Self {
        words: [0; FILTER_BITS / 64],
    };

    /// Whether the key's bit is set.
    #[inline(always)]
    pub const fn has(&self, key: &CodeKey) -> bool {
        let bit = key.filter_bit();
        self.words[(bit / 64) as usize % (FILTER_BITS / 64)] >> (bit % 64) & 1 != 0
    }
}

/// Recipes of one code object; a power of two, so that a mask can prove the
/// bound.
pub const MAX_RECIPES: usize = 8;

/// What to do when a walk meets a code object: value of `RECIPES`.
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct Recipes {
    /// How many of `recipes` there are.
    pub count: u32,
    /// See [`recipes_flag`].
    pub flags: u32,
    /// The recipes.
    pub recipes: [Recipe; MAX_RECIPES],
}

/// Bits of [`Recipes::flags`].
pub mod recipes_flag {
    /// Frames outside this one are of no interest: the walk ends here.
    pub const LAST: u32 = 1;
    /// The frame is one of a task that serves one connection and no other.
    pub const BIND: u32 = 2;
    /// What is begun within the frame was queued by somebody else than its
    /// context tells.
    pub const FOREIGN: u32 = 4;
    /// Frames outside this one tell nothing of an answer that is given within
    /// it: a walk at [`crate::record::moment::RESPONSE`] ends here.
    pub const ANSWERS: u32 = 8;
    /// From this bit on the moments of all recipes together, one bit each;
    /// filled in where the recipes are handed to the kernel.
    pub const MOMENTS_SHIFT: u32 = 8;
}

/// One recipe: where it starts, its steps, and what is made of the object
/// that they lead to.
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct Recipe {
    /// Told with the value, see [`crate::record::Value::recipe`].
    pub id: u32,
    /// Index in `f_localsplus` of the variable to start from, [`RAISED`] or
    /// [`ARGUMENT`].
    pub slot: u32,
    /// At which moments it is run, a bit each, see
    /// [`crate::record::moment`].
    pub moments: u32,
    /// What the last object is: a [`crate::record::value`] kind, a
    /// [`terminal`] or [`UNTYPED`].
    pub terminal: u32,
    /// A number, see [`terminal`].
    pub key: u64,
    /// The steps; the first [`pyframes::recipe::op::END`] ends them.
    pub steps: [pyframes::recipe::Step; pyframes::recipe::MAX_STEPS],
}

/// [`Recipe::terminal`] of an object of which just the address is of interest:
/// its type is told as 0.
pub const UNTYPED: u32 = 1 << 5;

/// [`Recipe::terminal`] of a statement: a text or `bytes`; what is neither is
/// none.
pub const STATEMENT: u32 = UNTYPED + 1;

/// Values of [`Recipe::terminal`] that are no kinds of values.
pub mod terminal {
    /// A `socket.socket`: to the connection of its descriptor. Its type must
    /// be exactly that at `key`.
    pub const SOCKET: u32 = 64;
    /// A transport of uvloop: to the connection of its descriptor.
    pub const UVLOOP: u32 = 65;
    /// A container, which must have `key` items. Otherwise nothing that the
    /// frame leads to counts.
    pub const SIZE: u32 = 66;
    /// `None`, and nothing else, as for [`SIZE`].
    pub const NOTHING: u32 = 67;
}

/// [`Recipe::slot`] of the exception that is being raised.
pub const RAISED: u32 = u32::MAX;

/// [`Recipe::slot`] of the first argument of the method that the frame calls
/// of an instance of the class at [`Recipe::key`], if it is a statement or
/// leads to one: a dictionary by the first steps, what stands for a text by
/// those from [`pyframes::argument::COMPOSED`] on. What else
/// [`pyframes::argument::Wanted`] names is the key of two steps that are never
/// taken.
pub const ARGUMENT: u32 = u32::MAX - 1;

/// The step of such a recipe with the type of functions.
pub const FUNCTIONS: usize = pyframes::recipe::MAX_STEPS - 1;
/// The step with the class of what stands for a text.
pub const COMPOSED: usize = FUNCTIONS - 1;

/// [`CodeKey::code`] of the recipes of whatever frame is the innermost when a
/// client sends a request, if it has none of its own.
pub const INNERMOST: u64 = 0;

crate::pod!(
    Layout,
    SqlitePlace,
    SqliteLayout,
    SqliteCaller,
    Filter,
    CodeKey,
    Recipes,
    Recipe,
    Target,
    KernelOffsets,
    Descriptor,
    Connection
);
