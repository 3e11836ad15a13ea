//! Asks the kernel, with PID 1's credentials and in its root directory, whether it could open what the image holds.
//!
//! A thread takes on PID 1's file system ids, groups and those of its capabilities that bear on files, resolves each
//! path and asks for access. So ownership, modes, ACLs, read-only mounts and file capabilities of the kernel's own
//! making decide, not a copy of its rules. Security modules judge later: AppArmor and SELinux look again at inherited
//! descriptors when a process with another label uses them.
//!
//! Only the file system ids change, not the real and saved ones by which other processes could signal the thread.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::unistd::{Gid, Uid, setfsgid, setfsuid};
use rustix::fs::{Access as Ask, FileType, Mode, OFlags, ResolveFlags, Stat, fstat, major, minor, openat2};
use rustix::io::Errno;
use rustix::thread::{CapabilitySet, CapabilitySets, capabilities, set_capabilities, set_thread_groups};
use woodfrog_sys::access::allowed;

use super::capability::CapSet;
use super::paths::{Access, Opening, ProcPath};
use super::target::{Device, Target};
use super::violation::{Report, Violation};

/// Character devices that every container has: null, zero, full, random, urandom, tty, ptmx.
const STANDARD: [(u32, u32); 7] = [(1, 3), (1, 5), (1, 7), (1, 8), (1, 9), (5, 0), (5, 2)];

const SAME_FILES: &str = "thaw with the volumes and user of the pod that was frozen";

pub(super) fn judge(openings: &[Opening], target: &Target, report: &mut Report) {
    if openings.is_empty() {
        return;
    }
    // The thread ends with its borrowed credentials; none of the agent's own ever has them.
    let found = std::thread::scope(|scope| {
        let builder = std::thread::Builder::new().name("policy-access".into());
        let thread = builder.spawn_scoped(scope, || take_on(target).map(|()| judge_all(openings, target)));
        thread.map_err(|e| e.to_string())?.join().unwrap_or_else(|_| Err("the thread broke off".into()))
    });
    match found {
        Ok(violations) => violations.into_iter().for_each(|violation| report.add(violation)),
        Err(reason) => {
            report.refuse("checkpoint", "files", reason, "a check with PID 1's credentials", "try again")
        }
    }
}

fn take_on(target: &Target) -> Result<(), String> {
    let [.., fsuid] = target.uids;
    let [.., fsgid] = target.gids;
    let groups: Vec<rustix::thread::Gid> =
        target.groups.iter().map(|gid| rustix::thread::Gid::from_raw(*gid)).collect();
    let failed = |step: &str, errno: Errno| format!("cannot {step}: {errno}");
    set_thread_groups(&groups).map_err(|e| failed("take on PID 1's groups", e))?;
    setfsgid(Gid::from_raw(fsgid));
    setfsuid(Uid::from_raw(fsuid));
    let own = capabilities(None).map_err(|e| failed("read own capabilities", e))?;
    let files = CapSet::DAC_OVERRIDE | CapSet::DAC_READ_SEARCH | CapSet::FOWNER;
    let kept = CapabilitySet::from_bits_retain((target.permitted & files).0) & own.permitted;
    let sets = CapabilitySets { effective: kept, permitted: kept, inheritable: CapabilitySet::empty() };
    set_capabilities(None, sets).map_err(|e| failed("take on PID 1's capabilities", e))?;
    let now = (setfsuid(Uid::from_raw(u32::MAX)).as_raw(), setfsgid(Gid::from_raw(u32::MAX)).as_raw());
    if now == (fsuid, fsgid) { Ok(()) } else { Err("cannot take on PID 1's user and group".into()) }
}

fn judge_all(openings: &[Opening], target: &Target) -> Vec<Violation> {
    openings.iter().filter_map(|opening| judge_one(opening, target).err()).collect()
}

