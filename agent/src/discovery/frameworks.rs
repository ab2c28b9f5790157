//! Carries out what `python` wants for a process: recipes, probes and what
//! its target says of walks.

use std::time::{Duration, Instant};

use abi::map::target_flag;

use super::{Changes, Discovery, tell};
use crate::probes::{Hook, Probes};
use crate::python::Preparation;
use crate::remote::Process;

/// How often a process that runs is asked whether it has imported anything.
pub(super) const RELOOK: Duration = Duration::from_secs(5);

/// Which moments a process is probed for, beside its transfers.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Moments {
    /// `PyContextVar_Reset`.
    reset: bool,
    /// `PyTraceBack_Here`.
    pub(super) raised: bool,
}

/// The target's flags that say where stacks are walked.
pub(super) const WALKS: u32 = target_flag::STACK_AT_RESPONSE
    | target_flag::STACK_AT_REQUEST
    | target_flag::SERVERS
    | target_flag::FOREIGN
    | target_flag::ENDS
    | target_flag::STATEMENTS
    | target_flag::SERVINGS;

impl Discovery {
    /// Looks for frameworks that were imported, and prepares the kernel side.
    pub(super) fn frameworks(
        &mut self,
        pid: u32,
        process: &Process,
        probes: &mut Probes,
        changes: &mut Changes,
        urgent: bool,
    ) {
        if !self.frames {
            return;
        }
        let now = Instant::now();
        let Some(tracee) = self.tracees.get_mut(&pid) else {
            return;
        };
        tracee.next_frameworks = now + RELOOK;
        let Some(interpreter) = tracee.interpreter.clone() else {
            return;
        };
        let libraries = !tracee.settings.disabled_instrumentations.is_empty();
        let preparation = self
            .python
            .prepare(process, &interpreter, now, urgent, libraries);
        let Some(preparation) = preparation else {
            return;
        };
        let Preparation {
            install,
            reset,
            raised,
            group,
            context_variable,
            flags,
            remove,
            messages,
            server,
            imported,
        } = preparation;
        for (key, recipes) in &install {
            if let Err(error) = probes.set_recipes(*key, recipes) {
                self.stats.recipes_failed.one();
                tracing::warn!(pid, %error, "cannot install a recipe");
            }
        }
        tracee.moments = Moments { reset, raised };
        tracee.target.group = group;
        tracee.target.context_variable = context_variable;
        tracee.target.flags = tracee.target.flags & !WALKS | flags;
        let described = tracee.server != server || tracee.imported != imported;
        tracee.server = server;
        tracee.imported = imported;
        tell(pid, tracee, probes);
        for key in remove {
            probes.remove_recipes(key);
        }
        self.hook_moments(pid, probes);
        self.greenlets(pid, process, probes);
        self.modules(pid, process, probes);
        changes.messages.extend(messages);
        if described {
            self.resource(pid, changes);
        }
    }

    /// Tells the kernel side where walks may end, and where not any more.
    pub(crate) fn ends(&mut self, probes: &mut Probes) {
        for (key, ends) in self.python.ends.drain() {
            if let Err(error) = probes.set_end(key, ends) {
                tracing::debug!(?key, %error, "cannot tell where walks may end");
            }
        }
    }

    /// Attaches the probes of the moments that a process is of interest at.
    pub(super) fn hook_moments(&self, pid: u32, probes: &mut Probes) {
        let Some(tracee) = self.tracees.get(&pid) else {
            return;
        };
        let Some(interpreter) = &tracee.interpreter else {
            return;
        };
        let Moments { reset, raised } = tracee.moments;
        let image = &interpreter.image;
        for (wanted, name, hook) in [
            (reset, "PyContextVar_Reset", Hook::VariableReset),
            (raised, "PyTraceBack_Here", Hook::Raised),
        ] {
            if !wanted {
                continue;
            }
            let symbol = image.elf.symbol(name).ok().flatten();
            match symbol.and_then(|symbol| image.elf.file_offset(symbol.address)) {
                Some(offset) => {
                    self.stats.hook(pid, probes, hook, &image.path, offset);
                }
                None => {
                    self.stats.hooks_failed.one();
                    tracing::warn!(pid, name, "the interpreter does not export the function");
                }
            }
        }
    }

    /// Forgets what was known of a process's frameworks.
    pub(super) fn forget_frameworks(&mut self, pid: u32, probes: &mut Probes) {
        for key in self.python.forgotten(pid) {
            probes.remove_recipes(key);
        }
    }

    /// Looks at the processes that have not been looked at for a while.
    pub(super) fn relook(&mut self, now: Instant, probes: &mut Probes, changes: &mut Changes) {
        let due: Vec<u32> = self
            .tracees
            .iter()
            .filter(|(_, tracee)| tracee.interpreter.is_some() && tracee.next_frameworks <= now)
            .map(|(&pid, _)| pid)
            .collect();
        for pid in due {
            match super::open(pid) {
                Ok(process) => {
                    self.handoffs(pid, &process, probes);
                    self.hook_tls(pid, &process, probes);
                    self.frameworks(pid, &process, probes, changes, false);
                }
                Err(error) => tracing::debug!(pid, %error, "cannot look for frameworks"),
            }
            if let Some(tracee) = self.tracees.get_mut(&pid) {
                tracee.next_frameworks = now + RELOOK;
            }
        }
    }
}
