//! Overlay mounts that exist only as a descriptor: attached nowhere, gone when the last descriptor closes.

use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::mount::{self, FsMountFlags, FsOpenFlags, MountAttrFlags};

/// A read-only overlay of directories, the topmost first. The kernel wants at least two.
///
/// The result is a directory to open files in (`openat`), or to hand to another process, whatever namespace that
/// lives in.
pub fn read_only_overlay(layers: &[BorrowedFd<'_>]) -> Result<OwnedFd, Errno> {
    let context = mount::fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
    for layer in layers {
        // A descriptor as value needs Linux 6.13; a path through /proc works since `lowerdir+` does (6.7).
        mount::fsconfig_set_string(&context, "lowerdir+", format!("/proc/self/fd/{}", layer.as_raw_fd()))?;
    }
    mount::fsconfig_create(&context)?;
    let attributes = MountAttrFlags::MOUNT_ATTR_RDONLY
        | MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    mount::fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)
}

/// A directory that is empty and stays so: a tmpfs of its own, read-only.
pub fn empty_directory() -> Result<OwnedFd, Errno> {
    let context = mount::fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    mount::fsconfig_create(&context)?;
    let attributes = MountAttrFlags::MOUNT_ATTR_RDONLY | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    mount::fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)
}
