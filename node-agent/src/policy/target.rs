//! PID 1 of the running container: the measure of what a checkpoint may ask for.

use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::str::FromStr;

use rustix::fs::{Mode, OFlags, open};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use woodfrog_criu::images::messages::misc::LsmType;
use woodfrog_sys::seccomp::{self, Filter};

use super::capability::CapSet;

/// Number of resource limits (`RLIM_NLIMITS`).
pub const LIMITS: usize = 16;

/// What the agent knows of a container's PID 1 and of the container's devices.
#[derive(Debug)]
pub struct Target {
    /// Real, effective, saved and file system user id.
    pub uids: [u32; 4],
    /// Real, effective, saved and file system group id.
    pub gids: [u32; 4],
    /// Supplementary groups.
    pub groups: Vec<u32>,
    /// Inheritable capabilities.
    pub inheritable: CapSet,
    /// Permitted capabilities.
    pub permitted: CapSet,
    /// Bounding set.
    pub bounding: CapSet,
    /// No process can gain privileges by executing a program.
    pub no_new_privs: bool,
    /// 0 none, 1 strict, 2 filters.
    pub seccomp_mode: u32,
    /// Its filters, the first installed first.
    pub seccomp: Vec<Filter>,
    /// Soft and hard resource limits by number; all ones is unlimited.
    pub limits: [Limit; LIMITS],
    /// `oom_score_adj`.
    pub oom_score_adj: i32,
    /// Its nice value, −20 to 19.
    pub nice: i32,
    /// Its label, unless it is unconfined or there is no security module that labels processes.
    pub label: Option<Label>,
    /// Devices that the container's OCI runtime spec lists, besides the standard ones.
    pub devices: Vec<Device>,
    /// Whether sockets with a peer may be restored: because CRIU will close them, or because the pod has kept its address.
    /// `read` says no.
    pub connections: bool,
    /// Its root directory, to resolve paths in.
    pub root: OwnedFd,
    /// Its network namespace, to learn the first port that needs no privilege. Without it: 1024.
    pub net: Option<OwnedFd>,
}

/// A soft and a hard limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limit {
    /// Soft.
    pub cur: u64,
    /// Hard.
    pub max: u64,
}

/// A security module's label of a process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Label {
    /// Which module.
    pub module: LsmType,
    /// The label as CRIU takes it: a profile's name without its mode, or an SELinux context.
    pub text: String,
}

/// A device that the container may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Device {
    /// Block device rather than character device.
    pub block: bool,
    /// Major number.
    pub major: u32,
    /// Minor number.
    pub minor: u32,
}

/// PID 1 could not be looked at.
#[derive(Debug, thiserror::Error)]
pub enum TargetError {
    /// A file below `/proc/PID` could not be read: the process has gone, most likely.
    #[error("cannot read {path} of the container's PID 1: {source}")]
    Proc {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// A file below `/proc/PID` says something else than expected.
    #[error("cannot understand {path} of the container's PID 1: no {what}")]
    Format {
        /// The file.
        path: PathBuf,
        /// What is missing.
        what: &'static str,
    },
    /// Its seccomp filters could not be read.
    #[error("cannot read the seccomp filters of the container's PID 1 ({pid} on the node): {source}")]
    Seccomp {
        /// Its PID as the agent sees it.
        pid: i32,
        /// The cause.
        source: seccomp::ReadError,
    },
}

impl From<TargetError> for io::Error {
    fn from(error: TargetError) -> Self {
        Self::other(error)
    }
}

impl Target {
    /// Looks at the process `pid`, as the agent numbers it. If it has seccomp filters it is stopped for as long as
    /// they are read, some tens of microseconds.
    ///
    /// # Errors
    /// When the process has gone, or the agent may not look at it.
    pub fn read(pid: i32, devices: &[Device]) -> Result<Self, TargetError> {
        let proc = Proc { pid };
        let status = proc.text("status")?;
        let field = |name: &'static str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
            line.map(str::trim).ok_or_else(|| proc.format("status", name))
        };
        let number =
            |name: &'static str| field(name)?.parse::<u32>().map_err(|_| proc.format("status", name));
        let caps = |name: &'static str| {
            u64::from_str_radix(field(name)?, 16).map(CapSet).map_err(|_| proc.format("status", name))
        };
        let four = |name: &'static str| {
            let ids = numbers(field(name)?).and_then(|ids| <[u32; 4]>::try_from(ids).ok());
            ids.ok_or_else(|| proc.format("status", name))
        };
        let seccomp_mode = number("Seccomp")?;
        let seccomp = if seccomp_mode == 2 {
            seccomp::filters(pid as u32).map_err(|source| TargetError::Seccomp { pid, source })?
        } else {
            Vec::new()
        };
        Ok(Self {
            uids: four("Uid")?,
            gids: four("Gid")?,
            groups: numbers(field("Groups")?).ok_or_else(|| proc.format("status", "Groups"))?,
            inheritable: caps("CapInh")?,
            permitted: caps("CapPrm")?,
            bounding: caps("CapBnd")?,
            no_new_privs: number("NoNewPrivs")? != 0,
            seccomp_mode,
            seccomp,
            limits: limits(&proc.text("limits")?).ok_or_else(|| proc.format("limits", "limits"))?,
            oom_score_adj: parsed(&proc, "oom_score_adj", &proc.text("oom_score_adj")?)?,
            nice: nice(&proc.text("stat")?).ok_or_else(|| proc.format("stat", "nice value"))?,
            label: label(&proc)?,
            devices: devices.to_vec(),
            connections: false,
            root: proc.open("root", OFlags::PATH | OFlags::DIRECTORY)?,
            net: Some(proc.open("ns/net", OFlags::RDONLY)?),
        })
    }

    /// The most that a process in this container can ever have: the permitted set once no privilege can be gained
    /// any more, else the bounding set.
    pub fn reach(&self) -> CapSet {
        if self.no_new_privs { self.permitted } else { self.bounding }
    }

    /// The first port that needs no privilege in the container's network namespace; 1024 if that cannot be told.
    pub(super) fn first_free_port(&self) -> u16 {
        let Some(net) = &self.net else { return FIRST_FREE_PORT };
        let read = || {
            // The sysctl shows the namespace of whoever reads it.
            move_into_link_name_space(net.as_fd(), Some(LinkNameSpaceType::Network)).ok()?;
            fs::read_to_string("/proc/sys/net/ipv4/ip_unprivileged_port_start").ok()?.trim().parse().ok()
        };
        std::thread::scope(|scope| scope.spawn(read).join().ok().flatten()).unwrap_or(FIRST_FREE_PORT)
    }
}

