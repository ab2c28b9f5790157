//! What the frames of a walk hold: runs recipes and copies what they lead to.
//!
//! One recipe and one exception are each a run of a program, so that the
//! verifier need not follow a loop over them.

use abi::counter::Counter;
use abi::map::{
    ARGUMENT, COMPOSED, CodeKey, FUNCTIONS, MAX_RECIPES, RAISED, Recipe, Recipes, STATEMENT,
    UNTYPED, terminal,
};
use abi::record::{Frame, Owner, Traceback, Value, exception_detail, part, stack_flag, value};
use pyframes::frame::NEAR_LOCALS;
use pyframes::object::flag;
use pyframes::window::COPIED;
use pyframes::{Layout, Memory, argument, frame, recipe as machine, value as object};

use crate::counters::count;
use crate::maps::{BODY_BYTES, Hit, Local, MAX_HITS, RECIPES, Raised, Walk, step};
use crate::stacks::{self, Chain};
use crate::user::{self, User};
use crate::{notes, processes, servers};

/// Bytes of a text that are copied: most statements are shorter.
const TEXT_BYTES: u32 = 1024;
/// The same of an exception's argument. Powers of two, for masks.
const ARGUMENT_BYTES: u32 = 512;
/// Arguments of an exception that are copied.
const MAX_ARGUMENTS: u64 = 4;
/// Entries of a traceback that are copied.
const MAX_ENTRIES: usize = 64;
/// Exceptions in the chain of one that are copied after it.
const MAX_CHAIN: u32 = 3;
/// Bytes of frames and values of a record.
const MAX_USED: u32 = 64 * size_of::<Frame>() as u32 + 6 * 1024;
/// Bytes of the longest value.
const LONGEST: u32 = (size_of::<Value>() + MAX_ENTRIES * size_of::<Traceback>()) as u32;
/// Bits of an address in a record's body: within it and aligned.
const BODY_MASK: usize = (BODY_BYTES - 1) & !7;

/// What a value belongs to.
#[derive(Clone, Copy)]
pub(crate) struct Place {
    /// [`Value::recipe`].
    pub(crate) recipe: u32,
    /// [`Value::frame`].
    pub(crate) frame: u16,
    /// [`Value::part`].
    pub(crate) part: u8,
}

/// Runs the next recipe of the walk.
#[inline(always)]
pub(crate) fn recipe<C: Chain>(ctx: &C) {
    let Some(walk) = stacks::current::<C>() else {
        return;
    };
    let Some(layout) = stacks::layout(walk.layout) else {
        return stacks::finish(ctx, walk);
    };
    let hit = walk.hit;
    let Hit {
        code,
        index: index_in_walk,
        ..
    } = walk.hits[hit as usize % MAX_HITS];
    let key = CodeKey {
        code,
        group: walk.stack.group,
        pad: 0,
    };
    // The agent may have removed them meanwhile.
    let recipes = RECIPES.get_ptr(key).map(|recipes| {
        // SAFETY: the map's values outlive the program run.
        unsafe { &*recipes }
    });
    let Some(recipes) = recipes else {
        return next_hit(ctx, walk);
    };
    let index = due(walk, recipes);
    if index >= MAX_RECIPES {
        return next_hit(ctx, walk);
    }
    let recipe = picked(walk, recipes);
    // Where it is the last, the next run begins with the next frame.
    if walk.recipe >= recipes.count {
        walk.recipe = 0;
        walk.hit += 1;
    }
    let place = Place {
        recipe: recipe.id,
        frame: index_in_walk as u16,
        part: part::ITSELF,
    };
    if run(walk, layout, recipe, hit, place) {
        ctx.go(step::EXCEPTION);
        return stop(ctx, walk);
    }
    next(ctx, walk);
}

/// The index of the next recipe for the walk's moments, which counts as run;
/// [`MAX_RECIPES`] or more if there is none.
#[inline(always)]
pub(crate) fn due(walk: &mut Walk, recipes: &Recipes) -> usize {
    let mut index = walk.recipe as usize;
    for (number, recipe) in recipes.recipes.iter().enumerate() {
        let due = number >= index && number < recipes.count as usize;
        if due && recipe.moments & walk.moments != 0 {
            index = number;
            break;
        }
        if number >= index {
            index = number + 1;
        }
    }
    walk.recipe = index as u32 + 1;
    // Read again, so that the verifier takes it for any number and follows
    // what comes after once.
    // SAFETY: the pointer is a reference's.
    let index = unsafe { core::ptr::read_volatile(&raw const walk.recipe) } as usize;
    index.wrapping_sub(1)
}

