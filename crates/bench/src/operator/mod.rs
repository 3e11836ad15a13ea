//! `woodfrog-bench operator`: a real operator on an API server of its own, with very many objects.
//!
//! ```text
//!   empty cluster: single changes ─► all is applied, settles ─► single changes ─► rest ─► another operator takes over
//! ```

pub(crate) mod args;
mod changes;
mod objects;
mod process;
mod requests;
mod results;
mod stand_ins;

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use futures::{StreamExt as _, TryStreamExt as _};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Namespace;
use kube::api::{Api, DynamicObject, Patch, PatchParams, PostParams};
use kube::core::ApiResource;
use kube::{Client, Resource as _};
use serde_json::json;
use tokio::signal::unix::{SignalKind, signal};
use woodfrog_api::{Checkpoint, WarmPool};
use woodfrog_testapi::{ApiServer, User, install_crds};

use self::args::OperatorArgs;
use self::process::Operator;
use self::requests::Requests;
use self::results::Results;
use self::stand_ins::{Seen, StandIns};
use crate::progress::{Bar, Progress};

/// How many objects are applied at the same time.
const APPLIERS: usize = 8;
/// How long the cluster may take in all.
const PATIENCE: Duration = Duration::from_secs(1800);
/// How often somebody is told of it who has no terminal.
const SAY: Duration = Duration::from_secs(10);
/// How often it is looked at.
const LOOK: Duration = Duration::from_millis(100);
/// Time for what still is on its way after the last change.
const CALM: Duration = Duration::from_secs(10);

