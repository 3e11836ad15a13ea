//! The memory of one process: what it waits for, what it was told to forget, and what is brought to it.
//!
//! Exactness rests on one rule: every event is taken in before any page is served ([`Memory::take`]), and the kernel
//! refuses to serve (`EAGAIN`) while there is an event that has not been read. So a page that was given up, moved or unmapped is never
//! filled with what was in it, and a child is given exactly the pages that its parent had not got when it forked.
//!
//! Shared memory is a private mapping of the process's file in the page store. The kernel asks for each page that is not in the page table, also
//! for one that was there before: it is the file's if its address is still in `image`, and zero otherwise, as it would be in anonymous memory.

use std::collections::VecDeque;
use std::ops::AddAssign;
use std::os::fd::{AsFd, BorrowedFd};
use std::rc::Rc;

use rustix::io::Errno;
use woodfrog_protocol::pager::{Process, Run, Span};
use woodfrog_sys::mapping::Mapping;
use woodfrog_sys::userfault::{Event, Partly, Userfault};

use crate::pending::{Pending, clip};

/// Bytes of a page.
pub(crate) const PAGE: u64 = 4096;
/// How much around a page that is waited for comes with it: a batch costs little more than a page. It is doubled after each [`MANY`] faults, this often at most:
/// who goes on asking, such as for a collection of garbage, wants nearly everything.
const AROUND: u64 = 64 << 10;
const MANY: u64 = 128;
const DOUBLED: u64 = 3;
/// How much of that comes before its thread goes on.
const AT_ONCE: u64 = 16 << 10;
/// While it is recorded what is wanted, so many faults of a process are answered with nothing but the page, so that the set is no larger than need be.
const EXACT: u64 = 6144;
/// No more than this is recorded of a process, over all recordings: there is not the time to bring more before its threads run. What it wants after the first answer
/// is recorded as far as what it wants until then leaves room.
const MOST_WANTED: u64 = 24 << 20;
/// A call for less than this costs about as much.
const CALL: u64 = 16 << 10;
/// So much of a page file is read in with a call of its own before it is copied: for less, which was mostly read ahead, that costs more than it saves.
const MANY_PAGES: u64 = 64 << 10;
/// How much follows a page, at most, if those before it were waited for one after the other.
const AHEAD: u64 = 1 << 20;
/// Zeros given at once to who writes on and on.
const ZEROS: &[u8] = &[0; 64 << 10];

/// How serving went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Served {
    /// As asked.
    Well,
    /// An event has to be taken in first, or the memory is not mapped yet.
    Later,
}

/// The process cannot be served.
#[derive(Debug, thiserror::Error)]
#[error("cannot {what} at {address:#x} of process {pid}: {errno}")]
pub(crate) struct ServeError {
    what: &'static str,
    address: u64,
    pid: i32,
    errno: Errno,
}

/// What has been done for a process.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Counts {
    pub(crate) copied: u64,
    pub(crate) mapped: u64,
    pub(crate) faults: u64,
    pub(crate) zero_faults: u64,
}

impl AddAssign for Counts {
    fn add_assign(&mut self, other: Self) {
        self.copied += other.copied;
        self.mapped += other.mapped;
        self.faults += other.faults;
        self.zero_faults += other.zero_faults;
    }
}

/// Neighbours as one: the kernel takes several mappings at once.
fn joined(spans: &[Span]) -> Vec<Span> {
    let mut joined: Vec<Span> = Vec::new();
    for span in spans {
        match joined.last_mut() {
            Some(last) if last.start + last.length == span.start => last.length += span.length,
            _ => joined.push(*span),
        }
    }
    joined
}

/// When something is known to be wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Turn {
    /// Until the first answer.
    First,
    /// After that.
    Then,
}

impl Turn {
    /// In their order.
    pub(crate) const ALL: [Self; 2] = [Self::First, Self::Then];
}

fn bytes(spans: &[Span]) -> u64 {
    spans.iter().map(|span| span.length).sum()
}

