//! Who stands behind a thread: the worker of an executor, and whether it was
//! the application's own code that started a thread or a process.
//!
//! Told by the files and names of code objects, in the kernel as the thing
//! happens: what is imported for the first time must be known at once. Every
//! text is read in pieces of a fixed size at addresses that lie inside its
//! object, and what is not plain ASCII is an error.

use crate::layout::{ABSENT, Layout};
use crate::{Error, Memory, field, frame};

/// Where the text of an ASCII `str` is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ascii {
    /// Address of its first character.
    pub data: u64,
    /// How many there are.
    pub len: u64,
}

/// The last characters of a text.
type Tail = [u64; TAIL_WORDS];

/// What a text may end with.
#[derive(Clone, Copy, Debug)]
struct Suffix {
    text: Tail,
    mask: Tail,
    len: u64,
}

impl Suffix {
    /// Of at most 32 characters.
    const fn new(text: &str) -> Self {
        let text = text.as_bytes();
        let mut suffix = Self {
            text: [0; TAIL_WORDS],
            mask: [0; TAIL_WORDS],
            len: text.len() as u64,
        };
        let mut idx = 0;
        while idx < text.len() {
            let at = TAIL - text.len() + idx;
            suffix.text[at / 8] |= (text[idx] as u64) << (at % 8 * 8);
            suffix.mask[at / 8] |= 0xff << (at % 8 * 8);
            idx += 1;
        }
        suffix
    }

    /// All bits if a text with this end ends with it, else none. Of a text
    /// that is shorter the object's head is compared, which is none of these.
    #[inline(always)]
    fn matches(&self, tail: &Tail) -> u64 {
        let [a, b, c, d] = *tail;
        let [p, q, r, s] = self.mask;
        let [w, x, y, z] = self.text;
        all_if_zero((a & p ^ w) | (b & q ^ x) | (c & r ^ y) | (d & s ^ z))
    }

    /// Whether a text with this end and length ends with it.
    #[inline(always)]
    fn ends(&self, tail: &Tail, len: u64) -> bool {
        self.matches(tail) != 0 && len >= self.len
    }

    /// Whether that text is nothing but it.
    #[inline(always)]
    fn is(&self, tail: &Tail, len: u64) -> bool {
        self.ends(tail, len) && len == self.len
    }
}

/// Where `Thread.start` is.
const THREADING: Suffix = Suffix::new("/threading.py");
/// Its name.
const START: Suffix = Suffix::new("start");
/// Through what the application starts a process: the files of the standard
/// library whose frames are passed over, and how many characters of their
/// names follow the library's directory. A pool of processes is not among
/// them: it starts its workers for whoever comes.
const PROCESS_FILES: [(Suffix, u64); 6] = [
    named("/subprocess.py", 0),
    named("/multiprocessing/process.py", 0),
    named("/multiprocessing/context.py", 0),
    named("/multiprocessing/popen_fork.py", 0),
    named("/popen_spawn_posix.py", "/multiprocessing".len()),
    named("/multiprocessing/util.py", 0),
];

const fn named(end: &str, before: usize) -> (Suffix, u64) {
    let name = end.len() - 1 + before;
    (Suffix::new(end), name as u64)
}

/// The file of executors' threads, the function that they run, and the
/// variable that holds what they work on.
const EXECUTOR: Suffix = Suffix::new("/concurrent/futures/thread.py");
const WORKER: Suffix = Suffix::new("_worker");
const WORK_ITEM: Suffix = Suffix::new("work_item");
/// The same of aiosqlite, which has a thread for each connection (0.16 to
/// 0.22): up to 0.21 it is a method, and the queue's items are pairs of which
/// the second is called.
const AIOSQLITE: Suffix = Suffix::new("/aiosqlite/core.py");
const CONNECTION_THREAD: Suffix = Suffix::new("_connection_worker_thread");
const CONNECTION_RUN: Suffix = Suffix::new("run");
const FUNCTION: Suffix = Suffix::new("function");

