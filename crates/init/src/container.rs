//! The poll loop, and the container as the machine sees it.

use std::convert::Infallible;
use std::ops::ControlFlow::{self, Break, Continue};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use woodfrog_protocol::init::{Exiting, from_init::Kind as Say, to_init::Kind as Told};
use woodfrog_protocol::paths;
use woodfrog_sys::pid1::reap::{self, Child};
use woodfrog_sys::pid1::resident;
use woodfrog_sys::pid1::signals::Signals;
use woodfrog_sys::pid1::start;

use crate::api::{Api, Facts, MAX_CLIENTS};
use crate::command::Command;
use crate::link::Link;
use crate::machine::{Machine, World};
use crate::memory::{Heard, Memory};

/// How long killed processes may take to be gone.
const CLEAR_WITHIN: Duration = Duration::from_secs(10);

/// What the machine acts on.
struct Container {
    command: Command,
    link: Link,
    api: Api,
    memory: Option<Memory>,
}

impl World for Container {
    fn say(&mut self, what: Say) -> bool {
        self.link.send(what)
    }

    fn reconnect(&mut self, now: Instant) {
        if self.link.is_up() {
            self.link.drop_connection(now);
        }
    }

    fn has_api(&self) -> bool {
        self.api.is_up()
    }

    fn is_memory_pending(&self) -> bool {
        self.memory.as_ref().is_some_and(Memory::is_pending)
    }

    fn close_api_clients(&mut self) {
        self.api.close_clients();
    }

    fn start(&mut self) -> Result<i32, u8> {
        self.command.start().map_err(|error| {
            self.complain(&error.to_string());
            error.exit_code()
        })
    }

    fn kill(&mut self, pid: i32, signal: i32) {
        // It may have ended just now, which its status will tell.
        let _ = reap::kill(pid, signal);
    }

