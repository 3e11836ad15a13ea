//! Where CRIU writes a dump while the application stands still: into memory if there is room, else to the disk.
//!
//! A disk that is busy holds the writer up, and the application with it. What lies in memory is gone with its last descriptor,
//! also when the agent is killed.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use procfs::{Current, Meminfo};
use rustix::fs::{Mode, OFlags};
use woodfrog_image::Ahead;

use super::cgroups;
use super::tree::Tree;

/// Images of processes and what may be added to their memory until they are held.
const SLACK: u64 = 16 << 20;
/// Of the memory that is free, dumps get one part in so many.
const SHARE: u64 = 2;

/// Bytes that dumps under way may take: the memory is one, so is the count.
static RESERVED: AtomicU64 = AtomicU64::new(0);

/// A directory for the images of a dump.
#[derive(Debug)]
pub struct DumpDir {
    directory: OwnedFd,
    path: PathBuf,
    room: Option<Room>,
}

impl DumpDir {
    /// For a dump of `tree`; `disk` is made if it is to be there.
    ///
    /// # Errors
    /// The directory cannot be made.
    pub fn new(tree: &Tree, disk: PathBuf) -> io::Result<Self> {
        if let Some(room) = Room::reserve(&RESERVED, needed(tree), free())
            && let Ok(directory) = woodfrog_sys::mount::memory_directory()
        {
            let path = format!("/proc/self/fd/{}", directory.as_raw_fd()).into();
            return Ok(Self { directory, path, room: Some(room) });
        }
        Self::on_disk(disk)
    }

    /// One on the disk, which is made.
    ///
    /// # Errors
    /// The directory cannot be made.
    pub fn on_disk(path: PathBuf) -> io::Result<Self> {
        std::fs::create_dir_all(&path)?;
        Ok(Self { directory: open(&path)?, path, room: None })
    }

    /// Its path in this process.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Another descriptor of it, to be read and handed on.
    ///
    /// # Errors
    /// The kernel's.
    pub fn open(&self) -> io::Result<OwnedFd> {
        Ok(rustix::fs::openat(&self.directory, ".", FLAGS, Mode::empty())?)
    }

    /// Whether it is in memory.
    pub fn in_memory(&self) -> bool {
        self.room.is_some()
    }
}

const FLAGS: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

fn open(path: &Path) -> io::Result<OwnedFd> {
    Ok(rustix::fs::open(path, FLAGS, Mode::empty())?)
}

/// Memory that is set aside.
#[derive(Debug)]
struct Room {
    of: &'static AtomicU64,
    bytes: u64,
}

impl Room {
    /// Some, if that much is left of `free` with all that others have.
    fn reserve(of: &'static AtomicU64, bytes: u64, free: u64) -> Option<Self> {
        let fits = |reserved: u64| reserved.checked_add(bytes).filter(|all| *all <= free / SHARE);
        of.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits).ok().map(|_| Self { of, bytes })
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        self.of.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// The most that a dump of it can take, with what is compressed of it meanwhile.
fn needed(tree: &Tree) -> u64 {
    let resident: u64 = tree.processes.iter().map(|process| process.resident_bytes).sum();
    resident + resident / 4 + SLACK + resident.min(Ahead::MOST_BYTES)
}

/// Memory that the agent may use: what the node has, within the agent's own limit.
fn free() -> u64 {
    let available = Meminfo::current().ok().and_then(|info| info.mem_available).unwrap_or(0);
    let own = i32::try_from(std::process::id()).map_err(io::Error::other).and_then(cgroups::of);
    own.iter().flatten().filter_map(|group| left(group.as_fd())).fold(available, u64::min)
}

/// What a cgroup's limit leaves; none if it sets none.
fn left(group: BorrowedFd<'_>) -> Option<u64> {
    // cgroup version 2, then version 1.
    let names = [("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes")];
    names.iter().find_map(|(limit, used)| {
        let limit: u64 = read(group, limit)?.trim().parse().ok()?;
        let used: u64 = read(group, used)?.trim().parse().ok()?;
        Some(limit.saturating_sub(used))
    })
}

fn read(group: BorrowedFd<'_>, name: &str) -> Option<String> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let mut text = String::new();
    File::from(rustix::fs::openat(group, name, flags, Mode::empty()).ok()?).read_to_string(&mut text).ok()?;
    Some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dumps_under_way_share_the_room_that_there_is() {
        static ALL: AtomicU64 = AtomicU64::new(0);
        let first = Room::reserve(&ALL, 40, 100).unwrap();
        assert!(Room::reserve(&ALL, 20, 100).is_none());
        let second = Room::reserve(&ALL, 10, 100).unwrap();
        drop((first, second));
        assert!(Room::reserve(&ALL, 50, 100).is_some());
        assert!(Room::reserve(&ALL, u64::MAX, u64::MAX).is_none());
    }

    #[test]
    fn a_small_dump_goes_to_memory_and_is_found_by_its_path() {
        if !rustix::process::geteuid().is_root() {
            return println!("skipped: mounting needs root");
        }
        let temporary = tempfile::tempdir().unwrap();
        let disk = temporary.path().join("images");
        let dir = DumpDir::new(&Tree::default(), disk.clone()).unwrap();
        assert!(dir.in_memory() && !disk.exists());
        std::fs::write(dir.path().join("a"), "b").unwrap();
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_dump_that_is_too_large_for_the_memory_goes_to_the_disk() {
        let temporary = tempfile::tempdir().unwrap();
        let disk = temporary.path().join("images");
        let mut tree = Tree::default();
        tree.processes.push(super::super::tree::Process { resident_bytes: 1 << 50, ..Default::default() });
        let dir = DumpDir::new(&tree, disk.clone()).unwrap();
        assert!(!dir.in_memory());
        assert_eq!(dir.path(), disk);
        std::fs::write(disk.join("a"), "b").unwrap();
        rustix::fs::accessat(
            dir.open().unwrap(),
            "a",
            rustix::fs::Access::EXISTS,
            rustix::fs::AtFlags::empty(),
        )
        .unwrap();
    }
}
