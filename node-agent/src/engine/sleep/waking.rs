//! From sleep to being awake, with whoever waits let in at the end.

use std::io;
use std::time::{Duration, Instant};

use woodfrog_protocol::agent::Hook;
use woodfrog_protocol::init::{Reason, to_init};

use super::Sleeper;
use super::falling_asleep::asleep;
use crate::activator::{Gate, Listeners, idle};
use crate::engine::container::Phasing;
use crate::engine::link::LinkError;
use crate::engine::preparation::Preparation;
use crate::engine::thaw::ThawError;
use crate::engine::wake::{WakeOutcome, Waking};
use crate::metrics::Occasion;

/// How often an image is thawed for one wake before the command is started instead.
const TRIES: u32 = 2;
/// How long a cold start may take to listen, before packets to it are let through all the same.
const LISTENS_WITHIN: Duration = Duration::from_secs(120);

impl Sleeper<'_> {
    /// Wakes it and lets in who waits. The inner error: it does not thaw.
    pub(super) async fn wake(&mut self, waking: &Waking) -> Result<Result<(), ThawError>, LinkError> {
        let container = self.keeper.container;
        let (outcome, phases, hooks) = match &self.freezer {
            Some(freezer) => {
                freezer.release()?;
                container.update(|life| life.phasing = Phasing::Thawed);
                (WakeOutcome::Released, Vec::new(), Vec::new())
            }
            None => match self.thaw().await? {
                Ok(hooks) => (WakeOutcome::Thawed, container.life().thaw_phases, hooks),
                Err(e) => return Ok(Err(e)),
            },
        };
        // Before anybody else they may ask the application.
        tokio::select! {
            () = self.keeper.run_hooks(Occasion::Wake, &hooks) => {}
            broken = self.gate.hold_others() => match broken? {},
        }
        self.gate.release()?;
        container.woke(waking.over(outcome, phases));
        Ok(Ok(()))
    }

    /// Thaws it, and says which hooks are to be run now. The inner error: it does not thaw.
    async fn thaw(&mut self) -> Result<Result<Vec<Hook>, ThawError>, LinkError> {
        let Self { keeper, link, prepared, saved, gate, .. } = self;
        let saves = &keeper.engine.dirs.saves;
        let mut left = TRIES;
        loop {
            left -= 1;
            let from = saved.take().unwrap_or_else(|| prepared.clone());
            let was_saved = from.saved;
            let preparation = Preparation::of(keeper.engine, keeper.container, from, link.pid);
            let thawed = tokio::select! {
                thawed = keeper.try_thaw(link, preparation, Occasion::Wake) => thawed?,
                broken = gate.hold() => match broken? {},
            };
            if was_saved {
                saves.forget(keeper.container);
            }
            match thawed {
                Ok(hooks) => return Ok(Ok(hooks)),
                Err(e) if left == 0 || matches!(e, ThawError::Quarantined(_)) => return Ok(Err(e)),
                Err(e) => {
                    let again =
                        if was_saved { "it is thawed from its image" } else { "it is thawed once more" };
                    keeper.container.note(format!("{again}, for that failed: {e}"));
                    let message = e.to_string();
                    link.send(to_init::Kind::Sleep(Reason { message }), None).await?;
                    if let Some(started) = asleep(link).await? {
                        keeper.is_cold(started);
                        return Ok(Err(e));
                    }
                }
            }
        }
    }
}

/// Holds packets until the application listens, after a cold start.
pub(super) async fn until_it_listens(gate: &mut Gate, init: i32, listeners: &Listeners) -> io::Result<()> {
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
