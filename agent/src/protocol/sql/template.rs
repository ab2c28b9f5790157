//! Statements as they are before a driver puts their parameters in, and
//! whether one is what was sent.
//!
//! A driver sends `%s` as `$1`, or puts a literal in its place: a string, a
//! number, `NULL`, an array, a list, each perhaps with a cast behind it.
//! Everything else must be the same, token by token, but for spaces, comments
//! and literals.
//!
//! A template is told as it is. One that has strings of its own may have been
//! put together of data, and is told without its literals.

use super::lexer::{Dialect, Kind, Lexer, Token};
use super::{Text, bounded, describe};

/// Deepest nesting of a value's parts.
const MAX_NESTING: u32 = 8;

/// The first number of the places that are put for those of a template: more
/// than a server takes.
const FIRST_PLACE: usize = 900_000_000;

/// A token of which only what can be compared is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    /// A literal, or a parameter.
    Value,
    Other(Vec<u8>),
}

/// The text to tell in the place of `sent`, the text of a statement without
/// its literals; none if the template is another statement.
pub fn original(template: &str, sent: &str) -> Option<String> {
    let template = bounded(template.as_bytes());
    let (plain, places) = places(template);
    let hidden = describe(&plain, Dialect::default()).text;
    let wanted = parts(&hidden);
    let found = parts(&describe(sent.as_bytes(), Dialect::default()).text);
    if !same(&wanted, &found) {
        return None;
    }
    let mut text = Text::default();
    if !Lexer::new(&plain, Dialect::default()).any(|token| is_string(&token)) {
        text.push(template);
        return Some(text.finish());
    }
    for token in Lexer::new(hidden.as_bytes(), Dialect::default()) {
        let place = number(token.bytes).and_then(|number| places.get(number));
        text.push(place.copied().unwrap_or(token.bytes));
    }
    Some(text.finish())
}

/// Whether a token is a literal, and no number.
fn is_string(token: &Token<'_>) -> bool {
    let is_number = |byte: &u8| b"0123456789.".contains(byte);
    token.kind == Kind::Literal && !token.bytes.iter().all(is_number)
}

/// Which of the places that [`places`] has numbered a token is.
fn number(token: &[u8]) -> Option<usize> {
    let digits = std::str::from_utf8(token.strip_prefix(b"$")?).ok()?;
    digits.parse::<usize>().ok()?.checked_sub(FIRST_PLACE)
}

/// Whether a statement has places for parameters in the notation of the
/// DB-API, which no server takes.
pub fn has_places(statement: &str) -> bool {
    !places(bounded(statement.as_bytes())).1.is_empty()
}

/// The statement with a parameter's number in every such place, and what was
/// there.
fn places(statement: &[u8]) -> (Vec<u8>, Vec<&[u8]>) {
    let mut plain = Vec::with_capacity(statement.len());
    let mut places = Vec::new();
    let mut rest = statement;
    while let Some((&first, after)) = rest.split_first() {
        let here = rest;
        rest = after;
        if first != b'%' {
            plain.push(first);
            continue;
        }
        if let Some(after) = after.strip_prefix(b"%") {
            plain.push(b'%');
            rest = after;
            continue;
        }
        let format = match after.strip_prefix(b"(") {
            Some(named) => named
                .iter()
                .position(|&byte| byte == b')')
                .and_then(|end| named.get(end + 1..)),
            None => Some(after),
        };
        match format.and_then(<[u8]>::split_first) {
            Some((b's' | b'b' | b't', after)) => {
                let number = FIRST_PLACE + places.len();
                plain.extend_from_slice(format!("${number}").as_bytes());
                places.extend(here.get(..here.len() - after.len()));
                rest = after;
            }
            _ => plain.push(b'%'),
        }
    }
    (plain, places)
}

