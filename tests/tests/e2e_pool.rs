//! Pools of pods that sleep: what wakes them, what keeps them awake, and what the pool says of it.

use std::io::Write as _;
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::events::v1::Event;
use kube::ResourceExt as _;
use kube::api::{Api, ListParams, Patch, PatchParams};
use serde_json::{Value, json};
use woodfrog_api::{SleepReport, SleepState, WarmPool, WarmPoolStatus, names};
use woodfrog_testcluster::Cluster;
use woodfrog_testcluster::cluster::SYSTEM;
use woodfrog_testnode::App;
use woodfrog_tests::examples::{self, PATIENCE};
use woodfrog_tests::in_cluster;

const POOL: &str = "
apiVersion: woodfrog.dev/v1alpha1
kind: WarmPool
metadata:
  name: web
spec:
  checkpointRef:
    name: python
  replicas: 2
  standby: Dormant
  idleTimeout: 1s
";

/// A pool of two pods that sleep.
async fn dormant(cluster: &Cluster<'_>) -> Result<Vec<Pod>> {
    examples::python(cluster, "shop/python").await?;
    cluster.apply(POOL).await?;
    until(cluster, |status| status.ready_replicas == 2 && status.dormant == 2).await?;
    pods(cluster).await
}

async fn pods(cluster: &Cluster<'_>) -> Result<Vec<Pod>> {
    cluster.pods(&format!("{}=web", names::POOL_LABEL)).await
}

/// Waits until the pool's status is as it should be.
async fn until(cluster: &Cluster<'_>, is: impl Fn(&WarmPoolStatus) -> bool) -> Result<WarmPoolStatus> {
    let is = |pool: &WarmPool| pool.status.as_ref().is_some_and(&is);
    cluster.until("web", PATIENCE, is).await?.status.context("no status")
}

async fn change(cluster: &Cluster<'_>, spec: Value) -> Result<()> {
    let patch = Patch::Merge(json!({ "spec": spec }));
    cluster.api::<WarmPool>().patch("web", &PatchParams::default(), &patch).await?;
    Ok(())
}

async fn annotate(cluster: &Cluster<'_>, pod: &Pod, key: &str, value: Value) -> Result<()> {
    let patch = Patch::Merge(json!({ "metadata": { "annotations": { (key): value } } }));
    cluster.api::<Pod>().patch(&pod.name_any(), &PatchParams::default(), &patch).await?;
    Ok(())
}

fn report(pod: &Pod) -> Option<SleepReport> {
    SleepReport::parse(pod.annotations().get(names::REPORT_ANNOTATION)?)
}

/// A connection to a pod, of a client on its node.
fn connect(cluster: &Cluster<'_>, pod: &Pod) -> Result<TcpStream> {
    let ip = pod.status.as_ref().and_then(|status| status.pod_ip.as_deref()).context("no address")?;
    Ok(cluster.node.connect(SocketAddr::new(ip.parse()?, 8080))?)
}

fn says(status: &WarmPoolStatus, type_: &str, reason: &str) -> bool {
    status.conditions.iter().any(|condition| condition.type_ == type_ && condition.reason == reason)
}

