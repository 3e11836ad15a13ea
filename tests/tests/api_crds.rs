//! What the API server refuses of the resources, with which sentence, and what it fills in.
#![forbid(unsafe_code)]

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use woodfrog_api::{Checkpoint, WarmPool, names};
use woodfrog_tests::cluster::{Cluster, checkpoint, checkpoint_with, merged, pool_with};

fn template() -> Value {
    json!({"spec": {"containers": [{"name": "app", "image": "shop/web:1", "ports": [{"containerPort": 8080}]}]}})
}

/// What makes images say what is wanted first.
fn rehearsed() -> Value {
    json!({ "source": { "template": template() }, "recordWorkingSet": true })
}

/// Each of these must be refused, with each its sentence.
async fn assert_refused<K: kube::Resource<DynamicType = ()>>(
    cluster: &Cluster,
    cases: Vec<(Value, &str)>,
) -> Result<()> {
    for (spec, sentence) in cases {
        let error = match cluster.try_spec::<K>(spec.clone()).await {
            Ok(_) => anyhow::bail!("accepted: {spec}"),
            Err(error) => error.to_string(),
        };
        ensure!(error.contains(sentence), "{spec}\n  was refused with {error}\n  instead of {sentence}");
    }
    Ok(())
}

async fn assert_accepted<K: kube::Resource<DynamicType = ()>>(
    cluster: &Cluster,
    cases: Vec<Value>,
) -> Result<()> {
    for spec in cases {
        cluster.try_spec::<K>(spec.clone()).await.with_context(|| format!("refused: {spec}"))?;
    }
    Ok(())
}

#[tokio::test]
async fn api_a_bad_checkpoint_is_refused_with_a_sentence_that_says_what_to_do() -> Result<()> {
    let Some(cluster) = Cluster::new("bad-checkpoint").await? else { return Ok(()) };
    let one_source = "name exactly one source: podName";
    let image = "this is not the reference of an image with its registry: write it as in registry.example/shop/web:warm";
    let duration = r#"write it as in "90s", "5m" or "1h30m""#;
    let hook = "a hook does exactly one thing";
    let source = |source: Value| checkpoint_with(json!({ "source": source }));
    let named = |image: &str| checkpoint_with(json!({ "image": image }));
    let warm_up = |warm_up: Value| checkpoint_with(json!({ "warmUp": warm_up }));
    let rehearsal = "recordWorkingSet ends the containers once and thaws them";
    let rehearsed = |fields: Value| checkpoint_with(merged(rehearsed(), fields));
    let http = |fields: Value| warm_up(json!({ "http": [merged(json!({"port": 8080}), fields)] }));
    let hooks = |hooks: Value| checkpoint_with(json!({ "hooks": hooks }));
    let cases = vec![
        (source(json!({})), one_source),
        (checkpoint_with(json!({ "recordWorkingSet": true })), rehearsal),
        (rehearsed(json!({ "leaveRunning": true })), rehearsal),
        (rehearsed(json!({ "connections": "Keep" })), rehearsal),
        (source(json!({"podName": "a", "template": template()})), one_source),
        (source(json!({"podName": "a", "workloadRef": {"kind": "Deployment", "name": "a"}})), one_source),
        (
            source(json!({"workloadRef": {"kind": "DaemonSet", "name": "a"}})),
            "supported values: \"Deployment\", \"StatefulSet\"",
        ),
        (
            source(json!({"workloadRef": {"apiVersion": "apps/v2", "kind": "Deployment", "name": "a"}})),
            "only workloads of apps/v1",
        ),
        (source(json!({"template": {"spec": {}}})), "spec.source.template.spec.containers: Required"),
        (source(json!({"template": {"spec": {"containers": []}}})), "should have at least 1 items"),
        (
            source(json!({"template": {"spec": {"containers": [{"name": "a"}]}}})),
            "containers[0].image: Required",
        ),
        (checkpoint_with(json!({"source": null})), "spec.source: Required"),
        (checkpoint_with(json!({"image": null})), "spec.image is missing: name where the image is pushed"),
        (named("web"), image),
        (named("shop/web:warm"), image),
        (named("registry.example/Shop/web"), image),
        (named("registry.example/shop/web:"), image),
        (named("registry.example/shop/web:warm:er"), image),
        (named("registry.example/shop//web"), image),
        (named("http://registry.example/shop/web"), image),
        (named("registry.example:port/web"), image),
        (named(&format!("registry.example/web@sha256:{}", "0".repeat(64))), "name a tag and no digest"),
        (named(&format!("registry.example/{}", "a".repeat(300))), "may not be more than 255"),
        (
            checkpoint_with(json!({"connections": "Drop"})),
            "supported values: \"Refuse\", \"Close\", \"Keep\"",
        ),
        (checkpoint_with(json!({"containers": ["app", "app"]})), "Duplicate value"),
        (checkpoint_with(json!({"retries": -1})), "greater than or equal to 0"),
        (checkpoint_with(json!({"retention": {}})), "retention needs keep, maxAge or both"),
        (checkpoint_with(json!({"retention": {"keep": 0}})), "greater than or equal to 1"),
        (checkpoint_with(json!({"retention": {"maxAge": "7d"}})), duration),
        (checkpoint_with(json!({"deadlines": {"start": "ten minutes"}})), duration),
        (checkpoint_with(json!({"deadlines": {"push": "-5m"}})), duration),
        (warm_up(json!({"timeout": "90"})), duration),
        (warm_up(json!({"settle": "1.5h"})), duration),
        (warm_up(json!({"exec": [{"command": []}]})), "should have at least 1 items"),
        (http(json!({"port": 0})), "greater than or equal to 1"),
        (http(json!({"port": 65536})), "less than or equal to 65535"),
        (http(json!({"path": "health"})), "a path begins with /"),
        (http(json!({"method": "get"})), "the method is one of GET, HEAD, POST"),
        (http(json!({"count": 0})), "greater than or equal to 1"),
        (http(json!({"concurrency": 1000})), "less than or equal to 256"),
        (http(json!({"expectedStatus": [20]})), "greater than or equal to 100"),
        (hooks(json!({"beforeCheckpoint": [{}]})), hook),
        (hooks(json!({"afterRestore": [{"exec": {"command": ["a"]}, "http": {"port": 1}}]})), hook),
        (hooks(json!({"afterRestore": [{"exec": {"command": ["a"]}, "timeout": "soon"}]})), duration),
        (hooks(json!({"afterRestore": [{"http": {"port": 80, "path": "refresh"}}]})), "a path begins with /"),
    ];
    assert_refused::<Checkpoint>(&cluster, cases).await
}

