//! Whose is a context that no request was read in: asks the frames of servers
//! that serve a request elsewhere than where they read it.
//!
//! Such a server has a function whose frame holds the connection that it
//! serves. The agent's rows say which functions, and the way from a variable
//! to the transport's socket. Looked for only where nothing else tells whose
//! a copy of a context is, and only in processes that have such a server.

use abi::counter::Counter;
use abi::map::{
    CodeKey, Descriptor, Filter, MAX_RECIPES, Recipe, Target, recipes_flag, target_flag, terminal,
};
use abi::record::{Owner, moment, role, rule};
use aya_ebpf::EbpfContext;
use aya_ebpf::helpers::bpf_get_current_pid_tgid;
use aya_ebpf::programs::ProbeContext;
use pyframes::frame::Advance;
use pyframes::{Layout, recipe as machine};

use crate::contexts::{self, Finding, Place};
use crate::counters::count;
use crate::maps::{CONNECTIONS, FILTER, FUNCTION_STEPS, RECIPES, Walk, step};
use crate::stacks::{self, Chain};
use crate::user::{self, User};
use crate::{processes, tls, values};

/// Frames that one program reads.
const FRAMES_PER_RUN: u32 = 40;
/// How often another 40 are read.
const MAX_RUNS: u32 = 1;
/// Frames in which a function is looked for that goes on with what others
/// have queued: between it and the copy are but the client's own.
const NEAR: u32 = 12;
/// The bit of [`moment::COPY`].
const COPIES: u32 = 1 << moment::COPY;

/// A connection, and whose it is now.
#[derive(Clone, Copy)]
pub(crate) struct Serving {
    /// The last byte that it received; `conn` 0 means that there is none.
    pub(crate) owner: Owner,
    /// Its descriptor.
    pub(crate) fd: i32,
}

/// Whether a server's frame may tell more than the finding does.
#[inline(always)]
fn may_tell(target: &Target, finding: Finding) -> bool {
    target.flags & target_flag::SERVERS != 0
        && matches!(
            finding.rule,
            rule::UNOWNED_CONTEXT
                | rule::EVENT_LOOP
                | rule::IDLE_THREAD
                | rule::FRAME_UNRESOLVED
                | rule::FRAME_AHEAD
        )
}

/// Looks for a frame that tells whose `child` is, which the current thread has
/// just copied: a server's, if nothing else tells, or that of a function that
/// goes on with what somebody else has queued.
#[inline(always)]
pub(crate) fn ask<C: EbpfContext>(
    ctx: &C,
    target: &Target,
    place: Option<Place>,
    finding: Finding,
    child: u64,
) {
    if target.flags & (target_flag::SERVERS | target_flag::FOREIGN) == 0 {
        return;
    }
    let known = finding.owner.conn != 0;
    if known && target.flags & target_flag::FOREIGN == 0 || !known && !may_tell(target, finding) {
        return;
    }
    let Some(place) = place else {
        return;
    };
    count(Counter::ServerWalks);
    if !ProbeContext::claim() {
        count(Counter::StackBusy);
        return;
    }
    if let Some(walk) = stacks::current::<ProbeContext>() {
        // Another process may have the same addresses.
        if walk.stack.group != target.group {
            walk.scratch.forget_types();
        }
        walk.stack.group = target.group;
        walk.tstate = place.tstate;
        walk.layout = target.layout;
        walk.moments = COPIES;
        walk.started = 0;
        walk.left = if known { 0 } else { MAX_RUNS };
        walk.known = u32::from(known);
        walk.recipe = 0;
        walk.child = child;
        walk.parent = if place.entered { place.context } else { 0 };
        // SAFETY: nothing here waits to be dropped.
        unsafe { FUNCTION_STEPS.tail_call(ctx, step::SERVER) };
        count(Counter::ServerUnwalked);
    }
    ProbeContext::release();
}

/// Walks the stack to the innermost frame of a server.
#[inline(always)]
pub(crate) fn frames(ctx: &ProbeContext) {
    let Some(walk) = stacks::current::<ProbeContext>() else {
        return;
    };
    if look(walk) {
        if walk.known == 0 {
            ctx.go(step::CONNECTION);
            count(Counter::ServerUnwalked);
        }
    } else if walk.left != 0 {
        walk.left -= 1;
        ctx.go(step::SERVER);
        count(Counter::ServerUnwalked);
    }
    ProbeContext::release();
}

