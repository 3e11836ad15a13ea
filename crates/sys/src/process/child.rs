//! The two new processes of [`super::Spawn::start`]: everything that runs in them before the program does.
//!
//! From [`run`]'s clone on, this is code that shares or has copied the memory of a program whose other threads may
//! hold any lock: raw system calls only, nothing is allocated or freed, nothing may panic, and no libc wrapper that
//! cares for other threads (`setresuid` of glibc would signal threads that do not exist here).

use std::ffi::{CString, c_char, c_int, c_long, c_uint, c_void};
use std::fmt;
use std::fs::File;
use std::io::Read as _;
use std::mem;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::ptr;

use rustix::io::Errno;
use rustix::process::{Pid, WaitOptions};

use super::Child;

/// Everything the new processes need, made ready beforehand.
pub(super) struct Plan<'a> {
    /// What to execute; without it the child exits with 0 when all else is done.
    pub(super) program: Option<BorrowedFd<'a>>,
    pub(super) arguments: Pointers<'a>,
    pub(super) environment: Pointers<'a>,
    /// Descriptor `i` of the child is a copy of `descriptors[i]`; all numbers lie above the list's length.
    pub(super) descriptors: Vec<RawFd>,
    /// A pidfd, and which of its namespaces to enter.
    pub(super) place: Option<(BorrowedFd<'a>, c_int)>,
    pub(super) pids: Option<(i32, i32)>,
    pub(super) procs: Vec<RawFd>,
    pub(super) unified: Option<BorrowedFd<'a>>,
    pub(super) last_pid: Option<(BorrowedFd<'a>, String)>,
    pub(super) real_ids: Option<(u32, u32)>,
    pub(super) report: BorrowedFd<'a>,
}

/// A vector of C strings as `execveat` wants it: pointers, ended by a null.
pub(super) struct Pointers<'a> {
    pointers: Vec<*const c_char>,
    strings: std::marker::PhantomData<&'a [CString]>,
}

pub(super) fn pointers(strings: &[CString]) -> Pointers<'_> {
    let pointers = strings.iter().map(|s| s.as_ptr()).chain([ptr::null()]).collect();
    Pointers { pointers, strings: std::marker::PhantomData }
}

/// What was being done for the new process when it failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Step {
    /// Write to `cgroup.procs`.
    EnterCgroup = 1,
    /// `setns`.
    EnterNamespaces,
    /// `clone3` with the wished PID.
    Clone,
    /// Write `ns_last_pid`.
    SetLastPid,
    /// Put the descriptors into their places.
    PlaceDescriptors,
    /// Set the real user and group.
    SetIds,
    /// `execveat`.
    Execute,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::EnterCgroup => "enter the container's cgroup",
            Self::EnterNamespaces => "enter the container's namespaces",
            Self::Clone => "clone",
            Self::SetLastPid => "set ns_last_pid",
            Self::PlaceDescriptors => "place descriptors",
            Self::SetIds => "set the real user and group",
            Self::Execute => "execute the program",
        })
    }
}

/// A step that failed, as it comes through the pipe.
pub(super) struct Failure {
    pub(super) step: Step,
    pub(super) errno: Errno,
}

impl Failure {
    const ALL: [Step; 7] = [
        Step::EnterCgroup,
        Step::EnterNamespaces,
        Step::Clone,
        Step::SetLastPid,
        Step::PlaceDescriptors,
        Step::SetIds,
        Step::Execute,
    ];

    /// Waits until the pipe is closed by exec, exit, or after a failure.
    pub(super) fn read(mut pipe: File) -> Option<Self> {
        let mut message = [0; 8];
        pipe.read_exact(&mut message).ok()?;
        let (step, errno) = message.split_at(4);
        let step = u32::from_ne_bytes(step.try_into().ok()?);
        let errno = i32::from_ne_bytes(errno.try_into().ok()?);
        let step = Self::ALL.into_iter().find(|known| *known as u32 == step)?;
        Some(Self { step, errno: Errno::from_raw_os_error(errno) })
    }

    pub(super) fn is_pid_taken(&self) -> bool {
        self.step == Step::Clone && self.errno == Errno::EXIST
    }
}

/// Passed to the go-between, which shares the caller's memory and leaves its result here.
struct Shared<'a> {
    plan: &'a Plan<'a>,
    result: Option<Child>,
}

/// From `linux/sched.h`; libc's constant of that name is too narrow for it.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

const STACK_WORDS: usize = 4096; // 64 KiB of u128

