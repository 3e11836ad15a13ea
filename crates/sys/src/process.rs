//! Programs started inside the namespaces and cgroups of another process, with a PID of our choice.
//!
//! Entering a mount or PID namespace is a matter of a whole process, and a program with threads cannot do it
//! for itself. So [`Place::enter`] goes through a process in between that lives for less than a millisecond:
//!
//! ```text
//!   caller (any thread of a program with many)
//!     │ clone(VM|VFORK|FILES)            the caller's thread sleeps until the go-between has gone
//!     └─► go-between: setns(pidfd, …)
//!           │ clone3(PARENT|PIDFD|INTO_CGROUP, set_tid)   so the new process is the *caller's* child
//!           └─► child: closes all it has but two descriptors, and waits
//!                 │ [`Waiting::run`]: what to do, and descriptors, through a socket
//!                 └─► ns_last_pid, ids, execveat ──► program
//! ```
//!
//! To enter cgroups of version 1 costs up to tens of milliseconds, so a place can be entered before it is known what is
//! to run there, and the move into them can go on beside what runs ([`Place::begin`]). Whatever fails on the way is reported by a close-on-exec pipe as a step and an errno.

mod child;
mod fork_server;
mod order;

use std::ffi::CString;
use std::fs::File;
use std::ops::RangeInclusive;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::fs::{Mode, OFlags};
use rustix::io::{Errno, FdFlags};
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use rustix::process::{WaitId, WaitIdOptions, WaitIdStatus};

use child::Plan;
pub use child::Step;
pub use fork_server::start_fork_server;

/// PIDs that a container's init leaves free for helpers: the kernel hands out none below 300 once its cursor
/// has passed that (`RESERVED_PIDS` in the kernel's `kernel/pid.c`).
pub const HELPER_PIDS: RangeInclusive<i32> = 2..=299;

/// The namespaces of another process that a new one enters. User, cgroup and time namespaces are never entered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Namespaces {
    /// Mount, network, IPC, UTS and PID.
    All,
    /// Only PID: files and network stay the caller's.
    Pid,
}

impl Namespaces {
    const fn flags(self) -> libc::c_int {
        let all = libc::CLONE_NEWNS | libc::CLONE_NEWNET | libc::CLONE_NEWIPC | libc::CLONE_NEWUTS;
        match self {
            Self::All => all | libc::CLONE_NEWPID,
            Self::Pid => libc::CLONE_NEWPID,
        }
    }
}

/// Why a process was not started. Nothing of it is left behind.
#[derive(Debug, thiserror::Error)]
pub enum SpawnError {
    /// Every PID of the range belongs to a process already.
    #[error("all PIDs from {} to {} are taken in the container; end the helpers that hold them", .0.start(), .0.end())]
    PidsTaken(RangeInclusive<i32>),
    /// A step in the go-between or in the child failed.
    #[error("cannot {step} for a process in the container: {errno}")]
    Step {
        /// What was being done.
        step: Step,
        /// What the kernel said.
        errno: Errno,
    },
    /// A cgroup directory that cannot be entered.
    #[error(
        "cannot open cgroup.procs of cgroup directory {index} of the list: {errno}; is the container gone?"
    )]
    Cgroup {
        /// Which one, from 0, in the order of the calls of [`Place::cgroup`].
        index: usize,
        /// What the kernel said.
        errno: Errno,
    },
    /// The process in the container was killed before it ran the program.
    #[error("the process that waited in the container is gone: has the container ended?")]
    Gone,
    /// Something on the caller's side failed before the process existed.
    #[error("cannot prepare a process: {0}")]
    Prepare(#[from] Errno),
}

/// Where a process is to run. By default where the caller does.
#[derive(Debug, Default)]
pub struct Place<'a> {
    container: Option<(BorrowedFd<'a>, Namespaces, RangeInclusive<i32>)>,
    cgroups: Vec<BorrowedFd<'a>>,
}

impl<'a> Place<'a> {
    /// The mount, network, IPC, UTS and PID namespaces of the process that `pidfd` names, with the highest PID of
    /// `pids` that is free there (usually [`HELPER_PIDS`]).
    #[must_use]
    pub fn inside(mut self, pidfd: BorrowedFd<'a>, pids: RangeInclusive<i32>) -> Self {
        self.container = Some((pidfd, Namespaces::All, pids));
        self
    }

