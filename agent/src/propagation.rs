//! Trace context as it travels with requests (W3C Trace Context, level 2).

/// A caller's span context.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TraceContext {
    /// Trace id, never all zero.
    pub trace_id: [u8; 16],
    /// The caller's span id, never all zero.
    pub span_id: [u8; 8],
    /// W3C trace flags.
    pub flags: u8,
    /// The `tracestate` list as received, members joined by commas; empty
    /// where absent or invalid.
    pub state: String,
}
