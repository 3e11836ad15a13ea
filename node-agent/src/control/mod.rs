//! The agent's side of the control plane: what the operator asks of this node, as the API server tells of it.
//!
//! ```text
//!   Checkpoints with the label woodfrog.dev/node=NODE ──watch──► one task an instruction
//!                                                                   │ containers ─► warm-up ─► freeze
//!   status.agent (its own field manager) ◄──report── progress, result
//!                                                                or one a pruning
//!   status.pruned (another one)          ◄──report── outcomes       │ registry: images that are not kept
//! ```
//!
//! Pods that may sleep are another matter: see [`sleep`]; so are pools whose first pod is still to come: see [`pools`]. That it is there at all it says by a Lease: see [`lease`].
//!
//! Everything is level-triggered. An instruction without a final report is carried out, also after a restart of the
//! agent: an application that was being frozen runs on when its agent dies, so it can be frozen again. One that is
//! taken back, or replaced by one with another number, is given up.

mod lease;
mod node;
mod pools;
mod prune;
mod report;
mod secret;
mod sleep;
mod warm_up;
mod work;

use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::sync::{Arc, OnceLock};

use anyhow::{Context as _, Result};
use futures::{StreamExt, pin_mut};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client, ResourceExt};
use tokio_util::task::AbortOnDropHandle;
use tracing::{info, warn};
use woodfrog_api::{Checkpoint, Instruction, Pruning, names};

use crate::engine::Engine;

/// What every task of this module needs.
#[derive(Clone)]
struct Context {
    client: Client,
    engine: Arc<Engine>,
    node: String,
}

/// What the operator asks for.
enum Asked {
    Freeze(Instruction),
    Prune(Pruning),
}

/// The same, told apart by the number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Job {
    Freeze(i64),
    Prune(i64),
}

/// The work on one Checkpoint.
struct Running {
    job: Job,
    _task: AbortOnDropHandle<()>,
}

/// Serves the control plane until the process ends. `kubeconfig`: instead of the pod's own service account. `namespace`: the agents'.
///
/// # Errors
/// There is no configuration for a cluster.
pub(crate) async fn run(
    kubeconfig: Option<&Path>,
    node: String,
    namespace: &str,
    engine: Arc<Engine>,
) -> Result<()> {
    let client = client(kubeconfig).await?;
    let context = Context { client, engine, node };
    let uid = OnceLock::new();
    let labels = node::keep_labelled(&context, &uid);
    let lease = lease::keep(&context, namespace, &uid);
    let work = watch(&context);
    let sleep = sleep::run(&context);
    let pools = pools::run(&context);
    info!(node = %context.node, "serves the control plane");
    tokio::join!(labels, lease, work, sleep, pools);
    Ok(())
}

async fn client(kubeconfig: Option<&Path>) -> Result<Client> {
    let Some(path) = kubeconfig else {
        return Client::try_default().await.context("cannot find the cluster that this pod is in");
    };
    let read = || format!("cannot use {}", path.display());
    let kubeconfig = kube::config::Kubeconfig::read_from(path).with_context(read)?;
    let config = kube::Config::from_custom_kubeconfig(kubeconfig, &Default::default()).await;
    Client::try_from(config.with_context(read)?).with_context(read)
}

async fn watch(context: &Context) {
    let checkpoints: Api<Checkpoint> = Api::all(context.client.clone());
    let config = watcher::Config::default().labels(&format!("{}={}", names::NODE_LABEL, context.node));
    let events = watcher(checkpoints, config).default_backoff();
    pin_mut!(events);
    let mut running = HashMap::new();
    let mut listed = HashSet::new();
    while let Some(event) = events.next().await {
        match event {
            Ok(watcher::Event::Init) => listed.clear(),
            Ok(watcher::Event::InitApply(checkpoint)) => {
                listed.extend(checkpoint.uid());
                take(context, &mut running, checkpoint);
            }
            Ok(watcher::Event::InitDone) => running.retain(|uid, _| listed.contains(uid)),
            Ok(watcher::Event::Apply(checkpoint)) => take(context, &mut running, checkpoint),
            Ok(watcher::Event::Delete(checkpoint)) => {
                checkpoint.uid().and_then(|uid| running.remove(&uid));
            }
            Err(e) => warn!("cannot watch Checkpoints: {e}"),
        }
    }
}

/// Begins, goes on with or gives up the work on a Checkpoint, as it says now.
fn take(context: &Context, running: &mut HashMap<String, Running>, checkpoint: Checkpoint) {
    let Some(uid) = checkpoint.uid() else { return };
    let status = checkpoint.status.clone().unwrap_or_default();
    let instruction = status.instruction.filter(|instruction| instruction.node == context.node);
    let pruning = status.pruning.filter(|pruning| pruning.node == context.node);
    let Some(asked) = instruction.map(Asked::Freeze).or(pruning.map(Asked::Prune)) else {
        running.remove(&uid);
        return;
    };
    let (job, over) = match &asked {
        Asked::Freeze(Instruction { attempt, .. }) => {
            let said = status.agent.filter(|agent| agent.attempt == *attempt);
            (Job::Freeze(*attempt), said.is_some_and(|agent| agent.phase.is_final()))
        }
        Asked::Prune(Pruning { number, .. }) => {
            let said = status.pruned.filter(|said| said.number == *number && said.node == context.node);
            (Job::Prune(*number), said.is_some_and(|said| said.done))
        }
    };
    if over || running.get(&uid).is_some_and(|running| running.job == job) {
        return;
    }
    let context = context.clone();
    let task = match asked {
        Asked::Freeze(instruction) => tokio::spawn(work::carry_out(context, checkpoint, instruction)),
        Asked::Prune(pruning) => tokio::spawn(prune::carry_out(context, checkpoint, pruning)),
    };
    running.insert(uid, Running { job, _task: AbortOnDropHandle::new(task) });
}
