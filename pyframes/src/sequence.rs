//! Reads tuples, lists and `bytes`.

use crate::layout::Layout;
use crate::object::{self, flag};
use crate::{Error, Memory, field};

/// A tuple or list that was opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sequence {
    /// How many items it has.
    pub len: u64,
    /// Address of the array of pointers to them.
    items: u64,
}

impl Sequence {
    /// The sequence without items.
    pub const EMPTY: Self = Self { len: 0, items: 0 };

    /// Opens the tuple or list (or an instance of a subclass) at `address`.
    pub fn open<M: Memory>(memory: &M, layout: &Layout, address: u64) -> Result<Self, Error> {
        let type_address = object::type_of(memory, layout, address)?;
        let flags = memory.u64(field(type_address, layout.type_object.tp_flags))?;
        let len = memory.u64(field(address, layout.object.ob_size))?;
        if len > MAX_ITEMS {
            return Err(Error::TooLong);
        }
        let items = if flags & flag::TUPLE_SUBCLASS != 0 {
            field(address, layout.tuple.ob_item)
        } else if flags & flag::LIST_SUBCLASS == 0 {
            return Err(Error::WrongType);
        } else if len == 0 {
            // An empty list need not have an array.
            0
        } else {
            memory.pointer(field(address, layout.list.ob_item))?
        };
        Ok(Self { len, items })
    }

    /// Item number `idx`.
    pub fn get<M: Memory>(&self, memory: &M, idx: u64) -> Result<u64, Error> {
        if idx >= self.len {
            return Err(Error::Malformed);
        }
        memory.pointer(self.items.wrapping_add(idx * 8))
    }

    /// The items in order.
    pub fn items<'m, M: Memory>(&self, memory: &'m M) -> Items<'m, M> {
        Items {
            memory,
            sequence: *self,
            next_idx: 0,
        }
    }
}

/// The items of a sequence; ends after an error.
#[derive(Debug)]
pub struct Items<'m, M> {
    memory: &'m M,
    sequence: Sequence,
    next_idx: u64,
}

impl<M: Memory> Iterator for Items<'_, M> {
    type Item = Result<u64, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.next_idx >= self.sequence.len {
            return None;
        }
        let item = self.sequence.get(self.memory, self.next_idx);
        self.next_idx = match item {
            Ok(_) => self.next_idx + 1,
            Err(_) => self.sequence.len,
        };
        Some(item)
    }
}

/// A `bytes` object that was opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bytes {
    /// How many bytes it has.
    pub len: u64,
    /// Address of the first one.
    pub data: u64,
}

impl Bytes {
    /// Opens the `bytes` (or an instance of a subclass) at `address`.
    pub fn open<M: Memory>(memory: &M, layout: &Layout, address: u64) -> Result<Self, Error> {
        object::check_instance(memory, layout, address, flag::BYTES_SUBCLASS)?;
        let len = memory.u64(field(address, layout.object.ob_size))?;
        if len > i64::MAX as u64 {
            return Err(Error::TooLong);
        }
        let data = field(address, layout.bytes.ob_sval);
        Ok(Self { len, data })
    }
}

/// More items than fit into an address space (47 bits, eight bytes each).
const MAX_ITEMS: u64 = 1 << 44;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::for_each_layout;
    use std::vec::Vec;

    #[test]
    fn reads_tuples_and_lists() {
        for_each_layout(|layout, fake| {
            for build in [crate::fake::Fake::tuple, crate::fake::Fake::list] {
                let address = build(fake, layout, &[3, 5, 7]);
                let sequence = Sequence::open(fake, layout, address).expect("opens");
                let items: Vec<_> = sequence.items(fake).collect();
                assert_eq!(items, [Ok(3), Ok(5), Ok(7)]);
                assert_eq!(sequence.get(fake, 3), Err(Error::Malformed));
                let address = build(fake, layout, &[]);
                let sequence = Sequence::open(fake, layout, address).expect("opens");
                assert_eq!(sequence.items(fake).count(), 0);
            }
        });
    }

    #[test]
    fn ends_where_items_cannot_be_read() {
        for_each_layout(|layout, fake| {
            let address = fake.tuple(layout, &[3, 0, 7]);
            let sequence = Sequence::open(fake, layout, address).expect("opens");
            let items: Vec<_> = sequence.items(fake).collect();
            assert_eq!(items, [Ok(3), Err(Error::Null)]);
            let address = fake.list(layout, &[3]);
            fake.put_u64(field(address, layout.list.ob_item), 8);
            let sequence = Sequence::open(fake, layout, address).expect("opens");
            assert_eq!(sequence.get(fake, 0), Err(Error::Unreadable));
        });
    }

    #[test]
    fn refuses_lengths_that_no_object_has() {
        for_each_layout(|layout, fake| {
            let address = fake.tuple(layout, &[3]);
            fake.put_u64(field(address, layout.object.ob_size), u64::MAX);
            assert_eq!(Sequence::open(fake, layout, address), Err(Error::TooLong));
            let address = fake.bytes(layout, b"bytes");
            assert_eq!(Bytes::open(fake, layout, address).map(|it| it.len), Ok(5));
            fake.put_u64(field(address, layout.object.ob_size), u64::MAX);
            assert_eq!(Bytes::open(fake, layout, address), Err(Error::TooLong));
            let text = fake.string(layout, "text");
            assert_eq!(Bytes::open(fake, layout, text), Err(Error::WrongType));
            assert_eq!(Sequence::open(fake, layout, text), Err(Error::WrongType));
        });
    }
}
