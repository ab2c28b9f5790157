//! `cargo xtask bench`: what tracing costs a service.
//!
//! Each service runs pinned to the first core; the load, the agent and the
//! receiver of spans share the second. A round measures the service untraced,
//! traced by the agent with and without stack walks, and under
//! `opentelemetry-instrument`, each in a fresh process; the order turns from
//! round to round, so that a machine that slows down favors nobody. Numbers are
//! reported beside the budgets and never fail the task: machines differ, ratios
//! less so. Then `operations` measures what single operations cost more, in
//! every version of Python.

mod load;
mod operations;
mod postgres;
mod report;
mod sink;

use std::ffi::OsString;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use self::operations::Cost;
use self::postgres::Postgres;
use self::report::{AgentCost, Mode, Report, Run};
use self::sink::Sink;
use crate::python::{Venv, every_interpreter};
use crate::service::{Agent, AgentOptions, Running, Server, Service};
use crate::test::database_servers;
use crate::toolchain::{agent, ensure_programs, is_root};
use crate::{interrupt, parity, say, target};

#[derive(clap::Args)]
pub(crate) struct Options {
    /// How long each measurement takes
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    /// How often everything is measured
    #[arg(long, default_value_t = 5)]
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
    /// What it is to keep of its throughput, per cent.
    allowed: u32,
    /// Further variables of its environment.
    env: &'static [(&'static str, &'static str)],
}

/// Where a service's items are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Database {
    Sqlite,
    /// The same, by Django's ORM.
    DjangoSqlite,
    Postgres,
}

const SUBJECTS: &[Subject] = &[
    Subject {
        name: "FastAPI + SQLite, uvicorn",
        module: "bench_fastapi",
        server: Server::Uvicorn,
        database: Database::Sqlite,
        allowed: 97,
        env: &[],
    },
    Subject {
        name: "FastAPI + PostgreSQL, uvicorn",
        module: "bench_postgres",
        server: Server::Uvicorn,
        database: Database::Postgres,
        allowed: 98,
        env: &[],
    },
    Subject {
        name: "Flask + SQLite, gunicorn gthread",
        module: "bench_flask",
        server: Server::GunicornThreads(8),
        database: Database::Sqlite,
        allowed: 97,
        env: &[],
    },
    Subject {
        name: "Django + SQLite, gunicorn gthread",
        module: "bench_django",
        server: Server::GunicornThreads(8),
        database: Database::DjangoSqlite,
        allowed: 97,
        env: &[("DJANGO_SETTINGS_MODULE", "bench_django_settings")],
    },
];

/// The core that belongs to the service.
const SERVICE_CORE: usize = 0;
/// The core of everything else.
const OTHER_CORE: usize = 1;
/// Before measuring, so that imports, caches and the first batch are over.
const WARM_UP: Duration = Duration::from_secs(2);
/// What the load asks for.
const PATH: &str = "/items/7";
/// How long the last batch may take to arrive: the SDK sends every five
/// seconds.
const LAST_BATCH: Duration = Duration::from_secs(7);

struct Bench {
    agent: PathBuf,
    untraced: Venv,
    instrumented: Venv,
    /// What has Django, untraced.
    django: Option<Venv>,
    postgres: Option<WithPostgres>,
    measured: Duration,
}

/// What the services need that use PostgreSQL.
struct WithPostgres {
    untraced: Venv,
    instrumented: Venv,
    server: Postgres,
}

impl WithPostgres {
    fn start() -> Result<Self> {
        database_servers()?;
        let (name, requirements) = parity::DATABASES;
        Ok(Self {
            untraced: Venv::ensure("databases", "requirements-databases.txt")?,
            instrumented: Venv::ensure(name, requirements)?,
            server: Postgres::start(OTHER_CORE)?,
        })
    }
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
        .then(WithPostgres::start)
        .transpose()?;
    let django = subjects
        .iter()
        .any(|subject| subject.database == Database::DjangoSqlite)
        .then(|| Venv::ensure("databases", "requirements-databases.txt"))
        .transpose()?;
    let bench = Bench {
        django,
        postgres,
        agent,
        untraced: Venv::ensure("apps", "requirements.txt")?,
        instrumented: Venv::ensure("otel", "requirements-otel.txt")?,
        measured: Duration::from_secs(options.seconds),
    };
    interrupt::watch()?;