/// One process.
pub(crate) struct Memory {
    pub(crate) pid: i32,
    userfault: Userfault,
    pages: Rc<Mapping>,
    pub(crate) pending: Pending,
    /// Shared memory that the process has not given up.
    pub(crate) image: Rc<Pending>,
    /// Mappings of the page store that are to be put under the userfaultfd.
    shared: Vec<Span>,
    /// Memory that is under the userfaultfd and need not be once all of it is there.
    anonymous: Pending,
    /// It was forked after the thaw.
    pub(crate) forked: bool,
    /// As which its userfaultfd was given to init.
    pub(crate) held: u64,
    /// Faults that are not answered yet: page and whether it is to be written.
    waiting: Vec<(u64, bool)>,
    /// What is known to be wanted, a [`Turn`] each, in the order in which it is brought.
    expected: [VecDeque<Span>; 2],
    /// The same, ascending.
    wants: Rc<[Span]>,
    /// Up to where everything else has been filled in.
    cursor: u64,
    /// Where the last zeros were given to a writer, and how many.
    zeros: (u64, u64),
    /// Up to where the last batch went, and how much it was.
    ahead: (u64, u64),
    /// The page that was not to be found at the last attempt, if no event has been taken in since.
    missing: Option<u64>,
    /// CRIU has mapped everything.
    pub(crate) mapped: bool,
    /// The process has ended.
    pub(crate) gone: bool,
    /// What it wanted, a [`Turn`] each, if that is recorded.
    pub(crate) wanted: Option<[Vec<Span>; 2]>,
    /// The turn that is recorded.
    turn: Turn,
    /// How much is known to be wanted up to then.
    known: u64,
    pub(crate) counts: Counts,
}

impl Memory {
    /// A process as CRIU hands it over.
    pub(crate) fn new(userfault: Userfault, process: &Process, pages: Rc<Mapping>, record: bool) -> Self {
        let (mut pending, mut image, mut anonymous) =
            (Pending::default(), Pending::default(), Pending::default());
        for run in &process.runs {
            pending.insert(*run);
            if run.shared {
                image.insert(*run);
            }
        }
        for Span { start, length } in process.anonymous.iter().copied() {
            anonymous.insert(Run { start, length, offset: 0, shared: false });
        }
        let mut wants = [process.first.as_slice(), &process.then].concat();
        wants.sort_by_key(|span| span.start);
        Self {
            pid: process.pid,
            userfault,
            pages,
            pending,
            image: Rc::new(image),
            shared: process.shared.clone(),
            anonymous,
            forked: false,
            held: 0,
            waiting: Vec::new(),
            expected: [&process.first, &process.then].map(|spans| spans.iter().copied().collect()),
            wants: wants.into(),
            cursor: 0,
            zeros: (0, 0),
            ahead: (0, 0),
            missing: None,
            mapped: false,
            gone: false,
            wanted: record.then(Default::default),
            turn: Turn::First,
            known: bytes(&process.first),
            counts: Counts::default(),
        }
    }

    /// A child of it, at the moment of the fork.
    fn child(&self, userfault: Userfault) -> Self {
        Self {
            pid: self.pid,
            userfault,
            pages: self.pages.clone(),
            pending: self.pending.clone(),
            image: self.image.clone(),
            shared: Vec::new(),
            anonymous: self.anonymous.clone(),
            forked: true,
            held: 0,
            // The parent's threads wait for the parent's pages.
            waiting: Vec::new(),
            expected: Default::default(),
            wants: Rc::default(),
            cursor: 0,
            zeros: (0, 0),
            ahead: (0, 0),
            missing: None,
            mapped: true,
            gone: false,
            wanted: None,
            turn: Turn::First,
            known: 0,
            counts: Counts::default(),
        }
    }

