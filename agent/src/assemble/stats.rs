//! What `assemble` counts: spans, and why calls have no parent. It decides
//! nothing.

use crate::stats::counters;

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
        /// Spans not made: the process has turned off what would tell them.
        disabled => "spans.disabled",
        /// Queries that are told as they were sent: what the frames say of
        /// them is another statement, that of the query which the driver began
        /// a transaction for, say.
        other_statement => "spans.other_statement",
        /// Exchanges of a process that is not known (any more).
        unknown_process => "spans.dropped.unknown_process",
        /// Exchanges that had not ended when the agent was stopped.
        unfinished => "spans.unfinished",
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
        /// No parent: the greenlet was working on no request that was seen.
        unowned_greenlet => "spans.no_parent.unowned_greenlet",
        /// No parent: the current greenlet could not be read, or greenlets
        /// were not followed yet.
        unseen_greenlet => "spans.no_parent.unseen_greenlet",
        /// No parent: handed over by a thread that had begun to answer.
        after_answer => "spans.no_parent.after_answer",
        /// No parent: an executor's thread, for no request.
        unowned_work => "spans.no_parent.unowned_work",
        /// No parent: a thread or process that was started during a request,
        /// but not by the application's own code.
        foreign_start => "spans.no_parent.foreign_start",
        /// No parent: the server's frame led to no open connection.
        frame_unresolved => "spans.no_parent.frame_unresolved",
        /// No parent: the server had read more than the request that its
        /// frame was serving.
        frame_ahead => "spans.no_parent.frame_ahead",
        /// No parent: the owner's bytes hold several requests, or its next
        /// request came before it was answered.
        pipelined => "spans.no_parent.pipelined",
        /// No parent: the owner's request yields no span, as its process has
        /// turned that off.
        under_disabled => "spans.no_parent.disabled",
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
        /// What the interpreter told of a request that is not under way (any
        /// more), or whose owner is uncertain.
        stray_insights => "insights.without_request",
    }
}
