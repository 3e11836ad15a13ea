//! The two new processes of [`super::Place::enter`]: everything that runs in them before the program does.
//!
//! From [`run`]'s clone on, this is code that shares or has copied the memory of a program whose other threads may
//! hold any lock: raw system calls only, nothing is allocated or freed, nothing may panic, and no libc wrapper that
//! cares for other threads (`setresuid` of glibc would signal threads that do not exist here).

use std::ffi::{c_int, c_long, c_uint, c_void};
use std::fmt;
use std::fs::File;
use std::io::Read as _;
use std::mem;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::ptr;

use rustix::io::Errno;
use rustix::process::{Pid, WaitOptions};

use super::SpawnError;
use super::order::{self, Order};

/// Everything the new processes need, made ready beforehand.
pub(super) struct Plan<'a> {
    /// A pidfd, and which of its namespaces to enter.
    pub(super) place: Option<(BorrowedFd<'a>, c_int)>,
    pub(super) pids: Option<(i32, i32)>,
    pub(super) unified: Option<BorrowedFd<'a>>,
    /// Where the child is told its program; like `report`, above the numbers of the descriptors that come with it.
    pub(super) gate: BorrowedFd<'a>,
    pub(super) report: BorrowedFd<'a>,
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
    /// Receive the program and its descriptors.
    Receive,
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
            Self::Receive => "receive the program's descriptors",
            Self::SetIds => "set the real user and group",
            Self::Execute => "execute the program",
        })
    }
}

/// Written to the report pipe by a child that has been told its program.
const TOLD: u8 = 1;
/// Bytes of a failure in the report pipe.
const FAILURE: usize = 8;

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
        Step::Receive,
        Step::SetIds,
        Step::Execute,
    ];

    /// What was written to the report pipe, once it is closed by exec, exit, or after a failure. `Ok` only if the child
    /// has been told its program and nothing has failed since.
    pub(super) fn read(pipe: File) -> Result<(), Option<Self>> {
        let mut message = Vec::new();
        // A pipe that cannot be read has told nothing.
        let _ = pipe.take(2 * FAILURE as u64).read_to_end(&mut message);
        let Some(failure) = message.last_chunk::<FAILURE>() else {
            return if message == [TOLD] { Ok(()) } else { Err(None) };
        };
        let word = |at: usize| failure[at..at + 4].try_into().map(i32::from_ne_bytes).unwrap_or_default();
        let step = Self::ALL.into_iter().find(|known| *known as i32 == word(0));
        Err(step.map(|step| Self { step, errno: Errno::from_raw_os_error(word(4)) }))
    }

    pub(super) fn is_pid_taken(&self) -> bool {
        self.step == Step::Clone && self.errno == Errno::EXIST
    }
}

impl From<Failure> for SpawnError {
    fn from(Failure { step, errno }: Failure) -> Self {
        Self::Step { step, errno }
    }
}

/// The new process.
pub(super) struct Cloned {
    pub(super) pidfd: OwnedFd,
    pub(super) pid: i32,
    pub(super) pid_inside: Option<i32>,
}

/// Passed to the go-between, which shares the caller's memory and leaves its result here.
struct Shared<'a> {
    plan: &'a Plan<'a>,
    result: Option<Cloned>,
}

/// From `linux/sched.h`; libc's constant of that name is too narrow for it.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

const STACK_WORDS: usize = 4096; // 64 KiB of u128

/// Runs the plan. The child if it came into being; if not, the report pipe tells why.
pub(super) fn run(plan: &Plan<'_>) -> Result<Option<Cloned>, Errno> {
    let (go_between, cloned) = start(plan, 0)?;
    reap(go_between);
    Ok(cloned)
}

/// Runs the plan with `CLONE_PARENT` or 0: who reaps the child also has to reap the go-between, which has ended.
pub(super) fn start(plan: &Plan<'_>, parent: c_int) -> Result<(Pid, Option<Cloned>), Errno> {
    let mut shared = Shared { plan, result: None };
    let mut stack = vec![0u128; STACK_WORDS];
    let flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::CLONE_FILES | libc::SIGCHLD | parent;

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
    let pid = Pid::from_raw(pid? as i32).ok_or(Errno::CHILD)?;
    Ok((pid, shared.result))
}

/// Waits for a child of this program.
pub(super) fn reap(pid: Pid) {
    while matches!(rustix::process::waitpid(Some(pid), WaitOptions::empty()), Err(Errno::INTR)) {}
}