/// The recipe that [`due`] has told the index of.
#[inline(always)]
pub(crate) fn picked<'r>(walk: &Walk, recipes: &'r Recipes) -> &'r Recipe {
    // Read once more, so that the compiler does not know what was checked and
    // leaves the mask that shows the bound to the verifier.
    // SAFETY: the pointer is a reference's.
    let index = unsafe { core::ptr::read_volatile(&raw const walk.recipe) } as usize;
    &recipes.recipes[index.wrapping_sub(1) % MAX_RECIPES]
}

/// The object that a variable of a frame that was hit holds, 0 if it is not
/// bound; none if that cannot be read.
#[inline(always)]
pub(crate) fn variable(walk: &mut Walk, layout: &Layout, hit: u32, slot: u32) -> Option<u64> {
    // Recipes of a frame that begin alike come one after the other.
    let number = u64::from(slot);
    let hit = &walk.hits[hit as usize % MAX_HITS];
    let frame = hit.frame;
    if walk.local.frame != frame || walk.local.slot != number {
        let found = if number < hit.near {
            frame::object(layout, hit.locals[number as usize % NEAR_LOCALS])
        } else {
            let windows = &mut walk.scratch.windows;
            frame::local_in(&User, layout, frame, slot, windows)
        };
        walk.local.frame = 0;
        if let Ok(found) = found {
            walk.local = Local {
                frame,
                slot: number,
                object: found.unwrap_or(0),
            };
        }
    }
    (walk.local.frame != 0).then_some(walk.local.object)
}

/// Goes on with the next frame that has recipes.
#[inline(always)]
fn next_hit<C: Chain>(ctx: &C, walk: &mut Walk) {
    walk.recipe = 0;
    walk.hit += 1;
    next(ctx, walk);
}

/// Goes on with the next recipe, if there is one.
#[inline(always)]
fn next<C: Chain>(ctx: &C, walk: &mut Walk) {
    if walk.hit >= walk.hits_len {
        return stacks::finish(ctx, walk);
    }
    if walk.left != 0 {
        walk.left -= 1;
        ctx.go(step::RECIPE);
    }
    stop(ctx, walk);
}

/// There are more values than the kernel lets us look for.
#[inline(always)]
fn stop<C: Chain>(ctx: &C, walk: &mut Walk) {
    count(Counter::StackCutOff);
    walk.stack.flags |= stack_flag::VALUES_LOST;
    stacks::finish(ctx, walk);
}

/// Runs a recipe and adds what it leads to; true if that is an exception,
/// which is another program's to add.
#[inline(always)]
fn run(walk: &mut Walk, layout: &Layout, recipe: &Recipe, hit: u32, place: Place) -> bool {
    let raised = recipe.slot == RAISED;
    walk.scratch.skip_nothing();
    let start = if raised {
        User.u64(at(walk.tstate, layout.tstate.current_exception))
    } else if recipe.slot == ARGUMENT {
        let frame = walk.hits[hit as usize % MAX_HITS].frame;
        let wanted = argument::Wanted {
            class: recipe.key,
            functions: recipe.steps[FUNCTIONS].key,
            composed: recipe.steps[COMPOSED].key,
        };
        let found = argument::first(&User, layout, frame, wanted, &mut walk.scratch);
        let Ok(found) = found else {
            // The frame calls something else.
            return false;
        };
        Ok(found)
    } else {
        match variable(walk, layout, hit, recipe.slot) {
            None => Err(pyframes::Error::Unreadable),
            Some(0) => {
                plain(walk, place, value::NONE, 0, 0, 0);
                return false;
            }
            Some(object) => Ok(object),
        }
    };
    let Ok(start) = start else {
        failed(walk, place, 0, 0, 0);
        return false;
    };
    let untouched = recipe.steps[0].op == machine::op::END;
    let address = machine::run_rest(&User, layout, &recipe.steps, start, &mut walk.scratch);
    let Ok(address) = address else {
        if recipe.terminal == STATEMENT {
            // There is none.
            return false;
        }
        let step = walk.scratch.failed_step() as u8;
        if recipe.terminal >= terminal::SOCKET {
            // Of several ways to a connection all but one fail.
            plain(walk, place, value::FAILED, step, 0, 0);
            return false;
        }
        failed(walk, place, step, 0, 0);
        return false;
    };
    if recipe.terminal == UNTYPED {
        plain(walk, place, value::OBJECT, 0, address, 0);
        return false;
    }
    if recipe.terminal == u32::from(value::EXCEPTION) {
        walk.exception.address = address;
        walk.exception.recipe = place.recipe;
        walk.exception.frame = place.frame;
        walk.exception.part = place.part;
        walk.exception.depth = 0;
        walk.exception.code = 0;
        walk.exception.type_address = 0;
        walk.exception.traceback = 0;
        walk.exception.group = 0;
        walk.exception.member = 0;
        if raised && untouched {
            in_flight(walk, layout);
        }
        return true;
    }
    if recipe.terminal >= terminal::SOCKET {
        serving(walk, layout, recipe, place, address);
        return false;
    }
    copy::<TEXT_BYTES>(walk, layout, place, recipe.terminal as u8, address);
    false
}

