//! What the pager of shared memory is asked: which of the processes' memory is still the image's.
//!
//! The sockets lie in a directory that no container sees, each named by the container's token. They outlive the agent, as the pagers do.

use std::fs::{self, File};
use std::io::{self, Read, Seek};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use prost::Message;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use woodfrog_protocol::pager::Standing;
use woodfrog_sys::scm;

/// A pager answers at once; one that does not in this time never will.
const PATIENCE: Duration = Duration::from_secs(10);
/// The most that is read of an answer.
const MAX_BYTES: u64 = 64 << 20;

/// A socket for a pager to listen on.
///
/// # Errors
/// The directory is missing.
pub fn listen(path: &Path) -> io::Result<OwnedFd> {
    forget(path)?;
    let socket = socket()?;
    rustix::net::bind(&socket, &SocketAddrUnix::new(path)?)?;
    rustix::net::listen(&socket, 8)?;
    Ok(socket)
}

/// Asks the pager that listens there. Blocks.
///
/// # Errors
/// There is none, or it does not answer.
pub fn ask(path: &Path) -> io::Result<Standing> {
    let socket = socket()?;
    set_socket_timeout(&socket, Timeout::Recv, Some(PATIENCE))?;
    rustix::net::connect(&socket, &SocketAddrUnix::new(path)?)?;
    let mut message = [0];
    let received = scm::receive(socket.as_fd(), &mut message)?;
    let file = received.descriptors.into_iter().next().ok_or(io::ErrorKind::UnexpectedEof)?;
    let (mut file, mut bytes) = (File::from(file), Vec::new());
    file.rewind()?;
    file.take(MAX_BYTES).read_to_end(&mut bytes)?;
    Standing::decode(&*bytes).map_err(io::Error::other)
}

/// Removes the socket of a pager that has ended, if there is one.
///
/// # Errors
/// The directory cannot be written.
pub fn forget(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

fn socket() -> io::Result<OwnedFd> {
    Ok(rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?)
}
