//! Where each framework and server keeps what a request is about: the table.
//!
//! One [`Row`] per function whose frame is of interest, with the values that
//! its local variables lead to. Rows of functions, variables and attributes
//! that a release does not have are passed over, so that rows for several
//! releases stand side by side; where several values of one role are found,
//! that of the innermost frame counts, and in a frame the first in the table.
//!
//! The facts were read off the releases named at each framework.

mod table;

use abi::map::{STATEMENT, UNTYPED, terminal};
use abi::record::{moment, value};

pub(super) use self::table::FRAMEWORKS;
use super::paths::Style;

/// What a value says about the request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Role {
    /// The pattern that matched, as a whole.
    WholeRoute,
    /// The pattern that matched, as a whole but for the slash that it begins
    /// with.
    SlashlessRoute,
    /// The route object that matched.
    Leaf,
    /// What says how the route object is included in the application:
    /// an object with `original_route`, `path` and `endpoint`.
    LeafContext,
    /// The outermost router: where the route object is looked for.
    Root,
    /// The callable that serves the request.
    Handler,
    /// The name under which the application has the callable.
    ViewName,
    /// The application.
    Application,
    /// A WSGI application whose routes the path tells.
    Wsgi(Style),
    /// The path of the request, as WSGI has it.
    Path,
    /// The object whose class serves the request, in the rules of
    /// [`Role::Application`].
    Instance,
    /// The method of the request, to choose a class's method by.
    Method,
    /// An exception that nobody handled.
    Exception,
    /// What handles an exception that the application does not: without it
    /// the frame's [`Role::Exception`] is none.
    Default,
    /// An object that knows what the application handles by the exception's
    /// type.
    Catchers(Catchers),
    /// A statement before its parameters are put into it.
    Statement,
    /// Something without which the frame of a server tells nothing.
    Condition(Condition),
    /// The connection that a server's frame serves, if so many conditions
    /// hold.
    Connection {
        /// What the path leads to.
        via: Via,
        /// The conditions of its row.
        conditions: usize,
    },
}

/// What must hold of the object that a path leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Condition {
    /// A container with so many items.
    Size(u64),
    /// `None`.
    Nothing,
}

/// What has the descriptor of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Via {
    /// A `socket.socket`.
    Socket,
    /// A transport of uvloop.
    Uvloop,
}

/// Where an application keeps its handlers of exceptions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Catchers {
    /// `_error_handlers`: handlers by type, those of the framework included.
    Falcon,
    /// `cached_handlers`: handlers by type and route, or `None`.
    Sanic,
}

/// Where a path begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Start {
    /// At a local variable.
    Local(&'static str),
    /// At the WSGI environment; rows of [`Place::WsgiServers`] only.
    Environ,
    /// At the WSGI application; rows of [`Place::WsgiServers`] only.
    Application,
    /// At what the WSGI application returned; rows of [`Place::WsgiServers`]
    /// only.
    Iterable,
    /// At the exception that passes through the frame.
    Raised,
    /// At the first argument of the method that the frame calls of an
    /// instance of a class, which is the whole path. Rows of
    /// [`Place::Innermost`] only.
    Argument(Arguments),
}

/// Whose methods' arguments hold a statement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Arguments {
    /// Module and name of the receiver's class.
    pub(super) class: (&'static str, &'static str),
    /// The name of the argument.
    pub(super) name: &'static str,
    /// Module and name of the class that all derive from which stand for a
    /// text, and the attribute in which one has it.
    pub(super) composed: (&'static str, &'static str, &'static str),
}

/// One step of a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Go {
    /// To an attribute that the object itself has.
    Attribute(&'static str),
    /// To the value of a dictionary.
    Key(&'static str),
    /// To an item of a tuple or list.
    Index(u32),
    /// To an attribute in a slot: module, class, attribute.
    Slot(&'static str, &'static str, &'static str),
    /// From a bound method to its object.
    MethodSelf,
    /// From a bound method to its function.
    MethodFunction,
}

/// A value and the way to it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Want {
    /// What it says.
    pub(super) role: Role,
    /// At which moments, a bit each (see [`moment`]).
    pub(super) moments: u32,
    /// Where the path begins.
    pub(super) start: Start,
    /// The path.
    pub(super) path: &'static [Go],
}

/// Whose frames a row is about.
#[derive(Clone, Copy, Debug)]
pub(super) enum Place {
    /// The function of a module, by its qualified name; a nested one
    /// (`outer.<locals>.inner`) may stand for several of that name.
    Function(&'static str, &'static str),
    /// The functions of [`WSGI_SERVERS`].
    WsgiServers,
    /// Whatever function is the innermost when a request is sent, if it has no
    /// row of its own; see [`Start::Argument`].
    Innermost,
}

/// A function whose frames tell something.
#[derive(Clone, Copy, Debug)]
pub(super) struct Row {
    /// Whose frames.
    pub(super) place: Place,
    /// Whether nothing of interest lies outside such a frame.
    pub(super) last: bool,
    /// Whether nothing outside such a frame tells of an answer that is given
    /// within it.
    pub(super) answers: bool,
    /// Whether each runs in a task that serves one connection and no other.
    pub(super) bound: bool,
    /// Whether what they begin was queued by others than their contexts tell.
    pub(super) foreign: bool,
    /// What they tell.
    pub(super) values: &'static [Want],
}

/// A framework, or a server whose frames hold what it serves.
#[derive(Clone, Copy, Debug)]
pub(super) struct Framework {
    /// Its distribution, normalized.
    pub(super) name: &'static str,
    /// The module without which it is not in use.
    pub(super) module: &'static str,
    /// Whether it routes requests (and is not a mere server).
    pub(super) routes: bool,
    /// More modules in which its names are found.
    pub(super) names: &'static [&'static str],
    /// Module and variable of the `ContextVar` that it resets when it lets go
    /// of a request.
    pub(super) context_variable: Option<(&'static str, &'static str)>,
    /// Exceptions that are no failures, by module and qualified name; those
    /// that derive from them neither.
    pub(super) handled: &'static [&'static str],
    /// Modules of frameworks that leave nothing to tell.
    pub(super) unless: &'static [&'static str],
    /// Its rows.
    pub(super) rows: &'static [Row],
}

