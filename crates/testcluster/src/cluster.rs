//! What a test holds of a cluster.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use base64::Engine as _;
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::core::v1::{Namespace, Node as NodeObject, Pod};
use kube::api::{Api, DynamicObject, ListParams, Patch, PatchParams, PostParams};
use kube::config::Kubeconfig;
use kube::{Client, Resource, ResourceExt as _};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::task::JoinSet;
use woodfrog_api::{Checkpoint, WarmPool};
use woodfrog_testapi::{ApiServer, User, install_crds};
use woodfrog_testkubelet::stack::{AGENT, SHIM};
use woodfrog_testkubelet::{Kubelet, Stack, http};
use woodfrog_testnode::{App, Node, Options};

use crate::operator::OPERATOR;
use crate::{forward, garbage, kubelet, manifest, scheduler};

/// Namespace of the operator's lease.
pub const SYSTEM: &str = "woodfrog-system";
/// The registry of every node, which holds the images of applications.
pub const REGISTRY: &str = "127.0.0.1:5000";
/// The kubeconfig in the node.
pub(crate) const KUBECONFIG: &str = "/run/woodfrog-kubeconfig.json";

/// A cluster of one node. Everything in it ends with it, but for the node, which is its guard's.
pub struct Cluster<'a> {
    /// Who may do everything.
    pub client: Client,
    /// A namespace for the test's objects.
    pub namespace: String,
    /// The only node.
    pub node: &'a Node,
    /// Agent and shim on it.
    pub stack: Stack<'a>,
    pub(crate) profile: String,
    /// Scheduler, kubelet, garbage collector, and the way to the API server.
    _tasks: JoinSet<()>,
    _server: ApiServer,
}

