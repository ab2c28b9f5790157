//! What `pyframes` says of objects, against what Python says of them: in live
//! processes of every version, and in memory that was recorded of them.
//!
//! `UPDATE_EXPECT=1` records anew. The live tests need permission to read
//! other processes, but no BPF.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use otel_ebpf::remote::Process;
use otel_ebpf_tests::memory::{Recorder, Recording, tell};
use otel_ebpf_tests::python::{Python, Running};
use pyframes::layout::{self, Layout, Series};
use pyframes::line::{self, Position};
use pyframes::{Code, text};
use serde_json::{Value, json};

/// A Python that prints lines of JSON and waits until it is dropped.
struct Target {
    running: Running,
}

impl Target {
    fn start(python: &Python, app: &str) -> Result<Self> {
        let app = Path::new(env!("CARGO_MANIFEST_DIR")).join("apps").join(app);
        let script = python.script(&app)?;
        let running = Running::start(python.command().arg(script))?;
        Ok(Self { running })
    }

    /// The next line.
    fn told(&mut self) -> Result<Value> {
        let line = self.running.line()?;
        serde_json::from_str(&line).context(line)
    }

    fn memory(&self) -> Result<Process> {
        Ok(Process::open(self.running.pid())?)
    }
}

const fn series(minor: u8) -> Series {
    Series {
        minor,
        free_threaded: false,
    }
}

const FREE_THREADED: Series = Series {
    minor: 13,
    free_threaded: true,
};

fn layout_of(series: Series) -> Result<&'static Layout> {
    layout::of(series).context("no layout")
}

fn fixture(series: Series, extension: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/memory");
    let flavor = if series.free_threaded { "t" } else { "" };
    folder.join(format!("3.{}{flavor}.{extension}", series.minor))
}

fn compare(found: &[String], expected: &[String], what: &str) -> Result<()> {
    for (idx, (found, expected)) in found.iter().zip(expected).enumerate() {
        ensure!(
            found == expected,
            "{what}, line {idx}:\n{found}\ninstead of\n{expected}"
        );
    }
    ensure!(
        found.len() == expected.len(),
        "{what}: {} lines",
        found.len()
    );
    Ok(())
}

/// Reads everything that the program made and compares it with what Python
/// says, and with the recording. Several Pythons of a series say the same.
fn agrees_with_python(series: Series, pythons: &[Option<Python>]) -> Result<()> {
    let update = std::env::var_os("UPDATE_EXPECT").is_some_and(|it| it == "1");
    let layout = layout_of(series)?;
    for (idx, python) in pythons.iter().flatten().enumerate() {
        let mut target = Target::start(python, "objects.py")?;
        let told = target.told()?;
        let root = told["root"].as_u64().context("no root")?;
        let lines: Vec<String> = serde_json::from_value(told["lines"].clone())?;
        let memory = target.memory()?;
        let recorder = Recorder::new(&memory);
        let found = tell(&recorder, layout, root);
        compare(&found, &lines, &format!("{python:?}"))?;
        let text = found.join("\n") + "\n";
        if update && idx == 0 {
            let recording = recorder.finish(series, root);
            std::fs::write(fixture(series, "bin"), recording.encode())?;
            std::fs::write(fixture(series, "txt"), text)?;
        } else {
            let expected = std::fs::read_to_string(fixture(series, "txt"))?;
            let expected: Vec<_> = expected.lines().map(str::to_owned).collect();
            compare(&found, &expected, "recorded with UPDATE_EXPECT=1")?;
        }
    }
    Ok(())
}

#[test]
fn agrees_with_python_3_8() -> Result<()> {
    agrees_with_python(series(8), &[Python::pyenv("3.8")])
}

#[test]
fn agrees_with_python_3_9() -> Result<()> {
    let pythons = [Python::pyenv("3.9"), Python::debian("bullseye", "3.9")];
    agrees_with_python(series(9), &pythons)
}

#[test]
fn agrees_with_python_3_10() -> Result<()> {
    agrees_with_python(series(10), &[Python::pyenv("3.10")])
}

#[test]
fn agrees_with_python_3_11() -> Result<()> {
    agrees_with_python(series(11), &[Python::pyenv("3.11")])
}

#[test]
fn agrees_with_python_3_12() -> Result<()> {
    agrees_with_python(series(12), &[Python::pyenv("3.12")])
}

