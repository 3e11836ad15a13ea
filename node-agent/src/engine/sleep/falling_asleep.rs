//! From being awake to sleep: as soon as there has been nothing to do for long enough.

use std::io;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use tokio::task::{block_in_place, spawn_blocking};
use tokio_util::sync::CancellationToken;
use tracing::debug;
use woodfrog_protocol::init::{Reason, Started, from_init, to_init};

use super::{Sleeper, node_addresses};
use crate::activator::{Gate, Knock, Listeners, idle};
use crate::engine::container::{Container, Order};
use crate::engine::error::FreezeError;
use crate::engine::freeze::Busy;
use crate::engine::keeper::Keeper;
use crate::engine::link::{Link, LinkError};
use crate::engine::saves::Saved;
use crate::engine::standby::{OnIdle, Rest};

/// How long an init may take to end an application.
const ASLEEP_WITHIN: Duration = Duration::from_secs(15);

/// Why it does not fall asleep.
enum Stays {
    /// Somebody wants it.
    Wanted,
    /// It could not.
    Failed(String),
}

/// How a time awake ended.
pub(super) enum Awake {
    /// There was nothing to do.
    Idle,
    /// It may not sleep any more.
    ForGood,
    /// It is over.
    Ended,
}

impl Sleeper<'_> {
    /// Until there has been nothing to do for `timeout`, not before it has been awake for `at_least`, and it sleeps.
    pub(super) async fn be_awake(
        &mut self,
        mut timeout: Duration,
        at_least: Duration,
        orders: &mut mpsc::Receiver<Order>,
    ) -> Result<Awake, LinkError> {
        let earliest = Instant::now() + at_least;
        let mut wide_awake = self.keeper.engine.wide_awake.subscribe();
        loop {
            let Self { keeper, link, gate, prepared, .. } = self;
            gate.ajar(node_addresses()).await.map_err(io::Error::other)?;
            let (application, listeners) =
                (keeper.container.life().application, Listeners::of(&prepared.images));
            let watch = idle::Idle::watch(link.pid, application, listeners, gate.probes)?;
            let mut watch = tokio::select! {
                attended = keeper.attend(link, orders) => return attended.map(|()| Awake::Ended),
                quiet = quiet(keeper.container, gate, watch, timeout, earliest) => quiet?,
                Ok(_) = wide_awake.wait_for(|wide_awake| *wide_awake) => return Ok(Awake::ForGood),
            };
            // A connection of the last moment is seen now, and one after it is held.
            gate.shut(node_addresses()).await.map_err(io::Error::other)?;
            let life = keeper.container.life();
            let wanted = || watch.is_wanted(gate.probes);
            if life.freezing || life.kept_awake || block_in_place(wanted)? || self.gate.is_awaited().await? {
                continue;
            }
            match self.fall_asleep(&format!("nothing to do for {timeout:?}")).await? {
                Ok(()) => return Ok(Awake::Idle),
                Err(Stays::Wanted) => {}
                Err(Stays::Failed(why)) => {
                    self.keeper.container.note(format!("stays awake: {why}"));
                    timeout = timeout.saturating_mul(2);
                }
            }
        }
    }

    /// Puts it to sleep. The inner error: why it is still awake.
    async fn fall_asleep(&mut self, reason: &str) -> Result<Result<(), Stays>, LinkError> {
        self.keeper.container.note(format!("falls asleep: {reason}"));
        match self.standby.rest {
            Rest::Frozen => Ok(self.hold().await?.map_err(Stays::Failed)),
            Rest::Dormant(OnIdle::Save) => self.save(reason).await,
            Rest::Dormant(OnIdle::Discard) => self.end(reason).await.map(Ok),
        }
    }

    /// Has its init end the application and wait for the next thaw.
    async fn end(&mut self, reason: &str) -> Result<(), LinkError> {
        self.link.send(to_init::Kind::Sleep(Reason { message: reason.into() }), None).await?;
        asleep(&mut self.link).await.map(drop)
    }

    /// Dumps the application and ends it, unless somebody comes before its end.
    async fn save(&mut self, reason: &str) -> Result<Result<(), Stays>, LinkError> {
        let Keeper { engine, container } = self.keeper;
        let _busy = match Busy::begin(container) {
            Ok(busy) => busy,
            Err(e) => return Ok(Err(Stays::Failed(e.to_string()))),
        };
        self.link.begin_dump().await?;
        let wanted = CancellationToken::new();
        let saved = {
            let saving = engine.dirs.saves.save(engine, container, &self.prepared, &wanted);
            tokio::pin!(saving);
            loop {
                tokio::select! {
                    saved = &mut saving => break saved,
                    knock = self.gate.knock() => {
                        let Knock { from, to } = knock?;
                        if !wanted.is_cancelled() {
                            container.note(format!(
                                "stays awake: a packet from {from} to port {} came while its state was being saved",
                                to.port()
                            ));
                            wanted.cancel();
                        }
                    }
                }
            }
        };
        engine.metrics.saved(&saved);
        match saved {
            Ok(Saved { prepared, dump }) => {
                container.note(format!(
                    "{:.1} MB of memory are saved",
                    prepared.record.memory_bytes() as f64 / 1e6
                ));
                self.saved = Some(prepared);
                self.end(reason).await?;
                // Whatever becomes of it: what it held is no more.
                let _ = dump.ended().await;
                Ok(Ok(()))
            }
            Err(e) => {
                self.link.send(to_init::Kind::EndDump(Default::default()), None).await?;
                Ok(Err(match e {
                    FreezeError::GaveWay { .. } => Stays::Wanted,
                    e => Stays::Failed(format!("it cannot be saved: {e}")),
                }))
            }
        }
    }

    /// Holds the application with the cgroup freezer.
    async fn hold(&mut self) -> Result<Result<(), String>, LinkError> {
        let Some(freezer) = self.freezer.clone() else { return Ok(Err("it has no cgroup freezer".into())) };
        let held =
            spawn_blocking(move || freezer.hold().map(|()| freezer)).await.map_err(io::Error::other)?;
        let freezer = match held {
            Ok(freezer) => freezer,
            Err(e) => return Ok(Err(format!("it cannot be frozen: {e}"))),
        };
        let container = self.keeper.container.clone();
        // It sleeps already; what the kernel can take back is a gain.
        drop(spawn_blocking(move || match freezer.reclaim() {
            Ok(bytes) => container.note(format!("{:.1} MB of its memory are given back", bytes as f64 / 1e6)),
            Err(e) => debug!(container = %container.info.display(), "its memory is not given back: {e}"),
        }));
        Ok(Ok(()))
    }
}

