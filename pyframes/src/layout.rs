//! Where CPython keeps what: offsets in its structures, one file per version.
//!
//! Offsets are bytes and hold for x86_64 and aarch64, glibc and musl alike,
//! except where a field's name says otherwise. They are constant within a
//! minor version but for the fields of [`InterpreterState`], which 3.13 and
//! newer publish in memory (see [`crate::debug_offsets`]). Sources: DWARF of
//! real builds (3.8 to 3.14) and, for other machines and free-threaded
//! builds, the headers compiled for them.

mod py310;
mod py311;
mod py312;
mod py313;
mod py313t;
mod py314;
mod py314t;
mod py38;
mod py39;

/// Stands for a field that the version does not have.
pub const ABSENT: u32 = u32::MAX;

/// A minor version of CPython 3 and its build flavor: what decides a layout.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Series {
    /// `PY_MINOR_VERSION`.
    pub minor: u8,
    /// Built with `--disable-gil`.
    pub free_threaded: bool,
}

/// Every supported series with its layout, oldest first.
pub static LAYOUTS: [(Series, Layout); 9] = [
    (
        Series {
            minor: 8,
            free_threaded: false,
        },
        py38::LAYOUT,
    ),
    (
        Series {
            minor: 9,
            free_threaded: false,
        },
        py39::LAYOUT,
    ),
    (
        Series {
            minor: 10,
            free_threaded: false,
        },
        py310::LAYOUT,
    ),
    (
        Series {
            minor: 11,
            free_threaded: false,
        },
        py311::LAYOUT,
    ),
    (
        Series {
            minor: 12,
            free_threaded: false,
        },
        py312::LAYOUT,
    ),
    (
        Series {
            minor: 13,
            free_threaded: false,
        },
        py313::LAYOUT,
    ),
    (
        Series {
            minor: 13,
            free_threaded: true,
        },
        py313t::LAYOUT,
    ),
    (
        Series {
            minor: 14,
            free_threaded: false,
        },
        py314::LAYOUT,
    ),
    (
        Series {
            minor: 14,
            free_threaded: true,
        },
        py314t::LAYOUT,
    ),
];

/// The layout of a series, if it is supported.
pub fn of(series: Series) -> Option<&'static Layout> {
    LAYOUTS
        .iter()
        .find(|(known, _)| *known == series)
        .map(|(_, layout)| layout)
}

/// Offsets in CPython's structures, each part named after its structure.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// `_PyRuntimeState`.
    pub runtime: RuntimeState,
    /// `PyInterpreterState`.
    pub interpreter: InterpreterState,
    /// `PyThreadState`.
    pub tstate: ThreadState,
    /// `PyContext`.
    pub context: Context,
    /// `PyObject` and `PyVarObject`.
    pub object: Object,
    /// `PyTypeObject`.
    pub type_object: TypeObject,
    /// `PyModuleObject`.
    pub module: ModuleObject,
    /// `PyDictObject`.
    pub dict: DictObject,
    /// `PyDictKeysObject`.
    pub dict_keys: DictKeys,
    /// `PyDictValues`.
    pub dict_values: DictValues,
    /// `PyASCIIObject`, `PyCompactUnicodeObject` and `PyUnicodeObject`.
    pub unicode: UnicodeObject,
    /// `PyBytesObject`.
    pub bytes: BytesObject,
    /// `PyTupleObject`.
    pub tuple: TupleObject,
    /// `PyLongObject`.
    pub long: LongObject,
}

/// Offsets in `_PyRuntimeState`, which the symbol `_PyRuntime` names.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RuntimeState {
    /// `initialized`, an `int`: set when `sys` and the main thread are ready
    /// and until the interpreter ends, as `Py_IsInitialized` tells.
    pub initialized: u32,
    /// `autoTSSkey`, a `Py_tss_t`: the pthread key whose value in a thread is
    /// the thread's `PyThreadState`, whether or not it holds the GIL.
    pub auto_tss_key: u32,
    /// The same with glibc on aarch64, whose `pthread_mutex_t` is larger.
    pub auto_tss_key_aarch64_glibc: u32,
    /// `interpreters.head`: the newest interpreter.
    pub interpreters_head: u32,
    /// `interpreters.main`: the first interpreter.
    pub interpreters_main: u32,
}

/// Offsets in `PyInterpreterState`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InterpreterState {
    /// `next`: the next older interpreter.
    pub next: u32,
    /// `threads.head` (`tstate_head` up to 3.10): the newest thread.
    pub threads_head: u32,
    /// `imports.modules` (`modules` up to 3.11): `sys.modules`.
    pub modules: u32,
}

/// Offsets in `PyThreadState`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ThreadState {
    /// `next`: the next older thread.
    pub next: u32,
    /// `interp`.
    pub interp: u32,
    /// `thread_id`: the `pthread_t`, on x86_64 equal to the thread pointer.
    pub thread_id: u32,
    /// `native_thread_id`: the kernel's thread id; since 3.11.
    pub native_thread_id: u32,
    /// `context`: the current `PyContext`, or null.
    pub context: u32,
}

