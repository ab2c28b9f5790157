//! Every framework's application under its usual servers: what the spans say
//! of route, handler and exception, beside what the framework says itself.
//!
//! `cargo xtask test` runs it; it needs root.

#![expect(clippy::print_stdout, reason = "a table for each application")]

use std::path::Path;

use anyhow::{Context, Result, ensure};
use otel_ebpf_tests::agent::{Agent, Ended};
use otel_ebpf_tests::app::{App, Service};
use otel_ebpf_tests::client::Connection;
use otel_ebpf_tests::process::path_from;
use otel_ebpf_tests::trace::{Event, Kind, Span, brief, matching};
use otel_ebpf_tests::truth::{self, Told};
use otel_ebpf_tests::{trace, traceback};

/// A part of the path of every file of the applications.
const FOLDER: &str = "/frameworks/";

/// What every application is asked for: method, path, status.
const REQUESTS: &[(&str, &str, u16)] = &[
    ("GET", "/users/7", 200),
    ("GET", "/plain", 200),
    ("PUT", "/users/7", 200),
    ("GET", "/users/7/orders/abc", 200),
    ("GET", "/shop/v1/items/5", 200),
    ("GET", "/call", 200),
    ("GET", "/boom", 500),
    ("GET", "/chained", 500),
    ("GET", "/handled", 500),
    ("GET", "/caught", 200),
    ("GET", "/gone", 404),
    ("GET", "/unavailable", 503),
    ("GET", "/nowhere", 404),
    ("GET", "/users/8", 200),
];

/// Whose frames are beneath the call of a client library when it sends.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Caller {
    /// The application's.
    Known,
    /// The library's only: it sends from a task or callback of its own.
    Hidden,
}

/// A framework's application under a server.
struct Case {
    /// Its framework, as the spans' scope has it.
    framework: &'static str,
    service: Service,
    /// What it is asked for beside [`REQUESTS`].
    further: &'static [(&'static str, &'static str, u16)],
    caller: Caller,
}

impl Case {
    fn new(framework: &'static str, service: Service) -> Self {
        Self {
            framework,
            service,
            further: &[],
            caller: Caller::Known,
        }
    }

    fn further(mut self, requests: &'static [(&'static str, &'static str, u16)]) -> Self {
        self.further = requests;
        self
    }

    fn hidden_caller(mut self) -> Self {
        self.caller = Caller::Hidden;
        self
    }

    /// Sends the requests to the application under the agent and compares.
    fn check(self) -> Result<()> {
        let python = path_from(
            "OTEL_EBPF_FRAMEWORKS_PYTHON",
            "../target/python/frameworks/bin/python",
        )?;
        let folder = tempfile::tempdir()?;
        let truth = folder.path().join("truth.jsonl");
        let downstream = Service::uvicorn("downstream").start()?;
        let app = self
            .service
            .python(python)
            .env("APP_TRUTH", &truth)
            .downstream(&downstream)
            .start()?;
        let agent = Agent::attach(&app.pids())?;
        let requests = [REQUESTS, self.further].concat();
        send(&app, &requests).with_context(|| app.group.log())?;
        let ended = agent.stop()?;
        ended.counters.assert_nothing_lost();
        let mut table = Table::default();
        let told = truth::read(&truth)?;
        for (method, path, status) in requests {
            let told = truth::of(&told, method, path)?;
            ensure!(told.status == status, "{method} {path} answers {told:#?}");
            table.server(self.framework, told, &ended);
        }
        let call = truth::of(&told, "GET", "/call")?;
        table.client(self.caller, call, &ended)?;
        println!("{}", table.lines.join("\n"));
        ensure!(
            table.differences.is_empty(),
            "{}\n{}\nspans:{}",
            table.differences.join("\n"),
            app.group.log(),
            brief(&ended.spans)
        );
        Ok(())
    }
}

