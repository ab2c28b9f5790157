//! Turns rows of the table into recipes for one process: names become
//! addresses of interned strings, variables slots, functions code objects.
//!
//! Works on `sys.modules` as it stands. What a release does not have is no
//! recipe; nothing is guessed.

use std::collections::{HashMap, HashSet};

use abi::map::{
    ARGUMENT, COMPOSED, FUNCTIONS, INNERMOST, MAX_RECIPES, RAISED, Recipe, Recipes, recipes_flag,
};
use pyframes::argument;
use pyframes::code::{self, Code};
use pyframes::object::{check_instance, flag};
use pyframes::recipe::{MAX_STEPS, Step, op};
use pyframes::{Error, Memory};

use super::frameworks::{
    Condition, Framework, Go, Place, Role, Row, Start, Via, WSGI_SERVERS, Want, WsgiServer,
};
use super::objects::Objects;

/// Recipes of code objects.
pub(super) type Compiled = HashMap<u64, Recipes>;

/// Most code objects of one module that are looked into.
const MAX_CODES: usize = 20_000;
/// Deepest nesting of functions that wrap one another.
const MAX_WRAPPERS: u32 = 8;

/// What came of the rows of one framework.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Outcome {
    /// Values that can be read.
    pub(super) compiled: usize,
    /// Values for which the process has no variable, name or function.
    pub(super) missing: usize,
}

/// Finds things in one process; what it has found it remembers.
pub(super) struct Compiler<'a, M> {
    objects: Objects<'a, M>,
    /// `sys.modules`.
    modules: &'a HashMap<String, u64>,
    /// The interned strings that a module's code uses.
    names: HashMap<&'static str, HashMap<String, u64>>,
    /// The type of bound methods.
    method_type: u64,
}

/// A recipe that is being made.
struct Draft<'f> {
    framework: &'f Framework,
    /// The module whose names come first.
    module: &'static str,
    server: Option<&'static WsgiServer>,
}

impl<'a, M: Memory> Compiler<'a, M> {
    /// For a process with these modules.
    pub(super) fn new(objects: Objects<'a, M>, modules: &'a HashMap<String, u64>) -> Self {
        let method_type = modules
            .get("types")
            .and_then(|types| objects.module_attribute(*types, "MethodType"))
            .unwrap_or(0);
        Self {
            objects,
            modules,
            names: HashMap::new(),
            method_type,
        }
    }

    /// Adds the recipes of one framework's rows; `first_id` is the id of its
    /// first value.
    pub(super) fn framework(
        &mut self,
        framework: &Framework,
        first_id: u32,
        into: &mut Compiled,
    ) -> Outcome {
        let mut outcome = Outcome::default();
        let mut id = first_id;
        for row in framework.rows {
            let places: Vec<_> = match row.place {
                Place::Function(module, function) => vec![(module, function, None)],
                Place::WsgiServers => WSGI_SERVERS
                    .iter()
                    .map(|server| (server.module, server.function, Some(server)))
                    .collect(),
                Place::Innermost => {
                    self.innermost(framework, row, id, into, &mut outcome);
                    Vec::new()
                }
            };
            for (module, function, server) in places {
                let draft = Draft {
                    framework,
                    module,
                    server,
                };
                for code in self.codes(module, function) {
                    let Ok(code) = Code::read(self.objects.memory, self.objects.layout, code)
                    else {
                        continue;
                    };
                    self.row(&draft, &code, row, id, into, &mut outcome);
                }
            }
            id += row.values.len() as u32;
        }
        outcome
    }

    /// Adds the recipes for whatever frame is the innermost.
    fn innermost(
        &mut self,
        framework: &Framework,
        row: &Row,
        first_id: u32,
        into: &mut Compiled,
        outcome: &mut Outcome,
    ) {
        let draft = Draft {
            framework,
            module: framework.module,
            server: None,
        };
        for (id, want) in (first_id..).zip(row.values) {
            let recipe = self.argument(&draft, want);
            let recipes = into.entry(INNERMOST).or_default();
            let room = recipes.recipes.get_mut(recipes.count as usize);
            let (Some(recipe), Some(room)) = (recipe, room) else {
                outcome.missing += 1;
                continue;
            };
            *room = Recipe { id, ..recipe };
            recipes.count += 1;
            outcome.compiled += 1;
        }
    }

