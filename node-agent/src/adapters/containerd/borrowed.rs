//! The layers of an image that no container may have: a read-only snapshot on top of them, under a lease, says where they lie.

use std::collections::HashMap;
use std::time::{Duration, SystemTime};

use containerd_client::services::v1::leases_client::LeasesClient;
use containerd_client::services::v1::snapshots::{ViewSnapshotRequest, snapshots_client::SnapshotsClient};
use containerd_client::services::v1::{CreateRequest, DeleteRequest};
use k8s_openapi::jiff::Timestamp;
use tonic::{Code, Request};

use super::{Containerd, lower_layers, namespaced};
use crate::engine::runtime::{Borrowed, Layers, RuntimeError};

/// The snapshotter that containerd's CRI plugin uses unless it is told otherwise.
const SNAPSHOTTER: &str = "overlayfs";
/// After this containerd cleans up behind an agent that has died.
const EXPIRES: Duration = Duration::from_secs(600);

impl Containerd {
    /// See [`crate::engine::runtime::Runtime::borrow`].
    pub(super) async fn layers_of_image(&self, reference: &str) -> Result<Option<Borrowed>, RuntimeError> {
        let Some(source) = self.source(reference).await? else { return Ok(None) };
        let unreadable = |e: serde_json::Error| {
            RuntimeError::Unsupported(format!("image {reference}: unreadable config: {e}"))
        };
        let config: serde_json::Value = serde_json::from_slice(&source.config).map_err(unreadable)?;
        let diff_ids = config["rootfs"]["diff_ids"].as_array().into_iter().flatten();
        let diff_ids: Vec<&str> = diff_ids.filter_map(serde_json::Value::as_str).collect();

        let mut random = [0; 8];
        let _ = rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty());
        let key = format!("woodfrog-ahead-{:016x}", u64::from_ne_bytes(random));
        let expires = Timestamp::try_from(SystemTime::now() + EXPIRES).unwrap_or(Timestamp::MAX).to_string();
        let lease = CreateRequest {
            id: key.clone(),
            labels: HashMap::from([("containerd.io/gc.expire".to_owned(), expires)]),
        };
        LeasesClient::new(self.channel.clone())
            .create(namespaced(lease))
            .await
            .map_err(self.failed("grant a lease".into()))?;
        let view = ViewSnapshotRequest {
            snapshotter: SNAPSHOTTER.into(),
            key: key.clone(),
            parent: chain_id(&diff_ids),
            ..ViewSnapshotRequest::default()
        };
        let viewed = SnapshotsClient::new(self.channel.clone()).view(leased(view, &key)).await;
        let lower = match viewed {
            Ok(viewed) => lower_layers(&viewed.into_inner().mounts),
            // It is there, but not unpacked, or by another snapshotter.
            Err(status) if status.code() == Code::NotFound => {
                self.release(&key).await?;
                return Ok(None);
            }
            Err(status) => {
                self.release(&key).await?;
                return Err(self.failed(format!("look at the layers of {reference}"))(status));
            }
        };
        let layers = Layers { lower: lower.unwrap_or_default(), upper: Default::default() };
        Ok(Some(Borrowed { digest: source.digest, layers, lease: key }))
    }

    /// Ends a lease, and with it what was made under it.
    pub(super) async fn release(&self, lease: &str) -> Result<(), RuntimeError> {
        LeasesClient::new(self.channel.clone())
            .delete(namespaced(DeleteRequest { id: lease.into(), sync: true }))
            .await
            .map(drop)
            .map_err(self.failed("end a lease".into()))
    }
}

fn leased<T>(message: T, lease: &str) -> Request<T> {
    let mut request = namespaced(message);
    if let Ok(lease) = lease.parse() {
        request.metadata_mut().insert("containerd-lease", lease);
    }
    request
}

/// What a snapshotter calls an image's uppermost layer (the OCI image specification's chain ID).
fn chain_id(diff_ids: &[&str]) -> String {
    let chained = |below: String, id: &str| woodfrog_image::sha256(format!("{below} {id}").as_bytes());
    let ids = diff_ids.iter().copied();
    ids.fold(String::new(), |below, id| if below.is_empty() { id.to_owned() } else { chained(below, id) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chain_id_is_the_digest_of_what_is_below_and_of_the_layer() {
        assert_eq!(chain_id(&["sha256:a"]), "sha256:a");
        let two = chain_id(&["sha256:a", "sha256:b"]);
        // printf 'sha256:a sha256:b' | sha256sum
        assert_eq!(two, "sha256:970a948bffa8de94d6e22d747ba8c95030e6e546909f98f54e99a13005e173a8");
        let three = chain_id(&["sha256:a", "sha256:b", "sha256:c"]);
        assert_eq!(three, woodfrog_image::sha256(format!("{two} sha256:c").as_bytes()));
    }
}
