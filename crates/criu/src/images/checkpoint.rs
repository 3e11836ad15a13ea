//! A whole checkpoint, read and cross-checked: what an image directory says, in types.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use prost::Message;

use super::PAGE_SIZE;
use super::archives;
use super::dir::ImageDir;
use super::error::ImageError;
use super::frame::Frames;
use super::messages::file::{Fdinfo, File, GhostFile, Remap};
use super::messages::memory::{Mm, Pagemap, PagemapHead};
use super::messages::misc::{FileLock, Inventory, MemfdInode, Seccomp, SeccompFilter, Timens, TtyInfo};
use super::messages::socket::TcpStreamEntry;
use super::messages::task::{Core, Fs, KobjIds, Pstree};
use super::name::ImageName;
use super::strict::decode;
use super::task::{Body, Task, TaskState, Thread};

/// Most bytes of image files, without memory, that one checkpoint may have.
const MAX_TOTAL: u64 = 128 << 20;
/// Most open files in one checkpoint.
const MAX_OPEN_FILES: usize = 200_000;
/// Bytes read of a file whose first entry alone matters.
const HEAD: u64 = 16 << 10;

/// A checkpoint's image files, decoded strictly and consistent with each other. Immutable: edits go through
/// [`Rewrite`](super::Rewrite), so one value can serve every thaw of an image.
#[derive(Debug)]
pub struct Checkpoint {
    /// `inventory.img`.
    pub inventory: Inventory,
    /// All processes; the first is the root of the tree.
    pub tasks: Vec<Task>,
    /// `files.img` by file id.
    pub files: BTreeMap<u32, File>,
    /// Descriptor tables by `files_id`.
    pub tables: BTreeMap<u32, Vec<Fdinfo>>,
    /// `seccomp.img`.
    pub seccomp: Vec<SeccompFilter>,
    /// `remap-fpath.img`.
    pub remaps: Vec<Remap>,
    /// Heads of `ghost-file-ID.img` by id.
    pub ghosts: BTreeMap<u32, GhostFile>,
    /// `memfd.img`: inodes of memfds and of shared anonymous memory.
    pub memfds: Vec<MemfdInode>,
    /// `tty-info.img`.
    pub ttys: Vec<TtyInfo>,
    /// `filelocks.img`.
    pub locks: Vec<FileLock>,
    /// Heads of `tcp-stream-INO.img`: connections that the dump kept.
    pub tcp_streams: Vec<TcpStream>,
    /// `timens-ID.img`, by id.
    pub timens: BTreeMap<u32, Timens>,
    /// Page maps of shared memory by shmid.
    pub shared_pages: BTreeMap<u64, PagesFile>,
    /// Queues of unix sockets were dumped: descriptors may be under way in them.
    pub socket_queues: bool,
    /// Names of files that are none of the kinds a dump in the container's own namespaces writes.
    pub unknown: Vec<String>,
    /// The order of `files.img`.
    pub(super) file_order: Vec<u32>,
    /// Processes whose mappings and page maps are other than in the files.
    pub(super) changed: BTreeSet<u32>,
}

/// A `pages-N.img`, as its page map describes it.
#[derive(Clone, Debug)]
pub struct PagesFile {
    /// N.
    pub pages_id: u32,
    /// Runs of pages in the order in which they lie in the file.
    pub runs: Vec<Pagemap>,
}

/// An established connection's saved state.
#[derive(Clone, Debug)]
pub struct TcpStream {
    /// Inode number of the socket, as in its `InetSk::ino`.
    pub ino: u32,
    /// Sequence numbers and sizes of its queues.
    pub entry: TcpStreamEntry,
}

