//! The node of a demo or benchmark: up before, down after, whatever happens in between.

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use tokio::signal::unix::{SignalKind, signal};
use woodfrog_testkubelet::{Kubelet, Stack, stack::SHIM};
use woodfrog_testnode::{App, Node, Options};

use crate::args::NodeArgs;
use crate::contenders::Place;

impl NodeArgs {
    /// Writes results to the file that was asked for, if one was.
    pub(crate) fn write(&self, results: &serde_json::Value) -> Result<()> {
        let Some(file) = &self.json else { return Ok(()) };
        let text = serde_json::to_string_pretty(results)? + "\n";
        std::fs::write(file, text).with_context(|| format!("cannot write {}", file.display()))
    }
}

/// Runs `work` on a node that has pulled these applications' images, with Woodfrog on it. On Ctrl-C or SIGTERM the node is taken
/// down at once, and with it everything that `work` has made.
pub(crate) fn with<F>(args: &NodeArgs, apps: &[App], work: impl FnOnce(Place) -> F) -> Result<ExitCode>
where
    F: Future<Output = Result<ExitCode>>,
{
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let result = runtime.block_on(async {
        let (mut interrupt, mut terminate) =
            (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
        tokio::select! {
            result = on_node(args, apps, work) => result,
            _ = interrupt.recv() => bail!("interrupted"),
            _ = terminate.recv() => bail!("terminated"),
        }
    });
    // Threads that still wait for an answer must not keep the node.
    runtime.shutdown_background();
    if !args.keep {
        Node::down(&args.node)?;
    }
    result
}

async fn on_node<F>(args: &NodeArgs, apps: &[App], work: impl FnOnce(Place) -> F) -> Result<ExitCode>
where
    F: Future<Output = Result<ExitCode>>,
{
    let options = Options { images: apps.to_vec(), disk: true, ..Options::default() };
    let profile = profile(&options.binaries)?;
    let name = args.node.clone();
    let node = tokio::task::spawn_blocking(move || Node::up(&name, &options)).await??;
    if node.service_pid(SHIM).is_none() {
        Stack::start(&node, &profile)?;
    }
    let place = Place {
        direct: Kubelet::connect(&node, &node.containerd_socket()).await?,
        shim: Kubelet::connect(&node, &node.path("/run/woodfrog/cri.sock")).await?,
        binaries: format!("/opt/woodfrog/{profile}"),
        dumps_other_users: has_sys_resource()?,
        node,
    };
    place.remove_pods().await?;
    for app in apps {
        place.direct.pull(&app.reference()).await?;
    }
    work(place).await
}

/// The directory below the target directory that this program is in, such as `release`.
pub(crate) fn profile(target: &Path) -> Result<String> {
    let program = std::env::current_exe()?;
    let target = target.canonicalize().with_context(|| target.display().to_string())?;
    let inside = program.parent().and_then(|dir| dir.strip_prefix(&target).ok());
    let inside =
        inside.with_context(|| format!("{} is not below {}", program.display(), target.display()))?;
    Ok(inside.display().to_string())
}

fn has_sys_resource() -> Result<bool> {
    const CAP_SYS_RESOURCE: u32 = 24;
    let status = std::fs::read_to_string("/proc/self/status")?;
    let capabilities = status.lines().find_map(|line| line.strip_prefix("CapEff:")).context("no CapEff")?;
    Ok(u64::from_str_radix(capabilities.trim(), 16)? >> CAP_SYS_RESOURCE & 1 == 1)
}
