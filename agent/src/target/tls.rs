//! Where a process's code calls OpenSSL: CPython's `_ssl`, and whatever else is
//! linked against `libssl`.
//!
//! It is the callers that are probed, not the library: a call and what follows
//! it are there whichever copy of the library is used, whatever its version,
//! and even if it is a part of the same file.

use std::collections::{HashMap, HashSet};
use std::fs::File;

use object::LittleEndian;
use object::read::elf::ElfFile64;
use object::read::{Object as _, ObjectSection as _, ReadCache};
use object::read::{ObjectSymbol as _, ObjectSymbolTable as _, RelocationTarget};
use object::{SectionFlags, elf};

use super::elf::{Elf, ElfError};
use super::placement::calls::{self, CallSite, CodePart};

/// What a probe sees at a place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TlsSite {
    /// A call of `SSL_read`.
    Read,
    /// A call of `SSL_read_ex`.
    ReadEx,
    /// A call of `SSL_write`.
    Write,
    /// A call of `SSL_write_ex`.
    WriteEx,
    /// After a call of `SSL_read` or `SSL_read_ex`.
    ReadDone,
    /// After a call of `SSL_write` or `SSL_write_ex`.
    WriteDone,
    /// A call of `SSL_do_handshake`.
    Handshake,
    /// A call of `SSL_free`.
    Free,
    /// A call of `BIO_write`.
    Feed,
}

/// Functions of OpenSSL that are looked for.
const FUNCTIONS: [(&str, TlsSite); 7] = [
    ("SSL_read", TlsSite::Read),
    ("SSL_read_ex", TlsSite::ReadEx),
    ("SSL_write", TlsSite::Write),
    ("SSL_write_ex", TlsSite::WriteEx),
    ("SSL_do_handshake", TlsSite::Handshake),
    ("SSL_free", TlsSite::Free),
    ("BIO_write", TlsSite::Feed),
];

/// The largest section of code that is searched: an interpreter with OpenSSL
/// in it has 20 MB.
const MAX_CODE: u64 = 64 << 20;

/// Places in a file, by what a probe sees there, with their file offsets;
/// empty of a file that does not use OpenSSL.
///
/// Calls whose results cannot be found are left out whole: a probe at such a
/// call would never learn that the call is over. They are counted in the
/// second value.
pub fn sites(elf: &Elf) -> Result<(Vec<(TlsSite, u64)>, usize), ElfError> {
    let names = FUNCTIONS.map(|(name, _)| name);
    let defined = elf.symbols(names)?;
    let functions: HashMap<u64, TlsSite> = FUNCTIONS
        .iter()
        .zip(defined)
        .filter_map(|((_, site), symbol)| Some((symbol?.address, *site)))
        .collect();
    let found = elf.with_file(|file| {
        let slots = slots(file, &FUNCTIONS);
        let reads = |site: &TlsSite| matches!(site, TlsSite::Read | TlsSite::ReadEx);
        if !slots.values().chain(functions.values()).any(reads) {
            return Ok(Vec::new());
        }
        Ok(calls::calls(&parts(file)?, &functions, &slots))
    })?;
    let mut sites = Vec::new();
    let mut without_result = 0;
    for site in found {
        match places(&site) {
            Some(places) => {
                let offsets = places
                    .into_iter()
                    .filter_map(|(site, address)| Some((site, elf.file_offset(address)?)));
                sites.extend(offsets);
            }
            None => without_result += 1,
        }
    }
    Ok((sites, without_result))
}

/// The addresses of all calls of a function in a file's code.
pub(super) fn calls_of(elf: &Elf, function: &str) -> Result<HashSet<u64>, ElfError> {
    let defined = elf.symbol(function)?;
    let functions: HashMap<u64, ()> = defined
        .into_iter()
        .map(|symbol| (symbol.address, ()))
        .collect();
    let sites = elf.with_file(|file| {
        let slots = slots(file, &[(function, ())]);
        Ok(calls::calls(&parts(file)?, &functions, &slots))
    })?;
    Ok(sites.into_iter().map(|site| site.call).collect())
}

/// The parts of a file that are code.
fn parts<'a>(
    file: &ElfFile64<'a, LittleEndian, &'a ReadCache<&'a File>>,
) -> Result<Vec<CodePart<'a>>, ElfError> {
    let mut parts = Vec::new();
    for section in file.sections() {
        let SectionFlags::Elf { sh_flags, .. } = section.flags() else {
            continue;
        };
        if !sh_flags.contains(elf::SHF_EXECINSTR) || section.size() > MAX_CODE {
            continue;
        }
        parts.push(CodePart {
            address: section.address(),
            bytes: section.data().map_err(|_| ElfError::Damaged)?,
        });
    }
    Ok(parts)
}

/// Where a call is probed; none if its result is needed and not to be found.
fn places(site: &CallSite<TlsSite>) -> Option<Vec<(TlsSite, u64)>> {
    let done = match site.function {
        TlsSite::Read | TlsSite::ReadEx => TlsSite::ReadDone,
        TlsSite::Write | TlsSite::WriteEx => TlsSite::WriteDone,
        other => return Some(vec![(other, site.call)]),
    };
    Some(vec![(done, site.result?), (site.function, site.call)])
}

/// The slots into which the dynamic linker puts the addresses of functions
/// that another file defines.
fn slots<'a, F: Copy>(
    file: &ElfFile64<'a, LittleEndian, &'a ReadCache<&'a File>>,
    functions: &[(&str, F)],
) -> HashMap<u64, F> {
    let mut slots = HashMap::new();
    let (Some(relocations), Some(symbols)) =
        (file.dynamic_relocations(), file.dynamic_symbol_table())
    else {
        return slots;
    };
    for (address, relocation) in relocations {
        let RelocationTarget::Symbol(index) = relocation.target() else {
            continue;
        };
        let Some(name) = symbols
            .symbol_by_index(index)
            .ok()
            .and_then(|symbol| symbol.name().ok())
        else {
            continue;
        };
        if let Some((_, site)) = functions.iter().find(|(known, _)| *known == name) {
            slots.insert(address, *site);
        }
    }
    slots
}
