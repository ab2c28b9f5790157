//! Source files of a process, as tracebacks show them: read through the
//! process's own root, and remembered.

use std::collections::HashMap;
use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use rustix::fs::{Mode, OFlags, ResolveFlags, open, openat2};

/// Largest source file that is read, bytes.
const MAX_FILE: u64 = 4 << 20;
/// Most files that are remembered.
const MAX_FILES: usize = 256;
/// Most bytes of theirs.
const MAX_BYTES: usize = 16 << 20;

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
    /// Bytes of all lines.
    bytes: usize,
}

impl Sources {
    /// Of a process, read when it is asked for.
    pub(super) fn of(pid: u32) -> Self {
        Self {
            process: PathBuf::from(format!("/proc/{pid}")),
            files: HashMap::new(),
            bytes: 0,
        }
    }

    /// The lines of a file as the process names it, without their ends.
    pub(super) fn file(&mut self, path: &str) -> Option<Arc<Vec<String>>> {
        // What is in brackets is no file.
        if path.starts_with('<') {
            return None;
        }
        let file = open_inside(&self.process, path);
        let changed = file
            .as_ref()
            .and_then(|file| file.metadata().ok()?.modified().ok());
        if let Some(known) = self.files.get(path)
            && known.changed == changed
        {
            return known.lines.clone();
        }
        let lines = file.and_then(read).map(Arc::new);
        let bytes = size(lines.as_deref());
        if let Some(known) = self.files.remove(path) {
            self.bytes -= size(known.lines.as_deref());
        }
        if self.files.len() >= MAX_FILES || self.bytes + bytes > MAX_BYTES {
            self.files.clear();
            self.bytes = 0;
        }
        self.bytes += bytes;
        let remembered = Remembered {
            changed,
            lines: lines.clone(),
        };
        self.files.insert(path.to_owned(), remembered);
        lines
    }
}

/// Bytes of some lines.
fn size(lines: Option<&Vec<String>>) -> usize {
    lines.map_or(0, |lines| lines.iter().map(String::len).sum())
}

/// Opens a file as a process names it, and none outside of its own root: the
/// name is the process's word, and so are the links on the way.
fn open_inside(process: &Path, path: &str) -> Option<File> {
    let (place, inside, how) = match path.strip_prefix('/') {
        Some(inside) => ("root", inside, ResolveFlags::IN_ROOT),
        None => ("cwd", path, ResolveFlags::BENEATH),
    };
    let place = open(
        process.join(place),
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .ok()?;
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let how = how | ResolveFlags::NO_MAGICLINKS;
    openat2(&place, inside, flags, Mode::empty(), how)
        .ok()
        .map(File::from)
}

/// The lines of a regular file of moderate size.
fn read(file: File) -> Option<Vec<String>> {
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

    /// What looks like a process, with a root of its own.
    fn contained(root: &Path) -> Sources {
        let process = root.join("proc");
        std::fs::create_dir_all(root.join("inside/app")).expect("made");
        std::fs::create_dir(&process).expect("made");
        std::os::unix::fs::symlink(root.join("inside"), process.join("root")).expect("linked");
        std::os::unix::fs::symlink(root.join("inside/app"), process.join("cwd")).expect("linked");
        Sources {
            process,
            files: HashMap::new(),
            bytes: 0,
        }
    }

    #[test]
    fn no_link_leads_out_of_the_root() {
        let directory = tempfile::tempdir().expect("made");
        let root = directory.path();
        let mut sources = contained(root);
        let secret = root.join("secret");
        std::fs::write(&secret, "not theirs\n").expect("written");
        std::fs::write(root.join("inside/app/app.py"), "theirs\n").expect("written");
        let link = |target: &Path, name: &str| {
            std::os::unix::fs::symlink(target, root.join("inside/app").join(name)).expect("linked");
        };
        link(&secret, "absolute.py");
        link(Path::new("../../secret"), "relative.py");
        link(Path::new("/app/app.py"), "own.py");
        let theirs = Some(Arc::new(vec!["theirs".to_owned()]));
        assert_eq!(sources.file("/app/app.py"), theirs);
        assert_eq!(sources.file("/app/own.py"), theirs);
        assert_eq!(sources.file("app.py"), theirs);
        for outside in [
            "/app/absolute.py",
            "/app/relative.py",
            "/../secret",
            "absolute.py",
            "relative.py",
            "../../secret",
        ] {
            assert_eq!(sources.file(outside), None, "{outside}");
        }
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let directory = tempfile::tempdir().expect("made");
        let mut sources = contained(directory.path());
        let folder = directory.path().join("inside/app");
        for name in 0..10 {
            let text = "x".repeat(MAX_FILE as usize - 1);
            std::fs::write(folder.join(name.to_string()), text).expect("written");
            assert!(sources.file(&format!("/app/{name}")).is_some());
            assert!(sources.bytes <= MAX_BYTES);
            let held: usize = sources
                .files
                .values()
                .map(|file| size(file.lines.as_deref()))
                .sum();
            assert_eq!(sources.bytes, held);
        }
    }
}
