//! Every framework's application under its usual servers: what the spans say
//! of route, handler and exception, beside what the framework says itself.
//!
//! `cargo xtask test` runs it; it needs root.

#![expect(clippy::print_stdout, reason = "a table for each application")]

use std::ffi::OsString;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use otel_ebpf_tests::agent::{Agent, Ended};
use otel_ebpf_tests::app::Service;
use otel_ebpf_tests::frameworks::{Caller, Request, named, send};
use otel_ebpf_tests::process::{PATIENCE, path_from, wait_for};
use otel_ebpf_tests::python::CONTAINER;
use otel_ebpf_tests::trace::{Event, Kind, Span, brief, matching};
use otel_ebpf_tests::truth::{self, Told};
use otel_ebpf_tests::{trace, traceback};

/// A part of the path of every file of the applications.
const FOLDER: &str = "/apps/frameworks/";

/// Where a container has the applications, and nothing else is.
const CONTAINED: &str = "/mnt/apps";
/// Runs a command in a root directory of its own, `$1`, in which the working
/// directory is at `$2`.
const ENTER: &str = r#"
mount --rbind / "$1" && mount -t tmpfs none "$1${2%/*}" && mkdir "$1$2" &&
mount --bind "$PWD" "$1$2" && exec chroot "$1" sh -c 'cd "$1" && shift && exec "$@"' sh "${@:2}"
"#;

/// Sends the requests to an application under the agent and compares.
fn check(name: &str) -> Result<()> {
    check_under(name, &[])
}

/// The same in namespaces of its own for processes and mounts, and with
/// another root: what its memory says of paths leads nowhere from ours.
fn check_contained(name: &str) -> Result<()> {
    let root = tempfile::tempdir()?;
    let mut enter: Vec<OsString> = CONTAINER.map(OsString::from).into();
    enter.extend(["bash", "-c", ENTER, "bash"].map(OsString::from));
    enter.extend([root.path().into(), CONTAINED.into()]);
    ensure!(!Path::new(CONTAINED).exists(), "{CONTAINED} is there");
    check_under(name, &enter)
}

/// The same with a command before the server's.
fn check_under(name: &str, enter: &[OsString]) -> Result<()> {
    let case = named(name)?;
    let python = path_from(
        "OTEL_EBPF_FRAMEWORKS_PYTHON",
        "../target/python/frameworks/bin/python",
    )?;
    let folder = tempfile::tempdir()?;
    let truth = folder.path().join("truth.jsonl");
    let downstream = Service::uvicorn("downstream").start()?;
    let app = case
        .service
        .python(python)
        .env("APP_TRUTH", &truth)
        .downstream(&downstream)
        .start_under(enter)?;
    let pids = if enter.is_empty() {
        app.pids()
    } else {
        app.workers()
    };
    let agent = Agent::attach(&pids)?;
    send(&app, &case.requests, |_| Vec::new()).with_context(|| app.group.log())?;
    let ended = agent.stop()?;
    ended.counters.assert_nothing_lost();
    let mut table = Table::default();
    // Some tell when their server has the answer already, or its client.
    let told = wait_for("the truth of every request", PATIENCE, || {
        let told = truth::read(&truth)?;
        let is_told = |request: &Request| {
            let of = |told: &Told| told.method == request.method && told.path == request.target;
            told.iter().any(of)
        };
        Ok(case.requests.iter().all(is_told).then_some(told))
    })?;
    for request in case.requests {
        let told = truth::of(&told, request.method, request.target)?;
        ensure!(told.status == request.status, "it tells {told:#?}");
        table.server(case.framework, told, &ended);
    }
    let call = truth::of(&told, "GET", "/call")?;
    table.client(case.caller, call, &ended)?;
    println!("{name}\n{}", table.lines.join("\n"));
    ensure!(
        table.differences.is_empty(),
        "{}\n{}\nspans:{}",
        table.differences.join("\n"),
        app.group.log(),
        brief(&ended.spans)
    );
    Ok(())
}

/// A line for each request, and what was wrong.
#[derive(Default)]
struct Table {
    lines: Vec<String>,
    differences: Vec<String>,
}

