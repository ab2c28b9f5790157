//! Writes records to the ring.

use abi::counter::Counter;
use aya_ebpf::bindings::{BPF_RB_AVAIL_DATA, BPF_RB_FORCE_WAKEUP, BPF_RB_NO_WAKEUP};

use crate::counters::count;
use crate::maps::EVENTS;

/// Bytes waiting in the ring at which the agent is woken before its poll
/// interval is over. Waking costs the application an interrupt.
const WAKE_AT: u64 = 1024 * 1024;

/// Submit flags: wakes the agent only when it has fallen behind.
#[inline(always)]
pub(crate) fn flags() -> u64 {
    if EVENTS.query(u64::from(BPF_RB_AVAIL_DATA)) >= WAKE_AT {
        u64::from(BPF_RB_FORCE_WAKEUP)
    } else {
        u64::from(BPF_RB_NO_WAKEUP)
    }
}

/// Writes a record of fixed size; counts `lost` when the ring is full.
#[inline(always)]
pub(crate) fn record<T: Copy + 'static>(value: &T, lost: Counter) {
    write(value, flags(), lost);
}

/// As [`record`], and wakes the agent at once: what it must look at may be
/// gone soon.
#[inline(always)]
pub(crate) fn urgent<T: Copy + 'static>(value: &T, lost: Counter) {
    write(value, u64::from(BPF_RB_FORCE_WAKEUP), lost);
}

#[inline(always)]
fn write<T: Copy + 'static>(value: &T, flags: u64, lost: Counter) {
    match EVENTS.reserve::<T>(0) {
        Some(mut entry) => {
            entry.write(*value);
            entry.submit(flags);
            count(Counter::RecordsWritten);
        }
        None => count(lost),
    }
}
