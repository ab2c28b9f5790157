//! The file system that a kernel of the matrix boots into.
//!
//! An archive in the format `newc` of cpio (kernel documentation,
//! `driver-api/early-userspace/buffer-format.rst`), written here because a
//! dozen files need no tool.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use super::report::{BEGIN, END, KERNEL};
use crate::group::output;

const DIRECTORY: u32 = 0o040_755;
const EXECUTABLE: u32 = 0o100_755;
const SYMLINK: u32 = 0o120_777;

/// The archive: busybox, the agent, the libraries it names, and an init that
/// runs the agent and powers off.
pub(super) fn image(agent: &Path, busybox: &Path) -> Result<Vec<u8>> {
    let read =
        |path: &Path| fs::read(path).with_context(|| format!("cannot read {}", path.display()));
    let mut archive = Archive::default();
    for directory in ["proc", "sys", "tmp", "dev", "etc", "root"] {
        archive.directory(Path::new(directory));
    }
    archive.file(Path::new("bin/busybox"), EXECUTABLE, &read(busybox)?);
    archive.file(Path::new("bin/sh"), SYMLINK, b"busybox");
    archive.file(Path::new("otel-ebpf"), EXECUTABLE, &read(agent)?);
    archive.file(Path::new("init"), EXECUTABLE, init().as_bytes());
    for library in libraries(agent) {
        let inside = library.strip_prefix("/").unwrap_or(&library);
        archive.file(inside, EXECUTABLE, &read(&library)?);
    }
    Ok(archive.finish())
}

fn init() -> String {
    let mut text = String::from(
        "#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mount -t tmpfs tmp /tmp
mount -t bpf bpf /sys/fs/bpf
mount -t debugfs debug /sys/kernel/debug
mount -t tracefs trace /sys/kernel/tracing
",
    );
    text.push_str(&format!("echo \"{KERNEL} $(uname -r)\"\n"));
    for (name, arguments) in [("load", "--load-only"), ("check", "check")] {
        text.push_str(&format!(
            "echo '{BEGIN} {name}'\n/otel-ebpf {arguments} 2>&1\necho \"{END} {name} $?\"\n"
        ));
    }
    text.push_str("poweroff -f\n");
    text
}

/// The files that the dynamic linker would load; none for a static program.
fn libraries(program: &Path) -> Vec<PathBuf> {
    let text = output(Command::new("ldd").arg(program)).unwrap_or_default();
    libraries_in(&text)
}

/// Reads `name => /path (address)` and `/path (address)`.
fn libraries_in(ldd: &str) -> Vec<PathBuf> {
    ldd.lines()
        .filter_map(|line| {
            line.split_whitespace()
                .find(|word| word.starts_with('/'))
                .map(PathBuf::from)
        })
        .collect()
}

#[derive(Default)]
struct Archive {
    bytes: Vec<u8>,
    entries: u32,
    directories: BTreeSet<PathBuf>,
}

impl Archive {
    fn file(&mut self, path: &Path, mode: u32, contents: &[u8]) {
        if let Some(parent) = path.parent() {
            self.directory(parent);
        }
        self.entry(&path.to_string_lossy(), mode, contents);
    }

    fn directory(&mut self, path: &Path) {
        if path.as_os_str().is_empty() || !self.directories.insert(path.to_path_buf()) {
            return;
        }
        if let Some(parent) = path.parent() {
            self.directory(parent);
        }
        self.entry(&path.to_string_lossy(), DIRECTORY, &[]);
    }

    fn entry(&mut self, name: &str, mode: u32, contents: &[u8]) {
        self.entries += 1;
        self.bytes.extend_from_slice(b"070701");
        let fields = [
            self.entries as usize,
            mode as usize,
            0, // user
            0, // group
            1, // links
            0, // time
            contents.len(),
            0, // device, major
            0, // device, minor
            0, // special device, major
            0, // special device, minor
            name.len() + 1,
            0, // checksum, unused in this format
        ];
        for field in fields {
            self.bytes
                .extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(contents);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, &[]);
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_comes_after_its_directories_and_is_padded() {
        let mut archive = Archive::default();
        archive.file(Path::new("lib/x/y.so"), EXECUTABLE, b"abcde");
        let bytes = archive.finish();
        assert_eq!(bytes.len() % 4, 0);
        let text = String::from_utf8_lossy(&bytes);
        let place = |name: &str| text.find(name).unwrap();
        assert!(place("lib\0") < place("lib/x\0"));
        assert!(place("lib/x\0") < place("lib/x/y.so\0"));
        assert_eq!(text.matches("070701").count(), 4);
        // Header of 110 bytes, then the name, padded to four.
        assert_eq!(&bytes[..6], b"070701");
        assert_eq!(&bytes[110..114], b"lib\0");
    }

    #[test]
    fn reads_what_ldd_lists() {
        let text =
            "\tlinux-vdso.so.1 (0x1)\n\tlibc.so.6 => /lib/libc.so.6 (0x2)\n\t/lib64/ld.so (0x3)\n";
        assert_eq!(
            libraries_in(text),
            [
                PathBuf::from("/lib/libc.so.6"),
                PathBuf::from("/lib64/ld.so")
            ]
        );
    }
}
