//! Which connections are kubelet's own: those of sockets in the host's network namespace that its process holds.

use std::collections::HashSet;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Mutex, PoisonError};

use netlink_packet_sock_diag::SockDiagMessage;
use netlink_packet_sock_diag::inet::{ExtensionFlags, InetRequest, SocketId, StateFlags};
use procfs::process::{FDTarget, Process};

use crate::engine::{netns, sock_diag};

/// The host's first process, whose network namespace is the host's.
const HOST: i32 = 1;
/// Linux's numbers of the address families and of TCP.
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
const IPPROTO_TCP: u8 = 6;

/// The processes whose connections are probes: those called like one of some names, run by root in the host's network namespace.
#[derive(Debug)]
pub(super) struct Kubelet {
    names: Vec<String>,
    /// As long as one of them lives, no others are looked for: a node has one.
    known: Mutex<Vec<Process>>,
}

impl Kubelet {
    /// Called like one of `names`.
    pub(super) fn new(names: Vec<String>) -> Self {
        Self { names, known: Mutex::default() }
    }

    /// Whether the TCP connection from `from` to `to` is one of theirs. In doubt it is not.
    pub(super) fn owns(&self, from: SocketAddr, to: SocketAddr) -> bool {
        let inode = match netns::within(HOST, || inode(from, to)) {
            Ok(Some(inode)) => inode,
            Ok(None) => return false,
            Err(e) => {
                tracing::debug!(%from, %to, "cannot ask whose connection that is: {e}");
                return false;
            }
        };
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.retain(Process::is_alive);
        if known.is_empty() {
            known.extend(self.look());
        }
        known.iter().any(|process| holds(process, inode))
    }

    fn look(&self) -> impl Iterator<Item = Process> {
        let namespace = |pid: i32| std::fs::read_link(format!("/proc/{pid}/ns/net")).ok();
        let host = namespace(HOST);
        let named = |pid: &i32| {
            let comm = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
            self.names.iter().any(|name| name == comm.trim_end())
        };
        let pids = std::fs::read_dir("/proc").into_iter().flatten().flatten();
        let pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        let processes = pids.filter(named).filter_map(|pid| Process::new(pid).ok());
        processes
            .filter(move |process| process.uid().is_ok_and(|uid| uid == 0) && namespace(process.pid) == host)
    }
}

fn holds(process: &Process, inode: u64) -> bool {
    let descriptors = process.fd().into_iter().flatten().flatten();
    let inodes: HashSet<u64> = descriptors
        .filter_map(|descriptor| match descriptor.target {
            FDTarget::Socket(inode) => Some(inode),
            _ => None,
        })
        .collect();
    inodes.contains(&inode)
}

/// The inode of the socket in this network namespace with exactly these ends; none if there is no such socket, or no process
/// has it any more.
fn inode(from: SocketAddr, to: SocketAddr) -> io::Result<Option<u64>> {
    // A socket of both families keeps IPv4 peers under their mapped addresses.
    let families = if from.is_ipv4() { &[AF_INET, AF_INET6][..] } else { &[AF_INET6] };
    for family in families {
        let answer = sock_diag::one(SockDiagMessage::InetRequest(request(*family, from, to)))?;
        if let Some(SockDiagMessage::InetResponse(response)) = answer {
            let inode = u64::from(response.header.inode);
            return Ok((inode != 0).then_some(inode));
        }
    }
    Ok(None)
}

fn request(family: u8, from: SocketAddr, to: SocketAddr) -> InetRequest {
    let address = |ip: IpAddr| match ip {
        IpAddr::V4(v4) if family == AF_INET6 => IpAddr::V6(v4.to_ipv6_mapped()),
        other => other,
    };
    let any = SocketId::new_v4();
    let socket_id = SocketId {
        source_port: from.port(),
        destination_port: to.port(),
        source_address: address(from.ip()),
        destination_address: address(to.ip()),
        cookie: [0xff; 8],
        ..any
    };
    InetRequest {
        family,
        protocol: IPPROTO_TCP,
        extensions: ExtensionFlags::empty(),
        states: StateFlags::all(),
        socket_id,
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, TcpListener, TcpStream};

    use super::*;

    #[test]
    fn a_connection_is_its_holder_s() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (from, to) = (stream.local_addr().unwrap(), stream.peer_addr().unwrap());
        let inode = inode(from, to).unwrap().expect("the socket is found");
        assert!(holds(&Process::myself().unwrap(), inode));
        drop(stream);
        assert!(self::inode(SocketAddr::new(from.ip(), 1), to).unwrap().is_none());
    }
}
