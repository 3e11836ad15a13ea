//! Freezing an application that shares its memory: CRIU dumps what it has written to, the rest comes from the page store.
//!
//! ```text
//!   before    which files of the store are mapped, by whom ─► CRIU takes them for external files
//!   held      the pager says where memory is still the image's
//!   later     the dump's images are rewritten: anonymous memory, with all of its pages
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::ops::Range;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use procfs::ProcError;
use procfs::process::{MMapPath, Process as Proc};
use rustix::fs::{Mode, OFlags};
use woodfrog_criu::images::{Checkpoint, ImageDir, ImageError, Piece, Rewrite};
use woodfrog_protocol::pager::{STORE_FILE_LENGTH, Standing};

use super::standing;
use super::tree::Tree;

/// The processes of a tree that share memory.
#[derive(Debug)]
pub struct SharedTree {
    standing: PathBuf,
    /// CRIU's names for the files.
    keys: BTreeSet<String>,
    /// By PID in the container.
    files: BTreeMap<i32, File>,
}

/// Why memory that is shared cannot be frozen.
#[derive(Debug, thiserror::Error)]
pub enum UnshareError {
    /// A process that was forked since.
    #[error(
        "process {0} was forked from one that shares its memory with others, and has not executed another program: \
         freeze it when that has ended, or thaw the pod with the annotation woodfrog.dev/memory: Copied before"
    )]
    Forked(i32),
    /// The pager.
    #[error("the pager of the shared memory does not answer: {0}")]
    Pager(io::Error),
    /// /proc, the dump, the page store.
    #[error("cannot {action}: {source}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// The kernel's word.
        source: io::Error,
    },
    /// The dump is not as CRIU makes it.
    #[error(transparent)]
    Images(#[from] ImageError),
}

fn failed(action: &'static str) -> impl FnOnce(io::Error) -> UnshareError {
    move |source| UnshareError::Io { action, source }
}

impl SharedTree {
    /// Who of `tree` has mapped files of the page store, which is on the file system `device`; none if nobody has. The pager listens at
    /// `standing`.
    ///
    /// # Errors
    /// A process was forked since, or cannot be looked at.
    pub fn of(tree: &Tree, device: u64, standing: PathBuf) -> Result<Option<Self>, UnshareError> {
        let (mut keys, mut files) = (BTreeSet::new(), BTreeMap::new());
        for process in &tree.processes {
            let found = mapped(process.pid, device).map_err(failed("read the mappings of a process"))?;
            for (key, file) in found {
                keys.insert(key);
                files.insert(process.inner_pid, file);
            }
        }
        if files.is_empty() {
            return Ok(None);
        }
        let shared = Self { standing, keys, files };
        shared.ask()?;
        Ok(Some(shared))
    }

    /// What CRIU has to take for external.
    pub fn keys(&self) -> impl Iterator<Item = String> + '_ {
        self.keys.iter().cloned()
    }

    /// Asks the pager. Blocks.
    ///
    /// # Errors
    /// It does not know all of the processes.
    pub fn ask(&self) -> Result<Standing, UnshareError> {
        let standing = standing::ask(&self.standing).map_err(UnshareError::Pager)?;
        let is_known = |pid: &&i32| standing.processes.iter().any(|image| image.pid == **pid);
        match self.files.keys().find(|pid| !is_known(pid)) {
            Some(pid) => Err(UnshareError::Forked(*pid)),
            None => Ok(standing),
        }
    }

    /// Rewrites a dump, for which the pager said `standing`, into that of a process that shares nothing. Blocks.
    ///
    /// # Errors
    /// The dump cannot be read or written.
    pub fn convert(&self, standing: &Standing, images: &Path) -> Result<(), UnshareError> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory = rustix::fs::open(images, flags, Mode::empty());
        let directory = ImageDir::new(directory.map_err(|e| failed("open the dump")(e.into()))?);
        let checkpoint = Checkpoint::open(&directory, &[])?;
        let mut rewrite = Rewrite::new(&checkpoint);
        for (pid, file) in &self.files {
            let image = standing.processes.iter().find(|image| image.pid == *pid);
            let spans = image.iter().flat_map(|image| &image.spans);
            let spans: Vec<Range<u64>> = spans.map(|span| span.start..span.start + span.length).collect();
            let Ok(process) = u32::try_from(*pid) else { continue };
            if let Some((name, pieces)) = rewrite.unshare(process, &self.keys, &spans) {
                merge(&images.join(name), file, &pieces).map_err(failed("put the memory together"))?;
            }
        }
        for (name, bytes) in rewrite.changed() {
            fs::write(images.join(name), bytes).map_err(failed("rewrite the dump"))?;
        }
        Ok(())
    }
}

/// The files of the page store that a process on the host has mapped, with CRIU's names for them.
fn mapped(pid: i32, device: u64) -> io::Result<BTreeMap<String, File>> {
    let mut found = BTreeMap::new();
    let mut last = 0;
    let maps = match Proc::new(pid).and_then(|proc| proc.maps()) {
        // It has ended since the tree was read: nothing of it is dumped.
        Err(ProcError::NotFound(_)) => return Ok(found),
        maps => maps.map_err(io::Error::other)?,
    };
    for map in maps {
        if map.inode == last || !matches!(&map.pathname, MMapPath::Path(path) if is_of_store(path)) {
            continue;
        }
        let path = format!("/proc/{pid}/map_files/{:x}-{:x}", map.address.0, map.address.1);
        let file = match File::open(path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
            other => other?,
        };
        let metadata = file.metadata()?;
        if metadata.dev() != device || metadata.len() != STORE_FILE_LENGTH {
            continue;
        }
        last = map.inode;
        found.insert(format!("file[{:x}:{:x}]", mount_of(&file)?, metadata.ino()), file);
    }
    Ok(found)
}

/// Its path in the store: the digits of a digest, and a name. The mount has no place in any name space.
fn is_of_store(path: &Path) -> bool {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let image = path.parent().and_then(Path::file_name).and_then(|name| name.to_str()).unwrap_or_default();
    name.starts_with("mem-") && woodfrog_image::is_sha256(&format!("sha256:{image}"))
}

/// Number of the mount through which a file was opened.
fn mount_of(file: &File) -> io::Result<u32> {
    let text = fs::read_to_string(format!("/proc/self/fdinfo/{}", file.as_raw_fd()))?;
    let mount = text.lines().find_map(|line| line.strip_prefix("mnt_id:"));
    mount
        .and_then(|number| number.trim().parse().ok())
        .ok_or_else(|| io::Error::other("fdinfo has no mnt_id"))
}

/// Puts a page file together anew.
fn merge(path: &Path, external: &File, pieces: &[Piece]) -> io::Result<()> {
    let new = path.with_extension("new");
    let dumped = File::open(path)?;
    let mut to = File::create_new(&new)?;
    for piece in pieces {
        let mut from = if piece.external { external } else { &dumped };
        from.seek(SeekFrom::Start(piece.offset))?;
        let copied = io::copy(&mut from.take(piece.length), &mut to)?;
        if copied != piece.length {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
    fs::rename(new, path)
}
