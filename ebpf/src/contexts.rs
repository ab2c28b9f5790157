//! Whose event is it: owners by `PyContext` lineage, by greenlet, by thread,
//! and by the queue of an event loop's transport. ARCHITECTURE.md has the rules and why
//! each is certain.

use abi::counter::{Counter, Evicting};
use abi::map::{Connection, Descriptor, Target, target_flag, tls as state};
use abi::record::{Owner, role, rule};
use aya_ebpf::EbpfContext;
use aya_ebpf::helpers::{bpf_get_current_pid_tgid, bpf_get_current_task};
use aya_ebpf::programs::ProbeContext;

use crate::counters::count;
use crate::kernel::{self, offset};
use crate::maps::{CONNECTIONS, CONTEXTS, ContextKey, ContextOwner, Thread, thread_flag};
use crate::servers::{self, Serving};
use crate::{calls, evicting, greenlets, handoffs, processes, seal, stacks, threads, tls, user};

/// The current thread's place in Python.
#[derive(Clone, Copy)]
pub(crate) struct Place {
    /// Address of the current `PyContext`, or 0.
    pub(crate) context: u64,
    /// Whether it was entered (`Context.run`); otherwise it is the thread's
    /// own base context, which is never a copy.
    pub(crate) entered: bool,
    /// Address of the thread's `PyThreadState`.
    pub(crate) tstate: u64,
    /// Address of the current greenlet, [`greenlets::NONE`] or
    /// [`greenlets::UNREADABLE`].
    pub(crate) greenlet: u64,
}

/// An owner and the rule that found it, or the reason for none.
#[derive(Clone, Copy)]
pub(crate) struct Finding {
    /// Whose; `conn` 0 means nobody's.
    pub(crate) owner: Owner,
    /// See `abi::record::rule`.
    pub(crate) rule: u8,
}

impl Finding {
    /// Not asked for.
    pub(crate) const NONE: Self = Self {
        owner: Owner { conn: 0, offset: 0 },
        rule: rule::NONE,
    };
}

/// A context that descends from no request that was seen.
const NOBODY: Finding = Finding {
    owner: Owner { conn: 0, offset: 0 },
    rule: rule::UNOWNED_CONTEXT,
};

/// Reads the current thread's context; none if its `PyThreadState` cannot be
/// found or fails its self-check.
///
/// The context in which an event loop itself runs counts as none: it is
/// current between callbacks, whosever turn it was.
#[inline(always)]
pub(crate) fn place(target: &Target, thread: &Thread) -> Option<Place> {
    let mut place = raw_place(target)?;
    if place.context == thread.loop_context {
        place.entered = false;
    }
    Some(place)
}

/// The current thread has waited for many descriptors: its context and its
/// greenlet are an event loop's.
#[inline(always)]
pub(crate) fn waits(pid_tgid: u64, target: &Target, thread: &mut Thread) {
    thread.loop_context = 0;
    if let Some(Place {
        context,
        entered,
        greenlet,
        ..
    }) = raw_place(target)
    {
        if entered {
            thread.loop_context = context;
        }
        greenlets::waits(pid_tgid, target, thread, greenlet);
    }
}

/// The current thread is about to wait for several descriptors with `select`.
#[inline(always)]
pub(crate) fn selects(pid_tgid: u64, target: &Target, thread: &mut Thread) {
    if target.flags & target_flag::GREENLETS != 0
        && let Some(Place { greenlet, .. }) = raw_place(target)
    {
        greenlets::waits(pid_tgid, target, thread, greenlet);
    }
}

#[inline(always)]
fn raw_place(target: &Target) -> Option<Place> {
    let mut place = Place {
        context: 0,
        entered: false,
        tstate: 0,
        greenlet: 0,
    };
    let _unreadable = read_place(target, &mut place);
    // Written whatever was found: kernels refuse to copy what a none would
    // leave undefined.
    if place.tstate == 0 { None } else { Some(place) }
}