/// What there is to compare. The values of a list, `IN (1, 2)`, are one.
fn parts(text: &str) -> Vec<Part> {
    let mut parts: Vec<Part> = Vec::new();
    let mut list = None;
    let mut word_in = false;
    for token in Lexer::new(text.as_bytes(), Dialect::default()) {
        let part = match token.kind {
            Kind::Space | Kind::Comment => continue,
            Kind::Literal | Kind::Parameter => Part::Value,
            _ if token.is("NULL") => Part::Other(b"NULL".to_vec()),
            _ => Part::Other(token.bytes.to_vec()),
        };
        match (&part, list) {
            (Part::Other(bytes), _) if word_in && bytes == b"(" => list = Some(parts.len() + 1),
            (Part::Other(bytes), Some(start)) if bytes == b")" => {
                if parts.len() > start {
                    parts.truncate(start);
                    parts.push(Part::Value);
                }
                list = None;
            }
            (Part::Other(bytes), Some(_)) if bytes != b"," => list = None,
            _ => {}
        }
        word_in = token.is("IN");
        parts.push(part);
    }
    parts
}

fn is(part: Option<&Part>, text: &[u8]) -> bool {
    matches!(part, Some(Part::Other(bytes)) if bytes == text)
}

/// Whether what was sent is the template with values in its places.
fn same(template: &[Part], sent: &[Part]) -> bool {
    let (mut template, mut sent) = (template, sent);
    while let Some((first, rest)) = template.split_first() {
        template = rest;
        let after = match first {
            Part::Value => value(sent, MAX_NESTING),
            other => sent
                .split_first()
                .and_then(|(found, rest)| (found == other).then_some(rest)),
        };
        let Some(mut after) = after else {
            return false;
        };
        if *first == Part::Value {
            // The template's own casts come after those of the value.
            let (own, all) = (casts(template), casts(after));
            for _ in own..all {
                after = cast(after).unwrap_or_default();
            }
        }
        sent = after;
    }
    sent.is_empty()
}

/// How many casts come next.
fn casts(mut parts: &[Part]) -> usize {
    let mut count = 0;
    while let Some(rest) = cast(parts) {
        parts = rest;
        count += 1;
    }
    count
}

/// What comes after a cast.
fn cast(parts: &[Part]) -> Option<&[Part]> {
    let (colons, rest) = parts.split_first()?;
    let (name, rest) = rest.split_first()?;
    if !is(Some(colons), b"::") || !matches!(name, Part::Other(_)) {
        return None;
    }
    match is(rest.first(), b"[") && is(rest.get(1), b"]") {
        true => rest.get(2..),
        false => Some(rest),
    }
}

/// What comes after a value, but for its casts.
fn value(parts: &[Part], depth: u32) -> Option<&[Part]> {
    let (first, rest) = parts.split_first()?;
    match first {
        Part::Value => Some(rest),
        Part::Other(bytes) => match bytes.as_slice() {
            b"NULL" => Some(rest),
            // A negative number after an operator.
            b"-" => rest
                .split_first()
                .and_then(|(next, rest)| (*next == Part::Value).then_some(rest)),
            b"(" if depth > 0 => values(rest, b")", depth - 1),
            b"ARRAY" if depth > 0 && is(rest.first(), b"[") => {
                values(rest.get(1..)?, b"]", depth - 1)
            }
            b"[" if depth > 0 => values(rest, b"]", depth - 1),
            _ => None,
        },
    }
}

