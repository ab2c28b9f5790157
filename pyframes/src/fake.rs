//! A made-up process memory for tests, with builders for CPython's objects in
//! any layout.

use std::string::String;
use std::vec;
use std::vec::Vec;

use crate::layout::{ABSENT, LAYOUTS, Layout};
use crate::object::flag;
use crate::{Memory, field};

pub(crate) mod objects;

/// One mapping that is filled from its beginning.
pub(crate) struct Fake {
    bytes: Vec<u8>,
    used: usize,
    dict_type: u64,
    str_type: u64,
    int_type: u64,
    type_type: u64,
    module_type: u64,
    /// Types that [`Fake::class`] made, by name.
    classes: Vec<(String, u64)>,
}

/// Calls `check` with each layout and an empty memory.
pub(crate) fn for_each_layout(check: impl Fn(&Layout, &mut Fake)) {
    for (_, layout) in &LAYOUTS {
        let mut fake = Fake::new();
        check(layout, &mut fake);
    }
}

impl Memory for Fake {
    fn read(&self, address: u64, into: &mut [u8]) -> bool {
        let start = address.checked_sub(BASE).map(|start| start as usize);
        let bytes = start.and_then(|start| self.bytes.get(start..start.checked_add(into.len())?));
        bytes.map(|bytes| into.copy_from_slice(bytes)).is_some()
    }
}

impl Fake {
    pub(crate) fn new() -> Self {
        Self {
            bytes: vec![0; SIZE],
            used: 0,
            dict_type: 0,
            str_type: 0,
            int_type: 0,
            type_type: 0,
            module_type: 0,
            classes: Vec::new(),
        }
    }

    pub(crate) fn end(&self) -> u64 {
        BASE + SIZE as u64
    }

    pub(crate) fn put(&mut self, bytes: &[u8]) -> u64 {
        let start = self.used.next_multiple_of(16);
        self.bytes[start..start + bytes.len()].copy_from_slice(bytes);
        self.used = start + bytes.len();
        BASE + start as u64
    }

    pub(crate) fn put_u64(&mut self, address: u64, value: u64) {
        let start = (address - BASE) as usize;
        self.bytes[start..start + 8].copy_from_slice(&value.to_le_bytes());
    }

    pub(crate) fn put_u8(&mut self, address: u64, value: u8) {
        self.bytes[(address - BASE) as usize] = value;
    }

    pub(crate) fn fill(&mut self, from: u64, to: u64, byte: u8) {
        self.bytes[(from - BASE) as usize..(to - BASE) as usize].fill(byte);
    }

    /// A C string whose terminator is the last byte of the mapping.
    pub(crate) fn c_string_at_end(&mut self, text: &str) -> u64 {
        let start = SIZE - text.len() - 1;
        self.bytes[start..SIZE - 1].copy_from_slice(text.as_bytes());
        self.bytes[SIZE - 1] = 0;
        BASE + start as u64
    }

    /// Calls `read` with each 8-byte word near `address` replaced by values
    /// that break lengths and pointers.
    pub(crate) fn each_corruption(&mut self, address: u64, read: impl Fn(&Self)) {
        let kept = self.bytes.clone();
        let start = ((address - BASE) as usize).saturating_sub(512);
        for at in (start..start + 1024).step_by(8) {
            for value in [
                0,
                1,
                u64::MAX,
                u64::MAX / 2,
                address,
                BASE + SIZE as u64 - 1,
            ] {
                self.bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
                read(self);
            }
            self.bytes.copy_from_slice(&kept);
        }
    }

    // === objects ===

    pub(crate) fn type_of_dicts(&self) -> u64 {
        self.dict_type
    }

    pub(crate) fn type_with_methods(
        &mut self,
        layout: &Layout,
        name: &str,
        methods: &[(&str, u64)],
    ) -> u64 {
        self.builtin_types(layout);
        let mut table = Vec::new();
        for (name, function) in methods {
            let name = self.put_c_string(name);
            table.extend([name, *function, 0, 0]);
        }
        table.extend([0; 4]);
        let table = self.put_words(&table);
        let address = self.new_type(layout, name, 0);
        self.put_u64(field(address, layout.object.ob_type), self.type_type);
        self.put_u64(field(address, layout.type_object.tp_methods), table);
        address
    }

