//! Pods, timed from their creation to their first answer.

use std::net::IpAddr;
use std::pin::pin;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use futures::StreamExt as _;
use futures::stream::BoxStream;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt as _;
use kube::api::{Api, DeleteParams, ObjectMeta, Patch, PatchParams, PostParams};
use kube::runtime::watcher::{self, Event};
use serde_json::json;
use woodfrog_api::source::PodTemplate;
use woodfrog_api::{WarmPool, names};
use woodfrog_testcluster::Cluster;

use crate::client::FirstAnswer;
use crate::clock::{ms, now_us};

/// How long a pod may take to answer, cold on a busy machine.
const PATIENCE: Duration = Duration::from_secs(180);

/// Makes a pod of a template, and removes it when it has answered. Milliseconds from the request to the answer.
pub(super) async fn cold(cluster: &Cluster<'_>, template: &PodTemplate, name: &str) -> Result<f64> {
    let pods = cluster.api::<Pod>();
    let mut events = Events::of(&pods, &format!("demo={name}"));
    let labels = [("demo".to_owned(), name.to_owned())].into();
    let metadata = ObjectMeta { name: Some(name.to_owned()), labels: Some(labels), ..ObjectMeta::default() };
    let pod = Pod { metadata, spec: Some(template.pod_spec()?), status: None };
    let began = now_us();
    pods.create(&PostParams::default(), &pod).await?;
    let answered = answer(cluster, events.with_address(name).await?).await?;
    pods.delete(name, &DeleteParams::default()).await?;
    cluster.until_gone::<Pod>(name, PATIENCE).await?;
    Ok(ms(began, answered))
}

/// A WarmPool that grows.
pub(super) struct Pool<'a> {
    cluster: &'a Cluster<'a>,
    name: String,
    replicas: i32,
    known: Vec<String>,
    events: Events,
}

impl<'a> Pool<'a> {
    /// The pool of a Checkpoint, which has no pods yet.
    pub(super) async fn watch(cluster: &'a Cluster<'a>, name: &str) -> Result<Self> {
        let pool = json!({
            "apiVersion": "woodfrog.dev/v1alpha1",
            "kind": "WarmPool",
            "metadata": { "name": name },
            "spec": { "checkpointRef": { "name": name }, "replicas": 0 },
        });
        cluster.apply(&pool.to_string()).await?;
        let events = Events::of(&cluster.api(), &format!("{}={name}", names::POOL_LABEL));
        Ok(Self { cluster, name: name.to_owned(), replicas: 0, known: Vec::new(), events })
    }

    /// Scales up by one. Milliseconds to the new pod's first answer: from that request, and from the event of the pod's creation.
    pub(super) async fn one_more(&mut self) -> Result<(f64, f64)> {
        self.replicas += 1;
        let began = now_us();
        let patch = Patch::Merge(json!({ "spec": { "replicas": self.replicas } }));
        self.cluster.api::<WarmPool>().patch(&self.name, &PatchParams::default(), &patch).await?;
        let pod = self.events.next(|pod| !self.known.contains(&pod.name_any())).await?;
        let created = now_us();
        self.known.push(pod.name_any());
        let pod = self.events.with_address(&pod.name_any()).await?;
        let answered = answer(self.cluster, pod.clone()).await?;
        self.cluster.assert_thawed(&pod)?;
        let full = |pool: &WarmPool| pool.status.as_ref().is_some_and(|s| s.ready_replicas == self.replicas);
        self.cluster.until(&self.name, PATIENCE, full).await?;
        Ok((ms(began, answered), ms(created, answered)))
    }
}

/// When a pod first answers, by the clock of all processes.
async fn answer(cluster: &Cluster<'_>, pod: Pod) -> Result<u64> {
    let ip: IpAddr = address(&pod).context("the pod has no address")?.parse()?;
    FirstAnswer::from(cluster.node, ip, PATIENCE).at().await
}

fn address(pod: &Pod) -> Option<&str> {
    pod.status.as_ref()?.pod_ip.as_deref()
}

/// What happens to some pods.
struct Events(BoxStream<'static, watcher::Result<Event<Pod>>>);

impl Events {
    fn of(pods: &Api<Pod>, selector: &str) -> Self {
        Self(kube::runtime::watcher(pods.clone(), watcher::Config::default().labels(selector)).boxed())
    }

    /// Waits for a pod that is as it should be.
    async fn next(&mut self, is: impl Fn(&Pod) -> bool) -> Result<Pod> {
        let began = Instant::now();
        let mut patience = pin!(tokio::time::sleep(PATIENCE));
        loop {
            let event = tokio::select! {
                event = self.0.next() => event.context("the watch has ended")??,
                () = &mut patience => bail!("no such pod after {:?}", began.elapsed()),
            };
            match event {
                Event::Apply(pod) | Event::InitApply(pod) if is(&pod) => return Ok(pod),
                _ => {}
            }
        }
    }

    /// Waits until a pod has an address.
    async fn with_address(&mut self, name: &str) -> Result<Pod> {
        let pod = self.next(|pod| pod.name_any() == name && address(pod).is_some()).await?;
        ensure!(pod.metadata.deletion_timestamp.is_none(), "pod {name} is being deleted");
        Ok(pod)
    }
}
