//! How far a Checkpoint is: the operator's part, and within it the agent's.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::pruning::{Pruned, Pruning, RetentionStatus};
use super::{Connections, Memory};
use crate::{Compatibility, Hooks, LocalReference, WarmUp};

/// What has become of a Checkpoint. Everything but agent and pruned is the operator's.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct CheckpointStatus {
    /// Pending: the pod is being started. WarmingUp. Freezing. Pushing. Ready: the images are in the registry. Failed: it is not
    /// tried again before the specification changes; the condition Ready says why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub phase: Option<Phase>,
    /// When the phase began.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub phase_since: Option<Time>,
    /// Ready, WarmedUp, Frozen, Pushed and Retained, with a reason and a sentence each.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".to_owned()]))]
    #[schemars(length(max = 16))]
    pub conditions: Vec<Condition>,
    /// The generation of the specification that this status speaks of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// A hash of what was or is being frozen: the source and how it is warmed up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revision: Option<String>,
    /// The number of the current or last attempt, from 1; it never goes back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attempt: Option<i64>,
    /// How many attempts at this revision have failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failures: Option<i32>,
    /// The node of the current or last attempt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// The pod of the current or last attempt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod_name: Option<String>,
    /// The UID of that pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod_uid: Option<String>,
    /// The images of the last attempt that came to its end, one a container.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".to_owned()]))]
    #[schemars(length(max = 32))]
    pub containers: Vec<FrozenContainer>,
    /// Older images that are still in the registry, the newest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Atomic)]
    #[schemars(length(max = 4096))]
    pub history: Vec<PastImage>,
    /// The same numbers in words, for kubectl get.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub summary: Option<Summary>,
    /// What the agent of the node is to freeze now. It may be repeated without harm; where it is missing, nothing is to be done and
    /// what was begun is given up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(merge_strategy = StructMerge::Atomic)]
    pub instruction: Option<Instruction>,
    /// What the agent of the node says of the instruction. Only the agent writes it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent: Option<AgentStatus>,
    /// How the deletion of images that are not kept goes on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retention: Option<RetentionStatus>,
    /// Images that an agent is to delete now. It may be repeated without harm; where it is missing, nothing is to be deleted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(merge_strategy = StructMerge::Atomic)]
    pub pruning: Option<Pruning>,
    /// What that agent says of it. Only the agent writes it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pruned: Option<Pruned>,
}

/// How far a Checkpoint is, in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[allow(missing_docs, reason = "the field of this type says what its values mean")]
pub enum Phase {
    Pending,
    WarmingUp,
    Freezing,
    Pushing,
    Ready,
    Failed,
}

/// An image that was made of a container.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct FrozenContainer {
    /// The container's name in its pod.
    pub name: String,
    /// Reference of its image, with the tag.
    pub image: String,
    /// Digest of its manifest.
    pub digest: String,
    /// Bytes of the layers that the freeze added, uncompressed.
    pub layer_bytes: i64,
    /// The same, compressed.
    pub compressed_bytes: i64,
    /// Bytes of memory in it, uncompressed.
    pub memory_bytes: i64,
    /// Bytes of that which the image says are wanted first. Not there if it does not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub working_set_bytes: Option<i64>,
    /// How long the application stood still, in milliseconds.
    pub freeze_ms: i64,
    /// When it was frozen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub frozen_at: Option<Time>,
    /// What a node must be to thaw it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub compatibility: Option<Compatibility>,
    /// What a reader should know, such as files that changed while they were read.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "atomic"))]
    pub warnings: Vec<String>,
}

/// An image of an earlier attempt.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PastImage {
    /// The container's name in its pod.
    pub name: String,
    /// Reference of the image, with the tag that it had.
    pub image: String,
    /// Digest of its manifest.
    pub digest: String,
    /// Bytes of the layers that the freeze added, compressed; 0 if not known.
    pub compressed_bytes: i64,
    /// When it was frozen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub frozen_at: Option<Time>,
    /// Whether it was pushed by an attempt that did not finish: then it is of no use, and is deleted whatever spec.retention says.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub unfinished: bool,
}

