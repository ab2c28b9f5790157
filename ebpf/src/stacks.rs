//! Walks the Python stack of the current thread and writes a record of it.
//!
//! A walk is a chain of programs that continue each other, with what it has
//! found so far in a map: `frames` notes code objects, `values` then runs the
//! recipes of those that have any. Whoever begins a walk hands over to the
//! chain and does nothing after it; a transfer that caused it is recorded at
//! its end, so that the stack comes first in the ring.

use abi::counter::Counter;
use abi::map::{CodeKey, Connection, Filter, INNERMOST, Target, recipes_flag, target_flag};
use abi::record::{
    Data, Frame, Query, Stack, direction, kind, moment, query_part, role, stack_flag,
};
use aya_ebpf::EbpfContext;
use aya_ebpf::bindings::BPF_NOEXIST;
use aya_ebpf::helpers::generated::{bpf_get_smp_processor_id, bpf_ktime_get_ns};
use aya_ebpf::programs::{ProbeContext, RawTracePointContext};
use pyframes::Layout;
use pyframes::frame::{self, Advance};

use crate::contexts::{Finding, Place};
use crate::counters::{add, count};
use crate::maps::{
    BODY_BYTES, ENDS, EVENTS, FILTER, FUNCTION_STEPS, LAYOUTS, MAX_HITS, RECIPES, STEPS, WALK,
    WALKING, Walk, chain, step,
};
use crate::user::User;
use crate::{capture, contexts, emit, processes, threads};

/// Frames of a record.
const MAX_FRAMES: u32 = 64;
/// Frames that one program reads.
const FRAMES_PER_RUN: u32 = 40;

/// A kind of program that walks.
pub(crate) trait Chain: EbpfContext {
    /// Its [`WALK`] entry.
    const SCRATCH: u32;

    /// Values and exceptions of a record after the first. Each is a tail
    /// call, of which the kernel allows 32, the runs over frames included.
    const MAX_VALUES: u32;

    /// The step that adds the notes of exceptions.
    const NOTES: u32;

    /// Takes this processor's entry; false if a program that was interrupted
    /// uses it.
    fn claim() -> bool;

    /// Lets go of it.
    fn release();

    /// Continues with another program; returns only if the kernel refuses.
    fn go(&self, step: u32);

    /// Continues with the transfer that the walk held up.
    fn transfer(&self);
}

impl Chain for RawTracePointContext {
    const SCRATCH: u32 = chain::SYSCALL;

    /// The elements of the transfer come after them.
    const MAX_VALUES: u32 = 18;
    const NOTES: u32 = step::NOTES;

    /// Nothing interrupts these programs for another thread.
    #[inline(always)]
    fn claim() -> bool {
        true
    }

    #[inline(always)]
    fn release() {}

    #[inline(always)]
    fn go(&self, step: u32) {
        // SAFETY: nothing here waits to be dropped.
        unsafe { STEPS.tail_call(self, step) };
    }

    #[inline(always)]
    fn transfer(&self) {
        capture::resume(self);
    }
}

impl Chain for ProbeContext {
    const SCRATCH: u32 = chain::FUNCTION;

    const MAX_VALUES: u32 = 26;
    const NOTES: u32 = step::FUNCTION_NOTES;

    #[inline(always)]
    fn claim() -> bool {
        WALKING
            .insert(processor(), 1, u64::from(BPF_NOEXIST))
            .is_ok()
    }

    #[inline(always)]
    fn release() {
        let _never_absent = WALKING.remove(processor());
    }

    #[inline(always)]
    fn go(&self, step: u32) {
        // SAFETY: nothing here waits to be dropped.
        unsafe { FUNCTION_STEPS.tail_call(self, step) };
    }

    /// The system call is still to come: what may wait is the end of a
    /// statement that does not compile.
    #[inline(always)]
    fn transfer(&self) {
        self.go(step::QUERY);
        count(Counter::StackCutOff);
        Self::release();
    }
}

/// The processor that the program runs on, to its end.
#[inline(always)]
fn processor() -> u32 {
    // SAFETY: the helper has no preconditions.
    unsafe { bpf_get_smp_processor_id() }
}

/// What a walk is about.
#[derive(Clone, Copy)]
pub(crate) struct About {
    /// See [`moment`].
    pub(crate) moment: u8,
    /// Moments whose recipes are run, a bit each.
    pub(crate) moments: u32,
    /// Connection id, or 0.
    pub(crate) conn: u64,
    /// Whose event it is.
    pub(crate) finding: Finding,
    /// When.
    pub(crate) at: u64,
}

