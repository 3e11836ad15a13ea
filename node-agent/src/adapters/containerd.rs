//! The engine's [`Runtime`] on containerd: CRI for what kubelet knows, containerd's own services for tasks,
//! snapshots and content.

mod borrowed;

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use containerd_client::events::TaskCreate;
use containerd_client::services::v1::snapshots::{MountsRequest, snapshots_client::SnapshotsClient};
use containerd_client::services::v1::{
    Container, GetContainerRequest, GetImageRequest, GetRequest, ReadContentRequest, SubscribeRequest,
    containers_client::ContainersClient, content_client::ContentClient, events_client::EventsClient,
    images_client::ImagesClient, tasks_client::TasksClient,
};
use containerd_client::types::Mount;
use futures::{StreamExt, TryStreamExt};
use hyper::body::Bytes;
use k8s_cri::v1::runtime_service_client::RuntimeServiceClient;
use k8s_cri::v1::{ContainerStatusRequest, ExecSyncRequest, ListContainersRequest};
use oci_spec::image::{Arch, Descriptor, ImageIndex, ImageManifest, MediaType, Os};
use oci_spec::runtime::Spec;
use prost::Message as _;
use tokio_util::io::StreamReader;
use tonic::transport::Channel;
use tonic::{Code, Request, Status};
use woodfrog_image::{BlobReader, BlobSource};

use crate::engine::runtime::{
    Borrowed, ContainerInfo, ExecOutput, ImageSource, Layers, Runtime, RuntimeError,
};

/// Where the CRI plugin keeps its objects.
const NAMESPACE: &str = "k8s.io";
/// Largest manifest or config that is read into memory, in bytes (the distribution specification's own bound).
const MAX_DOCUMENT: i64 = 4 << 20;

/// A connection to containerd.
#[derive(Clone, Debug)]
pub struct Containerd {
    socket: PathBuf,
    channel: Channel,
}

impl Containerd {
    /// Connects to containerd's socket; reconnects by itself later.
    ///
    /// # Errors
    /// The socket does not answer.
    pub async fn connect(socket: &Path) -> Result<Self, RuntimeError> {
        let channel = containerd_client::connect(socket).await.map_err(|e| RuntimeError::Call {
            runtime: name(socket),
            operation: "answer".into(),
            message: e.to_string(),
        })?;
        Ok(Self { socket: socket.into(), channel })
    }

    fn failed(&self, operation: String) -> impl FnOnce(Status) -> RuntimeError {
        let runtime = name(&self.socket);
        move |status| RuntimeError::Call { runtime, operation, message: status.message().to_owned() }
    }

    async fn get(&self, id: &str) -> Result<Container, RuntimeError> {
        ContainersClient::new(self.channel.clone())
            .get(namespaced(GetContainerRequest { id: id.into() }))
            .await
            .map_err(self.failed(format!("describe container {id}")))?
            .into_inner()
            .container
            .ok_or_else(|| RuntimeError::Unsupported(format!("containerd knows no container {id}")))
    }

    async fn status(&self, id: &str) -> Result<k8s_cri::v1::ContainerStatus, RuntimeError> {
        RuntimeServiceClient::new(self.channel.clone())
            .container_status(ContainerStatusRequest { container_id: id.into(), verbose: false })
            .await
            .map_err(self.failed(format!("give the status of container {id}")))?
            .into_inner()
            .status
            .ok_or_else(|| RuntimeError::Unsupported(format!("containerd has no status of container {id}")))
    }

    /// What it has of an image; none if it has not got it.
    async fn source(&self, reference: &str) -> Result<Option<ImageSource>, RuntimeError> {
        let got = ImagesClient::new(self.channel.clone())
            .get(namespaced(GetImageRequest { name: reference.into() }))
            .await;
        let image = match got {
            Ok(image) => image.into_inner().image,
            Err(status) if status.code() == Code::NotFound => return Ok(None),
            Err(status) => return Err(self.failed(format!("describe image {reference}"))(status)),
        };
        let Some(target) = image.and_then(|image| image.target) else { return Ok(None) };
        let (digest, manifest) = self.manifest(&target.digest).await?;
        let parsed: ImageManifest = serde_json::from_slice(&manifest)
            .map_err(|e| RuntimeError::Unsupported(format!("image {reference}: unreadable manifest: {e}")))?;
        let config = self.document(parsed.config().digest().as_ref()).await?;
        Ok(Some(ImageSource { reference: reference.into(), digest, manifest, config }))
    }

    async fn document(&self, digest: &str) -> Result<Vec<u8>, RuntimeError> {
        let failed = || self.failed(format!("read {digest} from its content store"));
        let request = ReadContentRequest { digest: digest.into(), offset: 0, size: MAX_DOCUMENT };
        let mut stream = ContentClient::new(self.channel.clone())
            .read(namespaced(request))
            .await
            .map_err(failed())?
            .into_inner();
        let mut bytes = Vec::new();
        while let Some(part) = stream.message().await.map_err(failed())? {
            bytes.extend_from_slice(&part.data);
        }
        Ok(bytes)
    }

