//! The chart as Helm renders it: objects that the API's types know, images and names from values, rights by a table.
#![forbid(unsafe_code)]

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::api::admissionregistration::v1::{
    ValidatingAdmissionPolicy, ValidatingAdmissionPolicyBinding,
};
use k8s_openapi::api::apps::v1::{DaemonSet, Deployment};
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{ConfigMap, Service, ServiceAccount};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding, Role, RoleBinding};
use k8s_openapi::api::scheduling::v1::PriorityClass;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use woodfrog_tests::helm::{CHART, Helm};

const NAMESPACE: &str = "woodfrog-system";

/// Every right that the chart gives: to whom, where (`*`: in all namespaces), on what, which verbs.
const RIGHTS: &[(&str, &str, &str, &str)] = &[
    ("agent", "*", "/nodes", "patch"),
    ("agent", "*", "/pods", "list watch"),
    ("agent", "*", "/pods/status", "patch"),
    ("agent", "*", "events.k8s.io/events", "create patch"),
    ("agent", "*", "woodfrog.dev/checkpoints", "list watch"),
    ("agent", "*", "woodfrog.dev/checkpoints/status", "patch"),
    ("agent", "*", "woodfrog.dev/warmpools", "list watch"),
    ("agent", NAMESPACE, "coordination.k8s.io/leases", "create patch"),
    ("operator", "*", "/nodes", "list"),
    ("operator", "*", "/pods", "get list watch create patch delete"),
    ("operator", "*", "/pods/resize", "patch"),
    ("operator", "*", "/secrets", "get"),
    ("operator", "*", "apps/deployments", "list watch"),
    ("operator", "*", "apps/statefulsets", "list watch"),
    ("operator", "*", "events.k8s.io/events", "create patch"),
    ("operator", "*", "rbac.authorization.k8s.io/rolebindings", "create delete"),
    ("operator", "*", "rbac.authorization.k8s.io/roles", "create delete"),
    ("operator", "*", "woodfrog.dev/checkpoints", "get list watch patch"),
    ("operator", "*", "woodfrog.dev/checkpoints/finalizers", "update"),
    ("operator", "*", "woodfrog.dev/checkpoints/status", "patch"),
    ("operator", "*", "woodfrog.dev/warmpools", "list watch"),
    ("operator", "*", "woodfrog.dev/warmpools/finalizers", "update"),
    ("operator", "*", "woodfrog.dev/warmpools/status", "patch"),
    ("operator", NAMESPACE, "coordination.k8s.io/leases", "get list watch create update"),
    ("uninstall", NAMESPACE, "apps/daemonsets/woodfrog-uninstall", "get"),
];

/// Values that turn on all that is off, and set all that is empty.
fn everything() -> Value {
    json!({
        "image": {"registry": "registry.test/x/", "tag": "7", "pullPolicy": "Always", "pullSecrets": [{"name": "pull"}]},
        "operator": {
            "image": {"name": "op", "digest": format!("sha256:{}", "a".repeat(64))},
            "nodeSelector": {"a": "b"}, "tolerations": [{"operator": "Exists"}], "podLabels": {"l": "1"},
            "podAnnotations": {"n": "1"}, "affinity": {"nodeAffinity": {}},
        },
        "agent": {
            "image": {"name": "ag", "tag": "8"}, "nodeSelector": {"c": "d"}, "maxUnavailable": 1,
            "podLabels": {"l": "1"}, "podAnnotations": {"n": "1"}, "affinity": {"nodeAffinity": {}},
            "pageStoreBytes": 8_000_000_000u64,
        },
        "containerd": {"socket": "/run/k3s/containerd/containerd.sock", "root": "/var/lib/rancher/k3s/agent/containerd"},
        "installer": {"runtimeEndpoint": "unix:///run/k3s/containerd/containerd.sock"},
        "serviceAccount": {"operator": {"annotations": {"x": "y"}}, "agent": {"annotations": {"x": "y"}}},
        "networkPolicy": {"metricsFrom": [{"namespaceSelector": {"matchLabels": {"name": "monitoring"}}}]},
        "serviceMonitor": {"enabled": true, "labels": {"release": "prometheus"}},
        "grafana": {"dashboard": {"enabled": true, "annotations": {"x": "y"}}},
        "pushSecretNamespaces": ["shop", "bank"],
        "plainHttpRegistries": ["registry.test:5000", "[fd00::1]:5000"],
    })
}

