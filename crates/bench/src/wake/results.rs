//! What was measured of wakes, as a table for people and as JSON for programs.

use std::fmt;

use comfy_table::Table;
use serde_json::{Value as Json, json};

use crate::clock::{median, p95};
use crate::report;

/// One round: milliseconds to the first byte, and of the thaw.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Sample {
    pub(super) dormant_ms: f64,
    pub(super) awake_ms: f64,
    pub(super) thaw_ms: f64,
    pub(super) cold_ms: f64,
}

impl fmt::Display for Sample {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { dormant_ms, awake_ms, thaw_ms, cold_ms } = self;
        write!(f, "dormant {dormant_ms:.1} ms (thaw {thaw_ms:.1}), awake {awake_ms:.1}, cold {cold_ms:.0}")
    }
}

/// A value of a round.
type Value = fn(&Sample) -> f64;

/// All rounds of one application.
#[derive(Debug)]
pub(super) struct Samples {
    application: String,
    rounds: Vec<Sample>,
}

impl Samples {
    pub(super) fn new(application: &str) -> Self {
        Self { application: application.to_owned(), rounds: Vec::new() }
    }

    pub(super) fn add(&mut self, sample: Sample) {
        self.rounds.push(sample);
    }

    fn values(&self, of: Value) -> Vec<f64> {
        self.rounds.iter().map(of).collect()
    }

    fn median(&self, of: Value) -> f64 {
        median(&self.values(of)).unwrap_or(f64::NAN)
    }
}

/// The medians of each application.
pub(super) fn table(all: &[Samples]) -> Table {
    let mut table = report::table();
    table.set_header(["application", "dormant", "p95", "of it thaw", "awake", "cold", "cold ÷ dormant"]);
    let ms = |ms: f64| format!("{ms:.1} ms");
    for samples in all {
        let dormant = samples.median(|s| s.dormant_ms);
        table.add_row([
            samples.application.clone(),
            ms(dormant),
            ms(p95(&samples.values(|s| s.dormant_ms)).unwrap_or(f64::NAN)),
            ms(samples.median(|s| s.thaw_ms)),
            ms(samples.median(|s| s.awake_ms)),
            ms(samples.median(|s| s.cold_ms)),
            format!("{:.0}", samples.median(|s| s.cold_ms) / dormant),
        ]);
    }
    report::right(&mut table);
    table
}

/// A list of objects of medians, one an application and mode.
pub(super) fn json(all: &[Samples]) -> Json {
    let rounded = |value: f64| (value * 1e3).round() / 1e3;
    let modes: [(&str, Value); 3] =
        [("dormant", |s| s.dormant_ms), ("awake", |s| s.awake_ms), ("cold", |s| s.cold_ms)];
    let rows = all.iter().flat_map(|samples| {
        modes.map(|(mode, of)| {
            let thaw = (mode == "dormant").then(|| rounded(samples.median(|s| s.thaw_ms)));
            json!({
                "application": samples.application,
                "mode": mode,
                "first_byte_ms": rounded(samples.median(of)),
                "p95_ms": p95(&samples.values(of)).map(rounded),
                "thaw_ms": thaw,
            })
        })
    });
    rows.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_mode_is_a_row_and_only_the_dormant_one_has_a_thaw() {
        let mut samples = Samples::new("app");
        for dormant_ms in [30.0, 10.0, 20.0] {
            samples.add(Sample { dormant_ms, awake_ms: 1.0, thaw_ms: 5.0, cold_ms: 1000.0 });
        }
        let json = json(&[samples]);
        assert_eq!(
            (json[0]["mode"].as_str(), json[0]["first_byte_ms"].as_f64()),
            (Some("dormant"), Some(20.0))
        );
        assert_eq!(json[0]["thaw_ms"], 5.0);
        assert!(json[1]["thaw_ms"].is_null());
        assert_eq!(json[2]["first_byte_ms"], 1000.0);
    }
}
