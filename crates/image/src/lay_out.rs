//! Lays the archive of a volume out in a directory of the new pod. The archive comes with an image and is not to be
//! trusted, and the agent that unpacks it is root: every path is opened with openat2 beneath the directory, without
//! symbolic links and without crossing into another mount, and only regular files, directories, symbolic links, FIFOs
//! and hard links within the volume are made. What is there already under the same name is replaced, so that an
//! interrupted lay-out can be repeated.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, ResolveFlags, Timespec, Timestamps, Uid, XattrFlags};
use rustix::io::Errno;

use crate::archive::{Entry, Kind};
use crate::sparse;
use crate::tree::to_path;
use crate::unarchive::{Found, Unarchive, Unreadable};
use crate::volume::{ENTRY_BYTES, may_carry_attribute};

/// Why a volume could not be laid out.
#[derive(Debug, thiserror::Error)]
pub enum LayOutError {
    /// The archive is damaged.
    #[error("the volume's archive cannot be read")]
    Archive(#[source] io::Error),
    /// A name that leads out of the volume, or none.
    #[error("the volume's archive has the path {path:?}, which is not inside of the volume")]
    Path {
        /// The path.
        path: PathBuf,
    },
    /// A device or something unknown.
    #[error("the volume's archive has {path:?} of the type {letter:?}, which no volume may hold")]
    Kind {
        /// The path.
        path: PathBuf,
        /// Tar's letter for its type.
        letter: char,
    },
    /// More than the cap.
    #[error("the volume's archive holds more than the {cap} bytes that may be laid out")]
    TooLarge {
        /// The cap.
        cap: u64,
    },
    /// The volume is full.
    #[error("no space left in the volume for {path:?}")]
    Full {
        /// The file.
        path: PathBuf,
    },
    /// Anything else the file system says.
    #[error("cannot {operation} {path:?} in the volume")]
    Write {
        /// What was tried.
        operation: &'static str,
        /// On which file.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
}

impl From<Unreadable> for LayOutError {
    fn from(unreadable: Unreadable) -> Self {
        match unreadable {
            Unreadable::Damaged(error) => Self::Archive(error),
            Unreadable::Type(path, letter) => Self::Kind { path: to_path(&path), letter },
        }
    }
}

/// What was laid out.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LayOutReport {
    /// Entries of the archive.
    pub entries: u64,
    /// Bytes of data in files, holes not counted.
    pub bytes: u64,
}

/// Lays `archive` out in `directory`, at most `cap` bytes with [headers counted](crate::VolumeSource::cap).
pub fn lay_out(archive: impl Read, directory: impl AsFd, cap: u64) -> Result<LayOutReport, LayOutError> {
    // A little more than the cap, for the blocks at the end; what is longer ends in an error below.
    let mut archive = Unarchive::new(archive.take(cap.saturating_add(1 << 16)));
    let root = directory.as_fd();
    let mut volume =
        Volume { root, cap, left: cap, directories: Vec::new(), report: LayOutReport::default() };
    while let Some(found) = archive.next()? {
        volume.entry(found, &mut archive)?;
    }
    // Making a file changes its directory's time, so those come last.
    for directory in std::mem::take(&mut volume.directories).into_iter().rev() {
        let path = &directory.path;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY;
        let opened = volume.open(path, flags, Mode::empty()).map_err(failed("open", path))?;
        apply(&directory, opened.as_fd()).map_err(failed("set the attributes of", path))?;
    }
    Ok(volume.report)
}

struct Volume<'a> {
    root: BorrowedFd<'a>,
    cap: u64,
    left: u64,
    /// Directories that still need their attributes.
    directories: Vec<Entry>,
    report: LayOutReport,
}

const BENEATH: ResolveFlags = ResolveFlags::BENEATH
    .union(ResolveFlags::NO_SYMLINKS)
    .union(ResolveFlags::NO_MAGICLINKS)
    .union(ResolveFlags::NO_XDEV);

