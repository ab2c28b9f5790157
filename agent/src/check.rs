//! The command `otel-ebpf check`.
