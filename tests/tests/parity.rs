//! The same applications and requests under `opentelemetry-instrument` and,
//! untouched, under the agent: what differs must be in
//! `tests/fixtures/parity/differences.txt`, and nothing else may be there.
//!
//! `cargo xtask parity` runs it; it needs root.

#![expect(clippy::print_stdout, reason = "the difference is what it is for")]

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use otel_ebpf_tests::agent::Agent;
use otel_ebpf_tests::app::{App, Service};
use otel_ebpf_tests::databases::Database;
use otel_ebpf_tests::frameworks::{Caller, Case, Request, get, named, send};
use otel_ebpf_tests::parity::{Difference, Rule, Side, differences, rules};
use otel_ebpf_tests::process::{PATIENCE, Signal, path_from};
use otel_ebpf_tests::receiver::{Received, Receiver};
use otel_ebpf_tests::trace::{Kind, from_received};

/// The cases of `frameworks` for which there is an instrumentation.
const INSTRUMENTED: &[&str] = &[
    "flask_gthread",
    "django_gthread",
    "django_rest_gthread",
    "django_asgi_asyncio",
    "fastapi_asyncio",
    "starlette_asyncio",
    "aiohttp_own_server",
    "tornado_own_server",
    "falcon_gthread",
    "pyramid_gthread",
];
/// What the applications are asked for that serve the other live tests, with
/// every client library.
const FLASK_APP: &[Request] = &[
    get("/items/7?color=red&size=2", 200),
    get("/status/204", 204),
    get("/error", 500),
    get("/missing", 404),
    get("/downstream?id=requests&client=requests", 200),
    get("/downstream?id=urllib3&client=urllib3", 200),
];
const FASTAPI_APP: &[Request] = &[
    get("/items/7?color=red&size=2", 200),
    get("/status/204", 204),
    get("/error", 500),
    get("/missing", 404),
    get("/downstream?id=httpx&client=httpx", 200),
    get("/downstream?id=aiohttp&client=aiohttp", 200),
    get("/threadpool?id=requests&client=requests", 200),
];
/// What the clients of databases are asked for, in threads and on an event
/// loop.
const QUERIES: &[Request] = &[get("/statements", 200), get("/details", 200)];
const AWAITED: &[Request] = &[get("/details", 200), get("/layers", 200)];
/// What the clients of SQLite are asked for. Their SQLAlchemy, which would tell
/// each query twice, is turned off, or their `sqlite3`.
const SQLITE: &[Request] = &[get("/sqlite3", 200), get("/sqlalchemy", 200)];
/// Their framework: as for databases, without servers.
const IN_PROCESS: &str = "sqlite";
/// The framework of the cases that need databases.
const DATABASES: &str = "databases";
/// What the first request of each run carries (W3C Trace Context).
const TRACEPARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
/// Settings of the in-process instrumentation: stable conventions, spans only.
const SETTINGS: &[(&str, &str)] = &[
    ("OTEL_SEMCONV_STABILITY_OPT_IN", "http,database"),
    ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf"),
    ("OTEL_TRACES_EXPORTER", "otlp"),
    ("OTEL_METRICS_EXPORTER", "none"),
    ("OTEL_LOGS_EXPORTER", "none"),
    ("OTEL_BSP_SCHEDULE_DELAY", "100"),
];

#[test]
fn only_what_is_meant_to_differ_from_the_in_process_instrumentation_does() -> Result<()> {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/parity/differences.txt");
    let rules = rules(&std::fs::read_to_string(&file)?)
        .with_context(|| format!("in {}", file.display()))?;
    let cases = cases()?;
    let mut found = Vec::new();
    for case in &cases {
        let theirs = instrumented(case).with_context(|| format!("{}, theirs", case.name))?;
        let ours = traced(case).with_context(|| format!("{}, ours", case.name))?;
        found.extend(differences(case.name, &theirs, &ours));
    }
    let names: Vec<&str> = cases.iter().map(|case| case.name).collect();
    judge(&rules, &found, &names)
}