fn judge_one(opening: &Opening, target: &Target) -> Result<(), Violation> {
    let refused = |what: String, allowed: &str, advice| Violation {
        who: opening.who.clone(),
        field: "name",
        value: format!("{} ({what})", opening.path),
        allowed: allowed.into(),
        advice,
    };
    let cannot = |errno: Errno| {
        let allowed = format!("what PID 1 (user {}, group {}) could do", target.uids[3], target.gids[3]);
        refused(format!("cannot be {}: {errno}", opening.access.describe()), &allowed, SAME_FILES)
    };
    match ProcPath::of(&opening.path) {
        ProcPath::Forbidden => {
            return Err(refused("of a process".into(), "what may be read of processes", SAME_FILES));
        }
        // The static part has made sure that the process is in the tree.
        ProcPath::Readable(pid) if pid != 1 => return Ok(()),
        ProcPath::Readable(_) | ProcPath::Other => {}
    }
    let root = target.root.as_fd();
    if matches!(opening.access, Access::Make | Access::Bind | Access::Remove) {
        return judge_directory(opening, root, target).map_err(cannot);
    }
    let fd = resolve(root, &opening.path).map_err(cannot)?;
    let stat = fstat(&fd).map_err(cannot)?;
    let kind = stat.st_mode & 0o170_000;
    if opening.kind.is_some_and(|then| then != kind) {
        let was = opening.kind.unwrap_or(0);
        return Err(refused(
            format!("kind {kind:o}, was {was:o} at the dump"),
            "the same kind of file",
            SAME_FILES,
        ));
    }
    judge_kind(&stat, target).map_err(|what| {
        refused(
            what,
            "the runtime's standard devices and those in the container's spec",
            "give the pod the device",
        )
    })?;
    let ask = match opening.access {
        Access::Read => Ask::READ_OK,
        Access::Write => Ask::WRITE_OK,
        Access::ReadWrite => Ask::READ_OK | Ask::WRITE_OK,
        Access::Execute => Ask::EXEC_OK,
        _ => return Ok(()),
    };
    allowed(&fd, ask).map_err(cannot)
}

/// Regular files, directories and fifos may be opened; of devices, only the container's own.
fn judge_kind(stat: &Stat, target: &Target) -> Result<(), String> {
    let (major, minor) = (major(stat.st_rdev), minor(stat.st_rdev));
    let listed = |block| target.devices.contains(&Device { block, major, minor });
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile | FileType::Directory | FileType::Fifo => Ok(()),
        FileType::CharacterDevice if STANDARD.contains(&(major, minor)) || listed(false) => Ok(()),
        FileType::BlockDevice if listed(true) => Ok(()),
        FileType::CharacterDevice => Err(format!("character device {major}:{minor}")),
        FileType::BlockDevice => Err(format!("block device {major}:{minor}")),
        kind => Err(format!("{kind:?}")),
    }
}

/// Whether a file may be made and removed at that path. Mode bits with the sticky one decide about removing.
fn judge_directory(opening: &Opening, root: BorrowedFd<'_>, target: &Target) -> Result<(), Errno> {
    let (parent, _) = opening.path.rsplit_once('/').ok_or(Errno::INVAL)?;
    let directory = resolve(root, if parent.is_empty() { "/" } else { parent })?;
    allowed(&directory, Ask::WRITE_OK | Ask::EXEC_OK)?;
    let there = match resolve(root, &opening.path) {
        Ok(fd) => fstat(&fd)?,
        Err(Errno::NOENT) if opening.access != Access::Remove => return Ok(()),
        Err(errno) => return Err(errno),
    };
    match (opening.access, FileType::from_raw_mode(there.st_mode)) {
        (Access::Remove, FileType::RegularFile) | (Access::Bind, FileType::Socket) => {}
        // A name that is taken: CRIU makes the file under another one beside it, and leaves this one alone.
        (Access::Make, _) => return Ok(()),
        _ => return Err(Errno::EXIST),
    }
    let directory = fstat(&directory)?;
    let own =
        [directory.st_uid, there.st_uid].contains(&target.uids[3]) || target.permitted.has(CapSet::FOWNER);
    if directory.st_mode & 0o1000 != 0 && !own { Err(Errno::PERM) } else { Ok(()) }
}

/// Without links: the kernel's names, which a dump records, have none.
fn resolve(root: BorrowedFd<'_>, path: &str) -> Result<OwnedFd, Errno> {
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    openat2(root, path, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty(), resolve)
}
