//! `woodfrog-bench shim`: what the shim adds to a CRI call.
//!
//! Calls to containerd's own socket and to the shim's alternate, and so does which of them comes first.

use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, Result};
use k8s_cri::v1::{CreateContainerRequest, ListContainersRequest, VersionRequest};
use serde_json::json;
use woodfrog_testkubelet::Kubelet;
use woodfrog_testnode::App;

use crate::args::ShimArgs;
use crate::clock::median;
use crate::contenders::Place;
use crate::progress::Progress;
use crate::report;

const APP: App = App::Synthetic;
const CONTAINERS: usize = 50;
/// Calls that make containers are slow: so many on each socket.
const EDITED: usize = 20;

/// The images that the node must have.
pub(crate) const APPS: &[App] = &[APP];

/// A method, and how long its calls took: milliseconds.
struct Series {
    name: &'static str,
    edited: bool,
    direct: Vec<f64>,
    through: Vec<f64>,
}

impl Series {
    const fn new(name: &'static str, edited: bool) -> Self {
        Self { name, edited, direct: Vec::new(), through: Vec::new() }
    }
}

/// Measures and prints.
pub(crate) async fn run(place: Place, args: &ShimArgs) -> Result<ExitCode> {
    let progress = Progress::new();
    let passed = passed(&place, args.calls, &progress).await?;
    let edited = edited(&place, &progress).await?;

    let mut table = report::table();
    table.set_header(["method", "the shim", "calls", "direct", "through", "added", "added, 99th percentile"]);
    let mut results = Vec::new();
    for series in passed.iter().chain(&edited) {
        let (direct, through) = (at(&series.direct, 0.5), at(&series.through, 0.5));
        // Of few calls it would be the slowest one.
        let p99 = (!series.edited).then(|| at(&series.through, 0.99) - at(&series.direct, 0.99));
        let ms = |value: f64| format!("{value:.3} ms");
        let does = if series.edited { "edits it" } else { "passes it" };
        table.add_row([
            series.name.to_owned(),
            does.to_owned(),
            format!("2 × {}", series.direct.len()),
            ms(direct),
            ms(through),
            ms(through - direct),
            p99.map_or("–".to_owned(), ms),
        ]);
        results.push(json!({
            "method": series.name, "edited": series.edited, "calls": series.direct.len(),
            "direct_ms": direct, "through_ms": through, "added_ms": through - direct, "added_p99_ms": p99,
        }));
    }
    report::right(&mut table);
    println!(
        "{table}\n\nMedians; calls to the two sockets alternate. ListContainers returns {CONTAINERS} containers."
    );
    println!(
        "StartContainer of a managed container returns when its application runs, so more than the shim is in it."
    );
    args.node.write(&results.into())?;
    Ok(ExitCode::SUCCESS)
}

async fn passed(place: &Place, calls: u32, progress: &Progress) -> Result<[Series; 2]> {
    let spec = place.pod(&APP.into(), "many");
    let pod = place.direct.sandbox(spec.clone()).await?;
    for number in 0..CONTAINERS {
        let mut config = spec.container();
        config.metadata.get_or_insert_default().name = format!("app-{number}");
        let request = CreateContainerRequest {
            pod_sandbox_id: pod.sandbox.clone(),
            config: Some(config),
            sandbox_config: Some(spec.sandbox()),
        };
        place.direct.runtime.clone().create_container(request).await?;
    }
    let mut all = [Series::new("Version", false), Series::new("ListContainers", false)];
    let bar = progress.bar("passed", u64::from(calls));
    for call in 0..calls {
        for series in &mut all {
            let mut times = [0.0; 2];
            for turn in 0..2 {
                let which = (turn + call as usize) % 2;
                let kubelet = [&place.direct, &place.shim][which];
                let begin = Instant::now();
                call_once(kubelet, series.name).await?;
                times[which] = begin.elapsed().as_secs_f64() * 1e3;
            }
            series.direct.push(times[0]);
            series.through.push(times[1]);
        }
        bar.advance();
    }
    bar.finish();
    pod.remove().await?;
    Ok(all)
}

async fn call_once(kubelet: &Kubelet, method: &str) -> Result<()> {
    let mut runtime = kubelet.runtime.clone();
    if method == "Version" {
        runtime.version(VersionRequest::default()).await?;
    } else {
        let list = runtime.list_containers(ListContainersRequest::default()).await?.into_inner();
        anyhow::ensure!(list.containers.len() >= CONTAINERS, "only {} containers", list.containers.len());
    }
    Ok(())
}

async fn edited(place: &Place, progress: &Progress) -> Result<[Series; 2]> {
    let mut all = [Series::new("CreateContainer", true), Series::new("StartContainer", true)];
    let bar = progress.bar("edited", EDITED as u64);
    for _ in 0..EDITED {
        for kubelet in [&place.direct, &place.shim] {
            let pod = kubelet.sandbox(place.pod(&APP.into(), "edited").managed()).await?;
            let begin = Instant::now();
            let container = pod.create().await.context("CreateContainer")?;
            let created = begin.elapsed();
            container.start().await.context("StartContainer")?;
            let started = begin.elapsed();
            container.remove().await?;
            for (series, time) in all.iter_mut().zip([created, started - created]) {
                let times =
                    if std::ptr::eq(kubelet, &place.shim) { &mut series.through } else { &mut series.direct };
                times.push(time.as_secs_f64() * 1e3);
            }
        }
        bar.advance();
    }
    bar.finish();
    Ok(all)
}

/// The value below which this part of all values lies.
fn at(values: &[f64], part: f64) -> f64 {
    if part == 0.5 {
        return median(values).unwrap_or(f64::NAN);
    }
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let index = (sorted.len().saturating_sub(1) as f64 * part).round() as usize;
    sorted.get(index).copied().unwrap_or(f64::NAN)
}
