//! Holds an application with the cgroup freezer, in a cgroup of its own below its container's: init goes on.
//!
//! ```text
//!   container's cgroup         init, pager, commands of `kubectl exec`
//!     └ woodfrog-application   the application, once it has been frozen for the first time
//! ```
//!
//! It stays there when it runs again: a wake is one write. No controller is delegated, so that limits and accounts are the
//! container's as before.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::fs::{Mode, OFlags};

use super::cgroups;

const NAME: &str = "woodfrog-application";
/// How long the kernel may take to stop all tasks; one that waits for a disk holds it up.
const FROZEN_WITHIN: Duration = Duration::from_secs(5);
/// How much memory is asked back at a time: a wake waits for no more.
const RECLAIMED_AT_ONCE: u64 = 32 << 20;

/// The freezer of one container.
#[derive(Debug)]
pub(super) struct Freezer {
    init: i32,
    /// The container's own, in the freezer's hierarchy.
    container: OwnedFd,
    application: OwnedFd,
    version: Version,
    woken: AtomicBool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Version {
    V1,
    V2,
}

impl Freezer {
    /// Of the container whose PID 1 is process `init`.
    ///
    /// # Errors
    /// It has ended, or the agent does not see the freezer's hierarchy.
    pub(super) fn of(init: i32) -> io::Result<Self> {
        Self::among(init, cgroups::of(init)?)
    }

    /// The same, with the cgroups that PID 1 is in.
    fn among(init: i32, groups: Vec<OwnedFd>) -> io::Result<Self> {
        let has = |group: &OwnedFd, file: &str| {
            rustix::fs::accessat(group, file, rustix::fs::Access::EXISTS, rustix::fs::AtFlags::empty())
                .is_ok()
        };
        let found = groups.into_iter().find_map(|group| match () {
            () if has(&group, "cgroup.freeze") => Some((group, Version::V2)),
            () if has(&group, "freezer.state") => Some((group, Version::V1)),
            () => None,
        });
        let (container, version) = found.ok_or_else(|| io::Error::other("there is no cgroup freezer"))?;
        match rustix::fs::mkdirat(&container, NAME, Mode::from_raw_mode(0o755)) {
            Err(e) if e != rustix::io::Errno::EXIST => return Err(e.into()),
            _ => {}
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let application = rustix::fs::openat(&container, NAME, flags, Mode::empty())?;
        Ok(Self { init, container, application, version, woken: AtomicBool::new(false) })
    }

    /// Whether the application is held, by an earlier agent.
    pub(super) fn is_held(&self) -> bool {
        match self.version {
            Version::V1 => {
                read(&self.application, "freezer.self_freezing").is_ok_and(|held| held.trim() == "1")
            }
            Version::V2 => read(&self.application, "cgroup.freeze").is_ok_and(|held| held.trim() == "1"),
        }
    }

    /// Stops every task of the container but its init. Blocks until they stand.
    ///
    /// # Errors
    /// Not within [`FROZEN_WITHIN`]; they run then.
    pub(super) fn hold(&self) -> io::Result<()> {
        self.woken.store(false, Ordering::Relaxed);
        self.gather()?;
        let stopped = self.write(self.words().0).and_then(|()| self.await_held());
        if stopped.is_err() {
            self.release()?;
        }
        stopped
    }

    /// Lets them run.
    ///
    /// # Errors
    /// The kernel's; there is no reason for one.
    pub(super) fn release(&self) -> io::Result<()> {
        self.woken.store(true, Ordering::Relaxed);
        self.write(self.words().1)
    }

    /// Moves all processes of the container but init into the application's cgroup, also those that are born meanwhile.
    fn gather(&self) -> io::Result<()> {
        let inside = pid_namespace(self.init)?;
        let until = Instant::now() + FROZEN_WITHIN;
        loop {
            let outside: BTreeSet<i32> = read(&self.container, "cgroup.procs")?
                .lines()
                .filter_map(|line| line.parse().ok())
                .filter(|pid| {
                    *pid != self.init && pid_namespace(*pid).is_ok_and(|namespace| namespace == inside)
                })
                .collect();
            if outside.is_empty() {
                return Ok(());
            }
            if Instant::now() > until {
                return Err(io::Error::other("its processes are born faster than they can be moved"));
            }
            for pid in outside {
                match write(&self.application, "cgroup.procs", &pid.to_string()) {
                    // It has ended.
                    Err(e) if e.raw_os_error() == Some(rustix::io::Errno::SRCH.raw_os_error()) => {}
                    other => other?,
                }
            }
        }
    }

    fn await_held(&self) -> io::Result<()> {
        let until = Instant::now() + FROZEN_WITHIN;
        loop {
            let held = match self.version {
                Version::V1 => read(&self.application, "freezer.state")?.trim() == "FROZEN",
                Version::V2 => {
                    read(&self.application, "cgroup.events")?.lines().any(|line| line == "frozen 1")
                }
            };
            if held {
                return Ok(());
            }
            if Instant::now() > until {
                return Err(io::Error::new(io::ErrorKind::TimedOut, "its tasks do not stop"));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// What the kernel is to be told: to hold, and to release.
    fn words(&self) -> (&'static str, &'static str) {
        match self.version {
            Version::V1 => ("FROZEN", "THAWED"),
            Version::V2 => ("1", "0"),
        }
    }

    fn write(&self, word: &str) -> io::Result<()> {
        let file = if self.version == Version::V1 { "freezer.state" } else { "cgroup.freeze" };
        write(&self.application, file, word)
    }

    /// Has the kernel take back what it can of the container's memory, until it is released: pages of files, and all else if there is
    /// swap. Bytes that were given back. Blocks.
    ///
    /// # Errors
    /// The container has ended, or its memory is not accounted for.
    pub(super) fn reclaim(&self) -> io::Result<u64> {
        let groups = cgroups::of(self.init)?;
        let counter = ["memory.current", "memory.usage_in_bytes"];
        let used = |group: &OwnedFd| {
            let text = counter.iter().find_map(|name| read(group, name).ok())?;
            text.trim().parse::<u64>().ok()
        };
        let group = groups.iter().find(|group| used(group).is_some());
        let group = group.ok_or_else(|| io::Error::other("its memory is not accounted for"))?;
        let before = used(group).unwrap_or(0);
        let mut left = before;
        while left > 0 && !self.woken.load(Ordering::Relaxed) {
            // Version 1 knows only all at once.
            let one = write(group, "memory.reclaim", &left.min(RECLAIMED_AT_ONCE).to_string());
            let all = || write(group, "memory.force_empty", "0");
            let more = match one {
                Err(e) if e.kind() == io::ErrorKind::NotFound => all().and(Ok(false)),
                other => other.and(Ok(true)),
            };
            left = left.saturating_sub(RECLAIMED_AT_ONCE);
            // EAGAIN, EBUSY: what is left cannot be taken.
            if !matches!(more, Ok(true)) {
                break;
            }
        }
        Ok(before.saturating_sub(used(group).unwrap_or(before)))
    }
}

fn pid_namespace(pid: i32) -> io::Result<std::path::PathBuf> {
    std::fs::read_link(format!("/proc/{pid}/ns/pid"))
}

fn read(group: impl AsFd, file: &str) -> io::Result<String> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    io::read_to_string(File::from(rustix::fs::openat(group, file, flags, Mode::empty())?))
}

fn write(group: impl AsFd, file: &str, text: &str) -> io::Result<()> {
    let flags = OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    File::from(rustix::fs::openat(group, file, flags, Mode::empty())?).write_all(text.as_bytes())
}

#[cfg(test)]
mod tests;
