//! One file of a tree that may change meanwhile. It is opened once with `O_PATH`, without following a symbolic link, and
//! everything else (type, attributes, content) is asked of that descriptor: a name that is replaced gives the old or the new
//! file, never a mixture.

use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use rustix::fs::{FileType, Mode, OFlags, RawDir, Stat};
use rustix::io::Errno;

/// An inode of the tree.
#[derive(Debug)]
pub(crate) struct Node {
    path: OwnedFd,
    pub(crate) stat: Stat,
    pub(crate) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

impl Node {
    /// `None` if there is no such name any more.
    pub(crate) fn open(parent: BorrowedFd<'_>, name: &[u8]) -> io::Result<Option<Self>> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let path = match rustix::fs::openat(parent, name, flags, Mode::empty()) {
            Err(Errno::NOENT) => return Ok(None),
            result => result?,
        };
        let stat = rustix::fs::fstat(&path)?;
        let xattrs = xattrs(path.as_fd())?;
        Ok(Some(Self { path, stat, xattrs }))
    }

    /// The descriptor, opened with `O_PATH`.
    pub(crate) fn as_fd(&self) -> BorrowedFd<'_> {
        self.path.as_fd()
    }

    pub(crate) fn file_type(&self) -> FileType {
        FileType::from_raw_mode(self.stat.st_mode)
    }

    pub(crate) fn is_empty_directory(&self) -> io::Result<bool> {
        Ok(self.file_type() == FileType::Directory && self.names()?.is_empty())
    }

    pub(crate) fn names(&self) -> io::Result<Vec<Vec<u8>>> {
        names(self.path.as_fd())
    }

    pub(crate) fn content(&self) -> io::Result<File> {
        File::open(magic_link(self.path.as_fd()))
    }
}

/// A path that means the very inode of a descriptor, whatever its type (proc_pid_fd(5)).
fn magic_link(fd: BorrowedFd<'_>) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", fd.as_raw_fd()))
}

/// The names in a directory, in byte order. The descriptor's own position is neither used nor changed.
pub(crate) fn names(directory: BorrowedFd<'_>) -> io::Result<Vec<Vec<u8>>> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let directory = rustix::fs::openat(directory, ".", flags, Mode::empty())?;
    let mut buffer = [MaybeUninit::uninit(); 16 << 10];
    let mut entries = RawDir::new(directory, &mut buffer);
    let mut names = Vec::new();
    while let Some(entry) = entries.next() {
        let name = entry?.file_name().to_bytes().to_vec();
        if name != b"." && name != b".." {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}

fn xattrs(node: BorrowedFd<'_>) -> io::Result<Vec<(Vec<u8>, Vec<u8>)>> {
    let path = magic_link(node);
    let Some(list) = read_growing(|buffer| rustix::fs::listxattr(&path, buffer))? else {
        return Ok(Vec::new());
    };
    let mut xattrs = Vec::new();
    for name in list.split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        if let Some(value) = read_growing(|buffer| rustix::fs::getxattr(&path, name, buffer))? {
            xattrs.push((name.to_vec(), value));
        }
    }
    xattrs.sort();
    Ok(xattrs)
}

/// `None` where there are no attributes, or no such attribute any more.
fn read_growing(read: impl Fn(&mut [u8]) -> rustix::io::Result<usize>) -> io::Result<Option<Vec<u8>>> {
    let mut buffer = vec![0; 1 << 10];
    loop {
        match read(&mut buffer) {
            Ok(length) => {
                buffer.truncate(length);
                return Ok(Some(buffer));
            }
            // The kernel's cap is 64 KiB (XATTR_SIZE_MAX, XATTR_LIST_MAX).
            Err(Errno::RANGE) if buffer.len() < 1 << 20 => buffer.resize(buffer.len() * 8, 0),
            Err(Errno::OPNOTSUPP | Errno::NODATA) => return Ok(None),
            Err(e) => return Err(e.into()),
        }
    }
}
