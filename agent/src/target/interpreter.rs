//! Finds the CPython interpreter of a running process and everything that
//! the kernel side must know to read it.
//!
//! Nothing is believed that the process itself does not confirm: the version
//! comes from its memory, the layout must lead to `sys.hexversion`, and the
//! place of the thread state is the one where the threads have theirs.

mod evidence;
mod imports;
mod tss;

use std::fmt;
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use abi::map::{Target, target_flag};
use object::elf::EM_X86_64;
use pyframes::debug_offsets::DebugOffsets;
use pyframes::interpreter::{self as state, Thread};
use pyframes::layout::{self, Layout, Series};
use pyframes::{Memory, object as objects, text};

use self::evidence::Evidence;
pub use self::imports::Imports;
pub use self::tss::Tss;
use super::births::{self, Birth};
use super::elf::{ElfError, MappedElf};
use super::uvloop;
use crate::remote::{MappedFile, Mapping, Process, ProcessError};

/// A version of Python with its build flavor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PythonVersion {
    /// 3 for everything that is supported.
    pub major: u8,
    /// As 12 in 3.12.1.
    pub minor: u8,
    /// As 1 in 3.12.1.
    pub micro: u8,
    /// Built with `--disable-gil`.
    pub free_threaded: bool,
}

/// The interpreter of a process.
#[derive(Debug)]
pub struct Interpreter {
    /// The version.
    pub version: PythonVersion,
    /// The file that holds the interpreter: the program or `libpython`.
    pub image: MappedElf,
    /// Address of `_PyRuntime`.
    pub runtime: u64,
    /// Address of the main `PyInterpreterState`.
    pub main: u64,
    /// Where this interpreter keeps what: the layout of its version with the
    /// offsets that it publishes itself.
    pub layout: Layout,
    /// Where a thread keeps its `PyThreadState`.
    pub tss: Tss,
    /// `sys.version`: version, build and compiler in words.
    pub description: Option<String>,
}

/// A place in a mapped file, as a uprobe takes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Location {
    /// The address in the process.
    pub address: u64,
    /// A path that leads to the file from our own root.
    pub path: PathBuf,
    /// Major and minor number of the file's device, as in `maps`.
    pub device: (u32, u32),
    /// The file's inode.
    pub inode: u64,
    /// Bytes from the file's beginning.
    pub file_offset: u64,
}

