//! What code objects are called and where they were written, remembered for
//! one process.
//!
//! A code object tells its file, line and (since 3.11) qualified name, but not
//! its module; that is found by the file. Whether an address still is what it
//! was is checked at every use.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use pyframes::code::Code;
use pyframes::{Memory, line};

use super::objects::Objects;
use crate::insight::CodeLocation;
use crate::instrumentations::Libraries;

/// Most code objects that are remembered.
const MAX_CODES: usize = 16_384;
/// Files of event loops: who has started one calls nothing that runs in it.
const LOOPS: &[&str] = &["/asyncio/base_events.py", "/asyncio/runners.py"];
/// Deepest nesting of functions.
const MAX_NESTING: usize = 16;

/// A code object that was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Known {
    /// Module and qualified name, and the first line.
    pub(super) location: Arc<CodeLocation>,
    /// `co_name`.
    pub(super) name: String,
    /// Whether it is the application's, and of no library.
    pub(super) application: bool,
}

/// Where a call comes from.
#[derive(Debug, Default)]
pub(super) struct Caller {
    /// The place in the application.
    pub(super) location: Option<Arc<CodeLocation>>,
    /// The code object of the frame outside of which nothing tells of that.
    pub(super) end: Option<u64>,
}

/// The code objects of one process.
#[derive(Clone, Debug, Default)]
pub(super) struct Names {
    known: HashMap<u64, (Code, Arc<Known>)>,
    /// Names and addresses of modules by their files.
    modules: HashMap<String, (String, u64)>,
    /// Up to 3.10: qualified names by code object, of the modules that were
    /// asked for.
    qualnames: HashMap<u64, String>,
    /// Modules whose functions are in `qualnames`.
    searched: HashSet<u64>,
    /// Directories with a slash at the end that hold no application's code.
    libraries: Vec<String>,
}

impl Names {
    /// Takes note of the modules that are imported by now.
    pub(super) fn imported<M: Memory>(
        &mut self,
        objects: Objects<'_, M>,
        modules: &HashMap<String, u64>,
    ) {
        self.modules.clear();
        self.qualnames.clear();
        self.searched.clear();
        for (name, module) in modules {
            let file = objects
                .module_attribute(*module, "__file__")
                .and_then(|file| objects.name(file).ok());
            // A file that is also run as the program keeps its own name;
            // `multiprocessing` gives the program a second one.
            if let Some(file) = file
                && name != "__mp_main__"
                && (name != "__main__" || !self.modules.contains_key(&file))
            {
                self.modules.insert(file, (name.clone(), *module));
            }
        }
        self.libraries = libraries(objects, modules);
        // A module's name may be known only now.
        self.known.clear();
    }

    /// The code object at an address.
    pub(super) fn code<M: Memory>(
        &mut self,
        objects: Objects<'_, M>,
        address: u64,
    ) -> Option<(Code, Arc<Known>)> {
        let code = Code::read(objects.memory, objects.layout, address).ok()?;
        if let Some((then, known)) = self.known.get(&address)
            && *then == code
        {
            return Some((code, Arc::clone(known)));
        }
        let known = Arc::new(self.read(objects, &code)?);
        if self.known.len() >= MAX_CODES {
            self.known.clear();
        }
        self.known.insert(address, (code, Arc::clone(&known)));
        Some((code, known))
    }

    /// The innermost frame of the application, with the line where it is, if
    /// no event loop's comes before it.
    pub(super) fn caller<M: Memory>(
        &mut self,
        objects: Objects<'_, M>,
        frames: impl Iterator<Item = abi::record::Frame>,
    ) -> Caller {
        let Objects { memory, layout } = objects;
        for frame in frames {
            let Some((code, known)) = self.code(objects, frame.code) else {
                continue;
            };
            let is_loop = LOOPS.iter().any(|file| known.location.path.ends_with(file));
            if !is_loop && !known.application {
                continue;
            }
            let line = line::lasti(memory, layout, frame.code, frame.instruction)
                .and_then(|lasti| line::line(memory, layout, &code, lasti))
                .ok()
                .flatten()
                .filter(|_| !is_loop);
            return Caller {
                location: line.map(|line| {
                    Arc::new(CodeLocation {
                        line,
                        ..CodeLocation::clone(&known.location)
                    })
                }),
                end: Some(frame.code),
            };
        }
        Caller::default()
    }

    /// The libraries that frames belong to, up to the event loop.
    pub(super) fn libraries<M: Memory>(
        &mut self,
        objects: Objects<'_, M>,
        frames: impl Iterator<Item = abi::record::Frame>,
    ) -> Libraries {
        let mut found = Libraries::default();
        for frame in frames {
            let Some((_, known)) = self.code(objects, frame.code) else {
                continue;
            };
            let location = &known.location;
            if LOOPS.iter().any(|file| location.path.ends_with(file)) {
                break;
            }
            if !known.application {
                found = found.or(Libraries::having(&location.function));
            }
        }
        found
    }

