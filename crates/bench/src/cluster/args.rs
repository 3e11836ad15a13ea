//! The command line of `woodfrog-bench cluster`.

use clap::Args;

use crate::args::{Application, NodeArgs};

/// Which applications, and how often.
#[derive(Clone, Debug, Args)]
#[command(after_help = "\
Examples:
  cargo xtask demo --cluster                                   all four applications
  cargo xtask demo --cluster --applications cpython --pods 1   a quick look
  cargo xtask demo --cluster --json cluster.json               medians, for programs

An API server, a node with containerd, agent and shim, and the operator; scheduler, kubelet and garbage collector are stand-ins.
Each application's Checkpoint is applied as it is in docs/examples, then a WarmPool of it. At the end stands what `kubectl get`
would print, and these times (medians):

  freeze       how long the application stood still
  cold pod     a pod of the Checkpoint's template, without Woodfrog: from the request that creates it to its first HTTP 200
  warm pod     a pod of the WarmPool: from the event of its creation to its first HTTP 200
  scale        the same from the request that scales the WarmPool up by one

The pods' times contain the scheduler, the sandbox with its network, and the kubelet.")]
pub(crate) struct ClusterArgs {
    /// Applications, with commas between them
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = [Application::Cpython, Application::Tomcat, Application::Node, Application::Rails])]
    pub(crate) applications: Vec<Application>,
    /// How many cold and how many warm pods of each are timed; medians are shown
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=20))]
    pub(crate) pods: u32,
    #[command(flatten)]
    pub(crate) node: NodeArgs,
}