#[tokio::test]
async fn api_a_good_checkpoint_is_accepted() -> Result<()> {
    let Some(cluster) = Cluster::new("good-checkpoint").await? else { return Ok(()) };
    let mut cases = vec![
        checkpoint(),
        checkpoint_with(json!({"source": {"template": template()}})),
        checkpoint_with(rehearsed()),
        checkpoint_with(json!({"source": {"workloadRef": {"kind": "StatefulSet", "name": "db"}}})),
        // As a Helm chart leaves what its values do not set.
        json!({"source": {"podName": "a", "template": null}, "image": "r.example/a", "pushSecretRef": null, "memory": null}),
        checkpoint_with(json!({
            "containers": ["app", "sidecar"],
            "warmUp": {
                "readiness": false,
                "http": [{
                    "port": 8080, "path": "/search?q=a", "method": "POST", "headers": {"X-Tenant": "a"}, "body": "{}",
                    "count": 1000, "concurrency": 8, "expectedStatus": [200, 204],
                }],
                "exec": [{"container": "app", "command": ["sh", "-c", "true"]}],
                "settle": "10s", "signal": true, "timeout": "1h30m",
            },
            "hooks": {
                "beforeCheckpoint": [{"exec": {"command": ["sync"]}, "timeout": "500ms"}],
                "afterRestore": [{"http": {"port": 8080, "path": "/refresh"}}],
            },
            "connections": "Close", "memory": "Copied", "leaveRunning": false, "pushSecretRef": {"name": "registry"},
            "retention": {"keep": 3, "maxAge": "168h"}, "retries": 0,
            "deadlines": {"start": "5m", "freeze": "1m", "push": "1h"},
        })),
    ];
    for image in [
        "localhost/web",
        "localhost:5000/web:warm",
        "registry:5000/a/b/c/d:v1.2.3_x-y",
        "registry.example/shop/web",
        "REGISTRY.example:443/my_shop/web--x.y:W",
        "[fd00::1]:5000/web:warm",
        "[fd00::1]/web",
        "127.0.0.1:5000/web:warm",
    ] {
        cases.push(checkpoint_with(json!({ "image": image })));
    }
    assert_accepted::<Checkpoint>(&cluster, cases).await
}

