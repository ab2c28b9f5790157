//! Options of the linker of the BPF programs.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    // Otherwise it leaves zeroing and copying of values to loops over their
    // bytes, in functions that make the verifier's work many times as much.
    println!("cargo:rustc-link-arg-bins=--disable-expand-memcpy-in-order");
}
