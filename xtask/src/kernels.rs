//! `cargo xtask kernels`: loads every BPF program on Debian's kernels.
//!
//! Each kernel boots in QEMU, by software emulation: KVM is missing or half
//! there on many build machines, and the verifier's verdict is the same. It boots
//! with an initial file system that holds the agent, its libraries and
//! busybox, and nothing else: no disk, no network. What the agent says comes
//! back over the serial line. A kernel's first boot downloads it; later ones
//! need no network.

mod debian;
mod initramfs;
mod report;

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use self::report::Boot;
use crate::group::{Group, wait_for};
use crate::toolchain::{agent, ensure_programs};
use crate::{interrupt, say, target};

#[derive(clap::Args)]
pub(crate) struct Options {
    /// Boots only this kernel: `oldest`, or a version of the table
    #[arg(long)]
    only: Option<String>,
}

/// A kernel of Debian's.
struct Kernel {
    version: &'static str,
    suite: &'static str,
}

/// Every kernel that must load every program, oldest first.
const KERNELS: &[Kernel] = &[
    Kernel {
        version: "5.10",
        suite: "bullseye",
    },
    Kernel {
        version: "6.1",
        suite: "bookworm",
    },
    Kernel {
        version: "6.12",
        suite: "trixie",
    },
];

/// Boot takes about ten seconds emulated; the verifier's work is the rest.
const BOOT_LIMIT: Duration = Duration::from_secs(600);
/// The emulated machine's memory.
const MEMORY: &str = "1024M";

pub(crate) fn run(options: &Options) -> Result<()> {
    let chosen = choose(options.only.as_deref())?;
    if cfg!(not(target_arch = "x86_64")) {
        bail!("the kernel matrix is for x86_64");
    }
    ensure_programs(
        &[
            ("qemu-system-x86_64", "qemu-system-x86"),
            ("dpkg-deb", "dpkg"),
        ],
        "boot kernels",
    )?;
    let agent = agent()?;
    interrupt::watch()?;

    let directory = target().join("kernels");
    fs::create_dir_all(&directory)?;
    let busybox = debian::busybox(&directory)?;
    let image = directory.join("initramfs.cpio");
    fs::write(&image, initramfs::image(&agent, &busybox)?)?;

    let mut boots = Vec::new();
    for kernel in chosen {
        let vmlinuz = debian::kernel(&directory, kernel.version, kernel.suite)?;
        say(format!("booting {}", kernel.version));
        let start = Instant::now();
        let log = directory.join(format!("{}.log", kernel.version));
        let lines =
            boot(&vmlinuz, &image, &log).with_context(|| format!("kernel {}", kernel.version))?;
        let boot = Boot::read(kernel.version, &lines, start.elapsed());
        say(format!(
            "{} ({}) took {:.0} s",
            boot.version,
            boot.release,
            boot.took.as_secs_f64()
        ));
        boots.push(boot);
    }
    println!("{}", report::table(&boots));
    for boot in &boots {
        println!("{} check:", boot.version);
        for line in &boot.check {
            println!("    {line}");
        }
    }
    let failures: Vec<String> = boots.iter().flat_map(Boot::failures).collect();
    if !failures.is_empty() {
        bail!("{}", failures.join("\n"));
    }
    Ok(())
}

fn choose(only: Option<&str>) -> Result<Vec<&'static Kernel>> {
    let chosen: Vec<&Kernel> = match only {
        None => KERNELS.iter().collect(),
        Some("oldest") => KERNELS.iter().take(1).collect(),
        Some(version) => KERNELS
            .iter()
            .filter(|kernel| kernel.version == version)
            .collect(),
    };
    if chosen.is_empty() {
        let known: Vec<&str> = KERNELS.iter().map(|kernel| kernel.version).collect();
        bail!("no such kernel; there are oldest, {}", known.join(", "));
    }
    Ok(chosen)
}

/// Boots a kernel until it powers off; returns the lines of its serial port.
fn boot(kernel: &Path, image: &Path, log: &Path) -> Result<Vec<String>> {
    let complaints = log.with_extension("qemu");
    let mut command = Command::new("qemu-system-x86_64");
    command
        .args(["-machine", "q35,accel=tcg", "-cpu", "max"])
        .args(["-m", MEMORY, "-no-reboot", "-display", "none"])
        .args(["-monitor", "none", "-serial", "stdio", "-nic", "none"])
        .args(["-append", "console=ttyS0 quiet panic=-1 rdinit=/init"])
        .arg("-kernel")
        .arg(kernel)
        .arg("-initrd")
        .arg(image)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(File::create(&complaints)?);
    let mut machine = Group::spawn("qemu", &mut command)?;
    let serial = machine
        .child()
        .stdout
        .take()
        .context("qemu has no output")?;
    let lines = Arc::new(Mutex::new(Vec::new()));
    let kept = Arc::clone(&lines);
    let reader = thread::spawn(move || {
        for line in BufReader::new(serial).split(b'\n').map_while(Result::ok) {
            let line = String::from_utf8_lossy(&line).trim_end().to_owned();
            kept.lock()
                .unwrap_or_else(PoisonError::into_inner)
                .push(line);
        }
    });
    let ended = wait_for("powering off", BOOT_LIMIT, || machine.ended());
    drop(machine);
    reader.join().ok();
    let lines = std::mem::take(&mut *lines.lock().unwrap_or_else(PoisonError::into_inner));
    fs::write(log, lines.join("\n"))?;
    let ended = ended.with_context(|| format!("the serial line's text: {}", log.display()))?;
    if !ended.success() {
        let complaints = fs::read_to_string(&complaints)?;
        bail!("qemu: {ended}: {}", complaints.trim());
    }
    Ok(lines)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_kernel_is_the_oldest_promised() {
        let chosen = choose(Some("oldest")).unwrap();
        assert_eq!(chosen[0].version, "5.10");
    }

    #[test]
    fn an_unknown_kernel_is_refused_with_the_known_ones() {
        let error = choose(Some("2.6")).err().unwrap().to_string();
        assert!(error.contains("6.12"), "{error}");
    }
}
