//! Reading a checkpoint image: what its labels say, which of its layers is which, and its record.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read};

use oci_spec::image::{Descriptor, ImageManifest};
use serde_json::Value;

use crate::digest::{sha256, sha256_of};
use crate::labels;
use crate::layer;
use crate::record::{CheckpointRecord, MAX_BYTES, RecordError};

/// What an image's labels say, if it is a checkpoint image. A node needs no more to know that it is one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CheckpointLabels {
    /// How many of the first layers are root file system. The next one is the state layer, the rest is memory, and perhaps what is
    /// wanted first of it.
    pub rootfs_layers: usize,
    /// Bytes of memory, uncompressed.
    pub memory_bytes: u64,
}

/// Why an image that says that it is a checkpoint image cannot be used as one.
#[derive(Debug, thiserror::Error)]
pub enum LabelError {
    /// From another time.
    #[error(
        "the image has the checkpoint format {found:?}, this Woodfrog reads {}: \
         use the Woodfrog that wrote it or make the checkpoint again",
        labels::FORMAT_VERSION
    )]
    Version {
        /// The label's value.
        found: String,
    },
    /// A label that is no number, or missing.
    #[error("the image's label {label} is {found:?}, which is not a number")]
    Number {
        /// Which label.
        label: &'static str,
        /// Its value.
        found: String,
    },
    /// Fewer layers than there must be.
    #[error("the image has {layers} layers, but its first {rootfs} are said to be its root file system")]
    Layers {
        /// In the manifest.
        layers: usize,
        /// By the label.
        rootfs: usize,
    },
    /// The config is no config.
    #[error("the image's config cannot be read")]
    Config(#[from] serde_json::Error),
}

/// Why a record could not be read out of a layer.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The layer is damaged.
    #[error("the image's state layer cannot be read")]
    Layer(#[from] io::Error),
    /// The layer has no record.
    #[error("the image's state layer has no {}", labels::RECORD_FILE)]
    Missing,
    /// The record is not usable.
    #[error(transparent)]
    Record(#[from] RecordError),
}

/// What is wrong with a file of a checkpoint.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// It is not there, or cannot be read.
    #[error("the checkpoint's file {name} cannot be read: {source}")]
    Read {
        /// Its name.
        name: String,
        /// Why.
        source: io::Error,
    },
    /// Its size is not the recorded one.
    #[error(
        "the checkpoint's file {name} has {found} bytes instead of {expected}: the image is truncated or was changed"
    )]
    Size {
        /// Its name.
        name: String,
        /// In the record.
        expected: u64,
        /// On the node.
        found: u64,
    },
    /// Its content is not the recorded one.
    #[error("the checkpoint's file {name} is not what was frozen: the image was damaged or tampered with")]
    Digest {
        /// Its name.
        name: String,
    },
}

impl CheckpointLabels {
    /// Reads an image's labels; `None` if they are those of an ordinary image.
    pub fn of<'l>(label: impl Fn(&str) -> Option<&'l str>) -> Result<Option<Self>, LabelError> {
        let Some(format) = label(labels::FORMAT) else {
            return Ok(None);
        };
        if format.parse() != Ok(labels::FORMAT_VERSION) {
            return Err(LabelError::Version { found: format.to_owned() });
        }
        let number = |key: &'static str| {
            let text = label(key).unwrap_or_default();
            text.parse::<u64>().map_err(|_| LabelError::Number { label: key, found: text.to_owned() })
        };
        let rootfs_layers = number(labels::ROOTFS_LAYERS)? as usize;
        Ok(Some(Self { rootfs_layers, memory_bytes: number(labels::MEMORY_BYTES)? }))
    }

    /// Reads labels as runtimes return them.
    pub fn of_labels(labels: &HashMap<String, String>) -> Result<Option<Self>, LabelError> {
        Self::of(|key| labels.get(key).map(String::as_str))
    }

    /// Reads the labels in an image's config.
    pub fn of_config(config: &[u8]) -> Result<Option<Self>, LabelError> {
        let config: Value = serde_json::from_slice(config)?;
        Self::of(|key| config.get("config")?.get("Labels")?.get(key)?.as_str())
    }

    /// The layer with the record and CRIU's images without memory.
    pub fn state_layer<'m>(&self, manifest: &'m ImageManifest) -> Result<&'m Descriptor, LabelError> {
        let layers = manifest.layers();
        let missing = LabelError::Layers { layers: layers.len(), rootfs: self.rootfs_layers };
        layers.get(self.rootfs_layers).ok_or(missing)
    }

    /// The layers with page files.
    pub fn memory_layers<'m>(&self, manifest: &'m ImageManifest) -> Vec<&'m Descriptor> {
        let layers = manifest.layers().iter().skip(self.rootfs_layers + 1);
        layers.filter(|layer| role(layer) != Some(labels::ROLE_WORKING_SET)).collect()
    }
}

