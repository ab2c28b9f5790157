//! Live tests of the statements that SQLite runs in a traced process.
//!
//! Needs root, BPF and the Python environments of `cargo xtask test`.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use otel_ebpf_tests::agent::{Agent, AgentOptions, Ended};
use otel_ebpf_tests::app::{App, Service};
use otel_ebpf_tests::load::{Load, calls_of, parameter};
use otel_ebpf_tests::process::{PATIENCE, path_from, wait_for};
use otel_ebpf_tests::python::{Python, Running};
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

/// The applications' environment in every version of Python.
fn pythons() -> Vec<String> {
    let all = std::env::var("OTEL_EBPF_PYTHONS").expect("the interpreters");
    let paths = all.split(':').filter_map(|one| one.split_once('='));
    let pythons: Vec<String> = paths.map(|(_, path)| path.to_owned()).collect();
    assert!(!pythons.is_empty(), "{all}");
    pythons
}

#[test]
fn tells_what_sqlite_did() {
    for python in pythons() {
        tells_what_sqlite_did_in(&python);
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

/// What the thread of a request does after a call tells that it is over: the
/// answer, or the word to the event loop that has it sent.
#[test]
fn a_call_with_which_a_request_ends_is_told_with_it() {
    for service in [Service::uvicorn, Service::uvloop] {
        let scene = Scene::start(service("sqlite_app"));
        let agent = scene.attach();
        let paths = ["/many/loop", "/many/pool"];
        for path in paths {
            scene.get(path);
            let spans = agent.spans_under(path, 2).expect("both");
            let server = only(&spans, Kind::Server, path);
            let found = in_order(&spans, server);
            assert_eq!(told(found[1]), ("BATCH insert items", Some(2), ""));
            assert!(found[1].end < server.end, "{found:#?}");
        }
        let ended = agent.stop().expect("the agent ends");
        assert_eq!(ended.counters.get("statements.returned"), 2);
    }
}

/// What a span tells of a call: its name, how many statements it stands for,
/// and its error.
type Told<'a> = (&'a str, Option<i64>, &'a str);

/// What `sqlite_calls` must be told of, in the order of their begins.
const CALLS: &[Told<'_>] = &[
    ("create table items", None, ""),
    ("BATCH insert items", Some(1000), ""),
    ("insert items", None, ""),
    ("insert items", None, ""),
    ("BATCH insert items", Some(3), ""),
    ("insert items", None, ""),
    ("BATCH insert items", Some(2), ""),
    ("BATCH insert items", Some(4), ""),
    ("insert items", None, ""),
    // Of one row.
    ("insert items", None, ""),
    // What gives the rows runs in between.
    ("select", None, ""),
    ("BATCH insert items", Some(3), ""),
    ("select", None, ""),
    ("select", None, ""),
    // SQLITE_CONSTRAINT_PRIMARYKEY.
    ("BATCH insert items", Some(3), "1555"),
    ("BATCH delete items insert items select items", Some(3), ""),
    ("delete items", None, ""),
    ("BATCH select select", Some(2), ""),
    ("select", None, ""),
    ("BATCH delete items insert items", Some(2), "1555"),
    // SQLITE_ERROR: they do not compile.
    ("select items", None, "1"),
    ("sqlite", None, "1"),
    ("BATCH select select items select", Some(2), "1"),
    ("select", None, ""),
];

/// What it must be told of a database in a file: the names, and the fewest and
/// the most rows that SQLite may have been asked for. Some drivers ask for one
/// more than they give.
const CURSORS: &[(&str, Option<(i64, i64)>)] = &[
    ("create table items", None),
    ("insert items", None),
    ("attach", None),
    ("create table other.notes", None),
    ("select items", Some((1, 2))),
    ("select items", Some((2, 3))),
    ("select items", Some((2, 2))),
    ("select items", Some((2, 2))),
];

/// Asserts that cursors and their namespace are told: `found` is what they
/// ran, in order.
fn check_cursors(found: &[&Span], file: &str) {
    let names: Vec<&str> = found.iter().map(|span| &*span.name).collect();
    let expected: Vec<&str> = CURSORS.iter().map(|(name, _)| *name).collect();
    assert_eq!(names, expected, "{found:#?}");
    for (span, (_, rows)) in found.iter().zip(CURSORS) {
        // Whatever is attached, it is the main database's.
        assert_eq!(span.text("db.namespace"), file, "{span:#?}");
        let told = span.number("db.response.returned_rows");
        match (told, rows) {
            (Some(told), Some((least, most))) => {
                assert!((*least..=*most).contains(&told), "{span:#?}");
            }
            (told, rows) => assert!(told.is_none() && rows.is_none(), "{span:#?}"),
        }
    }
    // The cursor that is left open is open in its span, too.
    let [.., left_open, _, _, last] = found else {
        panic!("{found:#?}");
    };
    assert!(left_open.end > last.end, "{found:#?}");
}

/// The interpreters whose SQLite is looked for: the system's with every
/// version of Python, other systems' own, builds without the GIL, and a wheel
/// that has SQLite in its own module; with that module's name.
fn interpreters() -> Vec<(Python, &'static str)> {
    let own = (8..=13).filter_map(|minor| Python::pyenv(&format!("3.{minor}")));
    let others = [
        Python::system(),
        Python::debian("bullseye", "3.9"),
        Python::debian("trixie", "3.13"),
        Python::debian("forky", "3.14"),
        Python::free_threaded("3.13"),
        Python::free_threaded("3.14"),
    ];
    let wheel = (Python::here(databases_python()), "pysqlite3");
    own.chain(others.into_iter().flatten())
        .map(|python| (python, "sqlite3"))
        .chain([wheel])
        .collect()
}

/// An application that runs in each of the interpreters at a time, and does what
/// it does when it is told to.
struct Everywhere {
    running: Vec<(PathBuf, String, Running)>,
    agent: Agent,
}

impl Everywhere {
    fn start(application: &str) -> Self {
        let source = path_from("OTEL_EBPF_APPS", "apps").expect("the applications");
        let source = source.join(application);
        let running: Vec<_> = interpreters()
            .into_iter()
            .map(|(python, module)| {
                let script = python.script(&source).expect("made known to it");
                let mut command = python.command();
                command.arg(script).env("APP_SQLITE", module);
                let mut running = Running::start(&mut command).expect("it starts");
                let version = running.line().expect("SQLite's version");
                (python.program, version, running)
            })
            .collect();
        let pids: Vec<u32> = running
            .iter()
            .map(|(_, _, running)| running.pid())
            .collect();
        let options = AgentOptions::new(&pids).arguments(&["--ring-size", "64"]);
        let agent = options.start().expect("the agent");
        Self { running, agent }
    }

    /// Has them do it; the line that each writes at the end.
    fn go(&mut self) -> Vec<String> {
        let running = self.running.iter_mut();
        running
            .map(|(_, _, running)| {
                running.tell("go\n").expect("told");
                running.line().expect("a line")
            })
            .collect()
    }

    /// Ends the agent; the interpreters, with the spans of each in the order of
    /// their begin.
    fn stop(self) -> (Ended, Vec<(String, Vec<Span>, Running)>) {
        let ended = self.agent.stop().expect("the agent ends");
        assert_eq!(ended.counters.get("lost"), 0);
        for unseen in [
            "discovery.without_sqlite",
            "discovery.sqlite_calls_unseen",
            "discovery.sqlite_failures_unseen",
        ] {
            assert_eq!(ended.counters.get(unseen), 0, "{unseen}");
        }
        let running = self.running.into_iter();
        let all = running.map(|(program, version, running)| {
            let found = ended.spans.iter();
            let mut found: Vec<Span> = found
                .filter(|span| span.pid() == running.pid())
                .cloned()
                .collect();
            found.sort_by_key(|span| span.start);
            let name = format!("{}, SQLite {version}", program.display());
            (name, found, running)
        });
        let all = all.collect();
        (ended, all)
    }
}

/// What a span tells: its name, how many statements it stands for, and its
/// error.
fn told(span: &Span) -> Told<'_> {
    let size = span.number("db.operation.batch.size");
    (&*span.name, size, span.text("error.type"))
}

/// Every one of them at the same time.
#[test]
fn calls_and_failures_are_told_whatever_the_copy_of_sqlite() {
    let mut everywhere = Everywhere::start("sqlite_calls.py");
    let files = everywhere.go();
    let (ended, all) = everywhere.stop();
    for ((name, found, _running), file) in all.iter().zip(&files) {
        assert!(file.ends_with("/shop.db"), "{name}: {file}");
        let mut found: Vec<&Span> = found.iter().collect();
        let cursors = found.split_off(found.len().saturating_sub(CURSORS.len()));
        check_cursors(&cursors, file);
        let told: Vec<Told<'_>> = found.iter().map(|span| told(span)).collect();
        assert_eq!(told, CALLS, "{name}: {found:#?}");
        for span in &found {
            assert_eq!(span.text("db.namespace"), ":memory:", "{span:#?}");
            assert_eq!(span.error, !span.text("error.type").is_empty());
            assert!(span.end >= span.start && span.parent.is_none());
        }
        assert_eq!(found[1].text("code.function.name"), "__main__.many");
        assert_eq!(
            found[1].text("db.query.text"),
            "insert into items values (?, ?)"
        );
        assert_eq!(
            found[15].text("db.query.text"),
            "delete from items; insert into items values (?, ?); select * from items"
        );
        assert_eq!(
            found[20].text("db.query.text"),
            "select nothing from items where name = ?"
        );
    }
    assert!(!format!("{:?}", ended.spans).contains("secret"));
}

/// What `sqlite_last` must be told of, in the order of their begins.
const LAST: &[Told<'_>] = &[
    ("create table items", None, ""),
    ("BATCH insert items", Some(3), ""),
    ("BATCH select delete items", Some(2), ""),
    ("BATCH insert items", Some(3), ""),
    ("BATCH insert items", Some(2), ""),
    ("insert items", None, ""),
    ("BATCH insert items", Some(3), ""),
];

/// Nothing is needed of a call's thread but a system call after it: each is told
/// while its process waits.
#[test]
fn calls_that_nothing_follows_are_told_when_they_are_over() {
    let mut everywhere = Everywhere::start("sqlite_last.py");
    for line in everywhere.go() {
        assert_eq!(line, "done");
    }
    let wanted = LAST.len() * everywhere.running.len();
    let spans = everywhere.agent.wait_for_spans(wanted);
    assert_eq!(spans.expect("all of them").len(), wanted);
    let (ended, all) = everywhere.stop();
    for (name, found, _running) in &all {
        let told: Vec<Told<'_>> = found.iter().map(told).collect();
        assert_eq!(told, LAST, "{name}: {found:#?}");
        // Each has ended before what its process does next began.
        for pair in found.windows(2) {
            assert!(pair[0].end <= pair[1].start, "{name}: {found:#?}");
        }
    }
    let calls = u64::try_from(all.len() * (LAST.len() - 1)).expect("a few");
    assert_eq!(ended.counters.get("statements.returned"), calls);
}

/// What `sqlite_exec` must be told of, in the order of their begins.
const EXECUTED: &[(&str, Option<i64>, &str)] = &[
    ("create table items", None, ""),
    ("insert items", None, ""),
    ("select items", Some(2), ""),
    ("select items", Some(2), ""),
    // What its rows lead to.
    ("select", Some(1), ""),
    ("select", Some(1), ""),
    // Nobody wants more than one row.
    ("select items", Some(1), ""),
    // SQLITE_CONSTRAINT_PRIMARYKEY.
    ("insert items", None, "1555"),
    // SQLITE_ERROR: they do not compile.
    ("select items", None, "1"),
    ("sqlite", None, "1"),
    ("select items", None, "1"),
    // It fails when it runs.
    ("select items", Some(0), "1"),
];

/// C code runs statements in one call, and prepares some that it never runs:
/// whatever fails after that is no failure of them.
#[test]
fn statements_of_c_code_and_only_their_own_failures_are_told() {
    let mut everywhere = Everywhere::start("sqlite_exec.py");
    for line in everywhere.go() {
        assert_eq!(line, "done");
    }
    let (ended, all) = everywhere.stop();
    for (name, found, _running) in &all {
        let told: Vec<(&str, Option<i64>, &str)> = found
            .iter()
            .map(|span| {
                let rows = span.number("db.response.returned_rows");
                (&*span.name, rows, span.text("error.type"))
            })
            .collect();
        assert_eq!(told, EXECUTED, "{name}: {found:#?}");
        let texts: Vec<&str> = found
            .iter()
            .map(|span| span.text("db.query.text"))
            .collect();
        assert_eq!(texts[1], "insert into items values (?, ?), (?, ?);");
        assert_eq!(texts[10], "select nothing from items where name = ?");
        for span in found {
            assert_eq!(span.text("db.namespace"), ":memory:", "{span:#?}");
            assert!(span.end >= span.start && span.parent.is_none());
        }
        // Its rows lead to others, which end before it does.
        assert!(found[3].end >= found[5].end, "{name}: {found:#?}");
    }
    assert!(!format!("{:?}", ended.spans).contains("secret"));
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

/// Requests of greenlets that take turns on one thread, in the midst of their
/// calls. Only their inserts are looked at.
#[test]
fn calls_of_greenlets_that_take_turns_are_under_their_requests() {
    const ROWS: i64 = 4;
    let all = std::env::var("OTEL_EBPF_GREENLETS_PYTHONS").expect("the interpreters");
    let python = all
        .split(':')
        .filter_map(|one| one.split_once('='))
        .next_back();
    let (_, python) = python.expect("an interpreter");
    let service = Service::gunicorn("sqlite_greenlets").python(python);
    let scene = Scene::start(service.arguments(&["--worker-class", "gevent"]));
    let agent = scene.attach();
    let mut wanted = BTreeMap::new();
    for (index, path) in ["/many", "/inside", "/script"].iter().enumerate() {
        let load = Load::new(&scene.app.address, path, &format!("load{index}"), REQUESTS);
        let sent = load.run();
        assert!(sent.failures.is_empty(), "{path}: {:#?}", sent.failures);
        wanted.extend((0..REQUESTS).map(|number| (format!("load{index}-{number}"), ROWS)));
    }
    let inserted = |spans: &[Span]| {
        let mut found: BTreeMap<String, i64> = BTreeMap::new();
        for span in spans.iter().filter(|span| span.name.contains("insert")) {
            let (id, _) = mark(span).expect("a marked query");
            let size = span.number("db.operation.batch.size").unwrap_or(1);
            *found.entry(id).or_default() += size;
        }
        found
    };
    // What a thread did last is told when it does something else, or when the
    // agent ends.
    let ended = agent.stop().expect("the agent ends");
    ended.counters.assert_nothing_lost();
    assert_eq!(ended.counters.get("statements.orphans"), 0);
    assert_eq!(inserted(&ended.spans), wanted);
    for span in ended.spans.iter().filter(|span| span.kind == Kind::Client) {
        let (id, _) = mark(span).expect("a marked query");
        let mut servers = ended.spans.iter();
        let parent = servers.find(|server| Some(&*server.span_id) == span.parent.as_deref());
        let parent = parent.unwrap_or_else(|| panic!("{:#?} {span:#?}", ended.counters));
        let own = parameter(parent.text("url.query"), "id");
        assert_eq!(own, Some(id.as_str()), "{span:#?} under {parent:#?}");
    }
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

/// The interpreter with other libraries.
fn databases_python() -> PathBuf {
    let python = path_from(
        "OTEL_EBPF_DATABASES_PYTHON",
        "../target/python/databases/bin/python",
    );
    python.expect("the interpreter")
}

/// A service that comes at SQLite through other libraries.
fn through_libraries() -> Service {
    Service::uvicorn("sqlite_orms").python(databases_python())
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
