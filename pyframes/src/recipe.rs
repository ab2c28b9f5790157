//! Recipes: small programs that lead from a frame to a value of interest.
//!
//! The agent compiles them, once per process and code object; the kernel side
//! runs them when a walk meets the code object. A step compares addresses of
//! interned strings and never their text, so that it is cheap and needs no
//! hash.

use core::hint::black_box;

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::argument::Stack;
use crate::keyed::{self, Table};
use crate::layout::Layout;
use crate::object::flag;
use crate::window::{Kind, Windows};
use crate::{Error, Memory, field};

/// Types of values that are remembered; a power of two, for masks.
pub(crate) const VALUE_TYPES: usize = 4;
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
    /// To the object whose address is `operand` bytes into this one: slots,
    /// fields of C structures. This one's type must be exactly that at `key`
    /// (0: any).
    pub const POINTER: u32 = 4;
    /// To what the cell holds; an object that is no cell stays. `key` is the
    /// address of the type of cells, or 0 to tell them by name.
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

/// A step that was taken, and where it led.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
struct Taken {
    step: Step,
    /// The object that it began at, or 0 for no step.
    from: u64,
    to: u64,
}

impl Taken {
    const NONE: Self = Self {
        step: Step {
            op: op::END,
            operand: 0,
            key: 0,
        },
        from: 0,
        to: 0,
    };
}

/// What a run works with: memory that the caller lends, so that the kernel
/// can keep it in a map.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout)]
pub struct Scratch {
    /// The object that was reached.
    object: u64,
    /// How many steps were done.
    done: u64,
    /// How many of the next run's steps are passed over: where the object that
    /// was found tells which of several ways leads on.
    pub(crate) skip: u64,
    /// The evaluation stack that is looked through.
    pub(crate) stack: Stack,
    /// The steps that runs have taken, by their number.
    taken: [Taken; MAX_STEPS],
    /// The object that `table` is of, or 0.
    opened: u64,
    /// The [`op`] that opened it.
    opened_by: u64,
    /// A type whose instances are dictionaries, or 0.
    pub(crate) dict_type: u64,
    /// A type whose instances are tuples or lists, or 0.
    sequence_type: u64,
    /// Its `tp_flags`.
    sequence_flags: u64,
    /// Types of values that were copied, or 0.
    pub(crate) value_types: [u64; VALUE_TYPES],
    /// Their `tp_flags`.
    pub(crate) value_flags: [u64; VALUE_TYPES],
    /// The table that is looked into.
    pub(crate) table: Table,
    /// Memory as it was read.
    pub windows: Windows,
}

impl Scratch {
    /// Memory for any number of runs, one after the other.
    pub const fn new() -> Self {
        Self {
            object: 0,
            done: 0,
            skip: 0,
            stack: Stack::NONE,
            taken: [Taken::NONE; MAX_STEPS],
            opened: 0,
            opened_by: 0,
            dict_type: 0,
            sequence_type: 0,
            sequence_flags: 0,
            value_types: [0; VALUE_TYPES],
            value_flags: [0; VALUE_TYPES],
            table: Table::NONE,
            windows: Windows::new(),
        }
    }

    /// Forgets what objects held: to be called where they may have changed.
    ///
    /// Until then recipes that begin alike take the steps that they share
    /// once, and a table that is looked into several times is read once.
    #[inline(always)]
    pub fn forget(&mut self) {
        self.forget_steps();
        self.windows.forget();
    }

    /// [`Scratch::forget`] without the windows: before the first of several
    /// runs, which need not come.
    #[inline(always)]
    pub fn forget_steps(&mut self) {
        for taken in &mut self.taken {
            taken.from = 0;
        }
        self.opened = 0;
    }

    /// Forgets what types are: to be called for another process.
    #[inline(always)]
    pub fn forget_types(&mut self) {
        self.dict_type = 0;
        self.sequence_type = 0;
        self.value_types = [0; VALUE_TYPES];
    }

    /// The next run takes all of its steps.
    #[inline(always)]
    pub fn skip_nothing(&mut self) {
        self.skip = 0;
    }

