//! The ways to get a warm application, and the cold start they are held against.
//!
//! Each contender gets ready once (dump, image) and then, in turn with the others, brings the application up again and
//! again. So all of them see the same machine.

pub(crate) mod cold;
pub(crate) mod containerd;
pub(crate) mod criu;
pub(crate) mod proxy;
pub(crate) mod runc;
pub(crate) mod waiting;
pub(crate) mod woodfrog;

use std::time::Duration;

use anyhow::{Context as _, Result};
use async_trait::async_trait;
use k8s_cri::v1::{ListPodSandboxRequest, RemovePodSandboxRequest, StopPodSandboxRequest};
use woodfrog_testkubelet::{Kubelet, PodSpec};
use woodfrog_testnode::Node;

use crate::inside::Usage;
use crate::report::Metric;
use crate::workload::Workload;

/// No application takes longer to answer, cold on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);

/// Makes an empty directory. On a node that was kept, one of a run that failed may have an image mounted in it.
const FRESH: &str =
    "umount -q \"$1/rootfs\" 2>/dev/null || true; rm -rf --one-file-system \"$1\" && mkdir -p \"$1\"";

/// A value that was measured.
pub(crate) type Value = (Metric, f64);

/// One way to get an application up, ready to be used.
#[async_trait]
pub(crate) trait Contender: Send + Sync {
    /// What getting ready has cost: times and sizes.
    fn preparation(&self) -> Vec<Value> {
        Vec::new()
    }

    /// Brings the application up, measures, checks that its state is there, and removes it. What all contenders measure goes by the
    /// same names, from [`Metric::Response`] on.
    async fn once(&self) -> Result<Vec<Value>>;

    /// Removes what getting ready has made.
    async fn clean(&self) -> Result<()> {
        Ok(())
    }
}

/// What contenders work with.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    /// The node.
    pub(crate) node: Node,
    /// containerd itself.
    pub(crate) direct: Kubelet,
    /// containerd through the shim.
    pub(crate) shim: Kubelet,
    /// The directory of this program and of Woodfrog's in the node.
    pub(crate) binaries: String,
    /// Whether root may read the limits of other users' processes (CAP_SYS_RESOURCE), as CRIU must to dump them.
    pub(crate) dumps_other_users: bool,
}

impl Place {
    /// A pod of an application: uid 1000, read-only root file system, no capability, RuntimeDefault seccomp, an emptyDir at `/tmp`.
    pub(crate) fn pod(&self, workload: &Workload, way: &str) -> PodSpec {
        let pod = PodSpec::new(&format!("{}-{way}", workload.name()), &workload.image());
        PodSpec { args: workload.args(), ..pod }
    }

    /// The same for a runtime that calls CRIU as root: as root, where CRIU cannot dump another user's processes.
    pub(crate) fn pod_for_runtime(&self, workload: &Workload, way: &str) -> PodSpec {
        let pod = self.pod(workload, way);
        if self.dumps_other_users { pod } else { pod.user(0) }
    }

    /// Removes all pods: on a node that was kept, a run that failed may have left some.
    pub(crate) async fn remove_pods(&self) -> Result<()> {
        let mut runtime = self.direct.runtime.clone();
        for pod in runtime.list_pod_sandbox(ListPodSandboxRequest::default()).await?.into_inner().items {
            runtime.stop_pod_sandbox(StopPodSandboxRequest { pod_sandbox_id: pod.id.clone() }).await?;
            runtime.remove_pod_sandbox(RemovePodSandboxRequest { pod_sandbox_id: pod.id }).await?;
        }
        Ok(())
    }

    /// A directory in the node for dumps, the same for all: on disk, read from the page cache.
    pub(crate) fn directory(&self, workload: &Workload, way: &str) -> Result<String> {
        let path = format!("/var/lib/woodfrog-bench/{}-{way}", workload.name());
        self.node.run("sh", &["-c", FRESH, "fresh", &path])?;
        Ok(path)
    }

    /// Makes directory `to` a copy of `from`, with owners, modes and times.
    pub(crate) fn copy(&self, from: &str, to: &str) -> Result<()> {
        self.node.run("sh", &["-c", "rm -rf \"$2\" && cp -a \"$1\" \"$2\"", "copy", from, to])?;
        Ok(())
    }

    /// The program's helper in the node.
    pub(crate) fn inside(&self, arguments: &[&str]) -> Result<String> {
        let program = format!("{}/woodfrog-bench", self.binaries);
        let arguments: Vec<&str> = std::iter::once("inside").chain(arguments.iter().copied()).collect();
        Ok(self.node.run(&program, &arguments)?)
    }

    /// What the processes of a container use, by its PID 1.
    pub(crate) fn usage(&self, init: i32) -> Result<Vec<Value>> {
        let report = self.inside(&["usage", "--init", &init.to_string()])?;
        let usage: Usage = serde_json::from_str(&report).with_context(|| report.clone())?;
        Ok(vec![
            (Metric::PrivateBytes, usage.private_bytes as f64),
            (Metric::Threads, usage.threads as f64),
            (Metric::Cpu, usage.cpu_us as f64 / 1e3),
        ])
    }
}