#[test]
fn helm_lint_has_nothing_to_say() -> Result<()> {
    let Some(helm) = Helm::look() else { return Ok(()) };
    for values in [json!({}), everything()] {
        let said = helm.lint(&values)?;
        let messages = said["messages"].as_array().context("messages")?;
        // 1 is information (Helm's support package): that there is no icon.
        ensure!(messages.iter().all(|message| message["severity"].as_u64() == Some(1)), "{said}");
        ensure!(said["errors"].as_array().is_some_and(Vec::is_empty), "{said}");
    }
    Ok(())
}

#[test]
fn helm_renders_objects_that_the_api_types_know_to_the_last_field() -> Result<()> {
    let Some(helm) = Helm::look() else { return Ok(()) };
    for values in [json!({}), everything()] {
        let objects = helm.render(NAMESPACE, &values)?;
        ensure!(objects.len() > 15, "only {} objects", objects.len());
        for object in &objects {
            check(object).with_context(|| object.to_string())?;
        }
    }
    Ok(())
}

/// Fails for a field that the object's type does not have.
fn check(object: &Value) -> Result<()> {
    match object["kind"].as_str().context("no kind")? {
        "ClusterRole" => same::<ClusterRole>(object),
        "ClusterRoleBinding" => same::<ClusterRoleBinding>(object),
        "ConfigMap" => same::<ConfigMap>(object),
        "DaemonSet" => same::<DaemonSet>(object),
        "Deployment" => same::<Deployment>(object),
        "Job" => same::<Job>(object),
        "NetworkPolicy" => same::<NetworkPolicy>(object),
        "PodDisruptionBudget" => same::<PodDisruptionBudget>(object),
        "PriorityClass" => same::<PriorityClass>(object),
        "Role" => same::<Role>(object),
        "RoleBinding" => same::<RoleBinding>(object),
        "Service" => same::<Service>(object),
        "ServiceAccount" => same::<ServiceAccount>(object),
        "ValidatingAdmissionPolicy" => same::<ValidatingAdmissionPolicy>(object),
        "ValidatingAdmissionPolicyBinding" => same::<ValidatingAdmissionPolicyBinding>(object),
        // The Prometheus operator's type, which no library of ours has.
        "ServiceMonitor" => Ok(()),
        kind => anyhow::bail!("{kind} is new here: add it"),
    }
}

fn same<K: DeserializeOwned + Serialize>(object: &Value) -> Result<()> {
    let read: K = serde_json::from_value(object.clone())?;
    let written = serde_json::to_value(&read)?;
    ensure!(pruned(&written) == pruned(object), "differs from what its type knows: {written}");
    Ok(())
}

/// Without nulls and empty maps and lists, which types leave out or fill in.
fn pruned(value: &Value) -> Value {
    match value {
        Value::Object(map) => {
            let kept = map.iter().map(|(key, value)| (key.clone(), pruned(value)));
            Value::Object(kept.filter(|(_, value)| !is_nothing(value)).collect())
        }
        Value::Array(list) => Value::Array(list.iter().map(pruned).collect()),
        other => other.clone(),
    }
}

fn is_nothing(value: &Value) -> bool {
    value.is_null()
        || value.as_object().is_some_and(|m| m.is_empty())
        || value.as_array().is_some_and(Vec::is_empty)
}

#[test]
fn helm_takes_every_image_from_values() -> Result<()> {
    let Some(helm) = Helm::look() else { return Ok(()) };
    let version = env!("CARGO_PKG_VERSION");
    let expected: BTreeSet<String> =
        ["operator", "node-agent"].map(|name| format!("registry.example/woodfrog/{name}:{version}")).into();
    ensure!(images(&helm.render(NAMESPACE, &json!({}))?) == expected);
    let digest = format!("registry.test/x/op@sha256:{}", "a".repeat(64));
    let expected = BTreeSet::from([digest, "registry.test/x/ag:8".to_owned()]);
    ensure!(images(&helm.render(NAMESPACE, &everything())?) == expected);
    Ok(())
}

