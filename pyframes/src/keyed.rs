//! Looks up attributes and dictionary items by the address of their key.
//!
//! Keys are compared by address and never by text, which finds interned
//! strings only, and needs no hash: the entries are read at once and compared
//! one by one. Up to [`MAX_ENTRIES`] are; what comes after is not found.
//!
//! Written for the kernel: nothing is returned that could be put into the
//! [`Scratch`], as the verifier takes what it reads from there for any number
//! and so has fewer states to follow.

use core::hint::black_box;

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::layout::{ABSENT, Layout};
use crate::object::flag;
use crate::recipe::{Scratch, lasting};
use crate::window::Kind;
use crate::{Error, Memory, field};

/// Entries of a table that are looked at: one less than a power of two, so
/// that it is a mask.
pub const MAX_ENTRIES: u64 = 63;

/// Stands for no entry.
const NOT_FOUND: u64 = u64::MAX;

/// A table of keys and values.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub(crate) struct Table {
    /// Address of the `PyDictKeysObject`.
    keys: u64,
    /// Address of the entries.
    entries: u64,
    /// Index of the first in the windows, or 0 if they were not read yet.
    first: u64,
    /// How many are looked at, deleted ones included.
    count: u64,
    /// 1 if an entry is hash, key and value, 0 if key and value only.
    hashed: u64,
    /// Address of the values of a split table, or 0.
    values: u64,
    /// Number of the entry that was found, or [`NOT_FOUND`].
    found: u64,
    /// Index of its value in the windows.
    found_at: u64,
}

impl Table {
    pub(crate) const NONE: Self = Self {
        keys: 0,
        entries: 0,
        first: 0,
        count: 0,
        hashed: 0,
        values: 0,
        found: NOT_FOUND,
        found_at: 0,
    };
}

/// Opens the dictionary at `address`, which may be any object.
#[inline(always)]
pub(crate) fn open_dict<M: Memory>(
    memory: &M,
    layout: &Layout,
    address: u64,
    scratch: &mut Scratch,
) -> Result<(), Error> {
    known_dict(memory, layout, address, scratch)?;
    let type_address = word(scratch, layout.object.ob_type);
    if type_address != scratch.dict_type {
        let at = field(type_address, layout.type_object.tp_flags);
        let flags = scratch.windows.u64(memory, Kind::Type, at)?;
        if flags & flag::DICT_SUBCLASS == 0 {
            return Err(Error::WrongType);
        }
        scratch.dict_type = lasting(type_address, flags);
    }
    open_keys(memory, layout, scratch)
}

/// Opens the attributes that the object at `address` itself has, wherever its
/// version and type keep them.
///
/// What is before the object is looked for together with it.
#[inline(always)]
pub(crate) fn open_attributes<M: Memory>(
    memory: &M,
    layout: &Layout,
    address: u64,
    scratch: &mut Scratch,
) -> Result<(), Error> {
    let at = &layout.type_object;
    let own = &layout.instance;
    let mut dict = 0;
    scratch.table.values = 0;
    let mut type_address = 0;
    if own.managed_dict != ABSENT {
        let start = address.wrapping_sub(BEFORE.into());
        let count = u64::from((BEFORE + layout.object.size) / 8);
        if scratch
            .windows
            .find(memory, Kind::Object, start, count)
            .is_ok()
        {
            type_address = word(scratch, BEFORE + layout.object.ob_type);
            dict = word(scratch, BEFORE.wrapping_sub(own.managed_dict));
            if own.values != ABSENT {
                scratch.table.values = word(scratch, BEFORE.wrapping_sub(own.values));
            }
        }
    }
    if type_address == 0 {
        // Not a type that keeps something before its instances, maybe.
        let at = field(address, layout.object.ob_type);
        type_address = scratch.windows.pointer(memory, Kind::Object, at)?;
    }
    let start = field(type_address, at.tp_basicsize);
    let count = u64::from((at.tp_dictoffset - at.tp_basicsize) / 8) + 1;
    // A class that keeps attributes apart from a dictionary has more, which
    // is read with it: at what else is there, that may not be mapped.
    let whole = if own.managed_dict == ABSENT {
        count
    } else {
        u64::from((layout.heap_type.ht_cached_keys - at.tp_basicsize) / 8) + 1
    };
    if whole == count
        || scratch
            .windows
            .find(memory, Kind::Type, start, whole)
            .is_err()
    {
        scratch.windows.find(memory, Kind::Type, start, count)?;
    }
    let flags = word(scratch, at.tp_flags - at.tp_basicsize);
    let size = word(scratch, 0);
    let offset = word(scratch, at.tp_dictoffset - at.tp_basicsize);
    if own.managed_dict != ABSENT && flags & MANAGED_DICT != 0 {
        if own.inline_values != 0 && flags & INLINE_VALUES != 0 {
            let values = address.wrapping_add(size);
            let valid = field(values, layout.dict_values.valid);
            let bytes = scratch.windows.u64(memory, Kind::Object, valid & !7)?;
            if bytes >> (valid % 8 * 8) & 0xff != 0 {
                scratch.table.values = field(values, layout.dict_values.values);
            }
        } else if own.tagged != 0 && dict & 1 != 0 {
            // One more byte leads to the values (3.12).
            scratch.table.values = dict.wrapping_add(1);
        }
    } else {
        scratch.table.values = 0;
        // Negative where instances differ in size: not followed.
        if offset == 0 || offset > MAX_DICT_OFFSET {
            return Err(Error::WrongType);
        }
        let at = address.wrapping_add(offset);
        dict = scratch.windows.pointer(memory, Kind::Object, at)?;
    }
    if scratch.table.values == 0 {
        if dict == 0 {
            return Err(Error::Null);
        }
        known_dict(memory, layout, dict, scratch)?;
    } else {
        let at = field(type_address, layout.heap_type.ht_cached_keys);
        scratch.table.keys = scratch.windows.u64(memory, Kind::Type, at)?;
    }
    open_keys(memory, layout, scratch)
}