impl Table {
    fn server(&mut self, framework: &str, told: &Told, ended: &Ended) {
        let request = format!("{} {}", told.method, told.path);
        let mut spans = matching(&ended.spans, Kind::Server, &told.path);
        spans.retain(|span| {
            span.target() == told.path && span.text("http.request.method") == told.method
        });
        let [span] = spans.as_slice() else {
            let message = format!("{request}: {} spans instead of one", spans.len());
            self.differences.push(message);
            return;
        };
        let mut row = Row::new(span);
        let name = match &told.route {
            Some(route) => format!("{} {route}", told.method),
            None => told.method.clone(),
        };
        row.expect("name", &span.name, &name);
        row.expect("http.route", &attribute(span, "http.route"), &told.route);
        if told.route.is_some() {
            row.expect("scope", &span.scope, &format!("otel-ebpf.{framework}"));
        }
        let handler = told.handler.as_ref();
        row.code(handler.map(|handler| (handler.name.as_str(), &*handler.file, handler.line)));
        let status = i64::from(told.status);
        row.expect(
            "status code",
            &span.number("http.response.status_code"),
            &Some(status),
        );
        row.expect("error", &span.error, &(told.status >= 500));
        row.exception(told);
        self.add(&request, row);
    }

    /// The call that the application made for `/call`.
    fn client(&mut self, caller: Caller, told: &Told, ended: &Ended) -> Result<()> {
        let calls: Vec<_> = ended
            .spans
            .iter()
            .filter(|span| span.kind == Kind::Client)
            .collect();
        let [span] = calls.as_slice() else {
            let message = format!("{} client spans instead of one", calls.len());
            self.differences.push(message);
            return Ok(());
        };
        let handler = told.handler.as_ref().context("/call has a handler")?;
        let path = match handler.file.strip_prefix(CONTAINED) {
            Some(rest) => path_from("OTEL_EBPF_APPS", "apps")?.join(rest.trim_start_matches('/')),
            None => handler.file.clone().into(),
        };
        let file = std::fs::read_to_string(path)?;
        let line = file.lines().position(|line| line.ends_with("# the call"));
        let line = u32::try_from(line.context("a line that ends with # the call")?)? + 1;
        let stem = Path::new(&handler.file).file_stem().unwrap_or_default();
        let module = match handler.name.split_once('.') {
            Some(("__main__", _)) => "__main__".to_owned(),
            _ => format!("frameworks.{}", stem.display()),
        };
        let function = format!("{module}.fetch_stock");
        let mut row = Row::new(span);
        row.expect("name", span.name.as_str(), "GET");
        row.expect("events", span.events.as_slice(), &[]);
        row.code((caller == Caller::Known).then_some((&*function, &*handler.file, line)));
        self.add("  its call", row);
        Ok(())
    }

    fn add(&mut self, request: &str, row: Row<'_>) {
        let Row { span, differences } = row;
        let verdict = if differences.is_empty() { "ok" } else { "NOT" };
        self.lines.push(format!(
            "{verdict:<4}{request:<24} {:<44} {:<44} {}",
            span.name,
            span.text("code.function.name"),
            span.events
                .iter()
                .map(|event| event.text("exception.type"))
                .collect::<Vec<_>>()
                .join(" ")
        ));
        let differences = differences
            .into_iter()
            .map(|difference| format!("{}: {difference}", request.trim()));
        self.differences.extend(differences);
    }
}

/// What a span says, being compared.
struct Row<'a> {
    span: &'a Span,
    differences: Vec<String>,
}

impl<'a> Row<'a> {
    fn new(span: &'a Span) -> Self {
        Self {
            span,
            differences: Vec::new(),
        }
    }

    fn expect<T: PartialEq + std::fmt::Debug + ?Sized>(
        &mut self,
        what: &str,
        found: &T,
        expected: &T,
    ) {
        if found != expected {
            self.differences
                .push(format!("{what} is {found:?} instead of {expected:?}"));
        }
    }

    /// The function: its name, file and line.
    fn code(&mut self, expected: Option<(&str, &str, u32)>) {
        let (name, file, line) = match expected {
            Some((name, file, line)) => (Some(name), Some(file), Some(i64::from(line))),
            None => (None, None, None),
        };
        let text = |value: Option<&str>| value.map(str::to_owned);
        for (key, expected) in [("code.function.name", name), ("code.file.path", file)] {
            self.expect(key, &attribute(self.span, key), &text(expected));
        }
        let key = "code.line.number";
        self.expect(key, &self.span.number(key), &line);
    }

    /// The exception that the application did not handle, or none.
    fn exception(&mut self, told: &Told) {
        let Some(error) = &told.error else {
            self.expect("events", self.span.events.as_slice(), &[]);
            self.expect("message", self.span.message.as_str(), "");
            return;
        };
        let message = format!("{}: {}", error.kind, error.message);
        self.expect("message", self.span.message.as_str(), message.as_str());
        let [event] = self.span.events.as_slice() else {
            let count = self.span.events.len();
            self.differences
                .push(format!("{count} events instead of an exception"));
            return;
        };
        self.expect("event", event.name.as_str(), "exception");
        self.expect("type", event.text("exception.type"), error.kind.as_str());
        self.expect(
            "message",
            event.text("exception.message"),
            error.message.as_str(),
        );
        let (start, end) = (self.span.start, self.span.end);
        if event.at < start || end < event.at {
            let at = event.at.cast_signed() - start.cast_signed();
            let message = format!("{at} ns into a span of {} ns", end - start);
            self.differences.push(message);
        }
        self.stacktrace(told, event, &error.stacktrace);
    }

