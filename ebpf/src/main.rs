//! The BPF programs: they copy bytes, count, and identify whose bytes they
//! are. Protocols are parsed in user space.
//!
//! This file holds the entry points only. The agent's `probes` loads and
//! attaches them; `source` reads what they write.

#![no_std]
#![no_main]

mod arch;
mod calls;
mod capture;
mod compiles;
mod connections;
mod contexts;
mod counters;
mod emit;
mod evicting;
mod greenlets;
mod handoffs;
mod kernel;
mod maps;
mod notes;
mod processes;
mod seal;
mod servers;
mod sqlite;
mod stacks;
mod syscalls;
mod threads;
mod tls;
mod user;
mod values;

use abi::record::direction;
use aya_ebpf::helpers::bpf_get_current_pid_tgid;
use aya_ebpf::macros::{raw_tracepoint, uprobe, uretprobe};
use aya_ebpf::programs::{ProbeContext, RawTracePointContext, RetProbeContext};
use aya_log_ebpf::debug;

/// `sys_enter(struct pt_regs *regs, long id)`.
#[raw_tracepoint(tracepoint = "sys_enter")]
pub(crate) fn syscall_enter(ctx: RawTracePointContext) -> i32 {
    syscalls::enter(ctx.arg(0), ctx.arg(1));
    0
}

/// `sys_exit(struct pt_regs *regs, long ret)`.
#[raw_tracepoint(tracepoint = "sys_exit")]
pub(crate) fn syscall_exit(ctx: RawTracePointContext) -> i32 {
    syscalls::exit(&ctx, ctx.arg(0), ctx.arg(1));
    0
}

/// Continues `syscall_exit` where bytes were transferred that may be a TLS
/// session's records. A program of its own, so that the verifier need not
/// follow what comes after for each way to the answer.
#[raw_tracepoint(tracepoint = "sys_exit")]
pub(crate) fn judge_transfer(ctx: RawTracePointContext) -> i32 {
    capture::judge(&ctx);
    0
}

/// Continues `judge_transfer` where they are none. Mostly `syscall_exit` knows,
/// and does the same itself.
#[raw_tracepoint(tracepoint = "sys_exit")]
pub(crate) fn transfer(ctx: RawTracePointContext) -> i32 {
    capture::transfer(&ctx);
    0
}

/// Continues `transfer` with one element of an I/O vector. A program of
/// its own, so that the verifier need not follow a loop over the elements.
#[raw_tracepoint(tracepoint = "sys_exit")]
pub(crate) fn vector_element(ctx: RawTracePointContext) -> i32 {
    capture::element(&ctx);
    0
}

/// Continues `transfer` with frames of the thread's Python stack.
#[raw_tracepoint(tracepoint = "sys_exit")]
pub(crate) fn walk_frames(ctx: RawTracePointContext) -> i32 {
    stacks::frames(&ctx);
    0
}

/// Continues `walk_frames` with one recipe.
#[raw_tracepoint(tracepoint = "sys_exit")]
pub(crate) fn run_recipe(ctx: RawTracePointContext) -> i32 {
    values::recipe(&ctx);
    0
}

/// Continues `run_recipe` with an exception.
#[raw_tracepoint(tracepoint = "sys_exit")]
pub(crate) fn copy_exception(ctx: RawTracePointContext) -> i32 {
    values::exception(&ctx);
    0
}

/// Continues `copy_exception` with the notes of that exception.
#[raw_tracepoint(tracepoint = "sys_exit")]
pub(crate) fn copy_notes(ctx: RawTracePointContext) -> i32 {
    notes::notes(&ctx);
    0
}

/// `sched_process_fork(struct task_struct *parent, struct task_struct *child)`.
#[raw_tracepoint(tracepoint = "sched_process_fork")]
pub(crate) fn process_fork(ctx: RawTracePointContext) -> i32 {
    if let Some(child) = processes::fork(ctx.arg(0), ctx.arg(1)) {
        debug!(&ctx, "process {} forked off", child);
    }
    0
}

/// `sched_process_exec(struct task_struct *p, pid_t old_pid, ...)`.
#[raw_tracepoint(tracepoint = "sched_process_exec")]
pub(crate) fn process_exec(ctx: RawTracePointContext) -> i32 {
    // The second argument is the id that the thread had until now.
    if let Some(pid) = processes::exec(ctx.arg(1)) {
        debug!(&ctx, "process {} executes another program", pid);
    }
    0
}

/// `sched_process_exit(struct task_struct *p, ...)`.
#[raw_tracepoint(tracepoint = "sched_process_exit")]
pub(crate) fn process_exit(ctx: RawTracePointContext) -> i32 {
    if let Some(pid) = processes::exit(ctx.arg(0)) {
        debug!(&ctx, "process {} ended", pid);
    }
    0
}

