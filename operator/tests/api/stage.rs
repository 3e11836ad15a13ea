//! An API server, an operator, and stand-ins for what the cluster's nodes do.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::api::events::v1::Event;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::core::{ApiResource, DynamicObject};
use kube::{Api, Client, ResourceExt};
use serde_json::{Value, json};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};
use woodfrog_api::{Checkpoint, WarmPool, names, node_labels};
use woodfrog_testapi::{ApiServer, Need, User};

/// Longer than anything takes, on a slow machine under load.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);
pub(crate) const NODE: &str = "node-1";

/// A namespace on an API server of its own, since an operator looks at all namespaces.
pub(crate) struct Stage {
    server: ApiServer,
    pub(crate) client: Client,
    pub(crate) namespace: String,
    /// With which the operator is started; none: an administrator's of the server.
    pub(crate) kubeconfig: Option<PathBuf>,
    operator: Option<Child>,
    node: Option<JoinHandle<()>>,
}

impl Stage {
    /// None where there is no API server.
    pub(crate) async fn set() -> Option<Self> {
        if !Need::met() {
            return None;
        }
        let server = ApiServer::start().await.unwrap();
        let client = server.client(&User::admin()).await.unwrap();
        woodfrog_testapi::install_crds(&client).await.unwrap();
        let namespace = server.namespace("shop").await.unwrap();
        let mut stage = Self { server, client, namespace, kubeconfig: None, operator: None, node: None };
        let node =
            json!({ "metadata": { "name": NODE, "labels": { (node_labels::ARCHITECTURE): "x86_64" } } });
        let node: Node = serde_json::from_value(node).unwrap();
        Api::all(stage.client.clone()).create(&PostParams::default(), &node).await.unwrap();
        stage.start_operator().await;
        stage.start_node();
        Some(stage)
    }

    pub(crate) async fn start_operator(&mut self) {
        let kubeconfig = match &self.kubeconfig {
            Some(kubeconfig) => kubeconfig.clone(),
            None => self.server.kubeconfig(&User::admin()).await.unwrap(),
        };
        let address = || {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            listener.local_addr().unwrap().to_string()
        };
        let log = std::fs::File::options().append(true).create(true).open(self.log()).unwrap();
        let operator = Command::new(env!("CARGO_BIN_EXE_operator"))
            .arg("--kubeconfig")
            .arg(kubeconfig)
            .args(["--metrics-addr", &address(), "--health-addr", &address()])
            .args(["--leader-election-namespace", &self.namespace, "--identity", "operator-0"])
            .stdout(Stdio::null())
            .stderr(log)
            .spawn();
        self.operator = Some(operator.unwrap());
    }

    fn log(&self) -> std::path::PathBuf {
        std::env::temp_dir().join(format!("woodfrog-operator-{}-{}.log", std::process::id(), self.namespace))
    }

    /// As SIGKILL does.
    pub(crate) fn kill_operator(&mut self) {
        if let Some(mut operator) = self.operator.take() {
            operator.kill().unwrap();
            operator.wait().unwrap();
        }
    }

    /// Kubelet, scheduler and node agent: pods run and are ready at once, and instructions succeed at the second look. Images
    /// are deleted at once, but for those whose repository is called `stubborn`. For `interrupted` the agent was killed once when it
    /// pushed. What else does not work is told by the name of
    /// the Checkpoint: see `run_pods` and `failure`.
    pub(crate) fn start_node(&mut self) {
        let (client, namespace) = (self.client.clone(), self.namespace.clone());
        self.node = Some(tokio::spawn(async move {
            loop {
                // What fails now is done at the next look.
                let _ = run_pods(&client, &namespace).await;
                let _ = carry_out(&client, &namespace).await;
                let _ = prune(&client, &namespace).await;
                sleep(Duration::from_millis(100)).await;
            }
        }));
    }

    /// The same, but for the agent.
    pub(crate) fn start_node_without_an_agent(&mut self) {
        let (client, namespace) = (self.client.clone(), self.namespace.clone());
        self.node = Some(tokio::spawn(async move {
            loop {
                let _ = run_pods(&client, &namespace).await;
                sleep(Duration::from_millis(100)).await;
            }
        }));
    }

    pub(crate) fn stop_node(&mut self) {
        if let Some(node) = self.node.take() {
            node.abort();
        }
    }

