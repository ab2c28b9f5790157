//! The exporters against a receiver on loopback that accepts, refuses,
//! stalls, answers nonsense, or is not there.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use otel_ebpf::assemble::{Parent, Span};
use otel_ebpf::batch::Processor;
use otel_ebpf::config::{ExportArgs, ExportConfig};
use otel_ebpf::export::otlp::{self, Backoff};
use otel_ebpf::export::{Delivery, ExportError, Exporter};
use otel_ebpf::protocol::{Exchange, Role, Status};
use otel_ebpf::resource::Resource;
use otel_ebpf::stats::ExportStats;
use otel_ebpf_tests::app::free_port;
use otel_ebpf_tests::receiver::{Answer, Options, Receiver, Tls};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use tonic::Code;
use tonic_types::{ErrorDetails, StatusExt};

/// Far more than any of these tests needs.
const PATIENCE: Duration = Duration::from_secs(60);

const PROTOCOLS: [&str; 2] = ["grpc", "http/protobuf"];

fn spans(count: u8) -> Vec<Span> {
    let resource = Arc::new(Resource {
        attributes: vec![("service.name".into(), "shop".into())],
    });
    let span = |id| Span {
        resource: Arc::clone(&resource),
        trace_id: [1; 16],
        span_id: [id; 8],
        parent: Some(Parent {
            span_id: [0xff; 8],
            remote: true,
        }),
        flags: 1,
        trace_state: "a=b".to_owned(),
        role: Role::Server,
        start: 1_700_000_000_000_000_000,
        end: 1_700_000_000_001_000_000,
        exchange: Exchange {
            scope: "otel-ebpf.http".into(),
            route_key: None,
            name: "GET /".into(),
            attributes: vec![("http.response.status_code".into(), 200_i64.into())],
            status: Status::Unset,
        },
        events: Vec::new(),
    };
    (1..=count).map(span).collect()
}

/// An exporter to an address, with more settings by `OTEL_EXPORTER_OTLP_*`.
struct Setup {
    exporter: Box<dyn Exporter>,
    stats: Arc<ExportStats>,
}

fn config(protocol: &str, url: &str, more: &[(&str, &str)]) -> ExportConfig {
    let lookup = |name: &str| {
        let value = match name {
            "OTEL_EXPORTER_OTLP_ENDPOINT" => url,
            "OTEL_EXPORTER_OTLP_PROTOCOL" => protocol,
            _ => more.iter().find(|(known, _)| *known == name)?.1,
        };
        Some(value.to_owned())
    };
    let (config, warnings) = ExportConfig::from(lookup, &ExportArgs::default()).unwrap();
    assert_eq!(warnings, []);
    config
}

fn setup(protocol: &str, url: &str, more: &[(&str, &str)]) -> Setup {
    let config = config(protocol, url, more);
    let stats = Arc::<ExportStats>::default();
    let backoff = Backoff {
        initial: Duration::from_millis(10),
        max: Duration::from_millis(50),
        ..Backoff::default()
    };
    let exporter = otlp::exporter(&config.otlp, config.limits, &stats, backoff).unwrap();
    Setup { exporter, stats }
}

fn setup_to(receiver: &Receiver, protocol: &str, more: &[(&str, &str)]) -> Setup {
    setup(
        protocol,
        &format!("http://{}", address(receiver, protocol)),
        more,
    )
}

fn address(receiver: &Receiver, protocol: &str) -> SocketAddr {
    if protocol == "grpc" {
        receiver.grpc
    } else {
        receiver.http
    }
}

impl Setup {
    async fn export(&mut self) -> Result<Delivery, ExportError> {
        let exporting = self.exporter.export(spans(3));
        tokio::time::timeout(PATIENCE, exporting).await.unwrap()
    }

    /// What came of it, and after how many retries.
    async fn outcome(&mut self) -> (Result<u64, String>, u64) {
        let result = match self.export().await {
            Ok(delivery) => Ok(delivery.rejected),
            Err(ExportError::GaveUp { .. }) => Err("gave up".to_owned()),
            Err(ExportError::Refused(_)) => Err("refused".to_owned()),
            Err(error) => Err(error.to_string()),
        };
        (result, self.stats.retries.value())
    }
}