/// Sends one after the other, on one connection as long as the server keeps it.
fn send(app: &App, requests: &[(&str, &str, u16)]) -> Result<()> {
    let mut connection: Option<Connection> = None;
    for (method, path, status) in requests {
        let mut current = match connection.take() {
            Some(current) => current,
            None => app.connect()?,
        };
        let body: &[u8] = if *method == "PUT" { b"{}" } else { b"" };
        let headers: &[_] = match body.is_empty() {
            true => &[],
            false => &[("Content-Type", "application/json")],
        };
        let response = current
            .request(method, path, headers, body)
            .with_context(|| format!("{method} {path}"))?;
        ensure!(
            response.status == *status,
            "{method} {path} answers {response:?}"
        );
        // uvicorn closes after an exception, and says so nowhere.
        let closes = response.status == 500
            || response
                .headers
                .iter()
                .any(|(name, value)| name == "connection" && value.eq_ignore_ascii_case("close"));
        connection = (!closes).then_some(current);
    }
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
        let file = std::fs::read_to_string(&handler.file)?;
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
        let within = self.span.start <= event.at && event.at <= self.span.end;
        self.expect("time within the span", &within, &true);
        self.stacktrace(told, event, &error.stacktrace);
    }

    fn stacktrace(&mut self, told: &Told, event: &Event, expected: &str) {
        let found = event.text("exception.stacktrace");
        if let Some(difference) = traceback::difference(found, expected, FOLDER) {
            self.differences.push(format!(
                "stacktrace: {difference}found:\n{found}\nexpected:\n{expected}"
            ));
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

/// gunicorn with one sync worker.
fn sync_gunicorn(module: &str) -> Service {
    Service::gunicorn(module).arguments(&["--worker-class", "sync", "--threads", "1"])
}

// === WSGI ===

const PARTS: &[(&str, &str, u16)] = &[("GET", "/parts/3", 200)];

#[test]
fn flask_gthread() -> Result<()> {
    Case::new("flask", Service::gunicorn("frameworks.flask_app"))
        .further(PARTS)
        .check()
}

#[test]
fn flask_sync() -> Result<()> {
    Case::new("flask", sync_gunicorn("frameworks.flask_app"))
        .further(PARTS)
        .check()
}

#[test]
fn django_gthread() -> Result<()> {
    Case::new("django", Service::gunicorn("frameworks.django_app"))
        .further(PARTS)
        .check()
}

#[test]
fn django_sync() -> Result<()> {
    Case::new("django", sync_gunicorn("frameworks.django_app"))
        .further(PARTS)
        .check()
}

#[test]
fn rest_framework_gthread() -> Result<()> {
    Case::new("django", Service::gunicorn("frameworks.rest_wsgi")).check()
}

#[test]
fn rest_framework_sync() -> Result<()> {
    Case::new("django", sync_gunicorn("frameworks.rest_wsgi")).check()
}

#[test]
fn falcon_gthread() -> Result<()> {
    Case::new("falcon", Service::gunicorn("frameworks.falcon_app")).check()
}

#[test]
fn falcon_sync() -> Result<()> {
    Case::new("falcon", sync_gunicorn("frameworks.falcon_app")).check()
}

#[test]
fn pyramid_gthread() -> Result<()> {
    let service = Service::gunicorn("frameworks.pyramid_app:application()");
    Case::new("pyramid", service).further(PARTS).check()
}

#[test]
fn pyramid_sync() -> Result<()> {
    let service = sync_gunicorn("frameworks.pyramid_app:application()");
    Case::new("pyramid", service).further(PARTS).check()
}

#[test]
fn bottle_gthread() -> Result<()> {
    Case::new("bottle", Service::gunicorn("frameworks.bottle_app")).check()
}

#[test]
fn bottle_sync() -> Result<()> {
    Case::new("bottle", sync_gunicorn("frameworks.bottle_app")).check()
}

// === ASGI ===

const FASTAPI: &[(&str, &str, u16)] = &[
    ("GET", "/warehouse/parts/3", 200),
    ("GET", "/boom/thread", 500),
];
const STARLETTE: &[(&str, &str, u16)] = &[
    ("GET", "/parts/3", 200),
    ("GET", "/stores/berlin/items/9", 200),
];

#[test]
fn fastapi_asyncio() -> Result<()> {
    Case::new("fastapi", Service::uvicorn("frameworks.fastapi_app"))
        .further(FASTAPI)
        .check()
}

#[test]
fn fastapi_uvloop() -> Result<()> {
    Case::new("fastapi", Service::uvloop("frameworks.fastapi_app"))
        .further(FASTAPI)
        .check()
}

#[test]
fn starlette_asyncio() -> Result<()> {
    Case::new("starlette", Service::uvicorn("frameworks.starlette_app"))
        .further(STARLETTE)
        .check()
}

#[test]
fn starlette_uvloop() -> Result<()> {
    Case::new("starlette", Service::uvloop("frameworks.starlette_app"))
        .further(STARLETTE)
        .check()
}

#[test]
fn starlette_behind_a_base_http_middleware() -> Result<()> {
    for service in [
        Service::uvicorn("frameworks.starlette_app"),
        Service::uvloop("frameworks.starlette_app"),
    ] {
        Case::new("starlette", service.env("APP_MIDDLEWARE", "base"))
            .further(STARLETTE)
            .check()?;
    }
    Ok(())
}

#[test]
fn django_asgi_asyncio() -> Result<()> {
    Case::new("django", Service::uvicorn("frameworks.django_asgi_app"))
        .further(PARTS)
        .check()
}

#[test]
fn django_asgi_uvloop() -> Result<()> {
    Case::new("django", Service::uvloop("frameworks.django_asgi_app"))
        .further(PARTS)
        .check()
}

#[test]
fn litestar_asyncio() -> Result<()> {
    Case::new("litestar", Service::uvicorn("frameworks.litestar_app")).check()
}

#[test]
fn litestar_uvloop() -> Result<()> {
    Case::new("litestar", Service::uvloop("frameworks.litestar_app")).check()
}

#[test]
fn quart_hypercorn() -> Result<()> {
    Case::new("quart", Service::hypercorn("frameworks.quart_app"))
        .further(PARTS)
        .check()
}

#[test]
fn quart_uvicorn() -> Result<()> {
    Case::new("quart", Service::uvicorn("frameworks.quart_app"))
        .further(PARTS)
        .check()
}

// === Servers of their own ===

#[test]
fn aiohttp_own_server() -> Result<()> {
    let words = [
        "-m",
        "aiohttp.web",
        "--hostname",
        "{host}",
        "--port",
        "{port}",
        "frameworks.aiohttp_app:application",
    ];
    Case::new("aiohttp", Service::command("aiohttp_app", &words))
        .further(PARTS)
        .check()
}

#[test]
fn tornado_own_server() -> Result<()> {
    let words = ["-m", "frameworks.tornado_app", "{port}"];
    Case::new("tornado", Service::command("tornado_app", &words))
        .hidden_caller()
        .check()
}

#[test]
fn sanic_own_server() -> Result<()> {
    let words = [
        "-m",
        "sanic",
        "frameworks.sanic_app:app",
        "--host",
        "{host}",
        "--port",
        "{port}",
        "--single-process",
    ];
    Case::new("sanic", Service::command("sanic_app", &words))
        .further(PARTS)
        .check()
}
