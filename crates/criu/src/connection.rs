//! The two ends of a TCP socket of a container, found by its inode in `/proc/PID/net/tcp`. CRIU's log has only the inode.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsRawFd as _, BorrowedFd};

/// Local and remote address of a socket in the network namespace of the process that `pidfd` names.
pub(crate) fn addresses(pidfd: BorrowedFd<'_>, inode: u64) -> Option<(SocketAddr, SocketAddr)> {
    let info = fs::read_to_string(format!("/proc/self/fdinfo/{}", pidfd.as_raw_fd())).ok()?;
    let pid = info.lines().find_map(|line| line.strip_prefix("Pid:"))?.trim();
    ["tcp", "tcp6"].iter().find_map(|table| {
        let table = fs::read_to_string(format!("/proc/{pid}/net/{table}")).ok()?;
        table.lines().find_map(|line| ends(line, inode))
    })
}

/// A line reads `0: 0100007F:1F90 0100007F:C350 01 …`, the inode being the tenth field.
fn ends(line: &str, inode: u64) -> Option<(SocketAddr, SocketAddr)> {
    let fields: Vec<&str> = line.split_whitespace().collect();
    (fields.get(9)?.parse() == Ok(inode)).then_some(())?;
    Some((address(fields[1])?, address(fields[2])?))
}

/// Addresses are 32-bit words in the machine's byte order, ports plain hexadecimal (`net/ipv4/tcp_ipv4.c`).
fn address(text: &str) -> Option<SocketAddr> {
    let (ip, port) = text.split_once(':')?;
    (ip.len() % 8 == 0).then_some(())?;
    let words: Vec<[u8; 4]> = (0..ip.len() / 8)
        .map(|word| u32::from_str_radix(ip.get(word * 8..word * 8 + 8)?, 16).ok().map(u32::to_ne_bytes))
        .collect::<Option<_>>()?;
    let ip: IpAddr = match words.as_slice() {
        [word] => Ipv4Addr::from(*word).into(),
        [_, _, _, _] => Ipv6Addr::from(<[u8; 16]>::try_from(words.concat()).ok()?).to_canonical(),
        _ => return None,
    };
    Some(SocketAddr::new(ip, u16::from_str_radix(port, 16).ok()?))
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::AsFd as _;
    use std::os::linux::fs::MetadataExt as _;

    use rustix::process::{PidfdFlags, getpid, pidfd_open};

    use super::*;

    #[test]
    fn both_ends_of_a_connection_are_found_by_its_inode() {
        for local in ["127.0.0.1:0", "[::1]:0"] {
            let Ok(listener) = TcpListener::bind(local) else { continue };
            let stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let link = format!("/proc/self/fd/{}", stream.as_raw_fd());
            let inode = fs::metadata(link).unwrap().st_ino();
            let pidfd = pidfd_open(getpid(), PidfdFlags::empty()).unwrap();
            let expected = (stream.local_addr().unwrap(), stream.peer_addr().unwrap());
            assert_eq!(addresses(pidfd.as_fd(), inode), Some(expected));
        }
    }

    #[test]
    fn an_address_that_makes_no_sense_is_none() {
        assert_eq!(address("0100007F:xyz"), None);
        assert_eq!(address("0100007F0000:1F90"), None);
        assert_eq!(address("é100007F:1F90"), None);
    }
}
