//! The pods that a pool is to have: pure.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{
    Affinity, NodeAffinity, NodeSelector, NodeSelectorRequirement, NodeSelectorTerm, Pod,
};
use kube::api::ObjectMeta;
use kube::{Resource, ResourceExt};
use woodfrog_api::conditions::PoolReason;
use woodfrog_api::{
    Checkpoint, FrozenContainer, OnIdle, Phase, Standby, WarmPool, WarmPoolSpec, names, node_labels,
};

use super::requests;
use crate::revision;
use crate::template::{SourceError, Template};

/// What new pods are.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Desired {
    /// Tells pods made from other images or another template.
    pub(super) revision: String,
    /// The images of the frozen containers, by digest.
    pub(super) images: Vec<String>,
    pod: Pod,
}

/// Why there can be no new pods.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Missing {
    pub(super) reason: PoolReason,
    /// A sentence.
    pub(super) message: String,
}

impl Desired {
    /// The pods of a pool whose Checkpoint and whose Checkpoint's template are these.
    ///
    /// # Errors
    /// There is no Checkpoint, it has no images, or no template that they fit into.
    pub(super) fn of(
        pool: &WarmPool,
        checkpoint: Option<&Checkpoint>,
        template: Result<Option<Template>, SourceError>,
    ) -> Result<Self, Missing> {
        let name = &pool.spec.checkpoint_ref.name;
        let missing = |reason, message| Missing { reason, message };
        let checkpoint = checkpoint.ok_or_else(|| {
            missing(
                PoolReason::CheckpointNotFound,
                format!("there is no Checkpoint {name} in this namespace: create it, pods are made then"),
            )
        })?;
        let template = template
            .map_err(|e| missing(PoolReason::CheckpointFailed, format!("Checkpoint {name}: {e}")))?
            .ok_or_else(|| {
                missing(
                    PoolReason::CheckpointFailed,
                    format!(
                        "Checkpoint {name} freezes a single pod (spec.source.podName), of which there is no template: \
                         refer to one with spec.source.template or spec.source.workloadRef"
                    ),
                )
            })?;
        let frozen = frozen(checkpoint).ok_or_else(|| no_images(checkpoint))?;
        Self::made(pool, template, frozen).map_err(|container| {
            missing(
                PoolReason::CheckpointPending,
                format!(
                    "the images of Checkpoint {name} are of a container {container}, which its template no longer has: \
                     pods are made when it has new images"
                ),
            )
        })
    }

    fn made(pool: &WarmPool, template: Template, frozen: &[FrozenContainer]) -> Result<Self, String> {
        let Template { labels, annotations, mut spec } = template;
        let mut images = Vec::new();
        for container in frozen {
            let place = spec.containers.iter_mut().find(|place| place.name == container.name);
            let image = by_digest(&container.image, &container.digest);
            place.ok_or_else(|| container.name.clone())?.image = Some(image.clone());
            images.push(image);
        }
        let beyond = pool.spec.template.clone().unwrap_or_default();
        let mut labels = over(labels, beyond.labels);
        let mut annotations = over(annotations, beyond.annotations);
        if let Some(memory) = pool.spec.memory {
            annotations.insert(names::MEMORY_ANNOTATION.to_owned(), format!("{memory:?}"));
        }
        annotations.extend(standby(&pool.spec));
        // A pod of a pool goes to any node that can thaw it, and is there to stay.
        spec.node_name = None;
        spec.restart_policy.get_or_insert_with(|| "Always".to_owned());
        let revision = revision::of(&(&labels, &annotations, &spec));

        labels.insert(names::POOL_LABEL.to_owned(), pool.name_any());
        labels.insert(names::REVISION_LABEL.to_owned(), revision.clone());
        annotations.insert(names::MANAGED_ANNOTATION.to_owned(), "true".to_owned());
        if pool.spec.standby == Standby::Dormant {
            // Of the template, whose part in the revision is enough.
            let requests = requests::annotation(&spec);
            annotations.extend(requests.map(|json| (names::REQUESTS_ANNOTATION.to_owned(), json)));
        }
        require(spec.affinity.get_or_insert_default(), &requirements(frozen));
        let metadata = ObjectMeta {
            namespace: pool.namespace(),
            labels: Some(labels),
            annotations: Some(annotations),
            owner_references: Some(pool.controller_owner_ref(&()).into_iter().collect()),
            ..ObjectMeta::default()
        };
        Ok(Self { revision, images, pod: Pod { metadata, spec: Some(spec), status: None } })
    }

