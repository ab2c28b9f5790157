//! Source files of a process, as tracebacks show them: read through the
//! process's own root, and remembered.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::Read as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

/// Largest source file that is read, bytes.
const MAX_FILE: u64 = 4 << 20;
/// Most files that are remembered.
const MAX_FILES: usize = 256;

/// Lines of a file, with when it was changed.
#[derive(Debug)]
struct Remembered {
    changed: Option<SystemTime>,
    lines: Option<Arc<Vec<String>>>,
}

/// The source files of one process.
#[derive(Debug)]
pub(super) struct Sources {
    /// `/proc/PID`.
    process: PathBuf,
    files: HashMap<String, Remembered>,
}

impl Sources {
    /// Of a process, read when it is asked for.
    pub(super) fn of(pid: u32) -> Self {
        Self {
            process: PathBuf::from(format!("/proc/{pid}")),
            files: HashMap::new(),
        }
    }

    /// The lines of a file as the process names it, without their ends.
    pub(super) fn file(&mut self, path: &str) -> Option<Arc<Vec<String>>> {
        // What is in brackets is no file.
        if path.starts_with('<') {
            return None;
        }
        let full = match path.strip_prefix('/') {
            Some(path) => self.process.join("root").join(path),
            None => self.process.join("cwd").join(path),
        };
        let changed = std::fs::metadata(&full)
            .and_then(|metadata| metadata.modified())
            .ok();
        if let Some(known) = self.files.get(path)
            && known.changed == changed
        {
            return known.lines.clone();
        }
        let lines = read(&full).map(Arc::new);
        if self.files.len() >= MAX_FILES {
            self.files.clear();
        }
        let remembered = Remembered {
            changed,
            lines: lines.clone(),
        };
        self.files.insert(path.to_owned(), remembered);
        lines
    }
}

/// The lines of a regular file of moderate size.
fn read(path: &std::path::Path) -> Option<Vec<String>> {
    let file: File = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
        .open(path)
        .ok()?;
    if !file.metadata().ok()?.is_file() {
        return None;
    }
    let mut bytes = Vec::new();
    file.take(MAX_FILE).read_to_end(&mut bytes).ok()?;
    let text = String::from_utf8_lossy(&bytes);
    let text = text.strip_prefix('\u{feff}').unwrap_or(&text);
    Some(text.lines().map(str::to_owned).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_lines_and_notices_changes() {
        let directory = tempfile::tempdir().expect("made");
        let path = directory.path().join("app.py");
        std::fs::write(&path, "one\ntwo\r\n").expect("written");
        let name = path.to_str().expect("text");
        let mut sources = Sources::of(std::process::id());
        let lines = sources.file(name).expect("read");
        assert_eq!(*lines, ["one", "two"]);
        std::fs::write(&path, "three\n").expect("written");
        let later = SystemTime::now() + std::time::Duration::from_secs(5);
        let file = File::options().write(true).open(&path).expect("opened");
        file.set_modified(later).expect("set");
        assert_eq!(*sources.file(name).expect("read"), ["three"]);
        assert_eq!(sources.file("<string>"), None);
        assert_eq!(sources.file("/does/not/exist"), None);
    }
}
