//! A cluster end to end: from `kubectl apply` of an example to warm pods that answer.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt as _;
use kube::api::DeleteParams;
use woodfrog_api::checkpoint::status::Phase;
use woodfrog_api::{Checkpoint, WarmPool, names};
use woodfrog_testcluster::cluster::REGISTRY;
use woodfrog_testcluster::{Cluster, in_cluster};
use woodfrog_testnode::App;

/// How long an application may take to be frozen, or a pool to be filled, on a slow machine under load.
const PATIENCE: Duration = Duration::from_secs(180);

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

/// An example of the documentation, with images of this node's registry.
fn example(text: &str, name: &str, app: App) -> String {
    let image = format!("registry.example/shop/{name}:1");
    text.replace(&image, &app.reference()).replace("registry.example", REGISTRY)
}

fn phase_is(phase: Phase) -> impl Fn(&Checkpoint) -> bool {
    move |checkpoint| checkpoint.status.as_ref().is_some_and(|status| status.phase == Some(phase))
}

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

const PYTHON: &str = include_str!("../../docs/examples/python.yaml");

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
            cluster.stack.kill_agent()?;
            cluster.kill_operator()?;
            cluster.stack.start_agent()?;
            cluster.start_operator().await?;
        }
        let checkpoint = cluster.until("python", PATIENCE, phase_is(Phase::Ready)).await?;
        let frozen = checkpoint.status.map(|status| status.containers).unwrap_or_default();
        ensure!(frozen.len() == 1, "{frozen:?}");
        cluster.until_no_pods(names::CHECKPOINT_LABEL, PATIENCE).await.context("the warm-up pods")
    });
}
