//! Memory that was read for one stack and may be looked at for the next.
//!
//! What stacks tell is found in objects that outlive requests, and is checked
//! at every use: some forty reads, each a system call, of the same few places.
//! Stacks come in batches. What was read for one of a batch serves the others,
//! as long as it was read after their moment: then it is what they would find
//! themselves, or a little older, and never from before them.

use std::cell::RefCell;
use std::collections::HashMap;

use pyframes::Memory;

use crate::clock::Clock;

/// Bytes that are read at once.
const BLOCK: usize = 1024;
/// Most blocks that are kept, of all processes together: a mebibyte.
const MAX_BLOCKS: usize = 1024;

type Block = Box<[u8; BLOCK]>;

/// Blocks of memory of all processes.
#[derive(Debug, Default)]
pub(super) struct Pages {
    /// All blocks were read after this, monotonic nanoseconds.
    since: u64,
    /// By process and number.
    blocks: RefCell<HashMap<(u32, u64), Block>>,
}

/// A process's memory, read through [`Pages`].
#[derive(Clone, Copy, Debug)]
pub(super) struct Paged<'a, M> {
    pages: &'a Pages,
    pid: u32,
    memory: &'a M,
}

impl Pages {
    /// Forgets what was read before a moment, in monotonic nanoseconds.
    pub(super) fn since(&mut self, moment: u64) {
        if moment > self.since {
            self.blocks.get_mut().clear();
            self.since = Clock::monotonic();
        }
    }

    /// Forgets everything: a process is another one from now on.
    pub(super) fn clear(&mut self) {
        self.blocks.get_mut().clear();
    }

    /// A process's memory.
    pub(super) fn of<'a, M: Memory>(&'a self, pid: u32, memory: &'a M) -> Paged<'a, M> {
        Paged {
            pages: self,
            pid,
            memory,
        }
    }
}

impl<M: Memory> Paged<'_, M> {
    /// Fills `into` from within one block; false if that cannot be read as a
    /// whole.
    fn within(&self, address: u64, into: &mut [u8]) -> bool {
        let number = address / BLOCK as u64;
        let first = (address % BLOCK as u64) as usize;
        let mut blocks = self.pages.blocks.borrow_mut();
        if !blocks.contains_key(&(self.pid, number)) {
            let mut block = Box::new([0; BLOCK]);
            if !self.memory.read(number * BLOCK as u64, &mut *block) {
                return false;
            }
            if blocks.len() >= MAX_BLOCKS {
                blocks.clear();
            }
            blocks.insert((self.pid, number), block);
        }
        let block = blocks.get(&(self.pid, number));
        match block.and_then(|block| block.get(first..first + into.len())) {
            Some(found) => {
                into.copy_from_slice(found);
                true
            }
            None => false,
        }
    }
}

impl<M: Memory> Memory for Paged<'_, M> {
    fn read(&self, address: u64, into: &mut [u8]) -> bool {
        // What is long is a text, and read once.
        if into.len() > BLOCK {
            return self.memory.read(address, into);
        }
        let mut at = address;
        let mut rest = &mut *into;
        while !rest.is_empty() {
            let room = BLOCK - (at % BLOCK as u64) as usize;
            let (now, later) = rest.split_at_mut(room.min(rest.len()));
            if !self.within(at, now) {
                return self.memory.read(address, into);
            }
            let Some(next) = at.checked_add(now.len() as u64) else {
                return false;
            };
            at = next;
            rest = later;
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    /// Memory from 4,096 to 8,191 that counts its reads; its bytes are the
    /// low ones of their addresses, plus what is added.
    #[derive(Default)]
    struct Counting {
        reads: Cell<usize>,
        added: Cell<u8>,
    }

    impl Memory for Counting {
        fn read(&self, address: u64, into: &mut [u8]) -> bool {
            self.reads.set(self.reads.get() + 1);
            let Some(end) = address.checked_add(into.len() as u64) else {
                return false;
            };
            for (byte, at) in into.iter_mut().zip(address..) {
                *byte = (at as u8).wrapping_add(self.added.get());
            }
            address >= 4096 && end <= 8192
        }
    }

    fn one(pages: &Pages, memory: &Counting, address: u64) -> u8 {
        pages.of(1, memory).u8(address).unwrap()
    }

    #[test]
    fn reads_a_block_once_for_moments_before_it() {
        let memory = Counting::default();
        let mut pages = Pages::default();
        let before = Clock::monotonic();
        pages.since(before);
        assert_eq!(one(&pages, &memory, 4097), 1);
        memory.added.set(1);
        pages.since(before - 1);
        assert_eq!(one(&pages, &memory, 4099), 3);
        assert_eq!(memory.reads.get(), 1);
    }

    #[test]
    fn reads_anew_for_a_later_moment() {
        let memory = Counting::default();
        let mut pages = Pages::default();
        pages.since(Clock::monotonic());
        assert_eq!(one(&pages, &memory, 4097), 1);
        memory.added.set(1);
        pages.since(Clock::monotonic());
        assert_eq!(one(&pages, &memory, 4097), 2);
    }

    #[test]
    fn processes_have_their_own() {
        let [memory, other] = [Counting::default(), Counting::default()];
        other.added.set(7);
        let pages = Pages::default();
        assert_eq!(pages.of(1, &memory).u8(4097), Ok(1));
        assert_eq!(pages.of(2, &other).u8(4097), Ok(8));
    }

    #[test]
    fn reads_across_blocks_and_up_to_the_end_of_what_is_mapped() {
        let memory = Counting::default();
        let pages = Pages::default();
        let paged = pages.of(1, &memory);
        let expected: Vec<u8> = (4096 + 1000u32..).take(900).map(|at| at as u8).collect();
        let mut found = vec![0; 900];
        assert!(paged.read(4096 + 1000, &mut found));
        assert_eq!(found, expected);
        let mut last = [0; 8];
        assert!(paged.read(8192 - 8, &mut last));
        assert!(!paged.read(8192 - 7, &mut last));
        assert!(!paged.read(4096 - 4, &mut last));
        assert!(!paged.read(u64::MAX - 3, &mut last));
    }

    #[test]
    fn the_blocks_are_bounded() {
        struct Endless;
        impl Memory for Endless {
            fn read(&self, _: u64, _: &mut [u8]) -> bool {
                true
            }
        }
        let pages = Pages::default();
        for number in 0..3 * MAX_BLOCKS as u64 {
            assert_eq!(pages.of(1, &Endless).u8(number * BLOCK as u64), Ok(0));
            assert!(pages.blocks.borrow().len() <= MAX_BLOCKS);
        }
    }
}