    /// A function, by the module that it was defined in.
    pub(super) fn function<M: Memory>(
        &mut self,
        objects: Objects<'_, M>,
        function: u64,
    ) -> Option<Arc<CodeLocation>> {
        let layout = objects.layout;
        let (_, known) = self.code(objects, objects.code_of(function)?)?;
        let module = objects.module_of(function);
        let qualname = objects
            .name_in(function, layout.function.func_qualname)
            .ok()?;
        let function = match module {
            Some(module) => format!("{module}.{qualname}"),
            None => qualname,
        };
        if function == known.location.function {
            return Some(Arc::clone(&known.location));
        }
        Some(Arc::new(CodeLocation {
            function,
            ..CodeLocation::clone(&known.location)
        }))
    }

    fn read<M: Memory>(&mut self, objects: Objects<'_, M>, code: &Code) -> Option<Known> {
        let path = objects.name(code.filename).ok()?;
        let name = objects.name(code.name).ok()?;
        if code.qualname.is_none()
            && let Some((_, module)) = self.modules.get(&path)
            && self.searched.insert(*module)
        {
            qualnames(objects, *module, &mut self.qualnames);
        }
        let qualname = match code.qualname {
            Some(qualname) => objects.name(qualname).ok()?,
            None => match self.qualnames.get(&code.address) {
                Some(qualname) => qualname.clone(),
                None => name.clone(),
            },
        };
        let function = match self.modules.get(&path) {
            Some((module, _)) => format!("{module}.{qualname}"),
            None => qualname,
        };
        let application = !path.starts_with('<')
            && !["/site-packages/", "/dist-packages/"]
                .iter()
                .any(|part| path.contains(part))
            && !self.libraries.iter().any(|prefix| path.starts_with(prefix));
        Some(Known {
            location: Arc::new(CodeLocation {
                function,
                path,
                line: code.firstlineno,
            }),
            name,
            application,
        })
    }
}

/// The directories of the standard library and of installed programs.
fn libraries<M: Memory>(objects: Objects<'_, M>, modules: &HashMap<String, u64>) -> Vec<String> {
    let attribute = |module: &str, name: &str| {
        let value = objects.module_attribute(*modules.get(module)?, name)?;
        objects.name(value).ok()
    };
    let mut found: Vec<String> = ["os", "collections"]
        .iter()
        .filter_map(|module| attribute(module, "__file__"))
        .filter_map(|file| {
            let file = file.strip_suffix("/__init__.py").unwrap_or(&file);
            file.rsplit_once('/')
                .map(|(directory, _)| format!("{directory}/"))
        })
        .collect();
    for prefix in ["prefix", "base_prefix", "exec_prefix"] {
        if let Some(prefix) = attribute("sys", prefix) {
            found.push(format!("{prefix}/bin/"));
        }
    }
    found.sort();
    found.dedup();
    // The root itself would be everything.
    found.retain(|directory| directory.len() > 1);
    found
}

/// Adds the qualified names of a module's functions.
fn qualnames<M: Memory>(objects: Objects<'_, M>, module: u64, into: &mut HashMap<u64, String>) {
    let Objects { memory, layout } = objects;
    let Ok(namespace) = objects.field(module, layout.module.md_dict) else {
        return;
    };
    let own = |callable: u64| {
        let function = objects.function(callable)?;
        let globals = objects.field(function, layout.function.func_globals).ok()?;
        (globals == namespace).then_some(function)
    };
    let Ok(entries) = objects.dict(namespace) else {
        return;
    };
    for entry in entries.entries(memory).flatten() {
        if objects.is_type(entry.value) {
            let inner = objects
                .field(entry.value, layout.type_object.tp_dict)
                .and_then(|namespace| objects.dict(namespace));
            let Ok(inner) = inner else { continue };
            for function in inner
                .entries(memory)
                .flatten()
                .filter_map(|entry| own(entry.value))
            {
                named(objects, function, into);
            }
        } else if let Some(function) = own(entry.value) {
            named(objects, function, into);
        }
    }
}

/// Adds the names of a function, of what it wraps and of the functions within
/// them.
fn named<M: Memory>(objects: Objects<'_, M>, function: u64, into: &mut HashMap<u64, String>) {
    let at = &objects.layout.function;
    let mut function = Some(function);
    for _ in 0..MAX_NESTING {
        let Some(this) = function else { return };
        let (Some(code), Ok(qualname)) = (
            objects.code_of(this),
            objects.name_in(this, at.func_qualname),
        ) else {
            return;
        };
        within(objects, code, qualname, into, MAX_NESTING);
        function = objects
            .wrapped(this)
            .and_then(|wrapped| objects.function(wrapped));
    }
}

fn within<M: Memory>(
    objects: Objects<'_, M>,
    code: u64,
    qualname: String,
    into: &mut HashMap<u64, String>,
    depth: usize,
) {
    let at = &objects.layout.code;
    if depth == 0 || into.contains_key(&code) {
        return;
    }
    for inner in objects.tuple_in(code, at.co_consts) {
        if objects.is_code(inner)
            && let Ok(name) = objects.name_in(inner, at.co_name)
        {
            let inner_name = format!("{qualname}.<locals>.{name}");
            within(objects, inner, inner_name, into, depth - 1);
        }
    }
    into.insert(code, qualname);
}
