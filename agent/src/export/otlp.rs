//! What OTLP over gRPC and over HTTP have in common: encoding, limits, the
//! retry rules, partial success.
//!
//! A batch is encoded once and its bytes are shared by all attempts. The
//! transports in `grpc` and `http` make one attempt and say what came of it;
//! how often and when is decided here (specification, OTLP: Failures and
//! retries, and OTLP Exporter: Retry).

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use prost::Message;
use proto::otlp::collector::trace::v1::{ExportTraceServiceRequest, ExportTraceServiceResponse};
use rand::Rng;
use tokio::time::{Instant, sleep, timeout_at};

use super::{BuildError, Delivery, ExportError, Exporter, Exporting, grpc, http};
use crate::assemble::Span;
use crate::config::{OtlpConfig, Protocol, SpanLimits};
use crate::signal::traces::resource_spans;
use crate::stats::ExportStats;

/// Largest request, before compression (specification, OTLP Exporter).
pub const MAX_REQUEST: usize = 64 << 20;

/// Largest response (specification, OTLP Exporter).
pub const MAX_RESPONSE: usize = 4 << 20;

/// Names us to the receiver (specification, OTLP Exporter: User Agent).
pub const USER_AGENT: &str = concat!(
    "otel-ebpf/",
    env!("CARGO_PKG_VERSION"),
    " OTel-OTLP-Exporter-Rust/",
    env!("CARGO_PKG_VERSION")
);

/// Pauses between attempts: exponential, with jitter.
#[derive(Clone, Debug, PartialEq)]
pub struct Backoff {
    /// The first pause.
    pub initial: Duration,
    /// The longest pause.
    pub max: Duration,
    /// A pause is this many times the one before.
    pub factor: f64,
    /// Share of a pause by which it may be shorter or longer.
    pub jitter: f64,
}

impl Default for Backoff {
    /// The values of the official SDKs' retry policies, with the jitter of
    /// the Python exporter.
    fn default() -> Self {
        Self {
            initial: Duration::from_secs(1),
            max: Duration::from_secs(5),
            factor: 1.5,
            jitter: 0.2,
        }
    }
}

impl Backoff {
    /// The pause after `attempts` attempts. `chance` is from 0 to 1.
    fn pause(&self, attempts: u32, chance: f64) -> Duration {
        let exponent = i32::try_from(attempts.saturating_sub(1)).unwrap_or(i32::MAX);
        let pause = self.initial.as_secs_f64() * self.factor.powi(exponent);
        let pause = pause.min(self.max.as_secs_f64());
        let jitter = 1.0 + self.jitter * (2.0 * chance - 1.0);
        Duration::try_from_secs_f64(pause * jitter).unwrap_or(self.max)
    }
}

/// Makes an exporter for OTLP over the network. Must be called inside a tokio
/// runtime; no connection is made yet.
pub fn exporter(
    config: &OtlpConfig,
    limits: SpanLimits,
    stats: &Arc<ExportStats>,
    backoff: Backoff,
) -> Result<Box<dyn Exporter>, BuildError> {
    Ok(match config.protocol {
        Protocol::Grpc => Box::new(Otlp {
            transport: grpc::Grpc::new(config)?,
            limits,
            timeout: config.timeout,
            backoff,
            stats: Arc::clone(stats),
        }),
        Protocol::HttpProtobuf => Box::new(Otlp {
            transport: http::Http::new(config)?,
            limits,
            timeout: config.timeout,
            backoff,
            stats: Arc::clone(stats),
        }),
    })
}

/// One way of carrying OTLP.
pub(super) trait Transport: Send {
    /// Its name in the log.
    const NAME: &'static str;

    /// Prepares the bytes of a message for all attempts.
    fn prepare(&self, message: Vec<u8>) -> Bytes {
        Bytes::from(message)
    }

    /// Sends a prepared message once.
    fn attempt(&mut self, message: Bytes) -> impl Future<Output = Attempt> + Send;

    /// Gives up the connection, on which there was no answer: the other end
    /// may be gone without a word.
    fn disconnect(&mut self) {}
}

/// What came of an attempt.
#[derive(Debug)]
pub(super) enum Attempt {
    /// The receiver took the message.
    Done(ExportTraceServiceResponse),
    /// It may succeed later, and not before the given time has passed.
    Retry {
        /// What the receiver asked for.
        after: Option<Duration>,
        /// What went wrong.
        reason: String,
    },
    /// It must not be tried again.
    Refused(String),
}

/// The OTLP exporter.
struct Otlp<T> {
    transport: T,
    limits: SpanLimits,
    timeout: Duration,
    backoff: Backoff,
    stats: Arc<ExportStats>,
}

impl<T: Transport> Exporter for Otlp<T> {
    fn name(&self) -> &'static str {
        T::NAME
    }

    fn export(&mut self, spans: Vec<Span>) -> Exporting<'_> {
        Box::pin(async move {
            let request = ExportTraceServiceRequest {
                resource_spans: resource_spans(spans, &self.limits),
            };
            let bytes = request.encoded_len();
            if bytes > MAX_REQUEST {
                return Err(ExportError::TooLarge { bytes });
            }
            let message = self.transport.prepare(request.encode_to_vec());
            drop(request);
            self.send(message).await
        })
    }
}

