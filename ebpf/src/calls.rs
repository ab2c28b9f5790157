//! Calls of Python's `sqlite3` that run more than one statement:
//! `executemany` and `executescript`.
//!
//! Their entries are probed, which costs other calls nothing. That a call is
//! over is not seen; whether it still goes on is asked when the thread begins
//! a statement. ARCHITECTURE.md says what makes that certain.

use abi::counter::Counter;
use abi::map::{SqliteCaller, SqlitePlace};
use aya_ebpf::helpers::bpf_get_current_pid_tgid;
use aya_ebpf::helpers::generated::bpf_ktime_get_ns;
use aya_ebpf::programs::ProbeContext;
use pyframes::frame;

use crate::contexts::Place;
use crate::counters::count;
use crate::maps::{SQLITE_CALLERS, SqliteCall, Thread, sqlite_call};
use crate::user::{self, User};
use crate::{arch, contexts, processes, stacks, threads};

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
    thread.sqlite = SqliteCall::NONE;
    let Some(frame) = innermost(target.layout, contexts::place(target, thread)) else {
        return;
    };
    let entry = arch::stack(ctx).wrapping_sub(i64::from(caller.moved) as u64);
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
    if !lives {
        call.kind = 0;
        return Part::None;
    }
    if innermost(layout, place) != Some(call.frame) {
        return Part::Inside;
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
        thread.sqlite.last = at;
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
    }
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
