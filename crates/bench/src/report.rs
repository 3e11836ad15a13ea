//! What was measured: medians, as a table for people and as JSON for programs.

use std::collections::BTreeMap;

use comfy_table::{CellAlignment, ContentArrangement, Table, presets};
use serde_json::{Value as Json, json};

use crate::clock::{median, p95};

/// Said where a runtime's CRIU cannot dump an application as it is.
pub(crate) const RUNS_AS_ROOT: &str = "Without CAP_SYS_RESOURCE CRIU cannot dump another user's processes: with runc and containerd \
     the application ran as root, with all others as uid 1000.";

/// Something that is measured of an application. Times are in milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Metric {
    /// CreateContainer to first answer, without a checkpoint, through containerd.
    Cold,
    /// `woodfrog freeze`, from the request to the image in the registry.
    Freeze,
    /// Bytes of the layers that a freeze adds, uncompressed.
    ImageBytes,
    /// The same, compressed.
    CompressedBytes,
    /// The agent's start of the thaw to first answer.
    Thaw,
    /// CreateContainer of the checkpoint image to first answer, through the shim.
    Start,
    /// Start of `criu restore` to first answer.
    Criu,
    /// Start of `runc restore` to first answer.
    Runc,
    /// CreateContainer of containerd's own checkpoint to first answer.
    Containerd,
    /// CreateContainer of the checkpoint image through the shim.
    CreateCall,
    /// StartContainer of the same: it returns when the application is thawed.
    StartCall,
    /// RunPodSandbox of containerd alone, with the look at the sandbox's address.
    ContainerdSandbox,
    /// CreateContainer of containerd alone, of the same image.
    ContainerdCreate,
    /// StartContainer of the same.
    ContainerdStart,
    /// From what triggers a way to bring an application up, to its first answer.
    Response,
    /// The same to all tasks being there.
    Restored,
    /// The same to 99 % of the memory being there.
    Full,
    /// Memory that the container's processes share with nobody, once [`Metric::Full`].
    PrivateBytes,
    /// Threads of the container's processes.
    Threads,
    /// CPU time of the container's cgroup until then, with all that restored it.
    Cpu,
    /// Phases of a thaw, from here on, see [`Metric::phase`].
    Prepare,
    /// See `Prepare`.
    Check,
    /// See `Prepare`.
    Worker,
    /// See `Prepare`.
    Lease,
    /// See `Prepare`.
    Restore,
    /// See `Prepare`.
    Commit,
    /// See `Prepare`.
    Resume,
    /// CRIU's part of [`Metric::Restore`]: it reads its images.
    CriuImages,
    /// Likewise: it makes the tasks with what they had.
    CriuTasks,
    /// CRIU's part of [`Metric::Resume`]: it stops each of them where its own code begins.
    CriuCatch,
    /// Likewise: it lets them go.
    CriuRelease,
}

impl Metric {
    /// What the demo shows, and the keys of its JSON.
    pub(crate) const DEMO: &[Self] = &[
        Self::Cold,
        Self::Freeze,
        Self::ImageBytes,
        Self::CompressedBytes,
        Self::Thaw,
        Self::Start,
        Self::Criu,
        Self::Runc,
        Self::Containerd,
    ];

    /// What `woodfrog-bench start` shows.
    pub(crate) const START: &[Self] = &[
        Self::Start,
        Self::Thaw,
        Self::Criu,
        Self::Runc,
        Self::CreateCall,
        Self::StartCall,
        Self::ContainerdSandbox,
        Self::ContainerdCreate,
        Self::ContainerdStart,
    ];

    /// What `woodfrog-bench thaw` shows.
    pub(crate) const THAW: &[Self] =
        &[Self::Restored, Self::Response, Self::Full, Self::PrivateBytes, Self::Cpu];

    /// The phases of a thaw, in order.
    pub(crate) const PHASES: [Self; 7] =
        [Self::Prepare, Self::Worker, Self::Check, Self::Lease, Self::Restore, Self::Commit, Self::Resume];

