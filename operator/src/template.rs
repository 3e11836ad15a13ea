//! The pod that a Checkpoint's source describes.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{PodSpec, PodTemplateSpec};
use kube::ResourceExt;
use kube::runtime::reflector::ObjectRef;
use serde::Serialize;
use woodfrog_api::conditions::CheckpointReason;
use woodfrog_api::{Checkpoint, WorkloadKind, WorkloadRef};

use crate::stores::Stores;

/// A pod to be made: what people have written, before Woodfrog adds to it.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Template {
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Annotations.
    pub annotations: BTreeMap<String, String>,
    /// Everything else.
    pub spec: PodSpec,
}

/// Why a source gives no template.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct SourceError {
    /// The condition's reason.
    pub reason: CheckpointReason,
    /// A sentence.
    pub message: String,
}

impl Template {
    /// The template of a Checkpoint whose source is a template or a workload; none if it is a pod.
    ///
    /// # Errors
    /// The workload does not exist, or the template is not one of a pod.
    pub fn of(checkpoint: &Checkpoint, stores: &Stores) -> Result<Option<Self>, SourceError> {
        let source = &checkpoint.spec.source;
        if let Some(template) = &source.template {
            let spec = template.pod_spec().map_err(|e| SourceError {
                reason: CheckpointReason::InvalidTemplate,
                message: e.to_string(),
            })?;
            let metadata = template.metadata.clone().unwrap_or_default();
            return Ok(Some(Self { labels: metadata.labels, annotations: metadata.annotations, spec }));
        }
        let Some(reference) = &source.workload_ref else { return Ok(None) };
        let namespace = checkpoint.namespace().unwrap_or_default();
        let found = workload(reference, &namespace, stores).ok_or_else(|| SourceError {
            reason: CheckpointReason::SourceNotFound,
            message: format!(
                "there is no {:?} {namespace}/{}: create it, or name another one in spec.source.workloadRef",
                reference.kind, reference.name
            ),
        })?;
        let metadata = found.metadata.unwrap_or_default();
        Ok(Some(Self {
            labels: metadata.labels.unwrap_or_default(),
            annotations: metadata.annotations.unwrap_or_default(),
            spec: found.spec.unwrap_or_default(),
        }))
    }
}

fn workload(reference: &WorkloadRef, namespace: &str, stores: &Stores) -> Option<PodTemplateSpec> {
    match reference.kind {
        WorkloadKind::Deployment => {
            let found = stores.deployments.get(&ObjectRef::new(&reference.name).within(namespace))?;
            Some(found.spec.as_ref()?.template.clone())
        }
        WorkloadKind::StatefulSet => {
            let found = stores.stateful_sets.get(&ObjectRef::new(&reference.name).within(namespace))?;
            Some(found.spec.as_ref()?.template.clone())
        }
    }
}