/// The time.
#[inline(always)]
pub(crate) fn now() -> u64 {
    // SAFETY: the helper has no preconditions.
    unsafe { bpf_ktime_get_ns() }
}

/// When a walk is made, and for what.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Moment {
    /// See [`moment`].
    pub(crate) moment: u32,
    /// Moments whose recipes are run, a bit each; 0 for no walk.
    pub(crate) moments: u32,
}

/// The moment at which a connection is about to send, if the stack is of
/// interest now: at the first bytes after some were received.
#[inline(always)]
pub(crate) fn moment_of(target: &Target, connection: &Connection) -> Moment {
    const NONE: Moment = Moment {
        moment: 0,
        moments: 0,
    };
    const REQUEST: u32 = 1 << moment::REQUEST | 1 << moment::STATEMENT;
    const RESPONSE: u32 = 1 << moment::RESPONSE;
    if connection.walked != 0 {
        return NONE;
    }
    let answers = target.flags & target_flag::STACK_AT_RESPONSE != 0;
    let asks = target.flags & target_flag::STACK_AT_REQUEST != 0;
    match connection.role {
        role::SERVER if answers => Moment {
            moment: u32::from(moment::RESPONSE),
            moments: RESPONSE,
        },
        role::CLIENT if asks => Moment {
            moment: u32::from(moment::REQUEST),
            moments: REQUEST,
        },
        // The part that the process plays is not known yet.
        role::UNKNOWN if answers || asks => Moment {
            moment: u32::from(if answers && connection.received != 0 {
                moment::RESPONSE
            } else {
                moment::REQUEST
            }),
            moments: RESPONSE | REQUEST,
        },
        _ => NONE,
    }
}

/// Prepares a walk, unless there can be none. Whoever prepared it continues
/// with [`step::FRAMES`] or another step, or gives it up.
#[inline(always)]
pub(crate) fn prepare<C: Chain>(
    pid_tgid: u64,
    target: &Target,
    place: Option<Place>,
    about: About,
) -> Option<&'static mut Walk> {
    let Some(Place { tstate, .. }) = place else {
        count(Counter::StackNoThread);
        return None;
    };
    if !C::claim() {
        count(Counter::StackBusy);
        return None;
    }
    let Some(walk) = current::<C>() else {
        C::release();
        return None;
    };
    // Another process may have the same addresses.
    if walk.stack.group != target.group {
        walk.scratch.forget_types();
    }
    walk.scratch.windows.forget();
    let has = |flag| target.flags & flag != 0;
    // Which connection a server serves counts only where nothing else tells.
    let unowned =
        matches!(about.moment, moment::REQUEST | moment::RESET) && about.finding.owner.conn == 0;
    let serving = unowned && has(target_flag::SERVINGS);
    let asked = about.moments >> moment::STATEMENT & 1 != 0;
    walk.tstate = tstate;
    walk.moments = about.moments | u32::from(unowned) << moment::SERVING;
    walk.layout = target.layout;
    walk.whole = u32::from(unowned && has(target_flag::SERVERS));
    walk.ends = u32::from(about.moment == moment::REQUEST && has(target_flag::ENDS) && !serving);
    walk.statement = u32::from(asked && has(target_flag::STATEMENTS));
    walk.started = 0;
    walk.transfer = 0;
    walk.left = C::MAX_VALUES;
    walk.hits_len = 0;
    walk.hit = 0;
    walk.recipe = 0;
    walk.used = 0;
    walk.depth = 0;
    walk.stack = Stack {
        kind: kind::STACK,
        moment: about.moment,
        rule: about.finding.rule,
        flags: 0,
        pid: (pid_tgid >> 32) as u32,
        tid: pid_tgid as u32,
        n_frames: 0,
        values_len: 0,
        group: target.group,
        conn: about.conn,
        at: about.at,
        owner: about.finding.owner,
    };
    Some(walk)
}

/// The walk that this program continues.
#[inline(always)]
pub(crate) fn current<C: Chain>() -> Option<&'static mut Walk> {
    // SAFETY: the programs before this one in the chain have claimed it.
    WALK.get_ptr_mut(C::SCRATCH)
        .map(|walk| unsafe { &mut *walk })
}

/// The offsets of the interpreter that the walk is in.
#[inline(always)]
pub(crate) fn layout(index: u32) -> Option<&'static Layout> {
    LAYOUTS.get(index).map(|layout| &layout.0)
}

