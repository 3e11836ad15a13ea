//! What a test holds of a cluster.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::core::v1::{Namespace, Pod};
use kube::api::{Api, DynamicObject, ListParams, PostParams};
use kube::{Client, Resource, ResourceExt as _};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::task::JoinSet;
use woodfrog_api::{Checkpoint, WarmPool};
use woodfrog_testapi::{ApiServer, User, install_crds};
use woodfrog_testkubelet::http;
use woodfrog_testkubelet::stack::{AGENT, SHIM};
use woodfrog_testnode::{App, Node, Options};

use crate::member::{Member, kubeconfig};
use crate::operator::OPERATOR;
use crate::{garbage, manifest, scheduler};

/// Namespace of the operator's lease.
pub const SYSTEM: &str = "woodfrog-system";
/// The registry of every node, which holds the images of applications.
pub const REGISTRY: &str = "127.0.0.1:5000";
/// The operator's kubeconfig in the node.
pub(crate) const KUBECONFIG: &str = "/run/woodfrog-kubeconfig.json";

/// Whose rights operator and agents have.
#[derive(Clone, Debug)]
pub enum Rights {
    /// Those of an administrator.
    Admin,
    /// Those of the service accounts `woodfrog-operator` and `woodfrog-agent` of the namespace [`SYSTEM`], which these YAML
    /// documents give them.
    Accounts(String),
}

/// A cluster of one node, which others may join. Everything in it ends with it, but for the node, which is its guard's.
pub struct Cluster<'a> {
    /// Who may do everything.
    pub client: Client,
    /// A namespace for the test's objects.
    pub namespace: String,
    /// The node of the operator.
    pub node: &'a Node,
    /// Agent and shim on it.
    pub member: Member<'a>,
    pub(crate) profile: String,
    rights: Rights,
    /// Scheduler and garbage collector.
    _tasks: JoinSet<()>,
    server: ApiServer,
}

/// Runs a test in a cluster of its own, which is gone afterwards. `name` names the node; `images` are in its registry.
///
/// # Panics
/// With the test's error, what the API server has, and the logs of operator, agent and shim.
pub fn in_cluster<F>(name: &str, images: &[App], rights: Rights, test: F)
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
        let cluster = match Cluster::start_as(&node, "debug", rights).await {
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
        Self::start_as(node, profile, Rights::Admin).await
    }

    /// The same, with other rights.
    ///
    /// # Errors
    /// As [`Cluster::start`]; what gives the rights is refused.
    pub async fn start_as(node: &'a Node, profile: &str, rights: Rights) -> Result<Self> {
        let server = ApiServer::start().await?;
        ensure!(
            server.directory().is_some(),
            "KUBECONFIG names a cluster that has a scheduler of its own: unset it for e2e tests"
        );
        let client = server.client(&User::admin()).await?;
        install_crds(&client).await?;
        make_namespace(&client, SYSTEM).await?;
        let namespace = server.namespace("shop").await?;
        if let Rights::Accounts(yaml) = &rights {
            manifest::apply(&client, SYSTEM, yaml).await?;
        }
        let mut tasks = JoinSet::new();
        tasks.spawn(scheduler::run(client.clone(), server.is_real()));
        tasks.spawn(garbage::run(client.clone()));
        let member = Member::join(&server, &client, node, profile, &agent(&rights, node)).await?;
        kubeconfig(&server, &operator(&rights), node, KUBECONFIG).await?;
        let profile = profile.to_owned();
        let cluster = Self { client, namespace, node, member, profile, rights, _tasks: tasks, server };
        cluster.start_operator().await?;
        Ok(cluster)
    }

    /// Joins another node.
    ///
    /// # Errors
    /// A part does not come up.
    pub async fn join<'b>(&self, node: &'b Node) -> Result<Member<'b>> {
        let agent = agent(&self.rights, node);
        Member::join(&self.server, &self.client, node, &self.profile, &agent).await
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

    /// Fails unless every container of a pod of the operator's node was thawed; the reason is in the error.
    ///
    /// # Errors
    /// One started cold.
    pub fn assert_thawed(&self, pod: &Pod) -> Result<()> {
        self.member.assert_thawed(pod)
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

fn operator(rights: &Rights) -> User {
    match rights {
        Rights::Admin => User::admin(),
        Rights::Accounts(_) => User::service_account(SYSTEM, "woodfrog-operator"),
    }
}

fn agent(rights: &Rights, node: &Node) -> User {
    match rights {
        Rights::Admin => User::admin(),
        Rights::Accounts(_) => User::service_account(SYSTEM, "woodfrog-agent").on_node(node.name()),
    }
}
