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

use core::ops::RangeInclusive;

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

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
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
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
    /// The frames that a thread runs: `PyFrameObject` up to 3.10,
    /// `_PyInterpreterFrame` since.
    pub frame: Frame,
    /// `PyFrameObject`, as tracebacks and `sys._getframe` have it.
    pub frame_object: FrameObject,
    /// `PyCodeObject`.
    pub code: CodeObject,
    /// `PyGenObject`, `PyCoroObject` and `PyAsyncGenObject`, which begin
    /// alike.
    pub generator: Generator,
    /// `PyBaseExceptionObject`.
    pub exception: BaseException,
    /// `_PyErr_StackItem`.
    pub exc_state: ErrStackItem,
    /// `PyTracebackObject`.
    pub traceback: Traceback,
    /// `PyFunctionObject`.
    pub function: FunctionObject,
    /// `PyMethodObject`.
    pub method: MethodObject,
    /// `PyCellObject`.
    pub cell: Cell,
    /// `PyListObject`.
    pub list: ListObject,
    /// `PyFloatObject`.
    pub float: FloatObject,
    /// `PySetObject`.
    pub set: SetObject,
    /// `PyHeapTypeObject`.
    pub heap_type: HeapType,
    /// Where an instance keeps its attributes.
    pub instance: Instance,
}

/// Offsets in `_PyRuntimeState`, which the symbol `_PyRuntime` names.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
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
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
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
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
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
    /// Leads to the innermost frame: `frame` up to 3.10, `cframe` in 3.11 and
    /// 3.12, `current_frame` since.
    pub frame: u32,
    /// `current_frame` of the structure that `cframe` points to; 3.11 and
    /// 3.12.
    pub frame_link: u32,
    /// The exception that is being raised: `curexc_value` up to 3.11,
    /// `current_exception` since.
    pub current_exception: u32,
    /// `curexc_type`: its type, which tells what it is to become if
    /// `curexc_value` is no exception yet; up to 3.11.
    pub exception_type: u32,
    /// `curexc_traceback`, which replaces the exception's own; up to 3.11.
    pub exception_traceback: u32,
    /// `exc_info`: the exceptions that are being handled, an
    /// `_PyErr_StackItem`.
    pub exc_info: u32,
}

/// Offsets in `PyContext`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Context {
    /// `ctx_entered`, an `int`: whether a thread runs in the context now.
    pub ctx_entered: u32,
}

/// Offsets in `PyObject` and `PyVarObject`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
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
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
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
    /// `tp_itemsize`.
    pub tp_itemsize: u32,
    /// `tp_members`: an array of `PyMemberDef`.
    pub tp_members: u32,
    /// `tp_dictoffset`.
    pub tp_dictoffset: u32,
    /// `tp_mro`, a tuple.
    pub tp_mro: u32,
}

/// Offsets in `PyModuleObject`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct ModuleObject {
    /// `md_dict`: the first field after the object header.
    pub md_dict: u32,
}

/// Offsets in `PyDictObject`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
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
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
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
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct DictValues {
    /// `values`.
    pub values: u32,
    /// `valid`, a byte: whether the object keeps its attributes here (and not
    /// in a dictionary); since 3.13.
    pub valid: u32,
}

/// Offsets in the three forms of a `str`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
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
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct BytesObject {
    /// `ob_sval`.
    pub ob_sval: u32,
}

/// Offsets in `PyTupleObject`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct TupleObject {
    /// `ob_item`.
    pub ob_item: u32,
}

/// Offsets in `PyLongObject`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct LongObject {
    /// `long_value.lv_tag`; since 3.12. Before, sign and number of digits are
    /// in `ob_size`.
    pub lv_tag: u32,
    /// `ob_digit`: 30-bit digits, the least significant first.
    pub ob_digit: u32,
}

