//! Clients of pods, in the node's network namespace.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpStream};

use anyhow::{Context as _, Result, ensure};
use woodfrog_testkubelet::http::PORT;
use woodfrog_tests::{STARTUP, World};

/// Runs something in the node's network, as clients on the node do.
pub(crate) fn on_node<T: Send>(world: &World<'_>, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    world.node.in_network(work)?
}

/// A connection to a pod, which is given time.
pub(crate) fn connect(address: SocketAddr) -> Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&address, STARTUP).context("connect")?;
    stream.set_read_timeout(Some(STARTUP))?;
    Ok(stream)
}

/// The body of `GET path` on a connection of its own, asked exactly once.
pub(crate) fn get(ip: IpAddr, path: &str) -> Result<String> {
    let mut stream = connect(SocketAddr::new(ip, PORT))?;
    write!(stream, "GET {path} HTTP/1.0\r\nHost: {ip}\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, body) =
        answer.split_once("\r\n\r\n").with_context(|| format!("half an answer: {answer:?}"))?;
    ensure!(head.contains(" 200 "), "{answer:?}");
    Ok(body.trim().to_owned())
}
