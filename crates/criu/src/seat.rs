//! A place in a container, taken for CRIU before it is known what CRIU is to do there.

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::io::Interest;
use tokio::task::{JoinHandle, spawn_blocking};
use woodfrog_sys::process::{Child, HELPER_PIDS, Place, Program, SpawnError, Waiting};
use woodfrog_sys::ready::Ready;

use crate::worker::WorkerError;

/// A process that waits in a container's namespaces and cgroups to become CRIU. It gives up when this is dropped, and with the caller; if
/// it is killed with its container, it is reaped at once.
#[derive(Debug)]
pub struct Seat {
    waiting: Arc<Mutex<Option<Waiting>>>,
    container: Arc<OwnedFd>,
    moved: Option<Moved>,
}

/// The move into cgroups of version 1.
pub(crate) type Moved = JoinHandle<Result<(), SpawnError>>;

impl Seat {
    /// Enters a container, given as a pidfd of its PID 1, and its cgroups, one directory for each hierarchy. Takes a
    /// millisecond; cgroups of version 1, which may take 30 more, are entered afterwards, before CRIU makes its first task.
    pub async fn take(container: Arc<OwnedFd>, cgroups: Vec<OwnedFd>) -> Result<Self, WorkerError> {
        let pid1 = container.clone();
        let entered = spawn_blocking(move || {
            let place = Place::default().inside(pid1.as_fd(), HELPER_PIDS);
            cgroups.iter().fold(place, |place, directory| place.cgroup(directory.as_fd())).begin()
        });
        let (waiting, left) = entered.await.map_err(io::Error::other)??;
        let moved = spawn_blocking(move || left.finish());
        let pidfd = Ready::new(waiting.pidfd()?, Interest::READABLE)?;
        let waiting = Arc::new(Mutex::new(Some(waiting)));
        let slot = waiting.clone();
        tokio::spawn(async move {
            let _ = pidfd.when(Interest::READABLE, |_| Ok(())).await;
            drop(empty(&slot));
        });
        Ok(Self { waiting, container, moved: Some(moved) })
    }

    /// Starts a program there; with it, PID 1 of the container, and what is still to be waited for. Blocks.
    pub(crate) fn run(
        mut self,
        program: &Program<'_>,
    ) -> Result<(Child, Arc<OwnedFd>, Option<Moved>), SpawnError> {
        let waiting = empty(&self.waiting).ok_or(SpawnError::Gone)?;
        Ok((waiting.run(program)?, self.container.clone(), self.moved.take()))
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
