//! `cargo xtask tidy`: the rules of style and structure that no other tool
//! checks.
//!
//! A rule is a row of [`RULES`]: a name and a function from the [`Tree`], all
//! of the project's files as text, to the places that break it. The rules that
//! ask cargo about dependencies are in `dependencies`.

mod content;
mod dependencies;
mod structure;
mod tree;

use anyhow::{Result, bail};

use self::tree::{Tree, Violation};
use crate::{python, root};

/// A rule that looks at files only.
struct Rule {
    name: &'static str,
    check: fn(&Tree) -> Vec<Violation>,
}

/// Every rule.
const RULES: &[Rule] = &[
    Rule {
        name: "a Rust file starts with its purpose (//!)",
        check: content::module_docs,
    },
    Rule {
        name: "nothing is announced for later, no test is ignored",
        check: content::unfinished,
    },
    Rule {
        name: "no allow or expect of a lint without a reason",
        check: content::bare_allow,
    },
    Rule {
        name: "a file has at most 800 lines before its tests",
        check: content::length,
    },
    Rule {
        name: "libraries are named only in their modules",
        check: content::boundaries,
    },
    Rule {
        name: "the pipeline core reads neither clock nor randomness",
        check: content::purity,
    },
    Rule {
        name: "links in Markdown lead somewhere",
        check: content::links,
    },
    Rule {
        name: "map names have at most 15 bytes",
        check: structure::map_names,
    },
    Rule {
        name: "a protocol is a file, a row and a fixture folder",
        check: structure::protocols,
    },
    Rule {
        name: "what comes after the parsers names no protocol",
        check: structure::nameless,
    },
    Rule {
        name: "a CPython layout is a file, a row and a recorded memory",
        check: structure::layouts,
    },
    Rule {
        name: "a framework has an application",
        check: structure::frameworks,
    },
    Rule {
        name: "no mod.rs",
        check: structure::mod_files,
    },
];

pub(crate) fn run() -> Result<()> {
    let tree = Tree::read(&root())?;
    let mut broken = 0;
    let mut report = |name: &str, violations: Vec<Violation>| {
        let verdict = if violations.is_empty() {
            "ok"
        } else {
            "BROKEN"
        };
        println!("{verdict:6} {name}");
        for violation in &violations {
            println!("       {violation}");
        }
        broken += violations.len();
    };
    for rule in RULES {
        report(rule.name, (rule.check)(&tree));
    }
    report(
        "the shared crates depend on neither tokio nor the agent",
        dependencies::layers()?,
    );
    report("Python files compile", python_files(&tree)?);
    if broken > 0 {
        bail!("{broken} places break the rules");
    }
    Ok(())
}

fn python_files(tree: &Tree) -> Result<Vec<Violation>> {
    let interpreter = python::base_interpreter()?;
    Ok(tree
        .files()
        .filter(|(path, _)| path.ends_with(".py"))
        .filter_map(|(path, _)| {
            let error = python::compile(&interpreter, &root().join(path)).err()?;
            Some(Violation::of_file(path, format!("{error:#}")))
        })
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_rules_share_a_name() {
        let mut names: Vec<&str> = RULES.iter().map(|rule| rule.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), RULES.len());
    }
}
