//! Every BPF map, with its key, value, writer, reader and eviction.

use abi::map::{Connection, Descriptor, Target};
use abi::record::{Data, Owner};
use aya_ebpf::macros::map;
use aya_ebpf::maps::{HashMap, LruHashMap, PerCpuArray, ProgramArray, RingBuf};

/// Records for the agent. Written by every program, read by `source`. When
/// full, records are dropped and counted. The agent sets the size.
#[map]
pub(crate) static EVENTS: RingBuf = RingBuf::with_byte_size(8 * 1024 * 1024, 0);

/// Counter number → count. Written here, read by the agent's statistics.
#[map]
pub(crate) static COUNTERS: PerCpuArray<u64> = PerCpuArray::with_max_entries(32, 0);

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
/// thread's end; evicts the least used, which costs a parent, never gives a
/// wrong one.
#[map]
pub(crate) static THREADS: LruHashMap<u64, Thread> = LruHashMap::with_max_entries(32768, 0);

/// `PyContext` → owner. Written when a context is copied or a request is read
/// in it. Evicts the least used, which costs a parent.
#[map]
pub(crate) static CONTEXTS: LruHashMap<ContextKey, ContextOwner> =
    LruHashMap::with_max_entries(131_072, 0);

/// Descriptor → owner of the bytes queued on it by an event loop's transport
/// and not yet written. Evicts the least used, which costs a parent.
#[map]
pub(crate) static QUEUED: LruHashMap<Descriptor, Queued> = LruHashMap::with_max_entries(16384, 0);

/// The transfer that `syscall_exit` and its continuations are recording; no
/// other program may use it. On the stack it would not fit.
#[map]
pub(crate) static SCRATCH: PerCpuArray<Pending> = PerCpuArray::with_max_entries(1, 0);

/// Number of a [`step`] → the program that does it. Written by the agent
/// before it attaches anything.
#[map]
pub(crate) static STEPS: ProgramArray = ProgramArray::with_max_entries(1, 0);

/// Keys of [`STEPS`].
pub(crate) mod step {
    /// `vector_element`.
    pub(crate) const ELEMENT: u32 = 0;
}

/// Value of [`SCRATCH`].
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Pending {
    /// The record to be written.
    pub(crate) data: Data,
    /// Address of the next element of its I/O vector.
    pub(crate) vector: u64,
    /// Elements that may still be looked at.
    pub(crate) elements: u64,
    /// Bytes that those hold.
    pub(crate) left: u64,
}

/// A thread of a target process.
#[repr(C)]
#[derive(Clone, Copy, Default)]
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
    /// The descriptor whose bytes `read` names.
    pub(crate) read_fd: i32,
    /// See [`thread_flag`].
    pub(crate) flags: u32,
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
}

/// Value of [`QUEUED`].
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Queued {
    /// Connection id, so that a reused descriptor is noticed.
    pub(crate) conn: u64,
    /// Whose.
    pub(crate) owner: Owner,
    /// The rule, already in its queued form.
    pub(crate) rule: u32,
    /// Zero.
    pub(crate) pad: u32,
}
