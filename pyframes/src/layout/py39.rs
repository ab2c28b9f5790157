//! CPython 3.9.
//!
//! Most of the runtime's state has moved into the interpreter.

use super::*;

pub(super) const LAYOUT: Layout = Layout {
    runtime: RuntimeState {
        initialized: 12,
        auto_tss_key: 584,
        auto_tss_key_aarch64_glibc: 600,
        interpreters_head: 32,
        interpreters_main: 40,
    },
    interpreter: InterpreterState {
        next: 0,
        threads_head: 8,
        modules: 856,
    },
    tstate: ThreadState {
        next: 8,
        interp: 16,
        thread_id: 176,
        native_thread_id: ABSENT,
        context: 240,
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
        dk_size: 8,
        dk_log2_size: ABSENT,
        dk_log2_index_bytes: ABSENT,
        dk_kind: ABSENT,
        dk_nentries: 32,
        dk_indices: 40,
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
