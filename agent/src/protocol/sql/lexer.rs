//! Cuts SQL text into tokens, as PostgreSQL, SQLite and the standard have
//! them.
//!
//! It decides one thing that must never be wrong: what may be a literal. Where
//! a text breaks off or is ambiguous, the rest counts as one. It knows no
//! grammar; `summary` and `sql` do.

/// What a token is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Spaces and line breaks.
    Space,
    /// A comment, without the line break after it.
    Comment,
    /// A keyword or an identifier without quotes.
    Word,
    /// An identifier in quotes.
    Quoted,
    /// A string, number, bit string: anything that may be secret.
    Literal,
    /// A place for a parameter: `$1`, `?`, `:name`, `@name`, `%s`, `%(name)s`.
    Parameter,
    /// Any other character.
    Symbol(u8),
}

/// A token and where it is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Token<'a> {
    /// What it is.
    pub(super) kind: Kind,
    /// Its bytes.
    pub(super) bytes: &'a [u8],
}

impl Token<'_> {
    /// Whether it is this keyword, given in upper case.
    pub(super) fn is(&self, keyword: &str) -> bool {
        self.kind == Kind::Word && self.bytes.eq_ignore_ascii_case(keyword.as_bytes())
    }

    /// Whether the grammar passes over it.
    pub(super) fn is_blank(&self) -> bool {
        matches!(self.kind, Kind::Space | Kind::Comment)
    }
}

/// What decides how a text is cut.
#[derive(Clone, Copy, Debug, Default)]
pub struct Dialect {
    /// A backslash escapes the character after it in every string, not only
    /// in those that say so (`standard_conforming_strings = off`).
    pub backslash_escapes: bool,
}

/// Cuts a text into tokens, which together are the text.
#[derive(Clone, Debug)]
pub(super) struct Lexer<'a> {
    rest: &'a [u8],
    dialect: Dialect,
    /// The last token may be an operand, so that a sign after it is an
    /// operator.
    operand: bool,
}

impl<'a> Lexer<'a> {
    /// Starts at the beginning of the text.
    pub(super) fn new(text: &'a [u8], dialect: Dialect) -> Self {
        Self {
            rest: text,
            dialect,
            operand: false,
        }
    }

    fn at(&self, index: usize) -> Option<u8> {
        self.rest.get(index).copied()
    }

    /// How many bytes from `from` on satisfy the test.
    fn run(&self, from: usize, wanted: impl Fn(u8) -> bool) -> usize {
        let rest = self.rest.get(from..).unwrap_or_default();
        rest.iter().take_while(|&&byte| wanted(byte)).count()
    }

    /// The token at the beginning of the rest, and its length.
    fn token(&self) -> Option<(Kind, usize)> {
        let first = self.at(0)?;
        let second = self.at(1);
        Some(match first {
            byte if byte.is_ascii_whitespace() || byte == 0x0b => (
                Kind::Space,
                self.run(0, |b| b.is_ascii_whitespace() || b == 0x0b),
            ),
            b'-' if second == Some(b'-') => (Kind::Comment, self.run(0, |b| b != b'\n')),
            b'/' if second == Some(b'*') => (Kind::Comment, self.block_comment()),
            b'\'' => (
                Kind::Literal,
                self.string(0, self.dialect.backslash_escapes),
            ),
            b'"' | b'`' => self.quoted(0, first),
            b'0'..=b'9' => (Kind::Literal, self.number(0)),
            b'.' if second.is_some_and(|b| b.is_ascii_digit()) && !self.operand => {
                (Kind::Literal, self.number(0))
            }
            b'+' | b'-' if !self.operand && self.is_number(1) => {
                (Kind::Literal, 1 + self.number(1))
            }
            b'$' => self.dollar(),
            b'?' => (Kind::Parameter, 1 + self.run(1, |b| b.is_ascii_digit())),
            b':' if second.is_some_and(is_word_start) => {
                (Kind::Parameter, 1 + self.run(1, is_word))
            }
            // A cast, not a parameter.
            b':' if second == Some(b':') => (Kind::Symbol(b':'), 2),
            b'@' if second.is_some_and(is_word_start) => {
                (Kind::Parameter, 1 + self.run(1, is_word))
            }
            b'%' => self.percent(),
            byte if is_word_start(byte) => self.word(),
            byte => (Kind::Symbol(byte), 1),
        })
    }

