//! The agent's own counters: one per reason for which something is dropped or
//! refused, and a few totals.
//!
//! A counter is a relaxed atomic, incremented beside the thing it counts and
//! read by the summary at exit and by `--stats`.

use std::sync::atomic::{AtomicU64, Ordering};

/// A counter that only grows.
#[derive(Debug, Default)]
pub struct Count(AtomicU64);

impl Count {
    /// Adds one.
    pub fn one(&self) {
        self.add(1);
    }

    /// Adds `n`.
    pub fn add(&self, n: u64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }

    /// The value so far.
    pub fn value(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Defines a struct of counters with a name for each, in order.
macro_rules! counters {
    ($(#[$meta:meta])* $vis:vis struct $name:ident { $($(#[$doc:meta])* $field:ident => $text:literal),+ $(,)? }) => {
        $(#[$meta])*
        #[derive(Debug, Default)]
        $vis struct $name { $($(#[$doc])* pub $field: $crate::stats::Count),+ }

        impl $name {
            /// Every counter's name and value, in the order of declaration.
            pub fn values(&self) -> Vec<(&'static str, u64)> {
                vec![$(($text, self.$field.value())),+]
            }
        }
    };
}
pub(crate) use counters;

counters! {
    /// Counters of `batch` and `export`.
    pub struct ExportStats {
        /// Spans handed to the batch processor.
        spans_received => "export.spans",
        /// Spans an exporter delivered.
        spans_exported => "export.exported",
        /// Spans dropped because the queue was full.
        queue_full => "export.dropped.queue_full",
        /// Spans dropped after the retry budget or the timeout.
        gave_up => "export.dropped.gave_up",
        /// Spans dropped because the receiver refused them for good.
        refused => "export.dropped.refused",
        /// Spans that the receiver rejected in a partial success.
        rejected => "export.dropped.rejected",
        /// Spans dropped because a request would be over 64 MiB.
        too_large => "export.dropped.too_large",
        /// Spans left when the shutdown timeout ended.
        shutdown => "export.dropped.shutdown",
        /// Export attempts that were repeated.
        retries => "export.retries",
    }
}
