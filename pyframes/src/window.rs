//! Memory that was read around what was asked for, and is asked for again.
//!
//! A read of another process's memory is dear, and not much dearer for some
//! hundred bytes than for eight. What a walk wants lies together: frames that
//! call each other, the fields of an object, entries of a table. So each read
//! fills a window, and what is in one is not read again until it is
//! forgotten, which is to be done before every walk.
//!
//! The first windows are small, and all close together, since between two
//! walks the process has had the caches for itself: what they take up is
//! fetched anew. A walk that goes on reads larger ones.
//!
//! Written for the kernel: nothing is found by a loop, the windows are memory
//! of the caller's, and an index into them is masked.

use core::hint::black_box;

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::{Error, Memory, WORDS};

/// Windows there are; a power of two, for masks.
const WINDOWS: usize = 8;
/// Words of all windows, likewise.
const ALL: usize = 1024;
/// Bytes of a page of memory, or of a part of one.
const PAGE: u64 = 4096;
/// Bits of an address below those that tell objects' windows apart.
const SHIFT: u32 = 11;
/// Bytes of the largest window, one word less than [`Memory::words`] reads.
const MOST: u64 = (WORDS as u64 - 1) * 8;
/// Words that [`Windows::copy`] copies: what follows the head of a `str` in
/// an object's window.
pub const COPIED: usize = 11;

/// What kind of memory is looked for, which says what may be near.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Frames that follow each other downwards in the interpreter's own
    /// stack.
    Stack,
    /// The interpreter's own frames on the C stack, which follow each other
    /// upwards.
    Shims,
    /// A table of keys, read from its beginning.
    Table,
    /// Types.
    Type,
    /// Any other object.
    Object,
}

/// What was read.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Windows {
    /// Index of the first word that was found last.
    at: u64,
    /// How often memory was read since all was forgotten.
    reads: u64,
    /// The window that is looked into.
    window: u64,
    /// Index of its first word.
    first: u64,
    /// Where it is to begin.
    start: u64,
    /// Where each window begins.
    bases: [u64; WINDOWS],
    /// How many bytes of it were read.
    lens: [u64; WINDOWS],
    /// Their content, and room for what a mask does not keep within it.
    words: [u64; ALL + WORDS],
}

impl Windows {
    /// Windows that hold nothing.
    pub const fn new() -> Self {
        Self {
            at: 0,
            reads: 0,
            window: 0,
            first: 0,
            start: 0,
            bases: [0; WINDOWS],
            lens: [0; WINDOWS],
            words: [0; ALL + WORDS],
        }
    }

    /// Forgets what was read: to be called where it may have changed.
    #[inline(always)]
    pub fn forget(&mut self) {
        self.reads = 0;
        self.lens = [0; WINDOWS];
    }

    /// How often memory was read since all was forgotten.
    #[inline(always)]
    pub fn reads(&self) -> u64 {
        self.reads
    }

    /// Sees to it that `count` words from `address` on are there for
    /// [`Windows::word`], until something else is looked for.
    ///
    /// Which window it is and where it begins is forgotten ([`black_box`]) and
    /// read from memory again: otherwise the verifier would follow what comes
    /// after once for each.
    #[inline(always)]
    pub(crate) fn find<M: Memory>(
        &mut self,
        memory: &M,
        kind: Kind,
        address: u64,
        count: u64,
    ) -> Result<(), Error> {
        let Place { window, first } = kind.place(address);
        self.window = window;
        self.first = first;
        let this = black_box(&mut *self);
        let window = this.window as usize % WINDOWS;
        let offset = address.wrapping_sub(this.bases[window]);
        let len = this.lens[window];
        if offset < len && offset + count * 8 <= len && offset.is_multiple_of(8) {
            this.at = this.first + offset / 8;
        } else {
            this.fill(memory, kind, address, count)?;
        }
        black_box(self);
        Ok(())
    }

    /// Reads a window that begins or ends near `address`. Only memory in the
    /// pages that are asked for is read with it: what is beyond need not be
    /// mapped.
    #[inline(always)]
    fn fill<M: Memory>(
        &mut self,
        memory: &M,
        kind: Kind,
        address: u64,
        count: u64,
    ) -> Result<(), Error> {
        let window = self.window as usize % WINDOWS;
        let first = self.first as usize % ALL;
        let Some((words, _)) = self.words[first..].split_first_chunk_mut::<WORDS>() else {
            return Err(Error::TooLong);
        };
        let end = address.wrapping_add(count * 8);
        let bytes = kind.bytes(self.lens[window] == 0);
        self.start = if address.is_multiple_of(8) {
            kind.start(address, end, bytes)
        } else {
            address
        };
        let start = black_box(&mut self.start);
        self.lens[window] = 0;
        self.reads += 1;
        let mut len = (count * 8).max(bytes);
        if !memory.words(*start, words, (len / 8) as usize) {
            self.reads += 1;
            if !memory.words(address, words, count as usize) {
                return Err(Error::Unreadable);
            }
            *start = address;
            len = count * 8;
        }
        self.bases[window] = *start;
        self.lens[window] = len;
        self.at = first as u64 + address.wrapping_sub(*start) / 8;
        Ok(())
    }

