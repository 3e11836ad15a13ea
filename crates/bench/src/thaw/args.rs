//! `woodfrog-bench thaw`: its part of the command line.

use std::path::PathBuf;

use clap::Args;

use crate::args::{Application, Mode, NodeArgs, Size};
use crate::workload::{Workload, chosen};

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  woodfrog-bench thaw                                             all applications, all sizes
  woodfrog-bench thaw --applications cpython --sizes              one application
  woodfrog-bench thaw --applications --sizes 64x1,2048x64         a synthetic server: MB x threads
  woodfrog-bench thaw --modes criu,copied --runs 15               two ways
  woodfrog-bench thaw --json thaw.json --plots docs/performance   for programs, and pictures
  woodfrog-bench thaw --at-once 20 --applications cpython --sizes 32x4    20 at the same moment
  woodfrog-bench thaw --replicas 50 --applications --sizes 512x8          50 side by side, with shared memory

Columns, all from what triggers the way (CreateContainer; the start of criu or runc; the agent's start of the thaw):
  restored     all tasks are there
  response     the first HTTP 200
  99 % there   of the memory
  private      memory that the container shares with nobody, when it is there
  CPU          of the container's cgroup with all that restored it (runc and containerd restore from outside of it)

--at-once: pods that sleep, to which as many clients connect at the same moment; copied and shared memory in turn. Clocks start with
the clients' SYNs and end with their whole answers. CPU is that of all containers' cgroups from then on until all memory is there; the
agent's is beside it (CRIU and pagers, which are its children, count in both).
\"÷ share\" is the p95 divided by what each core has to do of that.

--replicas: pods of one image with shared memory. \"in all\" is the page store, and what the pods' memory cgroups are charged with.")]
pub(crate) struct ThawArgs {
    /// Applications, with commas between them
    #[arg(long, value_enum, num_args = 0.., value_delimiter = ',', default_values_t = [Application::Cpython, Application::Tomcat, Application::Node, Application::Rails])]
    pub(crate) applications: Vec<Application>,
    /// Synthetic servers, each as MBxTHREADS, with commas between them
    #[arg(long, num_args = 0.., value_delimiter = ',', default_values_t = Size::ALL)]
    pub(crate) sizes: Vec<Size>,
    /// Ways to bring them up, with commas between them
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = Mode::ALL)]
    pub(crate) modes: Vec<Mode>,
    /// How often each is started in each way
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=100))]
    pub(crate) runs: u32,
    /// Thaw so many of an image at the same moment, instead of all ways in turn
    #[arg(long, value_name = "N", conflicts_with_all = ["replicas", "modes", "plots"], value_parser = clap::value_parser!(u32).range(2..=200))]
    pub(crate) at_once: Option<u32>,
    /// Run so many of an image side by side with shared memory, and tell what they take, instead of all ways in turn
    #[arg(long, value_name = "N", conflicts_with_all = ["runs", "modes", "plots"], value_parser = clap::value_parser!(u32).range(1..=200))]
    pub(crate) replicas: Option<u32>,
    /// Draw plots (SVG) into this directory
    #[arg(long, value_name = "DIRECTORY")]
    pub(crate) plots: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) node: NodeArgs,
}

impl ThawArgs {
    pub(crate) fn workloads(&self) -> Vec<Workload> {
        chosen(&self.applications, &self.sizes)
    }
}
