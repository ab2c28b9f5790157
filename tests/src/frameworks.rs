//! The applications of `tests/apps/frameworks` under their usual servers, and
//! what they are asked for.

use anyhow::{Context, Result, ensure};

use crate::app::{App, Service};
use crate::client::Connection;

/// A request and the status of its answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// Method.
    pub method: &'static str,
    /// Path, with a query or without.
    pub target: &'static str,
    /// Status of the answer.
    pub status: u16,
}

/// Whose frames are beneath the call of a client library when it sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Caller {
    /// The application's.
    Known,
    /// The library's only: it sends from a task or callback of its own.
    Hidden,
}

/// A framework's application under a server.
#[derive(Clone)]
pub struct Case {
    /// Framework and server.
    pub name: &'static str,
    /// The framework, as the scope of spans has it.
    pub framework: &'static str,
    /// The application.
    pub service: Service,
    /// What it is asked for.
    pub requests: Vec<Request>,
    /// Of the call that it makes for `/call`.
    pub caller: Caller,
}

/// What every application is asked for.
const REQUESTS: &[Request] = &[
    get("/users/7", 200),
    get("/plain", 200),
    Request {
        method: "PUT",
        target: "/users/7",
        status: 200,
    },
    get("/users/7/orders/abc", 200),
    get("/shop/v1/items/5", 200),
    get("/call", 200),
    get("/boom", 500),
    get("/chained", 500),
    get("/handled", 500),
    get("/caught", 200),
    get("/gone", 404),
    get("/unavailable", 503),
    get("/nowhere", 404),
    get("/users/8", 200),
];
/// A view that is a class, of those frameworks where not every one is.
const CLASS: &[Request] = &[get("/parts/3", 200)];
const FASTAPI: &[Request] = &[get("/warehouse/parts/3", 200), get("/boom/thread", 500)];
/// Exceptions that are printed in other ways: without their context, with
/// notes, and groups.
const EXCEPTIONS: &[Request] = &[
    get("/refund", 500),
    get("/count", 500),
    get("/deliver", 500),
];
const STARLETTE: &[Request] = &[get("/parts/3", 200), get("/stores/berlin/items/9", 200)];

/// A GET.
pub const fn get(target: &'static str, status: u16) -> Request {
    Request {
        method: "GET",
        target,
        status,
    }
}

/// Every case.
pub fn cases() -> Vec<Case> {
    let flask = "frameworks.flask_app";
    let django = "frameworks.django_app";
    let rest = "frameworks.rest_wsgi";
    let falcon = "frameworks.falcon_app";
    let pyramid = "frameworks.pyramid_app:application()";
    let bottle = "frameworks.bottle_app";
    let fastapi = "frameworks.fastapi_app";
    let starlette = "frameworks.starlette_app";
    let polite = |service: Service| service.env("APP_MIDDLEWARE", "base");
    let django_asgi = "frameworks.django_asgi_app";
    let falcon_asgi = "frameworks.falcon_asgi_app";
    let litestar = "frameworks.litestar_app";
    let quart = "frameworks.quart_app";
    vec![
        // WSGI.
        case("flask_gthread", Service::gunicorn(flask), CLASS),
        case(
            "flask_sync",
            sync_gunicorn(flask),
            &[CLASS, EXCEPTIONS].concat(),
        ),
        case("django_gthread", Service::gunicorn(django), CLASS),
        case("django_sync", sync_gunicorn(django), CLASS),
        case("django_rest_gthread", Service::gunicorn(rest), &[]),
        case("django_rest_sync", sync_gunicorn(rest), &[]),
        case("falcon_gthread", Service::gunicorn(falcon), &[]),
        case("falcon_sync", sync_gunicorn(falcon), &[]),
        case("pyramid_gthread", Service::gunicorn(pyramid), CLASS),
        case("pyramid_sync", sync_gunicorn(pyramid), CLASS),
        case("bottle_gthread", Service::gunicorn(bottle), &[]),
        case("bottle_sync", sync_gunicorn(bottle), &[]),
        // ASGI.
        case("fastapi_asyncio", Service::uvicorn(fastapi), FASTAPI),
        case(
            "fastapi_uvloop",
            Service::uvloop(fastapi),
            &[FASTAPI, EXCEPTIONS].concat(),
        ),
        case("starlette_asyncio", Service::uvicorn(starlette), STARLETTE),
        case("starlette_uvloop", Service::uvloop(starlette), STARLETTE),
        // The middleware answers from a task that never saw the mounts, and
        // the scope has their parameters filled in.
        case(
            "starlette_middleware_asyncio",
            polite(Service::uvicorn(starlette)),
            CLASS,
        ),
        case(
            "starlette_middleware_uvloop",
            polite(Service::uvloop(starlette)),
            CLASS,
        ),
        case("django_asgi_asyncio", Service::uvicorn(django_asgi), CLASS),
        case("django_asgi_uvloop", Service::uvloop(django_asgi), CLASS),
        case("falcon_asgi_asyncio", Service::uvicorn(falcon_asgi), &[]),
        case("falcon_asgi_uvloop", Service::uvloop(falcon_asgi), &[]),
        case("litestar_asyncio", Service::uvicorn(litestar), &[]),
        case("litestar_uvloop", Service::uvloop(litestar), &[]),
        case("quart_hypercorn", Service::hypercorn(quart), CLASS),
        case("quart_uvicorn", Service::uvicorn(quart), CLASS),
        // Servers of their own.
        case("aiohttp_own_server", aiohttp(), CLASS),
        Case {
            caller: Caller::Hidden,
            ..case("tornado_own_server", tornado(), &[])
        },
        case("sanic_own_server", sanic(), CLASS),
    ]
}

