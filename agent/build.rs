//! Builds the BPF object with the workspace's own toolchain, so that
//! `cargo build` alone gives a working agent.

use std::env;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

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
    )?;
    forget_lines(&out.join("otel-ebpf-bpf"))
}

/// Takes from an object of which line of which file each instruction is: of
/// every program aya would keep room for the lines of all, 18 MiB.
fn forget_lines(path: &Path) -> anyhow::Result<()> {
    const NAME: &[u8] = b".BTF.ext\0";
    // `line_info_len` of `struct btf_ext_header`.
    const LINES_LEN: usize = 20;
    let mut object = fs::read(path)?;
    // Fields of `Elf64_Ehdr` and `Elf64_Shdr`.
    let number = |at: usize, len: usize| -> Option<usize> {
        let bytes = object.get(at..at.checked_add(len)?)?;
        let number = bytes.iter().rev();
        let number = number.fold(0, |all, &byte| all << 8 | u64::from(byte));
        usize::try_from(number).ok()
    };
    let header = |index: usize| -> Option<usize> {
        let (first, size) = (number(0x28, 8)?, number(0x3a, 2)?);
        first.checked_add(index.checked_mul(size)?)
    };
    let begin = |header: usize| number(header.checked_add(0x18)?, 8);
    let section = || -> Option<usize> {
        let names = begin(header(number(0x3e, 2)?)?)?;
        let mut headers = (0..number(0x3c, 2)?).filter_map(header);
        let found = headers.find(|&header| {
            let name = number(header, 4).and_then(|name| names.checked_add(name));
            let name = name.and_then(|name| object.get(name..));
            name.is_some_and(|name| name.starts_with(NAME))
        });
        begin(found?)
    };
    let section = section().context("the object has no section .BTF.ext")?;
    object
        .get_mut(section + LINES_LEN..section + LINES_LEN + 4)
        .context("the object is cut off")?
        .fill(0);
    fs::write(path, object)?;
    Ok(())
}