impl Checkpoint {
    /// Reads and cross-checks the image files in `dir`. Files whose names are in `ours` are skipped.
    ///
    /// Page files are not looked at (they may lie in other directories): see [`Checkpoint::check_pages`].
    ///
    /// # Errors
    /// Whatever CRIU 4.2 would not have written, or this version does not understand, names file and entry.
    /// Files of unknown *names* are no error here: they are collected in [`Checkpoint::unknown`].
    pub fn open(dir: &ImageDir, ours: &[&str]) -> Result<Self, ImageError> {
        let mut names = BTreeSet::new();
        let mut unknown = Vec::new();
        let mut socket_queues = false;
        for name in dir.names()? {
            match ImageName::parse(&name) {
                _ if ours.contains(&name.as_str()) => {}
                ImageName::Unknown => unknown.push(name),
                ImageName::Data if name == "sk-queues.img" => socket_queues = true,
                ImageName::Data | ImageName::Ignored | ImageName::Pages(_) => {}
                kind => {
                    names.insert(kind);
                }
            }
        }
        let mut reader = Reader { dir, names, taken: BTreeSet::new(), read: 0 };
        let inventory: Inventory = reader.one(&ImageName::Inventory, "inventory_entry")?;
        let pstree: Vec<Pstree> = reader.all(&ImageName::Pstree, "pstree_entry")?;
        let tasks = pstree.into_iter().map(|entry| reader.task(entry)).collect::<Result<Vec<_>, _>>()?;
        check_tree(&tasks)?;
        let entries: Vec<File> = reader.all(&ImageName::Files, "file_entry")?;
        let file_order: Vec<u32> = entries.iter().map(|file| file.id).collect();
        let files = index_files(entries)?;
        let mut tables = BTreeMap::new();
        for id in tasks.iter().filter_map(|task| Some(task.body.as_ref()?.ids.files_id)) {
            if let std::collections::btree_map::Entry::Vacant(slot) = tables.entry(id) {
                slot.insert(reader.all::<Fdinfo>(&ImageName::Fdinfo(id), "fdinfo_entry")?);
            }
        }
        let seccomp = reader.optional::<Seccomp>(&ImageName::Seccomp, "seccomp_entry")?;
        let mut checkpoint = Self {
            inventory,
            tasks,
            files,
            tables,
            seccomp: seccomp.into_iter().next().unwrap_or_default().seccomp_filters,
            remaps: reader.optional(&ImageName::RemapFpath, "remap_file_path_entry")?,
            ghosts: BTreeMap::new(),
            memfds: reader.optional(&ImageName::Memfd, "memfd_inode_entry")?,
            ttys: reader.optional(&ImageName::TtyInfo, "tty_info_entry")?,
            locks: reader.optional(&ImageName::Filelocks, "file_lock_entry")?,
            tcp_streams: Vec::new(),
            timens: BTreeMap::new(),
            shared_pages: BTreeMap::new(),
            socket_queues,
            unknown,
            file_order,
            changed: BTreeSet::new(),
        };
        let left: Vec<ImageName> = reader.names.difference(&reader.taken).cloned().collect();
        for name in &left {
            reader.numbered(name, &mut checkpoint)?;
        }
        checkpoint.check_references()?;
        Ok(checkpoint)
    }

    /// The process with that pid.
    pub fn task(&self, pid: u32) -> Option<&Task> {
        self.tasks.iter().find(|task| task.pid() == pid)
    }

    /// All page files: of processes and of shared memory.
    pub fn pages(&self) -> impl Iterator<Item = &PagesFile> {
        let private = self.tasks.iter().filter_map(|task| Some(&task.body.as_ref()?.pages));
        private.chain(self.shared_pages.values())
    }

    /// Lets a JVM's archives of class data come late, whose pages are not lazy in a dump (see `archives.rs`).
    pub fn release_archives(&mut self) {
        for task in &mut self.tasks {
            let pid = task.pid();
            let Some(body) = &mut task.body else { continue };
            if archives::release(&mut body.mm, &mut body.pages.runs, &self.files) {
                self.changed.insert(pid);
            }
        }
    }

    /// Checks that each page file is in one of `dirs` and has the length that its page map says.
    ///
    /// # Errors
    /// A missing, shorter or longer file, by name.
    pub fn check_pages(&self, dirs: &[&ImageDir]) -> Result<(), ImageError> {
        for pages in self.pages() {
            let name = pages.file_name();
            let mut length = Err(ImageError::Missing { file: name.clone() });
            for dir in dirs {
                length = dir.length(&name);
                if !matches!(length, Err(ImageError::Missing { .. })) {
                    break;
                }
            }
            let (length, expected) = (length?, pages.bytes());
            if length != expected {
                let reason = format!("has {length} bytes of memory where its page map describes {expected}");
                return Err(ImageError::inconsistent(name, reason));
            }
        }
        Ok(())
    }

