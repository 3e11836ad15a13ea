//! When each agent was heard of: no IO, no clock.
//!
//! ```text
//!              first seen, and old ──► Unsure ──────── its term passes ───────► Silent
//!                                        │ renewed                                │
//!   first seen, and new ──► Heard ◄──────┴──────────────── renewed ───────────────┘
//!                             └─────────────── its term passes ───────────────► Silent
//! ```
//!
//! A term passes by our own clock, from the moment in which we have seen the renewal: the nodes' clocks need not agree with
//! ours. Time in which the API server does not answer us does not count, for agents cannot renew anything then either.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use k8s_openapi::jiff::Timestamp;
use tokio::time::Instant;

use super::Word;

/// How long a node may be without a lease: while agents are upgraded from a release that has none, they are there all the same.
const WITHOUT_LEASE: Duration = Duration::from_secs(300);

/// What a lease says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Renewal {
    /// When it was renewed, by the agent's clock.
    pub(super) at: Option<Timestamp>,
    /// For how long.
    pub(super) term: Duration,
}

/// All agents.
#[derive(Debug, Default)]
pub(super) struct Register {
    agents: BTreeMap<String, Agent>,
    turned: BTreeSet<String>,
    /// Nodes with leases that have come since a listing began.
    listed: Option<BTreeSet<String>>,
    /// Since when the API server does not answer.
    deaf: Option<Instant>,
}

#[derive(Debug)]
struct Agent {
    /// None: there is no lease.
    lease: Option<Renewal>,
    since: Instant,
    verdict: Verdict,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Heard,
    Unsure,
    Silent,
}

impl Agent {
    fn term(&self) -> Duration {
        self.lease.map_or(WITHOUT_LEASE, |lease| lease.term)
    }
}

impl Register {
    pub(super) fn look(&self, node: &str) -> Word {
        match self.agents.get(node) {
            Some(Agent { verdict: Verdict::Heard, .. }) => Word::Heard,
            Some(Agent { verdict: Verdict::Silent, lease, .. }) => {
                Word::Silent(lease.and_then(|lease| lease.at))
            }
            Some(Agent { verdict: Verdict::Unsure, .. }) | None => Word::Unsure,
        }
    }

    pub(super) fn silent(&self) -> Vec<String> {
        let silent = self.agents.iter().filter(|(_, agent)| agent.verdict == Verdict::Silent);
        silent.map(|(node, _)| node.clone()).collect()
    }

    /// Nodes of which something else is known than when this was asked last.
    pub(super) fn turned(&mut self) -> BTreeSet<String> {
        std::mem::take(&mut self.turned)
    }

    /// A lease is like this. `clock` is the time of day, which says of a lease that is seen for the first time whether it is old.
    pub(super) fn renewed(&mut self, node: &str, lease: Renewal, clock: Timestamp, now: Instant) {
        if let Some(listed) = &mut self.listed {
            listed.insert(node.to_owned());
        }
        let known = self.agents.get(node);
        let verdict = match known.and_then(|agent| agent.lease) {
            Some(before) if before.at == lease.at => {
                // Something else of it has changed.
                self.agents.entry(node.to_owned()).and_modify(|agent| agent.lease = Some(lease));
                return;
            }
            Some(_) => Verdict::Heard,
            // New, or new to us.
            None => {
                let age = lease.at.map(|at| clock.duration_since(at).unsigned_abs());
                let fresh = age.is_some_and(|age| age <= lease.term);
                if fresh { Verdict::Heard } else { Verdict::Unsure }
            }
        };
        self.set(node, Some(lease), verdict, now);
    }

    /// A lease has gone. Who was silent is not the less so.
    pub(super) fn deleted(&mut self, node: &str, now: Instant) {
        let silent = self.agents.get(node).is_some_and(|agent| agent.verdict == Verdict::Silent);
        let verdict = if silent { Verdict::Silent } else { Verdict::Unsure };
        self.set(node, None, verdict, now);
    }

