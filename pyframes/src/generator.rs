//! Reads generators, coroutines and asynchronous generators: what they are
//! doing, and what they wait for.

use crate::layout::{ABSENT, Layout};
use crate::object;
use crate::{Error, Memory, field, frame, text};

/// A generator, coroutine or asynchronous generator that was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Generator {
    /// The object itself.
    pub address: u64,
    /// What it is.
    pub kind: Kind,
    /// `gi_name`, a `str`.
    pub name: u64,
    /// `gi_qualname`, a `str`.
    pub qualname: u64,
    /// What it is doing.
    pub state: State,
    /// Address of its frame, as [`crate::frame::Frame::address`] has it; none
    /// once it has finished.
    pub frame: Option<u64>,
    /// Whether it is suspended in a `yield from` or `await`, where that is
    /// told (since 3.13).
    delegates: Option<bool>,
}

/// Which of the three a [`Generator`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A function with `yield`.
    Generator,
    /// An `async def`.
    Coroutine,
    /// An `async def` with `yield`.
    AsyncGenerator,
}

/// What a generator is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// It has not begun.
    Created,
    /// It is at a `yield`, `yield from` or `await`.
    Suspended,
    /// A thread runs it now.
    Running,
    /// It has returned or raised.
    Finished,
}

impl Generator {
    /// Reads the generator, coroutine or asynchronous generator at `address`.
    pub fn read<M: Memory>(memory: &M, layout: &Layout, address: u64) -> Result<Self, Error> {
        let kind = kind(memory, layout, address)?.ok_or(Error::WrongType)?;
        let at = &layout.generator;
        let (frame, state, delegates) = if at.gi_iframe == ABSENT {
            old_state(memory, layout, address)?
        } else {
            new_state(memory, layout, address)?
        };
        Ok(Self {
            address,
            kind,
            name: memory.pointer(field(address, at.gi_name))?,
            qualname: memory.pointer(field(address, at.gi_qualname))?,
            state,
            frame,
            delegates,
        })
    }

    /// What it awaits or yields from, if it is suspended there.
    ///
    /// `async for` and `async with` await objects of the interpreter's own,
    /// which lead to the generator behind them: see [`awaited`].
    pub fn awaits<M: Memory>(&self, memory: &M, layout: &Layout) -> Result<Option<u64>, Error> {
        let (State::Suspended, Some(frame)) = (self.state, self.frame) else {
            return Ok(None);
        };
        let delegates = match self.delegates {
            Some(delegates) => delegates,
            None if layout.code.co_code == ABSENT => resumes_delegating(memory, layout, frame)?,
            None => yields_from(memory, layout, frame)?,
        };
        if !delegates {
            return Ok(None);
        }
        let top = stack_top(memory, layout, frame)?;
        let value = memory.u64(top.wrapping_sub(8))? & !u64::from(layout.frame.tag_bits);
        Ok((value != 0).then_some(value))
    }
}

/// The generator, coroutine or asynchronous generator that the object at
/// `address` stands for: itself, or the one that a wrapper of the interpreter
/// runs. `None` for other objects, as futures are.
pub fn awaited<M: Memory>(memory: &M, layout: &Layout, address: u64) -> Result<Option<u64>, Error> {
    if kind(memory, layout, address)?.is_some() {
        return Ok(Some(address));
    }
    if named(memory, layout, address, &WRAPPERS)?.is_none() {
        return Ok(None);
    }
    // The first field of each: `cw_coroutine`, `ags_gen`, `agt_gen`.
    let inner = memory.pointer(field(address, layout.object.size))?;
    Ok(kind(memory, layout, inner)?.map(|_| inner))
}

/// What kind of generator the object at `address` is, or `None` if it is none.
pub fn kind<M: Memory>(memory: &M, layout: &Layout, address: u64) -> Result<Option<Kind>, Error> {
    named(memory, layout, address, &KINDS)
}

