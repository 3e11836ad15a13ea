//! A cluster of two nodes: pods go where their images can be thawed.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::api::core::v1::{Node as NodeObject, Pod};
use k8s_openapi::api::events::v1::Event;
use kube::api::{Api, ListParams, Patch, PatchParams};
use serde_json::json;
use woodfrog_api::{WarmPool, names, node_labels};
use woodfrog_testcluster::{Cluster, Member};
use woodfrog_testnode::{App, Node, Options};
use woodfrog_tests::examples::{self, PATIENCE};
use woodfrog_tests::in_cluster;

const OTHER: &str = "e2e-nodes-b";

const POOL: &str = "
apiVersion: woodfrog.dev/v1alpha1
kind: WarmPool
metadata:
  name: web
spec:
  checkpointRef:
    name: python
  replicas: 4
";

async fn scale(cluster: &Cluster<'_>, replicas: i32) -> Result<()> {
    let patch = Patch::Merge(json!({ "spec": { "replicas": replicas } }));
    cluster.api::<WarmPool>().patch_scale("web", &PatchParams::default(), &patch).await?;
    Ok(())
}

/// The pool's pods by their node, once so many are ready.
async fn pods(cluster: &Cluster<'_>, replicas: i32) -> Result<BTreeMap<String, Vec<Pod>>> {
    let filled =
        |pool: &WarmPool| pool.status.as_ref().is_some_and(|status| status.ready_replicas == replicas);
    cluster.until("web", PATIENCE, filled).await?;
    let mut by_node: BTreeMap<String, Vec<Pod>> = BTreeMap::new();
    for pod in cluster.pods(&format!("{}=web", names::POOL_LABEL)).await? {
        let node =
            pod.spec.as_ref().and_then(|spec| spec.node_name.clone()).context("a pod without a node")?;
        by_node.entry(node).or_default().push(pod);
    }
    Ok(by_node)
}

/// As if a node had an older kernel than the one on which the image was frozen.
async fn becomes_older(cluster: &Cluster<'_>, node: &str) -> Result<()> {
    let patch = Patch::Merge(json!({ "metadata": { "labels": { (node_labels::KERNEL): "2006" } } }));
    Api::<NodeObject>::all(cluster.client.clone()).patch(node, &PatchParams::default(), &patch).await?;
    Ok(())
}

async fn is_labelled(cluster: &Cluster<'_>, node: &str) -> Result<()> {
    let nodes = Api::<NodeObject>::all(cluster.client.clone());
    let deadline = std::time::Instant::now() + PATIENCE;
    let labelled = ListParams::default().labels(node_labels::KERNEL).fields(&format!("metadata.name={node}"));
    while nodes.list(&labelled).await?.items.is_empty() {
        ensure!(std::time::Instant::now() < deadline, "the agent does not label {node}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    Ok(())
}

#[test]
fn e2e_pods_of_a_pool_go_to_all_nodes_that_can_thaw_them_and_to_no_other() {
    in_cluster("e2e-nodes-a", &[App::Cpython], async |cluster| {
        let options = Options { images: vec![App::Cpython], ..Options::default() };
        let node = Node::up(OTHER, &options)?.into_guard();
        let other: Member<'_> = cluster.join(&node).await?;
        is_labelled(cluster, OTHER).await?;
        is_labelled(cluster, cluster.node.name()).await?;

        examples::python(cluster, "shop/nodes").await?;
        cluster.apply(POOL).await?;
        let both = pods(cluster, 4).await?;
        ensure!(
            both.len() == 2 && both.values().all(|pods| pods.len() == 2),
            "not spread: {:?}",
            both.keys()
        );
        for (node, pods) in &both {
            let member = if node == OTHER { &other } else { &cluster.member };
            pods.iter().try_for_each(|pod| member.assert_thawed(pod))?;
        }

        becomes_older(cluster, OTHER).await?;
        scale(cluster, 0).await?;
        cluster.until_no_pods(names::POOL_LABEL, PATIENCE).await?;
        scale(cluster, 3).await?;
        let one = pods(cluster, 3).await?;
        ensure!(one.keys().eq([cluster.node.name()]), "on a node that cannot thaw them: {:?}", one.keys());

        becomes_older(cluster, cluster.node.name()).await?;
        scale(cluster, 4).await?;
        let hindered = |pool: &WarmPool| {
            let mut conditions = pool.status.iter().flat_map(|status| &status.conditions);
            conditions
                .any(|c| c.type_ == "Available" && c.status == "False" && c.reason == "NoCompatibleNode")
        };
        cluster.until("web", PATIENCE, hindered).await?;
        let events = cluster.api::<Event>().list(&ListParams::default()).await?;
        let told = events.iter().any(|event| event.reason.as_deref() == Some("NoCompatibleNode"));
        ensure!(told, "no Event tells that there is no node");
        Ok(())
    });
}