    /// All leases come anew.
    pub(super) fn listing(&mut self) {
        self.listed = Some(BTreeSet::new());
    }

    /// All have come.
    pub(super) fn listed(&mut self, now: Instant) {
        let listed = self.listed.take().unwrap_or_default();
        let gone =
            self.agents.iter().filter(|(node, agent)| agent.lease.is_some() && !listed.contains(*node));
        let gone: Vec<String> = gone.map(|(node, _)| node.clone()).collect();
        for node in gone {
            self.deleted(&node, now);
        }
    }

    /// The API server does not answer.
    pub(super) fn deaf(&mut self, now: Instant) {
        self.deaf.get_or_insert(now);
    }

    /// Whether it did not answer when it was heard of last.
    pub(super) fn is_deaf(&self) -> bool {
        self.deaf.is_some()
    }

    /// The API server answers.
    pub(super) fn hears(&mut self, now: Instant) {
        let Some(deaf) = self.deaf.take() else { return };
        let missed = now.saturating_duration_since(deaf);
        for agent in self.agents.values_mut() {
            agent.since = (agent.since + missed).min(now);
        }
    }

    /// These are the nodes that should have an agent; of others that have no lease nobody wants to know.
    pub(super) fn expect(&mut self, nodes: BTreeSet<String>, now: Instant) {
        self.agents.retain(|node, agent| agent.lease.is_some() || nodes.contains(node));
        for node in nodes {
            self.agents.entry(node).or_insert(Agent { lease: None, since: now, verdict: Verdict::Unsure });
        }
    }

    /// Those whose term has passed and who are not believed silent yet.
    pub(super) fn due(&self, now: Instant) -> Vec<String> {
        if self.is_deaf() || self.listed.is_some() {
            return Vec::new();
        }
        let due = self.agents.iter().filter(|(_, agent)| {
            agent.verdict != Verdict::Silent && now.saturating_duration_since(agent.since) > agent.term()
        });
        due.map(|(node, _)| node.clone()).collect()
    }

    /// What the API server says, asked once more about one whose term has passed.
    pub(super) fn confirm(&mut self, node: &str, lease: Option<Renewal>, now: Instant) {
        let Some(agent) = self.agents.get(node) else { return };
        if agent.lease.map(|lease| lease.at) == lease.map(|lease| lease.at) {
            self.set(node, lease, Verdict::Silent, agent.since);
        } else {
            let verdict = if lease.is_some() { Verdict::Heard } else { Verdict::Unsure };
            self.set(node, lease, verdict, now);
        }
    }

