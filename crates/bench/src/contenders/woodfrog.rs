//! Woodfrog: `woodfrog freeze` into an image of the node's registry, then pods of that image through the shim.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use async_trait::async_trait;
use serde::Deserialize;
use woodfrog_testkubelet::{Container, PodSpec};

use super::{Contender, PATIENCE, Place, Value};
use crate::args::Mode;
use crate::client::FirstAnswer;
use crate::clock::{ms, now_us};
use crate::report::Metric;
use crate::workload::{State, Workload};

/// See the module.
#[derive(Debug)]
pub(crate) struct Woodfrog {
    place: Place,
    workload: Workload,
    /// The reference of its image.
    pub(crate) image: String,
    /// What is in it.
    pub(crate) state: State,
    frozen: Frozen,
}

/// What `woodfrog freeze --output json` prints, as far as it is used here.
#[derive(Debug, Deserialize)]
struct Frozen {
    images: Vec<FrozenImage>,
    total_ms: f64,
}

#[derive(Debug, Deserialize)]
struct FrozenImage {
    layer_bytes: u64,
    compressed_bytes: u64,
}

/// A container of `woodfrog ps --output json`.
#[derive(Debug, Deserialize)]
pub(crate) struct Managed {
    id: String,
    state: String,
    reason: String,
    pub(crate) thaw_ms: f64,
    thaw_started_us: u64,
    /// When the threads ran, by [`now_us`].
    pub(crate) thaw_done_us: u64,
    thaw_phases: Vec<Phase>,
    criu_steps: Vec<Phase>,
    pub(crate) shares_memory: bool,
    memory: Option<Memory>,
}

#[derive(Debug, Deserialize)]
struct Phase {
    name: String,
    ms: f64,
}

/// How its memory came.
#[derive(Clone, Copy, Debug, Deserialize)]
pub(crate) struct Memory {
    pub(crate) brought_bytes: u64,
    nearly_us: u64,
    /// When all was there, by [`now_us`].
    pub(crate) complete_us: u64,
    /// CPU time of the pager.
    pub(crate) cpu_us: u64,
}

/// As many thaws of an image on a node find out what it wants first.
const RECORDED: u32 = 3;

impl Managed {
    /// Fails unless it is in this state.
    pub(crate) fn expect(&self, state: &str) -> Result<()> {
        ensure!(self.state == state, "the container is {}, not {state}: {}", self.state, self.reason);
        Ok(())
    }
}

impl Woodfrog {
    /// Warms the application up, freezes it and pulls the image.
    pub(crate) async fn prepare(place: Place, workload: Workload, memory: Mode) -> Result<Self> {
        let image = workload.frozen_image(memory.name());
        let container = place.shim.run(place.pod(&workload, "freeze").managed()).await?;
        let frozen = freeze(&place, &workload, &container, &image, memory.name()).await;
        container.remove().await?;
        let (state, frozen) = frozen?;
        place.shim.pull(&image).await?;
        Ok(Self { place, workload, image, state, frozen })
    }

    async fn thaw(&self, container: &Container, start: u64, answer: FirstAnswer) -> Result<Vec<Value>> {
        let created = now_us();
        container.start().await?;
        let started = now_us();
        let answered = answer.at().await?;
        let (managed, memory) = with_all_memory(&self.place, &container.id).await?;
        let usage = self.place.usage(container.pid().await?)?;
        self.state.check(&self.place.node, container.ip())?;
        let since = |us: u64| ms(managed.thaw_started_us, us);
        let mut values = vec![
            (Metric::Response, since(answered)),
            (Metric::Restored, since(managed.thaw_done_us)),
            (Metric::Full, since(memory.nearly_us)),
            (Metric::Start, ms(start, answered)),
            (Metric::CreateCall, ms(start, created)),
            (Metric::StartCall, ms(created, started)),
        ];
        values.extend(usage);
        let phases = managed.thaw_phases.iter();
        values.extend(phases.filter_map(|phase| Some((Metric::phase(&phase.name)?, phase.ms))));
        let steps = managed.criu_steps.iter();
        values.extend(steps.filter_map(|step| Some((Metric::criu_step(&step.name)?, step.ms))));
        Ok(values)
    }

    /// A pod of its image.
    pub(crate) fn pod(&self, way: &str) -> PodSpec {
        PodSpec { image: self.image.clone(), ..self.place.pod(&self.workload, way) }
    }

    /// The same, that stands by as `kind` says.
    pub(crate) fn standby(&self, kind: &str, way: &str) -> PodSpec {
        let mut spec = self.pod(way);
        spec.annotations.insert("woodfrog.dev/standby".into(), kind.into());
        spec
    }

    /// Thaws it until this node knows what it wants first.
    pub(crate) async fn settle(&self) -> Result<()> {
        for _ in 0..RECORDED {
            self.once().await?;
        }
        Ok(())
    }
}

/// The container once all of its memory is there; it must have been thawed.
pub(crate) async fn with_all_memory(place: &Place, id: &str) -> Result<(Managed, Memory)> {
    let begin = Instant::now();
    loop {
        let managed = managed(place, id)?;
        managed.expect("thawed")?;
        if let Some(memory) = managed.memory {
            return Ok((managed, memory));
        }
        ensure!(begin.elapsed() < PATIENCE, "its memory does not come");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// What `woodfrog ps` says of a container.
pub(crate) fn managed(place: &Place, id: &str) -> Result<Managed> {
    let output = woodfrog(place, &["ps", "--output", "json"])?;
    let all: Vec<Managed> = serde_json::from_str(&output).with_context(|| output.clone())?;
    all.into_iter().find(|m| m.id == id).with_context(|| format!("woodfrog ps does not know {id}"))
}

#[async_trait]
impl Contender for Woodfrog {
    fn preparation(&self) -> Vec<Value> {
        let mut values = vec![(Metric::Freeze, self.frozen.total_ms)];
        for image in &self.frozen.images {
            values.push((Metric::ImageBytes, image.layer_bytes as f64));
            values.push((Metric::CompressedBytes, image.compressed_bytes as f64));
        }
        values
    }

    async fn once(&self) -> Result<Vec<Value>> {
        let place = &self.place;
        let pod = place.shim.sandbox(self.pod("thaw")).await?;
        let answer = FirstAnswer::from(&place.node, pod.ip, PATIENCE);
        let start = now_us();
        let container = pod.create().await?;
        let values = self.thaw(&container, start, answer).await;
        container.remove().await?;
        values
    }

    async fn clean(&self) -> Result<()> {
        self.place.shim.remove_image(&self.image).await
    }
}

/// Warms an application up and freezes it.
async fn freeze(
    place: &Place,
    workload: &Workload,
    container: &Container,
    image: &str,
    memory: &str,
) -> Result<(State, Frozen)> {
    FirstAnswer::from(&place.node, container.ip(), PATIENCE).at().await?;
    let state = workload.warm_up(&place.node, container.ip())?;
    let freeze = ["freeze", &container.id, "--image", image, "--memory", memory, "--output", "json"];
    let output = woodfrog(place, &freeze)?;
    let frozen = serde_json::from_str(&output).with_context(|| output.clone())?;
    Ok((state, frozen))
}

/// Runs the command `woodfrog` on the node; what it printed.
pub(crate) fn woodfrog(place: &Place, arguments: &[&str]) -> Result<String> {
    Ok(place.node.run(&format!("{}/woodfrog", place.binaries), arguments)?)
}