/// Offsets in a frame that a thread runs.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Frame {
    /// `f_code`, or `f_executable` since 3.13 (which need not be a code
    /// object there).
    pub code: u32,
    /// `f_back`, or `previous` since 3.11: the calling frame.
    pub back: u32,
    /// The current instruction, see `lasti_unit`: `f_lasti`, `prev_instr` in
    /// 3.11 and 3.12, `instr_ptr` since.
    pub lasti: u32,
    /// Bytes that one unit of `f_lasti` (an `int`) stands for; 0 where the
    /// instruction is given by its address. Not an offset.
    pub lasti_unit: u32,
    /// `f_globals`.
    pub globals: u32,
    /// `owner`, a byte; since 3.11.
    pub owner: u32,
    /// From this value of `owner` on (`FRAME_OWNED_BY_CSTACK`, since 3.14
    /// `FRAME_OWNED_BY_INTERPRETER`), the frame belongs to no Python function;
    /// since 3.12. Not an offset.
    pub shim_owner: u32,
    /// `frame_obj`: the frame's `PyFrameObject`, or null; since 3.11.
    pub frame_obj: u32,
    /// `tlbc_index`, an `int`: which copy of the bytecode it runs;
    /// free-threaded 3.14.
    pub tlbc_index: u32,
    /// `f_localsplus`: local variables, cells and free variables.
    pub localsplus: u32,
    /// Low bits that are no part of the addresses in `code` and `localsplus`
    /// (`_PyStackRef`); since 3.14. Not an offset.
    pub tag_bits: u32,
    /// Where the evaluation stack ends, if the frame is suspended: a pointer
    /// up to 3.9 (`f_stacktop`) and since 3.14 (`stackpointer`), an `int`
    /// counted from `f_valuestack` in 3.10 (`f_stackdepth`) and from
    /// `localsplus` up to 3.13 (`stacktop`).
    pub stacktop: u32,
    /// `f_valuestack`: pointer to where the evaluation stack begins; up to
    /// 3.10.
    pub valuestack: u32,
}

/// Offsets in `PyFrameObject`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct FrameObject {
    /// `f_frame`: the `_PyInterpreterFrame`; since 3.11. Before, the object
    /// is the frame.
    pub f_frame: u32,
    /// `f_lineno`.
    pub f_lineno: u32,
    /// `f_gen`: the generator that it runs, or null; up to 3.10.
    pub f_gen: u32,
    /// `f_state`, a signed byte; 3.10.
    pub f_state: u32,
}

/// Offsets in `PyCodeObject`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct CodeObject {
    /// `co_argcount`, an `int`, as all counts here.
    pub co_argcount: u32,
    /// `co_posonlyargcount`.
    pub co_posonlyargcount: u32,
    /// `co_kwonlyargcount`.
    pub co_kwonlyargcount: u32,
    /// `co_nlocals`.
    pub co_nlocals: u32,
    /// `co_stacksize`, in words.
    pub co_stacksize: u32,
    /// `co_flags`.
    pub co_flags: u32,
    /// `co_firstlineno`.
    pub co_firstlineno: u32,
    /// `co_consts`, a tuple.
    pub co_consts: u32,
    /// `co_names`, a tuple: names of attributes and globals.
    pub co_names: u32,
    /// `co_varnames`, a tuple; up to 3.10.
    pub co_varnames: u32,
    /// `co_freevars`, a tuple; up to 3.10.
    pub co_freevars: u32,
    /// `co_cellvars`, a tuple; up to 3.10.
    pub co_cellvars: u32,
    /// `co_localsplusnames`, a tuple; since 3.11.
    pub co_localsplusnames: u32,
    /// `co_localspluskinds`, a `bytes`; since 3.11.
    pub co_localspluskinds: u32,
    /// `co_nlocalsplus`; since 3.11.
    pub co_nlocalsplus: u32,
    /// `co_filename`.
    pub co_filename: u32,
    /// `co_name`.
    pub co_name: u32,
    /// `co_qualname`; since 3.11.
    pub co_qualname: u32,
    /// `co_linetable`, a `bytes`; up to 3.9 `co_lnotab`.
    pub co_linetable: u32,
    /// `co_code`, a `bytes`; up to 3.10.
    pub co_code: u32,
    /// `co_code_adaptive`: the instructions themselves; since 3.11.
    pub co_code_adaptive: u32,
    /// `_co_firsttraceable`, an `int`: the instruction (two bytes each) from
    /// which on the frame is complete; since 3.11.
    pub co_firsttraceable: u32,
    /// `co_framesize`, an `int`, in words; since 3.12.
    pub co_framesize: u32,
    /// `co_tlbc`: the threads' copies of the bytecode; free-threaded 3.14.
    pub co_tlbc: u32,
}

/// Offsets in `PyGenObject` and its relatives.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Generator {
    /// `gi_frame`: its `PyFrameObject`, or null; up to 3.10.
    pub gi_frame: u32,
    /// `gi_iframe`: its `_PyInterpreterFrame` itself; since 3.11.
    pub gi_iframe: u32,
    /// `gi_name`.
    pub gi_name: u32,
    /// `gi_qualname`.
    pub gi_qualname: u32,
    /// `gi_frame_state`, a signed byte; since 3.11.
    pub gi_frame_state: u32,
    /// `gi_running`, a byte; up to 3.9.
    pub gi_running: u32,
}

