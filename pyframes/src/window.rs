//! Memory that was read around what was asked for, and is asked for again.
//!
//! A read of another process's memory is dear, and hardly dearer for two
//! kilobytes than for eight bytes. What a walk wants lies together: frames
//! that call each other, the fields of an object, entries of a table. So each
//! read fills a window, and what is in one is not read again until it is
//! forgotten, which is to be done before every walk.
//!
//! Written for the kernel: nothing is found by a loop, the windows are memory
//! of the caller's, and an index into them is masked.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::{Error, Memory, WORDS};

/// Windows there are. Each is for memory of one [`Kind`], so that one kind
/// does not drive out another; a power of two, for masks.
const WINDOWS: usize = 8;
/// Bytes of a window: no more than a page.
const BYTES: u64 = (WORDS * 8) as u64;
/// Words of all windows.
const ALL: usize = WINDOWS * WORDS;
/// Bytes of a page of memory, or of a part of one.
const PAGE: u64 = 4096;
/// Bits of an address below those that tell objects' windows apart.
const SHIFT: u32 = 11;

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
    /// Where each window begins.
    bases: [u64; WINDOWS],
    /// How many bytes of it were read.
    lens: [u64; WINDOWS],
    /// Their content.
    words: [u64; ALL],
}

impl Windows {
    /// Windows that hold nothing.
    pub const fn new() -> Self {
        Self {
            at: 0,
            reads: 0,
            bases: [0; WINDOWS],
            lens: [0; WINDOWS],
            words: [0; ALL],
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
    #[inline(always)]
    pub(crate) fn find<M: Memory>(
        &mut self,
        memory: &M,
        kind: Kind,
        address: u64,
        count: u64,
    ) -> Result<(), Error> {
        let window = kind.window(address);
        let offset = address.wrapping_sub(self.bases[window]);
        let len = self.lens[window];
        if offset < len && offset + count * 8 <= len && offset.is_multiple_of(8) {
            self.at = (window * WORDS) as u64 + offset / 8;
            return Ok(());
        }
        self.fill(memory, kind, address, count)
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
        let window = kind.window(address);
        let end = address.wrapping_add(count * 8);
        let start = if address.is_multiple_of(8) {
            kind.start(address, end)
        } else {
            address
        };
        let (windows, _) = self.words.as_chunks_mut::<WORDS>();
        let Some(words) = windows.get_mut(window) else {
            return Err(Error::TooLong);
        };
        self.lens[window] = 0;
        self.reads += 1;
        if memory.read(start, words.as_mut_bytes()) {
            self.bases[window] = start;
            self.lens[window] = BYTES;
            self.at = (window * WORDS) as u64 + address.wrapping_sub(start) / 8;
            return Ok(());
        }
        self.reads += 1;
        if !memory.words(address, words, count as usize) {
            return Err(Error::Unreadable);
        }
        self.bases[window] = address;
        self.lens[window] = count * 8;
        self.at = (window * WORDS) as u64;
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

impl Kind {
    /// The window for memory at an address.
    #[inline(always)]
    fn window(self, address: u64) -> usize {
        match self {
            Self::Stack => 0,
            Self::Shims => 1,
            Self::Table => 2,
            Self::Type => 3,
            Self::Object => {
                let mixed = address >> SHIFT ^ address >> (SHIFT + 2) ^ address >> (SHIFT + 4);
                4 + (mixed % 4) as usize
            }
        }
    }

    /// Where a window begins that holds what is from `address` to `end`.
    #[inline(always)]
    fn start(self, address: u64, end: u64) -> u64 {
        match self {
            Self::Stack => {
                // Downwards, within the page.
                let page = address - address % PAGE;
                let lowest = end.wrapping_sub(BYTES);
                if lowest > page && lowest <= address {
                    lowest
                } else {
                    page
                }
            }
            Self::Shims | Self::Table | Self::Type => {
                // Upwards, within the last page.
                let rest = PAGE - end.wrapping_sub(1) % PAGE - 1;
                let highest = end.wrapping_add(rest).wrapping_sub(BYTES);
                if highest < address { highest } else { address }
            }
            Self::Object => {
                let block = address - address % BYTES;
                if end.wrapping_sub(block) <= BYTES {
                    block
                } else {
                    address
                }
            }
        }
    }
}
