//! The probes that follow work from the thread that submits it to an
//! executor's that does it.

use abi::map::target_flag;

use super::lineage::Lineage;
use super::{Discovery, tell};
use crate::probes::{Hook, Probes};
use crate::remote::Process;

/// The queue of `ThreadPoolExecutor` and of aiosqlite: module and type.
const QUEUE: (&str, &str) = ("_queue", "SimpleQueue");
/// Its methods that are of interest.
const METHODS: [(&str, Hook); 4] = [
    ("put", Hook::WorkQueued),
    ("put_nowait", Hook::WorkQueued),
    ("get", Hook::WorkWanted),
    ("get_nowait", Hook::WorkWanted),
];

impl Discovery {
    /// Probes the queues of executors, once there are any, as long as the
    /// contexts of the process are followed: most work is submitted in one.
    pub(super) fn handoffs(&mut self, pid: u32, process: &Process, probes: &mut Probes) {
        let Some(tracee) = self.tracees.get_mut(&pid) else {
            return;
        };
        let Some(interpreter) = tracee.interpreter.clone() else {
            return;
        };
        let followed = !matches!(tracee.lineage, Lineage::Never | Lineage::Paused);
        let (module, class) = QUEUE;
        if !followed
            || tracee.queues_probed
            || !interpreter.has_module(process, module).unwrap_or(false)
        {
            return;
        }
        tracee.queues_probed = true;
        let mut complete = true;
        for (method, hook) in METHODS {
            complete &= match interpreter.method_address(process, module, class, method) {
                Ok(Some(place)) => self.stats.hook_at(pid, probes, hook, &place),
                Ok(None) => false,
                Err(error) => {
                    tracing::debug!(pid, %error, method, "cannot find the queue's method");
                    false
                }
            };
        }
        if !complete {
            self.stats.queues_failed.one();
            tracing::info!(pid, "work that is handed to executors is not followed");
            return;
        }
        if let Some(tracee) = self.tracees.get_mut(&pid) {
            tracee.target.flags |= target_flag::WORK_ITEMS;
            tell(pid, tracee, probes);
        }
    }
}
