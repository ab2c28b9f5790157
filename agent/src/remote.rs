//! Looks into another process: its memory, its mappings and the files behind
//! them.
//!
//! Works on processes of other mount and pid namespaces, in chroots, and on
//! files that were deleted or replaced since they were mapped. Knows neither
//! ELF nor Python. Reads only; nothing is ever written to a process.

use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use pyframes::Memory;

/// A process that can be read.
///
/// Holds the memory of the program that ran when it was opened: after an
/// `execve` or the end of the process every read fails, also when the process
/// id is used again.
#[derive(Debug)]
pub struct Process {
    pid: u32,
    memory: File,
}

/// Why a process cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ProcessError {
    /// There is no process with this id.
    #[error("no such process")]
    NoSuchProcess,
    /// The process has ended, is a zombie, or has replaced its program.
    #[error("the process has exited")]
    Exited,
    /// The kernel does not let us read it.
    #[error("no permission to read the process (CAP_SYS_PTRACE is needed)")]
    PermissionDenied(#[source] io::Error),
    /// Anything else.
    #[error("cannot read {path}")]
    Io {
        /// The file under `/proc`.
        path: PathBuf,
        /// What went wrong.
        source: io::Error,
    },
}

/// One line of `/proc/PID/maps`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mapping {
    /// First address.
    pub start: u64,
    /// First address behind it.
    pub end: u64,
    /// Whether it may be executed.
    pub executable: bool,
    /// Where in the file it begins, bytes.
    pub offset: u64,
    /// Major and minor number of the file's device.
    pub device: (u32, u32),
    /// The file's inode, 0 without a file.
    pub inode: u64,
    /// The file as the process names it, or a name in brackets.
    pub path: PathBuf,
    /// Whether the kernel marked the file as deleted.
    pub deleted: bool,
}

/// A file that is mapped into a process, once or in several parts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MappedFile {
    /// Its mappings by address; never empty.
    mappings: Vec<Mapping>,
}

/// A mapped file that was opened.
#[derive(Debug)]
pub struct OpenedFile {
    /// The file, for reading.
    pub file: File,
    /// A path that leads to it from our own root: under `/proc/PID/root` or
    /// `/proc/PID/map_files`.
    pub path: PathBuf,
}

impl Process {
    /// Opens a process by its id in our pid namespace.
    pub fn open(pid: u32) -> Result<Self, ProcessError> {
        let path = proc_path(pid, "mem");
        match File::open(&path) {
            Ok(memory) => Ok(Self { pid, memory }),
            Err(error) => Err(classify(pid, path, error)),
        }
    }

    /// The process id.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// The mappings by address.
    pub fn mappings(&self) -> Result<Vec<Mapping>, ProcessError> {
        let path = proc_path(self.pid, "maps");
        let text = fs::read(&path).map_err(|error| classify(self.pid, path, error))?;
        let mappings: Vec<_> = text
            .split(|byte| *byte == b'\n')
            .filter_map(parse_line)
            .collect();
        if mappings.is_empty() && has_ended(self.pid) {
            return Err(ProcessError::Exited);
        }
        Ok(mappings)
    }

    /// The files that are mapped, in order of their first address.
    pub fn mapped_files(&self) -> Result<Vec<MappedFile>, ProcessError> {
        self.mappings().map(group_by_file)
    }

    /// The inode of the program file, if it can be told.
    pub fn program(&self) -> Option<u64> {
        fs::metadata(proc_path(self.pid, "exe"))
            .ok()
            .map(|metadata| metadata.ino())
    }

