//! Finds the copies of SQLite in a process's files and probes them, also in
//! files that are loaded later.

use std::collections::HashSet;
use std::fs::File;

use abi::map::{SqliteCaller, SqliteLayout, SqlitePlace};
use iced_x86::Instruction;

use super::files::FileId;
use super::{Discovery, place};
use crate::probes::{Hook, Probes};
use crate::remote::Process;
use crate::target::elf::{Elf, MappedElf};
use crate::target::interpreter::{Interpreter, Location};
use crate::target::placement::result::Holder;
use crate::target::placement::spill;
pub(super) use crate::target::sqlite::Found;
use crate::target::sqlite::{End, Sqlite, sqlite, steps};

/// The module that leads to SQLite.
const MODULE: &str = "_sqlite3";
/// The modules whose cursors run statements, the second of a wheel with a
/// SQLite of its own.
const MODULES: [&str; 2] = [MODULE, "pysqlite3._sqlite3"];
/// Methods that run several, by class.
const METHODS: [(&str, &str, Hook); 3] = [
    ("Cursor", "executemany", Hook::SqliteMany),
    ("Cursor", "executescript", Hook::SqliteScript),
    ("Connection", "executemany", Hook::SqliteMany),
];
/// The first minor version whose connections do not call the method of a
/// cursor, but what lies below it; the wheel's call it in all.
const SHORT_CUT: u8 = 11;
/// Bytes of the longest instruction, and some more.
const INSTRUCTION: u64 = 16;

/// What is known of one process's SQLite.
#[derive(Default)]
pub(super) struct Followed {
    /// Mapped files that were searched.
    searched: HashSet<FileId>,
    /// A copy was found, whether or not it can be followed.
    found: bool,
    /// That something cannot be followed was said and counted.
    told: bool,
    /// Those of [`MODULES`] whose methods are probed, or cannot be.
    called: HashSet<&'static str>,
}

impl Discovery {
    /// Probes the copies of SQLite in files that were not looked at before.
    pub(super) fn hook_sqlite(&mut self, pid: u32, process: &Process, probes: &mut Probes) {
        let Some(tracee) = self.tracees.get_mut(&pid) else {
            return;
        };
        let Ok(files) = process.mapped_files() else {
            return;
        };
        let mut unclear = None;
        for mapped in files.iter().filter(|mapped| mapped.is_executable()) {
            let first = mapped.first();
            if !tracee.sqlite.searched.insert((first.device, first.inode)) {
                continue;
            }
            let Ok(image) = MappedElf::open(process, mapped) else {
                continue;
            };
            let look = |image: &MappedElf| sqlite(&image.elf);
            let Some(found) = self.copies.of(&image, look, "SQLite") else {
                continue;
            };
            match found {
                Found::Nothing => continue,
                Found::Unclear(what) => unclear = Some(what),
                Found::Copy(copy) if follow(pid, &image, &copy, &self.stats, probes) => {
                    self.stats.sqlite.one();
                    tracing::debug!(pid, path = %image.path.display(), "SQLite is followed");
                }
                Found::Copy(_) => unclear = Some("a place for a probe"),
            }
            tracee.sqlite.found = true;
        }
        if tracee.sqlite.found
            && let Some(interpreter) = &tracee.interpreter
        {
            for module in MODULES {
                if !tracee.sqlite.called.contains(module)
                    && interpreter.has_module(process, module).unwrap_or(false)
                {
                    tracee.sqlite.called.insert(module);
                    let unseen =
                        call_methods(pid, process, interpreter, module, &self.stats, probes);
                    self.stats.sqlite_calls_unseen.add(unseen);
                }
            }
        }
        let interpreter = tracee.interpreter.as_ref().filter(|_| !tracee.sqlite.found);
        if let Some(interpreter) = interpreter
            && interpreter.has_module(process, MODULE).unwrap_or(false)
        {
            unclear = Some("the library's functions");
        }
        if let Some(lacking) = unclear
            && !std::mem::replace(&mut tracee.sqlite.told, true)
        {
            self.stats.without_sqlite.one();
            tracing::warn!(
                pid,
                lacking,
                "statements of a copy of SQLite are not followed"
            );
        }
    }
}

