//! Why an image directory cannot be read.

use std::io;

/// A checkpoint's image files could not be read or are not what CRIU writes.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ImageError {
    /// The system call failed.
    #[error("cannot {operation} image file {file}: {source}")]
    Io {
        /// What was tried.
        operation: &'static str,
        /// The file's name in the image directory.
        file: String,
        /// The cause.
        source: io::Error,
    },
    /// Not a regular file: a link, a directory, a device.
    #[error("{file} is not a regular file: the image was not made by a dump, or was tampered with")]
    NotRegular {
        /// The file's name.
        file: String,
    },
    /// Larger than anything a dump of a supported size writes.
    #[error("{file} has {bytes} bytes, more than the {limit} that are read of such a file")]
    TooLarge {
        /// The file's name.
        file: String,
        /// Its length.
        bytes: u64,
        /// The cap.
        limit: u64,
    },
    /// More files or entries than are read.
    #[error("{what}: more than {limit}")]
    TooMany {
        /// Of what.
        what: String,
        /// The cap.
        limit: usize,
    },
    /// The first bytes are not those of this kind of image.
    #[error("{file} does not begin as CRIU's {kind} images do (magic number {found:#x})")]
    Magic {
        /// The file's name.
        file: String,
        /// What it should be.
        kind: &'static str,
        /// What it begins with.
        found: u64,
    },
    /// The file ends inside an entry.
    #[error("{file} is cut off in entry {entry}, at byte {offset}")]
    Truncated {
        /// The file's name.
        file: String,
        /// Number of the entry, from 0.
        entry: usize,
        /// Where the missing bytes should be.
        offset: usize,
    },
    /// An entry is not valid protobuf of its kind.
    #[error("{file} entry {entry} is not a valid {kind}: {reason}")]
    Malformed {
        /// The file's name.
        file: String,
        /// Number of the entry, from 0.
        entry: usize,
        /// The entry's type.
        kind: &'static str,
        /// What the decoder says.
        reason: String,
    },
    /// An entry holds something that this version does not know, so it cannot be judged nor rewritten.
    #[error(
        "{file} entry {entry}: field {field} of {kind} is unknown, repeated, missing or not encoded as CRIU does"
    )]
    NotUnderstood {
        /// The file's name.
        file: String,
        /// Number of the entry, from 0.
        entry: usize,
        /// The entry's type.
        kind: &'static str,
        /// Path of tags from the entry to the field, as in `3.25`.
        field: String,
    },
    /// A file that must be there is not.
    #[error("{file} is missing: the checkpoint is incomplete")]
    Missing {
        /// The file's name.
        file: String,
    },
    /// The files contradict each other.
    #[error("{file}: {reason}")]
    Inconsistent {
        /// The file's name.
        file: String,
        /// What contradicts what.
        reason: String,
    },
}

impl ImageError {
    /// A bounded word for metrics and events.
    pub fn category(&self) -> &'static str {
        match self {
            Self::Io { .. } => "io",
            Self::NotRegular { .. } => "not_regular",
            Self::TooLarge { .. } | Self::TooMany { .. } => "too_large",
            Self::Magic { .. } => "magic",
            Self::Truncated { .. } => "truncated",
            Self::Malformed { .. } => "malformed",
            Self::NotUnderstood { .. } => "not_understood",
            Self::Missing { .. } => "missing",
            Self::Inconsistent { .. } => "inconsistent",
        }
    }

    pub(crate) fn inconsistent(file: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::Inconsistent { file: file.into(), reason: reason.into() }
    }
}
