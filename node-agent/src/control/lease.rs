//! The Lease by which this agent says that it is there, as kubelets do for their nodes: pods that nobody can wake would not be
//! noticed otherwise.

use std::sync::OnceLock;
use std::time::Duration;

use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, Patch, PatchParams, PostParams};
use kube::{Client, Resource};
use serde_json::{Value, json};
use tokio::time::{sleep, timeout};
use tracing::{debug, warn};
use woodfrog_api::names;

use super::Context;

/// How long one renewal is good for. A kubelet's is, too.
const TERM: Duration = Duration::from_secs(40);
/// Between two renewals.
const RENEW: Duration = Duration::from_secs(10);
/// After one that failed.
const RETRY: Duration = Duration::from_secs(2);

/// Renews the lease in `namespace` until the process ends. `uid`: that of this node's object, with which the lease goes, once it is known.
pub(super) async fn keep(context: &Context, namespace: &str, uid: &OnceLock<String>) {
    loop {
        let lease = lease(&context.node, uid.get().map(String::as_str));
        let wait = match timeout(RENEW, renew(&context.client, namespace, &lease)).await {
            Ok(Ok(())) => RENEW,
            Ok(Err(e)) => {
                warn!(%namespace, "cannot renew the lease of this agent: {e}");
                RETRY
            }
            Err(_) => {
                warn!(%namespace, "the API server does not answer when the lease of this agent is renewed");
                RETRY
            }
        };
        sleep(wait).await;
    }
}

async fn renew(client: &Client, namespace: &str, lease: &Value) -> kube::Result<()> {
    let leases: Api<Lease> = Api::namespaced(client.clone(), namespace);
    let name = lease["metadata"]["name"].as_str().unwrap_or_default();
    // An agent may not read leases, and need not: nobody else writes this one.
    match leases.patch(name, &PatchParams::default(), &Patch::Merge(lease)).await {
        Err(kube::Error::Api(status)) if status.is_not_found() => {
            debug!(name, "makes its lease");
            let lease = serde_json::from_value(lease.clone()).map_err(kube::Error::SerdeError)?;
            leases.create(&PostParams::default(), &lease).await.map(drop)
        }
        renewed => renewed.map(drop),
    }
}

fn lease(node: &str, uid: Option<&str>) -> Value {
    let mut metadata = json!({ "name": names::agent_lease(node), "labels": { (names::NODE_LABEL): node } });
    if let Some(uid) = uid {
        let (version, kind) = (Node::api_version(&()), Node::kind(&()));
        metadata["ownerReferences"] =
            json!([{ "apiVersion": version, "kind": kind, "name": node, "uid": uid }]);
    }
    json!({
        "metadata": metadata,
        "spec": {
            "holderIdentity": node,
            "leaseDurationSeconds": TERM.as_secs(),
            "renewTime": MicroTime(Timestamp::now()),
        },
    })
}
