//! Reads the ELF files that a process has mapped: symbols, and the three
//! kinds of addresses.
//!
//! - A *virtual* address is the one the file itself uses.
//! - A *file offset* is where the byte lies in the file; uprobes take it.
//! - An *address* is where the byte lies in the process: virtual address plus
//!   load bias.
//!
//! Only headers and symbol tables are read, and only while they are needed:
//! interpreters have 30 MB.

use std::fs::{File, Metadata};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use object::LittleEndian;
use object::elf::{self, FileHeader64, ProgramHeader64, SectionHeader64, Sym64};
use object::pod;
use object::read::elf::{ElfFile64, FileHeader as _};
use object::read::{
    Object as _, ObjectSection as _, ObjectSymbol as _, ObjectSymbolTable as _, ReadCache,
};
use object::read::{RelocationFlags, RelocationTarget};
use zerocopy::IntoBytes;

use crate::remote::{MappedFile, Process};

/// Why a file's structure cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ElfError {
    /// The file cannot be opened or read.
    #[error("cannot read the file")]
    Io(#[from] io::Error),
    /// It is not a 64-bit little-endian ELF file.
    #[error("not a 64-bit little-endian ELF file")]
    NotElf,
    /// A table lies outside the file or is too large.
    #[error("the file's tables are damaged")]
    Damaged,
    /// The file's mappings do not fit its segments.
    #[error("the file is not mapped as its segments say")]
    MappedOtherwise,
}

/// An ELF file.
#[derive(Debug)]
pub struct Elf {
    file: File,
    length: u64,
    machine: u16,
    segments: Vec<Segment>,
    /// Symbol tables, `.dynsym` before `.symtab`.
    tables: Vec<SymbolTable>,
}

/// What a file says of its thread-local variables.
///
/// Places are virtual addresses of words that the dynamic linker has filled
/// in.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ThreadLocals {
    /// Bytes of all variables together.
    pub size: u64,
    /// Words with the number of the file's module.
    pub modules: Vec<u64>,
    /// Words with the distance of a variable from the thread pointer.
    pub distances: Vec<u64>,
    /// Pairs of words that are a descriptor: a function and its argument.
    pub descriptors: Vec<u64>,
}

/// A named place in an ELF file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Symbol {
    /// Virtual address.
    pub address: u64,
    /// Bytes; 0 where the file does not say.
    pub size: u64,
}

/// An ELF file as one process has it loaded.
#[derive(Debug)]
pub struct MappedElf {
    /// A path that leads to the file from our own root.
    pub path: PathBuf,
    /// Major and minor number of the file's device, as in `maps`.
    pub device: (u32, u32),
    /// The file's inode.
    pub inode: u64,
    /// What to add to a virtual address to get the address in the process.
    pub load_bias: u64,
    /// The file.
    pub elf: Elf,
}

/// A `PT_LOAD` segment.
#[derive(Clone, Copy, Debug)]
struct Segment {
    offset: u64,
    address: u64,
    file_size: u64,
}

/// Where a symbol table and its strings lie in the file.
#[derive(Clone, Copy, Debug)]
struct SymbolTable {
    symbols: Extent,
    strings: Extent,
}

#[derive(Clone, Copy, Debug)]
struct Extent {
    offset: u64,
    size: u64,
}

impl Elf {
    /// Reads the headers of a file.
    pub fn parse(file: File) -> Result<Self, ElfError> {
        let length = file.metadata()?.len();
        let bytes = read_words(&file, 0, HEADER_SIZE, length).map_err(|_| ElfError::NotElf)?;
        let header: &FileHeader64<LittleEndian> =
            elf_header(bytes.as_bytes()).ok_or(ElfError::NotElf)?;
        let programs = Extent {
            offset: header.e_phoff.get(LittleEndian),
            size: u64::from(header.e_phnum.get(LittleEndian)) * PROGRAM_HEADER_SIZE,
        };
        let sections = Extent {
            offset: header.e_shoff.get(LittleEndian),
            size: u64::from(header.e_shnum.get(LittleEndian)) * SECTION_HEADER_SIZE,
        };
        let machine = header.e_machine.get(LittleEndian).0;
        let segments = read_segments(&file, programs, length)?;
        // A file can do without section headers; it then has no symbols.
        let tables = read_tables(&file, sections, length).unwrap_or_default();
        Ok(Self {
            file,
            length,
            machine,
            segments,
            tables,
        })
    }

    /// What the file system says of the file.
    pub fn metadata(&self) -> io::Result<Metadata> {
        self.file.metadata()
    }