/// What comes after values with commas between them, and the bracket that
/// closes them.
fn values<'a>(mut parts: &'a [Part], close: &[u8], depth: u32) -> Option<&'a [Part]> {
    loop {
        parts = value(parts, depth)?;
        while let Some(rest) = cast(parts) {
            parts = rest;
        }
        let (next, rest) = parts.split_first()?;
        if is(Some(next), close) {
            return Some(rest);
        }
        if !is(Some(next), b",") {
            return None;
        }
        parts = rest;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::describe_parameterized;
    use super::*;

    #[track_caller]
    fn check(template: &str, sent: &str, expected: bool) {
        let dialect = Dialect::default();
        for told in [
            describe(sent.as_bytes(), dialect).text,
            describe_parameterized(sent.as_bytes(), dialect).text,
        ] {
            let found = original(template, &told);
            let expected = expected.then(|| template.to_owned());
            assert_eq!(found, expected, "{template} {told}");
        }
    }

    #[test]
    fn a_template_is_what_was_sent_with_values_in_its_places() {
        let template = "insert into items values (%s, %(name)s)";
        check(template, "insert into items values (1, 'it''s')", true);
        check(template, "insert into items values ($1, $2)", true);
        check(template, "insert  into items\n values (NULL, true)", true);
        check(
            template,
            "insert into items values ('2020-01-01'::date, -1)",
            true,
        );
        check(
            template,
            "insert into items values (ARRAY[1,2], '{}')",
            true,
        );
        check(
            template,
            "insert into items values (ARRAY[E'a'::text, NULL]::x[], 1)",
            true,
        );
        check(template, "insert into items values (1, 2), (3, 4)", false);
        check(template, "insert into others values (1, 2)", false);
        check(template, "insert into items values (1, now())", false);
        check(template, "insert into items values (1)", false);
        check(template, "BEGIN", false);
        check("select %s::date", "select '2020-01-01'::date::date", true);
        check("select %s::date", "select '2020-01-01'::date", true);
        check("select %s::date", "select '2020-01-01'::text", false);
        check("select %s", "select '2020-01-01'::date", true);
        check("select 1 limit %s", "select 1 limit 7", true);
        check("select a - %s", "select a -  -1", true);
        check(
            "select a %% 2 from t where b = %s",
            "select a % 2 from t where b = 'x'",
            true,
        );
        let plain = "select a, 1.5 from t where b = 7 limit 1";
        check("select a, 1.5 from t where b = %s limit 1", plain, true);
    }

    #[test]
    fn literals_are_hidden_where_there_are_strings() {
        let found = original(
            "select 'secret', 7 from t -- why\n where b = %(b)s and c = %s",
            "select ?, ? from t where b = ? and c = ?",
        );
        let expected = "select ?, ? from t \n where b = %(b)s and c = %s";
        assert_eq!(found.as_deref(), Some(expected));
    }

    #[test]
    fn values_of_a_list_are_one() {
        check(
            "select x where a in %s",
            "select x where a in (1, 2, 3)",
            true,
        );
        check(
            "select x where a in (%s, %s)",
            "select x where a in (1, 2)",
            true,
        );
        check(
            "select x where a in (%s, %s)",
            "select x where a in ($1, $2)",
            true,
        );
        check(
            "select x where a in (%s)",
            "select x where a in (select 1)",
            false,
        );
        check(
            "select x where a = any(%s)",
            "select x where a = any('{1,2}')",
            true,
        );
    }

    #[test]
    fn a_template_keeps_its_comments_and_its_case() {
        let template = "SELECT /* why */ \"A\" from t -- x\n where b = %s";
        check(
            template,
            "SELECT /* why */ \"A\" from t -- x\n where b = 'secret'",
            true,
        );
        check(
            "select a from t where b = %s",
            "SELECT a from t where b = 1",
            false,
        );
    }

    #[test]
    fn only_the_notation_of_the_db_api_makes_a_template() {
        assert!(has_places("select %s"));
        assert!(has_places("select %(a b)s limit %(c)s"));
        assert!(has_places("select %b, %t"));
        for plain in [
            "select 1",
            "select $1",
            "select 5 % 2",
            "select 5 %% s",
            "%",
            "%(",
        ] {
            assert!(!has_places(plain), "{plain}");
        }
    }

    proptest! {
        #[test]
        fn never_panics(template in "[%s()'a,: $\\[\\]-]{0,40}", sent in "[?s()'a,: $\\[\\]-]{0,40}") {
            original(&template, &sent);
        }

        #[test]
        fn any_literals_in_its_places_fit(first in "'[a-z]{0,9}'|[0-9]{1,9}", second in "'[a-z%?$]{0,9}'") {
            let template = "update t set a = %s where b = %s";
            let sent = format!("update t set a = {first} where b = {second}");
            let told = describe(sent.as_bytes(), Dialect::default()).text;
            prop_assert_eq!(original(template, &told), Some(template.to_owned()));
        }
    }
}
