//! The process tree of an application, read from /proc: what a freeze would have to dump.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use procfs::ProcError;
use procfs::net::TcpState;
use procfs::process::{FDTarget, MMapPath, Process as Proc};

use super::unix;

/// A process tree and what it has open.
#[derive(Clone, Debug, Default)]
pub struct Tree {
    /// The root first, children after their parents.
    pub processes: Vec<Process>,
    /// TCP connections that the tree has open.
    pub connections: Vec<Connection>,
    /// Addresses on which the tree listens.
    pub listeners: Vec<SocketAddr>,
    /// Inodes of unix sockets of the tree whose other end is not the tree's.
    pub strangers: BTreeSet<u64>,
}

/// A process of a [`Tree`].
#[derive(Clone, Debug, Default)]
pub struct Process {
    /// On the host.
    pub pid: i32,
    /// Inside the container.
    pub inner_pid: i32,
    /// Its real user and group.
    pub ids: (u32, u32),
    /// The kernel's name of it, at most 15 bytes.
    pub name: String,
    /// What it has open.
    pub files: Vec<OpenFile>,
    /// Files that it has mapped.
    pub mapped: BTreeSet<PathBuf>,
    /// Files of the kernel or a device that it has mapped, and System V shared memory.
    pub odd_maps: BTreeSet<String>,
    /// Its namespaces: kind → inode.
    pub namespaces: BTreeMap<String, u64>,
    /// Resident memory in bytes.
    pub resident_bytes: u64,
}

/// An open file of a [`Process`].
#[derive(Clone, Debug)]
pub struct OpenFile {
    /// Descriptor number.
    pub fd: i32,
    /// What it is.
    pub kind: FileKind,
}

/// What an open file is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FileKind {
    /// A regular file or a directory that is still there.
    Path(PathBuf),
    /// A file that has been unlinked, with its size in bytes.
    Deleted(PathBuf, u64),
    /// A device file.
    Device(PathBuf),
    /// A socket, by inode.
    Socket(u64),
    /// A pipe, memfd or the like, which CRIU carries.
    Plain,
    /// `anon_inode:[KIND]`.
    Anon(String),
    /// Something else, as /proc names it.
    Other(String),
}

/// A TCP connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Connection {
    /// Our end.
    pub local: SocketAddr,
    /// The other end.
    pub remote: SocketAddr,
}

/// The application below a container's init, from /proc.
///
/// # Errors
/// The init or the application has ended.
pub fn read(init: i32, application: i32) -> Result<Tree, ProcError> {
    let root = root(init, application)?;
    let mut tree = Tree::default();
    let mut open = vec![root];
    while let Some(pid) = open.pop() {
        // A child that ends meanwhile is no part of the tree.
        match process(pid) {
            Ok((process, below)) => {
                tree.processes.push(process);
                open.extend(below);
            }
            Err(e) if pid == root => return Err(e),
            Err(_) => {}
        }
    }
    sockets(&mut tree, root)?;
    // Without the answer a dump still finds out by itself.
    tree.strangers = unix::peers(root)
        .unwrap_or_default()
        .into_iter()
        .filter(|(socket, peer)| tree.has_socket(*socket) && !tree.has_socket(*peer))
        .map(|(socket, _)| socket)
        .collect();
    Ok(tree)
}

/// Only which processes there are, in the same order: far cheaper.
///
/// # Errors
/// As [`read`].
pub fn pids(init: i32, application: i32) -> Result<Vec<i32>, ProcError> {
    let mut open = vec![root(init, application)?];
    let mut found = Vec::new();
    while let Some(pid) = open.pop() {
        found.push(pid);
        open.extend(Proc::new(pid).and_then(|proc| children(&proc)).unwrap_or_default());
    }
    Ok(found)
}

/// Resident memory of a process in bytes.
///
/// # Errors
/// It has ended.
pub fn resident_bytes(pid: i32) -> Result<u64, ProcError> {
    Ok(Proc::new(pid)?.statm()?.resident * procfs::page_size())
}

/// Inodes of the sockets that a process has open.
///
/// # Errors
/// It has ended.
pub fn open_sockets(pid: i32) -> Result<BTreeSet<u64>, ProcError> {
    let targets = Proc::new(pid)?.fd()?.flatten().map(|fd| fd.target);
    Ok(targets
        .filter_map(|target| if let FDTarget::Socket(inode) = target { Some(inode) } else { None })
        .collect())
}

fn root(init: i32, application: i32) -> Result<i32, ProcError> {
    children(&Proc::new(init)?)?
        .into_iter()
        .find(|child| super::link::innermost_pid(*child) == Some(application))
        .ok_or_else(|| ProcError::NotFound(Some(format!("/proc/{init}/task/{init}/children").into())))
}

