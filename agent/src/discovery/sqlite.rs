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
use crate::target::sqlite::{Sqlite, sqlite, steps};

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
    let layout = SqliteLayout {
        register: number(copy.begin.register),
        ..copy.layout
    };
    let tell = |place: SqlitePlace, probes: &mut Probes| {
        let told = probes.set_sqlite(place, &layout);
        if let Err(error) = &told {
            tracing::warn!(pid, %error, "cannot tell the kernel side of SQLite");
        }
        told.is_ok()
    };
    // The ends first: a statement that is not seen to end would stay open.
    let follows = [
        (Hook::SqliteReset, copy.reset.address),
        (Hook::SqliteFinalize, copy.finalize.address),
        (Hook::SqliteBegin, copy.begin.address),
    ]
    .into_iter()
    .all(|(hook, address)| {
        let Some(offset) = image.elf.file_offset(address) else {
            return false;
        };
        let skipped = place(hook, &image.path, offset).offset;
        let place = SqlitePlace {
            address: address.wrapping_add(image.load_bias).wrapping_add(skipped),
            pid,
            pad: 0,
        };
        tell(place, probes) && stats.hook(pid, probes, hook, &image.path, offset)
    });
    let Some(message) = copy.message.filter(|_| follows) else {
        return follows;
    };
    // What does not compile is told, if it can be.
    let mut compiles = false;
    for symbol in copy.compile.into_iter().flatten() {
        let location = image
            .elf
            .file_offset(symbol.address)
            .map(|file_offset| Location {
                address: image.address(symbol),
                path: image.path.clone(),
                device: image.device,
                inode: image.inode,
                file_offset,
            });
        compiles |= location.is_some_and(|location| {
            call_method(pid, &location, Hook::SqliteCompile, stats, probes)
        });
    }
    if let Some(offset) = image.elf.file_offset(message.address)
        && compiles
    {
        let skipped = place(Hook::SqliteError, &image.path, offset).offset;
        let place = SqlitePlace {
            address: image.address(message).wrapping_add(skipped),
            pid,
            pad: 0,
        };
        if tell(place, probes) {
            stats.hook(pid, probes, Hook::SqliteError, &image.path, offset);
        }
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
            Ok(Some(location)) => call_method(pid, &location, hook, stats, probes),
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
/// be.
fn call_method(
    pid: u32,
    location: &Location,
    hook: Hook,
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
