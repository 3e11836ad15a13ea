//! The operator's command line.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::Parser;

/// Makes Checkpoints and keeps WarmPools.
#[derive(Clone, Debug, Parser)]
#[command(
    version,
    after_help = "\
Examples:
  operator                                        in a cluster, as the chart runs it
  operator --kubeconfig ~/.kube/config            on a desk, with the rights of that user
  operator --log-json --metrics-addr [::]:9090    logs for machines, metrics on another port"
)]
pub struct Cli {
    /// How to reach the API server; default: as the pod's service account, else KUBECONFIG.
    #[arg(long)]
    pub kubeconfig: Option<PathBuf>,
    /// Where metrics are served, at /metrics.
    #[arg(long, default_value = "0.0.0.0:8080")]
    pub metrics_addr: SocketAddr,
    /// Where /healthz and /readyz are served.
    #[arg(long, default_value = "0.0.0.0:8081")]
    pub health_addr: SocketAddr,
    /// Namespace of the lease that only one operator at a time holds.
    #[arg(long, env = "POD_NAMESPACE", default_value = "woodfrog-system")]
    pub leader_election_namespace: String,
    /// Name of this operator among its replicas.
    #[arg(long, env = "POD_NAME", default_value_t = format!("operator-{}", std::process::id()))]
    pub identity: String,
    /// Service account of the agents, in the same namespace: it may read a Checkpoint's push secret while it pushes.
    #[arg(long, env = "WOODFROG_AGENT_SERVICE_ACCOUNT", default_value = "woodfrog-agent")]
    pub agent_service_account: String,
    /// A registry (HOST:PORT) that speaks plain HTTP; may be repeated. Those on loopback addresses always may.
    #[arg(long, value_name = "HOST:PORT")]
    pub plain_http_registry: Vec<String>,
    /// Log as JSON, one object a line.
    #[arg(long, env = "WOODFROG_LOG_JSON")]
    pub log_json: bool,
}
