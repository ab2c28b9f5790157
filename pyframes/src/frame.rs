//! Walks the Python frames of a thread, innermost first.
//!
//! One walker for the kernel, the agent and the tests. It costs at most one
//! read a frame and mostly less ([`Windows`]), allocates nothing, and has a
//! shape that the kernel's verifier follows. How many frames to follow is the
//! caller's to bound, which also ends a chain that runs in a circle.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::layout::{ABSENT, Layout};
use crate::window::{Kind, Windows};
use crate::{Error, Memory, field};

/// A frame that runs Python code.
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct Frame {
    /// Address of the frame: of its `PyFrameObject` up to 3.10, of its
    /// `_PyInterpreterFrame` since.
    pub address: u64,
    /// Address of its code object.
    pub code: u64,
    /// Its current instruction as the frame has it: an address, or `f_lasti`
    /// up to 3.10, sign-extended. [`crate::layout::Frame::lasti_unit`] tells
    /// which.
    pub instruction: u64,
    /// `owner`: who the frame's memory belongs to; 0 up to 3.10.
    pub owner: u64,
}

impl Frame {
    /// [`Frame::owner`] of a frame that is part of a generator or coroutine
    /// (`FRAME_OWNED_BY_GENERATOR`, 3.11 to 3.14).
    pub const OWNED_BY_GENERATOR: u64 = 1;
}

/// What [`Walker::advance`] came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Advance {
    /// A frame of Python code: [`Walker::frame`].
    Frame,
    /// A frame of the interpreter's own, of no interest.
    Shim,
    /// The chain is at its end.
    End,
    /// The next frame cannot be read.
    Unreadable,
}

/// Follows a chain of frames outwards.
///
/// From 3.11 on the frames of functions that call each other stand one behind
/// the other in the interpreter's own stack, those of generators and
/// coroutines are part of these, and where C code calls Python, a frame of the
/// interpreter's own stands on the C stack.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Walker {
    /// Where [`Walker::advance`] has come to.
    pub frame: Frame,
    /// How many of the frame's first variables were read with it, see
    /// [`near_locals`].
    pub near: u64,
    /// The next frame, or 0.
    next: u64,
    /// The last frame in the interpreter's stack, or 0.
    stack: u64,
    /// The last frame of the interpreter's own, or 0.
    shim: u64,
}

impl Default for Walker {
    fn default() -> Self {
        Self::new()
    }
}

impl Walker {
    /// A walker that is at its end until it is started.
    pub const fn new() -> Self {
        Self {
            frame: Frame {
                address: 0,
                code: 0,
                instruction: 0,
                owner: 0,
            },
            near: 0,
            next: 0,
            stack: 0,
            shim: 0,
        }
    }

    /// Starts at the innermost frame of the thread whose `PyThreadState` is
    /// at `tstate`. A thread that runs no Python code has no frames.
    #[inline(always)]
    pub fn start<M: Memory>(
        &mut self,
        memory: &M,
        layout: &Layout,
        tstate: u64,
        windows: &mut Windows,
    ) -> Result<(), Error> {
        self.start_at(0);
        let at = &layout.tstate;
        let mut frame = windows.u64(memory, Kind::Object, field(tstate, at.frame))?;
        if at.frame_link != ABSENT && frame != 0 {
            // In the frame of the C function that runs Python code.
            self.shim = frame;
            frame = windows.u64(memory, Kind::Shims, field(frame, at.frame_link))?;
        }
        self.next = frame;
        Ok(())
    }

    /// Starts at a frame, as [`Frame::address`] has it.
    #[inline(always)]
    pub fn start_at(&mut self, frame: u64) {
        self.next = frame;
        self.stack = 0;
        self.shim = 0;
    }

