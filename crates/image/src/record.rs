//! `woodfrog.json`: what a checkpoint is, where it may be thawed and what belongs to it. It lies in the state
//! layer beside CRIU's own images; the agent that thaws reads it before anything else.
//!
//! Format: JSON, at most [`MAX_BYTES`]. `magic` and `version` are read first and alone, so that a newer format
//! is refused by its number whatever else has changed. Within a version fields are only ever added.

use std::net::IpAddr;
use std::time::SystemTime;

use chrono::{DateTime, SecondsFormat, Utc};
use serde::{Deserialize, Serialize};

use crate::compatibility::Compatibility;
use crate::labels::FORMAT_VERSION;

/// What `magic` says.
pub const MAGIC: &str = "woodfrog-checkpoint";

/// The largest record that is written or read: 1 MiB.
pub const MAX_BYTES: u64 = 1 << 20;

/// Why a record cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// Beyond [`MAX_BYTES`].
    #[error("woodfrog.json has {bytes} bytes, more than the {MAX_BYTES} that a record may have")]
    TooLarge {
        /// Its size.
        bytes: u64,
    },
    /// No record of a checkpoint.
    #[error("woodfrog.json is not a checkpoint's record: its magic is {found:?} instead of {MAGIC:?}")]
    Magic {
        /// What is there instead.
        found: String,
    },
    /// From another time.
    #[error(
        "the checkpoint has format version {found}, this Woodfrog reads version {FORMAT_VERSION}: \
         use the Woodfrog that wrote it or make the checkpoint again"
    )]
    Version {
        /// The record's version.
        found: u64,
    },
    /// No JSON, or not the fields of its version.
    #[error("woodfrog.json cannot be read: {0}")]
    Json(#[from] serde_json::Error),
}

/// Everything that is known of a checkpoint. The writer fills in all but `files`, `memory` and `volumes`,
/// which come from the image's builder.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CheckpointRecord {
    /// Which container was frozen.
    pub source: Source,
    /// When it was frozen; also the modification time of all files of the checkpoint. Whole seconds.
    #[serde(with = "rfc3339")]
    pub created: SystemTime,
    /// How many thaws lie between the frozen application and the start of its ancestor; 0 after a cold start.
    pub generation: u64,
    /// How many seccomp filters the runtime had given the container: the first ones of each task.
    pub seccomp_filters: u32,
    /// What a node must be to thaw it.
    pub compatibility: Compatibility,
    /// The application's environment when it was frozen, `NAME=VALUE`. May hold secrets.
    pub environment: Vec<String>,
    /// Descriptors 0 to 2 of the root task that are pipes of the runtime, for the thaw to replace.
    pub stdio: Vec<Stdio>,
    /// All tasks' leaders, the root first.
    pub processes: Vec<Process>,
    /// Sockets that listen.
    pub listeners: Vec<Listener>,
    /// What to do after a restore, the last one first.
    pub after_restore: Vec<Hook>,
    /// The pod's addresses when it was frozen: listeners bound to one of them move to the new pod's.
    pub pod_addresses: Vec<IpAddr>,
    /// How the application gets its memory when it is thawed, unless its pod says otherwise.
    #[serde(default, skip_serializing_if = "MemoryMode::is_copied")]
    pub memory_mode: MemoryMode,
    /// The files of the state layer, except this one and the volumes' archives.
    #[serde(default)]
    pub files: Vec<FileRecord>,
    /// The page files, one a memory layer.
    #[serde(default)]
    pub memory: Vec<PageFileRecord>,
    /// Contents of volumes that the image carries.
    #[serde(default)]
    pub volumes: Vec<VolumeRecord>,
}

/// How a thawed application gets its memory.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum MemoryMode {
    /// Each has its own.
    #[default]
    Copied,
    /// All that are thawed from an image on a node share what they do not write to.
    Shared,
}

impl MemoryMode {
    /// The default, which the record leaves out.
    pub fn is_copied(&self) -> bool {
        *self == Self::Copied
    }

    /// The word for it, as labels and annotations have it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Copied => "Copied",
            Self::Shared => "Shared",
        }
    }

    /// The mode that a label or an annotation names.
    pub fn parse(word: &str) -> Option<Self> {
        [Self::Copied, Self::Shared].into_iter().find(|mode| mode.as_str() == word)
    }
}

