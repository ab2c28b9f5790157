//! Text and bytes in quotes, with Python's escapes.

use core::fmt::{self, Write};

use super::Failure;
use crate::layout::Layout;
use crate::sequence::Bytes;
use crate::text;
use crate::{Error, Memory};

/// Writes the `str` at `address`, at most `limit` code points of it.
pub(super) fn write_str<M: Memory, W: Write>(
    memory: &M,
    layout: &Layout,
    address: u64,
    limit: u64,
    out: &mut W,
) -> Result<(), Failure> {
    let shown = || {
        text::code_points(memory, layout, address)
            .map(|(points, len)| (points.take(limit as usize), len))
    };
    let (points, len) = shown()?;
    let quote = quote(points)?;
    out.write_char(quote)?;
    for point in shown()?.0 {
        write_point(point?, quote, out)?;
    }
    out.write_char(quote)?;
    finish(len > limit, out)
}

/// Writes a `bytes`, at most `limit` of it.
pub(super) fn write_bytes<M: Memory, W: Write>(
    memory: &M,
    bytes: Bytes,
    limit: u64,
    out: &mut W,
) -> Result<(), Failure> {
    let shown = || Chunks::new(memory, bytes, limit);
    let quote = quote(shown())?;
    write!(out, "b{quote}")?;
    for byte in shown() {
        match byte? {
            // Beyond ASCII, bytes are no characters.
            byte @ 0x80.. => write!(out, "\\x{byte:02x}")?,
            byte => write_point(byte, quote, out)?,
        }
    }
    out.write_char(quote)?;
    finish(bytes.len > limit, out)
}

fn finish<W: Write>(cut: bool, out: &mut W) -> Result<(), Failure> {
    Ok(out.write_str(if cut { "..." } else { "" })?)
}

/// The quote that needs fewer escapes: double ones only around single ones.
fn quote(points: impl Iterator<Item = Result<u32, Error>>) -> Result<char, Error> {
    let (mut single, mut double) = (false, false);
    for point in points {
        let point = point?;
        single |= point == u32::from('\'');
        double |= point == u32::from('"');
    }
    Ok(if single && !double { '"' } else { '\'' })
}

fn write_point<W: Write>(point: u32, quote: char, out: &mut W) -> fmt::Result {
    match char::from_u32(point) {
        Some('\n') => out.write_str("\\n"),
        Some('\r') => out.write_str("\\r"),
        Some('\t') => out.write_str("\\t"),
        Some('\\') => out.write_str("\\\\"),
        Some(character) if character == quote => write!(out, "\\{character}"),
        Some(character) if is_printable(character) => out.write_char(character),
        _ if point < 0x100 => write!(out, "\\x{point:02x}"),
        _ if point < 0x1_0000 => write!(out, "\\u{point:04x}"),
        _ => write!(out, "\\U{point:08x}"),
    }
}

/// Whether `str.isprintable()`: not a control, a separator (but for the
/// space), a surrogate, nor unassigned.
///
/// The standard library leaves the same characters as they are in `{:?}`, also
/// those that combine with the one before them unless they come first.
fn is_printable(character: char) -> bool {
    if character.is_ascii() {
        return character == ' ' || character.is_ascii_graphic();
    }
    let mut buffer = [0; 5];
    let Some((first, rest)) = buffer.split_first_mut() else {
        return false;
    };
    *first = b'a';
    let len = 1 + character.encode_utf8(rest).len();
    let text = buffer.get(..len).map(core::str::from_utf8);
    matches!(text, Some(Ok(text)) if text.escape_debug().count() == 2)
}

/// The bytes of a `bytes`; ends after an error.
struct Chunks<'m, M> {
    memory: &'m M,
    next: u64,
    left: u64,
    chunk: [u8; CHUNK],
    taken: usize,
    filled: usize,
}

impl<'m, M: Memory> Chunks<'m, M> {
    fn new(memory: &'m M, bytes: Bytes, limit: u64) -> Self {
        Self {
            memory,
            next: bytes.data,
            left: bytes.len.min(limit),
            chunk: [0; CHUNK],
            taken: 0,
            filled: 0,
        }
    }
}

impl<M: Memory> Iterator for Chunks<'_, M> {
    type Item = Result<u32, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.taken == self.filled {
            let n_bytes = self.left.min(CHUNK as u64) as usize;
            let chunk = self.chunk.get_mut(..n_bytes)?;
            if chunk.is_empty() {
                return None;
            }
            if !self.memory.read(self.next, chunk) {
                self.left = 0;
                return Some(Err(Error::Unreadable));
            }
            self.next = self.next.wrapping_add(n_bytes as u64);
            self.left -= n_bytes as u64;
            (self.taken, self.filled) = (0, n_bytes);
        }
        let byte = self.chunk.get(self.taken).copied()?;
        self.taken += 1;
        Some(Ok(u32::from(byte)))
    }
}

/// Bytes read at once.
const CHUNK: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;
    use std::string::String;

    /// What CPython's `repr` makes of it.
    #[test]
    fn escapes_what_python_escapes() {
        for (point, expected) in [
            (u32::from('a'), "a"),
            (u32::from(' '), " "),
            (u32::from('"'), "\""),
            (u32::from('\''), "\\'"),
            (u32::from('\\'), "\\\\"),
            (0, "\\x00"),
            (0x1b, "\\x1b"),
            (0x7f, "\\x7f"),
            (0xa0, "\\xa0"),
            (0xad, "\\xad"),
            (0xe9, "\u{e9}"),
            (0x301, "\u{301}"),
            (0x200b, "\\u200b"),
            (0x2028, "\\u2028"),
            (0x3000, "\\u3000"),
            (0xd800, "\\ud800"),
            (0xe000, "\\ue000"),
            (0xfeff, "\\ufeff"),
            (0x65e5, "\u{65e5}"),
            (0x1f40d, "\u{1f40d}"),
            (0xe0001, "\\U000e0001"),
            (0x10_ffff, "\\U0010ffff"),
            (0x0110_0000, "\\U01100000"),
        ] {
            let mut written = String::new();
            assert_eq!(write_point(point, '\'', &mut written), Ok(()));
            assert_eq!(written, expected, "{point:x}");
        }
    }
}
