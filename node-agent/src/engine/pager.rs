//! The pager of a thaw: a process in the container's cgroups that brings the application's memory while it runs already.
//!
//! ```text
//!   place taken (cgroups) ─► started with its plan ─► listens for CRIU ─► serves ─► ends by itself
//!                             (before the thaw)                          (whether or not the agent lives)
//! ```
//!
//! See [`woodfrog_protocol::pager`] for who tells whom what, and `crates/pager` for how it serves.

use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use prost::Message;
use rustix::fs::{MemfdFlags, Mode, OFlags};
use rustix::net::{AddressFamily, SendFlags, SocketFlags, SocketType};
use rustix::pipe::PipeFlags;
use rustix::process::Pid;
use rustix::thread::CapabilitySet;
use tokio::task::spawn_blocking;
use tracing::warn;
use woodfrog_criu::images::Checkpoint;
use woodfrog_protocol::pager::{Plan, RESTORED, Report, WorkingSet};
use woodfrog_sys::process::{Child, Place, Program, Waiting};
use woodfrog_sys::{scheduler, userfault};

use super::page_store::Stored;
use super::preparation::Image;
use super::thaw::{ThawError, failed};
use super::{cgroups, page_plan, standing};

/// Where CRIU looks for it, in its work directory.
const SOCKET: &str = "lazy-pages.socket";
/// The most that is read of what a pager says.
const MAX_REPORT: u64 = 16 << 20;

/// The pager's program, if this node can run it.
#[derive(Debug)]
pub struct PagerProgram(OwnedFd);

impl PagerProgram {
    /// Opens the program, if the kernel has what it needs.
    ///
    /// # Errors
    /// Why every thaw will copy all memory first.
    pub fn open(path: &Path) -> Result<Arc<Self>, PagerUnavailable> {
        userfault::probe().map_err(PagerUnavailable::Kernel)?;
        let opened = rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty());
        let opened = opened.map_err(|errno| PagerUnavailable::Program { path: path.to_owned(), errno })?;
        Ok(Arc::new(Self(opened)))
    }

    /// Runs it with the argument `fill`, or `fill-ahead` if nobody waits, and these descriptors, in the cgroup of the page store, so that its pages are charged to that. Blocks
    /// until it has ended.
    ///
    /// # Errors
    /// What it says, or why it could not be started.
    pub fn fill(&self, given: [BorrowedFd<'_>; 3], ahead: bool) -> Result<(), String> {
        let run = || {
            let (errors, complained) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
            let null = rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
            let mut program = Program::new(self.0.as_fd(), [null.as_fd(), null.as_fd(), complained.as_fd()]);
            program.argument(c"woodfrog-pager".to_owned());
            program.argument(if ahead { c"fill-ahead" } else { c"fill" }.to_owned());
            for descriptor in given {
                program.descriptor(descriptor);
            }
            let groups = cgroups::of_page_store();
            let place = groups.iter().fold(Place::default(), |place, group| place.cgroup(group.as_fd()));
            let child = program.start(&place).map_err(io::Error::other)?;
            drop(complained);
            let said = all(errors)?;
            Ok::<_, io::Error>((child.wait()?, said))
        };
        let (status, said) = run().map_err(|e| e.to_string())?;
        if status.exit_status() == Some(0) {
            return Ok(());
        }
        let said = String::from_utf8_lossy(&said).trim().to_owned();
        Err(if said.is_empty() { format!("{status:?}") } else { said })
    }
}

/// Why there is no pager on this node.
#[derive(Debug, thiserror::Error)]
pub enum PagerUnavailable {
    /// The kernel.
    #[error("the kernel has no userfaultfd with events: {0}")]
    Kernel(rustix::io::Errno),
    /// The program.
    #[error("cannot open {}: {errno}", path.display())]
    Program {
        /// Where it should be.
        path: PathBuf,
        /// The kernel's word.
        errno: rustix::io::Errno,
    },
}

