//! Statements that SQLite runs in the process: when they begin, on whose
//! behalf, and what became of them.
//!
//! Nothing happens per row. A probe is where `sqlite3_step` begins a
//! statement, another where all that end one find that it has run; what it
//! gave is in the statement then. `target/sqlite` of the agent finds
//! the places and the offsets.

use abi::counter::{Counter, Evicting};
use abi::map::{SqliteLayout, SqlitePlace};
use abi::record::{QUERY_NAME, Query, QueryEnd, kind, query_flag, query_part};
use aya_ebpf::helpers::bpf_get_current_pid_tgid;
use aya_ebpf::helpers::generated::{bpf_ktime_get_ns, bpf_probe_read_user_str};
use aya_ebpf::programs::ProbeContext;

use crate::calls::Part;
use crate::counters::count;
use crate::maps::{
    Compiled, EVENTS, SQLITE, STATEMENTS, Statement, StatementKey, Thread, sqlite_call,
    statement_part,
};
use crate::{
    arch, calls, compiles, connections, contexts, emit, evicting, processes, seal, stacks, threads,
    user,
};

/// Sizes of text for which a record is reserved.
const SHORT: usize = 256;
const LONG: usize = 4096;
/// In `sqlite3`: the databases, of which the first is `main`.
const CONNECTION_DATABASES: i64 = 32;
/// In `Db` and in `Btree`: what it is made of; in `BtShared` the pager comes
/// first.
const DATABASE_TREE: i64 = 8;
const TREE_SHARED: i64 = 8;

/// A record of the end of a statement.
#[repr(C)]
struct Record<const N: usize> {
    end: QueryEnd,
    name: [u8; QUERY_NAME],
    text: [u8; N],
}

/// What is known of the copy of SQLite in which the probed place is.
#[inline(always)]
pub(crate) fn layout(ctx: &ProbeContext, pid: u32) -> Option<&'static SqliteLayout> {
    layout_at(arch::place(ctx), pid)
}

/// The same of the place at an address.
#[inline(always)]
pub(crate) fn layout_at(address: u64, pid: u32) -> Option<&'static SqliteLayout> {
    let place = SqlitePlace {
        address,
        pid,
        pad: 0,
    };
    // SAFETY: the map's values outlive the program run; the agent does not
    // change them while the place is probed.
    SQLITE.get_ptr(place).map(|layout| unsafe { &*layout })
}

/// What a register holds. Each is read first, at an offset of its own: the
/// verifier knows no other way to read them.
#[inline(always)]
fn holder(ctx: &ProbeContext, register: u32) -> u64 {
    let registers = [
        arch::holder::<0>(ctx),
        arch::holder::<1>(ctx),
        arch::holder::<2>(ctx),
        arch::holder::<3>(ctx),
        arch::holder::<4>(ctx),
        arch::holder::<5>(ctx),
        arch::holder::<6>(ctx),
        arch::holder::<7>(ctx),
    ];
    let mut value = 0;
    for (number, register_value) in registers.iter().enumerate() {
        // SAFETY: the reference is one; volatile, or the compiler would read
        // at an offset that it has chosen before.
        let held = unsafe { core::ptr::read_volatile(register_value) };
        if register == number as u32 {
            value = held;
        }
    }
    value
}

/// A statement begins to run.
#[inline(always)]
pub(crate) fn begins(ctx: &ProbeContext) {
    let pid_tgid = bpf_get_current_pid_tgid();
    let pid = (pid_tgid >> 32) as u32;
    let Some(target) = processes::target(pid) else {
        return;
    };
    let Some(layout) = layout(ctx, pid) else {
        return;
    };
    let statement = holder(ctx, layout.register);
    let Some(connection) = user::read::<u64>(statement, 0) else {
        return count(Counter::QueriesVoid);
    };
    let key = StatementKey {
        statement,
        pid,
        pad: 0,
    };
    let before = run(key);
    if before != 0 {
        // Of another statement at this address, which was freed unseen.
        drop_run(pid_tgid, key, before);
    }
    // What another statement runs on its way is a part of that, and what the
    // library runs to read a schema has no text.
    let text = user::read::<u64>(statement, i64::from(layout.sql)).unwrap_or(0);
    if user::read::<i32>(connection, i64::from(layout.executing)) != Some(0) || text == 0 {
        return count(Counter::QueriesNested);
    }
    let Some(thread) = threads::entry(pid_tgid) else {
        return;
    };
    let place = contexts::place(target, thread);
    let part = calls::part(
        ctx,
        target.layout,
        thread,
        place,
        connection,
        statement,
        text,
    );
    if part == Part::Further {
        return goes_on(key, thread);
    }
    let finding = contexts::current_owner(pid, target, thread, place);
    let mut told = query_part::SINGLE;
    let mut ends = statement_part::SINGLE;
    if part == Part::Inside {
        told = query_part::INSIDE;
    }
    if part == Part::First {
        told = query_part::FIRST;
        ends = statement_part::TOLD;
    }
    let query = Query {
        kind: kind::QUERY,
        rule: finding.rule,
        part: told,
        pad: 0,
        pid,
        tid: pid_tgid as u32,
        pad2: 0,
        id: connections::new_id(),
        // SAFETY: the helper has no preconditions.
        at: unsafe { bpf_ktime_get_ns() },
        owner: finding.owner,
    };
    if part == Part::First {
        thread.sqlite.id = query.id;
    }
    note(key, query.id, ends);
    count(Counter::Queries);
    if !stacks::at_query(ctx, pid_tgid, target, place, &query, finding) {
        emit::record(&query, Counter::QueryRingFull);
    }
}

