//! What the running kernel offers: offsets of structure fields from its BTF,
//! and the features that tracing needs.
//!
//! BTF is the kernel's own description of its types
//! (Documentation/bpf/btf.rst). The reader here understands as much of it as
//! it takes to find a field, checks every bound and makes one pass. Attach
//! patches [`offsets`] into the BPF programs; `check` reports [`features`].

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use abi::map::KernelOffsets;

/// Where the kernel shows its BTF.
const VMLINUX: &str = "/sys/kernel/btf/vmlinux";
/// Largest BTF that is read; distribution kernels have 5 to 10 MB.
const MAX_BTF: u64 = 64 << 20;
/// Structures nested within each other or types leading to types.
const MAX_DEPTH: usize = 16;

/// Why the kernel's structures are not known.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// There is no BTF, or it cannot be read.
    #[error("cannot read {path} (the kernel needs CONFIG_DEBUG_INFO_BTF)")]
    NoBtf {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The BTF is damaged or of a form not known.
    #[error("the kernel's BTF is malformed: {0}")]
    Malformed(&'static str),
    /// A type of a kind not known was met; it cannot be skipped over.
    #[error("the kernel's BTF has a type of unknown kind {0}")]
    UnknownKind(u32),
    /// A field is not where every kernel known so far has it.
    #[error("the kernel's BTF has no field {field} in struct {structure}")]
    NoField {
        /// Name of the structure.
        structure: &'static str,
        /// Path of the field.
        field: &'static str,
    },
}

/// The offsets the BPF programs need, from the running kernel's BTF.
///
/// Where Unix sockets are a module, the offsets of `unix_sock` and
/// `unix_address` are `u32::MAX`: paths of Unix sockets are then not known.
pub fn offsets() -> Result<KernelOffsets, KernelError> {
    offsets_in(&Btf::parse(&read_btf(Path::new(VMLINUX))?)?)
}

/// What the kernel offers and what it is set to refuse.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Features {
    /// Release as `uname -r` prints it.
    pub release: String,
    /// Major and minor number of the release.
    pub version: Option<(u32, u32)>,
    /// Whether the structure offsets were found, or why not.
    pub offsets: Result<KernelOffsets, String>,
    /// Whether the raw tracepoints `sys_enter` and `sys_exit` exist; not
    /// known without BTF.
    pub system_call_tracepoints: Option<bool>,
    /// Whether there is a BPF ring buffer (Linux 5.8).
    pub ring_buffer: bool,
    /// Whether uprobes can be made with `perf_event_open` or through tracefs.
    pub uprobes: bool,
    /// Lockdown mode of the kernel.
    pub lockdown: Lockdown,
    /// `kernel.unprivileged_bpf_disabled`; not there on some kernels.
    pub unprivileged_bpf_disabled: Option<i64>,
    /// `kernel.perf_event_paranoid`.
    pub perf_event_paranoid: Option<i64>,
    /// `kernel.yama.ptrace_scope`; not there without Yama.
    pub ptrace_scope: Option<i64>,
    /// Whether BPF memory counts against `RLIMIT_MEMLOCK` (before Linux
    /// 5.11).
    pub memory_is_locked: bool,
}

/// Modes of `/sys/kernel/security/lockdown`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Lockdown {
    /// Off, or not in this kernel.
    #[default]
    None,
    /// The running kernel cannot be changed; reading it is allowed.
    Integrity,
    /// The kernel's memory cannot be read either, not even by BPF programs.
    Confidentiality,
}

/// Asks the running kernel.
pub fn features() -> Features {
    let release = rustix::system::uname()
        .release()
        .to_string_lossy()
        .into_owned();
    features_under(Path::new("/"), release)
}