    /// The recipe for what a frame passes to a method.
    fn argument(&mut self, draft: &Draft<'_>, want: &Want) -> Option<Recipe> {
        let Start::Argument(arguments) = want.start else {
            return None;
        };
        let mut recipe = Recipe {
            slot: ARGUMENT,
            moments: want.moments,
            terminal: want.terminal(),
            key: self.class(arguments.class)?,
            ..Recipe::default()
        };
        let (module, class, attribute) = arguments.composed;
        let functions = self.class(("types", "BuiltinFunctionType"));
        let composed = self.class((module, class));
        let step = |op, key| Step {
            op,
            key,
            ..Step::default()
        };
        let known = [
            (0, self.step(draft, Go::Key(arguments.name))),
            (
                argument::COMPOSED,
                self.step(draft, Go::Attribute(attribute)),
            ),
            (FUNCTIONS, functions.map(|class| step(op::END, class))),
            (COMPOSED, composed.map(|class| step(op::END, class))),
        ];
        for (at, known) in known {
            if let (Some(room), Some(step)) = (recipe.steps.get_mut(at), known) {
                *room = step;
            }
        }
        Some(recipe)
    }

    /// The class of a name in a module, if that is there.
    fn class(&self, (module, class): (&str, &str)) -> Option<u64> {
        let module = self.modules.get(module)?;
        self.objects.module_attribute(*module, class)
    }

    /// Adds the recipes for one code object.
    fn row(
        &mut self,
        draft: &Draft<'_>,
        code: &Code,
        row: &Row,
        first_id: u32,
        into: &mut Compiled,
        outcome: &mut Outcome,
    ) {
        let room = into
            .get(&code.address)
            .map_or(MAX_RECIPES, |known| MAX_RECIPES - known.count as usize);
        for (id, want) in (first_id..).zip(row.values) {
            let condition = matches!(want.role, Role::Condition(_));
            let Some(mut recipe) = self.recipe(draft, code, want) else {
                outcome.missing += 1;
                tracing::debug!(
                    framework = draft.framework.name,
                    module = draft.module,
                    ?want,
                    "not in this release"
                );
                if condition {
                    // Without it the rest of the row would not be certain.
                    return;
                }
                continue;
            };
            if condition && row.values.len() > room {
                outcome.missing += row.values.len();
                return;
            }
            recipe.id = id;
            let recipes = into.entry(code.address).or_default();
            let Some(room) = recipes.recipes.get_mut(recipes.count as usize) else {
                outcome.missing += 1;
                tracing::debug!(?want, max = MAX_RECIPES, "too many recipes for a function");
                continue;
            };
            *room = recipe;
            recipes.count += 1;
            outcome.compiled += 1;
        }
        if row.last
            && let Some(recipes) = into.get_mut(&code.address)
        {
            recipes.flags |= recipes_flag::LAST;
        }
        if row.answers {
            into.entry(code.address).or_default().flags |= recipes_flag::ANSWERS;
        }
        if row.foreign {
            into.entry(code.address).or_default().flags |= recipes_flag::FOREIGN;
            outcome.compiled += 1;
        }
        if row.bound
            && let Some(recipes) = into.get_mut(&code.address)
        {
            recipes.flags |= recipes_flag::BIND;
        }
    }

    fn recipe(&mut self, draft: &Draft<'_>, code: &Code, want: &Want) -> Option<Recipe> {
        let mut recipe = Recipe {
            moments: want.moments,
            terminal: want.terminal(),
            key: self.key(want.role)?,
            ..Recipe::default()
        };
        let mut steps = Vec::new();
        let (local, before) = match want.start {
            Start::Local(local) => (Some(local), &[][..]),
            Start::Environ => {
                let (local, path) = draft.server?.environ;
                (Some(local), path)
            }
            Start::Application => {
                let (local, path) = draft.server?.application;
                (Some(local), path)
            }
            Start::Iterable => {
                let (local, path) = draft.server?.iterable;
                (Some(local), path)
            }
            Start::Raised => (None, &[][..]),
            // No function's.
            Start::Argument(..) => return None,
        };
        match local {
            None => recipe.slot = RAISED,
            Some(local) => {
                let Objects { memory, layout } = self.objects;
                let variable = code.variable(memory, layout, local).ok()??;
                recipe.slot = variable.slot;
                if variable.kind != code::Kind::Local {
                    steps.push(Step {
                        op: op::CELL,
                        ..Step::default()
                    });
                }
            }
        }
        for go in before.iter().chain(want.path) {
            steps.push(self.step(draft, *go)?);
        }
        if steps.len() > MAX_STEPS {
            return None;
        }
        for (room, step) in recipe.steps.iter_mut().zip(steps) {
            *room = step;
        }
        Some(recipe)
    }

