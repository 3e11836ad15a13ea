//! What becomes of images that are not kept, look by look.

use serde_json::{Value, json};

use super::*;

/// A Checkpoint that is Ready with the image `sha256:new`, at a moment.
struct World {
    checkpoint: Checkpoint,
    used: HashSet<String>,
    nodes: Vec<String>,
    now: i64,
}

impl World {
    /// `history`: digests, the newest first, each an hour older than the one before.
    fn new(retention: Value, history: &[&str]) -> Self {
        let history: Vec<_> =
            history.iter().enumerate().map(|(age, digest)| past("app", digest, age)).collect();
        let checkpoint = json!({
            "apiVersion": "woodfrog.dev/v1alpha1",
            "kind": "Checkpoint",
            "metadata": { "name": "web", "namespace": "shop", "uid": "c-1", "generation": 1 },
            "spec": {
                "source": { "podName": "web" },
                "image": "r.example/web:warm",
                "pushSecretRef": { "name": "push" },
                "retention": retention,
            },
            "status": {
                "phase": "Ready",
                "observedGeneration": 1,
                "node": "node-1",
                "containers": [{
                    "name": "app", "image": "r.example/web:warm", "digest": "sha256:new", "layerBytes": 1,
                    "compressedBytes": 1, "memoryBytes": 1, "freezeMs": 1,
                }],
                "history": history,
            },
        });
        Self {
            checkpoint: serde_json::from_value(checkpoint).unwrap(),
            used: HashSet::new(),
            nodes: vec!["node-0".into(), "node-1".into()],
            now: NOW,
        }
    }

    fn look(&mut self) -> Plan {
        let now = Timestamp::from_second(self.now).unwrap();
        let status = self.checkpoint.status.clone().unwrap();
        let said = status.pruned.clone();
        let status = woodfrog_api::CheckpointStatus {
            pruning: None,
            pruned: None,
            observed_generation: self.checkpoint.metadata.generation,
            ..status
        };
        let mut plan = Plan {
            status,
            node: None,
            create: None,
            delete: Vec::new(),
            grant: false,
            notes: Vec::new(),
            outcome: None,
            next: None,
        };
        let due = review(&self.checkpoint, &mut plan, || self.used.clone(), now);
        if !due.is_empty() {
            begin(&self.checkpoint, &mut plan, due, &self.nodes, &["r.example".into()], now);
        }
        assert_eq!(plan.node.is_some(), plan.status.pruning.is_some());
        assert_eq!(
            plan.grant,
            plan.status.pruning.is_some(),
            "the secret is granted for as long as it is needed"
        );
        self.checkpoint.status = Some(woodfrog_api::CheckpointStatus { pruned: said, ..plan.status.clone() });
        plan
    }

    fn agent_says(&mut self, done: bool, outcomes: &[(&str, &str)]) {
        let status = self.checkpoint.status.as_mut().unwrap();
        let pruning = status.pruning.as_ref().expect("an instruction");
        let images: Vec<_> = outcomes
            .iter()
            .map(|(digest, outcome)| json!({ "digest": digest, "outcome": outcome, "message": "the registry says why" }))
            .collect();
        let said = json!({
            "node": pruning.node, "number": pruning.number, "done": done, "images": images,
            "heartbeat": Time(Timestamp::from_second(self.now).unwrap()),
        });
        status.pruned = Some(serde_json::from_value(said).unwrap());
    }
}

const NOW: i64 = 1_000_000;

fn past(name: &str, digest: &str, hours: usize) -> Value {
    let frozen = Timestamp::from_second(NOW - 3600 * i64::try_from(hours + 1).unwrap()).unwrap();
    json!({
        "name": name, "image": "r.example/web:warm", "digest": digest, "compressedBytes": 1, "frozenAt": Time(frozen),
    })
}

fn asked(plan: &Plan) -> Vec<&str> {
    plan.status.pruning.iter().flat_map(|p| &p.images).map(|image| image.digest.as_str()).collect()
}

fn kept(plan: &Plan) -> Vec<&str> {
    plan.status.history.iter().map(|past| past.digest.as_str()).collect()
}

fn retained(plan: &Plan) -> (&str, &str, &str) {
    let condition = plan.status.conditions.iter().find(|condition| condition.type_ == "Retained");
    condition.map_or(("", "", ""), |c| (&c.status, &c.reason, &c.message))
}

