//! What a process turns off by `OTEL_PYTHON_DISABLED_INSTRUMENTATIONS`: the
//! table of names and of the spans that each is about.
//!
//! In the process every library makes spans of its own, one around the other;
//! we make one, of what goes over the connection. It is left out if every
//! instrumentation that would have told of it is turned off. Which those are
//! is told by the frames of the call, and by what is imported where no frame
//! tells; a span of which it cannot be told stays.

use self::Part::{Bare, Driver, Layer, Plain, Served};

/// The name that stands for all.
const ALL: &str = "*";

/// What the spans of a row are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    /// Requests that are served by this framework; those in the list are
    /// imported by it and say nothing beside it.
    Served(&'static [&'static str]),
    /// Requests that are served where no framework is imported.
    Plain,
    /// Calls: the library speaks to the server itself.
    Driver,
    /// Calls likewise, from code without frames.
    Bare,
    /// Calls, through one of the drivers.
    Layer,
}

/// An instrumentation.
#[derive(Debug)]
struct Row {
    /// Its name; empty where there is none, so that only `*` turns it off.
    name: &'static str,
    /// The scope of the calls that it tells of.
    scope: &'static str,
    part: Part,
    /// Modules whose frames are the library's. One that has the first of them
    /// imported has the library.
    modules: &'static [&'static str],
}

const fn row(
    name: &'static str,
    scope: &'static str,
    part: Part,
    modules: &'static [&'static str],
) -> Row {
    Row {
        name,
        scope,
        part,
        modules,
    }
}

const HTTP: &str = "otel-ebpf.http";
const POSTGRESQL: &str = "otel-ebpf.postgresql";
const REDIS: &str = "otel-ebpf.redis";
const SQLITE: &str = "otel-ebpf.sqlite";

/// Every instrumentation whose spans we make too. A library may have a row in
/// several scopes.
const ROWS: &[Row] = &[
    row("flask", HTTP, Served(&[]), &["flask.app"]),
    row("django", HTTP, Served(&[]), &["django.core.handlers.base"]),
    row(
        "fastapi",
        HTTP,
        Served(&["starlette"]),
        &["fastapi.applications"],
    ),
    row("starlette", HTTP, Served(&[]), &["starlette.applications"]),
    row(
        "aiohttp-server",
        HTTP,
        Served(&[]),
        &["aiohttp.web_protocol"],
    ),
    row("tornado", HTTP, Served(&[]), &["tornado.web"]),
    row("falcon", HTTP, Served(&[]), &["falcon.app"]),
    row("pyramid", HTTP, Served(&[]), &["pyramid.router"]),
    row("", HTTP, Served(&["flask"]), &["quart.app"]),
    row("", HTTP, Served(&[]), &["bottle"]),
    row("", HTTP, Served(&[]), &["litestar.app"]),
    row("", HTTP, Served(&[]), &["sanic.app"]),
    row("asgi", HTTP, Plain, &["uvicorn.server"]),
    row("asgi", HTTP, Plain, &["hypercorn.run"]),
    row("asgi", HTTP, Plain, &["daphne.server"]),
    row("wsgi", HTTP, Plain, &["gunicorn.workers.sync"]),
    row("wsgi", HTTP, Plain, &["gunicorn.workers.gthread"]),
    row("wsgi", HTTP, Plain, &["waitress.server"]),
    row("wsgi", HTTP, Plain, &["werkzeug.serving"]),
    row("wsgi", HTTP, Plain, &["wsgiref.simple_server"]),
    row(
        "aiohttp-client",
        HTTP,
        Driver,
        &[
            "aiohttp.client",
            "aiohttp.client_reqrep",
            "aiohttp.connector",
        ],
    ),
    row("httpx", HTTP, Driver, &["httpx"]),
    row("requests", HTTP, Layer, &["requests"]),
    row("urllib", HTTP, Driver, &["urllib.request"]),
    row("urllib3", HTTP, Driver, &["urllib3"]),
    row(
        "tornado",
        HTTP,
        Driver,
        &["tornado.simple_httpclient", "tornado.curl_httpclient"],
    ),
    row("psycopg2", POSTGRESQL, Bare, &["psycopg2"]),
    row("psycopg", POSTGRESQL, Driver, &["psycopg"]),
    row("asyncpg", POSTGRESQL, Driver, &["asyncpg"]),
    row("aiopg", POSTGRESQL, Layer, &["aiopg"]),
    row("sqlalchemy", POSTGRESQL, Layer, &["sqlalchemy"]),
    row("tortoiseorm", POSTGRESQL, Layer, &["tortoise"]),
    row("redis", REDIS, Driver, &["redis"]),
    row("sqlite3", SQLITE, Bare, &["sqlite3"]),
    row("sqlalchemy", SQLITE, Layer, &["sqlalchemy"]),
];

// A set has a bit for each.
const _: () = assert!(ROWS.len() <= 64);

/// Libraries: rows of the table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Libraries(u64);