/// Reads the current thread's context; `PyThreadState` last, so that it is 0
/// where anything is wrong.
#[inline(always)]
fn read_place(target: &Target, place: &mut Place) -> Option<()> {
    if target.flags & target_flag::PYTHON == 0 {
        return None;
    }
    // SAFETY: the helper has no preconditions.
    let task = unsafe { bpf_get_current_task() };
    let pointer: u64 = kernel::read(task, offset!(task_thread_pointer))?;
    let base = if target.flags & target_flag::TSS_INDIRECT != 0 {
        user::read::<u64>(pointer, target.tss_indirect)?
    } else {
        pointer
    };
    let tstate: u64 = user::read(base, target.tss_slot)?;
    if tstate == 0 {
        return None;
    }
    let id: u64 = user::read(tstate, i64::from(target.tstate_thread_id))?;
    if id != pointer {
        count(Counter::ThreadStateMismatch);
        return None;
    }
    let context: u64 = user::read(tstate, i64::from(target.tstate_context))?;
    let greenlet = greenlets::current(target, pointer);
    if context == 0 {
        place.greenlet = greenlet;
        place.tstate = tstate;
        return Some(());
    }
    // `ctx_prev`, `ctx_vars`, `ctx_weakreflist` and `ctx_entered` follow each
    // other, in this order, in every version.
    let [before, _, _, entered]: [u64; 4] =
        user::read(context, i64::from(target.context_entered) - 24)?;
    // `ctx_entered` is an int, or a byte in free-threaded 3.14; the first
    // byte tells on a little-endian machine.
    let mut entered = entered & 0xff != 0;
    if before == 0 && target.flags & target_flag::THREAD_CONTEXTS != 0 && !is_first_thread() {
        // What a thread runs in from its beginning to its end says no more
        // than the thread.
        entered = false;
    }
    place.context = context;
    place.entered = entered;
    place.greenlet = greenlet;
    place.tstate = tstate;
    Some(())
}

/// Whether the current thread is its process's first.
#[inline(always)]
fn is_first_thread() -> bool {
    let pid_tgid = bpf_get_current_pid_tgid();
    (pid_tgid >> 32) as u32 == pid_tgid as u32
}

/// A server connection's bytes were read: they own what is done from here on
/// in this context, or outside any context by this thread.
///
/// A context in which earlier bytes of the connection were read is nobody's
/// from now on: a server that reads now in one context and now in another
/// (Tornado) would go on in it with what the other has read.
#[inline(always)]
pub(crate) fn read_by(
    pid_tgid: u64,
    target: &Target,
    thread: &mut Thread,
    place: Option<Place>,
    connection: &mut Connection,
    owner: Owner,
    fd: i32,
) {
    let pid = (pid_tgid >> 32) as u32;
    // The context that a place lacks is undefined, and the verifier refuses
    // to have it copied: the ways part here.
    match place {
        Some(Place {
            context,
            entered: true,
            ..
        }) => {
            let before = connection.reader;
            if before != context && before != 0 {
                outdated(pid, target, before, connection.id);
            }
            connection.reader = context;
            if target.flags & target_flag::LINEAGE != 0 {
                let finding = Finding {
                    owner,
                    rule: rule::CONTEXT,
                };
                set_owner(pid, target, context, finding, true);
            }
        }
        Some(Place { greenlet, .. }) if greenlet != greenlets::NONE => {
            outside(pid, target, connection);
            greenlets::reads(pid_tgid, target, thread, greenlet, owner);
        }
        _ => {
            outside(pid, target, connection);
            threads::reads(pid_tgid, target, thread, owner, fd);
        }
    }
}

/// Bytes of a connection were read outside any entered context.
#[inline(always)]
fn outside(pid: u32, target: &Target, connection: &mut Connection) {
    let before = connection.reader;
    if before != 0 {
        outdated(pid, target, before, connection.id);
        connection.reader = 0;
    }
}

