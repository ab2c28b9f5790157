//! Export settings from flags and from the environment.
//!
//! [`SETTINGS`] has one row per setting: the variables that set it, in the
//! order of growing precedence, and its flag, which wins over both. Parsing
//! follows the OpenTelemetry environment variable specification: an empty
//! variable is an unset one, and one that cannot be parsed is reported as a
//! [`Warning`] and passed over. A flag that cannot be parsed is an error. The
//! environment comes in as a function; files are not opened here.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use http::header::HeaderMap;
use http::uri::Uri;

mod value;

use self::value::{
    parse_bool, parse_choice, parse_count, parse_exporters, parse_headers, parse_limit,
    parse_positive, parse_timeout, resolve_endpoint, without_credentials,
};

/// Flags of the export settings; those not given are `None`.
#[derive(clap::Args, Clone, Debug, Default)]
#[command(next_help_heading = "Export")]
pub struct ExportArgs {
    /// Exporters, separated by commas: otlp, console, none
    /// [env: OTEL_TRACES_EXPORTER]
    #[arg(long, value_name = "LIST")]
    pub traces_exporter: Option<String>,
    /// Where the receiver listens; HTTP appends v1/traces
    /// [env: OTEL_EXPORTER_OTLP_ENDPOINT]
    #[arg(long, value_name = "URL")]
    pub otlp_endpoint: Option<String>,
    /// http/protobuf or grpc [env: OTEL_EXPORTER_OTLP_PROTOCOL]
    #[arg(long, value_name = "PROTOCOL")]
    pub otlp_protocol: Option<String>,
    /// Headers of every request, key=value, separated by commas
    /// [env: OTEL_EXPORTER_OTLP_HEADERS]
    #[arg(long, value_name = "LIST")]
    pub otlp_headers: Option<Secret>,
    /// gzip or none [env: OTEL_EXPORTER_OTLP_COMPRESSION]
    #[arg(long, value_name = "METHOD")]
    pub otlp_compression: Option<String>,
    /// Longest time for one batch, retries included, in milliseconds
    /// [env: OTEL_EXPORTER_OTLP_TIMEOUT]
    #[arg(long, value_name = "MS")]
    pub otlp_timeout: Option<String>,
    /// PEM file with the authorities that the receiver's certificate may be
    /// signed by [env: OTEL_EXPORTER_OTLP_CERTIFICATE]
    #[arg(long, value_name = "FILE")]
    pub otlp_certificate: Option<String>,
    /// PEM file with our private key [env: OTEL_EXPORTER_OTLP_CLIENT_KEY]
    #[arg(long, value_name = "FILE")]
    pub otlp_client_key: Option<String>,
    /// PEM file with our certificate chain
    /// [env: OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE]
    #[arg(long, value_name = "FILE")]
    pub otlp_client_certificate: Option<String>,
    /// Whether gRPC to an endpoint without a scheme goes without TLS: true or
    /// false [env: OTEL_EXPORTER_OTLP_INSECURE]
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true")]
    pub otlp_insecure: Option<String>,
    /// Write OTLP JSON lines to a file, or to standard output with "-"
    #[arg(long, value_name = "PATH")]
    pub otlp_file: Option<String>,
    /// Longest time a span waits to be exported, in milliseconds
    /// [env: OTEL_BSP_SCHEDULE_DELAY]
    #[arg(long, value_name = "MS")]
    pub bsp_schedule_delay: Option<String>,
    /// Longest time for the export of one batch, in milliseconds
    /// [env: OTEL_BSP_EXPORT_TIMEOUT]
    #[arg(long, value_name = "MS")]
    pub bsp_export_timeout: Option<String>,
    /// Spans that may wait to be exported [env: OTEL_BSP_MAX_QUEUE_SIZE]
    #[arg(long, value_name = "COUNT")]
    pub bsp_max_queue_size: Option<String>,
    /// Spans of one batch [env: OTEL_BSP_MAX_EXPORT_BATCH_SIZE]
    #[arg(long, value_name = "COUNT")]
    pub bsp_max_export_batch_size: Option<String>,
}

/// A text that is never shown.
#[derive(Clone)]
pub struct Secret(String);

impl From<String> for Secret {
    fn from(text: String) -> Self {
        Self(text)
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("[redacted]")
    }
}

/// How and where to traces are exported.
#[derive(Clone, Debug, PartialEq)]
pub struct ExportConfig {
    /// The exporters that are to run, each once.
    pub exporters: Vec<ExporterKind>,
    /// Settings of the OTLP exporter over the network.
    pub otlp: OtlpConfig,
    /// Settings of the batch processor.
    pub batch: BatchConfig,
    /// Limits on what a span carries.
    pub limits: SpanLimits,
}

