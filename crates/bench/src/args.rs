//! The command line.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;

use clap::{Args, Parser, Subcommand, ValueEnum};
use woodfrog_testnode::App;

use crate::after::args::AfterArgs;
use crate::cluster::args::ClusterArgs;
use crate::freeze::args::FreezeArgs;
use crate::operator::args::OperatorArgs;
use crate::pager::args::PagerArgs;
use crate::thaw::args::ThawArgs;
use crate::wake::args::WakeArgs;

/// Shows and measures Woodfrog on a node, an API server or a cluster of its own.
#[derive(Debug, Parser)]
#[command(name = "woodfrog-bench", version)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Freeze and thaw applications, beside the other ways to restore them
    Demo(DemoArgs),
    /// The way from `kubectl apply` to warm pods, in a cluster
    Cluster(ClusterArgs),
    /// Measure restored, first response, all memory there, in every way, for applications and sizes
    Thaw(ThawArgs),
    /// Measure requests to thawed applications that run for a while, beside those to processes that were never frozen
    After(AfterArgs),
    /// Measure the pager's CPU time and speed beside read() of the same memory
    Pager(PagerArgs),
    /// Measure how long a freeze holds an application, and how fast its image is built
    Freeze(FreezeArgs),
    /// Measure a client's SYN to a dormant pod until the first byte of the answer
    Wake(WakeArgs),
    /// Measure what the shim adds to CRI calls
    Shim(ShimArgs),
    /// Measure the start of a 32 MB server beside runc, with containerd's share of it
    Start(StartArgs),
    /// Measure the operator with very many objects: time, memory, requests
    Operator(OperatorArgs),
    /// What runs in the node
    #[command(subcommand, hide = true)]
    Inside(Inside),
}

/// Which node, and whether it stays.
#[derive(Clone, Debug, Args)]
pub(crate) struct NodeArgs {
    /// Name of the node that is started, and taken down afterwards, also on Ctrl-C
    #[arg(long, value_name = "NAME", default_value = "demo")]
    pub(crate) node: String,
    /// Leave the node up, for a look around or a faster next run
    #[arg(long)]
    pub(crate) keep: bool,
    /// Write the results to this file
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  cargo xtask demo                                   all four applications
  cargo xtask demo --applications cpython --runs 3   a quick look
  cargo xtask demo --json results.json               medians, for programs; null where something cannot run
  cargo xtask demo --cluster                         Checkpoints and WarmPools in a cluster; has a --help of its own

Columns:
  cold start   CreateContainer to the first HTTP 200, through containerd, no checkpoint
  freeze       woodfrog freeze, from the request to the image in the registry
  image        layers that the freeze added to the application's image; compressed: as pushed
  thaw         Woodfrog: the agent's start of the thaw to the first answer
  start        Woodfrog: CreateContainer of the frozen image to the first answer, to compare with cold start
  criu         plain `criu restore` in a container that waits: start of criu to the first answer
  runc         `runc restore` of a plain container: start of runc to the first answer
  containerd   CreateContainer of containerd's own CRI checkpoint to the first answer")]
pub(crate) struct DemoArgs {
    /// Applications, with commas between them
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = [Application::Cpython, Application::Tomcat, Application::Node, Application::Rails])]
    pub(crate) applications: Vec<Application>,
    /// How often each is started in each way; medians are shown
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=100))]
    pub(crate) runs: u32,
    #[command(flatten)]
    pub(crate) node: NodeArgs,
}

/// A way to bring an application up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Mode {
    /// From its command, in a new container
    Cold,
    /// `runc restore`
    Runc,
    /// containerd's own CRI restore
    Containerd,
    /// `criu restore` in a container that waits
    Criu,
    /// The same, with `criu lazy-pages`
    CriuLazy,
    /// Woodfrog: memory is copied while the application runs
    Copied,
    /// Woodfrog: memory is mapped from the node's page store, and shared with other containers of the image
    Shared,
}

impl Mode {
    pub(crate) const ALL: [Self; 7] =
        [Self::Cold, Self::Runc, Self::Containerd, Self::Criu, Self::CriuLazy, Self::Copied, Self::Shared];

    /// It is a way of Woodfrog's.
    pub(crate) const fn is_ours(self) -> bool {
        matches!(self, Self::Copied | Self::Shared)
    }

