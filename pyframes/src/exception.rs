//! Reads exceptions: arguments, traceback, notes, and what they were raised
//! from.
//!
//! The text of a message and of a stack trace is the caller's to make: here
//! are the objects.

use crate::attribute::instance_attribute;
use crate::code::Code;
use crate::layout::Layout;
use crate::object::{self, flag};
use crate::sequence::Sequence;
use crate::{Error, Memory, field, frame, line};

/// An exception that was read; addresses are those of objects in the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exception {
    /// The exception itself.
    pub address: u64,
    /// Its class.
    pub class: u64,
    /// `args`.
    pub args: Sequence,
    /// `__traceback__`: its outermost entry.
    pub traceback: Option<u64>,
    /// `__cause__`.
    pub cause: Option<u64>,
    /// `__context__`.
    pub context: Option<u64>,
    /// `__suppress_context__`.
    pub suppress_context: bool,
}

/// Why one exception is told with another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Link {
    /// It is the first.
    First,
    /// The one before it names it as its `__cause__`.
    Cause,
    /// The one before it was raised while this one was handled.
    Context,
}

/// An entry of a traceback.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Address of the frame's code object.
    pub code: u64,
    /// `tb_lasti`: the instruction's offset in bytes, or `None` if the frame
    /// had not begun.
    pub lasti: Option<u32>,
    /// `tb_lineno`, or `None` if CPython would still compute it from `lasti`
    /// (since 3.12).
    lineno: Option<u32>,
}

impl Exception {
    /// Reads the exception at `address`.
    pub fn read<M: Memory>(memory: &M, layout: &Layout, address: u64) -> Result<Self, Error> {
        let class = object::type_of(memory, layout, address)?;
        object::check_flag(memory, layout, class, flag::EXCEPTION_SUBCLASS)?;
        let at = &layout.exception;
        let optional = |offset| {
            let pointer = memory.u64(field(address, offset))?;
            Ok((pointer != 0).then_some(pointer))
        };
        let args = memory.pointer(field(address, at.args))?;
        Ok(Self {
            address,
            class,
            args: Sequence::open(memory, layout, args)?,
            traceback: optional(at.traceback)?,
            cause: optional(at.cause)?,
            context: optional(at.context)?,
            suppress_context: memory.u8(field(address, at.suppress_context))? != 0,
        })
    }

    /// The entries of its traceback, the outermost first.
    pub fn traceback<'m, M: Memory>(&self, memory: &'m M, layout: &'m Layout) -> Traceback<'m, M> {
        traceback(memory, layout, self.traceback)
    }

    /// `__notes__`, a list or tuple; empty if there are none (up to 3.10 none
    /// are shown, but an application may have set them).
    pub fn notes<M: Memory>(&self, memory: &M, layout: &Layout) -> Result<Sequence, Error> {
        match instance_attribute(memory, layout, self.address, "__notes__")? {
            Some(notes) => Sequence::open(memory, layout, notes),
            None => Ok(Sequence::EMPTY),
        }
    }

    /// The exception that Python prints above this one, and why: its cause, or
    /// unless that is suppressed its context.
    pub fn origin(&self) -> Option<(Link, u64)> {
        match (self.cause, self.context) {
            (Some(cause), _) => Some((Link::Cause, cause)),
            (None, Some(context)) if !self.suppress_context => Some((Link::Context, context)),
            _ => None,
        }
    }
}

/// The exception at `address` and those that it came from, the last raised
/// first.
///
/// Ends before an exception that was told already, as Python's printing does.
pub fn chain<'m, M: Memory>(memory: &'m M, layout: &'m Layout, address: u64) -> Chain<'m, M> {
    Chain {
        memory,
        layout,
        next: Some((Link::First, address)),
        seen: [0; MAX_CHAIN],
        n_seen: 0,
    }
}

/// Exceptions that came from each other; ends after an error.
#[derive(Debug)]
pub struct Chain<'m, M> {
    memory: &'m M,
    layout: &'m Layout,
    next: Option<(Link, u64)>,
    seen: [u64; MAX_CHAIN],
    n_seen: usize,
}

