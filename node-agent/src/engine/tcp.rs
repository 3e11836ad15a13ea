//! TCP sockets of a network namespace, as the kernel tells of them.
//!
//! It keeps those of all namespaces in one table, sized by the node's memory, and walks it for whoever asks for connections:
//! milliseconds, and with `/proc/PID/net/tcp` several times. Listeners are kept apart, and numbers are counted as they change.

use std::io;
use std::net::SocketAddr;

use netlink_packet_sock_diag::SockDiagMessage;
use netlink_packet_sock_diag::inet::{ExtensionFlags, InetRequest, SocketId, StateFlags};
use procfs::net::TcpState;

use super::{netns, sock_diag};

/// Linux's numbers of the address families and of TCP.
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
const IPPROTO_TCP: u8 = 6;

/// A socket that is not in `TIME_WAIT`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Socket {
    /// Our end.
    pub local: SocketAddr,
    /// The other end.
    pub remote: SocketAddr,
    /// Whether it listens.
    pub listens: bool,
    /// 0: nobody has a descriptor of it.
    pub inode: u64,
}

/// All sockets in the network namespace of process `pid`.
///
/// # Errors
/// The process has ended, or the kernel refuses.
pub fn sockets(pid: i32) -> io::Result<Vec<Socket>> {
    ask(pid, StateFlags::all() - StateFlags::TIME_WAIT)
}

/// Those that listen: cheap.
///
/// # Errors
/// See [`sockets`].
pub fn listeners(pid: i32) -> io::Result<Vec<Socket>> {
    ask(pid, StateFlags::LISTEN)
}

/// How many sockets there are, without those of handshakes that are not over: cheap.
///
/// # Errors
/// The process has ended.
pub fn in_use(pid: i32) -> io::Result<usize> {
    let of_family = |file: &str, name: &str| {
        let text = std::fs::read_to_string(format!("/proc/{pid}/net/{file}"))?;
        let counted = text.lines().find_map(|line| line.strip_prefix(name)?.split(' ').next()?.parse().ok());
        counted.ok_or_else(|| io::Error::other(format!("{file} does not count sockets: {text}")))
    };
    let v6 = match of_family("sockstat6", "TCP6: inuse ") {
        // A kernel without IPv6.
        Err(e) if e.kind() == io::ErrorKind::NotFound => 0,
        counted => counted?,
    };
    Ok(of_family("sockstat", "TCP: inuse ")? + v6)
}

fn ask(pid: i32, states: StateFlags) -> io::Result<Vec<Socket>> {
    netns::within(pid, || {
        let mut found = sock_diag::all(request(AF_INET, states.clone()))?;
        found.extend(sock_diag::all(request(AF_INET6, states)).unwrap_or_default());
        Ok(found.into_iter().filter_map(socket).collect())
    })
}

fn socket(answer: SockDiagMessage) -> Option<Socket> {
    let SockDiagMessage::InetResponse(response) = answer else { return None };
    let header = &response.header;
    let ends = &header.socket_id;
    Some(Socket {
        local: SocketAddr::new(ends.source_address, ends.source_port),
        remote: SocketAddr::new(ends.destination_address, ends.destination_port),
        listens: header.state == TcpState::Listen.to_u8(),
        inode: header.inode.into(),
    })
}

fn request(family: u8, states: StateFlags) -> SockDiagMessage {
    let socket_id = if family == AF_INET { SocketId::new_v4() } else { SocketId::new_v6() };
    let extensions = ExtensionFlags::empty();
    let request = InetRequest { family, protocol: IPPROTO_TCP, extensions, states, socket_id };
    SockDiagMessage::InetRequest(request)
}
