//! Reads code objects: what a function is called, where it was written, and
//! which variable lives in which slot of its frames.
//!
//! What its instructions say of lines is [`crate::line`]'s.

use crate::layout::{ABSENT, Layout};
use crate::object;
use crate::sequence::{Bytes, Sequence};
use crate::text::{c_string_equals, str_equals};
use crate::{Error, Memory, field, frame, u64_in};

/// Bits of [`Code::flags`] (`CO_*` of CPython's `code.h`, all versions).
pub mod flag {
    /// The code has fast locals: it is a function's.
    pub const NEWLOCALS: u32 = 0x2;
    /// The code takes `*args`.
    pub const VARARGS: u32 = 0x4;
    /// The code takes `**kwargs`.
    pub const VARKEYWORDS: u32 = 0x8;
    /// The code is a generator's.
    pub const GENERATOR: u32 = 0x20;
    /// The code is a coroutine's (`async def`).
    pub const COROUTINE: u32 = 0x80;
    /// The code is an asynchronous generator's.
    pub const ASYNC_GENERATOR: u32 = 0x200;
}

/// A code object that was read; addresses are those of objects in the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Code {
    /// The code object itself.
    pub address: u64,
    /// `co_flags`, see [`flag`].
    pub flags: u32,
    /// `co_firstlineno`: the line of `def`, or of its first decorator.
    pub firstlineno: u32,
    /// `co_argcount`: positional parameters, positional-only ones included.
    pub argcount: u32,
    /// `co_posonlyargcount`.
    pub posonlyargcount: u32,
    /// `co_kwonlyargcount`.
    pub kwonlyargcount: u32,
    /// `co_nlocals`: local variables, parameters included.
    pub nlocals: u32,
    /// `co_filename`, a `str`.
    pub filename: u64,
    /// `co_name`, a `str`.
    pub name: u64,
    /// `co_qualname`, a `str`; since 3.11.
    pub qualname: Option<u64>,
    /// `co_consts`, a tuple.
    pub consts: u64,
    /// `co_names`, a tuple.
    pub names: u64,
    /// `co_linetable`, a `bytes`; up to 3.9 `co_lnotab`.
    pub linetable: u64,
    slots: Slots,
}

/// Where the names of the variables are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Slots {
    /// Up to 3.10: `co_varnames`, `co_cellvars` and `co_freevars`.
    Apart([u64; 3]),
    /// Since 3.11: `co_localsplusnames` and `co_localspluskinds`.
    Together { names: u64, kinds: u64 },
}

/// How a variable is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Its slot holds the value.
    Local,
    /// Its slot holds a cell that inner functions share. In the first
    /// instructions of a function it may still hold the value of a parameter.
    Cell,
    /// Its slot holds a cell of an outer function.
    Free,
}

/// A variable of a function and its slot in the frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Variable {
    /// Index into the frame's `localsplus`.
    pub slot: u32,
    /// Its name, a `str`.
    pub name: u64,
    /// How it is kept.
    pub kind: Kind,
    /// Whether it is a comprehension's own, inlined into a class body or a
    /// module (`CO_FAST_HIDDEN`, since 3.12).
    pub hidden: bool,
}

/// Whether the object at `address` is a code object.
pub fn is_code<M: Memory>(memory: &M, layout: &Layout, address: u64) -> Result<bool, Error> {
    is_named(memory, layout, address, "code")
}

/// Whether the object at `address` is a cell.
pub fn is_cell<M: Memory>(memory: &M, layout: &Layout, address: u64) -> Result<bool, Error> {
    is_named(memory, layout, address, "cell")
}

/// Whether the object at `address` is of the interpreter's type called `name`.
fn is_named<M: Memory>(
    memory: &M,
    layout: &Layout,
    address: u64,
    name: &str,
) -> Result<bool, Error> {
    let type_address = object::type_of(memory, layout, address)?;
    if !object::is_static(memory, layout, type_address)? {
        return Ok(false);
    }
    let tp_name = memory.pointer(field(type_address, layout.type_object.tp_name))?;
    c_string_equals(memory, tp_name, name)
}

