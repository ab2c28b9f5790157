//! Asks the frameworks of a process what it serves: prepares the kernel side
//! to read their objects, and turns what it read into [`Insight`]s.
//!
//! `discovery` asks what a process needs ([`Python::prepare`]) and installs
//! it; `run` hands every walked stack to [`Python::resolve`]. Nothing is ever
//! written to a process.

use std::collections::HashMap;

use abi::map::{CodeKey, Recipes};
use abi::record::Stack;

use crate::insight::Insight;
use crate::remote::Process;
use crate::stats::counters;
use crate::target::interpreter::Interpreter;

counters! {
    /// Counters of `python`.
    pub struct PythonStats {
        /// Code objects for which recipes were installed.
        installed => "python.code_objects",
        /// Stacks that told something of an exchange.
        insights => "python.insights",
        /// Stacks that told nothing.
        silent => "python.silent_stacks",
    }
}

/// A stack as the ring has it, with the bytes that follow it.
#[derive(Clone, Copy, Debug)]
pub struct StackEvent<'a> {
    /// The record.
    pub stack: Stack,
    /// `n_frames` of [`abi::record::Frame`], innermost first.
    pub frames: &'a [u8],
    /// `values_len` bytes of [`abi::record::Value`]s.
    pub values: &'a [u8],
}

/// What the kernel side must do for one process, in this order.
#[derive(Debug, Default)]
pub struct Preparation {
    /// Recipes to install.
    pub install: Vec<(CodeKey, Recipes)>,
    /// Whether `PyContextVar_Reset` is to be probed.
    pub reset: bool,
    /// Whether `PyTraceBack_Here` is to be probed.
    pub raised: bool,
    /// [`abi::map::Target::group`].
    pub group: u32,
    /// [`abi::map::Target::context_variable`].
    pub context_variable: u64,
    /// Which of [`abi::map::target_flag::STACK_AT_RESPONSE`] and
    /// [`abi::map::target_flag::STACK_AT_REQUEST`] to set.
    pub flags: u32,
    /// Recipes to remove when the target is told the rest: of a group that
    /// no process has any more.
    pub remove: Vec<CodeKey>,
    /// Lines for the operator.
    pub messages: Vec<String>,
}

/// What is known of the frameworks of every traced process.
#[derive(Debug, Default)]
pub struct Python {
    processes: HashMap<u32, ()>,
    /// What happened, counted.
    pub stats: PythonStats,
}

impl Python {
    /// Knows no process yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Looks for frameworks, at the first time and whenever modules may have
    /// been imported since; `None` if nothing has changed.
    pub fn prepare(
        &mut self,
        _process: &Process,
        _interpreter: &Interpreter,
    ) -> Option<Preparation> {
        None
    }

    /// A child was forked, and runs its parent's code objects.
    pub fn forked(&mut self, _child: u32, _parent: u32) {}

    /// A process ended, or runs another program now; returns the recipes that
    /// nobody needs any more.
    pub fn forgotten(&mut self, pid: u32) -> Vec<CodeKey> {
        self.processes.remove(&pid);
        Vec::new()
    }

    /// What a stack tells.
    pub fn resolve(&mut self, _event: &StackEvent<'_>) -> Option<Insight> {
        self.stats.silent.one();
        None
    }
}