    fn clear(&mut self) -> bool {
        let until = Instant::now() + CLEAR_WITHIN;
        while reap::kill_all() {
            while reap::reap_one().is_some() {}
            if only_zombies().unwrap_or(false) {
                return true;
            }
            if Instant::now() > until {
                return false;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        true
    }

    fn look(&self, pid: i32) -> Child {
        reap::look(pid)
    }

    fn complain(&mut self, text: &str) {
        eprintln!("woodfrog-init: {text}");
    }
}

/// Whether all other processes here are zombies, whose parents are outside and have yet to reap them.
fn only_zombies() -> std::io::Result<bool> {
    for entry in std::fs::read_dir("/proc")? {
        let name = entry?.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        if pid == std::process::id() {
            continue;
        }
        // A process that has gone meanwhile has no file.
        let Ok(stat) = std::fs::read_to_string(format!("/proc/{pid}/stat")) else { continue };
        if !is_others_zombie(&stat) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Whether a process, by its `/proc/PID/stat`, has ended with all of its threads and waits for a parent that is outside. One whose first
/// thread alone has ended is a zombie by name, but holds its sockets, and one whose parent is here keeps its PID until it is reaped.
fn is_others_zombie(stat: &str) -> bool {
    let Some((_, fields)) = stat.rsplit_once(") ") else { return false };
    let mut fields = fields.split(' ');
    let (state, parent, threads) = (fields.next(), fields.next(), fields.nth(15));
    matches!(state, Some("Z" | "X"))
        && parent == Some("0")
        && threads.and_then(|threads| threads.parse().ok()).is_some_and(|threads: u32| threads <= 1)
}

/// Runs the container's life; init's exit code.
pub(crate) fn run() -> u8 {
    let dir = Path::new(paths::CONTROL_DIR);
    let command = match Command::read(&dir.join(paths::COMMAND)) {
        Ok(command) => command,
        Err(error) => {
            eprintln!("woodfrog-init: {error}");
            return error.exit_code();
        }
    };
    let signals = match Signals::take() {
        Ok(signals) => signals,
        Err(error) => {
            eprintln!("woodfrog-init: signalfd: {error}");
            return 126;
        }
    };
    start::release_terminal();

    let (thaw, hello, within) = (command.thaw, command.hello_timeout, command.thaw_timeout);
    let container = Container { command, link: Link::new(dir.to_owned()), api: Api::default(), memory: None };
    let mut machine = Machine::new(container, hello, within, Instant::now());
    let Break(code) = live(&mut machine, &signals, thaw);
    if machine.world.memory.is_some() {
        // The kernel closes what is held before it kills the rest of the namespace.
        machine.world.clear();
    }
    machine.world.say(Say::Exiting(Exiting { code: code.into() }));
    code
}

fn live(init: &mut Machine<Container>, signals: &Signals, thaw: bool) -> ControlFlow<u8, Infallible> {
    if std::process::id() != 1 {
        init.cold("the pod shares its process namespace: init is not PID 1")?;
    } else if !thaw {
        init.cold("no thaw was asked for")?;
    }
    if init.world.link.seek(Instant::now(), true) {
        init.connected();
    }
    let mut was_busy = true;
    loop {
        // Before a sleep that may be long, after work that is seldom done again.
        if std::mem::take(&mut was_busy) {
            resident::forget_code();
        }
        wait(init, signals);
        let now = Instant::now();
        while let Some(signal) = signals.next() {
            init.signal(signal.number, signal.sender == std::process::id())?;
        }
        // What the agent said comes before what became of its processes.
        was_busy = hear(init, now)?;
        was_busy |= remember(init, now)?;
        if init.worker().is_some_and(is_readable) {
            init.worker_ended(now)?;
        }
        while let Some((pid, exit)) = reap::reap_one() {
            init.child_ended(pid, exit, now)?;
        }
        init.time(now)?;
        serve(init, now);
    }
}

/// Sleeps until something happens or is due. Allocates nothing.
fn wait(init: &Machine<Container>, signals: &Signals) {
    let Container { link, api, memory, .. } = &init.world;
    let (listener, clients) =
        if init.api_rests() { Default::default() } else { (api.listener(), api.clients()) };
    let mut entries: [PollFd<'_>; 5 + MAX_CLIENTS] = std::array::from_fn(|i| {
        let descriptor = match i {
            0 => Some(signals.as_fd()),
            1 => link.descriptor(),
            2 => init.worker(),
            3 => listener,
            4 => memory.as_ref().map(Memory::descriptor),
            _ => clients[i - 5],
        };
        match descriptor {
            Some(descriptor) => PollFd::from_borrowed_fd(descriptor, PollFlags::IN),
            // Keeps the place; nothing is asked of it.
            None => PollFd::from_borrowed_fd(signals.as_fd(), PollFlags::empty()),
        }
    });
    let clients_due = api.deadline().filter(|_| !init.api_rests());
    let due = [init.deadline(), link.deadline(), clients_due].into_iter().flatten().min();
    // Rounded up, so that what is due is due when poll returns.
    let timeout = due.map(|due| due.saturating_duration_since(Instant::now()) + Duration::from_micros(1));
    let timeout = timeout.and_then(|timeout| Timespec::try_from(timeout).ok());
    // Its errors are EINTR, which cannot be with all signals blocked, and want of memory, which passes.
    let _ = poll(&mut entries, timeout.as_ref());
}

fn is_readable(descriptor: BorrowedFd<'_>) -> bool {
    let mut entry = [PollFd::from_borrowed_fd(descriptor, PollFlags::IN)];
    matches!(poll(&mut entry, Some(&Timespec::default())), Ok(1))
}

/// Takes in what the agent says, or seeks it. Whether there was anything.
fn hear(init: &mut Machine<Container>, now: Instant) -> ControlFlow<u8, bool> {
    if !init.world.link.is_up() {
        let found = init.world.link.seek(now, false);
        if found {
            init.connected();
        }
        return Continue(found);
    }
    let mut heard = false;
    let mut useful = init.world.link.receive();
    loop {
        let Container { link, api, .. } = &mut init.world;
        let told = match link.next() {
            Ok(Some(told)) => told,
            Ok(None) => break,
            Err(_) => {
                useful = false;
                break;
            }
        };
        let mut descriptor = None;
        match &told {
            Told::Welcome(_) => {
                link.welcomed();
                let listener = link.take_descriptor(true);
                if let Some(listener) = listener.filter(|_| !api.is_up()) {
                    api.listen(listener);
                }
            }
            Told::RequestLease(_) => descriptor = link.take_descriptor(false),
            Told::Pager(_) => {
                init.world.memory = link.take_descriptor(true).map(Memory::new);
                if init.world.memory.is_none() {
                    init.memory_lost(now)?;
                }
            }
            _ => {}
        }
        init.told(told, descriptor, now)?;
        heard = true;
    }
    if !useful {
        init.world.link.drop_connection(now);
        init.lost(now)?;
    }
    Continue(heard || !useful)
}

/// Takes in what the pager says. Whether there was anything.
fn remember(init: &mut Machine<Container>, now: Instant) -> ControlFlow<u8, bool> {
    let mut heard = false;
    while let Some(memory) = init.world.memory.as_mut().filter(|memory| is_readable(memory.descriptor())) {
        heard = true;
        match memory.hear() {
            Heard::Nothing => {}
            Heard::Mapped => init.memory_complete(),
            Heard::Complete => {
                init.world.memory = None;
                init.memory_complete();
            }
            Heard::Lost => {
                // What waits for memory is killed before it could go on without it.
                init.memory_lost(now)?;
                init.world.memory = None;
            }
        }
    }
    Continue(heard)
}

/// Answers the application's requests.
fn serve(init: &mut Machine<Container>, now: Instant) {
    if init.api_rests() {
        return;
    }
    while let Some(asked) = init.world.api.next(now) {
        let (generation, image) = init.generation();
        if asked.answer(&Facts { generation, image, can_checkpoint: init.can_checkpoint() }) {
            init.is_warm();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::is_others_zombie;

    #[test]
    fn a_zombie_is_left_to_others_only_if_it_is_theirs_and_has_no_thread_left() {
        let stat = |state: &str, parent: u32, threads: u32| {
            format!(
                "300 (a) b) {state} {parent} 300 300 0 -1 4194308 0 0 0 0 1 2 0 0 20 0 {threads} 0 77 0 0"
            )
        };
        assert!(is_others_zombie(&stat("Z", 0, 1)));
        assert!(!is_others_zombie(&stat("Z", 0, 2)), "a thread still holds its sockets");
        assert!(!is_others_zombie(&stat("Z", 1, 1)), "it is init's to reap");
        assert!(!is_others_zombie(&stat("S", 0, 1)));
        assert!(!is_others_zombie(""));
    }
}
