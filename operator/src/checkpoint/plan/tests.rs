//! Lives of Checkpoints, step by step: each plan's status is what the next look finds.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::ResourceExt;
use serde_json::{Value, json};

use super::*;
use crate::checkpoint::pod;
use crate::stores::node_of;

/// A Checkpoint, its pod and its agent, at a moment.
struct World {
    checkpoint: Checkpoint,
    pod: Option<Pod>,
    rival: Option<String>,
    silent_nodes: Vec<String>,
    now: i64,
}

impl World {
    fn edit_template(&mut self, edit: impl FnOnce(&mut serde_json::Value)) {
        let spec = &mut self.checkpoint.spec.source.template.as_mut().unwrap().spec;
        let mut value = serde_json::to_value(&*spec).unwrap();
        edit(&mut value);
        *spec = serde_json::from_value(value).unwrap();
    }

    fn new(spec: Value) -> Self {
        let checkpoint = json!({
            "apiVersion": "woodfrog.dev/v1alpha1",
            "kind": "Checkpoint",
            "metadata": { "name": "web", "namespace": "shop", "uid": "c-1", "generation": 1 },
            "spec": spec,
        });
        let checkpoint = serde_json::from_value(checkpoint).unwrap();
        Self { checkpoint, pod: None, rival: None, silent_nodes: Vec::new(), now: 1000 }
    }

    fn of_a_template() -> Self {
        Self::new(json!({
            "source": { "template": { "spec": { "containers": [{ "name": "app", "image": "r.example/web:1" }] } } },
            "image": "r.example/web:warm",
            "retries": 1,
        }))
    }

    fn template(&self) -> Option<Template> {
        let template = self.checkpoint.spec.source.template.as_ref()?;
        Some(Template { spec: template.pod_spec().unwrap(), ..Template::default() })
    }

    fn look(&mut self) -> Plan {
        let template = self.template();
        let attempt = Attempt::due(&self.checkpoint, template.as_ref());
        let due = pod::name(&self.checkpoint, attempt.number);
        let named = self.checkpoint.spec.source.pod_name.clone().unwrap_or(due);
        let (pod, leftovers) = self.pod.clone().into_iter().partition(|pod: &Pod| pod.name_any() == named);
        let (pod, leftovers): (Vec<_>, Vec<_>) = (pod, leftovers);
        let now = Timestamp::from_second(self.now).unwrap();
        let pod = pod.into_iter().next();
        let node = pod.as_ref().and_then(node_of);
        let seen = Seen {
            agent_is_silent: node.is_some_and(|node| self.silent_nodes.iter().any(|silent| silent == node)),
            silent_nodes: self.silent_nodes.clone(),
            template: Ok(template),
            pod,
            leftovers,
            rival: self.rival.clone(),
            plain_http: vec!["r.example".into()],
            now,
        };
        let plan = plan(&self.checkpoint, &attempt, &seen);
        let agent = self.checkpoint.status.take().and_then(|status| status.agent);
        self.checkpoint.status = Some(CheckpointStatus { agent, ..plan.status.clone() });
        if let Some(pod) = &plan.create {
            let mut pod = Pod::clone(pod);
            pod.metadata.uid = Some(format!("uid of {}", pod.name_any()));
            pod.metadata.creation_timestamp = Some(Time(now));
            self.pod = Some(pod);
        }
        if plan
            .delete
            .iter()
            .any(|deleted| Some(deleted.name_any()) == self.pod.as_ref().map(ResourceExt::name_any))
        {
            self.pod = None;
        }
        plan
    }

    fn pod_is(&mut self, phase: &str, ready: bool) {
        let pod = self.pod.as_mut().unwrap();
        pod.spec.as_mut().unwrap().node_name = Some("node-1".into());
        let ready = if ready { "True" } else { "False" };
        let status = json!({ "phase": phase, "conditions": [{ "type": "Ready", "status": ready }] });
        pod.status = Some(serde_json::from_value(status).unwrap());
    }

    fn agent_says(&mut self, more: Value) {
        let status = self.checkpoint.status.as_mut().unwrap();
        let instruction = status.instruction.as_ref().unwrap();
        let mut agent = json!({
            "node": "node-1",
            "attempt": instruction.attempt,
            "podUid": instruction.pod_uid,
            "heartbeat": Time(Timestamp::from_second(self.now).unwrap()),
        });
        agent.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        status.agent = Some(serde_json::from_value(agent).unwrap());
    }

