//! The directory with the image files, by descriptor: nothing outside it is ever opened.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{Dir, FileType, Mode, OFlags, ResolveFlags, fstat, openat2};

use super::error::ImageError;

/// Most files in an image directory.
const MAX_FILES: usize = 100_000;

/// An image directory. Files are opened beneath it, without following links, and only if they are regular.
#[derive(Debug)]
pub struct ImageDir {
    fd: OwnedFd,
}

impl ImageDir {
    /// Takes a descriptor of the directory.
    pub fn new(fd: OwnedFd) -> Self {
        Self { fd }
    }

    /// Names of all files, in order.
    ///
    /// # Errors
    /// When the directory cannot be read, or holds more files than any dump makes.
    pub fn names(&self) -> Result<Vec<String>, ImageError> {
        let failed = |source: rustix::io::Errno| io_error("list", ".", source.into());
        let mut names = Vec::new();
        for entry in Dir::read_from(&self.fd).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let name = entry.file_name().to_string_lossy().into_owned();
            if name == "." || name == ".." {
                continue;
            }
            if names.len() == MAX_FILES {
                return Err(ImageError::TooMany {
                    what: "files in the image directory".into(),
                    limit: MAX_FILES,
                });
            }
            names.push(name);
        }
        names.sort_unstable();
        Ok(names)
    }

    /// Length of a regular file, in bytes.
    ///
    /// # Errors
    /// When it cannot be opened or is no regular file.
    pub fn length(&self, name: &str) -> Result<u64, ImageError> {
        Ok(self.open(name)?.1)
    }

    /// The whole file, if it has at most `limit` bytes.
    ///
    /// # Errors
    /// When it cannot be read, is no regular file, or is larger.
    pub fn read(&self, name: &str, limit: u64) -> Result<Vec<u8>, ImageError> {
        let (file, length) = self.open(name)?;
        if length > limit {
            return Err(ImageError::TooLarge { file: name.into(), bytes: length, limit });
        }
        let bytes = read_up_to(file, length, limit).map_err(|source| io_error("read", name, source))?;
        if bytes.len() as u64 > limit {
            return Err(ImageError::TooLarge { file: name.into(), bytes: bytes.len() as u64, limit });
        }
        Ok(bytes)
    }

    /// The first bytes of a file, at most `limit`.
    ///
    /// # Errors
    /// When it cannot be read or is no regular file.
    pub fn read_head(&self, name: &str, limit: u64) -> Result<Vec<u8>, ImageError> {
        let (file, length) = self.open(name)?;
        let mut bytes = Vec::with_capacity(length.min(limit) as usize);
        file.take(limit).read_to_end(&mut bytes).map_err(|source| io_error("read", name, source))?;
        Ok(bytes)
    }

    fn open(&self, name: &str) -> Result<(File, u64), ImageError> {
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        // Non-blocking, so that a fifo put there cannot hold the agent.
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
        let fd = openat2(&self.fd, name, flags, Mode::empty(), resolve).map_err(|errno| match errno {
            rustix::io::Errno::NOENT => ImageError::Missing { file: name.into() },
            rustix::io::Errno::LOOP => ImageError::NotRegular { file: name.into() },
            errno => io_error("open", name, errno.into()),
        })?;
        let stat = fstat(&fd).map_err(|errno| io_error("stat", name, errno.into()))?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(ImageError::NotRegular { file: name.into() });
        }
        Ok((File::from(fd), stat.st_size as u64))
    }
}

impl AsFd for ImageDir {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Reads to the end, but not past `limit` by more than a byte: the file may grow while it is read.
fn read_up_to(file: File, length: u64, limit: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::with_capacity(length as usize);
    file.take(limit + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn io_error(operation: &'static str, file: &str, source: io::Error) -> ImageError {
    ImageError::Io { operation, file: file.into(), source }
}
