//! What the shim adds to a call: `latency [RUNTIME_SOCKET]`.
//!
//! Without an argument the runtime is a stand-in that answers at once, with 50 containers; then calls that are edited
//! are measured, too. Direct calls and calls through the shim alternate, so that both see the same machine. Shim and
//! stand-in are processes of their own; there is no agent.

use std::path::Path;
use std::process::{Child, Command};
use std::sync::Arc;
use std::time::{Duration, Instant};

use k8s_cri::v1::runtime_service_client::RuntimeServiceClient;
use k8s_cri::v1::{
    Container, ContainerConfig, ContainerMetadata, CreateContainerRequest, CreateContainerResponse, Image,
    ImageSpec, ImageStatusResponse, KeyValue, LinuxContainerConfig, LinuxContainerSecurityContext,
    ListContainersRequest, ListContainersResponse, NamespaceOption, PodSandboxConfig, SecurityProfile,
    VersionRequest, VersionResponse,
};
use prost::Message;
use tonic::transport::{Channel, Endpoint};
use woodfrog_cri_shim::{Config, run};

const CALLS: usize = 3000;
const IMAGE: &str = "sha256:0123";

const VERSION: &str = "Version";
const LIST: &str = "ListContainers";
/// `CreateContainer` of a container that is not managed, and of one that is.
const CREATE: &str = "CreateContainer";
const MANAGED: &str = "… managed";

type Any = Box<dyn std::error::Error>;

fn main() -> Result<(), Any> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let threads = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    match args[..] {
        ["shim", listen, runtime] => {
            let beside = |name: &str| Path::new(listen).with_file_name(name);
            let config = Config {
                agent: beside("agent.sock"),
                containers: beside("containers"),
                init: std::env::current_exe()?,
                seccomp_profile: beside("seccomp.json"),
                ..Config::new(listen, runtime)
            };
            Ok(threads.block_on(run(config, std::future::pending()))?)
        }
        ["stand-in", listen] => threads.block_on(stand_in(Path::new(listen))),
        [] => {
            let dir = tempfile::tempdir()?;
            let socket = dir.path().join("runtime.sock");
            let _server = Process::start(&["stand-in", socket.to_str().ok_or("path")?])?;
            measure(&socket, &[VERSION, LIST, CREATE, MANAGED])
        }
        [runtime] => measure(Path::new(runtime), &[VERSION, LIST]),
        _ => Err("usage: latency [RUNTIME_SOCKET]".into()),
    }
}

struct Process(Child);

impl Process {
    fn start(args: &[&str]) -> Result<Self, Any> {
        Ok(Self(Command::new(std::env::current_exe()?).args(args).spawn()?))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        _ = self.0.kill();
        _ = self.0.wait();
    }
}

fn measure(runtime: &Path, methods: &[&str]) -> Result<(), Any> {
    let dir = tempfile::tempdir()?;
    let listen = dir.path().join("cri.sock");
    let _shim = Process::start(&["shim", listen.to_str().ok_or("path")?, runtime.to_str().ok_or("path")?])?;
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
        let mut direct = connect(runtime).await?;
        let mut through = connect(&listen).await?;
        println!("{CALLS} calls each, alternating; microseconds");
        println!("{:<16} {:>10} {:>10} {:>10} {:>10}", "method", "direct", "through", "added", "p99 added");
        for method in methods {
            let (mut a, mut b) = (Vec::with_capacity(CALLS), Vec::with_capacity(CALLS));
            for _ in 0..CALLS {
                a.push(one(&mut direct, method).await?);
                b.push(one(&mut through, method).await?);
            }
            let (skip, at) = (CALLS / 20, |v: &mut Vec<Duration>, q: f64| {
                v.sort_unstable();
                v[((v.len() - 1) as f64 * q) as usize].as_secs_f64() * 1e6
            });
            let (mut a, mut b) = (a.split_off(skip), b.split_off(skip));
            let (direct, through) = (at(&mut a, 0.5), at(&mut b, 0.5));
            let p99 = at(&mut b, 0.99) - at(&mut a, 0.99);
            println!("{method:<16} {direct:>10.0} {through:>10.0} {:>10.0} {p99:>10.0}", through - direct);
        }
        Ok(())
    })
}

async fn one(client: &mut RuntimeServiceClient<Channel>, method: &str) -> Result<Duration, Any> {
    let begin = Instant::now();
    match method {
        VERSION => _ = client.version(VersionRequest::default()).await?,
        LIST => _ = client.list_containers(ListContainersRequest::default()).await?,
        _ => _ = client.create_container(creation(method == MANAGED)).await?,
    }
    Ok(begin.elapsed())
}

