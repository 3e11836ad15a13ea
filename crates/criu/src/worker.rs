//! One `criu swrk` process: started where the container is, asked one thing, and waited for.
//!
//! A worker serves a single request; [`Worker::dump`] and [`Worker::restore`] use it up. Its place in a container can be
//! taken before there is anything to ask ([`Seat`]), which takes what that costs out of the way. A worker that is
//! dropped gets EOF on its socket, which it understands as a refusal, and is reaped in the background. It must be
//! reaped: a zombie in a PID namespace holds up the end of the whole container.

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::Arc;

use prost::Message as _;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SendFlags, SocketFlags, SocketType};
use rustix::process::WaitIdStatus;
use tokio::io::Interest;
use woodfrog_sys::process::{Child, HELPER_PIDS, Place, Program, SpawnError};
use woodfrog_sys::ready::Ready;

use crate::rpc::{Request, Response};
use crate::seat::{Moved, Seat};
use crate::toolchain::Toolchain;

/// CRIU's log in the work directory.
pub const LOG_FILE: &str = "criu.log";

/// The largest message that CRIU sends; its longest field is an error message of 1 KiB.
const MAX_MESSAGE: usize = 64 << 10;

/// A descriptor that a worker was given, by the number that it has there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Given(RawFd);

impl Given {
    pub(crate) fn number(self) -> RawFd {
        self.0
    }

    /// The path by which the worker opens it anew.
    pub(crate) fn path(self) -> String {
        format!("/proc/self/fd/{}", self.0)
    }
}

/// Where a worker runs.
#[derive(Debug)]
enum Where {
    /// With the caller.
    Here,
    /// In the namespaces of a container.
    Container(Arc<OwnedFd>),
    /// In a container and its cgroups, taken before.
    Seat(Seat),
}

/// What a worker is started with.
#[derive(Debug)]
pub struct Setup {
    place: Where,
    last_pid: Option<i32>,
    real_ids: Option<(u32, u32)>,
    light: bool,
    descriptors: Vec<OwnedFd>,
    work: OwnedFd,
}

/// Descriptors 0 to 2 are the worker's own.
const FIRST_GIVEN: RawFd = 3;

impl Setup {
    /// `work` is a directory that CRIU may write to: its log, its statistics, the page server's socket.
    pub fn new(work: OwnedFd) -> Self {
        Self {
            place: Where::Here,
            last_pid: None,
            real_ids: None,
            light: false,
            descriptors: Vec::new(),
            work,
        }
    }

    /// Runs it in the namespaces of a container, named by a pidfd of its PID 1.
    pub fn container(mut self, pid1: Arc<OwnedFd>) -> Self {
        self.place = Where::Container(pid1);
        self
    }

    /// Runs it in a seat: what it restores lives where the seat is, in the container's cgroups.
    pub fn seat(mut self, seat: Seat) -> Self {
        self.place = Where::Seat(seat);
        self
    }

    /// Sets the container's PID cursor first, so that CRIU's own children get the PIDs after `last`.
    pub fn last_pid(mut self, last: i32) -> Self {
        self.last_pid = Some(last);
        self
    }

    /// Real user and group of CRIU, effective root. Only for machines where [`crate::can_override_resource_limits`]
    /// says no: there the kernel tells the resource limits of a process to its own user alone.
    pub fn real_ids(mut self, uid: u32, gid: u32) -> Self {
        self.real_ids = Some((uid, gid));
        self
    }

    /// Starts sooner if it is `light`, and can then do nothing but restore what has no connections ([`crate::Connections::Close`]).
    pub fn light(mut self, light: bool) -> Self {
        self.light = light;
        self
    }

    /// Hands over a descriptor: an image directory, the container's standard streams, and so on.
    pub fn give(&mut self, fd: OwnedFd) -> Given {
        self.descriptors.push(fd);
        Given(FIRST_GIVEN + self.descriptors.len() as RawFd - 1)
    }

