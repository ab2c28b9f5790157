//! Turns spans into OTLP.
pub mod traces;
