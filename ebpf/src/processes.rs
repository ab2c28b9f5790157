//! Follows target processes: fork, exec, exit.

use abi::counter::Counter;
use abi::map::{Target, target_flag};
use abi::record::{Process, kind};
use aya_ebpf::helpers::bpf_get_current_pid_tgid;
use aya_ebpf::helpers::generated::bpf_ktime_get_ns;

use crate::counters::count;
use crate::kernel::{self, offset};
use crate::maps::TARGETS;
use crate::{emit, handoffs, threads};

/// The target entry of a process.
#[inline(always)]
pub(crate) fn target(pid: u32) -> Option<&'static Target> {
    // SAFETY: the map's values outlive the program run; a concurrent update
    // by the agent replaces whole values.
    TARGETS.get_ptr(pid).map(|target| unsafe { &*target })
}

/// A task forked. A child process of a target becomes a target at once, so
/// that its first request is seen; returns its id.
#[inline(always)]
pub(crate) fn fork(parent: u64, child: u64) -> Option<u32> {
    let parent = kernel::read::<u32>(parent, offset!(task_tgid))?;
    let target = target(parent)?;
    let pid = kernel::read::<u32>(child, offset!(task_tgid))?;
    let tid = kernel::read::<u32>(child, offset!(task_pid))?;
    handoffs::started(target, parent, pid, tid);
    if pid == parent {
        return None;
    }
    // The child's contexts, sessions and greenlets are not followed until it has probes
    // of its own.
    let mut copy = *target;
    copy.flags &= !(target_flag::LINEAGE
        | target_flag::TASK_AFTER_READ
        | target_flag::WORK_ITEMS
        | target_flag::TLS
        | target_flag::GREENLET_OWNERS);
    if TARGETS.insert(pid, copy, 0).is_err() {
        count(Counter::TargetTableFull);
        return None;
    }
    record(kind::FORK, pid, parent, 0);
    Some(pid)
}

/// The current process replaced its image: what was known of its interpreter
/// is no longer true. `old` is the id that its thread had. Returns its id if
/// it is a target.
#[inline(always)]
pub(crate) fn exec(old: u32) -> Option<u32> {
    let pid_tgid = bpf_get_current_pid_tgid();
    let pid = (pid_tgid >> 32) as u32;
    let before = pid_tgid >> 32 << 32 | u64::from(old);
    if before != pid_tgid {
        // Whatever the process: no thread has this id any more.
        threads::remove(before);
    }
    target(pid)?;
    handoffs::executed(pid_tgid, before);
    let blank = Target::default();
    if TARGETS.insert(pid, blank, 0).is_err() {
        count(Counter::TargetTableFull);
    }
    record(kind::EXEC, pid, 0, 0);
    Some(pid)
}

/// A task ended; with its last thread the process ended, and its id is
/// returned if it was a target.
#[inline(always)]
pub(crate) fn exit(task: u64) -> Option<u32> {
    let pid_tgid = bpf_get_current_pid_tgid();
    let pid = (pid_tgid >> 32) as u32;
    // Even if the process is no target any more: no later thread of this id
    // may find it.
    threads::remove(pid_tgid);
    target(pid)?;
    // The kernel decrements `signal->live` before this tracepoint
    // (do_exit, kernel/exit.c, 5.10 to 6.18).
    let signal = kernel::pointer(task, offset!(task_signal))?;
    if kernel::read::<i32>(signal, offset!(signal_live))? != 0 {
        return None;
    }
    let _absent = TARGETS.remove(pid);
    record(kind::EXIT, pid, 0, 0);
    Some(pid)
}

/// A target listens on a socket.
#[inline(always)]
pub(crate) fn listens(pid: u32, fd: i32) {
    record(kind::LISTEN, pid, 0, fd);
}

#[inline(always)]
fn record(kind: u8, pid: u32, parent: u32, fd: i32) {
    // SAFETY: the helper has no preconditions.
    let at = unsafe { bpf_ktime_get_ns() };
    let record = Process {
        kind,
        pad: [0; 3],
        pid,
        parent,
        fd,
        at,
    };
    emit::urgent(&record, Counter::ProcessRingFull);
}