/// The slot of the variable that holds what the thread works on, if the code
/// object at `code` is `concurrent.futures.thread._worker`, or what a
/// connection's thread of aiosqlite runs.
#[inline(always)]
pub fn work_item_slot<M: Memory>(
    memory: &M,
    layout: &Layout,
    code: u64,
) -> Result<Option<u32>, Error> {
    let at = &layout.code;
    let file = text_at(memory, layout, field(code, at.co_filename))?;
    let end = tail(memory, file)?;
    let executor = EXECUTOR.ends(&end, file.len);
    if !executor && !AIOSQLITE.ends(&end, file.len) {
        return Ok(None);
    }
    let name = text_at(memory, layout, field(code, at.co_name))?;
    let called = tail(memory, name)?;
    let works = if executor {
        WORKER.is(&called, name.len)
    } else {
        CONNECTION_THREAD.is(&called, name.len) || CONNECTION_RUN.is(&called, name.len)
    };
    if !works {
        return Ok(None);
    }
    let names = if at.co_localsplusnames == ABSENT {
        at.co_varnames
    } else {
        at.co_localsplusnames
    };
    let names = memory.pointer(field(code, names))?;
    let len = memory.u64(field(names, layout.object.ob_size))?;
    let items = field(names, layout.tuple.ob_item);
    let mut found = None;
    for slot in 0..MAX_LOCALS {
        if u64::from(slot) >= len {
            break;
        }
        let name = text_at(memory, layout, items.wrapping_add(u64::from(slot) * 8))?;
        let variable = tail(memory, name)?;
        let wanted = if executor {
            WORK_ITEM.is(&variable, name.len)
        } else {
            FUNCTION.is(&variable, name.len)
        };
        if wanted {
            found = Some(slot);
            break;
        }
    }
    Ok(found)
}

/// Whether it is the application's own code that starts a thread or a process
/// now, while the thread with this `PyThreadState` is in Python: with
/// `Thread.start`, which it called itself, or with `subprocess` or
/// `multiprocessing`.
#[inline(always)]
pub fn is_applications_start<M: Memory>(
    memory: &M,
    layout: &Layout,
    tstate: u64,
    thread: bool,
) -> Result<bool, Error> {
    let mut search = Search {
        next: frame::innermost(memory, layout, tstate)?,
        library: Ascii { data: 0, len: 0 },
        starter: Ascii { data: 0, len: 0 },
    };
    // No loop: older kernels take the way back for one that never ends if the
    // compiler lays it out so that it is no jump.
    macro_rules! steps {
        ($($frame:literal)*) => {$(
            search.step(memory, layout, thread)?;
            let _number = $frame;
        )*};
    }
    steps!(1 2 3 4 5 6 7 8);
    let Search {
        library, starter, ..
    } = search;
    if library.len == 0 || starter.len == 0 {
        return Ok(false);
    }
    is_applications(memory, starter, library)
}

/// Looks for the function that starts a thread or a process, outwards.
struct Search {
    /// The next frame, or 0.
    next: u64,
    /// The standard library's directory, from when it is known.
    library: Ascii,
    /// The file of the function, from when it is known.
    starter: Ascii,
}

impl Search {
    /// Looks at one frame.
    #[inline(always)]
    fn step<M: Memory>(&mut self, memory: &M, layout: &Layout, thread: bool) -> Result<(), Error> {
        if self.next == 0 || self.starter.len != 0 {
            return Ok(());
        }
        let (code, back) = frame::code_and_back(memory, layout, self.next)?;
        self.next = back;
        if code == 0 {
            return Ok(());
        }
        let file = text_at(memory, layout, field(code, layout.code.co_filename))?;
        let end = tail(memory, file)?;
        let mut name = 0;
        if !thread {
            for (suffix, len) in &PROCESS_FILES {
                name |= suffix.matches(&end) & *len;
            }
        } else if self.library.len == 0 {
            let called = text_at(memory, layout, field(code, layout.code.co_name))?;
            let start = START.matches(&tail(memory, called)?);
            let exact = all_if_zero(called.len ^ START.len);
            name = THREADING.matches(&end) & start & exact & (THREADING.len - 1);
        }
        if name == 0 {
            self.starter = file;
        } else {
            // The first one's.
            let first = all_if_zero(self.library.len);
            self.library.data |= file.data & first;
            self.library.len |= file.len.wrapping_sub(name) & first;
        }
        Ok(())
    }
}

