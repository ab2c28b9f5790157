//! Where a copy of SQLite begins and ends statements, and where it keeps what
//! is told of them.
//!
//! Nothing in SQLite's interface tells a process's statements from outside, and
//! the structures behind it change. But the code that every copy brings along
//! knows them: functions that give one field away say where that is, and
//! `sqlite3_step` has one place where a statement begins. What the code does
//! not show is not guessed: such a copy is left alone.

use std::collections::{BTreeSet, HashSet};

use abi::map::SqliteLayout;
use iced_x86::{Code, Instruction, Mnemonic, OpKind, Register};
use object::elf::EM_X86_64;

use super::elf::{Elf, ElfError, Symbol};
use super::placement::flow::Flow;
use super::placement::path::{self, Passage};
use super::tls::calls_of;

/// What is probed in a copy of SQLite, by virtual address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sqlite {
    /// Where a statement begins.
    pub begin: Passage,
    /// `sqlite3_reset`.
    pub reset: Symbol,
    /// `sqlite3_finalize`.
    pub finalize: Symbol,
    /// `sqlite3_prepare_v2` and `sqlite3_prepare_v3`.
    pub compile: [Option<Symbol>; 2],
    /// `sqlite3_errmsg`, if the code of an error can be told.
    pub message: Option<Symbol>,
    /// Offsets, without a register.
    pub layout: SqliteLayout,
}

/// What a file has of SQLite.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Found {
    /// Nothing.
    #[default]
    Nothing,
    /// A copy whose code does not tell enough: what is missing.
    Unclear(&'static str),
    /// A copy that can be followed.
    Copy(Sqlite),
}

/// The first release whose statements have a state instead of a magic number,
/// which shortened the fields before those that are read.
const STATES: u32 = 3_038_000;
/// In a statement, the instruction that is next: before that release and from
/// it on. Rows are counted in the word before it; the result is after it.
const INSTRUCTION: [u32; 2] = [0x34, 0x30];
/// The magic number of an open connection (`SQLITE_MAGIC_OPEN`).
const OPEN: u64 = 0xa029_a697;
/// The nearest that a pager's file name may be to its beginning, as there are
/// other pointers.
const FIRST_NAME: u64 = 0x80;

/// Looks for SQLite in a file.
pub fn sqlite(elf: &Elf) -> Result<Found, ElfError> {
    let [
        step,
        reset,
        finalize,
        sql,
        columns,
        version,
        name,
        code,
        prepare,
        prepare_v3,
        message,
    ] = elf.symbols([
        "sqlite3_step",
        "sqlite3_reset",
        "sqlite3_finalize",
        "sqlite3_sql",
        "sqlite3_column_count",
        "sqlite3_libversion_number",
        "sqlite3_db_filename",
        "sqlite3_extended_errcode",
        "sqlite3_prepare_v2",
        "sqlite3_prepare_v3",
        "sqlite3_errmsg",
    ])?;
    let Some(step) = step else {
        return Ok(Found::Nothing);
    };
    if elf.machine() != EM_X86_64.0 {
        return Ok(Found::Unclear("this processor"));
    }
    let (Some(reset), Some(finalize), Some(sql), Some(columns), Some(version)) =
        (reset, finalize, sql, columns, version)
    else {
        return Ok(Found::Unclear("exported functions"));
    };
    let flow = |symbol: Symbol| flow(elf, symbol);
    let Some(sql) = flow(sql).and_then(|flow| field(&flow, 8)) else {
        return Ok(Found::Unclear("sqlite3_sql"));
    };
    let columns = flow(columns);
    let Some(columns) = columns.and_then(|flow| field(&flow, 2).or_else(|| field(&flow, 4))) else {
        return Ok(Found::Unclear("sqlite3_column_count"));
    };
    let Some(version) = flow(version).as_ref().and_then(constant) else {
        return Ok(Found::Unclear("sqlite3_libversion_number"));
    };
    let Some(step) = flow(step) else {
        return Ok(Found::Unclear("sqlite3_step"));
    };
    let instruction = INSTRUCTION[usize::from(version >= STATES)];
    let Some(begin) = begin(&step, instruction) else {
        return Ok(Found::Unclear("where sqlite3_step begins a statement"));
    };
    let Some(executing) = executing(&step) else {
        return Ok(Found::Unclear("what sqlite3_step counts"));
    };
    let (file_name, in_memory) = name
        .and_then(flow)
        .and_then(|flow| file_name(&flow))
        .unwrap_or_default();
    let error = code.and_then(flow).and_then(|flow| error(&flow));
    Ok(Found::Copy(Sqlite {
        begin,
        reset,
        finalize,
        compile: [prepare, prepare_v3],
        message: message.filter(|_| error.is_some()),
        layout: SqliteLayout {
            register: 0,
            sql,
            counters: instruction - 4,
            columns,
            executing,
            file_name,
            in_memory,
            error: error.unwrap_or_default(),
        },
    }))
}

