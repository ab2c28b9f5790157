//! What a statement does to which tables, in a few words (semantic
//! conventions, `db.query.summary`).
//!
//! It follows the words that name operations and the places where their
//! targets stand, and no more of the grammar. Names that programs make up as
//! they go (savepoints, cursors, prepared statements) are left out. It is fed
//! by `sql` with the tokens of a statement, in order.

use super::lexer::{Kind, Token};

/// Longest summary, bytes; the conventions' limit.
pub(super) const MAX_SUMMARY: usize = 255;
/// Deepest nesting of parentheses that is followed.
const MAX_DEPTH: usize = 64;
/// Names given by `WITH` that are remembered.
const MAX_NAMES: usize = 16;

/// What stands behind an operation's word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verb {
    /// Tables behind `FROM` and `JOIN`.
    Query,
    /// A table behind `INTO`.
    Insert,
    /// A table behind it, more behind `FROM`.
    Update,
    /// Tables behind `FROM` and `USING`.
    Delete,
    /// A kind of thing, then its name: `CREATE TABLE a`.
    Define,
    /// A name behind it, or several, perhaps after a word: `TRUNCATE TABLE a`.
    Name,
    /// Another statement, or nothing of interest.
    Prefix,
    /// Nothing of interest until the statement's end.
    Quiet,
}

/// Operations by word. What is not here is no SQL that is known.
const VERBS: &[(&str, Verb)] = &[
    ("SELECT", Verb::Query),
    ("INSERT", Verb::Insert),
    ("UPDATE", Verb::Update),
    ("DELETE", Verb::Delete),
    ("MERGE", Verb::Delete),
    ("REPLACE", Verb::Insert),
    ("WITH", Verb::Prefix),
    ("VALUES", Verb::Quiet),
    ("TABLE", Verb::Name),
    ("BEGIN", Verb::Quiet),
    ("START", Verb::Quiet),
    ("COMMIT", Verb::Quiet),
    ("END", Verb::Quiet),
    ("ROLLBACK", Verb::Quiet),
    ("ABORT", Verb::Quiet),
    ("SAVEPOINT", Verb::Quiet),
    ("RELEASE", Verb::Quiet),
    ("CREATE", Verb::Define),
    ("ALTER", Verb::Define),
    ("DROP", Verb::Define),
    ("REFRESH", Verb::Define),
    ("TRUNCATE", Verb::Name),
    ("LOCK", Verb::Name),
    ("COPY", Verb::Name),
    ("CALL", Verb::Name),
    ("EXEC", Verb::Name),
    ("ANALYZE", Verb::Quiet),
    ("VACUUM", Verb::Quiet),
    ("REINDEX", Verb::Quiet),
    ("CLUSTER", Verb::Quiet),
    ("EXPLAIN", Verb::Prefix),
    ("PREPARE", Verb::Prefix),
    ("DECLARE", Verb::Prefix),
    ("EXECUTE", Verb::Quiet),
    ("DEALLOCATE", Verb::Quiet),
    ("FETCH", Verb::Quiet),
    ("MOVE", Verb::Quiet),
    ("CLOSE", Verb::Quiet),
    ("LISTEN", Verb::Quiet),
    ("UNLISTEN", Verb::Quiet),
    ("NOTIFY", Verb::Quiet),
    ("SET", Verb::Quiet),
    ("RESET", Verb::Quiet),
    ("SHOW", Verb::Quiet),
    ("DISCARD", Verb::Quiet),
    ("GRANT", Verb::Quiet),
    ("REVOKE", Verb::Quiet),
    ("COMMENT", Verb::Quiet),
    ("DO", Verb::Quiet),
    ("CHECKPOINT", Verb::Quiet),
    ("LOAD", Verb::Quiet),
    ("IMPORT", Verb::Quiet),
    ("SECURITY", Verb::Quiet),
    ("REASSIGN", Verb::Quiet),
    ("PRAGMA", Verb::Quiet),
    ("ATTACH", Verb::Quiet),
    ("DETACH", Verb::Quiet),
    ("USE", Verb::Quiet),
    ("DESCRIBE", Verb::Quiet),
];

/// Words between `CREATE` and the kind of thing, or between the kind and the
/// name, which are left out.
const MODIFIERS: &[&str] = &[
    "OR",
    "REPLACE",
    "TEMP",
    "TEMPORARY",
    "UNLOGGED",
    "UNIQUE",
    "GLOBAL",
    "LOCAL",
    "RECURSIVE",
    "MATERIALIZED",
    "FOREIGN",
    "CONSTRAINT",
    "EVENT",
    "VIRTUAL",
    "DEFAULT",
    "TRUSTED",
    "PROCEDURAL",
    "CONCURRENTLY",
    "IF",
    "NOT",
    "EXISTS",
    "ONLY",
    "ON",
];

