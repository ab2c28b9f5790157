//! Work that one thread hands to another, and threads and processes that are
//! started: on whose behalf. ARCHITECTURE.md has the rules and why each is
//! certain.

use abi::counter::{Counter, Evicting};
use abi::map::{Target, target_flag};
use abi::record::{Owner, rule};
use aya_ebpf::helpers::bpf_get_current_pid_tgid;
use pyframes::{frame, origin};

use crate::contexts::{self, Finding, Place};
use crate::counters::count;
use crate::maps::{Thread, WORK, Work, WorkKey, thread_flag};
use crate::user::User;
use crate::{calls, evicting, processes, seal, stacks, threads};

/// What no request submitted, or none that was seen.
const NOBODY: Finding = Finding {
    owner: Owner { conn: 0, offset: 0 },
    rule: rule::UNOWNED_WORK,
};

/// An object is put into a `SimpleQueue`; `args` is the address of the call's
/// arguments, of which it is the first.
///
/// Noted before the call does anything: whoever takes the object finds the
/// note.
#[inline(always)]
pub(crate) fn put(args: u64) {
    let pid_tgid = bpf_get_current_pid_tgid();
    let pid = (pid_tgid >> 32) as u32;
    let Some(target) = processes::target(pid) else {
        return;
    };
    if target.flags & target_flag::WORK_ITEMS == 0 {
        return;
    }
    let Some(item) = crate::user::read::<u64>(args, 0) else {
        return;
    };
    count(Counter::QueuedItems);
    let finding = match threads::entry(pid_tgid) {
        Some(thread) => {
            let place = contexts::place(target, thread);
            let finding = contexts::current_owner(pid, target, thread, place);
            handed_over(thread, finding, rule::WORK_ITEM)
        }
        None => NOBODY,
    };
    note(pid, target, item, finding);
    // Of a pair the second is what will be called: the pair itself is gone
    // when it is.
    if let Some(layout) = stacks::layout(target.layout)
        && crate::user::read::<u64>(item, i64::from(layout.object.ob_size)) == Some(2)
        && let Some(called) = crate::user::read::<u64>(item, i64::from(layout.tuple.ob_item) + 8)
    {
        note(pid, target, called, finding);
    }
}

/// Notes whose an object is.
#[inline(always)]
fn note(pid: u32, target: &Target, item: u64, finding: Finding) {
    let key = WorkKey {
        item,
        pid,
        epoch: target.epoch,
    };
    let mut work = Work {
        owner: finding.owner,
        rule: u64::from(finding.rule),
        seal: 0,
    };
    work.seal = seal(key, &work);
    if let Some(entry) = WORK.get_ptr_mut(key) {
        // SAFETY: the map's values outlive the program run. The address may
        // have been another object's.
        unsafe { *entry = work };
        return;
    }
    // An object without an entry is nobody's.
    if finding.rule != rule::UNOWNED_WORK && !evicting::insert(&WORK, Evicting::Work, &key, &work) {
        count(Counter::WorkTableRefused);
    }
}

/// A thread asks a `SimpleQueue` for an object. If it is an executor's worker,
/// or a connection's of aiosqlite, it is done with what it did before, and does
/// from here on what it will find in its variable `work_item` or `function`.
#[inline(always)]
pub(crate) fn take() {
    let pid_tgid = bpf_get_current_pid_tgid();
    let Some(target) = processes::target((pid_tgid >> 32) as u32) else {
        return;
    };
    if target.flags & target_flag::WORK_ITEMS == 0 {
        return;
    }
    let Some(layout) = stacks::layout(target.layout) else {
        return;
    };
    let Some(thread) = threads::entry(pid_tgid) else {
        return;
    };
    calls::passes(pid_tgid, thread);
    let Some(Place { tstate, .. }) = contexts::place(target, thread) else {
        return;
    };
    let Ok(frame) = frame::innermost(&User, layout, tstate) else {
        return;
    };
    let Ok(code) = frame::code(&User, layout, frame) else {
        return;
    };
    if thread.work_frame != frame || thread.work_code != code {
        let Ok(Some(slot)) = origin::work_item_slot(&User, layout, code) else {
            return;
        };
        thread.work_frame = frame;
        thread.work_code = code;
        thread.work_slot = slot;
    }
    count(Counter::WorkItemsTaken);
    thread.work_epoch = target.epoch;
    thread.owner = Owner::default();
    thread.rule = 0;
    // An event loop that an earlier item ran has ended with it.
    thread.loop_context = 0;
    let lasting = thread_flag::WAITED | thread_flag::BORN | thread_flag::UNSURE;
    thread.flags = thread_flag::WORKS | thread.flags & lasting;
}

/// Who submitted what an executor's thread works on.
#[inline(always)]
pub(crate) fn item(pid: u32, target: &Target, thread: &Thread) -> Finding {
    // Items that were taken while nobody looked are not known.
    if target.flags & target_flag::WORK_ITEMS == 0 || thread.work_epoch != target.epoch {
        return NOBODY;
    }
    let Some(layout) = stacks::layout(target.layout) else {
        return NOBODY;
    };
    match frame::code(&User, layout, thread.work_frame) {
        Ok(code) if code == thread.work_code => {}
        _ => return NOBODY,
    }
    let Ok(Some(item)) = frame::local(&User, layout, thread.work_frame, thread.work_slot) else {
        return NOBODY;
    };
    let key = WorkKey {
        item,
        pid,
        epoch: target.epoch,
    };
    match WORK.get_ptr(key) {
        Some(work) => {
            // SAFETY: the map's values outlive the program run.
            let work = unsafe { *work };
            if work.seal != seal(key, &work) {
                return NOBODY;
            }
            Finding {
                owner: work.owner,
                rule: work.rule as u8,
            }
        }
        None => NOBODY,
    }
}

