//! CPython 3.14.
//!
//! Tuples cache their hash. The offset of the modules moved between patch
//! releases: 7664 in 3.14.4, 7688 in 3.14.10; the published one is used.

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
        modules: 7688,
    },
    tstate: ThreadState {
        next: 8,
        interp: 16,
        thread_id: 152,
        native_thread_id: 160,
        context: 208,
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
    dict_values: DictValues { values: 8 },
    unicode: UnicodeObject {
        length: 16,
        state: 32,
        kind_shift: 2,
        ascii_size: 40,
        compact_size: 56,
        data: 56,
    },
    bytes: BytesObject { ob_sval: 32 },
    tuple: TupleObject { ob_item: 32 },
    long: LongObject {
        lv_tag: 16,
        ob_digit: 24,
    },
};