fn images(objects: &[Value]) -> BTreeSet<String> {
    pods(objects)
        .flat_map(|(_, pod)| containers(pod))
        .filter_map(|container| container["image"].as_str().map(str::to_owned))
        .collect()
}

/// Pods that the objects make, each with its object.
fn pods(objects: &[Value]) -> impl Iterator<Item = (&Value, &Value)> {
    objects
        .iter()
        .map(|object| (object, &object["spec"]["template"]["spec"]))
        .filter(|(_, pod)| pod.is_object())
}

fn containers(pod: &Value) -> impl Iterator<Item = &Value> {
    ["initContainers", "containers"].into_iter().flat_map(|list| pod[list].as_array().into_iter().flatten())
}

#[test]
fn helm_tells_the_operator_which_registries_speak_plain_http() -> Result<()> {
    let Some(helm) = Helm::look() else { return Ok(()) };
    let arguments = |values: &Value| -> Result<String> {
        let objects = helm.render(NAMESPACE, values)?;
        let operator = pods(&objects)
            .flat_map(|(_, pod)| containers(pod))
            .find(|container| container["name"] == "operator")
            .context("no operator")?;
        Ok(strings(&operator["args"]).join(" "))
    };
    let said = arguments(&everything())?;
    let expected = "--plain-http-registry registry.test:5000 --plain-http-registry [fd00::1]:5000";
    ensure!(said.ends_with(expected), "{said}");
    ensure!(!arguments(&json!({}))?.contains("plain"));
    Ok(())
}

#[test]
fn helm_tells_the_agents_how_much_memory_their_page_stores_may_take() -> Result<()> {
    let Some(helm) = Helm::look() else { return Ok(()) };
    let said = |values: &Value| -> Result<Value> {
        let objects = helm.render(NAMESPACE, values)?;
        let agent = pods(&objects).flat_map(|(_, pod)| containers(pod)).find(|c| c["name"] == "agent");
        let environment = agent.context("no agent")?["env"].as_array().cloned().unwrap_or_default();
        let named = environment.into_iter().find(|variable| variable["name"] == "WOODFROG_PAGE_STORE_BYTES");
        Ok(named.unwrap_or_default()["value"].clone())
    };
    ensure!(said(&everything())? == "8000000000");
    ensure!(said(&json!({}))?.is_null());
    Ok(())
}

#[test]
fn helm_gives_these_rights_and_no_others() -> Result<()> {
    let Some(helm) = Helm::look() else { return Ok(()) };
    let expected: BTreeSet<String> =
        RIGHTS.iter().map(|(who, place, what, verbs)| format!("{who} in {place}: {what}: {verbs}")).collect();
    let found = rights(&helm.render(NAMESPACE, &json!({}))?)?;
    let differ: Vec<_> = found.symmetric_difference(&expected).collect();
    ensure!(differ.is_empty(), "not in both: {differ:#?}");

    let found = rights(&helm.render(NAMESPACE, &json!({"pushSecretNamespaces": ["shop"]}))?)?;
    let secrets: Vec<_> =
        found.iter().filter(|right| right.contains("/secrets") || right.contains("roles")).collect();
    ensure!(
        secrets.len() == 2 && secrets.iter().all(|right| right.starts_with("operator in shop: ")),
        "{found:#?}"
    );
    Ok(())
}

/// What bindings give to the accounts of the chart.
fn rights(objects: &[Value]) -> Result<BTreeSet<String>> {
    let mut rights = BTreeSet::new();
    for binding in
        objects.iter().filter(|object| object["kind"].as_str().is_some_and(|k| k.ends_with("Binding")))
    {
        let Some(subjects) = binding["subjects"].as_array() else { continue };
        let (kind, name) = (&binding["roleRef"]["kind"], &binding["roleRef"]["name"]);
        let namespace = &binding["metadata"]["namespace"];
        let role = objects
            .iter()
            .find(|object| {
                object["kind"] == *kind
                    && object["metadata"]["name"] == *name
                    && object["metadata"]["namespace"] == *namespace
            })
            .with_context(|| format!("{binding} binds a role that the chart does not have"))?;
        for subject in subjects {
            ensure!(subject["namespace"] == NAMESPACE, "{subject}");
            let who =
                subject["name"].as_str().and_then(|name| name.strip_prefix("woodfrog-")).context("a name")?;
            for rule in role["rules"].as_array().context("no rules")? {
                for (group, resource) in pairs(rule) {
                    let names = strings(&rule["resourceNames"]);
                    let names =
                        if names.is_empty() { String::new() } else { format!("/{}", names.join(",")) };
                    let verbs = strings(&rule["verbs"]).join(" ");
                    let place = namespace.as_str().unwrap_or("*");
                    rights.insert(format!("{who} in {place}: {group}/{resource}{names}: {verbs}"));
                }
            }
        }
    }
    Ok(rights)
}

