//! Spans to OTLP spans.
