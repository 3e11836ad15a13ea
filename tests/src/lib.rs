//! A node with Woodfrog on it, for the tests in this package.

#![forbid(unsafe_code)]

pub mod cluster;
pub mod examples;
pub mod helm;
mod rights;
mod standby;

use std::future::Future;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::Value;
use woodfrog_testcluster::cluster::REGISTRY;
use woodfrog_testkubelet::{Container, Kubelet, PodSpec, Stack};
use woodfrog_testnode::{App, Need, Node, Options};

pub use rights::in_cluster;
pub use standby::{rules, standby};

/// How long an application may take to answer for the first time, on a slow machine under load.
pub const STARTUP: Duration = Duration::from_secs(120);

/// A node with agent and shim, and a kubelet that goes through the shim.
pub struct World<'a> {
    /// The node.
    pub node: &'a Node,
    /// Woodfrog on it.
    pub stack: Stack<'a>,
    /// Through the shim.
    pub kubelet: Kubelet,
}

/// Runs a test in a world of its own, which is gone afterwards. `name` names the node; `images` are in its registry.
///
/// # Panics
/// With the test's error and the logs of agent and shim.
pub fn in_world<F>(name: &str, images: &[App], test: F)
where
    F: AsyncFnOnce(&World<'_>) -> Result<()>,
{
    in_world_with(name, images, &[], test);
}

/// The same, with more arguments for the agent.
///
/// # Panics
/// As [`in_world`].
pub fn in_world_with<F>(name: &str, images: &[App], agent_arguments: &[&str], test: F)
where
    F: AsyncFnOnce(&World<'_>) -> Result<()>,
{
    if let Need::Lacks(what) = Need::look() {
        eprintln!("skipped: {what}");
        return;
    }
    let options = Options { images: images.to_vec(), ..Options::default() };
    let node = Node::up(name, &options).expect("a node").into_guard();
    let result = block_on(async {
        let stack = Stack::start_with(&node, "debug", agent_arguments)?;
        let kubelet = Kubelet::connect(&node, &stack.cri_socket()).await?;
        test(&World { node: &node, stack, kubelet }).await
    });
    if let Err(e) = result {
        let log = |service| node.logs(service).unwrap_or_default();
        panic!("{e:#}\n--- node-agent\n{}\n--- cri-shim\n{}", log("node-agent"), log("cri-shim"));
    }
}

fn block_on(future: impl Future<Output = Result<()>>) -> Result<()> {
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(future)
}

impl World<'_> {
    /// A managed pod of an application that has answered.
    ///
    /// # Errors
    /// It does not start.
    pub async fn warm(&self, spec: PodSpec) -> Result<Container> {
        self.kubelet.pull(&spec.image).await?;
        let container = self.kubelet.run(spec.managed()).await?;
        container.wait("/", STARTUP)?;
        // It can be frozen once its init has told the agent of it.
        self.until(&container, "cold").await?;
        Ok(container)
    }

    /// Where an image of an application goes: one of this node's, since the registry is all nodes', and tests run side by side.
    #[must_use]
    pub fn image(&self, app: App, tag: &str) -> String {
        format!("{REGISTRY}/checkpoint/{}-{}:{tag}", app.name(), self.node.name())
    }

    /// A pod from a checkpoint image, whatever came of the thaw.
    ///
    /// # Errors
    /// It does not start.
    pub async fn from_image(&self, spec: PodSpec) -> Result<Container> {
        self.kubelet.pull(&spec.image).await?;
        self.kubelet.run(spec).await
    }

    /// Freezes a pod's container into an image; what `woodfrog freeze` says of it.
    ///
    /// # Errors
    /// The freeze failed.
    pub fn freeze(&self, container: &Container, image: &str) -> Result<Value> {
        let name = format!("{}/app", container.pod_name());
        let output = self.stack.woodfrog(&["freeze", &name, "--image", image, "--output", "json"])?;
        serde_json::from_str(&output).with_context(|| output)
    }

    /// Likewise, into an image whose applications share their memory.
    ///
    /// # Errors
    /// The freeze failed.
    pub fn freeze_shared(&self, container: &Container, image: &str) -> Result<Value> {
        let name = format!("{}/app", container.pod_name());
        let freeze = ["freeze", &name, "--image", image, "--memory", "shared", "--output", "json"];
        let output = self.stack.woodfrog(&freeze)?;
        serde_json::from_str(&output).with_context(|| output)
    }

    /// What `woodfrog ps` says of a pod's container.
    ///
    /// # Errors
    /// It is not listed.
    pub fn ps(&self, container: &Container) -> Result<Value> {
        let output = self.stack.woodfrog(&["ps", "--output", "json"])?;
        let list: Vec<Value> = serde_json::from_str(&output).with_context(|| output.clone())?;
        let found = list.into_iter().find(|c| c["id"] == container.id.as_str());
        found.with_context(|| format!("{} is not in {output}", container.id))
    }

    /// Fails unless the container was thawed; the reason is in the error.
    ///
    /// # Errors
    /// It started cold.
    pub fn assert_thawed(&self, container: &Container) -> Result<()> {
        let ps = self.ps(container)?;
        if ps["state"] == "thawed" {
            return Ok(());
        }
        let name = format!("{}/app", container.pod_name());
        let log = self.stack.woodfrog(&["logs", &name]).unwrap_or_default();
        anyhow::bail!(
            "{} was not thawed but is {}: {}\n{log}",
            container.pod_name(),
            ps["state"],
            ps["reason"]
        )
    }
}
