//! The labels by which this node says what it can thaw.

use std::sync::OnceLock;
use std::time::Duration;

use k8s_openapi::api::core::v1::Node;
use kube::Api;
use kube::api::{Patch, PatchParams};
use serde_json::json;
use tracing::{info, warn};
use woodfrog_api::{names, node_labels};

use super::Context;
use super::report::compatibility;

const RETRY: Duration = Duration::from_secs(10);

/// Puts the labels on the node, and tries again until that has worked. What an earlier release or kernel put there and
/// is no more goes away: server-side apply removes what its manager no longer names. `uid` becomes that of the node's object.
pub(super) async fn keep_labelled(context: &Context, uid: &OnceLock<String>) {
    let labels = node_labels::labels(&compatibility(&context.engine.node));
    let nodes: Api<Node> = Api::all(context.client.clone());
    let patch = json!({
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": { "name": context.node, "labels": labels },
    });
    let parameters = PatchParams::apply(names::AGENT).force();
    loop {
        match nodes.patch(&context.node, &parameters, &Patch::Apply(&patch)).await {
            Ok(node) => {
                node.metadata.uid.into_iter().for_each(|it| drop(uid.set(it)));
                info!(node = %context.node, labels = labels.len(), "labelled");
                return;
            }
            Err(e) => warn!(node = %context.node, "cannot label the node: {e}"),
        }
        tokio::time::sleep(RETRY).await;
    }
}
