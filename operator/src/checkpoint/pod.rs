//! The warm-up pod: how it is made, and what its status says.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{ContainerStatus, Pod};
use kube::api::ObjectMeta;
use kube::{Resource, ResourceExt};
use woodfrog_api::{Checkpoint, CheckpointStatus, names};

use crate::template::Template;

/// Name of the pod of an attempt.
pub fn name(checkpoint: &Checkpoint, attempt: i64) -> String {
    format!("{}-warm-{attempt}", checkpoint.name_any())
}

/// The pod of the attempt that `status` speaks of.
///
/// It has none of the template's labels, so that no Service sends it requests and no workload takes it for its own. It is
/// not restarted: an application that ends during its warm-up has failed it.
pub(super) fn build(checkpoint: &Checkpoint, template: &Template, status: &CheckpointStatus) -> Pod {
    let attempt = status.attempt.unwrap_or_default();
    let labels = [
        (names::CHECKPOINT_LABEL, checkpoint.name_any()),
        (names::ATTEMPT_LABEL, attempt.to_string()),
        (names::REVISION_LABEL, status.revision.clone().unwrap_or_default()),
    ];
    let mut annotations = template.annotations.clone();
    annotations.insert(names::MANAGED_ANNOTATION.into(), "true".into());
    let mut spec = template.spec.clone();
    spec.node_name = None;
    spec.restart_policy = Some("Never".into());
    Pod {
        metadata: ObjectMeta {
            name: Some(name(checkpoint, attempt)),
            namespace: checkpoint.namespace(),
            labels: Some(
                labels.map(|(key, value)| (key.to_owned(), value)).into_iter().collect::<BTreeMap<_, _>>(),
            ),
            annotations: Some(annotations),
            owner_references: Some(checkpoint.controller_owner_ref(&()).into_iter().collect()),
            ..ObjectMeta::default()
        },
        spec: Some(spec),
        status: None,
    }
}

fn phase(pod: &Pod) -> &str {
    pod.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or_default()
}

fn containers(pod: &Pod) -> &[ContainerStatus] {
    pod.status.as_ref().and_then(|status| status.container_statuses.as_deref()).unwrap_or_default()
}

/// Whether its containers have been started.
pub(super) fn runs(pod: &Pod) -> bool {
    phase(pod) == "Running" && pod.spec.as_ref().is_some_and(|spec| spec.node_name.is_some())
}

/// Whether its probes say that it is ready.
pub(super) fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.iter().flat_map(|status| status.conditions.iter().flatten());
    conditions.into_iter().any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

/// Why it has ended, if it has.
pub(super) fn ended(pod: &Pod) -> Option<String> {
    if pod.metadata.deletion_timestamp.is_some() {
        return Some("the pod is being deleted".into());
    }
    if !["Failed", "Succeeded"].contains(&phase(pod)) {
        return None;
    }
    let container = containers(pod).iter().find_map(|container| {
        let ended = container.state.as_ref()?.terminated.as_ref()?;
        let message = ended.message.clone().unwrap_or_default();
        Some(format!("container {} ended with exit code {}: {message}", container.name, ended.exit_code))
    });
    let status = pod.status.as_ref();
    let said = || status.and_then(|s| s.message.clone().or(s.reason.clone())).unwrap_or_default();
    Some(format!("the pod has ended: {}", container.unwrap_or_else(said)))
}

/// What keeps it from running, in its own words.
pub(super) fn what_it_waits_for(pod: &Pod) -> String {
    let waiting = containers(pod).iter().find_map(|container| {
        let waiting = container.state.as_ref()?.waiting.as_ref()?;
        let reason = waiting.reason.clone().unwrap_or_default();
        let message = waiting.message.clone().unwrap_or_default();
        Some(format!("container {}: {reason} {message}", container.name).trim_end().to_owned())
    });
    let conditions = pod.status.iter().flat_map(|status| status.conditions.iter().flatten());
    let unscheduled = || {
        let mut unmet = conditions.filter(|c| c.type_ == "PodScheduled" && c.status == "False");
        unmet.find_map(|condition| condition.message.clone())
    };
    waiting.or_else(unscheduled).unwrap_or_else(|| "it waits for a node".into())
}
