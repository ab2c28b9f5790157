//! The benchmark's numbers: medians, ratios to the untraced service, and the
//! budgets beside them.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::load::Load;

/// Clock ticks per second in /proc/PID/stat: `USER_HZ`, which is 100 on every
/// architecture that we support (Linux, include/asm-generic/param.h).
const TICKS: u64 = 100;

/// How a service was traced.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Mode {
    Untraced,
    Agent,
    /// The agent without stack walks.
    Frameless,
    Sdk,
}

impl Mode {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Untraced => "untraced",
            Self::Agent => "otel-ebpf",
            Self::Frameless => "otel-ebpf --no-frames",
            Self::Sdk => "opentelemetry-instrument",
        }
    }
}

/// What the agent used during one measurement.
#[derive(Clone, Copy, Debug)]
pub(super) struct AgentCost {
    pub(super) micros_per_request: f64,
    pub(super) peak_kib: u64,
    pub(super) lost: u64,
}

/// One measurement.
#[derive(Clone, Copy, Debug)]
pub(super) struct Run {
    pub(super) mode: Mode,
    /// Requests per second.
    pub(super) throughput: f64,
    p50_micros: f64,
    p99_micros: f64,
    cost: Option<AgentCost>,
    exported_bytes: u64,
}

impl Run {
    pub(super) fn new(
        mode: Mode,
        load: &Load,
        cost: Option<AgentCost>,
        exported_bytes: u64,
    ) -> Self {
        let quantile = |per_cent: usize| {
            let index = load.latencies.len() * per_cent / 100;
            let latency = load.latencies.get(index).copied().unwrap_or_default();
            latency.as_secs_f64() * 1e6
        };
        Self {
            mode,
            throughput: load.latencies.len() as f64 / load.took.as_secs_f64(),
            p50_micros: quantile(50),
            p99_micros: quantile(99),
            cost,
            exported_bytes,
        }
    }
}

/// A column that is compared with the untraced service: what it reads.
type Column = fn(&Run) -> f64;

/// The columns with a ratio beside them.
const COLUMNS: [(&str, Column); 3] = [
    ("requests_per_second", |run| run.throughput),
    ("p50_micros", |run| run.p50_micros),
    ("p99_micros", |run| run.p99_micros),
];

/// Every measurement, by service.
pub(super) struct Report {
    seconds: u64,
    rounds: usize,
    runs: BTreeMap<&'static str, Vec<Run>>,
    /// What each service is to keep of its throughput, per cent.
    allowed: BTreeMap<&'static str, u32>,
}

impl Report {
    pub(super) fn new(seconds: u64, rounds: usize) -> Self {
        Self {
            seconds,
            rounds,
            runs: BTreeMap::new(),
            allowed: BTreeMap::new(),
        }
    }

    /// Adds a run of a service, which is to keep so much of its throughput.
    pub(super) fn add(&mut self, service: &'static str, allowed: u32, run: Run) {
        self.allowed.insert(service, allowed);
        self.runs.entry(service).or_default().push(run);
    }

    /// Medians and ratios, a line per service and mode.
    pub(super) fn table(&self) -> String {
        let mut text = format!(
            "medians of {} rounds of {} s; in brackets the ratio to untraced\n{:26}{:>20}{:>20}{:>20}",
            self.rounds, self.seconds, "", "requests/s", "p50 µs", "p99 µs"
        );
        for (service, runs) in &self.runs {
            // Writing to a string does not fail.
            write!(text, "\n{service}").ok();
            for mode in modes(runs) {
                write!(text, "\n  {:24}", mode.name()).ok();
                for (_, column) in COLUMNS {
                    let value = median_of(runs, mode, column);
                    let ratio = ratio(runs, mode, column);
                    write!(text, "{value:>12.0} ({ratio:.3})").ok();
                }
            }
        }
        text
    }

