//! OTLP JSON lines to a file or to standard output (specification, OTLP File
//! Exporter): one `TracesData` object per line, a line per batch.

use std::fs::OpenOptions;
use std::io::Write;
use std::path::Path;

use proto::otlp::trace::v1::TracesData;

use super::write::Writer;
use super::{BuildError, Delivery, ExportError, Exporter, Exporting};
use crate::assemble::Span;
use crate::config::SpanLimits;
use crate::signal::traces::resource_spans;

/// The file exporter; each batch is written and flushed as a whole.
pub struct File {
    writer: Writer,
    limits: SpanLimits,
}

impl File {
    /// Opens a file to append to it; it is made if it does not exist.
    pub fn open(path: &Path, limits: SpanLimits) -> Result<Self, BuildError> {
        let file = OpenOptions::new()
            .create(true)
            .append(true)
            .open(path)
            .map_err(|source| BuildError::Open {
                path: path.to_owned(),
                source,
            })?;
        Ok(Self::new(path.display().to_string(), file, limits))
    }

    /// Writes to standard output.
    pub fn stdout(limits: SpanLimits) -> Self {
        Self::new("standard output".to_owned(), std::io::stdout(), limits)
    }

    fn new(path: String, output: impl Write + Send + 'static, limits: SpanLimits) -> Self {
        Self {
            writer: Writer::new(path, output),
            limits,
        }
    }
}

impl Exporter for File {
    fn name(&self) -> &'static str {
        "otlp/file"
    }

    fn export(&mut self, spans: Vec<Span>) -> Exporting<'_> {
        Box::pin(async move {
            let data = TracesData {
                resource_spans: resource_spans(spans, &self.limits),
            };
            let mut line = serde_json::to_vec(&data)
                .map_err(|error| ExportError::Refused(error.to_string()))?;
            line.push(b'\n');
            self.writer.write(line).await?;
            Ok(Delivery::default())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::assemble::Parent;
    use crate::attribute::Value;
    use crate::protocol::{Exchange, Role, Status};
    use crate::resource::Resource;
    use std::sync::{Arc, Mutex};

    fn span() -> Span {
        Span {
            resource: Arc::new(Resource {
                attributes: vec![("service.name".into(), "shop".into())],
            }),
            trace_id: [0xab; 16],
            span_id: [0xcd; 8],
            parent: Some(Parent {
                span_id: [0xef; 8],
                remote: false,
            }),
            flags: 1,
            trace_state: String::new(),
            role: Role::Client,
            start: 1_700_000_000_000_000_001,
            end: 1_700_000_000_000_000_002,
            exchange: Exchange {
                scope: "otel-ebpf.http".into(),
                route_key: None,
                name: "GET".into(),
                attributes: vec![
                    ("server.port".into(), 443_i64.into()),
                    ("s".into(), Value::StrArray(vec!["a\nb".to_owned()])),
                ],
                status: Status::Error(String::new()),
            },
            events: Vec::new(),
        }
    }

    #[tokio::test]
    async fn a_batch_is_one_line_in_the_json_mapping_of_otlp() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("traces.jsonl");
        for _ in 0..2 {
            let mut file = File::open(&path, SpanLimits::default()).unwrap();
            let span = span();
            file.export(vec![span.clone(), span]).await.unwrap();
        }
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.ends_with('\n'));
        let lines: Vec<serde_json::Value> = text
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        assert_eq!(lines.len(), 2);
        let span = &lines[1]["resourceSpans"][0]["scopeSpans"][0]["spans"][1];
        assert_eq!(span["traceId"], "ab".repeat(16));
        assert_eq!(span["spanId"], "cd".repeat(8));
        assert_eq!(span["parentSpanId"], "ef".repeat(8));
        assert_eq!(span["kind"], 3);
        assert_eq!(span["flags"], 0x101);
        assert_eq!(span["startTimeUnixNano"], "1700000000000000001");
        assert_eq!(span["attributes"][0]["value"]["intValue"], "443");
        assert_eq!(
            span["attributes"][1]["value"]["arrayValue"]["values"][0]["stringValue"],
            "a\nb"
        );
        assert_eq!(span["status"]["code"], 2);
        let resource = &lines[0]["resourceSpans"][0]["resource"]["attributes"][0];
        assert_eq!(resource["value"]["stringValue"], "shop");
    }

    #[test]
    fn a_file_that_cannot_be_opened_is_named() {
        let error = File::open(Path::new("/no/such/folder/t"), SpanLimits::default())
            .err()
            .unwrap()
            .to_string();
        assert!(
            error.starts_with("cannot open /no/such/folder/t: "),
            "{error}"
        );
    }

    /// Fails once, in the middle of a line.
    struct Flaky {
        written: Arc<Mutex<Vec<u8>>>,
        failures: usize,
    }

    impl Write for Flaky {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            let mut written = self.written.lock().unwrap();
            if self.failures > 0 && !written.is_empty() {
                self.failures -= 1;
                return Err(std::io::ErrorKind::StorageFull.into());
            }
            let len = if self.failures > 0 { 3 } else { bytes.len() };
            written.extend(&bytes[..len]);
            Ok(len)
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[tokio::test]
    async fn a_torn_line_does_not_spoil_the_next() {
        let written = Arc::new(Mutex::new(Vec::new()));
        let output = Flaky {
            written: Arc::clone(&written),
            failures: 1,
        };
        let mut file = File::new("full disk".to_owned(), output, SpanLimits::default());
        let error = file.export(vec![span()]).await.unwrap_err().to_string();
        assert!(error.starts_with("cannot write to full disk: "), "{error}");
        file.export(vec![span()]).await.unwrap();
        let text = String::from_utf8(written.lock().unwrap().clone()).unwrap();
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines.len(), 2);
        assert_eq!(lines[0], "{\"r");
        assert!(serde_json::from_str::<serde_json::Value>(lines[1]).is_ok());
    }
}
