//! The rule about which crate may depend on which, by `cargo tree`.

use std::process::Command;

use anyhow::Result;

use super::tree::Violation;
use crate::group::output;
use crate::root;

/// A package and what must not be among its dependencies.
const FORBIDDEN: &[(&str, &[&str])] = &[
    ("pyframes", &["tokio", "otel-ebpf", "otel-ebpf-proto"]),
    ("otel-ebpf-abi", &["tokio", "otel-ebpf", "otel-ebpf-proto"]),
    ("otel-ebpf-proto", &["otel-ebpf", "aya"]),
];

pub(super) fn layers() -> Result<Vec<Violation>> {
    let mut violations = Vec::new();
    for (package, forbidden) in FORBIDDEN {
        let tree = output(Command::new("cargo").current_dir(root()).args([
            "tree",
            "--quiet",
            "--all-features",
            "--edges",
            "normal,build",
            "--prefix",
            "none",
            "--format",
            "{p}",
            "--package",
            package,
        ]))?;
        violations.extend(
            forbidden_in(&tree, forbidden)
                .into_iter()
                .map(|name| Violation::of_file(package, format!("depends on {name}"))),
        );
    }
    Ok(violations)
}

/// Which of the forbidden packages a `cargo tree` lists.
fn forbidden_in<'a>(tree: &'a str, forbidden: &[&str]) -> Vec<&'a str> {
    let mut names: Vec<&str> = tree
        .lines()
        .filter_map(|line| line.split_whitespace().next())
        .filter(|name| forbidden.contains(name))
        .collect();
    names.sort_unstable();
    names.dedup();
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_forbidden_dependency_is_named_once() {
        let tree = "pyframes v0.1.0 (/x)\ntokio v1.2.3\ntokio-util v0.7\ntokio v1.2.3 (*)\n";
        assert_eq!(forbidden_in(tree, &["tokio", "otel-ebpf"]), ["tokio"]);
    }
}
