//! Descriptors sent over unix sockets (`SCM_RIGHTS`). A thin layer over rustix: it fixes the flags and sizes.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags,
};

/// The most descriptors that one message carries.
pub const MAX_DESCRIPTORS: usize = 64;

/// Sends bytes and up to [`MAX_DESCRIPTORS`] descriptors in one message; the number of bytes sent. On a stream socket
/// there must be at least one byte, and fewer than all may be sent. A peer that has gone is `EPIPE`, never a signal.
pub fn send(socket: BorrowedFd<'_>, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) -> Result<usize, Errno> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() && !control.push(SendAncillaryMessage::ScmRights(descriptors)) {
        return Err(Errno::TOOBIG);
    }
    rustix::net::sendmsg(socket, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL)
}

/// One message received.
#[derive(Debug)]
pub struct Received {
    /// How many bytes of the buffer were filled; 0 when the peer has closed.
    pub bytes: usize,
    /// The descriptors that came along, close-on-exec.
    pub descriptors: Vec<OwnedFd>,
}

/// Receives one message (of a stream socket: some bytes). A message longer than the buffer, or with more descriptors
/// than fit, is `EMSGSIZE`: what was cut off is lost.
pub fn receive(socket: BorrowedFd<'_>, buffer: &mut [u8]) -> Result<Received, Errno> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let message =
        rustix::net::recvmsg(socket, &mut [IoSliceMut::new(buffer)], &mut control, RecvFlags::CMSG_CLOEXEC)?;
    let descriptors = control
        .drain()
        .filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(descriptors) => Some(descriptors),
            _ => None,
        })
        .flatten()
        .collect();
    if message.flags.intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC) {
        return Err(Errno::MSGSIZE);
    }
    Ok(Received { bytes: message.bytes, descriptors })
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::Read as _;
    use std::os::fd::AsFd as _;

    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

    use super::*;

    fn pair(kind: SocketType) -> (OwnedFd, OwnedFd) {
        socketpair(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None).unwrap()
    }

    #[test]
    fn a_descriptor_arrives_with_its_message() {
        for kind in [SocketType::SEQPACKET, SocketType::STREAM] {
            let (left, right) = pair(kind);
            let file = File::open("/proc/self/comm").unwrap();
            send(left.as_fd(), b"hello", &[file.as_fd()]).unwrap();

            let mut buffer = [0; 16];
            let mut received = receive(right.as_fd(), &mut buffer).unwrap();
            assert_eq!(&buffer[..received.bytes], b"hello");
            let mut text = String::new();
            File::from(received.descriptors.pop().unwrap()).read_to_string(&mut text).unwrap();
            assert!(!text.is_empty());
            assert!(received.descriptors.is_empty());
        }
    }

    #[test]
    fn a_message_longer_than_the_buffer_is_refused() {
        let (left, right) = pair(SocketType::SEQPACKET);
        send(left.as_fd(), &[7; 32], &[]).unwrap();
        assert_eq!(receive(right.as_fd(), &mut [0; 16]).unwrap_err(), Errno::MSGSIZE);
    }

    #[test]
    fn a_peer_that_has_gone_is_an_error_and_no_signal() {
        let (left, right) = pair(SocketType::SEQPACKET);
        drop(right);
        assert_eq!(send(left.as_fd(), b"x", &[]).unwrap_err(), Errno::PIPE);
    }
}
