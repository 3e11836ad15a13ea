//! Requests of pods that sleep. The test's API server does not serve `pods/resize`; a stand-in before it does, by the part of the protocol
//! that the operator speaks: a strategic merge patch of requests by containers' names, refused where it would change the QoS class.

use std::net::SocketAddr;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::{Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use kube::client::Body;
use tempfile::NamedTempFile;

use super::*;

const OWN: [&str; 2] = ["500m", "1Gi"];
const LITTLE: [&str; 2] = ["10m", "16Mi"];

/// Passes requests on as an administrator's, and resizes pods.
async fn stand_in(client: Client) -> NamedTempFile {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address: SocketAddr = listener.local_addr().unwrap();
    let router = Router::new().fallback(pass).with_state(client);
    tokio::spawn(async { axum::serve(listener, router).await });
    let kubeconfig = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "it",
        "clusters": [{"name": "it", "cluster": {"server": format!("http://{address}")}}],
        "users": [{"name": "it", "user": {}}],
        "contexts": [{"name": "it", "context": {"cluster": "it", "user": "it"}}],
    });
    let file = NamedTempFile::new().unwrap();
    std::fs::write(file.path(), kubeconfig.to_string()).unwrap();
    file
}

async fn pass(State(client): State<Client>, request: Request) -> Response {
    let (mut parts, body) = request.into_parts();
    let body = axum::body::to_bytes(body, 1 << 20).await.unwrap().to_vec();
    let path = parts.uri.path().to_owned();
    if let Some(pod) = path.strip_suffix("/resize") {
        if let Some(why) = objection(&client, &parts.method, &body, pod).await {
            let status = json!({
                "apiVersion": "v1", "kind": "Status", "status": "Failure", "reason": "Invalid", "code": 422, "message": why,
            });
            let json = [(header::CONTENT_TYPE, "application/json")];
            return (StatusCode::UNPROCESSABLE_ENTITY, json, status.to_string()).into_response();
        }
        assert_eq!(parts.headers[header::CONTENT_TYPE], "application/strategic-merge-patch+json");
        parts.uri = parts.uri.to_string().replacen("/resize", "", 1).parse().unwrap();
    }
    match client.send(Request::from_parts(parts, Body::from(body))).await {
        Ok(response) => response.map(axum::body::Body::new),
        Err(_) => StatusCode::BAD_GATEWAY.into_response(),
    }
}

/// Why Kubernetes would not resize a pod so.
async fn objection(client: &Client, method: &Method, patch: &[u8], pod: &str) -> Option<String> {
    assert_eq!(method, Method::PATCH);
    let patch: Value = serde_json::from_slice(patch).unwrap();
    let request = Request::get(pod).body(Vec::new()).unwrap();
    let pod: Pod = client.request(request).await.ok()?;
    let container = &patch["spec"]["containers"][0];
    let expected = json!({
        "metadata": {"uid": pod.metadata.uid},
        "spec": {"containers": [{"name": "app", "resources": {"requests": container["resources"]["requests"]}}]},
    });
    if patch != expected {
        return Some(format!("only resources may change: {patch}"));
    }
    let resources = pod.spec?.containers.remove(0).resources?;
    let guaranteed = resources.limits.is_some() && resources.limits == resources.requests;
    guaranteed.then(|| "Pod QOS Class may not change as a result of resizing".to_owned())
}

impl World {
    async fn sleeping_pool(&self, name: &str, replicas: i32) {
        let [cpu, memory] = LITTLE;
        let spec = json!({
            "checkpointRef": {"name": name}, "replicas": replicas, "standby": "Dormant",
            "dormantResources": {"requests": {"cpu": cpu, "memory": memory}},
        });
        self.make::<WarmPool>("WarmPool", name, spec).await;
        self.until(name, settled(replicas)).await;
    }

    /// What a pod's agent would say of it.
    async fn report(&self, pod: &str, state: &str) {
        let report =
            json!({"state": state, "since": "2026-01-01T00:00:00Z", "wakes": 0, "failed": 0, "recentMs": []});
        let annotations = json!({names::REPORT_ANNOTATION: report.to_string()});
        let patch = Patch::Merge(json!({"metadata": {"annotations": annotations}}));
        self.api::<Pod>().patch(pod, &PatchParams::default(), &patch).await.unwrap();
    }

