//! Asks the frameworks of a process what it serves: prepares the kernel side
//! to read their objects, and turns what it read into [`Insight`]s.
//!
//! `discovery` asks what a process needs ([`Python::prepare`]) and installs
//! it; `run` hands every walked stack to [`Python::resolve`]. What is known of
//! frameworks is one table (`python/frameworks.rs`), which `python/compile.rs`
//! turns into recipes for one process. Nothing is ever written to a process.

mod carets;
mod compile;
mod drivers;
mod ends;
mod exception;
mod frameworks;
mod handlers;
mod message;
mod modules;
mod names;
mod objects;
mod pages;
mod paths;
mod resolve;
mod rules;
mod segment;
mod servers;
mod source;
mod tree;
mod values;
mod views;

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::time::{Duration, Instant};

use abi::map::{CodeKey, Recipes, recipes_flag, target_flag};
use abi::record::{Stack, moment};
use pyframes::layout::Layout;

use self::compile::{Compiled, Compiler};
use self::drivers::DRIVERS;
use self::ends::Ends;
use self::frameworks::{FRAMEWORKS, Framework, Want};
use self::handlers::Handlers;
use self::modules::Modules;
use self::names::Names;
use self::objects::Objects;
use self::pages::Pages;
use self::paths::Paths;
use self::resolve::View;
use self::servers::SERVERS;
use self::source::Sources;
use self::tree::Tree;
use crate::insight::Insight;
use crate::instrumentations::Libraries;
use crate::remote::Process;
use crate::stats::counters;
use crate::target::interpreter::{Imports, Interpreter};

counters! {
    /// Counters of `python`.
    pub struct PythonStats {
        /// Recipes that were installed.
        recipes => "python.recipes",
        /// Processes whose frameworks were looked for.
        looks => "python.looks",
        /// Stacks that told something of an exchange.
        insights => "python.insights",
        /// Stacks that told nothing.
        silent => "python.silent_stacks",
        /// Stacks of processes that are not known (any more).
        strangers => "python.unknown_process",
        /// Values that the kernel side could not reach.
        unreached => "python.unreached_values",
        /// Routes that were left out: it cannot be told under which prefix
        /// their application is mounted.
        unplaced => "python.unplaced_routes",
        /// Views whose code cannot be found: compiled ones, for one.
        without_code => "python.views_without_code",
        /// Exceptions whose type or traceback cannot be read any more.
        exceptions_lost => "python.unread_exceptions",
        /// Walks that ended at a frame that is not the application's any more:
        /// the call has no `code.*`.
        stale_ends => "python.stale_ends",
    }
}

/// How long a look is waited for after the last one, unless it is urgent.
const PAUSE: Duration = Duration::from_millis(250);
/// A module that is being imported is in `sys.modules` already: when to look
/// once more after the last import.
const AFTERWARDS: Duration = Duration::from_secs(1);

/// A stack as the ring has it, with the bytes that follow it.
#[derive(Clone, Copy, Debug)]
pub struct StackEvent<'a> {
    /// The record.
    pub stack: Stack,
    /// `n_frames` of [`abi::record::Frame`], innermost first.
    pub frames: &'a [u8],
    /// `values_len` bytes of [`abi::record::Value`]s.
    pub values: &'a [u8],
}

