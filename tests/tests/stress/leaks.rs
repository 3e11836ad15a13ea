//! What pods that sleep and wake must not leave behind.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use woodfrog_testkubelet::Container;
use woodfrog_testkubelet::stack::AGENT;
use woodfrog_testnode::Node;
use woodfrog_tests::World;

/// How long whatever is left may take to go: a pager's report, a thread of the agent's.
const SETTLES_WITHIN: Duration = Duration::from_secs(20);
/// Threads that a runtime keeps for blocking work for a while.
const MAX_THREADS: u64 = 600;
/// What the agent's memory may grow by: what allocators keep.
const MAX_GROWTH: u64 = 16 << 20;

/// What there is on a node, while all pods sleep.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Holdings {
    /// On the whole node.
    processes: usize,
    cgroups: usize,
    /// Of the agent.
    descriptors: usize,
    mounts: usize,
    /// Below `/run/woodfrog`, and saved states.
    files: usize,
    /// In the pods' network namespaces, all rules of the mangle tables.
    rules: Vec<String>,
    /// Descriptors of the pods' inits.
    of_inits: usize,
}

/// Memory of the agent, in bytes.
pub(crate) fn agent_memory(node: &Node) -> Result<u64> {
    Ok(status(agent(node)?, "VmRSS:")? << 10)
}

impl Holdings {
    /// Those of now.
    pub(crate) async fn of(world: &World<'_>, pods: &[Container]) -> Result<Self> {
        let node = world.node;
        let agent = agent(node)?;
        let (mut rules, mut of_inits) = (Vec::new(), 0);
        for pod in pods {
            let init = pod.pid().await?.to_string();
            for save in ["iptables-nft-save", "ip6tables-nft-save"] {
                let saved = node.run("nsenter", &["--net", "--target", &init, save, "--table", "mangle"])?;
                // Queues and responders keep their numbers; counters and times are comments.
                rules.extend(saved.lines().filter(|line| line.starts_with("-A")).map(str::to_owned));
            }
            of_inits += count(node, &format!("ls /proc/{init}/fd"))?;
        }
        Ok(Self {
            processes: Node::status(node.name())?.processes,
            cgroups: count(node, "find /sys/fs/cgroup -type d")?,
            descriptors: fs::read_dir(format!("/proc/{agent}/fd"))?.count(),
            mounts: fs::read_to_string(format!("/proc/{agent}/mounts"))?.lines().count(),
            files: count(node, "find /run/woodfrog /var/lib/woodfrog/saves")?,
            rules,
            of_inits,
        })
    }

    /// Fails unless there is again exactly what there was.
    pub(crate) async fn assert_again(&self, world: &World<'_>, pods: &[Container]) -> Result<()> {
        let deadline = Instant::now() + SETTLES_WITHIN;
        loop {
            let now = Self::of(world, pods).await?;
            if now == *self {
                break;
            }
            ensure!(Instant::now() < deadline, "before: {self:?}\nafter: {now:?}");
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        let threads = status(agent(world.node)?, "Threads:")?;
        ensure!(threads < MAX_THREADS, "the agent has {threads} threads");
        Ok(())
    }
}

/// Fails if the agent's memory has grown too much.
pub(crate) fn assert_memory(before: u64, after: u64) -> Result<()> {
    ensure!(after < before + MAX_GROWTH, "the agent's memory grew from {before} to {after} bytes");
    Ok(())
}

fn agent(node: &Node) -> Result<i32> {
    Ok(node.service_pid(AGENT).context("the agent does not run")?.0)
}

/// Lines that a shell's command prints in the node.
fn count(node: &Node, command: &str) -> Result<usize> {
    Ok(node.run("sh", &["-c", command])?.lines().count())
}

/// A number from `/proc/PID/status`.
fn status(pid: i32, field: &str) -> Result<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = text.lines().find_map(|line| line.strip_prefix(field)).context(field.to_owned())?;
    Ok(line.split_whitespace().next().context("a number")?.parse()?)
}

/// CPU time of the agent.
pub(crate) fn agent_cpu(node: &Node) -> Result<Duration> {
    let stat = fs::read_to_string(format!("/proc/{}/stat", agent(node)?))?;
    let (_, fields) = stat.rsplit_once(") ").context("stat")?;
    // utime and stime are fields 14 and 15 of proc(5); two are before the parenthesis.
    let ticks: u64 = fields.split(' ').skip(11).take(2).filter_map(|ticks| ticks.parse::<u64>().ok()).sum();
    Ok(Duration::from_millis(ticks * 10))
}
