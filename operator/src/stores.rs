//! What the operator has seen of the cluster, and who has to hear of a change.
//!
//! ```text
//!   Checkpoint ─────────────┬─► its own reconciler, and the pools made from it
//!   Deployment, StatefulSet ┴─► the Checkpoints whose source it is
//!   Pod (of ours)           ──► its Checkpoint or its pool
//!   WarmPool                ──► its own reconciler
//!   Lease of an agent       ──► if it is silent or back, all that has pods or work on its node
//! ```
//!
//! A store is up to date before anybody hears of the change, and reconcilers read from stores alone: so at rest, and
//! wherever nothing is to be changed, there are no requests but the watches themselves.

use std::collections::BTreeSet;
use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

use futures::{StreamExt, future::try_join_all, pin_mut};
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::apps::v1::{Deployment, StatefulSet};
use k8s_openapi::api::core::v1::{Container, ContainerStatus, Pod, PodSpec, PodStatus, ResourceRequirements};
use kube::core::DeserializeGuard;
use kube::runtime::reflector::store::WriterDropped;
use kube::runtime::reflector::{self, ObjectRef, Store};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client, Resource, ResourceExt};
use serde::de::DeserializeOwned;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::watch::Sender;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tracing::warn;
use woodfrog_api::{Checkpoint, WarmPool, WorkloadKind, names};

use crate::agents::Agents;
use crate::index::{Index, Key};
use crate::mismatch::Teller;
use crate::pool;

/// What `kubectl apply` without `--server-side` leaves: the object once more.
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";

/// How long the stores may take to show what was done.
const PATIENCE: Duration = Duration::from_secs(10);

/// How many objects come with one answer, when all are listed: what is read is larger than what is kept.
const PAGE: u32 = 100;

/// Everything that has been seen.
#[derive(Clone)]
pub struct Stores {
    /// All Checkpoints.
    pub checkpoints: Store<Checkpoint>,
    /// All WarmPools.
    pub pools: Store<WarmPool>,
    /// All pods that Woodfrog has made; of each what [`slim`] leaves.
    pub pods: Store<Pod>,
    /// All Deployments, without their status.
    pub deployments: Store<Deployment>,
    /// All StatefulSets, without their status.
    pub stateful_sets: Store<StatefulSet>,
    pub(crate) agents: Agents,
    checkpoint_index: Index<Checkpoint>,
    pool_index: Index<WarmPool>,
    pod_index: Index<Pod>,
    /// Tells of every change of any of them.
    changes: Sender<()>,
}

/// The objects that are to be looked at.
pub(crate) struct Queues {
    pub(crate) checkpoints: UnboundedReceiver<ObjectRef<Checkpoint>>,
    pub(crate) pools: UnboundedReceiver<ObjectRef<WarmPool>>,
}

/// Begins to watch, leases of agents in `namespace`. The watches end with the returned set.
pub(crate) fn watch(client: &Client, namespace: &str, mismatches: Teller) -> (Stores, Queues, JoinSet<()>) {
    let (checkpoints, write_checkpoints) = reflector::store();
    let (pools, write_pools) = reflector::store();
    let (pods, write_pods) = reflector::store();
    let (deployments, write_deployments) = reflector::store();
    let (stateful_sets, write_stateful_sets) = reflector::store();
    let stores = Stores {
        checkpoints,
        pools,
        pods,
        deployments,
        stateful_sets,
        agents: Agents::default(),
        checkpoint_index: Index::new(keys_of_checkpoint),
        pool_index: Index::new(key_of_pool),
        pod_index: Index::new(keys_of_pod),
        changes: Sender::default(),
    };
    let (to_checkpoints, checkpoint_queue) = unbounded_channel();
    let (to_pools, pool_queue) = unbounded_channel();
    let tell = Tell { stores: stores.clone(), checkpoints: to_checkpoints, pools: to_pools, mismatches };

    let mut watches = JoinSet::new();
    let all = watcher::Config::default().page_size(PAGE);
    let ours = all.clone().labels(names::REVISION_LABEL);
    let told = tell.clone();
    watches.spawn(run(
        client,
        all.clone(),
        (write_checkpoints, stores.checkpoint_index.clone()),
        tell.clone(),
        |_| {},
        move |c| told.checkpoint(c),
    ));
    let told = tell.clone();
    watches.spawn(run(
        client,
        all.clone(),
        (write_pools, stores.pool_index.clone()),
        tell.clone(),
        |_| {},
        move |p| told.pool(p),
    ));
    let told = tell.clone();
    watches.spawn(run(client, ours, (write_pods, stores.pod_index.clone()), tell.clone(), slim, move |p| {
        told.pod(p)
    }));
    let told = tell.clone();
    watches.spawn(run(
        client,
        all.clone(),
        (write_deployments, Index::new(|_| Vec::new())),
        tell.clone(),
        |deployment| deployment.status = None,
        move |d| told.workload(WorkloadKind::Deployment, d),
    ));
    let told = tell.clone();
    watches.spawn(run(
        client,
        all,
        (write_stateful_sets, Index::new(|_| Vec::new())),
        tell.clone(),
        |stateful_set| stateful_set.status = None,
        move |s| told.workload(WorkloadKind::StatefulSet, s),
    ));
    let leases = Api::namespaced(client.clone(), namespace);
    let nodes = stores.clone();
    let agents = stores.agents.clone();
    watches.spawn(agents.watch(leases, move || nodes.nodes_with_pods(), move |node| tell.agent(node)));
    (stores, Queues { checkpoints: checkpoint_queue, pools: pool_queue }, watches)
}

