//! What a kubelet says of a pod, from what it knows.

use k8s_cri::v1::ContainerState as Cri;
use k8s_openapi::api::core::v1::{
    Container, ContainerState, ContainerStateRunning, ContainerStateTerminated, ContainerStateWaiting,
    ContainerStatus, Pod, PodCondition, PodIP, PodStatus,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;

/// What is known of a container of a pod.
#[derive(Clone, Debug, Default)]
pub(crate) struct Seen {
    /// What CRI says; nothing before it is created.
    pub(crate) cri: Option<k8s_cri::v1::ContainerStatus>,
    /// How often it was started again.
    pub(crate) restarts: i32,
    /// Whether its readiness probe succeeds; true where it runs and has none.
    pub(crate) ready: bool,
    /// Why it is not there: a reason and a message.
    pub(crate) waiting: Option<(String, String)>,
}

/// The status of a pod of this node. `before`: what the pod's status is now.
pub(crate) fn of(pod: &Pod, ip: Option<&str>, host: &str, seen: &[Seen]) -> PodStatus {
    let before = pod.status.clone().unwrap_or_default();
    let spec = pod.spec.clone().unwrap_or_default();
    let conditions = before.conditions.clone().unwrap_or_default();
    let ready = seen.len() == spec.containers.len() && seen.iter().all(|container| container.ready);
    let facts = [
        ("PodReadyToStartContainers", ip.is_some()),
        ("Initialized", true),
        ("Ready", ready),
        ("ContainersReady", ready),
        ("PodScheduled", true),
    ];
    // Others' conditions are theirs.
    let theirs = conditions.iter().filter(|c| facts.iter().all(|(kind, _)| c.type_ != *kind)).cloned();
    let ours = facts.map(|(kind, holds)| condition(kind, holds, &conditions));
    let statuses =
        spec.containers.iter().zip(seen).map(|(container, seen)| container_status(container, seen));
    PodStatus {
        phase: Some(phase(spec.restart_policy.as_deref(), seen).to_owned()),
        conditions: Some(ours.into_iter().chain(theirs).collect()),
        container_statuses: Some(statuses.collect()),
        host_ip: Some(host.to_owned()),
        pod_ip: ip.map(str::to_owned),
        pod_ips: ip.map(|ip| vec![PodIP { ip: ip.to_owned() }]),
        start_time: before.start_time.or_else(|| Some(Time(Timestamp::now()))),
        qos_class: before.qos_class,
        ..PodStatus::default()
    }
}

/// A condition that keeps the time of its last change.
pub(crate) fn condition(kind: &str, holds: bool, before: &[PodCondition]) -> PodCondition {
    let status = if holds { "True" } else { "False" };
    let same = before.iter().find(|condition| condition.type_ == kind && condition.status == status);
    PodCondition {
        type_: kind.to_owned(),
        status: status.to_owned(),
        last_transition_time: same
            .and_then(|condition| condition.last_transition_time.clone())
            .or_else(|| Some(Time(Timestamp::now()))),
        ..PodCondition::default()
    }
}

/// Whether a container that has ended is to be started again.
pub(crate) fn restarts(policy: Option<&str>, exit_code: i32) -> bool {
    match policy {
        Some("Never") => false,
        Some("OnFailure") => exit_code != 0,
        _ => true,
    }
}

fn phase(policy: Option<&str>, seen: &[Seen]) -> &'static str {
    let all = || seen.iter().map(|container| container.cri.as_ref());
    if seen.is_empty() || all().any(|cri| cri.is_none_or(|cri| cri.state() == Cri::ContainerCreated)) {
        return "Pending";
    }
    let ended = |cri: &k8s_cri::v1::ContainerStatus| {
        cri.state() == Cri::ContainerExited && !restarts(policy, cri.exit_code)
    };
    match all().flatten().all(ended) {
        false => "Running",
        true if all().flatten().all(|cri| cri.exit_code == 0) => "Succeeded",
        true => "Failed",
    }
}

