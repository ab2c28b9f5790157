//! Reads CPython's structures out of another process's memory.
//!
//! `no_std`, no unsafe, no allocation, generic over a [`Memory`] trait, so
//! that the kernel, the agent and the tests can run the same source. It knows
//! where CPython keeps things ([`layout`]) and how to read them; it does not
//! know processes, files or symbols.
//!
//! The memory belongs to somebody else: it changes while it is read and may
//! hold anything. Every reader is bounded, none panics, and what cannot be
//! made sense of is an [`Error`], never a guess.

#![no_std]
#![forbid(unsafe_code)]

#[cfg(test)]
extern crate std;

pub mod argument;
pub mod attribute;
pub mod code;
pub mod debug_offsets;
pub mod dict;
pub mod exception;
pub mod frame;
pub mod generator;
pub mod interpreter;
pub mod keyed;
pub mod layout;
pub mod line;
pub mod object;
pub mod origin;
pub mod recipe;
pub mod repr;
pub mod sequence;
pub mod text;
pub mod value;
pub mod window;

#[cfg(test)]
mod fake;

use zerocopy::IntoBytes;

pub use code::Code;
pub use dict::Dict;
pub use layout::Layout;
pub use sequence::Sequence;

/// Access to the memory of a process.
///
/// Numbers are little-endian: CPython runs on other machines too, but the
/// layouts here are those of x86_64 and aarch64.
pub trait Memory {
    /// Fills `into` from `address`; false if any byte cannot be read.
    fn read(&self, address: u64, into: &mut [u8]) -> bool;

    /// Fills the first `count` words of `into` from `address`; false if any
    /// byte cannot be read, or if there are not that many.
    ///
    /// Apart from [`Memory::read`] because the kernel's verifier wants the
    /// bound of a length shown in a way of its own.
    #[inline(always)]
    fn words(&self, address: u64, into: &mut [u64; WORDS], count: usize) -> bool {
        match into.get_mut(..count) {
            Some(into) => self.read(address, into.as_mut_bytes()),
            None => false,
        }
    }

    /// The `N` bytes at `address`.
    #[inline(always)]
    fn bytes<const N: usize>(&self, address: u64) -> Result<[u8; N], Error> {
        let mut bytes = [0; N];
        if self.read(address, &mut bytes) {
            Ok(bytes)
        } else {
            Err(Error::Unreadable)
        }
    }

    /// The byte at `address`.
    #[inline(always)]
    fn u8(&self, address: u64) -> Result<u8, Error> {
        self.bytes(address).map(u8::from_le_bytes)
    }

    /// The 32-bit number at `address`.
    #[inline(always)]
    fn u32(&self, address: u64) -> Result<u32, Error> {
        self.bytes(address).map(u32::from_le_bytes)
    }

    /// The 64-bit number at `address`.
    #[inline(always)]
    fn u64(&self, address: u64) -> Result<u64, Error> {
        self.bytes(address).map(u64::from_le_bytes)
    }

    /// The pointer at `address`, which must not be null.
    #[inline(always)]
    fn pointer(&self, address: u64) -> Result<u64, Error> {
        match self.u64(address)? {
            0 => Err(Error::Null),
            pointer => Ok(pointer),
        }
    }
}

/// Words of the buffer that [`Memory::words`] fills; a power of two, so that
/// lengths can be masked.
pub const WORDS: usize = 256;

/// Why something could not be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Error {
    /// An address is not mapped, or not readable.
    Unreadable,
    /// A pointer that must lead somewhere is null.
    Null,
    /// An object is not of the expected type.
    WrongType,
    /// A length or a chain is beyond its bound, or a chain runs in a circle.
    TooLong,
    /// Fields contradict each other.
    Malformed,
}

impl core::fmt::Display for Error {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(match self {
            Self::Unreadable => "memory is not readable",
            Self::Null => "a pointer is null",
            Self::WrongType => "an object is not of the expected type",
            Self::TooLong => "a structure is longer than its bound",
            Self::Malformed => "a structure contradicts itself",
        })
    }
}

impl core::error::Error for Error {}

/// The address of the field at `offset` of the structure at `base`.
///
/// Wraps: a garbage base gives a garbage address, which then cannot be read.
#[inline(always)]
pub(crate) const fn field(base: u64, offset: u32) -> u64 {
    base.wrapping_add(offset as u64)
}

/// The little-endian 64-bit number at `offset` of `bytes`, if they reach.
pub(crate) fn u64_in(bytes: &[u8], offset: usize) -> Option<u64> {
    let bytes = bytes.get(offset..)?.first_chunk::<8>()?;
    Some(u64::from_le_bytes(*bytes))
}