/// The cases, or those whose name contains `OTEL_EBPF_PARITY`.
fn cases() -> Result<Vec<Case>> {
    let mut cases = vec![
        existing("flask_app", Service::gunicorn("flask_app"), FLASK_APP),
        existing("fastapi_app", Service::uvicorn("fastapi_app"), FASTAPI_APP),
    ];
    for name in INSTRUMENTED {
        cases.push(named(name)?);
    }
    // SQLAlchemy makes spans of its own, and its drivers again of the same
    // queries: in two of these cases it is alone.
    let alone = |service: Service| {
        let drivers = "psycopg2,psycopg,asyncpg,redis";
        service.env("OTEL_PYTHON_DISABLED_INSTRUMENTATIONS", drivers)
    };
    let (threads, awaited) = (
        Service::gunicorn("databases_flask"),
        Service::uvicorn("databases_app"),
    );
    for (name, service, requests) in [
        ("databases_flask", threads.clone(), QUERIES),
        ("databases_app", awaited.clone(), AWAITED),
        ("databases_sqlalchemy", alone(threads), &QUERIES[..1]),
        ("databases_sqlalchemy_async", alone(awaited), &AWAITED[1..]),
    ] {
        cases.push(Case {
            framework: DATABASES,
            ..existing(name, service, requests)
        });
    }
    for (name, disabled, requests) in [
        ("sqlite", "sqlalchemy", SQLITE),
        ("sqlite_sqlalchemy", "sqlite3", &SQLITE[1..]),
    ] {
        let service = Service::gunicorn("sqlite_parity");
        let service = service.env("OTEL_PYTHON_DISABLED_INSTRUMENTATIONS", disabled);
        cases.push(Case {
            framework: IN_PROCESS,
            ..existing(name, service, requests)
        });
    }
    if let Ok(wanted) = std::env::var("OTEL_EBPF_PARITY") {
        cases.retain(|case| case.name.contains(&wanted));
    }
    Ok(cases)
}

fn existing(name: &'static str, service: Service, requests: &[Request]) -> Case {
    Case {
        name,
        framework: name,
        service,
        requests: requests.to_vec(),
        caller: Caller::Known,
    }
}

/// What a case needs beside its application.
struct Scene {
    downstream: App,
    databases: Vec<(Database, &'static str, &'static str)>,
}

impl Scene {
    fn start(case: &Case) -> Result<Self> {
        let mut databases = Vec::new();
        if case.framework == DATABASES {
            databases.push((Database::postgres()?, "APP_POSTGRES", "POSTGRES"));
            databases.push((Database::redis()?, "APP_REDIS", "REDIS"));
        }
        Ok(Self {
            downstream: Service::uvicorn("downstream").start()?,
            databases,
        })
    }

    fn service(&self, case: &Case, python: &Path) -> Service {
        let service = case.service.clone().python(python);
        let service = service.downstream(&self.downstream);
        self.databases
            .iter()
            .fold(service, |service, (database, variable, _)| {
                service.env(variable, database.address.to_string())
            })
    }

    fn ports(&self, app: &App) -> Vec<(u16, &'static str)> {
        let mut ports = vec![(app.port(), "APP"), (self.downstream.port(), "DOWNSTREAM")];
        for (database, _, name) in &self.databases {
            ports.push((database.address.port(), name));
        }
        ports
    }
}

