//! Processes and threads: ids, states, namespaces, scheduling, timers, and the checkpoint as a whole.

use woodfrog_criu::images::Task;
use woodfrog_criu::images::messages::task::{KobjIds, TaskCore, ThreadCore};

use super::capability::CapSet;
use super::requirement::{Need, Requirement};
use super::violation::{TAMPERED, process};
use super::{Limit, Rules, target};

/// Ids below are left to helpers that enter the container.
const FIRST_PID: u32 = 300;
/// The kernel's `PID_MAX_LIMIT`.
const LAST_PID: u32 = 1 << 22;
/// The image version that has magic numbers in every file (`CRTOOLS_IMAGES_V1_1`).
const VERSION: u32 = 2;
/// Most ring entries of an asynchronous IO context, the kernel's default limit for a whole system.
pub(super) const MAX_AIO: u32 = 65_536;
/// Flags of `personality(2)` that take nothing away from the kernel's protections: 32-bit uname, old kernel's uname,
/// no address randomisation, the older mapping layout.
const PERSONALITIES: u32 = 0x0000_0008 | 0x0002_0000 | 0x0004_0000 | 0x0020_0000;

const SUPPORTED: &str = "freeze the pod without this; it is not supported";

pub(super) fn judge(rules: &mut Rules<'_>) {
    inventory(rules);
    for name in &rules.images.unknown {
        let allowed = "files that a dump inside the container's namespaces writes";
        rules.report.refuse("checkpoint", "unknown image file", name, allowed, TAMPERED);
    }
    // 0 at the first dump; a restored tree has a time namespace of CRIU's own, under whose id the next dump files it.
    let own = rules.images.tasks.first().and_then(|root| root.body.as_ref()?.ids.time_ns_id);
    for id in rules.images.timens.keys() {
        let one = *id == 0 || Some(*id) == own;
        rules.report.require(one, "checkpoint", "timens", id, "the tree's own time namespace", TAMPERED);
    }
    for task in &rules.images.tasks {
        let who = process(task);
        ids(rules, task, &who);
        core(rules, task.tc(), task.body.is_some(), &who);
        namespaces(rules, task, &who);
        for (_, thread) in task.thread_cores() {
            scheduling(rules, thread, &who);
        }
        if task.core.ids.is_some() {
            rules.report.refuse(&who, "ids", "in the core", "in ids-PID.img", TAMPERED);
        }
    }
    locks(rules);
}

fn inventory(rules: &mut Rules<'_>) {
    let inventory = &rules.images.inventory;
    let who = "checkpoint";
    let report = &mut rules.report;
    report.require(
        inventory.img_version == VERSION,
        who,
        "img_version",
        inventory.img_version,
        VERSION,
        TAMPERED,
    );
    let modern = inventory.fdinfo_per_id == Some(true) && inventory.ns_per_id == Some(true);
    report.require(modern, who, "fdinfo_per_id or ns_per_id", "false", "true", TAMPERED);
    report.require(
        inventory.root_ids.is_some(),
        who,
        "root_ids",
        "missing",
        "CRIU's own namespaces",
        TAMPERED,
    );
    let plugins = inventory.plugins_entry.as_ref().map_or(&[][..], |entry| &entry.plugins);
    report.require(plugins.is_empty(), who, "plugins", plugins.join(", "), "no plugins of CRIU", SUPPORTED);
    let uprobes = inventory.allow_uprobes == Some(true);
    report.require(!uprobes, who, "allow_uprobes", "true", "no uprobes", SUPPORTED);
}

fn ids(rules: &mut Rules<'_>, task: &Task, who: &str) {
    let entry = &task.entry;
    let range = format!("{FIRST_PID} to {LAST_PID}");
    let mut one = |field, id: u32| {
        let ok = (FIRST_PID..LAST_PID).contains(&id);
        rules.report.require(
            ok,
            who,
            field,
            id,
            &range,
            "freeze a container that was started by woodfrog-init",
        );
    };
    one("pid", entry.pid);
    entry.threads.iter().for_each(|tid| one("threads", *tid));
    // The leader of a group or session may have gone; CRIU then makes one with that pid for a moment.
    one("pgid", entry.pgid);
    one("sid", entry.sid);
    let thread = |id: u32| rules.ids.contains(&id) && !rules.is_process(id);
    let apart = !thread(entry.pgid) && !thread(entry.sid);
    rules.report.require(apart, who, "pgid or sid", "the id of a thread", "ids of processes", TAMPERED);
    if entry.ppid == 0 {
        let leads = entry.sid == entry.pid;
        rules.report.require(
            leads,
            who,
            "sid",
            entry.sid,
            "its own pid: the first process leads a session",
            TAMPERED,
        );
    }
}

