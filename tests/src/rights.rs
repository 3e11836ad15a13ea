//! Clusters whose operator and agents have the rights that the chart gives, and no others.

use std::sync::OnceLock;

use anyhow::Result;
use serde_json::{Value, json};
use woodfrog_testcluster::cluster::SYSTEM;
use woodfrog_testcluster::{Cluster, Rights};
use woodfrog_testnode::App;

use crate::helm::Helm;

/// What of the chart's objects is about rights.
const KINDS: [&str; 7] = [
    "ClusterRole",
    "ClusterRoleBinding",
    "Role",
    "RoleBinding",
    "ServiceAccount",
    "ValidatingAdmissionPolicy",
    "ValidatingAdmissionPolicyBinding",
];

/// Runs a test in a cluster of its own (see [`woodfrog_testcluster::in_cluster`]), with the chart's rights. Where there is no
/// Helm to render it, which is said, with those of an administrator.
///
/// # Panics
/// As the other; and the chart cannot be rendered.
pub fn in_cluster<F>(name: &str, images: &[App], test: F)
where
    F: AsyncFnOnce(&Cluster<'_>) -> Result<()>,
{
    static RIGHTS: OnceLock<Rights> = OnceLock::new();
    let rights = RIGHTS.get_or_init(|| match Helm::look() {
        Some(helm) => Rights::Accounts(of_the_chart(&helm).expect("the chart")),
        None => Rights::Admin,
    });
    woodfrog_testcluster::in_cluster(name, images, rights.clone(), test);
}

/// As JSON documents, which are YAML.
fn of_the_chart(helm: &Helm) -> Result<String> {
    let objects = helm.render(SYSTEM, &json!({ "uninstaller": { "enabled": false } }))?;
    let is_right = |object: &&Value| object["kind"].as_str().is_some_and(|kind| KINDS.contains(&kind));
    let documents: Vec<String> = objects.iter().filter(is_right).map(Value::to_string).collect();
    Ok(documents.join("\n---\n"))
}