/// What the kernel side must do for one process, in this order.
#[derive(Debug, Default)]
pub struct Preparation {
    /// Recipes to install.
    pub install: Vec<(CodeKey, Recipes)>,
    /// Whether `PyContextVar_Reset` is to be probed.
    pub reset: bool,
    /// Whether `PyTraceBack_Here` is to be probed.
    pub raised: bool,
    /// [`abi::map::Target::group`].
    pub group: u32,
    /// [`abi::map::Target::context_variable`].
    pub context_variable: u64,
    /// Which of [`target_flag::STACK_AT_RESPONSE`],
    /// [`target_flag::STACK_AT_REQUEST`], [`target_flag::SERVERS`],
    /// [`target_flag::SERVINGS`], [`target_flag::FOREIGN`],
    /// [`target_flag::STATEMENTS`] and [`target_flag::ENDS`] to set.
    pub flags: u32,
    /// Code objects to forget when the target is told the rest: of a group
    /// that no process has any more.
    pub remove: Vec<CodeKey>,
    /// Lines for the operator.
    pub messages: Vec<String>,
    /// The server that runs the process, and its version if it tells.
    pub server: Option<(&'static str, Option<String>)>,
    /// What it has imported; empty unless that was asked for.
    pub imported: Libraries,
}

/// What is known of one process.
#[derive(Debug)]
struct State {
    process: Process,
    layout: Layout,
    /// `PY_MINOR_VERSION`.
    minor: u8,
    /// Address of the main `PyInterpreterState`.
    main: u64,
    /// [`abi::map::Target::group`], 0 before the first look.
    group: u32,
    compiled: Compiled,
    context_variable: u64,
    /// Whether a server's frames must be asked whose a context is.
    servers: bool,
    server: Option<(&'static str, Option<String>)>,
    /// Whether it is asked which libraries it has imported, and which of them
    /// send its requests.
    libraries: bool,
    /// Those that it has imported.
    present: Libraries,
    /// What `sys.modules` was at the last look.
    imported: Option<Imports>,
    looked: Option<Instant>,
    /// When to look even if nothing was imported.
    again: Option<Instant>,
    /// Modules of frameworks that the operator knows do not compile.
    told: Vec<&'static str>,
    names: Names,
    sources: Sources,
    handlers: Handlers,
    tree: Tree,
    paths: Paths,
}

/// What is known of the frameworks of every traced process.
#[derive(Debug)]
pub struct Python {
    processes: HashMap<u32, State>,
    next_group: u32,
    /// Of every recipe id, less one, the framework and the value.
    wants: Vec<(usize, &'static Want)>,
    /// What was read for stacks.
    pages: Pages,
    /// Where walks may end.
    pub(crate) ends: Ends,
    /// What happened, counted.
    pub stats: PythonStats,
}

impl Python {
    /// Knows no process yet.
    pub fn new() -> Self {
        let wants = known().enumerate();
        let wants = wants.flat_map(|(idx, framework)| {
            framework
                .rows
                .iter()
                .flat_map(move |row| row.values.iter().map(move |want| (idx, want)))
        });
        Self {
            processes: HashMap::new(),
            next_group: 1,
            wants: wants.collect(),
            pages: Pages::default(),
            ends: Ends::default(),
            stats: PythonStats::default(),
        }
    }

    /// Looks for frameworks, at the first time and whenever modules were
    /// imported since; `None` if nothing has changed.
    ///
    /// Cheap if nothing was imported. An urgent look does not wait until some
    /// time has passed since the last one. `libraries` asks for which of them
    /// the process has imported.
    pub fn prepare(
        &mut self,
        process: &Process,
        interpreter: &Interpreter,
        now: Instant,
        urgent: bool,
        libraries: bool,
    ) -> Option<Preparation> {
        let pid = process.pid();
        let state = match self.processes.entry(pid) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(place) => place.insert(State::new(pid, interpreter)?),
        };
        state.libraries = libraries;
        let (modules, imported) = state.look(now, urgent)?;
        self.stats.looks.one();
        let first = state.group == 0;
        let mut preparation = Preparation::default();
        let changed = state.compile(&modules, &mut preparation);
        state.imported = Some(imported);
        if !first && !changed {
            return None;
        }
        self.regroup(pid, &mut preparation);
        let state = self.processes.get(&pid)?;
        let moments = compile::moments(&state.compiled);
        preparation.flags = target_flag::STACK_AT_REQUEST;
        if compile::holds(moments, moment::RESPONSE) {
            preparation.flags |= target_flag::STACK_AT_RESPONSE;
        }
        if state.servers {
            preparation.flags |= target_flag::SERVERS;
        }
        if compile::flags(&state.compiled) & recipes_flag::FOREIGN != 0 {
            preparation.flags |= target_flag::FOREIGN;
        }
        for (moment, flag) in [
            (moment::STATEMENT, target_flag::STATEMENTS),
            (moment::SERVING, target_flag::SERVINGS),
        ] {
            if compile::holds(moments, moment) {
                preparation.flags |= flag;
            }
        }
        // Which libraries a call goes through, frames outside the caller's
        // tell, too.
        if !libraries {
            preparation.flags |= target_flag::ENDS;
        }
        preparation.raised = compile::holds(moments, moment::RAISED);
        preparation.reset = state.context_variable != 0 && compile::holds(moments, moment::RESET);
        if preparation.reset {
            preparation.context_variable = state.context_variable;
        }
        Some(preparation)
    }

