//! The node's page store: the memory of images, once for all applications that are thawed from them.
//!
//! ```text
//!   /run/woodfrog/pages (tmpfs)         seen by no container, kept when the agent is restarted
//!     ├── 3f…c1/                        hexadecimal digits of the digest of an image's manifest
//!     │     ├── mem-300                 a process's memory; a page's offset is its address, all else are holes
//!     │     ├── mem-312
//!     │     └── plan                    what was put there: an earlier release, or one that knew less, shared other memory
//!     └── .filling/                     what is not complete
//! ```
//!
//! Files are opened through a mount of their own that is read-only, so that whoever comes by a descriptor or a mapping cannot write to them
//! either. Who uses an image holds a shared lock of its directory: the pager of each application, as long as that lives. What nobody uses
//! goes when something else needs the room, first what was wanted longest ago.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, Read as _};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use prost::Message as _;
use rustix::fs::{FlockOperation, Mode, OFlags};
use woodfrog_protocol::agent::StoredImage;
use woodfrog_protocol::pager::{Fill, Process, Span, store_file};

use super::pager::PagerProgram;
use super::prepared::Prepared;
use super::spans::without;
use crate::metrics::Metrics;

/// What must remain free of the file system that the store is on: others use it, too.
const SPARE: u64 = 64 << 20;
const FILLING: &str = ".filling";
const PLAN: &str = "plan";

/// The page store of a node.
#[derive(Debug)]
pub struct PageStore {
    dir: PathBuf,
    /// The same directory, read-only.
    view: OwnedFd,
    budget: u64,
    program: Arc<PagerProgram>,
    metrics: Metrics,
    /// One image is filled in at a time.
    filling: Mutex<()>,
}

/// An image's memory. It stays in the store as long as this lives, or a pager that was given it.
#[derive(Debug)]
pub struct Stored {
    /// The directory, locked.
    lock: OwnedFd,
    files: BTreeMap<i32, OwnedFd>,
}

/// Why an image's memory is not in the store.
#[derive(Debug, thiserror::Error)]
pub enum PageStoreError {
    /// The directory is none that can hold memory.
    #[error("{} is not on a tmpfs: mount one there", .0.display())]
    NotMemory(PathBuf),
    /// The kernel.
    #[error("the kernel cannot share memory this way (userfaultfd minor faults, Linux 5.14): {0}")]
    Kernel(rustix::io::Errno),
    /// The budget, or the file system.
    #[error(
        "there is no room for {needed} bytes in the page store: {free} are free, and what is there is in use; \
         raise --page-store-bytes, or the size of the tmpfs"
    )]
    NoRoom {
        /// Bytes of the image.
        needed: u64,
        /// Bytes that could be had.
        free: u64,
    },
    /// The pager's program.
    #[error("the memory cannot be put into the page store: {0}")]
    Fill(String),
    /// A file of the store.
    #[error("cannot {action} in the page store: {source}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// The kernel's word.
        source: io::Error,
    },
}

fn failed(action: &'static str) -> impl FnOnce(io::Error) -> PageStoreError {
    move |source| PageStoreError::Io { action, source }
}

