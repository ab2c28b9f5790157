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
use super::values::{Item, Text};
use crate::insight::Exception;

/// Longest name of a type, bytes.
const MAX_NAME: usize = 512;
/// Frames that are shown of a place that repeats itself
/// (`_RECURSIVE_CUTOFF` in traceback.py, 3.8 to 3.14).
const SHOWN: usize = 3;

/// Members of a group that Python shows (`max_group_width` in traceback.py).
const SHOWN_MEMBERS: u64 = 15;

/// An exception with its arguments.
struct Raised<'a> {
    item: Item<'a>,
    arguments: Vec<Item<'a>>,
    notes: Vec<Item<'a>>,
    /// How many members it has, if its type has a place for them.
    members: Option<u64>,
}

/// An exception, then those before it in its chain.
type Chain<'a> = Vec<Raised<'a>>;

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
        let mut chains: Vec<Chain<'_>> = Vec::new();
        for (idx, item) in items.iter().enumerate() {
            let is_exception = item.value.kind == value::EXCEPTION;
            let last = chains.last_mut();
            match (item.value.part, last.and_then(|chain| chain.last_mut())) {
                (part::ARGUMENT, Some(raised)) => raised.arguments.push(*item),
                (part::NOTE, Some(raised)) => raised.notes.push(*item),
                (part::MEMBERS, Some(raised)) => {
                    raised.members = item.int().and_then(|count| count.try_into().ok());
                }
                (part::ITSELF, None) | (part::MEMBER, Some(_)) if is_exception => {
                    chains.push(vec![Raised::new(*item)]);
                }
                (part::CAUSE | part::CONTEXT, Some(_)) if is_exception => {
                    chains.last_mut()?.push(Raised::new(*item));
                }
                // Of the next recipe, or a member that could not be read.
                _ if item.value.part == part::ITSELF || idx == 0 => break,
                _ => {}
            }
        }
        let (chain, members) = chains.split_first()?;
        let (type_name, message) = self.describe(chain.first()?)?;
        let mut page = Page::default();
        self.chain(chain, members, &mut page)?;
        Some(Exception {
            type_name,
            message,
            stacktrace: page.text,
        })
    }

    /// Prints an exception with those before it, and the members that are
    /// known of it.
    fn chain(
        &mut self,
        chain: &[Raised<'_>],
        members: &[Chain<'_>],
        page: &mut Page,
    ) -> Option<()> {
        for (idx, raised) in chain.iter().enumerate().rev() {
            match raised.members.filter(|_| self.is_group(raised)) {
                None => {
                    let text = self.printed(raised, "Traceback")?;
                    page.emit(&text.traceback, '|');
                    page.emit(&text.message, '|');
                }
                Some(count) => {
                    let members = if idx == 0 { members } else { &[] };
                    self.group(raised, count, members, page)?;
                }
            }
            // Told of the earlier exception: what it is to the one after it.
            if idx > 0 {
                let link = match raised.item.value.part {
                    part::CAUSE => CAUSE,
                    _ => CONTEXT,
                };
                page.emit(link, '|');
            }
        }
        Some(())
    }

    /// Prints a group as a tree.
    fn group(
        &mut self,
        raised: &Raised<'_>,
        count: u64,
        members: &[Chain<'_>],
        page: &mut Page,
    ) -> Option<()> {
        let text = self.printed(raised, "Exception Group Traceback")?;
        let outermost = page.depth == 0;
        page.depth += usize::from(outermost);
        let (head, frames) = text.traceback.split_once('\n').unwrap_or_default();
        if !head.is_empty() {
            page.emit(head, if outermost { '+' } else { '|' });
            page.emit(frames, '|');
        }
        page.emit(&text.message, '|');
        page.open = false;
        let shown = count.min(SHOWN_MEMBERS + 1);
        for number in 0..shown {
            let last = number + 1 == shown;
            page.open |= last;
            let title = match number {
                SHOWN_MEMBERS => "...".to_owned(),
                _ => (number + 1).to_string(),
            };
            page.rule(if number == 0 { "+-" } else { "  " }, &title);
            page.depth += 1;
            let known = usize::try_from(number)
                .ok()
                .and_then(|idx| members.get(idx));
            match known {
                _ if number == SHOWN_MEMBERS => {
                    let more = count - SHOWN_MEMBERS;
                    let plural = if more == 1 { "" } else { "s" };
                    page.emit(&format!("and {more} more exception{plural}"), '|');
                }
                Some(member) => self.chain(member, &[], page)?,
                None => page.emit(UNREAD_MEMBER, '|'),
            }
            if last && page.open {
                page.close();
            }
            page.depth -= 1;
        }
        page.depth -= usize::from(outermost);
        Some(())
    }

    /// Whether its type is one of groups.
    fn is_group(&self, raised: &Raised<'_>) -> bool {
        message::is_group(self.objects, raised.item.value.type_address)
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
            raised.members,
        );
        Some((name.text.to_owned(), message))
    }

    /// The frames below a title, and type and message with the notes.
    fn printed(&mut self, raised: &Raised<'_>, title: &str) -> Option<Printed> {
        let mut traceback = String::new();
        let (entries, _) = raised.item.bytes.as_chunks::<{ size_of::<Traceback>() }>();
        let entries: Vec<_> = entries
            .iter()
            .filter_map(|bytes| Traceback::read_from_bytes(bytes).ok())
            .filter_map(|traceback| self.entry(&traceback))
            .collect();
        if !entries.is_empty() {
            traceback.push_str(title);
            traceback.push_str(" (most recent call last):\n");
            self.entries(&entries, &mut traceback);
            if raised.item.value.detail & exception_detail::TRACEBACK_CUT != 0 {
                traceback.push_str(CUT);
            }
        }
        let (type_name, told) = self.describe(raised)?;
        // Only there `__main__` goes without saying.
        let mut message = type_name
            .strip_prefix("__main__.")
            .unwrap_or(&type_name)
            .to_owned();
        if let Some(told) = told.filter(|told| !told.is_empty()) {
            message.push_str(": ");
            message.push_str(&told);
        }
        message.push('\n');
        for note in &raised.notes {
            match note.text().filter(Text::is_whole) {
                Some(note) => message.push_str(note.as_str()),
                None => message.push_str(UNREAD_NOTE),
            }
            message.push('\n');
        }
        Some(Printed { traceback, message })
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

impl<'a> Raised<'a> {
    fn new(item: Item<'a>) -> Self {
        Self {
            item,
            arguments: Vec::new(),
            notes: Vec::new(),
            members: None,
        }
    }
}

/// One exception as text.
struct Printed {
    traceback: String,
    message: String,
}

/// What was printed, and how deep inside of groups.
#[derive(Default)]
struct Page {
    text: String,
    depth: usize,
    /// Whether the frame around a group's last member is still to be closed.
    open: bool,
}

impl Page {
    /// Prints lines, inside of a group behind a margin.
    fn emit(&mut self, text: &str, margin: char) {
        for line in text.lines() {
            if self.depth > 0 {
                self.indent();
                self.text.push(margin);
                self.text.push(' ');
            }
            self.text.push_str(line);
            self.text.push('\n');
        }
    }

    /// The line above a member.
    fn rule(&mut self, start: &str, title: &str) {
        self.indent();
        self.text.push_str(start);
        self.text.push_str("+---------------- ");
        self.text.push_str(title);
        self.text.push_str(" ----------------\n");
    }

    /// The line below the last member.
    fn close(&mut self) {
        self.open = false;
        self.indent();
        self.text
            .push_str("+------------------------------------\n");
    }

    fn indent(&mut self) {
        self.text.extend(std::iter::repeat_n("  ", self.depth));
    }
}

/// A stack trace that is longer has no lines of source from there on, bytes.
const MAX_EXCERPTS: usize = 256 * 1024;
/// Of a traceback with more entries than were copied, the outermost are known.
const CUT: &str = "  ... and further calls, which were not read\n";
/// In the place of a member that was not copied, and of a note.
const UNREAD_MEMBER: &str = "... an exception that was not read";
const UNREAD_NOTE: &str = "... a note that was not read";
/// Between an exception and the one that names it as its cause.
const CAUSE: &str = "\nThe above exception was the direct cause of the following exception:\n\n";
/// Between an exception and one that was raised while it was handled.
const CONTEXT: &str = "\nDuring handling of the above exception, another exception occurred:\n\n";