    /// The word of what was found last that has the field at `offset`, which
    /// does not reach beyond it.
    #[inline(always)]
    pub(crate) fn word(&self, offset: u32) -> u64 {
        self.nth(self.at.wrapping_add(u64::from(offset / 8)))
    }

    /// Index of the first word that was found last, for [`Windows::nth`].
    #[inline(always)]
    pub(crate) fn at(&self) -> u64 {
        self.at
    }

    /// The word at an index of all windows.
    #[inline(always)]
    pub(crate) fn nth(&self, index: u64) -> u64 {
        u64::from_le(self.words[index as usize % ALL])
    }

    /// Copies `len` bytes from `address` on, and some more, out of the window
    /// that was looked into last; false if it does not hold them.
    #[inline(always)]
    pub fn copy(&self, address: u64, len: u64, into: &mut [u64; COPIED]) -> bool {
        let window = self.window as usize % WINDOWS;
        let offset = address.wrapping_sub(self.bases[window]);
        let held = self.lens[window];
        if !offset.is_multiple_of(8) || offset >= held || len > held - offset {
            return false;
        }
        let first = self.first.wrapping_add(offset / 8);
        for (number, word) in (0..).zip(into) {
            *word = self.words[first.wrapping_add(number) as usize % ALL];
        }
        true
    }

    /// The word at an address.
    #[inline(always)]
    pub(crate) fn u64<M: Memory>(
        &mut self,
        memory: &M,
        kind: Kind,
        address: u64,
    ) -> Result<u64, Error> {
        self.find(memory, kind, address, 1)?;
        Ok(self.word(0))
    }

    /// The pointer at an address, which must not be null.
    #[inline(always)]
    pub(crate) fn pointer<M: Memory>(
        &mut self,
        memory: &M,
        kind: Kind,
        address: u64,
    ) -> Result<u64, Error> {
        match self.u64(memory, kind, address)? {
            0 => Err(Error::Null),
            pointer => Ok(pointer),
        }
    }
}

impl Default for Windows {
    fn default() -> Self {
        Self::new()
    }
}

/// A window.
#[derive(Clone, Copy)]
struct Place {
    /// Its number.
    window: u64,
    /// Index of its first word.
    first: u64,
}

impl Kind {
    /// The window for memory at an address: large enough for what is read at
    /// once, and for the most that is asked for.
    #[inline(always)]
    fn place(self, address: u64) -> Place {
        let mixed = address >> SHIFT ^ address >> (SHIFT + 2) ^ address >> (SHIFT + 4);
        let place = |window, first| Place { window, first };
        match self {
            Self::Table => place(0, 0),
            Self::Stack => place(1, 256),
            Self::Shims => place(2, 512),
            // Types come after all frames.
            Self::Type => place(1 + mixed % 2, 256 + mixed % 2 * 256),
            Self::Object => place(4 + mixed % 4, 768 + mixed % 4 * 16),
        }
    }

    /// How much is read at once: what is likely to be wanted and not much
    /// more, as memory that is in no cache is dear too.
    ///
    /// Many walks end in the first few frames, so that the first window of a
    /// stack is a small one.
    #[inline(always)]
    fn bytes(self, first: bool) -> u64 {
        match self {
            Self::Stack | Self::Shims if !first => MOST,
            Self::Stack | Self::Shims | Self::Table => 512,
            Self::Type => 320,
            Self::Object => 128,
        }
    }

    /// Where a window begins that holds what is from `address` to `end`.
    #[inline(always)]
    fn start(self, address: u64, end: u64, bytes: u64) -> u64 {
        if self == Self::Stack {
            // Downwards, within the page.
            let page = address - address % PAGE;
            page.max(end.wrapping_sub(bytes))
        } else {
            // Upwards, within the last page.
            let last = end.wrapping_sub(1) | (PAGE - 1);
            address.min(last.wrapping_sub(bytes - 1))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::vec::Vec;

    use super::*;

    #[test]
    fn no_window_reaches_into_another() {
        // Types come after all frames, in the same place.
        for kinds in [
            [Kind::Table, Kind::Object, Kind::Stack, Kind::Shims],
            [Kind::Table, Kind::Object, Kind::Type, Kind::Type],
        ] {
            let mut windows = BTreeMap::new();
            for kind in kinds {
                let most = match kind {
                    Kind::Table => WORDS as u64,
                    Kind::Type => 128,
                    _ => kind.bytes(true).max(kind.bytes(false)).div_ceil(8),
                };
                for number in 0..64 {
                    let Place { window, first } = kind.place(number << SHIFT);
                    let range = first..first + most;
                    let before = windows.insert(window, range.clone());
                    assert!(before.is_none_or(|before| before == range), "{kind:?}");
                }
            }
            let mut ranges: Vec<_> = windows.into_values().collect();
            ranges.sort_by_key(|range| range.start);
            assert!(ranges.windows(2).all(|pair| pair[0].end <= pair[1].start));
            assert!(ranges.last().is_some_and(|last| last.end <= ALL as u64));
        }
    }
}
