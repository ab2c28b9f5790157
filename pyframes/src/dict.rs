//! Reads dictionaries: general, string-keyed and split tables.
//!
//! Look-ups compare every key in insertion order. The hash of a string is
//! keyed with a secret of its process, and the tables that are asked here are
//! small or asked rarely.

use crate::layout::{ABSENT, Layout};
use crate::object::{self, flag};
use crate::text::str_equals;
use crate::{Error, Memory, field, u64_in};

/// A dictionary that was opened: where its entries are and of which form.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dict {
    entries: u64,
    /// Entries in use, deleted ones included.
    n_entries: u32,
    form: Form,
    /// The values of a split table.
    values: Option<u64>,
    order: Option<Order>,
}

/// In which order the values of a split table were inserted (since 3.11; before,
/// a table is split only as long as that is the order of the keys).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Order {
    /// Address of the index of the first one, a byte.
    first: u64,
    /// Distance to the next one's: 1 or -1.
    step: i64,
    len: u32,
}

/// A key and its value; both are addresses of objects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The key.
    pub key: u64,
    /// The value.
    pub value: u64,
}

impl Dict {
    /// Opens the dictionary at `address`.
    pub fn open<M: Memory>(memory: &M, layout: &Layout, address: u64) -> Result<Self, Error> {
        object::check_instance(memory, layout, address, flag::DICT_SUBCLASS)?;
        let keys = memory.pointer(field(address, layout.dict.ma_keys))?;
        let values = memory.u64(field(address, layout.dict.ma_values))?;
        Self::of_keys(memory, layout, keys, (values != 0).then_some(values))
    }

    /// The table whose keys are the `PyDictKeysObject` at `keys`; with the
    /// `PyDictValues` at `values` if it is a split one.
    pub(crate) fn of_keys<M: Memory>(
        memory: &M,
        layout: &Layout,
        keys: u64,
        values: Option<u64>,
    ) -> Result<Self, Error> {
        let order = match values {
            Some(values) => Order::read(memory, layout, values)?,
            None => None,
        };
        let values = values.map(|values| field(values, layout.dict_values.values));
        let at = &layout.dict_keys;
        let n_entries = memory.u64(field(keys, at.dk_nentries))?;
        let (index_bytes, form) = if at.dk_size != ABSENT {
            let size = memory.u64(field(keys, at.dk_size))?;
            (index_bytes(size)?, Form::WITH_HASH)
        } else {
            let log2_bytes = memory.u8(field(keys, at.dk_log2_index_bytes))?;
            if log2_bytes > MAX_LOG2_INDEX_BYTES {
                return Err(Error::TooLong);
            }
            let form = match memory.u8(field(keys, at.dk_kind))? {
                DICT_KEYS_GENERAL => Form::WITH_HASH,
                DICT_KEYS_UNICODE | DICT_KEYS_SPLIT => Form::WITHOUT_HASH,
                _ => return Err(Error::Malformed),
            };
            (1 << log2_bytes, form)
        };
        let n_entries = u32::try_from(n_entries).map_err(|_| Error::TooLong)?;
        let entries = field(keys, at.dk_indices).wrapping_add(index_bytes);
        Ok(Self {
            entries,
            n_entries,
            form,
            values,
            order,
        })
    }

    /// The entries in insertion order, without the deleted ones. A table of
    /// more than 65,536 is too long.
    pub fn entries<'m, M: Memory>(&self, memory: &'m M) -> Entries<'m, M> {
        Entries {
            memory,
            dict: *self,
            next_idx: 0,
            chunk: [0; CHUNK],
            taken: 0,
            filled: 0,
        }
    }

    /// The value whose key is the `str` `name`.
    ///
    /// Keys that cannot be read are passed over: one that was deleted while
    /// the table was read must not hide the others.
    pub fn get<M: Memory>(
        &self,
        memory: &M,
        layout: &Layout,
        name: &str,
    ) -> Result<Option<u64>, Error> {
        let by_key = Self {
            order: None,
            ..*self
        };
        for entry in by_key.entries(memory) {
            let entry = entry?;
            if str_equals(memory, layout, entry.key, name) == Ok(true) {
                return Ok(Some(entry.value));
            }
        }
        Ok(None)
    }
}

/// The entries of a dictionary; ends after an error.
#[derive(Debug)]
pub struct Entries<'m, M> {
    memory: &'m M,
    dict: Dict,
    next_idx: u32,
    chunk: [u8; CHUNK],
    taken: usize,
    filled: usize,
}

