//! What `str()` makes of an exception, from its arguments and its type.

use abi::record::value;
use pyframes::{Memory, text};

use super::objects::Objects;
use super::values::{Item, Text};

/// `Py_TPFLAGS_HEAPTYPE`: the type was made by a `class` statement, as a rule.
const HEAPTYPE: u64 = 1 << 9;

/// The message of an exception of a type with these arguments; `None` if it
/// is known to the process alone.
pub(super) fn of<M: Memory>(
    objects: Objects<'_, M>,
    class: u64,
    arguments: &[Item<'_>],
    incomplete: bool,
    members: Option<u64>,
) -> Option<String> {
    let printer = printer(objects, class)?;
    if incomplete {
        return None;
    }
    match (printer, arguments) {
        (Printer::Group, [text, _]) => {
            let count = members?;
            let plural = if count == 1 { "" } else { "s" };
            Some(format!("{} ({count} sub-exception{plural})", plain(text)?))
        }
        (Printer::Group, _) => None,
        (_, []) => Some(String::new()),
        (Printer::Key, [key]) => repr(key),
        (_, [only]) => plain(only),
        (Printer::System, [number, text]) => {
            Some(format!("[Errno {}] {}", plain(number)?, plain(text)?))
        }
        (_, several) => {
            let items: Option<Vec<_>> = several.iter().map(repr).collect();
            Some(format!("({})", items?.join(", ")))
        }
    }
}

/// How exceptions of a type make a `str` of themselves.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Printer {
    /// As `BaseException` does.
    Arguments,
    /// As `KeyError` does: a single argument as `repr()` has it.
    Key,
    /// As `OSError` does, without a file name.
    System,
    /// As `BaseExceptionGroup` does.
    Group,
}

/// Whether a type is one of groups of exceptions.
pub(super) fn is_group<M: Memory>(objects: Objects<'_, M>, class: u64) -> bool {
    let mut buffer = [0; 64];
    let bases = objects.mro(class).unwrap_or_default();
    bases.into_iter().any(|base| {
        builtin_name(objects, base, &mut buffer).is_some_and(|name| name == "BaseExceptionGroup")
    })
}

/// `tp_name` of a type that no `class` statement made.
fn builtin_name<'b, M: Memory>(
    objects: Objects<'_, M>,
    class: u64,
    buffer: &'b mut [u8; 64],
) -> Option<&'b str> {
    let layout = objects.layout;
    let flags = class.wrapping_add(u64::from(layout.type_object.tp_flags));
    if objects.memory.u64(flags).ok()? & HEAPTYPE != 0 {
        return None;
    }
    let name = objects.field(class, layout.type_object.tp_name).ok()?;
    let name = text::read_c_string(objects.memory, name, buffer).ok()?;
    Some(name.text)
}

/// How a type prints, by the first of its bases that says so; `None` if that
/// is code, or keeps elsewhere what it prints.
fn printer<M: Memory>(objects: Objects<'_, M>, class: u64) -> Option<Printer> {
    let layout = objects.layout;
    for base in objects.mro(class).ok()? {
        let flags = objects
            .memory
            .u64(base.wrapping_add(u64::from(layout.type_object.tp_flags)))
            .ok()?;
        if flags & HEAPTYPE != 0 {
            if objects.own_attribute(base, "__str__").is_some() {
                return None;
            }
            continue;
        }
        let mut buffer = [0; 64];
        let name = objects
            .field(base, layout.type_object.tp_name)
            .and_then(|name| text::read_c_string(objects.memory, name, &mut buffer))
            .ok()?;
        match name.text {
            "KeyError" => return Some(Printer::Key),
            "BaseException" => return Some(Printer::Arguments),
            "OSError" => return Some(Printer::System),
            // They print fields of their own, a file's name for one.
            "BlockingIOError"
            | "FileExistsError"
            | "FileNotFoundError"
            | "IsADirectoryError"
            | "NotADirectoryError"
            | "PermissionError"
            | "UnicodeDecodeError"
            | "UnicodeEncodeError"
            | "UnicodeTranslateError"
            | "SyntaxError" => return None,
            "BaseExceptionGroup" => return Some(Printer::Group),
            _ => {}
        }
    }
    None
}

/// `str()` of a value that was copied whole.
fn plain(item: &Item<'_>) -> Option<String> {
    match item.value.kind {
        value::TEXT => item.text().filter(Text::is_whole).map(Text::into_string),
        _ => repr(item),
    }
}

/// `repr()` of a value that was copied whole.
fn repr(item: &Item<'_>) -> Option<String> {
    match item.value.kind {
        value::NONE => Some("None".to_owned()),
        value::INT => item.int().map(|number| number.to_string()),
        value::TEXT => item
            .text()
            .filter(Text::is_whole)
            .map(|text| quoted(text.as_str())),
        _ => None,
    }
}

/// A `str` as `repr()` has it: in single quotes unless it has some and no
/// double ones.
fn quoted(text: &str) -> String {
    let quote = if text.contains('\'') && !text.contains('"') {
        '"'
    } else {
        '\''
    };
    let mut quoted = String::with_capacity(text.len() + 2);
    quoted.push(quote);
    for character in text.chars() {
        match character {
            '\\' => quoted.push_str("\\\\"),
            '\n' => quoted.push_str("\\n"),
            '\r' => quoted.push_str("\\r"),
            '\t' => quoted.push_str("\\t"),
            character if character == quote => {
                quoted.push('\\');
                quoted.push(quote);
            }
            character if character.is_control() => {
                let point = u32::from(character);
                quoted.push_str(&format!("\\x{point:02x}"));
            }
            character => quoted.push(character),
        }
    }
    quoted.push(quote);
    quoted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotes_as_python_does() {
        assert_eq!(quoted("a"), "'a'");
        assert_eq!(quoted("it's"), "\"it's\"");
        assert_eq!(quoted("'\""), "'\\'\"'");
        assert_eq!(quoted("a\\b\n\t\u{1}"), "'a\\\\b\\n\\t\\x01'");
        assert_eq!(quoted("größe"), "'größe'");
    }
}
