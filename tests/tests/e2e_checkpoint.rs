//! A cluster end to end: from `kubectl apply` of an example to warm pods that answer.

use std::collections::BTreeSet;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::api::core::v1::{Pod, Secret};
use k8s_openapi::api::rbac::v1::{Role, RoleBinding};
use kube::ResourceExt as _;
use kube::api::{DeleteParams, ListParams};
use woodfrog_api::checkpoint::status::Phase;
use woodfrog_api::{Checkpoint, WarmPool, names};
use woodfrog_testcluster::Cluster;
use woodfrog_testcluster::cluster::REGISTRY;
use woodfrog_testnode::App;
use woodfrog_tests::examples::{PATIENCE, PYTHON, example, phase_is};
use woodfrog_tests::in_cluster;

const POOL: &str = "
apiVersion: woodfrog.dev/v1alpha1
kind: WarmPool
metadata:
  name: web
spec:
  checkpointRef:
    name: NAME
  replicas: 2
";

/// Applies an example, makes a pool of it, and looks at its pods; then all is deleted.
async fn life_of(cluster: &Cluster<'_>, text: &str, name: &str, app: App) -> Result<()> {
    cluster.apply(&example(text, name, app)).await?;
    let checkpoint = cluster.until(name, PATIENCE, phase_is(Phase::Ready)).await?;
    let frozen = checkpoint.status.map(|status| status.containers).unwrap_or_default();
    ensure!(frozen.len() == 1 && frozen[0].memory_bytes > 1 << 20, "{frozen:?}");
    cluster.until_no_pods(names::CHECKPOINT_LABEL, PATIENCE).await.context("the warm-up pods")?;

    cluster.apply(&POOL.replace("NAME", name)).await?;
    let filled = |pool: &WarmPool| pool.status.as_ref().is_some_and(|status| status.ready_replicas == 2);
    cluster.until("web", PATIENCE, filled).await?;
    let pods = cluster.pods(&format!("{}=web", names::POOL_LABEL)).await?;
    ensure!(pods.len() == 2, "{} pods", pods.len());
    let counts = pods.iter().map(|pod| warm_count(cluster, pod, &frozen[0].digest));
    let counts = counts.collect::<Result<BTreeSet<_>>>()?;
    ensure!(counts.len() == 1, "both go on from the same freeze: {counts:?}");
    let pool = cluster.api::<WarmPool>();
    pool.delete("web", &DeleteParams::default()).await?;
    cluster.until_no_pods(names::POOL_LABEL, PATIENCE).await.context("the pool's pods")?;
    cluster.api::<Checkpoint>().delete(name, &DeleteParams::default()).await?;
    cluster.until_gone::<Checkpoint>(name, PATIENCE).await
}

/// The counter of a pod that was thawed from that image, which goes on from the requests of the warm-up.
fn warm_count(cluster: &Cluster<'_>, pod: &Pod, digest: &str) -> Result<u32> {
    let name = pod.name_any();
    let image = pod.spec.as_ref().and_then(|spec| spec.containers[0].image.clone()).unwrap_or_default();
    ensure!(image.ends_with(digest), "{name} has the image {image}, not {digest}");
    cluster.assert_thawed(pod)?;
    let count: u32 = cluster.get(pod, "/count")?.parse()?;
    ensure!(count > 1, "{name} counts from the beginning");
    Ok(count)
}

macro_rules! examples {
    ($($test:ident: $file:literal, $app:ident;)*) => {
        $(#[test]
        fn $test() {
            let text = include_str!(concat!("../../docs/examples/", $file, ".yaml"));
            in_cluster(concat!("e2e-", $file), &[App::$app], async |cluster| {
                life_of(cluster, text, $file, App::$app).await
            });
        })*
    };
}

examples! {
    e2e_python_is_frozen_and_a_pool_of_it_answers_warm: "python", Cpython;
    e2e_tomcat_is_frozen_and_a_pool_of_it_answers_warm: "tomcat", Tomcat;
    e2e_express_is_frozen_and_a_pool_of_it_answers_warm: "express", Node;
    e2e_rails_is_frozen_and_a_pool_of_it_answers_warm: "rails", Rails;
}

