//! The keeper of one container: accepts its init, thaws it if it waits for that, and passes on orders.
//!
//! ```text
//!   accept ─► is it the container's PID 1? ─► Hello
//!                                              ├ waiting ─► thaw ─┬─► thawed
//!                                              │                  └─► StartCold ─► cold
//!                                              └ cold, thawed (a restart of the agent)
//!          ◄── connection lost ── orders and words of the init, as they come
//! ```

use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::pin::pin;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use tokio::net::{UnixListener, UnixStream};
use tokio::sync::mpsc;
use tracing::{debug, warn};
use woodfrog_protocol::agent::{Hook, MemoryReport};
use woodfrog_protocol::init::{Exiting, Hello, Reason, Start, Started, State, Welcome, from_init, to_init};
use woodfrog_protocol::paths;

use super::container::{Container, Order, Phasing};
use super::freezer::Freezer;
use super::link::{Link, LinkError};
use super::pager::Pager;
use super::preparation::Preparation;
use super::prepared::Prepared;
use super::sleep::asleep;
use super::standby::{Rest, Standby};
use super::thaw::{self, ThawError, Thawed};
use super::{Engine, hooks, one_cpu, postponed, written};
use crate::metrics::Occasion;

/// What waits in a container that is not started by then ends.
const UNUSED_FOR: Duration = Duration::from_secs(60);

/// The socket on which a container's init is awaited.
#[derive(Debug)]
pub struct Sockets {
    init: UnixListener,
}

impl Sockets {
    /// Binds the socket in the control directory, in place of an earlier agent's.
    ///
    /// # Errors
    /// The control directory is missing.
    pub fn bind(container: &Container) -> io::Result<Self> {
        Ok(Self { init: bind_for_all(&container.control(paths::INIT_SOCKET))? })
    }
}

/// A socket that the container's user may connect to; it lies in a directory that only root can change.
fn bind_for_all(path: &Path) -> io::Result<UnixListener> {
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o666))?;
    Ok(listener)
}

