//! The program `otel-ebpf`: parses the command line and runs the agent.
//!
//! Exit codes: 0 as asked, 1 failure, 2 wrong usage; `run` passes on the
//! command's own.

use std::io::Write;
use std::process::ExitCode;

use otel_ebpf::cli::{Command, Options};
use otel_ebpf::config::ConfigError;
use otel_ebpf::{launch, run};
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    let options = Options::from_command_line();
    let level = std::env::var("OTEL_LOG_LEVEL").unwrap_or_default();
    let filter = EnvFilter::builder()
        .with_default_directive(tracing::Level::WARN.into())
        .parse_lossy(if level.is_empty() { "warn" } else { &level });
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .init();
    let outcome = match options.command {
        Some(Command::Exec { command }) => launch::exec(&command),
        _ => run::run(options),
    };
    outcome.unwrap_or_else(|error| {
        // A closed standard error leaves only the code.
        let _closed = writeln!(std::io::stderr(), "otel-ebpf: {error:#}");
        ExitCode::from(if error.is::<ConfigError>() { 2 } else { 1 })
    })
}
