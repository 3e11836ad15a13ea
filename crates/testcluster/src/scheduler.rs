//! Binds pods to nodes: nodeSelector and required node affinity are obeyed, the node with the fewest pods is taken, resources are
//! not counted.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::pin::pin;

use futures::{FutureExt as _, StreamExt as _, stream};
use k8s_openapi::api::core::v1::{Binding, Node, NodeSelectorTerm, ObjectReference, Pod, PodSpec};
use kube::api::{Api, ObjectMeta, Patch, PatchParams, PostParams};
use kube::runtime::{WatchStreamExt as _, reflector, watcher};
use kube::{Client, ResourceExt as _};
use serde_json::json;
use woodfrog_api::node_labels;

use crate::status;

/// What kube-scheduler says where no node's labels match.
const NO_MATCH: &str = "node(s) didn't match Pod's node affinity/selector";

/// Schedules pods for as long as it is polled. `has_bindings`: whether the server has `pods/binding`.
pub(crate) async fn run(client: Client, has_bindings: bool) {
    let (pods, pod_writer) = reflector::store::<Pod>();
    let (nodes, node_writer) = reflector::store::<Node>();
    let watched_pods =
        watcher(Api::all(client.clone()), watcher::Config::default()).default_backoff().reflect(pod_writer);
    let watched_nodes =
        watcher(Api::all(client.clone()), watcher::Config::default()).default_backoff().reflect(node_writer);
    let mut changes = pin!(stream::select(watched_pods.map(drop), watched_nodes.map(drop)));
    // What the store does not know of yet must not be done twice.
    let mut bound: HashMap<String, String> = HashMap::new();
    while changes.next().await.is_some() {
        // What else has come already is looked at together with it.
        while changes.next().now_or_never().flatten().is_some() {}
        for pod in pods.state() {
            let Some(uid) = pod.uid() else { continue };
            let spec = pod.spec.clone().unwrap_or_default();
            if spec.node_name.is_some()
                || pod.metadata.deletion_timestamp.is_some()
                || bound.contains_key(&uid)
            {
                continue;
            }
            let living: HashSet<String> = pods.state().iter().filter_map(|pod| pod.uid()).collect();
            bound.retain(|uid, _| living.contains(uid));
            let load = |node: &Node| bound.values().filter(|name| **name == node.name_any()).count();
            let nodes_that_fit = nodes.state().into_iter().filter(|node| is_ready(node) && fits(&spec, node));
            let found = nodes_that_fit.min_by_key(|node| (load(node), node.name_any()));
            let result = match found {
                Some(node) => bind(&client, &pod, &node.name_any(), has_bindings).await.map(|()| {
                    bound.insert(uid, node.name_any());
                }),
                None => refuse(&client, &pod, nodes.len()).await,
            };
            if let Err(e) = result {
                eprintln!("scheduler: {}: {e}", pod.name_any());
            }
        }
    }
}

async fn bind(client: &Client, pod: &Pod, node: &str, has_bindings: bool) -> kube::Result<()> {
    let namespace = pod.namespace().unwrap_or_default();
    let pods = Api::<Pod>::namespaced(client.clone(), &namespace);
    if has_bindings {
        let binding = Binding {
            metadata: ObjectMeta { name: Some(pod.name_any()), uid: pod.uid(), ..ObjectMeta::default() },
            target: ObjectReference {
                kind: Some("Node".to_owned()),
                name: Some(node.to_owned()),
                ..ObjectReference::default()
            },
        };
        let _: serde_json::Value =
            pods.create_subresource("binding", &pod.name_any(), &PostParams::default(), &binding).await?;
        return Ok(());
    }
    let patch = json!({ "metadata": { "uid": pod.uid() }, "spec": { "nodeName": node } });
    pods.patch(&pod.name_any(), &PatchParams::default(), &Patch::Merge(patch)).await.map(drop)
}

/// Says once, in the pod's conditions, that there is no node for it.
async fn refuse(client: &Client, pod: &Pod, nodes: usize) -> kube::Result<()> {
    let message = format!("0/{nodes} nodes are available: {nodes} {NO_MATCH}.");
    let before = pod.status.as_ref().and_then(|status| status.conditions.clone()).unwrap_or_default();
    if before.iter().any(|c| c.type_ == "PodScheduled" && c.message.as_ref() == Some(&message)) {
        return Ok(());
    }
    let mut condition = status::condition("PodScheduled", false, &before);
    (condition.reason, condition.message) = (Some("Unschedulable".to_owned()), Some(message));
    let patch = json!({ "status": { "conditions": [condition] } });
    let pods = Api::<Pod>::namespaced(client.clone(), &pod.namespace().unwrap_or_default());
    pods.patch_status(&pod.name_any(), &PatchParams::default(), &Patch::Merge(patch)).await.map(drop)
}

fn is_ready(node: &Node) -> bool {
    let conditions = node.status.as_ref().and_then(|status| status.conditions.as_ref());
    conditions.is_some_and(|all| all.iter().any(|c| c.type_ == "Ready" && c.status == "True"))
}

/// Whether a node's labels are what a pod asks for. Terms of an affinity are alternatives.
fn fits(pod: &PodSpec, node: &Node) -> bool {
    let labels: &BTreeMap<_, _> = node.labels();
    let selected = pod.node_selector.iter().flatten().all(|(key, value)| labels.get(key) == Some(value));
    let required = pod
        .affinity
        .as_ref()
        .and_then(|affinity| affinity.node_affinity.as_ref())
        .and_then(|affinity| affinity.required_during_scheduling_ignored_during_execution.as_ref());
    let matches = |term: &NodeSelectorTerm| {
        node_labels::fulfils(labels, term.match_expressions.as_deref().unwrap_or_default())
    };
    selected && required.is_none_or(|selector| selector.node_selector_terms.iter().any(matches))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(labels: serde_json::Value) -> Node {
        serde_json::from_value(json!({ "metadata": { "name": "n", "labels": labels } })).unwrap()
    }

    fn pod(spec: serde_json::Value) -> PodSpec {
        serde_json::from_value(spec).unwrap()
    }

    #[test]
    fn a_pod_fits_where_its_selector_and_one_term_of_its_affinity_match() {
        let expression = |key: &str, value: &str| json!({ "matchExpressions": [{ "key": key, "operator": "In", "values": [value] }] });
        let spec = pod(json!({
            "containers": [],
            "nodeSelector": { "disk": "fast" },
            "affinity": { "nodeAffinity": { "requiredDuringSchedulingIgnoredDuringExecution": {
                "nodeSelectorTerms": [expression("zone", "a"), expression("zone", "b")],
            } } },
        }));
        assert!(fits(&spec, &node(json!({ "disk": "fast", "zone": "a" }))));
        assert!(fits(&spec, &node(json!({ "disk": "fast", "zone": "b" }))));
        assert!(!fits(&spec, &node(json!({ "disk": "fast", "zone": "c" }))));
        assert!(!fits(&spec, &node(json!({ "zone": "a" }))));
        assert!(fits(&pod(json!({ "containers": [] })), &node(json!({}))));
    }
}
