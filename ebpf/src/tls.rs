//! TLS sessions of OpenSSL: which connection carries which, and the plaintext
//! that goes through them.
//!
//! The probes are on the calls of OpenSSL's functions, in the code that makes
//! them (CPython's `_ssl`), and on the instruction after a call where its
//! result is at hand. Nothing depends on OpenSSL's structures. ARCHITECTURE.md
//! has the evidence by which a session and a connection are joined.

use abi::counter::{Counter, Evicting};
use abi::map::{Connection, Target, target_flag, tls};
use abi::record::{TlsJoin, direction, kind, role};
use aya_ebpf::helpers::bpf_get_current_pid_tgid;
use aya_ebpf::helpers::generated::bpf_ktime_get_ns;
use aya_ebpf::programs::ProbeContext;

use crate::capture::{self, FirstBytes, Plaintext};
use crate::contexts::{self, Finding};
use crate::counters::count;
use crate::maps::{
    Fed, RECORD_BYTES, RECORD_KEY, RECORDS, Received, SESSIONS, Thread, TlsCall, TlsCarrier,
    TlsObject, TlsRecord, TlsSession, thread_flag,
};
use crate::{connections, emit, evicting, processes, seal, stacks, threads, user};

/// Bytes of a record's header: type, version, length (RFC 8446, section 5.1).
const HEADER_BYTES: usize = 5;
/// Record types, from `change_cipher_spec` to `application_data`.
const FIRST_TYPE: u8 = 20;
const HANDSHAKE: u8 = 22;
const APPLICATION_DATA: u8 = 23;
/// A record's longest content: 2^14 and what a cipher may add (RFC 5246,
/// section 6.2.3).
const MAX_RECORD: u16 = (1 << 14) + 2048;
/// Handshake messages that begin with their sender's random bytes.
const CLIENT_HELLO: u8 = 1;
const SERVER_HELLO: u8 = 2;
/// What a client of PostgreSQL sends to ask for TLS (protocol 3.0, SSLRequest),
/// as one number; the server's answer is one byte.
const SSL_REQUEST: u64 = u64::from_ne_bytes([0, 0, 0, 8, 4, 210, 22, 47]);
/// Its bytes.
const SSL_REQUEST_BYTES: u64 = 8;
/// Calls after which a connection older than the attach is believed to carry
/// no TLS.
const OLD_CALLS: u32 = 64;
/// Ids that the agent gave: of connections older than the attach.
const SEEDED: u64 = 1 << 63;
/// Words at the beginning of an `SSL` among which its `BIO`s are: up to 3.1
/// the third and the fourth, from 3.2 on behind a structure of its own.
const SSL_WORDS: i64 = 32;

/// Bytes went through a connection in a system call: whether they are TLS
/// records, which tell us nothing. Notes what they say of the session.
#[inline(always)]
pub(crate) fn is_sealed(
    pid_tgid: u64,
    target: &Target,
    thread: &mut Thread,
    connection: &mut Connection,
    fd: i32,
    way: u8,
    first: FirstBytes,
) -> bool {
    let pid = (pid_tgid >> 32) as u32;
    if thread.flags & thread_flag::IN_TLS != 0 && carries(pid, thread, connection, fd) {
        if way == direction::RECEIVED {
            connection.outside = is_outside(target, thread);
        }
        return true;
    }
    if connection.tls == tls::UNKNOWN {
        decide(connection, first);
    }
    if connection.tls < tls::SEALED {
        return false;
    }
    if way == direction::RECEIVED && target.flags & target_flag::TLS != 0 {
        connection.outside = is_outside(target, thread);
        if connection.tls != tls::JOINED {
            remember(pid, connection.id, fd, first);
        }
    }
    true
}

/// Whether [`is_sealed`] would only say no: what a thread transfers on a
/// connection that is known to carry no TLS, outside any call of OpenSSL.
#[inline(always)]
pub(crate) fn is_plain(thread: &Thread, connection: &Connection) -> bool {
    connection.tls == tls::PLAIN && thread.flags & thread_flag::IN_TLS == 0
}

/// Whether what goes through the connection may be TLS records.
#[inline(always)]
pub(crate) fn may_be_sealed(connection: &Connection) -> bool {
    connection.tls >= tls::SEALED
}

