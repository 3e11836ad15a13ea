//! The examples of the documentation: an API server takes them, and what they refer to is there.
#![forbid(unsafe_code)]

use std::path::Path;

use anyhow::{Context as _, Result, bail, ensure};
use k8s_openapi::api::autoscaling::v2::HorizontalPodAutoscaler;
use kube::api::{Api, ApiResource, DynamicObject, GroupVersionKind, PostParams};
use serde_json::Value;
use woodfrog_tests::cluster::Cluster;

const EXAMPLES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/examples");

/// Kinds that the test server has; its resources are those of Kubernetes and ours.
const SERVED: [&str; 4] = ["Checkpoint", "WarmPool", "Deployment", "Service"];

#[tokio::test]
async fn api_the_examples_are_such_that_a_cluster_takes_them() -> Result<()> {
    let Some(cluster) = Cluster::new("examples").await? else { return Ok(()) };
    let mut tried = 0;
    for entry in std::fs::read_dir(EXAMPLES)? {
        let path = entry?.path();
        let text = std::fs::read_to_string(&path)?;
        let documents: Vec<Value> =
            serde_saphyr::from_multiple(&text).with_context(|| path.display().to_string())?;
        for document in &documents {
            try_object(&cluster, document).await.with_context(|| path.display().to_string())?;
            scales_a_pool(document, &documents).with_context(|| path.display().to_string())?;
        }
        tried += documents.len();
    }
    ensure!(tried >= 10, "only {tried} objects in {}", Path::new(EXAMPLES).display());
    Ok(())
}

async fn try_object(cluster: &Cluster, document: &Value) -> Result<()> {
    let kind = document["kind"].as_str().context("no kind")?;
    if !SERVED.contains(&kind) {
        return match kind {
            "HorizontalPodAutoscaler" => assert_read::<HorizontalPodAutoscaler>(document),
            // Of KEDA; what it scales is looked at below.
            "ScaledObject" => Ok(()),
            other => bail!("no test knows a {other}"),
        };
    }
    let object: DynamicObject = serde_json::from_value(document.clone())?;
    let types = object.types.clone().context("no apiVersion")?;
    let resource = ApiResource::from_gvk(&GroupVersionKind::try_from(&types)?);
    let objects =
        Api::<DynamicObject>::namespaced_with(cluster.client.clone(), &cluster.namespace, &resource);
    let dry = PostParams { dry_run: true, ..PostParams::default() };
    let made = objects.create(&dry, &object).await.with_context(|| kind.to_owned())?;
    ensure!(holds(&serde_json::to_value(made)?["spec"], &document["spec"]), "{kind}: a field is not known");
    Ok(())
}

/// Each field of the document must be one of the type's.
fn assert_read<K: serde::Serialize + serde::de::DeserializeOwned>(document: &Value) -> Result<()> {
    let object: K = serde_json::from_value(document.clone())?;
    ensure!(holds(&serde_json::to_value(object)?, document), "a field is not known");
    Ok(())
}

/// Whether `whole` has everything that `part` has.
fn holds(whole: &Value, part: &Value) -> bool {
    match (whole, part) {
        (Value::Object(whole), Value::Object(part)) => {
            part.iter().all(|(key, value)| whole.get(key).is_some_and(|found| holds(found, value)))
        }
        (Value::Array(whole), Value::Array(part)) => {
            whole.len() == part.len() && whole.iter().zip(part).all(|(whole, part)| holds(whole, part))
        }
        _ => whole == part,
    }
}

/// What an autoscaler scales is a pool of the same file.
fn scales_a_pool(document: &Value, documents: &[Value]) -> Result<()> {
    let target = &document["spec"]["scaleTargetRef"];
    let is_it = |other: &Value| {
        (&other["apiVersion"], &other["kind"], &other["metadata"]["name"])
            == (&target["apiVersion"], &target["kind"], &target["name"])
    };
    ensure!(target.is_null() || documents.iter().any(is_it), "scales nothing that is there: {target}");
    Ok(())
}
