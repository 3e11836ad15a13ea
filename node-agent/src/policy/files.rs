//! Open files of every kind, and what files without a name are made from.

use std::collections::{HashMap, HashSet};

use woodfrog_criu::images::messages::file::{
    File, FileType, Fown, GhostFile, Inotify, RegFile, Remap, RemapType,
};
use woodfrog_criu::images::messages::misc::{MemfdInode, TtyInfo, TtyType};

use super::capability::CapSet;
use super::paths::{Access, Opening, ProcPath, check_form};
use super::requirement::{Need, Requirement};
use super::violation::{TAMPERED, process};
use super::{Rules, sockets, tasks};

/// Status flags that an open file can have and that CRIU may open it with: access mode, append, non-blocking,
/// (data-)synchronous, asynchronous, direct, large file, directory, no-follow, no access time, close-on-exec, path.
/// Not those that make or empty a file.
/// AArch64 permutes some of the numbers among themselves.
pub(super) const OPEN_FLAGS: u32 = 0x3f_fc03;
/// `__O_TMPFILE`, which CRIU ignores; a file opened so has no name and comes back as a ghost.
const O_TMPFILE: u32 = 0o20_000_000;

const S_IFMT: u32 = 0o170_000;
const S_IFREG: u32 = 0o100_000;
const S_IFDIR: u32 = 0o040_000;
const S_IFIFO: u32 = 0o010_000;
const SET_ID: u32 = 0o6_000;

const SUPPORTED: &str = "freeze the pod without this descriptor; it is not supported";

pub(super) fn judge(rules: &mut Rules<'_>) {
    let uses = Uses::of(rules);
    for file in rules.images.files.values() {
        let who = format!("file {:#x} ({})", file.id, rules.images.describe(file.id));
        if let Some(fown) = file.fown() {
            owner(rules, fown, &who);
        }
        one(rules, file, &who, &uses);
    }
    for remap in &rules.images.remaps {
        remapped(rules, remap);
    }
    for inode in &rules.images.memfds {
        memfd(rules, inode);
    }
    for tty in &rules.images.ttys {
        terminal(rules, tty);
    }
    descriptors(rules);
}

/// What regular files are there for, besides descriptors.
struct Uses {
    /// Executables, directories, link targets of remaps: judged for that.
    special: HashSet<u32>,
    /// Terminals, whose paths come to be at the restore.
    terminals: HashMap<u32, u32>,
    remapped: HashSet<u32>,
    descriptors: HashSet<u32>,
}

impl Uses {
    fn of(rules: &mut Rules<'_>) -> Self {
        let mut special = HashSet::new();
        for task in &rules.images.tasks {
            let Some(body) = &task.body else { continue };
            let who = process(task);
            let roles = [("exe", body.mm.exe_file_id), ("cwd", body.fs.cwd_id), ("root", body.fs.root_id)];
            for (role, id) in roles {
                special.insert(id);
                let Some(reg) = rules.images.files.get(&id).and_then(|file| file.reg.as_ref()) else {
                    continue;
                };
                rules.openings.push(Opening::file(id, reg, Access::Execute, format!("{role} of {who}")));
                if role == "root" && reg.name != "/" {
                    rules.requirements.push(Requirement {
                        who: who.clone(),
                        field: "root",
                        value: reg.name.clone(),
                        need: Need::Capability(CapSet::SYS_CHROOT),
                    });
                }
            }
        }
        let entries = rules.images.tables.values().flatten();
        let descriptors = entries.map(|entry| entry.id).collect();
        let remaps = &rules.images.remaps;
        special.extend(remaps.iter().filter(|remap| is_linked(remap)).map(|remap| remap.remap_id));
        let terminals = rules.images.files.values().filter_map(|file| {
            let tty = file.tty.as_ref()?;
            Some((tty.regf_id?, tty.tty_info_id))
        });
        Self {
            special,
            terminals: terminals.collect(),
            remapped: remaps.iter().map(|remap| remap.orig_id).collect(),
            descriptors,
        }
    }
}

