//! What a row of the attribution suite says: service, interpreter, loads, and
//! what is expected of them.

use std::ffi::OsString;
use std::fmt;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Result, bail};

use crate::app::{App, Service};
use crate::load::{Manner, Progress};
use crate::process::path_from;
use crate::python::Python;

/// Requests that every model gets, over all its loads and interpreters.
pub const WANTED: usize = 2_000;

/// A model of concurrency: a service and its loads.
pub struct Model {
    /// Its name in the report.
    pub name: String,
    /// The service, without what it calls.
    pub service: Service,
    /// What it runs in.
    pub interpreter: Interpreter,
    /// Its loads, one after the other.
    pub requests: Vec<Request>,
    /// Whether what it calls is served over TLS.
    pub calls_tls: bool,
    /// Ids of calls that belong to no request and go on all the time.
    pub unowned: Vec<&'static str>,
    /// When the agent comes.
    pub attach: Attach,
    /// Whether every process is named to the agent, or the one that serves.
    pub every_process: bool,
    /// How many processes there must be before the agent comes: a server may
    /// answer when it has not forked all of its workers.
    pub processes: usize,
    /// Further arguments of the agent.
    pub agent: Vec<&'static str>,
    /// What happens to the service while it is under load. It ends when it is
    /// told to stop.
    pub meanwhile: Option<Meanwhile>,
    /// Whether requests may fail.
    pub failures_allowed: bool,
    /// Whether of a load that must only not be misplaced some calls must be
    /// placed all the same.
    pub some_placed: bool,
    /// A counter that must tell of something that was lost. Requests may be
    /// among it, so that not all of them are waited for.
    pub loses: Option<&'static str>,
    /// Counters of tables that must have evicted something; of others it does
    /// not matter then. Without it no table may.
    pub evicts: Option<&'static [&'static str]>,
}

/// Something that is done to a service under load.
pub type Meanwhile = fn(&App, &Progress) -> Result<()>;

/// A load of a model.
#[derive(Clone, Debug)]
pub struct Request {
    /// Path and query.
    pub target: &'static str,
    /// How it is sent.
    pub manner: Manner,
    /// What is to come of it.
    pub expected: Expected,
    /// How many requests it has, if that is not an even share of
    /// [`WANTED`].
    pub count: Option<usize>,
}

impl Request {
    /// How many requests it has.
    pub fn count(&self) -> usize {
        self.count.unwrap_or(WANTED)
    }

    /// Its name in the report: the target, and the manner after a comma.
    pub fn name(&self) -> String {
        match self.manner.name() {
            Some(manner) => format!("{}, {manner}", self.target),
            None => self.target.to_owned(),
        }
    }
}

/// What is expected of a load's calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expected {
    /// Each is there, under its request; one in a thousand may be under none.
    Exact,
    /// None is under a wrong span, and some are placed.
    NoneMisplaced,
    /// Each is there, none under a wrong span, and this counter tells of all
    /// those that are under none. There are some.
    Refused(&'static str),
}

/// When the agent comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attach {
    /// Before the service: `otel-ebpf run`.
    Launch,
    /// Before the load.
    First,
    /// In the middle of the first load.
    Midway,
}

/// What a service runs in.
#[derive(Clone, Debug)]
pub struct Interpreter {
    /// Its name in the report.
    pub label: String,
    program: PathBuf,
    prefix: Vec<OsString>,
}

impl Model {
    /// A service that is yet to get its loads.
    pub fn new(name: &str, service: Service) -> Self {
        Self::in_interpreter(name, service, Interpreter::main())
    }

    pub(super) fn in_interpreter(name: &str, service: Service, interpreter: Interpreter) -> Self {
        Self {
            name: name.to_owned(),
            service,
            interpreter,
            requests: Vec::new(),
            calls_tls: false,
            unowned: Vec::new(),
            attach: Attach::First,
            every_process: false,
            processes: 1,
            agent: Vec::new(),
            meanwhile: None,
            failures_allowed: false,
            some_placed: true,
            loses: None,
            evicts: None,
        }
    }

    /// Loads of whole requests, every call of which must be in its place.
    pub fn loads(self, targets: &[&'static str]) -> Self {
        let with = |model: Self, target: &&'static str| model.load(target);
        targets.iter().fold(self, with)
    }

    /// One such load.
    pub fn load(self, target: &'static str) -> Self {
        self.load_as(target, Manner::Whole, Expected::Exact)
    }

    /// A load that is sent in another manner, or of which something else is
    /// expected.
    pub fn load_as(mut self, target: &'static str, manner: Manner, expected: Expected) -> Self {
        self.requests.push(Request {
            target,
            manner,
            expected,
            count: None,
        });
        self
    }

    /// How many requests the load has that was added last.
    pub fn times(mut self, count: usize) -> Self {
        if let Some(request) = self.requests.last_mut() {
            request.count = Some(count);
        }
        self
    }

    /// How many requests every load has of which nothing was said.
    pub fn each(mut self, count: usize) -> Self {
        for request in &mut self.requests {
            request.count.get_or_insert(count);
        }
        self
    }

    /// What it calls is served over TLS.
    pub fn calls_tls(mut self) -> Self {
        self.calls_tls = true;
        self
    }

    /// Another interpreter than the main one.
    pub fn on(mut self, interpreter: &Interpreter) -> Self {
        self.interpreter = interpreter.clone();
        self
    }

    /// Ids of calls that go on all the time and must have no parent.
    pub fn unowned(mut self, ids: &[&'static str]) -> Self {
        self.unowned.extend(ids);
        self
    }

    /// The agent starts the service.
    pub fn launched(mut self) -> Self {
        self.attach = Attach::Launch;
        self
    }

    /// The agent comes in the middle of the first load.
    pub fn attach_midway(mut self) -> Self {
        self.attach = Attach::Midway;
        self
    }

    /// The agent is told of every process, not of the one that serves.
    pub fn every_process(mut self) -> Self {
        self.every_process = true;
        self
    }

    /// The same once there are so many.
    pub fn every_process_of(mut self, processes: usize) -> Self {
        self.processes = processes;
        self.every_process()
    }

    /// Further arguments of the agent.
    pub fn agent(mut self, arguments: &[&'static str]) -> Self {
        self.agent.extend(arguments);
        self
    }

    /// What is done to the service under load; requests may fail then.
    pub fn meanwhile(mut self, meanwhile: Meanwhile) -> Self {
        self.meanwhile = Some(meanwhile);
        self.failures_allowed = true;
        self
    }

    /// Something must be lost, and this counter tell of it.
    pub fn loses(mut self, counter: &'static str) -> Self {
        self.loses = Some(counter);
        self
    }

    /// Tables may evict, and those of these counters must.
    pub fn evicts(mut self, counters: &'static [&'static str]) -> Self {
        self.evicts = Some(counters);
        self
    }

    /// Under so hard conditions no call need be placed.
    pub fn nothing_need_be_placed(mut self) -> Self {
        self.some_placed = false;
        self
    }
}

impl fmt::Display for Expected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact => f.write_str("exact"),
            Self::NoneMisplaced => f.write_str("none misplaced"),
            Self::Refused(counter) => write!(f, "refused, {counter}"),
        }
    }
}

