//! Exporters: each takes batches of spans and delivers them somewhere.
//!
//! [`build`] makes those that the configuration asks for. `batch` calls them,
//! one batch at a time each, and counts what became of the spans. What is
//! specific to OTLP is in `otlp`, with a transport for each of its protocols.

pub mod console;
pub mod file;
mod grpc;
mod http;
pub mod otlp;
mod write;

use std::io::IsTerminal;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;

use crate::assemble::Span;
use crate::config::{ExportConfig, ExporterKind};
use crate::stats::ExportStats;

/// Delivers batches of spans.
pub trait Exporter: Send {
    /// Its name in the log.
    fn name(&self) -> &'static str;

    /// Delivers a batch. Dropping the future abandons the batch.
    fn export(&mut self, spans: Vec<Span>) -> Exporting<'_>;

    /// Whether it shows spans as they come, so that batches should not wait
    /// for long; it is then also given empty batches, as a clock.
    fn is_live(&self) -> bool {
        false
    }

    /// Brings to an end what it has taken but not yet shown; the last call.
    fn finish(&mut self) -> Exporting<'_> {
        Box::pin(async { Ok(Delivery::default()) })
    }
}

/// An export under way.
pub type Exporting<'a> = Pin<Box<dyn Future<Output = Result<Delivery, ExportError>> + Send + 'a>>;

/// A batch that was delivered.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Delivery {
    /// Spans of it that the receiver did not accept.
    pub rejected: u64,
    /// What the receiver had to say; empty where it said nothing.
    pub message: String,
}

/// Why a batch was not delivered.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum ExportError {
    /// It could not be delivered in time.
    #[error("gave up after {attempts} attempts: {reason}")]
    GaveUp {
        /// Attempts made.
        attempts: u32,
        /// How the last of them failed.
        reason: String,
    },
    /// The receiver will not take it.
    #[error("refused for good: {0}")]
    Refused(String),
    /// The request would be larger than receivers must accept.
    #[error(
        "request of {bytes} bytes is over the limit of {} bytes",
        otlp::MAX_REQUEST
    )]
    TooLarge {
        /// Size before compression.
        bytes: usize,
    },
    /// It could not be written.
    #[error("cannot write to {path}: {reason}")]
    Write {
        /// The file.
        path: String,
        /// The error of the system.
        reason: String,
    },
}

/// Why an exporter cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// A file cannot be read or written.
    #[error("cannot open {}: {source}", path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// The error of the system.
        source: std::io::Error,
    },
    /// A PEM file does not hold what it should.
    #[error("{} holds no {what}", path.display())]
    Pem {
        /// The file.
        path: PathBuf,
        /// What was looked for.
        what: &'static str,
    },
    /// One of the two files for mutual TLS is missing.
    #[error("a client key and a client certificate must be given together")]
    Identity,
    /// The TLS settings do not fit together.
    #[error("cannot set up TLS: {0}")]
    Tls(String),
    /// A header cannot be sent by this protocol.
    #[error("header {0} cannot be sent over gRPC")]
    Header(String),
}

/// Makes the configured exporters. Must be called inside a tokio runtime.
///
/// No connection is made yet; files are opened and certificates are read.
pub fn build(
    config: &ExportConfig,
    stats: &Arc<ExportStats>,
) -> Result<Vec<Box<dyn Exporter>>, BuildError> {
    config
        .exporters
        .iter()
        .map(|kind| -> Result<Box<dyn Exporter>, BuildError> {
            let limits = config.limits.clone();
            Ok(match kind {
                ExporterKind::Console => {
                    let stdout = std::io::stdout();
                    let style =
                        console::Style::from(|name| std::env::var(name).ok(), stdout.is_terminal());
                    Box::new(console::Console::new(stdout, style))
                }
                ExporterKind::File(path) => Box::new(file::File::open(path, limits)?),
                ExporterKind::Stdout => Box::new(file::File::stdout(limits)),
                ExporterKind::Otlp => {
                    otlp::exporter(&config.otlp, limits, stats, otlp::Backoff::default())?
                }
            })
        })
        .collect()
}
