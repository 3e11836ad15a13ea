//! A copy of the program from when it was small, which makes the new processes of [`super::Place::enter`] for it.
//!
//! A process is made as a copy of another, and a copy of the page tables of tens of megabytes takes milliseconds, as does throwing them away at
//! exec; and the program pays for each page that it writes next. The children of this server are the program's own (`CLONE_PARENT`).
//!
//! ```text
//!   program ──Request, descriptors──► server ──clone(PARENT|VM|VFORK)──► go-between ──clone3(PARENT)──► child
//!      ▲────────Reply, pidfd────────────┘                                (see `super::child`)
//! ```

use std::ffi::c_int;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd, RawFd};
use std::sync::{Mutex, OnceLock, PoisonError};

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use rustix::process::Pid;

use super::child::{self, Cloned, Plan};
use super::order;
use crate::scm;

static SERVER: OnceLock<Mutex<OwnedFd>> = OnceLock::new();

/// Integers of a request, and of a reply, 4 bytes each.
const REQUEST: usize = 4;
const REPLY: usize = 4;

/// Starts the server, which ends with this program. From then on it makes all processes, as long as it lives.
///
/// # Errors
/// `EBUSY`: the program has more than one thread already. Otherwise the kernel's word.
pub fn start_fork_server() -> Result<(), Errno> {
    let threads = std::fs::read_dir("/proc/self/task").map_or(0, Iterator::count);
    if threads != 1 {
        return Err(Errno::BUSY);
    }
    let (ours, theirs) =
        rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
    // SAFETY: there is no other thread whose locks the copy could miss.
    match unsafe { libc::fork() } {
        -1 => Err(child::last_errno()),
        0 => {
            drop(ours);
            let _ = rustix::thread::set_name(c"fork-server");
            child::ignore_ends();
            // Until the program has gone.
            while serve(theirs.as_fd()).is_ok() {}
            child::exit(0)
        }
        _ => {
            let _ = SERVER.set(Mutex::new(ours));
            Ok(())
        }
    }
}

/// Has the server run the plan. None if there is none, or not any more.
pub(super) fn run(plan: &Plan<'_>) -> Option<Result<Option<Cloned>, Errno>> {
    let server = SERVER.get()?.lock().unwrap_or_else(PoisonError::into_inner);
    let (pidfd, namespaces) = plan.place.unzip();
    let (low, high) = plan.pids.unwrap_or_default();
    let request = [namespaces.unwrap_or_default(), low, high, plan.unified.is_some().into()];
    let descriptors = [Some(plan.gate), Some(plan.report), pidfd, plan.unified];
    let descriptors: Vec<_> = descriptors.into_iter().flatten().collect();
    scm::send(server.as_fd(), &encode(request), &descriptors).ok()?;
    let mut bytes = [0; 4 * REPLY];
    let mut received = scm::receive(server.as_fd(), &mut bytes).ok()?;
    let [go_between, pid, pid_inside, errno] = decode(&bytes[..received.bytes])?;
    if let Some(go_between) = Pid::from_raw(go_between) {
        child::reap(go_between);
    }
    let cloned = received.descriptors.pop().map(|pidfd| Cloned {
        pidfd,
        pid,
        pid_inside: (pid_inside != 0).then_some(pid_inside),
    });
    Some(if errno == 0 { Ok(cloned) } else { Err(Errno::from_raw_os_error(errno)) })
}

/// Answers one request.
fn serve(program: BorrowedFd<'_>) -> Result<(), Errno> {
    let mut bytes = [0; 4 * REQUEST];
    let received = scm::receive(program, &mut bytes)?;
    let [namespaces, low, high, unified] = decode(&bytes[..received.bytes]).ok_or(Errno::PIPE)?;
    // The child is sent its descriptors from 0 on; what it waits with must lie above them.
    let lift = |fd: OwnedFd| rustix::io::fcntl_dupfd_cloexec(fd, order::MAX_DESCRIPTORS as RawFd);
    let mut descriptors = received.descriptors.into_iter();
    let mut next = || descriptors.next().ok_or(Errno::BADMSG);
    let (gate, report) = (lift(next()?)?, lift(next()?)?);
    let pidfd = (namespaces != 0).then(&mut next).transpose()?;
    let unified = (unified != 0).then(&mut next).transpose()?;
    let plan = Plan {
        place: pidfd.as_ref().map(|pidfd| (pidfd.as_fd(), namespaces)),
        pids: (high != 0).then_some((low, high)),
        unified: unified.as_ref().map(OwnedFd::as_fd),
        gate: gate.as_fd(),
        report: report.as_fd(),
    };
    let (reply, cloned) = match child::start(&plan, libc::CLONE_PARENT) {
        Ok((go_between, cloned)) => {
            let pid = cloned.as_ref().map_or(0, |cloned| cloned.pid);
            let inside = cloned.as_ref().and_then(|cloned| cloned.pid_inside).unwrap_or_default();
            ([go_between.as_raw_nonzero().get(), pid, inside, 0], cloned)
        }
        Err(errno) => ([0, 0, 0, errno.raw_os_error()], None),
    };
    let pidfd: Vec<_> = cloned.iter().map(|cloned| cloned.pidfd.as_fd()).collect();
    scm::send(program, &encode(reply), &pidfd).map(drop)
}

fn encode<const N: usize>(words: [c_int; N]) -> Vec<u8> {
    words.into_iter().flat_map(c_int::to_ne_bytes).collect()
}

/// None if it is not that many.
fn decode<const N: usize>(bytes: &[u8]) -> Option<[c_int; N]> {
    let (words, rest) = bytes.as_chunks::<4>();
    let words: [[u8; 4]; N] = words.try_into().ok().filter(|_| rest.is_empty())?;
    Some(words.map(c_int::from_ne_bytes))
}
