//! Copies a directory tree into a tar archive by descriptors alone: no path is resolved twice, no symbolic link is
//! followed, and the owner of the tree may go on writing to it.

use std::collections::HashMap;
use std::io::{self, Write};
use std::os::fd::BorrowedFd;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use rustix::fs::FileType;

use crate::archive::{Archive, Copied, Entry, Kind, Time};
use crate::inode::{Node, names};
use crate::sparse::{self, Content};
use crate::store::StoreError;

/// The longest path that Linux takes, less the terminating zero (PATH_MAX); a longer one could not be unpacked.
const MAX_PATH: usize = 4095;

/// Why a tree could not be copied.
#[derive(Debug, thiserror::Error)]
pub enum TreeError {
    /// The tree cannot be read.
    #[error("cannot {operation} {path:?}")]
    Read {
        /// What was tried.
        operation: &'static str,
        /// On which file, relative to the tree.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// Nested beyond what a path can name.
    #[error("the path {path:?}… is longer than the {MAX_PATH} bytes that can be unpacked")]
    TooDeep {
        /// Its beginning.
        path: PathBuf,
    },
    /// Beyond the cap.
    #[error("with {path:?} there are more than the {cap} bytes that may be copied")]
    TooLarge {
        /// The file that was one too many.
        path: PathBuf,
        /// The cap in bytes.
        cap: u64,
    },
    /// overlayfs keeps a part of the file in a lower layer, where the copy could not find it.
    #[error(
        "{path:?} has the attribute {attribute}: the runtime's overlayfs must be mounted with \
         redirect_dir=off,metacopy=off"
    )]
    Overlay {
        /// The file.
        path: PathBuf,
        /// The attribute that says so.
        attribute: String,
    },
    /// The archive cannot be written.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// A file that is not in the archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Skipped {
    /// Where it was, relative to the tree.
    pub path: PathBuf,
    /// Why it is missing.
    pub reason: SkipReason,
}

/// Why a file, or a part of it, is not in an archive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SkipReason {
    /// A socket, which no archive can hold; a restored process makes its own again.
    Socket,
    /// Devices do not belong into volumes.
    Device,
    /// It was removed while the tree was read.
    Vanished,
    /// Its name begins with `.wh.`, which would mean a deletion in a layer.
    ReservedName,
    /// One of its extended attributes has a name that tar cannot hold; the file itself is there.
    Attribute,
}

/// What was copied.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TreeReport {
    /// Entries of the archive.
    pub entries: u64,
    /// Bytes of data in files, holes not counted.
    pub bytes: u64,
    /// What is missing.
    pub skipped: Vec<Skipped>,
    /// Files whose size changed while they were read: they have the size they had at first, and what is missing is
    /// zeros.
    pub changed: Vec<PathBuf>,
}

/// What to do with a file.
pub(crate) enum Verdict {
    Copy,
    /// Copy a directory, and hide what lower layers have in it.
    CopyOpaque,
    /// Write that lower layers' file of this name is gone.
    Whiteout,
    /// As if it were not there.
    LeaveOut,
    Skip(SkipReason),
}

/// What differs between the trees that are copied.
pub(crate) trait Rules {
    /// Decides on a file by its path in the tree.
    fn judge(&self, path: &[u8], node: &Node) -> Result<Verdict, TreeError>;
    /// Whether an extended attribute belongs to the file.
    fn keeps_attribute(&self, name: &[u8]) -> bool;
    /// Whether holes are kept as holes ([`sparse`]).
    fn keeps_holes(&self) -> bool;
}

/// Copies what is in `root`, but not `root` itself. `cap` bounds the sum of the copied sizes, and `target` is the
/// archive's place for errors.
pub(crate) fn copy<W: Write>(
    archive: &mut Archive<W>,
    root: BorrowedFd<'_>,
    rules: &impl Rules,
    cap: u64,
    target: &Path,
) -> Result<TreeReport, TreeError> {
    let mut copy =
        Copy { archive, rules, cap, copied: 0, target, links: HashMap::new(), report: TreeReport::default() };
    let names = names(root).map_err(failed_to("list", b"."))?;
    copy.directory(root, &[], names)?;
    Ok(copy.report)
}

struct Copy<'a, W, R> {
    archive: &'a mut Archive<W>,
    rules: &'a R,
    cap: u64,
    copied: u64,
    target: &'a Path,
    /// The first path of an inode that has several.
    links: HashMap<(u64, u64), Vec<u8>>,
    report: TreeReport,
}

