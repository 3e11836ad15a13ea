//! `woodfrog-bench demo`: each application, warmed up and brought back in every way, in turn.

use std::process::ExitCode;

use anyhow::Result;
use woodfrog_testnode::App;

use crate::args::DemoArgs;
use crate::contenders::{
    Contender, Place, Value, cold::Cold, containerd::Containerd, criu::Criu, runc::Runc, woodfrog::Woodfrog,
};
use crate::progress::{Bar, Progress};
use crate::report::{self, Metric, Record};

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
    let bars: Vec<Bar> = apps
        .iter()
        .map(|app| progress.bar(app.name(), WAYS.len() as u64 * u64::from(args.runs + 1)))
        .collect();
    let mut records = Vec::new();
    let mut notes = Vec::new();
    for (app, bar) in apps.iter().zip(&bars) {
        records.push(measure(&place, *app, args.runs, bar, &mut notes).await);
        bar.finish();
    }
    println!("{}\n\n{}", report::times(&records, Metric::DEMO), report::ratios(&records));
    println!(
        "\nMedians of {} runs each, in turn. `woodfrog-bench demo --help` explains the columns.",
        args.runs
    );
    if !place.dumps_other_users {
        println!(
            "Without CAP_SYS_RESOURCE CRIU cannot dump another user's processes: in the runc and containerd columns \
             the application ran as root, in all others as uid 1000."
        );
    }
    for note in &notes {
        println!("{note}");
    }
    args.node.write(&records.iter().map(|record| record.json(Metric::DEMO)).collect())?;
    let thawed = records.iter().all(|record| record.median(Metric::Thaw).is_some());
    Ok(if thawed { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

const WAYS: [Way; 5] = [Way::Cold, Way::Woodfrog, Way::Criu, Way::Runc, Way::Containerd];

#[derive(Clone, Copy, Debug)]
enum Way {
    Cold,
    Woodfrog,
    Criu,
    Runc,
    Containerd,
}

impl Way {
    const fn name(self) -> &'static str {
        match self {
            Self::Cold => "cold start",
            Self::Woodfrog => "woodfrog",
            Self::Criu => "criu",
            Self::Runc => "runc",
            Self::Containerd => "containerd",
        }
    }

    async fn prepare(self, place: Place, app: App) -> Result<Box<dyn Contender>> {
        Ok(match self {
            Self::Cold => Box::new(Cold::new(place, app)),
            Self::Woodfrog => Box::new(Woodfrog::prepare(place, app).await?),
            Self::Criu => Box::new(Criu::prepare(place, app).await?),
            Self::Runc => Box::new(Runc::prepare(place, app).await?),
            Self::Containerd => Box::new(Containerd::prepare(place, app).await?),
        })
    }
}

async fn measure(place: &Place, app: App, runs: u32, bar: &Bar, notes: &mut Vec<String>) -> Record {
    let mut record = Record::new(app.name());
    let (mut contenders, mut finished) = (Vec::new(), Vec::new());
    for way in WAYS {
        bar.step(&format!("{}: warm up, dump", way.name()));
        match way.prepare(place.clone(), app).await {
            Ok(contender) => {
                bar.done(&format!("{} is ready{}", way.name(), shown(&contender.preparation())));
                record.add(contender.preparation());
                contenders.push((way, contender));
            }
            Err(error) => {
                bar.skip(u64::from(runs) + 1);
                notes.push(note(app, way, &error));
            }
        }
    }
    for round in 1..=runs {
        let mut well = Vec::new();
        for (way, contender) in contenders {
            bar.step(&format!("{} {round}/{runs}", way.name()));
            match contender.once().await {
                Ok(values) => {
                    bar.done(&format!("{}{}", way.name(), shown(&values)));
                    record.add(values);
                    well.push((way, contender));
                }
                Err(error) => {
                    bar.skip(u64::from(runs - round) + 1);
                    notes.push(note(app, way, &error));
                    finished.push((way, contender));
                }
            }
        }
        contenders = well;
    }
    for (way, contender) in contenders.into_iter().chain(finished) {
        if let Err(error) = contender.clean().await {
            notes.push(note(app, way, &error.context("cannot clean up")));
        }
    }
    record
}

/// The reason why something could not run: the end of it, where programs say what was wrong.
fn note(app: App, way: Way, error: &anyhow::Error) -> String {
    const LINES: usize = 12;
    let text = format!("{error:#}");
    let lines: Vec<&str> = text.trim_end().lines().collect();
    let lines = &lines[lines.len().saturating_sub(LINES)..];
    format!("\n{}, {}: {}", app.name(), way.name(), lines.join("\n  "))
}

fn shown(values: &[Value]) -> String {
    values.iter().map(|(metric, value)| format!(" {metric:?} {value:.1}")).collect()
}
