//! The chart on an API server: Helm installs, upgrades and removes it, and what it gives to its accounts is enough and no more.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::api::apps::v1::{DaemonSet, Deployment};
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Node, Pod, Secret};
use k8s_openapi::api::events::v1::Event;
use k8s_openapi::api::rbac::v1::{Role, RoleBinding};
use kube::api::{
    Api, ApiResource, DeleteParams, DynamicObject, GroupVersionKind, ListParams, Patch, PatchParams,
    PostParams,
};
use kube::{Client, ResourceExt as _};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use woodfrog_api::{Checkpoint, names};
use woodfrog_testapi::{ApiServer, Need, User};
use woodfrog_testnode::Options;
use woodfrog_tests::helm::Helm;

/// A release of the chart in a namespace of its own on a server of its own: objects of clusters are there once.
struct Release {
    helm: Helm,
    server: ApiServer,
    admin: Client,
    namespace: String,
}

impl Release {
    /// Nothing where there is no API server or no Helm; the reason has been printed then.
    async fn new() -> Result<Option<Self>> {
        if !Need::met() {
            return Ok(None);
        }
        let Some(helm) = Helm::look() else { return Ok(None) };
        let server = ApiServer::start().await?;
        let admin = server.client(&User::admin()).await?;
        let namespace = server.namespace("woodfrog").await?;
        let release = Self { helm, server, admin, namespace };
        release.helm("install", &json!({})).await?;
        Ok(Some(release))
    }

    async fn helm(&self, verb: &'static str, values: &Value) -> Result<Value> {
        let kubeconfig = self.server.kubeconfig(&User::admin()).await?;
        let (helm, namespace, mut values) = (self.helm.clone(), self.namespace.clone(), values.clone());
        if !self.server.is_real() {
            // Groups that the test server does not have.
            values["priorityClass"] = json!({"create": false});
            values["networkPolicy"] = json!({"enabled": false});
            values["podDisruptionBudget"] = json!({"enabled": false});
            values["uninstaller"] = json!({"enabled": false});
        }
        tokio::task::spawn_blocking(move || helm.release(verb, &kubeconfig, &namespace, &values))
            .await?
            .with_context(|| format!("helm {verb}"))
    }

    async fn operator(&self) -> Result<Client> {
        Ok(self.server.client(&User::service_account(&self.namespace, "woodfrog-operator")).await?)
    }

    async fn agent(&self, node: &str) -> Result<Client> {
        Ok(self
            .server
            .client(&User::service_account(&self.namespace, "woodfrog-agent").on_node(node))
            .await?)
    }

    /// An object of the release's namespace.
    async fn find<K>(&self, name: &str) -> Result<Option<K>>
    where
        K: kube::Resource<Scope = k8s_openapi::NamespaceResourceScope, DynamicType = ()>
            + Clone
            + DeserializeOwned
            + std::fmt::Debug,
    {
        Ok(Api::<K>::namespaced(self.admin.clone(), &self.namespace).get_opt(name).await?)
    }

    /// A Checkpoint for a node, or for none.
    async fn checkpoint(&self, name: &str, node: Option<&str>) -> Result<()> {
        let labels: BTreeMap<_, _> = node.iter().map(|node| (names::NODE_LABEL, node)).collect();
        let checkpoint = from(json!({
            "apiVersion": "woodfrog.dev/v1alpha1", "kind": "Checkpoint",
            "metadata": {"name": name, "labels": labels},
            "spec": {"source": {"podName": "web"}, "image": "registry.test/web:warm"},
        }))?;
        Api::<Checkpoint>::namespaced(self.admin.clone(), &self.namespace)
            .create(&PostParams::default(), &checkpoint)
            .await?;
        Ok(())
    }
}

fn from<T: DeserializeOwned>(value: Value) -> Result<T> {
    Ok(serde_json::from_value(value)?)
}

/// The message of a refusal; an error if it was none.
fn refusal<T: std::fmt::Debug>(result: kube::Result<T>) -> Result<String> {
    match result {
        Err(kube::Error::Api(status)) if status.code == 403 => Ok(status.message.clone()),
        other => anyhow::bail!("not refused: {other:?}"),
    }
}

fn runtime() -> Result<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_multi_thread().enable_all().build()?)
}

fn progress() -> Value {
    json!({
        "apiVersion": "woodfrog.dev/v1alpha1", "kind": "Checkpoint",
        "status": {"agent": {"node": "n1", "podUid": "u", "phase": "Freezing", "attempt": 1}},
    })
}

