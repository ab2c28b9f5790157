//! Finds attributes of objects as Python's `obj.name` does, without running
//! anything.
//!
//! An instance keeps its attributes in one of several forms, by version: in a
//! dictionary that `tp_dictoffset` leads to, in one that a word before the
//! object leads to, or in an array of values whose names its type knows. What
//! the instance does not have may be in a `__slots__` field or in the
//! namespaces of its classes.

use core::fmt::Write as _;

use crate::dict::Dict;
use crate::layout::{ABSENT, Layout};
use crate::object::{self, flag};
use crate::sequence::Sequence;
use crate::text::{self, Text};
use crate::{Error, Memory, field};

/// What `object.name` is: an attribute of the instance itself, the content of
/// a `__slots__` field, or an attribute of its class.
///
/// Descriptors are not called: of a method this is the function, of a property
/// the property. `None` if there is no such attribute (or `__getattr__` makes
/// it up).
pub fn attribute<M: Memory>(
    memory: &M,
    layout: &Layout,
    object: u64,
    name: &str,
) -> Result<Option<u64>, Error> {
    if let Some(value) = instance_attribute(memory, layout, object, name)? {
        return Ok(Some(value));
    }
    let class = object::type_of(memory, layout, object)?;
    if has_flag(memory, layout, class, flag::TYPE_SUBCLASS)? {
        // An attribute of a class may be inherited from its bases.
        if let Some(value) = class_attribute(memory, layout, object, name)? {
            return Ok(Some(value));
        }
    }
    match class_attribute(memory, layout, class, name)? {
        Some(value) => match slot(memory, layout, value)? {
            Some(offset) => non_null(memory.u64(object.wrapping_add(offset))?),
            None => Ok(Some(value)),
        },
        None => Ok(None),
    }
}

/// The attribute `name` that the object itself has, not its class.
pub fn instance_attribute<M: Memory>(
    memory: &M,
    layout: &Layout,
    object: u64,
    name: &str,
) -> Result<Option<u64>, Error> {
    match instance_dict(memory, layout, object)? {
        Some(namespace) => namespace.get(memory, layout, name),
        None => Ok(None),
    }
}

/// What the object keeps its own attributes in, if it has (or could have) any.
///
/// The names in an array of values are those of the type's shared keys, so the
/// dictionary need not exist as an object.
pub fn instance_dict<M: Memory>(
    memory: &M,
    layout: &Layout,
    object: u64,
) -> Result<Option<Dict>, Error> {
    let at = &layout.type_object;
    let class = object::type_of(memory, layout, object)?;
    let flags = memory.u64(field(class, at.tp_flags))?;
    if layout.instance.managed_dict != ABSENT && flags & MANAGED_DICT != 0 {
        return managed_dict(memory, layout, object, class, flags);
    }
    let offset = memory.u64(field(class, at.tp_dictoffset))?.cast_signed();
    let pointer = match offset {
        0 => return Ok(None),
        1.. => object.wrapping_add(offset.cast_unsigned()),
        // Counted from the end of an object of variable length.
        _ => {
            let end = end_of(memory, layout, object, class, flags)?;
            object
                .wrapping_add(end)
                .wrapping_add(offset.cast_unsigned())
        }
    };
    match memory.u64(pointer)? {
        0 => Ok(None),
        namespace => Dict::open(memory, layout, namespace).map(Some),
    }
}

/// The attribute `name` of the class at `class` or of the first of its bases
/// that has it, as it stands in their namespaces.
///
/// The namespaces of types that are made in C are not found from 3.12 on,
/// where each interpreter has its own.
pub fn class_attribute<M: Memory>(
    memory: &M,
    layout: &Layout,
    class: u64,
    name: &str,
) -> Result<Option<u64>, Error> {
    let mro = memory.u64(field(class, layout.type_object.tp_mro))?;
    if mro == 0 {
        return own_attribute(memory, layout, class, name);
    }
    let mro = Sequence::open(memory, layout, mro)?;
    if mro.len > MAX_CLASSES {
        return Err(Error::TooLong);
    }
    for base in mro.items(memory) {
        if let Some(value) = own_attribute(memory, layout, base?, name)? {
            return Ok(Some(value));
        }
    }
    Ok(None)
}

/// The name of the type at `address` as messages have it: module and qualified
/// name, `builtins` left out.
pub fn qualified_type_name<'b, M: Memory>(
    memory: &M,
    layout: &Layout,
    address: u64,
    buffer: &'b mut [u8],
) -> Result<Text<'b>, Error> {
    object::check_instance(memory, layout, address, flag::TYPE_SUBCLASS)?;
    if !has_flag(memory, layout, address, flag::HEAPTYPE)? {
        return object::type_name(memory, layout, address, buffer);
    }
    let mut name = text::Cut::new(buffer);
    let mut part = [0; MAX_NAME];
    // A class need not have a module, nor a module that is a `str`.
    if let Some(module) = own_attribute(memory, layout, address, "__module__")?
        && let Ok(module) = text::read_str(memory, layout, module, &mut part)
        && module.text != "builtins"
    {
        let _ = write!(name, "{}.", module.text);
    }
    let qualname = memory.pointer(field(address, layout.heap_type.ht_qualname))?;
    let qualname = text::read_str(memory, layout, qualname, &mut part)?;
    let _ = name.write_str(qualname.text);
    let cut = qualname.truncated;
    let mut name = name.finish()?;
    name.truncated |= cut;
    Ok(name)
}