async fn connect(socket: &Path) -> Result<RuntimeServiceClient<Channel>, Any> {
    let endpoint = Endpoint::try_from(format!("unix://{}", socket.display()))?;
    let deadline = Instant::now() + Duration::from_secs(5);
    loop {
        match endpoint.connect().await {
            Ok(channel) => return Ok(RuntimeServiceClient::new(channel)),
            Err(e) if Instant::now() > deadline => return Err(e.into()),
            Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    }
}

/// Answers every call at once.
async fn stand_in(listen: &Path) -> Result<(), Any> {
    let version = VersionResponse {
        version: "0.1.0".into(),
        runtime_name: "containerd".into(),
        runtime_version: "2.1.9".into(),
        runtime_api_version: "v1".into(),
    };
    let containers = (0..50).map(container).collect();
    let info = r#"{"imageSpec":{"config":{"Entrypoint":["/entry"]}}}"#.to_owned();
    let image = ImageStatusResponse {
        image: Some(Image { id: IMAGE.into(), ..Image::default() }),
        info: [("info".to_owned(), info)].into(),
    };
    let bodies: Arc<Bodies> = Arc::new([
        (VERSION, frame(&version)),
        (LIST, frame(&ListContainersResponse { containers })),
        (CREATE, frame(&CreateContainerResponse { container_id: format!("{:064x}", 1) })),
        ("ImageStatus", frame(&image)),
    ]);
    let listener = tokio::net::UnixListener::bind(listen)?;
    loop {
        let mut connection = h2::server::handshake(listener.accept().await?.0).await?;
        let bodies = bodies.clone();
        tokio::spawn(async move {
            while let Some(Ok((request, respond))) = connection.accept().await {
                tokio::spawn(answer(request, respond, bodies.clone()));
            }
        });
    }
}

type Bodies = [(&'static str, bytes::Bytes); 4];

async fn answer(
    mut request: http::Request<h2::RecvStream>,
    mut respond: h2::server::SendResponse<bytes::Bytes>,
    bodies: Arc<Bodies>,
) {
    // What is dropped unread counts as the client's error, and a thousand of them end the connection.
    while request.body_mut().data().await.is_some() {}
    let found = bodies.iter().find(|(method, _)| request.uri().path().ends_with(method));
    let body = found.map_or_else(|| frame(&()), |(_, body)| body.clone());
    let head = http::Response::builder().header("content-type", "application/grpc").body(());
    let Ok(mut stream) = respond.send_response(head.expect("a response"), false) else { return };
    _ = stream.send_data(body, false);
    let status = (http::HeaderName::from_static("grpc-status"), http::HeaderValue::from_static("0"));
    _ = stream.send_trailers(http::HeaderMap::from_iter([status]));
}

fn frame(message: &impl Message) -> bytes::Bytes {
    let message = message.encode_to_vec();
    [&[0][..], &(message.len() as u32).to_be_bytes(), &message].concat().into()
}

/// A container's creation, with the annotation or without.
fn creation(managed: bool) -> CreateContainerRequest {
    let annotation = ("woodfrog.dev/managed".to_owned(), "true".to_owned());
    let namespace_options = Some(NamespaceOption { pid: 1, ..NamespaceOption::default() });
    let security_context = Some(LinuxContainerSecurityContext {
        namespace_options,
        seccomp: Some(SecurityProfile::default()),
        ..LinuxContainerSecurityContext::default()
    });
    CreateContainerRequest {
        pod_sandbox_id: format!("{:064x}", 1),
        config: Some(ContainerConfig {
            image: Some(ImageSpec { image: IMAGE.into(), ..ImageSpec::default() }),
            envs: (0..40)
                .map(|n| KeyValue { key: format!("SERVICE_{n}"), value: "10.0.0.1".into() })
                .collect(),
            linux: Some(LinuxContainerConfig { security_context, ..LinuxContainerConfig::default() }),
            ..ContainerConfig::default()
        }),
        sandbox_config: Some(PodSandboxConfig {
            annotations: managed.then_some(annotation).into_iter().collect(),
            ..PodSandboxConfig::default()
        }),
    }
}

/// Of the size that kubelet's containers have.
fn container(n: usize) -> Container {
    let id = format!("{n:064x}");
    let label = |key: &str, value: String| (key.to_owned(), value);
    Container {
        pod_sandbox_id: id.clone(),
        metadata: Some(ContainerMetadata { name: format!("container-{n}"), attempt: 0 }),
        image: Some(ImageSpec { image: format!("sha256:{n:064x}"), ..ImageSpec::default() }),
        image_ref: format!("sha256:{n:064x}"),
        state: 1,
        created_at: 1_700_000_000_000_000_000,
        labels: [
            label("io.kubernetes.container.name", format!("container-{n}")),
            label("io.kubernetes.pod.name", format!("application-{n}-5d9c7b8f6d-abcde")),
            label("io.kubernetes.pod.namespace", "production".into()),
            label("io.kubernetes.pod.uid", format!("00000000-0000-0000-0000-{n:012}")),
        ]
        .into(),
        annotations: [
            label("io.kubernetes.container.hash", format!("{n:08x}")),
            label("io.kubernetes.container.restartCount", "0".into()),
            label("io.kubernetes.container.terminationMessagePath", "/dev/termination-log".into()),
            label("io.kubernetes.container.terminationMessagePolicy", "File".into()),
            label("io.kubernetes.pod.terminationGracePeriod", "30".into()),
            label("io.kubernetes.container.ports", r#"[{"name":"http","containerPort":8080}]"#.into()),
        ]
        .into(),
        id,
        ..Container::default()
    }
}
