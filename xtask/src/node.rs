//! `cargo xtask node`: nodes for tests and for looking around.

use std::{path::PathBuf, process::ExitCode};

use anyhow::Result;
use clap::{Subcommand, ValueEnum};
use woodfrog_testnode::{App, HOST_PACKAGES, Node, Options, names};

use crate::packages;

const EXAMPLES: &str = "\
Examples:
  cargo xtask node up                           a node called \"node\", with CPython's image
  cargo xtask node up --name b --image all      another, with all images (built once, in minutes)
  cargo xtask node shell                        a shell in it
  cargo xtask node shell --name b -- ctr --namespace k8s.io containers ls
  cargo xtask node logs containerd
  cargo xtask node down --all

The images are 127.0.0.1:5000/cpython:1, …/tomcat:1, …/node:1, …/rails:1 and …/synthetic:1 on every node.
Binaries of this workspace are at /opt/woodfrog/debug and /opt/woodfrog/release in a node.";

/// Arguments of `cargo xtask node`.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Verb,
}

#[derive(clap::Args)]
struct Name {
    /// The node's name
    #[arg(long, short, default_value = "node")]
    name: String,
}

#[derive(Subcommand)]
enum Verb {
    /// Start a node, or do nothing if it runs
    Up {
        #[command(flatten)]
        name: Name,
        /// Images to put into the registry
        #[arg(long = "image", value_enum, default_values_t = [Image::Cpython])]
        images: Vec<Image>,
        /// Keep images and containers on disk rather than in memory, as for measuring
        #[arg(long)]
        disk: bool,
        /// Directory that the node sees at /opt/woodfrog [default: cargo's target directory]
        #[arg(long, value_name = "DIR")]
        binaries: Option<PathBuf>,
    },
    /// Stop a node and remove all that belongs to it
    Down {
        #[command(flatten)]
        name: Name,
        /// Stop all nodes
        #[arg(long, conflicts_with = "name")]
        all: bool,
    },
    /// Run a shell or a command in a node
    Shell {
        #[command(flatten)]
        name: Name,
        /// The command and its arguments
        #[arg(last = true, default_values_t = ["bash".to_owned()])]
        command: Vec<String>,
    },
    /// Show all nodes and what runs in them
    Status,
    /// Print what a service in a node has written
    Logs {
        #[command(flatten)]
        name: Name,
        /// containerd, registry, or the name under which a test started something
        #[arg(default_value = "containerd")]
        service: String,
    },
}

#[derive(Clone, Copy, ValueEnum)]
enum Image {
    All,
    None,
    Cpython,
    Tomcat,
    Node,
    Rails,
    Synthetic,
}

impl Image {
    fn apps(self) -> Vec<App> {
        match self {
            Self::All => App::ALL.to_vec(),
            Self::None => Vec::new(),
            Self::Cpython => vec![App::Cpython],
            Self::Tomcat => vec![App::Tomcat],
            Self::Node => vec![App::Node],
            Self::Rails => vec![App::Rails],
            Self::Synthetic => vec![App::Synthetic],
        }
    }
}

/// Does what the arguments say.
pub(crate) fn run(args: Args) -> Result<ExitCode> {
    match args.command {
        Verb::Up { name, images, disk, binaries } => {
            packages::ensure(HOST_PACKAGES)?;
            let mut options = Options {
                images: images.into_iter().flat_map(Image::apps).collect(),
                disk,
                ..Options::default()
            };
            options.binaries = binaries.unwrap_or(options.binaries);
            let node = Node::up(&name.name, &options)?;
            println!(
                "node {} is up: {}, containerd at {}",
                node.name(),
                node.address(),
                node.containerd_socket().display()
            );
        }
        Verb::Down { name, all } => {
            let names = if all { names()? } else { vec![name.name] };
            for name in names {
                Node::down(&name)?;
                println!("node {name} is down");
            }
        }
        Verb::Shell { name, command } => {
            let node = Node::attach(&name.name)?;
            let status = node.command(&command[0]).args(&command[1..]).status()?;
            return Ok(status
                .code()
                .and_then(|code| u8::try_from(code).ok())
                .map_or(ExitCode::FAILURE, ExitCode::from));
        }
        Verb::Status => {
            println!(
                "{:<16} {:>8}  {:<14} {:<16} {:>9}  SERVICES",
                "NAME", "PID", "ADDRESS", "PODS", "PROCESSES"
            );
            for name in names()? {
                let status = Node::status(&name)?;
                let pid = status.pid.map_or("dead".to_owned(), |pid| pid.to_string());
                let services: Vec<_> = status
                    .services
                    .iter()
                    .map(|(name, runs)| if *runs { name.clone() } else { format!("{name} (over)") })
                    .collect();
                println!(
                    "{:<16} {:>8}  {:<14} {:<16} {:>9}  {}",
                    status.name,
                    pid,
                    status.address,
                    status.pods,
                    status.processes,
                    services.join(", ")
                );
            }
        }
        Verb::Logs { name, service } => print!("{}", Node::attach(&name.name)?.logs(&service)?),
    }
    Ok(ExitCode::SUCCESS)
}