    /// The number of the step that the last run failed at, the first being 0.
    #[inline(always)]
    pub fn failed_step(&self) -> u64 {
        self.done
    }
}

impl Default for Scratch {
    fn default() -> Self {
        Self::new()
    }
}

/// The object to which `steps` lead from the object at `start`.
///
/// What is not there, be it an attribute, a key or the content of a cell, is
/// [`Error::Null`]. After an error [`Scratch::failed_step`] tells where.
#[inline(always)]
pub fn run<M: Memory>(
    memory: &M,
    layout: &Layout,
    steps: &[Step; MAX_STEPS],
    start: u64,
    scratch: &mut Scratch,
) -> Result<u64, Error> {
    run_some::<M, false>(memory, layout, steps, start, scratch)
}

/// [`run`] without the first steps, as many as [`argument::first`] has told.
///
/// [`argument::first`]: crate::argument::first
#[inline(always)]
pub fn run_rest<M: Memory>(
    memory: &M,
    layout: &Layout,
    steps: &[Step; MAX_STEPS],
    start: u64,
    scratch: &mut Scratch,
) -> Result<u64, Error> {
    run_some::<M, true>(memory, layout, steps, start, scratch)
}

#[inline(always)]
fn run_some<M: Memory, const REST: bool>(
    memory: &M,
    layout: &Layout,
    steps: &[Step; MAX_STEPS],
    start: u64,
    scratch: &mut Scratch,
) -> Result<u64, Error> {
    scratch.object = start;
    scratch.done = 0;
    for (number, step) in steps.iter().enumerate() {
        // Read anew each time: the verifier would follow what comes after
        // once for each number that it knows it may be.
        if REST && (number as u64) < black_box(&mut *scratch).skip {
            continue;
        }
        if step.op == op::END {
            break;
        }
        let from = scratch.object;
        let taken = &scratch.taken[number];
        if from != 0 && taken.from == from && taken.step == *step {
            scratch.object = taken.to;
        } else {
            scratch.taken[number].from = 0;
            take(memory, layout, step, scratch)?;
            scratch.taken[number] = Taken {
                step: *step,
                from,
                to: scratch.object,
            };
        }
        scratch.done += 1;
    }
    Ok(scratch.object)
}

/// Goes on from the object in the scratch.
#[inline(always)]
fn take<M: Memory>(
    memory: &M,
    layout: &Layout,
    step: &Step,
    scratch: &mut Scratch,
) -> Result<(), Error> {
    let object = scratch.object;
    match step.op {
        op::ATTRIBUTE | op::ITEM => {
            let by = u64::from(step.op);
            if scratch.opened != object || scratch.opened_by != by {
                scratch.opened = 0;
                if step.op == op::ATTRIBUTE {
                    keyed::open_attributes(memory, layout, object, scratch)?;
                } else {
                    keyed::open_dict(memory, layout, object, scratch)?;
                }
                scratch.opened = object;
                scratch.opened_by = by;
            }
            scratch.object = keyed::find(memory, step.key, scratch)?;
            Ok(())
        }
        op::INDEX => {
            scratch.object = item(memory, layout, object, step.operand, scratch)?;
            Ok(())
        }
        op::POINTER => {
            if step.key != 0 && type_of(memory, layout, object, scratch)? != step.key {
                return Err(Error::WrongType);
            }
            let at = field(object, step.operand);
            scratch.object = scratch.windows.pointer(memory, Kind::Object, at)?;
            Ok(())
        }
        op::CELL => {
            if is_cell(memory, layout, object, step.key, scratch)? {
                let at = field(object, layout.cell.ob_ref);
                scratch.object = scratch.windows.pointer(memory, Kind::Object, at)?;
            }
            Ok(())
        }
        _ => Err(Error::Malformed),
    }
}

/// The type, if what was read of it may be remembered: what is not on the
/// heap is never another type's. Otherwise 0.
#[inline(always)]
pub(crate) fn lasting(type_address: u64, flags: u64) -> u64 {
    if flags & flag::HEAPTYPE == 0 {
        type_address
    } else {
        0
    }
}

