//! Shared by the live and replay tests.

#![forbid(unsafe_code)]

pub mod agent;
pub mod app;
pub mod client;
pub mod load;
pub mod process;
pub mod program;
pub mod python;
pub mod receiver;
pub mod trace;
