//! Copies transferred bytes into the ring, within a budget per message.

use core::hint::black_box;

use abi::counter::Counter;
use abi::map::{Connection, Target};
use abi::record::{Data, Owner, TAIL, direction, flag, kind, role};
use aya_ebpf::helpers::bpf_get_current_pid_tgid;
use aya_ebpf::helpers::generated::bpf_ktime_get_ns;
use aya_ebpf::programs::RawTracePointContext;

use crate::contexts::{self, Finding, Place};
use crate::counters::{add, count};
use crate::maps::{EVENTS, Pending, SCRATCH, STEPS, Thread, step, thread_flag};
use crate::{connections, emit, processes, stacks, threads, tls, user};

/// Where the bytes of a transfer are in the process's memory.
///
/// Every field is always written: the unused payload of an enum would be
/// undefined, and the verifier refuses a register that the compiler left so.
#[derive(Clone, Copy)]
pub(crate) struct Source {
    /// Address of the buffer, or of an array of `struct iovec`.
    address: u64,
    /// Elements of the array; [`BUFFER`] for one buffer, 0 for nothing to
    /// look at.
    elements: u64,
}

/// Marks a [`Source`] that is one buffer.
const BUFFER: u64 = u64::MAX;

impl Source {
    /// The kernel moved the bytes by itself.
    pub(crate) const UNSEEN: Self = Self {
        address: 0,
        elements: 0,
    };

    /// One buffer.
    #[inline(always)]
    pub(crate) fn buffer(address: u64) -> Self {
        Self {
            address,
            elements: BUFFER,
        }
    }

    /// An array of `struct iovec` and its length.
    #[inline(always)]
    pub(crate) fn vector(address: u64, elements: u64) -> Self {
        Self {
            address,
            elements: if elements < MAX_ELEMENTS {
                elements
            } else {
                MAX_ELEMENTS
            },
        }
    }
}

impl Source {
    /// Where the transfer's first bytes are, and how many lie there together.
    #[inline(always)]
    fn first_bytes(self, total: u64) -> FirstBytes {
        if self.elements == BUFFER {
            return FirstBytes {
                address: self.address,
                len: total,
            };
        }
        let mut first = FirstBytes { address: 0, len: 0 };
        if self.elements != 0
            && let Some([base, size]) = user::read::<[u64; 2]>(self.address, 0)
        {
            first.address = base;
            first.len = if size < total { size } else { total };
        }
        first
    }
}

/// The first bytes of a transfer that lie together.
#[derive(Clone, Copy)]
pub(crate) struct FirstBytes {
    /// Where.
    pub(crate) address: u64,
    /// How many.
    pub(crate) len: u64,
}

/// Payload bytes copied of one message that a client sends: enough for any
/// head a server accepts.
#[unsafe(no_mangle)]
static REQUEST_BUDGET: u32 = 16 * 1024;

/// Payload bytes copied of one message that a server sends: enough for its
/// head; bodies are counted.
#[unsafe(no_mangle)]
static RESPONSE_BUDGET: u32 = 4 * 1024;

/// Elements of an I/O vector that are looked at; the rest is counted. Each is
/// a tail call, of which the kernel allows 32, and a walk takes most.
const MAX_ELEMENTS: u64 = 8;
/// Payload sizes for which a record is reserved; powers of two, so that a
/// mask can prove the bound.
const SMALL: u32 = 256;
const MEDIUM: u32 = 1024;
const LARGE: u32 = 4096;
const HUGE: u32 = 16384;

/// A record with room for payload.
#[repr(C)]
struct Record<const N: usize> {
    data: Data,
    payload: [u8; N],
}

/// Bytes were transferred on a descriptor: records them, unless they are of no
/// connection. Where they may be a TLS session's records, another program goes
/// on.
#[inline(always)]
pub(crate) fn begin(
    ctx: &RawTracePointContext,
    pid_tgid: u64,
    target: &Target,
    fd: i32,
    way: u8,
    source: Source,
    total: u64,
) {
    let pid = (pid_tgid >> 32) as u32;
    let Some(connection) = connections::find(pid, fd) else {
        return;
    };
    let Some(thread) = threads::entry(pid_tgid) else {
        // User space is to see the gap.
        if !tls::may_be_sealed(connection) {
            count_bytes(connection, way, total);
        }
        return;
    };
    let Some(pending) = pending() else {
        return;
    };
    pending.data.fd = fd;
    pending.data.direction = way;
    pending.data.conn = connection.id;
    pending.vector = source.address;
    pending.elements = source.elements;
    pending.left = total;
    if tls::is_plain(thread, connection) {
        return record_transfer(ctx, pid_tgid, target, thread, connection, pending);
    }
    // SAFETY: nothing here waits to be dropped.
    unsafe { STEPS.tail_call(ctx, step::JUDGE) };
    count(Counter::TransferCutOff);
}

