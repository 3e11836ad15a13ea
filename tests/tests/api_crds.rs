//! The resources on an API server: what is refused and with which sentence, what is filled in, who owns which field.
#![forbid(unsafe_code)]

use anyhow::{Context as _, Result, ensure};
use kube::api::{Api, ListParams, Patch, PatchParams, PostParams};
use kube::core::{ApiResource, DynamicObject};
use kube::{Client, ResourceExt};
use serde_json::{Value, json};
use woodfrog_api::{Checkpoint, WarmPool, names};
use woodfrog_testapi::{ApiServer, Need, User};

/// A namespace of its own on the server that this file's tests share.
struct World {
    client: Client,
    namespace: String,
}

impl World {
    /// Nothing where there is no API server; the reason has been printed then.
    async fn new(name: &str) -> Result<Option<Self>> {
        if !Need::met() {
            return Ok(None);
        }
        let server = ApiServer::shared().await?;
        let client = server.client(&User::admin()).await?;
        Ok(Some(Self { client, namespace: server.namespace(name).await? }))
    }

    fn objects<K: kube::Resource<DynamicType = ()>>(&self) -> Api<DynamicObject> {
        Api::namespaced_with(self.client.clone(), &self.namespace, &ApiResource::erase::<K>(&()))
    }

    fn checkpoints(&self) -> Api<Checkpoint> {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    fn pools(&self) -> Api<WarmPool> {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    /// What the server says of a specification, without keeping it.
    async fn try_spec<K: kube::Resource<DynamicType = ()>>(
        &self,
        spec: Value,
    ) -> kube::Result<DynamicObject> {
        let object = DynamicObject::new("tried", &ApiResource::erase::<K>(&())).data(json!({ "spec": spec }));
        let dry = PostParams { dry_run: true, ..PostParams::default() };
        self.objects::<K>().create(&dry, &object).await
    }

    async fn make<K: kube::Resource<DynamicType = ()>>(
        &self,
        name: &str,
        spec: Value,
    ) -> Result<DynamicObject> {
        let object = DynamicObject::new(name, &ApiResource::erase::<K>(&())).data(json!({ "spec": spec }));
        Ok(self.objects::<K>().create(&PostParams::default(), &object).await?)
    }

    async fn change<K: kube::Resource<DynamicType = ()>>(
        &self,
        name: &str,
        patch: Value,
    ) -> kube::Result<DynamicObject> {
        self.objects::<K>().patch(name, &PatchParams::default(), &Patch::Merge(patch)).await
    }

    /// Applies a part of a Checkpoint's status.
    async fn apply_status(&self, name: &str, manager: &str, status: Value) -> kube::Result<Checkpoint> {
        let object = json!({"apiVersion": "woodfrog.dev/v1alpha1", "kind": "Checkpoint", "status": status});
        self.checkpoints().patch_status(name, &PatchParams::apply(manager), &Patch::Apply(object)).await
    }

    /// What the server answers to a plain request.
    async fn get(&self, path: &str, accept: &str) -> Result<Value> {
        let request = http::Request::get(path).header("accept", accept).body(Vec::new())?;
        Ok(serde_json::from_str(&self.client.request_text(request).await?)?)
    }

    fn path(&self, plural: &str) -> String {
        format!("/apis/woodfrog.dev/v1alpha1/namespaces/{}/{plural}", self.namespace)
    }
}

/// A Checkpoint with nothing but what it must have.
fn checkpoint() -> Value {
    json!({"source": {"podName": "web-0"}, "image": "registry.example/shop/web:warm"})
}

/// The same with fields set, or taken away by null.
fn checkpoint_with(fields: Value) -> Value {
    merged(checkpoint(), fields)
}

fn pool_with(fields: Value) -> Value {
    merged(json!({"checkpointRef": {"name": "web"}}), fields)
}

fn merged(mut object: Value, fields: Value) -> Value {
    for (name, value) in fields.as_object().into_iter().flatten() {
        object[name] = value.clone();
        if value.is_null() {
            object.as_object_mut().map(|object| object.remove(name));
        }
    }
    object
}

fn template() -> Value {
    json!({"spec": {"containers": [{"name": "app", "image": "shop/web:1", "ports": [{"containerPort": 8080}]}]}})
}

/// Each of these must be refused, with each its sentence.
async fn assert_refused<K: kube::Resource<DynamicType = ()>>(
    world: &World,
    cases: Vec<(Value, &str)>,
) -> Result<()> {
    for (spec, sentence) in cases {
        let error = match world.try_spec::<K>(spec.clone()).await {
            Ok(_) => anyhow::bail!("accepted: {spec}"),
            Err(error) => error.to_string(),
        };
        ensure!(error.contains(sentence), "{spec}\n  was refused with {error}\n  instead of {sentence}");
    }
    Ok(())
}

async fn assert_accepted<K: kube::Resource<DynamicType = ()>>(
    world: &World,
    cases: Vec<Value>,
) -> Result<()> {
    for spec in cases {
        world.try_spec::<K>(spec.clone()).await.with_context(|| format!("refused: {spec}"))?;
    }
    Ok(())
}

#[tokio::test]
async fn api_a_bad_checkpoint_is_refused_with_a_sentence_that_says_what_to_do() -> Result<()> {
    let Some(world) = World::new("bad-checkpoint").await? else { return Ok(()) };
    let one_source = "name exactly one source: podName";
    let image = "this is not the reference of an image with its registry: write it as in registry.example/shop/web:warm";
    let duration = r#"write it as in "90s", "5m" or "1h30m""#;
    let hook = "a hook does exactly one thing";
    let source = |source: Value| checkpoint_with(json!({ "source": source }));
    let named = |image: &str| checkpoint_with(json!({ "image": image }));
    let warm_up = |warm_up: Value| checkpoint_with(json!({ "warmUp": warm_up }));
    let http = |fields: Value| warm_up(json!({ "http": [merged(json!({"port": 8080}), fields)] }));
    let hooks = |hooks: Value| checkpoint_with(json!({ "hooks": hooks }));
    let cases = vec![
        (source(json!({})), one_source),
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
        (checkpoint_with(json!({"memory": "Shared"})), "memory: Shared does not exist yet"),
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
    assert_refused::<Checkpoint>(&world, cases).await
}

#[tokio::test]
async fn api_a_good_checkpoint_is_accepted() -> Result<()> {
    let Some(world) = World::new("good-checkpoint").await? else { return Ok(()) };
    let mut cases = vec![
        checkpoint(),
        checkpoint_with(json!({"source": {"template": template()}})),
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
    assert_accepted::<Checkpoint>(&world, cases).await
}

#[tokio::test]
async fn api_a_bad_pool_is_refused_with_a_sentence_that_says_what_to_do() -> Result<()> {
    let Some(world) = World::new("bad-pool").await? else { return Ok(()) };
    let ours = "that begin with woodfrog.dev/ are set by Woodfrog alone";
    let cases = vec![
        (json!({}), "spec.checkpointRef: Required"),
        (pool_with(json!({"checkpointRef": {"name": ""}})), "should be at least 1 chars long"),
        (pool_with(json!({"replicas": -1})), "greater than or equal to 0"),
        (pool_with(json!({"maxSurge": 0})), "greater than or equal to 1"),
        (pool_with(json!({"minAwake": -1})), "greater than or equal to 0"),
        (pool_with(json!({"standby": "Dormant"})), "standby: Dormant and Frozen do not exist yet"),
        (pool_with(json!({"standby": "Frozen"})), "standby: Dormant and Frozen do not exist yet"),
        (pool_with(json!({"standby": "Asleep"})), "supported values: \"Dormant\", \"Frozen\", \"Awake\""),
        (pool_with(json!({"memory": "Shared"})), "memory: Shared does not exist yet"),
        (pool_with(json!({"idleTimeout": "5 minutes"})), "this is not a duration"),
        (pool_with(json!({"minAwakeTime": ""})), "this is not a duration"),
        (pool_with(json!({"onIdle": "Delete"})), "supported values: \"Discard\", \"Save\""),
        (pool_with(json!({"template": {"labels": {names::POOL_LABEL: "other"}}})), ours),
        (pool_with(json!({"template": {"annotations": {names::MANAGED_ANNOTATION: "false"}}})), ours),
    ];
    assert_refused::<WarmPool>(&world, cases).await
}

#[tokio::test]
async fn api_a_good_pool_is_accepted() -> Result<()> {
    let Some(world) = World::new("good-pool").await? else { return Ok(()) };
    let cases = vec![
        pool_with(json!({})),
        pool_with(
            json!({"replicas": 0, "standby": "Awake", "memory": "Copied", "onIdle": "Save", "maxSurge": 10}),
        ),
        pool_with(json!({"idleTimeout": "5m", "minAwakeTime": "30s", "minAwake": 2})),
        pool_with(
            json!({"template": {"labels": {"app": "web"}, "annotations": {"example.com/a": "woodfrog.dev/b"}}}),
        ),
    ];
    assert_accepted::<WarmPool>(&world, cases).await
}

#[tokio::test]
async fn api_what_an_object_is_made_from_cannot_be_changed_and_the_rest_can() -> Result<()> {
    let Some(world) = World::new("immutable").await? else { return Ok(()) };
    world.make::<Checkpoint>("web", checkpoint()).await?;
    let other = json!({"spec": {"source": {"podName": null, "template": template()}}});
    let error =
        world.change::<Checkpoint>("web", other).await.err().context("the source changed")?.to_string();
    ensure!(error.contains("the kind of source cannot be changed: delete the Checkpoint"), "{error}");
    let same_kind = json!({"spec": {"source": {"podName": "web-1"}, "image": "r.example/b:warm"}});
    world.change::<Checkpoint>("web", same_kind).await?;

    world.make::<WarmPool>("web", pool_with(json!({}))).await?;
    let other = json!({"spec": {"checkpointRef": {"name": "b"}}});
    let error =
        world.change::<WarmPool>("web", other).await.err().context("checkpointRef changed")?.to_string();
    ensure!(error.contains("checkpointRef cannot be changed: create another WarmPool"), "{error}");
    world.change::<WarmPool>("web", json!({"spec": {"replicas": 5, "maxSurge": 2}})).await?;
    Ok(())
}

#[tokio::test]
async fn api_what_is_left_out_is_filled_in_as_the_reference_says() -> Result<()> {
    let Some(world) = World::new("defaults").await? else { return Ok(()) };
    let spec = checkpoint_with(json!({"warmUp": {"http": [{"port": 80}]}}));
    let made = world.make::<Checkpoint>("web", spec).await?;
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
    let plain = world.make::<Checkpoint>("plain", checkpoint()).await?;
    ensure!(plain.data["spec"]["warmUp"] == json!({"readiness": true, "signal": false, "timeout": "10m"}));

    let pool = world.make::<WarmPool>("web", pool_with(json!({}))).await?;
    let expected = json!({"checkpointRef": {"name": "web"}, "replicas": 1, "standby": "Awake", "onIdle": "Discard", "maxSurge": 1});
    ensure!(pool.data["spec"] == expected, "{}", pool.data["spec"]);

    // And what the server fills in is what the operator would have without it.
    let read = world.checkpoints().get("plain").await?;
    let mut bare: Checkpoint = serde_json::from_value(json!({
        "apiVersion": "woodfrog.dev/v1alpha1", "kind": "Checkpoint", "metadata": {}, "spec": checkpoint(),
    }))?;
    bare.metadata = read.metadata.clone();
    ensure!(read == bare);
    Ok(())
}

#[tokio::test]
async fn api_kubectl_get_answers_is_it_ready_where_how_big_and_how_fast() -> Result<()> {
    let Some(world) = World::new("columns").await? else { return Ok(()) };
    world.make::<Checkpoint>("web", checkpoint()).await?;
    let status = json!({
        "phase": "Ready", "node": "node-1", "summary": {"size": "184 MiB", "freeze": "312 ms"},
        "conditions": [{
            "type": "Ready", "status": "True", "reason": "Succeeded", "message": "1 image is in the registry",
            "lastTransitionTime": "2026-01-01T00:00:00Z",
        }],
    });
    world.apply_status("web", names::OPERATOR, status).await?;
    world.make::<WarmPool>("web", pool_with(json!({"replicas": 3}))).await?;
    let status = json!({"status": {"replicas": 3, "readyReplicas": 2, "updatedReplicas": 3}});
    world.pools().patch_status("web", &PatchParams::default(), &Patch::Merge(status)).await?;

    let table = "application/json;as=Table;v=v1;g=meta.k8s.io";
    let checkpoints = world.get(&world.path("checkpoints"), table).await?;
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
    let pools = world.get(&world.path("warmpools"), table).await?;
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
    let Some(world) = World::new("explain").await? else { return Ok(()) };
    let list = world.get("/apis/woodfrog.dev/v1alpha1", "application/json").await?;
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
        if let Ok(document) = world.get("/openapi/v3/apis/woodfrog.dev/v1alpha1", "application/json").await {
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
    let Some(world) = World::new("scale").await? else { return Ok(()) };
    world.make::<WarmPool>("web", pool_with(json!({"replicas": 2}))).await?;
    let selector = format!("{}=web", names::POOL_LABEL);
    let status = json!({"status": {"replicas": 2, "selector": selector}});
    world.pools().patch_status("web", &PatchParams::default(), &Patch::Merge(status)).await?;

    let scale = world.pools().get_scale("web").await?;
    ensure!(scale.spec.context("no spec")?.replicas == Some(2));
    let status = scale.status.context("no status")?;
    ensure!(status.replicas == 2 && status.selector == Some(selector), "{status:?}");

    let patch = Patch::Merge(json!({"spec": {"replicas": 7}}));
    world.pools().patch_scale("web", &PatchParams::default(), &patch).await?;
    ensure!(world.pools().get("web").await?.spec.replicas == 7);
    let below = Patch::Merge(json!({"spec": {"replicas": -1}}));
    ensure!(world.pools().patch_scale("web", &PatchParams::default(), &below).await.is_err());
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
    let Some(world) = World::new("ownership").await? else { return Ok(()) };
    world.make::<Checkpoint>("web", checkpoint()).await?;
    for phase in ["Preparing", "Freezing", "Pushing", "Done"] {
        world.apply_status("web", names::OPERATOR, operators_part()).await?;
        world.apply_status("web", names::AGENT, agents_part(phase)).await?;
    }
    let status = world.checkpoints().get("web").await?.status.context("no status")?;
    ensure!(status.instruction.is_some_and(|instruction| instruction.pod_uid == "u-1"));
    ensure!(status.agent.is_some_and(|agent| agent.phase == woodfrog_api::AgentPhase::Done));
    ensure!(status.conditions.len() == 1);

    // Neither can change what is the other's, unless it forces it.
    let error = world
        .apply_status("web", names::AGENT, json!({"phase": "Ready"}))
        .await
        .err()
        .context("no conflict")?;
    ensure!(matches!(&error, kube::Error::Api(status) if status.code == 409), "{error}");
    let stolen = merged(operators_part(), agents_part("Failed"));
    let error = world.apply_status("web", names::OPERATOR, stolen).await.err().context("no conflict")?;
    ensure!(matches!(&error, kube::Error::Api(status) if status.code == 409), "{error}");

    // What the operator applies no more is gone; the agent's part stays.
    let without = merged(operators_part(), json!({"instruction": null, "node": null}));
    world.apply_status("web", names::OPERATOR, without).await?;
    let status = world.checkpoints().get("web").await?.status.context("no status")?;
    ensure!(status.instruction.is_none() && status.node.is_none() && status.agent.is_some(), "{status:?}");
    world.apply_status("web", names::AGENT, json!({})).await?;
    let status = world.checkpoints().get("web").await?.status.context("no status")?;
    ensure!(status.agent.is_none() && status.phase.is_some(), "{status:?}");
    Ok(())
}

#[tokio::test]
async fn api_status_and_specification_are_written_each_through_its_own_door() -> Result<()> {
    let Some(world) = World::new("doors").await? else { return Ok(()) };
    let made = world.make::<Checkpoint>("web", checkpoint()).await?;
    let changed = world.change::<Checkpoint>("web", json!({"status": {"phase": "Ready"}})).await?;
    ensure!(changed.data["status"].is_null(), "{}", changed.data["status"]);

    let both = json!({"spec": {"image": "r.example/other:warm"}, "status": {"phase": "Pending"}});
    let checkpoint =
        world.checkpoints().patch_status("web", &PatchParams::default(), &Patch::Merge(both)).await?;
    ensure!(checkpoint.spec.image.as_deref() == Some("registry.example/shop/web:warm"));
    ensure!(checkpoint.metadata.generation == made.metadata.generation, "a status is no new generation");
    let unknown = Patch::Merge(json!({"status": {"phase": "Sleeping"}}));
    let error = world.checkpoints().patch_status("web", &PatchParams::default(), &unknown).await.err();
    let error = error.context("an unknown phase")?.to_string();
    ensure!(error.contains("supported values"), "{error}");
    Ok(())
}

#[tokio::test]
async fn api_an_agent_is_sent_only_what_is_for_its_node() -> Result<()> {
    let Some(world) = World::new("filter").await? else { return Ok(()) };
    for (name, node) in [("a", "node-1"), ("b", "node-2"), ("c", "")] {
        world.make::<Checkpoint>(name, checkpoint()).await?;
        if !node.is_empty() {
            world
                .change::<Checkpoint>(name, json!({"metadata": {"labels": {names::NODE_LABEL: node}}}))
                .await?;
        }
    }
    let mine = ListParams::default().labels(&format!("{}=node-1", names::NODE_LABEL));
    let found: Vec<_> = world.checkpoints().list(&mine).await?.iter().map(ResourceExt::name_any).collect();
    ensure!(found == ["a"], "{found:?}");
    Ok(())
}