fn pairs(rule: &Value) -> Vec<(String, String)> {
    let resources = strings(&rule["resources"]);
    strings(&rule["apiGroups"])
        .into_iter()
        .flat_map(|group| {
            resources.iter().map(move |resource| (group.clone(), resource.clone())).collect::<Vec<_>>()
        })
        .collect()
}

fn strings(value: &Value) -> Vec<String> {
    value.as_array().into_iter().flatten().filter_map(|v| v.as_str().map(str::to_owned)).collect()
}

#[test]
fn helm_refuses_values_that_mean_nothing() -> Result<()> {
    let Some(helm) = Helm::look() else { return Ok(()) };
    for (values, what) in [
        (json!({"operater": {}}), "operater"),
        (json!({"operator": {"replicas": -1}}), "replicas"),
        (json!({"operator": {"image": {"name": "x", "digest": "sha256:1"}}}), "digest"),
        (json!({"image": {"registry": ""}}), "registry"),
        (json!({"image": {"pullPolicy": "Sometimes"}}), "pullPolicy"),
        (json!({"installer": {"kubelet": "k3s"}}), "kubelet"),
        (json!({"installer": {"runtimeEndpoint": "/run/x.sock"}}), "runtimeEndpoint"),
        (json!({"containerd": {"socket": "/var/x.sock"}}), "socket"),
        (json!({"agent": {"maxUnavailable": "0%"}}), "maxUnavailable"),
        (json!({"priorityClass": {"value": 2000000000}}), "value"),
        (json!({"plainHttpRegistries": ["http://registry.test"]}), "plainHttpRegistries"),
    ] {
        let error = helm.render(NAMESPACE, &values).err().with_context(|| format!("accepted: {values}"))?;
        ensure!(error.to_string().contains(what), "{values}: {error}");
    }
    Ok(())
}

#[test]
fn helm_runs_the_uninstaller_before_a_deletion_and_at_no_other_time() -> Result<()> {
    let Some(helm) = Helm::look() else { return Ok(()) };
    let objects = helm.render(NAMESPACE, &json!({}))?;
    let hooks: BTreeSet<(String, String)> = objects
        .iter()
        .filter_map(|object| {
            let hook = object["metadata"]["annotations"]["helm.sh/hook"].as_str()?;
            Some((object["kind"].as_str()?.to_owned(), hook.to_owned()))
        })
        .collect();
    let kinds = ["DaemonSet", "Job", "Role", "RoleBinding", "ServiceAccount"];
    ensure!(hooks == kinds.map(|kind| (kind.to_owned(), "pre-delete".to_owned())).into(), "{hooks:?}");
    let uninstaller = pods(&objects)
        .flat_map(|(_, pod)| containers(pod))
        .find(|container| container["name"] == "uninstaller")
        .context("no uninstaller")?;
    // What tells the end of this release from an upgrade that has reached the node before it.
    ensure!(
        strings(&uninstaller["command"]).join(" ").ends_with("--only /usr/local/lib/woodfrog"),
        "{uninstaller}"
    );
    for off in [
        json!({"uninstaller": {"enabled": false}}),
        json!({"installer": {"enabled": false}}),
        json!({"installer": {"kubelet": "none"}}),
    ] {
        let objects = helm.render(NAMESPACE, &off)?;
        ensure!(objects.iter().all(|o| o["metadata"]["annotations"]["helm.sh/hook"].is_null()), "{off}");
    }
    Ok(())
}

