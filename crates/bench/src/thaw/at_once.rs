//! `woodfrog-bench thaw --at-once N`: thaws of one image that all begin at the same moment, each in a pod of its own.
//!
//! The pods sleep, so that nothing but the thaws is left to be done when as many clients connect.

use std::net::SocketAddr;
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use serde_json::{Value as Json, json};
use woodfrog_testkubelet::Container;
use woodfrog_testkubelet::http::PORT;

use super::args::ThawArgs;
use crate::args::Mode;
use crate::client;
use crate::clock::{median, p95};
use crate::contenders::woodfrog::{Woodfrog, with_all_memory};
use crate::contenders::{Contender as _, Place};
use crate::footprint;
use crate::progress::Bar;
use crate::report;
use crate::samples::{self, Samples, rounded};
use crate::workload::Workload;

/// The p95 is to be at most so many times what each core has to do.
const LIMIT: f64 = 3.0;

/// A round.
#[derive(Clone, Debug)]
struct Round {
    copied: Crowd,
    shared: Crowd,
}

/// Thaws of one round.
#[derive(Clone, Debug)]
struct Crowd {
    /// Of those that went well.
    responses_ms: Vec<f64>,
    failures: u32,
    /// Of all containers.
    cpu_ms: f64,
    /// Of the agent and of programs that it ran meanwhile.
    agent_cpu_ms: f64,
}

