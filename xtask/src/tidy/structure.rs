//! Rules about files that belong together.

use std::collections::BTreeSet;

use super::content::in_module;
use super::tree::{Tree, Violation, code};

/// `BPF_OBJ_NAME_LEN` less the final zero (Linux, include/uapi/linux/bpf.h).
const MAX_MAP_NAME: usize = 15;

const MAPS: &str = "ebpf/src/maps.rs";
const PROTOCOL_TABLE: &str = "agent/src/protocol.rs";
const PROTOCOL_FOLDER: &str = "agent/src/protocol/";
/// Modules that tell no protocol from another.
const NAMELESS: &[&str] = &[
    "agent/src/stream",
    "agent/src/tracer",
    "agent/src/assemble",
    "agent/src/batch",
    "agent/src/signal",
];
const FIXTURES: &str = "tests/fixtures/";
const LAYOUT_TABLE: &str = "pyframes/src/layout.rs";
const LAYOUT_FOLDER: &str = "pyframes/src/layout/";
const MEMORY: &str = "tests/fixtures/memory/";
/// Layouts of which no build could be recorded so far: Debian has no
/// free-threaded one, and its source of 3.14 was not there.
const NOT_TO_BE_HAD: &[&str] = &["py314t"];
const FRAMEWORK_LIST: &str = "agent/src/insight.rs";
const FRAMEWORK_APPS: &str = "tests/apps/frameworks/";

pub(super) fn map_names(tree: &Tree) -> Vec<Violation> {
    let mut violations = Vec::new();
    for (path, text) in tree
        .rust()
        .filter(|(path, _)| path.starts_with("ebpf/src/"))
    {
        let mut expected = false;
        for (index, line) in code(text) {
            let line = line.trim_start();
            if line.starts_with("#[map") {
                expected = true;
                if path != MAPS {
                    let what = format!("a map outside of {MAPS}");
                    violations.push(Violation::of_line(path, index, what));
                }
            }
            let Some((_, rest)) = line.split_once("static ").filter(|_| expected) else {
                continue;
            };
            expected = false;
            let name = rest.trim_start_matches("mut ");
            let name = name.split(':').next().unwrap_or_default().trim();
            if name.len() > MAX_MAP_NAME {
                let what = format!("{name} has {} bytes", name.len());
                violations.push(Violation::of_line(path, index, what));
            }
        }
    }
    violations
}

pub(super) fn protocols(tree: &Tree) -> Vec<Violation> {
    let mut violations = pairs(
        tree,
        PROTOCOL_TABLE,
        PROTOCOL_FOLDER,
        "PROTOCOLS",
        "PROTOCOL",
    );
    let rows = rows(tree, PROTOCOL_TABLE, "PROTOCOLS", "PROTOCOL");
    for row in &rows {
        let folder = format!("{FIXTURES}{row}");
        if !tree.has(&folder) {
            violations.push(Violation::of_file(&folder, "the protocol has no fixtures"));
        }
    }
    violations
}

/// What comes after the parsers knows no protocol by its name.
pub(super) fn nameless(tree: &Tree) -> Vec<Violation> {
    let names: Vec<String> = rows(tree, PROTOCOL_TABLE, "PROTOCOLS", "PROTOCOL")
        .iter()
        .map(|row| {
            row.trim_end_matches(|c: char| c.is_ascii_digit())
                .to_owned()
        })
        .collect();
    let mut violations = Vec::new();
    for (path, text) in tree.rust().filter(|(path, _)| in_module(path, NAMELESS)) {
        for (index, line) in code(text) {
            let lower = line.to_lowercase().replace("https://", "");
            for name in names.iter().filter(|name| lower.contains(name.as_str())) {
                let what = format!("{name} is a protocol's name");
                violations.push(Violation::of_line(path, index, what));
            }
        }
    }
    violations
}

