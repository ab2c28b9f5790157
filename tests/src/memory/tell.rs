//! Says everything of the objects that `tests/apps/objects.py` made, in the
//! same words as the program itself.

use std::fmt::Write as _;

use pyframes::attribute::{self, qualified_type_name};
use pyframes::code::Code;
use pyframes::exception::{self, Link};
use pyframes::frame::{self, Walker};
use pyframes::generator::{Generator, Kind, State};
use pyframes::repr::{Limits, write_repr};
use pyframes::window::Windows;
use pyframes::{Dict, Layout, Memory, Sequence, line, object, text};

use super::Read;

/// The lines that tell of the situation at `root`; what cannot be read is told
/// by the error.
pub fn tell<M: Memory>(memory: &M, layout: &Layout, root: u64) -> Vec<String> {
    let mut teller = Situation::new(memory, layout);
    let parts: [(&str, &str, Part<M>); 6] = [
        ("values", "values", Situation::values),
        ("attributes", "attributes", Situation::attributes),
        ("types", "types", Situation::types),
        ("exceptions", "exceptions", Situation::exceptions),
        ("generators", "generators", Situation::generators),
        ("frames", "frame", Situation::frames),
    ];
    for (heading, key, part) in parts {
        teller.lines.push(heading.to_owned());
        let told = Dict::open(memory, layout, root)
            .and_then(|situation| situation.get(memory, layout, key))
            .and_then(|value| part(&mut teller, value.unwrap_or(0)));
        if let Err(error) = told {
            teller.lines.push(format!("  {error}"));
        }
    }
    teller.lines
}

type Part<'m, M> = fn(&mut Situation<'m, M>, u64) -> Read<()>;

/// Writes lines about objects.
pub struct Situation<'m, M> {
    memory: &'m M,
    layout: &'m Layout,
    /// What was written.
    pub lines: Vec<String>,
}

impl<'m, M: Memory> Situation<'m, M> {
    /// Nothing is written yet.
    pub fn new(memory: &'m M, layout: &'m Layout) -> Self {
        Self {
            memory,
            layout,
            lines: Vec::new(),
        }
    }

    /// A dictionary of values.
    pub fn values(&mut self, values: u64) -> Read<()> {
        for entry in Dict::open(self.memory, self.layout, values)?.entries(self.memory) {
            let entry = entry?;
            let name = self.text(entry.key)?;
            let value = self.describe(entry.value);
            self.lines.push(format!("  {name} = {value}"));
        }
        Ok(())
    }

    /// A list of pairs: an object, and the names of attributes.
    pub fn attributes(&mut self, list: u64) -> Read<()> {
        for pair in Sequence::open(self.memory, self.layout, list)?.items(self.memory) {
            let pair = Sequence::open(self.memory, self.layout, pair?)?;
            let instance = pair.get(self.memory, 0)?;
            let told = self.describe(instance);
            self.lines.push(format!("  {told}"));
            let names = pair.get(self.memory, 1)?;
            for name in Sequence::open(self.memory, self.layout, names)?.items(self.memory) {
                let name = self.text(name?)?;
                let value = match attribute::attribute(self.memory, self.layout, instance, &name)? {
                    Some(value) => self.describe(value),
                    None => "None".to_owned(),
                };
                self.lines.push(format!("    {name} = {value}"));
            }
        }
        Ok(())
    }

    /// A list of types.
    pub fn types(&mut self, list: u64) -> Read<()> {
        for class in Sequence::open(self.memory, self.layout, list)?.items(self.memory) {
            let mut buffer = [0; 256];
            let name = qualified_type_name(self.memory, self.layout, class?, &mut buffer)?;
            self.lines.push(format!("  {}", name.text));
        }
        Ok(())
    }

    /// A dictionary of exceptions.
    pub fn exceptions(&mut self, exceptions: u64) -> Read<()> {
        for entry in Dict::open(self.memory, self.layout, exceptions)?.entries(self.memory) {
            let entry = entry?;
            let name = self.text(entry.key)?;
            self.lines.push(format!("  {name}"));
            self.exception(entry.value)?;
        }
        Ok(())
    }

    /// An exception and those that it came from.
    pub fn exception(&mut self, address: u64) -> Read<()> {
        for linked in exception::chain(self.memory, self.layout, address) {
            let (link, exception) = linked?;
            let link = match link {
                Link::First => "first",
                Link::Cause => "cause",
                Link::Context => "context",
            };
            let told = self.describe(exception.address);
            self.lines.push(format!("    {link}: {told}"));
            for entry in exception.traceback(self.memory, self.layout) {
                let entry = entry?;
                let code = Code::read(self.memory, self.layout, entry.code)?;
                let line = entry.line(self.memory, self.layout, &code)?;
                let name = self.text(code.name)?;
                self.lines.push(format!("      {name} {}", number(line)));
            }
            for note in exception
                .notes(self.memory, self.layout)?
                .items(self.memory)
            {
                let note = self.describe(note?);
                self.lines.push(format!("      note: {note}"));
            }
        }
        Ok(())
    }

