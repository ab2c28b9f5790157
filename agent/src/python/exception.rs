//! Exceptions as Python prints them: the values that were copied when the
//! request was answered become type, message and `traceback.format_exception`.
//!
//! The exception itself may be gone by now; code objects, types and source
//! files are read here.

use abi::record::{Traceback, exception_detail, part, value};
use pyframes::code::Code;
use pyframes::line::{self, Position};
use pyframes::{Memory, attribute};
use zerocopy::FromBytes as _;

use super::message;
use super::names::Names;
use super::objects::Objects;
use super::source::Sources;
use super::values::Item;
use crate::insight::Exception;

/// Longest name of a type, bytes.
const MAX_NAME: usize = 512;
/// Frames that are shown of a place that repeats itself
/// (`_RECURSIVE_CUTOFF` in traceback.py, 3.8 to 3.14).
const SHOWN: usize = 3;

/// An exception with its arguments.
struct Raised<'a> {
    item: Item<'a>,
    arguments: Vec<Item<'a>>,
}

/// One line of a traceback with what it shows.
struct Entry {
    path: String,
    name: String,
    line: u32,
    position: Option<Position>,
}

/// What is needed to tell of exceptions of one process.
pub(super) struct Teller<'a, M> {
    pub(super) objects: Objects<'a, M>,
    pub(super) names: &'a mut Names,
    pub(super) sources: &'a mut Sources,
    /// `PY_MINOR_VERSION`.
    pub(super) minor: u8,
}

impl<M: Memory> Teller<'_, M> {
    /// The exception that a recipe led to: `items` is its value and those of
    /// its arguments and of the exceptions before it.
    pub(super) fn exception(&mut self, items: &[Item<'_>]) -> Option<Exception> {
        let mut chain: Vec<Raised<'_>> = Vec::new();
        for item in items {
            match (item.value.part, chain.last_mut()) {
                (part::ARGUMENT, Some(raised)) => raised.arguments.push(*item),
                _ if item.value.kind == value::EXCEPTION => chain.push(Raised {
                    item: *item,
                    arguments: Vec::new(),
                }),
                _ => break,
            }
        }
        let first = chain.first()?;
        let (type_name, message) = self.describe(first)?;
        let mut stacktrace = String::new();
        for (idx, raised) in chain.iter().enumerate().rev() {
            self.print(raised, &mut stacktrace)?;
            // Told of the earlier exception: what it is to the one after it.
            if idx > 0 {
                stacktrace.push_str(match raised.item.value.part {
                    part::CAUSE => CAUSE,
                    _ => CONTEXT,
                });
            }
        }
        Some(Exception {
            type_name,
            message,
            stacktrace,
        })
    }

    /// Name of the type, without `builtins`, and message.
    fn describe(&self, raised: &Raised<'_>) -> Option<(String, Option<String>)> {
        let Objects { memory, layout } = self.objects;
        let class = raised.item.value.type_address;
        let mut buffer = [0; MAX_NAME];
        let name = attribute::qualified_type_name(memory, layout, class, &mut buffer).ok()?;
        let message = message::of(
            self.objects,
            class,
            &raised.arguments,
            raised.item.value.detail & exception_detail::ARGUMENTS_CUT != 0,
        );
        Some((name.text.to_owned(), message))
    }

    fn print(&mut self, raised: &Raised<'_>, into: &mut String) -> Option<()> {
        let (traceback, _) = raised.item.bytes.as_chunks::<{ size_of::<Traceback>() }>();
        let entries: Vec<_> = traceback
            .iter()
            .filter_map(|bytes| Traceback::read_from_bytes(bytes).ok())
            .filter_map(|traceback| self.entry(&traceback))
            .collect();
        if !entries.is_empty() {
            into.push_str("Traceback (most recent call last):\n");
            self.entries(&entries, into);
            if raised.item.value.detail & exception_detail::TRACEBACK_CUT != 0 {
                into.push_str(CUT);
            }
        }
        let (type_name, message) = self.describe(raised)?;
        // Only there `__main__` goes without saying.
        into.push_str(type_name.strip_prefix("__main__.").unwrap_or(&type_name));
        if let Some(message) = message.filter(|message| !message.is_empty()) {
            into.push_str(": ");
            into.push_str(&message);
        }
        into.push('\n');
        Some(())
    }

    fn entry(&mut self, traceback: &Traceback) -> Option<Entry> {
        let Objects { memory, layout } = self.objects;
        let (code, known) = self.names.code(self.objects, traceback.code)?;
        let lasti = u32::try_from(traceback.lasti).ok();
        let position = lasti.and_then(|lasti| self.position(&code, lasti));
        let line = match u32::try_from(traceback.lineno) {
            Ok(line) if line > 0 => line,
            _ => line::line(memory, layout, &code, lasti).ok().flatten()?,
        };
        Some(Entry {
            path: known.location.path.clone(),
            name: known.name.clone(),
            line,
            position,
        })
    }

    fn position(&self, code: &Code, lasti: u32) -> Option<Position> {
        let Objects { memory, layout } = self.objects;
        line::position(memory, layout, code, lasti).ok().flatten()
    }

    /// The entries, with those that repeat themselves folded.
    fn entries(&mut self, entries: &[Entry], into: &mut String) {
        let same = |a: &Entry, b: &Entry| (&a.path, a.line, &a.name) == (&b.path, b.line, &b.name);
        for group in entries.chunk_by(same) {
            for entry in group.iter().take(SHOWN) {
                self.frame(entry, into);
            }
            let more = group.len().saturating_sub(SHOWN);
            if more > 0 {
                let times = if more == 1 { "time" } else { "times" };
                into.push_str(&format!("  [Previous line repeated {more} more {times}]\n"));
            }
        }
    }

    fn frame(&mut self, entry: &Entry, into: &mut String) {
        let Entry {
            path,
            name,
            line,
            position,
        } = entry;
        into.push_str(&format!("  File \"{path}\", line {line}, in {name}\n"));
        if into.len() > MAX_EXCERPTS {
            return;
        }
        let file = self.sources.file(path);
        let text = file.as_deref().map_or(&[][..], Vec::as_slice);
        super::carets::excerpt(text, *line, position.as_ref(), self.minor, into);
    }
}

/// A stack trace that is longer has no lines of source from there on, bytes.
const MAX_EXCERPTS: usize = 256 * 1024;
/// Of a traceback with more entries than were copied, the outermost are known.
const CUT: &str = "  ... and further calls, which were not read\n";
/// Between an exception and the one that names it as its cause.
const CAUSE: &str = "\nThe above exception was the direct cause of the following exception:\n\n";
/// Between an exception and one that was raised while it was handled.
const CONTEXT: &str = "\nDuring handling of the above exception, another exception occurred:\n\n";