    /// Its userfaultfd.
    pub(crate) fn descriptor(&self) -> BorrowedFd<'_> {
        self.userfault.as_fd()
    }

    /// Whether somebody waits for a page.
    pub(crate) fn is_waited_for(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Takes all events in; children that were forked meanwhile.
    pub(crate) fn take(&mut self) -> Result<Vec<Self>, ServeError> {
        let mut children = Vec::new();
        loop {
            let event = self.userfault.next().map_err(|errno| self.failed("read an event", 0, errno))?;
            if !matches!(event, None | Some(Event::Fault { .. })) {
                self.missing = None;
            }
            match event {
                None => return Ok(children),
                Some(Event::Fault { address, write }) => {
                    self.counts.faults += 1;
                    self.waiting.push((address & !(PAGE - 1), write));
                }
                Some(Event::Fork(userfault)) => children.push(self.child(userfault)),
                Some(Event::Remap { from, to, length }) => {
                    self.pending.relocate(from, to, length);
                    self.image_mut().relocate(from, to, length);
                    self.anonymous.relocate(from, to, length);
                }
                Some(Event::Remove { start, end }) => {
                    self.pending.remove(start, end);
                    self.image_mut().remove(start, end);
                }
                Some(Event::Unmap { start, end }) => {
                    self.pending.remove(start, end);
                    self.image_mut().remove(start, end);
                    self.anonymous.remove(start, end);
                }
            }
        }
    }

    fn image_mut(&mut self) -> &mut Pending {
        Rc::make_mut(&mut self.image)
    }

    /// Puts the shared memory under the userfaultfd. CRIU has mapped everything, and no thread runs.
    pub(crate) fn register(&mut self) -> Result<(), ServeError> {
        for span in joined(&std::mem::take(&mut self.shared)) {
            let registered = self.userfault.register(span.start, span.length);
            registered.map_err(|errno| self.failed("share the memory", span.start, errno))?;
        }
        Ok(())
    }

    /// Takes anonymous memory off the userfaultfd that is all there, so that whatever is done with it costs no more than ever.
    pub(crate) fn unregister(&mut self) {
        let whole = |run: &Run| {
            self.pending.from(run.start).is_none_or(|pending| pending.start >= run.start + run.length)
        };
        let done: Vec<Run> = self.anonymous.runs().filter(whole).collect();
        for run in done {
            self.anonymous.remove(run.start, run.start + run.length);
            // Where the process has mapped something else meanwhile, there is nothing to take off.
            let _ = self.userfault.unregister(run.start, run.length);
        }
    }

    /// Whether there is no process any more to be served.
    pub(crate) fn look_whether_gone(&mut self) {
        self.gone |= self.userfault.is_gone();
    }

    /// Answers all faults.
    pub(crate) fn answer(&mut self) -> Result<Served, ServeError> {
        while let Some(&(page, write)) = self.waiting.last() {
            if self.gone {
                self.waiting.clear();
            } else if self.answer_one(page, write)? == Served::Later {
                return Ok(Served::Later);
            } else {
                self.waiting.pop();
            }
        }
        Ok(Served::Well)
    }

    fn answer_one(&mut self, page: u64, write: bool) -> Result<Served, ServeError> {
        let Some(run) = self.pending.at(page) else {
            if let Some(run) = self.image.at(page) {
                // It was there, and the kernel has dropped it from the page table.
                self.pending.insert(clip(run, page, page + PAGE));
                return self.bring(page, page + PAGE);
            }
            self.counts.zero_faults += 1;
            return self.give_zeros(page, write);
        };
        let recording = self.wanted.is_some() && self.known < MOST_WANTED;
        let batch = if page == self.ahead.0 {
            clip(run, page, page + (self.ahead.1 * 2).min(if recording { AROUND } else { AHEAD }))
        } else if recording && self.counts.faults <= EXACT {
            clip(run, page, page + PAGE)
        } else {
            let doubled = if recording { 0 } else { (self.counts.faults / MANY).min(DOUBLED) };
            let around = AROUND << doubled;
            let window = page & !(around - 1);
            // Where it is known what is wanted, the rest of the window is not.
            let known = self.known_around(page).filter(|_| !recording);
            let known = known.unwrap_or(Span { start: window, length: around });
            let end = (known.start + known.length).min(window + around);
            clip(run, known.start.max(window), end)
        };
        let end = batch.start + batch.length;
        self.ahead = (end, batch.length);
        if let Some(wanted) = self.wanted.as_mut().filter(|_| recording) {
            self.known += batch.length;
            wanted[self.turn as usize].push(Span { start: batch.start, length: batch.length });
        }
        let soon = end.min(page + AT_ONCE);
        if self.bring(page, soon)? == Served::Later {
            return Ok(Served::Later);
        }
        // What follows, and what lies before it, is a favour.
        for (start, end) in [(soon, end), (batch.start, page)] {
            self.bring(start, end)?;
        }
        Ok(Served::Well)
    }

    /// The part of what is known to be wanted in which a page lies.
    fn known_around(&self, page: u64) -> Option<Span> {
        let next = self.wants.partition_point(|span| span.start + span.length <= page);
        self.wants.get(next).copied().filter(|span| span.start <= page)
    }

    /// Somebody has been answered: what is wanted from now on is of the next turn.
    pub(crate) fn answered(&mut self) {
        if self.turn == Turn::First {
            self.turn = Turn::Then;
            self.known += self.expected[Turn::Then as usize].iter().map(|span| span.length).sum::<u64>();
        }
    }

    /// Fills in up to `length` bytes of what is known to be wanted in a turn; none if all of that is there.
    pub(crate) fn fill_expected(&mut self, turn: Turn, length: u64) -> Result<Option<Served>, ServeError> {
        let mut left = length;
        while let Some(span) = self.expected[turn as usize].front().copied() {
            if left == 0 {
                return Ok(Some(Served::Well));
            }
            let end = span.start + span.length;
            let Some(run) = self.pending.from(span.start).filter(|run| run.start < end) else {
                self.expected[turn as usize].pop_front();
                continue;
            };
            let run = clip(run, run.start, end.min(run.start + left));
            if self.bring(run.start, run.start + run.length)? == Served::Later {
                return Ok(Some(Served::Later));
            }
            left = left.saturating_sub(run.length.max(CALL));
        }
        Ok((left < length).then_some(Served::Well))
    }

    /// Fills in up to `length` bytes that nobody has asked for yet, or says that there are none, or not yet.
    pub(crate) fn fill(&mut self, length: u64) -> Result<Served, ServeError> {
        // Behind the cursor there may be what was moved there.
        let next = self.pending.from(self.cursor).or_else(|| self.pending.from(0));
        let Some(run) = next else { return Ok(Served::Well) };
        let end = run.start + run.length.min(length);
        self.cursor = end;
        self.bring(run.start, end)
    }

    /// Copies or maps the pages from `start` up to `end`, which are pending and lie in one run.
    fn bring(&mut self, start: u64, end: u64) -> Result<Served, ServeError> {
        let mut at = start;
        let mut most = end.saturating_sub(start);
        while at < end && !self.gone {
            // A part of it may have gone when another was tried.
            let Some(run) = self.pending.at(at) else {
                at += PAGE;
                continue;
            };
            let part = clip(run, at, end.min(at + most));
            let result = if part.shared {
                self.userfault.map(at, part.length)
            } else {
                let bytes = if part.length < MANY_PAGES {
                    self.pages.get(part.offset, part.length)
                } else {
                    self.pages.read(part.offset, part.length)
                };
                let bytes = bytes.ok_or_else(|| self.failed("find the page", at, Errno::NXIO))?;
                self.userfault.copy(at, bytes)
            };
            let (done, errno) = match result {
                Ok(()) => (part.length, None),
                Err(Partly { done, errno }) => (done, Some(errno)),
            };
            self.pending.remove(at, at + done);
            *(if part.shared { &mut self.counts.mapped } else { &mut self.counts.copied }) += done;
            at += done;
            match errno {
                None => most = end - at,
                Some(Errno::EXIST) => {
                    self.pending.remove(at, at + PAGE);
                    self.wake(at);
                    at += PAGE;
                }
                Some(Errno::AGAIN | Errno::NOMEM) => return Ok(Served::Later),
                Some(Errno::SRCH) => self.gone = true,
                // The range lies in several mappings, or in none.
                Some(Errno::NOENT) if part.length - done > PAGE => {
                    most = ((part.length - done) / 2).next_multiple_of(PAGE);
                }
                Some(Errno::NOENT) => return self.not_mapped(at),
                Some(errno) => return Err(self.failed("bring a page", at, errno)),
            }
        }
        Ok(Served::Well)
    }

    /// No memory that is served is there: it is yet to be mapped, has been moved by a call whose event comes now, or was not
    /// given to a child (`MADV_DONTFORK`). Only in the last case it is missing twice without an event in between, for the kernel
    /// answers `EAGAIN` from the beginning of a change until its event has been read.
    fn not_mapped(&mut self, page: u64) -> Result<Served, ServeError> {
        if self.mapped && self.missing == Some(page) {
            self.missing = None;
            self.pending.remove(page, page + PAGE);
            self.image_mut().remove(page, page + PAGE);
            self.wake(page);
            return Ok(Served::Well);
        }
        self.missing = Some(page);
        Ok(Served::Later)
    }

    fn give_zeros(&mut self, page: u64, write: bool) -> Result<Served, ServeError> {
        let result = if write {
            let given = if self.zeros.0 == page { (self.zeros.1 * 2).min(ZEROS.len() as u64) } else { PAGE };
            // No further than up to what has contents.
            let next = [self.pending.from(page), self.image.from(page)];
            let end = next.into_iter().flatten().fold(page + given, |end, run| end.min(run.start));
            self.zeros = (end, end - page);
            self.userfault.copy(page, &ZEROS[..(end - page) as usize])
        } else {
            self.userfault.zero(page, PAGE)
        };
        match result {
            Ok(()) => Ok(Served::Well),
            Err(Partly { done, .. }) if done > 0 => Ok(Served::Well),
            Err(Partly { errno: Errno::AGAIN | Errno::NOMEM, .. }) => Ok(Served::Later),
            Err(Partly { errno: Errno::SRCH, .. }) => {
                self.gone = true;
                Ok(Served::Well)
            }
            // There already, the mapping ends behind this page, or it has gone: its thread tries again and comes back, or not.
            Err(Partly { errno: Errno::EXIST | Errno::NOENT, .. }) => {
                self.zeros = (0, 0);
                if write && self.userfault.copy(page, &ZEROS[..PAGE as usize]).is_ok() {
                    return Ok(Served::Well);
                }
                self.wake(page);
                Ok(Served::Well)
            }
            Err(Partly { errno, .. }) => Err(self.failed("give zeros", page, errno)),
        }
    }

    fn wake(&self, page: u64) {
        // Fails only where nobody can wait.
        let _ = self.userfault.wake(page, PAGE);
    }

    fn failed(&self, what: &'static str, address: u64, errno: Errno) -> ServeError {
        ServeError { what, address, pid: self.pid, errno }
    }
}
