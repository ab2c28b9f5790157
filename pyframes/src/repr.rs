//! Writes what an object looks like, as Python's `repr()` would.
//!
//! Nothing runs in the process: a class's own `__repr__` is not asked, and
//! instances of classes are told by the name of their class. Instances of
//! subclasses of `str`, `int`, `list` and the like look like those. Addresses
//! are left out, so that the text is the same in every run.
//!
//! Bounded in every direction, see [`Limits`]; what was cut is marked by
//! `...`, and what could not be read is `<unreadable>`. Which characters are
//! escaped follows the Unicode version of this crate's compiler: a character
//! that is younger than the interpreter is written, where Python escapes it.

mod bounds;
mod number;
mod quoted;

use core::fmt::{self, Write};

use self::bounds::{Metered, Sink};
use crate::attribute::{self, qualified_type_name};
use crate::dict::Dict;
use crate::layout::Layout;
use crate::object::{self, flag};
use crate::sequence::{Bytes, Sequence};
use crate::text;
use crate::{Code, Error, Memory, field};

/// How much is written of an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// How deep containers are followed: 1 shows the items of the outermost
    /// one. At most [`Limits::MAX_DEPTH`].
    pub depth: usize,
    /// How many items of a container are shown.
    pub items: u64,
    /// How many characters of a `str` and bytes of a `bytes` are shown.
    pub text: u64,
    /// How many bytes of UTF-8 are written in all.
    pub bytes: usize,
    /// How often memory is read in all.
    pub reads: u32,
}

impl Limits {
    /// The deepest that is followed, whatever the limits say.
    pub const MAX_DEPTH: usize = 16;
}

impl Default for Limits {
    /// What fits on a screen.
    fn default() -> Self {
        Self {
            depth: 4,
            items: 20,
            text: 200,
            bytes: 1000,
            reads: 10_000,
        }
    }
}

/// Writes the object at `address`.
///
/// Fails only if `out` does; whatever the memory holds, something is written.
pub fn write_repr<M: Memory, W: Write>(
    memory: &M,
    layout: &Layout,
    address: u64,
    limits: &Limits,
    out: &mut W,
) -> fmt::Result {
    let metered = Metered::new(memory, limits.reads);
    let mut sink = Sink::new(out, limits.bytes);
    let mut writer = Writer {
        memory: &metered,
        layout,
        limits,
        out: &mut sink,
        path: [0; Limits::MAX_DEPTH],
        depth: 0,
    };
    match writer.object(address) {
        // The sink refuses what goes beyond the limit; that is no failure.
        Err(fmt::Error) if sink.is_full() => Ok(()),
        written => written,
    }
}

/// Writes one object and what it contains.
struct Writer<'a, 'w, M, W> {
    memory: &'a Metered<'a, M>,
    layout: &'a Layout,
    limits: &'a Limits,
    out: &'a mut Sink<'w, W>,
    /// The containers that are being written, outermost first.
    path: [u64; Limits::MAX_DEPTH],
    depth: usize,
}

/// What of an object decides how it is written.
#[derive(Clone, Copy)]
struct Object {
    address: u64,
    class: u64,
    kind: Kind,
    /// Whether it is of the type itself, not of a subclass.
    exact: bool,
}

/// Objects that are written in a form of their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Named(&'static str),
    Bool,
    Int,
    Float,
    Str,
    Bytes,
    Tuple,
    List,
    Dict,
    Set,
    FrozenSet,
    Cell,
    Function,
    BuiltinFunction,
    Method,
    Class,
    Module,
    Code,
    Exception,
    Generator(&'static str),
    Other,
}

impl<M: Memory, W: Write> Writer<'_, '_, M, W> {
    fn object(&mut self, address: u64) -> fmt::Result {
        if address == 0 {
            return self.out.write_str("<NULL>");
        }
        let depth = self.depth;
        let written = match self.classify(address) {
            Ok(object) => self.classified(object),
            Err(_) => Err(Failure::Memory),
        };
        self.depth = depth;
        match written {
            Ok(()) => Ok(()),
            Err(Failure::Sink(error)) => Err(error),
            Err(Failure::Memory) if self.memory.is_exhausted() => self.out.overflow(),
            Err(Failure::Memory) => self.out.write_str("<unreadable>"),
        }
    }

