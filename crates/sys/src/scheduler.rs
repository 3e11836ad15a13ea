//! When a process gets a CPU.

use std::io;

use rustix::process::Pid;

/// Whether a process of one thread runs only where nothing else wants to (`SCHED_IDLE`): what wakes up takes its CPU from it at once. Back from there it
/// takes `CAP_SYS_NICE`.
///
/// # Errors
/// Of `sched_setscheduler`.
pub fn set_idle(process: Pid, idle: bool) -> io::Result<()> {
    let policy = if idle { libc::SCHED_IDLE } else { libc::SCHED_OTHER };
    let parameters = libc::sched_param { sched_priority: 0 };
    // SAFETY: the kernel only reads what it is given.
    match unsafe { libc::sched_setscheduler(process.as_raw_pid(), policy, &raw const parameters) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
