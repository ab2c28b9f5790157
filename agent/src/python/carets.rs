//! The lines of source under an entry of a traceback, with the marks that
//! 3.11 and newer put below them.
//!
//! The rules are those of `Lib/traceback.py`: one for 3.11 and 3.12, which
//! mark one line, another since 3.13, which marks all lines of an expression
//! and calls too.

use pyframes::line::Position;

use super::segment::{Shape, shape};

/// Most lines of one expression that are looked at.
const MAX_LINES: usize = 500;
/// Longest line of source that is shown, bytes.
const MAX_LINE: usize = 16 * 1024;

/// Adds the source of an entry.
pub(super) fn excerpt(
    lines: &[String],
    line: u32,
    position: Option<&Position>,
    minor: u8,
    into: &mut String,
) {
    let text = text_at(lines, line);
    let Some((position, columns)) = position.and_then(|position| {
        let columns = (position.column?, position.end_column?);
        (minor >= 11 && position.line == line).then_some((position, columns))
    }) else {
        plain(text, into);
        return;
    };
    let end_line = position.end_line.unwrap_or(line).max(line);
    if minor < 13 {
        plain(text, into);
        if !text.trim().is_empty() {
            one_line(text, columns, end_line == line, into);
        }
    } else {
        let count = ((end_line - line) as usize + 1).min(MAX_LINES);
        let original: Vec<&str> = (0..count as u32)
            .map(|idx| text_at(lines, line.saturating_add(idx)).trim_end())
            .collect();
        if original.iter().any(|line| !line.trim().is_empty()) {
            all_lines(&original, columns, into);
        }
    }
}

/// The text of a line; none of one that nobody wrote by hand.
fn text_at(lines: &[String], line: u32) -> &str {
    (line as usize)
        .checked_sub(1)
        .and_then(|idx| lines.get(idx))
        .filter(|text| text.len() <= MAX_LINE)
        .map_or("", String::as_str)
}

fn plain(text: &str, into: &mut String) {
    let text = text.trim();
    if !text.is_empty() {
        into.push_str("    ");
        into.push_str(text);
        into.push('\n');
    }
}

/// The character at a byte of a text.
fn character_at(text: &str, byte: u32) -> usize {
    let prefix = text.as_bytes().get(..byte as usize);
    String::from_utf8_lossy(prefix.unwrap_or(text.as_bytes()))
        .chars()
        .count()
}

/// Columns that some first characters take on a terminal.
fn width(text: &[char], count: usize) -> usize {
    text.iter()
        .take(count)
        .map(|&c| if is_wide(c) { 2 } else { 1 })
        .sum()
}

/// Whether a character takes two columns (East Asian width W or F), as far as
/// the blocks tell.
fn is_wide(c: char) -> bool {
    matches!(u32::from(c),
        0x1100..=0x115f | 0x2e80..=0x303e | 0x3041..=0xa4cf | 0xac00..=0xd7a3
        | 0xf900..=0xfaff | 0xfe30..=0xfe6f | 0xff00..=0xff60 | 0xffe0..=0xffe6
        | 0x1f300..=0x1f64f | 0x1f900..=0x1f9ff | 0x20000..=0x3fffd)
}

/// The marks of 3.11 and 3.12.
fn one_line(text: &str, (column, end_column): (u32, u32), whole: bool, into: &mut String) {
    let line: Vec<char> = text.chars().collect();
    let stripped = text.trim().chars().count();
    // The end of the line is counted as one more.
    let taken_away = line.len() + 1 - stripped;
    let start = character_at(text, column);
    let end = if whole {
        character_at(text, end_column)
    } else {
        text.trim_end().chars().count()
    };
    let segment = line.get(start..end.min(line.len())).unwrap_or_default();
    let anchors = if whole {
        anchors_of_line(segment)
    } else {
        None
    };
    let marked =
        end.saturating_sub(start) < stripped || anchors.is_some_and(|(left, right)| right > left);
    if !marked {
        return;
    }
    let (dp_start, dp_end) = (width(&line, start) + 1, width(&line, end) + 1);
    into.push_str("    ");
    push(into, ' ', dp_start.saturating_sub(taken_away));
    let total = dp_end.saturating_sub(dp_start);
    match anchors {
        Some((left, right)) => {
            let (left, right) = (width(segment, left), width(segment, right));
            push(into, '~', left);
            push(into, '^', right.saturating_sub(left));
            push(into, '~', total.saturating_sub(right));
        }
        None => push(into, '^', total),
    }
    into.push('\n');
}

fn push(into: &mut String, mark: char, count: usize) {
    into.extend(std::iter::repeat_n(mark, count));
}

