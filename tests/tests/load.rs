//! Every BPF program loads on the running kernel, and the verifier's work
//! stays within `fixtures/verified-instructions.txt`: the kernel refuses what
//! takes it more than a million instructions, and older kernels need many
//! times what newer ones do.

use std::collections::BTreeMap;
use std::process::Command;

use anyhow::{Context, ensure};

/// A program's most verified instructions.
const BUDGETS: &str = include_str!("../fixtures/verified-instructions.txt");

/// `name number` a line; lines that begin with `#` are comments.
fn counts(text: &str) -> anyhow::Result<BTreeMap<&str, u32>> {
    text.lines()
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .map(|line| {
            let (name, count) = line.split_once(' ').context("a line without a number")?;
            Ok((name, count.parse().with_context(|| line.to_owned())?))
        })
        .collect()
}

/// What the agent's programs cost the running kernel's verifier.
fn verified() -> anyhow::Result<String> {
    let agent = std::env::var_os("OTEL_EBPF_AGENT")
        .context("OTEL_EBPF_AGENT is not set; run cargo xtask test")?;
    let output = Command::new(agent).arg("--load-only").output()?;
    ensure!(
        output.status.success(),
        "the agent cannot load its programs: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(String::from_utf8(output.stdout)?)
}

#[test]
fn every_program_loads_within_its_budget() -> anyhow::Result<()> {
    let text = verified()?;
    // A kernel before 5.16 does not tell how much it was.
    let text = text.replace(" unknown", " 0");
    let verified = counts(&text)?;
    let budgets = counts(BUDGETS)?;
    let names: Vec<&str> = verified.keys().copied().collect();
    assert_eq!(names, otel_ebpf::probes::program_names());
    assert_eq!(names, budgets.keys().copied().collect::<Vec<_>>());
    let over: Vec<String> = verified
        .iter()
        .filter(|(name, count)| *count > &budgets[*name])
        .map(|(name, count)| format!("{name}: {count} of at most {}", budgets[name]))
        .collect();
    assert!(over.is_empty(), "over budget: {over:?}");
    Ok(())
}
