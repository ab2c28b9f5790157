//! Loads the programs, on several processors.

use std::sync::{Mutex, PoisonError};
use std::thread;

use aya::Ebpf;
use aya::programs::Program;

use super::{FUNCTION_STEPS, ProbeError, STEPS};

/// Loads every program, several at a time: nearly all of it is the verifier's
/// work, for which each loading thread has a processor of its own.
pub(super) fn load_programs(ebpf: &mut Ebpf) -> Result<(), ProbeError> {
    /// More do not help: the longest programs are not that many.
    const MOST: usize = 4;
    let mut programs: Vec<_> = ebpf.programs_mut().collect();
    // Those that take longest are loaded first, so that all threads are done at
    // about the same time. They are taken from the end.
    programs.sort_by_key(|(name, _)| STEPS.contains(name) || FUNCTION_STEPS.contains(name));
    let threads = thread::available_parallelism().map_or(1, usize::from);
    let programs = Mutex::new(programs);
    let load = || {
        loop {
            let next = programs
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .pop();
            let Some((name, program)) = next else {
                return Ok(());
            };
            load_program(name, program)?;
        }
    };
    thread::scope(|scope| {
        let others: Vec<_> = (1..threads.min(MOST)).map(|_| scope.spawn(load)).collect();
        let own = load();
        others.into_iter().fold(own, |loaded, other| {
            let other = other
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            loaded.and(other)
        })
    })
}

fn load_program(name: &str, program: &mut Program) -> Result<(), ProbeError> {
    let loaded = match program {
        Program::RawTracePoint(program) => program.load(),
        Program::UProbe(program) => program.load(),
        _ => {
            return Err(ProbeError::Missing(format!(
                "known kind for program {name}"
            )));
        }
    };
    loaded.map_err(|source| ProbeError::Program {
        name: name.to_owned(),
        source: Box::new(source),
    })
}
