//! What each thread of a target is doing.

use abi::counter::Counter;
use abi::map::{Target, target_flag};
use abi::record::{Owner, rule};

use crate::contexts::Finding;
use crate::counters::count;
use crate::maps::{THREADS, THREADS_LOST, Thread, thread_flag};

/// The thread's entry, made on first use.
#[inline(always)]
pub(crate) fn entry(pid_tgid: u64) -> Option<&'static mut Thread> {
    if let Some(thread) = known(pid_tgid) {
        return Some(thread);
    }
    let thread = insert(pid_tgid)?;
    if let Some(lost) = THREADS_LOST.get(0)
        && *lost != 0
    {
        thread.flags = thread_flag::UNSURE;
    }
    Some(thread)
}

/// A new entry of the thread, which has done nothing yet; none, which is
/// counted, if there is no room. What the thread does then is not seen, so
/// that from here on no thread is taken for a new one that may be none.
#[inline(always)]
pub(crate) fn insert(pid_tgid: u64) -> Option<&'static mut Thread> {
    let fresh: &'static Thread = &FRESH;
    if THREADS.insert(pid_tgid, fresh, 0).is_err() {
        count(Counter::ThreadTableFull);
        if let Some(lost) = THREADS_LOST.get_ptr_mut(0) {
            // SAFETY: the map's values outlive the program run; whoever
            // writes writes the same.
            unsafe { *lost = 1 };
        }
        return None;
    }
    known(pid_tgid)
}

/// The thread is no more, or another program than it was.
#[inline(always)]
pub(crate) fn remove(pid_tgid: u64) {
    // Mostly it is not there.
    let _absent = THREADS.remove(pid_tgid);
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

/// The thread was seen to return from a wait.
#[inline(always)]
pub(crate) fn waited(thread: &mut Thread) {
    thread.flags = (thread.flags | thread_flag::WAITED) & !thread_flag::UNSURE;
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
/// Unless all that it ever did was seen, it owns nothing until it was seen to
/// wait, if it may be an event loop: attached in the middle of its turn, one
/// would pass for a thread that serves one request after the other. A process's
/// first thread may be one, any where there are loops that read outside
/// contexts or where that is not known yet, and any that was not seen for a
/// while.
#[inline(always)]
pub(crate) fn reads(pid_tgid: u64, target: &Target, thread: &mut Thread, owner: Owner, fd: i32) {
    thread.read = owner;
    thread.read_fd = fd;
    thread.flags = (thread.flags | thread_flag::FRESH_READ) & !thread_flag::TAKEN;
    let first = (pid_tgid >> 32) as u32 == pid_tgid as u32;
    let seen = thread.flags & (thread_flag::WAITED | thread_flag::BORN) != 0;
    let known = target.flags & (target_flag::PYTHON | target_flag::LOOPS_OUTSIDE);
    let may_loop = first || known != target_flag::PYTHON || thread.flags & thread_flag::UNSURE != 0;
    if (seen || !may_loop) && thread.flags & thread_flag::EVENT_LOOP == 0 {
        thread.owner = owner;
        thread.rule = 0;
        thread.flags &= !(thread_flag::ANSWERED | thread_flag::WORKS);
    }
}
