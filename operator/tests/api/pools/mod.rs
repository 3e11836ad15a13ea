//! WarmPools: their pods are ready soon after they are made, and an agent freezes what it is told to.

mod agents;
mod resize;

use std::ops::{Deref, DerefMut};
use std::time::Duration;

use k8s_openapi::api::admissionregistration::v1::{
    ValidatingAdmissionPolicy, ValidatingAdmissionPolicyBinding,
};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::events::v1::Event;
use k8s_openapi::jiff::Timestamp;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::{Api, Client, ResourceExt};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};
use woodfrog_api::{Checkpoint, WarmPool, names};

use crate::stage::{NODE, PATIENCE, Stage, digest};

/// A stage, as tests of pools see it.
struct World(Stage);

impl Deref for World {
    type Target = Stage;

    fn deref(&self) -> &Stage {
        &self.0
    }
}

impl DerefMut for World {
    fn deref_mut(&mut self) -> &mut Stage {
        &mut self.0
    }
}

impl World {
    /// None where there is no API server.
    async fn new() -> Option<Self> {
        Stage::set().await.map(Self)
    }

    async fn make<K>(&self, kind: &str, name: &str, spec: Value)
    where
        K: kube::Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>
            + Clone
            + std::fmt::Debug
            + serde::Serialize
            + DeserializeOwned,
    {
        let object = json!({
            "apiVersion": "woodfrog.dev/v1alpha1", "kind": kind, "metadata": {"name": name}, "spec": spec,
        });
        let object: K = serde_json::from_value(object).unwrap();
        self.api::<K>().create(&PostParams::default(), &object).await.unwrap();
    }

    async fn checkpoint(&self) {
        self.checkpoint_with("web", json!({})).await;
    }

