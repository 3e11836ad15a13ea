//! How things stand with the processes whose memory is shared, for an agent that is about to freeze them.

use std::collections::VecDeque;
use std::fs::File;
use std::io::Write as _;
use std::os::fd::{AsFd as _, BorrowedFd};

use prost::Message as _;
use rustix::fs::MemfdFlags;
use rustix::io::Errno;
use rustix::net::SocketFlags;
use woodfrog_protocol::pager::{Image, Span, Standing};
use woodfrog_sys::scm;

use crate::memory::Memory;

/// Answers whoever has connected to `listener`, without waiting for it.
///
/// # Errors
/// Nobody can be answered. Whoever goes away meanwhile is no error.
pub(crate) fn answer(listener: BorrowedFd<'_>, processes: &VecDeque<Memory>) -> Result<(), Errno> {
    let asking = rustix::net::accept_with(listener, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK)?;
    // A file, since a socket takes only so much before it has to be read.
    let mut file = File::from(rustix::fs::memfd_create("woodfrog-standing", MemfdFlags::CLOEXEC)?);
    let written = file.write_all(&of(processes).encode_to_vec());
    written.map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
    let _ = scm::send(asking.as_fd(), b"S", &[file.as_fd()]);
    Ok(())
}

fn of(processes: &VecDeque<Memory>) -> Standing {
    let living = processes.iter().filter(|memory| !memory.gone);
    let restored = living.filter(|memory| !memory.forked);
    Standing {
        processes: restored.map(image).collect(),
        forked: processes.iter().filter(|memory| memory.forked && !memory.gone).count() as u32,
    }
}

fn image(memory: &Memory) -> Image {
    let spans = memory.image.runs().map(|run| Span { start: run.start, length: run.length });
    Image { pid: memory.pid, spans: spans.collect() }
}
