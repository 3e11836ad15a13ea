//! How images go that are not kept: the operator names them, the agent of some node deletes them.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::LocalReference;

/// How many images one [`Pruning`] names at most.
pub const MAX_IMAGES: usize = 32;

/// Images that an agent is to delete.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Pruning {
    /// The number of the try. The same number is the same work, however often it is read.
    pub number: i64,
    /// The node whose agent is meant.
    pub node: String,
    /// When it was written.
    pub since: Time,
    /// The images.
    #[schemars(length(max = 32))]
    pub images: Vec<SurplusImage>,
    /// The secret with the credentials for the registry, in the Checkpoint's namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub push_secret_ref: Option<LocalReference>,
    /// Registries (HOST:PORT) that speak plain HTTP; those on loopback addresses always may.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub plain_http: Vec<String>,
}

/// An image that is not kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SurplusImage {
    /// Its reference, with the tag that it had.
    pub image: String,
    /// Digest of its manifest, which is what is deleted.
    pub digest: String,
}

/// What an agent says of a [`Pruning`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Pruned {
    /// The node of the agent.
    pub node: String,
    /// The try that this speaks of.
    pub number: i64,
    /// Whether it is over.
    #[serde(default)]
    pub done: bool,
    /// When the agent last wrote this. While it works it does so at least every 10 seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub heartbeat: Option<Time>,
    /// What came of each image, as far as it was tried.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Atomic)]
    #[schemars(length(max = 32))]
    pub images: Vec<PrunedImage>,
}

/// What came of an image that was to be deleted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PrunedImage {
    /// Digest of its manifest.
    pub digest: String,
    /// Deleted: it is gone, perhaps it was before. Unsupported: the registry deletes nothing. Failed: the registry refused, or could
    /// not be reached.
    pub outcome: PruneOutcome,
    /// Why it was not deleted: a sentence.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
}

/// What came of an image that was to be deleted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[allow(missing_docs, reason = "the field of this type says what its values mean")]
pub enum PruneOutcome {
    Deleted,
    Unsupported,
    Failed,
}

/// How the deletion of images goes on.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RetentionStatus {
    /// The number of the last try; it never goes back.
    #[serde(default)]
    pub number: i64,
    /// How many tries have failed since images were deleted, made or the specification changed.
    #[serde(default)]
    pub failures: i32,
    /// When the last of them failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failed_at: Option<Time>,
    /// The node whose agent did not answer the last try.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub silent_node: Option<String>,
}
