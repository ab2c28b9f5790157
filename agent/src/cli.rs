//! The command line.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Parser, Subcommand};

use crate::config::ExportArgs;

/// Traces running Python services from outside, without touching them.
///
/// Shows traces on the terminal, or sends them over OTLP when an endpoint is
/// configured by flag or by the OTEL_EXPORTER_OTLP_* variables.
#[derive(Debug, Parser)]
#[command(name = "otel-ebpf", version, arg_required_else_help = true)]
pub struct Options {
    /// Process to trace, with its future children; may be repeated
    #[arg(long, value_name = "PID")]
    pub pid: Vec<u32>,
    /// Print the counters once a second
    #[arg(long)]
    pub stats: bool,
    /// Size of the ring between kernel and agent, in MiB: a power of two
    #[arg(long, value_name = "MIB", default_value_t = 8)]
    pub ring_size: u32,
    /// Show what the kernel side logs (rare facts, for debugging)
    #[arg(long)]
    pub kernel_log: bool,
    /// Load every BPF program, print what the verifier counted, and end
    #[arg(long, hide = true)]
    pub load_only: bool,
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
    Run {
        /// The command and its arguments
        #[arg(required = true, last = true, value_name = "CMD")]
        command: Vec<OsString>,
    },
    /// Say what this host and these privileges allow and what is missing
    Check {
        /// Also look at this process
        #[arg(long, value_name = "PID")]
        pid: Option<u32>,
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
        let nothing = options.pid.is_empty() && options.command.is_none() && !options.load_only;
        let wrong = if nothing {
            Some("nothing to trace: give --pid PID, or run -- CMD".to_owned())
        } else if options.pid.contains(&0) {
            Some("--pid 0 is no process".to_owned())
        } else if !options.ring_size.is_power_of_two() || options.ring_size > 1024 {
            Some("--ring-size must be a power of two, at most 1024".to_owned())
        } else {
            None
        };
        if let Some(wrong) = wrong {
            use clap::CommandFactory as _;
            Self::command()
                .error(clap::error::ErrorKind::ValueValidation, wrong)
                .exit();
        }
        options
    }

    /// Size of the event ring, bytes.
    pub fn ring_bytes(&self) -> u32 {
        self.ring_size.saturating_mul(1024 * 1024)
    }
}
