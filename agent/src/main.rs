//! The program `otel-ebpf`: parses the command line and runs the agent.
//!
//! Exit codes: 0 as asked, 1 failure, 2 wrong usage; `run` passes on the
//! command's own.

use std::io::{self, IsTerminal, Write};
use std::process::ExitCode;

use otel_ebpf::cli::{self, Command, Options};
use otel_ebpf::config::ConfigError;
use otel_ebpf::{launch, run, stack};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;

fn main() -> ExitCode {
    let options = Options::from_command_line();
    if let Some(Command::Exec { command }) = &options.command {
        // Short of becoming the command there is only an error to tell.
        let (error, code) = launch::exec(command);
        return failed(&error, code);
    }
    start_log();
    if let Some(Command::Stack { pid, locals, json }) = options.command {
        let what = stack::Options { locals, json };
        return stack::run(pid, what, &mut io::stdout().lock())
            .unwrap_or_else(|error| failed(&error.into(), 1));
    }
    run::run(options).unwrap_or_else(|error| {
        let code = if error.is::<ConfigError>() { 2 } else { 1 };
        failed(&error, code)
    })
}

fn failed(error: &anyhow::Error, code: u8) -> ExitCode {
    // A closed standard error leaves only the code.
    let _closed = writeln!(io::stderr(), "otel-ebpf: {}", cli::explain(error.as_ref()));
    ExitCode::from(code)
}

/// Logs to standard error what `OTEL_LOG_LEVEL` asks for.
fn start_log() {
    let value = std::env::var("OTEL_LOG_LEVEL").unwrap_or_default();
    let filter = log_filter(&value);
    let is_wrong = filter.is_none();
    tracing_subscriber::fmt()
        .with_env_filter(
            filter.unwrap_or_else(|| EnvFilter::default().add_directive(DEFAULT.into())),
        )
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal())
        .init();
    if is_wrong {
        tracing::warn!(
            warning = format!(
                "OTEL_LOG_LEVEL={value:?}: it must be one of none, error, warn, info, debug, trace; ignored"
            ),
            "a setting was not understood, its default is used"
        );
    }
}

const DEFAULT: LevelFilter = LevelFilter::WARN;

/// A level for everything, or levels by module as `tracing` writes them; none
/// if it is neither.
fn log_filter(value: &str) -> Option<EnvFilter> {
    let value = value.trim();
    let level = match value.to_ascii_lowercase().as_str() {
        "" => DEFAULT,
        "none" | "off" => LevelFilter::OFF,
        "warning" => LevelFilter::WARN,
        "verbose" | "all" => LevelFilter::TRACE,
        level => match level.parse() {
            Ok(level) => level,
            // A word alone would be taken for the name of a module.
            Err(_) if value.contains('=') => return EnvFilter::try_new(value).ok(),
            Err(_) => return None,
        },
    };
    Some(EnvFilter::default().add_directive(level.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_are_understood_and_other_words_are_not() {
        let check = |value: &str, expected: Option<&str>| {
            let filter = log_filter(value).map(|filter| filter.to_string());
            assert_eq!(filter.as_deref(), expected, "{value:?}");
        };
        check("", Some("warn"));
        check("none", Some("off"));
        check(" DEBUG ", Some("debug"));
        check("otel_ebpf=debug", Some("otel_ebpf=debug"));
        check("loud", None);
        check("a=b=c", None);
    }
}
