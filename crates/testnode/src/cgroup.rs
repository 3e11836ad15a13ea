//! A node's control groups: `woodfrog-testnode/NAME` in every hierarchy, version 1, 2 or both.
//!
//! A node's processes join them before they do anything else and cannot leave, so they are also how every process of a
//! node is found, whoever started it. Processes live in the leaf `init`, since version 2 allows none in a group that
//! hands controllers to groups below it.

use std::{
    fs,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use crate::{Error, error::At as _};

const PARENT: &str = "woodfrog-testnode";
const LEAF: &str = "init";

/// The control groups of one node (or of the hub).
pub(crate) struct Cgroup {
    /// One directory a hierarchy.
    dirs: Vec<PathBuf>,
}

impl Cgroup {
    /// The groups of that name, which need not exist.
    pub(crate) fn of(name: &str) -> Result<Self, Error> {
        let mounts = fs::read_to_string("/proc/self/mounts").at("read", "/proc/self/mounts")?;
        let dirs: Vec<_> = mounts
            .lines()
            .filter_map(|line| {
                let mut fields = line.split(' ').skip(1);
                let (at, kind) = (fields.next()?, fields.next()?);
                matches!(kind, "cgroup" | "cgroup2").then(|| Path::new(at).join(PARENT).join(name))
            })
            .collect();
        if dirs.is_empty() {
            return Err(Error::Need("control groups, mounted at /sys/fs/cgroup".into()));
        }
        Ok(Self { dirs })
    }

    /// Makes the groups.
    pub(crate) fn create(&self) -> Result<(), Error> {
        for dir in &self.dirs {
            let parent = dir.parent().unwrap_or(dir);
            fs::create_dir_all(parent).at("create", parent)?;
            fill_cpuset(parent)?;
            if self.unified() {
                delegate(parent.parent().unwrap_or(parent))?;
                delegate(parent)?;
            }
            for dir in [dir.clone(), dir.join(LEAF)] {
                fs::create_dir_all(&dir).at("create", &dir)?;
            }
        }
        Ok(())
    }

    /// The files through which a process joins the groups themselves, to make them the root of its control group namespace.
    pub(crate) fn roots(&self) -> Vec<PathBuf> {
        self.dirs.iter().map(|dir| dir.join("cgroup.procs")).collect()
    }

    /// The files through which a process joins a node that runs.
    pub(crate) fn leaves(&self) -> Vec<PathBuf> {
        self.dirs.iter().map(|dir| dir.join(LEAF).join("cgroup.procs")).collect()
    }

    /// Moves what started in the groups themselves to the leaves, and lets groups below use the controllers of version 2.
    pub(crate) fn settle(&self) -> Result<(), Error> {
        for dir in &self.dirs {
            for pid in pids(&dir.join("cgroup.procs")) {
                let leaf = dir.join(LEAF).join("cgroup.procs");
                match fs::write(&leaf, pid.to_string()) {
                    Err(error) if error.raw_os_error() == Some(rustix::io::Errno::SRCH.raw_os_error()) => {}
                    result => result.at("write", leaf)?,
                }
            }
            if self.unified() {
                delegate(dir)?;
            }
        }
        Ok(())
    }

    /// Whether version 2 is all there is; beside version 1 it has no controllers that anybody here uses.
    fn unified(&self) -> bool {
        self.dirs.len() == 1
    }

    /// The host's PIDs of all processes in the groups, each once.
    pub(crate) fn pids(&self) -> Vec<i32> {
        let mut found = Vec::new();
        for dir in &self.dirs {
            walk(dir, &mut |dir| found.extend(pids(&dir.join("cgroup.procs"))));
        }
        found.sort_unstable();
        found.dedup();
        found
    }

    /// Kills all processes, thawing those that the freezer holds, and removes the groups.
    pub(crate) fn destroy(&self) -> Result<(), Error> {
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            self.kill();
            if self.remove() {
                return Ok(());
            }
            if Instant::now() > deadline {
                let detail = format!("these processes are still there: {:?}", self.pids());
                return Err(Error::Timeout { what: "the end of all processes".into(), seconds: 20, detail });
            }
            thread::sleep(Duration::from_millis(10));
        }
    }

    fn kill(&self) {
        for dir in &self.dirs {
            walk(dir, &mut |dir| {
                // Version 1's freezer holds back even SIGKILL. Files that are not there belong to another hierarchy.
                if dir.join("freezer.state").exists() {
                    let _ = fs::write(dir.join("freezer.state"), "THAWED");
                }
                if dir.join("cgroup.kill").exists() {
                    let _ = fs::write(dir.join("cgroup.kill"), "1");
                }
            });
        }
        for pid in self.pids() {
            let Some(id) = Pid::from_raw(pid) else { continue };
            // The descriptor pins the process; only then does being in the group prove that the PID is still its own.
            if let Ok(fd) = pidfd_open(id, PidfdFlags::empty())
                && self.holds(pid)
            {
                let _ = pidfd_send_signal(&fd, Signal::KILL);
            }
        }
    }

    fn holds(&self, pid: i32) -> bool {
        let name = self.dirs.first().and_then(|dir| dir.file_name()).unwrap_or_default().to_string_lossy();
        let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
        let group = format!("/{PARENT}/{name}");
        text.lines().any(|line| line.ends_with(&group) || line.contains(&format!("{group}/")))
    }

    /// True when all groups are gone. The parent goes with the last of them.
    fn remove(&self) -> bool {
        for dir in &self.dirs {
            walk(dir, &mut |dir| {
                let _ = fs::remove_dir(dir);
            });
            if let Some(parent) = dir.parent() {
                let _ = fs::remove_dir(parent);
            }
        }
        self.dirs.iter().all(|dir| !dir.exists())
    }
}