#[inline(always)]
fn type_of<M: Memory>(
    memory: &M,
    layout: &Layout,
    object: u64,
    scratch: &mut Scratch,
) -> Result<u64, Error> {
    let at = field(object, layout.object.ob_type);
    scratch.windows.pointer(memory, Kind::Object, at)
}

/// Item number `index` of a tuple or list.
#[inline(always)]
fn item<M: Memory>(
    memory: &M,
    layout: &Layout,
    object: u64,
    index: u32,
    scratch: &mut Scratch,
) -> Result<u64, Error> {
    let type_address = type_of(memory, layout, object, scratch)?;
    if scratch.sequence_type != type_address {
        let at = field(type_address, layout.type_object.tp_flags);
        scratch.sequence_flags = scratch.windows.u64(memory, Kind::Type, at)?;
        scratch.sequence_type = lasting(type_address, scratch.sequence_flags);
    }
    let flags = scratch.sequence_flags;
    if flags & (flag::TUPLE_SUBCLASS | flag::LIST_SUBCLASS) == 0 {
        return Err(Error::WrongType);
    }
    let windows = &mut scratch.windows;
    let size = field(object, layout.object.ob_size);
    if u64::from(index) >= windows.u64(memory, Kind::Object, size)? {
        return Err(Error::Null);
    }
    let items = if flags & flag::TUPLE_SUBCLASS != 0 {
        field(object, layout.tuple.ob_item)
    } else {
        windows.pointer(memory, Kind::Object, field(object, layout.list.ob_item))?
    };
    windows.pointer(
        memory,
        Kind::Object,
        items.wrapping_add(u64::from(index) * 8),
    )
}