impl<M: Memory> Entries<'_, M> {
    /// The next entry as it stands in the table.
    fn raw(&mut self) -> Result<Option<Entry>, Error> {
        if self.next_idx
            >= self
                .dict
                .order
                .map_or(self.dict.n_entries, |order| order.len)
        {
            return Ok(None);
        }
        if self.next_idx >= MAX_ENTRIES {
            return Err(Error::TooLong);
        }
        if let (Some(values), Some(order)) = (self.dict.values, self.dict.order) {
            return self.inserted(values, order).map(Some);
        }
        let Form { size, key, value } = self.dict.form;
        if self.taken == self.filled {
            let left = (self.dict.n_entries - self.next_idx) as usize;
            let n_bytes = left.min(CHUNK / size) * size;
            let offset = u64::from(self.next_idx) * size as u64;
            let chunk = self.chunk.get_mut(..n_bytes).ok_or(Error::TooLong)?;
            if !self
                .memory
                .read(self.dict.entries.wrapping_add(offset), chunk)
            {
                return Err(Error::Unreadable);
            }
            (self.taken, self.filled) = (0, n_bytes);
        }
        let idx = self.next_idx;
        let at = self.taken;
        self.next_idx += 1;
        self.taken += size;
        let key = u64_in(&self.chunk, at + key).ok_or(Error::Malformed)?;
        let value = match self.dict.values {
            Some(values) if key != 0 => self.memory.u64(values.wrapping_add(u64::from(idx) * 8))?,
            Some(_) => 0,
            None => u64_in(&self.chunk, at + value).ok_or(Error::Malformed)?,
        };
        Ok(Some(Entry { key, value }))
    }
}

impl<M: Memory> Entries<'_, M> {
    /// The next entry of a split table in the order of insertion.
    fn inserted(&mut self, values: u64, order: Order) -> Result<Entry, Error> {
        let distance = order.step.cast_unsigned();
        let at = distance.wrapping_mul(u64::from(self.next_idx));
        let idx = u64::from(self.memory.u8(order.first.wrapping_add(at))?);
        if idx >= u64::from(self.dict.n_entries) {
            return Err(Error::Malformed);
        }
        self.next_idx += 1;
        let Form { size, key, .. } = self.dict.form;
        let key = self
            .dict
            .entries
            .wrapping_add(idx * size as u64 + key as u64);
        Ok(Entry {
            key: self.memory.u64(key)?,
            value: self.memory.u64(values.wrapping_add(idx * 8))?,
        })
    }
}

impl<M: Memory> Iterator for Entries<'_, M> {
    type Item = Result<Entry, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            match self.raw() {
                Ok(Some(Entry { key: 0, .. } | Entry { value: 0, .. })) => {}
                Ok(entry) => return entry.map(Ok),
                Err(error) => {
                    self.next_idx = u32::MAX;
                    return Some(Err(error));
                }
            }
        }
    }
}

impl Order {
    /// The order of the `PyDictValues` at `values`.
    ///
    /// 3.11 and 3.12 have the number of values two bytes before them and the
    /// indices before that; since 3.13 they follow the last value.
    fn read<M: Memory>(memory: &M, layout: &Layout, values: u64) -> Result<Option<Self>, Error> {
        if layout.dict_keys.dk_size != ABSENT {
            return Ok(None);
        }
        if layout.dict_values.valid == ABSENT {
            let len = memory.u8(values.wrapping_sub(2))?;
            return Ok(Some(Self {
                first: values.wrapping_sub(3),
                step: -1,
                len: u32::from(len),
            }));
        }
        let [capacity, len] = memory.bytes(values)?;
        let after = layout.dict_values.values + u32::from(capacity) * 8;
        Ok(Some(Self {
            first: field(values, after),
            step: 1,
            len: u32::from(len),
        }))
    }
}

/// The form of one entry; bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Form {
    size: usize,
    key: usize,
    value: usize,
}

impl Form {
    /// `PyDictKeyEntry`: `me_hash`, `me_key`, `me_value`.
    const WITH_HASH: Self = Self {
        size: 24,
        key: 8,
        value: 16,
    };
    /// `PyDictUnicodeEntry`: `me_key`, `me_value`.
    const WITHOUT_HASH: Self = Self {
        size: 16,
        key: 0,
        value: 8,
    };
}

/// Bytes of the index table up to 3.10: the width of an index follows from
/// the number of slots.
fn index_bytes(size: u64) -> Result<u64, Error> {
    match size {
        0..=0xff => Ok(size),
        0x100..=0xffff => Ok(size * 2),
        0x1_0000..=0x1000_0000 => Ok(size * 4),
        _ => Err(Error::TooLong),
    }
}