/// Runs the plan. The child if it came into being; whether it got to its program, the report pipe tells.
pub(super) fn run(plan: &Plan<'_>) -> Result<Option<Child>, Errno> {
    let mut shared = Shared { plan, result: None };
    let mut stack = vec![0u128; STACK_WORDS];
    let flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::CLONE_FILES | libc::SIGCHLD;

    let mask = block_signals();
    // SAFETY: `stack` is 64 KiB, aligned to 16, grows down from its end and, like `shared`, outlives the go-between:
    // CLONE_VFORK holds this thread until the go-between has exited, which it does without exec. All signals are
    // blocked, so no handler of ours runs in it. `go_between` keeps to the rules in the module's head.
    let pid = unsafe {
        let top = stack.as_mut_ptr().add(STACK_WORDS).cast();
        libc::clone(go_between, top, flags, (&raw mut shared).cast::<c_void>())
    };
    let pid = check(c_long::from(pid));
    restore_signals(&mask);

    let pid = Pid::from_raw(pid? as i32);
    while matches!(rustix::process::waitpid(pid, WaitOptions::empty()), Err(Errno::INTR)) {}
    Ok(shared.result)
}

extern "C" fn go_between(argument: *mut c_void) -> c_int {
    // SAFETY: `argument` is the `Shared` of `run`, whose thread is suspended, so this is the only access to it.
    let shared = unsafe { &mut *argument.cast::<Shared<'_>>() };
    match enter(shared.plan) {
        Ok(()) => match clone_child(shared.plan) {
            Ok(child) => shared.result = child,
            Err(errno) => report(shared.plan, Step::Clone, errno),
        },
        Err((step, errno)) => report(shared.plan, step, errno),
    }
    0
}

fn enter(plan: &Plan<'_>) -> Result<(), (Step, Errno)> {
    for procs in &plan.procs {
        write(*procs, b"0\n").map_err(|errno| (Step::EnterCgroup, errno))?;
    }
    if let Some((pidfd, namespaces)) = plan.place {
        // SAFETY: plain system call; the go-between shares memory and descriptors, but neither root nor namespaces.
        let result = unsafe { libc::setns(pidfd.as_raw_fd(), namespaces) };
        check(c_long::from(result)).map_err(|errno| (Step::EnterNamespaces, errno))?;
    }
    Ok(())
}

/// Clones with the highest free PID of the range. Returns in the go-between only: the child never comes back.
fn clone_child(plan: &Plan<'_>) -> Result<Option<Child>, Errno> {
    let (low, high) = plan.pids.unwrap_or((0, 0));
    let mut wished = high;
    loop {
        match clone_as(plan, wished) {
            Err(Errno::EXIST) if wished > low => wished -= 1,
            result => return result.map(Some),
        }
    }
}

/// Clones with a wished PID (0: any).
fn clone_as(plan: &Plan<'_>, wished: i32) -> Result<Child, Errno> {
    let mut pidfd: c_int = -1;
    let tid: libc::pid_t = wished;
    // SAFETY: `clone_args` is a plain structure of integers; zero is valid for each.
    let mut arguments: libc::clone_args = unsafe { mem::zeroed() };
    // No exit signal with CLONE_PARENT: the child gets the go-between's, SIGCHLD.
    arguments.flags = (libc::CLONE_PARENT | libc::CLONE_PIDFD) as u64;
    arguments.pidfd = &raw mut pidfd as u64;
    if wished != 0 {
        arguments.set_tid = &raw const tid as u64;
        arguments.set_tid_size = 1;
    }
    if let Some(cgroup) = plan.unified {
        arguments.flags |= CLONE_INTO_CGROUP;
        arguments.cgroup = cgroup.as_raw_fd() as u64;
    }
    // SAFETY: without CLONE_VM the child has its own copy of memory and stack, so it may return from this call; it
    // keeps to the rules in the module's head and ends in `child`. The structure and what it points to live here.
    let pid = unsafe { libc::syscall(libc::SYS_clone3, &raw const arguments, mem::size_of_val(&arguments)) };
    match check(pid)? {
        0 => child(plan),
        pid => {
            // SAFETY: the kernel has just made this descriptor in the table that the go-between shares with the
            // caller; nobody else knows of it.
            let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
            Ok(Child { pidfd, pid: pid as i32, pid_inside: (wished != 0).then_some(wished) })
        }
    }
}

fn child(plan: &Plan<'_>) -> ! {
    let Err((step, errno)) = become_program(plan) else { exit(0) };
    report(plan, step, errno);
    exit(127)
}

/// Returns `Ok` only if there is no program to become.
fn become_program(plan: &Plan<'_>) -> Result<(), (Step, Errno)> {
    if let Some((sysctl, last)) = &plan.last_pid {
        write(sysctl.as_raw_fd(), last.as_bytes()).map_err(|errno| (Step::SetLastPid, errno))?;
    }
    let Some(program) = plan.program else { return Ok(()) };

    // SAFETY: plain system calls on this process. `setsid` cannot fail in a new process; descriptors change only in
    // this process's own table, and the plan's lie above the ones that are overwritten (see `Spawn::start`).
    unsafe {
        libc::syscall(libc::SYS_setsid);
        for (target, source) in plan.descriptors.iter().enumerate() {
            let result = libc::syscall(libc::SYS_dup3, *source as c_long, target as c_long, 0);
            check(result).map_err(|errno| (Step::PlaceDescriptors, errno))?;
        }
        let first = plan.descriptors.len() as c_uint;
        let result = libc::syscall(libc::SYS_close_range, first, c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC);
        check(result).map_err(|errno| (Step::PlaceDescriptors, errno))?;
    }
    if plan.place.is_some() {
        // The caller's supplementary groups mean something else in there, and what the program starts would keep them.
        // SAFETY: a plain system call on this process with an empty list.
        let dropped = unsafe { libc::syscall(libc::SYS_setgroups, 0, ptr::null::<libc::gid_t>()) };
        check(dropped).map_err(|e| (Step::SetIds, e))?;
    }
    if let Some((uid, gid)) = plan.real_ids {
        const KEEP: u32 = u32::MAX;
        // SAFETY: plain system calls on this process; the raw ones, since glibc's wrappers address all threads.
        unsafe {
            check(libc::syscall(libc::SYS_setresgid, gid, KEEP, KEEP)).map_err(|e| (Step::SetIds, e))?;
            check(libc::syscall(libc::SYS_setresuid, uid, KEEP, KEEP)).map_err(|e| (Step::SetIds, e))?;
        }
    }
    default_signals();

    // SAFETY: both vectors are arrays of pointers to C strings that end with a null, and live as long as the plan; the
    // path is an empty C string.
    let result = unsafe {
        libc::syscall(
            libc::SYS_execveat,
            program.as_raw_fd(),
            c"".as_ptr(),
            plan.arguments.pointers.as_ptr(),
            plan.environment.pointers.as_ptr(),
            libc::AT_EMPTY_PATH,
        )
    };
    Err((Step::Execute, check(result).err().unwrap_or(Errno::IO)))
}

/// Every signal as a new program expects it: default action, none blocked.
fn default_signals() {
    // SAFETY: `sigaction` and `sigset_t` are plain data for which zero is valid (SIG_DFL, no flags, no signals). The
    // handlers are this process's own copy. Signals that cannot be set are refused without harm.
    unsafe {
        let action: libc::sigaction = mem::zeroed();
        for signal in 1..=64 {
            libc::sigaction(signal, &raw const action, ptr::null_mut());
        }
        let mut none: libc::sigset_t = mem::zeroed();
        libc::sigemptyset(&raw mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const none, ptr::null_mut());
    }
}

fn block_signals() -> libc::sigset_t {
    // SAFETY: both sets are plain data on this stack; only this thread's mask changes.
    unsafe {
        let mut all: libc::sigset_t = mem::zeroed();
        let mut before: libc::sigset_t = mem::zeroed();
        libc::sigfillset(&raw mut all);
        libc::pthread_sigmask(libc::SIG_SETMASK, &raw const all, &raw mut before);
        before
    }
}

fn restore_signals(mask: &libc::sigset_t) {
    // SAFETY: `mask` is what `block_signals` found; only this thread's mask changes.
    unsafe {
        libc::pthread_sigmask(libc::SIG_SETMASK, mask, ptr::null_mut());
    }
}

fn report(plan: &Plan<'_>, step: Step, errno: Errno) {
    let mut message = [0; 8];
    message[..4].copy_from_slice(&(step as u32).to_ne_bytes());
    message[4..].copy_from_slice(&errno.raw_os_error().to_ne_bytes());
    // Eight bytes fit into an empty pipe; there is nobody to tell if it fails.
    let _ = write(plan.report.as_raw_fd(), &message);
}

fn write(fd: RawFd, bytes: &[u8]) -> Result<(), Errno> {
    // SAFETY: the pointer and length are those of a slice.
    check(unsafe { libc::syscall(libc::SYS_write, fd, bytes.as_ptr(), bytes.len()) }).map(drop)
}

fn exit(status: c_int) -> ! {
    // SAFETY: ends this process without running anything of the program it was copied from.
    unsafe { libc::_exit(status) }
}

fn check(result: c_long) -> Result<c_long, Errno> {
    if result < 0 { Err(last_errno()) } else { Ok(result) }
}

fn last_errno() -> Errno {
    // SAFETY: the pointer is to this thread's errno (in the go-between: to that of the thread that waits for it).
    Errno::from_raw_os_error(unsafe { *libc::__errno_location() })
}