    /// Descriptors, mappings, directories, remaps and memfds refer to entries that exist and are of the right kind.
    fn check_references(&self) -> Result<(), ImageError> {
        for (table, entries) in &self.tables {
            let name = ImageName::Fdinfo(*table).file_name();
            let mut seen = HashSet::new();
            for entry in entries {
                if !seen.insert(entry.fd) {
                    return Err(ImageError::inconsistent(
                        name,
                        format!("descriptor {} is there twice", entry.fd),
                    ));
                }
                if self.files.get(&entry.id).is_none_or(|file| file.r#type != entry.r#type) {
                    let reason = format!(
                        "descriptor {} is file {:#x}, which files.img does not hold as such",
                        entry.fd, entry.id
                    );
                    return Err(ImageError::inconsistent(name, reason));
                }
            }
        }
        let regular = |id: u32| self.files.get(&id).is_some_and(|file| file.reg.is_some());
        for task in &self.tasks {
            let Some(body) = &task.body else { continue };
            for (what, id) in
                [("exe", body.mm.exe_file_id), ("cwd", body.fs.cwd_id), ("root", body.fs.root_id)]
            {
                if !regular(id) {
                    let reason =
                        format!("{what} of process {} is file {id:#x}, which is no regular file", task.pid());
                    return Err(ImageError::inconsistent("files.img", reason));
                }
            }
        }
        let mut remapped = HashSet::new();
        for remap in &self.remaps {
            if !regular(remap.orig_id) || !remapped.insert(remap.orig_id) {
                let reason = format!("file {:#x} is no regular file, or is remapped twice", remap.orig_id);
                return Err(ImageError::inconsistent("remap-fpath.img", reason));
            }
        }
        let mut page_ids = HashSet::new();
        for pages in self.pages() {
            if !page_ids.insert(pages.pages_id) {
                return Err(ImageError::inconsistent(pages.file_name(), "two page maps describe it"));
            }
        }
        Ok(())
    }
}

impl PagesFile {
    /// Name of the file.
    pub fn file_name(&self) -> String {
        ImageName::Pages(self.pages_id).file_name()
    }

    /// Length of the file, in bytes.
    pub fn bytes(&self) -> u64 {
        self.runs.iter().map(|run| run.pages() * PAGE_SIZE).sum()
    }
}

/// Reads each file once, and keeps count.
struct Reader<'a> {
    dir: &'a ImageDir,
    names: BTreeSet<ImageName>,
    taken: BTreeSet<ImageName>,
    read: u64,
}

