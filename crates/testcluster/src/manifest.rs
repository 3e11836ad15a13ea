//! `kubectl apply` of a file with one or more objects.

use anyhow::{Context as _, Result};
use kube::api::{Api, DynamicObject, Patch, PatchParams};
use kube::core::GroupVersionKind;
use kube::discovery::Scope;
use kube::{Client, ResourceExt as _};
use serde_json::Value;

/// Applies every object of a YAML text, those without a namespace in `namespace`.
pub(crate) async fn apply(client: &Client, namespace: &str, yaml: &str) -> Result<Vec<DynamicObject>> {
    let documents: Vec<Value> = serde_saphyr::from_multiple(yaml).context("this is not YAML")?;
    let mut applied = Vec::new();
    for document in documents.into_iter().filter(|document| !document.is_null()) {
        let object: DynamicObject = serde_json::from_value(document).context("this is no object")?;
        let types = object.types.as_ref().context("an object without apiVersion and kind")?;
        let kind = GroupVersionKind::try_from(types)?;
        let (resource, capabilities) = kube::discovery::pinned_kind(client, &kind)
            .await
            .with_context(|| format!("the API server has no {} of {}", types.kind, types.api_version))?;
        let namespace = object.namespace().unwrap_or_else(|| namespace.to_owned());
        let name = object.name_any();
        let api = match capabilities.scope {
            Scope::Cluster => Api::<DynamicObject>::all_with(client.clone(), &resource),
            Scope::Namespaced => Api::<DynamicObject>::namespaced_with(client.clone(), &namespace, &resource),
        };
        let parameters = PatchParams::apply("kubectl").force();
        let result = api.patch(&name, &parameters, &Patch::Apply(&object)).await;
        applied.push(result.with_context(|| format!("{} {namespace}/{name} is refused", types.kind))?);
    }
    Ok(applied)
}
