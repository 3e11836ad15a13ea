//! The control groups of a process, as directories: what it restores is to live where its init lives.

use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use procfs::process::Process;
use rustix::fs::{Mode, OFlags};

/// The directory of each hierarchy that process `pid` is in.
///
/// # Errors
/// The process has ended, or a hierarchy is not mounted where the agent can see it.
pub fn of(pid: i32) -> io::Result<Vec<OwnedFd>> {
    let process = Process::new(pid).map_err(io::Error::other)?;
    let mounts = Process::myself().and_then(|me| me.mountinfo()).map_err(io::Error::other)?;
    let mut found = Vec::new();
    for group in process.cgroups().map_err(io::Error::other)? {
        let mount = mounts.0.iter().find(|mount| {
            if group.controllers.iter().all(String::is_empty) {
                return mount.fs_type == "cgroup2";
            }
            mount.fs_type == "cgroup"
                && group.controllers.iter().all(|c| {
                    mount.super_options.contains_key(c.trim_start_matches("name="))
                        || named(c, &mount.super_options)
                })
        });
        // A hierarchy that is mounted nowhere holds nobody back.
        let Some(mount) = mount else { continue };
        let below = group.pathname.strip_prefix(&mount.root).unwrap_or(&group.pathname);
        let path: PathBuf = mount.mount_point.join(below.trim_start_matches('/'));
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        found.push(rustix::fs::open(&path, flags, Mode::empty())?);
    }
    Ok(found)
}

/// Name of the page store's cgroup.
const PAGE_STORE: &str = "woodfrog-pages";

/// The directory of a cgroup for the page store, made if it is missing, in the hierarchy that counts memory. None where the agent cannot make
/// one: the store is then charged to the agent.
pub fn of_page_store() -> Option<OwnedFd> {
    let mounts = Process::myself().and_then(|me| me.mountinfo()).ok()?;
    let counts = |mount: &&procfs::process::MountInfo| match &*mount.fs_type {
        "cgroup2" => std::fs::read_to_string(mount.mount_point.join("cgroup.controllers"))
            .is_ok_and(|controllers| controllers.split_whitespace().any(|name| name == "memory")),
        "cgroup" => mount.super_options.contains_key("memory"),
        _ => false,
    };
    let path = mounts.0.iter().find(counts)?.mount_point.join(PAGE_STORE);
    match std::fs::create_dir(&path) {
        Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return None,
        _ => {}
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open(&path, flags, Mode::empty()).ok()
}

/// A hierarchy without controllers has a name instead (`name=systemd`).
fn named(controller: &str, options: &std::collections::HashMap<String, Option<String>>) -> bool {
    let Some(name) = controller.strip_prefix("name=") else { return false };
    options.get("name").and_then(Option::as_deref) == Some(name)
}
