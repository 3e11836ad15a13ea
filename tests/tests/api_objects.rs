//! The resources as people, autoscalers, the operator and the agents see them on an API server.
#![forbid(unsafe_code)]

use anyhow::{Context as _, Result, ensure};
use kube::ResourceExt;
use kube::api::{ListParams, Patch, PatchParams};
use serde_json::{Value, json};
use woodfrog_api::{Checkpoint, WarmPool, names};
use woodfrog_tests::cluster::{Cluster, checkpoint, merged, pool_with};

#[tokio::test]
async fn api_kubectl_get_answers_is_it_ready_where_how_big_and_how_fast() -> Result<()> {
    let Some(cluster) = Cluster::new("columns").await? else { return Ok(()) };
    cluster.make::<Checkpoint>("web", checkpoint()).await?;
    let status = json!({
        "phase": "Ready", "node": "node-1", "summary": {"size": "184 MiB", "freeze": "312 ms"},
        "conditions": [{
            "type": "Ready", "status": "True", "reason": "Succeeded", "message": "1 image is in the registry",
            "lastTransitionTime": "2026-01-01T00:00:00Z",
        }],
    });
    cluster.apply_status("web", names::OPERATOR, status).await?;
    cluster.make::<WarmPool>("web", pool_with(json!({"replicas": 3}))).await?;
    let status = json!({"status": {"replicas": 3, "readyReplicas": 2, "updatedReplicas": 3}});
    cluster.pools().patch_status("web", &PatchParams::default(), &Patch::Merge(status)).await?;

    let table = "application/json;as=Table;v=v1;g=meta.k8s.io";
    let checkpoints = cluster.get(&cluster.path("checkpoints"), table).await?;
    for (column, value) in [
        ("Phase", json!("Ready")),
        ("Node", json!("node-1")),
        ("Size", json!("184 MiB")),
        ("Freeze", json!("312 ms")),
        ("Image", json!("registry.example/shop/web:warm")),
        ("Message", json!("1 image is in the registry")),
    ] {
        ensure!(cell(&checkpoints, column) == Some(&value), "{column}: {:?}", cell(&checkpoints, column));
    }
    let pools = cluster.get(&cluster.path("warmpools"), table).await?;
    for (column, value) in [
        ("Desired", json!(3)),
        ("Ready", json!(2)),
        ("Updated", json!(3)),
        ("Standby", json!("Awake")),
        ("Checkpoint", json!("web")),
    ] {
        ensure!(cell(&pools, column) == Some(&value), "{column}: {:?}", cell(&pools, column));
    }
    Ok(())
}

/// The first row's cell in a column.
fn cell<'a>(table: &'a Value, column: &str) -> Option<&'a Value> {
    let columns = table["columnDefinitions"].as_array()?;
    let index = columns.iter().position(|definition| definition["name"] == column)?;
    table["rows"][0]["cells"].get(index)
}

#[tokio::test]
async fn api_kubectl_explain_and_discovery_know_the_resources() -> Result<()> {
    let Some(cluster) = Cluster::new("explain").await? else { return Ok(()) };
    let list = cluster.get("/apis/woodfrog.dev/v1alpha1", "application/json").await?;
    let resource = |name: &str| {
        list["resources"].as_array().into_iter().flatten().find(|resource| resource["name"] == name)
    };
    let checkpoints = resource("checkpoints").context("no checkpoints")?;
    ensure!(checkpoints["shortNames"] == json!(["ckpt"]) && checkpoints["categories"] == json!(["woodfrog"]));
    ensure!(resource("warmpools").context("no warmpools")?["shortNames"] == json!(["wp"]));
    ensure!(resource("warmpools/scale").is_some() && resource("checkpoints/status").is_some());

    let start = std::time::Instant::now();
    loop {
        // The document follows the definitions after a moment.
        if let Ok(document) = cluster.get("/openapi/v3/apis/woodfrog.dev/v1alpha1", "application/json").await
        {
            let schema = &document["components"]["schemas"]["dev.woodfrog.v1alpha1.Checkpoint"];
            let explained =
                schema.pointer("/properties/spec/properties/connections/description").and_then(Value::as_str);
            if let Some(explained) = explained {
                ensure!(explained.contains("the freeze fails and names the peers"), "{explained}");
                return Ok(());
            }
        }
        ensure!(start.elapsed().as_secs() < 30, "the resources are not explained");
        tokio::time::sleep(std::time::Duration::from_millis(200)).await;
    }
}

#[tokio::test]
async fn api_a_pool_is_scaled_without_knowing_what_it_is() -> Result<()> {
    let Some(cluster) = Cluster::new("scale").await? else { return Ok(()) };
    cluster.make::<WarmPool>("web", pool_with(json!({"replicas": 2}))).await?;
    let selector = format!("{}=web", names::POOL_LABEL);
    let status = json!({"status": {"replicas": 2, "selector": selector}});
    cluster.pools().patch_status("web", &PatchParams::default(), &Patch::Merge(status)).await?;

    let scale = cluster.pools().get_scale("web").await?;
    ensure!(scale.spec.context("no spec")?.replicas == Some(2));
    let status = scale.status.context("no status")?;
    ensure!(status.replicas == 2 && status.selector == Some(selector), "{status:?}");

    let patch = Patch::Merge(json!({"spec": {"replicas": 7}}));
    cluster.pools().patch_scale("web", &PatchParams::default(), &patch).await?;
    ensure!(cluster.pools().get("web").await?.spec.replicas == 7);
    let below = Patch::Merge(json!({"spec": {"replicas": -1}}));
    ensure!(cluster.pools().patch_scale("web", &PatchParams::default(), &below).await.is_err());
    Ok(())
}

