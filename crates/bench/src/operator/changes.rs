//! Single changes, timed from the request to the event that shows their effect.

use std::collections::HashSet;
use std::pin::pin;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use futures::StreamExt as _;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, DeleteParams, Patch, PatchParams};
use kube::runtime::watcher::{self, Event};
use kube::{Client, ResourceExt as _};
use serde_json::json;
use woodfrog_api::{Checkpoint, WarmPool, names};

use super::objects;
use crate::clock::median;

/// Namespace of the objects that are changed.
pub(super) const NAMESPACE: &str = "probe";
/// Name of the WarmPool that is changed, and of its Checkpoint.
pub(super) const NAME: &str = "probe";
/// How long an effect may take.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long the cluster rests between two changes.
const REST: Duration = Duration::from_millis(200);

/// Medians, in milliseconds.
#[derive(Clone, Copy, Debug)]
pub(super) struct Latency {
    /// A WarmPool is scaled up by one → its new pod is there.
    pub(super) pool: f64,
    /// A Checkpoint is created → its warm-up pod is there.
    pub(super) checkpoint: f64,
}

/// Times `count` changes of each kind. Afterwards all is as before.
///
/// # Errors
/// An effect does not come.
pub(super) async fn measure(client: &Client, count: u32) -> Result<Latency> {
    let pool = pools(client, count).await.context("scaling a WarmPool")?;
    let checkpoint = checkpoints(client, count).await.context("creating a Checkpoint")?;
    Ok(Latency { pool, checkpoint })
}

async fn pools(client: &Client, count: u32) -> Result<f64> {
    let pools = Api::<WarmPool>::namespaced(client.clone(), NAMESPACE);
    let replicas = pools.get(NAME).await?.spec.replicas;
    let mut pods = NewPods::watch(client, &format!("{}={NAME}", names::POOL_LABEL)).await?;
    let mut times = Vec::new();
    for _ in 0..count {
        let began = Instant::now();
        scale(&pools, replicas + 1).await?;
        pods.next().await?;
        times.push(began.elapsed().as_secs_f64() * 1e3);
        settled(&pools, replicas + 1).await?;
        scale(&pools, replicas).await?;
        settled(&pools, replicas).await?;
        tokio::time::sleep(REST).await;
    }
    median(&times).context("nothing was measured")
}

async fn scale(pools: &Api<WarmPool>, replicas: i32) -> Result<()> {
    let patch = Patch::Merge(json!({ "spec": { "replicas": replicas } }));
    pools.patch(NAME, &PatchParams::default(), &patch).await?;
    Ok(())
}

/// Waits until the pool has so many ready pods, and no others.
pub(super) async fn settled(pools: &Api<WarmPool>, replicas: i32) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let status = pools.get(NAME).await?.status.unwrap_or_default();
        if (status.replicas, status.ready_replicas) == (replicas, replicas) {
            return Ok(());
        }
        if Instant::now() > deadline {
            bail!("the pool has {} of {replicas} pods after {PATIENCE:?}", status.ready_replicas);
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn checkpoints(client: &Client, count: u32) -> Result<f64> {
    let checkpoints = Api::<Checkpoint>::namespaced(client.clone(), NAMESPACE);
    let mut pods = NewPods::watch(client, names::CHECKPOINT_LABEL).await?;
    let mut times = Vec::new();
    for number in 0..count {
        let name = format!("{NAME}-{number}");
        let object = objects::checkpoint(NAMESPACE, &name);
        let began = Instant::now();
        checkpoints.patch(&name, &PatchParams::apply("kubectl"), &Patch::Apply(object)).await?;
        pods.next().await?;
        times.push(began.elapsed().as_secs_f64() * 1e3);
        checkpoints.delete(&name, &DeleteParams::default()).await?;
        let deadline = Instant::now() + PATIENCE;
        while checkpoints.get_opt(&name).await?.is_some() {
            if Instant::now() > deadline {
                bail!("Checkpoint {name} is still there after {PATIENCE:?}");
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        tokio::time::sleep(REST).await;
    }
    median(&times).context("nothing was measured")
}

/// Tells of pods that have not been there before.
struct NewPods {
    events: futures::stream::BoxStream<'static, watcher::Result<Event<Pod>>>,
    known: HashSet<String>,
}

impl NewPods {
    /// Begins to watch, and returns when it knows those that are there.
    async fn watch(client: &Client, selector: &str) -> Result<Self> {
        let pods = Api::<Pod>::namespaced(client.clone(), NAMESPACE);
        let events = kube::runtime::watcher(pods, watcher::Config::default().labels(selector)).boxed();
        let mut new = Self { events, known: HashSet::new() };
        loop {
            match new.events.next().await.context("the watch has ended")?? {
                Event::InitApply(pod) => _ = new.known.insert(pod.uid().unwrap_or_default()),
                Event::InitDone => return Ok(new),
                _ => {}
            }
        }
    }

    /// Waits for a new one.
    async fn next(&mut self) -> Result<Pod> {
        let mut patience = pin!(tokio::time::sleep(PATIENCE));
        loop {
            let event = tokio::select! {
                event = self.events.next() => event.context("the watch has ended")??,
                () = &mut patience => bail!("there is no new pod after {PATIENCE:?}"),
            };
            if let Event::Apply(pod) = event
                && self.known.insert(pod.uid().unwrap_or_default())
            {
                return Ok(pod);
            }
        }
    }
}
