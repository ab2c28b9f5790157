//! The stream sockets that a process already has when it is attached to.
//!
//! Descriptors come from `/proc/PID/fd`, addresses from the socket tables of
//! the process's network namespace (`/proc/PID/net`). The roles follow from
//! who listens: an accepted socket keeps the address of its listener. Called
//! by attach, which seeds the kernel's connection table with the result.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};

use abi::record::role;

use crate::protocol::Endpoint;

/// Most sockets of one process that are reported; the others are found at
/// their first use.
pub const MAX_SOCKETS: usize = 32_768;
/// Most rows of one socket table that are read. Listening sockets come first
/// in the TCP tables. At about 150 bytes a row this bounds the work to some
/// 40 MB of text per table.
const MAX_ROWS: usize = 262_144;
/// Longest row that is kept; a Unix socket's path has at most 108 bytes.
const MAX_ROW: usize = 512;

/// A stream socket of a process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpenSocket {
    /// File descriptor.
    pub fd: i32,
    /// Inode number of the socket.
    pub inode: u64,
    /// See [`abi::record::role`]; a listening socket is a server's.
    pub role: u8,
    /// This end.
    pub local: Endpoint,
    /// The other end; of a Unix socket it is not known.
    pub peer: Endpoint,
    /// Whether it is a listening socket.
    pub listening: bool,
}

/// The stream sockets of a process.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OpenSockets {
    /// Sockets that are connected, connecting or listening, by descriptor.
    pub sockets: Vec<OpenSocket>,
    /// Sockets left out because there are too many, or because their table
    /// was cut off before their row.
    pub skipped: usize,
}

/// Why the sockets of a process cannot be listed.
#[derive(Debug, thiserror::Error)]
#[error("cannot list {path}")]
pub struct SocketsError {
    path: PathBuf,
    source: io::Error,
}

/// Lists the stream sockets of a process.
pub fn sockets(pid: u32) -> Result<OpenSockets, SocketsError> {
    let directory = PathBuf::from(format!("/proc/{pid}"));
    let (descriptors, too_many) = descriptors(&directory.join("fd"))?;
    let wanted: HashSet<u64> = descriptors.iter().map(|(_, inode)| *inode).collect();
    let mut table = Table::default();
    for (name, parse) in TABLES {
        table.read(&directory.join("net").join(name), *parse, &wanted)?;
    }
    let mut found = OpenSockets {
        sockets: Vec::new(),
        skipped: too_many,
    };
    for (fd, inode) in descriptors {
        match table.socket(fd, inode) {
            Some(socket) => found.sockets.push(socket),
            None if table.cut_off && !table.rows.contains_key(&inode) => found.skipped += 1,
            None => {}
        }
    }
    Ok(found)
}

/// Parses a row of a socket table; `None` for headings and damaged rows.
type ParseRow = fn(&str) -> Option<Row>;

/// The socket tables of a network namespace.
const TABLES: &[(&str, ParseRow)] = &[("tcp", tcp_row), ("tcp6", tcp_row), ("unix", unix_row)];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Listening,
    Connecting,
    Connected,
    Other,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Row {
    inode: u64,
    state: State,
    local: Endpoint,
    peer: Endpoint,
}

#[derive(Debug, Default)]
struct Table {
    /// Rows of the process's own sockets by inode.
    rows: HashMap<u64, Row>,
    listening_addresses: HashSet<SocketAddr>,
    /// Ports that somebody listens on at every address.
    listening_ports: HashSet<u16>,
    listening_paths: HashSet<String>,
    cut_off: bool,
}

impl Table {
    fn read(
        &mut self,
        path: &Path,
        parse: ParseRow,
        wanted: &HashSet<u64>,
    ) -> Result<(), SocketsError> {
        let failed = |source| SocketsError {
            path: path.to_owned(),
            source,
        };
        let file = match File::open(path) {
            Ok(file) => file,
            // No IPv6, or no Unix sockets, in this kernel.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(failed(error)),
        };
        self.fill(BufReader::new(file), parse, wanted)
            .map_err(failed)
    }

    fn fill(
        &mut self,
        mut text: impl BufRead,
        parse: ParseRow,
        wanted: &HashSet<u64>,
    ) -> io::Result<()> {
        let mut line = Vec::new();
        for _ in 0..MAX_ROWS {
            line.clear();
            if text.read_until(b'\n', &mut line)? == 0 {
                return Ok(());
            }
            if line.len() <= MAX_ROW {
                let line = String::from_utf8_lossy(&line);
                self.add(parse(line.trim_end_matches('\n')), wanted);
            }
        }
        self.cut_off |= text.read_until(b'\n', &mut line)? > 0;
        Ok(())
    }

