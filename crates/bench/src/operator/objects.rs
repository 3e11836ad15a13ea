//! Objects as people write them: pods with probes, variables and volumes, not the smallest that the API server takes.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};
use woodfrog_api::names;

/// Objects are spread over namespaces, as those of teams are.
pub(super) const NAMESPACES: u32 = 20;
/// How many nodes the pods are on.
pub(super) const NODES: u32 = 50;

/// What a freeze records of a CPU's features, on a server of some years ago.
const CPU_FEATURES: &str = "3dnowprefetch abm adx aes avx avx2 avx512_vnni avx512bw avx512cd avx512dq avx512f avx512vl bmi1 bmi2 \
    clflush clflushopt clwb cmov cx16 cx8 erms f16c fma fpu fsgsbase fxsr ht invpcid lahf_lm lm mmx movbe mpx msr nx ospke \
    pclmulqdq pdpe1gb pku pni popcnt rdrand rdseed rdtscp sep sha_ni smap smep sse sse2 sse4_1 sse4_2 ssse3 syscall tsc umip \
    vme xgetbv1 xsave xsavec xsaveopt xsaves";

/// Namespace of the objects with this number.
pub(super) fn namespace(number: u32) -> String {
    format!("team-{}", number % NAMESPACES)
}

/// Name of a node.
pub(super) fn node(number: u32) -> String {
    format!("node-{}", number % NODES)
}

/// What a node's agent says of itself, for longer than a measurement lasts: renewals would be counted as the operator's.
pub(super) fn lease(node: &str) -> Value {
    json!({
        "metadata": { "name": names::agent_lease(node), "labels": { (names::NODE_LABEL): node } },
        "spec": { "leaseDurationSeconds": 86_400, "renewTime": MicroTime(Timestamp::now()) },
    })
}

/// A Checkpoint of a template of its own.
pub(super) fn checkpoint(namespace: &str, name: &str) -> Value {
    json!({
        "apiVersion": "woodfrog.dev/v1alpha1",
        "kind": "Checkpoint",
        "metadata": { "name": name, "namespace": namespace, "labels": { "app.kubernetes.io/name": name } },
        "spec": {
            "source": { "template": template(name) },
            "warmUp": { "http": [{ "port": 8080, "path": "/products", "count": 200, "concurrency": 8 }], "settle": "2s" },
            "image": format!("registry.example/{namespace}/{name}:warm"),
        },
    })
}

/// A WarmPool of it.
pub(super) fn pool(namespace: &str, name: &str, checkpoint: &str, replicas: u32) -> Value {
    json!({
        "apiVersion": "woodfrog.dev/v1alpha1",
        "kind": "WarmPool",
        "metadata": { "name": name, "namespace": namespace },
        "spec": {
            "checkpointRef": { "name": checkpoint },
            "replicas": replicas,
            "template": { "labels": { "pool": name } },
        },
    })
}

fn template(name: &str) -> Value {
    let variables = (0..20).map(|number| json!({ "name": format!("SETTING_{number}"), "value": format!("value of {number} for {name}") }));
    let probe = |path: &str| json!({ "httpGet": { "path": path, "port": "http" }, "periodSeconds": 5, "timeoutSeconds": 2 });
    json!({
        "metadata": { "labels": { "app": name, "team": "shop" }, "annotations": { "prometheus.io/scrape": "true" } },
        "spec": {
            "serviceAccountName": "default",
            "securityContext": { "runAsNonRoot": true, "runAsUser": 1000, "seccompProfile": { "type": "RuntimeDefault" } },
            "containers": [{
                "name": "app",
                "image": format!("registry.example/{name}:1"),
                "ports": [{ "name": "http", "containerPort": 8080 }],
                "env": variables.collect::<Vec<_>>(),
                "readinessProbe": probe("/ready"),
                "livenessProbe": probe("/live"),
                "resources": { "requests": { "cpu": "500m", "memory": "512Mi" }, "limits": { "memory": "1Gi" } },
                "securityContext": { "allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true, "capabilities": { "drop": ["ALL"] } },
                "volumeMounts": [{ "name": "tmp", "mountPath": "/tmp" }, { "name": "settings", "mountPath": "/etc/settings" }],
            }],
            "tolerations": [
                { "key": "node.kubernetes.io/not-ready", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300 },
                { "key": "node.kubernetes.io/unreachable", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300 },
            ],
            "volumes": [{ "name": "tmp", "emptyDir": {} }, { "name": "settings", "configMap": { "name": name } }],
        },
    })
}

/// What an agent reports of a container that it has frozen and pushed.
pub(super) fn frozen(name: &str, image: &str, digest: &str) -> Value {
    json!({
        "name": name,
        "image": image,
        "digest": digest,
        "layerBytes": 192 << 20,
        "compressedBytes": 61 << 20,
        "memoryBytes": 180 << 20,
        "freezeMs": 312,
        "compatibility": {
            "architecture": "x86_64",
            "cpuVendor": "GenuineIntel",
            "cpuFeatures": CPU_FEATURES.split_whitespace().collect::<Vec<_>>(),
            "xsaveBytes": 2696,
            "kernel": "6.12.0",
            "criu": "4.2.1",
            "pageBytes": 4096,
            "cgroupVersion": 2,
        },
    })
}

/// What a kubelet says of a pod that runs and is ready.
pub(super) fn running(container: &str, image: &str, address: &str, now: &str) -> Value {
    let condition = |kind: &str| json!({ "type": kind, "status": "True", "lastTransitionTime": now });
    let conditions = ["PodReadyToStartContainers", "Initialized", "Ready", "ContainersReady", "PodScheduled"];
    json!({
        "phase": "Running",
        "hostIP": "10.0.0.1",
        "podIP": address,
        "podIPs": [{ "ip": address }],
        "startTime": now,
        "conditions": conditions.map(condition).as_slice(),
        "containerStatuses": [{
            "name": container,
            "image": image,
            "imageID": image,
            "containerID": format!("containerd://{:064x}", 7),
            "ready": true,
            "started": true,
            "restartCount": 0,
            "state": { "running": { "startedAt": now } },
        }],
    })
}
