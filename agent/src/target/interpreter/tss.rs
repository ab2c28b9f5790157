//! Finds where a thread keeps its `PyThreadState`: the slot of CPython's
//! pthread key in the C library's thread structure.
//!
//! On x86_64 a thread's `pthread_t` is its thread pointer, in glibc and in
//! musl, and CPython notes it as `PyThreadState.thread_id`. A place is right
//! if the threads of the interpreter have their own states there.

use pyframes::Memory;
use pyframes::interpreter::Thread;

/// Where a thread keeps its `PyThreadState`, from its thread pointer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tss {
    /// Distance of the slot from the thread pointer or, with `indirect`, from
    /// the pointer found there; bytes.
    pub slot: i64,
    /// Distance from the thread pointer to a pointer to the slots; bytes.
    pub indirect: Option<i64>,
}

/// Finds the slot of `key` that most of `threads` confirm, and one at least by
/// its own state.
///
/// Not all must: a thread that has just been created has not taken its state
/// yet, and one of a foreign library may have left it behind. One that runs
/// code of a sub-interpreter has the state that it has there, which is known by
/// the thread it names: `thread_id`, at that offset.
pub(super) fn locate<M: Memory>(
    memory: &M,
    threads: &[Thread],
    key: u32,
    thread_id: u32,
) -> Option<Tss> {
    let started: Vec<_> = threads
        .iter()
        .filter(|thread| thread.thread_id != 0)
        .collect();
    places(i64::from(key)).find(|place| {
        let (mut own, mut others) = (0, 0);
        for thread in &started {
            match place.state(memory, thread) {
                Some(state) if state == thread.address => own += 1,
                Some(state) => {
                    let names = memory.u64(state.wrapping_add(thread_id.into()));
                    others += usize::from(names == Ok(thread.thread_id));
                }
                None => {}
            }
        }
        own > 0 && (own + others) * 2 >= started.len()
    })
}

/// The known places of a key, then those that another version of glibc may
/// use.
fn places(key: i64) -> impl Iterator<Item = Tss> {
    let musl = Tss {
        slot: 8 * key,
        indirect: Some(MUSL_SLOTS),
    };
    let in_block = move |block: i64| Tss {
        slot: block + glibc_value(key),
        indirect: None,
    };
    let first = (key < GLIBC_FIRST_BLOCK_KEYS).then(|| in_block(GLIBC_FIRST_BLOCK));
    let searched = SEARCHED_BLOCKS
        .step_by(8)
        .filter(move |_| key < GLIBC_FIRST_BLOCK_KEYS)
        .map(in_block);
    let later = (key >= GLIBC_FIRST_BLOCK_KEYS).then(|| Tss {
        slot: glibc_value(key % GLIBC_FIRST_BLOCK_KEYS),
        indirect: Some(GLIBC_BLOCKS + 8 * (key / GLIBC_FIRST_BLOCK_KEYS)),
    });
    first.into_iter().chain(later).chain([musl]).chain(searched)
}

/// Offset of the value of a key in a block of `struct pthread_key_data`,
/// which has a sequence number before it.
fn glibc_value(key: i64) -> i64 {
    16 * key + 8
}

// === impl Tss ===

impl Tss {
    /// The state that the thread has here.
    fn state<M: Memory>(&self, memory: &M, thread: &Thread) -> Option<u64> {
        let base = match self.indirect {
            None => Some(thread.thread_id),
            Some(indirect) => memory
                .pointer(thread.thread_id.wrapping_add_signed(indirect))
                .ok(),
        };
        memory.u64(base?.wrapping_add_signed(self.slot)).ok()
    }
}

