//! The command line: what can be asked for, the help, and how errors are
//! worded.

use std::error::Error;
use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Parser, Subcommand};

use crate::config::ExportArgs;
use crate::probes::TableEntries;

/// Traces running Python services from outside, without touching them.
///
/// Shows traces on the terminal, or sends them over OTLP when an endpoint is
/// configured by flag or by the OTEL_EXPORTER_OTLP_* variables.
#[derive(Debug, Parser)]
#[command(
    name = "otel-ebpf",
    version,
    arg_required_else_help = true,
    after_help = EXAMPLES,
    after_long_help = LONG_NOTES
)]
pub struct Options {
    /// Process to trace, with its future children; may be repeated
    #[arg(long, value_name = "PID", value_parser = process_id, help_heading = TRACING)]
    pub pid: Vec<u32>,
    /// Size of the ring between kernel and agent, in MiB: a power of two
    #[arg(
        long,
        value_name = "MIB",
        default_value_t = 8,
        value_parser = ring_size,
        help_heading = TRACING
    )]
    pub ring_size: u32,
    /// Do not look into Python's frames: spans without routes, code locations
    /// and exceptions
    #[arg(long, help_heading = TRACING)]
    pub no_frames: bool,
    /// Print the counters to standard error once a second
    #[arg(long, help_heading = TRACING)]
    pub stats: bool,
    /// Show what the kernel side logs (rare facts, for debugging; needs
    /// OTEL_LOG_LEVEL=debug)
    #[arg(long, help_heading = TRACING)]
    pub kernel_log: bool,
    /// Load every BPF program, print what the verifier counted, and end
    #[arg(long, hide = true)]
    pub load_only: bool,
    /// Room in one of the kernel side's tables that evict their least used or
    /// in that of threads, entries, or in each of them: to see what comes of it
    #[arg(long, hide = true, value_name = "[TABLE=]ENTRIES", value_parser = TableEntries::parse)]
    pub table_entries: Option<TableEntries>,
    /// Also write what the kernel side reports to this file, for replay
    #[arg(long, hide = true, value_name = "PATH")]
    pub record_events: Option<PathBuf>,
    /// Where and how spans are exported.
    #[command(flatten)]
    pub export: ExportArgs,
    /// What to do instead of tracing running processes.
    #[command(subcommand)]
    pub command: Option<Command>,
}

/// Subcommands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Start a command and trace it from its first request
    ///
    /// The command gets this terminal, the agent's environment and its
    /// signals (SIGINT and SIGTERM are passed on), and its exit code becomes
    /// the agent's. Options of the agent stand before "run".
    Run {
        /// The command and its arguments
        #[arg(required = true, last = true, value_name = "CMD")]
        command: Vec<OsString>,
    },
    /// Say what this host and these privileges allow and what is missing
    ///
    /// Ends with code 0 if tracing is possible, with 1 if it is not.
    Check {
        /// Also look at this process
        #[arg(long, value_name = "PID", value_parser = process_id)]
        pid: Option<u32>,
    },
    /// Say where every Python thread of a process is, without stopping it
    ///
    /// Prints each thread's calls, the most recent first. Ends with code 0 if
    /// the stacks could be read, with 1 if not.
    Stack {
        /// The process
        #[arg(long, value_name = "PID", value_parser = process_id)]
        pid: u32,
        /// Also print the local variables of functions
        #[arg(long)]
        locals: bool,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Stop, and become the command once continued
    #[command(name = crate::launch::SUBCOMMAND, hide = true)]
    Exec {
        /// The command and its arguments
        #[arg(required = true, last = true)]
        command: Vec<OsString>,
    },
}

impl Options {
    /// Parses the command line; what is wrong with it ends the program with
    /// code 2.
    pub fn from_command_line() -> Self {
        let options = Self::parse();
        if options.pid.is_empty() && options.command.is_none() && !options.load_only {
            use clap::CommandFactory as _;
            Self::command()
                .error(
                    clap::error::ErrorKind::MissingRequiredArgument,
                    "nothing to trace: give --pid PID, or run -- CMD",
                )
                .exit();
        }
        options
    }

