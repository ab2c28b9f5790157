//! What a frame passes to a method that is written in C, and so has no frame
//! of its own.
//!
//! While such a method runs, what is called and its arguments lie one after
//! the other on the evaluation stack of the frame that calls it: a method, its
//! receiver, its arguments; or what is bound to the receiver, with an empty
//! word behind it since 3.13, and the arguments, or a tuple of them and a
//! dictionary. How deep that stack is now is known to the interpreter's loop
//! only, so all of it is looked through from its bottom, where the calls under
//! way come first. Above them may be what earlier calls of the same frame left
//! there: whoever asks must be able to tell whether what is found is the right
//! one.

use core::hint::black_box;

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::layout::{ABSENT, Layout};
use crate::object::flag;
use crate::recipe::{MAX_STEPS, Scratch};
use crate::window::Kind;
use crate::{Error, Memory, field, frame, value};

/// Words of an evaluation stack that are looked at, all of them read at once.
const MAX_DEPTH: u64 = 12;
/// Most of them that may be called, a power of two: where there are more,
/// loops go through cursors within loops that do.
const CALLEES: usize = 4;
/// The argument's first word is behind a bound method.
const BOUND: u64 = 1 << 8;

/// Whose methods' arguments are looked for, and which ones; addresses of
/// types.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// The receiver is an instance of this class, or of one that derives from
    /// it directly.
    pub class: u64,
    /// The type of functions that are written in C, which may be bound to
    /// their receivers; 0 where it is not known.
    pub functions: u64,
    /// Instances of classes that derive from this one directly stand for a
    /// text; 0 for none.
    pub composed: u64,
}

/// The first of a recipe's steps from what stands for a text; those before
/// lead from a dictionary of arguments by their names.
pub const COMPOSED: usize = 2;

/// The first argument of the method that the frame at `frame` calls, if it is
/// a `str` or `bytes`, or stands for one; or the dictionary of the arguments
/// that have names, where there are no others. [`crate::recipe::run_rest`] goes on
/// from there, if there is more to go.
///
/// Written for the kernel, as `recipe` is.
#[inline(always)]
pub fn first<M: Memory>(
    memory: &M,
    layout: &Layout,
    frame: u64,
    wanted: Wanted,
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
    scratch
        .windows
        .find(memory, Kind::Object, bottom, MAX_DEPTH)?;
    scratch.stack = Stack {
        bottom: scratch.windows.at(),
        depth: depth.min(MAX_DEPTH),
        callees: [0; CALLEES],
        count: 0,
    };
    // What may be called comes first, so that the verifier need not follow
    // what it is called with once for each word.
    for number in 0..MAX_DEPTH - 1 {
        if number + 1 >= scratch.stack.depth {
            break;
        }
        if let Ok(first) = callee(memory, layout, number, wanted, scratch) {
            let stack = black_box(&mut scratch.stack);
            if stack.count >= CALLEES as u64 {
                break;
            }
            stack.callees[stack.count as usize % CALLEES] = first;
            stack.count += 1;
        }
    }
    for number in 0..CALLEES {
        let stack = black_box(&mut scratch.stack);
        if number as u64 >= stack.count {
            break;
        }
        let at = stack.callees[number];
        if let Ok(found) = argument(memory, layout, at, wanted, scratch) {
            return Ok(found);
        }
    }
    Err(Error::Null)
}

/// An evaluation stack.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub(crate) struct Stack {
    /// Index of its first word in the windows.
    bottom: u64,
    /// Words that the code uses of those that were read; behind them is
    /// another frame.
    depth: u64,
    /// Of each that may be called the number of the word behind it, and
    /// [`BOUND`]; the first of them.
    callees: [u64; CALLEES],
    /// How many there are.
    count: u64,
}

impl Stack {
    pub(crate) const NONE: Self = Self {
        bottom: 0,
        depth: 0,
        callees: [0; CALLEES],
        count: 0,
    };

    /// The object in a word, which must not be empty.
    #[inline(always)]
    fn object(layout: &Layout, scratch: &Scratch, number: u64) -> Result<u64, Error> {
        if number >= scratch.stack.depth {
            return Err(Error::Null);
        }
        let word = scratch
            .windows
            .nth(scratch.stack.bottom.wrapping_add(number));
        frame::object(layout, word)?.ok_or(Error::Null)
    }
}

/// The number of the word behind the one of this number, with [`BOUND`], if
/// that is a receiver or what is bound to one.
#[inline(always)]
fn callee<M: Memory>(
    memory: &M,
    layout: &Layout,
    number: u64,
    wanted: Wanted,
    scratch: &Scratch,
) -> Result<u64, Error> {
    let base = layout.type_object.tp_base;
    let callee = Stack::object(layout, scratch, number)?;
    let class = memory.u64(field(callee, layout.object.ob_type))?;
    let above = memory.u64(field(class, base))?;
    if class == wanted.class || above == wanted.class {
        return Ok(number + 1);
    }
    if wanted.functions == 0 || class != wanted.functions && above != wanted.functions {
        return Err(Error::WrongType);
    }
    // `m_self` comes second in it.
    let receiver = memory.u64(field(callee, layout.object.size + 8))?;
    let class = memory.u64(field(receiver, layout.object.ob_type))?;
    if class == wanted.class || memory.u64(field(class, base))? == wanted.class {
        return Ok((number + 1) | BOUND);
    }
    Err(Error::WrongType)
}

