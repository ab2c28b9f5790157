//! Reads captured bytes with bounds checked.
//!
//! Parsers go through [`Reader`] and never index or slice what was captured:
//! every step either stays inside the input or says that it cannot.

/// A position in captured bytes.
#[derive(Clone, Debug)]
pub struct Reader<'a> {
    rest: &'a [u8],
    position: usize,
}

impl<'a> Reader<'a> {
    /// Starts at the first of `bytes`.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self {
            rest: bytes,
            position: 0,
        }
    }

    /// Bytes that were taken so far.
    pub fn position(&self) -> usize {
        self.position
    }

    /// Bytes that are left.
    pub fn rest(&self) -> &'a [u8] {
        self.rest
    }

    /// Whether nothing is left over.
    pub fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    /// The next byte, which stays.
    pub fn peek(&self) -> Option<u8> {
        self.rest.first().copied()
    }

    /// Takes one byte.
    pub fn byte(&mut self) -> Option<u8> {
        let byte = self.peek()?;
        self.advance(1);
        Some(byte)
    }

    /// Takes exactly `count` bytes, or none where fewer are left.
    pub fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.rest.split_at_checked(count)?;
        self.rest = rest;
        self.position += count;
        Some(taken)
    }

    /// Takes `count` bytes, or all where fewer are left.
    pub fn take_up_to(&mut self, count: u64) -> &'a [u8] {
        let count = usize::try_from(count).unwrap_or(usize::MAX);
        let (taken, rest) = self.rest.split_at(count.min(self.rest.len()));
        self.rest = rest;
        self.position += taken.len();
        taken
    }

    /// Takes bytes as long as they are wanted.
    pub fn take_while(&mut self, mut wanted: impl FnMut(u8) -> bool) -> &'a [u8] {
        let count = self.rest.iter().take_while(|byte| wanted(**byte)).count();
        self.take(count).unwrap_or_default()
    }

    /// Takes `expected` where it comes next, and says whether it did.
    pub fn take_literal(&mut self, expected: &[u8]) -> bool {
        let found = self.rest.starts_with(expected);
        if found {
            self.advance(expected.len());
        }
        found
    }

    /// Leaves out `count` bytes, or all where fewer are left.
    pub fn advance(&mut self, count: usize) {
        let count = count.min(self.rest.len());
        self.rest = self.rest.split_at(count).1;
        self.position += count;
    }
}

#[cfg(test)]
mod tests {
    use super::Reader;

    #[test]
    fn takes_nothing_past_the_end() {
        let mut reader = Reader::new(b"abc");
        assert_eq!(reader.take(4), None);
        assert_eq!(reader.take(2), Some(&b"ab"[..]));
        assert_eq!(reader.position(), 2);
        assert_eq!(reader.take_up_to(u64::MAX), b"c");
        assert!(reader.is_empty());
        assert_eq!(reader.byte(), None);
        assert_eq!(reader.take_up_to(1), b"");
        reader.advance(7);
        assert_eq!(reader.position(), 3);
    }

    #[test]
    fn stops_at_the_first_unwanted_byte() {
        let mut reader = Reader::new(b"12x");
        assert_eq!(reader.take_while(|byte| byte.is_ascii_digit()), b"12");
        assert!(!reader.take_literal(b"xy"));
        assert!(reader.take_literal(b"x"));
        assert_eq!(reader.rest(), b"");
    }
}