fn features_under(root: &Path, release: String) -> Features {
    let setting = |path: &str| small_file(&root.join(path))?.trim().parse().ok();
    let version = parse_version(&release);
    let bytes = read_btf(&root.join(VMLINUX.trim_start_matches('/')));
    let btf = bytes
        .as_deref()
        .map_err(ToString::to_string)
        .and_then(|bytes| Btf::parse(bytes).map_err(|error| error.to_string()));
    Features {
        version,
        system_call_tracepoints: btf.as_ref().ok().map(|btf| {
            // Every tracepoint leaves the type of its handler.
            ["btf_trace_sys_enter", "btf_trace_sys_exit"]
                .iter()
                .all(|name| btf.typedefs.contains_key(name))
        }),
        offsets: btf.and_then(|btf| offsets_in(&btf).map_err(|error| error.to_string())),
        ring_buffer: version >= Some((5, 8)),
        uprobes: [
            "sys/bus/event_source/devices/uprobe/type",
            "sys/kernel/tracing/uprobe_events",
            "sys/kernel/debug/tracing/uprobe_events",
        ]
        .iter()
        .any(|path| root.join(path).exists()),
        lockdown: small_file(&root.join("sys/kernel/security/lockdown"))
            .map_or(Lockdown::None, |text| parse_lockdown(&text)),
        unprivileged_bpf_disabled: setting("proc/sys/kernel/unprivileged_bpf_disabled"),
        perf_event_paranoid: setting("proc/sys/kernel/perf_event_paranoid"),
        ptrace_scope: setting("proc/sys/kernel/yama/ptrace_scope"),
        memory_is_locked: version < Some((5, 11)),
        release,
    }
}

/// `6.8.0-45-generic` is version 6.8.
fn parse_version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release
        .split(|letter: char| !letter.is_ascii_digit())
        .map(|digits| digits.parse().ok());
    Some((numbers.next()??, numbers.next()??))
}

/// The mode in force stands in brackets: `none [integrity] confidentiality`.
fn parse_lockdown(text: &str) -> Lockdown {
    match text
        .split_once('[')
        .and_then(|(_, rest)| rest.split_once(']'))
    {
        Some(("integrity", _)) => Lockdown::Integrity,
        Some(("confidentiality", _)) => Lockdown::Confidentiality,
        _ => Lockdown::None,
    }
}

fn small_file(path: &Path) -> Option<String> {
    let mut text = String::new();
    File::open(path)
        .ok()?
        .take(4096)
        .read_to_string(&mut text)
        .ok()?;
    Some(text)
}

fn read_btf(path: &Path) -> Result<Vec<u8>, KernelError> {
    let mut bytes = Vec::new();
    File::open(path)
        .and_then(|file| file.take(MAX_BTF).read_to_end(&mut bytes))
        .map_err(|source| KernelError::NoBtf {
            path: path.to_owned(),
            source,
        })?;
    Ok(bytes)
}

/// Where the thread pointer is inside `task_struct`.
#[cfg(target_arch = "x86_64")]
const THREAD_POINTER: &str = "thread.fsbase";
/// Where the thread pointer is inside `task_struct`.
#[cfg(target_arch = "aarch64")]
const THREAD_POINTER: &str = "thread.uw.tp_value";

fn offsets_in(btf: &Btf<'_>) -> Result<KernelOffsets, KernelError> {
    let field = |structure, field| btf.offset(structure, field);
    let mut offsets = KernelOffsets {
        task_tgid: field("task_struct", "tgid")?,
        task_pid: field("task_struct", "pid")?,
        task_files: field("task_struct", "files")?,
        task_thread_pointer: field("task_struct", THREAD_POINTER)?,
        task_signal: field("task_struct", "signal")?,
        signal_live: field("signal_struct", "live")?,
        files_fdt: field("files_struct", "fdt")?,
        fdt_max_fds: field("fdtable", "max_fds")?,
        fdt_fd: field("fdtable", "fd")?,
        file_private_data: field("file", "private_data")?,
        socket_file: field("socket", "file")?,
        socket_sk: field("socket", "sk")?,
        socket_type: field("socket", "type")?,
        skc_family: field("sock_common", "skc_family")?,
        skc_daddr: field("sock_common", "skc_daddr")?,
        skc_rcv_saddr: field("sock_common", "skc_rcv_saddr")?,
        skc_dport: field("sock_common", "skc_dport")?,
        skc_num: field("sock_common", "skc_num")?,
        // Not there without CONFIG_IPV6.
        skc_v6_daddr: field("sock_common", "skc_v6_daddr").unwrap_or(u32::MAX),
        skc_v6_rcv_saddr: field("sock_common", "skc_v6_rcv_saddr").unwrap_or(u32::MAX),
        unix_addr: u32::MAX,
        unix_peer: u32::MAX,
        unix_address_len: u32::MAX,
        unix_address_name: u32::MAX,
    };
    // CONFIG_UNIX=m keeps them in the module's BTF.
    if btf.structures.contains_key("unix_sock") && btf.structures.contains_key("unix_address") {
        offsets.unix_addr = field("unix_sock", "addr")?;
        offsets.unix_peer = field("unix_sock", "peer")?;
        offsets.unix_address_len = field("unix_address", "len")?;
        offsets.unix_address_name = field("unix_address", "name")?;
    } else {
        tracing::warn!(
            "the kernel's BTF does not describe Unix sockets, their paths are not known"
        );
    }
    Ok(offsets)
}