/// Whether a file is the application's: neither in the directory of the
/// standard library nor in one of packages, and a file at all.
#[inline(always)]
fn is_applications<M: Memory>(memory: &M, file: Ascii, library: Ascii) -> Result<bool, Error> {
    if file.len > MAX_PATH || library.len > MAX_PATH {
        return Err(Error::TooLong);
    }
    if memory.u8(file.data)? == b'<' {
        return Ok(false);
    }
    // What is read beyond the end of one text is no part of the other.
    let mut differs = 0;
    for idx in 0..MAX_PATH / 8 {
        let start = idx * 8;
        if start >= library.len {
            break;
        }
        let ours = memory.u64(file.data.wrapping_add(start))?;
        let theirs = memory.u64(library.data.wrapping_add(start))?;
        differs |= (ours ^ theirs) & first_bytes(library.len - start);
        if differs != 0 {
            break;
        }
    }
    if differs == 0 {
        return Ok(false);
    }
    let mut is_package = 0;
    // The last sixteen characters.
    let (mut before, mut last) = (0_u64, 0_u64);
    for idx in 0..MAX_PATH / 8 {
        let start = idx * 8;
        if start >= file.len {
            break;
        }
        let word = memory.u64(file.data.wrapping_add(start))?;
        let word = word & first_bytes(file.len - start);
        let mut shift = 0;
        while shift < 64 {
            before = before >> 8 | last << 56;
            last = last >> 8 | (word >> shift & 0xff) << 56;
            let (begin, end) = (before >> 8 ^ SITE, last ^ PACKAGES);
            is_package |= all_if_zero(begin | end);
            is_package |= all_if_zero(begin ^ SITE ^ DIST | end);
            shift += 8;
        }
        if is_package != 0 {
            break;
        }
    }
    Ok(is_package == 0)
}

/// All bits if the word is zero, else none. Arithmetic that the compiler
/// cannot turn into a branch: the kernel's verifier would follow each.
#[inline(always)]
fn all_if_zero(word: u64) -> u64 {
    (core::hint::black_box(word | word.wrapping_neg()) >> 63).wrapping_sub(1)
}

/// A mask of the first bytes of a word, eight at most; without a branch.
#[inline(always)]
fn first_bytes(count: u64) -> u64 {
    ((1 << (count % 8 * 8)) - 1) | !all_if_zero(count / 8)
}

/// The text that the pointer at `pointer` leads to.
#[inline(always)]
fn text_at<M: Memory>(memory: &M, layout: &Layout, pointer: u64) -> Result<Ascii, Error> {
    let at = &layout.unicode;
    let address = memory.pointer(pointer)?;
    let len = memory.u64(field(address, at.length))?;
    let bits = memory.u32(field(address, at.state))? >> at.kind_shift;
    if bits & 31 != ASCII {
        return Err(Error::WrongType);
    }
    Ok(Ascii {
        data: field(address, at.ascii_size),
        len,
    })
}

/// The last characters of a text. Those of a short one are preceded by the
/// object's head, which is longer.
#[inline(always)]
fn tail<M: Memory>(memory: &M, text: Ascii) -> Result<Tail, Error> {
    let end = text.data.wrapping_add(text.len);
    let bytes: [u8; TAIL] = memory.bytes(end.wrapping_sub(TAIL as u64))?;
    let mut words = [0; TAIL_WORDS];
    let mut idx = 0;
    while idx < TAIL_WORDS {
        let mut word = [0; 8];
        word.copy_from_slice(&bytes[idx * 8..idx * 8 + 8]);
        words[idx] = u64::from_le_bytes(word);
        idx += 1;
    }
    Ok(words)
}