/// Where a checkpoint comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Source {
    /// The container's name in its pod.
    pub container: String,
    /// The pod's namespace.
    pub namespace: String,
    /// The pod's name.
    pub pod: String,
    /// The image as the pod named it.
    pub image: String,
    /// Digest of that image's manifest.
    pub image_digest: String,
}

/// A descriptor of the application that leads to the runtime.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Stdio {
    /// 0, 1 or 2.
    pub fd: u32,
    /// CRIU's key for it: `pipe:[INODE]`.
    pub key: String,
}

/// A frozen process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Process {
    /// Its PID inside the container.
    pub pid: u32,
    /// Its `comm`.
    pub name: String,
}

/// A socket that listens.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Listener {
    /// `tcp`, `udp` or `unix`.
    pub protocol: String,
    /// `ADDRESS:PORT`, or the path of a unix socket (abstract ones begin with `@`).
    pub address: String,
}

/// Something to do when the application runs again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Hook {
    /// Run a command in the container.
    #[serde(rename_all = "camelCase")]
    Exec {
        /// The command and its arguments.
        command: Vec<String>,
        /// Seconds until it is given up.
        timeout_seconds: u32,
    },
    /// Send a POST request without a body to the container, on loopback.
    #[serde(rename_all = "camelCase")]
    Http {
        /// The port.
        port: u16,
        /// Path and query.
        path: String,
        /// Seconds until it is given up.
        timeout_seconds: u32,
    },
}

/// A file of the checkpoint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FileRecord {
    /// Its name in the checkpoint's directory.
    pub name: String,
    /// Bytes.
    pub size: u64,
    /// `sha256:` and 64 hexadecimal digits.
    pub digest: String,
}

/// A page file. It has no digest of its own: nobody reads all of it before a thaw, the layer that holds nothing else has one,
/// and a further hash would cost a freeze as much CPU time as the compression.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PageFileRecord {
    /// Its name in the checkpoint's directory.
    pub name: String,
    /// Bytes.
    pub size: u64,
}

/// What sort of volume was carried.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum VolumeKind {
    /// An emptyDir of the pod, on disk or in memory.
    EmptyDir,
    /// A tmpfs that the runtime mounted.
    Tmpfs,
    /// `/dev/shm`.
    SharedMemory,
}

/// A volume whose content is in the state layer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct VolumeRecord {
    /// Where it was mounted in the container.
    pub mount_path: String,
    /// What it was.
    pub kind: VolumeKind,
    /// The archive in the checkpoint's directory: `volumes/N.tar`.
    pub archive: FileRecord,
    /// Bytes of data in its files, holes not counted.
    pub bytes: u64,
}

#[derive(Serialize)]
struct Enveloped<'a> {
    magic: &'static str,
    version: u32,
    #[serde(flatten)]
    record: &'a CheckpointRecord,
}

#[derive(Deserialize)]
struct Envelope {
    #[serde(default)]
    magic: String,
    #[serde(default)]
    version: u64,
}

impl CheckpointRecord {
    /// The record as it is stored.
    pub fn to_json(&self) -> Result<Vec<u8>, RecordError> {
        let enveloped = Enveloped { magic: MAGIC, version: FORMAT_VERSION, record: self };
        let mut json = serde_json::to_vec_pretty(&enveloped)?;
        json.push(b'\n');
        check_size(json.len() as u64)?;
        Ok(json)
    }

    /// Reads a stored record.
    pub fn from_json(json: &[u8]) -> Result<Self, RecordError> {
        check_size(json.len() as u64)?;
        let envelope: Envelope = serde_json::from_slice(json)?;
        if envelope.magic != MAGIC {
            return Err(RecordError::Magic { found: envelope.magic.chars().take(64).collect() });
        }
        if envelope.version != u64::from(FORMAT_VERSION) {
            return Err(RecordError::Version { found: envelope.version });
        }
        Ok(serde_json::from_slice(json)?)
    }

    /// Bytes of all page files.
    pub fn memory_bytes(&self) -> u64 {
        self.memory.iter().map(|file| file.size).sum()
    }

    /// Bytes of all files of the state layer but the record itself.
    pub fn state_bytes(&self) -> u64 {
        let archives = self.volumes.iter().map(|volume| &volume.archive);
        self.files.iter().chain(archives).map(|file| file.size).sum()
    }
}

