//! Condition types and reasons. Every reason is a word that may become a metric's label or an Event's reason.

use std::fmt;

/// Condition types of a Checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum CheckpointCondition {
    /// The images of the newest revision are in the registry.
    Ready,
    /// The pod has been warmed up.
    WarmedUp,
    /// The containers have been frozen.
    Frozen,
    /// The images have been pushed.
    Pushed,
    /// Images that are not kept have been deleted: those of which `spec.retention` says so, and those of attempts that did not finish; otherwise the message names those that are left.
    Retained,
    /// There only while it is false, also on a WarmPool: the operator cannot write the status, for the CRDs are older than it is.
    Reconciled,
}

/// Condition types of a WarmPool.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum PoolCondition {
    /// As many pods are ready as are wanted.
    Available,
    /// Pods are being made, replaced or removed.
    Progressing,
    /// The Checkpoint has images to make pods from.
    CheckpointReady,
    /// Pods cannot sleep or wake as they should, or nobody on their node is there to thaw them.
    Degraded,
    /// Pods request what they should, asleep and awake. Only of a pool with dormantResources; that it is false is no failure.
    Resized,
}

/// Why a condition of a Checkpoint is as it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum CheckpointReason {
    /// Work goes on.
    InProgress,
    /// It is done.
    Succeeded,
    /// An earlier phase has not come to its end.
    Waiting,
    /// The source (pod or workload) does not exist.
    SourceNotFound,
    /// The source pod does not run under Woodfrog: it has no annotation `woodfrog.dev/managed: "true"`.
    SourceNotManaged,
    /// The template is not one of a pod, or the API server refuses a pod of it.
    InvalidTemplate,
    /// The API server, or an admission webhook behind it, has failed again and again to make the pod.
    PodNotCreated,
    /// `spec.containers` names a container that the pod does not have.
    ContainerNotFound,
    /// The secret of `spec.pushSecretRef` does not exist or is of another type.
    SecretNotFound,
    /// Another Checkpoint pushes to the same reference; the older one has it.
    ImageInUse,
    /// The pod did not start in time.
    StartTimedOut,
    /// The pod or one of its containers ended before it was frozen.
    PodEnded,
    /// The pod was not warm in time.
    WarmUpTimedOut,
    /// A request of the warm-up failed.
    WarmUpRequestFailed,
    /// A command of the warm-up failed.
    WarmUpCommandFailed,
    /// A hook failed or took too long.
    HookFailed,
    /// What the containers are or have cannot be frozen.
    PreflightFailed,
    /// CRIU could not freeze the containers.
    FreezeFailed,
    /// The containers were not frozen in time.
    FreezeTimedOut,
    /// The registry refused the images or could not be reached.
    PushFailed,
    /// The images were not in the registry in time.
    PushTimedOut,
    /// The pod that was to be frozen is gone, has moved or was replaced.
    PodReplaced,
    /// The agent of the node does not answer.
    AgentSilent,
    /// An attempt failed and is repeated after a while.
    BackingOff,
    /// Every attempt that `spec.retries` allows has failed.
    RetriesExhausted,
    /// The registry does not let images be deleted.
    DeletionUnsupported,
    /// The registry refused to delete images, or could not be reached, or there is no node whose agent could do it.
    DeletionFailed,
    /// Images that are to be deleted are still in use.
    StillInUse,
    /// The Checkpoint is being deleted.
    Deleting,
    /// The object says something that this operator does not know: the CRDs are newer than the operator.
    UnsupportedSpec,
    /// The API server does not know what this operator writes: the CRDs are older than the operator.
    OutdatedDefinition,
}

/// Why a condition of a WarmPool is as it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum PoolReason {
    /// As many pods are ready as are wanted.
    EnoughReady,
    /// Fewer pods are ready than are wanted.
    TooFewReady,
    /// Nothing is left to be done.
    Settled,
    /// Pods are being made or removed.
    Scaling,
    /// Pods are being replaced by ones from a newer image or template.
    RollingOut,
    /// The API server refuses the pods.
    PodsRefused,
    /// No node is compatible with the images.
    NoCompatibleNode,
    /// The Checkpoint does not exist.
    CheckpointNotFound,
    /// The Checkpoint has no images yet.
    CheckpointPending,
    /// The Checkpoint has failed and has no images.
    CheckpointFailed,
    /// The Checkpoint has images.
    CheckpointHasImages,
    /// Nothing is known that would keep pods from being thawed, sleeping and waking.
    AllWell,
    /// The agent of a node that pods are on has not renewed its lease in time.
    AgentSilent,
    /// Pods have the requests that they should have.
    AsRequested,
    /// Their kubelets are changing requests.
    ResizeInProgress,
    /// A node has no room yet for what its pods request awake; its kubelet changes it when it has.
    ResizeDeferred,
    /// A kubelet says that it can never change a pod's requests.
    ResizeInfeasible,
    /// The API server or a kubelet has refused to lower a pod's requests, and is not asked again.
    ResizeRefused,
    /// The API server does not serve pods/resize.
    ResizeUnsupported,
    /// Thaws of the image have failed again and again on a node, which starts it cold for a while.
    ImageQuarantined,
}

/// All of these are written as they are named.
macro_rules! written_as_named {
    ($($type:ty),*) => {$(
        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(self, f)
            }
        }
    )*};
}

written_as_named!(CheckpointCondition, PoolCondition, CheckpointReason, PoolReason);
