//! `woodfrog-bench thaw`: restored, first response, all memory there, in every mode, for applications and sizes.

pub(crate) mod args;
mod at_once;
mod replicas;

use std::process::ExitCode;

use anyhow::Result;
use serde_json::{Value as Json, json};

use self::args::ThawArgs;
use crate::args::Mode;
use crate::contenders::Place;
use crate::modes;
use crate::plots;
use crate::progress::{Bar, Progress};
use crate::report::{self, Metric, Record};
use crate::workload::Workload;

/// A workload, with a record for each mode.
#[derive(Debug)]
pub(crate) struct Measured {
    pub(crate) workload: Workload,
    pub(crate) records: Vec<(Mode, Record)>,
}

/// Measures all and prints the tables. Fails if Woodfrog itself did not work.
pub(crate) async fn run(place: Place, args: &ThawArgs) -> Result<ExitCode> {
    let workloads = args.workloads();
    if let Some(pods) = args.at_once {
        return at_once::run(&place, &workloads, pods, args).await;
    }
    if let Some(pods) = args.replicas {
        return replicas::run(&place, &workloads, pods, args).await;
    }
    let progress = Progress::new();
    let bars: Vec<Bar> = workloads
        .iter()
        .map(|workload| progress.bar(workload.name(), modes::steps(&args.modes, args.runs)))
        .collect();
    let mut notes = Vec::new();
    let mut all = Vec::new();
    for (workload, bar) in workloads.into_iter().zip(&bars) {
        let mut records: Vec<_> = args.modes.iter().map(|mode| (*mode, Record::new(mode.name()))).collect();
        for (mode, values) in modes::in_turn(&place, &workload, &args.modes, args.runs, bar, &mut notes).await
        {
            for (_, record) in records.iter_mut().filter(|(other, _)| *other == mode) {
                record.add(values.clone());
            }
        }
        bar.finish();
        let measured = Measured { workload, records };
        println!("{}\n", measured.table());
        all.push(measured);
    }
    println!("Medians of {} runs each, in turn; × is the response in a mode ÷ Woodfrog's.", args.runs);
    if !place.dumps_other_users {
        println!("{}", report::RUNS_AS_ROOT);
    }
    for note in &notes {
        println!("{note}");
    }
    if let Some(directory) = &args.plots {
        plots::draw(directory, &all)?;
    }
    args.node.write(&all.iter().flat_map(Measured::json).collect())?;
    let failed = |measured: &Measured| {
        args.modes.contains(&Mode::Copied) && measured.median(Mode::Copied, Metric::Response).is_none()
    };
    Ok(if !all.iter().any(failed) { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

impl Measured {
    /// The median of what was measured in a mode; none if it could not run.
    pub(crate) fn median(&self, mode: Mode, metric: Metric) -> Option<f64> {
        self.records.iter().find(|(other, _)| *other == mode).and_then(|(_, record)| record.median(metric))
    }

    fn table(&self) -> comfy_table::Table {
        let mut table = report::table();
        let titles = Metric::THAW.iter().map(|metric| metric.title());
        let name = self.workload.name();
        table.set_header([name].into_iter().chain(titles).chain(["p95", "×"]).collect::<Vec<_>>());
        let ours = self.median(Mode::Copied, Metric::Response);
        for (_, record) in &self.records {
            let response = record.median(Metric::Response);
            let ratio =
                response.zip(ours).map_or("–".to_owned(), |(theirs, ours)| format!("{:.2}", theirs / ours));
            let cells = Metric::THAW.iter().map(|metric| report::shown(*metric, record.median(*metric)));
            let p95 = report::shown(Metric::Response, record.p95(Metric::Response));
            table.add_row(
                [record.name().to_owned()].into_iter().chain(cells).chain([p95, ratio]).collect::<Vec<_>>(),
            );
        }
        report::right(&mut table);
        table
    }

    fn json(&self) -> Vec<Json> {
        let ms = |value: Option<f64>| json!(value.map(|ms| (ms * 1e3).round() / 1e3));
        let whole = |value: Option<f64>| json!(value.map(|number| number as u64));
        self.records
            .iter()
            .map(|(mode, record)| {
                let mut object = json!({
                    "application": self.workload.name(),
                    "mode": mode.name(),
                    "image_bytes": whole(self.median(Mode::Copied, Metric::ImageBytes)),
                    "threads": whole(self.median(Mode::Copied, Metric::Threads)),
                    "restored_ms": ms(record.median(Metric::Restored)),
                    "response_ms": ms(record.median(Metric::Response)),
                    "p95_ms": ms(record.p95(Metric::Response)),
                    "full_ms": ms(record.median(Metric::Full)),
                    "private_bytes": whole(record.median(Metric::PrivateBytes)),
                    "cpu_ms": ms(record.median(Metric::Cpu)),
                });
                if mode.is_ours() {
                    object["phases_ms"] = Metric::PHASES
                        .iter()
                        .chain(&Metric::CRIU)
                        .map(|phase| (phase.title().to_owned(), ms(record.median(*phase))))
                        .collect::<serde_json::Map<_, _>>()
                        .into();
                }
                object
            })
            .collect()
    }
}