#[test]
fn e2e_a_checkpoint_gets_ready_though_operator_and_agent_are_killed_in_each_phase() {
    in_cluster("e2e-kills", &[App::Cpython], async |cluster| {
        cluster.apply(&example(PYTHON, "python", App::Cpython)).await?;
        for phase in [Phase::Pending, Phase::WarmingUp, Phase::Freezing, Phase::Pushing] {
            let order = [Phase::Pending, Phase::WarmingUp, Phase::Freezing, Phase::Pushing, Phase::Ready];
            let place = |phase| order.iter().position(|known| *known == phase);
            // A phase may be over before anybody has seen it.
            let reached = |checkpoint: &Checkpoint| {
                let now = checkpoint.status.as_ref().and_then(|status| status.phase).and_then(place);
                now >= place(phase)
            };
            cluster.until("python", PATIENCE, reached).await?;
            cluster.member.stack.kill_agent()?;
            cluster.kill_operator()?;
            cluster.member.stack.start_agent()?;
            cluster.start_operator().await?;
        }
        let checkpoint = cluster.until("python", PATIENCE, phase_is(Phase::Ready)).await?;
        let frozen = checkpoint.status.map(|status| status.containers).unwrap_or_default();
        ensure!(frozen.len() == 1, "{frozen:?}");
        cluster.until_no_pods(names::CHECKPOINT_LABEL, PATIENCE).await.context("the warm-up pods")
    });
}

/// How often operator or agent is killed, at random; more than by default in a long test.
fn kills() -> u64 {
    std::env::var("WOODFROG_KILLS").ok().and_then(|kills| kills.parse().ok()).unwrap_or(6)
}

/// The python example under another name, made from a template that differs by `version`, with more of a specification.
fn version(name: &str, version: u64, more: &str) -> String {
    let text = example(PYTHON, "python", App::Cpython).replace("name: python", &format!("name: {name}"));
    let text = text.replace("shop/python:warm", &format!("shop/{name}:warm"));
    let variable =
        format!("            env: [{{ name: VERSION, value: \"{version}\" }}]\n            ports:");
    text.replacen("            ports:", &variable, 1) + more
}

/// Whether the registry has a manifest.
fn registry_has(cluster: &Cluster<'_>, repository: &str, digest: &str) -> Result<bool> {
    let request = format!(
        "HEAD /v2/{repository}/manifests/{digest} HTTP/1.0\r\nAccept: application/vnd.oci.image.manifest.v1+json\r\n\r\n"
    );
    let answer = cluster.node.in_network(|| -> Result<String> {
        let mut stream = TcpStream::connect(REGISTRY)?;
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        stream.write_all(request.as_bytes())?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    })??;
    match answer.split(' ').nth(1) {
        Some("200") => Ok(true),
        Some("404") => Ok(false),
        _ => anyhow::bail!("the registry answers {answer:?}"),
    }
}

/// Digests of all manifests of a repository, also of those without a tag, which no request lists.
fn manifests(cluster: &Cluster<'_>, repository: &str) -> Result<BTreeSet<String>> {
    let links = format!(
        "/var/lib/registry/docker/registry/v2/repositories/{repository}/_manifests/revisions/sha256/*/link"
    );
    let text =
        cluster.node.run("sh", &["-c", &format!("cat {links} 2>/dev/null | sed 's/sha256:/\\n&/g'")])?;
    Ok(text.split_whitespace().map(str::to_owned).collect())
}

/// Fails unless everything is gone that was there for an attempt or a deletion alone.
async fn nothing_is_left(cluster: &Cluster<'_>) -> Result<()> {
    cluster.until_no_pods(names::CHECKPOINT_LABEL, PATIENCE).await.context("the warm-up pods")?;
    let marked = ListParams::default().labels(names::NODE_LABEL);
    let marked = cluster.api::<Checkpoint>().list(&marked).await?.items;
    ensure!(marked.is_empty(), "still for a node: {marked:?}");
    let roles = cluster.api::<Role>().list(&ListParams::default()).await?.items;
    let bindings = cluster.api::<RoleBinding>().list(&ListParams::default()).await?.items;
    ensure!(roles.is_empty() && bindings.is_empty(), "still granted: {roles:?} {bindings:?}");
    Ok(())
}

