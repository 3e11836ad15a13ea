//! Whether the agents of nodes are there: each renews a Lease of its own, as kubelets do for their nodes.
//!
//! ```text
//!   Lease ──watch──► register ──turned──► who has pods or work on that node is looked at again
//!                        ▲
//!   reconcilers ──look───┘
//! ```
//!
//! What an agent is told to do has deadlines of its own, which do not ask here: this is for what nobody would notice
//! otherwise, such as pods that nobody can wake.

mod avoid;
mod register;

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::{StreamExt, pin_mut};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::jiff::Timestamp;
use kube::Api;
use kube::api::ListParams;
use kube::runtime::{WatchStreamExt, watcher};
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};
use tracing::{debug, warn};
use woodfrog_api::names;

pub(crate) use self::avoid::avoid;
use self::register::{Register, Renewal};

/// How often the register is looked through.
const LOOK: Duration = Duration::from_secs(1);
/// How often we see to it which nodes should have an agent.
const COUNT: Duration = Duration::from_secs(10);
/// How long the API server may take to say once more what a lease is.
const ANSWER: Duration = Duration::from_secs(5);

/// The agents of all nodes, as far as they have been heard of.
#[derive(Clone, Default)]
pub(crate) struct Agents(Arc<Mutex<Register>>);

/// What is known of a node's agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Word {
    /// It renews its lease.
    Heard,
    /// Nobody has watched it for long enough to say.
    Unsure,
    /// It has not renewed its lease in time; the last time, if there is a lease.
    Silent(Option<Timestamp>),
}

/// The agents of some nodes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Heard {
    /// Nodes whose agents are silent, and since when.
    pub(crate) silent: Vec<(String, Option<Timestamp>)>,
    /// Of some it is not known.
    pub(crate) unsure: bool,
}

impl Agents {
    /// What is known of one.
    pub(crate) fn look(&self, node: &str) -> Word {
        self.lock().look(node)
    }

    /// What is known of those of these nodes.
    pub(crate) fn of<'a>(&self, nodes: impl IntoIterator<Item = &'a str>) -> Heard {
        let nodes: BTreeSet<&str> = nodes.into_iter().collect();
        let register = self.lock();
        let mut heard = Heard::default();
        for node in nodes {
            match register.look(node) {
                Word::Heard => {}
                Word::Unsure => heard.unsure = true,
                Word::Silent(since) => heard.silent.push((node.to_owned(), since)),
            }
        }
        heard
    }

    /// The nodes whose agents are silent, in an order of their own.
    pub(crate) fn silent(&self) -> Vec<String> {
        self.lock().silent()
    }

    /// Watches leases for as long as it is polled. `expected`: nodes that should have an agent. `turned` hears of each
    /// node whose agent has become silent, or is back.
    pub(crate) async fn watch(
        self,
        leases: Api<Lease>,
        expected: impl Fn() -> BTreeSet<String>,
        turned: impl Fn(&str),
    ) {
        let agents = watcher::Config::default().labels(names::NODE_LABEL);
        let events = watcher(leases.clone(), agents).default_backoff();
        pin_mut!(events);
        let (mut look, mut count) = (interval(LOOK), interval(COUNT));
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        count.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                event = events.next() => match event {
                    Some(event) => self.take(event),
                    None => return,
                },
                _ = count.tick() => self.lock().expect(expected(), Instant::now()),
                _ = look.tick() => {
                    self.listen(&leases).await;
                    self.judge(&leases).await;
                }
            }
            let changed = self.lock().turned();
            for node in changed {
                match self.look(&node) {
                    Word::Silent(since) => warn!(%node, ?since, "the agent does not renew its lease"),
                    word => debug!(%node, agent = ?word),
                }
                turned(&node);
            }
        }
    }

    fn take(&self, event: watcher::Result<watcher::Event<Lease>>) {
        let now = Instant::now();
        let mut register = self.lock();
        // The beginning of a list is told before it has been asked for.
        if !matches!(event, Ok(watcher::Event::Init) | Err(_)) {
            register.hears(now);
        }
        match event {
            Ok(watcher::Event::Init) => register.listing(),
            Ok(watcher::Event::InitApply(lease) | watcher::Event::Apply(lease)) => {
                if let Some((node, renewal)) = renewal(&lease) {
                    register.renewed(node, renewal, Timestamp::now(), now);
                }
            }
            Ok(watcher::Event::InitDone) => register.listed(now),
            Ok(watcher::Event::Delete(lease)) => {
                if let Some((node, _)) = renewal(&lease) {
                    register.deleted(node, now);
                }
            }
            Err(e) => {
                register.deaf(now);
                warn!("cannot watch the agents' leases: {e}");
            }
        }
    }

    /// After an error: a watch that goes on tells nothing if there is no news.
    async fn listen(&self, leases: &Api<Lease>) {
        let one = ListParams::default().labels(names::NODE_LABEL).limit(1);
        let deaf = self.lock().is_deaf();
        if deaf && let Ok(Ok(_)) = timeout(ANSWER, leases.list_metadata(&one)).await {
            self.lock().hears(Instant::now());
        }
    }

    /// Believes nobody silent whose lease has not been read once more: our watch may be what is late.
    async fn judge(&self, leases: &Api<Lease>) {
        let due = self.lock().due(Instant::now());
        for node in due {
            match timeout(ANSWER, leases.get_opt(&names::agent_lease(&node))).await {
                Ok(Ok(lease)) => {
                    let now = Instant::now();
                    let renewal = lease.as_ref().and_then(renewal).map(|(_, renewal)| renewal);
                    self.lock().confirm(&node, renewal, now);
                }
                Ok(Err(e)) => return warn!(%node, "cannot read the lease of an agent that seems silent: {e}"),
                Err(_) => return warn!(%node, "cannot read the lease of an agent that seems silent in time"),
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Register> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The node of a lease, by its name alone, since that is what an admission policy holds agents to; and what it says.
fn renewal(lease: &Lease) -> Option<(&str, Renewal)> {
    let node = lease.metadata.name.as_deref()?.strip_prefix(names::AGENT_LEASE_PREFIX)?;
    let spec = lease.spec.as_ref()?;
    let term = spec.lease_duration_seconds.and_then(|seconds| u64::try_from(seconds).ok());
    Some((
        node,
        Renewal {
            at: spec.renew_time.as_ref().map(|time| time.0),
            term: Duration::from_secs(term.unwrap_or_default().max(1)),
        },
    ))
}

/// Nodes for people, with the time of the last word of each: "node-1 (since 2026-01-01T00:00:00Z)".
pub(crate) fn named(silent: &[(String, Option<Timestamp>)]) -> String {
    /// More would hide what else there is to say.
    const MOST: usize = 5;
    let each = silent.iter().take(MOST).map(|(node, since)| match since {
        Some(since) => format!("{node} (since {since:.0})"),
        None => format!("{node} (never heard of)"),
    });
    let named = each.collect::<Vec<_>>().join(", ");
    match silent.len().saturating_sub(MOST) {
        0 => named,
        more => format!("{named} and {more} more"),
    }
}
