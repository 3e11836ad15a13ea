//! The pager's loop.
//!
//! ```text
//!   CRIU ──pid + userfaultfd, …──► Memory (one a process) ──"RSTF": the threads run now──► mapped
//!                                    │
//!        ┌── poll ◄──────────────────┤  1. events in   2. faults answered   3. a piece filled in
//!        └──────────────────────────►│
//!                                    └─ nothing is pending ──► report, and COMPLETE to init, end
//!                                                                    or, where memory is shared, MAPPED, and so on
//! ```
//!
//! What CRIU sends is in `criu/uffd.c` (`send_uffd`, `lazy_pages_finish_restore`).

use std::collections::VecDeque;
use std::io::Write as _;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;
use std::time::{Duration, Instant};

use prost::Message as _;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{SendFlags, SocketFlags};
use rustix::time::ClockId;
use woodfrog_protocol::pager::{COMPLETE, HOLD, MAPPED, Plan, READY, RESTORED, Report, Wanted, release};
use woodfrog_sys::mapping::Mapping;
use woodfrog_sys::scm;
use woodfrog_sys::userfault::Userfault;

use crate::answers::Answers;
use crate::memory::{Counts, Memory, ServeError, Served, Turn};
use crate::pending::{Pending, clip};
use crate::standing;
use crate::wanted::batches;

/// What is filled in unasked between two looks at what is asked for: while nobody asks, and while somebody does.
const PIECE: u64 = 256 << 10;
const SMALL_PIECE: u64 = 64 << 10;
/// How long after a fault the next one is expected.
const BUSY: Duration = Duration::from_millis(1);
/// What is not known to be wanted waits so long after CRIU has finished: it stops the threads once more then, and lets them go, and the first request
/// is answered. To fill memory in keeps others out of its address space.
const HEAD_START: Duration = Duration::from_millis(30);
/// How long to wait for what has to be waited for without an event: a mapping, memory.
const PAUSE: Duration = Duration::from_micros(200);
/// A recording ends when nothing was wanted for so long, and in any case after the second time.
const QUIET: Duration = Duration::from_millis(150);
const RECORDING: Duration = Duration::from_secs(2);
/// How often it is looked whether processes have ended: nothing tells of that.
const LOOK: Duration = Duration::from_secs(1);
/// `LAZY_PAGES_RESTORE_FINISHED`.
const FINISHED: u32 = 0x5253_5446;