    /// `e_machine`.
    pub fn machine(&self) -> u16 {
        self.machine
    }

    /// Looks up defined symbols by name, in the order of `names`.
    ///
    /// Reads the tables anew each time: ask for several names at once.
    pub fn symbols<const N: usize>(
        &self,
        names: [&str; N],
    ) -> Result<[Option<Symbol>; N], ElfError> {
        self.look_up(names, &self.tables)
    }

    /// Looks up the symbols that the file exports; one without a dynamic
    /// symbol table (a static program) exports all it has.
    pub fn exports<const N: usize>(
        &self,
        names: [&str; N],
    ) -> Result<[Option<Symbol>; N], ElfError> {
        self.look_up(names, self.tables.get(..1).unwrap_or_default())
    }

    /// Looks up one defined symbol.
    pub fn symbol(&self, name: &str) -> Result<Option<Symbol>, ElfError> {
        let [symbol] = self.symbols([name])?;
        Ok(symbol)
    }

    /// The section of this name that is loaded, as a named place; symbols may
    /// be gone where it is still there.
    pub fn section(&self, name: &str) -> Result<Option<Symbol>, ElfError> {
        self.with_file(|file| {
            let found = file.section_by_name(name);
            Ok(found
                .map(|section| Symbol {
                    address: section.address(),
                    size: section.size(),
                })
                .filter(|section| section.address != 0))
        })
    }

    /// The file offset of a virtual address, unless no file byte backs it.
    pub fn file_offset(&self, address: u64) -> Option<u64> {
        self.segments.iter().find_map(|segment| {
            let distance = address.checked_sub(segment.address)?;
            (distance < segment.file_size).then(|| segment.offset.checked_add(distance))?
        })
    }

    /// The virtual address of a file offset, unless it is not loaded.
    ///
    /// Where two segments share a page of the file, the one that holds the
    /// offset counts.
    pub fn virtual_address(&self, offset: u64) -> Option<u64> {
        self.segments.iter().find_map(|segment| {
            let distance = offset.checked_sub(segment.offset)?;
            (distance < segment.file_size).then(|| segment.address.checked_add(distance))?
        })
    }

    /// What a process adds to virtual addresses, from one of its mappings.
    pub fn load_bias(&self, start: u64, offset: u64) -> Option<u64> {
        let exact = self
            .segments
            .iter()
            .find(|segment| page(segment.offset) == offset);
        let holding = || {
            self.segments.iter().find(|segment| {
                let end = segment.offset.saturating_add(segment.file_size);
                (page(segment.offset)..end).contains(&offset)
            })
        };
        let segment = exact.or_else(holding)?;
        let address = segment
            .address
            .wrapping_sub(segment.offset)
            .wrapping_add(offset);
        Some(start.wrapping_sub(address))
    }

    /// The bytes of a function; at most [`MAX_FUNCTION`] of them, and
    /// [`UNSIZED_FUNCTION`] where the file does not tell its size.
    pub fn function(&self, symbol: Symbol) -> Result<Vec<u8>, ElfError> {
        let offset = self.file_offset(symbol.address).ok_or(ElfError::Damaged)?;
        let size = match symbol.size {
            0 => UNSIZED_FUNCTION,
            size => size.min(MAX_FUNCTION),
        };
        self.bytes(offset, size)
    }

    /// Up to `size` bytes at a file offset; fewer at the end of the file.
    pub fn bytes(&self, offset: u64, size: u64) -> Result<Vec<u8>, ElfError> {
        let size = size.min(self.length.saturating_sub(offset));
        let mut bytes = vec![0; usize::try_from(size).map_err(|_| ElfError::Damaged)?];
        self.file.read_exact_at(&mut bytes, offset)?;
        Ok(bytes)
    }

    /// Virtual address of the function of this file that the dynamic linker
    /// puts into the slot at a virtual address (of a jump through the
    /// procedure linkage table); none if another file may define it.
    pub fn linked_function(&self, slot: u64) -> Result<Option<u64>, ElfError> {
        let cache = ReadCache::new(&self.file);
        let damaged = |_| ElfError::Damaged;
        let file: ElfFile64<'_, LittleEndian, _> = ElfFile64::parse(&cache).map_err(damaged)?;
        let (Some(relocations), Some(symbols)) =
            (file.dynamic_relocations(), file.dynamic_symbol_table())
        else {
            return Ok(None);
        };
        for (address, relocation) in relocations {
            if address != slot {
                continue;
            }
            let RelocationTarget::Symbol(index) = relocation.target() else {
                return Ok(None);
            };
            let symbol = symbols.symbol_by_index(index).map_err(damaged)?;
            return Ok((!symbol.is_undefined()).then(|| symbol.address()));
        }
        Ok(None)
    }