    /// What the end of a recipe is compared with.
    fn key(&self, role: Role) -> Option<u64> {
        Some(match role {
            Role::Condition(Condition::Size(size)) => size,
            Role::Connection {
                via: Via::Socket, ..
            } => {
                let socket = self.modules.get("socket")?;
                self.objects.module_attribute(*socket, "socket")?
            }
            Role::Connection {
                via: Via::Uvloop, ..
            } => {
                self.modules.get("uvloop.loop")?;
                0
            }
            _ => 0,
        })
    }

    fn step(&mut self, draft: &Draft<'_>, go: Go) -> Option<Step> {
        let layout = self.objects.layout;
        let step = |op, operand, key| Step { op, operand, key };
        Some(match go {
            Go::Attribute(name) => step(op::ATTRIBUTE, 0, self.interned(draft, name)?),
            Go::Key(name) => step(op::ITEM, 0, self.interned(draft, name)?),
            Go::Index(idx) => step(op::INDEX, idx, 0),
            Go::Slot(module, class, name) => {
                step(op::POINTER, self.slot(module, class, name).ok()?, 0)
            }
            Go::MethodSelf => step(op::POINTER, layout.method.im_self, self.method_type),
            Go::MethodFunction => step(op::POINTER, layout.method.im_func, self.method_type),
        })
    }

    /// The code objects that a qualified name in a module stands for.
    fn codes(&self, module: &str, function: &str) -> Vec<u64> {
        let mut parts = function.split(".<locals>.");
        let outer = parts.next().unwrap_or_default();
        let Some(&module) = self.modules.get(module) else {
            return Vec::new();
        };
        let mut codes: Vec<u64> = self.code(module, outer).into_iter().collect();
        for inner in parts {
            codes = codes
                .iter()
                .flat_map(|code| self.nested(*code, inner))
                .collect();
        }
        codes
    }

    /// The code object of a function of a module, or of a method of a class.
    fn code(&self, module: u64, path: &str) -> Option<u64> {
        let mut parts = path.split('.');
        let mut at = self.objects.module_attribute(module, parts.next()?)?;
        let mut name = path;
        for part in parts {
            at = self.objects.own_attribute(at, part)?;
            name = part;
        }
        // Whatever was put in its place in the meantime says, as a rule, what
        // it wraps.
        for _ in 0..MAX_WRAPPERS {
            let function = self.objects.function(at)?;
            let code = self.objects.code_of(function)?;
            let co_name = self.objects.name_in(code, self.objects.layout.code.co_name);
            if co_name.is_ok_and(|co_name| co_name == name) {
                return Some(code);
            }
            at = match self.objects.wrapped(function) {
                Some(wrapped) => wrapped,
                None => return self.enclosed(function, name),
            };
        }
        None
    }

    /// The code object of the function of that name in a function's closure.
    fn enclosed(&self, function: u64, name: &str) -> Option<u64> {
        let layout = self.objects.layout;
        self.objects
            .tuple_in(function, layout.function.func_closure)
            .into_iter()
            .filter_map(|cell| self.objects.field(cell, layout.cell.ob_ref).ok())
            .filter_map(|content| self.objects.code_of(content))
            .find(|code| {
                self.objects
                    .name_in(*code, layout.code.co_name)
                    .is_ok_and(|co_name| co_name == name)
            })
    }

    /// The code objects of that name among the constants of another.
    fn nested(&self, code: u64, name: &str) -> Vec<u64> {
        let layout = &self.objects.layout.code;
        self.objects
            .tuple_in(code, layout.co_consts)
            .into_iter()
            .filter(|constant| {
                self.objects.is_code(*constant)
                    && self
                        .objects
                        .name_in(*constant, layout.co_name)
                        .is_ok_and(|co_name| co_name == name)
            })
            .collect()
    }

    /// The bytes before an attribute in an instance of a class that has a
    /// slot for it.
    fn slot(&self, module: &str, class: &str, name: &str) -> Result<u32, Error> {
        let Objects { memory, layout } = self.objects;
        let class = self
            .modules
            .get(module)
            .and_then(|module| self.objects.module_attribute(*module, class))
            .ok_or(Error::Null)?;
        let descriptor = self.objects.own_attribute(class, name).ok_or(Error::Null)?;
        if !self.objects.is(descriptor, "member_descriptor") {
            return Err(Error::WrongType);
        }
        // `PyMemberDescrObject` is `d_type`, `d_name`, `d_qualname` and
        // `d_member`; `PyMemberDef` is `name`, `type` and `offset` (descrobject.h,
        // structmember.h; 3.8 to 3.14).
        let member = memory.pointer(descriptor.wrapping_add(u64::from(layout.object.size) + 24))?;
        let offset = memory.u64(member.wrapping_add(16))?;
        u32::try_from(offset).map_err(|_| Error::Malformed)
    }

