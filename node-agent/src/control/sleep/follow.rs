//! One pod that may sleep: does what its annotations ask for, and says how it is when that has changed.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Patch, PatchParams};
use kube::{Api, ResourceExt};
use serde_json::{Value, json};
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep, sleep_until};
use tracing::warn;
use woodfrog_api::{SleepReport, SleepState, names};

use super::Meta;
use super::tally::Tally;
use crate::control::Context;
use crate::control::report::is_gone;
use crate::engine::container::Container;
use crate::engine::wake::WakeReason;

/// The least time between two reports: what happens meanwhile is in the second.
const PACE: Duration = Duration::from_secs(1);
/// How long a change waits for another: that it is awake, and that the wake is over.
const SETTLE: Duration = Duration::from_millis(100);
/// The first and the longest wait after a report that was not taken.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(60));

/// Follows a pod until it is gone.
pub(super) async fn follow(context: Context, mut pod: watch::Receiver<Meta>, nudge: Arc<Notify>) {
    let mut said = said(&pod.borrow());
    let mut tally = Tally::new(said.clone());
    let (mut next, mut backoff, mut due) = (Instant::now(), BACKOFF.0, false);
    loop {
        let meta = pod.borrow_and_update().clone();
        let containers = context.engine.sleepers(&meta.uid().unwrap_or_default());
        let woken = obey(&containers, &meta, tally.woken_for());
        let quarantined = containers.iter().find_map(|container| context.engine.quarantined(container));
        let (quarantine, left) = quarantined.map(|quarantined| (quarantined.why, quarantined.left)).unzip();
        let report = tally.look(&containers, woken, quarantine, Timestamp::now()).cloned();
        let was_due = std::mem::replace(&mut due, report.is_some() && report != said);
        if due && !was_due {
            next = next.max(Instant::now() + SETTLE);
        }
        if let Some(report) = report.filter(|_| due && Instant::now() >= next) {
            match write(&context, &meta, &report).await {
                Ok(()) => {
                    (said, due) = (Some(report), false);
                    (next, backoff) = (Instant::now() + PACE, BACKOFF.0);
                }
                Err(e) if is_gone(&e) => return,
                Err(e) => {
                    warn!(pod = %meta.name_any(), "cannot say how it sleeps, again in {backoff:?}: {e}");
                    next = Instant::now() + backoff;
                    backoff = (backoff * 2).min(BACKOFF.1);
                }
            }
        }
        tokio::select! {
            changed = pod.changed() => if changed.is_err() { return },
            () = nudge.notified() => {}
            () = sleep_until(next), if due => {}
            () = sleep(left.unwrap_or_default()), if left.is_some() => {}
        }
    }
}

/// What an agent has said of the pod before.
fn said(pod: &Meta) -> Option<SleepReport> {
    SleepReport::parse(pod.annotations().get(names::REPORT_ANNOTATION)?)
}

/// Keeps the pod awake, or wakes it, if it asks for that. Returns for which value of the annotation it has been woken, which was
/// `woken` before.
fn obey(containers: &[Arc<Container>], pod: &Meta, woken: Option<&str>) -> Option<String> {
    let annotation = |key| pod.annotations().get(key).map(String::as_str);
    let kept = annotation(names::KEEP_AWAKE_ANNOTATION) == Some("true");
    for container in containers {
        container.keep_awake(kept);
        if kept && container.is_asleep() {
            begin_wake(container, WakeReason::Pool);
        }
    }
    let asked = annotation(names::WAKE_ANNOTATION).filter(|asked| Some(*asked) != woken);
    let heard = asked.filter(|_| {
        // One that is only being made would not hear it.
        let known = |container: &&Arc<Container>| container.life().outcome().is_some();
        !containers.is_empty()
            && containers.iter().all(|c| known(&c) && begin_wake(c, WakeReason::Annotation))
    });
    heard.or(woken).map(str::to_owned)
}

/// Whether the container is awake or about to wake. If not, its next change is the next try.
fn begin_wake(container: &Container, reason: WakeReason) -> bool {
    container.begin_wake(reason).inspect_err(|e| warn!("cannot wake a container: {e}")).is_ok()
}

async fn write(context: &Context, pod: &Meta, report: &SleepReport) -> kube::Result<()> {
    let pods: Api<Pod> = Api::namespaced(context.client.clone(), &pod.namespace().unwrap_or_default());
    let parameters = PatchParams::apply(names::AGENT).force();
    pods.patch_status(&pod.name_any(), &parameters, &Patch::Apply(patch(pod, report))).await.map(drop)
}

fn patch(pod: &Meta, report: &SleepReport) -> Value {
    let (awake, message) = match report.state {
        SleepState::Awake => ("True", "its application runs"),
        SleepState::Dormant => ("False", "its application does not run until somebody needs it"),
        SleepState::Frozen => ("False", "its application is held until somebody needs it"),
    };
    let (reason, message) = match &report.quarantine {
        None => (format!("{:?}", report.state), message.to_owned()),
        Some(why) => ("ImageQuarantined".to_owned(), format!("{message}; {why}")),
    };
    let condition = json!({
        "type": names::AWAKE_CONDITION, "status": awake, "reason": reason, "message": message,
        "lastTransitionTime": report.since,
    });
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": pod.name_any(),
            // The UID makes this fail for another pod of the same name.
            "uid": pod.uid(),
            "annotations": { names::REPORT_ANNOTATION: json!(report).to_string() },
        },
        "status": { "conditions": [condition] },
    })
}
