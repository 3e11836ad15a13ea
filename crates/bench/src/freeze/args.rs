//! `woodfrog-bench freeze`: its part of the command line.

use clap::Args;

use crate::args::{Application, NodeArgs, Size};
use crate::workload::{Workload, chosen};

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  woodfrog-bench freeze                                      all applications, one synthetic server
  woodfrog-bench freeze --applications tomcat --sizes        one application
  woodfrog-bench freeze --applications --sizes 1024x1        a synthetic server: MB x threads
  woodfrog-bench freeze --runs 11 --json freeze.json         for programs

In each round, of one and the same process:
  criu dump    `criu dump --leave-running` into a tmpfs, from its start to its end
  held         of that the time in which the application stood still, as CRIU tells it
  zstd         `zstd -1 -T0` of the page files that it wrote, from tmpfs to tmpfs
  standstill   `woodfrog freeze`: how long the application stood still
  built        the same, from the request to the image with all its layers compressed, before it is pushed

\"÷ criu\" is standstill ÷ criu dump, and \"of zstd\" the speed of \"built\" in hundredths of zstd's, on the bytes of those page files.")]
pub(crate) struct FreezeArgs {
    /// Applications, with commas between them
    #[arg(long, value_enum, num_args = 0.., value_delimiter = ',', default_values_t = [Application::Cpython, Application::Tomcat, Application::Node, Application::Rails])]
    pub(crate) applications: Vec<Application>,
    /// Synthetic servers, each as MBxTHREADS, with commas between them
    #[arg(long, num_args = 0.., value_delimiter = ',', default_values_t = [Size { megabytes: 256, threads: 8 }])]
    pub(crate) sizes: Vec<Size>,
    /// Rounds
    #[arg(long, value_name = "N", default_value_t = 7, value_parser = clap::value_parser!(u32).range(1..=100))]
    pub(crate) runs: u32,
    #[command(flatten)]
    pub(crate) node: NodeArgs,
}

impl FreezeArgs {
    pub(crate) fn workloads(&self) -> Vec<Workload> {
        chosen(&self.applications, &self.sizes)
    }
}