/// Whether the thread is outside any entered context, as 1 or 0.
#[inline(always)]
fn is_outside(target: &Target, thread: &Thread) -> u8 {
    match contexts::place(target, thread) {
        Some(place) => u8::from(!place.entered),
        None => 0,
    }
}

/// Whether the connection carries the session that the thread is inside of:
/// the system call was made by OpenSSL. Joins them if neither is joined.
#[inline(always)]
fn carries(pid: u32, thread: &Thread, connection: &mut Connection, fd: i32) -> bool {
    let ssl = thread.call.ssl;
    if connection.tls == tls::JOINED && connection.ssl == ssl {
        return true;
    }
    // A callback that the application has set may do anything, so that a
    // session keeps the connection that it was found on first.
    if connection.tls == tls::JOINED || carrier(pid, ssl).is_some() {
        return false;
    }
    let carrier = TlsCarrier {
        conn: connection.id,
        fd,
        pad: 0,
    };
    join(pid, ssl, connection, carrier)
}

/// Looks whether a connection begins with a TLS record; one that is older
/// than the attach may be in the middle of one.
#[inline(always)]
fn decide(connection: &mut Connection, first: FirstBytes) {
    if negotiates(connection, first) {
        return;
    }
    let old = connection.id & SEEDED != 0;
    if looks_sealed(first) {
        connection.tls = tls::SEALED;
    } else if !old || connection.calls > OLD_CALLS {
        connection.tls = tls::PLAIN;
    }
}

/// Whether a connection begins with the question for TLS, or the bytes are the
/// answer to it: what follows may be records.
#[inline(always)]
fn negotiates(connection: &Connection, first: FirstBytes) -> bool {
    if connection.received != 0 {
        return false;
    }
    if connection.sent == 0 && first.len == SSL_REQUEST_BYTES {
        return user::read::<u64>(first.address, 0) == Some(SSL_REQUEST);
    }
    // Nothing else is undecided after so many bytes.
    connection.sent == SSL_REQUEST_BYTES && first.len == 1
}

#[inline(always)]
fn looks_sealed(first: FirstBytes) -> bool {
    if first.len < HEADER_BYTES as u64 {
        return false;
    }
    let Some(header) = user::read::<[u8; HEADER_BYTES]>(first.address, 0) else {
        return false;
    };
    let [kind, major, minor, length @ ..] = header;
    let length = u16::from_be_bytes(length);
    // One expression: a branch for each part would cost the verifier more.
    let kind = kind.wrapping_sub(FIRST_TYPE) <= APPLICATION_DATA - FIRST_TYPE;
    let version = major == 3 && minor <= 4;
    kind & version & (length.wrapping_sub(1) < MAX_RECORD)
}

/// Remembers from which connection the records came, until they are put into
/// a `BIO`.
#[inline(always)]
fn remember(pid: u32, conn: u64, fd: i32, first: FirstBytes) {
    let Some(key) = RECORD_KEY.get_ptr_mut(0) else {
        return;
    };
    // SAFETY: the key belongs to this CPU, and only programs on system calls
    // use it, with preemption off.
    let key = unsafe { &mut *key };
    if !identify(key, pid, first) {
        return;
    }
    let key: &TlsRecord = key;
    let mut received = Received {
        carrier: TlsCarrier { conn, fd, pad: 0 },
        seal: 0,
    };
    if let Some(known) = RECORDS.get_ptr(key) {
        // SAFETY: the map's values outlive the program run.
        if unsafe { (*known).carrier.conn } != conn {
            count(Counter::TlsAmbiguous);
            received.carrier.conn = 0;
        }
    }
    received.seal = record_seal(key, &received);
    // Where the table is full another chance comes with the next records.
    let _full = evicting::put(&RECORDS, Evicting::Records, key, &received);
}

#[inline(always)]
fn record_seal(key: &TlsRecord, value: &Received) -> u64 {
    // Among the bytes are those that no other record has.
    let mut words = [0; 4];
    for (index, word) in words.iter_mut().enumerate() {
        let at = HEADER_BYTES + 1 + index * 8;
        let mut bytes = [0; 8];
        bytes.copy_from_slice(&key.bytes[at..at + 8]);
        *word = u64::from_le_bytes(bytes);
    }
    let [first, second, third, fourth] = words;
    seal::of([
        first,
        second,
        third,
        fourth,
        seal::pair(key.pid, value.carrier.fd as u32),
        value.carrier.conn,
    ])
}

