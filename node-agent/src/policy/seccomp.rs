//! Seccomp: every thread's filters begin with PID 1's own, byte for byte, and may only add to them.
//!
//! The first filters of a chain are those that the runtime had installed where the tree was dumped. They are not compared
//! but replaced by PID 1's: the runtime does not write one profile down as the same bytes twice (runc's stub for
//! unknown system calls follows the order of a Go map), and what comes from PID 1 need not be trusted.

use woodfrog_criu::images::messages::misc::SeccompFilter;
use woodfrog_sys::seccomp::Filter;

use super::Rules;
use super::target::Target;
use super::violation::{Report, TAMPERED, process};

const DISABLED: i32 = 0;
const STRICT: i32 = 1;
const FILTER: i32 = 2;

/// `SECCOMP_FILTER_FLAG_TSYNC`, which CRIU sets, and `SECCOMP_FILTER_FLAG_LOG`. Others would change what the
/// kernel protects against, or hand decisions to another process.
const TSYNC: u32 = 1 << 0;
pub(super) const LOG: u32 = 1 << 1;

const PROFILE: &str = "thaw with the seccomp profile of the pod that was frozen";

/// The filters of a thread.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Chain {
    who: String,
    mode: i32,
    /// Where they are in `seccomp.img`, the first installed first.
    filters: Vec<u32>,
}

impl Chain {
    /// Whether each of its filters is set on all threads of the process at once.
    fn is_synced(&self, filters: &[SeccompFilter]) -> bool {
        let flags = |index: &u32| filters.get(*index as usize).and_then(|f| f.flags).unwrap_or(0);
        !self.filters.is_empty() && self.filters.iter().all(|index| flags(index) & TSYNC != 0)
    }
}

/// Follows each thread's chain from its newest filter to its oldest.
pub(super) fn chains(rules: &mut Rules<'_>) -> Vec<Chain> {
    let mut chains: Vec<Chain> = Vec::new();
    for task in &rules.images.tasks {
        let who = process(task);
        if task.tc().old_seccomp_mode.is_some() || task.tc().old_seccomp_filter.is_some() {
            rules.report.refuse(&who, "old_seccomp_mode", "set", "the field of each thread", TAMPERED);
        }
        let mut leader: Option<Chain> = None;
        for (_, thread) in task.thread_cores() {
            let mode = thread.seccomp_mode.unwrap_or(DISABLED);
            // CRIU writes filters that all threads share with the leader only, to be set on all of them by TSYNC.
            let synced =
                leader.as_ref().is_some_and(|l| l.mode == FILTER && l.is_synced(&rules.images.seccomp));
            if synced && mode == DISABLED && thread.seccomp_filter.is_none() {
                continue;
            }
            let filters = match (mode, thread.seccomp_filter) {
                (DISABLED | STRICT, None) => Some(Vec::new()),
                (FILTER, Some(newest)) => chain(&rules.images.seccomp, newest),
                _ => None,
            };
            let Some(filters) = filters else {
                let value = format!("{:?} in mode {mode}", thread.seccomp_filter);
                rules.report.refuse(
                    &who,
                    "seccomp_filter",
                    value,
                    "a chain of filters in seccomp.img",
                    TAMPERED,
                );
                continue;
            };
            let chain = Chain { who: who.clone(), mode, filters };
            leader.get_or_insert_with(|| chain.clone());
            if !chains.contains(&chain) {
                chains.push(chain);
            }
        }
    }
    for (number, filter) in rules.images.seccomp.iter().enumerate() {
        let flags = filter.flags.unwrap_or(0);
        let who = format!("seccomp.img filter {number}");
        let known = flags & !(TSYNC | LOG) == 0;
        rules.report.require(known, &who, "flags", format!("{flags:#x}"), "tsync and log", TAMPERED);
        let whole = !filter.filter.is_empty() && filter.filter.len() % 8 == 0;
        rules.report.require(
            whole,
            &who,
            "filter",
            filter.filter.len(),
            "whole instructions of 8 bytes",
            TAMPERED,
        );
    }
    chains
}

/// Places of its filters, oldest first. CRIU lists a filter after the one that it was added to, so `prev` always goes down.
fn chain(filters: &[SeccompFilter], newest: u32) -> Option<Vec<u32>> {
    let mut chain = Vec::new();
    let mut next = Some(newest);
    while let Some(index) = next {
        let filter = filters.get(index as usize)?;
        if filter.prev.is_some_and(|prev| prev >= index) {
            return None;
        }
        chain.push(index);
        next = filter.prev;
    }
    chain.reverse();
    Some(chain)
}

pub(super) fn judge(chains: &[Chain], target: &Target, report: &mut Report) {
    for chain in chains {
        let who = &chain.who;
        let allowed = match target.seccomp_mode {
            0 => true,
            2 => chain.mode == FILTER,
            _ => chain.mode == STRICT,
        };
        if !allowed {
            let (value, allowed) = (mode_name(chain.mode), mode_name(target.seccomp_mode as i32));
            report.refuse(who, "seccomp_mode", value, format!("{allowed}, as PID 1 has"), PROFILE);
            continue;
        }
        if chain.mode != FILTER {
            continue;
        }
        let (filters, own) = (chain.filters.len(), target.seccomp.len());
        let (value, allowed) = (format!("{filters} filters"), format!("{own} or more, as PID 1 has {own}"));
        report.require(filters >= own, who, "seccomp_filter", value, allowed, PROFILE);
    }
}

/// The filters of `seccomp.img` that PID 1's own take the place of. Of chains that go in circles, which `judge` has not
/// seen yet, there are none.
pub(super) fn replaced(filters: &[SeccompFilter], own: &[Filter]) -> Vec<(usize, Filter)> {
    let mut depths: Vec<Option<usize>> = Vec::new();
    for filter in filters {
        // Only earlier filters are known here.
        let depth = match filter.prev {
            None => Some(0),
            Some(prev) => depths.get(prev as usize).copied().flatten().map(|depth| depth + 1),
        };
        depths.push(depth);
    }
    let places = depths.into_iter().enumerate();
    places.filter_map(|(place, depth)| Some((place, own.get(depth?)?.clone()))).collect()
}

fn mode_name(mode: i32) -> String {
    match mode {
        DISABLED => "disabled".into(),
        STRICT => "strict".into(),
        FILTER => "filter".into(),
        other => other.to_string(),
    }
}
