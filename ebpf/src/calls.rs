//! Calls of Python's `sqlite3` that run more than one statement:
//! `executemany` and `executescript`.
//!
//! Their entries are probed, which costs other calls nothing. That a call
//! returns is not seen; whether it still goes on is asked when the thread begins
//! a statement, and whether it is over when it does something else that is
//! looked at anyway. ARCHITECTURE.md says what makes either certain.

use abi::counter::Counter;
use abi::map::{SqliteCaller, SqlitePlace};
use abi::record::{Owner, Query, QueryEnd, kind, query_flag, query_part, rule};
use aya_ebpf::helpers::bpf_get_current_pid_tgid;
use aya_ebpf::helpers::generated::bpf_ktime_get_ns;
use aya_ebpf::programs::ProbeContext;
use pyframes::frame;

use crate::contexts::Place;
use crate::counters::count;
use crate::maps::{SQLITE_CALLERS, SqliteCall, Thread, sqlite_call};
use crate::user::{self, User};
use crate::{arch, contexts, emit, processes, stacks, threads};

/// A pause after which what a call runs is told anew: the agent has given up
/// waiting for more, or soon does.
const PAUSE: u64 = 5_000_000_000;
/// What begins a transaction or ends it is the driver's, whose text is no
/// part of the call: the first letters, in capitals.
const BEGIN: u64 = u64::from_le_bytes(*b"BEGIN\0\0\0");
const BEGIN_MASK: u64 = (1 << 40) - 1;
const COMMIT: u64 = u64::from_le_bytes(*b"COMMIT\0\0");
const COMMIT_MASK: u64 = (1 << 56) - 1;

/// What a statement that begins is to the call that its thread is in.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    /// Nothing, or there is no such call.
    None,
    /// It is run while the call goes on, by something else.
    Inside,
    /// The first that the call runs.
    First,
    /// A further one.
    Further,
}

/// What is known of the stack of the function in which the probed place is.
#[inline(always)]
pub(crate) fn caller(ctx: &ProbeContext, pid: u32) -> Option<SqliteCaller> {
    let key = SqlitePlace {
        address: arch::place(ctx),
        pid,
        pad: 0,
    };
    // SAFETY: the map's values outlive the program run; the agent does not
    // change them while the place is probed.
    SQLITE_CALLERS.get_ptr(key).map(|caller| unsafe { *caller })
}

/// `executemany` or `executescript` is called.
#[inline(always)]
pub(crate) fn begins(ctx: &ProbeContext, kind: u32) {
    let pid_tgid = bpf_get_current_pid_tgid();
    let pid = (pid_tgid >> 32) as u32;
    let Some(target) = processes::target(pid) else {
        return;
    };
    let Some(caller) = caller(ctx, pid) else {
        return;
    };
    let Some(thread) = threads::entry(pid_tgid) else {
        return;
    };
    let entry = arch::stack(ctx).wrapping_sub(i64::from(caller.moved) as u64);
    let frame = innermost(target.layout, contexts::place(target, thread)).unwrap_or(0);
    // A call of this frame that went on would be below on this stack, with its
    // return address where it was.
    let before = &thread.sqlite;
    let again = frame != 0
        && before.frame == frame
        && (before.entry == entry
            || user::read::<u64>(before.entry, 0).is_some_and(|back| back != before.back));
    leaves(pid_tgid, target.layout, &mut thread.sqlite, again);
    thread.sqlite = SqliteCall::NONE;
    if frame == 0 {
        return;
    }
    let Some(standing) = standing(target.layout, frame) else {
        return;
    };
    let Some(back) = user::read::<u64>(entry, 0) else {
        return;
    };
    count(Counter::QueryBatches);
    thread.sqlite.kind = kind;
    thread.sqlite.entry = entry;
    thread.sqlite.back = back;
    thread.sqlite.many = if kind == sqlite_call::MANY {
        entry.wrapping_add(i64::from(caller.many) as u64)
    } else {
        0
    };
    thread.sqlite.frame = frame;
    thread.sqlite.standing = standing;
}

/// The thread does something that says nothing of its call, but may come after
/// it: if so, the call is over.
#[inline(always)]
pub(crate) fn passes(pid_tgid: u64, thread: &mut Thread) {
    if thread.sqlite.kind != 0
        && thread.sqlite.id != 0
        && let Some(target) = processes::target((pid_tgid >> 32) as u32)
    {
        finish(pid_tgid, target.layout, &mut thread.sqlite, false);
    }
}

/// Whether the call is over, which is told then; `known` if that is known.
///
/// The frame that called stands at the calling instruction until the call has
/// returned, on whatever stack. Its memory cannot become another frame's
/// before.
#[inline(always)]
fn finish(pid_tgid: u64, layout: u32, call: &mut SqliteCall, known: bool) -> bool {
    let over = match standing(layout, call.frame) {
        Some(standing) => standing != call.standing,
        None => false,
    };
    if !over && !known {
        return false;
    }
    if call.id != 0 {
        let end = QueryEnd {
            kind: kind::QUERY_END,
            flags: query_flag::OVER,
            columns: 0,
            pad: 0,
            pid: (pid_tgid >> 32) as u32,
            id: call.id,
            // SAFETY: the helper has no preconditions.
            at: unsafe { bpf_ktime_get_ns() },
            rows: call.ran,
            code: 0,
            name_len: 0,
            text_len: 0,
        };
        emit::record(&end, Counter::QueryRingFull);
    }
    call.kind = 0;
    true
}

