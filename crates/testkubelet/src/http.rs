//! A plain HTTP client for applications in pods: one request, one connection.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use woodfrog_testnode::Node;

/// Port of every test application.
pub const PORT: u16 = 8080;

/// The body of `GET path` from a pod, asked once.
///
/// # Errors
/// Nobody listens, or the answer is not 200.
pub fn get(node: &Node, ip: IpAddr, path: &str) -> Result<String> {
    node.in_network(|| once(ip, path))?
}

/// Asks until the application answers: every millisecond, so that the time of the answer is exact.
///
/// # Errors
/// No answer before `timeout`; the last error.
pub fn wait(node: &Node, ip: IpAddr, path: &str, timeout: Duration) -> Result<String> {
    // One thread in the pod network for all tries: entering it anew costs more than a try.
    node.in_network(|| {
        let deadline = Instant::now() + timeout;
        loop {
            match once(ip, path) {
                Ok(body) => return Ok(body),
                Err(e) if Instant::now() > deadline => {
                    return Err(e.context(format!("GET {path} from {ip}: no answer within {timeout:?}")));
                }
                Err(_) => std::thread::sleep(Duration::from_millis(1)),
            }
        }
    })?
}

fn once(ip: IpAddr, path: &str) -> Result<String> {
    let mut stream =
        std::net::TcpStream::connect_timeout(&SocketAddr::new(ip, PORT), Duration::from_secs(1))?;
    stream.set_read_timeout(Some(Duration::from_secs(20)))?;
    write!(stream, "GET {path} HTTP/1.0\r\nHost: {ip}\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").context("the application hung up without an answer")?;
    let status = head.lines().next().unwrap_or_default();
    if !status.contains(" 200") {
        bail!("GET {path}: {status}");
    }
    Ok(body.trim().to_owned())
}