/// Takes the beginning of records for a key, unless another connection might
/// come with the same: random bytes or a ciphertext must be among it.
#[inline(always)]
fn identify(key: &mut TlsRecord, pid: u32, first: FirstBytes) -> bool {
    if first.len < RECORD_BYTES as u64 {
        return false;
    }
    key.pid = pid;
    key.pad = 0;
    // SAFETY: the key has room for as many bytes.
    if !unsafe { user::copy(first.address, key.bytes.as_mut_ptr(), RECORD_BYTES as u32) } {
        return false;
    }
    let message = key.bytes[HEADER_BYTES];
    let hello = message == CLIENT_HELLO || message == SERVER_HELLO;
    key.bytes[0] == APPLICATION_DATA || key.bytes[0] == HANDSHAKE && hello
}

/// The application put bytes into a `BIO`.
#[inline(always)]
pub(crate) fn fed(bio: u64, address: u64, len: u64) {
    let pid_tgid = bpf_get_current_pid_tgid();
    let pid = (pid_tgid >> 32) as u32;
    if processes::target(pid).is_none() {
        return;
    }
    let first = FirstBytes {
        address,
        len: len & 0xffff_ffff,
    };
    let mut key = TlsRecord {
        bytes: [0; RECORD_BYTES],
        pid,
        pad: 0,
    };
    if !identify(&mut key, pid, first) {
        return;
    }
    let key = &key;
    let Some(known) = RECORDS.get_ptr(key) else {
        return;
    };
    // SAFETY: the map's values outlive the program run.
    let received = unsafe { *known };
    evicting::remove(&RECORDS, Evicting::Records, key);
    if received.seal == record_seal(key, &received)
        && received.carrier.conn != 0
        && let Some(thread) = threads::entry(pid_tgid)
    {
        thread.fed = Fed {
            bio,
            carrier: received.carrier,
        };
    }
}

/// A session is about to go on with its handshake.
#[inline(always)]
pub(crate) fn handshake(ssl: u64) {
    let pid_tgid = bpf_get_current_pid_tgid();
    let pid = (pid_tgid >> 32) as u32;
    if processes::target(pid).is_some()
        && carrier(pid, ssl).is_none()
        && let Some(thread) = threads::known(pid_tgid)
    {
        join_fed(pid, thread, ssl);
    }
}

/// The application is about to read from a session.
#[inline(always)]
pub(crate) fn begins_read(ctx: &ProbeContext, extended: bool) {
    let _carrier = begins(ctx, extended);
}

/// The application is about to write to a session: the moment to walk its
/// stack.
#[inline(always)]
pub(crate) fn begins_write(ctx: &ProbeContext, extended: bool) {
    let Some(carrier) = begins(ctx, extended) else {
        return;
    };
    let pid_tgid = bpf_get_current_pid_tgid();
    let pid = (pid_tgid >> 32) as u32;
    let Some(connection) = connections::held(pid, carrier.fd, carrier.conn) else {
        return;
    };
    let (Some(target), Some(thread)) = (processes::target(pid), threads::entry(pid_tgid)) else {
        return;
    };
    let walk = stacks::moment_of(target, connection);
    if connection.muted != 0 || walk.moments == 0 {
        return;
    }
    let place = contexts::place(target, thread);
    let mut finding = Finding::NONE;
    if connection.role != role::SERVER {
        finding = contexts::current_owner(pid, target, thread, place);
    }
    stacks::at_queue(ctx, pid_tgid, target, place, connection, walk, finding);
}

/// Notes the call; the connection that carries its session, if it is known.
#[inline(always)]
fn begins(ctx: &ProbeContext, extended: bool) -> Option<TlsCarrier> {
    let pid_tgid = bpf_get_current_pid_tgid();
    let pid = (pid_tgid >> 32) as u32;
    processes::target(pid)?;
    let ssl: u64 = ctx.arg(0)?;
    let buffer: u64 = ctx.arg(1)?;
    let len: u64 = ctx.arg(2)?;
    let transferred: u64 = if extended { ctx.arg(3)? } else { 0 };
    let thread = threads::entry(pid_tgid)?;
    thread.call = TlsCall {
        ssl,
        buffer,
        len,
        transferred,
        // SAFETY: the helper has no preconditions.
        started: unsafe { bpf_ktime_get_ns() },
    };
    thread.flags |= thread_flag::IN_TLS;
    match carrier(pid, ssl) {
        Some(carrier) => Some(carrier),
        None => join_fed(pid, thread, ssl),
    }
}

