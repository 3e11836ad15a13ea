//! A place in a container, taken for CRIU before it is known what CRIU is to do there.

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::io::Interest;
use woodfrog_sys::process::{Child, HELPER_PIDS, Place, Program, SpawnError, Waiting};
use woodfrog_sys::ready::Ready;

use crate::worker::WorkerError;

/// Who has not come by then does not come.
const EXPIRY: Duration = Duration::from_secs(60);

/// A process that waits in a container's namespaces and cgroups to become CRIU. It gives up when this is dropped, after
/// a minute, and with the caller; if it is killed with its container, it is reaped at once.
#[derive(Debug)]
pub struct Seat {
    waiting: Arc<Mutex<Option<Waiting>>>,
    container: Arc<OwnedFd>,
}

impl Seat {
    /// Enters a container, given as a pidfd of its PID 1, and its cgroups, one directory for each hierarchy. Takes a
    /// millisecond, or up to 30 where v1 cgroups are entered.
    pub async fn take(container: Arc<OwnedFd>, cgroups: Vec<OwnedFd>) -> Result<Self, WorkerError> {
        let pid1 = container.clone();
        let entered = tokio::task::spawn_blocking(move || {
            let place = Place::default().inside(pid1.as_fd(), HELPER_PIDS);
            cgroups.iter().fold(place, |place, directory| place.cgroup(directory.as_fd())).enter()
        });
        let waiting = entered.await.map_err(io::Error::other)??;
        let pidfd = Ready::new(waiting.pidfd()?, Interest::READABLE)?;
        let waiting = Arc::new(Mutex::new(Some(waiting)));
        let slot = waiting.clone();
        tokio::spawn(async move {
            let _ = tokio::time::timeout(EXPIRY, pidfd.when(Interest::READABLE, |_| Ok(()))).await;
            drop(empty(&slot));
        });
        Ok(Self { waiting, container })
    }

    /// Starts a program there; with it, PID 1 of the container. Blocks.
    pub(crate) fn run(&self, program: &Program<'_>) -> Result<(Child, Arc<OwnedFd>), SpawnError> {
        let waiting = empty(&self.waiting).ok_or(SpawnError::Gone)?;
        Ok((waiting.run(program)?, self.container.clone()))
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        drop(empty(&self.waiting));
    }
}

fn empty(slot: &Mutex<Option<Waiting>>) -> Option<Waiting> {
    slot.lock().unwrap_or_else(PoisonError::into_inner).take()
}