/// Why a process has no interpreter that can be read.
#[derive(Debug, thiserror::Error)]
pub enum InterpreterError {
    /// The process does not exist, has ended, or must not be read.
    #[error(transparent)]
    Process(#[from] ProcessError),
    /// No interpreter is mapped into the process.
    #[error("not a Python process")]
    NotPython,
    /// The process runs PyPy.
    #[error("the process runs PyPy, and only CPython is supported")]
    PyPy,
    /// A CPython older than 3.8.
    #[error("Python {major}.{minor} is too old, the oldest supported version is 3.8")]
    TooOld {
        /// As 2 in 2.7.
        major: u8,
        /// As 7 in 2.7.
        minor: u8,
    },
    /// A CPython whose structures are not known.
    #[error("the structures of Python {0} are not known")]
    UnknownVersion(PythonVersion),
    /// The interpreter is still starting, or already ending: try again.
    #[error("the interpreter is not initialized yet")]
    NotInitialized,
    /// The process does not confirm the layout of its version.
    #[error("Python {version} is not built as expected: {check}")]
    LayoutMismatch {
        /// The version the process claims to be.
        version: PythonVersion,
        /// What failed.
        check: &'static str,
    },
    /// A processor for which the place of the thread state is not known.
    #[error("the process is for another machine than x86_64 (ELF machine {0})")]
    UnsupportedMachine(u16),
    /// The file that may hold the interpreter cannot be used.
    #[error("cannot use {path}")]
    Image {
        /// The file as the process names it.
        path: PathBuf,
        /// What went wrong.
        source: ElfError,
    },
}

/// Why a method's C function was not located.
#[derive(Debug, thiserror::Error)]
pub enum LocateError {
    /// The process cannot be read.
    #[error(transparent)]
    Process(#[from] ProcessError),
    /// The objects on the way cannot be read.
    #[error("cannot read the objects of the process")]
    Objects(#[from] pyframes::Error),
    /// The function lies in no file, as compiled code may.
    #[error("the function is not in a mapped file")]
    NotInFile,
    /// The interpreter's file does not name the function: a static program
    /// that was stripped.
    #[error("the interpreter has no symbol {0}")]
    NoSymbol(&'static str),
    /// The file behind the mapping cannot be opened.
    #[error("cannot open the mapped file")]
    File(#[source] std::io::Error),
}

impl Interpreter {
    /// Finds the interpreter of a process.
    ///
    /// Searches the program first, then files with Python in their name, then
    /// every other library: a server may embed the interpreter.
    ///
    /// What contradicts itself is looked at again, several times within an
    /// eighth of a second: the loader maps a library as a whole before its
    /// parts, and clears what must be zero after that. For who asks once; who
    /// asks again anyway does not wait ([`find_now`](Self::find_now)).
    pub fn find(process: &Process) -> Result<Self, InterpreterError> {
        let mut pause = SHORTEST_PAUSE;
        loop {
            match Self::find_now(process) {
                Err(
                    InterpreterError::LayoutMismatch { .. } | InterpreterError::UnknownVersion(_),
                ) if pause <= LONGEST_PAUSE => {
                    thread::sleep(pause);
                    pause *= 2;
                }
                found => return found,
            }
        }
    }

    /// Finds it, as the process is at this moment: one that starts may seem to
    /// contradict itself.
    pub fn find_now(process: &Process) -> Result<Self, InterpreterError> {
        let mut first_error = None;
        for mapped in candidates(process)? {
            match Self::in_image(process, &mapped) {
                Ok(Some(interpreter)) => return Ok(interpreter),
                Ok(None) => {}
                // Whatever else failed, it failed because the program that
                // was to be read is gone.
                Err(_) if process.u8(mapped.first().start).is_err() => {
                    return Err(ProcessError::Exited.into());
                }
                Err(error) => _ = first_error.get_or_insert(error),
            }
        }
        Err(first_error.unwrap_or(InterpreterError::NotPython))
    }

    /// What the kernel side must know about the process.
    pub fn target(&self) -> Target {
        let indirect = if self.tss.indirect.is_some() {
            target_flag::TSS_INDIRECT
        } else {
            0
        };
        // Since 3.14 `Thread.run` runs in a context of the thread's own.
        let thread_contexts = if self.version.minor >= 14 {
            target_flag::THREAD_CONTEXTS
        } else {
            0
        };
        Target {
            flags: target_flag::PYTHON | indirect | thread_contexts,
            tstate_thread_id: self.layout.tstate.thread_id,
            tstate_context: self.layout.tstate.context,
            context_entered: self.layout.context.ctx_entered,
            tss_slot: self.tss.slot,
            tss_indirect: self.tss.indirect.unwrap_or_default(),
            uv_handle: uvloop::handle_offset(&self.layout),
            uv_fd: uvloop::STREAM_FD,
            layout: self.layout_number(),
            ..Target::default()
        }
    }

    /// The layout's number in `LAYOUTS`.
    fn layout_number(&self) -> u32 {
        let series = Series {
            minor: self.version.minor,
            free_threaded: self.version.free_threaded,
        };
        // An interpreter has a layout, or it is none.
        layout::LAYOUTS
            .iter()
            .zip(0..)
            .find(|((known, _), _)| *known == series)
            .map_or(0, |(_, number)| number)
    }

    /// Whether its runtime is in the memory of a process: what the process has
    /// executed since this was found is laid out elsewhere, unless it is the
    /// same program at fixed addresses.
    pub fn is_in(&self, process: &Process) -> bool {
        process.read(self.runtime, &mut [0; 8])
    }

    /// The thread states of the main interpreter, newest first.
    pub fn threads(&self, process: &Process) -> Result<Vec<Thread>, pyframes::Error> {
        threads(process, &self.layout, self.main)
    }

    /// The module `name` of `sys.modules`, the address of an object.
    pub fn module(&self, process: &Process, name: &str) -> Result<Option<u64>, pyframes::Error> {
        steady(|| {
            state::modules(process, &self.layout, self.main)?.get(process, &self.layout, name)
        })
    }

    /// What changes when the process imports something.
    pub fn imports(&self, process: &Process) -> Result<Imports, pyframes::Error> {
        Imports::read(process, &self.layout, self.main)
    }

    /// Whether the module `name` has been imported.
    pub fn has_module(&self, process: &Process, name: &str) -> Result<bool, pyframes::Error> {
        self.module(process, name).map(|module| module.is_some())
    }

    /// Locates the C function behind `method`, which the type `class` of the
    /// module `module` defines, or `None` if one of the three is not there.
    pub fn method_address(
        &self,
        process: &Process,
        module: &str,
        class: &str,
        method: &str,
    ) -> Result<Option<Location>, LocateError> {
        let address = steady(|| {
            let layout = &self.layout;
            let Some(module) = self.module(process, module)? else {
                return Ok(None);
            };
            let class = objects::module_attribute(process, layout, module, class)?;
            let Some(class) = class else { return Ok(None) };
            objects::method(process, layout, class, method)
        })?;
        address.map(|address| locate(process, address)).transpose()
    }

    /// Locates a function by its address.
    pub fn locate(&self, process: &Process, address: u64) -> Result<Location, LocateError> {
        locate(process, address)
    }

    /// Locates what makes a `PyContext` other than the exported functions:
    /// the function behind `contextvars.Context()`, and that of
    /// `Context.copy()`.
    pub fn context_makers(&self, process: &Process) -> Result<Vec<Location>, LocateError> {
        let layout = &self.layout;
        let exported = self.image.elf.symbol("PyContext_Type").ok().flatten();
        let class = match exported {
            Some(symbol) => Some(self.image.address(symbol)),
            None => steady(|| match self.module(process, "_contextvars")? {
                Some(module) => objects::module_attribute(process, layout, module, "Context"),
                None => Ok(None),
            })?,
        };
        let Some(class) = class else {
            return Err(LocateError::NotInFile);
        };
        let constructor = steady(|| objects::constructor(process, layout, class))?;
        let copy = steady(|| objects::method(process, layout, class, "copy"))?;
        [constructor, copy]
            .into_iter()
            .map(|function| locate(process, function.ok_or(LocateError::NotInFile)?))
            .collect()
    }

    /// Where contexts come into being, as places for plain probes: offsets in
    /// the image's file. None if the code does not tell.
    pub fn context_births(
        &self,
        process: &Process,
    ) -> Result<Option<Vec<(Birth, u64)>>, LocateError> {
        let MappedElf {
            device, inode, elf, ..
        } = &self.image;
        let mut makers = Vec::new();
        for maker in self.context_makers(process)? {
            if (maker.device, maker.inode) != (*device, *inode) {
                return Ok(None);
            }
            makers.extend(elf.virtual_address(maker.file_offset));
        }
        let symbol = |name| {
            let found = elf.symbol(name).ok().flatten();
            found.ok_or(LocateError::NoSymbol(name))
        };
        for name in ["PyContext_New", "PyContext_Copy"] {
            makers.push(symbol(name)?.address);
        }
        let copy_current = symbol("PyContext_CopyCurrent")?;
        Ok(births::places(&self.image, copy_current.address, &makers))
    }

    /// The interpreter in one mapped file, or `None` if the file holds none.
    fn in_image(process: &Process, mapped: &MappedFile) -> Result<Option<Self>, InterpreterError> {
        let path = &mapped.first().path;
        let examined = MappedElf::open(process, mapped)
            .and_then(|image| evidence::gather(&image.elf).map(|evidence| (image, evidence)));
        let (image, evidence) = match examined {
            Ok(examined) => examined,
            Err(ElfError::NotElf) => return Ok(None),
            Err(source) if is_likely(mapped) => {
                return Err(InterpreterError::Image {
                    path: path.clone(),
                    source,
                });
            }
            Err(error) => {
                tracing::debug!(path = %path.display(), %error, "skipped a mapped file");
                return Ok(None);
            }
        };
        let (runtime, series, version) = match evidence {
            // What it publishes tells the version.
            Some(Evidence::Published { runtime }) => (runtime, 13, None),
            None => return Ok(None),
            Some(Evidence::PyPy) => return Err(InterpreterError::PyPy),
            Some(Evidence::TooOld { major, minor }) => {
                return Err(InterpreterError::TooOld { major, minor });
            }
            Some(Evidence::Minor { runtime, minor }) => (runtime, minor, None),
            Some(Evidence::Versioned { runtime, version }) => {
                let version = process.u32(image.address(version)).ok();
                // `Py_Version` begins with 3.11.
                (runtime, 11, version)
            }
        };
        let machine = image.elf.machine();
        if machine != EM_X86_64.0 {
            return Err(InterpreterError::UnsupportedMachine(machine));
        }
        let runtime = image.address(runtime);
        let claim = Claim {
            runtime,
            minor: series,
            version,
        };
        claim.confirm(process, image).map(Some)
    }
}

// === impl PythonVersion ===

impl PythonVersion {
    /// As `platform.python_version()` has it, which says nothing of the GIL.
    pub fn release(&self) -> String {
        let Self {
            major,
            minor,
            micro,
            ..
        } = self;
        format!("{major}.{minor}.{micro}")
    }

    /// From `PY_VERSION_HEX`.
    fn from_hex(hex: u32, free_threaded: bool) -> Self {
        let [_, micro, minor, major] = hex.to_le_bytes();
        Self {
            major,
            minor,
            micro,
            free_threaded,
        }
    }
}

impl fmt::Display for PythonVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            major,
            minor,
            micro,
            free_threaded,
        } = self;
        let suffix = if *free_threaded { "t" } else { "" };
        write!(f, "{major}.{minor}.{micro}{suffix}")
    }
}

/// What an image says about its interpreter, before the process confirmed it.
struct Claim {
    /// Address of `_PyRuntime`.
    runtime: u64,
    /// The minor version, unless `version` says otherwise.
    minor: u8,
    /// `PY_VERSION_HEX`.
    version: Option<u32>,
}

impl Claim {
    fn confirm(self, process: &Process, image: MappedElf) -> Result<Interpreter, InterpreterError> {
        let runtime = self.runtime;
        let published = DebugOffsets::read(process, runtime).ok().flatten();
        let hex = match (self.version, published) {
            (Some(hex), _) => hex,
            (None, Some(published)) => published.version,
            (None, None) => 3 << 24 | u32::from(self.minor) << 16,
        };
        let free_threaded = published.is_some_and(|published| published.free_threaded);
        let version = PythonVersion::from_hex(hex, free_threaded);
        let mismatch = |check| InterpreterError::LayoutMismatch { version, check };

        let series = Series {
            minor: version.minor,
            free_threaded,
        };
        let known = layout::of(series).filter(|_| version.major == 3);
        let known = known.ok_or(InterpreterError::UnknownVersion(version))?;
        let layout = match published {
            Some(published) if published.series() == series => published.applied_to(known),
            Some(_) => return Err(mismatch("it publishes the offsets of another version")),
            None if series.minor >= 13 => return Err(mismatch("it publishes no offsets")),
            None => *known,
        };

        let initialized = || state::is_initialized(process, &layout, runtime);
        let initialized = match initialized() {
            // The loader maps a library as a whole before its parts.
            Err(_) if !is_in_place(process, &image, runtime) => Ok(false),
            Err(_) => initialized(),
            told => told,
        };
        match initialized {
            Ok(true) => {}
            Ok(false) => return Err(InterpreterError::NotInitialized),
            Err(_) => {
                return Err(mismatch(
                    "its runtime does not tell whether it is initialized",
                ));
            }
        }
        let interpreter = self.read(process, image, layout, version);
        // What does not fit may be an interpreter that has just ended.
        let ended = || state::is_initialized(process, &layout, runtime) == Ok(false);
        match interpreter {
            Err(_) if ended() => Err(InterpreterError::NotInitialized),
            read => read,
        }
    }

