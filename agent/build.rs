//! Builds the BPF object with the workspace's own toolchain, so that
//! `cargo build` alone gives a working agent.

use std::env;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::PathBuf;

use anyhow::Context as _;

fn main() -> anyhow::Result<()> {
    let out = PathBuf::from(env::var_os("OUT_DIR").context("OUT_DIR is set by cargo")?);
    println!("cargo:rerun-if-env-changed=AYA_BUILD_SKIP");
    if env::var_os("AYA_BUILD_SKIP").is_some_and(|skip| skip == "1") {
        // Metadata-only runs need something to include.
        fs::write(out.join("otel-ebpf-bpf"), [])?;
        return Ok(());
    }
    // aya-build would build core and sixty crates anew for every profile;
    // what it makes is the same for all.
    let target = out.ancestors().nth(4).context("OUT_DIR is too short")?;
    let shared = target.join("bpf");
    let link = out.join("aya-build/target");
    if !fs::exists(&link)? {
        fs::create_dir_all(&shared)?;
        fs::create_dir_all(out.join("aya-build"))?;
        symlink(&shared, &link)?;
    }
    // core is built from source, which a stable compiler allows with this.
    #[expect(
        clippy::disallowed_methods,
        reason = "aya-build has no other way to be told, and no other thread exists yet"
    )]
    // SAFETY: a build script's main runs before any other thread exists.
    unsafe {
        env::set_var("RUSTC_BOOTSTRAP", "1");
    }
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/../ebpf");
    println!("cargo:rerun-if-changed={root}/abi");
    println!("cargo:rerun-if-changed={root}/../pyframes");
    aya_build::build_ebpf(
        [aya_build::Package {
            name: "otel-ebpf-bpf",
            root_dir: root,
            ..Default::default()
        }],
        aya_build::Toolchain::Custom("1.95.0"),
    )
}