    /// Whether the file asks for a library whose name begins so.
    pub fn needs(&self, library: &str) -> bool {
        let needed = self.with_file(|file| {
            let table = file.elf_dynamic_table().map_err(|_| ElfError::Damaged)?;
            let mut names = table
                .iter()
                .filter(|entry| entry.tag == elf::DT_NEEDED)
                .filter_map(|entry| table.string(entry).ok());
            Ok(names.any(|name| name.starts_with(library.as_bytes())))
        });
        needed.unwrap_or(false)
    }

    /// Looks at the file with the whole of `object`.
    pub fn with_file<T>(
        &self,
        look: impl for<'a> FnOnce(
            &ElfFile64<'a, LittleEndian, &'a ReadCache<&'a File>>,
        ) -> Result<T, ElfError>,
    ) -> Result<T, ElfError> {
        let cache = ReadCache::new(&self.file);
        let file = ElfFile64::parse(&cache).map_err(|_| ElfError::Damaged)?;
        look(&file)
    }

    /// What the file says of its thread-local variables, by the relocations
    /// of x86_64; those of other files are left out.
    pub fn thread_locals(&self) -> Result<ThreadLocals, ElfError> {
        let cache = ReadCache::new(&self.file);
        let damaged = |_| ElfError::Damaged;
        let file: ElfFile64<'_, LittleEndian, _> = ElfFile64::parse(&cache).map_err(damaged)?;
        let segments = file.elf_program_headers().iter();
        let mut locals = ThreadLocals {
            size: segments
                .filter(|segment| segment.p_type.get(LittleEndian) == elf::PT_TLS)
                .map(|segment| segment.p_memsz.get(LittleEndian))
                .sum(),
            ..ThreadLocals::default()
        };
        let symbols = file.dynamic_symbol_table();
        for (address, relocation) in file.dynamic_relocations().into_iter().flatten() {
            let places = match relocation.flags() {
                RelocationFlags::Elf { r_type } if r_type == elf::R_X86_64_DTPMOD64 => {
                    &mut locals.modules
                }
                RelocationFlags::Elf { r_type } if r_type == elf::R_X86_64_TPOFF64 => {
                    &mut locals.distances
                }
                RelocationFlags::Elf { r_type } if r_type == elf::R_X86_64_TLSDESC => {
                    &mut locals.descriptors
                }
                _ => continue,
            };
            let own = match (relocation.target(), &symbols) {
                (RelocationTarget::Symbol(index), Some(symbols)) => {
                    let symbol = symbols.symbol_by_index(index).map_err(damaged)?;
                    !symbol.is_undefined()
                }
                _ => true,
            };
            if own && places.len() < MAX_LOCAL_PLACES {
                places.push(address);
            }
        }
        Ok(locals)
    }

    fn look_up<const N: usize>(
        &self,
        names: [&str; N],
        tables: &[SymbolTable],
    ) -> Result<[Option<Symbol>; N], ElfError> {
        let mut found = [None; N];
        for table in tables {
            if found.iter().all(Option::is_some) {
                break;
            }
            self.search(*table, names, &mut found)?;
        }
        Ok(found)
    }

    fn search<const N: usize>(
        &self,
        table: SymbolTable,
        names: [&str; N],
        found: &mut [Option<Symbol>; N],
    ) -> Result<(), ElfError> {
        let SymbolTable { symbols, strings } = table;
        let symbols = read_words(&self.file, symbols.offset, symbols.size, self.length)?;
        let strings = read_words(&self.file, strings.offset, strings.size, self.length)?;
        let symbols: &[Sym64<LittleEndian>] = all_of(symbols.as_bytes())?;
        for symbol in symbols {
            let undefined = symbol.st_shndx.get(LittleEndian) == elf::SHN_UNDEF;
            if undefined || symbol.st_value.get(LittleEndian) == 0 {
                continue;
            }
            let name_at = symbol.st_name.get(LittleEndian) as usize;
            let Some(rest) = strings.as_bytes().get(name_at..) else {
                continue;
            };
            for (name, found) in names.iter().zip(&mut *found) {
                let is_it = rest
                    .strip_prefix(name.as_bytes())
                    .is_some_and(|end| end.starts_with(&[0]));
                if found.is_none() && is_it {
                    *found = Some(Symbol {
                        address: symbol.st_value.get(LittleEndian),
                        size: symbol.st_size.get(LittleEndian),
                    });
                }
            }
        }
        Ok(())
    }
}

