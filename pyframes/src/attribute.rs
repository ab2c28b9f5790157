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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::{Fake, for_each_layout};

    /// An instance with the attributes `a` and `b` in each form that its
    /// version has.
    fn each_form(layout: &Layout, fake: &mut Fake, check: impl Fn(&mut Fake, u64)) {
        let at = &layout.type_object;
        let class = fake.heap_class(layout, "Plain", &[], &[]);
        let namespace = fake.dict(layout, &[("a", 11), ("b", 12)]);

        // A dictionary whose place the type tells.
        let instance = fake.instance(class, layout);
        fake.put_u64(field(class, at.tp_dictoffset), 48);
        fake.put_u64(instance + 48, namespace);
        check(fake, instance);

        // The same, counted from the end: three items of four bytes after 48.
        let instance = fake.instance(class, layout);
        fake.put_u64(field(class, at.tp_basicsize), 48);
        fake.put_u64(field(class, at.tp_itemsize), 4);
        fake.put_u64(field(class, at.tp_dictoffset), (-8_i64).cast_unsigned());
        fake.put_u64(field(instance, layout.object.ob_size), 3);
        fake.put_u64(instance + 48 + 16 - 8, namespace);
        check(fake, instance);
        if layout.object.ob_size == 16 && layout.long.lv_tag == ABSENT {
            // As a negative `int` has it.
            fake.put_u64(instance + 16, (-3_i64).cast_unsigned());
            check(fake, instance);
        }

        if layout.instance.managed_dict == ABSENT {
            return;
        }
        // A dictionary before the instance.
        let flags = flag::HEAPTYPE | MANAGED_DICT;
        fake.put_u64(field(class, at.tp_flags), flags);
        let instance = fake.instance(class, layout);
        let before = instance - u64::from(layout.instance.managed_dict);
        fake.put_u64(before, namespace);
        check(fake, instance);

        // Values whose names the type has.
        let split = fake.split_dict(layout, &[("a", 11), ("b", 12)]);
        let word = |fake: &Fake, at| fake.u64(at).expect("mapped");
        let keys = word(fake, field(split, layout.dict.ma_keys));
        let values = word(fake, field(split, layout.dict.ma_values));
        fake.put_u64(field(class, layout.heap_type.ht_cached_keys), keys);
        let instance = fake.instance(class, layout);
        let before = instance - u64::from(layout.instance.managed_dict);
        if layout.instance.values != ABSENT {
            fake.put_u64(instance - u64::from(layout.instance.values), values);
        } else if layout.instance.tagged != 0 {
            fake.put_u64(before, values - 1);
        } else {
            fake.put_u64(field(class, at.tp_flags), flags | INLINE_VALUES);
            fake.put_u64(field(class, at.tp_basicsize), 48);
            for offset in (0..40).step_by(8) {
                fake.put_u64(instance + 48 + offset, word(fake, values + offset));
            }
        }
        check(fake, instance);

        if layout.instance.inline_values != 0 {
            // No longer valid: the dictionary counts.
            fake.put_u8(field(instance + 48, layout.dict_values.valid), 0);
            fake.put_u64(before, namespace);
            check(fake, instance);
        }
    }

    #[test]
    fn finds_attributes_of_instances_in_every_form() {
        for_each_layout(|layout, fake| {
            each_form(layout, fake, |fake, instance| {
                assert_eq!(attribute(fake, layout, instance, "a"), Ok(Some(11)));
                assert_eq!(attribute(fake, layout, instance, "b"), Ok(Some(12)));
                assert_eq!(attribute(fake, layout, instance, "c"), Ok(None));
            });
        });
    }

    #[test]
    fn an_instance_without_attributes_has_none() {
        for_each_layout(|layout, fake| {
            let class = fake.heap_class(layout, "Plain", &[], &[]);
            for flags in [flag::HEAPTYPE, flag::HEAPTYPE | MANAGED_DICT] {
                fake.put_u64(field(class, layout.type_object.tp_flags), flags);
                let instance = fake.instance(class, layout);
                assert_eq!(instance_attribute(fake, layout, instance, "a"), Ok(None));
            }
        });
    }

    #[test]
    fn finds_attributes_of_classes_in_the_order_of_the_mro() {
        for_each_layout(|layout, fake| {
            let text = fake.string(layout, "text");
            let other = fake.string(layout, "other");
            let items = [("a", text), ("b", text)];
            let base = fake.heap_class(layout, "Base", &items, &[]);
            let class = fake.heap_class(layout, "Derived", &[("a", other)], &[base]);
            let instance = fake.instance(class, layout);
            for object in [instance, class] {
                assert_eq!(attribute(fake, layout, object, "a"), Ok(Some(other)));
                assert_eq!(attribute(fake, layout, object, "b"), Ok(Some(text)));
                assert_eq!(attribute(fake, layout, object, "c"), Ok(None));
            }
        });
    }

    #[test]
    fn reads_slots_through_their_descriptors() {
        for_each_layout(|layout, fake| {
            let member = fake.put(&[0; 40]);
            let descriptor_type = fake.class(layout, "member_descriptor", 0);
            let descriptor = fake.instance(descriptor_type, layout);
            let d_member = field(descriptor, layout.object.size) + D_MEMBER;
            fake.put_u64(d_member, member);
            let class = fake.heap_class(layout, "Slotted", &[("left", descriptor)], &[]);
            let instance = fake.instance(class, layout);
            fake.put_u64(instance + 48, 77);
            fake.put_u64(member + MEMBER_OFFSET, 48);
            for (kind, found) in [(T_OBJECT_EX, 77), (T_OBJECT, 77), (1, descriptor)] {
                fake.put_u64(member + MEMBER_TYPE, u64::from(kind));
                let attribute = attribute(fake, layout, instance, "left");
                assert_eq!(attribute, Ok(Some(found)));
            }
            fake.put_u64(member + MEMBER_TYPE, u64::from(T_OBJECT_EX));
            fake.put_u64(instance + 48, 0);
            assert_eq!(attribute(fake, layout, instance, "left"), Ok(None));
            let found = class_attribute(fake, layout, class, "left");
            assert_eq!(found, Ok(Some(descriptor)));
        });
    }

    #[test]
    fn names_types_with_their_module() {
        for_each_layout(|layout, fake| {
            let module = fake.string(layout, "shop.views");
            let builtins = fake.string(layout, "builtins");
            let class = |fake: &mut Fake, items: &[(&str, u64)]| {
                fake.heap_class(layout, "Outer.Inner", items, &[])
            };
            let odd = class(fake, &[]);
            for (address, expected) in [
                (
                    class(fake, &[("__module__", module)]),
                    "shop.views.Outer.Inner",
                ),
                (class(fake, &[("__module__", builtins)]), "Outer.Inner"),
                (class(fake, &[("__module__", odd)]), "Outer.Inner"),
                (class(fake, &[]), "Outer.Inner"),
                (
                    fake.class(layout, "datetime.datetime", 0),
                    "datetime.datetime",
                ),
            ] {
                let mut buffer = [0; 64];
                let name = qualified_type_name(fake, layout, address, &mut buffer);
                assert_eq!(name.map(|name| name.text), Ok(expected));
                let mut buffer = [0; 5];
                let name = qualified_type_name(fake, layout, address, &mut buffer);
                let cut = name.map(|name| (name.text, name.truncated));
                assert_eq!(cut, Ok((&expected[..5], true)));
            }
            let name = qualified_type_name(fake, layout, module, &mut []);
            assert_eq!(name, Err(Error::WrongType));
        });
    }

    #[test]
    fn garbage_never_panics() {
        for_each_layout(|layout, fake| {
            each_form(layout, fake, |fake, instance| {
                let class = object::type_of(fake, layout, instance).expect("a type");
                for address in [instance, class, class + 512] {
                    fake.each_corruption(address, |fake| {
                        let _ = attribute(fake, layout, instance, "b");
                        let _ = qualified_type_name(fake, layout, class, &mut [0; 64]);
                    });
                }
            });
        });
    }
}