/// The kernel's default for `ip_unprivileged_port_start`.
const FIRST_FREE_PORT: u16 = 1024;

struct Proc {
    pid: i32,
}

impl Proc {
    fn path(&self, file: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/{file}", self.pid))
    }

    fn text(&self, file: &str) -> Result<String, TargetError> {
        fs::read_to_string(self.path(file))
            .map_err(|source| TargetError::Proc { path: self.path(file), source })
    }

    fn open(&self, file: &str, flags: OFlags) -> Result<OwnedFd, TargetError> {
        open(self.path(file), flags | OFlags::CLOEXEC, Mode::empty())
            .map_err(|errno| TargetError::Proc { path: self.path(file), source: errno.into() })
    }

    fn format(&self, file: &str, what: &'static str) -> TargetError {
        TargetError::Format { path: self.path(file), what }
    }
}

fn parsed<T: FromStr>(proc: &Proc, file: &'static str, text: &str) -> Result<T, TargetError> {
    text.trim().parse().map_err(|_| proc.format(file, "number"))
}

fn numbers(text: &str) -> Option<Vec<u32>> {
    text.split_ascii_whitespace().map(|number| number.parse().ok()).collect()
}

/// `/proc/PID/limits`: a heading, then a line a limit in the order of their numbers, the values from column 26 on.
fn limits(text: &str) -> Option<[Limit; LIMITS]> {
    let value = |word: &str| if word == "unlimited" { Some(u64::MAX) } else { word.parse().ok() };
    let lines = text.lines().skip(1).map(|line| {
        let mut words = line.get(26..)?.split_ascii_whitespace();
        Some(Limit { cur: value(words.next()?)?, max: value(words.next()?)? })
    });
    lines.collect::<Option<Vec<_>>>()?.try_into().ok()
}

/// Field 19 of `/proc/PID/stat`; field 2 is the command in parentheses and may hold anything.
fn nice(stat: &str) -> Option<i32> {
    stat.rsplit_once(") ")?.1.split_ascii_whitespace().nth(19 - 3)?.parse().ok()
}

/// The label, with the module found as CRIU finds it.
fn label(proc: &Proc) -> Result<Option<Label>, TargetError> {
    let module = if fs::exists("/sys/fs/selinux/enforce").unwrap_or(false) {
        LsmType::Selinux
    } else if fs::read_to_string("/sys/module/apparmor/parameters/enabled")
        .is_ok_and(|on| on.starts_with('Y'))
    {
        LsmType::Apparmor
    } else {
        return Ok(None);
    };
    let text = proc.text("attr/current")?;
    let text = text.trim_end_matches(['\0', '\n']);
    // AppArmor appends the mode: `name (enforce)`.
    let text = if module == LsmType::Apparmor {
        text.rsplit_once(" (").map_or(text, |(name, _)| name)
    } else {
        text
    };
    Ok((text != "unconfined").then(|| Label { module, text: text.into() }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_test_process_itself_can_be_read() {
        let target = Target::read(std::process::id() as i32, &[]).unwrap();
        assert_eq!(target.uids[1], rustix::process::geteuid().as_raw());
        let files = rustix::process::getrlimit(rustix::process::Resource::Nofile);
        assert_eq!(target.limits[7].cur, files.current.unwrap_or(u64::MAX));
        assert_eq!(target.limits[7].max, files.maximum.unwrap_or(u64::MAX));
        assert!(!target.bounding.is_empty());
    }

    #[test]
    fn a_command_with_parentheses_does_not_hide_the_nice_value() {
        let stat = "7 (a) b (c)) S 1 7 7 0 -1 4194560 1 2 3 4 5 6 7 8 20 -5 1 0 99";
        assert_eq!(nice(stat), Some(-5));
    }
}
