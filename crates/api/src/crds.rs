//! The CustomResourceDefinitions as they are installed: what the types say, without what only Rust needs.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::CustomResourceExt;
use serde_json::Value;

use crate::{Checkpoint, WarmPool};

/// All of them, with the file name of each in `crds/`.
///
/// # Panics
/// Never: the tests make them.
#[must_use]
pub fn all() -> Vec<(&'static str, CustomResourceDefinition)> {
    vec![("checkpoints.yaml", tidy(Checkpoint::crd())), ("warmpools.yaml", tidy(WarmPool::crd()))]
}

fn tidy(crd: CustomResourceDefinition) -> CustomResourceDefinition {
    let mut value = serde_json::to_value(crd).expect("a definition is serializable");
    walk(&mut value);
    serde_json::from_value(value).expect("a definition without some keywords is one")
}

/// Without `nullable` the API server takes a null for a field that was left out, as it does for fields of its own; with it, rules and
/// readers would meet nulls.
fn walk(value: &mut Value) {
    match value {
        Value::Object(map) => {
            if map.remove("nullable").is_some()
                && let Some(Value::Array(values)) = map.get_mut("enum")
            {
                values.retain(|value| !value.is_null());
            }
            // Lines end where they do in the source.
            if let Some(Value::String(text)) = map.get_mut("description") {
                *text = text.split_whitespace().collect::<Vec<_>>().join(" ");
            }
            map.values_mut().for_each(walk);
        }
        Value::Array(list) => list.iter_mut().for_each(walk),
        _ => {}
    }
}
