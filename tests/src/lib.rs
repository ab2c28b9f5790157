//! Shared by the live and replay tests.

pub mod receiver;
