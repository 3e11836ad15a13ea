//! Metrics of the agent, for Prometheus.
//!
//! ```text
//!   engine, activator ──as things happen──► counters, histograms ([`Metrics`]) ─┐
//!   engine, kernel    ◄──read at each scrape── collector                        ├─► registry ─► GET /metrics
//! ```
//!
//! Labels are words of bounded sets. No label names a pod, so that the number of series does not grow with the pods of a node.

mod collector;
mod counted;
mod queues;
mod standby_time;

use std::sync::Arc;

use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;

pub use counted::{Metrics, Occasion};
pub(crate) use standby_time::StandbyTime;

use crate::engine::Engine;

/// A label set with these names; values are words of bounded sets.
type Labels<const N: usize> = [(&'static str, &'static str); N];

/// Shows what the engine counts, and how things stand with it.
pub fn registry(engine: &Arc<Engine>) -> Registry {
    let mut registry = Registry::with_prefix("woodfrog_agent");
    let version = Info::new([("version", env!("CARGO_PKG_VERSION"))]);
    registry.register("build", "Release of the agent", version);
    engine.metrics.register(&mut registry);
    registry.register_collector(Box::new(collector::Standing::of(engine)));
    registry
}
