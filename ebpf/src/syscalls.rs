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

use crate::arch::{self, nr};
use crate::capture::{self, Source};
use crate::maps::thread_flag;
use crate::{connections, processes, threads, user};

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
            }
        }
        // At its exit the sets name those that are ready only.
        nr::SELECT | nr::PSELECT6 => {
            if let Some(pid_tgid) = target_thread()
                && let Some(call) = arch::syscall_regs(regs)
                && selects_several(&call)
                && let Some(thread) = threads::entry(pid_tgid)
            {
                threads::waits(thread, false);
            }
        }
        nr::CLOSE | nr::DUP2 | nr::DUP3 => {
            let Some(pid_tgid) = target_thread() else {
                return;
            };
            let Some(call) = arch::syscall_regs(regs) else {
                return;
            };
            let fd = if number == nr::CLOSE {
                call.args[0]
            } else {
                call.args[1]
            };
            connections::close((pid_tgid >> 32) as u32, fd as i32);
        }
        _ => {}
    }
}

/// A system call returned `result`.
#[inline(always)]
pub(crate) fn exit(regs: u64, result: i64) {
    if result < 0 && result != EINPROGRESS {
        return;
    }
    let Some(pid_tgid) = target_thread() else {
        return;
    };
    let Some(call) = arch::syscall_regs(regs) else {
        return;
    };
    let [first, second, third, fourth] = call.args;
    let fd = first as i32;
    let (way, source) = match call.number {
        nr::RECVFROM if fourth & MSG_PEEK != 0 => return,
        nr::RECVMSG if third & MSG_PEEK != 0 => return,
        nr::READ | nr::RECVFROM => (direction::RECEIVED, Source::Buffer(second)),
        nr::WRITE | nr::SENDTO => (direction::SENT, Source::Buffer(second)),
        nr::READV => (direction::RECEIVED, Source::Vector(second, third)),
        nr::WRITEV => (direction::SENT, Source::Vector(second, third)),
        nr::RECVMSG | nr::SENDMSG => {
            let way = if call.number == nr::SENDMSG {
                direction::SENT
            } else {
                direction::RECEIVED
            };
            match message_vector(second) {
                Some((vector, count)) => (way, Source::Vector(vector, count)),
                None => (way, Source::Unseen),
            }
        }
        nr::SENDFILE => (direction::SENT, Source::Unseen),
        nr::ACCEPT | nr::ACCEPT4 => {
            waited(pid_tgid);
            return connections::open(pid_tgid, result as i32, role::SERVER);
        }
        nr::EPOLL_WAIT | nr::EPOLL_PWAIT | nr::EPOLL_PWAIT2 => {
            return wait(pid_tgid, third > 1, true);
        }
        nr::POLL | nr::PPOLL => return wait(pid_tgid, second > 1, false),
        nr::SELECT | nr::PSELECT6 => return waited(pid_tgid),
        nr::CONNECT => return connections::open(pid_tgid, fd, role::CLIENT),
        nr::LISTEN => return processes::listens((pid_tgid >> 32) as u32, fd),
        nr::DUP | nr::DUP2 | nr::DUP3 => {
            return connections::duplicate(pid_tgid, fd, result as i32);
        }
        nr::FCNTL if second == F_DUPFD || second == F_DUPFD_CLOEXEC => {
            return connections::duplicate(pid_tgid, fd, result as i32);
        }
        _ => return,
    };
    if result > 0 {
        capture::transfer(pid_tgid, fd, way, source, result as u64);
    }
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
    thread.flags |= thread_flag::WAITED;
    if several {
        threads::waits(thread, epoll);
    }
}

/// The thread returned from a wait.
#[inline(always)]
fn waited(pid_tgid: u64) {
    if let Some(thread) = threads::entry(pid_tgid) {
        thread.flags |= thread_flag::WAITED;
    }
}

/// Whether the three sets of a `select` name more than one descriptor.
///
/// Without a branch per word: the verifier would follow every combination.
#[inline(always)]
fn selects_several(call: &arch::SyscallRegs) -> bool {
    let [descriptors, sets @ ..] = call.args;
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
