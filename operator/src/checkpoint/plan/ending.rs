//! How an attempt ends, what follows, and how long that has to wait.

use std::time::Duration;

use kube::ResourceExt;
use woodfrog_api::conditions::{CheckpointCondition, CheckpointReason};
use woodfrog_api::{FrozenContainer, Phase};

use super::{MAX_HISTORY, Planner, elapsed};
use crate::checkpoint::words::{past_image, summary};

/// The first and the longest wait between attempts.
const BACKOFF: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(600));

impl Planner<'_> {
    pub(super) fn succeed(&mut self, containers: &[FrozenContainer]) {
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
        self.note_missing_sets(containers);
        self.plan.outcome = Some("Succeeded".into());
        self.rest();
    }

    /// Images that do not say what is wanted first, though they were to: they are as good, but the first thaw on a node is slower.
    fn note_missing_sets(&mut self, containers: &[FrozenContainer]) {
        if !self.checkpoint.spec.record_working_set {
            return;
        }
        for container in containers.iter().filter(|container| container.working_set_bytes.is_none()) {
            let mut warnings = container.warnings.iter().filter(|warning| warning.contains("wanted first"));
            let why = warnings.next_back().map_or("the node's agent does not record it", String::as_str);
            let message = format!("container {}: {why}", container.name);
            self.note(true, "WorkingSetNotRecorded", message);
        }
    }

    /// Nothing is to be made.
    pub(super) fn rest(&mut self) {
        if !self.checkpoint.spec.leaves_running() {
            self.remove_pod();
        }
        self.plan.next = None;
    }

    pub(super) fn remove_pod(&mut self) {
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

    pub(super) fn stop_instructing(&mut self) {
        self.plan.status.instruction = None;
        (self.plan.node, self.plan.grant) = (None, false);
    }

    pub(super) fn fail(&mut self, reason: CheckpointReason, message: String) {
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
    pub(super) fn wait(&mut self, reason: CheckpointReason, message: String) {
        let known = self.checkpoint.status.iter().flat_map(|status| &status.conditions);
        let ready = CheckpointCondition::Ready.to_string();
        let said = known.clone().any(|c| c.type_ == ready && c.reason == reason.to_string());
        if !said {
            self.note(true, &reason.to_string(), message.clone());
        }
        self.judge(CheckpointCondition::Ready, false, reason, &message);
    }

    /// How long the next attempt has to wait yet.
    pub(super) fn backoff_left(&self) -> Option<Duration> {
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
}

fn backoff(failures: i32) -> Duration {
    BACKOFF.0.saturating_mul(1 << (failures - 1).clamp(0, 16)).min(BACKOFF.1)
}
