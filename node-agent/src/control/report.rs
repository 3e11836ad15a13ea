//! What the agent says of an instruction: `status.agent` of its Checkpoint, by server-side apply.

use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Patch, PatchParams};
use kube::{Api, ResourceExt};
use serde_json::json;
use tokio::sync::watch;
use tokio::time::timeout;
use tracing::warn;
use woodfrog_api::{AgentStatus, Checkpoint, names};
use woodfrog_image::Compatibility;

/// The longest silence while there is work.
const HEARTBEAT: Duration = Duration::from_secs(8);
/// The least time between two reports, unless the phase has changed or a push begins.
const PACE: Duration = Duration::from_secs(1);
/// The longest time between two tries.
const MAX_BACKOFF: Duration = Duration::from_secs(30);

/// Publishes `status` whenever it changes, until a final one is in the API server or the object is gone.
pub(super) async fn publish(
    checkpoints: Api<Checkpoint>,
    checkpoint: &Checkpoint,
    mut status: watch::Receiver<AgentStatus>,
) {
    let mut backoff = Duration::from_millis(250);
    loop {
        let now = status.borrow_and_update().clone();
        match apply(&checkpoints, checkpoint, &now).await {
            Ok(()) if now.phase.is_final() => return,
            Ok(()) => {
                backoff = Duration::from_millis(250);
                let urgent = |next: &AgentStatus| next.phase != now.phase || next.pushed != now.pushed;
                if timeout(PACE, status.wait_for(urgent)).await.is_err() {
                    let _ = timeout(HEARTBEAT - PACE, status.changed()).await;
                }
            }
            Err(e) if is_gone(&e) => return,
            Err(e) => {
                warn!(checkpoint = %name(checkpoint), "cannot report: {e}");
                tokio::time::sleep(backoff).await;
                backoff = (backoff * 2).min(MAX_BACKOFF);
            }
        }
    }
}

async fn apply(
    checkpoints: &Api<Checkpoint>,
    checkpoint: &Checkpoint,
    status: &AgentStatus,
) -> kube::Result<()> {
    let status = AgentStatus { heartbeat: Some(Time(Timestamp::now())), ..status.clone() };
    let patch = json!({
        "apiVersion": format!("{}/{}", names::GROUP, names::VERSION),
        "kind": "Checkpoint",
        // The UID makes this fail for another object of the same name.
        "metadata": { "name": checkpoint.name_any(), "uid": checkpoint.uid() },
        "status": { "agent": status },
    });
    let parameters = PatchParams::apply(names::AGENT).force();
    checkpoints.patch_status(&checkpoint.name_any(), &parameters, &Patch::Apply(&patch)).await.map(drop)
}

/// The object was deleted, or one of its name has taken its place.
pub(super) fn is_gone(error: &kube::Error) -> bool {
    match error {
        kube::Error::Api(status) => {
            status.code == 404 || (status.code == 409 && status.message.contains("uid"))
        }
        _ => false,
    }
}

/// Namespace and name, for logs.
pub(super) fn name(checkpoint: &Checkpoint) -> String {
    format!("{}/{}", checkpoint.namespace().unwrap_or_default(), checkpoint.name_any())
}

/// What a node or an image needs, in the API's words.
pub(super) fn compatibility(of: &Compatibility) -> woodfrog_api::Compatibility {
    woodfrog_api::Compatibility {
        architecture: of.architecture.clone(),
        cpu_vendor: of.cpu_vendor.clone(),
        cpu_features: of.cpu_features.clone(),
        xsave_bytes: of.xsave_bytes.into(),
        kernel: of.kernel.clone(),
        criu: of.criu.clone(),
        page_bytes: of.page_bytes.cast_signed(),
        cgroup_version: of.cgroup_version.into(),
    }
}