    async fn checkpoint_with(&self, name: &str, resources: Value) {
        let container = json!({"name": "app", "image": "web:1", "resources": resources});
        let pod = json!({"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [container]}});
        let spec = json!({"source": {"template": pod}, "image": format!("r.example/{name}:warm")});
        self.make::<Checkpoint>("Checkpoint", name, spec).await;
    }

    async fn pool(&self, name: &str, replicas: i32) {
        let spec = json!({
            "checkpointRef": {"name": "web"}, "replicas": replicas, "template": {"labels": {"for": name}},
        });
        self.make::<WarmPool>("WarmPool", name, spec).await;
    }

    /// Without those that are being deleted.
    async fn pods(&self, pool: &str) -> Vec<Pod> {
        let labelled = ListParams::default().labels(&format!("{}={pool}", names::POOL_LABEL));
        let pods = self.api::<Pod>().list(&labelled).await.unwrap().items;
        pods.into_iter().filter(|pod| pod.metadata.deletion_timestamp.is_none()).collect()
    }

    /// Waits until a pool is as a test wants it; `always` is asked about its pods all the while.
    async fn until_always(
        &self,
        name: &str,
        is: impl Fn(&WarmPool) -> bool,
        always: impl Fn(&[Pod]) -> bool,
    ) -> WarmPool {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let pods = self.pods(name).await;
            assert!(always(&pods), "{:?}", pods.iter().map(ResourceExt::name_any).collect::<Vec<_>>());
            let pool = self.api::<WarmPool>().get(name).await.unwrap();
            if is(&pool) {
                return pool;
            }
            assert!(Instant::now() < deadline, "{}", serde_json::to_string_pretty(&pool).unwrap());
            sleep(Duration::from_millis(20)).await;
        }
    }

    async fn until(&self, name: &str, is: impl Fn(&WarmPool) -> bool) -> WarmPool {
        self.until_always(name, is, |_| true).await
    }

    async fn events(&self, reason: &str) -> Vec<Event> {
        let events = self.api::<Event>().list(&ListParams::default()).await.unwrap();
        events.into_iter().filter(|event| event.reason.as_deref() == Some(reason)).collect()
    }
}

/// Settled with so many pods, all ready and up to date.
fn settled(replicas: i32) -> impl Fn(&WarmPool) -> bool {
    move |pool| {
        let status = pool.status.clone().unwrap_or_default();
        (status.replicas, status.ready_replicas, status.updated_replicas) == (replicas, replicas, replicas)
            && status.observed_generation == pool.metadata.generation
            && says(pool, "Progressing", "Settled")
    }
}

fn says(pool: &WarmPool, type_: &str, reason: &str) -> bool {
    let mut conditions = pool.status.iter().flat_map(|status| &status.conditions);
    conditions.any(|condition| condition.type_ == type_ && condition.reason == reason)
}

fn ready(pods: &[Pod]) -> usize {
    pods.iter().filter(|pod| pod.status.as_ref().is_some_and(|status| status.conditions.is_some())).count()
}

#[tokio::test(flavor = "multi_thread")]
async fn api_a_pool_waits_for_its_checkpoint_settles_scales_and_rolls_out() {
    let Some(world) = World::new().await else { return };
    world.pool("web", 3).await;
    world.until("web", |pool| says(pool, "CheckpointReady", "CheckpointNotFound")).await;
    world.checkpoint().await;
    let pool = world.until_always("web", settled(3), |pods| pods.len() <= 3).await;
    let image = pool.status.unwrap().image.unwrap();
    assert_eq!(image, format!("r.example/web@{}", digest("r.example/web:warm", 1)));
    for pod in world.pods("web").await {
        let spec = pod.spec.clone().unwrap();
        assert_eq!(spec.containers[0].image.as_ref(), Some(&image));
        assert!(pod.labels()["app"] == "web" && pod.labels()["for"] == "web", "{:?}", pod.labels());
        assert!(spec.affinity.is_some() && pod.annotations()[names::MANAGED_ANNOTATION] == "true");
    }

    // At rest nothing is written.
    let version = || async { world.api::<WarmPool>().get("web").await.unwrap().resource_version() };
    let before = version().await;
    sleep(Duration::from_secs(1)).await;
    assert_eq!(version().await, before);

    // As kubectl scale does it.
    let scale = async |replicas: i32| {
        let patch = Patch::Merge(json!({"spec": {"replicas": replicas}}));
        world.api::<WarmPool>().patch_scale("web", &PatchParams::default(), &patch).await.unwrap();
    };
    scale(5).await;
    world.until_always("web", settled(5), |pods| (3..=5).contains(&pods.len())).await;
    scale(2).await;
    world.until_always("web", settled(2), |pods| (2..=5).contains(&pods.len())).await;
    let scaled = world.api::<WarmPool>().get_scale("web").await.unwrap().status.unwrap();
    assert_eq!((scaled.replicas, scaled.selector.as_deref()), (2, Some("woodfrog.dev/pool=web")));

    // A new image: never fewer than 2 ready, never more than 3.
    let pod = json!({"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "app", "image": "web:2"}]}});
    let newer = Patch::Merge(json!({"spec": {"source": {"template": pod}}}));
    world.api::<Checkpoint>().patch("web", &PatchParams::default(), &newer).await.unwrap();
    let second = format!("r.example/web@{}", digest("r.example/web:warm", 2));
    let done = |pool: &WarmPool| {
        settled(2)(pool) && pool.status.as_ref().is_some_and(|status| status.image.as_ref() == Some(&second))
    };
    world.until_always("web", done, |pods| ready(pods) >= 2 && pods.len() <= 3).await;
    for pod in world.pods("web").await {
        assert_eq!(pod.spec.unwrap().containers[0].image.as_ref(), Some(&second));
    }
    for (reason, said) in [("CheckpointNotFound", 1), ("RollingOut", 1)] {
        assert_eq!(world.events(reason).await.len(), said, "{reason}");
    }

    // Without its Checkpoint a pool keeps what it has.
    world.api::<Checkpoint>().delete("web", &DeleteParams::default()).await.unwrap();
    world.until("web", |pool| says(pool, "CheckpointReady", "CheckpointNotFound")).await;
    assert_eq!(world.pods("web").await.len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn api_a_claimed_pod_is_released_and_replaced_and_one_that_ended_is_removed() {
    let Some(mut world) = World::new().await else { return };
    world.checkpoint().await;
    world.pool("web", 2).await;
    world.until("web", settled(2)).await;
    let claimed = world.pods("web").await.remove(0);
    let (name, pods) = (claimed.name_any(), world.api::<Pod>());
    let label = Patch::Merge(json!({"metadata": {"labels": {names::POOL_LABEL: null, "mine": "yes"}}}));
    pods.patch(&name, &PatchParams::default(), &label).await.unwrap();
    let deadline = Instant::now() + PATIENCE;
    while !pods.get(&name).await.unwrap().owner_references().is_empty() || world.pods("web").await.len() < 2 {
        assert!(Instant::now() < deadline, "not released and replaced");
        sleep(Duration::from_millis(20)).await;
    }
    // Scaled to nothing, the pool leaves it alone.
    let nothing = Patch::Merge(json!({"spec": {"replicas": 0}}));
    world.api::<WarmPool>().patch("web", &PatchParams::default(), &nothing).await.unwrap();
    world.until("web", settled(0)).await;
    let left = pods.get(&name).await.unwrap();
    assert!(left.uid() == claimed.uid() && left.metadata.deletion_timestamp.is_none());

    let one = Patch::Merge(json!({"spec": {"replicas": 1}}));
    world.api::<WarmPool>().patch("web", &PatchParams::default(), &one).await.unwrap();
    world.until("web", settled(1)).await;
    let ended = world.pods("web").await.remove(0);
    let failed = Patch::Merge(json!({"status": {"phase": "Failed", "conditions": null}}));
    // The stand-in for a node would have it run again.
    world.stop_node();
    pods.patch_status(&ended.name_any(), &PatchParams::default(), &failed).await.unwrap();
    let deadline = Instant::now() + PATIENCE;
    while world.pods("web").await.iter().any(|pod| pod.uid() == ended.uid())
        || world.pods("web").await.len() != 1
    {
        assert!(Instant::now() < deadline, "not removed and replaced");
        sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn api_a_pod_is_released_and_replaced_however_it_is_relabelled() {
    let Some(mut world) = World::new().await else { return };
    world.checkpoint().await;
    world.pool("web", 1).await;
    world.pool("other", 1).await;
    world.until("web", settled(1)).await;
    world.until("other", settled(1)).await;
    let pods = world.api::<Pod>();
    let (pool, revision, app) = (names::POOL_LABEL, names::REVISION_LABEL, "app");
    for (number, labels) in [
        json!({ (pool): null }),
        json!({ (pool): "nobody" }),
        json!({ (pool): "other" }),
        json!({ (revision): null }),
        json!({ (pool): null, (revision): null }),
        json!({ (pool): null, (revision): null, (app): null, "for": null }),
    ]
    .into_iter()
    .enumerate()
    {
        // The last one while there is no operator to see it.
        let unseen = number == 5;
        let taken = world.pods("web").await.remove(0);
        if unseen {
            world.kill_operator();
        }
        let patch = Patch::Merge(json!({ "metadata": { "labels": labels } }));
        pods.patch(&taken.name_any(), &PatchParams::default(), &patch).await.unwrap();
        if unseen {
            world.start_operator().await;
        }
        let deadline = Instant::now() + PATIENCE;
        loop {
            let pod = pods.get(&taken.name_any()).await.unwrap();
            assert!(pod.uid() == taken.uid() && pod.metadata.deletion_timestamp.is_none(), "{labels}");
            let owned =
                world.pods("web").await.iter().filter(|pod| !pod.owner_references().is_empty()).count();
            if pod.owner_references().is_empty() && owned == 1 {
                break;
            }
            assert!(Instant::now() < deadline, "not released and replaced: {labels}");
            sleep(Duration::from_millis(20)).await;
        }
        // Nobody counts it any more.
        let gone = Patch::Merge(json!({ "metadata": { "labels": { (pool): null } } }));
        pods.patch(&taken.name_any(), &PatchParams::default(), &gone).await.unwrap();
        world.until("web", settled(1)).await;
    }
    world.until("other", settled(1)).await;

    // With no successor in its way, too.
    let taken = world.pods("web").await.remove(0);
    let patch = Patch::Merge(json!({ "metadata": { "labels": { (revision): null } } }));
    pods.patch(&taken.name_any(), &PatchParams::default(), &patch).await.unwrap();
    let nothing = Patch::Merge(json!({ "spec": { "replicas": 0 } }));
    world.api::<WarmPool>().patch("web", &PatchParams::default(), &nothing).await.unwrap();
    let deadline = Instant::now() + PATIENCE;
    while !pods.get(&taken.name_any()).await.unwrap().owner_references().is_empty() {
        assert!(Instant::now() < deadline, "not released");
        sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn api_an_operator_that_is_killed_while_it_scales_doubles_no_pod() {
    let Some(mut world) = World::new().await else { return };
    world.checkpoint().await;
    world.pool("web", 1).await;
    world.until("web", settled(1)).await;
    for round in 1..=8_u64 {
        let replicas = if round % 2 == 1 { 20 } else { 1 };
        let scaled = Patch::Merge(json!({"spec": {"replicas": replicas}}));
        world.api::<WarmPool>().patch("web", &PatchParams::default(), &scaled).await.unwrap();
        sleep(Duration::from_millis(30 * round)).await;
        world.kill_operator();
        world.start_operator().await;
        world.until_always("web", settled(replicas), |pods| (1..=20).contains(&pods.len())).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn api_pods_that_the_server_refuses_are_named_in_a_condition_and_one_event() {
    let Some(world) = World::new().await else { return };
    let rules = json!([{"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["pods"], "scope": "*"}]);
    let policy: ValidatingAdmissionPolicy = serde_json::from_value(json!({
        "metadata": {"name": "no-pods"},
        "spec": {
            "failurePolicy": "Fail",
            "matchConstraints": {
                "matchPolicy": "Equivalent", "namespaceSelector": {}, "objectSelector": {}, "resourceRules": rules,
            },
            "validations": [{
                "expression": "!('for' in object.metadata.labels) || object.metadata.labels['for'] != 'refused'",
                "message": "no such pods here",
            }],
        },
    }))
    .unwrap();
    let binding: ValidatingAdmissionPolicyBinding = serde_json::from_value(json!({
        "metadata": {"name": "no-pods"},
        "spec": {"policyName": "no-pods", "validationActions": ["Deny"]},
    }))
    .unwrap();
    Api::all(world.client.clone()).create(&PostParams::default(), &policy).await.unwrap();
    Api::all(world.client.clone()).create(&PostParams::default(), &binding).await.unwrap();
    // It takes the server a moment to obey.
    sleep(Duration::from_secs(2)).await;
    world.checkpoint().await;
    world.pool("refused", 2).await;
    let pool = world.until("refused", |pool| says(pool, "Progressing", "PodsRefused")).await;
    let conditions = pool.status.unwrap().conditions;
    let available = conditions.iter().find(|condition| condition.type_ == "Available").unwrap();
    assert!(available.message.starts_with("0 of 2 pods are ready; the API server refuses the pods"));
    assert!(available.message.contains("no such pods here"), "{}", available.message);
    sleep(Duration::from_secs(4)).await;
    assert_eq!(world.events("PodsRefused").await.len(), 1);

    let policies = Api::<ValidatingAdmissionPolicyBinding>::all(world.client.clone());
    policies.delete("no-pods", &DeleteParams::default()).await.unwrap();
    world.until("refused", settled(2)).await;
}
