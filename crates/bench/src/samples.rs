//! Rounds of one application, and their medians: what is common to benchmarks that measure several things at once.

use anyhow::{Context as _, Result};

use crate::clock::{median, p95};
use crate::progress::{Bar, Progress};
use crate::workload::Workload;

/// All rounds of one application.
#[derive(Debug)]
pub(crate) struct Samples<S> {
    pub(crate) application: String,
    pub(crate) rounds: Vec<S>,
}

impl<S> Samples<S> {
    /// Of this application, nothing yet.
    pub(crate) fn new(application: &str) -> Self {
        Self { application: application.to_owned(), rounds: Vec::new() }
    }

    /// Adds a round.
    pub(crate) fn add(&mut self, sample: S) {
        self.rounds.push(sample);
    }

    /// Median of a value; NaN of no rounds.
    pub(crate) fn median(&self, of: impl Fn(&S) -> f64) -> f64 {
        median(&self.values(of)).unwrap_or(f64::NAN)
    }

    /// What 95 of 100 values do not exceed; NaN of no rounds.
    pub(crate) fn p95(&self, of: impl Fn(&S) -> f64) -> f64 {
        p95(&self.values(of)).unwrap_or(f64::NAN)
    }

    fn values(&self, of: impl Fn(&S) -> f64) -> Vec<f64> {
        self.rounds.iter().map(of).collect()
    }
}

/// A value as programs are told it, to a thousandth.
pub(crate) fn rounded(value: f64) -> f64 {
    (value * 1e3).round() / 1e3
}

/// Measures one workload after the other, each with a bar of so many rounds.
pub(crate) async fn each<S>(
    workloads: &[Workload],
    rounds: u32,
    measure: impl AsyncFn(&Workload, &Bar) -> Result<Samples<S>>,
) -> Result<Vec<Samples<S>>> {
    let progress = Progress::new();
    let bars: Vec<Bar> =
        workloads.iter().map(|workload| progress.bar(workload.name(), u64::from(rounds))).collect();
    let mut all = Vec::new();
    for (workload, bar) in workloads.iter().zip(&bars) {
        bar.say("warm up");
        all.push(measure(workload, bar).await.with_context(|| workload.name().to_owned())?);
        bar.finish();
    }
    Ok(all)
}
