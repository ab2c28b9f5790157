//! Reads the traced process's memory. Nothing here trusts what it finds.

use aya_ebpf::helpers::bpf_probe_read_user;
use aya_ebpf::helpers::generated::bpf_probe_read_user as probe_read_user;

/// Reads a value at `base + offset`; none on a fault.
#[inline(always)]
pub(crate) fn read<T: Copy>(base: u64, offset: i64) -> Option<T> {
    let source = base.wrapping_add(offset as u64) as *const T;
    // SAFETY: the helper checks the address and fails on a bad one.
    unsafe { bpf_probe_read_user(source) }.ok()
}

/// Copies `len` bytes to `into`; false on a fault.
///
/// # Safety
///
/// `into` must be valid for `len` bytes, which the verifier proves.
#[inline(always)]
pub(crate) unsafe fn copy(source: u64, into: *mut u8, len: u32) -> bool {
    // SAFETY: the caller vouches for `into`; the helper checks `source`.
    unsafe { probe_read_user(into.cast(), len, source as *const _) == 0 }
}
