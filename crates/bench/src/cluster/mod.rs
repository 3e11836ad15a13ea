//! `woodfrog-bench cluster`: the way from `kubectl apply` to warm pods, on screen.
//!
//! ```text
//!   apply docs/examples/X.yaml ─► Pending ─► WarmingUp ─► Freezing ─► Pushing ─► Ready
//!   cold pods, one after the other, of the same template
//!   apply a WarmPool, scale it up pod by pod
//! ```

pub(crate) mod args;
mod pods;
mod tables;

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use tokio::signal::unix::{SignalKind, signal};
use woodfrog_api::{Checkpoint, Phase};
use woodfrog_testcluster::Cluster;
use woodfrog_testcluster::cluster::REGISTRY;
use woodfrog_testnode::{App, Node, Options};

use self::args::ClusterArgs;
use self::tables::Row;
use crate::args::Application;
use crate::node::profile;
use crate::progress::{Bar, Progress};

/// How long an application may take to be frozen, on a slow machine under load.
const PATIENCE: Duration = Duration::from_secs(300);
/// How often a Checkpoint is looked at.
const LOOK: Duration = Duration::from_millis(100);

/// An example of the documentation, and what it is made of here.
struct Example {
    /// Name of its Checkpoint.
    name: &'static str,
    yaml: &'static str,
    app: App,
}

impl Example {
    fn of(application: Application) -> Result<Self> {
        let (name, yaml) = match application {
            Application::Cpython => ("python", include_str!("../../../../docs/examples/python.yaml")),
            Application::Tomcat => ("tomcat", include_str!("../../../../docs/examples/tomcat.yaml")),
            Application::Node => ("express", include_str!("../../../../docs/examples/express.yaml")),
            Application::Rails => ("rails", include_str!("../../../../docs/examples/rails.yaml")),
            Application::Synthetic => bail!("docs/examples has no Checkpoint of the synthetic application"),
        };
        Ok(Self { name, yaml, app: application.into() })
    }

    /// With the images of the node's registry.
    fn text(&self) -> String {
        let image = format!("registry.example/shop/{}:1", self.name);
        self.yaml.replace(&image, &self.app.reference()).replace("registry.example", REGISTRY)
    }
}

/// Shows all and prints the tables. On Ctrl-C or SIGTERM all that was made is taken down.
pub(crate) fn run(args: &ClusterArgs) -> Result<ExitCode> {
    let examples = args.applications.iter().map(|application| Example::of(*application));
    let examples = examples.collect::<Result<Vec<_>>>()?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let result = runtime.block_on(async {
        let (mut interrupt, mut terminate) =
            (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
        tokio::select! {
            result = on_node(args, &examples) => result,
            _ = interrupt.recv() => bail!("interrupted"),
            _ = terminate.recv() => bail!("terminated"),
        }
    });
    // Threads that still wait for an answer must not keep the node.
    runtime.shutdown_background();
    if !args.node.keep {
        Node::down(&args.node.node)?;
    }
    result.map(|()| ExitCode::SUCCESS)
}

async fn on_node(args: &ClusterArgs, examples: &[Example]) -> Result<()> {
    let options = Options {
        images: examples.iter().map(|example| example.app).collect(),
        disk: true,
        ..Options::default()
    };
    let profile = profile(&options.binaries)?;
    let name = args.node.node.clone();
    eprintln!("starts a node, an API server and the operator");
    let node = tokio::task::spawn_blocking(move || Node::up(&name, &options)).await??;
    let cluster = Cluster::start(&node, &profile).await?;
    let progress = Progress::new();
    let bars: Vec<Bar> =
        examples.iter().map(|example| progress.bar(example.name, 1 + 2 * u64::from(args.pods))).collect();
    let mut rows = Vec::new();
    for (example, bar) in examples.iter().zip(&bars) {
        let row = show(&cluster, example, args.pods, bar).await;
        rows.push(row.with_context(|| format!("{}: see `cargo xtask node logs operator`", example.name))?);
        bar.finish();
    }
    for resource in ["checkpoints", "warmpools"] {
        println!("$ kubectl get {resource}\n{}", tables::get(&cluster, resource).await?);
    }
    println!(
        "{}\n\nMedians of {} pods each. `woodfrog-bench cluster --help` explains the columns.",
        tables::times(&rows),
        args.pods
    );
    args.node.write(&rows.iter().map(Row::json).collect())
}

/// One application's way.
async fn show(cluster: &Cluster<'_>, example: &Example, pods: u32, bar: &Bar) -> Result<Row> {
    let name = example.name;
    let began = Instant::now();
    cluster.apply(&example.text()).await?;
    let checkpoint = ready(cluster, name, bar).await?;
    bar.done(&format!("is Ready after {:.1} s", began.elapsed().as_secs_f64()));
    let mut row = Row::new(&checkpoint);
    let template = checkpoint.spec.source.template.as_ref().context("the example has no template")?;
    for number in 0..pods {
        bar.step("cold pod");
        let time = pods::cold(cluster, template, &format!("{name}-cold-{number}")).await?;
        bar.done(&format!("a cold pod answers after {time:.0} ms"));
        row.cold.push(time);
    }
    let mut pool = pods::Pool::watch(cluster, name).await?;
    for _ in 0..pods {
        bar.step("warm pod");
        let (scale, warm) = pool.one_more().await?;
        bar.done(&format!("a warm pod answers after {warm:.0} ms"));
        row.scale.push(scale);
        row.warm.push(warm);
    }
    Ok(row)
}

/// Follows a Checkpoint until it is Ready.
async fn ready(cluster: &Cluster<'_>, name: &str, bar: &Bar) -> Result<Checkpoint> {
    let (deadline, mut said) = (Instant::now() + PATIENCE, None);
    loop {
        let checkpoint = cluster.api::<Checkpoint>().get(name).await?;
        let status = checkpoint.status.clone().unwrap_or_default();
        let message = status.conditions.iter().find(|c| c.type_ == "Ready").map(|c| c.message.clone());
        match status.phase {
            Some(Phase::Ready) => return Ok(checkpoint),
            Some(Phase::Failed) => bail!("Checkpoint {name} has failed: {}", message.unwrap_or_default()),
            _ if Instant::now() > deadline => {
                bail!("Checkpoint {name} is not ready: {}", message.unwrap_or_default())
            }
            Some(phase) => {
                let progress = status.summary.and_then(|summary| summary.progress).unwrap_or_default();
                bar.step(&format!("{phase:?} {progress}"));
                if said != Some(phase) {
                    bar.say(&format!("{phase:?}"));
                    said = Some(phase);
                }
            }
            None => {}
        }
        tokio::time::sleep(LOOK).await;
    }
}