/// The call that the thread was in has returned `result`.
#[inline(always)]
pub(crate) fn ends(result: u64, way: u8) {
    let pid_tgid = bpf_get_current_pid_tgid();
    let pid = (pid_tgid >> 32) as u32;
    let Some(target) = processes::target(pid) else {
        return;
    };
    let Some(thread) = threads::entry(pid_tgid) else {
        return;
    };
    if thread.flags & thread_flag::IN_TLS == 0 {
        return;
    }
    thread.flags &= !thread_flag::IN_TLS;
    // Both functions return an `int`.
    let result = result as u32 as i32;
    if result <= 0 {
        return;
    }
    let call = thread.call;
    let len = if call.transferred == 0 {
        result as u64
    } else {
        user::read(call.transferred, 0).unwrap_or(0)
    };
    if len == 0 || len > call.len {
        return;
    }
    let carrier = match carrier(pid, call.ssl) {
        Some(carrier) => carrier,
        None => TlsCarrier::NOWHERE,
    };
    let plaintext = Plaintext {
        way,
        fd: carrier.fd,
        address: call.buffer,
        len,
        started: if way == direction::SENT {
            call.started
        } else {
            0
        },
    };
    if carrier.conn == 0 {
        if way == direction::RECEIVED {
            contexts::unknown_read(pid_tgid, target, thread);
        }
        return unjoined(pid_tgid, target, thread, call.ssl, plaintext);
    }
    let Some(connection) = connections::find(pid, carrier.fd) else {
        return;
    };
    capture::plaintext(pid_tgid, target, thread, connection, plaintext);
}

/// Plaintext went through a session whose connection is not known. What was
/// written is held by the agent until it is; what was read is lost, as nothing
/// could be owned by it.
#[inline(always)]
fn unjoined(pid_tgid: u64, target: &Target, thread: &Thread, ssl: u64, plaintext: Plaintext) {
    let pid = (pid_tgid >> 32) as u32;
    let key = TlsObject { ssl, pid, pad: 0 };
    if SESSIONS.get_ptr(key).is_none() {
        let session = TlsSession {
            carrier: TlsCarrier::NOWHERE,
            held: 0,
            torn: 0,
            seal: 0,
        };
        let _full = note(key, session);
    }
    let Some(session) = SESSIONS.get_ptr_mut(key) else {
        return count(Counter::TlsUnjoined);
    };
    // SAFETY: the map's values outlive the program run; a session is used by
    // one thread at a time.
    let session = unsafe { &mut *session };
    let whole = session.seal == session_seal(key, session);
    // Its connection was closed.
    let parted = session.carrier.conn != 0;
    if plaintext.way == direction::RECEIVED || parted || !whole {
        session.torn = 1;
        session.seal = session_seal(key, session);
        return count(Counter::TlsUnjoined);
    }
    let offset = session.held;
    session.held = offset.wrapping_add(plaintext.len);
    session.seal = session_seal(key, session);
    capture::held(pid_tgid, target, thread, ssl, offset, plaintext);
}

/// Notes what is known of a session; whether there was room.
#[inline(always)]
fn note(key: TlsObject, mut session: TlsSession) -> bool {
    session.seal = session_seal(key, &session);
    evicting::put(&SESSIONS, Evicting::Sessions, &key, &session)
}

#[inline(always)]
fn session_seal(key: TlsObject, value: &TlsSession) -> u64 {
    seal::of([
        key.ssl,
        seal::pair(key.pid, value.carrier.fd as u32),
        value.carrier.conn,
        value.held,
        value.torn,
    ])
}

/// A session is about to be freed: its address may be another's at once.
#[inline(always)]
pub(crate) fn freed(ssl: u64) {
    let pid = (bpf_get_current_pid_tgid() >> 32) as u32;
    if processes::target(pid).is_none() {
        return;
    }
    if let Some(carrier) = carrier(pid, ssl)
        && let Some(connection) = connections::held(pid, carrier.fd, carrier.conn)
    {
        // Another session may follow on the connection.
        connection.tls = tls::PARTED;
        connection.ssl = 0;
    }
    let key = TlsObject { ssl, pid, pad: 0 };
    if let Some(session) = SESSIONS.get_ptr(key) {
        // SAFETY: the map's values outlive the program run.
        let session = unsafe { *session };
        if session.held != 0
            && session.carrier.conn == 0
            && session.seal == session_seal(key, &session)
        {
            tell(pid, ssl, &session, 0);
        }
    }
    evicting::remove(&SESSIONS, Evicting::Sessions, &key);
}

