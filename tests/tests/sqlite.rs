//! Live tests of the statements that SQLite runs in a traced process.
//!
//! Needs root, BPF and the Python environments of `cargo xtask test`.

use std::collections::BTreeSet;

use otel_ebpf_tests::agent::{Agent, AgentOptions};
use otel_ebpf_tests::app::{App, Service};
use otel_ebpf_tests::load::{Load, calls_of, parameter};
use otel_ebpf_tests::process::{PATIENCE, path_from, wait_for};
use otel_ebpf_tests::trace::{Kind, Span, brief, children, only};
use serde_json::json;
use tempfile::TempDir;

/// Requests of each load, 64 at a time.
const REQUESTS: usize = 200;

/// A service with a database in a folder of its own.
struct Scene {
    app: App,
    folder: TempDir,
}

impl Scene {
    fn start(service: Service) -> Self {
        let folder = TempDir::new().expect("a folder");
        let app = service
            .env("APP_DATABASE", folder.path().join("shop.db"))
            .start()
            .expect("the service");
        Self { app, folder }
    }

    fn attach(&self) -> Agent {
        AgentOptions::new(&[self.app.server_pid()])
            .arguments(&["--ring-size", "64"])
            .start()
            .expect("the agent")
    }

    fn get(&self, path: &str) {
        let answer = self.app.connect().and_then(|mut client| client.get(path));
        let answer = answer.expect("an answer");
        assert_eq!(answer.status, 200, "{}", self.app.group.log());
    }
}

/// The children in the order of their begin.
fn in_order<'a>(spans: &'a [Span], server: &Span) -> Vec<&'a Span> {
    let mut found = children(spans, server);
    found.sort_by_key(|span| span.start);
    found
}

#[test]
fn tells_what_sqlite_did() {
    let all = std::env::var("OTEL_EBPF_PYTHONS").expect("the interpreters");
    let pythons: Vec<&str> = all
        .split(':')
        .filter_map(|one| one.split_once('=').map(|(_, path)| path))
        .collect();
    assert!(!pythons.is_empty(), "{all}");
    for python in pythons {
        tells_what_sqlite_did_in(python);
    }
}

fn tells_what_sqlite_did_in(python: &str) {
    let scene = Scene::start(Service::uvicorn("sqlite_app").python(python));
    let agent = scene.attach();
    scene.get("/details");
    let spans = agent.spans_under("/details", 17).expect("the queries");
    let server = only(&spans, Kind::Server, "/details");
    let found = in_order(&spans, server);
    let names: Vec<&str> = found.iter().map(|span| &*span.name).collect();
    let mut expected = vec![
        "select items",
        "select items",
        "BEGIN",
        "insert items",
        "insert items",
        "ROLLBACK",
        "BEGIN",
        "update items",
        "COMMIT",
        "select items",
    ];
    expected.extend(["select items"; 6]);
    expected.push("create table items");
    assert_eq!(names, expected, "{found:#?}");

    let file = path_from("OTEL_EBPF_APPS", "apps").expect("the applications");
    let file = file.join("sqlite_app.py");
    let source = std::fs::read_to_string(&file).expect("the application");
    let line = |text: &str| {
        let mut lines = source.lines();
        lines.position(|line| line.contains(text)).map(|at| at + 1)
    };
    let database = scene.folder.path().canonicalize().expect("the folder");
    let database = database.join("shop.db");
    found[0].assert_attributes(&json!({
        "db.system.name": "sqlite",
        "db.namespace": database,
        "db.query.summary": "select items",
        "db.query.text": "select name from items where id = ?",
        "db.response.returned_rows": 1,
        "code.function.name": "sqlite_app.details",
        "code.file.path": file.canonicalize().expect("the application"),
        "code.line.number": line("select name from items where id = ?"),
    }));
    assert_eq!(found[1].number("db.response.returned_rows"), Some(3));
    assert_eq!(
        found[1].text("db.query.text"),
        "select name from items where id > ?"
    );
    assert_eq!(found[3].number("db.response.returned_rows"), None);
    // SQLITE_CONSTRAINT_UNIQUE.
    assert!(!found[3].error && found[4].error, "{found:#?}");
    assert_eq!(found[4].text("error.type"), "2067");
    assert_eq!(found[4].text("db.response.status_code"), "2067");
    assert_eq!(found[16].text("db.namespace"), ":memory:");
    // The same statement six times, with other parameters.
    assert_eq!(server.number("otel_ebpf.db.query.repeated"), Some(6));
    assert!(!format!("{found:?}").contains("secret"), "{found:#?}");
    let ended = agent.stop().expect("the agent ends");
    assert_eq!(ended.counters.get("lost"), 0);
    assert_eq!(ended.counters.get("discovery.without_sqlite"), 0);
}