pub(super) fn layouts(tree: &Tree) -> Vec<Violation> {
    let mut violations = pairs(tree, LAYOUT_TABLE, LAYOUT_FOLDER, "LAYOUTS", "LAYOUT");
    for row in rows(tree, LAYOUT_TABLE, "LAYOUTS", "LAYOUT") {
        // `py313t` is told by `3.13t.bin`.
        let Some((major, minor)) = row
            .strip_prefix("py")
            .and_then(|row| row.split_at_checked(1))
        else {
            continue;
        };
        let recorded = format!("{MEMORY}{major}.{minor}.bin");
        if !tree.has(&recorded) && !NOT_TO_BE_HAD.contains(&&*row) {
            let what = "the layout has no recorded memory";
            violations.push(Violation::of_file(&recorded, what));
        }
    }
    violations
}

pub(super) fn frameworks(tree: &Tree) -> Vec<Violation> {
    let text = tree.text(FRAMEWORK_LIST).unwrap_or_default();
    code(text)
        .map(|(_, line)| line.trim())
        .skip_while(|line| !line.contains("const FRAMEWORKS:"))
        .skip(1)
        .take_while(|line| *line != "];")
        .filter_map(|line| line.strip_prefix('"')?.strip_suffix("\","))
        .map(|name| format!("{FRAMEWORK_APPS}{name}_app.py"))
        .filter(|app| !tree.has(app))
        .map(|app| Violation::of_file(&app, "the framework has no application"))
        .collect()
}

pub(super) fn mod_files(tree: &Tree) -> Vec<Violation> {
    tree.rust()
        .filter(|(path, _)| path.ends_with("/mod.rs"))
        .map(|(path, _)| Violation::of_file(path, "name it after the module, beside its folder"))
        .collect()
}

/// A row `name::ITEM` of a table needs a file `name.rs` in the folder, and a
/// file that defines the item needs its row.
fn pairs(tree: &Tree, table: &str, folder: &str, list: &str, item: &str) -> Vec<Violation> {
    let rows = rows(tree, table, list, item);
    let defining: BTreeSet<String> = tree
        .rust()
        .filter(|(_, text)| {
            let definitions = [format!("const {item}:"), format!("static {item}:")];
            code(text).any(|(_, line)| definitions.iter().any(|part| line.contains(part)))
        })
        .filter_map(|(path, _)| path.strip_prefix(folder)?.strip_suffix(".rs"))
        .filter(|name| !name.contains('/'))
        .map(str::to_owned)
        .collect();
    let missing =
        |name: &String, what: &str| Violation::of_file(&format!("{folder}{name}.rs"), what);
    let without_file = rows.difference(&defining);
    let without_row = defining.difference(&rows);
    without_file
        .map(|name| missing(name, &format!("a row of {list} has no such file")))
        .chain(without_row.map(|name| missing(name, &format!("is in no row of {list}"))))
        .collect()
}

