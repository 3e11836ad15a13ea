//! Edits of a checkpoint's image files: typed entries are changed in copies, and only changed files are written.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File as StdFile;
use std::io::Write;
use std::ops::Range;
use std::os::fd::AsFd;

use rustix::fs::{Mode, OFlags, openat};

use super::address::Rebind;
use super::checkpoint::{Checkpoint, PagesFile};
use super::error::ImageError;
use super::frame;
use super::in_place;
use super::messages::file::{Fdinfo, File};
use super::messages::memory::{Mm, Pagemap, PagemapHead};
use super::messages::misc::{Inventory, Seccomp, SeccompFilter};
use super::messages::task::Core;
use super::name::ImageName;
use super::sharing;
use super::unsharing::{self, Piece};

/// Linux's flag of open(2), the same on all architectures that CRIU knows but alpha, mips, parisc and sparc.
const O_APPEND: u32 = 0o2000;

/// Changed copies of a checkpoint's entries. The checkpoint itself stays as it was read.
#[derive(Debug)]
pub struct Rewrite<'a> {
    checkpoint: &'a Checkpoint,
    inventory: Option<Inventory>,
    cores: BTreeMap<u32, Core>,
    files: BTreeMap<u32, File>,
    tables: BTreeMap<u32, Vec<Fdinfo>>,
    seccomp: Option<Vec<SeccompFilter>>,
    mms: BTreeMap<u32, Mm>,
    added: Vec<File>,
    removed: BTreeSet<u32>,
    pagemaps: BTreeMap<u32, (PagemapHead, Vec<Pagemap>)>,
}

impl<'a> Rewrite<'a> {
    /// No change yet, but for what has been changed of the checkpoint since it was read.
    pub fn new(checkpoint: &'a Checkpoint) -> Self {
        let changed = checkpoint.changed.iter();
        let bodies = || changed.clone().filter_map(|pid| Some((*pid, checkpoint.task(*pid)?.body.as_ref()?)));
        let head = |pages: &PagesFile| PagemapHead { pages_id: pages.pages_id };
        Self {
            checkpoint,
            inventory: None,
            cores: BTreeMap::new(),
            files: BTreeMap::new(),
            tables: BTreeMap::new(),
            seccomp: None,
            mms: bodies().map(|(pid, body)| (pid, body.mm.clone())).collect(),
            added: Vec::new(),
            removed: BTreeSet::new(),
            pagemaps: bodies()
                .map(|(pid, body)| (pid, (head(&body.pages), body.pages.runs.clone())))
                .collect(),
        }
    }

    /// The inventory, to be edited.
    pub fn inventory(&mut self) -> &mut Inventory {
        self.inventory.get_or_insert_with(|| self.checkpoint.inventory.clone())
    }

    /// The core of a thread, to be edited; none if there is no such thread.
    pub fn core(&mut self, tid: u32) -> Option<&mut Core> {
        if !self.cores.contains_key(&tid) {
            let leader = self.checkpoint.task(tid).map(|task| &task.core);
            let thread = || {
                let mut threads = self.checkpoint.tasks.iter().flat_map(|task| &task.threads);
                threads.find(|thread| thread.tid == tid).map(|thread| &thread.core)
            };
            self.cores.insert(tid, leader.or_else(thread)?.clone());
        }
        self.cores.get_mut(&tid)
    }

    /// The entry of an open file, to be edited; none if there is no such file.
    pub fn file(&mut self, id: u32) -> Option<&mut File> {
        if !self.files.contains_key(&id) {
            self.files.insert(id, self.checkpoint.files.get(&id)?.clone());
        }
        self.files.get_mut(&id)
    }

    /// A descriptor table, to be edited; none if there is no such table.
    pub fn table(&mut self, files_id: u32) -> Option<&mut Vec<Fdinfo>> {
        if !self.tables.contains_key(&files_id) {
            self.tables.insert(files_id, self.checkpoint.tables.get(&files_id)?.clone());
        }
        self.tables.get_mut(&files_id)
    }

    /// The filters of `seccomp.img`, to be edited.
    pub fn seccomp(&mut self) -> &mut Vec<SeccompFilter> {
        self.seccomp.get_or_insert_with(|| self.checkpoint.seccomp.clone())
    }

    /// Makes the memory of a process that can be shared (`Body::sharable`) private mappings of a file, where a page's offset is its address.
    /// CRIU has to be handed that file: the key under which it asks for it. None if the process has no such memory.
    pub fn share(&mut self, pid: u32) -> Option<String> {
        let body = self.checkpoint.task(pid)?.body.as_ref()?;
        let starts: Vec<u64> = body.sharable().map(|vma| vma.start).collect();
        if starts.is_empty() {
            return None;
        }
        let ids = self.checkpoint.files.keys().chain(self.added.iter().map(|file| &file.id));
        let id = ids.max()?.checked_add(1)?;
        self.added.push(sharing::file(id, pid));
        sharing::share(self.mms.entry(pid).or_insert_with(|| body.mm.clone()), &starts, id);
        Some(sharing::key(pid))
    }

