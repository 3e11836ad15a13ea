//! What the engine needs of the container runtime. containerd's adapter is `adapters::containerd`.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use oci_spec::runtime::Spec;
use woodfrog_image::BlobSource;

/// A container as the runtime knows it.
#[derive(Clone, Debug)]
pub struct ContainerInfo {
    /// The runtime's ID.
    pub id: String,
    /// Name in its pod.
    pub name: String,
    /// Name of its pod.
    pub pod: String,
    /// Namespace of its pod.
    pub namespace: String,
    /// UID of its pod.
    pub pod_uid: String,
    /// Reference of its image, as it was asked for.
    pub image: String,
    /// The runtime's key of exactly that image.
    pub image_id: String,
    /// Annotations of the container.
    pub annotations: BTreeMap<String, String>,
    /// What the runtime was told to run.
    pub spec: Spec,
}

impl ContainerInfo {
    /// `NAMESPACE/POD/CONTAINER`, for logs and errors.
    pub fn display(&self) -> String {
        format!("{}/{}/{}", self.namespace, self.pod, self.name)
    }
}

/// Where the root file system of a container lies.
#[derive(Clone, Debug)]
pub struct Layers {
    /// Directories of the image's layers, topmost first.
    pub lower: Vec<PathBuf>,
    /// What the container has written.
    pub upper: PathBuf,
}

/// Manifest and config of an image, as stored.
#[derive(Clone, Debug)]
pub struct ImageSource {
    /// A reference that names exactly this image: `registry/repository@digest`.
    pub reference: String,
    /// Digest of its manifest.
    pub digest: String,
    /// The manifest's bytes.
    pub manifest: Vec<u8>,
    /// The config's bytes.
    pub config: Vec<u8>,
}

/// The layers of an image, which stay as long as they are not given back, or for some minutes.
#[derive(Clone, Debug)]
pub struct Borrowed {
    /// Digest of its manifest.
    pub digest: String,
    /// They.
    pub layers: Layers,
    /// What the runtime calls that.
    pub lease: String,
}

/// How a command in a container ended.
#[derive(Clone, Debug)]
pub struct ExecOutput {
    /// Its exit code.
    pub code: i32,
    /// Its standard error, as the runtime keeps it.
    pub stderr: String,
}

/// Why the runtime could not answer.
#[derive(Debug, thiserror::Error)]
pub enum RuntimeError {
    /// It refused or could not be reached.
    #[error("{runtime} failed to {operation}: {message}")]
    Call {
        /// Which runtime, with its socket.
        runtime: String,
        /// What was asked, naming its object.
        operation: String,
        /// What it said.
        message: String,
    },
    /// It answered something that Woodfrog cannot work with.
    #[error("{0}")]
    Unsupported(String),
}

/// The container runtime of this node.
#[async_trait]
pub trait Runtime: Send + Sync {
    /// IDs of all containers.
    async fn containers(&self) -> Result<Vec<String>, RuntimeError>;
    /// What the runtime knows of a container.
    async fn container(&self, id: &str) -> Result<ContainerInfo, RuntimeError>;
    /// Waits until the runtime makes the container's PID 1; its PID on the host. It is in its namespaces and cgroups
    /// then, but has not executed the container's program yet.
    async fn made(&self, id: &str) -> Result<i32, RuntimeError>;
    /// PID of the container's PID 1 on the host; an error if it does not run.
    async fn pid(&self, id: &str) -> Result<i32, RuntimeError>;
    /// Where its root file system lies.
    async fn layers(&self, id: &str) -> Result<Layers, RuntimeError>;
    /// The image that a container was made from.
    async fn image(&self, id: &str) -> Result<ImageSource, RuntimeError>;
    /// The layers of an image that no container need have; none if it is not on this node, or not unpacked. To be given back.
    async fn borrow(&self, reference: &str) -> Result<Option<Borrowed>, RuntimeError>;
    /// Gives them back.
    async fn give_back(&self, borrowed: &Borrowed) -> Result<(), RuntimeError>;
    /// The runtime's store of image blobs.
    fn blobs(&self) -> Arc<dyn BlobSource>;
    /// Runs a command in a container.
    async fn exec(&self, id: &str, argv: &[String], timeout: Duration) -> Result<ExecOutput, RuntimeError>;
}
