//! The agent: everything of otel-ebpf that runs in user space.
//!
//! The modules stand in the order in which data flows; `ARCHITECTURE.md`
//! tells the whole. The binary (`main.rs`) only parses arguments and calls
//! [`run`].

pub mod assemble;
pub mod attribute;
pub mod batch;
pub mod config;
pub mod export;
pub mod probes;
pub mod propagation;
pub mod protocol;
pub mod resource;
pub mod target;
pub mod kernel;
pub mod check;
pub mod clock;
pub mod signal;
pub mod source;
pub mod stats;
pub mod stream;