    /// A child was forked, and runs its parent's code objects.
    pub fn forked(&mut self, child: u32, parent: u32) {
        let Some(parent) = self.processes.get(&parent) else {
            return;
        };
        let Ok(process) = Process::open(child) else {
            return;
        };
        let state = State {
            process,
            layout: parent.layout,
            minor: parent.minor,
            main: parent.main,
            group: parent.group,
            compiled: parent.compiled.clone(),
            context_variable: parent.context_variable,
            servers: parent.servers,
            server: parent.server.clone(),
            libraries: parent.libraries,
            present: parent.present,
            imported: parent.imported,
            looked: None,
            again: None,
            told: parent.told.clone(),
            names: parent.names.clone(),
            sources: Sources::of(child),
            handlers: Handlers::default(),
            tree: Tree::default(),
            paths: Paths::default(),
        };
        self.processes.insert(child, state);
    }

    /// A process ended, or runs another program now; returns the recipes that
    /// nobody needs any more.
    pub fn forgotten(&mut self, pid: u32) -> Vec<CodeKey> {
        self.pages.clear();
        let Some(state) = self.processes.remove(&pid) else {
            return Vec::new();
        };
        self.unused(state.group, &state.compiled)
    }

    /// What a stack tells.
    pub fn resolve(&mut self, event: &StackEvent<'_>) -> Option<Insight> {
        let Some(state) = self.processes.get_mut(&event.stack.pid) else {
            self.stats.strangers.one();
            return None;
        };
        self.pages.since(event.stack.at);
        let mut view = View {
            state,
            pages: &self.pages,
            wants: &self.wants,
            ends: &mut self.ends,
            stats: &self.stats,
        };
        let insight = resolve::insight(&mut view, event);
        match &insight {
            Some(_) => self.stats.insights.one(),
            None => self.stats.silent.one(),
        }
        insight
    }

    /// Gives a process whose recipes changed a group that nobody shares: its
    /// relatives may have something else at the addresses of what is new.
    fn regroup(&mut self, pid: u32, preparation: &mut Preparation) {
        let Some(state) = self.processes.get_mut(&pid) else {
            return;
        };
        let before = state.group;
        let compiled = state.compiled.clone();
        state.group = self.next_group;
        preparation.group = self.next_group;
        self.next_group = self.next_group.wrapping_add(1).max(1);
        preparation.install = compiled
            .iter()
            .map(|(&code, &recipes)| (key(preparation.group, code), recipes))
            .collect();
        let recipes: u32 = compiled.values().map(|recipes| recipes.count).sum();
        self.stats.recipes.add(recipes.into());
        preparation.remove = self.unused(before, &compiled);
    }

    /// The keys of a group, if no process has it.
    fn unused(&mut self, group: u32, compiled: &Compiled) -> Vec<CodeKey> {
        if group == 0 || self.processes.values().any(|state| state.group == group) {
            return Vec::new();
        }
        let compiled = compiled.keys().map(|&code| key(group, code));
        compiled.chain(self.ends.forget(group)).collect()
    }
}

impl Default for Python {
    fn default() -> Self {
        Self::new()
    }
}

// === impl State ===

impl State {
    fn new(pid: u32, interpreter: &Interpreter) -> Option<Self> {
        Some(Self {
            process: Process::open(pid).ok()?,
            layout: interpreter.layout,
            minor: interpreter.version.minor,
            main: interpreter.main,
            group: 0,
            compiled: Compiled::new(),
            context_variable: 0,
            servers: false,
            server: None,
            libraries: false,
            present: Libraries::default(),
            imported: None,
            looked: None,
            again: None,
            told: Vec::new(),
            names: Names::default(),
            sources: Sources::of(pid),
            handlers: Handlers::default(),
            tree: Tree::default(),
            paths: Paths::default(),
        })
    }

