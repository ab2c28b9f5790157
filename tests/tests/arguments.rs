//! What a frame passes to a method that is written in C, read from live
//! processes of every version.
//!
//! Needs permission to read other processes (root), but no BPF.

use otel_ebpf::remote::Process;
use otel_ebpf::target::interpreter::Interpreter;
use otel_ebpf_tests::python::{Python, Running};
use pyframes::argument;
use pyframes::frame::Walker;
use pyframes::recipe::Scratch;
use pyframes::text;
use pyframes::window::Windows;

/// A method that is written in C calls back, so that the process waits while
/// it runs, and says what it was given. Below what is passed to it lie what a
/// loop goes through and what ends a block, above what calls before it left.
const CALLING: &str = r#"
import sys
from xml.parsers import expat
def wait(*_):
    print(id(expat.XMLParserType), id(expat))
    sys.stdout.flush()
    sys.stdin.read()
def call(parser, other, text):
    for _ in [None]:
        with memoryview(b""):
            print(max(1, 2, 3, 4, 5), other.Parse("<earlier/>", True))
            parser.StartElementHandler = wait
            parser.Parse(text, bool(max(0, 1)))
call(expat.ParserCreate(), expat.ParserCreate(), "<now" + "/>")
"#;

fn check(python: Option<Python>) {
    let Some(python) = python else { return };
    let mut running = Running::python(&python, CALLING).expect("starts");
    let mut line = || running.line().expect("a line");
    assert_eq!(line(), "5 1");
    let told = line();
    let mut ids = told.split(' ').map(|id| id.parse::<u64>().expect("an id"));
    let (class, other) = (ids.next().expect("two ids"), ids.next().expect("two ids"));
    let process = Process::open(running.pid()).expect("opens the child");
    let found = Interpreter::find(&process).expect("an interpreter");
    let threads = found.threads(&process).expect("lists threads");
    let [thread] = threads.as_slice() else {
        panic!("{} threads", threads.len());
    };
    let mut walker = Walker::new();
    let mut windows = Windows::new();
    let layout = &found.layout;
    walker
        .start(&process, layout, thread.address, &mut windows)
        .expect("starts");
    let mut step = || {
        let frame = walker.step(&process, layout, &mut windows);
        frame.expect("readable").expect("a frame")
    };
    let (_wait, call) = (step(), step());
    let mut scratch = Box::new(Scratch::new());
    let mut first = |class| argument::first(&process, layout, call.address, class, &mut scratch);
    let argument = first(class).unwrap_or_else(|error| panic!("{python:?}: {error}"));
    let passed = text::str_equals(&process, layout, argument, "<now/>");
    assert_eq!(passed, Ok(true), "{python:?}");
    assert!(first(other).is_err(), "{python:?}");
}

#[test]
fn arguments_of_methods_are_read_in_every_version() {
    for version in ["3.8", "3.9", "3.10", "3.11", "3.12", "3.13"] {
        check(Python::pyenv(version));
    }
}

#[test]
fn arguments_of_methods_are_read_in_builds_of_other_systems() {
    check(Python::free_threaded("3.13"));
    check(Python::debian("forky", "3.14"));
}
