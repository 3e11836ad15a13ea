//! Internet addresses as CRIU keeps them: the kernel's 32-bit words in network byte order, read as little-endian.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::messages::file::File;

/// `AF_INET`.
const INET: u32 = 2;
/// `AF_INET6`.
const INET6: u32 = 10;
/// `TCP_LISTEN`, and `TCP_CLOSE` which is also a datagram socket that is bound.
const LISTEN: u32 = 10;
const CLOSE: u32 = 7;

/// Moves what is bound to the address of the pod that was frozen to the address of the one that is thawed into.
///
/// Listeners and unconnected sockets are moved; connections are not (they are closed, or their address is kept).
/// Sockets on the unspecified or on a loopback address need no move and get none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rebind {
    from: IpAddr,
    to: IpAddr,
}

impl Rebind {
    /// A move within one family; `None` if the families differ.
    pub fn new(from: IpAddr, to: IpAddr) -> Option<Self> {
        (from.is_ipv4() == to.is_ipv4()).then_some(Self { from, to })
    }

    /// Rewrites the entry if it is such a socket. Tells whether it was. Of an IPv6 socket that is bound to the old
    /// IPv4 address (`::ffff:a.b.c.d`), the mapped part is moved.
    pub fn apply(&self, file: &mut File) -> bool {
        let Some(isk) = &mut file.isk else { return false };
        if !matches!(isk.state, LISTEN | CLOSE) {
            return false;
        }
        let Some(bound) = decode(isk.family, &isk.src_addr) else { return false };
        if bound == self.from {
            isk.src_addr = encode(self.to);
        } else if let (IpAddr::V6(bound), IpAddr::V4(from), IpAddr::V4(to)) = (bound, self.from, self.to)
            && bound == from.to_ipv6_mapped()
        {
            isk.src_addr = encode(to.to_ipv6_mapped().into());
        } else {
            return false;
        }
        true
    }
}

pub(super) fn decode(family: u32, words: &[u32]) -> Option<IpAddr> {
    match (family, words) {
        (INET, [word]) => Some(Ipv4Addr::from(word.to_le_bytes()).into()),
        (INET6, [a, b, c, d]) => {
            let mut bytes = [0; 16];
            for (part, word) in bytes.chunks_exact_mut(4).zip([a, b, c, d]) {
                part.copy_from_slice(&word.to_le_bytes());
            }
            Some(Ipv6Addr::from(bytes).into())
        }
        _ => None,
    }
}

fn encode(address: IpAddr) -> Vec<u32> {
    let word = |bytes: &[u8]| u32::from_le_bytes(bytes.try_into().expect("four bytes a word"));
    match address {
        IpAddr::V4(v4) => vec![word(&v4.octets())],
        IpAddr::V6(v6) => v6.octets().chunks_exact(4).map(word).collect(),
    }
}