    fn classified(&mut self, object: Object) -> Result<(), Failure> {
        let address = object.address;
        match object.kind {
            Kind::Named(name) => Ok(self.out.write_str(name)?),
            Kind::Bool => match object::read_int(self.memory, self.layout, address)? {
                0 => Ok(self.out.write_str("False")?),
                _ => Ok(self.out.write_str("True")?),
            },
            Kind::Int => number::write_int(self.memory, self.layout, address, self.out),
            Kind::Float => {
                let at = field(address, self.layout.float.ob_fval);
                let value = f64::from_bits(self.memory.u64(at)?);
                Ok(number::write_float(value, self.out)?)
            }
            Kind::Str => {
                let limit = self.limits.text;
                quoted::write_str(self.memory, self.layout, address, limit, self.out)
            }
            Kind::Bytes => {
                let bytes = Bytes::open(self.memory, self.layout, address)?;
                quoted::write_bytes(self.memory, bytes, self.limits.text, self.out)
            }
            Kind::Tuple | Kind::List => self.sequence(object),
            Kind::Dict => self.dict(address),
            Kind::Set | Kind::FrozenSet => self.set(object),
            Kind::Cell => self.cell(address),
            Kind::Function => {
                let name = self.pointer(address, self.layout.function.func_qualname)?;
                self.out.write_str("<function ")?;
                self.text(name)?;
                Ok(self.out.write_str(">")?)
            }
            Kind::BuiltinFunction => self.builtin_function(address),
            Kind::Method => self.method(address),
            Kind::Class => {
                self.out.write_str("<class '")?;
                self.type_name(address)?;
                Ok(self.out.write_str("'>")?)
            }
            Kind::Module => self.module(address),
            Kind::Code => self.code(address),
            Kind::Exception => self.exception(object),
            Kind::Generator(name) => {
                let qualname = self.pointer(address, self.layout.generator.gi_qualname)?;
                write!(self.out, "<{name} object ")?;
                self.text(qualname)?;
                Ok(self.out.write_str(">")?)
            }
            Kind::Other => {
                self.out.write_str("<")?;
                self.type_name(object.class)?;
                Ok(self.out.write_str(" object>")?)
            }
        }
    }

    fn classify(&self, address: u64) -> Result<Object, Error> {
        let class = object::type_of(self.memory, self.layout, address)?;
        let flags = self.type_flags(class)?;
        let mut at = class;
        let (mut base, mut base_flags) = (class, flags);
        // The types made in C are told by their names, which a class of the
        // application may have too.
        for _ in 0..MAX_BASES {
            if base_flags & flag::HEAPTYPE == 0
                && let Some(kind) = self.kind_by_name(base)?
            {
                return Ok(Object {
                    address,
                    class,
                    kind,
                    exact: base == class,
                });
            }
            at = self
                .memory
                .u64(field(at, self.layout.type_object.tp_base))?;
            if at == 0 {
                break;
            }
            (base, base_flags) = (at, self.type_flags(at)?);
        }
        // Subclasses of several types are told by what they are by layout.
        let by_flag = KINDS_BY_FLAG.iter().find(|(bit, _)| flags & bit != 0);
        Ok(Object {
            address,
            class,
            kind: by_flag.map_or(Kind::Other, |(_, kind)| *kind),
            exact: false,
        })
    }

    fn type_flags(&self, class: u64) -> Result<u64, Error> {
        self.memory
            .u64(field(class, self.layout.type_object.tp_flags))
    }

    fn kind_by_name(&self, class: u64) -> Result<Option<Kind>, Error> {
        let mut buffer = [0; MAX_TYPE_NAME];
        let name = object::type_name(self.memory, self.layout, class, &mut buffer)?;
        let known = KINDS_BY_NAME.iter().find(|(known, _)| *known == name.text);
        Ok(known.filter(|_| !name.truncated).map(|(_, kind)| *kind))
    }

    // === containers ===

    fn sequence(&mut self, object: Object) -> Result<(), Failure> {
        let (open, close) = match object.kind {
            Kind::Tuple => ("(", ")"),
            _ => ("[", "]"),
        };
        let sequence = Sequence::open(self.memory, self.layout, object.address)?;
        self.out.write_str(open)?;
        if self.enter(object.address, sequence.len == 0)? {
            for (idx, item) in (0..).zip(sequence.items(self.memory)) {
                if !self.separate(idx)? {
                    break;
                }
                self.item(item)?;
            }
            self.leave();
            if object.kind == Kind::Tuple && sequence.len == 1 {
                self.out.write_str(",")?;
            }
        }
        Ok(self.out.write_str(close)?)
    }

