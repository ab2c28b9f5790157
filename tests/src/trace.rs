//! Finished spans as tests look at them, from the agent's file or from the
//! receiver.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

use anyhow::{Context, Result};
use proto::otlp::common::v1::{AnyValue, KeyValue, any_value};
use proto::otlp::trace::v1::span::{Event as SpanEvent, SpanKind};
use proto::otlp::trace::v1::{ResourceSpans, TracesData, status::StatusCode};
use serde_json::{Value, json};

use crate::receiver::Received;

/// Attributes by name.
pub type Attributes = BTreeMap<String, Value>;

/// Which end of an exchange a span is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The server's.
    Server,
    /// The client's.
    Client,
    /// Neither: a step inside a process, as the in-process SDK has them.
    Internal,
}

/// A span, with its resource.
#[derive(Clone, Debug, PartialEq)]
pub struct Span {
    /// Name.
    pub name: String,
    /// Kind.
    pub kind: Kind,
    /// In hexadecimal.
    pub trace_id: String,
    /// In hexadecimal.
    pub span_id: String,
    /// In hexadecimal.
    pub parent: Option<String>,
    /// Whether the parent came over the wire, as its flags say.
    pub remote: bool,
    /// W3C trace flags, without the two of OTLP.
    pub flags: u32,
    /// W3C tracestate.
    pub trace_state: String,
    /// Nanoseconds since the Unix epoch.
    pub start: u64,
    /// Nanoseconds since the Unix epoch.
    pub end: u64,
    /// Whether its status is an error.
    pub error: bool,
    /// The status's message.
    pub message: String,
    /// What happened during it.
    pub events: Vec<Event>,
    /// Attributes.
    pub attributes: Attributes,
    /// Attributes of its resource.
    pub resource: Attributes,
    /// Instrumentation scope.
    pub scope: String,
}

/// Something that happened during a span.
#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    /// Name.
    pub name: String,
    /// Nanoseconds since the Unix epoch.
    pub at: u64,
    /// Attributes.
    pub attributes: Attributes,
}

impl Event {
    /// An attribute as text; empty if it has none.
    pub fn text(&self, key: &str) -> &str {
        self.attributes
            .get(key)
            .and_then(Value::as_str)
            .unwrap_or_default()
    }
}

impl Span {
    /// An attribute as text; empty if it has none.
    pub fn text(&self, key: &str) -> &str {
        self.attributes
            .get(key)
            .and_then(Value::as_str)
            .unwrap_or_default()
    }

    /// An attribute as a number, if it is one.
    pub fn number(&self, key: &str) -> Option<i64> {
        self.attributes.get(key).and_then(Value::as_i64)
    }

    /// The resource's process id; 0 if it has none.
    pub fn pid(&self) -> u32 {
        let pid = self.resource.get("process.pid").and_then(Value::as_u64);
        pid.and_then(|pid| pid.try_into().ok()).unwrap_or(0)
    }

    /// `service.name`.
    pub fn service(&self) -> &str {
        self.resource
            .get("service.name")
            .and_then(Value::as_str)
            .unwrap_or_default()
    }

    /// `url.path` with `url.query`, or `url.full`.
    pub fn target(&self) -> String {
        match (self.text("url.path"), self.text("url.query")) {
            ("", _) => self.text("url.full").to_owned(),
            (path, "") => path.to_owned(),
            (path, query) => format!("{path}?{query}"),
        }
    }

    /// Asserts that it has exactly these attributes.
    #[track_caller]
    pub fn assert_attributes(&self, expected: &Value) {
        let Value::Object(expected) = expected else {
            panic!("attributes are an object, not {expected}");
        };
        let expected: Attributes = expected.clone().into_iter().collect();
        if let Some(difference) = difference(&self.attributes, &expected) {
            panic!(
                "attributes of {:?} {} differ (- expected, + found):\n{difference}",
                self.kind,
                self.target()
            );
        }
    }

    /// Asserts that it is a root.
    #[track_caller]
    pub fn assert_root(&self) {
        assert_eq!(self.parent, None, "{self:#?}");
    }

    /// Asserts that it is the child of a span of the same process.
    #[track_caller]
    pub fn assert_child_of(&self, parent: &Self) {
        let found = (&self.trace_id, self.parent.as_ref(), self.remote);
        let expected = (&parent.trace_id, Some(&parent.span_id), false);
        assert_eq!(found, expected, "{self:#?} under {parent:#?}");
    }
}

/// The spans of a kind whose target contains the text.
pub fn matching<'a>(spans: &'a [Span], kind: Kind, target: &str) -> Vec<&'a Span> {
    spans
        .iter()
        .filter(|span| span.kind == kind && span.target().contains(target))
        .collect()
}

/// The only span of a kind whose target contains the text.
#[track_caller]
pub fn only<'a>(spans: &'a [Span], kind: Kind, target: &str) -> &'a Span {
    match matching(spans, kind, target).as_slice() {
        [span] => span,
        found => panic!(
            "{} {kind:?} spans of {target} instead of one, among {}",
            found.len(),
            brief(spans)
        ),
    }
}

/// The children of a span.
pub fn children<'a>(spans: &'a [Span], parent: &Span) -> Vec<&'a Span> {
    spans
        .iter()
        .filter(|span| {
            span.trace_id == parent.trace_id && span.parent.as_ref() == Some(&parent.span_id)
        })
        .collect()
}

