//! Where layers come from that a registry does not have yet.

use std::io;
use std::pin::Pin;

use async_trait::async_trait;
use oci_client::Reference;
use oci_client::manifest::OciDescriptor;
use tokio::io::AsyncRead;
use tokio_util::io::StreamReader;

use super::auth::{Access, Scope};
use super::{Registry, RegistryError};
use crate::store::BlobStore;

/// A blob's bytes from the beginning.
pub type BlobReader = Pin<Box<dyn AsyncRead + Send>>;

/// Something that has blobs: the node's blob store, the runtime's content store, another repository.
#[async_trait]
pub trait BlobSource: Send + Sync {
    /// Opens a blob, compressed as its digest names it; `None` if it is not there.
    async fn open(&self, digest: &str, size: u64) -> io::Result<Option<BlobReader>>;

    /// What this is, for errors: "the node's blob store".
    fn name(&self) -> String;
}

#[async_trait]
impl BlobSource for BlobStore {
    async fn open(&self, digest: &str, size: u64) -> io::Result<Option<BlobReader>> {
        let file = self.get(digest, size).map_err(io::Error::other)?;
        Ok(file.map(|file| Box::pin(tokio::fs::File::from_std(file)) as BlobReader))
    }

    fn name(&self) -> String {
        format!("the blob store {}", self.root().display())
    }
}

/// The repository that the base image was pulled from.
#[derive(Debug, Clone)]
pub struct RepositorySource {
    /// The client to read it with.
    pub registry: Registry,
    /// The image; only its registry and repository matter.
    pub image: Reference,
}

#[async_trait]
impl BlobSource for RepositorySource {
    async fn open(&self, digest: &str, _size: u64) -> io::Result<Option<BlobReader>> {
        self.registry.stream(&self.image, digest).await.map_err(io::Error::other)
    }

    fn name(&self) -> String {
        format!("{}/{}", self.image.resolve_registry(), self.image.repository())
    }
}

impl Registry {
    /// Opens a blob of a repository; its digest is checked while it is read.
    pub(super) async fn stream(
        &self,
        image: &Reference,
        digest: &str,
    ) -> Result<Option<BlobReader>, RegistryError> {
        let scope = Scope { image, access: Access::Read, also_read: None };
        self.authorize(&scope).await?;
        let descriptor = OciDescriptor { digest: digest.to_owned(), ..OciDescriptor::default() };
        let stream = self.client.pull_blob_stream(image, &descriptor);
        match self.request(image, "read a layer of", stream).await {
            Ok(stream) => Ok(Some(Box::pin(StreamReader::new(stream.stream)))),
            Err(RegistryError::NotFound { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }
}
