//! `working-set.json`: which memory the image's processes want first, as a thaw has shown that was made for that when the image was.
//!
//! It is alone in the image's last layer, and not in the checkpoint's directory, so that a reader that does not know it sees nothing. It
//! names the capture that it is of by the digest of its record: addresses mean nothing anywhere else.
//!
//! Format: JSON, at most [`MAX_SET_BYTES`]; `magic` and `version` are read first and alone.

use std::io::{self, Read};

use serde::{Deserialize, Serialize};

/// What `magic` says.
const SET_MAGIC: &str = "woodfrog-working-set";
/// The version that is written, and the newest that is read.
const SET_VERSION: u32 = 1;
/// The largest set that is written or read: 4 MiB.
pub const MAX_SET_BYTES: u64 = 4 << 20;
/// How many spans a set has at most; the first ones are wanted first.
pub const MAX_SPANS: usize = 1 << 16;

/// Why a working set is of no use. The image is, without it.
#[derive(Debug, thiserror::Error)]
pub enum WorkingSetError {
    /// It cannot be read.
    #[error("working-set.json cannot be read: {0}")]
    Read(#[from] io::Error),
    /// Beyond [`MAX_SET_BYTES`], or [`MAX_SPANS`].
    #[error("working-set.json is larger than a working set may be")]
    TooLarge,
    /// Something else, or of another time.
    #[error(
        "working-set.json is no working set of version {SET_VERSION}: it says {magic:?}, version {version}"
    )]
    Version {
        /// What it says that it is.
        magic: String,
        /// Its version.
        version: u64,
    },
    /// No JSON, or not the fields of its version.
    #[error("working-set.json cannot be read: {0}")]
    Json(#[from] serde_json::Error),
}

/// What the processes of a capture want first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecordedSet {
    /// Digest of the capture's `woodfrog.json`.
    pub capture: String,
    /// A process each.
    pub processes: Vec<ProcessSet>,
}

/// What a process wants first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessSet {
    /// Its PID inside the container.
    pub pid: u32,
    /// First address and length in bytes, in the order in which they are wanted.
    pub spans: Vec<(u64, u64)>,
}

#[derive(Serialize)]
struct Enveloped<'a> {
    magic: &'static str,
    version: u32,
    #[serde(flatten)]
    set: &'a RecordedSet,
}

#[derive(Deserialize)]
struct Envelope {
    #[serde(default)]
    magic: String,
    #[serde(default)]
    version: u64,
}

impl RecordedSet {
    /// The set as it is stored, without what is too much.
    ///
    /// # Errors
    /// It is too large all the same.
    pub(crate) fn into_json(mut self) -> Result<Vec<u8>, WorkingSetError> {
        let mut left = MAX_SPANS;
        for process in &mut self.processes {
            process.spans.truncate(left);
            left -= process.spans.len();
        }
        let json = serde_json::to_vec(&Enveloped { magic: SET_MAGIC, version: SET_VERSION, set: &self })?;
        if json.len() as u64 > MAX_SET_BYTES { Err(WorkingSetError::TooLarge) } else { Ok(json) }
    }

    /// Reads a stored set. What it says of addresses is anybody's word.
    ///
    /// # Errors
    /// It is too large, or none that this release knows.
    pub fn read(file: impl Read) -> Result<Self, WorkingSetError> {
        let mut json = Vec::new();
        file.take(MAX_SET_BYTES + 1).read_to_end(&mut json)?;
        if json.len() as u64 > MAX_SET_BYTES {
            return Err(WorkingSetError::TooLarge);
        }
        let Envelope { mut magic, version } = serde_json::from_slice(&json)?;
        if magic != SET_MAGIC || version != u64::from(SET_VERSION) {
            magic = magic.chars().take(64).collect();
            return Err(WorkingSetError::Version { magic, version });
        }
        let set: Self = serde_json::from_slice(&json)?;
        let spans: usize = set.processes.iter().map(|process| process.spans.len()).sum();
        if spans > MAX_SPANS { Err(WorkingSetError::TooLarge) } else { Ok(set) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example() -> RecordedSet {
        let spans = vec![(0x7f00_0000_0000, 8192), (4096, 4096)];
        RecordedSet { capture: crate::sha256(b"record"), processes: vec![ProcessSet { pid: 300, spans }] }
    }

    #[test]
    fn the_first_version_stays_readable() {
        let json = include_bytes!("../testdata/working-set-v1.json");
        assert_eq!(RecordedSet::read(json.as_slice()).unwrap(), example());
        assert_eq!(json.trim_ascii_end(), example().into_json().unwrap());
    }

    #[test]
    fn what_is_something_else_is_refused() {
        for json in [
            r#"{"magic":"woodfrog-working-set","version":2,"processes":"elsewhere"}"#,
            r#"{"magic":"other","version":1,"capture":"","processes":[]}"#,
            "{}",
            "[]",
            "",
        ] {
            RecordedSet::read(json.as_bytes()).unwrap_err();
        }
        let spaces = vec![b' '; MAX_SET_BYTES as usize + 1];
        assert!(matches!(RecordedSet::read(spaces.as_slice()), Err(WorkingSetError::TooLarge)));
    }

    #[test]
    fn what_is_wanted_last_is_left_out_where_there_is_too_much() {
        let spans = |count: u64| (0..count).map(|n| ((1 << 46) + (n << 13), 4096)).collect::<Vec<_>>();
        let process = |pid, count| ProcessSet { pid, spans: spans(count) };
        let all = MAX_SPANS as u64;
        let set = RecordedSet { processes: vec![process(300, all - 1), process(301, all)], ..example() };
        let read = RecordedSet::read(set.into_json().unwrap().as_slice()).unwrap();
        assert_eq!(read.processes, [process(300, all - 1), process(301, 1)]);
    }
}