#[test]
fn agrees_with_python_3_13() -> Result<()> {
    let pythons = [Python::pyenv("3.13"), Python::debian("trixie", "3.13")];
    agrees_with_python(series(13), &pythons)
}

#[test]
fn agrees_with_python_3_14() -> Result<()> {
    agrees_with_python(series(14), &[Python::debian("forky", "3.14")])
}

#[test]
fn agrees_with_python_without_the_gil() -> Result<()> {
    agrees_with_python(FREE_THREADED, &[Python::free_threaded("3.13")])
}

/// Reads every code object that the program has and compares names, counts,
/// variables and the place of every instruction.
fn code_agrees_with_python(series: Series, python: Option<Python>) -> Result<()> {
    let Some(python) = python else { return Ok(()) };
    let mut target = Target::start(&python, "codes.py")?;
    let mut codes = Vec::new();
    loop {
        let told = target.told()?;
        if told == "end" {
            break;
        }
        codes.push(told);
    }
    let layout = layout_of(series)?;
    let memory = target.memory()?;
    let text = |address| {
        let mut buffer = [0; 500];
        text::read_str(&memory, layout, address, &mut buffer).map(|text| text.text.to_owned())
    };
    ensure!(codes.len() > 100, "{} code objects", codes.len());
    for told in codes {
        let address = told["address"].as_u64().context("no address")?;
        let code = Code::read(&memory, layout, address)?;
        let mut variables = Vec::new();
        for (slot, variable) in (0..).zip(code.variables(&memory, layout)?) {
            let variable = variable?;
            ensure!(variable.slot == slot);
            variables.push(json!([
                text(variable.name)?,
                format!("{:?}", variable.kind)
            ]));
        }
        let n_instructions = told["positions"].as_array().context("no places")?.len() as u32;
        let mut positions = Vec::new();
        for idx in 0..n_instructions {
            let place = line::position(&memory, layout, &code, idx * 2)?;
            let line = place.map(|it| it.line);
            let at = |number: fn(&Position) -> Option<u32>| place.as_ref().and_then(number);
            positions.push(json!([
                line,
                at(|it| it.end_line),
                at(|it| it.column),
                at(|it| it.end_column)
            ]));
        }
        let found = json!({
            "address": address,
            "name": text(code.name)?,
            "qualname": code.qualname.map(text).transpose()?,
            "filename": text(code.filename)?,
            "numbers": [
                code.flags,
                code.firstlineno,
                code.argcount,
                code.posonlyargcount,
                code.kwonlyargcount,
                code.nlocals,
            ],
            "variables": variables,
            "positions": positions,
        });
        ensure!(found == told, "{found}\ninstead of\n{told}");
    }
    Ok(())
}

#[test]
fn code_agrees_with_python_up_to_3_9() -> Result<()> {
    code_agrees_with_python(series(8), Python::pyenv("3.8"))?;
    code_agrees_with_python(series(9), Python::pyenv("3.9"))
}

#[test]
fn code_agrees_with_python_3_10() -> Result<()> {
    code_agrees_with_python(series(10), Python::pyenv("3.10"))
}

#[test]
fn code_agrees_with_python_from_3_11_on() -> Result<()> {
    code_agrees_with_python(series(11), Python::pyenv("3.11"))?;
    code_agrees_with_python(series(12), Python::pyenv("3.12"))?;
    code_agrees_with_python(series(13), Python::pyenv("3.13"))?;
    code_agrees_with_python(series(14), Python::debian("forky", "3.14"))?;
    code_agrees_with_python(FREE_THREADED, Python::free_threaded("3.13"))
}

/// Every series whose memory was recorded.
const RECORDED: [Series; 8] = [
    series(8),
    series(9),
    series(10),
    series(11),
    series(12),
    series(13),
    series(14),
    FREE_THREADED,
];

#[test]
fn recorded_memory_gives_the_recorded_text() -> Result<()> {
    for series in RECORDED {
        let path = fixture(series, "bin");
        let file = std::fs::read(&path).with_context(|| path.display().to_string())?;
        ensure!(file.len() < 150 << 10, "{} bytes", file.len());
        let recording = Recording::decode(&file)?;
        ensure!(recording.encode() == file);
        let found = tell(&recording, recording.layout(), recording.root);
        let expected = std::fs::read_to_string(fixture(series, "txt"))?;
        let expected: Vec<_> = expected.lines().map(str::to_owned).collect();
        compare(&found, &expected, &format!("the recording of {series:?}"))?;
    }
    Ok(())
}
