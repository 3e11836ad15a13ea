//! What a container wrote to its root file system, as a layer: the upper directory of its overlay, in the terms of
//! the OCI image specification ("Representing Changes").
//!
//! | in the upper directory | in the layer |
//! |---|---|
//! | character device 0/0, or an empty file with the attribute `overlay.whiteout` | `.wh.NAME` |
//! | a directory with `overlay.opaque` = `y` | the directory and `.wh..wh..opq` in it |
//! | attributes `trusted.overlay.*`, `user.overlay.*` | nothing |
//! | `overlay.redirect`, `overlay.metacopy` | refused: a part of the file is in a lower layer |
//! | an empty file or directory that the runtime made to mount something on | nothing |
//! | holes | zeros |

use std::io::Write;
use std::os::fd::BorrowedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::FileType;

use crate::archive::Archive;
use crate::inode::Node;
use crate::labels;
use crate::tree::{self, Rules, SkipReason, TreeError, TreeReport, Verdict};

/// Why a root file system diff could not be made.
#[derive(Debug, thiserror::Error)]
#[error("cannot make the layer of what the container wrote to its root file system")]
pub struct DiffError(#[from] TreeError);

/// What is in a diff; it is empty, and makes no layer, when there are no entries.
pub type DiffReport = TreeReport;

/// How a diff is made.
#[derive(Debug, Clone)]
pub struct DiffOptions {
    /// Where the runtime mounted something, as absolute paths in the container. What lies there in the upper
    /// directory is left out if it is empty.
    pub mount_points: Vec<PathBuf>,
    /// The most bytes that files may have together, holes counted, for they are unpacked as zeros.
    pub max_bytes: u64,
}

impl Default for DiffOptions {
    fn default() -> Self {
        Self { mount_points: Vec::new(), max_bytes: 64 << 30 }
    }
}

/// Appends the diff to a layer. `target` is the layer's place for errors.
pub(crate) fn append<W: Write>(
    archive: &mut Archive<W>,
    upper: BorrowedFd<'_>,
    options: &DiffOptions,
    target: &Path,
) -> Result<DiffReport, DiffError> {
    let mount_points = options.mount_points.iter().map(|path| relative(path)).collect();
    Ok(tree::copy(archive, upper, &Overlay { mount_points }, options.max_bytes, target)?)
}

fn relative(path: &Path) -> Vec<u8> {
    let path = path.as_os_str().as_bytes();
    let start = path.iter().position(|byte| *byte != b'/').unwrap_or(path.len());
    let end = path.iter().rposition(|byte| *byte != b'/').map_or(start, |last| last + 1);
    path[start..end].to_vec()
}

struct Overlay {
    mount_points: Vec<Vec<u8>>,
}

/// The part of an overlayfs attribute's name after its prefix.
fn overlay_attribute(name: &[u8]) -> Option<&[u8]> {
    name.strip_prefix(b"trusted.overlay.").or_else(|| name.strip_prefix(b"user.overlay."))
}

impl Rules for Overlay {
    fn judge(&self, path: &[u8], node: &Node) -> Result<Verdict, TreeError> {
        if path == labels::RESERVED_DIR.as_bytes() {
            return Ok(Verdict::LeaveOut);
        }
        let overlay =
            |wanted: &[u8]| node.xattrs.iter().find(|(name, _)| overlay_attribute(name) == Some(wanted));
        let file_type = node.file_type();
        let empty_file = file_type == FileType::RegularFile && node.stat.st_size == 0;
        let device_0_0 = file_type == FileType::CharacterDevice && node.stat.st_rdev == 0;
        if device_0_0 || (empty_file && overlay(b"whiteout").is_some()) {
            return Ok(Verdict::Whiteout);
        }
        if let Some((name, _)) = overlay(b"redirect").or_else(|| overlay(b"metacopy")) {
            let attribute = String::from_utf8_lossy(name).into_owned();
            return Err(TreeError::Overlay { path: tree::to_path(path), attribute });
        }
        if self.mount_points.iter().any(|mount| mount == path)
            && (empty_file || node.is_empty_directory().map_err(tree::failed_to("list", path))?)
        {
            return Ok(Verdict::LeaveOut);
        }
        if path.rsplit(|byte| *byte == b'/').next().is_some_and(|name| name.starts_with(b".wh.")) {
            return Ok(Verdict::Skip(SkipReason::ReservedName));
        }
        // "x" only says that whiteouts by attribute are in there.
        Ok(match overlay(b"opaque") {
            Some((_, value)) if value == b"y" => Verdict::CopyOpaque,
            _ => Verdict::Copy,
        })
    }

    fn keeps_attribute(&self, name: &[u8]) -> bool {
        overlay_attribute(name).is_none()
    }

    fn keeps_holes(&self) -> bool {
        false
    }
}
