//! Whether and how the contexts of a process are followed: the probes for it,
//! and when it is not worth their cost.

use std::time::{Duration, Instant};

use abi::map::target_flag;

use super::{Discovery, FOLLOWED, open, tell};
use crate::probes::{Hook, Probes};
use crate::remote::Process;
use crate::target::births::Birth;
use crate::target::elf::MappedElf;
use crate::target::interpreter::Interpreter;
use crate::target::uvloop;

/// Requests that a process serves without ever making a call of its own
/// before its contexts are no longer followed: lineage costs it some
/// microseconds a request and would tell nothing.
const QUIET_REQUESTS: u64 = 1000;
/// How long it must have been quiet besides.
const QUIET_TIME: Duration = Duration::from_secs(1);

/// The modules of uvicorn that only a server loads that runs.
const UVICORN: [&str; 2] = [
    "uvicorn.protocols.http.h11_impl",
    "uvicorn.protocols.http.httptools_impl",
];

/// What a process did since the last look.
#[derive(Clone, Copy, Debug, Default)]
pub struct Traffic {
    /// Requests it began to serve.
    pub served: u64,
    /// Requests it sent.
    pub called: u64,
}

/// Whether the contexts of a process are followed.
#[derive(Clone, Copy)]
pub(super) enum Lineage {
    /// Not yet, or never (no interpreter, greenlets).
    Never,
    /// Yes; so many requests were served since the start, without a call.
    Trial { served: u64, since: Instant },
    /// Not now, as the process makes no calls.
    Paused,
    /// Yes, and for good: it makes calls, or starts processes that may.
    Needed,
}

impl Discovery {
    /// Takes note of what a process did: the contexts of one that never makes
    /// a call are not followed after a while.
    ///
    /// When such a process makes its first call, that call and those of
    /// requests under way have no parent (counted); all later ones have.
    pub fn traffic(&mut self, pid: u32, traffic: Traffic, now: Instant, probes: &mut Probes) {
        let Some(tracee) = self.tracees.get_mut(&pid) else {
            return;
        };
        match &mut tracee.lineage {
            Lineage::Never | Lineage::Needed => {}
            Lineage::Trial { .. } if traffic.called > 0 || tracee.moments.raised => {
                // Whose an exception is follows from its context too.
                tracee.lineage = Lineage::Needed;
            }
            Lineage::Trial { served, since } => {
                *served += traffic.served;
                if *served >= QUIET_REQUESTS && now.duration_since(*since) >= QUIET_TIME {
                    tracing::debug!(pid, "makes no calls: its contexts are not followed");
                    self.stats.paused.one();
                    tracee.lineage = Lineage::Paused;
                    tracee.target.flags &= !FOLLOWED;
                    tracee.queues_probed = false;
                    tell(pid, tracee, probes);
                    let answers = tracee.target.flags & target_flag::STACK_AT_RESPONSE != 0;
                    tracee.writes_probed &= answers;
                    probes.unhook_only(pid, |hook| match hook {
                        Hook::ContextReturned
                        | Hook::ContextCreated
                        | Hook::ContextCopiedIn(_)
                        | Hook::ContextCreatedIn(_)
                        | Hook::ContextExplicit
                        | Hook::WorkQueued
                        | Hook::WorkWanted => true,
                        // What uvloop sends is the answer's stack no more.
                        Hook::TransportWrite => !answers,
                        Hook::VariableReset
                        | Hook::Raised
                        | Hook::GreenletBorn
                        | Hook::GreenletEnded
                        | Hook::Tls(_)
                        | Hook::SqliteBegin
                        | Hook::SqliteEnd
                        | Hook::SqliteEndInside
                        | Hook::SqliteMany
                        | Hook::SqliteScript
                        | Hook::SqliteCompile
                        | Hook::SqliteCompiled => false,
                    });
                }
            }
            Lineage::Paused if traffic.called > 0 => self.resume(pid, probes),
            Lineage::Paused => {}
        }
    }

    /// Takes note that a process has started another: if it serves requests,
    /// what that one calls may be theirs, as if it made calls itself.
    pub(super) fn starts(&mut self, pid: u32, probes: &mut Probes) {
        let Some(tracee) = self.tracees.get_mut(&pid) else {
            return;
        };
        match tracee.lineage {
            Lineage::Trial { served, .. } if served > 0 => tracee.lineage = Lineage::Needed,
            Lineage::Paused => self.resume(pid, probes),
            // A server that forks its workers has served nothing.
            Lineage::Never | Lineage::Trial { .. } | Lineage::Needed => {}
        }
    }

    /// Follows the contexts of a process again, for good.
    fn resume(&mut self, pid: u32, probes: &mut Probes) {
        tracing::debug!(pid, "makes calls: its contexts are followed");
        self.stats.resumed.one();
        if let Ok(process) = open(pid) {
            self.follow(pid, &process, probes);
            if let Some(tracee) = self.tracees.get_mut(&pid) {
                tracee.lineage = Lineage::Needed;
            }
        }
    }