async fn check(
    protocol: &str,
    answers: Vec<Answer>,
    more: &[(&str, &str)],
    expected: (Result<u64, &str>, u64),
) {
    let receiver = Receiver::start().unwrap();
    receiver.answer(answers.clone());
    let (result, retries) = setup_to(&receiver, protocol, more).outcome().await;
    let result = result
        .as_ref()
        .map(|rejected| *rejected)
        .map_err(String::as_str);
    assert_eq!((result, retries), expected, "{protocol} {answers:?}");
    assert_eq!(receiver.received().len() as u64, retries + 1);
}

/// Over before the test is, and long enough for a request to be sent and for a
/// few retries on a machine that has other things to do.
const SHORT: &[(&str, &str)] = &[("OTEL_EXPORTER_OTLP_TIMEOUT", "1000")];

#[tokio::test]
async fn spans_arrive_as_they_are() {
    for protocol in PROTOCOLS {
        let receiver = Receiver::start().unwrap();
        let mut setup = setup_to(&receiver, protocol, &[]);
        assert_eq!(setup.export().await, Ok(Delivery::default()));
        // The connection is used again.
        assert_eq!(setup.export().await, Ok(Delivery::default()));
        let arrived = receiver.spans();
        assert_eq!(arrived.len(), 6);
        let (service, span) = &arrived[2];
        assert_eq!(service, "shop");
        assert_eq!(span.span_id, [3; 8]);
        assert_eq!(span.parent_span_id, [0xff; 8]);
        assert_eq!(span.flags, 0x301);
        assert_eq!(span.trace_state, "a=b");
        assert_eq!(span.name, "GET /");
        assert_eq!(
            span.end_time_unix_nano - span.start_time_unix_nano,
            1_000_000
        );
    }
}

#[tokio::test]
async fn headers_and_compression_are_sent() {
    for protocol in PROTOCOLS {
        let receiver = Receiver::start().unwrap();
        let more = [
            (
                "OTEL_EXPORTER_OTLP_HEADERS",
                "authorization=Basic%20dTpw,x-tenant=a",
            ),
            ("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip"),
        ];
        setup_to(&receiver, protocol, &more).export().await.unwrap();
        let received = receiver.received().remove(0);
        assert_eq!(received.headers["authorization"], "Basic dTpw");
        assert_eq!(received.headers["x-tenant"], "a");
        let agent = received.headers["user-agent"].to_str().unwrap();
        assert!(agent.starts_with("otel-ebpf/"), "{agent}");
        assert!(agent.contains(" OTel-OTLP-Exporter-Rust/"), "{agent}");
        let (encoding, path) = match protocol {
            "grpc" => ("grpc-encoding", ""),
            _ => ("content-encoding", "/v1/traces"),
        };
        assert_eq!(received.headers[encoding], "gzip");
        assert_eq!(received.path, path);
        assert_eq!(received.spans().len(), 3);
    }
}

#[tokio::test]
async fn a_receiver_that_comes_late_is_found() {
    for protocol in PROTOCOLS {
        let free = || free_port([127, 0, 0, 1].into()).unwrap().port();
        let options = Options {
            grpc_port: free(),
            http_port: free(),
            tls: None,
        };
        let port = if protocol == "grpc" {
            options.grpc_port
        } else {
            options.http_port
        };
        let mut setup = setup(protocol, &format!("http://127.0.0.1:{port}"), &[]);
        let stats = Arc::clone(&setup.stats);
        let export = tokio::spawn(async move { setup.export().await });
        let deadline = Instant::now() + PATIENCE;
        while stats.retries.value() < 2 {
            assert!(Instant::now() < deadline, "no retries");
            tokio::task::yield_now().await;
        }
        let receiver = Receiver::with(&options).unwrap();
        assert_eq!(export.await.unwrap(), Ok(Delivery::default()));
        assert_eq!(receiver.spans().len(), 3);
    }
}

#[tokio::test]
async fn a_receiver_that_never_comes_is_given_up() {
    for protocol in PROTOCOLS {
        let url = format!("http://{}", free_port([127, 0, 0, 1].into()).unwrap());
        let (result, retries) = setup(protocol, &url, SHORT).outcome().await;
        assert_eq!(result, Err("gave up".to_owned()), "{protocol}");
        assert!(retries > 1);
    }
}

