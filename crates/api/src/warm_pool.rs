//! `WarmPool`: pods that stand by, made from a Checkpoint's images.

#![allow(clippy::duplicated_attributes, reason = "columns that have a type in common")]

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{Duration, LocalReference, Memory};

/// How many pods stand by, made from which Checkpoint, and at what cost.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, CustomResource, KubeSchema)]
#[kube(
    group = "woodfrog.dev",
    version = "v1alpha1",
    kind = "WarmPool",
    namespaced,
    status = "WarmPoolStatus",
    derive = "PartialEq",
    doc = "A WarmPool keeps pods standing by that were started from the images of a Checkpoint, and so are warm at once. A pod is \
           claimed by taking its label woodfrog.dev/pool away: it is released to whoever did so, and replaced.",
    shortname = "wp",
    category = "woodfrog",
    validation = Rule::new("self.metadata.name.size() <= 63")
        .message("the name is longer than 63 characters: its pods carry it as a label, which can be no longer"),
    scale(
        spec_replicas_path = ".spec.replicas",
        status_replicas_path = ".status.replicas",
        label_selector_path = ".status.selector"
    ),
    printcolumn(
        name = "Desired",
        type_ = "integer",
        json_path = ".spec.replicas",
        description = "Pods that should stand by"
    ),
    printcolumn(
        name = "Ready",
        type_ = "integer",
        json_path = ".status.readyReplicas",
        description = "Pods that answer"
    ),
    printcolumn(
        name = "Updated",
        type_ = "integer",
        json_path = ".status.updatedReplicas",
        description = "Pods from the newest image"
    ),
    printcolumn(
        name = "Awake",
        type_ = "integer",
        json_path = ".status.awake",
        description = "Pods whose application runs"
    ),
    printcolumn(
        name = "Dormant",
        type_ = "integer",
        json_path = ".status.dormant",
        description = "Pods that sleep until somebody needs them"
    ),
    printcolumn(
        name = "Standby",
        type_ = "string",
        json_path = ".spec.standby",
        description = "How they stand by"
    ),
    printcolumn(
        name = "Checkpoint",
        type_ = "string",
        json_path = ".spec.checkpointRef.name",
        description = "What they are made from"
    ),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    printcolumn(name = "Wakes", type_ = "integer", json_path = ".status.wakes", priority = 1),
    printcolumn(name = "Median ms", type_ = "integer", json_path = ".status.wakeTime.medianMs", priority = 1),
    printcolumn(name = "P95 ms", type_ = "integer", json_path = ".status.wakeTime.p95Ms", priority = 1),
    printcolumn(name = "Failed", type_ = "integer", json_path = ".status.failedWakes", priority = 1),
    printcolumn(name = "Image", type_ = "string", json_path = ".status.image", priority = 1),
    printcolumn(
        name = "Message",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Available\")].message",
        priority = 1
    )
)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("has(self.standby) && self.standby != 'Awake' || !has(self.idleTimeout) && \
        !has(self.minAwakeTime) && !has(self.minAwake) && (!has(self.onIdle) || self.onIdle == 'Discard')")
        .message("idleTimeout, minAwakeTime, minAwake and onIdle: Save are of pods that sleep: set standby to Dormant \
                  or Frozen, or leave them out")
        .field_path(".standby"),
    validation = Rule::new("!has(self.minAwakeTime) || has(self.idleTimeout)")
        .message("minAwakeTime needs idleTimeout: without it a pod that woke stays awake")
        .field_path(".minAwakeTime"),
    validation = Rule::new("!has(self.onIdle) || self.onIdle == 'Discard' || has(self.standby) && self.standby != 'Frozen'")
        .message("onIdle: Save is for standby: Dormant; a Frozen pod keeps its memory anyway")
        .field_path(".onIdle"),
    validation = Rule::new("!has(self.dormantResources) || has(self.standby) && self.standby == 'Dormant'")
        .message("dormantResources is of pods whose application does not run: set standby to Dormant, or leave it out")
        .field_path(".dormantResources"),
    validation = Rule::new("!has(self.idleTimeout) || duration(self.idleTimeout) > duration('0s')")
        .message("idleTimeout is zero: a pod would fall asleep while it answers; leave it out, and a pod that woke stays awake")
        .field_path(".idleTimeout")
)]
pub struct WarmPoolSpec {
    /// The Checkpoint of this namespace from whose pod template and images the pods are made.
    #[x_kube(validation = Rule::new("self == oldSelf")
        .message("checkpointRef cannot be changed: create another WarmPool for the other Checkpoint, then delete this one"))]
    pub checkpoint_ref: LocalReference,
    /// How many pods stand by.
    #[serde(default = "one")]
    #[schemars(range(min = 0))]
    pub replicas: i32,
    /// How they stand by. Awake: they run. Dormant: no process, thawed by the first packet. Frozen: thawed, and held by the
    /// cgroup freezer until the first packet.
    #[serde(default)]
    pub standby: Standby,
    /// How a thawed pod gets its memory. Default: as its Checkpoint says. Copied: each has its own, and after a moment is as if it had never
    /// been frozen. Shared: all on a node share one copy until they write; some calls take longer for good.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<Memory>,
    /// How long a pod that woke may have nothing to do before it sleeps again. Without it, it stays awake. Not with standby: Awake.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idle_timeout: Option<Duration>,
    /// How long a pod that woke stays awake at least. Needs idleTimeout.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_awake_time: Option<Duration>,
    /// How many pods are kept awake at any time; where there are fewer replicas, all. Not with standby: Awake.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub min_awake: Option<i32>,
    /// What becomes of a Dormant pod's memory when it sleeps again. Discard: it goes back to the image, nothing is written. Save: it is dumped on
    /// its node, and goes on from there.
    #[serde(default)]
    pub on_idle: OnIdle,
    /// What a pod's containers request while it is Dormant, so that its node has room for others. Awake again, it gets its own requests back,
    /// if there is still room. Without it, and where the cluster does not serve pods/resize, requests stay as they are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dormant_resources: Option<DormantResources>,
    /// What the pods have beyond the Checkpoint's template.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub template: Option<PodMetadata>,
    /// How many pods there may be beyond replicas while they are replaced after a new image. Old pods go only when as many new ones
    /// are ready.
    #[serde(default = "one")]
    #[schemars(range(min = 1))]
    pub max_surge: i32,
}

