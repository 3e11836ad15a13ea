//! The operator as a process: from its command line to its end.

use std::convert::Infallible;
use std::fmt::Debug;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result};
use futures::{Stream, StreamExt};
use kube::runtime::controller::{self, Action, ReconcileRequest, applier};
use kube::runtime::reflector::{ObjectRef, Store};
use kube::{Client, Resource, ResourceExt};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::time::Instant;
use tracing::{info, warn};

use crate::args::Cli;
use crate::context::{Context, Failures, Pace, Written};
use crate::events::Events;
use crate::leader::Leader;
use crate::metrics::Metrics;
use crate::mismatch::Teller;
use crate::pool::Resizing;
use crate::{checkpoint, pool, serve, stores};

/// How many objects of a kind are looked at at the same time.
const CONCURRENCY: u16 = 16;
/// Changes that come within this time are looked at together.
const DEBOUNCE: Duration = Duration::from_millis(50);

/// Runs until SIGTERM or SIGINT, or until the lease is lost.
///
/// # Errors
/// There is no cluster, an address is taken, the lease was lost.
pub async fn run(cli: Cli) -> Result<()> {
    let client = client(&cli).await?;
    let (metrics, registry) = Metrics::new();
    let metrics = Arc::new(metrics);
    let ready = Arc::new(AtomicBool::new(false));
    let served = serve::serve(cli.metrics_addr, cli.health_addr, Arc::new(registry), ready.clone());
    let work = async {
        reach(&client).await;
        ready.store(true, Ordering::Relaxed);
        let leader = Leader::new(client.clone(), &cli.leader_election_namespace, &cli.identity);
        // One for all waits: a signal that comes between two of them is not lost.
        let ended = end();
        tokio::pin!(ended);
        tokio::select! {
            () = leader.elected() => {}
            ended = &mut ended => return ended,
        }
        info!(identity = %cli.identity, "leads");
        metrics.leads(true);
        let result = tokio::select! {
            result = lead(&cli, &client, &metrics) => result,
            lost = leader.keep() => lost,
            ended = &mut ended => ended,
        };
        leader.resign().await;
        result
    };
    tokio::select! {
        result = served => Ok(result?),
        result = work => result,
    }
}

async fn client(cli: &Cli) -> Result<Client> {
    let Some(path) = &cli.kubeconfig else {
        return Client::try_default().await.context("cannot find a cluster: give --kubeconfig");
    };
    let read = || format!("cannot use {}", path.display());
    let kubeconfig = kube::config::Kubeconfig::read_from(path).with_context(read)?;
    let config = kube::Config::from_custom_kubeconfig(kubeconfig, &Default::default()).await;
    Client::try_from(config.with_context(read)?).with_context(read)
}

/// Waits until the API server answers.
async fn reach(client: &Client) {
    while let Err(e) = client.apiserver_version().await {
        warn!("the API server does not answer: {e}");
        tokio::time::sleep(Duration::from_secs(2)).await;
    }
}

/// Reconciles for as long as we lead.
async fn lead(cli: &Cli, client: &Client, metrics: &Arc<Metrics>) -> Result<()> {
    let (mismatches, told) = Teller::new();
    let (stores, queues, mut watches) =
        stores::watch(client, &cli.leader_election_namespace, mismatches.clone());
    watches.spawn(told.explain(client.clone()));
    let context = Arc::new(Context {
        client: client.clone(),
        namespace: cli.leader_election_namespace.clone(),
        agent_service_account: cli.agent_service_account.clone(),
        plain_http: cli.plain_http_registry.clone(),
        events: Events::new(client.clone(), &cli.identity),
        metrics: metrics.clone(),
        stores: stores.clone(),
        mismatches,
        failures: Failures::default(),
        written: Written::default(),
        pace: Pace::default(),
        resizing: Resizing::default(),
    });
    stores.ready().await?;
    info!(
        checkpoints = stores.checkpoints.len(),
        pools = stores.pools.len(),
        pods = stores.pods.len(),
        "has seen the cluster"
    );
    let checkpoints =
        reconcile("Checkpoint", checkpoint::reconcile, &context, stores.checkpoints, queues.checkpoints);
    let pools = reconcile("WarmPool", pool::reconcile, &context, stores.pools, queues.pools);
    tokio::select! {
        () = checkpoints.for_each(|()| std::future::ready(())) => {}
        () = pools.for_each(|()| std::future::ready(())) => {}
        _ = watches.join_next() => {}
    }
    anyhow::bail!("a watch has ended")
}

/// Looks at every object of the queue, and again after errors, later each time.
fn reconcile<K, E, F>(
    kind: &'static str,
    work: impl Fn(Arc<K>, Arc<Context>) -> F + Copy + Send + 'static,
    context: &Arc<Context>,
    store: Store<K>,
    mut queue: UnboundedReceiver<ObjectRef<K>>,
) -> impl Stream<Item = ()>
where
    K: Resource<DynamicType = ()> + Clone + Debug + Send + Sync + 'static,
    E: std::error::Error + Send + 'static,
    F: Future<Output = Result<Action, E>> + Send + 'static,
{
    let requests = futures::stream::poll_fn(move |cx| queue.poll_recv(cx))
        .map(|object| Ok::<_, Infallible>(ReconcileRequest::from(object)));
    let timed = move |object: Arc<K>, context: Arc<Context>| {
        Box::pin(async move {
            let began = Instant::now();
            let uid = object.uid().unwrap_or_default();
            context.metrics.reconciling(kind);
            let result = work(object.clone(), context.clone()).await;
            context.metrics.reconciled(kind, began.elapsed(), result.is_ok());
            match &result {
                Ok(_) => context.failures.forget(&uid),
                Err(e) => context.mismatches.failed(&*object, e),
            }
            result
        })
    };
    let policy = move |object: Arc<K>, error: &E, context: Arc<Context>| {
        let wait = context.failures.one_more(&object.uid().unwrap_or_default());
        let namespace = object.namespace().unwrap_or_default();
        warn!("{kind} {namespace}/{}: {error}; again in {wait:?}", object.name_any());
        Action::requeue(wait)
    };
    let config = controller::Config::default().concurrency(CONCURRENCY).debounce(DEBOUNCE);
    applier(timed, policy, context.clone(), store, requests, config).map(|_| ())
}

/// Waits for SIGTERM or SIGINT.
async fn end() -> Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    Ok(())
}
