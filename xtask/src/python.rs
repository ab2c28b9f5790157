//! Virtual environments for the applications, under `target/python`.
//!
//! An environment is made from a requirements file with pinned versions and
//! made again only when the file, or the interpreter, changes.

use std::collections::BTreeMap;
use std::env;
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::group::{output, run};
use crate::toolchain::{apt_install, is_root};
use crate::{root, say, target};

/// Names the interpreter to use, instead of the newest known one.
const OVERRIDE: &str = "OTEL_EBPF_BASE_PYTHON";
/// Minor versions of CPython 3 that the pinned requirements install on, the
/// preferred one first.
const MINORS: &[u32] = &[12, 13, 11];

/// A virtual environment, with its packages installed.
pub(crate) struct Venv {
    path: PathBuf,
}

impl Venv {
    /// The environment `name` with the packages of a file in `tests/apps`.
    pub(crate) fn ensure(name: &str, requirements: &str) -> Result<Self> {
        let base = base_interpreter()?;
        Self::ensure_with(&base, name, requirements)
    }

    /// The same, on a given interpreter.
    pub(crate) fn ensure_with(base: &Path, name: &str, requirements: &str) -> Result<Self> {
        let path = target().join("python").join(name);
        let file = apps().join(requirements);
        let stamp = path.join("requirements.stamp");
        let wanted = fingerprint(base, &closure(&file)?);
        if fs::read_to_string(&stamp).is_ok_and(|found| found == wanted) {
            return Ok(Self { path });
        }
        say(format!(
            "making the Python environment {} from {} ({requirements})",
            path.display(),
            base.display(),
        ));
        if path.exists() {
            fs::remove_dir_all(&path)?;
        }
        create(base, &path)?;
        run(Command::new(path.join("bin/python"))
            .args(["-m", "pip", "install", "--quiet", "--no-input"])
            .args(["--disable-pip-version-check", "--requirement"])
            .arg(&file)
            .stdin(Stdio::null()))?;
        fs::write(&stamp, wanted)?;
        Ok(Self { path })
    }

    /// Its interpreter.
    pub(crate) fn python(&self) -> PathBuf {
        self.path.join("bin/python")
    }

    /// A program that a package installed.
    pub(crate) fn program(&self, name: &str) -> PathBuf {
        self.path.join("bin").join(name)
    }
}

/// Where the applications are.
pub(crate) fn apps() -> PathBuf {
    root().join("tests/apps")
}

/// Every interpreter on this machine that the requirements install on, by
/// minor version.
pub(crate) fn interpreters() -> BTreeMap<u32, PathBuf> {
    let mut found = every_interpreter();
    found.retain(|minor, _| MINORS.contains(minor));
    found
}

/// Every interpreter on this machine of a version that is traced, by minor
/// version.
pub(crate) fn every_interpreter() -> BTreeMap<u32, PathBuf> {
    /// The first whose structures are known.
    const FIRST: u32 = 8;
    let mut found = BTreeMap::new();
    for candidate in candidates() {
        if let Some((minor, executable)) = identify(&candidate)
            && minor >= FIRST
        {
            found.entry(minor).or_insert(executable);
        }
    }
    found
}

/// Fails with the interpreter's words if a file does not compile; writes
/// nothing.
pub(crate) fn compile(python: &Path, file: &Path) -> Result<()> {
    let program = "import sys; compile(open(sys.argv[1], 'rb').read(), sys.argv[1], 'exec')";
    output(Command::new(python).args(["-c", program]).arg(file)).map(drop)
}

/// The interpreter that environments are made from.
pub(crate) fn base_interpreter() -> Result<PathBuf> {
    if let Some(path) = env::var_os(OVERRIDE) {
        let path = PathBuf::from(path);
        return identify(&path)
            .map(|(_, executable)| executable)
            .with_context(|| format!("{OVERRIDE}={} does not run", path.display()));
    }
    let found = interpreters();
    MINORS
        .iter()
        .find_map(|minor| found.get(minor).cloned())
        .with_context(|| {
            format!("no Python 3.11 to 3.13 found; install one, or name it in {OVERRIDE}")
        })
}

