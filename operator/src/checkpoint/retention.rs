//! Which images are not kept, since `spec.retention` says so or their attempt did not finish, and how they go: no IO, no clock.
//!
//! ```text
//!   surplus ──► [review] ──► [begin]: label, grant, status.pruning ──► the agent's word ──► history without them
//!                  ▲                                                       │ failed, silent
//!                  └──────────── after an hour, or by another node ◄───────┘
//! ```
//!
//! Only what the phases Ready and Failed leave alone is touched: while an attempt is under way the node's label and the
//! grant are that attempt's.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use woodfrog_api::checkpoint::pruning::MAX_IMAGES;
use woodfrog_api::conditions::{CheckpointCondition, CheckpointReason};
use woodfrog_api::{
    Checkpoint, PastImage, Phase, PruneOutcome, Pruned, Pruning, RetentionStatus, SurplusImage,
};

use super::conditions::{Judgement, set};
use super::plan::{LOOK, Plan, SILENCE, elapsed};
use crate::events::Note;

/// How long to wait after a try that failed.
const RETRY: Duration = Duration::from_secs(3600);
/// How many tries may fail in a row.
const TRIES: i32 = 24;
/// How many of them, where agents are silent, are made one right after the other.
const SILENT_TRIES: i32 = 3;
/// How often images that are still in use are looked at.
const USED: Duration = Duration::from_secs(60);
/// How many images a message names.
const NAMED: usize = 4;

/// The images that a Checkpoint has made and does not keep.
pub(super) fn surplus(checkpoint: &Checkpoint, now: Timestamp) -> Vec<PastImage> {
    let status = checkpoint.status.clone().unwrap_or_default();
    let keep = checkpoint.spec.retention.as_ref().and_then(|retention| retention.keep);
    let keep = keep.and_then(|keep| usize::try_from(keep).ok()).unwrap_or(usize::MAX);
    let mut counts: HashMap<String, usize> =
        status.containers.into_iter().map(|current| (current.name, 1)).collect();
    let is_surplus = |past: &PastImage| {
        if past.unfinished {
            return true;
        }
        let count = counts.entry(past.name.clone()).or_default();
        *count += 1;
        *count > keep || expires_in(checkpoint, past, now).is_some_and(|left| left.is_zero())
    };
    status.history.into_iter().filter(is_surplus).collect()
}

/// How long an image may be kept yet; none if its age does not matter.
fn expires_in(checkpoint: &Checkpoint, past: &PastImage, now: Timestamp) -> Option<Duration> {
    let max = checkpoint.spec.retention.as_ref()?.max_age.as_ref()?.get();
    Some(max.saturating_sub(elapsed(past.frozen_at.as_ref()?.0, now)))
}

/// Follows the try under way, and says which images are due to be deleted in another one. `used`: digests that must stay.
pub(super) fn review(
    checkpoint: &Checkpoint,
    plan: &mut Plan,
    used: impl FnOnce() -> HashSet<String>,
    now: Timestamp,
) -> Vec<SurplusImage> {
    let due = Review { checkpoint, plan, now }.due(used);
    due.into_iter().map(|past| SurplusImage { image: past.image, digest: past.digest }).collect()
}

/// Has one of `nodes`, all of which had an agent once, delete images.
pub(super) fn begin(
    checkpoint: &Checkpoint,
    plan: &mut Plan,
    images: Vec<SurplusImage>,
    nodes: &[String],
    plain_http: &[String],
    now: Timestamp,
) {
    Review { checkpoint, plan, now }.begin(images, nodes, plain_http);
}

struct Review<'a> {
    checkpoint: &'a Checkpoint,
    plan: &'a mut Plan,
    now: Timestamp,
}

