//! Where finished images go. The adapter for registries is `adapters::registry`.

use std::sync::Arc;

use async_trait::async_trait;
use woodfrog_image::{BlobSource, BuiltImage, PushProgress, RegistryError};

/// A place for an image.
#[derive(Clone, Debug)]
pub struct Destination {
    /// `registry/repository:tag`.
    pub reference: String,
    /// Registries that speak plain HTTP, beside those on loopback.
    pub plain_http: Vec<String>,
    /// Contents of a docker `config.json`; empty: no credentials.
    pub docker_config: String,
}

/// Why an image was not published.
#[derive(Debug, thiserror::Error)]
pub enum PublishError {
    /// The destination makes no sense.
    #[error("{0}")]
    Destination(String),
    /// The registry.
    #[error(transparent)]
    Registry(#[from] RegistryError),
}

impl PublishError {
    /// One of a bounded set of words.
    pub fn category(&self) -> &'static str {
        match self {
            Self::Destination(_) => "image_reference",
            Self::Registry(e) => e.category(),
        }
    }
}

/// Takes finished images.
#[async_trait]
pub trait Publisher: Send + Sync {
    /// Refuses a destination that cannot work, before anything is frozen for it.
    ///
    /// # Errors
    /// What is wrong with it.
    fn check(&self, to: &Destination) -> Result<(), PublishError>;

    /// Publishes an image whose base image is called `base`; blobs come from the first of `sources` that has them.
    ///
    /// # Errors
    /// The registry's.
    async fn publish(
        &self,
        image: &BuiltImage,
        to: &Destination,
        base: &str,
        sources: Vec<Arc<dyn BlobSource>>,
        progress: &dyn PushProgress,
    ) -> Result<(), PublishError>;
}