/// Adds what a server's frame tells of the connection that it serves. What
/// must hold of it and does is told as `None`.
#[inline(always)]
fn serving(walk: &mut Walk, layout: &Layout, recipe: &Recipe, place: Place, address: u64) {
    if servers::is_condition(recipe.terminal) {
        if servers::holds(&mut walk.scratch, layout, recipe, address) {
            plain(walk, place, value::NONE, 0, address, 0);
        } else {
            plain(walk, place, value::FAILED, NO_STEP, address, 0);
        }
        return;
    }
    let pid = walk.stack.pid;
    let Some(target) = processes::target(pid) else {
        return;
    };
    let owner = servers::connection(pid, target, layout, recipe, address).owner;
    if owner.conn == 0 {
        return plain(walk, place, value::FAILED, NO_STEP, address, 0);
    }
    let Some(into) = room(walk) else {
        return;
    };
    // SAFETY: there is room behind a value, and it is aligned.
    unsafe { *into.add(1).cast::<Owner>() = owner };
    let value = Value {
        recipe: place.recipe,
        frame: place.frame,
        kind: value::CONNECTION,
        part: place.part,
        len: size_of::<Owner>() as u32,
        width: 0,
        detail: 0,
        pad: 0,
        address,
        type_address: 0,
    };
    add(walk, into, value);
}

/// What the thread, and not the exception, knows of an exception in flight.
#[inline(always)]
fn in_flight(walk: &mut Walk, layout: &Layout) {
    let tstate = &layout.tstate;
    if tstate.exception_type != pyframes::layout::ABSENT {
        let (kind, traceback) = (
            User.u64(at(walk.tstate, tstate.exception_type)),
            User.u64(at(walk.tstate, tstate.exception_traceback)),
        );
        walk.exception.type_address = kind.unwrap_or(0);
        walk.exception.traceback = traceback.unwrap_or(0);
    }
    let frame = walk.walker.frame;
    walk.exception.code = frame.code;
    let unit = layout.frame.lasti_unit;
    let lasti = if unit == 0 {
        frame
            .instruction
            .wrapping_sub(at(frame.code, layout.code.co_code_adaptive))
    } else {
        frame.instruction.wrapping_mul(u64::from(unit))
    };
    walk.exception.lasti = lasti as i32;
}

/// The field at an offset of the object at `base`.
#[inline(always)]
pub(crate) fn at(base: u64, offset: u32) -> u64 {
    base.wrapping_add(u64::from(offset))
}

