//! Reads the stacks, and makes sure that what was read was so.

use std::collections::HashMap;
use std::thread::sleep;
use std::time::Duration;

use pyframes::code::{self, Kind, Variable};
use pyframes::frame::{self, Walker};
use pyframes::interpreter as state;
use pyframes::layout::ABSENT;
use pyframes::repr::{self, Limits};
use pyframes::window::Windows;
use pyframes::{Code, Error, Memory, attribute, line, object, text};

use super::threads::{KernelThreads, Progress};
use super::{Frame, Local, Snapshot, Stack, StackError, State, Thread};
use crate::remote::Process;
use crate::target::interpreter::Interpreter;
use crate::target::process::{ProcessError, ProcessInfo};

/// Reads the stacks of one process, as often as it is asked.
#[derive(Debug)]
pub struct Reader {
    info: ProcessInfo,
    process: Process,
    interpreter: Interpreter,
}

/// A thread as Python lists it.
#[derive(Clone, Copy)]
struct Listed {
    /// The number of its interpreter.
    interpreter: u32,
    /// Address of its `PyThreadState`.
    tstate: u64,
    ident: u64,
}

impl Reader {
    /// Finds the interpreter of a process.
    pub fn open(pid: u32) -> Result<Self, StackError> {
        let info = ProcessInfo::read(pid)?;
        let process = Process::open(pid).map_err(|source| StackError::Interpreter {
            pid,
            source: source.into(),
        })?;
        let interpreter = Interpreter::find(&process)
            .map_err(|source| StackError::Interpreter { pid, source })?;
        Ok(Self {
            info,
            process,
            interpreter,
        })
    }

    /// Reads every thread's stack, and the local variables of functions if
    /// `with_locals`.
    pub fn snapshot(&self, with_locals: bool) -> Result<Snapshot, StackError> {
        let pid = self.info.pid;
        let interpreters = self
            .steady(|| self.interpreters())
            .map_err(|source| self.unlisted(source))?;
        let kernel = KernelThreads::read(pid);
        let mut threads = Vec::new();
        for (number, address) in (0..).zip(interpreters) {
            let listed = self
                .steady(|| self.listed(number, address))
                .map_err(|source| self.unlisted(source))?;
            // A process need not use the module, and it tells names only.
            let names = self.steady(|| self.names(address)).unwrap_or_default();
            for thread in listed {
                threads.extend(self.thread(&kernel, thread, &names, with_locals));
            }
        }
        if self.process.u64(self.interpreter.runtime).is_err() {
            return Err(ProcessError::Exited { pid }.into());
        }
        Ok(Snapshot {
            pid,
            command: self.info.command_line.join(" "),
            program: match &self.info.executable {
                Some(path) => path.to_string_lossy().into_owned(),
                None => self.info.comm.clone(),
            },
            version: self.interpreter.version,
            threads,
        })
    }

    /// Reads again if the process changed what was being read.
    fn steady<T>(&self, mut read: impl FnMut() -> Result<T, Error>) -> Result<T, Error> {
        let mut result = read();
        for _ in 0..REREADS {
            if result.is_ok() {
                break;
            }
            result = read();
        }
        result
    }

    fn unlisted(&self, source: Error) -> StackError {
        let pid = self.info.pid;
        match self.process.u64(self.interpreter.runtime) {
            Ok(_) => StackError::Threads { pid, source },
            Err(_) => ProcessError::Exited { pid }.into(),
        }
    }

    /// The interpreters, the main one first.
    fn interpreters(&self) -> Result<Vec<u64>, Error> {
        let layout = &self.interpreter.layout;
        let head = u64::from(layout.runtime.interpreters_head);
        let mut link = self.interpreter.runtime.wrapping_add(head);
        let mut found = Vec::new();
        loop {
            match self.process.u64(link)? {
                0 => break,
                _ if found.len() == MAX_INTERPRETERS => return Err(Error::TooLong),
                address => {
                    found.push(address);
                    link = address.wrapping_add(u64::from(layout.interpreter.next));
                }
            }
        }
        // The newest is the head of the list.
        found.reverse();
        match found.first() == Some(&self.interpreter.main) {
            true => Ok(found),
            false => Err(Error::Malformed),
        }
    }