impl Code {
    /// Reads the code object at `address`.
    pub fn read<M: Memory>(memory: &M, layout: &Layout, address: u64) -> Result<Self, Error> {
        if !is_code(memory, layout, address)? {
            return Err(Error::WrongType);
        }
        let at = &layout.code;
        // Of the fields that are read, `co_linetable` lies last in every
        // version: one read for all.
        let mut head = [0; MAX_HEAD];
        let head = head
            .get_mut(..at.co_linetable as usize + 8)
            .ok_or(Error::Malformed)?;
        if !memory.read(address, head) {
            return Err(Error::Unreadable);
        }
        let pointer = |offset: u32| match u64_in(head, offset as usize) {
            None => Err(Error::Malformed),
            Some(0) => Err(Error::Null),
            Some(pointer) => Ok(pointer),
        };
        let count = |offset: u32| {
            let start = offset as usize;
            let bytes = head.get(start..).and_then(<[u8]>::first_chunk::<4>);
            let number = i32::from_le_bytes(*bytes.ok_or(Error::Malformed)?);
            u32::try_from(number).map_err(|_| Error::Malformed)
        };
        let slots = if at.co_localsplusnames == ABSENT {
            Slots::Apart([
                pointer(at.co_varnames)?,
                pointer(at.co_cellvars)?,
                pointer(at.co_freevars)?,
            ])
        } else {
            Slots::Together {
                names: pointer(at.co_localsplusnames)?,
                kinds: pointer(at.co_localspluskinds)?,
            }
        };
        let qualname = match at.co_qualname {
            ABSENT => None,
            offset => Some(pointer(offset)?),
        };
        Ok(Self {
            address,
            flags: count(at.co_flags)?,
            firstlineno: count(at.co_firstlineno)?,
            argcount: count(at.co_argcount)?,
            posonlyargcount: count(at.co_posonlyargcount)?,
            kwonlyargcount: count(at.co_kwonlyargcount)?,
            nlocals: count(at.co_nlocals)?,
            filename: pointer(at.co_filename)?,
            name: pointer(at.co_name)?,
            qualname,
            consts: pointer(at.co_consts)?,
            names: pointer(at.co_names)?,
            linetable: pointer(at.co_linetable)?,
            slots,
        })
    }

    /// The variables in the order of their slots.
    ///
    /// Up to 3.10 a parameter that inner functions share is listed twice: with
    /// the slot of its argument, which is empty, and with that of its cell.
    pub fn variables<'m, M: Memory>(
        &self,
        memory: &'m M,
        layout: &'m Layout,
    ) -> Result<Variables<'m, M>, Error> {
        let tuple = |address| Sequence::open(memory, layout, address);
        let (names, kinds) = match self.slots {
            Slots::Apart([varnames, cellvars, freevars]) => (
                [
                    (tuple(varnames)?, Kind::Local),
                    (tuple(cellvars)?, Kind::Cell),
                    (tuple(freevars)?, Kind::Free),
                ],
                None,
            ),
            Slots::Together { names, kinds } => {
                let names = tuple(names)?;
                let kinds = Bytes::open(memory, layout, kinds)?;
                if kinds.len != names.len {
                    return Err(Error::Malformed);
                }
                let none = (Sequence::EMPTY, Kind::Local);
                ([(names, Kind::Local), none, none], Some(kinds.data))
            }
        };
        let n_slots: u64 = names.iter().map(|(names, _)| names.len).sum();
        if n_slots > MAX_VARIABLES {
            return Err(Error::TooLong);
        }
        Ok(Variables {
            memory,
            names,
            part: 0,
            idx: 0,
            slot: 0,
            kinds,
        })
    }

    /// The variable called `name`; where a name has two slots (see
    /// [`Code::variables`]) the cell.
    pub fn variable<M: Memory>(
        &self,
        memory: &M,
        layout: &Layout,
        name: &str,
    ) -> Result<Option<Variable>, Error> {
        let mut found = None;
        for variable in self.variables(memory, layout)? {
            let variable = variable?;
            if str_equals(memory, layout, variable.name, name)? {
                found = Some(variable);
            }
        }
        Ok(found)
    }
}

