//! Pools without a cluster: what is planned, what pods are made of, what a status says.

use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use kube::ResourceExt;
use serde_json::{Value, json};
use woodfrog_api::{Checkpoint, WarmPool, WarmPoolStatus, names, node_labels};

use super::desired::{Desired, Missing};
use super::observe::{Observed, Pods};
use super::plan::{Member, Plan, State, Wanted, plan};
use super::status;
use crate::agents::Heard;
use crate::stores::lost;
use crate::template::Template;

fn member(name: &str, revision: &str, state: State, created: i64) -> Member {
    Member {
        name: name.into(),
        uid: format!("uid-{name}"),
        resource_version: Some("1".into()),
        revision: revision.into(),
        created: Timestamp::from_second(created).ok(),
        state,
        report: None,
        kept: false,
    }
}

/// Pods from a line such as `"new:ready new:unready old:ready"`, named a, b, c, each a second younger than the one before.
fn members(line: &str) -> Vec<Member> {
    let pods = line.split_whitespace().zip(('a'..='z').zip(1..));
    pods.map(|(pod, (name, second))| {
        let (revision, state) = pod.split_once(':').unwrap();
        let state = match state {
            "ready" => State::Ready,
            "unready" => State::NotReady,
            "pending" => State::Unscheduled,
            "ended" => State::Ended,
            "early" => State::EndedEarly,
            _ => panic!("{state}"),
        };
        member(&name.to_string(), revision, state, second)
    })
    .collect()
}

fn wanted(replicas: usize, max_surge: usize) -> Wanted<'static> {
    Wanted { replicas, max_surge, revision: Some("new") }
}

fn names(members: &[Member]) -> String {
    members.iter().map(|member| member.name.as_str()).collect::<Vec<_>>().join(" ")
}

#[test]
fn pods_are_made_and_removed_as_the_situation_asks() {
    let situations = [
        ("a new pool", "", 3, 1, 3, ""),
        ("enough", "new:ready new:ready", 2, 1, 0, ""),
        ("scaled up", "new:ready", 4, 1, 3, ""),
        ("scaled down: the youngest goes", "new:ready new:ready new:ready", 2, 1, 0, "c"),
        ("scaled down: not ready before young", "new:ready new:unready new:ready", 2, 1, 0, "b"),
        ("scaled down: without a node before not ready", "new:unready new:pending new:ready", 1, 1, 0, "b a"),
        ("scaled to nothing", "new:ready new:pending old:ready", 0, 1, 0, "c b a"),
        ("a pod has ended", "new:ready new:ended", 2, 1, 1, "b"),
        ("a pod has ended right after its start", "new:ready new:early", 2, 1, 0, ""),
        ("such a pod is the first to go", "new:pending new:early", 1, 1, 0, "b"),
        ("a rollout begins", "old:ready old:ready", 2, 1, 1, ""),
        ("a rollout with more surge", "old:ready old:ready", 2, 5, 2, ""),
        ("a rollout waits for its new pod", "old:ready old:ready new:unready", 2, 1, 0, ""),
        ("a rollout goes on: the youngest old one goes", "old:ready old:ready new:ready", 2, 1, 0, "b"),
        ("old pods that are not ready go first", "old:unready old:ready new:ready", 2, 1, 0, "a"),
        ("but not before new ones stand in for them", "old:unready old:unready", 2, 1, 1, ""),
        ("a rollout's last step", "old:ready new:ready new:ready", 2, 1, 0, "a"),
        ("scaled down in a rollout", "old:ready old:ready old:ready new:unready", 1, 1, 0, "c b"),
        ("scaled up in a rollout", "old:ready old:ready new:ready", 4, 1, 2, ""),
        ("new pods that do not get ready keep the old ones in place", "old:ready new:unready", 1, 1, 0, ""),
        ("an older rollout that never worked is given up", "old:ready old:unready", 1, 1, 0, "b"),
    ];
    for (what, line, replicas, max_surge, make, delete) in situations {
        let plan = plan(&members(line), wanted(replicas, max_surge));
        assert_eq!((plan.make, names(&plan.delete).as_str()), (make, delete), "{what}");
        assert_eq!(plan.rolling_out, line.contains("old"), "{what}");
    }
}

#[test]
fn without_images_no_pod_is_made_or_old_but_a_pool_can_be_scaled_down() {
    let wanted = |replicas| Wanted { replicas, max_surge: 1, revision: None };
    let pods = members("old:ready older:ready");
    assert!(plan(&pods, wanted(5)).is_settled());
    assert_eq!(names(&plan(&pods, wanted(1)).delete), "b");
}