    fn add(&mut self, row: Option<Row>, wanted: &HashSet<u64>) {
        let Some(row) = row else { return };
        if row.state == State::Listening {
            match &row.local {
                Endpoint::Ip(address) if address.ip().is_unspecified() => {
                    self.listening_ports.insert(address.port());
                }
                Endpoint::Ip(address) => {
                    self.listening_addresses.insert(*address);
                }
                Endpoint::Unix(path) => {
                    self.listening_paths.insert(path.clone());
                }
            }
        }
        // Inode 0 is a socket without a descriptor.
        if row.inode != 0 && wanted.contains(&row.inode) {
            self.rows.insert(row.inode, row);
        }
    }

    fn socket(&self, fd: i32, inode: u64) -> Option<OpenSocket> {
        let row = self.rows.get(&inode)?;
        let role = match row.state {
            State::Listening => role::SERVER,
            State::Connecting => role::CLIENT,
            State::Connected => self.role(&row.local),
            State::Other => return None,
        };
        Some(OpenSocket {
            fd,
            inode,
            role,
            local: row.local.clone(),
            peer: row.peer.clone(),
            listening: row.state == State::Listening,
        })
    }

    fn role(&self, local: &Endpoint) -> u8 {
        match local {
            Endpoint::Ip(address)
                if self.listening_addresses.contains(address)
                    || self.listening_ports.contains(&address.port()) =>
            {
                role::SERVER
            }
            Endpoint::Ip(_) if self.cut_off => role::UNKNOWN,
            Endpoint::Ip(_) => role::CLIENT,
            // Without a name it is a client's end or one of a socket pair.
            Endpoint::Unix(path) if path.is_empty() => role::UNKNOWN,
            Endpoint::Unix(path) if self.listening_paths.contains(path) => role::SERVER,
            // Named, and nobody listens there: a client that bound itself,
            // or a server that has closed its listening socket.
            Endpoint::Unix(_) => role::UNKNOWN,
        }
    }
}

/// Descriptors that are sockets, with their inodes, and how many were left
/// out.
fn descriptors(directory: &Path) -> Result<(Vec<(i32, u64)>, usize), SocketsError> {
    let failed = |source| SocketsError {
        path: directory.to_owned(),
        source,
    };
    let mut found = Vec::new();
    let mut too_many = 0;
    for entry in std::fs::read_dir(directory).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        // A descriptor that is closed meanwhile is none of ours.
        let Ok(link) = std::fs::read_link(entry.path()) else {
            continue;
        };
        let fd = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse().ok());
        let inode = link.to_str().and_then(socket_inode);
        let (Some(fd), Some(inode)) = (fd, inode) else {
            continue;
        };
        match found.len() < MAX_SOCKETS {
            true => found.push((fd, inode)),
            false => too_many += 1,
        }
    }
    found.sort_unstable();
    Ok((found, too_many))
}

fn socket_inode(link: &str) -> Option<u64> {
    link.strip_prefix("socket:[")?
        .strip_suffix(']')?
        .parse()
        .ok()
}

/// `sl local remote st tx:rx tr:when retrnsmt uid timeout inode ...`
fn tcp_row(line: &str) -> Option<Row> {
    let mut fields = line.split_ascii_whitespace();
    let local = ip_endpoint(fields.nth(1)?)?;
    let peer = ip_endpoint(fields.next()?)?;
    let state = u8::from_str_radix(fields.next()?, 16).ok()?;
    let inode = fields.nth(5)?.parse().ok()?;
    Some(Row {
        inode,
        state: tcp_state(state),
        local,
        peer,
    })
}

/// Numbers are those of `include/net/tcp_states.h`. Closing states count as
/// connected as long as one direction may still carry bytes.
fn tcp_state(state: u8) -> State {
    match state {
        // ESTABLISHED, FIN_WAIT1, FIN_WAIT2, CLOSE_WAIT
        1 | 4 | 5 | 8 => State::Connected,
        // SYN_SENT
        2 => State::Connecting,
        10 => State::Listening,
        _ => State::Other,
    }
}

