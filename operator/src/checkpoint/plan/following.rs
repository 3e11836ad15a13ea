//! What the instructed agent says, and whether it is in time.

use woodfrog_api::conditions::{CheckpointCondition, CheckpointReason};
use woodfrog_api::{AgentPhase, AgentStatus, Instruction, Phase, Summary};

use super::{LENIENCE, Planner, QUIET, SILENCE, is_target};
use crate::checkpoint::words::{progress, reason, said};

impl Planner<'_> {
    pub(super) fn instruct(&mut self, instruction: Instruction) {
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
    pub(super) fn show(&mut self, progress: Option<String>) {
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
}
