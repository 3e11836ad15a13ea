//! `woodfrog-bench pager`: its part of the command line.

use clap::Args;

use crate::args::{Application, NodeArgs, Size};
use crate::workload::{Workload, chosen};

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  woodfrog-bench pager                                          two applications, one synthetic server
  woodfrog-bench pager --applications --sizes 512x1 --runs 3    a quick look
  woodfrog-bench pager --json pager.json                        for programs

In each round an application is thawed with copied memory, and then the page files of its image are read:
  pager        CPU time of the pager, user and system
  read()       CPU time of a process that reads the same bytes into memory that it has never touched
  ÷ read()     the pager's, for each byte, divided by that
  all there    from when the threads ran until the pager had brought all memory
  400 MB in    the same for 400 MB")]
pub(crate) struct PagerArgs {
    /// Applications, with commas between them
    #[arg(long, value_enum, num_args = 0.., value_delimiter = ',', default_values_t = [Application::Cpython, Application::Tomcat])]
    pub(crate) applications: Vec<Application>,
    /// Synthetic servers, each as MBxTHREADS, with commas between them
    #[arg(long, num_args = 0.., value_delimiter = ',', default_values_t = [Size { megabytes: 512, threads: 8 }])]
    pub(crate) sizes: Vec<Size>,
    /// Rounds
    #[arg(long, value_name = "N", default_value_t = 7, value_parser = clap::value_parser!(u32).range(1..=100))]
    pub(crate) runs: u32,
    #[command(flatten)]
    pub(crate) node: NodeArgs,
}

impl PagerArgs {
    pub(crate) fn workloads(&self) -> Vec<Workload> {
        chosen(&self.applications, &self.sizes)
    }
}
