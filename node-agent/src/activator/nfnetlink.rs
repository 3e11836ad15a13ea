//! Messages to the kernel's netfilter (formats from `linux/netfilter/nfnetlink.h`).

use std::io;

use netlink_packet_core::{DefaultNla, Emitable, NLMSG_ERROR};
use netlink_sys::Socket;

/// For a message of the kernel's.
pub(super) const BUFFER: usize = 2048;
/// `nlmsghdr` and `nfgenmsg`.
pub(super) const HEADERS: usize = 20;
const NETLINK_HEADER: usize = 16;

/// A message about `resource`, which is a queue's number or a subsystem's.
pub(super) fn message(
    kind: u16,
    flags: u16,
    family: u8,
    resource: u16,
    attributes: &[DefaultNla],
) -> Vec<u8> {
    let body = emitted(attributes);
    let mut bytes = ((HEADERS + body.len()) as u32).to_ne_bytes().to_vec();
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(flags.to_ne_bytes());
    // Sequence number and port: the answer to the only question that is open.
    bytes.extend([0; 8]);
    // The family, and version 0.
    bytes.extend([family, 0]);
    bytes.extend(resource.to_be_bytes());
    bytes.extend(body);
    bytes
}

/// Attributes as the value of another one, or the body of a message.
pub(super) fn emitted(attributes: &[DefaultNla]) -> Vec<u8> {
    let mut bytes = vec![0; attributes.buffer_len()];
    attributes.emit(&mut bytes);
    bytes
}

/// The next message that the kernel has sent.
///
/// # Errors
/// There is none, or the socket broke.
pub(super) fn receive(socket: &Socket) -> io::Result<Vec<u8>> {
    let mut answer = Vec::with_capacity(BUFFER);
    socket.recv(&mut answer, 0)?;
    Ok(answer)
}

/// What the kernel says to a message that asks for an acknowledgement; none if `answer` is something else.
pub(super) fn acknowledged(answer: &[u8]) -> Option<io::Result<()>> {
    if kind(answer)? != NLMSG_ERROR {
        return None;
    }
    let error = field::<4>(answer, NETLINK_HEADER).map_or(0, i32::from_ne_bytes);
    Some(if error == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(-error)) })
}

/// Its type.
pub(super) fn kind(message: &[u8]) -> Option<u16> {
    field::<2>(message, 4).map(u16::from_ne_bytes)
}

/// What comes after its headers.
pub(super) fn body(message: &[u8]) -> Option<&[u8]> {
    let length = u32::from_ne_bytes(field(message, 0)?) as usize;
    message.get(HEADERS..length)
}

pub(super) fn field<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..)?.first_chunk().copied()
}