/// Where the marks of 3.11 and 3.12 change.
fn anchors_of_line(segment: &[char]) -> Option<(usize, usize)> {
    match shape(segment) {
        Shape::Operation {
            left_end,
            right_start,
            ..
        } => {
            let between = segment.get(left_end..right_start)?;
            let spaces = between.iter().take_while(|c| c.is_whitespace()).count();
            let mut left = left_end + spaces;
            let mut right = left + 1;
            if between.get(spaces + 1).is_some_and(|c| !c.is_whitespace()) {
                right += 1;
            }
            while segment
                .get(left)
                .is_some_and(|c| c.is_whitespace() || matches!(c, ')' | '#'))
            {
                left += 1;
                right += 1;
            }
            Some((left, right))
        }
        Shape::Subscript(bracket) => Some((bracket, segment.len())),
        Shape::Call { .. } | Shape::Other => None,
    }
}

/// Where the marks of 3.13 change: line and character, twice.
type Anchors = ((usize, usize), (usize, usize));

fn anchors_of_lines(segment: &[char]) -> Option<Anchors> {
    let place = |at: usize| {
        let before = segment.get(..at).unwrap_or_default();
        let line = before.iter().filter(|c| **c == '\n').count();
        let column = before.iter().rev().take_while(|c| **c != '\n').count();
        (line, column)
    };
    match shape(segment) {
        Shape::Operation {
            operator,
            right_start,
            ..
        } => {
            let second = segment.get(operator + 1);
            let double = operator + 1 < right_start
                && second.is_some_and(|c| !c.is_whitespace() && !matches!(c, '\\' | '#'));
            let (line, column) = place(operator);
            let len = if double { 2 } else { 1 };
            Some(((line, column), (line, column + len)))
        }
        Shape::Subscript(bracket) | Shape::Call { bracket, .. } => {
            Some((place(bracket), place(segment.len())))
        }
        Shape::Other => None,
    }
}

/// The lines and marks since 3.13.
fn all_lines(original: &[&str], (column, end_column): (u32, u32), into: &mut String) {
    let lines: Vec<Vec<char>> = dedent(original);
    let (Some(first), Some(last)) = (original.first(), original.last()) else {
        return;
    };
    let (Some(first_line), Some(last_line)) = (lines.first(), lines.last()) else {
        return;
    };
    let taken_away = first.chars().count().saturating_sub(first_line.len());
    let start = character_at(first, column).saturating_sub(taken_away);
    let end = character_at(last, end_column).saturating_sub(taken_away);
    let (dp_start, dp_end) = (width(first_line, start), width(last_line, end));
    let joined: Vec<char> = lines.join(&'\n');
    let after = last_line.len().saturating_sub(end);
    let segment = joined
        .get(start..joined.len().saturating_sub(after))
        .unwrap_or_default();
    let anchors = anchors_of_lines(segment);
    let marked = is_marked(&lines, segment, (start, end), anchors.is_some());
    let mut significant = vec![0, lines.len() - 1];
    let anchors = anchors.map(|(left, right)| {
        let place = |(line, column): (usize, usize)| {
            let column = if line == 0 { column + start } else { column };
            let text = lines.get(line).map_or(&[][..], Vec::as_slice);
            (
                line,
                width(text, column) + column.saturating_sub(text.len()),
            )
        };
        for (line, _) in [left, right] {
            significant.extend(line.saturating_sub(1)..line + 2);
        }
        (place(left), place(right))
    });
    significant.retain(|line| *line < lines.len());
    significant.sort_unstable();
    significant.dedup();
    let marks = |idx: usize, line: &[char]| -> String {
        let spaces = line.iter().take_while(|c| c.is_whitespace()).count();
        let count = if idx + 1 == lines.len() {
            dp_end
        } else {
            width(line, line.len())
        };
        let mark = |column| {
            if column < spaces || idx == 0 && column < dp_start {
                return ' ';
            }
            match anchors {
                Some((left, right)) if (idx, column) >= left && (idx, column) < right => '^',
                Some(_) => '~',
                None => '^',
            }
        };
        (0..count).map(mark).collect()
    };
    let mut result: Vec<String> = Vec::new();
    let mut next = 0;
    for idx in significant {
        // A single line between two is shown, several are counted.
        let from = if idx - next > 1 {
            result.push(format!("...<{} lines>...", idx - next));
            idx
        } else {
            next
        };
        for (idx, line) in lines.iter().enumerate().take(idx + 1).skip(from) {
            result.push(line.iter().collect());
            if marked {
                result.push(marks(idx, line));
            }
        }
        next = idx + 1;
    }
    let result: Vec<&str> = result.iter().map(String::as_str).collect();
    for line in dedent(&result) {
        into.push_str("    ");
        into.extend(line);
        into.push('\n');
    }
}

