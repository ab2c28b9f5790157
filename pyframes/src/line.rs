//! Tells which line an instruction belongs to, by the table of its code
//! object.
//!
//! Three formats, as CPython's own `PyCode_Addr2Line` reads them: `co_lnotab`
//! up to 3.9 (`Objects/lnotab_notes.txt`), the pairs of PEP 626 in 3.10, and
//! the location table since 3.11 (`Objects/locations.md`), which knows columns
//! as well.

use crate::code::Code;
use crate::layout::{ABSENT, Layout};
use crate::sequence::Bytes;
use crate::{Error, Memory, field};

/// A place in a source file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Position {
    /// The line, the first being 1.
    pub line: u32,
    /// The line where the expression ends; since 3.11.
    pub end_line: Option<u32>,
    /// The column where it begins, bytes of UTF-8 from 0; since 3.11.
    pub column: Option<u32>,
    /// The column behind its end; since 3.11.
    pub end_column: Option<u32>,
}

impl Position {
    const fn of_line(line: u32) -> Self {
        Self {
            line,
            end_line: None,
            column: None,
            end_column: None,
        }
    }
}

/// The offset of an instruction in its bytecode, in bytes, or `None` if the
/// frame has not begun.
///
/// `instruction` is what the frame holds (see [`crate::layout::Frame::lasti`]):
/// an index of which only the low 32 bits count, or an address.
pub fn lasti<M: Memory>(
    memory: &M,
    layout: &Layout,
    code: u64,
    instruction: u64,
) -> Result<Option<u32>, Error> {
    let at = &layout.code;
    if layout.frame.lasti_unit != 0 {
        let Ok(idx) = u32::try_from((instruction as u32).cast_signed()) else {
            return Ok(None);
        };
        let bytecode = memory.pointer(field(code, at.co_code))?;
        let len = memory.u64(field(bytecode, layout.object.ob_size))?;
        let offset = u64::from(idx) * u64::from(layout.frame.lasti_unit);
        return within(offset, len).map(Some);
    }
    let n_instructions = memory.u64(field(code, layout.object.ob_size))?;
    let len = n_instructions
        .checked_mul(INSTRUCTION)
        .ok_or(Error::TooLong)?;
    let first = field(code, at.co_code_adaptive);
    // 3.11 and 3.12 point to the instruction before the first one.
    if instruction == first.wrapping_sub(INSTRUCTION) {
        return Ok(None);
    }
    if let Ok(offset) = within(instruction.wrapping_sub(first), len) {
        return Ok(Some(offset));
    }
    if at.co_tlbc == ABSENT {
        return Err(Error::Malformed);
    }
    // The thread runs a copy: `_PyCodeArray` is a size and that many pointers.
    let copies = memory.pointer(field(code, at.co_tlbc))?;
    let n_copies = memory.u64(copies)?;
    for idx in 0..n_copies.min(MAX_COPIES) {
        let copy = memory.u64(copies.wrapping_add(8 + idx * 8))?;
        if copy != 0
            && let Ok(offset) = within(instruction.wrapping_sub(copy), len)
        {
            return Ok(Some(offset));
        }
    }
    Err(Error::Malformed)
}

/// The line of the instruction at `lasti`, or `None` if it belongs to none.
///
/// A frame that has not begun is at the function's first line.
pub fn line<M: Memory>(
    memory: &M,
    layout: &Layout,
    code: &Code,
    lasti: Option<u32>,
) -> Result<Option<u32>, Error> {
    match lasti {
        None => Ok(Some(code.firstlineno)),
        Some(lasti) => {
            let position = position(memory, layout, code, lasti)?;
            Ok(position.map(|position| position.line))
        }
    }
}

/// The place of the instruction at `lasti` (bytes), or `None` if it belongs to
/// no line.
pub fn position<M: Memory>(
    memory: &M,
    layout: &Layout,
    code: &Code,
    lasti: u32,
) -> Result<Option<Position>, Error> {
    let mut table = Table::open(memory, layout, code.linetable)?;
    let first = i64::from(code.firstlineno);
    if layout.code.co_code_adaptive != ABSENT {
        in_locations(&mut table, first, u64::from(lasti))
    } else if layout.frame.lasti_unit == LNOTAB_UNIT {
        in_lnotab(&mut table, first, u64::from(lasti))
    } else {
        in_pairs(&mut table, first, u64::from(lasti))
    }
}