/// What [`begin`] left for the programs that continue it.
struct Begun {
    pid_tgid: u64,
    target: &'static Target,
    thread: &'static mut Thread,
    connection: &'static mut Connection,
    pending: &'static mut Pending,
}

/// What was left, if the connection is still there.
#[inline(always)]
fn begun() -> Option<Begun> {
    let pending = pending()?;
    let pid_tgid = bpf_get_current_pid_tgid();
    let pid = (pid_tgid >> 32) as u32;
    let connection = connections::held(pid, pending.data.fd, pending.data.conn)?;
    let target = processes::target(pid)?;
    let Some(thread) = threads::known(pid_tgid) else {
        // Its entry is there until the thread ends.
        count(Counter::TransferCutOff);
        return None;
    };
    Some(Begun {
        pid_tgid,
        target,
        thread,
        connection,
        pending,
    })
}

/// Goes on where [`begin`] left off: unless the bytes are a TLS session's
/// records, continues with the program that records them.
#[inline(always)]
pub(crate) fn judge(ctx: &RawTracePointContext) {
    let Some(Begun {
        pid_tgid,
        target,
        thread,
        connection,
        pending,
    }) = begun()
    else {
        return;
    };
    let source = Source {
        address: pending.vector,
        elements: pending.elements,
    };
    let first = source.first_bytes(pending.left);
    let Data { fd, direction, .. } = pending.data;
    if tls::is_sealed(pid_tgid, target, thread, connection, fd, direction, first) {
        return;
    }
    // SAFETY: nothing here waits to be dropped.
    unsafe { STEPS.tail_call(ctx, step::TRANSFER) };
    count(Counter::TransferCutOff);
}

/// Goes on where [`judge`] left off.
#[inline(always)]
pub(crate) fn transfer(ctx: &RawTracePointContext) {
    if let Some(Begun {
        pid_tgid,
        target,
        thread,
        connection,
        pending,
    }) = begun()
    {
        record_transfer(ctx, pid_tgid, target, thread, connection, pending);
    }
}

/// Records the pending transfer.
#[inline(always)]
fn record_transfer(
    ctx: &RawTracePointContext,
    pid_tgid: u64,
    target: &Target,
    thread: &mut Thread,
    connection: &mut Connection,
    pending: &mut Pending,
) {
    let pid = (pid_tgid >> 32) as u32;
    // Read again, so that the verifier follows what comes once and not for
    // each system call.
    let pending = black_box(pending);
    let fd = pending.data.fd;
    let way = pending.data.direction;
    let total = pending.left;
    let sent = way == direction::SENT;
    turn(connection, way);
    let offset = count_bytes(connection, way, total);
    pending.walk = stacks::at_transfer(target, connection, way);
    // As above.
    let pending = black_box(pending);
    let walk = pending.walk;
    let asks = sent && connection.role != role::SERVER;
    let reads = !sent && connection.role != role::CLIENT;
    let place = contexts::place_if(target, thread, asks || reads || walk.moments != 0);
    let mut finding = Finding::NONE;
    let mut started = 0;
    if sent {
        started = thread.entered;
        thread.entered = 0;
        if asks {
            finding = contexts::sender(pid, target, connection, thread, place);
        }
        if thread.owner.conn == connection.id {
            thread.flags |= thread_flag::ANSWERED;
        }
    } else if reads {
        let owner = Owner {
            conn: connection.id,
            offset,
        };
        contexts::read_by(pid_tgid, target, thread, place, connection, owner, fd);
    }
    let data = &mut pending.data;
    data.kind = kind::DATA;
    data.rule = finding.rule;
    data.flags = 0;
    data.pid = pid;
    data.tid = pid_tgid as u32;
    data.offset = offset;
    data.len = 0;
    data.captured = 0;
    data.started = started;
    // SAFETY: the helper has no preconditions.
    data.at = unsafe { bpf_ktime_get_ns() };
    data.owner = finding.owner;
    data.pad = 0;
    data.tail = [0; TAIL];
    if walk.moments != 0 {
        stacks::walk_transfer(ctx, pid_tgid, target, place, connection, walk, data);
    }
    if pending.elements == BUFFER {
        return segment(
            &mut pending.data,
            &mut connection.budget,
            pending.vector,
            clamp(total),
        );
    }
    next_element(ctx, pending);
}

/// What the application has read from or written to a TLS session.
#[derive(Clone, Copy)]
pub(crate) struct Plaintext {
    /// See [`direction`].
    pub(crate) way: u8,
    /// The connection's descriptor.
    pub(crate) fd: i32,
    /// Where it is in the process's memory.
    pub(crate) address: u64,
    /// Its length.
    pub(crate) len: u64,
    /// When a write began, or 0.
    pub(crate) started: u64,
}

