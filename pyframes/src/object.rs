//! Reads objects: types, integers, modules, and the C functions behind the
//! methods of a type.

use crate::dict::Dict;
use crate::layout::{ABSENT, Layout};
use crate::text::{self, Text};
use crate::{Error, Memory, field};

/// Bits of `tp_flags` that tell what an instance is (`Py_TPFLAGS_*`).
pub mod flag {
    /// The type was made when the process ran, as by `class`.
    pub const HEAPTYPE: u64 = 1 << 9;
    /// Instances are `int`s.
    pub const LONG_SUBCLASS: u64 = 1 << 24;
    /// Instances are `list`s.
    pub const LIST_SUBCLASS: u64 = 1 << 25;
    /// Instances are `tuple`s.
    pub const TUPLE_SUBCLASS: u64 = 1 << 26;
    /// Instances are `bytes`.
    pub const BYTES_SUBCLASS: u64 = 1 << 27;
    /// Instances are `str`s.
    pub const UNICODE_SUBCLASS: u64 = 1 << 28;
    /// Instances are `dict`s.
    pub const DICT_SUBCLASS: u64 = 1 << 29;
    /// Instances are exceptions.
    pub const EXCEPTION_SUBCLASS: u64 = 1 << 30;
    /// Instances are types.
    pub const TYPE_SUBCLASS: u64 = 1 << 31;
}

/// The type of the object at `address`.
pub fn type_of<M: Memory>(memory: &M, layout: &Layout, address: u64) -> Result<u64, Error> {
    memory.pointer(field(address, layout.object.ob_type))
}

/// Checks that the object at `address` is an instance as `flag` says.
pub fn check_instance<M: Memory>(
    memory: &M,
    layout: &Layout,
    address: u64,
    flag: u64,
) -> Result<(), Error> {
    check_flag(memory, layout, type_of(memory, layout, address)?, flag)
}

/// `tp_name` of the type at `address`.
pub fn type_name<'b, M: Memory>(
    memory: &M,
    layout: &Layout,
    address: u64,
    buffer: &'b mut [u8],
) -> Result<Text<'b>, Error> {
    let name = memory.pointer(field(address, layout.type_object.tp_name))?;
    text::read_c_string(memory, name, buffer)
}

/// The value of the `int` at `address`; one of more than 60 bits is too long.
pub fn read_int<M: Memory>(memory: &M, layout: &Layout, address: u64) -> Result<i64, Error> {
    check_instance(memory, layout, address, flag::LONG_SUBCLASS)?;
    let (n_digits, negative) = n_digits(memory, layout, address)?;
    if n_digits > 2 {
        return Err(Error::TooLong);
    }
    let mut value = 0;
    for digit_idx in (0..n_digits).rev() {
        let digit = memory.u32(field(address, layout.long.ob_digit).wrapping_add(digit_idx * 4))?;
        value = value << DIGIT_BITS | i64::from(digit & DIGIT_MASK);
    }
    Ok(if negative { -value } else { value })
}

/// How many digits the `int` at `address` has, and whether it is negative.
pub(crate) fn n_digits<M: Memory>(
    memory: &M,
    layout: &Layout,
    address: u64,
) -> Result<(u64, bool), Error> {
    if layout.long.lv_tag != ABSENT {
        let tag = memory.u64(field(address, layout.long.lv_tag))?;
        // The low two bits are the sign: 0 positive, 1 zero, 2 negative.
        return Ok((tag >> 3, tag & 3 == 2));
    }
    let size = memory
        .u64(field(address, layout.object.ob_size))?
        .cast_signed();
    Ok((size.unsigned_abs(), size < 0))
}

/// The namespace of the module at `address`.
pub fn module_dict<M: Memory>(memory: &M, layout: &Layout, address: u64) -> Result<Dict, Error> {
    let type_address = type_of(memory, layout, address)?;
    if !derives_from(memory, layout, type_address, "module")? {
        return Err(Error::WrongType);
    }
    let namespace = memory.pointer(field(address, layout.module.md_dict))?;
    Dict::open(memory, layout, namespace)
}