impl Libraries {
    /// The libraries that have been imported.
    pub fn imported(mut is_imported: impl FnMut(&str) -> bool) -> Self {
        Self::of(|row| row.modules.first().is_some_and(|first| is_imported(first)))
    }

    /// The libraries that a function belongs to, by its module and name.
    pub fn having(function: &str) -> Self {
        Self::of(|row| {
            row.modules.iter().any(|module| {
                let rest = function.strip_prefix(module);
                rest.is_some_and(|rest| rest.starts_with('.'))
            })
        })
    }

    /// The first modules of the libraries, from which
    /// [`imported`](Self::imported) makes the same set again.
    pub fn modules(self) -> impl Iterator<Item = &'static str> {
        ROWS.iter()
            .enumerate()
            .filter(move |(idx, _)| self.0 >> idx & 1 != 0)
            .filter_map(|(_, row)| row.modules.first().copied())
    }

    /// Those of either.
    #[must_use]
    pub fn or(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    fn of(mut wanted: impl FnMut(&Row) -> bool) -> Self {
        let rows = ROWS.iter().enumerate();
        Self(
            rows.filter(|(_, row)| wanted(row))
                .fold(0, |set, (idx, _)| set | 1 << idx),
        )
    }

    fn both(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Whether all of these are in the other set, of which there must be one.
    fn is_within(self, other: Self) -> bool {
        !self.is_empty() && self.0 & !other.0 == 0
    }
}

/// What a process has turned off.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Disabled {
    names: Vec<String>,
    /// Whether it is everything.
    all: bool,
    off: Libraries,
    imported: Libraries,
    /// Whether its server spans are left out.
    served: bool,
}

impl Disabled {
    /// By the names in the process's environment and what it has imported;
    /// none if it turns nothing off.
    pub fn new(names: &[String], imported: Libraries) -> Option<Self> {
        let all = names.iter().any(|name| name == ALL);
        let off =
            Libraries::of(|row| !row.name.is_empty() && names.iter().any(|name| name == row.name));
        if !all && off.is_empty() {
            return None;
        }
        Some(Self {
            names: names.to_vec(),
            all,
            off,
            imported,
            served: all || serving(imported).is_within(off),
        })
    }

    /// The names that it was made of.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// What the process has imported.
    pub fn imported(&self) -> Libraries {
        self.imported
    }

    /// Whether the requests that the process serves yield no spans.
    pub fn served(&self) -> bool {
        self.served
    }

    /// Whether a call yields no span; `seen` are the libraries whose frames
    /// made it, if anybody saw its frames.
    pub fn call(&self, scope: &str, seen: Option<Libraries>) -> bool {
        if self.all {
            return true;
        }
        let calls = |part: Part| matches!(part, Driver | Bare | Layer);
        let here = Libraries::of(|row| row.scope == scope && calls(row.part));
        let imported = self.imported.both(here);
        let Some(seen) = seen.map(|seen| seen.both(here)) else {
            return imported.is_within(self.off);
        };
        let drivers = Libraries::of(|row| matches!(row.part, Driver));
        if !seen.both(drivers).is_empty() {
            return seen.is_within(self.off);
        }
        // Whatever driver it was has no frames here.
        let layers = Libraries::of(|row| matches!(row.part, Layer));
        let bare = Libraries::of(|row| matches!(row.part, Bare));
        let drivers = Libraries(imported.0 & !layers.0);
        // One that could not but be seen was not it.
        let hidden = match drivers.both(bare) {
            none if none.is_empty() => drivers,
            hidden => hidden,
        };
        seen.or(hidden).is_within(self.off)
    }
}

