//! Whose child is it: the table of models of concurrency. Each is a real
//! server under load, 64 requests in flight, every request with a set of calls
//! of its own that carry its id. Every call must be under its own request.
//!
//! `cargo xtask test attribution` runs all of it and writes
//! `tests/reports/attribution.md`; `cargo xtask test attribution::event_loops`
//! runs a group. Needs root, BPF and the Python environments of `cargo xtask
//! test`.
//!
//! To add a model, add a [`Model`] to a group: a service of `tests/apps` whose
//! endpoints make `n` calls with `id` and `call` in their query, then its
//! loads, each with what is expected of it. A model that cannot be followed is
//! a row too, with [`Expected::Refused`] and the counter that says why. A new
//! group is a function in the module `attribution` that passes its own name to
//! [`run`].

use std::path::Path;
use std::sync::atomic::Ordering;

use anyhow::Result;
use otel_ebpf_tests::app::{App, Service};
use otel_ebpf_tests::attribution::{Expected, Interpreter, LOAD_PATIENCE, Model, WANTED, run};
use otel_ebpf_tests::load::{Manner, Progress};
use otel_ebpf_tests::process::{Signal, send, wait_for};
use otel_ebpf_tests::python::Python;

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

/// Every way out of a request's task, with the clients of the event loop, and
/// every way to send a request.
fn tasks(model: Model) -> Model {
    let (gather, none) = ("/gather?client=aiohttp", Expected::NoneMisplaced);
    model
        .load(gather)
        .times(WANTED)
        .loads(&[
            "/downstream?client=httpx",
            "/downstream?client=aiohttp",
            "/gather?client=httpx",
            "/tasks?client=aiohttp",
            "/background?client=httpx",
            "/background?client=aiohttp",
            "/to_thread?client=requests",
            "/threadpool?client=requests",
        ])
        .load_as("/receive?client=aiohttp", Manner::Pieces, Expected::Exact)
        .load_as(gather, Manner::Close, Expected::Exact)
        .load_as("/downstream?client=aiohttp", Manner::Pipelined, none)
        .load_as("/impatient?client=aiohttp", Manner::Impatient, none)
        .load_as("/gather?client=httpx", Manner::Impatient, none)
        .each(FEW)
}

/// Requests of a load of many, beside one that has them all.
const FEW: usize = 100;

/// Every interpreter, and what sets it apart from others of its version.
fn pythons() -> Vec<(Python, &'static str)> {
    let own = (8..=13).filter_map(|minor| Some((Python::pyenv(&format!("3.{minor}"))?, "")));
    let others = [
        (Python::system(), "stripped"),
        (Python::debian("bullseye", "3.9"), "stripped"),
        (Python::debian("trixie", "3.13"), "stripped"),
        (Python::debian("forky", "3.14"), "stripped"),
        (Python::free_threaded("3.13"), ""),
        (Python::free_threaded("3.14"), ""),
        (Python::single_file("3.13"), "static, musl"),
        (
            Python::debian("forky", "3.14").map(Python::in_a_container),
            "in a container",
        ),
    ];
    let others = others
        .into_iter()
        .filter_map(|(python, kind)| Some((python?, kind)));
    own.chain(others).collect()
}

/// A model of the service that needs nothing but the standard library.
fn plain(name: &str, python: &Python, kind: &str, server: &str) -> Model {
    let interpreter = Interpreter::of(python, kind).expect("an interpreter");
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("apps/plain.py");
    let script = python.script(&script).expect("the script");
    let words = [&*script.to_string_lossy(), server, "{host}", "{port}"];
    Model::new(name, Service::command("plain", &words)).on(&interpreter)
}

/// Kills a worker for every so many answers.
fn kill_workers(app: &App, progress: &Progress) -> Result<()> {
    /// Answers between one kill and the next.
    const EVERY: usize = 500;
    let mut next = EVERY;
    wait_for("the end of the load", LOAD_PATIENCE, || {
        if progress.answered.load(Ordering::Relaxed) >= next {
            next += EVERY;
            if let Some(&worker) = app.workers().first() {
                // It may have ended by itself.
                let _gone = send(worker, Signal::KILL);
            }
        }
        Ok(progress.stop.load(Ordering::Relaxed).then_some(()))
    })
}