    /// Blocks; returns our end of the socket, the process, PID 1 of its container, and its move into its cgroups.
    #[expect(clippy::type_complexity, reason = "used once, at once")]
    fn start(
        &mut self,
        toolchain: &Toolchain,
    ) -> Result<(OwnedFd, Child, Option<Arc<OwnedFd>>, Option<Moved>), WorkerError> {
        let null = rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
        // What CRIU says before it has opened its log goes there too; it opens the same file.
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::APPEND | OFlags::CLOEXEC;
        let early = rustix::fs::openat(&self.work, LOG_FILE, flags, Mode::RUSR | Mode::WUSR)?;
        let (ours, theirs) =
            rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        rustix::io::ioctl_fionbio(&ours, true)?;

        let mut program = Program::new(toolchain.program(), [null.as_fd(), null.as_fd(), early.as_fd()]);
        for fd in &self.descriptors {
            program.descriptor(fd.as_fd());
        }
        let mut arguments = Vec::new();
        if let Some((binary, libraries)) = toolchain.loaded(self.light) {
            let libraries: Vec<_> =
                libraries.iter().map(|library| Given(program.descriptor(library.as_fd())).path()).collect();
            let binary = Given(program.descriptor(binary)).path();
            arguments.extend(["ld.so".into(), "--library-path".into(), libraries.join(":"), binary]);
        } else {
            arguments.push("criu".into());
        }
        // A work directory by descriptor in the request would be looked up by our PID, which is 0 in the container.
        let work = Given(program.descriptor(self.work.as_fd())).path();
        let nothing = Given(program.descriptor(toolchain.nothing())).path();
        let socket = program.descriptor(theirs.as_fd()).to_string();
        // CRIU would take options, plugins and programs from the container's file system, and they would run as root.
        arguments.extend(["--no-default-config".into(), "--libdir".into(), nothing.clone()]);
        arguments.extend(["--work-dir".into(), work, "swrk".into(), socket]);
        for argument in arguments {
            program.argument(c_string(argument));
        }
        program.variable(c_string(format!("PATH={nothing}")));
        program.variable(c_string(format!("GNUTLS_SYSTEM_PRIORITY_FILE={nothing}/none")));
        // It encrypts nothing here, and need not get ready to.
        program.variable(c"GNUTLS_NO_IMPLICIT_INIT=1".to_owned());
        if !toolchain.uses_breakpoints() {
            // `FI_NO_BREAKPOINTS`: CRIU stops its tasks at each system call instead.
            program.variable(c"CRIU_FAULT=130".to_owned());
        }
        if let Some(last) = self.last_pid {
            program.last_pid(last);
        }
        if let Some((uid, gid)) = self.real_ids {
            program.real_ids(uid, gid);
        }
        let (child, container, moved) = match std::mem::replace(&mut self.place, Where::Here) {
            Where::Here => (program.start(&Place::default())?, None, None),
            Where::Container(pid1) => {
                let child = program.start(&Place::default().inside(pid1.as_fd(), HELPER_PIDS))?;
                (child, Some(pid1), None)
            }
            Where::Seat(seat) => {
                let (child, pid1, moved) = seat.run(&program)?;
                (child, Some(pid1), moved)
            }
        };
        Ok((ours, child, container, moved))
    }
}

fn c_string(text: String) -> CString {
    // Numbers and constants only.
    CString::new(text).unwrap_or_default()
}