/// A further statement of a call begins. That of a script may run for long, so
/// that it is told.
#[inline(always)]
fn goes_on(key: StatementKey, thread: &Thread) {
    let id = thread.sqlite.id;
    count(Counter::Queries);
    if thread.sqlite.kind == sqlite_call::MANY {
        return note(key, id, statement_part::REPEATED);
    }
    note(key, id, statement_part::TOLD);
    calls::further(key.pid, id);
}

/// The stack of a statement that begins was walked.
#[inline(always)]
pub(crate) fn begun() {
    if let Some(query) = stacks::waiting() {
        emit::record(&query, Counter::QueryRingFull);
        if query.part == query_part::FAILED {
            compiles::told(&query);
        }
    }
}

/// Tells that a statement did not compile.
#[inline(always)]
pub(crate) fn failed(layout: &SqliteLayout, id: u64, pid: u32, compiled: &Compiled, part: bool) {
    let end = QueryEnd {
        kind: kind::QUERY_END,
        flags: if part { query_flag::PART } else { 0 },
        columns: 0,
        pad: 0,
        pid,
        id,
        // SAFETY: the helper has no preconditions.
        at: unsafe { bpf_ktime_get_ns() },
        rows: 0,
        code: compiled.code as i32,
        name_len: 0,
        text_len: 0,
    };
    let Compiled {
        text, connection, ..
    } = *compiled;
    if !tell::<SHORT>(layout, connection, text, &end, false) {
        tell::<LONG>(layout, connection, text, &end, true);
    }
}

/// The statement is about to be reset or freed: if it has run, what it gave is
/// told.
#[inline(always)]
pub(crate) fn ends(ctx: &ProbeContext) {
    let pid_tgid = bpf_get_current_pid_tgid();
    let pid = (pid_tgid >> 32) as u32;
    let Some(layout) = layout(ctx, pid) else {
        return;
    };
    let statement = holder(ctx, layout.register);
    let key = StatementKey {
        statement,
        pid,
        pad: 0,
    };
    let (id, part) = run_and_part(key);
    if id == 0 {
        return;
    }
    let counters = user::read::<[u32; 3]>(statement, i64::from(layout.counters));
    let [rows, instruction, code] = counters.unwrap_or_default();
    // At no instruction: it was compiled anew, as the schema had changed, and
    // is about to begin again, or is another than the one that began.
    if (instruction as i32) < 0 || counters.is_none() {
        return drop_run(pid_tgid, key, id);
    }
    evicting::remove(&STATEMENTS, Evicting::Statements, &key);
    if processes::target(pid).is_none() {
        return;
    }
    let columns: u16 = user::read(statement, i64::from(layout.columns)).unwrap_or(0);
    // SAFETY: the helper has no preconditions.
    let at = unsafe { bpf_ktime_get_ns() };
    let mut flags = 0;
    if part != statement_part::SINGLE {
        flags = query_flag::PART;
        calls::ended(pid_tgid, id, at, code != 0);
    }
    let end = QueryEnd {
        kind: kind::QUERY_END,
        flags,
        columns: if columns > 255 { 255 } else { columns as u8 },
        pad: 0,
        pid,
        id,
        at,
        // Each row adds two to what begins with one.
        rows: rows >> 1,
        code: code as i32,
        name_len: 0,
        text_len: 0,
    };
    if part == statement_part::REPEATED {
        return emit::record(&end, Counter::QueryRingFull);
    }
    let text: u64 = user::read(statement, i64::from(layout.sql)).unwrap_or(0);
    let connection: u64 = user::read(statement, 0).unwrap_or(0);
    if !tell::<SHORT>(layout, connection, text, &end, false) {
        tell::<LONG>(layout, connection, text, &end, true);
    }
}

/// The id of a statement's run; 0 if there is none.
#[inline(always)]
fn run(key: StatementKey) -> u64 {
    run_and_part(key).0
}

