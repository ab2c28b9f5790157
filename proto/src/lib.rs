//! What goes over the wire: the OTLP types and service clients, from the
//! crate `opentelemetry-proto`, under one name for the whole workspace.
//!
//! It holds no logic. `signal`, `batch` and `export` of the agent and the
//! tests' receivers use it.

#![forbid(unsafe_code)]

pub use opentelemetry_proto::tonic as otlp;
