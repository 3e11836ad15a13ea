//! The life of one pod.
//!
//! ```text
//!   sandbox ─► pull, create, start each container ─► look: states, probes, status ─► stop, remove, delete the object
//!                        ▲                              │
//!                        └──── one that has ended ◄─────┘ (by its pod's restartPolicy)
//! ```
//!
//! Every step is repeated until it succeeds or the pod is to go.

use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context as _, Result};
use k8s_cri::v1::{
    ContainerState, ContainerStatusRequest, CreateContainerRequest, PodSandboxConfig,
    PodSandboxStatusRequest, RemoveContainerRequest, RemovePodSandboxRequest, RunPodSandboxRequest,
    StartContainerRequest, StopContainerRequest, StopPodSandboxRequest,
};
use k8s_openapi::api::core::v1::{Container, Pod, PodStatus};
use kube::ResourceExt as _;
use kube::api::{Api, DeleteParams, Patch, PatchParams, Preconditions};
use serde_json::json;
use tokio::sync::watch;

use crate::kubelet::Context;
use crate::probe::Readiness;
use crate::status::{self, Seen};
use crate::translate;

/// How often containers are looked at.
const LOOK: Duration = Duration::from_millis(250);
/// How long a failed step waits, and a container that ends at once.
const AGAIN: Duration = Duration::from_secs(1);

/// A sandbox.
struct Sandbox {
    id: String,
    ip: IpAddr,
    config: PodSandboxConfig,
}

/// A container that has been created.
struct Running {
    id: String,
    readiness: Readiness,
}

/// A pod on this node.
struct Worker {
    context: Context,
    sandbox: Option<Sandbox>,
    containers: Vec<Option<Running>>,
    seen: Vec<Seen>,
    written: Option<PodStatus>,
}

/// Lives a pod until its object is gone and with it all that was made for it.
pub(crate) async fn live(context: Context, mut told: watch::Receiver<Pod>) {
    let mut worker =
        Worker { context, sandbox: None, containers: Vec::new(), seen: Vec::new(), written: None };
    let mut pod = told.borrow_and_update().clone();
    while pod.metadata.deletion_timestamp.is_none() {
        let wait = match worker.step(&pod).await {
            Ok(()) => LOOK,
            Err(e) => {
                eprintln!("kubelet: pod {}: {e:#}", pod.name_any());
                AGAIN
            }
        };
        match tokio::time::timeout(wait, told.changed()).await {
            Err(_) | Ok(Ok(())) => {}
            Ok(Err(_)) => break,
        }
        pod = told.borrow_and_update().clone();
    }
    while let Err(e) = worker.end(&pod).await {
        eprintln!("kubelet: pod {} does not end: {e:#}", pod.name_any());
        tokio::time::sleep(AGAIN).await;
    }
}

impl Worker {
    /// Brings the pod further and says how far it is.
    async fn step(&mut self, pod: &Pod) -> Result<()> {
        let containers = pod.spec.as_ref().map(|spec| spec.containers.clone()).unwrap_or_default();
        self.containers.resize_with(containers.len(), || None);
        self.seen.resize_with(containers.len(), Seen::default);
        let mut outcome = self.begin(pod).await;
        if let Err(e) = &outcome {
            for seen in &mut self.seen {
                seen.waiting = Some(("CreatePodSandboxError".to_owned(), format!("{e:#}")));
            }
        } else {
            for (number, container) in containers.iter().enumerate() {
                outcome = outcome.and(self.container(pod, container, number).await);
            }
        }
        self.report(pod).await?;
        outcome
    }

    /// Makes the sandbox and the volumes.
    async fn begin(&mut self, pod: &Pod) -> Result<()> {
        if self.sandbox.is_some() {
            return Ok(());
        }
        let config = translate::sandbox(pod)?;
        let (node, volumes) = (self.context.node.clone(), translate::volumes(pod)?);
        tokio::task::spawn_blocking(move || {
            volumes.iter().try_for_each(|(_, dir)| {
                node.run("mkdir", &["-p", dir])?;
                node.run("chmod", &["0777", dir]).map(drop)
            })
        })
        .await??;
        let mut runtime = self.context.cri.runtime.clone();
        let request = RunPodSandboxRequest { config: Some(config.clone()), runtime_handler: String::new() };
        let id = runtime.run_pod_sandbox(request).await?.into_inner().pod_sandbox_id;
        let request = PodSandboxStatusRequest { pod_sandbox_id: id.clone(), verbose: false };
        let status = runtime.pod_sandbox_status(request).await?.into_inner().status;
        let ip = status.and_then(|status| status.network).map(|network| network.ip).unwrap_or_default();
        let ip = ip.parse().with_context(|| format!("sandbox {id} has no address: {ip:?}"))?;
        self.sandbox = Some(Sandbox { id, ip, config });
        Ok(())
    }