#[tokio::test]
async fn http_statuses_are_retried_as_the_specification_says() {
    let answer = |status| Answer::Http(status, Vec::new(), Vec::new());
    for status in [429, 502, 503, 504] {
        check(
            "http/protobuf",
            vec![answer(status), answer(status)],
            &[],
            (Ok(0), 2),
        )
        .await;
    }
    for status in [301, 400, 401, 403, 404, 413, 500, 501, 505] {
        check(
            "http/protobuf",
            vec![answer(status)],
            &[],
            (Err("refused"), 0),
        )
        .await;
    }
}

#[tokio::test]
async fn retry_after_is_honored() {
    let check_pause = async |value: String, until: SystemTime| {
        let receiver = Receiver::start().unwrap();
        receiver.answer([Answer::Http(503, vec![("retry-after", value)], Vec::new())]);
        let outcome = setup_to(&receiver, "http/protobuf", &[]).outcome().await;
        assert_eq!(outcome, (Ok(0), 1));
        let early = until.duration_since(SystemTime::now());
        assert!(early.is_err(), "{early:?} too early");
    };
    let second = Duration::from_secs(1);
    check_pause("1".to_owned(), SystemTime::now() + second).await;
    // A date has whole seconds.
    let date = httpdate::fmt_http_date(SystemTime::now() + 2 * second);
    let until = httpdate::parse_http_date(&date).unwrap();
    check_pause(date, until).await;
    // More than the timeout allows: no use in waiting.
    let late = Answer::Http(503, vec![("retry-after", "3600".to_owned())], Vec::new());
    check("http/protobuf", vec![late], &[], (Err("gave up"), 0)).await;
}

#[tokio::test]
async fn grpc_codes_are_retried_as_the_specification_says() {
    let answer = |code| Answer::Grpc(tonic::Status::new(code, "told so"));
    for code in [
        Code::Cancelled,
        Code::DeadlineExceeded,
        Code::Aborted,
        Code::OutOfRange,
        Code::Unavailable,
        Code::DataLoss,
    ] {
        check("grpc", vec![answer(code), answer(code)], &[], (Ok(0), 2)).await;
    }
    for code in [
        Code::Unknown,
        Code::InvalidArgument,
        Code::PermissionDenied,
        Code::Internal,
        Code::Unauthenticated,
        Code::Unimplemented,
        Code::ResourceExhausted,
    ] {
        check("grpc", vec![answer(code)], &[], (Err("refused"), 0)).await;
    }
}

#[tokio::test]
async fn an_exhausted_receiver_says_when_to_come_back() {
    let answer = |delay| {
        let details = ErrorDetails::with_retry_info(Some(delay));
        Answer::Grpc(tonic::Status::with_error_details(
            Code::ResourceExhausted,
            "full",
            details,
        ))
    };
    let start = Instant::now();
    check(
        "grpc",
        vec![answer(Duration::from_millis(700))],
        &[],
        (Ok(0), 1),
    )
    .await;
    assert!(start.elapsed() >= Duration::from_millis(700));
    check(
        "grpc",
        vec![answer(Duration::from_secs(3_600))],
        &[],
        (Err("gave up"), 0),
    )
    .await;
}

#[tokio::test]
async fn partial_success_is_reported_and_not_retried() {
    for protocol in PROTOCOLS {
        let receiver = Receiver::start().unwrap();
        receiver.answer([Answer::Partial(2, "too old")]);
        let delivery = setup_to(&receiver, protocol, &[]).export().await.unwrap();
        assert_eq!(
            (delivery.rejected, delivery.message.as_str()),
            (2, "too old")
        );
        assert_eq!(receiver.received().len(), 1);
    }
}

#[tokio::test]
async fn a_receiver_that_stalls_is_given_up_in_time() {
    for protocol in PROTOCOLS {
        let start = Instant::now();
        check(protocol, vec![Answer::Stall], SHORT, (Err("gave up"), 0)).await;
        assert!(
            start.elapsed() < Duration::from_secs(5),
            "{:?}",
            start.elapsed()
        );
    }
}