/// How pods stand by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[allow(missing_docs, reason = "the field of this type says what its values mean")]
pub enum Standby {
    Dormant,
    Frozen,
    #[default]
    Awake,
}

/// What becomes of an idle pod's memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[allow(missing_docs, reason = "the field of this type says what its values mean")]
pub enum OnIdle {
    #[default]
    Discard,
    Save,
}

/// What containers of Dormant pods request.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
pub struct DormantResources {
    /// The requests of each container. Limits stay as they are.
    pub requests: DormantRequests,
}

/// Requests of a container; what is left out stays as it is, and so does a request that is lower already, or not there.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[x_kube(validation = Rule::new("has(self.cpu) || has(self.memory)")
    .message("nothing is requested otherwise: set cpu, memory or both, or leave dormantResources out"))]
pub struct DormantRequests {
    /// CPUs, as in 10m.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 16))]
    #[x_kube(validation = Rule::new("self.matches('^[1-9][0-9]{0,8}m?$')")
        .message("this is no number of CPUs above 0: write it as in \"10m\" or \"1\""))]
    pub cpu: Option<String>,
    /// Bytes, as in 16Mi.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 16))]
    #[x_kube(validation = Rule::new("self.matches('^[1-9][0-9]{0,11}(k|M|G|Ki|Mi|Gi)?$')")
        .message("this is no number of bytes above 0: write it as in \"16Mi\" or \"1Gi\""))]
    pub memory: Option<String>,
}

/// Labels and annotations of a pool's pods.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
pub struct PodMetadata {
    /// Labels of the pods, over those of the Checkpoint's template.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 64))]
    #[x_kube(validation = Rule::new("self.all(key, !key.startsWith('woodfrog.dev/'))")
        .message("labels that begin with woodfrog.dev/ are set by Woodfrog alone: choose another prefix"))]
    pub labels: BTreeMap<String, String>,
    /// Annotations of the pods, over those of the Checkpoint's template.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 64))]
    #[x_kube(validation = Rule::new("self.all(key, !key.startsWith('woodfrog.dev/'))")
        .message("annotations that begin with woodfrog.dev/ are set by Woodfrog alone: choose another prefix"))]
    pub annotations: BTreeMap<String, String>,
}

/// What has become of a WarmPool.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct WarmPoolStatus {
    /// Pods of the pool.
    #[serde(default)]
    pub replicas: i32,
    /// Pods of the pool that are ready.
    #[serde(default)]
    pub ready_replicas: i32,
    /// Pods of the pool that were made from the newest image and template.
    #[serde(default)]
    pub updated_replicas: i32,
    /// Pods of the pool whose application runs.
    #[serde(default)]
    pub awake: i32,
    /// Pods of the pool that sleep, Dormant or Frozen.
    #[serde(default)]
    pub dormant: i32,
    /// How often the pods that there are now have woken.
    #[serde(default)]
    pub wakes: i64,
    /// How often one of them could not be thawed, and its command was started instead.
    #[serde(default)]
    pub failed_wakes: i64,
    /// How long their newest wakes took; not there before the first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wake_time: Option<WakeTime>,
    /// The label selector of the pool's pods, for kubectl scale and autoscalers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub selector: Option<String>,
    /// The images that new pods are made from, by digest; where there are several, with commas between them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// Available, Progressing, CheckpointReady and Degraded, and Resized of a pool with dormantResources, with a reason and a sentence each.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".to_owned()]))]
    #[schemars(length(max = 16))]
    pub conditions: Vec<Condition>,
    /// The generation of the specification that this status speaks of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
}

/// How long wakes took, from the first packet held to its release: of the newest ones of each pod, up to 16.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct WakeTime {
    /// Half of them took no longer, in milliseconds.
    pub median_ms: i64,
    /// 95 of 100 took no longer, in milliseconds.
    pub p95_ms: i64,
}

fn one() -> i32 {
    1
}
