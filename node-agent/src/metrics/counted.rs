//! What is counted as it happens.

use std::sync::atomic::AtomicU64;
use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;
use woodfrog_protocol::agent::{Frozen, Phase};
use woodfrog_protocol::pager::Report;

use super::Labels;
use crate::engine::error::FreezeError;
use crate::engine::thaw::ThawError;
use crate::engine::wake::Wake;

/// What came about.
const OK: &str = "ok";

/// Counters and histograms of one agent; clones count into the same.
#[derive(Clone, Debug)]
pub struct Metrics {
    thaws: Family<Labels<2>, Counter>,
    thaw_durations: Family<Labels<1>, Histogram>,
    thaw_phases: Family<PhaseOfThaw, Histogram>,
    wakes: Family<Labels<2>, Counter>,
    wake_durations: Family<Labels<1>, Histogram>,
    saves: Family<Labels<1>, Counter>,
    cold_starts: Family<Labels<1>, Counter>,
    freezes: Family<Labels<1>, Counter>,
    freeze_durations: Histogram,
    freeze_phases: Family<PhaseOfFreeze, Histogram>,
    standstills: Histogram,
    frozen_bytes: Counter,
    pushed_bytes: Counter,
    memory_bytes: Family<Labels<1>, Counter>,
    memory_faults: Counter,
    memory_complete: Histogram,
    pager_cpu: Counter<f64, AtomicU64>,
    probes: Family<Labels<1>, Counter>,
    held: Counter,
    evictions: Counter,
    pub(super) standby: Family<Labels<1>, Counter<f64, AtomicU64>>,
}

/// What a container is thawed for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Occasion {
    /// It starts.
    Start,
    /// It slept.
    Wake,
    /// Its freeze finds out what it wants first.
    Rehearsal,
}

