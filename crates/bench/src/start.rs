//! `woodfrog-bench start`: a 32 MB server's start beside `runc restore`, and which part of it is containerd's own.

use std::process::ExitCode;

use anyhow::{Context, Result};
use serde_json::json;
use woodfrog_testnode::App;

use crate::args::{Mode, StartArgs};
use crate::contenders::{
    Contender, Place,
    criu::{Criu, Memory},
    runc::Runc,
    waiting::Waiting,
    woodfrog::Woodfrog,
};
use crate::progress::Progress;
use crate::report::{self, Metric, Record};
use crate::workload::Workload;

const APP: App = App::Synthetic;

/// The images that the node must have.
pub(crate) const APPS: &[App] = &[APP];

/// Measures and prints.
pub(crate) async fn run(place: Place, args: &StartArgs) -> Result<ExitCode> {
    let workload = Workload::from(APP);
    let woodfrog =
        Woodfrog::prepare(place.clone(), workload.clone(), Mode::Copied).await.context("woodfrog")?;
    let waiting = Waiting::new(place.clone(), &workload, &workload.frozen_image(Mode::Copied.name()));
    let criu = Criu::prepare(place.clone(), workload.clone(), Memory::AtOnce).await.context("criu")?;
    let runc = Runc::prepare(place.clone(), workload.clone()).await.context("runc")?;
    let contenders: [(Metric, &str, Box<dyn Contender>); 4] = [
        (Metric::Thaw, "woodfrog", Box::new(woodfrog)),
        (Metric::Response, "containerd alone", Box::new(waiting)),
        (Metric::Criu, "criu", Box::new(criu)),
        (Metric::Runc, "runc", Box::new(runc)),
    ];
    let progress = Progress::new();
    let bar = progress.bar(APP.name(), contenders.len() as u64 * u64::from(args.runs));
    let mut record = Record::new(APP.name());
    for _ in 0..args.runs {
        for (response, name, contender) in &contenders {
            bar.step(name);
            let column = |metric| if metric == Metric::Response { *response } else { metric };
            let values = contender.once().await.context(*name)?;
            record.add(values.into_iter().map(|(metric, value)| (column(metric), value)).collect());
            bar.done(name);
        }
    }
    for (_, _, contender) in &contenders {
        contender.clean().await?;
    }
    bar.finish();

    let median = |metric| record.median(metric).unwrap_or(f64::NAN);
    let containerd = median(Metric::ContainerdCreate) + median(Metric::ContainerdStart);
    let (start, runc) = (median(Metric::Start), median(Metric::Runc));
    println!("{}", report::times(std::slice::from_ref(&record), Metric::START));
    println!(
        "\nOf the start's {start:.1} ms, containerd alone takes {containerd:.1} ms for a container that only waits: \
         {:.1} ms are Woodfrog's.\nrunc ÷ start: {:.2}; runc ÷ Woodfrog's part: {:.2}. Medians of {} runs each, in turn.",
        start - containerd,
        runc / start,
        runc / (start - containerd),
        args.runs
    );
    let mut results = record.json(Metric::START);
    results["runs"] = json!(args.runs);
    args.node.write(&results)?;
    Ok(ExitCode::SUCCESS)
}
