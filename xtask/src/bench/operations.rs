//! What tracing adds to `create_task`, to `copy_context().run`, to a query of
//! SQLite's by primary key and to a system call, in each version of Python.
//!
//! The first two make a context, and the agent has a probe where contexts come
//! into being; a query passes two. A system call that says nothing to the agent
//! (`getppid`) passes its tracepoints, in whatever process. The same process is measured untraced,
//! then traced, round by round in one and the same interpreter;
//! `tests/apps/bench_operations.py` counts.

use std::ffi::OsString;
use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::{OTHER_CORE, SERVICE_CORE, pinned_to};
use crate::python::apps;
use crate::service::{Agent, AgentOptions};

/// What is measured.
const MEASURED: [&str; 4] = ["create_task", "copy_context", "sqlite_select", "getppid"];

/// The numbers of one version, nanoseconds.
pub(super) struct Cost {
    version: String,
    /// Of each of [`MEASURED`]: untraced, traced.
    nanos: [[f64; 2]; MEASURED.len()],
}

/// Measures an interpreter; the least of the rounds counts.
pub(super) fn measure(
    version: &str,
    interpreter: &Path,
    agent: &Path,
    rounds: usize,
) -> Result<Cost> {
    let mut nanos = [[f64::INFINITY; 2]; MEASURED.len()];
    for _ in 0..rounds {
        let mut program = Program::start(interpreter)?;
        let untraced = program.ask()?;
        let attached = Agent::start(AgentOptions {
            binary: agent,
            pids: &[program.child.id()],
            arguments: ["--otlp-file", "/dev/null"].map(OsString::from).to_vec(),
            prefix: pinned_to(OTHER_CORE),
            show: false,
        })?;
        let traced = program.ask()?;
        attached.end()?;
        for (name, least) in MEASURED.iter().zip(&mut nanos) {
            for (least, found) in least.iter_mut().zip([&untraced, &traced]) {
                let found = found[*name].as_f64();
                *least = least.min(found.with_context(|| format!("no {name}"))?);
            }
        }
    }
    Ok(Cost {
        version: version.to_owned(),
        nanos,
    })
}

/// The table of the report.
pub(super) fn table(costs: &[Cost]) -> String {
    let mut text = format!(
        "{:<10} {:<14} {:>12} {:>12} {:>12}\n",
        "Python", "operation", "untraced ns", "traced ns", "added ns"
    );
    for cost in costs {
        for (name, [untraced, traced]) in MEASURED.iter().zip(cost.nanos) {
            let added = traced - untraced;
            let _infallible = writeln!(
                text,
                "{:<10} {name:<14} {untraced:>12.0} {traced:>12.0} {added:>12.0}",
                cost.version
            );
        }
    }
    text
}

/// The same for the report's file.
pub(super) fn json(costs: &[Cost]) -> Value {
    costs
        .iter()
        .map(|cost| {
            let mut value = json!({});
            for (name, [untraced, traced]) in MEASURED.iter().zip(cost.nanos) {
                value[*name] = json!({
                    "untraced_ns": untraced,
                    "traced_ns": traced,
                    "added_ns": traced - untraced,
                });
            }
            (cost.version.clone(), value)
        })
        .collect()
}

/// The program that counts; it ends with its input.
struct Program {
    child: Child,
    output: BufReader<ChildStdout>,
}

impl Program {
    fn start(interpreter: &Path) -> Result<Self> {
        let mut words = pinned_to(SERVICE_CORE).into_iter();
        let mut command = Command::new(words.next().context("no command")?);
        let mut child = command
            .args(words)
            .arg(interpreter)
            .arg(apps().join("bench_operations.py"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start {}", interpreter.display()))?;
        let output = child.stdout.take().context("it has no output")?;
        let mut program = Self {
            child,
            output: BufReader::new(output),
        };
        program.line()?;
        Ok(program)
    }

    /// Lets it count once.
    fn ask(&mut self) -> Result<Value> {
        let input = self.child.stdin.as_mut().context("it has no input")?;
        input.write_all(b"count\n")?;
        input.flush()?;
        let line = self.line()?;
        serde_json::from_str(&line).with_context(|| format!("it printed {line:?}"))
    }

    fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        self.output.read_line(&mut line)?;
        Ok(line)
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // It may have ended already.
        _ = self.child.kill();
        _ = self.child.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_added_is_told_beside_what_it_is_added_to() {
        let cost = Cost {
            version: "3.12".to_owned(),
            nanos: [
                [2000.0, 3000.0],
                [300.0, 1250.0],
                [4000.0, 8500.0],
                [150.0, 200.0],
            ],
        };
        let text = table(std::slice::from_ref(&cost));
        let words: Vec<Vec<_>> = text
            .lines()
            .map(|line| line.split_whitespace().collect())
            .collect();
        assert_eq!(words[1], ["3.12", "create_task", "2000", "3000", "1000"]);
        assert_eq!(words[2], ["3.12", "copy_context", "300", "1250", "950"]);
        assert_eq!(words[3], ["3.12", "sqlite_select", "4000", "8500", "4500"]);
        assert_eq!(words[4], ["3.12", "getppid", "150", "200", "50"]);
        assert_eq!(json(&[cost])["3.12"]["copy_context"]["added_ns"], 950.0);
    }
}
