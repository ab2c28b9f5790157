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
/// `unknown`, `json`, `xml`, `bpchar`, `varchar`, `refcursor`, `jsonb`,
/// `jsonpath`.
const TEXTS: &[u32] = &[25, 19, 705, 114, 142, 1042, 1043, 1790, 3802, 4072];
/// Types of at most eight bytes: `bool`, `"char"`, `int8`, `int2`, `int4`,
/// `oid`, `tid`, `xid`, `cid`, `float4`, `float8`, `macaddr8`, `money`,
/// `macaddr`, `date`, `time`, `timestamp`, `timestamptz`, `pg_lsn`, `xid8`,
/// `regproc`, `regclass`, `regtype`.
const SHORT: &[u32] = &[
    16, 18, 20, 21, 23, 26, 27, 28, 29, 700, 701, 774, 790, 829, 1082, 1083, 1114, 1184, 3220,
    5069, 24, 2205, 2206,
];
/// `numeric`: words of four decimal digits behind four others.
const NUMERIC: u32 = 1700;
/// Types of 16 bytes, any of them: `uuid`, `interval`.
const WIDE: &[u32] = &[2950, 1186];
/// Bytes of those.
const WIDE_SIZE: u8 = 16;
/// Arrays of the first three kinds, as above: of texts, of what is short, of
/// `numeric`; ranges of what is short, and of `numeric`.
const ARRAYS: &[u32] = &[
    1009, 1003, 199, 143, 1014, 1015, 2201, 3807, 4073, // texts
    1000, 1002, 1016, 1005, 1007, 1028, 1010, 1011, 1012, 1021, 1022, 775, 791, 1040, 1182, 1183,
    1115, 1185, 3221, 271, 1008, 2210, 2211, // short
    1231, // numeric
    3904, 3926, 3908, 3910, 3912, 3906, // ranges
];
/// Arrays of those of 16 bytes.
const WIDE_ARRAYS: &[u32] = &[2951, 1187];

/// Whether rows of these columns may look like the end of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Columns {
    /// They cannot.
    Distinct,
    /// They can where the end comes shortly behind the length of a column of
    /// 16 bytes.
    Wide,
    /// They may, or nobody knows.
    Unknown,
}

impl Columns {
    /// Judges a `RowDescription`. One of a statement, not of a portal, does
    /// not say in which form the columns will be sent.
    pub(super) fn of(body: &[u8], of_statement: bool) -> Self {
        columns(body, of_statement).unwrap_or(Self::Unknown)
    }
}

/// None where the message was not seen to its end, or a column may be
/// anything.
fn columns(body: &[u8], of_statement: bool) -> Option<Columns> {
    let mut body = Reader::new(body);
    let mut found = Columns::Distinct;
    let mut after_wide = false;
    for _ in 0..short(&mut body)? {
        string(&mut body)?;
        let (_table, _column) = (number(&mut body)?, short(&mut body)?);
        let kind = number(&mut body)?;
        let (_size, _modifier) = (short(&mut body)?, number(&mut body)?);
        let is_text = short(&mut body)? == 0 && !of_statement;
        let wide = !is_text && (WIDE.contains(&kind) || WIDE_ARRAYS.contains(&kind));
        let fixed = !is_text && (SHORT.contains(&kind) || WIDE.contains(&kind));
        let long = is_text
            || TEXTS.contains(&kind)
            || ARRAYS.contains(&kind)
            || WIDE_ARRAYS.contains(&kind)
            || kind == NUMERIC;
        if !fixed && !long {
            return None;
        }
        // What looks like an end goes on in the length of what comes next,
        // which then is a long one.
        if after_wide && !fixed {
            found = Columns::Wide;
        }
        after_wide = wide;
    }
    body.is_empty().then_some(found)
}

/// The tag at the end of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ending {
    /// The number of rows in it.
    pub(super) rows: u64,
    /// Whether it may be in a column of 16 bytes, and in what follows that.
    wide: bool,
}

impl Ending {
    /// Whether it is the end, and no row of these columns.
    pub(super) fn is_certain(self, columns: Columns) -> bool {
        match columns {
            Columns::Distinct => true,
            Columns::Wide => !self.wide,
            Columns::Unknown => false,
        }
    }
}