/// Values of `dk_kind` since 3.11.
const DICT_KEYS_GENERAL: u8 = 0;
const DICT_KEYS_UNICODE: u8 = 1;
const DICT_KEYS_SPLIT: u8 = 2;

/// A table whose indices alone take a GiB is not one that we read.
const MAX_LOG2_INDEX_BYTES: u8 = 30;

/// More entries than any namespace or `sys.modules` has.
const MAX_ENTRIES: u32 = 1 << 16;

/// Bytes read at once: a whole number of entries of both forms.
const CHUNK: usize = 16 * 24;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::{Fake, for_each_layout};
    use crate::layout::LAYOUTS;
    use std::format;
    use std::vec::Vec;

    #[test]
    fn finds_values_by_name_in_every_form() {
        for_each_layout(|layout, fake| {
            for build in [Fake::dict, Fake::general_dict, Fake::split_dict] {
                let names: Vec<_> = (0..60).map(|i| format!("name{i}")).collect();
                let items: Vec<_> = names
                    .iter()
                    .enumerate()
                    .map(|(i, n)| (n.as_str(), 0x1000 + i as u64))
                    .collect();
                let address = build(fake, layout, &items);
                let dict = Dict::open(fake, layout, address).expect("opens");
                assert_eq!(dict.entries(fake).count(), 60);
                for (name, value) in items {
                    assert_eq!(dict.get(fake, layout, name), Ok(Some(value)));
                }
                assert_eq!(dict.get(fake, layout, "name60"), Ok(None));
            }
        });
    }

    #[test]
    fn passes_over_deleted_entries_and_unreadable_keys() {
        for_each_layout(|layout, fake| {
            let address = fake.dict(layout, &[("a", 1), ("b", 2), ("c", 3)]);
            let dict = Dict::open(fake, layout, address).expect("opens");
            let entry = |i: u64| dict.entries + i * dict.form.size as u64;
            fake.put_u64(entry(0) + dict.form.key as u64, 0);
            fake.put_u64(entry(1) + dict.form.key as u64, 0xdead);
            assert_eq!(dict.get(fake, layout, "c"), Ok(Some(3)));
            assert_eq!(dict.get(fake, layout, "a"), Ok(None));
            assert_eq!(dict.entries(fake).count(), 2);
        });
    }

    #[test]
    fn refuses_tables_beyond_the_bounds() {
        for_each_layout(|layout, fake| {
            let address = fake.dict(layout, &[("a", 1)]);
            let keys = fake
                .u64(field(address, layout.dict.ma_keys))
                .expect("mapped");
            fake.put_u64(field(keys, layout.dict_keys.dk_nentries), u64::MAX);
            assert_eq!(Dict::open(fake, layout, address), Err(Error::TooLong));
            let n_entries = u64::from(MAX_ENTRIES) + 1;
            fake.put_u64(field(keys, layout.dict_keys.dk_nentries), n_entries);
            let dict = Dict::open(fake, layout, address).expect("opens");
            assert!(dict.entries(fake).count() <= MAX_ENTRIES as usize);
            if layout.dict_keys.dk_size == ABSENT {
                fake.put_u8(field(keys, layout.dict_keys.dk_kind), 7);
                assert_eq!(Dict::open(fake, layout, address), Err(Error::Malformed));
                fake.put_u8(field(keys, layout.dict_keys.dk_log2_index_bytes), 255);
            } else {
                fake.put_u64(field(keys, layout.dict_keys.dk_size), u64::MAX);
            }
            assert_eq!(Dict::open(fake, layout, address), Err(Error::TooLong));
            fake.put_u64(field(address, layout.dict.ma_keys), 0);
            assert_eq!(Dict::open(fake, layout, address), Err(Error::Null));
        });
    }

    #[test]
    fn ends_after_an_unreadable_table() {
        let mut fake = Fake::new();
        let layout = &LAYOUTS[4].1;
        let address = fake.dict(layout, &[("a", 1)]);
        let mut dict = Dict::open(&fake, layout, address).expect("opens");
        dict.entries = u64::MAX - 4;
        let read: Vec<_> = dict.entries(&fake).collect();
        assert_eq!(read, [Err(Error::Unreadable)]);
    }

    #[test]
    fn garbage_never_panics() {
        for_each_layout(|layout, fake| {
            let address = fake.dict(layout, &[("a", 1), ("b", 2)]);
            fake.each_corruption(address, |fake| {
                if let Ok(dict) = Dict::open(fake, layout, address) {
                    let _ = dict.get(fake, layout, "b");
                }
            });
        });
    }
}