    /// Up to the instruction.
    fn instructed(&mut self) -> Instruction {
        assert!(self.look().create.is_some());
        self.pod_is("Running", true);
        self.look().status.instruction.unwrap()
    }

    fn is_done(&mut self, digest: &str) {
        let said = self.checkpoint.status.as_ref().and_then(|status| status.agent.clone());
        self.agent_says(json!({
            "phase": "Done",
            "pushed": said.map(|said| said.pushed).unwrap_or_default(),
            "containers": [{
                "name": "app", "image": "r.example/web:warm", "digest": digest, "layerBytes": 30 << 20,
                "compressedBytes": 12 << 20, "memoryBytes": 29 << 20, "freezeMs": 80,
            }],
        }));
    }
}

fn ready(plan: &Plan) -> (&str, &str) {
    let condition = plan.status.conditions.iter().find(|condition| condition.type_ == "Ready").unwrap();
    (&condition.status, &condition.reason)
}

#[test]
fn a_checkpoint_becomes_ready_phase_by_phase_and_its_pod_goes() {
    let mut world = World::of_a_template();
    let plan = world.look();
    let pod = plan.create.as_ref().unwrap();
    assert_eq!(pod.name_any(), "web-warm-1");
    assert_eq!(pod.annotations()["woodfrog.dev/managed"], "true");
    assert_eq!(pod.spec.as_ref().unwrap().restart_policy.as_deref(), Some("Never"));
    assert_eq!((plan.status.phase, ready(&plan)), (Some(Phase::Pending), ("False", "InProgress")));

    world.pod_is("Pending", false);
    assert_eq!(world.look().status.phase, Some(Phase::Pending));
    world.pod_is("Running", false);
    let plan = world.look();
    assert_eq!((plan.status.phase, plan.node), (Some(Phase::WarmingUp), None));
    world.pod_is("Running", true);
    let plan = world.look();
    assert_eq!(plan.node.as_deref(), Some("node-1"));
    let instruction = plan.status.instruction.unwrap();
    assert_eq!((instruction.attempt, instruction.pod_uid.as_str()), (1, "uid of web-warm-1"));
    assert_eq!(instruction.containers[0].image, "r.example/web:warm");

    for (phase, expected) in [
        ("WarmingUp", Phase::WarmingUp),
        ("Freezing", Phase::Freezing),
        ("Pushing", Phase::Pushing),
        ("Freezing", Phase::Pushing),
    ] {
        world.agent_says(json!({ "phase": phase, "bytesDone": 5 << 20, "bytesTotal": 10 << 20, "bytesPerSecond": 1 << 20 }));
        let plan = world.look();
        assert_eq!(plan.status.phase, Some(expected));
        assert_eq!(plan.status.summary.unwrap().progress.as_deref(), Some("50% (1.0 MiB/s)"));
    }
    world.is_done("sha256:a");
    let plan = world.look();
    assert_eq!((plan.status.phase, ready(&plan)), (Some(Phase::Ready), ("True", "Succeeded")));
    assert_eq!((plan.node, plan.status.instruction, plan.grant), (None, None, false));
    assert_eq!(plan.status.summary.unwrap().size.as_deref(), Some("12 MiB"));
    assert_eq!(plan.delete.len(), 1);
    assert_eq!(plan.notes.len(), 1);

    let plan = world.look();
    assert_eq!((plan.delete.len(), plan.notes.len(), plan.create, plan.next), (0, 0, None, None));
}

#[test]
fn an_image_that_does_not_say_what_is_wanted_first_is_ready_all_the_same_and_an_event_says_why() {
    let mut world = World::of_a_template();
    world.instructed();
    world.is_done("sha256:a");
    let before = world.look();
    assert_eq!(before.notes.len(), 1, "nobody has asked for it");

    world.checkpoint.spec.record_working_set = true;
    assert_eq!(world.look().create.unwrap().name_any(), "web-warm-2", "the image is another one");
    world.pod_is("Running", true);
    assert!(world.look().status.instruction.unwrap().record_working_set);
    world.is_done("sha256:b");
    let containers = &mut world.checkpoint.status.as_mut().unwrap().agent.as_mut().unwrap().containers;
    containers[0].warnings = vec!["the image does not say which memory is wanted first: no pager".into()];
    let plan = world.look();
    assert_eq!(ready(&plan), ("True", "Succeeded"));
    let [_, note] = plan.notes.as_slice() else { panic!("{:?}", plan.notes) };
    assert_eq!(note.reason, "WorkingSetNotRecorded");
    assert!(note.text.ends_with("no pager"), "{}", note.text);
}

