//! Pods that sleep: which are kept awake, and what their agents say of them all: pure.

use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use woodfrog_api::{SleepReport, SleepState, WakeTime, names};

use super::plan::{Member, State};

/// A pod that is to be kept awake from now on, or no longer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Keep {
    pub(super) name: String,
    pub(super) uid: String,
    pub(super) awake: bool,
}

/// What all pods of a pool say together.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Sum {
    pub(super) awake: i32,
    pub(super) asleep: i32,
    pub(super) wakes: i64,
    pub(super) failed: i64,
    pub(super) time: Option<WakeTime>,
    /// How many have an image that is in quarantine on their node, and what one of them says of it.
    pub(super) quarantined: Option<(usize, String)>,
}

/// What its agent says of a pod.
pub(super) fn report(pod: &Pod) -> Option<SleepReport> {
    SleepReport::parse(pod.annotations().get(names::REPORT_ANNOTATION)?)
}

/// Whether it is to be kept awake, as it says now.
pub(super) fn is_kept(pod: &Pod) -> bool {
    pod.annotations().get(names::KEEP_AWAKE_ANNOTATION).is_some_and(|kept| kept == "true")
}

/// What has to change so that `count` of these pods are kept awake. Those that answer are preferred, then those of this revision, then those
/// that are kept already, then those that are awake anyway, then the oldest.
pub(super) fn keep(members: &[&Member], count: usize, revision: Option<&str>) -> Vec<Keep> {
    let mut best: Vec<&Member> = members.to_vec();
    best.sort_by_key(|member| {
        let is_new = revision.is_none_or(|revision| member.revision == revision);
        let good = (member.state == State::Ready, is_new, member.kept, member.is_awake());
        (std::cmp::Reverse(good), member.created, member.name.clone())
    });
    let wanted = best.iter().enumerate().map(|(place, member)| (member, place < count));
    let changed = wanted.filter(|(member, awake)| member.kept != *awake);
    changed
        .map(|(member, awake)| Keep { name: member.name.clone(), uid: member.uid.clone(), awake })
        .collect()
}

/// Sums up what is said of these pods.
pub(super) fn sum<'a>(members: impl Iterator<Item = &'a Member>) -> Sum {
    let mut sum = Sum::default();
    let mut times = Vec::new();
    for report in members.filter_map(|member| member.report.as_ref()) {
        match report.state {
            SleepState::Awake => sum.awake += 1,
            SleepState::Dormant | SleepState::Frozen => sum.asleep += 1,
        }
        sum.wakes = sum.wakes.saturating_add_unsigned(report.wakes);
        sum.failed = sum.failed.saturating_add_unsigned(report.failed);
        times.extend_from_slice(&report.recent_ms);
        if let Some(why) = &report.quarantine {
            let (count, _) = sum.quarantined.take().unwrap_or_default();
            sum.quarantined = Some((count + 1, why.clone()));
        }
    }
    sum.time = wake_time(times);
    sum
}

fn wake_time(mut times: Vec<u32>) -> Option<WakeTime> {
    times.sort_unstable();
    // The nearest rank: the smallest that so many in a hundred do not exceed.
    let percentile = |percent: usize| {
        let rank = (times.len() * percent).div_ceil(100).max(1);
        times.get(rank - 1).map(|ms| i64::from(*ms))
    };
    Some(WakeTime { median_ms: percentile(50)?, p95_ms: percentile(95)? })
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
    use k8s_openapi::jiff::Timestamp;

    use super::*;

    fn report(state: SleepState, recent_ms: &[u32]) -> SleepReport {
        SleepReport {
            state,
            since: Time(Timestamp::UNIX_EPOCH),
            wakes: recent_ms.len() as u64,
            failed: 0,
            recent_ms: recent_ms.to_vec(),
            wake: None,
            quarantine: None,
        }
    }

    /// Pods from a line such as `"new:awake:kept new:asleep old:unready"`, named a, b, c, each a second younger than the one before.
    fn members(line: &str) -> Vec<Member> {
        let pods = line.split_whitespace().zip(('a'..='z').zip(1..));
        pods.map(|(pod, (name, second))| {
            let mut words = pod.split(':');
            let revision = words.next().unwrap().to_owned();
            let (state, sleep) = match words.next().unwrap() {
                "awake" => (State::Ready, SleepState::Awake),
                "asleep" => (State::Ready, SleepState::Dormant),
                "unready" => (State::NotReady, SleepState::Dormant),
                other => panic!("{other}"),
            };
            Member {
                name: name.to_string(),
                uid: format!("uid-{name}"),
                resource_version: None,
                revision,
                created: Timestamp::from_second(second).ok(),
                state,
                report: Some(report(sleep, &[])),
                kept: words.next() == Some("kept"),
            }
        })
        .collect()
    }

    #[test]
    fn as_many_pods_are_kept_awake_as_are_wanted_and_no_change_is_made_without_need() {
        let situations = [
            ("nobody is wanted", "new:awake new:asleep", 0, ""),
            ("one that is awake is preferred", "new:asleep new:awake", 1, "+b"),
            ("else the oldest", "new:asleep new:asleep", 1, "+a"),
            ("who is kept stays", "new:awake new:asleep:kept", 1, ""),
            ("more are wanted", "new:awake:kept new:asleep new:awake", 2, "+c"),
            ("fewer are wanted: the youngest is let go", "new:awake:kept new:awake:kept", 1, "-b"),
            ("more than there are", "new:asleep", 3, "+a"),
            ("one that does not answer is no help", "new:unready:kept new:asleep", 1, "+b -a"),
            ("a new pod takes over", "old:awake:kept new:asleep", 1, "+b -a"),
            ("but not before it answers", "old:awake:kept new:unready", 1, ""),
        ];
        for (what, line, count, expected) in situations {
            let members = members(line);
            let keep = keep(&members.iter().collect::<Vec<_>>(), count, Some("new"));
            let changes =
                keep.iter().map(|keep| format!("{}{}", if keep.awake { "+" } else { "-" }, keep.name));
            assert_eq!(changes.collect::<Vec<_>>().join(" "), expected, "{what}");
        }
    }

    #[test]
    fn times_are_those_of_all_pods_together() {
        let mut pods = members("new:awake new:asleep new:asleep");
        assert_eq!(sum(pods.iter()).time, None);
        for (pod, times) in pods.iter_mut().zip([vec![30, 10], vec![20], (1..=100).map(|_| 40).collect()]) {
            pod.report = Some(report(pod.report.as_ref().unwrap().state, &times));
        }
        pods[2].report.as_mut().unwrap().quarantine = Some("why".into());
        let sum = sum(pods.iter());
        assert_eq!((sum.awake, sum.asleep, sum.wakes), (1, 2, 103));
        assert_eq!(sum.time, Some(WakeTime { median_ms: 40, p95_ms: 40 }));
        assert_eq!(sum.quarantined, Some((1, "why".to_owned())));
        assert_eq!(wake_time((1..=100).collect()), Some(WakeTime { median_ms: 50, p95_ms: 95 }));
        assert_eq!(wake_time(vec![7]), Some(WakeTime { median_ms: 7, p95_ms: 7 }));
    }
}