    pub(crate) fn api<K>(&self) -> Api<K>
    where
        K: kube::Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>,
    {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    /// Creates a Checkpoint of a template, with more in its specification.
    pub(crate) async fn checkpoint(&self, name: &str, more: Value) {
        self.try_checkpoint(name, more).await.unwrap();
    }

    /// Checkpoints as JSON.
    pub(crate) fn raw(&self) -> Api<DynamicObject> {
        Api::namespaced_with(self.client.clone(), &self.namespace, &ApiResource::erase::<Checkpoint>(&()))
    }

    pub(crate) async fn try_checkpoint(&self, name: &str, more: Value) -> kube::Result<DynamicObject> {
        let mut spec = json!({
            "source": { "template": { "spec": { "containers": [{ "name": "app", "image": "r.example/web:1" }] } } },
            "image": format!("r.example/{name}:warm"),
        });
        spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let resource = ApiResource::erase::<Checkpoint>(&());
        let object = DynamicObject::new(name, &resource).data(json!({ "spec": spec }));
        self.raw().create(&PostParams::default(), &object).await
    }

    pub(crate) async fn pool(&self, name: &str, spec: Value) {
        self.try_pool(name, spec).await.unwrap();
    }

    pub(crate) async fn try_pool(&self, name: &str, spec: Value) -> kube::Result<DynamicObject> {
        let resource = ApiResource::erase::<WarmPool>(&());
        let pools = Api::namespaced_with(self.client.clone(), &self.namespace, &resource);
        let object = DynamicObject::new(name, &resource).data(json!({ "spec": spec }));
        pools.create(&PostParams::default(), &object).await
    }

    /// Waits until a Checkpoint is as a test wants it.
    pub(crate) async fn until(&self, name: &str, what: &str, is: impl Fn(&Checkpoint) -> bool) -> Checkpoint {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let checkpoint = self.api::<Checkpoint>().get(name).await.unwrap();
            if is(&checkpoint) {
                return checkpoint;
            }
            if Instant::now() > deadline {
                let log = std::fs::read_to_string(self.log()).unwrap_or_default();
                let status = serde_json::to_string_pretty(&checkpoint).unwrap();
                panic!("{name} is not {what} in time: {status}\n--- operator\n{log}");
            }
            sleep(Duration::from_millis(50)).await;
        }
    }

    /// Waits until an Event tells of an object.
    pub(crate) async fn until_told(&self, name: &str, reason: &str) -> String {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let events = self.api::<Event>().list(&ListParams::default()).await.unwrap();
            let found = events.into_iter().find(|event| {
                let about = event.regarding.as_ref().and_then(|regarding| regarding.name.as_deref());
                about == Some(name) && event.reason.as_deref() == Some(reason)
            });
            if let Some(event) = found {
                return event.note.unwrap_or_default();
            }
            assert!(Instant::now() < deadline, "no Event tells {reason} of {name}");
            sleep(Duration::from_millis(50)).await;
        }
    }

    /// Waits until no object of a kind is left.
    pub(crate) async fn until_none<K>(&self, labels: &str)
    where
        K: kube::Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>
            + Clone
            + std::fmt::Debug
            + serde::de::DeserializeOwned,
    {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let left = self.api::<K>().list(&ListParams::default().labels(labels)).await.unwrap().items;
            if left.is_empty() {
                return;
            }
            let names: Vec<_> = left.iter().map(ResourceExt::name_any).collect();
            assert!(Instant::now() < deadline, "left: {names:?}");
            sleep(Duration::from_millis(50)).await;
        }
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        self.stop_node();
        self.kill_operator();
        let _ = std::fs::remove_file(self.log());
    }
}

/// Whether a condition is true, and why it is as it is.
pub(crate) fn condition(checkpoint: &Checkpoint, type_: &str) -> Option<(bool, String, String)> {
    let conditions = checkpoint.status.iter().flat_map(|status| &status.conditions);
    let found = conditions.into_iter().find(|condition| condition.type_ == type_)?;
    Some((found.status == "True", found.reason.clone(), found.message.clone()))
}

async fn run_pods(client: &Client, namespace: &str) -> kube::Result<()> {
    let pods: Api<Pod> = Api::namespaced(client.clone(), namespace);
    for pod in pods.list(&ListParams::default()).await? {
        if pod.metadata.deletion_timestamp.is_some() {
            pods.delete(&pod.name_any(), &DeleteParams::default().grace_period(0)).await?;
            continue;
        }
        let name = pod.name_any();
        if name.starts_with("unschedulable") {
            continue;
        }
        if pod.spec.as_ref().is_some_and(|spec| spec.node_name.is_none()) {
            let bound = json!({ "spec": { "nodeName": NODE } });
            pods.patch(&pod.name_any(), &PatchParams::default(), &Patch::Merge(bound)).await?;
        }
        if pod.status.as_ref().is_none_or(|status| status.phase.as_deref() != Some("Running")) {
            let ready = if name.starts_with("unready") { "False" } else { "True" };
            let conditions = json!([{ "type": "Ready", "status": ready }]);
            let status = json!({ "status": { "phase": "Running", "conditions": conditions } });
            pods.patch_status(&pod.name_any(), &PatchParams::default(), &Patch::Merge(status)).await?;
        }
    }
    Ok(())
}

