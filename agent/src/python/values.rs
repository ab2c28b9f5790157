//! Reads what follows a [`Stack`](abi::record::Stack) in the ring: frames and
//! values. Lengths are checked; what does not fit ends the reading.

use abi::record::{Frame, Owner, Value, value};
use zerocopy::FromBytes as _;

/// A value with its bytes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Item<'a> {
    pub(super) value: Value,
    pub(super) bytes: &'a [u8],
}

/// A text that was copied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Text {
    text: String,
    whole: bool,
}

/// The frames of a record, innermost first.
pub(super) fn frames(bytes: &[u8]) -> impl Iterator<Item = Frame> {
    let (frames, _) = bytes.as_chunks::<{ size_of::<Frame>() }>();
    frames
        .iter()
        .filter_map(|bytes| Frame::read_from_bytes(bytes).ok())
}

/// The values of a record.
pub(super) fn items(mut bytes: &[u8]) -> Vec<Item<'_>> {
    let mut items = Vec::new();
    while let Ok((value, rest)) = Value::read_from_prefix(bytes) {
        let len = value.len as usize;
        let Some(content) = rest.get(..len) else {
            break;
        };
        items.push(Item {
            value,
            bytes: content,
        });
        bytes = rest.get(len.next_multiple_of(8)..).unwrap_or_default();
    }
    items
}

impl Item<'_> {
    /// The text, if it is one.
    pub(super) fn text(&self) -> Option<Text> {
        if self.value.kind == value::BYTES {
            return self.statement();
        }
        if self.value.kind != value::TEXT {
            return None;
        }
        let character = |point: u32| char::from_u32(point).unwrap_or(char::REPLACEMENT_CHARACTER);
        let text = match self.value.width {
            1 => self.bytes.iter().map(|&byte| char::from(byte)).collect(),
            2 => {
                let (points, _) = self.bytes.as_chunks::<2>();
                points
                    .iter()
                    .map(|point| character(u16::from_le_bytes(*point).into()))
                    .collect()
            }
            4 => {
                let (points, _) = self.bytes.as_chunks::<4>();
                points
                    .iter()
                    .map(|point| character(u32::from_le_bytes(*point)))
                    .collect()
            }
            _ => return None,
        };
        Some(Text {
            text,
            whole: self.value.detail == 0,
        })
    }

    /// The text that `bytes` are. Those of a statement are in the encoding of
    /// its connection, which mostly is this one.
    fn statement(&self) -> Option<Text> {
        let whole = self.value.detail == 0;
        let bytes = match std::str::from_utf8(self.bytes) {
            // Cut within a character.
            Err(error) if !whole && error.error_len().is_none() => {
                self.bytes.get(..error.valid_up_to())?
            }
            _ => self.bytes,
        };
        let text = std::str::from_utf8(bytes).ok()?.to_owned();
        Some(Text { text, whole })
    }

    /// The number, if it is one.
    pub(super) fn int(&self) -> Option<i64> {
        let bytes = self.bytes.first_chunk::<8>()?;
        (self.value.kind == value::INT).then(|| i64::from_le_bytes(*bytes))
    }

    /// Whose bytes a connection received last, if it is one.
    pub(super) fn owner(&self) -> Option<Owner> {
        let owner = Owner::read_from_bytes(self.bytes).ok()?;
        (self.value.kind == value::CONNECTION).then_some(owner)
    }

    /// Whether it is a condition that was found to hold.
    pub(super) fn holds(&self) -> bool {
        self.value.kind == value::NONE && self.value.address != 0
    }

    /// The address of the object, if there is one.
    pub(super) fn object(&self) -> Option<u64> {
        let told = !matches!(self.value.kind, value::NONE | value::FAILED);
        (told && self.value.address != 0).then_some(self.value.address)
    }
}

impl Text {
    /// Whether nothing is missing.
    pub(super) fn is_whole(&self) -> bool {
        self.whole
    }

    /// The text.
    pub(super) fn as_str(&self) -> &str {
        &self.text
    }

    /// The text.
    pub(super) fn into_string(self) -> String {
        self.text
    }
}

#[cfg(test)]
mod tests {
    use zerocopy::IntoBytes as _;

    use super::*;

    fn record(kind: u8, width: u8, bytes: &[u8]) -> Vec<u8> {
        let value = Value {
            recipe: 7,
            frame: 0,
            kind,
            part: 0,
            len: bytes.len() as u32,
            width,
            detail: 0,
            pad: 0,
            address: 1,
            type_address: 2,
        };
        let mut record = value.as_bytes().to_vec();
        record.extend_from_slice(bytes);
        record.resize(record.len().next_multiple_of(8), 0);
        record
    }

    #[test]
    fn reads_texts_of_every_width() {
        let mut bytes = record(value::TEXT, 1, b"/caf\xe9");
        bytes.extend(record(value::TEXT, 2, &[0x2f, 0, 0xac, 0x20]));
        bytes.extend(record(value::TEXT, 4, &[0x00, 0xf6, 1, 0]));
        bytes.extend(record(value::INT, 0, &(-5_i64).to_le_bytes()));
        let items = items(&bytes);
        let texts: Vec<_> = items
            .iter()
            .filter_map(Item::text)
            .map(Text::into_string)
            .collect();
        assert_eq!(texts, ["/café", "/€", "\u{1f600}"]);
        assert_eq!(items[3].int(), Some(-5));
    }

    #[test]
    fn reads_bytes_that_are_text() {
        let check = |bytes: &[u8], cut: bool, expected: Option<&str>| {
            let mut record = record(value::BYTES, 1, bytes);
            record[13] = cut.into();
            let items = items(&record);
            let text = items[0].text().map(Text::into_string);
            assert_eq!(text.as_deref(), expected, "{bytes:x?}");
        };
        check(b"select '\xc3\xa9'", false, Some("select 'é'"));
        check(b"select '\xe9'", false, None);
        check(b"select '\xc3", true, Some("select '"));
        check(b"select '\xc3", false, None);
        check(b"select '\xc3 '", true, None);
        check(b"", false, Some(""));
    }

    #[test]
    fn ends_where_a_length_is_wrong() {
        let bytes = record(value::TEXT, 1, b"/users");
        for len in 0..bytes.len() - 2 {
            assert!(items(&bytes[..len]).is_empty(), "{len}");
        }
        let mut wrong = bytes;
        wrong[8..12].copy_from_slice(&u32::MAX.to_le_bytes());
        assert!(items(&wrong).is_empty());
    }
}
