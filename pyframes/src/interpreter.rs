//! Reads the interpreter's own state: its threads and its modules.

use crate::dict::Dict;
use crate::layout::Layout;
use crate::{Error, Memory, field};

/// Whether the interpreter has been initialized and has not ended.
///
/// `runtime` is the address of `_PyRuntime`. Before and after, everything else
/// may be half done.
pub fn is_initialized<M: Memory>(memory: &M, layout: &Layout, runtime: u64) -> Result<bool, Error> {
    match memory.u32(field(runtime, layout.runtime.initialized))? {
        0 => Ok(false),
        1 => Ok(true),
        _ => Err(Error::Malformed),
    }
}

/// Address of the first interpreter, or `None` while there is none.
///
/// `runtime` is the address of `_PyRuntime`.
pub fn main_interpreter<M: Memory>(
    memory: &M,
    layout: &Layout,
    runtime: u64,
) -> Result<Option<u64>, Error> {
    let main = memory.u64(field(runtime, layout.runtime.interpreters_main))?;
    Ok((main != 0).then_some(main))
}

/// `autoTSSkey` of the runtime: the pthread key, or `None` while it has not
/// been created.
///
/// `offset` is the layout's for the machine and its C library.
pub fn auto_tss_key<M: Memory>(
    memory: &M,
    runtime: u64,
    offset: u32,
) -> Result<Option<u32>, Error> {
    let at = field(runtime, offset);
    match memory.u32(at)? {
        0 => Ok(None),
        1 => memory.u32(at.wrapping_add(4)).map(Some),
        _ => Err(Error::Malformed),
    }
}

/// The thread states of an interpreter, newest first.
pub fn threads<'m, M: Memory>(
    memory: &'m M,
    layout: &'m Layout,
    interpreter: u64,
) -> Threads<'m, M> {
    Threads {
        memory,
        layout,
        interpreter,
        link: Some(field(interpreter, layout.interpreter.threads_head)),
        left: MAX_THREADS,
    }
}

/// `sys.modules` of an interpreter.
pub fn modules<M: Memory>(memory: &M, layout: &Layout, interpreter: u64) -> Result<Dict, Error> {
    let modules = memory.pointer(field(interpreter, layout.interpreter.modules))?;
    Dict::open(memory, layout, modules)
}

/// A thread state: where it is and whose it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Thread {
    /// Address of the `PyThreadState`.
    pub address: u64,
    /// `thread_id`, or 0 while no thread has taken it.
    pub thread_id: u64,
}

/// The thread states of an interpreter; ends after an error.
#[derive(Debug)]
pub struct Threads<'m, M> {
    memory: &'m M,
    layout: &'m Layout,
    interpreter: u64,
    /// Where the address of the next one stands.
    link: Option<u64>,
    left: u32,
}

impl<M: Memory> Threads<'_, M> {
    fn read(&mut self, link: u64) -> Result<Option<Thread>, Error> {
        let address = self.memory.u64(link)?;
        if address == 0 {
            return Ok(None);
        }
        if self.left == 0 {
            return Err(Error::TooLong);
        }
        self.left -= 1;
        let at = &self.layout.tstate;
        if self.memory.u64(field(address, at.interp))? != self.interpreter {
            return Err(Error::Malformed);
        }
        let thread_id = self.memory.u64(field(address, at.thread_id))?;
        self.link = Some(field(address, at.next));
        Ok(Some(Thread { address, thread_id }))
    }
}

impl<M: Memory> Iterator for Threads<'_, M> {
    type Item = Result<Thread, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        let link = self.link.take()?;
        self.read(link).transpose()
    }
}

/// More threads than one process is given (the usual `RLIMIT_NPROC` and
/// `kernel.threads-max` are of this order); bounds a list in a circle.
const MAX_THREADS: u32 = 1 << 14;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::{Fake, for_each_layout};
    use crate::layout::LAYOUTS;
    use std::vec::Vec;

    #[test]
    fn lists_threads_newest_first() {
        for_each_layout(|layout, fake| {
            let interpreter = fake.interpreter(layout, &[10, 20, 30], 0);
            let read: Result<Vec<_>, _> = threads(fake, layout, interpreter)
                .map(|t| t.map(|t| t.thread_id))
                .collect();
            assert_eq!(read, Ok(Vec::from([10, 20, 30])));
        });
    }

    #[test]
    fn a_circle_of_threads_ends() {
        let mut fake = Fake::new();
        let layout = &LAYOUTS[4].1;
        let interpreter = fake.interpreter(layout, &[10, 20], 0);
        let head = fake
            .u64(field(interpreter, layout.interpreter.threads_head))
            .expect("mapped");
        fake.put_u64(field(head, layout.tstate.next), head);
        let read: Vec<_> = threads(&fake, layout, interpreter).collect();
        assert_eq!(read.len(), MAX_THREADS as usize + 1);
        assert_eq!(read.last(), Some(&Err(Error::TooLong)));
    }

    #[test]
    fn a_thread_of_another_interpreter_is_an_error() {
        for_each_layout(|layout, fake| {
            let interpreter = fake.interpreter(layout, &[10], 0);
            let head = fake
                .u64(field(interpreter, layout.interpreter.threads_head))
                .expect("mapped");
            fake.put_u64(field(head, layout.tstate.interp), 0x1234);
            let read: Vec<_> = threads(fake, layout, interpreter).collect();
            assert_eq!(read, [Err(Error::Malformed)]);
            fake.put_u64(
                field(interpreter, layout.interpreter.threads_head),
                0x7fff_0000_0000,
            );
            let read: Vec<_> = threads(fake, layout, interpreter).collect();
            assert_eq!(read, [Err(Error::Unreadable)]);
        });
    }

    #[test]
    fn finds_modules_by_name() {
        for_each_layout(|layout, fake| {
            let module = fake.module(layout, &[]);
            let table = fake.dict(layout, &[("sys", 5), ("threading", module)]);
            let interpreter = fake.interpreter(layout, &[10], table);
            let modules = modules(fake, layout, interpreter).expect("opens");
            assert_eq!(modules.get(fake, layout, "threading"), Ok(Some(module)));
            assert_eq!(modules.get(fake, layout, "uvloop"), Ok(None));
        });
    }

    #[test]
    fn a_runtime_tells_whether_it_is_initialized() {
        for_each_layout(|layout, fake| {
            let runtime = fake.put(&[0; 4096]);
            assert_eq!(is_initialized(fake, layout, runtime), Ok(false));
            fake.put_u8(field(runtime, layout.runtime.initialized), 1);
            assert_eq!(is_initialized(fake, layout, runtime), Ok(true));
            fake.put_u8(field(runtime, layout.runtime.initialized), 7);
            assert_eq!(is_initialized(fake, layout, runtime), Err(Error::Malformed));
        });
    }

    #[test]
    fn the_key_is_known_once_it_was_created() {
        let mut fake = Fake::new();
        let runtime = fake.put(&[0; 64]);
        assert_eq!(auto_tss_key(&fake, runtime, 16), Ok(None));
        fake.put_u64(runtime + 16, 1 | 3 << 32);
        assert_eq!(auto_tss_key(&fake, runtime, 16), Ok(Some(3)));
        fake.put_u64(runtime + 16, 77);
        assert_eq!(auto_tss_key(&fake, runtime, 16), Err(Error::Malformed));
    }
}