    fn dict(&mut self, address: u64) -> Result<(), Failure> {
        let dict = Dict::open(self.memory, self.layout, address)?;
        self.out.write_str("{")?;
        if self.enter(address, false)? {
            for (idx, entry) in (0..).zip(dict.entries(self.memory)) {
                if !self.separate(idx)? {
                    break;
                }
                let entry = entry.map(|entry| (entry.key, entry.value));
                self.item(entry.map(|(key, _)| key))?;
                self.out.write_str(": ")?;
                self.item(entry.map(|(_, value)| value))?;
            }
            self.leave();
        }
        Ok(self.out.write_str("}")?)
    }

    fn set(&mut self, object: Object) -> Result<(), Failure> {
        let at = self.layout.set;
        let address = object.address;
        let used = self.memory.u64(field(address, at.used))?;
        let mask = self.memory.u64(field(address, at.mask))?;
        let table = self.pointer(address, at.table)?;
        let bare = object.exact && object.kind == Kind::Set && used != 0;
        if !bare {
            self.class_name(object.class)?;
            self.out.write_str("(")?;
        }
        if used != 0 {
            self.out.write_str("{")?;
            if self.enter(address, false)? {
                self.set_items(table, mask, used)?;
                self.leave();
            }
            self.out.write_str("}")?;
        }
        if !bare {
            self.out.write_str(")")?;
        }
        Ok(())
    }

    fn set_items(&mut self, table: u64, mask: u64, used: u64) -> Result<(), Failure> {
        let mut idx = 0;
        // Every slot is a read, which are bounded.
        for slot in 0..=mask {
            let entry = table.wrapping_add(slot.wrapping_mul(SET_ENTRY));
            let key = self.memory.u64(entry)?;
            // A deleted entry keeps a placeholder, whose hash no object has.
            if key == 0 || self.memory.u64(entry.wrapping_add(8))? == u64::MAX {
                continue;
            }
            if !self.separate(idx)? {
                break;
            }
            self.object(key)?;
            idx += 1;
            if idx == used {
                break;
            }
        }
        Ok(())
    }

    /// Goes into a container. False if it is not followed, which is then
    /// marked: it is too deep, or it contains itself.
    fn enter(&mut self, address: u64, empty: bool) -> Result<bool, Failure> {
        let seen = self.path.get(..self.depth).unwrap_or_default();
        let deepest = self.limits.depth.min(Limits::MAX_DEPTH);
        if seen.contains(&address) || (self.depth >= deepest && !empty) {
            self.out.write_str("...")?;
            return Ok(false);
        }
        if let Some(entry) = self.path.get_mut(self.depth) {
            *entry = address;
        }
        self.depth += 1;
        Ok(true)
    }

    fn leave(&mut self) {
        self.depth -= 1;
    }

    /// Writes what stands before item number `idx`; false if no more items
    /// are written.
    fn separate(&mut self, idx: u64) -> Result<bool, Failure> {
        if idx > 0 {
            self.out.write_str(", ")?;
        }
        if idx >= self.limits.items {
            self.out.write_str("...")?;
            return Ok(false);
        }
        Ok(true)
    }

    /// Writes an item; after one whose pointer cannot be read none follow.
    fn item(&mut self, item: Result<u64, Error>) -> Result<(), Failure> {
        match item {
            Ok(address) => Ok(self.object(address)?),
            Err(_) if self.memory.is_exhausted() => Ok(self.out.overflow()?),
            Err(_) => Ok(self.out.write_str("<unreadable>")?),
        }
    }

    // === objects with a name ===

    fn cell(&mut self, address: u64) -> Result<(), Failure> {
        let content = self.memory.u64(field(address, self.layout.cell.ob_ref))?;
        self.out.write_str("<cell: ")?;
        if content == 0 {
            self.out.write_str("empty")?;
        } else if self.enter(address, false)? {
            self.object(content)?;
            self.leave();
        }
        Ok(self.out.write_str(">")?)
    }

    fn builtin_function(&mut self, address: u64) -> Result<(), Failure> {
        // `PyCFunctionObject`: `m_ml`, whose first field is `ml_name`, and
        // `m_self`.
        let definition = self.pointer(address, self.layout.object.size)?;
        let name = self.memory.pointer(definition)?;
        let mut buffer = [0; MAX_NAME];
        let name = text::read_c_string(self.memory, name, &mut buffer)?.text;
        let instance = self
            .memory
            .u64(field(address, self.layout.object.size + 8))?;
        let of_module = instance == 0 || self.classify(instance)?.kind == Kind::Module;
        if of_module {
            return Ok(write!(self.out, "<built-in function {name}>")?);
        }
        write!(self.out, "<built-in method {name} of ")?;
        let class = object::type_of(self.memory, self.layout, instance)?;
        let class = object::type_name(self.memory, self.layout, class, &mut buffer)?;
        Ok(write!(self.out, "{} object>", class.text)?)
    }

