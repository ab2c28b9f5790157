//! What must be known of uvloop to learn on which descriptor a transport
//! writes: two offsets, from the transport object to libuv's handle and from
//! the handle to its descriptor.
//!
//! uvloop's transports are Cython objects. `UVHandle`, the base of all of
//! them, is a cdef class, so that its instances begin with the object header
//! and the pointer to the table of C methods (8 bytes); `_handle` is the first
//! attribute declared.
//!
//! libuv on Linux (1.x; a part of uvloop's binary) begins `uv_stream_t` so, in
//! bytes:
//!
//! | offset | field | from |
//! |---|---|---|
//! | 0 | `data` | `UV_HANDLE_FIELDS` |
//! | 8 | `loop` | |
//! | 16 | `type`, then padding | |
//! | 24 | `close_cb` | |
//! | 32 | `handle_queue`, two pointers | |
//! | 48 | `u`, four pointers | |
//! | 80 | `next_closing` | `UV_HANDLE_PRIVATE_FIELDS` |
//! | 88 | `flags`, then padding | |
//! | 96 | `write_queue_size` | `UV_STREAM_FIELDS` |
//! | 104 | `alloc_cb` | |
//! | 112 | `read_cb` | |
//! | 120 | `connect_req` | `UV_STREAM_PRIVATE_FIELDS` |
//! | 128 | `shutdown_req` | |
//! | 136 | `io_watcher.cb` | `uv__io_t` |
//! | 144 | `io_watcher.pending_queue`, two pointers | |
//! | 160 | `io_watcher.watcher_queue`, two pointers | |
//! | 176 | `io_watcher.pevents`, `.events` | |
//! | 184 | `io_watcher.fd` | |
//!
//! uvloop stores the transport in `data`, which lets every use check itself.
//! The way from a TLS session's transport to the one below it is a matter of
//! the kernel side alone, see `ebpf/src/servers.rs`.

use pyframes::{Error, Layout, Memory};

/// Offset of `io_watcher.fd` in `uv_stream_t`, bytes.
pub const STREAM_FD: u32 = 184;

/// The module, class and method through which transports queue bytes, as
/// [`super::interpreter::Interpreter::method_address`] takes them.
pub const WRITE: (&str, &str, &str) = ("uvloop.loop", "UVStream", "write");

/// Offset of `_handle` in uvloop's `UVHandle`, bytes.
pub const fn handle_offset(layout: &Layout) -> u32 {
    layout.object.size + 8
}

/// The descriptor of a live transport, if its handle refers back to it.
pub fn stream_fd<M: Memory>(memory: &M, layout: &Layout, transport: u64) -> Result<i32, Error> {
    let handle = memory.pointer(transport.wrapping_add(u64::from(handle_offset(layout))))?;
    if memory.u64(handle)? != transport {
        return Err(Error::WrongType);
    }
    memory
        .u32(handle.wrapping_add(u64::from(STREAM_FD)))
        .map(u32::cast_signed)
}
