//! `cargo xtask bench`: what tracing costs a service.
//!
//! Each service runs pinned to the first core; the load, the agent and the
//! receiver of spans share the second. A machine's own speed changes from one
//! second to the next by more than what is to be measured. So the service runs
//! twice, untraced and traced by the agent, with or without stack walks, or by
//! `opentelemetry-instrument`, and the load goes to the two by turns, for half
//! a second each: what is told is the median over the pairs. The one that is
//! not asked only waits. Each round begins with fresh processes. Numbers are
//! reported beside the budgets and never fail the task: machines differ, ratios
//! less so. Then `operations` measures what single operations cost more, in
//! every version of Python.
//!
//! While an agent is attached to one of the two, the other passes its
//! tracepoints as well, as does every process of the machine: some 50 ns for
//! a system call, which the ratios do not contain. The operation `getppid`
//! tells what they are.

mod load;
mod operations;
mod postgres;
mod report;
mod sink;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use self::operations::Cost;
use self::postgres::Postgres;
use self::report::{AgentCost, Comparison, Mode, Pair, Report};
use self::sink::Sink;
use crate::python::{Venv, every_interpreter};
use crate::service::{Agent, AgentOptions, Running, Server, Service};
use crate::test::database_servers;
use crate::toolchain::{agent, ensure_programs, is_root};
use crate::{interrupt, parity, say, target};

#[derive(clap::Args)]
pub(crate) struct Options {
    /// How long each service is under load in a round, untraced and traced each
    #[arg(long, default_value_t = 5)]
    seconds: u64,
    /// How often everything is measured, in fresh processes
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Measures only the services whose name contains this
    #[arg(long)]
    service: Option<String>,
    /// Leaves the agent out
    #[arg(long, hide = true)]
    without_agent: bool,
}

struct Subject {
    name: &'static str,
    module: &'static str,
    server: Server,
    database: Database,
    /// What the load asks for.
    path: &'static str,
    /// What it is to keep of its throughput, per cent.
    allowed: u32,
    /// Further variables of its environment.
    env: &'static [(&'static str, &'static str)],
}

/// Where a service's items are, and in which environment what reads them is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Database {
    Sqlite,
    /// The same, by SQLAlchemy.
    SqlalchemySqlite,
    Postgres,
}

impl Database {
    /// The environment's name and requirements, those of the in-process
    /// instrumentations among them.
    fn venv(self) -> (&'static str, &'static str) {
        match self {
            Self::Sqlite => ("otel", "requirements-otel.txt"),
            Self::SqlalchemySqlite | Self::Postgres => parity::DATABASES,
        }
    }
}

/// One item by its primary key.
const ITEM: &str = "/items/7";
/// A page of twenty.
const PAGE: &str = "/items?limit=20";

/// The first four do as little as such a service can, so that what tracing
/// costs weighs most; the two after them are written as the frameworks'
/// tutorials write it.
const SUBJECTS: &[Subject] = &[
    Subject {
        name: "FastAPI + SQLite, uvicorn",
        module: "bench_fastapi",
        server: Server::Uvicorn,
        database: Database::Sqlite,
        path: ITEM,
        allowed: 97,
        env: &[],
    },
    Subject {
        name: "FastAPI + PostgreSQL, uvicorn",
        module: "bench_postgres",
        server: Server::Uvicorn,
        database: Database::Postgres,
        path: ITEM,
        allowed: 98,
        env: &[],
    },
    Subject {
        name: "Flask + SQLite, gunicorn gthread",
        module: "bench_flask",
        server: Server::GunicornThreads(8),
        database: Database::Sqlite,
        path: ITEM,
        allowed: 97,
        env: &[],
    },
    Subject {
        name: "Django + SQLite, gunicorn gthread",
        module: "bench_django",
        server: Server::GunicornThreads(8),
        database: Database::Sqlite,
        path: ITEM,
        allowed: 97,
        env: &[("DJANGO_SETTINGS_MODULE", "bench_django_settings")],
    },
    Subject {
        name: "FastAPI + SQLAlchemy + SQLite, uvicorn",
        module: "bench_sqlalchemy",
        server: Server::Uvicorn,
        database: Database::SqlalchemySqlite,
        path: PAGE,
        allowed: 97,
        env: &[],
    },
    Subject {
        name: "FastAPI + SQLAlchemy + PostgreSQL, uvicorn",
        module: "bench_sqlalchemy_async",
        server: Server::Uvicorn,
        database: Database::Postgres,
        path: PAGE,
        allowed: 98,
        env: &[],
    },
];

