//! CRIU and what it has restored, held on one CPU while CRIU stops each thread where its own code begins.
//!
//! That is a conversation of CRIU with one thread after the other, in which only one can run at a time. On several CPUs each word wakes one up that had
//! gone to sleep. The pager has work of its own meanwhile, and is kept off that CPU. A file in the control directory says that threads are held, and
//! which process is the pager, for an agent that takes over from one that has died meanwhile.

use std::fs;
use std::path::PathBuf;

use rustix::process::Pid;
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use woodfrog_protocol::paths;
use woodfrog_sys::scheduler;

use super::container::Container;

/// What a pager's process is called.
const PAGER: &str = "woodfrog-pager\n";

/// As long as it is there, all threads run on one CPU.
#[derive(Debug)]
pub(super) struct OneCpu {
    threads: Vec<Pid>,
    /// Where they may run.
    allowed: CpuSet,
    note: PathBuf,
}

impl OneCpu {
    /// Holds the threads of process `criu` and of the tree that it has restored in a container, which may run where its `init` may, on the CPU on
    /// which `criu` was last, and process `pager` on the others. None if there is nothing to be won or it cannot be done, which costs nothing but time.
    pub(super) fn hold(container: &Container, init: i32, criu: i32, pager: Option<Pid>) -> Option<Self> {
        let allowed = sched_getaffinity(Pid::from_raw(init)).ok()?;
        let cpu = last_cpu(criu).filter(|cpu| allowed.is_set(*cpu) && allowed.count() > 1)?;
        let note = container.control(paths::ONE_CPU);
        fs::write(&note, pager.map(|pid| pid.to_string()).unwrap_or_default()).ok()?;
        let (mut only, mut others) = (CpuSet::new(), allowed);
        only.set(cpu);
        others.unset(cpu);
        // Not what is meant to run elsewhere.
        let keep = |thread: Pid, on: &CpuSet| {
            sched_getaffinity(Some(thread)).is_ok_and(|set| set == allowed)
                && sched_setaffinity(Some(thread), on).is_ok()
        };
        let pager = pager.filter(|pager| keep(*pager, &others));
        let mut threads = threads(restored(init, criu));
        threads.retain(|thread| keep(*thread, &only));
        threads.extend(pager);
        Some(Self { threads, allowed, note })
    }
}

impl Drop for OneCpu {
    fn drop(&mut self) {
        release(&self.threads, &self.allowed);
        let _ = fs::remove_file(&self.note);
    }
}

/// Lets threads go that an earlier agent held, and has the pager take its turns ([`super::pager::Pager::take_turns`]).
pub(super) fn release_left(container: &Container) {
    let note = container.control(paths::ONE_CPU);
    let Ok(pager) = fs::read_to_string(&note) else { return };
    let init = container.life().init;
    if let Ok(allowed) = sched_getaffinity(Pid::from_raw(init)) {
        let mut threads = threads(tree(children(init)));
        let is_pager =
            |pid: &i32| fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name == PAGER);
        let pager = pager.parse().ok().filter(is_pager).and_then(Pid::from_raw);
        if let Some(pager) = pager {
            let _ = scheduler::set_idle(pager, false);
        }
        threads.extend(pager);
        release(&threads, &allowed);
    }
    let _ = fs::remove_file(note);
}

/// Any of them may have ended.
fn release(threads: &[Pid], allowed: &CpuSet) {
    for thread in threads {
        let _ = sched_setaffinity(Some(*thread), allowed);
    }
}

/// Field 39 of `/proc/PID/stat`.
fn last_cpu(pid: i32) -> Option<usize> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(") ")?.1.split_ascii_whitespace().nth(39 - 3)?.parse().ok()
}

/// Process `criu`, and what it has restored in the container of this `init`.
pub(super) fn restored(init: i32, criu: i32) -> Vec<i32> {
    tree([children(init), vec![criu]].concat())
}

/// Processes with all that descend from them.
fn tree(mut processes: Vec<i32>) -> Vec<i32> {
    let mut at = 0;
    while let Some(process) = processes.get(at).copied() {
        processes.extend(children(process));
        at += 1;
    }
    processes
}

fn children(pid: i32) -> Vec<i32> {
    let list = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    list.split_ascii_whitespace().filter_map(|pid| pid.parse().ok()).collect()
}

fn threads(processes: Vec<i32>) -> Vec<Pid> {
    let tasks = processes.into_iter().filter_map(|pid| fs::read_dir(format!("/proc/{pid}/task")).ok());
    let entries = tasks.flatten().flatten();
    entries.filter_map(|entry| Pid::from_raw(entry.file_name().to_str()?.parse().ok()?)).collect()
}
