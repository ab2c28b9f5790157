//! Live tests of database spans: real drivers against real servers.
//!
//! Needs root, BPF, Debian's PostgreSQL and Redis, and the Python environments
//! of `cargo xtask test`.

#![expect(clippy::print_stderr, reason = "the counts are what the test is for")]

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use otel_ebpf_tests::agent::{Agent, AgentOptions};
use otel_ebpf_tests::app::{App, Service};
use otel_ebpf_tests::databases::Database;
use otel_ebpf_tests::load::{Load, calls_of, parameter};
use otel_ebpf_tests::process::{PATIENCE, path_from, wait_for};
use otel_ebpf_tests::trace::{Kind, Span, children, only};
use serde_json::json;

/// Requests of each load, 64 at a time.
const REQUESTS: usize = 200;
/// A ring in which nothing is lost while two cores do the work of three.
const RING: [&str; 2] = ["--ring-size", "64"];

/// Both servers, and a service that uses them.
struct Scene {
    postgres: Database,
    redis: Database,
    app: App,
}

impl Scene {
    fn start(service: Service) -> Self {
        Self::with(Database::postgres().expect("PostgreSQL"), service)
    }

    fn with(postgres: Database, service: Service) -> Self {
        let redis = Database::redis().expect("Redis");
        let app = service
            .python(python())
            .env("APP_POSTGRES", postgres.address.to_string())
            .env("APP_REDIS", redis.address.to_string())
            .start()
            .expect("the service");
        Self {
            postgres,
            redis,
            app,
        }
    }

    fn attach(&self) -> Agent {
        AgentOptions::new(&[self.app.server_pid()])
            .arguments(&RING)
            .start()
            .expect("the agent")
    }

    fn get(&self, path: &str) {
        let answer = self.app.connect().and_then(|mut client| client.get(path));
        let answer = answer.expect("an answer");
        assert_eq!(answer.status, 200, "{}", self.app.group.log());
    }
}

fn python() -> PathBuf {
    path_from(
        "OTEL_EBPF_DATABASES_PYTHON",
        "../target/python/databases/bin/python",
    )
    .expect("the environment of the database clients")
}

/// The id that a query was marked with, and its number.
fn mark(span: &Span) -> Option<(String, usize)> {
    let text = span.text("db.query.text");
    let mark = match span.text("db.stored_procedure.name") {
        "" => text
            .split('"')
            .find(|part| part.starts_with("load"))?
            .to_owned(),
        name => name.replacen('_', "-", 1),
    };
    let (id, call) = mark.rsplit_once('_')?;
    Some((id.to_owned(), call.parse().ok()?))
}

/// Puts a service under one load per path, all of them marked, and asserts
/// that every query is under its own request and that no value shows.
fn check_loads(service: Service, paths: &[&str]) {
    let scene = Scene::start(service);
    let agent = scene.attach();
    let mut expected = BTreeMap::new();
    for (index, path) in paths.iter().enumerate() {
        let load = Load::new(&scene.app.address, path, &format!("load{index}"), REQUESTS);
        let sent = load.run();
        assert!(sent.failures.is_empty(), "{path}: {:#?}", sent.failures);
        let queries: usize = (0..REQUESTS)
            .map(|number| calls_of(&format!("load{index}-{number}")))
            .sum();
        expected.insert(*path, queries);
    }
    let wanted: usize = expected.values().sum();
    let all = wait_for("every query", PATIENCE, || {
        let spans = agent.spans()?;
        let marked = spans.iter().filter(|span| mark(span).is_some()).count();
        Ok((marked >= wanted).then_some(()))
    });
    let ended = agent.stop().expect("the agent ends");
    let by_id: BTreeMap<&str, &Span> = ended
        .spans
        .iter()
        .map(|span| (span.span_id.as_str(), span))
        .collect();
    let mut seen = BTreeSet::new();
    let mut placed = BTreeMap::<&str, usize>::new();
    for span in ended.spans.iter().filter(|span| span.kind == Kind::Client) {
        assert!(
            !format!("{:?}", span.attributes).contains("secret"),
            "{span:#?}"
        );
        let Some((id, call)) = mark(span) else {
            continue;
        };
        assert!(seen.insert((id.clone(), call)), "{id} {call} twice");
        let parent = span.parent.as_deref().and_then(|parent| by_id.get(parent));
        let parent = parent.unwrap_or_else(|| {
            panic!("{id} {call} has no parent: {:#?} {span:#?}", ended.counters)
        });
        let own = parameter(parent.text("url.query"), "id");
        assert_eq!(own, Some(id.as_str()), "{span:#?} under {parent:#?}");
        let path = paths.iter().find(|path| **path == parent.text("url.path"));
        *placed.entry(path.expect("a path")).or_default() += 1;
    }
    eprintln!("{placed:?}");
    all.unwrap_or_else(|error| panic!("{error:#}: {placed:?}: {:#?}", ended.counters));
    assert_eq!(placed, expected);
    assert_eq!(ended.counters.get("stream.abandoned.malformed"), 0);
}