#[tokio::test]
async fn api_a_bad_pool_is_refused_with_a_sentence_that_says_what_to_do() -> Result<()> {
    let Some(cluster) = Cluster::new("bad-pool").await? else { return Ok(()) };
    let asleep = "are of pods that sleep: set standby to Dormant or Frozen, or leave them out";
    let requests =
        |requests: Value| json!({"standby": "Dormant", "dormantResources": {"requests": requests}});
    let little = json!({"requests": {"cpu": "10m"}});
    let ours = "that begin with woodfrog.dev/ are set by Woodfrog alone";
    let cases = vec![
        (json!({}), "spec.checkpointRef: Required"),
        (pool_with(json!({"checkpointRef": {"name": ""}})), "should be at least 1 chars long"),
        (pool_with(json!({"replicas": -1})), "greater than or equal to 0"),
        (pool_with(json!({"maxSurge": 0})), "greater than or equal to 1"),
        (pool_with(json!({"minAwake": -1})), "greater than or equal to 0"),
        (pool_with(json!({"idleTimeout": "5m"})), asleep),
        (pool_with(json!({"standby": "Awake", "minAwake": 1})), asleep),
        (pool_with(json!({"onIdle": "Save"})), asleep),
        (pool_with(json!({"standby": "Dormant", "minAwakeTime": "30s"})), "minAwakeTime needs idleTimeout"),
        (pool_with(json!({"standby": "Dormant", "idleTimeout": "0s"})), "idleTimeout is zero"),
        (pool_with(json!({"standby": "Frozen", "onIdle": "Save"})), "a Frozen pod keeps its memory anyway"),
        (pool_with(json!({"dormantResources": little})), "set standby to Dormant, or leave it out"),
        (
            pool_with(json!({"standby": "Frozen", "dormantResources": little})),
            "whose application does not run",
        ),
        (pool_with(requests(json!({}))), "set cpu, memory or both"),
        (pool_with(requests(json!({"cpu": "0"}))), "this is no number of CPUs above 0"),
        (pool_with(requests(json!({"memory": "64 MB"}))), "this is no number of bytes above 0"),
        (pool_with(json!({"standby": "Asleep"})), "supported values: \"Dormant\", \"Frozen\", \"Awake\""),
        (pool_with(json!({"idleTimeout": "5 minutes"})), "this is not a duration"),
        (pool_with(json!({"minAwakeTime": ""})), "this is not a duration"),
        (pool_with(json!({"onIdle": "Delete"})), "supported values: \"Discard\", \"Save\""),
        (pool_with(json!({"template": {"labels": {names::POOL_LABEL: "other"}}})), ours),
        (pool_with(json!({"template": {"annotations": {names::MANAGED_ANNOTATION: "false"}}})), ours),
    ];
    assert_refused::<WarmPool>(&cluster, cases).await
}

#[tokio::test]
async fn api_a_good_pool_is_accepted() -> Result<()> {
    let Some(cluster) = Cluster::new("good-pool").await? else { return Ok(()) };
    let cases = vec![
        pool_with(json!({})),
        pool_with(
            json!({"replicas": 0, "standby": "Awake", "memory": "Copied", "onIdle": "Discard", "maxSurge": 10}),
        ),
        pool_with(json!({
            "replicas": 5, "standby": "Dormant", "idleTimeout": "5m", "minAwakeTime": "30s", "minAwake": 2, "onIdle": "Save",
            "dormantResources": {"requests": {"cpu": "10m", "memory": "16Mi"}},
        })),
        // An autoscaler may go below what is kept awake.
        pool_with(json!({"replicas": 0, "standby": "Frozen", "idleTimeout": "1h30m", "minAwake": 2})),
        pool_with(
            json!({"template": {"labels": {"app": "web"}, "annotations": {"example.com/a": "woodfrog.dev/b"}}}),
        ),
    ];
    assert_accepted::<WarmPool>(&cluster, cases).await
}

