//! What can be seen of a Checkpoint: from the stores, and of a pod that is not ours by a request.

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::jiff::Timestamp;
use kube::runtime::reflector::ObjectRef;
use kube::{Api, ResourceExt};
use woodfrog_api::{Checkpoint, Phase, names};

use super::plan::{Attempt, Seen};
use super::{CheckpointError, failed, pod};
use crate::Context;
use crate::template::{SourceError, Template};

/// Looks.
///
/// # Errors
/// The API server does not answer.
pub(super) async fn observe(
    context: &Context,
    checkpoint: &Checkpoint,
    template: Result<Option<Template>, SourceError>,
    attempt: &Attempt,
) -> Result<Seen, CheckpointError> {
    let namespace = checkpoint.namespace().unwrap_or_default();
    let due = pod::name(checkpoint, attempt.number);
    let name = checkpoint.name_any();
    let mut leftovers: Vec<Pod> = context
        .stores
        .pods_of(checkpoint.uid().as_deref().unwrap_or_default())
        .iter()
        .filter(|pod| pod.labels().get(names::CHECKPOINT_LABEL) == Some(&name))
        .filter(|pod| pod.name_any() != due && pod.metadata.deletion_timestamp.is_none())
        .map(|pod| Pod::clone(pod))
        .collect();
    leftovers.sort_by_key(ResourceExt::name_any);
    let pod = match &checkpoint.spec.source.pod_name {
        Some(_) if is_settled(checkpoint, attempt) => None,
        Some(named) => {
            let pods: Api<Pod> = context.api(&namespace);
            pods.get_opt(named).await.map_err(failed("look at the pod of spec.source.podName"))?
        }
        None => context.stores.pods.get(&ObjectRef::new(&due).within(&namespace)).map(|pod| Pod::clone(&pod)),
    };
    Ok(Seen { template, pod, leftovers, rival: rival(context, checkpoint), now: Timestamp::now() })
}

/// Whether a named pod need not be looked at any more.
fn is_settled(checkpoint: &Checkpoint, attempt: &Attempt) -> bool {
    checkpoint.status.as_ref().is_some_and(|status| {
        let over = match status.phase {
            Some(Phase::Ready) => checkpoint.spec.leaves_running(),
            Some(Phase::Failed) => true,
            _ => false,
        };
        over && status.revision.as_ref() == Some(&attempt.revision)
    })
}

/// An older Checkpoint, of any namespace, that pushes to the same reference.
fn rival(context: &Context, checkpoint: &Checkpoint) -> Option<String> {
    let age = |checkpoint: &Checkpoint| {
        (checkpoint.metadata.creation_timestamp.as_ref().map(|time| time.0), checkpoint.uid())
    };
    let older = |other: &&std::sync::Arc<Checkpoint>| {
        other.metadata.deletion_timestamp.is_none() && age(other) < age(checkpoint)
    };
    let same = context.stores.checkpoints_of_image(checkpoint.spec.image.as_deref()?);
    let oldest = same.iter().filter(older).min_by_key(|other| age(other))?;
    Some(format!("{}/{}", oldest.namespace().unwrap_or_default(), oldest.name_any()))
}
