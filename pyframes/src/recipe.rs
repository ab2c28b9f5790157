//! Recipes: small programs that lead from a frame to a value of interest.
//!
//! The agent compiles them, once per process and code object; the kernel side
//! runs them when a walk meets the code object. A step compares addresses of
//! interned strings and never their text, so that it is cheap and needs no
//! hash.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::keyed::{self, Table};
use crate::layout::Layout;
use crate::object::flag;
use crate::{Error, Memory, WORDS, field};

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

/// What a run works with: memory that the caller lends, so that the kernel
/// can keep it in a map.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout)]
pub struct Scratch {
    /// The object that was reached.
    object: u64,
    /// How many steps were done.
    done: u64,
    /// The table that is looked into.
    pub(crate) table: Table,
    /// Memory as it was read.
    pub(crate) words: [u64; WORDS],
}

impl Scratch {
    /// Memory for any number of runs, one after the other.
    pub const fn new() -> Self {
        Self {
            object: 0,
            done: 0,
            table: Table::NONE,
            words: [0; WORDS],
        }
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
    scratch.object = start;
    scratch.done = 0;
    for step in steps {
        if step.op == op::END {
            break;
        }
        take(memory, layout, step, scratch)?;
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
            if step.op == op::ATTRIBUTE {
                keyed::open_attributes(memory, layout, object, scratch)?;
            } else {
                keyed::open_dict(memory, layout, object, scratch)?;
            }
            scratch.object = keyed::find(memory, step.key, scratch)?;
            Ok(())
        }
        op::INDEX => {
            scratch.object = item(memory, layout, object, step.operand)?;
            Ok(())
        }
        op::POINTER => {
            if step.key != 0 && type_of(memory, layout, object)? != step.key {
                return Err(Error::WrongType);
            }
            scratch.object = memory.pointer(field(object, step.operand))?;
            Ok(())
        }
        op::CELL => {
            if is_cell(memory, layout, object, step.key)? {
                scratch.object = memory.pointer(field(object, layout.cell.ob_ref))?;
            }
            Ok(())
        }
        _ => Err(Error::Malformed),
    }
}

#[inline(always)]
fn type_of<M: Memory>(memory: &M, layout: &Layout, object: u64) -> Result<u64, Error> {
    memory.pointer(field(object, layout.object.ob_type))
}

/// Item number `index` of a tuple or list.
#[inline(always)]
fn item<M: Memory>(memory: &M, layout: &Layout, object: u64, index: u32) -> Result<u64, Error> {
    let type_address = type_of(memory, layout, object)?;
    let flags = memory.u64(field(type_address, layout.type_object.tp_flags))?;
    if flags & (flag::TUPLE_SUBCLASS | flag::LIST_SUBCLASS) == 0 {
        return Err(Error::WrongType);
    }
    if u64::from(index) >= memory.u64(field(object, layout.object.ob_size))? {
        return Err(Error::Null);
    }
    let items = if flags & flag::TUPLE_SUBCLASS != 0 {
        field(object, layout.tuple.ob_item)
    } else {
        memory.pointer(field(object, layout.list.ob_item))?
    };
    memory.pointer(items.wrapping_add(u64::from(index) * 8))
}

/// Whether the object is a cell: of the type at `cells`, or of one called so.
#[inline(always)]
fn is_cell<M: Memory>(memory: &M, layout: &Layout, object: u64, cells: u64) -> Result<bool, Error> {
    let type_address = type_of(memory, layout, object)?;
    if cells != 0 {
        return Ok(type_address == cells);
    }
    let name = memory.pointer(field(type_address, layout.type_object.tp_name))?;
    Ok(memory.bytes(name)? == *b"cell\0")
}
