//! States of applications that fell asleep, kept on the node until they wake (`on-idle: Save`).
//!
//! ```text
//!   SAVES/TOKEN/memory/.woodfrog/checkpoint/*.img           CRIU's images
//!              /state/.woodfrog/checkpoint/woodfrog.json    what they are, as in an image
//!              /work                                        CRIU's log
//! ```
//!
//! Such a state has no root file system and no volumes: those are still there. It is under another name until it is
//! whole, and is removed once it has been thawed.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::task::spawn_blocking;
use tokio_util::sync::CancellationToken;
use woodfrog_criu::Dump;
use woodfrog_image::{CheckpointRecord, Compatibility, labels, record_of};
use woodfrog_protocol::agent::Connections;

use super::Engine;
use super::container::Container;
use super::dump::{self, Held, Subject};
use super::dump_dir::DumpDir;
use super::error::FreezeError;
use super::freeze;
use super::phases::Stopwatch;
use super::prepared::{PrepareError, Prepared};
use super::runtime::Layers;

/// How the directory of a state that is not whole yet ends.
const UNFINISHED: &str = ".new";

/// The states of a node.
#[derive(Clone, Debug)]
pub struct Saves(PathBuf);

/// A state that is on the disk, of an application whose tasks are still held.
pub(super) struct Saved {
    /// To be thawed.
    pub(super) prepared: Arc<Prepared>,
    /// Ends when the application does.
    pub(super) dump: Dump,
}

impl Saves {
    /// Those in a directory of the agent's own.
    pub fn new(directory: PathBuf) -> Self {
        Self(directory)
    }

    fn of(&self, container: &Container) -> PathBuf {
        self.0.join(&container.token)
    }

    /// The state of a container that sleeps; none if there is none, or it is of no use.
    pub(super) async fn find(
        &self,
        engine: &Engine,
        container: &Container,
        image: &Prepared,
    ) -> Option<Arc<Prepared>> {
        let directory = self.of(container);
        if !directory.is_dir() {
            return None;
        }
        let (digest, node) = (image.digest.clone(), engine.node.clone());
        match spawn_blocking(move || read(&directory, digest, &node)).await {
            Ok(Ok(prepared)) => Some(Arc::new(of_image(prepared, image))),
            Ok(Err(e)) => {
                container.note(format!("the state that it was saved in is lost: {e}"));
                None
            }
            Err(_) => None,
        }
    }

    /// Removes the state of a container, if there is one.
    pub(super) fn forget(&self, container: &Container) {
        for directory in [self.of(container), self.unfinished(container)] {
            if let Err(e) = remove(&directory) {
                container.note(format!("cannot remove {}: {e}", directory.display()));
            }
        }
    }

    fn unfinished(&self, container: &Container) -> PathBuf {
        self.0.join(format!("{}{UNFINISHED}", container.token))
    }

    /// Removes the states of containers that are not among `alive`, by token.
    ///
    /// # Errors
    /// The directory cannot be read or written.
    pub fn keep_only(&self, alive: &[String]) -> io::Result<()> {
        for entry in std::fs::read_dir(&self.0)? {
            let entry = entry?;
            if !alive.iter().any(|token| entry.file_name() == token.as_str()) {
                remove(&entry.path())?;
            }
        }
        Ok(())
    }

