//! The agent: everything of otel-ebpf that runs in user space.
//!
//! The modules stand in the order in which data flows; `ARCHITECTURE.md`
//! tells the whole. The binary (`main.rs`) only parses arguments and calls
//! [`run`].

#![forbid(unsafe_code)]

pub mod assemble;
pub mod attribute;
pub mod batch;
pub mod check;
pub mod cli;
pub mod clock;
pub mod config;
pub mod discovery;
pub mod export;
pub mod insight;
pub mod instrumentations;
pub mod kernel;
pub mod launch;
pub mod probes;
pub mod propagation;
pub mod protocol;
pub mod python;
pub mod recording;
pub mod remote;
pub mod resource;
pub mod run;
pub mod signal;
pub mod source;
pub mod stack;
pub mod stats;
pub mod stream;
pub mod target;
pub mod tracer;