#[test]
fn api_helm_installs_upgrades_and_uninstalls_the_chart() -> Result<()> {
    runtime()?.block_on(async {
        let Some(release) = Release::new().await? else { return Ok(()) };
        let agent: DaemonSet = release.find("woodfrog-agent").await?.context("no agent")?;
        ensure!(release.find::<Deployment>("woodfrog-operator").await?.is_some(), "no operator");
        ensure!(
            release.find::<DaemonSet>("woodfrog-uninstall").await?.is_none(),
            "installing ran the uninstaller"
        );
        // The CRDs came with it.
        Api::<Checkpoint>::all(release.admin.clone()).list(&ListParams::default()).await?;

        release.helm("upgrade", &json!({"image": {"tag": "2"}, "operator": {"replicas": 3}})).await?;
        let upgraded: DaemonSet = release.find("woodfrog-agent").await?.context("no agent")?;
        ensure!(upgraded.uid() == agent.uid(), "the agent was not upgraded but made anew");
        ensure!(serde_json::to_string(&upgraded)?.contains("node-agent:2"), "not upgraded");
        ensure!(
            release.find::<DaemonSet>("woodfrog-uninstall").await?.is_none(),
            "an upgrade ran the uninstaller"
        );

        let values = json!({});
        if release.server.is_real() {
            let (gone, order) = tokio::join!(release.helm("uninstall", &values), nodes_are_undone(&release));
            gone?;
            order?;
        } else {
            // It has no Jobs, so the chart is there without its hook.
            release.helm("uninstall", &values).await?;
        }
        for name in ["woodfrog-agent", "woodfrog-uninstall"] {
            ensure!(release.find::<DaemonSet>(name).await?.is_none(), "{name} is still there");
        }
        ensure!(
            release.find::<Deployment>("woodfrog-operator").await?.is_none(),
            "the operator is still there"
        );
        // Deleting them would delete everybody's Checkpoints.
        Api::<Checkpoint>::all(release.admin.clone()).list(&ListParams::default()).await?;
        Ok(())
    })
}

