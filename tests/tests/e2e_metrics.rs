//! The dashboard of the chart shows what agent and operator really export.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::api::core::v1::Pod;
use serde_json::{Value, json};
use woodfrog_testcluster::Cluster;
use woodfrog_testcluster::cluster::REGISTRY;
use woodfrog_testcluster::member::METRICS_OF_AGENT;
use woodfrog_testcluster::operator::METRICS_OF_OPERATOR;
use woodfrog_testnode::App;
use woodfrog_tests::examples::{self, PATIENCE};
use woodfrog_tests::helm::{CHART, Helm};
use woodfrog_tests::in_cluster;

/// The types of panels that Grafana has by itself, of those that are used.
const PANELS: [&str; 3] = ["row", "stat", "timeseries"];

fn dashboard() -> Result<Value> {
    let text = fs::read_to_string(format!("{CHART}/dashboards/woodfrog.json"))?;
    Ok(serde_json::from_str(&text)?)
}

fn list<'a>(value: &'a Value, key: &str) -> Result<&'a Vec<Value>> {
    value[key].as_array().with_context(|| format!("no list {key:?} in {value}"))
}

/// All queries, with the title of their panel.
fn queries(dashboard: &Value) -> Result<Vec<(String, String)>> {
    let mut queries = Vec::new();
    for panel in list(dashboard, "panels")?.iter().filter(|panel| panel["type"] != "row") {
        let title = panel["title"].as_str().context("a panel without a title")?;
        for target in list(panel, "targets")? {
            let query = target["expr"].as_str().with_context(|| format!("{title}: no query"))?;
            queries.push((title.to_owned(), query.to_owned()));
        }
    }
    Ok(queries)
}

/// The metrics that a query reads: all begin alike.
fn metrics(query: &str) -> Result<BTreeSet<&str>> {
    let words = query.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
    let found: BTreeSet<&str> = words.filter(|word| word.starts_with("woodfrog_")).collect();
    ensure!(!found.is_empty(), "{query} reads no metric");
    Ok(found)
}

#[test]
fn the_dashboard_is_one_that_grafana_understands() -> Result<()> {
    let dashboard = dashboard()?;
    // What Grafana's provisioning asks of a file, and what its schema (kinds/dashboard, version 39) asks of panels.
    ensure!(dashboard["id"].is_null() && dashboard["uid"].is_string() && dashboard["title"].is_string());
    ensure!(dashboard["schemaVersion"] == 39, "{}", dashboard["schemaVersion"]);
    let variables: BTreeSet<&str> = list(&dashboard["templating"], "list")?
        .iter()
        .filter_map(|variable| variable["name"].as_str())
        .collect();
    ensure!(variables == ["datasource", "node"].into(), "{variables:?}");
    let (mut ids, mut below) = (BTreeSet::new(), 0);
    for panel in list(&dashboard, "panels")? {
        let title = &panel["title"];
        ensure!(ids.insert(panel["id"].as_u64().context("no id")?), "{title}: its id is another's, too");
        ensure!(panel["type"].as_str().is_some_and(|kind| PANELS.contains(&kind)), "{title}: {panel}");
        let [x, y, width, height] =
            ["x", "y", "w", "h"].map(|key| panel["gridPos"][key].as_u64().unwrap_or(u64::MAX / 4));
        ensure!(x + width <= 24 && y >= below && height > 0, "{title}: {}", panel["gridPos"]);
        below = y;
        let sources = [panel].into_iter().chain(panel["targets"].as_array().into_iter().flatten());
        for source in sources.filter(|_| panel["type"] != "row") {
            let expected = json!({ "type": "prometheus", "uid": "${datasource}" });
            ensure!(source["datasource"] == expected, "{title}: {}", source["datasource"]);
        }
    }
    for (title, query) in queries(&dashboard)? {
        metrics(&query).with_context(|| title)?;
    }
    Ok(())
}

#[test]
fn helm_gives_the_dashboard_to_grafana_s_sidecar_as_it_is() -> Result<()> {
    let Some(helm) = Helm::look() else { return Ok(()) };
    let render = |enabled| {
        let values = json!({ "grafana": { "dashboard": { "enabled": enabled } } });
        let objects = helm.render("woodfrog-system", &values)?;
        Ok::<_, anyhow::Error>(objects.into_iter().find(|object| object["kind"] == "ConfigMap"))
    };
    ensure!(render(false)?.is_none(), "it is there though nobody asked for it");
    let map = render(true)?.context("no ConfigMap")?;
    ensure!(map["metadata"]["labels"]["grafana_dashboard"] == "1", "{}", map["metadata"]);
    let text = map["data"]["woodfrog.json"].as_str().context("no dashboard in it")?;
    ensure!(serde_json::from_str::<Value>(text)? == dashboard()?, "it is another one");
    Ok(())
}