/// The core that belongs to the service.
const SERVICE_CORE: usize = 0;
/// The core of everything else.
const OTHER_CORE: usize = 1;
/// Before measuring, so that imports, caches and the first batch are over.
const WARM_UP: Duration = Duration::from_secs(2);
/// How long one of the two is asked until it is the other's turn.
const TURN: Duration = Duration::from_millis(500);
/// How long the last batch may take to arrive: the SDK sends every five
/// seconds.
const LAST_BATCH: Duration = Duration::from_secs(7);

struct Bench {
    agent: PathBuf,
    /// By their names.
    venvs: BTreeMap<&'static str, Venv>,
    postgres: Option<Postgres>,
    /// How many turns each of the two has.
    turns: usize,
}

pub(crate) fn run(options: &Options) -> Result<()> {
    if thread::available_parallelism()?.get() < 2 {
        bail!("two cores are needed: one for the service, one for the rest");
    }
    if !options.without_agent && !is_root() {
        bail!("attaching needs root: run this task as root");
    }
    if options.rounds == 0 || options.seconds == 0 {
        bail!("nothing to measure");
    }
    ensure_programs(&[("taskset", "util-linux")], "pin processes to cores")?;
    let agent = if options.without_agent {
        PathBuf::new()
    } else {
        agent()?
    };
    let wanted = options.service.as_deref().unwrap_or_default();
    let subjects: Vec<&Subject> = SUBJECTS
        .iter()
        .filter(|subject| subject.name.contains(wanted))
        .collect();
    if subjects.is_empty() {
        bail!("there is no service {wanted:?}");
    }
    let postgres = subjects
        .iter()
        .any(|subject| subject.database == Database::Postgres)
        .then(|| {
            database_servers()?;
            Postgres::start(OTHER_CORE)
        })
        .transpose()?;
    let mut venvs = BTreeMap::new();
    for subject in &subjects {
        let (name, requirements) = subject.database.venv();
        if !venvs.contains_key(name) {
            venvs.insert(name, Venv::ensure(name, requirements)?);
        }
    }
    let bench = Bench {
        agent,
        venvs,
        postgres,
        turns: (options.seconds * 1000 / TURN.as_millis() as u64) as usize,
    };
    interrupt::watch()?;

    let modes: &[Mode] = match options.without_agent {
        true => &[Mode::Sdk],
        false => &[Mode::Agent, Mode::Frameless, Mode::Sdk],
    };
    let mut report = Report::new(TURN, bench.turns * options.rounds);
    for round in 0..options.rounds {
        for &subject in &subjects {
            for mode in modes {
                let comparison = bench
                    .compare(subject, *mode)
                    .with_context(|| format!("{}, {}", subject.name, mode.name()))?;
                say(format!(
                    "round {} of {}: {}, {}: {:.1} % of the untraced throughput",
                    round + 1,
                    options.rounds,
                    subject.name,
                    mode.name(),
                    100.0 * comparison.throughput_ratio(),
                ));
                report.add(subject.name, subject.allowed, comparison);
            }
        }
    }

    println!("{}", report.table());
    println!("{}", report.budgets());
    let mut document = report.json();
    if !options.without_agent && wanted.is_empty() {
        let costs = bench.operations(options.rounds)?;
        println!("{}", operations::table(&costs));
        document["operations"] = operations::json(&costs);
    }
    let file = target().join("bench/report.json");
    if let Some(directory) = file.parent() {
        fs::create_dir_all(directory)?;
    }
    fs::write(&file, serde_json::to_string_pretty(&document)?)?;
    println!("{}", file.display());
    Ok(())
}

impl Bench {
    /// What tracing adds to single operations, in every version.
    fn operations(&self, rounds: usize) -> Result<Vec<Cost>> {
        every_interpreter()
            .into_iter()
            .map(|(minor, interpreter)| {
                interrupt::check()?;
                let version = format!("3.{minor}");
                operations::measure(&version, &interpreter, &self.agent, rounds).context(version)
            })
            .collect()
    }

