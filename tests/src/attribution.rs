//! The attribution suite: models of concurrency under load, and the judgement
//! of whose child each of their calls became.
//!
//! A [`Model`] is a service, the way in which it is traced, and its loads with
//! what is expected of each. [`run`] puts one after the other to the test,
//! prints the counts, hands them to `cargo xtask test` for the report
//! (`OTEL_EBPF_ATTRIBUTION`) and fails with all that was not as expected. The
//! table of models is `tests/tests/attribution.rs`.

mod model;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write as _;
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::thread;

use anyhow::{Context, Result, anyhow, ensure};
use serde::Serialize;
use tempfile::TempDir;

pub use self::model::{Attach, Expected, Interpreter, Meanwhile, Model, Request};
use crate::agent::{Agent, AgentOptions, Counters, Follower};
use crate::app::{App, Service};
use crate::load::{CONCURRENCY, Load, Placement, Progress, Sent, parameter, placements};
use crate::process::{PATIENCE, Signal, wait_for};
use crate::trace::{Kind, Span, matching};

/// A ring in which nothing is lost while two cores do the work of three.
const RING: [&str; 2] = ["--ring-size", "64"];
/// The service that is called answers after up to so many milliseconds, so
/// that answers come in another order than requests.
const JITTER: &str = "8";
/// More requests than any load gets through before it is told to stop.
const ENDLESS: usize = usize::MAX / 2;
/// Calls of no request must have been made, some of them.
const UNOWNED: usize = 10;

/// A line of the report.
#[derive(Clone, Debug, Serialize)]
struct Row {
    model: String,
    load: String,
    interpreter: String,
    expected: String,
    requests: usize,
    placed: usize,
    unparented: usize,
    misplaced: usize,
    orphaned: usize,
}

/// Puts every model to the test; the group's name is its file's in the report.
///
/// # Panics
///
/// If anything was not as expected, with all of it.
#[track_caller]
pub fn run(group: &str, models: Vec<Model>) {
    let failures = run_all(group, models).expect("the suite's surroundings");
    assert!(failures.is_empty(), "{}", failures.join("\n\n"));
}

fn run_all(group: &str, models: Vec<Model>) -> Result<Vec<String>> {
    let downstream = downstream()?;
    let mut rows = Vec::new();
    let mut failures = Vec::new();
    print_head(group);
    for model in models {
        let name = model.name.clone();
        let mut found = Vec::new();
        let done = check(model, &downstream, &mut found);
        for row in &found {
            print_row(row);
        }
        rows.extend(found);
        match done {
            Ok(more) => failures.extend(more.into_iter().map(|it| format!("{name}: {it}"))),
            Err(error) => failures.push(format!("{name}: {error:#}")),
        }
    }
    if let Some(directory) = std::env::var_os("OTEL_EBPF_ATTRIBUTION") {
        let path = PathBuf::from(directory).join(format!("{group}.jsonl"));
        let mut file = File::create(&path).with_context(|| path.display().to_string())?;
        for row in &rows {
            writeln!(file, "{}", serde_json::to_string(row)?)?;
        }
    }
    Ok(failures)
}

/// The service that every model calls.
fn downstream() -> Result<App> {
    Service::uvloop("downstream")
        .arguments(&["--no-access-log"])
        .env("APP_JITTER_MS", JITTER)
        .start()
        .context("the service that is called")
}