/// A BTF blob, indexed.
struct Btf<'a> {
    /// The type section.
    types: &'a [u8],
    /// The string section.
    strings: &'a [u8],
    /// Offset in the type section of each type; type ids begin at 1.
    positions: Vec<u32>,
    /// Ids of the structures and unions that have a name; several may share
    /// one.
    structures: HashMap<&'a str, Vec<u32>>,
    /// Ids of the typedefs by name.
    typedefs: HashMap<&'a str, u32>,
}

/// `struct btf_type`, decoded.
#[derive(Clone, Copy)]
struct Type {
    name: u32,
    kind: u32,
    /// Members or parameters.
    n_entries: u32,
    /// Whether member offsets share their word with a bit field's size.
    has_bit_fields: bool,
    /// The size, or the type it refers to.
    reference: u32,
}

/// `struct btf_member`, decoded.
struct Member {
    name: u32,
    reference: u32,
    /// In bits.
    offset: u32,
    is_bit_field: bool,
}

/// Values of the kind of a type (`include/uapi/linux/btf.h`).
mod kind {
    pub(super) const STRUCT: u32 = 4;
    pub(super) const UNION: u32 = 5;
    pub(super) const TYPEDEF: u32 = 8;
    pub(super) const VOLATILE: u32 = 9;
    pub(super) const CONST: u32 = 10;
    pub(super) const RESTRICT: u32 = 11;
    pub(super) const TYPE_TAG: u32 = 18;

    /// Bytes after the header of a type: so many, and so many per entry.
    /// The index is the kind; 0 stands for void and is never written.
    pub(super) const EXTRA: [(u32, u32); 20] = [
        (0, 0),  // void
        (4, 0),  // INT
        (0, 0),  // PTR
        (12, 0), // ARRAY
        (0, 12), // STRUCT
        (0, 12), // UNION
        (0, 8),  // ENUM
        (0, 0),  // FWD
        (0, 0),  // TYPEDEF
        (0, 0),  // VOLATILE
        (0, 0),  // CONST
        (0, 0),  // RESTRICT
        (0, 0),  // FUNC
        (0, 8),  // FUNC_PROTO
        (4, 0),  // VAR
        (0, 12), // DATASEC
        (0, 0),  // FLOAT
        (4, 0),  // DECL_TAG
        (0, 0),  // TYPE_TAG
        (0, 12), // ENUM64
    ];
}

/// Size of `struct btf_type`.
const TYPE_HEADER: u32 = 12;
/// Size of `struct btf_member`.
const MEMBER: u32 = 12;

impl<'a> Btf<'a> {
    const MAGIC: u16 = 0xeb9f;
    const VERSION: u8 = 1;

    fn parse(bytes: &'a [u8]) -> Result<Self, KernelError> {
        let malformed = || KernelError::Malformed("the header is cut off");
        let (magic, rest) = bytes.split_first_chunk::<2>().ok_or_else(malformed)?;
        if u16::from_ne_bytes(*magic) != Self::MAGIC {
            return Err(KernelError::Malformed("wrong magic number or byte order"));
        }
        if rest.first() != Some(&Self::VERSION) {
            return Err(KernelError::Malformed("unknown version"));
        }
        let header = |offset| word(bytes, offset).ok_or_else(malformed);
        let content = bytes.get(header(4)? as usize..).ok_or_else(malformed)?;
        let section = |offset: u32, len: u32| {
            let start = offset as usize;
            content.get(start..start.checked_add(len as usize)?)
        };
        let outside = || KernelError::Malformed("a section ends outside the file");
        let mut btf = Self {
            types: section(header(8)?, header(12)?).ok_or_else(outside)?,
            strings: section(header(16)?, header(20)?).ok_or_else(outside)?,
            positions: Vec::new(),
            structures: HashMap::new(),
            typedefs: HashMap::new(),
        };
        btf.index()?;
        Ok(btf)
    }