    /// The address of an interned string.
    fn interned(&mut self, draft: &Draft<'_>, name: &str) -> Option<u64> {
        let modules = [draft.module, draft.framework.module]
            .into_iter()
            .chain(draft.framework.names.iter().copied());
        for module in modules {
            if !self.names.contains_key(module) {
                let names = self.names_of(module);
                self.names.insert(module, names);
            }
            let found = self.names.get(module).and_then(|names| names.get(name));
            if let Some(address) = found {
                return Some(*address);
            }
        }
        None
    }

    /// The strings that a module's namespace and code use.
    fn names_of(&self, module: &str) -> HashMap<String, u64> {
        let mut found = Strings {
            objects: self.objects,
            names: HashMap::new(),
            seen: HashSet::new(),
        };
        if let Some(module) = self.modules.get(module) {
            let codes = self.roots(*module, &mut found);
            found.of_codes(codes);
        }
        found.names
    }

    /// The code of a module's own functions and of its classes' methods.
    fn roots(&self, module: u64, found: &mut Strings<'_, M>) -> Vec<u64> {
        let Objects { memory, layout } = self.objects;
        let mut codes = Vec::new();
        let Ok(namespace) = self.objects.field(module, layout.module.md_dict) else {
            return codes;
        };
        let Ok(entries) = self.objects.dict(namespace) else {
            return codes;
        };
        // What others have wrapped is the module's all the same.
        let own = |callable: u64| {
            let mut at = callable;
            for _ in 0..MAX_WRAPPERS {
                let function = self.objects.function(at)?;
                let globals = self
                    .objects
                    .field(function, layout.function.func_globals)
                    .ok()?;
                if globals == namespace {
                    return self.objects.code_of(function);
                }
                at = self.objects.wrapped(function)?;
            }
            None
        };
        for entry in entries.entries(memory).flatten() {
            found.string(entry.key);
            if self.objects.is_type(entry.value) {
                let inner = self
                    .objects
                    .field(entry.value, layout.type_object.tp_dict)
                    .and_then(|namespace| self.objects.dict(namespace));
                let Ok(inner) = inner else { continue };
                for entry in inner.entries(memory).flatten() {
                    found.string(entry.key);
                    codes.extend(own(entry.value));
                }
            } else if !found.string(entry.value) {
                codes.extend(own(entry.value));
            }
        }
        codes
    }
}

/// Strings on the way through a module.
struct Strings<'a, M> {
    objects: Objects<'a, M>,
    names: HashMap<String, u64>,
    seen: HashSet<u64>,
}

impl<M: Memory> Strings<'_, M> {
    /// Takes note of a string; false if the object is none.
    fn string(&mut self, object: u64) -> bool {
        if !self.seen.insert(object) {
            return true;
        }
        let Objects { memory, layout } = self.objects;
        if check_instance(memory, layout, object, flag::UNICODE_SUBCLASS).is_err() {
            return false;
        }
        // One that is too long is no name.
        if let Ok(text) = self.objects.name(object) {
            self.names.entry(text).or_insert(object);
        }
        true
    }

    /// Takes note of every string that code objects and those within them
    /// use.
    fn of_codes(&mut self, mut codes: Vec<u64>) {
        let at = &self.objects.layout.code;
        let mut visited = HashSet::new();
        while let Some(code) = codes.pop() {
            if !visited.insert(code) || visited.len() > MAX_CODES {
                continue;
            }
            for offset in [at.co_names, at.co_varnames, at.co_localsplusnames] {
                for name in self.objects.tuple_in(code, offset) {
                    self.string(name);
                }
            }
            for constant in self.objects.tuple_in(code, at.co_consts) {
                if !self.string(constant) && self.objects.is_code(constant) {
                    codes.push(constant);
                }
            }
        }
    }
}

/// The flags of all recipes together.
pub(super) fn flags(compiled: &Compiled) -> u32 {
    let flags = compiled.values().map(|recipes| recipes.flags);
    flags.fold(0, |all, flags| all | flags)
}

/// Which moments the recipes are for, a bit each.
pub(super) fn moments(compiled: &Compiled) -> u32 {
    compiled
        .values()
        .flat_map(|recipes| {
            recipes
                .recipes
                .iter()
                .take(recipes.count as usize)
                .map(|recipe| recipe.moments)
        })
        .fold(0, |all, moments| all | moments)
}

/// Whether a set of moments holds one.
pub(super) fn holds(moments: u32, moment: u8) -> bool {
    moments & (1 << moment) != 0
}
