//! System calls of target processes: which of them matter and what their
//! arguments mean.
//!
//! Arguments are read at the exit, where the kernel still has them: one
//! program run instead of two, and a call that began before the attach is
//! seen whole. The entry is watched only where its time matters (a client's
//! first byte), or where the exit is too late (`close`: another thread may
//! have the descriptor again by then; `select`: its sets are overwritten).

use abi::record::{direction, role};
use aya_ebpf::helpers::bpf_get_current_pid_tgid;
use aya_ebpf::helpers::generated::bpf_ktime_get_ns;
use aya_ebpf::programs::RawTracePointContext;

use crate::arch::{self, nr};
use crate::capture::{self, Source};
use crate::{calls, connections, contexts, processes, threads, user};

const EINPROGRESS: i64 = -115;
const MSG_PEEK: u64 = 2;
const F_DUPFD: u64 = 0;
const F_DUPFD_CLOEXEC: u64 = 1030;
/// Words of an `fd_set` that are looked at: 256 descriptors. A larger set is
/// taken for an event loop's.
const SELECT_WORDS: usize = 4;

/// A system call begins.
#[inline(always)]
pub(crate) fn enter(regs: u64, number: i64) {
    match number {
        nr::SENDTO | nr::WRITE | nr::SENDMSG | nr::WRITEV | nr::SENDFILE => {
            if let Some(pid_tgid) = target_thread()
                && let Some(thread) = threads::entry(pid_tgid)
            {
                // SAFETY: the helper has no preconditions.
                thread.entered = unsafe { bpf_ktime_get_ns() };
                calls::passes(pid_tgid, thread);
            }
        }
        // At its exit the sets name those that are ready only.
        nr::SELECT | nr::PSELECT6 => {
            if let Some(pid_tgid) = target_thread()
                && let Some(args) = arch::args(regs)
                && selects_several(args)
                && let Some(thread) = threads::entry(pid_tgid)
            {
                calls::passes(pid_tgid, thread);
                threads::waits(thread, false);
                if let Some(target) = processes::target((pid_tgid >> 32) as u32) {
                    contexts::selects(pid_tgid, target, thread);
                }
            }
        }
        nr::CLOSE | nr::DUP2 | nr::DUP3 => {
            let Some(pid_tgid) = target_thread() else {
                return;
            };
            let Some([first, second, ..]) = arch::args(regs) else {
                return;
            };
            let fd = if number == nr::CLOSE { first } else { second };
            connections::close((pid_tgid >> 32) as u32, fd as i32);
        }
        _ => {}
    }
}

/// A system call returned `result`.
#[inline(always)]
pub(crate) fn exit(ctx: &RawTracePointContext, regs: u64, result: i64) {
    if result < 0 && result != EINPROGRESS {
        return;
    }
    let Some(number) = arch::number(regs) else {
        return;
    };
    if !matters(number) {
        return;
    }
    let Some(pid_tgid) = target_thread() else {
        return;
    };
    let Some(args) = arch::args(regs) else {
        return;
    };
    let [first, second, third, fourth] = args;
    let fd = first as i32;
    let (way, source) = match number {
        nr::RECVFROM if fourth & MSG_PEEK != 0 => return,
        nr::RECVMSG if third & MSG_PEEK != 0 => return,
        nr::READ | nr::RECVFROM => (direction::RECEIVED, Source::buffer(second)),
        nr::WRITE | nr::SENDTO => (direction::SENT, Source::buffer(second)),
        nr::READV => (direction::RECEIVED, Source::vector(second, third)),
        nr::WRITEV => (direction::SENT, Source::vector(second, third)),
        nr::RECVMSG | nr::SENDMSG => {
            let way = if number == nr::SENDMSG {
                direction::SENT
            } else {
                direction::RECEIVED
            };
            match message_vector(second) {
                Some((vector, count)) => (way, Source::vector(vector, count)),
                None => (way, Source::UNSEEN),
            }
        }
        nr::SENDFILE => (direction::SENT, Source::UNSEEN),
        nr::EPOLL_WAIT | nr::EPOLL_PWAIT | nr::EPOLL_PWAIT2 => {
            return wait(pid_tgid, third > 1, true);
        }
        nr::POLL | nr::PPOLL => return wait(pid_tgid, second > 1, false),
        nr::SELECT | nr::PSELECT6 => return waited(pid_tgid),
        nr::LISTEN => return processes::listens((pid_tgid >> 32) as u32, fd),
        number => {
            if let Some((fd, role)) = opened(pid_tgid, number, args, result) {
                connections::open(pid_tgid, fd, role);
            }
            return;
        }
    };
    if result > 0 {
        capture::begin(ctx, pid_tgid, fd, way, source, result as u64);
    }
}