/// Offsets in `PyContext`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Context {
    /// `ctx_entered`, an `int`: whether a thread runs in the context now.
    pub ctx_entered: u32,
}

/// Offsets in `PyObject` and `PyVarObject`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Object {
    /// `ob_type`.
    pub ob_type: u32,
    /// `PyVarObject.ob_size`.
    pub ob_size: u32,
    /// `sizeof(PyObject)`.
    pub size: u32,
}

/// Offsets in `PyTypeObject`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TypeObject {
    /// `tp_name`, a C string.
    pub tp_name: u32,
    /// `tp_basicsize`.
    pub tp_basicsize: u32,
    /// `tp_flags`.
    pub tp_flags: u32,
    /// `tp_methods`: an array of `PyMethodDef`.
    pub tp_methods: u32,
    /// `tp_base`.
    pub tp_base: u32,
    /// `tp_dict`.
    pub tp_dict: u32,
    /// `tp_new`: the function behind a call of the type.
    pub tp_new: u32,
}

/// Offsets in `PyModuleObject`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ModuleObject {
    /// `md_dict`: the first field after the object header.
    pub md_dict: u32,
}

/// Offsets in `PyDictObject`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DictObject {
    /// `ma_used`: how many items there are.
    pub ma_used: u32,
    /// `ma_keys`: a `PyDictKeysObject`.
    pub ma_keys: u32,
    /// `ma_values`: the values of a split table, or null.
    pub ma_values: u32,
}

/// Offsets in `PyDictKeysObject`.
///
/// Up to 3.10 the width of an index follows from `dk_size` and every entry
/// has a hash; since 3.11 the logarithms are stored and `dk_kind` tells
/// whether entries have one.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DictKeys {
    /// `dk_size`: slots of the hash table; up to 3.10.
    pub dk_size: u32,
    /// `dk_log2_size`; since 3.11.
    pub dk_log2_size: u32,
    /// `dk_log2_index_bytes`; since 3.11.
    pub dk_log2_index_bytes: u32,
    /// `dk_kind`; since 3.11.
    pub dk_kind: u32,
    /// `dk_nentries`: entries in use, deleted ones included.
    pub dk_nentries: u32,
    /// `dk_indices`; the entries follow the indices.
    pub dk_indices: u32,
}

/// Offsets in `PyDictValues` (up to 3.10 a bare array).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DictValues {
    /// `values`.
    pub values: u32,
}

/// Offsets in the three forms of a `str`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnicodeObject {
    /// `length` in code points.
    pub length: u32,
    /// `state`, a 32-bit field of bits.
    pub state: u32,
    /// The bit of `state` where `kind` (3 bits) begins; `compact` and `ascii`
    /// follow it.
    pub kind_shift: u32,
    /// `sizeof(PyASCIIObject)`: the text of a compact ASCII string.
    pub ascii_size: u32,
    /// `sizeof(PyCompactUnicodeObject)`: the text of other compact strings.
    pub compact_size: u32,
    /// `PyUnicodeObject.data`: pointer to the text of the rest.
    pub data: u32,
}

/// Offsets in `PyBytesObject`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BytesObject {
    /// `ob_sval`.
    pub ob_sval: u32,
}

/// Offsets in `PyTupleObject`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TupleObject {
    /// `ob_item`.
    pub ob_item: u32,
}

/// Offsets in `PyLongObject`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LongObject {
    /// `long_value.lv_tag`; since 3.12. Before, sign and number of digits are
    /// in `ob_size`.
    pub lv_tag: u32,
    /// `ob_digit`: 30-bit digits, the least significant first.
    pub ob_digit: u32,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_every_series_and_no_other() {
        for (series, layout) in &LAYOUTS {
            assert_eq!(of(*series), Some(layout));
        }
        assert_eq!(
            of(Series {
                minor: 7,
                free_threaded: false
            }),
            None
        );
        assert_eq!(
            of(Series {
                minor: 12,
                free_threaded: true
            }),
            None
        );
        assert_eq!(
            of(Series {
                minor: 15,
                free_threaded: false
            }),
            None
        );
    }

    #[test]
    fn free_threaded_objects_have_a_longer_header() {
        for (series, layout) in &LAYOUTS {
            let shift = if series.free_threaded { 16 } else { 0 };
            assert_eq!(layout.object.ob_type, 8 + shift);
            assert_eq!(layout.object.size, 16 + shift);
            assert_eq!(layout.module.md_dict, layout.object.size);
            assert_eq!(layout.type_object.tp_name, 24 + shift);
            assert_eq!(layout.type_object.tp_methods, 232 + shift);
            assert_eq!(layout.type_object.tp_new, 312 + shift);
        }
    }
}
