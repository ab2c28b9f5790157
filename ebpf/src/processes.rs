//! Follows target processes: fork, exec, exit.

use abi::counter::Counter;
use abi::map::Target;
use abi::record::{Process, kind};
use aya_ebpf::helpers::bpf_get_current_pid_tgid;
use aya_ebpf::helpers::generated::bpf_ktime_get_ns;

use crate::counters::count;
use crate::emit;
use crate::kernel::{self, offset};
use crate::maps::{TARGETS, THREADS};

/// The target entry of a process.
#[inline(always)]
pub(crate) fn target(pid: u32) -> Option<&'static Target> {
    // SAFETY: the map's values outlive the program run; a concurrent update
    // by the agent replaces whole values.
    TARGETS.get_ptr(pid).map(|target| unsafe { &*target })
}

/// A task forked. A child process of a target becomes a target at once, so
/// that its first request is seen.
#[inline(always)]
pub(crate) fn fork(parent: u64, child: u64) {
    let Some(parent) = kernel::read::<u32>(parent, offset!(task_tgid)) else {
        return;
    };
    let Some(target) = target(parent) else {
        return;
    };
    let Some(pid) = kernel::read::<u32>(child, offset!(task_tgid)) else {
        return;
    };
    if pid == parent {
        return;
    }
    let copy = *target;
    if TARGETS.insert(pid, &copy, 0).is_err() {
        count(Counter::TargetTableFull);
        return;
    }
    record(kind::FORK, pid, parent, 0);
}

/// The current process replaced its image: what was known of its interpreter
/// is no longer true.
#[inline(always)]
pub(crate) fn exec() {
    let pid = (bpf_get_current_pid_tgid() >> 32) as u32;
    if target(pid).is_none() {
        return;
    }
    let blank = Target::default();
    if TARGETS.insert(pid, &blank, 0).is_err() {
        count(Counter::TargetTableFull);
    }
    record(kind::EXEC, pid, 0, 0);
}

/// A task ended; with its last thread the process ended.
#[inline(always)]
pub(crate) fn exit(task: u64) {
    let pid_tgid = bpf_get_current_pid_tgid();
    let pid = (pid_tgid >> 32) as u32;
    if target(pid).is_none() {
        return;
    }
    // An entry that is not there is no error: the thread made no call we saw.
    let _absent = THREADS.remove(pid_tgid);
    // The kernel decrements `signal->live` before this tracepoint
    // (do_exit, kernel/exit.c, 5.10 to 6.18).
    let live = kernel::pointer(task, offset!(task_signal))
        .and_then(|signal| kernel::read::<i32>(signal, offset!(signal_live)));
    if live == Some(0) {
        let _absent = TARGETS.remove(pid);
        record(kind::EXIT, pid, 0, 0);
    }
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
    emit::record(&record, Counter::ProcessRingFull);
}
