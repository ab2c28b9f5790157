//! Whose event is it: owners by `PyContext` lineage, by thread, and by the
//! queue of an event loop's transport. ARCHITECTURE.md has the rules and why
//! each is certain.

use abi::counter::Counter;
use abi::map::{Connection, Descriptor, Target, target_flag};
use abi::record::{Owner, role, rule};
use aya_ebpf::helpers::{bpf_get_current_pid_tgid, bpf_get_current_task};

use crate::counters::count;
use crate::kernel::{self, offset};
use crate::maps::{
    CONNECTIONS, CONTEXTS, ContextKey, ContextOwner, QUEUED, Queued, Thread, thread_flag,
};
use crate::{processes, threads, user};

/// The current thread's place in Python.
#[derive(Clone, Copy)]
pub(crate) struct Place {
    /// Address of the current `PyContext`, or 0.
    pub(crate) context: u64,
    /// Whether it was entered (`Context.run`); otherwise it is the thread's
    /// own base context, which is never a copy.
    pub(crate) entered: bool,
}

/// An owner and the rule that found it, or the reason for none.
#[derive(Clone, Copy)]
pub(crate) struct Finding {
    /// Whose; `conn` 0 means nobody's.
    pub(crate) owner: Owner,
    /// See `abi::record::rule`.
    pub(crate) rule: u8,
}

/// Reads the current thread's context; none if its `PyThreadState` cannot be
/// found or fails its self-check.
#[inline(always)]
pub(crate) fn place(target: &Target) -> Option<Place> {
    if target.flags & target_flag::PYTHON == 0 {
        return None;
    }
    // SAFETY: the helper has no preconditions.
    let task = unsafe { bpf_get_current_task() };
    let thread: u64 = kernel::read(task, offset!(task_thread_pointer))?;
    let base = if target.flags & target_flag::TSS_INDIRECT != 0 {
        user::read::<u64>(thread, target.tss_indirect)?
    } else {
        thread
    };
    let tstate: u64 = user::read(base, target.tss_slot)?;
    if tstate == 0 {
        return None;
    }
    let id: u64 = user::read(tstate, i64::from(target.tstate_thread_id))?;
    if id != thread {
        count(Counter::ThreadStateMismatch);
        return None;
    }
    let context: u64 = user::read(tstate, i64::from(target.tstate_context))?;
    if context == 0 {
        return Some(Place {
            context,
            entered: false,
        });
    }
    // `ctx_entered` is an int, or a byte in free-threaded 3.14; the first
    // byte tells on a little-endian machine.
    let entered: u8 = user::read(context, i64::from(target.context_entered))?;
    Some(Place {
        context,
        entered: entered != 0,
    })
}

/// A server connection's bytes were read: they own what is done from here on
/// in this context, or outside any context by this thread.
#[inline(always)]
pub(crate) fn read_by(pid: u32, thread: &mut Thread, place: Option<Place>, owner: Owner, fd: i32) {
    match place {
        Some(Place {
            context,
            entered: true,
        }) => {
            set_owner(pid, context, owner, rule::CONTEXT);
        }
        _ => threads::reads(thread, owner, fd),
    }
}

/// Who owns what the current thread does now.
#[inline(always)]
pub(crate) fn current_owner(pid: u32, thread: &Thread, place: Option<Place>) -> Finding {
    match place {
        None => Finding {
            owner: Owner::default(),
            rule: rule::NO_THREAD_STATE,
        },
        Some(Place {
            context,
            entered: true,
        }) => context_owner(pid, context),
        Some(_) if thread.flags & thread_flag::EVENT_LOOP != 0 => Finding {
            owner: Owner::default(),
            rule: rule::EVENT_LOOP,
        },
        Some(_) if thread.owner.conn == 0 => Finding {
            owner: Owner::default(),
            rule: rule::IDLE_THREAD,
        },
        Some(_) => Finding {
            owner: thread.owner,
            rule: rule::THREAD,
        },
    }
}

/// Who owns the bytes that are being sent on a client connection: whoever
/// queued them, or whoever sends them.
#[inline(always)]
pub(crate) fn sender(
    pid: u32,
    fd: i32,
    conn: u64,
    thread: &Thread,
    place: Option<Place>,
) -> Finding {
    let finding = current_owner(pid, thread, place);
    if finding.rule != rule::EVENT_LOOP {
        return finding;
    }
    let key = Descriptor { pid, fd };
    let Some(queued) = QUEUED.get_ptr(key) else {
        return finding;
    };
    // SAFETY: the map's values outlive the program run.
    let queued = unsafe { *queued };
    let _raced = QUEUED.remove(key);
    if queued.conn != conn {
        return finding;
    }
    Finding {
        owner: queued.owner,
        rule: queued.rule as u8,
    }
}

