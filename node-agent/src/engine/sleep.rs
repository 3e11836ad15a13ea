//! The life of a container that sleeps.
//!
//! ```text
//!   image read, gate shut ─► Dormant ──packet, order──► thaw (twice at most) ─► packets released ─► Thawed
//!                               ▲                         └─► cold start ─► released when it listens     │
//!                               └── Asleep ◄── Sleep ◄── gate shut ◄── nothing to do for long enough ◄───┘
//! ```
//!
//! Whatever makes it impossible to hold packets has the container thawed at once, and then it stays awake.

use std::io;
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use tokio::task::block_in_place;
use woodfrog_protocol::init::{Exiting, Hello, Reason, Start, State, from_init, to_init};

use super::container::{Container, Order, Phasing};
use super::keeper::Keeper;
use super::link::{Link, LinkError};
use super::preparation::{self, Preparation};
use super::prepared::Prepared;
use super::standby::Standby;
use super::thaw::ThawError;
use super::{images, netns};
use crate::activator::{Gate, Listeners, idle};

/// How often an image is thawed for one wake before the command is started instead.
const TRIES: u32 = 2;
/// How long a cold start may take to listen, before packets to it are let through all the same.
const LISTENS_WITHIN: Duration = Duration::from_secs(120);
/// How long an init may take to end an application.
const ASLEEP_WITHIN: Duration = Duration::from_secs(15);

/// A container that stands by.
struct Sleeper<'a> {
    keeper: &'a Keeper<'a>,
    link: Link,
    prepared: Arc<Prepared>,
    gate: Gate,
    standby: Standby,
}

/// How its sleeping ended.
enum End {
    /// It is awake and does not fall asleep again.
    StaysAwake,
    /// It could not be thawed.
    Cold,
    /// The container is no more.
    Ended,
}

/// How a time awake ended.
enum Awake {
    /// There was nothing to do.
    Idle,
    /// It is over.
    Ended,
}

impl Keeper<'_> {
    /// Lives with a container that stands by, whatever it is doing now.
    pub(super) async fn stand_by(
        &self,
        mut link: Link,
        hello: &Hello,
        standby: Standby,
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
                    self.start_cold(&link, &e).await?;
                }
                return self.attend(&mut link, orders).await;
            }
        };
        let ahead = (self.engine.clone(), self.container.clone(), prepared.clone());
        // If its memory is to be shared, it is in the page store by the time it wakes.
        tokio::spawn(async move { drop(preparation::sharing(&ahead.0, &ahead.1, &ahead.2).await) });
        match self.gate(&link, &prepared, thawed).await {
            Ok(gate) => {
                self.welcome(&link, hello, Start::Dormant).await?;
                let sleeper = Sleeper { keeper: self, link, prepared, gate, standby };
                sleeper.live(thawed, orders).await
            }
            Err(why) => {
                self.container.note(format!("it stays awake: {why}"));
                self.clear_rules(link.pid).await;
                self.welcome(&link, hello, Start::Thaw).await?;
                if !thawed {
                    let preparation = Preparation::of(self.engine, self.container, prepared, link.pid);
                    self.thaw(&mut link, preparation).await?;
                }
                self.attend(&mut link, orders).await
            }
        }
    }

    /// A gate for the container, shut if it sleeps.
    async fn gate(&self, link: &Link, prepared: &Prepared, awake: bool) -> Result<Gate, String> {
        let listeners = Listeners::of(&prepared.images);
        if listeners.is_empty() {
            return Err("its image listens on no port, so that no packet could wake it".into());
        }
        let activator =
            self.engine.activator.as_ref().ok_or("this node cannot hold packets, see the agent's log")?;
        let gate = async {
            let alive = self.engine.tokens()?;
            let mut gate = activator.gate(link.pid, &self.container.token, listeners, &alive).await?;
            if !awake {
                gate.shut(node_addresses()).await?;
            }
            Ok::<_, crate::activator::GateError>(gate)
        };
        gate.await.map_err(|e| format!("packets to it cannot be held: {e}"))
    }
}

