//! What the stand-ins of a cluster do for a pod, and what the agent does for an instruction that nobody but the test gives.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt as _;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use rustix::process::Signal;
use serde_json::{Value, json};
use woodfrog_api::{AgentPhase, Checkpoint, names};
use woodfrog_testcluster::Cluster;
use woodfrog_testcluster::cluster::REGISTRY;
use woodfrog_testcluster::operator::OPERATOR;
use woodfrog_testnode::App;
use woodfrog_tests::in_cluster;

const PATIENCE: Duration = Duration::from_secs(120);
const SOON: Duration = Duration::from_secs(20);
const EXAMPLE: &str = include_str!("../../docs/examples/python.yaml");

/// The pod of the example's template, under Woodfrog.
fn pod(name: &str) -> Result<Pod> {
    let example: Value = serde_saphyr::from_str(EXAMPLE)?;
    let mut spec = example["spec"]["source"]["template"]["spec"].clone();
    spec["containers"][0]["image"] = json!(App::Cpython.reference());
    let annotations = json!({ names::MANAGED_ANNOTATION: "true" });
    let metadata = json!({ "name": name, "labels": { "app": "python" }, "annotations": annotations });
    Ok(serde_json::from_value(json!({ "metadata": metadata, "spec": spec }))?)
}

fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_ref());
    conditions.is_some_and(|all| all.iter().any(|c| c.type_ == "Ready" && c.status == "True"))
}

fn restarts(pod: &Pod) -> i32 {
    let statuses = pod.status.iter().flat_map(|status| status.container_statuses.iter().flatten());
    statuses.map(|status| status.restart_count).sum()
}

async fn start(cluster: &Cluster<'_>, pod: &Pod) -> Result<Pod> {
    cluster.api::<Pod>().create(&PostParams::default(), pod).await?;
    cluster.until(&pod.name_any(), PATIENCE, is_ready).await
}