#[tokio::test]
async fn unreadable_responses_are_refused() {
    let body = |body: &[u8]| Answer::Http(200, Vec::new(), body.to_vec());
    check(
        "http/protobuf",
        vec![body(b"\xff\xff\xff\xff")],
        &[],
        (Err("refused"), 0),
    )
    .await;
    check(
        "http/protobuf",
        vec![body(&vec![0; (4 << 20) + 1])],
        &[],
        (Err("refused"), 0),
    )
    .await;
}

/// Answers every connection with the same bytes.
fn nonsense(bytes: &'static [u8]) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            std::thread::spawn(move || {
                let mut buffer = [0; 4_096];
                if stream.read(&mut buffer).is_ok() && stream.write_all(bytes).is_ok() {
                    // Read on until the client goes, so that it is not reset.
                    while stream.read(&mut buffer).is_ok_and(|len| len > 0) {}
                }
            });
        }
    });
    address
}

#[tokio::test]
async fn what_speaks_another_protocol_is_refused() {
    for protocol in PROTOCOLS {
        for bytes in [&b"220 mail.example ESMTP ready\r\n"[..], &[0xff; 64]] {
            let url = format!("http://{}", nonsense(bytes));
            let (result, retries) = setup(protocol, &url, &[]).outcome().await;
            assert_eq!(
                (result, retries),
                (Err("refused".to_owned()), 0),
                "{protocol} {bytes:?}"
            );
        }
    }
}

#[tokio::test]
async fn a_connection_without_an_answer_is_not_used_again() {
    for protocol in PROTOCOLS {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let mut setup = setup(protocol, &url, SHORT);
        let mut silent = Vec::new();
        for _ in 0..2 {
            let (outcome, _) = setup.outcome().await;
            assert_eq!(outcome, Err("gave up".to_owned()));
            let accepted = tokio::time::timeout(Duration::from_secs(5), listener.accept());
            silent.push(accepted.await.expect("no new connection").unwrap());
        }
    }
}

/// Certificates for a receiver on loopback and for a client.
struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    folder: tempfile::TempDir,
}

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Self {
            issuer: CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap(),
            folder: tempfile::tempdir().unwrap(),
        }
    }

    fn issue(&self, name: &str) -> (String, String) {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        (
            params.signed_by(&key, &self.issuer).unwrap().pem(),
            key.serialize_pem(),
        )
    }

    fn file(&self, name: &str, text: &str) -> PathBuf {
        let path = self.folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    }

    fn receiver(&self, with_client: bool) -> Receiver {
        let (certificate, key) = self.issue("localhost");
        let options = Options {
            tls: Some(Tls {
                certificate,
                key,
                client_authority: with_client.then(|| self.issuer.pem()),
            }),
            ..Options::default()
        };
        Receiver::with(&options).unwrap()
    }
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[tokio::test]
async fn tls_trusts_the_given_authority_alone() {
    let authority = Authority::new();
    let receiver = authority.receiver(false);
    let ours = authority.file("ca.pem", &authority.issuer.pem());
    let other = authority.file("other.pem", &Authority::new().issuer.pem());
    for protocol in PROTOCOLS {
        let url = format!("https://localhost:{}", address(&receiver, protocol).port());
        let trust = |path| ("OTEL_EXPORTER_OTLP_CERTIFICATE", text(path));
        let export = async |more: &[_]| setup(protocol, &url, more).outcome().await.0;
        assert_eq!(
            export(&[trust(&other), SHORT[0]]).await,
            Err("gave up".to_owned()),
            "{protocol}"
        );
        assert_eq!(export(&[trust(&ours)]).await, Ok(0), "{protocol}");
    }
    assert_eq!(receiver.spans().len(), 6);
}

#[tokio::test]
async fn mutual_tls_shows_our_certificate() {
    let authority = Authority::new();
    let receiver = authority.receiver(true);
    let (certificate, key) = authority.issue("agent");
    let ca = authority.file("ca.pem", &authority.issuer.pem());
    let (certificate, key) = (
        authority.file("cert.pem", &certificate),
        authority.file("key.pem", &key),
    );
    for protocol in PROTOCOLS {
        let url = format!("https://localhost:{}", address(&receiver, protocol).port());
        let trust = [("OTEL_EXPORTER_OTLP_CERTIFICATE", text(&ca))];
        let identity = [
            ("OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE", text(&certificate)),
            ("OTEL_EXPORTER_OTLP_CLIENT_KEY", text(&key)),
        ];
        let alone = [&trust, SHORT].concat();
        assert!(
            setup(protocol, &url, &alone).export().await.is_err(),
            "{protocol}"
        );
        let both = [&trust[..], &identity].concat();
        assert_eq!(
            setup(protocol, &url, &both).outcome().await.0,
            Ok(0),
            "{protocol}"
        );
    }
}