    fn set(&mut self, node: &str, lease: Option<Renewal>, verdict: Verdict, since: Instant) {
        let before = self.agents.insert(node.to_owned(), Agent { lease, since, verdict });
        if before.is_none_or(|before| before.verdict != verdict) {
            self.turned.insert(node.to_owned());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TERM: Duration = Duration::from_secs(40);

    /// Seconds of the agents' clock.
    fn lease(at: i64) -> Renewal {
        Renewal { at: Timestamp::from_second(at).ok(), term: TERM }
    }

    struct World {
        register: Register,
        start: Instant,
    }

    impl World {
        fn new() -> Self {
            Self { register: Register::default(), start: Instant::now() }
        }

        fn at(&self, seconds: u64) -> Instant {
            self.start + Duration::from_secs(seconds)
        }

        /// The lease of `n`, renewed at `at`, is seen at the same time of day.
        fn renewed(&mut self, at: u64) {
            self.seen(at, at);
        }

        /// It is seen at `now`, and says that it was renewed at `at`.
        fn seen(&mut self, at: u64, now: u64) {
            let clock = Timestamp::from_second(now as i64).unwrap();
            self.register.renewed("n", lease(at as i64), clock, self.at(now));
        }

        /// What there is to say of `n` at a time, when the API server says the same as before.
        fn word(&mut self, seconds: u64) -> Word {
            let now = self.at(seconds);
            for node in self.register.due(now) {
                let lease = self.register.agents[&node].lease;
                self.register.confirm(&node, lease, now);
            }
            self.register.look("n")
        }
    }

    fn silent_since(at: i64) -> Word {
        Word::Silent(Timestamp::from_second(at).ok())
    }

    #[test]
    fn an_agent_is_silent_when_its_term_has_passed_and_back_with_its_next_renewal() {
        let mut world = World::new();
        world.renewed(10);
        assert_eq!(world.register.turned(), ["n".to_owned()].into());
        world.renewed(20);
        assert_eq!((world.word(60), world.register.turned()), (Word::Heard, BTreeSet::new()));
        assert_eq!(world.word(61), silent_since(20));
        assert_eq!(
            (world.register.turned(), world.register.silent()),
            (["n".to_owned()].into(), vec!["n".into()])
        );
        assert_eq!((world.word(99), world.register.turned()), (silent_since(20), BTreeSet::new()));
        world.renewed(100);
        assert_eq!((world.word(101), world.register.turned()), (Word::Heard, ["n".to_owned()].into()));
    }

    #[test]
    fn an_old_lease_that_is_seen_for_the_first_time_says_nothing_yet() {
        let mut world = World::new();
        world.seen(10, 1000);
        assert_eq!((world.word(1040), world.word(1041)), (Word::Unsure, silent_since(10)));
        // Nor does one whose agent's clock is wrong, but it is renewed.
        let mut world = World::new();
        world.seen(9000, 1000);
        assert_eq!(world.word(1001), Word::Unsure);
        world.seen(9010, 1010);
        assert_eq!((world.word(1049), world.word(1051)), (Word::Heard, silent_since(9010)));
    }

    #[test]
    fn a_change_that_is_no_renewal_is_none() {
        let mut world = World::new();
        world.renewed(10);
        world.seen(10, 45);
        assert_eq!(world.word(51), silent_since(10));
    }

    #[test]
    fn a_watch_that_is_late_makes_nobody_silent() {
        let mut world = World::new();
        world.renewed(10);
        let now = world.at(60);
        assert_eq!(world.register.due(now), ["n"]);
        world.register.confirm("n", Some(lease(55)), now);
        assert_eq!((world.word(99), world.word(101)), (Word::Heard, silent_since(55)));
    }

    #[test]
    fn time_without_the_api_server_does_not_count() {
        let mut world = World::new();
        world.renewed(10);
        world.register.deaf(world.at(30));
        world.register.deaf(world.at(90));
        assert_eq!(world.word(100), Word::Heard);
        world.register.listing();
        world.register.hears(world.at(130));
        world.seen(10, 130);
        world.register.listed(world.at(130));
        // 20 s have passed before, 20 are left.
        assert_eq!((world.word(150), world.word(151)), (Word::Heard, silent_since(10)));
    }

    #[test]
    fn a_node_without_a_lease_is_given_time_if_anybody_expects_an_agent_there() {
        let mut world = World::new();
        let nodes = || BTreeSet::from(["n".to_owned()]);
        world.register.expect(nodes(), world.at(0));
        world.register.expect(nodes(), world.at(290));
        assert_eq!((world.word(300), world.word(301)), (Word::Unsure, Word::Silent(None)));
        world.register.expect(BTreeSet::new(), world.at(302));
        assert_eq!(world.word(303), Word::Unsure);
        // One that goes is missed likewise, and who was silent stays so.
        world.renewed(400);
        world.register.listing();
        world.register.listed(world.at(410));
        world.register.expect(nodes(), world.at(411));
        assert_eq!((world.word(710), world.word(711)), (Word::Unsure, Word::Silent(None)));
        world.renewed(800);
        assert_eq!(world.word(841), silent_since(800));
        world.register.deleted("n", world.at(850));
        assert_eq!(world.word(851), Word::Silent(None));
    }
}