    /// What CRIU does in a thaw, in order.
    pub(crate) const CRIU: [Self; 4] =
        [Self::CriuImages, Self::CriuTasks, Self::CriuCatch, Self::CriuRelease];

    /// The phase that the agent calls so.
    pub(crate) fn phase(name: &str) -> Option<Self> {
        Self::PHASES.into_iter().find(|phase| phase.names().1 == name)
    }

    /// The step of CRIU that the agent calls so.
    pub(crate) fn criu_step(name: &str) -> Option<Self> {
        Self::CRIU.into_iter().find(|step| step.title().strip_prefix("criu: ") == Some(name))
    }

    /// Title of the column.
    pub(crate) const fn title(self) -> &'static str {
        self.names().1
    }

    /// Key in JSON, and title of the column.
    const fn names(self) -> (&'static str, &'static str) {
        match self {
            Self::Cold => ("cold_ms", "cold start"),
            Self::Freeze => ("freeze_ms", "freeze"),
            Self::ImageBytes => ("image_bytes", "image"),
            Self::CompressedBytes => ("compressed_bytes", "compressed"),
            Self::Thaw => ("thaw_ms", "thaw"),
            Self::Start => ("start_ms", "start"),
            Self::Criu => ("criu_ms", "criu"),
            Self::Runc => ("runc_ms", "runc"),
            Self::Containerd => ("containerd_ms", "containerd"),
            Self::CreateCall => ("create_call_ms", "CreateContainer"),
            Self::StartCall => ("start_call_ms", "StartContainer"),
            Self::ContainerdSandbox => ("containerd_sandbox_ms", "containerd: sandbox"),
            Self::ContainerdCreate => ("containerd_create_ms", "containerd: create"),
            Self::ContainerdStart => ("containerd_start_ms", "containerd: start"),
            Self::Response => ("response_ms", "response"),
            Self::Restored => ("restored_ms", "restored"),
            Self::Full => ("full_ms", "99 % there"),
            Self::PrivateBytes => ("private_bytes", "private"),
            Self::Threads => ("threads", "threads"),
            Self::Cpu => ("cpu_ms", "CPU"),
            Self::Prepare => ("prepare_ms", "prepare"),
            Self::Check => ("check_ms", "check"),
            Self::Worker => ("worker_ms", "worker"),
            Self::Lease => ("lease_ms", "lease"),
            Self::Restore => ("restore_ms", "restore"),
            Self::Commit => ("commit_ms", "commit"),
            Self::Resume => ("resume_ms", "resume"),
            Self::CriuImages => ("criu_images_ms", "criu: images"),
            Self::CriuTasks => ("criu_tasks_ms", "criu: tasks"),
            Self::CriuCatch => ("criu_catch_ms", "criu: catch"),
            Self::CriuRelease => ("criu_release_ms", "criu: release"),
        }
    }

    const fn is_bytes(self) -> bool {
        matches!(self, Self::ImageBytes | Self::CompressedBytes | Self::PrivateBytes)
    }
}

/// All that was measured of one application.
#[derive(Clone, Debug)]
pub(crate) struct Record {
    application: String,
    values: BTreeMap<Metric, Vec<f64>>,
}

impl Record {
    /// Of this application, nothing yet.
    pub(crate) fn new(application: &str) -> Self {
        Self { application: application.to_owned(), values: BTreeMap::new() }
    }

    /// Adds values that were measured.
    pub(crate) fn add(&mut self, values: Vec<(Metric, f64)>) {
        for (metric, value) in values {
            self.values.entry(metric).or_default().push(value);
        }
    }

    /// The median of what was measured; none if it could not run.
    pub(crate) fn median(&self, metric: Metric) -> Option<f64> {
        self.values.get(&metric).and_then(|values| median(values))
    }

    /// The value below which 95 of 100 lie: of few runs, the longest.
    pub(crate) fn p95(&self, metric: Metric) -> Option<f64> {
        self.values.get(&metric).and_then(|values| p95(values))
    }

    fn ratio(&self, peer: Metric, ours: Metric) -> Option<f64> {
        Some(self.median(peer)? / self.median(ours)?)
    }

