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

use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags, Timespec, Timestamps, XattrFlags};
use rustix::io::Errno;
use tar::EntryType;

use crate::sparse;
use crate::tree::to_path;
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
    #[error("the volume's archive has {path:?} of the type {kind:?}, which no volume may hold")]
    Kind {
        /// The path.
        path: PathBuf,
        /// Its type.
        kind: EntryType,
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
    let limited = archive.take(cap.saturating_add(1 << 16));
    let mut tar = tar::Archive::new(limited);
    let mut volume =
        Volume { root: directory.as_fd(), cap, left: cap, directories: Vec::new(), report: LayOutReport::default() };
    for entry in tar.entries().map_err(LayOutError::Archive)? {
        volume.entry(entry.map_err(LayOutError::Archive)?)?;
    }
    // Making a file changes its directory's time, so those come last.
    for (path, header) in std::mem::take(&mut volume.directories).into_iter().rev() {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY;
        let opened = volume.open(&path, flags, Mode::empty()).map_err(failed("open", &path))?;
        header.apply(opened.as_fd()).map_err(failed("set the attributes of", &path))?;
    }
    Ok(volume.report)
}

struct Volume<'a> {
    root: BorrowedFd<'a>,
    cap: u64,
    left: u64,
    directories: Vec<(Vec<u8>, Attributes)>,
    report: LayOutReport,
}

/// What an entry says beside its type and its content.
#[derive(Debug, Default)]
struct Attributes {
    mode: u32,
    uid: u32,
    gid: u32,
    mtime: (i64, i64),
    xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// How a sparse file was stored (GNU tar's format 1.0).
#[derive(Debug)]
struct Sparse {
    size: u64,
}

const BENEATH: ResolveFlags = ResolveFlags::BENEATH
    .union(ResolveFlags::NO_SYMLINKS)
    .union(ResolveFlags::NO_MAGICLINKS)
    .union(ResolveFlags::NO_XDEV);

impl Volume<'_> {
    fn entry<R: Read>(&mut self, mut entry: tar::Entry<'_, R>) -> Result<(), LayOutError> {
        self.charge(ENTRY_BYTES)?;
        let (attributes, sparse) = attributes(&mut entry).map_err(LayOutError::Archive)?;
        let path = inside(&entry.path_bytes())?;
        let (parent, name) = match path.iter().rposition(|byte| *byte == b'/') {
            Some(slash) => (&path[..slash], &path[slash + 1..]),
            None => (&b"."[..], &path[..]),
        };
        let flags = OFlags::PATH | OFlags::DIRECTORY;
        let parent =
            self.open(parent, flags, Mode::empty()).map_err(failed("open the directory of", &path))?;
        let kind = entry.header().entry_type();
        if !self.makes_room(parent.as_fd(), name, kind).map_err(failed("replace", &path))? {
            self.directories.push((path, attributes));
            self.report.entries += 1;
            return Ok(());
        }
        match kind {
            EntryType::Regular => {
                self.file(&mut entry, parent.as_fd(), name, &path, sparse.as_ref(), &attributes)?;
            }
            EntryType::Directory => {
                rustix::fs::mkdirat(&parent, name, Mode::from(0o700)).map_err(failed("make", &path))?;
                self.directories.push((path, attributes));
            }
            EntryType::Symlink => {
                let target = entry.link_name_bytes().unwrap_or_default();
                rustix::fs::symlinkat(target.as_ref(), &parent, name).map_err(failed("make", &path))?;
                attributes.apply_to_link(parent.as_fd(), name).map_err(failed("set the owner of", &path))?;
            }
            EntryType::Link => {
                let target = inside(&entry.link_name_bytes().unwrap_or_default())?;
                self.link(&target, parent.as_fd(), name).map_err(failed("link", &path))?;
            }
            EntryType::Fifo => {
                rustix::fs::mknodat(&parent, name, FileType::Fifo, Mode::from(0o600), 0)
                    .map_err(failed("make", &path))?;
                attributes.apply_to_link(parent.as_fd(), name).map_err(failed("set the owner of", &path))?;
                rustix::fs::chmodat(&parent, name, Mode::from(attributes.mode & 0o7777), AtFlags::empty())
                    .map_err(failed("set the mode of", &path))?;
            }
            kind => return Err(LayOutError::Kind { path: to_path(&path), kind }),
        }
        self.report.entries += 1;
        Ok(())
    }

    fn open(&self, path: &[u8], flags: OFlags, mode: Mode) -> rustix::io::Result<OwnedFd> {
        rustix::fs::openat2(self.root, path, flags | OFlags::NOFOLLOW | OFlags::CLOEXEC, mode, BENEATH)
    }

