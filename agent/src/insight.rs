//! What the interpreter told about an exchange: its route, the functions that
//! served or made it, the exception that ended it.
//!
//! `python` reads it out of the process, next to the ring; `assemble` puts it
//! into the span. Only plain values: no addresses, no processes.

use std::sync::Arc;

use abi::record::Owner;

use crate::instrumentations::Libraries;
use crate::stream::Evidence;

/// Something learned at one moment, and what it is about.
#[derive(Clone, Debug, PartialEq)]
pub struct Insight {
    /// Which exchange.
    pub subject: Subject,
    /// When it was learned, monotonic nanoseconds.
    pub at: u64,
    /// The framework that routed the request, as its distribution is named
    /// (`flask`).
    pub framework: Option<&'static str>,
    /// The route that matched, in the framework's own notation, as
    /// `http.route` has it.
    pub route: Option<Arc<str>>,
    /// For a request that was served: the view function. For one that was
    /// sent: the innermost function of the application.
    pub code: Option<Arc<CodeLocation>>,
    /// For a request that is sent: whose bytes the connection had received
    /// last that a server's frame on the stack is serving.
    pub serving: Option<Owner>,
    /// For a request that is sent: the libraries whose frames sent it, if the
    /// process has turned off any.
    pub libraries: Option<Libraries>,
    /// For a query that is sent: its text as the driver or what is above it
    /// was given it. Whether it is this query's is not certain.
    pub statement: Option<Arc<str>>,
    /// An exception that the application did not handle.
    pub exception: Option<Box<Exception>>,
}

/// Which exchange an [`Insight`] is about.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Subject {
    /// The request that is being answered on this connection: the oldest
    /// whose answer was not seen to begin.
    Answering(u64),
    /// The request that is about to be sent on this connection.
    Sending(u64),
    /// The request that this evidence leads to.
    Owned(Evidence),
}

/// A place in source code (semantic conventions, `code.*`).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct CodeLocation {
    /// `code.function.name`: module and qualified name, `shop.views.index`.
    pub function: String,
    /// `code.file.path`, as the code object has it.
    pub path: String,
    /// `code.line.number`: of a view function its first line, of a caller the
    /// line that called.
    pub line: u32,
}

/// An exception (semantic conventions, `exception.*`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exception {
    /// `exception.type`: the qualified name, without `builtins`.
    pub type_name: String,
    /// `exception.message`: what `str()` makes of it, where that is known.
    pub message: Option<String>,
    /// `exception.stacktrace`, as Python prints it.
    pub stacktrace: String,
}

/// The names that [`Insight::framework`] takes.
pub const FRAMEWORKS: &[&str] = &[
    "aiohttp",
    "bottle",
    "django",
    "falcon",
    "fastapi",
    "flask",
    "litestar",
    "pyramid",
    "quart",
    "sanic",
    "starlette",
    "tornado",
];
