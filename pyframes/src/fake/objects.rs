//! Builders of more objects than a look-up needs: sequences, numbers, code,
//! instances, exceptions.

use std::vec;
use std::vec::Vec;

use super::Fake;
use crate::field;
use crate::layout::{ABSENT, Layout};
use crate::object::flag;

/// What a code object is made of.
#[derive(Clone, Copy)]
pub(crate) struct CodeParts<'a> {
    pub(crate) name: &'a str,
    pub(crate) firstlineno: u32,
    /// Names of local variables, cells and free variables.
    pub(crate) variables: [&'a [&'a str]; 3],
    pub(crate) linetable: &'a [u8],
    pub(crate) n_instructions: u64,
}

impl CodeParts<'_> {
    pub(crate) const EMPTY: Self = CodeParts {
        name: "work",
        firstlineno: 10,
        variables: [&[], &[], &[]],
        linetable: &[],
        n_instructions: 8,
    };
}

impl Fake {
    /// A type of the interpreter's own, the same for the same name.
    pub(crate) fn class(&mut self, layout: &Layout, name: &str, flags: u64) -> u64 {
        self.builtin_types(layout);
        if let Some((_, known)) = self.classes.iter().find(|(known, _)| known == name) {
            return *known;
        }
        let address = self.new_type(layout, name, flags);
        self.put_u64(field(address, layout.object.ob_type), self.type_type);
        self.classes.push((name.into(), address));
        address
    }

    /// A class with a namespace, whose bases follow it in `mro`.
    pub(crate) fn heap_class(
        &mut self,
        layout: &Layout,
        name: &str,
        namespace: &[(&str, u64)],
        bases: &[u64],
    ) -> u64 {
        self.builtin_types(layout);
        let at = &layout.type_object;
        let tp_name = self.put_c_string(name);
        let address = self.put(&[0; 1024]);
        self.put_u64(field(address, at.tp_name), tp_name);
        self.put_u64(field(address, at.tp_flags), flag::HEAPTYPE);
        self.put_u64(field(address, layout.object.ob_type), self.type_type);
        let qualname = self.string(layout, name);
        self.put_u64(field(address, layout.heap_type.ht_qualname), qualname);
        let namespace = self.dict(layout, namespace);
        self.put_u64(field(address, at.tp_dict), namespace);
        let mro: Vec<_> = [address].iter().chain(bases).copied().collect();
        let mro = self.tuple(layout, &mro);
        self.put_u64(field(address, at.tp_mro), mro);
        address
    }

    /// An instance of a class, with room before and behind its head.
    pub(crate) fn instance(&mut self, class: u64, layout: &Layout) -> u64 {
        let address = self.put(&[0; 256]) + 64;
        self.put_u64(field(address, layout.object.ob_type), class);
        address
    }

    pub(crate) fn tuple(&mut self, layout: &Layout, items: &[u64]) -> u64 {
        let class = self.class(layout, "tuple", flag::TUPLE_SUBCLASS);
        let head = layout.tuple.ob_item as usize;
        let address = self.object(layout, class, head + items.len() * 8);
        self.put_u64(field(address, layout.object.ob_size), items.len() as u64);
        for (idx, item) in (0..).zip(items) {
            self.put_u64(address + head as u64 + idx * 8, *item);
        }
        address
    }

    pub(crate) fn list(&mut self, layout: &Layout, items: &[u64]) -> u64 {
        let class = self.class(layout, "list", flag::LIST_SUBCLASS);
        let array = self.put_words(items);
        let address = self.object(layout, class, 64);
        self.put_u64(field(address, layout.object.ob_size), items.len() as u64);
        self.put_u64(field(address, layout.list.ob_item), array);
        address
    }

    pub(crate) fn bytes(&mut self, layout: &Layout, bytes: &[u8]) -> u64 {
        let class = self.class(layout, "bytes", flag::BYTES_SUBCLASS);
        let mut object = vec![0; layout.bytes.ob_sval as usize];
        object.extend(bytes);
        let address = self.put(&object);
        self.put_u64(field(address, layout.object.ob_type), class);
        self.put_u64(field(address, layout.object.ob_size), bytes.len() as u64);
        address
    }

    pub(crate) fn float(&mut self, layout: &Layout, value: f64) -> u64 {
        let class = self.class(layout, "float", 0);
        let address = self.object(layout, class, 64);
        self.put_u64(field(address, layout.float.ob_fval), value.to_bits());
        address
    }

    pub(crate) fn none(&mut self, layout: &Layout) -> u64 {
        let class = self.class(layout, "NoneType", 0);
        self.object(layout, class, 64)
    }