/// Plays kubelets and the Job's controller while Helm waits for its hook.
async fn nodes_are_undone(release: &Release) -> Result<()> {
    let sets = Api::<DaemonSet>::namespaced(release.admin.clone(), &release.namespace);
    let jobs = Api::<Job>::namespaced(release.admin.clone(), &release.namespace);
    let deadline = Instant::now() + Duration::from_secs(30);
    while jobs.get_opt("woodfrog-uninstall").await?.is_none() {
        ensure!(Instant::now() < deadline, "helm made no Job");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    ensure!(sets.get_opt("woodfrog-uninstall").await?.is_some(), "the Job has nothing to wait for");
    ensure!(
        sets.get_opt("woodfrog-agent").await?.is_some(),
        "helm removed the agents before the nodes were undone"
    );
    // The Job may look at the DaemonSet, and at nothing else.
    let user = User::service_account(&release.namespace, "woodfrog-uninstall");
    let waiting = Api::<DaemonSet>::namespaced(release.server.client(&user).await?, &release.namespace);
    waiting.get("woodfrog-uninstall").await?;
    refusal(waiting.get("woodfrog-agent").await)?;
    let now = "2026-01-01T00:00:00Z";
    let done = json!({"status": {
        "startTime": now, "completionTime": now, "succeeded": 1, "uncountedTerminatedPods": {},
        "conditions": [
            {"type": "SuccessCriteriaMet", "status": "True", "lastProbeTime": now, "lastTransitionTime": now},
            {"type": "Complete", "status": "True", "lastProbeTime": now, "lastTransitionTime": now},
        ],
    }});
    jobs.patch_status("woodfrog-uninstall", &PatchParams::default(), &Patch::Merge(&done)).await?;
    Ok(())
}

/// All of the hook but its Job: that runs this very program, as this account.
#[test]
fn api_the_uninstaller_waits_until_every_node_is_undone() -> Result<()> {
    runtime()?.block_on(async {
        let Some(release) = Release::new().await? else { return Ok(()) };
        let name = "woodfrog-uninstall";
        for object in release.helm.render(&release.namespace, &json!({}))? {
            if object["metadata"]["name"] != name || object["kind"] == "Job" {
                continue;
            }
            let object: DynamicObject = from(object)?;
            let types = object.types.clone().context("an object without a kind")?;
            let resource = ApiResource::from_gvk(&GroupVersionKind::try_from(&types)?);
            Api::<DynamicObject>::namespaced_with(release.admin.clone(), &release.namespace, &resource)
                .create(&PostParams::default(), &object)
                .await?;
        }
        let user = User::service_account(&release.namespace, name);
        let kubeconfig = release.server.kubeconfig(&user).await?;
        let waits = async |seconds: &str| {
            let program = Options::default().binaries.join("debug/woodfrog");
            let arguments = ["node", "await-uninstall", "--namespace", &release.namespace];
            let mut command = tokio::process::Command::new(program);
            command.args(arguments).args(["--daemon-set", name, "--timeout", seconds]);
            command.env("KUBECONFIG", &kubeconfig).output().await
        };
        let sets = Api::<DaemonSet>::namespaced(release.admin.clone(), &release.namespace);
        let ready = async |nodes: i32| {
            let generation = sets.get(name).await?.metadata.generation;
            let status = json!({"status": {
                "observedGeneration": generation, "desiredNumberScheduled": 2, "currentNumberScheduled": 2,
                "numberMisscheduled": 0, "numberReady": nodes,
            }});
            sets.patch_status(name, &PatchParams::default(), &Patch::Merge(&status)).await
        };

        ready(1).await?;
        let late = waits("1").await?;
        let said = String::from_utf8(late.stderr)?;
        ensure!(!late.status.success() && said.contains("on 1 of 2 nodes"), "{said}");

        let (waited, done) = tokio::join!(waits("60"), ready(2));
        done?;
        let waited = waited?;
        let said = String::from_utf8(waited.stdout)?;
        ensure!(waited.status.success() && said.contains("on 2 nodes"), "{said}");
        Ok(())
    })
}

#[test]
fn api_an_agent_writes_only_what_is_its_nodes() -> Result<()> {
    runtime()?.block_on(async {
        let Some(release) = Release::new().await? else { return Ok(()) };
        for (name, node) in [("mine", Some("n1")), ("theirs", Some("n2")), ("nobodys", None)] {
            release.checkpoint(name, node).await?;
        }
        let nodes = Api::<Node>::all(release.admin.clone());
        for name in ["n1", "n2"] {
            let node = json!({"metadata": {"name": name, "labels": {"zone": "a"}}, "spec": {"podCIDR": "10.0.0.0/24"}});
            nodes.create(&PostParams::default(), &from(node)?).await?;
        }
        let client = release.agent("n1").await?;
        let apply = PatchParams::apply(names::AGENT).force();

        let checkpoints = Api::<Checkpoint>::namespaced(client.clone(), &release.namespace);
        // A policy is in force a moment after it was made.
        let deadline = Instant::now() + Duration::from_secs(20);
        while checkpoints.patch_status("theirs", &apply, &Patch::Apply(progress())).await.is_ok() {
            ensure!(Instant::now() < deadline, "the policy does not hold");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        checkpoints.patch_status("mine", &apply, &Patch::Apply(progress())).await?;
        for name in ["theirs", "nobodys"] {
            let message = refusal(checkpoints.patch_status(name, &apply, &Patch::Apply(progress())).await)?;
            ensure!(message.contains("this Checkpoint is not for node n1"), "{message}");
        }

        let nodes = Api::<Node>::all(client.clone());
        let label = |labels: Value| json!({"apiVersion": "v1", "kind": "Node", "metadata": {"labels": labels}});
        let ours = label(json!({"node.woodfrog.dev/kernel": "6.12", "cpu.woodfrog.dev/avx2": "true"}));
        nodes.patch("n1", &apply, &Patch::Apply(&ours)).await?;
        let message = refusal(nodes.patch("n2", &apply, &Patch::Apply(&ours)).await)?;
        ensure!(message.contains("may not write another node"), "{message}");
        for theirs in [
            label(json!({"node-role.kubernetes.io/control-plane": ""})),
            label(json!({"zone": "b"})),
            label(json!({"zone": null})),
            json!({"spec": {"unschedulable": true}}),
            json!({"spec": {"taints": [{"key": "a", "effect": "NoExecute"}]}}),
            json!({"metadata": {"annotations": {"a": "b"}}}),
        ] {
            let refused = nodes.patch("n1", &PatchParams::default(), &Patch::Merge(&theirs)).await;
            let message = refusal(refused).with_context(|| theirs.to_string())?;
            ensure!(message.contains("nothing of its node but labels"), "{message}");
        }
        // Labels that it no longer needs it may take away.
        nodes.patch("n1", &apply, &Patch::Apply(label(json!({})))).await?;

        // What comes of images that it deletes, under another name.
        let pruned = json!({
            "apiVersion": "woodfrog.dev/v1alpha1", "kind": "Checkpoint",
            "status": {"pruned": {"node": "n1", "number": 1, "done": true}},
        });
        let pruner = PatchParams::apply(names::PRUNER).force();
        checkpoints.patch_status("mine", &pruner, &Patch::Apply(&pruned)).await?;
        refusal(checkpoints.patch_status("theirs", &pruner, &Patch::Apply(&pruned)).await)?;

        // A token that is bound to no node, such as one that somebody asked for with kubectl.
        let user = User::service_account(&release.namespace, "woodfrog-agent");
        let unbound = Api::<Checkpoint>::namespaced(release.server.client(&user).await?, &release.namespace);
        let message = refusal(unbound.patch_status("mine", &apply, &Patch::Apply(progress())).await)?;
        ensure!(message.contains("does not name its node"), "{message}");
        Ok(())
    })
}

#[test]
fn api_an_agent_says_of_its_nodes_pods_whether_they_sleep_and_nothing_else() -> Result<()> {
    runtime()?.block_on(async {
        let Some(release) = Release::new().await? else { return Ok(()) };
        let admin = Api::<Pod>::namespaced(release.admin.clone(), &release.namespace);
        for (name, node) in [("mine", Some("n1")), ("theirs", Some("n2")), ("nobodys", None)] {
            let spec = json!({"nodeName": node, "containers": [{"name": "app", "image": "web"}]});
            let metadata = json!({"name": name, "labels": {"app": "web"}, "annotations": {"a": "b"}});
            admin.create(&PostParams::default(), &from(json!({"metadata": metadata, "spec": spec}))?).await?;
        }
        let running = json!({"status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}});
        admin.patch_status("mine", &PatchParams::default(), &Patch::Merge(&running)).await?;

        let client = release.agent("n1").await?;
        let pods = Api::<Pod>::namespaced(client.clone(), &release.namespace);
        let apply = PatchParams::apply(names::AGENT).force();
        let says = |awake: &str| {
            Patch::Apply(json!({
                "apiVersion": "v1", "kind": "Pod", "metadata": {"annotations": {names::REPORT_ANNOTATION: awake}},
                "status": {"conditions": [{"type": names::AWAKE_CONDITION, "status": awake, "reason": "Dormant"}]},
            }))
        };
        let deadline = Instant::now() + Duration::from_secs(20);
        while pods.patch_status("theirs", &apply, &says("True")).await.is_ok() {
            ensure!(Instant::now() < deadline, "the policy does not hold");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        for awake in ["False", "True"] {
            let said = pods.patch_status("mine", &apply, &says(awake)).await?;
            ensure!(said.annotations()[names::REPORT_ANNOTATION] == awake, "{:?}", said.annotations());
            let conditions = said.status.and_then(|status| status.conditions).unwrap_or_default();
            ensure!(conditions.len() == 2 && conditions.iter().any(|c| c.status == awake), "{conditions:?}");
        }
        for name in ["theirs", "nobodys"] {
            let message = refusal(pods.patch_status(name, &apply, &says("True")).await)?;
            ensure!(message.contains("this pod is not on node n1"), "{message}");
        }
        for theirs in [
            json!({"status": {"conditions": [{"type": "Ready", "status": "False"}]}}),
            json!({"status": {"phase": "Failed"}}),
            json!({"status": {"podIP": "10.0.0.9"}}),
            json!({"status": {"containerStatuses": [{"name": "app", "ready": true, "restartCount": 0, "image": "a", "imageID": ""}]}}),
            json!({"metadata": {"annotations": {"a": null}}}),
            json!({"metadata": {"annotations": {names::KEEP_AWAKE_ANNOTATION: "true"}}}),
            json!({"metadata": {"finalizers": ["example.com/a"]}}),
        ] {
            let refused = pods.patch_status("mine", &PatchParams::default(), &Patch::Merge(&theirs)).await;
            let message = refusal(refused).with_context(|| theirs.to_string())?;
            ensure!(message.contains("nothing of a pod but whether it sleeps"), "{message}");
        }

        let events = Api::<Event>::namespaced(client, &release.namespace);
        let event = |kind: &str, instance: &str| -> Result<Event> {
            from(json!({
                "metadata": {"generateName": "mine."}, "type": "Warning", "reason": "ThawFailed", "action": "image",
                "eventTime": "2026-01-01T00:00:00.000000Z", "note": "why",
                "reportingController": names::AGENT, "reportingInstance": instance,
                "regarding": {"kind": kind, "name": "mine", "namespace": release.namespace},
            }))
        };
        events.create(&PostParams::default(), &event("Pod", "n1")?).await?;
        for event in [event("Node", "n1")?, event("Pod", "n2")?] {
            let message = refusal(events.create(&PostParams::default(), &event).await)?;
            ensure!(message.contains("Events of pods only"), "{message}");
        }
        Ok(())
    })
}

#[test]
fn api_an_agent_renews_its_own_lease_and_no_other() -> Result<()> {
    runtime()?.block_on(async {
        let Some(release) = Release::new().await? else { return Ok(()) };
        let elsewhere = release.server.namespace("elsewhere").await?;
        let client = release.agent("n1").await?;
        let leases = Api::<Lease>::namespaced(client.clone(), &release.namespace);
        let lease = |name: &str| -> Result<Lease> {
            from(json!({"metadata": {"name": name}, "spec": {"leaseDurationSeconds": 40}}))
        };
        let post = PostParams::default();
        let deadline = Instant::now() + Duration::from_secs(20);
        let mut number = 0;
        // A policy is in force a moment after it was made.
        while leases.create(&post, &lease(&format!("early-{number}"))?).await.is_ok() {
            ensure!(Instant::now() < deadline, "the policy does not hold");
            number += 1;
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        let mine = names::agent_lease("n1");
        let renewed = Patch::Merge(json!({"spec": {"holderIdentity": "n1"}}));
        leases.create(&post, &lease(&mine)?).await?;
        leases.patch(&mine, &PatchParams::default(), &renewed).await?;

        // Whoever wrote the operator's could keep all operators from their work.
        let admin = Api::<Lease>::namespaced(release.admin.clone(), &release.namespace);
        for theirs in [names::LEASE.to_owned(), names::agent_lease("n2")] {
            let message = refusal(leases.create(&post, &lease(&theirs)?).await)?;
            ensure!(message.contains("renews its own lease only"), "{message}");
            admin.create(&post, &lease(&theirs)?).await?;
            refusal(leases.patch(&theirs, &PatchParams::default(), &renewed).await)?;
        }
        refusal(leases.get(&mine).await)?;
        refusal(leases.delete(&mine, &DeleteParams::default()).await)?;
        let others = Api::<Lease>::namespaced(client, &elsewhere);
        refusal(others.create(&post, &lease(&mine)?).await)?;
        // The operator reads them all.
        let seen = Api::<Lease>::namespaced(release.operator().await?, &release.namespace);
        ensure!(seen.list(&ListParams::default()).await?.iter().any(|lease| lease.name_any() == mine));
        Ok(())
    })
}

#[test]
fn api_an_agent_may_do_what_it_must_and_nothing_else() -> Result<()> {
    runtime()?.block_on(async {
        let Some(release) = Release::new().await? else { return Ok(()) };
        release.checkpoint("mine", Some("n1")).await?;
        let client = release.agent("n1").await?;
        let list = ListParams::default().labels("woodfrog.dev/node=n1");
        let everywhere = Api::<Checkpoint>::all(client.clone());
        ensure!(everywhere.list(&list).await?.items.len() == 1);
        drop(everywhere.watch(&Default::default(), "0").await?);
        let checkpoints = Api::<Checkpoint>::namespaced(client.clone(), &release.namespace);
        refusal(checkpoints.get("mine").await)?;
        let pods = Api::<Pod>::namespaced(client.clone(), &release.namespace);
        refusal(pods.get("none").await)?;

        let merge = PatchParams::default();
        refusal(checkpoints.patch("mine", &merge, &Patch::Merge(json!({"spec": {}}))).await)?;
        refusal(checkpoints.delete("mine", &DeleteParams::default()).await)?;
        pods.list_metadata(&ListParams::default().fields("spec.nodeName=n1")).await?;
        refusal(
            pods.patch("none", &merge, &Patch::Merge(json!({"metadata": {"labels": {"a": "b"}}}))).await,
        )?;
        refusal(pods.delete("none", &DeleteParams::default()).await)?;
        let secrets = Api::<Secret>::namespaced(client.clone(), &release.namespace);
        refusal(secrets.get("push").await)?;
        refusal(secrets.list(&ListParams::default()).await)?;
        let nodes = Api::<Node>::all(client);
        refusal(nodes.get("n1").await)?;
        refusal(nodes.list(&ListParams::default()).await)?;
        refusal(nodes.patch_status("n1", &merge, &Patch::Merge(json!({"status": {}}))).await)?;
        Ok(())
    })
}

#[test]
fn api_the_operator_gives_nothing_but_one_secret_to_the_agents() -> Result<()> {
    runtime()?.block_on(async {
        let Some(release) = Release::new().await? else { return Ok(()) };
        let shop = release.server.namespace("shop").await?;
        let admin_secrets = Api::<Secret>::namespaced(release.admin.clone(), &shop);
        for name in ["push", "other"] {
            let secret = json!({"metadata": {"name": name}, "stringData": {"a": "b"}});
            admin_secrets.create(&PostParams::default(), &from(secret)?).await?;
        }
        let operator = release.operator().await?;
        let roles = Api::<Role>::namespaced(operator.clone(), &shop);
        let bindings = Api::<RoleBinding>::namespaced(operator.clone(), &shop);
        let post = PostParams::default();
        let role = |rules: Value| -> Result<Role> { from(json!({"metadata": {"name": "push"}, "rules": rules})) };
        let binding = |subjects: Value, kind: &str| -> Result<RoleBinding> {
            from(json!({
                "metadata": {"name": "push"}, "subjects": subjects,
                "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": kind, "name": "push"},
            }))
        };
        let agents = json!([{"kind": "ServiceAccount", "name": "woodfrog-agent", "namespace": release.namespace}]);
        let secret = |names: Value| json!([{"apiGroups": [""], "resources": ["secrets"], "verbs": ["get"], "resourceNames": names}]);

        // A policy is in force a moment after it was made.
        let deadline = Instant::now() + Duration::from_secs(20);
        while roles.create(&post, &role(secret(json!([])))?).await.is_ok() {
            ensure!(Instant::now() < deadline, "the policy does not hold");
            roles.delete("push", &DeleteParams::default()).await?;
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        for rules in [
            secret(json!([])),
            json!([{"apiGroups": [""], "resources": ["secrets"], "verbs": ["get"]}]),
            json!([{"apiGroups": [""], "resources": ["pods"], "verbs": ["get"]}]),
            json!([{"apiGroups": [""], "resources": ["secrets"], "verbs": ["list"], "resourceNames": ["push"]}]),
        ] {
            refusal(roles.create(&post, &role(rules.clone())?).await).with_context(|| rules.to_string())?;
        }
        roles.create(&post, &role(secret(json!(["push"])))?).await?;
        for subjects in [
            json!([{"kind": "User", "apiGroup": "rbac.authorization.k8s.io", "name": "eve"}]),
            json!([{"kind": "ServiceAccount", "name": "woodfrog-agent", "namespace": shop}]),
            json!([{"kind": "ServiceAccount", "name": "default", "namespace": release.namespace}]),
        ] {
            refusal(bindings.create(&post, &binding(subjects.clone(), "Role")?).await)
                .with_context(|| subjects.to_string())?;
        }
        refusal(bindings.create(&post, &binding(agents.clone(), "ClusterRole")?).await)?;

        let secrets = Api::<Secret>::namespaced(release.agent("n1").await?, &shop);
        refusal(secrets.get("push").await)?;
        bindings.create(&post, &binding(agents, "Role")?).await?;
        let deadline = Instant::now() + Duration::from_secs(10);
        while secrets.get("push").await.is_err() {
            ensure!(Instant::now() < deadline, "the agent cannot read what it was given");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        refusal(secrets.get("other").await)?;
        refusal(secrets.list(&ListParams::default()).await)?;
        bindings.delete("push", &DeleteParams::default()).await?;
        roles.delete("push", &DeleteParams::default()).await?;
        let deadline = Instant::now() + Duration::from_secs(10);
        while secrets.get("push").await.is_ok() {
            ensure!(Instant::now() < deadline, "the agent can still read what was taken back");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }

        let secrets = Api::<Secret>::namespaced(operator.clone(), &shop);
        refusal(secrets.list(&ListParams::default()).await)?;
        refusal(roles.list(&ListParams::default()).await)?;
        let nodes = Api::<Node>::all(operator);
        nodes.list_metadata(&ListParams::default()).await?;
        refusal(nodes.get("n1").await)?;
        refusal(nodes.patch("n1", &PatchParams::default(), &Patch::Merge(json!({"spec": {}}))).await)?;
        Ok(())
    })
}
