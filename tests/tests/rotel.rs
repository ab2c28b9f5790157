//! Rotel, a collector written by others: what it takes from the exporters over
//! gRPC and HTTP and passes on must be what we sent; and a live service's
//! spans must come through it (that one needs root).
//!
//! `OTEL_EBPF_ROTEL_PYTHON` names the interpreter of the environment that Rotel is
//! installed in.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use otel_ebpf::assemble::{Parent, Span};
use otel_ebpf::attribute::Value;
use otel_ebpf::batch::Processor;
use otel_ebpf::config::{ExportArgs, ExportConfig, SpanLimits};
use otel_ebpf::export;
use otel_ebpf::protocol::{Exchange, Role, Status};
use otel_ebpf::resource::Resource;
use otel_ebpf::signal::traces::resource_spans;
use otel_ebpf::stats::ExportStats;
use otel_ebpf_tests::agent::AgentOptions;
use otel_ebpf_tests::app::{Service, free_port};
use otel_ebpf_tests::process::path_from;
use otel_ebpf_tests::receiver::{Options, Receiver};
use otel_ebpf_tests::trace::{Kind, from_received, only};

/// Enough for Rotel to start, and for its batches.
const PATIENCE: Duration = Duration::from_secs(30);

fn span(id: u8) -> Span {
    Span {
        resource: Arc::new(Resource {
            attributes: vec![("service.name".into(), "shop".into())],
        }),
        trace_id: [id; 16],
        span_id: [id; 8],
        parent: id.is_multiple_of(2).then_some(Parent {
            span_id: [0xee; 8],
            remote: true,
        }),
        flags: 1,
        trace_state: "vendor=1".to_owned(),
        role: if id.is_multiple_of(2) {
            Role::Server
        } else {
            Role::Client
        },
        start: 1_700_000_000_000_000_000 + u64::from(id),
        end: 1_700_000_000_000_000_100,
        exchange: Exchange {
            scope: "otel-ebpf.http".into(),
            route_key: None,
            name: "GET /größe".into(),
            attributes: vec![
                ("http.response.status_code".into(), 503_i64.into()),
                ("url.path".into(), "/größe".into()),
                (
                    "http.request.header.accept".into(),
                    Value::StrArray(vec!["a".into(), "b".into()]),
                ),
                ("ratio".into(), Value::Double(0.25)),
                ("flag".into(), true.into()),
            ],
            status: Status::Error("upstream gone".to_owned()),
        },
        events: Vec::new(),
    }
}

/// The collector's command. It is linked against its interpreter's library,
/// which may be where only that interpreter looks for it.
fn rotel() -> anyhow::Result<Command> {
    const WHERE: &str = "import importlib.util, sysconfig\n\
                         print(importlib.util.find_spec('rotel').submodule_search_locations[0])\n\
                         print(sysconfig.get_config_var('LIBDIR'))";
    let python = path_from(
        "OTEL_EBPF_ROTEL_PYTHON",
        "../target/python/tools/bin/python",
    )?;
    let output = Command::new(&python).args(["-c", WHERE]).output()?;
    let text = String::from_utf8(output.stdout)?;
    let mut lines = text.lines();
    let (Some(package), Some(libraries)) = (lines.next(), lines.next()) else {
        let error = String::from_utf8_lossy(&output.stderr);
        bail!("{} has no rotel: {error}", python.display());
    };
    let mut command = Command::new(Path::new(package).join("rotel-agent"));
    command.env("LD_LIBRARY_PATH", libraries);
    Ok(command)
}

struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A collector that passes everything on to the receiver.
struct Collector {
    grpc: String,
    http: String,
    folder: tempfile::TempDir,
    _running: Running,
}

