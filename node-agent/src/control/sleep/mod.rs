//! Pods of this node that may sleep: what their annotations ask for, and what the API server hears of them.
//!
//! ```text
//!   metadata of this node's pods ──watch──► one task a pod ──► engine: wake, keep awake
//!   engine's changes ─────────────nudge───►      │
//!                                                └──► annotation and condition of the pod: one patch
//!   engine's failed thaws ───────────────────────────► Events
//! ```
//!
//! Nothing here is on the way of a wake: the engine tells of it when it is over.

mod events;
mod follow;
mod tally;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use futures::{StreamExt, pin_mut};
use k8s_openapi::api::core::v1::Pod;
use kube::core::PartialObjectMeta;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, ResourceExt};
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{Notify, watch};
use tokio_util::task::AbortOnDropHandle;
use tracing::warn;
use woodfrog_api::names;

use super::Context;

/// The metadata of a pod; of the rest the agent needs to know nothing.
type Meta = PartialObjectMeta<Pod>;

/// The work on one pod.
struct Followed {
    pod: watch::Sender<Meta>,
    nudge: Arc<Notify>,
    _task: AbortOnDropHandle<()>,
}

/// Does what pods ask for and says how they are, until the process ends.
pub(super) async fn run(context: &Context) {
    tokio::join!(follow_all(context), events::tell(context));
}

async fn follow_all(context: &Context) {
    let pods: Api<Meta> = Api::all(context.client.clone());
    let mine = watcher::Config::default().fields(&format!("spec.nodeName={}", context.node));
    let pods = watcher(pods, mine).default_backoff();
    pin_mut!(pods);
    let mut changes = context.engine.changes();
    let mut followed = HashMap::new();
    let mut listed = HashSet::new();
    loop {
        tokio::select! {
            event = pods.next() => match event {
                Some(Ok(event)) => take(context, &mut followed, &mut listed, event),
                Some(Err(e)) => warn!("cannot watch this node's pods: {e}"),
                None => return,
            },
            change = changes.recv() => match change {
                Ok(change) => nudge(context, &followed, &change.token),
                Err(RecvError::Lagged(_)) => followed.values().for_each(|one| one.nudge.notify_one()),
                Err(RecvError::Closed) => return,
            },
        }
    }
}

fn take(
    context: &Context,
    followed: &mut HashMap<String, Followed>,
    listed: &mut HashSet<String>,
    event: watcher::Event<Meta>,
) {
    match event {
        watcher::Event::Init => listed.clear(),
        watcher::Event::InitApply(pod) => {
            listed.extend(pod.uid());
            follow(context, followed, pod);
        }
        watcher::Event::InitDone => followed.retain(|uid, _| listed.contains(uid)),
        watcher::Event::Apply(pod) => follow(context, followed, pod),
        watcher::Event::Delete(pod) => {
            pod.uid().and_then(|uid| followed.remove(&uid));
        }
    }
}

/// Tells the pod's task, or begins one for a pod that may sleep.
fn follow(context: &Context, followed: &mut HashMap<String, Followed>, pod: Meta) {
    let Some(uid) = pod.uid() else { return };
    if let Some(one) = followed.get(&uid) {
        one.pod.send_replace(pod);
        return;
    }
    if !pod.annotations().contains_key(names::STANDBY_ANNOTATION) {
        return;
    }
    let (sender, receiver) = watch::channel(pod);
    let nudge = Arc::new(Notify::new());
    let task = tokio::spawn(follow::follow(context.clone(), receiver, nudge.clone()));
    followed.insert(uid, Followed { pod: sender, nudge, _task: AbortOnDropHandle::new(task) });
}

/// Has the pod of a container looked at.
fn nudge(context: &Context, followed: &HashMap<String, Followed>, token: &str) {
    let container = context.engine.by_token(token);
    if let Some(one) = container.and_then(|container| followed.get(&container.info.pod_uid)) {
        one.nudge.notify_one();
    }
}
