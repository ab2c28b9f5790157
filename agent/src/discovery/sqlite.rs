//! Finds the copies of SQLite in a process's files and probes them, also in
//! files that are loaded later.

use std::collections::HashSet;

use abi::map::{SqliteLayout, SqlitePlace};

use super::files::FileId;
use super::{Discovery, place};
use crate::probes::{Hook, Probes};
use crate::remote::Process;
use crate::target::elf::MappedElf;
use crate::target::placement::result::Holder;
pub(super) use crate::target::sqlite::Found;
use crate::target::sqlite::{Sqlite, sqlite};

/// The module that leads to SQLite.
const MODULE: &str = "_sqlite3";
/// What is known of one process's SQLite.
#[derive(Default)]
pub(super) struct Followed {
    /// Mapped files that were searched.
    searched: HashSet<FileId>,
    /// A copy was found, whether or not it can be followed.
    found: bool,
    /// That something cannot be followed was said and counted.
    told: bool,
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
    // The ends first: a statement that is not seen to end would stay open.
    [
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
        if let Err(error) = probes.set_sqlite(place, &layout) {
            tracing::warn!(pid, %error, "cannot tell the kernel side of SQLite");
            return false;
        }
        stats.hook(pid, probes, hook, &image.path, offset)
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