    pub(crate) fn int(&mut self, layout: &Layout, value: i64) -> u64 {
        self.builtin_types(layout);
        let address = self.object(layout, self.int_type, 64);
        let magnitude = value.unsigned_abs();
        let digits = [(magnitude & 0x3fff_ffff) as u32, (magnitude >> 30) as u32];
        let n_digits = digits
            .iter()
            .rposition(|digit| *digit != 0)
            .map_or(0, |last| last + 1) as u64;
        let at = &layout.long;
        if at.lv_tag != ABSENT {
            let sign = match value.signum() {
                1 => 0,
                0 => 1,
                _ => 2,
            };
            self.put_u64(field(address, at.lv_tag), n_digits << 3 | sign);
        } else {
            let size = n_digits as i64 * value.signum();
            self.put_u64(field(address, layout.object.ob_size), size as u64);
        }
        let both = u64::from(digits[0]) | u64::from(digits[1]) << 32;
        self.put_u64(field(address, at.ob_digit), both);
        address
    }

    pub(crate) fn string(&mut self, layout: &Layout, text: &str) -> u64 {
        let (width, data) = encode(text);
        let address = self.str_object(layout, text, width, true);
        let at = if text.is_ascii() {
            layout.unicode.ascii_size
        } else {
            layout.unicode.compact_size
        };
        let start = (field(address, at) - BASE) as usize;
        self.bytes[start..start + data.len()].copy_from_slice(&data);
        self.used = start + data.len();
        address
    }

    pub(crate) fn indirect_string(&mut self, layout: &Layout, text: &str) -> u64 {
        let (width, data) = encode(text);
        let address = self.str_object(layout, text, width, false);
        let data = self.put(&data);
        self.put_u64(field(address, layout.unicode.data), data);
        address
    }

    pub(crate) fn dict(&mut self, layout: &Layout, items: &[(&str, u64)]) -> u64 {
        self.table(layout, items, 1)
    }

    pub(crate) fn general_dict(&mut self, layout: &Layout, items: &[(&str, u64)]) -> u64 {
        self.table(layout, items, 0)
    }

    pub(crate) fn split_dict(&mut self, layout: &Layout, items: &[(&str, u64)]) -> u64 {
        self.table(layout, items, 2)
    }

    pub(crate) fn module(&mut self, layout: &Layout, items: &[(&str, u64)]) -> u64 {
        let namespace = self.dict(layout, items);
        let derived = self.new_type(layout, "lazy", 0);
        self.put_u64(field(derived, layout.type_object.tp_base), self.module_type);
        let address = self.object(layout, derived, 64);
        self.put_u64(field(address, layout.module.md_dict), namespace);
        address
    }

    pub(crate) fn interpreter(&mut self, layout: &Layout, ids: &[u64], modules: u64) -> u64 {
        let interpreter = self.put(&[0; 8192]);
        let mut link = field(interpreter, layout.interpreter.threads_head);
        self.put_u64(field(interpreter, layout.interpreter.modules), modules);
        for id in ids {
            let thread = self.put(&[0; 512]);
            self.put_u64(link, thread);
            self.put_u64(field(thread, layout.tstate.interp), interpreter);
            self.put_u64(field(thread, layout.tstate.thread_id), *id);
            link = field(thread, layout.tstate.next);
        }
        interpreter
    }

    fn builtin_types(&mut self, layout: &Layout) {
        if self.type_type == 0 {
            self.type_type = self.new_type(layout, "type", flag::TYPE_SUBCLASS);
            self.dict_type = self.new_type(layout, "dict", flag::DICT_SUBCLASS);
            self.str_type = self.new_type(layout, "str", flag::UNICODE_SUBCLASS);
            self.int_type = self.new_type(layout, "int", flag::LONG_SUBCLASS);
            self.module_type = self.new_type(layout, "module", 0);
        }
    }

    fn new_type(&mut self, layout: &Layout, name: &str, flags: u64) -> u64 {
        let name = self.put_c_string(name);
        let address = self.put(&[0; 512]);
        self.put_u64(field(address, layout.type_object.tp_name), name);
        self.put_u64(field(address, layout.type_object.tp_flags), flags);
        address
    }

    fn object(&mut self, layout: &Layout, type_address: u64, size: usize) -> u64 {
        let address = self.put(&vec![0; size]);
        self.put_u64(field(address, layout.object.ob_type), type_address);
        address
    }