/// Up to 3.9: pairs of a distance in bytes and a distance in lines. The line
/// is that of the last pair that does not lead beyond the instruction.
fn in_lnotab<M: Memory>(
    table: &mut Table<'_, M>,
    first: i64,
    lasti: u64,
) -> Result<Option<Position>, Error> {
    let (mut address, mut line) = (0, first);
    while let Some(distance) = table.next()? {
        let lines = table.expect()?.cast_signed();
        address += u64::from(distance);
        if address > lasti {
            break;
        }
        line += i64::from(lines);
    }
    to_line(line).map(|line| Some(Position::of_line(line)))
}

/// 3.10: each pair is a range of bytes and the distance of its line to the
/// line before; -128 says that the range belongs to no line.
fn in_pairs<M: Memory>(
    table: &mut Table<'_, M>,
    first: i64,
    lasti: u64,
) -> Result<Option<Position>, Error> {
    let (mut end, mut line) = (0, first);
    while let Some(len) = table.next()? {
        let lines = table.expect()?.cast_signed();
        end += u64::from(len);
        if lines != NO_LINE {
            line += i64::from(lines);
        }
        if end > lasti {
            if lines == NO_LINE {
                return Ok(None);
            }
            return to_line(line).map(|line| Some(Position::of_line(line)));
        }
    }
    Err(Error::Malformed)
}

/// Since 3.11: entries of variable length, each for up to eight instructions.
fn in_locations<M: Memory>(
    table: &mut Table<'_, M>,
    first: i64,
    lasti: u64,
) -> Result<Option<Position>, Error> {
    let (mut end, mut line) = (0, first);
    while let Some(head) = table.next()? {
        if head & 0x80 == 0 {
            return Err(Error::Malformed);
        }
        end += (u64::from(head & 7) + 1) * INSTRUCTION;
        let form = head >> 3 & 15;
        let mut end_lines = 0;
        let (column, end_column) = match form {
            0..=9 => {
                let columns = table.expect()?;
                let column = u32::from(form) << 3 | u32::from(columns >> 4 & 7);
                (Some(column), Some(column + u32::from(columns & 15)))
            }
            10..=12 => {
                line += i64::from(form) - 10;
                let column = table.expect()?;
                (Some(u32::from(column)), Some(u32::from(table.expect()?)))
            }
            13 => {
                line += table.signed()?;
                (None, None)
            }
            14 => {
                line += table.signed()?;
                end_lines = i64::from(table.unsigned()?);
                // 0 stands for no column.
                let column = table.unsigned()?.checked_sub(1);
                (column, table.unsigned()?.checked_sub(1))
            }
            _ => (None, None),
        };
        if end <= lasti {
            continue;
        }
        if form > 14 {
            return Ok(None);
        }
        return Ok(Some(Position {
            line: to_line(line)?,
            end_line: Some(to_line(line.saturating_add(end_lines))?),
            column,
            end_column,
        }));
    }
    Err(Error::Malformed)
}

/// `offset`, if it lies in a bytecode of `len` bytes.
fn within(offset: u64, len: u64) -> Result<u32, Error> {
    if offset >= len || len > MAX_BYTECODE {
        return Err(Error::Malformed);
    }
    Ok(offset as u32)
}

fn to_line(line: i64) -> Result<u32, Error> {
    u32::try_from(line).map_err(|_| Error::Malformed)
}

/// The bytes of a table, read in chunks.
struct Table<'m, M> {
    memory: &'m M,
    next: u64,
    /// Bytes that are not in the chunk yet.
    left: u64,
    chunk: [u8; CHUNK],
    taken: usize,
    filled: usize,
}

impl<'m, M: Memory> Table<'m, M> {
    fn open(memory: &'m M, layout: &Layout, address: u64) -> Result<Self, Error> {
        let table = Bytes::open(memory, layout, address)?;
        if table.len > MAX_TABLE {
            return Err(Error::TooLong);
        }
        Ok(Self {
            memory,
            next: table.data,
            left: table.len,
            chunk: [0; CHUNK],
            taken: 0,
            filled: 0,
        })
    }

    /// The next byte, or `None` at the end.
    fn next(&mut self) -> Result<Option<u8>, Error> {
        if self.taken == self.filled {
            if self.left == 0 {
                return Ok(None);
            }
            let n_bytes = self.left.min(CHUNK as u64) as usize;
            let chunk = self.chunk.get_mut(..n_bytes).ok_or(Error::TooLong)?;
            if !self.memory.read(self.next, chunk) {
                return Err(Error::Unreadable);
            }
            self.next = self.next.wrapping_add(n_bytes as u64);
            self.left -= n_bytes as u64;
            (self.taken, self.filled) = (0, n_bytes);
        }
        let byte = self.chunk.get(self.taken).copied();
        self.taken += 1;
        Ok(byte)
    }