/// Visits a group after all groups below it.
fn walk(dir: &Path, visit: &mut impl FnMut(&Path)) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            walk(&entry.path(), visit);
        }
    }
    if dir.exists() {
        visit(dir);
    }
}

/// The PIDs in a `cgroup.procs` file; 0 stands for processes outside our PID namespace.
fn pids(file: &Path) -> Vec<i32> {
    let text = fs::read_to_string(file).unwrap_or_default();
    text.lines().filter_map(|line| line.parse().ok()).filter(|pid| *pid > 0).collect()
}

/// Version 1's cpuset starts empty and takes no process until it is filled.
fn fill_cpuset(dir: &Path) -> Result<(), Error> {
    if dir.join("cgroup.clone_children").exists() && dir.join("cpuset.cpus").exists() {
        for file in ["cpuset.cpus", "cpuset.mems"] {
            let value = fs::read_to_string(dir.join(file)).at("read", dir.join(file))?;
            if value.trim().is_empty() {
                let above = dir.parent().unwrap_or(dir).join(file);
                let value = fs::read_to_string(&above).at("read", above)?;
                fs::write(dir.join(file), value).at("write", dir.join(file))?;
            }
        }
        fs::write(dir.join("cgroup.clone_children"), "1").at("write", dir.join("cgroup.clone_children"))?;
    }
    Ok(())
}

/// Lets groups below a version 2 group use its controllers, which it hands on to none by itself.
fn delegate(dir: &Path) -> Result<(), Error> {
    let (controllers, control) = (dir.join("cgroup.controllers"), dir.join("cgroup.subtree_control"));
    if !control.exists() {
        return Ok(());
    }
    let wanted = fs::read_to_string(&controllers).at("read", controllers)?;
    let given = fs::read_to_string(&control).at("read", &control)?;
    for name in wanted.split_whitespace().filter(|name| !given.split_whitespace().any(|have| have == *name)) {
        fs::write(&control, format!("+{name}")).at("write", &control)?;
    }
    Ok(())
}