    /// The service, traced and not, under load by turns.
    fn compare(&self, subject: &Subject, mode: Mode) -> Result<Comparison> {
        let (one, other) = (tempfile::tempdir()?, tempfile::tempdir()?);
        let sink = Sink::start(OTHER_CORE)?;
        let untraced = self.service(subject, None, one.path())?;
        let mut untraced = untraced.start()?;
        let sdk = (mode == Mode::Sdk).then(|| sink.address());
        let traced = self.service(subject, sdk, other.path())?;
        let mut traced = traced.start()?;
        let mut agent = match mode {
            Mode::Agent => Some(self.attach(&traced, sink.address(), &[])?),
            Mode::Frameless => Some(self.attach(&traced, sink.address(), &["--no-frames"])?),
            Mode::Untraced | Mode::Sdk => None,
        };

        for service in [&untraced, &traced] {
            load::run(service, subject.path, WARM_UP, OTHER_CORE)?;
        }
        let before = agent.as_ref().map(cpu_time).transpose()?;
        let mut pairs = Vec::new();
        for turn in 0..self.turns {
            interrupt::check()?;
            let ask = |service: &Running| load::run(service, subject.path, TURN, OTHER_CORE);
            // Who comes first alternates, so that what drifts favors nobody.
            let (first, second) = match turn % 2 {
                0 => (&untraced, &traced),
                _ => (&traced, &untraced),
            };
            let loads = (ask(first)?, ask(second)?);
            pairs.push(match turn % 2 {
                0 => Pair::new(&loads.0, &loads.1),
                _ => Pair::new(&loads.1, &loads.0),
            });
        }
        let after = agent.as_ref().map(cpu_time).transpose()?;
        untraced.expect_running()?;
        traced.expect_running()?;

        let cost = match (agent.take(), before, after) {
            (Some(mut agent), Some(before), Some(after)) => {
                agent.expect_running()?;
                let peak_kib = peak_memory(&agent)?;
                let summary = agent.end()?;
                let requests: usize = pairs.iter().map(|pair| pair.traced.requests).sum();
                Some(AgentCost {
                    micros_per_request: after.saturating_sub(before).as_secs_f64() * 1e6
                        / requests.max(1) as f64,
                    peak_kib,
                    lost: report::lost(&summary)?,
                })
            }
            _ => None,
        };
        if !sink.wait_for_bytes(LAST_BATCH) {
            bail!("no spans arrived: what was measured was not tracing");
        }
        untraced.end()?;
        traced.end()?;
        Ok(Comparison {
            mode,
            pairs,
            cost,
            exported_bytes: sink.bytes(),
        })
    }

    /// The service; with the in-process SDK, if it has where to send spans.
    fn service<'a>(
        &'a self,
        subject: &Subject,
        sdk: Option<SocketAddr>,
        directory: &'a Path,
    ) -> Result<Service<'a>> {
        let (name, _) = subject.database.venv();
        let venv = self.venvs.get(name).context("no Python environment")?;
        let mut prefix = pinned_to(SERVICE_CORE);
        let mut env = vec![match subject.database {
            Database::Sqlite | Database::SqlalchemySqlite => {
                ("APP_DATABASE", directory.join("stock.db").into())
            }
            Database::Postgres => {
                let server = self.postgres.as_ref().context("no PostgreSQL")?;
                ("APP_POSTGRES", server.address.to_string().into())
            }
        }];
        env.extend(
            subject
                .env
                .iter()
                .map(|(name, value)| (*name, value.into())),
        );
        if let Some(sink) = sdk {
            prefix.push(venv.program("opentelemetry-instrument").into());
            env.extend(
                [
                    ("OTEL_SERVICE_NAME", subject.module.to_owned()),
                    ("OTEL_SEMCONV_STABILITY_OPT_IN", "http,database".to_owned()),
                    ("OTEL_TRACES_EXPORTER", "otlp".to_owned()),
                    ("OTEL_METRICS_EXPORTER", "none".to_owned()),
                    ("OTEL_LOGS_EXPORTER", "none".to_owned()),
                    ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf".to_owned()),
                    ("OTEL_EXPORTER_OTLP_ENDPOINT", format!("http://{sink}")),
                ]
                .map(|(name, value)| (name, value.into())),
            );
        }
        Ok(Service {
            module: subject.module,
            server: subject.server,
            probe: subject.path,
            env,
            prefix,
            venv,
            logs: directory,
        })
    }

    fn attach(&self, service: &Running, sink: SocketAddr, more: &[&str]) -> Result<Agent> {
        Agent::start(AgentOptions {
            binary: &self.agent,
            pids: &service.pids(),
            arguments: [
                "--traces-exporter",
                "otlp",
                "--otlp-protocol",
                "http/protobuf",
                "--otlp-endpoint",
            ]
            .into_iter()
            .map(OsString::from)
            .chain([format!("http://{sink}").into()])
            .chain(more.iter().map(OsString::from))
            .collect(),
            prefix: pinned_to(OTHER_CORE),
            show: false,
        })
    }
}

fn pinned_to(core: usize) -> Vec<OsString> {
    vec!["taskset".into(), "-c".into(), core.to_string().into()]
}

/// User and system time of the agent so far.
fn cpu_time(agent: &Agent) -> Result<Duration> {
    let stat = fs::read_to_string(format!("/proc/{}/stat", agent.pid()))?;
    report::cpu_time(&stat).context("the agent's stat has no times")
}

/// The agent's largest resident size, in KiB.
fn peak_memory(agent: &Agent) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{}/status", agent.pid()))?;
    report::peak_memory(&status).context("the agent's status has no VmHWM")
}
