//! Reads the objects of a process: a layout and a memory in one value, with
//! the bounds that the agent wants.
//!
//! What cannot be read is an error of `pyframes`; nothing is guessed.

use pyframes::layout::{ABSENT, Layout};
use pyframes::object::{self, flag};
use pyframes::sequence::Bytes;
use pyframes::{Dict, Error, Memory, attribute, text};

/// Objects of one interpreter.
#[derive(Debug)]
pub(super) struct Objects<'a, M> {
    pub(super) memory: &'a M,
    pub(super) layout: &'a Layout,
}

impl<M> Clone for Objects<'_, M> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<M> Copy for Objects<'_, M> {}

/// Longest name that is read, bytes of UTF-8.
const MAX_NAME: usize = 512;
/// Most items of a tuple or list that are read.
const MAX_ITEMS: u64 = 65_536;
/// Most types of one `__mro__`.
const MAX_BASES: usize = 64;

impl<M: Memory> Objects<'_, M> {
    /// The object that the field at `offset` points to.
    pub(super) fn field(&self, object: u64, offset: u32) -> Result<u64, Error> {
        if offset == ABSENT {
            return Err(Error::Null);
        }
        self.memory.pointer(object.wrapping_add(u64::from(offset)))
    }

    /// The type of an object.
    pub(super) fn type_of(&self, object: u64) -> Result<u64, Error> {
        object::type_of(self.memory, self.layout, object)
    }

    /// `tp_name` of the type of an object.
    pub(super) fn type_name(&self, object: u64) -> Result<String, Error> {
        let mut buffer = [0; MAX_NAME];
        let class = self.type_of(object)?;
        object::type_name(self.memory, self.layout, class, &mut buffer)
            .map(|name| name.text.to_owned())
    }

    /// Whether the type of an object is named so.
    pub(super) fn is(&self, object: u64, type_name: &str) -> bool {
        let name = self
            .type_of(object)
            .and_then(|class| self.field(class, self.layout.type_object.tp_name));
        name.and_then(|name| text::c_string_equals(self.memory, name, type_name))
            .unwrap_or(false)
    }

    /// Whether an object is a type.
    pub(super) fn is_type(&self, object: u64) -> bool {
        object::check_instance(self.memory, self.layout, object, flag::TYPE_SUBCLASS).is_ok()
    }

    /// A `str` of at most [`MAX_NAME`] bytes.
    pub(super) fn name(&self, object: u64) -> Result<String, Error> {
        let mut buffer = [0; MAX_NAME];
        let text = text::read_str(self.memory, self.layout, object, &mut buffer)?;
        if text.truncated {
            return Err(Error::TooLong);
        }
        Ok(text.text.to_owned())
    }

    /// A statement of at most so many bytes: a `str`, or `bytes` that are one.
    pub(super) fn statement(&self, object: u64, most: usize) -> Result<String, Error> {
        let Ok(found) = Bytes::open(self.memory, self.layout, object) else {
            return self.long_text(object, most);
        };
        let len = usize::try_from(found.len).map_err(|_| Error::TooLong)?;
        if len > most {
            return Err(Error::TooLong);
        }
        let mut bytes = vec![0; len];
        if !self.memory.read(found.data, &mut bytes) {
            return Err(Error::Unreadable);
        }
        String::from_utf8(bytes).map_err(|_| Error::Malformed)
    }

    /// A `str` of at most so many bytes.
    pub(super) fn long_text(&self, object: u64, most: usize) -> Result<String, Error> {
        let mut buffer = vec![0; most];
        let text = text::read_str(self.memory, self.layout, object, &mut buffer)?;
        if text.truncated {
            return Err(Error::TooLong);
        }
        Ok(text.text.to_owned())
    }

    /// The `str` in the field at `offset`.
    pub(super) fn name_in(&self, object: u64, offset: u32) -> Result<String, Error> {
        self.name(self.field(object, offset)?)
    }

    /// The items of a tuple.
    pub(super) fn tuple(&self, object: u64) -> Result<Vec<u64>, Error> {
        object::check_instance(self.memory, self.layout, object, flag::TUPLE_SUBCLASS)?;
        let items = object.wrapping_add(u64::from(self.layout.tuple.ob_item));
        self.items(object, items)
    }

    /// The items of a list.
    pub(super) fn list(&self, object: u64) -> Result<Vec<u64>, Error> {
        object::check_instance(self.memory, self.layout, object, flag::LIST_SUBCLASS)?;
        let items = self
            .memory
            .u64(object.wrapping_add(u64::from(self.layout.list.ob_item)))?;
        self.items(object, items)
    }

    /// The tuple in the field at `offset`; empty where there is none.
    pub(super) fn tuple_in(&self, object: u64, offset: u32) -> Vec<u64> {
        self.field(object, offset)
            .and_then(|tuple| self.tuple(tuple))
            .unwrap_or_default()
    }

    fn items(&self, object: u64, items: u64) -> Result<Vec<u64>, Error> {
        let size = self
            .memory
            .u64(object.wrapping_add(u64::from(self.layout.object.ob_size)))?;
        if size > MAX_ITEMS {
            return Err(Error::TooLong);
        }
        let mut bytes = vec![0; size as usize * 8];
        if !self.memory.read(items, &mut bytes) {
            return Err(Error::Unreadable);
        }
        let (items, _) = bytes.as_chunks::<8>();
        Ok(items.iter().map(|item| u64::from_le_bytes(*item)).collect())
    }

    /// The dictionary at an address.
    pub(super) fn dict(&self, object: u64) -> Result<Dict, Error> {
        Dict::open(self.memory, self.layout, object)
    }

    /// The value of a dictionary under a name.
    pub(super) fn item(&self, dict: u64, name: &str) -> Result<Option<u64>, Error> {
        self.dict(dict)?.get(self.memory, self.layout, name)
    }

    /// An attribute of a module.
    pub(super) fn module_attribute(&self, module: u64, name: &str) -> Option<u64> {
        object::module_attribute(self.memory, self.layout, module, name)
            .ok()
            .flatten()
    }

    /// What the namespace of a type itself has under a name.
    pub(super) fn own_attribute(&self, class: u64, name: &str) -> Option<u64> {
        let namespace = self.field(class, self.layout.type_object.tp_dict).ok()?;
        self.item(namespace, name).ok().flatten()
    }

    /// A type and what it derives from, in the order of look-ups.
    pub(super) fn mro(&self, class: u64) -> Result<Vec<u64>, Error> {
        let mut types = self.tuple(self.field(class, self.layout.type_object.tp_mro)?)?;
        types.truncate(MAX_BASES);
        Ok(types)
    }

    /// Whether an object's type, or one that it derives from, has a module and
    /// qualified name.
    pub(super) fn is_instance(&self, object: u64, name: &str) -> bool {
        let types = self
            .type_of(object)
            .and_then(|class| self.mro(class))
            .unwrap_or_default();
        types.iter().any(|class| {
            let mut buffer = [0; MAX_NAME];
            attribute::qualified_type_name(self.memory, self.layout, *class, &mut buffer)
                .is_ok_and(|found| found.text == name)
        })
    }

    /// The code object of a function, through what wraps it.
    pub(super) fn code_of(&self, callable: u64) -> Option<u64> {
        self.field(self.function(callable)?, self.layout.function.func_code)
            .ok()
    }

    /// The Python function behind a callable: a function, a bound, static or
    /// class method, a property's getter or a `functools.partial`.
    pub(super) fn function(&self, callable: u64) -> Option<u64> {
        let first = self.layout.object.size;
        let mut at = callable;
        for _ in 0..MAX_WRAPPERS {
            let inner = match self.type_name(at).ok()?.as_str() {
                "function" => return Some(at),
                "method" => self.layout.method.im_func,
                // `sm_callable`, `cm_callable`, `prop_get` and `fn` are the
                // first fields of their structures (funcobject.c,
                // descrobject.c, _functoolsmodule.c; 3.8 to 3.14).
                "staticmethod" | "classmethod" | "property" | "functools.partial" => first,
                _ => return None,
            };
            at = self.field(at, inner).ok()?;
        }
        None
    }

    /// The name of the module that a function was defined in.
    pub(super) fn module_of(&self, function: u64) -> Option<String> {
        let globals = self
            .field(function, self.layout.function.func_globals)
            .ok()?;
        self.name(self.item(globals, "__name__").ok()??).ok()
    }

    /// What `functools.wraps` says that a function wraps.
    pub(super) fn wrapped(&self, function: u64) -> Option<u64> {
        let namespace = self.field(function, self.layout.function.func_dict).ok()?;
        self.item(namespace, "__wrapped__").ok().flatten()
    }

    /// Whether an object is a code object.
    pub(super) fn is_code(&self, object: u64) -> bool {
        self.is(object, "code")
    }
}

/// Deepest nesting of callables that is followed.
const MAX_WRAPPERS: u32 = 8;