/// Whether 3.13 marks anything: not if that would be the whole line, nor the
/// call that the line returns or assigns.
fn is_marked(
    lines: &[Vec<char>],
    segment: &[char],
    (start, end): (usize, usize),
    anchored: bool,
) -> bool {
    let (Some(first), Some(last)) = (lines.first(), lines.last()) else {
        return false;
    };
    let before: String = first.iter().take(start).collect();
    let before = before.trim();
    let after: String = last.iter().skip(end).collect();
    if let Shape::Call { by_name, .. } = shape(segment) {
        let assigned = before
            .strip_suffix('=')
            .map(str::trim_end)
            .is_some_and(is_name);
        let ends = after.trim_start();
        let whole = ends.is_empty() || ends.starts_with('#') || ends.starts_with(';');
        if whole && (before == "return" && by_name || assigned) {
            return false;
        }
    }
    anchored || !before.is_empty() || !after.trim_end().is_empty()
}

fn is_name(text: &str) -> bool {
    text.starts_with(|c: char| c.is_alphabetic() || c == '_')
        && text.chars().all(|c| c.is_alphanumeric() || c == '_')
}

/// `textwrap.dedent`.
fn dedent(lines: &[&str]) -> Vec<Vec<char>> {
    let indent = |line: &str| -> String {
        line.chars()
            .take_while(|c| matches!(c, ' ' | '\t'))
            .collect()
    };
    let mut margin: Option<String> = None;
    for line in lines.iter().filter(|line| !line.trim().is_empty()) {
        let this = indent(line);
        margin = Some(match margin {
            None => this,
            Some(margin) => margin
                .chars()
                .zip(this.chars())
                .take_while(|(a, b)| a == b)
                .map(|(a, _)| a)
                .collect(),
        });
    }
    let margin = margin.unwrap_or_default();
    lines
        .iter()
        .map(|line| match line.trim().is_empty() {
            true => Vec::new(),
            false => line
                .strip_prefix(margin.as_str())
                .unwrap_or(line)
                .chars()
                .collect(),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The excerpt for an expression that is marked in a source with `«»`.
    fn check(minor: u8, source: &str, expected: &str) {
        let mut position = None;
        let mut lines = Vec::new();
        let mut start = (0, 0);
        for (line, text) in (1..).zip(source.lines()) {
            let mut plain = text.to_owned();
            if let Some(at) = plain.find('«') {
                plain = plain.replace('«', "");
                start = (line, at as u32);
            }
            if let Some(at) = plain.find('»') {
                plain = plain.replace('»', "");
                position = Some(Position {
                    line: start.0,
                    end_line: Some(line),
                    column: Some(start.1),
                    end_column: Some(at as u32),
                });
            }
            lines.push(plain);
        }
        let mut found = String::new();
        excerpt(&lines, start.0, position.as_ref(), minor, &mut found);
        assert_eq!(found, expected, "3.{minor} {source}");
    }

    // What is expected was printed by Python 3.12.1 and 3.13.0.

    #[test]
    fn marks_a_line_since_3_11() {
        check(10, "    x = «f(1)»", "    x = f(1)\n");
        check(12, "    x = «f(1)»", "    x = f(1)\n        ^^^^\n");
        check(12, "    «raise E()»", "    raise E()\n");
        check(
            12,
            "    return «a + b» * c",
            "    return a + b * c\n           ~~^~~\n",
        );
        check(12, "  «a['b']['c']»", "    a['b']['c']\n    ~~~~~~^^^^^\n");
        check(12, "    x = «f(\n        1)»", "    x = f(\n        ^^\n");
        check(12, "    «(a)+(b)»", "    (a)+(b)\n    ~~~^^~~\n");
    }

    #[test]
    fn marks_all_lines_and_calls_since_3_13() {
        check(13, "    x = «f(1)»", "    x = f(1)\n");
        check(13, "    «f(1)» + 1", "    f(1) + 1\n    ~^^^\n");
        check(13, "    «raise E()»", "    raise E()\n");
        check(
            13,
            "    return «a.b(1)»",
            "    return a.b(1)\n           ~~~^^^\n",
        );
        check(
            13,
            "    x = «f(\n        1,\n    )» + 2",
            "    x = f(\n        ~^\n        1,\n        ^^\n    ) + 2\n    ^\n",
        );
    }

    #[test]
    fn hostile_positions_do_no_harm() {
        let lines: Vec<String> = ["", "ä = (", "\t)"].map(str::to_owned).to_vec();
        for minor in [8, 11, 12, 13, 14] {
            for line in 0..5 {
                for (column, end_column) in [(0, 0), (1, 2), (9, 3), (u32::MAX, u32::MAX)] {
                    for end_line in [0, 2, 4, u32::MAX] {
                        let position = Position {
                            line,
                            end_line: Some(end_line),
                            column: Some(column),
                            end_column: Some(end_column),
                        };
                        let mut into = String::new();
                        excerpt(&lines, line, Some(&position), minor, &mut into);
                        assert!(into.len() < 100_000);
                    }
                }
            }
        }
    }
}
