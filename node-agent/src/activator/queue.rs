//! A queue of the kernel's that holds packets until it is told what to do with them (NFQUEUE, over
//! `nfnetlink_queue`; message formats from `linux/netfilter/nfnetlink_queue.h`).
//!
//! A queue belongs to the network namespace of the thread that opens it, wherever it is used afterwards. When it is closed, the
//! kernel drops what it holds.

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};

use netlink_packet_core::{DefaultNla, NLM_F_ACK, NLM_F_REQUEST, NlaBuffer, NlasIterator};
use netlink_sys::Socket;
use netlink_sys::protocols::NETLINK_NETFILTER;
use rustix::net::sockopt;
use tokio::io::Interest;
use woodfrog_sys::ready::Ready;

use super::nfnetlink::{BUFFER, acknowledged, body, field, kind, message, receive};
use super::rules::PROBE_MARK;

/// Held packets beyond this are dropped, and come again. A client's retransmission is the limit's price.
pub(super) const MAX_HELD: u32 = 4096;
/// The same where datagrams come, each of which may have 64 KiB.
pub(super) const MAX_HELD_DATAGRAMS: u32 = 512;
/// For what is said of packets and has not been read yet, in bytes: of [`MAX_HELD`] of them. The kernel takes twice as much, and
/// counts what a message takes of its memory, not the message.
const UNREAD: usize = 4 << 20;
/// How much of a packet is looked at: an IPv6 header, some extensions, a TCP header with options. Far less than [`BUFFER`].
const LOOKED_AT: u32 = 192;

const SUBSYSTEM: u16 = 3 << 8;
const PACKET: u16 = SUBSYSTEM;
const VERDICT: u16 = SUBSYSTEM | 1;
const CONFIG: u16 = SUBSYSTEM | 2;
const VERDICT_BATCH: u16 = SUBSYSTEM | 3;

const ATTR_PACKET_HEADER: u16 = 1;
const ATTR_VERDICT_HEADER: u16 = 2;
const ATTR_MARK: u16 = 3;
const ATTR_PAYLOAD: u16 = 10;
const CONFIG_COMMAND: u16 = 1;
const CONFIG_PARAMS: u16 = 2;
const CONFIG_MAX_LENGTH: u16 = 3;
const COMMAND_BIND: u8 = 1;
const COPY_PACKET: u8 = 2;

/// A packet that waits for its verdict.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Held {
    /// Its number; later packets have higher ones.
    pub(super) id: u32,
    /// Its beginning, from the IP header on.
    pub(super) bytes: Vec<u8>,
}

/// What becomes of held packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
enum Fate {
    Drop = 0,
    Accept = 1,
    /// The rules see it again.
    Repeat = 4,
}

/// A bound queue.
#[derive(Debug)]
pub(super) struct Queue {
    socket: Ready<OwnedFd>,
    number: u16,
}

impl Queue {
    /// Binds a queue that holds at most `max_held` packets in the calling thread's network namespace; [`Queue::register`] makes it of use.
    ///
    /// # Errors
    /// The kernel has no NFQUEUE (`EOPNOTSUPP`, `EPROTONOSUPPORT`), or someone else has this queue (`EBUSY`, `EPERM`).
    pub(super) fn open(number: u16, max_held: u32) -> io::Result<OwnedFd> {
        let mut socket = Socket::new(NETLINK_NETFILTER)?;
        socket.bind_auto()?;
        let mut bind = vec![COMMAND_BIND, 0];
        bind.extend(0u16.to_be_bytes());
        ask(&socket, number, CONFIG_COMMAND, bind)?;
        let mut params = LOOKED_AT.to_be_bytes().to_vec();
        params.push(COPY_PACKET);
        ask(&socket, number, CONFIG_PARAMS, params)?;
        ask(&socket, number, CONFIG_MAX_LENGTH, max_held.to_be_bytes().to_vec())?;
        sockopt::set_socket_recv_buffer_size_force(&socket, UNREAD)?;
        // What does not fit is dropped and comes again; the error would say no more.
        socket.set_no_enobufs(true)?;
        socket.set_non_blocking(true)?;
        socket.as_fd().try_clone_to_owned()
    }