impl<W: Write, R: Rules> Copy<'_, W, R> {
    fn directory(
        &mut self,
        directory: BorrowedFd<'_>,
        path: &[u8],
        names: Vec<Vec<u8>>,
    ) -> Result<(), TreeError> {
        for name in names {
            let path = if path.is_empty() { name.clone() } else { [path, b"/".as_slice(), &name].concat() };
            if path.len() > MAX_PATH {
                return Err(TreeError::TooDeep { path: to_path(&path[..256]) });
            }
            match Node::open(directory, &name).map_err(failed_to("open", &path))? {
                Some(node) => self.node(&node, &name, &path)?,
                None => self.skip(&path, SkipReason::Vanished),
            }
        }
        Ok(())
    }

    fn node(&mut self, node: &Node, name: &[u8], path: &[u8]) -> Result<(), TreeError> {
        let opaque = match self.rules.judge(path, node)? {
            Verdict::Copy => false,
            Verdict::CopyOpaque => true,
            Verdict::LeaveOut => return Ok(()),
            Verdict::Skip(reason) => {
                self.skip(path, reason);
                return Ok(());
            }
            Verdict::Whiteout => {
                let parent = &path[..path.len() - name.len()];
                return self.mark([parent, b".wh.", name].concat(), node);
            }
        };
        let major = rustix::fs::major(node.stat.st_rdev);
        let minor = rustix::fs::minor(node.stat.st_rdev);
        let kind = match node.file_type() {
            FileType::RegularFile => Kind::File { size: node.stat.st_size as u64 },
            FileType::Directory => Kind::Directory,
            FileType::Symlink => {
                let target = rustix::fs::readlinkat(node.as_fd(), "", Vec::new())
                    .map_err(|e| failed_to("read the link", path)(e.into()))?;
                Kind::Symlink { target: target.into_bytes() }
            }
            FileType::Fifo => Kind::Fifo,
            FileType::CharacterDevice => Kind::CharacterDevice { major, minor },
            FileType::BlockDevice => Kind::BlockDevice { major, minor },
            FileType::Socket | FileType::Unknown => {
                self.skip(path, SkipReason::Socket);
                return Ok(());
            }
        };
        let mut entry = self.entry(path, kind, node);
        if node.stat.st_nlink > 1 && entry.kind != Kind::Directory {
            let inode = (node.stat.st_dev, node.stat.st_ino);
            if let Some(first) = self.links.get(&inode) {
                entry.kind = Kind::HardLink { target: first.clone() };
                entry.xattrs.clear();
                return self.append(&entry);
            }
            self.links.insert(inode, path.to_vec());
        }
        match entry.kind {
            Kind::File { size } => self.file(entry, node, size),
            Kind::Directory => {
                let names = node.names().map_err(failed_to("list", path))?;
                self.append(&entry)?;
                if opaque {
                    self.mark([path, b"/.wh..wh..opq"].concat(), node)?;
                }
                self.directory(node.as_fd(), path, names)
            }
            _ => self.append(&entry),
        }
    }

    fn entry(&mut self, path: &[u8], kind: Kind, node: &Node) -> Entry {
        let mut xattrs = node.xattrs.clone();
        xattrs.retain(|(name, _)| self.rules.keeps_attribute(name));
        // A PAX record's key ends at its first equals sign.
        if xattrs.iter().any(|(name, _)| name.contains(&b'=')) {
            xattrs.retain(|(name, _)| !name.contains(&b'='));
            self.skip(path, SkipReason::Attribute);
        }
        Entry {
            path: path.to_vec(),
            kind,
            mode: node.stat.st_mode & 0o7777,
            uid: node.stat.st_uid,
            gid: node.stat.st_gid,
            mtime: Time { seconds: node.stat.st_mtime, nanoseconds: node.stat.st_mtime_nsec as u32 },
            xattrs,
        }
    }

    fn file(&mut self, entry: Entry, node: &Node, size: u64) -> Result<(), TreeError> {
        let path = entry.path.clone();
        let file = node.content().map_err(failed_to("read", &path))?;
        let extents = sparse::extents(&file, size).map_err(failed_to("find the holes of", &path))?;
        let data = extents.iter().map(|(_, length)| length).sum::<u64>();
        let sparse = self.rules.keeps_holes() && data < size;
        self.copied = self.copied.saturating_add(if sparse { data } else { size });
        if self.copied > self.cap {
            return Err(TreeError::TooLarge { path: to_path(&path), cap: self.cap });
        }
        let mut content = Content::new(&file, &extents, size, !sparse);
        let copied = if sparse {
            let map = sparse::map(&extents, size);
            let real_size = size.to_string();
            let records: [(&[u8], &[u8]); 4] = [
                (b"GNU.sparse.major", b"1"),
                (b"GNU.sparse.minor", b"0"),
                (b"GNU.sparse.name", &path),
                (b"GNU.sparse.realsize", real_size.as_bytes()),
            ];
            let stored = Entry { kind: Kind::File { size: map.len() as u64 + data }, ..entry };
            self.archive.append_file_with(&stored, &records, io::Read::chain(map.as_slice(), &mut content))
        } else {
            self.archive.append_file(&entry, &mut content)
        };
        if let Some(source) = content.failed.take() {
            return Err(failed_to("read", &path)(source));
        }
        let copied = copied.map_err(|e| StoreError::io("write to", self.target, e))?;
        let now = file.metadata().map_err(failed_to("examine", &path))?.len();
        if copied == Copied::Padded || now != size {
            self.report.changed.push(to_path(&path));
        }
        self.report.entries += 1;
        self.report.bytes += data;
        Ok(())
    }

    /// An empty file whose name says something.
    fn mark(&mut self, path: Vec<u8>, node: &Node) -> Result<(), TreeError> {
        let mtime = Time { seconds: node.stat.st_mtime, nanoseconds: node.stat.st_mtime_nsec as u32 };
        self.append(&Entry::of_root(path, Kind::File { size: 0 }, 0o600, mtime))
    }

    fn append(&mut self, entry: &Entry) -> Result<(), TreeError> {
        self.archive.append(entry).map_err(|e| StoreError::io("write to", self.target, e))?;
        self.report.entries += 1;
        Ok(())
    }

    fn skip(&mut self, path: &[u8], reason: SkipReason) {
        self.report.skipped.push(Skipped { path: to_path(path), reason });
    }
}

pub(crate) fn failed_to<'p>(
    operation: &'static str,
    path: &'p [u8],
) -> impl FnOnce(io::Error) -> TreeError + 'p {
    move |source| TreeError::Read { operation, path: to_path(path), source }
}

pub(crate) fn to_path(path: &[u8]) -> PathBuf {
    PathBuf::from(std::ffi::OsString::from_vec(path.to_vec()))
}