/// The kernel prints addresses as 32-bit words in its own byte order and the
/// port as a number. An IPv4-mapped IPv6 address is shown as IPv4.
fn ip_endpoint(text: &str) -> Option<Endpoint> {
    let (address, port) = text.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let word = |idx: usize| {
        let digits = address.get(idx * 8..idx * 8 + 8)?;
        u32::from_str_radix(digits, 16).ok().map(u32::to_ne_bytes)
    };
    let ip = match address.len() {
        8 => IpAddr::V4(Ipv4Addr::from(word(0)?)),
        32 => {
            let mut bytes = [0; 16];
            for (idx, part) in bytes.chunks_exact_mut(4).enumerate() {
                part.copy_from_slice(&word(idx)?);
            }
            IpAddr::V6(Ipv6Addr::from(bytes)).to_canonical()
        }
        _ => return None,
    };
    Some(Endpoint::Ip(SocketAddr::new(ip, port)))
}

/// `Num RefCount Protocol Flags Type St Inode [Path]`; the path may contain
/// spaces, and an abstract name begins with `@`.
fn unix_row(line: &str) -> Option<Row> {
    /// `__SO_ACCEPTCON`, `SOCK_STREAM`, `SS_CONNECTING` and `SS_CONNECTED`.
    const ACCEPTS: u32 = 1 << 16;
    const STREAM: u32 = 1;
    const CONNECTING: u32 = 2;
    const CONNECTED: u32 = 3;

    let mut rest = line;
    let mut field = || {
        let (word, tail) = rest
            .trim_start_matches(' ')
            .split_once(' ')
            .unwrap_or((rest.trim_start_matches(' '), ""));
        rest = tail;
        (!word.is_empty()).then_some(word)
    };
    let (_, _, _) = (field()?, field()?, field()?);
    let flags = u32::from_str_radix(field()?, 16).ok()?;
    let kind = u32::from_str_radix(field()?, 16).ok()?;
    let state = u32::from_str_radix(field()?, 16).ok()?;
    let inode = field()?.parse().ok()?;
    let state = match (kind, state) {
        (STREAM, _) if flags & ACCEPTS != 0 => State::Listening,
        (STREAM, CONNECTED) => State::Connected,
        (STREAM, CONNECTING) => State::Connecting,
        _ => State::Other,
    };
    Some(Row {
        inode,
        state,
        local: Endpoint::Unix(rest.to_owned()),
        peer: Endpoint::Unix(String::new()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const TCP: &str = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 00000000:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 100 1 0000000000000000 100 0 0 10 0
   1: 0100007F:0050 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 101 1 0000000000000000 100 0 0 10 0
   2: 0100007F:1F90 0100007F:C350 01 00000000:00000000 00:00000000 00000000     0        0 102 1 0000000000000000 20 4 30 10 -1
   3: 0100007F:C351 0A00000A:1538 08 00000000:00000000 00:00000000 00000000  1000        0 103 1 0000000000000000 20 4 30 10 -1
   4: 0200007F:0050 0100007F:C352 01 00000000:00000000 00:00000000 00000000     0        0 104 1 0000000000000000 20 4 30 10 -1
   5: 0100007F:1F90 0100007F:C353 06 00000000:00000000 03:00000000 00000000     0        0 0 3 0000000000000000
   6: 0100007F:C354 0100007F:1F90 02 00000000:00000000 00:00000000 00000000     0        0 106 1 0000000000000000
   7: damaged row
   8: 0100007F:C355 0100007F 01 00000000:00000000 00:00000000 00000000     0        0 107 1 0000000000000000
";

    const TCP6: &str = "  sl  local_address                         remote_address                        st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 00000000000000000000000000000000:2328 00000000000000000000000000000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 200 1 0000000000000000 100 0 0 10 0
   1: 0000000000000000FFFF00000100007F:2328 0000000000000000FFFF00000100007F:C350 01 00000000:00000000 00:00000000 00000000     0        0 201 1 0000000000000000 20 4 30 10 -1
   2: B80D0120000000000000000001000000:D431 B80D0120000000000000000002000000:01BB 01 00000000:00000000 00:00000000 00000000     0        0 202 1 0000000000000000 20 4 30 10 -1
";

    const UNIX: &str = "Num       RefCount Protocol Flags    Type St Inode Path
0000000000000000: 00000002 00000000 00010000 0001 01   300 /run/my app.sock
0000000000000000: 00000003 00000000 00000000 0001 03   301 /run/my app.sock
0000000000000000: 00000003 00000000 00000000 0001 03   302
0000000000000000: 00000002 00000000 00000000 0002 01   303 /run/datagram
0000000000000000: 00000003 00000000 00000000 0001 03   304 @abstract
0000000000000000: 00000002 00000000 00000000 0001 01   305
";

    fn table(wanted: &[u64]) -> Table {
        let wanted = wanted.iter().copied().collect();
        let mut table = Table::default();
        for ((_, parse), text) in TABLES.iter().zip([TCP, TCP6, UNIX]) {
            table
                .fill(text.as_bytes(), *parse, &wanted)
                .expect("a slice never fails");
        }
        table
    }

    fn ip(text: &str) -> Endpoint {
        Endpoint::Ip(text.parse().expect("an address"))
    }

    /// Role, local and peer end, and whether it listens.
    fn check(inode: u64, expected: Option<(u8, Endpoint, Endpoint, bool)>) {
        let found = table(&[inode]).socket(7, inode);
        assert_eq!(
            found.map(|socket| (socket.role, socket.local, socket.peer, socket.listening)),
            expected
        );
    }

    #[test]
    fn roles_and_addresses_of_ipv4_sockets() {
        check(
            100,
            Some((role::SERVER, ip("0.0.0.0:8080"), ip("0.0.0.0:0"), true)),
        );
        check(
            102,
            Some((
                role::SERVER,
                ip("127.0.0.1:8080"),
                ip("127.0.0.1:50000"),
                false,
            )),
        );
        check(
            103,
            Some((
                role::CLIENT,
                ip("127.0.0.1:50001"),
                ip("10.0.0.10:5432"),
                false,
            )),
        );
        // Somebody listens on that port, but at another address.
        check(
            104,
            Some((
                role::CLIENT,
                ip("127.0.0.2:80"),
                ip("127.0.0.1:50002"),
                false,
            )),
        );
        check(
            106,
            Some((
                role::CLIENT,
                ip("127.0.0.1:50004"),
                ip("127.0.0.1:8080"),
                false,
            )),
        );
    }

    #[test]
    fn roles_and_addresses_of_ipv6_sockets() {
        check(
            200,
            Some((role::SERVER, ip("[::]:9000"), ip("[::]:0"), true)),
        );
        check(
            201,
            Some((
                role::SERVER,
                ip("127.0.0.1:9000"),
                ip("127.0.0.1:50000"),
                false,
            )),
        );
        check(
            202,
            Some((
                role::CLIENT,
                ip("[2001:db8::1]:54321"),
                ip("[2001:db8::2]:443"),
                false,
            )),
        );
    }

    #[test]
    fn roles_of_unix_sockets() {
        let unix = |path: &str| Endpoint::Unix(path.to_owned());
        check(
            300,
            Some((role::SERVER, unix("/run/my app.sock"), unix(""), true)),
        );
        check(
            301,
            Some((role::SERVER, unix("/run/my app.sock"), unix(""), false)),
        );
        check(302, Some((role::UNKNOWN, unix(""), unix(""), false)));
        check(
            304,
            Some((role::UNKNOWN, unix("@abstract"), unix(""), false)),
        );
    }

    #[test]
    fn leaves_out_what_carries_no_stream() {
        for inode in [0, 107, 303, 305, 999] {
            check(inode, None);
        }
    }

    #[test]
    fn a_table_that_was_cut_off_makes_no_clients() {
        let mut table = table(&[102, 103]);
        table.cut_off = true;
        assert_eq!(
            table.socket(1, 102).map(|socket| socket.role),
            Some(role::SERVER)
        );
        assert_eq!(
            table.socket(1, 103).map(|socket| socket.role),
            Some(role::UNKNOWN)
        );
    }

    #[test]
    fn survives_cut_and_strange_rows() {
        for text in [TCP, TCP6, UNIX] {
            for end in 0..text.len() {
                for (_, parse) in TABLES {
                    let mut table = Table::default();
                    let wanted = (0..400).collect();
                    table
                        .fill(&text.as_bytes()[..end], *parse, &wanted)
                        .expect("a slice never fails");
                }
            }
        }
        for line in [
            "",
            " ",
            "0: : : 01",
            "0: é0000000:0050 00000000:0000 01 a b c d e 1",
            "1: G100007F:0050 00000000:0000 0A",
        ] {
            assert_eq!(tcp_row(line), None, "{line}");
            assert_eq!(unix_row(line), None, "{line}");
        }
        let long = vec![b'x'; MAX_ROW * 4];
        let mut table = Table::default();
        table
            .fill(&long[..], unix_row, &HashSet::new())
            .expect("a slice never fails");
        assert!(table.rows.is_empty());
    }

    #[test]
    fn takes_inodes_from_links_only() {
        assert_eq!(socket_inode("socket:[123]"), Some(123));
        for link in ["pipe:[123]", "socket:[x]", "socket:[]", "/srv/socket:[1]"] {
            assert_eq!(socket_inode(link), None);
        }
    }
}