#[tokio::test]
async fn api_what_an_object_is_made_from_cannot_be_changed_and_the_rest_can() -> Result<()> {
    let Some(cluster) = Cluster::new("immutable").await? else { return Ok(()) };
    cluster.make::<Checkpoint>("web", checkpoint()).await?;
    let other = json!({"spec": {"source": {"podName": null, "template": template()}}});
    let error =
        cluster.change::<Checkpoint>("web", other).await.err().context("the source changed")?.to_string();
    ensure!(error.contains("the kind of source cannot be changed: delete the Checkpoint"), "{error}");
    let same_kind = json!({"spec": {"source": {"podName": "web-1"}, "image": "r.example/b:warm"}});
    cluster.change::<Checkpoint>("web", same_kind).await?;

    cluster.make::<WarmPool>("web", pool_with(json!({}))).await?;
    let other = json!({"spec": {"checkpointRef": {"name": "b"}}});
    let error =
        cluster.change::<WarmPool>("web", other).await.err().context("checkpointRef changed")?.to_string();
    ensure!(error.contains("checkpointRef cannot be changed: create another WarmPool"), "{error}");
    cluster.change::<WarmPool>("web", json!({"spec": {"replicas": 5, "maxSurge": 2}})).await?;
    Ok(())
}

#[tokio::test]
async fn api_what_is_left_out_is_filled_in_as_the_reference_says() -> Result<()> {
    let Some(cluster) = Cluster::new("defaults").await? else { return Ok(()) };
    let spec = checkpoint_with(json!({"warmUp": {"http": [{"port": 80}]}}));
    let made = cluster.make::<Checkpoint>("web", spec).await?;
    let spec = &made.data["spec"];
    let expected = [
        ("/connections", json!("Refuse")),
        ("/memory", json!("Copied")),
        ("/retries", json!(3)),
        ("/deadlines", json!({"start": "10m", "freeze": "5m", "push": "30m"})),
        ("/warmUp/readiness", json!(true)),
        ("/warmUp/timeout", json!("10m")),
        ("/warmUp/http/0", json!({"port": 80, "path": "/", "method": "GET", "count": 1, "concurrency": 1})),
    ];
    for (path, value) in expected {
        ensure!(spec.pointer(path) == Some(&value), "{path} is {:?}", spec.pointer(path));
    }
    let plain = cluster.make::<Checkpoint>("plain", checkpoint()).await?;
    ensure!(plain.data["spec"]["warmUp"] == json!({"readiness": true, "signal": false, "timeout": "10m"}));

    let pool = cluster.make::<WarmPool>("web", pool_with(json!({}))).await?;
    let expected = json!({"checkpointRef": {"name": "web"}, "replicas": 1, "standby": "Awake", "onIdle": "Discard", "maxSurge": 1});
    ensure!(pool.data["spec"] == expected, "{}", pool.data["spec"]);

    // And what the server fills in is what the operator would have without it.
    let read = cluster.checkpoints().get("plain").await?;
    let mut bare: Checkpoint = serde_json::from_value(json!({
        "apiVersion": "woodfrog.dev/v1alpha1", "kind": "Checkpoint", "metadata": {}, "spec": checkpoint(),
    }))?;
    bare.metadata = read.metadata.clone();
    ensure!(read == bare);
    Ok(())
}

#[tokio::test]
async fn api_a_name_that_is_too_long_for_a_label_is_refused() -> Result<()> {
    let Some(cluster) = Cluster::new("names").await? else { return Ok(()) };
    let sentence = "the name is longer than 63 characters";
    let long = "a".repeat(64);
    let checkpoint_error = cluster.make::<Checkpoint>(&long, checkpoint()).await.err().context("accepted")?;
    ensure!(checkpoint_error.to_string().contains(sentence), "{checkpoint_error}");
    let pool_error = cluster.make::<WarmPool>(&long, pool_with(json!({}))).await.err().context("accepted")?;
    ensure!(pool_error.to_string().contains(sentence), "{pool_error}");
    cluster.make::<Checkpoint>(&long[..63], checkpoint()).await?;
    cluster.make::<WarmPool>(&long[..63], pool_with(json!({}))).await?;
    Ok(())
}