fn process(pid: i32) -> Result<(Process, Vec<i32>), ProcError> {
    let proc = Proc::new(pid)?;
    let below = children(&proc)?;
    let status = proc.status()?;
    let mut process = Process {
        pid,
        inner_pid: super::link::innermost_pid(pid).unwrap_or(0),
        ids: (status.ruid, status.rgid),
        name: status.name,
        resident_bytes: resident_bytes(pid)?,
        ..Process::default()
    };
    for fd in proc.fd()?.flatten() {
        process.files.push(OpenFile { fd: fd.fd, kind: kind(pid, fd.fd, fd.target) });
    }
    for map in proc.maps()? {
        match map.pathname {
            MMapPath::Path(path) if path.starts_with("/dev") && !is_memory_file(&path) => {
                process.odd_maps.insert(path.display().to_string());
            }
            MMapPath::Path(path) => {
                process.mapped.insert(path);
            }
            MMapPath::Vsys(key) => {
                process.odd_maps.insert(format!("/SYSV{key:08x}"));
            }
            MMapPath::Other(name) if name.starts_with("anon_inode") => {
                process.odd_maps.insert(name);
            }
            _ => {}
        }
    }
    for (kind, namespace) in proc.namespaces()?.0 {
        process.namespaces.insert(kind.to_string_lossy().into_owned(), namespace.identifier);
    }
    Ok((process, below))
}

fn is_memory_file(path: &Path) -> bool {
    // The second is how the kernel names anonymous memory that is shared.
    path.starts_with("/dev/shm")
        || ["/dev/zero", "/dev/zero (deleted)"].iter().any(|zero| path == Path::new(zero))
}

fn kind(pid: i32, fd: i32, target: FDTarget) -> FileKind {
    match target {
        FDTarget::Socket(inode) => FileKind::Socket(inode),
        FDTarget::Pipe(_) | FDTarget::MemFD(_) => FileKind::Plain,
        FDTarget::AnonInode(kind) => FileKind::Anon(kind.trim_matches(['[', ']']).to_owned()),
        FDTarget::Path(path) => {
            // Through the descriptor: the path is one of the container's mount namespace, and may be gone.
            let Ok(meta) = std::fs::metadata(format!("/proc/{pid}/fd/{fd}")) else {
                return FileKind::Path(path);
            };
            let kind = meta.file_type();
            if kind.is_char_device() || kind.is_block_device() {
                FileKind::Device(path)
            } else if meta.nlink() == 0 {
                FileKind::Deleted(path, meta.size())
            } else {
                FileKind::Path(path)
            }
        }
        FDTarget::Net(_) => FileKind::Other("net namespace".into()),
        FDTarget::Other(name, _) => FileKind::Other(name),
        FDTarget::Unknown(name, _) => FileKind::Other(name),
    }
}

/// Children of all threads of a process.
fn children(proc: &Proc) -> Result<Vec<i32>, ProcError> {
    let mut all = Vec::new();
    for task in proc.tasks()?.flatten() {
        all.extend(task.children()?.into_iter().map(|pid| pid as i32));
    }
    Ok(all)
}

fn sockets(tree: &mut Tree, root: i32) -> Result<(), ProcError> {
    let ours: BTreeSet<u64> =
        tree.processes.iter().flat_map(|p| &p.files).filter_map(OpenFile::socket).collect();
    let proc = Proc::new(root)?;
    for entry in proc.tcp()?.into_iter().chain(proc.tcp6().unwrap_or_default()) {
        if !ours.contains(&entry.inode) {
            continue;
        }
        match entry.state {
            TcpState::Listen => tree.listeners.push(entry.local_address),
            TcpState::Close => {}
            _ => {
                tree.connections.push(Connection { local: entry.local_address, remote: entry.remote_address })
            }
        }
    }
    Ok(())
}

impl Tree {
    fn has_socket(&self, inode: u64) -> bool {
        self.processes.iter().flat_map(|p| &p.files).any(|file| file.kind == FileKind::Socket(inode))
    }
}

impl OpenFile {
    /// Whether it is one of these sockets.
    pub fn is_among(&self, sockets: &BTreeSet<u64>) -> bool {
        self.socket().is_some_and(|inode| sockets.contains(&inode))
    }

    fn socket(&self) -> Option<u64> {
        match self.kind {
            FileKind::Socket(inode) => Some(inode),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_no_device_also_where_it_is_shared() {
        for memory in ["/dev/zero", "/dev/zero (deleted)", "/dev/shm/a", "/dev/shm/a (deleted)"] {
            assert!(is_memory_file(Path::new(memory)), "{memory}");
        }
        for device in ["/dev/mem", "/dev/zero0", "/dev/nvidia0 (deleted)"] {
            assert!(!is_memory_file(Path::new(device)), "{device}");
        }
    }
}