impl<M: Memory> Iterator for Chain<'_, M> {
    type Item = Result<(Link, Exception), Error>;

    fn next(&mut self) -> Option<Self::Item> {
        let (link, address) = self.next.take()?;
        if self.seen.get(..self.n_seen)?.contains(&address) {
            return None;
        }
        match self.seen.get_mut(self.n_seen) {
            None => return Some(Err(Error::TooLong)),
            Some(seen) => *seen = address,
        }
        self.n_seen += 1;
        let read = Exception::read(self.memory, self.layout, address);
        Some(read.map(|exception| {
            self.next = exception.origin();
            (link, exception)
        }))
    }
}

/// The traceback whose outermost entry is the object at `address`.
pub fn traceback<'m, M: Memory>(
    memory: &'m M,
    layout: &'m Layout,
    address: Option<u64>,
) -> Traceback<'m, M> {
    Traceback {
        memory,
        layout,
        next: address.unwrap_or(0),
        left: MAX_ENTRIES,
    }
}

/// The entries of a traceback; ends after an error.
#[derive(Debug)]
pub struct Traceback<'m, M> {
    memory: &'m M,
    layout: &'m Layout,
    next: u64,
    left: u32,
}

impl<M: Memory> Traceback<'_, M> {
    fn read(&mut self) -> Result<Option<Entry>, Error> {
        let address = core::mem::take(&mut self.next);
        if address == 0 {
            return Ok(None);
        }
        self.left = self.left.checked_sub(1).ok_or(Error::TooLong)?;
        let at = &self.layout.traceback;
        let number = |offset| {
            let number = self.memory.u32(field(address, offset))?;
            Ok(u32::try_from(number.cast_signed()).ok())
        };
        let object = self.memory.pointer(field(address, at.tb_frame))?;
        let at_frame = frame::of_object(self.memory, self.layout, object)?;
        let entry = Entry {
            code: frame::code(self.memory, self.layout, at_frame)?,
            lasti: number(at.tb_lasti)?,
            lineno: number(at.tb_lineno)?,
        };
        self.next = self.memory.u64(field(address, at.tb_next))?;
        Ok(Some(entry))
    }
}

impl<M: Memory> Iterator for Traceback<'_, M> {
    type Item = Result<Entry, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        self.read().transpose()
    }
}

impl Entry {
    /// The line, or `None` if the instruction belongs to none. `code` is the
    /// code object at [`Entry::code`].
    pub fn line<M: Memory>(
        &self,
        memory: &M,
        layout: &Layout,
        code: &Code,
    ) -> Result<Option<u32>, Error> {
        match self.lineno {
            Some(lineno) => Ok(Some(lineno)),
            None => line::line(memory, layout, code, self.lasti),
        }
    }
}

/// Longest chain of exceptions that is followed.
const MAX_CHAIN: usize = 64;