/// The attribute `name` of the module at `address`, or `None` if its
/// namespace has no such name.
pub fn module_attribute<M: Memory>(
    memory: &M,
    layout: &Layout,
    address: u64,
    name: &str,
) -> Result<Option<u64>, Error> {
    module_dict(memory, layout, address)?.get(memory, layout, name)
}

/// Address of the C function behind the method `name` that the type at
/// `address` itself defines in C, or `None` if it defines no such method.
///
/// Looks into `tp_methods`, where C puts methods, then into the type's
/// namespace, where Cython puts them.
pub fn method<M: Memory>(
    memory: &M,
    layout: &Layout,
    address: u64,
    name: &str,
) -> Result<Option<u64>, Error> {
    check_instance(memory, layout, address, flag::TYPE_SUBCLASS)?;
    if let Some(definition) = defined_method(memory, layout, address, name)? {
        return memory.pointer(definition.wrapping_add(ML_METH)).map(Some);
    }
    let namespace = memory.u64(field(address, layout.type_object.tp_dict))?;
    if namespace == 0 {
        return Ok(None);
    }
    match Dict::open(memory, layout, namespace)?.get(memory, layout, name)? {
        Some(function) => function_address(memory, layout, function),
        None => Ok(None),
    }
}

/// Address of the C function that a call of the type at `address` makes an
/// instance with, or `None` if the type has none.
pub fn constructor<M: Memory>(
    memory: &M,
    layout: &Layout,
    address: u64,
) -> Result<Option<u64>, Error> {
    check_instance(memory, layout, address, flag::TYPE_SUBCLASS)?;
    let function = memory.u64(field(address, layout.type_object.tp_new))?;
    Ok((function != 0).then_some(function))
}

/// Addresses of the C functions that initialize an instance of the type at
/// `address` (`tp_init`) and free it (`tp_dealloc`).
///
/// Their places follow from those of their neighbors, which are the same in
/// every version: `tp_init`, `tp_alloc`, `tp_new`, and `tp_itemsize`,
/// `tp_dealloc`.
pub fn life<M: Memory>(memory: &M, layout: &Layout, address: u64) -> Result<(u64, u64), Error> {
    check_instance(memory, layout, address, flag::TYPE_SUBCLASS)?;
    let at = &layout.type_object;
    let initialize = memory.pointer(field(address, at.tp_new).wrapping_sub(16))?;
    let free = memory.pointer(field(address, at.tp_itemsize).wrapping_add(8))?;
    Ok((initialize, free))
}

/// The `PyMethodDef` called `name` in the type's `tp_methods`.
fn defined_method<M: Memory>(
    memory: &M,
    layout: &Layout,
    address: u64,
    name: &str,
) -> Result<Option<u64>, Error> {
    let table = memory.u64(field(address, layout.type_object.tp_methods))?;
    if table == 0 {
        return Ok(None);
    }
    for method_idx in 0..MAX_METHODS {
        let definition = table.wrapping_add(method_idx * METHOD_DEF_SIZE);
        let ml_name = memory.u64(definition)?;
        if ml_name == 0 {
            return Ok(None);
        }
        if text::c_string_equals(memory, ml_name, name)? {
            return Ok(Some(definition));
        }
    }
    Err(Error::TooLong)
}

/// Address of the C function behind the callable at `address`, or `None` if
/// the callable is of another kind.
fn function_address<M: Memory>(
    memory: &M,
    layout: &Layout,
    address: u64,
) -> Result<Option<u64>, Error> {
    let mut buffer = [0; 64];
    let type_address = type_of(memory, layout, address)?;
    let name = type_name(memory, layout, type_address, &mut buffer)?.text;
    let name = name.rsplit('.').next().unwrap_or(name);
    let Some((_, offset)) = METHOD_DEF_HOLDERS
        .iter()
        .find(|(holder, _)| *holder == name)
    else {
        return Ok(None);
    };
    let definition = memory.pointer(field(field(address, layout.object.size), *offset))?;
    memory.pointer(definition.wrapping_add(ML_METH)).map(Some)
}

