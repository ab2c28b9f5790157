//! Counts in the kernel; see `abi::counter`.

use abi::counter::Counter;

use crate::maps::COUNTERS;

/// Adds one.
#[inline(always)]
pub(crate) fn count(counter: Counter) {
    add(counter, 1);
}

/// Adds `n`.
#[inline(always)]
pub(crate) fn add(counter: Counter, n: u64) {
    if let Some(slot) = COUNTERS.get_ptr_mut(counter as u32) {
        // SAFETY: the slot belongs to this CPU and tracing programs do not
        // nest on it while one of ours runs.
        unsafe { *slot += n };
    }
}