/// Words that end a list of tables.
const CLAUSES: &[&str] = &[
    "WHERE",
    "GROUP",
    "ORDER",
    "HAVING",
    "LIMIT",
    "OFFSET",
    "FETCH",
    "FOR",
    "UNION",
    "INTERSECT",
    "EXCEPT",
    "SET",
    "VALUES",
    "RETURNING",
    "WINDOW",
    "WHEN",
    "DEFAULT",
    "CASCADE",
    "RESTRICT",
];

/// What the next token may be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Expect {
    /// An operation.
    #[default]
    Verb,
    /// The kind of thing that is created.
    Thing,
    /// A target.
    Target,
    /// Nothing in particular.
    Any,
}

/// One level of parentheses.
#[derive(Clone, Copy, Debug, Default)]
struct Level {
    verb: Option<Verb>,
    /// In a list of tables, in which a comma is followed by another.
    tables: bool,
}

/// Makes a summary of the tokens it is given.
#[derive(Debug, Default)]
pub(super) struct Summary {
    text: String,
    full: bool,
    expect: Expect,
    levels: Vec<Level>,
    /// Deeper than what `levels` holds.
    beyond: usize,
    level: Level,
    /// Nothing counts until the statement ends.
    quiet: bool,
    /// The statement's first words allow a verb anywhere (`EXPLAIN`), or
    /// names of `WITH`.
    prefix: bool,
    with: bool,
    names: Vec<Vec<u8>>,
    /// The word before the current token, in upper case where it is one.
    before: Before,
    /// The target being read.
    target: Vec<u8>,
    /// A point was read last: the target goes on.
    pointed: bool,
}

/// What stood before the current token, as far as it matters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Before {
    #[default]
    Start,
    Open,
    Close,
    Comma,
    As,
    With,
    Distinct,
    Other,
}

impl Summary {
    /// Takes the next token.
    pub(super) fn token(&mut self, token: &Token<'_>) {
        if token.is_blank() {
            self.end_target();
            return;
        }
        if !self.target.is_empty() {
            let joined = match token.kind {
                Kind::Symbol(b'.') => !self.pointed,
                Kind::Word | Kind::Quoted => self.pointed,
                _ => false,
            };
            if joined {
                self.pointed = !self.pointed;
                self.target.extend_from_slice(token.bytes);
                return;
            }
        }
        self.end_target();
        match token.kind {
            Kind::Symbol(b';') => {
                let Self { text, full, .. } = std::mem::take(self);
                self.text = text;
                self.full = full;
                return;
            }
            Kind::Symbol(b'(') => self.open(),
            Kind::Symbol(b')') => self.close(),
            Kind::Symbol(b',') if self.level.tables && !self.quiet => self.expect = Expect::Target,
            Kind::Word => self.word(token),
            Kind::Quoted if self.expect == Expect::Target => self.begin_target(token),
            _ => self.expect = Expect::Any,
        }
        self.before = match token.kind {
            Kind::Symbol(b'(') => Before::Open,
            Kind::Symbol(b')') => Before::Close,
            Kind::Symbol(b',') => Before::Comma,
            _ if token.is("AS") => Before::As,
            _ if token.is("WITH") || token.is("RECURSIVE") => Before::With,
            _ if token.is("DISTINCT") => Before::Distinct,
            _ => Before::Other,
        };
    }

    /// The summary, if there is one.
    pub(super) fn finish(mut self) -> Option<String> {
        self.end_target();
        Some(self.text).filter(|text| !text.is_empty())
    }

    fn open(&mut self) {
        // `FROM (a JOIN b ..)` goes on inside.
        let goes_on = self.expect == Expect::Target && self.level.tables;
        let inner = Level {
            verb: self.level.verb.filter(|_| goes_on),
            tables: goes_on,
        };
        if self.levels.len() < MAX_DEPTH {
            self.levels.push(std::mem::replace(&mut self.level, inner));
        } else {
            self.beyond += 1;
        }
        if self.expect != Expect::Verb && !goes_on {
            self.expect = Expect::Any;
        }
    }

    fn close(&mut self) {
        if self.beyond > 0 {
            self.beyond -= 1;
        } else {
            self.level = self.levels.pop().unwrap_or_default();
        }
        self.expect = Expect::Any;
    }

