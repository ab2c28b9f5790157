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
use std::sync::{Condvar, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use serde::Serialize;
use tempfile::TempDir;

pub use self::model::{Attach, Expected, Interpreter, Meanwhile, Model, Request, WANTED};
use crate::agent::{Agent, AgentOptions, Counters, Follower};
use crate::app::{App, Service};
use crate::load::{CONCURRENCY, Load, Placement, Progress, Sent, parameter, placements};
use crate::process::{PATIENCE, Signal, locked, wait_for};
use crate::trace::{Kind, Span, matching};

/// A ring in which nothing is lost while two cores do the work of three.
const RING: [&str; 2] = ["--ring-size", "64"];
/// The service that is called answers after up to so many milliseconds, so
/// that answers come in another order than requests.
const JITTER: &str = "8";
/// More requests than any load gets through before it is told to stop.
const ENDLESS: usize = usize::MAX / 2;
/// Longer than any load takes that ends when so many requests were seen.
pub const LOAD_PATIENCE: Duration = Duration::from_secs(180);
/// Models that are put to the test at the same time, of all groups together:
/// while one waits for its service, its agent or the rest of its spans, there is
/// the other's load.
const LANES: usize = 2;
/// How many have their turn.
static TURNS: Mutex<usize> = Mutex::new(0);
/// One has had its turn.
static TURN_ENDED: Condvar = Condvar::new();
/// Counters of entries that tables have evicted.
const EVICTED: &str = "kernel.evicted.";
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
    let started = |tls| {
        let wanted = models.iter().any(|model| model.calls_tls == tls);
        wanted.then(|| downstream(tls)).transpose()
    };
    let [plain, tls] = [started(false)?, started(true)?];
    print_head(group);
    let wanted = wanted();
    let lossy = |model: &Model| model.loses.map(|_| model.name.clone());
    let lossy: Vec<String> = models.iter().filter_map(lossy).collect();
    let models = shared(models, wanted);
    let waiting = Mutex::new(models.into_iter().enumerate());
    let done = Mutex::new(BTreeMap::new());
    let lane = || {
        loop {
            let next = locked(&waiting).next();
            let Some((number, model)) = next else {
                return;
            };
            let downstream = if model.calls_tls { &tls } else { &plain };
            let turn = Turn::take();
            let judged = judged(model, downstream.as_ref());
            drop(turn);
            locked(&done).insert(number, judged);
        }
    };
    thread::scope(|scope| {
        for _ in 0..LANES {
            scope.spawn(lane);
        }
    });
    let done = done.into_inner().unwrap_or_else(PoisonError::into_inner);
    let (rows, failures): (Vec<_>, Vec<_>) = done.into_values().unzip();
    let (rows, mut failures) = (rows.concat(), failures.concat());
    if wanted.is_none() {
        failures.extend(too_few(&rows, &lossy));
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

/// A model's turn, until it is dropped: two groups may run side by side, so that
/// the last model of one is not alone, but no more models than [`LANES`].
struct Turn;

impl Turn {
    fn take() -> Self {
        let turns = locked(&TURNS);
        let waited = TURN_ENDED.wait_while(turns, |turns| *turns >= LANES);
        *waited.unwrap_or_else(PoisonError::into_inner) += 1;
        Self
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        *locked(&TURNS) -= 1;
        TURN_ENDED.notify_one();
    }
}

/// How many requests each load is to have, if somebody said so.
fn wanted() -> Option<usize> {
    std::env::var("OTEL_EBPF_REQUESTS").ok()?.parse().ok()
}

/// The models with a number of requests for every load: those that say nothing
/// have an even share of what all of their name are to have.
fn shared(mut models: Vec<Model>, wanted: Option<usize>) -> Vec<Model> {
    let mut shares = BTreeMap::<String, (usize, usize)>::new();
    for model in &models {
        let (said, open) = shares.entry(model.name.clone()).or_default();
        for request in &model.requests {
            match request.count {
                Some(count) => *said += count,
                None => *open += 1,
            }
        }
    }
    for model in &mut models {
        let (said, open) = shares.get(&model.name).copied().unwrap_or_default();
        let share = WANTED.saturating_sub(said).div_ceil(open.max(1)).max(1);
        for request in &mut model.requests {
            request.count = wanted.or(request.count).or(Some(share));
        }
    }
    models
}

/// Models of which fewer requests were seen than wanted, but for those of which
/// some must be lost.
fn too_few(rows: &[Row], lossy: &[String]) -> Vec<String> {
    let mut seen = BTreeMap::<&str, usize>::new();
    for row in rows.iter().filter(|row| !lossy.contains(&row.model)) {
        *seen.entry(&row.model).or_default() += row.requests;
    }
    let few = seen.into_iter().filter(|&(_, requests)| requests < WANTED);
    few.map(|(model, requests)| format!("{model}: {requests} requests were seen, not {WANTED}"))
        .collect()
}

/// The rows of a model, and what was not as expected.
fn judged(model: Model, downstream: Option<&App>) -> (Vec<Row>, Vec<String>) {
    let name = model.name.clone();
    let mut rows = Vec::new();
    let done = downstream
        .context("nothing to call")
        .and_then(|downstream| check(model, downstream, &mut rows));
    for row in &rows {
        print_row(row);
    }
    let failures = match done {
        Ok(failures) => failures
            .into_iter()
            .map(|it| format!("{name}: {it}"))
            .collect(),
        Err(error) => vec![format!("{name}: {error:#}")],
    };
    (rows, failures)
}

/// The service that every model calls.
fn downstream(tls: bool) -> Result<App> {
    let service = Service::uvloop("downstream")
        .arguments(&["--no-access-log"])
        .env("APP_JITTER_MS", JITTER);
    let service = if tls { service.tls() } else { service };
    service.start().context("the service that is called")
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
            let tracer = Tracer::Launched(folder);
            let sent = send_from(0, &model, &app, &tracer)?;
            (app, tracer, sent)
        }
        Attach::First => {
            let app = model.interpreter.start(service, &[])?;
            let tracer = Tracer::Attached(attach(&model, &app)?);
            let sent = send_from(0, &model, &app, &tracer)?;
            (app, tracer, sent)
        }
        Attach::Midway => {
            let app = model.interpreter.start(service, &[])?;
            let (agent, first) = attach_midway(&model, &app)?;
            let tracer = Tracer::Attached(agent);
            let mut sent = vec![first];
            sent.extend(send_from(1, &model, &app, &tracer)?);
            (app, tracer, sent)
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
        rows.push(model.row(&request.name(), request.expected.to_string(), &placement));
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
    if let Some(counter) = model.loses
        && counters.get(counter) == 0
    {
        failures.push(format!("{counter}: nothing was lost"));
    }
    failures.extend(evictions(&model, &counters));
    if !failures.is_empty() {
        failures.push(format!("{counters:#?}\n{}", app.group.log()));
    }
    Ok(failures)
}

/// Evictions that should not have been, or were not seen.
fn evictions(model: &Model, counters: &Counters) -> Vec<String> {
    let evicted = |counter: &str| counters.get(counter);
    match model.evicts {
        Some(tables) => {
            let silent = tables.iter().filter(|table| evicted(table) == 0);
            silent
                .map(|table| format!("{table}: no evictions"))
                .collect()
        }
        None => {
            let names = counters.0.keys().filter(|name| name.starts_with(EVICTED));
            let found = names.filter(|name| evicted(name) > 0);
            found
                .map(|name| format!("{name}: {}", evicted(name)))
                .collect()
        }
    }
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
        wait_for("every process", PATIENCE, || {
            let pids = app.pids();
            Ok((pids.len() >= model.processes).then_some(pids))
        })?
    } else {
        vec![app.server_pid()]
    };
    AgentOptions::new(&pids)
        .arguments(&RING)
        .arguments(&model.agent)
        .start()
}

/// Attaches in the middle of the first load, which ends when as many requests
/// were answered since as it was to have, without those that the agent came
/// in the middle of.
fn attach_midway(model: &Model, app: &App) -> Result<(Agent, Sent)> {
    let progress = Progress::default();
    let first = model.requests.first().context("no load")?;
    let load = load(first, 0, app, ENDLESS);
    let (agent, sent) = until(&load, &progress, |ended| {
        let answered = |count: usize| {
            wait_for("answers", LOAD_PATIENCE, || {
                let answered = progress.answered.load(Ordering::Relaxed);
                Ok((answered >= count || ended()).then_some(answered))
            })
        };
        answered(CONCURRENCY)?;
        let agent = attach(model, app)?;
        let before = progress.answered.load(Ordering::Relaxed);
        answered(before + first.count() + 2 * CONCURRENCY)?;
        Ok(agent)
    })?;
    unharmed(model, first, app, &sent)?;
    Ok((agent, sent))
}

/// Runs a load until something is done; that is told whether the load has
/// ended by itself.
fn until<T>(
    load: &Load,
    progress: &Progress,
    work: impl FnOnce(&dyn Fn() -> bool) -> Result<T>,
) -> Result<(T, Sent)> {
    thread::scope(|scope| {
        let load = scope.spawn(|| load.run_with(progress));
        let done = work(&|| load.is_finished());
        progress.stop.store(true, Ordering::Relaxed);
        let sent = load.join().map_err(|_| anyhow!("the load panicked"))?;
        Ok((done?, sent))
    })
}

/// Sends the loads from this number on.
fn send_from(first: usize, model: &Model, app: &App, tracer: &Tracer) -> Result<Vec<Sent>> {
    (first..model.requests.len())
        .map(|number| send(model, number, app, tracer))
        .collect()
}

/// Sends the load of this number. If something happens meanwhile by which
/// requests may fail, it goes on until enough of them were seen.
fn send(model: &Model, number: usize, app: &App, tracer: &Tracer) -> Result<Sent> {
    let request = &model.requests[number];
    let progress = Progress::default();
    let sent = match model.meanwhile {
        None => load(request, number, app, request.count()).run_with(&progress),
        Some(meanwhile) => {
            let load = load(request, number, app, ENDLESS);
            let ((), sent) = until(&load, &progress, |_| {
                thread::scope(|scope| {
                    let other = scope.spawn(|| meanwhile(app, &progress));
                    let seen = wait_for_requests(tracer.follow(), number, request.count());
                    progress.stop.store(true, Ordering::Relaxed);
                    other.join().map_err(|_| anyhow!("it panicked"))??;
                    seen
                })
            })?;
            sent
        }
    };
    unharmed(model, request, app, &sent)?;
    Ok(sent)
}

fn load(request: &Request, number: usize, app: &App, count: usize) -> Load {
    Load::new(&app.address, request.target, &tag(number), count).manner(request.manner)
}

fn unharmed(model: &Model, request: &Request, app: &App, sent: &Sent) -> Result<()> {
    ensure!(
        model.failures_allowed || sent.failures.is_empty(),
        "{}: {:#?}\n{}",
        request.target,
        sent.failures,
        app.group.log()
    );
    Ok(())
}

/// Waits until so many requests of the load of this number were seen.
fn wait_for_requests(mut follower: Follower, number: usize, count: usize) -> Result<()> {
    let mut seen = 0;
    wait_for("requests that were seen", LOAD_PATIENCE, || {
        let spans = follower.spans()?;
        let of_load = spans.iter().filter(|span| {
            let id = parameter(span.text("url.query"), "id");
            let of_load = id.and_then(|id| id.rsplit_once('-'));
            span.kind == Kind::Server && of_load.is_some_and(|(load, _)| load == tag(number))
        });
        seen += of_load.count();
        Ok((seen >= count).then_some(()))
    })
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
                        || model.loses.is_some()
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::app::Service;

    fn model(name: &str) -> Model {
        let nowhere = Interpreter::named("nowhere");
        Model::in_interpreter(name, Service::uvicorn("app"), nowhere)
    }

    fn counts(models: &[Model]) -> Vec<Vec<usize>> {
        let counts = |model: &Model| model.requests.iter().map(Request::count).collect();
        models.iter().map(counts).collect()
    }

    #[test]
    fn loads_share_what_their_model_is_to_have() {
        let models = || {
            vec![
                model("a").load("/").times(500).loads(&["/x", "/y"]),
                model("b").load("/"),
                model("a").load("/"),
            ]
        };
        let found = counts(&shared(models(), None));
        assert_eq!(found, [vec![500, 500, 500], vec![WANTED], vec![500]]);
        let found = counts(&shared(models(), Some(7)));
        assert_eq!(found, [vec![7, 7, 7], vec![7], vec![7]]);
    }

    #[test]
    fn a_model_of_which_too_few_requests_were_seen_fails() {
        let row = |requests| {
            let placement = Placement {
                requests,
                ..Placement::default()
            };
            model("a").row("/", "exact".to_owned(), &placement)
        };
        assert_eq!(too_few(&[row(1500), row(500)], &[]), Vec::<String>::new());
        let few = too_few(&[row(1500), row(499)], &[]);
        assert_eq!(few, ["a: 1999 requests were seen, not 2000"]);
        let few = too_few(&[row(7)], &["a".to_owned()]);
        assert_eq!(few, Vec::<String>::new());
    }
}
