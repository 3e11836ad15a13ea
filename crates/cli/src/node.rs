//! `woodfrog node`: installs, removes and looks at the shim of a host. The agent's init container calls it, and people.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::{Args as ClapArgs, Subcommand, ValueEnum};
use k8s_openapi::api::apps::v1::DaemonSet;
use kube::{Api, Client};
use serde::Serialize;
use woodfrog_installer::kubelet::Mode;
use woodfrog_installer::{
    Host, Install, Patience, Root, Status, Systemctl, Uninstall, Uninstalled, install, status, uninstall,
};
use woodfrog_protocol::paths;

use crate::args::Format;
use crate::failure::Failure;
use crate::{output, wake};

#[derive(Debug, ClapArgs)]
pub(crate) struct Args {
    /// Where the host's root directory is
    #[arg(long, global = true, value_name = "DIR", default_value = "/")]
    root: PathBuf,

    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Install this version's shim as a service and point kubelet at it; does nothing where that is so
    Install(InstallArgs),
    /// Point kubelet back at the container runtime and remove the shim; managed pods go on running
    Uninstall(UninstallArgs),
    /// Show what is installed, and whether service and kubelet agree
    Status,
    /// Wait until the chart's uninstall pods are done on all nodes
    #[command(hide = true)]
    AwaitUninstall(AwaitArgs),
}

#[derive(Debug, ClapArgs)]
struct InstallArgs {
    /// Directory with node-agent, woodfrog, woodfrog-init and woodfrog-pager [default: that of this program]
    #[arg(long, value_name = "DIR")]
    from: Option<PathBuf>,

    /// The container runtime's endpoint [default: the one that kubelet has]
    #[arg(long, value_name = "unix:///PATH")]
    runtime: Option<String>,

    /// Who points kubelet at the shim
    #[arg(long, value_name = "WHO", default_value = "auto")]
    kubelet: Kubelet,

    /// Try again, though this version has taken kubelet down before
    #[arg(long)]
    again: bool,
}

#[derive(Debug, ClapArgs)]
struct UninstallArgs {
    /// Only if the host runs the very binaries in this directory, and not those of another release
    #[arg(long, value_name = "DIR")]
    only: Option<PathBuf>,

    /// kubelet was pointed at the shim by hand, and has been pointed back
    #[arg(long)]
    kubelet_is_back: bool,
}

#[derive(Debug, ClapArgs)]
struct AwaitArgs {
    /// Namespace of the chart
    #[arg(long, value_name = "NAME", env = "POD_NAMESPACE")]
    namespace: String,

    /// The DaemonSet whose pods are ready once their node is done
    #[arg(long, value_name = "NAME")]
    daemon_set: String,

