//! Whose a greenlet is: owners by greenlet, where greenlets share a thread.
//!
//! greenlet (2.0 and later) keeps a state per thread, to which a thread-local
//! variable points; the state begins with the thread's main greenlet and the
//! current one. The agent's `target/greenlets` finds the variable.

use abi::counter::{Counter, Evicting};
use abi::map::{Target, target_flag};
use abi::record::{Owner, rule};
use aya_ebpf::helpers::bpf_get_current_pid_tgid;
use aya_ebpf::programs::ProbeContext;
use pyframes::frame::Advance;

use crate::arch;
use crate::contexts::{self, Finding, Place};
use crate::counters::count;
use crate::maps::{GREENLETS, GreenletKey, GreenletOwner, Thread};
use crate::stacks::{self, Chain as _};
use crate::user::{self, User};
use crate::{evicting, processes, seal, threads};

/// The thread runs in no greenlet but its main one, which is the thread.
pub(crate) const NONE: u64 = 0;
/// There may be one, and it cannot be read. No object begins here.
pub(crate) const UNREADABLE: u64 = 1;

/// glibc's mark of a block that a thread has not used yet
/// (`TLS_DTV_UNALLOCATED`).
const UNALLOCATED: u64 = u64::MAX;
/// What greenlet's variable holds until the thread uses greenlets.
const UNUSED: u64 = 1;
/// Frames that are looked at when a greenlet is born: two of the thread
/// module's replacement, `Thread.start`, and that of the pool.
const MAX_FRAMES: u32 = 8;
/// Functions of the standard library that start the workers of a pool, as
/// little-endian words of their names. Under monkey patching the workers are
/// greenlets; they are started by the request that comes first, and serve
/// all that come later.
const STARTERS: [[u64; 3]; 2] = [
    words(b"_adjust_thread_count\0\0\0\0"),
    words(b"_repopulate_pool_static\0"),
];

/// The current greenlet of the thread with this thread pointer.
#[inline(always)]
pub(crate) fn current(target: &Target, pointer: u64) -> u64 {
    if target.flags & target_flag::GREENLETS == 0 {
        return if target.flags & target_flag::GREENLETS_UNREADABLE != 0 {
            UNREADABLE
        } else {
            NONE
        };
    }
    match read_current(target, pointer) {
        Some(greenlet) => greenlet,
        None => {
            count(Counter::GreenletUnreadable);
            UNREADABLE
        }
    }
}

#[inline(always)]
fn read_current(target: &Target, pointer: u64) -> Option<u64> {
    let block = if target.greenlet_module == 0 {
        pointer
    } else {
        let table: u64 = user::read(pointer, arch::TLS_TABLE)?;
        // Before the table is how many modules it has room for.
        let room: u64 = user::read(table, -16)?;
        let module = u64::from(target.greenlet_module);
        if module > room {
            return Some(NONE);
        }
        user::read(table, (module * 16) as i64)?
    };
    if block == 0 || block == UNALLOCATED {
        return Some(NONE);
    }
    let state: u64 = user::read(block, target.greenlet_slot)?;
    if state == 0 || state == UNUSED {
        return Some(NONE);
    }
    let [main, current]: [u64; 2] = user::read(state, 0)?;
    if main == 0 || current == 0 {
        return None;
    }
    // The self-check: main greenlets are of the very type.
    let layout = stacks::layout(target.layout)?;
    let main_type: u64 = user::read(main, i64::from(layout.object.ob_type))?;
    if main_type != target.greenlet_type {
        return None;
    }
    Some(if current == main { NONE } else { current })
}

