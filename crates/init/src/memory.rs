//! The memory of a thawed application that is still to come: what init holds for the pager, and how it ends.
//!
//! A userfaultfd whose last descriptor closes lets every thread that waits for a page go on with zeros. So init has a
//! descriptor of each, too: if the pager dies, they wait until init has killed them.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use woodfrog_protocol::pager;
use woodfrog_sys::scm;

/// What the pager has said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Heard {
    /// Nothing that ends it.
    Nothing,
    /// All memory is there.
    Complete,
    /// The pager has gone, or speaks nonsense.
    Lost,
}

/// The pager's socket, and what it has given to hold.
pub(crate) struct Memory {
    socket: OwnedFd,
    held: Vec<OwnedFd>,
}

impl Memory {
    /// Listens to a pager.
    pub(crate) fn new(socket: OwnedFd) -> Self {
        Self { socket, held: Vec::new() }
    }

    /// What to poll for reading.
    pub(crate) fn descriptor(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Takes in what has come; the socket is readable.
    pub(crate) fn hear(&mut self) -> Heard {
        let mut message = [0; 1];
        match scm::receive(self.socket.as_fd(), &mut message) {
            Ok(received) => {
                let said = &message[..received.bytes];
                if said == pager::HOLD {
                    self.held.extend(received.descriptors);
                    Heard::Nothing
                } else if said == pager::COMPLETE {
                    Heard::Complete
                } else {
                    Heard::Lost
                }
            }
            Err(Errno::INTR | Errno::AGAIN) => Heard::Nothing,
            Err(_) => Heard::Lost,
        }
    }
}
