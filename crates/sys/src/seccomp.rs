//! Seccomp filters of another process, byte for byte.

use std::io;
use std::os::raw::c_void;

use rustix::io::Errno;

/// A filter program of a process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Filter {
    /// The kernel's array of `struct sock_filter`, 8 bytes each.
    pub program: Vec<u8>,
    /// Its actions are logged (`SECCOMP_FILTER_FLAG_LOG`).
    pub log: bool,
}

/// Filters could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// A step failed.
    #[error("cannot {step}: {errno}")]
    Ptrace {
        /// Which.
        step: &'static str,
        /// The cause.
        errno: Errno,
    },
    /// The process ended meanwhile.
    #[error("the process has ended")]
    Ended,
    /// No thread could be started.
    #[error("cannot start a thread: {0}")]
    Thread(#[from] io::Error),
}

/// From `linux/ptrace.h`; the libc crate has them for some targets only.
const PTRACE_SECCOMP_GET_FILTER: libc::c_uint = 0x420c;
const PTRACE_SECCOMP_GET_METADATA: libc::c_uint = 0x420d;
/// Size of a `struct sock_filter`.
const INSTRUCTION: usize = 8;
/// Most instructions of a filter (`BPF_MAXINSNS`).
const MAX_INSTRUCTIONS: usize = 4096;

/// All filters of the process `pid`, the first installed first. The process is stopped meanwhile, like CRIU stops it
/// (seize, interrupt): its system call, if one sleeps, is restarted or fails with EINTR.
///
/// # Errors
/// When the process cannot be traced: it is traced by another one, has ended, or the caller lacks CAP_SYS_ADMIN or
/// is under seccomp itself.
pub fn filters(pid: u32) -> Result<Vec<Filter>, ReadError> {
    // A tracer is a thread, and when it ends without detaching, the kernel detaches: nothing can stay stopped.
    let read = std::thread::Builder::new().name("seccomp".into()).stack_size(64 << 10);
    read.spawn(move || stopped(pid as libc::pid_t))?.join().unwrap_or(Err(ReadError::Ended))
}

fn stopped(pid: libc::pid_t) -> Result<Vec<Filter>, ReadError> {
    ptrace(libc::PTRACE_SEIZE, pid, 0, std::ptr::null_mut()).map_err(step("seize the process"))?;
    let filters = interrupt(pid).and_then(|()| collect(pid));
    let _ = ptrace(libc::PTRACE_DETACH, pid, 0, std::ptr::null_mut());
    filters
}

fn interrupt(pid: libc::pid_t) -> Result<(), ReadError> {
    ptrace(libc::PTRACE_INTERRUPT, pid, 0, std::ptr::null_mut()).map_err(step("interrupt the process"))?;
    let mut status = 0;
    loop {
        // SAFETY: `status` is a valid place for an int for the whole call.
        let waited = unsafe { libc::waitpid(pid, &mut status, libc::__WALL | libc::__WNOTHREAD) };
        match waited {
            -1 if last_error() == Errno::INTR => {}
            -1 => return Err(ReadError::Ptrace { step: "wait for the process", errno: last_error() }),
            _ if libc::WIFSTOPPED(status) => return Ok(()),
            _ => return Err(ReadError::Ended),
        }
    }
}

fn collect(pid: libc::pid_t) -> Result<Vec<Filter>, ReadError> {
    let mut filters = Vec::new();
    loop {
        let index = filters.len();
        let length = match ptrace(PTRACE_SECCOMP_GET_FILTER, pid, index, std::ptr::null_mut()) {
            Ok(length) => length as usize,
            Err(Errno::NOENT) => return Ok(filters),
            // It is in no mode that has filters.
            Err(Errno::INVAL) if index == 0 => return Ok(filters),
            Err(errno) => return Err(ReadError::Ptrace { step: "ask for a seccomp filter", errno }),
        };
        // The kernel writes as many instructions as it has told, which is at most this many.
        let mut program = vec![0u8; MAX_INSTRUCTIONS * INSTRUCTION];
        let place = program.as_mut_ptr().cast();
        let written = ptrace(PTRACE_SECCOMP_GET_FILTER, pid, index, place).map_err(step("read a filter"))?;
        if written as usize != length || length > MAX_INSTRUCTIONS {
            return Err(ReadError::Ptrace { step: "read a filter twice the same", errno: Errno::AGAIN });
        }
        program.truncate(length * INSTRUCTION);
        filters.push(Filter { program, log: logs(pid, index)? });
    }
}

fn logs(pid: libc::pid_t, index: usize) -> Result<bool, ReadError> {
    #[repr(C)]
    struct Metadata {
        filter_off: u64,
        flags: u64,
    }
    let mut metadata = Metadata { filter_off: index as u64, flags: 0 };
    let place = std::ptr::from_mut(&mut metadata).cast();
    ptrace(PTRACE_SECCOMP_GET_METADATA, pid, size_of::<Metadata>(), place).map_err(step("read its flags"))?;
    Ok(metadata.flags & libc::SECCOMP_FILTER_FLAG_LOG != 0)
}

fn ptrace(request: libc::c_uint, pid: libc::pid_t, addr: usize, data: *mut c_void) -> Result<i64, Errno> {
    // SAFETY: `data` is null, or points to a buffer that lives through the call and is large enough for what the
    // request writes: a whole filter of the longest kind, or a `seccomp_metadata` of the size passed in `addr`.
    let result = unsafe { libc::ptrace(request, pid, addr as *mut c_void, data) };
    if result == -1 { Err(last_error()) } else { Ok(result) }
}

fn step(step: &'static str) -> impl FnOnce(Errno) -> ReadError {
    move |errno| ReadError::Ptrace { step, errno }
}

fn last_error() -> Errno {
    Errno::from_io_error(&io::Error::last_os_error()).unwrap_or(Errno::IO)
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn a_process_without_filters_has_none_and_goes_on() {
        let mut child = Command::new("cat").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        assert_eq!(filters(child.id()).unwrap(), []);
        drop(child.stdin.take());
        assert!(child.wait().unwrap().success());
    }

    #[test]
    fn a_process_that_is_not_there_is_told() {
        assert!(matches!(filters(4_194_300), Err(ReadError::Ptrace { step: "seize the process", .. })));
    }

    #[test]
    fn filters_come_back_byte_for_byte_the_oldest_first() {
        use std::os::unix::process::CommandExt;
        let allow = |k: u32| [[0x20, 0, 0, 0, 0, 0, 0, 0], [6, 0, 0, 0, k as u8, 0, 0xff, 0x7f]].concat();
        let (first, second) = (allow(0), allow(0)[8..].to_vec());
        let programs = [first.clone(), second.clone()];
        let mut command = Command::new("cat");
        let install = move || {
            for program in &programs {
                let prog =
                    libc::sock_fprog { len: (program.len() / 8) as u16, filter: program.as_ptr() as *mut _ };
                // SAFETY: the program lives through the calls, which take plain numbers besides.
                let failed = unsafe {
                    libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0
                        || libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &prog) != 0
                };
                if failed {
                    return Err(io::Error::last_os_error());
                }
            }
            Ok(())
        };
        // SAFETY: only prctl is called between fork and exec.
        unsafe { command.pre_exec(install) };
        let mut child = command.stdin(Stdio::piped()).spawn().unwrap();
        let read = filters(child.id()).unwrap();
        let plain = |program: Vec<u8>| Filter { program, log: false };
        assert_eq!(read, [plain(first), plain(second)]);
        drop(child.stdin.take());
        assert!(child.wait().unwrap().success());
    }
}
