//! What init does when: all decisions, no IO.
//!
//! ```text
//!             start = THAW                    start = COLD
//!                  │                               │
//!            ┌─────▼─────┐ Welcome{COLD}, StartCold, no Welcome or no lease in time
//!            │  Waiting  ├─────────────────────────────────────────┐
//!            └─────┬─────┘                                         │
//!                  ├─── Welcome{DORMANT} ─► Dormant ── StartCold ──┤
//!     RequestLease │ LeaseGranted (once) ◄────┘ ▲                  │
//!            ┌─────▼─────┐  abort: connection lost, StartCold,     │
//!            │  Leased   │  deadline; then CRIU's end is awaited   │
//!            └─────┬─────┘  (after Sleep: Dormant)                 │
//!     Commit{pid}  │ Committed    ├── no living root, or StartCold:┤
//!     Done         │              │   kill the rest; if not ───┐   │
//!            ┌─────▼─────┐        │                            │ ┌─▼─────────┐
//!            │  Thawed   │◄───────┘ the root is a living child │ │   Cold    │◄─┐ killed by a signal
//!            └─────┬─────┘                                     │ └─┬───────┬─┘  │ during a dump
//!                  │   the application ends: its code, or 128+n│   │       └────┘
//!                  ▼                                           ▼   ▼
//!                 exit                                       137  exit
//! ```
//!
//! Sleep makes a thawed application Dormant: all of it is killed, and init waits for the next lease without a deadline. Rehearse does the
//! same with one that was started, too.
//!
//! Signals go to the application as if it were PID 1. They are held back while it is being dumped, and from Commit
//! on until it is known to run; before that there is no application, and those that ask a program to end, end init.

use std::ops::ControlFlow::{self, Break, Continue};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use woodfrog_protocol::init::{
    Empty, Hello, Reason, Start, Started, State, from_init::Kind as Say, to_init::Kind as Told,
};
use woodfrog_sys::pid1::reap::{Child, Exit};

/// How long CRIU may take to end once a thaw is given up.
const WORKER_GRACE: Duration = Duration::from_secs(10);
/// How long the agent may take to say why CRIU ended before `Commit`.
const VERDICT_GRACE: Duration = Duration::from_secs(1);
/// A restored application that nobody has called running may turn out to be dying for so long.
const DOUBT: Duration = Duration::from_secs(2);
/// Exit code when two applications could otherwise run at once: as if killed by SIGKILL.
const KILLED: u8 = 137;

const SIGHUP: i32 = 1;
const SIGINT: i32 = 2;
const SIGQUIT: i32 = 3;
const SIGKILL: i32 = 9;
const SIGPIPE: i32 = 13;
const SIGTERM: i32 = 15;
const SIGCHLD: i32 = 17;

/// Goes on, or ends init with an exit code.
pub(crate) type Flow = ControlFlow<u8>;

/// What the machine acts on: the container, or a fake of it in tests.
pub(crate) trait World {
    /// Says something to the agent. Whether it was sent.
    fn say(&mut self, what: Say) -> bool;
    /// Closes the connection to the agent and seeks it anew, for another Hello.
    fn reconnect(&mut self, now: Instant);
    /// Whether the API's listener is there.
    fn has_api(&self) -> bool;
    /// Whether some of the application's memory is still to come.
    fn is_memory_pending(&self) -> bool;
    /// Closes every connection of the API.
    fn close_api_clients(&mut self);
    /// Starts the command; its PID, or init's exit code if that is impossible.
    fn start(&mut self) -> Result<i32, u8>;
    /// Sends a signal to a process.
    fn kill(&mut self, pid: i32, signal: i32);
    /// Kills every other process of the container and reaps. Whether nothing that could run is left.
    fn clear(&mut self) -> bool;
    /// What `pid` is to init.
    fn look(&self, pid: i32) -> Child;
    /// A fatal error, for people.
    fn complain(&mut self, text: &str);
}

#[derive(Debug)]
enum Phase {
    Waiting { hello_until: Instant, thaw_until: Option<Instant> },
    Dormant,
    Leased(Lease),
    Running(Application),
}

#[derive(Debug)]
struct Lease {
    until: Instant,
    /// CRIU; none once it has ended.
    worker: Option<OwnedFd>,
    /// The committed root.
    root: Option<i32>,
    /// How the root ended.
    ended: Option<Exit>,
    /// Why the thaw was given up.
    abort: Option<String>,
    /// What comes after a thaw that was given up: sleep, or the cold start.
    sleep: bool,
}