fn check_size(bytes: u64) -> Result<(), RecordError> {
    if bytes > MAX_BYTES { Err(RecordError::TooLarge { bytes }) } else { Ok(()) }
}

/// A time as RFC 3339 text in UTC with whole seconds.
pub(crate) fn rfc3339_text(time: SystemTime) -> String {
    DateTime::<Utc>::from(time).to_rfc3339_opts(SecondsFormat::Secs, true)
}

mod rfc3339 {
    use std::time::SystemTime;

    use chrono::DateTime;
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(super) fn serialize<S: Serializer>(time: &SystemTime, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&super::rfc3339_text(*time))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<SystemTime, D::Error> {
        let text = String::deserialize(deserializer)?;
        DateTime::parse_from_rfc3339(&text).map(SystemTime::from).map_err(D::Error::custom)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::time::Duration;

    use super::*;

    /// A record without files, as an engine would hand it to the builder.
    pub(crate) fn example() -> CheckpointRecord {
        CheckpointRecord {
            source: Source {
                container: "web".into(),
                namespace: "shop".into(),
                pod: "web-7d9f".into(),
                image: "registry.example/shop/web:1".into(),
                image_digest: crate::digest::sha256(b"image"),
            },
            created: SystemTime::UNIX_EPOCH + Duration::from_secs(1_790_000_000),
            generation: 2,
            seccomp_filters: 1,
            compatibility: Compatibility {
                architecture: "x86_64".into(),
                cpu_vendor: "GenuineIntel".into(),
                cpu_features: ["avx2".to_owned()].into(),
                xsave_bytes: 832,
                kernel: "6.12.0".into(),
                criu: "4.2.1".into(),
                page_bytes: 4096,
                cgroup_version: 2,
            },
            environment: vec!["PATH=/usr/bin".into()],
            stdio: vec![Stdio { fd: 1, key: "pipe:[4711]".into() }],
            processes: vec![Process { pid: 300, name: "java".into() }],
            listeners: vec![Listener { protocol: "tcp".into(), address: "0.0.0.0:8080".into() }],
            memory_mode: MemoryMode::Copied,
            after_restore: vec![
                Hook::Exec { command: vec!["/bin/reseed".into()], timeout_seconds: 5 },
                Hook::Http { port: 8080, path: "/awake".into(), timeout_seconds: 1 },
            ],
            pod_addresses: vec!["10.0.0.7".parse().unwrap()],
            files: Vec::new(),
            memory: Vec::new(),
            volumes: Vec::new(),
        }
    }

    #[test]
    fn a_record_is_read_back_as_it_was_written() {
        let json = example().to_json().unwrap();
        assert_eq!(CheckpointRecord::from_json(&json).unwrap(), example());
    }

    #[test]
    fn a_newer_version_is_refused_by_its_number() {
        let json = br#"{"magic": "woodfrog-checkpoint", "version": 7, "everything": "else changed"}"#;
        let error = CheckpointRecord::from_json(json).unwrap_err();
        assert!(error.to_string().contains("version 7, this Woodfrog reads version 1"), "{error}");
    }

    #[test]
    fn another_program_s_json_is_no_record() {
        let error = CheckpointRecord::from_json(br#"{"magic": "other", "version": 1}"#).unwrap_err();
        assert!(error.to_string().contains("\"other\""), "{error}");
        CheckpointRecord::from_json(b"{}").unwrap_err();
        CheckpointRecord::from_json(b"[]").unwrap_err();
        CheckpointRecord::from_json(b"").unwrap_err();
    }

    #[test]
    fn a_record_beyond_the_cap_is_neither_written_nor_read() {
        let mut record = example();
        record.environment = vec!["x".repeat(MAX_BYTES as usize)];
        assert!(matches!(record.to_json(), Err(RecordError::TooLarge { .. })));
        let spaces = vec![b' '; MAX_BYTES as usize + 1];
        assert!(matches!(CheckpointRecord::from_json(&spaces), Err(RecordError::TooLarge { .. })));
    }

    #[test]
    fn the_first_version_stays_readable() {
        let json = include_bytes!("../testdata/woodfrog-v1.json");
        assert_eq!(CheckpointRecord::from_json(json).unwrap(), example());
        assert_eq!(json.as_slice(), example().to_json().unwrap());
    }
}