#[test]
fn e2e_pods_of_a_pool_sleep_and_are_woken_by_a_request_by_the_pool_and_by_an_annotation() {
    in_cluster("pool-sleeps", &[App::Cpython], async |cluster| {
        let pods = dormant(cluster).await?;
        ensure!(pods.len() == 2, "{} pods", pods.len());
        let condition = |pod: &Pod| {
            let conditions = pod.status.as_ref().and_then(|status| status.conditions.clone());
            conditions.into_iter().flatten().find(|condition| condition.type_ == names::AWAKE_CONDITION)
        };
        let asleep = condition(&pods[0]).context("its agent says nothing")?;
        ensure!(asleep.status == "False" && asleep.reason.as_deref() == Some("Dormant"), "{asleep:?}");

        // A request, which is not over yet.
        let mut stream = connect(cluster, &pods[0])?;
        write!(stream, "GET /count HTTP/1.1\r\n")?;
        let woken = |status: &WarmPoolStatus| (status.awake, status.dormant, status.wakes) == (1, 1, 1);
        let status = until(cluster, woken).await?;
        ensure!(status.failed_wakes == 0, "{status:?}");
        let time = status.wake_time.context("no wake time")?;
        ensure!(time.median_ms > 0 && time.median_ms == time.p95_ms, "{time:?}");
        drop(stream);
        until(cluster, |status| status.dormant == 2).await?;

        change(cluster, json!({ "minAwake": 1 })).await?;
        let status = until(cluster, |status| status.awake == 1 && status.wakes == 2).await?;
        ensure!(says(&status, "Degraded", "AllWell"), "{:?}", status.conditions);
        // Three times the idle timeout.
        tokio::time::sleep(Duration::from_secs(3)).await;
        let status = until(cluster, |_| true).await?;
        ensure!(status.awake == 1 && status.wakes == 2, "it is kept awake: {status:?}");
        let kept: Vec<Pod> = self::pods(cluster).await?.into_iter().filter(is_kept).collect();
        ensure!(kept.len() == 1, "{} pods are kept awake", kept.len());
        // Who takes it does not have to keep it awake.
        let labels = Patch::Merge(json!({ "metadata": { "labels": { names::POOL_LABEL: null } } }));
        cluster.api::<Pod>().patch(&kept[0].name_any(), &PatchParams::default(), &labels).await?;
        let claimed = kept[0].name_any();
        cluster.until(&claimed, PATIENCE, |pod: &Pod| !is_kept(pod)).await?;
        until(cluster, |status| status.ready_replicas == 2 && status.awake == 1).await?;
        change(cluster, json!({ "minAwake": null })).await?;
        until(cluster, |status| status.dormant == 2).await?;

        // The same value once more is no new one, also for an agent that was restarted.
        let pod = self::pods(cluster).await?.remove(0);
        let wakes = report(&pod).context("no report")?.wakes;
        annotate(cluster, &pod, names::WAKE_ANNOTATION, "1".into()).await?;
        let asleep = |pod: &Pod| {
            report(pod).is_some_and(|report| {
                (report.wakes, report.state) == (wakes + 1, SleepState::Dormant)
                    && report.wake.as_deref() == Some("1")
            })
        };
        cluster.until(&pod.name_any(), PATIENCE, asleep).await?;
        cluster.member.stack.kill_agent()?;
        let before = lease(cluster).await?;
        cluster.member.stack.start_agent()?;
        annotate(cluster, &pod, names::WAKE_ANNOTATION, "2".into()).await?;
        let again = |pod: &Pod| {
            report(pod).is_some_and(|report| report.wakes == wakes + 2 && report.wake.as_deref() == Some("2"))
        };
        cluster.until(&pod.name_any(), PATIENCE, again).await?;

        // By it the operator knows that the agent is there.
        let owner = before.owner_references().first().context("a lease without an owner")?;
        ensure!((owner.kind.as_str(), owner.name.as_str()) == ("Node", cluster.node.name()), "{owner:?}");
        let renewed = |lease: &Lease| lease.spec.as_ref().and_then(|spec| spec.renew_time.clone());
        let deadline = Instant::now() + PATIENCE;
        while renewed(&lease(cluster).await?) <= renewed(&before) {
            ensure!(Instant::now() < deadline, "the agent does not renew its lease");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        Ok(())
    });
}

/// That of the node's agent.
async fn lease(cluster: &Cluster<'_>) -> Result<Lease> {
    let leases = Api::<Lease>::namespaced(cluster.client.clone(), SYSTEM);
    Ok(leases.get(&names::agent_lease(cluster.node.name())).await?)
}

/// An agent's term is 40 s: only if `WOODFROG_SILENCE` is set.
#[test]
fn e2e_a_pool_says_that_its_agent_is_gone_until_it_is_back() {
    if std::env::var_os("WOODFROG_SILENCE").is_none() {
        eprintln!("skipped: WOODFROG_SILENCE is not set");
        return;
    }
    in_cluster("pool-silent", &[App::Cpython], async |cluster| {
        let pods = dormant(cluster).await?;
        cluster.member.stack.kill_agent()?;
        let status = until(cluster, |status| says(status, "Degraded", "AgentSilent")).await?;
        ensure!(status.dormant == 2, "what its agent said last: {status:?}");
        cluster.member.stack.start_agent()?;
        until(cluster, |status| says(status, "Degraded", "AllWell")).await?;
        let count: u32 = cluster.get(&pods[0], "/count")?.parse()?;
        ensure!(count > 1, "its pods do not wake any more");
        Ok(())
    });
}

#[test]
fn e2e_an_image_that_fails_again_and_again_is_started_cold_at_once_and_everybody_hears_why() {
    in_cluster("pool-fails", &[App::Cpython], async |cluster| {
        let pods = dormant(cluster).await?;
        // CRIU restores no process whose files have another size; the loader does not mind.
        let grow = "find /var/lib/containerd/io.containerd.snapshotter.v1.overlayfs/snapshots -name libc.so.6 \
                    -exec sh -c 'echo >>\"$0\"' {} \\;";
        cluster.node.run("sh", &["-c", grow])?;

        // Thawed twice, then cold.
        wait(cluster, &pods[0])?;
        let status = until(cluster, |status| status.failed_wakes == 1).await?;
        ensure!(status.wakes == 1 && says(&status, "Degraded", "AllWell"), "{status:?}");
        let failures = events(cluster, &pods[0], "ThawFailed").await?;
        ensure!(failures.len() == 1, "one for a kind of failure: {failures:?}");
        let note = failures[0].note.as_deref().unwrap_or_default();
        ensure!(note.contains("container app was not thawed") && note.contains("bytes"), "{note}");

        // The third failure in a row: it is not tried once more, and not again.
        wait(cluster, &pods[1])?;
        let status = until(cluster, |status| says(status, "Degraded", "ImageQuarantined")).await?;
        ensure!(status.conditions.iter().any(|c| c.type_ == "Degraded" && c.status == "True"), "{status:?}");
        let failures = events(cluster, &pods[1], "ThawFailed").await?;
        ensure!(failures.len() == 1 && failures[0].series.is_none(), "{failures:?}");
        for pod in &pods {
            ensure!(events(cluster, pod, "ImageQuarantined").await?.len() == 1, "{}", pod.name_any());
        }
        let ps = cluster.member.stack.woodfrog(&["ps"])?;
        ensure!(ps.contains("3 thaws of it have failed in a row"), "{ps}");
        Ok(())
    });
}

/// Asks a pod until it answers; its first answer comes after a cold start.
fn wait(cluster: &Cluster<'_>, pod: &Pod) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match cluster.get(pod, "/count") {
            Ok(count) => {
                ensure!(count == "1", "it was to start cold, but counts {count}");
                return Ok(());
            }
            Err(e) => ensure!(Instant::now() < deadline, "no answer: {e:#}"),
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// The Events of a pod with this reason, of which there is one at least.
async fn events(cluster: &Cluster<'_>, pod: &Pod, reason: &str) -> Result<Vec<Event>> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let events = cluster.api::<Event>().list(&ListParams::default()).await?.items;
        let about = |event: &Event| event.regarding.as_ref().and_then(|about| about.uid.clone()) == pod.uid();
        let found: Vec<_> =
            events.into_iter().filter(|e| about(e) && e.reason.as_deref() == Some(reason)).collect();
        if !found.is_empty() {
            return Ok(found);
        }
        ensure!(Instant::now() < deadline, "no Event {reason} of {}", pod.name_any());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

fn is_kept(pod: &Pod) -> bool {
    pod.annotations().get(names::KEEP_AWAKE_ANNOTATION).is_some_and(|kept| kept == "true")
}

/// What is in the page store of the cluster's node.
fn stored(cluster: &Cluster<'_>) -> Result<Vec<Value>> {
    let output = cluster.member.stack.woodfrog(&["ps", "--pages", "--output", "json"])?;
    serde_json::from_str(&output).with_context(|| output)
}

#[test]
fn e2e_the_memory_of_a_pools_image_is_in_the_page_store_before_its_first_pod() {
    in_cluster("pool-ahead", &[App::Cpython], async |cluster| {
        let frozen = examples::python(cluster, "shop/ahead").await?.status.context("no status")?.containers;
        let (image, digest) = (frozen[0].image.trim_end_matches(":warm"), frozen[0].digest.clone());
        let pull = ["-n", "k8s.io", "images", "pull", "--plain-http", &format!("{image}@{digest}")];
        cluster.node.run("ctr", &pull)?;
        ensure!(stored(cluster)?.is_empty(), "nobody has asked for it");
        cluster.apply(&POOL.replace("replicas: 2", "replicas: 0\n  memory: Shared")).await?;
        let deadline = Instant::now() + PATIENCE;
        while stored(cluster)?.is_empty() {
            ensure!(Instant::now() < deadline, "it is never there");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        let before = stored(cluster)?.remove(0);
        ensure!(before["digest"] == digest && before["used"] == false, "{before}");
        ensure!(pods(cluster).await?.is_empty(), "it has no pods");
        // Nothing is kept from going that was borrowed for it.
        let leases = cluster.node.run("ctr", &["-n", "k8s.io", "leases", "ls", "-q"])?;
        ensure!(!leases.contains("woodfrog-ahead"), "{leases}");

        change(cluster, json!({ "replicas": 1, "standby": "Awake", "idleTimeout": null })).await?;
        until(cluster, |status| status.ready_replicas == 1).await?;
        cluster.assert_thawed(&pods(cluster).await?[0])?;
        let after = stored(cluster)?.remove(0);
        ensure!(after["digest"] == digest && after["used"] == true, "{after}");
        Ok(())
    });
}
