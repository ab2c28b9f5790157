//! Connections of target processes: opened, duplicated, closed.

use abi::counter::Counter;
use abi::map::{Connection, Descriptor};
use abi::record::{Close, Open, kind, role};
use aya_ebpf::helpers::bpf_get_current_task;
use aya_ebpf::helpers::generated::{bpf_get_smp_processor_id, bpf_ktime_get_ns};

use crate::counters::count;
use crate::emit;
use crate::kernel::{self, offset};
use crate::maps::{CONNECTIONS, MUTED};

const AF_UNIX: u16 = 1;
const AF_INET: u16 = 2;
const AF_INET6: u16 = 10;
const SOCK_STREAM: u16 = 1;
/// Every 16th call asks whether the agent has muted the connection.
const MUTE_CHECK_MASK: u32 = 15;
/// Length of `sockaddr_un.sun_path`.
const MAX_PATH: u32 = 108;

/// The connection on a descriptor, unless it is muted.
#[inline(always)]
pub(crate) fn find(pid: u32, fd: i32) -> Option<&'static mut Connection> {
    let connection = CONNECTIONS.get_ptr_mut(Descriptor { pid, fd })?;
    // SAFETY: the map's values outlive the program run. Two threads that use
    // one connection at once may lose a count, which user space sees as a
    // gap or an overlap of offsets.
    let connection = unsafe { &mut *connection };
    if connection.muted != 0 {
        count(Counter::MutedCalls);
        return None;
    }
    connection.calls = connection.calls.wrapping_add(1);
    if connection.calls & MUTE_CHECK_MASK == 4 && MUTED.get_ptr(connection.id).is_some() {
        connection.muted = 1;
        return None;
    }
    Some(connection)
}

/// The connection on a descriptor, if it is still the one with this id.
#[inline(always)]
pub(crate) fn held(pid: u32, fd: i32, id: u64) -> Option<&'static mut Connection> {
    let connection = CONNECTIONS.get_ptr_mut(Descriptor { pid, fd })?;
    // SAFETY: as in `find`.
    let connection = unsafe { &mut *connection };
    (connection.id == id).then_some(connection)
}

/// The part that the process plays on a descriptor's connection; none if the
/// descriptor is no connection.
#[inline(always)]
pub(crate) fn role(pid: u32, fd: i32) -> Option<u8> {
    let connection = CONNECTIONS.get_ptr(Descriptor { pid, fd })?;
    // SAFETY: the map's values outlive the program run.
    Some(unsafe { (*connection).role })
}

/// A descriptor became a connection. So does a duplicate of a connection's
/// descriptor: from here on it is a connection of its own, so that offsets of
/// the two never mix.
#[inline(always)]
pub(crate) fn open(pid_tgid: u64, fd: i32, role: u8) {
    let Some(socket) = socket_of(fd) else {
        return;
    };
    let Some(sock) = kernel::pointer(socket, offset!(socket_sk)) else {
        return;
    };
    if kernel::read::<u16>(socket, offset!(socket_type)) != Some(SOCK_STREAM) {
        return;
    }
    let Some(family) = kernel::read::<u16>(sock, offset!(skc_family)) else {
        return;
    };
    if family != AF_UNIX && family != AF_INET && family != AF_INET6 {
        return;
    }
    let pid = (pid_tgid >> 32) as u32;
    let connection = Connection {
        id: new_id(),
        role,
        ..Connection::default()
    };
    if CONNECTIONS
        .insert(Descriptor { pid, fd }, connection, 0)
        .is_err()
    {
        count(Counter::ConnectionTableFull);
        return;
    }
    let Some(mut entry) = crate::maps::EVENTS.reserve::<Open>(0) else {
        count(Counter::ConnectionRingFull);
        return;
    };
    let record = entry.as_mut_ptr();
    // SAFETY: `record` points to reserved ring memory of the type's size;
    // every field is written before the record is submitted.
    unsafe {
        (*record).kind = kind::OPEN;
        (*record).role = role;
        (*record).family = family as u8;
        (*record).pad = 0;
        (*record).pid = pid;
        (*record).tid = pid_tgid as u32;
        (*record).fd = fd;
        (*record).conn = connection.id;
        (*record).at = bpf_ktime_get_ns();
        (*record).local = [0; 16];
        (*record).peer = [0; 16];
        (*record).local_port = 0;
        (*record).peer_port = 0;
        (*record).pad2 = 0;
        (*record).path = [0; 112];
    }
    // SAFETY: as above; the reference is to initialised memory.
    let record = unsafe { &mut *record };
    let read = if family == AF_UNIX {
        unix_name(sock, role, record)
    } else {
        addresses(sock, family, record)
    };
    if read.is_none() {
        count(Counter::SocketUnreadable);
    }
    entry.submit(emit::flags());
    count(Counter::RecordsWritten);
}

