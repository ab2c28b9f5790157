//! `cargo xtask parity`: the spans of the in-process instrumentation and ours,
//! of the same applications and requests, field by field.
//!
//! The comparison itself is the live test `parity`; this prepares what it
//! needs and lets it talk.

use anyhow::{Context, Result};

use crate::group::run as run_command;
use crate::python::{Venv, apps};
use crate::service::ensure_privileges;
use crate::test::{as_root, database_servers};
use crate::toolchain::{Toolchain, agent};

/// Requirements of the applications and the instrumentation.
pub(crate) const REQUIREMENTS: (&str, &str) = ("parity", "requirements-parity.txt");
/// The same of those that use databases.
pub(crate) const DATABASES: (&str, &str) =
    ("parity-databases", "requirements-parity-databases.txt");

#[derive(clap::Args)]
pub(crate) struct Options {
    /// Compares only the applications whose name contains this
    case: Option<String>,
}

pub(crate) fn run(options: &Options) -> Result<()> {
    ensure_privileges().context("the agent loads BPF programs")?;
    let toolchain = Toolchain::ensure()?;
    let python = Venv::ensure("apps", "requirements.txt")?;
    let parity = Venv::ensure(REQUIREMENTS.0, REQUIREMENTS.1)?;
    let databases = Venv::ensure(DATABASES.0, DATABASES.1)?;
    database_servers()?;
    let agent = agent()?;
    let mut command = toolchain.cargo("test");
    command
        .args(["--quiet", "--package", "otel-ebpf-tests"])
        .args(["--test", "parity", "--", "--nocapture"])
        .env("OTEL_EBPF_AGENT", agent)
        .env("OTEL_EBPF_APPS", apps())
        .env("OTEL_EBPF_PYTHON", python.python())
        .env("OTEL_EBPF_PARITY_PYTHON", parity.python())
        .env("OTEL_EBPF_PARITY_DATABASES_PYTHON", databases.python());
    if let Some(case) = &options.case {
        command.env("OTEL_EBPF_PARITY", case);
    }
    as_root(&mut command);
    run_command(&mut command)
}
