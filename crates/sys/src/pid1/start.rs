//! Starting the application: the PID cursor, the terminal, fork and exec.

#![allow(unsafe_code)]

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::io::{self, Read};
use std::os::fd::AsRawFd;

/// Makes the next process of this PID namespace get at least PID `first`, if the kernel gives out PIDs in order.
///
/// Threads that end at once use PIDs up, three times faster than processes, which would have to be reaped; one is
/// started even if the cursor is there already.
///
/// # Errors
/// Those of clone(2), such as `EAGAIN` at the limit of processes.
pub fn advance_pids(first: i32) -> io::Result<()> {
    extern "C" fn leave(_: *mut c_void) -> c_int {
        0
    }
    let flags = libc::CLONE_VM
        | libc::CLONE_VFORK
        | libc::CLONE_THREAD
        | libc::CLONE_SIGHAND
        | libc::CLONE_FS
        | libc::CLONE_FILES
        | libc::CLONE_SYSVSEM;
    let mut stack = [0u128; 256];
    // Bounded: a namespace may have so few PIDs that `first` is never reached.
    for _ in 0..2 * first {
        // SAFETY: the caller sleeps until the thread has left its memory for good; the thread only returns from `leave`,
        // on a stack of its own, whose end (it grows down) is 16-byte aligned.
        let pid = unsafe {
            let top = stack.as_mut_ptr().add(stack.len()).cast();
            libc::clone(leave, top, flags, std::ptr::null_mut())
        };
        if pid < 0 {
            return Err(io::Error::last_os_error());
        }
        if pid >= first - 1 {
            break;
        }
    }
    Ok(())
}

/// Gives up the controlling terminal, if standard input is it, so that the application can have it.
/// Call it with all signals blocked, before any of them is read: SIGHUP and SIGCONT that come of it are dropped.
pub fn release_terminal() {
    // SAFETY: the descriptor is only looked at; the set is initialised before it is read.
    unsafe {
        if libc::isatty(0) != 1 || libc::ioctl(0, libc::TIOCNOTTY) != 0 {
            return;
        }
        let mut set = std::mem::zeroed();
        libc::sigemptyset(&mut set);
        libc::sigaddset(&mut set, libc::SIGHUP);
        libc::sigaddset(&mut set, libc::SIGCONT);
        let now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        while libc::sigtimedwait(&set, std::ptr::null_mut(), &now) > 0 {}
    }
}

/// Starts a program: a session leader (with the terminal, if standard input is one) and child subreaper, no signal
/// blocked or ignored, with the environment, directory and descriptors 0–2 of the caller. Returns its PID once it runs.
///
/// `programs` are tried in order as execvp(3) does: one that is not there or may not be executed gives way to the next.
///
/// # Errors
/// The error of fork or exec; `EACCES` if one of `programs` was there but may not be executed.
pub fn start(programs: &[CString], argv: &[CString]) -> io::Result<i32> {
    let mut pointers: Vec<*const c_char> = argv.iter().map(|a| a.as_ptr()).collect();
    pointers.push(std::ptr::null());
    let (mut reader, writer) = io::pipe()?; // close-on-exec
    // SAFETY: the caller is single-threaded; the child only makes system calls on memory prepared above.
    let pid = unsafe { libc::fork() };
    if pid < 0 {
        return Err(io::Error::last_os_error());
    }
    if pid == 0 {
        // SAFETY: `pointers` ends with null and its strings live in `argv`; the write is from a local.
        unsafe {
            become_application();
            let error = exec_first(programs, &pointers).to_ne_bytes();
            libc::write(writer.as_raw_fd(), error.as_ptr().cast(), error.len());
            libc::_exit(127);
        }
    }
    drop(writer);
    let mut error = [0; 4];
    match reader.read_exact(&mut error) {
        Ok(()) => {
            // SAFETY: the status is not asked for.
            unsafe { libc::waitpid(pid, std::ptr::null_mut(), 0) };
            Err(io::Error::from_raw_os_error(i32::from_ne_bytes(error)))
        }
        Err(_) => Ok(pid), // closed by a successful exec
    }
}

/// # Safety
/// Only in a child just forked: it changes the process for good.
unsafe fn become_application() {
    // SAFETY: nothing but system calls on locals.
    unsafe {
        libc::setsid();
        if libc::isatty(0) == 1 {
            libc::ioctl(0, libc::TIOCSCTTY, 0);
        }
        libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0);
        for signal in 1..=libc::SIGRTMAX() {
            libc::signal(signal, libc::SIG_DFL); // refused for some, which have no other disposition
        }
        let mut none = std::mem::zeroed();
        libc::sigemptyset(&mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &none, std::ptr::null_mut());
    }
}

/// Returns only on failure, with the errno.
///
/// # Safety
/// `argv` ends with null and points to C strings.
unsafe fn exec_first(programs: &[impl AsRef<CStr>], argv: &[*const c_char]) -> i32 {
    let mut refused = false;
    for program in programs {
        // SAFETY: by the contract of this function.
        unsafe { libc::execv(program.as_ref().as_ptr(), argv.as_ptr()) };
        // SAFETY: errno of this thread.
        match unsafe { *libc::__errno_location() } {
            libc::EACCES => refused = true,
            libc::ENOENT | libc::ENOTDIR => {}
            other => return other,
        }
    }
    if refused { libc::EACCES } else { libc::ENOENT }
}