/// What a pager needs to share memory.
#[derive(Clone, Debug)]
pub struct Sharing {
    /// The image's memory.
    pub stored: Arc<Stored>,
    /// Where the pager is to be asked how things stand (see [`standing`]).
    pub standing: PathBuf,
}

/// What a pager is to bring.
#[derive(Debug)]
pub struct Planned {
    plan: Plan,
    /// Where CRIU connects to, which may be before the pager runs.
    listener: UnixListener,
}

impl Planned {
    /// What of an image can come later, what is `wanted` first of it first; if that is not known well, the pager finds out more. `work` is to be
    /// CRIU's work directory. None if the image has nothing that can.
    ///
    /// # Errors
    /// The directory cannot be written to.
    pub fn new(
        images: &Checkpoint,
        wanted: WorkingSet,
        share: bool,
        work: &Path,
    ) -> io::Result<Option<Self>> {
        let plan = page_plan::plan(images, wanted, share);
        if plan.processes.is_empty() {
            return Ok(None);
        }
        Ok(Some(Self { plan, listener: UnixListener::bind(work.join(SOCKET))? }))
    }
}

/// A pager that waits for CRIU, or serves already. If this is dropped before the init has its end of the socket, the pager
/// ends; it is reaped in any case.
#[derive(Debug)]
pub struct Pager(Option<Running>);

#[derive(Debug)]
struct Running {
    /// The end that is the init's: when it is closed, the pager ends.
    init: OwnedFd,
    /// If memory is shared: is told when everything is mapped, and says when the threads may run.
    sharing: Option<OwnedFd>,
    child: Child,
    report: OwnedFd,
    errors: OwnedFd,
}

impl Pager {
    /// Starts a pager in a place with the cgroups of the container whose PID 1 is process `init`.
    ///
    /// # Errors
    /// The process cannot be started.
    pub async fn start(
        program: Arc<PagerProgram>,
        place: Waiting,
        image: Arc<Image>,
        init: i32,
    ) -> Result<Option<Self>, ThawError> {
        let start = move || {
            let planned = image.planned.as_ref();
            planned.map(|planned| start(&program, place, planned, &image, init)).transpose()
        };
        spawn_blocking(start).await?.map_err(failed("start the pager"))
    }

    /// Tells it that CRIU has mapped everything, and runs no thread before [`Pager::ready`]. That is waited for if memory is shared, so it has its turn then.
    ///
    /// # Errors
    /// The pager has ended.
    pub fn restored(&self) -> Result<(), ThawError> {
        let sharing = self.0.as_ref().and_then(|running| running.sharing.as_ref());
        let Some(sharing) = sharing else { return Ok(()) };
        self.take_turns();
        rustix::net::send(sharing, RESTORED, SendFlags::NOSIGNAL).map(drop).map_err(|e| ended(e.into()))
    }

    /// From now on it is a process like others. Until the threads run, it works where nothing else wants to: CRIU, the init and the agent wake each other
    /// up, and some kernels have them wait for a busy CPU where another one is idle.
    pub fn take_turns(&self) {
        if let Some(pid) = self.pid() {
            // It may have ended.
            let _ = scheduler::set_idle(pid, false);
        }
    }

    /// Waits until the threads may run.
    ///
    /// # Errors
    /// The pager has ended: the init kills what was restored.
    pub async fn ready(&mut self) -> Result<(), ThawError> {
        let Some(sharing) = self.0.as_mut().and_then(|running| running.sharing.take()) else { return Ok(()) };
        let read = spawn_blocking(move || {
            let mut byte = [0];
            File::from(sharing).read_exact(&mut byte)
        });
        read.await?.map_err(ended)
    }

    /// Its PID, unless it has ended.
    pub fn pid(&self) -> Option<Pid> {
        self.0.as_ref().and_then(|running| Pid::from_raw(running.child.pid()))
    }