fn one(rules: &mut Rules<'_>, file: &File, who: &str, uses: &Uses) {
    let mut need = |capability| {
        rules.requirements.push(Requirement {
            who: who.into(),
            field: "type",
            value: file.kind().name().into(),
            need: Need::Capability(capability),
        });
    };
    match file.kind() {
        FileType::Reg => regular(rules, file.id, file.reg.as_ref().expect("checked on reading"), who, uses),
        FileType::InetSk => sockets::inet(rules, file.isk.as_ref().expect("checked on reading"), who),
        FileType::UnixSk => sockets::unix(rules, file.usk.as_ref().expect("checked on reading"), who),
        FileType::NetlinkSk => sockets::netlink(rules, file.nlsk.as_ref().expect("checked on reading"), who),
        FileType::Inotify => inotify(rules, file.ify.as_ref().expect("checked on reading"), who),
        FileType::Timerfd => {
            let clock = file.tfd.as_ref().map_or(0, |timer| timer.clockid);
            tasks::clock(rules, who, "timerfd clockid", clock);
        }
        FileType::Memfd => {
            let memfd = file.memfd.as_ref().expect("checked on reading");
            flags(rules, memfd.flags, who, false);
            let known = rules.images.memfds.iter().any(|inode| inode.inode_id == u64::from(memfd.inode_id));
            rules.report.require(known, who, "inode_id", memfd.inode_id, "an entry of memfd.img", TAMPERED);
        }
        FileType::Pidfd => {
            let pid = file.pidfd.as_ref().map_or(0, |pidfd| pidfd.nspid);
            let own = u32::try_from(pid).is_ok_and(|pid| rules.is_process(pid));
            rules.report.require(own, who, "nspid", pid, "a process of the tree", SUPPORTED);
        }
        FileType::Fifo => {
            let regular =
                file.fifo.as_ref().and_then(|fifo| rules.images.files.get(&fifo.regf_id?)?.reg.as_ref());
            let value = regular.map_or("without a path", |reg| reg.name.as_str());
            rules.report.require(regular.is_some(), who, "regf_id", value, "a path in files.img", TAMPERED);
        }
        FileType::Tty => {
            let tty = file.tty.as_ref().expect("checked on reading");
            let known = rules.images.ttys.iter().any(|info| info.id == tty.tty_info_id);
            rules.report.require(
                known,
                who,
                "tty_info_id",
                tty.tty_info_id,
                "an entry of tty-info.img",
                TAMPERED,
            );
            let path = tty.regf_id.and_then(|id| rules.images.files.get(&id)?.reg.as_ref());
            rules.report.require(path.is_some(), who, "regf_id", "missing", "the terminal's path", TAMPERED);
        }
        FileType::PacketSk => need(CapSet::NET_RAW),
        // Pure kernel objects without a name.
        FileType::Pipe | FileType::Eventfd | FileType::Eventpoll | FileType::Signalfd => {}
        kind => rules.report.refuse(
            who,
            "type",
            kind.name(),
            "kinds of files that a container can make",
            SUPPORTED,
        ),
    }
}

fn regular(rules: &mut Rules<'_>, id: u32, reg: &RegFile, who: &str, uses: &Uses) {
    let well_formed = check_form(&mut rules.report, who, "name", &reg.name);
    rules.report.require(reg.ext != Some(true), who, "ext", "true", "no files from outside", SUPPORTED);
    let remapped = uses.remapped.contains(&id);
    flags(rules, reg.flags, who, remapped);
    if !well_formed {
        return;
    }
    if let ProcPath::Readable(pid) = ProcPath::of(&reg.name) {
        let own = pid == 1 || rules.ids.contains(&pid);
        rules.report.require(own, who, "name", &reg.name, "processes of the tree", SUPPORTED);
        let reads = matches!(Access::from_flags(reg.flags), Access::Read | Access::Lookup);
        rules.report.require(reads, who, "flags", "writing", "reading only, of a process's files", SUPPORTED);
    }
    if let Some(info) = uses.terminals.get(&id) {
        let tty = rules.images.ttys.iter().find(|tty| tty.id == *info);
        let slave = tty.and_then(|tty| tty.pty).map(|pty| format!("/dev/pts/{}", pty.index));
        let ok = ["/dev/ptmx", "/dev/pts/ptmx", "/dev/tty"].contains(&reg.name.as_str())
            || slave.as_deref() == Some(reg.name.as_str());
        return rules.report.require(
            ok,
            who,
            "name",
            &reg.name,
            "a pseudo terminal of its number",
            SUPPORTED,
        );
    }
    // Any file may be under way in a socket's queue, and is then opened like one with a descriptor.
    let opened = uses.descriptors.contains(&id) || !uses.special.contains(&id) || rules.images.socket_queues;
    if opened && !remapped {
        let opening = Opening::file(id, reg, Access::from_flags(reg.flags), "open".into());
        rules.openings.push(opening);
    }
}