    /// A bound queue, registered with the current runtime.
    ///
    /// # Errors
    /// No descriptors are left.
    pub(super) fn register(socket: OwnedFd, number: u16) -> io::Result<Self> {
        Ok(Self { socket: Ready::new(socket, Interest::READABLE)?, number })
    }

    /// The next packet that is held. Cancel-safe.
    ///
    /// # Errors
    /// The socket broke.
    pub(super) async fn next(&self) -> io::Result<Held> {
        loop {
            let mut buffer = [0; BUFFER];
            let received = self
                .socket
                .when(Interest::READABLE, |socket| Ok(rustix::io::read(socket, &mut buffer)?))
                .await?;
            if let Some(held) = held(&buffer[..received]) {
                return Ok(held);
            }
        }
    }

    /// Lets this packet and all before it through.
    ///
    /// # Errors
    /// The kernel does not take the verdict.
    pub(super) fn accept_until(&self, id: u32) -> io::Result<()> {
        self.verdict(VERDICT_BATCH, id, Fate::Accept, None)
    }

    /// Drops one packet.
    ///
    /// # Errors
    /// See [`Queue::accept_until`].
    pub(super) fn discard(&self, id: u32) -> io::Result<()> {
        self.verdict(VERDICT, id, Fate::Drop, None)
    }

    /// Lets one packet through.
    ///
    /// # Errors
    /// See [`Queue::accept_until`].
    pub(super) fn accept(&self, id: u32) -> io::Result<()> {
        self.verdict(VERDICT, id, Fate::Accept, None)
    }

    /// Marks one packet as kubelet's and shows it to the rules again.
    ///
    /// # Errors
    /// See [`Queue::accept_until`].
    pub(super) fn mark(&self, id: u32) -> io::Result<()> {
        self.verdict(VERDICT, id, Fate::Repeat, Some(PROBE_MARK))
    }

    fn verdict(&self, kind: u16, id: u32, fate: Fate, mark: Option<u32>) -> io::Result<()> {
        let mut header = (fate as u32).to_be_bytes().to_vec();
        header.extend(id.to_be_bytes());
        let mut attributes = vec![DefaultNla::new(ATTR_VERDICT_HEADER, header)];
        attributes.extend(mark.map(|mark| DefaultNla::new(ATTR_MARK, mark.to_be_bytes().to_vec())));
        let message = message(kind, NLM_F_REQUEST, 0, self.number, &attributes);
        rustix::io::write(self.socket.get(), &message)?;
        Ok(())
    }
}

fn ask(socket: &Socket, queue: u16, attribute: u16, value: Vec<u8>) -> io::Result<()> {
    let attributes = [DefaultNla::new(attribute, value)];
    socket.send(&message(CONFIG, NLM_F_REQUEST | NLM_F_ACK, 0, queue, &attributes), 0)?;
    loop {
        // Packets may come before the answer to the last question. They stay held until the next release, which lets them through
        // unseen: whoever sent them knocks once more.
        if let Some(answer) = acknowledged(&receive(socket)?) {
            return answer;
        }
    }
}

fn held(message: &[u8]) -> Option<Held> {
    if kind(message)? != PACKET {
        return None;
    }
    let (mut id, mut bytes) = (None, Vec::new());
    for attribute in NlasIterator::new(body(message)?) {
        let attribute: NlaBuffer<&[u8]> = attribute.ok()?;
        match attribute.kind() {
            ATTR_PACKET_HEADER => id = field(attribute.value(), 0).map(u32::from_be_bytes),
            ATTR_PAYLOAD => bytes = attribute.value().to_vec(),
            _ => {}
        }
    }
    Some(Held { id: id?, bytes })
}