#[derive(Debug)]
struct Application {
    pid: i32,
    thawed: bool,
    generation: u64,
    image: String,
    /// CRIU, parent of the application until it ends.
    worker: Option<OwnedFd>,
    /// Set where the agent has not said that the application runs.
    doubted_until: Option<Instant>,
    dumping: bool,
    /// It has said that it is warm: an agent that comes later is to know.
    warm: bool,
}

/// The state machine.
pub(crate) struct Machine<W> {
    pub(crate) world: W,
    hello_timeout: Duration,
    thaw_timeout: Duration,
    phase: Phase,
    /// Whether the agent has answered this connection's Hello.
    welcomed: bool,
    /// A cold start that the agent has not heard of.
    untold: Option<Started>,
    held: Vec<i32>,
    /// Generation of the application that sleeps.
    slept: u64,
}

impl<W: World> Machine<W> {
    /// A machine that waits for a thaw.
    pub(crate) fn new(world: W, hello_timeout: Duration, thaw_timeout: Duration, now: Instant) -> Self {
        let phase = Phase::Waiting { hello_until: now + hello_timeout, thaw_until: None };
        // Held signals are coalesced, so that there is room for all and holding one does not allocate.
        let held = Vec::with_capacity(64);
        Self { world, hello_timeout, thaw_timeout, phase, welcomed: false, untold: None, held, slept: 0 }
    }

    /// Starts the command.
    pub(crate) fn cold(&mut self, reason: &str) -> Flow {
        if let Some(signal) = self.held.iter().copied().find(|&signal| asks_to_end(signal)) {
            return Break(128 + signal as u8);
        }
        self.held.clear();
        match self.world.start() {
            Err(code) => return Break(code),
            Ok(pid) => {
                self.phase = Phase::Running(Application::new(pid, false));
                self.untold = Some(Started { pid, reason: reason.to_owned() });
            }
        }
        self.tell_start();
        Continue(())
    }

    fn tell_start(&mut self) {
        if let Some(started) = self.untold.take_if(|_| self.welcomed)
            && !self.world.say(Say::Started(started.clone()))
        {
            self.untold = Some(started);
        }
    }

    /// The agent's socket was reached.
    pub(crate) fn connected(&mut self) {
        let (state, application_pid, generation) = match &self.phase {
            Phase::Waiting { .. } => (State::Waiting, 0, 0),
            Phase::Dormant => (State::Dormant, 0, self.slept),
            Phase::Leased(lease) => (State::Leased, lease.root.unwrap_or(0), 0),
            Phase::Running(a) if a.thawed => (State::Thawed, a.pid, a.generation),
            Phase::Running(a) => (State::Cold, a.pid, 0),
        };
        let hello = Hello {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            state: state.into(),
            application_pid,
            generation,
            has_api: self.world.has_api(),
            warm: matches!(&self.phase, Phase::Running(Application { warm: true, .. })),
            memory_pending: self.world.is_memory_pending(),
        };
        self.world.say(Say::Hello(hello));
    }

    /// The agent's connection is gone.
    pub(crate) fn lost(&mut self, now: Instant) -> Flow {
        self.welcomed = false;
        match &mut self.phase {
            Phase::Waiting { hello_until, thaw_until } => {
                let again = now + self.hello_timeout;
                *hello_until = thaw_until.map_or(again, |until| until.min(again));
                Continue(())
            }
            Phase::Leased(_) => {
                self.abort("the connection to the node agent was lost during the thaw".into(), now)
            }
            // Whatever comes for it is held until there is an agent again.
            Phase::Dormant => Continue(()),
            Phase::Running(_) => {
                self.end_dump();
                Continue(())
            }
        }
    }