fn flags(rules: &mut Rules<'_>, flags: u32, who: &str, unnamed: bool) {
    let known = if unnamed { OPEN_FLAGS | O_TMPFILE } else { OPEN_FLAGS };
    let ok = flags & !known == 0 && flags & 3 != 3;
    rules.report.require(ok, who, "flags", format!("{flags:#o}"), "flags of an open file", TAMPERED);
}

/// Who is signalled: a process or group of the tree, with ids that the container may have.
fn owner(rules: &mut Rules<'_>, fown: &Fown, who: &str) {
    rules.report.require(fown.signum <= 64, who, "fown signum", fown.signum, "a signal", TAMPERED);
    if fown.pid == 0 {
        return;
    }
    let groups = rules.images.tasks.iter().any(|task| task.entry.pgid == fown.pid);
    let own = rules.ids.contains(&fown.pid) || groups;
    rules.report.require(own, who, "fown pid", fown.pid, "a process or group of the tree", TAMPERED);
    rules.report.require(fown.pid_type <= 2, who, "fown pid_type", fown.pid_type, "0 to 2", TAMPERED);
    for (field, uid) in [("fown uid", fown.uid), ("fown euid", fown.euid)] {
        need_uid(rules, who, field, uid);
    }
}

fn inotify(rules: &mut Rules<'_>, inotify: &Inotify, who: &str) {
    for watch in &inotify.wd {
        // By its handle alone a file is found anywhere on its file system, past every directory's permissions.
        let Some(path) = &watch.f_handle.path else {
            let value = format!("watch {} without a path", watch.wd);
            rules.report.refuse(who, "f_handle", value, "watches by path", SUPPORTED);
            continue;
        };
        if check_form(&mut rules.report, who, "f_handle path", path) {
            let (path, who) = (path.clone(), format!("{who} watches it"));
            rules.openings.push(Opening { path, access: Access::Read, kind: None, who });
        }
    }
}

fn is_linked(remap: &Remap) -> bool {
    remap.remap_type == Some(RemapType::Linked as i32)
}

fn remapped(rules: &mut Rules<'_>, remap: &Remap) {
    let Some(reg) = rules.images.files.get(&remap.orig_id).and_then(|file| file.reg.as_ref()) else { return };
    let who = format!("deleted file {:#x} ({})", remap.orig_id, reg.name);
    let make = |path: &str, access| Opening { path: path.into(), access, kind: None, who: who.clone() };
    match remap.remap_type.map(RemapType::try_from) {
        Some(Ok(RemapType::Ghost)) => match rules.images.ghosts.get(&remap.remap_id) {
            Some(made) => {
                ghost(rules, made, &who);
                rules.openings.push(make(&reg.name, Access::Make));
            }
            None => {
                let value = format!("ghost {:#x}, which is missing", remap.remap_id);
                rules.report.refuse(&who, "remap_id", value, "a ghost file image", TAMPERED);
            }
        },
        Some(Ok(RemapType::Linked)) => {
            let link = rules.images.files.get(&remap.remap_id).and_then(|file| file.reg.as_ref());
            let name = link.map_or("", |link| link.name.as_str());
            // CRIU names its links so, and removes them: nothing else may be removed on its behalf.
            let is_link = name.rsplit_once('/').is_some_and(|(_, name)| name.starts_with("link_remap."));
            rules.report.require(is_link, &who, "remap_id", name, "a link that CRIU made", TAMPERED);
            if let Some(link) = link {
                rules.openings.push(Opening::file(
                    remap.remap_id,
                    link,
                    Access::from_flags(reg.flags),
                    who.clone(),
                ));
                rules.openings.push(make(name, Access::Remove));
                rules.openings.push(make(&reg.name, Access::Make));
            }
        }
        other => {
            let value = format!("{other:?}");
            rules.report.refuse(&who, "remap_type", value, "a ghost or a link", SUPPORTED);
        }
    }
}