fn core(rules: &mut Rules<'_>, tc: &TaskCore, lives: bool, who: &str) {
    let report = &mut rules.report;
    let value = format!("{:#x}", tc.personality);
    let plain = tc.personality & !PERSONALITIES == 0;
    report.require(plain, who, "personality", value, format!("flags of {PERSONALITIES:#x}"), SUPPORTED);
    report.require(tc.comm.len() < 16, who, "comm", &tc.comm, "at most 15 bytes", TAMPERED);
    let stop = tc.stop_signo.unwrap_or(0);
    report.require(stop <= 64, who, "stop_signo", stop, "a signal", TAMPERED);
    // Older formats keep these in files of their own, which CRIU would look for.
    let limits = tc.rlimits.as_ref().map_or(0, |limits| limits.rlimits.len());
    if lives {
        let signals = tc.sigactions.len();
        report.require(signals > 0, who, "sigactions", signals, "an action for each signal", TAMPERED);
        let all = limits == target::LIMITS;
        report.require(all, who, "rlimits", format!("{limits} limits"), target::LIMITS, TAMPERED);
        report.require(tc.timers.is_some(), who, "timers", "missing", "the timers of the process", TAMPERED);
    }
    for limit in tc.rlimits.iter().flat_map(|limits| &limits.rlimits) {
        let limit = Limit { cur: limit.cur, max: limit.max };
        let value = format!("{} above {}", limit.cur, limit.max);
        report.require(
            limit.cur <= limit.max,
            who,
            "rlimits",
            value,
            "a soft limit within the hard one",
            TAMPERED,
        );
    }
    for timer in tc.timers.iter().flat_map(|timers| &timers.posix) {
        clock(rules, who, "posix timer clock_id", timer.clock_id);
        let thread = timer.notify_thread_id.unwrap_or(0);
        let own = thread == 0 || u32::try_from(thread).is_ok_and(|tid| rules.ids.contains(&tid));
        rules.report.require(own, who, "notify_thread_id", thread, "a thread of the tree", TAMPERED);
    }
}

/// A clock that timers run by.
pub(super) fn clock(rules: &mut Rules<'_>, who: &str, field: &'static str, clock: u32) {
    match clock {
        // Realtime, monotonic, processor time of process and thread, boot time, TAI.
        0..=3 | 7 | 11 => {}
        // The two that wake a sleeping machine.
        8 | 9 => rules.requirements.push(Requirement {
            who: who.into(),
            field,
            value: clock.to_string(),
            need: Need::Capability(CapSet::WAKE_ALARM),
        }),
        // Negative: the processor time of a thread, which the kernel confines to the own process.
        dynamic if (dynamic as i32) < 0 && dynamic & 7 != 3 => {}
        other => rules.report.refuse(who, field, other, "a clock of linux/time.h", SUPPORTED),
    }
}

/// Every task is in the namespaces that CRIU itself was in at the dump, so a restore makes none; but for the time
/// namespace, which is one for the whole tree.
fn namespaces(rules: &mut Rules<'_>, task: &Task, who: &str) {
    let Some(body) = &task.body else { return };
    let Some(own) = &rules.images.inventory.root_ids else { return };
    let first = rules.images.tasks[0].body.as_ref().map(|body| &body.ids);
    let of = |ids: &KobjIds| {
        [
            ("pid_ns_id", ids.pid_ns_id),
            ("net_ns_id", ids.net_ns_id),
            ("ipc_ns_id", ids.ipc_ns_id),
            ("uts_ns_id", ids.uts_ns_id),
            ("mnt_ns_id", ids.mnt_ns_id),
            ("user_ns_id", ids.user_ns_id),
            ("cgroup_ns_id", ids.cgroup_ns_id),
        ]
    };
    let advice = "freeze a pod whose processes make no namespaces of their own";
    for ((field, id), (_, outer)) in of(&body.ids).into_iter().zip(of(own)) {
        let same = id.is_some() && id == outer;
        let value = id.map_or_else(|| "missing".into(), |id| format!("namespace {id}"));
        rules.report.require(same, who, field, value, "the container's own namespace", advice);
    }
    let time = first.map(|ids| ids.time_ns_id) == Some(body.ids.time_ns_id);
    rules.report.require(
        time,
        who,
        "time_ns_id",
        "another than its parent's",
        "one for the whole tree",
        advice,
    );
}

fn scheduling(rules: &mut Rules<'_>, thread: &ThreadCore, who: &str) {
    let mut need = |field, value: String, need| {
        rules.requirements.push(Requirement { who: who.into(), field, value, need });
    };
    let nice = thread.sched_nice.unwrap_or(0);
    need("sched_nice", nice.to_string(), Need::Nice(nice));
    let policy = thread.sched_policy.unwrap_or(0);
    match policy {
        // Other, batch, idle.
        0 | 3 | 5 => {}
        // First-in-first-out, round-robin.
        1 | 2 => need("sched_policy", format!("real-time ({policy})"), Need::Capability(CapSet::SYS_NICE)),
        _ => rules.report.refuse(who, "sched_policy", policy, "a policy other than deadline", SUPPORTED),
    }
    let report = &mut rules.report;
    report.require((-20..20).contains(&nice), who, "sched_nice", nice, "-20 to 19", TAMPERED);
    let death = thread.pdeath_sig.unwrap_or(0);
    report.require(death <= 64, who, "pdeath_sig", death, "a signal", TAMPERED);
    let comm = thread.comm.as_deref().unwrap_or("");
    report.require(comm.len() < 16, who, "comm", comm, "at most 15 bytes", TAMPERED);
}

fn locks(rules: &mut Rules<'_>) {
    for lock in &rules.images.locks {
        let who = format!("lock of process {}", lock.pid);
        // POSIX, flock, open file description. Leases would be granted by root.
        let kind = matches!(lock.flag, 1 | 2 | 1024);
        rules.report.require(kind, &who, "flag", lock.flag, "posix, flock and ofd locks", SUPPORTED);
        let own = u32::try_from(lock.pid).is_ok_and(|pid| rules.is_process(pid));
        rules.report.require(own, &who, "pid", lock.pid, "a process of the tree", TAMPERED);
    }
}