/// More entries than a traceback has: it grows by one a frame, and
/// `sys.getrecursionlimit()` is 1,000.
const MAX_ENTRIES: u32 = 1 << 16;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::for_each_layout;
    use crate::fake::objects::CodeParts;
    use std::vec::Vec;

    fn links(memory: &crate::fake::Fake, layout: &Layout, address: u64) -> Vec<(Link, u64)> {
        chain(memory, layout, address)
            .map(|linked| linked.map(|(link, exception)| (link, exception.address)))
            .collect::<Result<_, _>>()
            .expect("reads")
    }

    #[test]
    fn follows_causes_and_contexts_as_python_prints_them() {
        for_each_layout(|layout, fake| {
            let at = &layout.exception;
            let [first, cause, context] = [(); 3].map(|()| fake.exception(layout, &[5]));
            fake.put_u64(field(first, at.context), context);
            let found = links(fake, layout, first);
            assert_eq!(found, [(Link::First, first), (Link::Context, context)]);
            fake.put_u8(field(first, at.suppress_context), 1);
            assert_eq!(links(fake, layout, first), [(Link::First, first)]);
            fake.put_u64(field(first, at.cause), cause);
            let found = links(fake, layout, first);
            assert_eq!(found, [(Link::First, first), (Link::Cause, cause)]);
            // In a circle.
            fake.put_u64(field(cause, at.context), first);
            assert_eq!(links(fake, layout, first), found);
            let read = Exception::read(fake, layout, first).expect("reads");
            assert_eq!(read.args.get(fake, 0), Ok(5));
        });
    }

    #[test]
    fn a_chain_beyond_the_bound_is_too_long() {
        for_each_layout(|layout, fake| {
            let first = fake.exception(layout, &[]);
            let mut last = first;
            for _ in 0..MAX_CHAIN {
                let next = fake.exception(layout, &[]);
                fake.put_u64(field(last, layout.exception.context), next);
                last = next;
            }
            let read: Vec<_> = chain(fake, layout, first).collect();
            assert_eq!(read.len(), MAX_CHAIN + 1);
            assert!(matches!(read.last(), Some(Err(Error::TooLong))));
        });
    }

    #[test]
    fn lists_the_entries_of_a_traceback() {
        for_each_layout(|layout, fake| {
            let parts = CodeParts {
                linetable: &[],
                ..CodeParts::EMPTY
            };
            let code = fake.code(layout, parts);
            let (object, _) = fake.frame_object(layout, code);
            let inner = fake.traceback(layout, 0, object, 12);
            let outer = fake.traceback(layout, inner, object, 11);
            let exception = fake.exception(layout, &[]);
            fake.put_u64(field(exception, layout.exception.traceback), outer);
            let read = Exception::read(fake, layout, exception).expect("reads");
            let code = Code::read(fake, layout, code).expect("reads");
            let lines: Vec<_> = read
                .traceback(fake, layout)
                .map(|entry| {
                    let entry = entry.expect("reads");
                    assert_eq!((entry.code, entry.lasti), (code.address, Some(2)));
                    entry.line(fake, layout, &code)
                })
                .collect();
            assert_eq!(lines, [Ok(Some(11)), Ok(Some(12))]);
            // One that runs in a circle ends.
            fake.put_u64(field(inner, layout.traceback.tb_next), outer);
            let last = read.traceback(fake, layout).last();
            assert_eq!(last, Some(Err(Error::TooLong)));
        });
    }

    #[test]
    fn a_line_that_is_not_stored_follows_from_the_instruction() {
        for_each_layout(|layout, fake| {
            let parts = CodeParts {
                // Each version reads it as line 10, the first.
                linetable: &[0x80 | 12, 0x80 | 10 << 3 | 7][..],
                ..CodeParts::EMPTY
            };
            let code = fake.code(layout, parts);
            let (object, _) = fake.frame_object(layout, code);
            let entry = fake.traceback(layout, 0, object, u32::MAX);
            let entry = traceback(fake, layout, Some(entry)).next();
            let entry = entry.expect("an entry").expect("reads");
            assert_eq!(entry.lineno, None);
            let code = Code::read(fake, layout, code).expect("reads");
            let expected = line::line(fake, layout, &code, Some(2));
            assert_eq!(entry.line(fake, layout, &code), expected);
        });
    }

    #[test]
    fn refuses_what_is_no_exception() {
        for_each_layout(|layout, fake| {
            let text = fake.string(layout, "text");
            assert_eq!(Exception::read(fake, layout, text), Err(Error::WrongType));
        });
    }

    #[test]
    fn garbage_never_panics() {
        for_each_layout(|layout, fake| {
            let first = fake.exception(layout, &[5]);
            let second = fake.exception(layout, &[5]);
            fake.put_u64(field(first, layout.exception.context), second);
            let code = fake.code(layout, CodeParts::EMPTY);
            let (object, _) = fake.frame_object(layout, code);
            let entry = fake.traceback(layout, 0, object, 11);
            fake.put_u64(field(second, layout.exception.traceback), entry);
            fake.each_corruption(first, |fake| {
                for (_, exception) in chain(fake, layout, first).flatten() {
                    let _ = exception.notes(fake, layout);
                    let _ = exception.traceback(fake, layout).count();
                }
            });
        });
    }
}
