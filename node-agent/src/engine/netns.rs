//! Looking around and connecting in a container's network namespace.
//!
//! A thread of its own enters the namespace and ends there, so no other thread ever sees it.

use std::fs::File;
use std::io;
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::time::Duration;

use nix::ifaddrs::getifaddrs;
use nix::sched::{CloneFlags, setns, unshare};

/// Runs `work` in the network namespace of process `pid`.
///
/// # Errors
/// Those of `work`; the process has ended, or the kernel refuses.
pub fn within<T, E>(pid: i32, work: impl FnOnce() -> Result<T, E> + Send) -> Result<T, E>
where
    T: Send,
    E: From<io::Error> + Send,
{
    inside(&of(pid)?, work)
}

/// The network namespace of process `pid`, which lives on with this if the process ends.
///
/// # Errors
/// The process has ended.
pub fn of(pid: i32) -> io::Result<File> {
    File::open(format!("/proc/{pid}/ns/net"))
}

/// Whether process `pid` is in the host's network namespace.
///
/// # Errors
/// The process has ended.
pub fn is_the_hosts(pid: i32) -> io::Result<bool> {
    let namespace = |pid: i32| std::fs::read_link(format!("/proc/{pid}/ns/net"));
    Ok(namespace(pid)? == namespace(1)?)
}

/// Runs `work` in a network namespace.
///
/// # Errors
/// Those of `work`, or the kernel refuses.
pub fn inside<T, E>(namespace: &File, work: impl FnOnce() -> Result<T, E> + Send) -> Result<T, E>
where
    T: Send,
    E: From<io::Error> + Send,
{
    in_thread(move || Ok(setns(namespace, CloneFlags::CLONE_NEWNET)?), work)
}

/// Runs `work` in a new network namespace, which ends with it.
///
/// # Errors
/// Those of `work`, or the kernel refuses.
pub fn within_new<T, E>(work: impl FnOnce() -> Result<T, E> + Send) -> Result<T, E>
where
    T: Send,
    E: From<io::Error> + Send,
{
    in_thread(|| Ok(unshare(CloneFlags::CLONE_NEWNET)?), work)
}

fn in_thread<T, E>(
    enter: impl FnOnce() -> io::Result<()> + Send,
    work: impl FnOnce() -> Result<T, E> + Send,
) -> Result<T, E>
where
    T: Send,
    E: From<io::Error> + Send,
{
    std::thread::scope(|scope| {
        let thread = scope.spawn(move || {
            enter()?;
            work()
        });
        thread
            .join()
            .unwrap_or_else(|_| Err(io::Error::other("a thread in a network namespace panicked").into()))
    })
}

/// The addresses of a container that others can reach: not loopback, not link-local.
///
/// # Errors
/// The process has ended, or the kernel refuses.
pub fn addresses(pid: i32) -> io::Result<Vec<IpAddr>> {
    let mut found: Vec<IpAddr> = within(pid, || {
        let all = getifaddrs().map_err(io::Error::from)?.filter_map(|i| i.address);
        Ok::<_, io::Error>(
            all.filter_map(|a| match (a.as_sockaddr_in(), a.as_sockaddr_in6()) {
                (Some(v4), _) => Some(IpAddr::V4(v4.ip())),
                (_, Some(v6)) => Some(IpAddr::V6(v6.ip())),
                _ => None,
            })
            .collect(),
        )
    })?;
    found.retain(|ip| match ip {
        IpAddr::V4(v4) => !v4.is_loopback() && !v4.is_link_local(),
        IpAddr::V6(v6) => !v6.is_loopback() && !v6.is_unicast_link_local(),
    });
    found.sort();
    Ok(found)
}

/// Connects to an address from inside a container.
///
/// # Errors
/// Nobody listens, or the deadline passes.
pub fn connect(pid: i32, to: SocketAddr, timeout: Duration) -> io::Result<TcpStream> {
    within(pid, || TcpStream::connect_timeout(&to, timeout))
}
