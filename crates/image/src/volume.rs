//! The content of a volume that is not in the image's layers (an emptyDir, a tmpfs, `/dev/shm`) as an archive of
//! the state layer. [`crate::lay_out`] is the other end.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::BorrowedFd;
use std::path::Path;

use rustix::fs::FileType;

use crate::archive::Archive;
use crate::inode::{self, Node};
use crate::record::VolumeKind;
use crate::store::StoreError;
use crate::tree::{self, Rules, SkipReason, TreeError, TreeReport, Verdict};

/// What an entry costs in an archive beside its content, about: its header and its records.
pub(crate) const ENTRY_BYTES: u64 = 1024;

/// Why a volume could not be carried.
#[derive(Debug, thiserror::Error)]
pub enum VolumeError {
    /// Beyond the cap.
    #[error(
        "the volume at {mount_path} holds {bytes} bytes or more, the checkpoint may carry {cap}: raise the limit, \
         or empty the volume before the checkpoint"
    )]
    TooLarge {
        /// Where it is mounted.
        mount_path: String,
        /// What was found until it was too much, headers counted.
        bytes: u64,
        /// The cap.
        cap: u64,
    },
    /// It cannot be read, or the archive not be written.
    #[error("cannot carry the volume at {mount_path}")]
    Tree {
        /// Where it is mounted.
        mount_path: String,
        /// Why.
        source: TreeError,
    },
}

/// A volume to carry.
#[derive(Debug, Clone, Copy)]
pub struct VolumeSource<'a> {
    /// Where it is mounted in the container.
    pub mount_path: &'a str,
    /// What it is.
    pub kind: VolumeKind,
    /// The volume's directory, open for reading.
    pub directory: BorrowedFd<'a>,
    /// The most bytes to carry, headers counted.
    pub cap: u64,
}

/// What was carried.
pub type VolumeReport = TreeReport;

/// Writes the volume's archive to `file`. `target` is its place for errors.
pub(crate) fn archive(
    source: &VolumeSource<'_>,
    file: &File,
    target: &Path,
) -> Result<VolumeReport, VolumeError> {
    let mount_path = || source.mount_path.to_owned();
    let mut out =
        Bounded { out: io::BufWriter::with_capacity(1 << 20, file), left: source.cap, exceeded: false };
    let mut archive = Archive::new(&mut out);
    let copied =
        tree::copy(&mut archive, source.directory, &Content, source.cap, target).and_then(|report| {
            let finish = |e| StoreError::io("write to", target, e);
            archive.finish().map_err(finish)?.out.flush().map_err(finish)?;
            Ok(report)
        });
    match copied {
        Ok(report) => Ok(report),
        Err(error) if out.exceeded || matches!(error, TreeError::TooLarge { .. }) => {
            let bytes = measure(source.directory).unwrap_or(0).max(source.cap + 1);
            Err(VolumeError::TooLarge { mount_path: mount_path(), bytes, cap: source.cap })
        }
        Err(error) => Err(VolumeError::Tree { mount_path: mount_path(), source: error }),
    }
}

/// About how large the volume's archive would be, for the error. Walks without reading.
fn measure(directory: BorrowedFd<'_>) -> io::Result<u64> {
    use rustix::fs::{AtFlags, Mode, OFlags};
    let mut bytes = 0;
    for name in inode::names(directory)? {
        let Ok(stat) = rustix::fs::statat(directory, name.as_slice(), AtFlags::SYMLINK_NOFOLLOW) else {
            continue;
        };
        bytes += ENTRY_BYTES;
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => bytes += (stat.st_blocks as u64 * 512).min(stat.st_size as u64),
            FileType::Directory => {
                let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                if let Ok(child) = rustix::fs::openat(directory, name.as_slice(), flags, Mode::empty()) {
                    bytes += measure(std::os::fd::AsFd::as_fd(&child))?;
                }
            }
            _ => {}
        }
    }
    Ok(bytes)
}

/// All of a volume but devices, which nobody may bring along.
struct Content;

impl Rules for Content {
    fn judge(&self, _path: &[u8], node: &Node) -> Result<Verdict, TreeError> {
        Ok(match node.file_type() {
            FileType::CharacterDevice | FileType::BlockDevice => Verdict::Skip(SkipReason::Device),
            _ => Verdict::Copy,
        })
    }

    fn keeps_attribute(&self, name: &[u8]) -> bool {
        may_carry_attribute(name)
    }

    fn keeps_holes(&self) -> bool {
        true
    }
}

/// The extended attributes that a volume carries: the application's own, access lists and file capabilities.
/// Labels of security modules come from the new pod.
pub(crate) fn may_carry_attribute(name: &[u8]) -> bool {
    name.starts_with(b"user.")
        || matches!(name, b"system.posix_acl_access" | b"system.posix_acl_default" | b"security.capability")
}

/// A writer that takes no more than it may.
struct Bounded<W> {
    out: W,
    left: u64,
    exceeded: bool,
}

impl<W: Write> Write for Bounded<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self.left.checked_sub(bytes.len() as u64) {
            Some(left) => self.left = left,
            None => {
                self.exceeded = true;
                return Err(io::Error::other("the volume's cap is reached"));
            }
        }
        self.out.write_all(bytes)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}