    /// What it is of.
    pub(crate) fn name(&self) -> &str {
        &self.application
    }

    /// An object of medians, null where something could not run.
    pub(crate) fn json(&self, metrics: &[Metric]) -> Json {
        let mut object = json!({ "application": self.application });
        for metric in metrics {
            let value = self.median(*metric);
            object[metric.names().0] = if metric.is_bytes() {
                json!(value.map(|bytes| bytes as u64))
            } else {
                json!(value.map(|ms| (ms * 1e3).round() / 1e3))
            };
        }
        object
    }
}

/// The medians of each application.
pub(crate) fn times(records: &[Record], metrics: &[Metric]) -> Table {
    let mut table = table();
    let titles = metrics.iter().map(|metric| metric.names().1);
    table.set_header(["application"].into_iter().chain(titles).collect::<Vec<_>>());
    for record in records {
        let cells = metrics.iter().map(|metric| shown(*metric, record.median(*metric)));
        table.add_row([record.application.clone()].into_iter().chain(cells).collect::<Vec<_>>());
    }
    right(&mut table);
    table
}

/// A value as a cell of a table.
pub(crate) fn shown(metric: Metric, value: Option<f64>) -> String {
    match value {
        None => "–".to_owned(),
        Some(bytes) if metric.is_bytes() => format!("{:.1} MB", bytes / 1e6),
        Some(ms) if ms >= 1000.0 => format!("{:.2} s", ms / 1e3),
        Some(ms) => format!("{ms:.1} ms"),
    }
}

/// How many times longer the others take than Woodfrog does.
pub(crate) fn ratios(records: &[Record]) -> Table {
    let columns = [
        ("cold start ÷ start", Metric::Cold, Metric::Start),
        ("containerd ÷ start", Metric::Containerd, Metric::Start),
        ("runc ÷ start", Metric::Runc, Metric::Start),
        ("runc ÷ thaw", Metric::Runc, Metric::Thaw),
        ("criu ÷ thaw", Metric::Criu, Metric::Thaw),
        ("image ÷ compressed", Metric::ImageBytes, Metric::CompressedBytes),
    ];
    let mut table = table();
    table.set_header(["application"].into_iter().chain(columns.map(|column| column.0)).collect::<Vec<_>>());
    for record in records {
        let cells = columns
            .map(|(_, peer, ours)| record.ratio(peer, ours).map_or("–".to_owned(), |r| format!("{r:.2}")));
        table.add_row([record.application.clone()].into_iter().chain(cells).collect::<Vec<_>>());
    }
    right(&mut table);
    table
}

/// An empty table in our style.
pub(crate) fn table() -> Table {
    let mut table = Table::new();
    table.load_style(presets::UTF8_HORIZONTAL_ONLY).set_content_arrangement(ContentArrangement::Disabled);
    table
}

/// Aligns all columns but the first to the right.
pub(crate) fn right(table: &mut Table) {
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_has_medians_and_null_where_nothing_could_run() {
        let mut record = Record::new("cpython");
        for value in [3.0, 1.0, 2.0] {
            record.add(vec![(Metric::Cold, value)]);
        }
        record.add(vec![(Metric::ImageBytes, 5e6)]);
        let json = record.json(Metric::DEMO);
        assert_eq!(json["application"], "cpython");
        assert_eq!(json["cold_ms"], 2.0);
        assert_eq!(json["image_bytes"], 5_000_000);
        assert!(json["containerd_ms"].is_null());
        assert_eq!(json.as_object().map(serde_json::Map::len), Some(10));
    }

    #[test]
    fn a_ratio_needs_both_sides() {
        let mut record = Record::new("cpython");
        record.add(vec![(Metric::Runc, 300.0)]);
        assert_eq!(record.ratio(Metric::Runc, Metric::Thaw), None);
        record.add(vec![(Metric::Thaw, 100.0)]);
        assert_eq!(record.ratio(Metric::Runc, Metric::Thaw), Some(3.0));
    }
}