/// Whether a server's frame was found, which is the walk's first hit then. If
/// not, and [`Walk::left`] is not 0, there may be more frames.
#[inline(always)]
fn look(walk: &mut Walk) -> bool {
    let (Some(layout), Some(filter)) = (stacks::layout(walk.layout), FILTER.get(0)) else {
        walk.left = 0;
        return false;
    };
    if walk.started == 0 {
        walk.started = 1;
        walk.scratch.forget();
        walk.local.frame = 0;
        if walk
            .walker
            .start(&User, layout, walk.tstate, &mut walk.scratch.windows)
            .is_err()
        {
            count(Counter::ServerUnwalked);
            walk.left = 0;
            return false;
        }
    }
    for number in 0..FRAMES_PER_RUN {
        if walk.known != 0 && number >= NEAR {
            return false;
        }
        match walk
            .walker
            .advance(&User, layout, &mut walk.scratch.windows)
        {
            Advance::Frame => {
                let flags = flags(walk, filter);
                if flags & recipes_flag::FOREIGN != 0 {
                    foreign(walk);
                    walk.left = 0;
                    return false;
                }
                if flags >> recipes_flag::MOMENTS_SHIFT & COPIES != 0 {
                    let frame = walk.walker.frame;
                    let hit = &mut walk.hits[0];
                    hit.frame = frame.address;
                    hit.code = frame.code;
                    hit.index = 0;
                    hit.near = 0;
                    return true;
                }
            }
            Advance::Shim => {}
            Advance::End => {
                walk.left = 0;
                return false;
            }
            Advance::Unreadable => {
                count(Counter::ServerUnwalked);
                walk.left = 0;
                return false;
            }
        }
    }
    if walk.left == 0 {
        count(Counter::ServerUnwalked);
    }
    false
}

/// The copy is made for somebody else than its maker.
#[inline(always)]
fn foreign(walk: &Walk) {
    count(Counter::ForeignCopies);
    let pid = (bpf_get_current_pid_tgid() >> 32) as u32;
    if walk.known != 0
        && let Some(target) = processes::target(pid)
    {
        let nobody = Finding {
            owner: Owner::default(),
            rule: rule::UNOWNED_CONTEXT,
        };
        contexts::owned(pid, target, walk.child, nobody);
    }
}

/// The flags of the walker's frame, 0 if it is of no interest.
#[inline(always)]
fn flags(walk: &Walk, filter: &Filter) -> u32 {
    let frame = walk.walker.frame;
    let key = CodeKey {
        code: frame.code,
        group: walk.stack.group,
        pad: 0,
    };
    if !filter.has(&key) {
        return 0;
    }
    match RECIPES.get_ptr(key) {
        // SAFETY: the map's values outlive the program run.
        Some(recipes) => unsafe { (*recipes).flags },
        None => 0,
    }
}

/// Runs the next recipe of the server's frame: first what must hold of it,
/// then the ways to its connection, of which the first that leads there
/// counts.
#[inline(always)]
pub(crate) fn recipe(ctx: &ProbeContext) {
    let Some(walk) = stacks::current::<ProbeContext>() else {
        return;
    };
    match next(walk) {
        AGAIN => {
            ctx.go(step::CONNECTION);
            count(Counter::ServerUnwalked);
        }
        DONE => {}
        rule => refuse(walk, rule),
    }
    ProbeContext::release();
}

/// The next recipe is to be run.
const AGAIN: u8 = u8::MAX;
/// None is to be run any more.
const DONE: u8 = 0;

/// Runs a recipe: [`AGAIN`], [`DONE`] or the rule by which there is no owner.
///
/// No enum with a value in it: some kernels refuse to copy the register of one
/// that has none.
#[inline(always)]
fn next(walk: &mut Walk) -> u8 {
    const UNRESOLVED: u8 = rule::FRAME_UNRESOLVED;
    let Some(layout) = stacks::layout(walk.layout) else {
        return UNRESOLVED;
    };
    let key = CodeKey {
        code: walk.hits[0].code,
        group: walk.stack.group,
        pad: 0,
    };
    let Some(recipes) = RECIPES.get_ptr(key) else {
        return UNRESOLVED;
    };
    // SAFETY: the map's values outlive the program run.
    let recipes = unsafe { &*recipes };
    let index = values::due(walk, recipes);
    if index >= MAX_RECIPES {
        return UNRESOLVED;
    }
    let recipe = values::picked(walk, recipes);
    let object = match values::variable(walk, layout, 0, recipe.slot) {
        Some(object) if object != 0 => {
            machine::run(&User, layout, &recipe.steps, object, &mut walk.scratch).unwrap_or(0)
        }
        _ => 0,
    };
    if is_condition(recipe.terminal) {
        if object != 0 && holds(&mut walk.scratch, layout, recipe, object) {
            return AGAIN;
        }
        return rule::FRAME_AHEAD;
    }
    let pid = (bpf_get_current_pid_tgid() >> 32) as u32;
    let Some(target) = processes::target(pid) else {
        return UNRESOLVED;
    };
    let serving = connection(pid, target, layout, recipe, object);
    if serving.owner.conn == 0 {
        return AGAIN;
    }
    count(Counter::ServerFound);
    let finding = Finding {
        owner: serving.owner,
        rule: rule::FRAME,
    };
    contexts::owned(pid, target, walk.child, finding);
    if recipes.flags & recipes_flag::BIND != 0 && walk.parent != 0 {
        contexts::bind(pid, target, walk.parent, serving);
    }
    DONE
}