/// The modules `x` of the entries `x::ITEM` of a table.
fn rows(tree: &Tree, table: &str, list: &str, item: &str) -> BTreeSet<String> {
    let text = tree.text(table).unwrap_or_default();
    let (constant, variable) = (format!("const {list}:"), format!("static {list}:"));
    let suffix = format!("::{item}");
    code(text)
        .map(|(_, line)| line)
        .skip_while(|line| !line.contains(&constant) && !line.contains(&variable))
        .scan(false, |over, line| {
            let was_over = *over;
            *over |= line.trim_end().ends_with("];");
            (!was_over).then_some(line)
        })
        .flat_map(|line| line.split(|c: char| !(c.is_ascii_alphanumeric() || "_:".contains(c))))
        .filter_map(|word| word.strip_suffix(&suffix))
        .map(|module| module.rsplit("::").next().unwrap_or(module).to_owned())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_map_name_is_found() {
        let text = "#[map]\nstatic EVENTS: X = 1;\n#[map]\npub static CONNECTIONS_BY_FD: X = 1;\n";
        let violations = map_names(&Tree::of([(MAPS, text)]));
        assert_eq!(violations.len(), 1, "{violations:?}");
        assert_eq!(
            map_names(&Tree::of([("ebpf/src/main.rs", "#[map]\n")])).len(),
            1
        );
    }

    #[test]
    fn a_protocol_without_one_of_its_three_is_found() {
        let parser = "pub const PROTOCOL: Protocol = X;";
        let table = "pub const PROTOCOLS: &[Protocol] = &[http1::PROTOCOL,\n redis::PROTOCOL];\nfn f() { x::PROTOCOL }";
        let tree = Tree::of([
            (PROTOCOL_TABLE, table),
            ("agent/src/protocol/http1.rs", parser),
            ("agent/src/protocol/mysql.rs", parser),
            ("agent/src/protocol/reader.rs", "pub struct Reader;"),
            ("tests/fixtures/http1/get.json", ""),
        ]);
        let found: Vec<String> = protocols(&tree).iter().map(ToString::to_string).collect();
        assert_eq!(
            found,
            [
                "agent/src/protocol/redis.rs: a row of PROTOCOLS has no such file",
                "agent/src/protocol/mysql.rs: is in no row of PROTOCOLS",
                "tests/fixtures/redis: the protocol has no fixtures",
            ]
        );
    }

    #[test]
    fn a_protocol_that_is_named_after_the_parsers_is_found() {
        let table = "pub const PROTOCOLS: &[Protocol] = &[http1::PROTOCOL,\n redis::PROTOCOL];\n";
        let assemble =
            "// Not so for HTTP.\nlet a = Redis;\n#[cfg(test)]\nmod tests {\n\"redis\"\n}";
        let tree = Tree::of([
            (PROTOCOL_TABLE, table),
            ("agent/src/assemble.rs", assemble),
            ("agent/src/signal/traces.rs", "let key = \"http.route\";"),
            ("agent/src/protocol/redis.rs", "let a = Redis;"),
        ]);
        let found: Vec<String> = nameless(&tree).iter().map(ToString::to_string).collect();
        assert_eq!(
            found,
            [
                "agent/src/assemble.rs:2: redis is a protocol's name",
                "agent/src/signal/traces.rs:1: http is a protocol's name",
            ]
        );
    }

    #[test]
    fn a_layout_without_a_row_is_found() {
        let table =
            "pub static LAYOUTS: [(Series, Layout); 1] = [\n    (X {}, py312::LAYOUT),\n];\n";
        let layout = "pub(super) const LAYOUT: Layout = Layout {};";
        let good = [
            (LAYOUT_TABLE, table),
            ("pyframes/src/layout/py312.rs", layout),
            ("tests/fixtures/memory/3.12.bin", ""),
        ];
        assert_eq!(layouts(&Tree::of(good)), []);
        let forgotten = [
            (LAYOUT_TABLE, table),
            ("pyframes/src/layout/py312.rs", layout),
        ];
        let found: Vec<String> = layouts(&Tree::of(forgotten))
            .iter()
            .map(ToString::to_string)
            .collect();
        assert_eq!(
            found,
            ["tests/fixtures/memory/3.12.bin: the layout has no recorded memory"]
        );
        let lonely = [("pyframes/src/layout/py399.rs", layout)];
        assert_eq!(layouts(&Tree::of(lonely)).len(), 1);
    }

    #[test]
    fn a_framework_without_an_application_is_found() {
        let list = "pub const FRAMEWORKS: &[&str] = &[\n    \"flask\",\n    \"django\",\n];\n";
        let found: Vec<String> = frameworks(&Tree::of([
            (FRAMEWORK_LIST, list),
            ("tests/apps/frameworks/flask_app.py", ""),
        ]))
        .iter()
        .map(ToString::to_string)
        .collect();
        assert_eq!(
            found,
            ["tests/apps/frameworks/django_app.py: the framework has no application"]
        );
    }

    #[test]
    fn a_mod_file_is_found() {
        assert_eq!(mod_files(&Tree::of([("a/src/x/mod.rs", "")])).len(), 1);
    }
}
