//! The command line of the agent and of the shim.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use woodfrog_protocol::paths;

/// Freezes and thaws the containers of a node.
#[derive(Debug, Parser)]
#[command(
    version,
    after_help = "\
Examples:
  node-agent run                    the agent, as the DaemonSet runs it
  node-agent run --metrics [::]:8082
                                    the same, and Prometheus may scrape it
  node-agent cri-shim               the shim, as a host service; kubelet's --container-runtime-endpoint is
                                    then unix:///run/woodfrog/cri.sock"
)]
pub struct Cli {
    /// What to run.
    #[command(subcommand)]
    pub command: Command,
    /// Log as JSON, one object a line.
    #[arg(long, global = true, env = "WOODFROG_LOG_JSON")]
    pub log_json: bool,
}

/// What the binary can be.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// The agent of a node.
    Run(RunArgs),
    /// The CRI shim between kubelet and the container runtime.
    CriShim(ShimArgs),
}

/// Options of the agent.
#[derive(Debug, Args)]
pub struct RunArgs {
    /// containerd's socket.
    #[arg(long, env = "WOODFROG_CONTAINERD", default_value = "/run/containerd/containerd.sock")]
    pub containerd: PathBuf,
    /// Socket for the shim and the command.
    #[arg(long, env = "WOODFROG_AGENT_SOCKET", default_value = paths::AGENT_SOCKET)]
    pub socket: PathBuf,
    /// Parent of the control directories.
    #[arg(long, default_value = paths::CONTAINERS_DIR)]
    pub containers_dir: PathBuf,
    /// Directory for dumps and images under construction.
    #[arg(long, default_value = paths::STATE_DIR)]
    pub state_dir: PathBuf,
    /// Name of this node in its cluster; without it the agent serves no control plane.
    #[arg(long, env = "NODE_NAME")]
    pub node_name: Option<String>,
    /// Namespace of the agents, in which each renews the lease by which the operator knows that it is there.
    #[arg(long, env = "POD_NAMESPACE", default_value = "woodfrog-system")]
    pub namespace: String,
    /// How to reach the API server; default: as the pod's service account.
    #[arg(long, requires = "node_name")]
    pub kubeconfig: Option<PathBuf>,
    /// Where metrics are served, at /metrics; default: nowhere.
    #[arg(long, value_name = "ADDRESS:PORT", env = "WOODFROG_METRICS")]
    pub metrics: Option<SocketAddr>,
    /// The CRIU program.
    #[arg(long, env = "WOODFROG_CRIU", default_value = "/usr/sbin/criu")]
    pub criu: PathBuf,
    /// Name of the process whose connections are probes, which do not wake a dormant container (repeatable).
    #[arg(long, value_name = "NAME", default_values = ["kubelet", "k3s", "k0s", "rke2"])]
    pub kubelet: Vec<String>,
    /// What brings memory to thawed applications; default: `woodfrog-pager` beside this binary.
    #[arg(long)]
    pub pager: Option<PathBuf>,
    /// Directory on a tmpfs for the memory that applications share.
    #[arg(long, env = "WOODFROG_PAGE_STORE", default_value = paths::PAGES_DIR)]
    pub page_store: PathBuf,
    /// The most that is kept there, in bytes; default: a quarter of the node's memory.
    #[arg(long, env = "WOODFROG_PAGE_STORE_BYTES")]
    pub page_store_bytes: Option<u64>,
}

/// Options of the shim.
#[derive(Debug, Args)]
pub struct ShimArgs {
    /// Socket that kubelet is pointed at.
    #[arg(long, default_value = paths::CRI_SOCKET)]
    pub listen: PathBuf,
    /// The container runtime's socket.
    #[arg(long, env = "WOODFROG_RUNTIME", default_value = "/run/containerd/containerd.sock")]
    pub runtime: PathBuf,
    /// The agent's socket.
    #[arg(long, env = "WOODFROG_AGENT_SOCKET", default_value = paths::AGENT_SOCKET)]
    pub agent_socket: PathBuf,
    /// Parent of the control directories.
    #[arg(long, default_value = paths::CONTAINERS_DIR)]
    pub containers_dir: PathBuf,
    /// The static init; default: `woodfrog-init` beside this binary.
    #[arg(long)]
    pub init: Option<PathBuf>,
}
