//! The agent's end of the connection with a container's init.
//!
//! An init connects to the socket in its control directory. Whoever connects is believed to be the container's
//! init only if the kernel says that it is PID 1 of a PID namespace, and the runtime that this is the
//! container's process.

use std::io::{self, IoSlice};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::time::Duration;

use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use tokio::io::{AsyncReadExt, Interest};
use tokio::net::UnixStream;
use tokio::time::timeout;
use woodfrog_protocol::frame::{self, FrameError};
use woodfrog_protocol::init::{FromInit, Hello, ToInit, from_init, to_init};

/// How long an init may take to answer. It has nothing else to do.
const ANSWER: Duration = Duration::from_secs(2);

/// Why a conversation with an init ended.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// The connection broke.
    #[error("the container's init hung up: {0}")]
    Io(#[from] io::Error),
    /// It speaks something else.
    #[error("the container's init sent what is no message: {0}")]
    Frame(#[from] FrameError),
    /// It said something that was not to be said now.
    #[error("the container's init said {got} where {expected} was expected")]
    Unexpected {
        /// What was said.
        got: String,
        /// What should have been.
        expected: &'static str,
    },
    /// It said nothing.
    #[error("the container's init did not answer {0} within {ANSWER:?}")]
    Silent(&'static str),
    /// The peer of the socket is not the container's init.
    #[error("{0}")]
    Impostor(String),
}

/// A connection with an init.
#[derive(Debug)]
pub struct Link {
    stream: UnixStream,
    decoder: frame::Decoder,
    /// PID of the init on the host.
    pub pid: i32,
}

impl Link {
    /// Takes over an accepted connection and hears the init's `Hello`.
    ///
    /// # Errors
    /// The peer is not PID 1 of a PID namespace, or does not say hello.
    pub async fn accept(stream: UnixStream) -> Result<(Self, Hello), LinkError> {
        let pid = stream.peer_cred()?.pid().unwrap_or(0);
        if innermost_pid(pid) != Some(1) {
            return Err(LinkError::Impostor(format!(
                "process {pid} connected to an init's socket but is not PID 1 of a container"
            )));
        }
        let mut link = Self { stream, decoder: frame::Decoder::default(), pid };
        match link.answer("connect").await? {
            from_init::Kind::Hello(hello) => Ok((link, hello)),
            other => Err(unexpected(&other, "Hello")),
        }
    }

    /// Sends a message, with a descriptor or without.
    ///
    /// # Errors
    /// The connection broke.
    pub async fn send(&self, kind: to_init::Kind, fd: Option<BorrowedFd<'_>>) -> Result<(), LinkError> {
        let bytes = frame::encode(&ToInit { kind: Some(kind) })?;
        let raw = fd.map(|fd| [fd.as_raw_fd()]);
        let rights: Vec<_> = raw.iter().map(|fds| ControlMessage::ScmRights(fds)).collect();
        let mut sent = 0;
        while sent < bytes.len() {
            let rights = if sent == 0 { &rights[..] } else { &[] };
            sent += self
                .stream
                .async_io(Interest::WRITABLE, || {
                    let socket = self.stream.as_fd().as_raw_fd();
                    Ok(sendmsg::<()>(
                        socket,
                        &[IoSlice::new(&bytes[sent..])],
                        rights,
                        MsgFlags::MSG_NOSIGNAL,
                        None,
                    )?)
                })
                .await?;
        }
        Ok(())
    }

    /// What the init says next, whenever that is. Cancel-safe.
    ///
    /// # Errors
    /// The connection broke or carries something else.
    pub async fn next(&mut self) -> Result<from_init::Kind, LinkError> {
        loop {
            if let Some(FromInit { kind: Some(kind) }) = self.decoder.pop()? {
                return Ok(kind);
            }
            let mut buffer = [0; 512];
            match self.stream.read(&mut buffer).await? {
                0 => return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
                n => self.decoder.push(&buffer[..n]),
            }
        }
    }

    /// What the init says next, soon.
    async fn answer(&mut self, to: &'static str) -> Result<from_init::Kind, LinkError> {
        timeout(ANSWER, self.next()).await.map_err(|_| LinkError::Silent(to))?
    }

    /// Asks for the lease; `worker` is CRIU's pidfd. `Ok(Some(reason))`: refused.
    ///
    /// # Errors
    /// The connection broke or the init says something else.
    pub async fn request_lease(&mut self, worker: BorrowedFd<'_>) -> Result<Option<String>, LinkError> {
        self.send(to_init::Kind::RequestLease(Default::default()), Some(worker)).await?;
        match self.answer("RequestLease").await? {
            from_init::Kind::LeaseGranted(_) => Ok(None),
            from_init::Kind::LeaseRefused(reason) => Ok(Some(reason.message)),
            other => Err(unexpected(&other, "LeaseGranted")),
        }
    }

    /// Tells the root of the restored tree, before it runs.
    ///
    /// # Errors
    /// The connection broke or the init says something else.
    pub async fn commit(&mut self, pid: i32) -> Result<(), LinkError> {
        self.send(to_init::Kind::Commit(woodfrog_protocol::init::Commit { pid }), None).await?;
        match self.answer("Commit").await? {
            from_init::Kind::Committed(_) => Ok(()),
            other => Err(unexpected(&other, "Committed")),
        }
    }

    /// Makes the init hold back signals for a dump.
    ///
    /// # Errors
    /// The connection broke or the init says something else.
    pub async fn begin_dump(&mut self) -> Result<(), LinkError> {
        self.send(to_init::Kind::BeginDump(Default::default()), None).await?;
        loop {
            match self.answer("BeginDump").await? {
                from_init::Kind::DumpBegun(_) => return Ok(()),
                // Said before it heard us.
                from_init::Kind::CheckpointRequested(_) => {}
                other => return Err(unexpected(&other, "DumpBegun")),
            }
        }
    }
}

fn unexpected(got: &from_init::Kind, expected: &'static str) -> LinkError {
    LinkError::Unexpected { got: format!("{got:?}"), expected }
}

/// PID of a process in its own PID namespace.
pub fn innermost_pid(pid: i32) -> Option<i32> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    status.lines().find_map(|l| l.strip_prefix("NSpid:"))?.split_whitespace().last()?.parse().ok()
}
