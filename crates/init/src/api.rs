//! The application's HTTP API on a unix socket: `POST /checkpoint`, `GET /generation`.
//!
//! The agent binds the socket and hands the listener over, since nothing in the container may write to the control
//! directory. Each connection carries one request and is closed at once, for a dump must not find it open.

use std::io::{ErrorKind, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::{Duration, Instant};

use crate::http::{self, Refusal, Request};

/// Connections at a time; more wait in the listener's backlog.
pub(crate) const MAX_CLIENTS: usize = 4;
/// For a client to send its request.
const CLIENT_DEADLINE: Duration = Duration::from_secs(5);

struct Client {
    stream: UnixStream,
    head: Vec<u8>,
    until: Instant,
}

/// What came of reading a client.
enum Said {
    Whole(Result<Request, Refusal>),
    Part,
    Bye,
}

/// A request whose client waits for the answer.
pub(crate) struct Asked {
    stream: UnixStream,
    request: Result<Request, Refusal>,
}

/// What the answers depend on.
pub(crate) struct Facts<'a> {
    /// Generation of a thawed application.
    pub(crate) generation: u64,
    /// Digest of its image.
    pub(crate) image: &'a str,
    /// Whether a checkpoint can be asked for.
    pub(crate) can_checkpoint: bool,
}

/// The listener and its clients.
#[derive(Default)]
pub(crate) struct Api {
    listener: Option<UnixListener>,
    clients: [Option<Client>; MAX_CLIENTS],
}

impl Api {
    /// Serves a listener from now on.
    pub(crate) fn listen(&mut self, listener: OwnedFd) {
        let listener = UnixListener::from(listener);
        self.listener = listener.set_nonblocking(true).is_ok().then_some(listener);
    }

    /// Whether there is a listener.
    pub(crate) fn is_up(&self) -> bool {
        self.listener.is_some()
    }

    /// The listener, while there is room for a client.
    pub(crate) fn listener(&self) -> Option<BorrowedFd<'_>> {
        self.listener.as_ref().filter(|_| self.clients.iter().any(Option::is_none)).map(AsFd::as_fd)
    }

    /// The connections.
    pub(crate) fn clients(&self) -> [Option<BorrowedFd<'_>>; MAX_CLIENTS] {
        std::array::from_fn(|i| self.clients[i].as_ref().map(|client| client.stream.as_fd()))
    }

    /// When the first connection is too old.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.clients.iter().flatten().map(|client| client.until).min()
    }

    /// Accepts and reads what can be without waiting: the next request that is whole. Drops who is late or has gone.
    pub(crate) fn next(&mut self, now: Instant) -> Option<Asked> {
        for slot in &mut self.clients {
            if slot.is_none() {
                *slot = self.listener.as_ref().and_then(|listener| accept(listener, now));
            }
            let Some(client) = slot else { continue };
            match client.read() {
                Said::Whole(request) => {
                    let stream = slot.take()?.stream;
                    return Some(Asked { stream, request });
                }
                Said::Part if now < client.until => {}
                Said::Part | Said::Bye => *slot = None,
            }
        }
        None
    }

    /// Closes all connections, those that wait to be accepted too.
    pub(crate) fn close_clients(&mut self) {
        self.clients = Default::default();
        while self.listener.as_ref().is_some_and(|listener| listener.accept().is_ok()) {}
    }
}

fn accept(listener: &UnixListener, now: Instant) -> Option<Client> {
    let (stream, _) = listener.accept().ok()?;
    stream.set_nonblocking(true).ok()?;
    Some(Client { stream, head: Vec::new(), until: now + CLIENT_DEADLINE })
}

impl Client {
    fn read(&mut self) -> Said {
        let mut buffer = [0; 512];
        loop {
            match self.stream.read(&mut buffer) {
                Ok(0) => return Said::Bye,
                Ok(n) => self.head.extend_from_slice(&buffer[..n]),
                Err(e) if e.kind() == ErrorKind::WouldBlock => return Said::Part,
                Err(_) => return Said::Bye,
            }
            if let Some(request) = http::parse(&self.head) {
                return Said::Whole(request);
            }
        }
    }
}

impl Asked {
    /// Answers and closes. Whether a checkpoint was asked for and can be had.
    pub(crate) fn answer(mut self, facts: &Facts<'_>) -> bool {
        let checkpoint = self.request == Ok(Request::Checkpoint) && facts.can_checkpoint;
        let response = match self.request {
            Ok(Request::Checkpoint) if facts.can_checkpoint => http::response("202 Accepted", "", ""),
            Ok(Request::Checkpoint) => http::response("503 Service Unavailable", "Retry-After: 5\r\n", ""),
            Ok(Request::Generation) => {
                let is_plain = |b: u8| b.is_ascii_alphanumeric() || b"+._-:".contains(&b);
                let image = if facts.image.bytes().all(is_plain) { facts.image } else { "" };
                let body = format!("{{\"generation\":{},\"image\":\"{image}\"}}\n", facts.generation);
                http::response("200 OK", "", &body)
            }
            Err(refusal) => refusal.response(),
        };
        // It fits into an empty socket's buffer; a client that has gone does not matter.
        let _ = self.stream.write_all(response.as_bytes());
        // What is left unread would reset the connection before the client has read the answer.
        let mut rest = [0; 4096];
        for _ in 0..64 {
            if !self.stream.read(&mut rest).is_ok_and(|n| n > 0) {
                break;
            }
        }
        checkpoint
    }
}