fn role(layer: &Descriptor) -> Option<&str> {
    layer.annotations().as_ref()?.get(labels::ROLE).map(String::as_str)
}

/// Reads the record out of a state layer's blob, without reading much more: it is the layer's first file.
pub fn record_in_layer(blob: File) -> Result<CheckpointRecord, ReadError> {
    let wanted = format!("{}/{}", labels::CHECKPOINT_DIR, labels::RECORD_FILE);
    let mut archive = layer::read(blob)?;
    for entry in archive.entries()? {
        let mut entry = entry?;
        if entry.path_bytes().as_ref() == wanted.as_bytes() {
            return Ok(read_record(&mut entry)?.record);
        }
        if entry.header().entry_type().is_file() {
            break;
        }
    }
    Err(ReadError::Missing)
}

/// A record as it was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReadRecord {
    /// It.
    pub record: CheckpointRecord,
    /// Digest of its file: no other capture has the same.
    pub digest: String,
}

/// Reads a record from its file, no more than it may have.
pub fn read_record(file: impl Read) -> Result<ReadRecord, ReadError> {
    let mut json = Vec::new();
    file.take(MAX_BYTES + 1).read_to_end(&mut json)?;
    Ok(ReadRecord { record: CheckpointRecord::from_json(&json)?, digest: sha256(&json) })
}

impl CheckpointRecord {
    /// Checks the state's files against the record, content included, and the memory's by their size: reading those
    /// would take as long as a restore, and the runtime has checked the layers when it pulled them. `open` opens a file
    /// by its recorded name, and must not follow symbolic links.
    pub fn check_files(&self, open: impl Fn(&str) -> io::Result<File>) -> Result<(), FileError> {
        let archives = self.volumes.iter().map(|volume| &volume.archive);
        for file in self.files.iter().chain(archives) {
            let opened = check_size(&file.name, file.size, &open)?;
            let failed = |source| FileError::Read { name: file.name.clone(), source };
            if sha256_of(opened).map_err(failed)? != file.digest {
                return Err(FileError::Digest { name: file.name.clone() });
            }
        }
        self.memory.iter().try_for_each(|file| check_size(&file.name, file.size, &open).map(drop))
    }
}

fn check_size(
    name: &str,
    expected: u64,
    open: &impl Fn(&str) -> io::Result<File>,
) -> Result<File, FileError> {
    let failed = |source| FileError::Read { name: name.to_owned(), source };
    let opened = open(name).map_err(failed)?;
    let metadata = opened.metadata().map_err(failed)?;
    if !metadata.is_file() {
        return Err(failed(io::Error::other("it is not a regular file")));
    }
    if metadata.len() != expected {
        return Err(FileError::Size { name: name.to_owned(), expected, found: metadata.len() });
    }
    Ok(opened)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(labels: &[(&str, &str)]) -> Result<Option<CheckpointLabels>, LabelError> {
        let labels = labels.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        CheckpointLabels::of_labels(&labels)
    }

    #[test]
    fn an_ordinary_image_is_no_checkpoint() {
        assert_eq!(read(&[("maintainer", "me")]).unwrap(), None);
        assert_eq!(CheckpointLabels::of_config(br#"{"config": null}"#).unwrap(), None);
    }

    #[test]
    fn a_newer_format_is_refused_by_its_number() {
        let error = read(&[(labels::FORMAT, "2")]).unwrap_err();
        assert!(error.to_string().contains("format \"2\", this Woodfrog reads 1"), "{error}");
    }

    #[test]
    fn a_label_that_is_no_number_is_named() {
        let error = read(&[(labels::FORMAT, "1"), (labels::ROOTFS_LAYERS, "-1")]).unwrap_err();
        assert!(error.to_string().contains(labels::ROOTFS_LAYERS), "{error}");
    }
}
