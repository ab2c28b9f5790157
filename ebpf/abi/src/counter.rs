//! Counters of the kernel side: one per reason for which something is not
//! seen, so that no loss is silent, and one per table that evicts.

/// A slot of the `COUNTERS` per-CPU array.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Counter {
    /// Records written to the ring.
    RecordsWritten = 0,
    /// Data records lost because the ring was full.
    DataRingFull = 1,
    /// Connection records lost because the ring was full.
    ConnectionRingFull = 2,
    /// Process records lost because the ring was full.
    ProcessRingFull = 3,
    /// Payload bytes beyond a message's budget: counted, not copied.
    BytesOverBudget = 4,
    /// Payload bytes that could not be read from the process.
    PayloadFault = 5,
    /// A connection was not recorded because the table was full.
    ConnectionTableFull = 6,
    /// A thread was not recorded because the table was full.
    ThreadTableFull = 7,
    /// A context copy was not recorded because the table refused it.
    ContextTableRefused = 8,
    /// A socket's addresses could not be read.
    SocketUnreadable = 9,
    /// A thread's `PyThreadState` failed its self-check.
    ThreadStateMismatch = 10,
    /// System calls seen on muted connections.
    MutedCalls = 11,
    /// `PyContext_CopyCurrent` calls seen.
    ContextCopies = 12,
    /// Writes queued by an event loop's transport.
    QueuedWrites = 13,
    /// A forked child was not followed because the table was full.
    TargetTableFull = 14,
    /// Stack records written to the ring.
    Stacks = 15,
    /// Stack records lost because the ring was full.
    StackRingFull = 16,
    /// Walks that ended at memory that could not be read.
    StackUnreadable = 17,
    /// Walks that ended before the outermost frame: too many frames.
    StackTooDeep = 18,
    /// Walks not begun because another was under way on the processor.
    StackBusy = 19,
    /// Walks not begun because the thread's `PyThreadState` was not found.
    StackNoThread = 20,
    /// Walks that the kernel did not let go on.
    StackCutOff = 21,
    /// Values of frames that did not fit into their record.
    StackValuesFull = 22,
    /// Values of frames that could not be reached.
    StackValueFailed = 23,
    /// Greenlets whose birth was seen.
    GreenletBirths = 32,
    /// A thread's current greenlet could not be read, or failed its
    /// self-check.
    GreenletUnreadable = 33,
    /// Greenlets that a pool of workers made while a request was worked on:
    /// they serve others, too, and are nobody's.
    GreenletWorkers = 34,
    /// A greenlet's owner was not recorded because the table refused it.
    GreenletTableRefused = 35,
    /// Items put into a `SimpleQueue`.
    QueuedItems = 24,
    /// Times that an executor's thread asked for its next work item.
    WorkItemsTaken = 25,
    /// Threads and processes that a request's own code started.
    StartedByRequest = 26,
    /// Threads and processes that were started during a request by others, or
    /// by whom could not be told.
    StartedByOthers = 27,
    /// A work item was not recorded because the table refused it.
    WorkTableRefused = 28,
    /// TLS sessions found to be carried by a connection.
    TlsJoined = 40,
    /// Reads from and writes to TLS sessions of no known connection.
    TlsUnjoined = 41,
    /// TLS records received that might be of several connections.
    TlsAmbiguous = 42,
    /// Reads of a process's memory for frames and what they hold.
    StackReads = 29,
    /// Transfers that the kernel did not let be looked at.
    TransferCutOff = 30,
    /// Copies of contexts for which a server's frame was looked for.
    ServerWalks = 44,
    /// Those where one told whose the copy is.
    ServerFound = 45,
    /// Those where one was there and did not lead to a connection.
    ServerUnresolved = 46,
    /// Those where one was there and had not taken up all that was read.
    ServerAhead = 47,
    /// Those whose stack could not be walked to its end.
    ServerUnwalked = 48,
    /// Copies of contexts that are nobody's, as they were made to go on with
    /// what somebody else has queued.
    ForeignCopies = 49,
    /// Statements of databases in the process that began to run.
    Queries = 50,
    /// Statements that ran inside of another, which they are a part of.
    QueriesNested = 51,
    /// Statements that cannot be told of because of want of room in the ring.
    QueryRingFull = 52,
    /// Statements that cannot be told of because the table refused them, or
    /// forgot them.
    QueryTableFull = 53,
    /// Statements of which not all of the text was copied.
    QueryTextCut = 54,
    /// Runs of statements of which nothing can be told: they were compiled
    /// anew and began again, their end was not seen, or they cannot be read.
    QueriesVoid = 55,
    /// Walks at an answer of which the frames tell nothing: no record is
    /// written.
    StackSilent = 56,
    /// Calls that may run a statement many times, or several.
    QueryBatches = 57,
    /// Statements that did not compile.
    QueriesFailed = 58,
    /// Walks that ended at a frame known as the application's, as nothing
    /// outside it was asked for.
    StackEnded = 59,
}

