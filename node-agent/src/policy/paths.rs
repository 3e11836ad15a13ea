//! Paths in a checkpoint: their form, and what the container must allow at them.

use woodfrog_criu::images::messages::file::RegFile;

use super::violation::{Report, TAMPERED};

/// Something that CRIU will do at a path, as root, on behalf of the image. It must be something that PID 1 could do.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Opening {
    /// Absolute, without `..` (else it is not asked but refused).
    pub path: String,
    pub access: Access,
    /// The kind of file by its mode at the dump (`S_IFMT` bits), if that is known.
    pub kind: Option<u32>,
    /// Whose it is and what for, in words.
    pub who: String,
}

/// How it is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Access {
    /// Only looked up (`O_PATH`).
    Lookup,
    Read,
    Write,
    ReadWrite,
    /// Executed; or for a directory, entered.
    Execute,
    /// A file is made here and removed again: the directory must allow both, and the file must not be there.
    Make,
    /// A socket is bound here: as above, but CRIU removes a socket that is there.
    Bind,
    /// CRIU removes this link after it has opened it.
    Remove,
}

const O_PATH: u32 = 0o10_000_000;

impl Access {
    pub(super) fn from_flags(flags: u32) -> Self {
        match flags & 3 {
            _ if flags & O_PATH != 0 => Self::Lookup,
            0 => Self::Read,
            1 => Self::Write,
            _ => Self::ReadWrite,
        }
    }

    pub(super) fn describe(self) -> &'static str {
        match self {
            Self::Lookup => "found",
            Self::Read => "opened for reading",
            Self::Write => "opened for writing",
            Self::ReadWrite => "opened for reading and writing",
            Self::Execute => "executed or entered",
            Self::Make => "made and removed",
            Self::Bind => "made, as a socket",
            Self::Remove => "removed",
        }
    }
}

impl Opening {
    pub(super) fn file(id: u32, reg: &RegFile, access: Access, what: String) -> Self {
        let kind = reg.mode.map(|mode| mode & 0o170_000);
        Self { path: reg.name.clone(), access, kind, who: format!("file {id:#x} ({what})") }
    }
}

/// CRIU resolves paths from the root directory and takes their first byte away unseen, so they must be absolute;
/// names that the kernel gave out at the dump have no `.`, `..` or empty component.
pub(super) fn check_form(report: &mut Report, who: &str, field: &'static str, path: &str) -> bool {
    let plain = path == "/"
        || path.strip_prefix('/').is_some_and(|rest| {
            rest.split('/').all(|part| !part.is_empty() && part != "." && part != "..")
                && !path.contains('\0')
        });
    let short = path.len() < 4096;
    let value = format!("{:?}", path.chars().take(200).collect::<String>());
    report.require(plain && short, who, field, value, "an absolute path without .. in it", TAMPERED);
    plain && short
}

/// What is below `/proc` and belongs to a process comes to be only at the restore, so it cannot be asked for before.
/// Some of it may be read; the rest (memory, links to other processes' files and directories) may not be opened.
pub(super) enum ProcPath {
    /// Not below `/proc/PID`.
    Other,
    /// May be read.
    Readable(u32),
    /// Not allowed.
    Forbidden,
}

const READABLE: [&str; 20] = [
    "",
    "cgroup",
    "cmdline",
    "comm",
    "fd",
    "fdinfo",
    "io",
    "limits",
    "loginuid",
    "maps",
    "mountinfo",
    "mounts",
    "oom_score",
    "sched",
    "schedstat",
    "smaps",
    "smaps_rollup",
    "stat",
    "statm",
    "status",
];

impl ProcPath {
    pub(super) fn of(path: &str) -> Self {
        let Some(rest) = path.strip_prefix("/proc/") else { return Self::Other };
        let (first, rest) = rest.split_once('/').unwrap_or((rest, ""));
        let Ok(pid) = first.parse::<u32>() else { return Self::Other };
        let rest = match rest.strip_prefix("task") {
            Some("") => "",
            Some(task) => match task.strip_prefix('/') {
                Some(task) => task.split_once('/').map_or("", |(_, leaf)| leaf),
                None => rest,
            },
            None => rest,
        };
        if READABLE.contains(&rest) { Self::Readable(pid) } else { Self::Forbidden }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_paths_as_the_kernel_gives_them_out_pass() {
        let ok = |path: &str| check_form(&mut Report::default(), "f", "name", path);
        assert!(ok("/") && ok("/a") && ok("/a/..b/c d"));
        for path in ["", "a", "../a", "/a/../b", "/..", "/a/", "//a", "/a/./b", "/a\0b"] {
            assert!(!ok(path), "{path:?}");
        }
    }

    #[test]
    fn memory_and_links_of_processes_may_not_be_opened() {
        let readable = |path: &str| matches!(ProcPath::of(path), ProcPath::Readable(300));
        assert!(readable("/proc/300/stat") && readable("/proc/300/task/301/status") && readable("/proc/300"));
        for leaf in [
            "mem",
            "root/etc/shadow",
            "cwd",
            "exe",
            "fd/3",
            "ns/net",
            "task/301/mem",
            "environ",
            "attr/current",
        ] {
            assert!(matches!(ProcPath::of(&format!("/proc/300/{leaf}")), ProcPath::Forbidden), "{leaf}");
        }
        assert!(matches!(ProcPath::of("/proc/self/stat"), ProcPath::Other));
        assert!(matches!(ProcPath::of("/proc/meminfo"), ProcPath::Other));
    }
}