    /// A dictionary of generators and coroutines.
    pub fn generators(&mut self, generators: u64) -> Read<()> {
        for entry in Dict::open(self.memory, self.layout, generators)?.entries(self.memory) {
            let entry = entry?;
            let name = self.text(entry.key)?;
            let told = self.generator(entry.value)?;
            self.lines.push(format!("  {name}: {told}"));
        }
        Ok(())
    }

    /// A generator or coroutine.
    pub fn generator(&self, address: u64) -> Read<String> {
        let generator = Generator::read(self.memory, self.layout, address)?;
        let kind = match generator.kind {
            Kind::Generator => "generator",
            Kind::Coroutine => "coroutine",
            Kind::AsyncGenerator => "async_generator",
        };
        let state = match generator.state {
            State::Created => "created",
            State::Suspended => "suspended",
            State::Running => "running",
            State::Finished => "finished",
        };
        let line = match generator.frame {
            Some(frame) => {
                let mut walker = Walker::new();
                walker.start_at(frame);
                match walker.step(self.memory, self.layout, &mut Windows::new())? {
                    Some(frame) => number(self.place(frame)?.1),
                    None => "None".to_owned(),
                }
            }
            None => "None".to_owned(),
        };
        let awaits = match generator.awaits(self.memory, self.layout)? {
            Some(awaits) => self.describe(awaits),
            None => "None".to_owned(),
        };
        let name = self.text(generator.qualname)?;
        Ok(format!("{kind} {name} {state} {line} awaits {awaits}"))
    }

    /// A frame object and the frames outside of it, with their variables.
    pub fn frames(&mut self, object: u64) -> Read<()> {
        let mut walker = Walker::new();
        walker.start_at(frame::of_object(self.memory, self.layout, object)?);
        for _ in 0..MAX_FRAMES {
            let Some(frame) = walker.step(self.memory, self.layout, &mut Windows::new())? else {
                break;
            };
            let (code, line) = self.place(frame)?;
            let name = self.text(code.name)?;
            self.lines.push(format!("  {name} {}", number(line)));
            for variable in code.variables(self.memory, self.layout)? {
                let variable = variable?;
                let value = variable.value(self.memory, self.layout, frame.address)?;
                if let Some(value) = value {
                    let name = self.text(variable.name)?;
                    let value = self.describe(value);
                    self.lines.push(format!("    {name} = {value}"));
                }
            }
        }
        Ok(())
    }

    /// The code that a frame runs, and the line that it is at.
    fn place(&self, frame: frame::Frame) -> Read<(Code, Option<u32>)> {
        let code = Code::read(self.memory, self.layout, frame.code)?;
        let lasti = line::lasti(self.memory, self.layout, frame.code, frame.instruction)?;
        let line = line::line(self.memory, self.layout, &code, lasti)?;
        Ok((code, line))
    }

    /// What `repr()` makes of an object.
    pub fn describe(&self, address: u64) -> String {
        let mut told = String::new();
        write_repr(self.memory, self.layout, address, &LIMITS, &mut told).expect("a string");
        told
    }

    /// The text of a `str`.
    pub fn text(&self, address: u64) -> Read<String> {
        let mut buffer = [0; 256];
        let text = text::read_str(self.memory, self.layout, address, &mut buffer)?;
        Ok(text.text.to_owned())
    }

    /// The name of an object's class, its own attributes, and an attribute of
    /// its class.
    pub fn instance(&mut self, address: u64, name: &str) -> Read<()> {
        let class = object::type_of(self.memory, self.layout, address)?;
        let mut buffer = [0; 256];
        let type_name = qualified_type_name(self.memory, self.layout, class, &mut buffer)?;
        let mut told = type_name.text.to_owned();
        if let Some(found) = attribute::attribute(self.memory, self.layout, address, name)? {
            write!(told, " {found:x}").expect("a string");
        }
        if let Some(own) = attribute::instance_dict(self.memory, self.layout, address)? {
            write!(told, " {}", own.entries(self.memory).count()).expect("a string");
        }
        self.lines.push(told);
        Ok(())
    }
}

fn number(line: Option<u32>) -> String {
    line.map_or_else(|| "None".to_owned(), |line| line.to_string())
}

/// Enough to show everything that the program has.
pub const LIMITS: Limits = Limits {
    depth: 8,
    items: 100,
    text: 500,
    bytes: 5000,
    reads: 5000,
};

/// More frames than the program has.
const MAX_FRAMES: usize = 100;