/// Why a worker could not be started or spoken to.
#[derive(Debug, thiserror::Error)]
pub enum WorkerError {
    /// It did not start.
    #[error("cannot start CRIU: {0}")]
    Spawn(#[from] SpawnError),
    /// A descriptor or socket for it could not be made.
    #[error("cannot prepare CRIU's descriptors: {0}")]
    Prepare(#[from] Errno),
    /// The socket failed.
    #[error("cannot speak to CRIU: {0}")]
    Socket(#[from] io::Error),
    /// It sent something that is no message.
    #[error("CRIU sent a message that cannot be read: {0}")]
    Message(#[from] prost::DecodeError),
}

/// A running `criu swrk`.
#[derive(Debug)]
pub struct Worker {
    socket: Ready<OwnedFd>,
    /// Taken when it has been reaped.
    child: Option<Ready<Child>>,
    work: OwnedFd,
    container: Option<Arc<OwnedFd>>,
    moved: Option<Moved>,
    pid: i32,
}

impl Worker {
    /// Starts CRIU. Takes a few milliseconds.
    pub async fn spawn(toolchain: Arc<Toolchain>, mut setup: Setup) -> Result<Self, WorkerError> {
        let started = tokio::task::spawn_blocking(move || {
            let (socket, child, container, moved) = setup.start(&toolchain)?;
            Ok::<_, WorkerError>((socket, child, setup.work, container, moved))
        });
        let (socket, child, work, container, moved) = started.await.map_err(io::Error::other)??;
        let pid = child.pid();
        let child = Ready::new(child, Interest::READABLE)?;
        let socket = Ready::new(socket, Interest::READABLE | Interest::WRITABLE)?;
        Ok(Self { socket, child: Some(child), work, container, moved, pid })
    }

    /// Its PID on the node.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// Its pidfd, for whoever has to know when it has ended.
    pub fn pidfd(&self) -> Option<BorrowedFd<'_>> {
        self.child.as_ref().map(|child| child.get().as_fd())
    }

    /// Returns when it has ended; it is reaped by whoever waits for it, or drops it.
    pub async fn ended(&self) {
        if let Some(child) = &self.child {
            let _ = child.when(Interest::READABLE, |_| Ok(())).await;
        }
    }

    /// A pidfd of PID 1 of the container that it works for.
    pub(crate) fn container(&self) -> Option<BorrowedFd<'_>> {
        self.container.as_ref().map(|container| container.as_fd())
    }

    /// Waits until it is in its cgroups, all of them.
    pub(crate) async fn moved(&mut self) -> Result<(), WorkerError> {
        match self.moved.take() {
            Some(moved) => Ok(moved.await.map_err(io::Error::other)??),
            None => Ok(()),
        }
    }

    /// What CRIU has written to its log so far.
    pub(crate) fn log(&self) -> String {
        let file = rustix::fs::openat(&self.work, LOG_FILE, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty());
        let bytes = file.map_err(io::Error::from).and_then(|file| {
            let mut bytes = Vec::new();
            io::Read::read_to_end(&mut File::from(file), &mut bytes).map(|_| bytes)
        });
        String::from_utf8_lossy(&bytes.unwrap_or_default()).into_owned()
    }

    pub(crate) async fn send(&self, request: &Request) -> Result<(), WorkerError> {
        let bytes = request.encode_to_vec();
        let send = |fd: &OwnedFd| rustix::net::send(fd, &bytes, SendFlags::NOSIGNAL).map_err(io::Error::from);
        match self.socket.when(Interest::WRITABLE, send).await {
            // A worker that has died: `receive` tells it.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
            sent => Ok(sent.map(drop)?),
        }
    }

    /// The next message and the descriptors that came with it; none when CRIU has closed its end.
    pub(crate) async fn receive(&self) -> Result<Option<(Response, Vec<OwnedFd>)>, WorkerError> {
        let mut buffer = vec![0; MAX_MESSAGE];
        let received = self
            .socket
            .when(Interest::READABLE, |fd| Ok(woodfrog_sys::scm::receive(fd.as_fd(), &mut buffer)?))
            .await;
        match received {
            // A worker that dies with a message unread leaves a reset.
            Err(error) if error.raw_os_error() == Some(Errno::CONNRESET.raw_os_error()) => Ok(None),
            Err(error) => Err(error.into()),
            Ok(received) if received.bytes == 0 => Ok(None),
            Ok(received) => Ok(Some((Response::decode(&buffer[..received.bytes])?, received.descriptors))),
        }
    }

    /// Waits until the process has ended and reaps it. The socket stays open.
    pub(crate) async fn wait(&mut self) -> Result<Option<WaitIdStatus>, WorkerError> {
        let Some(child) = &self.child else { return Ok(None) };
        let status = child
            .when(Interest::READABLE, |child| child.try_wait()?.ok_or(io::ErrorKind::WouldBlock.into()))
            .await?;
        self.child = None;
        Ok(Some(status))
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        if let Some(child) = self.child.take().map(Ready::into_inner) {
            // The socket closes after this, and CRIU ends by itself; a thread, since there may be no runtime left.
            std::thread::spawn(move || child.wait());
        }
    }
}
