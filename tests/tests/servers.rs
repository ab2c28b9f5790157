//! Whose child is it, under servers that read a request in one task or thread
//! and serve it in another: models of the attribution suite, see
//! `attribution.rs`.
//!
//! Needs root, BPF and the Python environments of `cargo xtask test`.

use otel_ebpf_tests::app::Service;
use otel_ebpf_tests::attribution::{Expected, Interpreter, Model, run};
use otel_ebpf_tests::load::Manner;

fn model(name: &str, service: Service) -> Model {
    Model::new(name, service).on(&Interpreter::frameworks())
}

/// Every way out of a handler, every way to send a request.
fn tasks(model: Model) -> Model {
    let aiohttp = "/downstream?client=aiohttp";
    model
        .loads(&[
            aiohttp,
            "/downstream?client=httpx",
            "/gather?client=aiohttp",
            "/gather?client=httpx",
            "/tasks?client=aiohttp",
            "/later?client=aiohttp",
            "/later?client=httpx",
        ])
        .load_as("/gather?client=aiohttp", Manner::Close, Expected::Exact)
        .load_as(aiohttp, Manner::Pieces, Expected::Exact)
        .load_as(aiohttp, Manner::Pipelined, Expected::NoneMisplaced)
        .load_as(
            "/gather?client=httpx",
            Manner::Impatient,
            Expected::NoneMisplaced,
        )
}

/// TLS on both sides; the work goes on in another task than the one that reads.
fn with_tls(model: Model) -> Model {
    let gather = "/gather?client=aiohttp";
    model
        .calls_tls()
        .loads(&["/gather?client=httpx", "/tasks?client=aiohttp"])
        .load_as(gather, Manner::Close, Expected::Exact)
        .load_as(
            "/downstream?client=aiohttp",
            Manner::Pieces,
            Expected::Exact,
        )
        .load_as(gather, Manner::Pipelined, Expected::NoneMisplaced)
}

mod attribution {
    use super::*;

    #[test]
    fn aiohttp() {
        let words = ["-m", "aiohttp.web", "-H", "{host}", "-P", "{port}"];
        let asyncio =
            Service::command("aiohttp_app", &words).arguments(&["servers.aiohttp_app:application"]);
        let uvloop = Service::command("aiohttp_app", &["-m", "servers.aiohttp_app", "{port}"]);
        let after = "/after?client=aiohttp";
        let models = vec![
            tasks(model("aiohttp.web asyncio", asyncio)).load(after),
            tasks(model("aiohttp.web uvloop", uvloop)).load(after),
        ];
        run("aiohttp", models);
    }

    #[test]
    fn hypercorn() {
        let asyncio = Service::hypercorn("servers.asgi_app");
        let uvloop = asyncio.clone().arguments(&["--worker-class", "uvloop"]);
        let models = vec![
            tasks(model("hypercorn asyncio", asyncio)),
            tasks(model("hypercorn uvloop", uvloop)),
        ];
        run("hypercorn", models);
    }

    /// uvloop calls every connection of a server in one context: the frames of
    /// the server lead to the connection below the session.
    #[test]
    fn servers_with_tls() {
        let aiohttp = |event_loop: &str| {
            let words = ["-m", "servers.aiohttp_app", "{port}", event_loop];
            Service::command("aiohttp_app", &words).tls()
        };
        let hypercorn = Service::hypercorn("servers.asgi_app").tls();
        let models = [
            ("aiohttp.web asyncio, TLS", aiohttp("asyncio")),
            ("aiohttp.web uvloop, TLS", aiohttp("uvloop")),
            ("hypercorn asyncio, TLS", hypercorn.clone()),
            (
                "hypercorn uvloop, TLS",
                hypercorn.arguments(&["--worker-class", "uvloop"]),
            ),
        ];
        let models = models.map(|(name, service)| with_tls(model(name, service)));
        run("servers_with_tls", models.into());
    }