#[test]
fn images_beyond_keep_are_deleted_by_the_agent_of_the_last_attempt_and_forgotten() {
    let mut world = World::new(json!({ "keep": 2 }), &["sha256:a", "sha256:b", "sha256:c"]);
    let plan = world.look();
    assert_eq!(asked(&plan), ["sha256:b", "sha256:c"]);
    let pruning = plan.status.pruning.clone().unwrap();
    assert_eq!((pruning.number, plan.node.as_deref()), (1, Some("node-1")));
    assert_eq!(pruning.plain_http, ["r.example"]);
    assert_eq!(retained(&plan).1, "InProgress");

    world.agent_says(false, &[("sha256:b", "Deleted")]);
    let plan = world.look();
    assert_eq!((kept(&plan), plan.status.pruning.is_some()), (vec!["sha256:a", "sha256:c"], true));
    world.agent_says(true, &[("sha256:b", "Deleted"), ("sha256:c", "Deleted")]);
    let plan = world.look();
    assert_eq!((kept(&plan), plan.node.as_deref(), plan.next), (vec!["sha256:a"], None, None));
    assert_eq!(retained(&plan), ("True", "Succeeded", ""));
    assert_eq!(plan.notes[0].reason, "ImagesDeleted");
    assert!(world.look().notes.is_empty());
}

#[test]
fn each_container_keeps_its_own_newest_images() {
    let mut world = World::new(json!({ "keep": 2 }), &["sha256:a", "sha256:b"]);
    let history = &mut world.checkpoint.status.as_mut().unwrap().history;
    // This one is not frozen any more.
    for (age, digest) in ["sha256:x", "sha256:y", "sha256:z"].iter().enumerate() {
        history.push(serde_json::from_value(past("sidecar", digest, age)).unwrap());
    }
    assert_eq!(asked(&world.look()), ["sha256:b", "sha256:z"]);
}

#[test]
fn an_image_expires_without_any_event_and_the_newest_never_does() {
    let mut world = World::new(json!({ "maxAge": "90m" }), &["sha256:a"]);
    let plan = world.look();
    assert_eq!((asked(&plan).len(), plan.next), (0, Some(Duration::from_secs(1800))));
    assert_eq!(retained(&plan).0, "True");
    world.now += 1800;
    assert_eq!(asked(&world.look()), ["sha256:a"]);
    world.agent_says(true, &[("sha256:a", "Deleted")]);
    let plan = world.look();
    assert_eq!((retained(&plan).0, plan.next), ("True", None));
}

#[test]
fn an_image_in_use_stays_until_it_is_not() {
    let mut world = World::new(json!({ "keep": 1 }), &["sha256:a", "sha256:b"]);
    world.used = ["sha256:a", "sha256:b"].map(str::to_owned).into();
    let plan = world.look();
    assert_eq!((asked(&plan).len(), plan.next), (0, Some(USED)));
    assert_eq!(retained(&plan).1, "StillInUse");
    world.used.remove("sha256:b");
    assert_eq!(asked(&world.look()), ["sha256:b"]);
    // Taken into use after it was asked for: taken back.
    world.used.insert("sha256:b".into());
    let plan = world.look();
    assert_eq!((asked(&plan).len(), retained(&plan).1), (0, "StillInUse"));
}

#[test]
fn the_newest_image_is_never_deleted_even_if_it_was_made_before() {
    let mut world = World::new(json!({ "keep": 1 }), &["sha256:new"]);
    assert_eq!(asked(&world.look()).len(), 0);
}

#[test]
fn what_the_registry_refuses_is_named_and_tried_again_after_an_hour_and_not_for_ever() {
    let mut world = World::new(json!({ "keep": 1 }), &["sha256:a", "sha256:b"]);
    world.look();
    world.agent_says(true, &[("sha256:a", "Deleted"), ("sha256:b", "Unsupported")]);
    let plan = world.look();
    let (status, reason, message) = retained(&plan);
    assert_eq!((status, reason, kept(&plan)), ("False", "DeletionUnsupported", vec!["sha256:b"]));
    assert!(message.contains("the registry says why") && message.contains("web:warm@sha256:b"), "{message}");
    assert!(plan.notes.iter().any(|note| note.warning && note.reason == "DeletionUnsupported"));
    assert_eq!((plan.next, plan.node), (Some(RETRY), None));
    world.now += 1800;
    let plan = world.look();
    assert_eq!((plan.next, plan.notes.len()), (Some(RETRY / 2), 0));
    for _ in 1..TRIES {
        world.now += 3600;
        assert_eq!(asked(&world.look()), ["sha256:b"]);
        world.agent_says(true, &[("sha256:b", "Failed")]);
        assert_eq!(retained(&world.look()).1, "DeletionFailed");
    }
    world.now += 36_000;
    let plan = world.look();
    assert_eq!((asked(&plan).len(), plan.next), (0, None));
    assert!(retained(&plan).2.contains("when there is a new image"), "{}", retained(&plan).2);
    world.checkpoint.metadata.generation = Some(2);
    assert_eq!(asked(&world.look()), ["sha256:b"]);
}