    /// Each budget with the value that was reached.
    pub(super) fn budgets(&self) -> String {
        let mut text = format!(
            "{:34}{:>14}{:>12}{:>12}",
            "budget", "allowed", "reached", "the SDK"
        );
        for (service, runs) in &self.runs {
            let allowed = self.allowed.get(service).copied().unwrap_or_default();
            let throughput = |mode| ratio(runs, mode, COLUMNS[0].1) * 100.0;
            write!(text, "\n{service}").ok();
            write!(
                text,
                "\n  {:32}{:>12} %{:>10.1} %{:>10.1} %",
                "throughput, of untraced",
                format!("at least {allowed}"),
                throughput(Mode::Agent),
                throughput(Mode::Sdk)
            )
            .ok();
            let Some(costs) = costs(runs) else { continue };
            for (name, allowed, reached) in [
                ("agent CPU per request, µs", 25.0, costs.micros_per_request),
                (
                    "agent peak memory, MiB",
                    50.0,
                    costs.peak_kib as f64 / 1024.0,
                ),
                ("events lost", 0.0, costs.lost as f64),
            ] {
                write!(text, "\n  {name:32}{allowed:>14}{reached:>12.1}").ok();
            }
        }
        text
    }

    /// Everything, for machines.
    pub(super) fn json(&self) -> Value {
        let services: BTreeMap<&str, Value> = self
            .runs
            .iter()
            .map(|(service, runs)| {
                let modes: BTreeMap<&str, Value> = modes(runs)
                    .into_iter()
                    .map(|mode| (mode.name(), mode_json(runs, mode)))
                    .collect();
                (*service, json!(modes))
            })
            .collect();
        json!({
            "seconds": self.seconds,
            "rounds": self.rounds,
            "services": services,
        })
    }
}

fn mode_json(runs: &[Run], mode: Mode) -> Value {
    let mut value = json!({});
    for (name, column) in COLUMNS {
        value[name] = json!({
            "median": median_of(runs, mode, column),
            "ratio_to_untraced": ratio(runs, mode, column),
            "rounds": of(runs, mode).map(column).collect::<Vec<f64>>(),
        });
    }
    value["exported_bytes"] = json!(of(runs, mode).map(|run| run.exported_bytes).sum::<u64>());
    if mode == Mode::Agent
        && let Some(costs) = costs(runs)
    {
        value["agent"] = json!({
            "cpu_micros_per_request": costs.micros_per_request,
            "peak_kib": costs.peak_kib,
            "lost": costs.lost,
        });
    }
    value
}

fn of(runs: &[Run], mode: Mode) -> impl Iterator<Item = &Run> {
    runs.iter().filter(move |run| run.mode == mode)
}

fn modes(runs: &[Run]) -> Vec<Mode> {
    let mut modes: Vec<Mode> = runs.iter().map(|run| run.mode).collect();
    modes.sort();
    modes.dedup();
    modes
}

/// The median CPU, the largest peak, the sum of what was lost.
fn costs(runs: &[Run]) -> Option<AgentCost> {
    let costs: Vec<AgentCost> = of(runs, Mode::Agent).filter_map(|run| run.cost).collect();
    Some(AgentCost {
        micros_per_request: median(costs.iter().map(|cost| cost.micros_per_request).collect()),
        peak_kib: costs.iter().map(|cost| cost.peak_kib).max()?,
        lost: costs.iter().map(|cost| cost.lost).sum(),
    })
}

fn median_of(runs: &[Run], mode: Mode, column: Column) -> f64 {
    median(of(runs, mode).map(column).collect())
}

/// The median of the rounds' ratios: what slows a whole round down cancels.
fn ratio(runs: &[Run], mode: Mode, column: Column) -> f64 {
    let pairs = of(runs, mode).zip(of(runs, Mode::Untraced));
    median(
        pairs
            .map(|(run, untraced)| column(run) / column(untraced))
            .collect(),
    )
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match (values.get(middle), middle.checked_sub(1)) {
        (None, _) => f64::NAN,
        (Some(upper), Some(lower)) if values.len().is_multiple_of(2) => {
            (values[lower] + upper) / 2.0
        }
        (Some(middle), _) => *middle,
    }
}

