//! One instruction, from the look for its containers to the final report.

use std::sync::Arc;
use std::time::Instant;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use kube::{Api, ResourceExt};
use tokio::sync::{mpsc, watch};
use tracing::info;
use woodfrog_api::{
    AgentPhase, AgentStatus, Checkpoint, Connections, FrozenContainer, Hook, HttpRequest, Instruction,
    Memory, PushedImage, WarmUp,
};
use woodfrog_protocol::agent::{self, FreezeRequest, FreezeTarget, Frozen, Progress, Rehearsal, response};

use super::report::{self, compatibility};
use super::secret::{self, SecretError};
use super::warm_up::{self, WarmUpError};
use super::{Context, report::name};
use crate::engine::EngineError;
use crate::engine::container::Container;

/// How often a request of the warm-up is sent in a rehearsal, at most, and how many there are in all.
const REHEARSED: i32 = 3;
const MAX_REHEARSED: usize = 32;

/// Why an instruction was not carried out.
#[derive(Debug, thiserror::Error)]
enum WorkError {
    /// The pod is not here, or not under Woodfrog.
    #[error(
        "no container {container} of pod {pod} with UID {uid} runs under Woodfrog on node {node}: the pod is gone, was replaced, or lacks the annotation woodfrog.dev/managed: \"true\""
    )]
    NoContainer { container: String, pod: String, uid: String, node: String },
    /// It is not warm.
    #[error(transparent)]
    WarmUp(#[from] WarmUpError),
    /// The credentials for the push.
    #[error(transparent)]
    Secret(#[from] SecretError),
    /// The engine.
    #[error(transparent)]
    Engine(#[from] EngineError),
}

impl WorkError {
    fn phase(&self) -> AgentPhase {
        match self {
            Self::NoContainer { .. } => AgentPhase::Refused,
            _ => AgentPhase::Failed,
        }
    }

    fn reason(&self) -> String {
        match self {
            Self::NoContainer { .. } => "NoContainer".into(),
            Self::WarmUp(e) => e.reason().into(),
            Self::Secret(_) => "Secret".into(),
            Self::Engine(e) => camel_case(e.category()),
        }
    }

    fn details(&self) -> Vec<String> {
        match self {
            Self::Engine(e) => e.details().into_iter().take(64).collect(),
            _ => Vec::new(),
        }
    }
}

/// A category of the engine as the API writes reasons.
fn camel_case(category: &str) -> String {
    let capitalized = |word: &str| {
        let (first, rest) = word.split_at(word.len().min(1));
        first.to_uppercase() + rest
    };
    category.split('_').map(capitalized).collect()
}

/// Carries an instruction out and reports on it until its final report is in the API server.
pub(super) async fn carry_out(context: Context, checkpoint: Checkpoint, instruction: Instruction) {
    let namespace = checkpoint.namespace().unwrap_or_default();
    info!(
        checkpoint = %name(&checkpoint), attempt = instruction.attempt, pod = %instruction.pod_name,
        "instructed"
    );
    // What an agent pushed that was killed at the same work.
    let said = checkpoint.status.as_ref().and_then(|status| status.agent.clone());
    let pushed = said.filter(|said| said.attempt == instruction.attempt).map(|said| said.pushed);
    let first = AgentStatus {
        node: context.node.clone(),
        attempt: instruction.attempt,
        pod_uid: instruction.pod_uid.clone(),
        phase: AgentPhase::Preparing,
        reason: None,
        message: None,
        details: Vec::new(),
        bytes_done: None,
        bytes_total: None,
        bytes_per_second: None,
        heartbeat: None,
        containers: Vec::new(),
        pushed: pushed.unwrap_or_default(),
    };
    let (status, published) = watch::channel(first);
    let work = async {
        let work =
            Work { context: &context, checkpoint: &checkpoint, instruction: &instruction, status: &status };
        let outcome = work.run().await;
        status.send_modify(|status| {
            (status.bytes_done, status.bytes_total, status.bytes_per_second) = (None, None, None);
            match &outcome {
                Ok(containers) => {
                    (status.phase, status.reason, status.message) = (AgentPhase::Done, None, None);
                    status.containers.clone_from(containers);
                }
                Err(e) => {
                    status.phase = e.phase();
                    (status.reason, status.message) = (Some(e.reason()), Some(e.to_string()));
                    status.details = e.details();
                }
            }
        });
        let outcome =
            outcome.map_or_else(|e| e.to_string(), |containers| format!("{} images", containers.len()));
        info!(checkpoint = %name(&checkpoint), attempt = instruction.attempt, "{outcome}");
    };
    let checkpoints = Api::namespaced(context.client.clone(), &namespace);
    tokio::join!(work, report::publish(checkpoints, &checkpoint, published));
}

struct Work<'a> {
    context: &'a Context,
    checkpoint: &'a Checkpoint,
    instruction: &'a Instruction,
    status: &'a watch::Sender<AgentStatus>,
}

impl Work<'_> {
    async fn run(&self) -> Result<Vec<FrozenContainer>, WorkError> {
        let engine = &self.context.engine;
        let containers = self.containers()?;
        self.status.send_modify(|status| status.phase = AgentPhase::WarmingUp);
        warm_up::warm_up(engine, &containers, &self.instruction.warm_up, |done, of| {
            self.status.send_modify(|status| {
                status.message = Some(format!("{done} of {of} requests answered"));
            });
        })
        .await?;
        let docker_config = self.docker_config().await?;
        // One that was restarted during the warm-up is another container.
        let containers = self.containers()?;
        self.status.send_modify(|status| (status.phase, status.message) = (AgentPhase::Freezing, None));
        let request = self.request(&containers, docker_config);
        let (progress, received) = mpsc::channel(64);
        let (frozen, ()) = tokio::join!(engine.freeze(request, progress), self.follow(received, &containers));
        Ok(self.results(frozen?))
    }

    /// The containers as they are now, in the instruction's order.
    fn containers(&self) -> Result<Vec<Arc<Container>>, WorkError> {
        let instruction = self.instruction;
        let find = |name: &String| {
            self.context.engine.in_pod(&instruction.pod_uid, name).ok_or_else(|| WorkError::NoContainer {
                container: name.clone(),
                pod: instruction.pod_name.clone(),
                uid: instruction.pod_uid.clone(),
                node: self.context.node.clone(),
            })
        };
        instruction.containers.iter().map(|target| find(&target.name)).collect()
    }

    fn request(&self, containers: &[Arc<Container>], docker_config: String) -> FreezeRequest {
        let instruction = self.instruction;
        let hooks = instruction.hooks.clone().unwrap_or_default();
        let targets = containers.iter().zip(&instruction.containers).map(|(container, target)| {
            FreezeTarget { container: container.info.id.clone(), image: target.image.clone() }
        });
        FreezeRequest {
            targets: targets.collect(),
            connections: match instruction.connections {
                Connections::Refuse => agent::Connections::Refuse,
                Connections::Close => agent::Connections::Close,
                Connections::Keep => agent::Connections::Keep,
            }
            .into(),
            // Otherwise the operator ends the pod, when it has noted the images: so the work can be repeated until then.
            stop: instruction.connections == Connections::Keep,
            plain_http: instruction.plain_http.clone(),
            docker_config,
            before_checkpoint: hooks.before_checkpoint.iter().map(hook).collect(),
            after_restore: hooks.after_restore.iter().map(hook).collect(),
            memory: match instruction.memory {
                Memory::Copied => agent::Memory::Copied,
                Memory::Shared => agent::Memory::Shared,
            }
            .into(),
            rehearsal: instruction.record_working_set.then(|| rehearsal(&instruction.warm_up)),
        }
    }

    async fn docker_config(&self) -> Result<String, SecretError> {
        let Some(reference) = &self.instruction.push_secret_ref else { return Ok(String::new()) };
        let namespace = self.checkpoint.namespace().unwrap_or_default();
        secret::docker_config(&self.context.client, &namespace, reference).await
    }

    /// Follows the freeze: all containers' bytes of the phase in which the last of them is.
    async fn follow(&self, mut progress: mpsc::Receiver<response::Kind>, containers: &[Arc<Container>]) {
        let mut meter = Meter::default();
        while let Some(kind) = progress.recv().await {
            let response::Kind::Progress(said) = kind else { continue };
            let phase = if said.phase == "push" { AgentPhase::Pushing } else { AgentPhase::Freezing };
            if self.status.borrow().phase != phase {
                meter = Meter::default();
            }
            let (done, total, rate) = meter.take(&said);
            let pushed = self.pushed(&said, containers);
            self.status.send_modify(|status| {
                status.phase = phase;
                status.pushed.extend(pushed);
                status.bytes_done = Some(done);
                status.bytes_total = (total > 0).then_some(total);
                status.bytes_per_second = Some(rate);
            });
        }
    }

    /// The image whose push begins.
    fn pushed(&self, said: &Progress, containers: &[Arc<Container>]) -> Option<PushedImage> {
        let mut targets = containers.iter().zip(&self.instruction.containers);
        let (_, target) = targets.find(|(container, _)| container.info.id == said.container)?;
        let image = || PushedImage {
            name: target.name.clone(),
            image: target.image.clone(),
            digest: said.digest.clone(),
        };
        (!said.digest.is_empty()).then(image)
    }

    fn results(&self, frozen: Frozen) -> Vec<FrozenContainer> {
        let now = Time(Timestamp::now());
        let compatibility = compatibility(&self.context.engine.node);
        let results = frozen.images.into_iter().zip(&self.instruction.containers);
        results
            .map(|(image, target)| FrozenContainer {
                name: target.name.clone(),
                image: image.image,
                digest: image.digest,
                layer_bytes: image.layer_bytes.cast_signed(),
                compressed_bytes: image.compressed_bytes.cast_signed(),
                memory_bytes: image.memory_bytes.cast_signed(),
                working_set_bytes: (image.working_set_bytes > 0)
                    .then_some(image.working_set_bytes.cast_signed()),
                freeze_ms: image.standstill_ms.round() as i64,
                frozen_at: Some(now.clone()),
                compatibility: Some(compatibility.clone()),
                warnings: image.warnings,
            })
            .collect()
    }
}