/// `PyContext_CopyCurrent` is about to return `child`, made from the current
/// context.
#[inline(always)]
pub(crate) fn copied(child: u64) {
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
        set_owner(pid, child, Owner::default(), rule::UNKNOWN_CONTEXT);
        return;
    };
    let place = place(target);
    let mut finding = current_owner(pid, thread, place);
    let inferable = finding.rule == rule::UNKNOWN_CONTEXT || finding.rule == rule::UNOWNED_CONTEXT;
    if inferable
        && target.flags & target_flag::TASK_AFTER_READ != 0
        && thread.flags & thread_flag::FRESH_READ != 0
        && thread.flags & thread_flag::EVENT_LOOP != 0
    {
        finding = Finding {
            owner: thread.read,
            rule: rule::CONTEXT_AFTER_READ,
        };
        thread.flags &= !thread_flag::FRESH_READ;
    }
    let rule = match finding.rule {
        rule::CONTEXT | rule::THREAD => rule::CONTEXT,
        rule::CONTEXT_AFTER_READ => rule::CONTEXT_AFTER_READ,
        rule::UNKNOWN_CONTEXT | rule::NO_THREAD_STATE => rule::UNKNOWN_CONTEXT,
        _ => rule::UNOWNED_CONTEXT,
    };
    set_owner(pid, child, finding.owner, rule);
}

/// A context came into being by another way than copying the current one: it
/// is nobody's, whatever its address was before.
#[inline(always)]
pub(crate) fn created(context: u64) {
    let pid = (bpf_get_current_pid_tgid() >> 32) as u32;
    if processes::target(pid).is_some() && context != 0 {
        set_owner(pid, context, Owner::default(), rule::UNOWNED_CONTEXT);
    }
}

/// uvloop's transport was asked to write. It writes later, outside any
/// context, so the owner is noted now.
#[inline(always)]
pub(crate) fn queued(transport: u64) {
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
    let Some(connection) = CONNECTIONS.get_ptr(key) else {
        return;
    };
    // SAFETY: the map's values outlive the program run.
    let Connection {
        id,
        role: end,
        muted,
        ..
    } = unsafe { *connection };
    if end == role::SERVER || muted != 0 {
        return;
    }
    let Some(thread) = threads::entry(pid_tgid) else {
        return;
    };
    count(Counter::QueuedWrites);
    let finding = current_owner(pid, thread, place(target));
    let mut queued = Queued {
        conn: id,
        owner: finding.owner,
        rule: match finding.rule {
            rule::CONTEXT | rule::THREAD => u32::from(rule::QUEUED),
            rule::CONTEXT_AFTER_READ => u32::from(rule::QUEUED_AFTER_READ),
            other => u32::from(other),
        },
        pad: 0,
    };
    if let Some(earlier) = QUEUED.get_ptr(key) {
        // SAFETY: the map's values outlive the program run.
        let earlier = unsafe { *earlier };
        if earlier.conn == id && earlier.owner != queued.owner {
            queued.owner = Owner::default();
            queued.rule = u32::from(rule::MIXED_QUEUE);
        }
    }
    if QUEUED.insert(key, queued, 0).is_err() {
        // An older entry must not speak for these bytes.
        let _absent = QUEUED.remove(key);
    }
}

#[inline(always)]
fn context_owner(pid: u32, context: u64) -> Finding {
    let key = ContextKey {
        context,
        pid,
        pad: 0,
    };
    match CONTEXTS.get_ptr(key) {
        Some(found) => {
            // SAFETY: the map's values outlive the program run.
            let found = unsafe { *found };
            Finding {
                owner: found.owner,
                rule: found.rule as u8,
            }
        }
        None => Finding {
            owner: Owner::default(),
            rule: rule::UNKNOWN_CONTEXT,
        },
    }
}

#[inline(always)]
fn set_owner(pid: u32, context: u64, owner: Owner, rule: u8) {
    let key = ContextKey {
        context,
        pid,
        pad: 0,
    };
    let value = ContextOwner {
        owner,
        rule: u32::from(rule),
        pad: 0,
    };
    if CONTEXTS.insert(key, value, 0).is_err() {
        count(Counter::ContextTableRefused);
        // An older entry must not speak for this context.
        let _absent = CONTEXTS.remove(key);
    }
}