/// What `table` says of the object's type.
fn named<M: Memory, T: Copy>(
    memory: &M,
    layout: &Layout,
    address: u64,
    table: &[(&str, T)],
) -> Result<Option<T>, Error> {
    let mut buffer = [0; MAX_NAME];
    let class = object::type_of(memory, layout, address)?;
    if !object::is_static(memory, layout, class)? {
        return Ok(None);
    }
    let name = memory.pointer(field(class, layout.type_object.tp_name))?;
    let name = text::read_c_string(memory, name, &mut buffer)?;
    let found = table.iter().find(|(known, _)| *known == name.text);
    Ok(found.filter(|_| !name.truncated).map(|(_, what)| *what))
}

type Reached = (Option<u64>, State, Option<bool>);

/// Up to 3.10 the generator points to its frame, until it has finished.
fn old_state<M: Memory>(memory: &M, layout: &Layout, address: u64) -> Result<Reached, Error> {
    let frame = memory.u64(field(address, layout.generator.gi_frame))?;
    if frame == 0 {
        return Ok((None, State::Finished, None));
    }
    let begun = memory.u32(field(frame, layout.frame.lasti))?.cast_signed() >= 0;
    let running = if layout.frame_object.f_state == ABSENT {
        memory.u8(field(address, layout.generator.gi_running))? != 0
    } else {
        memory.u8(field(frame, layout.frame_object.f_state))? == FRAME_EXECUTING
    };
    let state = match (running, begun) {
        (true, _) => State::Running,
        (false, true) => State::Suspended,
        (false, false) => State::Created,
    };
    Ok((Some(frame), state, None))
}

/// Since 3.11 the frame is part of the generator; 3.13 tells where it is
/// suspended.
fn new_state<M: Memory>(memory: &M, layout: &Layout, address: u64) -> Result<Reached, Error> {
    let at = &layout.generator;
    let raw = memory.u8(field(address, at.gi_frame_state))?.cast_signed();
    // `_PyCFrame` went when the states were split.
    let split = layout.tstate.frame_link == ABSENT;
    let (state, delegates) = match raw {
        0 => (State::Running, Some(false)),
        1 | 4 => (State::Finished, Some(false)),
        -1 if split => (State::Suspended, Some(true)),
        -2 if split => (State::Suspended, Some(false)),
        -3 if split => (State::Created, Some(false)),
        -1 => (State::Suspended, None),
        -2 => (State::Created, Some(false)),
        _ => return Err(Error::Malformed),
    };
    let frame = match state {
        State::Finished => None,
        _ => Some(field(address, at.gi_iframe)),
    };
    Ok((frame, state, delegates))
}

/// Up to 3.10: whether the instruction after the current one, which the frame
/// goes on with, is `YIELD_FROM`.
fn yields_from<M: Memory>(memory: &M, layout: &Layout, frame: u64) -> Result<bool, Error> {
    let code = frame::code(memory, layout, frame)?;
    let bytecode = memory.pointer(field(code, layout.code.co_code))?;
    let len = memory.u64(field(bytecode, layout.object.ob_size))?;
    let lasti = memory.u32(field(frame, layout.frame.lasti))?;
    let next = u64::from(lasti) * u64::from(layout.frame.lasti_unit) + INSTRUCTION;
    if next >= len {
        return Err(Error::Malformed);
    }
    let opcode = memory.u8(field(bytecode, layout.bytes.ob_sval).wrapping_add(next))?;
    Ok(opcode == YIELD_FROM)
}

/// 3.11 and 3.12: whether the `RESUME` that the frame goes on with says that
/// it comes after a `yield from` or an `await`.
fn resumes_delegating<M: Memory>(memory: &M, layout: &Layout, frame: u64) -> Result<bool, Error> {
    let instruction = memory.pointer(field(frame, layout.frame.lasti))?;
    let oparg = memory.u8(instruction.wrapping_add(INSTRUCTION + 1))?;
    Ok(oparg & RESUME_OPARG_LOCATION_MASK >= RESUME_AFTER_YIELD_FROM)
}