// === impl MappedElf ===

impl MappedElf {
    /// Opens a file that a process has mapped.
    pub fn open(process: &Process, mapped: &MappedFile) -> Result<Self, ElfError> {
        let opened = process.open_file(mapped)?;
        let elf = Elf::parse(opened.file)?;
        let first = mapped.first();
        let load_bias = elf
            .load_bias(first.start, first.offset)
            .ok_or(ElfError::MappedOtherwise)?;
        let (device, inode) = (first.device, first.inode);
        Ok(Self {
            path: opened.path,
            device,
            inode,
            load_bias,
            elf,
        })
    }

    /// The address of a symbol in the process.
    pub fn address(&self, symbol: Symbol) -> u64 {
        symbol.address.wrapping_add(self.load_bias)
    }
}

fn elf_header(bytes: &[u8]) -> Option<&FileHeader64<LittleEndian>> {
    let (header, _) = pod::from_bytes::<FileHeader64<LittleEndian>>(bytes).ok()?;
    (header.is_supported() && header.is_class_64() && header.is_little_endian()).then_some(header)
}

fn read_segments(file: &File, headers: Extent, length: u64) -> Result<Vec<Segment>, ElfError> {
    let bytes = read_words(file, headers.offset, headers.size, length)?;
    let headers: &[ProgramHeader64<LittleEndian>] = all_of(bytes.as_bytes())?;
    let segments = headers
        .iter()
        .filter(|header| header.p_type.get(LittleEndian) == elf::PT_LOAD)
        .map(|header| Segment {
            offset: header.p_offset.get(LittleEndian),
            address: header.p_vaddr.get(LittleEndian),
            file_size: header.p_filesz.get(LittleEndian),
        })
        .collect();
    Ok(segments)
}

fn read_tables(file: &File, headers: Extent, length: u64) -> Result<Vec<SymbolTable>, ElfError> {
    let bytes = read_words(file, headers.offset, headers.size, length)?;
    let headers: &[SectionHeader64<LittleEndian>] = all_of(bytes.as_bytes())?;
    let extent = |header: &SectionHeader64<LittleEndian>| Extent {
        offset: header.sh_offset.get(LittleEndian),
        size: header.sh_size.get(LittleEndian),
    };
    let mut tables = Vec::new();
    for kind in [elf::SHT_DYNSYM, elf::SHT_SYMTAB] {
        for header in headers
            .iter()
            .filter(|it| it.sh_type.get(LittleEndian) == kind)
        {
            if let Some(strings) = headers.get(header.sh_link.get(LittleEndian) as usize) {
                tables.push(SymbolTable {
                    symbols: extent(header),
                    strings: extent(strings),
                });
            }
        }
    }
    Ok(tables)
}

/// Bytes of a file in memory that is aligned for any header; the last word is
/// filled up with zeroes.
fn read_words(file: &File, offset: u64, size: u64, length: u64) -> Result<Vec<u64>, ElfError> {
    let end = offset.checked_add(size).ok_or(ElfError::Damaged)?;
    if end > length || size > MAX_TABLE {
        return Err(ElfError::Damaged);
    }
    let size = usize::try_from(size).map_err(|_| ElfError::Damaged)?;
    let mut words = vec![0_u64; size.div_ceil(8)];
    let bytes = words
        .as_mut_bytes()
        .get_mut(..size)
        .ok_or(ElfError::Damaged)?;
    file.read_exact_at(bytes, offset)?;
    Ok(words)
}

/// As many `T` as fit into `bytes`.
fn all_of<T: pod::Pod>(bytes: &[u8]) -> Result<&[T], ElfError> {
    let count = bytes.len() / size_of::<T>();
    let (items, _) = pod::slice_from_bytes(bytes, count).map_err(|()| ElfError::Damaged)?;
    Ok(items)
}

/// The page that holds a file offset, with the smallest page there is.
fn page(offset: u64) -> u64 {
    offset & !0xfff
}

/// The most that is read of one function: far more than any function that is
/// probed (`_PyEval_EvalFrameDefault`, which is not, has 60 kB).
pub const MAX_FUNCTION: u64 = 64 << 10;

/// What is read of a function of unknown size: a prologue and more.
pub const UNSIZED_FUNCTION: u64 = 256;