    /// What its kubelet says of its requests, beside that it is ready.
    async fn kubelet_says(&self, pod: &str, condition: Option<(&str, &str)>) {
        let ready = json!({"type": "Ready", "status": "True"});
        let said = condition.map(|(type_, reason)| {
            json!({"type": type_, "status": "True", "reason": reason, "message": "as kubelet says"})
        });
        let conditions: Vec<_> = std::iter::once(ready).chain(said).collect();
        let patch = Patch::Merge(json!({"status": {"conditions": conditions}}));
        self.api::<Pod>().patch_status(pod, &PatchParams::default(), &patch).await.unwrap();
    }

    async fn until_pod(&self, name: &str, is: impl Fn(&Pod) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let pod = self.api::<Pod>().get(name).await.unwrap();
            if is(&pod) {
                return;
            }
            assert!(Instant::now() < deadline, "{}", serde_json::to_string_pretty(&pod).unwrap());
            sleep(Duration::from_millis(20)).await;
        }
    }

    async fn until_event(&self, reason: &str) {
        let deadline = Instant::now() + PATIENCE;
        while self.events(reason).await.is_empty() {
            assert!(Instant::now() < deadline, "no Event {reason}");
            sleep(Duration::from_millis(20)).await;
        }
    }
}

fn requests([cpu, memory]: [&str; 2]) -> impl Fn(&Pod) -> bool {
    let wanted = json!({"cpu": cpu, "memory": memory});
    move |pod| {
        let resources = pod.spec.as_ref().and_then(|spec| spec.containers[0].resources.as_ref());
        json!(resources.and_then(|resources| resources.requests.as_ref())) == wanted
    }
}

fn own(limits: bool) -> Value {
    let [cpu, memory] = OWN;
    let own = json!({"cpu": cpu, "memory": memory});
    if limits { json!({"requests": own, "limits": own}) } else { json!({ "requests": own }) }
}