    /// Reads an initialized interpreter with its layout.
    fn read(
        self,
        process: &Process,
        image: MappedElf,
        layout: Layout,
        version: PythonVersion,
    ) -> Result<Interpreter, InterpreterError> {
        let runtime = self.runtime;
        let mismatch = |check| InterpreterError::LayoutMismatch { version, check };
        let key = state::auto_tss_key(process, runtime, layout.runtime.auto_tss_key)
            .ok()
            .flatten()
            .ok_or_else(|| mismatch("autoTSSkey is not a key"))?;
        let main = state::main_interpreter(process, &layout, runtime)
            .ok()
            .flatten()
            .ok_or_else(|| mismatch("there is no main interpreter"))?;
        let (layout, hex) = find_modules(process, layout, main, version)
            .ok_or_else(|| mismatch("sys.hexversion is not where it belongs"))?;
        let version = PythonVersion::from_hex(hex, version.free_threaded);
        let threads = threads(process, &layout, main)
            .map_err(|_| mismatch("the list of threads is not readable"))?;
        let tss = tss::locate(process, &threads, key, layout.tstate.thread_id)
            .ok_or_else(|| mismatch("the threads do not have their states where they belong"))?;
        let description = steady(|| description(process, &layout, main))
            .ok()
            .flatten();
        Ok(Interpreter {
            version,
            image,
            runtime,
            main,
            layout,
            tss,
            description,
        })
    }
}

/// The layout with the place where `sys.modules` really is, and the
/// `sys.hexversion` found there, which must be of the version that the layout
/// is for.
///
/// The place moves between patch releases that publish no offsets if a field
/// before it changes its size; `sys` inside proves that it is the right one.
fn find_modules(
    process: &Process,
    layout: Layout,
    main: u64,
    version: PythonVersion,
) -> Option<(Layout, u32)> {
    let expected = layout.interpreter.modules;
    let nearby = (8..=MODULES_SEARCH).step_by(8).flat_map(|distance| {
        [
            expected.checked_sub(distance),
            expected.checked_add(distance),
        ]
        .into_iter()
        .flatten()
    });
    std::iter::once(expected).chain(nearby).find_map(|modules| {
        let mut layout = layout;
        layout.interpreter.modules = modules;
        let hex = steady(|| hexversion(process, &layout, main))
            .ok()
            .flatten()?;
        let [_, _, minor, major] = hex.to_le_bytes();
        ((major, minor) == (version.major, version.minor)).then_some((layout, hex))
    })
}

/// `sys.hexversion`, or `None` if `sys` or its name is not there.
fn hexversion(
    process: &Process,
    layout: &Layout,
    main: u64,
) -> Result<Option<u32>, pyframes::Error> {
    let Some(sys) = state::modules(process, layout, main)?.get(process, layout, "sys")? else {
        return Ok(None);
    };
    let Some(number) = objects::module_attribute(process, layout, sys, "hexversion")? else {
        return Ok(None);
    };
    let number = objects::read_int(process, layout, number)?;
    u32::try_from(number)
        .map(Some)
        .map_err(|_| pyframes::Error::Malformed)
}

/// `sys.version`, or `None` if it is not there or very long.
fn description(
    process: &Process,
    layout: &Layout,
    main: u64,
) -> Result<Option<String>, pyframes::Error> {
    let Some(sys) = state::modules(process, layout, main)?.get(process, layout, "sys")? else {
        return Ok(None);
    };
    let Some(version) = objects::module_attribute(process, layout, sys, "version")? else {
        return Ok(None);
    };
    let mut buffer = [0; MAX_DESCRIPTION];
    let version = text::read_str(process, layout, version, &mut buffer)?;
    Ok((!version.truncated).then(|| version.text.to_owned()))
}

fn threads(process: &Process, layout: &Layout, main: u64) -> Result<Vec<Thread>, pyframes::Error> {
    steady(|| state::threads(process, layout, main).collect())
}

/// Reads again if the process changed what was being read.
fn steady<T>(mut read: impl FnMut() -> Result<T, pyframes::Error>) -> Result<T, pyframes::Error> {
    let mut result = read();
    for _ in 0..REREADS {
        if result.is_ok() {
            break;
        }
        result = read();
    }
    result
}

/// The executable files of a process, the likely ones first.
fn candidates(process: &Process) -> Result<Vec<MappedFile>, ProcessError> {
    let program = process.program();
    let mut files = process.mapped_files()?;
    files.retain(MappedFile::is_executable);
    files.sort_by_key(|file| (Some(file.first().inode) != program, !is_likely(file)));
    Ok(files)
}

/// Whether a file's name is that of an interpreter, and not merely of a module
/// built for one (`_ssl.cpython-312-x86_64-linux-gnu.so`).
fn is_likely(mapped: &MappedFile) -> bool {
    let name = mapped
        .first()
        .path
        .file_name()
        .unwrap_or_default()
        .to_string_lossy();
    ["python", "libpython", "pypy", "libpypy"]
        .iter()
        .any(|start| name.starts_with(start))
}

/// The place in a mapped file that an address belongs to.
fn locate(process: &Process, address: u64) -> Result<Location, LocateError> {
    let files = process.mapped_files()?;
    let found = files.iter().find_map(|file| {
        let holds = |mapping: &&Mapping| (mapping.start..mapping.end).contains(&address);
        Some((file, file.mappings().iter().find(holds)?))
    });
    let (file, mapping) = found.ok_or(LocateError::NotInFile)?;
    let opened = process.open_file(file).map_err(LocateError::File)?;
    Ok(Location {
        address,
        path: opened.path,
        device: mapping.device,
        inode: mapping.inode,
        file_offset: address - mapping.start + mapping.offset,
    })
}

/// How far from its usual place `sys.modules` is searched, bytes.
const MODULES_SEARCH: u32 = 512;

/// Pauses between looks at an interpreter that contradicts itself; each is
/// twice as long as the one before.
const SHORTEST_PAUSE: Duration = Duration::from_millis(1);
const LONGEST_PAUSE: Duration = Duration::from_millis(64);

/// Longest `sys.version` that is told, bytes.
const MAX_DESCRIPTION: usize = 512;

/// How often an inconsistent reading is repeated.
const REREADS: u32 = 3;

/// Whether the address lies where the image's file says that its byte is.
fn is_in_place(process: &Process, image: &MappedElf, address: u64) -> bool {
    let holds = |mapping: &&Mapping| (mapping.start..mapping.end).contains(&address);
    let mappings = process.mappings().unwrap_or_default();
    let Some(mapping) = mappings.iter().find(holds) else {
        return false;
    };
    let in_file = image.elf.file_offset(address.wrapping_sub(image.load_bias));
    match in_file {
        // Zeroed memory of its own.
        _ if mapping.inode != image.inode => true,
        Some(offset) => mapping.offset.wrapping_add(address - mapping.start) == offset,
        // Zeroed memory on the last page of the data, whose part of the file
        // is not its beginning.
        None => mapping.offset != 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_read_as_people_write_them() {
        let version = PythonVersion::from_hex(0x030c_01f0, false);
        assert_eq!(version.to_string(), "3.12.1");
        assert_eq!(
            PythonVersion::from_hex(0x030e_0af0, true).to_string(),
            "3.14.10t"
        );
    }

    #[test]
    fn a_process_without_an_interpreter_is_not_python() {
        let process = Process::open(std::process::id()).expect("opens");
        let found = Interpreter::find(&process);
        assert!(
            matches!(found, Err(InterpreterError::NotPython)),
            "{found:?}"
        );
    }
}