/// Where the evaluation stack of a suspended frame ends.
fn stack_top<M: Memory>(memory: &M, layout: &Layout, frame: u64) -> Result<u64, Error> {
    let at = &layout.frame;
    let stacktop = field(frame, at.stacktop);
    let (first, depth) = if at.valuestack != ABSENT {
        let first = memory.pointer(field(frame, at.valuestack))?;
        if layout.frame_object.f_state == ABSENT {
            return memory.pointer(stacktop);
        }
        (first, memory.u32(stacktop)?)
    } else if at.tag_bits != 0 {
        return memory.pointer(stacktop);
    } else {
        (field(frame, at.localsplus), memory.u32(stacktop)?)
    };
    if depth == 0 || depth > MAX_STACK {
        return Err(Error::Malformed);
    }
    Ok(first.wrapping_add(u64::from(depth) * 8))
}

const KINDS: [(&str, Kind); 3] = [
    ("generator", Kind::Generator),
    ("coroutine", Kind::Coroutine),
    ("async_generator", Kind::AsyncGenerator),
];

/// Types whose instances run a generator, which is their first field.
const WRAPPERS: [(&str, ()); 3] = [
    ("coroutine_wrapper", ()),
    ("async_generator_asend", ()),
    ("async_generator_athrow", ()),
];