    /// The next byte, which must be there.
    fn expect(&mut self) -> Result<u8, Error> {
        self.next()?.ok_or(Error::Malformed)
    }

    /// A number in groups of six bits, the lowest first; bit 6 says that more
    /// follow.
    fn unsigned(&mut self) -> Result<u32, Error> {
        let mut value = 0;
        for shift in (0..36).step_by(6) {
            let byte = self.expect()?;
            value |= u64::from(byte & 63) << shift;
            if byte & 64 == 0 {
                return u32::try_from(value).map_err(|_| Error::Malformed);
            }
        }
        Err(Error::Malformed)
    }

    /// A number whose lowest bit is its sign.
    fn signed(&mut self) -> Result<i64, Error> {
        let bits = self.unsigned()?;
        let value = i64::from(bits >> 1);
        Ok(if bits & 1 != 0 { -value } else { value })
    }
}

/// Bytes of an instruction (`_Py_CODEUNIT`), of a cache entry too.
const INSTRUCTION: u64 = 2;

/// `lasti_unit` of the versions that have `co_lnotab`.
const LNOTAB_UNIT: u32 = 1;

/// In 3.10, the distance in lines that stands for no line.
const NO_LINE: i8 = -128;

/// More bytes of code, and of its table, than any function has; generated
/// modules of megabytes are beyond `bytes` that are read here.
const MAX_BYTECODE: u64 = 1 << 24;
const MAX_TABLE: u64 = 1 << 20;

/// More threads than run one function at a time (each has its copy).
const MAX_COPIES: u64 = 1 << 12;