/// The return of `PyContext_CopyCurrent`: the copy is its value.
///
/// A probe on its `ret` instruction would do as well, but the kernel does not
/// emulate that instruction: 12.6 µs instead of 1.4 µs a call where a single
/// step is dear.
#[uretprobe]
pub(crate) fn context_returned(ctx: RetProbeContext) -> u32 {
    contexts::copied(&ctx, ctx.ret());
    0
}

/// The return of a function that makes an empty or explicitly copied
/// `PyContext`.
#[uretprobe]
pub(crate) fn context_created(ctx: RetProbeContext) -> u32 {
    contexts::created(ctx.ret());
    0
}

/// The entry of a function that makes an explicit copy of a context in the
/// same place as `PyContext_CopyCurrent` its own.
#[uprobe]
pub(crate) fn context_explicit(_: ProbeContext) -> u32 {
    contexts::explicit();
    0
}

/// Programs on a place inside a function where a new context is in a register,
/// one for each register: a copy of the current context, and any other.
macro_rules! births {
    ($($copied:ident $created:ident $number:literal)*) => {$(
        #[uprobe]
        pub(crate) fn $copied(ctx: ProbeContext) -> u32 {
            contexts::copied(&ctx, arch::holder::<$number>(&ctx));
            0
        }

        #[uprobe]
        pub(crate) fn $created(ctx: ProbeContext) -> u32 {
            contexts::created(arch::holder::<$number>(&ctx));
            0
        }
    )*};
}

births! {
    copied_in_rax created_in_rax 0
    copied_in_rbx created_in_rbx 1
    copied_in_rbp created_in_rbp 2
    copied_in_rdi created_in_rdi 3
    copied_in_r12 created_in_r12 4
    copied_in_r13 created_in_r13 5
    copied_in_r14 created_in_r14 6
    copied_in_r15 created_in_r15 7
}

/// `write` and `writelines` of uvloop's `UVStream`: the transport is the
/// first argument.
#[uprobe]
pub(crate) fn transport_write(ctx: ProbeContext) -> u32 {
    if let Some(transport) = ctx.arg(0) {
        contexts::queued(&ctx, transport);
    }
    0
}

/// `put` and `put_nowait` of `_queue.SimpleQueue`: a vector of arguments follows the queue.
#[uprobe]
pub(crate) fn work_queued(ctx: ProbeContext) -> u32 {
    if let Some(args) = ctx.arg(1) {
        handoffs::put(args);
    }
    0
}

/// `get` and `get_nowait` of `_queue.SimpleQueue`.
#[uprobe]
pub(crate) fn work_wanted(_: ProbeContext) -> u32 {
    handoffs::take();
    0
}

/// `tp_init` of `greenlet.greenlet`: the greenlet is the first argument.
#[uprobe]
pub(crate) fn greenlet_born(ctx: ProbeContext) -> u32 {
    if let Some(greenlet) = ctx.arg(0) {
        greenlets::born(greenlet);
    }
    0
}

/// `tp_dealloc` of `greenlet.greenlet`: the greenlet is the first argument.
#[uprobe]
pub(crate) fn greenlet_ended(ctx: ProbeContext) -> u32 {
    if let Some(greenlet) = ctx.arg(0) {
        greenlets::ended(greenlet);
    }
    0
}

/// `PyContextVar_Reset(PyObject *var, PyObject *token)`.
#[uprobe]
pub(crate) fn variable_reset(ctx: ProbeContext) -> u32 {
    if let Some(variable) = ctx.arg(0) {
        stacks::reset(&ctx, bpf_get_current_pid_tgid(), variable);
    }
    0
}

/// `PyTraceBack_Here(PyFrameObject *frame)`.
#[uprobe]
pub(crate) fn exception_raised(ctx: ProbeContext) -> u32 {
    if let Some(frame) = ctx.arg(0) {
        stacks::raised(&ctx, bpf_get_current_pid_tgid(), frame);
    }
    0
}

/// A call of `SSL_read(SSL *s, void *buf, int num)`.
#[uprobe]
pub(crate) fn tls_read(ctx: ProbeContext) -> u32 {
    tls::begins_read(&ctx, false);
    0
}

/// A call of `SSL_read_ex(SSL *s, void *buf, size_t num, size_t *readbytes)`.
#[uprobe]
pub(crate) fn tls_read_ex(ctx: ProbeContext) -> u32 {
    tls::begins_read(&ctx, true);
    0
}

/// A call of `SSL_write(SSL *s, const void *buf, int num)`.
#[uprobe]
pub(crate) fn tls_write(ctx: ProbeContext) -> u32 {
    tls::begins_write(&ctx, false);
    0
}

