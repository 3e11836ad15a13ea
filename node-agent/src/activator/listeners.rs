//! The ports on which an image's application can be reached.

use std::collections::BTreeSet;

use woodfrog_criu::images::{Checkpoint, SocketState};

const TCP: u32 = 6;
const UDP: u32 = 17;

/// Ports that wake.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Listeners {
    /// TCP ports that are listened on.
    pub tcp: BTreeSet<u16>,
    /// UDP ports that are bound, without a peer.
    pub udp: BTreeSet<u16>,
}

impl Listeners {
    /// Those of a checkpoint.
    pub fn of(images: &Checkpoint) -> Self {
        let mut found = Self::default();
        for socket in images.sockets().filter(|socket| socket.local.port() != 0) {
            match (socket.protocol, socket.state) {
                (TCP, SocketState::Listening) => found.tcp.insert(socket.local.port()),
                (UDP, _) if socket.peer.is_none() => found.udp.insert(socket.local.port()),
                _ => false,
            };
        }
        found
    }

    /// Whether no packet could ever wake it.
    pub fn is_empty(&self) -> bool {
        self.tcp.is_empty() && self.udp.is_empty()
    }
}