extern "C" fn go_between(argument: *mut c_void) -> c_int {
    // SAFETY: `argument` is the `Shared` of `run`, whose thread is suspended, so this is the only access to it.
    let shared = unsafe { &mut *argument.cast::<Shared<'_>>() };
    match enter(shared.plan) {
        Ok(()) => match clone_child(shared.plan) {
            Ok(child) => shared.result = child,
            Err(errno) => report(shared.plan.report.as_raw_fd(), Step::Clone, errno),
        },
        Err((step, errno)) => report(shared.plan.report.as_raw_fd(), step, errno),
    }
    0
}

fn enter(plan: &Plan<'_>) -> Result<(), (Step, Errno)> {
    if let Some((pidfd, namespaces)) = plan.place {
        // SAFETY: plain system call; the go-between shares memory and descriptors, but neither root nor namespaces.
        let result = unsafe { libc::setns(pidfd.as_raw_fd(), namespaces) };
        check(c_long::from(result)).map_err(|errno| (Step::EnterNamespaces, errno))?;
    }
    Ok(())
}

/// Clones with the highest free PID of the range. Returns in the go-between only: the child never comes back.
fn clone_child(plan: &Plan<'_>) -> Result<Option<Cloned>, Errno> {
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
fn clone_as(plan: &Plan<'_>, wished: i32) -> Result<Cloned, Errno> {
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
            Ok(Cloned { pidfd, pid: pid as i32, pid_inside: (wished != 0).then_some(wished) })
        }
    }
}

fn child(plan: &Plan<'_>) -> ! {
    match wait_and_run(plan) {
        Ok(()) => exit(0),
        Err((step, errno)) => {
            report(plan.report.as_raw_fd(), step, errno);
            exit(127)
        }
    }
}

/// Returns `Ok` only if there is no program to become.
fn wait_and_run(plan: &Plan<'_>) -> Result<(), (Step, Errno)> {
    let receive = |errno| (Step::Receive, errno);
    let (gate, report) = (plan.gate.as_raw_fd(), plan.report.as_raw_fd());
    // A connection that the caller closes while this process waits must be closed.
    let (low, high) = (gate.min(report) as c_uint, gate.max(report) as c_uint);
    for (first, last) in [(0, low - 1), (low + 1, high - 1), (high + 1, c_uint::MAX)] {
        if first <= last {
            close_range(first, last, 0).map_err(receive)?;
        }
    }
    let mut buffer = [0; order::MAX_BYTES];
    let (length, received) = receive_order(gate, &mut buffer).map_err(receive)?;
    if length == 0 {
        return Ok(());
    }
    write(report, &[TOLD]).map_err(receive)?;
    let cut_off = receive(Errno::MSGSIZE);
    let (order, strings) = Order::decode(&buffer[..length]).ok_or(cut_off)?;
    let executable = order.descriptors as RawFd;
    let cursor = executable + RawFd::from(order.executable);
    // All numbers from 0 on were free, and the kernel hands out the lowest.
    if received != cursor as usize + usize::from(order.last_pid.is_some()) {
        return Err(cut_off);
    }

    if let Some(last) = order.last_pid {
        let mut digits = [0; 12];
        write(cursor, decimal(last, &mut digits)).map_err(|errno| (Step::SetLastPid, errno))?;
    }
    if !order.executable {
        return Ok(());
    }
    // SAFETY: a plain system call; it cannot fail in a process that leads no group.
    unsafe { libc::syscall(libc::SYS_setsid) };
    close_range(executable as c_uint, c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC).map_err(receive)?;
    set_ids(&order).map_err(|errno| (Step::SetIds, errno))?;
    default_signals();

    let [arguments, variables] = strings.pointers().ok_or(cut_off)?;
    // SAFETY: both are arrays of pointers to C strings in `buffer` that end with a null; the path is an empty C string.
    let result = unsafe {
        libc::syscall(
            libc::SYS_execveat,
            executable,
            c"".as_ptr(),
            arguments.as_ptr(),
            variables.as_ptr(),
            libc::AT_EMPTY_PATH,
        )
    };
    Err((Step::Execute, check(result).err().unwrap_or(Errno::IO)))
}

