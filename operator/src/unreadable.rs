//! Objects that say what this operator does not know: the resources' definitions are newer than it is, or older.
//!
//! One of them must not keep the operator from reading all others, and whoever wrote it has to hear of it.

use std::collections::HashMap;

use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Patch, PatchParams};
use kube::core::error_boundary::InvalidObject;
use kube::core::{ApiResource, DynamicObject};
use kube::{Api, Client, Resource};
use serde_json::json;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tracing::warn;
use woodfrog_api::conditions::{CheckpointCondition, CheckpointReason, PoolCondition};
use woodfrog_api::{Checkpoint, WarmPool};

use crate::events::{Events, Note};

/// Owns the condition here; the operator's own manager owns the whole rest of the status.
const MANAGER: &str = "woodfrog-operator-reader";

/// An object that could not be read.
pub(crate) struct Unreadable {
    resource: ApiResource,
    object: InvalidObject,
}

/// Tells of one.
#[derive(Clone)]
pub(crate) struct Teller(UnboundedSender<Unreadable>);

impl Teller {
    /// A queue of them.
    pub(crate) fn new() -> (Self, UnboundedReceiver<Unreadable>) {
        let (sender, receiver) = unbounded_channel();
        (Self(sender), receiver)
    }

    pub(crate) fn tell<K: Resource<DynamicType = ()>>(&self, object: InvalidObject) {
        // Without a reader the operator ends.
        let _ = self.0.send(Unreadable { resource: ApiResource::erase::<K>(&()), object });
    }
}

/// Writes a condition and an Event to each, once for each reason.
pub(crate) async fn explain(client: Client, mut queue: UnboundedReceiver<Unreadable>) {
    let events = Events::new(client.clone(), MANAGER);
    let mut said = HashMap::new();
    while let Some(unreadable) = queue.recv().await {
        let metadata = &unreadable.object.metadata;
        let uid = metadata.uid.clone().unwrap_or_default();
        // Our own word comes back as a change of the object.
        if said.insert(uid, unreadable.object.error.clone()).as_ref() == Some(&unreadable.object.error) {
            continue;
        }
        let name = format!(
            "{} {}/{}",
            unreadable.resource.kind,
            metadata.namespace.as_deref().unwrap_or_default(),
            metadata.name.as_deref().unwrap_or_default()
        );
        warn!("{name} cannot be read: {}", unreadable.object.error);
        let message = format!(
            "this operator cannot read the object: {}; use an operator and resource definitions of one release",
            unreadable.object.error
        );
        if let Err(e) = write(&client, &unreadable, &message).await {
            warn!("{name}: cannot write the status: {e}");
        }
        let about = ObjectReference {
            api_version: Some(unreadable.resource.api_version.clone()),
            kind: Some(unreadable.resource.kind.clone()),
            name: metadata.name.clone(),
            namespace: metadata.namespace.clone(),
            uid: metadata.uid.clone(),
            ..ObjectReference::default()
        };
        let reason = CheckpointReason::UnsupportedSpec.to_string();
        events.say(&about, &Note { warning: true, reason, text: message }).await;
    }
}

async fn write(client: &Client, unreadable: &Unreadable, message: &str) -> kube::Result<()> {
    let (resource, metadata) = (&unreadable.resource, &unreadable.object.metadata);
    let condition = if resource.kind == Checkpoint::kind(&()) {
        CheckpointCondition::Ready.to_string()
    } else if resource.kind == WarmPool::kind(&()) {
        PoolCondition::Available.to_string()
    } else {
        return Ok(());
    };
    let (Some(name), Some(namespace)) = (&metadata.name, &metadata.namespace) else { return Ok(()) };
    let patch = json!({
        "apiVersion": resource.api_version,
        "kind": resource.kind,
        "metadata": { "name": name, "uid": metadata.uid },
        "status": { "conditions": [{
            "type": condition,
            "status": "False",
            "reason": CheckpointReason::UnsupportedSpec.to_string(),
            "message": message,
            "lastTransitionTime": Time(Timestamp::now()),
            "observedGeneration": metadata.generation,
        }] },
    });
    let objects: Api<DynamicObject> = Api::namespaced_with(client.clone(), namespace, resource);
    let parameters = PatchParams::apply(MANAGER).force();
    objects.patch_status(name, &parameters, &Patch::Apply(&patch)).await.map(drop)
}
