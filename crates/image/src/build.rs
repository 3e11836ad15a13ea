//! Puts a checkpoint image together in the blob store.
//!
//! ```text
//!   base layers ─────────────────────────────┐  by digest
//!   rootfs_diff ──► diff layer (if any) ─────┤
//!   volume ──► volumes/N.tar ──┐             ├──► config ──► manifest
//!   state ─────────────────────┼► state layer┤
//!   memory ──► memory layers ──┴► record ────┤  woodfrog.json lists what all others are
//!   working set (if known) ──────────────────┘
//! ```

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use oci_spec::image::Descriptor;
use serde_json::json;
use tempfile::NamedTempFile;

use crate::ahead::Ahead;
use crate::archive::{Entry, Kind, Time};
use crate::base::BaseImage;
use crate::config;
use crate::diff::{self, DiffError, DiffOptions, DiffReport};
use crate::digest;
use crate::hashing::Hashing;
use crate::labels;
use crate::layer::{self, Compression, Layer};
use crate::page_file::{PageFile, is_memory};
use crate::pages;
use crate::record::{CheckpointRecord, FileRecord, PageFileRecord, RecordError, VolumeRecord};
use crate::sparse::Extent;
use crate::store::{BlobStore, StoreError};
use crate::volume::{self, VolumeError, VolumeReport, VolumeSource};
use crate::working_set::{ProcessSet, RecordedSet};

/// Why an image could not be built.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// The blob store, full disk included.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The root file system diff.
    #[error(transparent)]
    Diff(#[from] DiffError),
    /// A volume.
    #[error(transparent)]
    Volume(#[from] VolumeError),
    /// The record.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// A file of the checkpoint cannot be read.
    #[error("cannot read the checkpoint's file {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file of the checkpoint changed while it was read.
    #[error("the checkpoint's file {path} changed while it was read: its dump had not ended")]
    Changed {
        /// The file.
        path: PathBuf,
    },
    /// Two files with one name, or a name that has another meaning.
    #[error("the checkpoint has a file {name:?} that cannot be part of it")]
    Name {
        /// Its name.
        name: String,
    },
    /// The config or the manifest cannot be written.
    #[error("cannot write the image's {part}")]
    Json {
        /// `config` or `manifest`.
        part: &'static str,
        /// Why.
        source: serde_json::Error,
    },
}

/// A checkpoint image in the blob store: its config and its new layers; base layers may be elsewhere.
#[derive(Debug, Clone)]
pub struct BuiltImage {
    /// The manifest's bytes.
    pub manifest: Vec<u8>,
    /// The manifest's digest: the image's name.
    pub digest: String,
    /// The config's descriptor.
    pub config: Descriptor,
    /// All layers, lowest first.
    pub layers: Vec<Descriptor>,
    /// The layers that were made here.
    pub new_layers: Vec<Layer>,
    /// The record in the state layer.
    pub record: CheckpointRecord,
}

impl BuiltImage {
    /// Bytes of the new layers, uncompressed and compressed.
    pub fn new_bytes(&self) -> (u64, u64) {
        self.new_layers.iter().fold((0, 0), |sum, layer| (sum.0 + layer.uncompressed, sum.1 + layer.size))
    }
}

/// Told how many bytes of memory files have been read since the start.
pub type MemoryProgress = Arc<dyn Fn(u64) + Send + Sync>;

/// Builds one image. Everything here blocks and takes seconds: not for an async worker thread.
pub struct ImageBuilder<'s> {
    store: &'s BlobStore,
    base: BaseImage,
    record: CheckpointRecord,
    compression: Compression,
    progress: Option<MemoryProgress>,
    diff: Option<Layer>,
    memory: Vec<Layer>,
    kept: BTreeMap<String, Vec<Extent>>,
    ahead: Option<Ahead>,
    state: BTreeMap<String, PathBuf>,
    volumes: Vec<NamedTempFile>,
    working_set: Vec<ProcessSet>,
}

impl std::fmt::Debug for ImageBuilder<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ImageBuilder").field("record", &self.record).finish_non_exhaustive()
    }
}

