//! Puts exchanges under their parents and gives them ids: exchanges in, spans
//! out.

use std::sync::Arc;

use crate::protocol::{Exchange, Role};
use crate::resource::Resource;

/// A finished span, not yet OTLP.
#[derive(Clone, Debug)]
pub struct Span {
    /// Who emitted it.
    pub resource: Arc<Resource>,
    /// Trace id.
    pub trace_id: [u8; 16],
    /// Span id.
    pub span_id: [u8; 8],
    /// Parent span id, if it has a parent.
    pub parent: Option<Parent>,
    /// W3C trace flags of the span's context.
    pub flags: u8,
    /// W3C tracestate; empty where there is none.
    pub trace_state: String,
    /// Server or client.
    pub role: Role,
    /// Nanoseconds since the Unix epoch.
    pub start: u64,
    /// Nanoseconds since the Unix epoch.
    pub end: u64,
    /// Name, attributes, status.
    pub exchange: Exchange,
}

/// A span's parent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parent {
    /// Its span id.
    pub span_id: [u8; 8],
    /// Whether its context came over the wire.
    pub remote: bool,
}