/// Bytes of [`Tail`].
const TAIL: usize = TAIL_WORDS * 8;
const TAIL_WORDS: usize = 4;
/// The bits of `state` that make a `str` of one byte a character, compact and
/// ASCII.
const ASCII: u32 = 1 | 8 | 16;
/// `/site-packages/` or `/dist-packages/`: the beginnings, and the rest.
const SITE: u64 = u64::from_le_bytes(*b"/site-p\0");
const DIST: u64 = u64::from_le_bytes(*b"/dist-p\0");
const PACKAGES: u64 = u64::from_le_bytes(*b"ackages/");
/// Characters of the longest path that is judged.
const MAX_PATH: u64 = 256;
/// Variables that are looked through for the work item.
const MAX_LOCALS: u32 = 12;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::{Fake, for_each_layout};
    use std::vec::Vec;

    const LIBRARY: &str = "/usr/lib/python3.11";

    /// A code object of a function in a file.
    fn code(fake: &mut Fake, layout: &Layout, file: &str, name: &str, locals: &[&str]) -> u64 {
        let at = &layout.code;
        let code = fake.put(&[0; 512]);
        let file = fake.string(layout, file);
        let name = fake.string(layout, name);
        let locals: Vec<u64> = locals
            .iter()
            .map(|local| fake.string(layout, local))
            .collect();
        let locals = fake.tuple(layout, &locals);
        fake.put_u64(field(code, at.co_filename), file);
        fake.put_u64(field(code, at.co_name), name);
        let names = match at.co_localsplusnames {
            ABSENT => at.co_varnames,
            names => names,
        };
        fake.put_u64(field(code, names), locals);
        code
    }

    /// A thread whose frames are in these functions, innermost first.
    fn thread(fake: &mut Fake, layout: &Layout, frames: &[(&str, &str)]) -> u64 {
        let mut inner = 0;
        for (file, name) in frames.iter().rev() {
            let code = code(fake, layout, file, name, &[]);
            let frame = fake.put(&[0; 256]);
            fake.put_u64(field(frame, layout.frame.code), code);
            fake.put_u64(field(frame, layout.frame.back), inner);
            inner = frame;
        }
        let tstate = fake.put(&[0; 512]);
        if layout.tstate.frame_link == ABSENT {
            fake.put_u64(field(tstate, layout.tstate.frame), inner);
        } else {
            let link = fake.put(&[0; 64]);
            fake.put_u64(field(tstate, layout.tstate.frame), link);
            fake.put_u64(field(link, layout.tstate.frame_link), inner);
        }
        tstate
    }

    fn library(name: &str) -> std::string::String {
        std::format!("{LIBRARY}/{name}")
    }

    #[test]
    fn the_worker_of_an_executor_and_its_item() {
        let file = library("concurrent/futures/thread.py");
        let locals = ["executor_reference", "work_queue", "executor", "work_item"];
        for_each_layout(|layout, fake| {
            let slot = |fake: &Fake, code| work_item_slot(fake, layout, code);
            let worker = code(fake, layout, &file, "_worker", &locals);
            assert_eq!(slot(fake, worker), Ok(Some(3)));
            for (file, name, locals) in [
                (&*file, "shutdown", &locals[..]),
                (&*file, "_workers", &locals[..]),
                (&*file, "_worker", &locals[..3]),
                ("/srv/app/thread.py", "_worker", &locals[..]),
                ("/x.py", "_worker", &locals[..]),
            ] {
                let other = code(fake, layout, file, name, locals);
                assert_eq!(slot(fake, other), Ok(None), "{file} {name}");
            }
            let aiosqlite = "/v/site-packages/aiosqlite/core.py";
            for (name, locals, expected) in [
                (
                    "_connection_worker_thread",
                    ["tx", "future", "function"],
                    Some(2),
                ),
                ("run", ["self", "function", "tx_item"], Some(1)),
                ("stop", ["self", "future", "function"], None),
                ("run", ["self", "work_item", "future"], None),
            ] {
                let thread = code(fake, layout, aiosqlite, name, &locals);
                assert_eq!(slot(fake, thread), Ok(expected), "{name}");
            }
            let foreign = code(fake, layout, "/caf\u{e9}/thread.py", "_worker", &locals);
            assert_eq!(slot(fake, foreign), Err(Error::WrongType));
            assert!(slot(fake, 0).is_err());
        });
    }

    #[test]
    fn a_thread_is_the_applications_if_its_own_code_starts_it() {
        let threading = library("threading.py");
        let start = (&*threading, "start");
        for (starter, expected) in [
            ("/srv/app/views.py", true),
            ("app.py", true),
            ("/usr/lib/python3.110/x.py", true),
            (&*library("concurrent/futures/thread.py"), false),
            (&*library("site-packages/pool/impl.py"), false),
            ("/venv/lib/python3.11/site-packages/pool.py", false),
            ("/usr/lib/python3/dist-packages/pool.py", false),
            ("/srv/my-packages/app.py", true),
            ("<string>", false),
            ("<frozen importlib>", false),
        ] {
            for_each_layout(|layout, fake| {
                let frames = [start, (starter, "work"), ("/srv/app/main.py", "main")];
                let tstate = thread(fake, layout, &frames);
                let found = is_applications_start(fake, layout, tstate, true);
                assert_eq!(found, Ok(expected), "{starter}");
            });
        }
    }

    #[test]
    fn other_ways_to_a_thread_are_not_the_applications() {
        let threading = library("threading.py");
        for_each_layout(|layout, fake| {
            for frames in [
                &[("/srv/app/views.py", "start")][..],
                &[(&*threading, "join"), ("/srv/app/views.py", "view")],
            ] {
                let tstate = thread(fake, layout, frames);
                assert_eq!(is_applications_start(fake, layout, tstate, true), Ok(false));
            }
            let tstate = thread(fake, layout, &[]);
            assert_eq!(is_applications_start(fake, layout, tstate, true), Ok(false));
            let long = std::format!("/{}.py", "x".repeat(300));
            let frames = [(&*threading, "start"), (&*long, "view")];
            let tstate = thread(fake, layout, &frames);
            assert_eq!(
                is_applications_start(fake, layout, tstate, true),
                Err(Error::TooLong)
            );
        });
    }

    #[test]
    fn a_process_is_the_applications_if_nothing_else_is_between() {
        let view = ("/srv/app/views.py", "view");
        let pool = library("multiprocessing/pool.py");
        let files = |names: &[&str]| names.iter().map(|name| library(name)).collect::<Vec<_>>();
        let run = files(&["subprocess.py", "subprocess.py", "subprocess.py"]);
        let fork = files(&[
            "multiprocessing/popen_fork.py",
            "multiprocessing/popen_fork.py",
            "multiprocessing/context.py",
            "multiprocessing/process.py",
        ]);
        let spawn = files(&[
            "multiprocessing/util.py",
            "multiprocessing/popen_spawn_posix.py",
            "multiprocessing/popen_fork.py",
            "multiprocessing/context.py",
            "multiprocessing/process.py",
        ]);
        for way in [&run, &fork, &spawn] {
            for (between, starter, expected) in [
                (None, view, true),
                (Some((&*pool, "grow")), view, false),
                (None, ("/v/site-packages/x.py", "f"), false),
            ] {
                let frames: Vec<_> = way
                    .iter()
                    .map(|file| (&**file, "f"))
                    .chain(between)
                    .chain([starter])
                    .collect();
                for_each_layout(|layout, fake| {
                    let tstate = thread(fake, layout, &frames);
                    let found = is_applications_start(fake, layout, tstate, false);
                    assert_eq!(found, Ok(expected), "{frames:?}");
                });
            }
        }
        for_each_layout(|layout, fake| {
            // Where the library is, is not known.
            let tstate = thread(fake, layout, &[view]);
            assert_eq!(
                is_applications_start(fake, layout, tstate, false),
                Ok(false)
            );
        });
    }

    #[test]
    fn any_memory_is_handled() {
        let file = library("concurrent/futures/thread.py");
        for_each_layout(|layout, fake| {
            let worker = code(fake, layout, &file, "_worker", &["a", "work_item"]);
            fake.each_corruption(worker, |fake| {
                let _any = work_item_slot(fake, layout, worker);
            });
            let threading = library("threading.py");
            let frames = [(&*threading, "start"), ("/srv/app.py", "view")];
            let tstate = thread(fake, layout, &frames);
            fake.each_corruption(tstate, |fake| {
                let _any = is_applications_start(fake, layout, tstate, true);
                let _any = is_applications_start(fake, layout, tstate, false);
            });
        });
    }
}
