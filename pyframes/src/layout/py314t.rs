//! CPython 3.14, free-threaded.
//!
//! As 3.13t with the moves of 3.14; `interned` is a whole byte of a string's state.

use super::*;

pub(super) const LAYOUT: Layout = Layout {
    runtime: RuntimeState {
        initialized: 776,
        auto_tss_key: 2336,
        auto_tss_key_aarch64_glibc: 2336,
        interpreters_head: 808,
        interpreters_main: 816,
    },
    interpreter: InterpreterState {
        next: 7272,
        threads_head: 7344,
        modules: 7712,
    },
    tstate: ThreadState {
        next: 8,
        interp: 16,
        thread_id: 152,
        native_thread_id: 160,
        context: 208,
    },
    context: Context { ctx_entered: 56 },
    object: Object {
        ob_type: 24,
        ob_size: 32,
        size: 32,
    },
    type_object: TypeObject {
        tp_name: 40,
        tp_basicsize: 48,
        tp_flags: 184,
        tp_methods: 248,
        tp_base: 272,
        tp_dict: 280,
        tp_new: 328,
    },
    module: ModuleObject { md_dict: 32 },
    dict: DictObject {
        ma_used: 32,
        ma_keys: 48,
        ma_values: 56,
    },
    dict_keys: DictKeys {
        dk_size: ABSENT,
        dk_log2_size: 8,
        dk_log2_index_bytes: 9,
        dk_kind: 10,
        dk_nentries: 24,
        dk_indices: 32,
    },
    dict_values: DictValues { values: 8 },
    unicode: UnicodeObject {
        length: 32,
        state: 48,
        kind_shift: 8,
        ascii_size: 56,
        compact_size: 72,
        data: 72,
    },
    bytes: BytesObject { ob_sval: 48 },
    tuple: TupleObject { ob_item: 48 },
    long: LongObject {
        lv_tag: 32,
        ob_digit: 40,
    },
};
