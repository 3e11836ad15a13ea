//! Pods through CRI, in the order in which kubelet asks for things.

use std::net::IpAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use k8s_cri::v1::image_service_client::ImageServiceClient;
use k8s_cri::v1::runtime_service_client::RuntimeServiceClient;
use k8s_cri::v1::{
    ContainerConfig, ContainerFilter, ContainerMetadata, ContainerStatus, ContainerStatusRequest,
    CreateContainerRequest, ExecRequest, ExecSyncRequest, ImageSpec, ListContainersRequest,
    ListPodSandboxRequest, PodSandboxConfig, PodSandboxFilter, PodSandboxStatusRequest, PullImageRequest,
    RemoveContainerRequest, RemoveImageRequest, RemovePodSandboxRequest, RunPodSandboxRequest,
    StartContainerRequest, StatusRequest, StopContainerRequest, StopPodSandboxRequest,
};
use tonic::transport::Channel;
use woodfrog_testnode::Node;

use crate::http;
use crate::pod::PodSpec;

/// A connection to a CRI socket, for pods on one node.
#[derive(Clone, Debug)]
pub struct Kubelet {
    node: Node,
    /// CRI's runtime service.
    pub runtime: RuntimeServiceClient<Channel>,
    /// CRI's image service.
    pub images: ImageServiceClient<Channel>,
}

/// A pod of one container, until [`Pod::remove`].
#[derive(Clone, Debug)]
pub struct Pod {
    kubelet: Kubelet,
    spec: PodSpec,
    config: PodSandboxConfig,
    /// The sandbox's ID.
    pub sandbox: String,
    /// Its address.
    pub ip: IpAddr,
}

/// A container of a pod.
#[derive(Clone, Debug)]
pub struct Container {
    pod: Pod,
    /// The runtime's ID.
    pub id: String,
}

impl Kubelet {
    /// Connects to `socket` (as seen from the host): the shim's, or containerd's own.
    ///
    /// # Errors
    /// Nobody listens, or the runtime is not ready in time.
    pub async fn connect(node: &Node, socket: &Path) -> Result<Self> {
        let channel = containerd_client::connect(socket)
            .await
            .with_context(|| format!("cannot connect to {}", socket.display()))?;
        let kubelet = Self {
            node: node.clone(),
            runtime: RuntimeServiceClient::new(channel.clone()),
            images: ImageServiceClient::new(channel).max_decoding_message_size(16 << 20),
        };
        kubelet.ready().await?;
        Ok(kubelet)
    }

    /// Waits until the runtime serves pods: it listens before that. 20 s at most.
    ///
    /// # Errors
    /// The runtime's last one.
    pub async fn ready(&self) -> Result<()> {
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            match self.runtime.clone().status(StatusRequest { verbose: false }).await {
                Ok(_) => return Ok(()),
                Err(e) if Instant::now() > deadline => return Err(e).context("the runtime is not ready"),
                Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
            }
        }
    }

    /// Pulls an image.
    ///
    /// # Errors
    /// The runtime's.
    pub async fn pull(&self, image: &str) -> Result<String> {
        let request = PullImageRequest { image: Some(image_spec(image)), ..Default::default() };
        Ok(self.images.clone().pull_image(request).await?.into_inner().image_ref)
    }

    /// Removes an image.
    ///
    /// # Errors
    /// The runtime's.
    pub async fn remove_image(&self, image: &str) -> Result<()> {
        self.images.clone().remove_image(RemoveImageRequest { image: Some(image_spec(image)) }).await?;
        Ok(())
    }

    /// Makes the sandbox of a pod, with its address.
    ///
    /// # Errors
    /// The runtime's.
    pub async fn sandbox(&self, spec: PodSpec) -> Result<Pod> {
        let config = spec.sandbox();
        if spec.tmp {
            self.node.run("mkdir", &["-p", "-m", "0777", &spec.tmp_dir()])?;
            // mkdir -m applies to the last directory only when it makes it.
            self.node.run("chmod", &["0777", &spec.tmp_dir()])?;
        }
        let mut runtime = self.runtime.clone();
        let request = RunPodSandboxRequest { config: Some(config), runtime_handler: String::new() };
        let sandbox = runtime.run_pod_sandbox(request).await?.into_inner().pod_sandbox_id;
        self.pod(spec, sandbox).await
    }

    /// The pod and its first container as an earlier kubelet has left them, found as kubelet finds them when it starts: by listing what
    /// the runtime has.
    ///
    /// # Errors
    /// The runtime's, or it has no such pod.
    pub async fn adopt(&self, spec: PodSpec) -> Result<Container> {
        let mut runtime = self.runtime.clone();
        let of_pod = [("io.kubernetes.pod.uid".to_owned(), spec.uid())];
        let filter = PodSandboxFilter { label_selector: of_pod.into(), ..Default::default() };
        let request = ListPodSandboxRequest { filter: Some(filter) };
        let sandboxes = runtime.list_pod_sandbox(request).await?.into_inner().items;
        let sandbox = sandboxes.first().with_context(|| format!("there is no sandbox of {}", spec.name))?;
        let pod = self.pod(spec, sandbox.id.clone()).await?;
        let filter = ContainerFilter { pod_sandbox_id: pod.sandbox.clone(), ..Default::default() };
        let request = ListContainersRequest { filter: Some(filter) };
        let containers = runtime.list_containers(request).await?.into_inner().containers;
        let container = containers.first().with_context(|| format!("{} has no container", pod.spec.name))?;
        Ok(Container { pod, id: container.id.clone() })
    }

    /// A pod whose sandbox is there.
    async fn pod(&self, spec: PodSpec, sandbox: String) -> Result<Pod> {
        let request = PodSandboxStatusRequest { pod_sandbox_id: sandbox.clone(), verbose: false };
        let status = self.runtime.clone().pod_sandbox_status(request).await?.into_inner();
        let ip = status.status.and_then(|s| s.network).map(|n| n.ip).unwrap_or_default();
        let ip = if spec.host_network { "127.0.0.1" } else { &ip };
        let ip = ip.parse().with_context(|| format!("sandbox of {} has no address: {ip:?}", spec.name))?;
        Ok(Pod { kubelet: self.clone(), config: spec.sandbox(), spec, sandbox, ip })
    }

    /// Makes and starts a pod; its image must have been pulled.
    ///
    /// # Errors
    /// The runtime's.
    pub async fn run(&self, spec: PodSpec) -> Result<Container> {
        let container = self.sandbox(spec).await?.create().await?;
        container.start().await?;
        Ok(container)
    }
}

