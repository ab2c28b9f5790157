//! What a frame passes to a method that is written in C, and so has no frame
//! of its own.
//!
//! While such a method runs, its receiver and its arguments lie one after the
//! other on the evaluation stack of the frame that calls it. How deep that
//! stack is now is known to the interpreter's loop only, so all of it is
//! looked through from its bottom, where the calls under way come first.
//! Above them may be what earlier calls of the same frame left there: whoever
//! asks must be able to tell whether what is found is the right one.

use crate::layout::{ABSENT, Layout};
use crate::object::flag;
use crate::recipe::Scratch;
use crate::window::Kind;
use crate::{Error, Memory, field, frame, value};

/// Words of an evaluation stack that are looked at, all of them read at once.
const MAX_DEPTH: u64 = 12;

/// The first argument of the method of an instance of `class`, or of a class
/// that derives from it directly, that the frame at `frame` calls, if it is a
/// `str`.
///
/// Written for the kernel, as `recipe` is.
#[inline(always)]
pub fn first<M: Memory>(
    memory: &M,
    layout: &Layout,
    frame: u64,
    class: u64,
    scratch: &mut Scratch,
) -> Result<u64, Error> {
    let code = frame::code(memory, layout, frame)?;
    let fields = &layout.code;
    let depth = u64::from(memory.u32(field(code, fields.co_stacksize))?);
    let bottom = if layout.frame.valuestack == ABSENT {
        let locals = u64::from(memory.u32(field(code, fields.co_nlocalsplus))?);
        field(frame, layout.frame.localsplus).wrapping_add(locals * 8)
    } else {
        memory.pointer(field(frame, layout.frame.valuestack))?
    };
    let windows = &mut scratch.windows;
    windows.find(memory, Kind::Object, bottom, MAX_DEPTH)?;
    let at_bottom = windows.at();
    for number in 1..MAX_DEPTH {
        if number >= depth {
            break;
        }
        let word = windows.nth(at_bottom.wrapping_add(number - 1));
        if !is_instance(memory, layout, word, class) {
            continue;
        }
        let word = windows.nth(at_bottom.wrapping_add(number));
        if let Ok(Some(argument)) = frame::object(layout, word)
            && let Ok(kind) = memory.pointer(field(argument, layout.object.ob_type))
            && value::type_flags(memory, layout, kind)? & flag::UNICODE_SUBCLASS != 0
        {
            return Ok(argument);
        }
    }
    Err(Error::Null)
}

/// Whether a word of the stack is an instance of the class or of one whose
/// base it is.
#[inline(always)]
fn is_instance<M: Memory>(memory: &M, layout: &Layout, word: u64, class: u64) -> bool {
    let Ok(Some(object)) = frame::object(layout, word) else {
        return false;
    };
    let Ok(kind) = memory.u64(field(object, layout.object.ob_type)) else {
        return false;
    };
    kind == class || memory.u64(field(kind, layout.type_object.tp_base)) == Ok(class)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::{Fake, for_each_layout};
    use std::boxed::Box;
    use std::vec::Vec;

    /// A frame with two variables and this on its evaluation stack, of which
    /// the code uses `depth` words.
    fn frame(fake: &mut Fake, layout: &Layout, depth: u32, stack: &[u64]) -> u64 {
        let code = fake.put(&[0; 256]);
        let at = &layout.code;
        let put_u32 = |fake: &mut Fake, address: u64, number: u32| {
            for (byte, at) in number.to_le_bytes().into_iter().zip(address..) {
                fake.put_u8(at, byte);
            }
        };
        put_u32(fake, field(code, at.co_stacksize), depth);
        let address = fake.put(&[0xee; 1024]);
        fake.put_u64(field(address, layout.frame.code), code);
        let bottom = field(address, layout.frame.localsplus) + 16;
        if layout.frame.valuestack == ABSENT {
            put_u32(fake, field(code, at.co_nlocalsplus), 2);
        } else {
            fake.put_u64(field(address, layout.frame.valuestack), bottom);
        }
        for (number, word) in (0..).zip(stack) {
            fake.put_u64(bottom + number * 8, *word);
        }
        address
    }

    struct Objects {
        class: u64,
        cursor: u64,
        derived: u64,
        text: u64,
        other: u64,
        number: u64,
    }

    impl Objects {
        fn new(fake: &mut Fake, layout: &Layout) -> Self {
            let text = fake.string(layout, "select %s");
            let other = fake.string(layout, "select 2");
            let number = fake.int(layout, 7);
            let class = fake.put(&[0; 512]);
            let subclass = fake.put(&[0; 512]);
            fake.put_u64(field(subclass, layout.type_object.tp_base), class);
            let mut instance = |class| {
                let address = fake.put(&[0; 64]);
                fake.put_u64(field(address, layout.object.ob_type), class);
                address
            };
            Self {
                class,
                cursor: instance(class),
                derived: instance(subclass),
                text,
                other,
                number,
            }
        }
    }

    fn find(fake: &Fake, layout: &Layout, frame: u64, class: u64) -> Result<u64, Error> {
        first(fake, layout, frame, class, &mut Box::new(Scratch::new()))
    }

    #[test]
    fn finds_what_a_method_is_called_with() {
        for_each_layout(|layout, fake| {
            let it = Objects::new(fake, layout);
            for (stack, expected) in [
                // A method, its receiver, its arguments.
                (
                    Vec::from([it.number, it.cursor, it.text, it.number]),
                    Ok(it.text),
                ),
                (Vec::from([0, it.derived, it.text]), Ok(it.text)),
                // Below it what a loop goes through, and what ends a block.
                (
                    Vec::from([it.cursor, it.number, 0, 0, it.cursor, it.text, it.other]),
                    Ok(it.text),
                ),
                // What is not a text, or of no such receiver.
                (Vec::from([0, it.cursor, it.number]), Err(Error::Null)),
                (Vec::from([0, it.number, it.text]), Err(Error::Null)),
                (Vec::from([it.text, it.other, it.cursor]), Err(Error::Null)),
            ] {
                let frame = frame(fake, layout, 8, &stack);
                assert_eq!(find(fake, layout, frame, it.class), expected, "{stack:x?}");
            }
        });
    }

    #[test]
    fn does_not_look_beyond_what_the_code_uses() {
        for_each_layout(|layout, fake| {
            let it = Objects::new(fake, layout);
            let stack = [it.number, it.number, it.cursor, it.text];
            let whole = frame(fake, layout, 4, &stack);
            assert_eq!(find(fake, layout, whole, it.class), Ok(it.text));
            let less = frame(fake, layout, 3, &stack);
            assert_eq!(find(fake, layout, less, it.class), Err(Error::Null));
            let mut deep = [it.number; 24];
            deep[20] = it.cursor;
            deep[21] = it.text;
            let deep = frame(fake, layout, 24, &deep);
            assert_eq!(find(fake, layout, deep, it.class), Err(Error::Null));
        });
    }

    #[test]
    fn survives_any_word() {
        for_each_layout(|layout, fake| {
            let it = Objects::new(fake, layout);
            let frame = frame(fake, layout, 8, &[0, it.cursor, it.text]);
            fake.each_corruption(frame, |fake| {
                let _any = find(fake, layout, frame, it.class);
            });
        });
    }
}
