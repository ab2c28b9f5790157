//! Turns what was observed into the OTLP messages of each signal.
//!
//! It knows the data model of OTLP and nothing of how messages are sent; it
//! reads neither clock nor randomness. `export` calls it.

pub mod traces;