/// Returns when there was nothing to do for `timeout`, not before `earliest`.
async fn quiet(
    container: &Container,
    gate: &mut Gate,
    mut watch: idle::Idle,
    timeout: Duration,
    earliest: Instant,
) -> io::Result<idle::Idle> {
    let every = (timeout / 4).clamp(Duration::from_millis(50), Duration::from_secs(5));
    let mut since = Instant::now();
    loop {
        tokio::select! {
            broken = gate.watch() => match broken? {},
            () = tokio::time::sleep(every) => {}
        }
        let probes = gate.probes;
        let look = move || watch.look(probes).map(|busy| (watch, busy));
        let (back, busy) = gate.watch_while(look).await??;
        watch = back;
        let life = container.life();
        if busy.is_some() || life.freezing || life.kept_awake || life.memory_pending {
            tracing::trace!(?busy, "stays awake");
            since = Instant::now();
        } else if since.elapsed() >= timeout && Instant::now() >= earliest {
            return Ok(watch);
        }
    }
}

/// Waits until an init that was told to sleep does. Some: it has started the command meanwhile.
pub(in crate::engine) async fn asleep(link: &mut Link) -> Result<Option<Started>, LinkError> {
    let heard = async {
        loop {
            match link.next().await? {
                from_init::Kind::Asleep(_) => return Ok(None),
                from_init::Kind::Started(started) => return Ok(Some(started)),
                _ => {}
            }
        }
    };
    tokio::time::timeout(ASLEEP_WITHIN, heard).await.unwrap_or(Err(LinkError::Silent("Sleep")))
}
