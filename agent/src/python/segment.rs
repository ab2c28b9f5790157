//! What kind of expression a piece of source is, as far as the marks of
//! tracebacks depend on it: where the operator or the last bracket of its
//! outermost expression is.

/// The outermost expression of a piece of source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shape {
    /// An operation: characters before and behind its operator; the end of
    /// the left operand and the start of the right one without the
    /// parentheses around them.
    Operation {
        operator: usize,
        left_end: usize,
        right_start: usize,
    },
    /// A subscription, with the index of its bracket.
    Subscript(usize),
    /// A call, with the index of its parenthesis, and whether it is called by
    /// a mere name.
    Call { bracket: usize, by_name: bool },
    /// Anything else.
    Other,
}

/// A token outside of any brackets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Name,
    Literal,
    Group(char),
    Dot,
    Operator(u8),
    Unary,
}

#[derive(Clone, Copy, Debug)]
struct Token {
    kind: Kind,
    start: usize,
    end: usize,
}

/// The binding of `**`.
const POWER: u8 = 6;

/// Words that make of an expression none that is marked.
const WORDS: &[&str] = &[
    "and", "as", "assert", "async", "del", "else", "for", "from", "global", "if", "import", "in",
    "is", "lambda", "nonlocal", "not", "or", "raise", "return", "with", "yield",
];

/// The shape of an expression, given as characters.
pub(super) fn shape(text: &[char]) -> Shape {
    tokens(text)
        .and_then(|tokens| of_tokens(text, &tokens))
        .unwrap_or(Shape::Other)
}

fn of_tokens(text: &[char], tokens: &[Token]) -> Option<Shape> {
    let operators = tokens.iter().enumerate();
    let operators = operators.filter_map(|(idx, token)| match token.kind {
        Kind::Operator(binding) => Some((binding, idx)),
        _ => None,
    });
    let lowest = operators.clone().map(|(binding, _)| binding).min();
    if let Some(lowest) = lowest {
        let mut of_lowest = operators.filter(|(binding, _)| *binding == lowest);
        let (_, idx) = match lowest {
            POWER => of_lowest.next()?,
            _ => of_lowest.next_back()?,
        };
        // `-a ** b` is `-(a ** b)`, and `await a ** b` is `(await a) ** b`.
        let negated = matches!(tokens.first()?.kind, Kind::Unary)
            && text.get(tokens.first()?.start) != Some(&'a');
        if lowest == POWER && negated {
            return None;
        }
        let operator = tokens.get(idx)?;
        let left = tokens.get(..idx)?;
        let right = tokens.get(idx + 1..)?;
        let (_, left_end) = bare(text, left.first()?.start, left.last()?.end);
        let (right_start, _) = bare(text, right.first()?.start, right.last()?.end);
        return Some(Shape::Operation {
            operator: operator.start,
            left_end,
            right_start,
        });
    }
    let [before @ .., last] = tokens else {
        return None;
    };
    if before.is_empty() || tokens.iter().any(|token| token.kind == Kind::Unary) {
        return None;
    }
    match last.kind {
        Kind::Group('[') => Some(Shape::Subscript(last.start)),
        Kind::Group('(') => Some(Shape::Call {
            bracket: last.start,
            by_name: matches!(before, [only] if only.kind == Kind::Name),
        }),
        _ => None,
    }
}

/// Takes away parentheses that are no part of the expression in them.
fn bare(text: &[char], mut start: usize, mut end: usize) -> (usize, usize) {
    while let Some(inner) = text.get(start..end).and_then(parenthesized) {
        let spaces = inner.iter().take_while(|c| c.is_whitespace()).count();
        let behind = inner.iter().rev().take_while(|c| c.is_whitespace()).count();
        start += 1 + spaces;
        end = end.saturating_sub(1 + behind);
    }
    (start, end)
}

/// What is in the parentheses around the whole, unless they make a tuple or a
/// generator.
fn parenthesized(text: &[char]) -> Option<&[char]> {
    let [only] = tokens(text)?[..] else {
        return None;
    };
    if only.kind != Kind::Group('(') || only.end != text.len() {
        return None;
    }
    let inner = text.get(1..text.len() - 1)?;
    let plain = inner.iter().any(|c| !c.is_whitespace()) && tokens(inner).is_some();
    plain.then_some(inner)
}

