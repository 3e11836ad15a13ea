//! Conditions as Kubernetes keeps them: the time of a transition is that of the last change of the status.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use k8s_openapi::jiff::Timestamp;

/// What is to be said of a condition.
pub(crate) struct Judgement {
    pub(crate) type_: String,
    pub(crate) is: bool,
    pub(crate) reason: String,
    pub(crate) message: String,
    pub(crate) generation: Option<i64>,
}

/// Says it.
pub(crate) fn set(conditions: &mut Vec<Condition>, judgement: Judgement, now: Timestamp) {
    let status = if judgement.is { "True" } else { "False" };
    let known = conditions.iter_mut().find(|condition| condition.type_ == judgement.type_);
    let since =
        known.as_ref().filter(|known| known.status == status).map(|known| known.last_transition_time.clone());
    let condition = Condition {
        last_transition_time: since.unwrap_or(Time(now)),
        message: judgement.message,
        observed_generation: judgement.generation,
        reason: judgement.reason,
        status: status.to_owned(),
        type_: judgement.type_,
    };
    match known {
        Some(known) => *known = condition,
        None => conditions.push(condition),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_transition_is_a_change_of_the_status_alone() {
        let at = |seconds| Timestamp::from_second(seconds).unwrap();
        let judgement = |is, reason: &str| Judgement {
            type_: "Ready".into(),
            is,
            reason: reason.into(),
            message: String::new(),
            generation: Some(1),
        };
        let mut conditions = Vec::new();
        set(&mut conditions, judgement(false, "A"), at(1));
        set(&mut conditions, judgement(false, "B"), at(2));
        assert_eq!((conditions[0].reason.as_str(), &conditions[0].last_transition_time.0), ("B", &at(1)));
        set(&mut conditions, judgement(true, "C"), at(3));
        assert_eq!((conditions.len(), &conditions[0].last_transition_time.0), (1, &at(3)));
    }
}