/// The same, and what it is to a call: see [`statement_part`].
#[inline(always)]
fn run_and_part(key: StatementKey) -> (u64, u64) {
    let Some(known) = STATEMENTS.get_ptr(key) else {
        return (0, 0);
    };
    // SAFETY: the map's values outlive the program run.
    let known = unsafe { *known };
    if known.seal == sealed(key, known.id, known.part) {
        (known.id, known.part)
    } else {
        (0, 0)
    }
}

#[inline(always)]
fn note(key: StatementKey, id: u64, part: u64) {
    let value = Statement {
        id,
        part,
        seal: sealed(key, id, part),
    };
    if !evicting::put(&STATEMENTS, Evicting::Statements, &key, &value) {
        count(Counter::QueryTableFull);
    }
}

#[inline(always)]
fn sealed(key: StatementKey, id: u64, part: u64) -> u64 {
    seal::of([key.statement, u64::from(key.pid), id, part])
}

/// A run of which nothing can be told is over.
#[inline(always)]
fn drop_run(pid_tgid: u64, key: StatementKey, id: u64) {
    calls::void(pid_tgid, id);
    evicting::remove(&STATEMENTS, Evicting::Statements, &key);
    count(Counter::QueriesVoid);
    let end = QueryEnd {
        kind: kind::QUERY_END,
        flags: query_flag::VOID,
        columns: 0,
        pad: 0,
        pid: key.pid,
        id,
        // SAFETY: the helper has no preconditions.
        at: unsafe { bpf_ktime_get_ns() },
        rows: 0,
        code: 0,
        name_len: 0,
        text_len: 0,
    };
    emit::record(&end, Counter::QueryRingFull);
}

/// Writes the record with up to `N` bytes of text; false if that is not all of
/// it and less was not asked for.
#[inline(always)]
fn tell<const N: usize>(
    layout: &SqliteLayout,
    connection: u64,
    text: u64,
    end: &QueryEnd,
    last: bool,
) -> bool {
    let Some(mut entry) = EVENTS.reserve::<Record<N>>(0) else {
        count(Counter::QueryRingFull);
        return true;
    };
    let into = entry.as_mut_ptr();
    // SAFETY: `into` points to reserved ring memory of the type's size; what
    // is not written there is old, and the lengths leave it out.
    unsafe {
        (*into).end = *end;
        let len = copy(text, (&raw mut (*into).text).cast(), N as u32);
        if len == N as u32 {
            if !last {
                entry.discard(emit::flags());
                return false;
            }
            (*into).end.flags |= query_flag::TEXT_CUT;
            count(Counter::QueryTextCut);
        }
        (*into).end.text_len = len;
        name(
            layout,
            connection,
            &raw mut (*into).end,
            (&raw mut (*into).name).cast(),
        );
    }
    entry.submit(emit::flags());
    count(Counter::RecordsWritten);
    true
}

/// Copies the name of the main database's file.
///
/// # Safety
///
/// `into` must be valid for [`QUERY_NAME`] bytes.
#[inline(always)]
unsafe fn name(layout: &SqliteLayout, connection: u64, end: *mut QueryEnd, into: *mut u8) {
    let mut pager = 0;
    let mut at = connection;
    let mut whole = layout.file_name != 0;
    for offset in [CONNECTION_DATABASES, DATABASE_TREE, TREE_SHARED, 0] {
        match user::read::<u64>(at, offset) {
            Some(next) if next != 0 => at = next,
            _ => whole = false,
        }
    }
    if whole {
        pager = at;
    }
    let mut flags = query_flag::NAMELESS;
    let mut len = 0;
    if pager != 0
        && let Some(file) = user::read::<u64>(pager, i64::from(layout.file_name))
        && let Some(memory) = user::read::<u8>(pager, i64::from(layout.in_memory))
    {
        // SAFETY: the caller vouches for `into`.
        len = unsafe { copy(file, into, QUERY_NAME as u32) };
        flags = if memory != 0 {
            query_flag::IN_MEMORY
        } else {
            0
        };
        if len == QUERY_NAME as u32 {
            flags |= query_flag::NAMELESS;
        }
    }
    // SAFETY: `end` is in the same record.
    unsafe {
        (*end).flags |= flags;
        (*end).name_len = len;
    }
}

/// Copies a text with its zero byte; its length with that, or 0 if it cannot
/// be read.
///
/// # Safety
///
/// `into` must be valid for `len` bytes.
#[inline(always)]
unsafe fn copy(text: u64, into: *mut u8, len: u32) -> u32 {
    // SAFETY: the caller vouches for `into`; the helper checks `text`.
    let copied = unsafe { bpf_probe_read_user_str(into.cast(), len, text as *const _) };
    if copied > 0 { copied as u32 } else { 0 }
}