/// Plaintext went through a TLS session that the connection carries.
///
/// On the program's own stack, not in [`SCRATCH`], which is for programs on
/// system calls.
#[inline(always)]
pub(crate) fn plaintext(
    pid_tgid: u64,
    target: &Target,
    thread: &mut Thread,
    connection: &mut Connection,
    plaintext: Plaintext,
) {
    let Plaintext {
        way,
        fd,
        address,
        len,
        started,
    } = plaintext;
    let pid = (pid_tgid >> 32) as u32;
    let place = contexts::place(target, thread);
    turn(connection, way);
    let offset = count_bytes(connection, way, len);
    let mut finding = Finding::NONE;
    if way == direction::RECEIVED {
        connection.walked = 0;
        if connection.role != role::CLIENT {
            let owner = Owner {
                conn: connection.id,
                offset,
            };
            let outside = connection.outside != 0;
            match place {
                Some(Place {
                    context,
                    entered: true,
                    ..
                }) if outside => {
                    contexts::plaintext_read_in(
                        pid_tgid, target, thread, connection, context, owner, fd,
                    );
                }
                _ => contexts::read_by(pid_tgid, target, thread, place, connection, owner, fd),
            }
        }
    } else {
        if connection.role != role::SERVER {
            finding = contexts::current_owner(pid, target, thread, place);
        }
        if thread.owner.conn == connection.id {
            thread.flags |= thread_flag::ANSWERED;
        }
    }
    let mut data = Data {
        kind: kind::DATA,
        direction: way,
        rule: finding.rule,
        flags: flag::TLS,
        pid,
        tid: pid_tgid as u32,
        fd,
        conn: connection.id,
        offset,
        len: 0,
        captured: 0,
        started,
        // SAFETY: the helper has no preconditions.
        at: unsafe { bpf_ktime_get_ns() },
        owner: finding.owner,
        pad: 0,
        tail: [0; TAIL],
    };
    segment(&mut data, &mut connection.budget, address, clamp(len));
}

/// Plaintext was written to a TLS session whose connection is not known yet.
#[inline(always)]
pub(crate) fn held(
    pid_tgid: u64,
    target: &Target,
    thread: &Thread,
    ssl: u64,
    offset: u64,
    plaintext: Plaintext,
) {
    let pid = (pid_tgid >> 32) as u32;
    let place = contexts::place(target, thread);
    let finding = contexts::current_owner(pid, target, thread, place);
    let mut data = Data {
        kind: kind::TLS_HELD,
        direction: direction::SENT,
        rule: finding.rule,
        flags: flag::TLS,
        pid,
        tid: pid_tgid as u32,
        fd: plaintext.fd,
        conn: ssl,
        offset,
        len: 0,
        captured: 0,
        started: plaintext.started,
        // SAFETY: the helper has no preconditions.
        at: unsafe { bpf_ktime_get_ns() },
        owner: finding.owner,
        pad: 0,
        tail: [0; TAIL],
    };
    let mut whole = budget(role::CLIENT, direction::SENT);
    segment(
        &mut data,
        &mut whole,
        plaintext.address,
        clamp(plaintext.len),
    );
}

/// Gives the connection a new budget where a message may begin.
#[inline(always)]
fn turn(connection: &mut Connection, way: u8) {
    let first = connection.received == 0 && connection.sent == 0;
    if first || connection.direction != way {
        connection.direction = way;
        connection.budget = budget(connection.role, way);
    }
}

/// Adds bytes to a direction's stream; returns the offset of the first.
#[inline(always)]
fn count_bytes(connection: &mut Connection, way: u8, len: u64) -> u64 {
    let count = if way == direction::RECEIVED {
        &mut connection.received
    } else {
        &mut connection.sent
    };
    let offset = *count;
    *count = offset.wrapping_add(len);
    offset
}

/// Goes on with the pending transfer, which a walk has held up.
#[inline(always)]
pub(crate) fn resume(ctx: &RawTracePointContext) {
    if let Some(pending) = pending() {
        next_element(ctx, pending);
    }
}

/// One element of the I/O vector that the pending transfer came in, or its
/// only buffer; the next one is another run of the program.
#[inline(always)]
pub(crate) fn element(ctx: &RawTracePointContext) {
    let Some(pending) = pending() else {
        return;
    };
    let data = &mut pending.data;
    let Some(connection) = connections::held(data.pid, data.fd, data.conn) else {
        return;
    };
    if pending.elements == BUFFER {
        return segment(
            data,
            &mut connection.budget,
            pending.vector,
            clamp(pending.left),
        );
    }
    let Some([base, size]) = user::read::<[u64; 2]>(pending.vector, 0) else {
        return unseen(data, pending.left);
    };
    let part = if size < pending.left {
        size
    } else {
        pending.left
    };
    if part != 0 {
        segment(data, &mut connection.budget, base, clamp(part));
        pending.left -= part;
        data.offset = data.offset.wrapping_add(part);
    }
    if pending.left == 0 {
        return;
    }
    pending.vector = pending.vector.wrapping_add(16);
    pending.elements = pending.elements.wrapping_sub(1);
    next_element(ctx, pending);
}

