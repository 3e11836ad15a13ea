//! Several ways to bring an application up, in turn, so that all see the same machine.

use anyhow::Result;

use crate::args::Mode;
use crate::contenders::{
    Contender, Place, Value,
    cold::Cold,
    containerd::Containerd,
    criu::{Criu, Memory},
    runc::Runc,
    woodfrog::Woodfrog,
};
use crate::progress::Bar;
use crate::workload::Workload;

impl Mode {
    async fn prepare(self, place: Place, workload: Workload) -> Result<Box<dyn Contender>> {
        Ok(match self {
            Self::Cold => Box::new(Cold::new(place, workload)),
            Self::Copied | Self::Shared => Box::new(Woodfrog::prepare(place, workload, self).await?),
            Self::Criu => Box::new(Criu::prepare(place, workload, Memory::AtOnce).await?),
            Self::CriuLazy => Box::new(Criu::prepare(place, workload, Memory::OnDemand).await?),
            Self::Runc => Box::new(Runc::prepare(place, workload).await?),
            Self::Containerd => Box::new(Containerd::prepare(place, workload).await?),
        })
    }
}

/// How many steps [`in_turn`] tells a bar of.
pub(crate) fn steps(modes: &[Mode], runs: u32) -> u64 {
    modes.len() as u64 * u64::from(runs + 1)
}

/// Prepares all and runs each of them once in each round: what was measured, in no certain order. A mode that fails is not tried
/// again; why is added to the notes.
pub(crate) async fn in_turn(
    place: &Place,
    workload: &Workload,
    modes: &[Mode],
    runs: u32,
    bar: &Bar,
    notes: &mut Vec<String>,
) -> Vec<(Mode, Vec<Value>)> {
    let mut measured = Vec::new();
    let (mut contenders, mut finished) = (Vec::new(), Vec::new());
    for mode in modes.iter().copied() {
        bar.step(&format!("{}: warm up, dump", mode.name()));
        match mode.prepare(place.clone(), workload.clone()).await {
            Ok(contender) => {
                bar.done(&format!("{} is ready{}", mode.name(), shown(&contender.preparation())));
                measured.push((mode, contender.preparation()));
                contenders.push((mode, contender));
            }
            Err(error) => {
                bar.skip(u64::from(runs) + 1);
                notes.push(note(workload, mode, &error));
            }
        }
    }
    for round in 1..=runs {
        let mut well = Vec::new();
        for (mode, contender) in contenders {
            bar.step(&format!("{} {round}/{runs}", mode.name()));
            match contender.once().await {
                Ok(values) => {
                    bar.done(&format!("{}{}", mode.name(), shown(&values)));
                    measured.push((mode, values));
                    well.push((mode, contender));
                }
                Err(error) => {
                    bar.skip(u64::from(runs - round) + 1);
                    notes.push(note(workload, mode, &error));
                    finished.push((mode, contender));
                }
            }
        }
        contenders = well;
    }
    for (mode, contender) in contenders.into_iter().chain(finished) {
        if let Err(error) = contender.clean().await {
            notes.push(note(workload, mode, &error.context("cannot clean up")));
        }
    }
    measured
}

/// The reason why something could not run: the end of it, where programs say what was wrong.
fn note(workload: &Workload, mode: Mode, error: &anyhow::Error) -> String {
    const LINES: usize = 12;
    let text = format!("{error:#}");
    let lines: Vec<&str> = text.trim_end().lines().collect();
    let lines = &lines[lines.len().saturating_sub(LINES)..];
    format!("\n{}, {}: {}", workload.name(), mode.name(), lines.join("\n  "))
}

fn shown(values: &[Value]) -> String {
    values.iter().map(|(metric, value)| format!(" {metric:?} {value:.1}")).collect()
}
