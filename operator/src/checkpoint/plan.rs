//! What is to become of a Checkpoint, from what has been seen of it: no IO, no clock.
//!
//! ```text
//!            ┌──────────── the revision changes (from every phase) ─────────────┐
//!            ▼                                                                  │
//!   Pending ──pod runs──► WarmingUp ──► Freezing ──► Pushing ──► Ready ─────────┤
//!      ▲  ▲                (ready: the agent is instructed)                     │
//!      │  └── BackingOff ◄── an attempt fails ──► Failed (retries exhausted) ───┘
//!      └ waits for its source, or for a rival to go
//! ```
//!
//! The agent's own words (`status.agent`) count only where they speak of the current attempt and pod.
//!
//! Up to the instruction it is [`warming`]'s, then [`following`]'s, and [`ending`]'s whatever comes of it.

mod ending;
mod following;
#[cfg(test)]
mod tests;
mod warming;

use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::jiff::Timestamp;
use woodfrog_api::conditions::{CheckpointCondition, CheckpointReason};
use woodfrog_api::{Checkpoint, CheckpointStatus, Instruction, Phase};

use super::conditions::{Judgement, set};
use super::words::unfinished;
use crate::events::Note;
use crate::revision;
use crate::template::{SourceError, Template};

/// How long an agent may be silent.
pub(super) const SILENCE: Duration = Duration::from_secs(60);
/// An agent that works reports so often that its word is new.
const QUIET: Duration = Duration::from_secs(20);
/// Beyond the deadline that an agent keeps itself, before the operator judges.
const LENIENCE: Duration = Duration::from_secs(30);
/// How often an attempt under way is looked at for its deadlines.
pub(super) const LOOK: Duration = Duration::from_secs(15);
/// How often a pod is looked at that Woodfrog has not made: it is not watched.
const POLL: Duration = Duration::from_secs(5);
/// How many past images are kept in mind.
const MAX_HISTORY: usize = 1000;

/// What has been seen.
#[derive(Debug)]
pub struct Seen {
    /// The template; none if the source is a pod.
    pub template: Result<Option<Template>, SourceError>,
    /// The pod of the current attempt.
    pub pod: Option<Pod>,
    /// Pods of earlier attempts.
    pub leftovers: Vec<Pod>,
    /// An older Checkpoint that pushes to the same reference: NAMESPACE/NAME.
    pub rival: Option<String>,
    /// The agent of the pod's node does not renew its lease.
    pub agent_is_silent: bool,
    /// Nodes whose agents do not.
    pub silent_nodes: Vec<String>,
    /// Registries that speak plain HTTP.
    pub plain_http: Vec<String>,
    /// Now.
    pub now: Timestamp,
}

/// Which attempt at what.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attempt {
    /// A hash of everything that makes a difference to the image.
    pub revision: String,
    /// From 1; never goes back.
    pub number: i64,
}

impl Attempt {
    /// The attempt that is due for a Checkpoint whose source gives this template.
    pub fn due(checkpoint: &Checkpoint, template: Option<&Template>) -> Self {
        let spec = &checkpoint.spec;
        let revision = revision::of(&(
            (template, &spec.source.pod_name, &spec.containers, &spec.warm_up),
            (&spec.hooks, &spec.connections, &spec.memory, &spec.image, spec.leaves_running()),
        ));
        // What is not asked for must not change the revisions of Checkpoints that are there.
        let revision =
            if spec.record_working_set { revision::of(&(revision, "recordWorkingSet")) } else { revision };
        let status = checkpoint.status.as_ref();
        let number = status.and_then(|status| status.attempt).unwrap_or(0);
        let same = status.is_some_and(|status| status.revision.as_ref() == Some(&revision));
        Self { revision, number: if same { number } else { number + 1 } }
    }
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// The operator's part of the status.
    pub status: CheckpointStatus,
    /// The node whose agent has work with it.
    pub node: Option<String>,
    /// A pod to make.
    pub create: Option<Box<Pod>>,
    /// Pods to remove.
    pub delete: Vec<Pod>,
    /// The agents may read the push secret.
    pub grant: bool,
    /// What users hear of.
    pub notes: Vec<Note>,
    /// How an attempt has ended: `Succeeded`, or why it failed.
    pub outcome: Option<String>,
    /// When to look again, if nothing happens.
    pub next: Option<Duration>,
}