    /// The manifest for this machine behind a digest that may name an index.
    async fn manifest(&self, digest: &str) -> Result<(String, Vec<u8>), RuntimeError> {
        let bytes = self.document(digest).await?;
        let Some(index) = serde_json::from_slice::<ImageIndex>(&bytes).ok().filter(is_index) else {
            return Ok((digest.into(), bytes));
        };
        let ours = index.manifests().iter().find(|d| is_this_machine(d)).ok_or_else(|| {
            RuntimeError::Unsupported(format!("index {digest} has no manifest for this machine"))
        })?;
        let digest = ours.digest().to_string();
        let bytes = self.document(&digest).await?;
        Ok((digest, bytes))
    }
}

#[async_trait]
impl Runtime for Containerd {
    async fn containers(&self) -> Result<Vec<String>, RuntimeError> {
        let list = RuntimeServiceClient::new(self.channel.clone())
            .list_containers(ListContainersRequest { filter: None })
            .await
            .map_err(self.failed("list containers".into()))?;
        Ok(list.into_inner().containers.into_iter().map(|c| c.id).collect())
    }

    async fn container(&self, id: &str) -> Result<ContainerInfo, RuntimeError> {
        let (container, status) = tokio::try_join!(self.get(id), self.status(id))?;
        let spec: Spec = container
            .spec
            .ok_or_else(|| RuntimeError::Unsupported(format!("container {id} has no runtime spec")))
            .and_then(|any| {
                serde_json::from_slice(&any.value).map_err(|e| {
                    RuntimeError::Unsupported(format!("container {id}: unreadable runtime spec: {e}"))
                })
            })?;
        // containerd's CRI plugin writes what it knows of the pod into the runtime spec.
        let cri = |key: &str| {
            let annotations = spec.annotations().as_ref();
            annotations.and_then(|a| a.get(&format!("io.kubernetes.cri.{key}"))).cloned().unwrap_or_default()
        };
        Ok(ContainerInfo {
            id: id.into(),
            name: cri("container-name"),
            pod: cri("sandbox-name"),
            namespace: cri("sandbox-namespace"),
            pod_uid: cri("sandbox-uid"),
            image: status.image.map(|i| i.image).unwrap_or_default(),
            image_id: status.image_ref,
            annotations: BTreeMap::from_iter(status.annotations),
            spec,
        })
    }

    async fn made(&self, id: &str) -> Result<i32, RuntimeError> {
        let failed = || self.failed(format!("tell when container {id} is made"));
        let filter = format!("topic==\"/tasks/create\",event.container_id==\"{id}\"");
        let mut events = EventsClient::new(self.channel.clone())
            .subscribe(namespaced(SubscribeRequest { filters: vec![filter] }))
            .await
            .map_err(failed())?
            .into_inner();
        let event = events.message().await.map_err(failed())?.and_then(|envelope| envelope.event);
        event
            .and_then(|any| TaskCreate::decode(&*any.value).ok())
            .map(|task| task.pid as i32)
            .ok_or_else(|| RuntimeError::Unsupported(format!("containerd did not tell of container {id}")))
    }

    async fn pid(&self, id: &str) -> Result<i32, RuntimeError> {
        let process = TasksClient::new(self.channel.clone())
            .get(namespaced(GetRequest { container_id: id.into(), exec_id: String::new() }))
            .await
            .map_err(self.failed(format!("find the process of container {id}")))?
            .into_inner()
            .process;
        match process.map(|p| p.pid) {
            Some(pid) if pid > 0 => Ok(pid as i32),
            _ => Err(RuntimeError::Unsupported(format!("container {id} does not run"))),
        }
    }

    async fn layers(&self, id: &str) -> Result<Layers, RuntimeError> {
        let container = self.get(id).await?;
        let request =
            MountsRequest { snapshotter: container.snapshotter.clone(), key: container.snapshot_key.clone() };
        let mounts = SnapshotsClient::new(self.channel.clone())
            .mounts(namespaced(request))
            .await
            .map_err(self.failed(format!("name the snapshot of container {id}")))?
            .into_inner()
            .mounts;
        overlay_layers(&mounts).ok_or_else(|| {
            RuntimeError::Unsupported(format!(
                "container {id}: snapshotter {} gives no overlay mount; Woodfrog needs overlayfs",
                container.snapshotter
            ))
        })
    }

    async fn image(&self, id: &str) -> Result<ImageSource, RuntimeError> {
        let reference = self.status(id).await?.image_ref;
        let unknown = || RuntimeError::Unsupported(format!("containerd knows no image {reference}"));
        self.source(&reference).await?.ok_or_else(unknown)
    }

