//! Connections that a process has when it is attached to.

use abi::map::{Connection, Descriptor};
use abi::record::role;

use super::{Changes, Discovery};
use crate::probes::Probes;
use crate::protocol::{Endpoint, Role};
use crate::stream::Opening;
use crate::target::sockets::sockets;

impl Discovery {
    /// Makes the connections known that the process already has.
    pub(super) fn seed(&mut self, pid: u32, probes: &mut Probes, changes: &mut Changes) {
        let Ok(found) = sockets(pid) else {
            return;
        };
        self.stats.unseeded.add(found.skipped as u64);
        for socket in found.sockets.into_iter().filter(|socket| !socket.listening) {
            let conn = self.next_seed;
            self.next_seed += 1;
            let descriptor = Descriptor { pid, fd: socket.fd };
            let connection = Connection {
                id: conn,
                role: socket.role,
                ..Connection::default()
            };
            if socket.role == role::UNKNOWN || !probes.seed(descriptor, &connection) {
                continue;
            }
            if socket_inode(pid, socket.fd) != Some(socket.inode) {
                // Closed, and perhaps reused, while we looked.
                probes.forget(descriptor, conn);
                self.stats.closed.one();
                continue;
            }
            self.stats.seeded.one();
            changes.openings.push(Opening {
                conn,
                descriptor,
                role: match socket.role {
                    role::CLIENT => Some(Role::Client),
                    role::SERVER => Some(Role::Server),
                    _ => None,
                },
                local: known(socket.local),
                peer: known(socket.peer),
                old: true,
            });
        }
    }
}

/// An endpoint, unless nothing is known of it.
fn known(endpoint: Endpoint) -> Option<Endpoint> {
    match endpoint {
        Endpoint::Ip(address) if address.port() == 0 && address.ip().is_unspecified() => None,
        other => Some(other),
    }
}

/// The inode of the socket behind a descriptor.
fn socket_inode(pid: u32, fd: i32) -> Option<u64> {
    let link = std::fs::read_link(format!("/proc/{pid}/fd/{fd}")).ok()?;
    link.to_str()?
        .strip_prefix("socket:[")?
        .strip_suffix(']')?
        .parse()
        .ok()
}