impl Volume<'_> {
    fn entry(&mut self, found: Found, content: &mut impl Read) -> Result<(), LayOutError> {
        self.charge(ENTRY_BYTES)?;
        let entry = Entry { path: inside(&found.entry.path)?, ..found.entry };
        let path = entry.path.as_slice();
        let (above, name) = split(path);
        let flags = OFlags::PATH | OFlags::DIRECTORY;
        let parent = self.open(above, flags, Mode::empty()).map_err(failed("open the directory of", path))?;
        let there = self.make_room(parent.as_fd(), name, &entry.kind).map_err(failed("replace", path))?;
        match &entry.kind {
            Kind::File { size } => {
                self.file(&entry, *size, found.sparse, content, parent.as_fd(), name)?;
            }
            Kind::Directory => {
                if !there {
                    rustix::fs::mkdirat(&parent, name, Mode::from(0o700)).map_err(failed("make", path))?;
                }
                self.directories.push(entry);
            }
            Kind::Symlink { target } => {
                rustix::fs::symlinkat(target.as_slice(), &parent, name).map_err(failed("make", path))?;
                apply_to_name(&entry, parent.as_fd(), name).map_err(failed("set the owner of", path))?;
            }
            Kind::HardLink { target } => {
                let target = inside(target)?;
                self.link(&target, parent.as_fd(), name).map_err(failed("link", path))?;
            }
            Kind::Fifo => {
                rustix::fs::mknodat(&parent, name, FileType::Fifo, Mode::from(0o600), 0)
                    .map_err(failed("make", path))?;
                apply_to_name(&entry, parent.as_fd(), name).map_err(failed("set the owner of", path))?;
                rustix::fs::chmodat(&parent, name, Mode::from(entry.mode), AtFlags::empty())
                    .map_err(failed("set the mode of", path))?;
            }
            Kind::CharacterDevice { .. } | Kind::BlockDevice { .. } => {
                return Err(LayOutError::Kind { path: to_path(path), letter: '3' });
            }
        }
        self.report.entries += 1;
        Ok(())
    }

    fn open(&self, path: &[u8], flags: OFlags, mode: Mode) -> rustix::io::Result<OwnedFd> {
        rustix::fs::openat2(self.root, path, flags | OFlags::NOFOLLOW | OFlags::CLOEXEC, mode, BENEATH)
    }

    /// Removes what is in the way. Whether a directory is wanted and is there.
    fn make_room(&self, parent: BorrowedFd<'_>, name: &[u8], kind: &Kind) -> rustix::io::Result<bool> {
        let stat = match rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => return Ok(false),
            result => result?,
        };
        let is_directory = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
        if is_directory && *kind == Kind::Directory {
            return Ok(true);
        }
        let flags = if is_directory { AtFlags::REMOVEDIR } else { AtFlags::empty() };
        rustix::fs::unlinkat(parent, name, flags)?;
        Ok(false)
    }

    fn file(
        &mut self,
        entry: &Entry,
        stored: u64,
        sparse: Option<u64>,
        content: &mut impl Read,
        parent: BorrowedFd<'_>,
        name: &[u8],
    ) -> Result<(), LayOutError> {
        let path = entry.path.as_slice();
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = rustix::fs::openat2(parent, name, flags, Mode::from(0o600), BENEATH)
            .map_err(failed("make", path))?;
        let file = File::from(file);
        let mut content = BufReader::with_capacity(256 << 10, content.take(stored));
        let (extents, size) = match sparse {
            Some(size) => (sparse::read_map(&mut content, size).map_err(LayOutError::Archive)?, size),
            None => (vec![(0, stored)], stored),
        };
        for (offset, length) in extents {
            self.charge(length)?;
            copy_extent(&mut content, &file, offset, length, path)?;
            self.report.bytes += length;
        }
        // A hole at the end, or nothing at all.
        rustix::fs::ftruncate(&file, size).map_err(failed("set the size of", path))?;
        apply(entry, file.as_fd()).map_err(failed("set the attributes of", path))
    }

    fn link(&self, target: &[u8], parent: BorrowedFd<'_>, name: &[u8]) -> rustix::io::Result<()> {
        let (above, target) = split(target);
        let above = self.open(above, OFlags::PATH | OFlags::DIRECTORY, Mode::empty())?;
        rustix::fs::linkat(&above, target, parent, name, AtFlags::empty())
    }

    fn charge(&mut self, bytes: u64) -> Result<(), LayOutError> {
        self.left = self.left.checked_sub(bytes).ok_or(LayOutError::TooLarge { cap: self.cap })?;
        Ok(())
    }
}