#[inline(always)]
fn seal(key: WorkKey, value: &Work) -> u64 {
    seal::of([
        key.item,
        seal::pair(key.pid, key.epoch),
        value.owner.conn,
        value.owner.offset,
        value.rule,
    ])
}

/// The current thread starts another, in its own process or as the first of
/// a new one.
#[inline(always)]
pub(crate) fn started(target: &Target, parent: u32, pid: u32, tid: u32) {
    let child = u64::from(pid) << 32 | u64::from(tid);
    let pid_tgid = bpf_get_current_pid_tgid();
    let Some(starter) = threads::entry(pid_tgid) else {
        return;
    };
    let place = contexts::place(target, starter);
    // Plain values from here on: kernels before 6.3 refuse to copy what a
    // none leaves undefined.
    let (context, tstate) = match place {
        Some(Place {
            context, tstate, ..
        }) => (context, tstate),
        None => (0, 0),
    };
    let finding = contexts::current_owner(parent, target, starter, place);
    let finding = handed_over(starter, finding, rule::STARTED);
    let mut owner = Owner::default();
    let mut way = 0;
    if finding.owner.conn == 0 {
        if finding.rule != rule::UNOWNED_WORK {
            way = finding.rule;
        }
    } else if is_own(target, starter, tstate, pid == parent) {
        count(Counter::StartedByRequest);
        owner = finding.owner;
        way = finding.rule;
    } else {
        count(Counter::StartedByOthers);
        way = rule::FOREIGN_START;
    }
    // Of an earlier thread with this id nothing is left: it has ended.
    let Some(thread) = threads::insert(child) else {
        return;
    };
    thread.owner = owner;
    thread.rule = u32::from(way);
    if pid == parent {
        thread.flags = thread_flag::BORN;
        return;
    }
    thread.flags = starter.flags & thread_flag::EXECUTED;
    if way != 0 {
        // The child goes on in its parent's context to its end; nothing else
        // of the parent's goes on there.
        thread.loop_context = context;
    }
}

/// Whether it is the application's own code that starts a thread or a process
/// now. What another program starts, it starts for whom it was started
/// itself.
#[inline(always)]
fn is_own(target: &Target, starter: &Thread, tstate: u64, thread: bool) -> bool {
    if tstate == 0 {
        return may_be_no_python(target, starter);
    }
    let Some(layout) = stacks::layout(target.layout) else {
        return false;
    };
    let own = origin::is_applications_start(&User, layout, tstate, thread);
    matches!(own, Ok(true))
}

/// The current process replaced its image; `before` is what its only thread
/// was called. It remains whose it was started for, and no more.
#[inline(always)]
pub(crate) fn executed(pid_tgid: u64, before: u64) {
    let mut owner = Owner::default();
    let mut way = 0;
    if before == pid_tgid
        && let Some(known) = threads::known(pid_tgid)
        && known.rule != 0
    {
        owner = known.owner;
        way = known.rule;
    }
    threads::remove(pid_tgid);
    if way != 0
        && let Some(thread) = threads::insert(pid_tgid)
    {
        thread.owner = owner;
        thread.rule = way;
        thread.flags = thread_flag::EXECUTED;
    }
}

/// Whether a thread without a Python state may be of a program that is no
/// Python. The agent may have told of the process just after it has executed
/// it, and not have noticed yet.
#[inline(always)]
fn may_be_no_python(target: &Target, thread: &Thread) -> bool {
    target.flags & target_flag::PYTHON == 0 || thread.flags & thread_flag::EXECUTED != 0
}

/// Who owns what a thread does without a Python state: nobody, unless it is
/// of a program that is no Python, which was started for somebody.
#[inline(always)]
pub(crate) fn outside_python(target: &Target, thread: &Thread) -> Finding {
    if thread.rule != 0 && may_be_no_python(target, thread) {
        return threads::finding(thread);
    }
    Finding {
        owner: Owner::default(),
        rule: rule::NO_THREAD_STATE,
    }
}

/// Who owns what the thread hands over, `way` being the rule by which.
///
/// A thread that has begun to answer the request it read last may be done
/// with it: nobody looks afterwards whether the request had ended.
#[inline(always)]
fn handed_over(thread: &Thread, finding: Finding, way: u8) -> Finding {
    match finding.rule {
        rule::THREAD if thread.flags & thread_flag::ANSWERED != 0 => Finding {
            owner: Owner::default(),
            rule: rule::AFTER_ANSWER,
        },
        rule::CONTEXT
        | rule::THREAD
        | rule::WORK_ITEM
        | rule::STARTED
        | rule::FRAME
        | rule::BOUND
        | rule::SPAWNED => Finding {
            owner: finding.owner,
            rule: way,
        },
        // A greenlet may have answered what it read: that is known of threads
        // only, so what it hands over is nobody's.
        //
        // Whether an inferred link holds is still to be seen.
        rule::CONTEXT_AFTER_READ => finding,
        rule::AFTER_ANSWER => Finding {
            owner: Owner::default(),
            rule: rule::AFTER_ANSWER,
        },
        _ => NOBODY,
    }
}