/// Why the application cannot have all of its memory.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PagerError {
    /// CRIU has gone before it had restored everything.
    #[error("CRIU has given the restore up")]
    Criu,
    /// CRIU restores a process of which the plan knows nothing.
    #[error("CRIU restores process {0}, which is not in the plan")]
    UnknownProcess(i32),
    /// init is not there any more.
    #[error("the container has ended")]
    Ended,
    /// A process.
    #[error(transparent)]
    Serve(#[from] ServeError),
    /// A socket.
    #[error("cannot {0}: {1}")]
    Socket(&'static str, Errno),
}

fn socket(what: &'static str) -> impl FnOnce(Errno) -> PagerError {
    move |errno| PagerError::Socket(what, errno)
}

/// CRIU's end of the conversation.
enum Criu {
    /// It has not connected yet.
    Awaited(OwnedFd),
    /// It restores.
    Connected { socket: OwnedFd, process: Option<i32> },
    /// The threads are about to run.
    Finished { at: Instant },
}

/// What a pager is given beside its plan and the pages.
pub(crate) struct Ends {
    /// Where CRIU connects.
    pub(crate) criu: OwnedFd,
    /// init's socket.
    pub(crate) init: OwnedFd,
    /// The counters of the pod's network.
    pub(crate) counters: OwnedFd,
    /// Only if memory is shared.
    pub(crate) sharing: Option<Sharing>,
}

/// What a pager of shared memory is given.
pub(crate) struct Sharing {
    /// The agent's socket.
    pub(crate) agent: OwnedFd,
    /// Whether the agent may still say that everything is mapped.
    pub(crate) hears: bool,
    /// Where the agent asks how things stand.
    pub(crate) standing: OwnedFd,
    /// Whether the memory is shared already.
    pub(crate) shares: bool,
}

/// A pager at work.
pub(crate) struct Pager {
    plan: Plan,
    pages: Vec<Rc<Mapping>>,
    criu: Criu,
    init: OwnedFd,
    /// None: the pager ends when all memory is there.
    sharing: Option<Sharing>,
    processes: VecDeque<Memory>,
    /// How many descriptors init was given.
    held: u64,
    looked: Instant,
    /// Of processes that have ended.
    counts: Counts,
    wanted: Vec<Wanted>,
    last_fault: Option<Instant>,
    recording: Option<Instant>,
    counters: Option<OwnedFd>,
    /// Only while it is recorded what is wanted, and nobody has been answered.
    answers: Option<Answers>,
    total: u64,
    report: Report,
}

impl Pager {
    /// A pager for what is planned, with the page file of each process mapped.
    pub(crate) fn new(plan: Plan, pages: Vec<Mapping>, ends: Ends) -> Self {
        let total = plan.processes.iter().flat_map(|process| &process.runs).map(|run| run.length).sum();
        Self {
            plan,
            pages: pages.into_iter().map(Rc::new).collect(),
            criu: Criu::Awaited(ends.criu),
            init: ends.init,
            sharing: ends.sharing,
            processes: VecDeque::new(),
            held: 0,
            looked: Instant::now(),
            counts: Counts::default(),
            wanted: Vec::new(),
            last_fault: None,
            recording: None,
            counters: Some(ends.counters),
            answers: None,
            total,
            report: Report::default(),
        }
    }

    /// Serves until all memory is there (if it is shared, until the container has ended), and writes a report to its standard output.
    pub(crate) fn run(mut self) -> Result<(), PagerError> {
        self.read_ahead();
        match self.serve_all() {
            Ok(()) => {}
            // Nobody needs the rest. What was wanted is worth knowing.
            Err(PagerError::Ended) if matches!(self.criu, Criu::Finished { .. }) => {
                self.tell();
                return Ok(());
            }
            Err(e) => return Err(e),
        }
        self.report.complete_us = monotonic_us();
        if self.sharing.is_none() {
            // With the last descriptor the kernel forgets that anything was served here.
            scm::send(self.init.as_fd(), COMPLETE, &[]).map_err(socket("tell init"))?;
            self.tell();
            return Ok(());
        }
        self.processes.iter_mut().for_each(Memory::unregister);
        scm::send(self.init.as_fd(), MAPPED, &[]).map_err(socket("tell init"))?;
        self.tell();
        match self.stay() {
            Err(PagerError::Ended) => Ok(()),
            result => result,
        }
    }

    /// Goes on where all memory is there, and is shared.
    fn stay(&mut self) -> Result<(), PagerError> {
        let mut pause = Some(LOOK);
        loop {
            self.wait(pause)?;
            self.is_init_there()?;
            let later = self.serve()?;
            self.answer()?;
            self.look();
            self.bury()?;
            if self.processes.is_empty() {
                // The container may live on without them.
                return scm::send(self.init.as_fd(), COMPLETE, &[]).map(drop).map_err(socket("tell init"));
            }
            pause = Some(if later == Served::Later { PAUSE } else { LOOK });
        }
    }

    /// Brings all memory.
    fn serve_all(&mut self) -> Result<(), PagerError> {
        let mut pause = None;
        loop {
            self.wait(pause)?;
            self.is_init_there()?;
            self.hear_criu()?;
            self.hear_agent()?;
            let later = self.serve()?;
            self.answer()?;
            self.look();
            self.bury()?;
            let finished = matches!(self.criu, Criu::Finished { .. });
            let left: u64 = self.processes.iter().map(|memory| memory.pending.bytes()).sum();
            if finished && self.report.nearly_us == 0 && left <= self.total / 100 {
                self.report.nearly_us = monotonic_us();
            }
            if finished && left == 0 && !self.processes.iter().any(Memory::is_waited_for) {
                return Ok(());
            }
            pause = match (self.fill()?, later) {
                (pause, Served::Well) => pause,
                (_, Served::Later) => Some(PAUSE),
            };
        }
    }

    /// Maps what is known to be wanted first, until CRIU comes: then it only has to be copied.
    fn read_ahead(&self) {
        let Criu::Awaited(listener) = &self.criu else { return };
        for (process, pages) in self.plan.processes.iter().zip(&self.pages) {
            let mut all = Pending::default();
            process.runs.iter().for_each(|run| all.insert(*run));
            for span in process.first.iter().chain(&process.then) {
                let end = span.start + span.length;
                let mut at = span.start;
                while let Some(run) = all.from(at).filter(|run| run.start < end) {
                    let run = clip(run, at, end);
                    if is_readable(listener.as_fd()) {
                        return;
                    }
                    if !run.shared && pages.read(run.offset, run.length).is_none() {
                        return;
                    }
                    at = run.start + run.length;
                }
            }
        }
    }

    /// Sleeps until something happens, or for so long.
    fn wait(&self, pause: Option<Duration>) -> Result<(), PagerError> {
        let criu = match &self.criu {
            Criu::Awaited(socket) | Criu::Connected { socket, .. } => Some(socket.as_fd()),
            Criu::Finished { .. } => None,
        };
        let sharing = self.sharing.as_ref();
        let asking = sharing.map(|sharing| sharing.standing.as_fd());
        let agent = sharing.filter(|sharing| sharing.hears).map(|sharing| sharing.agent.as_fd());
        let descriptors = criu.into_iter().chain([self.init.as_fd()]).chain(asking).chain(agent);
        let descriptors = descriptors.chain(self.processes.iter().map(Memory::descriptor));
        let mut entries: Vec<_> =
            descriptors.map(|descriptor| PollFd::from_borrowed_fd(descriptor, PollFlags::IN)).collect();
        let timeout = pause.and_then(|pause| Timespec::try_from(pause).ok());
        match poll(&mut entries, timeout.as_ref()) {
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(errno) => Err(socket("wait")(errno)),
        }
    }

    /// Takes in what CRIU says, as far as it has come.
    fn hear_criu(&mut self) -> Result<(), PagerError> {
        while is_readable(match &self.criu {
            Criu::Awaited(socket) | Criu::Connected { socket, .. } => socket.as_fd(),
            Criu::Finished { .. } => return Ok(()),
        }) {
            match &mut self.criu {
                Criu::Awaited(listener) => {
                    let flags = SocketFlags::CLOEXEC;
                    let socket =
                        rustix::net::accept_with(&*listener, flags).map_err(socket("accept CRIU"))?;
                    self.criu = Criu::Connected { socket, process: None };
                }
                Criu::Connected { socket: stream, process } => match process.take() {
                    None => match word(stream.as_fd())? {
                        FINISHED => return self.release(),
                        // A negative number is a zombie, which has no memory.
                        said if said.cast_signed() > 0 => *process = Some(said.cast_signed()),
                        _ => {}
                    },
                    Some(pid) => {
                        let mut byte = [0];
                        let received = scm::receive(stream.as_fd(), &mut byte);
                        let mut received = received.map_err(socket("hear CRIU"))?;
                        let descriptor = received.descriptors.pop().ok_or(PagerError::Criu)?;
                        self.begin(pid, Userfault::new(descriptor))?;
                    }
                },
                Criu::Finished { .. } => return Ok(()),
            }
        }
        Ok(())
    }

    fn begin(&mut self, pid: i32, userfault: Userfault) -> Result<(), PagerError> {
        let mut planned = self.plan.processes.iter().zip(&self.pages);
        let (process, pages) =
            planned.find(|(process, _)| process.pid == pid).ok_or(PagerError::UnknownProcess(pid))?;
        let memory = Memory::new(userfault, process, pages.clone(), self.plan.record);
        self.hold(memory)
    }

    /// The threads are about to run.
    fn release(&mut self) -> Result<(), PagerError> {
        self.criu = Criu::Finished { at: Instant::now() };
        self.report.released_us = monotonic_us();
        if self.plan.record {
            self.recording = Some(Instant::now());
            self.answers = self.counters.take().map(Answers::begin);
        }
        self.processes.iter_mut().for_each(|memory| memory.mapped = true);
        // It may have died before it could say so.
        self.share()
    }

    /// Shares the memory as soon as the agent says that everything is mapped.
    fn hear_agent(&mut self) -> Result<(), PagerError> {
        let hears = |sharing: &&mut Sharing| sharing.hears && is_readable(sharing.agent.as_fd());
        let Some(sharing) = self.sharing.as_mut().filter(hears) else { return Ok(()) };
        sharing.hears = false;
        let mut message = [0; RESTORED.len()];
        match rustix::io::read(&sharing.agent, &mut message) {
            Ok(_) if message == RESTORED => self.share(),
            // It has died, and CRIU gives up, or says so itself.
            _ => Ok(()),
        }
    }

    /// Shares the memory, unless that has been done. All of it keeps threads out of their address space, so it is done before they run: while CRIU
    /// stops them where their own code begins, on the way to which they need some of it.
    fn share(&mut self) -> Result<(), PagerError> {
        let Some(sharing) = self.sharing.as_mut().filter(|sharing| !sharing.shares) else { return Ok(()) };
        (sharing.shares, sharing.hears) = (true, false);
        for memory in &mut self.processes {
            memory.mapped = true;
            memory.register()?;
            memory.unregister();
            while memory.fill_expected(Turn::First, PIECE)? == Some(Served::Well) {}
        }
        // An agent that has died needs no answer. The socket stays open, for its word may be unread.
        match rustix::net::send(&sharing.agent, READY, SendFlags::NOSIGNAL) {
            Ok(_) | Err(Errno::PIPE) => Ok(()),
            Err(errno) => Err(socket("tell the agent")(errno)),
        }
    }

    /// Takes a process on, and gives init its descriptor to hold: should this process die, whoever waits for a page goes on waiting.
    fn hold(&mut self, mut memory: Memory) -> Result<(), PagerError> {
        scm::send(self.init.as_fd(), HOLD, &[memory.descriptor()]).map_err(socket("tell init"))?;
        memory.held = self.held;
        self.held += 1;
        self.processes.push_back(memory);
        Ok(())
    }

    /// Answers an agent that asks how things stand.
    fn answer(&mut self) -> Result<(), PagerError> {
        match &self.sharing {
            Some(sharing)
                if matches!(self.criu, Criu::Finished { .. }) && is_readable(sharing.standing.as_fd()) =>
            {
                // A PID may be another process's by now.
                self.processes.iter_mut().for_each(Memory::look_whether_gone);
                standing::answer(sharing.standing.as_fd(), &self.processes)
                    .map_err(socket("answer the agent"))
            }
            _ => Ok(()),
        }
    }

    /// Looks now and then which processes have ended.
    fn look(&mut self) {
        if self.looked.elapsed() >= LOOK {
            self.looked = Instant::now();
            self.processes.iter_mut().for_each(Memory::look_whether_gone);
        }
    }

    /// Its end of the socket closes with the container, or with the agent if the thaw is given up before.
    fn is_init_there(&self) -> Result<(), PagerError> {
        if is_readable(self.init.as_fd()) { Err(PagerError::Ended) } else { Ok(()) }
    }

    /// Takes all events in and answers all faults. Whether something has to wait.
    fn serve(&mut self) -> Result<Served, PagerError> {
        let mut later = Served::Well;
        let mut asked = None;
        let mut index = 0;
        if self.answers.as_mut().is_some_and(Answers::seen) {
            self.answers = None;
            self.processes.iter_mut().for_each(Memory::answered);
        }
        while index < self.processes.len() {
            let memory = &mut self.processes[index];
            let faults = memory.counts.faults;
            let children = memory.take()?;
            if memory.counts.faults > faults {
                self.last_fault = Some(Instant::now());
                if matches!(self.criu, Criu::Finished { .. }) {
                    asked = Some(index);
                }
            }
            if memory.answer()? == Served::Later {
                later = Served::Later;
            }
            for child in children {
                self.hold(child)?;
            }
            index += 1;
        }
        // Who asks has something to do: what it wants comes before what others do.
        if let Some(index) = asked {
            self.processes.swap(0, index);
        }
        Ok(later)
    }

    /// Fills in a piece of the memory of some process. How long to wait for an event before the next; none if only CRIU or a process can bring something to do.
    fn fill(&mut self) -> Result<Option<Duration>, PagerError> {
        if matches!(self.criu, Criu::Awaited(_)) {
            return Ok(None);
        }
        // What is shared cannot be mapped before everything else is; to try would only be in CRIU's way.
        if self.sharing.as_ref().is_some_and(|sharing| !sharing.shares) {
            return Ok(None);
        }
        let busy = self.last_fault.is_some_and(|fault| fault.elapsed() < BUSY);
        let piece = if busy { SMALL_PIECE } else { PIECE };
        let next = |served| Some(if served == Served::Well { Duration::ZERO } else { PAUSE });
        let mut expected = None;
        for turn in Turn::ALL {
            // It is recorded whether that is wanted earlier.
            let finished = matches!(self.criu, Criu::Finished { .. });
            if turn == Turn::Then && self.plan.record && !(finished && self.recording().is_zero()) {
                break;
            }
            // One after the other: of several workers, the first that has what it wants takes the request.
            for memory in &mut self.processes {
                expected = memory.fill_expected(turn, piece)?.or(expected);
                if expected == Some(Served::Well) {
                    return Ok(next(Served::Well));
                }
            }
        }
        // While CRIU is at work, everything else would only be in its way.
        let Criu::Finished { at } = self.criu else { return Ok(expected.and_then(next)) };
        if let Some(served) = expected {
            return Ok(next(served));
        }
        let rest = HEAD_START.saturating_sub(at.elapsed()).max(self.recording());
        if !rest.is_zero() {
            return Ok(Some(rest));
        }
        // In turn.
        self.processes.rotate_left(usize::from(self.processes.len() > 1));
        let Some(memory) = self.processes.iter_mut().find(|memory| memory.pending.bytes() > 0) else {
            return Ok(None);
        };
        Ok(next(memory.fill(piece)?))
    }

    /// How long the processes are still let ask, at least.
    fn recording(&mut self) -> Duration {
        let Some(began) = self.recording else { return Duration::ZERO };
        let quiet = self.last_fault.map_or(began, |fault| fault.max(began)).elapsed();
        let rest = QUIET.saturating_sub(quiet).min(RECORDING.saturating_sub(began.elapsed()));
        if rest.is_zero() {
            self.recording = None;
            self.note_wanted();
        }
        rest
    }

    fn note_wanted(&mut self) {
        for memory in &mut self.processes {
            if let Some(wanted) = memory.wanted.take() {
                let [first, then] = wanted.map(|spans| batches(&spans));
                self.wanted.push(Wanted { pid: memory.pid, first, then, written: Vec::new() });
            }
        }
    }

    /// Forgets processes that have ended.
    fn bury(&mut self) -> Result<(), PagerError> {
        for memory in self.processes.iter().filter(|memory| memory.gone) {
            self.counts += memory.counts;
            scm::send(self.init.as_fd(), &release(memory.held), &[]).map_err(socket("tell init"))?;
        }
        self.processes.retain(|memory| !memory.gone);
        Ok(())
    }

    /// Writes the report. Whoever reads it sees its end.
    fn tell(&mut self) {
        self.note_wanted();
        let mut counts = self.counts;
        self.processes.iter().for_each(|memory| counts += memory.counts);
        let report = Report {
            copied: counts.copied,
            mapped: counts.mapped,
            faults: counts.faults,
            zero_faults: counts.zero_faults,
            cpu_us: micros(rustix::time::clock_gettime(ClockId::ProcessCPUTime)),
            wanted: std::mem::take(&mut self.wanted),
            ..std::mem::take(&mut self.report)
        };
        // The agent may have gone meanwhile; the application has its memory.
        let _ = std::io::stdout().write_all(&report.encode_to_vec());
        let _ = std::io::stdout().flush();
        let _ = rustix::stdio::dup2_stdout(std::io::stdin());
    }
}

/// The next number that CRIU says.
fn word(stream: BorrowedFd<'_>) -> Result<u32, PagerError> {
    let mut bytes = [0; 4];
    let mut got = 0;
    while got < bytes.len() {
        match rustix::io::read(stream, &mut bytes[got..]) {
            Ok(0) => return Err(PagerError::Criu),
            Ok(length) => got += length,
            Err(Errno::INTR) => {}
            Err(errno) => return Err(socket("hear CRIU")(errno)),
        }
    }
    Ok(u32::from_ne_bytes(bytes))
}

fn is_readable(descriptor: BorrowedFd<'_>) -> bool {
    let mut entry = [PollFd::from_borrowed_fd(descriptor, PollFlags::IN)];
    matches!(poll(&mut entry, Some(&Timespec::default())), Ok(1))
}

fn monotonic_us() -> u64 {
    micros(rustix::time::clock_gettime(ClockId::Monotonic))
}

fn micros(time: Timespec) -> u64 {
    time.tv_sec as u64 * 1_000_000 + time.tv_nsec as u64 / 1_000
}