/// Where a file's code begins or continues a statement.
pub fn steps(elf: &Elf) -> Result<HashSet<u64>, ElfError> {
    calls_of(elf, "sqlite3_step")
}

fn flow(elf: &Elf, function: Symbol) -> Option<Flow> {
    const MARGIN: u64 = 16;
    // Mostly all of it is in one piece.
    let from = elf.file_offset(function.address)?;
    let bytes = elf.bytes(from, function.size.min(1 << 16) + MARGIN).ok()?;
    let code = |address: u64| {
        let inside = address
            .checked_sub(function.address)
            .filter(|distance| *distance < function.size)
            .and_then(|distance| bytes.get(usize::try_from(distance).ok()?..));
        match inside {
            Some(bytes) => Some(bytes.get(..bytes.len().min(16))?.to_vec()),
            None => elf.bytes(elf.file_offset(address)?, MARGIN).ok(),
        }
    };
    path::follow(function.address, function.size, code, |slot| {
        elf.linked_function(slot).ok().flatten()
    })
}

/// A memory operand's register and distance, if it is no more than that.
fn operand(instruction: &Instruction) -> Option<(Register, u64)> {
    let base = instruction.memory_base();
    let plain =
        instruction.memory_index() == Register::None && base.is_gpr64() && base != Register::RSP;
    let memory = instruction.op_kinds().any(|kind| kind == OpKind::Memory);
    (plain && memory).then(|| (base, instruction.memory_displacement64()))
}

fn size(instruction: &Instruction) -> usize {
    instruction.memory_size().size()
}

/// The offset of the only field of its first argument, of so many bytes, that
/// a function gives away.
fn field(flow: &Flow, bytes: usize) -> Option<u32> {
    let mut found = flow.instructions().filter_map(|instruction| {
        let loads = matches!(instruction.mnemonic(), Mnemonic::Mov | Mnemonic::Movzx)
            && instruction.op0_kind() == OpKind::Register
            && instruction.op0_register().full_register() == Register::RAX;
        let (base, distance) = operand(instruction)?;
        (loads && base == Register::RDI && size(instruction) == bytes).then_some(distance)
    });
    let only = found.next()?;
    found
        .all(|other| other == only)
        .then(|| u32::try_from(only).ok())?
}

/// In a connection, the offset of the last error's code: of the number of four
/// bytes that is given away. Up to 3.36 a connection's magic number, which lies
/// behind it, may be looked at in the same place.
fn error(flow: &Flow) -> Option<u32> {
    let loaded = flow.instructions().filter_map(|instruction| {
        let loads =
            instruction.code() == Code::Mov_r32_rm32 && instruction.op0_register() == Register::EAX;
        let (_, distance) = operand(instruction)?;
        loads.then_some(distance)
    });
    let loaded: BTreeSet<u64> = loaded.collect();
    let looks = |instruction: &Instruction| {
        let number = instruction.try_immediate(1).ok();
        instruction.mnemonic() == Mnemonic::Cmp
            && number.is_some_and(|number| number & u64::from(u32::MAX) == OPEN)
    };
    let most = 1 + usize::from(flow.instructions().any(looks));
    let first = loaded.first().filter(|_| loaded.len() <= most)?;
    u32::try_from(*first).ok()
}

/// The number that a function returns.
fn constant(flow: &Flow) -> Option<u32> {
    let mut moved = flow
        .instructions()
        .filter(|instruction| instruction.code() == Code::Mov_r32_imm32);
    let number = moved.next()?.immediate32();
    moved.next().is_none().then_some(number)
}

