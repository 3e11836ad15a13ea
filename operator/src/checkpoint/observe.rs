//! What can be seen of a Checkpoint: from the stores, and of a pod that is not ours by a request.

use std::collections::HashSet;

use k8s_openapi::api::core::v1::{Node, Pod, PodSpec};
use k8s_openapi::jiff::Timestamp;
use kube::api::ListParams;
use kube::runtime::reflector::ObjectRef;
use kube::{Api, ResourceExt};
use woodfrog_api::{Checkpoint, Phase, names, node_labels};

use super::plan::{Attempt, Seen};
use super::{CheckpointError, failed, pod, retention};
use crate::Context;
use crate::agents::Word;
use crate::stores::node_of;
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
    let agents = &context.stores.agents;
    let agent = pod.as_ref().and_then(node_of).map(|node| agents.look(node));
    Ok(Seen {
        agent_is_silent: matches!(agent, Some(Word::Silent(_))),
        silent_nodes: agents.silent(),
        template,
        pod,
        leftovers,
        rival: rival(context, checkpoint),
        plain_http: context.plain_http.clone(),
        now: Timestamp::now(),
    })
}

/// Digests of images that must stay: those that any Checkpoint has now, that another one keeps, and that a pod, a Deployment,
/// a StatefulSet or a Checkpoint's template names.
pub(super) fn images_in_use(context: &Context, checkpoint: &Checkpoint, now: Timestamp) -> HashSet<String> {
    let stores = &context.stores;
    let mut used = HashSet::new();
    for other in stores.checkpoints.state() {
        if let Some(status) = &other.status {
            used.extend(status.containers.iter().map(|current| current.digest.clone()));
            let surplus = retention::surplus(&other, now);
            let kept = status.history.iter().filter(|past| !surplus.contains(past));
            if other.uid() != checkpoint.uid() {
                used.extend(kept.map(|past| past.digest.clone()));
            }
        }
        let template = other.spec.source.template.as_ref().and_then(|template| template.pod_spec().ok());
        used.extend(template.iter().flat_map(digests));
    }
    used.extend(stores.pods.state().iter().filter_map(|pod| pod.spec.as_ref()).flat_map(digests));
    for deployment in stores.deployments.state() {
        let spec = deployment.spec.as_ref();
        used.extend(spec.and_then(|spec| spec.template.spec.as_ref()).into_iter().flat_map(digests));
    }
    for stateful_set in stores.stateful_sets.state() {
        let spec = stateful_set.spec.as_ref();
        used.extend(spec.and_then(|spec| spec.template.spec.as_ref()).into_iter().flat_map(digests));
    }
    used
}

/// Digests by which a pod names its images.
fn digests(spec: &PodSpec) -> Vec<String> {
    let containers = spec.containers.iter().chain(spec.init_containers.iter().flatten());
    let images = containers.filter_map(|container| container.image.as_deref());
    images.filter_map(|image| Some(image.split_once('@')?.1.to_owned())).collect()
}

/// Nodes that an agent has labelled, some hundred at most.
///
/// # Errors
/// The API server does not answer.
pub(super) async fn nodes_with_an_agent(context: &Context) -> Result<Vec<String>, CheckpointError> {
    let nodes: Api<Node> = Api::all(context.client.clone());
    let labelled = ListParams::default().labels(node_labels::ARCHITECTURE).limit(200);
    let nodes = nodes.list_metadata(&labelled).await.map_err(failed("look for nodes with an agent"))?;
    let stay = nodes.items.into_iter().filter(|node| node.metadata.deletion_timestamp.is_none());
    Ok(stay.map(|node| node.name_any()).collect())
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
