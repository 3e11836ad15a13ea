//! What the shim does to managed containers, with a runtime and an agent that the tests play.

mod support;

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::HeaderMap;
use k8s_cri::v1::*;
use prost::Message;
use support::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::task::JoinHandle;
use woodfrog_protocol::agent::{self, Outcome, Request, Response, request, response};
use woodfrog_protocol::frame::{self, Decoder, HEADER};
use woodfrog_protocol::init::{Command, Start};

const ORDINARY: &str = "sha256:1111";
const CHECKPOINT: &str = "sha256:2222";
const TOKEN: &str = "dev.woodfrog/token";

/// A runtime that knows two images and keeps its containers' annotations.
#[derive(Default)]
struct Containers {
    by_id: Mutex<HashMap<String, HashMap<String, String>>>,
    created: Mutex<Vec<Bytes>>,
    asked: Mutex<Vec<String>>,
    refuse_creation: Mutex<Option<u16>>,
}

impl Containers {
    fn start(self: &Arc<Self>, socket: &Path) -> Runtime {
        let state = self.clone();
        Runtime::answering(socket, move |path, body| {
            let method = path.rsplit('/').next().unwrap();
            state.asked.lock().unwrap().push(method.to_owned());
            state.answer(method, &body).map(|message| frame(&message))
        })
    }

    fn answer(&self, method: &str, body: &[u8]) -> Result<Vec<u8>, u16> {
        let mut by_id = self.by_id.lock().unwrap();
        Ok(match method {
            "ImageStatus" => {
                let name = decode::<ImageStatusRequest>(body).image.unwrap().image;
                let labels = match name.as_str() {
                    ORDINARY => "null",
                    CHECKPOINT => r#"{"dev.woodfrog.checkpoint.format":"1"}"#,
                    _ => return Ok(vec![]),
                };
                let info = format!(
                    r#"{{"imageSpec":{{"config":{{"Entrypoint":["/entry"],"Cmd":["c"],"Labels":{labels}}}}}}}"#
                );
                let image = Some(Image { id: name, ..Image::default() });
                ImageStatusResponse { image, info: [("info".to_owned(), info)].into() }.encode_to_vec()
            }
            "Status" => {
                let info = [("config".to_owned(), r#"{"unsetSeccompProfile":""}"#.to_owned())].into();
                StatusResponse { info, ..StatusResponse::default() }.encode_to_vec()
            }
            "CreateContainer" => {
                self.created.lock().unwrap().push(Bytes::copy_from_slice(body));
                if let Some(code) = *self.refuse_creation.lock().unwrap() {
                    return Err(code);
                }
                let container_id = format!("container-{}", by_id.len());
                let request = decode::<CreateContainerRequest>(body);
                by_id.insert(container_id.clone(), request.config.unwrap().annotations);
                CreateContainerResponse { container_id }.encode_to_vec()
            }
            "ContainerStatus" => {
                let id = decode::<ContainerStatusRequest>(body).container_id;
                let (id, annotations) = by_id.iter().find(|(full, _)| full.starts_with(&id)).ok_or(5u16)?;
                let (id, annotations) = (id.clone(), annotations.clone());
                let status = ContainerStatus { id, annotations, ..ContainerStatus::default() };
                ContainerStatusResponse { status: Some(status), ..Default::default() }.encode_to_vec()
            }
            "ListContainers" => {
                let container = |annotations: &HashMap<_, _>| Container {
                    annotations: annotations.clone(),
                    ..Default::default()
                };
                ListContainersResponse { containers: by_id.values().map(container).collect() }.encode_to_vec()
            }
            "RemoveContainer" => {
                by_id.remove(&decode::<RemoveContainerRequest>(body).container_id);
                vec![]
            }
            "RemovePodSandbox" => {
                by_id.clear();
                vec![]
            }
            _ => vec![],
        })
    }

    /// The last request that arrived.
    fn last(&self) -> Bytes {
        self.created.lock().unwrap().last().unwrap().clone()
    }
}

/// An agent that answers as it is told and notes what it hears.
struct Agent {
    heard: Arc<Mutex<Vec<request::Kind>>>,
    task: JoinHandle<()>,
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.task.abort();
    }
}

#[derive(Clone, Copy)]
enum Manner {
    /// Answers, `AwaitStart` after this time.
    Good(Duration),
    Silent,
    Garbage,
    HangsUp,
}

impl Agent {
    fn start(node: &Node, manner: Manner) -> Self {
        _ = std::fs::remove_file(&node.config.agent);
        let listener = UnixListener::bind(&node.config.agent).unwrap();
        let heard = Arc::new(Mutex::new(Vec::new()));
        let notes = heard.clone();
        let task = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                connections.spawn(converse(stream, manner, notes.clone()));
            }
        });
        Self { heard, task }
    }

    fn heard(&self) -> Vec<request::Kind> {
        self.heard.lock().unwrap().clone()
    }
}

