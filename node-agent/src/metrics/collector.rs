//! What is read at each scrape: how things stand with the containers, the queues and the page store.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;

use super::queues::{self, Queue};
use crate::engine::Engine;
use crate::engine::container::Phasing;

/// Looks at the engine when somebody scrapes.
pub(super) struct Standing {
    engine: Weak<Engine>,
    dropped: Mutex<Dropped>,
}

/// Sums counters of queues that come and go.
#[derive(Debug, Default)]
struct Dropped {
    total: u64,
    /// By network namespace and number of the queue.
    last: HashMap<(PathBuf, u16), u64>,
}

/// What is found of the containers.
#[derive(Debug, Default)]
struct Found {
    states: BTreeMap<&'static str, u64>,
    /// Bytes.
    saved: u64,
    queues: Vec<((PathBuf, u16), Queue)>,
}

impl Standing {
    pub(super) fn of(engine: &Arc<Engine>) -> Self {
        Self { engine: Arc::downgrade(engine), dropped: Mutex::default() }
    }
}

impl fmt::Debug for Standing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Standing").finish_non_exhaustive()
    }
}

impl Collector for Standing {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let Some(engine) = self.engine.upgrade() else { return Ok(()) };
        let found = look(&engine);
        states(&mut encoder, &found.states)?;
        let mut gauge = |name, help, value| gauge(&mut encoder, name, help, value);
        gauge("memory_saved_bytes", "Memory of the images of containers that are dormant", found.saved)?;
        let held = found.queues.iter().map(|(_, queue)| queue.held).sum();
        gauge("queued_packets", "Packets that are held now", held)?;
        let quarantined = engine.quarantined_images() as u64;
        gauge(
            "quarantined_images",
            "Images that are started cold for a while, for their thaws failed",
            quarantined,
        )?;
        if let Some(budget) = engine.page_store_budget() {
            let images = engine.stored();
            let bytes = images.iter().map(|image| image.bytes).sum();
            let used = images.iter().filter(|image| image.used).count() as u64;
            gauge("page_store_bytes", "Memory of images in the page store", bytes)?;
            gauge("page_store_budget_bytes", "The most that may be there", budget)?;
            gauge("page_store_images", "Images in the page store", images.len() as u64)?;
            gauge("page_store_images_in_use", "Those that an application uses", used)?;
        }
        let dropped = self.dropped.lock().unwrap_or_else(PoisonError::into_inner).add(found.queues);
        let help = "Packets that were dropped because too many were held; their senders send them again";
        let counter = encoder.encode_descriptor("packets_dropped", help, None, MetricType::Counter)?;
        ConstCounter::new(dropped).encode(counter)
    }
}

fn states(encoder: &mut DescriptorEncoder<'_>, states: &BTreeMap<&'static str, u64>) -> fmt::Result {
    let help = "Managed containers by state";
    let mut family = encoder.encode_descriptor("containers", help, None, MetricType::Gauge)?;
    for (state, count) in states {
        ConstGauge::new(*count).encode(family.encode_family(&[("state", *state)])?)?;
    }
    Ok(())
}

fn gauge(encoder: &mut DescriptorEncoder<'_>, name: &str, help: &str, value: u64) -> fmt::Result {
    ConstGauge::new(value).encode(encoder.encode_descriptor(name, help, None, MetricType::Gauge)?)
}

fn look(engine: &Engine) -> Found {
    let states = Phasing::ALL.map(|phasing| (phasing.as_str(), 0));
    let mut found = Found { states: states.into(), ..Found::default() };
    let mut namespaces = HashSet::new();
    for container in engine.containers() {
        let life = container.life();
        *found.states.entry(life.phasing.as_str()).or_default() += 1;
        if life.phasing == Phasing::Dormant {
            found.saved += life.image_bytes;
        }
        let Some(time) = &container.standby_time else { continue };
        time.add(life.phasing);
        let Ok(namespace) = queues::namespace(life.init) else { continue };
        if namespaces.insert(namespace.clone()) {
            let queues = queues::of(life.init).into_iter();
            found.queues.extend(queues.map(|queue| ((namespace.clone(), queue.number), queue)));
        }
    }
    found
}

impl Dropped {
    /// All that were dropped so far. A count below the last one is of a queue that was opened anew.
    fn add(&mut self, queues: Vec<((PathBuf, u16), Queue)>) -> u64 {
        let now = HashMap::from_iter(queues.into_iter().map(|(key, queue)| (key, queue.dropped)));
        for (key, dropped) in &now {
            let last = self.last.get(key).copied().filter(|last| last <= dropped);
            self.total += dropped - last.unwrap_or(0);
        }
        self.last = now;
        self.total
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drops_of_queues_that_are_gone_stay_counted() {
        let queue =
            |number, dropped| ((PathBuf::from("net:[1]"), number), Queue { number, held: 0, dropped });
        let mut dropped = Dropped::default();
        assert_eq!(dropped.add(vec![queue(1, 3), queue(2, 1)]), 4);
        assert_eq!(dropped.add(vec![queue(1, 5)]), 6);
        assert_eq!(dropped.add(vec![queue(1, 2)]), 8, "it was opened anew");
        assert_eq!(dropped.add(vec![]), 8);
    }
}
