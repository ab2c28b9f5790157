//! Builds the BPF object with the workspace's own toolchain, so that
//! `cargo build` alone gives a working agent.

use anyhow::Context as _;

fn main() -> anyhow::Result<()> {
    let out = std::env::var("OUT_DIR").context("OUT_DIR is set by cargo")?;
    println!("cargo:rerun-if-env-changed=AYA_BUILD_SKIP");
    if std::env::var_os("AYA_BUILD_SKIP").is_some_and(|skip| skip == "1") {
        // Metadata-only runs need something to include.
        std::fs::write(format!("{out}/otel-ebpf-bpf"), [])?;
        return Ok(());
    }
    // core is built from source, which a stable compiler allows with this.
    #[expect(
        clippy::disallowed_methods,
        reason = "aya-build has no other way to be told, and no other thread exists yet"
    )]
    // SAFETY: a build script's main runs before any other thread exists.
    unsafe {
        std::env::set_var("RUSTC_BOOTSTRAP", "1");
    }
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/../ebpf");
    println!("cargo:rerun-if-changed={root}/abi");
    aya_build::build_ebpf(
        [aya_build::Package {
            name: "otel-ebpf-bpf",
            root_dir: root,
            ..Default::default()
        }],
        aya_build::Toolchain::Custom("1.95.0"),
    )
}
