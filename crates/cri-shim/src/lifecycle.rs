//! Start, stop and removal of managed containers: the request's bytes are handed on, and the agent is told.

use bytes::Bytes;
use k8s_cri::v1::{RemoveContainerRequest, StartContainerRequest, StopContainerRequest};
use prost::Message;
use woodfrog_protocol::init::Start;

use crate::client::Client;
use crate::pipe::Verdict;
use crate::proxy::Call;
use crate::shim::Managed;
use crate::{deadlines, grpc};

/// `StartContainer` returns when the container is thawed, cold or dormant.
pub(crate) async fn start(call: Call, client: &mut Client) -> Result<(), Verdict> {
    let id = read::<StartContainerRequest>(&call.body).map(|request| request.container_id);
    let managed = managed(&call, id).await;
    let answer = call.ask(call.body.clone(), client).await?;
    let started = answer.as_ref().is_some_and(|answer| answer.status() == Some(0));
    if let Some(Managed { id, token }) = managed
        && started
        && call.shim.dirs.start(&token).is_ok_and(|start| start == Start::Thaw)
    {
        let left = grpc::timeout(call.head.headers())
            .map(|timeout| timeout.saturating_sub(call.begun.elapsed() + deadlines::START_MARGIN));
        let deadline = left.map_or(deadlines::START, |left| left.min(deadlines::START));
        let outcome = tokio::select! {
            outcome = call.shim.agent.await_start(&token, deadline) => outcome,
            () = client.gone() => return Ok(()),
        };
        let ms = call.begun.elapsed().as_secs_f64() * 1e3;
        match outcome {
            Ok(started) => {
                let outcome = started.outcome();
                tracing::info!(container_id = id, ?outcome, reason = started.reason, ms, "container started");
            }
            Err(e) => tracing::warn!(container_id = id, reason = %e, ms, "container started, by init alone"),
        }
    }
    call.give(answer, client).await
}

/// `StopContainer`: the agent hears of it first, so that nothing is begun on a container that is about to end.
pub(crate) async fn stop(call: Call, client: &mut Client) -> Result<(), Verdict> {
    let id = read::<StopContainerRequest>(&call.body).map(|request| request.container_id);
    if let Some(Managed { id, .. }) = managed(&call, id).await
        && let Err(e) = call.shim.agent.stopping(&id).await
    {
        tracing::debug!(container_id = id, reason = %e, "the agent does not know that a container stops");
    }
    call.hand_through(client).await
}

/// `RemoveContainer`: its control directory goes with it.
pub(crate) async fn remove(call: Call, client: &mut Client) -> Result<(), Verdict> {
    let id = read::<RemoveContainerRequest>(&call.body).map(|request| request.container_id);
    let managed = managed(&call, id).await;
    let answer = call.ask(call.body.clone(), client).await?;
    let removed = answer.as_ref().is_some_and(|answer| answer.status() == Some(0));
    if let Some(Managed { id, token }) = managed.filter(|_| removed) {
        call.shim.forget(&id);
        if let Err(e) = call.shim.dirs.remove(&token) {
            tracing::warn!(container_id = id, error = %e, "a control directory is left over");
        }
        if let Err(e) = call.shim.agent.removed(&id).await {
            tracing::debug!(container_id = id, reason = %e, "the agent does not know that a container is gone");
        }
    }
    call.give(answer, client).await
}

/// `RemovePodSandbox` takes its containers along.
pub(crate) async fn remove_sandbox(call: Call, client: &mut Client) -> Result<(), Verdict> {
    let answer = call.ask(call.body.clone(), client).await?;
    call.shim.sweep.notify_one();
    call.give(answer, client).await
}

pub(crate) fn read<M: Message + Default>(body: &Bytes) -> Option<M> {
    M::decode(grpc::single_message(body)?).ok()
}

pub(crate) async fn managed(call: &Call, id: Option<String>) -> Option<Managed> {
    call.shim.managed(&id?).await
}