impl Variable {
    /// The object that the variable is bound to in the frame at `frame` (as
    /// [`frame::Frame::address`] has it), or `None` if it is not bound.
    pub fn value<M: Memory>(
        &self,
        memory: &M,
        layout: &Layout,
        frame: u64,
    ) -> Result<Option<u64>, Error> {
        let value = frame::local(memory, layout, frame, self.slot)?;
        match value {
            Some(cell) if self.kind != Kind::Local && is_cell(memory, layout, cell)? => {
                let content = memory.u64(field(cell, layout.cell.ob_ref))?;
                Ok((content != 0).then_some(content))
            }
            _ => Ok(value),
        }
    }
}

/// The variables of a code object; ends after an error.
#[derive(Debug)]
pub struct Variables<'m, M> {
    memory: &'m M,
    /// Names with the kind that theirs are, unless `kinds` tells.
    names: [(Sequence, Kind); 3],
    part: usize,
    idx: u64,
    slot: u32,
    /// Address of one byte for each slot.
    kinds: Option<u64>,
}

impl<M: Memory> Variables<'_, M> {
    fn read(&mut self) -> Result<Option<Variable>, Error> {
        let (names, mut kind) = loop {
            match self.names.get(self.part) {
                None => return Ok(None),
                Some((names, kind)) if self.idx < names.len => break (*names, *kind),
                Some(_) => (self.part, self.idx) = (self.part + 1, 0),
            }
        };
        let (idx, slot) = (self.idx, self.slot);
        (self.idx, self.slot) = (idx + 1, slot + 1);
        let name = names.get(self.memory, idx)?;
        let mut hidden = false;
        if let Some(kinds) = self.kinds {
            let bits = self.memory.u8(kinds.wrapping_add(idx))?;
            hidden = bits & CO_FAST_HIDDEN != 0;
            kind = if bits & CO_FAST_FREE != 0 {
                Kind::Free
            } else if bits & CO_FAST_CELL != 0 {
                Kind::Cell
            } else {
                Kind::Local
            };
        }
        Ok(Some(Variable {
            slot,
            name,
            kind,
            hidden,
        }))
    }
}

impl<M: Memory> Iterator for Variables<'_, M> {
    type Item = Result<Variable, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        let read = self.read();
        if read.is_err() {
            self.part = self.names.len();
        }
        read.transpose()
    }
}

/// Bits of `co_localspluskinds` (CPython's `pycore_code.h`, 3.11 to 3.14; a
/// parameter that is shared is both local and cell).
const CO_FAST_HIDDEN: u8 = 0x10;
const CO_FAST_CELL: u8 = 0x40;
const CO_FAST_FREE: u8 = 0x80;

/// More variables than a function of people's or a generator's making has;
/// a frame of more would not fit into a chunk of the data stack.
const MAX_VARIABLES: u64 = 1 << 12;

