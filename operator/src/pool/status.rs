//! What a pool's status says, and who hears of it.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use k8s_openapi::jiff::Timestamp;
use kube::api::{Patch, PatchParams};
use kube::{Client, Resource, ResourceExt};
use serde_json::json;
use woodfrog_api::conditions::{PoolCondition, PoolReason};
use woodfrog_api::{Standby, WarmPool, WarmPoolStatus, names};

use super::desired::{Desired, Missing};
use super::observe::Observed;
use super::plan::{Plan, State};
use super::sleep;
use crate::agents;
use crate::events::Note;

/// A condition, before its time is known.
struct Said {
    type_: PoolCondition,
    holds: bool,
    reason: PoolReason,
    message: String,
}

/// The status after a plan was carried out; `refused`: what the API server said against its pods.
pub(super) fn status(
    pool: &WarmPool,
    observed: &Observed,
    plan: &Plan,
    refused: Option<&str>,
    now: Timestamp,
) -> WarmPoolStatus {
    let replicas = pool.spec.replicas;
    let counts = counts(pool, observed);
    // In the order in which somebody should look at it.
    let hindered = refused
        .map(|message| (PoolReason::PodsRefused, message.to_owned()))
        .or_else(|| observed.desired.as_ref().err().map(|missing| (missing.reason, missing.message.clone())))
        .or_else(|| {
            let message = observed.pods.no_node.as_ref()?;
            Some((PoolReason::NoCompatibleNode, format!("no node can thaw the images: {message}")))
        });

    let ready = format!("{} of {replicas} pods are ready", counts.ready_replicas);
    let enough = counts.ready_replicas >= replicas;
    let (reason, message) = match &hindered {
        _ if enough => (PoolReason::EnoughReady, ready),
        Some((reason, why)) => (*reason, format!("{ready}; {why}")),
        None => (PoolReason::TooFewReady, ready),
    };
    let available = Said { type_: PoolCondition::Available, holds: enough, reason, message };

    let short = i64::from(counts.replicas) < i64::from(replicas);
    let (holds, reason, message) = match hindered {
        Some((reason @ PoolReason::PodsRefused, why)) => (false, reason, why),
        Some((reason, why)) if observed.desired.is_err() && plan.is_settled() && short => {
            (false, reason, why)
        }
        _ if plan.is_settled() => (false, PoolReason::Settled, "nothing is left to be done".to_owned()),
        _ if plan.rolling_out => {
            let old = counts.replicas - counts.updated_replicas;
            (true, PoolReason::RollingOut, format!("replaces {} by new ones", pods(old)))
        }
        _ if plan.make > 0 => (true, PoolReason::Scaling, format!("makes {}", pods(plan.make as i32))),
        _ => (true, PoolReason::Scaling, format!("removes {}", pods(plan.delete.len() as i32))),
    };
    let progressing = Said { type_: PoolCondition::Progressing, holds, reason, message };

    let said = [available, progressing, checkpoint_ready(&observed.desired), degraded(pool, observed)];
    let resized = pool.spec.dormant_resources.is_some().then(|| resized(observed));
    with(pool, counts, said.into_iter().chain(resized), now)
}

fn sleeps(pool: &WarmPool) -> bool {
    pool.spec.standby != Standby::Awake
}

fn counts(pool: &WarmPool, observed: &Observed) -> WarmPoolStatus {
    let members = &observed.pods.members;
    let desired = observed.desired.as_ref().ok();
    let is_new = |revision: &str| desired.is_some_and(|desired| desired.revision == revision);
    let living = || members.iter().filter(|member| member.state != State::Ended);
    let sum = sleep::sum(living());
    WarmPoolStatus {
        replicas: living().count() as i32,
        ready_replicas: living().filter(|member| member.state == State::Ready).count() as i32,
        updated_replicas: living().filter(|member| is_new(&member.revision)).count() as i32,
        awake: if sleeps(pool) { sum.awake } else { observed.pods.running as i32 },
        dormant: sum.asleep,
        wakes: sum.wakes,
        failed_wakes: sum.failed,
        wake_time: sum.time,
        selector: Some(format!("{}={}", names::POOL_LABEL, pool.name_any())),
        image: desired.map(|desired| desired.images.join(",")),
        ..WarmPoolStatus::default()
    }
}

fn checkpoint_ready(desired: &Result<Desired, Missing>) -> Said {
    let type_ = PoolCondition::CheckpointReady;
    match desired {
        Ok(desired) => {
            let message = match desired.images.as_slice() {
                [image] => format!("pods are made from {image}"),
                images => format!("pods are made from {} images", images.len()),
            };
            Said { type_, holds: true, reason: PoolReason::CheckpointHasImages, message }
        }
        Err(missing) => {
            Said { type_, holds: false, reason: missing.reason, message: missing.message.clone() }
        }
    }
}

fn resized(observed: &Observed) -> Said {
    let type_ = PoolCondition::Resized;
    if observed.unserved {
        let message = "the API server does not serve pods/resize: requests stay as they are".to_owned();
        return Said { type_, holds: false, reason: PoolReason::ResizeUnsupported, message };
    }
    match observed.pods.resized.hindrance() {
        Some((reason, message)) => Said { type_, holds: false, reason, message },
        None => {
            let message = "pods request what they should, asleep and awake".to_owned();
            Said { type_, holds: true, reason: PoolReason::AsRequested, message }
        }
    }
}

