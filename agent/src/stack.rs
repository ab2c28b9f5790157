//! `otel-ebpf stack`: where every Python thread of a process is, told from
//! outside while the process runs on.
//!
//! The process is neither stopped nor waited for, so what is read may change
//! meanwhile. A thread's stack is believed if the kernel says that the thread
//! did not run while it was read, or if it stayed the same over many readings;
//! of a thread that keeps running only those frames are told that were there
//! every time. `read` does this, `print` words it; reading Python's structures
//! is `pyframes`'s.

mod print;
mod read;
mod threads;

use std::io::{self, Write};
use std::process::ExitCode;

pub use self::read::Reader;
use crate::target::interpreter::{InterpreterError, PythonVersion};
use crate::target::process::ProcessError;

/// What to tell, and how.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// Tell the local variables of functions.
    pub locals: bool,
    /// Print JSON.
    pub json: bool,
}

/// The Python threads of a process at one moment (each thread at its own).
#[derive(Clone, Debug, PartialEq)]
pub struct Snapshot {
    /// Process id, as this program sees it.
    pub pid: u32,
    /// The command line, its words joined by spaces.
    pub command: String,
    /// The program file, as the process names it.
    pub program: String,
    /// The version of Python.
    pub version: PythonVersion,
    /// Its threads by interpreter, the main one's first; within one the oldest
    /// first.
    pub threads: Vec<Thread>,
}

/// A thread that Python knows.
///
/// One that runs code of several interpreters is listed with each.
#[derive(Clone, Debug, PartialEq)]
pub struct Thread {
    /// The interpreter's number: 0 is the main one, others in the order of
    /// their creation.
    pub interpreter: u32,
    /// The thread's id as this program sees it, if it can be told.
    pub tid: Option<u32>,
    /// The same in the process's own pid namespace: `Thread.native_id`.
    pub native_id: Option<u32>,
    /// `Thread.ident`.
    pub ident: u64,
    /// `Thread.name`, if the module `threading` knows the thread.
    pub name: Option<String>,
    /// What the kernel says of it.
    pub state: State,
    /// What is known of its stack.
    pub stack: Stack,
}

/// Whether a thread runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// It runs, or would if there were a processor.
    Running,
    /// It waits for something.
    Idle,
    /// The thread is not found among those of the kernel.
    Unknown,
}

/// The frames of a thread, the most recent call first.
#[derive(Clone, Debug, PartialEq)]
pub enum Stack {
    /// All of them, as they were at one moment.
    Whole(Vec<Frame>),
    /// The thread kept calling and returning: the frames that were there in
    /// every reading. More recent ones are not known.
    Changing(Vec<Frame>),
    /// The structures could not be read.
    Unreadable(pyframes::Error),
}

/// A Python function that was called and has not returned.
#[derive(Clone, Debug, PartialEq)]
pub struct Frame {
    /// `co_name`.
    pub name: String,
    /// `co_qualname`; since 3.11.
    pub qualname: Option<String>,
    /// `co_filename`.
    pub file: String,
    /// The current line, if the instruction belongs to one.
    pub line: Option<u32>,
    /// The bound variables of a function, if they were asked for.
    pub locals: Vec<Local>,
}

/// A variable.
#[derive(Clone, Debug, PartialEq)]
pub struct Local {
    /// Its name.
    pub name: String,
    /// Its value as `repr` has it, bounded.
    pub value: String,
}

/// Why no stack can be told.
#[derive(Debug, thiserror::Error)]
pub enum StackError {
    /// The process cannot be looked at.
    #[error(transparent)]
    Process(#[from] ProcessError),
    /// Its interpreter is none that can be read.
    #[error("process {pid}: {source}{}", hint(source))]
    Interpreter {
        /// The process.
        pid: u32,
        /// What is in the way.
        source: InterpreterError,
    },
    /// The list of interpreters or threads makes no sense.
    #[error("process {pid}: its threads cannot be listed")]
    Threads {
        /// The process.
        pid: u32,
        /// What is in the way.
        source: pyframes::Error,
    },
    /// The result cannot be printed.
    #[error("cannot write the stacks")]
    Print(#[source] io::Error),
}

/// Prints the stacks of a process.
pub fn run(pid: u32, options: Options, out: &mut dyn Write) -> Result<ExitCode, StackError> {
    let snapshot = Reader::open(pid)?.snapshot(options.locals)?;
    let text = match options.json {
        true => print::json(&snapshot),
        false => print::text(&snapshot, options.locals),
    };
    out.write_all(text.as_bytes())
        .and_then(|()| out.flush())
        .map_err(StackError::Print)?;
    Ok(ExitCode::SUCCESS)
}

impl Stack {
    /// The frames that are known.
    pub fn frames(&self) -> &[Frame] {
        match self {
            Self::Whole(frames) | Self::Changing(frames) => frames,
            Self::Unreadable(_) => &[],
        }
    }
}

/// What a version that cannot be read leads to.
fn hint(error: &InterpreterError) -> &'static str {
    match error {
        InterpreterError::UnknownVersion(_) => {
            " (CPython 3.8 to 3.14 are; of others only traffic can be traced)"
        }
        InterpreterError::NotInitialized => " (try again)",
        _ => "",
    }
}