/// One model: fills in its rows, returns what was not as expected.
fn check(model: Model, downstream: &App, rows: &mut Vec<Row>) -> Result<Vec<String>> {
    let service = model.service.clone().downstream(downstream);
    let (mut app, tracer, sent) = match model.attach {
        Attach::Launch => {
            let folder = tempfile::tempdir()?;
            let mut words = AgentOptions::new(&[])
                .arguments(&RING)
                .words(folder.path())?;
            words.extend(["run".into(), "--".into()]);
            let app = model.interpreter.start(service, &words)?;
            let sent = send_from(0, &model, &app)?;
            (app, Tracer::Launched(folder), sent)
        }
        Attach::First => {
            let app = model.interpreter.start(service, &[])?;
            let agent = attach(&model, &app)?;
            let sent = send_from(0, &model, &app)?;
            (app, Tracer::Attached(agent), sent)
        }
        Attach::Midway => {
            let app = model.interpreter.start(service, &[])?;
            let (agent, first) = attach_midway(&model, &app)?;
            let mut sent = vec![first];
            sent.extend(send_from(1, &model, &app)?);
            (app, Tracer::Attached(agent), sent)
        }
    };
    app.group.expect_running()?;
    let everything = wait_for_calls(&model, tracer.follow(), &sent);
    let (spans, counters) = tracer.stop(&mut app)?;
    let mut failures = Vec::new();
    if let Err(error) = everything {
        failures.push(format!("{error:#}"));
    }
    let found = placements(&spans);
    for (number, (request, sent)) in model.requests.iter().zip(&sent).enumerate() {
        let placement = found.get(&tag(number)).cloned().unwrap_or_default();
        rows.push(model.row(request.target, request.expected.to_string(), &placement));
        if let Err(error) = judge(&model, request, sent, &placement, &counters) {
            failures.push(format!("{}: {error:#}: {placement:#?}", request.target));
        }
    }
    for id in &model.unowned {
        let placement = unowned(&spans, id);
        rows.push(model.row(id, "no parent".to_owned(), &placement));
        if placement.misplaced > 0 || placement.unparented < UNOWNED {
            failures.push(format!("{id}: {placement:#?}"));
        }
    }
    failures.extend(refusals(&spans, &counters));
    if !failures.is_empty() {
        failures.push(format!("{counters:#?}\n{}", app.group.log()));
    }
    Ok(failures)
}

/// The agent beside the service, or around it.
enum Tracer {
    Attached(Agent),
    Launched(TempDir),
}

impl Tracer {
    fn follow(&self) -> Follower {
        match self {
            Self::Attached(agent) => agent.follow(),
            Self::Launched(folder) => Follower::new(folder.path()),
        }
    }

    /// Ends it, and with it a service that it started.
    fn stop(self, app: &mut App) -> Result<(Vec<Span>, Counters)> {
        match self {
            Self::Attached(agent) => {
                let ended = agent.stop()?;
                Ok((ended.spans, ended.counters))
            }
            Self::Launched(folder) => {
                app.group.signal(Signal::TERM)?;
                app.group.wait(PATIENCE)?;
                let counters = Counters::of(&app.group.lines())?;
                Ok((Follower::new(folder.path()).spans()?, counters))
            }
        }
    }
}

fn attach(model: &Model, app: &App) -> Result<Agent> {
    let pids = if model.every_process {
        app.pids()
    } else {
        vec![app.server_pid()]
    };
    AgentOptions::new(&pids)
        .arguments(&RING)
        .arguments(&model.agent)
        .start()
}

/// Attaches in the middle of the first load, which ends when as many requests
/// were answered since as it was to have.
fn attach_midway(model: &Model, app: &App) -> Result<(Agent, Sent)> {
    let progress = Progress::default();
    thread::scope(|scope| {
        let first = scope.spawn(|| send(model, 0, ENDLESS, app, &progress));
        let answered = |count: usize| {
            wait_for("answers", PATIENCE, || {
                let answered = progress.answered.load(Ordering::Relaxed);
                Ok((answered >= count || first.is_finished()).then_some(answered))
            })
        };
        let attached = (|| {
            answered(CONCURRENCY)?;
            let agent = attach(model, app)?;
            let before = progress.answered.load(Ordering::Relaxed);
            answered(before + model.count())?;
            anyhow::Ok(agent)
        })();
        progress.stop.store(true, Ordering::Relaxed);
        let first = first.join().map_err(|_| anyhow!("the load panicked"))??;
        Ok((attached?, first))
    })
}

/// Sends the loads from this number on.
fn send_from(first: usize, model: &Model, app: &App) -> Result<Vec<Sent>> {
    (first..model.requests.len())
        .map(|number| send(model, number, model.count(), app, &Progress::default()))
        .collect()
}

/// Sends so many requests of the load of this number.
fn send(
    model: &Model,
    number: usize,
    count: usize,
    app: &App,
    progress: &Progress,
) -> Result<Sent> {
    let request = &model.requests[number];
    let load = Load::new(&app.address, request.target, &tag(number), count);
    let load = load.manner(request.manner);
    let sent = match model.meanwhile {
        None => load.run_with(progress),
        Some(meanwhile) => thread::scope(|scope| {
            let other = scope.spawn(|| meanwhile(app, progress));
            let sent = load.run_with(progress);
            progress.stop.store(true, Ordering::Relaxed);
            other.join().map_err(|_| anyhow!("it panicked"))??;
            anyhow::Ok(sent)
        })?,
    };
    ensure!(
        model.failures_allowed || sent.failures.is_empty(),
        "{}: {:#?}\n{}",
        request.target,
        sent.failures,
        app.group.log()
    );
    Ok(sent)
}