    /// The socket for the init.
    pub fn for_init(&self) -> Option<BorrowedFd<'_>> {
        self.0.as_ref().map(|running| running.init.as_fd())
    }

    /// Waits until all memory is there: what it did, or why it did not. One that shares memory works on, and is reaped when it ends.
    pub async fn report(mut self) -> Result<Report, String> {
        let Some(Running { init, child, report, errors, .. }) = self.0.take() else {
            return Ok(Report::default());
        };
        drop(init);
        let read = spawn_blocking(move || all(report)).await.map_err(|e| e.to_string())?;
        let report = read.map_err(|e| e.to_string())?;
        // A thread, since it ends in its own time.
        let end = move || (child.wait(), all(errors).unwrap_or_default());
        if !report.is_empty() {
            std::thread::spawn(move || {
                let (_, said) = end();
                if !said.is_empty() {
                    warn!("a pager: {}", String::from_utf8_lossy(&said).trim());
                }
            });
            return Report::decode(&*report).map_err(|e| e.to_string());
        }
        let (status, said) = spawn_blocking(end).await.map_err(|e| e.to_string())?;
        let said = String::from_utf8_lossy(&said).trim().to_owned();
        if said.is_empty() && status.as_ref().is_ok_and(|status| status.exit_status() == Some(0)) {
            return Ok(Report::default());
        }
        Err(if said.is_empty() { format!("{status:?}") } else { said })
    }
}

impl Drop for Pager {
    fn drop(&mut self) {
        if let Some(Running { init, child, .. }) = self.0.take() {
            drop(init);
            // A thread, since it ends in its own time, and there may be no runtime left.
            std::thread::spawn(move || child.wait());
        }
    }
}

fn ended(source: io::Error) -> ThawError {
    failed("share memory: the pager has ended")(source)
}

fn start(
    program: &PagerProgram,
    place: Waiting,
    planned: &Planned,
    image: &Image,
    init: i32,
) -> io::Result<Pager> {
    let Planned { plan, listener } = planned;
    let (pages, sharing) = (image.prepared.directory(), image.sharing.as_ref());
    let pair =
        || rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None);
    let (ours, theirs) = pair()?;
    let mut file = File::from(rustix::fs::memfd_create("woodfrog-plan", MemfdFlags::CLOEXEC)?);
    file.write_all(&plan.encode_to_vec())?;
    file.rewind()?;
    let (report, said) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
    let (errors, complained) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
    let null = rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
    // Without it all that is recorded counts as wanted first.
    let counters = plan.record.then(|| File::open(format!("/proc/{init}/net/netstat")).ok()).flatten();
    let counters = counters.as_ref().map_or(null.as_fd(), AsFd::as_fd);
    let mut program = Program::new(program.0.as_fd(), [null.as_fd(), said.as_fd(), complained.as_fd()]);
    program.argument(c"woodfrog-pager".to_owned());
    // In the order of `woodfrog_protocol::pager::Descriptor`.
    for given in [file.as_fd(), listener.as_fd(), theirs.as_fd(), pages, counters] {
        program.descriptor(given);
    }
    let (agent, its) = pair()?;
    let asked = sharing.map(|sharing| standing::listen(&sharing.standing)).transpose()?;
    let lock = sharing.map(|sharing| sharing.stored.lock());
    if let (Some(asked), Some(lock)) = (&asked, &lock)
        && plan.shares()
    {
        for given in [its.as_fd(), asked.as_fd(), lock.as_fd()] {
            program.descriptor(given);
        }
    }
    let child = place.run(&program).map_err(io::Error::other)?;
    let sharing = plan.shares().then_some(agent);
    let pager = Pager(Some(Running { init: ours, sharing, child, report, errors }));
    let can_end = rustix::thread::capabilities(None)?.effective.contains(CapabilitySet::SYS_NICE);
    if let Some(pid) = pager.pid().filter(|_| can_end) {
        // It may have ended.
        let _ = scheduler::set_idle(pid, true);
    }
    Ok(pager)
}

fn all(pipe: OwnedFd) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::from(pipe).take(MAX_REPORT).read_to_end(&mut bytes)?;
    Ok(bytes)
}
