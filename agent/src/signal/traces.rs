//! Spans to OTLP spans, grouped by resource and scope.
//!
//! Protocols have already said everything in words of the conventions, so
//! nothing here depends on which protocol a span is of. Spans are consumed:
//! their strings move into the message.

use std::borrow::Cow;
use std::sync::Arc;

use proto::otlp::common::v1::any_value::Value as OtlpValue;
use proto::otlp::common::v1::{AnyValue, ArrayValue, InstrumentationScope, KeyValue};
use proto::otlp::resource::v1::Resource as OtlpResource;
use proto::otlp::trace::v1::span::{Event as OtlpEvent, SpanKind};
use proto::otlp::trace::v1::status::StatusCode;
use proto::otlp::trace::v1::{
    ResourceSpans, ScopeSpans, Span as OtlpSpan, SpanFlags, Status as OtlpStatus,
};

use crate::assemble::{Span, SpanEvent};
use crate::attribute::{Attributes, Key, Value};
use crate::config::SpanLimits;
use crate::protocol::{Role, Status};
use crate::resource::Resource;

/// The semantic conventions that attributes follow.
pub const SCHEMA_URL: &str = "https://opentelemetry.io/schemas/1.44.0";

/// Turns spans into OTLP. Spans of one resource stand together, and in it
/// those of one scope, both in the order of their first span.
pub fn resource_spans(spans: Vec<Span>, limits: &SpanLimits) -> Vec<ResourceSpans> {
    // A resource is built once per process, so its address is its identity.
    // There are few per batch, and spans of one come in runs.
    let mut groups: Vec<(Arc<Resource>, Scopes)> = Vec::new();
    for span in spans {
        let resource = Arc::clone(&span.resource);
        let scope = span.exchange.scope.clone();
        let span = otlp_span(span, limits);
        let Some((_, scopes)) = groups
            .iter_mut()
            .rev()
            .find(|(known, _)| Arc::ptr_eq(known, &resource))
        else {
            groups.push((resource, vec![(scope, vec![span])]));
            continue;
        };
        match scopes.iter_mut().find(|(known, _)| *known == scope) {
            Some((_, spans)) => spans.push(span),
            None => scopes.push((scope, vec![span])),
        }
    }
    groups
        .into_iter()
        .map(|(resource, scopes)| ResourceSpans {
            resource: Some(otlp_resource(&resource)),
            scope_spans: scopes
                .into_iter()
                .map(|(scope, spans)| scope_spans(&scope, spans))
                .collect(),
            schema_url: SCHEMA_URL.to_owned(),
        })
        .collect()
}

