//! What nodes do, played by tasks that cost little: scheduler and kubelet, and the agents.
//!
//! ```text
//!   pod without a node       ──► bound, then running and ready
//!   pod that is being deleted ──► gone
//!   Checkpoint with an instruction ──► WarmingUp ─► Freezing ─► Pushing ─► Done, each after a moment
//! ```

use std::collections::{HashMap, HashSet};
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::{Stream, StreamExt as _};
use k8s_openapi::api::core::v1::{Binding, ObjectReference, Pod};
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams};
use kube::runtime::{WatchStreamExt as _, watcher};
use kube::{Client, Resource as _, ResourceExt as _};
use serde_json::{Value, json};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use woodfrog_api::{Checkpoint, Instruction, Phase, WarmPool, names};

use super::objects;

/// How long a phase of a freeze takes.
const MOMENT: Duration = Duration::from_millis(300);
/// How many pods are written at the same time.
const WRITERS: usize = 8;

/// The stand-ins; they stop when this is dropped.
pub(super) struct StandIns {
    /// What they have seen.
    pub(super) seen: Arc<Seen>,
    _tasks: JoinSet<()>,
}

/// What has been seen of all objects.
#[derive(Default)]
pub(super) struct Seen {
    checkpoints: Mutex<HashMap<String, bool>>,
    pools: Mutex<HashMap<String, Pool>>,
}

#[derive(Clone, Copy)]
struct Pool {
    wanted: u32,
    ready: u32,
    settled: bool,
}

/// How far all objects are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Counts {
    /// Checkpoints that are Ready.
    pub(super) checkpoints: u32,
    /// Pools that are full, with nothing left to be done.
    pub(super) pools: u32,
    /// Ready pods of pools.
    pub(super) pods: u32,
}

impl Seen {
    /// How far all objects are now.
    pub(super) fn counts(&self) -> Counts {
        let checkpoints = self.checkpoints.lock().unwrap_or_else(PoisonError::into_inner);
        let pools = self.pools.lock().unwrap_or_else(PoisonError::into_inner);
        Counts {
            checkpoints: checkpoints.values().filter(|ready| **ready).count() as u32,
            pools: pools.values().filter(|pool| pool.settled && pool.ready == pool.wanted).count() as u32,
            pods: pools.values().map(|pool| pool.ready).sum(),
        }
    }

    fn checkpoint(&self, checkpoint: &Checkpoint) {
        let ready = checkpoint.status.as_ref().is_some_and(|status| status.phase == Some(Phase::Ready));
        let mut all = self.checkpoints.lock().unwrap_or_else(PoisonError::into_inner);
        all.insert(checkpoint.uid().unwrap_or_default(), ready);
    }

    fn pool(&self, pool: &WarmPool) {
        let status = pool.status.clone().unwrap_or_default();
        let progressing = |c: &k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition| {
            c.type_ == "Progressing" && c.status == "True"
        };
        let known = Pool {
            wanted: pool.spec.replicas.unsigned_abs(),
            ready: status.ready_replicas.unsigned_abs(),
            settled: status.observed_generation == pool.metadata.generation
                && !status.conditions.iter().any(progressing),
        };
        let mut all = self.pools.lock().unwrap_or_else(PoisonError::into_inner);
        all.insert(pool.uid().unwrap_or_default(), known);
    }

    fn checkpoint_gone(&self, checkpoint: &Checkpoint) {
        let mut all = self.checkpoints.lock().unwrap_or_else(PoisonError::into_inner);
        all.remove(&checkpoint.uid().unwrap_or_default());
    }
}

impl StandIns {
    /// Starts them. `has_bindings`: whether the server has `pods/binding`.
    pub(super) fn start(client: &Client, has_bindings: bool) -> Self {
        let seen = Arc::new(Seen::default());
        let mut tasks = JoinSet::new();
        tasks.spawn(kubelets(client.clone(), has_bindings));
        tasks.spawn(agents(client.clone(), seen.clone()));
        tasks.spawn(look_at_pools(client.clone(), seen.clone()));
        Self { seen, _tasks: tasks }
    }
}

fn watch<K>(client: &Client) -> impl Stream<Item = watcher::Result<watcher::Event<K>>> + Send + use<K>
where
    K: kube::Resource<DynamicType = ()>
        + Clone
        + std::fmt::Debug
        + serde::de::DeserializeOwned
        + Send
        + 'static,
{
    watcher(Api::<K>::all(client.clone()), watcher::Config::default()).default_backoff()
}

async fn look_at_pools(client: Client, seen: Arc<Seen>) {
    let mut pools = pin!(watch::<WarmPool>(&client).applied_objects());
    while let Some(event) = pools.next().await {
        match event {
            Ok(pool) => seen.pool(&pool),
            Err(e) => eprintln!("cannot watch WarmPools: {e}"),
        }
    }
}

/// Scheduler and kubelets.
async fn kubelets(client: Client, has_bindings: bool) {
    let mut pods = pin!(watch::<Pod>(&client).applied_objects());
    let (mut begun, mut work) = (HashSet::new(), JoinSet::new());
    let writers = Arc::new(Semaphore::new(WRITERS));
    while let Some(event) = pods.next().await {
        let pod = match event {
            Ok(pod) => pod,
            Err(e) => {
                eprintln!("cannot watch pods: {e}");
                continue;
            }
        };
        let number = begun.len() as u32;
        if begun.insert((pod.uid(), pod.metadata.deletion_timestamp.is_some())) {
            work.spawn(live(client.clone(), pod, number, has_bindings, writers.clone()));
        }
        while work.try_join_next().is_some() {}
    }
}