/// `__qualname__` of the function at `address`, a `str`, or `None` if the
/// object is no function.
pub fn function_qualname<M: Memory>(
    memory: &M,
    layout: &Layout,
    address: u64,
) -> Result<Option<u64>, Error> {
    let class = object::type_of(memory, layout, address)?;
    let name = memory.pointer(field(class, layout.type_object.tp_name))?;
    if !text::c_string_equals(memory, name, "function")? {
        return Ok(None);
    }
    let qualname = field(address, layout.function.func_qualname);
    memory.pointer(qualname).map(Some)
}

/// The form that 3.11 introduced, by version: see
/// [`crate::layout::Instance`].
fn managed_dict<M: Memory>(
    memory: &M,
    layout: &Layout,
    object: u64,
    class: u64,
    flags: u64,
) -> Result<Option<Dict>, Error> {
    let at = &layout.instance;
    if at.values != ABSENT {
        let values = memory.u64(object.wrapping_sub(u64::from(at.values)))?;
        if values != 0 {
            return shared_keys(memory, layout, class, values).map(Some);
        }
    }
    if at.inline_values != 0 && flags & INLINE_VALUES != 0 {
        let size = memory.u64(field(class, layout.type_object.tp_basicsize))?;
        let values = object.wrapping_add(size);
        if memory.u8(field(values, layout.dict_values.valid))? != 0 {
            return shared_keys(memory, layout, class, values).map(Some);
        }
    }
    match memory.u64(object.wrapping_sub(u64::from(at.managed_dict)))? {
        0 => Ok(None),
        values if at.tagged != 0 && values & 1 != 0 => {
            shared_keys(memory, layout, class, values.wrapping_add(1)).map(Some)
        }
        namespace => Dict::open(memory, layout, namespace).map(Some),
    }
}

/// The attributes whose values are the `PyDictValues` at `values`.
fn shared_keys<M: Memory>(
    memory: &M,
    layout: &Layout,
    class: u64,
    values: u64,
) -> Result<Dict, Error> {
    let keys = memory.pointer(field(class, layout.heap_type.ht_cached_keys))?;
    Dict::of_keys(memory, layout, keys, Some(values))
}

/// Bytes from the object to the end of its items, a multiple of eight
/// (`_PyObject_VAR_SIZE`).
fn end_of<M: Memory>(
    memory: &M,
    layout: &Layout,
    object: u64,
    class: u64,
    flags: u64,
) -> Result<u64, Error> {
    let at = &layout.type_object;
    let n_items = if flags & flag::LONG_SUBCLASS != 0 {
        object::n_digits(memory, layout, object)?.0
    } else {
        let size = memory.u64(field(object, layout.object.ob_size))?;
        size.cast_signed().unsigned_abs()
    };
    let items = memory
        .u64(field(class, at.tp_itemsize))?
        .checked_mul(n_items);
    let basic = memory.u64(field(class, at.tp_basicsize))?;
    items
        .and_then(|items| items.checked_add(basic))
        .and_then(|end| end.checked_next_multiple_of(8))
        .ok_or(Error::TooLong)
}

/// The attribute `name` in the class's own namespace.
fn own_attribute<M: Memory>(
    memory: &M,
    layout: &Layout,
    class: u64,
    name: &str,
) -> Result<Option<u64>, Error> {
    match memory.u64(field(class, layout.type_object.tp_dict))? {
        0 => Ok(None),
        namespace => Dict::open(memory, layout, namespace)?.get(memory, layout, name),
    }
}

/// If the object is the descriptor of a field that holds a reference: how many
/// bytes into an instance the field is.
fn slot<M: Memory>(memory: &M, layout: &Layout, object: u64) -> Result<Option<u64>, Error> {
    let class = object::type_of(memory, layout, object)?;
    let name = memory.pointer(field(class, layout.type_object.tp_name))?;
    if !text::c_string_equals(memory, name, "member_descriptor")? {
        return Ok(None);
    }
    let member = memory.pointer(field(object, layout.object.size).wrapping_add(D_MEMBER))?;
    match memory.u32(member.wrapping_add(MEMBER_TYPE))? {
        T_OBJECT | T_OBJECT_EX => memory.u64(member.wrapping_add(MEMBER_OFFSET)).map(Some),
        _ => Ok(None),
    }
}

fn has_flag<M: Memory>(memory: &M, layout: &Layout, class: u64, flag: u64) -> Result<bool, Error> {
    let flags = memory.u64(field(class, layout.type_object.tp_flags))?;
    Ok(flags & flag != 0)
}

fn non_null(address: u64) -> Result<Option<u64>, Error> {
    Ok((address != 0).then_some(address))
}

/// `Py_TPFLAGS_INLINE_VALUES`, since 3.13.
const INLINE_VALUES: u64 = 1 << 2;
/// `Py_TPFLAGS_MANAGED_DICT`, since 3.11.
const MANAGED_DICT: u64 = 1 << 4;

/// Bytes from the end of a `PyMemberDescrObject`'s header to `d_member`: past
/// `d_type`, `d_name` and `d_qualname`.
const D_MEMBER: u64 = 24;
/// Offsets of `type` and `offset` in `PyMemberDef`.
const MEMBER_TYPE: u64 = 8;
const MEMBER_OFFSET: u64 = 16;
/// Values of `PyMemberDef.type` of fields that hold a reference.
const T_OBJECT: u32 = 6;
const T_OBJECT_EX: u32 = 16;

/// More classes than one derives from.
const MAX_CLASSES: u64 = 256;

/// Bytes of a module's or class's name that are read.
const MAX_NAME: usize = 256;
