//! Whose child is it: the table of models of concurrency. Each is a real
//! server under load, 64 requests in flight, every request with a set of calls
//! of its own that carry its id. Every call must be under its own request.
//!
//! `cargo xtask test attribution` runs all of it and writes
//! `tests/reports/attribution.md`; `cargo xtask test attribution::asyncio`
//! runs a group. Needs root, BPF and the Python environments of `cargo xtask
//! test`.
//!
//! To add a model, add a [`Model`] to a group: a service of `tests/apps` whose
//! endpoints make `n` calls with `id` and `call` in their query, then its
//! loads, each with what is expected of it. A model that cannot be followed is
//! a row too, with [`Expected::Refused`] and the counter that says why. A new
//! group is a function in the module `attribution` that passes its own name to
//! [`run`].

use otel_ebpf_tests::app::Service;
use otel_ebpf_tests::attribution::{Expected, Model, run};
use otel_ebpf_tests::load::Manner;

/// A model for each event loop of uvicorn.
fn on_loops(what: &str, module: &str, with: impl Fn(Service) -> Service) -> Vec<Model> {
    let named = |(name, service)| Model::new(&format!("uvicorn {name}, {what}"), with(service));
    [
        ("asyncio", Service::uvicorn(module)),
        ("uvloop", Service::uvloop(module)),
    ]
    .into_iter()
    .map(named)
    .collect()
}

/// Every way out of a request's task, with the clients of the event loop.
fn tasks(model: Model) -> Model {
    model
        .loads(&[
            "/downstream?client=httpx",
            "/downstream?client=aiohttp",
            "/gather?client=httpx",
            "/gather?client=aiohttp",
            "/tasks?client=aiohttp",
            "/background?client=httpx",
            "/background?client=aiohttp",
            "/to_thread?client=requests",
            "/threadpool?client=requests",
        ])
        .load_as("/receive?client=aiohttp", Manner::Pieces, Expected::Exact)
}

mod attribution {
    use super::*;

    #[test]
    fn asyncio() {
        let model = Model::new("uvicorn asyncio h11", Service::uvicorn("fastapi_app"));
        run("asyncio", vec![tasks(model)]);
    }

    #[test]
    fn uvloop() {
        let model = Model::new("uvicorn uvloop httptools", Service::uvloop("fastapi_app"));
        run("uvloop", vec![tasks(model)]);
    }

    /// Greenlets copy slices of the stack: lineage must do without return
    /// probes.
    #[test]
    fn greenlets_that_drive_the_loop() {
        let models = on_loops("greenlets", "fastapi_app", |service| {
            service.env("APP_GREENLETS", "1")
        });
        let targets = [
            "/greenlets?client=aiohttp",
            "/greenlets?client=requests",
            "/gather?client=httpx",
        ];
        let models = models.into_iter().map(|model| model.loads(&targets));
        run("greenlets_that_drive_the_loop", models.collect());
    }

    /// Calls of no request are under none, whatever else is going on.
    #[test]
    fn calls_of_no_request() {
        let models = on_loops("unowned calls", "fastapi_app", |service| {
            service.env("APP_UNOWNED", "1")
        });
        let models = models.into_iter().map(|model| {
            model
                .loads(&["/gather?client=aiohttp", "/threadpool"])
                .unowned(&["background-task", "background-thread"])
        });
        run("calls_of_no_request", models.collect());
    }

    #[test]
    fn a_context_of_its_own_for_every_request() {
        let models = on_loops("reset contexts", "fastapi_app", |service| {
            service.arguments(&["--reset-contextvars"])
        });
        let models = models
            .into_iter()
            .map(|model| model.load("/gather?client=aiohttp"));
        run("a_context_of_its_own_for_every_request", models.collect());
    }

    #[test]
    fn pipelined() {
        let models = on_loops("pipelined", "fastapi_app", |service| service);
        let models = models.into_iter().map(|model| {
            model.load_as(
                "/downstream?client=aiohttp",
                Manner::Pipelined,
                Expected::NoneMisplaced,
            )
        });
        run("pipelined", models.collect());
    }

    #[test]
    fn connections_that_are_closed_and_reopened() {
        let models = on_loops("closed", "fastapi_app", |service| service);
        let models = models
            .into_iter()
            .map(|model| model.load_as("/gather?client=aiohttp", Manner::Close, Expected::Exact));
        run("connections_that_are_closed_and_reopened", models.collect());
    }

    #[test]
    fn gunicorn() {
        let threads = Service::gunicorn("flask_app").arguments(&["--threads", "16"]);
        let sync = Service::gunicorn("flask_app").arguments(&["--worker-class", "sync"]);
        let close = Manner::Close;
        let models = vec![
            Model::new("gunicorn gthread", threads)
                .loads(&["/downstream?client=requests", "/downstream?client=urllib3"])
                .load_as("/downstream?client=requests", close, Expected::Exact),
            Model::new("gunicorn sync", sync).load_as(
                "/downstream?client=requests",
                close,
                Expected::Exact,
            ),
        ];
        run("gunicorn", models);
    }

    #[test]
    fn clients_that_leave_and_calls_that_are_given_up() {
        let models = on_loops("given up", "fastapi_app", |service| service);
        let models = models.into_iter().map(|model| {
            let (impatient, none) = (Manner::Impatient, Expected::NoneMisplaced);
            model
                .load_as("/impatient?client=aiohttp", impatient, none)
                .load_as("/gather?client=httpx", impatient, none)
        });
        run(
            "clients_that_leave_and_calls_that_are_given_up",
            models.collect(),
        );
    }
}
