//! Clients of pods, in the node's network namespace.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use woodfrog_testkubelet::http::PORT;
use woodfrog_tests::{STARTUP, World};

/// Runs something in the node's network, as clients on the node do.
pub(crate) fn on_node<T: Send>(world: &World<'_>, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    world.node.in_network(work)?
}

/// How many SYNs clients on the node had to send again: none but those that were dropped on their way.
pub(crate) fn syns_again(world: &World<'_>) -> Result<u64> {
    on_node(world, || {
        let text = std::fs::read_to_string("/proc/thread-self/net/netstat")?;
        let mut lines = text.lines().filter_map(|line| line.strip_prefix("TcpExt: "));
        let (names, values) = (lines.next().context("TcpExt")?, lines.next().context("its values")?);
        let mut pairs = names.split(' ').zip(values.split(' '));
        let (_, value) = pairs.find(|(name, _)| *name == "TCPSynRetrans").context("TCPSynRetrans")?;
        Ok(value.parse()?)
    })
}

/// A connection to a pod, which is given time.
pub(crate) fn connect(address: SocketAddr) -> Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&address, STARTUP).context("connect")?;
    stream.set_read_timeout(Some(STARTUP))?;
    Ok(stream)
}

/// The body of `GET path` on a connection of its own, asked exactly once.
pub(crate) fn get(ip: IpAddr, path: &str) -> Result<String> {
    Ok(get_from(SocketAddr::new(ip, PORT), path)?.0)
}

/// The same, and the client's end of the connection.
pub(crate) fn get_and_from(ip: IpAddr, path: &str) -> Result<(String, SocketAddr)> {
    get_from(SocketAddr::new(ip, PORT), path)
}

/// Asks until there is an answer.
pub(crate) fn wait(address: SocketAddr) -> Result<String> {
    let deadline = Instant::now() + STARTUP;
    loop {
        match get_from(address, "/") {
            Err(_) if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(10)),
            answer => return Ok(answer?.0),
        }
    }
}

fn get_from(address: SocketAddr, path: &str) -> Result<(String, SocketAddr)> {
    let mut stream = connect(address)?;
    let from = stream.local_addr()?;
    write!(stream, "GET {path} HTTP/1.0\r\nHost: {address}\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, body) =
        answer.split_once("\r\n\r\n").with_context(|| format!("half an answer: {answer:?}"))?;
    ensure!(head.contains(" 200 "), "{answer:?}");
    Ok((body.trim().to_owned(), from))
}

/// A connection that is kept between requests, to a server that tells the length of its answers.
pub(crate) struct Kept {
    stream: TcpStream,
    ip: IpAddr,
}

impl Kept {
    /// Connects from the node.
    pub(crate) fn connect(world: &World<'_>, ip: IpAddr) -> Result<Self> {
        Ok(Self { stream: on_node(world, || connect(SocketAddr::new(ip, PORT)))?, ip })
    }

    /// The body of `GET path`.
    pub(crate) fn get(&mut self, path: &str) -> Result<String> {
        write!(self.stream, "GET {path} HTTP/1.1\r\nHost: {}\r\n\r\n", self.ip)?;
        let head = head(&mut self.stream)?;
        ensure!(head.contains(" 200 "), "{head}");
        let length = head.lines().find_map(|line| line.strip_prefix("Content-Length: "));
        let mut body = vec![0; length.with_context(|| head.clone())?.parse()?];
        self.stream.read_exact(&mut body)?;
        Ok(String::from_utf8(body)?)
    }
}

/// The head of an HTTP answer; what follows is left in the stream.
pub(crate) fn head(stream: &mut TcpStream) -> Result<String> {
    let mut head = String::new();
    let mut byte = [0];
    while !head.ends_with("\r\n\r\n") {
        stream.read_exact(&mut byte).with_context(|| format!("half an answer: {head:?}"))?;
        head.push(char::from(byte[0]));
    }
    Ok(head)
}