    /// Daphne's sessions are those of an OpenSSL inside of a wheel, Sanic's are
    /// uvloop's.
    #[test]
    fn more_servers_with_tls() {
        let daphne = "ssl:{port}:privateKey={key}:certKey={certificate}:interface={host}";
        let daphne = Service::command("daphne", &["-m", "daphne", "-e", daphne])
            .arguments(&["servers.asgi_app:app"]);
        let sanic = ["-m", "sanic", "servers.sanic_app:app", "--single-process"];
        let sanic = Service::command("sanic_app", &sanic).arguments(&[
            "--host",
            "{host}",
            "--port",
            "{port}",
            "--cert",
            "{certificate}",
            "--key",
            "{key}",
        ]);
        let httptools = Service::uvicorn("servers.asgi_app").arguments(&["--http", "httptools"]);
        let models = [
            ("daphne, TLS", daphne),
            ("sanic uvloop, TLS", sanic),
            ("uvicorn asyncio httptools, TLS", httptools),
        ];
        let models = models.map(|(name, service)| with_tls(model(name, service.tls())));
        run("more_servers_with_tls", models.into());
    }

    /// Its own client has 64 calls at a time. Others wait, and begin in the
    /// context of a call that has ended.
    #[test]
    fn tornado() {
        let service = Service::command("tornado_app", &["-m", "servers.tornado_app", "{port}"]);
        let own = "/downstream?client=tornado";
        let queued = Expected::Refused("spans.no_parent.unowned_context");
        let model = tasks(model("tornado", service))
            .load(own)
            .load_as(own, Manner::Close, Expected::Exact)
            .load_as("/gather?client=tornado", Manner::Whole, queued);
        run("tornado", vec![model]);
    }

    /// The task of the connection serves its requests itself: what it does
    /// after a response may be mistaken for the next request's, once that was
    /// read.
    #[test]
    fn sanic() {
        let words = ["-m", "sanic", "servers.sanic_app:app", "--single-process"];
        let service = Service::command("sanic_app", &words)
            .arguments(&["--host", "{host}", "--port", "{port}"]);
        let after = "/after?client=aiohttp";
        let model = tasks(model("sanic uvloop", service))
            .load_as(after, Manner::Whole, Expected::NoneMisplaced)
            .load("/blocking?client=requests");
        run("sanic", vec![model]);
    }

    #[test]
    fn daphne() {
        let words = ["-m", "daphne", "-b", "{host}", "-p", "{port}"];
        let service = Service::command("daphne", &words).arguments(&["servers.asgi_app:app"]);
        run("daphne", vec![tasks(model("daphne", service))]);
    }

    #[test]
    fn waitress() {
        let words = ["-m", "waitress", "--host", "{host}", "--port", "{port}"];
        let service = Service::command("waitress", &words).arguments(&[
            "--threads",
            "16",
            "servers.wsgi_app:app",
        ]);
        let requests = "/downstream?client=requests";
        let model = model("waitress", service)
            .loads(&[
                requests,
                "/downstream?client=urllib3",
                "/after?client=requests",
            ])
            .load_as(requests, Manner::Close, Expected::Exact);
        run("waitress", vec![model]);
    }

    /// Its workers are forked when the application is loaded, and read
    /// requests in C. What is left to do after an answer is nobody's.
    #[test]
    fn uwsgi() {
        const WORKERS: usize = 3;
        let service = |threads: &str| {
            let words = ["serve_uwsgi.py", "--http-socket", "{host}:{port}"];
            Service::command("uwsgi", &words).arguments(&[
                "--master",
                "--need-app",
                "--disable-logging",
                "--die-on-term",
                "--listen",
                "100",
                "--processes",
                &WORKERS.to_string(),
                "--threads",
                threads,
                "--module",
                "servers.wsgi_app:app",
            ])
        };
        let models = [("prefork", "1"), ("prefork with threads", "8")];
        let models = models.into_iter().map(|(name, threads)| {
            Model::new(&format!("uWSGI {name}"), service(threads))
                .on(&Interpreter::servers())
                .every_process_of(1 + WORKERS)
                .load_as(
                    "/downstream?client=requests",
                    Manner::Close,
                    Expected::Exact,
                )
                .load_as("/downstream?client=urllib3", Manner::Close, Expected::Exact)
                .load_as(
                    "/after?client=requests",
                    Manner::Close,
                    Expected::Refused("spans.no_parent.ended"),
                )
        });
        run("uwsgi", models.collect());
    }
}