/// Offsets in `PyBaseExceptionObject`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct BaseException {
    /// `dict`.
    pub dict: u32,
    /// `notes`; since 3.11.
    pub notes: u32,
    /// `args`, a tuple.
    pub args: u32,
    /// `traceback`, or null.
    pub traceback: u32,
    /// `context` (`__context__`), or null.
    pub context: u32,
    /// `cause` (`__cause__`), or null.
    pub cause: u32,
    /// `suppress_context`, a byte.
    pub suppress_context: u32,
}

/// Offsets in `_PyErr_StackItem`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct ErrStackItem {
    /// `exc_value`.
    pub exc_value: u32,
    /// `previous_item`.
    pub previous_item: u32,
}

/// Offsets in `PyTracebackObject`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Traceback {
    /// `tb_next`: towards the place of the raise, or null.
    pub tb_next: u32,
    /// `tb_frame`, a `PyFrameObject`.
    pub tb_frame: u32,
    /// `tb_lasti`, an `int`, in bytes.
    pub tb_lasti: u32,
    /// `tb_lineno`, an `int`; negative if it is still to be found (3.12 on).
    pub tb_lineno: u32,
}

/// Offsets in `PyFunctionObject`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct FunctionObject {
    /// `func_code`.
    pub func_code: u32,
    /// `func_globals`.
    pub func_globals: u32,
    /// `func_name`.
    pub func_name: u32,
    /// `func_qualname`.
    pub func_qualname: u32,
    /// `func_module`.
    pub func_module: u32,
    /// `func_closure`: a tuple of cells, or null.
    pub func_closure: u32,
    /// `func_dict`, or null.
    pub func_dict: u32,
}

/// Offsets in `PyMethodObject`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct MethodObject {
    /// `im_func`.
    pub im_func: u32,
    /// `im_self`.
    pub im_self: u32,
}

/// Offsets in `PyCellObject`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Cell {
    /// `ob_ref`, or null.
    pub ob_ref: u32,
}

/// Offsets in `PyListObject`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct ListObject {
    /// `ob_item`: pointer to the items.
    pub ob_item: u32,
}

/// Offsets in `PyFloatObject`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct FloatObject {
    /// `ob_fval`, a `double`.
    pub ob_fval: u32,
}

/// Offsets in `PySetObject`; its table has 16-byte entries: key, hash.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct SetObject {
    /// `used`.
    pub used: u32,
    /// `mask`: slots of the table, less one.
    pub mask: u32,
    /// `table`.
    pub table: u32,
}

/// Offsets in `PyHeapTypeObject`, which types made by `class` are.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct HeapType {
    /// `ht_name`.
    pub ht_name: u32,
    /// `ht_qualname`.
    pub ht_qualname: u32,
    /// `ht_cached_keys`: the `PyDictKeysObject` that instances share.
    pub ht_cached_keys: u32,
    /// `ht_module`; since 3.9.
    pub ht_module: u32,
}

/// Where an instance keeps its attributes, if its type says so
/// (`Py_TPFLAGS_MANAGED_DICT`; otherwise `tp_dictoffset` leads to them).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Instance {
    /// Bytes before the object where the pointer to its dictionary is; since
    /// 3.11.
    pub managed_dict: u32,
    /// Bytes before the object where the pointer to its values is; 3.11.
    pub values: u32,
    /// 1 if that pointer, with its lowest bit set, leads to the values
    /// instead (after one more byte); 3.12. Not an offset.
    pub tagged: u32,
    /// 1 if the values follow the object at `tp_basicsize`
    /// (`Py_TPFLAGS_INLINE_VALUES`); since 3.13. Not an offset.
    pub inline_values: u32,
}

/// How many words behind `thread_id` a `PyThreadState` has `context`.
pub const CONTEXT_BEHIND_ID: RangeInclusive<usize> = 7..=9;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_context_lies_behind_the_threads_id() {
        for (series, layout) in &LAYOUTS {
            let distance = layout.tstate.context - layout.tstate.thread_id;
            assert!(distance.is_multiple_of(8), "{series:?}");
            assert!(
                CONTEXT_BEHIND_ID.contains(&(distance as usize / 8)),
                "{series:?}"
            );
        }
    }

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
