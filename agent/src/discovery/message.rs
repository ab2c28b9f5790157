//! What the operator is told of a process: which Python it runs, under which
//! server, with which libraries.

use super::open;
use crate::remote::Process;
use crate::target::interpreter::Interpreter;
use crate::target::process::ProcessInfo;

/// What was found, for the operator.
pub(super) fn found(pid: u32, process: &Process, interpreter: &Interpreter) -> String {
    let loaded = |wanted: Kind| {
        LIBRARIES
            .iter()
            .filter(|&&(name, kind)| {
                kind == wanted && interpreter.has_module(process, name).unwrap_or(false)
            })
            .map(|&(name, _)| name)
            .collect::<Vec<_>>()
            .join(", ")
    };
    let mut text = format!("tracing {pid}: Python {}", interpreter.version);
    for (label, list) in [
        ("server", loaded(Kind::Server)),
        ("with", loaded(Kind::Library)),
    ] {
        if !list.is_empty() {
            text.push_str(&format!(", {label} {list}"));
        }
    }
    text
}

/// Why a process has no interpreter yet, for the operator.
pub(super) fn no_python(pid: u32) -> Option<String> {
    let name = ProcessInfo::read(pid).ok()?;
    let reason = Interpreter::find_now(&open(pid).ok()?).err()?;
    Some(format!(
        "no Python in process {pid} ({}) so far: {reason}; its children are followed",
        name.executable_name()
    ))
}

/// Modules worth telling the operator about, and what they are.
const LIBRARIES: &[(&str, Kind)] = &[
    ("gunicorn", Kind::Server),
    ("uvicorn", Kind::Server),
    ("hypercorn", Kind::Server),
    ("daphne", Kind::Server),
    ("granian", Kind::Server),
    ("waitress", Kind::Server),
    ("uwsgi", Kind::Server),
    ("flask", Kind::Library),
    ("fastapi", Kind::Library),
    ("starlette", Kind::Library),
    ("django", Kind::Library),
    ("aiohttp", Kind::Library),
    ("tornado", Kind::Library),
    ("requests", Kind::Library),
    ("httpx", Kind::Library),
    ("urllib3", Kind::Library),
    ("uvloop", Kind::Library),
    ("greenlet", Kind::Library),
    ("gevent", Kind::Library),
    ("eventlet", Kind::Library),
];

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Server,
    Library,
}