    /// The next frame of Python code, or none at the end of the chain.
    ///
    /// Frames of the interpreter's own are passed over, of which a few follow
    /// each other at most.
    pub fn step<M: Memory>(
        &mut self,
        memory: &M,
        layout: &Layout,
        windows: &mut Windows,
    ) -> Result<Option<Frame>, Error> {
        for _ in 0..MAX_SHIMS {
            match self.advance(memory, layout, windows) {
                Advance::Frame => return Ok(Some(self.frame)),
                Advance::Shim => {}
                Advance::End => return Ok(None),
                Advance::Unreadable => return Err(Error::Unreadable),
            }
        }
        Err(Error::TooLong)
    }

    /// Reads one frame: [`Walker::step`] in smaller steps, without a loop.
    /// After a frame that cannot be read the chain is at its end.
    #[inline(always)]
    pub fn advance<M: Memory>(
        &mut self,
        memory: &M,
        layout: &Layout,
        windows: &mut Windows,
    ) -> Advance {
        let address = self.next;
        if address == 0 {
            return Advance::End;
        }
        self.next = 0;
        let at = &layout.frame;
        let old = at.owner == ABSENT;
        let kind = self.kind(address, old);
        let count = if old { OLD_HEAD_WORDS } else { NEAR_WORDS };
        self.near = if old { 0 } else { NEAR_LOCALS as u64 };
        if windows.find(memory, kind, address, count).is_err() {
            // The last frame before what is not mapped, perhaps.
            self.near = 0;
            if old || windows.find(memory, kind, address, HEAD_WORDS).is_err() {
                return Advance::Unreadable;
            }
        }
        self.next = windows.word(at.back);
        let owner = if old {
            0
        } else {
            windows.word(at.owner) >> (at.owner % 8 * 8) & 0xff
        };
        let code = windows.word(at.code) & !u64::from(at.tag_bits);
        let instruction = windows.word(at.lasti);
        self.frame = Frame {
            address,
            code,
            instruction: if at.lasti_unit == 0 {
                instruction
            } else {
                i64::from(instruction as i32).cast_unsigned()
            },
            owner,
        };
        // Without shims the bound is `ABSENT`, which no byte reaches.
        if owner >= u64::from(at.shim_owner) || code == 0 {
            self.shim = address;
            Advance::Shim
        } else {
            if owner == OWNED_BY_THREAD && !old {
                self.stack = address;
            }
            Advance::Frame
        }
    }

    /// What is around the frame at `address`.
    #[inline(always)]
    fn kind(&self, address: u64, old: bool) -> Kind {
        if old {
            Kind::Object
        } else if self.stack == 0 || address.abs_diff(self.stack) < REACH {
            Kind::Stack
        } else if address.abs_diff(self.shim) < REACH {
            Kind::Shims
        } else {
            Kind::Object
        }
    }
}

/// The innermost frame of the thread whose `PyThreadState` is at `tstate`, or
/// 0 if it runs no Python code.
#[inline(always)]
pub fn innermost<M: Memory>(memory: &M, layout: &Layout, tstate: u64) -> Result<u64, Error> {
    let frame = memory.u64(field(tstate, layout.tstate.frame))?;
    if layout.tstate.frame_link == ABSENT || frame == 0 {
        return Ok(frame);
    }
    memory.u64(field(frame, layout.tstate.frame_link))
}

/// Where the frame at `frame` stands: another number is another instruction.
/// The lower half of an address, or `f_lasti`. It stays the same while what the
/// frame calls goes on.
#[inline(always)]
pub fn standing<M: Memory>(memory: &M, layout: &Layout, frame: u64) -> Result<u32, Error> {
    memory.u32(field(frame, layout.frame.lasti))
}

/// The code object of the frame at `frame`, or 0 if the frame is the
/// interpreter's own, and the frame that called it, or 0.
///
/// For a few frames at a time; a whole stack is a [`Walker`]'s.
#[inline(always)]
pub fn code_and_back<M: Memory>(
    memory: &M,
    layout: &Layout,
    frame: u64,
) -> Result<(u64, u64), Error> {
    let at = &layout.frame;
    let back = memory.u64(field(frame, at.back))?;
    if at.owner != ABSENT && u32::from(memory.u8(field(frame, at.owner))?) >= at.shim_owner {
        return Ok((0, back));
    }
    let code = memory.u64(field(frame, at.code))? & !u64::from(at.tag_bits);
    Ok((code, back))
}