/// CRIU makes the file as root with the mode and owner that the image says: devices among them.
fn ghost(rules: &mut Rules<'_>, ghost: &GhostFile, who: &str) {
    let kind = ghost.mode & S_IFMT;
    let known = matches!(kind, S_IFREG | S_IFDIR | S_IFIFO);
    let value = format!("{:o}", ghost.mode);
    rules.report.require(known, who, "mode", &value, "a regular file, directory or fifo", SUPPORTED);
    let plain = ghost.mode & SET_ID == 0 || kind == S_IFDIR;
    rules.report.require(plain, who, "mode", &value, "no set-user-id or set-group-id", SUPPORTED);
    need_uid(rules, who, "uid", ghost.uid);
    need_gid(rules, who, "gid", ghost.gid);
}

fn memfd(rules: &mut Rules<'_>, inode: &MemfdInode) {
    /// `F_SEAL_SEAL` to `F_SEAL_EXEC`.
    const SEALS: u32 = 0x3f;
    let who = format!("memfd {} ({})", inode.inode_id, inode.name);
    let mode = inode.mode.unwrap_or(0);
    let kind = mode & S_IFMT == S_IFREG || mode & S_IFMT == 0;
    let plain = kind && mode & SET_ID == 0;
    let allowed = "a regular file without set-user-id and set-group-id";
    rules.report.require(plain, &who, "mode", format!("{mode:o}"), allowed, SUPPORTED);
    let seals = format!("{:#x}", inode.seals);
    rules.report.require(
        inode.seals & !SEALS == 0,
        &who,
        "seals",
        seals,
        format!("bits of {SEALS:#x}"),
        SUPPORTED,
    );
    need_uid(rules, &who, "uid", inode.uid);
    need_gid(rules, &who, "gid", inode.gid);
}

fn terminal(rules: &mut Rules<'_>, tty: &TtyInfo) {
    let who = format!("terminal {}", tty.id);
    let kind = TtyType::try_from(tty.r#type).unwrap_or(TtyType::Unknown);
    let known = matches!(kind, TtyType::Pty | TtyType::Ctty);
    rules.report.require(known, &who, "type", format!("{kind:?}"), "pseudo terminals", SUPPORTED);
    for (field, id) in [("sid", tty.sid), ("pgrp", tty.pgrp)] {
        let own = id == 0 || rules.ids.contains(&id) || rules.images.tasks.iter().any(|t| t.entry.pgid == id);
        rules.report.require(own, &who, field, id, "a process of the tree", TAMPERED);
    }
    tty.uid.into_iter().for_each(|uid| need_uid(rules, &who, "uid", uid));
    // devpts gives terminals to the group of its mount (5 by convention), whoever opens them.
    tty.gid.into_iter().filter(|gid| *gid != 5).for_each(|gid| need_gid(rules, &who, "gid", gid));
}

fn descriptors(rules: &mut Rules<'_>) {
    for (id, table) in &rules.images.tables {
        let who = format!("descriptor table {id}");
        for entry in table {
            rules.report.require(
                entry.flags <= 1,
                &who,
                "flags",
                entry.flags,
                "close-on-exec or not",
                TAMPERED,
            );
        }
        if let Some(highest) = table.iter().map(|entry| entry.fd).max() {
            let (value, need) = (highest.to_string(), Need::Descriptor(highest));
            rules.requirements.push(Requirement { who, field: "fd", value, need });
        }
    }
}

pub(super) fn need_uid(rules: &mut Rules<'_>, who: &str, field: &'static str, uid: u32) {
    let (value, need) = (uid.to_string(), Need::Uid(uid));
    rules.requirements.push(Requirement { who: who.into(), field, value, need });
}

pub(super) fn need_gid(rules: &mut Rules<'_>, who: &str, field: &'static str, gid: u32) {
    let (value, need) = (gid.to_string(), Need::Gid(gid));
    rules.requirements.push(Requirement { who: who.into(), field, value, need });
}
