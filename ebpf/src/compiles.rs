//! Statements of SQLite that do not compile: nothing of them ever runs.
//!
//! Noted where SQLite is asked to compile one, which drivers do once for a
//! statement that they keep, and told or forgotten where it has done so: at its
//! last call before it returns.

use abi::counter::Counter;
use abi::record::{Query, kind, query_part};
use aya_ebpf::helpers::bpf_get_current_pid_tgid;
use aya_ebpf::helpers::generated::bpf_ktime_get_ns;
use aya_ebpf::programs::ProbeContext;

use crate::counters::count;
use crate::maps::Compiled;
use crate::{arch, calls, connections, contexts, emit, processes, sqlite, stacks, threads, user};

/// SQLite is asked to compile a statement.
#[inline(always)]
pub(crate) fn begins(ctx: &ProbeContext, connection: u64, text: u64) {
    let pid_tgid = bpf_get_current_pid_tgid();
    let pid = (pid_tgid >> 32) as u32;
    if processes::target(pid).is_none() {
        return;
    }
    let Some(caller) = calls::caller(ctx, pid) else {
        return;
    };
    let Some(thread) = threads::entry(pid_tgid) else {
        return;
    };
    let entry = arch::stack(ctx).wrapping_sub(i64::from(caller.moved) as u64);
    let before = thread.compiled;
    // On the way to another one, which has not returned.
    if before.text != 0
        && entry < before.entry
        && user::read::<u64>(before.entry, 0) == Some(before.back)
    {
        return;
    }
    thread.compiled = Compiled {
        text,
        connection,
        entry,
        back: user::read::<u64>(entry, 0).unwrap_or(0),
        done: entry.wrapping_add(i64::from(caller.done) as u64),
        // SAFETY: the helper has no preconditions.
        at: unsafe { bpf_ktime_get_ns() },
        code: 0,
    };
}

/// SQLite is about to return from there, and its connection holds what came of
/// it.
#[inline(always)]
pub(crate) fn ends(ctx: &ProbeContext) {
    let pid_tgid = bpf_get_current_pid_tgid();
    let pid = (pid_tgid >> 32) as u32;
    let Some(target) = processes::target(pid) else {
        return;
    };
    let Some(thread) = threads::known(pid_tgid) else {
        return;
    };
    // Another stack pointer is that of another call, inside of this one.
    if thread.compiled.text == 0 || thread.compiled.done != arch::stack(ctx) {
        return;
    }
    let Some(layout) = sqlite::layout(ctx, pid) else {
        return;
    };
    let connection = thread.compiled.connection;
    let code = user::read::<i32>(connection, i64::from(layout.error)).unwrap_or(0);
    if code == 0 {
        thread.compiled.text = 0;
        return;
    }
    // What another statement compiles on its way is a part of that.
    if user::read::<i32>(connection, i64::from(layout.executing)) != Some(0) {
        thread.compiled.text = 0;
        return count(Counter::QueriesNested);
    }
    count(Counter::QueriesFailed);
    thread.compiled.code = code as u32 as u64;
    let place = contexts::place(target, thread);
    // Of a script that has run something before, it is the end.
    let id = calls::script(ctx, target.layout, thread, place, connection);
    if id != 0 {
        let compiled = thread.compiled;
        thread.compiled.text = 0;
        thread.sqlite.kind = 0;
        return sqlite::failed(layout, id, pid, &compiled, true);
    }
    let finding = contexts::current_owner(pid, target, thread, place);
    let query = Query {
        kind: kind::QUERY,
        rule: finding.rule,
        part: query_part::FAILED,
        pad: 0,
        pid,
        tid: pid_tgid as u32,
        pad2: 0,
        id: connections::id_of(stacks::now()),
        at: thread.compiled.at,
        owner: finding.owner,
    };
    thread.compiled.entry = arch::place(ctx);
    if !stacks::at_query(ctx, pid_tgid, target, place, &query, finding) {
        emit::record(&query, Counter::QueryRingFull);
        told(query.id);
    }
}

/// The begin of a statement that does not compile was told: so is its end.
#[inline(always)]
pub(crate) fn told(id: u64) {
    let pid_tgid = bpf_get_current_pid_tgid();
    let pid = (pid_tgid >> 32) as u32;
    if let Some(thread) = threads::known(pid_tgid) {
        let compiled = thread.compiled;
        thread.compiled.text = 0;
        if let Some(layout) = sqlite::layout_at(compiled.entry, pid) {
            sqlite::failed(layout, id, pid, &compiled, false);
        }
    }
}