impl Plan {
    /// Whether there is nothing to be done but to say how far a phase is, or which one it is.
    pub(super) fn is_progress(&self, checkpoint: &Checkpoint) -> bool {
        let nothing = CheckpointStatus::default();
        let (old, new) = (checkpoint.status.as_ref().unwrap_or(&nothing), &self.status);
        let idle = self.create.is_none() && self.delete.is_empty() && self.notes.is_empty();
        idle && self.outcome.is_none()
            && old.attempt == new.attempt
            && old.instruction == new.instruction
            && old.pruning == new.pruning
    }

    /// Whether it gives up an agent because nothing was heard of it.
    pub(super) fn is_silent(&self) -> bool {
        let reason = CheckpointReason::AgentSilent.to_string();
        self.notes.iter().any(|note| note.reason == reason)
    }
}

/// Plans.
pub fn plan(checkpoint: &Checkpoint, attempt: &Attempt, seen: &Seen) -> Plan {
    let mut planner = Planner::new(checkpoint, attempt, seen);
    planner.decide();
    planner.plan
}

/// The same, when the API server has refused the pod that was planned.
pub fn refused(checkpoint: &Checkpoint, attempt: &Attempt, seen: &Seen, why: &str) -> Plan {
    let mut planner = Planner::new(checkpoint, attempt, seen);
    planner.fail(CheckpointReason::InvalidTemplate, format!("the API server refuses the warm-up pod: {why}"));
    planner.plan
}

/// The same, when the API server has failed again and again to make the pod that was planned.
pub fn failing(checkpoint: &Checkpoint, attempt: &Attempt, seen: &Seen, why: &str) -> Plan {
    let mut planner = Planner::new(checkpoint, attempt, seen);
    let message = format!("the API server fails to make the warm-up pod, and is asked again: {why}");
    planner.wait(CheckpointReason::PodNotCreated, message);
    planner.plan
}

struct Planner<'a> {
    checkpoint: &'a Checkpoint,
    seen: &'a Seen,
    plan: Plan,
}

impl<'a> Planner<'a> {
    fn new(checkpoint: &'a Checkpoint, attempt: &Attempt, seen: &'a Seen) -> Self {
        let mut old = checkpoint.status.clone().unwrap_or_default();
        // It is `mismatch`'s.
        old.conditions.retain(|c| c.type_ != CheckpointCondition::Reconciled.to_string());
        let mut status =
            CheckpointStatus { agent: None, instruction: None, pruning: None, pruned: None, ..old };
        status.observed_generation = checkpoint.metadata.generation;
        let plan = Plan {
            status,
            node: None,
            create: None,
            delete: seen.leftovers.clone(),
            grant: false,
            notes: Vec::new(),
            outcome: None,
            next: None,
        };
        let mut planner = Self { checkpoint, seen, plan };
        planner.note_pushed();
        if planner.plan.status.revision.as_ref() != Some(&attempt.revision) {
            let status = &mut planner.plan.status;
            status.revision = Some(attempt.revision.clone());
            status.attempt = Some(attempt.number);
            status.failures = Some(0);
            planner.begin();
        }
        planner
    }

