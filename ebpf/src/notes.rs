//! What newer exceptions bring besides arguments: notes, and the members of
//! groups. A program of its own, so that the one that copies an exception
//! stays as small as it is.

use abi::record::{part, value};
use pyframes::{Layout, Memory as _, value as object};

use crate::maps::Walk;
use crate::stacks::{self, Chain};
use crate::user::User;
use crate::values::{self, Place, at};

/// Notes of an exception that are copied.
const MAX_NOTES: u64 = 3;
/// Members of a group that are copied.
const MAX_MEMBERS: u64 = 4;

/// Whether [`notes`] has something to do for the exception that was just
/// added.
#[inline(always)]
pub(crate) fn wanted(walk: &Walk) -> bool {
    walk.exception.dict != 0 || walk.exception.members != 0
}

/// Adds the notes of the exception that was just added, and how many members
/// it has; then goes on.
#[inline(always)]
pub(crate) fn notes<C: Chain>(ctx: &C) {
    let Some(walk) = stacks::current::<C>() else {
        return;
    };
    let Some(layout) = stacks::layout(walk.layout) else {
        return stacks::finish(ctx, walk);
    };
    let mut place = Place {
        recipe: walk.exception.recipe,
        frame: walk.exception.frame,
        part: part::MEMBERS,
    };
    let members = walk.exception.members;
    if members != 0
        && let Ok(count) = User.u64(at(members, layout.object.ob_size))
    {
        values::eight(walk, place, value::INT, count, members, 0);
    }
    place.part = part::NOTE;
    add_notes(walk, layout, place);
    values::chained(ctx, walk);
}

#[inline(always)]
fn add_notes(walk: &mut Walk, layout: &Layout, place: Place) {
    if walk.exception.dict == 0 {
        return;
    }
    let Ok(list) = object::notes(&User, layout, walk.exception.dict) else {
        return;
    };
    let (Ok(count), Ok(items)) = (
        User.u64(at(list, layout.object.ob_size)),
        User.u64(at(list, layout.list.ob_item)),
    ) else {
        return;
    };
    for number in 0..=MAX_NOTES {
        if number >= count {
            break;
        }
        let note = User.u64(items.wrapping_add(number * 8)).unwrap_or(0);
        if number == MAX_NOTES {
            values::plain(walk, place, value::OBJECT, 0, note, 0);
        } else {
            values::argument(walk, layout, place, note);
        }
    }
}

/// The next member of the group that the walk is at, or 0.
#[inline(always)]
pub(crate) fn next_member(walk: &mut Walk, layout: &Layout) -> u64 {
    let (group, number) = (walk.exception.group, walk.exception.member);
    if group == 0 || number >= MAX_MEMBERS {
        return 0;
    }
    walk.exception.member = number + 1;
    match User.u64(at(group, layout.object.ob_size)) {
        Ok(count) if number < count => {
            let items = at(group, layout.tuple.ob_item);
            User.u64(items.wrapping_add(number * 8)).unwrap_or(0)
        }
        _ => 0,
    }
}
