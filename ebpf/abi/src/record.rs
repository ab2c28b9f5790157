//! Records in the `EVENTS` ring buffer.
//!
//! Every record starts with its [`kind`]. The agent checks kind and length
//! before it believes the rest. Times are `CLOCK_MONOTONIC` nanoseconds
//! (`bpf_ktime_get_ns`).

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Values of the first byte of a record.
pub mod kind {
    /// [`super::Data`], followed by `captured` payload bytes.
    pub const DATA: u8 = 1;
    /// [`super::Open`].
    pub const OPEN: u8 = 2;
    /// [`super::Close`].
    pub const CLOSE: u8 = 3;
    /// [`super::Process`]: a target process forked; `pid` is the child.
    pub const FORK: u8 = 4;
    /// [`super::Process`]: a target process replaced its image.
    pub const EXEC: u8 = 5;
    /// [`super::Process`]: the last thread of a target process ended.
    pub const EXIT: u8 = 6;
    /// [`super::Process`]: a target process began to listen on a socket.
    pub const LISTEN: u8 = 7;
    /// [`super::Stack`], followed by frames and values.
    pub const STACK: u8 = 8;
    /// [`super::Data`], followed by `captured` payload bytes, written to a TLS
    /// session whose connection is not known yet: `conn` is the address of the
    /// `SSL`, and `offset` counts from the first such byte.
    pub const TLS_HELD: u8 = 10;
    /// [`super::TlsJoin`].
    pub const TLS_JOIN: u8 = 11;
    /// [`super::Query`]: a statement of a database in the process began.
    pub const QUERY: u8 = 12;
    /// [`super::QueryEnd`], followed by its name and its text.
    pub const QUERY_END: u8 = 13;
    /// How many kinds there are, unused ones included.
    pub const COUNT: usize = 14;
}

/// Values of [`Data::direction`].
pub mod direction {
    /// Bytes the process received.
    pub const RECEIVED: u8 = 0;
    /// Bytes the process sent.
    pub const SENT: u8 = 1;
}

/// Values of [`Open::role`] and of a connection's role in the kernel.
pub mod role {
    /// Not known yet: a connection that is older than the attach.
    pub const UNKNOWN: u8 = 0;
    /// The process called `connect`.
    pub const CLIENT: u8 = 1;
    /// The process called `accept`.
    pub const SERVER: u8 = 2;
}