impl PageStore {
    /// The store in `dir`, with at most `budget` bytes.
    ///
    /// # Errors
    /// The kernel or the directory is not up to it: memory is copied then.
    pub fn open(
        dir: PathBuf,
        budget: u64,
        program: Arc<PagerProgram>,
        metrics: Metrics,
    ) -> Result<Self, PageStoreError> {
        woodfrog_sys::userfault::probe_shared().map_err(PageStoreError::Kernel)?;
        let filling = dir.join(FILLING);
        match fs::remove_dir_all(&filling) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(failed("clean up")(e)),
            _ => {}
        }
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&filling)
            .map_err(failed("make a directory"))?;
        let opened = open_directory(&dir).map_err(failed("open the directory"))?;
        let kind = rustix::fs::fstatfs(&opened).map_err(|e| failed("look at the file system")(e.into()))?;
        if kind.f_type != libc_tmpfs_magic() {
            return Err(PageStoreError::NotMemory(dir));
        }
        let view = woodfrog_sys::mount::read_only_clone(opened.as_fd());
        let view = view.map_err(|e| failed("make it read-only")(e.into()))?;
        Ok(Self { dir, view, budget, program, metrics, filling: Mutex::default() })
    }

    /// The memory of an image, which is put there if it is missing: that takes as long as reading all of it. Blocks.
    ///
    /// # Errors
    /// It is not there: memory has to be copied.
    pub fn get(&self, prepared: &Prepared, processes: &[Process]) -> Result<Stored, PageStoreError> {
        let Some(name) = prepared.digest.strip_prefix("sha256:") else {
            return Err(PageStoreError::Fill(format!("{:?} is no digest", prepared.digest)));
        };
        if let Some(stored) = self.find(name, processes)? {
            return Ok(stored);
        }
        let _one = self.filling.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(stored) = self.find(name, processes)? {
            return Ok(stored);
        }
        self.make_room(needed(processes), &BTreeSet::new())?;
        self.put(name, prepared, processes, false)?;
        self.find(name, processes)?.ok_or_else(|| PageStoreError::Fill("it has gone again".into()))
    }

    /// Puts an image's memory there before it is wanted, at low priority, unless there is no room beside what is used and what is `wanted`, by
    /// digest. Whether it is there. Blocks.
    ///
    /// # Errors
    /// As [`Self::get`].
    pub fn fill_ahead(
        &self,
        prepared: &Prepared,
        processes: &[Process],
        wanted: &BTreeSet<String>,
    ) -> Result<bool, PageStoreError> {
        let Some(name) = prepared.digest.strip_prefix("sha256:") else { return Ok(false) };
        let _one = self.filling.lock().unwrap_or_else(PoisonError::into_inner);
        if needed(processes) == 0 || self.find(name, processes)?.is_some() {
            return Ok(true);
        }
        match self.make_room(needed(processes), wanted) {
            Err(PageStoreError::NoRoom { .. }) => return Ok(false),
            made => made?,
        }
        self.put(name, prepared, processes, true).map(|()| true)
    }

    fn put(
        &self,
        name: &str,
        prepared: &Prepared,
        processes: &[Process],
        ahead: bool,
    ) -> Result<(), PageStoreError> {
        // What is there has not all of it, or it would have been found.
        if let Some(image) = Image::at(self.dir.join(name))
            && !image.remove().map_err(failed("remove an image"))?
        {
            return Err(PageStoreError::Fill("others use it, who share other parts of it".into()));
        }
        let filling = self.dir.join(FILLING).join(name);
        let filled = fs::create_dir(&filling)
            .map_err(failed("make a directory"))
            .and_then(|()| self.fill(&filling, prepared, processes, ahead))
            .and_then(|()| fs::rename(&filling, self.dir.join(name)).map_err(failed("name a directory")));
        if let Err(e) = filled {
            let _ = fs::remove_dir_all(&filling);
            return Err(e);
        }
        Ok(())
    }

    /// The file system that it is on.
    ///
    /// # Errors
    /// The directory is gone.
    pub fn device(&self) -> io::Result<u64> {
        Ok(fs::metadata(&self.dir)?.dev())
    }

    /// The most that it holds, in bytes.
    pub fn budget(&self) -> u64 {
        self.budget
    }

    /// What is in the store, by digest.
    pub fn list(&self) -> Vec<StoredImage> {
        let mut images: Vec<_> = self.images().into_iter().map(|image| image.described).collect();
        images.sort_by(|one, other| one.digest.cmp(&other.digest));
        images
    }

    fn find(&self, name: &str, processes: &[Process]) -> Result<Option<Stored>, PageStoreError> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let Ok(lock) = rustix::fs::openat(&self.view, name, flags, Mode::empty()) else { return Ok(None) };
        if rustix::fs::flock(&lock, FlockOperation::NonBlockingLockShared).is_err() {
            // It is being removed.
            return Ok(None);
        }
        if !has(&lock, processes) {
            return Ok(None);
        }
        let mut files = BTreeMap::new();
        for process in processes.iter().filter(|process| !process.shared.is_empty()) {
            let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            match rustix::fs::openat(&lock, store_file(process.pid), flags, Mode::empty()) {
                Ok(file) => files.insert(process.pid, file),
                Err(rustix::io::Errno::NOENT) => return Ok(None),
                Err(e) => return Err(failed("open a file")(e.into())),
            };
        }
        // When it was last wanted.
        if let Ok(directory) = File::open(self.dir.join(name)) {
            let _ = directory.set_modified(SystemTime::now());
        }
        Ok(Some(Stored { lock, files }))
    }

    /// Lets go of what nobody uses, but for what is to be kept, until there is room for `needed` bytes.
    fn make_room(&self, needed: u64, kept: &BTreeSet<String>) -> Result<(), PageStoreError> {
        let mut images = self.images();
        images.sort_by_key(|image| image.described.wanted_unix);
        let is_unused = |image: &Image| !image.described.used && !kept.contains(&image.described.digest);
        let mut unused = images.into_iter().filter(is_unused);
        loop {
            let free = self.free()?;
            if needed <= free {
                return Ok(());
            }
            let Some(image) = unused.next() else { return Err(PageStoreError::NoRoom { needed, free }) };
            if image.remove().map_err(failed("remove an image"))? {
                self.metrics.evicted();
            }
        }
    }

    fn free(&self) -> Result<u64, PageStoreError> {
        let used: u64 = self.images().iter().map(|image| image.described.bytes).sum();
        let device =
            rustix::fs::statvfs(&self.dir).map_err(|e| failed("look at the file system")(e.into()))?;
        let available = (device.f_bavail * device.f_frsize).saturating_sub(SPARE);
        Ok(self.budget.saturating_sub(used).min(available))
    }

    fn images(&self) -> Vec<Image> {
        let Ok(entries) = fs::read_dir(&self.dir) else { return Vec::new() };
        entries.flatten().filter_map(|entry| Image::at(entry.path())).collect()
    }

    /// Puts the memory into `filling`. The runtime has compared the layers with their digests when it unpacked them, and the image's digest is
    /// theirs.
    fn fill(
        &self,
        filling: &Path,
        prepared: &Prepared,
        processes: &[Process],
        ahead: bool,
    ) -> Result<(), PageStoreError> {
        let fill = Fill { processes: processes.to_vec() };
        let path = filling.join(PLAN);
        let plan = fs::write(&path, fill.encode_to_vec()).and_then(|()| File::open(&path));
        let plan = plan.map_err(failed("make a plan"))?;
        let to = open_directory(filling).map_err(failed("open a directory"))?;
        let given = [prepared.directory(), to.as_fd(), plan.as_fd()];
        self.program.fill(given, ahead).map_err(PageStoreError::Fill)
    }
}