impl Occasion {
    fn as_str(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::Wake => "wake",
            Self::Rehearsal => "rehearsal",
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PhaseOfThaw {
    occasion: &'static str,
    phase: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PhaseOfFreeze {
    phase: String,
}

impl Default for Metrics {
    fn default() -> Self {
        Self {
            thaws: Family::default(),
            thaw_durations: Family::new_with_constructor(moments),
            thaw_phases: Family::new_with_constructor(moments),
            wakes: Family::default(),
            wake_durations: Family::new_with_constructor(moments),
            saves: Family::default(),
            cold_starts: Family::default(),
            freezes: Family::default(),
            freeze_durations: minutes(),
            freeze_phases: Family::new_with_constructor(minutes),
            standstills: minutes(),
            frozen_bytes: Counter::default(),
            pushed_bytes: Counter::default(),
            memory_bytes: Family::default(),
            memory_faults: Counter::default(),
            memory_complete: moments(),
            pager_cpu: Counter::default(),
            probes: Family::default(),
            held: Counter::default(),
            evictions: Counter::default(),
            standby: Family::default(),
        }
    }
}

/// From half a millisecond to 26 seconds, fine enough for percentiles of tens of milliseconds.
fn moments() -> Histogram {
    Histogram::new(exponential_buckets(0.0005, 1.6, 24))
}

/// From 10 milliseconds to 5 minutes.
fn minutes() -> Histogram {
    Histogram::new(exponential_buckets(0.01, 2.0, 16))
}

impl Metrics {
    pub(super) fn register(&self, registry: &mut Registry) {
        registry.register("thaws", "Thaws by occasion and outcome", self.thaws.clone());
        registry.register(
            "thaw_duration_seconds",
            "How long thaws took that came about, without hooks",
            self.thaw_durations.clone(),
        );
        registry.register(
            "thaw_phase_duration_seconds",
            "How long each of their phases took, and then the hooks",
            self.thaw_phases.clone(),
        );
        registry.register("wakes", "Wakes by reason and outcome", self.wakes.clone());
        registry.register(
            "wake_duration_seconds",
            "How long wakes took, from their reason to the release of held packets, with hooks",
            self.wake_durations.clone(),
        );
        registry.register(
            "saves",
            "States that were saved of applications that fell asleep, by outcome",
            self.saves.clone(),
        );
        registry.register(
            "cold_starts",
            "Managed containers whose command was started, by cause",
            self.cold_starts.clone(),
        );
        registry.register("freezes", "Freezes by outcome", self.freezes.clone());
        registry.register(
            "freeze_duration_seconds",
            "How long freezes took that came about, from the request to the last push",
            self.freeze_durations.clone(),
        );
        registry.register(
            "freeze_phase_duration_seconds",
            "How long each of their phases took, by container",
            self.freeze_phases.clone(),
        );
        registry.register(
            "freeze_standstill_seconds",
            "How long applications stood still for a freeze",
            self.standstills.clone(),
        );
        registry.register("freeze_memory_bytes", "Memory that was frozen", self.frozen_bytes.clone());
        registry.register(
            "freeze_image_bytes",
            "Compressed layers that freezes have made",
            self.pushed_bytes.clone(),
        );
        registry.register(
            "memory_bytes",
            "Memory that pagers brought after thaws, copied for one application or mapped for all",
            self.memory_bytes.clone(),
        );
        registry.register("memory_faults", "Faults that pagers answered", self.memory_faults.clone());
        registry.register(
            "memory_complete_seconds",
            "How long after it ran an application had all its memory",
            self.memory_complete.clone(),
        );
        registry.register("pager_cpu_seconds", "CPU time of pagers until then", self.pager_cpu.clone());
        registry.register(
            "probes_answered",
            "Probes that were answered for containers that slept, by protocol",
            self.probes.clone(),
        );
        registry.register("packets_held", "First packets that were held", self.held.clone());
        registry.register(
            "page_store_evictions",
            "Images that left the page store for others",
            self.evictions.clone(),
        );
        registry.register(
            "standby_seconds",
            "Time that containers which stand by have been in each state",
            self.standby.clone(),
        );
    }

    /// A thaw came about, with these phases.
    pub(crate) fn thawed(&self, occasion: Occasion, took: Duration, phases: &[Phase]) {
        let of_occasion = ("occasion", occasion.as_str());
        self.thaws.get_or_create(&[of_occasion, ("outcome", OK)]).inc();
        self.thaw_durations.get_or_create(&[of_occasion]).observe(took.as_secs_f64());
        for phase in phases {
            self.thaw_phase(occasion, &phase.name, phase.ms / 1e3);
        }
    }

    /// Its hooks took so long.
    pub(crate) fn hooks_ran(&self, occasion: Occasion, took: Duration) {
        self.thaw_phase(occasion, "hooks", took.as_secs_f64());
    }

    fn thaw_phase(&self, occasion: Occasion, phase: &str, seconds: f64) {
        let labels = PhaseOfThaw { occasion: occasion.as_str(), phase: phase.into() };
        self.thaw_phases.get_or_create(&labels).observe(seconds);
    }

    /// A thaw failed.
    pub(crate) fn not_thawed(&self, occasion: Occasion, why: &ThawError) {
        let labels = [("occasion", occasion.as_str()), ("outcome", why.category())];
        self.thaws.get_or_create(&labels).inc();
    }

    /// A container woke.
    pub(crate) fn woke(&self, wake: &Wake) {
        let outcome = ("outcome", wake.outcome.as_str());
        self.wakes.get_or_create(&[("reason", wake.reason.kind()), outcome]).inc();
        self.wake_durations.get_or_create(&[outcome]).observe(wake.duration.as_secs_f64());
    }

    /// A state was saved, or was not.
    pub(crate) fn saved<T>(&self, result: &Result<T, FreezeError>) {
        let outcome = result.as_ref().err().map_or(OK, FreezeError::category);
        self.saves.get_or_create(&[("outcome", outcome)]).inc();
    }

    /// A command is started. `cause`: a category of [`ThawError`], or a word of the same kind.
    pub(crate) fn started_cold(&self, cause: &'static str) {
        self.cold_starts.get_or_create(&[("cause", cause)]).inc();
    }

    /// A freeze ended.
    pub(crate) fn froze(&self, result: &Result<Frozen, FreezeError>) {
        let outcome = result.as_ref().err().map_or(OK, FreezeError::category);
        self.freezes.get_or_create(&[("outcome", outcome)]).inc();
        let Ok(frozen) = result else { return };
        self.freeze_durations.observe(frozen.total_ms / 1e3);
        for image in &frozen.images {
            self.standstills.observe(image.standstill_ms / 1e3);
            self.frozen_bytes.inc_by(image.memory_bytes);
            self.pushed_bytes.inc_by(image.compressed_bytes);
            for phase in &image.phases {
                let labels = PhaseOfFreeze { phase: phase.name.clone() };
                self.freeze_phases.get_or_create(&labels).observe(phase.ms / 1e3);
            }
        }
    }

    /// A pager has brought all memory.
    pub(crate) fn memory_complete(&self, report: &Report) {
        self.memory_bytes.get_or_create(&[("source", "copied")]).inc_by(report.copied);
        self.memory_bytes.get_or_create(&[("source", "shared")]).inc_by(report.mapped);
        self.memory_faults.inc_by(report.faults);
        self.pager_cpu.inc_by(report.cpu_us as f64 / 1e6);
        let took = report.complete_us.saturating_sub(report.released_us);
        self.memory_complete.observe(took as f64 / 1e6);
    }

    /// A probe was answered for a container that sleeps.
    pub(crate) fn probe_answered(&self, protocol: &'static str) {
        self.probes.get_or_create(&[("protocol", protocol)]).inc();
    }

    /// A first packet is held.
    pub(crate) fn packet_held(&self) {
        self.held.inc();
    }

    /// An image was removed from the page store for another.
    pub(crate) fn evicted(&self) {
        self.evictions.inc();
    }
}
