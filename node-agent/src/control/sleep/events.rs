//! Events of pods whose thaws fail: what failed, and what to do. Equal ones are counted up by the API server's client.

use k8s_openapi::api::core::v1::{ObjectReference, Pod};
use kube::Resource;
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use tokio::sync::broadcast::error::RecvError;
use tracing::debug;
use woodfrog_api::names;

use crate::control::Context;
use crate::engine::Quarantined;
use crate::engine::container::Container;
use crate::engine::wake::{Failure, What};

/// The longest note that the API server takes, in bytes.
const MAX_NOTE: usize = 1024;

/// Tells of failed thaws until the process ends.
pub(super) async fn tell(context: &Context) {
    let reporter = Reporter { controller: names::AGENT.into(), instance: Some(context.node.clone()) };
    let recorder = Recorder::new(context.client.clone(), reporter);
    let mut changes = context.engine.changes();
    loop {
        let change = match changes.recv().await {
            Ok(change) => change,
            // So many at once say the same.
            Err(RecvError::Lagged(_)) => continue,
            Err(RecvError::Closed) => return,
        };
        let Some(container) = context.engine.by_token(&change.token) else { continue };
        let event = match &change.what {
            What::ThawFailed(failure) => Some(thaw_failed(&container, failure)),
            What::Quarantine => {
                context.engine.quarantined(&container).map(|why| quarantined(&container, &why))
            }
            _ => None,
        };
        if let Some(event) = event
            && let Err(e) = recorder.publish(&event, &reference(&container)).await
        {
            debug!(container = %container.info.display(), "cannot write an Event: {e}");
        }
    }
}

fn thaw_failed(container: &Container, failure: &Failure) -> Event {
    let (name, message) = (&container.info.name, &failure.message);
    let note = format!("container {name} was not thawed: {message}; {}", advice(failure.category));
    // One Event for each kind of failure.
    warning("ThawFailed", failure.category, note)
}

fn quarantined(container: &Container, quarantined: &Quarantined) -> Event {
    let (name, minutes) = (&container.info.name, quarantined.left.as_secs().div_ceil(60));
    let note = format!(
        "container {name}: {}; it is thawed again in {minutes} minutes, or make its Checkpoint anew",
        quarantined.why
    );
    warning("ImageQuarantined", "quarantine", note)
}

fn warning(reason: &str, action: &str, mut note: String) -> Event {
    let end = (0..=note.len().min(MAX_NOTE)).rev().find(|end| note.is_char_boundary(*end)).unwrap_or(0);
    note.truncate(end);
    Event {
        type_: EventType::Warning,
        reason: reason.into(),
        note: Some(note),
        action: action.into(),
        secondary: None,
    }
}

/// What to do about failures of a category, see [`crate::engine::thaw::ThawError::category`].
fn advice(category: &str) -> &'static str {
    match category {
        "incompatible" => "add nodes like the one where it was frozen, or freeze it on the least capable one",
        "image" | "volume" => "make its Checkpoint anew",
        "policy" | "seccomp" => "give the pod the security context with which it was frozen",
        _ => "`woodfrog logs` on its node says more",
    }
}

fn reference(container: &Container) -> ObjectReference {
    let info = &container.info;
    ObjectReference {
        api_version: Some(Pod::api_version(&()).into()),
        kind: Some(Pod::kind(&()).into()),
        name: Some(info.pod.clone()),
        namespace: Some(info.namespace.clone()),
        uid: Some(info.pod_uid.clone()),
        ..ObjectReference::default()
    }
}