/// Values of [`Data::rule`]: by which evidence the kernel found the owner of
/// an event, or why it found none.
pub mod rule {
    /// Not asked for: a server connection's own traffic owns itself.
    pub const NONE: u8 = 0;
    /// The thread's current `PyContext`, or one it was copied from, was
    /// current when the owner's request was read.
    pub const CONTEXT: u8 = 1;
    /// The thread read the owner's request, has waited for nothing else
    /// since, and runs outside any entered `PyContext`.
    pub const THREAD: u8 = 2;
    /// As [`CONTEXT`], with one link inferred: the context was the first to
    /// be copied after the owner's bytes were read by an event loop that
    /// reads outside any context (uvloop). Holds only if those bytes
    /// completed the request's head, which the agent checks.
    pub const CONTEXT_AFTER_READ: u8 = 3;
    /// The bytes were queued by an event loop's transport earlier; the owner
    /// is the one found (by context) when they were queued.
    pub const QUEUED: u8 = 4;
    /// As [`QUEUED`] with a link inferred as in [`CONTEXT_AFTER_READ`].
    pub const QUEUED_AFTER_READ: u8 = 5;
    /// The thread's current greenlet read the owner's request, and waited for
    /// nothing else by itself since.
    pub const GREENLET: u8 = 8;
    /// The thread's current greenlet was made on behalf of the owner's
    /// request, on this thread.
    pub const SPAWNED: u8 = 11;
    /// The thread is an executor's and works on what the owner's request
    /// submitted.
    pub const WORK_ITEM: u8 = 6;
    /// The thread, or the process, was started by the application's own code
    /// on behalf of the owner's request.
    pub const STARTED: u8 = 7;
    /// A frame of the server's own, on the thread's stack when the context or
    /// one it was copied from was made (or when the bytes were sent), holds
    /// the connection, and the owner's bytes were the last that it received.
    pub const FRAME: u8 = 9;
    /// As [`FRAME`], but the frame was seen earlier in this very context, and
    /// the connection has received nothing since.
    pub const BOUND: u8 = 10;
    /// No owner: the context descends from no request that was seen (it is
    /// older than the attach, evicted, or background work's).
    pub const UNOWNED_CONTEXT: u8 = 16;
    /// No owner: an event loop's thread outside any context.
    pub const EVENT_LOOP: u8 = 18;
    /// No owner: the thread has read no request.
    pub const IDLE_THREAD: u8 = 19;
    /// No owner: the thread's `PyThreadState` could not be read.
    pub const NO_THREAD_STATE: u8 = 20;
    /// No owner: bytes of several owners were queued on one connection.
    pub const MIXED_QUEUE: u8 = 21;
    /// No owner: the greenlet has read no request, and was made on behalf of
    /// none that was seen.
    pub const UNOWNED_GREENLET: u8 = 28;
    /// No owner: the process uses greenlets, and the current one cannot be
    /// read, or births and ends of greenlets are not seen.
    pub const UNSEEN_GREENLET: u8 = 29;
    /// No owner: the work was handed over by a thread that had begun to
    /// answer the request it read last, and may have been done with it.
    pub const AFTER_ANSWER: u8 = 24;
    /// No owner: the thread is an executor's and works on what no request
    /// submitted, or none that was seen.
    pub const UNOWNED_WORK: u8 = 25;
    /// No owner: the thread, or the process, was started during a request,
    /// but not by the application's own code.
    pub const FOREIGN_START: u8 = 26;
    /// No owner: a server's frame was there, but did not lead to an open
    /// connection.
    pub const FRAME_UNRESOLVED: u8 = 30;
    /// No owner: a server's frame was there, but its connection has received
    /// more than the frame has taken up.
    pub const FRAME_AHEAD: u8 = 31;
}

/// Bits of [`Data::flags`].
pub mod flag {
    /// The system call moved bytes without showing them (`sendfile`).
    pub const UNSEEN: u8 = 1;
    /// The bytes are what the application read from or wrote to a TLS session
    /// that the connection carries. Offsets go on from those of the bytes
    /// that were recorded before; sealed bytes are not counted.
    pub const TLS: u8 = 2;
}

/// Which bytes of which connection caused an event.
///
/// `conn` 0 means nobody. The agent maps it to the exchange of `conn` whose
/// request covers the byte at `offset` of the received stream.
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct Owner {
    /// Connection id, as in [`Open::conn`].
    pub conn: u64,
    /// Offset in the connection's received stream, in bytes.
    pub offset: u64,
}

/// Bytes of [`Data::tail`]: enough for a message or two that end an answer.
pub const TAIL: usize = 32;

/// Bytes that a target process received or sent on a connection.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Data {
    /// [`kind::DATA`].
    pub kind: u8,
    /// See [`direction`].
    pub direction: u8,
    /// See [`rule`].
    pub rule: u8,
    /// See [`flag`].
    pub flags: u8,
    /// Process (thread group) id in the initial pid namespace.
    pub pid: u32,
    /// Thread id.
    pub tid: u32,
    /// File descriptor.
    pub fd: i32,
    /// Connection id: unique since the programs were loaded.
    pub conn: u64,
    /// Offset of the first byte in its direction's stream, in bytes.
    pub offset: u64,
    /// Bytes transferred.
    pub len: u32,
    /// Payload bytes that follow this struct; at most `len`.
    pub captured: u32,
    /// When the system call began, or 0 where it is not known.
    pub started: u64,
    /// When the system call returned.
    pub at: u64,
    /// Whose event it is.
    pub owner: Owner,
    /// Zero.
    pub pad: u64,
    /// The last bytes of the transfer; zeros where all of it was copied.
    pub tail: [u8; TAIL],
}

