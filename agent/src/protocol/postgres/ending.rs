//! What the last bytes of an answer prove, where the messages before them
//! were not all seen.
//!
//! An answer's rows are counted by their headers. Of a long one only the
//! beginning is copied, and its last bytes. Those may hold the command's tag
//! with the number of rows in it, or a row's data that look like one. They are
//! believed only where a row cannot look so, which is a matter of its columns
//! ([`Columns`]): what is proven is written down in `ARCHITECTURE.md`.

use super::message::{number, short, string};
use crate::protocol::reader::Reader;

/// Bytes of an answer's end that are kept; the longest ending has 29.
pub(super) const TAIL: usize = 32;

/// Types whose binary form is text, without any zero byte: `text`, `name`,
/// `unknown`, `json`, `xml`, `bpchar`, `varchar`, `jsonb`.
const TEXTS: &[u32] = &[25, 19, 705, 114, 142, 1042, 1043, 3802];
/// Types of at most eight bytes: `bool`, `"char"`, `int8`, `int2`, `int4`,
/// `oid`, `float4`, `float8`, `date`, `time`, `timestamp`, `timestamptz`.
const SHORT: &[u32] = &[16, 18, 20, 21, 23, 26, 700, 701, 1082, 1083, 1114, 1184];
/// `numeric`: words of four decimal digits behind four others.
const NUMERIC: u32 = 1700;

/// Whether rows of these columns may look like the end of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Columns {
    /// They cannot.
    Distinct,
    /// They may, or nobody knows.
    Unknown,
}

impl Columns {
    /// Judges a `RowDescription`. One of a statement, not of a portal, does
    /// not say in which form the columns will be sent.
    pub(super) fn of(body: &[u8], of_statement: bool) -> Self {
        match distinct(body, of_statement) {
            Some(true) => Self::Distinct,
            _ => Self::Unknown,
        }
    }
}

/// None where the message was not seen to its end.
fn distinct(body: &[u8], of_statement: bool) -> Option<bool> {
    let mut body = Reader::new(body);
    let mut distinct = true;
    for _ in 0..short(&mut body)? {
        string(&mut body)?;
        let (_table, _column) = (number(&mut body)?, short(&mut body)?);
        let kind = number(&mut body)?;
        let (_size, _modifier) = (short(&mut body)?, number(&mut body)?);
        let is_text = short(&mut body)? == 0 && !of_statement;
        distinct &= is_text || TEXTS.contains(&kind) || SHORT.contains(&kind) || kind == NUMERIC;
    }
    Some(distinct && body.is_empty())
}