/// Sums what the containers report, and measures how fast it grows.
#[derive(Debug, Default)]
struct Meter {
    containers: Vec<(String, u64, u64)>,
    began: Option<(Instant, u64)>,
}

impl Meter {
    /// Bytes done, to do, and a second.
    fn take(&mut self, said: &Progress) -> (i64, i64, i64) {
        let known = self.containers.iter_mut().find(|(name, ..)| *name == said.container);
        match known {
            // Layers are reported one after the other; what was done is not undone.
            Some((_, done, total)) => (*done, *total) = ((*done).max(said.done), (*total).max(said.total)),
            None => self.containers.push((said.container.clone(), said.done, said.total)),
        }
        let done: u64 = self.containers.iter().map(|(_, done, _)| done).sum();
        let total: u64 = self.containers.iter().map(|(_, _, total)| total).sum();
        let (since, at_first) = *self.began.get_or_insert((Instant::now(), done));
        let seconds = since.elapsed().as_secs_f64().max(0.1);
        (done.cast_signed(), total.cast_signed(), ((done - at_first.min(done)) as f64 / seconds) as i64)
    }
}

/// The requests of the warm-up, each a few times: what is wanted first is wanted soon.
fn rehearsal(warm_up: &WarmUp) -> Rehearsal {
    let times = |request: &HttpRequest| request.count.clamp(1, REHEARSED) as usize;
    let requests = warm_up.http.iter().flat_map(|request| vec![rehearsed(request); times(request)]);
    Rehearsal { requests: requests.take(MAX_REHEARSED).collect() }
}