/// Whether the object is a cell: of the type at `cells`, or of one called so.
#[inline(always)]
fn is_cell<M: Memory>(
    memory: &M,
    layout: &Layout,
    object: u64,
    cells: u64,
    scratch: &mut Scratch,
) -> Result<bool, Error> {
    let type_address = type_of(memory, layout, object, scratch)?;
    if cells != 0 {
        return Ok(type_address == cells);
    }
    let name = memory.pointer(field(type_address, layout.type_object.tp_name))?;
    Ok(memory.bytes(name)? == *b"cell\0")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::{Fake, for_each_layout};
    use crate::layout::ABSENT;
    use core::cell::Cell;
    use std::boxed::Box;
    use std::format;
    use std::vec::Vec;

    /// Bits of `tp_flags`, as CPython has them.
    const HEAPTYPE: u64 = 1 << 9;
    const MANAGED_DICT: u64 = 1 << 4;
    const INLINE_VALUES: u64 = 1 << 2;

    fn steps(list: &[(u32, u32, u64)]) -> [Step; MAX_STEPS] {
        let mut steps = [Step::default(); MAX_STEPS];
        for (step, &(op, operand, key)) in steps.iter_mut().zip(list) {
            *step = Step { op, operand, key };
        }
        steps
    }

    /// Where the steps lead, or the number of the step that fails and why.
    fn follow(
        fake: &Fake,
        layout: &Layout,
        start: u64,
        list: &[(u32, u32, u64)],
    ) -> Result<u64, (u64, Error)> {
        let mut scratch = Box::new(Scratch::new());
        run(fake, layout, &steps(list), start, &mut scratch)
            .map_err(|error| (scratch.failed_step(), error))
    }

    /// The key object of entry number `index` of a dictionary.
    fn key(fake: &Fake, layout: &Layout, dict: u64, index: usize) -> u64 {
        let dict = crate::Dict::open(fake, layout, dict).expect("opens");
        let entry = dict.entries(fake).nth(index).expect("has it");
        entry.expect("reads").key
    }

    /// A type whose instances have these flags and this `tp_dictoffset`.
    fn class(fake: &mut Fake, layout: &Layout, name: &str, flags: u64, dictoffset: i64) -> u64 {
        let _types_first = fake.int(layout, 1);
        let at = &layout.type_object;
        let name = fake.put(format!("{name}\0").as_bytes());
        let address = fake.put(&[0; 1024]);
        fake.put_u64(field(address, at.tp_name), name);
        fake.put_u64(field(address, at.tp_flags), flags | HEAPTYPE);
        fake.put_u64(field(address, at.tp_basicsize), 64);
        fake.put_u64(field(address, at.tp_dictoffset), dictoffset.cast_unsigned());
        address
    }

    /// An instance of a type, with room before it for what some versions keep
    /// there.
    fn instance(fake: &mut Fake, layout: &Layout, class: u64) -> u64 {
        let address = fake.put(&[0; 1024]) + 64;
        fake.put_u64(field(address, layout.object.ob_type), class);
        address
    }

    /// The `PyDictKeysObject` and the values of a split dictionary.
    fn split(fake: &Fake, layout: &Layout, dict: u64) -> (u64, u64) {
        let keys = fake.u64(field(dict, layout.dict.ma_keys)).expect("mapped");
        let values = fake.u64(field(dict, layout.dict.ma_values));
        (keys, values.expect("mapped"))
    }

    /// An instance that keeps its attributes in a dictionary.
    fn with_dict(fake: &mut Fake, layout: &Layout, dict: u64) -> u64 {
        if layout.instance.managed_dict == ABSENT {
            let class = class(fake, layout, "old", 0, 16);
            let address = instance(fake, layout, class);
            fake.put_u64(address + 16, dict);
            return address;
        }
        let class = class(fake, layout, "new", MANAGED_DICT, -1);
        let address = instance(fake, layout, class);
        fake.put_u64(address - u64::from(layout.instance.managed_dict), dict);
        address
    }

    /// An instance that keeps its attributes as values, where the version
    /// does so.
    fn with_values(fake: &mut Fake, layout: &Layout, items: &[(&str, u64)]) -> (u64, u64) {
        let dict = fake.split_dict(layout, items);
        let first = key(fake, layout, dict, 0);
        let (keys, values) = split(fake, layout, dict);
        let at = &layout.instance;
        if at.managed_dict == ABSENT {
            return (with_dict(fake, layout, dict), first);
        }
        let inline = at.inline_values != 0;
        let flags = if inline {
            MANAGED_DICT | INLINE_VALUES
        } else {
            MANAGED_DICT
        };
        let class = class(fake, layout, "values", flags, -1);
        fake.put_u64(field(class, layout.heap_type.ht_cached_keys), keys);
        let address = instance(fake, layout, class);
        if inline {
            let own = address + 64;
            fake.put_u8(field(own, layout.dict_values.valid), 1);
            for (index, (_, value)) in (0..).zip(items) {
                let at = field(own, layout.dict_values.values) + index * 8;
                fake.put_u64(at, *value);
            }
        } else if at.values == ABSENT {
            fake.put_u64(address - u64::from(at.managed_dict), values - 1);
        } else {
            fake.put_u64(address - u64::from(at.values), values);
        }
        (address, first)
    }

    #[test]
    fn the_rest_of_a_recipe_is_run_from_where_it_is_told() {
        for_each_layout(|layout, fake| {
            let text = fake.string(layout, "select 1");
            let dict = fake.dict(layout, &[("query", text)]);
            let name = key(fake, layout, dict, 0);
            let tuple = fake.tuple(layout, &[dict, text]);
            let steps = steps(&[(op::ITEM, 0, name), (op::END, 0, 0), (op::INDEX, 1, 0)]);
            let mut scratch = Box::new(Scratch::new());
            for (skip, start, expected) in [
                (0, dict, Ok(text)),
                (2, tuple, Ok(text)),
                (MAX_STEPS as u64, tuple, Ok(tuple)),
                (0, tuple, Err(Error::WrongType)),
            ] {
                scratch.skip = skip;
                let found = run_rest(fake, layout, &steps, start, &mut scratch);
                assert_eq!(found, expected, "{skip}");
                scratch.skip_nothing();
                let all = run_rest(fake, layout, &steps, dict, &mut scratch);
                assert_eq!(all, Ok(text));
            }
        });
    }

    #[test]
    fn no_step_leads_nowhere_else() {
        for_each_layout(|layout, fake| {
            assert_eq!(follow(fake, layout, 0x5000, &[]), Ok(0x5000));
        });
    }

    #[test]
    fn finds_items_of_dictionaries_of_every_form() {
        for_each_layout(|layout, fake| {
            for build in [Fake::dict, Fake::general_dict, Fake::split_dict] {
                for count in [1, 3, 30, 60] {
                    let names: Vec<_> = (0..count).map(|n| format!("name{n}")).collect();
                    let items: Vec<_> = (1..)
                        .zip(&names)
                        .map(|(n, name)| (name.as_str(), n * 0x10))
                        .collect();
                    let dict = build(fake, layout, &items);
                    for (index, (_, value)) in items.iter().enumerate() {
                        let key = key(fake, layout, dict, index);
                        let found = follow(fake, layout, dict, &[(op::ITEM, 0, key)]);
                        assert_eq!(found, Ok(*value), "{index} of {count}");
                    }
                    let absent = follow(fake, layout, dict, &[(op::ITEM, 0, 0x7777)]);
                    assert_eq!(absent, Err((0, Error::Null)));
                    // Space for the next ones.
                    *fake = Fake::new();
                }
            }
        });
    }

    #[test]
    fn looks_at_a_bounded_number_of_entries() {
        for_each_layout(|layout, fake| {
            let names: Vec<_> = (0..64).map(|n| format!("name{n}")).collect();
            let items: Vec<_> = (1..)
                .zip(&names)
                .map(|(n, name)| (name.as_str(), n))
                .collect();
            let dict = fake.dict(layout, &items);
            let last = keyed::MAX_ENTRIES as usize - 1;
            let known = key(fake, layout, dict, last);
            let beyond = key(fake, layout, dict, last + 1);
            assert_eq!(
                follow(fake, layout, dict, &[(op::ITEM, 0, known)]),
                Ok(last as u64 + 1)
            );
            assert_eq!(
                follow(fake, layout, dict, &[(op::ITEM, 0, beyond)]),
                Err((0, Error::Null))
            );
        });
    }

    #[test]
    fn finds_attributes_wherever_they_are_kept() {
        for_each_layout(|layout, fake| {
            let items = [("first", 0x5000), ("second", 0x6000)];
            let (address, name) = with_values(fake, layout, &items);
            let attribute = [(op::ATTRIBUTE, 0, name)];
            assert_eq!(follow(fake, layout, address, &attribute), Ok(0x5000));

            for build in [Fake::dict, Fake::general_dict, Fake::split_dict] {
                let dict = build(fake, layout, &items);
                let name = key(fake, layout, dict, 1);
                let address = with_dict(fake, layout, dict);
                let attribute = [(op::ATTRIBUTE, 0, name)];
                assert_eq!(follow(fake, layout, address, &attribute), Ok(0x6000));
            }

            // Where the type says that instances have a dictionary.
            let dict = fake.dict(layout, &items);
            let name = key(fake, layout, dict, 0);
            let class = class(fake, layout, "function", 0, 40);
            let address = instance(fake, layout, class);
            fake.put_u64(address + 40, dict);
            let attribute = [(op::ATTRIBUTE, 0, name)];
            assert_eq!(follow(fake, layout, address, &attribute), Ok(0x5000));
        });
    }

    #[test]
    fn values_that_moved_to_a_dictionary_are_found_there() {
        for_each_layout(|layout, fake| {
            if layout.instance.managed_dict == ABSENT {
                return;
            }
            let (address, _) = with_values(fake, layout, &[("name", 0x5000)]);
            let dict = fake.dict(layout, &[("name", 0x6000)]);
            let name = key(fake, layout, dict, 0);
            let at = &layout.instance;
            if at.inline_values != 0 {
                fake.put_u8(field(address + 64, layout.dict_values.valid), 0);
            }
            if at.values != ABSENT {
                fake.put_u64(address - u64::from(at.values), 0);
            }
            fake.put_u64(address - u64::from(at.managed_dict), dict);
            let attribute = [(op::ATTRIBUTE, 0, name)];
            assert_eq!(follow(fake, layout, address, &attribute), Ok(0x6000));
        });
    }

    #[test]
    fn an_attribute_that_was_deleted_is_not_there() {
        for_each_layout(|layout, fake| {
            let dict = fake.split_dict(layout, &[("first", 0x5000), ("second", 0x6000)]);
            let name = key(fake, layout, dict, 0);
            let (_, values) = split(fake, layout, dict);
            fake.put_u64(field(values, layout.dict_values.values), 0);
            let address = with_dict(fake, layout, dict);
            assert_eq!(
                follow(fake, layout, address, &[(op::ATTRIBUTE, 0, name)]),
                Err((0, Error::Null))
            );
        });
    }

    #[test]
    fn an_object_without_attributes_fails() {
        for_each_layout(|layout, fake| {
            let number = fake.int(layout, 5);
            assert_eq!(
                follow(fake, layout, number, &[(op::ATTRIBUTE, 0, 1)]),
                Err((0, Error::WrongType))
            );
            assert_eq!(
                follow(fake, layout, number, &[(op::ITEM, 0, 1)]),
                Err((0, Error::WrongType))
            );
            // Instances that differ in size.
            let class = class(fake, layout, "number", 0, -8);
            let address = instance(fake, layout, class);
            assert_eq!(
                follow(fake, layout, address, &[(op::ATTRIBUTE, 0, 1)]),
                Err((0, Error::WrongType))
            );
        });
    }

    #[test]
    fn indexes_tuples_and_lists_within_their_length() {
        for_each_layout(|layout, fake| {
            let kind = class(fake, layout, "tuple", flag::TUPLE_SUBCLASS, 0);
            let tuple = instance(fake, layout, kind);
            fake.put_u64(field(tuple, layout.object.ob_size), 2);
            fake.put_u64(field(tuple, layout.tuple.ob_item) + 8, 0x5000);
            let kind = class(fake, layout, "list", flag::LIST_SUBCLASS, 0);
            let list = instance(fake, layout, kind);
            let items = fake.put(&[0; 64]);
            fake.put_u64(field(list, layout.object.ob_size), 2);
            fake.put_u64(field(list, layout.list.ob_item), items);
            fake.put_u64(items + 8, 0x6000);
            let index = |object, index| follow(fake, layout, object, &[(op::INDEX, index, 0)]);
            assert_eq!(index(tuple, 1), Ok(0x5000));
            assert_eq!(index(list, 1), Ok(0x6000));
            for object in [tuple, list] {
                assert_eq!(index(object, 0), Err((0, Error::Null)));
                assert_eq!(index(object, 2), Err((0, Error::Null)));
                assert_eq!(index(object, u32::MAX), Err((0, Error::Null)));
            }
            assert_eq!(index(kind, 0), Err((0, Error::Null)));
        });
    }

    #[test]
    fn follows_pointers_of_objects_of_the_right_type() {
        for_each_layout(|layout, fake| {
            let kind = class(fake, layout, "slotted", 0, 0);
            let other = class(fake, layout, "other", 0, 0);
            let object = instance(fake, layout, kind);
            fake.put_u64(object + 48, 0x5000);
            let pointer = |kind| follow(fake, layout, object, &[(op::POINTER, 48, kind)]);
            assert_eq!(pointer(kind), Ok(0x5000));
            assert_eq!(pointer(0), Ok(0x5000));
            assert_eq!(pointer(other), Err((0, Error::WrongType)));
            let empty = follow(fake, layout, object, &[(op::POINTER, 56, kind)]);
            assert_eq!(empty, Err((0, Error::Null)));
        });
    }

    #[test]
    fn opens_cells_and_leaves_other_objects() {
        for_each_layout(|layout, fake| {
            let kind = class(fake, layout, "cell", 0, 0);
            let cell = instance(fake, layout, kind);
            fake.put_u64(field(cell, layout.cell.ob_ref), 0x5000);
            let number = fake.int(layout, 5);
            for by in [0, kind] {
                let open = |object| follow(fake, layout, object, &[(op::CELL, 0, by)]);
                assert_eq!(open(cell), Ok(0x5000));
                assert_eq!(open(number), Ok(number));
            }
            let empty = instance(fake, layout, kind);
            let found = follow(fake, layout, empty, &[(op::CELL, 0, kind)]);
            assert_eq!(found, Err((0, Error::Null)));
        });
    }

    #[test]
    fn tells_which_step_failed() {
        for_each_layout(|layout, fake| {
            let kind = class(fake, layout, "slotted", 0, 0);
            let object = instance(fake, layout, kind);
            fake.put_u64(object + 48, object);
            let on = (op::POINTER, 48, kind);
            let found = follow(fake, layout, object, &[on, on, (op::POINTER, 48, 1)]);
            assert_eq!(found, Err((2, Error::WrongType)));
            let found = follow(fake, layout, object, &[on, (99, 0, 0)]);
            assert_eq!(found, Err((1, Error::Malformed)));
            assert_eq!(follow(fake, layout, object, &[on; MAX_STEPS]), Ok(object));
        });
    }

    /// Counts the reads.
    struct Counting<'f>(&'f Fake, Cell<u32>);

    impl Memory for Counting<'_> {
        fn read(&self, address: u64, into: &mut [u8]) -> bool {
            self.1.set(self.1.get() + 1);
            self.0.read(address, into)
        }
    }

    #[test]
    fn recipes_that_begin_alike_read_what_they_share_once() {
        for_each_layout(|layout, fake| {
            let inner = fake.dict(layout, &[("path", 0x10), ("method", 0x20)]);
            let outer = fake.dict(layout, &[("route", inner), ("other", 0x30)]);
            let [route, other] = [0, 1].map(|index| key(fake, layout, outer, index));
            let [path, method] = [0, 1].map(|index| key(fake, layout, inner, index));
            let memory = Counting(fake, Cell::new(0));
            let mut scratch = Box::new(Scratch::new());
            let mut reads = |list: &[(u32, u32, u64)], expected| {
                let before = memory.1.get();
                let found = run(&memory, layout, &steps(list), outer, &mut scratch);
                assert_eq!(found, expected);
                memory.1.get() - before
            };
            let first = [(op::ITEM, 0, route), (op::ITEM, 0, path)];
            assert!(reads(&first, Ok(0x10)) > 0);
            assert_eq!(reads(&first, Ok(0x10)), 0);
            let second = [(op::ITEM, 0, route), (op::ITEM, 0, method)];
            assert_eq!(reads(&second, Ok(0x20)), 0);
            let absent = [(op::ITEM, 0, route), (op::ITEM, 0, 0x7777)];
            assert_eq!(reads(&absent, Err(Error::Null)), 0);
            let _few = reads(&[(op::ITEM, 0, other)], Ok(0x30));
            // The same key leads elsewhere from another object.
            assert_eq!(reads(&[(op::ITEM, 0, path)], Err(Error::Null)), 0);
        });
    }

    #[test]
    fn what_was_forgotten_is_read_again() {
        for_each_layout(|layout, fake| {
            let dict = fake.general_dict(layout, &[("path", 0x10)]);
            let path = [(op::ITEM, 0, key(fake, layout, dict, 0))];
            let mut scratch = Box::new(Scratch::new());
            let found = run(fake, layout, &steps(&path), dict, &mut scratch);
            assert_eq!(found, Ok(0x10));
            let other = fake.general_dict(layout, &[("path", 0x20)]);
            let keys = field(dict, layout.dict.ma_keys);
            let other_keys = fake.u64(field(other, layout.dict.ma_keys));
            fake.put_u64(keys, other_keys.expect("mapped"));
            let path = [(op::ITEM, 0, key(fake, layout, dict, 0))];
            scratch.forget();
            let found = run(fake, layout, &steps(&path), dict, &mut scratch);
            assert_eq!(found, Ok(0x20));
        });
    }

    #[test]
    fn garbage_never_panics() {
        for_each_layout(|layout, fake| {
            let (address, name) = with_values(fake, layout, &[("first", 1), ("second", 2)]);
            let dict = fake.dict(layout, &[("first", 1)]);
            let class = fake
                .u64(field(address, layout.object.ob_type))
                .expect("mapped");
            let keys = fake.u64(field(dict, layout.dict.ma_keys)).expect("mapped");
            for at in [address, class, dict, keys] {
                fake.each_corruption(at, |fake| {
                    for (object, op) in [(address, op::ATTRIBUTE), (dict, op::ITEM)] {
                        let _ = follow(fake, layout, object, &[(op, 0, name)]);
                    }
                });
            }
        });
    }
}
