//! The connection to the agent: sought when its socket appears, checked, framed.
//!
//! While there is no connection an inotify watch on the control directory tells when the agent (re)makes its socket;
//! a socket that nobody answers is tried again at growing intervals. While there is one, the watch is closed, for a
//! user may have few of them and the application is the same user.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rustix::fs::{FileType, inotify};
use rustix::io::Errno;
use rustix::net::{self, AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use woodfrog_protocol::frame::{self, Decoder};
use woodfrog_protocol::init::{FromInit, ToInit, from_init::Kind as Say, to_init::Kind as Told};
use woodfrog_protocol::paths;
use woodfrog_sys::pid1::peer;
use woodfrog_sys::scm;

const FIRST_RETRY: Duration = Duration::from_millis(10);
const LAST_RETRY: Duration = Duration::from_secs(60);
/// Where inotify is not to be had.
const BLIND_RETRY: Duration = Duration::from_secs(1);

/// The connection, or the search for it.
pub(crate) struct Link {
    dir: PathBuf,
    stream: Option<OwnedFd>,
    watch: Option<OwnedFd>,
    decoder: Decoder,
    descriptors: VecDeque<OwnedFd>,
    retry_at: Option<Instant>,
    retry_after: Duration,
}

impl Link {
    /// A search in the control directory `dir`.
    pub(crate) fn new(dir: PathBuf) -> Self {
        Self {
            dir,
            stream: None,
            watch: None,
            decoder: Decoder::default(),
            descriptors: VecDeque::new(),
            retry_at: None,
            retry_after: FIRST_RETRY,
        }
    }

    /// What to poll for reading, and whether it is the connection.
    pub(crate) fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        self.stream.as_ref().or(self.watch.as_ref()).map(AsFd::as_fd)
    }

    /// Whether there is a connection.
    pub(crate) fn is_up(&self) -> bool {
        self.stream.is_some()
    }

    /// When [`Self::seek`] wants to be called though nothing happened.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.retry_at
    }

    /// Tries to connect, if it is time or the directory has changed. Whether a connection was made.
    pub(crate) fn seek(&mut self, now: Instant, first: bool) -> bool {
        if self.is_up() {
            return false;
        }
        let changed = self.drain_watch();
        if !first && !changed && self.retry_at.is_none_or(|at| now < at) {
            return false;
        }
        if changed {
            self.retry_after = FIRST_RETRY;
        }
        // Watch first: a socket that appears after a failed attempt is not missed.
        if self.watch.is_none() {
            self.watch = watch(&self.dir).ok();
        }
        match connect(&self.dir) {
            Ok(stream) => {
                (self.stream, self.watch, self.retry_at) = (Some(stream), None, None);
                true
            }
            Err(Errno::NOENT) => {
                self.retry_at = self.watch.is_none().then_some(now + BLIND_RETRY);
                false
            }
            Err(_) => {
                self.back_off(now);
                false
            }
        }
    }

    fn back_off(&mut self, now: Instant) {
        self.retry_at = Some(now + self.retry_after);
        self.retry_after = (self.retry_after * 2).min(LAST_RETRY);
    }

    /// The agent speaks our language: the next search begins at short intervals.
    pub(crate) fn welcomed(&mut self) {
        self.retry_after = FIRST_RETRY;
    }

    /// Gives up the connection and searches anew, a little later.
    pub(crate) fn drop_connection(&mut self, now: Instant) {
        self.stream = None;
        self.decoder = Decoder::default();
        self.descriptors.clear();
        self.watch = watch(&self.dir).ok();
        self.back_off(now);
    }

    /// Reads what has come. False: the connection is of no use any more, once what [`Self::next`] has is used up.
    pub(crate) fn receive(&mut self) -> bool {
        let Some(stream) = &self.stream else { return false };
        let mut buffer = [0; 4096];
        loop {
            match scm::receive(stream.as_fd(), &mut buffer) {
                Ok(received) => {
                    self.descriptors.extend(received.descriptors);
                    if received.bytes == 0 {
                        return false;
                    }
                    self.decoder.push(&buffer[..received.bytes]);
                }
                Err(Errno::AGAIN) => return true,
                Err(Errno::INTR) => {}
                Err(_) => return false,
            }
        }
    }

    /// The next whole message; kinds of later releases are passed over.
    ///
    /// # Errors
    /// What came is not ours.
    pub(crate) fn next(&mut self) -> Result<Option<Told>, frame::FrameError> {
        loop {
            match self.decoder.pop::<ToInit>()? {
                Some(ToInit { kind: Some(kind) }) => return Ok(Some(kind)),
                Some(ToInit { kind: None }) => {}
                None => return Ok(None),
            }
        }
    }

    /// The descriptor that came first, if it is what the message at hand brings: a socket, or something else. (Several
    /// messages may come at once, and one may lack its descriptor.)
    pub(crate) fn take_descriptor(&mut self, is_socket: bool) -> Option<OwnedFd> {
        let stat = rustix::fs::fstat(self.descriptors.front()?).ok()?;
        if FileType::from_raw_mode(stat.st_mode).is_socket() != is_socket {
            return None;
        }
        self.descriptors.pop_front()
    }

    /// Sends without waiting. False: there is no connection, or the agent does not read.
    pub(crate) fn send(&mut self, what: Say) -> bool {
        let Some(stream) = &self.stream else { return false };
        let Ok(bytes) = frame::encode(&FromInit { kind: Some(what) }) else { return false };
        scm::send(stream.as_fd(), &bytes, &[]) == Ok(bytes.len())
    }

    /// Forgets the events of the watch. Whether there were any.
    fn drain_watch(&mut self) -> bool {
        let Some(watch) = &self.watch else { return false };
        let mut buffer = [0; 4096];
        let mut any = false;
        while rustix::io::read(watch, &mut buffer).is_ok_and(|n| n > 0) {
            any = true;
        }
        any
    }
}

fn watch(dir: &std::path::Path) -> Result<OwnedFd, Errno> {
    let watch = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK)?;
    // ATTRIB: the agent opens the socket to all users after it has made it.
    let events = inotify::WatchFlags::CREATE | inotify::WatchFlags::MOVED_TO | inotify::WatchFlags::ATTRIB;
    inotify::add_watch(&watch, dir, events)?;
    Ok(watch)
}

/// A connection to the agent, which must be root: nobody else can have put a socket there, but that is for free.
fn connect(dir: &std::path::Path) -> Result<OwnedFd, Errno> {
    let address = SocketAddrUnix::new(dir.join(paths::INIT_SOCKET))?;
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let stream = net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    net::connect(&stream, &address)?;
    if peer::uid(stream.as_fd()).ok() != Some(0) {
        return Err(Errno::PERM);
    }
    Ok(stream)
}