/// Adds an object as a value. `wanted` is the kind that it should be, or
/// [`ANY`].
#[inline(always)]
fn copy<const TEXT: u32>(walk: &mut Walk, layout: &Layout, place: Place, wanted: u8, address: u64) {
    let Ok(type_address) = object::type_of(&User, layout, address, &mut walk.scratch) else {
        return failed(walk, place, NO_STEP, address, 0);
    };
    if wanted == value::OBJECT {
        return plain(walk, place, value::OBJECT, 0, address, type_address);
    }
    let flags = if wanted == ANY {
        object::type_flags(&User, layout, type_address)
    } else {
        object::value_flags(&User, layout, type_address, &mut walk.scratch)
    };
    let Ok(flags) = flags else {
        return failed(walk, place, NO_STEP, address, type_address);
    };
    let statement = u32::from(wanted) == STATEMENT;
    let text_wanted = wanted == value::TEXT || wanted == ANY;
    if object::is_text(flags) && text_wanted || object::is_statement(flags) && statement {
        let bytes = !object::is_text(flags);
        return text::<TEXT>(walk, layout, place, address, type_address, bytes);
    }
    if statement {
        return;
    }
    if flags & flag::LONG_SUBCLASS != 0 && (wanted == value::INT || wanted == ANY) {
        return match object::int(&User, layout, address, &mut walk.scratch) {
            Ok(number) => {
                let number = number.cast_unsigned();
                eight(walk, place, value::INT, number, address, type_address);
            }
            Err(_) if wanted == ANY => {
                plain(walk, place, value::OBJECT, 0, address, type_address);
            }
            Err(_) => failed(walk, place, NO_STEP, address, type_address),
        };
    }
    if object::is_none_type(&User, layout, type_address) {
        return plain(walk, place, value::NONE, 0, address, type_address);
    }
    if (wanted == value::FLOAT || wanted == ANY)
        && object::is_float_type(&User, layout, type_address)
        && let Ok(number) = User.u64(at(address, layout.float.ob_fval))
    {
        return eight(walk, place, value::FLOAT, number, address, type_address);
    }
    if wanted == ANY {
        plain(walk, place, value::OBJECT, 0, address, type_address);
    } else {
        failed(walk, place, NO_STEP, address, type_address);
    }
}

/// A kind of value that is none: whatever the object is.
const ANY: u8 = u8::MAX;
/// [`Value::detail`] of a failure after the last step.
const NO_STEP: u8 = machine::MAX_STEPS as u8;

/// Adds a text, or `bytes`.
#[inline(always)]
fn text<const LIMIT: u32>(
    walk: &mut Walk,
    layout: &Layout,
    place: Place,
    address: u64,
    type_address: u64,
    bytes: bool,
) {
    let text = if bytes {
        object::bytes(&User, layout, address, &mut walk.scratch)
    } else {
        object::text(&User, layout, address, &mut walk.scratch)
    };
    let Ok(text) = text else {
        return failed(walk, place, NO_STEP, address, type_address);
    };
    let most = u64::from(LIMIT) / text.width;
    let cut = text.points > most;
    let points = if cut { most } else { text.points };
    let len = (points * text.width) as u32;
    let Some(into) = room(walk) else {
        return;
    };
    // A short text was read with its head.
    // SAFETY: there is room behind a value for `LIMIT` bytes, and it is
    // aligned.
    let near = unsafe { &mut *into.add(1).cast::<[u64; COPIED]>() };
    let known = walk.scratch.windows.copy(text.data, u64::from(len), near);
    if len != 0 && !known {
        // The compiler may know the bound and would drop the mask that shows
        // it to the verifier; the volatile read makes it forget.
        // SAFETY: `len` is a local; there is room behind a value for
        // `LIMIT` bytes, which the mask keeps the length to.
        let read = unsafe {
            let len = (core::ptr::read_volatile(&raw const len).wrapping_sub(1) & (LIMIT - 1)) + 1;
            user::copy(text.data, into.add(1).cast(), len)
        };
        if !read {
            return failed(walk, place, NO_STEP, address, type_address);
        }
    }
    let value = Value {
        recipe: place.recipe,
        frame: place.frame,
        kind: if bytes { value::BYTES } else { value::TEXT },
        part: place.part,
        len,
        width: text.width as u8,
        detail: u8::from(cut),
        pad: 0,
        address,
        type_address,
    };
    add(walk, into, value);
}

/// Adds a value of eight bytes.
#[inline(always)]
pub(crate) fn eight(
    walk: &mut Walk,
    place: Place,
    kind: u8,
    number: u64,
    address: u64,
    type_address: u64,
) {
    let Some(into) = room(walk) else {
        return;
    };
    // SAFETY: there is room behind a value, and it is aligned.
    unsafe { *into.add(1).cast::<u64>() = number };
    let value = Value {
        recipe: place.recipe,
        frame: place.frame,
        kind,
        part: place.part,
        len: 8,
        width: 0,
        detail: 0,
        pad: 0,
        address,
        type_address,
    };
    add(walk, into, value);
}