fn degraded(pool: &WarmPool, observed: &Observed) -> Said {
    let type_ = PoolCondition::Degraded;
    let quarantined = sleep::sum(observed.pods.members.iter())
        .quarantined
        .map(|(count, why)| format!("cold starts instead of wakes, {} concerned: {why}", pods(count as i32)));
    match (silent_agents(pool, observed), quarantined) {
        (Some(message), _) => Said { type_, holds: true, reason: PoolReason::AgentSilent, message },
        (None, Some(message)) => Said { type_, holds: true, reason: PoolReason::ImageQuarantined, message },
        (None, None) => {
            let well = if sleeps(pool) { "pods sleep and wake as they should" } else { "no agent is silent" };
            Said { type_, holds: false, reason: PoolReason::AllWell, message: well.to_owned() }
        }
    }
}

/// What it means that agents of its nodes are silent, if some are. While that is not known it is as it was said before.
fn silent_agents(pool: &WarmPool, observed: &Observed) -> Option<String> {
    let silent = &observed.agents.silent;
    if silent.is_empty() {
        let reason = PoolReason::AgentSilent.to_string();
        let before = conditions(pool).iter().find(|condition| condition.reason == reason)?;
        return observed.agents.unsure.then(|| before.message.clone());
    }
    let means = if sleeps(pool) { "pods there that sleep do not wake, new ones" } else { "new pods there" };
    Some(format!(
        "no word from the node agents of {}: {means} start cold, and what was said of them last may no longer be so: look at \
         the agents' pods on these nodes",
        agents::named(silent)
    ))
}

fn with(
    pool: &WarmPool,
    counts: WarmPoolStatus,
    said: impl Iterator<Item = Said>,
    now: Timestamp,
) -> WarmPoolStatus {
    let before = conditions(pool);
    let conditions = said.map(|said| {
        let (type_, status) = (said.type_.to_string(), if said.holds { "True" } else { "False" });
        let same = before.iter().find(|condition| condition.type_ == type_ && condition.status == status);
        Condition {
            last_transition_time: same.map_or(Time(now), |condition| condition.last_transition_time.clone()),
            message: said.message,
            observed_generation: pool.metadata.generation,
            reason: said.reason.to_string(),
            status: status.to_owned(),
            type_,
        }
    });
    WarmPoolStatus {
        conditions: conditions.collect(),
        observed_generation: pool.metadata.generation,
        ..counts
    }
}

/// Whether it counts pods otherwise than the pool says now, and that is all.
pub(super) fn is_progress(pool: &WarmPool, status: &WarmPoolStatus) -> bool {
    let says =
        |condition: &Condition| (condition.type_.clone(), condition.status.clone(), condition.reason.clone());
    conditions(pool).iter().map(says).eq(status.conditions.iter().map(says))
        && pool.status.as_ref() != Some(status)
}

/// What people should hear of a pool that comes to this status: what its conditions have not said before.
pub(super) fn notes(pool: &WarmPool, status: &WarmPoolStatus) -> Vec<Note> {
    const NORMAL: [PoolReason; 2] = [PoolReason::Scaling, PoolReason::RollingOut];
    const WARNING: [PoolReason; 7] = [
        PoolReason::PodsRefused,
        PoolReason::NoCompatibleNode,
        PoolReason::CheckpointNotFound,
        PoolReason::CheckpointFailed,
        PoolReason::ImageQuarantined,
        PoolReason::AgentSilent,
        PoolReason::ResizeInfeasible,
    ];
    let before = conditions(pool);
    let mut notes: Vec<Note> = Vec::new();
    for condition in &status.conditions {
        let is = |reason: &PoolReason| reason.to_string() == condition.reason;
        let known = before.iter().any(|old| old.reason == condition.reason);
        let warning = WARNING.iter().any(is);
        let said = notes.iter().any(|note| note.reason == condition.reason);
        if !known && !said && (warning || NORMAL.iter().any(is)) {
            notes.push(Note { warning, reason: condition.reason.clone(), text: condition.message.clone() });
        }
    }
    notes
}

/// Writes a status.
pub(super) async fn write(client: &Client, pool: &WarmPool, status: &WarmPoolStatus) -> kube::Result<()> {
    let pools = kube::Api::<WarmPool>::namespaced(client.clone(), &pool.namespace().unwrap_or_default());
    let object = json!({
        "apiVersion": WarmPool::api_version(&()),
        "kind": WarmPool::kind(&()),
        "status": status,
    });
    let params = PatchParams::apply(names::OPERATOR).force();
    match pools.patch_status(&pool.name_any(), &params, &Patch::Apply(object)).await {
        // It has gone meanwhile.
        Err(kube::Error::Api(status)) if status.is_not_found() => Ok(()),
        result => result.map(drop),
    }
}

pub(super) fn conditions(pool: &WarmPool) -> &[Condition] {
    pool.status.as_ref().map_or(&[], |status| &status.conditions)
}

fn pods(count: i32) -> String {
    format!("{count} {}", if count == 1 { "pod" } else { "pods" })
}
