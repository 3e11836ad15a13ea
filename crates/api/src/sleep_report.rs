//! What a node's agent says of a pod that may sleep: the annotation [`crate::names::REPORT_ANNOTATION`], as JSON.
//!
//! The condition [`crate::names::AWAKE_CONDITION`] says the same for people. Agents write both at once.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde::{Deserialize, Serialize};

/// How many wakes are told of.
pub const RECENT_WAKES: usize = 16;

/// A pod's sleep, as its agent sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SleepReport {
    /// What it does.
    pub state: SleepState,
    /// Since when.
    pub since: Time,
    /// How often it woke.
    #[serde(default)]
    pub wakes: u64,
    /// How often it could not be thawed, and its command was started instead.
    #[serde(default)]
    pub failed: u64,
    /// How long the newest wakes took, oldest first, in milliseconds; [`RECENT_WAKES`] at most.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub recent_ms: Vec<u32>,
    /// The value of [`crate::names::WAKE_ANNOTATION`] for which it was woken last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wake: Option<String>,
    /// Its image is not thawed on this node for a while: why, in a sentence.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quarantine: Option<String>,
}

/// What a pod does that may sleep.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SleepState {
    /// An application of it runs.
    Awake,
    /// None runs.
    Dormant,
    /// It is held by the cgroup freezer.
    Frozen,
}

impl SleepReport {
    /// What an agent has said in an annotation's text. None: nothing that this release can read.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        serde_json::from_str(text).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_older_agent_leaves_out_is_nothing_and_what_a_newer_one_adds_is_overlooked() {
        let text = r#"{"state":"Dormant","since":"2026-01-01T00:00:00Z","mood":"calm"}"#;
        let report = SleepReport::parse(text).unwrap();
        assert_eq!((report.state, report.wakes, report.wake), (SleepState::Dormant, 0, None));
        assert_eq!(SleepReport::parse(r#"{"state":"Elsewhere"}"#), None);
    }
}