/// The object that slot number `slot` of a frame's `f_localsplus` holds, or
/// `None` if the variable is not bound. A cell is told as the cell.
#[inline(always)]
pub fn local<M: Memory>(
    memory: &M,
    layout: &Layout,
    frame: u64,
    slot: u32,
) -> Result<Option<u64>, Error> {
    object(layout, memory.u64(variable(layout, frame, slot))?)
}

/// [`local`], with the memory that is read around it.
#[inline(always)]
pub fn local_in<M: Memory>(
    memory: &M,
    layout: &Layout,
    frame: u64,
    slot: u32,
    windows: &mut Windows,
) -> Result<Option<u64>, Error> {
    let at = variable(layout, frame, slot);
    object(layout, windows.u64(memory, Kind::Object, at)?)
}

/// Where a frame has a variable.
#[inline(always)]
fn variable(layout: &Layout, frame: u64, slot: u32) -> u64 {
    field(frame, layout.frame.localsplus).wrapping_add(u64::from(slot) * 8)
}

/// The first variables of the frame that [`Walker::advance`] has just come to,
/// as the frame has them; as many as [`Walker::near`] says are right.
#[inline(always)]
pub fn near_locals(layout: &Layout, windows: &Windows, into: &mut [u64; NEAR_LOCALS]) {
    for (number, local) in (0..).zip(into) {
        *local = windows.word(layout.frame.localsplus + number * 8);
    }
}

/// The object that a variable's value stands for, or `None` if it is not
/// bound.
#[inline(always)]
pub fn object(layout: &Layout, value: u64) -> Result<Option<u64>, Error> {
    let tag = u64::from(layout.frame.tag_bits);
    // Both bits of a `_PyStackRef` mark a number, which the evaluation stack
    // has and no variable (3.14).
    if tag != 0 && value & tag == tag {
        return Err(Error::WrongType);
    }
    let value = value & !tag;
    Ok((value != 0).then_some(value))
}

/// The address of the frame, as [`Frame::address`] has it, that the
/// `PyFrameObject` at `object` stands for.
#[inline(always)]
pub fn of_object<M: Memory>(memory: &M, layout: &Layout, object: u64) -> Result<u64, Error> {
    if layout.frame_object.f_frame == ABSENT {
        return Ok(object);
    }
    memory.pointer(field(object, layout.frame_object.f_frame))
}

/// The code object of the frame at `frame`.
#[inline(always)]
pub fn code<M: Memory>(memory: &M, layout: &Layout, frame: u64) -> Result<u64, Error> {
    let code = memory.u64(field(frame, layout.frame.code))? & !u64::from(layout.frame.tag_bits);
    if code == 0 {
        Err(Error::Null)
    } else {
        Ok(code)
    }
}