fn run<K>(
    client: &Client,
    config: watcher::Config,
    (writer, index): (reflector::store::Writer<K>, Index<K>),
    tell: Tell,
    strip: impl Fn(&mut K) + Send + 'static,
    touched: impl Fn(&K) + Send + 'static,
) -> impl Future<Output = ()> + Send + 'static
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
        + Clone
        + Debug
        + DeserializeOwned
        + Send
        + Sync
        + 'static,
{
    let objects: Api<DeserializeGuard<K>> = Api::all(client.clone());
    async move {
        let mismatches = tell.mismatches.clone();
        let store = writer.as_reader();
        let events = watcher(objects, config)
            .default_backoff()
            .filter_map(move |event| std::future::ready(readable(event, &mismatches)))
            .modify(move |object| {
                object.managed_fields_mut().clear();
                object.annotations_mut().remove(LAST_APPLIED);
                strip(object);
            })
            .reflect(writer);
        pin_mut!(events);
        while let Some(event) = events.next().await {
            match event {
                Ok(watcher::Event::Apply(object)) => {
                    store.get(&ObjectRef::from_obj(&object)).into_iter().for_each(|object| index.put(object));
                    touched(&object);
                }
                Ok(watcher::Event::Delete(object)) => {
                    index.remove(&object);
                    touched(&object);
                }
                // What has gone while there was no watch is told by nobody.
                Ok(watcher::Event::InitDone) => {
                    index.replace(store.state());
                    tell.everybody();
                }
                Ok(watcher::Event::Init | watcher::Event::InitApply(_)) => {}
                Err(e) => warn!("cannot watch {}: {e}", K::plural(&())),
            }
            tell.stores.changes.send_replace(());
        }
    }
}

/// The same event of an object that can be read; none of others, which are told.
fn readable<K: Resource<DynamicType = ()>>(
    event: watcher::Result<watcher::Event<DeserializeGuard<K>>>,
    mismatches: &Teller,
) -> Option<watcher::Result<watcher::Event<K>>> {
    let read = |guard: DeserializeGuard<K>| guard.0.map_err(|object| mismatches.unreadable::<K>(object)).ok();
    Some(match event {
        Ok(watcher::Event::Apply(object)) => Ok(watcher::Event::Apply(read(object)?)),
        Ok(watcher::Event::Delete(object)) => Ok(watcher::Event::Delete(object.0.ok()?)),
        Ok(watcher::Event::Init) => Ok(watcher::Event::Init),
        Ok(watcher::Event::InitApply(object)) => Ok(watcher::Event::InitApply(read(object)?)),
        Ok(watcher::Event::InitDone) => Ok(watcher::Event::InitDone),
        Err(e) => Err(e),
    })
}