/// What the agent's summary line says was lost in all.
pub(super) fn lost(stderr: &[String]) -> Result<u64> {
    let (_, summary) = stderr
        .iter()
        .rev()
        .find_map(|line| line.split_once("otel-ebpf: summary"))
        .context("the agent ended without a summary")?;
    let (_, lost) = summary
        .split_whitespace()
        .filter_map(|pair| pair.split_once('='))
        .find(|(key, _)| *key == "lost")
        .context("the agent's summary does not say what was lost")?;
    Ok(lost.parse()?)
}

/// User and system time in a line of /proc/PID/stat (proc_pid_stat(5)).
pub(super) fn cpu_time(stat: &str) -> Option<Duration> {
    // The name in brackets may hold spaces; the state follows it, as field 3.
    let (_, fields) = stat.rsplit_once(')')?;
    let mut fields = fields.split_whitespace().skip(14 - 3);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    Some(Duration::from_millis((user + system) * 1000 / TICKS))
}

/// The line VmHWM of /proc/PID/status, in KiB.
pub(super) fn peak_memory(status: &str) -> Option<u64> {
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim().strip_suffix("kB")?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(mode: Mode, throughput: f64) -> Run {
        Run {
            mode,
            throughput,
            p50_micros: 1.0,
            p99_micros: 2.0,
            cost: (mode == Mode::Agent).then_some(AgentCost {
                micros_per_request: 10.0,
                peak_kib: 2048,
                lost: 1,
            }),
            exported_bytes: 5,
        }
    }

    #[test]
    fn ratios_compare_runs_of_the_same_round() {
        let mut report = Report::new(1, 2);
        for (untraced, agent) in [(100.0, 90.0), (50.0, 45.0)] {
            report.add("x", 97, run(Mode::Untraced, untraced));
            report.add("x", 97, run(Mode::Agent, agent));
        }
        let json = report.json();
        let agent = &json["services"]["x"]["otel-ebpf"];
        assert_eq!(agent["requests_per_second"]["ratio_to_untraced"], 0.9);
        assert_eq!(agent["requests_per_second"]["median"], 67.5);
        assert_eq!(agent["agent"]["lost"], 2);
        assert!(report.budgets().contains("90.0 %"), "{}", report.budgets());
        assert!(report.table().contains("(0.900)"), "{}", report.table());
    }

    #[test]
    fn reads_the_losses_of_the_last_summary() {
        let lines = [
            "otel-ebpf: summary lost=9".to_owned(),
            "otel-ebpf: summary lost=3 events=10 ring.lost=1 export.dropped.queue_full=2"
                .to_owned(),
        ];
        assert_eq!(lost(&lines).unwrap(), 3);
        assert!(lost(&["otel-ebpf: summary events=10".to_owned()]).is_err());
        assert!(lost(&[]).is_err());
    }

    #[test]
    fn reads_times_behind_a_name_with_brackets() {
        let stat = "7 (a) b) S 1 7 7 0 -1 4194560 1 0 0 0 150 50 0 0 20 0 1 0 99";
        assert_eq!(cpu_time(stat), Some(Duration::from_secs(2)));
        assert_eq!(cpu_time("nonsense"), None);
    }

    #[test]
    fn reads_the_peak() {
        assert_eq!(
            peak_memory("VmPeak:\t 9 kB\nVmHWM:\t   123 kB\n"),
            Some(123)
        );
    }

    #[test]
    fn the_median_of_nothing_is_no_number() {
        assert!(median(Vec::new()).is_nan());
        assert_eq!(median(vec![3.0, 1.0]), 2.0);
        assert_eq!(median(vec![3.0, 1.0, 9.0]), 3.0);
    }
}
