//! Events: what `kubectl describe` tells of an object.

use k8s_openapi::api::core::v1::ObjectReference;
use kube::Client;
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use tracing::debug;

/// The longest note that the API server takes, in bytes.
const MAX_NOTE: usize = 1024;

/// Writes Events; equal ones are counted up instead of repeated.
#[derive(Clone)]
pub struct Events(Recorder);

impl Events {
    /// Events of the operator replica that is called `identity`.
    pub(crate) fn new(client: Client, identity: &str) -> Self {
        let reporter = Reporter { controller: "woodfrog-operator".into(), instance: Some(identity.into()) };
        Self(Recorder::new(client, reporter))
    }

    /// Says something about an object. That it could not be said is no reason to stop.
    pub(crate) async fn say(&self, about: &ObjectReference, note: &Note) {
        let event = Event {
            type_: if note.warning { EventType::Warning } else { EventType::Normal },
            reason: note.reason.clone(),
            note: Some(truncated(&note.text)),
            action: note.reason.clone(),
            secondary: None,
        };
        if let Err(e) = self.0.publish(&event, about).await {
            debug!("cannot write an Event: {e}");
        }
    }
}

/// What an Event says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Note {
    /// Somebody should look at it.
    pub warning: bool,
    /// One of a bounded set of words.
    pub reason: String,
    /// A sentence.
    pub text: String,
}

fn truncated(text: &str) -> String {
    let end = (0..=text.len().min(MAX_NOTE)).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
    text[..end].to_owned()
}