    /// How long to wait, in seconds
    #[arg(long, value_name = "SECONDS", default_value = "600")]
    timeout: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Kubelet {
    /// Woodfrog does, where kubeadm set kubelet up
    Auto,
    /// Whoever runs the node, by hand
    None,
}

pub(crate) fn run(format: Format, args: Args) -> Result<ExitCode, Failure> {
    let mut init = Systemctl::new(&args.root);
    let mut host = Host { root: Root::new(args.root), init: &mut init, patience: Patience::default() };
    match args.action {
        Action::Install(options) => run_install(format, &mut host, options)?,
        Action::Uninstall(options) => run_uninstall(format, &mut host, options)?,
        Action::Status => show(format, &status(&mut host)?)?,
        Action::AwaitUninstall(options) => await_uninstall(&options)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn run_install(format: Format, host: &mut Host<'_>, args: InstallArgs) -> Result<(), Failure> {
    let from = match args.from {
        Some(from) => from,
        None => std::env::current_exe().map(|program| program.with_file_name("")).map_err(Failure::Output)?,
    };
    let kubelet = if args.kubelet == Kubelet::Auto { Mode::Auto } else { Mode::ByHand };
    let version = env!("CARGO_PKG_VERSION").to_owned();
    let done = install(host, &Install { from, version, runtime: args.runtime, kubelet, again: args.again })?;
    // An agent that runs already has read it at its start. Where none does, or it is an older one, the next one finds no file.
    let _ = wake::sleep_again(&host.root.path(paths::AGENT_SOCKET));
    #[derive(Serialize)]
    struct Done<'a> {
        version: &'a str,
        changed: &'a [&'static str],
    }
    match format {
        Format::Json => output::json(&Done { version: &done.version, changed: &done.changed })?,
        Format::Table if done.changed.is_empty() => {
            output::line(&format!("{} is installed already", done.version))?;
        }
        Format::Table => {
            output::line(&format!("installed {}: {}", done.version, done.changed.join(", ")))?;
        }
    }
    Ok(())
}

fn run_uninstall(format: Format, host: &mut Host<'_>, args: UninstallArgs) -> Result<(), Failure> {
    let agent = host.root.path(paths::AGENT_SOCKET);
    let options = Uninstall { only: args.only, kubelet_is_back: args.kubelet_is_back };
    let done = uninstall(host, &options, &mut || wake::before_the_end(&agent))?;
    let (result, text) = match &done {
        Uninstalled::Nothing => ("nothing", "nothing is installed".to_owned()),
        Uninstalled::Upgraded { version } => {
            ("upgraded", format!("{version} is installed, another release: it stays"))
        }
        Uninstalled::Done { in_use } if in_use.is_empty() => ("done", "uninstalled".to_owned()),
        Uninstalled::Done { in_use } => (
            "done",
            format!(
                "uninstalled; containers still run {} in /opt/woodfrog, uninstall again after their end",
                in_use.join(", ")
            ),
        ),
    };
    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    struct Done<'a> {
        result: &'a str,
        in_use: &'a [String],
    }
    let in_use = if let Uninstalled::Done { in_use } = &done { in_use.as_slice() } else { &[] };
    match format {
        Format::Json => output::json(&Done { result, in_use })?,
        Format::Table => output::line(&text)?,
    }
    Ok(())
}

fn show(format: Format, status: &Status) -> Result<(), Failure> {
    if format == Format::Json {
        return Ok(output::json(status)?);
    }
    let yes = |yes| if yes { "yes" } else { "no" }.to_owned();
    let or_none = |text: &Option<String>| text.clone().unwrap_or_else(|| "-".into());
    let header = ["VERSION", "SERVICE", "ENABLED", "ANSWERS", "KUBELET", "AGREES"];
    let row = vec![
        or_none(&status.version),
        status.service.clone(),
        yes(status.enabled),
        yes(status.answers),
        or_none(&status.kubelet_endpoint),
        yes(status.agrees),
    ];
    output::table(&header, &[], vec![row])?;
    for problem in &status.problems {
        output::line(problem)?;
    }
    Ok(())
}

/// The chart's pre-delete hook: a release is gone from the cluster only when it is gone from the nodes.
fn await_uninstall(args: &AwaitArgs) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let cannot = |e: kube::Error| Failure::Cluster(format!("asking the API server: {e}"));
        let client = Client::try_default().await.map_err(cannot)?;
        let sets: Api<DaemonSet> = Api::namespaced(client, &args.namespace);
        let deadline = Instant::now() + Duration::from_secs(args.timeout);
        loop {
            let set = sets.get(&args.daemon_set).await.map_err(cannot)?;
            let status = set.status.unwrap_or_default();
            let (nodes, done) = (status.desired_number_scheduled, status.number_ready);
            // A status of before the last change says nothing.
            if status.observed_generation.is_some() && status.observed_generation == set.metadata.generation && done == nodes {
                return Ok(output::line(&format!("uninstalled on {nodes} nodes"))?);
            }
            if Instant::now() > deadline {
                return Err(Failure::Cluster(format!(
                    "uninstalled on {done} of {nodes} nodes after {} s: see the logs of the pods of daemonset {}, or uninstall \
                     the chart with --no-hooks and run woodfrog node uninstall on the others",
                    args.timeout, args.daemon_set
                )));
            }
            tokio::time::sleep(Duration::from_secs(2)).await;
        }
    })
}
