//! Reads text: `str` objects of every kind and C strings.
//!
//! Text goes into a buffer of the caller, as UTF-8. What does not fit is cut
//! at a character's end; a lone surrogate becomes U+FFFD.

use crate::layout::Layout;
use crate::object::{self, flag};
use crate::{Error, Memory, field};

/// Text read into a caller's buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Text<'b> {
    /// What was read.
    pub text: &'b str,
    /// Whether more followed.
    pub truncated: bool,
}

/// Writes into a buffer what fits and remembers whether something did not.
pub(crate) struct Cut<'b> {
    buffer: &'b mut [u8],
    filled: usize,
    truncated: bool,
}

impl<'b> Cut<'b> {
    pub(crate) fn new(buffer: &'b mut [u8]) -> Self {
        Self {
            buffer,
            filled: 0,
            truncated: false,
        }
    }

    pub(crate) fn finish(self) -> Result<Text<'b>, Error> {
        finish(self.buffer, self.filled, self.truncated)
    }
}

impl core::fmt::Write for Cut<'_> {
    fn write_str(&mut self, text: &str) -> core::fmt::Result {
        let room = self.buffer.get_mut(self.filled..).unwrap_or_default();
        let n_bytes = match self.truncated {
            true => 0,
            false => text.floor_char_boundary(room.len()),
        };
        if let Some((into, from)) = room
            .split_at_mut_checked(n_bytes)
            .map(|(into, _)| into)
            .zip(text.as_bytes().get(..n_bytes))
        {
            into.copy_from_slice(from);
        }
        self.filled += n_bytes;
        self.truncated |= n_bytes < text.len();
        Ok(())
    }
}

/// Reads the `str` at `address`.
pub fn read_str<'b, M: Memory>(
    memory: &M,
    layout: &Layout,
    address: u64,
    buffer: &'b mut [u8],
) -> Result<Text<'b>, Error> {
    let header = Header::read(memory, layout, address)?;
    header.check_type(memory, layout)?;
    let mut filled = 0;
    let mut truncated = false;
    for point in header.code_points(memory) {
        let character = char::from_u32(point?).unwrap_or(char::REPLACEMENT_CHARACTER);
        let Some(room) = buffer.get_mut(filled..filled + character.len_utf8()) else {
            truncated = true;
            break;
        };
        filled += character.encode_utf8(room).len();
    }
    finish(buffer, filled, truncated)
}

/// The code points of the `str` at `address` and how many they are; surrogates
/// are told as they are.
pub(crate) fn code_points<'m, M: Memory>(
    memory: &'m M,
    layout: &Layout,
    address: u64,
) -> Result<(CodePoints<'m, M>, u64), Error> {
    let header = Header::read(memory, layout, address)?;
    header.check_type(memory, layout)?;
    Ok((header.code_points(memory), header.length))
}

/// Whether the object at `address` is a `str` equal to `expected`.
///
/// Costs one read when the lengths differ.
pub fn str_equals<M: Memory>(
    memory: &M,
    layout: &Layout,
    address: u64,
    expected: &str,
) -> Result<bool, Error> {
    let header = Header::read(memory, layout, address)?;
    if header.length != expected.chars().count() as u64 {
        return Ok(false);
    }
    header.check_type(memory, layout)?;
    let mut wanted = expected.chars();
    for point in header.code_points(memory) {
        if Some(point?) != wanted.next().map(u32::from) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Reads the C string at `address`; bytes that are not UTF-8 are an error.
pub fn read_c_string<'b, M: Memory>(
    memory: &M,
    address: u64,
    buffer: &'b mut [u8],
) -> Result<Text<'b>, Error> {
    let mut filled = 0;
    loop {
        let at = address
            .checked_add(filled as u64)
            .ok_or(Error::Unreadable)?;
        // A chunk ends at a multiple of its size, so that it never reaches
        // into a page that the string does not touch.
        let whole = CHUNK - (at % CHUNK as u64) as usize;
        let n_bytes = whole.min(buffer.len() - filled);
        let room = buffer
            .get_mut(filled..filled + n_bytes)
            .ok_or(Error::TooLong)?;
        if room.is_empty() {
            // The text fills the buffer: it is whole only if it ends here.
            let truncated = memory.u8(at)? != 0;
            return finish(buffer, filled, truncated);
        }
        if !memory.read(at, room) {
            return Err(Error::Unreadable);
        }
        match room.iter().position(|byte| *byte == 0) {
            Some(end) => return finish(buffer, filled + end, false),
            None => filled += n_bytes,
        }
    }
}