/// Carries plans out until nothing is left to be done; each round one pod that is not ready gets ready.
/// Returns the fewest ready and the most pods that there were.
fn simulate(pods: &mut Vec<Member>, wanted: Wanted<'_>) -> (usize, usize) {
    let ready = |pods: &[Member]| pods.iter().filter(|pod| pod.state == State::Ready).count();
    let (mut fewest, mut most) = (ready(pods), pods.len());
    for round in 0..1000 {
        let Plan { make, delete, .. } = plan(pods, wanted);
        pods.retain(|pod| !delete.contains(pod));
        for number in 0..make {
            let revision = wanted.revision.unwrap();
            pods.push(member(
                &format!("{revision}-{round}-{number}"),
                revision,
                State::NotReady,
                100 + round,
            ));
        }
        fewest = fewest.min(ready(pods));
        most = most.max(pods.len());
        if let Some(pod) = pods.iter_mut().find(|pod| pod.state == State::NotReady) {
            pod.state = State::Ready;
        } else if plan(pods, wanted).is_settled() {
            return (fewest, most);
        }
    }
    panic!("not settled: {pods:?}");
}

#[test]
fn a_rollout_comes_to_its_end_without_fewer_ready_or_more_than_the_surge() {
    for replicas in 1..=6 {
        for max_surge in 1..=3 {
            let mut pods = members(&"old:ready ".repeat(replicas));
            let (fewest, most) = simulate(&mut pods, wanted(replicas, max_surge));
            assert!(fewest == replicas && most == replicas + max_surge.min(replicas), "{fewest} to {most}");
            assert!(pods.len() == replicas && pods.iter().all(|pod| pod.revision == "new"), "{pods:?}");

            // And back, from the midst of it.
            let mut pods = members(&"old:ready new:ready older:unready ".repeat(replicas));
            simulate(&mut pods, Wanted { revision: Some("old"), ..wanted(replicas, max_surge) });
            assert!(pods.len() == replicas && pods.iter().all(|pod| pod.revision == "old"), "{pods:?}");
        }
    }
}

fn from<T: serde::de::DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).unwrap()
}

fn pool() -> WarmPool {
    from(json!({
        "apiVersion": "woodfrog.dev/v1alpha1", "kind": "WarmPool",
        "metadata": {"name": "shop", "namespace": "n", "uid": "pool-uid", "generation": 3},
        "spec": {
            "checkpointRef": {"name": "web"}, "replicas": 2,
            "template": {"labels": {"tier": "warm"}, "annotations": {"note": "pool's"}},
        },
    }))
}

fn checkpoint(digest: &str) -> Checkpoint {
    let compatibility = json!({
        "architecture": "x86_64", "cpuVendor": "GenuineIntel", "cpuFeatures": ["avx2"], "xsaveBytes": 832,
        "kernel": "6.18.1", "criu": "4.2.1", "pageBytes": 4096, "cgroupVersion": 2,
    });
    from(json!({
        "apiVersion": "woodfrog.dev/v1alpha1", "kind": "Checkpoint",
        "metadata": {"name": "web", "namespace": "n"},
        "spec": {"source": {"workloadRef": {"kind": "Deployment", "name": "web"}}, "image": "localhost:5000/web:warm"},
        "status": {"phase": "Ready", "containers": [{
            "name": "app", "image": "localhost:5000/web:warm", "digest": digest, "layerBytes": 1, "compressedBytes": 1,
            "memoryBytes": 1, "freezeMs": 1, "compatibility": compatibility,
        }]},
    }))
}