    /// A cgroup, given as its directory. Once for each hierarchy.
    ///
    /// On v2 the process is born there; on v1 it moves, which costs up to 30 ms on an idle node, since the
    /// kernel waits for RCU grace periods.
    #[must_use]
    pub fn cgroup(mut self, directory: BorrowedFd<'a>) -> Self {
        self.cgroups.push(directory);
        self
    }

    /// Makes a process there, which waits to be told its program. Blocks.
    pub fn enter(&self) -> Result<Waiting, SpawnError> {
        let (waiting, left) = self.begin()?;
        left.finish()?;
        Ok(waiting)
    }

    /// As [`Place::enter`], but the cgroups of version 1 are entered by [`Move::finish`], which may go on while the program runs already.
    /// Blocks for about a millisecond.
    pub fn begin(&self) -> Result<(Waiting, Move), SpawnError> {
        let (procs, unified) = open_cgroups(&self.cgroups)?;
        let waiting = self.make(unified)?;
        let child = waiting.child.as_ref().ok_or(SpawnError::Gone)?;
        let (pid, reaped) = (child.pid, child.reaped.clone());
        Ok((waiting, Move { procs, pid, reaped }))
    }

    fn make(&self, unified: Option<BorrowedFd<'a>>) -> Result<Waiting, SpawnError> {
        // The child is sent its descriptors from 0 on; what it waits with must lie above them.
        let lift = |fd: OwnedFd| rustix::io::fcntl_dupfd_cloexec(fd, order::MAX_DESCRIPTORS as RawFd);
        let (gate, theirs) =
            rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
        let (theirs, write) = (lift(theirs)?, lift(write)?);
        let plan = Plan {
            place: self.container.as_ref().map(|(pidfd, namespaces, _)| (*pidfd, namespaces.flags())),
            pids: self.container.as_ref().map(|(_, _, pids)| (*pids.start(), *pids.end())),
            unified,
            gate: theirs.as_fd(),
            report: write.as_fd(),
        };
        let started = fork_server::run(&plan).unwrap_or_else(|| child::run(&plan))?;
        drop(write);
        let inside = self.container.as_ref().is_some_and(|(_, namespaces, _)| *namespaces == Namespaces::All);
        match (started, &self.container) {
            (Some(child::Cloned { pidfd, pid, pid_inside }), _) => {
                let child = Child { pidfd, pid, pid_inside, reaped: Arc::default() };
                Ok(Waiting { child: Some(child), gate: Some(gate), report: Some(read.into()), inside })
            }
            (None, container) => Err(match (child::Failure::read(read.into()), container) {
                (Err(Some(failure)), Some((_, _, pids))) if failure.is_pid_taken() => {
                    SpawnError::PidsTaken(pids.clone())
                }
                (Err(Some(failure)), _) => failure.into(),
                (_, _) => SpawnError::Gone,
            }),
        }
    }
}

/// What [`Place::begin`] leaves to do. Without it the process stays in the caller's cgroups of version 1.
#[derive(Debug)]
pub struct Move {
    procs: Vec<OwnedFd>,
    pid: i32,
    reaped: Arc<Mutex<bool>>,
}

impl Move {
    /// Moves the process. Blocks: the kernel waits for RCU grace periods, up to 30 ms.
    ///
    /// # Errors
    /// The process has ended, or the cgroup is gone.
    pub fn finish(self) -> Result<(), SpawnError> {
        // As long as this is held, its PID is no other's.
        let reaped = self.reaped.lock().unwrap_or_else(PoisonError::into_inner);
        if *reaped {
            return Err(SpawnError::Gone);
        }
        let pid = self.pid.to_string();
        for procs in &self.procs {
            let failed = |errno| SpawnError::Step { step: Step::EnterCgroup, errno };
            rustix::io::write(procs, pid.as_bytes()).map_err(failed)?;
        }
        Ok(())
    }
}

/// A process in its [`Place`] that waits to be told its program. It ends when this is dropped, or with the caller.
#[derive(Debug)]
pub struct Waiting {
    child: Option<Child>,
    gate: Option<OwnedFd>,
    report: Option<File>,
    /// Whether it lives in a container.
    inside: bool,
}

impl Waiting {
    /// Its pidfd, as a descriptor of the caller's own: readable once the process has ended, and then it must be
    /// reaped, by dropping this. A zombie in a PID namespace holds up the end of the whole container.
    pub fn pidfd(&self) -> Result<OwnedFd, Errno> {
        let child = self.child.as_ref().ok_or(Errno::CHILD)?;
        rustix::io::fcntl_dupfd_cloexec(child, 0)
    }

