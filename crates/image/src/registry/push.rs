//! Pushing: each layer once, and only if the registry does not have it, then the config, then the manifest.
//!
//! ```text
//!   layer: there already? ──yes──► done
//!            │ no
//!          in the base's repository of this registry? ──mounted──► done
//!            │ no
//!          streamed from the first source that has it, without being held in memory
//! ```

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures::{Stream, StreamExt, TryStreamExt};
use oci_client::Reference;
use oci_client::errors::OciDistributionError;
use oci_spec::image::Descriptor;
use tokio::time::Instant;
use tokio_util::io::ReaderStream;

use super::auth::{Access, Scope};
use super::error::{Cause, place};
use super::source::{BlobReader, BlobSource};
use super::{Registry, RegistryError};
use crate::build::BuiltImage;
use crate::labels;

/// Bytes that are read at once.
const CHUNK: usize = 256 << 10;
/// How often progress is looked at.
const TICK: Duration = Duration::from_millis(100);

/// How a blob came into the repository.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BlobOutcome {
    /// It was there.
    Present,
    /// The registry took it from another repository.
    Mounted,
    /// It was sent.
    Uploaded,
}

/// Told how a push goes on, from several tasks at once.
pub trait PushProgress: Send + Sync {
    /// Of a layer's `total` bytes `done` have been sent. Begins again at zero when an attempt failed.
    fn sent(&self, digest: &str, done: u64, total: u64);
    /// A blob is in the repository.
    fn finished(&self, digest: &str, total: u64, outcome: BlobOutcome);
}

/// For who does not want to know.
#[derive(Debug, Clone, Copy)]
pub struct NoProgress;

impl PushProgress for NoProgress {
    fn sent(&self, _digest: &str, _done: u64, _total: u64) {}
    fn finished(&self, _digest: &str, _total: u64, _outcome: BlobOutcome) {}
}

/// What a push did.
#[derive(Debug, Clone)]
pub struct Pushed {
    /// The manifest's digest, under which the image can be pulled for good.
    pub digest: String,
    /// Every layer and the config, with what was done about it.
    pub blobs: Vec<(String, BlobOutcome)>,
    /// Bytes that were sent.
    pub sent: u64,
}

impl Registry {
    /// Pushes a built image under the name `to`. `base` is where the base image came from: layers are mounted from
    /// there if it is the same registry. Layers that must be sent are taken from the first of `sources` that has them.
    pub async fn push(
        &self,
        image: &BuiltImage,
        to: &Reference,
        base: Option<&Reference>,
        sources: &[Arc<dyn BlobSource>],
        progress: &dyn PushProgress,
    ) -> Result<Pushed, RegistryError> {
        let base = base.filter(|base| {
            base.resolve_registry() == to.resolve_registry() && base.repository() != to.repository()
        });
        let scope = Scope { image: to, access: Access::Write, also_read: base };
        self.retry(&scope, || self.authorize(&scope)).await?;
        let push = Push { registry: self, scope, sources, progress };
        let unique: Vec<&Descriptor> = {
            let mut seen = std::collections::BTreeSet::new();
            image.layers.iter().filter(|layer| seen.insert(layer.digest().to_string())).collect()
        };
        // Made one by one: rustc cannot tell that a closure in the stream would be general over lifetimes.
        let mut pushes = Vec::new();
        for layer in unique {
            pushes.push(push.blob(layer));
        }
        let mut blobs: Vec<(String, BlobOutcome, u64)> =
            futures::stream::iter(pushes).buffered(self.options.uploads.max(1)).try_collect().await?;
        blobs.push(push.blob(&image.config).await?);
        self.retry(&scope, || push.manifest(&image.manifest)).await?;
        let sent = blobs.iter().filter(|blob| blob.1 == BlobOutcome::Uploaded).map(|blob| blob.2).sum();
        let blobs = blobs.into_iter().map(|(digest, outcome, _)| (digest, outcome)).collect();
        Ok(Pushed { digest: image.digest.clone(), blobs, sent })
    }
}

struct Push<'a> {
    registry: &'a Registry,
    scope: Scope<'a>,
    sources: &'a [Arc<dyn BlobSource>],
    progress: &'a dyn PushProgress,
}