    fn str_object(&mut self, layout: &Layout, text: &str, width: u32, compact: bool) -> u64 {
        self.builtin_types(layout);
        let address = self.object(layout, self.str_type, 96);
        let at = &layout.unicode;
        let ascii = compact && text.is_ascii();
        let bits = width | u32::from(compact) << 3 | u32::from(ascii) << 4;
        self.put_u64(field(address, at.length), text.chars().count() as u64);
        // The low bits belong to `interned`.
        self.put_u64(
            field(address, at.state),
            u64::from(bits << at.kind_shift | 1),
        );
        address
    }

    /// A dictionary whose `dk_kind` is `kind`; before 3.11 every kind has
    /// entries with a hash.
    fn table(&mut self, layout: &Layout, items: &[(&str, u64)], kind: u8) -> u64 {
        self.builtin_types(layout);
        let keys: Vec<_> = items
            .iter()
            .map(|(name, _)| self.string(layout, name))
            .collect();
        let old = layout.dict_keys.dk_size != ABSENT;
        let mut words = Vec::new();
        for (key, (_, value)) in keys.iter().zip(items) {
            if old || kind == 0 {
                words.push(0x5a5a);
            }
            words.extend([*key, if kind == 2 { 0 } else { *value }]);
        }
        let log2_size = (items.len() * 2).next_power_of_two().max(8).ilog2();
        let at = &layout.dict_keys;
        let head = at.dk_indices as usize + (1 << log2_size);
        let keys = self.put(&vec![0; head + words.len() * 8]);
        if old {
            self.put_u64(field(keys, at.dk_size), 1 << log2_size);
        } else {
            self.put_u8(field(keys, at.dk_log2_size), log2_size as u8);
            self.put_u8(field(keys, at.dk_log2_index_bytes), log2_size as u8);
            self.put_u8(field(keys, at.dk_kind), kind);
        }
        self.put_u64(field(keys, at.dk_nentries), items.len() as u64);
        for (idx, word) in (0..).zip(words) {
            self.put_u64(keys + head as u64 + idx * 8, word);
        }
        let address = self.object(layout, self.dict_type, 64);
        self.put_u64(field(address, layout.dict.ma_keys), keys);
        if kind == 2 {
            let values = self.split_values(layout, items);
            self.put_u64(field(address, layout.dict.ma_values), values);
        }
        address
    }

    /// `PyDictValues` with the order of insertion where it belongs.
    fn split_values(&mut self, layout: &Layout, items: &[(&str, u64)]) -> u64 {
        let n_items = items.len() as u8;
        let values: Vec<_> = items
            .iter()
            .flat_map(|(_, value)| value.to_le_bytes())
            .collect();
        if layout.dict_keys.dk_size != ABSENT {
            return self.put(&values);
        }
        if layout.dict_values.valid == ABSENT {
            let mut order: Vec<_> = (0..n_items).rev().chain([n_items, n_items + 2]).collect();
            let pad = order.len().next_multiple_of(16) - order.len();
            order.splice(0..0, vec![0; pad]);
            let n_before = order.len() as u64;
            order.extend(values);
            return self.put(&order) + n_before;
        }
        let head = [n_items, n_items, 1, 1, 0, 0, 0, 0];
        let bytes: Vec<_> = head.into_iter().chain(values).chain(0..n_items).collect();
        self.put(&bytes)
    }

    fn put_words(&mut self, words: &[u64]) -> u64 {
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        self.put(&bytes)
    }

    fn put_c_string(&mut self, text: &str) -> u64 {
        let text = String::from(text) + "\0";
        self.put(text.as_bytes())
    }
}

/// The width of a character and the text as CPython keeps it.
fn encode(text: &str) -> (u32, Vec<u8>) {
    let largest = text.chars().map(u32::from).max().unwrap_or(0);
    let width: u32 = match largest {
        0..=0xff => 1,
        0x100..=0xffff => 2,
        _ => 4,
    };
    let data = text
        .chars()
        .flat_map(|character| {
            u32::from(character)
                .to_le_bytes()
                .into_iter()
                .take(width as usize)
        })
        .collect();
    (width, data)
}

/// Address of the mapping.
const BASE: u64 = 0x7000_0000_0000;
/// Bytes of the mapping.
const SIZE: usize = 1 << 16;
