//! What each thread of a target is doing.

use abi::counter::Counter;
use abi::record::{Owner, rule};

use crate::contexts::Finding;
use crate::counters::count;
use crate::maps::{THREADS, Thread, thread_flag};

/// The thread's entry, made on first use.
#[inline(always)]
pub(crate) fn entry(pid_tgid: u64) -> Option<&'static mut Thread> {
    if let Some(thread) = known(pid_tgid) {
        return Some(thread);
    }
    let fresh: &'static Thread = &FRESH;
    if THREADS.insert(pid_tgid, fresh, 0).is_err() {
        count(Counter::ThreadTableFull);
        return None;
    }
    known(pid_tgid)
}

/// A thread of which nothing is known; not on the stack, which has no room
/// for it in every program.
static FRESH: Thread = Thread::NONE;

/// The thread's entry, if it has one.
#[inline(always)]
pub(crate) fn known(pid_tgid: u64) -> Option<&'static mut Thread> {
    // SAFETY: the map's values outlive the program run; only this thread
    // writes its entry.
    THREADS
        .get_ptr_mut(pid_tgid)
        .map(|thread| unsafe { &mut *thread })
}

/// The thread is about to wait on many descriptors.
///
/// An `epoll` wait makes it an event loop for good. Any other kind does so
/// only while a request it read is unanswered: a pre-fork server's worker
/// selects between requests, but not within one.
#[inline(always)]
pub(crate) fn waits(thread: &mut Thread, epoll: bool) {
    let unanswered = thread.owner.conn != 0 && thread.flags & thread_flag::ANSWERED == 0;
    if epoll || unanswered {
        thread.flags |= thread_flag::EVENT_LOOP;
    }
    thread.flags &= !(thread_flag::FRESH_READ
        | thread_flag::TAKEN
        | thread_flag::ANSWERED
        | thread_flag::WORKS);
    thread.owner = Owner::default();
    thread.rule = 0;
}

/// Who owns what the thread does outside any context, or why nobody.
#[inline(always)]
pub(crate) fn finding(thread: &Thread) -> Finding {
    let rule = thread.rule as u8;
    if thread.owner.conn == 0 {
        return Finding {
            owner: Owner::default(),
            rule: if rule == 0 { rule::IDLE_THREAD } else { rule },
        };
    }
    Finding {
        owner: thread.owner,
        rule: if rule == 0 { rule::THREAD } else { rule },
    }
}

/// The thread has read server bytes outside any entered context.
///
/// A process's first thread owns nothing until it was seen to wait: attached
/// in the middle of its turn, an event loop would pass for a thread that
/// serves one request after the other.
#[inline(always)]
pub(crate) fn reads(pid_tgid: u64, thread: &mut Thread, owner: Owner, fd: i32) {
    thread.read = owner;
    thread.read_fd = fd;
    thread.flags = (thread.flags | thread_flag::FRESH_READ) & !thread_flag::TAKEN;
    let first = (pid_tgid >> 32) as u32 == pid_tgid as u32;
    let known = !first || thread.flags & thread_flag::WAITED != 0;
    if known && thread.flags & thread_flag::EVENT_LOOP == 0 {
        thread.owner = owner;
        thread.rule = 0;
        thread.flags &= !(thread_flag::ANSWERED | thread_flag::WORKS);
    }
}