/// The number of rows in the tag of a `SELECT` or `FETCH` that is the last
/// message but for `ReadyForQuery`, if that is what the bytes end with.
pub(super) fn rows(tail: &[u8]) -> Option<u64> {
    let tail = match tail {
        [rest @ .., 0, b'Z', 0, 0, 0, 5, b'I' | b'T' | b'E'] => rest,
        _ => return None,
    };
    let digits = tail.iter().rev().take_while(|byte| byte.is_ascii_digit());
    let (before, digits) = tail.split_at(tail.len() - digits.count());
    let word = [&b"SELECT "[..], b"FETCH "]
        .into_iter()
        .find(|word| before.ends_with(word))?;
    let [.., b'C', a, b, c, d] = before.get(..before.len() - word.len())? else {
        return None;
    };
    // It counts itself and the zero byte.
    let length = 4 + word.len() + digits.len() + 1;
    if usize::try_from(u32::from_be_bytes([*a, *b, *c, *d])).ok()? != length {
        return None;
    }
    std::str::from_utf8(digits).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use proptest::sample::{Index, select};

    use super::*;

    /// The end of an answer with this tag.
    fn ending(tag: &str) -> Vec<u8> {
        let length = u32::try_from(tag.len() + 5).expect("a short tag");
        let mut bytes = vec![b'C'];
        bytes.extend(length.to_be_bytes());
        bytes.extend(tag.as_bytes());
        bytes.extend(b"\0Z\0\0\0\x05I");
        bytes
    }

    /// A `RowDescription` of columns with these types and forms.
    fn description(columns: &[(u32, u16)]) -> Vec<u8> {
        let count = u16::try_from(columns.len()).expect("few columns");
        let mut body = count.to_be_bytes().to_vec();
        for (kind, form) in columns {
            body.extend(b"name\0\0\0\0\0\0\0");
            body.extend(kind.to_be_bytes());
            body.extend(b"\xff\xff\xff\xff\xff\xff");
            body.extend(form.to_be_bytes());
        }
        body
    }

    fn row(columns: &[Vec<u8>]) -> Vec<u8> {
        let count = u16::try_from(columns.len()).expect("few columns");
        let mut body = count.to_be_bytes().to_vec();
        for column in columns {
            body.extend(u32::try_from(column.len()).expect("short").to_be_bytes());
            body.extend(column);
        }
        let length = u32::try_from(body.len() + 4).expect("short");
        [b"D", &length.to_be_bytes()[..], &body].concat()
    }

    #[test]
    fn reads_the_tag_before_the_server_is_ready() {
        for (tag, expected) in [
            ("SELECT 1", Some(1)),
            ("SELECT 4294967295", Some(4_294_967_295)),
            ("FETCH 2000", Some(2000)),
            ("SELECT", None),
            ("SELECT ", None),
            ("INSERT 0 5", None),
            ("COPY 5", None),
        ] {
            assert_eq!(rows(&ending(tag)), expected, "{tag}");
        }
        assert!(ending("SELECT 4294967295").len() <= TAIL);
        let whole = ending("SELECT 12");
        for cut in 1..whole.len() {
            assert_eq!(rows(&whole[cut..]), None, "{cut}");
            assert_eq!(rows(&whole[..whole.len() - cut]), None, "{cut}");
        }
        let mut longer = whole.clone();
        longer[4] += 1;
        assert_eq!(rows(&longer), None);
    }

    #[test]
    fn only_columns_that_cannot_look_like_an_end_are_distinct() {
        const BYTEA: u32 = 17;
        const UUID: u32 = 2950;
        let of =
            |columns: &[(u32, u16)], of_statement| Columns::of(&description(columns), of_statement);
        assert_eq!(of(&[(23, 0), (25, 0)], false), Columns::Distinct);
        assert_eq!(
            of(&[(23, 1), (1700, 1), (1184, 1)], true),
            Columns::Distinct
        );
        // Text never has a zero byte, whatever it is of; but it must be text.
        assert_eq!(of(&[(BYTEA, 0), (UUID, 0)], false), Columns::Distinct);
        assert_eq!(of(&[(BYTEA, 0)], true), Columns::Unknown);
        assert_eq!(of(&[(23, 1), (UUID, 1)], false), Columns::Unknown);
        let whole = description(&[(23, 0), (25, 0)]);
        for cut in 1..whole.len() {
            let begin = &whole[..whole.len() - cut];
            assert_eq!(Columns::of(begin, false), Columns::Unknown, "{cut}");
        }
        // Why the others are not: these rows are cut within their last column.
        let fake = ending("SELECT 7");
        let bytes = row(std::slice::from_ref(&fake));
        assert_eq!(rows(&bytes), Some(7));
        let (uuid, text) = fake.split_at(fake.len() - 5);
        let uuid = [b"x", uuid].concat();
        assert_eq!(uuid.len(), 16);
        let bytes = row(&[uuid, [&text[4..], b"even"].concat()]);
        assert_eq!(rows(&bytes[..bytes.len() - 4]), Some(7));
    }

    /// Bytes as they may stand in an ending, or next to what does.
    fn bytes() -> impl Strategy<Value = Vec<u8>> {
        let part = (
            select(&["SELECT 1", "SELECT 1234", "FETCH 12345"][..]),
            any::<[Index; 2]>(),
        );
        let part = part.prop_map(|(tag, ends)| {
            let whole = ending(tag);
            let [a, b] = ends.map(|end| end.index(whole.len() + 1));
            whole[a.min(b)..a.max(b)].to_vec()
        });
        let parts = prop_oneof![4 => part, 1 => proptest::collection::vec(any::<u8>(), 0..4)];
        proptest::collection::vec(parts, 0..4).prop_map(|parts| parts.concat())
    }

    /// A column of a kind that is distinct, as near to an ending as it can be.
    fn column() -> impl Strategy<Value = Vec<u8>> {
        let text = bytes().prop_map(|bytes| bytes.into_iter().filter(|byte| *byte != 0).collect());
        let json = bytes().prop_map(|bytes| {
            let text = bytes.into_iter().filter(|byte| *byte != 0);
            std::iter::once(1).chain(text).collect()
        });
        let short = (bytes(), select(&[1_usize, 2, 4, 8][..])).prop_map(|(mut bytes, size)| {
            bytes.resize(size, 0);
            bytes
        });
        let sign = select(&[0_u16, 0x4000, 0xc000, 0xd000, 0xf000][..]);
        let numeric =
            (bytes(), any::<u16>(), sign, any::<u16>()).prop_map(|(bytes, weight, sign, scale)| {
                let digits = bytes.chunks_exact(2).map(|pair| {
                    let digit = u16::from_be_bytes([pair[0], pair[1]]);
                    if digit < 10_000 {
                        digit
                    } else {
                        digit % 10_000
                    }
                });
                let digits: Vec<u16> = digits.collect();
                let count = u16::try_from(digits.len()).expect("few digits");
                let words = [count, weight, sign, scale].into_iter().chain(digits);
                words.flat_map(u16::to_be_bytes).collect()
            });
        prop_oneof![text, json, short, numeric]
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 4096, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn rows_of_distinct_columns_never_look_like_an_end(
            found in proptest::collection::vec(proptest::collection::vec(column(), 0..5), 1..6),
        ) {
            let mut bytes: Vec<u8> = found.iter().flat_map(|columns| row(columns)).collect();
            for end in 0..=bytes.len() {
                prop_assert_eq!(rows(&bytes[..end]), None);
            }
            bytes.extend(ending("SELECT 6"));
            prop_assert_eq!(rows(&bytes), Some(6));
        }
    }
}