/// Credentials that the registry of nodes does not ask for; the agent reads them all the same.
async fn push_secret(cluster: &Cluster<'_>) -> Result<()> {
    let secret = serde_json::json!({
        "metadata": { "name": "push" },
        "type": "kubernetes.io/dockerconfigjson",
        "stringData": { ".dockerconfigjson": "{\"auths\":{}}" },
        // What a test server without the conversion of stringData keeps.
        "data": { ".dockerconfigjson": "eyJhdXRocyI6e319" },
    });
    let secret: Secret = serde_json::from_value(secret)?;
    cluster.api::<Secret>().create(&Default::default(), &secret).await?;
    Ok(())
}

fn is_retained(checkpoint: &Checkpoint) -> bool {
    let status = checkpoint.status.clone().unwrap_or_default();
    let retained = status.conditions.iter().any(|c| c.type_ == "Retained" && c.status == "True");
    status.phase == Some(Phase::Ready) && retained && status.history.is_empty()
}

fn digest(checkpoint: &Checkpoint) -> Option<String> {
    Some(checkpoint.status.as_ref()?.containers.first()?.digest.clone())
}

const KEEP_ONE: &str =
    "  pushSecretRef:\n    name: push\n  retention:\n    keep: 1\n  recordWorkingSet: true\n";

#[test]
fn e2e_an_image_that_is_not_kept_is_gone_from_the_registry() {
    in_cluster("e2e-retention", &[App::Cpython], async |cluster| {
        push_secret(cluster).await?;
        cluster.apply(&version("kept", 1, KEEP_ONE)).await?;
        let first = cluster.until("kept", PATIENCE, is_retained).await?;
        let old = digest(&first).context("no image")?;
        ensure!(registry_has(cluster, "shop/kept", &old)?, "it was never there");
        cluster.apply(&version("kept", 2, KEEP_ONE)).await?;
        let anew = |checkpoint: &Checkpoint| {
            is_retained(checkpoint) && digest(checkpoint).is_some_and(|digest| digest != old)
        };
        let second = cluster.until("kept", PATIENCE, anew).await?;
        ensure!(!registry_has(cluster, "shop/kept", &old)?, "the old image is still in the registry");
        let new = digest(&second).context("no image")?;
        let frozen = second.status.map(|status| status.containers).unwrap_or_default();
        let set = frozen[0].working_set_bytes;
        ensure!(set > Some(0) && set < Some(frozen[0].memory_bytes), "what is wanted first: {frozen:?}");
        ensure!(registry_has(cluster, "shop/kept", &new)?, "the new image is not in the registry");
        nothing_is_left(cluster).await
    });
}

#[test]
fn e2e_checkpoints_get_ready_though_operator_and_agent_are_killed_at_random() {
    in_cluster("e2e-random", &[App::Cpython], async |cluster| {
        push_secret(cluster).await?;
        // The registry outlives a node as long as another one is up.
        let before = manifests(cluster, "shop/random")?;
        let mut made = 1;
        cluster.apply(&version("random", made, KEEP_ONE)).await?;
        // Any spread will do; a fixed one can be repeated.
        let mut random = 0x9e37_79b9_u64;
        for _ in 0..kills() {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            tokio::time::sleep(Duration::from_millis((random >> 33) % 4000)).await;
            if (random >> 20).is_multiple_of(2) {
                cluster.member.stack.kill_agent()?;
                cluster.member.stack.start_agent()?;
            } else {
                cluster.kill_operator()?;
                cluster.start_operator().await?;
            }
            let checkpoint: Checkpoint = cluster.api().get("random").await?;
            if is_retained(&checkpoint) {
                made += 1;
                cluster.apply(&version("random", made, KEEP_ONE)).await?;
            }
        }
        let last = cluster.apply(&version("random", made + 1, KEEP_ONE)).await?;
        let generation = last[0].metadata.generation;
        let over = |checkpoint: &Checkpoint| {
            let seen = checkpoint.status.as_ref().and_then(|status| status.observed_generation);
            seen == generation && is_retained(checkpoint)
        };
        let checkpoint = cluster.until("random", PATIENCE, over).await?;
        let digest = digest(&checkpoint).context("no image")?;
        ensure!(registry_has(cluster, "shop/random", &digest)?, "the image is not in the registry");
        let after = manifests(cluster, "shop/random")?;
        ensure!(after.contains(&digest), "the registry keeps its manifests elsewhere: {after:?}");
        let left: Vec<_> = after.difference(&before).filter(|left| **left != digest).collect();
        ensure!(left.is_empty(), "images that nobody knows are left: {left:?}");
        nothing_is_left(cluster).await
    });
}
