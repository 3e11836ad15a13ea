//! The examples of the documentation, in a cluster for tests.

use std::time::Duration;

use anyhow::Result;
use woodfrog_api::{Checkpoint, Phase};
use woodfrog_testcluster::Cluster;
use woodfrog_testcluster::cluster::REGISTRY;
use woodfrog_testnode::App;

/// How long an application may take to be frozen, or a pool to be filled, on a slow machine under load.
pub const PATIENCE: Duration = Duration::from_secs(180);

/// A Checkpoint `python` of CPython.
pub const PYTHON: &str = include_str!("../../docs/examples/python.yaml");

/// An example, with images of the node's registry.
#[must_use]
pub fn example(text: &str, name: &str, app: App) -> String {
    let image = format!("registry.example/shop/{name}:1");
    text.replace(&image, &app.reference()).replace("registry.example", REGISTRY)
}

/// Whether a Checkpoint is so far.
pub fn phase_is(phase: Phase) -> impl Fn(&Checkpoint) -> bool {
    move |checkpoint| checkpoint.status.as_ref().is_some_and(|status| status.phase == Some(phase))
}

/// Applies the Checkpoint `python`, which pushes to `repository` of the node's registry, and waits until it is Ready.
///
/// # Errors
/// It is not.
pub async fn python(cluster: &Cluster<'_>, repository: &str) -> Result<Checkpoint> {
    let text = example(PYTHON, "python", App::Cpython);
    let pushed = format!("{REGISTRY}/{repository}:warm");
    cluster.apply(&text.replace(&format!("{REGISTRY}/shop/python:warm"), &pushed)).await?;
    cluster.until("python", PATIENCE, phase_is(Phase::Ready)).await
}