/// Bytes of a connection were read elsewhere than in this context, in which
/// earlier ones were.
#[inline(always)]
fn outdated(pid: u32, target: &Target, context: u64, conn: u64) {
    let key = ContextKey {
        context,
        pid,
        epoch: target.epoch,
    };
    let Some(entry) = CONTEXTS.get_ptr_mut(key) else {
        return;
    };
    // SAFETY: the map's values outlive the program run.
    let entry = unsafe { &mut *entry };
    // Another context may have the address by now.
    if entry.direct != 0 && entry.owner.conn == conn {
        entry.owner = Owner::default();
        entry.rule = u32::from(rule::UNOWNED_CONTEXT);
        entry.seal = seal(key, entry);
    }
}

/// A connection was accepted in the current context: what is done for it
/// from there is none of the work of the request that the context may stem
/// from.
#[inline(always)]
pub(crate) fn accepted(pid_tgid: u64) {
    let pid = (pid_tgid >> 32) as u32;
    if let Some(target) = processes::target(pid)
        && target.flags & target_flag::LINEAGE != 0
        && let Some(thread) = threads::entry(pid_tgid)
        && let Some(Place {
            context,
            entered: true,
            ..
        }) = place(target, thread)
    {
        set_owner(pid, target, context, NOBODY, false);
    }
}

/// A server connection's bytes came out of its TLS session in a context, after
/// their records were received outside any.
///
/// An event loop in C (uvloop) then runs the rest of the callback in a context
/// that many connections share, or in one copied from whoever let it read on:
/// neither says whose bytes these are.
#[inline(always)]
pub(crate) fn plaintext_read_in(
    pid_tgid: u64,
    target: &Target,
    thread: &mut Thread,
    connection: &mut Connection,
    context: u64,
    owner: Owner,
    fd: i32,
) {
    let pid = (pid_tgid >> 32) as u32;
    outside(pid, target, connection);
    if target.flags & target_flag::LINEAGE != 0 {
        set_owner(pid, target, context, NOBODY, false);
    }
    // What comes out piece by piece in one callback is one read.
    let goes_on = thread.flags & thread_flag::FRESH_READ != 0 && thread.read.conn == owner.conn;
    if thread.flags & thread_flag::EVENT_LOOP != 0 && !goes_on {
        threads::reads(pid_tgid, target, thread, owner, fd);
    }
}

/// Plaintext came out of a session whose connection is not known. It may be
/// the next request, so that nothing which is done from here on is known to be
/// done for the one before.
#[inline(always)]
pub(crate) fn unknown_read(pid_tgid: u64, target: &Target, thread: &mut Thread) {
    let pid = (pid_tgid >> 32) as u32;
    thread.flags &= !thread_flag::FRESH_READ;
    match place(target, thread) {
        Some(Place {
            context,
            entered: true,
            ..
        }) => {
            if target.flags & target_flag::LINEAGE != 0 {
                set_owner(pid, target, context, NOBODY, false);
            }
        }
        Some(Place { greenlet, .. }) if greenlet != greenlets::NONE => {
            greenlets::unknown_read(pid, target, greenlet);
        }
        _ => {
            thread.owner = Owner::default();
            thread.rule = 0;
        }
    }
}

/// Who owns what the current thread does now.
#[inline(always)]
pub(crate) fn current_owner(
    pid: u32,
    target: &Target,
    thread: &Thread,
    place: Option<Place>,
) -> Finding {
    match place {
        None => handoffs::outside_python(target, thread),
        Some(Place { entered: true, .. }) if target.flags & target_flag::LINEAGE == 0 => NOBODY,
        Some(Place {
            context,
            entered: true,
            ..
        }) => context_owner(pid, target, context).0,
        Some(Place { greenlet, .. }) if greenlet != greenlets::NONE => {
            greenlets::owner(pid, target, greenlet)
        }
        Some(_) if thread.flags & thread_flag::EVENT_LOOP != 0 => Finding {
            owner: Owner::default(),
            rule: rule::EVENT_LOOP,
        },
        Some(_) if thread.flags & thread_flag::WORKS != 0 => handoffs::item(pid, target, thread),
        Some(_) => threads::finding(thread),
    }
}

