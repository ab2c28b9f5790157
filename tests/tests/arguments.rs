//! What a frame passes to a method that is written in C, read from live
//! processes of every version, in every form of a call.
//!
//! Needs permission to read other processes (root), but no BPF.

use otel_ebpf::remote::Process;
use otel_ebpf::target::interpreter::Interpreter;
use otel_ebpf_tests::python::{Python, Running};
use pyframes::Memory as _;
use pyframes::argument::{self, Wanted};
use pyframes::frame::Walker;
use pyframes::recipe::{MAX_STEPS, Scratch, Step, op, run_rest};
use pyframes::sequence::Bytes;
use pyframes::text;
use pyframes::window::Windows;

/// A method that is written in C calls back, so that the process waits while
/// it runs, and says what it was given: in each form of a call once.
const CALLING: &str = r#"
import sys
from types import BuiltinFunctionType
from xml.parsers import expat

class Composable:
    def __iter__(self):
        wait()
        return iter(())
class Composed(Composable):
    pass

def wait(*_):
    print("waiting")
    sys.stdout.flush()
    sys.stdin.readline()

def parser():
    made = expat.ParserCreate()
    made.StartElementHandler = wait
    return made

# Below what is passed to it lie what a loop goes through and what ends a
# block, above what calls before it left.
def method(parser, other, text):
    for _ in [None]:
        with memoryview(b""):
            print(max(1, 2, 3, 4, 5), other.Parse("<earlier/>", True))
            parser.Parse(text, bool(max(0, 1)))
def bound(parse, text):
    for _ in [None]:
        parse(text, True)
def in_bytes(parser, text):
    parser.Parse(text, True)
def all_at_once(parser, *arguments):
    for _ in [None]:
        parser.Parse(*arguments)
def passed_on(parse, *arguments, **names):
    parse(*arguments, **names)
def in_part(parser, text, *arguments):
    parser.Parse(text, *arguments)
def in_list(parser, arguments):
    parser.Parse(*arguments)
def by_name(lines, **names):
    lines.sort(**names)
def composed(lines, text):
    lines.extend(text)

print(id(expat.XMLParserType), id(list), id(BuiltinFunctionType), id(Composable), id(expat))
method(parser(), expat.ParserCreate(), "<now" + "/>")
bound(parser().Parse, "<now" + "/>")
in_bytes(parser(), b"<now" + bytes(b"/>"))
all_at_once(parser(), "<now" + "/>", True)
passed_on(parser().Parse, "<now" + "/>", True)
in_part(parser(), "<now" + "/>", True)
in_list(parser(), ["<now" + "/>", True])
name = wait
print(id(name), id(sys.intern("key")))
by_name(["a"], key=wait, reverse=True)
text = Composed()
print(id(text))
composed(["a"], text)
"#;

/// Whether an argument is a text, and what it is.
#[derive(Debug, PartialEq)]
enum Found {
    Text(String),
    Other(u64),
}

fn check(python: Option<Python>) {
    let Some(python) = python else { return };
    let mut running = Running::python(&python, CALLING).expect("starts");
    let ids = |line: String| -> Vec<u64> {
        line.split(' ')
            .map(|id| id.parse().unwrap_or_else(|_| panic!("{python:?}: {line}")))
            .collect()
    };
    let told = ids(running.line().expect("a line"));
    let [parsers, lists, functions, composed, other] = told[..] else {
        panic!("{python:?}: {told:?}");
    };
    assert_eq!(running.line().expect("a line"), "5 1");
    let process = Process::open(running.pid()).expect("opens the child");
    let found = Interpreter::find(&process).expect("an interpreter");
    let layout = &found.layout;
    let mut scratch = Box::new(Scratch::new());
    // The first argument of a method of a class that the frame calls which
    // `wait` was called from, and what the steps lead to from it.
    let mut first = |class: u64, steps: &[Step], form: &str| {
        let threads = found.threads(&process).expect("lists threads");
        let [thread] = threads.as_slice() else {
            panic!("{} threads", threads.len());
        };
        let (mut walker, mut windows) = (Walker::new(), Windows::new());
        walker
            .start(&process, layout, thread.address, &mut windows)
            .expect("starts");
        let frame = loop {
            let frame = walker.step(&process, layout, &mut windows);
            let frame = frame.expect("readable").expect("a frame");
            let name = process.pointer(frame.code + u64::from(layout.code.co_name));
            if text::str_equals(&process, layout, name.expect("a name"), form) == Ok(true) {
                break frame;
            }
        };
        scratch.forget();
        let wanted = Wanted {
            class,
            functions,
            composed,
        };
        let found = argument::first(&process, layout, frame.address, wanted, &mut scratch)?;
        let mut all = [Step::default(); MAX_STEPS];
        all[..steps.len()].copy_from_slice(steps);
        let address = run_rest(&process, layout, &all, found, &mut scratch)?;
        let mut buffer = [0; 64];
        if let Ok(text) = text::read_str(&process, layout, address, &mut buffer) {
            return Ok(Found::Text(text.text.to_owned()));
        }
        Ok(match Bytes::open(&process, layout, address) {
            Ok(bytes) => {
                let mut text = vec![0; usize::try_from(bytes.len).expect("few")];
                assert!(process.read(bytes.data, &mut text));
                Found::Text(String::from_utf8(text).expect("a text"))
            }
            Err(_) => Found::Other(address),
        })
    };
    let text = || Ok::<_, pyframes::Error>(Found::Text("<now/>".to_owned()));
    for form in [
        "method",
        "bound",
        "in_bytes",
        "all_at_once",
        "passed_on",
        "in_part",
        "in_list",
    ] {
        assert_eq!(running.line().expect("a line"), "waiting", "{python:?}");
        assert_eq!(first(parsers, &[], form), text(), "{form} {python:?}");
        assert!(first(other, &[], form).is_err(), "{form} {python:?}");
        running.tell("\n").expect("goes on");
    }
    let told = ids(running.line().expect("a line"));
    let key = Step {
        op: op::ITEM,
        key: told[1],
        ..Step::default()
    };
    let steps = [key];
    assert_eq!(running.line().expect("a line"), "waiting", "{python:?}");
    assert_eq!(
        first(lists, &steps, "by_name"),
        Ok(Found::Other(told[0])),
        "{python:?}"
    );
    running.tell("\n").expect("goes on");
    let told = ids(running.line().expect("a line"));
    assert_eq!(running.line().expect("a line"), "waiting", "{python:?}");
    assert_eq!(
        first(lists, &steps, "composed"),
        Ok(Found::Other(told[0])),
        "{python:?}"
    );
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
