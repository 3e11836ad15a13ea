//! `Checkpoint`: how a warm image is made.

#![allow(clippy::duplicated_attributes, reason = "columns that have a type in common")]

pub mod pruning;
pub mod status;

use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{Duration, Hooks, Source, WarmUp};
use status::CheckpointStatus;

/// Host with a dot, a port or the name localhost, then a path in lower case, then perhaps a tag (the distribution project's
/// grammar of references, without digests, which another rule is for).
const IMAGE_RULE: &str = concat!(
    "self.contains('@') || self.matches('^",
    "([A-Za-z0-9-]+([.][A-Za-z0-9-]+)+(:[0-9]{1,5})?|localhost(:[0-9]{1,5})?",
    "|[A-Za-z0-9-]+:[0-9]{1,5}|[[][0-9A-Fa-f:]+[]](:[0-9]{1,5})?)",
    "(/[a-z0-9]+(([.]|_|__|-+)[a-z0-9]+)*)+",
    "(:[A-Za-z0-9_][A-Za-z0-9._-]{0,127})?$')",
);

/// What is frozen, how it gets warm first, and where the images go.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, CustomResource, KubeSchema)]
#[kube(
    group = "woodfrog.dev",
    version = "v1alpha1",
    kind = "Checkpoint",
    namespaced,
    status = "CheckpointStatus",
    derive = "PartialEq",
    doc = "A Checkpoint describes how a warm image of an application is made: a pod is started and warmed up, then its containers are \
           frozen into OCI images, from which pods start warm. Memory holds secrets: whoever can pull the images can read whatever \
           the application knew.",
    shortname = "ckpt",
    category = "woodfrog",
    validation = Rule::new("self.metadata.name.size() <= 63")
        .message("the name is longer than 63 characters: its pods carry it as a label, which can be no longer"),
    printcolumn(
        name = "Phase",
        type_ = "string",
        json_path = ".status.phase",
        description = "How far it is"
    ),
    printcolumn(
        name = "Progress",
        type_ = "string",
        json_path = ".status.summary.progress",
        description = "How far this phase is"
    ),
    printcolumn(
        name = "Node",
        type_ = "string",
        json_path = ".status.node",
        description = "Where the images were or are being made"
    ),
    printcolumn(
        name = "Size",
        type_ = "string",
        json_path = ".status.summary.size",
        description = "What the freeze added to the images, compressed"
    ),
    printcolumn(
        name = "Freeze",
        type_ = "string",
        json_path = ".status.summary.freeze",
        description = "How long the application stood still"
    ),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    printcolumn(name = "Image", type_ = "string", json_path = ".spec.image", priority = 1),
    printcolumn(
        name = "Reason",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].reason",
        priority = 1
    ),
    printcolumn(
        name = "Message",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].message",
        priority = 1
    )
)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("has(self.image)")
        .message("spec.image is missing: name where the image is pushed, as in registry.example/shop/web:warm; a store on the nodes, which would need no image, does not exist yet")
        .reason(Reason::FieldValueRequired)
        .field_path(".image"),
    validation = Rule::new("!has(self.recordWorkingSet) || !self.recordWorkingSet || \
        !has(self.source.podName) && !(has(self.leaveRunning) && self.leaveRunning) && \
        !(has(self.connections) && self.connections == 'Keep')")
        .message("recordWorkingSet ends the containers once and thaws them: it is for pods that are made from a template and go \
                  when they are frozen, without connections: Keep")
        .field_path(".recordWorkingSet")
)]
pub struct CheckpointSpec {
    /// The pod that is frozen: exactly one of podName, template, workloadRef.
    pub source: Source,
    /// Names of the containers that are frozen, all at the same moment. Default: all of the pod's containers (init containers,
    /// which have ended, never). The others start in the usual way.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32), inner(length(min = 1, max = 63)), extend("x-kubernetes-list-type" = "set"))]
    pub containers: Vec<String>,
    /// How the pod is warmed up before it is frozen. Default: it is frozen as soon as it is ready.
    #[serde(default)]
    #[schemars(extend("default" = {}))]
    pub warm_up: WarmUp,
    /// What is done in every frozen container around the freeze and after each thaw.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hooks: Option<Hooks>,
    /// What becomes of established network connections. Refuse: the freeze fails and names the peers. Close: they are closed in the
    /// image. Keep: they are kept, and the image can be thawed only at the same address.
    #[serde(default)]
    pub connections: Connections,
    /// How an application that is thawed from the image gets its memory. Copied: each has its own, and after a moment is as if it had
    /// never been frozen. Shared: all on a node share one copy until they write, for many replicas of an image on a node; some calls take
    /// longer for good. A WarmPool may say otherwise for its pods.
    #[serde(default)]
    pub memory: Memory,
    /// Whether the images say which of their memory is wanted first, so that a node brings that first when it thaws one for the first time. For
    /// that the containers are thawed once from what was frozen, in the warm-up pod, and sent the requests of warmUp.http. If it
    /// cannot be found out, the images are made without it, and an Event says why. Not with podName, leaveRunning or connections: Keep.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub record_working_set: bool,
    /// Whether the frozen pod runs on. Default: a pod named by podName does; others are deleted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub leave_running: Option<bool>,
    /// Reference of the image that is pushed, REGISTRY/REPOSITORY:TAG. Where several containers are frozen, each has an image of its
    /// own, REGISTRY/REPOSITORY-CONTAINER:TAG. The tag moves when the checkpoint is made anew; pods are started by digest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 255))]
    #[x_kube(
        validation = Rule::new("!self.contains('@')")
            .message("name a tag and no digest, as in registry.example/shop/web:warm: the digest of the image is not known before it is made"),
        validation = Rule::new(IMAGE_RULE)
            .message("this is not the reference of an image with its registry: write it as in registry.example/shop/web:warm or localhost:5000/web:warm, the repository in lower case")
    )]
    pub image: Option<String>,
    /// A secret of this namespace, of type kubernetes.io/dockerconfigjson, whose credentials may push the image. Default: none.
    /// Only while it pushes may the node's agent read it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub push_secret_ref: Option<LocalReference>,
    /// Which images are kept when newer ones have been made; others are deleted from the registry, with every tag that they have there.
    /// Images that pods of pools, Deployments or StatefulSets run from stay until these are gone. Default: all are kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retention: Option<Retention>,
    /// How long each phase may take; then the attempt has failed.
    #[serde(default)]
    #[schemars(extend("default" = {}))]
    pub deadlines: Deadlines,
    /// How often a failed attempt is repeated, each time after a longer while, before the Checkpoint is Failed. A change of the
    /// specification begins anew.
    #[serde(default = "retries")]
    #[schemars(range(min = 0, max = 100))]
    pub retries: i32,
}

