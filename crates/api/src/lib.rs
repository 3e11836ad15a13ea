//! The resources of Woodfrog, `woodfrog.dev/v1alpha1`, and everything that has a name in the API; no IO.
//!
//! ```text
//!   Checkpoint   how a warm image is made           spec: people; status: operator; status.agent: the node's agent
//!   WarmPool     pods that stand by, made from it   spec: people, kubectl scale, autoscalers; status: operator
//! ```
//!
//! Operator and agents talk through [`CheckpointStatus`] alone: the operator writes what is to be frozen
//! ([`CheckpointStatus::instruction`]) and marks the object with the node ([`names::NODE_LABEL`]), the agent of
//! that node says how far it is ([`CheckpointStatus::agent`]). In the same way images go that are no longer kept
//! ([`CheckpointStatus::pruning`], [`CheckpointStatus::pruned`]). Each applies only its own fields, under its own
//! field manager ([`names::OPERATOR`], [`names::AGENT`]), so neither can overwrite the other.
//!
//! Of pods that may sleep agents say how they are in an annotation and a condition ([`SleepReport`]), and operators and people ask for wakes
//! by annotations ([`names::KEEP_AWAKE_ANNOTATION`], [`names::WAKE_ANNOTATION`]).
//!
//! `crds/` and `docs/reference.md` are generated from these types: `cargo xtask generate`.
#![forbid(unsafe_code)]
// The derive of KubeSchema copies each struct into a function, with its visibility.
#![allow(unreachable_pub)]

pub mod checkpoint;
mod compatibility;
pub mod conditions;
pub mod crds;
mod duration;
pub mod image;
pub mod names;
pub mod node_labels;
pub mod sleep_report;
pub mod source;
pub mod warm_pool;
pub mod warm_up;

pub use checkpoint::pruning::{PruneOutcome, Pruned, PrunedImage, Pruning, RetentionStatus, SurplusImage};
pub use checkpoint::status::{
    AgentPhase, AgentStatus, CheckpointStatus, FrozenContainer, Instruction, PastImage, Phase, PushedImage,
    Summary, Target,
};
pub use checkpoint::{Checkpoint, CheckpointSpec, Connections, Deadlines, LocalReference, Memory, Retention};
pub use compatibility::Compatibility;
pub use duration::{Duration, ParseDurationError};
pub use sleep_report::{SleepReport, SleepState};
pub use source::{PodTemplate, RawPodSpec, Source, TemplateError, WorkloadKind, WorkloadRef};
pub use warm_pool::{
    DormantRequests, DormantResources, OnIdle, PodMetadata, Standby, WakeTime, WarmPool, WarmPoolSpec,
    WarmPoolStatus,
};
pub use warm_up::{ExecAction, Hook, Hooks, HttpAction, HttpRequest, WarmUp, WarmUpExec};
