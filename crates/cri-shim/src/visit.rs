//! Commands in containers that may sleep: a person's wake them first, kubelet's find them well.

use http::{HeaderMap, HeaderValue, Response, header};
use k8s_cri::v1::{AttachRequest, ExecRequest, ExecSyncRequest, ExecSyncResponse};
use prost::Message;
use woodfrog_protocol::agent::{Hook, Outcome};

use crate::client::Client;
use crate::exchange::Answer;
use crate::lifecycle::{managed, read};
use crate::pipe::Verdict;
use crate::proxy::Call;
use crate::shim::Managed;
use crate::{deadlines, grpc};

/// `Exec`, as of `kubectl exec`.
pub(crate) async fn exec(call: Call, client: &mut Client) -> Result<(), Verdict> {
    let id = read::<ExecRequest>(&call.body).map(|request| request.container_id);
    wake(&call, id, "kubectl exec").await;
    call.hand_through(client).await
}

/// `Attach`, as of `kubectl attach`.
pub(crate) async fn attach(call: Call, client: &mut Client) -> Result<(), Verdict> {
    let id = read::<AttachRequest>(&call.body).map(|request| request.container_id);
    wake(&call, id, "kubectl attach").await;
    call.hand_through(client).await
}

/// `ExecSync`, as of probes and hooks: a container that sleeps is well, and a hook waits until it wakes.
pub(crate) async fn exec_sync(call: Call, client: &mut Client) -> Result<(), Verdict> {
    let Some(request) = read::<ExecSyncRequest>(&call.body) else { return call.hand_through(client).await };
    if let Some(Managed { token, .. }) = sleeper(&call, Some(request.container_id.clone())).await
        && sleeps(&call, &token).await
        && (!is_hook(&request) || postponed(&call, &token, request).await)
    {
        return call.give(Some(nothing_done()), client).await;
    }
    call.hand_through(client).await
}

async fn sleeps(call: &Call, token: &str) -> bool {
    let started = call.shim.agent.await_start(token, deadlines::TOLD).await;
    started.is_ok_and(|started| started.outcome() == Outcome::Dormant)
}

/// kubelet runs `postStart` and `preStop` without a time limit, and probes always with one: `timeoutSeconds` is 1 at least.
fn is_hook(request: &ExecSyncRequest) -> bool {
    request.timeout == 0
}

/// Leaves a hook to the next wake. False if it has to be run now: the container has woken in the meantime, and nobody has run it.
async fn postponed(call: &Call, token: &str, request: ExecSyncRequest) -> bool {
    let hook = Hook { exec: request.cmd, ..Hook::default() };
    if let Err(e) = call.shim.dirs.postpone(token, &hook) {
        tracing::warn!(container_id = request.container_id, error = %e, "a hook cannot wait for the next wake");
        return true;
    }
    sleeps(call, token).await || !call.shim.dirs.take_back(token)
}

/// A managed container that may sleep.
async fn sleeper(call: &Call, id: Option<String>) -> Option<Managed> {
    managed(call, id).await.filter(|managed| call.shim.dirs.may_sleep(&managed.token))
}

async fn wake(call: &Call, id: Option<String>, reason: &str) {
    if let Some(Managed { id, .. }) = sleeper(call, id).await
        && let Err(e) = call.shim.agent.wake(&id, reason).await
    {
        tracing::warn!(container_id = id, reason = %e, "cannot wake a container for {reason}");
    }
}

/// Exit code 0, no output.
fn nothing_done() -> Answer {
    let mut head = Response::new(());
    head.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    let body = grpc::frame(&ExecSyncResponse::default().encode_to_vec());
    let trailers = HeaderMap::from_iter([(
        header::HeaderName::from_static("grpc-status"),
        HeaderValue::from_static("0"),
    )]);
    Answer { head, body, trailers: Some(trailers) }
}
