//! What is read of a held packet: who sends it to whom.

use std::net::{IpAddr, SocketAddr};

use etherparse::{LaxNetSlice, LaxSlicedPacket, TransportSlice};

/// The ends of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Packet {
    /// Who sends it.
    pub(super) from: SocketAddr,
    /// Where it goes.
    pub(super) to: SocketAddr,
    /// It is TCP, not UDP.
    pub(super) tcp: bool,
}

impl Packet {
    /// Reads the headers of an IP packet, of which the end may be missing. None: not TCP or UDP, or malformed.
    pub(super) fn parse(bytes: &[u8]) -> Option<Self> {
        let packet = LaxSlicedPacket::from_ip(bytes).ok()?;
        let (from, to): (IpAddr, IpAddr) = match packet.net.as_ref()? {
            LaxNetSlice::Ipv4(ip) => {
                (ip.header().source_addr().into(), ip.header().destination_addr().into())
            }
            LaxNetSlice::Ipv6(ip) => {
                (ip.header().source_addr().into(), ip.header().destination_addr().into())
            }
            _ => return None,
        };
        let (source, destination, tcp) = match packet.transport.as_ref()? {
            TransportSlice::Tcp(tcp) => (tcp.source_port(), tcp.destination_port(), true),
            TransportSlice::Udp(udp) => (udp.source_port(), udp.destination_port(), false),
            _ => return None,
        };
        Some(Self { from: SocketAddr::new(from, source), to: SocketAddr::new(to, destination), tcp })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use etherparse::PacketBuilder;

    #[test]
    fn ends_are_read_from_headers_alone() {
        let builder = PacketBuilder::ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64).tcp(1234, 8080, 7, 1000).syn();
        let mut bytes = Vec::new();
        builder.write(&mut bytes, &[0; 100]).unwrap();
        let expected = Packet {
            from: "10.0.0.1:1234".parse().unwrap(),
            to: "10.0.0.2:8080".parse().unwrap(),
            tcp: true,
        };
        assert_eq!(Packet::parse(&bytes), Some(expected));
        assert_eq!(Packet::parse(&bytes[..48]), Some(expected), "the payload may be cut off");
        assert_eq!(Packet::parse(&bytes[..30]), None, "the ports may not");
        let builder = PacketBuilder::ipv6([1; 16], [2; 16], 64).udp(53, 5353);
        let mut bytes = Vec::new();
        builder.write(&mut bytes, b"x").unwrap();
        let packet = Packet::parse(&bytes).unwrap();
        assert!(!packet.tcp && packet.to.is_ipv6() && packet.to.port() == 5353);
    }

    #[test]
    fn what_is_no_packet_is_none() {
        for bytes in [&[][..], &[0x45], &[0xff; 64], &[0x45; 20]] {
            assert_eq!(Packet::parse(bytes), None);
        }
    }
}
