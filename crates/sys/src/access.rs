//! The kernel's own answer to whether a file may be opened, for a descriptor that was only resolved (`O_PATH`).

use std::os::fd::{AsFd, AsRawFd};

use rustix::fs::Access;
use rustix::io::Errno;

/// Asks whether the calling thread's effective credentials allow `access` to what `fd` refers to (Linux 5.8).
///
/// # Errors
/// `EACCES` if they do not, `EROFS` for writing to a read-only file system.
pub fn allowed(fd: impl AsFd, access: Access) -> Result<(), Errno> {
    let flags = libc::AT_EMPTY_PATH | libc::AT_EACCESS;
    // SAFETY: the path is a constant string with its ending zero, the descriptor is open, the rest are numbers.
    let result = unsafe {
        libc::syscall(libc::SYS_faccessat2, fd.as_fd().as_raw_fd(), c"".as_ptr(), access.bits(), flags)
    };
    if result == 0 {
        return Ok(());
    }
    Err(Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO))
}
