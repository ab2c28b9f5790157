//! The benchmark's numbers: medians, ratios to the untraced service in the turn
//! beside, and the budgets.

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

/// What one turn of load met.
#[derive(Clone, Copy, Debug)]
pub(super) struct Turn {
    pub(super) requests: usize,
    /// Requests per second.
    throughput: f64,
    /// Of the service's core.
    cpu_micros_per_request: f64,
    p50_micros: f64,
    p99_micros: f64,
}

impl Turn {
    fn new(load: &Load) -> Self {
        let requests = load.latencies.len();
        let quantile = |per_cent: usize| {
            let latency = load.latencies.get(requests * per_cent / 100).copied();
            latency.unwrap_or_default().as_secs_f64() * 1e6
        };
        Self {
            requests,
            throughput: requests as f64 / load.took.as_secs_f64(),
            cpu_micros_per_request: load.cpu.as_secs_f64() * 1e6 / requests.max(1) as f64,
            p50_micros: quantile(50),
            p99_micros: quantile(99),
        }
    }
}

/// Two turns, one right after the other.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pair {
    pub(super) untraced: Turn,
    pub(super) traced: Turn,
}

impl Pair {
    pub(super) fn new(untraced: &Load, traced: &Load) -> Self {
        Self {
            untraced: Turn::new(untraced),
            traced: Turn::new(traced),
        }
    }
}

/// A service, traced in one way, beside the same one untraced, in one round.
pub(super) struct Comparison {
    pub(super) mode: Mode,
    pub(super) pairs: Vec<Pair>,
    pub(super) cost: Option<AgentCost>,
    pub(super) exported_bytes: u64,
}

impl Comparison {
    /// What tracing left of the throughput.
    pub(super) fn throughput_ratio(&self) -> f64 {
        ratios(&self.pairs, COLUMNS[0].1)[1]
    }
}

/// What a column reads.
type Column = fn(&Turn) -> f64;

const COLUMNS: [(&str, Column); 4] = [
    ("requests_per_second", |turn| turn.throughput),
    ("cpu_micros_per_request", |turn| turn.cpu_micros_per_request),
    ("p50_micros", |turn| turn.p50_micros),
    ("p99_micros", |turn| turn.p99_micros),
];

/// Everything that was measured, by service.
pub(super) struct Report {
    turn: Duration,
    turns: usize,
    services: BTreeMap<&'static str, Vec<Comparison>>,
    /// What each service is to keep of its throughput, per cent.
    allowed: BTreeMap<&'static str, u32>,
}

impl Report {
    /// Of so many pairs of turns of this length for each service and mode.
    pub(super) fn new(turn: Duration, turns: usize) -> Self {
        Self {
            turn,
            turns,
            services: BTreeMap::new(),
            allowed: BTreeMap::new(),
        }
    }

    /// Adds a round of a service, which is to keep so much of its throughput.
    pub(super) fn add(&mut self, service: &'static str, allowed: u32, round: Comparison) {
        self.allowed.insert(service, allowed);
        self.services.entry(service).or_default().push(round);
    }