    /// Puts what is being pushed into the history: whatever becomes of this attempt, and of the node's agent, it is known.
    fn note_pushed(&mut self) {
        let status = &mut self.plan.status;
        // What has been said at the end was noted before it.
        if matches!(status.phase, Some(Phase::Ready | Phase::Failed)) {
            return;
        }
        let Some(old) = &self.checkpoint.status else { return };
        let instruction = old.instruction.as_ref();
        for pushed in old.agent.iter().flat_map(|agent| &agent.pushed) {
            // What is in the history is deleted some day, with the Checkpoint's secret.
            if !instruction.is_some_and(|instruction| is_target(instruction, &pushed.image)) {
                continue;
            }
            let known = status.containers.iter().map(|current| &current.digest);
            if !known
                .chain(status.history.iter().map(|past| &past.digest))
                .any(|known| *known == pushed.digest)
            {
                status.history.insert(0, unfinished(pushed));
            }
        }
        status.history.truncate(MAX_HISTORY);
    }

    /// Begins an attempt whose number is set.
    fn begin(&mut self) {
        let status = &mut self.plan.status;
        (status.node, status.pod_name, status.pod_uid, status.summary) =
            (None, None, None, status.summary.take());
        self.phase(Phase::Pending);
        for condition in
            [CheckpointCondition::WarmedUp, CheckpointCondition::Frozen, CheckpointCondition::Pushed]
        {
            self.judge(condition, false, CheckpointReason::Waiting, "");
        }
        self.judge(
            CheckpointCondition::Ready,
            false,
            CheckpointReason::InProgress,
            "the warm-up pod is being started",
        );
    }

    fn decide(&mut self) {
        let phase = self.plan.status.phase.unwrap_or(Phase::Pending);
        match phase {
            Phase::Ready => return self.rest(),
            Phase::Failed => return self.remove_pod(),
            _ => {}
        }
        if let Some(left) = self.backoff_left() {
            self.remove_pod();
            self.plan.next = Some(left);
            return;
        }
        if let Err(e) = &self.seen.template {
            return match e.reason {
                CheckpointReason::InvalidTemplate => self.fail(e.reason, e.message.clone()),
                _ => self.wait(e.reason, e.message.clone()),
            };
        }
        if let Some(rival) = &self.seen.rival {
            let image = self.checkpoint.spec.image.as_deref().unwrap_or_default();
            let message = format!(
                "Checkpoint {rival}, which is older, pushes to {image} too: give one of them another image"
            );
            self.plan.next = Some(LOOK);
            return self.wait(CheckpointReason::ImageInUse, message);
        }
        match self.seen.pod.clone() {
            Some(pod) => self.with_pod(&pod),
            None => self.without_pod(),
        }
    }

    fn phase(&mut self, phase: Phase) {
        self.plan.status.phase = Some(phase);
        self.plan.status.phase_since =
            Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(self.seen.now));
    }

    fn phase_is_past(&self, limit: Duration) -> bool {
        self.plan.status.phase_since.as_ref().is_some_and(|since| self.is_past(since.0, limit))
    }

    fn is_past(&self, since: Timestamp, limit: Duration) -> bool {
        elapsed(since, self.seen.now) > limit
    }

    fn judge(&mut self, condition: CheckpointCondition, is: bool, reason: CheckpointReason, message: &str) {
        let judgement = Judgement {
            type_: condition.to_string(),
            is,
            reason: reason.to_string(),
            message: message.to_owned(),
            generation: self.checkpoint.metadata.generation,
        };
        set(&mut self.plan.status.conditions, judgement, self.seen.now);
    }

    fn note(&mut self, warning: bool, reason: &str, text: String) {
        self.plan.notes.push(Note { warning, reason: reason.to_owned(), text });
    }
}

/// Whether an image is one that the agent was told to make: any other one is not the Checkpoint's to name or to delete.
fn is_target(instruction: &Instruction, image: &str) -> bool {
    instruction.containers.iter().any(|target| target.image == image)
}

pub(super) fn elapsed(since: Timestamp, now: Timestamp) -> Duration {
    Duration::try_from(now.duration_since(since)).unwrap_or_default()
}
