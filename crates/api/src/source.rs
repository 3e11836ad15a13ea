//! What a Checkpoint is made of.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::PodSpec;
use kube::KubeSchema;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::Value;

/// The pod that is frozen: exactly one of the fields.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("[has(self.podName), has(self.template), has(self.workloadRef)].filter(given, given).size() == 1")
        .message("name exactly one source: podName (a pod that runs), template (a pod to start), or workloadRef (a Deployment or StatefulSet whose template is taken)"),
    validation = Rule::new("has(self.podName) == has(oldSelf.podName) && has(self.template) == has(oldSelf.template) && has(self.workloadRef) == has(oldSelf.workloadRef)")
        .message("the kind of source cannot be changed: delete the Checkpoint and create it with the other source")
)]
pub struct Source {
    /// A pod of this namespace that runs under Woodfrog (annotation woodfrog.dev/managed: "true"). It is frozen as it is, after
    /// the warm-up, and runs on unless leaveRunning is false. It is frozen once: what replaces the pod is not frozen again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub pod_name: Option<String>,
    /// The template of a pod that is started for the warm-up alone, and deleted when it is frozen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub template: Option<PodTemplate>,
    /// A workload of this namespace whose pod template is taken, as with template. The checkpoint is made anew when an image in
    /// that template changes. The workload itself is left alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workload_ref: Option<WorkloadRef>,
}

/// A pod template, like that of a Deployment.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PodTemplate {
    /// Labels and annotations of the pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metadata: Option<TemplateMetadata>,
    /// The pod's specification, as in every pod (kubectl explain pod.spec).
    // Kept as it came: one Checkpoint with a mistake here must not keep the operator from reading all others.
    #[schemars(schema_with = "pod_spec_schema")]
    pub spec: RawPodSpec,
}

/// The specification of a pod as it came. It is kept as text: as a tree it would take ten times the memory, and there may be
/// thousands.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RawPodSpec(Box<str>);

impl Serialize for RawPodSpec {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let value: Value = serde_json::from_str(&self.0).map_err(serde::ser::Error::custom)?;
        value.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for RawPodSpec {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(Self(Value::deserialize(deserializer)?.to_string().into()))
    }
}

/// Labels and annotations of a pod.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct TemplateMetadata {
    /// Labels of the pod.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Annotations of the pod.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

/// A template that is no pod.
#[derive(Debug, thiserror::Error)]
#[error(
    "spec.source.template.spec is not the specification of a pod: {0}; correct it as in `kubectl explain pod.spec`"
)]
pub struct TemplateError(#[from] serde_json::Error);

impl PodTemplate {
    /// The pod's specification.
    ///
    /// # Errors
    /// It is none, though the API server let it pass.
    pub fn pod_spec(&self) -> Result<PodSpec, TemplateError> {
        let spec: Value = serde_json::from_str(&self.spec.0)?;
        Ok(PodSpec::deserialize(spec)?)
    }
}

/// Names a workload in the Checkpoint's namespace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct WorkloadRef {
    /// The workload's API version.
    #[serde(default = "apps_v1")]
    #[x_kube(validation = Rule::new("self == 'apps/v1'").message("only workloads of apps/v1 can be a source"))]
    #[schemars(length(max = 64))]
    pub api_version: String,
    /// The workload's kind.
    pub kind: WorkloadKind,
    /// The workload's name.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
}

/// Kinds of workloads whose template can be taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[allow(missing_docs, reason = "Kubernetes' own names")]
pub enum WorkloadKind {
    Deployment,
    StatefulSet,
}

fn apps_v1() -> String {
    "apps/v1".to_owned()
}

/// The whole schema of a pod would be ten times as large as ours: what the operator cannot do without is checked here, the
/// rest by the API server when the pod is created.
fn pod_spec_schema(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "object",
        "x-kubernetes-preserve-unknown-fields": true,
        "required": ["containers"],
        "properties": {
            "containers": {
                "description": "The containers of the pod.",
                "type": "array",
                "minItems": 1,
                "maxItems": 32,
                "x-kubernetes-list-type": "map",
                "x-kubernetes-list-map-keys": ["name"],
                "items": {
                    "type": "object",
                    "x-kubernetes-preserve-unknown-fields": true,
                    "required": ["name", "image"],
                    "properties": {
                        "name": {
                            "description": "Name of the container.",
                            "type": "string",
                            "minLength": 1,
                            "maxLength": 63,
                        },
                        "image": {
                            "description": "Image of the container.",
                            "type": "string",
                            "minLength": 1,
                        },
                    },
                },
            },
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_template_with_a_mistake_is_read_and_says_what_is_wrong() {
        let template: PodTemplate = serde_json::from_value(serde_json::json!({
            "spec": {"containers": [{"name": "app", "image": "web", "ports": "8080"}]}
        }))
        .unwrap();
        let error = template.pod_spec().unwrap_err().to_string();
        assert!(error.contains("kubectl explain pod.spec") && error.contains("8080"), "{error}");
    }
}