impl Pod {
    /// Creates its container.
    ///
    /// # Errors
    /// The runtime's.
    pub async fn create(&self) -> Result<Container> {
        self.create_from(self.spec.container()).await
    }

    /// Creates another container in it: with this name, from this image, else like the first.
    ///
    /// # Errors
    /// The runtime's.
    pub async fn create_beside(&self, name: &str, image: &str) -> Result<Container> {
        let mut config = self.spec.container();
        config.metadata = Some(ContainerMetadata { name: name.into(), attempt: 0 });
        config.labels.insert("io.kubernetes.container.name".into(), name.into());
        config.log_path = format!("{name}/0.log");
        config.image = Some(image_spec(image));
        self.create_from(config).await
    }

    async fn create_from(&self, config: ContainerConfig) -> Result<Container> {
        let request = CreateContainerRequest {
            pod_sandbox_id: self.sandbox.clone(),
            config: Some(config),
            sandbox_config: Some(self.config.clone()),
        };
        let created = self.kubelet.runtime.clone().create_container(request).await?.into_inner();
        Ok(Container { pod: self.clone(), id: created.container_id })
    }

    /// Stops and removes the pod with its containers and its emptyDir.
    ///
    /// # Errors
    /// The runtime's.
    pub async fn remove(&self) -> Result<()> {
        let mut runtime = self.kubelet.runtime.clone();
        let id = self.sandbox.clone();
        runtime.stop_pod_sandbox(StopPodSandboxRequest { pod_sandbox_id: id.clone() }).await?;
        runtime.remove_pod_sandbox(RemovePodSandboxRequest { pod_sandbox_id: id }).await?;
        if self.spec.tmp {
            self.kubelet.node.run("rm", &["-rf", &format!("/var/lib/kubelet/pods/{}", self.spec.uid())])?;
        }
        Ok(())
    }
}

impl Container {
    /// The pod's address.
    pub fn ip(&self) -> IpAddr {
        self.pod.ip
    }

    /// The same container, for a kubelet that goes elsewhere.
    pub fn through(&self, kubelet: &Kubelet) -> Self {
        let mut other = self.clone();
        other.pod.kubelet = kubelet.clone();
        other
    }

    /// The pod's name.
    pub fn pod_name(&self) -> &str {
        &self.pod.spec.name
    }

    /// Starts it.
    ///
    /// # Errors
    /// The runtime's.
    pub async fn start(&self) -> Result<()> {
        let request = StartContainerRequest { container_id: self.id.clone() };
        self.pod.kubelet.runtime.clone().start_container(request).await?;
        Ok(())
    }

    /// Stops it with a grace period.
    ///
    /// # Errors
    /// The runtime's.
    pub async fn stop(&self, grace: Duration) -> Result<()> {
        let request = StopContainerRequest { container_id: self.id.clone(), timeout: grace.as_secs() as i64 };
        self.pod.kubelet.runtime.clone().stop_container(request).await?;
        Ok(())
    }

    /// Removes the container and its whole pod.
    ///
    /// # Errors
    /// The runtime's.
    pub async fn remove(&self) -> Result<()> {
        self.remove_alone().await?;
        self.pod.remove().await
    }

    /// Removes the container and starts another in its pod, from another image.
    ///
    /// # Errors
    /// The runtime's.
    pub async fn replace(&self, image: &str) -> Result<Self> {
        self.remove_alone().await?;
        self.pod.kubelet.pull(image).await?;
        let mut pod = self.pod.clone();
        pod.spec.image = image.into();
        let container = pod.create().await?;
        container.start().await?;
        Ok(container)
    }