/// An exporter that can be chosen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ExporterKind {
    /// OTLP over the network.
    Otlp,
    /// A waterfall for a reader, to standard output.
    Console,
    /// OTLP JSON lines to a file.
    File(PathBuf),
    /// OTLP JSON lines to standard output.
    Stdout,
}

/// Settings of the OTLP exporter over the network.
#[derive(Clone, Debug, PartialEq)]
pub struct OtlpConfig {
    /// Where to: for HTTP the whole URL, for gRPC scheme and authority.
    pub endpoint: Uri,
    /// Which of the protocols.
    pub protocol: Protocol,
    /// Headers of every request; their values are marked as sensitive.
    pub headers: HeaderMap,
    /// Whether requests are compressed with gzip.
    pub gzip: bool,
    /// Longest time for one batch, retries included.
    pub timeout: Duration,
    /// Authorities to trust instead of the system's.
    pub certificate: Option<PathBuf>,
    /// Private key for mutual TLS.
    pub client_key: Option<PathBuf>,
    /// Certificate chain for mutual TLS.
    pub client_certificate: Option<PathBuf>,
}

/// A protocol of OTLP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// HTTP/1.1 with protobuf.
    HttpProtobuf,
    /// gRPC.
    Grpc,
}

/// Settings of the batch processor, named as in the specification
/// (Trace SDK: Batching processor).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BatchConfig {
    /// Longest time between two exports.
    pub schedule_delay: Duration,
    /// Longest time for one export.
    pub export_timeout: Duration,
    /// Spans that may wait; further ones are dropped.
    pub max_queue_size: usize,
    /// Spans of one export; at most `max_queue_size`.
    pub max_export_batch_size: usize,
}

impl Default for BatchConfig {
    fn default() -> Self {
        Self {
            schedule_delay: Duration::from_millis(5_000),
            export_timeout: Duration::from_millis(30_000),
            max_queue_size: 2_048,
            max_export_batch_size: 512,
        }
    }
}

/// Limits on what a span carries (specification, Common: Attribute Limits).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SpanLimits {
    /// Attributes of a span; further ones are dropped and counted.
    pub attribute_count: usize,
    /// Characters of a string value; further ones are cut off.
    pub attribute_value_length: Option<usize>,
    /// Events of a span; further ones are dropped and counted.
    pub event_count: usize,
    /// Attributes of an event; further ones are dropped and counted.
    pub event_attribute_count: usize,
}

impl Default for SpanLimits {
    fn default() -> Self {
        Self {
            attribute_count: 128,
            attribute_value_length: None,
            event_count: 128,
            event_attribute_count: 128,
        }
    }
}

/// A setting that was passed over, or replaced.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Warning {
    /// The variable or flag.
    pub name: &'static str,
    /// Its value, but for secrets.
    pub value: Option<String>,
    /// What is wrong with it and what is done instead.
    pub reason: String,
}

impl fmt::Display for Warning {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.value {
            Some(value) => write!(formatter, "{}={value:?}: {}", self.name, self.reason),
            None => write!(formatter, "{}: {}", self.name, self.reason),
        }
    }
}

/// Why the flags do not make a configuration.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum ConfigError {
    /// A flag's value cannot be parsed; it is `None` where it is a secret.
    #[error("invalid value{} for {flag}: {reason}", value.as_ref().map(|value| format!(" {value:?}")).unwrap_or_default())]
    Flag {
        /// The flag.
        flag: &'static str,
        /// Its value.
        value: Option<String>,
        /// What is wrong with it.
        reason: String,
    },
}

impl ExportConfig {
    /// Reads the settings from `environment` and from the flags, which win.
    ///
    /// Where nothing says what to export to, it is the console.
    pub fn from(
        environment: impl Fn(&str) -> Option<String>,
        flags: &ExportArgs,
    ) -> Result<(Self, Vec<Warning>), ConfigError> {
        let mut raw = Raw::default();
        let mut warnings = Vec::new();
        for setting in SETTINGS {
            for &name in setting.variables {
                let Some(value) = environment(name).filter(|value| !value.trim().is_empty()) else {
                    continue;
                };
                let origin = Origin::of_variable(name);
                let value = value.trim();
                match (setting.set)(&mut raw, value, origin) {
                    Ok(notes) => warnings.extend(notes.into_iter().map(|reason| Warning {
                        name,
                        value: setting.shown(value),
                        reason,
                    })),
                    Err(reason) => warnings.push(Warning {
                        name,
                        value: setting.shown(value),
                        reason: format!("{reason}; ignored"),
                    }),
                }
            }
            let Some((flag, read)) = setting.flag else {
                continue;
            };
            if let Some(value) = read(flags) {
                let refuse = |reason| ConfigError::Flag {
                    flag,
                    value: setting.shown(value),
                    reason,
                };
                let notes = (setting.set)(&mut raw, value, Origin::Flag).map_err(refuse)?;
                if let Some(reason) = notes.into_iter().next() {
                    return Err(refuse(reason));
                }
            }
        }
        let config = raw.resolve(&mut warnings)?;
        Ok((config, warnings))
    }
}