    /// The threads of an interpreter, the oldest first.
    fn listed(&self, interpreter: u32, address: u64) -> Result<Vec<Listed>, Error> {
        let threads = state::threads(&self.process, &self.interpreter.layout, address);
        let mut listed: Vec<_> = threads
            .map(|thread| {
                thread.map(|thread| Listed {
                    interpreter,
                    tstate: thread.address,
                    ident: thread.thread_id,
                })
            })
            .collect::<Result<_, _>>()?;
        listed.reverse();
        Ok(listed)
    }

    /// The names of an interpreter's threads by `ident`: `threading._active`.
    fn names(&self, interpreter: u64) -> Result<HashMap<u64, String>, Error> {
        let (process, layout) = (&self.process, &self.interpreter.layout);
        let mut names = HashMap::new();
        let modules = state::modules(process, layout, interpreter)?;
        let Some(module) = modules.get(process, layout, "threading")? else {
            return Ok(names);
        };
        let active = object::module_attribute(process, layout, module, "_active")?;
        let active = pyframes::Dict::open(process, layout, active.ok_or(Error::Null)?)?;
        for entry in active.entries(process).take(MAX_NAMES) {
            let entry = entry?;
            let ident = object::read_int(process, layout, entry.key)?;
            let name = attribute::instance_attribute(process, layout, entry.value, "_name")?;
            if let Some(name) = name {
                names.insert(ident.cast_unsigned(), self.text(name)?);
            }
        }
        Ok(names)
    }

    /// One thread; none if it has ended, or is none (an interpreter keeps a
    /// thread state in reserve).
    fn thread(
        &self,
        kernel: &KernelThreads,
        listed: Listed,
        names: &HashMap<u64, String>,
        with_locals: bool,
    ) -> Option<Thread> {
        let native_id = self.native_id(kernel, listed);
        let tid = native_id.and_then(|id| kernel.tid(id));
        let progress = || tid.and_then(|tid| kernel.progress(tid));
        let stack = self.stack(listed, &progress, with_locals);
        let state = match (tid, progress()) {
            (Some(_), None) => return None,
            (_, Some(progress)) => progress.state,
            (None, None) => State::Unknown,
        };
        if listed.ident == 0 && stack.frames().is_empty() {
            return None;
        }
        Some(Thread {
            interpreter: listed.interpreter,
            tid,
            native_id,
            ident: listed.ident,
            name: names.get(&listed.ident).cloned(),
            state,
            stack,
        })
    }

    fn native_id(&self, kernel: &KernelThreads, listed: Listed) -> Option<u32> {
        let at = &self.interpreter.layout.tstate;
        if at.native_thread_id != ABSENT {
            let field = u64::from(at.native_thread_id);
            let id = self.process.u64(listed.tstate.wrapping_add(field)).ok()?;
            return u32::try_from(id).ok().filter(|id| *id != 0);
        }
        kernel.native_id(&self.process, listed.ident)
    }

    /// Reads until what was read is certain, or for long enough.
    fn stack(
        &self,
        listed: Listed,
        progress: &impl Fn() -> Option<Progress>,
        with_locals: bool,
    ) -> Stack {
        let mut seen = Seen::default();
        let mut failure = Error::Malformed;
        for attempt in 0..ATTEMPTS {
            if attempt >= HASTY_ATTEMPTS {
                sleep(PAUSE);
            }
            let before = progress().filter(|progress| progress.state == State::Idle);
            let walk = match self.walk(listed) {
                Ok(walk) => walk,
                Err(error) => {
                    failure = error;
                    seen.broken();
                    continue;
                }
            };
            let agreeing = seen.again(&walk);
            if before.is_none() && agreeing < AGREEING {
                continue;
            }
            let frames = self.describe(&walk, with_locals);
            let stood = match (before, progress()) {
                (Some(before), Some(after)) => before.stood_until(after),
                _ => agreeing >= AGREEING,
            };
            if !stood || self.walk(listed) != Ok(walk) {
                continue;
            }
            return match frames {
                Ok(frames) => Stack::Whole(frames),
                // It would not come out better another time.
                Err(error) => Stack::Unreadable(error),
            };
        }
        match seen.common() {
            None => Stack::Unreadable(failure),
            Some(common) => {
                let mut frames = self.describe(&common.frames, false).unwrap_or_default();
                if let Some(moving) = frames.first_mut().filter(|_| common.moving) {
                    moving.line = None;
                }
                Stack::Changing(frames)
            }
        }
    }

