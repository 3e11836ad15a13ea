//! Seccomp: every thread's filters must begin with PID 1's own, byte for byte, and may only add to them.

use woodfrog_criu::images::messages::misc::SeccompFilter;

use super::Rules;
use super::target::Target;
use super::violation::{Report, TAMPERED, process};

const DISABLED: i32 = 0;
const STRICT: i32 = 1;
const FILTER: i32 = 2;

/// `SECCOMP_FILTER_FLAG_TSYNC`, which CRIU sets, and `SECCOMP_FILTER_FLAG_LOG`. Others would change what the
/// kernel protects against, or hand decisions to another process.
const TSYNC: u32 = 1 << 0;
const LOG: u32 = 1 << 1;

const PROFILE: &str = "thaw with the seccomp profile of the pod that was frozen";

/// The filters of a thread.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Chain {
    who: String,
    mode: i32,
    /// The first installed first.
    filters: Vec<SeccompFilter>,
}

/// Follows each thread's chain from its newest filter to its oldest.
pub(super) fn chains(rules: &mut Rules<'_>) -> Vec<Chain> {
    let mut chains: Vec<Chain> = Vec::new();
    for task in &rules.images.tasks {
        let who = process(task);
        if task.tc().old_seccomp_mode.is_some() || task.tc().old_seccomp_filter.is_some() {
            rules.report.refuse(&who, "old_seccomp_mode", "set", "the field of each thread", TAMPERED);
        }
        for (_, thread) in task.thread_cores() {
            let mode = thread.seccomp_mode.unwrap_or(DISABLED);
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

/// Oldest first. CRIU lists a filter after the one that it was added to, so `prev` always goes down.
fn chain(filters: &[SeccompFilter], newest: u32) -> Option<Vec<SeccompFilter>> {
    let mut chain = Vec::new();
    let mut next = Some(newest);
    while let Some(index) = next {
        let filter = filters.get(index as usize)?;
        if filter.prev.is_some_and(|prev| prev >= index) {
            return None;
        }
        chain.push(filter.clone());
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
        for (number, own) in target.seccomp.iter().enumerate() {
            let value = match chain.filters.get(number) {
                None => format!("only {} filters", chain.filters.len()),
                Some(filter) if filter.filter != own.program => {
                    let (a, b) = (filter.filter.len() / 8, own.program.len() / 8);
                    format!("filter {number} with other contents ({a} instructions, PID 1's has {b})")
                }
                Some(filter) if (filter.flags.unwrap_or(0) & LOG != 0) != own.log => {
                    format!("filter {number} that logs otherwise than PID 1's")
                }
                Some(_) => continue,
            };
            let allowed = format!("PID 1's own {} filters first, then more", target.seccomp.len());
            report.refuse(who, "seccomp_filter", value, allowed, PROFILE);
            break;
        }
    }
}

fn mode_name(mode: i32) -> String {
    match mode {
        DISABLED => "disabled".into(),
        STRICT => "strict".into(),
        FILTER => "filter".into(),
        other => other.to_string(),
    }
}