    fn index(&mut self) -> Result<(), KernelError> {
        let mut position = 0_u32;
        self.positions.push(0);
        while (position as usize) < self.types.len() {
            let cut_off = || KernelError::Malformed("a type is cut off");
            let header = self.header(position).ok_or_else(cut_off)?;
            let id = u32::try_from(self.positions.len()).map_err(|_| cut_off())?;
            self.positions.push(position);
            match header.kind {
                kind::STRUCT | kind::UNION if header.name != 0 => {
                    self.structures
                        .entry(self.string(header.name))
                        .or_default()
                        .push(id);
                }
                kind::TYPEDEF => {
                    self.typedefs.insert(self.string(header.name), id);
                }
                _ => {}
            }
            let (fixed, each) = match (header.kind, kind::EXTRA.get(header.kind as usize)) {
                (0, _) | (_, None) => return Err(KernelError::UnknownKind(header.kind)),
                (_, Some(sizes)) => *sizes,
            };
            position = header
                .n_entries
                .checked_mul(each)
                .and_then(|entries| {
                    position
                        .checked_add(TYPE_HEADER)?
                        .checked_add(fixed)?
                        .checked_add(entries)
                })
                .ok_or_else(cut_off)?;
        }
        match position as usize == self.types.len() {
            true => Ok(()),
            false => Err(KernelError::Malformed("the last type is cut off")),
        }
    }

    /// Offset in bytes of a field, given as names joined by dots, in the
    /// first structure of that name that has it.
    fn offset(&self, structure: &'static str, field: &'static str) -> Result<u32, KernelError> {
        self.structures
            .get(structure)
            .into_iter()
            .flatten()
            .find_map(|id| self.find_path(*id, field))
            .filter(|bits| bits % 8 == 0)
            .map(|bits| bits / 8)
            .ok_or(KernelError::NoField { structure, field })
    }

    fn find_path(&self, id: u32, path: &str) -> Option<u32> {
        let mut id = id;
        let mut bits = 0_u32;
        for name in path.split('.') {
            let (offset, reference) = self.find_member(id, name, MAX_DEPTH)?;
            bits = bits.checked_add(offset)?;
            id = reference;
        }
        Some(bits)
    }

    /// Offset in bits and type of a member, which may stand in structures or
    /// unions without a name.
    fn find_member(&self, id: u32, name: &str, depth: usize) -> Option<(u32, u32)> {
        let (position, header) = self.resolve(id)?;
        if depth == 0 || !matches!(header.kind, kind::STRUCT | kind::UNION) {
            return None;
        }
        for idx in 0..header.n_entries {
            let member = self.member(position, header, idx)?;
            if member.name != 0 && self.string(member.name) == name {
                return (!member.is_bit_field).then_some((member.offset, member.reference));
            }
            if member.name == 0
                && let Some((offset, reference)) =
                    self.find_member(member.reference, name, depth - 1)
            {
                return Some((member.offset.checked_add(offset)?, reference));
            }
        }
        None
    }

    /// Follows typedefs and qualifiers.
    fn resolve(&self, id: u32) -> Option<(u32, Type)> {
        let mut id = id;
        for _ in 0..MAX_DEPTH {
            let position = *self.positions.get(id as usize).filter(|_| id != 0)?;
            let header = self.header(position)?;
            match header.kind {
                kind::TYPEDEF | kind::VOLATILE | kind::CONST | kind::RESTRICT | kind::TYPE_TAG => {
                    id = header.reference;
                }
                _ => return Some((position, header)),
            }
        }
        None
    }

    fn header(&self, position: u32) -> Option<Type> {
        let position = position as usize;
        let info = word(self.types, position.checked_add(4)?)?;
        Some(Type {
            name: word(self.types, position)?,
            kind: info >> 24 & 0x1f,
            n_entries: info & 0xffff,
            has_bit_fields: info >> 31 != 0,
            reference: word(self.types, position.checked_add(8)?)?,
        })
    }

    fn member(&self, position: u32, header: Type, idx: u32) -> Option<Member> {
        let start = idx
            .checked_mul(MEMBER)?
            .checked_add(TYPE_HEADER)?
            .checked_add(position)? as usize;
        let offset = word(self.types, start.checked_add(8)?)?;
        let (offset, size) = match header.has_bit_fields {
            true => (offset & 0x00ff_ffff, offset >> 24),
            false => (offset, 0),
        };
        Some(Member {
            name: word(self.types, start)?,
            reference: word(self.types, start.checked_add(4)?)?,
            offset,
            is_bit_field: size != 0,
        })
    }

    /// A string; empty where the offset leads nowhere.
    fn string(&self, offset: u32) -> &'a str {
        self.strings
            .get(offset as usize..)
            .and_then(|rest| rest.split(|byte| *byte == 0).next())
            .and_then(|bytes| std::str::from_utf8(bytes).ok())
            .unwrap_or_default()
    }
}

