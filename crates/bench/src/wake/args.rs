//! `woodfrog-bench wake`: its part of the command line.

use clap::Args;
use woodfrog_testnode::App;

use crate::args::{Application, NodeArgs};
use crate::workload::Workload;

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  woodfrog-bench wake                                      all applications
  woodfrog-bench wake --applications cpython --runs 3      a quick look
  woodfrog-bench wake --runs 0 --pods 200                  only what pods that sleep cost
  woodfrog-bench wake --json wake.json                     medians, for programs

In each round, from the client's SYN to the first byte of the answer:
  dormant   a pod that sleeps: the SYN is held, the application is thawed, the SYN is released
  awake     the same pod right afterwards
  frozen    a pod whose application is in memory, held by the cgroup freezer
  proxy     a userspace proxy that restores the application with plain `criu restore`, and copies bytes
  cold      from CreateContainer of the application's own image, without a checkpoint

\"thaw\" is the agent's thaw within the dormant one, and \"bare thaw\" one of a pod that does not sleep, from its
beginning to the first answer. \"+ bare\" is dormant less that.")]
pub(crate) struct WakeArgs {
    /// Applications, with commas between them
    #[arg(long, value_enum, num_args = 1.., value_delimiter = ',', default_values_t = [Application::Cpython, Application::Tomcat, Application::Node, Application::Rails])]
    pub(crate) applications: Vec<Application>,
    /// Rounds; 0: none
    #[arg(long, value_name = "N", default_value_t = 7, value_parser = clap::value_parser!(u32).range(0..=100))]
    pub(crate) runs: u32,
    /// Pods of the first application that sleep at once, to tell what one of them costs; 0: none
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u32).range(0..=250))]
    pub(crate) pods: u32,
    #[command(flatten)]
    pub(crate) node: NodeArgs,
}

impl WakeArgs {
    /// The applications whose images the node must have.
    pub(crate) fn apps(&self) -> Vec<App> {
        self.applications.iter().map(|application| (*application).into()).collect()
    }

    pub(super) fn workloads(&self) -> Vec<Workload> {
        self.apps().into_iter().map(Workload::from).collect()
    }
}
