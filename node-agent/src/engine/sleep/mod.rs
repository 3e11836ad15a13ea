//! The life of a container that sleeps.
//!
//! ```text
//!   image read, gate shut ─► Dormant ──packet, order──► thaw (twice at most) ─► packets released ─► Thawed
//!                               ▲                         └─► cold start ─► released when it listens     │
//!                               └── Asleep ◄── Sleep ◄── gate shut ◄── nothing to do for long enough ◄───┘
//!
//!   thawed ─► gate shut ─► Frozen ──packet, order──► freezer releases it ─► packets released ─► Thawed
//!                            ▲                                                                     │
//!                            └── freezer holds it ◄── gate shut ◄── nothing to do for long enough ◄┘
//! ```
//!
//! Whatever makes it impossible to hold packets has the container thawed at once, and then it stays awake.

mod falling_asleep;
mod waking;

use std::io;
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use woodfrog_protocol::init::{Exiting, Hello, Start, State, from_init, to_init};

use super::container::{Order, Phasing};
use super::freezer::Freezer;
use super::keeper::Keeper;
use super::link::{Link, LinkError};
use super::preparation::{self, Preparation};
use super::prepared::Prepared;
use super::standby::{Rest, Standby};
use super::wake::{WakeOutcome, WakeReason, Waking};
use super::{images, netns, postponed};
use crate::activator::{Gate, Leave, Listeners};
use falling_asleep::Awake;
pub(super) use falling_asleep::asleep;
use waking::until_it_listens;

/// How long a container that is to be frozen must have had nothing to do after its first thaw.
const SETTLED: Duration = Duration::from_secs(1);

/// After how long whoever was let in is taken to have been answered: until then nothing is done that can wait.
const ANSWERED: Duration = Duration::from_secs(1);

/// A container that stands by.
struct Sleeper<'a> {
    keeper: &'a Keeper<'a>,
    link: Link,
    prepared: Arc<Prepared>,
    /// What it was when it fell asleep, if that is kept.
    saved: Option<Arc<Prepared>>,
    gate: Gate,
    /// None: it is dormant when it sleeps.
    freezer: Option<Arc<Freezer>>,
    standby: Standby,
}

/// What its keeper finds it to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Found {
    Asleep,
    /// Thawed by its keeper, to be frozen as soon as that has settled.
    New,
    /// Since an earlier agent.
    Awake,
}

/// How its sleeping ended.
enum End {
    /// It is awake and does not fall asleep again.
    StaysAwake,
    /// It could not be thawed, and its command is started instead.
    Cold(Waking),
    /// The container is no more.
    Ended,
}

/// What a container needs to sleep.
struct Bed {
    gate: Gate,
    freezer: Option<Arc<Freezer>>,
    asleep: bool,
}

