//! `woodfrog-bench wake`: a client's SYN to a pod that sleeps until the first byte of the answer, and what such pods cost.

pub(crate) mod args;
mod density;
mod results;

use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use woodfrog_testkubelet::http::PORT;
use woodfrog_testkubelet::{Container, PodSpec};

use self::args::WakeArgs;
use self::results::Sample;
use crate::args::Mode;
use crate::client::first_byte;
use crate::contenders::cold::Cold;
use crate::contenders::proxy::Proxy;
use crate::contenders::woodfrog::{Woodfrog, woodfrog};
use crate::contenders::{Contender, PATIENCE, Place};
use crate::progress::Bar;
use crate::report::Metric;
use crate::samples::{self, Samples};
use crate::workload::Workload;

/// A container of `woodfrog ps --output json`, as far as it is used here.
#[derive(Debug, Deserialize)]
struct Managed {
    id: String,
    state: String,
    reason: String,
    thaw_ms: f64,
}

/// Measures all and prints the tables.
pub(crate) async fn run(place: Place, args: &WakeArgs) -> Result<ExitCode> {
    let workloads = args.workloads();
    let timed = if args.runs > 0 { &workloads[..] } else { &[] };
    let measure = async |workload: &Workload, bar: &Bar| measure(&place, workload, args.runs, bar).await;
    let all = samples::each(timed, args.runs, measure).await?;
    if !all.is_empty() {
        println!("{}", results::table(&all));
        println!("Medians of {} rounds, client's SYN to the first byte.", args.runs);
    }
    let density = match workloads.first() {
        Some(workload) if args.pods > 0 => Some(density::measure(&place, workload, args.pods).await?),
        _ => None,
    };
    if let Some(density) = &density {
        println!("{density}");
    }
    args.node.write(&results::json(&all, density.as_ref()))?;
    Ok(ExitCode::SUCCESS)
}

async fn measure(place: &Place, workload: &Workload, runs: u32, bar: &Bar) -> Result<Samples<Sample>> {
    let ours = Woodfrog::prepare(place.clone(), workload.clone(), Mode::Copied).await?;
    let proxy = Proxy::prepare(place.clone(), workload.clone()).await?;
    let cold = Cold::new(place.clone(), workload.clone());
    // The first thaw on a node records what an application wants first.
    ours.once().await?;
    let mut samples = Samples::new(workload.name());
    for _ in 0..runs {
        let (dormant_ms, awake_ms, thaw_ms) = dormant(place, workload, &ours).await?;
        let sample = Sample {
            dormant_ms,
            awake_ms,
            thaw_ms,
            frozen_ms: frozen(place, workload, &ours).await?,
            bare_ms: response(&ours).await?,
            proxy_ms: proxy.first_byte().await?,
            cold_ms: response(&cold).await?,
        };
        bar.done(&sample.to_string());
        samples.add(sample);
    }
    proxy.clean().await?;
    ours.clean().await?;
    Ok(samples)
}

/// Milliseconds to the response of another way.
async fn response(contender: &impl Contender) -> Result<f64> {
    let values = contender.once().await?;
    values.iter().find(|value| value.0 == Metric::Response).map(|value| value.1).context("no response")
}

/// First byte of a dormant pod, of the same one awake, and the thaw in between; milliseconds.
async fn dormant(place: &Place, workload: &Workload, ours: &Woodfrog) -> Result<(f64, f64, f64)> {
    let container = place.shim.run(standby(place, workload, ours, "Dormant", "dormant")).await?;
    let measured = async {
        expect(&managed(place, &container)?, "dormant")?;
        let address = SocketAddr::new(container.ip(), PORT);
        let (dormant, awake) = place
            .node
            .in_network(|| Ok::<_, anyhow::Error>((first_byte(address)?, first_byte(address)?)))??;
        let woken = managed(place, &container)?;
        expect(&woken, "thawed")?;
        ours.state.check(&place.node, container.ip())?;
        Ok((dormant, awake, woken.thaw_ms))
    };
    let measured = measured.await;
    container.remove().await?;
    measured
}

/// First byte of a frozen pod, in milliseconds.
async fn frozen(place: &Place, workload: &Workload, ours: &Woodfrog) -> Result<f64> {
    let container = place.shim.run(standby(place, workload, ours, "Frozen", "frozen")).await?;
    let measured = async {
        until(place, &container, "frozen").await?;
        let ms = place.node.in_network(|| first_byte(SocketAddr::new(container.ip(), PORT)))??;
        expect(&managed(place, &container)?, "thawed")?;
        ours.state.check(&place.node, container.ip())?;
        Ok(ms)
    };
    let measured = measured.await;
    container.remove().await?;
    measured
}

/// A pod of the image that stands by as `kind` says.
fn standby(place: &Place, workload: &Workload, ours: &Woodfrog, kind: &str, way: &str) -> PodSpec {
    let mut spec = PodSpec { image: ours.image.clone(), ..place.pod(workload, way) };
    spec.annotations.insert("woodfrog.dev/standby".into(), kind.into());
    spec
}

fn expect(managed: &Managed, state: &str) -> Result<()> {
    ensure!(managed.state == state, "it is {}, not {state}: {}", managed.state, managed.reason);
    Ok(())
}

async fn until(place: &Place, container: &Container, state: &str) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let expected = expect(&managed(place, container)?, state);
        if expected.is_ok() || Instant::now() > deadline {
            return expected;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn managed(place: &Place, container: &Container) -> Result<Managed> {
    let output = woodfrog(place, &["ps", "--output", "json"])?;
    let all: Vec<Managed> = serde_json::from_str(&output).with_context(|| output.clone())?;
    all.into_iter().find(|m| m.id == container.id).with_context(|| format!("{} is not listed", container.id))
}