#[tokio::test]
async fn unusable_certificates_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let missing = folder.path().join("missing.pem");
    let stats = Arc::<ExportStats>::default();
    for protocol in PROTOCOLS {
        let build = |more: &[(&str, &str)]| {
            let config = config(protocol, "https://localhost:1", more);
            otlp::exporter(&config.otlp, config.limits, &stats, Backoff::default())
                .err()
                .unwrap()
                .to_string()
        };
        let error = build(&[("OTEL_EXPORTER_OTLP_CERTIFICATE", text(&missing))]);
        assert!(
            error.starts_with(&format!("cannot open {}: ", text(&missing))),
            "{error}"
        );
    }
}

fn processor(
    receiver: &Receiver,
    protocol: &str,
    more: &[(&str, &str)],
) -> (Processor, Arc<ExportStats>) {
    let url = format!("http://{}", address(receiver, protocol));
    let config = config(protocol, &url, more);
    let stats = Arc::<ExportStats>::default();
    let exporters = otel_ebpf::export::build(&config, &stats).unwrap();
    let runtime = tokio::runtime::Handle::current();
    (
        Processor::start(exporters, &config.batch, &stats, &runtime),
        stats,
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn batches_arrive_and_shutdown_sends_the_rest() {
    for protocol in PROTOCOLS {
        let receiver = Receiver::start().unwrap();
        let more = [("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "10")];
        let (processor, stats) = processor(&receiver, protocol, &more);
        let sender = processor.sender();
        spans(25).into_iter().for_each(|span| sender.push(span));
        let received = receiver
            .wait_until(PATIENCE, |received| received.len() >= 2)
            .unwrap();
        assert!(received.iter().all(|received| received.spans().len() == 10));
        processor.shutdown(PATIENCE).await;
        let ids: Vec<_> = receiver
            .spans()
            .iter()
            .map(|(_, span)| span.span_id[0])
            .collect();
        assert_eq!(ids, (1..=25).collect::<Vec<_>>());
        assert_eq!(stats.spans_exported.value(), 25);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stalled_receiver_costs_spans_but_neither_memory_nor_time() {
    for protocol in PROTOCOLS {
        let receiver = Receiver::start().unwrap();
        receiver.answer(vec![Answer::Stall; 100]);
        let more = [
            ("OTEL_BSP_MAX_QUEUE_SIZE", "100"),
            ("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "50"),
        ];
        let (processor, stats) = processor(&receiver, protocol, &more);
        let sender = processor.sender();
        let resources = spans(1).remove(0).resource;
        let span = Span {
            resource: Arc::clone(&resources),
            ..spans(1).remove(0)
        };
        let start = Instant::now();
        for _ in 0..10_000 {
            sender.push(span.clone());
        }
        assert!(
            start.elapsed() < Duration::from_secs(5),
            "{:?}",
            start.elapsed()
        );
        receiver
            .wait_until(PATIENCE, |received| !received.is_empty())
            .unwrap();
        // All that is left of 10,000 spans: the queue, the batch under way,
        // the test's two.
        assert!(
            Arc::strong_count(&resources) <= 100 + 50 + 2,
            "{}",
            Arc::strong_count(&resources)
        );
        assert!(
            stats.queue_full.value() >= 10_000 - 150,
            "{}",
            stats.queue_full.value()
        );
        let start = Instant::now();
        processor.shutdown(Duration::from_millis(200)).await;
        assert!(
            start.elapsed() < Duration::from_secs(2),
            "{:?}",
            start.elapsed()
        );
        let lost = stats.queue_full.value() + stats.shutdown.value();
        assert_eq!((stats.spans_received.value(), lost), (10_000, 10_000));
    }
}
