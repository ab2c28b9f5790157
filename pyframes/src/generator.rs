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