#[test]
fn a_change_of_the_source_makes_it_anew_and_the_old_image_stays_until_then() {
    let mut world = World::of_a_template();
    world.instructed();
    world.is_done("sha256:a");
    world.look();
    world.edit_template(|spec| spec["containers"][0]["image"] = "r.example/web:2".into());
    let plan = world.look();
    assert_eq!(plan.create.as_ref().unwrap().name_any(), "web-warm-2");
    assert_eq!(plan.status.containers[0].digest, "sha256:a");
    world.pod_is("Running", true);
    world.look();
    world.is_done("sha256:b");
    let plan = world.look();
    assert_eq!(plan.status.containers[0].digest, "sha256:b");
    assert_eq!(plan.status.history[0].digest, "sha256:a");
}

#[test]
fn a_failed_attempt_is_repeated_after_a_while_and_the_last_one_ends_it() {
    let mut world = World::of_a_template();
    world.instructed();
    world.agent_says(json!({ "phase": "Failed", "reason": "Preflight", "message": "io_uring" }));
    let plan = world.look();
    assert_eq!(ready(&plan), ("False", "BackingOff"));
    assert_eq!((plan.status.attempt, plan.status.instruction, plan.delete.len()), (Some(2), None, 1));
    assert_eq!(plan.notes[0].reason, "PreflightFailed");
    assert!(world.look().create.is_none(), "not before the wait is over");
    world.now += 11;
    assert_eq!(world.look().create.unwrap().name_any(), "web-warm-2");
    world.pod_is("Running", true);
    world.look();
    world.agent_says(json!({ "phase": "Failed", "reason": "Preflight", "message": "io_uring" }));
    let plan = world.look();
    assert_eq!((plan.status.phase, ready(&plan)), (Some(Phase::Failed), ("False", "RetriesExhausted")));
    let message = &plan.status.conditions.iter().find(|c| c.type_ == "Ready").unwrap().message;
    assert!(message.contains("io_uring"), "{message}");
    assert_eq!(plan.next, None);
    world.now += 100_000;
    assert!(world.look().create.is_none());
}

#[test]
fn what_an_agent_says_of_another_attempt_or_pod_does_not_count() {
    let mut world = World::of_a_template();
    world.instructed();
    world.agent_says(json!({ "phase": "Failed", "attempt": 7 }));
    assert_eq!(ready(&world.look()), ("False", "InProgress"));
    world.agent_says(json!({ "phase": "Done", "podUid": "another" }));
    assert_eq!(ready(&world.look()), ("False", "InProgress"));
}

#[test]
fn every_phase_has_its_deadline() {
    let failed = |world: &mut World| {
        let plan = world.look();
        (plan.outcome.clone(), ready(&plan).1.to_owned())
    };
    let late = |outcome: &str| (Some(outcome.to_owned()), "BackingOff".to_owned());

    let mut starting = World::of_a_template();
    starting.look();
    starting.now += 601;
    assert_eq!(failed(&mut starting), late("StartTimedOut"));

    let mut never_ready = World::of_a_template();
    never_ready.look();
    never_ready.pod_is("Running", false);
    never_ready.look();
    never_ready.now += 601;
    assert_eq!(failed(&mut never_ready), late("WarmUpTimedOut"));

    let mut unheard = World::of_a_template();
    unheard.instructed();
    unheard.now += 61;
    assert_eq!(failed(&mut unheard), late("AgentSilent"));

    let mut silent = World::of_a_template();
    silent.instructed();
    silent.agent_says(json!({ "phase": "Freezing" }));
    silent.look();
    silent.now += 61;
    assert_eq!(failed(&mut silent), late("AgentSilent"));

    for (phase, limit, outcome) in [
        ("WarmingUp", 631, "WarmUpTimedOut"),
        ("Freezing", 301, "FreezeTimedOut"),
        ("Pushing", 1801, "PushTimedOut"),
    ] {
        let mut slow = World::of_a_template();
        slow.instructed();
        slow.agent_says(json!({ "phase": phase }));
        slow.look();
        slow.now += limit;
        slow.agent_says(json!({ "phase": phase }));
        assert_eq!(failed(&mut slow), late(outcome));
    }
}

