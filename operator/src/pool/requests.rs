//! What a pool's pods request, which is less while they are Dormant: pure.
//!
//! A pod carries what its containers request while it is awake in an annotation, from its creation on: so its requests can be put back
//! whoever lowered them, and whatever has become of the template.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, Pod, PodSpec};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use kube::ResourceExt;
use woodfrog_api::{DormantResources, SleepState, names};

use super::{resized, sleep};
use crate::quantity;

/// Requests by container and resource.
pub(super) type Requests = BTreeMap<String, BTreeMap<String, Quantity>>;

/// Requests of a pod that are to be others.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Resize {
    pub(super) name: String,
    pub(super) uid: String,
    /// It sleeps, and requests less; else it gets its own requests back.
    pub(super) lowers: bool,
    /// Only what changes.
    pub(super) requests: Requests,
    /// Why its kubelet cannot lower them, which is then not tried again.
    pub(super) gives_up: Option<String>,
}

/// The annotation of pods with this specification; none where there is nothing that could be lowered.
pub(super) fn annotation(spec: &PodSpec) -> Option<String> {
    let all = spec.containers.iter().map(|container| (container.name.clone(), own(container)));
    let all: Requests = all.filter(|(_, requests)| !requests.is_empty()).collect();
    (!all.is_empty()).then(|| serde_json::json!(all).to_string())
}

/// What a container requests: Kubernetes takes the limit where there is no request. Without what it restarts for.
fn own(container: &Container) -> BTreeMap<String, Quantity> {
    let Some(resources) = &container.resources else { return BTreeMap::new() };
    let restarts = |resource: &str| {
        let mut policies = container.resize_policy.iter().flatten();
        policies.any(|policy| policy.resource_name == resource && policy.restart_policy == "RestartContainer")
    };
    let request = |resource: &str| {
        let said = |all: &Option<BTreeMap<String, Quantity>>| all.as_ref()?.get(resource).cloned();
        let quantity = said(&resources.requests).or_else(|| said(&resources.limits))?;
        (!restarts(resource)).then(|| (resource.to_owned(), quantity))
    };
    ["cpu", "memory"].into_iter().filter_map(request).collect()
}

/// How the pod's requests are to change; `dormant`: what its pool says of pods that sleep. None if all is as it should be, or nobody may
/// change it.
pub(super) fn resize(pod: &Pod, dormant: Option<&DormantResources>) -> Option<Resize> {
    let own: Requests = serde_json::from_str(pod.annotations().get(names::REQUESTS_ANNOTATION)?).ok()?;
    let sleeps = sleep::report(pod).is_some_and(|report| report.state == SleepState::Dormant);
    let refused = pod.annotations().contains_key(names::RESIZE_REFUSED_ANNOTATION);
    let dormant = dormant.filter(|_| sleeps && !refused);
    let mut changes = changes(pod, &own, dormant);
    // A kubelet that cannot do what the specification says now: lower them, if that is not what the pod had from its start.
    let lowered = dormant.is_some() && changes.is_empty();
    let gives_up = lowered.then(|| resized::infeasible(pod)).flatten();
    if gives_up.is_some() {
        changes = self::changes(pod, &own, None);
    }
    let lowers = dormant.is_some() && gives_up.is_none();
    let (name, uid) = (pod.name_any(), pod.uid()?);
    (!changes.is_empty()).then_some(Resize { name, uid, lowers, requests: changes, gives_up })
}

/// Requests that are others than they are to be.
fn changes(pod: &Pod, own: &Requests, dormant: Option<&DormantResources>) -> Requests {
    let mut changed = Requests::new();
    for container in pod.spec.iter().flat_map(|spec| &spec.containers) {
        let current = container.resources.as_ref().and_then(|resources| resources.requests.as_ref());
        let (Some(own), Some(current)) = (own.get(&container.name), current) else { continue };
        let wanted = own.iter().map(|(resource, own)| (resource, lower(resource, own, dormant)));
        let others = wanted.filter(|(resource, wanted)| {
            current
                .get(*resource)
                .is_some_and(|current| quantity::nano(&current.0) != quantity::nano(&wanted.0))
        });
        let others: BTreeMap<_, _> = others.map(|(resource, wanted)| (resource.clone(), wanted)).collect();
        if !others.is_empty() {
            changed.insert(container.name.clone(), others);
        }
    }
    changed
}