#[test]
fn helm_makes_only_what_touches_nodes_privileged() -> Result<()> {
    let Some(helm) = Helm::look() else { return Ok(()) };
    let objects = helm.render(NAMESPACE, &json!({}))?;
    for (object, pod) in pods(&objects) {
        for container in containers(pod) {
            let name = container["name"].as_str().context("a name")?;
            let security = &container["securityContext"];
            let privileged = security["privileged"] == json!(true);
            ensure!(
                privileged == ["installer", "agent", "uninstaller"].contains(&name),
                "{name}: {security}"
            );
            if !privileged {
                let user = [&security["runAsNonRoot"], &pod["securityContext"]["runAsNonRoot"]];
                ensure!(user.contains(&&json!(true)), "{name} may be root: {object}");
                ensure!(security["capabilities"]["drop"] == json!(["ALL"]), "{name}: {security}");
                ensure!(security["allowPrivilegeEscalation"] == json!(false), "{name}: {security}");
                ensure!(security["readOnlyRootFilesystem"] == json!(true), "{name}: {security}");
            }
        }
    }
    Ok(())
}

#[test]
fn helm_names_things_by_the_release_and_puts_them_into_its_namespace() -> Result<()> {
    let Some(helm) = Helm::look() else { return Ok(()) };
    let cluster = [
        "ClusterRole",
        "ClusterRoleBinding",
        "PriorityClass",
        "ValidatingAdmissionPolicy",
        "ValidatingAdmissionPolicyBinding",
    ];
    let objects = helm.render("elsewhere", &json!({"fullnameOverride": "frog"}))?;
    for object in &objects {
        let kind = object["kind"].as_str().context("a kind")?;
        let name = object["metadata"]["name"].as_str().context("a name")?;
        ensure!(name == "frog" || name.starts_with("frog-"), "{kind} {name}");
        let namespace = object["metadata"]["namespace"].as_str();
        ensure!(
            namespace == (!cluster.contains(&kind)).then_some("elsewhere"),
            "{kind} {name}: {namespace:?}"
        );
    }
    let text = serde_json::to_string(&objects)?;
    ensure!(text.contains("system:serviceaccount:elsewhere:frog-agent"), "the policy is for another account");
    Ok(())
}

#[test]
fn the_chart_has_the_resources_that_the_api_types_make() -> Result<()> {
    let crds = Path::new(CHART).join("../../crds");
    let copies = Path::new(CHART).join("crds");
    let names = |dir: &Path| -> Result<BTreeSet<_>> {
        Ok(fs::read_dir(dir)?.map(|entry| Ok(entry?.file_name())).collect::<std::io::Result<_>>()?)
    };
    ensure!(names(&crds)? == names(&copies)?, "charts/woodfrog/crds is not crds: run cargo xtask generate");
    for name in names(&crds)? {
        let same = fs::read(crds.join(&name))? == fs::read(copies.join(&name))?;
        ensure!(same, "charts/woodfrog/crds/{} is old: run cargo xtask generate", name.display());
    }
    Ok(())
}

#[test]
fn the_chart_is_of_this_release() -> Result<()> {
    let text = fs::read_to_string(Path::new(CHART).join("Chart.yaml"))?;
    let chart: Value = serde_saphyr::from_str(&text)?;
    ensure!(
        chart["version"] == env!("CARGO_PKG_VERSION") && chart["appVersion"] == env!("CARGO_PKG_VERSION"),
        "{chart}"
    );
    Ok(())
}

#[test]
fn the_installer_looks_for_binaries_where_the_image_has_them() -> Result<()> {
    let image = fs::read_to_string(Path::new(CHART).join("../../images/node-agent/Containerfile"))?;
    let pod = fs::read_to_string(Path::new(CHART).join("templates/agent/daemonset.yaml"))?;
    let place = "/usr/local/lib/woodfrog";
    ensure!(
        image.contains(&format!("COPY --from=build /out/ {place}/")) && pod.contains(&format!("- {place}\n"))
    );
    for program in woodfrog_installer::PROGRAMS {
        ensure!(image.contains(&format!("/{program}\"")), "{program} is not in the image");
    }
    Ok(())
}