/// At least `co_linetable` and eight bytes of every layout.
const MAX_HEAD: usize = 192;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::for_each_layout;
    use crate::fake::objects::CodeParts;
    use std::vec::Vec;

    const PARTS: CodeParts<'_> = CodeParts {
        variables: [&["self", "item"], &["shared"], &["outer"]],
        ..CodeParts::EMPTY
    };

    #[test]
    fn lists_variables_with_slot_and_kind() {
        for_each_layout(|layout, fake| {
            let address = fake.code(layout, PARTS);
            let code = Code::read(fake, layout, address).expect("reads");
            assert_eq!((code.address, code.firstlineno), (address, 10));
            assert_eq!(code.qualname.is_some(), layout.code.co_qualname != ABSENT);
            let expected = [
                ("self", Kind::Local),
                ("item", Kind::Local),
                ("shared", Kind::Cell),
                ("outer", Kind::Free),
            ];
            let variables = code.variables(fake, layout).expect("opens");
            assert_eq!(variables.count(), expected.len());
            for (slot, (name, kind)) in (0..).zip(expected) {
                let found = code.variable(fake, layout, name);
                let found = found.map(|found| found.map(|it| (it.slot, it.kind)));
                assert_eq!(found, Ok(Some((slot, kind))));
            }
            assert_eq!(code.variable(fake, layout, "missing"), Ok(None));
        });
    }

    #[test]
    fn a_shared_parameter_is_found_in_its_cell() {
        for_each_layout(|layout, fake| {
            if layout.code.co_localsplusnames != ABSENT {
                return;
            }
            let variables: [&[&str]; 3] = [&["a", "b"], &["a"], &[]];
            let parts = CodeParts { variables, ..PARTS };
            let address = fake.code(layout, parts);
            let code = Code::read(fake, layout, address).expect("reads");
            let found = code
                .variable(fake, layout, "a")
                .expect("reads")
                .expect("is there");
            assert_eq!((found.slot, found.kind), (2, Kind::Cell));
        });
    }

    #[test]
    fn looks_into_cells_and_tells_what_is_not_bound() {
        for_each_layout(|layout, fake| {
            let address = fake.code(layout, PARTS);
            let (_, frame) = fake.frame_object(layout, address);
            let slots = field(frame, layout.frame.localsplus);
            let value = fake.string(layout, "value");
            let (full, empty) = (fake.cell(layout, value), fake.cell(layout, 0));
            fake.put_u64(slots, full);
            fake.put_u64(slots + 16, full);
            fake.put_u64(slots + 24, empty);
            let code = Code::read(fake, layout, address).expect("reads");
            let values = |fake: &crate::fake::Fake| -> Vec<_> {
                let variables = code.variables(fake, layout).expect("opens");
                variables
                    .map(|it| it.and_then(|it| it.value(fake, layout, frame)))
                    .collect()
            };
            // A local variable may be bound to a cell as to anything else.
            let expected = [Ok(Some(full)), Ok(None), Ok(Some(value)), Ok(None)];
            assert_eq!(values(fake), expected);
            // A parameter that has not been put into its cell yet.
            fake.put_u64(slots + 16, value);
            assert_eq!(values(fake), expected);
        });
    }

    #[test]
    fn refuses_what_is_no_code_object() {
        for_each_layout(|layout, fake| {
            let text = fake.string(layout, "text");
            assert_eq!(Code::read(fake, layout, text), Err(Error::WrongType));
            let class = fake.heap_class(layout, "code", &[], &[]);
            let instance = fake.instance(class, layout);
            assert_eq!(Code::read(fake, layout, instance), Err(Error::WrongType));
            assert_eq!(is_code(fake, layout, 8), Err(Error::Unreadable));
        });
    }

    #[test]
    fn refuses_names_and_kinds_that_differ_in_number() {
        for_each_layout(|layout, fake| {
            if layout.code.co_localsplusnames == ABSENT {
                return;
            }
            let address = fake.code(layout, PARTS);
            let kinds = fake.bytes(layout, &[0x20; 3]);
            fake.put_u64(field(address, layout.code.co_localspluskinds), kinds);
            let code = Code::read(fake, layout, address).expect("reads");
            let variables = code.variables(fake, layout);
            assert_eq!(variables.map(drop), Err(Error::Malformed));
        });
    }

    #[test]
    fn garbage_never_panics() {
        for_each_layout(|layout, fake| {
            let address = fake.code(layout, PARTS);
            fake.each_corruption(address + 256, |fake| {
                if let Ok(code) = Code::read(fake, layout, address) {
                    let _ = code.variable(fake, layout, "outer");
                }
            });
        });
    }
}
