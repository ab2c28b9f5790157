//! Rules about what a single file says.

use super::tree::{Tree, Violation, code, names, untested};

/// A file's limit, its tests not counted; beyond it, a reason must stand in
/// [`LONG_FILES`].
const MAX_LINES: usize = 800;
/// Files that may be longer, and why.
const LONG_FILES: &[(&str, &str)] = &[];

/// Words that announce unfinished work. Written in two parts, or this file
/// would break its own rule.
const UNFINISHED: [&str; 3] = [
    concat!("TO", "DO"),
    concat!("FIX", "ME"),
    concat!("#[ig", "nore"),
];

/// A library and the only places that may name it.
struct Boundary {
    library: &'static str,
    /// Where the rule holds.
    within: &'static str,
    /// Path prefixes, without the ending, where the library may be named.
    allowed: &'static [&'static str],
}

const BOUNDARIES: &[Boundary] = &[
    Boundary {
        library: "aya",
        within: "agent/src/",
        allowed: &["agent/src/probes", "agent/src/source"],
    },
    Boundary {
        library: "aya_log",
        within: "agent/src/",
        allowed: &["agent/src/probes", "agent/src/source"],
    },
    Boundary {
        library: "tonic",
        within: "agent/src/",
        allowed: &["agent/src/export", "agent/src/control"],
    },
    Boundary {
        library: "hyper",
        within: "agent/src/",
        allowed: &["agent/src/export", "agent/src/control"],
    },
    Boundary {
        library: "proto",
        within: "agent/src/",
        allowed: &["agent/src/signal", "agent/src/batch", "agent/src/export"],
    },
];

/// The modules that replay to the same bytes.
const CORE: &[&str] = &[
    "agent/src/stream",
    "agent/src/protocol",
    "agent/src/assemble",
    "agent/src/signal",
];
/// What would make a replay differ.
const IMPURE: &[&str] = &[
    "Instant",
    "SystemTime",
    "rand",
    "std::fs",
    "std::net::TcpStream",
    "std::env",
    "tokio",
];

pub(super) fn module_docs(tree: &Tree) -> Vec<Violation> {
    tree.rust()
        .filter(|(_, text)| !text.starts_with("//! "))
        .map(|(path, _)| Violation::of_file(path, "the first line is no //! comment"))
        .collect()
}

pub(super) fn unfinished(tree: &Tree) -> Vec<Violation> {
    let endings = [".rs", ".py", ".sh", ".toml", ".ci/run"];
    let mut violations = Vec::new();
    for (path, text) in tree.files() {
        if !endings.iter().any(|ending| path.ends_with(ending)) {
            continue;
        }
        for (index, line) in text.lines().enumerate() {
            for word in UNFINISHED.iter().filter(|word| line.contains(**word)) {
                violations.push(Violation::of_line(path, index, *word));
            }
        }
    }
    violations
}

pub(super) fn bare_allow(tree: &Tree) -> Vec<Violation> {
    let mut violations = Vec::new();
    for (path, text) in tree.rust() {
        let mut start = 0;
        for (index, line) in text.lines().enumerate() {
            let attribute = line.trim_start();
            let opens = ["#[allow(", "#![allow(", "#[expect(", "#![expect("];
            if opens.iter().any(|open| attribute.starts_with(open)) {
                let rest = text.get(start..).unwrap_or_default();
                let whole = rest.split(")]").next().unwrap_or(rest);
                if !whole.contains("reason = \"") {
                    violations.push(Violation::of_line(path, index, "give the reason"));
                }
            }
            start += line.len() + 1;
        }
    }
    violations
}

pub(super) fn length(tree: &Tree) -> Vec<Violation> {
    tree.rust()
        .filter(|(path, _)| !LONG_FILES.iter().any(|(long, _)| long == path))
        .map(|(path, text)| (path, untested(text).count()))
        .filter(|(_, lines)| *lines > MAX_LINES)
        .map(|(path, lines)| Violation::of_file(path, format!("{lines} lines")))
        .collect()
}

pub(super) fn boundaries(tree: &Tree) -> Vec<Violation> {
    let mut violations = Vec::new();
    for boundary in BOUNDARIES {
        for (path, text) in tree.rust() {
            if !path.starts_with(boundary.within) || in_module(path, boundary.allowed) {
                continue;
            }
            let path_of = format!("{}::", boundary.library);
            for (index, line) in code(text).filter(|(_, line)| starts_path(line, &path_of)) {
                let what = format!("{} in {:?}", boundary.library, line.trim());
                violations.push(Violation::of_line(path, index, what));
            }
        }
    }
    violations
}

/// Reads the fixtures of parsers, and is compiled for tests only.
const FOR_TESTS: &str = "agent/src/protocol/conversation.rs";

pub(super) fn purity(tree: &Tree) -> Vec<Violation> {
    let mut violations = Vec::new();
    let core = |path: &str| in_module(path, CORE) && path != FOR_TESTS;
    for (path, text) in tree.rust().filter(|(path, _)| core(path)) {
        for (index, line) in code(text) {
            for word in IMPURE.iter().filter(|word| names(line, word)) {
                violations.push(Violation::of_line(path, index, *word));
            }
        }
    }
    violations
}

