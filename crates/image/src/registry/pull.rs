//! Reading an image: its manifest and its config, and single blobs, without pulling the rest.

use std::fs::File;
use std::io::{Seek, Write};

use futures::StreamExt;
use oci_client::Reference;
use oci_client::client::current_platform_resolver;
use oci_client::errors::DigestError;
use oci_client::manifest::{ImageIndexEntry, OciDescriptor};
use oci_client::secrets::RegistryAuth;
use oci_spec::image::{Descriptor, ImageManifest};
use serde::Deserialize;

use super::Registry;
use super::auth::{Access, Scope};
use super::error::{Cause, RegistryError};
use crate::checkpoint::{CheckpointLabels, LabelError, ReadError, record_in_layer};
use crate::labels;
use crate::record::CheckpointRecord;
use crate::store::{BlobStore, StoreError};

/// The largest config that is read; the largest known ones have some hundred KiB.
const MAX_CONFIG: u64 = 8 << 20;

/// What is accepted as an image. Docker's names mean the same formats.
const ACCEPTED: [&str; 4] = [
    labels::MANIFEST_MEDIA_TYPE,
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
];

/// An image's manifest and config, as bytes for who passes them on, and read.
#[derive(Debug, Clone)]
pub struct PulledImage {
    /// The manifest's digest.
    pub digest: String,
    /// The manifest's bytes.
    pub manifest_json: Vec<u8>,
    /// The manifest.
    pub manifest: ImageManifest,
    /// The config's bytes.
    pub config_json: Vec<u8>,
}

/// Either kind of manifest: an index has no layers, an image no manifests.
#[derive(Deserialize)]
struct Index {
    manifests: Option<Vec<ImageIndexEntry>>,
}

impl PulledImage {
    /// What the config's labels say of a checkpoint; `None` for an ordinary image.
    pub fn checkpoint(&self) -> Result<Option<CheckpointLabels>, LabelError> {
        CheckpointLabels::of_config(&self.config_json)
    }

    /// Bytes of all layers, compressed.
    pub fn compressed_bytes(&self) -> u64 {
        self.manifest.layers().iter().map(Descriptor::size).sum()
    }
}

impl Registry {
    /// Reads the manifest and the config of an image. Of an index, the image for this platform is taken.
    pub async fn pull(&self, image: &Reference) -> Result<PulledImage, RegistryError> {
        let scope = Scope { image, access: Access::Read, also_read: None };
        self.retry(&scope, || self.authorize(&scope)).await?;
        let (mut bytes, mut digest) = self.retry(&scope, || self.manifest(image)).await?;
        let unusable = |why: String| RegistryError::Image { image: image.to_string(), why };
        let index: Index = serde_json::from_slice(&bytes).map_err(|e| unusable(e.to_string()))?;
        if let Some(manifests) = index.manifests {
            let found = current_platform_resolver(&manifests)
                .ok_or_else(|| unusable(format!("it has no variant for {}", std::env::consts::ARCH)))?;
            let one = image.clone_with_digest(found);
            (bytes, digest) = self.retry(&scope, || self.manifest(&one)).await?;
        }
        let manifest: ImageManifest = serde_json::from_slice(&bytes).map_err(|e| unusable(e.to_string()))?;
        if manifest.config().size() > MAX_CONFIG {
            return Err(unusable(format!("its config has more than {MAX_CONFIG} bytes")));
        }
        let config_json = self.retry(&scope, || self.config(image, manifest.config())).await?;
        Ok(PulledImage { digest, manifest_json: bytes, manifest, config_json })
    }

    /// Copies a blob of an image into the node's store, unless it is there, and opens it. Its digest is checked.
    pub async fn fetch(
        &self,
        image: &Reference,
        blob: &Descriptor,
        store: &BlobStore,
    ) -> Result<File, RegistryError> {
        let scope = Scope { image, access: Access::Read, also_read: None };
        self.retry(&scope, || self.authorize(&scope)).await?;
        self.retry(&scope, || self.copy(image, blob, store)).await
    }

    /// Reads `woodfrog.json` of a checkpoint image, by way of the node's store; `None` for an ordinary image.
    pub async fn record(
        &self,
        image: &Reference,
        pulled: &PulledImage,
        store: &BlobStore,
    ) -> Result<Option<CheckpointRecord>, RegistryError> {
        let unusable = |why: String| RegistryError::Image { image: image.to_string(), why };
        let Some(labels) = pulled.checkpoint().map_err(|e| unusable(e.to_string()))? else {
            return Ok(None);
        };
        let state = labels.state_layer(&pulled.manifest).map_err(|e| unusable(e.to_string()))?;
        let blob = self.fetch(image, state, store).await?;
        let record = tokio::task::spawn_blocking(move || record_in_layer(blob)).await;
        let record = record.expect("reading a record does not panic");
        record.map(Some).map_err(|e: ReadError| unusable(e.to_string()))
    }

    async fn manifest(&self, image: &Reference) -> Result<(Vec<u8>, String), RegistryError> {
        let pull = self.client.pull_manifest_raw(image, &RegistryAuth::Anonymous, &ACCEPTED);
        let (bytes, digest) = self.request(image, "read the manifest of", pull).await?;
        Ok((bytes.to_vec(), digest))
    }

    async fn config(&self, image: &Reference, config: &Descriptor) -> Result<Vec<u8>, RegistryError> {
        let descriptor = OciDescriptor { digest: config.digest().to_string(), ..OciDescriptor::default() };
        let mut bytes = Vec::new();
        let pull = self.client.pull_blob(image, &descriptor, &mut bytes);
        self.request(image, "read the config of", pull).await?;
        Ok(bytes)
    }

    async fn copy(
        &self,
        image: &Reference,
        blob: &Descriptor,
        store: &BlobStore,
    ) -> Result<File, RegistryError> {
        let (digest, size) = (blob.digest().to_string(), blob.size());
        if let Some(file) = store.get(&digest, size)? {
            return Ok(file);
        }
        let cause = |cause| RegistryError::of(image, "read a layer of", cause, &self.options.credentials);
        let Some(reader) = self.stream(image, &digest).await? else {
            return Err(cause(Cause::Status(404, String::new())));
        };
        let mut chunks = tokio_util::io::ReaderStream::with_capacity(reader, 256 << 10);
        let mut file = store.temporary()?;
        let mut copied = 0;
        let limit = self.options.timeouts.stall;
        loop {
            let chunk = match tokio::time::timeout(limit, chunks.next()).await {
                Err(_) => return Err(RegistryError::slow(image, "read a layer of", limit)),
                Ok(None) => break,
                Ok(Some(Ok(chunk))) => chunk,
                Ok(Some(Err(e))) => match e.get_ref().and_then(|e| e.downcast_ref()) {
                    Some(DigestError::VerificationError { expected, actual }) => {
                        let (expected, found) = (expected.clone(), actual.clone());
                        return Err(StoreError::WrongDigest { expected, found }.into());
                    }
                    _ => return Err(cause(Cause::Io(e))),
                },
            };
            copied += chunk.len() as u64;
            if copied > size {
                return Err(RegistryError::Length { digest, expected: size, found: copied });
            }
            file.write_all(&chunk).map_err(|e| StoreError::io("write to", store.root(), e))?;
        }
        if copied < size {
            return Err(RegistryError::Length { digest, expected: size, found: copied });
        }
        let rewound = |e| StoreError::io("read from", store.root(), e);
        let mut opened = file.reopen().map_err(rewound)?;
        opened.rewind().map_err(rewound)?;
        store.keep(file, &digest)?;
        Ok(opened)
    }
}