/// Who owns the bytes that are being sent on a client connection: whoever
/// queued them, or whoever sends them.
#[inline(always)]
pub(crate) fn sender(
    pid: u32,
    target: &Target,
    connection: &mut Connection,
    thread: &Thread,
    place: Option<Place>,
) -> Finding {
    let finding = current_owner(pid, target, thread, place);
    if thread.flags & thread_flag::EVENT_LOOP == 0 || connection.queued_rule == 0 {
        return finding;
    }
    let queued = Finding {
        owner: connection.queued,
        rule: connection.queued_rule as u8,
    };
    connection.queued_rule = 0;
    if finding.rule == rule::EVENT_LOOP {
        return queued;
    }
    // The queue was too long to wait and is written by whoever filled it.
    if finding.owner == queued.owner {
        return finding;
    }
    Finding {
        owner: Owner::default(),
        rule: rule::MIXED_QUEUE,
    }
}

/// The current thread has entered a function that copies a context it was
/// given, and then passes the place where copies of the current one are seen.
#[inline(always)]
pub(crate) fn explicit() {
    let pid_tgid = bpf_get_current_pid_tgid();
    if processes::target((pid_tgid >> 32) as u32).is_some()
        && let Some(thread) = threads::entry(pid_tgid)
    {
        thread.flags |= thread_flag::EXPLICIT;
    }
}

/// `PyContext_CopyCurrent` is about to return `child`, made from the current
/// context.
#[inline(always)]
pub(crate) fn copied<C: EbpfContext>(ctx: &C, child: u64) {
    let pid_tgid = bpf_get_current_pid_tgid();
    let pid = (pid_tgid >> 32) as u32;
    let Some(target) = processes::target(pid) else {
        return;
    };
    if child == 0 {
        return;
    }
    count(Counter::ContextCopies);
    let Some(thread) = threads::entry(pid_tgid) else {
        // The address may have belonged to another context.
        set_owner(pid, target, child, NOBODY, false);
        return;
    };
    calls::passes(pid_tgid, thread);
    if thread.flags & thread_flag::EXPLICIT != 0 {
        thread.flags &= !thread_flag::EXPLICIT;
        return created(child);
    }
    if thread.flags & thread_flag::UNSURE != 0 {
        // It may be an explicit copy.
        set_owner(pid, target, child, NOBODY, false);
        return;
    }
    let place = place(target, thread);
    let finding = current_owner(pid, target, thread, place);
    let finding = after_read(target, thread, finding);
    let of_child = match finding.rule {
        rule::CONTEXT
        | rule::THREAD
        | rule::WORK_ITEM
        | rule::STARTED
        | rule::GREENLET
        | rule::SPAWNED => Finding {
            owner: finding.owner,
            rule: rule::CONTEXT,
        },
        rule::FRAME | rule::BOUND => Finding {
            owner: finding.owner,
            rule: rule::FRAME,
        },
        rule::CONTEXT_AFTER_READ => finding,
        _ => NOBODY,
    };
    set_owner(pid, target, child, of_child, false);
    servers::ask(ctx, target, place, finding, child);
}

/// A server's frame has told whose a context is, or why that is not known.
#[inline(always)]
pub(crate) fn owned(pid: u32, target: &Target, context: u64, finding: Finding) {
    set_owner(pid, target, context, finding, false);
}

/// A context is that of a task that serves one connection: until it receives
/// more, what is done there is done for what it received last.
#[inline(always)]
pub(crate) fn bind(pid: u32, target: &Target, context: u64, serving: Serving) {
    let value = ContextOwner {
        owner: serving.owner,
        rule: u32::from(rule::BOUND),
        direct: 0,
        fd: serving.fd,
        pad: 0,
        seal: 0,
    };
    note(pid, target, context, value);
}

