//! What is to be done to a pool's pods: pure.
//!
//! A pod is *new* if it was made from the images and template of now, and *old* otherwise. Pods that are being deleted have
//! gone; pods that have ended are deleted and have gone, too. Of what is left, with R = spec.replicas:
//!
//! ```text
//!   make     R - new, but while there are old pods only up to R + maxSurge in all
//!   old      go as soon as others stand in for them: (ready new) + old - R of them
//!   surplus  new - R of the new ones go
//! ```
//!
//! So a rollout never leaves fewer than R ready pods where there were R before, and one whose new pods do not get ready
//! stops with the old ones in their place. Those go first that are missed least: ended, unscheduled, not ready, asleep, then the
//! youngest. Where the Checkpoint has no images no pod is old, and none is made.

use k8s_openapi::jiff::Timestamp;
use woodfrog_api::{SleepReport, SleepState};

/// A pod of a pool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Member {
    pub(super) name: String,
    pub(super) uid: String,
    pub(super) resource_version: Option<String>,
    /// Hash of what it was made from.
    pub(super) revision: String,
    pub(super) created: Option<Timestamp>,
    pub(super) state: State,
    /// What its agent says of its sleep; none if it does not sleep, or nothing was said yet.
    pub(super) report: Option<SleepReport>,
    /// It is to be kept awake.
    pub(super) kept: bool,
}

impl Member {
    /// Whether its application runs, as far as that is known.
    pub(super) fn is_awake(&self) -> bool {
        self.report.as_ref().is_none_or(|report| report.state == SleepState::Awake)
    }
}

/// How far a pod is, in the order in which pods are missed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum State {
    /// Its containers have ended for good.
    Ended,
    /// The same, right after its start: it keeps its place for a while, so that its successors, which may fare alike, are
    /// not made one after the other.
    EndedEarly,
    /// It has no node yet.
    Unscheduled,
    /// It does not answer.
    NotReady,
    /// It answers.
    Ready,
}

/// What a pool is to be.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wanted<'a> {
    /// R above.
    pub(super) replicas: usize,
    /// How many pods more there may be while old ones are replaced.
    pub(super) max_surge: usize,
    /// The revision of new pods; none while there are no images.
    pub(super) revision: Option<&'a str>,
}

/// What is to be done.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Plan {
    /// How many pods are made.
    pub(super) make: usize,
    /// The pods that are deleted.
    pub(super) delete: Vec<Member>,
    /// Some pods are old.
    pub(super) rolling_out: bool,
}

impl Plan {
    /// Whether all is as it should be.
    pub(super) fn is_settled(&self) -> bool {
        self.make == 0 && self.delete.is_empty() && !self.rolling_out
    }

    /// Whether a pod stays that has not ended.
    pub(super) fn leaves(&self, member: &Member) -> bool {
        member.state != State::Ended && !self.delete.iter().any(|gone| gone.uid == member.uid)
    }
}

/// What is to be done so that these pods become what is wanted.
pub(super) fn plan(members: &[Member], wanted: Wanted<'_>) -> Plan {
    let (ended, living): (Vec<&Member>, Vec<&Member>) =
        members.iter().partition(|member| member.state == State::Ended);
    let (mut new, mut old): (Vec<&Member>, Vec<&Member>) = living
        .into_iter()
        .partition(|member| wanted.revision.is_none_or(|revision| member.revision == revision));
    least_missed_first(&mut new);
    least_missed_first(&mut old);

    let Wanted { replicas, max_surge, revision } = wanted;
    let most = if old.is_empty() { replicas.max(new.len()) } else { replicas + max_surge };
    let room = most.saturating_sub(new.len() + old.len());
    let make = if revision.is_some() { replicas.saturating_sub(new.len()).min(room) } else { 0 };

    let surplus = new.len().saturating_sub(replicas);
    let ready = new[surplus..].iter().filter(|member| member.state == State::Ready).count();
    let replaced = (ready + old.len()).saturating_sub(replicas).min(old.len());

    let delete =
        ended.into_iter().chain(old[..replaced].iter().copied()).chain(new[..surplus].iter().copied());
    Plan { make, delete: delete.cloned().collect(), rolling_out: !old.is_empty() }
}

fn least_missed_first(members: &mut [&Member]) {
    members.sort_by(|a, b| {
        let state = a.state.cmp(&b.state).then_with(|| a.is_awake().cmp(&b.is_awake()));
        state.then_with(|| b.created.cmp(&a.created)).then_with(|| b.name.cmp(&a.name))
    });
}