fn container_status(container: &Container, seen: &Seen) -> ContainerStatus {
    let cri = seen.cri.as_ref();
    let id = cri.map(|cri| format!("containerd://{}", cri.id));
    let running = cri.is_some_and(|cri| cri.state() == Cri::ContainerRunning);
    ContainerStatus {
        name: container.name.clone(),
        image: container.image.clone().unwrap_or_default(),
        image_id: cri.map(|cri| cri.image_ref.clone()).unwrap_or_default(),
        container_id: id.clone(),
        ready: seen.ready,
        started: Some(running),
        restart_count: seen.restarts,
        state: Some(state(seen, id)),
        ..ContainerStatus::default()
    }
}

fn state(seen: &Seen, id: Option<String>) -> ContainerState {
    let waiting = |reason: &str, message: Option<String>| ContainerState {
        waiting: Some(ContainerStateWaiting { reason: Some(reason.to_owned()), message }),
        ..ContainerState::default()
    };
    if let Some((reason, message)) = &seen.waiting {
        return waiting(reason, Some(message.clone()));
    }
    let Some(cri) = &seen.cri else { return waiting("ContainerCreating", None) };
    match cri.state() {
        Cri::ContainerRunning => ContainerState {
            running: Some(ContainerStateRunning { started_at: time(cri.started_at) }),
            ..ContainerState::default()
        },
        Cri::ContainerExited => ContainerState {
            terminated: Some(ContainerStateTerminated {
                container_id: id,
                exit_code: cri.exit_code,
                reason: Some(cri.reason.clone()),
                message: Some(cri.message.clone()),
                started_at: time(cri.started_at),
                finished_at: time(cri.finished_at),
                ..ContainerStateTerminated::default()
            }),
            ..ContainerState::default()
        },
        _ => waiting("ContainerCreating", None),
    }
}

/// CRI's times are nanoseconds, the API's seconds.
fn time(nanoseconds: i64) -> Option<Time> {
    (nanoseconds > 0).then(|| Timestamp::from_second(nanoseconds / 1_000_000_000).ok().map(Time))?
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::PodSpec;

    use super::*;

    fn pod(containers: usize) -> Pod {
        let containers = vec![Container { name: "app".into(), ..Container::default() }; containers];
        Pod { spec: Some(PodSpec { containers, ..PodSpec::default() }), ..Pod::default() }
    }

    fn seen(state: Cri, exit_code: i32, ready: bool) -> Seen {
        let cri = k8s_cri::v1::ContainerStatus { state: state.into(), exit_code, ..Default::default() };
        Seen { cri: Some(cri), ready, ..Seen::default() }
    }

    fn is_ready(status: &PodStatus) -> bool {
        status.conditions.iter().flatten().any(|c| c.type_ == "Ready" && c.status == "True")
    }

    #[test]
    fn a_pod_is_ready_when_all_its_containers_are() {
        let one = of(&pod(2), None, "", &[seen(Cri::ContainerRunning, 0, true), Seen::default()]);
        assert!(!is_ready(&one) && one.phase.as_deref() == Some("Pending"));
        let both = [seen(Cri::ContainerRunning, 0, true), seen(Cri::ContainerRunning, 0, true)];
        let both = of(&pod(2), Some("10.0.0.1"), "", &both);
        assert!(is_ready(&both) && both.phase.as_deref() == Some("Running"));
    }

    #[test]
    fn a_pod_ends_only_when_no_container_is_started_again() {
        let ended = [seen(Cri::ContainerExited, 0, false)];
        assert_eq!(phase(Some("Always"), &ended), "Running");
        assert_eq!(phase(Some("Never"), &ended), "Succeeded");
        let failed = [seen(Cri::ContainerExited, 1, false)];
        assert_eq!(phase(Some("OnFailure"), &failed), "Running");
        assert_eq!(phase(Some("Never"), &failed), "Failed");
    }

    #[test]
    fn a_condition_keeps_its_time_until_it_changes() {
        let old = Time(Timestamp::UNIX_EPOCH);
        let before =
            [PodCondition { last_transition_time: Some(old.clone()), ..condition("Ready", true, &[]) }];
        assert_eq!(condition("Ready", true, &before).last_transition_time, Some(old.clone()));
        assert_ne!(condition("Ready", false, &before).last_transition_time, Some(old));
    }
}