/// Probes a copy of SQLite; whether all of it can be.
fn follow(
    pid: u32,
    image: &MappedElf,
    copy: &Sqlite,
    stats: &super::DiscoveryStats,
    probes: &mut Probes,
) -> bool {
    let probe = |hook: Hook, address: u64, register: Holder, probes: &mut Probes| {
        let Some(offset) = image.elf.file_offset(address) else {
            return false;
        };
        let layout = SqliteLayout {
            register: number(register),
            ..copy.layout
        };
        let skipped = place(hook, &image.path, offset).offset;
        let place = SqlitePlace {
            address: address.wrapping_add(image.load_bias).wrapping_add(skipped),
            pid,
            pad: 0,
        };
        if let Err(error) = probes.set_sqlite(place, &layout) {
            tracing::warn!(pid, %error, "cannot tell the kernel side of SQLite");
            return false;
        }
        stats.hook(pid, probes, hook, &image.path, offset)
    };
    // The ends first: a statement that is not seen to end would stay open.
    let ends = copy.ends.into_iter().flatten().map(|end| match end {
        End::Entry(function) => (Hook::SqliteEnd, function.address, Holder::Rdi),
        End::Inside(passage) => (Hook::SqliteEndInside, passage.address, passage.register),
    });
    let begin = (Hook::SqliteBegin, copy.begin.address, copy.begin.register);
    let follows = ends
        .chain([begin])
        .all(|(hook, address, register)| probe(hook, address, register, probes));
    if !follows {
        return false;
    }
    // What does not compile is told, if it can be.
    let (mut done, mut seen) = (HashSet::new(), false);
    for compile in copy.compile.into_iter().flatten() {
        if done.insert(compile.done)
            && !probe(Hook::SqliteCompiled, compile.done, Holder::Rax, probes)
        {
            break;
        }
        let location = |file_offset| Location {
            address: image.address(compile.function),
            path: image.path.clone(),
            device: image.device,
            inode: image.inode,
            file_offset,
        };
        let location = image
            .elf
            .file_offset(compile.function.address)
            .map(location);
        if let (Some(location), Ok(done)) = (location, i32::try_from(compile.moved)) {
            seen |= call_method(pid, &location, Hook::SqliteCompile, done, stats, probes);
        }
    }
    if !seen {
        stats.sqlite_failures_unseen.one();
        tracing::info!(pid, path = %image.path.display(), "what does not compile is not told");
    }
    true
}

/// Probes the methods that run several statements; how many cannot be.
fn call_methods(
    pid: u32,
    process: &Process,
    interpreter: &Interpreter,
    module: &str,
    stats: &super::DiscoveryStats,
    probes: &mut Probes,
) -> u64 {
    let mut unseen = 0;
    for (class, method, hook) in METHODS {
        let short = interpreter.version.minor >= SHORT_CUT && module == MODULE;
        if class == "Connection" && !short {
            continue;
        }
        let found = interpreter.method_address(process, module, class, method);
        let done = match found {
            Ok(Some(location)) => call_method(pid, &location, hook, 0, stats, probes),
            Ok(None) | Err(_) => false,
        };
        if !done {
            tracing::info!(
                pid,
                module,
                class,
                method,
                "its statements are told one by one"
            );
            unseen += 1;
        }
    }
    unseen
}

/// Probes a function of whose stack something must be known; whether that can
/// be. `done` is where its stack pointer is when it has done its work.
fn call_method(
    pid: u32,
    location: &Location,
    hook: Hook,
    done: i32,
    stats: &super::DiscoveryStats,
    probes: &mut Probes,
) -> bool {
    let skipped = place(hook, &location.path, location.file_offset).offset;
    let Some(caller) = caller(location, skipped, hook == Hook::SqliteMany) else {
        return false;
    };
    let place = SqlitePlace {
        address: location.address.wrapping_add(skipped),
        pid,
        pad: 0,
    };
    let caller = SqliteCaller { done, ..caller };
    if let Err(error) = probes.set_sqlite_caller(place, &caller) {
        tracing::warn!(pid, %error, "cannot tell the kernel side of a call");
        return false;
    }
    stats.hook_at(pid, probes, hook, location)
}

/// What its stack holds; none if its code does not tell.
fn caller(location: &Location, skipped: u64, many: bool) -> Option<SqliteCaller> {
    let elf = Elf::parse(File::open(&location.path).ok()?).ok()?;
    let entry = elf.virtual_address(location.file_offset)?;
    let code = |address: u64| elf.bytes(elf.file_offset(address)?, INSTRUCTION).ok();
    let steps = if many {
        steps(&elf).ok()?
    } else {
        HashSet::new()
    };
    let is_step = |instruction: &Instruction| steps.contains(&instruction.ip());
    let stack = spill::stack(entry, entry.checked_add(skipped)?, code, is_step)?;
    let many = match (many, stack.one) {
        (true, Some(one)) => one,
        (true, None) => return None,
        (false, _) => 0,
    };
    Some(SqliteCaller {
        moved: i32::try_from(stack.moved).ok()?,
        many: i32::try_from(many).ok()?,
        done: 0,
    })
}

/// The register's number on the kernel side.
fn number(register: Holder) -> u32 {
    match register {
        Holder::Rax => 0,
        Holder::Rbx => 1,
        Holder::Rbp => 2,
        Holder::Rdi => 3,
        Holder::R12 => 4,
        Holder::R13 => 5,
        Holder::R14 => 6,
        Holder::R15 => 7,
    }
}