/// What an endpoint exports: samples by their name with labels.
fn scrape(cluster: &Cluster<'_>, address: &str) -> Result<BTreeMap<String, f64>> {
    let url = format!("http://{address}/metrics");
    let text = cluster.node.run("curl", &["--silent", "--fail", "--max-time", "10", &url])?;
    ensure!(text.ends_with("# EOF\n"), "no whole exposition in the format of OpenMetrics:\n{text}");
    let samples = text.lines().filter(|line| !line.starts_with('#'));
    samples
        .map(|line| {
            let (name, value) = line.rsplit_once(' ').with_context(|| line.to_owned())?;
            Ok((name.to_owned(), value.parse().with_context(|| line.to_owned())?))
        })
        .collect()
}

/// A pod from the image that sleeps.
fn dormant(image: &str) -> String {
    format!(
        "
apiVersion: v1
kind: Pod
metadata:
  name: sleeper
  annotations:
    woodfrog.dev/standby: Dormant
    woodfrog.dev/idle-timeout: 1s
spec:
  securityContext:
    runAsNonRoot: true
    runAsUser: 1000
    runAsGroup: 1000
    seccompProfile:
      type: RuntimeDefault
  containers:
    - name: app
      image: {image}
      securityContext:
        allowPrivilegeEscalation: false
        readOnlyRootFilesystem: true
        capabilities:
          drop: [ALL]
      volumeMounts:
        - name: tmp
          mountPath: /tmp
  volumes:
    - name: tmp
      emptyDir: {{}}
"
    )
}

fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_ref());
    conditions.is_some_and(|all| all.iter().any(|one| one.type_ == "Ready" && one.status == "True"))
}

/// Scrapes the agent until a sample is at least so large.
async fn until(cluster: &Cluster<'_>, sample: &str, value: f64) -> Result<BTreeMap<String, f64>> {
    let deadline = std::time::Instant::now() + PATIENCE;
    loop {
        let samples = scrape(cluster, METRICS_OF_AGENT)?;
        if samples.get(sample).is_some_and(|found| *found >= value) {
            return Ok(samples);
        }
        ensure!(std::time::Instant::now() < deadline, "{sample} is not {value}: {samples:#?}");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

#[test]
fn e2e_every_metric_of_the_dashboard_is_exported() {
    in_cluster("e2e-metrics", &[App::Cpython], async |cluster| {
        let warm = format!("{REGISTRY}/shop/metrics:warm");
        examples::python(cluster, "shop/metrics").await?;
        cluster.apply(&dormant(&warm)).await?;
        let pod: Pod = cluster.until("sleeper", PATIENCE, is_ready).await?;

        let asleep = until(cluster, "woodfrog_agent_containers{state=\"dormant\"}", 1.0).await?;
        ensure!(asleep["woodfrog_agent_memory_saved_bytes"] > 1e8, "{asleep:#?}");
        let ip = pod.status.as_ref().and_then(|status| status.pod_ip.clone()).context("no address")?;
        // The kernel names a process after the file that it was started from.
        cluster.node.run("cp", &["/usr/bin/curl", "/run/kubelet"])?;
        let probe = ["--silent", "--fail", "--insecure", "--max-time", "10", &format!("https://{ip}:8080/")];
        cluster.node.run("/run/kubelet", &probe)?;
        cluster.get(&pod, "/count")?;
        let woken = "woodfrog_agent_wakes_total{reason=\"packet\",outcome=\"thawed\"}";
        let samples = until(cluster, woken, 1.0).await?;
        let is = |sample: &str, value: f64| {
            ensure!(samples.get(sample) == Some(&value), "{sample} is not {value}: {samples:#?}");
            Ok(())
        };
        is(woken, 1.0)?;
        is("woodfrog_agent_wake_duration_seconds_count{outcome=\"thawed\"}", 1.0)?;
        is("woodfrog_agent_thaws_total{occasion=\"wake\",outcome=\"ok\"}", 1.0)?;
        is("woodfrog_agent_thaw_phase_duration_seconds_count{occasion=\"wake\",phase=\"restore\"}", 1.0)?;
        is("woodfrog_agent_freezes_total{outcome=\"ok\"}", 1.0)?;
        is("woodfrog_agent_cold_starts_total{cause=\"no-checkpoint\"}", 1.0)?;
        is("woodfrog_agent_probes_answered_total{protocol=\"https\"}", 1.0)?;
        is("woodfrog_agent_queued_packets", 0.0)?;
        is("woodfrog_agent_packets_dropped_total", 0.0)?;
        ensure!(samples["woodfrog_agent_packets_held_total"] >= 1.0, "{samples:#?}");

        until(cluster, "woodfrog_agent_memory_complete_seconds_count", 1.0).await?;
        let asleep = until(cluster, "woodfrog_agent_containers{state=\"dormant\"}", 1.0).await?;
        ensure!(asleep["woodfrog_agent_standby_seconds_total{state=\"awake\"}"] >= 1.0, "{asleep:#?}");
        let mut exported: BTreeSet<String> = BTreeSet::new();
        for address in [METRICS_OF_AGENT, METRICS_OF_OPERATOR] {
            let names = scrape(cluster, address)?.into_keys();
            exported.extend(names.map(|name| name.split('{').next().unwrap_or_default().to_owned()));
        }
        for (title, query) in queries(&dashboard()?)? {
            for metric in metrics(&query)? {
                ensure!(exported.contains(metric), "{title}: nobody exports {metric}: {exported:#?}");
            }
        }
        Ok(())
    });
}