pub(super) fn links(tree: &Tree) -> Vec<Violation> {
    let mut violations = Vec::new();
    let pages = tree.files().filter(|(path, _)| path.ends_with(".md"));
    for (path, text) in pages {
        let mut fenced = false;
        for (index, line) in text.lines().enumerate() {
            fenced ^= line.trim_start().starts_with("```");
            if fenced {
                continue;
            }
            for link in links_in(line) {
                let target = link.split('#').next().unwrap_or_default();
                let outside = link.contains("://") || link.starts_with("mailto:");
                if !outside && !tree.has(&resolve(path, target)) {
                    violations.push(Violation::of_line(
                        path,
                        index,
                        format!("{link} is not there"),
                    ));
                }
            }
        }
    }
    violations
}

/// Whether a path is one of these modules or lies below one.
pub(super) fn in_module(path: &str, modules: &[&str]) -> bool {
    modules.iter().any(|module| {
        path.strip_prefix(module)
            .is_some_and(|rest| rest == ".rs" || rest.starts_with('/'))
    })
}

/// Whether a path such as `hyper::` begins in a line, and not within another.
fn starts_path(line: &str, path: &str) -> bool {
    line.match_indices(path).any(|(start, _)| {
        let before = line.get(..start).unwrap_or_default();
        let own = before.ends_with("crate::") || before.ends_with("self::");
        !own && !before.ends_with("::")
            && !before.ends_with(|c: char| c.is_ascii_alphanumeric() || c == '_')
            || before.trim().is_empty() && line.trim_start().starts_with("::")
    })
}

/// The targets of `[text](target)` in a line.
fn links_in(line: &str) -> impl Iterator<Item = &str> {
    line.split("](").skip(1).filter_map(|rest| {
        let target = rest.split(')').next()?;
        target.split_whitespace().next()
    })
}

/// A link's target as a path from the root.
fn resolve(page: &str, target: &str) -> String {
    if target.is_empty() {
        return page.to_owned();
    }
    let mut parts: Vec<&str> = match target.strip_prefix('/') {
        Some(_) => Vec::new(),
        None => page.split('/').rev().skip(1).collect(),
    };
    parts.reverse();
    for part in target.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    parts.join("/")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The number of places that break a rule in a tree of one file.
    fn check(rule: fn(&Tree) -> Vec<Violation>, path: &str, text: &str) -> usize {
        rule(&Tree::of([(path, text)])).len()
    }

    #[test]
    fn a_rust_file_without_a_purpose_is_found() {
        assert_eq!(check(module_docs, "a.rs", "use x;"), 1);
        assert_eq!(check(module_docs, "a.rs", "//! What it is for."), 0);
    }

    #[test]
    fn announced_work_is_found() {
        let text = format!("x = 1  # {}: more", UNFINISHED[0]);
        assert_eq!(check(unfinished, "a.py", &text), 1);
        assert_eq!(check(unfinished, "a.py", "x = 1  # all done"), 0);
    }

    #[test]
    fn a_lint_switched_off_needs_a_reason() {
        assert_eq!(check(bare_allow, "a.rs", "#[allow(dead_code)]\n"), 1);
        let several = "//! x\n#![expect(\n    dead_code,\n    reason = \"tests use it\"\n)]\n";
        assert_eq!(check(bare_allow, "a.rs", several), 0);
    }

    #[test]
    fn a_long_file_is_found() {
        assert_eq!(check(length, "a.rs", &"\n".repeat(801)), 1);
        let tested = "\n".repeat(800) + "#[cfg(test)]\nmod tests {}\n";
        assert_eq!(check(length, "a.rs", &tested), 0);
    }

    #[test]
    fn a_library_outside_of_its_module_is_found() {
        let text = "use aya::Ebpf;";
        assert_eq!(check(boundaries, "agent/src/stream.rs", text), 1);
        assert_eq!(check(boundaries, "agent/src/probes/load.rs", text), 0);
        assert_eq!(check(boundaries, "agent/src/probes.rs", text), 0);
        assert_eq!(
            check(boundaries, "agent/src/run.rs", "use crate::proto::x;"),
            0
        );
        assert_eq!(
            check(boundaries, "agent/src/run.rs", "fn f(x: proto::otlp::X)"),
            1
        );
    }

    #[test]
    fn clocks_and_chance_in_the_core_are_found() {
        let text = "let now = std::time::Instant::now();";
        assert_eq!(check(purity, "agent/src/assemble.rs", text), 1);
        assert_eq!(
            check(purity, "agent/src/protocol/http1.rs", "rand::random()"),
            1
        );
        assert_eq!(check(purity, "agent/src/batch.rs", text), 0);
        let tested = format!("#[cfg(test)]\nmod tests {{\n{text}\n}}");
        assert_eq!(check(purity, "agent/src/assemble.rs", &tested), 0);
    }

    #[test]
    fn a_link_to_nowhere_is_found() {
        let tree = Tree::of([
            (
                "docs/a.md",
                "[b](b.md) [c](../c.rs#x) [d](d.md)\n[w](https://x.y/z)",
            ),
            ("docs/b.md", "```\n[no](link.md)\n```\n[self](#part)"),
            ("c.rs", ""),
        ]);
        let violations = links(&tree);
        assert_eq!(violations.len(), 1, "{violations:?}");
        assert_eq!(violations[0].to_string(), "docs/a.md:1: d.md is not there");
    }
}