/// Whether the C string at `address` equals `expected`.
pub fn c_string_equals<M: Memory>(memory: &M, address: u64, expected: &str) -> Result<bool, Error> {
    let mut chunk = [0; CHUNK];
    let mut wanted = expected.as_bytes();
    let mut at = address;
    loop {
        let whole = CHUNK - (at % CHUNK as u64) as usize;
        let n_bytes = whole.min(wanted.len() + 1);
        let read = chunk.get_mut(..n_bytes).ok_or(Error::TooLong)?;
        if !memory.read(at, read) {
            return Err(Error::Unreadable);
        }
        let (part, rest) = wanted.split_at(wanted.len().min(n_bytes));
        if !read.starts_with(part) {
            return Ok(false);
        }
        if let Some(end) = read.get(part.len()) {
            return Ok(*end == 0);
        }
        wanted = rest;
        at = at.checked_add(n_bytes as u64).ok_or(Error::Unreadable)?;
    }
}

/// The head of a `str`: where its text is and of which form.
struct Header {
    type_address: u64,
    length: u64,
    data: u64,
    width: u8,
}

impl Header {
    fn read<M: Memory>(memory: &M, layout: &Layout, address: u64) -> Result<Self, Error> {
        let at = &layout.unicode;
        let mut head = [0; MAX_HEAD];
        let head = head
            .get_mut(..at.ascii_size as usize)
            .ok_or(Error::Malformed)?;
        if !memory.read(address, head) {
            return Err(Error::Unreadable);
        }
        let number = |offset: u32| crate::u64_in(head, offset as usize).ok_or(Error::Malformed);
        let bits = number(at.state)? as u32 >> at.kind_shift;
        let (width, compact, ascii) = ((bits & 7) as u8, bits & 8 != 0, bits & 16 != 0);
        let data = match (compact, ascii) {
            (true, true) => field(address, at.ascii_size),
            (true, false) => field(address, at.compact_size),
            (false, _) => memory.pointer(field(address, at.data))?,
        };
        if !matches!(width, 1 | 2 | 4) || (ascii && width != 1) {
            return Err(Error::Malformed);
        }
        Ok(Self {
            type_address: number(layout.object.ob_type)?,
            length: number(at.length)?,
            data,
            width,
        })
    }

    fn check_type<M: Memory>(&self, memory: &M, layout: &Layout) -> Result<(), Error> {
        object::check_flag(memory, layout, self.type_address, flag::UNICODE_SUBCLASS)
    }

    fn code_points<'m, M: Memory>(&self, memory: &'m M) -> CodePoints<'m, M> {
        CodePoints {
            memory,
            next: self.data,
            left: self.length,
            width: self.width,
            chunk: [0; CHUNK],
            taken: 0,
            filled: 0,
        }
    }
}

/// The code points of a text in memory; ends after an error.
pub(crate) struct CodePoints<'m, M> {
    memory: &'m M,
    next: u64,
    /// Code points that are not in the chunk yet.
    left: u64,
    width: u8,
    chunk: [u8; CHUNK],
    taken: usize,
    filled: usize,
}

impl<M: Memory> CodePoints<'_, M> {
    fn fill(&mut self) -> Result<(), Error> {
        let width = u64::from(self.width);
        let points = self.left.min(CHUNK as u64 / width);
        let n_bytes = (points * width) as usize;
        let chunk = self.chunk.get_mut(..n_bytes).ok_or(Error::TooLong)?;
        if !self.memory.read(self.next, chunk) {
            self.left = 0;
            return Err(Error::Unreadable);
        }
        self.next = self.next.wrapping_add(n_bytes as u64);
        self.left -= points;
        (self.taken, self.filled) = (0, n_bytes);
        Ok(())
    }
}

impl<M: Memory> Iterator for CodePoints<'_, M> {
    type Item = Result<u32, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.taken == self.filled {
            if self.left == 0 {
                return None;
            }
            if let Err(error) = self.fill() {
                return Some(Err(error));
            }
        }
        let end = self.taken + usize::from(self.width);
        let bytes = self.chunk.get(self.taken..end)?;
        self.taken = end;
        let point = bytes
            .iter()
            .rev()
            .fold(0, |point, byte| point << 8 | u32::from(*byte));
        Some(Ok(point))
    }
}

fn finish(buffer: &[u8], filled: usize, truncated: bool) -> Result<Text<'_>, Error> {
    let bytes = buffer.get(..filled).ok_or(Error::TooLong)?;
    let text = match core::str::from_utf8(bytes) {
        Ok(text) => text,
        // A cut may fall into a character.
        Err(error) if truncated && error.error_len().is_none() => {
            let whole = bytes.get(..error.valid_up_to()).ok_or(Error::Malformed)?;
            core::str::from_utf8(whole).map_err(|_| Error::Malformed)?
        }
        Err(_) => return Err(Error::Malformed),
    };
    Ok(Text { text, truncated })
}

/// Bytes read at once; divides the page size and every character width.
const CHUNK: usize = 64;

