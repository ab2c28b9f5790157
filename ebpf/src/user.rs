//! Reads the traced process's memory. Nothing here trusts what it finds.

use aya_ebpf::helpers::bpf_probe_read_user;
use aya_ebpf::helpers::generated::bpf_probe_read_user as probe_read_user;
use pyframes::{Memory, WORDS};

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

/// The current process's memory, for `pyframes`.
pub(crate) struct User;

impl Memory for User {
    #[inline(always)]
    fn read(&self, address: u64, into: &mut [u8]) -> bool {
        // SAFETY: `into` has the length that is asked for, a constant after
        // inlining.
        unsafe { copy(address, into.as_mut_ptr(), into.len() as u32) }
    }

    #[inline(always)]
    fn words(&self, address: u64, into: &mut [u64; WORDS], count: usize) -> bool {
        let len = count * 8;
        // The compiler may know a bound and would drop the mask that shows
        // one to the verifier; the volatile read makes it forget.
        // SAFETY: the pointer is a reference's; the mask keeps the length
        // below the buffer's.
        unsafe {
            let len = core::ptr::read_volatile(&raw const len) & (WORDS * 8 - 1);
            copy(address, into.as_mut_ptr().cast(), len as u32)
        }
    }
}