fn candidates() -> Vec<PathBuf> {
    let mut candidates = Vec::new();
    if let Some(home) = env::var_os("HOME") {
        let versions = Path::new(&home).join(".pyenv/versions");
        if let Ok(entries) = fs::read_dir(versions) {
            candidates.extend(
                entries
                    .flatten()
                    .map(|entry| entry.path().join("bin/python3")),
            );
        }
    }
    candidates.sort();
    let directories: Vec<PathBuf> =
        env::split_paths(&env::var_os("PATH").unwrap_or_default()).collect();
    for minor in MINORS {
        let name = format!("python3.{minor}");
        candidates.extend(directories.iter().map(|directory| directory.join(&name)));
    }
    candidates.extend(
        directories
            .iter()
            .map(|directory| directory.join("python3")),
    );
    candidates.retain(|path| path.is_file());
    candidates
}

/// An interpreter's minor version and its real path: a shim of a version
/// manager is not the process that a service would run.
fn identify(python: &Path) -> Option<(u32, PathBuf)> {
    let text = output(Command::new(python).stdin(Stdio::null()).args([
        "-c",
        "import sys; print(*sys.version_info[:2], sys.executable)",
    ]))
    .ok()?;
    let mut words = text.trim().splitn(3, ' ');
    if words.next()? != "3" {
        return None;
    }
    let minor = words.next()?.parse().ok()?;
    Some((minor, PathBuf::from(words.next()?)))
}

fn create(base: &Path, path: &Path) -> Result<()> {
    let make = || output(Command::new(base).args(["-m", "venv"]).arg(path));
    let Err(error) = make() else { return Ok(()) };
    // Debian ships venv's bundled pip in a package of its own.
    let text = format!("{error:#}");
    if !text.contains("ensurepip") && !text.contains("No module named venv") {
        return Err(error);
    }
    let (minor, _) = identify(base).context("the interpreter does not run")?;
    apt_install(
        &["python3-venv", &format!("python3.{minor}-venv")],
        "make Python environments",
    )?;
    if is_root() && path.exists() {
        fs::remove_dir_all(path)?;
    }
    make().map(drop)
}

/// A requirements file's text and that of the files it includes.
fn closure(file: &Path) -> Result<String> {
    let text = fs::read_to_string(file)
        .with_context(|| format!("cannot read requirements {}", file.display()))?;
    let mut all = text.clone();
    for line in text.lines() {
        if let Some(included) = line.strip_prefix("-r ") {
            let included = file.with_file_name(included.trim());
            if included == file {
                bail!("{} includes itself", file.display());
            }
            all.push_str(&closure(&included)?);
        }
    }
    Ok(all)
}

fn fingerprint(base: &Path, requirements: &str) -> String {
    // Only compared with what the same build of this program wrote; a newer
    // standard library that hashes differently makes the environment again.
    let mut hasher = DefaultHasher::new();
    base.hash(&mut hasher);
    requirements.hash(&mut hasher);
    format!("{:016x}\n", hasher.finish())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_of_an_included_file_changes_the_fingerprint() {
        let directory = tempfile::tempdir().unwrap();
        let (outer, inner) = (
            directory.path().join("a.txt"),
            directory.path().join("b.txt"),
        );
        fs::write(&outer, "-r b.txt\nx==1\n").unwrap();
        fs::write(&inner, "y==1\n").unwrap();
        let python = Path::new("/usr/bin/python3");
        let before = fingerprint(python, &closure(&outer).unwrap());
        fs::write(&inner, "y==2\n").unwrap();
        assert_ne!(before, fingerprint(python, &closure(&outer).unwrap()));
    }

    #[test]
    fn a_file_that_includes_itself_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("a.txt");
        fs::write(&file, "-r a.txt\n").unwrap();
        assert!(closure(&file).is_err());
    }

    #[test]
    fn what_is_no_interpreter_is_not_identified() {
        assert_eq!(identify(Path::new("/bin/echo")), None);
    }
}