fn rehearsed(request: &HttpRequest) -> agent::HttpRequest {
    let headers = request.headers.iter();
    agent::HttpRequest {
        method: request.method.clone(),
        port: request.port.unsigned_abs(),
        path: request.path.clone(),
        headers: headers
            .map(|(name, value)| agent::Header { name: name.clone(), value: value.clone().into() })
            .collect(),
        body: request.body.clone().unwrap_or_default().into(),
    }
}

fn hook(hook: &Hook) -> agent::Hook {
    let timeout_ms = u32::try_from(hook.timeout.get().as_millis()).unwrap_or(u32::MAX);
    let mut found = agent::Hook { timeout_ms, ..Default::default() };
    if let Some(exec) = &hook.exec {
        found.exec.clone_from(&exec.command);
    } else if let Some(http) = &hook.http {
        found.http_path.clone_from(&http.path);
        found.http_port = http.port.unsigned_abs();
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn categories_become_reasons() {
        assert_eq!(camel_case("base_image"), "BaseImage");
        assert_eq!(camel_case("preflight"), "Preflight");
        assert_eq!(camel_case(""), "");
    }

    #[test]
    fn a_rehearsal_sends_few_of_the_requests_of_the_warm_up() {
        let json = serde_json::json!({ "http": [
            { "port": 8080, "path": "/a", "count": 100, "headers": { "x": "y" } },
            { "port": 8080, "path": "/b", "method": "POST", "body": "text" },
        ]});
        let warm_up: WarmUp = serde_json::from_value(json).unwrap();
        let Rehearsal { requests } = rehearsal(&warm_up);
        let said: Vec<_> =
            requests.iter().map(|request| (request.method.as_str(), request.path.as_str())).collect();
        assert_eq!(said, [("GET", "/a"), ("GET", "/a"), ("GET", "/a"), ("POST", "/b")]);
        assert_eq!((requests[0].headers[0].name.as_str(), &requests[3].body[..]), ("x", b"text".as_slice()));
    }

    #[test]
    fn a_meter_sums_containers_and_never_goes_back() {
        let mut meter = Meter::default();
        let mut said = |container: &str, done, total| {
            let (done, total, _) = meter.take(&Progress {
                container: container.into(),
                phase: "push".into(),
                done,
                total,
                ..Progress::default()
            });
            (done, total)
        };
        assert_eq!(said("a", 10, 100), (10, 100));
        assert_eq!(said("b", 5, 50), (15, 150));
        assert_eq!(said("a", 3, 20), (15, 150));
    }
}
