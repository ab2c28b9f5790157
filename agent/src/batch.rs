//! Batching.
