//! `woodfrog-bench pager`: what it takes to bring memory to a thawed application, beside read() of the same bytes.

pub(crate) mod args;

use std::process::ExitCode;

use anyhow::{Context as _, Result};
use serde_json::{Value as Json, json};

use self::args::PagerArgs;
use crate::args::Mode;
use crate::clock::ms;
use crate::contenders::woodfrog::{Woodfrog, with_all_memory};
use crate::contenders::{Contender as _, Place};
use crate::inside;
use crate::progress::Bar;
use crate::report;
use crate::samples::{self, Samples, rounded};
use crate::workload::Workload;

/// The pager is to take at most so many times the CPU time of read().
const LIMIT: f64 = 1.5;
/// What is to be there within a second.
const FILL: f64 = 400e6;

/// A round.
#[derive(Clone, Copy, Debug)]
struct Sample {
    /// That the pager brought.
    brought_bytes: f64,
    pager_cpu_ms: f64,
    /// From when the threads ran until all was there.
    fill_ms: f64,
    /// In the page files.
    read_bytes: f64,
    read_cpu_ms: f64,
    read_ms: f64,
}

impl Sample {
    /// CPU time for a byte: the pager's ÷ that of read().
    fn ratio(&self) -> f64 {
        (self.pager_cpu_ms / self.brought_bytes) / (self.read_cpu_ms / self.read_bytes)
    }

    fn megabytes_per_second(&self) -> f64 {
        self.brought_bytes / 1e3 / self.fill_ms
    }

    /// Milliseconds for [`FILL`].
    fn fill_of_limit_ms(&self) -> f64 {
        self.fill_ms * FILL / self.brought_bytes
    }
}

/// Measures all and prints the table.
pub(crate) async fn run(place: Place, args: &PagerArgs) -> Result<ExitCode> {
    let measure = async |workload: &Workload, bar: &Bar| {
        let ours = Woodfrog::prepare(place.clone(), workload.clone(), Mode::Copied).await?;
        // A thaw that finds out what is wanted first lets the application ask for a while before it fills in the rest.
        ours.settle().await?;
        let mut samples = Samples::new(workload.name());
        for _ in 0..args.runs {
            let sample = once(&place, &ours).await?;
            bar.done(&format!("{:.2} × read(), {:.0} MB/s", sample.ratio(), sample.megabytes_per_second()));
            samples.add(sample);
        }
        ours.clean().await?;
        Ok(samples)
    };
    let all = samples::each(&args.workloads(), args.runs, measure).await?;
    println!("{}", table(&all));
    println!(
        "Medians of {} rounds. ÷ read() is to be at most {LIMIT}, and {:.0} MB are to be there within a second.",
        args.runs,
        FILL / 1e6
    );
    args.node.write(&all.iter().map(json).collect())?;
    Ok(ExitCode::SUCCESS)
}

async fn once(place: &Place, ours: &Woodfrog) -> Result<Sample> {
    let container = place.shim.run(ours.pod("pager")).await?;
    let measured = async {
        let (managed, memory) = with_all_memory(place, &container.id).await?;
        let report = place.inside(&["read", "--init", &container.pid().await?.to_string()])?;
        let read: inside::Read = serde_json::from_str(&report).with_context(|| report.clone())?;
        ours.state.check(&place.node, container.ip())?;
        Ok(Sample {
            brought_bytes: memory.brought_bytes as f64,
            pager_cpu_ms: memory.cpu_us as f64 / 1e3,
            fill_ms: ms(managed.thaw_done_us, memory.complete_us),
            read_bytes: read.bytes as f64,
            read_cpu_ms: read.cpu_us as f64 / 1e3,
            read_ms: read.took_us as f64 / 1e3,
        })
    };
    let measured = measured.await;
    container.remove().await?;
    measured
}

fn table(all: &[Samples<Sample>]) -> comfy_table::Table {
    let mut table = report::table();
    table.set_header([
        "application",
        "memory",
        "pager",
        "read()",
        "÷ read()",
        "all there",
        "speed",
        "400 MB in",
    ]);
    let ms = |ms: f64| format!("{ms:.0} ms");
    for samples in all {
        table.add_row([
            samples.application.clone(),
            format!("{:.0} MB", samples.median(|s| s.brought_bytes) / 1e6),
            ms(samples.median(|s| s.pager_cpu_ms)),
            ms(samples.median(|s| s.read_cpu_ms)),
            format!("{:.2}", samples.median(Sample::ratio)),
            ms(samples.median(|s| s.fill_ms)),
            format!("{:.0} MB/s", samples.median(Sample::megabytes_per_second)),
            ms(samples.median(Sample::fill_of_limit_ms)),
        ]);
    }
    report::right(&mut table);
    table
}

fn json(samples: &Samples<Sample>) -> Json {
    json!({
        "application": samples.application,
        "brought_bytes": samples.median(|s| s.brought_bytes) as u64,
        "pager_cpu_ms": rounded(samples.median(|s| s.pager_cpu_ms)),
        "read_bytes": samples.median(|s| s.read_bytes) as u64,
        "read_cpu_ms": rounded(samples.median(|s| s.read_cpu_ms)),
        "read_ms": rounded(samples.median(|s| s.read_ms)),
        "ratio": rounded(samples.median(Sample::ratio)),
        "limit": LIMIT,
        "fill_ms": rounded(samples.median(|s| s.fill_ms)),
        "megabytes_per_second": rounded(samples.median(Sample::megabytes_per_second)),
        "fill_400_mb_ms": rounded(samples.median(Sample::fill_of_limit_ms)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_that_the_pager_did_not_bring_do_not_count_for_it() {
        let sample = Sample {
            brought_bytes: 200e6,
            pager_cpu_ms: 100.0,
            fill_ms: 125.0,
            read_bytes: 400e6,
            read_cpu_ms: 160.0,
            read_ms: 170.0,
        };
        assert!((sample.ratio() - 1.25).abs() < 1e-9);
        assert!((sample.megabytes_per_second() - 1600.0).abs() < 1e-9);
        assert!((sample.fill_of_limit_ms() - 250.0).abs() < 1e-9);
    }
}