/// Words of a `PyFrameObject` up to `f_lasti` (3.8), and more.
const OLD_HEAD_WORDS: u64 = 16;
/// Words of an `_PyInterpreterFrame` up to `f_localsplus` (3.14t), which every
/// frame has: one without variables has an evaluation stack.
const HEAD_WORDS: u64 = 10;
/// Variables that are read with it; a power of two, for masks.
pub const NEAR_LOCALS: usize = 4;
/// Words of it with these.
const NEAR_WORDS: u64 = HEAD_WORDS + NEAR_LOCALS as u64;
/// `owner` of a frame in the interpreter's stack (`FRAME_OWNED_BY_THREAD`,
/// 3.11 to 3.14).
const OWNED_BY_THREAD: u64 = 0;
/// Frames nearer to each other than this lie in the same stack.
const REACH: u64 = 1 << 14;
/// More frames of the interpreter's own than ever follow each other: the one
/// of a call from C and, in 3.14, the thread's base.
const MAX_SHIMS: u32 = 8;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::{Fake, for_each_layout};
    use core::cell::Cell;
    use std::vec::Vec;

    /// A frame that is called from `back`.
    fn frame(fake: &mut Fake, layout: &Layout, back: u64, code: u64, locals: &[u64]) -> u64 {
        let at = &layout.frame;
        let address = fake.put(&[0xee; 512]);
        fake.put_u64(field(address, at.back), back);
        fake.put_u64(field(address, at.code), code | u64::from(at.tag_bits & 1));
        fake.put_u64(field(address, at.lasti), 0x1_0000_0000 + code + 8);
        if at.owner != ABSENT {
            fake.put_u8(field(address, at.owner), 0);
        }
        for (slot, local) in (0..).zip(locals) {
            fake.put_u64(field(address, at.localsplus) + slot * 8, *local);
        }
        address
    }

    fn thread(fake: &mut Fake, layout: &Layout, innermost: u64) -> u64 {
        let tstate = fake.put(&[0; 512]);
        if layout.tstate.frame_link == ABSENT {
            fake.put_u64(field(tstate, layout.tstate.frame), innermost);
        } else {
            let link = fake.put(&[0; 64]);
            fake.put_u64(field(tstate, layout.tstate.frame), link);
            fake.put_u64(field(link, layout.tstate.frame_link), innermost);
        }
        tstate
    }

    fn walk(fake: &Fake, layout: &Layout, tstate: u64, limit: usize) -> Result<Vec<u64>, Error> {
        let mut walker = Walker::new();
        let mut windows = Windows::new();
        walker.start(fake, layout, tstate, &mut windows)?;
        let mut codes = Vec::new();
        while codes.len() < limit {
            match walker.step(fake, layout, &mut windows)? {
                Some(frame) => codes.push(frame.code),
                None => break,
            }
        }
        Ok(codes)
    }

    #[test]
    fn walks_from_the_innermost_frame_to_the_outermost() {
        for_each_layout(|layout, fake| {
            let mut outer = 0;
            for code in 1..=40 {
                outer = frame(fake, layout, outer, code * 0x1000, &[]);
            }
            let tstate = thread(fake, layout, outer);
            let expected: Vec<u64> = (1..=40).rev().map(|code| code * 0x1000).collect();
            assert_eq!(walk(fake, layout, tstate, 100), Ok(expected));
        });
    }

    #[test]
    fn tells_instruction_and_address() {
        for_each_layout(|layout, fake| {
            let address = frame(fake, layout, 0, 0x1000, &[]);
            let mut walker = Walker::new();
            walker.start_at(address);
            let instruction = if layout.frame.lasti_unit == 0 {
                0x1_0000_1008
            } else {
                0x1008
            };
            assert_eq!(
                walker.step(fake, layout, &mut Windows::new()),
                Ok(Some(Frame {
                    address,
                    code: 0x1000,
                    instruction,
                    owner: 0
                }))
            );
            assert_eq!(walker.step(fake, layout, &mut Windows::new()), Ok(None));
            // A frame that has not begun.
            if layout.frame.lasti_unit != 0 {
                fake.put_u64(field(address, layout.frame.lasti), 0xffff_ffff);
                walker.start_at(address);
                let found = walker
                    .step(fake, layout, &mut Windows::new())
                    .map(|found| found.unwrap());
                assert_eq!(found.map(|found| found.instruction), Ok(u64::MAX));
            }
        });
    }

    #[test]
    fn passes_over_frames_of_the_interpreter() {
        for_each_layout(|layout, fake| {
            let base = frame(fake, layout, 0, 0x1000, &[]);
            let outer = frame(fake, layout, base, 0x2000, &[]);
            let shim = frame(fake, layout, outer, 0x3000, &[]);
            let inner = frame(fake, layout, shim, 0x4000, &[]);
            let mut expected = Vec::from([0x4000, 0x3000, 0x2000, 0x1000]);
            if layout.frame.shim_owner == ABSENT {
                fake.put_u64(field(shim, layout.frame.code), 0);
                fake.put_u64(field(base, layout.frame.code), 0);
            } else {
                fake.put_u8(field(shim, layout.frame.owner), 3);
                fake.put_u8(field(base, layout.frame.owner), 4);
            }
            if layout.frame.owner != ABSENT {
                fake.put_u8(field(outer, layout.frame.owner), 1);
            }
            expected.retain(|code| *code == 0x4000 || *code == 0x2000);
            let tstate = thread(fake, layout, inner);
            assert_eq!(walk(fake, layout, tstate, 100), Ok(expected));
        });
    }

    #[test]
    fn a_thread_without_python_code_has_no_frames() {
        for_each_layout(|layout, fake| {
            let tstate = thread(fake, layout, 0);
            assert_eq!(walk(fake, layout, tstate, 100), Ok(Vec::new()));
            fake.put_u64(field(tstate, layout.tstate.frame), 0);
            assert_eq!(walk(fake, layout, tstate, 100), Ok(Vec::new()));
        });
    }

    #[test]
    fn an_unreadable_frame_ends_the_walk() {
        for_each_layout(|layout, fake| {
            let outer = frame(fake, layout, 0xdead_0000, 0x1000, &[]);
            let mut walker = Walker::new();
            walker.start_at(outer);
            assert!(
                walker
                    .step(fake, layout, &mut Windows::new())
                    .is_ok_and(|frame| frame.is_some())
            );
            assert_eq!(
                walker.step(fake, layout, &mut Windows::new()),
                Err(Error::Unreadable)
            );
            assert_eq!(walker.step(fake, layout, &mut Windows::new()), Ok(None));
        });
    }

    #[test]
    fn a_circle_of_shims_ends() {
        for_each_layout(|layout, fake| {
            let address = frame(fake, layout, 0, 0, &[]);
            fake.put_u64(field(address, layout.frame.code), 0);
            fake.put_u64(field(address, layout.frame.back), address);
            let mut walker = Walker::new();
            walker.start_at(address);
            assert_eq!(
                walker.step(fake, layout, &mut Windows::new()),
                Err(Error::TooLong)
            );
        });
    }

    #[test]
    fn a_circle_of_frames_is_the_callers_to_end() {
        for_each_layout(|layout, fake| {
            let address = frame(fake, layout, 0, 0x1000, &[]);
            fake.put_u64(field(address, layout.frame.back), address);
            let tstate = thread(fake, layout, address);
            assert_eq!(
                walk(fake, layout, tstate, 64).map(|codes| codes.len()),
                Ok(64)
            );
        });
    }

    #[test]
    fn reads_variables_and_tells_those_without_a_value() {
        for_each_layout(|layout, fake| {
            let tag = u64::from(layout.frame.tag_bits & 1);
            let address = frame(fake, layout, 0, 0x1000, &[0x5000, 0x6000 | tag, tag, 0]);
            assert_eq!(local(fake, layout, address, 0), Ok(Some(0x5000)));
            assert_eq!(local(fake, layout, address, 1), Ok(Some(0x6000)));
            assert_eq!(local(fake, layout, address, 2), Ok(None));
            assert_eq!(local(fake, layout, address, 3), Ok(None));
            assert_eq!(
                local(fake, layout, address, u32::MAX),
                Err(Error::Unreadable)
            );
            if layout.frame.tag_bits != 0 {
                fake.put_u64(field(address, layout.frame.localsplus), 7);
                assert_eq!(local(fake, layout, address, 0), Err(Error::WrongType));
            }
        });
    }

    #[test]
    fn goes_from_a_frame_object_to_its_frame_and_code() {
        for_each_layout(|layout, fake| {
            let address = frame(fake, layout, 0, 0x1000, &[]);
            let object = if layout.frame_object.f_frame == ABSENT {
                address
            } else {
                let object = fake.put(&[0; 128]);
                fake.put_u64(field(object, layout.frame_object.f_frame), address);
                object
            };
            assert_eq!(of_object(fake, layout, object), Ok(address));
            assert_eq!(code(fake, layout, address), Ok(0x1000));
            fake.put_u64(field(address, layout.frame.code), 0);
            assert_eq!(code(fake, layout, address), Err(Error::Null));
        });
    }

    #[test]
    fn every_head_is_within_what_is_read() {
        for (_, layout) in &crate::layout::LAYOUTS {
            let at = &layout.frame;
            let words = if at.owner == ABSENT {
                OLD_HEAD_WORDS
            } else {
                assert!(u64::from(at.owner) < HEAD_WORDS * 8);
                HEAD_WORDS
            };
            for offset in [at.code, at.back, at.lasti] {
                assert_eq!(offset % 8, 0);
                assert!(u64::from(offset) < words * 8);
            }
            assert!(u64::from(at.localsplus) + 8 >= HEAD_WORDS * 8);
        }
    }

    /// Counts reads.
    struct Counting<'f>(&'f Fake, Cell<u32>);

    impl Memory for Counting<'_> {
        fn read(&self, address: u64, into: &mut [u8]) -> bool {
            self.1.set(self.1.get() + 1);
            self.0.read(address, into)
        }
    }

    #[test]
    fn frames_that_stand_close_are_read_together() {
        for_each_layout(|layout, fake| {
            // Addresses grow from the outermost to the innermost frame, as
            // they do on a thread's stack of frames.
            let mut outer = 0;
            for code in 1..=40 {
                outer = frame(fake, layout, outer, code * 0x1000, &[]);
            }
            let memory = Counting(fake, Cell::new(0));
            let mut windows = Windows::new();
            let mut walker = Walker::new();
            walker.start_at(outer);
            for code in (1..=40).rev() {
                let found = walker.step(&memory, layout, &mut windows);
                assert_eq!(found.map(|frame| frame.unwrap().code), Ok(code * 0x1000));
            }
            assert_eq!(walker.step(&memory, layout, &mut windows), Ok(None));
            // Two frames of the test's fill a window; those that are objects
            // stand anywhere.
            let most = if layout.frame.owner == ABSENT { 40 } else { 24 };
            assert!(memory.1.get() <= most, "{}", memory.1.get());
            assert_eq!(windows.reads(), u64::from(memory.1.get()));
        });
    }

    #[test]
    fn a_frame_at_an_odd_address_is_read_by_itself() {
        for_each_layout(|layout, fake| {
            let inner = frame(fake, layout, 0, 0x1000, &[]);
            let outer = frame(fake, layout, 0, 0x2000, &[]);
            // The same frame again, four bytes further.
            let mut head = [0; 256];
            assert!(fake.read(outer, &mut head));
            let shifted = fake.put(&[0; 512]) + 4;
            for (offset, byte) in (0..).zip(head) {
                fake.put_u8(shifted + offset, byte);
            }
            fake.put_u64(field(inner, layout.frame.back), shifted);
            let mut walker = Walker::new();
            walker.start_at(inner);
            let codes = [0x1000, 0x2000].map(|_| {
                let found = walker.step(fake, layout, &mut Windows::new());
                found.map(|frame| frame.unwrap().code)
            });
            assert_eq!(codes, [Ok(0x1000), Ok(0x2000)]);
        });
    }

    #[test]
    fn garbage_never_panics() {
        for_each_layout(|layout, fake| {
            let outer = frame(fake, layout, 0, 0x1000, &[]);
            let inner = frame(fake, layout, outer, 0x2000, &[]);
            let tstate = thread(fake, layout, inner);
            for address in [tstate, inner] {
                fake.each_corruption(address, |fake| {
                    let _ = walk(fake, layout, tstate, 64);
                });
            }
        });
    }
}