    /// The frames of a thread, the innermost first.
    fn walk(&self, listed: Listed) -> Result<Vec<frame::Frame>, Error> {
        let (process, layout) = (&self.process, &self.interpreter.layout);
        let ident = listed.tstate.wrapping_add(layout.tstate.thread_id.into());
        if process.u64(ident)? != listed.ident {
            return Err(Error::Malformed);
        }
        let mut walker = Walker::new();
        let mut windows = Windows::new();
        walker.start(process, layout, listed.tstate, &mut windows)?;
        let mut frames = Vec::new();
        while let Some(frame) = walker.step(process, layout, &mut windows)? {
            if frames.len() == MAX_FRAMES {
                return Err(Error::TooLong);
            }
            frames.push(frame);
        }
        Ok(frames)
    }

    fn describe(&self, walk: &[frame::Frame], with_locals: bool) -> Result<Vec<Frame>, Error> {
        // Recursion repeats itself.
        let mut functions: HashMap<u64, Function> = HashMap::new();
        let mut described = Vec::with_capacity(walk.len());
        for frame in walk {
            let function = match functions.get_mut(&frame.code) {
                Some(function) => function,
                None => {
                    let function = self.function(frame.code, with_locals)?;
                    functions.entry(frame.code).or_insert(function)
                }
            };
            let line = match function.lines.get(&frame.instruction) {
                Some(line) => *line,
                None => {
                    let line = self.line(&function.code, frame.instruction)?;
                    function.lines.insert(frame.instruction, line);
                    line
                }
            };
            described.push(Frame {
                name: function.name.clone(),
                qualname: function.qualname.clone(),
                file: function.file.clone(),
                line,
                locals: self.locals(frame.address, &function.variables),
            });
        }
        Ok(described)
    }

    fn function(&self, address: u64, with_locals: bool) -> Result<Function, Error> {
        let (process, layout) = (&self.process, &self.interpreter.layout);
        let code = Code::read(process, layout, address)?;
        let mut variables = Vec::new();
        // The variables of modules and class bodies are not in their frames.
        if with_locals && code.flags & code::flag::NEWLOCALS != 0 {
            for variable in code.variables(process, layout)? {
                let variable = variable?;
                variables.push((self.text(variable.name)?, variable));
            }
        }
        Ok(Function {
            name: self.text(code.name)?,
            qualname: code.qualname.map(|name| self.text(name)).transpose()?,
            file: self.text(code.filename)?,
            variables,
            lines: HashMap::new(),
            code,
        })
    }

    fn line(&self, code: &Code, instruction: u64) -> Result<Option<u32>, Error> {
        let (process, layout) = (&self.process, &self.interpreter.layout);
        let lasti = line::lasti(process, layout, code.address, instruction)?;
        line::line(process, layout, code, lasti)
    }

    /// The bound ones of the variables of a frame.
    fn locals(&self, frame: u64, variables: &[(String, Variable)]) -> Vec<Local> {
        let values = variables.iter().filter_map(|(name, variable)| {
            let value = match self.local(frame, variable) {
                Ok(None) => return None,
                Ok(Some(value)) => self.value(value),
                Err(error) => format!("<unreadable: {error}>"),
            };
            let name = name.clone();
            Some(Local { name, value })
        });
        values.collect()
    }

