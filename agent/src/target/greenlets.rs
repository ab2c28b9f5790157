//! What must be known of greenlet to read which greenlet a thread runs, and
//! to see greenlets come and go.
//!
//! greenlet (2.0 and later) keeps a state per thread and a thread-local
//! variable that points to it. The state begins with two pointers: the
//! thread's main greenlet and the current one. Neither the variable nor the
//! state has an exported name, so they are found by what they hold: the main
//! greenlet is of the very type `greenlet.greenlet`, its C++ half refers back
//! to it and to the state, and the current greenlet is of that type or of one
//! derived from it. In a thread that has not used greenlets the variable holds
//! 1 or is not there at all.
//!
//! Which block of thread-local variables is greenlet's is told by the
//! relocations of its file; glibc keeps a table of blocks for each thread.

use abi::map::{Target, target_flag};
use pyframes::interpreter::Thread;
use pyframes::layout::Layout;
use pyframes::{Memory, object};

use super::elf::{ElfError, MappedElf, ThreadLocals};
use super::interpreter::{Interpreter, LocateError, Location};
use crate::remote::{Process, ProcessError};

/// Where greenlet keeps what.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Greenlets {
    /// Address of the type `greenlet.greenlet`.
    pub type_address: u64,
    /// Where a thread keeps the pointer to its state.
    pub slot: Slot,
    /// `tp_init`, which every greenlet goes through that is made from Python
    /// or through greenlet's own C interface.
    pub birth: Location,
    /// `tp_dealloc`, through which every greenlet goes.
    pub end: Location,
}

/// Where a thread keeps a thread-local variable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slot {
    /// The number of the module whose block holds it; 0 if it is at a fixed
    /// distance from the thread pointer.
    pub module: u32,
    /// Distance from the block's beginning or from the thread pointer, bytes.
    pub offset: i64,
}

/// How a process uses greenlets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Use {
    /// Not at all so far: greenlet is not imported, or no thread has used it.
    Unused,
    /// Some thread does.
    Known(Greenlets),
}

