//! What lies outside a container's root file system, and which of it belongs to the application's state.
//!
//! Contents of emptyDir volumes, tmpfs mounts and `/dev/shm` end with the pod, so they travel in the image. Everything
//! else (persistent, host and projected volumes) is the new pod's.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use oci_spec::runtime::Mount;
use rustix::fs::{AtFlags, Mode, OFlags, ResolveFlags, StatxAttributes, StatxFlags};

use woodfrog_image::VolumeKind;

use super::runtime::ContainerInfo;

/// Largest contents of all volumes of a container that an image carries, in bytes.
pub const MAX_BYTES: u64 = 4 << 30;

/// A mount whose contents travel in the image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Volume {
    /// Where it is mounted in the container.
    pub path: PathBuf,
    /// What it is.
    pub kind: VolumeKind,
}

/// The mounts of a container whose contents travel in its image.
pub fn carried(info: &ContainerInfo) -> Vec<Volume> {
    let mounts = info.spec.mounts().iter().flatten();
    mounts
        .filter_map(|mount| Some(Volume { path: mount.destination().clone(), kind: kind(mount)? }))
        .collect()
}

/// Mount points of volumes that kubelet writes anew for each pod, with other file names each time: projected ones,
/// ConfigMaps, Secrets and the downward API.
pub fn made_anew(info: &ContainerInfo) -> Vec<PathBuf> {
    const PLUGINS: [&str; 4] = ["projected", "configmap", "secret", "downward-api"];
    let is_made_anew = |mount: &&Mount| {
        let components = mount.source().iter().flat_map(|source| source.components());
        let mut plugins = components.filter_map(|c| c.as_os_str().to_str()?.strip_prefix("kubernetes.io~"));
        plugins.any(|plugin| PLUGINS.contains(&plugin))
    };
    let mounts = info.spec.mounts().iter().flatten();
    mounts.filter(is_made_anew).map(|mount| mount.destination().clone()).collect()
}

/// Every place where the runtime has mounted something; none of it is part of the root file system.
pub fn mount_points(info: &ContainerInfo) -> Vec<PathBuf> {
    info.spec.mounts().iter().flatten().map(|mount| mount.destination().clone()).collect()
}

fn kind(mount: &Mount) -> Option<VolumeKind> {
    let source = mount.source().as_deref().unwrap_or(Path::new(""));
    if mount.destination() == Path::new("/dev/shm") {
        Some(VolumeKind::SharedMemory)
    } else if source.components().any(|c| c.as_os_str() == "kubernetes.io~empty-dir") {
        Some(VolumeKind::EmptyDir)
    } else if mount.typ().as_deref() == Some("tmpfs") && !mount.destination().starts_with("/dev") {
        Some(VolumeKind::Tmpfs)
    } else {
        None
    }
}

/// The root directory of a container's mount point, as a descriptor; `pid` is its init on the host.
///
/// # Errors
/// The init has ended, or `path` is no mount point of the container (it may have been moved away).
pub fn open(pid: i32, path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = rustix::fs::open(format!("/proc/{pid}/root"), flags, Mode::empty())?;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let dir = rustix::fs::openat2(&root, path, flags, Mode::empty(), resolve)?;
    let stat = rustix::fs::statx(&dir, "", AtFlags::EMPTY_PATH, StatxFlags::BASIC_STATS)?;
    if stat.stx_attributes.contains(StatxAttributes::MOUNT_ROOT) {
        Ok(dir)
    } else {
        Err(io::Error::other(format!("{} is not a mount point", path.display())))
    }
}

/// Volumes that were filled for a thaw. Unless the thaw comes about, those that were empty before are emptied again, so
/// that a cold start does not find what another life of the application left there.
#[derive(Debug, Default)]
pub struct LaidOut(Vec<OwnedFd>);

impl LaidOut {
    /// Notes a volume that is about to be filled.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn begin(&mut self, volume: OwnedFd) -> io::Result<()> {
        if std::fs::read_dir(path(&volume))?.next().is_none() {
            self.0.push(volume);
        }
        Ok(())
    }

    /// The thaw has come about.
    pub fn keep(mut self) {
        self.0.clear();
    }
}

impl Drop for LaidOut {
    fn drop(&mut self) {
        for volume in &self.0 {
            for entry in std::fs::read_dir(path(volume)).into_iter().flatten().flatten() {
                // Neither follows links. What cannot be removed is left: the cold start is more important.
                let _ = match entry.file_type() {
                    Ok(kind) if kind.is_dir() => std::fs::remove_dir_all(entry.path()),
                    _ => std::fs::remove_file(entry.path()),
                };
            }
        }
    }
}

/// The kernel's path of an open directory, wherever it is mounted.
fn path(dir: &OwnedFd) -> PathBuf {
    format!("/proc/self/fd/{}", dir.as_raw_fd()).into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use oci_spec::runtime::MountBuilder;

    fn mount(destination: &str, typ: &str, source: &str) -> Mount {
        MountBuilder::default().destination(destination).typ(typ).source(source).build().unwrap()
    }

    #[test]
    fn what_ends_with_the_pod_travels_and_the_rest_does_not() {
        let empty_dir = "/var/lib/kubelet/pods/u/volumes/kubernetes.io~empty-dir/tmp";
        assert_eq!(kind(&mount("/tmp", "bind", empty_dir)), Some(VolumeKind::EmptyDir));
        assert_eq!(kind(&mount("/dev/shm", "bind", "/run/containerd/shm")), Some(VolumeKind::SharedMemory));
        assert_eq!(kind(&mount("/scratch", "tmpfs", "tmpfs")), Some(VolumeKind::Tmpfs));
        assert_eq!(kind(&mount("/dev", "tmpfs", "tmpfs")), None);
        let projected = "/var/lib/kubelet/pods/u/volumes/kubernetes.io~projected/token";
        assert_eq!(kind(&mount("/var/run/secrets", "bind", projected)), None);
        assert_eq!(kind(&mount("/data", "bind", "/srv/data")), None);
    }
}