    /// The agent said something; `fd` came along.
    pub(crate) fn told(&mut self, what: Told, fd: Option<OwnedFd>, now: Instant) -> Flow {
        match what {
            Told::Welcome(welcome) => {
                self.welcomed = true;
                self.tell_start();
                match (&mut self.phase, welcome.start()) {
                    (Phase::Waiting { .. } | Phase::Dormant, Start::Cold) => {
                        return self.cold("the node agent asked for a cold start");
                    }
                    (Phase::Waiting { thaw_until, .. }, Start::Thaw) => {
                        thaw_until.get_or_insert(now + self.thaw_timeout);
                    }
                    (Phase::Waiting { .. }, Start::Dormant) => self.phase = Phase::Dormant,
                    _ => {}
                }
            }
            Told::RequestLease(_) => self.lease(fd, now),
            Told::Commit(commit) => self.commit(commit.pid),
            Told::Done(done) => return self.done(done.generation, done.image_digest),
            Told::StartCold(reason) => match &mut self.phase {
                Phase::Waiting { .. } | Phase::Dormant => return self.cold(&reason.message),
                Phase::Leased(lease) => {
                    // The agent has heard how CRIU ended: a root that lives all the same is only half restored.
                    lease.root = None;
                    return self.abort(reason.message, now);
                }
                Phase::Running(_) => {}
            },
            Told::BeginDump(_) => {
                if let Phase::Running(application) = &mut self.phase {
                    application.dumping = true;
                    self.world.close_api_clients();
                    self.world.say(Say::DumpBegun(Empty {}));
                }
            }
            Told::EndDump(_) => self.end_dump(),
            Told::Sleep(reason) => match &mut self.phase {
                Phase::Leased(lease) => {
                    (lease.root, lease.sleep) = (None, true);
                    return self.abort(reason.message, now);
                }
                // Also while a dump holds it, which then is what it wakes from.
                Phase::Running(application) if application.thawed => {
                    self.slept = application.generation;
                    return self.sleep();
                }
                // A thaw that failed before it had the lease.
                Phase::Dormant => _ = self.world.say(Say::Asleep(Empty {})),
                Phase::Waiting { .. } | Phase::Running(_) => {}
            },
            Told::Rehearse(_) => {
                if let Phase::Running(application) = &self.phase {
                    self.slept = application.generation;
                    return self.sleep();
                }
            }
            // Its descriptor is what counts.
            Told::Pager(_) => {}
            // The end of PID 1 kills all that is in its namespace, more surely than kill(2) could.
            Told::Stop(stop) => return Break(u8::try_from(stop.code).unwrap_or(KILLED)),
        }
        Continue(())
    }

    fn lease(&mut self, worker: Option<OwnedFd>, now: Instant) {
        let refusal = match (&self.phase, &worker) {
            (Phase::Leased(_), _) => "the lease is out already",
            (Phase::Running(_), _) => "the application runs already",
            (Phase::Waiting { .. } | Phase::Dormant, None) => "no pidfd came with the request",
            (Phase::Waiting { .. } | Phase::Dormant, Some(_)) => {
                let until = now + self.thaw_timeout;
                let (root, ended, abort, sleep) = (None, None, None, false);
                self.phase = Phase::Leased(Lease { until, worker, root, ended, abort, sleep });
                self.world.say(Say::LeaseGranted(Empty {}));
                return;
            }
        };
        self.world.say(Say::LeaseRefused(Reason { message: refusal.into() }));
    }

    fn commit(&mut self, pid: i32) {
        let refusal = match &mut self.phase {
            Phase::Leased(Lease { abort: Some(_), .. }) => "the thaw was given up already",
            Phase::Leased(Lease { root: Some(_), .. }) => "a root is committed already",
            Phase::Leased(Lease { worker: None, .. }) => "CRIU has ended already",
            Phase::Leased(lease) if pid > 1 => {
                lease.root = Some(pid);
                self.world.say(Say::Committed(Empty {}));
                return;
            }
            Phase::Leased(_) => "not a PID of an application",
            Phase::Waiting { .. } | Phase::Dormant | Phase::Running(_) => "there is no lease",
        };
        self.world.say(Say::LeaseRefused(Reason { message: refusal.into() }));
    }

    fn done(&mut self, generation: u64, image: String) -> Flow {
        match &mut self.phase {
            Phase::Leased(Lease { root: Some(_), ended: Some(exit), .. }) => return Break(exit.code() as u8),
            Phase::Leased(lease) => {
                let Some(pid) = lease.root else { return Continue(()) };
                let worker = lease.worker.take();
                let application = Application { worker, generation, image, ..Application::new(pid, true) };
                self.phase = Phase::Running(application);
                self.release();
            }
            Phase::Running(a) if a.thawed => {
                (a.generation, a.image, a.doubted_until) = (generation, image, None);
            }
            Phase::Waiting { .. } | Phase::Dormant | Phase::Running(_) => {}
        }
        Continue(())
    }

    fn abort(&mut self, reason: String, now: Instant) -> Flow {
        if let Phase::Leased(lease) = &mut self.phase
            && lease.abort.is_none()
        {
            lease.until = now + WORKER_GRACE;
            lease.abort = Some(reason);
        }
        self.settle(now)
    }