#[tokio::test(flavor = "multi_thread")]
async fn api_pods_request_less_while_they_sleep_and_have_their_own_again_awake_or_claimed() {
    let Some(mut world) = World::new().await else { return };
    let kubeconfig = stand_in(world.client.clone()).await;
    world.kill_operator();
    world.kubeconfig = Some(kubeconfig.path().to_owned());
    world.start_operator().await;

    world.checkpoint_with("web", own(false)).await;
    world.sleeping_pool("web", 2).await;
    let pods: Vec<_> = world.pods("web").await.iter().map(ResourceExt::name_any).collect();
    for pod in &pods {
        world.until_pod(pod, requests(OWN)).await;
        world.report(pod, "Dormant").await;
        world.until_pod(pod, requests(LITTLE)).await;
    }
    world.report(&pods[0], "Awake").await;
    world.until_pod(&pods[0], requests(OWN)).await;
    let label = Patch::Merge(json!({"metadata": {"labels": {names::POOL_LABEL: null}}}));
    world.api::<Pod>().patch(&pods[1], &PatchParams::default(), &label).await.unwrap();
    world.until_pod(&pods[1], |pod| pod.owner_references().is_empty() && requests(OWN)(pod)).await;
    // Without the field all have their own.
    world.report(&pods[0], "Dormant").await;
    world.until_pod(&pods[0], requests(LITTLE)).await;
    let none = Patch::Merge(json!({"spec": {"dormantResources": null}}));
    world.api::<WarmPool>().patch("web", &PatchParams::default(), &none).await.unwrap();
    world.until_pod(&pods[0], requests(OWN)).await;

    world.checkpoint_with("guaranteed", own(true)).await;
    world.sleeping_pool("guaranteed", 1).await;
    let pod = world.pods("guaranteed").await[0].name_any();
    world.report(&pod, "Dormant").await;
    let refused = |pod: &Pod| pod.annotations().contains_key(names::RESIZE_REFUSED_ANNOTATION);
    world.until_pod(&pod, |pod| refused(pod) && requests(OWN)(pod)).await;
    world.until_event("ResizeRefused").await;
    world.until("guaranteed", |pool| pool.status.as_ref().is_some_and(|status| status.dormant == 1)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn api_what_kubelets_make_of_new_requests_is_said_and_what_they_can_never_do_is_given_up() {
    let Some(mut world) = World::new().await else { return };
    let kubeconfig = stand_in(world.client.clone()).await;
    world.kill_operator();
    world.kubeconfig = Some(kubeconfig.path().to_owned());
    world.start_operator().await;
    world.checkpoint_with("web", own(false)).await;
    world.sleeping_pool("web", 2).await;
    let pods: Vec<_> = world.pods("web").await.iter().map(ResourceExt::name_any).collect();
    let says = async |reason: &str| world.until("web", |pool| says(pool, "Resized", reason)).await;
    says("AsRequested").await;

    world.report(&pods[0], "Dormant").await;
    world.until_pod(&pods[0], requests(LITTLE)).await;
    world.kubelet_says(&pods[0], Some(("PodResizeInProgress", ""))).await;
    says("ResizeInProgress").await;
    world.kubelet_says(&pods[0], None).await;
    says("AsRequested").await;
    // Others have taken its room meanwhile: kubelet gives it back when there is some.
    world.report(&pods[0], "Awake").await;
    world.until_pod(&pods[0], requests(OWN)).await;
    world.kubelet_says(&pods[0], Some(("PodResizePending", "Deferred"))).await;
    let pool = says("ResizeDeferred").await;
    let conditions = pool.status.unwrap().conditions;
    let resized = conditions.iter().find(|condition| condition.type_ == "Resized").unwrap();
    assert!(resized.status == "False" && resized.message.ends_with("1 pod: as kubelet says"), "{resized:?}");
    assert!(conditions.iter().all(|c| c.type_ != "Degraded" || c.status == "False"), "{conditions:?}");
    world.kubelet_says(&pods[0], None).await;
    says("AsRequested").await;

    world.report(&pods[1], "Dormant").await;
    world.until_pod(&pods[1], requests(LITTLE)).await;
    world.kubelet_says(&pods[1], Some(("PodResizePending", "Infeasible"))).await;
    let refused = |pod: &Pod| pod.annotations().contains_key(names::RESIZE_REFUSED_ANNOTATION);
    world.until_pod(&pods[1], |pod| refused(pod) && requests(OWN)(pod)).await;
    world.kubelet_says(&pods[1], None).await;
    says("ResizeRefused").await;
    for state in ["Awake", "Dormant"] {
        world.report(&pods[1], state).await;
        let asleep = i32::from(state == "Dormant");
        world.until("web", |pool| pool.status.as_ref().is_some_and(|status| status.dormant == asleep)).await;
    }
    assert!(requests(OWN)(&world.api::<Pod>().get(&pods[1]).await.unwrap()), "it is tried again");
    let told = world.events("ResizeInfeasible").await;
    assert!(told.len() == 1 && told[0].series.is_none(), "{told:?}");
    assert!(world.events("ResizeDeferred").await.is_empty(), "that is no failure");
}

#[tokio::test(flavor = "multi_thread")]
async fn api_where_pods_cannot_be_resized_a_pool_says_so_once_and_goes_on() {
    let Some(world) = World::new().await else { return };
    world.checkpoint_with("web", own(false)).await;
    world.sleeping_pool("web", 2).await;
    for pod in world.pods("web").await {
        world.report(&pod.name_any(), "Dormant").await;
    }
    world.until("web", |pool| pool.status.as_ref().is_some_and(|status| status.dormant == 2)).await;
    world.until_event("ResizeUnsupported").await;
    let four = Patch::Merge(json!({"spec": {"replicas": 4}}));
    world.api::<WarmPool>().patch("web", &PatchParams::default(), &four).await.unwrap();
    world.until("web", settled(4)).await;
    let said = world.events("ResizeUnsupported").await;
    assert!(said.len() == 1 && said[0].series.is_none(), "{said:?}");
    assert!(world.pods("web").await.iter().all(requests(OWN)));
}