/// The connection that carries a session, if it is known and still there.
#[inline(always)]
fn carrier(pid: u32, ssl: u64) -> Option<TlsCarrier> {
    let found = SESSIONS.get_ptr(TlsObject { ssl, pid, pad: 0 })?;
    // What an evicted entry has become is not believed: the connection has to
    // name the session, too.
    // SAFETY: the map's values outlive the program run.
    let carrier = unsafe { (*found).carrier };
    if carrier.conn == 0 {
        return None;
    }
    let connection = connections::held(pid, carrier.fd, carrier.conn)?;
    (connection.tls == tls::JOINED && connection.ssl == ssl).then_some(carrier)
}

/// Whether all that the connection received is counted: it carries no TLS, or
/// the session that it is joined with is known. Of one that was evicted the
/// plaintext is not seen.
#[inline(always)]
pub(crate) fn is_followed(pid: u32, connection: &Connection) -> bool {
    if connection.tls < tls::SEALED {
        return true;
    }
    let key = TlsObject {
        ssl: connection.ssl,
        pid,
        pad: 0,
    };
    let Some(session) = SESSIONS.get_ptr(key) else {
        return false;
    };
    // SAFETY: the map's values outlive the program run.
    let session = unsafe { &*session };
    connection.tls == tls::JOINED
        && session.carrier.conn == connection.id
        && session.seal == session_seal(key, session)
}

/// Joins the session with the connection whose records the thread has put
/// into one of its `BIO`s, if it has.
#[inline(always)]
fn join_fed(pid: u32, thread: &mut Thread, ssl: u64) -> Option<TlsCarrier> {
    let Fed { bio, carrier } = thread.fed;
    if carrier.conn == 0 || !holds(ssl, bio) {
        return None;
    }
    let connection = connections::held(pid, carrier.fd, carrier.conn)?;
    if connection.tls == tls::JOINED {
        return None;
    }
    thread.fed.carrier = TlsCarrier::NOWHERE;
    join(pid, ssl, connection, carrier).then_some(carrier)
}

/// Whether the address is among the first words of an `SSL`. Those are read
/// one by one, as the stack has no room for all; it is seldom done.
#[inline(always)]
fn holds(ssl: u64, address: u64) -> bool {
    let mut found = false;
    for word in 0..SSL_WORDS {
        found |= user::read::<u64>(ssl, word * 8) == Some(address);
    }
    found
}

/// Notes that the connection carries the session.
#[inline(always)]
fn join(pid: u32, ssl: u64, connection: &mut Connection, carrier: TlsCarrier) -> bool {
    let key = TlsObject { ssl, pid, pad: 0 };
    let mut session = TlsSession {
        carrier,
        held: 0,
        torn: 0,
        seal: 0,
    };
    if let Some(before) = SESSIONS.get_ptr(key) {
        // SAFETY: the map's values outlive the program run.
        let before = unsafe { *before };
        if before.seal != session_seal(key, &before) {
            session.torn = 1;
        } else if before.carrier.conn == 0 {
            session.held = before.held;
            session.torn = before.torn;
        }
    }
    if !note(key, session) {
        return false;
    }
    if session.held != 0 {
        tell(pid, ssl, &session, connection.sent);
        if session.torn == 0 {
            connection.sent = connection.sent.wrapping_add(session.held);
        }
    }
    count(Counter::TlsJoined);
    connection.tls = tls::JOINED;
    connection.ssl = ssl;
    // Neither way: whatever comes first begins a message.
    connection.direction = u8::MAX;
    true
}

/// Tells the agent what to do with the bytes that it holds of a session.
#[inline(always)]
fn tell(pid: u32, ssl: u64, session: &TlsSession, offset: u64) {
    let record = TlsJoin {
        kind: kind::TLS_JOIN,
        pad: [0; 3],
        pid,
        ssl,
        conn: if session.torn == 0 {
            session.carrier.conn
        } else {
            0
        },
        held: session.held,
        offset,
        fd: session.carrier.fd,
        pad2: 0,
    };
    emit::record(&record, Counter::DataRingFull);
}
