//! What is said of a pod, from what its containers have done since the last look and what was said before: by this agent, or by one
//! before it.

use std::collections::HashMap;
use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use woodfrog_api::sleep_report::RECENT_WAKES;
use woodfrog_api::{SleepReport, SleepState};

use crate::engine::container::{Container, Life, Phasing};
use crate::engine::wake::Wakes;

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct Tally {
    report: Option<SleepReport>,
    /// The wakes of each container that have been counted, and how many of them ended cold, by token.
    counted: HashMap<String, (u64, u64)>,
}

impl Tally {
    /// Goes on from what was said of the pod.
    pub(super) fn new(before: Option<SleepReport>) -> Self {
        Self { report: before, counted: HashMap::new() }
    }

    /// The value of the annotation for which the pod was woken last.
    pub(super) fn woken_for(&self) -> Option<&str> {
        self.report.as_ref()?.wake.as_deref()
    }

    /// Looks at the pod's containers. `wake`: for which value of its annotation the pod has been woken. `quarantine`: why its image is
    /// started cold. None: nothing is known yet.
    pub(super) fn look(
        &mut self,
        containers: &[Arc<Container>],
        wake: Option<String>,
        quarantine: Option<String>,
        now: Timestamp,
    ) -> Option<&SleepReport> {
        let lives: Vec<(&str, Life)> = containers.iter().map(|c| (c.token.as_str(), c.life())).collect();
        let state = state(lives.iter().map(|(_, life)| life.phasing))?;
        self.counted.retain(|token, _| lives.iter().any(|(known, _)| known == token));
        let report = self.report.get_or_insert_with(|| begun(state, now));
        if report.state != state {
            (report.state, report.since) = (state, Time(now));
        }
        (report.wake, report.quarantine) = (wake, quarantine);
        for (token, life) in &lives {
            let counted = self.counted.entry((*token).to_owned()).or_default();
            add(report, counted, &life.wakes);
        }
        self.report.as_ref()
    }
}

fn begun(state: SleepState, now: Timestamp) -> SleepReport {
    SleepReport {
        state,
        since: Time(now),
        wakes: 0,
        failed: 0,
        recent_ms: Vec::new(),
        wake: None,
        quarantine: None,
    }
}

/// A pod is awake if one of its containers is.
fn state(phasings: impl Iterator<Item = Phasing>) -> Option<SleepState> {
    let known = phasings.filter_map(|phasing| match phasing {
        Phasing::Thawed | Phasing::Cold => Some(SleepState::Awake),
        Phasing::Frozen => Some(SleepState::Frozen),
        Phasing::Dormant => Some(SleepState::Dormant),
        Phasing::Created | Phasing::Waiting | Phasing::Thawing | Phasing::Exited => None,
    });
    known.min_by_key(|state| match state {
        SleepState::Awake => 0,
        SleepState::Frozen => 1,
        SleepState::Dormant => 2,
    })
}

/// Adds what has not been counted of a container's wakes.
fn add(report: &mut SleepReport, counted: &mut (u64, u64), wakes: &Wakes) {
    let new = wakes.count.saturating_sub(counted.0);
    report.wakes += new;
    report.failed += wakes.cold.saturating_sub(counted.1);
    *counted = (wakes.count, wakes.cold);
    let first = wakes.recent.len().saturating_sub(usize::try_from(new).unwrap_or(usize::MAX));
    let times = wakes.recent.iter().skip(first).map(|wake| wake.duration.as_secs_f64() * 1e3);
    report.recent_ms.extend(times.map(|ms| ms.round() as u32));
    let surplus = report.recent_ms.len().saturating_sub(RECENT_WAKES);
    report.recent_ms.drain(..surplus);
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::engine::wake::{Wake, WakeOutcome, WakeReason, Waking};

    fn wakes(durations: &[u64]) -> Wakes {
        let mut wakes = Wakes::default();
        for ms in durations {
            let wake = Waking::begin(WakeReason::Command).over(WakeOutcome::Thawed, Vec::new());
            wakes.add(Arc::new(Wake { duration: Duration::from_millis(*ms), ..wake }));
        }
        wakes
    }

    #[test]
    fn a_pod_is_awake_if_one_of_its_containers_is() {
        use Phasing::{Cold, Created, Dormant, Exited, Frozen, Thawed, Thawing};
        let of = |phasings: &[Phasing]| state(phasings.iter().copied());
        assert_eq!(of(&[Created, Exited, Thawing]), None);
        assert_eq!(of(&[Created, Dormant]), Some(SleepState::Dormant));
        assert_eq!(of(&[Dormant, Frozen]), Some(SleepState::Frozen));
        for awake in [Thawed, Cold] {
            assert_eq!(of(&[Dormant, awake, Frozen]), Some(SleepState::Awake));
        }
    }

    #[test]
    fn wakes_are_counted_once_on_top_of_what_an_earlier_agent_counted() {
        let mut report = begun(SleepState::Dormant, Timestamp::UNIX_EPOCH);
        (report.wakes, report.recent_ms) = (5, vec![9, 9]);
        let mut counted = (0, 0);
        add(&mut report, &mut counted, &wakes(&[20, 30]));
        assert_eq!((report.wakes, report.recent_ms.clone()), (7, vec![9, 9, 20, 30]));
        add(&mut report, &mut counted, &wakes(&[20, 30]));
        assert_eq!(report.wakes, 7);
        add(&mut report, &mut counted, &wakes(&(20..60).collect::<Vec<_>>()));
        assert_eq!((report.wakes, report.recent_ms.len()), (45, RECENT_WAKES));
        assert_eq!(report.recent_ms.last(), Some(&59));
    }
}