    /// Attaches the probes that follow contexts: inside the functions that
    /// make them if their code allows it, and else on their return.
    ///
    /// Return probes are never set in a process with greenlets: those copy
    /// slices of the stack, and a return probe that is switched away from
    /// would return into another greenlet's frames.
    pub(super) fn hook_contexts(&mut self, pid: u32, process: &Process, probes: &mut Probes) {
        let Some(interpreter) = self
            .tracees
            .get(&pid)
            .and_then(|tracee| tracee.interpreter.clone())
        else {
            return;
        };
        let complete = match interpreter.context_births(process) {
            Ok(Some(births)) => self.hook_births(pid, &interpreter.image, &births, probes),
            Ok(None) if greenlets(&interpreter, process) => {
                tracing::info!(pid, "greenlets in use: context lineage is not followed");
                return;
            }
            Ok(None) => self.hook_returns(pid, &interpreter, process, probes),
            Err(error) => {
                self.stats.hooks_failed.one();
                tracing::warn!(pid, %error, "cannot find the functions that make contexts");
                false
            }
        };
        let epoch = self.next_epoch();
        if complete && let Some(tracee) = self.tracees.get_mut(&pid) {
            tracee.target.flags |= target_flag::LINEAGE;
            // What was noted before every probe was in place may be stale.
            tracee.target.epoch = epoch;
            tracee.lineage = Lineage::Trial {
                served: 0,
                since: Instant::now(),
            };
        }
    }

    /// Attaches plain probes inside the makers; whether all went well.
    fn hook_births(
        &mut self,
        pid: u32,
        image: &MappedElf,
        births: &[(Birth, u64)],
        probes: &mut Probes,
    ) -> bool {
        let mut complete = true;
        for (birth, offset) in births {
            let hook = match *birth {
                Birth::CopiedIn(holder) => Hook::ContextCopiedIn(holder),
                Birth::CreatedIn(holder) => Hook::ContextCreatedIn(holder),
                Birth::Explicit => Hook::ContextExplicit,
            };
            complete &= self.stats.hook(pid, probes, hook, &image.path, *offset);
        }
        complete
    }

    /// Attaches return probes to the makers; whether all went well.
    fn hook_returns(
        &mut self,
        pid: u32,
        interpreter: &Interpreter,
        process: &Process,
        probes: &mut Probes,
    ) -> bool {
        let image = &interpreter.image;
        let mut complete = true;
        for (name, hook) in [
            ("PyContext_CopyCurrent", Hook::ContextReturned),
            ("PyContext_New", Hook::ContextCreated),
            ("PyContext_Copy", Hook::ContextCreated),
        ] {
            let offset = image
                .elf
                .symbol(name)
                .ok()
                .flatten()
                .and_then(|symbol| image.elf.file_offset(symbol.address));
            complete &= match offset {
                Some(offset) => self.stats.hook(pid, probes, hook, &image.path, offset),
                None => {
                    self.stats.hooks_failed.one();
                    false
                }
            };
        }
        match interpreter.context_makers(process) {
            Ok(places) => {
                for place in &places {
                    complete &= self.stats.hook_at(pid, probes, Hook::ContextCreated, place);
                }
            }
            Err(error) => {
                self.stats.hooks_failed.one();
                tracing::warn!(pid, %error, "cannot find the functions that make contexts");
                complete = false;
            }
        }
        complete
    }

    /// Attaches the probes that depend on loaded modules.
    pub(super) fn modules(&mut self, pid: u32, process: &Process, probes: &mut Probes) {
        let Some(tracee) = self.tracees.get_mut(&pid) else {
            return;
        };
        let Some(interpreter) = &tracee.interpreter else {
            return;
        };
        let followed = !matches!(tracee.lineage, Lineage::Never | Lineage::Paused);
        let walked = tracee.target.flags & target_flag::STACK_AT_RESPONSE != 0;
        if tracee.target.flags & target_flag::TASK_AFTER_READ != 0
            || !followed && (!walked || tracee.writes_probed)
        {
            return;
        }
        let has = |module| interpreter.has_module(process, module).unwrap_or(false);
        if !has("uvloop.loop") {
            return;
        }
        let (module, class, _) = uvloop::WRITE;
        for method in ["write", "writelines"] {
            match interpreter.method_address(process, module, class, method) {
                Ok(Some(place)) => {
                    self.stats
                        .hook_at(pid, probes, Hook::TransportWrite, &place);
                }
                Ok(None) => {}
                Err(error) => tracing::debug!(pid, %error, method, "cannot find uvloop's method"),
            }
        }
        tracee.writes_probed = true;
        // Not merely imported: another server that runs in the process would
        // be taken for it.
        if followed && UVICORN.iter().any(|module| has(module)) {
            tracee.target.flags |= target_flag::TASK_AFTER_READ;
            tell(pid, tracee, probes);
        }
    }
}

/// Whether the process uses greenlets, or may.
fn greenlets(interpreter: &Interpreter, process: &Process) -> bool {
    interpreter.has_module(process, "greenlet").unwrap_or(true)
}