/// The lesser of what a container requests and what it is to request while it sleeps.
fn lower(resource: &str, own: &Quantity, dormant: Option<&DormantResources>) -> Quantity {
    let dormant = dormant.and_then(|dormant| match resource {
        "cpu" => dormant.requests.cpu.as_ref(),
        "memory" => dormant.requests.memory.as_ref(),
        _ => None,
    });
    let less = dormant.filter(|dormant| quantity::nano(dormant) < quantity::nano(&own.0));
    less.map_or_else(|| own.clone(), |dormant| Quantity(dormant.clone()))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn spec(resources: Value) -> PodSpec {
        serde_json::from_value(
            json!({"containers": [{"name": "app", "resources": resources}, {"name": "log"}]}),
        )
        .unwrap()
    }

    #[test]
    fn a_pod_carries_what_could_be_lowered() {
        let annotation = |resources: Value| annotation(&spec(resources)).unwrap_or_default();
        let all = r#"{"app":{"cpu":"500m","memory":"1Gi"}}"#;
        assert_eq!(
            annotation(json!({"requests": {"cpu": "500m", "memory": "1Gi", "hugepages-2Mi": "2Mi"}})),
            all
        );
        assert_eq!(
            annotation(json!({"requests": {"cpu": "500m"}, "limits": {"cpu": "1", "memory": "1Gi"}})),
            all
        );
        assert_eq!(annotation(json!({})), "");
        let mut restarts = spec(json!({"requests": {"cpu": "1", "memory": "1Gi"}}));
        let policy = json!([{"resourceName": "cpu", "restartPolicy": "RestartContainer"}]);
        restarts.containers[0].resize_policy = serde_json::from_value(policy).unwrap();
        assert_eq!(super::annotation(&restarts).unwrap(), r#"{"app":{"memory":"1Gi"}}"#);
    }

    /// A pod that has these requests now; its own are half a CPU and 1 GiB.
    fn pod(state: &str, requests: Value) -> Pod {
        let report =
            json!({"state": state, "since": "2026-01-01T00:00:00Z", "wakes": 0, "failed": 0, "recentMs": []});
        let mut pod = Pod { spec: Some(spec(json!({ "requests": requests }))), ..Pod::default() };
        pod.metadata.uid = Some("u".into());
        let own = annotation(&spec(json!({"requests": {"cpu": "0.5", "memory": "1Gi"}}))).unwrap();
        pod.annotations_mut().insert(names::REQUESTS_ANNOTATION.into(), own);
        pod.annotations_mut().insert(names::REPORT_ANNOTATION.into(), report.to_string());
        pod
    }

    fn dormant(requests: Value) -> DormantResources {
        serde_json::from_value(json!({ "requests": requests })).unwrap()
    }

    #[test]
    fn requests_follow_the_pods_sleep() {
        let little = json!({"cpu": "10m", "memory": "16Mi"});
        let (own, both) = (json!({"cpu": "500m", "memory": "1024Mi"}), dormant(little.clone()));
        let more = dormant(json!({"cpu": "2", "memory": "16Mi"}));
        for (what, pod, dormant, expected) in [
            ("falls asleep", pod("Dormant", own.clone()), Some(&both), Some((true, little.clone()))),
            ("sleeps", pod("Dormant", little.clone()), Some(&both), None),
            (
                "wakes",
                pod("Awake", little.clone()),
                Some(&both),
                Some((false, json!({"cpu": "0.5", "memory": "1Gi"}))),
            ),
            ("is awake", pod("Awake", own.clone()), Some(&both), None),
            ("is frozen", pod("Frozen", own.clone()), Some(&both), None),
            (
                "is no longer to be lowered",
                pod("Dormant", little),
                None,
                Some((false, json!({"cpu": "0.5", "memory": "1Gi"}))),
            ),
            (
                "only lowered",
                pod("Dormant", own.clone()),
                Some(&more),
                Some((true, json!({"memory": "16Mi"}))),
            ),
        ] {
            let resize = resize(&pod, dormant).map(|resize| (resize.lowers, json!(resize.requests["app"])));
            assert_eq!(resize, expected, "{what}");
        }
        // A kubelet that cannot lower them, or put them back.
        let infeasible = |mut pod: Pod| {
            let condition =
                json!({"type": resized::PENDING, "status": "True", "reason": "Infeasible", "message": "why"});
            pod.status = serde_json::from_value(json!({ "conditions": [condition] })).unwrap();
            resize(&pod, Some(&both)).map(|resize| (resize.lowers, resize.gives_up))
        };
        let given_up = Some((false, Some("why".to_owned())));
        assert_eq!(infeasible(pod("Dormant", json!({"cpu": "10m", "memory": "16Mi"}))), given_up);
        assert_eq!(infeasible(pod("Awake", own.clone())), None);
        assert_eq!(infeasible(pod("Dormant", own.clone())), Some((true, None)));
        let mut refused = pod("Dormant", own);
        refused.annotations_mut().insert(names::RESIZE_REFUSED_ANNOTATION.into(), "no".into());
        assert_eq!(resize(&refused, Some(&both)), None);
        refused.annotations_mut().remove(names::RESIZE_REFUSED_ANNOTATION);
        refused.annotations_mut().remove(names::REQUESTS_ANNOTATION);
        assert_eq!(resize(&refused, Some(&both)), None);
    }
}