/// Why a process's greenlets cannot be followed.
#[derive(Debug, thiserror::Error)]
pub enum GreenletError {
    /// The process cannot be read.
    #[error(transparent)]
    Process(#[from] ProcessError),
    /// The objects on the way cannot be read.
    #[error("cannot read the objects of the process")]
    Objects(#[from] pyframes::Error),
    /// A slot of the type leads nowhere.
    #[error("cannot find the functions of the type greenlet")]
    Functions(#[from] LocateError),
    /// Its file cannot be used.
    #[error("cannot use greenlet's file")]
    File(#[from] ElfError),
    /// The threads' states are not where they belong.
    #[error("this release of greenlet is not known")]
    Unrecognized,
}

/// Finds out how a process uses greenlets.
pub fn find(process: &Process, interpreter: &Interpreter) -> Result<Use, GreenletError> {
    let layout = &interpreter.layout;
    let Some(module) = interpreter.module(process, "greenlet")? else {
        return Ok(Use::Unused);
    };
    // Still being imported.
    let Some(type_address) = object::module_attribute(process, layout, module, "greenlet")? else {
        return Ok(Use::Unused);
    };
    let (birth, end) = object::life(process, layout, type_address)?;
    let birth = interpreter.locate(process, birth)?;
    let end = interpreter.locate(process, end)?;
    let file = |file: &crate::remote::MappedFile| {
        let first = file.first();
        (first.device, first.inode) == (end.device, end.inode)
    };
    let mapped = process.mapped_files()?.into_iter().find(file);
    let image = MappedElf::open(process, &mapped.ok_or(GreenletError::Unrecognized)?)?;
    let locals = image.elf.thread_locals()?;
    let threads = interpreter.threads(process)?;
    let found = locate(
        process,
        layout,
        type_address,
        &threads,
        &slots(process, &image, &locals),
    );
    match found {
        Found::Nowhere => Err(GreenletError::Unrecognized),
        Found::Unused => Ok(Use::Unused),
        Found::At(slot) => Ok(Use::Known(Greenlets {
            type_address,
            slot,
            birth,
            end,
        })),
    }
}

// === impl Greenlets ===

impl Greenlets {
    /// Tells the kernel side where to read.
    pub fn apply(&self, target: &mut Target) {
        target.flags |= target_flag::GREENLETS;
        target.greenlet_type = self.type_address;
        target.greenlet_slot = self.slot.offset;
        target.greenlet_module = self.slot.module;
    }
}

// === impl Slot ===

impl Slot {
    /// The variable's address in a thread, or none if the thread has no such
    /// block yet.
    fn address<M: Memory>(
        self,
        memory: &M,
        thread: &Thread,
    ) -> Result<Option<u64>, pyframes::Error> {
        if self.module == 0 {
            return Ok(Some(thread.thread_id.wrapping_add_signed(self.offset)));
        }
        let table = memory.pointer(thread.thread_id.wrapping_add(TABLE))?;
        let room = memory.u64(table.wrapping_sub(ENTRY))?;
        if u64::from(self.module) > room {
            return Ok(None);
        }
        let entry = table.wrapping_add(u64::from(self.module) * ENTRY);
        let block = memory.u64(entry)?;
        Ok(match block {
            0 | UNALLOCATED => None,
            block => Some(block.wrapping_add_signed(self.offset)),
        })
    }
}

/// Where greenlet's variable may be, given what its file says.
fn slots<M: Memory>(memory: &M, image: &MappedElf, locals: &ThreadLocals) -> Vec<Slot> {
    let mut slots = Vec::new();
    let size = i64::try_from(locals.size.min(MAX_LOCALS)).unwrap_or_default();
    let word = |address: u64| memory.u64(address.wrapping_add(image.load_bias)).ok();
    let fixed = |slots: &mut Vec<Slot>, distance: i64| {
        slots.extend((-size..size).step_by(8).map(|offset| Slot {
            module: 0,
            offset: distance.wrapping_add(offset),
        }));
    };
    let dynamic = |slots: &mut Vec<Slot>, module: u64| {
        if let Ok(module @ 1..=MAX_MODULE) = u32::try_from(module) {
            slots.extend((0..size).step_by(8).map(|offset| Slot { module, offset }));
        }
    };
    for &address in &locals.modules {
        if let Some(module) = word(address) {
            dynamic(&mut slots, module);
        }
    }
    for &address in &locals.distances {
        if let Some(distance) = word(address) {
            fixed(&mut slots, distance.cast_signed());
        }
    }
    for &address in &locals.descriptors {
        // A function and its argument: a distance from the thread pointer, or
        // the address of module and offset.
        match word(address.wrapping_add(8)).map(u64::cast_signed) {
            Some(distance) if distance.unsigned_abs() < MAX_DISTANCE => {
                fixed(&mut slots, distance);
            }
            Some(argument) => {
                if let Ok(module) = memory.u64(argument.cast_unsigned()) {
                    dynamic(&mut slots, module);
                }
            }
            None => {}
        }
    }
    slots.sort_unstable_by_key(|slot| (slot.module, slot.offset));
    slots.dedup();
    slots.truncate(MAX_SLOTS);
    slots
}

/// What the threads say of the places where the variable may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Found {
    /// In none of them.
    Nowhere,
    /// Not yet to be told.
    Unused,
    /// Here.
    At(Slot),
}

/// Finds the one slot in which each thread has its state or none, and one at
/// least has it.
fn locate<M: Memory>(
    memory: &M,
    layout: &Layout,
    type_address: u64,
    threads: &[Thread],
    slots: &[Slot],
) -> Found {
    let mut found = Found::Nowhere;
    let started = || threads.iter().filter(|thread| thread.thread_id != 0);
    for &slot in slots {
        let mut states = 0;
        let fits = started().all(|thread| match slot.address(memory, thread) {
            Ok(None) => true,
            Ok(Some(address)) => match memory.u64(address) {
                // 0 after the thread's end has begun.
                Ok(0 | UNUSED) => true,
                Ok(state) => {
                    let is_state = is_state(memory, layout, type_address, state) == Ok(true);
                    states += usize::from(is_state);
                    is_state
                }
                Err(_) => false,
            },
            Err(_) => false,
        });
        if !fits {
            continue;
        }
        match found {
            _ if states == 0 && found == Found::Nowhere => found = Found::Unused,
            Found::Nowhere | Found::Unused if states > 0 => found = Found::At(slot),
            // Two places cannot both be right.
            Found::At(_) if states > 0 => return Found::Nowhere,
            _ => {}
        }
    }
    found
}

/// Whether greenlet's state of a thread is at this address.
fn is_state<M: Memory>(
    memory: &M,
    layout: &Layout,
    type_address: u64,
    state: u64,
) -> Result<bool, pyframes::Error> {
    let main = memory.pointer(state)?;
    let current = memory.pointer(state.wrapping_add(8))?;
    if object::type_of(memory, layout, main)? != type_address {
        return Ok(false);
    }
    // The fields of `PyGreenlet` follow the object header: weak references, a
    // dictionary, the C++ half.
    let half = memory.pointer(main.wrapping_add(u64::from(layout.object.size) + 16))?;
    let mut words = (0..HALF_WORDS).map(|idx| memory.u64(half.wrapping_add(idx * 8)));
    let mut refers = [false; 2];
    for word in words.by_ref().map_while(Result::ok) {
        refers[0] |= word == main;
        refers[1] |= word == state;
    }
    if refers != [true; 2] {
        return Ok(false);
    }
    let mut at = object::type_of(memory, layout, current)?;
    for _ in 0..MAX_BASES {
        if at == type_address {
            return Ok(true);
        }
        at = memory.pointer(at.wrapping_add(u64::from(layout.type_object.tp_base)))?;
    }
    Ok(false)
}

/// Distance from the thread pointer to the pointer to the table of blocks
/// (`tcbhead_t.dtv` of glibc on x86_64).
const TABLE: u64 = 8;
/// Bytes of an entry of that table (`dtv_t`); the one before the first holds
/// how many there are.
const ENTRY: u64 = 16;
/// `TLS_DTV_UNALLOCATED` of glibc.
const UNALLOCATED: u64 = u64::MAX;
/// What greenlet's variable holds in a thread that has not used it.
const UNUSED: u64 = 1;
/// The most bytes of thread-local variables in which it is searched; greenlet
/// has 16 to 32.
const MAX_LOCALS: u64 = 512;
/// The most places that are looked at.
const MAX_SLOTS: usize = 512;
/// The highest number of a module: far more than a process loads.
const MAX_MODULE: u32 = 1 << 16;
/// The farthest from the thread pointer that a fixed distance leads.
const MAX_DISTANCE: u64 = 1 << 24;
/// Words of a main greenlet's C++ half that are looked at; it has some 20.
const HALF_WORDS: u64 = 40;
/// Classes between one and `greenlet.greenlet`; gevent's hub has four.
const MAX_BASES: usize = 32;

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    use pyframes::layout::{self, Series};

    const TYPE: u64 = 0x10_0000;
    const SUBCLASS: u64 = 0x11_0000;
    const MODULE: u32 = 5;

    /// Words of memory by address.
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

    fn layout() -> &'static Layout {
        let series = Series {
            minor: 12,
            free_threaded: false,
        };
        layout::of(series).expect("a layout")
    }

    fn threads(count: u64) -> Vec<Thread> {
        let thread = |idx: u64| Thread {
            address: 0x5000 + idx,
            thread_id: 0x7f00_0000_0000 + (idx << 20),
        };
        (0..count).map(thread).collect()
    }

    fn module_slots() -> Vec<Slot> {
        let slot = |offset| Slot {
            module: MODULE,
            offset,
        };
        [0, 8, 16].map(slot).to_vec()
    }

    impl Words {
        /// A thread with a table of blocks; returns greenlet's block.
        fn thread(&mut self, thread: &Thread) -> u64 {
            let table = thread.thread_id + 0x1000;
            let block = thread.thread_id + 0x2000;
            self.0.insert(thread.thread_id + TABLE, table);
            self.0.insert(table - ENTRY, 16);
            self.0.insert(table + u64::from(MODULE) * ENTRY, block);
            // A guard, the variable, and one of another kind.
            self.0.insert(block, 1);
            self.0.insert(block + 8, UNUSED);
            self.0.insert(block + 16, 0x77);
            block
        }

        /// greenlet's state of a thread, with a current greenlet of a subclass;
        /// returns its address.
        fn state(&mut self, at: u64) -> u64 {
            let (main, half, current) = (at + 0x1000, at + 0x2000, at + 0x3000);
            self.0.insert(at, main);
            self.0.insert(at + 8, current);
            self.0.insert(main + 8, TYPE);
            self.0.insert(main + 32, half);
            for word in 0..HALF_WORDS {
                self.0.insert(half + word * 8, 0);
            }
            self.0.insert(half + 8, main);
            self.0.insert(half + 64, at);
            self.0.insert(current + 8, SUBCLASS);
            let base = u64::from(layout().type_object.tp_base);
            self.0.insert(SUBCLASS + base, TYPE);
            at
        }
    }

    fn check(memory: &Words, threads: &[Thread], slots: &[Slot]) -> Found {
        locate(memory, layout(), TYPE, threads, slots)
    }

    /// Two threads of which the first uses greenlets, and the address of its
    /// state.
    fn scene() -> (Words, Vec<Thread>, u64) {
        let mut memory = Words::default();
        let threads = threads(2);
        let block = memory.thread(&threads[0]);
        memory.thread(&threads[1]);
        let state = memory.state(0x20_0000);
        memory.0.insert(block + 8, state);
        (memory, threads, state)
    }

    #[test]
    fn finds_the_variable_by_what_it_holds() {
        let (memory, threads, _) = scene();
        let found = check(&memory, &threads, &module_slots());
        assert_eq!(found, Found::At(module_slots()[1]));
    }

    #[test]
    fn a_thread_without_the_block_has_used_none() {
        let (mut memory, threads, _) = scene();
        let table = threads[1].thread_id + 0x1000;
        for entry in [0, UNALLOCATED] {
            memory.0.insert(table + u64::from(MODULE) * ENTRY, entry);
            let found = check(&memory, &threads, &module_slots());
            assert_eq!(found, Found::At(module_slots()[1]));
        }
        memory.0.insert(table - ENTRY, u64::from(MODULE) - 1);
        let found = check(&memory, &threads, &module_slots());
        assert_eq!(found, Found::At(module_slots()[1]));
    }

    #[test]
    fn tells_unused_from_unknown() {
        let mut memory = Words::default();
        let threads = threads(2);
        threads.iter().for_each(|thread| _ = memory.thread(thread));
        assert_eq!(check(&memory, &threads, &module_slots()), Found::Unused);
        assert_eq!(check(&memory, &threads, &[]), Found::Nowhere);
        // No place holds what would be a state or none.
        assert_eq!(
            check(&memory, &threads, &module_slots()[2..]),
            Found::Nowhere
        );
    }

    #[test]
    fn believes_no_state_that_contradicts_itself() {
        let damages: [fn(&mut Words, u64); 5] = [
            // The main greenlet is of a subclass.
            |memory, state| _ = memory.0.insert(state + 0x1000 + 8, SUBCLASS),
            // Its C++ half is another's, or belongs to another thread.
            |memory, state| _ = memory.0.insert(state + 0x2000 + 8, 0x99),
            |memory, state| _ = memory.0.insert(state + 0x2000 + 64, 0x99),
            // The current greenlet is none.
            |memory, state| _ = memory.0.insert(state + 0x3000 + 8, 0x99_0000),
            |memory, state| _ = memory.0.insert(state + 8, 0),
        ];
        for damage in damages {
            let (mut memory, threads, state) = scene();
            damage(&mut memory, state);
            let found = check(&memory, &threads, &module_slots()[1..]);
            assert_eq!(found, Found::Nowhere);
        }
    }

    #[test]
    fn two_places_cannot_both_be_right() {
        let (mut memory, threads, state) = scene();
        memory.0.insert(threads[0].thread_id + 0x2000 + 16, state);
        memory.0.insert(threads[1].thread_id + 0x2000 + 16, UNUSED);
        let found = check(&memory, &threads, &module_slots());
        assert_eq!(found, Found::Nowhere);
    }

    #[test]
    fn finds_a_variable_at_a_fixed_distance() {
        let mut memory = Words::default();
        let threads = threads(2);
        let state = memory.state(0x20_0000);
        memory.0.insert(threads[0].thread_id - 0x40, state);
        memory.0.insert(threads[1].thread_id - 0x40, UNUSED);
        let slot = Slot {
            module: 0,
            offset: -0x40,
        };
        assert_eq!(check(&memory, &threads, &[slot]), Found::At(slot));
    }
}
