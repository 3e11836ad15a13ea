//! What a wake was, and what is told of containers to those who listen: metrics, and what the API server hears.

use std::collections::VecDeque;
use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use woodfrog_api::names;
use woodfrog_protocol::agent::{Phase, Wake as Asked, WokenBy};

use super::container::Phasing;
use super::thaw::ThawError;

/// How many wakes of a container are remembered.
const RECENT: usize = 16;
/// How many changes wait for one who listens slowly; who misses some is told so.
pub const CHANGES: usize = 1024;

/// Why a container is woken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WakeReason {
    /// A packet came for it.
    Packet {
        /// Where it came from.
        from: SocketAddr,
        /// The port that it goes to.
        port: u16,
    },
    /// A person's command is to run in it: which.
    Visit(String),
    /// The command `woodfrog wake`.
    Command,
    /// The pod's annotation `woodfrog.dev/wake`.
    Annotation,
    /// The pod's annotation `woodfrog.dev/keep-awake`, which WarmPools set.
    Pool,
    /// A freeze, which needs an application that runs.
    Freeze,
    /// kubelet stops the container, and its application is to hear of it.
    Stop,
}

impl WakeReason {
    /// Why who asks over the agent's socket wants it awake.
    pub fn of(asked: &Asked) -> Self {
        match asked.by() {
            WokenBy::Visit => Self::Visit(asked.reason.clone()),
            WokenBy::Command => Self::Command,
        }
    }

    /// One of a bounded set of words, for metrics.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Packet { .. } => "packet",
            Self::Visit(_) => "visit",
            Self::Command => "command",
            Self::Annotation => "annotation",
            Self::Pool => "pool",
            Self::Freeze => "freeze",
            Self::Stop => "stop",
        }
    }
}

impl fmt::Display for WakeReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Packet { from, port } => write!(f, "a packet from {from} to port {port}"),
            Self::Visit(visit) => f.write_str(visit),
            Self::Command => f.write_str("the command `woodfrog wake`"),
            Self::Annotation => write!(f, "a change of the annotation {}", names::WAKE_ANNOTATION),
            Self::Pool => write!(f, "the annotation {}", names::KEEP_AWAKE_ANNOTATION),
            Self::Freeze => f.write_str("a freeze"),
            Self::Stop => f.write_str("kubelet's word that it stops"),
        }
    }
}

/// What came of a wake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WakeOutcome {
    /// It was thawed from its image.
    Thawed,
    /// It was frozen, and the cgroup freezer has released it.
    Released,
    /// It could not be thawed, and its command was started.
    Cold,
}

impl WakeOutcome {
    /// One of a bounded set of words, for metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Thawed => "thawed",
            Self::Released => "released",
            Self::Cold => "cold",
        }
    }
}

/// A wake that has begun.
#[derive(Clone, Debug)]
pub struct Waking {
    reason: WakeReason,
    began: SystemTime,
    since: Instant,
}

impl Waking {
    /// It begins now.
    pub fn begin(reason: WakeReason) -> Self {
        Self { reason, began: SystemTime::now(), since: Instant::now() }
    }

    /// It is over now.
    pub fn over(&self, outcome: WakeOutcome, phases: Vec<Phase>) -> Wake {
        let Self { reason, began, since } = self;
        Wake { began: *began, duration: since.elapsed(), reason: reason.clone(), outcome, phases }
    }
}

/// A wake that is over.
#[derive(Clone, Debug)]
pub struct Wake {
    /// When it began.
    pub began: SystemTime,
    /// From its reason to the release of who waited, with all tries; of a cold start until the application listens.
    pub duration: Duration,
    /// Why.
    pub reason: WakeReason,
    /// What came of it.
    pub outcome: WakeOutcome,
    /// Phases of the thaw, if it was one.
    pub phases: Vec<Phase>,
}

/// A thaw that did not come about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// See [`ThawError::category`].
    pub category: &'static str,
    /// A sentence.
    pub message: String,
}

impl From<&ThawError> for Failure {
    fn from(error: &ThawError) -> Self {
        Self { category: error.category(), message: error.to_string() }
    }
}

/// The wakes of a container since its agent knows it.
#[derive(Clone, Debug, Default)]
pub struct Wakes {
    /// How many.
    pub count: u64,
    /// How many of them ended with a cold start.
    pub cold: u64,
    /// How many thaws have failed, those that came about at the second try among them.
    pub failed_thaws: u64,
    /// The newest failure.
    pub failure: Option<Failure>,
    /// The newest wakes, oldest first.
    pub recent: VecDeque<Arc<Wake>>,
}

impl Wakes {
    pub(crate) fn add(&mut self, wake: Arc<Wake>) {
        self.count += 1;
        self.cold += u64::from(wake.outcome == WakeOutcome::Cold);
        if self.recent.len() == RECENT {
            self.recent.pop_front();
        }
        self.recent.push_back(wake);
    }

    pub(super) fn fail(&mut self, failure: Failure) {
        self.failed_thaws += 1;
        self.failure = Some(failure);
    }
}

/// Something has changed with a container.
#[derive(Clone, Debug)]
pub struct Change {
    /// The container, see [`super::Engine::by_token`].
    pub token: String,
    /// What.
    pub what: What,
}

/// What has changed with a container.
#[derive(Clone, Debug)]
pub enum What {
    /// Where it is in its life.
    Phasing {
        /// Where it was.
        from: Phasing,
        /// Where it is.
        to: Phasing,
    },
    /// It was woken.
    Woke(Arc<Wake>),
    /// A thaw has failed.
    ThawFailed(Failure),
    /// Whether its image is started cold for a while, see [`super::Engine::quarantined`].
    Quarantine,
    /// It is no more.
    Removed,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_newest_wakes_are_remembered_and_all_are_counted() {
        let mut wakes = Wakes::default();
        for ms in 0..RECENT as u64 + 3 {
            let wake = Waking::begin(WakeReason::Command).over(WakeOutcome::Thawed, Vec::new());
            wakes.add(Arc::new(Wake { duration: Duration::from_millis(ms), ..wake }));
        }
        assert_eq!((wakes.count, wakes.recent.len()), (RECENT as u64 + 3, RECENT));
        assert_eq!(wakes.recent[0].duration, Duration::from_millis(3));
    }

    #[test]
    fn who_asks_says_why() {
        let asked = |by: WokenBy| Asked { reason: "kubectl exec".into(), by: by.into(), ..Asked::default() };
        assert_eq!(WakeReason::of(&asked(WokenBy::Visit)), WakeReason::Visit("kubectl exec".into()));
        assert_eq!(WakeReason::of(&asked(WokenBy::Command)), WakeReason::Command);
        let packet = WakeReason::Packet { from: "10.0.0.1:4000".parse().unwrap(), port: 8080 };
        assert_eq!(packet.to_string(), "a packet from 10.0.0.1:4000 to port 8080");
    }
}
