//! What is done for an image before a pod of it comes: its memory goes to the page store, or its page files into the page cache.
//!
//! Only where the image is on the node already: to pull it is kubelet's, who knows with whose credentials.

use std::collections::BTreeSet;
use std::fs::File;
use std::os::fd::AsFd as _;
use std::sync::Arc;

use procfs::{Current, Meminfo};
use rustix::fs::Advice;
use tokio::task::spawn_blocking;
use woodfrog_image::MemoryMode;
use woodfrog_protocol::pager::WorkingSet;

use super::prepared::{PrepareError, Prepared};
use super::runtime::{Borrowed, RuntimeError};
use super::{Engine, page_plan};

/// Page files are read ahead only where they take at most one part in so many of the memory that is available.
const SHARE: u64 = 4;

/// What came of it.
#[derive(Debug, PartialEq, Eq)]
pub enum Ahead {
    /// The image is not on this node.
    Absent,
    /// Its memory is in the page store.
    Stored,
    /// Its page files are being read.
    Read,
    /// There is no room for it.
    NoRoom,
}

/// Why nothing was done.
#[derive(Debug, thiserror::Error)]
pub enum AheadError {
    /// The runtime.
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
    /// It cannot be thawed here.
    #[error(transparent)]
    Prepare(#[from] PrepareError),
    /// The page store.
    #[error(transparent)]
    Store(#[from] super::page_store::PageStoreError),
    /// A bug.
    #[error("the agent failed inside: {0}")]
    Panic(#[from] tokio::task::JoinError),
}

impl Engine {
    /// Makes ready for pods of an image that have their memory in this way, or as the image says. Images with the digests in `wanted` are
    /// not let go for it.
    ///
    /// # Errors
    /// They will thaw as if this had not been tried.
    pub async fn ahead(
        self: &Arc<Self>,
        reference: &str,
        memory: Option<MemoryMode>,
        wanted: Arc<BTreeSet<String>>,
    ) -> Result<Ahead, AheadError> {
        let Some(borrowed) = self.runtime.borrow(reference).await? else { return Ok(Ahead::Absent) };
        let Borrowed { digest, layers, .. } = borrowed.clone();
        let engine = self.clone();
        let done = spawn_blocking(move || {
            let prepared = Prepared::read(&layers, digest, &engine.node)?;
            match (memory.unwrap_or(prepared.record.memory_mode), &engine.page_store) {
                (MemoryMode::Shared, Some(store)) => {
                    let processes = page_plan::plan(&prepared.images, WorkingSet::default(), true).processes;
                    let stored = store.fill_ahead(&prepared, &processes, &wanted)?;
                    Ok(if stored { Ahead::Stored } else { Ahead::NoRoom })
                }
                _ => Ok(read_ahead(&prepared)),
            }
        });
        let done = done.await;
        self.runtime.give_back(&borrowed).await?;
        done?
    }
}

/// Has the kernel read the page files, which it keeps as long as it has no better use for the memory.
fn read_ahead(prepared: &Prepared) -> Ahead {
    let available = Meminfo::current().ok().and_then(|info| info.mem_available).unwrap_or(0);
    if prepared.record.memory_bytes() > available / SHARE {
        return Ahead::NoRoom;
    }
    for file in &prepared.record.memory {
        let advise = |file: File| rustix::fs::fadvise(file.as_fd(), 0, None, Advice::WillNeed);
        let _ = prepared.open(&file.name).map(advise);
    }
    Ahead::Read
}
