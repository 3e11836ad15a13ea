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
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use rustix::pipe::PipeFlags;
use rustix::process::WaitIdStatus;
use tokio::io::Interest;
use tokio::task::spawn_blocking;
use woodfrog_criu::images::messages::memory::Pagemap;
use woodfrog_criu::images::{Checkpoint, PAGE_SIZE};
use woodfrog_protocol::pager::{Plan, Process, Report, Run, Wanted};
use woodfrog_sys::process::{Child, Program, Waiting};
use woodfrog_sys::ready::Ready;
use woodfrog_sys::userfault;

use super::prepared::Prepared;
use super::thaw::{ThawError, failed};

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

/// A pager that waits for CRIU, or serves already. If this is dropped before the init has its end of the socket, the pager
/// ends; it is reaped in any case.
#[derive(Debug)]
pub struct Pager(Option<Running>);

#[derive(Debug)]
struct Running {
    /// The end that is the init's: when it is closed, the pager ends.
    init: OwnedFd,
    child: Child,
    report: OwnedFd,
    errors: OwnedFd,
}

impl Pager {
    /// Starts a pager in a place with the container's cgroups; `work` is to be CRIU's work directory. What is `wanted` first is
    /// brought first; if that is not known, the pager finds it out. None if the image has nothing that can come later.
    ///
    /// # Errors
    /// The process cannot be started.
    pub async fn start(
        program: Arc<PagerProgram>,
        place: Waiting,
        prepared: Arc<Prepared>,
        wanted: Option<Vec<Wanted>>,
        work: PathBuf,
    ) -> Result<Option<Self>, ThawError> {
        spawn_blocking(move || {
            let plan = plan(&prepared.images, wanted);
            if plan.processes.is_empty() {
                return Ok(None);
            }
            start(&program, place, &plan, prepared.directory(), &work).map(Some)
        })
        .await?
        .map_err(failed("start the pager"))
    }

    /// The socket for the init.
    pub fn for_init(&self) -> Option<BorrowedFd<'_>> {
        self.0.as_ref().map(|running| running.init.as_fd())
    }

    /// Waits for its end: what it did, or why it did not.
    pub async fn ended(mut self) -> Result<Report, String> {
        let Some(Running { init, child, report, errors }) = self.0.take() else {
            return Ok(Report::default());
        };
        drop(init);
        let read = spawn_blocking(move || Ok::<_, io::Error>((all(report)?, all(errors)?)));
        let status = async {
            let child = Ready::new(child, Interest::READABLE)?;
            child
                .when(Interest::READABLE, |child| child.try_wait()?.ok_or(io::ErrorKind::WouldBlock.into()))
                .await
        };
        let (read, status) = tokio::join!(read, status);
        let (report, errors) = read.map_err(|e| e.to_string())?.map_err(|e| e.to_string())?;
        if status.as_ref().is_ok_and(|status: &WaitIdStatus| status.exit_status() == Some(0)) {
            return Report::decode(&*report).map_err(|e| e.to_string());
        }
        let said = String::from_utf8_lossy(&errors).trim().to_owned();
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

fn start(
    program: &PagerProgram,
    place: Waiting,
    plan: &Plan,
    pages: BorrowedFd<'_>,
    work: &Path,
) -> io::Result<Pager> {
    let listener = UnixListener::bind(work.join(SOCKET))?;
    let (ours, theirs) =
        rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
    let mut file = File::from(rustix::fs::memfd_create("woodfrog-plan", MemfdFlags::CLOEXEC)?);
    file.write_all(&plan.encode_to_vec())?;
    file.rewind()?;
    let (report, said) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
    let (errors, complained) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
    let null = rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
    let mut program = Program::new(program.0.as_fd(), [null.as_fd(), said.as_fd(), complained.as_fd()]);
    program.argument(c"woodfrog-pager".to_owned());
    // In the order of `woodfrog_protocol::pager::Descriptor`.
    for given in [file.as_fd(), listener.as_fd(), theirs.as_fd(), pages] {
        program.descriptor(given);
    }
    let child = place.run(&program).map_err(io::Error::other)?;
    Ok(Pager(Some(Running { init: ours, child, report, errors })))
}

/// What of each process's memory CRIU leaves to a page server: the runs that the dump marked as such.
fn plan(images: &Checkpoint, wanted: Option<Vec<Wanted>>) -> Plan {
    let mut plan = Plan { processes: Vec::new(), record: wanted.is_none() };
    let wanted = wanted.unwrap_or_default();
    for task in &images.tasks {
        let Some(body) = &task.body else { continue };
        let mut offset = 0;
        let mut runs = Vec::new();
        for run in &body.pages.runs {
            let length = run.pages() * PAGE_SIZE;
            if run.flags.unwrap_or(0) & Pagemap::LAZY != 0 {
                runs.push(Run { start: run.vaddr, length, offset });
            }
            offset += length;
        }
        let Ok(pid) = i32::try_from(task.pid()) else { continue };
        let first = wanted.iter().find(|wanted| wanted.pid == pid);
        let first = first.map(|wanted| wanted.spans.clone()).unwrap_or_default();
        plan.processes.push(Process { pid, file: body.pages.file_name(), length: offset, runs, first });
    }
    if plan.processes.iter().all(|process| process.runs.is_empty()) {
        plan.processes.clear();
    }
    plan
}

fn all(pipe: OwnedFd) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::from(pipe).take(MAX_REPORT).read_to_end(&mut bytes)?;
    Ok(bytes)
}