mod attribution {
    use super::*;

    #[test]
    fn event_loops() {
        let models = vec![
            tasks(Model::new(
                "uvicorn asyncio h11",
                Service::uvicorn("fastapi_app"),
            )),
            tasks(Model::new(
                "uvicorn uvloop httptools",
                Service::uvloop("fastapi_app"),
            )),
        ];
        run("event_loops", models);
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

    /// TLS on both sides: sessions of memory buffers, which the event loops
    /// use.
    #[test]
    fn tls_on_event_loops() {
        let none = Expected::NoneMisplaced;
        let models = on_loops("TLS", "fastapi_app", Service::tls);
        let models = models.into_iter().map(|model| {
            model
                .calls_tls()
                .loads(&[
                    "/downstream?client=httpx",
                    "/gather?client=aiohttp",
                    "/tasks?client=aiohttp",
                    "/to_thread?client=requests",
                    "/threadpool?client=requests",
                    "/background?client=httpx",
                ])
                .load_as("/gather?client=aiohttp", Manner::Close, Expected::Exact)
                .load_as("/receive?client=aiohttp", Manner::Pieces, Expected::Exact)
                .load_as("/downstream?client=httpx", Manner::Impatient, none)
                .load_as("/downstream?client=aiohttp", Manner::Pipelined, none)
        });
        run("tls_on_event_loops", models.collect());
    }

    /// The agent comes in the middle of sessions.
    #[test]
    fn tls_midway() {
        let models = on_loops("TLS, midway", "fastapi_app", Service::tls);
        let models = models.into_iter().map(|model| {
            model.calls_tls().attach_midway().load_as(
                "/gather?client=aiohttp",
                Manner::Whole,
                Expected::NoneMisplaced,
            )
        });
        run("tls_midway", models.collect());
    }

    /// TLS on both sides: sessions on sockets.
    #[test]
    fn tls_on_threads() {
        let threads = Service::gunicorn("flask_app").arguments(&["--threads", "16"]);
        let sync = Service::gunicorn("flask_app").arguments(&["--worker-class", "sync"]);
        let close = Manner::Close;
        let models = vec![
            Model::new("gunicorn gthread, TLS", threads.tls())
                .calls_tls()
                .loads(&["/downstream?client=requests", "/downstream?client=urllib3"])
                .load_as("/downstream?client=requests", close, Expected::Exact),
            Model::new("gunicorn sync, TLS", sync.tls())
                .calls_tls()
                .load_as("/downstream?client=requests", close, Expected::Exact),
        ];
        run("tls_on_threads", models);
    }

    /// `SSL_read` up to 3.9, `SSL_read_ex` from then on, as various compilers
    /// have them called, with several versions of OpenSSL.
    #[test]
    fn tls_on_interpreters() {
        let pythons = [
            (Python::pyenv("3.8"), ""),
            (Python::pyenv("3.9"), ""),
            (Python::pyenv("3.10"), ""),
            (Python::pyenv("3.13"), ""),
            (Python::debian("bullseye", "3.9"), "Debian"),
            (Python::debian("trixie", "3.13"), "Debian"),
            (Python::free_threaded("3.13"), ""),
        ];
        let mut models = Vec::new();
        for (python, kind) in pythons {
            let Some(python) = python else {
                continue;
            };
            let interpreter = Interpreter::of(&python, kind).expect("an interpreter");
            let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("apps/plain.py");
            let script = python.script(&script).expect("the script");
            let script = script.to_string_lossy();
            let service =
                |kind: &str| Service::command("plain", &[&script, kind, "{host}", "{port}"]).tls();
            models.push(
                Model::new("asyncio, TLS", service("asyncio"))
                    .on(&interpreter)
                    .calls_tls()
                    .loads(&["/gather", "/to_thread"]),
            );
            models.push(
                Model::new("http.server, TLS", service("threads"))
                    .on(&interpreter)
                    .calls_tls()
                    .load_as("/downstream", Manner::Close, Expected::Exact),
            );
        }
        run("tls_on_interpreters", models);
    }

    /// What a task of a request begins, and how it may end.
    #[test]
    fn flows() {
        let models = on_loops("flows", "flows_app", |service| service);
        // So many that every way has 2,000 requests over all models.
        let loads = [
            ("/task_group?client=aiohttp", 250),
            ("/task_group?client=httpx", 250),
            ("/anyio?client=httpx", 1000),
            ("/generator?client=httpx", 1000),
            ("/streamed?client=aiohttp", 500),
            ("/streamed_in_threads", 500),
            ("/cancelled?client=aiohttp", 250),
            ("/cancelled?client=httpx", 250),
            ("/shielded?client=httpx", 100),
            ("/shielded?client=aiohttp", 100),
        ];
        let models = models.into_iter().map(|model| {
            let with = |model: Model, (target, count)| model.load(target).times(count);
            loads.into_iter().fold(model, with)
        });
        run("flows", models.collect());
    }

    /// Calls of the lifespan, before the first request and on.
    #[test]
    fn startup() {
        let models = on_loops("traced from its start", "flows_app", |service| {
            service.env("APP_STARTUP", "1")
        });
        let models = models.into_iter().map(|model| {
            model
                .launched()
                .load("/gather?client=aiohttp")
                .unowned(&["startup-await", "startup-task"])
        });
        run("startup", models.collect());
    }

    /// The agent comes in the middle of it all.
    #[test]
    fn attached_under_load() {
        let mut models = on_loops("attached under load", "fastapi_app", |service| service);
        models.push(Model::new(
            "gunicorn gthread, attached under load",
            Service::gunicorn("flask_app").arguments(&["--threads", "16"]),
        ));
        let models = models.into_iter().map(|model| {
            let threads = model.name.starts_with("gunicorn");
            let target = if threads {
                "/downstream"
            } else {
                "/gather?client=aiohttp"
            };
            model
                .attach_midway()
                .load_as(target, Manner::Whole, Expected::NoneMisplaced)
                .load(target)
        });
        run("attached_under_load", models.collect());
    }

    /// Everything at once: clients that leave, connections that are closed,
    /// calls that are given up, the agent in the middle of it.
    #[test]
    fn chaos() {
        let models = on_loops("chaos", "flows_app", |service| service);
        let models = models.into_iter().map(|model| {
            let (mixed, none) = (Manner::Mixed, Expected::NoneMisplaced);
            model
                .attach_midway()
                .load_as("/impatient?client=aiohttp", mixed, none)
                .load_as("/cancelled?client=aiohttp", mixed, none)
                .load_as("/streamed?client=aiohttp", mixed, none)
                .load_as("/background?client=aiohttp", mixed, none)
        });
        run("chaos", models.collect());
    }

    /// The same with workers that are killed, and others started.
    #[test]
    fn chaos_of_workers() {
        let (mixed, none) = (Manner::Mixed, Expected::NoneMisplaced);
        let threads = Service::gunicorn("flask_app").arguments(&["--threads", "16"]);
        let models = [
            Model::new(
                "uvicorn uvloop, TLS, chaos of workers",
                Service::uvloop("flows_app").tls().workers(3),
            )
            .calls_tls()
            .load_as("/gather?client=aiohttp", mixed, none)
            .load_as("/cancelled?client=aiohttp", mixed, none),
            Model::new("gunicorn gthread, chaos of workers", threads.workers(3))
                .load_as("/downstream?client=requests", mixed, none)
                .load_as("/downstream?client=urllib3", mixed, none),
        ];
        let models = models.into_iter().map(|model| {
            model
                .every_process()
                .attach_midway()
                .meanwhile(kill_workers)
        });
        run("chaos_of_workers", models.collect());
    }

    /// Workers are killed in the middle of requests, and others started.
    #[test]
    fn workers_that_are_killed() {
        let threads = Service::gunicorn("flask_app").arguments(&["--threads", "8"]);
        let sync = Service::gunicorn("flask_app").arguments(&["--worker-class", "sync"]);
        let models = [
            Model::new("gunicorn gthread, killed", threads.workers(3)),
            Model::new("gunicorn sync, killed", sync.workers(3)),
            Model::new(
                "uvicorn uvloop, killed",
                Service::uvloop("fastapi_app").workers(3),
            ),
        ];
        let models = models.into_iter().map(|model| {
            model.every_process().meanwhile(kill_workers).load_as(
                "/downstream?client=requests",
                Manner::Close,
                Expected::NoneMisplaced,
            )
        });
        run("workers_that_are_killed", models.collect());
    }

    #[test]
    fn workers() {
        let mut models = on_loops("2 workers", "fastapi_app", |service| service.workers(2));
        let targets = ["/gather?client=aiohttp", "/threadpool"];
        models = models.into_iter().map(|it| it.loads(&targets)).collect();
        let gunicorn = Service::gunicorn("flask_app").workers(2);
        models.push(Model::new("gunicorn gthread, 2 workers", gunicorn).load("/downstream"));
        let models = models.into_iter().map(Model::every_process);
        run("workers", models.collect());
    }

    /// Every version that the applications install on.
    #[test]
    fn versions() {
        let main = Interpreter::main();
        let mut models = Vec::new();
        for interpreter in Interpreter::versions() {
            if interpreter.label == main.label {
                continue;
            }
            for model in on_loops("versions", "flows_app", |service| service) {
                models.push(model.on(&interpreter).loads(&[
                    "/gather?client=aiohttp",
                    "/task_group?client=httpx",
                    "/background?client=httpx",
                    "/threadpool",
                ]));
            }
            let gunicorn = Service::gunicorn("flask_app").arguments(&["--threads", "16"]);
            let model = Model::new("gunicorn gthread, versions", gunicorn);
            models.push(model.on(&interpreter).load("/downstream"));
        }
        run("versions", models);
    }

    /// Servers with a thread for each connection, or for each request.
    #[test]
    fn threads() {
        let servers = Interpreter::servers();
        let wsgiref = |kind: &str| {
            let words = ["serve_wsgiref.py", kind, "{host}", "{port}"];
            Service::command("wsgiref", &words)
        };
        let runserver = ["django_flows.py", "{host}:{port}"];
        let models = vec![
            Model::new("wsgiref", wsgiref("single")),
            Model::new("wsgiref, threads", wsgiref("threads")),
            Model::new("Django runserver", Service::command("django", &runserver)),
        ];
        let models = models.into_iter().map(|model| {
            model
                .load_as("/downstream", Manner::Close, Expected::Exact)
                .on(&servers)
        });
        run("threads", models.collect());
    }

    /// Servers that read in their own way; of granian's reads, which Rust
    /// threads do, nothing says whose turn it is.
    #[test]
    fn other_servers() {
        let servers = Interpreter::servers();
        let refused = Expected::Refused("spans.no_parent.unowned_context");
        let granian = ["-m", "granian", "--interface", "asgi", "--host", "{host}"];
        let granian = Service::command("granian", &granian).arguments(&[
            "--port",
            "{port}",
            "fastapi_app:app",
        ]);
        let target = "/gather?client=aiohttp";
        let models = [Model::new("granian", granian).every_process().load_as(
            target,
            Manner::Whole,
            refused,
        )];
        let models = models.into_iter().map(|model| model.on(&servers));
        run("other_servers", models.collect());
    }

    /// The standard library alone, in every interpreter that is to be had.
    #[test]
    fn interpreters() {
        let mut models = Vec::new();
        for (python, kind) in pythons() {
            models.push(
                plain("asyncio, a task for each request", &python, kind, "asyncio")
                    .loads(&["/gather", "/downstream", "/to_thread"])
                    .each(100),
            );
            models
                .push(plain("http.server, threads", &python, kind, "threads").load("/downstream"));
        }
        // Nothing tells where contexts come into being; threads need none.
        if let Some(python) = Python::stripped_single_file("3.13") {
            let kind = "static, without symbols";
            models.push(
                plain("asyncio without symbols", &python, kind, "asyncio").load_as(
                    "/gather",
                    Manner::Whole,
                    Expected::Refused("spans.no_parent.unowned_context"),
                ),
            );
            models
                .push(plain("http.server, threads", &python, kind, "threads").load("/downstream"));
        }
        run("interpreters", models);
    }
}