/// `FRAME_EXECUTING` of 3.10's `f_state`.
const FRAME_EXECUTING: u8 = 0;
/// The opcode up to 3.10.
const YIELD_FROM: u8 = 72;
/// The low bits of `RESUME`'s argument (CPython's `pycore_opcode.h`, 3.11 and
/// 3.12): 0 a start, 1 after `yield`, 2 after `yield from`, 3 after `await`.
const RESUME_OPARG_LOCATION_MASK: u8 = 3;
const RESUME_AFTER_YIELD_FROM: u8 = 2;
/// Bytes of an instruction.
const INSTRUCTION: u64 = 2;
/// More slots than a frame has.
const MAX_STACK: u32 = 1 << 16;
/// Bytes of the longest name in [`WRAPPERS`], and a few.
const MAX_NAME: usize = 32;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::objects::CodeParts;
    use crate::fake::{Fake, for_each_layout};

    /// A generator of a type, with the address of its frame.
    fn generator(layout: &Layout, fake: &mut Fake, type_name: &str) -> (u64, u64) {
        let class = fake.class(layout, type_name, 0);
        let name = fake.string(layout, "work");
        let code = fake.code(layout, CodeParts::EMPTY);
        let address = fake.put(&[0; 512]);
        let at = &layout.generator;
        fake.put_u64(field(address, layout.object.ob_type), class);
        fake.put_u64(field(address, at.gi_name), name);
        fake.put_u64(field(address, at.gi_qualname), name);
        let frame = if at.gi_iframe == ABSENT {
            let (frame, _) = fake.frame_object(layout, code);
            fake.put_u64(field(address, at.gi_frame), frame);
            frame
        } else {
            field(address, at.gi_iframe)
        };
        fake.put_u64(field(frame, layout.frame.code), code);
        (address, frame)
    }

    /// Puts it into a state; suspended ones await `awaits` if it is not 0.
    fn set(layout: &Layout, fake: &mut Fake, of: (u64, u64), state: State, awaits: u64) {
        let (address, frame) = of;
        let (at, at_generator) = (&layout.frame, &layout.generator);
        let split = layout.tstate.frame_link == ABSENT;
        if at_generator.gi_iframe != ABSENT {
            let raw: i8 = match state {
                State::Running => 0,
                State::Finished => 4,
                State::Created if split => -3,
                State::Created => -2,
                State::Suspended if split && awaits == 0 => -2,
                State::Suspended => -1,
            };
            let raw = raw.cast_unsigned();
            fake.put_u8(field(address, at_generator.gi_frame_state), raw);
        } else if state == State::Finished {
            fake.put_u64(field(address, at_generator.gi_frame), 0);
            return;
        } else {
            let lasti: u64 = match state {
                State::Created => 0xffff_ffff,
                _ => 1,
            };
            fake.put_u64(field(frame, at.lasti), lasti);
            let running = state == State::Running;
            if layout.frame_object.f_state == ABSENT {
                let at = field(address, at_generator.gi_running);
                fake.put_u8(at, u8::from(running));
            } else {
                let raw = if running { 0 } else { 0xff };
                fake.put_u8(field(frame, layout.frame_object.f_state), raw);
            }
        }
        // What it goes on with, and one value on its stack.
        let code = frame::code(fake, layout, frame).expect("mapped");
        let stack = field(frame, at.localsplus) + 16;
        if layout.code.co_code != ABSENT {
            let bytecode = fake.u64(field(code, layout.code.co_code)).expect("mapped");
            let opcode = if awaits == 0 { 0 } else { YIELD_FROM };
            let next = u64::from(layout.frame.lasti_unit) + 2;
            fake.put_u8(field(bytecode, layout.bytes.ob_sval) + next, opcode);
            fake.put_u64(field(frame, at.valuestack), stack);
        } else {
            let first = field(code, layout.code.co_code_adaptive);
            fake.put_u64(field(frame, at.lasti), first);
            fake.put_u8(first + 3, if awaits == 0 { 5 } else { 7 });
        }
        fake.put_u64(stack, awaits | u64::from(at.tag_bits & 1));
        let top = if layout.code.co_code != ABSENT && layout.frame_object.f_state != ABSENT {
            1
        } else if layout.code.co_code != ABSENT || at.tag_bits != 0 {
            stack + 8
        } else {
            // Shares its word with a byte that is not read here.
            3
        };
        if top == 1 || top == 3 {
            fake.put_u8(field(frame, at.stacktop), top as u8);
        } else {
            fake.put_u64(field(frame, at.stacktop), top);
        }
    }

    #[test]
    fn tells_kind_and_state() {
        for_each_layout(|layout, fake| {
            for (name, kind) in KINDS {
                for state in [
                    State::Created,
                    State::Suspended,
                    State::Running,
                    State::Finished,
                ] {
                    let (address, frame) = generator(layout, fake, name);
                    set(layout, fake, (address, frame), state, 0);
                    let read = Generator::read(fake, layout, address).expect("reads");
                    assert_eq!((read.kind, read.state), (kind, state));
                    assert_eq!(read.frame.is_some(), state != State::Finished);
                    assert_eq!(read.awaits(fake, layout), Ok(None));
                }
            }
        });
    }

    #[test]
    fn tells_what_a_suspended_one_awaits() {
        for_each_layout(|layout, fake| {
            let (inner, _) = generator(layout, fake, "coroutine");
            let (address, frame) = generator(layout, fake, "coroutine");
            set(layout, fake, (address, frame), State::Suspended, inner);
            let read = Generator::read(fake, layout, address).expect("reads");
            assert_eq!(read.awaits(fake, layout), Ok(Some(inner)));
            assert_eq!(awaited(fake, layout, inner), Ok(Some(inner)));
            let class = fake.class(layout, "coroutine_wrapper", 0);
            let wrapper = fake.instance(class, layout);
            fake.put_u64(field(wrapper, layout.object.size), inner);
            assert_eq!(awaited(fake, layout, wrapper), Ok(Some(inner)));
            let other = fake.string(layout, "future");
            assert_eq!(awaited(fake, layout, other), Ok(None));
        });
    }

    #[test]
    fn refuses_states_that_do_not_exist_and_other_objects() {
        for_each_layout(|layout, fake| {
            let text = fake.string(layout, "text");
            assert_eq!(Generator::read(fake, layout, text), Err(Error::WrongType));
            let (address, _) = generator(layout, fake, "generator");
            if layout.generator.gi_frame_state != ABSENT {
                fake.put_u8(field(address, layout.generator.gi_frame_state), 99);
                let read = Generator::read(fake, layout, address);
                assert_eq!(read, Err(Error::Malformed));
            }
        });
    }

    #[test]
    fn garbage_never_panics() {
        for_each_layout(|layout, fake| {
            let (inner, _) = generator(layout, fake, "coroutine");
            let (address, frame) = generator(layout, fake, "coroutine");
            set(layout, fake, (address, frame), State::Suspended, inner);
            for near in [address, frame] {
                fake.each_corruption(near, |fake| {
                    if let Ok(read) = Generator::read(fake, layout, address) {
                        let _ = read.awaits(fake, layout);
                    }
                });
            }
        });
    }
}