    fn is_number(&self, at: usize) -> bool {
        match self.at(at) {
            Some(b'.') => self.at(at + 1).is_some_and(|byte| byte.is_ascii_digit()),
            byte => byte.is_some_and(|byte| byte.is_ascii_digit()),
        }
    }

    /// Length of a number at `from`, and of whatever clings to it.
    fn number(&self, from: usize) -> usize {
        let mut length = 0;
        while let Some(byte) = self.at(from + length) {
            let exponent = matches!(byte, b'+' | b'-')
                && length > 0
                && matches!(self.at(from + length - 1), Some(b'e' | b'E'))
                && self
                    .at(from + length + 1)
                    .is_some_and(|b| b.is_ascii_digit())
                && !self.is_hexadecimal(from);
            if !(is_word(byte) || byte == b'.' || exponent) {
                break;
            }
            length += 1;
        }
        length
    }

    fn is_hexadecimal(&self, from: usize) -> bool {
        self.at(from) == Some(b'0') && matches!(self.at(from + 1), Some(b'x' | b'X'))
    }

    /// Length of a string whose opening quote is at `from`; all of the rest
    /// where it is not closed.
    fn string(&self, from: usize, escapes: bool) -> usize {
        let mut at = from + 1;
        while let Some(byte) = self.at(at) {
            match byte {
                b'\\' if escapes => at += 2,
                b'\'' if self.at(at + 1) == Some(b'\'') => at += 2,
                b'\'' => return at + 1 - from,
                _ => at += 1,
            }
        }
        self.rest.len() - from
    }

    /// An identifier in quotes; one that is not closed may be anything.
    fn quoted(&self, from: usize, quote: u8) -> (Kind, usize) {
        let mut at = from + 1;
        while let Some(byte) = self.at(at) {
            if byte != quote {
                at += 1;
            } else if self.at(at + 1) == Some(quote) {
                at += 2;
            } else {
                return (Kind::Quoted, at + 1);
            }
        }
        (Kind::Literal, self.rest.len())
    }

    /// PostgreSQL's comments nest. Where another system would end a comment
    /// earlier, what is left out is no literal that shows.
    fn block_comment(&self) -> usize {
        let mut depth = 0_usize;
        let mut at = 0;
        while at < self.rest.len() {
            match (self.at(at), self.at(at + 1)) {
                (Some(b'/'), Some(b'*')) => {
                    depth += 1;
                    at += 2;
                }
                (Some(b'*'), Some(b'/')) => {
                    depth -= 1;
                    at += 2;
                    if depth == 0 {
                        return at;
                    }
                }
                _ => at += 1,
            }
        }
        self.rest.len()
    }

    /// `$1`, or a string between `$tag$` and `$tag$`.
    fn dollar(&self) -> (Kind, usize) {
        let digits = self.run(1, |byte| byte.is_ascii_digit());
        if digits > 0 {
            return (Kind::Parameter, 1 + digits);
        }
        let tag = 1 + self.run(1, |byte| is_word(byte) && byte != b'$');
        if self.at(tag) != Some(b'$') {
            // At the end it may be the beginning of a string.
            return match tag == self.rest.len() {
                true => (Kind::Literal, tag),
                false if tag > 1 => (Kind::Parameter, tag),
                false => (Kind::Symbol(b'$'), 1),
            };
        }
        let (delimiter, text) = self.rest.split_at(tag + 1);
        let end = text
            .windows(delimiter.len())
            .position(|window| window == delimiter);
        match end {
            Some(end) => (Kind::Literal, end + 2 * delimiter.len()),
            None => (Kind::Literal, self.rest.len()),
        }
    }

    /// Places of the DB-API: `%s` and `%(name)s`.
    fn percent(&self) -> (Kind, usize) {
        if self.operand {
            return (Kind::Symbol(b'%'), 1);
        }
        if self.at(1) == Some(b's') && !self.at(2).is_some_and(is_word) {
            return (Kind::Parameter, 2);
        }
        if self.at(1) == Some(b'(') {
            let name = self.run(2, is_word);
            if self.at(2 + name) == Some(b')') && self.at(3 + name) == Some(b's') {
                return (Kind::Parameter, 4 + name);
            }
        }
        (Kind::Symbol(b'%'), 1)
    }