/// Keeps a container until it is removed.
pub async fn keep(
    engine: Weak<Engine>,
    container: Weak<Container>,
    sockets: Sockets,
    mut orders: mpsc::Receiver<Order>,
) {
    let mut preparation = None;
    if let (Some(engine), Some(container)) = (engine.upgrade(), container.upgrade())
        && container.checkpoint_image
        && !matches!(container.standby, Some(Standby { rest: Rest::Dormant(_), .. }))
    {
        preparation = Some(Preparation::begin(&engine, &container));
    }
    let mut expiry = pin!(tokio::time::sleep(UNUSED_FOR));
    loop {
        let stream = tokio::select! {
            accepted = sockets.init.accept() => accepted,
            () = &mut expiry, if preparation.is_some() => {
                preparation = None;
                continue;
            }
            order = orders.recv() => match order {
                // Its sender learns from the drop that nobody is there to do it.
                Some(_) => continue,
                None => return,
            },
        };
        let (Some(engine), Some(container)) = (engine.upgrade(), container.upgrade()) else { return };
        match stream {
            Ok((stream, _)) => {
                let keeper = Keeper { engine: &engine, container: &container };
                if let Err(e) = keeper.connection(stream, &mut preparation, &mut orders).await {
                    debug!(container = %container.info.display(), "connection with its init: {e}");
                }
            }
            Err(e) => {
                warn!(container = %container.info.display(), "cannot accept its init: {e}");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

/// Notes what a pager did, and keeps what it has found out about the image with this digest.
async fn follow(engine: Arc<Engine>, container: Weak<Container>, digest: String, pager: Pager) {
    let note = |message: String| {
        if let Some(container) = container.upgrade() {
            container.note(message);
        }
    };
    let mut report = match pager.report().await {
        Ok(report) => report,
        Err(e) => return note(format!("its pager: {e}")),
    };
    let mut wanted = std::mem::take(&mut report.wanted);
    let shares = |container: &Arc<Container>| !wanted.is_empty() && container.life().shares_memory;
    if let Some(container) = container.upgrade().filter(shares) {
        let (life, before) = (container.life(), engine.working_sets.get(&digest));
        let note = || written::note(life.init, life.application, &before.processes, &mut wanted);
        let noted = tokio::task::block_in_place(note);
        if let Err(e) = noted {
            debug!(container = %container.info.display(), "it is not known what it writes to: {e}");
        }
    }
    if !wanted.is_empty()
        && let Err(e) = engine.working_sets.add(&digest, wanted)
    {
        warn!("cannot keep the working set of {digest}: {e}");
    }
    if report.complete_us > 0 {
        engine.metrics.memory_complete(&report);
        note(format!(
            "all memory is there {:.1} ms after the application ran: {:.1} MB brought, {:.1} MB shared, {} faults, {:.1} ms of CPU time",
            report.complete_us.saturating_sub(report.released_us) as f64 / 1e3,
            report.copied as f64 / 1e6,
            report.mapped as f64 / 1e6,
            report.faults,
            report.cpu_us as f64 / 1e3,
        ));
        let memory = MemoryReport {
            brought_bytes: report.copied,
            faults: report.faults,
            nearly_us: report.nearly_us,
            complete_us: report.complete_us,
            cpu_us: report.cpu_us,
            mapped_bytes: report.mapped,
        };
        if let Some(container) = container.upgrade() {
            container.update(|life| life.memory = Some(memory));
        }
    }
}

pub(super) struct Keeper<'a> {
    pub(super) engine: &'a Arc<Engine>,
    pub(super) container: &'a Arc<Container>,
}

impl Keeper<'_> {
    async fn connection(
        &self,
        stream: UnixStream,
        preparation: &mut Option<Preparation>,
        orders: &mut mpsc::Receiver<Order>,
    ) -> Result<(), LinkError> {
        let (mut link, hello) = Link::accept(stream).await?;
        self.verify(&link).await?;
        self.container.update(|life| {
            (life.init, life.warm, life.memory_pending) = (link.pid, hello.warm, hello.memory_pending);
        });
        let preparation = preparation.take();
        if let Some(standby) = self.container.standby
            && self.container.checkpoint_image
            && matches!(hello.state(), State::Waiting | State::Dormant | State::Thawed)
        {
            return self.stand_by(link, &hello, standby, preparation, orders).await;
        }
        self.clear_rules(link.pid).await;
        match hello.state() {
            State::Waiting if self.container.checkpoint_image => {
                self.welcome(&link, &hello, Start::Thaw).await?;
                self.container.update(|life| life.phasing = Phasing::Waiting);
                let preparation =
                    preparation.unwrap_or_else(|| Preparation::begin(self.engine, self.container));
                self.thaw(&mut link, preparation).await?;
            }
            // An init that is leased settles by itself whether the thaw came about, and says so.
            State::Waiting | State::Leased | State::Dormant => {
                self.welcome(&link, &hello, Start::Cold).await?
            }
            State::Cold | State::Thawed => {
                self.welcome(&link, &hello, Start::Cold).await?;
                self.container.update(|life| {
                    life.phasing = if hello.state() == State::Cold { Phasing::Cold } else { Phasing::Thawed };
                    life.application = hello.application_pid;
                    life.generation = hello.generation;
                });
                if hello.state() == State::Thawed {
                    self.end_thaw().await;
                }
            }
        }
        self.attend(&mut link, orders).await
    }

    /// One that does not sleep any more must not be behind the gate that an earlier agent has left.
    pub(super) async fn clear_rules(&self, init: i32) {
        // Nor may the cgroup freezer hold it.
        if let Some(Standby { rest: Rest::Frozen, .. }) = self.container.standby
            && let Err(e) = Freezer::of(init).and_then(|freezer| freezer.release())
        {
            self.container.note(format!("the cgroup freezer may hold it still: {e}"));
        }
        if let (Some(_), Some(activator)) = (self.container.standby, &self.engine.activator)
            && let Err(e) = activator.clear(init, &self.container.token).await
        {
            self.container.note(format!("rules of an earlier agent may be left: {e}"));
        }
    }

    /// The peer is PID 1 of some container; is it this one?
    async fn verify(&self, link: &Link) -> Result<(), LinkError> {
        let id = &self.container.info.id;
        match self.engine.runtime.pid(id).await {
            Ok(pid) if pid == link.pid => Ok(()),
            Ok(pid) => Err(LinkError::Impostor(format!(
                "process {} connected as the init of container {id}, whose process is {pid}",
                link.pid
            ))),
            Err(e) => Err(LinkError::Impostor(e.to_string())),
        }
    }

    pub(super) async fn welcome(&self, link: &Link, hello: &Hello, start: Start) -> Result<(), LinkError> {
        let welcome = to_init::Kind::Welcome(Welcome { start: start.into() });
        if hello.has_api {
            return link.send(welcome, None).await;
        }
        let api = bind_for_all(&self.container.control(paths::API_SOCKET))?;
        link.send(welcome, Some(api.as_fd())).await
    }

    pub(super) async fn thaw(&self, link: &mut Link, preparation: Preparation) -> Result<(), LinkError> {
        match self.try_thaw(link, preparation, Occasion::Start).await? {
            Ok(hooks) => {
                self.run_hooks(Occasion::Start, &hooks).await;
                Ok(())
            }
            Err(e) => self.start_cold(link, &e).await,
        }
    }

    /// Starts the command, for this reason.
    pub(super) async fn start_cold(&self, link: &Link, why: &ThawError) -> Result<(), LinkError> {
        let message = why.to_string();
        self.container.note(format!("cold start: {message}"));
        for detail in why.details() {
            self.container.note(detail);
        }
        self.engine.metrics.started_cold(why.category());
        self.container.update(|life| life.reason = message.clone());
        link.send(to_init::Kind::StartCold(Reason { message }), None).await
    }

    /// Thaws, and says which hooks are to be run now; the inner error if that did not come about, and the init waits for what is to
    /// be done instead.
    pub(super) async fn try_thaw(
        &self,
        link: &mut Link,
        preparation: Preparation,
        occasion: Occasion,
    ) -> Result<Result<Vec<Hook>, ThawError>, LinkError> {
        self.container.update(|life| life.phasing = Phasing::Thawing);
        match thaw::thaw(self.engine, self.container, link, preparation).await {
            Ok(Thawed {
                application,
                generation,
                image_digest,
                after_restore,
                pager,
                shares_memory,
                phases,
                criu_steps,
                began_us,
                done_us,
            }) => {
                let digest = image_digest.clone();
                let done = woodfrog_protocol::init::Done { generation, image_digest };
                link.send(to_init::Kind::Done(done), None).await?;
                let took = Duration::from_micros(done_us - began_us);
                self.engine.metrics.thawed(occasion, took, &phases);
                let times: Vec<_> = phases.iter().map(|p| format!("{} {:.1}", p.name, p.ms)).collect();
                self.container.update(|life| {
                    life.phasing = Phasing::Thawed;
                    life.application = application;
                    life.generation = generation;
                    life.thaw_phases = phases;
                    life.criu_steps = criu_steps;
                    life.thaw_us = (began_us, done_us);
                    life.memory_pending = pager.is_some();
                    life.memory = None;
                    life.shares_memory = shares_memory;
                });
                if let Some(pager) = pager {
                    tokio::spawn(follow(self.engine.clone(), Arc::downgrade(self.container), digest, pager));
                }
                let ms = took.as_secs_f64() * 1e3;
                self.container
                    .note(format!("thawed in {ms:.1} ms ({}), generation {generation}", times.join(", ")));
                Ok(Ok(after_restore.iter().map(hooks::runnable).collect()))
            }
            Err(e) => {
                postponed::none_due(self.container);
                self.engine.metrics.not_thawed(occasion, &e);
                Ok(Err(e))
            }
        }
    }

    /// Ends the application, and thaws it from what has just been dumped of it. The inner error: why its command was started instead.
    async fn rehearse(
        &self,
        link: &mut Link,
        dumped: Arc<Prepared>,
    ) -> Result<Result<(), String>, LinkError> {
        let message = "it is thawed from what was dumped of it, for its image to say what it wants first";
        self.container.note(message);
        link.send(to_init::Kind::Rehearse(Reason { message: message.into() }), None).await?;
        if let Some(started) = asleep(link).await? {
            self.is_cold(started);
            return Ok(Err("its init has started the command".into()));
        }
        let preparation = Preparation::of(self.engine, self.container, dumped, link.pid);
        match self.try_thaw(link, preparation, Occasion::Rehearsal).await? {
            Ok(hooks) => {
                self.run_hooks(Occasion::Rehearsal, &hooks).await;
                Ok(Ok(()))
            }
            Err(e) => {
                self.start_cold(link, &e).await?;
                Ok(Err(e.to_string()))
            }
        }
    }

    /// Runs the hooks of a thaw, and then what kubelet wanted run while the container slept.
    pub(super) async fn run_hooks(&self, occasion: Occasion, hooks: &[Hook]) {
        let began = Instant::now();
        hooks::after_restore(&*self.engine.runtime, self.container, hooks).await;
        postponed::none_due(self.container);
        postponed::run(&*self.engine.runtime, self.container).await;
        self.engine.metrics.hooks_ran(occasion, began.elapsed());
    }

    /// Does what is left of a thaw whose agent ended before: its threads run where they may, and its hooks are run.
    pub(super) async fn end_thaw(&self) {
        one_cpu::release_left(self.container);
        let hooks = postponed::due(self.container);
        if !hooks.is_empty() {
            self.container.note("its hooks are run, for an earlier agent has not come to their end");
            self.run_hooks(Occasion::Start, &hooks).await;
        }
    }

    /// Its init has started the command, because it was told to or by itself.
    pub(super) fn is_cold(&self, started: Started) {
        if self.container.life().reason.is_empty() {
            let cause = if self.container.checkpoint_image { "init" } else { "no-checkpoint" };
            self.engine.metrics.started_cold(cause);
        }
        self.container.update(|life| {
            life.phasing = Phasing::Cold;
            life.application = started.pid;
            life.generation = 0;
            if life.reason.is_empty() {
                life.reason = started.reason;
            }
        });
    }

    pub(super) async fn attend(
        &self,
        link: &mut Link,
        orders: &mut mpsc::Receiver<Order>,
    ) -> Result<(), LinkError> {
        loop {
            tokio::select! {
                said = link.next() => match said? {
                    from_init::Kind::Started(started) => self.is_cold(started),
                    from_init::Kind::Exiting(Exiting { code }) => {
                        self.container.note(format!("its application ended with exit code {code}"));
                        self.container.update(|life| life.phasing = Phasing::Exited);
                    }
                    from_init::Kind::MemoryComplete(_) => {
                        self.container.update(|life| life.memory_pending = false);
                    }
                    from_init::Kind::CheckpointRequested(_) => {
                        self.container.note("its application says that it is warm");
                        self.container.update(|life| life.warm = true);
                    }
                    other => debug!(container = %self.container.info.display(), "its init said {other:?}"),
                },
                order = orders.recv() => match order {
                    None => return Ok(()),
                    Some(Order::BeginDump(reply)) => {
                        let begun = link.begin_dump().await;
                        let _ = reply.send(begun.as_ref().map(|_| ()).map_err(ToString::to_string));
                        begun?;
                    }
                    Some(Order::EndDump) => link.send(to_init::Kind::EndDump(Default::default()), None).await?,
                    // It is awake, and hears of its end from its init.
                    Some(Order::Wake(_) | Order::Stopping) => {}
                    Some(Order::Rehearse(prepared, reply)) => {
                        let rehearsed = self.rehearse(link, prepared).await?;
                        let _ = reply.send(rehearsed);
                    }
                    Some(Order::Stop) => {
                        link.send(to_init::Kind::Stop(Exiting { code: 0 }), None).await?;
                    }
                },
            }
        }
    }
}
