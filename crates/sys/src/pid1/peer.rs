//! Who is at the other end of a unix socket. (rustix takes a peer outside the PID namespace, whose PID reads as 0, for
//! an error.)

#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// The peer's effective user as seen in the caller's user namespace, as it was at connect(2) or listen(2).
///
/// # Errors
/// Those of getsockopt(2) with `SO_PEERCRED`.
pub fn uid(socket: BorrowedFd<'_>) -> io::Result<u32> {
    let mut peer = libc::ucred { pid: 0, uid: u32::MAX, gid: u32::MAX };
    let mut size = size_of::<libc::ucred>() as libc::socklen_t;
    // SAFETY: `peer` has `size` bytes, and any bytes are a valid value of it.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERCRED,
            (&raw mut peer).cast(),
            &mut size,
        )
    };
    if result == 0 { Ok(peer.uid) } else { Err(io::Error::last_os_error()) }
}