    fn local(&self, frame: u64, variable: &Variable) -> Result<Option<u64>, Error> {
        let (process, layout) = (&self.process, &self.interpreter.layout);
        let Some(value) = frame::local(process, layout, frame, variable.slot)? else {
            return Ok(None);
        };
        if variable.kind == Kind::Local || !self.is_cell(value)? {
            return Ok(Some(value));
        }
        let content = process.u64(value.wrapping_add(layout.cell.ob_ref.into()))?;
        Ok((content != 0).then_some(content))
    }

    fn is_cell(&self, address: u64) -> Result<bool, Error> {
        let (process, layout) = (&self.process, &self.interpreter.layout);
        let class = object::type_of(process, layout, address)?;
        let name = object::type_name(process, layout, class, &mut [0; 8])?.text == "cell";
        Ok(name)
    }

    fn value(&self, address: u64) -> String {
        let (process, layout) = (&self.process, &self.interpreter.layout);
        let mut text = String::new();
        match repr::write_repr(process, layout, address, &Limits::default(), &mut text) {
            // A `String` takes everything.
            Ok(()) | Err(std::fmt::Error) => text,
        }
    }

    fn text(&self, address: u64) -> Result<String, Error> {
        let mut buffer = [0; MAX_TEXT];
        let read = text::read_str(
            &self.process,
            &self.interpreter.layout,
            address,
            &mut buffer,
        )?;
        let mut owned = read.text.to_owned();
        if read.truncated {
            owned.push('…');
        }
        Ok(owned)
    }
}

/// A code object, with what was found out about it.
struct Function {
    code: Code,
    name: String,
    qualname: Option<String>,
    file: String,
    variables: Vec<(String, Variable)>,
    /// By instruction, as frames have it.
    lines: HashMap<u64, Option<u32>>,
}

/// The readings of a stack so far.
#[derive(Default)]
struct Seen {
    walks: Vec<Vec<frame::Frame>>,
    /// How many in a row were like the last one.
    agreeing: u32,
}

/// What the readings of a changing stack have in common.
struct Common {
    /// The frames that every reading had, the innermost first.
    frames: Vec<frame::Frame>,
    /// Whether the innermost of them was at different instructions.
    moving: bool,
}

impl Seen {
    /// Takes a reading; returns how many in a row are like it.
    fn again(&mut self, walk: &[frame::Frame]) -> u32 {
        let same = self.walks.last().is_some_and(|last| last == walk);
        self.agreeing = if same { self.agreeing + 1 } else { 1 };
        self.walks.push(walk.to_vec());
        self.agreeing
    }

    /// A reading that made no sense.
    fn broken(&mut self) {
        self.agreeing = 0;
    }

    /// What most readings lead to and those have in common; none without
    /// readings.
    ///
    /// A torn reading may end early, at a frame that was let go of meanwhile
    /// (up to 3.10), or lead astray. So it is only believed if it comes to the
    /// frame where more than half of them end.
    fn common(&self) -> Option<Common> {
        let end = |walk: &Vec<frame::Frame>| walk.last().map(|last| (last.address, last.code));
        let first = self.walks.first()?;
        let outermost = self.walks.iter().map(end).find(|outermost| {
            let alike = self.walks.iter().filter(|walk| end(walk) == *outermost);
            alike.count() * 2 > self.walks.len()
        });
        let mut common = Common {
            frames: Vec::with_capacity(first.len()),
            moving: false,
        };
        let mut sound = self
            .walks
            .iter()
            .filter(|walk| Some(end(walk)) == outermost);
        common.frames.extend(sound.next().into_iter().flatten());
        for walk in sound {
            common.narrow(walk);
        }
        Some(common)
    }
}

impl Common {
    /// Keeps what this reading has too.
    fn narrow(&mut self, walk: &[frame::Frame]) {
        let pairs = self.frames.iter().rev().zip(walk.iter().rev());
        let n_equal = pairs.clone().take_while(|(a, b)| a == b).count();
        // It is the same call, come further.
        let moved = pairs
            .clone()
            .nth(n_equal)
            .is_some_and(|(a, b)| (a.address, a.code) == (b.address, b.code));
        let n_common = n_equal + usize::from(moved);
        self.moving = moved || self.moving && n_common == self.frames.len();
        self.frames.drain(..self.frames.len() - n_common);
    }
}