/// Notes that the child has no owner, and why.
#[inline(always)]
fn refuse(walk: &Walk, rule: u8) {
    count(if rule == rule::FRAME_AHEAD {
        Counter::ServerAhead
    } else {
        Counter::ServerUnresolved
    });
    let pid = (bpf_get_current_pid_tgid() >> 32) as u32;
    if let Some(target) = processes::target(pid) {
        let finding = Finding {
            owner: Owner::default(),
            rule,
        };
        contexts::owned(pid, target, walk.child, finding);
    }
}

/// Whether a recipe leads to something that must hold, and not to the
/// connection.
#[inline(always)]
pub(crate) fn is_condition(kind: u32) -> bool {
    kind == terminal::SIZE || kind == terminal::NOTHING
}

/// Whether it does hold of the object that the recipe leads to.
#[inline(always)]
pub(crate) fn holds(
    scratch: &mut machine::Scratch,
    layout: &Layout,
    recipe: &Recipe,
    object: u64,
) -> bool {
    if recipe.terminal == terminal::SIZE {
        let size = user::read::<u64>(object, i64::from(layout.object.ob_size));
        return size == Some(recipe.key);
    }
    match pyframes::value::type_of(&User, layout, object, scratch) {
        Ok(address) => pyframes::value::is_none_type(&User, layout, address),
        Err(_) => false,
    }
}

/// The connection of the socket or transport that a recipe leads to.
#[inline(always)]
pub(crate) fn connection(
    pid: u32,
    target: &Target,
    layout: &Layout,
    recipe: &Recipe,
    object: u64,
) -> Serving {
    const NONE: Serving = Serving {
        owner: Owner { conn: 0, offset: 0 },
        fd: -1,
    };
    if object == 0 {
        return NONE;
    }
    let fd = if recipe.terminal == terminal::SOCKET {
        socket(layout, recipe.key, object)
    } else {
        transport(target, layout, object)
    };
    let Some(connection) = CONNECTIONS.get_ptr(Descriptor { pid, fd }) else {
        return NONE;
    };
    // SAFETY: the map's values outlive the program run.
    let connection = unsafe { &*connection };
    let received = connection.received;
    if connection.role == role::CLIENT || received == 0 || !tls::is_followed(pid, connection) {
        return NONE;
    }
    Serving {
        owner: Owner {
            conn: connection.id,
            offset: received - 1,
        },
        fd,
    }
}

/// `sock_fd` of a `PySocketSockObject`, its first field (socketmodule.h; 3.8
/// to 3.14); -1 once it is closed, or if it is none.
#[inline(always)]
fn socket(layout: &Layout, class: u64, object: u64) -> i32 {
    if user::read::<u64>(object, i64::from(layout.object.ob_type)) != Some(class) {
        return -1;
    }
    user::read::<i32>(object, i64::from(layout.object.size)).unwrap_or(-1)
}

/// The descriptor of uvloop's transport, or of that below one of TLS; -1 if
/// there is none.
///
/// `_SSLProtocolTransport` begins with `_loop` and `_ssl_protocol`. The latter,
/// an `SSLProtocol`, has behind the pointer to its table of C methods seven
/// words, then `_app_transport`, which refers back, a flag and `_transport`
/// (sslproto.pxd; 0.17 to 0.23).
#[inline(always)]
fn transport(target: &Target, layout: &Layout, object: u64) -> i32 {
    const PROTOCOL: i64 = 8;
    const APP_TRANSPORT: i64 = 8 + 8 * 8;
    if target.uv_fd == 0 {
        return -1;
    }
    let fd = handle(target, object);
    if fd >= 0 {
        return fd;
    }
    let header = i64::from(layout.object.size);
    let protocol = user::read::<u64>(object, header + PROTOCOL).unwrap_or(0);
    if protocol == 0 {
        return -1;
    }
    match user::read::<[u64; 3]>(protocol, header + APP_TRANSPORT) {
        Some([above, _, below]) if above == object => handle(target, below),
        _ => -1,
    }
}

/// The descriptor of uvloop's handle, which refers back to its transport; -1
/// if it does not.
#[inline(always)]
fn handle(target: &Target, object: u64) -> i32 {
    let handle = user::read::<u64>(object, i64::from(target.uv_handle)).unwrap_or(0);
    if handle == 0 || user::read::<u64>(handle, 0) != Some(object) {
        return -1;
    }
    user::read::<i32>(handle, i64::from(target.uv_fd)).unwrap_or(-1)
}
