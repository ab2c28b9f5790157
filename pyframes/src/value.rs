//! What is to be copied of an object that may be gone soon: where a `str`
//! keeps its text, the number that an `int` is, the parts of an exception.
//!
//! Written for the kernel, as `keyed` is: heads are read into the
//! [`Scratch`], with few reads.

use crate::layout::{ABSENT, Layout};
use crate::object::flag;
use crate::recipe::{Scratch, VALUE_TYPES, lasting};
use crate::window::Kind;
use crate::{Error, Memory, field};

/// Where a `str` keeps its code points.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Text {
    /// Address of the first.
    pub data: u64,
    /// How many there are.
    pub points: u64,
    /// Bytes of each: 1, 2 or 4.
    pub width: u64,
}

/// The parts of an exception; addresses, 0 for none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exception {
    /// `__dict__`, where its notes are.
    pub dict: u64,
    /// `args`, a tuple.
    pub args: u64,
    /// `__traceback__`.
    pub traceback: u64,
    /// `__context__`.
    pub context: u64,
    /// `__cause__`.
    pub cause: u64,
    /// `__suppress_context__`.
    pub suppress_context: bool,
}

/// An entry of a traceback.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The next one, towards the place of the raise, or 0.
    pub next: u64,
    /// Its `PyFrameObject`.
    pub frame: u64,
    /// `tb_lasti`, in bytes.
    pub lasti: i32,
    /// `tb_lineno`; not positive if it follows from `lasti`.
    pub lineno: i32,
}

/// `tp_flags` of the type at `type_address`.
#[inline(always)]
pub fn type_flags<M: Memory>(memory: &M, layout: &Layout, type_address: u64) -> Result<u64, Error> {
    memory.u64(field(type_address, layout.type_object.tp_flags))
}

/// [`type_flags`] of a value's type, which mostly is that of one before.
#[inline(always)]
pub fn value_flags<M: Memory>(
    memory: &M,
    layout: &Layout,
    type_address: u64,
    scratch: &mut Scratch,
) -> Result<u64, Error> {
    let mixed = type_address >> 4 ^ type_address >> 7 ^ type_address >> 10;
    let index = mixed as usize % VALUE_TYPES;
    if type_address == 0 || scratch.value_types[index] != type_address {
        let at = field(type_address, layout.type_object.tp_flags);
        let flags = scratch.windows.u64(memory, Kind::Type, at)?;
        scratch.value_flags[index] = flags;
        scratch.value_types[index] = lasting(type_address, flags);
    }
    Ok(scratch.value_flags[index])
}

/// The type of the object at `address`.
#[inline(always)]
pub fn type_of<M: Memory>(
    memory: &M,
    layout: &Layout,
    address: u64,
    scratch: &mut Scratch,
) -> Result<u64, Error> {
    let at = field(address, layout.object.ob_type);
    scratch.windows.pointer(memory, Kind::Object, at)
}

/// Whether the type is that of `None`.
#[inline(always)]
pub fn is_none_type<M: Memory>(memory: &M, layout: &Layout, type_address: u64) -> bool {
    match memory.pointer(field(type_address, layout.type_object.tp_name)) {
        Ok(name) => memory.bytes(name) == Ok(*b"NoneType\0"),
        Err(_) => false,
    }
}

/// Whether the type is that of `float`, exactly.
#[inline(always)]
pub fn is_float_type<M: Memory>(memory: &M, layout: &Layout, type_address: u64) -> bool {
    match memory.pointer(field(type_address, layout.type_object.tp_name)) {
        Ok(name) => memory.bytes(name) == Ok(*b"float\0"),
        Err(_) => false,
    }
}

/// The text of the object at `address`, which must be a `str`.
#[inline(always)]
pub fn text<M: Memory>(
    memory: &M,
    layout: &Layout,
    address: u64,
    scratch: &mut Scratch,
) -> Result<Text, Error> {
    let at = &layout.unicode;
    let count = word_count(at.state);
    scratch.windows.find(memory, Kind::Object, address, count)?;
    let bits = word(scratch, at.state) as u32 >> (at.kind_shift & 31);
    let width = u64::from(bits & 7);
    if width != 1 && width != 2 && width != 4 {
        return Err(Error::Malformed);
    }
    let points = word(scratch, at.length);
    let data = if bits & COMPACT == 0 {
        let at = field(address, at.data);
        scratch.windows.pointer(memory, Kind::Object, at)?
    } else if bits & ASCII == 0 {
        field(address, at.compact_size)
    } else {
        field(address, at.ascii_size)
    };
    Ok(Text {
        data,
        points,
        width,
    })
}

