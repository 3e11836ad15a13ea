//! Labels, annotations, field managers, finalizers: every name in the API that is not a field.

/// The API group.
pub const GROUP: &str = "woodfrog.dev";

/// The API version.
pub const VERSION: &str = "v1alpha1";

/// Annotation of a pod: `"true"` puts its containers under Woodfrog, so that they can be frozen.
pub const MANAGED_ANNOTATION: &str = "woodfrog.dev/managed";

/// Annotation of a pod: how its containers get their memory when they are thawed (`Copied` or `Shared`), whatever their images say.
pub const MEMORY_ANNOTATION: &str = "woodfrog.dev/memory";

/// Annotation of a pod: how its containers from checkpoint images stand by (`Awake`, `Dormant` or `Frozen`).
pub const STANDBY_ANNOTATION: &str = "woodfrog.dev/standby";

/// Annotation of a pod: after how long without anything to do they sleep again.
pub const IDLE_TIMEOUT_ANNOTATION: &str = "woodfrog.dev/idle-timeout";

/// Annotation of a pod: how long they stay awake at least.
pub const MIN_AWAKE_TIME_ANNOTATION: &str = "woodfrog.dev/min-awake-time";

/// Annotation of a pod: what becomes of their memory when they sleep again (`Discard` or `Save`).
pub const ON_IDLE_ANNOTATION: &str = "woodfrog.dev/on-idle";

/// Annotation of a pod: a value that it did not have before wakes it.
pub const WAKE_ANNOTATION: &str = "woodfrog.dev/wake";

/// Annotation of a pod: while it is `"true"` the pod is woken and does not fall asleep.
pub const KEEP_AWAKE_ANNOTATION: &str = "woodfrog.dev/keep-awake";

/// Annotation of a pod, set by its node's agent: a [`crate::SleepReport`] as JSON.
pub const REPORT_ANNOTATION: &str = "woodfrog.dev/sleep";

/// Annotation of a pod of a WarmPool: what its containers request while it is awake, as JSON: container, resource, quantity.
pub const REQUESTS_ANNOTATION: &str = "woodfrog.dev/requests";

/// Annotation of a pod of a WarmPool: why the API server does not let its requests be lowered. While it is there nobody tries again.
pub const RESIZE_REFUSED_ANNOTATION: &str = "woodfrog.dev/resize-refused";

/// Type of the condition of a pod that its node's agent sets: whether an application of it runs.
pub const AWAKE_CONDITION: &str = "woodfrog.dev/Awake";

/// Label of a Checkpoint: the node whose agent has work with it. The operator sets it together with
/// `status.instruction` or `status.pruning` and takes it away with them; agents watch by it, so that the API server sends each only its own.
/// Also the label of an agent's Lease: its node.
pub const NODE_LABEL: &str = "woodfrog.dev/node";

/// Label of a warm-up pod: the name of its Checkpoint.
pub const CHECKPOINT_LABEL: &str = "woodfrog.dev/checkpoint";

/// Label of a warm-up pod: the attempt that it belongs to, a decimal number.
pub const ATTEMPT_LABEL: &str = "woodfrog.dev/attempt";

/// Label of a pod of a WarmPool: the pool's name. This label is the pool's selector: a pod that loses it is released.
pub const POOL_LABEL: &str = "woodfrog.dev/pool";

/// Label of a pod of a WarmPool: a hash of what the pod was made from. A pod with another one is out of date.
pub const REVISION_LABEL: &str = "woodfrog.dev/revision";

/// Prefix of every label and annotation that only Woodfrog sets on pods.
pub const PREFIX: &str = "woodfrog.dev/";

/// Finalizer of a Checkpoint: its pod is removed and the agent's work ended before it goes.
pub const FINALIZER: &str = "woodfrog.dev/checkpoint";

/// Field manager of the operator.
pub const OPERATOR: &str = "woodfrog-operator";

/// Field manager of the agents.
pub const AGENT: &str = "woodfrog-agent";

/// Field manager of what agents say of images that they delete: applied by itself, it must not take away what [`AGENT`] says.
pub const PRUNER: &str = "woodfrog-agent-pruner";

/// Name of the lease that the leading operator holds.
pub const LEASE: &str = "woodfrog-operator";

/// Prefix of the name of the Lease that a node's agent renews; the rest is the node's name. No other lease of the namespace begins so,
/// the operator's above all.
pub const AGENT_LEASE_PREFIX: &str = "woodfrog-agent-";

/// Name of the Lease that a node's agent renews.
#[must_use]
pub fn agent_lease(node: &str) -> String {
    format!("{AGENT_LEASE_PREFIX}{node}")
}