/// What the agent says when it begins to push.
fn pushing(digests: &[&str]) -> Value {
    let pushed = digests
        .iter()
        .map(|digest| json!({ "name": "app", "image": "r.example/web:warm", "digest": digest }));
    json!({ "phase": "Pushing", "pushed": pushed.collect::<Vec<_>>() })
}

/// Digests of images of no use.
fn unfinished(plan: &Plan) -> Vec<&str> {
    let unfinished = plan.status.history.iter().filter(|past| past.unfinished);
    unfinished.map(|past| past.digest.as_str()).collect()
}

#[test]
fn an_agent_whose_lease_is_over_is_named_and_has_its_time_to_come_back() {
    let mut world = World::of_a_template();
    world.silent_nodes = vec!["node-1".into()];
    world.instructed();
    world.now += 30;
    let plan = world.look();
    assert_eq!((ready(&plan), plan.outcome.as_deref()), (("False", "AgentSilent"), None));
    assert!(plan.status.instruction.is_some() && plan.notes.is_empty(), "{:?}", plan.notes);
    // An agent of a release that has no lease.
    world.agent_says(json!({ "phase": "WarmingUp" }));
    assert_eq!(ready(&world.look()), ("False", "InProgress"));
    world.now += 30;
    assert_eq!(ready(&world.look()), ("False", "AgentSilent"));
    world.silent_nodes.clear();
    world.agent_says(json!({ "phase": "Freezing" }));
    assert_eq!(ready(&world.look()), ("False", "InProgress"));

    // The next attempt goes elsewhere, if it can.
    world.silent_nodes = vec!["node-1".into()];
    world.now += 61;
    assert_eq!(world.look().outcome.as_deref(), Some("AgentSilent"));
    world.now += 601;
    let pod = world.look().create.unwrap();
    let affinity = pod.spec.unwrap().affinity.unwrap().node_affinity.unwrap();
    let preferred = affinity.preferred_during_scheduling_ignored_during_execution.unwrap();
    assert_eq!(preferred[0].preference.match_fields.as_ref().unwrap()[0].values, Some(vec!["node-1".into()]));
}

#[test]
fn what_a_killed_agent_pushed_is_known_though_its_work_succeeds_when_it_is_repeated() {
    let mut world = World::of_a_template();
    world.instructed();
    world.agent_says(pushing(&["sha256:lost"]));
    assert_eq!(unfinished(&world.look()), ["sha256:lost"]);
    world.agent_says(pushing(&["sha256:lost", "sha256:a"]));
    assert_eq!(unfinished(&world.look()), ["sha256:a", "sha256:lost"]);
    world.is_done("sha256:a");
    let plan = world.look();
    assert_eq!((plan.status.phase, unfinished(&plan)), (Some(Phase::Ready), vec!["sha256:lost"]));
    assert_eq!(plan.status.history.len(), 1);
    // Once it is deleted, old words do not bring it back.
    world.checkpoint.status.as_mut().unwrap().history.clear();
    assert_eq!(unfinished(&world.look()).len(), 0);
}

#[test]
fn what_was_pushed_on_a_node_that_died_is_known_when_another_node_makes_the_image() {
    let mut world = World::of_a_template();
    world.instructed();
    world.agent_says(pushing(&["sha256:lost"]));
    world.now += 61;
    let plan = world.look();
    assert_eq!((plan.outcome.as_deref(), unfinished(&plan)), (Some("AgentSilent"), vec!["sha256:lost"]));
    world.now += 11;
    world.instructed();
    world.is_done("sha256:a");
    assert_eq!(unfinished(&world.look()), ["sha256:lost"]);
}

#[test]
fn what_is_pushed_while_the_source_changes_or_the_attempt_fails_is_known() {
    let mut world = World::of_a_template();
    world.instructed();
    world.agent_says(pushing(&["sha256:old"]));
    world.edit_template(|spec| spec["containers"][0]["image"] = "r.example/web:2".into());
    assert_eq!(unfinished(&world.look()), ["sha256:old"]);

    let mut world = World::of_a_template();
    world.checkpoint.spec.retries = 0;
    world.instructed();
    let mut said = pushing(&["sha256:half"]);
    said["phase"] = "Failed".into();
    world.agent_says(said);
    let plan = world.look();
    assert_eq!((plan.status.phase, unfinished(&plan)), (Some(Phase::Failed), vec!["sha256:half"]));
}