/// The bytes of the object at `address`, which must be a `bytes`, as if each
/// were a code point.
#[inline(always)]
pub fn bytes<M: Memory>(
    memory: &M,
    layout: &Layout,
    address: u64,
    scratch: &mut Scratch,
) -> Result<Text, Error> {
    let count = word_count(layout.object.ob_size);
    scratch.windows.find(memory, Kind::Object, address, count)?;
    Ok(Text {
        data: field(address, layout.bytes.ob_sval),
        points: word(scratch, layout.object.ob_size),
        width: 1,
    })
}

/// The number that the object at `address`, which must be an `int`, stands
/// for; one of more than 60 bits is too long.
#[inline(always)]
pub fn int<M: Memory>(
    memory: &M,
    layout: &Layout,
    address: u64,
    scratch: &mut Scratch,
) -> Result<i64, Error> {
    let at = &layout.long;
    let count = word_count(at.ob_digit);
    scratch.windows.find(memory, Kind::Object, address, count)?;
    let count;
    let negative;
    if at.lv_tag == ABSENT {
        let size = word(scratch, layout.object.ob_size).cast_signed();
        count = size.unsigned_abs();
        negative = size < 0;
    } else {
        let tag = word(scratch, at.lv_tag);
        count = tag >> 3;
        negative = tag & 3 == 2;
    }
    if count > 2 {
        return Err(Error::TooLong);
    }
    let digits = word(scratch, at.ob_digit);
    let mut magnitude = 0;
    if count > 0 {
        magnitude = digits & DIGIT_MASK;
    }
    if count > 1 {
        magnitude |= (digits >> 32 & DIGIT_MASK) << DIGIT_BITS;
    }
    let value = magnitude.cast_signed();
    Ok(if negative { -value } else { value })
}

/// The parts of the object at `address`, which must be an exception.
#[inline(always)]
pub fn exception<M: Memory>(
    memory: &M,
    layout: &Layout,
    address: u64,
    scratch: &mut Scratch,
) -> Result<Exception, Error> {
    let at = &layout.exception;
    let count = word_count(at.suppress_context);
    scratch.windows.find(memory, Kind::Object, address, count)?;
    Ok(Exception {
        // The first field in every version.
        dict: word(scratch, layout.object.size),
        args: word(scratch, at.args),
        traceback: word(scratch, at.traceback),
        context: word(scratch, at.context),
        cause: word(scratch, at.cause),
        suppress_context: word(scratch, at.suppress_context) & 0xff != 0,
    })
}

/// The list of notes that an exception has, whose `__dict__` is at `dict`.
///
/// The name is compared by its text: no code that could tell its address need
/// be there. It is among the first names if an exception has few attributes.
#[inline(always)]
pub fn notes<M: Memory>(memory: &M, layout: &Layout, dict: u64) -> Result<u64, Error> {
    let at = &layout.dict_keys;
    if at.dk_size != ABSENT {
        // Before 3.11 there are no notes.
        return Err(Error::Null);
    }
    let keys = memory.pointer(field(dict, layout.dict.ma_keys))?;
    let values = memory.u64(field(dict, layout.dict.ma_values))?;
    let index_bytes = memory.u8(field(keys, at.dk_log2_index_bytes))?;
    let kind = memory.u8(field(keys, at.dk_kind))?;
    let count = memory.u64(field(keys, at.dk_nentries))?;
    // Indices of a table as small as this take a byte each.
    if index_bytes > MAX_LOG2_INDICES {
        return Err(Error::TooLong);
    }
    let entries = field(keys, at.dk_indices).wrapping_add(1_u64 << index_bytes);
    // Hash, key and value, or without the hash.
    let hashed = u64::from(kind == 0);
    for index in 0..MAX_NAMES {
        if index >= count {
            break;
        }
        let entry = entries.wrapping_add((index * (2 + hashed) + hashed) * 8);
        let name = memory.u64(entry)?;
        if memory.bytes(field(name, layout.unicode.ascii_size)) == Ok(*b"__notes__\0") {
            return if values == 0 {
                memory.pointer(entry.wrapping_add(8))
            } else {
                let values = field(values, layout.dict_values.values);
                memory.pointer(values.wrapping_add(index * 8))
            };
        }
    }
    Err(Error::Null)
}

