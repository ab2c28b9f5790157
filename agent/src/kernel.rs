//! What this kernel offers: structure offsets from BTF and features.