/// Starts a pod, or ends it, as soon as there is a writer for it.
async fn live(client: Client, pod: Pod, number: u32, has_bindings: bool, writers: Arc<Semaphore>) {
    let _writer = writers.acquire().await;
    while let Err(e) = write(&client, &pod, number, has_bindings).await {
        eprintln!("pod {}: {e}", pod.name_any());
        tokio::time::sleep(MOMENT).await;
    }
}

async fn write(client: &Client, pod: &Pod, number: u32, has_bindings: bool) -> kube::Result<()> {
    let pods = Api::<Pod>::namespaced(client.clone(), &pod.namespace().unwrap_or_default());
    let name = pod.name_any();
    let result = if pod.metadata.deletion_timestamp.is_some() {
        pods.delete(&name, &DeleteParams::default().grace_period(0)).await.map(drop)
    } else {
        start(&pods, pod, number, has_bindings).await
    };
    match result {
        // Deleted before it ran.
        Err(kube::Error::Api(status)) if status.code == 404 || status.code == 409 => Ok(()),
        result => result,
    }
}

async fn start(pods: &Api<Pod>, pod: &Pod, number: u32, has_bindings: bool) -> kube::Result<()> {
    let (name, node) = (pod.name_any(), objects::node(number));
    let spec = pod.spec.clone().unwrap_or_default();
    if spec.node_name.is_none() && has_bindings {
        let metadata = kube::api::ObjectMeta { name: Some(name.clone()), ..Default::default() };
        let target =
            ObjectReference { kind: Some("Node".to_owned()), name: Some(node), ..Default::default() };
        let binding = Binding { metadata, target };
        let _: Value = pods.create_subresource("binding", &name, &PostParams::default(), &binding).await?;
    } else if spec.node_name.is_none() {
        let patch = json!({ "spec": { "nodeName": node } });
        pods.patch(&name, &PatchParams::default(), &Patch::Merge(patch)).await?;
    }
    let now = Timestamp::now().to_string();
    let container = spec.containers.first().cloned().unwrap_or_default();
    let address = format!("10.{}.{}.{}", 1 + (number >> 16), (number >> 8) & 255, number & 255);
    let status = objects::running(&container.name, &container.image.unwrap_or_default(), &address, &now);
    pods.patch_status(&name, &PatchParams::default(), &Patch::Merge(json!({ "status": status })))
        .await
        .map(drop)
}

/// The agents of all nodes. A real one watches its own node's Checkpoints alone; one watch for all is cheaper.
async fn agents(client: Client, seen: Arc<Seen>) {
    let mut checkpoints = pin!(watch::<Checkpoint>(&client));
    let (mut begun, mut work) = (HashSet::new(), JoinSet::new());
    while let Some(event) = checkpoints.next().await {
        let checkpoint = match event {
            Ok(watcher::Event::Apply(checkpoint) | watcher::Event::InitApply(checkpoint)) => checkpoint,
            Ok(watcher::Event::Delete(checkpoint)) => {
                seen.checkpoint_gone(&checkpoint);
                continue;
            }
            Ok(_) => continue,
            Err(e) => {
                eprintln!("cannot watch Checkpoints: {e}");
                continue;
            }
        };
        seen.checkpoint(&checkpoint);
        let instruction = checkpoint.status.as_ref().and_then(|status| status.instruction.clone());
        let Some(instruction) = instruction else { continue };
        if checkpoint.labels().contains_key(names::NODE_LABEL) && begun.insert(instruction.pod_uid.clone()) {
            work.spawn(carry_out(client.clone(), checkpoint, instruction));
        }
        while work.try_join_next().is_some() {}
    }
}

async fn carry_out(client: Client, checkpoint: Checkpoint, instruction: Instruction) {
    for phase in ["WarmingUp", "Freezing", "Pushing", "Done"] {
        while let Err(e) = report(&client, &checkpoint, &instruction, phase).await {
            eprintln!("Checkpoint {}: {e}", checkpoint.name_any());
            tokio::time::sleep(MOMENT).await;
        }
        tokio::time::sleep(MOMENT).await;
    }
}

/// As the agent reports: by server-side apply of its own field.
async fn report(
    client: &Client,
    checkpoint: &Checkpoint,
    instruction: &Instruction,
    phase: &str,
) -> kube::Result<()> {
    let mut agent = json!({
        "node": instruction.node,
        "attempt": instruction.attempt,
        "podUid": instruction.pod_uid,
        "heartbeat": Timestamp::now().to_string(),
        "phase": phase,
    });
    if phase == "Pushing" {
        (agent["bytesDone"], agent["bytesTotal"], agent["bytesPerSecond"]) =
            (json!(20 << 20), json!(61 << 20), json!(81 << 20));
    }
    if phase == "Done" {
        let digest = format!("sha256:{:0>64}", instruction.pod_uid.replace('-', ""));
        let containers =
            instruction.containers.iter().map(|target| objects::frozen(&target.name, &target.image, &digest));
        agent["containers"] = containers.collect();
    }
    let patch = json!({
        "apiVersion": Checkpoint::api_version(&()),
        "kind": Checkpoint::kind(&()),
        "metadata": { "name": checkpoint.name_any(), "uid": checkpoint.uid() },
        "status": { "agent": agent },
    });
    let checkpoints =
        Api::<Checkpoint>::namespaced(client.clone(), &checkpoint.namespace().unwrap_or_default());
    match checkpoints
        .patch_status(&checkpoint.name_any(), &PatchParams::apply(names::AGENT).force(), &Patch::Apply(patch))
        .await
    {
        // It was deleted, and perhaps made anew.
        Err(kube::Error::Api(status)) if status.code == 404 || status.code == 409 => Ok(()),
        result => result.map(drop),
    }
}
