//! A managed container, as the agent keeps it from its creation to its removal.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{SystemTime, UNIX_EPOCH};

use tokio::sync::{broadcast, mpsc, oneshot, watch};
use tracing::info;
use woodfrog_protocol::agent::{LogLine, MemoryReport, Outcome, Phase};
use woodfrog_protocol::paths;

use super::prepared::Prepared;
use super::runtime::ContainerInfo;
use super::standby::{self, Standby};
use super::wake::{Change, Failure, Wake, WakeReason, Wakes, What};
use crate::metrics::{Metrics, StandbyTime};

/// How many log lines are kept for a container.
const LOG_LINES: usize = 200;

/// Where a container is in its life.
///
/// ```text
///   Created ──hello──► Waiting ──lease──► Thawing ──done──► Thawed ─┐
///      │                  │                  │                      ├─► Exited
///      ├──► Dormant ───wake────────────────►┤   ▲                  │
///      │       ▲ asleep                     │   ├─ idle ─► Dormant ┤
///      │                                    │   └─ idle ─► Frozen ─┤
///      └──── cold ────────┴──────────────────┴──────────► Cold ─────┘
///                                          (Freezing is Cold or Thawed with a dump under way)
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phasing {
    /// Its init has not been heard of.
    Created,
    /// Its init waits for a thaw.
    Waiting,
    /// No application until something wakes it.
    Dormant,
    /// Its application was restored and is held by the cgroup freezer until something wakes it.
    Frozen,
    /// A thaw is under way.
    Thawing,
    /// Its application was restored.
    Thawed,
    /// Its application was started from the command.
    Cold,
    /// Its application has ended.
    Exited,
}

impl Phasing {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::Created,
        Self::Waiting,
        Self::Dormant,
        Self::Frozen,
        Self::Thawing,
        Self::Thawed,
        Self::Cold,
        Self::Exited,
    ];

    /// The word for people.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Waiting => "waiting",
            Self::Dormant => "dormant",
            Self::Frozen => "frozen",
            Self::Thawing => "thawing",
            Self::Thawed => "thawed",
            Self::Cold => "cold",
            Self::Exited => "exited",
        }
    }
}

/// What is known of a container's life so far.
#[derive(Clone, Debug)]
pub struct Life {
    /// Where it is.
    pub phasing: Phasing,
    /// PID of its init on the host, 0 before it said hello.
    pub init: i32,
    /// PID of its application inside the container, 0 if none runs.
    pub application: i32,
    /// Why it started cold although it was to be thawed.
    pub reason: String,
    /// See [`woodfrog_protocol::init::Done::generation`].
    pub generation: u64,
    /// The application has said that it is warm.
    pub warm: bool,
    /// A dump is under way.
    pub freezing: bool,
    /// Some of its memory is still to come from its image.
    pub memory_pending: bool,
    /// It shares the memory of its image with others.
    pub shares_memory: bool,
    /// How its memory came, once all is there.
    pub memory: Option<MemoryReport>,
    /// Phases of its thaw.
    pub thaw_phases: Vec<Phase>,
    /// What CRIU did in it.
    pub criu_steps: Vec<Phase>,
    /// When its thaw began and ended, microseconds of CLOCK_MONOTONIC.
    pub thaw_us: (u64, u64),
    /// How it woke, each time.
    pub wakes: Wakes,
    /// Rules look at packets to it.
    pub guarded: bool,
    /// Bytes of memory in its image, if it stands by.
    pub image_bytes: u64,
    /// It is not to fall asleep.
    pub kept_awake: bool,
}

impl Life {
    /// How it came to life, once that is known.
    pub fn outcome(&self) -> Option<Outcome> {
        match self.phasing {
            Phasing::Thawed => Some(Outcome::Thawed),
            Phasing::Dormant | Phasing::Frozen => Some(Outcome::Dormant),
            Phasing::Cold | Phasing::Exited => Some(Outcome::Cold),
            _ => None,
        }
    }
}

/// What others ask the keeper of the init's connection to do.
#[derive(Debug)]
pub enum Order {
    /// Begin a dump; answered when the init holds back signals.
    BeginDump(oneshot::Sender<Result<(), String>>),
    /// The dump is over.
    EndDump,
    /// Kill the application; the init exits with 0.
    Stop,
    /// Wake it, for this reason; an order of no effect if it is awake.
    Wake(WakeReason),
    /// kubelet is about to stop the container.
    Stopping,
    /// End the application, and thaw it from what has been dumped of it; answered when it runs again, or why it does not so.
    Rehearse(Arc<Prepared>, oneshot::Sender<Result<(), String>>),
}

/// A managed container.
#[derive(Debug)]
pub struct Container {
    /// Name of its control directory.
    pub token: String,
    /// Its control directory.
    pub dir: PathBuf,
    /// What the runtime knows of it.
    pub info: ContainerInfo,
    /// Whether its image is a checkpoint image.
    pub checkpoint_image: bool,
    /// How it sleeps; none: it does not.
    pub standby: Option<Standby>,
    /// Its time asleep and awake, if it stands by.
    pub(crate) standby_time: Option<StandbyTime>,
    metrics: Metrics,
    /// Digest of its checkpoint image, once that has been read.
    pub image_digest: OnceLock<String>,
    life: watch::Sender<Life>,
    log: Mutex<VecDeque<LogLine>>,
    orders: mpsc::Sender<Order>,
    changes: broadcast::Sender<Change>,
}

