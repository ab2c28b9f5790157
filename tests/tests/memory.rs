//! What `pyframes` says of objects, against what Python says of them: in live
//! processes of every version, and in memory that was recorded of them.
//!
//! `UPDATE_EXPECT=1` records anew. The live tests need permission to read
//! other processes, but no BPF.

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use otel_ebpf::remote::Process;
use otel_ebpf_tests::memory::{Recorder, Recording, tell};
use otel_ebpf_tests::program::pyenv;
use pyframes::layout::{self, Series};
use pyframes::line::{self, Position};
use pyframes::{Code, text};
use serde_json::{Value, json};

/// A Python that prints lines of JSON and waits until it is dropped.
struct Target {
    child: Child,
    output: BufReader<ChildStdout>,
}

impl Target {
    fn start(python: &Path, app: &str) -> Result<Self> {
        let apps = Path::new(env!("CARGO_MANIFEST_DIR")).join("apps");
        let mut child = Command::new(python)
            .arg(apps.join(app))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("{}", python.display()))?;
        let output = BufReader::new(child.stdout.take().context("piped")?);
        Ok(Self { child, output })
    }

    /// The next line.
    fn told(&mut self) -> Result<Value> {
        let mut line = String::new();
        self.output.read_line(&mut line)?;
        serde_json::from_str(&line).context(line)
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        _ = self.child.kill();
        _ = self.child.wait();
    }
}

fn series(minor: u8) -> Series {
    Series {
        minor,
        free_threaded: false,
    }
}

fn fixture(minor: u8, extension: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/memory");
    folder.join(format!("3.{minor}.{extension}"))
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
/// says, and with the recording.
fn agrees_with_python(minor: u8) -> Result<()> {
    let Some(python) = pyenv(&format!("3.{minor}")) else {
        return Ok(());
    };
    let mut target = Target::start(&python, "objects.py")?;
    let told = target.told()?;
    let root = told["root"].as_u64().context("no root")?;
    let lines: Vec<String> = serde_json::from_value(told["lines"].clone())?;
    let layout = layout::of(series(minor)).context("no layout")?;
    let process = Process::open(target.child.id())?;
    let recorder = Recorder::new(&process);
    let found = tell(&recorder, layout, root);
    compare(&found, &lines, &format!("Python 3.{minor}"))?;
    let recording = recorder.finish(series(minor), root);
    let text = found.join("\n") + "\n";
    if std::env::var_os("UPDATE_EXPECT").is_some_and(|it| it == "1") {
        std::fs::create_dir_all(fixture(minor, "bin").parent().context("a folder")?)?;
        std::fs::write(fixture(minor, "bin"), recording.encode())?;
        std::fs::write(fixture(minor, "txt"), text)?;
    } else {
        let expected = std::fs::read_to_string(fixture(minor, "txt"))?;
        ensure!(
            text == expected,
            "not as recorded (UPDATE_EXPECT=1 records)"
        );
    }
    Ok(())
}

#[test]
fn agrees_with_python_3_8() -> Result<()> {
    agrees_with_python(8)
}

#[test]
fn agrees_with_python_3_9() -> Result<()> {
    agrees_with_python(9)
}

#[test]
fn agrees_with_python_3_10() -> Result<()> {
    agrees_with_python(10)
}

#[test]
fn agrees_with_python_3_11() -> Result<()> {
    agrees_with_python(11)
}

#[test]
fn agrees_with_python_3_12() -> Result<()> {
    agrees_with_python(12)
}

#[test]
fn agrees_with_python_3_13() -> Result<()> {
    agrees_with_python(13)
}

/// Reads every code object that the program has and compares names, counts,
/// variables and the place of every instruction.
fn code_agrees_with_python(minor: u8) -> Result<()> {
    let Some(python) = pyenv(&format!("3.{minor}")) else {
        return Ok(());
    };
    let mut target = Target::start(&python, "codes.py")?;
    let mut codes = Vec::new();
    loop {
        let told = target.told()?;
        if told == "end" {
            break;
        }
        codes.push(told);
    }
    let layout = layout::of(series(minor)).context("no layout")?;
    let memory = Process::open(target.child.id())?;
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
    code_agrees_with_python(8)?;
    code_agrees_with_python(9)
}

#[test]
fn code_agrees_with_python_3_10() -> Result<()> {
    code_agrees_with_python(10)
}

#[test]
fn code_agrees_with_python_from_3_11_on() -> Result<()> {
    code_agrees_with_python(11)?;
    code_agrees_with_python(12)?;
    code_agrees_with_python(13)
}

/// Every version whose memory was recorded.
const RECORDED: [u8; 6] = [8, 9, 10, 11, 12, 13];

#[test]
fn recorded_memory_gives_the_recorded_text() -> Result<()> {
    for minor in RECORDED {
        let path = fixture(minor, "bin");
        let file = std::fs::read(&path).with_context(|| path.display().to_string())?;
        ensure!(file.len() < 150 << 10, "{} bytes", file.len());
        let recording = Recording::decode(&file)?;
        ensure!(recording.encode() == file);
        let found = tell(&recording, recording.layout(), recording.root);
        let expected = std::fs::read_to_string(fixture(minor, "txt"))?;
        let expected: Vec<_> = expected.lines().map(str::to_owned).collect();
        compare(&found, &expected, &format!("the recording of 3.{minor}"))?;
    }
    Ok(())
}