/// Numbers in words.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Summary {
    /// What the freeze added to all images, compressed: "184 MiB".
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<String>,
    /// The longest standstill: "312 ms".
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub freeze: Option<String>,
    /// How far the phase is: "37% (81 MiB/s)".
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub progress: Option<String>,
}

/// What an agent is to do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Instruction {
    /// The number of the attempt. The same number is the same work, however often it is read.
    pub attempt: i64,
    /// The node whose agent is meant.
    pub node: String,
    /// The pod, in the Checkpoint's namespace.
    pub pod_name: String,
    /// Its UID. The agent refuses a pod of the same name with another one.
    pub pod_uid: String,
    /// The containers, and the image that each becomes.
    #[schemars(length(max = 32))]
    pub containers: Vec<Target>,
    /// How the pod is warmed up first. Readiness is the operator's to wait for.
    #[serde(default)]
    pub warm_up: WarmUp,
    /// What becomes of established network connections.
    #[serde(default)]
    pub connections: Connections,
    /// How applications get their memory when they are thawed.
    #[serde(default)]
    pub memory: Memory,
    /// Whether the images are to say which of their memory is wanted first.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub record_working_set: bool,
    /// Whether the application runs on; otherwise it ends when its image is safe.
    #[serde(default)]
    pub leave_running: bool,
    /// What is done in every container around the freeze and after each thaw.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hooks: Option<Hooks>,
    /// The secret with the credentials for the push, in the Checkpoint's namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub push_secret_ref: Option<LocalReference>,
    /// Registries (HOST:PORT) that speak plain HTTP; those on loopback addresses always may.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub plain_http: Vec<String>,
}

/// A container that is frozen.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Target {
    /// The container's name in its pod.
    pub name: String,
    /// Reference of its image, with the tag.
    pub image: String,
}

/// What an agent says of an instruction.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct AgentStatus {
    /// The node of the agent.
    pub node: String,
    /// The attempt that this speaks of.
    pub attempt: i64,
    /// The UID of the pod that this speaks of.
    pub pod_uid: String,
    /// Preparing: looking for the containers. WarmingUp: requests, commands, the application's word, rest. Freezing. Pushing. Done. Failed: the operator may try
    /// again. Refused: the pod is gone, has moved or was replaced, or is not under Woodfrog.
    pub phase: AgentPhase,
    /// Of a failure: one of a bounded set of words, such as Preflight, Hook, Dump, Registry.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// A sentence.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// Of a failure: every reason, a line each.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Atomic)]
    #[schemars(length(max = 64))]
    pub details: Vec<String>,
    /// Bytes done in this phase, of all containers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes_done: Option<i64>,
    /// Bytes to do in this phase, as far as known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes_total: Option<i64>,
    /// Bytes a second, over the last seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes_per_second: Option<i64>,
    /// When the agent last wrote this. While it works it does so at least every 10 seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub heartbeat: Option<Time>,
    /// The images, as far as they are in the registry.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".to_owned()]))]
    #[schemars(length(max = 32))]
    pub containers: Vec<FrozenContainer>,
    /// Images of this attempt whose push has begun. One that is not among the containers in the end is of no use.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Atomic)]
    #[schemars(length(max = 4096))]
    pub pushed: Vec<PushedImage>,
}

/// An image whose push has begun.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PushedImage {
    /// The container's name in its pod.
    pub name: String,
    /// Reference of the image, with the tag.
    pub image: String,
    /// Digest of its manifest.
    pub digest: String,
}

/// How far an agent is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[allow(missing_docs, reason = "the field of this type says what its values mean")]
pub enum AgentPhase {
    Preparing,
    WarmingUp,
    Freezing,
    Pushing,
    Done,
    Failed,
    Refused,
}

impl AgentPhase {
    /// Whether the agent does no more for this attempt.
    #[must_use]
    pub fn is_final(self) -> bool {
        matches!(self, Self::Done | Self::Failed | Self::Refused)
    }
}