impl Stores {
    /// Waits until each has been filled.
    ///
    /// # Errors
    /// The watches have ended.
    pub(crate) async fn ready(&self) -> Result<(), WriterDropped> {
        let waits: [futures::future::BoxFuture<'_, _>; 5] = [
            Box::pin(self.checkpoints.wait_until_ready()),
            Box::pin(self.pools.wait_until_ready()),
            Box::pin(self.pods.wait_until_ready()),
            Box::pin(self.deployments.wait_until_ready()),
            Box::pin(self.stateful_sets.wait_until_ready()),
        ];
        try_join_all(waits).await.map(drop)
    }

    /// Waits until the stores show what was done, or for as long as we have patience. What is planned next builds on it, so nothing
    /// is done twice, which only adds to the load that has made the stores slow.
    pub(crate) async fn show(&self, done: impl Fn(&Self) -> bool) {
        let _ = timeout(PATIENCE, self.changes.subscribe().wait_for(|()| done(self))).await;
    }

    /// Whether this very pod is there, and not being deleted.
    pub(crate) fn lives(&self, pod: &Pod) -> bool {
        let found = self.pods.get(&ObjectRef::from_obj(pod));
        found.is_some_and(|found| {
            found.metadata.uid == pod.metadata.uid && found.metadata.deletion_timestamp.is_none()
        })
    }

    /// This pod has no owner any more.
    pub(crate) fn released(&self, pod: &Pod) {
        self.pod_index.remove(pod);
    }

    /// The pods that have this owner.
    pub(crate) fn pods_of(&self, owner: &str) -> Vec<Arc<Pod>> {
        self.pod_index.get(&Key::Owner(owner.to_owned()))
    }

    /// The Checkpoints of all namespaces that push this image.
    pub(crate) fn checkpoints_of_image(&self, image: &str) -> Vec<Arc<Checkpoint>> {
        self.checkpoint_index.get(&Key::Image(image.to_owned()))
    }

    /// The nodes that pods of ours are on.
    fn nodes_with_pods(&self) -> BTreeSet<String> {
        self.pods.state().iter().filter_map(|pod| Some(node_of(pod)?.to_owned())).collect()
    }

    fn checkpoints_of_workload(
        &self,
        kind: WorkloadKind,
        workload: &impl ResourceExt,
    ) -> Vec<Arc<Checkpoint>> {
        let namespace = workload.namespace().unwrap_or_default();
        self.checkpoint_index.get(&Key::Workload(kind, namespace, workload.name_any()))
    }

    fn pools_of(&self, checkpoint: &Checkpoint) -> Vec<Arc<WarmPool>> {
        let namespace = checkpoint.namespace().unwrap_or_default();
        self.pool_index.get(&Key::Checkpoint(namespace, checkpoint.name_any()))
    }
}

/// The node that a pod is on.
pub(crate) fn node_of(pod: &Pod) -> Option<&str> {
    pod.spec.as_ref()?.node_name.as_deref().filter(|node| !node.is_empty())
}

fn keys_of_checkpoint(checkpoint: &Checkpoint) -> Vec<Key> {
    let spec = &checkpoint.spec;
    let image = spec.image.clone().map(Key::Image);
    let namespace = checkpoint.namespace().unwrap_or_default();
    let workload = spec.source.workload_ref.as_ref();
    let workload = workload.map(|source| Key::Workload(source.kind, namespace, source.name.clone()));
    image.into_iter().chain(workload).collect()
}

fn key_of_pool(pool: &WarmPool) -> Vec<Key> {
    let namespace = pool.namespace().unwrap_or_default();
    vec![Key::Checkpoint(namespace, pool.spec.checkpoint_ref.name.clone())]
}

fn keys_of_pod(pod: &Pod) -> Vec<Key> {
    pod.owner_references().iter().map(|owner| Key::Owner(owner.uid.clone())).collect()
}

