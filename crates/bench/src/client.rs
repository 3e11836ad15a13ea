//! Asking applications: for the first answer, and for many.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Barrier};
use std::thread;
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
        thread::spawn(move || {
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
        match ask_once(SocketAddr::new(ip, PORT), CONNECT_TIMEOUT) {
            Ok(()) => return Ok(now_us()),
            Err(_) if given_up.load(Ordering::Relaxed) => bail!("nobody waits any more"),
            Err(e) if Instant::now() > deadline => {
                return Err(e.context(format!("no answer from {ip}:{PORT} within {timeout:?}")));
            }
            Err(_) => thread::sleep(PAUSE),
        }
    }
}

fn ask_once(address: SocketAddr, connect_timeout: Duration) -> Result<()> {
    let mut stream = TcpStream::connect_timeout(&address, connect_timeout)?;
    stream.set_read_timeout(Some(ANSWER_TIMEOUT))?;
    write!(stream, "GET / HTTP/1.0\r\nHost: {address}\r\nConnection: close\r\n\r\n")?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    let status = answer.split(|b| *b == b'\r').next().unwrap_or_default();
    if !status.ends_with(b" 200 OK") && !status.windows(5).any(|w| w == b" 200 ") {
        bail!("the answer is {:?}", String::from_utf8_lossy(status));
    }
    Ok(())
}

/// Milliseconds from the SYN to the whole answer to `GET /`, which is 200; from the calling thread's network namespace.
pub(crate) fn answer(address: SocketAddr) -> Result<f64> {
    let start = now_us();
    ask_once(address, ANSWER_TIMEOUT)?;
    Ok(ms(start, now_us()))
}

/// Runs one client for each of these in the node's network, all from the same moment on; what became of each.
pub(crate) fn together<T: Sync, R: Send>(
    node: &Node,
    each: &[T],
    client: impl Fn(&T) -> Result<R> + Sync,
) -> Result<Vec<Result<R>>> {
    let start = Barrier::new(each.len());
    let run = &|one| {
        start.wait();
        client(one)
    };
    let all = node.in_network(|| {
        thread::scope(|scope| {
            let clients: Vec<_> = each.iter().map(|one| scope.spawn(move || run(one))).collect();
            let ended = clients.into_iter().map(thread::ScopedJoinHandle::join);
            ended.map(|ended| ended.unwrap_or_else(|_| bail!("a client panicked"))).collect()
        })
    })?;
    Ok(all)
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
