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
                news(&now, &mut status).await;
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

/// Waits until there is something new to be said, or the same has to be said again.
async fn news(said: &AgentStatus, status: &mut watch::Receiver<AgentStatus>) {
    let urgent = |now: &AgentStatus| now.phase != said.phase || now.pushed != said.pushed;
    if timeout(PACE, status.wait_for(urgent)).await.is_err() {
        let _ = timeout(HEARTBEAT - PACE, status.wait_for(|now| now != said)).await;
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

#[cfg(test)]
mod tests {
    use serde_json::json;
    use tokio::time::Instant;
    use woodfrog_api::{AgentPhase, PushedImage};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn phases_and_pushes_are_told_at_once_and_the_rest_at_a_pace() {
        let said = json!({ "node": "node-1", "attempt": 1, "podUid": "p", "phase": "Pushing" });
        let said: AgentStatus = serde_json::from_value(said).unwrap();
        let image = json!({ "name": "app", "image": "r.example/web:warm", "digest": "sha256:a" });
        let image: PushedImage = serde_json::from_value(image).unwrap();
        let wait = async |change: &dyn Fn(&mut AgentStatus)| {
            let (sender, mut receiver) = watch::channel(said.clone());
            sender.send_modify(change);
            let began = Instant::now();
            news(&said, &mut receiver).await;
            began.elapsed().as_secs()
        };
        assert_eq!(wait(&|status| status.phase = AgentPhase::Done).await, 0);
        assert_eq!(wait(&|status| status.pushed = vec![image.clone()]).await, 0);
        assert_eq!(wait(&|status| status.bytes_done = Some(1)).await, 1);

        let (_sender, mut receiver) = watch::channel(said.clone());
        let began = Instant::now();
        news(&said, &mut receiver).await;
        assert_eq!(began.elapsed(), HEARTBEAT);
    }
}