/// Checks that the type at `address` has `flag` set.
pub(crate) fn check_flag<M: Memory>(
    memory: &M,
    layout: &Layout,
    address: u64,
    flag: u64,
) -> Result<(), Error> {
    let flags = memory.u64(field(address, layout.type_object.tp_flags))?;
    if flags & flag != 0 {
        Ok(())
    } else {
        Err(Error::WrongType)
    }
}

/// Whether the type at `address` was compiled into the interpreter or an
/// extension. Only of such the name can be relied on: an application may call
/// its own classes anything.
pub(crate) fn is_static<M: Memory>(
    memory: &M,
    layout: &Layout,
    address: u64,
) -> Result<bool, Error> {
    let flags = memory.u64(field(address, layout.type_object.tp_flags))?;
    Ok(flags & flag::HEAPTYPE == 0)
}

/// Whether the type at `address`, or one it derives from by first base, is
/// named `name`.
fn derives_from<M: Memory>(
    memory: &M,
    layout: &Layout,
    address: u64,
    name: &str,
) -> Result<bool, Error> {
    let mut at = address;
    for _ in 0..MAX_BASES {
        let tp_name = memory.pointer(field(at, layout.type_object.tp_name))?;
        if text::c_string_equals(memory, tp_name, name)? {
            return Ok(true);
        }
        at = memory.u64(field(at, layout.type_object.tp_base))?;
        if at == 0 {
            return Ok(false);
        }
    }
    Err(Error::TooLong)
}

/// Bits of an `int`'s digit (`PyLong_SHIFT` of every 64-bit build).
const DIGIT_BITS: u32 = 30;
const DIGIT_MASK: u32 = (1 << DIGIT_BITS) - 1;

/// `sizeof(PyMethodDef)`: `ml_name`, `ml_meth`, `ml_flags`, `ml_doc`.
const METHOD_DEF_SIZE: u64 = 32;
/// Offset of `ml_meth` in `PyMethodDef`.
const ML_METH: u64 = 8;

/// Types of callables with the distance from the end of the object's header to
/// its pointer to a `PyMethodDef`.
///
/// Cython's function begins like `PyCFunctionObject`, whose first field is
/// `m_ml`; in `PyMethodDescrObject` `d_method` follows `d_type`, `d_name` and
/// `d_qualname`. Cython adds a module to the name.
const METHOD_DEF_HOLDERS: [(&str, u32); 3] = [
    ("builtin_function_or_method", 0),
    ("cython_function_or_method", 0),
    ("method_descriptor", 24),
];

/// More methods than any type in C has; `str` has about 80.
const MAX_METHODS: u64 = 1024;