/// Adds a value without bytes.
#[inline(always)]
pub(crate) fn plain(
    walk: &mut Walk,
    place: Place,
    kind: u8,
    detail: u8,
    address: u64,
    type_address: u64,
) {
    let Some(into) = room(walk) else {
        return;
    };
    let value = Value {
        recipe: place.recipe,
        frame: place.frame,
        kind,
        part: place.part,
        len: 0,
        width: 0,
        detail,
        pad: 0,
        address,
        type_address,
    };
    add(walk, into, value);
}

/// Adds that a value could not be reached.
#[inline(always)]
fn failed(walk: &mut Walk, place: Place, step: u8, address: u64, type_address: u64) {
    count(Counter::StackValueFailed);
    plain(walk, place, value::FAILED, step, address, type_address);
}

/// Where the next value goes, if the longest would fit.
#[inline(always)]
fn room(walk: &mut Walk) -> Option<*mut Value> {
    let used = walk.used;
    if used > MAX_USED - LONGEST {
        count(Counter::StackValuesFull);
        walk.stack.flags |= stack_flag::VALUES_LOST;
        return None;
    }
    // SAFETY: `used` is a local, read so that the mask stays; the body is
    // longer than the mask by more than the longest value.
    Some(unsafe {
        let used = core::ptr::read_volatile(&raw const used) as usize & BODY_MASK;
        walk.body.as_mut_ptr().add(used).cast()
    })
}

/// Adds the value whose bytes are in place behind `into`.
#[inline(always)]
fn add(walk: &mut Walk, into: *mut Value, value: Value) {
    // SAFETY: `into` comes from `room`.
    unsafe { *into = value };
    walk.used += size_of::<Value>() as u32 + value.len.next_multiple_of(8);
}

/// Adds an exception with its traceback and arguments; then the next one of
/// its chain.
#[inline(always)]
pub(crate) fn exception<C: Chain>(ctx: &C) {
    let Some(walk) = stacks::current::<C>() else {
        return;
    };
    let Some(layout) = stacks::layout(walk.layout) else {
        return stacks::finish(ctx, walk);
    };
    if !open(walk, layout) {
        let Raised {
            recipe,
            frame,
            part,
            address,
            ..
        } = walk.exception;
        let place = Place {
            recipe,
            frame,
            part,
        };
        failed(walk, place, NO_STEP, address, 0);
        return next(ctx, walk);
    }
    if let Some(into) = room(walk) {
        traceback(walk, layout, into);
        arguments(walk, layout);
        if notes::wanted(walk) && walk.left != 0 {
            walk.left -= 1;
            ctx.go(C::NOTES);
            return stop(ctx, walk);
        }
    }
    chained(ctx, walk);
}

/// Goes on with the next exception of the chain, then with the next member of
/// the group that it began with.
#[inline(always)]
pub(crate) fn chained<C: Chain>(ctx: &C, walk: &mut Walk) {
    let Some(layout) = stacks::layout(walk.layout) else {
        return stacks::finish(ctx, walk);
    };
    let depth = walk.exception.depth;
    let mut following = 0;
    if depth < MAX_CHAIN {
        following = walk.exception.next;
        walk.exception.depth = depth + 1;
    }
    if following == 0 {
        following = notes::next_member(walk, layout);
        walk.exception.next_part = u64::from(part::MEMBER);
        walk.exception.depth = 0;
    }
    if following != 0 && walk.left != 0 {
        walk.left -= 1;
        walk.exception.address = following;
        walk.exception.part = walk.exception.next_part as u8;
        walk.exception.type_address = 0;
        walk.exception.code = 0;
        ctx.go(step::EXCEPTION);
        return stop(ctx, walk);
    }
    next(ctx, walk);
}