#[test]
fn a_silent_agent_is_given_up_and_another_nodes_is_asked() {
    let mut world = World::new(json!({ "keep": 1 }), &["sha256:a"]);
    world.look();
    world.now += 50;
    world.agent_says(false, &[]);
    world.now += 50;
    assert_eq!(world.look().node.as_deref(), Some("node-1"), "it was heard of 50 s ago");
    world.now += 20;
    let plan = world.look();
    assert_eq!(plan.node.as_deref(), Some("node-0"));
    assert_eq!(plan.status.pruning.unwrap().number, 2);
    assert!(plan.notes.iter().any(|note| note.reason == "AgentSilent"));
    // A late word of the first one counts for nothing.
    world.checkpoint.status.as_mut().unwrap().pruned.as_mut().unwrap().done = true;
    assert_eq!(world.look().node.as_deref(), Some("node-0"));
    for _ in 2..=SILENT_TRIES {
        world.now += 61;
        world.look();
    }
    let plan = world.look();
    assert_eq!((plan.node.as_deref(), plan.next), (None, Some(RETRY)));
}

#[test]
fn without_a_node_the_condition_says_so() {
    let mut world = World::new(json!({ "keep": 1 }), &["sha256:a"]);
    world.nodes.clear();
    let plan = world.look();
    assert!(retained(&plan).2.contains("no node"), "{}", retained(&plan).2);
    assert_eq!(plan.next, Some(RETRY));
}

#[test]
fn nothing_is_deleted_while_an_attempt_is_under_way_or_without_a_word_of_retention() {
    let mut world = World::new(json!({ "keep": 1 }), &["sha256:a"]);
    world.look();
    world.checkpoint.status.as_mut().unwrap().phase = Some(Phase::WarmingUp);
    let plan = world.look();
    assert_eq!((asked(&plan).len(), retained(&plan).1), (0, "Waiting"));
    world.checkpoint.status.as_mut().unwrap().phase = Some(Phase::Ready);
    world.checkpoint.spec.retention = None;
    let plan = world.look();
    assert_eq!((asked(&plan).len(), retained(&plan)), (0, ("", "", "")));
}

#[test]
fn an_image_of_an_attempt_that_did_not_finish_goes_without_a_word_of_retention_and_counts_for_nothing() {
    let unfinished = |digest: &str| {
        let mut past = past("app", digest, 0);
        past["unfinished"] = true.into();
        serde_json::from_value(past).unwrap()
    };
    let mut world = World::new(Value::Null, &["sha256:a"]);
    world.checkpoint.status.as_mut().unwrap().history.insert(0, unfinished("sha256:lost"));
    assert_eq!(asked(&world.look()), ["sha256:lost"]);
    world.agent_says(true, &[("sha256:lost", "Failed")]);
    assert_eq!(retained(&world.look()).1, "DeletionFailed");
    world.now += 3600;
    world.look();
    world.agent_says(true, &[("sha256:lost", "Deleted")]);
    let plan = world.look();
    assert_eq!((kept(&plan), retained(&plan), plan.node.as_deref()), (vec!["sha256:a"], ("", "", ""), None));

    let mut world = World::new(json!({ "keep": 2 }), &["sha256:a", "sha256:b"]);
    world.checkpoint.status.as_mut().unwrap().history.insert(0, unfinished("sha256:lost"));
    assert_eq!(asked(&world.look()), ["sha256:lost", "sha256:b"]);
}

#[test]
fn a_try_has_a_bounded_number_of_images_and_the_rest_follows() {
    let digests: Vec<String> = (0..40).map(|number| format!("sha256:{number}")).collect();
    let digests: Vec<&str> = digests.iter().map(String::as_str).collect();
    let mut world = World::new(json!({ "keep": 1 }), &digests);
    assert_eq!(asked(&world.look()).len(), MAX_IMAGES);
    let done: Vec<_> = digests[..MAX_IMAGES].iter().map(|digest| (*digest, "Deleted")).collect();
    world.agent_says(true, &done);
    let plan = world.look();
    assert_eq!((asked(&plan).len(), plan.status.pruning.as_ref().unwrap().number), (8, 2));
}