/// Reads frames, a number of them in each run.
#[inline(always)]
pub(crate) fn frames<C: Chain>(ctx: &C) {
    let Some(walk) = current::<C>() else {
        return;
    };
    let (Some(layout), Some(filter)) = (layout(walk.layout), FILTER.get(0)) else {
        return finish(ctx, walk);
    };
    if walk.started == 0 {
        walk.started = 1;
        if walk
            .walker
            .start(&User, layout, walk.tstate, &mut walk.scratch.windows)
            .is_err()
        {
            broken(walk);
            return values(ctx, walk);
        }
    }
    for _ in 0..FRAMES_PER_RUN {
        match walk
            .walker
            .advance(&User, layout, &mut walk.scratch.windows)
        {
            Advance::Frame => {
                if !note(walk, layout, filter) {
                    return values(ctx, walk);
                }
            }
            Advance::Shim => {}
            Advance::End => return values(ctx, walk),
            Advance::Unreadable => {
                broken(walk);
                return values(ctx, walk);
            }
        }
    }
    ctx.go(step::FRAMES);
    // Only a chain of the interpreter's own frames gets here.
    count(Counter::StackCutOff);
    walk.stack.flags |= stack_flag::TRUNCATED;
    values(ctx, walk);
}

/// The walk came to memory that it could not read.
#[inline(always)]
fn broken(walk: &mut Walk) {
    count(Counter::StackUnreadable);
    walk.stack.flags |= stack_flag::BROKEN;
}

/// Adds the walker's frame to the record; false if it is to be the last.
#[inline(always)]
fn note(walk: &mut Walk, layout: &Layout, filter: &Filter) -> bool {
    let index = walk.depth;
    if index >= MAX_FRAMES {
        count(Counter::StackTooDeep);
        walk.stack.flags |= stack_flag::TRUNCATED;
        return false;
    }
    walk.depth = index + 1;
    let frame = walk.walker.frame;
    // At other moments nobody asks for more than the values.
    if walk.stack.moment == moment::REQUEST {
        let at = (index % MAX_FRAMES) as usize * size_of::<Frame>();
        // SAFETY: the body has room for `MAX_FRAMES` frames, and is aligned to
        // eight bytes as the fields before it are.
        unsafe {
            *walk.body.as_mut_ptr().add(at).cast::<Frame>() = Frame {
                code: frame.code,
                instruction: frame.instruction,
            };
        }
        walk.stack.n_frames = index + 1;
        walk.used = (index + 1) * size_of::<Frame>() as u32;
    }
    let mut key = CodeKey {
        code: frame.code,
        group: walk.stack.group,
        pad: 0,
    };
    let requests = walk.stack.moment == moment::REQUEST;
    let mut recipes = core::ptr::null();
    if filter.has(&key) {
        // Where walks may end is no recipe.
        if requests && is_end(&key) {
            if walk.ends != 0 && walk.statement == 0 {
                count(Counter::StackEnded);
                walk.stack.flags |= stack_flag::ENDED;
                return false;
            }
        } else if let Some(found) = RECIPES.get_ptr(key) {
            recipes = found;
        }
    }
    if recipes.is_null() && requests && index == 0 {
        key.code = INNERMOST;
        if filter.has(&key)
            && let Some(found) = RECIPES.get_ptr(key)
        {
            recipes = found;
        }
    }
    if recipes.is_null() {
        return true;
    }
    // SAFETY: the map's values outlive the program run.
    let flags = unsafe { (*recipes).flags };
    let moments = flags >> recipes_flag::MOMENTS_SHIFT;
    // That of the innermost driver counts, so that no other is asked for; what
    // any function passes on need be none.
    if moments >> moment::STATEMENT & 1 != 0 && key.code != INNERMOST {
        walk.statement = 0;
    }
    if moments & walk.moments != 0 {
        let hit = walk.hits_len;
        if hit < MAX_HITS as u32 {
            walk.hits_len = hit + 1;
            let hit = &mut walk.hits[hit as usize % MAX_HITS];
            hit.frame = frame.address;
            hit.code = key.code;
            hit.index = u64::from(index);
            hit.near = walk.walker.near;
            let windows = &walk.scratch.windows;
            frame::near_locals(layout, windows, &mut hit.locals);
        } else {
            count(Counter::StackValuesFull);
            walk.stack.flags |= stack_flag::VALUES_LOST;
        }
    }
    if flags & recipes_flag::ANSWERS != 0 && walk.stack.moment == moment::RESPONSE {
        return false;
    }
    flags & recipes_flag::LAST == 0 || walk.whole != 0
}

