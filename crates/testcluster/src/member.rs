//! A node of the cluster: registered, with agent and shim on it and a kubelet for its pods.

use std::net::SocketAddr;

use anyhow::{Context as _, Result, ensure};
use base64::Engine as _;
use k8s_openapi::api::core::v1::{Node as NodeObject, Pod};
use kube::api::{Api, Patch, PatchParams, PostParams};
use kube::config::Kubeconfig;
use kube::{Client, ResourceExt as _};
use serde_json::{Value, json};
use tokio::task::JoinSet;
use woodfrog_testapi::{ApiServer, User};
use woodfrog_testkubelet::{Kubelet, Stack};
use woodfrog_testnode::Node;

use crate::{forward, kubelet, probe};

/// The agent's kubeconfig in the node.
const KUBECONFIG: &str = "/run/woodfrog-agent-kubeconfig.json";

/// Where an agent serves metrics, on its node's loopback.
pub const METRICS_OF_AGENT: &str = "127.0.0.1:8082";

/// A node in a cluster. Its kubelet ends with this.
pub struct Member<'a> {
    /// The node.
    pub node: &'a Node,
    /// Agent and shim on it.
    pub stack: Stack<'a>,
    _tasks: JoinSet<()>,
}

impl<'a> Member<'a> {
    /// Joins a node, with the programs in `/opt/woodfrog/PROFILE` of it and an agent with the rights of `agent`.
    pub(crate) async fn join(
        server: &ApiServer,
        client: &Client,
        node: &'a Node,
        profile: &str,
        agent: &User,
    ) -> Result<Self> {
        register(client, node).await?;
        probe::prepare(node)?;
        let mut tasks = JoinSet::new();
        let address = kubeconfig(server, agent, node, KUBECONFIG).await?;
        tasks.spawn(forward::forward(node, address)?);
        let arguments =
            ["--node-name", node.name(), "--kubeconfig", KUBECONFIG, "--metrics", METRICS_OF_AGENT];
        let stack = Stack::start_with(node, profile, &arguments)?;
        let cri = Kubelet::connect(node, &stack.cri_socket()).await?;
        tasks.spawn(kubelet::run(kubelet::Context { client: client.clone(), node: node.clone(), cri }));
        Ok(Self { node, stack, _tasks: tasks })
    }

    /// Fails unless every container of a pod of this node was thawed; the reason is in the error.
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

/// Writes a user's kubeconfig, which needs no other file, into a node, and says where its server is.
pub(crate) async fn kubeconfig(
    server: &ApiServer,
    user: &User,
    node: &Node,
    path: &'static str,
) -> Result<SocketAddr> {
    let mut config = Kubeconfig::read_from(server.kubeconfig(user).await?)?;
    let cluster =
        config.clusters.first_mut().and_then(|named| named.cluster.as_mut()).context("no cluster")?;
    if let Some(file) = cluster.certificate_authority.take() {
        let certificate = std::fs::read(&file).context(file)?;
        let encoded = base64::prelude::BASE64_STANDARD.encode(certificate);
        cluster.certificate_authority_data = Some(encoded);
    }
    let address = cluster.server.as_deref().unwrap_or_default();
    let address = address.trim_start_matches("https://").parse().with_context(|| address.to_owned())?;
    std::fs::write(node.path(path), serde_json::to_vec(&config)?).context(path)?;
    Ok(address)
}