/// The tag of a `SELECT` or `FETCH` that is the last message but for
/// `ReadyForQuery`, if that is what the bytes end with.
pub(super) fn ending(tail: &[u8]) -> Option<Ending> {
    let tail = match tail {
        [rest @ .., 0, b'Z', 0, 0, 0, 5, b'I' | b'T' | b'E'] => rest,
        _ => return None,
    };
    let digits = tail.iter().rev().take_while(|byte| byte.is_ascii_digit());
    let (before, digits) = tail.split_at(tail.len() - digits.count());
    let word = [&b"SELECT "[..], b"FETCH "]
        .into_iter()
        .find(|word| before.ends_with(word))?;
    let [before @ .., b'C', a, b, c, d] = before.get(..before.len() - word.len())? else {
        return None;
    };
    // It counts itself and the zero byte.
    let length = 4 + word.len() + digits.len() + 1;
    if usize::try_from(u32::from_be_bytes([*a, *b, *c, *d])).ok()? != length {
        return None;
    }
    Some(Ending {
        rows: std::str::from_utf8(digits).ok()?.parse().ok()?,
        wide: length == usize::from(WIDE_SIZE) || follows_wide(before),
    })
}

/// Whether a column of 16 bytes may begin with the last of these, or with what
/// comes next, and hold a length and a word behind it. What was not seen may be
/// its length.
fn follows_wide(before: &[u8]) -> bool {
    // `C`, a length and `FETCH` take ten bytes of it.
    (0..=usize::from(WIDE_SIZE) - 10).any(|held| {
        let before = before
            .len()
            .checked_sub(held)
            .and_then(|end| before.get(..end));
        let length = [0, 0, 0, WIDE_SIZE];
        let seen = before.unwrap_or_default();
        let seen = seen.get(seen.len().saturating_sub(length.len())..);
        length.ends_with(seen.unwrap_or_default())
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use proptest::sample::{Index, select};

    use super::*;

    /// The end of an answer with this tag.
    fn of_tag(tag: &str) -> Vec<u8> {
        let length = u32::try_from(tag.len() + 5).expect("a short tag");
        let mut bytes = vec![b'C'];
        bytes.extend(length.to_be_bytes());
        bytes.extend(tag.as_bytes());
        bytes.extend(b"\0Z\0\0\0\x05I");
        bytes
    }

    fn rows(tail: &[u8]) -> Option<u64> {
        ending(tail).map(|ending| ending.rows)
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
            assert_eq!(rows(&of_tag(tag)), expected, "{tag}");
        }
        assert!(of_tag("SELECT 4294967295").len() <= TAIL);
        let whole = of_tag("SELECT 12");
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
        assert_eq!(of(&[(23, 1), (UUID, 1)], false), Columns::Distinct);
        assert_eq!(
            of(&[(UUID, 1), (UUID, 1), (23, 1)], false),
            Columns::Distinct
        );
        assert_eq!(of(&[(UUID, 1), (25, 1), (23, 1)], false), Columns::Wide);
        assert_eq!(of(&[(25, 1), (UUID, 1)], true), Columns::Distinct);
        assert_eq!(of(&[(UUID, 0), (25, 0)], false), Columns::Distinct);
        // Arrays and ranges of the same, which are long.
        const TEXTS: u32 = 1009;
        const UUIDS: u32 = 2951;
        assert_eq!(
            of(&[(TEXTS, 1), (1007, 1), (3912, 1)], true),
            Columns::Distinct
        );
        assert_eq!(of(&[(UUID, 1), (1007, 1)], true), Columns::Wide);
        assert_eq!(of(&[(UUIDS, 1), (UUID, 1)], true), Columns::Distinct);
        assert_eq!(of(&[(UUID, 1), (UUIDS, 1)], true), Columns::Wide);
        // Nor of an enumeration, an array of `bytea`, or what comes after one.
        for kind in [16_384, 1001, 869] {
            assert_eq!(of(&[(kind, 1)], false), Columns::Unknown);
            assert_eq!(
                of(&[(kind, 1), (UUID, 1), (25, 1)], false),
                Columns::Unknown
            );
        }
        let whole = description(&[(23, 0), (25, 0)]);
        for cut in 1..whole.len() {
            let begin = &whole[..whole.len() - cut];
            assert_eq!(Columns::of(begin, false), Columns::Unknown, "{cut}");
        }
        // Why the others are not.
        let bytes = row(&[of_tag("SELECT 7")]);
        assert_eq!(rows(&bytes), Some(7));
    }

    /// Rows of a column of 16 bytes and a long one that end like an answer,
    /// cut within the latter: the bytes of both, and what is seen of those.
    fn pretenders() -> Vec<Vec<u8>> {
        let mut found = Vec::new();
        for tag in ["SELECT 7", "SELECT 77", "FETCH 7", "FETCH 77"] {
            let whole = of_tag(tag);
            for held in 0..=6 {
                let mut bytes = vec![b'x'; held];
                bytes.extend(&whole);
                if bytes.len() > 16 {
                    let (wide, rest) = bytes.split_at(16);
                    // What is left is a length, and what is within it.
                    found.push([b"\0\0\0\x10", wide, rest].concat());
                }
            }
        }
        // The length is one of the tag, too.
        found.push(of_tag("SELECT 7777"));
        found.push(of_tag("FETCH 77777"));
        found
    }

    #[test]
    fn what_may_be_a_wide_column_is_not_certain() {
        for bytes in pretenders() {
            for before in [&b""[..], b"D\0\0\x20\0\0\x02", b"0123456789abcdef"] {
                let bytes = [before, &bytes].concat();
                for from in 0..bytes.len() {
                    let Some(found) = ending(&bytes[from..]) else {
                        break;
                    };
                    assert!(!found.is_certain(Columns::Wide), "{bytes:x?} {from}");
                    assert!(!found.is_certain(Columns::Unknown));
                    assert!(found.is_certain(Columns::Distinct));
                }
            }
        }
    }

    #[test]
    fn the_end_behind_other_columns_is_certain() {
        let text = |text: &str| text.as_bytes().to_vec();
        let wide = || b"0123456789abcdef".to_vec();
        for columns in [
            vec![wide(), text("a")],
            vec![wide(), text("a text that is longer than others")],
            vec![text("a"), wide()],
            vec![wide(), Vec::new(), vec![0; 8]],
        ] {
            for tag in ["SELECT 7", "SELECT 777", "SELECT 77777", "FETCH 777"] {
                let bytes = [row(&columns), of_tag(tag)].concat();
                let seen = &bytes[bytes.len().saturating_sub(TAIL)..];
                let found = ending(seen).expect("an end");
                assert!(found.is_certain(Columns::Wide), "{columns:?} {tag}");
            }
        }
    }

    /// Bytes as they may stand in an ending, or next to what does.
    fn bytes() -> impl Strategy<Value = Vec<u8>> {
        let part = (
            select(&["SELECT 1", "SELECT 1234", "FETCH 12345"][..]),
            any::<[Index; 2]>(),
        );
        let part = part.prop_map(|(tag, ends)| {
            let whole = of_tag(tag);
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

    /// A column of 16 bytes.
    fn wide() -> impl Strategy<Value = Vec<u8>> {
        bytes().prop_map(|mut bytes| {
            bytes.resize(16, 0);
            bytes
        })
    }

    /// An array of one dimension, with elements of one kind.
    fn array(element: impl Strategy<Value = Vec<u8>>) -> impl Strategy<Value = Vec<u8>> {
        (proptest::collection::vec(element, 0..4), any::<u32>()).prop_map(|(elements, bound)| {
            let count = u32::try_from(elements.len()).expect("few");
            let mut bytes: Vec<u8> = [1, 0, 25, count, bound]
                .into_iter()
                .flat_map(u32::to_be_bytes)
                .collect();
            for element in &elements {
                bytes.extend(u32::try_from(element.len()).expect("short").to_be_bytes());
                bytes.extend(element);
            }
            bytes
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 4096, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn rows_of_distinct_columns_never_look_like_an_end(
            found in proptest::collection::vec(
                proptest::collection::vec(prop_oneof![column(), array(column())], 0..5),
                1..6,
            ),
        ) {
            let mut bytes: Vec<u8> = found.iter().flat_map(|columns| row(columns)).collect();
            for end in 0..=bytes.len() {
                prop_assert_eq!(rows(&bytes[..end]), None);
            }
            bytes.extend(of_tag("SELECT 6"));
            prop_assert_eq!(rows(&bytes), Some(6));
        }

        #[test]
        fn rows_with_wide_columns_and_arrays_are_never_taken_for_an_end(
            found in proptest::collection::vec(
                proptest::collection::vec(prop_oneof![column(), wide(), array(column()), array(wide())], 0..5),
                1..6,
            ),
        ) {
            let bytes: Vec<u8> = found.iter().flat_map(|columns| row(columns)).collect();
            for end in 0..=bytes.len() {
                let seen = &bytes[end.saturating_sub(TAIL)..end];
                let certain = ending(seen).is_some_and(|found| found.is_certain(Columns::Wide));
                prop_assert!(!certain);
            }
        }
    }
}
