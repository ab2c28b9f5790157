//! What a booted kernel said over its serial line, and the table of all.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::time::Duration;

/// Precedes the kernel's release.
pub(super) const KERNEL: &str = "otel-ebpf-vm kernel";
/// Precedes the name of a part of the output.
pub(super) const BEGIN: &str = "otel-ebpf-vm begin";
/// Ends a part: its name and exit status follow.
pub(super) const END: &str = "otel-ebpf-vm end";

/// A boot's findings.
#[derive(Debug)]
pub(super) struct Boot {
    /// The row of the table of kernels.
    pub(super) version: &'static str,
    /// What the kernel calls itself.
    pub(super) release: String,
    /// From power-on to power-off.
    pub(super) took: Duration,
    /// Instructions that the verifier walked through, by program; none where
    /// the kernel does not tell (before 5.16).
    programs: BTreeMap<String, Option<u64>>,
    /// What else the loader said.
    load: Vec<String>,
    /// What `otel-ebpf check` said.
    pub(super) check: Vec<String>,
    /// Exit statuses by part.
    statuses: BTreeMap<String, i32>,
}

impl Boot {
    /// Reads the serial line's text.
    pub(super) fn read(version: &'static str, lines: &[String], took: Duration) -> Self {
        let mut boot = Self {
            version,
            release: "did not boot".to_owned(),
            took,
            programs: BTreeMap::new(),
            load: Vec::new(),
            check: Vec::new(),
            statuses: BTreeMap::new(),
        };
        let mut part = None;
        for line in lines {
            if let Some(release) = after(line, KERNEL) {
                boot.release = release.to_owned();
            } else if let Some(name) = after(line, BEGIN) {
                part = Some(name);
            } else if let Some(rest) = after(line, END) {
                part = None;
                if let Some((name, status)) = rest.split_once(' ') {
                    let status = status.parse().unwrap_or(-1);
                    boot.statuses.insert(name.to_owned(), status);
                }
            } else {
                match (part, program_line(line)) {
                    (Some("load"), Some((name, instructions))) => {
                        boot.programs.insert(name.to_owned(), instructions);
                    }
                    (Some("load"), None) => boot.load.push(line.clone()),
                    (Some("check"), _) => boot.check.push(line.clone()),
                    _ => {}
                }
            }
        }
        boot
    }

    /// Why this kernel is not good enough; empty when it is.
    pub(super) fn failures(&self) -> Vec<String> {
        let mut failures = Vec::new();
        for (part, said) in [("load", &self.load), ("check", &self.check)] {
            match self.statuses.get(part) {
                Some(0) => {}
                Some(status) => failures.push(format!(
                    "{}: {part} exited with {status}\n{}",
                    self.version,
                    said.join("\n")
                )),
                None => failures.push(format!("{}: {part} never ended", self.version)),
            }
        }
        if self.programs.is_empty() {
            failures.push(format!("{}: no program was loaded", self.version));
        }
        failures
    }
}

/// A table of verified instructions, programs down, kernels across.
pub(super) fn table(boots: &[Boot]) -> String {
    let names: BTreeSet<&String> = boots.iter().flat_map(|boot| boot.programs.keys()).collect();
    let width = names
        .iter()
        .map(|name| name.len())
        .max()
        .unwrap_or(0)
        .max(24);
    let mut text = format!("{:width$}", "verified instructions");
    for boot in boots {
        // Writing to a string does not fail.
        write!(text, " {:>10}", boot.version).ok();
    }
    for name in names {
        write!(text, "\n{name:width$}").ok();
        for boot in boots {
            match boot.programs.get(name) {
                Some(Some(instructions)) => write!(text, " {instructions:>10}").ok(),
                Some(None) => write!(text, " {:>10}", "loaded").ok(),
                None => write!(text, " {:>10}", "-").ok(),
            };
        }
    }
    text
}

/// The rest of a line that has the marker, perhaps after the kernel's own
/// words, which share the serial line.
fn after<'a>(line: &'a str, marker: &str) -> Option<&'a str> {
    line.split_once(marker).map(|(_, rest)| rest.trim())
}

/// `name verified_insns` or `name unknown`, as `--load-only` prints it.
fn program_line(line: &str) -> Option<(&str, Option<u64>)> {
    let (name, instructions) = line.split_once(' ')?;
    match instructions.trim() {
        "unknown" => Some((name, None)),
        number => Some((name, Some(number.parse().ok()?))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn boot(text: &str) -> Boot {
        let lines: Vec<String> = text.lines().map(str::to_owned).collect();
        Boot::read("5.10", &lines, Duration::ZERO)
    }

    const GOOD: &str = "noise
otel-ebpf-vm kernel 5.10.0-32-cloud-amd64
otel-ebpf-vm begin load
on_read 1234
on_write unknown
otel-ebpf-vm end load 0
otel-ebpf-vm begin check
all is well
otel-ebpf-vm end check 0";

    #[test]
    fn a_good_boot_has_no_failures() {
        let boot = boot(GOOD);
        assert_eq!(boot.release, "5.10.0-32-cloud-amd64");
        assert_eq!(boot.programs["on_read"], Some(1234));
        assert_eq!(boot.programs["on_write"], None);
        assert_eq!(boot.check, ["all is well"]);
        assert_eq!(boot.failures(), Vec::<String>::new());
    }

    #[test]
    fn a_refused_program_fails_with_the_verifiers_words() {
        let text = GOOD
            .replace("on_write unknown", "invalid mem access 'scalar'")
            .replace("end load 0", "end load 1");
        let failures = boot(&text).failures();
        assert_eq!(failures.len(), 1);
        assert!(failures[0].contains("invalid mem access"), "{failures:?}");
    }

    #[test]
    fn a_kernel_that_stops_halfway_fails() {
        let text = GOOD.split("otel-ebpf-vm end load").next().unwrap();
        assert_eq!(boot(text).failures().len(), 2);
    }

    #[test]
    fn a_load_of_nothing_fails() {
        let text = GOOD.replace("on_read 1234\non_write unknown\n", "");
        assert_eq!(boot(&text).failures(), ["5.10: no program was loaded"]);
    }

    #[test]
    fn the_table_has_a_row_per_program() {
        let text = table(&[boot(GOOD)]);
        assert_eq!(text.lines().count(), 3);
        assert!(text.contains("on_read"), "{text}");
        assert!(text.contains("loaded"), "{text}");
    }
}
