//! Whose child is it where every request has a greenlet of its own on one
//! thread: more rows of the table of models in `attribution.rs`, for
//! gunicorn's gevent and eventlet workers.
//!
//! `cargo xtask test attribution` runs them, too. Needs root, BPF and the
//! Python environments of `cargo xtask test`.

use otel_ebpf_tests::app::Service;
use otel_ebpf_tests::attribution::{Expected, Interpreter, Model, run};
use otel_ebpf_tests::load::Manner;
use otel_ebpf_tests::python::Python;

/// What serves with greenlets: a worker of gunicorn, and the library whose
/// greenlets they are.
#[derive(Clone, Copy)]
struct Worker {
    class: &'static str,
    scheduler: &'static str,
}

const GEVENT: Worker = Worker {
    class: "gevent",
    scheduler: "gevent",
};
const EVENTLET: Worker = Worker {
    class: "eventlet",
    scheduler: "eventlet",
};
const PYWSGI: Worker = Worker {
    class: "gevent_pywsgi",
    scheduler: "gevent",
};

/// Refused, as the workers of a pool that all requests share are nobody's.
const SHARED: Expected = Expected::Refused("spans.no_parent.unowned_greenlet");

impl Worker {
    fn service(self) -> Service {
        Service::gunicorn("greenlet_app")
            .arguments(&["--worker-class", self.class])
            .env("APP_SCHEDULER", self.scheduler)
    }

    fn model(self, what: &str, interpreter: &Interpreter) -> Model {
        let name = format!("gunicorn {}{what}", self.class);
        Model::new(&name, self.service()).on(interpreter)
    }
}

/// The interpreter of the long rows.
fn main_interpreter(found: &[Interpreter]) -> &Interpreter {
    let preferred = found.iter().find(|it| it.label == "3.12");
    preferred.unwrap_or(&found[0])
}

/// Every way in which a request makes calls.
fn everything(worker: Worker, interpreter: &Interpreter) -> Model {
    // The same threads serve all requests. gevent runs a greenlet on each;
    // eventlet's sockets are green there, too, and wait in a hub of their own.
    let native = match worker.scheduler {
        "gevent" => SHARED,
        _ => Expected::Refused("spans.no_parent.event_loop"),
    };
    worker
        .model("", interpreter)
        .loads(&[
            "/downstream?client=requests",
            "/downstream?client=urllib3",
            "/spawned?client=requests",
            "/pool",
            "/threads",
            "/later",
        ])
        .load_as(
            "/spawned?client=http.client",
            Manner::Close,
            Expected::Exact,
        )
        .load_as(
            "/downstream?client=http.client",
            Manner::Mixed,
            Expected::NoneMisplaced,
        )
        .load_as("/executor", Manner::Whole, SHARED)
        .load_as("/native", Manner::Whole, native)
}

/// The same in short.
fn some(model: Model) -> Model {
    model
        .load("/downstream?client=requests")
        .load_as("/spawned?client=urllib3", Manner::Close, Expected::Exact)
        .load_as("/executor", Manner::Whole, SHARED)
}

mod attribution {
    use super::*;

    #[test]
    fn gevent() {
        let found = Interpreter::greenlets();
        let main = main_interpreter(&found);
        let models = vec![everything(GEVENT, main), some(PYWSGI.model("", main))];
        run("gevent", models);
    }

    #[test]
    fn eventlet() {
        let found = Interpreter::greenlets();
        let models = vec![everything(EVENTLET, main_interpreter(&found))];
        run("eventlet", models);
    }

    /// TLS on both sides: the sessions of all greenlets on one thread.
    #[test]
    fn greenlets_with_tls() {
        let found = Interpreter::greenlets();
        let main = main_interpreter(&found);
        let models = [GEVENT, PYWSGI, EVENTLET].map(|worker| {
            let name = format!("gunicorn {}, TLS", worker.class);
            Model::new(&name, worker.service().tls())
                .on(main)
                .calls_tls()
                .load("/downstream?client=requests")
                .load("/spawned?client=urllib3")
                .load_as(
                    "/spawned?client=http.client",
                    Manner::Close,
                    Expected::Exact,
                )
        });
        run("greenlets_with_tls", models.into());
    }

    /// Those of other versions, and the system's, which is stripped, with the
    /// packages of one of its version.
    #[test]
    fn greenlets_of_every_interpreter() {
        let found = Interpreter::greenlets();
        let main = main_interpreter(&found);
        let mut models = Vec::new();
        for interpreter in found.iter().filter(|it| it.label != main.label) {
            for worker in [GEVENT, EVENTLET] {
                models.push(some(worker.model("", interpreter)));
            }
        }
        if let Some(system) = Python::system() {
            let system = Interpreter::of(&system, "system").expect("its version");
            let packages = found
                .iter()
                .find(|it| system.label == format!("{} system", it.label))
                .expect("an environment of the system's version")
                .packages();
            let mut model = some(GEVENT.model("", &system));
            model.service = model.service.env("PYTHONPATH", packages);
            models.push(model);
        }
        run("greenlets_of_every_interpreter", models);
    }

    /// Greenlets that were there before the first request, and what they call.
    #[test]
    fn greenlets_of_no_request() {
        let found = Interpreter::greenlets();
        let models = [GEVENT, EVENTLET].map(|worker| {
            let mut model = some(worker.model(", unowned calls", main_interpreter(&found)));
            model.service = model.service.env("APP_UNOWNED", "1");
            model.unowned(&["background-greenlet", "background-thread"])
        });
        run("greenlets_of_no_request", models.into());
    }

    /// Attached while greenlets are at work, and to a server that forks.
    #[test]
    fn greenlets_midway() {
        let found = Interpreter::greenlets();
        let models = [GEVENT, EVENTLET].map(|worker| {
            let (target, none) = ("/spawned?client=urllib3", Expected::NoneMisplaced);
            worker
                .model(", attached midway", main_interpreter(&found))
                .attach_midway()
                .every_process()
                .nothing_need_be_placed()
                .load_as(target, Manner::Whole, none)
                .load("/downstream?client=requests")
        });
        run("greenlets_midway", models.into());
    }
}