async fn converse(mut stream: UnixStream, manner: Manner, heard: Arc<Mutex<Vec<request::Kind>>>) {
    let mut decoder = Decoder::default();
    let question = loop {
        if let Some(Request { kind }) = decoder.pop().unwrap() {
            break kind.unwrap();
        }
        let mut buffer = [0; 100];
        match stream.read(&mut buffer).await.unwrap() {
            0 => return,
            n => decoder.push(&buffer[..n]),
        }
    };
    heard.lock().unwrap().push(question.clone());
    match manner {
        Manner::Good(delay) => {
            let answer = if matches!(question, request::Kind::AwaitStart(_)) {
                tokio::time::sleep(delay).await;
                response::Kind::Started(agent::Started {
                    outcome: Outcome::Thawed as i32,
                    reason: String::new(),
                })
            } else {
                response::Kind::Ok(agent::Empty {})
            };
            let progress = response::Kind::Progress(agent::Progress::default());
            for kind in [progress, answer] {
                stream.write_all(&frame::encode(&Response { kind: Some(kind) }).unwrap()).await.unwrap();
            }
        }
        Manner::Silent => std::future::pending().await,
        Manner::Garbage => _ = stream.write_all(&[0xff; 5000]).await,
        Manner::HangsUp => {}
    }
}

/// A container that can be managed.
fn request(image: &str, annotated: bool) -> CreateContainerRequest {
    let namespace_options =
        NamespaceOption { pid: NamespaceMode::Container as i32, ..NamespaceOption::default() };
    let security_context = LinuxContainerSecurityContext {
        namespace_options: Some(namespace_options),
        seccomp: Some(SecurityProfile::default()),
        ..LinuxContainerSecurityContext::default()
    };
    let linux = LinuxContainerConfig { security_context: Some(security_context), ..Default::default() };
    let annotation = ("woodfrog.dev/managed".to_owned(), "true".to_owned());
    CreateContainerRequest {
        pod_sandbox_id: "sandbox".into(),
        config: Some(ContainerConfig {
            metadata: Some(ContainerMetadata { name: "app".into(), attempt: 0 }),
            image: Some(ImageSpec { image: image.into(), ..ImageSpec::default() }),
            args: vec!["a".into()],
            linux: Some(linux),
            ..ContainerConfig::default()
        }),
        sandbox_config: Some(PodSandboxConfig {
            annotations: annotated.then_some(annotation).into_iter().collect(),
            ..PodSandboxConfig::default()
        }),
    }
}

fn security(request: &mut CreateContainerRequest) -> &mut LinuxContainerSecurityContext {
    request.config.as_mut().unwrap().linux.as_mut().unwrap().security_context.as_mut().unwrap()
}

/// The container that arrived at the runtime.
fn config(body: &[u8]) -> ContainerConfig {
    decode::<CreateContainerRequest>(body).config.unwrap()
}

fn command(dir: &Path) -> Command {
    frame::decode(&std::fs::read(dir.join("command.bin")).unwrap()[HEADER..]).unwrap()
}

async fn up() -> (Node, Arc<Containers>, Runtime, Client) {
    let node = Node::up().await;
    let containers = Arc::new(Containers::default());
    let runtime = containers.start(&node.runtime());
    let client = node.client().await;
    (node, containers, runtime, client)
}

async fn create(client: &Client, request: &CreateContainerRequest) -> String {
    let outcome = client.ask("CreateContainer", request).await;
    assert_eq!(outcome.status(), "0");
    decode::<CreateContainerResponse>(&outcome.body).container_id
}