    async fn borrow(&self, reference: &str) -> Result<Option<Borrowed>, RuntimeError> {
        self.layers_of_image(reference).await
    }

    async fn give_back(&self, borrowed: &Borrowed) -> Result<(), RuntimeError> {
        self.release(&borrowed.lease).await
    }

    fn blobs(&self) -> Arc<dyn BlobSource> {
        Arc::new(self.clone())
    }

    async fn exec(&self, id: &str, argv: &[String], timeout: Duration) -> Result<ExecOutput, RuntimeError> {
        let request = ExecSyncRequest {
            container_id: id.into(),
            cmd: argv.to_vec(),
            timeout: timeout.as_secs().max(1) as i64,
        };
        let output = RuntimeServiceClient::new(self.channel.clone())
            .exec_sync(request)
            .await
            .map_err(self.failed(format!("run {argv:?} in container {id}")))?
            .into_inner();
        Ok(ExecOutput {
            code: output.exit_code,
            stderr: String::from_utf8_lossy(&output.stderr).trim().to_owned(),
        })
    }
}

#[async_trait]
impl BlobSource for Containerd {
    async fn open(&self, digest: &str, _size: u64) -> io::Result<Option<BlobReader>> {
        let request = ReadContentRequest { digest: digest.into(), offset: 0, size: 0 };
        let mut stream = match ContentClient::new(self.channel.clone()).read(namespaced(request)).await {
            Ok(response) => response.into_inner(),
            Err(status) if status.code() == Code::NotFound => return Ok(None),
            Err(status) => return Err(io::Error::other(status.message().to_owned())),
        };
        // What is missing is only told by the stream itself.
        let first = match stream.message().await {
            Ok(first) => first,
            Err(status) if status.code() == Code::NotFound => return Ok(None),
            Err(status) => return Err(io::Error::other(status.message().to_owned())),
        };
        let rest = stream.map_err(|status| io::Error::other(status.message().to_owned()));
        let parts = futures::stream::iter(first.map(Ok)).chain(rest).map_ok(|part| Bytes::from(part.data));
        Ok(Some(Box::pin(StreamReader::new(parts))))
    }

    fn name(&self) -> String {
        format!("the content store of {}", name(&self.socket))
    }
}

fn name(socket: &Path) -> String {
    format!("containerd at {}", socket.display())
}

fn namespaced<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request
        .metadata_mut()
        .insert("containerd-namespace", tonic::metadata::MetadataValue::from_static(NAMESPACE));
    request
}

/// An index and a manifest differ in their media type only, which may be missing.
fn is_index(index: &ImageIndex) -> bool {
    match index.media_type() {
        Some(MediaType::ImageIndex) => true,
        Some(MediaType::Other(t)) => t.ends_with("manifest.list.v2+json"),
        Some(_) => false,
        None => !index.manifests().is_empty(),
    }
}

fn is_this_machine(descriptor: &Descriptor) -> bool {
    let arch = if cfg!(target_arch = "aarch64") { Arch::ARM64 } else { Arch::Amd64 };
    descriptor.platform().as_ref().is_some_and(|p| *p.os() == Os::Linux && *p.architecture() == arch)
}

/// The directories of an overlay mount. Relative ones do not occur: containerd shortens them only when it mounts.
fn overlay_layers(mounts: &[Mount]) -> Option<Layers> {
    let [mount] = mounts else { return None };
    Some(Layers { lower: lower_layers(mounts)?, upper: overlay_option(mount, "upperdir=")?.into() })
}

fn lower_layers(mounts: &[Mount]) -> Option<Vec<PathBuf>> {
    let [mount] = mounts else { return None };
    Some(overlay_option(mount, "lowerdir=")?.split(':').map(PathBuf::from).collect())
}

fn overlay_option<'m>(mount: &'m Mount, key: &str) -> Option<&'m str> {
    (mount.r#type == "overlay").then(|| mount.options.iter().find_map(|option| option.strip_prefix(key)))?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_overlay_mount_gives_its_layers_topmost_first() {
        let mount = Mount {
            r#type: "overlay".into(),
            options: ["index=off", "workdir=/s/9/work", "upperdir=/s/9/fs", "lowerdir=/s/2/fs:/s/1/fs"]
                .map(String::from)
                .into(),
            ..Mount::default()
        };
        let layers = overlay_layers(&[mount]).unwrap();
        assert_eq!(layers.upper, Path::new("/s/9/fs"));
        assert_eq!(layers.lower, [Path::new("/s/2/fs"), Path::new("/s/1/fs")]);
        assert!(overlay_layers(&[Mount { r#type: "bind".into(), ..Mount::default() }]).is_none());
    }
}
