//! SQL statements as spans tell them: the text without its literals, and a
//! summary.
//!
//! Every parser of an SQL database uses [`describe`]; it knows no protocol and
//! no database. Its lexer is its own since it runs once per statement, on the
//! pipeline's thread, and must not fail on text that breaks off or that no
//! grammar allows. What may be a literal is hidden; see `lexer`.

mod lexer;
mod summary;
pub mod template;

use std::borrow::Cow;

pub use self::lexer::Dialect;
use self::lexer::{Kind, Lexer, Token};
use self::summary::Summary;

/// Longest text that is told, bytes.
pub const MAX_TEXT: usize = 4096;
/// Longest beginning of a statement that is looked at, bytes.
pub const MAX_STATEMENT: usize = 16 * 1024;

/// What is told of a statement.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Statement {
    /// Its text, at most [`MAX_TEXT`] bytes; empty where there is none.
    pub text: String,
    /// `db.query.summary`, if it is SQL that is known.
    pub summary: Option<String>,
}

impl Statement {
    /// Whether it is certain that the text was one statement, and not several.
    pub fn is_single(&self) -> bool {
        let text = self.text.trim_end();
        let text = text.strip_suffix(';').unwrap_or(text);
        !text.is_empty() && self.text.len() < MAX_TEXT && !text.contains(';')
    }
}

/// Describes a statement that is sent as a text of its own, so that anything
/// in it may be data: all literals become `?`, comments go.
pub fn describe(statement: &[u8], dialect: Dialect) -> Statement {
    let mut sanitised = Text::default();
    let mut summary = Summary::default();
    let mut lexer = Lexer::new(bounded(statement), dialect);
    let mut word_in = false;
    while let Some(token) = lexer.next() {
        summary.token(&token);
        let list = match token.kind {
            Kind::Symbol(b'(') if word_in => list(&lexer),
            _ => None,
        };
        match token.kind {
            Kind::Comment => {}
            Kind::Literal => sanitised.push(b"?"),
            Kind::Word if token.is("TRUE") || token.is("FALSE") => sanitised.push(b"?"),
            _ => sanitised.push(token.bytes),
        }
        if let Some(rest) = list {
            sanitised.push(b"?");
            lexer = rest;
        }
        if !token.is_blank() {
            word_in = token.is("IN");
        }
    }
    Statement {
        text: sanitised.finish(),
        summary: summary.finish(),
    }
}

/// Describes a statement whose data travels beside it as parameters: the text
/// stays as it is. A text without any place for a parameter is no such
/// statement, and treated as [`describe`] does.
pub fn describe_parameterized(statement: &[u8], dialect: Dialect) -> Statement {
    let bounded = bounded(statement);
    let mut summary = Summary::default();
    let mut parameterized = false;
    for token in Lexer::new(bounded, dialect) {
        parameterized |= token.kind == Kind::Parameter;
        summary.token(&token);
    }
    if !parameterized {
        return describe(statement, dialect);
    }
    let mut text = Text::default();
    text.push(bounded);
    Statement {
        text: text.finish(),
        summary: summary.finish(),
    }
}

/// Whether a text begins like an SQL statement: with a word that is known, and
/// that is complete.
pub fn is_statement(text: &[u8]) -> bool {
    let mut tokens = Lexer::new(bounded(text), Dialect::default())
        .filter(|token| !token.is_blank() && token.kind != Kind::Symbol(b'('));
    tokens.next().is_some_and(|first| summary::is_verb(&first))
}

fn bounded(statement: &[u8]) -> &[u8] {
    statement.get(..MAX_STATEMENT).unwrap_or(statement)
}

/// The lexer behind the literals of a list, `IN (1, 2)`; they are told as one,
/// as their number says nothing of the query.
fn list<'a>(lexer: &Lexer<'a>) -> Option<Lexer<'a>> {
    let mut ahead = lexer.clone();
    let mut any = false;
    loop {
        let before = ahead.clone();
        let Token { kind, .. } = ahead.next()?;
        match kind {
            Kind::Literal => any = true,
            Kind::Space | Kind::Comment | Kind::Symbol(b',') => {}
            Kind::Symbol(b')') if any => return Some(before),
            _ => return None,
        }
    }
}