/// The most relocations of thread-local variables that are kept of a kind;
/// greenlet has one or two.
const MAX_LOCAL_PLACES: usize = 16;

/// The largest table that is read; `.symtab` and its strings have 1 MB in an
/// interpreter with debug symbols.
const MAX_TABLE: u64 = 64 << 20;

const HEADER_SIZE: u64 = size_of::<FileHeader64<LittleEndian>>() as u64;
const PROGRAM_HEADER_SIZE: u64 = size_of::<ProgramHeader64<LittleEndian>>() as u64;
const SECTION_HEADER_SIZE: u64 = size_of::<SectionHeader64<LittleEndian>>() as u64;

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Seek, Write};

    fn file(bytes: &[u8]) -> File {
        let mut file = tempfile::tempfile().expect("tempfile");
        file.write_all(bytes).expect("writes");
        file.rewind().expect("rewinds");
        file
    }

    /// This test's own program, with symbols.
    fn own() -> (Process, MappedElf) {
        let process = Process::open(std::process::id()).expect("opens");
        let program = process.program().expect("exe");
        let files = process.mapped_files().expect("maps");
        let mapped = files
            .iter()
            .find(|file| file.first().inode == program)
            .expect("mapped");
        let image = MappedElf::open(&process, mapped).expect("parses");
        (process, image)
    }

    #[test]
    fn finds_a_function_of_the_running_program() {
        use pyframes::Memory;
        let (process, image) = own();
        let symbol = image.elf.symbol("main").expect("reads").expect("exists");
        let bytes = image.elf.function(symbol).expect("reads");
        assert!(!bytes.is_empty());
        let mut mapped = vec![0; bytes.len()];
        assert!(process.read(image.address(symbol), &mut mapped));
        assert_eq!(mapped, bytes);
    }

    #[test]
    fn finds_several_names_and_misses_unknown_ones() {
        let (_, image) = own();
        let found = image
            .elf
            .symbols(["no_such_symbol", "main"])
            .expect("reads");
        assert!(found[0].is_none() && found[1].is_some());
        // `write` is only imported.
        assert_eq!(image.elf.symbol("write").expect("reads"), None);
    }

    #[test]
    fn offsets_and_virtual_addresses_are_inverse() {
        let (_, image) = own();
        let symbol = image.elf.symbol("main").expect("reads").expect("exists");
        let offset = image.elf.file_offset(symbol.address).expect("in the file");
        assert_eq!(image.elf.virtual_address(offset), Some(symbol.address));
        assert_eq!(image.elf.file_offset(u64::MAX), None);
        assert_eq!(image.elf.virtual_address(u64::MAX), None);
    }

    #[test]
    fn the_bias_follows_from_any_mapping() {
        let segments = vec![
            Segment {
                offset: 0,
                address: 0x40_0000,
                file_size: 0x1230,
            },
            Segment {
                offset: 0x1230,
                address: 0x40_2230,
                file_size: 0x4000,
            },
        ];
        let elf = Elf {
            file: file(&[]),
            length: 0,
            machine: 0,
            segments,
            tables: Vec::new(),
        };
        assert_eq!(elf.load_bias(0x40_0000, 0), Some(0));
        assert_eq!(elf.load_bias(0x40_2000, 0x1000), Some(0));
        assert_eq!(
            elf.load_bias(0x7f00_0000_4000, 0x3000),
            Some(0x7f00_0000_4000 - 0x40_4000)
        );
        assert_eq!(elf.load_bias(0x1000, 0x9000), None);
    }

    #[test]
    fn refuses_what_is_not_elf() {
        for bytes in [&b""[..], b"#!/bin/sh\n", b"\x7fELF", &[0; 64]] {
            assert!(matches!(Elf::parse(file(bytes)), Err(ElfError::NotElf)));
        }
    }

    #[test]
    fn damaged_files_never_panic() {
        let whole = std::fs::read("/bin/true").expect("reads");
        for length in (0..whole.len()).step_by(997) {
            if let Ok(elf) = Elf::parse(file(&whole[..length])) {
                let _ = elf.symbol("main");
            }
        }
        for at in (0..64).chain(whole.len() - 2048..whole.len()) {
            for byte in [0, 0x7f, 0xff] {
                let mut damaged = whole.clone();
                damaged[at] = byte;
                if let Ok(elf) = Elf::parse(file(&damaged)) {
                    let _ = elf.symbol("main");
                }
            }
        }
    }
}