/// The thread's call is not followed any more. If a statement of it runs, that
/// another greenlet interrupts, it is said that its end is still to come.
#[inline(always)]
fn leaves(pid_tgid: u64, layout: u32, call: &mut SqliteCall, known: bool) {
    if call.kind == 0 || call.id == 0 || finish(pid_tgid, layout, call, known) {
        return;
    }
    if call.running != 0 {
        further((pid_tgid >> 32) as u32, call.id);
    }
}

/// Tells that a further statement of a call runs.
#[inline(always)]
pub(crate) fn further(pid: u32, id: u64) {
    let query = Query {
        kind: kind::QUERY,
        rule: rule::NONE,
        part: query_part::FURTHER,
        pad: 0,
        pid,
        tid: 0,
        pad2: 0,
        id,
        // SAFETY: the helper has no preconditions.
        at: unsafe { bpf_ktime_get_ns() },
        owner: Owner { conn: 0, offset: 0 },
    };
    emit::record(&query, Counter::QueryRingFull);
}

/// What a statement is to the call that its thread is in.
#[inline(always)]
pub(crate) fn part(
    ctx: &ProbeContext,
    layout: u32,
    thread: &mut Thread,
    place: Option<Place>,
    connection: u64,
    statement: u64,
    text: u64,
) -> Part {
    let kind = thread.sqlite.kind;
    if kind == 0 {
        return Part::None;
    }
    let stack = arch::stack(ctx);
    let call = &mut thread.sqlite;
    // The function has not returned while its return address is there, below
    // which it runs, and what it was called with.
    let mut lives = stack < call.entry && user::read::<u64>(call.entry, 0) == Some(call.back);
    if kind == sqlite_call::MANY {
        lives = lives && user::read::<u32>(call.many, 0) == Some(1);
    }
    let called = innermost(layout, place) == Some(call.frame);
    if !lives || !called {
        // What is left of it on the stack may look as if it went on, and what
        // another greenlet has there as if it did not.
        leaves(bpf_get_current_pid_tgid(), layout, call, false);
        if lives && call.kind != 0 {
            return Part::Inside;
        }
        call.kind = 0;
        return Part::None;
    }
    // SAFETY: the helper has no preconditions.
    let now = unsafe { bpf_ktime_get_ns() };
    if call.id != 0 {
        let same = if kind == sqlite_call::MANY {
            call.statement == statement
        } else {
            call.connection == connection
        };
        if same && call.stack == stack && now.wrapping_sub(call.last) < PAUSE {
            call.last = now;
            call.running = 1;
            return Part::Further;
        }
        if !same || call.stack != stack {
            return Part::Inside;
        }
    }
    let first = user::read::<u64>(text, 0).unwrap_or(0);
    if first & BEGIN_MASK == BEGIN && kind == sqlite_call::MANY
        || first & COMMIT_MASK == COMMIT && kind != sqlite_call::MANY
    {
        return Part::Inside;
    }
    call.connection = connection;
    call.statement = statement;
    call.stack = stack;
    call.last = now;
    call.running = 1;
    call.ran = 0;
    Part::First
}

/// The id of what a script has run so far, if the thread is in such a call on
/// this connection; or 0.
#[inline(always)]
pub(crate) fn script(
    ctx: &ProbeContext,
    layout: u32,
    thread: &Thread,
    place: Option<Place>,
    connection: u64,
) -> u64 {
    let call = &thread.sqlite;
    let lives = call.kind == sqlite_call::SCRIPT
        && call.id != 0
        && call.connection == connection
        && arch::stack(ctx) < call.entry
        && user::read::<u64>(call.entry, 0) == Some(call.back)
        && innermost(layout, place) == Some(call.frame);
    if lives { call.id } else { 0 }
}

/// A statement that is a part of the thread's call has ended at `at`; the call
/// goes on to no other after a failure.
#[inline(always)]
pub(crate) fn ended(pid_tgid: u64, id: u64, at: u64, failed: bool) {
    if let Some(thread) = threads::known(pid_tgid)
        && thread.sqlite.id == id
    {
        let call = &thread.sqlite;
        // That this one ran was not told, so that the agent may have taken the
        // call to be over: what comes next is told anew.
        let long =
            call.kind == sqlite_call::MANY && call.ran != 0 && at.wrapping_sub(call.last) >= PAUSE;
        thread.sqlite.last = if long { 0 } else { at };
        thread.sqlite.running = 0;
        thread.sqlite.ran = thread.sqlite.ran.wrapping_add(1);
        if failed {
            thread.sqlite.kind = 0;
        }
    }
}

/// Nothing can be told of a statement: what the call runs next begins anew.
#[inline(always)]
pub(crate) fn void(pid_tgid: u64, id: u64) {
    if let Some(thread) = threads::known(pid_tgid)
        && thread.sqlite.id == id
    {
        thread.sqlite.id = 0;
        thread.sqlite.running = 0;
    }
}

/// Where a frame stands.
#[inline(always)]
fn standing(layout: u32, frame: u64) -> Option<u32> {
    frame::standing(&User, stacks::layout(layout)?, frame).ok()
}

/// The innermost Python frame.
#[inline(always)]
fn innermost(layout: u32, place: Option<Place>) -> Option<u64> {
    let tstate = match place {
        Some(Place { tstate, .. }) => tstate,
        None => 0,
    };
    if tstate == 0 {
        return None;
    }
    let layout = stacks::layout(layout)?;
    frame::innermost(&User, layout, tstate).ok()
}