    let mut modes = vec![Mode::Untraced, Mode::Agent, Mode::Frameless, Mode::Sdk];
    modes.retain(|mode| !options.without_agent || !matches!(mode, Mode::Agent | Mode::Frameless));
    let mut report = Report::new(options.seconds, options.rounds);
    for round in 0..options.rounds {
        for &subject in &subjects {
            for mode in &modes {
                interrupt::check()?;
                let run = bench
                    .measure(subject, *mode)
                    .with_context(|| format!("{}, {}", subject.name, mode.name()))?;
                say(format!(
                    "round {} of {}: {}, {}: {:.0} requests/s",
                    round + 1,
                    options.rounds,
                    subject.name,
                    mode.name(),
                    run.throughput
                ));
                report.add(subject.name, subject.allowed, run);
            }
        }
        modes.rotate_left(1);
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

    fn measure(&self, subject: &Subject, mode: Mode) -> Result<Run> {
        let directory = tempfile::tempdir()?;
        let sink = Sink::start(OTHER_CORE)?;
        let service = self.service(subject, mode, sink.address(), directory.path())?;
        let mut service = service.start()?;
        let mut agent = match mode {
            Mode::Agent => Some(self.attach(&service, sink.address(), &[])?),
            Mode::Frameless => Some(self.attach(&service, sink.address(), &["--no-frames"])?),
            Mode::Untraced | Mode::Sdk => None,
        };

        load::run(service.address, PATH, WARM_UP, OTHER_CORE)?;
        let before = agent.as_ref().map(cpu_time).transpose()?;
        let load = load::run(service.address, PATH, self.measured, OTHER_CORE)?;
        let after = agent.as_ref().map(cpu_time).transpose()?;
        service.expect_running()?;

        let cost = match (agent.take(), before, after) {
            (Some(mut agent), Some(before), Some(after)) => {
                agent.expect_running()?;
                let peak_kib = peak_memory(&agent)?;
                let summary = agent.end()?;
                Some(AgentCost {
                    micros_per_request: after.saturating_sub(before).as_secs_f64() * 1e6
                        / load.latencies.len().max(1) as f64,
                    peak_kib,
                    lost: report::lost(&summary)?,
                })
            }
            _ => None,
        };
        if mode == Mode::Untraced {
            service.end()?;
        } else {
            if !sink.wait_for_bytes(LAST_BATCH) {
                bail!("no spans arrived: what was measured was not tracing");
            }
            service.end()?;
        }
        Ok(Run::new(mode, &load, cost, sink.bytes()))
    }

    fn service<'a>(
        &'a self,
        subject: &Subject,
        mode: Mode,
        sink: SocketAddr,
        directory: &'a Path,
    ) -> Result<Service<'a>> {
        let file = ("APP_DATABASE", directory.join("stock.db").into());
        let (untraced, instrumented, database) = match subject.database {
            Database::Sqlite => (&self.untraced, &self.instrumented, file),
            Database::DjangoSqlite => {
                let django = self.django.as_ref().context("no Django")?;
                (django, &self.instrumented, file)
            }
            Database::Postgres => {
                let postgres = self.postgres.as_ref().context("no PostgreSQL")?;
                let address = postgres.server.address.to_string().into();
                let database = ("APP_POSTGRES", address);
                (&postgres.untraced, &postgres.instrumented, database)
            }
        };
        let venv = match mode {
            Mode::Untraced | Mode::Agent | Mode::Frameless => untraced,
            Mode::Sdk => instrumented,
        };
        let mut prefix = pinned_to(SERVICE_CORE);
        let mut env = vec![database];
        env.extend(
            subject
                .env
                .iter()
                .map(|(name, value)| (*name, value.into())),
        );
        if mode == Mode::Sdk {
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
            probe: PATH,
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