/// Waits for the message and its descriptors: how many bytes, 0 if there will be none, and how many descriptors.
fn receive_order(gate: RawFd, buffer: &mut [u8]) -> Result<(usize, usize), Errno> {
    const SPACE: usize = 16 + 4 * order::MAX_DESCRIPTORS;
    let mut control = [0u64; SPACE.div_ceil(8)];
    let mut vector = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    // SAFETY: `msghdr` is plain data for which zero is valid.
    let mut message: libc::msghdr = unsafe { mem::zeroed() };
    message.msg_iov = &raw mut vector;
    message.msg_iovlen = 1;
    message.msg_control = control.as_mut_ptr().cast();
    message.msg_controllen = mem::size_of_val(&control);
    // SAFETY: the header's pointers are to live buffers of the lengths that it names.
    let length = check(unsafe { libc::syscall(libc::SYS_recvmsg, gate, &raw mut message, 0) })? as usize;
    if message.msg_flags & (libc::MSG_TRUNC | libc::MSG_CTRUNC) != 0 {
        return Err(Errno::MSGSIZE);
    }
    // The one control message there can be: its length, then level and type, then the descriptors.
    let bytes = control[0] as usize;
    Ok((length, bytes.saturating_sub(16) / 4))
}

fn close_range(first: c_uint, last: c_uint, flags: c_uint) -> Result<(), Errno> {
    // SAFETY: it changes only this process's own table of descriptors, in which no Rust value of this process owns one.
    check(unsafe { libc::syscall(libc::SYS_close_range, first, last, flags) }).map(drop)
}

fn set_ids(order: &Order) -> Result<(), Errno> {
    const KEEP: u32 = u32::MAX;
    // SAFETY: plain system calls on this process; the raw ones, since glibc's wrappers address all threads.
    unsafe {
        if order.forget_groups {
            check(libc::syscall(libc::SYS_setgroups, 0, ptr::null::<libc::gid_t>()))?;
        }
        if let Some((uid, gid)) = order.real_ids {
            check(libc::syscall(libc::SYS_setresgid, gid, KEEP, KEEP))?;
            check(libc::syscall(libc::SYS_setresuid, uid, KEEP, KEEP))?;
        }
    }
    Ok(())
}

/// A number above 0 in decimal digits.
fn decimal(mut number: i32, digits: &mut [u8; 12]) -> &[u8] {
    let mut start = digits.len();
    while number > 0 && start > 0 {
        start -= 1;
        digits[start] = b'0' + (number % 10) as u8;
        number /= 10;
    }
    &digits[start..]
}

/// Every signal as a new program expects it: default action, none blocked. By raw calls: since glibc 2.41 `sigaction`
/// takes the lock of `abort`, which another thread of the caller may have held when this process was copied.
fn default_signals() {
    /// Bytes of the kernel's set of signals.
    const SET: usize = 8;
    /// The kernel's `struct sigaction`, whose four words are zero for SIG_DFL without flags. The last is its mask.
    const DEFAULT: [u64; 4] = [0; 4];
    let none = 0u64;
    // SAFETY: both pointers are to constants as long as the kernel reads. The handlers are this process's own copy.
    // Signals that cannot be set are refused without harm.
    unsafe {
        for signal in 1..=64 {
            libc::syscall(libc::SYS_rt_sigaction, signal, DEFAULT.as_ptr(), ptr::null_mut::<u64>(), SET);
        }
        let how = libc::SIG_SETMASK;
        libc::syscall(libc::SYS_rt_sigprocmask, how, &raw const none, ptr::null_mut::<u64>(), SET);
    }
}

/// Leaves it to others to say when this process is to end.
pub(super) fn ignore_ends() {
    for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGHUP] {
        // SAFETY: no handler is set.
        unsafe { libc::signal(signal, libc::SIG_IGN) };
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

fn report(pipe: RawFd, step: Step, errno: Errno) {
    let mut message = [0; FAILURE];
    message[..4].copy_from_slice(&(step as u32).to_ne_bytes());
    message[4..].copy_from_slice(&errno.raw_os_error().to_ne_bytes());
    // Few bytes fit into an empty pipe; there is nobody to tell if it fails.
    let _ = write(pipe, &message);
}

fn write(fd: RawFd, bytes: &[u8]) -> Result<(), Errno> {
    // SAFETY: the pointer and length are those of a slice.
    check(unsafe { libc::syscall(libc::SYS_write, fd, bytes.as_ptr(), bytes.len()) }).map(drop)
}

pub(super) fn exit(status: c_int) -> ! {
    // SAFETY: ends this process without running anything of the program it was copied from.
    unsafe { libc::_exit(status) }
}

fn check(result: c_long) -> Result<c_long, Errno> {
    if result < 0 { Err(last_errno()) } else { Ok(result) }
}

pub(super) fn last_errno() -> Errno {
    // SAFETY: the pointer is to this thread's errno (in the go-between: to that of the thread that waits for it).
    Errno::from_raw_os_error(unsafe { *libc::__errno_location() })
}