/// Whether the exit of this system call is looked at. Most are not, and every
/// system call of the machine comes by.
#[inline(always)]
fn matters(number: i64) -> bool {
    matches!(
        number,
        nr::READ
            | nr::WRITE
            | nr::READV
            | nr::WRITEV
            | nr::RECVFROM
            | nr::SENDTO
            | nr::RECVMSG
            | nr::SENDMSG
            | nr::SENDFILE
            | nr::ACCEPT
            | nr::ACCEPT4
            | nr::CONNECT
            | nr::LISTEN
            | nr::DUP
            | nr::DUP2
            | nr::DUP3
            | nr::FCNTL
            | nr::EPOLL_WAIT
            | nr::EPOLL_PWAIT
            | nr::EPOLL_PWAIT2
            | nr::POLL
            | nr::PPOLL
            | nr::SELECT
            | nr::PSELECT6
    )
}

/// The descriptor that a call made a connection, and the process's part in
/// it.
#[inline(always)]
fn opened(pid_tgid: u64, number: i64, args: [u64; 4], result: i64) -> Option<(i32, u8)> {
    let [first, second, ..] = args;
    let fd = first as i32;
    match number {
        nr::ACCEPT | nr::ACCEPT4 => {
            waited(pid_tgid);
            contexts::accepted(pid_tgid);
            return Some((result as i32, role::SERVER));
        }
        nr::CONNECT => return Some((fd, role::CLIENT)),
        nr::DUP | nr::DUP2 | nr::DUP3 => {}
        nr::FCNTL if second == F_DUPFD || second == F_DUPFD_CLOEXEC => {}
        _ => return None,
    }
    connections::role((pid_tgid >> 32) as u32, fd).map(|role| (result as i32, role))
}

/// `pid_tgid` of the current thread if its process is a target.
#[inline(always)]
fn target_thread() -> Option<u64> {
    let pid_tgid = bpf_get_current_pid_tgid();
    processes::target((pid_tgid >> 32) as u32).map(|_| pid_tgid)
}

/// A wait on a set of descriptors is over. One descriptor is how a blocking
/// call with a timeout waits, and makes no event loop: `selectors` asks epoll
/// for as many events as it has descriptors, event loops in C for hundreds.
///
/// Looked at when it is over, because an attach may fall into it.
#[inline(always)]
fn wait(pid_tgid: u64, several: bool, epoll: bool) {
    let Some(thread) = threads::entry(pid_tgid) else {
        return;
    };
    calls::passes(pid_tgid, thread);
    threads::waited(thread);
    if several {
        threads::waits(thread, epoll);
        if let Some(target) = processes::target((pid_tgid >> 32) as u32) {
            contexts::waits(pid_tgid, target, thread);
        }
    }
}

/// The thread returned from a wait.
#[inline(always)]
fn waited(pid_tgid: u64) {
    if let Some(thread) = threads::entry(pid_tgid) {
        threads::waited(thread);
    }
}

/// Whether the three sets of a `select` name more than one descriptor.
///
/// Without a branch per word: the verifier would follow every combination.
#[inline(always)]
fn selects_several(args: [u64; 4]) -> bool {
    let [descriptors, sets @ ..] = args;
    if descriptors > SELECT_WORDS as u64 * 64 {
        return true;
    }
    let mut named = 0;
    for set in sets {
        let mut words = [0u64; SELECT_WORDS];
        // A set that is not given or cannot be read stays empty.
        // SAFETY: `words` has the size that is asked for.
        let _absent =
            unsafe { user::copy(set, words.as_mut_ptr().cast(), size_of_val(&words) as u32) };
        for word in words {
            named += nonzero(word) + nonzero(word & word.wrapping_sub(1));
        }
    }
    named > 1
}

/// 1 unless `word` is 0; arithmetic that the compiler cannot turn into a
/// branch.
#[inline(always)]
fn nonzero(word: u64) -> u64 {
    core::hint::black_box(word | word.wrapping_neg()) >> 63
}

/// `msg_iov` and `msg_iovlen` of a `struct msghdr`, after the name's pointer
/// and padded length (include/linux/socket.h, user view).
#[inline(always)]
fn message_vector(header: u64) -> Option<(u64, u64)> {
    let vector: u64 = user::read(header, 16)?;
    let count: u64 = user::read(header, 24)?;
    Some((vector, count))
}