/// Longest chain of first bases that is followed.
const MAX_BASES: u32 = 32;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::{Fake, for_each_layout};
    use crate::layout::LAYOUTS;

    #[test]
    fn reads_integers() {
        for_each_layout(|layout, fake| {
            for value in [
                0,
                1,
                -1,
                1 << 29,
                1 << 30,
                51_053_040,
                -(1 << 45),
                (1 << 60) - 1,
            ] {
                let address = fake.int(layout, value);
                assert_eq!(read_int(fake, layout, address), Ok(value));
            }
        });
    }

    #[test]
    fn refuses_integers_that_do_not_fit() {
        for_each_layout(|layout, fake| {
            let address = fake.int(layout, 1);
            let size = if layout.long.lv_tag == ABSENT {
                layout.object.ob_size
            } else {
                layout.long.lv_tag
            };
            fake.put_u64(field(address, size), u64::MAX / 2);
            assert_eq!(read_int(fake, layout, address), Err(Error::TooLong));
            let text = fake.string(layout, "1");
            assert_eq!(read_int(fake, layout, text), Err(Error::WrongType));
        });
    }

    #[test]
    fn reads_module_attributes() {
        for_each_layout(|layout, fake| {
            let value = fake.string(layout, "threading");
            let module = fake.module(layout, &[("__name__", value), ("x", 7)]);
            let found = module_attribute(fake, layout, module, "__name__");
            assert_eq!(found, Ok(Some(value)));
            assert_eq!(module_attribute(fake, layout, module, "missing"), Ok(None));
            let other = module_attribute(fake, layout, value, "x");
            assert_eq!(other, Err(Error::WrongType));
        });
    }

    #[test]
    fn finds_the_c_function_of_a_method() {
        for_each_layout(|layout, fake| {
            let methods = [("read", 0x1111), ("write", 0x2222), ("writelines", 0x3333)];
            let address = fake.type_with_methods(layout, "uvloop.loop.UVStream", &methods);
            assert_eq!(method(fake, layout, address, "write"), Ok(Some(0x2222)));
            assert_eq!(method(fake, layout, address, "close"), Ok(None));
            let mut buffer = [0; 64];
            let name = type_name(fake, layout, address, &mut buffer).map(|name| name.text);
            assert_eq!(name, Ok("uvloop.loop.UVStream"));
        });
    }

    #[test]
    fn finds_the_c_function_in_the_namespace() {
        for_each_layout(|layout, fake| {
            for (type_name, offset) in [
                ("_cython_3_1_4.cython_function_or_method", 0),
                ("builtin_function_or_method", 0),
                ("method_descriptor", 24),
            ] {
                let class = fake.type_with_methods(layout, "UVStream", &[("read", 1)]);
                let holder = fake.type_with_methods(layout, type_name, &[]);
                let definition = fake.put(&[0; 32]);
                fake.put_u64(definition + ML_METH, 0x2222);
                let function = fake.put(&[0; 96]);
                fake.put_u64(field(function, layout.object.ob_type), holder);
                fake.put_u64(field(function, layout.object.size + offset), definition);
                let namespace = fake.dict(layout, &[("write", function), ("x", class)]);
                fake.put_u64(field(class, layout.type_object.tp_dict), namespace);
                assert_eq!(method(fake, layout, class, "write"), Ok(Some(0x2222)));
                assert_eq!(method(fake, layout, class, "read"), Ok(Some(1)));
                assert_eq!(method(fake, layout, class, "x"), Ok(None));
                assert_eq!(method(fake, layout, class, "missing"), Ok(None));
            }
        });
    }

    #[test]
    fn a_circle_of_bases_ends() {
        let mut fake = Fake::new();
        let layout = &LAYOUTS[0].1;
        let address = fake.type_with_methods(layout, "a", &[]);
        fake.put_u64(field(address, layout.type_object.tp_base), address);
        assert_eq!(
            derives_from(&fake, layout, address, "module"),
            Err(Error::TooLong)
        );
    }

    #[test]
    fn a_method_table_without_an_end_is_an_error() {
        let mut fake = Fake::new();
        let layout = &LAYOUTS[0].1;
        let address = fake.type_with_methods(layout, "a", &[("read", 1)]);
        let name = fake.c_string_at_end("other");
        let table = fake.put(&[0; 64]);
        let end = fake.end();
        for at in (table..end - 32).step_by(32) {
            fake.put_u64(at, name);
        }
        fake.put_u64(field(address, layout.type_object.tp_methods), table);
        assert!(method(&fake, layout, address, "write").is_err());
    }

    #[test]
    fn garbage_never_panics() {
        for_each_layout(|layout, fake| {
            let module = fake.module(layout, &[("x", 7)]);
            fake.each_corruption(module, |fake| {
                let _ = module_attribute(fake, layout, module, "x");
            });
            let number = fake.int(layout, -5);
            fake.each_corruption(number, |fake| {
                let _ = read_int(fake, layout, number);
            });
            let class = fake.type_with_methods(layout, "a", &[("read", 1)]);
            fake.each_corruption(class, |fake| {
                let _ = method(fake, layout, class, "write");
            });
        });
    }
}