/// How often a thread is read until it is called changing.
const ATTEMPTS: u32 = 40;
/// How many of them follow each other at once. A thread that only waits for
/// its turn stands still meanwhile.
const HASTY_ATTEMPTS: u32 = 10;
/// Between later ones, and so at least 15 ms for all: three times what a thread
/// keeps the GIL for while others want it.
const PAUSE: Duration = Duration::from_micros(500);
/// Like readings in a row that are believed of a thread that runs (inside a C
/// function): two could be torn alike by a loop that runs in step with us, this
/// many over several pauses not.
const AGREEING: u32 = HASTY_ATTEMPTS + 10;

/// How often an inconsistent list is read again.
const REREADS: u32 = 20;
/// More sub-interpreters than anybody makes; bounds a list in a circle.
const MAX_INTERPRETERS: usize = 1 << 12;
/// As many as threads are listed.
const MAX_NAMES: usize = 1 << 14;
/// Deeper than a recursion that ends well; bounds a chain in a circle.
const MAX_FRAMES: usize = 1 << 16;
/// Bytes of a name or path that are read (`PATH_MAX`).
const MAX_TEXT: usize = 4096;

#[cfg(test)]
mod tests {
    use super::*;

    fn walk(frames: &[(u64, u64)]) -> Vec<frame::Frame> {
        let frame = |(code, instruction): &(u64, u64)| frame::Frame {
            address: *code * 16,
            code: *code,
            instruction: *instruction,
            owner: 0,
        };
        frames.iter().map(frame).collect()
    }

    #[test]
    fn like_readings_are_counted_in_a_row() {
        let mut seen = Seen::default();
        let (one, other) = (walk(&[(2, 0), (1, 0)]), walk(&[(3, 0), (1, 0)]));
        assert_eq!(seen.again(&one), 1);
        assert_eq!(seen.again(&one), 2);
        assert_eq!(seen.again(&other), 1);
        assert_eq!(seen.again(&one), 1);
        seen.broken();
        assert_eq!(seen.again(&one), 1);
    }

    #[test]
    fn of_a_changing_stack_the_lasting_frames_are_told() {
        let check = |walks: &[&[(u64, u64)]], expected: &[u64], moving: bool| {
            let mut seen = Seen::default();
            for frames in walks {
                seen.again(&walk(frames));
            }
            let common = seen.common().expect("was read");
            let codes: Vec<_> = common.frames.iter().map(|frame| frame.code).collect();
            assert_eq!(
                (codes.as_slice(), common.moving),
                (expected, moving),
                "{walks:?}"
            );
        };
        check(&[&[(2, 0), (1, 0)]], &[2, 1], false);
        check(&[&[(2, 0), (1, 0)], &[(3, 0), (1, 0)]], &[1], false);
        check(&[&[(2, 0), (1, 0)], &[(2, 5), (1, 0)]], &[2, 1], true);
        check(&[&[(2, 0), (1, 0)], &[(2, 0), (1, 5)]], &[1], true);
        check(&[&[(2, 0), (1, 0)], &[(1, 0)]], &[1], false);
        check(&[&[(2, 0), (1, 0)], &[]], &[], false);
        // A reading that ends elsewhere than most is none.
        let whole: &[(u64, u64)] = &[(3, 0), (2, 0), (1, 0)];
        check(
            &[whole, &[(3, 0)], &[(4, 0), (2, 0), (1, 0)]],
            &[2, 1],
            false,
        );
        check(&[whole, &[], whole], &[3, 2, 1], false);
        // It moved once, and stays moving.
        check(
            &[&[(2, 0), (1, 0)], &[(2, 5), (1, 0)], &[(2, 0), (1, 0)]],
            &[2, 1],
            true,
        );
        check(
            &[&[(2, 0), (1, 0)], &[(2, 5), (1, 0)], &[(3, 0), (1, 0)]],
            &[1],
            false,
        );
        check(&[&[(1, 5), (1, 0)], &[(2, 0), (1, 0)]], &[1], false);
    }
}