/// The tuple of members of the exception at `address`, whose type is at
/// `type_address`, if it has the place for one: whether it is a group, its
/// type says.
#[inline(always)]
pub fn members<M: Memory>(
    memory: &M,
    layout: &Layout,
    address: u64,
    type_address: u64,
) -> Result<u64, Error> {
    // Its message comes before them, behind what every exception has.
    let at = u64::from(layout.exception.suppress_context) + 16;
    let size = memory.u64(field(type_address, layout.type_object.tp_basicsize))?;
    if size < at + 8 {
        return Err(Error::WrongType);
    }
    let tuple = memory.pointer(address.wrapping_add(at))?;
    let kind = memory.pointer(field(tuple, layout.object.ob_type))?;
    if type_flags(memory, layout, kind)? & flag::TUPLE_SUBCLASS == 0 {
        return Err(Error::WrongType);
    }
    Ok(tuple)
}

/// The entry of a traceback at `address`.
#[inline(always)]
pub fn entry<M: Memory>(memory: &M, layout: &Layout, address: u64) -> Result<Entry, Error> {
    // The three fields follow each other in every version.
    let bytes: [u8; 24] = memory.bytes(field(address, layout.traceback.tb_next))?;
    let [next, frame, place] = zerocopy::transmute!(bytes);
    let place = u64::from_le(place);
    Ok(Entry {
        next: u64::from_le(next),
        frame: u64::from_le(frame),
        lasti: place as i32,
        lineno: (place >> 32) as i32,
    })
}

/// Words up to and with the one at `offset`.
#[inline(always)]
fn word_count(offset: u32) -> u64 {
    u64::from(offset / 8) + 1
}

/// The aligned 64-bit field at `offset` of what was read.
#[inline(always)]
fn word(scratch: &Scratch, offset: u32) -> u64 {
    scratch.windows.word(offset)
}

/// Attributes of an exception among which its notes are looked for.
const MAX_NAMES: u64 = 6;

/// A dictionary with more slots has more attributes than that.
const MAX_LOG2_INDICES: u8 = 6;

/// The bit of `tp_flags` that tells that instances are exceptions
/// (`Py_TPFLAGS_BASE_EXC_SUBCLASS`).
pub const BASE_EXC_SUBCLASS: u64 = 1 << 30;

/// Whether `flags` are those of a type whose instances are `str`s.
#[inline(always)]
pub fn is_text(flags: u64) -> bool {
    flags & flag::UNICODE_SUBCLASS != 0
}

/// The same for `str`s and `bytes`.
#[inline(always)]
pub fn is_statement(flags: u64) -> bool {
    flags & (flag::UNICODE_SUBCLASS | flag::BYTES_SUBCLASS) != 0
}

/// Bits of a string's state, from `kind` on.
const COMPACT: u32 = 8;
const ASCII: u32 = 16;

