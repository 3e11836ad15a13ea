//! Waiting for an application's first answer.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use tokio::sync::oneshot;
use woodfrog_testkubelet::http::PORT;
use woodfrog_testnode::Node;

use crate::clock::{ms, now_us};

/// A packet that is dropped while a restore holds its network lock must not cost the second until TCP sends it again.
const CONNECT_TIMEOUT: Duration = Duration::from_millis(10);
const PAUSE: Duration = Duration::from_micros(500);
const ANSWER_TIMEOUT: Duration = Duration::from_secs(20);

/// A client in the node's network that asks an address for `/` until it answers with 200. It begins at once, so
/// that nothing of it has still to be set up when the application is there.
#[derive(Debug)]
pub(crate) struct FirstAnswer {
    answered: oneshot::Receiver<Result<u64>>,
    given_up: Arc<AtomicBool>,
}

impl FirstAnswer {
    /// Begins to ask.
    pub(crate) fn from(node: &Node, ip: IpAddr, timeout: Duration) -> Self {
        let (send, answered) = oneshot::channel();
        let given_up = Arc::new(AtomicBool::new(false));
        let (node, stop) = (node.clone(), given_up.clone());
        std::thread::spawn(move || {
            let answer = node.in_network(|| ask(ip, timeout, &stop));
            _ = send.send(answer.unwrap_or_else(|e| Err(e.into())));
        });
        Self { answered, given_up }
    }

    /// When the answer was there whole, by [`now_us`].
    pub(crate) async fn at(mut self) -> Result<u64> {
        (&mut self.answered).await.context("the client's thread ended")?
    }
}

impl Drop for FirstAnswer {
    fn drop(&mut self) {
        self.given_up.store(true, Ordering::Relaxed);
    }
}

fn ask(ip: IpAddr, timeout: Duration, given_up: &AtomicBool) -> Result<u64> {
    let deadline = Instant::now() + timeout;
    loop {
        match once(ip) {
            Ok(()) => return Ok(now_us()),
            Err(_) if given_up.load(Ordering::Relaxed) => bail!("nobody waits any more"),
            Err(e) if Instant::now() > deadline => {
                return Err(e.context(format!("no answer from {ip}:{PORT} within {timeout:?}")));
            }
            Err(_) => std::thread::sleep(PAUSE),
        }
    }
}

fn once(ip: IpAddr) -> Result<()> {
    let mut stream = TcpStream::connect_timeout(&SocketAddr::new(ip, PORT), CONNECT_TIMEOUT)?;
    stream.set_read_timeout(Some(ANSWER_TIMEOUT))?;
    write!(stream, "GET / HTTP/1.0\r\nHost: {ip}\r\nConnection: close\r\n\r\n")?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    let status = answer.split(|b| *b == b'\r').next().unwrap_or_default();
    if !status.ends_with(b" 200 OK") && !status.windows(5).any(|w| w == b" 200 ") {
        bail!("the answer is {:?}", String::from_utf8_lossy(status));
    }
    Ok(())
}

/// Milliseconds from the SYN to the first byte of the answer to `GET /`, from the calling thread's network namespace.
pub(crate) fn first_byte(address: SocketAddr) -> Result<f64> {
    let start = now_us();
    let mut stream = TcpStream::connect_timeout(&address, ANSWER_TIMEOUT)?;
    stream.set_read_timeout(Some(ANSWER_TIMEOUT))?;
    write!(stream, "GET / HTTP/1.0\r\nHost: {address}\r\nConnection: close\r\n\r\n")?;
    stream.read_exact(&mut [0])?;
    let ms = ms(start, now_us());
    stream.read_to_end(&mut Vec::new())?;
    Ok(ms)
}
