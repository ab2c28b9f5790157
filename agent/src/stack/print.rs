//! Words the stacks: for people, or as JSON.
//!
//! Names and values come from the process and may hold anything: what a
//! terminal would obey is escaped.

use std::fmt::Write as _;

use serde_json::{Value, json};

use super::{Frame, Snapshot, Stack, State, Thread};

/// As text, the most recent call first.
pub(super) fn text(snapshot: &Snapshot, with_locals: bool) -> String {
    let mut text = format!(
        "Process {}: {}\nPython {} ({})\n",
        snapshot.pid,
        plain(&snapshot.command),
        snapshot.version,
        plain(&snapshot.program)
    );
    for thread in &snapshot.threads {
        text.push('\n');
        text.push_str(&title(thread));
        match &thread.stack {
            Stack::Whole(frames) if frames.is_empty() => text.push_str("    (no Python code)\n"),
            Stack::Whole(_) => {}
            Stack::Changing(_) => text.push_str("    (more recent calls kept changing)\n"),
            // Nothing is to be told that may be wrong.
            Stack::Unreadable(error) => line(&mut text, &format!("    (unreadable: {error})")),
        }
        for frame in thread.stack.frames() {
            line(&mut text, &format!("    {}", place(frame)));
            for local in frame.locals.iter().filter(|_| with_locals) {
                let (name, value) = (plain(&local.name), plain(&local.value));
                line(&mut text, &format!("        {name} = {value}"));
            }
        }
    }
    text
}

/// As one JSON document.
pub(super) fn json(snapshot: &Snapshot) -> String {
    let threads: Vec<_> = snapshot.threads.iter().map(thread_json).collect();
    let document = json!({
        "pid": snapshot.pid,
        "command": snapshot.command,
        "program": snapshot.program,
        "version": snapshot.version.to_string(),
        "threads": threads,
    });
    let mut text = String::new();
    // What JSON may hold as it is, a terminal need not be shown.
    for character in format!("{document:#}").chars() {
        if character == '\n' || !is_obeyed(character) {
            text.push(character);
            continue;
        }
        for unit in character.encode_utf16(&mut [0; 2]) {
            _ = write!(text, "\\u{unit:04x}");
        }
    }
    text.push('\n');
    text
}

fn thread_json(thread: &Thread) -> Value {
    let (stack, error) = match &thread.stack {
        Stack::Whole(_) => ("whole", None),
        Stack::Changing(_) => ("changing", None),
        Stack::Unreadable(error) => ("unreadable", Some(error.to_string())),
    };
    let frames: Vec<_> = thread.stack.frames().iter().map(frame_json).collect();
    json!({
        "interpreter": thread.interpreter,
        "tid": thread.tid,
        "native_id": thread.native_id,
        "ident": thread.ident,
        "name": thread.name,
        "state": state(thread.state),
        "stack": stack,
        "error": error,
        "frames": frames,
    })
}

fn frame_json(frame: &Frame) -> Value {
    let locals = frame.locals.iter();
    let locals: Vec<_> = locals
        .map(|local| json!({"name": local.name, "value": local.value}))
        .collect();
    json!({
        "name": frame.name,
        "qualname": frame.qualname,
        "file": frame.file,
        "line": frame.line,
        "locals": locals,
    })
}

fn title(thread: &Thread) -> String {
    let mut title = match thread.tid.or(thread.native_id) {
        Some(tid) => format!("Thread {tid}"),
        None => format!("Thread {:#x}", thread.ident),
    };
    if let Some(name) = &thread.name {
        _ = write!(title, " {}", plain(name));
    }
    _ = write!(title, " ({}", state(thread.state));
    if let (Some(native_id), true) = (thread.native_id, thread.tid != thread.native_id) {
        _ = write!(title, ", {native_id} in its own namespace");
    }
    if thread.interpreter != 0 {
        _ = write!(title, ", interpreter {}", thread.interpreter);
    }
    title.push_str(")\n");
    title
}

fn place(frame: &Frame) -> String {
    let function = plain(frame.qualname.as_ref().unwrap_or(&frame.name));
    let file = plain(&frame.file);
    match frame.line {
        Some(line) => format!("{function} ({file}:{line})"),
        None => format!("{function} ({file})"),
    }
}

