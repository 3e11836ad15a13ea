//! Questions about the sockets of the calling thread's network namespace, to the kernel's socket diagnostics (sock_diag(7)).

use std::io;

use netlink_packet_core::{NLM_F_DUMP, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload};
use netlink_packet_sock_diag::SockDiagMessage;
use netlink_sys::protocols::NETLINK_SOCK_DIAG;
use netlink_sys::{Socket, SocketAddr};

/// Largest answer of the kernel to one receive, in bytes (`NLMSG_GOODSIZE` and more).
const BUFFER: usize = 64 << 10;

/// All sockets that a request matches.
///
/// # Errors
/// The kernel lacks this kind of diagnostics.
pub(crate) fn all(request: SockDiagMessage) -> io::Result<Vec<SockDiagMessage>> {
    let socket = ask(request, NLM_F_REQUEST | NLM_F_DUMP)?;
    let mut found = Vec::new();
    loop {
        let mut bytes = Vec::with_capacity(BUFFER);
        socket.recv(&mut bytes, 0)?;
        let mut rest = bytes.as_slice();
        while !rest.is_empty() {
            let message = NetlinkMessage::<SockDiagMessage>::deserialize(rest).map_err(io::Error::other)?;
            rest = rest.get(message.header.length.max(1) as usize..).unwrap_or_default();
            match message.payload {
                NetlinkPayload::Done(_) => return Ok(found),
                NetlinkPayload::Error(e) => return Err(e.to_io()),
                NetlinkPayload::InnerMessage(answer) => found.push(answer),
                _ => {}
            }
        }
    }
}

/// The one socket that a request names; none if there is no such socket.
///
/// # Errors
/// As [`all`].
pub(crate) fn one(request: SockDiagMessage) -> io::Result<Option<SockDiagMessage>> {
    let socket = ask(request, NLM_F_REQUEST)?;
    let mut bytes = Vec::with_capacity(BUFFER);
    socket.recv(&mut bytes, 0)?;
    match NetlinkMessage::<SockDiagMessage>::deserialize(&bytes).map_err(io::Error::other)?.payload {
        NetlinkPayload::InnerMessage(answer) => Ok(Some(answer)),
        NetlinkPayload::Error(e) if e.to_io().kind() != io::ErrorKind::NotFound => Err(e.to_io()),
        _ => Ok(None),
    }
}

fn ask(request: SockDiagMessage, flags: u16) -> io::Result<Socket> {
    let mut socket = Socket::new(NETLINK_SOCK_DIAG)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    let mut header = NetlinkHeader::default();
    header.flags = flags;
    let mut message = NetlinkMessage::new(header, request.into());
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    socket.send(&bytes, 0)?;
    Ok(socket)
}