impl Sleeper<'_> {
    async fn live(mut self, awake: bool, orders: &mut mpsc::Receiver<Order>) -> Result<(), LinkError> {
        let end = self.sleep_and_wake(awake, orders).await;
        let cold = matches!(end, Ok(End::Cold));
        let Self { keeper, mut link, mut gate, prepared, .. } = self;
        let init = link.pid;
        let remove = async {
            if cold {
                until_it_listens(&mut gate, init, &Listeners::of(&prepared.images)).await?;
            }
            gate.remove().await.map_err(io::Error::other)
        };
        let (removed, ended) = match end {
            Ok(End::StaysAwake | End::Cold) => tokio::join!(remove, keeper.attend(&mut link, orders)),
            // One that is still there connects again, and finds its rules.
            Err(e) if Path::new(&format!("/proc/{init}")).exists() => (Ok(()), Err(e)),
            Ok(End::Ended) => (remove.await, Ok(())),
            Err(e) => (remove.await, Err(e)),
        };
        if let Err(e) = removed {
            keeper.container.note(format!("its rules are left: {e}"));
        }
        ended
    }

    async fn sleep_and_wake(
        &mut self,
        mut awake: bool,
        orders: &mut mpsc::Receiver<Order>,
    ) -> Result<End, LinkError> {
        loop {
            if !awake {
                let Some(reason) = self.sleep(orders).await? else { return Ok(End::Ended) };
                if let Err(e) = self.wake(&reason).await? {
                    self.keeper.start_cold(&self.link, &e).await?;
                    return Ok(End::Cold);
                }
            }
            let Some(idle_timeout) = self.standby.idle_timeout else { return Ok(End::StaysAwake) };
            awake = false;
            if let Awake::Ended = self.be_awake(idle_timeout, orders).await? {
                return Ok(End::Ended);
            }
        }
    }

    /// Waits for something to wake it for: a few words. None: it has ended.
    async fn sleep(&mut self, orders: &mut mpsc::Receiver<Order>) -> Result<Option<String>, LinkError> {
        let container = self.keeper.container;
        container.update(|life| (life.phasing, life.application) = (Phasing::Dormant, 0));
        loop {
            tokio::select! {
                knock = self.gate.knock() => {
                    let knock = knock?;
                    return Ok(Some(format!("a packet from {} to port {}", knock.from, knock.to.port())));
                }
                order = orders.recv() => match order {
                    None => return Ok(None),
                    Some(Order::Wake(reason)) => return Ok(Some(reason)),
                    Some(Order::Stop) => {
                        self.link.send(to_init::Kind::Stop(Exiting { code: 0 }), None).await?;
                    }
                    // Who asks for a dump learns from the drop that there is nothing to dump.
                    Some(Order::BeginDump(_) | Order::EndDump) => {}
                },
                said = self.link.next() => if let from_init::Kind::Exiting(Exiting { code }) = said? {
                    container.note(format!("its init ended with exit code {code} while it slept"));
                    container.update(|life| life.phasing = Phasing::Exited);
                },
            }
        }
    }

    /// Thaws it and lets in who waits. The inner error: it does not thaw.
    async fn wake(&mut self, reason: &str) -> Result<Result<(), ThawError>, LinkError> {
        let began = Instant::now();
        let Self { keeper, link, prepared, gate, .. } = self;
        for left in (0..TRIES).rev() {
            let preparation = Preparation::of(keeper.engine, keeper.container, prepared.clone(), link.pid);
            let thawed = tokio::select! {
                thawed = keeper.try_thaw(link, preparation) => thawed?,
                broken = gate.hold() => match broken? {},
            };
            match thawed {
                Ok(()) => {
                    gate.release()?;
                    let ms = began.elapsed().as_secs_f64() * 1e3;
                    keeper.container.note(format!("awake {ms:.1} ms after {reason}"));
                    keeper.container.update(|life| life.wakes += 1);
                    return Ok(Ok(()));
                }
                Err(e) if left == 0 => return Ok(Err(e)),
                Err(e) => {
                    keeper.container.note(format!("it is thawed once more, for that failed: {e}"));
                    let message = e.to_string();
                    link.send(to_init::Kind::Sleep(Reason { message }), None).await?;
                    asleep(link).await?;
                }
            }
        }
        Ok(Ok(()))
    }

    /// Until there has been nothing to do for `timeout`, and it sleeps.
    async fn be_awake(
        &mut self,
        timeout: Duration,
        orders: &mut mpsc::Receiver<Order>,
    ) -> Result<Awake, LinkError> {
        let Self { keeper, link, gate, standby, prepared } = self;
        let listeners = Listeners::of(&prepared.images);
        let woke = Instant::now();
        loop {
            gate.ajar(node_addresses()).await.map_err(io::Error::other)?;
            let application = keeper.container.life().application;
            let mut watch = idle::Idle::watch(link.pid, application, listeners.clone(), gate.probes)?;
            tokio::select! {
                attended = keeper.attend(link, orders) => return attended.map(|()| Awake::Ended),
                quiet = quiet(keeper.container, gate, &mut watch, timeout, woke + standby.min_awake) => quiet?,
            }
            // A connection of the last moment is seen now, and one after it is held.
            gate.shut(node_addresses()).await.map_err(io::Error::other)?;
            if keeper.container.life().freezing || block_in_place(|| watch.look(gate.probes))?.is_some() {
                continue;
            }
            let message = format!("nothing to do for {timeout:?}");
            keeper.container.note(format!("falls asleep: {message}"));
            link.send(to_init::Kind::Sleep(Reason { message }), None).await?;
            asleep(link).await?;
            return Ok(Awake::Idle);
        }
    }
}