#[tokio::test]
async fn a_container_of_a_checkpoint_image_runs_init_and_waits_for_its_thaw() {
    let (node, containers, _runtime, client) = up().await;
    let agent = Agent::start(&node, Manner::Good(Duration::from_millis(300)));
    let id = create(&client, &request(CHECKPOINT, false)).await;

    let [dir] = &node.control_dirs()[..] else { panic!("one control directory") };
    let token = dir.file_name().unwrap().to_str().unwrap().to_owned();
    let arrived = config(&containers.last());
    assert_eq!((arrived.command, arrived.args), (vec!["/run/woodfrog/init".to_owned()], vec![]));
    assert_eq!(arrived.annotations, [(TOKEN.to_owned(), token.clone())].into());
    let mount = |host: &Path, container: &str| Mount {
        host_path: host.to_str().unwrap().into(),
        container_path: container.into(),
        readonly: true,
        ..Mount::default()
    };
    let expected = [
        mount(dir, "/run/woodfrog"),
        mount(&node.config.init.canonicalize().unwrap(), "/run/woodfrog/init"),
        mount(&node.config.kdat, "/run/criu.kdat"),
    ];
    assert_eq!(arrived.mounts, expected);
    let written = command(dir);
    assert_eq!((written.argv.as_slice(), written.start()), (&["/entry".into(), "a".into()][..], Start::Thaw));

    let begun = Instant::now();
    assert_eq!(
        client.ask("StartContainer", &StartContainerRequest { container_id: id.clone() }).await.status(),
        "0"
    );
    assert!(begun.elapsed() >= Duration::from_millis(300));
    let created = agent::ContainerCreated { token: token.clone(), container_id: id, checkpoint_image: true };
    let expected =
        [request::Kind::ContainerCreated(created), request::Kind::AwaitStart(agent::Token { token })];
    assert_eq!(agent.heard(), expected);
}

#[tokio::test]
async fn an_annotated_container_runs_init_and_starts_cold() {
    let (node, _containers, _runtime, client) = up().await;
    let agent = Agent::start(&node, Manner::Good(Duration::ZERO));
    let id = create(&client, &request(ORDINARY, true)).await;
    assert_eq!(command(&node.control_dirs()[0]).start(), Start::Cold);
    client.ask("StartContainer", &StartContainerRequest { container_id: id }).await;
    assert!(matches!(&agent.heard()[..], [request::Kind::ContainerCreated(c)] if !c.checkpoint_image));
}

#[tokio::test]
async fn without_a_good_agent_containers_start_cold_and_soon() {
    let (node, _containers, _runtime, client) = up().await;
    for manner in [None, Some(Manner::Silent), Some(Manner::Garbage), Some(Manner::HangsUp)] {
        let _agent = manner.map(|manner| Agent::start(&node, manner));
        let begun = Instant::now();
        let id = create(&client, &request(CHECKPOINT, false)).await;
        client.ask("StartContainer", &StartContainerRequest { container_id: id.clone() }).await;
        client.ask("StopContainer", &StopContainerRequest { container_id: id.clone(), timeout: 0 }).await;
        assert_eq!(command(&node.control_dirs()[0]).start(), Start::Cold);
        let gone = client.ask("RemoveContainer", &RemoveContainerRequest { container_id: id }).await;
        assert_eq!(gone.status(), "0");
        assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
        assert!(node.control_dirs().is_empty());
    }
}

#[tokio::test]
async fn a_start_ends_when_the_agent_dies_and_before_the_clients_deadline() {
    let (node, _containers, _runtime, client) = up().await;
    let agent = Agent::start(&node, Manner::Good(Duration::from_secs(3600)));
    let id = create(&client, &request(CHECKPOINT, false)).await;
    let body = frame(&StartContainerRequest { container_id: id }.encode_to_vec());
    let path = "/runtime.v1.RuntimeService/StartContainer";

    let begun = Instant::now();
    let outcome = client.call(path, &map(&[("grpc-timeout", "1500m")]), body.clone()).await.unwrap();
    assert_eq!(outcome.status(), "0");
    assert!(begun.elapsed() > Duration::from_millis(900) && begun.elapsed() < Duration::from_millis(1500));

    let kill = async {
        until("the shim asks again", || agent.heard().len() == 3).await;
        drop(agent);
    };
    let none = HeaderMap::new();
    let (outcome, ()) = soon(async { tokio::join!(client.call(path, &none, body), kill) }).await;
    assert_eq!(outcome.unwrap().status(), "0");
}

#[tokio::test]
async fn other_containers_are_created_from_the_very_bytes_of_the_client() {
    let (node, containers, _runtime, client) = up().await;
    std::fs::remove_file(&node.config.kdat).unwrap();
    let mut requests = vec![request(ORDINARY, false), request("sha256:unknown", true), request("", false)];
    let mut terminal = request(CHECKPOINT, false);
    terminal.config.as_mut().unwrap().tty = true;
    let mut shared = request(CHECKPOINT, true);
    security(&mut shared).namespace_options = Some(NamespaceOption::default());
    let mut users = request(CHECKPOINT, false);
    let options = security(&mut users).namespace_options.as_mut().unwrap();
    options.userns_options = Some(UserNamespace::default());
    let mut in_the_way = request(CHECKPOINT, false);
    let mount = Mount { container_path: "/run/woodfrog/x".into(), ..Mount::default() };
    in_the_way.config.as_mut().unwrap().mounts.push(mount);
    let mut huge = request(CHECKPOINT, false);
    huge.config.as_mut().unwrap().args.push("x".repeat(2 << 20));
    requests.extend([terminal, shared, users, in_the_way, huge]);
    for request in &requests {
        create(&client, request).await;
        assert_eq!(containers.last(), frame(&request.encode_to_vec()));
    }
    std::fs::remove_file(&node.config.init).unwrap();
    create(&client, &request(CHECKPOINT, true)).await;
    assert_eq!(containers.last(), frame(&request(CHECKPOINT, true).encode_to_vec()));
    assert!(node.control_dirs().is_empty());
}

