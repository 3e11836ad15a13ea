//! The policy check before a thaw: a checkpoint may not give its processes anything that the running container's
//! PID 1 does not have or could not get.
//!
//! The engine calls it; nothing here knows of Kubernetes or containerd. The check is in two parts, so that little of
//! it is on the path of a thaw:
//!
//! ```text
//!  Checkpoint ──prepare──► Prepared            once an image: what can never be allowed, and what depends
//!                            │                 on the container, as a list of requirements
//!  PID 1 ──Target::read──►   │ check           each thaw: requirements against the live PID 1, paths
//!                            ▼                 asked of the kernel with PID 1's credentials
//!              all violations  or  Plan ──apply──► Rewrite ──write_into──► scratch directory
//! ```
//!
//! The rules are allow-lists: a file kind, flag, address family, image file or field that is not known is refused
//! by name. What is taken from PID 1 instead of being judged (limits, OOM score, label) is in the [`Plan`].
//! Everything that is wrong is told at once.

mod access;
mod capability;
mod credentials;
mod devices;
mod files;
mod memory;
mod paths;
mod plan;
mod requirement;
mod seccomp;
mod sockets;
mod target;
mod tasks;
#[cfg(test)]
mod tests;
mod violation;

use std::collections::HashSet;

use woodfrog_criu::images::Checkpoint;

pub use capability::CapSet;
pub use devices::spec_devices;
pub use plan::Plan;
pub use target::{Device, LIMITS, Label, Limit, Target, TargetError};
pub use violation::Violation;

use paths::Opening;
use requirement::Requirement;
use seccomp::Chain;
use violation::Report;

/// The part of the check that needs no container: done once an image, kept with its [`Checkpoint`].
#[derive(Clone, Debug)]
pub struct Prepared {
    report: Report,
    requirements: Vec<Requirement>,
    openings: Vec<Opening>,
    chains: Vec<Chain>,
}

/// Judges everything that no container would allow, and notes what depends on the container.
pub fn prepare(images: &Checkpoint) -> Prepared {
    let ids: HashSet<u32> = images.tasks.iter().flat_map(|task| task.entry.threads.iter().copied()).collect();
    let mut rules =
        Rules { images, ids, report: Report::default(), requirements: Vec::new(), openings: Vec::new() };
    tasks::judge(&mut rules);
    memory::judge(&mut rules);
    files::judge(&mut rules);
    let chains = seccomp::chains(&mut rules);
    let Rules { report, requirements, mut openings, .. } = rules;
    openings.sort();
    // What several processes map is asked for once.
    openings.dedup_by(|a, b| (&a.path, a.access, a.kind) == (&b.path, b.access, b.kind));
    Prepared { report, requirements, openings, chains }
}

impl Prepared {
    /// Judges the rest against the container's PID 1, but for files. `images` is what this was prepared from.
    ///
    /// # Errors
    /// All violations, never none: those that [`prepare`] found as well.
    pub fn check(&self, images: &Checkpoint, target: &Target) -> Result<Plan, Vec<Violation>> {
        let mut report = self.report.clone();
        credentials::judge(images, target, &mut report);
        for requirement in &self.requirements {
            requirement.judge(target, &mut report);
        }
        seccomp::judge(&self.chains, target, &mut report);
        report.into_result(Plan::new(images, target))
    }

    /// Judges the files that are open or mapped: whether the container's PID 1 could open them. Its volumes have been laid out.
    ///
    /// # Errors
    /// All violations, never none.
    pub fn check_files(&self, target: &Target) -> Result<(), Vec<Violation>> {
        let mut report = Report::default();
        access::judge(&self.openings, target, &mut report);
        report.into_result(())
    }
}

/// [`prepare`], [`Prepared::check`] and [`Prepared::check_files`] at once.
///
/// # Errors
/// All violations, never none.
pub fn check(images: &Checkpoint, target: &Target) -> Result<Plan, Vec<Violation>> {
    let prepared = prepare(images);
    match (prepared.check(images, target), prepared.check_files(target)) {
        (Err(all), Err(more)) => Err(all.into_iter().chain(more).collect()),
        (Err(all), _) | (_, Err(all)) => Err(all),
        (Ok(plan), Ok(())) => Ok(plan),
    }
}

/// What [`prepare`] works with.
struct Rules<'a> {
    images: &'a Checkpoint,
    /// Ids of all processes and threads.
    ids: HashSet<u32>,
    report: Report,
    requirements: Vec<Requirement>,
    openings: Vec<Opening>,
}

impl Rules<'_> {
    /// A process of the tree, by pid.
    fn is_process(&self, pid: u32) -> bool {
        self.images.task(pid).is_some()
    }
}
