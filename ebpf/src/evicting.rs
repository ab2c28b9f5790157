//! Writes tables that evict what was used least, so that evictions can be
//! counted.
//!
//! The kernel evicts without a word. What it has evicted is what was put into
//! a table, less what was taken out, less what is still there: the first two
//! are kept here, as one number for each table, and the agent counts the rest
//! (`agent/src/probes/evictions.rs`).

use abi::counter::Evicting;
use aya_ebpf::bindings::{BPF_EXIST, BPF_NOEXIST};
use aya_ebpf::maps::LruHashMap;

use crate::maps::HELD;

/// Makes an entry where there was none; whether it is there.
#[inline(always)]
pub(crate) fn insert<K, V>(map: &LruHashMap<K, V>, table: Evicting, key: &K, value: &V) -> bool {
    if map.insert(key, value, BPF_NOEXIST as u64).is_ok() {
        add(table, 1);
        return true;
    }
    // Another processor was first, or there is no room.
    map.insert(key, value, BPF_EXIST as u64).is_ok()
}

/// Makes an entry, or writes the one that is there in its place: to replace it
/// the kernel would take a free element, which may evict another entry. Whether
/// it is there. The value must bear a seal.
#[inline(always)]
pub(crate) fn put<K, V: Copy>(map: &LruHashMap<K, V>, table: Evicting, key: &K, value: &V) -> bool {
    if let Some(entry) = map.get_ptr_mut(key) {
        // SAFETY: the map's values outlive the program run. If this one was
        // evicted just now, it is another key's, whose seal it does not bear.
        unsafe { *entry = *value };
        return true;
    }
    insert(map, table, key, value)
}

/// Removes an entry, which need not be there.
#[inline(always)]
pub(crate) fn remove<K, V>(map: &LruHashMap<K, V>, table: Evicting, key: &K) {
    if map.remove(key).is_ok() {
        add(table, u64::MAX);
    }
}

/// An entry that was there without counting, as it held nothing, counts.
#[inline(always)]
pub(crate) fn taken(table: Evicting) {
    add(table, 1);
}

/// An entry counts no more, as it holds nothing.
#[inline(always)]
pub(crate) fn emptied(table: Evicting) {
    add(table, u64::MAX);
}

/// Adds to what a table should hold, around the end of the numbers.
#[inline(always)]
fn add(table: Evicting, n: u64) {
    if let Some(slot) = HELD.get_ptr_mut(table as u32) {
        // SAFETY: the slot belongs to this CPU. A kernel that may interrupt a
        // program on a function just between these two accesses could make
        // the number wrong by one, which is not worth a look-up more.
        unsafe { *slot = (*slot).wrapping_add(n) };
    }
}