/// Measures all and prints the table. Fails if a thaw did.
pub(super) async fn run(
    place: &Place,
    workloads: &[Workload],
    pods: u32,
    args: &ThawArgs,
) -> Result<ExitCode> {
    let measure = async |workload: &Workload, bar: &Bar| {
        let copied = Woodfrog::prepare(place.clone(), workload.clone(), Mode::Copied).await?;
        let shared = Woodfrog::prepare(place.clone(), workload.clone(), Mode::Shared).await?;
        copied.settle().await?;
        shared.settle().await?;
        let mut samples = Samples::new(workload.name());
        for _ in 0..args.runs {
            let copied = once(place, &copied, pods, bar).await.context("copied")?;
            let shared = once(place, &shared, pods, bar).await.context("shared")?;
            bar.done(&format!("copied p95 {:.0} ms, shared p95 {:.0} ms", copied.p95(), shared.p95()));
            samples.add(Round { copied, shared });
        }
        copied.clean().await?;
        shared.clean().await?;
        Ok(samples)
    };
    let all = samples::each(workloads, args.runs, measure).await?;
    let cores = std::thread::available_parallelism()?.get();
    println!("{}", table(&all, cores as f64));
    println!(
        "Medians of {} rounds of {pods} thaws at once on {cores} cores. ÷ share is to be at most {LIMIT}.",
        args.runs
    );
    args.node.write(&all.iter().flat_map(|samples| json(samples, pods, cores)).collect())?;
    let failed = all.iter().flat_map(|samples| &samples.rounds);
    let failed = failed.map(|round| round.copied.failures + round.shared.failures).sum::<u32>() > 0;
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

async fn once(place: &Place, ours: &Woodfrog, pods: u32, bar: &Bar) -> Result<Crowd> {
    let mut containers = Vec::new();
    for number in 0..pods {
        containers.push(place.shim.run(ours.standby("Dormant", &format!("crowd-{number}"))).await?);
    }
    let mut inits = Vec::new();
    for container in &containers {
        inits.push(container.pid().await?);
    }
    let before = footprint::of(place, &inits)?;
    let addresses: Vec<_> =
        containers.iter().map(|container| SocketAddr::new(container.ip(), PORT)).collect();
    let answers = client::together(&place.node, &addresses, |address| client::answer(*address))?;
    let mut crowd = Crowd { responses_ms: Vec::new(), failures: 0, cpu_ms: 0.0, agent_cpu_ms: 0.0 };
    let mut well = Vec::new();
    for (container, answer) in containers.iter().zip(answers) {
        match thawed(place, container, answer).await {
            Ok(ms) => well.push((container, ms)),
            Err(error) => crowd.fails(bar, container, &error),
        }
    }
    let after = footprint::of(place, &inits)?;
    crowd.cpu_ms = (after.cgroups_cpu_us - before.cgroups_cpu_us) as f64 / 1e3;
    // Programs that belong in a container are in its cgroup, and its children all the same.
    crowd.agent_cpu_ms = (after.agent_cpu_us - before.agent_cpu_us) as f64 / 1e3;
    for (container, ms) in well {
        match ours.state.check(&place.node, container.ip()) {
            Ok(()) => crowd.responses_ms.push(ms),
            Err(error) => crowd.fails(bar, container, &error),
        }
    }
    for container in &containers {
        container.remove().await?;
    }
    Ok(crowd)
}

/// The milliseconds of the answer, once all memory is there too.
async fn thawed(place: &Place, container: &Container, answer: Result<f64>) -> Result<f64> {
    let ms = answer?;
    with_all_memory(place, &container.id).await?;
    Ok(ms)
}

impl Crowd {
    fn fails(&mut self, bar: &Bar, container: &Container, error: &anyhow::Error) {
        self.failures += 1;
        bar.say(&format!("{}: {error:#}", container.pod_name()));
    }

    fn p50(&self) -> f64 {
        median(&self.responses_ms).unwrap_or(f64::NAN)
    }

    fn p95(&self) -> f64 {
        p95(&self.responses_ms).unwrap_or(f64::NAN)
    }

    /// The p95 ÷ what each core has to do.
    fn ratio(&self, cores: f64) -> f64 {
        self.p95() * cores / self.cpu_ms
    }
}

/// A round's part that has copied memory, or shared.
type Part = fn(&Round) -> &Crowd;
const PARTS: [(Mode, Part); 2] =
    [(Mode::Copied, |round| &round.copied), (Mode::Shared, |round| &round.shared)];

impl Samples<Round> {
    fn failures(&self, part: Part) -> u32 {
        self.rounds.iter().map(|round| part(round).failures).sum()
    }
}

fn table(all: &[Samples<Round>], cores: f64) -> comfy_table::Table {
    let mut table = report::table();
    table.set_header([
        "application",
        "memory",
        "p50",
        "p95",
        "CPU of all",
        "of the agent",
        "share of a core",
        "÷ share",
        "failed",
    ]);
    let ms = |ms: f64| format!("{ms:.0} ms");
    for (samples, (mode, part)) in all.iter().flat_map(|samples| PARTS.map(|part| (samples, part))) {
        let cpu = samples.median(|round| part(round).cpu_ms);
        table.add_row([
            samples.application.clone(),
            mode.name().to_owned(),
            ms(samples.median(|round| part(round).p50())),
            ms(samples.median(|round| part(round).p95())),
            ms(cpu),
            ms(samples.median(|round| part(round).agent_cpu_ms)),
            ms(cpu / cores),
            format!("{:.2}", samples.median(|round| part(round).ratio(cores))),
            samples.failures(part).to_string(),
        ]);
    }
    report::right(&mut table);
    table
}

fn json(samples: &Samples<Round>, pods: u32, cores: usize) -> Vec<Json> {
    let one = |(mode, part): (Mode, Part)| {
        let ratio = samples.median(|round| part(round).ratio(cores as f64));
        json!({
            "application": samples.application,
            "mode": mode.name(),
            "at_once": pods,
            "response_ms": rounded(samples.median(|round| part(round).p50())),
            "p95_ms": rounded(samples.median(|round| part(round).p95())),
            "cpu_ms": rounded(samples.median(|round| part(round).cpu_ms)),
            "agent_cpu_ms": rounded(samples.median(|round| part(round).agent_cpu_ms)),
            "cores": cores,
            "ratio": rounded(ratio),
            "limit": LIMIT,
            "failures": samples.failures(part),
        })
    };
    PARTS.map(one).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ratio_is_that_of_the_slowest_to_an_even_share_of_the_work() {
        let crowd =
            Crowd { responses_ms: vec![100.0, 300.0, 200.0], failures: 0, cpu_ms: 400.0, agent_cpu_ms: 50.0 };
        assert_eq!((crowd.p50(), crowd.ratio(2.0)), (200.0, 1.5));
        let mut samples = Samples::new("app");
        samples.add(Round { copied: crowd.clone(), shared: Crowd { failures: 1, ..crowd } });
        let json = json(&samples, 3, 2);
        assert_eq!((json[0]["ratio"].as_f64(), json[0]["failures"].as_u64()), (Some(1.5), Some(0)));
        assert_eq!((json[1]["mode"].as_str(), json[1]["failures"].as_u64()), (Some("shared"), Some(1)));
    }
}