    fn method(&mut self, address: u64) -> Result<(), Failure> {
        let at = self.layout.method;
        let function = self.pointer(address, at.im_func)?;
        let instance = self.pointer(address, at.im_self)?;
        let qualname = attribute::function_qualname(self.memory, self.layout, function)?;
        self.out.write_str("<bound method ")?;
        match qualname {
            Some(name) => self.text(name)?,
            None => self.out.write_str("?")?,
        }
        self.out.write_str(" of ")?;
        if self.enter(address, false)? {
            self.object(instance)?;
            self.leave();
        }
        Ok(self.out.write_str(">")?)
    }

    fn module(&mut self, address: u64) -> Result<(), Failure> {
        let name = object::module_attribute(self.memory, self.layout, address, "__name__")?;
        self.out.write_str("<module ")?;
        match name {
            Some(name) => self.object(name)?,
            None => self.out.write_str("?")?,
        }
        Ok(self.out.write_str(">")?)
    }

    fn code(&mut self, address: u64) -> Result<(), Failure> {
        let code = Code::read(self.memory, self.layout, address)?;
        self.out.write_str("<code object ")?;
        self.text(code.name)?;
        self.out.write_str(", file \"")?;
        self.text(code.filename)?;
        Ok(write!(self.out, "\", line {}>", code.firstlineno)?)
    }

    fn exception(&mut self, object: Object) -> Result<(), Failure> {
        let args = self.pointer(object.address, self.layout.exception.args)?;
        let args = Sequence::open(self.memory, self.layout, args)?;
        self.class_name(object.class)?;
        self.out.write_str("(")?;
        if self.enter(object.address, args.len == 0)? {
            for (idx, item) in (0..).zip(args.items(self.memory)) {
                if !self.separate(idx)? {
                    break;
                }
                self.item(item)?;
            }
            self.leave();
        }
        Ok(self.out.write_str(")")?)
    }

    /// The text of a `str` as it is.
    fn text(&mut self, address: u64) -> Result<(), Failure> {
        let mut buffer = [0; MAX_NAME];
        let text = text::read_str(self.memory, self.layout, address, &mut buffer)?;
        self.out.write_str(text.text)?;
        if text.truncated {
            self.out.write_str("...")?;
        }
        Ok(())
    }

    fn type_name(&mut self, class: u64) -> Result<(), Failure> {
        let mut buffer = [0; MAX_NAME];
        let name = qualified_type_name(self.memory, self.layout, class, &mut buffer)?;
        Ok(self.out.write_str(name.text)?)
    }

    /// The name of a class without those of what it is in.
    fn class_name(&mut self, class: u64) -> Result<(), Failure> {
        let mut buffer = [0; MAX_NAME];
        let name = object::type_name(self.memory, self.layout, class, &mut buffer)?.text;
        Ok(self
            .out
            .write_str(name.rsplit('.').next().unwrap_or(name))?)
    }

    fn pointer(&self, address: u64, offset: u32) -> Result<u64, Error> {
        self.memory.pointer(field(address, offset))
    }
}

/// Why an object was not written to its end.
enum Failure {
    Memory,
    Sink(fmt::Error),
}

impl From<Error> for Failure {
    fn from(_: Error) -> Self {
        Self::Memory
    }
}

impl From<fmt::Error> for Failure {
    fn from(error: fmt::Error) -> Self {
        Self::Sink(error)
    }
}

/// Types that are made in C, by `tp_name`.
const KINDS_BY_NAME: [(&str, Kind); 24] = [
    ("NoneType", Kind::Named("None")),
    ("ellipsis", Kind::Named("Ellipsis")),
    ("NotImplementedType", Kind::Named("NotImplemented")),
    ("bool", Kind::Bool),
    ("int", Kind::Int),
    ("float", Kind::Float),
    ("str", Kind::Str),
    ("bytes", Kind::Bytes),
    ("tuple", Kind::Tuple),
    ("list", Kind::List),
    ("dict", Kind::Dict),
    ("set", Kind::Set),
    ("frozenset", Kind::FrozenSet),
    ("cell", Kind::Cell),
    ("function", Kind::Function),
    ("builtin_function_or_method", Kind::BuiltinFunction),
    ("method", Kind::Method),
    ("type", Kind::Class),
    ("module", Kind::Module),
    ("code", Kind::Code),
    ("BaseException", Kind::Exception),
    ("generator", Kind::Generator("generator")),
    ("coroutine", Kind::Generator("coroutine")),
    ("async_generator", Kind::Generator("async_generator")),
];

