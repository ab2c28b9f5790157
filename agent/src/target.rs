//! One traced process: its interpreter and where probes go into it.

pub mod elf;
pub mod interpreter;
pub mod placement;
pub mod uvloop;