/// Takes away what nobody here looks at, which is most of a pod: there are very many.
fn slim(pod: &mut Pod) {
    let resized = pod.annotations().contains_key(names::REQUESTS_ANNOTATION);
    let requests =
        |whole: ResourceRequirements| ResourceRequirements { requests: whole.requests, ..Default::default() };
    let container = |whole: Container| Container {
        name: whole.name,
        image: whole.image,
        resources: whole.resources.filter(|_| resized).map(requests),
        ..Container::default()
    };
    pod.annotations_mut().retain(|key, _| key.starts_with(names::PREFIX));
    pod.labels_mut().retain(|key, _| key.starts_with(names::PREFIX));
    if let Some(whole) = pod.spec.take() {
        pod.spec = Some(PodSpec {
            node_name: whole.node_name,
            containers: whole.containers.into_iter().map(container).collect(),
            init_containers: whole.init_containers.map(|all| all.into_iter().map(container).collect()),
            ..PodSpec::default()
        });
    }
    if let Some(whole) = pod.status.take() {
        let conditions = whole.conditions.into_iter().flatten();
        let known = ["Ready", "PodScheduled", pool::RESIZE_PENDING, pool::RESIZE_IN_PROGRESS];
        let conditions = conditions.filter(|c| known.contains(&c.type_.as_str()));
        let container = |whole: ContainerStatus| ContainerStatus {
            name: whole.name,
            state: whole.state,
            ..ContainerStatus::default()
        };
        pod.status = Some(PodStatus {
            phase: whole.phase,
            reason: whole.reason,
            message: whole.message,
            conditions: Some(conditions.collect()),
            container_statuses: whole.container_statuses.map(|all| all.into_iter().map(container).collect()),
            ..PodStatus::default()
        });
    }
}

/// A pod that is watched no more though nobody deletes it: it has lost the label by which we watch, so it has been claimed.
pub(crate) fn lost(pod: &Pod) -> Option<Arc<Pod>> {
    let mut pod = pod.metadata.deletion_timestamp.is_none().then(|| pod.clone())?;
    pod.labels_mut().clear();
    Some(Arc::new(pod))
}

/// Tells reconcilers what to look at.
#[derive(Clone)]
struct Tell {
    stores: Stores,
    checkpoints: UnboundedSender<ObjectRef<Checkpoint>>,
    pools: UnboundedSender<ObjectRef<WarmPool>>,
    mismatches: Teller,
}

impl Tell {
    // A queue whose reader is gone belongs to an operator that ends.

    fn checkpoint(&self, checkpoint: &Checkpoint) {
        let _ = self.checkpoints.send(ObjectRef::from_obj(checkpoint));
        for pool in self.stores.pools_of(checkpoint) {
            self.pool(&pool);
        }
    }

    fn pool(&self, pool: &WarmPool) {
        let _ = self.pools.send(ObjectRef::from_obj(pool));
    }

    fn pod(&self, pod: &Pod) {
        let namespace = pod.namespace().unwrap_or_default();
        if let Some(checkpoint) = pod.labels().get(names::CHECKPOINT_LABEL) {
            let _ = self.checkpoints.send(ObjectRef::new(checkpoint).within(&namespace));
        }
        let owners = pod.owner_references().iter().filter(|owner| owner.kind == WarmPool::kind(&()));
        for owner in owners {
            if self.stores.pods.get(&ObjectRef::from_obj(pod)).is_none() {
                lost(pod).into_iter().for_each(|pod| self.stores.pod_index.put(pod));
            }
            let _ = self.pools.send(ObjectRef::new(&owner.name).within(&namespace));
        }
    }

    /// A node's agent has become silent, or is back.
    fn agent(&self, node: &str) {
        for pod in self.stores.pods.state().iter().filter(|pod| node_of(pod) == Some(node)) {
            self.pod(pod);
        }
        // Its pod may be none that we watch.
        let concerned = |checkpoint: &&Arc<Checkpoint>| {
            let instruction = checkpoint.status.as_ref().and_then(|status| status.instruction.as_ref());
            instruction.is_some_and(|instruction| instruction.node == node)
        };
        for checkpoint in self.stores.checkpoints.state().iter().filter(concerned) {
            let _ = self.checkpoints.send(ObjectRef::from_obj(&**checkpoint));
        }
    }

    fn workload(&self, kind: WorkloadKind, workload: &impl ResourceExt) {
        for checkpoint in self.stores.checkpoints_of_workload(kind, workload) {
            self.checkpoint(&checkpoint);
        }
    }

    fn everybody(&self) {
        for checkpoint in self.stores.checkpoints.state() {
            let _ = self.checkpoints.send(ObjectRef::from_obj(&*checkpoint));
        }
        for pool in self.stores.pools.state() {
            self.pool(&pool);
        }
    }
}