/// A descriptor is about to be closed or replaced.
#[inline(always)]
pub(crate) fn close(pid: u32, fd: i32) {
    let key = Descriptor { pid, fd };
    let Some(connection) = CONNECTIONS.get_ptr(key) else {
        return;
    };
    // SAFETY: the map's values outlive the program run.
    let connection = unsafe { *connection };
    let _raced = CONNECTIONS.remove(key);
    if connection.muted != 0 {
        return;
    }
    let record = Close {
        kind: kind::CLOSE,
        tls: connection.tls,
        pad: [0; 2],
        pid,
        conn: connection.id,
        // SAFETY: the helper has no preconditions.
        at: unsafe { bpf_ktime_get_ns() },
        received: connection.received,
        sent: connection.sent,
    };
    emit::record(&record, Counter::ConnectionRingFull);
}

/// An id that no other connection has: time and processor.
#[inline(always)]
fn new_id() -> u64 {
    // SAFETY: the helper has no preconditions.
    id_of(unsafe { bpf_ktime_get_ns() })
}

/// The same, of a time that was just read.
#[inline(always)]
pub(crate) fn id_of(now: u64) -> u64 {
    // SAFETY: the helper has no preconditions.
    let cpu = unsafe { bpf_get_smp_processor_id() };
    // 12 bits of processor and 51 of time: unique for 26 days of uptime and
    // beyond that unless two connections fall on one nanosecond 26 days
    // apart. The top bit belongs to ids that the agent gives.
    ((now << 12) | u64::from(cpu & 0xfff)) & !(1 << 63)
}

/// The `struct socket` behind a descriptor of the current process.
///
/// A file is a socket if its private data points back to it: no other kind
/// of file has its own address at that place.
#[inline(always)]
fn socket_of(fd: i32) -> Option<u64> {
    // SAFETY: the helper has no preconditions.
    let task = unsafe { bpf_get_current_task() };
    let files = kernel::pointer(task, offset!(task_files))?;
    let table = kernel::pointer(files, offset!(files_fdt))?;
    let max = kernel::read::<u32>(table, offset!(fdt_max_fds))?;
    if fd < 0 || fd as u32 >= max {
        return None;
    }
    let array = kernel::pointer(table, offset!(fdt_fd))?;
    let file = kernel::pointer(array.wrapping_add(fd as u64 * 8), 0)?;
    let socket = kernel::pointer(file, offset!(file_private_data))?;
    (kernel::read::<u64>(socket, offset!(socket_file))? == file).then_some(socket)
}

#[inline(always)]
fn addresses(sock: u64, family: u16, record: &mut Open) -> Option<()> {
    if family == AF_INET6 {
        record.peer = kernel::read(sock, offset!(skc_v6_daddr))?;
        record.local = kernel::read(sock, offset!(skc_v6_rcv_saddr))?;
    } else {
        let peer: [u8; 4] = kernel::read(sock, offset!(skc_daddr))?;
        let local: [u8; 4] = kernel::read(sock, offset!(skc_rcv_saddr))?;
        record.peer[..4].copy_from_slice(&peer);
        record.local[..4].copy_from_slice(&local);
    }
    record.peer_port = u16::from_be(kernel::read(sock, offset!(skc_dport))?);
    record.local_port = kernel::read(sock, offset!(skc_num))?;
    Some(())
}

/// The listening side's path: an accepted socket shares it, a connected one
/// finds it at its peer.
#[inline(always)]
fn unix_name(sock: u64, role: u8, record: &mut Open) -> Option<()> {
    if offset!(unix_addr) == u32::MAX {
        return Some(());
    }
    let owner = if role == role::CLIENT {
        kernel::pointer(sock, offset!(unix_peer))?
    } else {
        sock
    };
    let Some(address) = kernel::pointer(owner, offset!(unix_addr)) else {
        return Some(());
    };
    // `len` counts the two bytes of the family, which `sun_path` follows.
    let len = kernel::read::<u32>(address, offset!(unix_address_len))?.saturating_sub(2);
    let len = if len > MAX_PATH { MAX_PATH } else { len };
    let name = address
        .wrapping_add(u64::from(offset!(unix_address_name)))
        .wrapping_add(2);
    // SAFETY: `path` is longer than MAX_PATH.
    unsafe { kernel::copy(name, (&raw mut record.path).cast(), len) }.then_some(())
}
