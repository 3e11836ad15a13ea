//! Images that are not kept.

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::events::v1::Event;
use k8s_openapi::api::rbac::v1::Role;
use kube::api::{ListParams, Patch, PatchParams, PostParams};
use serde_json::{Value, json};
use woodfrog_api::{Checkpoint, Phase, names};

use crate::stage::{Stage, condition, digest};

/// Makes a Checkpoint anew, from another template, and waits until it is Ready.
async fn make_anew(stage: &Stage, name: &str, image: &str) {
    let template = json!({ "spec": { "containers": [{ "name": "app", "image": image }] } });
    let patch = json!({ "spec": { "source": { "template": template } } });
    let before = stage.until(name, "ready", is_ready).await.status.unwrap().attempt;
    stage.api::<Checkpoint>().patch(name, &PatchParams::default(), &Patch::Merge(patch)).await.unwrap();
    let anew = |checkpoint: &Checkpoint| {
        is_ready(checkpoint) && checkpoint.status.as_ref().and_then(|status| status.attempt) != before
    };
    stage.until(name, "made anew", anew).await;
}

fn is_ready(checkpoint: &Checkpoint) -> bool {
    checkpoint.status.as_ref().is_some_and(|status| status.phase == Some(Phase::Ready))
}

fn retained(reason: &str) -> impl Fn(&Checkpoint) -> bool {
    move |checkpoint| condition(checkpoint, "Retained").is_some_and(|condition| condition.1 == reason)
}

fn past(checkpoint: &Checkpoint) -> Vec<String> {
    let history = checkpoint.status.iter().flat_map(|status| &status.history);
    history.map(|past| past.digest.clone()).collect()
}

async fn nothing_is_left(stage: &Stage) {
    stage.until_none::<Checkpoint>(names::NODE_LABEL).await;
    stage.until_none::<Role>("").await;
}

async fn events(stage: &Stage, reason: &str) -> usize {
    let events = stage.api::<Event>().list(&ListParams::default()).await.unwrap();
    events.iter().filter(|event| event.reason.as_deref() == Some(reason)).count()
}

#[tokio::test(flavor = "multi_thread")]
async fn api_images_that_are_not_kept_are_deleted_and_what_that_took_is_taken_back() {
    let Some(stage) = Stage::set().await else { return };
    let spec = json!({ "retention": { "keep": 2 }, "pushSecretRef": { "name": "registry" } });
    stage.checkpoint("web", spec).await;
    for number in 2..=4 {
        make_anew(&stage, "web", &format!("r.example/web:{number}")).await;
    }
    let kept = vec![digest("r.example/web:warm", 3)];
    let checkpoint = stage.until("web", "as it was asked for", |checkpoint| past(checkpoint) == kept).await;
    let status = checkpoint.status.unwrap();
    assert_eq!((status.instruction, status.failures), (None, Some(0)));
    stage.until("web", "retained", retained("Succeeded")).await;
    nothing_is_left(&stage).await;
    assert!(events(&stage, "ImagesDeleted").await > 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn api_images_that_the_registry_does_not_delete_are_named() {
    let Some(stage) = Stage::set().await else { return };
    stage.checkpoint("stubborn", json!({ "retention": { "keep": 1 } })).await;
    make_anew(&stage, "stubborn", "r.example/web:2").await;
    let checkpoint = stage.until("stubborn", "told why", retained("DeletionUnsupported")).await;
    let (holds, _, message) = condition(&checkpoint, "Retained").unwrap();
    let left = digest("r.example/stubborn:warm", 1);
    assert!(!holds && message.contains("deletes nothing") && message.contains(&left), "{message}");
    assert_eq!(past(&checkpoint), [left]);
    assert!(condition(&checkpoint, "Ready").unwrap().0, "the newest image is there all the same");
    nothing_is_left(&stage).await;
    assert!(events(&stage, "DeletionUnsupported").await > 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn api_an_image_whose_push_was_broken_off_is_deleted_without_a_word_of_retention() {
    let Some(stage) = Stage::set().await else { return };
    stage.checkpoint("interrupted", json!({ "pushSecretRef": { "name": "registry" } })).await;
    let left = vec![digest("r.example/interrupted:warm", 0)];
    let of_no_use = |checkpoint: &Checkpoint| is_ready(checkpoint) && past(checkpoint) == left;
    stage.until("interrupted", "ready", of_no_use).await;
    stage.until("interrupted", "rid of it", |checkpoint| past(checkpoint).is_empty()).await;
    nothing_is_left(&stage).await;
    assert!(events(&stage, "ImagesDeleted").await > 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn api_an_image_that_a_pod_runs_from_stays_for_as_long_as_the_pod() {
    let Some(stage) = Stage::set().await else { return };
    stage.checkpoint("web", json!({ "retention": { "keep": 1 } })).await;
    stage.until("web", "ready", is_ready).await;
    let old = digest("r.example/web:warm", 1);
    let pod: Value = json!({
        "metadata": { "name": "claimed", "labels": { (names::REVISION_LABEL): "r" } },
        "spec": { "containers": [{ "name": "app", "image": format!("r.example/web@{old}") }] },
    });
    let pod: Pod = serde_json::from_value(pod).unwrap();
    stage.api::<Pod>().create(&PostParams::default(), &pod).await.unwrap();
    make_anew(&stage, "web", "r.example/web:2").await;
    let checkpoint = stage.until("web", "waiting for the pod", retained("StillInUse")).await;
    assert_eq!(past(&checkpoint), [old]);

    stage.api::<Pod>().delete("claimed", &Default::default()).await.unwrap();
    stage.until_none::<Pod>("").await;
    // It would be looked at again within a minute.
    let touched = json!({ "metadata": { "annotations": { "touched": "yes" } } });
    stage.api::<Checkpoint>().patch("web", &PatchParams::default(), &Patch::Merge(touched)).await.unwrap();
    stage.until("web", "retained", |checkpoint| past(checkpoint).is_empty()).await;
}
