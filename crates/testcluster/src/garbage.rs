//! Deletes pods whose owners are gone, as the garbage collector of a cluster does.

use std::pin::pin;

use futures::{StreamExt as _, stream};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::api::{Api, DeleteParams, DynamicObject, Preconditions};
use kube::core::{ApiResource, GroupVersionKind, TypeMeta};
use kube::runtime::{WatchStreamExt as _, reflector, watcher};
use kube::{Client, ResourceExt as _};
use woodfrog_api::{Checkpoint, WarmPool};

/// What has happened, as far as it matters here.
enum Change {
    /// A pod is new or has changed.
    Pod(Box<Pod>),
    /// An owner may have gone.
    Owners,
    /// A pod has gone, or nothing yet.
    Nothing,
}

/// Collects for as long as it is polled. Owners of which it hears are Checkpoints and WarmPools; one of another kind is
/// looked for when its pod changes.
pub(crate) async fn run(client: Client) {
    let (pods, writer) = reflector::store::<Pod>();
    let watched = watcher(Api::all(client.clone()), watcher::Config::default())
        .default_backoff()
        .reflect(writer)
        .map(|event| match event {
            Ok(watcher::Event::Apply(pod)) => Change::Pod(Box::new(pod)),
            Ok(watcher::Event::InitDone) => Change::Owners,
            _ => Change::Nothing,
        });
    let checkpoints = watcher(Api::<Checkpoint>::all(client.clone()), watcher::Config::default());
    let pools = watcher(Api::<WarmPool>::all(client.clone()), watcher::Config::default());
    let owners = stream::select(
        checkpoints.default_backoff().map(|event| change_of_owners(&event)),
        pools.default_backoff().map(|event| change_of_owners(&event)),
    );
    let mut changes = pin!(stream::select(watched, owners));
    while let Some(change) = changes.next().await {
        let suspects = match change {
            Change::Pod(pod) => vec![std::sync::Arc::new(*pod)],
            Change::Owners => pods.state(),
            Change::Nothing => Vec::new(),
        };
        for pod in suspects {
            if let Err(e) = collect(&client, &pod).await {
                eprintln!("garbage collector: {}: {e}", pod.name_any());
            }
        }
    }
}

fn change_of_owners<K>(event: &watcher::Result<watcher::Event<K>>) -> Change {
    match event {
        Ok(watcher::Event::Delete(_) | watcher::Event::InitDone) => Change::Owners,
        _ => Change::Nothing,
    }
}

/// Deletes a pod that had owners and has none now.
async fn collect(client: &Client, pod: &Pod) -> kube::Result<()> {
    if pod.owner_references().is_empty() || pod.metadata.deletion_timestamp.is_some() {
        return Ok(());
    }
    let namespace = pod.namespace().unwrap_or_default();
    for owner in pod.owner_references() {
        if exists(client, &namespace, owner).await? {
            return Ok(());
        }
    }
    let pods = Api::<Pod>::namespaced(client.clone(), &namespace);
    let mut parameters = DeleteParams::background();
    parameters.preconditions = Some(Preconditions { uid: pod.uid(), ..Preconditions::default() });
    match pods.delete(&pod.name_any(), &parameters).await {
        Err(kube::Error::Api(status)) if status.code == 404 || status.code == 409 => Ok(()),
        result => result.map(drop),
    }
}

/// Asks the API server itself: an owner that nobody has heard of yet may be there.
async fn exists(client: &Client, namespace: &str, owner: &OwnerReference) -> kube::Result<bool> {
    let types = TypeMeta { api_version: owner.api_version.clone(), kind: owner.kind.clone() };
    let Ok(kind) = GroupVersionKind::try_from(&types) else { return Ok(true) };
    let resource = ApiResource::from_gvk(&kind);
    let api = Api::<DynamicObject>::namespaced_with(client.clone(), namespace, &resource);
    Ok(api.get_opt(&owner.name).await?.is_some_and(|found| found.uid().as_ref() == Some(&owner.uid)))
}
