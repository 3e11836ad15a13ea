//! What every reconciler needs.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use k8s_openapi::NamespaceResourceScope;
use kube::{Api, Client, Resource};
use tokio::time::Instant;

use crate::events::Events;
use crate::metrics::Metrics;
use crate::mismatch::Teller;
use crate::pool::Resizing;
use crate::stores::Stores;

/// The first and the longest wait after an error.
const BACKOFF: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(300));

/// How soon a status that only tells of progress may follow the one before: each costs the API server as much as any other.
const PACE: Duration = Duration::from_secs(1);

/// How many failures in a row are more than a moment's.
const REPEATED: u32 = 3;

/// Shared by all reconcilers of a process.
pub struct Context {
    /// The API server.
    pub client: Client,
    /// Namespace of the operator and the agents.
    pub namespace: String,
    /// The agents' service account there.
    pub agent_service_account: String,
    /// Registries (HOST:PORT) that speak plain HTTP.
    pub plain_http: Vec<String>,
    /// What users hear of.
    pub events: Events,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// What has been seen of the cluster.
    pub stores: Stores,
    pub(crate) mismatches: Teller,
    pub(crate) failures: Failures,
    pub(crate) written: Written,
    pub(crate) pace: Pace,
    pub(crate) resizing: Resizing,
}

impl Context {
    /// An API of one namespace.
    pub fn api<K>(&self, namespace: &str) -> Api<K>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>,
    {
        Api::namespaced(self.client.clone(), namespace)
    }
}

/// How often an object's reconciliation has failed in a row, by its UID.
#[derive(Debug, Default)]
pub(crate) struct Failures(Mutex<HashMap<String, u32>>);

impl Failures {
    /// How long to wait after one more failure.
    pub(crate) fn one_more(&self, uid: &str) -> Duration {
        let mut failures = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let count = failures.entry(uid.to_owned()).or_default();
        *count = count.saturating_add(1);
        BACKOFF.0.saturating_mul(1 << (*count - 1).min(16)).min(BACKOFF.1)
    }

    /// Whether it has failed so often that somebody should hear of it.
    pub(crate) fn is_repeated(&self, uid: &str) -> bool {
        let failures = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        failures.get(uid).is_some_and(|count| *count >= REPEATED)
    }

    /// It went well.
    pub(crate) fn forget(&self, uid: &str) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(uid);
    }
}

/// What we have written and the stores do not show yet, by UIDs. An object that is older than our own last word about it must not
/// be judged: its pod may be gone because all went well.
#[derive(Debug, Default)]
pub(crate) struct Written(Mutex<HashMap<String, u64>>);

impl Written {
    /// The object is what the API server made of our request.
    pub(crate) fn note(&self, object: &impl Resource) {
        let Some((uid, version)) = version(object) else { return };
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(uid, version);
    }

    /// Whether we have written the object anew since it was like this.
    pub(crate) fn outdates(&self, object: &impl Resource) -> bool {
        let Some((uid, version)) = version(object) else { return false };
        let mut written = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if written.get(&uid).is_some_and(|ours| *ours > version) {
            return true;
        }
        written.remove(&uid);
        false
    }
}

/// When statuses were written, by the UIDs of their objects.
#[derive(Debug, Default)]
pub(crate) struct Pace(Mutex<HashMap<String, Instant>>);

impl Pace {
    /// The object's status is written now.
    pub(crate) fn note(&self, object: &impl Resource) {
        let now = Instant::now();
        let mut written = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        written.retain(|_, at| now.duration_since(*at) < PACE);
        written.extend(object.meta().uid.clone().map(|uid| (uid, now)));
    }

    /// How long progress has to wait; none if it may be written now.
    pub(crate) fn wait(&self, object: &impl Resource) -> Option<Duration> {
        let written = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let at = written.get(object.meta().uid.as_deref()?)?;
        PACE.checked_sub(at.elapsed()).filter(|wait| !wait.is_zero())
    }
}

/// UID and version of an object. Versions of one resource are numbers that grow ("Resource Versions" in Kubernetes' API concepts).
fn version(object: &impl Resource) -> Option<(String, u64)> {
    let metadata = object.meta();
    Some((metadata.uid.clone()?, metadata.resource_version.as_ref()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::Pod;
    use serde_json::json;

    use super::*;

    #[test]
    fn an_object_is_outdated_until_it_is_what_we_have_written_or_newer() {
        let at = |version: &str| -> Pod {
            serde_json::from_value(json!({ "metadata": { "uid": "a", "resourceVersion": version } })).unwrap()
        };
        let written = Written::default();
        assert!(!written.outdates(&at("99")));
        written.note(&at("100"));
        assert!(written.outdates(&at("99")));
        assert!(!written.outdates(&at("101")));
        assert!(!written.outdates(&at("x")));
    }

    #[test]
    fn progress_waits_for_its_turn() {
        let object =
            |uid: &str| -> Pod { serde_json::from_value(json!({ "metadata": { "uid": uid } })).unwrap() };
        let pace = Pace::default();
        assert_eq!(pace.wait(&object("a")), None);
        pace.note(&object("a"));
        assert!(pace.wait(&object("a")).is_some_and(|wait| wait <= PACE));
        assert_eq!(pace.wait(&object("b")), None);
    }

    #[test]
    fn waits_double_up_to_a_bound_and_begin_anew() {
        let failures = Failures::default();
        let seconds = |failures: &Failures| failures.one_more("a").as_secs();
        assert!(!failures.is_repeated("a"));
        assert_eq!([1, 2, 4], [0; 3].map(|_| seconds(&failures)));
        assert!(failures.is_repeated("a") && !failures.is_repeated("b"));
        assert_eq!((0..40).map(|_| seconds(&failures)).last(), Some(300));
        failures.forget("a");
        assert_eq!(seconds(&failures), 1);
    }
}
