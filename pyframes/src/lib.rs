//! Reads CPython's structures out of another process's memory.
//!
//! `no_std`, no unsafe, generic over a [`Memory`] trait, so that the kernel,
//! the agent and the tests can run the same source.

#![no_std]
#![forbid(unsafe_code)]

/// Access to the memory of a process.
pub trait Memory {
    /// Fills `into` from `address`; false if any byte cannot be read.
    fn read(&self, address: u64, into: &mut [u8]) -> bool;
}
