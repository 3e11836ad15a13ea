//! What was measured of freezes, as tables for people and as JSON for programs.

use std::fmt;

use comfy_table::Table;
use serde_json::{Value as Json, json};

use crate::report;
use crate::samples::{Samples, rounded};

/// One round: times in milliseconds.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Sample {
    /// `criu dump` into a tmpfs.
    pub(super) criu_ms: f64,
    /// Of that, how long the application was held.
    pub(super) held_ms: f64,
    /// zstd of the page files.
    pub(super) zstd_ms: f64,
    /// How long a freeze held the application.
    pub(super) standstill_ms: f64,
    /// The freeze without the push.
    pub(super) built_ms: f64,
    /// Of the page files that `criu dump` wrote.
    pub(super) page_bytes: u64,
    /// Of those in the image.
    pub(super) memory_bytes: u64,
    /// Of all layers that the freeze added.
    pub(super) compressed_bytes: u64,
    /// The phases of the freeze, in order.
    pub(super) phases: Vec<(String, f64)>,
}

impl fmt::Display for Sample {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { criu_ms, held_ms, zstd_ms, standstill_ms, built_ms, .. } = self;
        write!(f, "criu {criu_ms:.0} ms, held {held_ms:.0} ms, zstd {zstd_ms:.0} ms; ")?;
        write!(f, "standstill {standstill_ms:.0} ms, built {built_ms:.0} ms")
    }
}

impl Samples<Sample> {
    /// Names of phases and their medians, in order.
    fn phases(&self) -> Vec<(String, f64)> {
        let names = self.rounds.first().map_or(&[][..], |first| &first.phases).iter().map(|phase| &phase.0);
        let value = |sample: &Sample, name: &str| {
            sample.phases.iter().find(|phase| phase.0 == name).map_or(0.0, |phase| phase.1)
        };
        names.map(|name| (name.clone(), self.median(|sample| value(sample, name)))).collect()
    }

    /// Standstill ÷ criu dump.
    fn standstill_ratio(&self) -> f64 {
        self.median(|s| s.standstill_ms) / self.median(|s| s.criu_ms)
    }

    /// The image's speed in hundredths of zstd's, on the same bytes.
    fn percent_of_zstd(&self) -> f64 {
        100.0 * self.median(|s| s.zstd_ms) / self.median(|s| s.built_ms)
    }
}

/// The medians of each application.
pub(super) fn table(all: &[Samples<Sample>]) -> Table {
    let mut table = report::table();
    table.set_header([
        "application",
        "pages",
        "in image",
        "compressed",
        "criu dump",
        "held",
        "standstill",
        "÷ criu",
        "zstd",
        "built",
        "of zstd",
    ]);
    let mb = |bytes: f64| format!("{:.1} MB", bytes / 1e6);
    let ms = |ms: f64| format!("{ms:.0} ms");
    for samples in all {
        table.add_row([
            samples.application.clone(),
            mb(samples.median(|s| s.page_bytes as f64)),
            mb(samples.median(|s| s.memory_bytes as f64)),
            mb(samples.median(|s| s.compressed_bytes as f64)),
            ms(samples.median(|s| s.criu_ms)),
            ms(samples.median(|s| s.held_ms)),
            ms(samples.median(|s| s.standstill_ms)),
            format!("{:.2}", samples.standstill_ratio()),
            ms(samples.median(|s| s.zstd_ms)),
            ms(samples.median(|s| s.built_ms)),
            format!("{:.0} %", samples.percent_of_zstd()),
        ]);
    }
    report::right(&mut table);
    table
}

/// The phases of the freezes.
pub(super) fn phases(all: &[Samples<Sample>]) -> Table {
    let mut table = report::table();
    let names =
        all.first().map(Samples::<Sample>::phases).unwrap_or_default().into_iter().map(|phase| phase.0);
    table.set_header(["phases".to_owned()].into_iter().chain(names).collect::<Vec<_>>());
    for samples in all {
        let cells = samples.phases().into_iter().map(|phase| format!("{:.1} ms", phase.1));
        table.add_row([samples.application.clone()].into_iter().chain(cells).collect::<Vec<_>>());
    }
    report::right(&mut table);
    table
}

/// A list of objects of medians.
pub(super) fn json(all: &[Samples<Sample>]) -> Json {
    all.iter()
        .map(|samples| {
            let ms = |of: fn(&Sample) -> f64| rounded(samples.median(of));
            let bytes = |of: fn(&Sample) -> u64| samples.median(|s| of(s) as f64) as u64;
            let phases = samples.phases().into_iter().map(|(name, ms)| (name, json!(rounded(ms))));
            json!({
                "application": samples.application,
                "runs": samples.rounds.len(),
                "page_bytes": bytes(|s| s.page_bytes),
                "memory_bytes": bytes(|s| s.memory_bytes),
                "compressed_bytes": bytes(|s| s.compressed_bytes),
                "criu_dump_ms": ms(|s| s.criu_ms),
                "criu_held_ms": ms(|s| s.held_ms),
                "standstill_ms": ms(|s| s.standstill_ms),
                "standstill_ratio": rounded(samples.standstill_ratio()),
                "zstd_ms": ms(|s| s.zstd_ms),
                "built_ms": ms(|s| s.built_ms),
                "percent_of_zstd": rounded(samples.percent_of_zstd()),
                "phases_ms": phases.collect::<serde_json::Map<_, _>>(),
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(standstill_ms: f64, built_ms: f64) -> Sample {
        Sample {
            criu_ms: 100.0,
            held_ms: 90.0,
            zstd_ms: 300.0,
            standstill_ms,
            built_ms,
            page_bytes: 4096,
            memory_bytes: 4096,
            compressed_bytes: 400,
            phases: vec![("dump".into(), standstill_ms)],
        }
    }

    #[test]
    fn ratios_are_those_of_medians() {
        let mut samples = Samples::new("cpython");
        for sample in [sample(120.0, 600.0), sample(900.0, 400.0), sample(110.0, 500.0)] {
            samples.add(sample);
        }
        let json = json(&[samples]);
        assert_eq!(json[0]["standstill_ratio"], 1.2);
        assert_eq!(json[0]["percent_of_zstd"], 60.0);
        assert_eq!(json[0]["phases_ms"]["dump"], 120.0);
    }
}
