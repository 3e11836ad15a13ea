//! Exit statuses and killing by number; nothing here allocates.

#![allow(unsafe_code)]

use std::io;
use std::mem::MaybeUninit;

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// It exited with this code.
    Code(i32),
    /// It was killed by this signal.
    Signal(i32),
}

impl Exit {
    /// The code that a shell would report: 128+n after signal n.
    pub fn code(self) -> i32 {
        match self {
            Self::Code(code) => code,
            Self::Signal(signal) => 128 + signal,
        }
    }
}

/// What a PID is to the calling process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Child {
    /// A child that has not ended.
    Alive,
    /// A child that has ended and was not reaped.
    Ended,
    /// No child of this process (yet, or any more).
    NotOurs,
}

/// Reaps one child that has ended, whatever its exit signal, if there is one.
pub fn reap_one() -> Option<(i32, Exit)> {
    loop {
        let mut status = 0;
        // SAFETY: `status` outlives the call.
        let pid = unsafe { libc::waitpid(-1, &mut status, libc::WNOHANG | libc::__WALL) };
        if pid <= 0 {
            return None;
        }
        if libc::WIFEXITED(status) {
            return Some((pid, Exit::Code(libc::WEXITSTATUS(status))));
        }
        if libc::WIFSIGNALED(status) {
            return Some((pid, Exit::Signal(libc::WTERMSIG(status))));
        }
    }
}

/// Looks at a child without reaping it.
pub fn look(pid: i32) -> Child {
    let Ok(id) = libc::id_t::try_from(pid) else { return Child::NotOurs };
    let mut info = MaybeUninit::<libc::siginfo_t>::zeroed();
    let flags = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT | libc::__WALL;
    // SAFETY: `info` is zeroed, valid for the type and outlives the call; `si_pid` is 0 if nothing was reported.
    unsafe {
        if libc::waitid(libc::P_PID, id, info.as_mut_ptr(), flags) != 0 {
            return Child::NotOurs;
        }
        if info.assume_init().si_pid() == 0 { Child::Alive } else { Child::Ended }
    }
}

/// Sends a signal by number, real-time ones too, to one process.
///
/// # Errors
/// Those of kill(2); a PID below 2 is refused with `EINVAL`, so that no group is meant by accident.
pub fn kill(pid: i32, signal: i32) -> io::Result<()> {
    if pid < 2 {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    // SAFETY: kill has no memory operands.
    if unsafe { libc::kill(pid, signal) } == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Sends SIGKILL to every process of the PID namespace but its PID 1. Whether there was any, zombies counted.
///
/// Does nothing unless the caller is PID 1 of its namespace, for it would hit strangers.
pub fn kill_all() -> bool {
    // SAFETY: kill and getpid have no memory operands.
    unsafe {
        if libc::getpid() != 1 || libc::kill(-1, libc::SIGKILL) == 0 {
            return libc::getpid() == 1;
        }
    }
    io::Error::last_os_error().raw_os_error() != Some(libc::ESRCH)
}
