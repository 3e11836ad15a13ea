//! A checkpoint image on this node, read and checked as far as that needs no container that runs.
//!
//! The image's files are read from the runtime's layer directories, never through the container's own view, which the
//! container can write to.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags, ResolveFlags};
use tracing::warn;
use woodfrog_criu::images::{Checkpoint, ImageDir};
use woodfrog_image::{
    CheckpointRecord, Compatibility, FileError, Incompatibility, ReadError, ReadRecord, RecordedSet, labels,
};
use woodfrog_protocol::pager::Wanted;

use super::image_set;
use super::runtime::Layers;
use crate::policy;

/// A checkpoint that can be restored, again and again.
#[derive(Debug)]
pub struct Prepared {
    /// `woodfrog.json`.
    pub record: CheckpointRecord,
    /// CRIU's files but the memory.
    pub images: Checkpoint,
    /// The part of the policy check that needs no container.
    pub policy: policy::Prepared,
    /// The `.woodfrog/checkpoint` directory of each layer that has one, topmost first.
    pub dirs: Vec<OwnedFd>,
    /// All of them, one over the other.
    merged: ImageDir,
    /// Digest of the image's manifest.
    pub digest: String,
    /// What its processes want first, as the image says.
    pub wanted: Vec<Wanted>,
    /// The state that one container was in, and not what its image has: of no use to others.
    pub saved: bool,
}

/// Why an image cannot be restored here.
#[derive(Debug, thiserror::Error)]
pub enum PrepareError {
    /// A layer directory cannot be read.
    #[error("cannot read {path} of the checkpoint image: {source}")]
    Read {
        /// The file or directory.
        path: PathBuf,
        /// The kernel's word.
        source: io::Error,
    },
    /// No layer has a record.
    #[error(
        "the image has no /{}/{}: it is no checkpoint image",
        labels::CHECKPOINT_DIR,
        labels::RECORD_FILE
    )]
    NoRecord,
    /// The record cannot be read, or not by this release.
    #[error(transparent)]
    Record(#[from] ReadError),
    /// The node is not compatible.
    #[error("this node cannot thaw the image: {}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    Incompatible(Vec<Incompatibility>),
    /// A file is not what the record says.
    #[error(transparent)]
    Damaged(#[from] FileError),
    /// CRIU's files are not understood.
    #[error(transparent)]
    Images(#[from] woodfrog_criu::images::ImageError),
}

impl Prepared {
    /// Reads and checks the checkpoint in `layers`. Blocks for some milliseconds.
    ///
    /// # Errors
    /// Whatever makes it useless on this node.
    pub fn read(layers: &Layers, digest: String, node: &Compatibility) -> Result<Self, PrepareError> {
        let mut dirs = Vec::new();
        for layer in &layers.lower {
            dirs.extend(checkpoint_dir(layer)?);
        }
        let record = find(&dirs, labels::RECORD_FILE).map_err(|_| PrepareError::NoRecord)?;
        let ReadRecord { record, digest: capture } = woodfrog_image::read_record(record)?;
        record.compatibility.compatible(node).map_err(PrepareError::Incompatible)?;
        record.check_files(|name| find(&dirs, name))?;
        let merged = overlay(dirs.iter().map(AsFd::as_fd))?;
        // A mount's own descriptor is only a place; to read it, it is opened.
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let opened = rustix::fs::openat(&merged, ".", flags, Mode::empty())
            .map_err(|e| PrepareError::Read { path: labels::CHECKPOINT_DIR.into(), source: e.into() })?;
        let merged = ImageDir::new(opened);
        let mut images = Checkpoint::open(&merged, &[labels::RECORD_FILE, "volumes"])?;
        images.check_pages(&[&merged])?;
        let policy = policy::prepare(&images);
        images.release_archives();
        let wanted = wanted(layers, &capture, &images);
        Ok(Self { record, images, policy, dirs, merged, digest, wanted, saved: false })
    }

    /// The image directory for CRIU: the files of `scratch` in place of the image's own. It is attached nowhere.
    ///
    /// # Errors
    /// The kernel refuses the overlay.
    pub fn with(&self, scratch: &OwnedFd) -> Result<OwnedFd, PrepareError> {
        overlay([scratch].into_iter().chain(&self.dirs).map(AsFd::as_fd))
    }

    /// The directory with the checkpoint's files.
    pub fn directory(&self) -> BorrowedFd<'_> {
        self.merged.as_fd()
    }

    /// Whether the state of established connections is in the image: only a freeze that keeps them writes it.
    pub fn keeps_connections(&self) -> bool {
        !self.images.tcp_streams.is_empty()
    }

    /// Opens one of the checkpoint's files.
    ///
    /// # Errors
    /// No layer has it.
    pub fn open(&self, name: &str) -> io::Result<File> {
        find(&self.dirs, name)
    }
}

/// What the image says of that, if it is of any use.
fn wanted(layers: &Layers, capture: &str, images: &Checkpoint) -> Vec<Wanted> {
    let file = layers.lower.iter().find_map(|layer| {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::open(layer, flags, Mode::empty()).ok()?;
        open(root, labels::WORKING_SET_PATH).ok()
    });
    let Some(file) = file else { return Vec::new() };
    let set = RecordedSet::read(file).map_err(|e| e.to_string());
    let checked = set.and_then(|set| image_set::check(set, capture, images).map_err(|e| e.to_string()));
    checked.unwrap_or_else(|why| {
        warn!("what an image says of the memory that is wanted first is not used: {why}");
        Vec::new()
    })
}

fn overlay<'a>(dirs: impl Iterator<Item = BorrowedFd<'a>>) -> Result<OwnedFd, PrepareError> {
    woodfrog_sys::mount::read_only_overlay(&dirs.collect::<Vec<_>>())
        .map_err(|e| PrepareError::Read { path: labels::CHECKPOINT_DIR.into(), source: e.into() })
}

fn checkpoint_dir(layer: &Path) -> Result<Option<OwnedFd>, PrepareError> {
    let failed = |source: rustix::io::Errno| PrepareError::Read { path: layer.into(), source: source.into() };
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = rustix::fs::open(layer, flags, Mode::empty()).map_err(failed)?;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    match rustix::fs::openat2(root, labels::CHECKPOINT_DIR, flags, Mode::empty(), resolve) {
        Ok(dir) => Ok(Some(dir)),
        Err(rustix::io::Errno::NOENT) => Ok(None),
        Err(e) => Err(failed(e)),
    }
}

fn open(dir: impl AsFd, name: &str) -> io::Result<File> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    let file = File::from(rustix::fs::openat2(dir, name, flags, Mode::empty(), resolve)?);
    if file.metadata()?.is_file() { Ok(file) } else { Err(io::Error::other("not a regular file")) }
}

fn find(dirs: &[OwnedFd], name: &str) -> io::Result<File> {
    for dir in dirs {
        match open(dir, name) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            other => return other,
        }
    }
    Err(io::ErrorKind::NotFound.into())
}