/// A connection came into being, or was found at its first use.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Open {
    /// [`kind::OPEN`].
    pub kind: u8,
    /// See [`role`].
    pub role: u8,
    /// Address family: `AF_UNIX` 1, `AF_INET` 2, `AF_INET6` 10.
    pub family: u8,
    /// Zero.
    pub pad: u8,
    /// Process id.
    pub pid: u32,
    /// Thread id.
    pub tid: u32,
    /// File descriptor.
    pub fd: i32,
    /// Connection id.
    pub conn: u64,
    /// When.
    pub at: u64,
    /// Local IP address; IPv4 in the first four bytes.
    pub local: [u8; 16],
    /// Peer IP address; IPv4 in the first four bytes.
    pub peer: [u8; 16],
    /// Local port, host order.
    pub local_port: u16,
    /// Peer port, host order.
    pub peer_port: u16,
    /// Zero.
    pub pad2: u32,
    /// Unix socket path of the listening side, zero-terminated; a leading
    /// zero byte followed by others is an abstract name.
    pub path: [u8; 112],
}

/// A connection's descriptor was closed or replaced.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Close {
    /// [`kind::CLOSE`].
    pub kind: u8,
    /// What was known of TLS on it, see [`crate::map::tls`].
    pub tls: u8,
    /// Zero.
    pub pad: [u8; 2],
    /// Process id.
    pub pid: u32,
    /// Connection id.
    pub conn: u64,
    /// When.
    pub at: u64,
    /// Bytes received in all.
    pub received: u64,
    /// Bytes sent in all.
    pub sent: u64,
}

/// What becomes of the bytes that were held of a TLS session.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct TlsJoin {
    /// [`kind::TLS_JOIN`].
    pub kind: u8,
    /// Zero.
    pub pad: [u8; 3],
    /// Process id.
    pub pid: u32,
    /// Address of the `SSL`.
    pub ssl: u64,
    /// The connection that carries it; 0 if the held bytes are of no use.
    pub conn: u64,
    /// How many bytes were held.
    pub held: u64,
    /// Offset of the first of them in what the connection sent.
    pub offset: u64,
    /// Descriptor.
    pub fd: i32,
    /// Zero.
    pub pad2: u32,
}

/// A statement of a database that is a part of the process began to run.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Query {
    /// [`kind::QUERY`].
    pub kind: u8,
    /// See [`rule`].
    pub rule: u8,
    /// See [`query_part`].
    pub part: u8,
    /// Zero.
    pub pad: u8,
    /// Process id.
    pub pid: u32,
    /// Thread id.
    pub tid: u32,
    /// Zero.
    pub pad2: u32,
    /// Id of this run: no other and no connection has it.
    pub id: u64,
    /// When.
    pub at: u64,
    /// Whose it is.
    pub owner: Owner,
}

/// Values of [`Query::part`].
pub mod query_part {
    /// Of no call that runs several, and the thread is in none any more.
    pub const SINGLE: u8 = 0;
    /// The first of a call that may run more under the same id.
    pub const FIRST: u8 = 1;
    /// A further one of a call. Nobody owns it: the first has told.
    pub const FURTHER: u8 = 2;
    /// On its own, while the thread is in a call that may go on.
    pub const INSIDE: u8 = 3;
    /// It does not compile; its end follows.
    pub const FAILED: u8 = 4;
}

/// Bytes of a [`QueryEnd`]'s name.
pub const QUERY_NAME: usize = 256;

/// A statement of a database that is a part of the process has ended.
///
/// [`QUERY_NAME`] bytes with the name of the database's file follow, then the
/// statement's text, both ended by a zero byte.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct QueryEnd {
    /// [`kind::QUERY_END`].
    pub kind: u8,
    /// See [`query_flag`].
    pub flags: u8,
    /// Columns of its rows, 255 at most; 0 if it gives none.
    pub columns: u8,
    /// Zero.
    pub pad: u8,
    /// Process id.
    pub pid: u32,
    /// [`Query::id`].
    pub id: u64,
    /// When.
    pub at: u64,
    /// Rows that it gave; see also [`query_flag::OVER`].
    pub rows: u32,
    /// Its result, as the library has it; 0 if nothing went wrong.
    pub code: i32,
    /// Bytes of the name, with the zero byte.
    pub name_len: u32,
    /// Bytes of the text, with the zero byte.
    pub text_len: u32,
}

