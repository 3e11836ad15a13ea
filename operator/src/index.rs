//! Finds stored objects by what they refer to, so that a look at one costs the same however many there are.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};

use kube::{Resource, ResourceExt};
use woodfrog_api::WorkloadKind;

/// What an object is found by.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Key {
    /// The UID of an owner.
    Owner(String),
    /// The image that is pushed.
    Image(String),
    /// A Checkpoint: namespace and name.
    Checkpoint(String, String),
    /// A workload: kind, namespace and name.
    Workload(WorkloadKind, String, String),
}

/// The objects of a store by their keys; shares the objects with the store.
pub(crate) struct Index<K> {
    keys: fn(&K) -> Vec<Key>,
    entries: Arc<RwLock<Entries<K>>>,
}

struct Entries<K> {
    found: HashMap<Key, HashMap<String, Arc<K>>>,
    /// What an object is found by now, by its UID.
    keys: HashMap<String, Vec<Key>>,
}

impl<K> Clone for Index<K> {
    fn clone(&self) -> Self {
        Self { keys: self.keys, entries: self.entries.clone() }
    }
}

impl<K: Resource> Index<K> {
    /// An index without objects. `keys`: what an object is found by.
    pub(crate) fn new(keys: fn(&K) -> Vec<Key>) -> Self {
        let entries = Entries { found: HashMap::new(), keys: HashMap::new() };
        Self { keys, entries: Arc::new(RwLock::new(entries)) }
    }

    /// All that are found by a key, in no order.
    pub(crate) fn get(&self, key: &Key) -> Vec<Arc<K>> {
        let entries = self.entries.read().unwrap_or_else(PoisonError::into_inner);
        entries.found.get(key).map(|found| found.values().cloned().collect()).unwrap_or_default()
    }

    /// An object is new or has changed.
    pub(crate) fn put(&self, object: Arc<K>) {
        let keys = (self.keys)(&object);
        self.entries.write().unwrap_or_else(PoisonError::into_inner).put(object, keys);
    }

    /// An object has gone.
    pub(crate) fn remove(&self, object: &K) {
        let uid = object.uid().unwrap_or_default();
        self.entries.write().unwrap_or_else(PoisonError::into_inner).remove(&uid);
    }

    /// These are all that there are.
    pub(crate) fn replace(&self, objects: Vec<Arc<K>>) {
        let mut entries = self.entries.write().unwrap_or_else(PoisonError::into_inner);
        entries.found.clear();
        entries.keys.clear();
        for object in objects {
            let keys = (self.keys)(&object);
            entries.put(object, keys);
        }
    }
}

impl<K: Resource> Entries<K> {
    fn put(&mut self, object: Arc<K>, keys: Vec<Key>) {
        let uid = object.uid().unwrap_or_default();
        self.remove(&uid);
        if keys.is_empty() {
            return;
        }
        for key in &keys {
            self.found.entry(key.clone()).or_default().insert(uid.clone(), object.clone());
        }
        self.keys.insert(uid, keys);
    }

    fn remove(&mut self, uid: &str) {
        for key in self.keys.remove(uid).unwrap_or_default() {
            if let Some(found) = self.found.get_mut(&key) {
                found.remove(uid);
                if found.is_empty() {
                    self.found.remove(&key);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::Pod;
    use serde_json::json;

    use super::*;

    fn pod(uid: &str, owner: &str) -> Arc<Pod> {
        let owner = json!({ "apiVersion": "v1", "kind": "Pod", "name": owner, "uid": owner });
        let metadata = json!({ "uid": uid, "ownerReferences": [owner] });
        Arc::new(serde_json::from_value(json!({ "metadata": metadata })).unwrap())
    }

    fn found(index: &Index<Pod>, owner: &str) -> Vec<String> {
        let mut found: Vec<_> =
            index.get(&Key::Owner(owner.into())).iter().filter_map(|pod| pod.uid()).collect();
        found.sort();
        found
    }

    #[test]
    fn objects_are_found_by_what_they_refer_to_now() {
        let index = Index::new(|pod: &Pod| {
            pod.owner_references().iter().map(|owner| Key::Owner(owner.uid.clone())).collect()
        });
        for (uid, owner) in [("a", "x"), ("b", "x"), ("c", "y"), ("b", "y")] {
            index.put(pod(uid, owner));
        }
        assert_eq!(
            (found(&index, "x"), found(&index, "y")),
            (vec!["a".into()], vec!["b".into(), "c".into()])
        );
        index.remove(&pod("c", "y"));
        assert_eq!(found(&index, "y"), ["b"]);
        index.replace(vec![pod("d", "z")]);
        assert_eq!((found(&index, "x"), found(&index, "z")), (vec![], vec!["d".into()]));
    }
}