/// Settings as they are read, before they are put together.
#[derive(Default)]
struct Raw {
    exporters: Option<Vec<ExporterKind>>,
    file: Option<ExporterKind>,
    endpoint: Option<(String, Origin)>,
    protocol: Option<Protocol>,
    headers: HeaderMap,
    gzip: bool,
    timeout: Option<Duration>,
    certificate: Option<PathBuf>,
    client_key: Option<PathBuf>,
    client_certificate: Option<PathBuf>,
    insecure: bool,
    batch: BatchConfig,
    batch_size: Option<Origin>,
    limits: SpanLimits,
}

/// Where a value came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Origin {
    /// A variable for every signal.
    Generic(&'static str),
    /// A variable for traces alone.
    Traces(&'static str),
    /// A flag.
    Flag,
}

impl Origin {
    fn of_variable(name: &'static str) -> Self {
        if name.starts_with("OTEL_EXPORTER_OTLP_TRACES_") {
            Self::Traces(name)
        } else {
            Self::Generic(name)
        }
    }
}

impl Raw {
    fn resolve(self, warnings: &mut Vec<Warning>) -> Result<ExportConfig, ConfigError> {
        let protocol = self.protocol.unwrap_or(Protocol::HttpProtobuf);
        let mut configured = false;
        let mut endpoint = None;
        if let Some((text, origin)) = self.endpoint {
            match (
                resolve_endpoint(&text, protocol, origin, self.insecure),
                origin,
            ) {
                (Ok(uri), _) => {
                    configured = true;
                    endpoint = Some(uri);
                }
                (Err(reason), Origin::Flag) => {
                    return Err(ConfigError::Flag {
                        flag: "--otlp-endpoint",
                        value: Some(without_credentials(&text)),
                        reason,
                    });
                }
                (Err(reason), Origin::Generic(name) | Origin::Traces(name)) => {
                    // It was meant to go to a receiver, so it does not fall
                    // back to the console.
                    configured = true;
                    warnings.push(Warning {
                        name,
                        value: Some(without_credentials(&text)),
                        reason: format!("{reason}; ignored"),
                    });
                }
            }
        }
        let mut exporters = match (self.exporters, &self.file) {
            (Some(exporters), _) => exporters,
            (None, _) if configured => vec![ExporterKind::Otlp],
            (None, Some(_)) => Vec::new(),
            (None, None) => vec![ExporterKind::Console],
        };
        if let Some(file) = self.file
            && !exporters.contains(&file)
        {
            exporters.push(file);
        }
        let mut batch = self.batch;
        if batch.max_export_batch_size > batch.max_queue_size {
            let reason = format!(
                "a batch of {} spans is larger than the queue of {}",
                batch.max_export_batch_size, batch.max_queue_size
            );
            match self.batch_size {
                Some(Origin::Flag) => {
                    return Err(ConfigError::Flag {
                        flag: "--bsp-max-export-batch-size",
                        value: Some(batch.max_export_batch_size.to_string()),
                        reason,
                    });
                }
                // The default is larger than a queue made small on purpose.
                None => {}
                Some(_) => warnings.push(Warning {
                    name: "OTEL_BSP_MAX_EXPORT_BATCH_SIZE",
                    value: Some(batch.max_export_batch_size.to_string()),
                    reason: format!("{reason}; batches have the queue's size"),
                }),
            }
            batch.max_export_batch_size = batch.max_queue_size;
        }
        Ok(ExportConfig {
            exporters,
            otlp: OtlpConfig {
                endpoint: endpoint.unwrap_or_else(|| match protocol {
                    Protocol::HttpProtobuf => Uri::from_static("http://localhost:4318/v1/traces"),
                    Protocol::Grpc => Uri::from_static("http://localhost:4317"),
                }),
                protocol,
                headers: self.headers,
                gzip: self.gzip,
                timeout: self.timeout.unwrap_or(Duration::from_secs(10)),
                certificate: self.certificate,
                client_key: self.client_key,
                client_certificate: self.client_certificate,
            },
            batch,
            limits: self.limits,
        })
    }
}

/// What is wrong with a value.
type Reason = String;

/// Reads the flag of a setting.
type ReadFlag = fn(&ExportArgs) -> Option<&str>;

/// A setting: which variables and which flag set it, and how.
struct Setting {
    /// Variables in the order of growing precedence.
    variables: &'static [&'static str],
    /// The flag and how it is read.
    flag: Option<(&'static str, ReadFlag)>,
    /// Whether its value is never shown.
    secret: bool,
    /// Parses a value; notes tell what was passed over in it.
    set: fn(&mut Raw, &str, Origin) -> Result<Vec<Reason>, Reason>,
}

impl Setting {
    fn shown(&self, value: &str) -> Option<String> {
        (!self.secret).then(|| without_credentials(value))
    }
}

/// Every export setting.
const SETTINGS: &[Setting] = &[
    Setting {
        variables: &["OTEL_TRACES_EXPORTER"],
        flag: Some(("--traces-exporter", |flags| {
            flags.traces_exporter.as_deref()
        })),
        secret: false,
        set: |raw, value, _| {
            let (exporters, notes) = parse_exporters(value)?;
            raw.exporters = Some(exporters);
            Ok(notes)
        },
    },
    Setting {
        variables: &[],
        flag: Some(("--otlp-file", |flags| flags.otlp_file.as_deref())),
        secret: false,
        set: |raw, value, _| {
            raw.file = Some(match value {
                "" => return Err("it is empty".to_owned()),
                "-" => ExporterKind::Stdout,
                path => ExporterKind::File(PathBuf::from(path)),
            });
            done()
        },
    },
    Setting {
        variables: &[
            "OTEL_EXPORTER_OTLP_ENDPOINT",
            "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
        ],
        flag: Some(("--otlp-endpoint", |flags| flags.otlp_endpoint.as_deref())),
        secret: false,
        set: |raw, value, origin| {
            raw.endpoint = Some((value.to_owned(), origin));
            done()
        },
    },
    Setting {
        variables: &[
            "OTEL_EXPORTER_OTLP_PROTOCOL",
            "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL",
        ],
        flag: Some(("--otlp-protocol", |flags| flags.otlp_protocol.as_deref())),
        secret: false,
        set: |raw, value, _| {
            raw.protocol = Some(parse_choice(
                value,
                &[
                    ("http/protobuf", Protocol::HttpProtobuf),
                    ("grpc", Protocol::Grpc),
                ],
            )?);
            done()
        },
    },
    Setting {
        variables: &[
            "OTEL_EXPORTER_OTLP_HEADERS",
            "OTEL_EXPORTER_OTLP_TRACES_HEADERS",
        ],
        flag: Some(("--otlp-headers", |flags| {
            flags.otlp_headers.as_ref().map(|secret| secret.0.as_str())
        })),
        secret: true,
        set: |raw, value, _| {
            raw.headers = parse_headers(value)?;
            done()
        },
    },
    Setting {
        variables: &[
            "OTEL_EXPORTER_OTLP_COMPRESSION",
            "OTEL_EXPORTER_OTLP_TRACES_COMPRESSION",
        ],
        flag: Some(("--otlp-compression", |flags| {
            flags.otlp_compression.as_deref()
        })),
        secret: false,
        set: |raw, value, _| {
            raw.gzip = parse_choice(value, &[("gzip", true), ("none", false)])?;
            done()
        },
    },
    Setting {
        variables: &[
            "OTEL_EXPORTER_OTLP_TIMEOUT",
            "OTEL_EXPORTER_OTLP_TRACES_TIMEOUT",
        ],
        flag: Some(("--otlp-timeout", |flags| flags.otlp_timeout.as_deref())),
        secret: false,
        set: |raw, value, _| {
            raw.timeout = Some(parse_timeout(value)?);
            done()
        },
    },
    Setting {
        variables: &[
            "OTEL_EXPORTER_OTLP_CERTIFICATE",
            "OTEL_EXPORTER_OTLP_TRACES_CERTIFICATE",
        ],
        flag: Some(("--otlp-certificate", |flags| {
            flags.otlp_certificate.as_deref()
        })),
        secret: false,
        set: |raw, value, _| {
            raw.certificate = Some(PathBuf::from(value));
            done()
        },
    },
    Setting {
        variables: &[
            "OTEL_EXPORTER_OTLP_CLIENT_KEY",
            "OTEL_EXPORTER_OTLP_TRACES_CLIENT_KEY",
        ],
        flag: Some(("--otlp-client-key", |flags| {
            flags.otlp_client_key.as_deref()
        })),
        secret: false,
        set: |raw, value, _| {
            raw.client_key = Some(PathBuf::from(value));
            done()
        },
    },
    Setting {
        variables: &[
            "OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE",
            "OTEL_EXPORTER_OTLP_TRACES_CLIENT_CERTIFICATE",
        ],
        flag: Some(("--otlp-client-certificate", |flags| {
            flags.otlp_client_certificate.as_deref()
        })),
        secret: false,
        set: |raw, value, _| {
            raw.client_certificate = Some(PathBuf::from(value));
            done()
        },
    },
    Setting {
        variables: &[
            "OTEL_EXPORTER_OTLP_INSECURE",
            "OTEL_EXPORTER_OTLP_TRACES_INSECURE",
        ],
        flag: Some(("--otlp-insecure", |flags| flags.otlp_insecure.as_deref())),
        secret: false,
        set: |raw, value, _| {
            let (insecure, notes) = parse_bool(value);
            raw.insecure = insecure;
            Ok(notes)
        },
    },
    Setting {
        variables: &["OTEL_BSP_SCHEDULE_DELAY"],
        flag: Some(("--bsp-schedule-delay", |flags| {
            flags.bsp_schedule_delay.as_deref()
        })),
        secret: false,
        set: |raw, value, _| {
            raw.batch.schedule_delay = Duration::from_millis(parse_positive(value)?);
            done()
        },
    },
    Setting {
        variables: &["OTEL_BSP_EXPORT_TIMEOUT"],
        flag: Some(("--bsp-export-timeout", |flags| {
            flags.bsp_export_timeout.as_deref()
        })),
        secret: false,
        set: |raw, value, _| {
            raw.batch.export_timeout = parse_timeout(value)?;
            done()
        },
    },
    Setting {
        variables: &["OTEL_BSP_MAX_QUEUE_SIZE"],
        flag: Some(("--bsp-max-queue-size", |flags| {
            flags.bsp_max_queue_size.as_deref()
        })),
        secret: false,
        set: |raw, value, _| {
            raw.batch.max_queue_size = parse_count(value)?;
            done()
        },
    },
    Setting {
        variables: &["OTEL_BSP_MAX_EXPORT_BATCH_SIZE"],
        flag: Some(("--bsp-max-export-batch-size", |flags| {
            flags.bsp_max_export_batch_size.as_deref()
        })),
        secret: false,
        set: |raw, value, origin| {
            raw.batch.max_export_batch_size = parse_count(value)?;
            raw.batch_size = Some(origin);
            done()
        },
    },
    Setting {
        variables: &[
            "OTEL_ATTRIBUTE_COUNT_LIMIT",
            "OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT",
        ],
        flag: None,
        secret: false,
        set: |raw, value, origin| {
            let limit = parse_limit(value)?;
            raw.limits.attribute_count = limit;
            if origin == Origin::Generic("OTEL_ATTRIBUTE_COUNT_LIMIT") {
                raw.limits.event_attribute_count = limit;
            }
            done()
        },
    },
    Setting {
        variables: &["OTEL_SPAN_EVENT_COUNT_LIMIT"],
        flag: None,
        secret: false,
        set: |raw, value, _| {
            raw.limits.event_count = parse_limit(value)?;
            done()
        },
    },
    Setting {
        variables: &["OTEL_EVENT_ATTRIBUTE_COUNT_LIMIT"],
        flag: None,
        secret: false,
        set: |raw, value, _| {
            raw.limits.event_attribute_count = parse_limit(value)?;
            done()
        },
    },
    Setting {
        variables: &[
            "OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT",
            "OTEL_SPAN_ATTRIBUTE_VALUE_LENGTH_LIMIT",
        ],
        flag: None,
        secret: false,
        set: |raw, value, _| {
            raw.limits.attribute_value_length = Some(parse_limit(value)?);
            done()
        },
    },
];

fn done() -> Result<Vec<Reason>, Reason> {
    Ok(Vec::new())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        export: ExportArgs,
    }

    fn flags(text: &str) -> ExportArgs {
        let words = std::iter::once("otel-ebpf").chain(text.split_whitespace());
        Cli::try_parse_from(words).unwrap().export
    }

    fn read(
        variables: &[(&str, &str)],
        arguments: &str,
    ) -> Result<(ExportConfig, Vec<Warning>), ConfigError> {
        let lookup = |name: &str| {
            variables
                .iter()
                .find(|(variable, _)| *variable == name)
                .map(|(_, value)| (*value).to_owned())
        };
        ExportConfig::from(lookup, &flags(arguments))
    }

    fn config(variables: &[(&str, &str)], arguments: &str) -> ExportConfig {
        let (config, warnings) = read(variables, arguments).unwrap();
        assert_eq!(warnings, []);
        config
    }

    fn warning(variables: &[(&str, &str)]) -> (ExportConfig, String) {
        let (config, warnings) = read(variables, "").unwrap();
        let [warning] = warnings.as_slice() else {
            panic!("one warning expected, got {warnings:?}");
        };
        (config, warning.to_string())
    }

    fn refusal(arguments: &str) -> String {
        read(&[], arguments).unwrap_err().to_string()
    }

    #[track_caller]
    fn check_endpoint(variables: &[(&str, &str)], arguments: &str, expected: &str) {
        assert_eq!(
            config(variables, arguments).otlp.endpoint.to_string(),
            expected
        );
    }

    #[test]
    fn defaults_are_those_of_the_specification() {
        let config = config(&[], "");
        assert_eq!(config.exporters, [ExporterKind::Console]);
        assert_eq!(
            config.otlp.endpoint.to_string(),
            "http://localhost:4318/v1/traces"
        );
        assert_eq!(config.otlp.protocol, Protocol::HttpProtobuf);
        assert_eq!(config.otlp.timeout, Duration::from_secs(10));
        assert!(!config.otlp.gzip);
        assert!(config.otlp.headers.is_empty());
        assert_eq!(config.batch, BatchConfig::default());
        assert_eq!(config.limits, SpanLimits::default());
    }

    #[test]
    fn empty_variables_are_unset() {
        let names = SETTINGS.iter().flat_map(|setting| setting.variables);
        let variables: Vec<_> = names.map(|name| (*name, "")).collect();
        assert_eq!(config(&variables, ""), config(&[], ""));
    }

    #[test]
    fn what_is_configured_chooses_the_exporter() {
        let check = |variables: &[(&str, &str)], arguments, expected: &[ExporterKind]| {
            assert_eq!(
                config(variables, arguments).exporters,
                expected,
                "{variables:?} {arguments}"
            );
        };
        let file = || ExporterKind::File("/tmp/t.jsonl".into());
        check(
            &[("OTEL_EXPORTER_OTLP_ENDPOINT", "http://c:4318")],
            "",
            &[ExporterKind::Otlp],
        );
        check(
            &[("OTEL_TRACES_EXPORTER", "otlp")],
            "",
            &[ExporterKind::Otlp],
        );
        check(
            &[("OTEL_TRACES_EXPORTER", " OTLP , console,otlp")],
            "",
            &[ExporterKind::Otlp, ExporterKind::Console],
        );
        check(&[("OTEL_TRACES_EXPORTER", "none")], "", &[]);
        check(
            &[("OTEL_TRACES_EXPORTER", "none")],
            "--traces-exporter console",
            &[ExporterKind::Console],
        );
        check(
            &[("OTEL_TRACES_EXPORTER", "otlp/stdout")],
            "--otlp-file -",
            &[ExporterKind::Stdout],
        );
        check(&[], "--otlp-file /tmp/t.jsonl", &[file()]);
        check(
            &[],
            "--otlp-file /tmp/t.jsonl --otlp-endpoint http://c:1",
            &[ExporterKind::Otlp, file()],
        );
        check(
            &[],
            "--otlp-file /tmp/t.jsonl --traces-exporter none",
            &[file()],
        );
    }

    #[test]
    fn endpoints_follow_the_protocol_and_their_origin() {
        let generic = |value| [("OTEL_EXPORTER_OTLP_ENDPOINT", value)];
        let traces = |value| [("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", value)];
        check_endpoint(&generic("http://c:4318"), "", "http://c:4318/v1/traces");
        check_endpoint(&generic("https://c/otlp/"), "", "https://c/otlp/v1/traces");
        check_endpoint(
            &generic("http://[::1]:4318/a?k=v"),
            "",
            "http://[::1]:4318/a/v1/traces?k=v",
        );
        check_endpoint(&traces("http://c:4318"), "", "http://c:4318/");
        check_endpoint(&traces("http://c:4318/custom"), "", "http://c:4318/custom");
        check_endpoint(
            &generic("http://c:4317/x"),
            "--otlp-protocol grpc",
            "http://c:4317/",
        );
        check_endpoint(
            &generic("c:4317"),
            "--otlp-protocol grpc",
            "https://c:4317/",
        );
        check_endpoint(
            &generic("c:4317"),
            "--otlp-protocol grpc --otlp-insecure",
            "http://c:4317/",
        );
        check_endpoint(
            &generic("https://c"),
            "--otlp-protocol grpc --otlp-insecure true",
            "https://c/",
        );
        check_endpoint(
            &traces("http://a/x"),
            "--otlp-endpoint http://b",
            "http://b/v1/traces",
        );
        check_endpoint(&[], "--otlp-protocol grpc", "http://localhost:4317/");
    }

    #[test]
    fn variables_of_traces_win_over_generic_ones_and_flags_over_both() {
        let variables = [
            ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf"),
            ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "GRPC"),
            ("OTEL_EXPORTER_OTLP_TIMEOUT", "1"),
            ("OTEL_EXPORTER_OTLP_TRACES_TIMEOUT", "2"),
            ("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip"),
            ("OTEL_EXPORTER_OTLP_HEADERS", "a=1,b=2"),
            ("OTEL_EXPORTER_OTLP_TRACES_HEADERS", "c=3"),
            ("OTEL_EXPORTER_OTLP_TRACES_CERTIFICATE", "/ca.pem"),
            ("OTEL_EXPORTER_OTLP_CLIENT_KEY", "/key.pem"),
            ("OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE", "/cert.pem"),
        ];
        let otlp = config(&variables, "--otlp-timeout 3").otlp;
        assert_eq!(otlp.protocol, Protocol::Grpc);
        assert_eq!(otlp.timeout, Duration::from_millis(3));
        assert!(otlp.gzip);
        assert_eq!(otlp.headers.len(), 1);
        assert_eq!(otlp.headers["c"], "3");
        assert_eq!(otlp.certificate, Some("/ca.pem".into()));
        assert_eq!(otlp.client_key, Some("/key.pem".into()));
        assert_eq!(otlp.client_certificate, Some("/cert.pem".into()));
    }

    #[test]
    fn every_flag_is_read() {
        let config = config(
            &[],
            "--bsp-schedule-delay 1 --bsp-export-timeout 2 --bsp-max-queue-size 30 \
             --bsp-max-export-batch-size 4 --otlp-compression gzip --otlp-headers k=v \
             --otlp-certificate /a --otlp-client-key /b --otlp-client-certificate /c",
        );
        assert_eq!(
            config.batch,
            BatchConfig {
                schedule_delay: Duration::from_millis(1),
                export_timeout: Duration::from_millis(2),
                max_queue_size: 30,
                max_export_batch_size: 4,
            }
        );
        assert!(config.otlp.gzip);
        assert_eq!(config.otlp.headers["k"], "v");
        assert_eq!(config.otlp.certificate, Some("/a".into()));
        assert_eq!(config.otlp.client_key, Some("/b".into()));
        assert_eq!(config.otlp.client_certificate, Some("/c".into()));
    }

    #[test]
    fn headers_are_percent_decoded_and_never_shown() {
        let variables = [(
            "OTEL_EXPORTER_OTLP_HEADERS",
            " Authorization = Basic%20dTpw, x=%2C=1,",
        )];
        let config = config(&variables, "");
        assert_eq!(config.otlp.headers["authorization"], "Basic dTpw");
        assert_eq!(config.otlp.headers["x"], ",=1");
        assert!(!format!("{config:?}").contains("dTpw"));
        assert!(!format!("{:?}", flags("--otlp-headers a=topsecret")).contains("topsecret"));
    }

    #[test]
    fn bad_headers_are_reported_without_their_value() {
        let (config, text) = warning(&[("OTEL_EXPORTER_OTLP_HEADERS", "a=1,topsecret")]);
        assert!(config.otlp.headers.is_empty());
        assert_eq!(
            text,
            "OTEL_EXPORTER_OTLP_HEADERS: header 2 has no \"=\"; ignored"
        );
        assert_eq!(
            refusal("--otlp-headers a=top%0Asecret"),
            "invalid value for --otlp-headers: header 1 has an invalid value"
        );
    }

    #[test]
    fn credentials_in_an_endpoint_are_refused_and_not_shown() {
        let (_, text) = warning(&[("OTEL_EXPORTER_OTLP_ENDPOINT", "http://u:topsecret@c/x")]);
        assert_eq!(
            text,
            "OTEL_EXPORTER_OTLP_ENDPOINT=\"http://[redacted]@c/x\": \
             it has a user name; send credentials as a header; ignored"
        );
        assert!(!refusal("--otlp-endpoint http://u:topsecret@c/x").contains("topsecret"));
    }

    #[test]
    fn unparsable_variables_warn_and_leave_the_next_best() {
        let (config, text) = warning(&[
            ("OTEL_EXPORTER_OTLP_TIMEOUT", "7"),
            ("OTEL_EXPORTER_OTLP_TRACES_TIMEOUT", "soon"),
        ]);
        assert_eq!(config.otlp.timeout, Duration::from_millis(7));
        assert_eq!(
            text,
            "OTEL_EXPORTER_OTLP_TRACES_TIMEOUT=\"soon\": it is not a whole number from 0 upwards; ignored"
        );
        let (config, _) = warning(&[("OTEL_BSP_MAX_QUEUE_SIZE", "-1")]);
        assert_eq!(config.batch, BatchConfig::default());
        let (config, _) = warning(&[("OTEL_BSP_SCHEDULE_DELAY", "0")]);
        assert_eq!(config.batch, BatchConfig::default());
        let (config, _) = warning(&[("OTEL_EXPORTER_OTLP_PROTOCOL", "carrier pigeon")]);
        assert_eq!(config.otlp.protocol, Protocol::HttpProtobuf);
        let (config, _) = warning(&[("OTEL_TRACES_EXPORTER", "zipkin,console")]);
        assert_eq!(config.exporters, [ExporterKind::Console]);
        let (config, _) = warning(&[("OTEL_EXPORTER_OTLP_ENDPOINT", "collector:4318")]);
        assert_eq!(config.exporters, [ExporterKind::Otlp]);
        let (_, _) = warning(&[("OTEL_EXPORTER_OTLP_INSECURE", "1")]);
    }

    #[test]
    fn booleans_are_true_only_by_that_word() {
        let check = |value, scheme| {
            let variables = [
                ("OTEL_EXPORTER_OTLP_ENDPOINT", "c:1"),
                ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"),
                ("OTEL_EXPORTER_OTLP_INSECURE", value),
            ];
            assert_eq!(
                config(&variables, "").otlp.endpoint.scheme_str(),
                Some(scheme),
                "{value}"
            );
        };
        check("true", "http");
        check("True", "http");
        check("false", "https");
    }

    #[test]
    fn a_batch_larger_than_the_queue_is_cut_to_it() {
        let (config, text) = warning(&[
            ("OTEL_BSP_MAX_QUEUE_SIZE", "100"),
            ("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "200"),
        ]);
        assert_eq!(config.batch.max_export_batch_size, 100);
        assert_eq!(
            text,
            "OTEL_BSP_MAX_EXPORT_BATCH_SIZE=\"200\": a batch of 200 spans is larger than the queue of 100; \
             batches have the queue's size"
        );
        assert_eq!(
            self::config(&[], "--bsp-max-queue-size 10")
                .batch
                .max_export_batch_size,
            10
        );
        assert!(
            read(
                &[],
                "--bsp-max-queue-size 10 --bsp-max-export-batch-size 20"
            )
            .is_err()
        );
    }

    #[test]
    fn limits_of_spans_win_over_general_ones() {
        let limits = config(
            &[
                ("OTEL_ATTRIBUTE_COUNT_LIMIT", "10"),
                ("OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT", "5"),
                ("OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT", "80"),
                ("OTEL_SPAN_EVENT_COUNT_LIMIT", "7"),
            ],
            "",
        )
        .limits;
        assert_eq!(
            limits,
            SpanLimits {
                attribute_count: 5,
                attribute_value_length: Some(80),
                event_count: 7,
                event_attribute_count: 10,
            }
        );
    }

    #[test]
    fn bad_flags_are_errors() {
        assert_eq!(
            refusal("--otlp-protocol http/json"),
            "invalid value \"http/json\" for --otlp-protocol: it must be one of http/protobuf, grpc"
        );
        for arguments in [
            "--otlp-endpoint collector:4318",
            "--otlp-endpoint ftp://c",
            "--otlp-timeout 1s",
            "--bsp-max-queue-size 0",
            "--bsp-max-queue-size 99999999999",
            "--traces-exporter otlp,zipkin",
            "--otlp-insecure maybe",
        ] {
            assert!(read(&[], arguments).is_err(), "{arguments}");
        }
    }

    #[test]
    fn zero_means_no_timeout() {
        assert!(
            config(&[("OTEL_EXPORTER_OTLP_TIMEOUT", "0")], "")
                .otlp
                .timeout
                > Duration::from_secs(86_400)
        );
    }
}
