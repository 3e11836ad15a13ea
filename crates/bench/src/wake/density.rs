//! What pods that sleep cost, many of them on one node.

use std::fmt;
use std::time::Duration;

use anyhow::Result;
use serde_json::{Value as Json, json};

use crate::args::Mode;
use crate::clock::{ms, now_us};
use crate::contenders::woodfrog::{Woodfrog, managed};
use crate::contenders::{Contender as _, Place};
use crate::footprint::{self, Footprint};
use crate::progress::Progress;
use crate::workload::Workload;

/// How long nothing is to happen.
const REST: Duration = Duration::from_secs(30);

/// What was measured.
#[derive(Debug)]
pub(super) struct Density {
    pods: u32,
    none: Footprint,
    all: Footprint,
    /// CPU time of the agent and of all inits while nothing happened, in hundredths of one CPU.
    idle_cpu_percent: f64,
}

/// Starts so many pods that sleep, and looks at them while nothing happens.
pub(super) async fn measure(place: &Place, workload: &Workload, pods: u32) -> Result<Density> {
    let ours = Woodfrog::prepare(place.clone(), workload.clone(), Mode::Copied).await?;
    // What the agent needs once, and does not give back, is there after the first.
    let first = place.shim.run(ours.standby("Dormant", "first")).await?;
    let none = footprint::of(place, &[])?;
    first.remove().await?;
    let progress = Progress::new();
    let bar = progress.bar("density", u64::from(pods));
    let mut containers = Vec::new();
    let mut inits = Vec::new();
    for number in 0..pods {
        let container = place.shim.run(ours.standby("Dormant", &format!("sleeper-{number}"))).await?;
        inits.push(container.pid().await?);
        containers.push(container);
        bar.advance();
    }
    bar.say("nothing happens");
    let (before, began) = (footprint::of(place, &inits)?, now_us());
    tokio::time::sleep(REST).await;
    let (all, ended) = (footprint::of(place, &inits)?, now_us());
    for container in &containers {
        managed(place, &container.id)?.expect("dormant")?;
        container.remove().await?;
    }
    bar.finish();
    ours.clean().await?;
    let busy_ms = all.cpu_us.saturating_sub(before.cpu_us) as f64 / 1e3;
    Ok(Density { pods, none, all, idle_cpu_percent: 100.0 * busy_ms / ms(began, ended) })
}

impl Density {
    fn each(&self, bytes: u64) -> u64 {
        bytes / u64::from(self.pods)
    }

    fn agent_share(&self) -> u64 {
        self.each(self.all.agent_bytes.saturating_sub(self.none.agent_bytes))
    }

    /// A pod's container and its share of the agent.
    fn bytes_per_dormant_pod(&self) -> u64 {
        self.each(self.all.cgroup_bytes) + self.agent_share()
    }

    pub(super) fn json(&self) -> Json {
        json!({
            "pods": self.pods,
            "bytes_per_dormant_pod": self.bytes_per_dormant_pod(),
            "agent_bytes": self.all.agent_bytes,
            "idle_cpu_percent": (self.idle_cpu_percent * 1e3).round() / 1e3,
        })
    }
}

impl fmt::Display for Density {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kb = |bytes: u64| bytes as f64 / 1e3;
        write!(
            f,
            "{} dormant pods: {:.0} KB each beyond the sandbox (container {:.0} KB, of it init {:.0} KB; agent {:.0} KB), agent {:.1} MB, \
             {:.2} % of a CPU at rest",
            self.pods,
            kb(self.bytes_per_dormant_pod()),
            kb(self.each(self.all.cgroup_bytes)),
            kb(self.each(self.all.init_bytes)),
            kb(self.agent_share()),
            kb(self.all.agent_bytes) / 1e3,
            self.idle_cpu_percent,
        )
    }
}
