//! Live tests of what is done about an interpreter that cannot be read: its
//! traffic is traced by its sockets, the operator is told why, and nothing is
//! guessed. They need root and BPF.

use otel_ebpf_tests::program::{
    Program, SERVER, agent, counter, refuses, request, without_settings,
};
use otel_ebpf_tests::python::Python;

/// A service is traced, but not read, for this reason.
fn check(python: &Python, before: &str, reason: &str) {
    let mut command = python.command();
    command.args(["-c", &format!("{before}{SERVER}")]);
    without_settings(&mut command);
    let service = Program::start(&mut command);
    let port: u16 = service.out.line_with("").parse().expect("a port");

    let pid = service.pid().to_string();
    let running = Program::start(&mut agent(&[
        "--stats",
        "--otlp-file",
        "-",
        "--bsp-schedule-delay",
        "50",
        "--pid",
        &pid,
    ]));
    let told = running.err.line_with("tracing ");
    assert!(
        told.contains("its sockets only, so no span will have a parent"),
        "{told}"
    );
    assert!(told.contains(reason), "{told}");
    for _ in 0..5 {
        request(port);
    }
    running.err.line_with("spans.server=5");
    running.terminate();
    let ended = running.ended();
    refuses(&ended, 0, &["summary lost=0"]);
    assert_eq!(counter(&ended.err, "spans.server"), 5, "{ended:#?}");
    assert_eq!(ended.out.matches("\"http.request.method\"").count(), 5);
    for insight in ["http.route", "code.function.name", "exception.type"] {
        assert!(!ended.out.contains(insight), "{insight} in {}", ended.out);
    }
}

#[test]
fn a_version_that_is_not_known_is_traced_by_its_sockets() {
    if let Some(python) = Python::debian("forky", "3.15") {
        check(&python, "", "the structures of Python 3.15.");
    }
}

#[test]
fn an_interpreter_that_contradicts_its_version_is_traced_by_its_sockets() {
    if let Some(python) = Python::pyenv("3.12") {
        check(
            &python,
            "import sys\nsys.hexversion = 0x030b00f0\n",
            "is not built as expected: sys.hexversion is not where it belongs",
        );
    }
}