/// Kinds by a bit of their type's flags, where the first bases do not tell.
const KINDS_BY_FLAG: [(u64, Kind); 8] = [
    (flag::LONG_SUBCLASS, Kind::Int),
    (flag::LIST_SUBCLASS, Kind::List),
    (flag::TUPLE_SUBCLASS, Kind::Tuple),
    (flag::BYTES_SUBCLASS, Kind::Bytes),
    (flag::UNICODE_SUBCLASS, Kind::Str),
    (flag::DICT_SUBCLASS, Kind::Dict),
    (flag::EXCEPTION_SUBCLASS, Kind::Exception),
    (flag::TYPE_SUBCLASS, Kind::Class),
];

/// Longest chain of first bases that is followed.
const MAX_BASES: u32 = 32;

/// Bytes of the longest name in [`KINDS_BY_NAME`], and a few.
const MAX_TYPE_NAME: usize = 32;

/// Bytes of a function's, file's or class's name that are written.
const MAX_NAME: usize = 256;

/// `sizeof(setentry)`: `key`, `hash`.
const SET_ENTRY: u64 = 16;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::objects::CodeParts;
    use crate::fake::{Fake, for_each_layout};
    use crate::layout::ABSENT;
    use std::string::String;
    use std::vec::Vec;

    fn with(fake: &Fake, layout: &Layout, address: u64, limits: Limits) -> String {
        let mut written = String::new();
        write_repr(fake, layout, address, &limits, &mut written).expect("a string");
        written
    }

    fn repr(fake: &Fake, layout: &Layout, address: u64) -> String {
        with(fake, layout, address, Limits::default())
    }

    #[test]
    fn writes_objects_as_python_does() {
        for_each_layout(|layout, fake| {
            let none = fake.none(layout);
            let one = fake.int(layout, 1);
            let half = fake.float(layout, 0.5);
            let text = fake.string(layout, "it's");
            let bytes = fake.bytes(layout, b"a\xff");
            let pair = fake.tuple(layout, &[none, one]);
            let alone = fake.tuple(layout, &[half]);
            let list = fake.list(layout, &[text, bytes, alone]);
            let dict = fake.dict(layout, &[("k", pair), ("l", list)]);
            let set = fake.set(layout, &[(0, 0), (text, u64::MAX), (one, 1), (0, 0)]);
            let empty = fake.set(layout, &[(0, 0)]);
            let exception = fake.exception(layout, &[one]);
            let code = fake.code(layout, CodeParts::EMPTY);
            let cell = fake.cell(layout, one);
            let class = fake.heap_class(layout, "Plain", &[], &[]);
            let instance = fake.instance(class, layout);
            let module = fake.module(layout, &[("__name__", text)]);
            for (address, expected) in [
                (dict, "{'k': (None, 1), 'l': [\"it's\", b'a\\xff', (0.5,)]}"),
                (set, "{1}"),
                (empty, "set()"),
                (exception, "ValueError(1)"),
                (code, "<code object work, file \"work\", line 10>"),
                (cell, "<cell: 1>"),
                (instance, "<Plain object>"),
                (module, "<module \"it's\">"),
                (0, "<NULL>"),
                (8, "<unreadable>"),
            ] {
                assert_eq!(repr(fake, layout, address), expected);
            }
        });
    }

    #[test]
    fn writes_integers_of_any_size() {
        for_each_layout(|layout, fake| {
            let address = fake.int(layout, -7);
            assert_eq!(repr(fake, layout, address), "-7");
            let size = |fake: &mut Fake, n_digits: u64| {
                if layout.long.lv_tag == ABSENT {
                    fake.put_u64(field(address, layout.object.ob_size), n_digits);
                } else {
                    fake.put_u64(field(address, layout.long.lv_tag), n_digits << 3);
                }
            };
            // Four digits: the highest is 2**10.
            for (idx, digit) in [0_u64, 0, 0, 1 << 10].into_iter().enumerate() {
                let at = field(address, layout.long.ob_digit) + idx as u64 * 4;
                for (byte, value) in (0..).zip((digit as u32).to_le_bytes()) {
                    fake.put_u8(at + byte, value);
                }
            }
            size(fake, 4);
            assert_eq!(
                repr(fake, layout, address),
                "1267650600228229401496703205376"
            );
            size(fake, 513);
            assert_eq!(repr(fake, layout, address), "<int of up to 15390 bits>");
            size(fake, u64::MAX >> 3);
            assert!(repr(fake, layout, address).starts_with('<'));
        });
    }

    #[test]
    fn cuts_at_each_limit() {
        for_each_layout(|layout, fake| {
            let one = fake.int(layout, 1);
            let text = fake.string(layout, "abcdef");
            let bytes = fake.bytes(layout, b"abcdef");
            let inner = fake.list(layout, &[one, one, one]);
            let outer = fake.tuple(layout, &[inner, text, bytes]);
            let limits = Limits::default();
            for (limits, expected) in [
                (limits, "([1, 1, 1], 'abcdef', b'abcdef')"),
                (
                    Limits { depth: 1, ..limits },
                    "([...], 'abcdef', b'abcdef')",
                ),
                (Limits { depth: 0, ..limits }, "(...)"),
                (
                    Limits { items: 2, ..limits },
                    "([1, 1, ...], 'abcdef', ...)",
                ),
                (Limits { items: 0, ..limits }, "(...)"),
                (
                    Limits { text: 3, ..limits },
                    "([1, 1, 1], 'abc'..., b'abc'...)",
                ),
                (
                    Limits {
                        bytes: 10,
                        ..limits
                    },
                    "([1, 1, 1]...",
                ),
                (Limits { bytes: 0, ..limits }, "..."),
                (Limits { reads: 0, ..limits }, "..."),
            ] {
                assert_eq!(with(fake, layout, outer, limits), expected);
            }
            let whole = with(fake, layout, outer, limits);
            for reads in 0..200 {
                let written = with(fake, layout, outer, Limits { reads, ..limits });
                let shown = written.strip_suffix("...").unwrap_or(&written);
                assert!(whole.starts_with(shown), "{written}");
            }
        });
    }

    #[test]
    fn what_contains_itself_is_written_once() {
        for_each_layout(|layout, fake| {
            let list = fake.list(layout, &[0, 0]);
            let dict = fake.dict(layout, &[("self", list)]);
            let items = fake.u64(field(list, layout.list.ob_item)).expect("mapped");
            fake.put_u64(items, list);
            fake.put_u64(items + 8, dict);
            assert_eq!(repr(fake, layout, list), "[[...], {'self': [...]}]");
            let cell = fake.cell(layout, 0);
            fake.put_u64(field(cell, layout.cell.ob_ref), cell);
            assert_eq!(repr(fake, layout, cell), "<cell: <cell: ...>>");
        });
    }

    #[test]
    fn an_item_that_cannot_be_read_is_marked() {
        for_each_layout(|layout, fake| {
            let one = fake.int(layout, 1);
            let list = fake.list(layout, &[one, 8, one]);
            assert_eq!(repr(fake, layout, list), "[1, <unreadable>, 1]");
            fake.put_u64(field(list, layout.list.ob_item), 8);
            assert_eq!(repr(fake, layout, list), "[<unreadable>]");
        });
    }

    #[test]
    fn a_failing_sink_is_told() {
        struct Failing;
        impl Write for Failing {
            fn write_str(&mut self, _: &str) -> fmt::Result {
                Err(fmt::Error)
            }
        }
        for_each_layout(|layout, fake| {
            let one = fake.int(layout, 1);
            let written = write_repr(fake, layout, one, &Limits::default(), &mut Failing);
            assert_eq!(written, Err(fmt::Error));
        });
    }

    #[test]
    fn garbage_never_panics() {
        for_each_layout(|layout, fake| {
            let one = fake.int(layout, 1);
            let text = fake.string(layout, "text");
            let dict = fake.dict(layout, &[("a", one), ("b", text)]);
            let set = fake.set(layout, &[(one, 1), (text, 2)]);
            let exception = fake.exception(layout, &[one, text]);
            let code = fake.code(layout, CodeParts::EMPTY);
            let items: Vec<_> = [dict, set, exception, code].into();
            let list = fake.list(layout, &items);
            let limits = Limits {
                reads: 300,
                ..Limits::default()
            };
            for address in items.into_iter().chain([one, text, list]) {
                fake.each_corruption(address, |fake| {
                    let written = with(fake, layout, list, limits);
                    assert!(written.len() <= limits.bytes + 3);
                });
            }
        });
    }
}
