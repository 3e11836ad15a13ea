//! Woodfrog: `woodfrog freeze` into an image of the node's registry, then pods of that image through the shim.

use anyhow::{Context, Result, ensure};
use async_trait::async_trait;
use serde::Deserialize;
use woodfrog_testkubelet::Container;
use woodfrog_testnode::App;

use super::{Contender, PATIENCE, Place, Value};
use crate::client::FirstAnswer;
use crate::clock::{ms, now_us};
use crate::report::Metric;
use crate::workload::{State, warm_up};

/// See the module.
#[derive(Debug)]
pub(crate) struct Woodfrog {
    place: Place,
    app: App,
    image: String,
    state: State,
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
struct Managed {
    id: String,
    state: String,
    reason: String,
    thaw_started_us: u64,
}

impl Woodfrog {
    /// Warms the application up, freezes it and pulls the image.
    pub(crate) async fn prepare(place: Place, app: App) -> Result<Self> {
        let image = app.reference().replace(app.name(), &format!("frozen-{}", app.name()));
        let container = place.shim.run(place.pod(app, "freeze").managed()).await?;
        let frozen = freeze(&place, &container, &image).await;
        container.remove().await?;
        let (state, frozen) = frozen?;
        place.shim.pull(&image).await?;
        Ok(Self { place, app, image, state, frozen })
    }

    /// The image that the freeze made.
    pub(crate) fn image(&self) -> &str {
        &self.image
    }

    async fn thaw(&self, container: &Container, start: u64, answer: FirstAnswer) -> Result<Vec<Value>> {
        let created = now_us();
        container.start().await?;
        let started = now_us();
        let answered = answer.at().await?;
        let managed = self.managed(&container.id)?;
        ensure!(
            managed.state == "thawed",
            "the container is {}, not thawed: {}",
            managed.state,
            managed.reason
        );
        self.state.check(&self.place.node, container.ip())?;
        let thaw = ms(managed.thaw_started_us, answered);
        Ok(vec![
            (Metric::Thaw, thaw),
            (Metric::Start, ms(start, answered)),
            (Metric::CreateCall, ms(start, created)),
            (Metric::StartCall, ms(created, started)),
        ])
    }

    fn managed(&self, id: &str) -> Result<Managed> {
        let output = woodfrog(&self.place, &["ps", "--output", "json"])?;
        let all: Vec<Managed> = serde_json::from_str(&output).with_context(|| output.clone())?;
        all.into_iter().find(|m| m.id == id).with_context(|| format!("woodfrog ps does not know {id}"))
    }
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
        let mut spec = place.pod(self.app, "thaw");
        spec.image.clone_from(&self.image);
        let pod = place.shim.sandbox(spec).await?;
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

async fn freeze(place: &Place, container: &Container, image: &str) -> Result<(State, Frozen)> {
    FirstAnswer::from(&place.node, container.ip(), PATIENCE).at().await?;
    let state = warm_up(&place.node, container.ip())?;
    let output = woodfrog(place, &["freeze", &container.id, "--image", image, "--output", "json"])?;
    let frozen = serde_json::from_str(&output).with_context(|| output.clone())?;
    Ok((state, frozen))
}

fn woodfrog(place: &Place, arguments: &[&str]) -> Result<String> {
    Ok(place.node.run(&format!("{}/woodfrog", place.binaries), arguments)?)
}