impl Reader<'_> {
    fn bytes(&mut self, name: &ImageName, head: bool) -> Result<Vec<u8>, ImageError> {
        let file = name.file_name();
        if !self.names.contains(name) {
            return Err(ImageError::Missing { file });
        }
        self.taken.insert(name.clone());
        let (_, limit) = name.format().expect("only files of entries are read");
        let bytes = if head { self.dir.read_head(&file, HEAD)? } else { self.dir.read(&file, limit)? };
        self.read += bytes.len() as u64;
        if self.read > MAX_TOTAL {
            return Err(ImageError::TooLarge { file, bytes: self.read, limit: MAX_TOTAL });
        }
        Ok(bytes)
    }

    fn all<M: Message + Default>(
        &mut self,
        name: &ImageName,
        kind: &'static str,
    ) -> Result<Vec<M>, ImageError> {
        let bytes = self.bytes(name, false)?;
        entries(&name.file_name(), name, &bytes, kind)
    }

    fn optional<M: Message + Default>(
        &mut self,
        name: &ImageName,
        kind: &'static str,
    ) -> Result<Vec<M>, ImageError> {
        if self.names.contains(name) { self.all(name, kind) } else { Ok(Vec::new()) }
    }

    fn one<M: Message + Default>(&mut self, name: &ImageName, kind: &'static str) -> Result<M, ImageError> {
        let mut entries = self.all(name, kind)?;
        match (entries.pop(), entries.is_empty()) {
            (Some(entry), true) => Ok(entry),
            _ => Err(ImageError::inconsistent(name.file_name(), "holds not exactly one entry")),
        }
    }

    /// The first entry of a file that goes on with raw data.
    fn head<M: Message + Default>(&mut self, name: &ImageName, kind: &'static str) -> Result<M, ImageError> {
        let bytes = self.bytes(name, true)?;
        let file = name.file_name();
        let mut frames = Frames::new(&file, name, &bytes)?;
        let (entry, bytes) = frames.next_entry()?.ok_or_else(|| ImageError::Truncated {
            file: file.clone(),
            entry: 0,
            offset: bytes.len(),
        })?;
        decode(&file, entry, kind, bytes)
    }

    fn pages(&mut self, name: &ImageName) -> Result<PagesFile, ImageError> {
        let bytes = self.bytes(name, false)?;
        let file = name.file_name();
        let mut frames = Frames::new(&file, name, &bytes)?;
        let (_, head) = frames.next_entry()?.ok_or_else(|| ImageError::Truncated {
            file: file.clone(),
            entry: 0,
            offset: bytes.len(),
        })?;
        let head: PagemapHead = decode(&file, 0, "pagemap_head", head)?;
        let runs: Vec<Pagemap> = rest(&mut frames, "pagemap_entry")?;
        check_runs(&file, &runs)?;
        Ok(PagesFile { pages_id: head.pages_id, runs })
    }

    fn task(&mut self, entry: Pstree) -> Result<Task, ImageError> {
        let pid = entry.pid;
        let broken = |reason: &str| ImageError::inconsistent(ImageName::Core(pid).file_name(), reason);
        let core: Core = self.one(&ImageName::Core(pid), "core_entry")?;
        let Some(tc) = &core.tc else { return Err(broken("has no task core")) };
        let Some(state) = TaskState::from_image(tc.task_state) else {
            return Err(broken(&format!("task_state is {}, which no dumped process has", tc.task_state)));
        };
        if state == TaskState::Dead {
            // CRIU fills in no thread of a zombie, and reads none: its id is its own.
            let threads = entry.threads.iter().filter(|tid| ![0, pid].contains(tid)).count();
            if threads > 0 || entry.threads.len() > 1 || core.thread_core.is_some() {
                return Err(broken("is a zombie with threads"));
            }
            let entry = Pstree { threads: vec![pid], ..entry };
            return Ok(Task { entry, state, core, threads: Vec::new(), body: None });
        }
        if entry.threads.first() != Some(&pid) {
            return Err(ImageError::inconsistent(
                "pstree.img",
                format!("process {pid} is not its own first thread"),
            ));
        }
        if core.thread_core.is_none() {
            return Err(broken("has no thread core"));
        }
        let mut threads = Vec::with_capacity(entry.threads.len());
        for tid in &entry.threads[1..] {
            let core: Core = self.one(&ImageName::Core(*tid), "core_entry")?;
            if core.thread_core.is_none() || core.tc.is_some() || core.ids.is_some() {
                let name = ImageName::Core(*tid).file_name();
                return Err(ImageError::inconsistent(name, "is not the core of a thread"));
            }
            threads.push(Thread { tid: *tid, core });
        }
        let body = Body {
            ids: self.one::<KobjIds>(&ImageName::Ids(pid), "task_kobj_ids_entry")?,
            mm: self.one::<Mm>(&ImageName::Mm(pid), "mm_entry")?,
            fs: self.one::<Fs>(&ImageName::Fs(pid), "fs_entry")?,
            pages: self.pages(&ImageName::Pagemap(pid))?,
        };
        Ok(Task { entry, state, core, threads, body: Some(body) })
    }

    /// A file that is there whether or not anything referred to it.
    fn numbered(&mut self, name: &ImageName, to: &mut Checkpoint) -> Result<(), ImageError> {
        match name {
            ImageName::GhostFile(id) => {
                to.ghosts.insert(*id, self.head(name, "ghost_file_entry")?);
            }
            ImageName::TcpStream(ino) => {
                to.tcp_streams.push(TcpStream { ino: *ino, entry: self.head(name, "tcp_stream_entry")? });
            }
            ImageName::Timens(id) => {
                to.timens.insert(*id, self.one(name, "timens_entry")?);
            }
            ImageName::PagemapShmem(id) => {
                to.shared_pages.insert(*id, self.pages(name)?);
            }
            _ => {
                let reason = "belongs to no process of the tree";
                return Err(ImageError::inconsistent(name.file_name(), reason));
            }
        }
        Ok(())
    }
}

