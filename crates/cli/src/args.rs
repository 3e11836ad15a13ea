//! The command line.

use std::path::PathBuf;

use clap::{Args as ClapArgs, Parser, Subcommand, ValueEnum};
use woodfrog_protocol::{agent, paths};

use crate::node;

/// Freezes warmed-up containers of this node into images, and tells what became of those that thawed.
#[derive(Debug, Parser)]
#[command(name = "woodfrog", version, after_long_help = AFTER, arg_required_else_help = true)]
pub(crate) struct Args {
    /// Socket of the node agent
    #[arg(long, global = true, value_name = "PATH", env = "WOODFROG_AGENT_SOCKET", default_value = paths::AGENT_SOCKET)]
    pub(crate) agent_socket: PathBuf,

    /// How results are written
    #[arg(short, long, global = true, value_name = "FORMAT", default_value = "table")]
    pub(crate) output: Format,

    #[command(subcommand)]
    pub(crate) action: Action,
}

const AFTER: &str = "\
Containers are named by the runtime's ID or an unambiguous beginning of it, by their name, by POD/CONTAINER or by
NAMESPACE/POD/CONTAINER.

Exit codes:
  0  done
  1  failed; the reason is on standard error
  2  the command line makes no sense
  3  check found reasons against a freeze
  4  the node agent cannot be reached

Examples:
  woodfrog ps
  woodfrog check shop/web
  woodfrog freeze shop/web --image registry.example/shop/web:warm
  woodfrog wake shop/web
  woodfrog wake --all
  woodfrog inspect registry.example/shop/web:warm --output json";

/// How results are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// For people
    Table,
    /// For programs
    Json,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Action {
    /// List the managed containers of this node
    Ps {
        /// Instead, list the images whose memory is in the node's page store, from which containers with shared memory have it
        #[arg(long)]
        pages: bool,
    },
    /// Freeze containers into images, each at the same moment as the others
    #[command(after_long_help = FREEZE_EXAMPLES)]
    Freeze(Freeze),
    /// Say what would make a freeze of a container fail; exit code 3 if anything would
    Check(Check),
    /// Show what is frozen in an image, and whether this node can thaw it
    #[command(after_long_help = INSPECT_EXAMPLES)]
    Inspect(Inspect),
    /// Show what the node agent did with a container, oldest first
    Logs {
        /// The container
        container: String,
    },
    /// Wake a dormant container, and say how long that took
    Wake {
        /// The container
        #[arg(required_unless_present_any = ["all", "sleep_again"], conflicts_with = "all")]
        container: Option<String>,

        /// All of this node that sleep
        #[arg(long)]
        all: bool,

        /// None of this node falls asleep any more, whatever becomes of the agent, and its rules in front of them go
        #[arg(long, requires = "all")]
        for_good: bool,

        /// Take back --for-good: containers that are made from now on may sleep, the others when the agent has started anew
        #[arg(long, conflicts_with_all = ["container", "all"])]
        sleep_again: bool,
    },
    /// Put Woodfrog between kubelet and containerd on this host, or take it away
    Node(node::Args),
}

const FREEZE_EXAMPLES: &str = "\
Examples:
  # One container, which goes on running
  woodfrog freeze shop/web --image registry.example/shop/web:warm

  # A container and its sidecar together; both end once their images are safe
  woodfrog freeze shop/web=registry.example/shop/web:warm shop/cache=registry.example/shop/cache:warm --stop

  # With a record of the memory that its first answer needs: thaws elsewhere bring that first
  woodfrog freeze shop/web --image registry.example/shop/web:warm --record-working-set --request http://:8080/

  # With connections closed in the image, and a command before and a request after
  woodfrog freeze web --image localhost:5000/web:warm --connections close \\
      --before-checkpoint 'sh -c \"sync; rm -rf /tmp/cache\"' --after-restore http://:8080/refresh";

const INSPECT_EXAMPLES: &str = "\
Examples:
  woodfrog inspect registry.example/shop/web:warm
  woodfrog inspect localhost:5000/web:warm --output json | jq .compatible";

