//! What was measured of applications that were thawed a while ago, as a table for people and as JSON for programs.

use std::fmt;

use comfy_table::Table;
use serde_json::{Value as Json, json};

use crate::report;
use crate::samples::{Samples, rounded};

/// How much slower a process with copied memory may be, and with shared memory.
const COPIED: f64 = 1.03;
const SHARED: f64 = 1.15;

/// How one process has served requests.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Served {
    /// Of whole answers, asked for one after the other.
    pub(super) p50_ms: f64,
    pub(super) p99_ms: f64,
    /// Asked by several at once.
    pub(super) per_second: f64,
}

/// A round.
#[derive(Clone, Copy, Debug)]
pub(super) struct Round {
    pub(super) never: Served,
    pub(super) again: Served,
    pub(super) copied: Served,
    pub(super) shared: Served,
}

impl fmt::Display for Round {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let parts = ROWS.map(|(name, of, _)| format!("{name} {:.2} ms", of(self).p50_ms));
        f.write_str(&parts.join(", "))
    }
}

/// One of the processes of a round.
type Process = fn(&Round) -> &Served;
/// The processes, and how much slower than the first one they may be.
const ROWS: [(&str, Process, Option<f64>); 4] = [
    ("never", |round| &round.never, None),
    ("again", |round| &round.again, None),
    ("copied", |round| &round.copied, Some(COPIED)),
    ("shared", |round| &round.shared, Some(SHARED)),
];

/// What is measured of a process: a name, the value, and what grows as it becomes slower.
type Measure = (&'static str, fn(&Served) -> f64, fn(f64) -> f64);
const MEASURES: [Measure; 3] = [
    ("p50", |served| served.p50_ms, |ms| ms),
    ("p99", |served| served.p99_ms, |ms| ms),
    ("throughput", |served| served.per_second, |per_second| 1.0 / per_second),
];

impl Samples<Round> {
    fn value(&self, process: Process, (_, of, _): Measure) -> f64 {
        self.median(|round| of(process(round)))
    }

    /// How many times slower it is than the first that was never frozen.
    fn slower(&self, process: Process, measure: Measure) -> f64 {
        let (_, _, slow) = measure;
        slow(self.value(process, measure)) / slow(self.value(|round| &round.never, measure))
    }

    /// How many times slower it may be: as was said, or for copied memory as far as two that were never frozen lie apart.
    fn allowed(&self, limit: f64, measure: Measure) -> f64 {
        let apart = self.slower(|round| &round.again, measure);
        if limit == COPIED { limit.max(apart).max(1.0 / apart) } else { limit }
    }
}

/// The medians of each application.
pub(super) fn table(all: &[Samples<Round>]) -> Table {
    let mut table = report::table();
    table.set_header([
        "application",
        "process",
        "p50",
        "÷ never",
        "p99",
        "÷ never",
        "requests/s",
        "never ÷",
        "holds",
    ]);
    let (p50, p99, throughput) = (MEASURES[0], MEASURES[1], MEASURES[2]);
    for (samples, (name, process, limit)) in all.iter().flat_map(|samples| ROWS.map(|row| (samples, row))) {
        let ratio = |measure| format!("{:.3}", samples.slower(process, measure));
        table.add_row([
            samples.application.clone(),
            name.to_owned(),
            format!("{:.3} ms", samples.value(process, p50)),
            ratio(p50),
            format!("{:.3} ms", samples.value(process, p99)),
            ratio(p99),
            format!("{:.0}", samples.value(process, throughput)),
            ratio(throughput),
            limit.map_or(String::new(), |limit| samples.verdict(process, limit)),
        ]);
    }
    report::right(&mut table);
    table
}

impl Samples<Round> {
    /// Names what is slower than it may be.
    fn verdict(&self, process: Process, limit: f64) -> String {
        let too_slow = MEASURES.iter().filter(|m| self.slower(process, **m) > self.allowed(limit, **m));
        let names: Vec<_> = too_slow.map(|(name, ..)| *name).collect();
        if names.is_empty() { "yes".into() } else { format!("not {}", names.join(", ")) }
    }
}

/// An object of medians for each process.
pub(super) fn json(samples: &Samples<Round>) -> Vec<Json> {
    let row = |(name, process, limit): (&str, Process, Option<f64>)| {
        let mut object = json!({
            "application": samples.application,
            "mode": name,
            "p50_ms": rounded(samples.value(process, MEASURES[0])),
            "p99_ms": rounded(samples.value(process, MEASURES[1])),
            "requests_per_second": rounded(samples.value(process, MEASURES[2])),
        });
        for measure in MEASURES {
            object[format!("{}_slower", measure.0)] = json!(rounded(samples.slower(process, measure)));
            let allowed = limit.map(|limit| rounded(samples.allowed(limit, measure)));
            object[format!("{}_allowed", measure.0)] = json!(allowed);
        }
        object
    };
    ROWS.map(row).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn served(ms: f64) -> Served {
        Served { p50_ms: ms, p99_ms: 2.0 * ms, per_second: 1000.0 / ms }
    }

    #[test]
    fn copied_memory_may_be_as_far_off_as_two_that_were_never_frozen_lie_apart() {
        let mut samples = Samples::new("app");
        let round = |again, copied, shared| Round {
            never: served(1.0),
            again: served(again),
            copied: served(copied),
            shared: served(shared),
        };
        samples.add(round(0.9, 1.1, 1.14));
        let verdict = |samples: &Samples<Round>, row: usize| {
            let (_, process, limit) = ROWS[row];
            samples.verdict(process, limit.unwrap_or_default())
        };
        assert_eq!((verdict(&samples, 2), verdict(&samples, 3)), ("yes".into(), "yes".into()));
        let mut samples = Samples::new("app");
        samples.add(round(1.0, 1.1, 1.2));
        assert_eq!(verdict(&samples, 2), "not p50, p99, throughput");
        assert_eq!(verdict(&samples, 3), "not p50, p99, throughput");
        let json = json(&samples);
        assert_eq!(
            (json[2]["p50_slower"].as_f64(), json[2]["p50_allowed"].as_f64()),
            (Some(1.1), Some(1.03))
        );
        assert!(json[0]["p50_allowed"].is_null());
    }
}
