//! Checkpoint images that were read for a thaw, kept for as long as someone needs them.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use tokio::task::spawn_blocking;

use super::Engine;
use super::container::Container;
use super::prepared::Prepared;
use super::thaw::ThawError;

/// By digest and the directories of the layers: containers of one image share what was read of it.
pub(super) type Images = Mutex<HashMap<(String, Vec<PathBuf>), Weak<Prepared>>>;

/// The image of a container, read and checked as far as that needs no container that runs.
///
/// # Errors
/// It cannot be restored here.
pub(super) async fn read(engine: &Arc<Engine>, container: &Container) -> Result<Arc<Prepared>, ThawError> {
    let id = &container.info.id;
    let (layers, image) = tokio::try_join!(engine.runtime.layers(id), engine.runtime.image(id))?;
    container.image_digest.get_or_init(|| image.digest.clone());
    let key = (image.digest.clone(), layers.lower.clone());
    let known = || engine.images.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(prepared) = known().get(&key).and_then(Weak::upgrade) {
        return Ok(prepared);
    }
    let node = engine.clone();
    let prepared = spawn_blocking(move || Prepared::read(&layers, image.digest, &node.node)).await??;
    let prepared = Arc::new(prepared);
    let mut images = known();
    images.retain(|_, image| image.strong_count() > 0);
    images.insert(key, Arc::downgrade(&prepared));
    Ok(prepared)
}
