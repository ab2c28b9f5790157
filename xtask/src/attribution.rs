//! The report of the attribution suite: `tests/reports/attribution.md`, and
//! the same table on the terminal.
//!
//! The tests write what they counted, a file of JSON lines for each group;
//! this gathers the lines, in the order of the groups' names, when the suite
//! has run whole.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::Value;

use crate::{root, target};

/// Where the tests write to.
pub(crate) fn directory() -> PathBuf {
    target().join("attribution")
}

/// Whether the suite runs whole with this filter.
pub(crate) fn is_whole(filter: Option<&str>) -> bool {
    filter.is_none_or(|filter| filter == "attribution")
}

/// Makes room for a new run.
pub(crate) fn clear() -> Result<()> {
    let directory = directory();
    if directory.exists() {
        fs::remove_dir_all(&directory)?;
    }
    fs::create_dir_all(&directory).with_context(|| directory.display().to_string())
}

/// Prints the table of what ran; writes the report if all of it did.
pub(crate) fn report(whole: bool, untested: &[String]) -> Result<()> {
    let rows = rows(&directory())?;
    if rows.is_empty() {
        return Ok(());
    }
    print!("{}", terminal(&rows));
    if whole {
        let file = root().join("tests/reports/attribution.md");
        if let Some(parent) = file.parent() {
            fs::create_dir_all(parent)?;
        }
        fs::write(&file, markdown(&rows, untested))?;
        println!("{}", file.display());
    }
    Ok(())
}

/// A load of a model.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Row {
    group: String,
    model: String,
    load: String,
    interpreter: String,
    expected: String,
    requests: u64,
    placed: u64,
    unparented: u64,
    misplaced: u64,
    orphaned: u64,
}

/// All rows, group by group.
fn rows(directory: &Path) -> Result<Vec<Row>> {
    let mut files: Vec<PathBuf> = fs::read_dir(directory)?
        .flatten()
        .map(|entry| entry.path())
        .collect();
    files.sort();
    let mut rows = Vec::new();
    for file in files {
        let group = file.file_stem().unwrap_or_default().to_string_lossy();
        for line in fs::read_to_string(&file)?.lines() {
            let row = row(&group, line);
            rows.push(row.with_context(|| format!("{}: {line}", file.display()))?);
        }
    }
    Ok(rows)
}

fn row(group: &str, line: &str) -> Result<Row> {
    let line: Value = serde_json::from_str(line)?;
    let text = |name: &str| {
        let value = line[name].as_str().map(str::to_owned);
        value.with_context(|| format!("no {name}"))
    };
    let number = |name: &str| line[name].as_u64().with_context(|| format!("no {name}"));
    Ok(Row {
        group: group.to_owned(),
        model: text("model")?,
        load: text("load")?,
        interpreter: text("interpreter")?,
        expected: text("expected")?,
        requests: number("requests")?,
        placed: number("placed")?,
        unparented: number("unparented")?,
        misplaced: number("misplaced")?,
        orphaned: number("orphaned")?,
    })
}

/// The sum of a column.
fn total(rows: &[Row], column: fn(&Row) -> u64) -> u64 {
    rows.iter().map(column).sum()
}

fn terminal(rows: &[Row]) -> String {
    let mut text = format!(
        "{:<68} {:<14} {:>8} {:>8} {:>10} {:>9}\n",
        "attribution", "interpreter", "requests", "placed", "unparented", "misplaced"
    );
    for row in rows {
        let what = format!("{} {}", row.model, row.load);
        let _infallible = writeln!(
            text,
            "  {what:<66} {:<14} {:>8} {:>8} {:>10} {:>9}",
            row.interpreter, row.requests, row.placed, row.unparented, row.misplaced
        );
    }
    text
}

const HEAD: &str = "\
# Attribution

