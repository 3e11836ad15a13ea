//! A dump: the tree of a container is written to images, and runs on.
//!
//! ```text
//!   PreDump ──► (tasks seized) ──► NetworkLock* ──► QueryExternalFiles ──► (images written)
//!                                                                              │
//!   finished ◄── (tasks run on) ◄── NetworkUnlock* ◄──────────────────────── PostDump
//!                                   * only if the tree has a network namespace of its own
//! ```
//!
//! [`DumpStage::PostDump`] is the one that counts: every image is written and the tasks are still held (only CRIU's
//! statistics, `stats-dump`, come later). Several dumps are made as of one moment by holding each there. A refusal,
//! or a caller that disappears, makes the dump fail at any stage, and the tasks run on unharmed (CRIU's
//! `cr_dump_finish`).

use crate::exchange::{Exchange, Heard};
use crate::failure::{CriuError, Operation};
use crate::options::DumpOptions;
use crate::rpc::{Kind, Notify};
use crate::worker::{Given, Worker};

/// Where a dump has stopped until the caller lets it go on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DumpStage {
    /// Nothing has been touched.
    PreDump,
    /// The tasks are held.
    NetworkLock,
    /// The tasks are held; CRIU asks for files that are to be left out (none are).
    QueryExternalFiles,
    /// All images are written, the tasks are still held.
    PostDump,
    /// The tasks are about to run on. A refusal is of no effect any more.
    NetworkUnlock,
    /// A stage of a newer CRIU.
    Other(String),
}

impl DumpStage {
    fn new(notify: Notify) -> Self {
        match notify.script.as_deref() {
            Some("pre-dump") => Self::PreDump,
            Some("network-lock") => Self::NetworkLock,
            Some("query-ext-files") => Self::QueryExternalFiles,
            Some("post-dump") => Self::PostDump,
            Some("network-unlock") => Self::NetworkUnlock,
            other => Self::Other(other.unwrap_or_default().to_owned()),
        }
    }
}

/// A dump under way. Dropping it is a refusal.
#[derive(Debug)]
pub struct Dump(Exchange);

impl Worker {
    /// Starts a dump into the directory that the worker was given as `images`.
    pub async fn dump(self, images: Given, options: &DumpOptions) -> Result<Dump, CriuError> {
        let operation = Operation::Dump { pid: options.pid };
        Exchange::start(self, operation, Kind::Dump, options.to_rpc(images)).await.map(Dump)
    }
}

impl Dump {
    /// Lets CRIU go on and waits for its next stage; none when the dump has succeeded and the tasks run.
    pub async fn next(&mut self) -> Result<Option<DumpStage>, CriuError> {
        match self.0.next().await? {
            Heard::Stage(notify, _) => Ok(Some(DumpStage::new(notify))),
            Heard::Done(_) => Ok(None),
        }
    }

    /// Lets CRIU go on until [`DumpStage::PostDump`], and leaves it there. False: it was at a stage, this or an earlier one, when
    /// `is_futile` said so, and waits there to be refused.
    pub async fn written(&mut self, is_futile: impl Fn() -> bool) -> Result<bool, CriuError> {
        while let Some(stage) = self.next().await? {
            if is_futile() {
                return Ok(false);
            }
            if stage == DumpStage::PostDump {
                return Ok(true);
            }
        }
        Err(CriuError::unexpected(Operation::Dump { pid: 0 }, "it ended without post-dump"))
    }

    /// Lets CRIU go on to the end: the tasks run again, and the worker has ended.
    pub async fn finish(mut self) -> Result<(), CriuError> {
        while self.next().await?.is_some() {}
        Ok(())
    }

    /// Waits until CRIU is gone, without letting it go on: for a container that is being ended while its tasks are held,
    /// by which their connections vanish without a word to their peers.
    pub async fn ended(mut self) -> Result<(), CriuError> {
        self.0.ended().await
    }

    /// Gives the dump up. The tasks run on when this returns.
    pub async fn refuse(self) -> Result<(), CriuError> {
        self.0.refuse().await
    }
}
