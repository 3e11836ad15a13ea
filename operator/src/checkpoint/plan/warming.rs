//! From the pod's creation to the instruction of its node's agent.

use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use woodfrog_api::conditions::{CheckpointCondition, CheckpointReason};
use woodfrog_api::{Instruction, Phase, Target, image, names};

use super::{LOOK, POLL, Planner};
use crate::agents::avoid;
use crate::checkpoint::pod;

impl Planner<'_> {
    pub(super) fn without_pod(&mut self) {
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

    pub(super) fn with_pod(&mut self, pod: &Pod) {
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
            record_working_set: spec.record_working_set,
            leave_running: spec.leaves_running(),
            hooks: spec.hooks.clone(),
            push_secret_ref: spec.push_secret_ref.clone(),
            plain_http: self.seen.plain_http.clone(),
        })
    }
}
