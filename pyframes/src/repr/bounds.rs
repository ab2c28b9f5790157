//! What keeps the writing of an object within its limits.

use core::cell::Cell;
use core::fmt::{self, Write};

use crate::Memory;

/// Memory that may be read a number of times.
pub(super) struct Metered<'m, M> {
    memory: &'m M,
    left: Cell<u32>,
}

impl<'m, M> Metered<'m, M> {
    pub(super) fn new(memory: &'m M, reads: u32) -> Self {
        Self {
            memory,
            left: Cell::new(reads),
        }
    }

    pub(super) fn is_exhausted(&self) -> bool {
        self.left.get() == 0
    }
}

impl<M: Memory> Memory for Metered<'_, M> {
    fn read(&self, address: u64, into: &mut [u8]) -> bool {
        let Some(left) = self.left.get().checked_sub(1) else {
            return false;
        };
        self.left.set(left);
        self.memory.read(address, into)
    }
}

/// Passes on a number of bytes, and then `...` once.
pub(super) struct Sink<'w, W> {
    out: &'w mut W,
    left: usize,
    full: bool,
}

impl<'w, W: Write> Sink<'w, W> {
    pub(super) fn new(out: &'w mut W, bytes: usize) -> Self {
        Self {
            out,
            left: bytes,
            full: false,
        }
    }

    /// Whether something was cut.
    pub(super) fn is_full(&self) -> bool {
        self.full
    }

    /// Marks that something was cut, and refuses what follows.
    pub(super) fn overflow(&mut self) -> fmt::Result {
        if !self.full {
            self.full = true;
            self.out.write_str("...")?;
        }
        Err(fmt::Error)
    }
}

impl<W: Write> Write for Sink<'_, W> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        if self.full {
            return Err(fmt::Error);
        }
        let n_bytes = text.floor_char_boundary(self.left);
        let (fits, rest) = text.split_at(n_bytes);
        self.out.write_str(fits)?;
        self.left -= n_bytes;
        if rest.is_empty() {
            Ok(())
        } else {
            self.overflow()
        }
    }
}