impl<'s> ImageBuilder<'s> {
    /// Starts an image upon `base`. The lists of files in `record` are filled in by the builder.
    pub fn new(store: &'s BlobStore, base: BaseImage, record: CheckpointRecord) -> Self {
        let record =
            CheckpointRecord { files: Vec::new(), memory: Vec::new(), volumes: Vec::new(), ..record };
        Self {
            store,
            base,
            record,
            compression: Compression::default(),
            progress: None,
            diff: None,
            memory: Vec::new(),
            kept: BTreeMap::new(),
            ahead: None,
            state: BTreeMap::new(),
            volumes: Vec::new(),
            working_set: Vec::new(),
        }
    }

    /// Compresses otherwise than by default.
    pub fn compression(mut self, compression: Compression) -> Self {
        self.compression = compression;
        self
    }

    /// Reports the progress of [`Self::memory`].
    pub fn on_memory(mut self, progress: MemoryProgress) -> Self {
        self.progress = Some(progress);
        self
    }

    /// Adds what is wanted first of the memory, as far as it is known.
    pub fn working_set(mut self, processes: Vec<ProcessSet>) -> Self {
        self.working_set = processes;
        self
    }

    /// Takes of these page files only the extents that are given (offset and length, ascending), one behind the other.
    pub fn keep_only(mut self, kept: BTreeMap<String, Vec<(u64, u64)>>) -> Self {
        self.kept = kept;
        self
    }

    /// Takes what was compressed of the page files while they were written.
    pub fn ahead(mut self, ahead: Ahead) -> Self {
        self.ahead = Some(ahead);
        self
    }

    /// Adds what the container wrote to its root file system: its overlay's upper directory.
    pub fn rootfs_diff(
        &mut self,
        upper: BorrowedFd<'_>,
        options: &DiffOptions,
    ) -> Result<DiffReport, BuildError> {
        let (layer, report) = layer::write(self.store, self.compression, labels::ROLE_DIFF, |archive| {
            diff::append(archive, upper, options, self.store.root()).map_err(BuildError::from)
        })?;
        if report.entries > 0 {
            self.diff = Some(layer);
        }
        Ok(report)
    }

    /// Adds everything in CRIU's image directory: page files as memory, other files as state. Logs and
    /// sockets stay out.
    pub fn checkpoint_directory(&mut self, directory: &Path) -> Result<(), BuildError> {
        let mut memory = Vec::new();
        for path in images_in(directory)? {
            if is_memory(&file_name(&path)?) {
                memory.push(path);
            } else {
                self.state(&path)?;
            }
        }
        self.memory(&memory)
    }

    /// Adds page files, each as a layer of its own.
    pub fn memory(&mut self, paths: &[PathBuf]) -> Result<(), BuildError> {
        let mut frames = self.ahead.take().map(Ahead::take).unwrap_or_default();
        tracing::debug!(frames = frames.values().map(BTreeMap::len).sum::<usize>(), "compressed before");
        let (mtime, directories) = (self.mtime(), self.directories());
        let mut files = Vec::new();
        for path in paths {
            let name = file_name(path)?;
            if self.record.memory.iter().any(|file| file.name == name) {
                return Err(BuildError::Name { name });
            }
            let entry = |size| {
                let file = Entry::of_root(in_checkpoint(&name), Kind::File { size }, 0o600, mtime);
                (directories.clone(), file)
            };
            let file = PageFile::open(path, self.kept.remove(&name), entry)?;
            let frames = frames.remove(&name).unwrap_or_default();
            self.record.memory.push(PageFileRecord { name, size: file.size() });
            files.push((file, frames));
        }
        self.memory.extend(pages::write(self.store, self.compression, files, self.progress.as_ref())?);
        Ok(())
    }

    /// Adds one file to the state layer. It is read in [`Self::finish`].
    pub fn state(&mut self, path: &Path) -> Result<(), BuildError> {
        let name = file_name(path)?;
        if name == labels::RECORD_FILE || self.state.insert(name.clone(), path.to_owned()).is_some() {
            return Err(BuildError::Name { name });
        }
        Ok(())
    }