/// Bytes read at once.
const CHUNK: usize = 128;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::for_each_layout;
    use crate::fake::objects::CodeParts;

    /// 1: two instructions at line 10; 2: one at 12; 3: one at 9; 4: one at
    /// 310.
    const LNOTAB: [u8; 12] = [4, 2, 2, 0xfd, 2, 127, 0, 127, 0, 47, 2, 0];
    /// The same, and one instruction without a line.
    const PAIRS: [u8; 16] = [4, 0, 2, 2, 2, 0xfd, 0, 127, 0, 127, 2, 47, 2, 0x80, 4, 1];
    /// The same; the first with columns, the second over two lines.
    #[rustfmt::skip]
    const LOCATIONS: [u8; 17] = [
        0x80 | 1, 0x45, // columns 4 to 9, form 0
        0x80 | 14 << 3, 4, 1, 9, 3, // line +2, one more line, columns 8 and 2
        0x80 | 13 << 3, 7, // line -3
        0x80 | 13 << 3, 0x40 | 26, 9, // line +301
        0x80 | 15 << 3, // no line
        0x80 | 11 << 3 | 1, 0, 7, // line +1, columns 0 to 7
        0x80 | 15 << 3,
    ];

    const fn table(layout: &Layout) -> &'static [u8] {
        if layout.code.co_code_adaptive != ABSENT {
            &LOCATIONS
        } else if layout.frame.lasti_unit == 1 {
            &LNOTAB
        } else {
            &PAIRS
        }
    }

    fn code(fake: &mut crate::fake::Fake, layout: &Layout, linetable: &[u8]) -> Code {
        let parts = CodeParts {
            linetable,
            ..CodeParts::EMPTY
        };
        let address = fake.code(layout, parts);
        Code::read(fake, layout, address).expect("reads")
    }

    #[test]
    fn finds_lines_in_the_table_of_each_version() {
        for_each_layout(|layout, fake| {
            let code = code(fake, layout, table(layout));
            let at = |lasti| line(fake, layout, &code, Some(lasti));
            assert_eq!(line(fake, layout, &code, None), Ok(Some(10)));
            assert_eq!([at(0), at(2)], [Ok(Some(10)), Ok(Some(10))]);
            assert_eq!(at(4), Ok(Some(12)));
            assert_eq!(at(6), Ok(Some(9)));
            assert_eq!(at(8), Ok(Some(310)));
            if layout.frame.lasti_unit != LNOTAB_UNIT {
                assert_eq!(at(10), Ok(None));
                assert_eq!([at(12), at(14)], [Ok(Some(311)), Ok(Some(311))]);
                let end = if layout.frame.lasti_unit == 0 { 18 } else { 16 };
                assert_eq!(at(end), Err(Error::Malformed));
            }
        });
    }

    #[test]
    fn finds_columns_in_location_tables() {
        for_each_layout(|layout, fake| {
            if layout.code.co_code_adaptive == ABSENT {
                return;
            }
            let code = code(fake, layout, table(layout));
            let at = |lasti| {
                let found = position(fake, layout, &code, lasti).expect("reads");
                found.map(|it| (it.line, it.end_line, it.column, it.end_column))
            };
            assert_eq!(at(0), Some((10, Some(10), Some(4), Some(9))));
            assert_eq!(at(4), Some((12, Some(13), Some(8), Some(2))));
            assert_eq!(at(6), Some((9, Some(9), None, None)));
            assert_eq!(at(12), Some((311, Some(311), Some(0), Some(7))));
        });
    }

    #[test]
    fn a_table_cut_anywhere_gives_a_line_or_an_error() {
        for_each_layout(|layout, fake| {
            let whole = table(layout);
            let code = code(fake, layout, whole);
            for len in 0..whole.len() {
                let size = field(code.linetable, layout.object.ob_size);
                fake.put_u64(size, len as u64);
                for lasti in 0..20 {
                    let _ = position(fake, layout, &code, lasti);
                }
            }
        });
    }

    #[test]
    fn a_line_below_zero_is_malformed() {
        for_each_layout(|layout, fake| {
            let (table, lasti) = match layout.frame.lasti_unit {
                0 => (&[0x80 | 13 << 3, 0x40 | 63, 1][..], 0),
                1 => (&[2, 0x90][..], 2),
                _ => (&[2, 0x90][..], 0),
            };
            let code = code(fake, layout, table);
            let found = position(fake, layout, &code, lasti);
            assert_eq!(found, Err(Error::Malformed));
        });
    }

    #[test]
    fn a_number_without_an_end_is_malformed() {
        for_each_layout(|layout, fake| {
            if layout.code.co_code_adaptive != ABSENT {
                let code = code(
                    fake,
                    layout,
                    &[0x80 | 13 << 3, 127, 127, 127, 127, 127, 127, 127],
                );
                assert_eq!(position(fake, layout, &code, 0), Err(Error::Malformed));
            }
        });
    }

    #[test]
    fn takes_instructions_as_each_version_has_them() {
        for_each_layout(|layout, fake| {
            let address = code(fake, layout, &[]).address;
            let at = |instruction| lasti(fake, layout, address, instruction);
            if layout.frame.lasti_unit != 0 {
                let unit = layout.frame.lasti_unit;
                assert_eq!(at(u64::MAX), Ok(None));
                assert_eq!(at(0xffff_ffff), Ok(None));
                assert_eq!(at(3), Ok(Some(3 * unit)));
                assert_eq!(at(7 << 32 | 2), Ok(Some(2 * unit)));
                assert_eq!(at(16), Err(Error::Malformed));
            } else {
                let first = field(address, layout.code.co_code_adaptive);
                assert_eq!(at(first - 2), Ok(None));
                assert_eq!(at(first), Ok(Some(0)));
                assert_eq!(at(first + 14), Ok(Some(14)));
                assert!(at(first + 16).is_err());
                assert!(at(7).is_err());
            }
        });
    }

    #[test]
    fn finds_instructions_in_a_threads_copy() {
        for_each_layout(|layout, fake| {
            if layout.code.co_tlbc == ABSENT {
                return;
            }
            let address = code(fake, layout, &[]).address;
            let first = field(address, layout.code.co_code_adaptive);
            let copy = fake.put(&[0; 16]);
            let copies: std::vec::Vec<u8> = [3, first, 0, copy]
                .iter()
                .flat_map(|word: &u64| word.to_le_bytes())
                .collect();
            let copies = fake.put(&copies);
            fake.put_u64(field(address, layout.code.co_tlbc), copies);
            let at = |instruction| lasti(fake, layout, address, instruction);
            assert_eq!(at(first + 4), Ok(Some(4)));
            assert_eq!(at(copy + 6), Ok(Some(6)));
            assert_eq!(at(copy + 16), Err(Error::Malformed));
            fake.put_u64(copies, u64::MAX);
            assert!(lasti(fake, layout, address, copy + 16).is_err());
        });
    }

    #[test]
    fn garbage_never_panics() {
        for_each_layout(|layout, fake| {
            let read = code(fake, layout, table(layout));
            let linetable = read.linetable;
            fake.each_corruption(linetable, |fake| {
                let _ = position(fake, layout, &read, 8);
            });
            fake.each_corruption(read.address + 256, |fake| {
                let _ = lasti(fake, layout, read.address, read.address + 300);
            });
        });
    }
}