    /// Removes what is in the way. `false` if a directory is wanted and is there.
    fn makes_room(&self, parent: BorrowedFd<'_>, name: &[u8], kind: EntryType) -> rustix::io::Result<bool> {
        let stat = match rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => return Ok(true),
            result => result?,
        };
        let is_directory = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
        if is_directory && kind == EntryType::Directory {
            return Ok(false);
        }
        let flags = if is_directory { AtFlags::REMOVEDIR } else { AtFlags::empty() };
        rustix::fs::unlinkat(parent, name, flags)?;
        Ok(true)
    }

    fn file<R: Read>(
        &mut self,
        entry: &mut tar::Entry<'_, R>,
        parent: BorrowedFd<'_>,
        name: &[u8],
        path: &[u8],
        sparse: Option<&Sparse>,
        attributes: &Attributes,
    ) -> Result<(), LayOutError> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = rustix::fs::openat2(parent, name, flags, Mode::from(0o600), BENEATH)
            .map_err(failed("make", path))?;
        let file = File::from(file);
        let stored = entry.size();
        let mut content = BufReader::with_capacity(256 << 10, entry);
        let (extents, size) = match sparse {
            Some(sparse) => {
                let map = sparse::read_map(&mut content, sparse.size).map_err(LayOutError::Archive)?;
                (map, sparse.size)
            }
            None => (vec![(0, stored)], stored),
        };
        for (offset, length) in extents {
            self.charge(length)?;
            copy_extent(&mut content, &file, offset, length, path)?;
            self.report.bytes += length;
        }
        // A hole at the end, or nothing at all.
        rustix::fs::ftruncate(&file, size).map_err(failed("set the size of", path))?;
        attributes.apply(file.as_fd()).map_err(failed("set the attributes of", path))
    }

    fn link(&self, target: &[u8], parent: BorrowedFd<'_>, name: &[u8]) -> rustix::io::Result<()> {
        let slash = target.iter().rposition(|byte| *byte == b'/');
        let (above, target) = slash.map_or((&b"."[..], target), |at| (&target[..at], &target[at + 1..]));
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

impl Attributes {
    fn apply(&self, file: BorrowedFd<'_>) -> rustix::io::Result<()> {
        // In this order: a change of owner clears set-user-ID and capabilities.
        rustix::fs::fchown(file, Some(uid(self.uid)), Some(gid(self.gid)))?;
        rustix::fs::fchmod(file, Mode::from(self.mode & 0o7777))?;
        for (name, value) in self.xattrs.iter().filter(|(name, _)| may_carry_attribute(name)) {
            match rustix::fs::fsetxattr(file, name.as_slice(), value, XattrFlags::empty()) {
                // A tmpfs may lack what the old volume's file system had.
                Err(Errno::OPNOTSUPP) => {}
                result => result?,
            }
        }
        rustix::fs::futimens(file, &self.times())
    }

    fn apply_to_link(&self, parent: BorrowedFd<'_>, name: &[u8]) -> rustix::io::Result<()> {
        let flags = AtFlags::SYMLINK_NOFOLLOW;
        rustix::fs::chownat(parent, name, Some(uid(self.uid)), Some(gid(self.gid)), flags)?;
        rustix::fs::utimensat(parent, name, &self.times(), flags)
    }

    fn times(&self) -> Timestamps {
        let time = Timespec { tv_sec: self.mtime.0, tv_nsec: self.mtime.1 };
        Timestamps { last_access: time, last_modification: time }
    }
}

fn uid(raw: u32) -> rustix::fs::Uid {
    rustix::fs::Uid::from_raw(raw)
}

fn gid(raw: u32) -> rustix::fs::Gid {
    rustix::fs::Gid::from_raw(raw)
}

fn attributes<R: Read>(entry: &mut tar::Entry<'_, R>) -> io::Result<(Attributes, Option<Sparse>)> {
    let header = entry.header();
    let mut attributes = Attributes {
        mode: header.mode()?,
        uid: header.uid()? as u32,
        gid: header.gid()? as u32,
        mtime: (header.mtime()? as i64, 0),
        xattrs: Vec::new(),
    };
    let (mut is_sparse, mut size) = (false, 0);
    for record in entry.pax_extensions()?.into_iter().flatten() {
        let record = record?;
        let text = || std::str::from_utf8(record.value_bytes()).unwrap_or_default();
        match record.key_bytes() {
            b"uid" => attributes.uid = number(text())?,
            b"gid" => attributes.gid = number(text())?,
            b"mtime" => attributes.mtime = time(text())?,
            b"GNU.sparse.major" => is_sparse = text() == "1",
            b"GNU.sparse.realsize" => size = number(text())?,
            key => {
                if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
                    attributes.xattrs.push((name.to_vec(), record.value_bytes().to_vec()));
                }
            }
        }
    }
    Ok((attributes, is_sparse.then_some(Sparse { size })))
}

fn number<T: std::str::FromStr>(text: &str) -> io::Result<T> {
    text.parse().map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "a record is not a number"))
}

/// Seconds and nanoseconds of a decimal number; below zero the nanoseconds count back up.
fn time(text: &str) -> io::Result<(i64, i64)> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let nanoseconds: i64 = number(&format!("{fraction:0<9.9}"))?;
    let seconds: i64 = number(whole)?;
    Ok(match (whole.starts_with('-'), nanoseconds) {
        (true, 1..) => (seconds - 1, 1_000_000_000 - nanoseconds),
        _ => (seconds, nanoseconds),
    })
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
    fn times_are_read_as_they_are_written() {
        assert_eq!(time("-0.500000000").unwrap(), (-1, 500_000_000));
        assert_eq!(time("-3.000000000").unwrap(), (-3, 0));
        assert_eq!(time("12.000000005").unwrap(), (12, 5));
        assert_eq!(time("12").unwrap(), (12, 0));
        assert_eq!(time("12.5").unwrap(), (12, 500_000_000));
    }

    #[test]
    fn only_paths_inside_are_inside() {
        assert_eq!(inside(b"a/b/").unwrap(), b"a/b");
        for path in [&b"../a"[..], b"/a", b"a/../b", b"", b"./a", b"a//b", b"/", b"."] {
            inside(path).unwrap_err();
        }
    }
}