impl Interpreter {
    /// The one that has the packages of the applications.
    ///
    /// # Panics
    ///
    /// Without one, since nothing can be tested then.
    pub fn main() -> Self {
        Self::of_variable("OTEL_EBPF_PYTHON", "../target/python/apps/bin/python")
    }

    /// The one that has the packages of the frameworks.
    ///
    /// # Panics
    ///
    /// Without one, since nothing can be tested then.
    pub fn frameworks() -> Self {
        Self::of_variable(
            "OTEL_EBPF_FRAMEWORKS_PYTHON",
            "../target/python/frameworks/bin/python",
        )
    }

    /// The one that has further servers.
    ///
    /// # Panics
    ///
    /// Without one, since nothing can be tested then.
    pub fn servers() -> Self {
        Self::of_variable(
            "OTEL_EBPF_SERVERS_PYTHON",
            "../target/python/servers/bin/python",
        )
    }

    /// Those of several versions that have the packages of the applications.
    ///
    /// # Panics
    ///
    /// Without `OTEL_EBPF_PYTHONS`.
    pub fn versions() -> Vec<Self> {
        Self::several("OTEL_EBPF_PYTHONS")
    }

    /// Those of several versions that have gevent and eventlet.
    ///
    /// # Panics
    ///
    /// Without `OTEL_EBPF_GREENLETS_PYTHONS`.
    pub fn greenlets() -> Vec<Self> {
        Self::several("OTEL_EBPF_GREENLETS_PYTHONS")
    }

    fn several(variable: &str) -> Vec<Self> {
        let named = std::env::var(variable).expect(variable);
        let found: Vec<_> = named
            .split(':')
            .filter_map(|pair| pair.split_once('='))
            .map(|(_, program)| Self::here(program.into()).expect("a version"))
            .collect();
        assert!(!found.is_empty(), "{variable} names none");
        found
    }

    /// Where its packages are, for another program of its version.
    ///
    /// # Panics
    ///
    /// If it does not say.
    pub fn packages(&self) -> OsString {
        let code = "import sysconfig; print(sysconfig.get_path('platlib'))";
        let output = Command::new(&self.program).args(["-c", code]).output();
        let text = String::from_utf8(output.expect("runs").stdout).expect("a path");
        text.trim().into()
    }

    /// Any, which may have to be entered with `chroot`; the label says what
    /// sets it apart from others of its version.
    pub fn of(python: &Python, kind: &str) -> Result<Self> {
        let mut found = Self {
            label: format!("{} {kind}", version(&mut python.command())?),
            program: python.program.clone(),
            prefix: python.prefix(),
        };
        found.label.truncate(found.label.trim_end().len());
        Ok(found)
    }

    /// One that starts nothing.
    #[cfg(test)]
    pub(super) fn named(label: &str) -> Self {
        Self {
            label: label.to_owned(),
            program: PathBuf::new(),
            prefix: Vec::new(),
        }
    }

    /// Starts a service in it, by a command that starts the server's.
    pub fn start(&self, service: Service, prefix: &[OsString]) -> Result<App> {
        let prefix = [prefix, &self.prefix].concat();
        service.python(&self.program).start_under(&prefix)
    }

    fn of_variable(variable: &str, default: &str) -> Self {
        let program = path_from(variable, default).expect("an interpreter");
        Self::here(program).expect("its version")
    }

    fn here(program: PathBuf) -> Result<Self> {
        Ok(Self {
            label: version(&mut Command::new(&program))?,
            program,
            prefix: Vec::new(),
        })
    }
}

/// Major and minor version, and `t` without the GIL.
fn version(command: &mut Command) -> Result<String> {
    const CODE: &str = "import sys, sysconfig; print('%d.%d' % sys.version_info[:2] \
                        + ('t' if sysconfig.get_config_var('Py_GIL_DISABLED') else ''))";
    let output = command.args(["-c", CODE]).output()?;
    let text = String::from_utf8(output.stdout)?.trim().to_owned();
    if text.is_empty() {
        bail!("{command:?} does not tell its version");
    }
    Ok(text)
}
