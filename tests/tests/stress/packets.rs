//! IPv4 packets as no socket would send them.

use std::net::{Ipv4Addr, SocketAddrV4};

use anyhow::Result;
use etherparse::{IpNumber, Ipv4Header, PacketBuilder, TcpHeader};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

/// `IPPROTO_RAW`: whatever is sent begins with its own IP header.
const RAW: i32 = 255;
const TTL: u8 = 64;

/// Sends to one address and port from the calling thread's network namespace.
pub(crate) struct Sender {
    socket: Socket,
    to: SocketAddrV4,
}

impl Sender {
    /// For packets to `to`.
    pub(crate) fn to(to: SocketAddrV4) -> Result<Self> {
        Ok(Self { socket: Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::from(RAW)))?, to })
    }

    /// A SYN.
    pub(crate) fn syn(&self, from: SocketAddrV4) -> Result<()> {
        self.tcp(from, |tcp| tcp.syn = true)
    }

    /// A TCP segment with the flags that `set` sets, and right checksums.
    pub(crate) fn tcp(&self, from: SocketAddrV4, set: impl FnOnce(&mut TcpHeader)) -> Result<()> {
        let mut tcp = TcpHeader::new(from.port(), self.to.port(), 1, 1024);
        set(&mut tcp);
        let (source, destination) = (from.ip().octets(), self.to.ip().octets());
        let mut bytes = Vec::new();
        PacketBuilder::ipv4(source, destination, TTL).tcp_header(tcp).write(&mut bytes, &[])?;
        self.send(&bytes)
    }

    /// A UDP datagram.
    pub(crate) fn udp(&self, from: SocketAddrV4, payload: &[u8]) -> Result<()> {
        let mut bytes = Vec::new();
        let builder = PacketBuilder::ipv4(from.ip().octets(), self.to.ip().octets(), TTL);
        builder.udp(from.port(), self.to.port()).write(&mut bytes, payload)?;
        self.send(&bytes)
    }

    /// What an IP header calls a packet of this protocol, whatever is in it.
    pub(crate) fn ip(&self, from: Ipv4Addr, protocol: IpNumber, payload: &[u8]) -> Result<()> {
        let length = u16::try_from(payload.len())?;
        let header = Ipv4Header::new(length, TTL, protocol, from.octets(), self.to.ip().octets())?;
        let mut bytes = header.to_bytes().to_vec();
        bytes.extend(payload);
        self.send(&bytes)
    }

    fn send(&self, bytes: &[u8]) -> Result<()> {
        self.socket.send_to(bytes, &SockAddr::from(self.to))?;
        Ok(())
    }
}
