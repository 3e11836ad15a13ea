//! How long a container that stands by has been awake, and how long it has slept.

use std::sync::atomic::AtomicU64;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;

use super::{Labels, Metrics};
use crate::engine::container::Phasing;

/// Adds a container's time to that of all, at each change of its state and at each scrape.
#[derive(Debug)]
pub(crate) struct StandbyTime {
    seconds: Family<Labels<1>, Counter<f64, AtomicU64>>,
    since: Mutex<Instant>,
}

impl StandbyTime {
    /// From now on.
    pub(crate) fn new(metrics: &Metrics) -> Self {
        Self { seconds: metrics.standby.clone(), since: Mutex::new(Instant::now()) }
    }

    /// It has been in this state since the last call.
    pub(crate) fn add(&self, phasing: Phasing) {
        let mut since = self.since.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        let passed = now - std::mem::replace(&mut *since, now);
        if let Some(state) = state(phasing) {
            self.seconds.get_or_create(&[("state", state)]).inc_by(passed.as_secs_f64());
        }
    }
}

fn state(phasing: Phasing) -> Option<&'static str> {
    match phasing {
        Phasing::Dormant => Some("dormant"),
        Phasing::Frozen => Some("frozen"),
        Phasing::Thawing | Phasing::Thawed | Phasing::Cold => Some("awake"),
        Phasing::Created | Phasing::Waiting | Phasing::Exited => None,
    }
}