/// What runs after the responses is not over with them.
fn wait_for_calls(model: &Model, mut follower: Follower, sent: &[Sent]) -> Result<()> {
    let (mut calls, mut served) = (BTreeMap::new(), BTreeMap::new());
    wait_for("every call and every request", PATIENCE, || {
        for span in follower.spans()? {
            let target = span.target();
            let Some((tag, _)) = parameter(&target, "id").and_then(|id| id.rsplit_once('-')) else {
                continue;
            };
            let seen = match span.kind {
                Kind::Client => &mut calls,
                _ => &mut served,
            };
            *seen.entry(tag.to_owned()).or_insert(0_usize) += 1;
        }
        let mut loads = model.requests.iter().zip(sent).enumerate();
        let all = loads.all(|(number, (request, sent))| {
            let calls = calls.get(&tag(number)).copied().unwrap_or(0);
            let served = served.get(&tag(number)).copied().unwrap_or(0);
            match request.expected {
                Expected::Exact | Expected::Refused(_) => {
                    calls >= sent.calls && served >= sent.answered
                }
                Expected::NoneMisplaced => {
                    model.attach == Attach::Midway
                        || model.failures_allowed
                        || served >= sent.answered
                }
            }
        });
        Ok(all.then_some(()))
    })
}

fn judge(
    model: &Model,
    request: &Request,
    sent: &Sent,
    placement: &Placement,
    counters: &Counters,
) -> Result<()> {
    ensure!(placement.misplaced == 0, "misplaced calls");
    match request.expected {
        Expected::Exact => {
            ensure!(counters.get("lost") == 0, "something was lost");
            placement.expect_exact(sent)
        }
        Expected::NoneMisplaced => {
            // Not that nothing was seen.
            ensure!(
                placement.placed > 0 || !model.some_placed,
                "no call was placed"
            );
            // A request that was cut off is a span all the same.
            ensure!(placement.orphaned == 0, "calls under no exported span");
            Ok(())
        }
        Expected::Refused(counter) => {
            ensure!(counters.get("lost") == 0, "something was lost");
            placement.expect_all(sent)?;
            ensure!(placement.unparented > 0, "nothing was refused");
            ensure!(
                counters.get(counter) >= placement.unparented as u64,
                "{counter} tells of fewer"
            );
            Ok(())
        }
    }
}

/// Calls without a parent must be counted, each by its reason.
fn refusals(spans: &[Span], counters: &Counters) -> Option<String> {
    let without = |span: &&Span| span.kind == Kind::Client && span.parent.is_none();
    let without = spans.iter().filter(without).count() as u64;
    let counted: u64 = counters
        .0
        .iter()
        .filter(|(name, _)| name.starts_with("spans.no_parent."))
        .map(|(_, count)| count)
        .sum();
    (counted < without).then(|| format!("{without} calls without a parent, {counted} counted"))
}

/// Calls of no request, which may be under none.
fn unowned(spans: &[Span], id: &str) -> Placement {
    let calls = matching(spans, Kind::Client, &format!("id={id}&"));
    let misplaced = calls.iter().filter(|call| call.parent.is_some()).count();
    Placement {
        unparented: calls.len() - misplaced,
        misplaced,
        ..Placement::default()
    }
}

fn tag(number: usize) -> String {
    format!("load{number}")
}

impl Model {
    fn row(&self, load: &str, expected: String, placement: &Placement) -> Row {
        Row {
            model: self.name.clone(),
            load: load.to_owned(),
            interpreter: self.interpreter.label.clone(),
            expected,
            requests: placement.requests,
            placed: placement.placed,
            unparented: placement.unparented,
            misplaced: placement.misplaced,
            orphaned: placement.orphaned,
        }
    }
}

#[expect(clippy::print_stderr, reason = "the counts are what the suite is for")]
fn print_head(group: &str) {
    eprintln!(
        "{:<68} {:<14} {:>8} {:>8} {:>10} {:>9}",
        group, "interpreter", "requests", "placed", "unparented", "misplaced"
    );
}

#[expect(clippy::print_stderr, reason = "the counts are what the suite is for")]
fn print_row(row: &Row) {
    let what = format!("{} {}", row.model, row.load);
    eprintln!(
        "  {what:<66} {:<14} {:>8} {:>8} {:>10} {:>9}",
        row.interpreter, row.requests, row.placed, row.unparented, row.misplaced
    );
}
