//! Plain `criu restore`, started by hand in a container that waits: no Woodfrog in it.
//!
//! The application was dumped by `criu dump` in the same way. The waiting container has the same image, mounts, address
//! space of PIDs and security as a thawed one, and `catatonit -P` as its PID 1. CRIU is in the container's cgroups before
//! the clock starts, and finds its cache of kernel features (`/run/criu.kdat`).

use anyhow::{Context, Result};
use async_trait::async_trait;
use k8s_cri::v1::Mount;
use woodfrog_testkubelet::{Container, PodSpec};

use super::{Contender, PATIENCE, Place, Value};
use crate::client::FirstAnswer;
use crate::clock::ms;
use crate::inside::Restored;
use crate::report::Metric;
use crate::workload::{State, Workload};

const INIT: &str = "/run/catatonit";
const KDAT: &str = "/run/criu.kdat";

/// Starts a command as a session leader, as CRIU wants it. CRIU restores PIDs as they were, so the low ones are left to CRIU and
/// to whoever starts it. The container outlives the command, for CRIU would die with it before the dump is whole.
const RUN_AT_300: &str =
    "i=2; while [ $i -lt 300 ]; do (:); i=$((i+1)); done; setsid \"$@\" & wait; exec sleep infinity";

/// How memory comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Memory {
    /// All of it before the application runs.
    AtOnce,
    /// By `criu lazy-pages`, which listens before the clock starts.
    OnDemand,
}

impl Memory {
    const fn name(self) -> &'static str {
        match self {
            Self::AtOnce => "criu",
            Self::OnDemand => "criu-lazy",
        }
    }
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Criu {
    pub(super) place: Place,
    workload: Workload,
    memory: Memory,
    pub(super) images: String,
    pub(super) state: State,
}

impl Criu {
    /// Warms the application up and dumps it.
    pub(crate) async fn prepare(place: Place, workload: Workload, memory: Memory) -> Result<Self> {
        place.node.run("sh", &["-c", "[ -e /run/criu.kdat ] || criu check"])?;
        let images = place.directory(&workload, memory.name())?;
        let mut spec = with_mounts(place.pod(&workload, &format!("{}-dump", memory.name())));
        spec.command = ["/bin/sh", "-c", RUN_AT_300, "sh"].map(String::from).into();
        spec.args = workload.command();
        let container = place.direct.run(spec.clone()).await?;
        FirstAnswer::from(&place.node, container.ip(), PATIENCE).at().await?;
        let state = workload.warm_up(&place.node, container.ip())?;
        let init = container.pid().await?.to_string();
        place.inside(&["dump", "--init", &init, "--images", &images])?;
        place.copy(&spec.tmp_dir(), &format!("{images}/tmp"))?;
        container.remove().await?;
        Ok(Self { place, workload, memory, images, state })
    }

    /// A container into which the application can be restored.
    pub(super) async fn waiting(&self, way: &str) -> Result<Container> {
        let spec = waiting(self.place.pod(&self.workload, way));
        let tmp = spec.tmp_dir();
        let pod = self.place.direct.sandbox(spec).await?;
        self.place.copy(&format!("{}/tmp", self.images), &tmp)?;
        let container = pod.create().await?;
        container.start().await?;
        Ok(container)
    }
}

#[async_trait]
impl Contender for Criu {
    async fn once(&self) -> Result<Vec<Value>> {
        let place = &self.place;
        let container = self.waiting(self.memory.name()).await?;
        let init = container.pid().await?.to_string();
        let answer = FirstAnswer::from(&place.node, container.ip(), PATIENCE);
        let mut arguments = vec!["restore", "--init", &init, "--images", &self.images];
        arguments.extend((self.memory == Memory::OnDemand).then_some("--lazy"));
        let report = place.inside(&arguments)?;
        let started: Restored = serde_json::from_str(&report).with_context(|| report.clone())?;
        let since = |us: u64| ms(started.started_us, us);
        let mut values = vec![
            (Metric::Response, since(answer.at().await?)),
            (Metric::Restored, since(started.done_us)),
            (Metric::Full, since(started.full_us)),
        ];
        values.extend(place.usage(container.pid().await?)?);
        self.state.check(&place.node, container.ip())?;
        container.remove().await?;
        Ok(values)
    }

    async fn clean(&self) -> Result<()> {
        self.place.node.run("rm", &["-rf", &self.images])?;
        Ok(())
    }
}

/// A pod whose container only waits and reaps.
pub(crate) fn waiting(spec: PodSpec) -> PodSpec {
    let mut spec = with_mounts(spec);
    spec.command = [INIT, "-P"].map(String::from).into();
    spec.args.clear();
    spec
}

fn with_mounts(mut spec: PodSpec) -> PodSpec {
    spec.mounts.extend([("/usr/bin/catatonit", INIT), (KDAT, KDAT)].map(|(host, inside)| Mount {
        host_path: host.into(),
        container_path: inside.into(),
        readonly: true,
        ..Mount::default()
    }));
    spec
}