/// A context came into being by another way than copying the current one:
/// whatever its address was before, it is nobody's, unless the server made
/// it for the request whose bytes it is handling (uvicorn's
/// `--reset-contextvars`).
#[inline(always)]
pub(crate) fn created(context: u64) {
    let pid_tgid = bpf_get_current_pid_tgid();
    let pid = (pid_tgid >> 32) as u32;
    let Some(target) = processes::target(pid) else {
        return;
    };
    if context == 0 {
        return;
    }
    let mut finding = NOBODY;
    if let Some(thread) = threads::entry(pid_tgid) {
        if let Some(Place {
            context: current,
            entered: true,
            ..
        }) = place(target, thread)
            && target.flags & target_flag::LINEAGE != 0
            && let (found, true) = context_owner(pid, target, current)
        {
            finding = found;
        }
        finding = after_read(target, thread, finding);
        // The function behind `Context()` may end with a call of
        // `PyContext_New`: then its own return tells of the same context
        // again.
        if finding.owner.conn == 0
            && thread.flags & thread_flag::TAKEN != 0
            && let (known, _) = context_owner(pid, target, context)
            && known.rule == rule::CONTEXT_AFTER_READ
            && known.owner == thread.read
        {
            return;
        }
    }
    set_owner(pid, target, context, finding, false);
}

/// The finding, or the owner of the bytes that were just read if this is the
/// server's own turn to handle them, on an event loop that reads outside any
/// context.
#[inline(always)]
fn after_read(target: &Target, thread: &mut Thread, finding: Finding) -> Finding {
    if finding.rule == rule::UNOWNED_CONTEXT
        && target.flags & (target_flag::TASK_AFTER_READ | target_flag::SERVERS)
            == target_flag::TASK_AFTER_READ
        && thread.flags & thread_flag::FRESH_READ != 0
        && thread.flags & thread_flag::EVENT_LOOP != 0
    {
        thread.flags = (thread.flags | thread_flag::TAKEN) & !thread_flag::FRESH_READ;
        return Finding {
            owner: thread.read,
            rule: rule::CONTEXT_AFTER_READ,
        };
    }
    finding
}

/// uvloop's transport was asked to write. It writes later, outside any
/// context, so the owner is noted now.
#[inline(always)]
pub(crate) fn queued(ctx: &ProbeContext, transport: u64) {
    let pid_tgid = bpf_get_current_pid_tgid();
    let pid = (pid_tgid >> 32) as u32;
    let Some(target) = processes::target(pid) else {
        return;
    };
    if target.uv_fd == 0 {
        return;
    }
    let Some(handle) = user::read::<u64>(transport, i64::from(target.uv_handle)) else {
        return;
    };
    let Some(fd) = user::read::<i32>(handle, i64::from(target.uv_fd)) else {
        return;
    };
    let key = Descriptor { pid, fd };
    let Some(connection) = CONNECTIONS.get_ptr_mut(key) else {
        return;
    };
    // SAFETY: the map's values outlive the program run; see
    // `connections::find`.
    let connection = unsafe { &mut *connection };
    let Connection {
        id,
        role: end,
        muted,
        tls,
        ..
    } = *connection;
    if muted != 0 {
        return;
    }
    let Some(thread) = threads::entry(pid_tgid) else {
        return;
    };
    if end == role::SERVER {
        // Answered on the spot: no task will be made for these bytes.
        if thread.read.conn == id {
            thread.flags &= !thread_flag::FRESH_READ;
        }
        if tls >= state::SEALED {
            return;
        }
        let place = place(target, thread);
        let nobody = Finding {
            owner: Owner::default(),
            rule: rule::NONE,
        };
        return stacks::at_queue(ctx, pid_tgid, target, place, connection, nobody);
    }
    // Whose the plaintext is was found when it was written to its session.
    if tls >= state::SEALED {
        return;
    }
    count(Counter::QueuedWrites);
    let place = place(target, thread);
    let finding = current_owner(pid, target, thread, place);
    let mut owner = finding.owner;
    let mut way = match finding.rule {
        rule::CONTEXT
        | rule::THREAD
        | rule::WORK_ITEM
        | rule::STARTED
        | rule::GREENLET
        | rule::SPAWNED
        | rule::FRAME
        | rule::BOUND => rule::QUEUED,
        rule::CONTEXT_AFTER_READ => rule::QUEUED_AFTER_READ,
        other => other,
    };
    if connection.queued_rule != 0 && connection.queued != owner {
        owner = Owner::default();
        way = rule::MIXED_QUEUE;
    }
    connection.queued = owner;
    connection.queued_rule = u32::from(way);
    stacks::at_queue(ctx, pid_tgid, target, place, connection, finding);
}