    /// Opens a mapped file: the very file that is mapped, whatever its path
    /// leads to by now.
    pub fn open_file(&self, mapped: &MappedFile) -> io::Result<OpenedFile> {
        let first = mapped.first();
        let relative = first.path.strip_prefix("/").unwrap_or(&first.path);
        let by_path = proc_path(self.pid, "root").join(relative);
        let range = format!("{:x}-{:x}", first.start, first.end);
        let by_range = proc_path(self.pid, "map_files").join(range);
        // Some file systems (overlay, btrfs) show one device number in maps
        // and another in stat, so that only the inode can be compared. That
        // is less certain, and therefore tried last.
        if let Ok(file) = open_same(&by_path, |it| {
            same_inode(it, first) && same_device(it, first)
        }) {
            return Ok(OpenedFile {
                file,
                path: by_path,
            });
        }
        match open_same(&by_range, |_| true) {
            Ok(file) => Ok(OpenedFile {
                file,
                path: by_range,
            }),
            Err(error) => match open_same(&by_path, |it| same_inode(it, first)) {
                Ok(file) => Ok(OpenedFile {
                    file,
                    path: by_path,
                }),
                Err(_) => Err(error),
            },
        }
    }
}

impl Memory for Process {
    fn read(&self, address: u64, into: &mut [u8]) -> bool {
        self.memory.read_exact_at(into, address).is_ok()
    }
}

// === impl MappedFile ===

impl MappedFile {
    /// The mappings by address.
    pub fn mappings(&self) -> &[Mapping] {
        &self.mappings
    }

    /// Whether any part of it may be executed.
    pub fn is_executable(&self) -> bool {
        self.mappings.iter().any(|mapping| mapping.executable)
    }

    /// The mapping at the lowest address.
    pub fn first(&self) -> &Mapping {
        // `group_by_file` makes no file without a mapping.
        &self.mappings[0]
    }
}

/// The file's mappings that lie apart belong to one load only if no other
/// load of the same file begins between them; a second copy of a library
/// (`dlmopen`) begins again at offset 0 and becomes a file of its own.
fn group_by_file(mappings: Vec<Mapping>) -> Vec<MappedFile> {
    let mut files: Vec<MappedFile> = Vec::new();
    for mapping in mappings.into_iter().filter(|mapping| mapping.inode != 0) {
        let same = files.iter_mut().rev().find(|file| {
            let first = file.first();
            first.inode == mapping.inode && first.device == mapping.device
        });
        match same {
            Some(file) if mapping.offset != 0 => file.mappings.push(mapping),
            _ => files.push(MappedFile {
                mappings: vec![mapping],
            }),
        }
    }
    files
}

/// Parses `start-end perms offset major:minor inode path`.
fn parse_line(line: &[u8]) -> Option<Mapping> {
    let (range, rest) = next_field(line)?;
    let (permissions, rest) = next_field(rest)?;
    let (offset, rest) = next_field(rest)?;
    let (device, rest) = next_field(rest)?;
    let (inode, path) = next_field(rest)?;
    let (start, end) = range.split_once('-')?;
    let (major, minor) = device.split_once(':')?;
    let path = path.trim_ascii_start();
    let (path, deleted) = match path.strip_suffix(b" (deleted)") {
        Some(path) => (path, true),
        None => (path, false),
    };
    Some(Mapping {
        start: u64::from_str_radix(start, 16).ok()?,
        end: u64::from_str_radix(end, 16).ok()?,
        executable: permissions.as_bytes().get(2) == Some(&b'x'),
        offset: u64::from_str_radix(offset, 16).ok()?,
        device: (
            u32::from_str_radix(major, 16).ok()?,
            u32::from_str_radix(minor, 16).ok()?,
        ),
        inode: inode.parse().ok()?,
        path: Path::new(OsStr::from_bytes(&unescape(path))).to_path_buf(),
        deleted,
    })
}

fn next_field(line: &[u8]) -> Option<(&str, &[u8])> {
    let end = line
        .iter()
        .position(|byte| *byte == b' ')
        .unwrap_or(line.len());
    let (field, rest) = line.split_at(end);
    let rest = rest.strip_prefix(b" ").unwrap_or(rest);
    let field = std::str::from_utf8(field).ok()?;
    (!field.is_empty()).then_some((field, rest))
}

