//! Looking around and connecting in a container's network namespace.
//!
//! A thread of its own enters the namespace and ends there, so no other thread ever sees it.

use std::fs::File;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::time::Duration;

use nix::ifaddrs::getifaddrs;
use nix::sched::{CloneFlags, setns};

/// Runs `work` in the network namespace of process `pid`.
pub(super) fn within<T: Send>(pid: i32, work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    let namespace = File::open(format!("/proc/{pid}/ns/net"))?;
    std::thread::scope(|scope| {
        let thread = scope.spawn(move || {
            setns(namespace, CloneFlags::CLONE_NEWNET)?;
            work()
        });
        thread.join().unwrap_or_else(|_| Err(io::Error::other("a thread in a network namespace panicked")))
    })
}

/// The addresses of a container that others can reach: not loopback, not link-local.
///
/// # Errors
/// The process has ended, or the kernel refuses.
pub fn addresses(pid: i32) -> io::Result<Vec<IpAddr>> {
    let mut found: Vec<IpAddr> = within(pid, || {
        let all = getifaddrs()?.filter_map(|i| i.address);
        Ok(all
            .filter_map(|a| match (a.as_sockaddr_in(), a.as_sockaddr_in6()) {
                (Some(v4), _) => Some(IpAddr::V4(v4.ip())),
                (_, Some(v6)) => Some(IpAddr::V6(v6.ip())),
                _ => None,
            })
            .collect())
    })?;
    found.retain(|ip| match ip {
        IpAddr::V4(v4) => !v4.is_loopback() && !v4.is_link_local(),
        IpAddr::V6(v6) => !v6.is_loopback() && !v6.is_unicast_link_local(),
    });
    found.sort();
    Ok(found)
}

/// Connects to a port on loopback inside a container.
///
/// # Errors
/// Nobody listens, or the deadline passes.
pub fn connect(pid: i32, port: u16, timeout: Duration) -> io::Result<TcpStream> {
    within(pid, || TcpStream::connect_timeout(&SocketAddr::from((Ipv4Addr::LOCALHOST, port)), timeout))
}
