//! `woodfrog-bench freeze`: how long an application stands still, and how fast its image is built, beside `criu dump` and zstd.

pub(crate) mod args;
mod results;

use std::path::Path;
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use woodfrog_testkubelet::Container;

use self::args::FreezeArgs;
use self::results::Sample;
use crate::client::FirstAnswer;
use crate::clock::{ms, now_us};
use crate::contenders::{PATIENCE, Place};
use crate::inside;
use crate::progress::Bar;
use crate::samples::{self, Samples};
use crate::workload::{State, Workload};

/// In the node, on a tmpfs: what plain CRIU and zstd write.
const DIRECTORY: &str = "/run/woodfrog-bench";

/// What `woodfrog freeze --output json` prints, as far as it is used here.
#[derive(Debug, Deserialize)]
struct Frozen {
    images: Vec<FrozenImage>,
    total_ms: f64,
}

#[derive(Debug, Deserialize)]
struct FrozenImage {
    memory_bytes: u64,
    compressed_bytes: u64,
    standstill_ms: f64,
    phases: Vec<Phase>,
}

#[derive(Debug, Deserialize)]
struct Phase {
    name: String,
    ms: f64,
}

/// Measures all and prints the tables.
pub(crate) async fn run(place: Place, args: &FreezeArgs) -> Result<ExitCode> {
    place.node.run("sh", &["-c", "[ -e /run/criu.kdat ] || criu check"])?;
    let measure = async |workload: &Workload, bar: &Bar| {
        let measured = measure(&place, workload, args.runs, bar).await;
        place.node.run("rm", &["-rf", DIRECTORY])?;
        measured
    };
    let all = samples::each(&args.workloads(), args.runs, measure).await?;
    println!("{}\n\n{}", results::table(&all), results::phases(&all));
    println!("Medians of {} rounds, in each of which one process is dumped and frozen.", args.runs);
    args.node.write(&results::json(&all))?;
    Ok(ExitCode::SUCCESS)
}

async fn measure(place: &Place, workload: &Workload, runs: u32, bar: &Bar) -> Result<Samples<Sample>> {
    let container = place.shim.run(place.pod(workload, "freeze").managed()).await?;
    FirstAnswer::from(&place.node, container.ip(), PATIENCE).at().await?;
    let state = workload.warm_up(&place.node, container.ip())?;
    let mut samples = Samples::new(workload.name());
    for _ in 0..runs {
        let sample = once(place, workload, &container).await?;
        bar.done(&sample.to_string());
        samples.add(sample);
    }
    check(place, &container, &state)?;
    container.remove().await?;
    Ok(samples)
}

/// After all dumps it must still be what it was.
fn check(place: &Place, container: &Container, state: &State) -> Result<()> {
    state.check(&place.node, container.ip())
}

async fn once(place: &Place, workload: &Workload, container: &Container) -> Result<Sample> {
    let init = container.pid().await?.to_string();
    place.node.run("sh", &["-c", "rm -rf \"$1\" && mkdir -p \"$1\"", "fresh", DIRECTORY])?;
    let report = place.inside(&["dump", "--init", &init, "--images", DIRECTORY, "--leave-running"])?;
    let dumped: inside::Dumped = serde_json::from_str(&report).with_context(|| report.clone())?;
    let (page_bytes, zstd_ms) = compress(&place.node.path(DIRECTORY))?;
    place.node.run("rm", &["-rf", DIRECTORY])?;

    let program = format!("{}/woodfrog", place.binaries);
    let image = workload.frozen_image("measured");
    let output =
        place.node.run(&program, &["freeze", &container.id, "--image", &image, "--output", "json"])?;
    let frozen: Frozen = serde_json::from_str(&output).with_context(|| output.clone())?;
    let image = frozen.images.into_iter().next().context("no image")?;
    let push = image.phases.iter().find(|phase| phase.name == "push").map_or(0.0, |phase| phase.ms);
    Ok(Sample {
        criu_ms: ms(dumped.started_us, dumped.done_us),
        held_ms: dumped.held_us as f64 / 1e3,
        zstd_ms,
        standstill_ms: image.standstill_ms,
        built_ms: frozen.total_ms - push,
        page_bytes,
        memory_bytes: image.memory_bytes,
        compressed_bytes: image.compressed_bytes,
        phases: image.phases.into_iter().map(|phase| (phase.name, phase.ms)).collect(),
    })
}

/// How many bytes of pages there are, and the milliseconds that zstd takes for them.
fn compress(directory: &Path) -> Result<(u64, f64)> {
    let mut pages = Vec::new();
    let mut bytes = 0;
    for entry in std::fs::read_dir(directory)? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with("pages-") {
            bytes += entry.metadata()?.len();
            pages.push(entry.path());
        }
    }
    let begin = now_us();
    let status = Command::new("zstd")
        .args(["-1", "-T0", "-q", "-f", "-o"])
        .arg(directory.join("pages.zst"))
        .args(&pages)
        .status()
        .context("cannot run zstd")?;
    ensure!(status.success(), "zstd: {status}");
    Ok((bytes, ms(begin, now_us())))
}
