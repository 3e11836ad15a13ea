//! `woodfrog-bench after`: its part of the command line.

use clap::Args;

use crate::args::{Application, NodeArgs, Size};
use crate::workload::{Workload, chosen};

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  woodfrog-bench after                                                      all applications
  woodfrog-bench after --applications cpython --runs 3 --requests 200       a quick look
  woodfrog-bench after --applications --sizes 256x8                         a synthetic server: MB x threads
  woodfrog-bench after --json after.json                                    for programs

Four processes of an application are there at once, each of which has answered 1,000 requests before the first round:
  never     never frozen, in a container without Woodfrog
  again     another one: how far two of them lie apart
  copied    thawed, with all of its memory there
  shared    the same, with the memory of the page store

In each round each of them in turn gets requests from one client, one after the other (p50 and p99 of whole answers, from the SYN on),
and then the same number from four clients at once (requests a second).

\"÷ never\" is how many times slower it is than the first one. Copied memory may be 3 % slower, or as far as \"again\" lies apart from
it, whichever is more; shared memory 15 %.")]
pub(crate) struct AfterArgs {
    /// Applications, with commas between them
    #[arg(long, value_enum, num_args = 0.., value_delimiter = ',', default_values_t = [Application::Cpython, Application::Tomcat, Application::Node, Application::Rails])]
    pub(crate) applications: Vec<Application>,
    /// Synthetic servers, each as MBxTHREADS, with commas between them
    #[arg(long, num_args = 0.., value_delimiter = ',')]
    pub(crate) sizes: Vec<Size>,
    /// Rounds
    #[arg(long, value_name = "N", default_value_t = 15, value_parser = clap::value_parser!(u32).range(1..=200))]
    pub(crate) runs: u32,
    /// Requests to each process in each round, from one client and again from four
    #[arg(long, value_name = "N", default_value_t = 1000, value_parser = clap::value_parser!(u32).range(100..=100_000))]
    pub(crate) requests: u32,
    #[command(flatten)]
    pub(crate) node: NodeArgs,
}

impl AfterArgs {
    pub(crate) fn workloads(&self) -> Vec<Workload> {
        chosen(&self.applications, &self.sizes)
    }
}