    /// Once a thaw is given up and CRIU is gone, nothing but what is there decides.
    fn settle(&mut self, now: Instant) -> Flow {
        let Phase::Leased(Lease { worker: None, root, ended, abort: Some(reason), sleep, .. }) =
            &mut self.phase
        else {
            return Continue(());
        };
        if *sleep {
            return self.sleep();
        }
        let reason = std::mem::take(reason);
        if let (Some(pid), None) = (*root, *ended)
            && self.world.look(pid) == Child::Alive
        {
            let doubted_until = Some(now + DOUBT);
            self.phase = Phase::Running(Application { doubted_until, ..Application::new(pid, true) });
            self.release();
            // An agent that was told of a lease, or has given the thaw up, learns by it that there is an application.
            self.welcomed = false;
            self.world.reconnect(now);
            return Continue(());
        }
        self.cold_again(&reason)
    }

    fn cold_again(&mut self, reason: &str) -> Flow {
        self.clear(reason)?;
        self.cold(reason)
    }

    /// Ends what there is of an application, and waits for the next thaw.
    fn sleep(&mut self) -> Flow {
        self.world.close_api_clients();
        self.clear("told to sleep")?;
        if let Some(signal) = self.held.iter().copied().find(|&signal| asks_to_end(signal)) {
            return Break(128 + signal as u8);
        }
        self.held.clear();
        self.phase = Phase::Dormant;
        self.world.say(Say::Asleep(Empty {}));
        Continue(())
    }

    fn clear(&mut self, reason: &str) -> Flow {
        if self.world.clear() {
            return Continue(());
        }
        self.world.complain(&format!("{reason}; what is left of it cannot be killed, so the container ends"));
        Break(KILLED)
    }