impl Keeper<'_> {
    /// Lives with a container that stands by, whatever it is doing now.
    pub(super) async fn stand_by(
        &self,
        mut link: Link,
        hello: &Hello,
        standby: Standby,
        preparation: Option<Preparation>,
        orders: &mut mpsc::Receiver<Order>,
    ) -> Result<(), LinkError> {
        self.container.update(|life| life.generation = hello.generation);
        let thawed = hello.state() == State::Thawed;
        if thawed {
            self.container.update(|life| {
                (life.phasing, life.application) = (Phasing::Thawed, hello.application_pid);
            });
        }
        let prepared = match images::read(self.engine, self.container).await {
            Ok(prepared) => prepared,
            Err(e) => {
                self.clear_rules(link.pid).await;
                self.welcome(&link, hello, Start::Thaw).await?;
                if !thawed {
                    self.container.thaw_failed((&e).into());
                    self.start_cold(&link, &e).await?;
                }
                self.end_thaw().await;
                return self.attend(&mut link, orders).await;
            }
        };
        self.container.update(|life| life.image_bytes = prepared.record.memory_bytes());
        let bed = self.bed(&link, &prepared, standby, thawed).await;
        let found = match &bed {
            Ok(Bed { asleep: true, .. }) => Found::Asleep,
            _ if thawed => Found::Awake,
            _ => Found::New,
        };
        if found == Found::Asleep {
            let ahead = (self.engine.clone(), self.container.clone(), prepared.clone());
            // If its memory is to be shared, it is in the page store by the time it wakes.
            tokio::spawn(async move { drop(preparation::sharing(&ahead.0, &ahead.1, &ahead.2).await) });
            self.welcome(&link, hello, Start::Dormant).await?;
        } else {
            self.welcome(&link, hello, Start::Thaw).await?;
        }
        if found == Found::New {
            let now = || Preparation::of(self.engine, self.container, prepared.clone(), link.pid);
            let preparation = preparation.unwrap_or_else(now);
            self.thaw(&mut link, preparation).await?;
        }
        match bed {
            Ok(Bed { gate, freezer, .. }) if found != Found::New || self.is_thawed() => {
                let saved = self.saved(&prepared, found).await;
                let sleeper = Sleeper { keeper: self, link, prepared, saved, gate, freezer, standby };
                sleeper.live(found, orders).await
            }
            bed => {
                if let Err(why) = bed {
                    self.container.note(format!("it stays awake: {why}"));
                    self.end_thaw().await;
                    self.clear_rules(link.pid).await;
                }
                self.attend(&mut link, orders).await
            }
        }
    }

    /// What an earlier agent has saved of it.
    async fn saved(&self, image: &Prepared, found: Found) -> Option<Arc<Prepared>> {
        let saves = &self.engine.dirs.saves;
        if found == Found::Asleep {
            return saves.find(self.engine, self.container, image).await;
        }
        saves.forget(self.container);
        None
    }

    fn is_thawed(&self) -> bool {
        self.container.life().phasing == Phasing::Thawed
    }

    /// What it needs to sleep, with its gate shut if it does.
    async fn bed(
        &self,
        link: &Link,
        prepared: &Prepared,
        standby: Standby,
        thawed: bool,
    ) -> Result<Bed, String> {
        let listeners = Listeners::of(&prepared.images);
        if self.engine.wide_awake.is() {
            return Err("nothing sleeps here any more".into());
        }
        if listeners.is_empty() {
            return Err("its image listens on no port, so that no packet could wake it".into());
        }
        // In doubt it is: nothing there may be held.
        if netns::is_the_hosts(link.pid).unwrap_or(true) {
            return Err("it is in the host's network namespace, where packets are not held".into());
        }
        let activator =
            self.engine.activator.as_ref().ok_or("this node cannot hold packets, see the agent's log")?;
        let freezer = match standby.rest {
            Rest::Dormant(_) => None,
            Rest::Frozen => Some(Freezer::of(link.pid).map_err(|e| format!("it cannot be frozen: {e}"))?),
        };
        let asleep = freezer.as_ref().map_or(!thawed, Freezer::is_held);
        let gate = async {
            let alive = self.engine.tokens()?;
            let leave = self.leaves_hooks();
            let mut gate = activator.gate(link.pid, &self.container.token, listeners, &alive, leave).await?;
            if asleep {
                gate.shut(node_addresses()).await?;
            }
            Ok::<_, crate::activator::GateError>(gate)
        };
        let gate = gate.await.map_err(|e| {
            // Nobody could wake it.
            let _ = freezer.as_ref().map(Freezer::release);
            format!("packets to it cannot be held: {e}")
        })?;
        self.container.update(|life| life.guarded = true);
        Ok(Bed { gate, freezer: freezer.map(Arc::new), asleep })
    }

    /// What becomes of kubelet's hooks while it sleeps.
    fn leaves_hooks(&self) -> Leave {
        let (engine, container) = (Arc::downgrade(self.engine), Arc::downgrade(self.container));
        Arc::new(move |hook| {
            let (engine, container) = (engine.upgrade(), container.upgrade());
            Box::pin(async move {
                if let (Some(engine), Some(container)) = (engine, container) {
                    postponed::leave(&*engine.runtime, &container, hook).await;
                }
            })
        })
    }
}