/// The spans of each scope.
type Scopes = Vec<(Cow<'static, str>, Vec<OtlpSpan>)>;

fn otlp_resource(resource: &Resource) -> OtlpResource {
    OtlpResource {
        attributes: resource
            .attributes
            .iter()
            .cloned()
            .map(|(key, value)| key_value(key, value, None))
            .collect(),
        dropped_attributes_count: 0,
        entity_refs: Vec::new(),
    }
}

fn scope_spans(scope: &str, spans: Vec<OtlpSpan>) -> ScopeSpans {
    ScopeSpans {
        scope: Some(InstrumentationScope {
            name: scope.to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            attributes: Vec::new(),
            dropped_attributes_count: 0,
        }),
        spans,
        schema_url: SCHEMA_URL.to_owned(),
    }
}

fn otlp_span(span: Span, limits: &SpanLimits) -> OtlpSpan {
    let Span {
        resource: _,
        trace_id,
        span_id,
        parent,
        flags,
        trace_state,
        role,
        start,
        end,
        exchange,
        events,
    } = span;
    let remote = parent.is_some_and(|parent| parent.remote);
    let (attributes, dropped_attributes_count) = otlp_attributes(exchange.attributes, limits);
    OtlpSpan {
        trace_id: trace_id.to_vec(),
        span_id: span_id.to_vec(),
        trace_state,
        parent_span_id: parent
            .map(|parent| parent.span_id.to_vec())
            .unwrap_or_default(),
        flags: u32::from(flags)
            | SpanFlags::ContextHasIsRemoteMask as u32
            | if remote {
                SpanFlags::ContextIsRemoteMask as u32
            } else {
                0
            },
        name: exchange.name.into_owned(),
        kind: match role {
            Role::Server => SpanKind::Server,
            Role::Client => SpanKind::Client,
        } as i32,
        start_time_unix_nano: start,
        end_time_unix_nano: end.max(start),
        attributes,
        dropped_attributes_count,
        dropped_events_count: dropped(events.len(), limits.event_count),
        events: events
            .into_iter()
            .take(limits.event_count)
            .map(|event| otlp_event(event, limits))
            .collect(),
        status: match exchange.status {
            Status::Unset => None,
            Status::Error(message) => Some(OtlpStatus {
                message,
                code: StatusCode::Error as i32,
            }),
        },
        ..OtlpSpan::default()
    }
}

fn otlp_event(event: SpanEvent, limits: &SpanLimits) -> OtlpEvent {
    let SpanEvent {
        name,
        at,
        attributes,
    } = event;
    let dropped_attributes_count = dropped(attributes.len(), limits.event_attribute_count);
    OtlpEvent {
        time_unix_nano: at,
        name: name.to_owned(),
        attributes: attributes
            .into_iter()
            .take(limits.event_attribute_count)
            .map(|(key, value)| key_value(key, value, limits.attribute_value_length))
            .collect(),
        dropped_attributes_count,
    }
}

/// Keeps the first attributes up to the limit, and says how many were left
/// out.
fn otlp_attributes(attributes: Attributes, limits: &SpanLimits) -> (Vec<KeyValue>, u32) {
    let left_out = dropped(attributes.len(), limits.attribute_count);
    let kept = attributes
        .into_iter()
        .take(limits.attribute_count)
        .map(|(key, value)| key_value(key, value, limits.attribute_value_length))
        .collect();
    (kept, left_out)
}

/// How many of `count` things are beyond the limit.
fn dropped(count: usize, limit: usize) -> u32 {
    u32::try_from(count.saturating_sub(limit)).unwrap_or(u32::MAX)
}

fn key_value(key: Key, value: Value, max_length: Option<usize>) -> KeyValue {
    let value = match value {
        Value::Str(text) => string(text, max_length),
        Value::Int(number) => OtlpValue::IntValue(number),
        Value::Double(number) => OtlpValue::DoubleValue(number),
        Value::Bool(flag) => OtlpValue::BoolValue(flag),
        Value::StrArray(texts) => OtlpValue::ArrayValue(ArrayValue {
            values: texts
                .into_iter()
                .map(|text| AnyValue {
                    value: Some(string(Cow::Owned(text), max_length)),
                })
                .collect(),
        }),
    };
    KeyValue {
        key: key.into_owned(),
        value: Some(AnyValue { value: Some(value) }),
        ..KeyValue::default()
    }
}

/// A string value of at most `max_length` characters.
fn string(text: Cow<'static, str>, max_length: Option<usize>) -> OtlpValue {
    let mut text = text.into_owned();
    if let Some((end, _)) = max_length.and_then(|length| text.char_indices().nth(length)) {
        text.truncate(end);
    }
    OtlpValue::StringValue(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::assemble::Parent;
    use crate::protocol::Exchange;

    fn resource(name: &'static str) -> Arc<Resource> {
        Arc::new(Resource {
            attributes: vec![("service.name".into(), name.into())],
        })
    }

    fn span(resource: &Arc<Resource>, scope: &'static str, id: u8) -> Span {
        Span {
            resource: Arc::clone(resource),
            trace_id: [id; 16],
            span_id: [id; 8],
            parent: None,
            flags: 1,
            trace_state: String::new(),
            role: Role::Server,
            start: 10,
            end: 20,
            exchange: Exchange {
                scope: scope.into(),
                route_key: None,
                name: "GET /".into(),
                attributes: Vec::new(),
                status: Status::Unset,
            },
            events: Vec::new(),
        }
    }

    fn translate(span: Span, limits: &SpanLimits) -> OtlpSpan {
        otlp_span(span, limits)
    }

    #[test]
    fn a_span_keeps_all_it_has() {
        let mut span = span(&resource("shop"), "otel-ebpf.http", 7);
        span.trace_state = "a=b".to_owned();
        span.parent = Some(Parent {
            span_id: [9; 8],
            remote: true,
        });
        span.exchange.status = Status::Error("boom".to_owned());
        span.exchange.attributes = vec![
            ("s".into(), "text".into()),
            ("i".into(), 5_i64.into()),
            ("d".into(), Value::Double(0.5)),
            ("b".into(), true.into()),
            ("a".into(), Value::StrArray(vec!["x".to_owned()])),
        ];
        let otlp = translate(span, &SpanLimits::default());
        let values: Vec<_> = otlp
            .attributes
            .iter()
            .map(|attribute| {
                let value = attribute
                    .value
                    .as_ref()
                    .and_then(|value| value.value.clone());
                (attribute.key.as_str(), value.unwrap())
            })
            .collect();
        assert_eq!(
            values,
            [
                ("s", OtlpValue::StringValue("text".to_owned())),
                ("i", OtlpValue::IntValue(5)),
                ("d", OtlpValue::DoubleValue(0.5)),
                ("b", OtlpValue::BoolValue(true)),
                (
                    "a",
                    OtlpValue::ArrayValue(ArrayValue {
                        values: vec![AnyValue {
                            value: Some(OtlpValue::StringValue("x".to_owned()))
                        }]
                    })
                ),
            ]
        );
        assert_eq!(otlp.trace_id, [7; 16]);
        assert_eq!(otlp.span_id, [7; 8]);
        assert_eq!(otlp.parent_span_id, [9; 8]);
        assert_eq!(otlp.trace_state, "a=b");
        assert_eq!(otlp.name, "GET /");
        assert_eq!(otlp.kind, SpanKind::Server as i32);
        assert_eq!(
            (otlp.start_time_unix_nano, otlp.end_time_unix_nano),
            (10, 20)
        );
        assert_eq!(otlp.dropped_attributes_count, 0);
        assert_eq!(
            otlp.status,
            Some(OtlpStatus {
                message: "boom".to_owned(),
                code: 2
            })
        );
    }

    #[test]
    fn flags_tell_whether_the_parent_is_remote() {
        let flags = |parent: Option<bool>, flags| {
            let mut span = span(&resource("shop"), "s", 1);
            span.flags = flags;
            span.parent = parent.map(|remote| Parent {
                span_id: [2; 8],
                remote,
            });
            translate(span, &SpanLimits::default()).flags
        };
        assert_eq!(flags(None, 1), 0x101);
        assert_eq!(flags(Some(false), 3), 0x103);
        assert_eq!(flags(Some(true), 0xff), 0x3ff);
    }

    #[test]
    fn roots_have_no_parent_and_no_status() {
        let otlp = translate(span(&resource("shop"), "s", 1), &SpanLimits::default());
        assert!(otlp.parent_span_id.is_empty());
        assert_eq!(otlp.status, None);
    }

    #[test]
    fn a_span_never_ends_before_it_starts() {
        let mut backwards = span(&resource("shop"), "s", 1);
        backwards.end = 3;
        assert_eq!(
            translate(backwards, &SpanLimits::default()).end_time_unix_nano,
            10
        );
    }

    #[test]
    fn attributes_over_the_limits_are_cut_and_counted() {
        let mut long = span(&resource("shop"), "s", 1);
        long.exchange.attributes = vec![
            ("a".into(), "grüße".into()),
            (
                "b".into(),
                Value::StrArray(vec!["abcdef".to_owned(), "x".to_owned()]),
            ),
            ("c".into(), 1_i64.into()),
            ("d".into(), 2_i64.into()),
        ];
        let limits = SpanLimits {
            attribute_count: 2,
            attribute_value_length: Some(3),
            event_count: 1,
            event_attribute_count: 1,
        };
        let event = |name| SpanEvent {
            name,
            at: 15,
            attributes: vec![("a".into(), "grüße".into()), ("b".into(), 1.into())],
        };
        long.events = vec![event("first"), event("second")];
        let text = |text: &str| OtlpValue::StringValue(text.to_owned());
        let otlp = translate(long, &limits);
        assert_eq!(otlp.dropped_attributes_count, 2);
        assert_eq!(otlp.dropped_events_count, 1);
        assert_eq!(otlp.events.len(), 1);
        assert_eq!(otlp.events[0].name, "first");
        assert_eq!(otlp.events[0].time_unix_nano, 15);
        assert_eq!(otlp.events[0].dropped_attributes_count, 1);
        assert_eq!(
            otlp.events[0].attributes[0].value,
            Some(AnyValue {
                value: Some(text("grü"))
            })
        );
        assert_eq!(otlp.attributes.len(), 2);
        assert_eq!(
            otlp.attributes[0].value,
            Some(AnyValue {
                value: Some(text("grü"))
            })
        );
        let array = ["abc", "x"].map(|item| AnyValue {
            value: Some(text(item)),
        });
        assert_eq!(
            otlp.attributes[1].value,
            Some(AnyValue {
                value: Some(OtlpValue::ArrayValue(ArrayValue {
                    values: array.to_vec()
                }))
            })
        );
    }

    #[test]
    fn spans_stand_by_resource_and_then_by_scope() {
        let (shop, pay) = (resource("shop"), resource("pay"));
        let spans = vec![
            span(&shop, "http", 1),
            span(&pay, "http", 2),
            span(&shop, "db", 3),
            span(&shop, "http", 4),
            span(&pay, "http", 5),
        ];
        let groups = resource_spans(spans, &SpanLimits::default());
        let shape: Vec<_> = groups
            .iter()
            .flat_map(|group| {
                let service = &group.resource.as_ref().unwrap().attributes[0];
                group.scope_spans.iter().map(move |scope| {
                    let ids: Vec<_> = scope.spans.iter().map(|span| span.span_id[0]).collect();
                    let name = scope.scope.as_ref().unwrap().name.as_str();
                    (format!("{:?}", service.value), name, ids)
                })
            })
            .map(|(service, scope, ids)| (service.contains("shop"), scope, ids))
            .collect();
        assert_eq!(
            shape,
            [
                (true, "http", vec![1, 4]),
                (true, "db", vec![3]),
                (false, "http", vec![2, 5]),
            ]
        );
        for group in &groups {
            assert_eq!(group.schema_url, SCHEMA_URL);
            let scope = group.scope_spans[0].scope.as_ref().unwrap();
            assert_eq!(scope.version, env!("CARGO_PKG_VERSION"));
        }
    }

    #[test]
    fn no_spans_make_no_groups() {
        assert_eq!(resource_spans(Vec::new(), &SpanLimits::default()), []);
    }
}