/// Bytes that the store has to have for them.
fn needed(processes: &[Process]) -> u64 {
    processes.iter().flat_map(shared).map(|span| span.length).sum()
}

/// What of a process's memory is in the store.
fn shared(process: &Process) -> impl Iterator<Item = Span> {
    let runs = process.runs.iter().filter(|run| run.shared);
    runs.map(|run| Span { start: run.start, length: run.length })
}

/// Whether all that is shared of the processes was put into this directory.
fn has(directory: &OwnedFd, processes: &[Process]) -> bool {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut plan = Vec::new();
    let read = rustix::fs::openat(directory, PLAN, flags, Mode::empty())
        .map_err(io::Error::from)
        .and_then(|file| File::from(file).read_to_end(&mut plan));
    let Some(filled) = read.ok().and_then(|_| Fill::decode(&plan[..]).ok()) else { return false };
    processes.iter().all(|process| {
        let there = filled.processes.iter().find(|filled| filled.pid == process.pid);
        let there: Vec<Span> = there.into_iter().flat_map(shared).collect();
        without(&shared(process).collect::<Vec<_>>(), &there).is_empty()
    })
}

impl Stored {
    /// Descriptor of the image's directory: who has it keeps the image in the store.
    pub fn lock(&self) -> BorrowedFd<'_> {
        self.lock.as_fd()
    }

    /// The processes' files, by PID.
    pub fn files(&self) -> impl Iterator<Item = (i32, &OwnedFd)> {
        self.files.iter().map(|(pid, file)| (*pid, file))
    }
}

/// An image in the store.
struct Image {
    path: PathBuf,
    described: StoredImage,
}

impl Image {
    fn at(path: PathBuf) -> Option<Self> {
        let digest = format!("sha256:{}", path.file_name()?.to_str()?);
        if !woodfrog_image::is_sha256(&digest) {
            return None;
        }
        let files = fs::read_dir(&path).ok()?.flatten().filter_map(|file| file.metadata().ok());
        let bytes = files.map(|metadata| metadata.blocks() * 512).sum();
        let wanted = fs::metadata(&path).and_then(|metadata| metadata.modified()).ok()?;
        let wanted = wanted.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let used = lock_for_good(&path).is_err();
        Some(Self { path, described: StoredImage { digest, bytes, used, wanted_unix: wanted } })
    }

    /// Removes it if nobody uses it, whatever was known before, and says whether it did.
    fn remove(self) -> io::Result<bool> {
        match lock_for_good(&self.path) {
            // Whoever opens it from now on finds it locked.
            Ok(_locked) => fs::remove_dir_all(&self.path).map(|()| true),
            Err(rustix::io::Errno::WOULDBLOCK) => Ok(false),
            Err(e) => Err(e.into()),
        }
    }
}

fn lock_for_good(path: &Path) -> Result<OwnedFd, rustix::io::Errno> {
    let directory = open_directory(path)
        .map_err(|e| rustix::io::Errno::from_io_error(&e).unwrap_or(rustix::io::Errno::IO))?;
    rustix::fs::flock(&directory, FlockOperation::NonBlockingLockExclusive)?;
    Ok(directory)
}

fn open_directory(path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(rustix::fs::open(path, flags, Mode::empty())?)
}

/// `TMPFS_MAGIC` of `linux/magic.h`.
const fn libc_tmpfs_magic() -> rustix::fs::FsWord {
    0x0102_1994
}

#[cfg(test)]
mod tests {
    use woodfrog_protocol::pager::Run;

    use super::*;

    #[test]
    fn what_was_put_there_is_enough_only_if_it_is_all_that_is_shared() {
        let run = |start, length, shared| Run { start, length, offset: 0, shared };
        let process = |runs: &[Run]| Process { pid: 300, runs: runs.to_vec(), ..Process::default() };
        let directory = tempfile::tempdir().unwrap();
        let opened = open_directory(directory.path()).unwrap();
        let wanted = [process(&[run(0, 8, true), run(16, 8, false)])];
        assert!(!has(&opened, &wanted), "nothing says what is there");
        let fill = Fill { processes: vec![process(&[run(0, 4, true), run(4, 8, true), run(16, 8, false)])] };
        fs::write(directory.path().join(PLAN), fill.encode_to_vec()).unwrap();
        assert!(has(&opened, &wanted));
        assert!(!has(&opened, &[process(&[run(0, 8, true), run(16, 8, true)])]));
        assert!(!has(&opened, &[Process { pid: 301, ..wanted[0].clone() }]));
    }
}