    /// The descriptor of CRIU, to poll for its end.
    pub(crate) fn worker(&self) -> Option<BorrowedFd<'_>> {
        match &self.phase {
            Phase::Leased(Lease { worker, .. }) | Phase::Running(Application { worker, .. }) => {
                worker.as_ref()
            }
            Phase::Waiting { .. } | Phase::Dormant => None,
        }
        .map(AsFd::as_fd)
    }

    /// CRIU has ended.
    pub(crate) fn worker_ended(&mut self, now: Instant) -> Flow {
        match &mut self.phase {
            Phase::Waiting { .. } | Phase::Dormant => Continue(()),
            Phase::Leased(lease) => {
                lease.worker = None;
                if lease.root.is_none() && lease.abort.is_none() {
                    lease.until = lease.until.min(now + VERDICT_GRACE);
                }
                self.settle(now)
            }
            Phase::Running(application) => {
                application.worker = None;
                let pid = application.pid;
                if self.world.look(pid) == Child::NotOurs {
                    self.world
                        .complain(&format!("process {pid} ended under CRIU: its exit status is not known"));
                    return Break(KILLED);
                }
                Continue(())
            }
        }
    }

    /// A child was reaped.
    pub(crate) fn child_ended(&mut self, pid: i32, exit: Exit, now: Instant) -> Flow {
        match &mut self.phase {
            Phase::Leased(lease) if lease.root == Some(pid) => lease.ended = Some(exit),
            Phase::Running(a) if a.pid == pid => {
                if let (Exit::Signal(signal), true) = (exit, a.dumping) {
                    return self.cold_again(&format!("killed by signal {signal} during a dump"));
                }
                if exit == Exit::Signal(SIGKILL) && a.doubted_until.is_some_and(|until| now < until) {
                    return self.cold_again("killed before the thaw was done");
                }
                return Break(exit.code() as u8);
            }
            _ => {}
        }
        Continue(())
    }

    /// All memory is there.
    pub(crate) fn memory_complete(&mut self) {
        self.world.say(Say::MemoryComplete(Empty {}));
    }

    /// Pages are missing that nobody will bring: whoever needs them must not go on.
    pub(crate) fn memory_lost(&mut self, now: Instant) -> Flow {
        const LOST: &str = "the pager ended before all memory was there";
        match &mut self.phase {
            // The agent has to say what comes then.
            Phase::Leased(lease) if lease.root.is_none() => {
                lease.until = lease.until.min(now + VERDICT_GRACE);
                Continue(())
            }
            Phase::Running(application) if application.thawed => {
                self.world.complain(&format!("{LOST}, so the container ends"));
                Break(KILLED)
            }
            // Some of it may run already.
            Phase::Leased(_) => self.cold_again(LOST),
            Phase::Waiting { .. } | Phase::Dormant | Phase::Running(_) => Continue(()),
        }
    }

    /// A signal was sent to init; `own` if by init itself.
    pub(crate) fn signal(&mut self, signal: i32, own: bool) -> Flow {
        if signal == SIGCHLD || (own && signal == SIGPIPE) {
            return Continue(());
        }
        match &self.phase {
            Phase::Leased(Lease { root: Some(_), .. })
            | Phase::Running(Application { dumping: true, .. }) => {
                if !self.held.contains(&signal) && self.held.len() < self.held.capacity() {
                    self.held.push(signal);
                }
                Continue(())
            }
            Phase::Waiting { .. } | Phase::Dormant | Phase::Leased(_) if asks_to_end(signal) => {
                Break(128 + signal as u8)
            }
            Phase::Waiting { .. } | Phase::Dormant | Phase::Leased(_) => Continue(()),
            Phase::Running(application) => {
                self.world.kill(application.pid, signal);
                Continue(())
            }
        }
    }

    fn end_dump(&mut self) {
        if let Phase::Running(application) = &mut self.phase {
            application.dumping = false;
            self.release();
        }
    }

    /// Delivers what was held back, in order.
    fn release(&mut self) {
        let Phase::Running(application) = &self.phase else { return };
        for signal in self.held.drain(..) {
            self.world.kill(application.pid, signal);
        }
    }

    /// When [`Self::time`] wants to be called.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        match &self.phase {
            Phase::Waiting { thaw_until: Some(until), .. } if self.welcomed => Some(*until),
            Phase::Waiting { hello_until, .. } => Some(*hello_until),
            Phase::Leased(lease) => Some(lease.until),
            Phase::Dormant | Phase::Running(_) => None,
        }
    }

    /// Time has passed.
    pub(crate) fn time(&mut self, now: Instant) -> Flow {
        if self.deadline().is_none_or(|deadline| now < deadline) {
            return Continue(());
        }
        match &self.phase {
            Phase::Waiting { .. } if self.welcomed => {
                self.cold(&format!("no thaw began within {} ms", self.thaw_timeout.as_millis()))
            }
            Phase::Waiting { .. } => {
                self.cold(&format!("no node agent within {} ms", self.hello_timeout.as_millis()))
            }
            Phase::Leased(Lease { abort: Some(reason), .. }) => {
                self.world.complain(&format!("{reason}; CRIU does not end, so the container does"));
                Break(KILLED)
            }
            Phase::Leased(Lease { worker: None, root: None, .. }) => {
                self.abort("CRIU ended before the thaw was done".into(), now)
            }
            Phase::Leased(_) => {
                self.abort(format!("the thaw took more than {} ms", self.thaw_timeout.as_millis()), now)
            }
            Phase::Dormant | Phase::Running(_) => Continue(()),
        }
    }

    /// Whether the API is to answer nobody now: a dump must not find a connection open, and a root that has just been
    /// let go must not be told the generation of before.
    pub(crate) fn api_rests(&self) -> bool {
        match &self.phase {
            Phase::Waiting { .. } | Phase::Dormant => false,
            Phase::Leased(lease) => lease.root.is_some(),
            Phase::Running(application) => application.dumping,
        }
    }

    /// Whether a checkpoint can be asked for: there is an application, and an agent to be told.
    pub(crate) fn can_checkpoint(&self) -> bool {
        self.welcomed && matches!(self.phase, Phase::Running(_))
    }

    /// The application says that it is warm.
    pub(crate) fn is_warm(&mut self) {
        if let Phase::Running(application) = &mut self.phase {
            application.warm = true;
            self.world.say(Say::CheckpointRequested(Empty {}));
        }
    }

    /// Generation and image of a thawed application; 0 and nothing otherwise.
    pub(crate) fn generation(&self) -> (u64, &str) {
        match &self.phase {
            Phase::Running(application) => (application.generation, &application.image),
            Phase::Waiting { .. } | Phase::Dormant | Phase::Leased(_) => (0, ""),
        }
    }
}

impl Application {
    fn new(pid: i32, thawed: bool) -> Self {
        let image = String::new();
        let (worker, doubted_until) = (None, None);
        Self { pid, thawed, generation: 0, image, worker, doubted_until, dumping: false, warm: false }
    }
}

/// Signals that end a program that has not asked for them, and are meant to.
fn asks_to_end(signal: i32) -> bool {
    [SIGHUP, SIGINT, SIGQUIT, SIGTERM].contains(&signal)
}

#[cfg(test)]
mod tests;