/// Finds the parts of the exception; false if it is none.
#[inline(always)]
fn open(walk: &mut Walk, layout: &Layout) -> bool {
    let address = walk.exception.address;
    let mut flags = 0;
    let mut type_address = 0;
    if address != 0 {
        let Ok(found) = object::type_of(&User, layout, address, &mut walk.scratch) else {
            return false;
        };
        let Ok(found_flags) = object::type_flags(&User, layout, found) else {
            return false;
        };
        type_address = found;
        flags = found_flags;
    }
    let raised = &mut walk.exception;
    raised.args = 0;
    raised.only = 0;
    raised.next = 0;
    raised.next_part = 0;
    raised.dict = 0;
    raised.members = 0;
    raised.entries = 0;
    raised.entry = raised.traceback;
    if flags & object::BASE_EXC_SUBCLASS == 0 {
        // Up to 3.11 an exception in flight may be no object yet: this is
        // what its type is to be called with.
        if raised.type_address == 0 {
            return false;
        }
        if flags & flag::TUPLE_SUBCLASS != 0 {
            raised.args = address;
        } else if address != 0 && !object::is_none_type(&User, layout, type_address) {
            raised.only = address;
        }
        return true;
    }
    let Ok(parts) = object::exception(&User, layout, address, &mut walk.scratch) else {
        return false;
    };
    let members = object::members(&User, layout, address, type_address).unwrap_or(0);
    let raised = &mut walk.exception;
    raised.dict = parts.dict;
    raised.members = members;
    if raised.part == part::ITSELF {
        raised.group = members;
    }
    raised.args = parts.args;
    if raised.type_address == 0 {
        raised.entry = parts.traceback;
    }
    raised.type_address = type_address;
    if parts.cause != 0 {
        raised.next = parts.cause;
        raised.next_part = u64::from(part::CAUSE);
    } else if !parts.suppress_context {
        raised.next = parts.context;
        raised.next_part = u64::from(part::CONTEXT);
    }
    true
}

/// Adds the exception with its traceback.
#[inline(always)]
fn traceback(walk: &mut Walk, layout: &Layout, into: *mut Value) {
    // SAFETY: `into` comes from `room`.
    let entries: *mut Traceback = unsafe { into.add(1).cast() };
    let mut detail = 0;
    if walk.exception.code != 0 {
        // SAFETY: there is room behind a value.
        unsafe {
            *entries = Traceback {
                code: walk.exception.code,
                lasti: walk.exception.lasti,
                lineno: 0,
            };
        }
        walk.exception.entries = 1;
    }
    for _ in 0..MAX_ENTRIES {
        let address = walk.exception.entry;
        let index = walk.exception.entries as usize;
        if address == 0 || index >= MAX_ENTRIES {
            break;
        }
        let Ok(entry) = object::entry(&User, layout, address) else {
            break;
        };
        let Ok(frame) = frame::of_object(&User, layout, entry.frame) else {
            break;
        };
        let Ok(code) = frame::code(&User, layout, frame) else {
            break;
        };
        // SAFETY: there is room behind a value for `MAX_ENTRIES`; the index
        // is read so that the mask stays.
        unsafe {
            let index = core::ptr::read_volatile(&raw const index) & (MAX_ENTRIES - 1);
            *entries.add(index) = Traceback {
                code,
                lasti: entry.lasti,
                lineno: entry.lineno,
            };
        }
        walk.exception.entries += 1;
        walk.exception.entry = entry.next;
    }
    if walk.exception.entry != 0 {
        detail |= exception_detail::TRACEBACK_CUT;
    }
    let raised = walk.exception;
    if raised.args != 0
        && let Ok(len) = User.u64(at(raised.args, layout.object.ob_size))
        && len > MAX_ARGUMENTS
    {
        detail |= exception_detail::ARGUMENTS_CUT;
    }
    let value = Value {
        recipe: raised.recipe,
        frame: raised.frame,
        kind: value::EXCEPTION,
        part: raised.part,
        len: raised.entries as u32 * size_of::<Traceback>() as u32,
        width: 0,
        detail,
        pad: 0,
        address: raised.address,
        type_address: raised.type_address,
    };
    add(walk, into, value);
}

/// Adds an object as an argument of an exception is added.
#[inline(always)]
pub(crate) fn argument(walk: &mut Walk, layout: &Layout, place: Place, address: u64) {
    copy::<ARGUMENT_BYTES>(walk, layout, place, ANY, address);
}

/// Adds the exception's arguments.
#[inline(always)]
fn arguments(walk: &mut Walk, layout: &Layout) {
    let place = Place {
        recipe: walk.exception.recipe,
        frame: walk.exception.frame,
        part: part::ARGUMENT,
    };
    for number in 0..MAX_ARGUMENTS {
        let tuple = walk.exception.args;
        let address = if tuple == 0 {
            let only = walk.exception.only;
            walk.exception.only = 0;
            only
        } else {
            match User.u64(at(tuple, layout.object.ob_size)) {
                Ok(len) if number < len => {
                    let items = at(tuple, layout.tuple.ob_item);
                    User.u64(items.wrapping_add(number * 8)).unwrap_or(0)
                }
                _ => 0,
            }
        };
        if address == 0 {
            break;
        }
        argument(walk, layout, place, address);
    }
}