/// The case of this name.
pub fn named(name: &str) -> Result<Case> {
    let found = cases().into_iter().find(|case| case.name == name);
    found.with_context(|| format!("there is no case {name}"))
}

fn case(name: &'static str, service: Service, further: &[Request]) -> Case {
    Case {
        name,
        framework: name.split('_').next().unwrap_or(name),
        service,
        requests: [REQUESTS, further].concat(),
        caller: Caller::Known,
    }
}

/// gunicorn with one sync worker.
fn sync_gunicorn(module: &str) -> Service {
    Service::gunicorn(module).arguments(&["--worker-class", "sync", "--threads", "1"])
}

fn aiohttp() -> Service {
    let module = "aiohttp.web";
    let listen = ["-m", module, "--hostname", "{host}", "--port", "{port}"];
    Service::command("aiohttp_app", &listen).arguments(&["frameworks.aiohttp_app:application"])
}

fn tornado() -> Service {
    Service::command("tornado_app", &["-m", "frameworks.tornado_app", "{port}"])
}

fn sanic() -> Service {
    let application = ["-m", "sanic", "frameworks.sanic_app:app"];
    let listen = ["--host", "{host}", "--port", "{port}", "--single-process"];
    Service::command("sanic_app", &application).arguments(&listen)
}

impl Request {
    /// Method and target.
    pub fn line(&self) -> String {
        format!("{} {}", self.method, self.target)
    }
}

/// Sends one after the other, on one connection as long as the server keeps
/// it, with the headers that the request's number asks for.
pub fn send(
    app: &App,
    requests: &[Request],
    headers: impl Fn(usize) -> Vec<(&'static str, String)>,
) -> Result<()> {
    let mut connection: Option<Connection> = None;
    for (number, request) in requests.iter().enumerate() {
        let mut current = match connection.take() {
            Some(current) => current,
            None => app.connect()?,
        };
        let mut headers = headers(number);
        let mut body: &[u8] = b"";
        if request.method != "GET" {
            body = b"{}";
            headers.push(("Content-Type", "application/json".to_owned()));
        }
        let headers: Vec<_> = headers
            .iter()
            .map(|(name, value)| (*name, value.as_str()))
            .collect();
        let response = current
            .request(request.method, request.target, &headers, body)
            .with_context(|| request.line())?;
        ensure!(
            response.status == request.status,
            "{} answers {response:?}",
            request.line()
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