fn entries<M: Message + Default>(
    file: &str,
    name: &ImageName,
    bytes: &[u8],
    kind: &'static str,
) -> Result<Vec<M>, ImageError> {
    rest(&mut Frames::new(file, name, bytes)?, kind)
}

fn rest<M: Message + Default>(frames: &mut Frames<'_>, kind: &'static str) -> Result<Vec<M>, ImageError> {
    let mut entries = Vec::new();
    while let Some((number, bytes)) = frames.next_entry()? {
        entries.push(decode(frames.file(), number, kind, bytes)?);
    }
    Ok(entries)
}

/// Runs are present, ordered, do not overlap and do not overflow.
fn check_runs(file: &str, runs: &[Pagemap]) -> Result<(), ImageError> {
    let mut end = 0u64;
    let mut total = 0u64;
    for run in runs {
        let bad = |reason: &str| {
            ImageError::inconsistent(file, format!("the run of pages at {:#x} {reason}", run.vaddr))
        };
        let flags = run.flags.unwrap_or(0);
        if flags & Pagemap::PARENT != 0 || run.in_parent == Some(true) {
            return Err(bad("is in a parent checkpoint, which is not supported"));
        }
        if flags & Pagemap::PRESENT == 0 || flags & !(Pagemap::PRESENT | Pagemap::LAZY) != 0 {
            return Err(bad(&format!("has unknown flags {flags:#x}")));
        }
        let length = run.pages().checked_mul(PAGE_SIZE).filter(|length| *length > 0);
        let next = length.and_then(|length| run.vaddr.checked_add(length));
        let (Some(length), Some(next)) = (length, next) else { return Err(bad("is empty or too long")) };
        if run.vaddr % PAGE_SIZE != 0 || run.vaddr < end {
            return Err(bad("is not aligned, or lies before the one that precedes it"));
        }
        total = total.checked_add(length).ok_or_else(|| bad("is too long"))?;
        end = next;
    }
    Ok(())
}

/// One root, parents before children, all ids of processes and threads different.
fn check_tree(tasks: &[Task]) -> Result<(), ImageError> {
    let mut ids = BTreeSet::new();
    let mut pids = HashSet::new();
    for (number, task) in tasks.iter().enumerate() {
        let bad =
            |reason: &str| ImageError::inconsistent("pstree.img", format!("process {} {reason}", task.pid()));
        if (number == 0) != (task.entry.ppid == 0) {
            return Err(bad("is a second root, or the first has a parent"));
        }
        if number > 0 && !pids.contains(&task.entry.ppid) {
            return Err(bad("comes before its parent, or has none in the tree"));
        }
        pids.insert(task.pid());
        for tid in &task.entry.threads {
            if !ids.insert(*tid) {
                return Err(bad(&format!("has id {tid}, which another process or thread has too")));
            }
        }
    }
    if tasks.is_empty() {
        return Err(ImageError::inconsistent("pstree.img", "holds no process"));
    }
    Ok(())
}

fn index_files(entries: Vec<File>) -> Result<BTreeMap<u32, File>, ImageError> {
    if entries.len() > MAX_OPEN_FILES {
        return Err(ImageError::TooMany { what: "open files in files.img".into(), limit: MAX_OPEN_FILES });
    }
    let mut files = BTreeMap::new();
    for (number, file) in entries.into_iter().enumerate() {
        let id = file.id;
        if !file.is_consistent() {
            let reason = format!(
                "entry {number} (file {id:#x}) is of unknown type {}, or is not what it says it is",
                file.r#type
            );
            return Err(ImageError::inconsistent("files.img", reason));
        }
        if files.insert(id, file).is_some() {
            return Err(ImageError::inconsistent("files.img", format!("file {id:#x} is there twice")));
        }
    }
    Ok(files)
}