/// What becomes of established network connections.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[allow(missing_docs, reason = "the fields of this type say what its values mean")]
pub enum Connections {
    #[default]
    Refuse,
    Close,
    Keep,
}

/// How a thawed application gets its memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[allow(missing_docs, reason = "the fields of this type say what its values mean")]
pub enum Memory {
    #[default]
    Copied,
    Shared,
}

/// Names an object in the same namespace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct LocalReference {
    /// The object's name.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
}

/// Which of the images that the Checkpoint has made are kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("has(self.keep) || has(self.maxAge)")
    .message("retention needs keep, maxAge or both; leave it out to keep all images"))]
pub struct Retention {
    /// How many of a container's images are kept, the newest among them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 100))]
    pub keep: Option<i32>,
    /// How old an image may get; the newest is kept at any age.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_age: Option<Duration>,
}

/// How long each phase may take. The warm-up has its own, spec.warmUp.timeout.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Deadlines {
    /// From the creation of the pod until its containers run: scheduling, pulling images, starting.
    #[serde(default = "ten_minutes")]
    pub start: Duration,
    /// From the instruction to the agent until the containers are frozen, hooks included.
    #[serde(default = "five_minutes")]
    pub freeze: Duration,
    /// From then until all images are in the registry.
    #[serde(default = "half_an_hour")]
    pub push: Duration,
}

impl Default for Deadlines {
    fn default() -> Self {
        Self { start: ten_minutes(), freeze: five_minutes(), push: half_an_hour() }
    }
}

impl CheckpointSpec {
    /// Whether the pod runs on after the freeze.
    #[must_use]
    pub fn leaves_running(&self) -> bool {
        self.leave_running.unwrap_or(self.source.pod_name.is_some())
    }
}

fn retries() -> i32 {
    3
}

fn five_minutes() -> Duration {
    Duration::from_secs(300)
}

fn ten_minutes() -> Duration {
    Duration::from_secs(600)
}

fn half_an_hour() -> Duration {
    Duration::from_secs(1800)
}