/// The instrumentations of which one tells of a request that is served.
fn serving(imported: Libraries) -> Libraries {
    let beside: Vec<&str> = ROWS
        .iter()
        .enumerate()
        .filter(|(idx, _)| imported.0 >> idx & 1 != 0)
        .flat_map(|(_, row)| match row.part {
            Served(beside) => beside,
            _ => &[],
        })
        .copied()
        .collect();
    let frameworks = Libraries::of(|row| {
        matches!(row.part, Served(_)) && (row.name.is_empty() || !beside.contains(&row.name))
    });
    match imported.both(frameworks) {
        none if none.is_empty() => imported.both(Libraries::of(|row| row.part == Plain)),
        frameworks => frameworks,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn disabled(names: &str, imported: &[&str]) -> Option<Disabled> {
        let names: Vec<String> = names.split(',').map(str::to_owned).collect();
        Disabled::new(
            &names,
            Libraries::imported(|module| imported.contains(&module)),
        )
    }

    #[track_caller]
    fn served(names: &str, imported: &[&str], expected: bool) {
        let found = disabled(names, imported).is_some_and(|disabled| disabled.served());
        assert_eq!(found, expected, "{names} {imported:?}");
    }

    #[test]
    fn a_server_span_is_off_if_every_framework_is() {
        served("flask", &["flask.app", "gunicorn.workers.sync"], true);
        served("flask", &["flask.app", "django.core.handlers.base"], false);
        served(
            "flask,django",
            &["flask.app", "django.core.handlers.base"],
            true,
        );
        served("wsgi", &["flask.app", "gunicorn.workers.sync"], false);
        served("wsgi", &["gunicorn.workers.sync"], true);
        served("asgi", &["uvicorn.server"], true);
        served("asgi", &["uvicorn.server", "gunicorn.workers.sync"], false);
        // FastAPI is built on Starlette, which is not what serves then.
        let fastapi = ["fastapi.applications", "starlette.applications"];
        served("fastapi", &fastapi, true);
        served("starlette", &fastapi, false);
        // Quart has imported Flask, and has no name of its own.
        served("flask", &["flask.app", "quart.app"], false);
        served("*", &["flask.app", "quart.app"], true);
        served("*", &[], true);
        // It cannot be told what serves.
        served("flask", &[], false);
        served("redis", &["flask.app"], false);
    }

    #[track_caller]
    fn call(scope: &str, names: &str, imported: &[&str], frames: Option<&[&str]>, expected: bool) {
        let seen = frames.map(|frames| {
            frames.iter().fold(Libraries::default(), |seen, function| {
                seen.or(Libraries::having(function))
            })
        });
        let found = disabled(names, imported).is_some_and(|disabled| disabled.call(scope, seen));
        assert_eq!(found, expected, "{scope} {names} {imported:?} {frames:?}");
    }

    #[test]
    fn a_call_is_off_if_every_library_that_made_it_is() {
        call(REDIS, "redis", &["redis"], None, true);
        call(REDIS, "redis", &[], None, false);
        call(REDIS, "psycopg2", &["redis"], None, false);
        call(POSTGRESQL, "redis", &["redis", "asyncpg"], None, false);
        call(POSTGRESQL, "psycopg2", &["psycopg2"], None, true);
        call(
            POSTGRESQL,
            "psycopg2",
            &["psycopg2"],
            Some(&["app.view"]),
            true,
        );
        let three = ["psycopg2", "psycopg", "sqlalchemy"];
        let psycopg = ["psycopg.cursor.Cursor.execute", "app.view"];
        call(POSTGRESQL, "psycopg", &three, Some(&psycopg), true);
        call(POSTGRESQL, "psycopg2", &three, Some(&psycopg), false);
        call(POSTGRESQL, "psycopg", &three, None, false);
        call(
            POSTGRESQL,
            "psycopg,psycopg2,sqlalchemy",
            &three,
            None,
            true,
        );
        // psycopg2 has no frames: it is what none of the others can be.
        call(POSTGRESQL, "psycopg2", &three, Some(&["app.view"]), true);
        call(POSTGRESQL, "psycopg", &three, Some(&["app.view"]), false);
        let alchemy = ["sqlalchemy.engine.default.DefaultDialect.do_execute"];
        call(POSTGRESQL, "psycopg2", &three, Some(&alchemy), false);
        call(
            POSTGRESQL,
            "psycopg2,sqlalchemy",
            &three,
            Some(&alchemy),
            true,
        );
        // The name of a package that begins like another's.
        call(
            POSTGRESQL,
            "psycopg",
            &["psycopg"],
            Some(&["psycopg_pool.x"]),
            true,
        );
        assert_eq!(
            Libraries::having("psycopg_pool.pool.x"),
            Libraries::default()
        );
    }

    #[test]
    fn a_request_is_off_if_every_client_library_on_the_way_is() {
        let imported = ["requests", "urllib3", "urllib.request"];
        let frames = [
            "urllib3.connection.HTTPConnection.request",
            "requests.api.get",
        ];
        call(HTTP, "requests", &imported, Some(&frames), false);
        call(HTTP, "requests,urllib3", &imported, Some(&frames), true);
        call(HTTP, "urllib3", &imported, Some(&frames[..1]), true);
        call(HTTP, "requests,urllib3", &imported, None, false);
        // A library of no name, or a socket: all that are there must be off.
        call(HTTP, "urllib3,urllib", &imported, Some(&["app.view"]), true);
        call(HTTP, "urllib3", &imported, Some(&["app.view"]), false);
        call(HTTP, "flask", &["flask.app"], None, false);
        call(HTTP, "*", &[], None, true);
    }

    #[test]
    fn names_that_are_about_none_of_our_spans_turn_nothing_off() {
        assert_eq!(disabled("kafka,dbapi,,logging", &["redis"]), None);
    }

    #[test]
    fn a_set_is_made_again_of_its_modules() {
        let all = Libraries::imported(|_| true);
        let modules: Vec<_> = all.modules().collect();
        assert_eq!(modules.len(), ROWS.len());
        assert_eq!(Libraries::imported(|module| modules.contains(&module)), all);
        let one = Libraries::having("redis.client.Redis.get");
        assert_eq!(one.modules().collect::<Vec<_>>(), ["redis"]);
    }
}
