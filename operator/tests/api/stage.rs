//! An API server, an operator, and stand-ins for what the cluster's nodes do.

use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::core::{ApiResource, DynamicObject};
use kube::{Api, Client, ResourceExt};
use serde_json::{Value, json};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};
use woodfrog_api::{Checkpoint, names};
use woodfrog_testapi::{ApiServer, Need, User};

/// Longer than anything takes, on a slow machine under load.
const PATIENCE: Duration = Duration::from_secs(120);
const NODE: &str = "node-1";

/// A namespace on an API server of its own, since an operator looks at all namespaces.
pub(crate) struct Stage {
    server: ApiServer,
    pub(crate) client: Client,
    pub(crate) namespace: String,
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
        let mut stage = Self { server, client, namespace, operator: None, node: None };
        stage.start_operator().await;
        stage.start_node();
        Some(stage)
    }

    pub(crate) async fn start_operator(&mut self) {
        let kubeconfig = self.server.kubeconfig(&User::admin()).await.unwrap();
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

    /// Kubelet, scheduler and node agent: pods run and are ready at once, and instructions succeed at the second look.
    pub(crate) fn start_node(&mut self) {
        let (client, namespace) = (self.client.clone(), self.namespace.clone());
        self.node = Some(tokio::spawn(async move {
            loop {
                // What fails now is done at the next look.
                let _ = run_pods(&client, &namespace).await;
                let _ = carry_out(&client, &namespace).await;
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
        if pod.spec.as_ref().is_some_and(|spec| spec.node_name.is_none()) {
            let bound = json!({ "spec": { "nodeName": NODE } });
            pods.patch(&pod.name_any(), &PatchParams::default(), &Patch::Merge(bound)).await?;
        }
        if pod.status.as_ref().is_none_or(|status| status.phase.as_deref() != Some("Running")) {
            let conditions = json!([{ "type": "Ready", "status": "True" }]);
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
        match said {
            Some(said) if said.phase.is_final() => continue,
            Some(_) => {
                agent["phase"] = json!("Done");
                let targets = instruction.containers.iter();
                let containers = targets.map(|target| {
                    json!({
                        "name": target.name, "image": target.image, "digest": format!("sha256:{:064}", instruction.attempt),
                        "layerBytes": 3 << 20, "compressedBytes": 1 << 20, "memoryBytes": 2 << 20, "freezeMs": 50,
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