/// Bits of an `int`'s digit, of which each takes 32 (`PyLong_SHIFT` of every
/// 64-bit build).
const DIGIT_BITS: u32 = 30;
const DIGIT_MASK: u64 = (1 << DIGIT_BITS) - 1;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::{Fake, for_each_layout};
    use crate::frame;
    use std::boxed::Box;
    use std::vec;

    fn scratch() -> Box<Scratch> {
        Box::new(Scratch::new())
    }

    #[test]
    fn finds_the_text_of_strings_of_every_form() {
        for_each_layout(|layout, fake| {
            for (expected, width) in [
                ("", 1),
                ("/items", 1),
                ("d\u{e9}j\u{e0}", 1),
                ("\u{20ac}", 2),
                ("\u{1f600}!", 4),
            ] {
                for build in [Fake::string, Fake::indirect_string] {
                    let address = build(fake, layout, expected);
                    let found = text(fake, layout, address, &mut scratch()).expect("reads");
                    assert_eq!(found.width, width, "{expected}");
                    assert_eq!(found.points, expected.chars().count() as u64);
                    let mut data = vec![0; (found.points * width) as usize];
                    assert!(fake.read(found.data, &mut data));
                    let read = data.chunks(width as usize).map(|point| {
                        let mut all = [0; 4];
                        all[..point.len()].copy_from_slice(point);
                        char::from_u32(u32::from_le_bytes(all)).expect("a character")
                    });
                    assert!(read.eq(expected.chars()), "{expected}");
                }
            }
        });
    }

    #[test]
    fn remembers_the_flags_of_types_that_stay() {
        for_each_layout(|layout, fake| {
            let address = fake.string(layout, "/items");
            let mut scratch = scratch();
            let class = type_of(fake, layout, address, &mut scratch).expect("has one");
            let flags = type_flags(fake, layout, class).expect("mapped");
            assert!(is_text(flags));
            assert_eq!(value_flags(fake, layout, class, &mut scratch), Ok(flags));
            // Not even when all else is forgotten.
            let at = field(class, layout.type_object.tp_flags);
            fake.put_u64(at, flags | flag::HEAPTYPE);
            scratch.forget();
            assert_eq!(value_flags(fake, layout, class, &mut scratch), Ok(flags));
            scratch.forget_types();
            let found = value_flags(fake, layout, class, &mut scratch);
            assert_eq!(found, Ok(flags | flag::HEAPTYPE));
            // Another may be at its address, if it was on the heap.
            fake.put_u64(at, flags);
            scratch.forget();
            assert_eq!(value_flags(fake, layout, class, &mut scratch), Ok(flags));
            assert!(value_flags(fake, layout, 0xdead_0000, &mut scratch).is_err());
        });
    }

    #[test]
    fn reads_integers() {
        for_each_layout(|layout, fake| {
            for value in [
                0,
                1,
                -1,
                1 << 29,
                1 << 30,
                7_000_000_000,
                -(1 << 45),
                (1 << 60) - 1,
            ] {
                let address = fake.int(layout, value);
                assert_eq!(int(fake, layout, address, &mut scratch()), Ok(value));
            }
            let address = fake.int(layout, 1);
            let size = if layout.long.lv_tag == ABSENT {
                layout.object.ob_size
            } else {
                layout.long.lv_tag
            };
            fake.put_u64(field(address, size), 3 << 3);
            assert_eq!(
                int(fake, layout, address, &mut scratch()),
                Err(Error::TooLong)
            );
        });
    }

    #[test]
    fn tells_the_types_of_nothing_and_of_floats() {
        for_each_layout(|layout, fake| {
            for (name, none, float) in [
                ("NoneType", true, false),
                ("float", false, true),
                ("floating", false, false),
                ("str", false, false),
            ] {
                let class = fake.type_with_methods(layout, name, &[]);
                assert_eq!(is_none_type(fake, layout, class), none, "{name}");
                assert_eq!(is_float_type(fake, layout, class), float, "{name}");
            }
            assert!(!is_none_type(fake, layout, 0xdead));
            assert!(!is_float_type(fake, layout, 0xdead));
        });
    }

    #[test]
    fn takes_exceptions_apart() {
        for_each_layout(|layout, fake| {
            let at = layout.exception;
            let address = fake.put(&[0; 256]);
            for (value, offset) in (0x1000..).zip([at.args, at.traceback, at.context, at.cause]) {
                fake.put_u64(field(address, offset), value);
            }
            fake.put_u64(field(address, layout.object.size), 0x0fff);
            let expected = Exception {
                dict: 0x0fff,
                args: 0x1000,
                traceback: 0x1001,
                context: 0x1002,
                cause: 0x1003,
                suppress_context: false,
            };
            let found = exception(fake, layout, address, &mut scratch());
            assert_eq!(found, Ok(expected));
            fake.put_u8(field(address, at.suppress_context), 1);
            let found = exception(fake, layout, address, &mut scratch());
            assert!(found.is_ok_and(|found| found.suppress_context));
        });
    }

    #[test]
    fn finds_notes_of_exceptions() {
        for_each_layout(|layout, fake| {
            let list = fake.list(layout, &[]);
            let items = [("reason", 0x1000), ("__notes__", list)];
            let dicts = [
                fake.dict(layout, &items),
                fake.general_dict(layout, &items),
                fake.split_dict(layout, &items),
            ];
            let others = fake.dict(layout, &items[..1]);
            let has_notes = layout.dict_keys.dk_size == ABSENT;
            for dict in dicts {
                let expected = if has_notes {
                    Ok(list)
                } else {
                    Err(Error::Null)
                };
                assert_eq!(notes(fake, layout, dict), expected);
                fake.each_corruption(dict, |fake| {
                    let _ = notes(fake, layout, dict);
                });
            }
            assert_eq!(notes(fake, layout, others), Err(Error::Null));
            assert!(notes(fake, layout, 0).is_err());
        });
    }

    #[test]
    fn finds_members_of_groups() {
        for_each_layout(|layout, fake| {
            let at = u64::from(layout.exception.suppress_context) + 16;
            let class = fake.class(layout, "ExceptionGroup", 0);
            let size = field(class, layout.type_object.tp_basicsize);
            let address = fake.put(&[0; 256]);
            let tuple = fake.tuple(layout, &[]);
            fake.put_u64(size, at + 8);
            assert_eq!(members(fake, layout, address, class), Err(Error::Null));
            fake.put_u64(address + at, tuple);
            assert_eq!(members(fake, layout, address, class), Ok(tuple));
            let list = fake.list(layout, &[]);
            fake.put_u64(address + at, list);
            assert_eq!(members(fake, layout, address, class), Err(Error::WrongType));
            // An exception that is no larger than most.
            fake.put_u64(address + at, tuple);
            fake.put_u64(size, at);
            assert_eq!(members(fake, layout, address, class), Err(Error::WrongType));
        });
    }

    #[test]
    fn reads_entries_of_tracebacks() {
        for_each_layout(|layout, fake| {
            let at = layout.traceback;
            let address = fake.put(&[0; 128]);
            fake.put_u64(field(address, at.tb_next), 0x1000);
            fake.put_u64(field(address, at.tb_frame), 0x2000);
            fake.put_u64(field(address, at.tb_lasti), 8 | 0xffff_ffff << 32);
            let expected = Entry {
                next: 0x1000,
                frame: 0x2000,
                lasti: 8,
                lineno: -1,
            };
            assert_eq!(entry(fake, layout, address), Ok(expected));
            assert_eq!(at.tb_frame, at.tb_next + 8);
            assert_eq!(at.tb_lasti, at.tb_next + 16);
            assert_eq!(at.tb_lineno, at.tb_next + 20);
        });
    }

    #[test]
    fn every_head_fits() {
        for (_, layout) in &crate::layout::LAYOUTS {
            for offset in [
                layout.unicode.state,
                layout.unicode.length,
                layout.long.ob_digit,
                layout.object.ob_size,
                layout.exception.suppress_context,
            ] {
                assert_eq!(offset % 8, 0);
                assert!(word_count(offset) <= 16);
            }
            // The head of an object is no longer than what is asked of it.
            assert!(layout.unicode.length < layout.unicode.state);
            assert!(layout.object.ob_size < layout.long.ob_digit);
        }
    }

    #[test]
    fn garbage_never_panics() {
        for_each_layout(|layout, fake| {
            let string = fake.indirect_string(layout, "\u{20ac}");
            let number = fake.int(layout, -5);
            for address in [string, number] {
                fake.each_corruption(address, |fake| {
                    let mut scratch = scratch();
                    let _ = text(fake, layout, address, &mut scratch);
                    let _ = int(fake, layout, address, &mut scratch);
                    let _ = exception(fake, layout, address, &mut scratch);
                    if let Ok(entry) = entry(fake, layout, address) {
                        let _ = frame::of_object(fake, layout, entry.frame);
                    }
                });
            }
        });
    }
}