/// One line per span, for a failure's message.
pub fn brief(spans: &[Span]) -> String {
    let mut text = String::new();
    for span in spans {
        let _infallible = write!(
            text,
            "\n{:?} {} {} of {} trace {} id {} parent {:?}",
            span.kind,
            span.name,
            span.target(),
            span.pid(),
            span.trace_id,
            span.span_id,
            span.parent
        );
    }
    text
}

/// What differs, as lines; none if nothing does.
pub fn difference(found: &Attributes, expected: &Attributes) -> Option<String> {
    let mut text = String::new();
    let keys: std::collections::BTreeSet<_> = found.keys().chain(expected.keys()).collect();
    for key in keys {
        let (found, expected) = (found.get(key), expected.get(key));
        if found == expected {
            continue;
        }
        if let Some(value) = expected {
            let _infallible = writeln!(text, "- {key} = {value}");
        }
        if let Some(value) = found {
            let _infallible = writeln!(text, "+ {key} = {value}");
        }
    }
    (!text.is_empty()).then_some(text)
}

/// Reads the agent's file; a line that is not complete yet is left out.
pub fn from_file(path: &Path) -> Result<Vec<Span>> {
    let bytes = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    from_lines(complete_lines(&bytes)?)
}

/// The lines of a file that is being written which are complete: what comes
/// after them may end in the middle of a character.
pub fn complete_lines(bytes: &[u8]) -> Result<&str> {
    let end = bytes.iter().rposition(|byte| *byte == b'\n');
    let complete = &bytes[..end.map_or(0, |end| end + 1)];
    std::str::from_utf8(complete).context("lines that are no text")
}

/// Reads lines of the agent's file.
pub fn from_lines(text: &str) -> Result<Vec<Span>> {
    let mut spans = Vec::new();
    for line in text.lines() {
        let data: TracesData =
            serde_json::from_str(line).with_context(|| format!("no OTLP JSON: {line}"))?;
        spans.extend(flatten(&data.resource_spans)?);
    }
    spans.sort_by_key(|span| span.start);
    Ok(spans)
}

/// The spans of every accepted request, by start.
pub fn from_received(received: &[Received]) -> Result<Vec<Span>> {
    let mut spans = Vec::new();
    for received in received.iter().filter(|received| received.accepted) {
        spans.extend(flatten(&received.request.resource_spans)?);
    }
    spans.sort_by_key(|span| span.start);
    Ok(spans)
}

fn flatten(groups: &[ResourceSpans]) -> Result<Vec<Span>> {
    let mut spans = Vec::new();
    for group in groups {
        let resource = group
            .resource
            .as_ref()
            .context("spans without a resource")?;
        let resource = attributes(&resource.attributes)?;
        for scope in &group.scope_spans {
            let name = scope.scope.as_ref().map(|scope| scope.name.clone());
            for span in &scope.spans {
                let kind = match span.kind() {
                    SpanKind::Server => Kind::Server,
                    SpanKind::Client => Kind::Client,
                    SpanKind::Internal => Kind::Internal,
                    other => anyhow::bail!("a span of kind {other:?}"),
                };
                let status = span.status.as_ref().map(|status| status.code());
                let message = span.status.as_ref().map(|status| status.message.clone());
                let events = span.events.iter().map(event).collect::<Result<_>>()?;
                spans.push(Span {
                    name: span.name.clone(),
                    kind,
                    trace_id: hex(&span.trace_id),
                    span_id: hex(&span.span_id),
                    parent: (!span.parent_span_id.is_empty()).then(|| hex(&span.parent_span_id)),
                    remote: span.flags & 0x200 != 0,
                    flags: span.flags & 0xff,
                    trace_state: span.trace_state.clone(),
                    start: span.start_time_unix_nano,
                    end: span.end_time_unix_nano,
                    error: status == Some(StatusCode::Error),
                    message: message.unwrap_or_default(),
                    events,
                    attributes: attributes(&span.attributes)?,
                    resource: resource.clone(),
                    scope: name.clone().unwrap_or_default(),
                });
            }
        }
    }
    Ok(spans)
}

fn event(event: &SpanEvent) -> Result<Event> {
    Ok(Event {
        name: event.name.clone(),
        at: event.time_unix_nano,
        attributes: attributes(&event.attributes)?,
    })
}

fn attributes(list: &[KeyValue]) -> Result<Attributes> {
    let mut found = Attributes::new();
    for KeyValue { key, value, .. } in list {
        let value = value.as_ref().map_or(Value::Null, plain);
        if let Some(before) = found.insert(key.clone(), value) {
            anyhow::bail!("the attribute {key} comes twice, first as {before}");
        }
    }
    Ok(found)
}

fn plain(value: &AnyValue) -> Value {
    match &value.value {
        Some(any_value::Value::StringValue(text)) => json!(text),
        Some(any_value::Value::IntValue(number)) => json!(number),
        Some(any_value::Value::BoolValue(flag)) => json!(flag),
        Some(any_value::Value::DoubleValue(number)) => json!(number),
        Some(any_value::Value::ArrayValue(list)) => list.values.iter().map(plain).collect(),
        other => json!(format!("{other:?}")),
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _infallible = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_that_is_being_written_is_left_out() {
        let check = |bytes: &[u8], expected: &str| {
            assert_eq!(complete_lines(bytes).expect("text"), expected);
        };
        check(b"", "");
        check(b"one", "");
        check(b"one\n", "one\n");
        // In the middle of a character.
        check(b"one\ntwo\ng\xc3", "one\ntwo\n");
        assert!(complete_lines(b"\xc3\n").is_err());
    }
}
