//! What kubelets make of the requests that pods were given (`PodResizePending` and `PodResizeInProgress`, Kubernetes 1.33): pure.
//!
//! ```text
//!   pods/resize ──► kubelet ──► PodResizeInProgress ──► done: no condition
//!                      ├─► PodResizePending: Deferred     no room now; kubelet does it when there is
//!                      └─► PodResizePending: Infeasible   never on this node, for this specification
//! ```
//!
//! Nothing waits for any of it. That requests are not what they should be yet is no failure of the pool.

use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use woodfrog_api::conditions::PoolReason;
use woodfrog_api::names;

/// Type of the condition of a pod whose new requests its kubelet has not begun to apply.
pub(crate) const PENDING: &str = "PodResizePending";
/// Type of the condition of a pod whose new requests its kubelet applies.
pub(crate) const IN_PROGRESS: &str = "PodResizeInProgress";

/// How far a kubelet is with a pod, with its words.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Step {
    InProgress(String),
    Deferred(String),
    Infeasible(String),
    /// The pod keeps its requests: nobody asks again.
    Refused(String),
}

/// How far kubelets are with the pods of a pool.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Resized {
    in_progress: Tally,
    deferred: Tally,
    infeasible: Tally,
    refused: Tally,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Tally {
    pods: usize,
    /// Of one of them.
    said: String,
}

impl Resized {
    /// Takes a pod in.
    pub(super) fn count(&mut self, pod: &Pod) {
        let (tally, said) = match step(pod) {
            None => return,
            Some(Step::InProgress(said)) => (&mut self.in_progress, said),
            Some(Step::Deferred(said)) => (&mut self.deferred, said),
            Some(Step::Infeasible(said)) => (&mut self.infeasible, said),
            Some(Step::Refused(said)) => (&mut self.refused, said),
        };
        tally.pods += 1;
        if tally.said.is_empty() {
            tally.said = said;
        }
    }

    /// Why requests are not what they should be, in the order in which somebody should look at it; none if they are.
    pub(super) fn hindrance(&self) -> Option<(PoolReason, String)> {
        let (reason, tally, what) = [
            (PoolReason::ResizeInfeasible, &self.infeasible, "kubelet cannot ever change the requests of"),
            (PoolReason::ResizeDeferred, &self.deferred, "the node has no room yet for what is requested by"),
            (PoolReason::ResizeInProgress, &self.in_progress, "kubelet changes the requests of"),
            (PoolReason::ResizeRefused, &self.refused, "requests stay as they are of"),
        ]
        .into_iter()
        .find(|(_, tally, _)| tally.pods > 0)?;
        let said = if tally.said.is_empty() { String::new() } else { format!(": {}", tally.said) };
        let pods = if tally.pods == 1 { "pod" } else { "pods" };
        Some((reason, format!("{what} {} {pods}{said}", tally.pods)))
    }
}

fn step(pod: &Pod) -> Option<Step> {
    if let Some((reason, said)) = condition(pod, PENDING) {
        let step = if reason == "Infeasible" { Step::Infeasible } else { Step::Deferred };
        return Some(step(said));
    }
    if let Some((_, said)) = condition(pod, IN_PROGRESS) {
        return Some(Step::InProgress(said));
    }
    let refused = pod.annotations().get(names::RESIZE_REFUSED_ANNOTATION)?;
    Some(Step::Refused(refused.clone()))
}

/// Why the kubelet can never do what the pod's specification says now, if it says so.
pub(super) fn infeasible(pod: &Pod) -> Option<String> {
    match step(pod)? {
        Step::Infeasible(said) => Some(said),
        _ => None,
    }
}

/// Reason and message of a condition that holds and speaks of the specification as it is.
fn condition(pod: &Pod, type_: &str) -> Option<(String, String)> {
    let conditions = pod.status.as_ref()?.conditions.as_ref()?;
    let found = conditions.iter().find(|c| c.type_ == type_ && c.status == "True")?;
    // Only newer kubelets say of which generation they speak.
    let of_before = found.observed_generation.zip(pod.metadata.generation).is_some_and(|(of, now)| of < now);
    (!of_before)
        .then(|| (found.reason.clone().unwrap_or_default(), found.message.clone().unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn pod(condition: Value) -> Pod {
        let metadata = json!({"generation": 3});
        serde_json::from_value(json!({"metadata": metadata, "status": {"conditions": [condition]}})).unwrap()
    }

    fn hindrance(conditions: &[Value]) -> Option<(PoolReason, String)> {
        let mut resized = Resized::default();
        conditions.iter().for_each(|condition| resized.count(&pod(condition.clone())));
        resized.hindrance()
    }

    #[test]
    fn what_somebody_should_look_at_is_said_first() {
        let pending =
            |reason: &str| json!({"type": PENDING, "status": "True", "reason": reason, "message": "why"});
        let progress = json!({"type": IN_PROGRESS, "status": "True"});
        let ready = json!({"type": "Ready", "status": "True"});
        assert_eq!(hindrance(std::slice::from_ref(&ready)), None);
        let said = |reason, message: &str| Some((reason, message.to_owned()));
        assert_eq!(
            hindrance(&[ready, progress.clone(), progress.clone()]),
            said(PoolReason::ResizeInProgress, "kubelet changes the requests of 2 pods")
        );
        assert_eq!(
            hindrance(&[progress, pending("Deferred")]),
            said(PoolReason::ResizeDeferred, "the node has no room yet for what is requested by 1 pod: why")
        );
        assert_eq!(
            hindrance(&[pending("Deferred"), pending("Infeasible")]),
            said(PoolReason::ResizeInfeasible, "kubelet cannot ever change the requests of 1 pod: why")
        );
        let mut refused = pod(json!({"type": PENDING, "status": "False", "reason": "Infeasible"}));
        refused.annotations_mut().insert(names::RESIZE_REFUSED_ANNOTATION.into(), "no".into());
        let mut resized = Resized::default();
        resized.count(&refused);
        assert_eq!(
            resized.hindrance(),
            said(PoolReason::ResizeRefused, "requests stay as they are of 1 pod: no")
        );
    }

    #[test]
    fn a_word_about_an_earlier_specification_is_none() {
        let of = |generation: i64| {
            pod(json!({
                "type": PENDING, "status": "True", "reason": "Infeasible", "message": "why", "observedGeneration": generation,
            }))
        };
        assert_eq!((infeasible(&of(2)), infeasible(&of(3))), (None, Some("why".to_owned())));
    }
}