    /// Adds the content of a volume.
    pub fn volume(&mut self, source: &VolumeSource<'_>) -> Result<VolumeReport, BuildError> {
        let file = self.store.temporary()?;
        let report = volume::archive(source, file.as_file(), self.store.root())?;
        let (digest, size) = hash_of(file.path())?;
        self.record.volumes.push(VolumeRecord {
            mount_path: source.mount_path.to_owned(),
            kind: source.kind,
            archive: FileRecord { name: format!("volumes/{}.tar", self.volumes.len()), size, digest },
            bytes: report.bytes,
        });
        self.volumes.push(file);
        Ok(report)
    }

    /// Writes the state layer, the config and the manifest.
    pub fn finish(mut self) -> Result<BuiltImage, BuildError> {
        for (name, path) in &self.state {
            let (digest, size) = hash_of(path)?;
            self.record.files.push(FileRecord { name: name.clone(), size, digest });
        }
        let record = self.record.to_json()?;
        let state = self.state_layer(&record)?;
        let wanted = self.working_set_layer(&record)?;
        let new_layers = self.diff.take().into_iter().chain([state]).chain(self.memory.drain(..));
        let new_layers: Vec<Layer> = new_layers.chain(wanted).collect();
        let labels = config::labels(&self.base, &self.record, &new_layers);
        let config = config::config(&self.base, &self.record, &new_layers, &labels)
            .map_err(|source| BuildError::Json { part: "config", source })?;
        let config_digest = self.store.put(&config)?;
        let mut layers = self.base.layers.clone();
        layers.extend(new_layers.iter().map(descriptor));
        let config = json!({
            "mediaType": labels::CONFIG_MEDIA_TYPE, "digest": config_digest, "size": config.len(),
        });
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": labels::MANIFEST_MEDIA_TYPE,
            "config": config,
            "layers": layers,
            "annotations": labels,
        });
        let part = |part| move |source| BuildError::Json { part, source };
        let config = serde_json::from_value(config).map_err(part("manifest"))?;
        let manifest = serde_json::to_vec(&manifest).map_err(part("manifest"))?;
        let digest = self.store.put(&manifest)?;
        Ok(BuiltImage { manifest, digest, config, layers, new_layers, record: self.record })
    }

    fn state_layer(&self, record: &[u8]) -> Result<Layer, BuildError> {
        let mtime = self.mtime();
        let (layer, ()) = layer::write(self.store, self.compression, labels::ROLE_STATE, |archive| {
            let write = |e| StoreError::io("write the state layer to", self.store.root(), e);
            for directory in self.directories() {
                archive.append(&directory).map_err(write)?;
            }
            let file =
                |name: &str, size| Entry::of_root(in_checkpoint(name), Kind::File { size }, 0o600, mtime);
            archive.append_file(&file(labels::RECORD_FILE, record.len() as u64), record).map_err(write)?;
            if !self.volumes.is_empty() {
                let volumes = Entry::of_root(in_checkpoint("volumes"), Kind::Directory, 0o700, mtime);
                archive.append(&volumes).map_err(write)?;
            }
            let files = self.record.files.iter().map(|file| (file, self.state[&file.name].as_path()));
            let archives = self.record.volumes.iter().map(|volume| &volume.archive);
            let volumes = archives.zip(self.volumes.iter().map(NamedTempFile::path));
            for (recorded, path) in files.chain(volumes) {
                let failed = |source| BuildError::Read { path: path.to_owned(), source };
                let content = File::open(path).map_err(failed)?;
                let mut reader = Hashing::new(content);
                let copied = archive.append_file(&file(&recorded.name, recorded.size), &mut reader);
                if let Some(source) = reader.failed.take() {
                    return Err(failed(source));
                }
                copied.map_err(write)?;
                if reader.finish().0 != recorded.digest {
                    return Err(BuildError::Changed { path: path.to_owned() });
                }
            }
            Ok::<_, BuildError>(())
        })?;
        Ok(layer)
    }

    /// The set is of this record's capture. One that cannot be written is left out: the image is as good without it.
    fn working_set_layer(&mut self, record: &[u8]) -> Result<Option<Layer>, BuildError> {
        let processes = std::mem::take(&mut self.working_set);
        if processes.is_empty() {
            return Ok(None);
        }
        let Ok(json) = (RecordedSet { capture: digest::sha256(record), processes }).into_json() else {
            return Ok(None);
        };
        let mtime = self.mtime();
        let (layer, ()) = layer::write(self.store, self.compression, labels::ROLE_WORKING_SET, |archive| {
            let write = |e| StoreError::io("write a layer to", self.store.root(), e);
            archive
                .append(&Entry::of_root(labels::RESERVED_DIR, Kind::Directory, 0o700, mtime))
                .map_err(write)?;
            let kind = Kind::File { size: json.len() as u64 };
            let file = Entry::of_root(labels::WORKING_SET_PATH, kind, 0o600, mtime);
            archive.append_file(&file, json.as_slice()).map_err(write)?;
            Ok::<_, BuildError>(())
        })?;
        Ok(Some(layer))
    }

    fn mtime(&self) -> Time {
        Time { seconds: unix_seconds(self.record.created), nanoseconds: 0 }
    }

    /// The directories above a checkpoint's files, closed to everybody but root.
    fn directories(&self) -> Vec<Entry> {
        [labels::RESERVED_DIR, labels::CHECKPOINT_DIR]
            .map(|path| Entry::of_root(path, Kind::Directory, 0o700, self.mtime()))
            .into()
    }
}