/// Runs a test in a cluster of its own, which is gone afterwards. `name` names the node; `images` are in its registry.
///
/// # Panics
/// With the test's error, what the API server has, and the logs of operator, agent and shim.
pub fn in_cluster<F>(name: &str, images: &[App], test: F)
where
    F: AsyncFnOnce(&Cluster<'_>) -> Result<()>,
{
    if let woodfrog_testnode::Need::Lacks(what) = woodfrog_testnode::Need::look() {
        eprintln!("skipped: {what}");
        return;
    }
    if !woodfrog_testapi::Need::met() {
        return;
    }
    let options = Options { images: images.to_vec(), ..Options::default() };
    let node = Node::up(name, &options).expect("a node").into_guard();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    let failure = runtime.block_on(async {
        let cluster = match Cluster::start(&node, "debug").await {
            Ok(cluster) => cluster,
            Err(e) => return Some(format!("{e:?}\n{}", logs(&node))),
        };
        let error = test(&cluster).await.err()?;
        // Read before anything ends: what the end is like is of no interest.
        Some(format!("{error:?}\n{}{}", cluster.objects().await, logs(&node)))
    });
    if let Some(failure) = failure {
        panic!("{failure}");
    }
}

fn logs(node: &Node) -> String {
    let log = |name: &str| format!("--- {name}\n{}\n", node.logs(name).unwrap_or_default());
    [OPERATOR, AGENT, SHIM].map(log).concat()
}

impl<'a> Cluster<'a> {
    /// Starts all of it around a node, with the programs in `/opt/woodfrog/PROFILE` of the node.
    ///
    /// # Errors
    /// A part does not come up, or the environment names a cluster that has schedulers and kubelets of its own.
    pub async fn start(node: &'a Node, profile: &str) -> Result<Self> {
        let server = ApiServer::start().await?;
        ensure!(
            server.directory().is_some(),
            "KUBECONFIG names a cluster that has a scheduler of its own: unset it for e2e tests"
        );
        let client = server.client(&User::admin()).await?;
        install_crds(&client).await?;
        make_namespace(&client, SYSTEM).await?;
        let namespace = server.namespace("shop").await?;
        register(&client, node).await?;

        let mut tasks = JoinSet::new();
        let file = server.kubeconfig(&User::admin()).await?;
        let (kubeconfig, address) = in_node(Kubeconfig::read_from(&file)?)?;
        std::fs::write(node.path(KUBECONFIG), kubeconfig).context(KUBECONFIG)?;
        tasks.spawn(forward::forward(node, address)?);

        let agent = ["--node-name", node.name(), "--kubeconfig", KUBECONFIG];
        let stack = Stack::start_with(node, profile, &agent)?;
        let cri = Kubelet::connect(node, &stack.cri_socket()).await?;
        tasks.spawn(scheduler::run(client.clone(), server.is_real()));
        tasks.spawn(garbage::run(client.clone()));
        tasks.spawn(kubelet::run(kubelet::Context { client: client.clone(), node: node.clone(), cri }));
        let profile = profile.to_owned();
        let cluster = Self { client, namespace, node, stack, profile, _tasks: tasks, _server: server };
        cluster.start_operator().await?;
        Ok(cluster)
    }

    /// `kubectl apply` of a YAML text.
    ///
    /// # Errors
    /// An object is refused.
    pub async fn apply(&self, yaml: &str) -> Result<Vec<DynamicObject>> {
        manifest::apply(&self.client, &self.namespace, yaml).await
    }

    /// Objects of the test's namespace.
    pub fn api<K>(&self) -> Api<K>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>,
    {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    /// Waits until an object is as it should be; it need not exist yet.
    ///
    /// # Errors
    /// It is not within `timeout`; what it is then is in the error.
    pub async fn until<K>(&self, name: &str, timeout: Duration, is: impl Fn(&K) -> bool) -> Result<K>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
            + Clone
            + std::fmt::Debug
            + DeserializeOwned
            + Serialize,
    {
        let deadline = Instant::now() + timeout;
        loop {
            let found = self.api::<K>().get_opt(name).await?;
            match found {
                Some(found) if is(&found) => return Ok(found),
                found if Instant::now() > deadline => {
                    let found = serde_json::to_value(&found)?;
                    bail!(
                        "{} {name} is not as it should be after {timeout:?}: {:#}",
                        K::kind(&()),
                        found["status"]
                    );
                }
                _ => tokio::time::sleep(Duration::from_millis(100)).await,
            }
        }
    }

    /// Waits until an object is gone.
    ///
    /// # Errors
    /// It is still there after `timeout`; its metadata are in the error.
    pub async fn until_gone<K>(&self, name: &str, timeout: Duration) -> Result<()>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
            + Clone
            + std::fmt::Debug
            + DeserializeOwned,
    {
        let deadline = Instant::now() + timeout;
        while let Some(found) = self.api::<K>().get_opt(name).await? {
            let metadata = found.meta();
            ensure!(Instant::now() < deadline, "{name} is still there after {timeout:?}: {metadata:?}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        Ok(())
    }

    /// The pods that carry a label.
    ///
    /// # Errors
    /// The API server's.
    pub async fn pods(&self, selector: &str) -> Result<Vec<Pod>> {
        Ok(self.api::<Pod>().list(&ListParams::default().labels(selector)).await?.items)
    }

    /// Waits until no pod carries a label any more.
    ///
    /// # Errors
    /// There are some after `timeout`; their names are in the error.
    pub async fn until_no_pods(&self, selector: &str, timeout: Duration) -> Result<()> {
        let deadline = Instant::now() + timeout;
        loop {
            let pods = self.pods(selector).await?;
            if pods.is_empty() {
                return Ok(());
            }
            let names: Vec<_> = pods.iter().map(|pod| pod.name_any()).collect();
            ensure!(Instant::now() < deadline, "pods {names:?} are still there after {timeout:?}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// `GET path` from a pod's application.
    ///
    /// # Errors
    /// The pod has no address, nobody listens, or the answer is not 200.
    pub fn get(&self, pod: &Pod, path: &str) -> Result<String> {
        let ip = pod.status.as_ref().and_then(|status| status.pod_ip.as_deref());
        let ip = ip.with_context(|| format!("pod {} has no address", pod.name_any()))?;
        http::get(self.node, ip.parse()?, path)
    }

    /// Fails unless every container of a pod was thawed; the reason is in the error.
    ///
    /// # Errors
    /// One started cold.
    pub fn assert_thawed(&self, pod: &Pod) -> Result<()> {
        let output = self.stack.woodfrog(&["ps", "--output", "json"])?;
        let all: Vec<Value> = serde_json::from_str(&output).with_context(|| output.clone())?;
        let statuses = pod.status.as_ref().and_then(|status| status.container_statuses.as_ref());
        for status in statuses.into_iter().flatten() {
            let id = status.container_id.as_deref().unwrap_or_default().trim_start_matches("containerd://");
            let found = all.iter().find(|container| container["id"] == id);
            let found =
                found.with_context(|| format!("{} of {} is not in {output}", status.name, pod.name_any()))?;
            ensure!(
                found["state"] == "thawed",
                "{} of {} was not thawed but is {}: {}",
                status.name,
                pod.name_any(),
                found["state"],
                found["reason"]
            );
        }
        Ok(())
    }

    /// What the namespace holds, for the one who reads a failure.
    async fn objects(&self) -> String {
        let checkpoints =
            self.api::<Checkpoint>().list(&ListParams::default()).await.map(|list| json!(list.items));
        let pools = self.api::<WarmPool>().list(&ListParams::default()).await.map(|list| json!(list.items));
        let pods = self.api::<Pod>().list(&ListParams::default()).await.map(|list| json!(list.items));
        let of = |kind: &str, list: kube::Result<Value>| {
            let mut text = String::new();
            for object in list.unwrap_or_default().as_array().into_iter().flatten() {
                text += &format!("--- {kind} {}: {:#}\n", object["metadata"]["name"], object["status"]);
            }
            text
        };
        of("Checkpoint", checkpoints) + &of("WarmPool", pools) + &of("Pod", pods)
    }
}

async fn make_namespace(client: &Client, name: &str) -> Result<()> {
    let namespace: Namespace = serde_json::from_value(json!({ "metadata": { "name": name } }))?;
    Api::<Namespace>::all(client.clone()).create(&PostParams::default(), &namespace).await?;
    Ok(())
}

/// What a kubelet tells of its node when it starts.
async fn register(client: &Client, node: &Node) -> Result<()> {
    let nodes = Api::<NodeObject>::all(client.clone());
    let labels = json!({ "kubernetes.io/hostname": node.name(), "kubernetes.io/os": "linux" });
    let object = serde_json::from_value(json!({ "metadata": { "name": node.name(), "labels": labels } }))?;
    nodes.create(&PostParams::default(), &object).await?;
    let status = json!({ "status": {
        "addresses": [{ "type": "InternalIP", "address": node.address() }],
        "conditions": [{ "type": "Ready", "status": "True" }],
    } });
    nodes.patch_status(node.name(), &PatchParams::default(), &Patch::Merge(status)).await?;
    Ok(())
}

/// A kubeconfig that needs no other file, and where its server is.
fn in_node(mut config: Kubeconfig) -> Result<(Vec<u8>, SocketAddr)> {
    let cluster =
        config.clusters.first_mut().and_then(|named| named.cluster.as_mut()).context("no cluster")?;
    if let Some(file) = cluster.certificate_authority.take() {
        let certificate = std::fs::read(&file).context(file)?;
        let encoded = base64::prelude::BASE64_STANDARD.encode(certificate);
        cluster.certificate_authority_data = Some(encoded);
    }
    let server = cluster.server.as_deref().unwrap_or_default();
    let address = server.trim_start_matches("https://").parse().with_context(|| server.to_owned())?;
    Ok((serde_json::to_vec(&config)?, address))
}