    /// Dumps an application that has nothing to do, unless it is `wanted` meanwhile. Its tasks are held when this returns, and its init
    /// holds back signals since before.
    ///
    /// # Errors
    /// It cannot be dumped, or not be thawed from what was dumped, or is wanted. The application runs on.
    pub(super) async fn save(
        &self,
        engine: &Engine,
        container: &Arc<Container>,
        image: &Prepared,
        wanted: &CancellationToken,
    ) -> Result<Saved, FreezeError> {
        self.forget(container);
        let name = container.info.display();
        let connections = Connections::Refuse;
        let tree = freeze::preflight(container, connections)
            .map_err(|findings| FreezeError::Preflight { containers: vec![name.clone()], findings })?;
        let source = engine.runtime.image(&container.info.id).await?;
        let record = CheckpointRecord {
            after_restore: image.record.after_restore.clone(),
            ..freeze::record(engine, container, &tree, &source)?
        };
        let dir = self.unfinished(container);
        let failed = |source| FreezeError::Directory { path: dir.clone(), source };
        let images = DumpDir::on_disk(memory(&dir).join(labels::CHECKPOINT_DIR)).map_err(failed)?;
        let shared = freeze::shared(engine, container, &tree)?;
        let subject = Subject { container: container.clone(), tree, dir: dir.clone(), connections, shared };
        let mut watch = Stopwatch::start("save");
        let Held { dump, images, standing } =
            dump::hold(engine.criu.clone(), &subject, images, wanted, &mut watch).await?;
        let (whole, digest, node) = (self.of(container), image.digest.clone(), engine.node.clone());
        let owner = name.clone();
        let mut finishing = spawn_blocking(move || {
            if let (Some(shared), Some(standing)) = (&subject.shared, standing) {
                let converted = shared.convert(&standing, images.path());
                converted.map_err(|source| FreezeError::Shared { container: owner.clone(), source })?;
            }
            let record = record_of(images.path(), record).and_then(|record| Ok(record.to_json()?));
            let record = record.map_err(|source| FreezeError::Build { container: owner, source })?;
            write_record(&subject.dir, &record)
                .and_then(|()| std::fs::rename(&subject.dir, &whole))
                .and_then(|()| read(&whole, digest, &node).map_err(io::Error::other))
                .map_err(|source| FreezeError::Directory { path: whole, source })
        });
        let finished = tokio::select! {
            biased;
            // First: whoever was heard of now knocks no more.
            () = wanted.cancelled() => Err(FreezeError::GaveWay { container: name.clone() }),
            finished = &mut finishing => finished.unwrap_or(Err(FreezeError::Panic)),
        };
        match finished {
            Ok(prepared) => Ok(Saved { prepared: Arc::new(of_image(prepared, image)), dump }),
            Err(e) => {
                // Whoever waits for the application first, then what it leaves.
                let refused = dump.refuse().await;
                if !finishing.is_finished() {
                    let _ = finishing.await;
                }
                self.forget(container);
                refused.map_err(|source| FreezeError::Dump { container: name, source })?;
                Err(e)
            }
        }
    }
}

/// Where CRIU's images go in the directory of a dump.
pub(super) fn memory(directory: &Path) -> PathBuf {
    directory.join("memory")
}

fn state(directory: &Path) -> PathBuf {
    directory.join("state")
}

/// Writes the record beside CRIU's images.
pub(super) fn write_record(directory: &Path, record: &[u8]) -> io::Result<()> {
    let checkpoint = state(directory).join(labels::CHECKPOINT_DIR);
    std::fs::create_dir_all(&checkpoint)?;
    std::fs::write(checkpoint.join(labels::RECORD_FILE), record)
}

/// Reads the state in such a directory, as if it were an image with this digest.
///
/// # Errors
/// It cannot be restored.
pub(super) fn read(directory: &Path, digest: String, node: &Compatibility) -> Result<Prepared, PrepareError> {
    let layers = Layers { lower: vec![state(directory), memory(directory)], upper: PathBuf::new() };
    let mut prepared = Prepared::read(&layers, digest, node)?;
    prepared.saved = true;
    Ok(prepared)
}

/// It wants first what its image does, as far as it still has that.
fn of_image(mut saved: Prepared, image: &Prepared) -> Prepared {
    saved.wanted.clone_from(&image.wanted);
    saved
}

fn remove(directory: &Path) -> io::Result<()> {
    match std::fs::remove_dir_all(directory) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states_of_containers_that_are_no_more_are_removed() {
        let directory = tempfile::tempdir().unwrap();
        for name in ["a", "b", "b.new"] {
            std::fs::create_dir_all(directory.path().join(name).join("work")).unwrap();
        }
        Saves::new(directory.path().into()).keep_only(&["a".into(), "c".into()]).unwrap();
        let left: Vec<_> =
            std::fs::read_dir(directory.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(left, ["a"]);
    }
}
