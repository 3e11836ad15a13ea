//! The memory of a thawed application that is still to come: what init holds for the pager, and how it ends.
//!
//! A userfaultfd whose last descriptor closes lets every thread that waits for a page go on with zeros. So init has a
//! descriptor of each, too: if the pager dies, they wait until init has killed them. Where memory is shared, that goes on as long as the
//! application lives.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use woodfrog_protocol::pager;
use woodfrog_sys::scm;

/// What the pager has said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Heard {
    /// Nothing that ends it.
    Nothing,
    /// All memory is there, and the pager stays.
    Mapped,
    /// All memory is there.
    Complete,
    /// The pager has gone, or speaks nonsense.
    Lost,
}

/// The pager's socket, and what it has given to hold.
pub(crate) struct Memory {
    socket: OwnedFd,
    /// By number.
    held: BTreeMap<u64, OwnedFd>,
    given: u64,
    /// All memory is there.
    mapped: bool,
}

impl Memory {
    /// Listens to a pager.
    pub(crate) fn new(socket: OwnedFd) -> Self {
        Self { socket, held: BTreeMap::new(), given: 0, mapped: false }
    }

    /// What to poll for reading.
    pub(crate) fn descriptor(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Whether some of it is still to come.
    pub(crate) fn is_pending(&self) -> bool {
        !self.mapped
    }

    /// Takes in what has come; the socket is readable.
    pub(crate) fn hear(&mut self) -> Heard {
        let mut message = [0; pager::MAX_MESSAGE];
        match scm::receive(self.socket.as_fd(), &mut message) {
            Ok(received) => {
                let said = &message[..received.bytes];
                if said == pager::HOLD {
                    self.held.extend((self.given..).zip(received.descriptors));
                    self.given += 1;
                    Heard::Nothing
                } else if let Some(number) = pager::released(said) {
                    self.held.remove(&number);
                    Heard::Nothing
                } else if said == pager::MAPPED {
                    self.mapped = true;
                    Heard::Mapped
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