/// A call of
/// `SSL_write_ex(SSL *s, const void *buf, size_t num, size_t *written)`.
#[uprobe]
pub(crate) fn tls_write_ex(ctx: ProbeContext) -> u32 {
    tls::begins_write(&ctx, true);
    0
}

/// After a call of `SSL_read` or `SSL_read_ex`, its result in the register
/// for results.
#[uprobe]
pub(crate) fn tls_read_done(ctx: ProbeContext) -> u32 {
    tls::ends(arch::holder::<0>(&ctx), direction::RECEIVED);
    0
}

/// After a call of `SSL_write` or `SSL_write_ex`.
#[uprobe]
pub(crate) fn tls_write_done(ctx: ProbeContext) -> u32 {
    tls::ends(arch::holder::<0>(&ctx), direction::SENT);
    0
}

/// A call of `SSL_do_handshake(SSL *s)`.
#[uprobe]
pub(crate) fn tls_handshake(ctx: ProbeContext) -> u32 {
    if let Some(ssl) = ctx.arg(0) {
        tls::handshake(ssl);
    }
    0
}

/// A call of `SSL_free(SSL *s)`.
#[uprobe]
pub(crate) fn tls_free(ctx: ProbeContext) -> u32 {
    if let Some(ssl) = ctx.arg(0) {
        tls::freed(ssl);
    }
    0
}

/// A call of `BIO_write(BIO *b, const void *data, int dlen)`.
#[uprobe]
pub(crate) fn tls_feed(ctx: ProbeContext) -> u32 {
    if let (Some(bio), Some(data), Some(len)) = (ctx.arg(0), ctx.arg(1), ctx.arg(2)) {
        tls::fed(bio, data, len);
    }
    0
}

/// The place inside `sqlite3_step` where a statement begins to run.
#[uprobe]
pub(crate) fn sqlite_begin(ctx: ProbeContext) -> u32 {
    sqlite::begins(&ctx);
    0
}

/// `sqlite3_reset(sqlite3_stmt *pStmt)` or `sqlite3_finalize` of the same, or a
/// place that they come to with a statement that has run.
#[uprobe]
pub(crate) fn sqlite_end(ctx: ProbeContext) -> u32 {
    sqlite::ends(&ctx);
    0
}

/// `sqlite3.Cursor.executemany(sql, seq_of_parameters)`.
#[uprobe]
pub(crate) fn sqlite_many(ctx: ProbeContext) -> u32 {
    calls::begins(&ctx, maps::sqlite_call::MANY);
    0
}

/// `sqlite3.Cursor.executescript(sql_script)`.
#[uprobe]
pub(crate) fn sqlite_script(ctx: ProbeContext) -> u32 {
    calls::begins(&ctx, maps::sqlite_call::SCRIPT);
    0
}

/// `sqlite3_prepare_v2(sqlite3 *db, const char *zSql, ...)`, and `_v3`.
#[uprobe]
pub(crate) fn sqlite_compile(ctx: ProbeContext) -> u32 {
    if let (Some(connection), Some(text)) = (ctx.arg(0), ctx.arg(1)) {
        compiles::begins(&ctx, connection, text);
    }
    0
}

/// The place inside them where what came of it is known.
#[uprobe]
pub(crate) fn sqlite_compiled(ctx: ProbeContext) -> u32 {
    compiles::ends(&ctx);
    0
}

/// Continues a walk whose stack is that of a statement that does not compile.
#[uprobe]
pub(crate) fn query_begun(_: ProbeContext) -> u32 {
    sqlite::begun();
    0
}

/// As `walk_frames`, after a program on a function.
#[uprobe]
pub(crate) fn probe_frames(ctx: ProbeContext) -> u32 {
    stacks::frames(&ctx);
    0
}

/// As `run_recipe`, after a program on a function.
#[uprobe]
pub(crate) fn probe_recipe(ctx: ProbeContext) -> u32 {
    values::recipe(&ctx);
    0
}

/// As `copy_exception`, after a program on a function.
#[uprobe]
pub(crate) fn probe_exception(ctx: ProbeContext) -> u32 {
    values::exception(&ctx);
    0
}

/// As `copy_notes`, after a program on a function.
#[uprobe]
pub(crate) fn probe_notes(ctx: ProbeContext) -> u32 {
    notes::notes(&ctx);
    0
}

/// Continues a program on a copy of a context that is nobody's with frames of
/// the thread's Python stack.
#[uprobe]
pub(crate) fn server_frames(ctx: ProbeContext) -> u32 {
    servers::frames(&ctx);
    0
}

/// Continues `server_frames` with one recipe of a server's frame.
#[uprobe]
pub(crate) fn server_recipe(ctx: ProbeContext) -> u32 {
    servers::recipe(&ctx);
    0
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

/// The helpers we call are GPL-only; the kernel accepts this declaration for
/// code under the Apache License too, as it is offered under both.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
