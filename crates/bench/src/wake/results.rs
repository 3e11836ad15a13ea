//! What was measured of wakes, as a table for people and as JSON for programs.

use std::fmt;

use comfy_table::Table;
use serde_json::{Value as Json, json};

use super::density::Density;
use crate::report;
use crate::samples::{Samples, rounded};

/// One round: milliseconds to the first byte, and of thaws.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Sample {
    pub(super) dormant_ms: f64,
    pub(super) awake_ms: f64,
    /// Within the dormant one.
    pub(super) thaw_ms: f64,
    pub(super) frozen_ms: f64,
    /// A thaw that nothing waits for but its client, to the whole answer.
    pub(super) bare_ms: f64,
    pub(super) proxy_ms: f64,
    pub(super) cold_ms: f64,
}

impl fmt::Display for Sample {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { dormant_ms, awake_ms, thaw_ms, frozen_ms, bare_ms, proxy_ms, cold_ms } = self;
        write!(
            f,
            "dormant {dormant_ms:.1} ms (thaw {thaw_ms:.1}), awake {awake_ms:.1}, frozen {frozen_ms:.1}, "
        )?;
        write!(f, "bare thaw {bare_ms:.1}, proxy {proxy_ms:.0}, cold {cold_ms:.0}")
    }
}

/// A value of a round.
type Value = fn(&Sample) -> f64;

impl Samples<Sample> {
    /// Dormant less a bare thaw.
    fn beyond_bare(&self) -> f64 {
        self.median(|s| s.dormant_ms) - self.median(|s| s.bare_ms)
    }
}

/// The medians of each application.
pub(super) fn table(all: &[Samples<Sample>]) -> Table {
    let mut table = report::table();
    table.set_header([
        "application",
        "dormant",
        "p95",
        "of it thaw",
        "bare thaw",
        "+ bare",
        "frozen",
        "awake",
        "proxy",
        "proxy ÷ dormant",
        "cold",
        "cold ÷ dormant",
    ]);
    let ms = |ms: f64| format!("{ms:.1} ms");
    for samples in all {
        let dormant = samples.median(|s| s.dormant_ms);
        table.add_row([
            samples.application.clone(),
            ms(dormant),
            ms(samples.p95(|s| s.dormant_ms)),
            ms(samples.median(|s| s.thaw_ms)),
            ms(samples.median(|s| s.bare_ms)),
            ms(samples.beyond_bare()),
            ms(samples.median(|s| s.frozen_ms)),
            ms(samples.median(|s| s.awake_ms)),
            ms(samples.median(|s| s.proxy_ms)),
            format!("{:.1}", samples.median(|s| s.proxy_ms) / dormant),
            ms(samples.median(|s| s.cold_ms)),
            format!("{:.0}", samples.median(|s| s.cold_ms) / dormant),
        ]);
    }
    report::right(&mut table);
    table
}

/// A list of objects of medians, one an application and mode, and an object with what pods that sleep cost.
pub(super) fn json(all: &[Samples<Sample>], density: Option<&Density>) -> Json {
    let modes: [(&str, Value, Option<Value>); 5] = [
        ("dormant", |s| s.dormant_ms, Some(|s| s.thaw_ms)),
        ("frozen", |s| s.frozen_ms, None),
        ("awake", |s| s.awake_ms, None),
        ("proxy", |s| s.proxy_ms, None),
        ("cold", |s| s.cold_ms, None),
    ];
    let rows = all.iter().flat_map(|samples| {
        modes.map(|(mode, of, thaw)| {
            json!({
                "application": samples.application,
                "mode": mode,
                "first_byte_ms": rounded(samples.median(of)),
                "p95_ms": rounded(samples.p95(of)),
                "thaw_ms": thaw.map(|thaw| rounded(samples.median(thaw))),
                "bare_thaw_ms": thaw.map(|_| rounded(samples.median(|s| s.bare_ms))),
            })
        })
    });
    rows.chain(density.map(|density| json!({ "density": density.json() }))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_mode_is_a_row_and_only_the_dormant_one_has_a_thaw() {
        let mut samples = Samples::new("app");
        for dormant_ms in [30.0, 10.0, 20.0] {
            samples.add(Sample {
                dormant_ms,
                awake_ms: 1.0,
                thaw_ms: 5.0,
                frozen_ms: 2.0,
                bare_ms: 6.0,
                proxy_ms: 100.0,
                cold_ms: 1000.0,
            });
        }
        let json = json(&[samples], None);
        assert_eq!(
            (json[0]["mode"].as_str(), json[0]["first_byte_ms"].as_f64()),
            (Some("dormant"), Some(20.0))
        );
        assert_eq!((json[0]["thaw_ms"].as_f64(), json[0]["bare_thaw_ms"].as_f64()), (Some(5.0), Some(6.0)));
        assert!(json[1]["thaw_ms"].is_null());
        assert_eq!(json[4]["first_byte_ms"], 1000.0);
    }
}