/// The first argument of what was found by [`callee`].
#[inline(always)]
fn argument<M: Memory>(
    memory: &M,
    layout: &Layout,
    callee: u64,
    wanted: Wanted,
    scratch: &mut Scratch,
) -> Result<u64, Error> {
    let bound = callee & BOUND != 0;
    let mut at = callee & !BOUND;
    if bound && Stack::object(layout, scratch, at) == Err(Error::Null) {
        at += 1;
    }
    let mut object = Stack::object(layout, scratch, at)?;
    let mut kind = memory.pointer(field(object, layout.object.ob_type))?;
    let mut flags = value::type_flags(memory, layout, kind)?;
    if bound && flags & (flag::TUPLE_SUBCLASS | flag::LIST_SUBCLASS) != 0 {
        // All of them together.
        let size = memory.u64(field(object, layout.object.ob_size))?;
        object = if size == 0 {
            Stack::object(layout, scratch, at + 1)?
        } else if flags & flag::TUPLE_SUBCLASS != 0 {
            memory.pointer(field(object, layout.tuple.ob_item))?
        } else {
            let items = memory.pointer(field(object, layout.list.ob_item))?;
            memory.pointer(items)?
        };
        kind = memory.pointer(field(object, layout.object.ob_type))?;
        flags = value::type_flags(memory, layout, kind)?;
        if size == 0 {
            scratch.skip = 0;
            let names = flags & flag::DICT_SUBCLASS != 0;
            return names.then_some(object).ok_or(Error::WrongType);
        }
    }
    if value::is_statement(flags) {
        scratch.skip = MAX_STEPS as u64;
        return Ok(object);
    }
    let base = layout.type_object.tp_base;
    if wanted.composed != 0 && memory.u64(field(kind, base))? == wanted.composed {
        scratch.skip = COMPOSED as u64;
        return Ok(object);
    }
    Err(Error::WrongType)
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
        functions: u64,
        composed: u64,
        cursor: u64,
        derived: u64,
        text: u64,
        other: u64,
        number: u64,
        bytes: u64,
        stands: u64,
        bound: u64,
        unbound: u64,
        knowing: u64,
        tuple: u64,
        wrapped: u64,
        list: u64,
        empty: u64,
        dict: u64,
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
            let (cursor, derived) = (instance(class), instance(subclass));
            let (functions, composed) = (fake.put(&[0; 512]), fake.put(&[0; 512]));
            let template = fake.put(&[0; 512]);
            fake.put_u64(field(template, layout.type_object.tp_base), composed);
            let method = |fake: &mut Fake, receiver| {
                let address = fake.put(&[0; 64]);
                fake.put_u64(field(address, layout.object.ob_type), functions);
                fake.put_u64(field(address, layout.object.size + 8), receiver);
                address
            };
            let (bound, unbound) = (method(fake, derived), method(fake, number));
            // One that knows its class is of a type that derives from theirs.
            let kind = fake.put(&[0; 512]);
            fake.put_u64(field(kind, layout.type_object.tp_base), functions);
            let knowing = method(fake, cursor);
            fake.put_u64(field(knowing, layout.object.ob_type), kind);
            let stands = fake.put(&[0; 64]);
            fake.put_u64(field(stands, layout.object.ob_type), template);
            Self {
                class,
                functions,
                composed,
                cursor,
                derived,
                text,
                other,
                number,
                bytes: fake.bytes(layout, b"select %s"),
                stands,
                bound,
                unbound,
                knowing,
                tuple: fake.tuple(layout, &[text, number]),
                wrapped: fake.tuple(layout, &[stands]),
                list: fake.list(layout, &[text]),
                empty: fake.tuple(layout, &[]),
                dict: fake.dict(layout, &[("query", text)]),
            }
        }

        fn wanted(&self) -> Wanted {
            Wanted {
                class: self.class,
                functions: self.functions,
                composed: self.composed,
            }
        }
    }

    /// What is found, and how many steps of a recipe are not for it.
    fn find(
        fake: &Fake,
        layout: &Layout,
        frame: u64,
        wanted: Wanted,
    ) -> Result<(u64, usize), Error> {
        let mut scratch = Box::new(Scratch::new());
        let found = first(fake, layout, frame, wanted, &mut scratch)?;
        Ok((found, scratch.skip as usize))
    }

    fn text(address: u64) -> Result<(u64, usize), Error> {
        Ok((address, MAX_STEPS))
    }

    fn composed(address: u64) -> Result<(u64, usize), Error> {
        Ok((address, COMPOSED))
    }

    fn named(address: u64) -> Result<(u64, usize), Error> {
        Ok((address, 0))
    }

    #[test]
    fn finds_what_a_method_is_called_with() {
        for_each_layout(|layout, fake| {
            let it = Objects::new(fake, layout);
            for (stack, expected) in [
                // A method, its receiver, its arguments.
                (
                    Vec::from([it.number, it.cursor, it.text, it.number]),
                    text(it.text),
                ),
                (Vec::from([0, it.derived, it.text]), text(it.text)),
                // Below it what a loop goes through, and what ends a block.
                (
                    Vec::from([it.cursor, it.number, 0, 0, it.cursor, it.text, it.other]),
                    text(it.text),
                ),
                // What is not a text, or of no such receiver.
                (Vec::from([0, it.cursor, it.number]), Err(Error::Null)),
                (Vec::from([0, it.number, it.text]), Err(Error::Null)),
                (Vec::from([it.text, it.other, it.cursor]), Err(Error::Null)),
            ] {
                let frame = frame(fake, layout, 8, &stack);
                assert_eq!(
                    find(fake, layout, frame, it.wanted()),
                    expected,
                    "{stack:x?}"
                );
            }
        });
    }

    #[test]
    fn finds_what_a_bound_method_is_called_with() {
        for_each_layout(|layout, fake| {
            let it = Objects::new(fake, layout);
            for (stack, expected) in [
                (Vec::from([it.bound, it.text, it.number]), text(it.text)),
                (Vec::from([0, it.bound, it.bytes]), text(it.bytes)),
                (Vec::from([it.knowing, it.text]), text(it.text)),
                // Since 3.13 there is an empty word behind it.
                (Vec::from([it.bound, 0, it.text]), text(it.text)),
                // All arguments together.
                (Vec::from([0, it.bound, it.tuple]), text(it.text)),
                (Vec::from([it.bound, 0, it.list]), text(it.text)),
                (Vec::from([it.bound, it.empty, it.dict]), named(it.dict)),
                (Vec::from([it.bound, 0, it.empty, it.dict]), named(it.dict)),
                (Vec::from([it.bound, it.empty, it.number]), Err(Error::Null)),
                (Vec::from([it.bound, it.dict]), Err(Error::Null)),
                // What only stands for a text.
                (Vec::from([it.bound, 0, it.wrapped]), composed(it.stands)),
                (Vec::from([0, it.cursor, it.stands]), composed(it.stands)),
                (Vec::from([it.bound, 0, it.stands]), composed(it.stands)),
                // A function of something else, and one called with nothing.
                (Vec::from([it.unbound, it.text]), Err(Error::Null)),
                (Vec::from([it.bound, 0, 0, it.text]), Err(Error::Null)),
                // The first of several that passes on a text; not any number.
                (
                    Vec::from([it.cursor, it.bound, it.cursor, 0, it.cursor, it.text]),
                    text(it.text),
                ),
                (
                    Vec::from([
                        it.cursor, it.cursor, it.cursor, it.cursor, it.cursor, it.text,
                    ]),
                    Err(Error::Null),
                ),
                // A method's first argument is no tuple of all of them.
                (Vec::from([0, it.cursor, it.tuple]), Err(Error::Null)),
            ] {
                let frame = frame(fake, layout, 8, &stack);
                assert_eq!(
                    find(fake, layout, frame, it.wanted()),
                    expected,
                    "{stack:x?}"
                );
            }
            // Nothing is bound, and nothing stands for anything, where their
            // types are not known.
            let unknown = Wanted {
                functions: 0,
                composed: 0,
                ..it.wanted()
            };
            for stack in [[it.bound, it.text], [it.cursor, it.stands]] {
                let frame = frame(fake, layout, 8, &stack);
                assert_eq!(find(fake, layout, frame, unknown), Err(Error::Null));
            }
        });
    }

    #[test]
    fn does_not_look_beyond_what_the_code_uses() {
        for_each_layout(|layout, fake| {
            let it = Objects::new(fake, layout);
            let stack = [it.number, it.number, it.cursor, it.text];
            let whole = frame(fake, layout, 4, &stack);
            assert_eq!(find(fake, layout, whole, it.wanted()), text(it.text));
            let less = frame(fake, layout, 3, &stack);
            assert_eq!(find(fake, layout, less, it.wanted()), Err(Error::Null));
            // Behind what is bound neither.
            for (words, depth) in [
                (&[0, it.bound, 0, it.text][..], 3),
                (&[it.bound, it.empty, it.dict], 2),
            ] {
                let cut = frame(fake, layout, depth, words);
                assert_eq!(find(fake, layout, cut, it.wanted()), Err(Error::Null));
            }
            let mut deep = [it.number; 24];
            deep[20] = it.cursor;
            deep[21] = it.text;
            let deep = frame(fake, layout, 24, &deep);
            assert_eq!(find(fake, layout, deep, it.wanted()), Err(Error::Null));
        });
    }

    #[test]
    fn survives_any_word() {
        for_each_layout(|layout, fake| {
            let it = Objects::new(fake, layout);
            for words in [[0, it.cursor, it.text], [it.bound, it.empty, it.dict]] {
                let frame = frame(fake, layout, 8, &words);
                fake.each_corruption(frame, |fake| {
                    let _any = find(fake, layout, frame, it.wanted());
                });
            }
        });
    }
}
