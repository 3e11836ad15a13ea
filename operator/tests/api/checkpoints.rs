//! Checkpoints from their creation to their end.

use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::events::v1::Event;
use k8s_openapi::api::rbac::v1::{Role, RoleBinding};
use kube::api::{DeleteParams, ListParams, Patch, PatchParams};
use serde_json::json;
use tokio::time::sleep;
use woodfrog_api::{Checkpoint, Phase, names};

use crate::stage::{Stage, condition};

pub(crate) fn is(phase: Phase) -> impl Fn(&Checkpoint) -> bool {
    move |checkpoint| checkpoint.status.as_ref().is_some_and(|status| status.phase == Some(phase))
}

#[tokio::test(flavor = "multi_thread")]
async fn api_a_checkpoint_becomes_ready_and_leaves_nothing_behind() {
    let Some(stage) = Stage::set().await else { return };
    stage.checkpoint("web", json!({ "pushSecretRef": { "name": "registry" } })).await;
    let ready = stage.until("web", "ready", is(Phase::Ready)).await;
    let status = ready.status.clone().unwrap();
    assert!(condition(&ready, "Ready").unwrap().0);
    assert_eq!((status.containers.len(), status.instruction), (1, None));
    assert_eq!(status.containers[0].image, "r.example/web:warm");
    stage.until_none::<Pod>(names::CHECKPOINT_LABEL).await;
    stage.until_none::<Checkpoint>(names::NODE_LABEL).await;
    stage.until_none::<Role>("").await;
    stage.until_none::<RoleBinding>("").await;
    let events = stage.api::<Event>().list(&ListParams::default()).await.unwrap();
    assert!(events.iter().any(|event| event.reason.as_deref() == Some("Succeeded")));

    // Another image in the template: another attempt, and the first image is history.
    let template = json!({ "spec": { "containers": [{ "name": "app", "image": "r.example/web:2" }] } });
    let patch = json!({ "spec": { "source": { "template": template } } });
    stage.api::<Checkpoint>().patch("web", &PatchParams::default(), &Patch::Merge(patch)).await.unwrap();
    let anew = |checkpoint: &Checkpoint| {
        checkpoint.status.as_ref().is_some_and(|s| s.phase == Some(Phase::Ready) && s.history.len() == 1)
    };
    stage.until("web", "made anew", anew).await;

    stage.api::<Checkpoint>().delete("web", &DeleteParams::default()).await.unwrap();
    stage.until_none::<Checkpoint>("").await;
    stage.until_none::<Pod>("").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn api_operator_and_agent_killed_again_and_again_leave_nothing_half_done() {
    const KILLS: u64 = 50;
    let Some(mut stage) = Stage::set().await else { return };
    let mut names = Vec::new();
    // Any spread will do; a fixed one can be repeated.
    let mut random = 0x9e37_79b9_u64;
    for kill in 0..KILLS {
        if kill % 5 == 0 {
            let name = format!("web-{kill}");
            stage.checkpoint(&name, json!({ "pushSecretRef": { "name": "registry" } })).await;
            names.push(name);
        }
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        sleep(Duration::from_millis(20 + (random >> 33) % 700)).await;
        if kill % 3 == 0 {
            stage.stop_node();
            stage.start_node();
        }
        stage.kill_operator();
        stage.start_operator().await;
    }
    for name in &names {
        let over = |checkpoint: &Checkpoint| is(Phase::Ready)(checkpoint) || is(Phase::Failed)(checkpoint);
        let checkpoint = stage.until(name, "over", over).await;
        assert_eq!(checkpoint.status.unwrap().instruction, None);
    }
    stage.until_none::<Pod>("").await;
    stage.until_none::<Checkpoint>(names::NODE_LABEL).await;
    stage.until_none::<Role>("").await;
    stage.until_none::<RoleBinding>("").await;
}