fn copy_extent(
    content: &mut impl BufRead,
    file: &File,
    mut offset: u64,
    mut length: u64,
    path: &[u8],
) -> Result<(), LayOutError> {
    while length > 0 {
        let data = content.fill_buf().map_err(LayOutError::Archive)?;
        if data.is_empty() {
            return Err(LayOutError::Archive(io::ErrorKind::UnexpectedEof.into()));
        }
        let most = length.min(data.len() as u64) as usize;
        file.write_all_at(&data[..most], offset).map_err(failed("write", path))?;
        content.consume(most);
        offset += most as u64;
        length -= most as u64;
    }
    Ok(())
}

/// The directory of a path and the name in it.
fn split(path: &[u8]) -> (&[u8], &[u8]) {
    let slash = path.iter().rposition(|byte| *byte == b'/');
    slash.map_or((&b"."[..], path), |slash| (&path[..slash], &path[slash + 1..]))
}

fn apply(entry: &Entry, file: BorrowedFd<'_>) -> rustix::io::Result<()> {
    // In this order: a change of owner clears set-user-ID and capabilities.
    rustix::fs::fchown(file, Some(Uid::from_raw(entry.uid)), Some(Gid::from_raw(entry.gid)))?;
    rustix::fs::fchmod(file, Mode::from(entry.mode))?;
    for (name, value) in entry.xattrs.iter().filter(|(name, _)| may_carry_attribute(name)) {
        match rustix::fs::fsetxattr(file, name.as_slice(), value, XattrFlags::empty()) {
            // A tmpfs may lack what the old volume's file system had.
            Err(Errno::OPNOTSUPP) => {}
            result => result?,
        }
    }
    rustix::fs::futimens(file, &times(entry))
}

/// For what cannot be opened without effect.
fn apply_to_name(entry: &Entry, parent: BorrowedFd<'_>, name: &[u8]) -> rustix::io::Result<()> {
    let flags = AtFlags::SYMLINK_NOFOLLOW;
    let (uid, gid) = (Uid::from_raw(entry.uid), Gid::from_raw(entry.gid));
    rustix::fs::chownat(parent, name, Some(uid), Some(gid), flags)?;
    rustix::fs::utimensat(parent, name, &times(entry), flags)
}

fn times(entry: &Entry) -> Timestamps {
    let time = Timespec { tv_sec: entry.mtime.seconds, tv_nsec: entry.mtime.nanoseconds.into() };
    Timestamps { last_access: time, last_modification: time }
}

/// A path without a trailing slash, if it is made of ordinary names alone.
fn inside(path: &[u8]) -> Result<Vec<u8>, LayOutError> {
    let trimmed = path.strip_suffix(b"/").unwrap_or(path);
    let ordinary = |name: &[u8]| !name.is_empty() && name != b"." && name != b".." && !name.contains(&0);
    if trimmed.split(|byte| *byte == b'/').all(ordinary) {
        Ok(trimmed.to_vec())
    } else {
        Err(LayOutError::Path { path: to_path(path) })
    }
}

fn failed<E: Into<io::Error>>(operation: &'static str, path: &[u8]) -> impl FnOnce(E) -> LayOutError {
    let path = to_path(path);
    move |error| {
        let source: io::Error = error.into();
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => LayOutError::Full { path },
            _ => LayOutError::Write { operation, path, source },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_paths_inside_are_inside() {
        assert_eq!(inside(b"a/b/").unwrap(), b"a/b");
        for path in [&b"../a"[..], b"/a", b"a/../b", b"", b"./a", b"a//b", b"/", b"."] {
            inside(path).unwrap_err();
        }
    }
}
