//! The command line of `woodfrog-bench operator`.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

/// How much there is, and for how long it is looked at.
#[derive(Clone, Debug, Args)]
#[command(after_help = "\
Examples:
  cargo xtask bench operator                            1,000 Checkpoints, 200 WarmPools, 5,000 pods: about 10 minutes
  cargo xtask bench operator --json operator.json       the same, with the results for programs
  cargo xtask bench operator --checkpoints 50 --pools 10 --replicas 5 --idle 15
                                                        a small one, in a minute

An API server of its own, a real operator, and stand-ins for what nodes do: pods are bound and ready at once, and agents
report each phase of a freeze after a moment.

Results:
  settle_s                from the first apply until all Checkpoints are Ready and all pools full
  takeover_s              from the start of another operator, with everything there, until it has looked at all of it
  rss_bytes               resident memory of the operator at its peak; rss_rest_bytes: at rest
  idle_requests_per_min   requests to the API server while nothing changes, by its own count
  reconcile_ms            from the request that scales a pool up by one to the event of its new pod, at full size
  reconcile_empty_ms      the same with nothing else in the cluster
  checkpoint_ms, checkpoint_empty_ms
                          from the request that creates a Checkpoint to the event of its warm-up pod

It fails if one of these does not hold: no attempt failed, less than 150 MB resident, settled within 10 minutes, at rest only watches and
renewals of the lease, changes at most twice as slow as in an empty cluster.")]
pub(crate) struct OperatorArgs {
    /// How many Checkpoints there are
    #[arg(long, value_name = "N", default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) checkpoints: u32,
    /// How many WarmPools, each of another Checkpoint as far as there are enough
    #[arg(long, value_name = "N", default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) pools: u32,
    /// How many pods each WarmPool has
    #[arg(long, value_name = "N", default_value_t = 25, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) replicas: u32,
    /// How many changes of each kind are timed; medians are shown
    #[arg(long, value_name = "N", default_value_t = 25, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub(crate) changes: u32,
    /// Seconds for which the operator is watched at rest; it renews a watch every 5 minutes
    #[arg(long, value_name = "SECONDS", default_value_t = 300, value_parser = clap::value_parser!(u64).range(1..))]
    idle: u64,
    /// Write the results to this file
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,
}

impl OperatorArgs {
    /// How long the operator is watched at rest.
    pub(crate) fn idle(&self) -> Duration {
        Duration::from_secs(self.idle)
    }

    /// All pods of all pools.
    pub(crate) fn pods(&self) -> u32 {
        self.pools * self.replicas
    }
}