async fn carry_out(client: &Client, namespace: &str) -> kube::Result<()> {
    let checkpoints: Api<Checkpoint> = Api::namespaced(client.clone(), namespace);
    let ours = ListParams::default().labels(&format!("{}={NODE}", names::NODE_LABEL));
    for checkpoint in checkpoints.list(&ours).await? {
        let status = checkpoint.status.clone().unwrap_or_default();
        let Some(instruction) = status.instruction else { continue };
        let said = status.agent.filter(|agent| agent.attempt == instruction.attempt);
        let mut agent = json!({
            "node": NODE,
            "attempt": instruction.attempt,
            "podUid": instruction.pod_uid,
            "heartbeat": Time(Timestamp::now()),
            "phase": "Freezing",
        });
        if checkpoint.name_any() == "interrupted" {
            let target = &instruction.containers[0];
            let digest = digest(&target.image, 0);
            agent["pushed"] = json!([{ "name": target.name, "image": target.image, "digest": digest }]);
        }
        match said {
            Some(said) if said.phase.is_final() => continue,
            _ if checkpoint.name_any().starts_with("stuck-") => {
                agent["phase"] = stuck_in(&checkpoint.name_any())
            }
            Some(_) if failure(&checkpoint.name_any()).is_some() => {
                let said = failure(&checkpoint.name_any());
                agent["phase"] = json!("Failed");
                agent["reason"] = json!(said.map(|said| said.0));
                agent["message"] = json!(said.map(|said| said.1));
            }
            Some(_) => {
                agent["phase"] = json!("Done");
                let compatibility = json!({
                    "architecture": "x86_64", "cpuVendor": "GenuineIntel", "xsaveBytes": 832, "kernel": "6.18.1",
                    "criu": "4.2.1", "pageBytes": 4096, "cgroupVersion": 2,
                });
                let targets = instruction.containers.iter();
                let containers = targets.map(|target| {
                    json!({
                        "name": target.name, "image": target.image, "digest": digest(&target.image, instruction.attempt),
                        "layerBytes": 3 << 20, "compressedBytes": 1 << 20, "memoryBytes": 2 << 20, "freezeMs": 50,
                        "compatibility": compatibility,
                    })
                });
                agent["containers"] = containers.collect();
            }
            None => {}
        }
        let patch = json!({
            "apiVersion": "woodfrog.dev/v1alpha1",
            "kind": "Checkpoint",
            "metadata": { "name": checkpoint.name_any(), "uid": checkpoint.uid() },
            "status": { "agent": agent },
        });
        let parameters = PatchParams::apply(names::AGENT).force();
        checkpoints.patch_status(&checkpoint.name_any(), &parameters, &Patch::Apply(patch)).await?;
    }
    Ok(())
}

/// `stuck-freezing-1` stays in the phase Freezing.
fn stuck_in(name: &str) -> Value {
    let phase = name.split('-').nth(1).unwrap_or_default();
    json!(match phase {
        "warmingup" => "WarmingUp",
        "pushing" => "Pushing",
        _ => "Freezing",
    })
}

/// What the agent says of a Checkpoint that it fails to make.
fn failure(name: &str) -> Option<(&'static str, &'static str)> {
    Some(match name {
        "unreachable" => ("Unreachable", "cannot reach the registry r.example"),
        "refusing" => ("Unauthorized", "the registry r.example refuses to take a layer"),
        "hook" => ("Hook", "the hook beforeCheckpoint did not end within 10 s"),
        "request" => ("WarmUpRequest", "warm-up request 1 answered 500"),
        "preflight" => ("Preflight", "tty: true cannot be frozen"),
        _ => return None,
    })
}

/// Of the image that an attempt makes.
pub(crate) fn digest(image: &str, attempt: i64) -> String {
    let mut hasher = DefaultHasher::new();
    (image, attempt).hash(&mut hasher);
    format!("sha256:{:064x}", hasher.finish())
}

async fn prune(client: &Client, namespace: &str) -> kube::Result<()> {
    let checkpoints: Api<Checkpoint> = Api::namespaced(client.clone(), namespace);
    let ours = ListParams::default().labels(&format!("{}={NODE}", names::NODE_LABEL));
    for checkpoint in checkpoints.list(&ours).await? {
        let status = checkpoint.status.clone().unwrap_or_default();
        let Some(pruning) = status.pruning else { continue };
        let outcomes = pruning.images.iter().map(|image| {
            let stubborn = image.image.contains("/stubborn");
            json!({
                "digest": image.digest,
                "outcome": if stubborn { "Unsupported" } else { "Deleted" },
                "message": if stubborn { "this registry deletes nothing" } else { "" },
            })
        });
        let pruned = json!({
            "node": NODE, "number": pruning.number, "done": true, "heartbeat": Time(Timestamp::now()),
            "images": outcomes.collect::<Vec<_>>(),
        });
        let patch = json!({
            "apiVersion": "woodfrog.dev/v1alpha1",
            "kind": "Checkpoint",
            "metadata": { "name": checkpoint.name_any(), "uid": checkpoint.uid() },
            "status": { "pruned": pruned },
        });
        let parameters = PatchParams::apply(names::PRUNER).force();
        checkpoints.patch_status(&checkpoint.name_any(), &parameters, &Patch::Apply(patch)).await?;
    }
    Ok(())
}