/// Whose the events of a greenlet are; it is the current one.
#[inline(always)]
pub(crate) fn owner(pid: u32, target: &Target, greenlet: u64) -> Finding {
    let nobody = |rule| Finding {
        owner: Owner { conn: 0, offset: 0 },
        rule,
    };
    if greenlet == UNREADABLE || target.flags & target_flag::GREENLET_OWNERS == 0 {
        return nobody(rule::UNSEEN_GREENLET);
    }
    let key = key(pid, target, greenlet);
    let Some(found) = GREENLETS.get_ptr(key) else {
        return nobody(rule::UNOWNED_GREENLET);
    };
    // SAFETY: the map's values outlive the program run.
    let found = unsafe { *found };
    if found.seal != seal(key, &found) {
        return nobody(rule::UNOWNED_GREENLET);
    }
    if found.tid != bpf_get_current_pid_tgid() as u32 {
        return nobody(rule::UNOWNED_GREENLET);
    }
    Finding {
        owner: found.owner,
        rule: found.rule as u8,
    }
}

/// The current greenlet has read server bytes outside any entered context.
///
/// It owns nothing until the thread was seen to wait for many descriptors:
/// attached in the middle of its turn, a greenlet that is an event loop would
/// pass for one that serves one request after the other.
#[inline(always)]
pub(crate) fn reads(pid_tgid: u64, target: &Target, thread: &Thread, greenlet: u64, owner: Owner) {
    if greenlet == UNREADABLE
        || target.flags & target_flag::GREENLET_OWNERS == 0
        || thread.greenlet_epoch != target.greenlet_epoch
        || thread.loop_greenlet == greenlet
    {
        return;
    }
    let key = key((pid_tgid >> 32) as u32, target, greenlet);
    let value = GreenletOwner {
        owner,
        rule: u32::from(rule::GREENLET),
        tid: pid_tgid as u32,
        seal: 0,
    };
    if let Some(entry) = GREENLETS.get_ptr(key) {
        // SAFETY: the map's values outlive the program run.
        let entry = unsafe { *entry };
        if entry.seal != seal(key, &entry) {
            return forget(key);
        }
        if entry.rule == u32::from(rule::EVENT_LOOP) {
            return;
        }
    }
    set(key, value);
}

/// The greenlet has read what no connection is known of.
#[inline(always)]
pub(crate) fn unknown_read(pid: u32, target: &Target, greenlet: u64) {
    if greenlet == UNREADABLE || target.flags & target_flag::GREENLET_OWNERS == 0 {
        return;
    }
    let key = key(pid, target, greenlet);
    let Some(entry) = GREENLETS.get_ptr(key) else {
        return;
    };
    // SAFETY: the map's values outlive the program run.
    if unsafe { (*entry).rule } != u32::from(rule::EVENT_LOOP) {
        forget(key);
    }
}

/// The thread waits for many descriptors at a time: whatever greenlet does
/// that, mostly the hub's, is an event loop for good.
#[inline(always)]
pub(crate) fn waits(pid_tgid: u64, target: &Target, thread: &mut Thread, greenlet: u64) {
    if target.flags & target_flag::GREENLET_OWNERS == 0 {
        return;
    }
    thread.greenlet_epoch = target.greenlet_epoch;
    thread.loop_greenlet = greenlet;
    if greenlet == NONE || greenlet == UNREADABLE {
        return;
    }
    let value = GreenletOwner {
        owner: Owner { conn: 0, offset: 0 },
        rule: u32::from(rule::EVENT_LOOP),
        tid: pid_tgid as u32,
        seal: 0,
    };
    set(key((pid_tgid >> 32) as u32, target, greenlet), value);
}

