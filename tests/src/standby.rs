//! Pods that stand by.

use std::time::{Duration, Instant, SystemTime};

use anyhow::{Result, ensure};
use woodfrog_testcluster::cluster::REGISTRY;
use woodfrog_testkubelet::{Container, PodSpec};
use woodfrog_testnode::{App, Node, Options};

use crate::{STARTUP, World};

/// A restricted pod that stands by as `standby` says; it falls asleep again after `idle`, if that is given.
#[must_use]
pub fn standby(name: &str, image: &str, standby: &str, idle: Option<&str>) -> PodSpec {
    let mut spec = PodSpec::new(name, image);
    spec.annotations.insert("woodfrog.dev/standby".into(), standby.into());
    if let Some(idle) = idle {
        spec.annotations.insert("woodfrog.dev/idle-timeout".into(), idle.into());
    }
    spec
}

/// The rules of ours in a pod's network namespace.
///
/// # Errors
/// The pod does not run.
pub async fn rules(node: &Node, pod: &Container) -> Result<Vec<String>> {
    let namespace = format!("--net=/proc/{}/ns/net", pod.pid().await?);
    let mut rules = Vec::new();
    for save in ["iptables-nft-save", "ip6tables-nft-save"] {
        let text = node.run("nsenter", &[&namespace, save])?;
        rules.extend(text.lines().filter(|line| line.contains("woodfrog")).map(str::to_owned));
    }
    Ok(rules)
}

impl World<'_> {
    /// An image of CPython, frozen after three requests to `/count`. All nodes have one registry: it is made once for each build of the agent.
    ///
    /// # Errors
    /// It does not start, or the freeze failed.
    pub async fn counted_to_three(&self) -> Result<String> {
        let agent = Options::default().binaries.join("debug/node-agent");
        let built = agent.metadata()?.modified()?.duration_since(SystemTime::UNIX_EPOCH)?;
        let image = format!("{REGISTRY}/checkpoint/cpython-three:{}", built.as_millis());
        if self.kubelet.pull(&image).await.is_ok() {
            return Ok(image);
        }
        let warm = self.warm(PodSpec::new("warm", &App::Cpython.reference())).await?;
        for expected in 1..=3 {
            ensure!(warm.get("/count")? == expected.to_string());
        }
        self.freeze(&warm, &image)?;
        warm.remove().await?;
        Ok(image)
    }

    /// Fails unless a container is in this state, as `woodfrog ps` says it.
    ///
    /// # Errors
    /// With its log.
    pub fn expect_state(&self, container: &Container, state: &str) -> Result<()> {
        let is = self.ps(container)?["state"].clone();
        ensure!(is == state, "{} is {is}, not {state}\n{}", container.pod_name(), self.log(container));
        Ok(())
    }

    /// What `woodfrog logs` says of a pod's container.
    #[must_use]
    pub fn log(&self, container: &Container) -> String {
        self.stack.woodfrog(&["logs", &format!("{}/app", container.pod_name())]).unwrap_or_default()
    }

    /// Waits until a container is in a state.
    ///
    /// # Errors
    /// It is not within [`STARTUP`].
    pub async fn until(&self, container: &Container, state: &str) -> Result<()> {
        let deadline = Instant::now() + STARTUP;
        while self.expect_state(container, state).is_err() && Instant::now() < deadline {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        self.expect_state(container, state)
    }
}
