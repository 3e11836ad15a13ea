//! What cannot work ends in a condition and an Event that somebody can act upon.

use std::time::Duration;

use k8s_openapi::api::admissionregistration::v1::ValidatingWebhookConfiguration;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::rbac::v1::{Role, RoleBinding};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::Api;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use kube::core::{ApiResource, DynamicObject};
use serde_json::{Value, json};
use tokio::time::sleep;
use woodfrog_api::{Checkpoint, Phase, WarmPool, names};

use crate::checkpoints::is;
use crate::stage::{Stage, condition};

fn ready_says(reason: &str) -> impl Fn(&Checkpoint) -> bool {
    move |checkpoint| condition(checkpoint, "Ready").is_some_and(|condition| condition.1 == reason)
}

async fn pod(stage: &Stage, name: &str) {
    let pod =
        json!({ "metadata": { "name": name }, "spec": { "containers": [{ "name": "app", "image": "i" }] } });
    let pod: Pod = serde_json::from_value(pod).unwrap();
    stage.api::<Pod>().create(&PostParams::default(), &pod).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn api_what_is_missing_or_in_the_way_is_waited_for_and_named() {
    let Some(stage) = Stage::set().await else { return };
    stage.checkpoint("nobody", json!({ "source": { "podName": "nobody" } })).await;
    let workload = json!({ "workloadRef": { "kind": "Deployment", "name": "none" } });
    stage.checkpoint("workload", json!({ "source": workload })).await;
    pod(&stage, "plain").await;
    stage.checkpoint("unmanaged", json!({ "source": { "podName": "plain" } })).await;
    stage.checkpoint("first", json!({ "image": "r.example/same:warm" })).await;
    stage.until("first", "ready", is(Phase::Ready)).await;
    // Ages are whole seconds.
    sleep(Duration::from_millis(1100)).await;
    stage.checkpoint("second", json!({ "image": "r.example/same:warm" })).await;
    for (name, reason, what) in [
        ("nobody", "SourceNotFound", "start it, or name another one"),
        ("workload", "SourceNotFound", "none"),
        ("unmanaged", "SourceNotManaged", "woodfrog.dev/managed"),
        ("second", "ImageInUse", "another image"),
    ] {
        let checkpoint = stage.until(name, reason, ready_says(reason)).await;
        let (holds, _, message) = condition(&checkpoint, "Ready").unwrap();
        assert!(!holds && message.contains(what), "{name}: {message}");
        assert_eq!(stage.until_told(name, reason).await, message);
    }
    stage.until_none::<Pod>(names::CHECKPOINT_LABEL).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn api_what_fails_is_terminal_in_the_end_and_says_why() {
    let Some(stage) = Stage::set().await else { return };
    let once = |more: Value| {
        let mut spec = json!({ "retries": 0, "pushSecretRef": { "name": "push" } });
        spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        spec
    };
    let cases = [
        ("container", json!({ "containers": ["other"] }), "ContainerNotFound", "Ready", "other"),
        (
            "unschedulable",
            json!({ "deadlines": { "start": "1s" } }),
            "StartTimedOut",
            "Ready",
            "did not start",
        ),
        (
            "unready",
            json!({ "warmUp": { "timeout": "1s" } }),
            "WarmUpTimedOut",
            "WarmedUp",
            "not ready within",
        ),
        ("request", json!({}), "WarmUpRequestFailed", "WarmedUp", "answered 500"),
        ("hook", json!({}), "HookFailed", "Frozen", "did not end"),
        ("preflight", json!({}), "PreflightFailed", "Frozen", "tty"),
        ("unreachable", json!({}), "PushFailed", "Pushed", "cannot reach"),
        ("refusing", json!({}), "PushFailed", "Pushed", "refuses"),
        (
            "stuck-freezing",
            json!({ "deadlines": { "freeze": "1s" } }),
            "FreezeTimedOut",
            "Frozen",
            "more than",
        ),
        ("stuck-pushing", json!({ "deadlines": { "push": "1s" } }), "PushTimedOut", "Pushed", "more than"),
    ];
    for (name, more, ..) in &cases {
        stage.checkpoint(name, once(more.clone())).await;
    }
    for (name, _, reason, which, what) in &cases {
        let checkpoint = stage.until(name, "failed", is(Phase::Failed)).await;
        let (holds, why, message) = condition(&checkpoint, "Ready").unwrap();
        assert!(
            !holds && message.contains(what) && message.contains("tried again when"),
            "{name}: {message}"
        );
        if *which == "Ready" {
            assert!([*reason, "RetriesExhausted"].contains(&why.as_str()), "{name}: {why}");
        } else {
            assert_eq!(condition(&checkpoint, which).unwrap().1, *reason, "{name}");
        }
        assert!(stage.until_told(name, reason).await.contains(what), "{name}");
    }
    stage.until_none::<Pod>(names::CHECKPOINT_LABEL).await;
    stage.until_none::<Checkpoint>(names::NODE_LABEL).await;
    stage.until_none::<Role>("").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn api_a_checkpoint_that_is_deleted_in_any_phase_leaves_nothing() {
    let Some(stage) = Stage::set().await else { return };
    let phases = [
        ("unschedulable", Phase::Pending),
        ("stuck-warmingup", Phase::WarmingUp),
        ("stuck-freezing", Phase::Freezing),
        ("stuck-pushing", Phase::Pushing),
        ("web", Phase::Ready),
        ("hook", Phase::Failed),
    ];
    for (name, _) in phases {
        stage.checkpoint(name, json!({ "retries": 0, "pushSecretRef": { "name": "push" } })).await;
    }
    for (name, phase) in phases {
        stage.until(name, "as far as that", is(phase)).await;
        stage.api::<Checkpoint>().delete(name, &DeleteParams::default()).await.unwrap();
    }
    stage.until_none::<Checkpoint>("").await;
    stage.until_none::<Pod>("").await;
    stage.until_none::<Role>("").await;
    stage.until_none::<RoleBinding>("").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn api_a_server_that_fails_to_make_pods_is_named_and_asked_again() {
    let Some(stage) = Stage::set().await else { return };
    // Nobody listens there.
    let hook: ValidatingWebhookConfiguration = serde_json::from_value(json!({
        "metadata": { "name": "broken" },
        "webhooks": [{
            "name": "broken.woodfrog.test",
            "admissionReviewVersions": ["v1"],
            "clientConfig": { "url": "https://127.0.0.1:1/" },
            "failurePolicy": "Fail",
            "sideEffects": "None",
            "matchPolicy": "Equivalent",
            "timeoutSeconds": 1,
            "namespaceSelector": {},
            "objectSelector": {},
            "rules": [{
                "apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["pods"], "scope": "*",
            }],
        }],
    }))
    .unwrap();
    stage.checkpoint("made", json!({})).await;
    stage.until("made", "ready", is(Phase::Ready)).await;
    let hooks = Api::<ValidatingWebhookConfiguration>::all(stage.client.clone());
    hooks.create(&PostParams::default(), &hook).await.unwrap();
    // It takes the server a moment to obey.
    sleep(Duration::from_secs(2)).await;
    stage.checkpoint("web", json!({})).await;
    stage.pool("pool", json!({ "checkpointRef": { "name": "made" }, "replicas": 2 })).await;
    let checkpoint = stage.until("web", "told of it", ready_says("PodNotCreated")).await;
    let (_, _, message) = condition(&checkpoint, "Ready").unwrap();
    assert!(message.contains("broken.woodfrog.test"), "{message}");
    stage.until_told("web", "PodNotCreated").await;
    let told = stage.until_told("pool", "PodsRefused").await;
    assert!(told.contains("broken.woodfrog.test"), "{told}");

    hooks.delete("broken", &DeleteParams::default()).await.unwrap();
    stage.until("web", "ready", is(Phase::Ready)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn api_a_pool_of_newer_definitions_is_told_so_and_its_pods_are_left() {
    let Some(stage) = Stage::set().await else { return };
    let crds: Api<CustomResourceDefinition> = Api::all(stage.client.clone());
    let path = "/spec/versions/0/schema/openAPIV3Schema/properties/spec/properties/standby/enum/-";
    let newer: json_patch::Patch =
        serde_json::from_value(json!([{ "op": "add", "path": path, "value": "Asleep" }])).unwrap();
    crds.patch("warmpools.woodfrog.dev", &PatchParams::default(), &Patch::<()>::Json(newer)).await.unwrap();
    let spec = json!({ "checkpointRef": { "name": "web" }, "standby": "Asleep" });
    // The API server takes a moment to use what it was given.
    while stage.try_pool("newer", spec.clone()).await.is_err() {
        sleep(Duration::from_millis(100)).await;
    }
    let told = stage.until_told("newer", "UnsupportedSpec").await;
    assert!(told.contains("of one release"), "{told}");
    let resource = ApiResource::erase::<WarmPool>(&());
    let pools = Api::<DynamicObject>::namespaced_with(stage.client.clone(), &stage.namespace, &resource);
    let pool = pools.get("newer").await.unwrap();
    let condition = &pool.data["status"]["conditions"][0];
    let said = ["type", "status", "reason"].map(|field| condition[field].as_str().unwrap());
    assert_eq!(said, ["Available", "False", "UnsupportedSpec"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn api_an_object_of_newer_definitions_is_told_so_and_the_others_are_served() {
    let Some(stage) = Stage::set().await else { return };
    let crds: Api<CustomResourceDefinition> = Api::all(stage.client.clone());
    let path = "/spec/versions/0/schema/openAPIV3Schema/properties/spec/properties/connections/enum/-";
    let newer: json_patch::Patch =
        serde_json::from_value(json!([{ "op": "add", "path": path, "value": "Sometimes" }])).unwrap();
    crds.patch("checkpoints.woodfrog.dev", &PatchParams::default(), &Patch::<()>::Json(newer)).await.unwrap();
    loop {
        // The API server takes a moment to use what it was given.
        if stage.try_checkpoint("newer", json!({ "connections": "Sometimes" })).await.is_ok() {
            break;
        }
        sleep(Duration::from_millis(100)).await;
    }
    stage.checkpoint("web", json!({})).await;
    stage.until("web", "ready", is(Phase::Ready)).await;
    let raw = stage.raw();
    let reason = loop {
        let object = raw.get("newer").await.unwrap();
        match object.data.pointer("/status/conditions/0/reason") {
            Some(reason) => break reason.clone(),
            None => sleep(Duration::from_millis(50)).await,
        }
    };
    assert_eq!(reason, "UnsupportedSpec");
    let told = stage.until_told("newer", "UnsupportedSpec").await;
    assert!(told.contains("of one release"), "{told}");
}

#[tokio::test(flavor = "multi_thread")]
async fn api_an_object_of_older_definitions_is_told_so_until_they_are_replaced() {
    let Some(stage) = Stage::set().await else { return };
    let crds: Api<CustomResourceDefinition> = Api::all(stage.client.clone());
    let path = "/spec/versions/0/schema/openAPIV3Schema/properties/status/properties/attempt";
    let change = async |operations: Value| {
        let patch: json_patch::Patch = serde_json::from_value(operations).unwrap();
        crds.patch("checkpoints.woodfrog.dev", &PatchParams::default(), &Patch::<()>::Json(patch)).await
    };
    change(json!([{ "op": "remove", "path": path }])).await.unwrap();
    // The API server takes a moment to use what it was given: one of these is in time for the older definition.
    let mut name = String::new();
    for number in 0.. {
        name = format!("older-{number}");
        stage.checkpoint(&name, json!({})).await;
        let told = |checkpoint: &Checkpoint| {
            condition(checkpoint, "Reconciled").is_some() || is(Phase::Ready)(checkpoint)
        };
        let checkpoint = stage.until(&name, "told", told).await;
        if condition(&checkpoint, "Reconciled").is_some() {
            break;
        }
    }
    let told = stage.until_told(&name, "OutdatedDefinition").await;
    assert!(told.contains("attempt") && told.contains("crds/"), "{told}");

    let attempt = json!({ "type": "integer", "format": "int64", "nullable": true });
    change(json!([{ "op": "add", "path": path, "value": attempt }])).await.unwrap();
    let works = |checkpoint: &Checkpoint| {
        condition(checkpoint, "Reconciled").is_none() && is(Phase::Ready)(checkpoint)
    };
    stage.until(&name, "ready, and free of the condition", works).await;
}
