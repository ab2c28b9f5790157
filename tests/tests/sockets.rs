//! The sockets of this very process, as the agent finds them through `/proc`.

use std::collections::HashMap;
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixListener, UnixStream};

use abi::record::role;
use anyhow::{Context, Result};
use otel_ebpf::protocol::Endpoint;
use otel_ebpf::target::sockets::{OpenSocket, sockets};

fn by_descriptor() -> Result<HashMap<i32, OpenSocket>> {
    let found = sockets(std::process::id())?;
    assert_eq!(found.skipped, 0);
    Ok(found
        .sockets
        .into_iter()
        .map(|socket| (socket.fd, socket))
        .collect())
}

#[test]
fn finds_both_ends_of_tcp_connections() -> Result<()> {
    for address in ["127.0.0.1:0", "[::1]:0", "0.0.0.0:0", "[::]:0"] {
        let Ok(listener) = TcpListener::bind(address) else {
            assert!(address.starts_with('['), "only IPv6 may be absent");
            continue;
        };
        let port = listener.local_addr()?.port();
        // The wildcard of IPv6 is reached through IPv4, which maps addresses.
        let host = if address == "[::1]:0" {
            "::1"
        } else {
            "127.0.0.1"
        };
        let client = TcpStream::connect((host, port)).with_context(|| address.to_owned())?;
        let (server, _) = listener.accept()?;

        let found = by_descriptor()?;
        let of = |fd: i32| {
            found
                .get(&fd)
                .with_context(|| format!("{address}: no descriptor {fd}"))
        };
        let listening = of(listener.as_raw_fd())?;
        assert!(listening.listening && listening.role == role::SERVER);
        let accepted = of(server.as_raw_fd())?;
        assert_eq!(
            (accepted.role, accepted.listening),
            (role::SERVER, false),
            "{address}"
        );
        let connected = of(client.as_raw_fd())?;
        assert_eq!(
            (connected.role, connected.listening),
            (role::CLIENT, false),
            "{address}"
        );
        let ends = (
            Endpoint::Ip(client.local_addr()?),
            Endpoint::Ip(client.peer_addr()?),
        );
        assert_eq!((&connected.local, &connected.peer), (&ends.0, &ends.1));
        assert_eq!((&accepted.local, &accepted.peer), (&ends.1, &ends.0));
    }
    Ok(())
}

#[test]
fn finds_unix_sockets_and_leaves_pairs_undecided() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let path = directory.path().join("app server.sock");
    let listener = UnixListener::bind(&path)?;
    let client = UnixStream::connect(&path)?;
    let (server, _) = listener.accept()?;
    let (pair, _other) = UnixStream::pair()?;

    let found = by_descriptor()?;
    let name = Endpoint::Unix(path.to_string_lossy().into_owned());
    let unnamed = Endpoint::Unix(String::new());
    let check = |fd: i32, role, local: &Endpoint, listening| -> Result<()> {
        let socket = found
            .get(&fd)
            .with_context(|| format!("no descriptor {fd}"))?;
        assert_eq!(
            (socket.role, &socket.local, socket.listening),
            (role, local, listening)
        );
        Ok(())
    };
    check(listener.as_raw_fd(), role::SERVER, &name, true)?;
    check(server.as_raw_fd(), role::SERVER, &name, false)?;
    check(client.as_raw_fd(), role::UNKNOWN, &unnamed, false)?;
    check(pair.as_raw_fd(), role::UNKNOWN, &unnamed, false)
}

#[test]
fn a_process_that_is_gone_is_an_error() {
    assert!(sockets(u32::MAX).is_err());
}