impl Review<'_> {
    fn due(&mut self, used: impl FnOnce() -> HashSet<String>) -> Vec<PastImage> {
        let old = self.checkpoint.status.clone().unwrap_or_default();
        if !matches!(self.plan.status.phase, Some(Phase::Ready | Phase::Failed)) {
            if old.pruning.is_some() {
                self.say(CheckpointReason::Waiting, "images are deleted when the attempt under way is over");
            }
            return Vec::new();
        }
        if old.observed_generation != self.checkpoint.metadata.generation {
            self.forgive();
        }
        let said = old.pruned.filter(|said| {
            old.pruning.as_ref().is_some_and(|p| said.number == p.number && said.node == p.node)
        });
        self.forget(said.as_ref());
        let (surplus, expiry) = self.surplus();
        if surplus.is_empty() {
            self.forgive();
            if self.checkpoint.spec.retention.is_some() {
                self.judge(true, CheckpointReason::Succeeded, "");
            } else {
                let retained = CheckpointCondition::Retained.to_string();
                self.plan.status.conditions.retain(|condition| condition.type_ != retained);
            }
            self.plan.next = expiry;
            return Vec::new();
        }
        let mut used = used();
        used.extend(self.plan.status.containers.iter().map(|current| current.digest.clone()));
        let free: Vec<_> = surplus.iter().filter(|past| !used.contains(&past.digest)).cloned().collect();
        if let Some(pruning) = old.pruning {
            let gone = |image: &SurplusImage| !self.has(&image.digest);
            let is_free = |image: &SurplusImage| free.iter().any(|past| past.digest == image.digest);
            // What has come into use, or is to be kept after all, is taken back with the whole try.
            if pruning.images.iter().all(|image| gone(image) || is_free(image))
                && self.follow(pruning, said, &surplus)
            {
                return Vec::new();
            }
        }
        if free.is_empty() {
            self.say(CheckpointReason::StillInUse, &format!("still in use: {}", names(&surplus)));
            self.plan.next = Some(expiry.map_or(USED, |expiry| expiry.min(USED)));
            return Vec::new();
        }
        let retention = self.plan.status.retention.clone().unwrap_or_default();
        let since = retention.failed_at.as_ref().map_or(Duration::MAX, |at| elapsed(at.0, self.now));
        let left = pause(&retention).map(|pause| pause.saturating_sub(since));
        if left == Some(Duration::ZERO) {
            return free.into_iter().take(MAX_IMAGES).collect();
        }
        self.plan.next = left.into_iter().chain(expiry).min();
        Vec::new()
    }

    /// What is surplus now, and when there will be more if nothing happens.
    fn surplus(&self) -> (Vec<PastImage>, Option<Duration>) {
        let mut as_planned = self.checkpoint.clone();
        as_planned.status = Some(self.plan.status.clone());
        let surplus = surplus(&as_planned, self.now);
        let kept = self.plan.status.history.iter().filter(|past| !surplus.contains(past));
        let expiry = kept.filter_map(|past| expires_in(self.checkpoint, past, self.now)).min();
        (surplus, expiry)
    }

    fn has(&self, digest: &str) -> bool {
        self.plan.status.history.iter().any(|past| past.digest == digest)
    }

    /// Images that are gone are history no more.
    fn forget(&mut self, said: Option<&Pruned>) {
        let images = said.iter().flat_map(|said| &said.images);
        let gone: HashSet<&str> = images
            .filter(|image| image.outcome == PruneOutcome::Deleted)
            .map(|image| image.digest.as_str())
            .collect();
        let history = &mut self.plan.status.history;
        let before = history.len();
        history.retain(|past| !gone.contains(past.digest.as_str()));
        let count = before - history.len();
        if count > 0 {
            let images = if count == 1 { "image" } else { "images" };
            let text = format!("deleted {count} {images} that are not kept");
            self.plan.notes.push(Note { warning: false, reason: "ImagesDeleted".into(), text });
        }
    }

    /// Whether the try goes on.
    fn follow(&mut self, pruning: Pruning, said: Option<Pruned>, surplus: &[PastImage]) -> bool {
        let heard = said.as_ref().and_then(|said| said.heartbeat.as_ref()).unwrap_or(&pruning.since).0;
        match said {
            Some(said) if said.done => self.over(&said, surplus),
            _ if elapsed(heard, self.now) > SILENCE => {
                let message = format!(
                    "the node agent on {} has not been heard of for {SILENCE:?}: look at its pod and its log",
                    pruning.node
                );
                self.plan.status.retention.get_or_insert_default().silent_node = Some(pruning.node);
                self.fail(CheckpointReason::AgentSilent, &message, surplus);
            }
            _ => {
                self.instruct(pruning);
                return true;
            }
        }
        false
    }

    /// The agent has done what it could.
    fn over(&mut self, said: &Pruned, surplus: &[PastImage]) {
        self.plan.status.retention.get_or_insert_default().silent_node = None;
        let failed: Vec<_> =
            said.images.iter().filter(|image| image.outcome != PruneOutcome::Deleted).collect();
        let Some(first) = failed.first() else { return self.forgive() };
        let unsupported = failed.iter().all(|image| image.outcome == PruneOutcome::Unsupported);
        let reason = if unsupported {
            CheckpointReason::DeletionUnsupported
        } else {
            CheckpointReason::DeletionFailed
        };
        self.fail(reason, first.message.as_deref().unwrap_or("the node agent does not say why"), surplus);
    }

    fn begin(&mut self, images: Vec<SurplusImage>, nodes: &[String], plain_http: &[String]) {
        let said = self.checkpoint.status.as_ref().and_then(|status| status.pruned.as_ref());
        let last = self.plan.status.node.clone();
        let retention = self.plan.status.retention.get_or_insert_default();
        retention.number = retention.number.max(said.map_or(0, |said| said.number)) + 1;
        let number = retention.number;
        let Some(node) = choose(nodes, last.as_deref(), retention) else {
            let (surplus, _) = self.surplus();
            let message = "no node has the labels of a Woodfrog agent, so there is none to delete them";
            return self.fail(CheckpointReason::DeletionFailed, message, &surplus);
        };
        self.instruct(Pruning {
            number,
            node,
            since: Time(self.now),
            images,
            push_secret_ref: self.checkpoint.spec.push_secret_ref.clone(),
            plain_http: plain_http.to_vec(),
        });
    }

    fn instruct(&mut self, pruning: Pruning) {
        self.plan.node = Some(pruning.node.clone());
        self.plan.grant = pruning.push_secret_ref.is_some();
        self.plan.next = Some(LOOK);
        let message = format!("the agent on {} deletes images: {}", pruning.node, pruning.images.len());
        self.plan.status.pruning = Some(pruning);
        self.say(CheckpointReason::InProgress, &message);
    }

    fn fail(&mut self, reason: CheckpointReason, why: &str, surplus: &[PastImage]) {
        let retention = self.plan.status.retention.get_or_insert_default();
        retention.failures += 1;
        retention.failed_at = Some(Time(self.now));
        self.plan.next = pause(retention);
        let again = match self.plan.next {
            None => "it is tried again when there is a new image or the specification changes".to_owned(),
            Some(Duration::ZERO) => "it is tried again".to_owned(),
            Some(pause) => format!("it is tried again after {} minutes", pause.as_secs() / 60),
        };
        let text = format!("{why}; {again}; left: {}", names(surplus));
        self.say(reason, &text);
        self.plan.notes.push(Note { warning: true, reason: reason.to_string(), text });
    }

    /// Earlier failures count no more.
    fn forgive(&mut self) {
        if let Some(retention) = &mut self.plan.status.retention {
            (retention.failures, retention.failed_at) = (0, None);
        }
    }

    /// Not all is as `spec.retention` has it.
    fn say(&mut self, reason: CheckpointReason, message: &str) {
        self.judge(false, reason, message);
    }

    fn judge(&mut self, is: bool, reason: CheckpointReason, message: &str) {
        let judgement = Judgement {
            type_: CheckpointCondition::Retained.to_string(),
            is,
            reason: reason.to_string(),
            message: message.to_owned(),
            generation: self.checkpoint.metadata.generation,
        };
        set(&mut self.plan.status.conditions, judgement, self.now);
    }
}

