//! A pool as the stores show it; no requests.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Pod, PodCondition};
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;
use kube::runtime::reflector::ObjectRef;
use woodfrog_api::{WarmPool, names};

use super::desired::{Desired, Missing};
use super::plan::{Member, State};
use super::requests::{self, Resize};
use super::resized::Resized;
use super::sleep;
use crate::agents::Heard;
use crate::stores::{Stores, node_of};
use crate::template::Template;

/// How long a pod that has ended keeps its place, from its creation.
const EARLY: Duration = Duration::from_secs(10);

/// What a pool is to have, and what it has.
#[derive(Clone, Debug)]
pub(super) struct Observed {
    /// What new pods are, or why there can be none.
    pub(super) desired: Result<Desired, Missing>,
    pub(super) pods: Pods,
    /// The agents of the nodes that its pods are on.
    pub(super) agents: Heard,
    /// The API server does not change what pods request.
    pub(super) unserved: bool,
}

/// The pods of a pool.
#[derive(Clone, Debug, Default)]
pub(super) struct Pods {
    /// Without those that are being deleted.
    pub(super) members: Vec<Member>,
    /// Pods that were its own, until somebody took them by their label.
    pub(super) claimed: Vec<Arc<Pod>>,
    /// Requests of members that are to be others.
    pub(super) resizes: Vec<Resize>,
    /// How far kubelets are with those that were others.
    pub(super) resized: Resized,
    /// The nodes that they are on.
    pub(super) nodes: BTreeSet<String>,
    /// How many run.
    pub(super) running: usize,
    /// Why the scheduler finds no node for one of them, where the cause is what nodes are.
    pub(super) no_node: Option<String>,
    /// When a pod that has ended early is to be looked at again.
    pub(super) again: Option<Duration>,
}

impl Observed {
    pub(super) fn of(pool: &WarmPool, stores: &Stores, now: Timestamp) -> Self {
        let namespace = pool.namespace();
        let reference =
            ObjectRef::new(&pool.spec.checkpoint_ref.name).within(namespace.as_deref().unwrap_or_default());
        let checkpoint = stores.checkpoints.get(&reference);
        let template = checkpoint.as_ref().map_or(Ok(None), |checkpoint| Template::of(checkpoint, stores));
        let pods = pool.metadata.uid.as_deref().map(|uid| stores.pods_of(uid)).unwrap_or_default();
        let pods = Pods::of(pool, pods, now);
        let agents = stores.agents.of(pods.nodes.iter().map(String::as_str));
        Self { desired: Desired::of(pool, checkpoint.as_deref(), template), pods, agents, unserved: false }
    }
}

impl Pods {
    /// `pods`: all that are known to have the pool as an owner.
    pub(super) fn of(pool: &WarmPool, pods: impl IntoIterator<Item = Arc<Pod>>, now: Timestamp) -> Self {
        let mut all = Self::default();
        for pod in pods {
            if !is_owned(&pod, pool) || pod.metadata.deletion_timestamp.is_some() {
                continue;
            }
            if !is_labelled(&pod, pool) {
                all.claimed.push(pod);
                continue;
            }
            let member = member(&pod, now);
            if phase(&pod) == Some("Running") {
                all.running += 1;
            }
            if member.state > State::EndedEarly {
                all.nodes.extend(node_of(&pod).map(str::to_owned));
                all.resized.count(&pod);
            }
            if member.state == State::Unscheduled {
                all.no_node = all.no_node.or_else(|| no_node(&pod));
            }
            if member.state == State::EndedEarly {
                let left = EARLY.saturating_sub(age(&pod, now)) + Duration::from_millis(100);
                all.again = Some(all.again.map_or(left, |again| again.min(left)));
            }
            if member.state > State::EndedEarly {
                all.resizes.extend(requests::resize(&pod, pool.spec.dormant_resources.as_ref()));
            }
            all.members.push(member);
        }
        // In an order of their own, so that equal pods give an equal status.
        all.members.sort_by(|a, b| a.name.cmp(&b.name));
        all
    }
}

/// Whether a pod still belongs to a pool, by its owner and its label, and has not ended.
pub(super) fn is_member(pod: &Pod, pool: &WarmPool) -> bool {
    is_owned(pod, pool)
        && is_labelled(pod, pool)
        && pod.metadata.deletion_timestamp.is_none()
        && !matches!(phase(pod), Some("Succeeded" | "Failed"))
}

/// Whether a pod that names a pool as its owner has been taken by its labels, be it that nobody watches it any more.
pub(super) fn is_lost(pod: &Pod, pool: &WarmPool) -> bool {
    let watched = pod.labels().contains_key(names::REVISION_LABEL);
    is_owned(pod, pool) && pod.metadata.deletion_timestamp.is_none() && !(watched && is_labelled(pod, pool))
}

fn is_owned(pod: &Pod, pool: &WarmPool) -> bool {
    pod.owner_references().iter().any(|owner| Some(&owner.uid) == pool.metadata.uid.as_ref())
}

fn is_labelled(pod: &Pod, pool: &WarmPool) -> bool {
    pod.labels().get(names::POOL_LABEL) == pool.metadata.name.as_ref()
}

fn member(pod: &Pod, now: Timestamp) -> Member {
    let ended = matches!(phase(pod), Some("Succeeded" | "Failed"));
    let state = if ended && age(pod, now) < EARLY {
        State::EndedEarly
    } else if ended {
        State::Ended
    } else if condition(pod, "Ready").is_some_and(|ready| ready.status == "True") {
        State::Ready
    } else if node_of(pod).is_some() {
        State::NotReady
    } else {
        State::Unscheduled
    };
    Member {
        name: pod.name_any(),
        uid: pod.uid().unwrap_or_default(),
        resource_version: pod.resource_version(),
        revision: pod.labels().get(names::REVISION_LABEL).cloned().unwrap_or_default(),
        created: pod.creation_timestamp().map(|time| time.0),
        state,
        report: sleep::report(pod),
        kept: sleep::is_kept(pod),
    }
}

/// The scheduler's words if nodes are not what the pod asks for; that they are full is another matter.
fn no_node(pod: &Pod) -> Option<String> {
    let scheduled = condition(pod, "PodScheduled")?;
    let message = scheduled.message.as_deref()?;
    let unschedulable = scheduled.status == "False" && scheduled.reason.as_deref() == Some("Unschedulable");
    (unschedulable && message.contains("node affinity")).then(|| message.to_owned())
}

fn phase(pod: &Pod) -> Option<&str> {
    pod.status.as_ref()?.phase.as_deref()
}

fn condition<'a>(pod: &'a Pod, type_: &str) -> Option<&'a PodCondition> {
    pod.status.as_ref()?.conditions.as_ref()?.iter().find(|condition| condition.type_ == type_)
}

fn age(pod: &Pod, now: Timestamp) -> Duration {
    let created = pod.creation_timestamp().map_or(now, |time| time.0);
    Duration::try_from(now.duration_since(created)).unwrap_or_default()
}