    fn stacktrace(&mut self, told: &Told, event: &Event, expected: &str) {
        let found = event.text("exception.stacktrace");
        if let Some(difference) = traceback::difference(found, expected, FOLDER) {
            self.differences.push(format!("stacktrace: {difference}"));
        }
        if let Some(handler) = &told.handler
            && !traceback::has_frame(found, &handler.file, handler.simple_name())
        {
            self.differences
                .push(format!("no frame of {} in\n{found}", handler.name));
        }
    }
}

fn attribute(span: &Span, key: &str) -> Option<String> {
    let value: Option<&serde_json::Value> = trace::Attributes::get(&span.attributes, key);
    value.and_then(serde_json::Value::as_str).map(str::to_owned)
}

#[test]
fn flask_gthread() -> Result<()> {
    check("flask_gthread")
}

#[test]
fn flask_sync() -> Result<()> {
    check("flask_sync")
}

#[test]
fn django_gthread() -> Result<()> {
    check("django_gthread")
}

#[test]
fn django_sync() -> Result<()> {
    check("django_sync")
}

#[test]
fn django_rest_gthread() -> Result<()> {
    check("django_rest_gthread")
}

#[test]
fn django_rest_sync() -> Result<()> {
    check("django_rest_sync")
}

#[test]
fn falcon_gthread() -> Result<()> {
    check("falcon_gthread")
}

#[test]
fn falcon_sync() -> Result<()> {
    check("falcon_sync")
}

#[test]
fn pyramid_gthread() -> Result<()> {
    check("pyramid_gthread")
}

#[test]
fn pyramid_sync() -> Result<()> {
    check("pyramid_sync")
}

#[test]
fn bottle_gthread() -> Result<()> {
    check("bottle_gthread")
}

#[test]
fn bottle_sync() -> Result<()> {
    check("bottle_sync")
}

#[test]
fn fastapi_asyncio() -> Result<()> {
    check("fastapi_asyncio")
}

#[test]
fn fastapi_uvloop() -> Result<()> {
    check("fastapi_uvloop")
}

#[test]
fn starlette_asyncio() -> Result<()> {
    check("starlette_asyncio")
}

#[test]
fn starlette_uvloop() -> Result<()> {
    check("starlette_uvloop")
}

#[test]
fn starlette_middleware_asyncio() -> Result<()> {
    check("starlette_middleware_asyncio")
}

#[test]
fn starlette_middleware_uvloop() -> Result<()> {
    check("starlette_middleware_uvloop")
}

#[test]
fn django_asgi_asyncio() -> Result<()> {
    check("django_asgi_asyncio")
}

#[test]
fn django_asgi_uvloop() -> Result<()> {
    check("django_asgi_uvloop")
}

#[test]
fn falcon_asgi_asyncio() -> Result<()> {
    check("falcon_asgi_asyncio")
}

#[test]
fn falcon_asgi_uvloop() -> Result<()> {
    check("falcon_asgi_uvloop")
}

#[test]
fn litestar_asyncio() -> Result<()> {
    check("litestar_asyncio")
}

#[test]
fn litestar_uvloop() -> Result<()> {
    check("litestar_uvloop")
}

#[test]
fn quart_hypercorn() -> Result<()> {
    check("quart_hypercorn")
}

#[test]
fn quart_uvicorn() -> Result<()> {
    check("quart_uvicorn")
}

#[test]
fn aiohttp_own_server() -> Result<()> {
    check("aiohttp_own_server")
}

#[test]
fn tornado_own_server() -> Result<()> {
    check("tornado_own_server")
}

#[test]
fn sanic_own_server() -> Result<()> {
    check("sanic_own_server")
}

/// A case that no test names would pass unseen.
#[test]
fn django_in_a_container() -> Result<()> {
    check_contained("django_gthread")
}

#[test]
fn fastapi_in_a_container() -> Result<()> {
    check_contained("fastapi_uvloop")
}

#[test]
fn every_case_has_a_test() {
    let source = include_str!("frameworks.rs");
    for case in otel_ebpf_tests::frameworks::cases() {
        let test = format!("fn {}()", case.name);
        assert!(source.contains(&test), "there is no {test}");
    }
}
