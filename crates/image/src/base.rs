//! The image that the frozen container ran: what of it the checkpoint image keeps.
//!
//! All of it, by digest, unless it is a checkpoint image itself (a thawed container that is frozen again): then its
//! root file system layers are kept, and its state, its memory and its labels are dropped.

use oci_spec::image::{Descriptor, ImageManifest, MediaType};
use serde_json::{Map, Value};

use crate::{digest, labels};

/// overlayfs takes its lower directories as one mount option of at most a page, which holds this many safely.
const MAX_ROOTFS_LAYERS: usize = 120;

/// Why an image cannot be the base of a checkpoint image.
#[derive(Debug, thiserror::Error)]
pub enum BaseError {
    /// The manifest is not an image's, or the config no config.
    #[error("the base image's {part} cannot be read")]
    Json {
        /// `manifest` or `config`.
        part: &'static str,
        /// Why.
        source: serde_json::Error,
    },
    /// The config is not the one that the manifest names.
    #[error("the base image's manifest names the config {expected}, but {found} was given")]
    WrongConfig {
        /// In the manifest.
        expected: String,
        /// Of the given bytes.
        found: String,
    },
    /// Manifest and config disagree.
    #[error("the base image has {layers} layers, but its config names {diff_ids}")]
    LayerCount {
        /// In the manifest.
        layers: usize,
        /// In the config.
        diff_ids: usize,
    },
    /// The label that says what is root file system is missing or absurd.
    #[error("the base image is a checkpoint image, but its label {} is {found:?}", labels::ROOTFS_LAYERS)]
    RootfsLayers {
        /// The label's value, empty if there is none.
        found: String,
    },
    /// Frozen again too often.
    #[error(
        "the image has {layers} root file system layers already, {MAX_ROOTFS_LAYERS} are possible: \
         start from a rebuilt base image"
    )]
    TooManyLayers {
        /// How many there are.
        layers: usize,
    },
}

/// The part of an image that a checkpoint image is built upon.
#[derive(Debug, Clone)]
pub struct BaseImage {
    /// The root file system's layers, lowest first.
    pub(crate) layers: Vec<Descriptor>,
    /// The config without what belonged to an earlier checkpoint.
    pub(crate) config: Map<String, Value>,
}

impl BaseImage {
    /// Takes the bytes of an image's manifest (one platform's, not an index) and of its config.
    pub fn new(manifest: &[u8], config: &[u8]) -> Result<Self, BaseError> {
        let json = |part| move |source| BaseError::Json { part, source };
        let manifest: ImageManifest = serde_json::from_slice(manifest).map_err(json("manifest"))?;
        let (expected, found) = (manifest.config().digest().to_string(), digest::sha256(config));
        if expected != found {
            return Err(BaseError::WrongConfig { expected, found });
        }
        let config: Map<String, Value> = serde_json::from_slice(config).map_err(json("config"))?;
        let layers = manifest.layers().iter().cloned().map(in_oci_terms).collect();
        let mut base = Self { layers, config };
        let diff_ids = base.diff_ids().len();
        if diff_ids != base.layers.len() {
            return Err(BaseError::LayerCount { layers: base.layers.len(), diff_ids });
        }
        base.drop_checkpoint()?;
        if base.layers.len() >= MAX_ROOTFS_LAYERS {
            return Err(BaseError::TooManyLayers { layers: base.layers.len() });
        }
        Ok(base)
    }

    /// The layers that a registry must have beside those that are built, lowest first.
    pub fn layers(&self) -> &[Descriptor] {
        &self.layers
    }

    pub(crate) fn diff_ids(&self) -> Vec<Value> {
        let ids = self.config.get("rootfs").and_then(|rootfs| rootfs.get("diff_ids"));
        ids.and_then(Value::as_array).cloned().unwrap_or_default()
    }

    /// The history, if it accounts for every layer; some tools write none, and a partial one misleads others.
    pub(crate) fn history(&self) -> Option<Vec<Value>> {
        let history = self.config.get("history")?.as_array()?;
        let layers = history.iter().filter(|entry| makes_layer(entry)).count();
        (layers == self.layers.len()).then(|| history.clone())
    }

    fn drop_checkpoint(&mut self) -> Result<(), BaseError> {
        let Some(labels) = self
            .config
            .get_mut("config")
            .and_then(|config| config.get_mut("Labels"))
            .and_then(Value::as_object_mut)
            .filter(|labels| labels.contains_key(labels::FORMAT))
        else {
            return Ok(());
        };
        let label = labels.get(labels::ROOTFS_LAYERS).and_then(Value::as_str).unwrap_or_default().to_owned();
        labels.retain(|key, _| !key.starts_with(labels::PREFIX));
        let keep = match label.parse::<usize>() {
            Ok(keep) if keep <= self.layers.len() => keep,
            _ => return Err(BaseError::RootfsLayers { found: label }),
        };
        let history = self.history().map(|history| first_layers(history, keep));
        self.layers.truncate(keep);
        let mut diff_ids = self.diff_ids();
        diff_ids.truncate(keep);
        self.config.insert("rootfs".into(), serde_json::json!({ "type": "layers", "diff_ids": diff_ids }));
        match history {
            Some(history) => self.config.insert("history".into(), history.into()),
            None => self.config.remove("history"),
        };
        Ok(())
    }
}

fn makes_layer(entry: &Value) -> bool {
    !entry.get("empty_layer").and_then(Value::as_bool).unwrap_or(false)
}

/// History up to its `keep`th layer, with the entries without a layer that follow it.
fn first_layers(history: Vec<Value>, keep: usize) -> Vec<Value> {
    let mut layers = 0;
    history
        .into_iter()
        .take_while(|entry| {
            layers += usize::from(makes_layer(entry));
            layers <= keep
        })
        .collect()
}

/// Docker's names for media types, in an OCI manifest, confuse some tools; the bytes are the same.
fn in_oci_terms(mut layer: Descriptor) -> Descriptor {
    let name = layer.media_type().to_string();
    if name == "application/vnd.docker.image.rootfs.diff.tar.gzip" {
        layer.set_media_type(MediaType::ImageLayerGzip);
    } else if name == "application/vnd.docker.image.rootfs.diff.tar" {
        layer.set_media_type(MediaType::ImageLayer);
    }
    layer
}
