//! Recipes: small programs that lead from a frame to a value of interest.
//!
//! The agent compiles them, once per process and code object; the kernel side
//! runs them when a walk meets the code object. A step compares addresses of
//! interned strings and never their text, so that it is cheap and needs no
//! hash.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Steps of the longest recipe.
pub const MAX_STEPS: usize = 8;

/// Values of [`Step::op`].
pub mod op {
    /// The value is reached.
    pub const END: u32 = 0;
    /// To the attribute that the object itself has (not its class) under the
    /// interned name at `key`.
    pub const ATTRIBUTE: u32 = 1;
    /// To the dictionary's value under the key object at `key`.
    pub const ITEM: u32 = 2;
    /// To item number `operand` of a tuple or list.
    pub const INDEX: u32 = 3;
    /// To the object whose address is `operand` bytes into this one, which
    /// must be of the type at `key` (0: of any type): slots, fields of C
    /// structures.
    pub const POINTER: u32 = 4;
    /// To what the cell holds; an object that is no cell stays.
    pub const CELL: u32 = 5;
}

/// One step from an object to another.
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct Step {
    /// See [`op`].
    pub op: u32,
    /// A number, see [`op`].
    pub operand: u32,
    /// An address in the process, see [`op`].
    pub key: u64,
}