#[test]
fn images_that_the_agent_was_not_told_to_make_never_come_into_the_history() {
    let mut world = World::of_a_template();
    world.checkpoint.spec.retries = 0;
    world.instructed();
    let foreign = ["r.example/other:warm", "r.example/web:live", "evil.example/web:warm"];
    let pushed = foreign.map(|image| json!({ "name": "app", "image": image, "digest": "sha256:foreign" }));
    world.agent_says(json!({ "phase": "Pushing", "pushed": pushed }));
    assert_eq!(world.look().status.history, []);
    // Nor do they become its images, which would be history one day.
    let mut made = pushed[0].clone();
    for bytes in ["layerBytes", "compressedBytes", "memoryBytes", "freezeMs"] {
        made[bytes] = 1.into();
    }
    world.agent_says(json!({ "phase": "Done", "pushed": pushed, "containers": [made] }));
    let plan = world.look();
    assert_eq!(plan.status.phase, Some(Phase::Failed));
    assert_eq!((plan.status.history.len(), plan.status.containers.len()), (0, 0));
    let message = &plan.status.conditions.iter().find(|c| c.type_ == "Ready").unwrap().message;
    assert!(message.contains("r.example/other:warm"), "{message}");
}

#[test]
fn a_pod_that_ends_or_vanishes_fails_the_attempt() {
    let mut world = World::of_a_template();
    world.instructed();
    world.pod_is("Failed", false);
    assert_eq!(world.look().outcome.as_deref(), Some("PodEnded"));

    let mut world = World::of_a_template();
    world.instructed();
    world.pod = None;
    assert_eq!(world.look().outcome.as_deref(), Some("PodEnded"));

    let mut world = World::of_a_template();
    world.instructed();
    world.pod.as_mut().unwrap().metadata.uid = Some("another".into());
    assert_eq!(world.look().outcome.as_deref(), Some("PodReplaced"));
}

#[test]
fn a_container_that_the_template_lacks_ends_it_at_once() {
    let mut world = World::of_a_template();
    world.checkpoint.spec.containers = vec!["sidecar".into()];
    let plan = world.look();
    assert_eq!((plan.status.phase, ready(&plan).1), (Some(Phase::Failed), "ContainerNotFound"));
}

#[test]
fn a_named_pod_is_waited_for_and_must_be_managed_and_is_left_alone() {
    let mut world = World::new(json!({
        "source": { "podName": "mine" }, "image": "r.example/web:warm", "retries": 0,
    }));
    let plan = world.look();
    assert_eq!((ready(&plan).1, plan.create.is_none(), plan.notes.len()), ("SourceNotFound", true, 1));
    assert_eq!(world.look().notes.len(), 0, "said once");
    let pod =
        json!({ "metadata": { "name": "mine", "uid": "m" }, "spec": { "containers": [{ "name": "a" }] } });
    world.pod = Some(serde_json::from_value(pod).unwrap());
    world.pod_is("Running", true);
    assert_eq!(ready(&world.look()).1, "SourceNotManaged");
    world.pod.as_mut().unwrap().annotations_mut().insert("woodfrog.dev/managed".into(), "true".into());
    assert!(world.look().status.instruction.unwrap().leave_running);
    world.is_done("sha256:a");
    let plan = world.look();
    assert_eq!((plan.status.phase, plan.delete.len()), (Some(Phase::Ready), 0));
}

#[test]
fn of_two_checkpoints_for_one_image_the_younger_waits() {
    let mut world = World::of_a_template();
    world.rival = Some("shop/older".into());
    let plan = world.look();
    assert_eq!((ready(&plan).1, plan.create.is_none()), ("ImageInUse", true));
    world.rival = None;
    assert!(world.look().create.is_some());
}

#[test]
fn several_containers_have_an_image_each() {
    let mut world = World::of_a_template();
    let containers = json!([{ "name": "app" }, { "name": "cache" }]);
    world.edit_template(|spec| spec["containers"] = containers);
    let images: Vec<_> = world.instructed().containers.into_iter().map(|target| target.image).collect();
    assert_eq!(images, ["r.example/web-app:warm", "r.example/web-cache:warm"]);
}
