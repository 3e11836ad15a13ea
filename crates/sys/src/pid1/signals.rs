//! Signals as a descriptor: all that can be caught are blocked and read from a signalfd.

#![allow(unsafe_code)]

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// A signal that was sent to this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Signal {
    /// Its number; real-time signals too.
    pub number: i32,
    /// PID of the sender as seen here, 0 if it is outside this PID namespace or the kernel.
    pub sender: u32,
}

/// All catchable signals of this process, blocked.
#[derive(Debug)]
pub struct Signals(OwnedFd);

impl Signals {
    /// Blocks all signals of the calling thread and reads them from a descriptor from now on.
    ///
    /// # Errors
    /// Those of signalfd(2).
    pub fn take() -> io::Result<Self> {
        let mut all = MaybeUninit::<libc::sigset_t>::uninit();
        // SAFETY: sigfillset initialises the set that the two other calls read.
        let fd = unsafe {
            libc::sigfillset(all.as_mut_ptr());
            libc::sigprocmask(libc::SIG_SETMASK, all.as_ptr(), std::ptr::null_mut());
            libc::signalfd(-1, all.as_ptr(), libc::SFD_CLOEXEC | libc::SFD_NONBLOCK)
        };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: a new descriptor that nothing else owns.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// The next signal that is pending, if there is one. Allocates nothing.
    pub fn next(&self) -> Option<Signal> {
        let mut info = MaybeUninit::<libc::signalfd_siginfo>::uninit();
        let size = size_of::<libc::signalfd_siginfo>();
        // SAFETY: the buffer has room for the one record that is asked for.
        let n = unsafe { libc::read(self.0.as_raw_fd(), info.as_mut_ptr().cast(), size) };
        if n != size as isize {
            return None;
        }
        // SAFETY: the kernel filled the whole record.
        let info = unsafe { info.assume_init() };
        Some(Signal { number: info.ssi_signo as i32, sender: info.ssi_pid })
    }
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