    fn word(&mut self, token: &Token<'_>) {
        if self.quiet {
            return;
        }
        if self.expect == Expect::Thing {
            return self.thing(token);
        }
        let first = self.expect == Expect::Verb;
        if self.expect == Expect::Target && !self.is_subquery(token) {
            if !self.is_passed(token) {
                self.begin_target(token);
            }
            return;
        }
        if let Some(verb) = self.verb(token) {
            return self.operation(token, verb);
        }
        // No SQL that is known: of its other words nothing is.
        self.quiet = first;
        self.expect = Expect::Any;
        if self.with
            && self.levels.is_empty()
            && matches!(self.before, Before::With | Before::Comma)
        {
            if self.names.len() < MAX_NAMES {
                self.names.push(token.bytes.to_ascii_lowercase());
            }
            return;
        }
        let verb = self.level.verb;
        let tables = matches!(verb, Some(Verb::Query | Verb::Update | Verb::Delete));
        let from = token.is("FROM") && tables && self.before != Before::Distinct;
        let using = token.is("USING") && verb == Some(Verb::Delete);
        let join = token.is("JOIN") && tables;
        let into = token.is("INTO") && verb.is_some_and(|verb| verb != Verb::Define);
        if from || using || join || into {
            self.level.tables |= from || using;
            self.expect = Expect::Target;
        } else if CLAUSES.iter().any(|word| token.is(word)) {
            self.level.tables = false;
        }
    }

    /// Whether a word in a target's place begins a subquery.
    fn is_subquery(&self, token: &Token<'_>) -> bool {
        self.before == Before::Open && (token.is("SELECT") || token.is("WITH"))
    }

    /// Whether a word may stand before the target.
    fn is_passed(&self, token: &Token<'_>) -> bool {
        match self.level.verb {
            Some(Verb::Define) => MODIFIERS.iter().any(|word| token.is(word)),
            Some(Verb::Name) => token.is("TABLE") || token.is("ONLY"),
            _ => token.is("ONLY") || token.is("LATERAL"),
        }
    }

    /// The operation that a word stands for at this place.
    fn verb(&self, token: &Token<'_>) -> Option<Verb> {
        let (_, verb) = VERBS.iter().find(|(word, _)| token.is(word))?;
        let first = self.expect == Expect::Verb;
        let anywhere = match verb {
            Verb::Query => true,
            // `FOR UPDATE`, `ON DELETE`, `replace(..)` are none.
            Verb::Insert | Verb::Update | Verb::Delete => {
                let begins = matches!(self.before, Before::Open | Before::As)
                    || (self.with && self.before == Before::Close && self.levels.is_empty());
                (begins || self.prefix) && !token.is("REPLACE")
            }
            Verb::Define | Verb::Name | Verb::Prefix | Verb::Quiet => false,
        };
        (first || anywhere).then_some(*verb)
    }

    fn operation(&mut self, token: &Token<'_>, verb: Verb) {
        if token.is("WITH") {
            self.with = self.levels.is_empty();
        } else {
            self.push(token.bytes);
            self.with &= !self.levels.is_empty();
        }
        if token.is("START") {
            self.push(b"TRANSACTION");
        }
        self.level = Level {
            verb: Some(verb),
            tables: false,
        };
        self.prefix = verb == Verb::Prefix && token.is("EXPLAIN");
        self.expect = match verb {
            Verb::Define => {
                self.level.tables = token.is("DROP");
                Expect::Thing
            }
            Verb::Update => Expect::Target,
            Verb::Name => {
                self.level.tables = token.is("TRUNCATE") || token.is("LOCK");
                Expect::Target
            }
            _ => Expect::Any,
        };
        self.quiet = verb == Verb::Quiet;
    }

    /// A word between `CREATE` and the name of what is created.
    fn thing(&mut self, token: &Token<'_>) {
        if MODIFIERS.iter().any(|word| token.is(word)) {
            return;
        }
        self.push(token.bytes);
        self.expect = Expect::Target;
    }

    fn begin_target(&mut self, token: &Token<'_>) {
        self.target.extend_from_slice(token.bytes);
        self.pointed = false;
        self.expect = Expect::Any;
    }

    /// The target that was read is complete.
    fn end_target(&mut self) {
        if self.target.is_empty() {
            return;
        }
        let target = std::mem::take(&mut self.target);
        if !self.names.contains(&target.to_ascii_lowercase()) {
            self.push(&target);
        }
    }

    /// Adds a word, unless the summary is full: no word is cut.
    fn push(&mut self, word: &[u8]) {
        let word = String::from_utf8_lossy(word);
        let length = self.text.len() + usize::from(!self.text.is_empty()) + word.len();
        if self.full || length > MAX_SUMMARY || word.contains(char::is_control) {
            self.full = true;
            return;
        }
        if !self.text.is_empty() {
            self.text.push(' ');
        }
        self.text.push_str(&word);
    }
}

/// Whether a word begins a statement.
pub(super) fn is_verb(token: &Token<'_>) -> bool {
    VERBS.iter().any(|(word, _)| token.is(word))
}
