//! Every name that marks a checkpoint image: labels of its config (what a node decides by, for CRI hands
//! out labels and not annotations), the same keys as annotations of its manifest, and paths in its layers.

/// The format version of the image, a decimal number ([`FORMAT_VERSION`]). Its presence is what makes an
/// image a checkpoint image.
pub const FORMAT: &str = "dev.woodfrog.checkpoint.format";

/// How many of the image's first layers are root file system (base image and diffs); the rest are state
/// and memory.
pub const ROOTFS_LAYERS: &str = "dev.woodfrog.checkpoint.rootfs-layers";

/// Bytes of memory in the image's memory layers, uncompressed.
pub const MEMORY_BYTES: &str = "dev.woodfrog.checkpoint.memory-bytes";

/// Bytes of the state layer's files, uncompressed.
pub const STATE_BYTES: &str = "dev.woodfrog.checkpoint.state-bytes";

/// How applications get their memory when they are thawed from the image: `Copied` or `Shared`. For people and schedulers; the
/// node decides by `woodfrog.json`.
pub const MEMORY: &str = "dev.woodfrog.checkpoint.memory";

/// What the node must be, for people and schedulers; the node decides by `woodfrog.json`.
pub const COMPATIBILITY: &str = "dev.woodfrog.checkpoint.compatibility";

/// The CPU architecture as the kernel names it (`x86_64`).
pub const ARCHITECTURE: &str = "dev.woodfrog.checkpoint.architecture";

/// The image that the frozen container ran, as it was named there.
pub const SOURCE_IMAGE: &str = "dev.woodfrog.checkpoint.source-image";

/// When the container was frozen (RFC 3339).
pub const CREATED: &str = "dev.woodfrog.checkpoint.created";

/// Prefix of all of the above.
pub const PREFIX: &str = "dev.woodfrog.checkpoint.";

/// On a layer's descriptor: [`ROLE_DIFF`], [`ROLE_STATE`], [`ROLE_MEMORY`] or [`ROLE_WORKING_SET`]; a base layer has none.
pub const ROLE: &str = "dev.woodfrog.checkpoint.role";

/// The layer of what the container wrote to its root file system.
pub const ROLE_DIFF: &str = "rootfs-diff";

/// The layer of CRIU's images without memory, `woodfrog.json` and the volumes.
pub const ROLE_STATE: &str = "state";

/// A layer of one page file.
pub const ROLE_MEMORY: &str = "memory";

/// The layer of what is wanted first of the memory.
pub const ROLE_WORKING_SET: &str = "working-set";

/// The version of the format that this code writes, and the newest that it reads.
pub const FORMAT_VERSION: u32 = 1;

/// Where the checkpoint lies in the image, relative to its root.
pub const CHECKPOINT_DIR: &str = ".woodfrog/checkpoint";

/// The first component of [`CHECKPOINT_DIR`]: never part of a root file system diff.
pub const RESERVED_DIR: &str = ".woodfrog";

/// The record's file name in [`CHECKPOINT_DIR`].
pub const RECORD_FILE: &str = "woodfrog.json";

/// What is wanted first of the memory, relative to the image's root. Not in [`CHECKPOINT_DIR`], where readers look at every file.
pub const WORKING_SET_PATH: &str = ".woodfrog/working-set.json";

/// Media type of the layers that this crate writes (OCI image spec 1.1).
pub const LAYER_MEDIA_TYPE: &str = "application/vnd.oci.image.layer.v1.tar+zstd";

/// Media type of the manifest.
pub const MANIFEST_MEDIA_TYPE: &str = "application/vnd.oci.image.manifest.v1+json";

/// Media type of the config.
pub const CONFIG_MEDIA_TYPE: &str = "application/vnd.oci.image.config.v1+json";