    /// The modules, if they are worth a look now.
    fn look(&mut self, now: Instant, urgent: bool) -> Option<(Modules, Imports)> {
        let due = self.looked.is_none_or(|looked| now >= looked + PAUSE);
        if !urgent && !due {
            return None;
        }
        let objects = Objects {
            memory: &self.process,
            layout: &self.layout,
        };
        let imported = Imports::read(&self.process, &self.layout, self.main).ok()?;
        let changed = self.imported != Some(imported);
        let again = self.again.is_some_and(|again| now >= again);
        if !urgent && !changed && !again {
            return None;
        }
        let modules = modules::read(objects, self.main).ok()?;
        self.again = changed.then_some(now + AFTERWARDS);
        self.looked = Some(now);
        Some((modules, imported))
    }

    /// Compiles the rows of what was imported; whether anything is new.
    fn compile(&mut self, modules: &Modules, preparation: &mut Preparation) -> bool {
        let objects = Objects {
            memory: &self.process,
            layout: &self.layout,
        };
        self.names.imported(objects, modules);
        self.handlers.clear();
        let mut compiled = Compiled::new();
        let mut context_variable = 0;
        let mut servers = false;
        let mut compiler = Compiler::new(objects, modules);
        let mut first_id = 1;
        for (index, framework) in known().enumerate() {
            let is_driver = index >= FRAMEWORKS.len() + SERVERS.len();
            let is_server = index >= FRAMEWORKS.len() && !is_driver;
            let id = first_id;
            first_id += framework
                .rows
                .iter()
                .map(|row| row.values.len() as u32)
                .sum::<u32>();
            let unless = framework.unless;
            if !modules.contains_key(framework.module)
                || unless.iter().any(|other| modules.contains_key(*other))
            {
                continue;
            }
            let outcome = compiler.framework(framework, id, &mut compiled);
            servers |= is_server
                && framework.rows.iter().any(|row| !row.foreign)
                && outcome.compiled != 0
                && !servers::PASSIVE.contains(&framework.name);
            let (module, variable) = framework.context_variable.unzip();
            if let (Some(module), Some(variable)) = (module, variable)
                && let Some(module) = modules.get(module)
            {
                context_variable = objects
                    .module_attribute(*module, variable)
                    .unwrap_or(context_variable);
            }
            let version = modules::version(objects, modules, framework.name);
            tracing::debug!(
                pid = self.process.pid(),
                framework = framework.name,
                version,
                compiled = outcome.compiled,
                missing = outcome.missing,
                "looked at a framework"
            );
            // While it is imported nothing of it may be there yet.
            let settled = self.again.is_none();
            if outcome.compiled == 0 && settled && !self.told.contains(&framework.module) {
                self.told.push(framework.module);
                let version = version.map_or_else(String::new, |version| format!(" {version}"));
                let lost = if is_driver {
                    "its queries are told as they are sent"
                } else if is_server {
                    "its calls have no parents"
                } else {
                    "no routes of it"
                };
                preparation.messages.push(format!(
                    "{}: {}{version} is built otherwise than known: {lost}",
                    self.process.pid(),
                    framework.name
                ));
            }
        }
        preparation.server = modules::server(objects, modules);
        if self.libraries {
            preparation.imported = Libraries::imported(|name| modules.contains_key(name));
        }
        let changed = compiled != self.compiled
            || preparation.server != self.server
            || context_variable != self.context_variable
            || servers != self.servers
            || preparation.imported != self.present
            || !preparation.messages.is_empty();
        self.compiled = compiled;
        self.server.clone_from(&preparation.server);
        self.context_variable = context_variable;
        self.servers = servers;
        self.present = preparation.imported;
        changed
    }
}

/// The rows of frameworks, then those of servers and of drivers.
fn known() -> impl Iterator<Item = &'static Framework> {
    FRAMEWORKS.iter().chain(SERVERS).chain(DRIVERS)
}

fn key(group: u32, code: u64) -> CodeKey {
    CodeKey {
        code,
        group,
        pad: 0,
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead as _, BufReader};
    use std::process::{Child, Command, Stdio};

    use abi::map::RAISED;
    use abi::record::{Frame, stack_flag};
    use pyframes::recipe::op;
    use zerocopy::{FromZeros as _, IntoBytes as _};

    use super::*;

    /// A program whose modules are built like a framework's.
    const PROGRAM: &str = r#"
import functools, sys, types

def module(name, source):
    made = types.ModuleType(name)
    sys.modules[name] = made
    exec(compile(source, f"/lib/{name}.py", "exec"), made.__dict__)
    return made

module("flask.globals", "import contextvars\n_cv_request = contextvars.ContextVar('r')")
module("flask.ctx", "def use(request): return request.url_rule.rule, request.url_rule.endpoint")
flask = module("flask.app", """
class Flask:
    def wsgi_app(self, environ, start_response):
        ctx = self.request_context(environ)
        error = None
        return (lambda: ctx), error, ctx.request.method
""")
# As an instrumentation does.
inner = flask.Flask.wsgi_app
@functools.wraps(inner)
def outer(*arguments):
    return inner(*arguments)
flask.Flask.wsgi_app = outer
print("ready", flush=True)
input()
module("bottle", """
class Bottle:
    def _handle(self, environ):
        raise KeyError("bottle.route")
    def use(self, route):
        return route.rule, route.callback
""")
print("ready", flush=True)
input()
"#;

    struct Running(Child, BufReader<std::process::ChildStdout>);

    impl Running {
        fn start() -> Self {
            let mut child = Command::new("python3")
                .args(["-c", PROGRAM])
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .spawn()
                .expect("python3 starts");
            let out = BufReader::new(child.stdout.take().expect("piped"));
            let mut running = Self(child, out);
            running.ready();
            running
        }

        fn ready(&mut self) {
            let mut line = String::new();
            self.1.read_line(&mut line).expect("a line");
            assert_eq!(line, "ready\n");
        }

        fn go_on(&mut self) {
            use std::io::Write as _;
            let stdin = self.0.stdin.as_mut().expect("piped");
            stdin.write_all(b"\n").expect("written");
            stdin.flush().expect("flushed");
            self.ready();
        }
    }

    impl Drop for Running {
        fn drop(&mut self) {
            let _gone = self.0.kill();
            let _gone = self.0.wait();
        }
    }

    #[test]
    fn prepares_what_is_imported_and_again_when_more_is() {
        let mut running = Running::start();
        let pid = running.0.id();
        let process = Process::open(pid).expect("opened");
        let interpreter = Interpreter::find(&process).expect("python");
        let mut python = Python::new();
        let now = Instant::now();
        let first = python
            .prepare(&process, &interpreter, now, true, false)
            .expect("something to do");
        assert!(first.reset && !first.raised);
        assert_ne!(first.context_variable, 0);
        assert_eq!(
            first.flags,
            target_flag::STACK_AT_REQUEST | target_flag::ENDS
        );
        let [(key, recipes)] = first.install.as_slice() else {
            panic!("one function: {:?}", first.install);
        };
        assert_eq!(key.group, first.group);
        assert_eq!(recipes.count, 5);
        assert_eq!(recipes.flags & recipes_flag::LAST, recipes_flag::LAST);
        // `ctx` is shared with the function within, `error` is not.
        let route = &recipes.recipes[0].steps;
        let steps: Vec<_> = route.iter().map(|step| step.op).take(5).collect();
        let attribute = op::ATTRIBUTE;
        assert_eq!(steps, [op::CELL, attribute, attribute, attribute, op::END]);
        assert_eq!(recipes.recipes[4].steps[0].op, op::END);
        assert!(
            python
                .prepare(&process, &interpreter, now, false, false)
                .is_none()
        );

        // The kernel gives no such number.
        python.forked(i32::MAX.cast_unsigned(), pid);
        running.go_on();
        let second = python
            .prepare(&process, &interpreter, now + PAUSE, false, true)
            .expect("something new");
        assert_ne!(second.group, first.group);
        // Libraries are asked for, which frames outside the caller's tell, too.
        assert_eq!(second.flags & target_flag::ENDS, 0);
        assert!(second.raised);
        assert_eq!(second.install.len(), 2);
        assert!(
            second
                .install
                .iter()
                .any(|(_, recipes)| recipes.recipes[0].slot == RAISED)
        );
        // Nobody has the first group, as there is no such child.
        assert_eq!(second.remove.len(), 2);
        let gone = python.forgotten(pid);
        assert_eq!(gone.len(), 2);
        assert!(gone.iter().all(|key| key.group == second.group));
    }

    #[test]
    fn a_walk_may_end_at_what_is_the_applications_and_at_nothing_else() {
        const APPLICATION: &str = "import os\ndef call(): pass\n\
            print(id(call.__code__), id(os.path.join.__code__), flush=True)\ninput()\n";
        let directory = tempfile::tempdir().expect("a directory");
        let file = directory.path().join("application.py");
        std::fs::write(&file, APPLICATION).expect("written");
        let mut child = Command::new("python3")
            .arg(&file)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("python3 starts");
        let mut line = String::new();
        let mut out = BufReader::new(child.stdout.take().expect("piped"));
        out.read_line(&mut line).expect("a line");
        let codes: Vec<u64> = line
            .split_whitespace()
            .map(|code| code.parse().expect("a number"))
            .collect();
        let [own, other] = codes[..] else {
            panic!("{line}");
        };

        let pid = child.id();
        let process = Process::open(pid).expect("opened");
        let interpreter = Interpreter::find(&process).expect("python");
        let mut python = Python::new();
        let group = python
            .prepare(&process, &interpreter, Instant::now(), true, false)
            .expect("something to do")
            .group;
        let walked = |python: &mut Python, flags: u8, group: u32, codes: &[u64]| {
            let mut stack = Stack::new_zeroed();
            stack.moment = moment::REQUEST;
            stack.flags = flags;
            stack.pid = pid;
            stack.group = group;
            let frame = |&code| Frame {
                code,
                instruction: 0,
            };
            let frames: Vec<Frame> = codes.iter().map(frame).collect();
            let event = StackEvent {
                stack,
                frames: frames.as_bytes(),
                values: &[],
            };
            python.resolve(&event);
            python.ends.drain().collect::<Vec<(CodeKey, bool)>>()
        };
        assert_eq!(walked(&mut python, 0, group, &[other]), []);
        // Of a group that the process had before.
        assert_eq!(walked(&mut python, 0, group + 1, &[other, own]), []);
        let marked = (key(group, own), true);
        let codes = [other, own, other];
        assert_eq!(walked(&mut python, 0, group, &codes), [marked]);
        assert_eq!(
            walked(&mut python, stack_flag::ENDED, group, &codes[..2]),
            []
        );
        assert_eq!(python.stats.stale_ends.value(), 0);
        // Something else has come to be where the application's was.
        python.ends.add(group, other);
        assert_eq!(python.ends.drain().count(), 1);
        let unmarked = (key(group, other), false);
        let codes = [other];
        assert_eq!(
            walked(&mut python, stack_flag::ENDED, group, &codes),
            [unmarked]
        );
        assert_eq!(python.stats.stale_ends.value(), 1);
        let _gone = child.kill();
        let _gone = child.wait();
    }

    #[test]
    fn every_value_has_an_id_of_its_own_and_every_function_room() {
        let python = Python::new();
        assert!(python.wants.len() < usize::from(u16::MAX));
        for framework in known() {
            for row in framework.rows {
                assert!(row.values.len() <= abi::map::MAX_RECIPES, "{row:?}");
            }
        }
    }
}