/// Whether nothing is asked of the frames outside one with this code object,
/// as the agent has it.
#[inline(always)]
fn is_end(key: &CodeKey) -> bool {
    let Some(end) = ENDS.get(key.end_slot()) else {
        return false;
    };
    end.code == key.code && end.group == key.group
}

/// All frames are noted: goes on with their values.
#[inline(always)]
fn values<C: Chain>(ctx: &C, walk: &mut Walk) {
    if walk.hits_len != 0 {
        walk.scratch.forget_steps();
        walk.local.frame = 0;
        ctx.go(step::RECIPE);
        count(Counter::StackCutOff);
        walk.stack.flags |= stack_flag::VALUES_LOST;
    }
    finish(ctx, walk);
}

/// Writes the record and goes on with what waited for it.
#[inline(always)]
pub(crate) fn finish<C: Chain>(ctx: &C, walk: &mut Walk) {
    let frames = walk.stack.n_frames * size_of::<Frame>() as u32;
    let used = walk.used;
    walk.stack.values_len = used.wrapping_sub(frames);
    let transfer = walk.transfer;
    // An answer of which the frames tell nothing, as most of a server's own:
    // nobody would learn anything from the record.
    if used == 0 && walk.stack.moment == moment::RESPONSE {
        count(Counter::Stacks);
        count(Counter::StackSilent);
        add(Counter::StackReads, walk.scratch.windows.reads());
        C::release();
        if transfer != 0 {
            ctx.transfer();
        }
        return;
    }
    // The compiler may know a bound and would drop the mask that shows one to
    // the verifier; the volatile read makes it forget.
    // SAFETY: `used` is a local; the record is as long as is said, as the
    // body follows its beginning and is longer than the mask.
    let written = unsafe {
        let used = core::ptr::read_volatile(&raw const used) as usize & (BODY_BYTES - 1);
        let record = core::slice::from_raw_parts(
            (&raw const walk.stack).cast::<u8>(),
            size_of::<Stack>() + used,
        );
        EVENTS.output::<[u8]>(record, emit::flags())
    };
    match written {
        Ok(()) => {
            count(Counter::Stacks);
            add(Counter::StackReads, walk.scratch.windows.reads());
            count(Counter::RecordsWritten);
        }
        Err(_) => {
            count(Counter::StackRingFull);
            if walk.stack.flags & stack_flag::BEGINS != 0 {
                count(Counter::QueryRingFull);
            }
        }
    }
    // A statement that waits is in the walk.
    if transfer == 0 || C::SCRATCH == chain::SYSCALL {
        C::release();
    }
    if transfer != 0 {
        ctx.transfer();
    }
}

/// Whether there is to be a walk before a transfer is recorded: if it begins
/// a message.
#[inline(always)]
pub(crate) fn at_transfer(target: &Target, connection: &mut Connection, way: u8) -> Moment {
    if way == direction::RECEIVED {
        connection.walked = 0;
        return Moment {
            moment: 0,
            moments: 0,
        };
    }
    moment_of(target, connection)
}

/// Walks before the pending transfer is recorded. Returns only if there is no
/// walk.
#[inline(always)]
pub(crate) fn walk_transfer(
    ctx: &RawTracePointContext,
    pid_tgid: u64,
    target: &Target,
    place: Option<Place>,
    connection: &mut Connection,
    walk: Moment,
    data: &Data,
) {
    connection.walked = 1;
    let about = About {
        moment: walk.moment as u8,
        moments: walk.moments,
        conn: connection.id,
        finding: Finding {
            owner: data.owner,
            rule: data.rule,
        },
        at: data.at,
    };
    if let Some(walk) = prepare::<RawTracePointContext>(pid_tgid, target, place, about) {
        walk.transfer = 1;
        ctx.go(step::FRAMES);
        give_up::<RawTracePointContext>();
    }
}

/// An event loop's transport was asked to write, which it does later: walks
/// now, as that begins a message.
#[inline(always)]
pub(crate) fn at_queue(
    ctx: &ProbeContext,
    pid_tgid: u64,
    target: &Target,
    place: Option<Place>,
    connection: &mut Connection,
    walk: Moment,
    finding: Finding,
) {
    connection.walked = 1;
    let about = About {
        moment: walk.moment as u8,
        moments: walk.moments,
        conn: connection.id,
        finding,
        at: now(),
    };
    if prepare::<ProbeContext>(pid_tgid, target, place, about).is_some() {
        ctx.go(step::FRAMES);
        give_up::<ProbeContext>();
    }
}