/// The longest `sizeof(PyASCIIObject)` of any layout.
const MAX_HEAD: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::{Fake, for_each_layout};
    use crate::layout::LAYOUTS;
    use std::string::String;
    use std::vec;

    #[test]
    fn reads_strings_of_every_kind() {
        for_each_layout(|layout, fake| {
            let long = "x".repeat(200);
            for text in [
                "",
                "plain",
                "caf\u{e9}",
                "\u{65e5}\u{672c}",
                "a\u{1f40d}b",
                long.as_str(),
            ] {
                let address = fake.string(layout, text);
                let mut buffer = [0; 1024];
                let read = read_str(fake, layout, address, &mut buffer);
                assert_eq!(
                    read,
                    Ok(Text {
                        text,
                        truncated: false
                    })
                );
                assert_eq!(str_equals(fake, layout, address, text), Ok(true));
                assert_eq!(str_equals(fake, layout, address, "other"), Ok(false));
            }
        });
    }

    #[test]
    fn reads_strings_whose_text_is_elsewhere() {
        for_each_layout(|layout, fake| {
            let address = fake.indirect_string(layout, "subclass");
            assert_eq!(str_equals(fake, layout, address, "subclass"), Ok(true));
            assert_eq!(str_equals(fake, layout, address, "subclasz"), Ok(false));
        });
    }

    #[test]
    fn cuts_at_the_end_of_a_character() {
        let mut fake = Fake::new();
        let layout = &LAYOUTS[4].1;
        let address = fake.string(layout, "caf\u{e9}s");
        for (size, text, truncated) in [
            (3, "caf", true),
            (4, "caf", true),
            (5, "caf\u{e9}", true),
            (6, "caf\u{e9}s", false),
        ] {
            let mut buffer = vec![0; size];
            let read = read_str(&fake, layout, address, &mut buffer);
            assert_eq!(read, Ok(Text { text, truncated }));
        }
    }

    #[test]
    fn refuses_an_object_that_is_no_string() {
        for_each_layout(|layout, fake| {
            let address = fake.dict(layout, &[]);
            assert!(read_str(fake, layout, address, &mut [0; 64]).is_err());
            let address = fake.string(layout, "text");
            fake.put_u64(field(address, layout.object.ob_type), fake.type_of_dicts());
            let mut buffer = [0; 64];
            let read = read_str(fake, layout, address, &mut buffer);
            assert_eq!(read, Err(Error::WrongType));
        });
    }

    #[test]
    fn a_text_that_is_not_mapped_is_an_error() {
        let mut fake = Fake::new();
        let layout = &LAYOUTS[4].1;
        let address = fake.string(layout, "text");
        fake.put_u64(field(address, layout.unicode.length), u64::MAX);
        let mut buffer = vec![0; 1 << 20];
        assert_eq!(
            read_str(&fake, layout, address, &mut buffer),
            Err(Error::Unreadable)
        );
        assert_eq!(
            read_str(&fake, layout, 8, &mut [0; 8]),
            Err(Error::Unreadable)
        );
        assert_eq!(
            read_str(&fake, layout, u64::MAX - 3, &mut [0; 8]),
            Err(Error::Unreadable)
        );
    }

    #[test]
    fn garbage_never_panics() {
        for_each_layout(|layout, fake| {
            for text in ["plain", "caf\u{e9}", "\u{1f40d}"] {
                let address = fake.string(layout, text);
                fake.each_corruption(address, |fake| {
                    let _ = read_str(fake, layout, address, &mut [0; 100]);
                    let _ = str_equals(fake, layout, address, text);
                });
            }
        });
    }

    #[test]
    fn reads_c_strings_up_to_the_end_of_the_mapping() {
        let mut fake = Fake::new();
        for text in ["", "write", &"long".repeat(40)] {
            let address = fake.c_string_at_end(text);
            let mut buffer = [0; 200];
            let read = read_c_string(&fake, address, &mut buffer);
            assert_eq!(
                read,
                Ok(Text {
                    text,
                    truncated: false
                })
            );
            assert_eq!(c_string_equals(&fake, address, text), Ok(true));
            let longer = String::from(text) + "x";
            assert_eq!(c_string_equals(&fake, address, &longer), Ok(false));
            let mut exact = vec![0; text.len()];
            let read = read_c_string(&fake, address, &mut exact);
            assert_eq!(
                read,
                Ok(Text {
                    text,
                    truncated: false
                })
            );
        }
        let address = fake.c_string_at_end("write");
        let read = read_c_string(&fake, address, &mut [0; 3]).map(|text| text.truncated);
        assert_eq!(read, Ok(true));
        assert_eq!(c_string_equals(&fake, address, "writ"), Ok(false));
        assert_eq!(
            c_string_equals(&fake, u64::MAX, "write"),
            Err(Error::Unreadable)
        );
    }

    #[test]
    fn a_c_string_without_an_end_is_an_error() {
        let mut fake = Fake::new();
        let address = fake.put(&[b'a'; 100]);
        let end = fake.end();
        let mut buffer = vec![0; (end - address) as usize + 100];
        fake.fill(address, end, b'a');
        assert_eq!(
            read_c_string(&fake, address, &mut buffer),
            Err(Error::Unreadable)
        );
    }
}
