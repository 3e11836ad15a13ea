//! Images whose thaws fail again and again on this node: for a while they are started cold at once.
//!
//! ```text
//!   3 failures in a row ─► 5 min ─► one try ─► fails: 10 min, 20 min … 1 h
//!                                      └─► a thaw that comes about ends it, and forgets the failures
//! ```
//!
//! Whoever waits for an application is better off with a cold start than with one that follows two thaws in vain.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::thaw::ThawError;

/// So many failures in a row.
const FAILURES: u32 = 3;
/// The first and the longest time.
const TERM: (Duration, Duration) = (Duration::from_secs(300), Duration::from_secs(3600));
/// How long an image is remembered whose time is over and that nobody thaws.
const MEMORY: Duration = Duration::from_secs(24 * 3600);

/// The images of a node that fail, by digest.
#[derive(Debug, Default)]
pub(super) struct Quarantine(Mutex<HashMap<String, Failing>>);

#[derive(Debug)]
struct Failing {
    /// In a row.
    failures: u32,
    /// The newest failure.
    message: String,
    /// How long the next time is.
    term: Duration,
    until: Instant,
}

/// An image that is not thawed now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Quarantined {
    /// Why, in a sentence that does not change while it lasts.
    pub why: String,
    /// How long it lasts from now on.
    pub left: Duration,
}

impl Quarantine {
    /// Whether no thaw has failed lately.
    pub(super) fn is_empty(&self) -> bool {
        self.lock().is_empty()
    }

    /// Whether an image is not to be thawed now.
    pub(super) fn look(&self, digest: &str, now: Instant) -> Option<Quarantined> {
        let images = self.lock();
        let Failing { failures, message, until, .. } = images.get(digest)?;
        let left = until.checked_duration_since(now).filter(|left| !left.is_zero())?;
        let why = format!(
            "its image is started cold on this node for a while, for {failures} thaws of it have failed in a row: {message}"
        );
        Some(Quarantined { why, left })
    }

    /// How many images are not to be thawed now.
    pub(super) fn count(&self, now: Instant) -> usize {
        self.lock().values().filter(|failing| failing.until > now).count()
    }

    /// A thaw has failed. Whether the image is not to be thawed from now on.
    pub(super) fn failed(&self, digest: &str, error: &ThawError, now: Instant) -> bool {
        if !is_of_the_image(error) {
            return false;
        }
        let mut images = self.lock();
        images.retain(|_, failing| now.saturating_duration_since(failing.until) < MEMORY);
        let failing = images.entry(digest.to_owned()).or_insert_with(|| Failing {
            failures: 0,
            message: String::new(),
            term: TERM.0,
            until: now,
        });
        failing.failures += 1;
        failing.message = error.to_string();
        if failing.failures < FAILURES {
            return false;
        }
        failing.until = now + failing.term;
        failing.term = (failing.term * 2).min(TERM.1);
        true
    }

    /// A thaw has come about. Whether the image had failed before.
    pub(super) fn succeeded(&self, digest: &str) -> bool {
        self.lock().remove(digest).is_some()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Failing>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether the same may happen to other containers of the image. It may not if the container's init, the runtime or the agent itself is to blame.
fn is_of_the_image(error: &ThawError) -> bool {
    !matches!(
        error,
        ThawError::Lease(_)
            | ThawError::Link(_)
            | ThawError::Runtime(_)
            | ThawError::Panic(_)
            | ThawError::Quarantined(_)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    fn error() -> ThawError {
        ThawError::Seccomp { there: 1, here: 2 }
    }

    #[test]
    fn three_failures_in_a_row_keep_an_image_from_being_thawed_for_a_while() {
        let (quarantine, start) = (Quarantine::default(), Instant::now());
        assert!(!quarantine.failed("a", &error(), start) && !quarantine.failed("a", &error(), start));
        assert_eq!(quarantine.look("a", start), None);
        assert!(quarantine.failed("a", &error(), start));
        let quarantined = quarantine.look("a", start).unwrap();
        assert!(quarantined.left == 5 * MINUTE && quarantined.why.contains("3 thaws"), "{quarantined:?}");
        assert_eq!(quarantine.look("b", start), None);
        assert_eq!(quarantine.look("a", start + 5 * MINUTE), None);
    }

    #[test]
    fn each_further_failure_makes_it_longer_up_to_an_hour_and_a_success_ends_it() {
        let (quarantine, mut now) = (Quarantine::default(), Instant::now());
        assert!((0..2).all(|_| !quarantine.failed("a", &error(), now)));
        for minutes in [5, 10, 20, 40, 60, 60] {
            assert!(quarantine.failed("a", &error(), now));
            assert_eq!(quarantine.look("a", now).unwrap().left, minutes * MINUTE);
            now += minutes * MINUTE;
        }
        assert!(quarantine.succeeded("a") && quarantine.is_empty() && !quarantine.succeeded("a"));
        assert!(!quarantine.failed("a", &error(), now), "it begins anew");
    }

    #[test]
    fn what_is_not_the_image_s_fault_does_not_count() {
        let (quarantine, now) = (Quarantine::default(), Instant::now());
        for _ in 0..5 {
            assert!(!quarantine.failed("a", &ThawError::Lease("why".into()), now));
        }
        assert!(quarantine.is_empty());
    }
}
