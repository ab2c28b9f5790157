//! Shared by the live and replay tests.

#![forbid(unsafe_code)]

pub mod agent;
pub mod app;
pub mod attribution;
pub mod client;
pub mod databases;
pub mod frameworks;
pub mod load;
pub mod memory;
pub mod parity;
pub mod process;
pub mod program;
pub mod python;
pub mod receiver;
pub mod tls;
pub mod trace;
pub mod traceback;
pub mod truth;
pub mod walked;