impl Collector {
    fn start(receiver: &Receiver) -> anyhow::Result<Self> {
        let mut command = rotel()?;
        let folder = tempfile::tempdir()?;
        let free = || anyhow::Ok(free_port([127, 0, 0, 1].into())?.to_string());
        let (grpc, http) = (free()?, free()?);
        let log = std::fs::File::create(folder.path().join("log"))?;
        let running = Running(
            command
                .args(["start", "--exporter", "otlp"])
                .args(["--otlp-grpc-endpoint", &grpc, "--otlp-http-endpoint", &http])
                .args([
                    "--otlp-exporter-endpoint",
                    &format!("http://{}", receiver.grpc),
                ])
                .arg("--pid-file")
                .arg(folder.path().join("pid"))
                .stdout(log.try_clone()?)
                .stderr(log)
                .stdin(Stdio::null())
                .spawn()?,
        );
        Ok(Self {
            grpc,
            http,
            folder,
            _running: running,
        })
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collector_takes_and_passes_on_what_we_send() -> anyhow::Result<()> {
    let receiver = Receiver::with(&Options::default())?;
    let collector = Collector::start(&receiver)?;
    let mut expected = Vec::new();
    for (idx, (protocol, address, compression)) in (0_u8..).zip([
        ("grpc", &collector.grpc, "none"),
        ("grpc", &collector.grpc, "gzip"),
        ("http/protobuf", &collector.http, "none"),
        ("http/protobuf", &collector.http, "gzip"),
    ]) {
        let lookup = |name: &str| {
            let value = match name {
                "OTEL_EXPORTER_OTLP_ENDPOINT" => format!("http://{address}"),
                "OTEL_EXPORTER_OTLP_PROTOCOL" => protocol.to_owned(),
                "OTEL_EXPORTER_OTLP_COMPRESSION" => compression.to_owned(),
                // It may still be starting: connections are tried again.
                "OTEL_EXPORTER_OTLP_TIMEOUT" => PATIENCE.as_millis().to_string(),
                _ => return None,
            };
            Some(value)
        };
        let (config, _) = ExportConfig::from(lookup, &ExportArgs::default())?;
        let stats = Arc::<ExportStats>::default();
        let exporters = export::build(&config, &stats)?;
        let runtime = tokio::runtime::Handle::current();
        let processor = Processor::start(exporters, &config.batch, &stats, &runtime);
        for id in 1..=3 {
            let span = span(idx * 3 + id);
            processor.sender().push(span.clone());
            expected.push(span);
        }
        processor.shutdown(PATIENCE).await;
        assert_eq!(
            stats.spans_exported.value(),
            3,
            "{protocol} {compression}: {:?}",
            stats.values()
        );
    }
    let arrived = receiver
        .wait_for_spans(expected.len(), PATIENCE)
        .with_context(|| collector.log())?;
    let mut arrived: Vec<_> = arrived
        .into_iter()
        .map(|(service, span)| {
            assert_eq!(service, "shop");
            span
        })
        .collect();
    arrived.sort_by_key(|span| span.span_id.clone());
    let expected: Vec<_> = resource_spans(expected, &SpanLimits::default())
        .into_iter()
        .flat_map(|group| group.scope_spans)
        .flat_map(|scope| scope.spans)
        .collect();
    assert_eq!(arrived, expected);
    Ok(())
}

#[test]
fn a_live_service_reaches_a_collector() -> anyhow::Result<()> {
    let receiver = Receiver::start()?;
    let collector = Collector::start(&receiver)?;
    let downstream = Service::uvicorn("downstream").start()?;
    let app = Service::gunicorn("flask_app")
        .env("OTEL_SERVICE_NAME", "shop")
        .downstream(&downstream)
        .start()?;
    for (protocol, address) in [
        ("grpc", &collector.grpc),
        ("http/protobuf", &collector.http),
    ] {
        let before = receiver.spans().len();
        let agent = AgentOptions::new(&app.pids())
            .elsewhere()
            .env("OTEL_EXPORTER_OTLP_ENDPOINT", format!("http://{address}"))
            .env("OTEL_EXPORTER_OTLP_PROTOCOL", protocol)
            .start()?;
        let response = app.connect()?.get(&format!("/downstream?id={before}"))?;
        ensure!(response.status == 200, "{response:?}");
        agent.stop()?.counters.assert_nothing_lost();
        receiver
            .wait_for_spans(before + 2, PATIENCE)
            .with_context(|| collector.log())?;
        let spans = from_received(&receiver.received())?;
        let server = only(&spans, Kind::Server, &format!("/downstream?id={before}"));
        let client = only(&spans, Kind::Client, &format!("id={before}&call=0"));
        client.assert_child_of(server);
        assert_eq!((client.service(), server.service()), ("shop", "shop"));
        assert_eq!(client.number("http.response.status_code"), Some(200));
    }
    Ok(())
}