    /// Size of the event ring, bytes.
    pub fn ring_bytes(&self) -> u32 {
        self.ring_size.saturating_mul(1024 * 1024)
    }
}

/// An error with its causes, for the operator.
///
/// Many errors repeat their cause in their own message; such a cause is not
/// told twice.
pub fn explain(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let message = error.to_string();
        if !text.contains(&message) {
            text.push_str(": ");
            text.push_str(&message);
        }
        cause = error.source();
    }
    text
}

/// Largest ring, MiB.
const MAX_RING: u32 = 1024;

const TRACING: &str = "Tracing";

const EXAMPLES: &str = "\
Examples:
  otel-ebpf --pid 4242                   trace a running service, on the terminal
  otel-ebpf run -- gunicorn shop:app     start a service and trace it
  otel-ebpf --otlp-endpoint http://localhost:4318 --pid 4242
                                         send its spans to a collector
  otel-ebpf check --pid 4242             say what would be in the way
  otel-ebpf stack --pid 4242             say where its threads are
";

const LONG_NOTES: &str = "\
Examples:
  otel-ebpf --pid 4242
          Trace a running service and its future children, on the terminal
  otel-ebpf run -- gunicorn --workers 4 shop:app
          Start a service and trace it from its first request
  otel-ebpf --otlp-endpoint http://localhost:4318 --pid 4242 --pid 4243
          Send the spans of two services to a collector
  otel-ebpf --otlp-file - --pid 4242 | jq .
          Print spans as OTLP JSON lines
  otel-ebpf check --pid 4242
          Say what this host allows, and what would be in the way
  otel-ebpf stack --pid 4242 --locals
          Say where the service's threads are, with their variables

Environment:
  A flag wins over its variable. Of OTEL_EXPORTER_OTLP_*, the form
  OTEL_EXPORTER_OTLP_TRACES_* wins over the one for all signals. Without
  flags:
  OTEL_ATTRIBUTE_COUNT_LIMIT, OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT
          Attributes of a span; further ones are dropped
  OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT, OTEL_SPAN_ATTRIBUTE_VALUE_LENGTH_LIMIT
          Characters of a text; further ones are cut off
  OTEL_LOG_LEVEL
          What the agent logs: none, error, warn (default), info, debug, trace

  The traced process's own environment names its service: OTEL_SERVICE_NAME
  and OTEL_RESOURCE_ATTRIBUTES. With OTEL_SDK_DISABLED=true or
  OTEL_TRACES_EXPORTER=none there, it is not traced.

Exit codes:
  0 as asked, 1 failure, 2 wrong usage; \"run\" passes on its command's own
";

fn process_id(text: &str) -> Result<u32, String> {
    match text.parse() {
        Ok(0) => Err("0 is no process".to_owned()),
        Ok(pid) => Ok(pid),
        Err(_) => Err("a process id is a whole number from 1 upwards".to_owned()),
    }
}

fn ring_size(text: &str) -> Result<u32, String> {
    text.parse()
        .ok()
        .filter(|size: &u32| size.is_power_of_two() && *size <= MAX_RING)
        .ok_or_else(|| format!("it must be a power of two, at most {MAX_RING}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_definition_is_consistent() {
        use clap::CommandFactory as _;
        Options::command().debug_assert();
    }

    #[test]
    fn numbers_are_checked() {
        assert_eq!(process_id("42"), Ok(42));
        for wrong in ["0", "-1", "4294967296", "x", ""] {
            assert!(process_id(wrong).is_err(), "{wrong:?}");
        }
        assert_eq!(ring_size("16"), Ok(16));
        for wrong in ["0", "3", "2048", "x"] {
            assert!(ring_size(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn a_cause_is_told_once() {
        #[derive(Debug, thiserror::Error)]
        #[error("outer: {source}")]
        struct Outer {
            source: Inner,
        }
        #[derive(Debug, thiserror::Error)]
        #[error("inner")]
        struct Inner(#[source] std::io::Error);
        let error = Outer {
            source: Inner(std::io::Error::other("root")),
        };
        assert_eq!(explain(&error), "outer: inner: root");
    }
}
