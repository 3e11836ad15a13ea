//! Unix sockets of a network namespace, from the kernel's socket diagnostics (`unix_diag(7)` in sock_diag(7)).

use std::io;

use netlink_packet_core::{NLM_F_DUMP, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload};
use netlink_packet_sock_diag::SockDiagMessage;
use netlink_packet_sock_diag::unix::{ShowFlags, StateFlags, UnixRequest};
use netlink_sys::protocols::NETLINK_SOCK_DIAG;
use netlink_sys::{Socket, SocketAddr};

use super::netns;

/// Largest answer of the kernel to one receive of a dump, in bytes (`NLMSG_GOODSIZE` and more).
const BUFFER: usize = 64 << 10;

/// The inodes of the connected unix sockets in the network namespace of process `pid`, each with its peer's.
///
/// # Errors
/// The process has ended, or the kernel lacks unix_diag.
pub fn peers(pid: i32) -> io::Result<Vec<(u64, u64)>> {
    netns::within(pid, || {
        let mut socket = Socket::new(NETLINK_SOCK_DIAG)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        socket.send(&request(), 0)?;
        let mut found = Vec::new();
        loop {
            let mut bytes = Vec::with_capacity(BUFFER);
            socket.recv(&mut bytes, 0)?;
            let mut rest = bytes.as_slice();
            while !rest.is_empty() {
                let message =
                    NetlinkMessage::<SockDiagMessage>::deserialize(rest).map_err(io::Error::other)?;
                rest = rest.get(message.header.length.max(1) as usize..).unwrap_or_default();
                match message.payload {
                    NetlinkPayload::Done(_) => return Ok(found),
                    NetlinkPayload::Error(e) => return Err(e.to_io()),
                    NetlinkPayload::InnerMessage(SockDiagMessage::UnixResponse(response)) => {
                        let peer = response.peer().filter(|peer| *peer != 0);
                        found.extend(peer.map(|peer| (response.header.inode.into(), peer.into())));
                    }
                    _ => {}
                }
            }
        }
    })
}

fn request() -> Vec<u8> {
    let mut header = NetlinkHeader::default();
    header.flags = NLM_F_REQUEST | NLM_F_DUMP;
    let query = UnixRequest {
        state_flags: StateFlags::all(),
        inode: 0,
        show_flags: ShowFlags::PEER,
        cookie: [0xff; 8],
    };
    let mut message = NetlinkMessage::new(header, SockDiagMessage::UnixRequest(query).into());
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    bytes
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