#[test]
fn queries_of_an_event_loop_are_under_their_requests() {
    check_loads(
        Service::uvicorn("databases_app"),
        &["/asyncpg", "/psycopg", "/pipeline", "/sqlalchemy", "/redis"],
    );
}

#[test]
fn queries_over_uvloop_are_under_their_requests() {
    check_loads(
        Service::uvloop("databases_app"),
        &["/asyncpg", "/sqlalchemy", "/redis"],
    );
}

#[test]
fn queries_of_threads_are_under_their_requests() {
    check_loads(
        Service::gunicorn("databases_flask"),
        &["/psycopg2", "/psycopg", "/sqlalchemy", "/django", "/redis"],
    );
}

#[test]
fn queries_within_tls_are_told_as_others_are() {
    let postgres = Database::postgres_with_tls().expect("PostgreSQL");
    let scene = Scene::with(postgres, Service::uvicorn("databases_app"));
    // What the drivers load at their first connection is found within seconds.
    scene.get("/tls?id=load-0");
    let agent = scene.attach();
    scene.get("/tls?id=load-1");
    let spans = agent.spans_under("/tls", 3).expect("the queries");
    let server = only(&spans, Kind::Server, "/tls");
    let mut texts: Vec<&str> = children(&spans, server)
        .iter()
        .filter(|span| mark(span).is_some())
        .map(|span| span.text("db.query.text"))
        .collect();
    texts.sort_unstable();
    assert_eq!(
        texts,
        [
            "select $1::text as \"load-1_0\"",
            "select %s as \"load-1_1\"",
            "select %s as \"load-1_2\"",
        ]
    );
    for span in children(&spans, server) {
        assert_eq!(span.text("db.namespace"), "shop", "{span:#?}");
    }
    assert!(!format!("{spans:?}").contains("secret"));
}

/// Names of the children in the order of their begin.
fn names(spans: &[Span], server: &Span) -> Vec<String> {
    let mut found = children(spans, server);
    found.sort_by_key(|span| span.start);
    found.iter().map(|span| span.name.clone()).collect()
}

fn named<'a>(spans: &'a [Span], server: &Span, name: &str) -> Vec<&'a Span> {
    let mut found = children(spans, server);
    found.retain(|span| span.name == name);
    found
}

