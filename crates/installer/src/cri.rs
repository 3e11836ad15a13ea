//! One question to a CRI socket: who is there?

use std::path::Path;
use std::time::Duration;

use k8s_cri::v1::VersionRequest;
use k8s_cri::v1::runtime_service_client::RuntimeServiceClient;
use tonic::transport::Endpoint;

use crate::Root;

/// The socket's path on the host in an endpoint as kubelet takes it: `unix:///PATH` or the path alone.
pub(crate) fn socket(endpoint: &str) -> Option<&str> {
    let path = endpoint.strip_prefix("unix://").unwrap_or(endpoint);
    path.starts_with('/').then_some(path)
}

/// The name of the runtime at an endpoint of the host. The error says what went wrong.
pub(crate) fn version(root: &Root, endpoint: &str, patience: Duration) -> Result<String, String> {
    let Some(path) = socket(endpoint) else { return Err("it is no unix socket".into()) };
    let path = resolve(root, path);
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|e| e.to_string())?;
    runtime.block_on(async {
        let asked = tokio::time::timeout(patience, ask(&path)).await;
        asked.unwrap_or_else(|_| Err(format!("no answer within {} s", patience.as_secs_f32())))
    })
}

/// `/var/run` is a link to `/run` on most hosts, and the socket may be a link itself.
fn resolve(root: &Root, path: &str) -> std::path::PathBuf {
    let found = root.path(path);
    match std::fs::read_link(&found) {
        Ok(target) => root.path(Path::new(path).parent().unwrap_or(Path::new("/")).join(target)),
        Err(_) => found,
    }
}

async fn ask(path: &Path) -> Result<String, String> {
    let endpoint = Endpoint::from_shared(format!("unix://{}", path.display())).map_err(|e| chain(&e))?;
    let channel = endpoint.connect().await.map_err(|e| chain(&e))?;
    let request = VersionRequest { version: "v1".into() };
    let answer = RuntimeServiceClient::new(channel).version(request).await;
    answer.map(|answer| answer.into_inner().runtime_name).map_err(|status| status.message().to_owned())
}

/// An error with its causes, since tonic's outermost says only "transport error".
fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |e| e.source());
    causes.last().map(ToString::to_string).unwrap_or_default()
}
