//! `woodfrog-bench thaw --replicas N`: what pods of one image take side by side that share its memory.

use std::process::ExitCode;

use anyhow::{Context as _, Result, ensure};
use serde::Deserialize;
use serde_json::{Value as Json, json};

use super::args::ThawArgs;
use crate::args::Mode;
use crate::client::FirstAnswer;
use crate::clock::median;
use crate::contenders::woodfrog::{Woodfrog, with_all_memory, woodfrog};
use crate::contenders::{Contender as _, PATIENCE, Place};
use crate::footprint;
use crate::progress::Bar;
use crate::report::{self, Metric};
use crate::samples::{self, Samples};
use crate::workload::Workload;

/// The most that is to be a replica's own after its first response, in hundredths of the image.
const LIMIT_PERCENT: f64 = 15.0;

/// What replicas of an image take.
#[derive(Clone, Debug)]
struct Replicas {
    /// Bytes of memory in the image.
    image: f64,
    /// Bytes that are each one's own, once it has answered and all memory is there.
    private: Vec<f64>,
    /// Bytes of the image in the page store.
    stored: u64,
    /// Bytes that the memory cgroups of all are charged with.
    charged: u64,
    /// By how many bytes the memory has become less that the machine has available.
    used: u64,
}

/// An image of `woodfrog ps --pages --output json`.
#[derive(Debug, Deserialize)]
struct StoredImage {
    bytes: u64,
    used: bool,
}

/// Measures all and prints the table. Fails if a replica does not answer.
pub(super) async fn run(
    place: &Place,
    workloads: &[Workload],
    replicas: u32,
    args: &ThawArgs,
) -> Result<ExitCode> {
    let measure = async |workload: &Workload, bar: &Bar| {
        let ours = Woodfrog::prepare(place.clone(), workload.clone(), Mode::Shared).await?;
        let mut samples = Samples::new(workload.name());
        samples.add(side_by_side(place, &ours, replicas, bar).await?);
        ours.clean().await?;
        Ok(samples)
    };
    let all = samples::each(workloads, replicas, measure).await?;
    println!("{}", table(&all));
    println!(
        "{replicas} replicas each, all of which answered at the end. \"own\" is to be at most {LIMIT_PERCENT} % of the image."
    );
    args.node
        .write(&all.iter().flat_map(|samples| samples.rounds.iter().map(|r| r.json(samples))).collect())?;
    Ok(ExitCode::SUCCESS)
}

async fn side_by_side(place: &Place, ours: &Woodfrog, replicas: u32, bar: &Bar) -> Result<Replicas> {
    let image = ours.preparation().into_iter().find(|(metric, _)| *metric == Metric::ImageBytes);
    let (_, image) = image.context("the size of the image is not known")?;
    let available = available()?;
    let (mut containers, mut inits, mut private) = (Vec::new(), Vec::new(), Vec::new());
    for number in 0..replicas {
        let container = place.shim.run(ours.pod(&format!("replica-{number}"))).await?;
        FirstAnswer::from(&place.node, container.ip(), PATIENCE).at().await?;
        with_all_memory(place, &container.id).await?;
        let init = container.pid().await?;
        let own = place.usage(init)?.into_iter().find(|(metric, _)| *metric == Metric::PrivateBytes);
        private.push(own.map_or(f64::NAN, |(_, bytes)| bytes));
        inits.push(init);
        containers.push(container);
        bar.advance();
    }
    let pages = woodfrog(place, &["ps", "--pages", "--output", "json"])?;
    let pages: Vec<StoredImage> = serde_json::from_str(&pages).with_context(|| pages.clone())?;
    let stored: u64 = pages.iter().filter(|image| image.used).map(|image| image.bytes).sum();
    ensure!(stored > 0, "nothing is shared: the agent's log says why");
    let charged = footprint::of(place, &inits)?.cgroup_bytes;
    let used = available.saturating_sub(self::available()?);
    for container in &containers {
        ours.state.check(&place.node, container.ip()).with_context(|| container.pod_name().to_owned())?;
    }
    for container in &containers {
        container.remove().await?;
    }
    Ok(Replicas { image, private, stored, charged, used })
}

/// `MemAvailable` of the machine.
fn available() -> Result<u64> {
    let text = std::fs::read_to_string("/proc/meminfo")?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:")).context("no MemAvailable")?;
    let kilobytes: u64 = line.split_whitespace().next().context("MemAvailable")?.parse()?;
    Ok(kilobytes << 10)
}

impl Replicas {
    fn own(&self) -> f64 {
        median(&self.private).unwrap_or(f64::NAN)
    }

    fn most(&self) -> f64 {
        self.private.iter().copied().fold(0.0, f64::max)
    }

    /// In hundredths of the image.
    fn percent(&self) -> f64 {
        100.0 * self.own() / self.image
    }

    fn in_all(&self) -> u64 {
        self.stored + self.charged
    }

    fn json(&self, samples: &Samples<Self>) -> Json {
        json!({
            "application": samples.application,
            "mode": Mode::Shared.name(),
            "replicas": self.private.len(),
            "image_bytes": self.image as u64,
            "private_bytes": self.own() as u64,
            "private_bytes_most": self.most() as u64,
            "private_percent": samples::rounded(self.percent()),
            "stored_bytes": self.stored,
            "charged_bytes": self.charged,
            "all_bytes": self.in_all(),
            "available_less_bytes": self.used,
        })
    }
}

fn table(all: &[Samples<Replicas>]) -> comfy_table::Table {
    let mut table = report::table();
    let titles = [
        "application",
        "image",
        "own",
        "most",
        "own ÷ image",
        "page store",
        "pods",
        "in all",
        "less available",
    ];
    table.set_header(titles);
    let mb = |bytes: f64| format!("{:.1} MB", bytes / 1e6);
    let gb = |bytes: u64| format!("{:.2} GB", bytes as f64 / 1e9);
    for (samples, replicas) in all.iter().flat_map(|s| s.rounds.iter().map(move |replicas| (s, replicas))) {
        table.add_row([
            samples.application.clone(),
            mb(replicas.image),
            mb(replicas.own()),
            mb(replicas.most()),
            format!("{:.1} %", replicas.percent()),
            gb(replicas.stored),
            gb(replicas.charged),
            gb(replicas.in_all()),
            gb(replicas.used),
        ]);
    }
    report::right(&mut table);
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_all_take_is_the_image_once_and_what_each_pod_is_charged_with() {
        let replicas = Replicas {
            image: 400e6,
            private: vec![10e6, 20e6, 90e6],
            stored: 390_000_000,
            charged: 150_000_000,
            used: 600_000_000,
        };
        let json = replicas.json(&Samples::new("app"));
        assert_eq!((json["private_percent"].as_f64(), json["replicas"].as_u64()), (Some(5.0), Some(3)));
        assert_eq!(json["all_bytes"], 540_000_000);
    }
}
