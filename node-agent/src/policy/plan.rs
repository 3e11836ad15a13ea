//! What is taken from PID 1 instead of from the image, and written into the image before CRIU sees it.

use std::collections::BTreeSet;

use woodfrog_criu::images::messages::misc::LsmType;
use woodfrog_criu::images::messages::task::{Creds, Rlimit};
use woodfrog_criu::images::{Checkpoint, Rewrite};
use woodfrog_sys::seccomp::Filter;

use super::seccomp::{self, LOG};
use super::target::{LIMITS, Label, Limit, Target};

/// `loginuid` of a process that nobody logged in for.
const NO_LOGIN: u32 = u32::MAX;

/// The changes that a thaw makes to a checkpoint's images. Made by [`check`](super::check).
#[derive(Clone, Debug)]
pub struct Plan {
    limits: [Limit; LIMITS],
    oom_score_adj: i32,
    label: Option<Label>,
    /// Threads whose core differs from what it must be, by thread id.
    cores: BTreeSet<u32>,
    /// Descriptor tables with SELinux labels.
    tables: BTreeSet<u32>,
    module: bool,
    /// Filters of PID 1, by their places in `seccomp.img`.
    seccomp: Vec<(usize, Filter)>,
}

impl Plan {
    pub(super) fn new(images: &Checkpoint, target: &Target) -> Self {
        let mut plan = Self {
            limits: target.limits,
            oom_score_adj: target.oom_score_adj,
            label: target.label.clone(),
            cores: BTreeSet::new(),
            tables: BTreeSet::new(),
            module: false,
            seccomp: seccomp::replaced(&images.seccomp, &target.seccomp),
        };
        plan.module = images.inventory.lsmtype.unwrap_or(0) != plan.module() as i32;
        for task in &images.tasks {
            let tc = task.tc();
            let limits = tc.rlimits.iter().flat_map(|limits| &limits.rlimits);
            let fits = limits.zip(&plan.limits).all(|(limit, own)| within(limit, own) == *limit)
                && tc.oom_score_adj == Some(plan.oom_score_adj)
                && tc.loginuid.is_none_or(|uid| uid == NO_LOGIN);
            if !fits {
                plan.cores.insert(task.pid());
            }
            for (tid, thread) in task.thread_cores() {
                if thread.creds.as_ref().is_some_and(|creds| plan.relabels(creds)) {
                    plan.cores.insert(tid);
                }
            }
        }
        let labelled = images
            .tables
            .iter()
            .filter(|(_, table)| table.iter().any(|e| e.xattr_security_selinux.is_some()));
        plan.tables = labelled.map(|(id, _)| *id).collect();
        plan
    }

    /// Makes the changes in copies of the entries.
    ///
    /// - Resource limits: PID 1's are the ceiling. A process keeps a limit that it had set lower for itself.
    /// - `oom_score_adj`: PID 1's.
    /// - Security label: PID 1's for every thread, or none when PID 1 has none; policies in the image are dropped.
    /// - `loginuid`: dropped.
    /// - Seccomp: the runtime's filters are PID 1's.
    pub fn apply(&self, rewrite: &mut Rewrite<'_>) {
        if self.module {
            rewrite.inventory().lsmtype = Some(self.module() as i32);
        }
        for tid in &self.cores {
            let Some(core) = rewrite.core(*tid) else { continue };
            if let Some(tc) = &mut core.tc {
                let limits = tc.rlimits.iter_mut().flat_map(|limits| &mut limits.rlimits);
                for (limit, own) in limits.zip(&self.limits) {
                    *limit = within(limit, own);
                }
                tc.oom_score_adj = Some(self.oom_score_adj);
                tc.loginuid = tc.loginuid.filter(|uid| *uid == NO_LOGIN);
            }
            if let Some(creds) = core.thread_core.as_mut().and_then(|thread| thread.creds.as_mut()) {
                creds.lsm_profile = self.label.as_ref().map(|label| label.text.clone());
                creds.lsm_sockcreate = None;
                creds.apparmor_data = None;
            }
        }
        for (place, own) in &self.seccomp {
            if let Some(filter) = rewrite.seccomp().get_mut(*place) {
                filter.filter = own.program.clone();
                let flags = filter.flags.unwrap_or(0) & !LOG;
                filter.flags = Some(if own.log { flags | LOG } else { flags });
            }
        }
        for id in &self.tables {
            for entry in rewrite.table(*id).into_iter().flatten() {
                entry.xattr_security_selinux = None;
            }
        }
    }

    fn module(&self) -> LsmType {
        self.label.as_ref().map_or(LsmType::None, |label| label.module)
    }

    fn relabels(&self, creds: &Creds) -> bool {
        creds.lsm_profile.as_deref() != self.label.as_ref().map(|label| label.text.as_str())
            || creds.lsm_sockcreate.is_some()
            || creds.apparmor_data.is_some()
    }
}

fn within(limit: &Rlimit, own: &Limit) -> Rlimit {
    let max = limit.max.min(own.max);
    Rlimit { cur: limit.cur.min(max), max }
}