#[test]
fn tells_what_asynchronous_drivers_did() {
    let scene = Scene::start(Service::uvicorn("databases_app"));
    let agent = scene.attach();
    scene.get("/details");
    let spans = agent.spans_under("/details", 11).expect("the queries");
    let server = only(&spans, Kind::Server, "/details");
    assert_eq!(
        names(&spans, server),
        [
            "select items",
            "select items generate_series",
            "select items generate_series",
            "select items generate_series",
            "BATCH insert items",
            "select nosuch",
            "BEGIN",
            "select items",
            "COMMIT",
            "SELECT",
            "PIPELINE",
        ]
    );
    let port = scene.postgres.address.port();
    let file = path_from("OTEL_EBPF_APPS", "apps").expect("the applications");
    let file = file.join("databases_app.py");
    let source = std::fs::read_to_string(&file).expect("the application");
    let line = |text: &str| {
        source
            .lines()
            .position(|line| line.contains(text))
            .map(|at| at + 1)
    };
    named(&spans, server, "select items")[0].assert_attributes(&json!({
        "db.system.name": "postgresql",
        "db.namespace": "shop",
        "db.query.summary": "select items",
        "db.query.text": "select * from items where id > $1",
        "db.response.returned_rows": 2,
        "server.address": "127.0.0.1",
        "server.port": port,
        "network.peer.address": "127.0.0.1",
        "network.peer.port": port,
        "code.function.name": "databases_app.details",
        "code.file.path": file.canonicalize().expect("the application"),
        "code.line.number": line("select * from items where"),
    }));
    // Longer than what is copied of an answer.
    let mut long = named(&spans, server, "select items generate_series");
    long.sort_by_key(|span| span.start);
    let rows = long
        .iter()
        .map(|span| span.number("db.response.returned_rows"));
    // Of a `bytea`, nothing proves where the answer ends.
    assert_eq!(rows.collect::<Vec<_>>(), [Some(2000), Some(600), None]);
    let batch = named(&spans, server, "BATCH insert items")[0];
    assert_eq!(batch.number("db.operation.batch.size"), Some(3));
    let failed = named(&spans, server, "select nosuch")[0];
    assert!(failed.error && failed.message.is_empty());
    assert_eq!(failed.text("error.type"), "42P01");
    assert_eq!(failed.text("db.response.status_code"), "42P01");
    let port = scene.redis.address.port();
    named(&spans, server, "PIPELINE")[0].assert_attributes(&json!({
        "db.system.name": "redis",
        "db.namespace": "2",
        "db.operation.name": "PIPELINE",
        "db.query.text": "SET ? ?\nGET ?",
        "db.operation.batch.size": 2,
        "server.address": "127.0.0.1",
        "server.port": port,
        "network.peer.address": "127.0.0.1",
        "network.peer.port": port,
        "code.function.name": "databases_app.details",
        "code.file.path": file.canonicalize().expect("the application"),
        "code.line.number": line("pipeline.set("),
    }));
    scene.get("/arrays");
    let ended = agent.stop().expect("the agent ends");
    let server = only(&ended.spans, Kind::Server, "/arrays");
    let mut found = children(&ended.spans, server);
    found.retain(|span| span.text("db.query.text").contains("gen_random_uuid"));
    let rows = found
        .iter()
        .map(|span| span.number("db.response.returned_rows"));
    assert_eq!(rows.collect::<Vec<_>>(), [Some(750); 2], "{found:#?}");
}

#[test]
fn a_server_that_dies_fails_what_is_under_way() {
    let scene = Scene::start(Service::uvicorn("databases_app"));
    let agent = scene.attach();
    scene.get("/dying");
    let ended = agent.stop().expect("the agent ends");
    let server = only(&ended.spans, Kind::Server, "/dying");
    let mut failed = children(&ended.spans, server);
    failed.retain(|span| span.error);
    let [failed] = failed.as_slice() else {
        panic!("{failed:#?}");
    };
    assert_eq!(failed.text("error.type"), "connection_closed");
    assert_eq!(failed.name, "select generate_series", "{failed:#?}");
    assert_eq!(failed.number("db.response.returned_rows"), None);
}

#[test]
fn tells_statements_as_the_application_wrote_them() {
    let scene = Scene::start(Service::gunicorn("databases_flask"));
    let agent = scene.attach();
    scene.get("/statements");
    scene.get("/forms");
    agent.spans_under("/forms", 7).expect("the queries");
    let ended = agent.stop().expect("the agent ends");
    let mut found: Vec<&Span> = ["/statements", "/forms"]
        .iter()
        .flat_map(|path| children(&ended.spans, only(&ended.spans, Kind::Server, path)))
        .collect();
    found.retain(|span| span.text("db.query.text").contains("items"));
    found.sort_by_key(|span| span.start);
    let texts: Vec<&str> = found
        .iter()
        .map(|span| span.text("db.query.text"))
        .collect();
    let long = format!(
        "select id from items where {}",
        ["name = %s"; 150].join(" or ")
    );
    assert!(long.len() > 1024);
    let bytes = long.replace("select id", "select  id");
    let bytes = bytes.replace("where ", "where /* café */ ");
    assert_eq!(
        texts,
        [
            "select name from items where id = %s and name <> %s",
            "select name from items where id = %(id)s and name <> %(name)s",
            "SELECT \"items\".\"id\", \"items\".\"name\" FROM \"items\" \
             WHERE (\"items\".\"id\" IN (%s, %s) AND NOT (\"items\".\"name\" = %s))",
            "select  id from items where name <> %s -- why",
            "select  id from items where id = %(id)s",
            "select  id from items where id in %s and name <> %s",
            "select  name from items where name = %s",
            "select  name from items where name = %s",
            &long,
            "select  id from items where name = %s",
            "select  id from items where name >= %s",
            "select  id from items where name <= %s",
            "select  id from items where name < %s",
            "select  id from items where name > %s",
            // Put together of several texts: as it was sent.
            "select  id from \"items\" where name like ?",
            &bytes,
        ]
    );
    assert!(!format!("{:?}", ended.spans).contains("secret"));
}