    /// Makes memory that was restored as shared ([`Rewrite::share`]) anonymous again in a dump of the process; `image` are the addresses,
    /// ascending, whose contents are still the shared file's. Of what its page file has to consist from then on; none if it shared nothing.
    ///
    /// `keys` are the names of the shared files in the dump, where they are external: `file[MOUNT:INODE]`.
    pub fn unshare(
        &mut self,
        pid: u32,
        keys: &BTreeSet<String>,
        image: &[Range<u64>],
    ) -> Option<(String, Vec<Piece>)> {
        let is_shared = |file: &&File| {
            file.reg.as_ref().is_some_and(|reg| reg.ext == Some(true) && keys.contains(&reg.name))
        };
        let ids: BTreeSet<u32> =
            self.checkpoint.files.values().filter(is_shared).map(|file| file.id).collect();
        let task = self.checkpoint.task(pid)?;
        let body = task.body.as_ref()?;
        let files = ids.iter().copied().map(u64::from).collect();
        if !body.mm.vmas.iter().any(|vma| unsharing::is_mapping(vma, &files)) {
            return None;
        }
        self.removed.extend(ids);
        let mm = self.mms.entry(pid).or_insert_with(|| body.mm.clone());
        let merged = unsharing::unshare(task, mm, &body.pages, &files, image);
        self.pagemaps.insert(pid, (PagemapHead { pages_id: body.pages.pages_id }, merged.runs));
        Some((body.pages.file_name(), merged.pieces))
    }

    /// Has CRIU make at once, and where they belong, all mappings that it reads nothing into when it restores with lazy pages. To be the last
    /// change of mappings and page maps.
    pub fn map_in_place(&mut self) {
        for task in &self.checkpoint.tasks {
            let Some(body) = &task.body else { continue };
            let mm = self.mms.entry(task.pid()).or_insert_with(|| body.mm.clone());
            let runs = self.pagemaps.get(&task.pid()).map_or(&body.pages.runs, |(_, runs)| runs);
            in_place::place(mm, runs);
        }
    }

    /// Lets files that are open for appending have another size than when they were dumped: CRIU compares.
    pub fn let_appended_files_grow(&mut self) {
        let files = self.checkpoint.files.values();
        let appended = files.filter(|file| file.reg.as_ref().is_some_and(|reg| reg.flags & O_APPEND != 0));
        let ids: Vec<u32> = appended.map(|file| file.id).collect();
        for id in ids {
            if let Some(reg) = self.file(id).and_then(|file| file.reg.as_mut()) {
                reg.size = None;
            }
        }
    }

    /// Moves all sockets that are bound to the old address. Tells how many.
    pub fn rebind(&mut self, rebind: Rebind) -> usize {
        let mut moved = 0;
        for file in self.checkpoint.files.values().filter(|file| file.isk.is_some()) {
            let mut copy = self.files.get(&file.id).unwrap_or(file).clone();
            if rebind.apply(&mut copy) {
                self.files.insert(file.id, copy);
                moved += 1;
            }
        }
        moved
    }

    /// Names and contents of the files that changed.
    pub fn changed(&self) -> Vec<(String, Vec<u8>)> {
        let mut changed = Vec::new();
        if let Some(inventory) = &self.inventory {
            changed.push(file_of(&ImageName::Inventory, [inventory]));
        }
        for (tid, core) in &self.cores {
            changed.push(file_of(&ImageName::Core(*tid), [core]));
        }
        if !self.files.is_empty() || !self.added.is_empty() || !self.removed.is_empty() {
            let current = |id: &u32| self.files.get(id).unwrap_or(&self.checkpoint.files[id]);
            let kept = self.checkpoint.file_order.iter().filter(|id| !self.removed.contains(id));
            let files = kept.map(current).chain(&self.added);
            changed.push(file_of(&ImageName::Files, files));
        }
        for (pid, mm) in &self.mms {
            changed.push(file_of(&ImageName::Mm(*pid), [mm]));
        }
        for (pid, (head, runs)) in &self.pagemaps {
            let (name, mut bytes) = file_of(&ImageName::Pagemap(*pid), [head]);
            runs.iter().for_each(|run| frame::push(&mut bytes, run));
            changed.push((name, bytes));
        }
        for (id, table) in &self.tables {
            changed.push(file_of(&ImageName::Fdinfo(*id), table));
        }
        if let Some(filters) = &self.seccomp {
            let all = Seccomp { seccomp_filters: filters.clone() };
            changed.push(file_of(&ImageName::Seccomp, [&all]));
        }
        changed
    }

    /// Writes the files that changed into a directory of the caller's, which must not hold them yet.
    ///
    /// # Errors
    /// When a file exists already or cannot be written.
    pub fn write_into(&self, scratch: impl AsFd) -> Result<(), ImageError> {
        for (name, bytes) in self.changed() {
            let failed =
                |source: std::io::Error| ImageError::Io { operation: "write", file: name.clone(), source };
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let fd = openat(&scratch, &name, flags, Mode::RUSR | Mode::WUSR)
                .map_err(|errno| failed(errno.into()))?;
            StdFile::from(fd).write_all(&bytes).map_err(failed)?;
        }
        Ok(())
    }
}

fn file_of<'m, M: prost::Message + 'm>(
    name: &ImageName,
    entries: impl IntoIterator<Item = &'m M>,
) -> (String, Vec<u8>) {
    let mut bytes = frame::begin(name);
    for entry in entries {
        frame::push(&mut bytes, entry);
    }
    (name.file_name(), bytes)
}