/// How long to wait after the last failure; none: for good.
fn pause(retention: &RetentionStatus) -> Option<Duration> {
    let silent = retention.silent_node.is_some();
    match retention.failures {
        0 => Some(Duration::ZERO),
        TRIES.. => None,
        ..SILENT_TRIES if silent => Some(Duration::ZERO),
        _ => Some(RETRY),
    }
}

/// The node of the last attempt, or another one that has not just been silent; the silent one where there is no other.
fn choose(nodes: &[String], last: Option<&str>, retention: &RetentionStatus) -> Option<String> {
    let others: Vec<_> = nodes.iter().filter(|node| Some(*node) != retention.silent_node.as_ref()).collect();
    let turn = usize::try_from(retention.number).unwrap_or(0) % others.len().max(1);
    let same = others.iter().find(|node| Some(node.as_str()) == last);
    same.or(others.get(turn)).copied().or(nodes.first()).cloned()
}

/// Some of them, and how many more there are.
fn names(images: &[PastImage]) -> String {
    let named = images.iter().take(NAMED).map(|past| format!("{}@{}", past.image, past.digest));
    let mut all = named.collect::<Vec<_>>().join(", ");
    if images.len() > NAMED {
        all += &format!(" and {} more", images.len() - NAMED);
    }
    all
}

#[cfg(test)]
mod tests;
