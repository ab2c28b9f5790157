//! What is known of a connection when it comes into being: its record from the
//! kernel, with addresses and paths in plain values.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use abi::map::Descriptor;
use abi::record::{self, Open};

use crate::protocol::{Endpoint, Role};

/// A connection at its start, or as found at the attach.
#[derive(Clone, Debug)]
pub struct Opening {
    /// Its id.
    pub conn: u64,
    /// Where it is.
    pub descriptor: Descriptor,
    /// Which end the process is, where known.
    pub role: Option<Role>,
    /// The process's end.
    pub local: Option<Endpoint>,
    /// The other end.
    pub peer: Option<Endpoint>,
    /// Whether bytes went before we looked.
    pub old: bool,
}

impl From<&Open> for Opening {
    fn from(open: &Open) -> Self {
        let role = match open.role {
            record::role::CLIENT => Some(Role::Client),
            record::role::SERVER => Some(Role::Server),
            _ => None,
        };
        let (local, peer) = match open.family {
            1 => {
                let path = unix_path(&open.path);
                match role {
                    Some(Role::Client) => (None, Some(Endpoint::Unix(path))),
                    _ => (
                        Some(Endpoint::Unix(path)),
                        Some(Endpoint::Unix(String::new())),
                    ),
                }
            }
            family => (
                address(family, &open.local, open.local_port),
                address(family, &open.peer, open.peer_port),
            ),
        };
        Self {
            conn: open.conn,
            descriptor: Descriptor {
                pid: open.pid,
                fd: open.fd,
            },
            role,
            local,
            peer,
            old: false,
        }
    }
}

/// An IP endpoint; IPv4-mapped addresses are shown as IPv4.
fn address(family: u8, bytes: &[u8; 16], port: u16) -> Option<Endpoint> {
    let ip = match family {
        2 => {
            let [a, b, c, d, ..] = *bytes;
            IpAddr::V4(Ipv4Addr::new(a, b, c, d))
        }
        10 => IpAddr::V6(Ipv6Addr::from(*bytes)).to_canonical(),
        _ => return None,
    };
    if port == 0 && ip.is_unspecified() {
        return None;
    }
    Some(Endpoint::Ip(SocketAddr::new(ip, port)))
}

/// A path, or an abstract name with `@` for its leading zero byte.
fn unix_path(bytes: &[u8]) -> String {
    let name = match bytes {
        [0, rest @ ..] => rest,
        all => all,
    };
    let end = name
        .iter()
        .position(|&byte| byte == 0)
        .unwrap_or(name.len());
    let text = String::from_utf8_lossy(name.get(..end).unwrap_or_default());
    match (bytes.first(), text.is_empty()) {
        (_, true) => String::new(),
        (Some(0), false) => format!("@{text}"),
        _ => text.into_owned(),
    }
}