/// None: probes are then taken for traffic, which is the safe side.
fn node_addresses() -> Vec<IpAddr> {
    netns::addresses(1).unwrap_or_default()
}

/// Holds packets until the application listens, after a cold start.
async fn until_it_listens(gate: &mut Gate, init: i32, listeners: &Listeners) -> io::Result<()> {
    let until = Instant::now() + LISTENS_WITHIN;
    while !idle::listens(init, listeners) && Instant::now() < until {
        tokio::select! {
            broken = gate.hold() => match broken? {},
            // The kernel tells nobody that somebody listens.
            () = tokio::time::sleep(Duration::from_millis(20)) => {}
        }
    }
    Ok(())
}

/// Returns when there was nothing to do for `timeout`, not before `earliest`.
async fn quiet(
    container: &Container,
    gate: &mut Gate,
    watch: &mut idle::Idle,
    timeout: Duration,
    earliest: Instant,
) -> io::Result<()> {
    let every = (timeout / 4).clamp(Duration::from_millis(50), Duration::from_secs(5));
    let mut since = Instant::now();
    loop {
        tokio::select! {
            broken = gate.watch() => match broken? {},
            () = tokio::time::sleep(every) => {}
        }
        let busy = block_in_place(|| watch.look(gate.probes))?;
        let life = container.life();
        if busy.is_some() || life.freezing || life.memory_pending {
            tracing::trace!(?busy, "stays awake");
            since = Instant::now();
        } else if since.elapsed() >= timeout && Instant::now() >= earliest {
            return Ok(());
        }
    }
}

async fn asleep(link: &mut Link) -> Result<(), LinkError> {
    let heard = async {
        while !matches!(link.next().await?, from_init::Kind::Asleep(_)) {}
        Ok(())
    };
    tokio::time::timeout(ASLEEP_WITHIN, heard).await.unwrap_or(Err(LinkError::Silent("Sleep")))
}
