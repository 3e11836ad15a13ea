//! The agent and the shim as processes: from their command line to their end.

use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::signal::unix::{SignalKind, signal};
use tracing::{info, warn};
use woodfrog_criu::{Features, Setup, Toolchain, Worker};
use woodfrog_image::Compatibility;
use woodfrog_protocol::paths;
use woodfrog_sys::process::start_fork_server;

use crate::activator::Activator;
use crate::adapters::containerd::Containerd;
use crate::adapters::registry::Registries;
use crate::args::{Command, RunArgs, ShimArgs};
use crate::control;
use crate::engine::page_store::PageStore;
use crate::engine::pager::PagerProgram;
use crate::engine::saves::Saves;
use crate::engine::working_sets::WorkingSets;
use crate::engine::{Dirs, Engine, Means};
use crate::metrics::{self, Metrics};
use crate::server;

/// Runs until SIGTERM or SIGINT.
///
/// # Errors
/// What is needed is not there: CRIU, the runtime, a directory.
pub fn run(command: Command) -> Result<()> {
    if matches!(command, Command::Run(_)) {
        all_descriptors();
        // Before there are threads.
        start_fork_server().context("cannot start the server that makes processes")?;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        match command {
            Command::Run(args) => agent(args).await,
            Command::CriShim(args) => shim(args).await,
        }
    })
}

async fn agent(args: RunArgs) -> Result<()> {
    let saves = args.state_dir.join("saves");
    let dirs = Dirs {
        freezes: args.state_dir.join("freezes"),
        scratch: args.containers_dir.with_file_name("scratch"),
        pagers: args.containers_dir.with_file_name("pagers"),
        saves: Saves::new(saves.clone()),
        wide_awake: args.state_dir.join(paths::WIDE_AWAKE),
        containers: args.containers_dir,
    };
    std::fs::create_dir_all(&dirs.containers)
        .with_context(|| format!("cannot create {}", dirs.containers.display()))?;
    for dir in [&dirs.pagers, &saves] {
        private(dir).with_context(|| format!("cannot create {}", dir.display()))?;
    }
    for dir in [&dirs.freezes, &dirs.scratch] {
        empty(dir).with_context(|| format!("cannot make {} anew", dir.display()))?;
    }
    let criu = Toolchain::open(&args.criu)?;
    let version = criu.version()?;
    criu.ensure_kdat(paths::KDAT.as_ref())?;
    let criu = Arc::new(criu);
    tell_of(&criu, &version, &dirs.scratch).await;
    let node = Compatibility::of_this_node(&version)?;
    let runtime = Arc::new(Containerd::connect(&args.containerd).await?);
    let counted = Metrics::default();
    let pager = beside_us(args.pager, "woodfrog-pager")?;
    let pager = PagerProgram::open(&pager).inspect_err(|e| warn!("thaws copy all memory first: {e}")).ok();
    let page_store = pager.as_ref().and_then(|program| {
        let budget = args.page_store_bytes.unwrap_or_else(default_budget);
        PageStore::open(args.page_store, budget, program.clone(), counted.clone())
            .inspect_err(|e| warn!("memory: Shared is served as Copied: {e}"))
            .ok()
    });
    let sets = args.state_dir.join("working-sets");
    let working_sets =
        WorkingSets::open(sets.clone()).with_context(|| format!("cannot use {}", sets.display()))?;
    let activator = Activator::probe(args.kubelet, counted.clone()).await;
    let activator = activator.inspect_err(|e| warn!("no container can be dormant here: {e}")).ok();
    let means = Means { criu, pager, page_store, activator, metrics: counted, node };
    let engine = Engine::new(runtime, Arc::new(Registries), means, working_sets, dirs);
    engine.adopt().await?;
    let listener =
        server::bind(&args.socket).with_context(|| format!("cannot listen on {}", args.socket.display()))?;
    info!(socket = %args.socket.display(), "ready");
    let control = async {
        match args.node_name {
            Some(node) => {
                control::run(args.kubeconfig.as_deref(), node, &args.namespace, engine.clone()).await
            }
            None => std::future::pending().await,
        }
    };
    let metrics = async {
        match args.metrics {
            Some(address) => {
                woodfrog_telemetry::metrics::serve(address, Arc::new(metrics::registry(&engine))).await
            }
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        ended = metrics => Ok(ended?),
        () = server::serve(listener, engine.clone()) => Ok(()),
        ended = control => ended,
        ended = end() => ended,
    }
}

/// Says what CRIU can do here. Changed pages are not used yet: a freeze copies all memory while the application stands still.
async fn tell_of(criu: &Arc<Toolchain>, version: &str, work: &Path) {
    let ask = async {
        let work = tempfile::tempdir_in(work)?;
        let directory = std::fs::File::open(work.path())?.into();
        let features = Worker::spawn(criu.clone(), Setup::new(directory)).await?.features().await?;
        Ok::<_, anyhow::Error>(features)
    };
    match ask.await {
        Ok(Features { track_memory, lazy_pages, .. }) => info!(version, track_memory, lazy_pages, "criu"),
        Err(e) => warn!(version, "criu does not tell what it can do here: {e:#}"),
    }
}

/// Raises the limit of open files as far as it goes. A container that sleeps takes 6, and the usual limit is 1024.
fn all_descriptors() {
    let limit = getrlimit(Resource::Nofile);
    if let Err(e) = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }) {
        warn!("the agent can hold no more than {:?} files open: {e}", limit.current);
    }
}

/// A directory for root alone, without what an agent that was killed left in it.
fn empty(dir: &Path) -> std::io::Result<()> {
    match std::fs::remove_dir_all(dir) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    private(dir)
}

/// A directory for root alone, which may be there.
fn private(dir: &Path) -> std::io::Result<()> {
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)
}

/// A quarter of the node's memory.
fn default_budget() -> u64 {
    let memory = rustix::system::sysinfo();
    memory.totalram as u64 * u64::from(memory.mem_unit) / 4
}

/// A program that was named, or that lies beside this one.
fn beside_us(named: Option<PathBuf>, program: &str) -> std::io::Result<PathBuf> {
    named.map_or_else(|| Ok(std::env::current_exe()?.with_file_name(program)), Ok)
}

async fn shim(args: ShimArgs) -> Result<()> {
    let init = beside_us(args.init, "woodfrog-init")?;
    let config = woodfrog_cri_shim::Config {
        agent: args.agent_socket,
        containers: args.containers_dir,
        init,
        ..woodfrog_cri_shim::Config::new(args.listen, args.runtime)
    };
    Ok(woodfrog_cri_shim::run(config, async { drop(end().await) }).await?)
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
