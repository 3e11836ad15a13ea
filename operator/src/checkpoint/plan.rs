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

use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;
use woodfrog_api::conditions::{CheckpointCondition, CheckpointReason};
use woodfrog_api::{
    AgentPhase, AgentStatus, Checkpoint, CheckpointStatus, FrozenContainer, Instruction, Phase, Summary,
    Target, image, names,
};

use super::conditions::{Judgement, set};
use super::pod;
use super::words::{past_image, progress, reason, said, summary, unfinished};
use crate::agents::avoid;
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
/// The first and the longest wait between attempts.
const BACKOFF: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(600));
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

    fn without_pod(&mut self) {
        let named = self.checkpoint.spec.source.pod_name.as_ref();
        if self.plan.status.pod_uid.is_some() {
            let message = "the pod was deleted before it was frozen".to_owned();
            return self.fail(CheckpointReason::PodEnded, message);
        }
        if let Some(name) = named {
            self.plan.next = Some(POLL);
            let namespace = self.checkpoint.namespace().unwrap_or_default();
            let message = format!("there is no pod {namespace}/{name}: start it, or name another one");
            return self.wait(CheckpointReason::SourceNotFound, message);
        }
        let Ok(Some(template)) = &self.seen.template else { return };
        let missing = self
            .checkpoint
            .spec
            .containers
            .iter()
            .find(|name| !template.spec.containers.iter().any(|container| container.name == **name));
        if let Some(missing) = missing {
            return self.no_container(missing.clone());
        }
        let mut pod = pod::build(self.checkpoint, template, &self.plan.status);
        avoid(pod.spec.get_or_insert_default(), &self.seen.silent_nodes);
        self.plan.create = Some(Box::new(pod));
        self.plan.next = Some(LOOK);
    }

    fn no_container(&mut self, name: String) {
        let message = format!("spec.containers names {name:?}, but the pod has no such container");
        self.fail(CheckpointReason::ContainerNotFound, message);
    }

    fn with_pod(&mut self, pod: &Pod) {
        self.plan.next = Some(if self.checkpoint.spec.source.pod_name.is_some() { POLL } else { LOOK });
        let uid = pod.uid().unwrap_or_default();
        if self.plan.status.pod_uid.as_ref().is_some_and(|known| *known != uid) {
            let message = format!("pod {} was replaced by another of its name", pod.name_any());
            return self.fail(CheckpointReason::PodReplaced, message);
        }
        if pod.annotations().get(names::MANAGED_ANNOTATION).map(String::as_str) != Some("true") {
            let message = format!(
                "pod {} does not run under Woodfrog: make it anew with the annotation {}: \"true\"",
                pod.name_any(),
                names::MANAGED_ANNOTATION
            );
            return self.wait(CheckpointReason::SourceNotManaged, message);
        }
        let status = &mut self.plan.status;
        status.pod_name = Some(pod.name_any());
        status.pod_uid = Some(uid);
        status.node = pod.spec.as_ref().and_then(|spec| spec.node_name.clone());
        if let Some(why) = pod::ended(pod) {
            return self.fail(CheckpointReason::PodEnded, why);
        }
        let deadlines = &self.checkpoint.spec.deadlines;
        if !pod::runs(pod) {
            let begun = pod.metadata.creation_timestamp.as_ref().map(|time| time.0);
            if begun.is_some_and(|begun| self.is_past(begun, deadlines.start.get())) {
                let message = format!(
                    "the pod did not start within {}: {}",
                    deadlines.start,
                    pod::what_it_waits_for(pod)
                );
                return self.fail(CheckpointReason::StartTimedOut, message);
            }
            return self.judge(
                CheckpointCondition::Ready,
                false,
                CheckpointReason::InProgress,
                &format!("the warm-up pod is being started: {}", pod::what_it_waits_for(pod)),
            );
        }
        if self.plan.status.phase == Some(Phase::Pending) {
            self.phase(Phase::WarmingUp);
        }
        let warm_up = &self.checkpoint.spec.warm_up;
        let instructed =
            self.checkpoint.status.as_ref().and_then(|s| s.instruction.as_ref()).map(|i| i.attempt);
        let instructed = instructed == self.plan.status.attempt;
        if !instructed && warm_up.readiness && !pod::is_ready(pod) {
            if self.phase_is_past(warm_up.timeout.get()) {
                let message = format!("the pod was not ready within {}", warm_up.timeout);
                return self.fail(CheckpointReason::WarmUpTimedOut, message);
            }
            let message = "the pod runs, but is not ready yet";
            return self.judge(CheckpointCondition::Ready, false, CheckpointReason::InProgress, message);
        }
        if !instructed {
            // From here on the agent's time runs.
            self.phase(Phase::WarmingUp);
        }
        match self.instruction(pod) {
            Ok(instruction) => self.instruct(instruction),
            Err(missing) => self.no_container(missing),
        }
    }

    /// What the agent is to do; the name of a container that is not there.
    fn instruction(&self, pod: &Pod) -> Result<Instruction, String> {
        let spec = &self.checkpoint.spec;
        let all: Vec<String> =
            pod.spec.iter().flat_map(|pod| &pod.containers).map(|container| container.name.clone()).collect();
        let wanted = if spec.containers.is_empty() { &all } else { &spec.containers };
        if let Some(missing) = wanted.iter().find(|name| !all.contains(name)) {
            return Err(missing.clone());
        }
        let reference = spec.image.clone().unwrap_or_default();
        let target = |name: &String| Target {
            name: name.clone(),
            image: image::reference(&reference, name, wanted.len() == 1),
        };
        Ok(Instruction {
            attempt: self.plan.status.attempt.unwrap_or_default(),
            node: self.plan.status.node.clone().unwrap_or_default(),
            pod_name: pod.name_any(),
            pod_uid: pod.uid().unwrap_or_default(),
            containers: wanted.iter().map(target).collect(),
            warm_up: spec.warm_up.clone(),
            connections: spec.connections,
            memory: spec.memory,
            leave_running: spec.leaves_running(),
            hooks: spec.hooks.clone(),
            push_secret_ref: spec.push_secret_ref.clone(),
            plain_http: self.seen.plain_http.clone(),
        })
    }

    fn instruct(&mut self, instruction: Instruction) {
        let agent = self.checkpoint.status.as_ref().and_then(|status| status.agent.as_ref());
        let agent =
            agent.filter(|a| a.attempt == instruction.attempt && a.pod_uid == instruction.pod_uid).cloned();
        self.plan.node = Some(instruction.node.clone());
        self.plan.grant = instruction.push_secret_ref.is_some();
        self.plan.status.instruction = Some(instruction);
        match agent {
            Some(agent) => self.follow(&agent),
            None if self.phase_is_past(SILENCE) => self.silent(),
            None if self.seen.agent_is_silent => self.almost_silent(),
            None => self.judge(
                CheckpointCondition::Ready,
                false,
                CheckpointReason::InProgress,
                "the pod is ready; the node's agent is instructed",
            ),
        }
    }

    /// What the agent says, and whether it is in time.
    fn follow(&mut self, agent: &AgentStatus) {
        let deadlines = self.checkpoint.spec.deadlines.clone();
        match agent.phase {
            AgentPhase::Done => {
                let instruction = self.plan.status.instruction.as_ref();
                let foreign = agent.containers.iter().find(|container| {
                    !instruction.is_some_and(|instruction| is_target(instruction, &container.image))
                });
                return match foreign {
                    None => self.succeed(&agent.containers),
                    Some(container) => {
                        let message = format!(
                            "the node agent says that it made the image {:?}, which is none of those that it was told to make",
                            container.image
                        );
                        self.fail(CheckpointReason::FreezeFailed, message);
                    }
                };
            }
            AgentPhase::Failed => return self.fail(reason(agent), said(agent)),
            AgentPhase::Refused => return self.fail(CheckpointReason::PodReplaced, said(agent)),
            _ if agent.heartbeat.as_ref().is_some_and(|beat| self.is_past(beat.0, SILENCE)) => {
                return self.silent();
            }
            _ => {}
        }
        let (phase, limit, late, what) = match agent.phase {
            AgentPhase::Freezing => (
                Phase::Freezing,
                deadlines.freeze.get(),
                CheckpointReason::FreezeTimedOut,
                "the containers are being frozen",
            ),
            AgentPhase::Pushing => (
                Phase::Pushing,
                deadlines.push.get(),
                CheckpointReason::PushTimedOut,
                "the images are being pushed",
            ),
            _ => (
                Phase::WarmingUp,
                self.checkpoint.spec.warm_up.timeout.get() + LENIENCE,
                CheckpointReason::WarmUpTimedOut,
                "the pod is being warmed up",
            ),
        };
        // Containers are frozen and pushed one by one: what was begun is not taken back.
        if self.plan.status.phase < Some(phase) {
            self.phase(phase);
        }
        if phase >= Phase::Freezing {
            self.judge(CheckpointCondition::WarmedUp, true, CheckpointReason::Succeeded, "");
        }
        if phase >= Phase::Pushing {
            self.judge(CheckpointCondition::Frozen, true, CheckpointReason::Succeeded, "");
        }
        if self.phase_is_past(limit) {
            return self.fail(late, format!("{what}, for more than {limit:?} now"));
        }
        let quiet = agent.heartbeat.as_ref().is_none_or(|beat| self.is_past(beat.0, QUIET));
        if self.seen.agent_is_silent && quiet {
            return self.almost_silent();
        }
        let message = agent.message.as_deref().map_or(what.to_owned(), |more| format!("{what}: {more}"));
        self.judge(CheckpointCondition::Ready, false, CheckpointReason::InProgress, &message);
        self.show(progress(agent));
    }

    /// How far the phase is, for people. An empty object must not be applied: the API server makes null of it, and refuses that.
    fn show(&mut self, progress: Option<String>) {
        let summary = Summary { progress, ..self.plan.status.summary.take().unwrap_or_default() };
        self.plan.status.summary = Some(summary).filter(|summary| *summary != Summary::default());
    }

    /// Its lease is over, its time is not yet: an agent that is back in time goes on.
    fn almost_silent(&mut self) {
        let node = self.plan.status.node.clone().unwrap_or_default();
        let message = format!(
            "no word from the node agent on {node}; the attempt fails when there is none for {SILENCE:?}"
        );
        self.judge(CheckpointCondition::Ready, false, CheckpointReason::AgentSilent, &message);
        self.show(None);
    }

    fn silent(&mut self) {
        let node = self.plan.status.node.clone().unwrap_or_default();
        let message = format!(
            "the node agent on {node} has not been heard of for {SILENCE:?}: look at its pod and its log"
        );
        self.fail(CheckpointReason::AgentSilent, message);
    }

    fn succeed(&mut self, containers: &[FrozenContainer]) {
        for condition in
            [CheckpointCondition::WarmedUp, CheckpointCondition::Frozen, CheckpointCondition::Pushed]
        {
            self.judge(condition, true, CheckpointReason::Succeeded, "");
        }
        let status = &mut self.plan.status;
        let past =
            status.containers.iter().filter(|old| !containers.iter().any(|new| new.digest == old.digest));
        let past: Vec<_> = past.map(past_image).collect();
        status.history.retain(|past| !containers.iter().any(|new| new.digest == past.digest));
        status.history.splice(0..0, past);
        status.history.truncate(MAX_HISTORY);
        status.containers = containers.to_vec();
        status.failures = Some(0);
        status.summary = Some(summary(containers));
        if let Some(retention) = &mut status.retention {
            (retention.failures, retention.failed_at) = (0, None);
        }
        self.stop_instructing();
        self.phase(Phase::Ready);
        let images: Vec<_> = containers.iter().map(|c| format!("{}@{}", c.image, c.digest)).collect();
        let message = format!("frozen into {}", images.join(", "));
        self.judge(CheckpointCondition::Ready, true, CheckpointReason::Succeeded, &message);
        self.note(false, "Succeeded", message);
        self.plan.outcome = Some("Succeeded".into());
        self.rest();
    }

    /// Nothing is to be made.
    fn rest(&mut self) {
        if !self.checkpoint.spec.leaves_running() {
            self.remove_pod();
        }
        self.plan.next = None;
    }

    fn remove_pod(&mut self) {
        // A named pod is not ours, unless its owner has given it to us to end.
        let ours = self.checkpoint.spec.source.pod_name.is_none()
            || (self.plan.status.phase == Some(Phase::Ready) && !self.checkpoint.spec.leaves_running());
        let pod = self.seen.pod.clone().filter(|pod| {
            let known = self.plan.status.pod_uid.as_ref().or(self
                .checkpoint
                .status
                .as_ref()
                .and_then(|s| s.pod_uid.as_ref()));
            self.checkpoint.spec.source.pod_name.is_none() || pod.uid().as_ref() == known
        });
        if ours {
            self.plan.delete.extend(pod);
        }
    }

    fn stop_instructing(&mut self) {
        self.plan.status.instruction = None;
        (self.plan.node, self.plan.grant) = (None, false);
    }

    fn fail(&mut self, reason: CheckpointReason, message: String) {
        self.stop_instructing();
        let spec = &self.checkpoint.spec;
        let hopeless =
            [CheckpointReason::ContainerNotFound, CheckpointReason::InvalidTemplate].contains(&reason);
        let failures = self.plan.status.failures.unwrap_or(0) + 1;
        self.plan.status.failures = Some(failures);
        self.plan.outcome = Some(reason.to_string());
        self.note(true, &reason.to_string(), message.clone());
        let what = match reason {
            CheckpointReason::WarmUpTimedOut
            | CheckpointReason::WarmUpRequestFailed
            | CheckpointReason::WarmUpCommandFailed => Some(CheckpointCondition::WarmedUp),
            CheckpointReason::PushFailed | CheckpointReason::PushTimedOut => {
                Some(CheckpointCondition::Pushed)
            }
            CheckpointReason::HookFailed
            | CheckpointReason::PreflightFailed
            | CheckpointReason::FreezeFailed
            | CheckpointReason::FreezeTimedOut => Some(CheckpointCondition::Frozen),
            _ => None,
        };
        if let Some(condition) = what {
            self.judge(condition, false, reason, &message);
        }
        self.remove_pod();
        self.show(None);
        if hopeless || failures > spec.retries {
            self.phase(Phase::Failed);
            let reason = if hopeless { reason } else { CheckpointReason::RetriesExhausted };
            let message = if hopeless {
                format!("{message}; it is tried again when the specification changes")
            } else {
                format!(
                    "attempt {failures} of {failures} failed: {message}; it is tried again when the specification changes"
                )
            };
            self.judge(CheckpointCondition::Ready, false, reason, &message);
            self.plan.next = None;
            return;
        }
        let wait = backoff(failures);
        let attempts = spec.retries + 1;
        let status = &mut self.plan.status;
        status.attempt = status.attempt.map(|attempt| attempt + 1);
        (status.node, status.pod_name, status.pod_uid) = (None, None, None);
        self.phase(Phase::Pending);
        let message = format!("attempt {failures} of {attempts} failed: {message}; again in {wait:?}");
        self.judge(CheckpointCondition::Ready, false, CheckpointReason::BackingOff, &message);
        self.plan.next = Some(wait);
    }

    /// Something must change outside first.
    fn wait(&mut self, reason: CheckpointReason, message: String) {
        let known = self.checkpoint.status.iter().flat_map(|status| &status.conditions);
        let ready = CheckpointCondition::Ready.to_string();
        let said = known.clone().any(|c| c.type_ == ready && c.reason == reason.to_string());
        if !said {
            self.note(true, &reason.to_string(), message.clone());
        }
        self.judge(CheckpointCondition::Ready, false, reason, &message);
    }

    /// How long the next attempt has to wait yet.
    fn backoff_left(&self) -> Option<Duration> {
        let failures = self.plan.status.failures.unwrap_or(0);
        let since = self.plan.status.phase_since.as_ref()?.0;
        if failures == 0
            || self.plan.status.phase != Some(Phase::Pending)
            || self.plan.status.pod_uid.is_some()
        {
            return None;
        }
        let left = backoff(failures).saturating_sub(elapsed(since, self.seen.now));
        (!left.is_zero()).then_some(left)
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

fn backoff(failures: i32) -> Duration {
    BACKOFF.0.saturating_mul(1 << (failures - 1).clamp(0, 16)).min(BACKOFF.1)
}

#[cfg(test)]
mod tests;