/// The spans of two requests to a process that has turned these off.
fn spans_without(disabled: &str) -> Vec<Span> {
    let service = Service::gunicorn("databases_flask");
    let scene = Scene::start(service.env("OTEL_PYTHON_DISABLED_INSTRUMENTATIONS", disabled));
    let agent = scene.attach();
    scene.get("/statements");
    scene.get("/details");
    let ended = agent.stop().expect("the agent ends");
    assert!(ended.counters.get("spans.disabled") > 0, "{disabled}");
    ended.spans
}

/// Of which systems they are, and whether they have parents.
fn kinds(spans: &[Span]) -> BTreeSet<String> {
    let kind = |span: &Span| {
        let system = match span.kind {
            Kind::Server => "served",
            _ => span.text("db.system.name"),
        };
        let root = if span.parent.is_none() {
            ", a root"
        } else {
            ""
        };
        format!("{system}{root}")
    };
    spans.iter().map(kind).collect()
}

#[test]
fn spans_are_left_out_that_the_process_has_turned_off() {
    let check = |disabled: &str, expected: &[&str]| {
        let found = kinds(&spans_without(disabled));
        assert!(found.iter().eq(expected), "{disabled}: {found:?}");
    };
    check("psycopg2,psycopg,sqlalchemy", &["redis", "served, a root"]);
    // Calls know of no server span then, and begin traces.
    check("flask, django,redis,kafka", &["postgresql, a root"]);
}

#[test]
fn frames_tell_which_driver_was_turned_off() {
    // What SQLAlchemy sent stays, as it would tell of it.
    let spans = spans_without("psycopg2,psycopg");
    let sent = |text: &str| {
        let sent = |span: &&Span| span.text("db.query.text").contains(text);
        spans.iter().filter(sent).count()
    };
    assert_eq!(sent("where id = %(id)s and name <> %(name)s"), 1);
    assert_eq!(sent("items"), 1);
}

#[test]
fn tells_what_drivers_of_threads_did() {
    let scene = Scene::start(Service::gunicorn("databases_flask"));
    let agent = scene.attach();
    scene.get("/details");
    let spans = agent.spans_under("/details", 10).expect("the queries");
    let server = only(&spans, Kind::Server, "/details");
    assert_eq!(
        names(&spans, server),
        [
            "BEGIN",
            "insert items",
            "select items generate_series",
            "select nosuch",
            "ROLLBACK",
            "SELECT",
            "DEL",
            "SET",
            "LPUSH",
            "MULTI GET",
        ]
    );
    let insert = named(&spans, server, "insert items")[0];
    assert_eq!(
        insert.text("db.query.text"),
        "insert into items values (%s, %s)"
    );
    assert_eq!(insert.text("code.function.name"), "databases_flask.details");
    // More than a megabyte of rows.
    let long = named(&spans, server, "select items generate_series")[0];
    assert!(!long.error, "{long:#?}");
    assert_eq!(long.number("db.response.returned_rows"), Some(1500));
    let failed = named(&spans, server, "LPUSH")[0];
    assert!(failed.error);
    assert_eq!(failed.text("error.type"), "WRONGTYPE");
    let transaction = named(&spans, server, "MULTI GET")[0];
    assert_eq!(transaction.number("db.operation.batch.size"), Some(2));
    assert_eq!(transaction.text("db.namespace"), "2");
    scene.get("/large");
    let spans = agent.spans_under("/large", 5).expect("the queries");
    let mut large = children(&spans, only(&spans, Kind::Server, "/large"));
    large.retain(|span| span.text("db.query.text").starts_with("select"));
    large.sort_by_key(|span| span.start);
    let rows = large
        .iter()
        .map(|span| span.number("db.response.returned_rows"));
    assert_eq!(rows.collect::<Vec<_>>(), [Some(1); 4], "{large:#?}");
    let texts: Vec<&str> = large
        .iter()
        .map(|span| span.text("db.query.text"))
        .collect();
    // What the second one's literal hides is all that follows.
    assert_eq!(
        texts,
        [
            "select repeat(?, ?) as large",
            "select ?",
            "select %b as bound",
            "select %s as next",
        ]
    );
}
