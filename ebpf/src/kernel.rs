//! Reads kernel memory at offsets that the agent took from BTF.

use abi::map::KernelOffsets;
use aya_ebpf::helpers::bpf_probe_read_kernel;
use aya_ebpf::helpers::generated::bpf_probe_read_kernel as probe_read_kernel;

/// Offsets of the running kernel, patched in by the agent before load.
#[unsafe(no_mangle)]
static KERNEL_OFFSETS: KernelOffsets = KernelOffsets {
    task_tgid: 0,
    task_pid: 0,
    task_files: 0,
    task_thread_pointer: 0,
    task_signal: 0,
    signal_live: 0,
    files_fdt: 0,
    fdt_max_fds: 0,
    fdt_fd: 0,
    file_private_data: 0,
    socket_file: 0,
    socket_sk: 0,
    socket_type: 0,
    skc_family: 0,
    skc_daddr: 0,
    skc_rcv_saddr: 0,
    skc_dport: 0,
    skc_num: 0,
    skc_v6_daddr: 0,
    skc_v6_rcv_saddr: 0,
    unix_addr: 0,
    unix_peer: 0,
    unix_address_len: 0,
    unix_address_name: 0,
};

/// The patched offsets' address.
#[inline(always)]
pub(crate) fn offsets() -> *const KernelOffsets {
    &raw const KERNEL_OFFSETS
}

/// One patched offset by field name.
macro_rules! offset {
    ($field:ident) => {{
        let offsets = $crate::kernel::offsets();
        // SAFETY: `offsets` points to a static; the volatile read keeps the
        // compiler from using the value it has at build time.
        unsafe { core::ptr::read_volatile(&raw const (*offsets).$field) }
    }};
}
pub(crate) use offset;

/// Reads a value at `base + offset`; none if the kernel refuses.
#[inline(always)]
pub(crate) fn read<T: Copy>(base: u64, offset: u32) -> Option<T> {
    let source = base.wrapping_add(u64::from(offset)) as *const T;
    // SAFETY: the helper checks the address and fails on a bad one.
    unsafe { bpf_probe_read_kernel(source) }.ok()
}

/// Reads a pointer that must not be null.
#[inline(always)]
pub(crate) fn pointer(base: u64, offset: u32) -> Option<u64> {
    read::<u64>(base, offset).filter(|&address| address != 0)
}

/// Copies `len` bytes to `into`; false if the kernel refuses.
///
/// # Safety
///
/// `into` must be valid for `len` bytes, which the verifier proves.
#[inline(always)]
pub(crate) unsafe fn copy(source: u64, into: *mut u8, len: u32) -> bool {
    // SAFETY: the caller vouches for `into`; the helper checks `source`.
    unsafe { probe_read_kernel(into.cast(), len, source as *const _) == 0 }
}
