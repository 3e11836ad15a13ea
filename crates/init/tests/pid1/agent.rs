//! The agent's side of the protocol.

use std::io::{IoSlice, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use woodfrog_protocol::frame::{self, Decoder};
use woodfrog_protocol::init::{
    Commit, Done, Empty, FromInit, Hello, Reason, Start, Started, State, ToInit, Welcome,
};
use woodfrog_protocol::init::{from_init::Kind as Say, to_init::Kind as Told};

use crate::sandbox::{Entered, PATIENCE, eventually};

/// A listening agent.
pub(crate) struct Agent(UnixListener);

impl Agent {
    /// Makes the socket, over one that a dead agent left.
    pub(crate) fn listen(dir: &Path) -> Self {
        let path = dir.join("agent.sock");
        let _ = std::fs::remove_file(&path);
        let listener = UnixListener::bind(&path).unwrap();
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o666)).unwrap();
        listener.set_nonblocking(true).unwrap();
        Self(listener)
    }

    /// The next connection of init, and what it says first.
    pub(crate) fn accept(&self) -> (Connection, Hello) {
        let mut stream = None;
        eventually("init connects", || {
            stream = self.0.accept().ok();
            stream.is_some()
        });
        let (stream, _) = stream.unwrap();
        stream.set_nonblocking(false).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut connection = Connection { stream, decoder: Decoder::default() };
        match connection.next() {
            Some(Say::Hello(hello)) => (connection, hello),
            other => panic!("first was {other:?}"),
        }
    }

    /// Accepts a waiting init and tells it to wait for a thaw.
    pub(crate) fn welcome_waiting(&self) -> Connection {
        let (connection, hello) = self.accept();
        assert_eq!((hello.state(), hello.application_pid), (State::Waiting, 0));
        connection.welcome(Start::Thaw, None);
        connection
    }
}

/// A connection of init.
pub(crate) struct Connection {
    stream: UnixStream,
    decoder: Decoder,
}

impl Connection {
    /// What init says next; none: it hung up.
    pub(crate) fn next(&mut self) -> Option<Say> {
        loop {
            if let Some(FromInit { kind }) = self.decoder.pop().unwrap() {
                return Some(kind.unwrap());
            }
            let mut buffer = [0; 512];
            match self.stream.read(&mut buffer) {
                Ok(0) => return None,
                Ok(n) => self.decoder.push(&buffer[..n]),
                Err(e) if e.kind() == std::io::ErrorKind::ConnectionReset => return None,
                Err(e) => panic!("init says nothing: {e}"),
            }
        }
    }

    /// The next thing said is that the command was started.
    pub(crate) fn started(&mut self) -> Started {
        match self.next() {
            Some(Say::Started(started)) => started,
            other => panic!("no start but {other:?}"),
        }
    }

    /// The next thing said is a refusal.
    pub(crate) fn refused(&mut self) -> String {
        match self.next() {
            Some(Say::LeaseRefused(reason)) => reason.message,
            other => panic!("no refusal but {other:?}"),
        }
    }

    /// Says something.
    pub(crate) fn say(&self, told: Told) {
        self.send(told, None);
    }

    /// Answers Hello.
    pub(crate) fn welcome(&self, start: Start, listener: Option<BorrowedFd<'_>>) {
        self.send(Told::Welcome(Welcome { start: start.into() }), listener);
    }

    /// Asks for the lease and hands CRIU's pidfd over.
    pub(crate) fn request_lease(&self, worker: &Entered) {
        self.send(Told::RequestLease(Empty {}), worker.pidfd.as_ref().map(AsFd::as_fd));
    }

    /// Gets the lease.
    pub(crate) fn lease(&mut self, worker: &Entered) {
        self.request_lease(worker);
        assert_eq!(self.next(), Some(Say::LeaseGranted(Empty {})));
    }

    /// Commits a root.
    pub(crate) fn commit(&mut self, pid: i32) {
        self.say(Told::Commit(Commit { pid }));
        assert_eq!(self.next(), Some(Say::Committed(Empty {})));
    }

    /// Says that the restored tree runs.
    pub(crate) fn done(&self, generation: u64) {
        self.say(Told::Done(Done { generation, image_digest: "sha256:abc".into() }));
    }

    /// Gives up the thaw.
    pub(crate) fn start_cold(&self, reason: &str) {
        self.say(Told::StartCold(Reason { message: reason.into() }));
    }

    /// Begins a dump.
    pub(crate) fn begin_dump(&mut self) {
        self.say(Told::BeginDump(Empty {}));
        assert_eq!(self.next(), Some(Say::DumpBegun(Empty {})));
    }

    /// Says what is not of the protocol.
    pub(crate) fn garbage(&self) {
        (&self.stream).write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
    }

    fn send(&self, told: Told, descriptor: Option<BorrowedFd<'_>>) {
        let bytes = frame::encode(&ToInit { kind: Some(told) }).unwrap();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let descriptors: Vec<_> = descriptor.into_iter().collect();
        if !descriptors.is_empty() {
            assert!(control.push(SendAncillaryMessage::ScmRights(&descriptors)));
        }
        sendmsg(&self.stream, &[IoSlice::new(&bytes)], &mut control, SendFlags::NOSIGNAL).unwrap();
    }
}