/// `struct pthread.specific_1stblock` of glibc (seen in 2.31 to 2.43).
const GLIBC_FIRST_BLOCK: i64 = 0x310;
/// `struct pthread.specific` of glibc: pointers to the blocks, behind the
/// first block of 32 keys.
const GLIBC_BLOCKS: i64 = GLIBC_FIRST_BLOCK + 16 * GLIBC_FIRST_BLOCK_KEYS;
/// `PTHREAD_KEY_2NDLEVEL_SIZE` of glibc.
const GLIBC_FIRST_BLOCK_KEYS: i64 = 32;
/// Where else the first block may begin: inside `struct pthread`, behind its
/// header.
const SEARCHED_BLOCKS: std::ops::Range<i64> = 0x100..0x800;
/// `struct pthread.tsd` of musl (1.2).
const MUSL_SLOTS: i64 = 0x80;

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    /// Where the states name their threads.
    const THREAD_ID: u32 = 0x98;

    #[derive(Default)]
    struct Words(BTreeMap<u64, u64>);

    impl Memory for Words {
        fn read(&self, address: u64, into: &mut [u8]) -> bool {
            let word = self.0.get(&address).map(|word| word.to_le_bytes());
            word.filter(|_| into.len() == 8)
                .map(|word| into.copy_from_slice(&word))
                .is_some()
        }
    }

    fn threads(count: u64) -> Vec<Thread> {
        let thread = |idx| Thread {
            address: 0x5000 + idx,
            thread_id: 0x7f00_0000_0000_u64 + (idx << 23),
        };
        (0..count).map(thread).collect()
    }

    fn glibc(threads: &[Thread], block: u64, key: u64) -> Words {
        let slot = |thread: &Thread| (thread.thread_id + block + 16 * key + 8, thread.address);
        Words(threads.iter().map(slot).collect())
    }

    #[test]
    fn finds_the_slot_of_glibc() {
        let threads = threads(4);
        let found = locate(&glibc(&threads, 0x310, 3), &threads, 3, THREAD_ID);
        assert_eq!(
            found,
            Some(Tss {
                slot: 0x310 + 56,
                indirect: None
            })
        );
    }

    #[test]
    fn finds_a_block_that_moved() {
        let threads = threads(4);
        let found = locate(&glibc(&threads, 0x348, 0), &threads, 0, THREAD_ID);
        assert_eq!(
            found,
            Some(Tss {
                slot: 0x350,
                indirect: None
            })
        );
    }

    #[test]
    fn finds_keys_of_later_blocks() {
        let threads = threads(2);
        let mut words = Words::default();
        for thread in &threads {
            let block = thread.thread_id + 0x9000;
            words.0.insert(thread.thread_id + 0x510 + 8 * 2, block);
            words.0.insert(block + 16 * 5 + 8, thread.address);
        }
        let found = locate(&words, &threads, 69, THREAD_ID);
        assert_eq!(
            found,
            Some(Tss {
                slot: 88,
                indirect: Some(0x520)
            })
        );
    }

    #[test]
    fn finds_the_slot_of_musl() {
        let threads = threads(2);
        let mut words = Words::default();
        for thread in &threads {
            let slots = thread.thread_id + 0x9000;
            words.0.insert(thread.thread_id + 0x80, slots);
            words.0.insert(slots + 16, thread.address);
        }
        assert_eq!(
            locate(&words, &threads, 2, THREAD_ID),
            Some(Tss {
                slot: 16,
                indirect: Some(0x80)
            })
        );
    }

    #[test]
    fn tolerates_threads_that_have_not_started() {
        let mut threads = threads(4);
        let words = glibc(&threads, 0x310, 0);
        threads[0].thread_id = 0;
        threads[1].address += 1;
        assert!(locate(&words, &threads, 0, THREAD_ID).is_some());
        threads[2].address += 1;
        assert_eq!(locate(&words, &threads, 0, THREAD_ID), None);
    }

    #[test]
    fn tolerates_threads_that_are_in_a_sub_interpreter() {
        let threads = threads(4);
        let mut words = glibc(&threads, 0x310, 0);
        for thread in &threads[1..] {
            let other = 0x9000 + thread.address * 0x100;
            words.0.insert(thread.thread_id + 0x318, other);
        }
        // Nothing there is a state of this thread.
        assert_eq!(locate(&words, &threads, 0, THREAD_ID), None);
        for thread in &threads[1..] {
            let other = 0x9000 + thread.address * 0x100;
            words.0.insert(other + 0x98, thread.thread_id);
        }
        assert!(locate(&words, &threads, 0, THREAD_ID).is_some());
        // One at least must have its own.
        words.0.insert(threads[0].thread_id + 0x318, 0x77);
        assert_eq!(locate(&words, &threads, 0, THREAD_ID), None);
    }

    #[test]
    fn nothing_is_found_where_nothing_is() {
        assert_eq!(locate(&Words::default(), &threads(3), 0, THREAD_ID), None);
        assert_eq!(locate(&Words::default(), &[], 0, THREAD_ID), None);
        let garbage = [Thread {
            address: 0,
            thread_id: u64::MAX,
        }];
        assert_eq!(
            locate(&Words::default(), &garbage, u32::MAX, THREAD_ID),
            None
        );
    }
}