impl Sleeper<'_> {
    async fn live(mut self, found: Found, orders: &mut mpsc::Receiver<Order>) -> Result<(), LinkError> {
        let end = self.sleep_and_wake(found, orders).await;
        let Self { keeper, mut link, gate, prepared, freezer, .. } = self;
        // Whatever happened, what is held could not even end.
        let released = freezer.map_or(Ok(()), |freezer| freezer.release());
        if let (Err(e), Ok(End::StaysAwake)) = (released, &end) {
            keeper.container.note(format!("the cgroup freezer does not release it: {e}"));
        }
        let init = link.pid;
        let remove = async |gate: Gate| {
            if let Err(e) = gate.remove().await {
                keeper.container.note(format!("its rules are left: {e}"));
            }
            keeper.container.update(|life| life.guarded = false);
        };
        let let_in = async |mut gate: Gate, cold: Option<Waking>| {
            let opened = async {
                if let Some(waking) = cold {
                    until_it_listens(&mut gate, init, &Listeners::of(&prepared.images)).await?;
                    tokio::select! {
                        () = postponed::run(&*keeper.engine.runtime, keeper.container) => {}
                        broken = gate.hold_others() => match broken? {},
                    }
                    gate.release()?;
                    keeper.container.woke(waking.over(WakeOutcome::Cold, Vec::new()));
                }
                gate.open().await.map_err(io::Error::other)
            };
            match opened.await {
                Ok(()) => tokio::time::sleep(ANSWERED).await,
                Err(e) => {
                    keeper.container.note(format!("packets to it are held until its rules are gone: {e}"))
                }
            }
            remove(gate).await;
        };
        match end {
            Ok(End::StaysAwake) => tokio::join!(let_in(gate, None), keeper.attend(&mut link, orders)).1,
            Ok(End::Cold(waking)) => {
                tokio::join!(let_in(gate, Some(waking)), keeper.attend(&mut link, orders)).1
            }
            // One that is still there connects again, and finds its rules.
            Err(e) if Path::new(&format!("/proc/{init}")).exists() => Err(e),
            ended => {
                remove(gate).await;
                ended.map(|_| ())
            }
        }
    }

    async fn sleep_and_wake(
        &mut self,
        found: Found,
        orders: &mut mpsc::Receiver<Order>,
    ) -> Result<End, LinkError> {
        let mut asleep = found == Found::Asleep;
        let mut patience = match found {
            Found::New => Some((SETTLED, Duration::ZERO)),
            Found::Asleep | Found::Awake => self.patience(),
        };
        if found == Found::Awake {
            // The rules are those of a gate that is shut still, if there are any such hooks.
            tokio::select! {
                () = self.keeper.end_thaw() => {}
                broken = self.gate.hold_others() => match broken? {},
            }
            self.gate.release()?;
        }
        loop {
            if asleep {
                let Some(reason) = self.sleep(orders).await? else { return Ok(End::Ended) };
                let waking = Waking::begin(reason);
                if let Err(e) = self.wake(&waking).await? {
                    self.keeper.start_cold(&self.link, &e).await?;
                    return Ok(End::Cold(waking));
                }
                patience = self.patience();
            }
            let Some((timeout, at_least)) = patience else { return Ok(End::StaysAwake) };
            match self.be_awake(timeout, at_least, orders).await? {
                Awake::Idle => {}
                Awake::ForGood => return Ok(End::StaysAwake),
                Awake::Ended => return Ok(End::Ended),
            }
            asleep = true;
        }
    }

    /// After how long without anything to do it falls asleep, and how long it is awake at least. None: it stays awake.
    fn patience(&self) -> Option<(Duration, Duration)> {
        if self.keeper.engine.wide_awake.is() {
            return None;
        }
        Some((self.standby.idle_timeout?, self.standby.min_awake))
    }

    /// Waits for a reason to wake it. None: it has ended.
    async fn sleep(&mut self, orders: &mut mpsc::Receiver<Order>) -> Result<Option<WakeReason>, LinkError> {
        let container = self.keeper.container;
        container.update(|life| match self.freezer {
            None => (life.phasing, life.application) = (Phasing::Dormant, 0),
            Some(_) => life.phasing = Phasing::Frozen,
        });
        loop {
            tokio::select! {
                knock = self.gate.knock() => {
                    let knock = knock?;
                    return Ok(Some(WakeReason::Packet { from: knock.from, port: knock.to.port() }));
                }
                order = orders.recv() => match order {
                    None => return Ok(None),
                    Some(Order::Wake(reason)) => return Ok(Some(reason)),
                    // It is told by a signal, which only one that runs hears.
                    Some(Order::Stopping) if self.freezer.is_some() => return Ok(Some(WakeReason::Stop)),
                    Some(Order::Stopping) => {}
                    Some(Order::Stop) => {
                        self.link.send(to_init::Kind::Stop(Exiting { code: 0 }), None).await?;
                    }
                    // Who asks for a dump learns from the drop that there is nothing to dump.
                    Some(Order::BeginDump(_) | Order::EndDump | Order::Rehearse(..)) => {}
                },
                said = self.link.next() => if let from_init::Kind::Exiting(Exiting { code }) = said? {
                    container.note(format!("its init ended with exit code {code} while it slept"));
                    container.update(|life| life.phasing = Phasing::Exited);
                },
            }
        }
    }
}

/// None: probes are then taken for traffic, which is the safe side.
fn node_addresses() -> Vec<IpAddr> {
    netns::addresses(1).unwrap_or_default()
}
