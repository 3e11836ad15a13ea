//! Mounts that exist only as a descriptor: attached nowhere, gone when the last descriptor closes.

use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::mount::{self, FsMountFlags, FsOpenFlags, MountAttrFlags, OpenTreeFlags};

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

/// A directory of a file system that is mounted, as a mount of its own that nobody can write through: not with a descriptor opened in it, nor
/// with one made of that (`/proc/PID/fd`, `/proc/PID/map_files`).
pub fn read_only_clone(directory: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
    let flags =
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    let clone = mount::open_tree(directory, c"", flags)?;
    set_read_only(&clone)?;
    Ok(clone)
}

/// `struct mount_attr` of `linux/mount.h`.
#[repr(C)]
struct MountAttr {
    set: u64,
    clear: u64,
    propagation: u64,
    userns_fd: u64,
}

/// What is mapped from there may become executable, as anonymous memory may.
fn set_read_only(mount: &OwnedFd) -> Result<(), Errno> {
    let set = MountAttrFlags::MOUNT_ATTR_RDONLY
        | MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV;
    let attributes = MountAttr {
        set: set.bits().into(),
        clear: MountAttrFlags::MOUNT_ATTR_NOEXEC.bits().into(),
        propagation: 0,
        userns_fd: 0,
    };
    // SAFETY: the path is a string of length 0, which names the descriptor itself, and the structure has the size that is said.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            &raw const attributes,
            size_of::<MountAttr>(),
        )
    };
    if result == 0 {
        return Ok(());
    }
    // SAFETY: the pointer is to this thread's errno.
    Err(Errno::from_raw_os_error(unsafe { *libc::__errno_location() }))
}

/// A directory that is empty and stays so: a tmpfs of its own, read-only.
pub fn empty_directory() -> Result<OwnedFd, Errno> {
    let context = mount::fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    mount::fsconfig_create(&context)?;
    let attributes = MountAttrFlags::MOUNT_ATTR_RDONLY | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    mount::fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)
}

/// A directory in memory that only root may enter: a tmpfs of its own.
pub fn memory_directory() -> Result<OwnedFd, Errno> {
    let context = mount::fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    mount::fsconfig_set_string(&context, "mode", "0700")?;
    mount::fsconfig_create(&context)?;
    let attributes = MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    mount::fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)
}
