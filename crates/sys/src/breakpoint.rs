//! Hardware breakpoints, held open so that those of others cost little (perf_event_open(2), `linux/hw_breakpoint.h`).

use std::mem;
use std::os::fd::{FromRawFd, OwnedFd};

use rustix::io::Errno;

/// `struct perf_event_attr` as of `PERF_ATTR_SIZE_VER1`.
#[repr(C)]
#[derive(Default)]
struct Attributes {
    kind: u32,
    size: u32,
    config: u64,
    sample_period: u64,
    sample_type: u64,
    read_format: u64,
    flags: u64,
    wakeup_events: u32,
    breakpoint_type: u32,
    address: u64,
    length: u64,
}

const PERF_TYPE_BREAKPOINT: u32 = 5;
const HW_BREAKPOINT_X: u32 = 4;
/// `disabled`, `exclude_kernel` and `exclude_hv`.
const DISABLED_USER_ONLY: u64 = 1 | 1 << 5 | 1 << 6;
const PERF_FLAG_FD_CLOEXEC: libc::c_ulong = 8;

/// A breakpoint of the calling thread that is never armed. The kernel prepares its scheduler for the first event of this kind on
/// an idle machine, which takes 12 to 60 ms, and undoes it a second after the last one (`perf_sched_count` in its
/// `kernel/events/core.c`). While this descriptor is open, nobody waits for that.
///
/// # Errors
/// The machine has no hardware breakpoints, or this process may not use them.
pub fn hold() -> Result<OwnedFd, Errno> {
    let attributes = Attributes {
        kind: PERF_TYPE_BREAKPOINT,
        size: mem::size_of::<Attributes>() as u32,
        flags: DISABLED_USER_ONLY,
        breakpoint_type: HW_BREAKPOINT_X,
        address: hold as *const () as u64,
        length: mem::size_of::<libc::c_long>() as u64,
        ..Attributes::default()
    };
    // SAFETY: `attributes` is as long as its `size` says and outlives the call; the kernel writes at most its size there. The other
    // arguments are numbers: this thread, any CPU, no group.
    let fd = unsafe {
        libc::syscall(libc::SYS_perf_event_open, &raw const attributes, 0, -1, -1, PERF_FLAG_FD_CLOEXEC)
    };
    if fd < 0 {
        let errno = std::io::Error::last_os_error().raw_os_error();
        return Err(errno.map_or(Errno::IO, Errno::from_raw_os_error));
    }
    // SAFETY: the kernel has just returned this descriptor, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_breakpoint_is_held_or_refused_for_want_of_hardware_or_rights() {
        use rustix::io::Errno;
        match super::hold() {
            Ok(_) | Err(Errno::ACCESS | Errno::PERM | Errno::NODEV | Errno::NOENT | Errno::OPNOTSUPP) => {}
            Err(errno) => panic!("{errno}"),
        }
    }
}
