//! Programs started inside the namespaces and cgroups of another process, with a PID of our choice.
//!
//! Entering a mount or PID namespace is a matter of a whole process, and a program with threads cannot do it
//! for itself. So [`Spawn::start`] goes through a process in between that lives for less than a millisecond:
//!
//! ```text
//!   caller (any thread of a program with many)
//!     │ clone(VM|VFORK|FILES)            the caller's thread sleeps until the go-between has gone
//!     └─► go-between: cgroup.procs, setns(pidfd, …)
//!           │ clone3(PARENT|PIDFD|INTO_CGROUP, set_tid)   so the new process is the *caller's* child
//!           └─► child: ns_last_pid, descriptors, ids, execveat ──► program
//! ```
//!
//! Whatever fails on the way is reported by a close-on-exec pipe as a step and an errno.

mod child;

use std::ffi::CString;
use std::fs::File;
use std::ops::RangeInclusive;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::process::{WaitId, WaitIdOptions, WaitIdStatus};

use child::Plan;
pub use child::Step;

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
        /// Which one, from 0, in the order of the calls of [`Spawn::cgroup`].
        index: usize,
        /// What the kernel said.
        errno: Errno,
    },
    /// Something on the caller's side failed before the process existed.
    #[error("cannot prepare a process: {0}")]
    Prepare(#[from] Errno),
}

/// What is to be started, and how. The child gets exactly the descriptors that are given to it.
#[derive(Debug)]
pub struct Spawn<'a> {
    program: Option<BorrowedFd<'a>>,
    arguments: Vec<CString>,
    environment: Vec<CString>,
    descriptors: Vec<BorrowedFd<'a>>,
    place: Option<(BorrowedFd<'a>, Namespaces, RangeInclusive<i32>)>,
    cgroups: Vec<BorrowedFd<'a>>,
    last_pid: Option<i32>,
    real_ids: Option<(u32, u32)>,
}

impl<'a> Spawn<'a> {
    /// A program by descriptor (`execveat` with `AT_EMPTY_PATH`), so that its path need not exist where it runs.
    /// `stdio` become descriptors 0, 1 and 2. The environment is empty until variables are added.
    pub fn new(program: BorrowedFd<'a>, stdio: [BorrowedFd<'a>; 3]) -> Self {
        Self { program: Some(program), descriptors: stdio.to_vec(), ..Self::nothing() }
    }

    fn nothing() -> Self {
        Self {
            program: None,
            arguments: Vec::new(),
            environment: Vec::new(),
            descriptors: Vec::new(),
            place: None,
            cgroups: Vec::new(),
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

    /// Runs it in the mount, network, IPC, UTS and PID namespaces of the process that `pidfd` names, with the
    /// highest PID of `pids` that is free there (usually [`HELPER_PIDS`]).
    pub fn inside(&mut self, pidfd: BorrowedFd<'a>, pids: RangeInclusive<i32>) -> &mut Self {
        self.place = Some((pidfd, Namespaces::All, pids));
        self
    }

    /// Puts it into a cgroup, given as its directory, before the program runs. Once for each hierarchy.
    ///
    /// On v2 the process is born there; on v1 it moves, which costs up to 15 ms on an idle node, since the
    /// kernel waits for an RCU grace period.
    pub fn cgroup(&mut self, directory: BorrowedFd<'a>) -> &mut Self {
        self.cgroups.push(directory);
        self
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

    /// Starts it. Blocks for some milliseconds: until the program has taken over or has failed to.
    pub fn start(&self) -> Result<Child, SpawnError> {
        // Descriptors move to 0, 1, 2, …; what is still needed then must not lie in their way.
        let floor = self.descriptors.len() as RawFd;
        let lift = |fd: BorrowedFd<'_>| rustix::io::fcntl_dupfd_cloexec(fd, floor);

        let program = self.program.map(lift).transpose()?;
        let sources = self.descriptors.iter().map(|fd| lift(*fd)).collect::<Result<Vec<_>, _>>()?;
        let sysctl =
            self.last_pid.map(|_| open_cursor()).transpose()?.map(|fd| lift(fd.as_fd())).transpose()?;
        let (procs, unified) = open_cgroups(&self.cgroups)?;
        let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
        let report = lift(write.as_fd())?;
        drop(write);

        let plan = Plan {
            program: program.as_ref().map(AsFd::as_fd),
            arguments: child::pointers(&self.arguments),
            environment: child::pointers(&self.environment),
            descriptors: sources.iter().map(AsRawFd::as_raw_fd).collect(),
            place: self.place.as_ref().map(|(pidfd, namespaces, _)| (*pidfd, namespaces.flags())),
            pids: self.place.as_ref().map(|(_, _, pids)| (*pids.start(), *pids.end())),
            procs: procs.iter().map(AsRawFd::as_raw_fd).collect(),
            unified,
            last_pid: sysctl.as_ref().zip(self.last_pid).map(|(fd, last)| (fd.as_fd(), last.to_string())),
            real_ids: self.real_ids,
            report: report.as_fd(),
        };
        let started = child::run(&plan)?;
        drop(report);

        match (child::Failure::read(File::from(read)), started) {
            (None, Some(child)) => Ok(child),
            (failure, started) => {
                if let Some(child) = started {
                    child.wait()?;
                }
                Err(match (failure, &self.place) {
                    (Some(failure), Some((_, _, pids))) if failure.is_pid_taken() => {
                        SpawnError::PidsTaken(pids.clone())
                    }
                    (Some(failure), _) => SpawnError::Step { step: failure.step, errno: failure.errno },
                    (None, _) => SpawnError::Step { step: Step::Clone, errno: Errno::CHILD },
                })
            }
        }
    }
}

/// Sets the cursor of the PID namespace that `pidfd` lives in: the next process there gets the first free PID
/// after `last`. Blocks for about a millisecond.
pub fn set_last_pid(pidfd: BorrowedFd<'_>, last: i32) -> Result<(), SpawnError> {
    let place = Some((pidfd, Namespaces::Pid, HELPER_PIDS));
    let child = Spawn { place, last_pid: Some(last), ..Spawn::nothing() }.start()?;
    child.wait()?;
    Ok(())
}

/// A process that [`Spawn::start`] has started; a child of the calling program, which has to wait for it.
#[derive(Debug)]
pub struct Child {
    pidfd: OwnedFd,
    pid: i32,
    pid_inside: Option<i32>,
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
            match rustix::process::waitid(WaitId::PidFd(self.pidfd.as_fd()), WaitIdOptions::EXITED) {
                Ok(Some(status)) => return Ok(status),
                Ok(None) | Err(Errno::INTR) => {}
                Err(errno) => return Err(errno),
            }
        }
    }

    /// Its status if it has ended. A status is had once; its pidfd becomes readable when there is one.
    pub fn try_wait(&self) -> Result<Option<WaitIdStatus>, Errno> {
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
        rustix::process::waitid(WaitId::PidFd(self.pidfd.as_fd()), options)
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
