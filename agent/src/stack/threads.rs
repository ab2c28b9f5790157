//! What the kernel knows of the threads of a process.

use std::collections::HashMap;
use std::fs;

use pyframes::Memory;

use super::State;

/// The threads of a process by their ids in its own pid namespace.
pub(super) struct KernelThreads {
    pid: u32,
    /// From the id in the namespace to the one that we see.
    ids: HashMap<u32, u32>,
}

/// What a thread has done so far. Two equal ones of a thread that waits are
/// proof that it did not run in between: to wait again it must be switched
/// from, which counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Progress {
    pub(super) state: State,
    /// Times the processor was given to others.
    switches: u64,
}

impl Progress {
    /// Whether the thread did not run between then and `later`.
    pub(super) fn stood_until(self, later: Self) -> bool {
        self.state == State::Idle && self == later
    }
}

impl KernelThreads {
    /// Lists them; of a process that has ended there are none.
    pub(super) fn read(pid: u32) -> Self {
        let entries = fs::read_dir(format!("/proc/{pid}/task"))
            .into_iter()
            .flatten()
            .flatten();
        let ids = entries
            .filter_map(|entry| {
                let tid = entry.file_name().to_str()?.parse().ok()?;
                let status = fs::read_to_string(entry.path().join("status")).ok()?;
                let own = field(&status, "NSpid:")?.split_whitespace().next_back()?;
                Some((own.parse().ok()?, tid))
            })
            .collect();
        Self { pid, ids }
    }

    /// The id that we see.
    pub(super) fn tid(&self, native_id: u32) -> Option<u32> {
        self.ids.get(&native_id).copied()
    }

    /// What the thread of that id has done; none if it has ended.
    pub(super) fn progress(&self, tid: u32) -> Option<Progress> {
        let status = fs::read_to_string(format!("/proc/{}/task/{tid}/status", self.pid)).ok()?;
        progress(&status)
    }

    /// The id of the thread whose `pthread_t` is at `ident`, in its own pid
    /// namespace.
    ///
    /// Python's thread state has it since 3.11 only; the C library always. It
    /// is believed if the process has such a thread.
    pub(super) fn native_id<M: Memory>(&self, memory: &M, ident: u64) -> Option<u32> {
        PTHREAD_TID
            .iter()
            .filter_map(|offset| memory.u32(ident.wrapping_add(*offset)).ok())
            .find(|id| self.ids.contains_key(id))
    }
}

fn progress(status: &str) -> Option<Progress> {
    let number = |name| field(status, name)?.trim().parse::<u64>().ok();
    let letter = field(status, "State:")?.trim().chars().next()?;
    let voluntary = number("voluntary_ctxt_switches:")?;
    let nonvoluntary = number("nonvoluntary_ctxt_switches:")?;
    Some(Progress {
        state: match letter {
            'R' => State::Running,
            _ => State::Idle,
        },
        switches: voluntary.wrapping_add(nonvoluntary),
    })
}

/// What follows `name` in its line.
fn field<'s>(status: &'s str, name: &str) -> Option<&'s str> {
    status.lines().find_map(|line| line.strip_prefix(name))
}

/// Offsets of `tid` in `struct pthread` of x86_64: of glibc (all of 2.x,
/// `nptl/descr.h`: behind 704 bytes of header and a list) and of musl (1.x,
/// `src/internal/pthread_impl.h`).
const PTHREAD_TID: [u64; 2] = [720, 48];

#[cfg(test)]
mod tests {
    use super::*;

    const STATUS: &str = "Name:\tpython\nState:\tS (sleeping)\nNSpid:\t4242\t7\n\
        voluntary_ctxt_switches:\t150\nnonvoluntary_ctxt_switches:\t5\n";

    #[test]
    fn reads_what_a_thread_has_done() {
        let idle = progress(STATUS).expect("understood");
        assert_eq!((idle.state, idle.switches), (State::Idle, 155));
        assert!(idle.stood_until(idle));
        let woken = STATUS.replace("150", "151");
        assert!(!idle.stood_until(progress(&woken).expect("understood")));
        let running = STATUS.replace("S (sleeping)", "R (running)");
        let running = progress(&running).expect("understood");
        assert!(!running.stood_until(running));
        assert_eq!(progress("State:\tS\n"), None);
    }

    #[test]
    fn knows_its_own_threads() {
        let threads = KernelThreads::read(std::process::id());
        let (native_id, tid) = threads.ids.iter().next().expect("has threads");
        assert_eq!(threads.tid(*native_id), Some(*tid));
        assert!(threads.progress(*tid).is_some());
        assert_eq!(threads.tid(0), None);
    }
}