fn state(state: State) -> &'static str {
    match state {
        State::Running => "running",
        State::Idle => "idle",
        State::Unknown => "unknown",
    }
}

fn line(text: &mut String, line: &str) {
    text.push_str(line);
    text.push('\n');
}

/// The text with what a terminal would obey escaped as Python does.
fn plain(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    for character in text.chars() {
        if !is_obeyed(character) {
            plain.push(character);
            continue;
        }
        _ = match u32::from(character) {
            point @ 0..0x100 => write!(plain, "\\x{point:02x}"),
            point @ 0x100..0x1_0000 => write!(plain, "\\u{point:04x}"),
            point => write!(plain, "\\U{point:08x}"),
        };
    }
    plain
}

/// Whether a terminal would do something else than show it: control
/// characters, line separators, and what changes the direction of writing.
fn is_obeyed(character: char) -> bool {
    character.is_control()
        || matches!(
            character,
            '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}'
        )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stack::Local;
    use crate::target::interpreter::PythonVersion;

    fn snapshot() -> Snapshot {
        let frame = |name: &str, line| Frame {
            name: name.to_owned(),
            qualname: Some(format!("Class.{name}")),
            file: "app.py".to_owned(),
            line,
            locals: vec![Local {
                name: "x".to_owned(),
                value: "'\u{1b}[31m\u{9b}\u{202e}'".to_owned(),
            }],
        };
        let thread = |stack| Thread {
            interpreter: 0,
            tid: Some(42),
            native_id: Some(42),
            ident: 0x7f00,
            name: Some("Main\nThread".to_owned()),
            state: State::Idle,
            stack,
        };
        let changing = Stack::Changing(vec![Frame {
            qualname: None,
            ..frame("outer", None)
        }]);
        Snapshot {
            pid: 42,
            command: "python app.py".to_owned(),
            program: "/usr/bin/python3".to_owned(),
            version: PythonVersion {
                major: 3,
                minor: 12,
                micro: 1,
                free_threaded: false,
            },
            threads: vec![
                thread(Stack::Whole(vec![frame("inner", Some(7))])),
                Thread {
                    interpreter: 1,
                    native_id: Some(7),
                    name: None,
                    ..thread(changing)
                },
                Thread {
                    tid: None,
                    native_id: None,
                    name: None,
                    state: State::Unknown,
                    ..thread(Stack::Unreadable(pyframes::Error::TooLong))
                },
                thread(Stack::Whole(Vec::new())),
            ],
        }
    }

    #[test]
    fn tells_every_thread_and_what_is_not_known() {
        let expected = r"Process 42: python app.py
Python 3.12.1 (/usr/bin/python3)

Thread 42 Main\x0aThread (idle)
    Class.inner (app.py:7)
        x = '\x1b[31m\x9b\u202e'

Thread 42 (idle, 7 in its own namespace, interpreter 1)
    (more recent calls kept changing)
    outer (app.py)
        x = '\x1b[31m\x9b\u202e'

Thread 0x7f00 (unknown)
    (unreadable: a structure is longer than its bound)

Thread 42 Main\x0aThread (idle)
    (no Python code)
";
        assert_eq!(text(&snapshot(), true), expected);
        assert!(!text(&snapshot(), false).contains("x = "));
    }

    #[test]
    fn json_says_the_same_and_nothing_a_terminal_obeys() {
        let text = json(&snapshot());
        assert!(
            !text.chars().any(|it| it != '\n' && is_obeyed(it)),
            "{text}"
        );
        let document: Value = serde_json::from_str(&text).expect("is JSON");
        let local = &document["threads"][0]["frames"][0]["locals"][0];
        assert_eq!(local["value"], "'\u{1b}[31m\u{9b}\u{202e}'");
        assert_eq!(document["threads"][1]["stack"], "changing");
        assert_eq!(document["threads"][1]["frames"][0]["line"], Value::Null);
        assert_eq!(document["version"], "3.12.1");
    }

    #[test]
    fn a_line_separator_is_not_written() {
        assert_eq!(
            plain("é\u{7f}\u{2028}🐍\u{feff}"),
            "é\\x7f\\u2028🐍\u{feff}"
        );
    }
}