    async fn remove_alone(&self) -> Result<()> {
        self.stop(Duration::ZERO).await?;
        let request = RemoveContainerRequest { container_id: self.id.clone() };
        self.pod.kubelet.runtime.clone().remove_container(request).await?;
        Ok(())
    }

    /// What CRI says of it.
    ///
    /// # Errors
    /// The runtime's.
    pub async fn status(&self) -> Result<ContainerStatus> {
        let request = ContainerStatusRequest { container_id: self.id.clone(), verbose: false };
        let status = self.pod.kubelet.runtime.clone().container_status(request).await?.into_inner().status;
        status.with_context(|| format!("container {} has no status", self.id))
    }

    /// The PID of its PID 1, as the node sees it.
    ///
    /// # Errors
    /// The runtime's, or it does not run.
    pub async fn pid(&self) -> Result<i32> {
        let pid = self.info().await?["pid"].as_i64().and_then(|pid| i32::try_from(pid).ok());
        pid.filter(|pid| *pid > 0).with_context(|| format!("container {} does not run", self.id))
    }

    /// The OCI configuration that the runtime has made of the request.
    ///
    /// # Errors
    /// The runtime's, or it tells none.
    pub async fn runtime_spec(&self) -> Result<serde_json::Value> {
        let spec = self.info().await?["runtimeSpec"].take();
        if spec.is_null() {
            bail!("container {} has no runtimeSpec in its verbose status", self.id);
        }
        Ok(spec)
    }

    async fn info(&self) -> Result<serde_json::Value> {
        let request = ContainerStatusRequest { container_id: self.id.clone(), verbose: true };
        let status = self.pod.kubelet.runtime.clone().container_status(request).await?.into_inner();
        Ok(serde_json::from_str(status.info.get("info").map_or("{}", String::as_str))?)
    }

    /// Waits for its end and returns the exit code.
    ///
    /// # Errors
    /// It runs on for longer than `timeout`.
    pub async fn exit_code(&self, timeout: Duration) -> Result<i32> {
        let deadline = Instant::now() + timeout;
        loop {
            let status = self.status().await?;
            if status.state() == k8s_cri::v1::ContainerState::ContainerExited {
                return Ok(status.exit_code);
            }
            if Instant::now() > deadline {
                bail!("container {} still runs after {timeout:?}", self.id);
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Runs a command in it; its exit code and standard output.
    ///
    /// # Errors
    /// The runtime's.
    pub async fn exec(&self, argv: &[&str]) -> Result<(i32, String)> {
        self.exec_within(argv, 30).await
    }

    /// The same, without a time limit, as kubelet runs `postStart` and `preStop`.
    ///
    /// # Errors
    /// The runtime's.
    pub async fn hook(&self, argv: &[&str]) -> Result<(i32, String)> {
        self.exec_within(argv, 0).await
    }

    async fn exec_within(&self, argv: &[&str], seconds: i64) -> Result<(i32, String)> {
        let request = ExecSyncRequest {
            container_id: self.id.clone(),
            cmd: argv.iter().map(|a| (*a).to_owned()).collect(),
            timeout: seconds,
        };
        let output = self.pod.kubelet.runtime.clone().exec_sync(request).await?.into_inner();
        Ok((output.exit_code, String::from_utf8_lossy(&output.stdout).trim().to_owned()))
    }

    /// Asks for a stream to a command in it, as `kubectl exec` does, and does not connect to it.
    ///
    /// # Errors
    /// The runtime's.
    pub async fn ask_for_exec(&self, argv: &[&str]) -> Result<()> {
        let cmd = argv.iter().map(|a| (*a).to_owned()).collect();
        let request = ExecRequest { container_id: self.id.clone(), cmd, stdout: true, ..Default::default() };
        self.pod.kubelet.runtime.clone().exec(request).await?;
        Ok(())
    }

    /// What it has logged, as `kubectl logs` reads it.
    ///
    /// # Errors
    /// There is no log file.
    pub fn logs(&self) -> Result<String> {
        let path = format!("{}/app/0.log", self.pod.config.log_directory);
        std::fs::read_to_string(self.pod.kubelet.node.path(&path)).with_context(|| path)
    }

    /// `GET path` from its application, asked once.
    ///
    /// # Errors
    /// Nobody listens, or the answer is not 200.
    pub fn get(&self, path: &str) -> Result<String> {
        http::get(&self.pod.kubelet.node, self.pod.ip, path)
    }

    /// Asks its application until it answers.
    ///
    /// # Errors
    /// No answer before `timeout`; what the container has logged.
    pub fn wait(&self, path: &str, timeout: Duration) -> Result<String> {
        http::wait(&self.pod.kubelet.node, self.pod.ip, path, timeout)
            .with_context(|| format!("log of {}:\n{}", self.pod.spec.name, self.logs().unwrap_or_default()))
    }
}

fn image_spec(image: &str) -> ImageSpec {
    ImageSpec { image: image.into(), user_specified_image: image.into(), ..Default::default() }
}