fn word(bytes: &[u8], offset: usize) -> Option<u32> {
    bytes
        .get(offset..)?
        .first_chunk()
        .map(|word| u32::from_ne_bytes(*word))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Writes BTF by hand.
    struct Writer {
        types: Vec<u8>,
        strings: Vec<u8>,
        n_types: u32,
    }

    impl Writer {
        fn new() -> Self {
            Self {
                types: Vec::new(),
                strings: vec![0],
                n_types: 0,
            }
        }

        fn name(&mut self, name: &str) -> u32 {
            if name.is_empty() {
                return 0;
            }
            let offset = self.strings.len() as u32;
            self.strings.extend_from_slice(name.as_bytes());
            self.strings.push(0);
            offset
        }

        fn words(&mut self, words: &[u32]) {
            self.types
                .extend(words.iter().flat_map(|word| word.to_ne_bytes()));
        }

        fn simple(&mut self, kind: u32, name: &str, reference: u32) -> u32 {
            let name = self.name(name);
            self.words(&[name, kind << 24, reference]);
            self.n_types += 1;
            self.n_types
        }

        /// Members are name, type and offset in bits.
        fn structure(
            &mut self,
            kind: u32,
            name: &str,
            bit_fields: bool,
            members: &[(&str, u32, u32)],
        ) -> u32 {
            let name = self.name(name);
            let flag = u32::from(bit_fields) << 31;
            self.words(&[name, flag | kind << 24 | members.len() as u32, 64]);
            for (name, reference, offset) in members {
                let name = self.name(name);
                self.words(&[name, *reference, *offset]);
            }
            self.n_types += 1;
            self.n_types
        }

        fn bytes(&self) -> Vec<u8> {
            let mut bytes = Btf::MAGIC.to_ne_bytes().to_vec();
            bytes.extend([Btf::VERSION, 0]);
            let (n_types, n_strings) = (self.types.len() as u32, self.strings.len() as u32);
            for word in [24, 0, n_types, n_types, n_strings] {
                bytes.extend(u32::to_ne_bytes(word));
            }
            bytes.extend_from_slice(&self.types);
            bytes.extend_from_slice(&self.strings);
            bytes
        }
    }

    fn sample() -> Vec<u8> {
        let mut writer = Writer::new();
        let name = writer.name("int");
        writer.words(&[name, 1 << 24, 4, 32]);
        writer.n_types += 1;
        let int = writer.n_types;
        let pair = writer.structure(
            kind::STRUCT,
            "",
            false,
            &[("daddr", int, 0), ("rcv_saddr", int, 32)],
        );
        let either = writer.structure(
            kind::UNION,
            "",
            false,
            &[("addrpair", int, 0), ("", pair, 0)],
        );
        let thread = writer.structure(
            kind::STRUCT,
            "thread_struct",
            false,
            &[("sp", int, 0), ("fsbase", int, 64)],
        );
        let typedef = writer.simple(kind::TYPEDEF, "thread_t", thread);
        let constant = writer.simple(kind::CONST, "", typedef);
        writer.structure(kind::STRUCT, "twice", false, &[("x", int, 0)]);
        writer.structure(
            kind::STRUCT,
            "twice",
            false,
            &[("x", int, 0), ("y", int, 32)],
        );
        writer.structure(
            kind::STRUCT,
            "outer",
            true,
            &[
                ("flag", int, 3 | 1 << 24),
                ("", either, 64),
                ("thread", constant, 256),
            ],
        );
        writer.bytes()
    }

    #[test]
    fn finds_fields_through_nameless_members_typedefs_and_paths() {
        let bytes = sample();
        let btf = Btf::parse(&bytes).expect("valid");
        let check = |structure, field, expected| {
            assert_eq!(
                btf.offset(structure, field).ok(),
                expected,
                "{structure}.{field}"
            );
        };
        check("outer", "addrpair", Some(8));
        check("outer", "daddr", Some(8));
        check("outer", "rcv_saddr", Some(12));
        check("outer", "thread", Some(32));
        check("outer", "thread.fsbase", Some(40));
        check("outer", "thread.none", None);
        check("outer", "daddr.none", None);
        check("outer", "flag", None);
        check("twice", "y", Some(4));
        check("absent", "y", None);
        assert!(btf.typedefs.contains_key("thread_t"));
    }

    #[test]
    fn an_absent_field_is_named() {
        let bytes = sample();
        let error = offsets_in(&Btf::parse(&bytes).expect("valid")).expect_err("no task_struct");
        assert_eq!(
            error.to_string(),
            "the kernel's BTF has no field tgid in struct task_struct"
        );
    }

    #[test]
    fn rejects_unknown_kinds_and_cut_types() {
        let mut writer = Writer::new();
        writer.simple(25, "", 0);
        assert!(matches!(
            Btf::parse(&writer.bytes()),
            Err(KernelError::UnknownKind(25))
        ));
        let mut writer = Writer::new();
        writer.words(&[0, kind::STRUCT << 24 | 2, 8, 0, 0, 0]);
        assert!(matches!(
            Btf::parse(&writer.bytes()),
            Err(KernelError::Malformed(_))
        ));
        assert!(Btf::parse(b"").is_err());
        assert!(Btf::parse(&[0; 64]).is_err());
    }

    #[test]
    fn a_type_that_contains_itself_is_given_up() {
        let mut writer = Writer::new();
        writer.structure(kind::STRUCT, "loop", false, &[("", 1, 0), ("", 1, 0)]);
        writer.simple(kind::TYPEDEF, "t", 2);
        let bytes = writer.bytes();
        let btf = Btf::parse(&bytes).expect("valid");
        assert!(btf.offset("loop", "x").is_err());
        assert!(btf.resolve(2).is_none());
    }

    #[test]
    fn damaged_bytes_do_no_harm() {
        let bytes = sample();
        for end in 0..bytes.len() {
            assert!(Btf::parse(&bytes[..end]).is_err(), "cut at {end}");
        }
        for idx in 0..bytes.len() {
            for value in [0, 1, 0x7f, 0x80, 0xff] {
                let mut damaged = bytes.clone();
                damaged[idx] = value;
                // Whatever is found is a number; that it is found without a
                // panic or an endless search is the point.
                if let Ok(btf) = Btf::parse(&damaged) {
                    for field in ["daddr", "thread.fsbase", "flag"] {
                        btf.offset("outer", field).ok();
                    }
                }
            }
        }
    }

    #[test]
    fn reads_the_running_kernel() {
        let Ok(bytes) = std::fs::read(VMLINUX) else {
            // Without BTF the agent does not run; nothing to compare.
            return;
        };
        let offsets = offsets_in(&Btf::parse(&bytes).expect("valid")).expect("all fields");
        assert!(offsets.task_tgid > offsets.task_pid);
        // These two are laid out by the union of an address pair.
        assert_eq!((offsets.skc_daddr, offsets.skc_rcv_saddr), (0, 4));
        assert_eq!((offsets.skc_dport, offsets.skc_num), (12, 14));
        assert_eq!(offsets.fdt_max_fds, 0);
        let features = features();
        assert_eq!(features.offsets, Ok(offsets));
        assert!(features.version.is_some());
    }

    #[test]
    fn features_of_a_bare_root() {
        let root = tempfile::tempdir().expect("made");
        let features = features_under(root.path(), "4.18.0-553.el8.x86_64".into());
        assert_eq!(features.version, Some((4, 18)));
        assert!(features.offsets.is_err());
        assert_eq!(features.system_call_tracepoints, None);
        assert!(!features.ring_buffer && !features.uprobes && features.memory_is_locked);
        assert_eq!(features.lockdown, Lockdown::None);
    }

    #[test]
    fn features_of_a_locked_down_root() {
        let root = tempfile::tempdir().expect("made");
        let write = |path: &str, content: &[u8]| {
            let path = root.path().join(path);
            std::fs::create_dir_all(path.parent().expect("has one")).expect("made");
            std::fs::write(path, content).expect("written");
        };
        write(
            "sys/kernel/security/lockdown",
            b"none integrity [confidentiality]\n",
        );
        write("sys/bus/event_source/devices/uprobe/type", b"8\n");
        write("proc/sys/kernel/perf_event_paranoid", b"-1\n");
        write("sys/kernel/btf/vmlinux", &sample());
        let features = features_under(root.path(), "6.18.44".into());
        assert_eq!(features.lockdown, Lockdown::Confidentiality);
        assert_eq!(features.perf_event_paranoid, Some(-1));
        assert_eq!(features.system_call_tracepoints, Some(false));
        assert!(features.uprobes && features.ring_buffer && !features.memory_is_locked);
    }

    #[test]
    fn versions() {
        for (release, expected) in [
            ("6.8.0-45-generic", Some((6, 8))),
            ("5.10.0", Some((5, 10))),
            ("6.1-rc1", Some((6, 1))),
            ("next", None),
            ("", None),
        ] {
            assert_eq!(parse_version(release), expected);
        }
    }
}