/// The keys of a dictionary, and its values if they are apart.
#[inline(always)]
fn known_dict<M: Memory>(
    memory: &M,
    layout: &Layout,
    address: u64,
    scratch: &mut Scratch,
) -> Result<(), Error> {
    let count = u64::from(layout.dict.ma_values / 8) + 1;
    scratch.windows.find(memory, Kind::Object, address, count)?;
    scratch.table.keys = word(scratch, layout.dict.ma_keys);
    let mut values = word(scratch, layout.dict.ma_values);
    if values != 0 {
        values = field(values, layout.dict_values.values);
    }
    scratch.table.values = values;
    Ok(())
}

/// Opens the table's `PyDictKeysObject`.
#[inline(always)]
fn open_keys<M: Memory>(memory: &M, layout: &Layout, scratch: &mut Scratch) -> Result<(), Error> {
    let at = &layout.dict_keys;
    let keys = scratch.table.keys;
    if keys == 0 {
        return Err(Error::Null);
    }
    scratch
        .windows
        .find(memory, Kind::Table, keys, KEYS_HEAD_WORDS)?;
    let index_bytes;
    if at.dk_size == ABSENT {
        let log2_bytes = byte(scratch, at.dk_log2_index_bytes);
        if log2_bytes > MAX_LOG2_INDEX_BYTES {
            return Err(Error::TooLong);
        }
        index_bytes = 1 << log2_bytes;
        scratch.table.hashed = u64::from(byte(scratch, at.dk_kind) == DICT_KEYS_GENERAL);
    } else {
        let size = word(scratch, at.dk_size);
        if size > 1 << MAX_LOG2_INDEX_BYTES {
            return Err(Error::TooLong);
        }
        // The width of an index follows from the number of slots.
        let width = if size <= 0xff {
            1
        } else if size <= 0xffff {
            2
        } else {
            4
        };
        index_bytes = size * width;
        scratch.table.hashed = 1;
    }
    let mut count = word(scratch, at.dk_nentries);
    if count > MAX_ENTRIES {
        count = MAX_ENTRIES;
    }
    scratch.table.count = count;
    let head = u64::from(at.dk_indices) + index_bytes;
    scratch.table.entries = keys.wrapping_add(head);
    scratch.table.first = 0;
    Ok(())
}

/// The value of the open table whose key is the object at `key`.
///
/// What was found on the way is forgotten twice ([`black_box`]) and read from
/// the scratch again: before the entries are compared and after. Otherwise
/// the verifier would compare them once for every form that a table may have,
/// and follow what comes after once for every entry.
#[inline(always)]
pub(crate) fn find<M: Memory>(memory: &M, key: u64, scratch: &mut Scratch) -> Result<u64, Error> {
    let scratch = black_box(scratch);
    let count = scratch.table.count & MAX_ENTRIES;
    let hashed = scratch.table.hashed & 1;
    let stride = 2 + hashed;
    if scratch.table.first == 0 {
        let entries = scratch.table.entries;
        scratch
            .windows
            .find(memory, Kind::Table, entries, count * stride)?;
        scratch.table.first = scratch.windows.at();
    }
    let scratch = black_box(scratch);
    // The hash comes before the key.
    let mut at = scratch.table.first.wrapping_add(hashed);
    scratch.table.found = NOT_FOUND;
    for index in 0..MAX_ENTRIES {
        if index >= count {
            break;
        }
        if scratch.windows.nth(at) == key {
            scratch.table.found = index;
            scratch.table.found_at = at + 1;
            break;
        }
        at += stride;
    }
    let scratch = black_box(scratch);
    if scratch.table.found == NOT_FOUND {
        return Err(Error::Null);
    }
    let value = if scratch.table.values == 0 {
        scratch.windows.nth(scratch.table.found_at)
    } else {
        let at = scratch.table.values.wrapping_add(scratch.table.found * 8);
        scratch.windows.u64(memory, Kind::Object, at)?
    };
    if value == 0 {
        return Err(Error::Null);
    }
    Ok(value)
}

/// The aligned 64-bit field at `offset` of what was read.
#[inline(always)]
fn word(scratch: &Scratch, offset: u32) -> u64 {
    scratch.windows.word(offset)
}

/// The byte at `offset` of what was read.
#[inline(always)]
fn byte(scratch: &Scratch, offset: u32) -> u64 {
    word(scratch, offset) >> (offset % 8 * 8) & 0xff
}

/// Bits of `tp_flags` (`Py_TPFLAGS_*`): where instances keep attributes.
const MANAGED_DICT: u64 = 1 << 4;
const INLINE_VALUES: u64 = 1 << 2;

/// `dk_kind` of a table whose entries have a hash; since 3.11.
const DICT_KEYS_GENERAL: u64 = 0;

/// A table whose indices take more than this is not one of attributes.
const MAX_LOG2_INDEX_BYTES: u64 = 24;

/// Objects have their dictionary near their beginning.
const MAX_DICT_OFFSET: u64 = 1 << 16;

/// Words of a `PyDictKeysObject` up to its indices.
const KEYS_HEAD_WORDS: u64 = 5;
/// Bytes before an object that are read with it: where a type may say that
/// instances have their dictionary or their values.
const BEFORE: u32 = 32;