/// What the operator applies: its own fields, all of them each time.
fn operators_part() -> Value {
    json!({
        "phase": "Freezing", "attempt": 1, "node": "node-1", "podName": "web-0",
        "conditions": [{
            "type": "Frozen", "status": "Unknown", "reason": "InProgress", "message": "the agent of node-1 works on it",
            "lastTransitionTime": "2026-01-01T00:00:00Z",
        }],
        "instruction": {
            "attempt": 1, "node": "node-1", "podName": "web-0", "podUid": "u-1",
            "containers": [{"name": "app", "image": "r.example/web:warm"}],
        },
    })
}

fn agents_part(phase: &str) -> Value {
    json!({"agent": {"node": "node-1", "attempt": 1, "podUid": "u-1", "phase": phase, "bytesDone": 1, "bytesTotal": 2}})
}

#[tokio::test]
async fn api_operator_and_agent_apply_their_parts_of_the_status_without_conflict() -> Result<()> {
    let Some(cluster) = Cluster::new("ownership").await? else { return Ok(()) };
    cluster.make::<Checkpoint>("web", checkpoint()).await?;
    for phase in ["Preparing", "Freezing", "Pushing", "Done"] {
        cluster.apply_status("web", names::OPERATOR, operators_part()).await?;
        cluster.apply_status("web", names::AGENT, agents_part(phase)).await?;
    }
    let status = cluster.checkpoints().get("web").await?.status.context("no status")?;
    ensure!(status.instruction.is_some_and(|instruction| instruction.pod_uid == "u-1"));
    ensure!(status.agent.is_some_and(|agent| agent.phase == woodfrog_api::AgentPhase::Done));
    ensure!(status.conditions.len() == 1);

    // Neither can change what is the other's, unless it forces it.
    let error = cluster
        .apply_status("web", names::AGENT, json!({"phase": "Ready"}))
        .await
        .err()
        .context("no conflict")?;
    ensure!(matches!(&error, kube::Error::Api(status) if status.code == 409), "{error}");
    let stolen = merged(operators_part(), agents_part("Failed"));
    let error = cluster.apply_status("web", names::OPERATOR, stolen).await.err().context("no conflict")?;
    ensure!(matches!(&error, kube::Error::Api(status) if status.code == 409), "{error}");

    // What the operator applies no more is gone; the agent's part stays.
    let without = merged(operators_part(), json!({"instruction": null, "node": null}));
    cluster.apply_status("web", names::OPERATOR, without).await?;
    let status = cluster.checkpoints().get("web").await?.status.context("no status")?;
    ensure!(status.instruction.is_none() && status.node.is_none() && status.agent.is_some(), "{status:?}");
    cluster.apply_status("web", names::AGENT, json!({})).await?;
    let status = cluster.checkpoints().get("web").await?.status.context("no status")?;
    ensure!(status.agent.is_none() && status.phase.is_some(), "{status:?}");
    Ok(())
}

#[tokio::test]
async fn api_status_and_specification_are_written_each_through_its_own_door() -> Result<()> {
    let Some(cluster) = Cluster::new("doors").await? else { return Ok(()) };
    let made = cluster.make::<Checkpoint>("web", checkpoint()).await?;
    let changed = cluster.change::<Checkpoint>("web", json!({"status": {"phase": "Ready"}})).await?;
    ensure!(changed.data["status"].is_null(), "{}", changed.data["status"]);

    let both = json!({"spec": {"image": "r.example/other:warm"}, "status": {"phase": "Pending"}});
    let checkpoint =
        cluster.checkpoints().patch_status("web", &PatchParams::default(), &Patch::Merge(both)).await?;
    ensure!(checkpoint.spec.image.as_deref() == Some("registry.example/shop/web:warm"));
    ensure!(checkpoint.metadata.generation == made.metadata.generation, "a status is no new generation");
    let unknown = Patch::Merge(json!({"status": {"phase": "Sleeping"}}));
    let error = cluster.checkpoints().patch_status("web", &PatchParams::default(), &unknown).await.err();
    let error = error.context("an unknown phase")?.to_string();
    ensure!(error.contains("supported values"), "{error}");
    Ok(())
}

#[tokio::test]
async fn api_an_agent_is_sent_only_what_is_for_its_node() -> Result<()> {
    let Some(cluster) = Cluster::new("filter").await? else { return Ok(()) };
    for (name, node) in [("a", "node-1"), ("b", "node-2"), ("c", "")] {
        cluster.make::<Checkpoint>(name, checkpoint()).await?;
        if !node.is_empty() {
            cluster
                .change::<Checkpoint>(name, json!({"metadata": {"labels": {names::NODE_LABEL: node}}}))
                .await?;
        }
    }
    let mine = ListParams::default().labels(&format!("{}=node-1", names::NODE_LABEL));
    let found: Vec<_> = cluster.checkpoints().list(&mine).await?.iter().map(ResourceExt::name_any).collect();
    ensure!(found == ["a"], "{found:?}");
    Ok(())
}