    /// Name of the pod with this number.
    pub(super) fn name(&self, pool: &WarmPool, number: usize) -> String {
        format!("{}-{}-{number}", pool.name_any(), self.revision)
    }

    /// The pod of this name.
    pub(super) fn pod(&self, name: String) -> Pod {
        let mut pod = self.pod.clone();
        pod.metadata.name = Some(name);
        pod
    }
}

/// The containers of the last attempt that came to its end.
fn frozen(checkpoint: &Checkpoint) -> Option<&[FrozenContainer]> {
    let containers = checkpoint.status.as_ref()?.containers.as_slice();
    (!containers.is_empty()).then_some(containers)
}

fn no_images(checkpoint: &Checkpoint) -> Missing {
    let name = checkpoint.name_any();
    let status = checkpoint.status.clone().unwrap_or_default();
    if status.phase == Some(Phase::Failed) {
        let ready = status.conditions.iter().find(|condition| condition.type_ == "Ready");
        let why = ready.map_or(String::new(), |condition| format!(": {}", condition.message));
        let message = format!("Checkpoint {name} has failed and has no images{why}");
        return Missing { reason: PoolReason::CheckpointFailed, message };
    }
    let message = format!("Checkpoint {name} has no images yet: pods are made when it has");
    Missing { reason: PoolReason::CheckpointPending, message }
}

/// A reference with a digest instead of its tag.
fn by_digest(image: &str, digest: &str) -> String {
    let image = image.split('@').next().unwrap_or_default();
    let name = image.rfind('/').map_or(0, |slash| slash + 1);
    let end = image[name..].find(':').map_or(image.len(), |colon| name + colon);
    format!("{}@{digest}", &image[..end])
}

/// How the pods stand by, in annotations that their node's agent reads when it makes a container. Nothing for pods that are awake.
fn standby(spec: &WarmPoolSpec) -> impl Iterator<Item = (String, String)> {
    let sleeps = spec.standby != Standby::Awake;
    let said = [
        (names::STANDBY_ANNOTATION, Some(format!("{:?}", spec.standby))),
        (names::IDLE_TIMEOUT_ANNOTATION, spec.idle_timeout.map(|time| time.to_string())),
        (names::MIN_AWAKE_TIME_ANNOTATION, spec.min_awake_time.map(|time| time.to_string())),
        (names::ON_IDLE_ANNOTATION, (spec.on_idle == OnIdle::Save).then(|| format!("{:?}", spec.on_idle))),
    ];
    said.into_iter().filter(move |_| sleeps).filter_map(|(key, value)| Some((key.to_owned(), value?)))
}

/// What people wrote, the latter over the former, without what only Woodfrog sets.
fn over(below: BTreeMap<String, String>, above: BTreeMap<String, String>) -> BTreeMap<String, String> {
    below.into_iter().chain(above).filter(|(key, _)| !key.starts_with(names::PREFIX)).collect()
}

/// What all containers require of a node, each thing once.
fn requirements(frozen: &[FrozenContainer]) -> Vec<NodeSelectorRequirement> {
    let mut all = Vec::new();
    for one in frozen.iter().filter_map(|container| container.compatibility.as_ref()) {
        for requirement in node_labels::requirements(one) {
            if !all.contains(&requirement) {
                all.push(requirement);
            }
        }
    }
    all
}

/// Of the terms one must hold, of a term's expressions all: so each term gets them.
fn require(affinity: &mut Affinity, requirements: &[NodeSelectorRequirement]) {
    if requirements.is_empty() {
        return;
    }
    let node: &mut NodeAffinity = affinity.node_affinity.get_or_insert_default();
    let selector: &mut NodeSelector =
        node.required_during_scheduling_ignored_during_execution.get_or_insert_default();
    if selector.node_selector_terms.is_empty() {
        selector.node_selector_terms.push(NodeSelectorTerm::default());
    } else {
        // A term without a word selects no node; with ours it would select some.
        let says = |term: &NodeSelectorTerm| {
            term.match_expressions.as_ref().is_some_and(|some| !some.is_empty())
                || term.match_fields.as_ref().is_some_and(|some| !some.is_empty())
        };
        if selector.node_selector_terms.iter().any(says) {
            selector.node_selector_terms.retain(says);
        } else {
            return;
        }
    }
    for term in &mut selector.node_selector_terms {
        term.match_expressions.get_or_insert_default().extend_from_slice(requirements);
    }
}