    /// Medians and ratios, a line per service and mode.
    pub(super) fn table(&self) -> String {
        let mut text = format!(
            "medians of {} turns of {} ms each, untraced and traced; in brackets the \
             median of the pairs' ratios (of the throughput's also the middle half)\n{:26}{:>32}{:>20}{:>20}{:>20}",
            self.turns,
            self.turn.as_millis(),
            "",
            "requests/s",
            "CPU µs/request",
            "p50 µs",
            "p99 µs"
        );
        for (service, rounds) in &self.services {
            // Writing to a string does not fail.
            write!(text, "\n{service}").ok();
            for mode in modes(rounds) {
                let pairs = pairs(rounds, mode);
                write!(text, "\n  {:24}", mode.name()).ok();
                for (index, (_, column)) in COLUMNS.iter().enumerate() {
                    let value = median_of(&pairs, mode, *column);
                    let told = match (mode, index) {
                        (Mode::Untraced, _) => String::new(),
                        (_, 0) => {
                            let [low, middle, high] = ratios(&pairs, *column);
                            format!("({middle:.3}, {low:.3} to {high:.3})")
                        }
                        _ => format!("({:.3})", ratios(&pairs, *column)[1]),
                    };
                    let width = if index == 0 { 23 } else { 9 };
                    write!(text, "{value:>9.0} {told:>width$} ").ok();
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
        for (service, rounds) in &self.services {
            let allowed = self.allowed.get(service).copied().unwrap_or_default();
            let throughput = |mode| ratios(&pairs(rounds, mode), COLUMNS[0].1)[1] * 100.0;
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
            let Some(costs) = costs(rounds) else { continue };
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
            .services
            .iter()
            .map(|(service, rounds)| {
                let modes: BTreeMap<&str, Value> = modes(rounds)
                    .into_iter()
                    .map(|mode| (mode.name(), mode_json(rounds, mode)))
                    .collect();
                (*service, json!(modes))
            })
            .collect();
        json!({
            "turn_ms": self.turn.as_millis() as u64,
            "turns": self.turns,
            "services": services,
        })
    }
}

fn mode_json(rounds: &[Comparison], mode: Mode) -> Value {
    let mut value = json!({});
    let pairs = pairs(rounds, mode);
    for (name, column) in COLUMNS {
        value[name] = json!({ "median": median_of(&pairs, mode, column) });
        if mode != Mode::Untraced {
            let [low, middle, high] = ratios(&pairs, column);
            value[name]["ratio_to_untraced"] = json!(middle);
            value[name]["middle_half"] = json!([low, high]);
            value[name]["median_of_untraced"] = json!(median_of(&pairs, Mode::Untraced, column));
        }
    }
    let exported = rounds.iter().filter(|round| round.mode == mode);
    value["exported_bytes"] = json!(exported.map(|round| round.exported_bytes).sum::<u64>());
    if mode == Mode::Agent
        && let Some(costs) = costs(rounds)
    {
        value["agent"] = json!({
            "cpu_micros_per_request": costs.micros_per_request,
            "peak_kib": costs.peak_kib,
            "lost": costs.lost,
        });
    }
    value
}

/// The pairs of a mode; of the untraced one, all.
fn pairs(rounds: &[Comparison], mode: Mode) -> Vec<Pair> {
    rounds
        .iter()
        .filter(|round| mode == Mode::Untraced || round.mode == mode)
        .flat_map(|round| round.pairs.iter().copied())
        .collect()
}

fn modes(rounds: &[Comparison]) -> Vec<Mode> {
    let mut modes: Vec<Mode> = rounds.iter().map(|round| round.mode).collect();
    modes.push(Mode::Untraced);
    modes.sort();
    modes.dedup();
    modes
}

/// The median CPU, the largest peak, the sum of what was lost.
fn costs(rounds: &[Comparison]) -> Option<AgentCost> {
    let costs: Vec<AgentCost> = rounds
        .iter()
        .filter(|round| round.mode == Mode::Agent)
        .filter_map(|round| round.cost)
        .collect();
    Some(AgentCost {
        micros_per_request: median(costs.iter().map(|cost| cost.micros_per_request).collect()),
        peak_kib: costs.iter().map(|cost| cost.peak_kib).max()?,
        lost: costs.iter().map(|cost| cost.lost).sum(),
    })
}

fn median_of(pairs: &[Pair], mode: Mode, column: Column) -> f64 {
    let turns = pairs.iter().map(|pair| match mode {
        Mode::Untraced => &pair.untraced,
        Mode::Agent | Mode::Frameless | Mode::Sdk => &pair.traced,
    });
    median(turns.map(column).collect())
}

/// The lower quartile, the median and the upper quartile of the pairs' ratios:
/// what slows both down cancels.
fn ratios(pairs: &[Pair], column: Column) -> [f64; 3] {
    let mut ratios: Vec<f64> = pairs
        .iter()
        .map(|pair| column(&pair.traced) / column(&pair.untraced))
        .collect();
    ratios.sort_by(f64::total_cmp);
    let at = |quarter: usize| {
        let index = (ratios.len() * quarter / 4).min(ratios.len().saturating_sub(1));
        ratios.get(index).copied().unwrap_or(f64::NAN)
    };
    let (low, high) = (at(1), at(3));
    [low, median(ratios), high]
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

    fn turn(throughput: f64) -> Turn {
        Turn {
            requests: 10,
            throughput,
            cpu_micros_per_request: 1e6 / throughput,
            p50_micros: 1.0,
            p99_micros: 2.0,
        }
    }

    fn round(mode: Mode, throughputs: &[(f64, f64)]) -> Comparison {
        Comparison {
            mode,
            pairs: throughputs
                .iter()
                .map(|&(untraced, traced)| Pair {
                    untraced: turn(untraced),
                    traced: turn(traced),
                })
                .collect(),
            cost: (mode == Mode::Agent).then_some(AgentCost {
                micros_per_request: 10.0,
                peak_kib: 2048,
                lost: 1,
            }),
            exported_bytes: 5,
        }
    }

    #[test]
    fn ratios_compare_turns_that_followed_each_other() {
        let mut report = Report::new(Duration::from_millis(500), 2);
        report.add("x", 97, round(Mode::Agent, &[(100.0, 90.0)]));
        report.add("x", 97, round(Mode::Agent, &[(50.0, 45.0)]));
        report.add("x", 97, round(Mode::Sdk, &[(100.0, 30.0), (80.0, 32.0)]));
        let json = report.json();
        let agent = &json["services"]["x"]["otel-ebpf"];
        assert_eq!(agent["requests_per_second"]["ratio_to_untraced"], 0.9);
        assert_eq!(agent["requests_per_second"]["median"], 67.5);
        assert_eq!(agent["requests_per_second"]["median_of_untraced"], 75.0);
        assert_eq!(agent["agent"]["lost"], 2);
        let untraced = &json["services"]["x"]["untraced"]["requests_per_second"];
        assert_eq!(untraced["median"], 90.0);
        assert!(untraced.get("ratio_to_untraced").is_none(), "{untraced}");
        assert!(report.budgets().contains("90.0 %"), "{}", report.budgets());
        assert!(report.budgets().contains("35.0 %"), "{}", report.budgets());
        let table = report.table();
        assert!(table.contains("(0.900, 0.900 to 0.900)"), "{table}");
    }

    #[test]
    fn the_middle_half_leaves_out_what_is_far_off() {
        let pairs = round(
            Mode::Agent,
            &[(1.0, 0.1), (1.0, 0.8), (1.0, 0.9), (1.0, 0.9), (1.0, 7.0)],
        )
        .pairs;
        assert_eq!(ratios(&pairs, COLUMNS[0].1), [0.8, 0.9, 0.9]);
        assert!(ratios(&[], COLUMNS[0].1).iter().all(|ratio| ratio.is_nan()));
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