    /// Starts a program there. Blocks for some milliseconds: until the program has taken over or has failed to.
    pub fn run(mut self, program: &Program<'_>) -> Result<Child, SpawnError> {
        let (Some(gate), Some(report)) = (self.gate.take(), self.report.take()) else {
            return Err(SpawnError::Gone);
        };
        match program.send(&gate, self.inside) {
            Ok(()) => {}
            Err(Errno::PIPE | Errno::CONNRESET) => return Err(SpawnError::Gone),
            Err(errno) => return Err(errno.into()),
        }
        drop(gate);
        match child::Failure::read(report) {
            Ok(()) => self.child.take().ok_or(SpawnError::Gone),
            // Dropping `self` reaps it.
            Err(failure) => Err(failure.map_or(SpawnError::Gone, SpawnError::from)),
        }
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.gate = None;
        if let Some(child) = &self.child {
            // Without its gate it has nothing left to wait for.
            let _ = child.wait();
        }
    }
}

/// What is to run, and how. It gets exactly the descriptors that are given to it.
#[derive(Debug)]
pub struct Program<'a> {
    executable: Option<BorrowedFd<'a>>,
    arguments: Vec<CString>,
    environment: Vec<CString>,
    descriptors: Vec<BorrowedFd<'a>>,
    last_pid: Option<i32>,
    real_ids: Option<(u32, u32)>,
}

impl<'a> Program<'a> {
    /// A program by descriptor (`execveat` with `AT_EMPTY_PATH`), so that its path need not exist where it runs.
    /// `stdio` become descriptors 0, 1 and 2. The environment is empty until variables are added.
    pub fn new(executable: BorrowedFd<'a>, stdio: [BorrowedFd<'a>; 3]) -> Self {
        Self { executable: Some(executable), descriptors: stdio.to_vec(), ..Self::nothing() }
    }

    fn nothing() -> Self {
        Self {
            executable: None,
            arguments: Vec::new(),
            environment: Vec::new(),
            descriptors: Vec::new(),
            last_pid: None,
            real_ids: None,
        }
    }

    /// Adds an argument; the first is the program's name for itself.
    pub fn argument(&mut self, argument: CString) -> &mut Self {
        self.arguments.push(argument);
        self
    }

    /// Adds `NAME=value` to the environment.
    pub fn variable(&mut self, variable: CString) -> &mut Self {
        self.environment.push(variable);
        self
    }

    /// Hands a descriptor to the child and returns the number it will have there: 3, 4 and so on.
    pub fn descriptor(&mut self, fd: BorrowedFd<'a>) -> RawFd {
        self.descriptors.push(fd);
        self.descriptors.len() as RawFd - 1
    }

    /// Sets the PID namespace's cursor before the program starts: its children get the PIDs after `last`.
    pub fn last_pid(&mut self, last: i32) -> &mut Self {
        self.last_pid = Some(last);
        self
    }

    /// Real user and group; effective and saved ones stay root's, and so do all capabilities.
    pub fn real_ids(&mut self, uid: u32, gid: u32) -> &mut Self {
        self.real_ids = Some((uid, gid));
        self
    }

    /// Starts it. Blocks, as [`Place::enter`] and [`Waiting::run`] do.
    pub fn start(&self, place: &Place<'_>) -> Result<Child, SpawnError> {
        place.enter()?.run(self)
    }

    fn send(&self, gate: &OwnedFd, forget_groups: bool) -> Result<(), Errno> {
        let cursor = self.last_pid.map(|_| open_cursor()).transpose()?;
        let order = order::Order {
            descriptors: self.descriptors.len(),
            executable: self.executable.is_some(),
            last_pid: self.last_pid,
            real_ids: self.real_ids,
            forget_groups,
        };
        let bytes = order.encode(&self.arguments, &self.environment)?;
        let descriptors = self.descriptors.iter().copied().chain(self.executable);
        let descriptors: Vec<_> = descriptors.chain(cursor.as_ref().map(AsFd::as_fd)).collect();
        crate::scm::send(gate.as_fd(), &bytes, &descriptors).map(drop)
    }
}