/// Undoes the kernel's escape of a newline, the only one in `maps`.
fn unescape(path: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(path.len());
    let mut rest = path;
    while let Some((byte, after)) = rest.split_first() {
        match rest.strip_prefix(br"\012") {
            Some(after) => {
                plain.push(b'\n');
                rest = after;
            }
            None => {
                plain.push(*byte);
                rest = after;
            }
        }
    }
    plain
}

/// Opens a regular file that `is_same` accepts, without waiting and without
/// touching anything else that has been put in its place.
fn open_same(path: &Path, is_same: impl Fn(&fs::Metadata) -> bool) -> io::Result<File> {
    let accept = |metadata: fs::Metadata| {
        let accepted = metadata.is_file() && is_same(&metadata);
        accepted
            .then_some(())
            .ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))
    };
    accept(fs::metadata(path)?)?;
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
        .open(path)?;
    accept(file.metadata()?)?;
    Ok(file)
}

fn same_inode(metadata: &fs::Metadata, mapping: &Mapping) -> bool {
    metadata.ino() == mapping.inode
}

fn same_device(metadata: &fs::Metadata, mapping: &Mapping) -> bool {
    let device = metadata.dev();
    (libc::major(device), libc::minor(device)) == mapping.device
}

fn proc_path(pid: u32, name: &str) -> PathBuf {
    PathBuf::from(format!("/proc/{pid}/{name}"))
}

fn classify(pid: u32, path: PathBuf, source: io::Error) -> ProcessError {
    match source.kind() {
        // A zombie refuses too: it has no memory to grant access to.
        _ if has_ended(pid) => ProcessError::Exited,
        io::ErrorKind::NotFound => ProcessError::NoSuchProcess,
        io::ErrorKind::PermissionDenied => ProcessError::PermissionDenied(source),
        _ if source.raw_os_error() == Some(libc::ESRCH) => ProcessError::Exited,
        _ => ProcessError::Io { path, source },
    }
}