/// Measures all and prints it. Fails where something does not hold.
pub(crate) fn run(args: &OperatorArgs) -> Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let result = runtime.block_on(async {
        let (mut interrupt, mut terminate) =
            (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
        // Servers and operators end with what holds them.
        tokio::select! {
            result = measure(args) => result,
            _ = interrupt.recv() => bail!("interrupted"),
            _ = terminate.recv() => bail!("terminated"),
        }
    });
    runtime.shutdown_background();
    let results = result?;
    println!("{}", results.table());
    println!(
        "\n{} Checkpoints, {} WarmPools, {} pods. Requests in {:.0} s at rest: {}.\n`woodfrog-bench operator --help` explains.",
        results.checkpoints,
        results.pools,
        results.pods,
        results.idle.as_secs_f64(),
        results.requests.text()
    );
    if let Some(file) = &args.json {
        let text = serde_json::to_string_pretty(&results.json())? + "\n";
        std::fs::write(file, text).with_context(|| format!("cannot write {}", file.display()))?;
    }
    Ok(if results.hold() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

async fn measure(args: &OperatorArgs) -> Result<Results> {
    let progress = Progress::new();
    let bar = progress.bar("operator", u64::from(args.checkpoints + args.pods()));
    bar.say("starts the API server");
    let server = ApiServer::start().await?;
    let dir = server.directory().context("KUBECONFIG names a cluster that is in use: unset it")?;
    let client = server.client(&User::admin()).await?;
    install_crds(&client).await?;
    for namespace in [process::SYSTEM.to_owned(), changes::NAMESPACE.to_owned()]
        .into_iter()
        .chain((0..objects::NAMESPACES).map(objects::namespace))
    {
        let namespace: Namespace = serde_json::from_value(json!({ "metadata": { "name": namespace } }))?;
        Api::all(client.clone()).create(&PostParams::default(), &namespace).await?;
    }
    let leases = Api::<Lease>::namespaced(client.clone(), process::SYSTEM);
    for number in 0..objects::NODES {
        let lease = serde_json::from_value(objects::lease(&objects::node(number)))?;
        leases.create(&PostParams::default(), &lease).await?;
    }
    let kubeconfig = server.kubeconfig(&User::admin()).await?;
    let operator = Operator::start(&kubeconfig, dir, "operator-0").await?;
    let stand_ins = StandIns::start(&client, server.is_real());

    bar.say("times changes in an empty cluster");
    prepare(&client, args).await?;
    let empty = changes::measure(&client, args.changes).await?;

    let before = operator.processor_time()?;
    let began = Instant::now();
    apply_all(&client, args, &bar).await?;
    settled(args, &stand_ins.seen, &operator, &bar).await?;
    let settle = began.elapsed();
    let settle_processor = operator.processor_time()? - before;

    bar.say("times changes among all these");
    tokio::time::sleep(CALM).await;
    let full = changes::measure(&client, args.changes).await?;

    bar.say(&format!("looks for {:?} at what is asked at rest", args.idle()));
    drop(stand_ins);
    tokio::time::sleep(CALM).await;
    let (before, processor, began) =
        (Requests::count(&client).await?, operator.processor_time()?, Instant::now());
    tokio::time::sleep(args.idle()).await;
    let requests = Requests::count(&client).await?.since(&before);
    let (idle, idle_processor) = (began.elapsed(), operator.processor_time()? - processor);
    let (resident, failed) = (operator.resident()?, operator.failed().await?);

    bar.say("lets another operator take over");
    operator.end().await?;
    let operator = Operator::start(&kubeconfig, dir, "operator-1").await?;
    let objects = [("Checkpoint", args.checkpoints), ("WarmPool", args.pools)];
    for (kind, count) in objects {
        while operator.reconciled(kind).await? < u64::from(count) {
            ensure!(
                operator.started.elapsed() < PATIENCE,
                "the other operator does not look at every {kind}"
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
    let takeover = operator.started.elapsed();
    let peak = resident.peak.max(operator.resident()?.peak);
    operator.end().await?;
    bar.finish();
    Ok(Results {
        checkpoints: args.checkpoints,
        pools: args.pools,
        pods: args.pods(),
        settle,
        settle_processor,
        failed,
        takeover,
        peak,
        rest: resident.now,
        idle,
        requests,
        idle_processor,
        empty,
        full,
    })
}

/// The Checkpoint and the WarmPool at which changes are timed, ready.
async fn prepare(client: &Client, args: &OperatorArgs) -> Result<()> {
    let (namespace, name) = (changes::NAMESPACE, changes::NAME);
    apply(client, objects::checkpoint(namespace, name)).await?;
    apply(client, objects::pool(namespace, name, name, args.replicas)).await?;
    changes::settled(&Api::namespaced(client.clone(), namespace), args.replicas.cast_signed()).await
}

/// Applies everything but what is there already: one Checkpoint, and one WarmPool.
async fn apply_all(client: &Client, args: &OperatorArgs, bar: &Bar) -> Result<()> {
    bar.say("applies all objects");
    let checkpoints = (1..args.checkpoints)
        .map(|number| objects::checkpoint(&objects::namespace(number), &format!("shop-{number}")));
    let pools = (1..args.pools).map(|number| {
        // Where there are fewer Checkpoints, several pools are made from one, in its namespace.
        let of = if args.checkpoints > 1 { 1 + (number - 1) % (args.checkpoints - 1) } else { number };
        let namespace = objects::namespace(of);
        objects::pool(&namespace, &format!("shop-{number}"), &format!("shop-{of}"), args.replicas)
    });
    let all = futures::stream::iter(checkpoints.chain(pools));
    all.map(|object| apply(client, object)).buffer_unordered(APPLIERS).try_collect().await
}

/// As `kubectl apply --server-side` does.
async fn apply(client: &Client, object: serde_json::Value) -> Result<()> {
    let resource = if object["kind"] == Checkpoint::kind(&()).as_ref() {
        ApiResource::erase::<Checkpoint>(&())
    } else {
        ApiResource::erase::<WarmPool>(&())
    };
    let text = |key: &str| object["metadata"][key].as_str().unwrap_or_default().to_owned();
    let (namespace, name) = (text("namespace"), text("name"));
    let api = Api::<DynamicObject>::namespaced_with(client.clone(), &namespace, &resource);
    let applied = api.patch(&name, &PatchParams::apply("kubectl"), &Patch::Apply(object)).await;
    applied.map(drop).with_context(|| format!("{} {namespace}/{name} is refused", resource.kind))
}

/// Waits until all Checkpoints are Ready and all pools full.
async fn settled(args: &OperatorArgs, seen: &Seen, operator: &Operator, bar: &Bar) -> Result<()> {
    let began = Instant::now();
    let mut said = began;
    loop {
        let counts = seen.counts();
        let resident = operator.resident()?.now as f64 / 1e6;
        let what = format!(
            "{} of {} Checkpoints, {} of {} WarmPools, {} pods, operator {resident:.0} MB",
            counts.checkpoints, args.checkpoints, counts.pools, args.pools, counts.pods
        );
        if said.elapsed() > SAY {
            bar.say(&what);
            said = Instant::now();
        }
        bar.step(&what);
        bar.at(u64::from(counts.checkpoints + counts.pods));
        if (counts.checkpoints, counts.pools) == (args.checkpoints, args.pools) {
            return Ok(());
        }
        ensure!(began.elapsed() < PATIENCE, "not settled after {PATIENCE:?}: {counts:?}");
        tokio::time::sleep(LOOK).await;
    }
}