    /// As in arguments and JSON.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Cold => "cold",
            Self::Runc => "runc",
            Self::Containerd => "containerd",
            Self::Criu => "criu",
            Self::CriuLazy => "criu-lazy",
            Self::Copied => "copied",
            Self::Shared => "shared",
        }
    }
}

/// Of a synthetic server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Size {
    /// Of 2²⁰ bytes.
    pub(crate) megabytes: u32,
    /// All of them, the first one too.
    pub(crate) threads: u32,
}

impl Size {
    pub(crate) const ALL: [Self; 5] = [
        Self { megabytes: 64, threads: 1 },
        Self { megabytes: 64, threads: 64 },
        Self { megabytes: 512, threads: 8 },
        Self { megabytes: 2048, threads: 1 },
        Self { megabytes: 2048, threads: 64 },
    ];
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}x{}", self.megabytes, self.threads)
    }
}

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts =
            text.split_once('x').and_then(|(mb, threads)| Some((mb.parse().ok()?, threads.parse().ok()?)));
        match parts {
            Some((megabytes, threads)) if megabytes > 0 && threads > 0 => Ok(Self { megabytes, threads }),
            _ => Err(format!("{text:?} is not MBxTHREADS, such as 512x8")),
        }
    }
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  woodfrog-bench shim
  woodfrog-bench shim --calls 10000 --json shim.json

Calls alternate between containerd's own socket and the shim's, on a node with 50 containers. Calls that the shim edits
(CreateContainer and StartContainer of a managed container) are reported apart.")]
pub(crate) struct ShimArgs {
    /// Calls of each method on each socket
    #[arg(long, value_name = "N", default_value_t = 2000, value_parser = clap::value_parser!(u32).range(10..))]
    pub(crate) calls: u32,
    #[command(flatten)]
    pub(crate) node: NodeArgs,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  woodfrog-bench start
  woodfrog-bench start --runs 21 --json start.json

The same container is also made by containerd alone, with a program that only waits, to show which part of the time is
containerd's.")]
pub(crate) struct StartArgs {
    /// How often each way is run
    #[arg(long, value_name = "N", default_value_t = 11, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub(crate) runs: u32,
    #[command(flatten)]
    pub(crate) node: NodeArgs,
}

/// An application of the demo.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Application {
    Cpython,
    Tomcat,
    Node,
    Rails,
    Synthetic,
}

impl From<Application> for App {
    fn from(application: Application) -> Self {
        match application {
            Application::Cpython => Self::Cpython,
            Application::Tomcat => Self::Tomcat,
            Application::Node => Self::Node,
            Application::Rails => Self::Rails,
            Application::Synthetic => Self::Synthetic,
        }
    }
}

#[derive(Debug, Subcommand)]
pub(crate) enum Inside {
    /// Dump the child of a container's PID 1 with plain CRIU
    Dump {
        #[command(flatten)]
        at: InContainer,
        /// Let it run on
        #[arg(long)]
        leave_running: bool,
    },
    /// Restore it into another container with plain CRIU
    Restore {
        #[command(flatten)]
        at: InContainer,
        /// Let `criu lazy-pages` bring its memory
        #[arg(long)]
        lazy: bool,
    },
    /// Restore it as soon as somebody connects, and pass bytes on
    Proxy {
        #[command(flatten)]
        at: InContainer,
        /// Where it listens
        #[arg(long)]
        to: SocketAddr,
    },
    /// Tell what containers that sleep and the agent use
    Footprint {
        /// The agent, as the node sees it
        #[arg(long)]
        agent: i32,
        /// The containers' PIDs 1
        inits: Vec<i32>,
    },
    /// Tell what the processes of a container use
    Usage {
        /// The container's PID 1, as the node sees it
        #[arg(long)]
        init: i32,
    },
    /// Read the page files of a container's image into fresh memory
    Read {
        /// The container's PID 1, as the node sees it
        #[arg(long)]
        init: i32,
    },
    /// Run a command and tell when it was started
    Run {
        #[arg(last = true, required = true)]
        command: Vec<String>,
    },
}

#[derive(Debug, Args)]
pub(crate) struct InContainer {
    /// The container's PID 1, as the node sees it
    #[arg(long)]
    pub(crate) init: i32,
    /// Directory of CRIU's images
    #[arg(long)]
    pub(crate) images: PathBuf,
}
