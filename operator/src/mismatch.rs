//! An operator and resource definitions of different releases: objects that say what this operator does not know, and definitions
//! that do not know what this operator writes.
//!
//! One such object must not keep the operator from all others, and whoever wrote it has to hear of it.

use std::collections::HashMap;
use std::fmt::Display;

use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, ObjectMeta, Time};
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

/// Owns the conditions here; the operator's own manager owns the whole rest of the status.
const MANAGER: &str = "woodfrog-operator-reader";

/// What the API server says of a field that its definition of the resource lacks, when it is applied.
const UNKNOWN_FIELD: &str = "field not declared in schema";

/// What is wrong with an object.
enum Mismatch {
    /// It cannot be read: the definitions are newer.
    Unreadable(String),
    /// Its status cannot be written: they are older.
    Unwritable(String),
    /// Nothing any more.
    Over,
}

struct Complaint {
    resource: ApiResource,
    metadata: ObjectMeta,
    mismatch: Mismatch,
}

/// Tells of them.
#[derive(Clone, Debug)]
pub(crate) struct Teller(UnboundedSender<Complaint>);

/// What has been told.
pub(crate) struct Told(UnboundedReceiver<Complaint>);

impl Teller {
    /// A queue of them.
    pub(crate) fn new() -> (Self, Told) {
        let (sender, receiver) = unbounded_channel();
        (Self(sender), Told(receiver))
    }

    /// An object that could not be read.
    pub(crate) fn unreadable<K: Resource<DynamicType = ()>>(&self, object: InvalidObject) {
        self.tell::<K>(object.metadata, Mismatch::Unreadable(object.error));
    }

    /// An object at which work has failed with this error: it may be that the API server does not know what was written.
    pub(crate) fn failed<K: Resource<DynamicType = ()>>(&self, object: &K, error: &impl Display) {
        let error = error.to_string();
        if error.contains(UNKNOWN_FIELD) {
            self.tell::<K>(object.meta().clone(), Mismatch::Unwritable(error));
        }
    }

    /// An object with these conditions whose status has been written: if it says that it cannot be, that is over.
    pub(crate) fn written<K: Resource<DynamicType = ()>>(&self, object: &K, conditions: &[Condition]) {
        let reconciled = CheckpointCondition::Reconciled.to_string();
        if conditions.iter().any(|condition| condition.type_ == reconciled) {
            self.tell::<K>(object.meta().clone(), Mismatch::Over);
        }
    }

    fn tell<K: Resource<DynamicType = ()>>(&self, metadata: ObjectMeta, mismatch: Mismatch) {
        // Without a reader the operator ends.
        let _ = self.0.send(Complaint { resource: ApiResource::erase::<K>(&()), metadata, mismatch });
    }
}

impl Told {
    /// Writes a condition and an Event to each, once for each reason, and takes the condition back.
    pub(crate) async fn explain(mut self, client: Client) {
        let events = Events::new(client.clone(), MANAGER);
        let mut said = HashMap::new();
        while let Some(complaint) = self.0.recv().await {
            let uid = complaint.metadata.uid.clone().unwrap_or_default();
            let Some(explanation) = complaint.explanation() else {
                said.remove(&uid);
                complaint.write(&client, None).await;
                continue;
            };
            // Our own word comes back as a change of the object.
            if said.get(&uid) == Some(&explanation.message) {
                continue;
            }
            warn!("{}: {}", complaint.name(), explanation.message);
            if complaint.write(&client, Some(&explanation)).await {
                said.insert(uid, explanation.message.clone());
            }
            let note = Note {
                warning: true,
                reason: explanation.reason.to_string(),
                text: explanation.message.clone(),
            };
            events.say(&complaint.reference(), &note).await;
        }
    }
}

struct Explanation {
    /// None on an object that is not ours.
    condition: Option<String>,
    reason: CheckpointReason,
    message: String,
}

impl Complaint {
    /// What to say; none if it is over.
    fn explanation(&self) -> Option<Explanation> {
        Some(match &self.mismatch {
            Mismatch::Over => return None,
            Mismatch::Unreadable(error) => Explanation {
                condition: if self.is_a::<Checkpoint>() {
                    Some(CheckpointCondition::Ready.to_string())
                } else if self.is_a::<WarmPool>() {
                    Some(PoolCondition::Available.to_string())
                } else {
                    None
                },
                reason: CheckpointReason::UnsupportedSpec,
                message: format!(
                    "this operator cannot read the object: {error}; use an operator and resource definitions of one release"
                ),
            },
            Mismatch::Unwritable(error) => Explanation {
                condition: Some(CheckpointCondition::Reconciled.to_string()),
                reason: CheckpointReason::OutdatedDefinition,
                message: format!(
                    "the API server does not know what this operator writes: {error}; its resource definitions are older than the operator: apply those of the operator's release, which are in the chart's crds/"
                ),
            },
        })
    }

    fn is_a<K: Resource<DynamicType = ()>>(&self) -> bool {
        self.resource.kind == K::kind(&())
    }

    fn name(&self) -> String {
        let metadata = &self.metadata;
        let part = |part: &Option<String>| part.clone().unwrap_or_default();
        format!("{} {}/{}", self.resource.kind, part(&metadata.namespace), part(&metadata.name))
    }

    fn reference(&self) -> ObjectReference {
        ObjectReference {
            api_version: Some(self.resource.api_version.clone()),
            kind: Some(self.resource.kind.clone()),
            name: self.metadata.name.clone(),
            namespace: self.metadata.namespace.clone(),
            uid: self.metadata.uid.clone(),
            ..ObjectReference::default()
        }
    }

    /// Writes the condition, or none. Whether that was done, or there is nowhere to write it.
    async fn write(&self, client: &Client, explanation: Option<&Explanation>) -> bool {
        let (resource, metadata) = (&self.resource, &self.metadata);
        let (Some(name), Some(namespace)) = (&metadata.name, &metadata.namespace) else { return true };
        if explanation.is_some_and(|explanation| explanation.condition.is_none()) {
            return true;
        }
        let condition = explanation.map(|explanation| {
            json!({
                "type": explanation.condition,
                "status": "False",
                "reason": explanation.reason.to_string(),
                "message": explanation.message,
                "lastTransitionTime": Time(Timestamp::now()),
                "observedGeneration": metadata.generation,
            })
        });
        let patch = json!({
            "apiVersion": resource.api_version,
            "kind": resource.kind,
            "metadata": { "name": name, "uid": metadata.uid },
            "status": { "conditions": condition.into_iter().collect::<Vec<_>>() },
        });
        let objects: Api<DynamicObject> = Api::namespaced_with(client.clone(), namespace, resource);
        let parameters = PatchParams::apply(MANAGER).force();
        let written = objects.patch_status(name, &parameters, &Patch::Apply(&patch)).await;
        if let Err(e) = &written {
            warn!("{}: cannot write the status: {e}", self.name());
        }
        written.is_ok()
    }
}
