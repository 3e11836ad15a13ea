//! Images of WarmPools: what is done for them before the first pod of one thaws on this node.
//!
//! ```text
//!   WarmPools ──watch──► images by digest ──each once──► engine: page store, page cache
//!                             └── not on this node yet: again after a while
//! ```

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use futures::{StreamExt, pin_mut};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, ResourceExt};
use tracing::{info, warn};
use woodfrog_api::{Memory, WarmPool};
use woodfrog_image::MemoryMode;

use super::Context;
use crate::engine::ahead::Ahead;

/// How often it is looked for images that are not on this node: kubelet tells nobody what it has pulled.
const LOOK: Duration = Duration::from_secs(20);

/// An image, and how pods of a pool have their memory of it; none: as the image says.
type Wanted = (String, Option<bool>);

/// Makes ready for the pods of pools until the process ends.
pub(super) async fn run(context: &Context) {
    let pools: Api<WarmPool> = Api::all(context.client.clone());
    let events = watcher(pools, watcher::Config::default()).default_backoff();
    pin_mut!(events);
    let mut look = tokio::time::interval(LOOK);
    look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut wanted: HashMap<String, Vec<Wanted>> = HashMap::new();
    let mut listed = HashMap::new();
    let (mut known, mut done): (BTreeSet<Wanted>, BTreeSet<Wanted>) = Default::default();
    let mut due = false;
    loop {
        tokio::select! {
            event = events.next() => match event {
                Some(Ok(watcher::Event::Init)) => listed.clear(),
                Some(Ok(watcher::Event::InitApply(pool))) => _ = listed.insert(uid(&pool), images(&pool)),
                Some(Ok(watcher::Event::InitDone)) => wanted = std::mem::take(&mut listed),
                Some(Ok(watcher::Event::Apply(pool))) => _ = wanted.insert(uid(&pool), images(&pool)),
                Some(Ok(watcher::Event::Delete(pool))) => _ = wanted.remove(&uid(&pool)),
                Some(Err(e)) => warn!("cannot watch WarmPools: {e}"),
                None => return,
            },
            _ = look.tick() => due = true,
        }
        let all: BTreeSet<Wanted> = wanted.values().flatten().cloned().collect();
        // Pools say often how they are, and seldom another image.
        if all == known && !due {
            continue;
        }
        (known, due) = (all.clone(), false);
        // A pool that is made anew has its images made ready anew.
        done.retain(|image| all.contains(image));
        let digests = all.iter().filter_map(|(image, _)| Some(image.split_once('@')?.1.to_owned()));
        let digests = Arc::new(digests.collect());
        for image in all.difference(&done.clone()) {
            if make_ready(context, image, &digests).await {
                done.insert(image.clone());
            }
        }
    }
}

/// Whether there is no more to be done for an image.
async fn make_ready(context: &Context, (image, shared): &Wanted, wanted: &Arc<BTreeSet<String>>) -> bool {
    let memory = shared.map(|shared| if shared { MemoryMode::Shared } else { MemoryMode::Copied });
    match context.engine.ahead(image, memory, wanted.clone()).await {
        Ok(Ahead::Absent) => return false,
        Ok(Ahead::Stored) => info!("the memory of {image} is in the page store, for pods of a pool"),
        Ok(Ahead::Read) => info!("the memory of {image} is read ahead, for pods of a pool"),
        Ok(Ahead::NoRoom) => info!("there is no room for the memory of {image} before a pod of it comes"),
        Err(e) => info!("nothing is done for {image} before a pod of it comes: {e}"),
    }
    true
}

fn uid(pool: &WarmPool) -> String {
    pool.uid().unwrap_or_default()
}

fn images(pool: &WarmPool) -> Vec<Wanted> {
    let shared = pool.spec.memory.map(|memory| memory == Memory::Shared);
    let images = pool.status.as_ref().and_then(|status| status.image.as_deref()).unwrap_or_default();
    let by_digest = images.split(',').map(str::trim).filter(|image| image.contains('@'));
    by_digest.map(|image| (image.to_owned(), shared)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pool_names_its_images_and_how_their_memory_comes() {
        let pool = |memory: Option<&str>, image: &str| -> WarmPool {
            let spec = serde_json::json!({ "checkpointRef": { "name": "web" }, "memory": memory });
            let json = serde_json::json!({ "metadata": {}, "spec": spec, "status": { "image": image } });
            serde_json::from_value(json).unwrap()
        };
        assert_eq!(images(&pool(None, "")), []);
        let two = images(&pool(Some("Shared"), "r/a@sha256:1, r/b@sha256:2"));
        assert_eq!(two, [("r/a@sha256:1".into(), Some(true)), ("r/b@sha256:2".into(), Some(true))]);
        assert_eq!(images(&pool(Some("Copied"), "r/a@sha256:1")), [("r/a@sha256:1".into(), Some(false))]);
    }
}