#[test]
fn e2e_a_pod_gets_ready_is_restarted_when_it_dies_and_goes_when_it_is_deleted() {
    in_cluster("stand-ins", &[App::Cpython], async |cluster| {
        let mut astray = pod("astray")?;
        let selector = [("kubernetes.io/hostname".to_owned(), "elsewhere".to_owned())];
        astray.spec.as_mut().context("no spec")?.node_selector = Some(selector.into());
        cluster.api::<Pod>().create(&PostParams::default(), &astray).await?;
        let unschedulable = |pod: &Pod| {
            let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_ref());
            conditions.is_some_and(|all| all.iter().any(|c| c.reason.as_deref() == Some("Unschedulable")))
        };
        cluster.until("astray", PATIENCE, unschedulable).await?;

        let pod = start(cluster, &pod("web")?).await?;
        ensure!(cluster.get(&pod, "/count")? == "1" && cluster.get(&pod, "/count")? == "2");
        let output = cluster.member.stack.woodfrog(&["ps", "--output", "json"])?;
        let listed: Vec<Value> = serde_json::from_str(&output)?;
        let pid = listed[0]["pid"].as_i64().with_context(|| format!("no PID: {output}"))?;
        cluster.node.run("kill", &["-KILL", &pid.to_string()])?;
        let again = cluster.until("web", PATIENCE, |pod| restarts(pod) == 1 && is_ready(pod)).await?;
        ensure!(cluster.get(&again, "/count")? == "1", "a container of its own");

        for name in ["web", "astray"] {
            cluster.api::<Pod>().delete(name, &DeleteParams::default()).await?;
            cluster.until_gone::<Pod>(name, PATIENCE).await?;
        }
        // The agent hears of a container's end on its own.
        let deadline = Instant::now() + SOON;
        loop {
            let left = cluster.member.stack.woodfrog(&["ps", "--output", "json"])?;
            if left.trim() == "[]" {
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "containers are left: {left}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    });
}

#[test]
fn e2e_a_pod_whose_owner_is_gone_is_collected() {
    in_cluster("orphans", &[App::Cpython], async |cluster| {
        cluster.node.stop(OPERATOR, Signal::TERM)?;
        let checkpoint = checkpoint(cluster, "owner").await?;
        let mut owned = pod("owned")?;
        owned.metadata.owner_references =
            kube::Resource::controller_owner_ref(&checkpoint, &()).map(|o| vec![o]);
        start(cluster, &owned).await?;
        cluster.api::<Checkpoint>().delete("owner", &DeleteParams::default()).await?;
        cluster.until_gone::<Pod>("owned", PATIENCE).await
    });
}

/// A Checkpoint of the pod `web` that no operator looks at.
async fn checkpoint(cluster: &Cluster<'_>, name: &str) -> Result<Checkpoint> {
    let object = json!({
        "apiVersion": "woodfrog.dev/v1alpha1",
        "kind": "Checkpoint",
        "metadata": { "name": name },
        "spec": { "source": { "podName": "web" }, "image": format!("{REGISTRY}/checkpoint/by-hand:1") },
    });
    Ok(cluster.api().create(&PostParams::default(), &serde_json::from_value(object)?).await?)
}

#[test]
fn e2e_an_agent_carries_out_the_instruction_of_its_node_and_labels_the_node() {
    in_cluster("by-hand", &[App::Cpython], async |cluster| {
        cluster.node.stop(OPERATOR, Signal::TERM)?;
        let pod = start(cluster, &pod("web")?).await?;
        let checkpoint = checkpoint(cluster, "by-hand").await?;
        let checkpoints = cluster.api::<Checkpoint>();
        let instruction = json!({
            "attempt": 1,
            "node": cluster.node.name(),
            "podName": "web",
            "podUid": pod.uid(),
            "containers": [{ "name": "app", "image": checkpoint.spec.image }],
            "warmUp": { "http": [{ "port": 8080, "path": "/count", "count": 5 }] },
            // A probe of the kubelet may be on its way.
            "connections": "Close",
            "leaveRunning": true,
        });
        let label = json!({ "metadata": { "labels": { names::NODE_LABEL: cluster.node.name() } } });
        let status = json!({ "status": { "instruction": instruction } });
        let parameters = PatchParams::default();
        checkpoints.patch_status("by-hand", &parameters, &Patch::Merge(status)).await?;
        checkpoints.patch("by-hand", &parameters, &Patch::Merge(label)).await?;
        let is_final = |checkpoint: &Checkpoint| {
            let agent = checkpoint.status.as_ref().and_then(|status| status.agent.as_ref());
            agent.is_some_and(|agent| agent.phase.is_final())
        };
        let done = cluster.until("by-hand", PATIENCE, is_final).await?;
        let agent = done.status.and_then(|status| status.agent).context("no report")?;
        ensure!(agent.phase == AgentPhase::Done && agent.containers.len() == 1, "{agent:?}");
        ensure!(cluster.get(&pod, "/count")? == "6", "the warm-up's requests, and ours");

        let mut warm = self::pod("warm")?;
        let frozen = agent.containers[0].image.split_once(":1").map_or("", |(repository, _)| repository);
        let spec = warm.spec.as_mut().context("no spec")?;
        spec.containers[0].image = Some(format!("{frozen}@{}", agent.containers[0].digest));
        let image = agent.containers[0].compatibility.as_ref().context("no compatibility")?;
        spec.affinity = Some(serde_json::from_value(json!({ "nodeAffinity": {
            "requiredDuringSchedulingIgnoredDuringExecution": { "nodeSelectorTerms": [
                { "matchExpressions": woodfrog_api::node_labels::requirements(image) }
            ] },
        } }))?);
        let warm = start(cluster, &warm).await?;
        cluster.assert_thawed(&warm)?;
        ensure!(cluster.get(&warm, "/count")? == "6", "it goes on from the freeze");
        Ok(())
    });
}