/// The id that a query was marked with, and its number.
fn mark(span: &Span) -> Option<(String, usize)> {
    let text = span.text("db.query.text");
    let mark = text.split('"').find(|part| part.starts_with("load"))?;
    let (id, call) = mark.rsplit_once('_')?;
    Some((id.to_owned(), call.parse().ok()?))
}

/// Puts a service under one load per path, all of them marked. Asserts that
/// every query is told once, and under its own request.
fn check_loads(service: Service, paths: &[&str]) {
    let scene = Scene::start(service);
    let agent = scene.attach();
    let mut wanted = 0;
    for (index, path) in paths.iter().enumerate() {
        let load = Load::new(&scene.app.address, path, &format!("load{index}"), REQUESTS);
        let sent = load.run();
        assert!(sent.failures.is_empty(), "{path}: {:#?}", sent.failures);
        wanted += (0..REQUESTS)
            .map(|number| calls_of(&format!("load{index}-{number}")))
            .sum::<usize>();
    }
    let all = wait_for("every query", PATIENCE, || {
        let spans = agent.spans()?;
        let marked = spans.iter().filter(|span| mark(span).is_some()).count();
        Ok((marked >= wanted).then_some(()))
    });
    let ended = agent.stop().expect("the agent ends");
    let mut seen = BTreeSet::new();
    for span in ended.spans.iter().filter(|span| span.kind == Kind::Client) {
        let Some((id, call)) = mark(span) else {
            continue;
        };
        assert!(seen.insert((id.clone(), call)), "{id} {call} twice");
        assert_eq!(
            span.number("db.response.returned_rows"),
            Some(3),
            "{span:#?}"
        );
        let parent = ended
            .spans
            .iter()
            .find(|server| Some(&*server.span_id) == span.parent.as_deref());
        let parent = parent.unwrap_or_else(|| {
            panic!("{id} {call} has no parent: {:#?} {span:#?}", ended.counters)
        });
        let own = parameter(parent.text("url.query"), "id");
        assert_eq!(own, Some(id.as_str()), "{span:#?} under {parent:#?}");
    }
    all.unwrap_or_else(|error| panic!("{error:#}: {} of {wanted}", seen.len()));
    assert_eq!(seen.len(), wanted);
}

#[test]
fn statements_of_an_event_loop_and_of_its_threads_are_under_their_requests() {
    check_loads(Service::uvicorn("sqlite_app"), &["/loop", "/pool"]);
}

#[test]
fn statements_over_uvloop_are_under_their_requests() {
    check_loads(Service::uvloop("sqlite_app"), &["/loop", "/pool"]);
}

#[test]
fn statements_are_left_out_where_the_service_turns_them_off() {
    let service = Service::uvicorn("sqlite_app");
    let scene = Scene::start(service.env("OTEL_PYTHON_DISABLED_INSTRUMENTATIONS", "sqlite3"));
    let agent = scene.attach();
    scene.get("/loop?id=none&n=2");
    let ended = agent.stop().expect("the end of the agent");
    ended.counters.assert_nothing_lost();
    assert_eq!(ended.counters.get("spans.disabled"), 2);
    assert_eq!(ended.spans.len(), 1, "{}", brief(&ended.spans));
    only(&ended.spans, Kind::Server, "/loop");
}

/// A service that comes at SQLite through other libraries.
fn through_libraries() -> Service {
    let python = path_from(
        "OTEL_EBPF_DATABASES_PYTHON",
        "../target/python/databases/bin/python",
    );
    Service::uvicorn("sqlite_orms").python(python.expect("the interpreter"))
}

/// aiosqlite hands statements to a thread of its own, through a queue.
#[test]
fn statements_through_other_libraries_are_under_their_requests() {
    check_loads(
        through_libraries(),
        &["/sqlalchemy", "/django", "/aiosqlite", "/sqlalchemy/async"],
    );
}

#[test]
fn tells_the_line_above_sqlalchemy_and_django() {
    let scene = Scene::start(through_libraries());
    let agent = scene.attach();
    scene.get("/details");
    let spans = agent.spans_under("/details", 2).expect("the queries");
    let server = only(&spans, Kind::Server, "/details");
    let file = path_from("OTEL_EBPF_APPS", "apps").expect("the applications");
    let file = file.join("sqlite_orms.py");
    let source = std::fs::read_to_string(&file).expect("the application");
    let found = in_order(&spans, server);
    for comment in ["# Django's ORM", "# SQLAlchemy"] {
        let line = source.lines().position(|line| line.ends_with(comment));
        let line = line.and_then(|line| i64::try_from(line + 1).ok());
        // Beside them Django sets its connection up, as the line has it do.
        let of_line = found.iter().filter(|span| {
            span.number("code.line.number") == line
                && line.is_some()
                && span.text("db.query.text").contains("items")
        });
        assert_eq!(of_line.count(), 1, "{comment}: {found:#?}");
    }
    for span in &found {
        assert_eq!(span.text("code.function.name"), "sqlite_orms.details");
    }
    agent.stop().expect("the agent ends");
}