/// A text of at most [`MAX_TEXT`] bytes.
#[derive(Default)]
struct Text {
    bytes: Vec<u8>,
}

impl Text {
    fn push(&mut self, bytes: &[u8]) {
        let room = MAX_TEXT.saturating_sub(self.bytes.len());
        self.bytes
            .extend_from_slice(bytes.get(..room).unwrap_or(bytes));
    }

    /// The text without what no attribute may hold, and without space around.
    fn finish(self) -> String {
        let text = match String::from_utf8(self.bytes) {
            Ok(text) => text,
            // The last character may be cut; others are of another encoding.
            Err(error) => match error.utf8_error() {
                cut if cut.error_len().is_none() => {
                    let valid = cut.valid_up_to();
                    let bytes = error.into_bytes();
                    let kept = bytes.get(..valid).unwrap_or_default();
                    String::from_utf8_lossy(kept).into_owned()
                }
                _ => lossy(&error.into_bytes()),
            },
        };
        let odd = |c: char| c.is_control() && !matches!(c, '\n' | '\t' | '\r');
        let text: Cow<'_, str> = match text.contains(odd) {
            true => text.replace(odd, " ").into(),
            false => text.into(),
        };
        text.trim().to_owned()
    }
}

/// Replaces bytes that are not UTF-8, within the bound.
fn lossy(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    text.get(..text.floor_char_boundary(MAX_TEXT))
        .unwrap_or(&text)
        .to_owned()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use sqlparser::dialect::PostgreSqlDialect;
    use sqlparser::tokenizer::{Token as Oracle, Tokenizer};

    use super::*;

    fn sanitised(text: &str) -> String {
        describe(text.as_bytes(), Dialect::default()).text
    }

    #[track_caller]
    fn summarizes(text: &str, expected: &str) {
        let found = describe(text.as_bytes(), Dialect::default());
        assert_eq!(found.summary.as_deref().unwrap_or("-"), expected, "{text}");
        // As far as it is told, a text that stays as it is says the same.
        let again = describe(found.text.as_bytes(), Dialect::default());
        assert_eq!(again.text, found.text);
    }

    #[test]
    fn passes_the_published_cases() {
        let path = concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../tests/fixtures/sql/semantic-conventions.json"
        );
        let text = std::fs::read_to_string(path).expect("the cases");
        let cases: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        let cases = cases.as_array().expect("a list of cases");
        assert_eq!(cases.len(), 24);
        for case in cases {
            let query = case["query"].as_str().expect("a query");
            let found = describe(query.as_bytes(), Dialect::default());
            let texts = case["text"].as_array().expect("texts");
            assert!(
                texts.iter().any(|text| *text == found.text.as_str()),
                "{}: {}",
                case["name"],
                found.text
            );
            assert_eq!(
                found.summary.as_deref(),
                case["summary"].as_str(),
                "{}",
                case["name"]
            );
        }
    }

    #[test]
    fn hides_every_literal() {
        for (text, expected) in [
            ("select $$secret$$, $a$sec$$ret$a$", "select ?, ?"),
            ("select E'it\\'s', N'x', B'01', 'a''b'", "select ?, ?, ?, ?"),
            (
                "select x where y = true and z is null",
                "select x where y = ? and z is null",
            ),
            (
                "select a-1, (a)-1, -1, a - -1",
                "select a-?, (a)-?, ?, a - ?",
            ),
            (
                "select x in (1,2 , 'a') or x in (select 1)",
                "select x in (?) or x in (select ?)",
            ),
            (
                "select x in (1, y), x in ($1, 2), x in ()",
                "select x in (?, y), x in ($1, ?), x in ()",
            ),
            (
                "select date '2020-01-01'::date, t.a",
                "select date ?::date, t.a",
            ),
            ("/* secret */ select 1 -- secret", "select ?"),
            ("set password = 'secret", "set password = ?"),
            ("select \"a b\", \"secret", "select \"a b\", ?"),
        ] {
            assert_eq!(sanitised(text), expected);
        }
        let dialect = Dialect {
            backslash_escapes: true,
        };
        let found = describe(br"select 'it\'s secret', x", dialect);
        assert_eq!(found.text, "select ?, x");
    }

    #[test]
    fn leaves_parameterized_text_as_it_is() {
        let text = "select a /* why */ from t where b = $1 and c = 'x'";
        let found = describe_parameterized(text.as_bytes(), Dialect::default());
        assert_eq!(found.text, text);
        assert_eq!(found.summary.as_deref(), Some("select t"));
        let found = describe_parameterized(b"select 'x'", Dialect::default());
        assert_eq!(found.text, "select ?");
    }

    #[test]
    fn names_operations_and_their_targets() {
        summarizes("select 1", "select");
        summarizes(
            "SELECT * FROM \"song list\", 'artists', a.\"B\".c x",
            "SELECT \"song list\" a.\"B\".c",
        );
        summarizes(
            "select extract(year from d) from a where b is distinct from c",
            "select a",
        );
        summarizes(
            "select * from (a join b using (x)) join lateral f(1) on true",
            "select a b f",
        );
        summarizes("select * from only a for update of a", "select a");
        summarizes(
            "with x as (select * from a), y(n) as (select 1) select p, q from x, y, z, q",
            "select a select select z q",
        );
        summarizes(
            "with d as (delete from a returning *) insert into b select * from d",
            "delete a insert b select",
        );
        summarizes(
            "insert into a (x) values (1) on conflict (x) do update set x = 2",
            "insert a",
        );
        summarizes(
            "update a set x = (select max(y) from b) from c where true",
            "update a select b c",
        );
        summarizes("delete from a using b where a.x = b.x", "delete a b");
        summarizes(
            "merge into a using b on a.x = b.x when matched then update set y = 1",
            "merge a b",
        );
        summarizes(
            "create unique index concurrently if not exists i on t (x)",
            "create index i",
        );
        summarizes(
            "create temp table t as select * from s",
            "create table t select s",
        );
        summarizes(
            "alter table if exists a add b int, add c int",
            "alter table a",
        );
        summarizes("drop table if exists a, b cascade", "drop table a b");
        summarizes("truncate table a, only b", "truncate a b");
        summarizes("copy t (a, b) from stdin", "copy t");
        summarizes("copy (select * from t) to stdout", "copy select t");
        summarizes("explain (analyze) delete from a", "explain delete a");
        summarizes("declare c1 cursor for select * from t", "declare select t");
        summarizes("fetch 5 from c1", "fetch");
        summarizes("savepoint sa_1", "savepoint");
        summarizes("call p(1)", "call p");
        summarizes("start transaction", "start TRANSACTION");
        summarizes("begin; select * from a; commit", "begin select a commit");
        summarizes("grant select on a to b", "grant");
        summarizes("prepare x as update a set b = $1", "prepare update a");
        summarizes("gibberish from secret", "-");
        summarizes("", "-");
        summarizes(";;", "-");
    }

    #[test]
    fn a_summary_is_cut_between_words() {
        let text = format!(
            "select * from {}",
            vec!["a_table_of_some_length"; 30].join(", ")
        );
        let found = describe(text.as_bytes(), Dialect::default())
            .summary
            .expect("a summary");
        assert!(found.len() <= 255 && found.ends_with("length"), "{found}");
    }

    #[test]
    fn a_long_text_is_cut_between_characters() {
        let text = format!("select \"{}\" , 'secret'", "\u{20ac}".repeat(2000));
        let found = sanitised(&text);
        assert!(found.len() <= MAX_TEXT && found.ends_with('\u{20ac}'));
        // A literal that the limit cuts is hidden, and what is looked at ends.
        let text = format!("select '{}", "secret ".repeat(1_000_000));
        assert_eq!(sanitised(&text), "select ?");
        let latin = [b"select \"".as_slice(), &[0xe9; 9000], b"\""].concat();
        assert!(describe(&latin, Dialect::default()).text.len() <= MAX_TEXT);
    }

    #[test]
    fn tells_statements_by_their_first_word() {
        assert!(is_statement(b" /* x */ (Select 1)"));
        assert!(!is_statement(b"selected"));
        assert!(!is_statement(b""));
    }

    /// A literal that holds the word `zsecret`, in every way to write one.
    fn literal() -> impl Strategy<Value = String> {
        let content = proptest::collection::vec(
            prop_oneof![
                Just("zsecret".to_owned()),
                Just("''".to_owned()),
                Just("\"".to_owned()),
                Just("--".to_owned()),
                Just("/*".to_owned()),
                Just("$1".to_owned()),
                Just(";".to_owned()),
                Just("\u{e9}".to_owned()),
            ],
            0..5,
        );
        (content, 0..5_u8).prop_map(|(parts, how)| {
            let text = format!("{}zsecret", parts.concat());
            match how {
                0 => format!("'{text}'"),
                1 => format!("E'\\'{text}\\\\'"),
                2 => format!("$${}$$", text.replace('$', "")),
                3 => format!("$q${text}$q$"),
                _ => format!("N'{text}'"),
            }
        })
    }

    fn piece() -> impl Strategy<Value = String> {
        prop_oneof![
            3 => literal(),
            1 => Just("select".to_owned()),
            1 => Just("a.b".to_owned()),
            1 => Just("\"q\"".to_owned()),
            1 => Just("in (".to_owned()),
            1 => Just(")".to_owned()),
            1 => Just(", ".to_owned()),
            1 => Just("= ".to_owned()),
            1 => Just("-- note\n".to_owned()),
            1 => Just("/* note */".to_owned()),
            1 => Just("::text".to_owned()),
            1 => Just("$1".to_owned()),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 1024, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn no_literal_shows(pieces in proptest::collection::vec(piece(), 0..12), cut in any::<proptest::sample::Index>()) {
            let text = pieces.join(" ");
            let found = describe(text.as_bytes(), Dialect::default());
            prop_assert!(!found.text.contains("zsecret"), "{} of {}", found.text, text);
            prop_assert!(!found.summary.unwrap_or_default().contains("zsecret"));
            // Nor where it breaks off.
            let cut = cut.index(text.len() + 1);
            let found = describe(&text.as_bytes()[..cut], Dialect::default());
            prop_assert!(!found.text.contains("zse"), "{} of {}", found.text, &text.as_bytes().escape_ascii().to_string()[..]);
        }

        #[test]
        fn agrees_with_another_tokenizer(pieces in proptest::collection::vec(piece(), 0..12)) {
            let text = pieces.join(" ");
            let Ok(tokens) = Tokenizer::new(&PostgreSqlDialect {}, &text).tokenize() else {
                return Ok(());
            };
            let literals = tokens.iter().filter(|token| matches!(
                token,
                Oracle::SingleQuotedString(_) | Oracle::EscapedStringLiteral(_)
                    | Oracle::NationalStringLiteral(_) | Oracle::DollarQuotedString(_)
                    | Oracle::Number(..)
            ));
            let own = Lexer::new(text.as_bytes(), Dialect::default());
            let found = own.filter(|token| token.kind == Kind::Literal);
            prop_assert_eq!(found.count(), literals.count(), "{}", text);
        }

        #[test]
        fn any_bytes_are_described(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let found = describe(&bytes, Dialect::default());
            prop_assert!(found.text.len() <= 3 * bytes.len());
            let whole: usize = Lexer::new(&bytes, Dialect::default()).map(|token| token.bytes.len()).sum();
            prop_assert_eq!(whole, bytes.len());
        }
    }
}
