//! What containers and the agent cost a node, looked at in the node.

use std::fs;

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};
use woodfrog_testkubelet::stack::AGENT;

use crate::contenders::Place;
use crate::inside::{cgroup_cpu_us, cgroups};

/// What some containers and the agent use at one moment.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Footprint {
    /// Charged to the containers' memory cgroups, with what the kernel needs for their processes.
    pub(crate) cgroup_bytes: u64,
    /// Resident memory of the containers' PID 1, shared pages by part.
    pub(crate) init_bytes: u64,
    /// Resident memory of the agent, shared pages by part.
    pub(crate) agent_bytes: u64,
    /// CPU time of the agent and of the containers' PID 1 so far.
    pub(crate) cpu_us: u64,
    /// CPU time of the agent so far, with that of programs that it ran.
    pub(crate) agent_cpu_us: u64,
    /// CPU time of the containers' cgroups so far.
    pub(crate) cgroups_cpu_us: u64,
}

/// Asks the node for that.
pub(crate) fn of(place: &Place, inits: &[i32]) -> Result<Footprint> {
    let (_, agent) = place.node.service_pid(AGENT).context("the agent does not run")?;
    let mut arguments = vec!["footprint".to_owned(), "--agent".into(), agent.to_string()];
    arguments.extend(inits.iter().map(ToString::to_string));
    let report = place.inside(&arguments.iter().map(String::as_str).collect::<Vec<_>>())?;
    serde_json::from_str(&report).with_context(|| report.clone())
}

/// Looks at containers, by their PID 1, and at the agent.
pub(crate) fn look(inits: &[i32], agent: i32) -> Result<Footprint> {
    let mut sum = Footprint {
        cgroup_bytes: 0,
        init_bytes: 0,
        agent_bytes: pss(agent)?,
        cpu_us: cpu_us(agent)?,
        agent_cpu_us: cpu_us(agent)? + children_cpu_us(agent)?,
        cgroups_cpu_us: 0,
    };
    for init in inits {
        sum.cgroup_bytes += charged(*init)?;
        sum.init_bytes += pss(*init)?;
        sum.cpu_us += cpu_us(*init)?;
        sum.cgroups_cpu_us += cgroup_cpu_us(*init)?;
    }
    Ok(sum)
}

/// `Pss` of `/proc/PID/smaps_rollup`, in bytes.
fn pss(pid: i32) -> Result<u64> {
    let path = format!("/proc/{pid}/smaps_rollup");
    let text = fs::read_to_string(&path).with_context(|| path.clone())?;
    let line = text.lines().find_map(|line| line.strip_prefix("Pss:")).with_context(|| path.clone())?;
    let kilobytes: u64 = line.split_whitespace().next().with_context(|| path)?.parse()?;
    Ok(kilobytes << 10)
}

/// What a process's memory cgroup is charged with, by version 1 or 2.
fn charged(pid: i32) -> Result<u64> {
    let directories = cgroups(pid)?;
    let files = ["memory.usage_in_bytes", "memory.current"];
    let found = directories.iter().flat_map(|directory| files.map(|file| directory.join(file)));
    let path = found.into_iter().find(|path| path.exists()).context("no cgroup counts memory")?;
    Ok(fs::read_to_string(path)?.trim().parse()?)
}

/// CPU time of a process, with threads that have ended: `utime` and `stime`.
fn cpu_us(pid: i32) -> Result<u64> {
    two_of_stat(pid, 14)
}

/// CPU time of its children that have ended: `cutime` and `cstime`.
fn children_cpu_us(pid: i32) -> Result<u64> {
    two_of_stat(pid, 16)
}

/// Two times that follow each other in proc_pid_stat(5), in microseconds.
fn two_of_stat(pid: i32, field: usize) -> Result<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let (_, fields) = stat.rsplit_once(") ").context("/proc/PID/stat")?;
    // Two fields are before the parenthesis, and the first one is 1.
    let times = fields.split(' ').skip(field - 3).take(2);
    let ticks: u64 = times.filter_map(|ticks| ticks.parse::<u64>().ok()).sum();
    Ok(ticks * 1_000_000 / rustix::param::clock_ticks_per_second())
}