#[tokio::test]
async fn a_managed_container_without_a_profile_gets_one_that_refuses_io_uring() {
    let (node, containers, _runtime, client) = up().await;
    let localhost = SecurityProfile {
        profile_type: 2,
        localhost_ref: node.config.seccomp_profile.to_str().unwrap().to_owned(),
    };
    let unconfined = SecurityProfile { profile_type: 1, localhost_ref: String::new() };
    for (asked, arrives) in [
        (Some(SecurityProfile::default()), Some(SecurityProfile::default())),
        (Some(unconfined), Some(localhost.clone())),
        (None, Some(localhost)),
    ] {
        let mut request = request(ORDINARY, true);
        security(&mut request).seccomp = asked;
        create(&client, &request).await;
        let arrived = config(&containers.last()).linux.unwrap().security_context.unwrap();
        assert_eq!(arrived.seccomp, arrives);
    }
    assert!(std::fs::read_to_string(&node.config.seccomp_profile).unwrap().contains("io_uring_setup"));
}

#[tokio::test]
async fn a_creation_that_fails_leaves_no_control_directory() {
    let (node, containers, _runtime, client) = up().await;
    *containers.refuse_creation.lock().unwrap() = Some(3);
    let outcome = client.ask("CreateContainer", &request(CHECKPOINT, false)).await;
    assert_eq!(outcome.status(), "3");
    assert!(node.control_dirs().is_empty());

    // The container may come to be after all, so its directory stays until that is known.
    *containers.refuse_creation.lock().unwrap() = Some(4);
    client.ask("CreateContainer", &request(CHECKPOINT, false)).await;
    assert_eq!(node.control_dirs().len(), 1);
}

#[tokio::test]
async fn an_images_config_is_asked_for_once() {
    let (_node, containers, _runtime, client) = up().await;
    for _ in 0..3 {
        create(&client, &request(ORDINARY, false)).await;
    }
    let asked = containers.asked.lock().unwrap();
    assert_eq!(asked.iter().filter(|method| *method == "ImageStatus").count(), 1);
}

#[tokio::test]
async fn a_shim_that_was_restarted_knows_its_containers_and_sweeps_what_others_left() {
    let (mut node, _containers, _runtime, client) = up().await;
    let agent = Agent::start(&node, Manner::Good(Duration::ZERO));
    let id = create(&client, &request(CHECKPOINT, false)).await;
    drop(client);
    soon(node.stop()).await.unwrap();
    let left = node.config.containers.join("0123456789abcdef0123456789abcdef");
    std::fs::create_dir(&left).unwrap();
    node.start().await;
    until("the directory without a container is removed", || !left.exists()).await;
    assert_eq!(node.control_dirs().len(), 1);

    let client = node.client().await;
    client.ask("StartContainer", &StartContainerRequest { container_id: id.clone() }).await;
    client.ask("StopContainer", &StopContainerRequest { container_id: id.clone(), timeout: 0 }).await;
    client.ask("RemoveContainer", &RemoveContainerRequest { container_id: id.clone() }).await;
    let id = agent::ContainerId { container_id: id };
    let heard = agent.heard();
    assert!(matches!(heard[1], request::Kind::AwaitStart(_)));
    assert_eq!(
        heard[2..],
        [request::Kind::ContainerStopping(id.clone()), request::Kind::ContainerRemoved(id)]
    );
    assert!(node.control_dirs().is_empty());
}

#[tokio::test]
async fn a_pods_removal_takes_the_control_directories_of_its_containers() {
    let (node, _containers, _runtime, client) = up().await;
    create(&client, &request(CHECKPOINT, false)).await;
    create(&client, &request(ORDINARY, true)).await;
    assert_eq!(node.control_dirs().len(), 2);
    client.ask("RemovePodSandbox", &RemovePodSandboxRequest::default()).await;
    until("the directories are swept", || node.control_dirs().is_empty()).await;
}