    /// A word, or the string that it is the prefix of.
    fn word(&self) -> (Kind, usize) {
        let length = self.run(0, is_word);
        let word = self.rest.get(..length).unwrap_or_default();
        let string = |escapes| (Kind::Literal, length + self.string(length, escapes));
        match (self.at(length), word) {
            // E'..' has escapes; B, N and X have none, nor have those of
            // other systems: _utf8'..', r'..'.
            (Some(b'\''), [b'e' | b'E']) => string(true),
            (Some(b'\''), _) => string(self.dialect.backslash_escapes),
            // U&'..' is a string, U&".." an identifier.
            (Some(b'&'), [b'u' | b'U']) if self.at(2) == Some(b'\'') => {
                (Kind::Literal, 2 + self.string(2, false))
            }
            _ => (Kind::Word, length),
        }
    }
}

impl<'a> Iterator for Lexer<'a> {
    type Item = Token<'a>;

    fn next(&mut self) -> Option<Token<'a>> {
        let (kind, length) = self.token()?;
        let length = length.clamp(1, self.rest.len());
        let (bytes, rest) = self.rest.split_at(length);
        self.rest = rest;
        // The conventions take a sign that touches a number for a part of it,
        // even between two numbers.
        self.operand = matches!(
            kind,
            Kind::Word | Kind::Quoted | Kind::Parameter | Kind::Symbol(b')' | b']')
        );
        Some(Token { kind, bytes })
    }
}

fn is_word_start(byte: u8) -> bool {
    byte.is_ascii_alphabetic() || byte == b'_' || byte >= 0x80
}

fn is_word(byte: u8) -> bool {
    is_word_start(byte) || byte.is_ascii_digit() || byte == b'$'
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Tokens, `L` for literals and so on, with their text.
    #[track_caller]
    fn check(text: &str, expected: &str) {
        let tokens: Vec<_> = Lexer::new(text.as_bytes(), Dialect::default())
            .filter(|token| token.kind != Kind::Space)
            .map(|token| {
                let mark = match token.kind {
                    Kind::Space => 's',
                    Kind::Comment => 'c',
                    Kind::Word => 'w',
                    Kind::Quoted => 'q',
                    Kind::Literal => 'l',
                    Kind::Parameter => 'p',
                    Kind::Symbol(_) => '.',
                };
                format!("{mark}{}", String::from_utf8_lossy(token.bytes))
            })
            .collect();
        assert_eq!(tokens.join(" "), expected);
    }

    #[test]
    fn tells_literals_from_names() {
        check("a1 1a 1.5e-7 .5 0xFFe+1", "wa1 l1a l1.5e-7 l.5 l0xFFe l+1");
        check(
            "t.1 x-1 (1)-1 - 1",
            "wt .. l1 wx .- l1 .( l1 .) .- l1 .- l1",
        );
        check("'a''b' E'a\\'b' 'a\\'", "l'a''b' lE'a\\'b' l'a\\'");
        check(
            "N'x' U&'x' U&\"x\" x'ff'",
            "lN'x' lU&'x' wU .& q\"x\" lx'ff'",
        );
        check("\"a\"\"b\" `c`", "q\"a\"\"b\" q`c`");
        check(
            "$$x$y$$ $t$a$$b$t$ $1 $a b",
            "l$$x$y$$ l$t$a$$b$t$ p$1 p$a wb",
        );
        check(
            "a::text :b @c ?1 a%s %s %(n)s",
            "wa .:: wtext p:b p@c p?1 wa .% ws p%s p%(n)s",
        );
        check("a--b\nc/*d/*e*/f*/g", "wa c--b wc c/*d/*e*/f*/ wg");
    }

    #[test]
    fn what_breaks_off_is_a_literal() {
        for rest in ["'abc", "\"abc", "E'a\\'b", "$t$abc", "$ab", "`abc", "12"] {
            check(rest, &format!("l{rest}"));
        }
        check("a /* b", "wa c/* b");
    }

    #[test]
    fn backslashes_escape_where_the_dialect_says_so() {
        let dialect = Dialect {
            backslash_escapes: true,
        };
        let mut tokens = Lexer::new(br"'it\'s' x", dialect);
        assert_eq!(
            tokens.next().map(|token| token.bytes),
            Some(&br"'it\'s'"[..])
        );
    }
}