/// A statement of a database in the process begins: walks, and tells of it
/// with the stack. False if there is no walk.
///
/// The database has the statement as the application wrote it, so that no
/// frame is asked for that.
#[inline(always)]
pub(crate) fn at_query(
    ctx: &ProbeContext,
    pid_tgid: u64,
    target: &Target,
    place: Option<Place>,
    query: &Query,
    finding: Finding,
) -> bool {
    if target.flags & target_flag::STACK_AT_REQUEST == 0 {
        return false;
    }
    let about = About {
        moment: moment::REQUEST,
        moments: 1 << moment::REQUEST,
        conn: query.id,
        finding,
        at: query.at,
    };
    let Some(walk) = prepare::<ProbeContext>(pid_tgid, target, place, about) else {
        return false;
    };
    walk.stack.flags = stack_flag::BEGINS | query.part << stack_flag::PART_SHIFT;
    walk.transfer = u32::from(query.part == query_part::FAILED);
    ctx.go(step::FRAMES);
    give_up::<ProbeContext>();
    false
}

/// The id of the statement that the walk, which has ended, was about.
#[inline(always)]
pub(crate) fn waiting() -> Option<u64> {
    let id = current::<ProbeContext>().map(|walk| walk.stack.conn);
    <ProbeContext as Chain>::release();
    id
}

/// The kernel did not let the walk begin.
#[inline(always)]
fn give_up<C: Chain>() {
    count(Counter::StackCutOff);
    C::release();
}

/// `PyContextVar_Reset(variable, token)`.
#[inline(always)]
pub(crate) fn reset(ctx: &ProbeContext, pid_tgid: u64, variable: u64) {
    let pid = (pid_tgid >> 32) as u32;
    let Some(target) = processes::target(pid) else {
        return;
    };
    if variable == 0 || target.context_variable != variable {
        return;
    }
    let Some(thread) = threads::entry(pid_tgid) else {
        return;
    };
    let place = contexts::place(target, thread);
    let about = About {
        moment: moment::RESET,
        moments: 1 << moment::RESET,
        conn: 0,
        finding: contexts::current_owner(pid, target, thread, place),
        at: now(),
    };
    if prepare::<ProbeContext>(pid_tgid, target, place, about).is_some() {
        ctx.go(step::FRAMES);
        give_up::<ProbeContext>();
    }
}

/// `PyTraceBack_Here(frame)`: an exception passes through a frame. Mostly one
/// of no interest, which two reads tell.
#[inline(always)]
pub(crate) fn raised(ctx: &ProbeContext, pid_tgid: u64, object: u64) {
    const MOMENTS: u32 = 1 << moment::RAISED;
    let pid = (pid_tgid >> 32) as u32;
    let Some(target) = processes::target(pid) else {
        return;
    };
    if target.flags & target_flag::PYTHON == 0 {
        return;
    }
    let (Some(layout), Some(filter)) = (layout(target.layout), FILTER.get(0)) else {
        return;
    };
    let Ok(address) = frame::of_object(&User, layout, object) else {
        return;
    };
    let Ok(code) = frame::code(&User, layout, address) else {
        return;
    };
    let key = CodeKey {
        code,
        group: target.group,
        pad: 0,
    };
    if !filter.has(&key) {
        return;
    }
    let Some(recipes) = RECIPES.get_ptr(key) else {
        return;
    };
    // SAFETY: the map's values outlive the program run.
    if unsafe { (*recipes).flags } >> recipes_flag::MOMENTS_SHIFT & MOMENTS == 0 {
        return;
    }
    let Some(thread) = threads::entry(pid_tgid) else {
        return;
    };
    let place = contexts::place(target, thread);
    let about = About {
        moment: moment::RAISED,
        moments: MOMENTS,
        conn: 0,
        finding: contexts::current_owner(pid, target, thread, place),
        at: now(),
    };
    let Some(walk) = prepare::<ProbeContext>(pid_tgid, target, place, about) else {
        return;
    };
    walk.walker.start_at(address);
    match walk
        .walker
        .advance(&User, layout, &mut walk.scratch.windows)
    {
        Advance::Frame => {
            note(walk, layout, filter);
        }
        _ => broken(walk),
    }
    values(ctx, walk);
}