    /// Starts a container that is not there, looks at one that is.
    async fn container(&mut self, pod: &Pod, container: &Container, number: usize) -> Result<()> {
        if self.containers[number].is_none() {
            let attempt = self.seen[number].restarts.unsigned_abs();
            match self.start(pod, container, attempt).await {
                Ok(running) => self.containers[number] = Some(running),
                Err((reason, e)) => {
                    self.seen[number].waiting = Some((reason.to_owned(), format!("{e:#}")));
                    return Err(e.context(format!("container {}: {reason}", container.name)));
                }
            }
            self.seen[number].waiting = None;
        }
        let (Some(running), Some(sandbox)) = (&mut self.containers[number], &self.sandbox) else {
            return Ok(());
        };
        let seen = &mut self.seen[number];
        let mut runtime = self.context.cri.runtime.clone();
        let request = ContainerStatusRequest { container_id: running.id.clone(), verbose: false };
        let cri = runtime.container_status(request).await?.into_inner().status.context("no status")?;
        let (state, exit_code) = (cri.state(), cri.exit_code);
        seen.cri = Some(cri);
        seen.ready = state == ContainerState::ContainerRunning && {
            let Context { node, cri, .. } = &self.context;
            running.readiness.ask(node, cri, container, &running.id, sandbox.ip).await
        };
        let policy = pod.spec.as_ref().and_then(|spec| spec.restart_policy.as_deref());
        if state == ContainerState::ContainerExited
            && status::restarts(policy, exit_code)
            && running.readiness.age() > AGAIN
        {
            let request = RemoveContainerRequest { container_id: running.id.clone() };
            runtime.remove_container(request).await?;
            seen.restarts += 1;
            self.containers[number] = None;
        }
        Ok(())
    }

    /// Pulls, creates and starts. The error has the reason that kubelet shows.
    async fn start(
        &self,
        pod: &Pod,
        container: &Container,
        attempt: u32,
    ) -> Result<Running, (&'static str, anyhow::Error)> {
        let sandbox = self.sandbox.as_ref().ok_or(("NoSandbox", anyhow::anyhow!("no sandbox")))?;
        let image = container.image.as_deref().unwrap_or_default();
        self.context.cri.pull(image).await.map_err(|e| ("ErrImagePull", e))?;
        let config = translate::container(pod, container, attempt, &sandbox.ip.to_string())
            .map_err(|e| ("CreateContainerConfigError", e))?;
        let mut runtime = self.context.cri.runtime.clone();
        let request = CreateContainerRequest {
            pod_sandbox_id: sandbox.id.clone(),
            config: Some(config),
            sandbox_config: Some(sandbox.config.clone()),
        };
        let created =
            runtime.create_container(request).await.map_err(|e| ("CreateContainerError", e.into()))?;
        let id = created.into_inner().container_id;
        if let Err(e) = runtime.start_container(StartContainerRequest { container_id: id.clone() }).await {
            let _ = runtime.remove_container(RemoveContainerRequest { container_id: id }).await;
            return Err(("RunContainerError", e.into()));
        }
        Ok(Running { id, readiness: Readiness::of(container) })
    }

    /// Writes the pod's status if it is another than before.
    async fn report(&mut self, pod: &Pod) -> Result<()> {
        let ip = self.sandbox.as_ref().map(|sandbox| sandbox.ip.to_string());
        let status = status::of(pod, ip.as_deref(), &self.context.node.address(), &self.seen);
        if pod.status.as_ref() == Some(&status) || self.written.as_ref() == Some(&status) {
            return Ok(());
        }
        // A list is replaced as a whole, so nobody else may have written meanwhile.
        let metadata = json!({ "uid": pod.uid(), "resourceVersion": pod.resource_version() });
        let patch = json!({ "metadata": metadata, "status": status });
        let written =
            self.pods(pod).patch_status(&pod.name_any(), &PatchParams::default(), &Patch::Merge(patch)).await;
        match written {
            Ok(_) => self.written = Some(status),
            // Gone, or another pod of its name is there, or it is to be looked at anew.
            Err(kube::Error::Api(answer)) if answer.code == 404 || answer.code == 409 => {}
            Err(e) => return Err(e).context("its status is refused"),
        }
        Ok(())
    }

    /// Stops and removes what there is, then the object.
    async fn end(&mut self, pod: &Pod) -> Result<()> {
        let grace = pod.metadata.deletion_grace_period_seconds.unwrap_or(1);
        let mut runtime = self.context.cri.runtime.clone();
        let ends = self.containers.iter().flatten().map(|running| {
            let stop = StopContainerRequest { container_id: running.id.clone(), timeout: grace };
            let remove = RemoveContainerRequest { container_id: running.id.clone() };
            let mut runtime = runtime.clone();
            async move {
                runtime.stop_container(stop).await?;
                runtime.remove_container(remove).await
            }
        });
        futures::future::try_join_all(ends).await?;
        if let Some(sandbox) = &self.sandbox {
            let request = StopPodSandboxRequest { pod_sandbox_id: sandbox.id.clone() };
            runtime.stop_pod_sandbox(request).await?;
            let request = RemovePodSandboxRequest { pod_sandbox_id: sandbox.id.clone() };
            runtime.remove_pod_sandbox(request).await?;
        }
        let (node, dir) = (self.context.node.clone(), translate::pod_dir(&pod.uid().unwrap_or_default()));
        tokio::task::spawn_blocking(move || node.run("rm", &["-rf", &dir])).await??;
        let now = DeleteParams {
            grace_period_seconds: Some(0),
            preconditions: Some(Preconditions { uid: pod.uid(), ..Preconditions::default() }),
            ..DeleteParams::default()
        };
        match self.pods(pod).delete(&pod.name_any(), &now).await {
            Err(kube::Error::Api(answer)) if answer.code == 404 || answer.code == 409 => Ok(()),
            result => Ok(result.map(drop)?),
        }
    }

    fn pods(&self, pod: &Pod) -> Api<Pod> {
        Api::namespaced(self.context.client.clone(), &pod.namespace().unwrap_or_default())
    }
}