/// Bits of [`QueryEnd::flags`].
pub mod query_flag {
    /// The database is in memory.
    pub const IN_MEMORY: u8 = 1;
    /// The text is longer than what was copied.
    pub const TEXT_CUT: u8 = 2;
    /// The name could not be read, or not as a whole.
    pub const NAMELESS: u8 = 4;
    /// Nothing can be told of the run, and nothing follows: the statement was
    /// compiled anew and begins again, or its end was not seen.
    pub const VOID: u8 = 8;
    /// More may come under this id.
    pub const PART: u8 = 16;
    /// No statement: the call that ran several under this id is over.
    /// [`super::QueryEnd::rows`] is how many have ended.
    pub const OVER: u8 = 32;
}

/// Something happened to a target process.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Process {
    /// [`kind::FORK`], [`kind::EXEC`], [`kind::EXIT`] or [`kind::LISTEN`].
    pub kind: u8,
    /// Zero.
    pub pad: [u8; 3],
    /// Process id.
    pub pid: u32,
    /// For a fork the parent's process id, else 0.
    pub parent: u32,
    /// For a listen the file descriptor, else 0.
    pub fd: i32,
    /// When.
    pub at: u64,
}

/// Values of [`Stack::moment`], when a stack was walked, and bits `1 << moment`
/// of [`crate::map::Recipe::moments`].
pub mod moment {
    /// A server is about to send the first bytes of an answer on
    /// [`super::Stack::conn`] (or queues them with its event loop). Its
    /// transfer follows in the ring.
    pub const RESPONSE: u8 = 0;
    /// A client is about to send the first bytes of a request on
    /// [`super::Stack::conn`] (or queues them).
    pub const REQUEST: u8 = 1;
    /// A context variable of interest is reset (`PyContextVar_Reset`): a
    /// framework lets go of a request. `owner` tells of which.
    pub const RESET: u8 = 2;
    /// An exception leaves, or is caught by, a frame of interest
    /// (`PyTraceBack_Here`). `owner` tells on whose behalf.
    pub const RAISED: u8 = 3;
    /// A context is copied of which nobody knows the owner. Nothing is
    /// recorded: the recipes of servers tell whose the copy is.
    pub const COPY: u8 = 4;
    /// No moment, but a question at [`REQUEST`]: what the application asks a
    /// database for, where the wire does not tell it.
    pub const STATEMENT: u8 = 5;
    /// No moment, but a question at [`REQUEST`] and [`RESET`]: which
    /// connection a server's frame serves. Open where nothing else tells.
    pub const SERVING: u8 = 6;
}

/// Bits of [`Stack::flags`].
pub mod stack_flag {
    /// There are more frames outside than were walked.
    pub const TRUNCATED: u8 = 1;
    /// The walk ended at memory that could not be read or made no sense.
    pub const BROKEN: u8 = 2;
    /// A value did not fit.
    pub const VALUES_LOST: u8 = 4;
    /// The last frame is one of those that a walk may end at, see
    /// [`crate::map::target_flag::ENDS`].
    pub const ENDED: u8 = 8;
    /// It is that of a statement which begins to run, and stands for its
    /// [`super::Query`]: [`super::Stack::conn`] is the id.
    pub const BEGINS: u8 = 16;
    /// From this bit on the [`super::query_part`] of that statement.
    pub const PART_SHIFT: u8 = 5;
}

/// Where a thread was in Python, and what its frames held.
///
/// `n_frames` [`Frame`]s follow, innermost first, then `values_len` bytes of
/// [`Value`]s in the order of their frames, each with its bytes, padded to a
/// multiple of eight.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Stack {
    /// [`kind::STACK`].
    pub kind: u8,
    /// See [`moment`].
    pub moment: u8,
    /// By which rule `owner` was found, see [`rule`].
    pub rule: u8,
    /// See [`stack_flag`].
    pub flags: u8,
    /// Process id.
    pub pid: u32,
    /// Thread id.
    pub tid: u32,
    /// How many [`Frame`]s follow: none but at [`moment::REQUEST`], where they
    /// say who called.
    pub n_frames: u32,
    /// How many bytes of [`Value`]s follow them.
    pub values_len: u32,
    /// [`crate::map::Target::group`]: whose recipes were run.
    pub group: u32,
    /// Connection id at [`moment::RESPONSE`] and [`moment::REQUEST`], or
    /// [`Query::id`]; else 0.
    pub conn: u64,
    /// When.
    pub at: u64,
    /// Whose event it is, where `conn` does not tell.
    pub owner: Owner,
}

