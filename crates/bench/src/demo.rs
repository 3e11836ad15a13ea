//! `woodfrog-bench demo`: each application, warmed up and brought back in every way, in turn.

use std::process::ExitCode;

use anyhow::Result;
use woodfrog_testnode::App;

use crate::args::{DemoArgs, Mode};
use crate::contenders::Place;
use crate::modes;
use crate::progress::{Bar, Progress};
use crate::report::{self, Metric, Record};
use crate::workload::Workload;

/// The modes, and the column that has the time of each to the first answer.
const MODES: [(Mode, Metric); 5] = [
    (Mode::Cold, Metric::Cold),
    (Mode::Copied, Metric::Thaw),
    (Mode::Criu, Metric::Criu),
    (Mode::Runc, Metric::Runc),
    (Mode::Containerd, Metric::Containerd),
];

impl DemoArgs {
    /// The applications, as the node knows them.
    pub(crate) fn apps(&self) -> Vec<App> {
        self.applications.iter().map(|application| (*application).into()).collect()
    }
}

/// Measures all and prints the tables. Fails if Woodfrog itself did not work.
pub(crate) async fn run(place: Place, args: &DemoArgs) -> Result<ExitCode> {
    let apps = args.apps();
    let progress = Progress::new();
    let modes = MODES.map(|(mode, _)| mode);
    let bars: Vec<Bar> =
        apps.iter().map(|app| progress.bar(app.name(), modes::steps(&modes, args.runs))).collect();
    let mut records = Vec::new();
    let mut notes = Vec::new();
    for (app, bar) in apps.iter().zip(&bars) {
        let workload = Workload::from(*app);
        let mut record = Record::new(workload.name());
        for (mode, values) in modes::in_turn(&place, &workload, &modes, args.runs, bar, &mut notes).await {
            let column = |metric| if metric == Metric::Response { column(mode) } else { metric };
            record.add(values.into_iter().map(|(metric, value)| (column(metric), value)).collect());
        }
        records.push(record);
        bar.finish();
    }
    println!("{}\n\n{}", report::times(&records, Metric::DEMO), report::ratios(&records));
    println!(
        "\nMedians of {} runs each, in turn. `woodfrog-bench demo --help` explains the columns.",
        args.runs
    );
    if !place.dumps_other_users {
        println!("{}", report::RUNS_AS_ROOT);
    }
    for note in &notes {
        println!("{note}");
    }
    args.node.write(&records.iter().map(|record| record.json(Metric::DEMO)).collect())?;
    let thawed = records.iter().all(|record| record.median(Metric::Thaw).is_some());
    Ok(if thawed { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn column(mode: Mode) -> Metric {
    MODES.iter().find(|(other, _)| *other == mode).map_or(Metric::Response, |(_, metric)| *metric)
}
