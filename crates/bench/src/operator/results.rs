//! What was measured, whether it is good enough, as a table for people and as JSON for programs.

use std::collections::BTreeMap;
use std::time::Duration;

use comfy_table::Table;
use serde_json::{Value, json};

use super::changes::Latency;
use super::requests::Requests;
use crate::report;

const MAX_RESIDENT: u64 = 150_000_000;
const MAX_SETTLE: Duration = Duration::from_secs(600);
const MAX_RATIO: f64 = 2.0;

/// All that was measured.
#[derive(Debug)]
pub(super) struct Results {
    pub(super) checkpoints: u32,
    pub(super) pools: u32,
    pub(super) pods: u32,
    /// From the first apply until all is as it should be.
    pub(super) settle: Duration,
    /// The operator's processor time within that.
    pub(super) settle_processor: Duration,
    /// Attempts at Checkpoints that failed, though nothing was wrong, by why.
    pub(super) failed: BTreeMap<String, u64>,
    /// From the start of another operator until it has looked at everything.
    pub(super) takeover: Duration,
    /// Peak of either operator, in bytes.
    pub(super) peak: u64,
    /// After the time at rest, in bytes.
    pub(super) rest: u64,
    /// How long it was left alone.
    pub(super) idle: Duration,
    /// What was asked within that.
    pub(super) requests: Requests,
    /// The operator's processor time within that.
    pub(super) idle_processor: Duration,
    pub(super) empty: Latency,
    pub(super) full: Latency,
}

/// Something that must hold.
struct Limit {
    what: &'static str,
    is: String,
    at_most: String,
    holds: bool,
}

impl Results {
    fn requests_per_minute(&self) -> f64 {
        self.requests.total() as f64 * 60.0 / self.idle.as_secs_f64()
    }

    fn failures(&self) -> String {
        let each: Vec<_> = self.failed.iter().map(|(why, count)| format!("{count} {why}")).collect();
        if each.is_empty() { "0".to_owned() } else { each.join(", ") }
    }

    fn limits(&self) -> Vec<Limit> {
        let ratio = |what, full: f64, empty: f64| Limit {
            what,
            is: format!("{full:.1} ms, {:.2} × {empty:.1} ms", full / empty),
            at_most: format!("{MAX_RATIO:.0} × that of an empty cluster"),
            holds: full <= MAX_RATIO * empty,
        };
        vec![
            Limit {
                what: "settled after",
                is: seconds(self.settle),
                at_most: seconds(MAX_SETTLE),
                holds: self.settle <= MAX_SETTLE,
            },
            Limit {
                what: "failed attempts",
                is: self.failures(),
                at_most: "0".to_owned(),
                holds: self.failed.is_empty(),
            },
            Limit {
                what: "resident memory, peak",
                is: megabytes(self.peak),
                at_most: megabytes(MAX_RESIDENT),
                holds: self.peak < MAX_RESIDENT,
            },
            Limit {
                what: "requests at rest",
                is: format!("{:.1} a minute", self.requests_per_minute()),
                at_most: "watches and lease".to_owned(),
                holds: self.requests.needless().total() == 0,
            },
            ratio("a WarmPool is scaled → pod", self.full.pool, self.empty.pool),
            ratio("a Checkpoint is created → pod", self.full.checkpoint, self.empty.checkpoint),
        ]
    }

    /// Whether everything is as it must be.
    pub(super) fn hold(&self) -> bool {
        self.limits().iter().all(|limit| limit.holds)
    }

    /// For people.
    pub(super) fn table(&self) -> Table {
        let mut table = report::table();
        table.set_header(["", "measured", "at most", ""]);
        for Limit { what, is, at_most, holds } in self.limits() {
            let holds = if holds { "holds" } else { "does not hold" };
            table.add_row([what, &is, &at_most, holds]);
        }
        table.add_row(["resident memory, at rest", &megabytes(self.rest)]);
        table.add_row(["taken over by another operator after", &seconds(self.takeover)]);
        table.add_row(["processor time until settled", &seconds(self.settle_processor)]);
        let per_minute = self.idle_processor.as_secs_f64() * 6e4 / self.idle.as_secs_f64();
        table.add_row(["processor time at rest", &format!("{per_minute:.0} ms a minute")]);
        table
    }

    /// For programs.
    pub(super) fn json(&self) -> Value {
        let tenths = |value: f64| (value * 10.0).round() / 10.0;
        json!({
            "checkpoints": self.checkpoints,
            "pools": self.pools,
            "pods": self.pods,
            "settle_s": tenths(self.settle.as_secs_f64()),
            "settle_cpu_s": tenths(self.settle_processor.as_secs_f64()),
            "failed_attempts": self.failed.values().sum::<u64>(),
            "takeover_s": tenths(self.takeover.as_secs_f64()),
            "rss_bytes": self.peak,
            "rss_rest_bytes": self.rest,
            "idle_s": tenths(self.idle.as_secs_f64()),
            "idle_requests_per_min": tenths(self.requests_per_minute()),
            "idle_requests": self.requests.json(),
            "reconcile_ms": tenths(self.full.pool),
            "reconcile_empty_ms": tenths(self.empty.pool),
            "checkpoint_ms": tenths(self.full.checkpoint),
            "checkpoint_empty_ms": tenths(self.empty.checkpoint),
        })
    }
}

fn seconds(time: Duration) -> String {
    format!("{:.1} s", time.as_secs_f64())
}

fn megabytes(bytes: u64) -> String {
    format!("{:.1} MB", bytes as f64 / 1e6)
}