impl Container {
    /// A container whose init has not been heard of, and the receiving end of its orders. What changes is told to `changes`.
    pub fn new(
        containers_dir: &Path,
        token: &str,
        info: ContainerInfo,
        checkpoint_image: bool,
        changes: broadcast::Sender<Change>,
        metrics: &Metrics,
    ) -> (Self, mpsc::Receiver<Order>) {
        let (orders, receiver) = mpsc::channel(4);
        let life = Life {
            phasing: Phasing::Created,
            init: 0,
            application: 0,
            reason: String::new(),
            generation: 0,
            warm: false,
            freezing: false,
            memory_pending: false,
            shares_memory: false,
            memory: None,
            thaw_phases: Vec::new(),
            criu_steps: Vec::new(),
            thaw_us: (0, 0),
            wakes: Wakes::default(),
            guarded: false,
            image_bytes: 0,
            kept_awake: false,
        };
        let dir = containers_dir.join(token);
        let standby = standby::read(&dir);
        let container = Self {
            token: token.into(),
            dir,
            info,
            checkpoint_image,
            standby: standby.clone().unwrap_or_default(),
            metrics: metrics.clone(),
            standby_time: matches!(standby, Ok(Some(_))).then(|| StandbyTime::new(metrics)),
            image_digest: OnceLock::new(),
            life: watch::Sender::new(life),
            log: Mutex::default(),
            orders,
            changes,
        };
        if let Err(e) = standby {
            container.note(format!("it stays awake: {e}"));
        }
        (container, receiver)
    }

    /// Path of a file in its control directory, see [`paths`].
    pub fn control(&self, file: &str) -> PathBuf {
        let known = [
            paths::INIT_SOCKET,
            paths::API_SOCKET,
            paths::RESTORE_JSON,
            paths::HOOK,
            paths::HOOKS_DUE,
            paths::ONE_CPU,
        ];
        debug_assert!(known.contains(&file));
        self.dir.join(file)
    }

    /// What is known of it now.
    pub fn life(&self) -> Life {
        self.life.borrow().clone()
    }

    /// Changes what is known of it.
    pub fn update(&self, change: impl FnOnce(&mut Life)) {
        let (mut from, mut to) = (Phasing::Created, Phasing::Created);
        self.life.send_modify(|life| {
            from = life.phasing;
            change(life);
            to = life.phasing;
        });
        if from != to {
            if let Some(time) = &self.standby_time {
                time.add(from);
            }
            self.tell(What::Phasing { from, to });
        }
    }

    /// It was woken.
    pub(super) fn woke(&self, wake: Wake) {
        self.note(format!("awake {:.1} ms after {}", wake.duration.as_secs_f64() * 1e3, wake.reason));
        self.metrics.woke(&wake);
        let wake = Arc::new(wake);
        self.update(|life| life.wakes.add(wake.clone()));
        self.tell(What::Woke(wake));
    }

    /// A thaw of it has failed.
    pub(super) fn thaw_failed(&self, failure: Failure) {
        self.update(|life| life.wakes.fail(failure.clone()));
        self.tell(What::ThawFailed(failure));
    }

    /// Tells those who listen, if anybody does.
    pub(super) fn tell(&self, what: What) {
        let _ = self.changes.send(Change { token: self.token.clone(), what });
    }

    /// Waits until it is known how the container came to life.
    pub async fn started(&self) -> Life {
        self.when(|life| life.outcome().is_some()).await
    }

    /// Wakes it if it sleeps, and waits until it is awake.
    ///
    /// # Errors
    /// It sleeps and has no connection to its init.
    pub async fn wake(&self, reason: WakeReason) -> Result<Life, String> {
        self.begin_wake(reason)?;
        Ok(self.when(|life| life.outcome().is_some_and(|outcome| outcome != Outcome::Dormant)).await)
    }

    /// The same without waiting.
    ///
    /// # Errors
    /// As [`Container::wake`].
    pub fn begin_wake(&self, reason: WakeReason) -> Result<(), String> {
        use Phasing::{Created, Dormant, Frozen, Waiting};
        match self.life().phasing {
            Created | Waiting | Dormant | Frozen => self.order(Order::Wake(reason)),
            _ => Ok(()),
        }
    }

    /// Whether it sleeps.
    pub fn is_asleep(&self) -> bool {
        matches!(self.life().phasing, Phasing::Dormant | Phasing::Frozen)
    }

    /// From now on it does not fall asleep, or does again.
    pub fn keep_awake(&self, kept: bool) {
        if self.life().kept_awake != kept {
            self.update(|life| life.kept_awake = kept);
        }
    }

    /// Waits until something is true of it.
    pub async fn when(&self, condition: impl FnMut(&Life) -> bool) -> Life {
        let mut receiver = self.life.subscribe();
        // The sender lives as long as `self`, so waiting cannot fail.
        match receiver.wait_for(condition).await {
            Ok(life) => life.clone(),
            Err(_) => self.life(),
        }
    }

    /// Gives an order to the keeper of the init's connection; an error if there is no connection.
    pub fn order(&self, order: Order) -> Result<(), String> {
        self.orders
            .try_send(order)
            .map_err(|_| format!("{} has no connection to its init", self.info.display()))
    }

    /// Notes a sentence for `woodfrog logs` and the agent's own log.
    pub fn note(&self, message: impl Into<String>) {
        let message = message.into();
        info!(container = %self.info.display(), id = %self.info.id, "{message}");
        let unix_ms = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_millis() as u64);
        let mut log = self.log.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if log.len() == LOG_LINES {
            log.pop_front();
        }
        log.push_back(LogLine { unix_ms, message });
    }

    /// What was noted, oldest first.
    pub fn log(&self) -> Vec<LogLine> {
        self.log.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).iter().cloned().collect()
    }
}