/// Where a statement begins: it is set to its first instruction.
fn begin(flow: &Flow, instruction: u32) -> Option<Passage> {
    let mut places = flow.instructions().filter_map(|found| {
        let (base, distance) = operand(found)?;
        let sets = found.code() == Code::Mov_rm32_imm32 && found.immediate32() == 0;
        (sets && distance == u64::from(instruction)).then(|| (found.ip(), base))
    });
    let (at, register) = places.next()?;
    if places.next().is_some() {
        return None;
    }
    // The result, which comes next, must be of interest to the function.
    let result = u64::from(instruction) + 4;
    let mut accesses = flow.instructions().filter_map(operand);
    accesses.find(|(_, distance)| *distance == result)?;
    flow.passage(at, register)
}

/// The offset of the number of statements that run inside of each other: what
/// is counted up before one is run, and down after.
fn executing(flow: &Flow) -> Option<u32> {
    let counted = |mnemonic: Mnemonic, short: Mnemonic, step: i32| {
        flow.instructions()
            .filter_map(|instruction| {
                let (base, distance) = operand(instruction)?;
                let number = instruction.try_immediate(1).ok().map(u64::cast_signed);
                let by = instruction.mnemonic() == mnemonic && number == Some(i64::from(step));
                let counts = by || instruction.mnemonic() == short;
                let in_memory = instruction.op0_kind() == OpKind::Memory;
                (counts && in_memory && size(instruction) == 4).then_some((base, distance))
            })
            .collect::<Vec<_>>()
    };
    let mut up = counted(Mnemonic::Add, Mnemonic::Inc, 1);
    up.extend(counted(Mnemonic::Sub, Mnemonic::INVALID, -1));
    let mut down = counted(Mnemonic::Sub, Mnemonic::Dec, 1);
    down.extend(counted(Mnemonic::Add, Mnemonic::INVALID, -1));
    // Of the four numbers that are next to each other it is the last.
    let mut found = down.iter().filter(|(base, distance)| {
        let has = |distance: u64| up.contains(&(*base, distance));
        has(*distance) && distance.checked_sub(12).is_some_and(has)
    });
    let &(_, only) = found.next()?;
    if found.any(|&(_, other)| other != only) {
        return None;
    }
    u32::try_from(only).ok()
}

/// In a pager, the offsets of the file's name, and of the byte that says that
/// there is no file.
fn file_name(flow: &Flow) -> Option<(u32, u32)> {
    let mut names = flow.instructions().filter_map(|instruction| {
        let (_, distance) = operand(instruction)?;
        let loads = instruction.code() == Code::Mov_r64_rm64 && distance >= FIRST_NAME;
        loads.then_some(distance)
    });
    let name = names.next()?;
    let mut flags = flow.instructions().filter_map(|instruction| {
        let (_, distance) = operand(instruction)?;
        let compares = instruction.code() == Code::Cmp_rm8_imm8 && instruction.immediate8() == 0;
        (compares && distance < FIRST_NAME).then_some(distance)
    });
    let flag = flags.next()?;
    if names.any(|other| other != name) || flags.any(|other| other != flag) {
        return None;
    }
    Some((u32::try_from(name).ok()?, u32::try_from(flag).ok()?))
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use proptest::prelude::*;

    use super::*;

    fn look(path: &str) -> Option<Found> {
        let file = File::open(path).ok()?;
        Some(sqlite(&Elf::parse(file).expect("a file of this system")).expect("readable"))
    }

    /// The system's library has the offsets that its release has.
    #[test]
    fn finds_the_systems_library() {
        let path = "/usr/lib/x86_64-linux-gnu/libsqlite3.so.0";
        let Some(found) = look(path) else {
            // Another system, or another processor's.
            return;
        };
        let Found::Copy(found) = found else {
            panic!("{found:x?}");
        };
        assert_eq!(found.layout.counters + 4, INSTRUCTION[1]);
    }

    #[test]
    fn a_file_without_it_has_nothing() {
        let own = std::env::current_exe().expect("a name");
        let found = look(own.to_str().expect("a name")).expect("it is there");
        assert_eq!(found, Found::Nothing);
    }

    proptest! {
        #[test]
        fn any_code_is_looked_at(code in proptest::collection::vec(any::<u8>(), 1..200)) {
            let bytes = |address: u64| {
                let from = usize::try_from(address.checked_sub(0x1000)?).ok()?;
                code.get(from..).map(<[u8]>::to_vec)
            };
            if let Some(flow) = path::follow(0x1000, code.len() as u64, bytes, |_| None) {
                for instruction in INSTRUCTION {
                    begin(&flow, instruction);
                }
                let (_, _, _) = (executing(&flow), file_name(&flow), constant(&flow));
                field(&flow, 8);
            }
        }
    }
}
