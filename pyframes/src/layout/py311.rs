//! CPython 3.11.
//!
//! Dictionaries with string keys drop the stored hash; `native_thread_id` and
//! `Py_Version` are new.

use super::*;

pub(super) const LAYOUT: Layout = Layout {
    runtime: RuntimeState {
        initialized: 16,
        auto_tss_key: 592,
        auto_tss_key_aarch64_glibc: 608,
        interpreters_head: 40,
        interpreters_main: 48,
    },
    interpreter: InterpreterState {
        next: 0,
        threads_head: 16,
        modules: 888,
    },
    tstate: ThreadState {
        next: 8,
        interp: 16,
        thread_id: 152,
        native_thread_id: 160,
        context: 224,
    },
    context: Context { ctx_entered: 40 },
    object: Object {
        ob_type: 8,
        ob_size: 16,
        size: 16,
    },
    type_object: TypeObject {
        tp_name: 24,
        tp_basicsize: 32,
        tp_flags: 168,
        tp_methods: 232,
        tp_base: 256,
        tp_dict: 264,
        tp_new: 312,
    },
    module: ModuleObject { md_dict: 16 },
    dict: DictObject {
        ma_used: 16,
        ma_keys: 32,
        ma_values: 40,
    },
    dict_keys: DictKeys {
        dk_size: ABSENT,
        dk_log2_size: 8,
        dk_log2_index_bytes: 9,
        dk_kind: 10,
        dk_nentries: 24,
        dk_indices: 32,
    },
    dict_values: DictValues { values: 0 },
    unicode: UnicodeObject {
        length: 16,
        state: 32,
        kind_shift: 2,
        ascii_size: 48,
        compact_size: 72,
        data: 72,
    },
    bytes: BytesObject { ob_sval: 32 },
    tuple: TupleObject { ob_item: 24 },
    long: LongObject {
        lv_tag: ABSENT,
        ob_digit: 24,
    },
};