impl<T: Transport> Otlp<T> {
    async fn send(&mut self, message: Bytes) -> Result<Delivery, ExportError> {
        let deadline = Instant::now() + self.timeout;
        let mut attempts = 0;
        let mut last = None;
        loop {
            attempts += 1;
            let attempt = timeout_at(deadline, self.transport.attempt(message.clone())).await;
            let (after, reason) = match attempt {
                Ok(Attempt::Done(response)) => return Ok(delivery(response)),
                Ok(Attempt::Refused(reason)) => return Err(ExportError::Refused(reason)),
                Ok(Attempt::Retry { after, reason }) => (after, reason),
                Err(_) => {
                    self.transport.disconnect();
                    let before = last
                        .map(|reason| format!(", before that: {reason}"))
                        .unwrap_or_default();
                    return Err(ExportError::GaveUp {
                        attempts,
                        reason: format!("no answer within {:?}{before}", self.timeout),
                    });
                }
            };
            let pause = self.backoff.pause(attempts, rand::rng().random());
            // What the receiver asks for is the least: were it 0, nothing
            // else would slow us down.
            let pause = after.map_or(pause, |after| after.max(pause));
            let resume = Instant::now().checked_add(pause);
            if resume.is_none_or(|resume| resume >= deadline) {
                return Err(ExportError::GaveUp { attempts, reason });
            }
            tracing::debug!(exporter = T::NAME, %reason, ?pause, "export attempt failed");
            self.stats.retries.one();
            last = Some(reason);
            sleep(pause).await;
        }
    }
}

fn delivery(response: ExportTraceServiceResponse) -> Delivery {
    let partial = response.partial_success.unwrap_or_default();
    Delivery {
        rejected: u64::try_from(partial.rejected_spans).unwrap_or(0),
        message: excerpt(&partial.error_message),
    }
}

/// The first characters of a text from outside, fit for a log.
pub(super) fn excerpt(text: &str) -> String {
    const MAX_CHARS: usize = 200;
    let mut excerpt: String = text
        .chars()
        .take(MAX_CHARS)
        .map(|char| if char.is_control() { ' ' } else { char })
        .collect();
    if text.chars().nth(MAX_CHARS).is_some() {
        excerpt.push('…');
    }
    excerpt
}

/// An error and its sources in one line; those already named are left out.
pub(super) fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    // A chain of errors is short; the bound guards against one that is not.
    for _ in 0..10 {
        let Some(error) = source else {
            break;
        };
        let next = error.to_string();
        if !text.contains(&next) {
            text.push_str(": ");
            text.push_str(&next);
        }
        source = error.source();
    }
    excerpt(&text)
}

/// The files for mutual TLS, both or none.
pub(super) fn identity(config: &OtlpConfig) -> Result<Option<(&Path, &Path)>, BuildError> {
    match (&config.client_certificate, &config.client_key) {
        (Some(certificate), Some(key)) => Ok(Some((certificate, key))),
        (None, None) => Ok(None),
        _ => Err(BuildError::Identity),
    }
}