/// Whether the process is still listed but has ended (zombie or dead).
fn has_ended(pid: u32) -> bool {
    let stat = fs::read(proc_path(pid, "stat")).unwrap_or_default();
    // The state follows the name, which is in parentheses and may hold any.
    let state = stat
        .iter()
        .rposition(|byte| *byte == b')')
        .and_then(|end| stat.get(end + 2));
    matches!(state, Some(b'Z' | b'X'))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};
    use std::thread;
    use std::time::{Duration, Instant};

    fn mapping(line: &str) -> Option<Mapping> {
        parse_line(line.as_bytes())
    }

    #[test]
    fn parses_lines_of_maps() {
        let line = "7f0a1c000000-7f0a1c021000 r-xp 00001000 fd:01 4200 /usr/lib/a b.so";
        let expected = Mapping {
            start: 0x7f0a_1c00_0000,
            end: 0x7f0a_1c02_1000,
            executable: true,
            offset: 0x1000,
            device: (0xfd, 1),
            inode: 4200,
            path: PathBuf::from("/usr/lib/a b.so"),
            deleted: false,
        };
        assert_eq!(mapping(line), Some(expected.clone()));
        let aligned = line.replace(" /usr", "                   /usr");
        assert_eq!(mapping(&aligned), Some(expected.clone()));
        let deleted = format!("{line} (deleted)");
        assert_eq!(
            mapping(&deleted),
            Some(Mapping {
                deleted: true,
                ..expected
            })
        );
        let anonymous = mapping("1000-2000 rw-p 00000000 00:00 0 ").expect("parses");
        assert_eq!((anonymous.inode, anonymous.path), (0, PathBuf::new()));
        let newline = mapping("1000-2000 r--p 00000000 00:1f 7 /a\\012b").expect("parses");
        assert_eq!(newline.path, PathBuf::from("/a\nb"));
    }

    #[test]
    fn passes_over_lines_it_does_not_understand() {
        for line in [
            "",
            "x",
            "1-2",
            "1-2 r--p 0 0:0",
            "g-2 r--p 0 0:0 1 /a",
            "1 r--p 0 0:0 1 /a",
        ] {
            assert_eq!(mapping(line), None, "{line}");
        }
    }

    #[test]
    fn a_library_loaded_twice_is_two_files() {
        let lines = [
            "1000-2000 r--p 00000000 fd:01 7 /lib/a.so",
            "2000-3000 r-xp 00001000 fd:01 7 /lib/a.so",
            "3000-4000 r--p 00000000 fd:01 8 /lib/b.so",
            "5000-6000 r--p 00000000 fd:01 7 /lib/a.so",
            "6000-7000 r-xp 00001000 fd:01 7 /lib/a.so",
            "8000-9000 rw-p 00000000 00:00 0 [heap]",
        ];
        let files = group_by_file(lines.iter().filter_map(|line| mapping(line)).collect());
        let starts: Vec<_> = files
            .iter()
            .map(|file| (file.first().start, file.mappings.len()))
            .collect();
        assert_eq!(starts, [(0x1000, 2), (0x3000, 1), (0x5000, 2)]);
    }

    #[test]
    fn reads_its_own_memory_and_program() {
        let process = Process::open(std::process::id()).expect("opens");
        let secret = std::hint::black_box(0x1234_5678_9abc_def0_u64);
        assert_eq!(process.u64(&raw const secret as u64), Ok(secret));
        assert!(process.u64(8).is_err());
        assert!(process.u64(u64::MAX - 7).is_err());
        let files = process.mapped_files().expect("maps");
        let program = process.program().expect("exe");
        let file = files
            .iter()
            .find(|file| file.first().inode == program)
            .expect("mapped");
        let opened = process.open_file(file).expect("opens");
        assert_eq!(opened.file.metadata().expect("stat").ino(), program);
        assert!(opened.path.starts_with("/proc"));
    }

    #[test]
    fn opens_a_program_that_was_deleted() {
        let directory = tempfile::tempdir().expect("tempdir");
        let program = directory.path().join("sleep");
        fs::copy("/bin/sleep", &program).expect("copies");
        let mut child = Command::new(&program).arg("60").spawn().expect("starts");
        fs::remove_file(&program).expect("removes");
        fs::copy("/bin/cat", &program).expect("replaces");
        let process = Process::open(child.id()).expect("opens");
        let inode = process.program().expect("exe");
        // It is mapped shortly after the child is said to have started.
        let deadline = Instant::now() + Duration::from_secs(60);
        let opened = loop {
            let files = process.mapped_files().expect("maps");
            let file = files.iter().find(|file| file.first().inode == inode);
            if file.is_some() || Instant::now() > deadline {
                break file.map(|file| process.open_file(file));
            }
            thread::yield_now();
        };
        child.kill().expect("kills");
        child.wait().expect("waits");
        let opened = opened.expect("mapped").expect("opens");
        let length = opened.file.metadata().expect("stat").len();
        assert_eq!(length, fs::metadata("/bin/sleep").expect("stat").len());
        assert!(process.mappings().is_err());
    }

    #[test]
    fn tells_a_missing_process_from_one_that_ended() {
        let missing = Process::open(u32::MAX >> 1);
        assert!(
            matches!(missing, Err(ProcessError::NoSuchProcess)),
            "{missing:?}"
        );
        let mut child = Command::new("/bin/cat")
            .stdin(Stdio::piped())
            .spawn()
            .expect("starts");
        let process = Process::open(child.id()).expect("opens");
        drop(child.stdin.take());
        while !has_ended(child.id()) {
            thread::yield_now();
        }
        let mappings = process.mappings();
        assert!(
            matches!(mappings, Err(ProcessError::Exited)),
            "{mappings:?}"
        );
        assert!(process.u64(0x1000).is_err());
        child.wait().expect("waits");
        let mappings = process.mappings();
        assert!(
            matches!(mappings, Err(ProcessError::NoSuchProcess)),
            "{mappings:?}"
        );
    }
}
