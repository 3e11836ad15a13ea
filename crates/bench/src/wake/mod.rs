//! `woodfrog-bench wake`: a client's SYN to a dormant pod until the first byte of the answer.

pub(crate) mod args;
mod results;

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use woodfrog_testkubelet::http::PORT;
use woodfrog_testkubelet::{Container, PodSpec};

use self::args::WakeArgs;
use self::results::{Sample, Samples};
use crate::clock::{ms, now_us};
use crate::contenders::cold::Cold;
use crate::contenders::woodfrog::{freeze, woodfrog};
use crate::contenders::{Contender as _, PATIENCE, Place};
use crate::progress::{Bar, Progress};
use crate::report::Metric;
use crate::workload::{State, Workload};

/// A container of `woodfrog ps --output json`, as far as it is used here.
#[derive(Debug, Deserialize)]
struct Managed {
    id: String,
    state: String,
    reason: String,
    thaw_ms: f64,
}

/// Measures all and prints the table.
pub(crate) async fn run(place: Place, args: &WakeArgs) -> Result<ExitCode> {
    let workloads = args.workloads();
    let progress = Progress::new();
    let bars: Vec<Bar> =
        workloads.iter().map(|workload| progress.bar(workload.name(), u64::from(args.runs))).collect();
    let mut all = Vec::new();
    for (workload, bar) in workloads.iter().zip(&bars) {
        bar.say("freeze");
        all.push(
            measure(&place, workload, args.runs, bar).await.with_context(|| workload.name().to_owned())?,
        );
        bar.finish();
    }
    println!("{}", results::table(&all));
    println!("Medians of {} rounds, client's SYN to the first byte.", args.runs);
    args.node.write(&results::json(&all))?;
    Ok(ExitCode::SUCCESS)
}

async fn measure(place: &Place, workload: &Workload, runs: u32, bar: &Bar) -> Result<Samples> {
    let image = workload.frozen_image("dormant");
    let container = place.shim.run(place.pod(workload, "freeze").managed()).await?;
    let frozen = freeze(place, &container, &image, "copied").await;
    container.remove().await?;
    let (state, _) = frozen?;
    place.shim.pull(&image).await?;
    let mut spec = PodSpec { image: image.clone(), ..place.pod(workload, "dormant") };
    spec.annotations.insert("woodfrog.dev/standby".into(), "Dormant".into());
    // The first thaw on a node records what an application wants first.
    once(place, &spec, &state).await?;
    let cold = Cold::new(place.clone(), workload.clone());
    let mut samples = Samples::new(workload.name());
    for _ in 0..runs {
        let (dormant_ms, awake_ms, thaw_ms) = once(place, &spec, &state).await?;
        let values = cold.once().await?;
        let cold_ms =
            values.iter().find(|value| value.0 == Metric::Response).map_or(f64::NAN, |value| value.1);
        let sample = Sample { dormant_ms, awake_ms, thaw_ms, cold_ms };
        bar.done(&sample.to_string());
        samples.add(sample);
    }
    place.shim.remove_image(&image).await?;
    Ok(samples)
}

/// First byte of a dormant pod, of the same one awake, and the thaw in between; milliseconds.
async fn once(place: &Place, spec: &PodSpec, state: &State) -> Result<(f64, f64, f64)> {
    let container = place.shim.run(spec.clone()).await?;
    let measured = async {
        let slept = managed(place, &container)?;
        ensure!(slept.state == "dormant", "it is {}, not dormant: {}", slept.state, slept.reason);
        let (dormant, awake) = place.node.in_network(|| {
            Ok::<_, anyhow::Error>((first_byte(container.ip())?, first_byte(container.ip())?))
        })??;
        let woken = managed(place, &container)?;
        ensure!(woken.state == "thawed", "it is {}, not thawed: {}", woken.state, woken.reason);
        state.check(&place.node, container.ip())?;
        Ok((dormant, awake, woken.thaw_ms))
    };
    let measured = measured.await;
    container.remove().await?;
    measured
}

fn managed(place: &Place, container: &Container) -> Result<Managed> {
    let output = woodfrog(place, &["ps", "--output", "json"])?;
    let all: Vec<Managed> = serde_json::from_str(&output).with_context(|| output.clone())?;
    all.into_iter().find(|m| m.id == container.id).with_context(|| format!("{} is not listed", container.id))
}

/// Milliseconds from the SYN to the first byte of the answer to `GET /`.
fn first_byte(ip: IpAddr) -> Result<f64> {
    let start = now_us();
    let mut stream = TcpStream::connect_timeout(&SocketAddr::new(ip, PORT), PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    write!(stream, "GET / HTTP/1.0\r\nHost: {ip}\r\nConnection: close\r\n\r\n")?;
    stream.read_exact(&mut [0])?;
    let ms = ms(start, now_us());
    stream.read_to_end(&mut Vec::new())?;
    Ok(ms)
}