fn template() -> Template {
    let terms = json!([
        {"matchExpressions": [{"key": "disk", "operator": "In", "values": ["ssd"]}]},
        {"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["node-1"]}]},
        {},
    ]);
    Template {
        labels: from(json!({"app": "web", "tier": "cold", "woodfrog.dev/pool": "another"})),
        annotations: from(json!({"note": "template's"})),
        spec: from(json!({
            "nodeName": "node-9",
            "affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}}},
            "containers": [{"name": "app", "image": "web:cold"}, {"name": "log", "image": "log:1"}],
        })),
    }
}

fn desired(checkpoint: &Checkpoint, template: Template) -> Result<Desired, Missing> {
    Desired::of(&pool(), Some(checkpoint), Ok(Some(template)))
}

#[test]
fn a_pod_has_the_templates_all_and_the_images_labels_and_nodes_of_its_pool() {
    let desired = desired(&checkpoint("sha256:aa"), template()).unwrap();
    let pod = desired.pod(desired.name(&pool(), 7));
    assert_eq!(pod.name_any(), format!("shop-{}-7", desired.revision));
    assert_eq!(pod.namespace().as_deref(), Some("n"));
    assert_eq!(
        serde_json::to_value(pod.labels()).unwrap(),
        json!({"app": "web", "tier": "warm", "woodfrog.dev/pool": "shop", "woodfrog.dev/revision": desired.revision})
    );
    assert_eq!(
        serde_json::to_value(pod.annotations()).unwrap(),
        json!({"note": "pool's", "woodfrog.dev/managed": "true"})
    );
    let owner = &pod.owner_references()[0];
    assert!(owner.controller == Some(true) && owner.uid == "pool-uid" && owner.kind == "WarmPool");

    let spec = pod.spec.as_ref().unwrap();
    let images: Vec<_> = spec.containers.iter().filter_map(|container| container.image.as_deref()).collect();
    assert_eq!(images, ["localhost:5000/web@sha256:aa", "log:1"]);
    assert!(spec.node_name.is_none() && spec.restart_policy.as_deref() == Some("Always"));
}

#[test]
fn each_term_of_the_templates_node_affinity_gets_what_the_images_require() {
    let checkpoint = checkpoint("sha256:aa");
    let image = checkpoint.status.as_ref().unwrap().containers[0].compatibility.clone().unwrap();
    let terms = |template| {
        let pod = desired(&checkpoint, template).unwrap().pod("shop-0".into());
        let node = pod.spec.unwrap().affinity.unwrap().node_affinity.unwrap();
        node.required_during_scheduling_ignored_during_execution.unwrap().node_selector_terms
    };
    let ours = node_labels::requirements(&image);
    let all = terms(template());
    // The third selects no node, and must not begin to.
    assert_eq!(all.len(), 2);
    assert!(all.iter().all(|term| term.match_expressions.as_ref().unwrap().ends_with(&ours)));
    assert_eq!(all[0].match_expressions.as_ref().unwrap()[0].key, "disk");
    assert!(all[1].match_fields.is_some());

    let mut plain = template();
    plain.spec.affinity = None;
    let only = terms(plain);
    assert_eq!(only.len(), 1);
    assert_eq!(only[0].match_expressions.as_ref(), Some(&ours));
}

#[test]
fn a_revision_changes_with_image_and_template_but_not_with_an_image_that_is_replaced_anyway() {
    let revision = |digest: &str, template| desired(&checkpoint(digest), template).unwrap().revision;
    let first = revision("sha256:aa", template());
    assert_eq!(first, revision("sha256:aa", template()));
    assert_ne!(first, revision("sha256:bb", template()));
    let mut relabelled = template();
    relabelled.labels.insert("app".into(), "shop".into());
    assert_ne!(first, revision("sha256:aa", relabelled));
    // The Deployment has a new image: the Checkpoint is made anew, and only then are its pods old.
    let mut newer = template();
    newer.spec.containers[0].image = Some("web:cold-2".into());
    assert_eq!(first, revision("sha256:aa", newer));
}

#[test]
fn a_checkpoint_that_pods_cannot_be_made_from_says_why() {
    let reason = |result: Result<Desired, Missing>| {
        let missing = result.unwrap_err();
        format!("{}: {}", missing.reason, missing.message)
    };
    let none = reason(Desired::of(&pool(), None, Ok(None)));
    assert!(none.starts_with("CheckpointNotFound: there is no Checkpoint web"), "{none}");
    let of_a_pod = reason(Desired::of(&pool(), Some(&checkpoint("d")), Ok(None)));
    assert!(
        of_a_pod.starts_with("CheckpointFailed") && of_a_pod.contains("spec.source.template"),
        "{of_a_pod}"
    );

    let mut pending = checkpoint("d");
    pending.status.as_mut().unwrap().containers.clear();
    let pending_says = reason(desired(&pending, template()));
    assert!(
        pending_says.starts_with("CheckpointPending: Checkpoint web has no images yet"),
        "{pending_says}"
    );
    let status = pending.status.as_mut().unwrap();
    status.phase = Some(woodfrog_api::Phase::Failed);
    status.conditions = from(json!([{
        "type": "Ready", "status": "False", "reason": "PushFailed", "message": "the registry is away",
        "lastTransitionTime": "2026-01-01T00:00:00Z",
    }]));
    let failed = reason(desired(&pending, template()));
    assert!(failed.starts_with("CheckpointFailed") && failed.ends_with("the registry is away"), "{failed}");

    let mut other = template();
    other.spec.containers.remove(0);
    let other = reason(desired(&checkpoint("d"), other));
    assert!(other.starts_with("CheckpointPending") && other.contains("container app"), "{other}");
}

/// A pod of the pool as the API server has it, with fields over it.
fn pod(name: &str, status: Value, change: impl FnOnce(&mut Pod)) -> Arc<Pod> {
    let desired = desired(&checkpoint("sha256:aa"), template()).unwrap();
    let mut pod = desired.pod(name.into());
    pod.metadata.uid = Some(format!("uid-{name}"));
    pod.metadata.creation_timestamp = Some(from(json!("2026-01-01T00:00:00Z")));
    pod.status = from(status);
    change(&mut pod);
    Arc::new(pod)
}

fn running() -> Value {
    json!({"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]})
}

fn later(seconds: i64) -> Timestamp {
    "2026-01-01T00:00:00Z".parse::<Timestamp>().unwrap() + SignedDuration::from_secs(seconds)
}

#[test]
fn pods_that_are_released_deleted_or_others_own_do_not_count() {
    let relabel = |label: Option<&str>| {
        let label = label.map(str::to_owned);
        move |pod: &mut Pod| {
            pod.labels_mut().remove(names::POOL_LABEL);
            pod.labels_mut().extend(label.map(|label| (names::POOL_LABEL.to_owned(), label)));
        }
    };
    let pods = [
        pod("a", running(), |_| {}),
        pod("b", running(), relabel(None)),
        pod("c", running(), relabel(Some("another"))),
        pod("d", running(), |pod| {
            pod.metadata.deletion_timestamp = Some(from(json!("2026-01-01T00:00:00Z")))
        }),
        pod("e", running(), |pod| pod.metadata.owner_references = None),
        pod("f", json!({"phase": "Failed"}), |_| {}),
    ];
    let seen = Pods::of(&pool(), pods.clone(), later(60));
    assert_eq!(names(&seen.members), "a f");
    assert_eq!(seen.members[1].state, State::Ended);
    assert_eq!(seen.claimed.iter().map(|pod| pod.name_any()).collect::<String>(), "bc");
    assert_eq!((seen.running, seen.again), (1, None));

    let seen = Pods::of(&pool(), pods, later(4));
    assert_eq!(seen.members[1].state, State::EndedEarly);
    assert_eq!(seen.again.map(|again| again.as_secs()), Some(6));
}

#[test]
fn a_pod_that_has_lost_the_label_by_which_it_is_watched_is_claimed_and_one_that_is_deleted_is_not() {
    let kept = pod("a", running(), |_| {});
    let deleted = pod("b", running(), |pod| {
        pod.metadata.deletion_timestamp = Some(from(json!("2026-01-01T00:00:00Z")))
    });
    let seen = Pods::of(&pool(), [lost(&kept), lost(&deleted)].into_iter().flatten(), later(60));
    assert_eq!(seen.claimed.iter().map(|pod| pod.name_any()).collect::<String>(), "a");
    assert!(seen.members.is_empty());
}

#[test]
fn pods_that_sleep_are_told_how_and_a_change_of_it_replaces_them() {
    let annotations = |pool: &WarmPool| {
        let desired = Desired::of(pool, Some(&checkpoint("sha256:aa")), Ok(Some(template()))).unwrap();
        let pod = desired.pod("a".into());
        let ours = pod.annotations().iter().filter(|(key, _)| key.starts_with(names::PREFIX));
        let ours = ours.map(|(key, value)| format!("{}={value}", key.trim_start_matches(names::PREFIX)));
        (ours.collect::<Vec<_>>().join(" "), desired.revision)
    };
    let mut pool = pool();
    let (awake, first) = annotations(&pool);
    assert_eq!(awake, "managed=true");
    pool.spec.standby = woodfrog_api::Standby::Dormant;
    let (dormant, second) = annotations(&pool);
    assert_eq!(dormant, "managed=true standby=Dormant");
    pool.spec.idle_timeout = Some("5m".parse().unwrap());
    pool.spec.min_awake_time = Some("30s".parse().unwrap());
    pool.spec.on_idle = woodfrog_api::OnIdle::Save;
    let (all, third) = annotations(&pool);
    assert_eq!(all, "idle-timeout=5m managed=true min-awake-time=30s on-idle=Save standby=Dormant");
    // How many are kept awake is told to the pods that there are.
    pool.spec.min_awake = Some(2);
    assert_eq!(annotations(&pool), (all, third.clone()));
    assert!(first != second && second != third);
}

/// A pod whose agent says this of its sleep.
fn sleeper(name: &str, state: &str, recent_ms: &[u32], quarantine: Option<&str>) -> Arc<Pod> {
    let report = json!({
        "state": state, "since": "2026-01-01T00:00:00Z", "wakes": recent_ms.len(), "failed": 1, "recentMs": recent_ms,
        "quarantine": quarantine,
    });
    pod(name, running(), |pod| {
        pod.annotations_mut().insert(names::REPORT_ANNOTATION.into(), report.to_string());
    })
}

#[test]
fn a_status_of_pods_that_sleep_says_what_their_agents_say() {
    let mut pool = pool();
    pool.spec.standby = woodfrog_api::Standby::Dormant;
    let pods = [sleeper("a", "Awake", &[40, 60], None), sleeper("b", "Dormant", &[50], None)];
    let (status, _) = after(&mut pool, &pods, 5, None);
    assert_eq!((status.ready_replicas, status.awake, status.dormant), (2, 1, 1));
    assert_eq!((status.wakes, status.failed_wakes), (3, 2));
    assert_eq!(status.wake_time, Some(woodfrog_api::WakeTime { median_ms: 50, p95_ms: 60 }));
    assert_eq!(condition(&status, "Degraded"), "False AllWell pods sleep and wake as they should");
    // One of which nothing is known is neither.
    let pods = [sleeper("a", "Dormant", &[], Some("its image has failed")), pod("b", running(), |_| {})];
    let (status, notes) = after(&mut pool, &pods, 6, None);
    assert_eq!((status.awake, status.dormant), (0, 1));
    assert_eq!(
        condition(&status, "Degraded"),
        "True ImageQuarantined cold starts instead of wakes, 1 pod concerned: its image has failed"
    );
    assert_eq!(notes, "ImageQuarantined");
}

#[test]
fn a_pool_says_once_whose_agents_are_silent_until_all_are_heard_again() {
    let mut pool = pool();
    let pods = [pod("a", running(), |_| {}), pod("b", running(), |_| {})];
    let mut say = |silent: &[&str], unsure| {
        let silent = silent.iter().map(|node| ((*node).to_owned(), Some(later(0)))).collect();
        let heard = Heard { silent, unsure };
        let (status, notes) = after_hearing(&mut pool, &pods, 60, None, &heard);
        (condition(&status, "Degraded"), notes)
    };
    assert_eq!(say(&[], false), ("False AllWell no agent is silent".into(), String::new()));
    // One that nobody has watched for long enough.
    assert_eq!(say(&[], true).0, "False AllWell no agent is silent");
    let (said, notes) = say(&["n1"], true);
    let expected = "True AgentSilent no word from the node agents of n1 (since 2026-01-01T00:00:00Z): new pods there start cold";
    assert!(said.starts_with(expected), "{said}");
    assert_eq!(notes, "AgentSilent");
    let (both, notes) = say(&["n1", "n2"], false);
    assert!(both.contains("n1 (since") && both.contains("n2 (since") && notes.is_empty(), "{both} {notes}");
    // Another operator, who has just begun to listen.
    assert_eq!(say(&[], true), (both, String::new()));
    assert_eq!(say(&[], false).0, "False AllWell no agent is silent");
}

#[test]
fn only_nodes_of_pods_that_live_need_an_agent() {
    let on = |name: &str, node: &str, status: Value| {
        let node = node.to_owned();
        pod(name, status, |pod| pod.spec.as_mut().unwrap().node_name = Some(node))
    };
    let pods = [
        on("a", "n1", running()),
        on("b", "n1", json!({"phase": "Pending"})),
        on("c", "n2", json!({"phase": "Failed"})),
        on("d", "", json!({"phase": "Pending"})),
    ];
    assert_eq!(Pods::of(&pool(), pods, later(60)).nodes, ["n1".to_owned()].into());
}

#[test]
fn of_pods_that_are_missed_alike_those_that_sleep_go_first() {
    let pods = [sleeper("a", "Dormant", &[], None), sleeper("b", "Awake", &[], None)];
    let seen = Pods::of(&pool(), pods, later(60));
    let revision = seen.members[0].revision.clone();
    let wanted = Wanted { replicas: 1, max_surge: 1, revision: Some(&revision) };
    assert_eq!(names(&plan(&seen.members, wanted).delete), "a");
}

/// The pool as its status makes it, and what was said.
fn after(
    pool: &mut WarmPool,
    pods: &[Arc<Pod>],
    seconds: i64,
    refused: Option<&str>,
) -> (WarmPoolStatus, String) {
    after_hearing(pool, pods, seconds, refused, &Heard::default())
}

/// The same, with what is known of the agents of its nodes.
fn after_hearing(
    pool: &mut WarmPool,
    pods: &[Arc<Pod>],
    seconds: i64,
    refused: Option<&str>,
    agents: &Heard,
) -> (WarmPoolStatus, String) {
    let desired = Desired::of(pool, Some(&checkpoint("sha256:aa")), Ok(Some(template())));
    let pods = Pods::of(pool, pods.iter().cloned(), later(seconds));
    let observed = Observed { desired, pods, agents: agents.clone(), unserved: false };
    let plan = plan(&observed.pods.members, super::wanted(pool, &observed));
    let status = status::status(pool, &observed, &plan, refused, later(seconds));
    let notes =
        status::notes(pool, &status).into_iter().map(|note| note.reason).collect::<Vec<_>>().join(" ");
    pool.status = Some(status.clone());
    (status, notes)
}

fn condition(status: &WarmPoolStatus, type_: &str) -> String {
    let found = status.conditions.iter().find(|condition| condition.type_ == type_).unwrap();
    format!("{} {} {}", found.status, found.reason, found.message)
}

#[test]
fn a_status_counts_and_explains_and_says_each_thing_once() {
    let mut pool = pool();
    let (status, notes) = after(&mut pool, &[], 0, None);
    assert_eq!(condition(&status, "Available"), "False TooFewReady 0 of 2 pods are ready");
    assert_eq!(condition(&status, "Progressing"), "True Scaling makes 2 pods");
    assert_eq!(
        condition(&status, "CheckpointReady"),
        "True CheckpointHasImages pods are made from localhost:5000/web@sha256:aa"
    );
    assert_eq!(notes, "Scaling");
    assert_eq!(
        (status.selector.as_deref(), status.observed_generation),
        (Some("woodfrog.dev/pool=shop"), Some(3))
    );
    assert_eq!(status.image.as_deref(), Some("localhost:5000/web@sha256:aa"));

    let pending = json!({"phase": "Pending", "conditions": [{
        "type": "PodScheduled", "status": "False", "reason": "Unschedulable",
        "message": "0/1 nodes are available: 1 node(s) didn't match Pod's node affinity/selector.",
    }]});
    let unscheduled = |pod: &mut Pod| pod.spec.as_mut().unwrap().node_name = None;
    let pods = [pod("a", running(), |_| {}), pod("b", pending, unscheduled)];
    let (status, notes) = after(&mut pool, &pods, 5, None);
    assert!(
        condition(&status, "Available")
            .starts_with("False NoCompatibleNode 1 of 2 pods are ready; no node can")
    );
    assert_eq!(condition(&status, "Progressing"), "False Settled nothing is left to be done");
    assert_eq!(notes, "NoCompatibleNode");
    assert_eq!((status.replicas, status.ready_replicas, status.updated_replicas, status.awake), (2, 1, 2, 1));
    // Only the condition that changed has a new time.
    let times =
        status.conditions.iter().map(|condition| condition.last_transition_time.0).collect::<Vec<_>>();
    assert_eq!(times, [later(0), later(5), later(0), later(0)]);
    let (again, notes) = after(&mut pool, &pods, 60, None);
    assert_eq!((again, notes.as_str()), (status, ""));

    let pods = [pod("a", running(), |_| {}), pod("b", running(), |_| {})];
    let (status, notes) = after(&mut pool, &pods, 70, None);
    assert_eq!(condition(&status, "Available"), "True EnoughReady 2 of 2 pods are ready");
    assert_eq!(notes, "");

    pool.spec.replicas = 3;
    let (status, notes) = after(&mut pool, &pods, 80, Some("the API server refuses the pods: no"));
    assert_eq!(condition(&status, "Progressing"), "False PodsRefused the API server refuses the pods: no");
    assert!(
        condition(&status, "Available")
            .starts_with("False PodsRefused 2 of 3 pods are ready; the API server")
    );
    assert_eq!(notes, "PodsRefused");
}