#[derive(Debug, ClapArgs)]
pub(crate) struct Freeze {
    /// Containers, each followed by its --image, or CONTAINER=REF
    #[arg(required = true, value_name = "CONTAINER[=REF]")]
    pub(crate) containers: Vec<String>,

    /// Image to push for the container named at the same place in the list
    #[arg(long, value_name = "REF")]
    pub(crate) image: Vec<String>,

    /// What to do about established connections
    #[arg(long, default_value = "refuse")]
    pub(crate) connections: Connections,

    /// How applications get their memory when they are thawed from the image
    #[arg(long, default_value = "copied")]
    pub(crate) memory: Memory,

    /// End the application once its image is safe; without it the application goes on
    #[arg(long)]
    pub(crate) stop: bool,

    /// Find out which memory is wanted first after a thaw, and have the images say it: the applications are ended, and go on thawed from what
    /// was frozen
    #[arg(long)]
    pub(crate) record_working_set: bool,

    /// Ask the applications for this meanwhile: http://:PORT/PATH (repeatable)
    #[arg(long, value_name = "URL", requires = "record_working_set")]
    pub(crate) request: Vec<String>,

    #[command(flatten)]
    pub(crate) registry: Registry,

    /// Run this in each container before the freeze: a command, or http://:PORT/PATH to send POST to (repeatable)
    #[arg(long, value_name = "CMD|URL")]
    pub(crate) before_checkpoint: Vec<String>,

    /// Run this in each container after a thaw, last one first: a command, or http://:PORT/PATH (repeatable)
    #[arg(long, value_name = "CMD|URL")]
    pub(crate) after_restore: Vec<String>,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct Check {
    /// The container
    pub(crate) container: String,

    /// What a freeze would do about established connections
    #[arg(long, default_value = "refuse")]
    pub(crate) connections: Connections,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct Inspect {
    /// The image
    #[arg(value_name = "IMAGE")]
    pub(crate) image: String,

    #[command(flatten)]
    pub(crate) registry: Registry,
}

/// How to reach a registry.
#[derive(Debug, ClapArgs)]
pub(crate) struct Registry {
    /// Registry that speaks plain HTTP (repeatable); loopback addresses always may
    #[arg(long, value_name = "HOST[:PORT]")]
    pub(crate) plain_http: Vec<String>,

    /// Docker config with the registry's credentials [default: $DOCKER_CONFIG/config.json or ~/.docker/config.json]
    #[arg(long, value_name = "FILE")]
    pub(crate) docker_config: Option<PathBuf>,
}

/// What to do about established connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Connections {
    /// Do not freeze, and name the peers
    Refuse,
    /// Close them in the image; the running application keeps them
    Close,
    /// Keep them in the image, which then thaws at the same address only; needs --stop
    Keep,
}

impl From<Connections> for agent::Connections {
    fn from(connections: Connections) -> Self {
        match connections {
            Connections::Refuse => Self::Refuse,
            Connections::Close => Self::Close,
            Connections::Keep => Self::Keep,
        }
    }
}

/// How a thawed application gets its memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Memory {
    /// Each has its own
    Copied,
    /// All on a node share one copy until they write
    Shared,
}

impl From<Memory> for agent::Memory {
    fn from(memory: Memory) -> Self {
        match memory {
            Memory::Copied => Self::Copied,
            Memory::Shared => Self::Shared,
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Args::command().debug_assert();
    }

    #[test]
    fn containers_and_images_may_alternate() {
        let args = Args::parse_from(["woodfrog", "freeze", "a", "--image", "r/a:1", "b", "--image", "r/b:1"]);
        let Action::Freeze(freeze) = args.action else { panic!() };
        assert_eq!(
            (freeze.containers, freeze.image),
            (vec!["a".into(), "b".into()], vec!["r/a:1".into(), "r/b:1".into()])
        );
    }
}
