//! A restore: a tree comes back from images, in the namespaces that the worker was started in.
//!
//! ```text
//!   PreRestore ──► (tasks made) ──► SetupNamespaces* ──► PostSetupNamespaces* ──► (files, memory)
//!                                                                                     │
//!        last moment at which a refusal kills everything that was restored ──►  PostRestore{pid}
//!                                                                                     │
//!   finished ◄── PostResume ◄── (tasks run) ◄── PreResume ◄── (credentials) ◄── NetworkUnlock*
//!                                             * only with namespaces of the tree's own; a time namespace counts
//! ```
//!
//! [`RestoreStage::PostRestore`] is the one that counts. Until it is acknowledged, a refusal, an error or a caller
//! that disappears makes CRIU kill every task that it has made (`restore_root_task`, `out_kill`), none of which has
//! run a single instruction of its own. After it, CRIU still can fail, and then kills them too; but it no longer asks:
//! refusing `NetworkUnlock`, `PreResume` or `PostResume`, or disappearing at them, changes nothing, and the tasks run.
//!
//! What CRIU cannot clean up is its own violent death ([`crate::End::Killed`]) before the tasks run: they stay, children of
//! the container's PID 1, and never run. Whoever waits for the worker has to kill everything but PID 1 then.

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use crate::exchange::{Exchange, Heard};
use crate::failure::{CriuError, Operation};
use crate::options::RestoreOptions;
use crate::rpc::{Kind, Notify};
use crate::worker::{Given, Worker};

/// Where a restore has stopped until the caller lets it go on.
#[derive(Debug)]
pub enum RestoreStage {
    /// Nothing has been made.
    PreRestore,
    /// The root task exists, in its own namespaces if it has any.
    SetupNamespaces {
        /// PID of the root task in the container.
        pid: i32,
    },
    /// Those namespaces are ready.
    PostSetupNamespaces,
    /// Everything is restored and nothing runs: the last stage that can be refused.
    PostRestore {
        /// PID of the root task in the container.
        pid: i32,
    },
    /// Past refusing: the network is about to be unlocked.
    NetworkUnlock,
    /// Past refusing: the tasks are at their first instruction.
    PreResume,
    /// Past refusing: the tasks run.
    PostResume,
    /// A terminal without a slave, for whoever wants to serve it.
    OrphanPtsMaster(Option<OwnedFd>),
    /// A stage of a newer CRIU.
    Other(String),
}

impl RestoreStage {
    fn new(notify: Notify, descriptor: Option<OwnedFd>) -> Self {
        let pid = notify.pid.unwrap_or_default();
        match notify.script.as_deref() {
            Some("pre-restore") => Self::PreRestore,
            Some("setup-namespaces") => Self::SetupNamespaces { pid },
            Some("post-setup-namespaces") => Self::PostSetupNamespaces,
            Some("post-restore") => Self::PostRestore { pid },
            Some("network-unlock") => Self::NetworkUnlock,
            Some("pre-resume") => Self::PreResume,
            Some("post-resume") => Self::PostResume,
            Some("orphan-pts-master") => Self::OrphanPtsMaster(descriptor),
            other => Self::Other(other.unwrap_or_default().to_owned()),
        }
    }
}

/// A restore that has come to its end, and how long CRIU took for its steps, without the time for which it waited for its caller.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Restored {
    /// PID of the root task in the container.
    pub pid: i32,
    /// From the request until [`RestoreStage::PreRestore`]: reading the images.
    pub images: Duration,
    /// From then until [`RestoreStage::PostRestore`]: making the tasks, their files, memory and threads.
    pub tasks: Duration,
    /// From then until [`RestoreStage::PreResume`]: their credentials, and stopping each of them where its own code begins.
    pub catch: Duration,
    /// From then until its end: letting them go.
    pub release: Duration,
}

/// A restore under way. Dropping it is a refusal.
#[derive(Debug)]
pub struct Restore {
    exchange: Exchange,
    restored: Restored,
    /// What it does now.
    step: fn(&mut Restored) -> &mut Duration,
}

impl Worker {
    /// Starts a restore from the directory that the worker was given as `images`.
    pub async fn restore(self, images: Given, options: &RestoreOptions) -> Result<Restore, CriuError> {
        let exchange =
            Exchange::start(self, Operation::Restore, Kind::Restore, options.to_rpc(images)).await?;
        Ok(Restore { exchange, restored: Restored::default(), step: |restored| &mut restored.images })
    }
}

impl Restore {
    /// The process that restores.
    pub fn worker(&self) -> &Worker {
        &self.exchange.worker
    }

    /// Lets CRIU go on and waits for its next stage; none when the tree runs and the worker has ended, so that the
    /// root task is now a child of the container's PID 1.
    pub async fn next(&mut self) -> Result<Option<RestoreStage>, CriuError> {
        let began = Instant::now();
        let heard = self.exchange.next().await?;
        *(self.step)(&mut self.restored) += began.elapsed();
        match heard {
            Heard::Stage(notify, descriptor) => {
                let stage = RestoreStage::new(notify, descriptor);
                match stage {
                    RestoreStage::PreRestore => self.step = |restored| &mut restored.tasks,
                    RestoreStage::PostRestore { .. } => self.step = |restored| &mut restored.catch,
                    RestoreStage::PreResume => self.step = |restored| &mut restored.release,
                    _ => {}
                }
                Ok(Some(stage))
            }
            Heard::Done(response) => {
                self.restored.pid = response.restore.map_or(0, |restore| restore.pid);
                Ok(None)
            }
        }
    }

    /// Lets CRIU go on until [`RestoreStage::PreRestore`], and leaves it there, in all its cgroups: it has read the images, and made no process.
    pub async fn before_tasks(&mut self) -> Result<(), CriuError> {
        match self.next().await? {
            Some(RestoreStage::PreRestore) => self.exchange.moved().await,
            _ => Err(CriuError::unexpected(Operation::Restore, "it did not begin with pre-restore")),
        }
    }

    /// Lets CRIU go on until [`RestoreStage::PostRestore`], and leaves it there; the PID of the root task in the
    /// container.
    pub async fn restored(&mut self) -> Result<i32, CriuError> {
        while let Some(stage) = self.next().await? {
            if let RestoreStage::PostRestore { pid } = stage {
                return Ok(pid);
            }
        }
        Err(CriuError::unexpected(Operation::Restore, "it ended without post-restore"))
    }

    /// Lets CRIU go on until [`RestoreStage::PreResume`], and leaves it there: all memory is mapped where it belongs, and no thread runs.
    pub async fn before_resume(&mut self) -> Result<(), CriuError> {
        while let Some(stage) = self.next().await? {
            if matches!(stage, RestoreStage::PreResume) {
                return Ok(());
            }
        }
        Err(CriuError::unexpected(Operation::Restore, "it ended without pre-resume"))
    }

    /// Lets CRIU go on to the end.
    pub async fn finish(mut self) -> Result<Restored, CriuError> {
        while self.next().await?.is_some() {}
        Ok(self.restored)
    }

    /// Gives the restore up. When this returns the tasks have been killed; the container's PID 1 has to reap them.
    /// Only before [`RestoreStage::PostRestore`] is acknowledged: later it changes nothing.
    pub async fn refuse(self) -> Result<(), CriuError> {
        self.exchange.refuse().await
    }
}
