//! Whether and how the greenlets of a process are followed.

use abi::map::target_flag;

use super::{Discovery, tell};
use crate::probes::{Hook, Probes};
use crate::remote::Process;
use crate::target::greenlets::{self, GreenletError, Use};

/// Whether the greenlets of a process are followed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Following {
    /// Not yet: it has not used any when it was looked at.
    #[default]
    Unused,
    /// Not yet, but it may at any moment: greenlet is imported.
    Imported,
    /// Yes, or it was tried and failed for good.
    Settled,
}

impl Discovery {
    /// Looks for greenlets, and attaches the probes that follow them.
    ///
    /// From a fork until its probes are in place a child's greenlets own
    /// nothing; which one is current can be read all the while, as nothing
    /// has moved.
    pub(super) fn greenlets(&mut self, pid: u32, process: &Process, probes: &mut Probes) {
        let Some(tracee) = self.tracees.get_mut(&pid) else {
            return;
        };
        let Some(interpreter) = tracee.interpreter.clone() else {
            return;
        };
        if tracee.greenlets == Following::Settled {
            return;
        }
        let found = match greenlets::find(process, &interpreter) {
            Ok(Use::Unused) => {
                if interpreter.has_module(process, "greenlet").unwrap_or(false) {
                    tracee.greenlets = Following::Imported;
                }
                return;
            }
            Ok(Use::Known(found)) => found,
            // The process changed while it was read, or has ended.
            Err(GreenletError::Process(_) | GreenletError::Objects(_)) => return,
            Err(error) => {
                tracee.greenlets = Following::Settled;
                self.stats.without_greenlets.one();
                tracing::warn!(pid, %error, "greenlets are not followed");
                let has = |module| interpreter.has_module(process, module).unwrap_or(true);
                if SCHEDULERS.iter().any(|module| has(module)) {
                    tracee.target.flags |= target_flag::GREENLETS_UNREADABLE;
                    tell(pid, tracee, probes);
                }
                return;
            }
        };
        tracing::debug!(pid, slot = ?found.slot, "greenlets are followed");
        tracee.greenlets = Following::Settled;
        found.apply(&mut tracee.target);
        let mut complete = true;
        for (hook, place) in [
            (Hook::GreenletBorn, &found.birth),
            (Hook::GreenletEnded, &found.end),
        ] {
            complete &= self.stats.hook_at(pid, probes, hook, place);
        }
        if complete {
            self.stats.greenlets.one();
            tracee.target.flags |= target_flag::GREENLET_OWNERS;
            tracee.target.greenlet_epoch = self.next_greenlet_epoch;
            self.next_greenlet_epoch = self.next_greenlet_epoch.wrapping_add(1);
        } else {
            self.stats.without_greenlets.one();
        }
        tell(pid, tracee, probes);
    }
}

/// Modules that run greenlets side by side. Where greenlet is there without
/// them, it mostly drives one piece of blocking code at a time.
const SCHEDULERS: &[&str] = &["gevent.hub", "gevent._hub_primitives", "eventlet.hubs"];