/// The owner of a context, and whether its bytes were read in that context.
#[inline(always)]
fn context_owner(pid: u32, target: &Target, context: u64) -> (Finding, bool) {
    let key = ContextKey {
        context,
        pid,
        epoch: target.epoch,
    };
    match CONTEXTS.get_ptr(key) {
        Some(found) => {
            // SAFETY: the map's values outlive the program run.
            let found = unsafe { *found };
            if found.seal != seal(key, &found) {
                return (NOBODY, false);
            }
            if found.rule == u32::from(rule::BOUND) && !is_last(pid, found) {
                return (NOBODY, false);
            }
            let finding = Finding {
                owner: found.owner,
                rule: found.rule as u8,
            };
            (finding, found.direct != 0)
        }
        None => (NOBODY, false),
    }
}

#[inline(always)]
fn seal(key: ContextKey, value: &ContextOwner) -> u64 {
    seal::of([
        key.context,
        seal::pair(key.pid, key.epoch),
        value.owner.conn,
        value.owner.offset,
        seal::pair(value.rule, value.direct),
        u64::from(value.fd as u32),
    ])
}

/// Whether a connection is open and has received nothing after the owner.
#[inline(always)]
fn is_last(pid: u32, found: ContextOwner) -> bool {
    let Some(connection) = CONNECTIONS.get_ptr(Descriptor { pid, fd: found.fd }) else {
        return false;
    };
    // SAFETY: the map's values outlive the program run.
    let connection = unsafe { &*connection };
    connection.id == found.owner.conn
        && connection.received.wrapping_sub(1) == found.owner.offset
        && tls::is_followed(pid, connection)
}

/// Notes whose a context is. Addresses are used again at once, so the entry is
/// mostly there already; no other thread looks at it, as the context is this
/// thread's own until the program returns.
#[inline(always)]
fn set_owner(pid: u32, target: &Target, context: u64, finding: Finding, direct: bool) {
    let value = ContextOwner {
        owner: finding.owner,
        rule: u32::from(finding.rule),
        direct: u32::from(direct),
        fd: 0,
        pad: 0,
        seal: 0,
    };
    note(pid, target, context, value);
}

#[inline(always)]
fn note(pid: u32, target: &Target, context: u64, mut value: ContextOwner) {
    let key = ContextKey {
        context,
        pid,
        epoch: target.epoch,
    };
    value.seal = seal(key, &value);
    if let Some(entry) = CONTEXTS.get_ptr_mut(key) {
        // SAFETY: the map's values outlive the program run.
        unsafe { *entry = value };
        return;
    }
    // A context without an entry is nobody's, for the common reason.
    if value.rule != u32::from(rule::UNOWNED_CONTEXT)
        && !evicting::insert(&CONTEXTS, Evicting::Contexts, &key, &value)
    {
        count(Counter::ContextTableRefused);
    }
}