/// Reads a PEM file.
pub(super) fn read_pem(path: &Path) -> Result<Vec<u8>, BuildError> {
    std::fs::read(path).map_err(|source| BuildError::Open {
        path: path.to_owned(),
        source,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::{Exchange, Role, Status};
    use crate::resource::Resource;
    use proto::otlp::collector::trace::v1::ExportTracePartialSuccess;

    /// Answers attempts from a list; the time of each is kept.
    struct Script {
        answers: Vec<Option<Attempt>>,
        times: Vec<Duration>,
        start: Instant,
    }

    impl Transport for Script {
        const NAME: &'static str = "script";

        async fn attempt(&mut self, _: Bytes) -> Attempt {
            self.times.push(self.start.elapsed());
            match self.answers.remove(0) {
                Some(answer) => answer,
                None => std::future::pending().await,
            }
        }
    }

    fn retry(after: Option<u64>) -> Option<Attempt> {
        Some(Attempt::Retry {
            after: after.map(Duration::from_secs),
            reason: "busy".to_owned(),
        })
    }

    fn ok() -> Option<Attempt> {
        Some(Attempt::Done(ExportTraceServiceResponse::default()))
    }

    fn spans(count: usize, value_len: usize) -> Vec<Span> {
        let span = Span {
            resource: Arc::new(Resource {
                attributes: vec![("service.name".into(), "shop".into())],
            }),
            trace_id: [1; 16],
            span_id: [2; 8],
            parent: None,
            flags: 1,
            trace_state: String::new(),
            role: Role::Server,
            start: 1,
            end: 2,
            exchange: Exchange {
                scope: "otel-ebpf.http".into(),
                route_key: None,
                name: "GET /".into(),
                attributes: vec![("k".into(), "v".repeat(value_len).into())],
                status: Status::Unset,
            },
            events: Vec::new(),
        };
        vec![span; count]
    }

    async fn run(answers: Vec<Option<Attempt>>) -> (Result<Delivery, ExportError>, Vec<u64>, u64) {
        let stats = Arc::new(ExportStats::default());
        let mut exporter = Otlp {
            transport: Script {
                answers,
                times: Vec::new(),
                start: Instant::now(),
            },
            limits: SpanLimits::default(),
            timeout: Duration::from_secs(10),
            backoff: Backoff {
                jitter: 0.0,
                ..Backoff::default()
            },
            stats: Arc::clone(&stats),
        };
        let result = exporter.export(spans(1, 1)).await;
        let times = exporter
            .transport
            .times
            .iter()
            .map(|time| time.as_millis() as u64);
        (result, times.collect(), stats.retries.value())
    }

    #[tokio::test(start_paused = true)]
    async fn success_takes_one_attempt() {
        let (result, times, retries) = run(vec![ok()]).await;
        assert_eq!(result, Ok(Delivery::default()));
        assert_eq!((times, retries), (vec![0], 0));
    }

    #[tokio::test(start_paused = true)]
    async fn pauses_grow() {
        let answers = vec![retry(None), retry(None), retry(None), ok()];
        let (result, times, retries) = run(answers).await;
        assert_eq!(result, Ok(Delivery::default()));
        assert_eq!(times, [0, 1_000, 2_500, 4_750]);
        assert_eq!(retries, 3);
    }

    #[tokio::test(start_paused = true)]
    async fn the_receiver_chooses_the_pause() {
        let (result, times, _) = run(vec![retry(Some(7)), ok()]).await;
        assert_eq!(result, Ok(Delivery::default()));
        assert_eq!(times, [0, 7_000]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_pause_past_the_deadline_is_not_waited_for() {
        let start = Instant::now();
        let (result, times, retries) = run(vec![retry(Some(3_600))]).await;
        assert_eq!(
            result,
            Err(ExportError::GaveUp {
                attempts: 1,
                reason: "busy".to_owned()
            })
        );
        assert_eq!((times, retries), (vec![0], 0));
        assert_eq!(start.elapsed(), Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn the_timeout_covers_all_attempts() {
        let start = Instant::now();
        let (result, times, _) = run(vec![retry(None), retry(None), None]).await;
        let error = result.unwrap_err().to_string();
        assert_eq!(
            error,
            "gave up after 3 attempts: no answer within 10s, before that: busy"
        );
        assert_eq!(times.len(), 3);
        assert!(start.elapsed() <= Duration::from_millis(10_010));
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_refused_is_not_retried() {
        let (result, times, retries) = run(vec![Some(Attempt::Refused("no".to_owned()))]).await;
        assert_eq!(result, Err(ExportError::Refused("no".to_owned())));
        assert_eq!((times.len(), retries), (1, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn partial_success_is_not_retried() {
        let response = ExportTraceServiceResponse {
            partial_success: Some(ExportTracePartialSuccess {
                rejected_spans: 3,
                error_message: "too\u{1b}[31m old".to_owned(),
            }),
        };
        let (result, times, _) = run(vec![Some(Attempt::Done(response))]).await;
        let delivery = result.unwrap();
        assert_eq!(delivery.rejected, 3);
        assert_eq!(delivery.message, "too [31m old");
        assert_eq!(times.len(), 1);
    }

    #[test]
    fn a_negative_rejection_is_none() {
        let response = ExportTraceServiceResponse {
            partial_success: Some(ExportTracePartialSuccess {
                rejected_spans: -5,
                error_message: String::new(),
            }),
        };
        assert_eq!(delivery(response).rejected, 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_over_the_limit_is_not_sent() {
        let mut exporter = Otlp {
            transport: Script {
                answers: Vec::new(),
                times: Vec::new(),
                start: Instant::now(),
            },
            limits: SpanLimits::default(),
            timeout: Duration::from_secs(10),
            backoff: Backoff::default(),
            stats: Arc::default(),
        };
        let result = exporter.export(spans(65, 1 << 20)).await;
        assert!(matches!(result, Err(ExportError::TooLarge { bytes }) if bytes > MAX_REQUEST));
        assert!(exporter.transport.times.is_empty());
    }

    #[test]
    fn jitter_stays_within_its_share_and_pauses_within_their_bound() {
        let backoff = Backoff::default();
        assert_eq!(backoff.pause(1, 0.0), Duration::from_millis(800));
        assert_eq!(backoff.pause(1, 0.5), Duration::from_secs(1));
        assert_eq!(backoff.pause(1, 1.0), Duration::from_millis(1_200));
        assert_eq!(backoff.pause(50, 1.0), Duration::from_secs(6));
        assert_eq!(backoff.pause(u32::MAX, 1.0), Duration::from_secs(6));
    }

    #[test]
    fn excerpts_are_short_and_without_control_characters() {
        assert_eq!(excerpt("a\r\nb"), "a  b");
        assert_eq!(excerpt(&"é".repeat(500)).chars().count(), 201);
    }
}