impl Counter {
    /// Every counter with its name as the operator reads it and whether it
    /// counts a loss.
    pub const ALL: [(Self, &'static str, bool); 54] = [
        (Self::RecordsWritten, "kernel.records", false),
        (Self::DataRingFull, "kernel.lost.data_ring_full", true),
        (
            Self::ConnectionRingFull,
            "kernel.lost.connection_ring_full",
            true,
        ),
        (Self::ProcessRingFull, "kernel.lost.process_ring_full", true),
        (Self::BytesOverBudget, "kernel.bytes_over_budget", false),
        (Self::PayloadFault, "kernel.lost.payload_fault", true),
        (
            Self::ConnectionTableFull,
            "kernel.lost.connection_table_full",
            true,
        ),
        (Self::ThreadTableFull, "kernel.lost.thread_table_full", true),
        (
            Self::ContextTableRefused,
            "kernel.lost.context_table_refused",
            true,
        ),
        (
            Self::SocketUnreadable,
            "kernel.lost.socket_unreadable",
            true,
        ),
        (
            Self::ThreadStateMismatch,
            "kernel.thread_state_mismatch",
            false,
        ),
        (Self::MutedCalls, "kernel.muted_calls", false),
        (Self::ContextCopies, "kernel.context_copies", false),
        (Self::QueuedWrites, "kernel.queued_writes", false),
        (Self::TargetTableFull, "kernel.lost.target_table_full", true),
        (Self::Stacks, "kernel.stacks", false),
        (Self::StackRingFull, "kernel.stack_ring_full", false),
        (Self::StackUnreadable, "kernel.stack_unreadable", false),
        (Self::StackTooDeep, "kernel.stack_too_deep", false),
        (Self::StackBusy, "kernel.stack_busy", false),
        (Self::StackNoThread, "kernel.stack_no_thread", false),
        (Self::StackCutOff, "kernel.stack_cut_off", false),
        (Self::StackValuesFull, "kernel.stack_values_full", false),
        (Self::StackValueFailed, "kernel.stack_value_failed", false),
        (Self::GreenletBirths, "kernel.greenlet_births", false),
        (
            Self::GreenletUnreadable,
            "kernel.greenlet_unreadable",
            false,
        ),
        (Self::GreenletWorkers, "kernel.greenlet_workers", false),
        (
            Self::GreenletTableRefused,
            "kernel.lost.greenlet_table_refused",
            true,
        ),
        (Self::QueuedItems, "kernel.queued_items", false),
        (Self::WorkItemsTaken, "kernel.work_items_taken", false),
        (Self::StartedByRequest, "kernel.started_by_request", false),
        (Self::StartedByOthers, "kernel.started_by_others", false),
        (
            Self::WorkTableRefused,
            "kernel.lost.work_table_refused",
            true,
        ),
        (Self::TlsJoined, "kernel.tls_joined", false),
        (Self::TlsUnjoined, "kernel.lost.tls_unjoined", true),
        (Self::TlsAmbiguous, "kernel.tls_ambiguous", false),
        (Self::StackReads, "kernel.stack_reads", false),
        (Self::TransferCutOff, "kernel.lost.transfer_cut_off", true),
        (Self::ServerWalks, "kernel.server_walks", false),
        (Self::ServerFound, "kernel.server_found", false),
        (Self::ServerUnresolved, "kernel.server_unresolved", false),
        (Self::ServerAhead, "kernel.server_ahead", false),
        (Self::ServerUnwalked, "kernel.server_unwalked", false),
        (Self::ForeignCopies, "kernel.foreign_copies", false),
        (Self::Queries, "kernel.queries", false),
        (Self::QueriesNested, "kernel.queries_nested", false),
        (Self::QueryRingFull, "kernel.lost.query_ring_full", true),
        (Self::QueryTableFull, "kernel.lost.query_table_full", true),
        (Self::QueriesVoid, "kernel.queries_void", false),
        (Self::QueryTextCut, "kernel.query_text_cut", false),
        (Self::StackSilent, "kernel.silent_stacks", false),
        (Self::QueryBatches, "kernel.query_batches", false),
        (Self::QueriesFailed, "kernel.queries_failed", false),
        (Self::StackEnded, "kernel.ended_stacks", false),
    ];
}

/// A table that evicts what was used least: a slot of the `HELD` per-CPU
/// array, which holds the entries that the kernel side has made less those
/// that it has removed.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Evicting {
    /// Contexts and their owners.
    Contexts = 0,
    /// Greenlets and their owners.
    Greenlets = 1,
    /// Objects in queues and their owners.
    Work = 2,
    /// TLS sessions and their connections.
    Sessions = 3,
    /// TLS records that were received.
    Records = 4,
    /// Statements of SQLite that run.
    Statements = 5,
}

impl Evicting {
    /// Slots of `HELD`.
    pub const SLOTS: u32 = 6;
}