/// The record of a checkpoint that stays in CRIU's image directory: `record` with the lists of its files.
pub fn record_of(directory: &Path, record: CheckpointRecord) -> Result<CheckpointRecord, BuildError> {
    let mut record =
        CheckpointRecord { files: Vec::new(), memory: Vec::new(), volumes: Vec::new(), ..record };
    for path in images_in(directory)? {
        let name = file_name(&path)?;
        if is_memory(&name) {
            let size =
                path.metadata().map_err(|source| BuildError::Read { path: path.clone(), source })?.len();
            record.memory.push(PageFileRecord { name, size });
        } else {
            let (digest, size) = hash_of(&path)?;
            record.files.push(FileRecord { name, size, digest });
        }
    }
    Ok(record)
}

/// CRIU's images in a directory, by name; what else lies there, such as logs and sockets, is no part of a checkpoint.
fn images_in(directory: &Path) -> Result<Vec<PathBuf>, BuildError> {
    let failed = |source| BuildError::Read { path: directory.to_owned(), source };
    let mut paths = Vec::new();
    for entry in std::fs::read_dir(directory).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let path = entry.path();
        if path.extension().is_some_and(|end| end == "img") && entry.file_type().map_err(failed)?.is_file() {
            paths.push(path);
        }
    }
    paths.sort();
    Ok(paths)
}

fn unix_seconds(time: SystemTime) -> i64 {
    match time.duration_since(UNIX_EPOCH) {
        Ok(since) => since.as_secs() as i64,
        Err(before) => -(before.duration().as_secs() as i64),
    }
}

fn in_checkpoint(name: &str) -> String {
    format!("{}/{name}", labels::CHECKPOINT_DIR)
}

fn file_name(path: &Path) -> Result<String, BuildError> {
    let name = path.file_name().and_then(|name| name.to_str());
    name.map(str::to_owned).ok_or_else(|| BuildError::Name { name: path.display().to_string() })
}

fn hash_of(path: &Path) -> Result<(String, u64), BuildError> {
    let failed = |source| BuildError::Read { path: path.to_owned(), source };
    let file = File::open(path).map_err(failed)?;
    let size = file.metadata().map_err(failed)?.len();
    Ok((digest::sha256_of(file).map_err(failed)?, size))
}

fn descriptor(layer: &Layer) -> Descriptor {
    let json = json!({
        "mediaType": layer.media_type(),
        "digest": layer.digest,
        "size": layer.size,
        "annotations": { labels::ROLE: layer.role },
    });
    serde_json::from_value(json).expect("a layer's digest is a digest")
}
