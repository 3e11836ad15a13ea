//! Unix sockets of a network namespace, from the kernel's socket diagnostics (`unix_diag(7)` in sock_diag(7)).

use std::io;

use netlink_packet_sock_diag::SockDiagMessage;
use netlink_packet_sock_diag::unix::{ShowFlags, StateFlags, UnixRequest};

use super::{netns, sock_diag};

/// The inodes of the connected unix sockets in the network namespace of process `pid`, each with its peer's.
///
/// # Errors
/// The process has ended, or the kernel lacks unix_diag.
pub fn peers(pid: i32) -> io::Result<Vec<(u64, u64)>> {
    let query = UnixRequest {
        state_flags: StateFlags::all(),
        inode: 0,
        show_flags: ShowFlags::PEER,
        cookie: [0xff; 8],
    };
    let sockets = netns::within(pid, || sock_diag::all(SockDiagMessage::UnixRequest(query)))?;
    let peers = sockets.into_iter().filter_map(|socket| match socket {
        SockDiagMessage::UnixResponse(response) => {
            let peer = response.peer().filter(|peer| *peer != 0)?;
            Some((response.header.inode.into(), peer.into()))
        }
        _ => None,
    });
    Ok(peers.collect())
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn both_ends_of_a_pair_are_each_other_s_peers() {
        if !rustix::process::geteuid().is_root() {
            return;
        }
        let (left, right) = UnixStream::pair().unwrap();
        let inode = |socket: &UnixStream| {
            let link = std::fs::read_link(format!("/proc/self/fd/{}", socket.as_raw_fd())).unwrap();
            let name = link.to_str().unwrap();
            name.trim_start_matches("socket:[").trim_end_matches(']').parse::<u64>().unwrap()
        };
        let found = peers(std::process::id() as i32).unwrap();
        assert!(found.contains(&(inode(&left), inode(&right))));
        assert!(found.contains(&(inode(&right), inode(&left))));
    }
}