/// A function that calls WSGI applications and writes what they return.
#[derive(Clone, Copy, Debug)]
pub(super) struct WsgiServer {
    /// Its module.
    pub(super) module: &'static str,
    /// Its qualified name.
    pub(super) function: &'static str,
    /// Local variable and path to the environment.
    pub(super) environ: (&'static str, &'static [Go]),
    /// Local variable and path to the application.
    pub(super) application: (&'static str, &'static [Go]),
    /// Local variable and path to what the application returned.
    pub(super) iterable: (&'static str, &'static [Go]),
}

impl Want {
    /// What the last object of the path is taken for.
    pub(super) fn terminal(&self) -> u32 {
        let kind = match self.role {
            Role::Condition(Condition::Size(_)) => return terminal::SIZE,
            Role::Condition(Condition::Nothing) => return terminal::NOTHING,
            Role::Connection {
                via: Via::Socket, ..
            } => return terminal::SOCKET,
            Role::Connection {
                via: Via::Uvloop, ..
            } => return terminal::UVLOOP,
            Role::Statement => return STATEMENT,
            Role::WholeRoute
            | Role::SlashlessRoute
            | Role::ViewName
            | Role::Path
            | Role::Method => value::TEXT,
            Role::Leaf
            | Role::LeafContext
            | Role::Root
            | Role::Wsgi(_)
            | Role::Handler
            | Role::Application
            | Role::Default
            | Role::Catchers(_) => return UNTYPED,
            Role::Instance => value::OBJECT,
            Role::Exception => value::EXCEPTION,
        };
        kind.into()
    }
}

const fn at(moment: u8, role: Role, start: Start, path: &'static [Go]) -> Want {
    Want {
        role,
        moments: 1 << moment,
        start,
        path,
    }
}

const fn answering(role: Role, start: Start, path: &'static [Go]) -> Want {
    at(moment::RESPONSE, role, start, path)
}

pub(super) const fn stating(role: Role, start: Start, path: &'static [Go]) -> Want {
    at(moment::STATEMENT, role, start, path)
}

const fn resetting(role: Role, start: Start, path: &'static [Go]) -> Want {
    at(moment::RESET, role, start, path)
}

const fn raised(role: Role, start: Start, path: &'static [Go]) -> Want {
    at(moment::RAISED, role, start, path)
}

pub(super) const fn row(
    module: &'static str,
    function: &'static str,
    values: &'static [Want],
) -> Row {
    Row {
        place: Place::Function(module, function),
        last: false,
        answers: false,
        bound: false,
        foreign: false,
        values,
    }
}

/// The row of whatever frame is the innermost.
pub(super) const fn innermost(values: &'static [Want]) -> Row {
    Row {
        place: Place::Innermost,
        ..row("", "", values)
    }
}

/// As [`row`], for frames within which all that tells of an answer is.
const fn answers(module: &'static str, function: &'static str, values: &'static [Want]) -> Row {
    Row {
        place: Place::Function(module, function),
        last: false,
        answers: true,
        bound: false,
        foreign: false,
        values,
    }
}

const fn last(module: &'static str, function: &'static str, values: &'static [Want]) -> Row {
    Row {
        place: Place::Function(module, function),
        last: true,
        answers: false,
        bound: false,
        foreign: false,
        values,
    }
}

use Go::Attribute;

/// Functions of WSGI servers.
pub(super) const WSGI_SERVERS: &[WsgiServer] = &[
    WsgiServer {
        module: "gunicorn.workers.sync",
        function: "SyncWorker.handle_request",
        environ: ("environ", &[]),
        application: ("self", &[Attribute("wsgi")]),
        iterable: ("respiter", &[]),
    },
    WsgiServer {
        module: "gunicorn.workers.gthread",
        function: "ThreadWorker.handle_request",
        environ: ("environ", &[]),
        application: ("self", &[Attribute("wsgi")]),
        iterable: ("respiter", &[]),
    },
    WsgiServer {
        module: "gunicorn.workers.base_async",
        function: "AsyncWorker.handle_request",
        environ: ("environ", &[]),
        application: ("self", &[Attribute("wsgi")]),
        iterable: ("respiter", &[]),
    },
    WsgiServer {
        module: "wsgiref.handlers",
        function: "BaseHandler.run",
        environ: ("self", &[Attribute("environ")]),
        application: ("application", &[]),
        iterable: ("self", &[Attribute("result")]),
    },
    WsgiServer {
        module: "waitress.task",
        function: "WSGITask.execute",
        environ: ("environ", &[]),
        application: (
            "self",
            &[
                Attribute("channel"),
                Attribute("server"),
                Attribute("application"),
            ],
        ),
        iterable: ("app_iter", &[]),
    },
    WsgiServer {
        module: "werkzeug.serving",
        function: "WSGIRequestHandler.run_wsgi",
        environ: ("environ", &[]),
        application: ("self", &[Attribute("server"), Attribute("app")]),
        iterable: ("application_iter", &[]),
    },
    WsgiServer {
        module: "werkzeug.serving",
        function: "WSGIRequestHandler.run_wsgi.<locals>.execute",
        environ: ("environ", &[]),
        application: ("self", &[Attribute("server"), Attribute("app")]),
        iterable: ("application_iter", &[]),
    },
];