/// The tokens outside of brackets; none if something is among them that makes
/// the whole no operation, subscription or call.
fn tokens(text: &[char]) -> Option<Vec<Token>> {
    let mut tokens: Vec<Token> = Vec::new();
    let mut at = 0;
    while let Some(&c) = text.get(at) {
        let start = at;
        let operand = tokens
            .last()
            .is_some_and(|token| matches!(token.kind, Kind::Name | Kind::Literal | Kind::Group(_)));
        let kind = match c {
            c if c.is_whitespace() || c == '\\' => {
                at += 1;
                continue;
            }
            '#' => {
                at = line_end(text, at);
                continue;
            }
            '(' | '[' | '{' => {
                at = group_end(text, at)?;
                Kind::Group(c)
            }
            '\'' | '"' => {
                at = string_end(text, at)?;
                Kind::Literal
            }
            c if c.is_alphabetic() || c == '_' => {
                while text
                    .get(at)
                    .is_some_and(|c| c.is_alphanumeric() || *c == '_')
                {
                    at += 1;
                }
                let word: String = text.get(start..at)?.iter().collect();
                if matches!(text.get(at), Some('\'' | '"')) && word.len() <= 2 {
                    at = string_end(text, at)?;
                    Kind::Literal
                } else if word == "await" {
                    Kind::Unary
                } else if WORDS.contains(&word.as_str()) {
                    return None;
                } else {
                    Kind::Name
                }
            }
            c if c.is_ascii_digit()
                || c == '.' && text.get(at + 1).is_some_and(char::is_ascii_digit) =>
            {
                at = number_end(text, at);
                Kind::Literal
            }
            '.' => {
                at += 1;
                Kind::Dot
            }
            _ => {
                let next = text.get(at + 1).copied();
                let (binding, len) = match (c, next) {
                    ('*', Some('*')) => (POWER, 2),
                    ('/', Some('/')) => (5, 2),
                    ('<', Some('<')) | ('>', Some('>')) => (3, 2),
                    ('*' | '/' | '%' | '@', _) => (5, 1),
                    ('+' | '-', _) => (4, 1),
                    ('&', _) => (2, 1),
                    ('^', _) => (1, 1),
                    ('|', _) => (0, 1),
                    ('~', _) if !operand => (0, 1),
                    _ => return None,
                };
                at += len;
                if text.get(at) == Some(&'=') {
                    return None;
                }
                match (operand, c) {
                    (true, _) => Kind::Operator(binding),
                    (false, '+' | '-' | '~') => Kind::Unary,
                    _ => return None,
                }
            }
        };
        tokens.push(Token {
            kind,
            start,
            end: at,
        });
    }
    Some(tokens)
}

fn line_end(text: &[char], at: usize) -> usize {
    let rest = text.get(at..).unwrap_or_default();
    at + rest.iter().position(|c| *c == '\n').unwrap_or(rest.len())
}

fn number_end(text: &[char], mut at: usize) -> usize {
    while let Some(c) = text.get(at) {
        let exponent = matches!(c, '+' | '-')
            && at > 0
            && matches!(text.get(at - 1), Some('e' | 'E'))
            && text.get(at + 1).is_some_and(char::is_ascii_digit);
        if !(c.is_alphanumeric() || matches!(c, '_' | '.') || exponent) {
            break;
        }
        at += 1;
    }
    at
}

/// Where a string literal ends whose quote is at an index.
fn string_end(text: &[char], at: usize) -> Option<usize> {
    let quote = *text.get(at)?;
    let triple = text
        .get(at..at + 3)
        .is_some_and(|three| three == [quote; 3]);
    let mut idx = at + if triple { 3 } else { 1 };
    loop {
        match *text.get(idx)? {
            '\\' => idx += 2,
            c if c == quote && !triple => return Some(idx + 1),
            c if c == quote && text.get(idx..idx + 3).is_some_and(|end| end == [quote; 3]) => {
                return Some(idx + 3);
            }
            _ => idx += 1,
        }
    }
}

/// Where the brackets end that open at an index.
fn group_end(text: &[char], at: usize) -> Option<usize> {
    let mut open = Vec::new();
    let mut idx = at;
    loop {
        match *text.get(idx)? {
            '\'' | '"' => {
                idx = string_end(text, idx)?;
                continue;
            }
            '#' => {
                idx = line_end(text, idx);
                continue;
            }
            '(' => open.push(')'),
            '[' => open.push(']'),
            '{' => open.push('}'),
            c @ (')' | ']' | '}') => {
                if open.pop() != Some(c) {
                    return None;
                }
                if open.is_empty() {
                    return Some(idx + 1);
                }
            }
            _ => {}
        }
        idx += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expected: &str) {
        let chars: Vec<char> = text.chars().collect();
        let found = match shape(&chars) {
            Shape::Operation { operator, .. } => format!("operation {operator}"),
            Shape::Subscript(at) => format!("subscript {at}"),
            Shape::Call { bracket, by_name } => format!("call {bracket} {by_name}"),
            Shape::Other => "other".to_owned(),
        };
        assert_eq!(found, expected, "{text}");
    }

    #[test]
    fn finds_the_operator_that_binds_least() {
        check("a + b * c", "operation 2");
        check("a - b - c", "operation 6");
        check("a ** b ** c", "operation 2");
        check("-a ** b", "other");
        check("-a + b", "operation 3");
        check("f(a + b) // g[1]", "operation 9");
        check("'+' + \"-\"", "operation 4");
        check("1e+5 / 0", "operation 5");
        check("await f() + 1", "operation 10");
        check("a << b | c", "operation 7");
    }

    #[test]
    fn finds_calls_and_subscriptions() {
        check("f(1)", "call 1 true");
        check("a.b(1)", "call 3 false");
        check("f(1)(2)", "call 4 false");
        check("a['b'][c]", "subscript 6");
        check("await f()", "other");
        check("(a)", "other");
        check("[1][0]", "subscript 3");
    }

    #[test]
    fn leaves_everything_else_alone() {
        for text in [
            "",
            "a",
            "a if b else c",
            "a < b",
            "not a",
            "a or b",
            "x = f()",
            "x += 1",
            "a, b",
            "raise E()",
            "lambda: f()",
            "f(",
            "'a",
            "x := f()",
            "a b + ",
            "+ +",
            ")(",
        ] {
            let chars: Vec<char> = text.chars().collect();
            let _ = shape(&chars);
            if text != "a b + " {
                assert_eq!(shape(&chars), Shape::Other, "{text}");
            }
        }
    }
}