/// Goes on with the pending vector; counts what is left of the transfer where
/// it is over or too long.
#[inline(always)]
fn next_element(ctx: &RawTracePointContext, pending: &mut Pending) {
    if pending.elements != 0 {
        // SAFETY: nothing here waits to be dropped.
        unsafe { STEPS.tail_call(ctx, step::ELEMENT) };
    }
    unseen(&mut pending.data, pending.left);
}

/// Records bytes that were transferred and not looked at.
#[inline(always)]
fn unseen(data: &mut Data, len: u64) {
    data.flags = flag::UNSEEN;
    data.len = clamp(len);
    data.captured = 0;
    data.tail = [0; TAIL];
    headless(data);
}

/// This CPU's pending transfer.
#[inline(always)]
fn pending() -> Option<&'static mut Pending> {
    // SAFETY: the scratch belongs to this CPU, and only `syscall_exit` and
    // what it calls use it, with preemption off.
    SCRATCH
        .get_ptr_mut(0)
        .map(|pending| unsafe { &mut *pending })
}

/// Copies one buffer, as far as the budget goes, and records its length.
#[inline(always)]
fn segment(data: &mut Data, left: &mut u32, address: u64, len: u32) {
    let budget = *left;
    let mut captured = len;
    if captured > budget {
        // Where messages follow each other without an answer between them
        // (pipelining), a new one begins at the start of a transfer.
        captured = if budget > SMALL { budget } else { SMALL };
        if captured > len {
            captured = len;
        }
    }
    if captured > HUGE {
        captured = HUGE;
    }
    *left = budget.saturating_sub(captured);
    data.len = len;
    data.captured = captured;
    data.tail = [0; TAIL];
    if captured < len {
        add(Counter::BytesOverBudget, u64::from(len - captured));
        if len >= TAIL as u32
            && let Some(tail) = user::read::<[u8; TAIL]>(address, i64::from(len) - TAIL as i64)
        {
            data.tail = tail;
        }
    }
    if captured == 0 {
        headless(data);
    } else if captured <= SMALL {
        record::<{ SMALL as usize }>(data, address);
    } else if captured <= MEDIUM {
        record::<{ MEDIUM as usize }>(data, address);
    } else if captured <= LARGE {
        record::<{ LARGE as usize }>(data, address);
    } else {
        record::<{ HUGE as usize }>(data, address);
    }
}

/// Writes a record with `data.captured` bytes of payload, 1 to `N`.
#[inline(always)]
fn record<const N: usize>(data: &Data, address: u64) {
    let Some(mut entry) = EVENTS.reserve::<Record<N>>(0) else {
        count(Counter::DataRingFull);
        return;
    };
    let into = entry.as_mut_ptr();
    // The compiler knows the bound and would drop the mask that shows it to
    // the verifier; the volatile read makes it forget.
    // SAFETY: `data` is a reference.
    let captured = unsafe { core::ptr::read_volatile(&raw const data.captured) };
    let len = (captured.wrapping_sub(1) & (N as u32 - 1)) + 1;
    // SAFETY: `into` points to reserved ring memory of the type's size, and
    // `len` is at most N.
    unsafe {
        (*into).data = *data;
        if !user::copy(address, (&raw mut (*into).payload).cast(), len) {
            // The bytes went through all the same: only their sight is lost.
            (*into).data.captured = 0;
            count(Counter::PayloadFault);
        }
    }
    entry.submit(emit::flags());
    count(Counter::RecordsWritten);
}

/// Writes a record without payload.
#[inline(always)]
fn headless(data: &Data) {
    emit::record(data, Counter::DataRingFull);
}

#[inline(always)]
fn budget(end: u8, way: u8) -> u32 {
    let response = matches!(
        (end, way),
        (role::SERVER, direction::SENT) | (role::CLIENT, direction::RECEIVED)
    );
    let source = if response {
        &raw const RESPONSE_BUDGET
    } else {
        &raw const REQUEST_BUDGET
    };
    // SAFETY: `source` points to a static; the volatile read keeps the
    // compiler from using the value it has at build time.
    unsafe { core::ptr::read_volatile(source) }
}

/// No system call transfers more than 2 GiB (MAX_RW_COUNT).
#[inline(always)]
fn clamp(len: u64) -> u32 {
    if len > u64::from(u32::MAX) {
        u32::MAX
    } else {
        len as u32
    }
}