/// Sets the cursor of the PID namespace that `pidfd` lives in: the next process there gets the first free PID
/// after `last`. Blocks for about a millisecond.
pub fn set_last_pid(pidfd: BorrowedFd<'_>, last: i32) -> Result<(), SpawnError> {
    let place = Place { container: Some((pidfd, Namespaces::Pid, HELPER_PIDS)), ..Place::default() };
    let child = Program { last_pid: Some(last), ..Program::nothing() }.start(&place)?;
    child.wait()?;
    Ok(())
}

/// A process that [`Waiting::run`] has started; a child of the calling program, which has to wait for it.
#[derive(Debug)]
pub struct Child {
    pidfd: OwnedFd,
    pid: i32,
    pid_inside: Option<i32>,
    /// Locked while it is reaped, and while somebody needs its PID to be its own.
    reaped: Arc<Mutex<bool>>,
}

impl Child {
    /// Its PID in the caller's PID namespace.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// Its PID in the namespace that it was started in; none if that is the caller's.
    pub fn pid_inside(&self) -> Option<i32> {
        self.pid_inside
    }

    /// Waits until it has ended. Blocks.
    pub fn wait(&self) -> Result<WaitIdStatus, Errno> {
        loop {
            match self.waitid(WaitIdOptions::NOWAIT) {
                Ok(_) => {}
                Err(Errno::INTR) => continue,
                Err(errno) => return Err(errno),
            }
            if let Some(status) = self.try_wait()? {
                return Ok(status);
            }
        }
    }

    /// Its status if it has ended. A status is had once; its pidfd becomes readable when there is one.
    pub fn try_wait(&self) -> Result<Option<WaitIdStatus>, Errno> {
        let mut reaped = self.reaped.lock().unwrap_or_else(PoisonError::into_inner);
        let status = self.waitid(WaitIdOptions::NOHANG)?;
        *reaped |= status.is_some();
        Ok(status)
    }

    fn waitid(&self, how: WaitIdOptions) -> Result<Option<WaitIdStatus>, Errno> {
        rustix::process::waitid(WaitId::PidFd(self.pidfd.as_fd()), WaitIdOptions::EXITED | how)
    }
}

impl AsFd for Child {
    /// Its pidfd.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }
}

impl AsRawFd for Child {
    fn as_raw_fd(&self) -> RawFd {
        self.pidfd.as_raw_fd()
    }
}

/// Takes over a descriptor that this process was started with. Each may be taken once.
///
/// # Errors
/// `EBADF`: it was not given, or has been taken.
pub fn given(number: RawFd) -> Result<OwnedFd, Errno> {
    static TAKEN: Mutex<Vec<RawFd>> = Mutex::new(Vec::new());
    let mut taken = TAKEN.lock().unwrap_or_else(PoisonError::into_inner);
    // Close-on-exec from now on, which it was not when it was given: so nothing that this program opened is taken.
    // SAFETY: the descriptor is only looked at.
    let borrowed = (number > 2).then(|| unsafe { BorrowedFd::borrow_raw(number) }).ok_or(Errno::BADF)?;
    if taken.contains(&number) || rustix::io::fcntl_getfd(borrowed)?.contains(FdFlags::CLOEXEC) {
        return Err(Errno::BADF);
    }
    rustix::io::fcntl_setfd(borrowed, FdFlags::CLOEXEC)?;
    taken.push(number);
    // SAFETY: nobody else owns it: it came with the start of this process, and is taken only here and once.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

fn open_cursor() -> Result<OwnedFd, Errno> {
    // Opened outside: /proc/sys is read-only in containers.
    rustix::fs::open("/proc/sys/kernel/ns_last_pid", OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())
}

/// `cgroup.procs` of the v1 directories, and the v2 directory.
fn open_cgroups<'a>(
    directories: &[BorrowedFd<'a>],
) -> Result<(Vec<OwnedFd>, Option<BorrowedFd<'a>>), SpawnError> {
    const CGROUP2_SUPER_MAGIC: i64 = 0x6367_7270;
    let mut procs = Vec::new();
    let mut unified = None;
    for (index, directory) in directories.iter().enumerate() {
        let fail = |errno| SpawnError::Cgroup { index, errno };
        if rustix::fs::fstatfs(directory).map_err(fail)?.f_type == CGROUP2_SUPER_MAGIC {
            unified = Some(*directory);
        } else {
            let flags = OFlags::WRONLY | OFlags::CLOEXEC;
            procs.push(rustix::fs::openat(directory, "cgroup.procs", flags, Mode::empty()).map_err(fail)?);
        }
    }
    Ok((procs, unified))
}