/// A Python frame in a [`Stack`].
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Frame {
    /// Address of its code object.
    pub code: u64,
    /// Its current instruction as the frame has it: an address, or up to
    /// CPython 3.10 `f_lasti`.
    pub instruction: u64,
}

/// Values of [`Value::kind`].
pub mod value {
    /// Nothing: `None`, or a local variable that is not bound.
    pub const NONE: u8 = 0;
    /// The code points of a `str`, [`super::Value::width`] bytes each.
    pub const TEXT: u8 = 1;
    /// An `int`: eight bytes.
    pub const INT: u8 = 2;
    /// An object of which only address and type are told.
    pub const OBJECT: u8 = 3;
    /// An exception: its [`super::Traceback`] entries, outermost first.
    pub const EXCEPTION: u8 = 4;
    /// It could not be reached; `detail` is the number of the failing step.
    pub const FAILED: u8 = 5;
    /// A `float`: eight bytes.
    pub const FLOAT: u8 = 6;
    /// A server's connection: the [`super::Owner`] of what it received last.
    pub const CONNECTION: u8 = 7;
    /// The content of a `bytes`.
    pub const BYTES: u8 = 8;
}

/// Values of [`Value::part`].
pub mod part {
    /// The value that the recipe leads to.
    pub const ITSELF: u8 = 0;
    /// An argument (`args`) of the exception before it, in order.
    pub const ARGUMENT: u8 = 1;
    /// The exception that the one before it names as its `__cause__`.
    pub const CAUSE: u8 = 2;
    /// The exception during whose handling the one before it was raised
    /// (`__context__`, not suppressed).
    pub const CONTEXT: u8 = 3;
    /// A note (`__notes__`) of the exception before it, in order; the last one
    /// is no text if there are more.
    pub const NOTE: u8 = 4;
    /// How many members the exception before it has, if it is a group.
    pub const MEMBERS: u8 = 5;
    /// A member of the group that the recipe leads to, in order; its own chain
    /// follows.
    pub const MEMBER: u8 = 6;
}

/// Bits of [`Value::detail`] of an exception.
pub mod exception_detail {
    /// Its traceback has more entries than were copied, or could not be read
    /// to its end.
    pub const TRACEBACK_CUT: u8 = 1;
    /// It has more arguments than were copied.
    pub const ARGUMENTS_CUT: u8 = 2;
}

/// What a recipe led to; its bytes follow.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Value {
    /// [`crate::map::Recipe::id`].
    pub recipe: u32,
    /// Index of its frame in the walk, the innermost being 0.
    pub frame: u16,
    /// See [`value`].
    pub kind: u8,
    /// See [`part`].
    pub part: u8,
    /// Bytes that follow, without the padding.
    pub len: u32,
    /// Bytes of a code point: 1, 2 or 4.
    pub width: u8,
    /// Of [`value::FAILED`] the number of the failing step (the first is 0;
    /// [`pyframes::recipe::MAX_STEPS`]: the object reached is not what was
    /// wanted). Of a text or `bytes` non-zero if there is more than was copied. Of an
    /// exception see [`exception_detail`].
    pub detail: u8,
    /// Zero.
    pub pad: u16,
    /// Address of the object.
    pub address: u64,
    /// Address of its type.
    pub type_address: u64,
}

/// An entry of an exception's traceback.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Traceback {
    /// Address of the frame's code object.
    pub code: u64,
    /// `tb_lasti`, in bytes.
    pub lasti: i32,
    /// `tb_lineno`; not positive if it follows from `lasti`.
    pub lineno: i32,
}

crate::pod!(
    Owner, Data, Open, Close, TlsJoin, Process, Query, QueryEnd, Stack, Frame, Value, Traceback
);