/// A greenlet is initialized: it is its maker's, whose it was before does not
/// count any more.
#[inline(always)]
pub(crate) fn born(greenlet: u64) {
    let pid_tgid = bpf_get_current_pid_tgid();
    let pid = (pid_tgid >> 32) as u32;
    let Some(target) = processes::target(pid) else {
        return;
    };
    if target.flags & target_flag::GREENLET_OWNERS == 0 {
        return;
    }
    count(Counter::GreenletBirths);
    let key = key(pid, target, greenlet);
    let Some(thread) = threads::entry(pid_tgid) else {
        return forget(key);
    };
    let place = contexts::place(target, thread);
    let finding = contexts::current_owner(pid, target, thread, place);
    let rule = match finding.rule {
        rule::CONTEXT
        | rule::THREAD
        | rule::WORK_ITEM
        | rule::STARTED
        | rule::GREENLET
        | rule::SPAWNED => rule::SPAWNED,
        rule::CONTEXT_AFTER_READ => rule::CONTEXT_AFTER_READ,
        _ => return forget(key),
    };
    let Some(Place { tstate, .. }) = place else {
        return forget(key);
    };
    if for_a_pool(target, tstate) {
        count(Counter::GreenletWorkers);
        return forget(key);
    }
    let value = GreenletOwner {
        owner: finding.owner,
        rule: u32::from(rule),
        tid: pid_tgid as u32,
        seal: 0,
    };
    set(key, value);
}

/// A greenlet ends, and its address may become another one's.
#[inline(always)]
pub(crate) fn ended(greenlet: u64) {
    let pid = (bpf_get_current_pid_tgid() >> 32) as u32;
    if let Some(target) = processes::target(pid) {
        forget(key(pid, target, greenlet));
    }
}

/// Whether a greenlet that is born now is to be one of the workers of a pool;
/// also if that cannot be told.
#[inline(always)]
fn for_a_pool(target: &Target, tstate: u64) -> bool {
    if !ProbeContext::claim() {
        count(Counter::StackBusy);
        return true;
    }
    let found = started_by_a_pool(target, tstate);
    ProbeContext::release();
    found
}

#[inline(always)]
fn started_by_a_pool(target: &Target, tstate: u64) -> bool {
    let (Some(layout), Some(walk)) = (
        stacks::layout(target.layout),
        stacks::current::<ProbeContext>(),
    ) else {
        return true;
    };
    let windows = &mut walk.scratch.windows;
    windows.forget();
    if walk.walker.start(&User, layout, tstate, windows).is_err() {
        return true;
    }
    for _ in 0..MAX_FRAMES {
        match walk.walker.advance(&User, layout, windows) {
            Advance::Frame => {}
            Advance::Shim => continue,
            Advance::End => return false,
            Advance::Unreadable => return true,
        }
        let code = walk.walker.frame.code;
        let Some(name) = user::read::<u64>(code, i64::from(layout.code.co_name)) else {
            return true;
        };
        // A shorter name at the end of a page cannot be read so far; the
        // names in question are long enough to be.
        let text = user::read::<[u64; 3]>(name, i64::from(layout.unicode.ascii_size));
        if let Some(text) = text
            && STARTERS.contains(&text)
        {
            return true;
        }
    }
    false
}

#[inline(always)]
fn key(pid: u32, target: &Target, greenlet: u64) -> GreenletKey {
    GreenletKey {
        greenlet,
        pid,
        epoch: target.greenlet_epoch,
    }
}

/// Notes whose a greenlet is; where that fails, an earlier owner is forgotten.
#[inline(always)]
fn set(key: GreenletKey, mut value: GreenletOwner) {
    value.seal = seal(key, &value);
    if !evicting::put(&GREENLETS, Evicting::Greenlets, &key, &value) {
        forget(key);
        count(Counter::GreenletTableRefused);
    }
}

#[inline(always)]
fn seal(key: GreenletKey, value: &GreenletOwner) -> u64 {
    seal::of([
        key.greenlet,
        seal::pair(key.pid, key.epoch),
        value.owner.conn,
        value.owner.offset,
        seal::pair(value.rule, value.tid),
    ])
}

#[inline(always)]
fn forget(key: GreenletKey) {
    // Mostly it is not there.
    evicting::remove(&GREENLETS, Evicting::Greenlets, &key);
}

/// The words that a text of three words is in memory.
const fn words(text: &[u8; 24]) -> [u64; 3] {
    let mut words = [0; 3];
    let mut at = 0;
    while at < text.len() {
        words[at / 8] |= (text[at] as u64) << (at % 8 * 8);
        at += 1;
    }
    words
}