impl Push<'_> {
    async fn blob(&self, blob: &Descriptor) -> Result<(String, BlobOutcome, u64), RegistryError> {
        let digest = blob.digest().to_string();
        let outcome = self.registry.retry(&self.scope, || self.attempt(&digest, blob.size())).await?;
        self.progress.finished(&digest, blob.size(), outcome);
        Ok((digest, outcome, blob.size()))
    }

    async fn attempt(&self, digest: &str, size: u64) -> Result<BlobOutcome, RegistryError> {
        let (registry, to) = (self.registry, self.scope.image);
        let exists = registry.client.blob_exists(to, digest);
        if registry.request(to, "look for a layer in", exists).await? {
            return Ok(BlobOutcome::Present);
        }
        if let Some(base) = self.scope.also_read {
            let mount = registry.client.mount_blob(to, base, digest);
            match registry.request(to, "mount a layer in", mount).await {
                Ok(()) => return Ok(BlobOutcome::Mounted),
                Err(error) if error.may_pass() => return Err(error),
                // It does not have it, or may not say: the layer is sent.
                Err(error) => tracing::debug!(%error, digest, "not mounted"),
            }
        }
        let (reader, from) = self.open(digest, size).await?;
        self.upload(digest, size, reader, from).await?;
        Ok(BlobOutcome::Uploaded)
    }

    async fn open(&self, digest: &str, size: u64) -> Result<(BlobReader, String), RegistryError> {
        for source in self.sources {
            let from = source.name();
            match source.open(digest, size).await {
                Ok(Some(reader)) => return Ok((reader, from)),
                Ok(None) => {}
                Err(source) => return Err(RegistryError::Source { digest: digest.to_owned(), from, source }),
            }
        }
        let (registry, repository) = place(self.scope.image);
        Err(RegistryError::MissingLayer { registry, repository, digest: digest.to_owned() })
    }

    async fn upload(
        &self,
        digest: &str,
        size: u64,
        reader: BlobReader,
        from: String,
    ) -> Result<(), RegistryError> {
        let (registry, to) = (self.registry, self.scope.image);
        let sent = Arc::new(AtomicU64::new(0));
        let failure = Arc::new(Mutex::new(None));
        let body = body(reader, digest, size, from, Arc::clone(&sent), Arc::clone(&failure));
        let upload = registry.client.push_blob_stream(to, body, digest, Some(size));
        let mut upload = std::pin::pin!(upload);
        let mut ticks = tokio::time::interval(TICK);
        let (mut last, mut moved) = (0, Instant::now());
        let result = loop {
            tokio::select! {
                result = &mut upload => break result,
                _ = ticks.tick() => {}
            }
            let now = sent.load(Ordering::Relaxed);
            if now != last {
                (last, moved) = (now, Instant::now());
                self.progress.sent(digest, now, size);
            }
            let mut limit = registry.options.timeouts.stall;
            if now == size {
                limit += Duration::from_secs(size / (16 << 20));
            }
            if moved.elapsed() > limit {
                return Err(RegistryError::slow(to, "take a layer into", limit));
            }
        };
        // What went wrong at our end reaches the client as a broken request only.
        if let Some(error) = failure.lock().unwrap_or_else(|e| e.into_inner()).take() {
            return Err(error);
        }
        let credentials = &registry.options.credentials;
        result.map_err(|e| RegistryError::of(to, "take a layer into", e.into(), credentials))?;
        self.progress.sent(digest, size, size);
        Ok(())
    }

    async fn manifest(&self, manifest: &[u8]) -> Result<(), RegistryError> {
        let (registry, to) = (self.registry, self.scope.image);
        let content_type = labels::MANIFEST_MEDIA_TYPE.parse().expect("a media type is a header value");
        let push = registry.client.push_manifest_raw(to, manifest.to_vec(), content_type);
        registry.request(to, "take the manifest into", push).await?;
        Ok(())
    }
}

/// The blob as the body of a request: counted, and ended by an error unless it has exactly `size` bytes.
fn body(
    reader: BlobReader,
    digest: &str,
    size: u64,
    from: String,
    sent: Arc<AtomicU64>,
    failure: Arc<Mutex<Option<RegistryError>>>,
) -> impl Stream<Item = Result<Bytes, OciDistributionError>> + Send + 'static {
    let digest = digest.to_owned();
    let fail = move |error: RegistryError| {
        *failure.lock().unwrap_or_else(|e| e.into_inner()) = Some(error);
        OciDistributionError::IoError(io::Error::other("the layer cannot be read"))
    };
    let chunks = ReaderStream::with_capacity(reader, CHUNK);
    futures::stream::unfold((chunks, 0, Some(fail)), move |(mut chunks, read, mut fail)| {
        let (digest, from, sent) = (digest.clone(), from.clone(), Arc::clone(&sent));
        async move {
            fail.as_ref()?;
            let found = match chunks.next().await {
                Some(Ok(chunk)) if read + chunk.len() as u64 <= size => {
                    let read = read + chunk.len() as u64;
                    sent.store(read, Ordering::Relaxed);
                    return Some((Ok(chunk), (chunks, read, fail)));
                }
                None if read == size => return None,
                Some(Err(source)) => {
                    let error = fail.take()?(RegistryError::Source { digest, from, source });
                    return Some((Err(error), (chunks, read, fail)));
                }
                Some(Ok(_)) => size + 1,
                None => read,
            };
            let error = fail.take()?(RegistryError::Length { digest, expected: size, found });
            Some((Err(error), (chunks, read, fail)))
        }
    })
}

impl From<io::Error> for Cause {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}
