//! The project's files as text, and what a rule finds in them.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};

use crate::group::output;

/// Files that are not text for a rule: recorded bytes.
const RECORDED: &str = "tests/fixtures/";

/// Paths relative to the root, with `/`, and their text; recorded fixtures
/// are there with no text.
#[derive(Default)]
pub(super) struct Tree(BTreeMap<String, String>);

impl Tree {
    /// Every file that git knows, or would add.
    pub(super) fn read(root: &Path) -> Result<Self> {
        let list = output(Command::new("git").current_dir(root).args([
            "ls-files",
            "-z",
            "--cached",
            "--others",
            "--exclude-standard",
        ]))
        .context("tidy reads the list of files from git")?;
        let mut files = BTreeMap::new();
        for path in list.split('\0').filter(|path| !path.is_empty()) {
            let file = root.join(path);
            // Deleted, but not yet for git.
            if !file.is_file() {
                continue;
            }
            let text = if path.starts_with(RECORDED) {
                String::new()
            } else {
                let bytes = fs::read(&file).with_context(|| format!("cannot read {path}"))?;
                String::from_utf8_lossy(&bytes).into_owned()
            };
            files.insert(path.to_owned(), text);
        }
        Ok(Self(files))
    }

    /// A made-up tree.
    #[cfg(test)]
    pub(super) fn of<const N: usize>(files: [(&str, &str); N]) -> Self {
        let owned = files.map(|(path, text)| (path.to_owned(), text.to_owned()));
        Self(owned.into())
    }

    pub(super) fn files(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0
            .iter()
            .map(|(path, text)| (path.as_str(), text.as_str()))
    }

    pub(super) fn rust(&self) -> impl Iterator<Item = (&str, &str)> {
        self.files().filter(|(path, _)| path.ends_with(".rs"))
    }

    pub(super) fn text(&self, path: &str) -> Option<&str> {
        self.0.get(path).map(String::as_str)
    }

    /// Whether this is a file, or a folder with files.
    pub(super) fn has(&self, path: &str) -> bool {
        let path = path.trim_end_matches('/');
        let folder = format!("{path}/");
        path.is_empty()
            || self.0.contains_key(path)
            || self.0.keys().any(|file| file.starts_with(&folder))
    }
}

/// A place that breaks a rule.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Violation {
    path: String,
    /// Counted from one.
    line: Option<usize>,
    what: String,
}

impl Violation {
    pub(super) fn of_file(path: &str, what: impl Into<String>) -> Self {
        Self {
            path: path.to_owned(),
            line: None,
            what: what.into(),
        }
    }

    pub(super) fn of_line(path: &str, index: usize, what: impl Into<String>) -> Self {
        Self {
            path: path.to_owned(),
            line: Some(index + 1),
            what: what.into(),
        }
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { path, line, what } = self;
        match line {
            Some(line) => write!(f, "{path}:{line}: {what}"),
            None => write!(f, "{path}: {what}"),
        }
    }
}

/// A Rust file's lines up to its tests.
pub(super) fn untested(text: &str) -> impl Iterator<Item = &str> {
    let lines: Vec<&str> = text.lines().collect();
    // A module that is only declared for tests is followed by more code.
    let tests = lines.windows(2).position(|pair| {
        matches!(pair, ["#[cfg(test)]", module] if module.starts_with("mod ") && !module.ends_with(';'))
    });
    let end = tests.unwrap_or(lines.len());
    lines.into_iter().take(end)
}

/// The same without comments: `(index, code)`.
pub(super) fn code(text: &str) -> impl Iterator<Item = (usize, &str)> {
    untested(text)
        .enumerate()
        .filter(|(_, line)| !line.trim_start().starts_with("//"))
        .map(|(index, line)| (index, line.split(" // ").next().unwrap_or(line)))
}

/// Whether a line names this identifier (or path, such as `std::time`) as a
/// whole.
pub(super) fn names(line: &str, identifier: &str) -> bool {
    let part = |byte: Option<&u8>| byte.is_some_and(|b| b.is_ascii_alphanumeric() || *b == b'_');
    let bytes = line.as_bytes();
    line.match_indices(identifier).any(|(start, _)| {
        let before = start.checked_sub(1).and_then(|at| bytes.get(at));
        !part(before) && !part(bytes.get(start + identifier.len()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn code_leaves_out_comments_and_tests() {
        let text = "//! Doc.\nlet a = 1; // why\n// no\n#[cfg(test)]\nmod tests {}\n";
        assert_eq!(code(text).collect::<Vec<_>>(), [(1, "let a = 1;")]);
    }

    #[test]
    fn a_declared_test_module_ends_nothing() {
        let text = "#[cfg(test)]\nmod fake;\nlet a = 1;\n";
        assert_eq!(code(text).count(), 3);
    }

    #[test]
    fn identifiers_are_matched_as_a_whole() {
        assert!(names("use aya::Ebpf;", "aya"));
        assert!(!names("use aya_log::x;", "aya"));
        assert!(names("fn f(now: std::time::Instant)", "std::time::Instant"));
    }

    #[test]
    fn a_folder_is_there_when_it_has_files() {
        let tree = Tree::of([("a/b.rs", "")]);
        assert!(tree.has("a") && tree.has("a/") && tree.has("a/b.rs"));
        assert!(!tree.has("a/b"));
    }
}
