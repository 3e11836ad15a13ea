//! The checkpoint image: an ordinary OCI image that also holds a frozen application.
//!
//! [`ImageBuilder`] makes one in a [`BlobStore`], [`Registry`] pushes and reads it, [`CheckpointLabels`] and
//! [`CheckpointRecord`] say what is in it, [`Compatibility`] where it can be thawed, [`lay_out`] puts carried volumes
//! back. `docs/format.md` describes the format. Nothing here knows a container runtime or Kubernetes.

#![forbid(unsafe_code)]

mod ahead;
mod archive;
mod base;
mod build;
mod checkpoint;
mod compatibility;
mod config;
mod credentials;
mod diff;
mod digest;
mod frame;
mod hashing;
mod inode;
pub mod labels;
mod lay_out;
mod layer;
mod node;
mod page_file;
mod pages;
mod record;
mod registry;
mod sparse;
mod store;
mod tree;
mod unarchive;
mod volume;
mod working_set;

pub use ahead::Ahead;
pub use base::{BaseError, BaseImage};
pub use build::{BuildError, BuiltImage, ImageBuilder, MemoryProgress, record_of};
pub use checkpoint::{
    CheckpointLabels, FileError, LabelError, ReadError, ReadRecord, read_record, record_in_layer,
};
pub use compatibility::{Compatibility, Incompatibility};
pub use credentials::{Credentials, CredentialsError, Login};
pub use diff::{DiffError, DiffOptions, DiffReport};
pub use digest::{is_sha256, sha256};
pub use lay_out::{LayOutError, LayOutReport, lay_out};
pub use layer::{Compression, Layer};
pub use node::NodeError;
pub use record::{
    CheckpointRecord, FileRecord, Hook, Listener, MAGIC, MAX_BYTES, MemoryMode, PageFileRecord, Process,
    RecordError, Source, Stdio, VolumeKind, VolumeRecord,
};
pub use registry::{
    BlobOutcome, BlobReader, BlobSource, Deletion, NoProgress, PulledImage, PushProgress, Pushed, Reference,
    Registry, RegistryError, RegistryOptions, RepositorySource, Timeouts,
};
pub use store::{BlobStore, StoreError};
pub use tree::{SkipReason, Skipped, TreeError, TreeReport};
pub use volume::{VolumeError, VolumeReport, VolumeSource};
pub use working_set::{MAX_SET_BYTES, MAX_SPANS, ProcessSet, RecordedSet, WorkingSetError};