    pub(crate) fn cell(&mut self, layout: &Layout, content: u64) -> u64 {
        let class = self.class(layout, "cell", 0);
        let address = self.object(layout, class, 64);
        self.put_u64(field(address, layout.cell.ob_ref), content);
        address
    }

    /// A set whose table has `slots` of key and hash.
    pub(crate) fn set(&mut self, layout: &Layout, slots: &[(u64, u64)]) -> u64 {
        let class = self.class(layout, "set", 0);
        let words: Vec<_> = slots.iter().flat_map(|(key, hash)| [*key, *hash]).collect();
        let table = self.put_words(&words);
        let used = slots
            .iter()
            .filter(|(key, hash)| *key != 0 && *hash != u64::MAX);
        let used = used.count() as u64;
        let address = self.object(layout, class, 256);
        self.put_u64(field(address, layout.set.used), used);
        self.put_u64(field(address, layout.set.mask), slots.len() as u64 - 1);
        self.put_u64(field(address, layout.set.table), table);
        address
    }

    pub(crate) fn code(&mut self, layout: &Layout, parts: CodeParts<'_>) -> u64 {
        let class = self.class(layout, "code", 0);
        let at = &layout.code;
        let n_bytes = parts.n_instructions * 2;
        let address = self.object(layout, class, 256 + n_bytes as usize);
        let strings = |fake: &mut Self, names: &[&str]| {
            let names: Vec<_> = names.iter().map(|name| fake.string(layout, name)).collect();
            fake.tuple(layout, &names)
        };
        let [locals, cells, frees] = parts.variables;
        if at.co_localsplusnames == ABSENT {
            for (offset, names) in [
                (at.co_varnames, locals),
                (at.co_cellvars, cells),
                (at.co_freevars, frees),
            ] {
                let names = strings(self, names);
                self.put_u64(field(address, offset), names);
            }
            let bytecode = self.bytes(layout, &vec![0; n_bytes as usize]);
            self.put_u64(field(address, at.co_code), bytecode);
        } else {
            let all: Vec<_> = parts.variables.concat();
            let names = strings(self, &all);
            let mut kinds = vec![0x20; locals.len()];
            kinds.extend(vec![0x40; cells.len()]);
            kinds.extend(vec![0x80; frees.len()]);
            let kinds = self.bytes(layout, &kinds);
            self.put_u64(field(address, at.co_localsplusnames), names);
            self.put_u64(field(address, at.co_localspluskinds), kinds);
            self.put_u64(field(address, layout.object.ob_size), parts.n_instructions);
        }
        let name = self.string(layout, parts.name);
        let empty = self.tuple(layout, &[]);
        let linetable = self.bytes(layout, parts.linetable);
        for (offset, value) in [
            (at.co_name, name),
            (at.co_qualname, name),
            (at.co_filename, name),
            (at.co_consts, empty),
            (at.co_names, empty),
            (at.co_linetable, linetable),
        ] {
            if offset != ABSENT {
                self.put_u64(field(address, offset), value);
            }
        }
        for byte in (0..4_u32).zip(parts.firstlineno.to_le_bytes()) {
            self.put_u8(field(address, at.co_firstlineno + byte.0), byte.1);
        }
        address
    }

    /// A `PyFrameObject` and the frame that it stands for, which runs `code`.
    pub(crate) fn frame_object(&mut self, layout: &Layout, code: u64) -> (u64, u64) {
        let frame = self.put(&[0; 512]);
        self.put_u64(field(frame, layout.frame.code), code);
        if layout.frame_object.f_frame == ABSENT {
            return (frame, frame);
        }
        let object = self.put(&[0; 64]);
        self.put_u64(field(object, layout.frame_object.f_frame), frame);
        (object, frame)
    }

    pub(crate) fn exception(&mut self, layout: &Layout, args: &[u64]) -> u64 {
        let class = self.class(layout, "ValueError", flag::EXCEPTION_SUBCLASS);
        let args = self.tuple(layout, args);
        let address = self.object(layout, class, 128);
        self.put_u64(field(address, layout.exception.args), args);
        address
    }

    /// A traceback's entry.
    pub(crate) fn traceback(&mut self, layout: &Layout, next: u64, frame: u64, line: u32) -> u64 {
        let at = &layout.traceback;
        let address = self.put(&[0; 64]);
        self.put_u64(field(address, at.tb_next), next);
        self.put_u64(field(address, at.tb_frame), frame);
        // `tb_lineno` follows `tb_lasti`, which is 2.
        self.put_u64(field(address, at.tb_lasti), u64::from(line) << 32 | 2);
        address
    }
}