Written by `cargo xtask test attribution`; how it is measured is in
[ARCHITECTURE.md](../../ARCHITECTURE.md#how-attribution-is-shown). Each row is a
load on a real server, 64 requests in flight, of which every one makes one to
five calls of its own. The first table sums up the models: each must have had
2,000 requests and more, or the run fails, but for those that must lose some.
The second sums up the ways in which requests come and make their calls, over
all models.

* *placed*: calls under the very request that made them.
* *unparented*: calls under no request. Each is counted by its reason.
* *misplaced*: calls under another span than their request. A single one fails
  the run.
* *exact*: every call of every request is there, once, under its request; at
  most one in a thousand may be unparented.
* *none misplaced*: calls are given up in the middle, or their evidence is
  taken away, so that the others cannot be told beforehand.
* *refused*: the model cannot be followed, and the counter that is named tells
  of each call that is under no request.
* *no parent*: calls that no request made.
";

fn markdown(rows: &[Row], untested: &[String]) -> String {
    let mut text = HEAD.to_owned();
    let _infallible = writeln!(
        text,
        "\nAll in all {} requests, {} calls placed, {} unparented, **{} misplaced**.",
        total(rows, |row| row.requests),
        total(rows, |row| row.placed),
        total(rows, |row| row.unparented),
        total(rows, |row| row.misplaced)
    );
    for what in untested {
        // Without the reason, which names places of this machine.
        let what = what.split(" (").next().unwrap_or(what);
        let _infallible = writeln!(text, "\nNot tested, since it was not to be had: {what}.");
    }
    text.push_str(&models(rows));
    text.push_str(&ways(rows));
    let mut group = "";
    for row in rows {
        if row.group != group {
            group = &row.group;
            let _infallible = write!(
                text,
                "\n## {}\n\n\
                 | model | load | interpreter | requests | placed | unparented | misplaced | expected |\n\
                 |---|---|---|--:|--:|--:|--:|---|\n",
                group.replace('_', " ")
            );
        }
        let _infallible = writeln!(
            text,
            "| {} | `{}` | {} | {} | {} | {} | {} | {} |",
            row.model,
            row.load,
            row.interpreter,
            row.requests,
            row.placed,
            row.unparented,
            row.misplaced,
            row.expected
        );
    }
    text
}

/// What all loads came to that were sent to a path in the same manner, whatever
/// the model.
fn ways(rows: &[Row]) -> String {
    let mut found = BTreeMap::<String, Vec<Row>>::new();
    for row in rows.iter().filter(|row| row.load.starts_with('/')) {
        let (target, manner) = row.load.split_once(", ").unwrap_or((&row.load, ""));
        let path = target.split('?').next().unwrap_or_default();
        let way = format!("`{path}` {manner}").trim_end().to_owned();
        found.entry(way).or_default().push(row.clone());
    }
    let mut text = String::from(
        "\n## Ways\n\n\
         | way | loads | requests | placed | unparented | misplaced |\n\
         |---|--:|--:|--:|--:|--:|\n",
    );
    for (way, all) in found {
        let _infallible = writeln!(text, "| {way} | {} | {} |", all.len(), totals(&all));
    }
    text
}

/// The cells of requests, and of calls by what became of them.
fn totals(rows: &[Row]) -> String {
    format!(
        "{} | {} | {} | {}",
        total(rows, |row| row.requests),
        total(rows, |row| row.placed),
        total(rows, |row| row.unparented),
        total(rows, |row| row.misplaced)
    )
}

/// What all loads of each model came to, on every interpreter.
fn models(rows: &[Row]) -> String {
    let mut found: Vec<(&Row, Vec<Row>)> = Vec::new();
    for row in rows {
        let same = |known: &Row| (&known.group, &known.model) == (&row.group, &row.model);
        match found.iter_mut().find(|(known, _)| same(known)) {
            Some((_, all)) => all.push(row.clone()),
            None => found.push((row, vec![row.clone()])),
        }
    }
    let mut text = String::from(
        "\n## Models\n\n\
         | model | of | interpreters | loads | requests | placed | unparented | misplaced |\n\
         |---|---|--:|--:|--:|--:|--:|--:|\n",
    );
    for (first, all) in found {
        let interpreters: BTreeSet<_> = all.iter().map(|row| &row.interpreter).collect();
        let _infallible = writeln!(
            text,
            "| {} | {} | {} | {} | {} |",
            first.model,
            first.group.replace('_', " "),
            interpreters.len(),
            all.len(),
            totals(&all)
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINE: &str = r#"{"model":"uvicorn","load":"/gather","interpreter":"3.12",
        "expected":"exact","requests":2,"placed":5,"unparented":1,"misplaced":0,"orphaned":0}"#;

    #[test]
    fn a_line_becomes_a_row_of_its_group() {
        let directory = tempfile::tempdir().unwrap();
        let line = LINE.replace('\n', " ");
        fs::write(directory.path().join("b_group.jsonl"), &line).unwrap();
        fs::write(directory.path().join("a_group.jsonl"), &line).unwrap();
        let rows = rows(directory.path()).unwrap();
        let groups: Vec<_> = rows.iter().map(|row| row.group.as_str()).collect();
        assert_eq!(groups, ["a_group", "b_group"]);
        let text = markdown(&rows, &["CPython 3.99".to_owned()]);
        assert!(text.contains("\n## a group\n"), "{text}");
        let expected = "| uvicorn | `/gather` | 3.12 | 2 | 5 | 1 | 0 | exact |\n";
        assert!(text.contains(expected), "{text}");
        let models = "| uvicorn | a group | 1 | 1 | 2 | 5 | 1 | 0 |\n";
        assert!(text.contains(models), "{text}");
        let ways = "| `/gather` | 2 | 4 | 10 | 2 | 0 |\n";
        assert!(text.contains(ways), "{text}");
        let sum = "4 requests, 10 calls placed, 2 unparented, **0 misplaced**";
        assert!(text.contains(sum), "{text}");
        assert!(text.contains("CPython 3.99"), "{text}");
    }

    #[test]
    fn a_way_is_a_path_and_a_manner() {
        let row = |load: &str| Row {
            load: load.to_owned(),
            requests: 1,
            ..Row::default()
        };
        let rows = [
            row("/gather?client=httpx"),
            row("/gather?client=aiohttp, pipelined"),
            row("/gather, pipelined"),
            row("background-task"),
        ];
        let text = ways(&rows);
        let lines: Vec<&str> = text.lines().filter(|line| line.contains('`')).collect();
        assert_eq!(
            lines,
            [
                "| `/gather` | 1 | 1 | 0 | 0 | 0 |",
                "| `/gather` pipelined | 2 | 2 | 0 | 0 | 0 |",
            ]
        );
    }

    #[test]
    fn a_line_without_its_numbers_is_an_error() {
        let error = row("group", r#"{"model":"uvicorn"}"#).unwrap_err();
        assert_eq!(error.to_string(), "no load");
    }

    #[test]
    fn only_the_whole_suite_makes_a_report() {
        assert!(is_whole(None) && is_whole(Some("attribution")));
        assert!(!is_whole(Some("attribution::uvloop")));
    }
}
