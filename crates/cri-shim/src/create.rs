//! `CreateContainer`: a managed container gets init for its command, and a control directory.

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use k8s_cri::v1::{ContainerConfig, CreateContainerRequest, CreateContainerResponse, Mount};
use prost::Message;
use woodfrog_protocol::init::{Command, Start};
use woodfrog_protocol::paths;

use crate::client::Client;
use crate::control::{ControlError, Creating};
use crate::edit::{self, Edit};
use crate::exchange::Answer;
use crate::images::ImageError;
use crate::pipe::Verdict;
use crate::plan::{self, Names, Refusal};
use crate::proxy::Call;
use crate::seccomp::{self, Asked};
use crate::shim::Shim;
use crate::wire::WireError;
use crate::{deadlines, grpc};

/// Why a container that should be managed is not.
#[derive(Debug, thiserror::Error)]
enum Unedited {
    #[error(transparent)]
    Refused(#[from] Refusal),
    #[error(transparent)]
    Image(#[from] ImageError),
    #[error("the init binary {path}: {source}")]
    Init { path: String, source: std::io::Error },
    #[error(transparent)]
    Control(#[from] ControlError),
    #[error("the request's bytes: {0}")]
    Wire(#[from] WireError),
}

/// A request that was edited.
#[derive(Debug)]
struct Edited {
    body: Bytes,
    creating: Creating,
    checkpoint_image: bool,
}

/// Runtime status codes after which the container may come to exist all the same: cancelled, deadline, unavailable.
const UNCERTAIN: [u16; 3] = [1, 4, 14];

pub(crate) async fn handle(call: Call, client: &mut Client) -> Result<(), Verdict> {
    let message = grpc::single_message(&call.body);
    let request = message.as_ref().and_then(|m| CreateContainerRequest::decode(m.clone()).ok());
    let (Some(message), Some(request)) = (message, request) else {
        tracing::debug!("a CreateContainer request that is compressed or malformed is passed unedited");
        return call.hand_through(client).await;
    };
    let names = Names::of(&request);
    let edited = match prepare(&call.shim, &message, &request, &names).await {
        Ok(edited) => edited,
        Err(reason) => {
            tracing::warn!(
                namespace = names.namespace, pod = names.pod, container = names.container, %reason,
                "container is not managed: its request is passed unedited"
            );
            None
        }
    };
    let Some(Edited { body, creating, checkpoint_image }) = edited else {
        let answer = call.ask(call.body.clone(), client).await?;
        if let Some(answer) = &answer
            && let Some(created) = answer.message::<CreateContainerResponse>()
        {
            call.shim.remember(created.container_id, None);
        }
        return call.give(answer, client).await;
    };
    let answer = match call.ask(body, client).await {
        Ok(Some(answer)) => answer,
        outcome => {
            leave_to_sweeper(&call.shim, creating);
            return outcome.map(|_| ());
        }
    };
    settle(&call.shim, &names, &answer, creating, checkpoint_image).await;
    call.give(Some(answer), client).await
}

/// The edited request of a managed container, `None` for others.
async fn prepare(
    shim: &Arc<Shim>,
    message: &[u8],
    request: &CreateContainerRequest,
    names: &Names,
) -> Result<Option<Edited>, Unedited> {
    let Some(config) = &request.config else { return Ok(None) };
    let Some(spec) = &config.image else { return Ok(None) };
    let annotated = plan::annotated(request);
    let image = match shim.images.get(&shim.runtime, spec).await {
        Ok(image) => image,
        // Whether it was to be managed is not known.
        Err(e) if !annotated => {
            tracing::debug!(container = names.container, error = %e, "is taken for an ordinary image");
            return Ok(None);
        }
        Err(e) => return Err(e.into()),
    };
    if !annotated && !image.checkpoint {
        return Ok(None);
    }
    plan::check(request, config)?;
    let argv = plan::argv(config, &image)?;
    let init = |source| Unedited::Init { path: shim.config.init.display().to_string(), source };
    // Without symbolic links: a container keeps the release of init that it started with.
    let binary = std::fs::canonicalize(&shim.config.init).map_err(init)?;
    let start = if image.checkpoint { Start::Thaw } else { Start::Cold };
    let command = Command {
        argv,
        start: start as i32,
        hello_timeout_ms: deadlines::HELLO.as_millis() as u32,
        thaw_timeout_ms: deadlines::THAW.as_millis() as u32,
        annotations: plan::standby(request),
    };
    let seccomp = seccomp_profile(shim, config, names).await;
    let creating = shim.dirs.create(&command)?;
    let edit = Edit {
        command: format!("{}/{}", paths::CONTROL_DIR, paths::INIT),
        mounts: mounts(shim, &creating.token, &binary),
        annotation: (paths::TOKEN_ANNOTATION.to_owned(), creating.token.clone()),
        seccomp,
    };
    match edit::apply(message, &edit) {
        Ok(edited) => {
            let body = grpc::frame(&edited);
            Ok(Some(Edited { body, creating, checkpoint_image: image.checkpoint }))
        }
        Err(e) => {
            remove(shim, &creating);
            Err(e.into())
        }
    }
}

/// The control directory, in it the binary, and the node's cache of kernel features if it has one: runtimes make
/// directories for host paths that are not there.
fn mounts(shim: &Shim, token: &str, binary: &Path) -> Vec<Mount> {
    // `/run` may be mounted noexec, so the binary comes from where it is installed.
    let mut mounts = vec![
        readonly(&shim.dirs.path(token), paths::CONTROL_DIR),
        readonly(binary, &format!("{}/{}", paths::CONTROL_DIR, paths::INIT)),
    ];
    if shim.config.kdat.is_file() {
        mounts.push(readonly(&shim.config.kdat, paths::KDAT));
    }
    mounts
}

/// A read-only bind mount with private propagation, CRI's default.
fn readonly(host: &Path, container: &str) -> Mount {
    Mount {
        host_path: host.display().to_string(),
        container_path: container.to_owned(),
        readonly: true,
        ..Mount::default()
    }
}

/// The profile to set, where the container would have none.
async fn seccomp_profile(shim: &Shim, config: &ContainerConfig, names: &Names) -> Option<String> {
    let none = match seccomp::asked(config) {
        Asked::Profile => false,
        Asked::Unconfined => true,
        Asked::Nothing => match shim.runtime.configuration().await {
            Ok(configuration) => configuration.is_some_and(|c| seccomp::unset_is_unconfined(&c)),
            Err(_) => false,
        },
        Asked::Privileged => {
            tracing::warn!(
                namespace = names.namespace,
                pod = names.pod,
                container = names.container,
                "a privileged container gets no seccomp filter: it can be frozen only while it does not use io_uring"
            );
            false
        }
    };
    let path = &shim.config.seccomp_profile;
    (none && seccomp::usable(path)).then(|| path.display().to_string())
}

/// Does what follows from the runtime's answer.
async fn settle(
    shim: &Arc<Shim>,
    names: &Names,
    answer: &Answer,
    creating: Creating,
    checkpoint_image: bool,
) {
    let token = &creating.token;
    let Names { namespace, pod, container } = names;
    match answer.status() {
        Some(0) => {}
        Some(code) if !UNCERTAIN.contains(&code) => return remove(shim, &creating),
        _ => return leave_to_sweeper(shim, creating),
    }
    let told = match answer.message::<CreateContainerResponse>() {
        Some(CreateContainerResponse { container_id }) => {
            tracing::info!(
                namespace,
                pod,
                container,
                container_id,
                token,
                checkpoint_image,
                "container is managed"
            );
            shim.remember(container_id.clone(), Some(token.clone()));
            shim.agent.created(token, &container_id, checkpoint_image).await.map_err(|e| e.to_string())
        }
        None => Err("the runtime's answer cannot be read".to_owned()),
    };
    let Err(reason) = told else { return };
    if !checkpoint_image {
        return tracing::debug!(namespace, pod, container, reason, "the agent does not know of a container");
    }
    tracing::warn!(namespace, pod, container, reason, "the agent cannot thaw the container: it starts cold");
    if let Err(e) = shim.dirs.set_cold(token) {
        // Init finds no agent and starts cold by itself, only later.
        tracing::warn!(namespace, pod, container, error = %e, "init will wait for the agent in vain");
    }
}

fn remove(shim: &Shim, creating: &Creating) {
    if let Err(e) = shim.dirs.remove(&creating.token) {
        tracing::warn!(error = %e, "a control directory is left over");
    }
}

/// Whether the container will exist is not known: its directory is looked at again when it must be.
fn leave_to_sweeper(shim: &Arc<Shim>, creating: Creating) {
    let shim = shim.clone();
    tokio::spawn(async move {
        tokio::time::sleep(deadlines::SWEEP_AFTER).await;
        drop(creating);
        shim.sweep.notify_one();
    });
}