/// A run under `opentelemetry-instrument`.
fn instrumented(case: &Case) -> Result<Side> {
    let receiver = Receiver::start()?;
    let scene = Scene::start(case)?;
    let python = python(case)?;
    let endpoint = format!("http://{}", receiver.http);
    let mut service = scene
        .service(case, &python)
        .env("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint);
    for (name, value) in SETTINGS {
        service = service.env(name, *value);
    }
    if case.framework == "django" {
        // The instrumentation reads the settings before the application runs.
        let module = match case.name {
            "django_rest_gthread" => "frameworks.rest_settings",
            "django_asgi_asyncio" => "frameworks.django_asgi_settings",
            _ => "frameworks.django_settings",
        };
        service = service.env("DJANGO_SETTINGS_MODULE", module);
    }
    let launcher: OsString = python.with_file_name("opentelemetry-instrument").into();
    let mut app = service.start_under(&[launcher])?;
    ask(&app, &case.requests)?;
    let ports = scene.ports(&app);
    let waited = receiver.wait_until(PATIENCE, |received| served(received) >= case.requests.len());
    waited.with_context(|| app.group.log())?;
    // What is left is sent at the end.
    app.group.signal(Signal::TERM)?;
    app.group.wait(PATIENCE)?;
    Ok(Side {
        spans: from_received(&receiver.received())?,
        ports,
    })
}

/// A run under the agent.
fn traced(case: &Case) -> Result<Side> {
    let scene = Scene::start(case)?;
    let app = scene.service(case, &python(case)?).start()?;
    let agent = Agent::attach(&app.pids())?;
    ask(&app, &case.requests)?;
    let ended = agent.stop()?;
    ended.counters.assert_nothing_lost();
    Ok(Side {
        spans: ended.spans,
        ports: scene.ports(&app),
    })
}

fn python(case: &Case) -> Result<std::path::PathBuf> {
    if [DATABASES, IN_PROCESS].contains(&case.framework) {
        return path_from(
            "OTEL_EBPF_PARITY_DATABASES_PYTHON",
            "../target/python/parity-databases/bin/python",
        );
    }
    path_from(
        "OTEL_EBPF_PARITY_PYTHON",
        "../target/python/parity/bin/python",
    )
}

/// Sends the requests, each with its own name as user agent.
fn ask(app: &App, requests: &[Request]) -> Result<()> {
    let headers = |number: usize| {
        let mut headers = vec![("User-Agent", requests[number].line())];
        if number == 0 {
            headers.push(("traceparent", TRACEPARENT.to_owned()));
        }
        headers
    };
    send(app, requests, headers).with_context(|| app.group.log())
}

/// How many requests with a user agent were told of so far.
fn served(received: &[Received]) -> usize {
    let spans = from_received(received).unwrap_or_default();
    let served = spans
        .iter()
        .filter(|span| span.kind == Kind::Server && !span.text("user_agent.original").is_empty());
    served.count()
}

/// Prints what differs, by rule; fails where a rule or a difference is left.
fn judge(rules: &[Rule], found: &[Difference], cases: &[&str]) -> Result<()> {
    ensure!(!cases.is_empty(), "there is no such case");
    let mut used: BTreeMap<usize, usize> = BTreeMap::new();
    let mut unexplained = Vec::new();
    for difference in found {
        let mut covering = rules.iter().filter(|rule| rule.covers(difference));
        match covering.next() {
            Some(rule) => *used.entry(rule.line).or_default() += 1,
            None => unexplained.push(difference),
        }
        for rule in covering {
            *used.entry(rule.line).or_default() += 1;
        }
    }
    println!("{} differences in {} cases", found.len(), cases.len());
    for rule in rules {
        if let Some(count) = used.get(&rule.line) {
            println!("{count:>5} by line {:<4} {}", rule.line, rule.reason);
        }
    }
    // With a part of the cases only, a rule for many may be for another.
    let whole = std::env::var_os("OTEL_EBPF_PARITY").is_none();
    let idle: Vec<&Rule> = rules
        .iter()
        .filter(|rule| !used.contains_key(&rule.line) && whole && rule.is_due(cases))
        .collect();
    for rule in &idle {
        println!("line {} is for nothing: {}", rule.line, rule.reason);
    }
    for difference in &unexplained {
        println!("NOT MEANT: {difference}");
    }
    if !unexplained.is_empty() || !idle.is_empty() {
        bail!(
            "{} differences without a reason, {} reasons without a difference",
            unexplained.len(),
            idle.len()
        );
    }
    Ok(())
}
