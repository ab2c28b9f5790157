//! The agent: everything of otel-ebpf that runs in user space.
//!
//! The modules stand in the order in which data flows; `ARCHITECTURE.md`
//! tells the whole. The binary (`main.rs`) only parses arguments and calls
//! [`run`].

pub mod attribute;
pub mod protocol;
pub mod propagation;
pub mod assemble;
pub mod resource;
pub mod signal;
pub mod batch;
pub mod export;
pub mod stats;
pub mod config;
