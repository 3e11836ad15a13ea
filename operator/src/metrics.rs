//! Metrics, in the Prometheus text format.

use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

/// Everything that is counted.
#[derive(Debug)]
pub struct Metrics {
    reconciles: Family<Reconciled, Counter>,
    reconciling: Family<Kind, Gauge>,
    durations: Family<Kind, Histogram>,
    attempts: Family<Attempted, Counter>,
    leader: Gauge,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Kind {
    kind: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Reconciled {
    kind: &'static str,
    outcome: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Attempted {
    outcome: String,
}

impl Metrics {
    /// Counters at zero, and the registry that shows them.
    pub fn new() -> (Self, Registry) {
        let mut registry = Registry::with_prefix("woodfrog_operator");
        let (reconciles, reconciling) = (Family::default(), Family::<Kind, Gauge>::default());
        let durations = Family::<Kind, Histogram>::new_with_constructor(|| {
            Histogram::new(exponential_buckets(0.001, 2.0, 14))
        });
        let (attempts, leader) = (Family::default(), Gauge::default());
        registry.register("reconciles", "Reconciliations by kind and outcome", reconciles.clone());
        registry.register("reconciling", "Reconciliations under way", reconciling.clone());
        registry.register("reconcile_duration_seconds", "How long one took", durations.clone());
        registry.register("checkpoint_attempts", "Attempts at Checkpoints by outcome", attempts.clone());
        registry.register("leader", "1 on the replica that leads", leader.clone());
        (Self { reconciles, reconciling, durations, attempts, leader }, registry)
    }

    pub(crate) fn reconciling(&self, kind: &'static str) {
        self.reconciling.get_or_create(&Kind { kind }).inc();
    }

    pub(crate) fn reconciled(&self, kind: &'static str, took: Duration, well: bool) {
        self.reconciling.get_or_create(&Kind { kind }).dec();
        let outcome = if well { "ok" } else { "error" };
        self.reconciles.get_or_create(&Reconciled { kind, outcome }).inc();
        self.durations.get_or_create(&Kind { kind }).observe(took.as_secs_f64());
    }

    /// `outcome`: `Succeeded`, or why an attempt failed.
    pub(crate) fn attempted(&self, outcome: &str) {
        self.attempts.get_or_create(&Attempted { outcome: outcome.to_owned() }).inc();
    }

    pub(crate) fn leads(&self, leads: bool) {
        self.leader.set(leads.into());
    }
}
