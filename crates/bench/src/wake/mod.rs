//! `woodfrog-bench wake`: a client's SYN to a pod that sleeps until the first byte of the answer, and what such pods cost.

pub(crate) mod args;
mod density;
mod results;

use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use woodfrog_testkubelet::Container;
use woodfrog_testkubelet::http::PORT;

use self::args::WakeArgs;
use self::results::Sample;
use crate::args::Mode;
use crate::client::first_byte;
use crate::contenders::cold::Cold;
use crate::contenders::proxy::Proxy;
use crate::contenders::woodfrog::{Woodfrog, managed};
use crate::contenders::{Contender, PATIENCE, Place};
use crate::progress::Bar;
use crate::report::Metric;
use crate::samples::{self, Samples};
use crate::workload::Workload;

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
        let (dormant_ms, awake_ms, thaw_ms) = dormant(place, &ours).await?;
        let sample = Sample {
            dormant_ms,
            awake_ms,
            thaw_ms,
            frozen_ms: frozen(place, &ours).await.context("a frozen pod")?,
            bare_ms: response(&ours).await.context("a bare thaw")?,
            proxy_ms: proxy.first_byte().await.context("behind the proxy")?,
            cold_ms: response(&cold).await.context("a cold start")?,
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
async fn dormant(place: &Place, ours: &Woodfrog) -> Result<(f64, f64, f64)> {
    let container = place.shim.run(ours.standby("Dormant", "dormant")).await?;
    let measured = async {
        managed(place, &container.id)?.expect("dormant")?;
        let address = SocketAddr::new(container.ip(), PORT);
        let ask = || {
            let dormant = first_byte(address).context("the request that wakes it")?;
            Ok::<_, anyhow::Error>((dormant, first_byte(address).context("a request to it awake")?))
        };
        let (dormant, awake) = place.node.in_network(ask)??;
        let woken = managed(place, &container.id)?;
        woken.expect("thawed")?;
        ours.state.check(&place.node, container.ip())?;
        Ok((dormant, awake, woken.thaw_ms))
    };
    let measured = measured.await;
    container.remove().await?;
    measured
}

/// First byte of a frozen pod, in milliseconds.
async fn frozen(place: &Place, ours: &Woodfrog) -> Result<f64> {
    let container = place.shim.run(ours.standby("Frozen", "frozen")).await?;
    let measured = async {
        until(place, &container, "frozen").await?;
        let ms = place.node.in_network(|| first_byte(SocketAddr::new(container.ip(), PORT)))??;
        managed(place, &container.id)?.expect("thawed")?;
        ours.state.check(&place.node, container.ip())?;
        Ok(ms)
    };
    let measured = measured.await;
    container.remove().await?;
    measured
}

async fn until(place: &Place, container: &Container, state: &str) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let expected = managed(place, &container.id)?.expect(state);
        if expected.is_ok() || Instant::now() > deadline {
            return expected;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
