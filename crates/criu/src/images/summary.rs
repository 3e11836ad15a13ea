//! What a person or a preflight wants to know of a checkpoint: memory by kind, open files, sockets.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::address;
use super::checkpoint::Checkpoint;
use super::messages::file::FileType;
use super::messages::memory::{Vma, status};
use super::messages::socket::InetSk;
use super::task::Task;

/// Mapped and stored memory of a process, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MemoryByKind {
    /// Private anonymous memory that is mapped.
    pub anonymous: u64,
    /// Of it, heap (`brk`).
    pub heap: u64,
    /// Of it, stacks.
    pub stack: u64,
    /// Private mappings of files.
    pub file_private: u64,
    /// Shared mappings of files.
    pub file_shared: u64,
    /// Shared anonymous memory and memfds.
    pub shared: u64,
    /// What the kernel maps (vdso, vvar, vsyscall).
    pub kernel: u64,
    /// What the page file holds: private memory that was written to.
    pub stored: u64,
}

/// An open descriptor of a process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpenFile {
    /// Descriptor number.
    pub fd: u32,
    /// What it is.
    pub kind: FileType,
    /// Its path, address or name, as far as it has one.
    pub target: String,
}

/// A socket of the internet families.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Socket {
    /// Id of its entry in `files.img`.
    pub file_id: u32,
    /// `SOCK_STREAM` 1, `SOCK_DGRAM` 2, `SOCK_RAW` 3.
    pub kind: u32,
    /// `IPPROTO_TCP` 6, `IPPROTO_UDP` 17, …
    pub protocol: u32,
    /// What it does.
    pub state: SocketState,
    /// Where it is bound; port 0 when it is not.
    pub local: SocketAddr,
    /// Its peer, if it has one.
    pub peer: Option<SocketAddr>,
}

/// State of a socket, from the kernel's `TCP_*` numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SocketState {
    /// Accepts connections.
    Listening,
    /// Has a connection, or is closing one.
    Connected,
    /// Neither.
    Unconnected,
}

impl Checkpoint {
    /// Sockets of the internet families. Those of families other than IPv4 and IPv6 are left out.
    pub fn sockets(&self) -> impl Iterator<Item = Socket> {
        self.files.values().filter_map(|file| socket(file.isk.as_ref()?))
    }

    /// Descriptors of a process, by number.
    pub fn open_files(&self, task: &Task) -> Vec<OpenFile> {
        let table = task.body.as_ref().and_then(|body| self.tables.get(&body.ids.files_id));
        let mut open: Vec<OpenFile> = table
            .into_iter()
            .flatten()
            .map(|entry| OpenFile {
                fd: entry.fd,
                kind: FileType::try_from(entry.r#type).unwrap_or(FileType::Undefined),
                target: self.describe(entry.id),
            })
            .collect();
        open.sort_unstable_by_key(|file| file.fd);
        open
    }

    /// What the file with that id is, in words: a path, addresses, `pipe:[7]`.
    pub fn describe(&self, id: u32) -> String {
        let Some(file) = self.files.get(&id) else { return format!("file {id:#x}") };
        if let Some(reg) = &file.reg {
            let gone = self.remaps.iter().any(|remap| remap.orig_id == id);
            return if gone { format!("{} (deleted)", reg.name) } else { reg.name.clone() };
        }
        if let Some(pipe) = &file.pipe {
            return format!("pipe:[{}]", pipe.pipe_id);
        }
        if let Some(socket) = file.isk.as_ref().and_then(|isk| socket(isk)) {
            return match socket.peer {
                Some(peer) => format!("{} to {peer}", socket.local),
                None => socket.local.to_string(),
            };
        }
        if let Some(unix) = &file.usk {
            return unix_name(&unix.name);
        }
        if let Some(memfd) = &file.memfd {
            let inode = self.memfds.iter().find(|inode| inode.inode_id == u64::from(memfd.inode_id));
            return inode.map_or_else(String::new, |inode| format!("memfd:{}", inode.name));
        }
        if let Some(tty) = &file.tty {
            let regular = tty.regf_id.and_then(|id| self.files.get(&id)?.reg.as_ref());
            return regular.map_or_else(String::new, |reg| reg.name.clone());
        }
        file.kind().name().into()
    }

    /// Memory of a process by kind.
    pub fn memory(&self, task: &Task) -> MemoryByKind {
        let Some(body) = &task.body else { return MemoryByKind::default() };
        let mut memory = MemoryByKind { stored: body.pages.bytes(), ..MemoryByKind::default() };
        for vma in &body.mm.vmas {
            memory.add(vma);
        }
        memory
    }
}

impl MemoryByKind {
    fn add(&mut self, vma: &Vma) {
        let bytes = vma.end.saturating_sub(vma.start);
        let is = |bits: u32| vma.status & bits != 0;
        if is(status::VSYSCALL | status::VDSO | status::VVAR) {
            self.kernel += bytes;
        } else if is(status::ANON_SHARED | status::SYSVIPC | status::MEMFD) {
            self.shared += bytes;
        } else if is(status::FILE_SHARED) {
            self.file_shared += bytes;
        } else if is(status::FILE_PRIVATE) {
            self.file_private += bytes;
        } else if is(status::ANON_PRIVATE) {
            self.anonymous += bytes;
            self.heap += if is(status::HEAP) { bytes } else { 0 };
            self.stack += if is(status::STACK) { bytes } else { 0 };
        }
    }
}

fn socket(isk: &InetSk) -> Option<Socket> {
    let local =
        SocketAddr::new(address::decode(isk.family, &isk.src_addr)?, u16::try_from(isk.src_port).ok()?);
    let peer = address::decode(isk.family, &isk.dst_addr)
        .filter(|ip| isk.dst_port != 0 && *ip != unspecified(ip))
        .and_then(|ip| Some(SocketAddr::new(ip, u16::try_from(isk.dst_port).ok()?)));
    let state = match (isk.state, isk.r#type) {
        (10, _) => SocketState::Listening,
        (7, _) => SocketState::Unconnected,
        _ => SocketState::Connected,
    };
    Some(Socket { file_id: isk.id, kind: isk.r#type, protocol: isk.proto, state, local, peer })
}

fn unspecified(like: &IpAddr) -> IpAddr {
    match like {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    }
}

fn unix_name(name: &[u8]) -> String {
    match name.split_first() {
        None => "unnamed".into(),
        Some((0, rest)) => format!("@{}", String::from_utf8_lossy(rest).trim_end_matches('\0')),
        Some(_) => String::from_utf8_lossy(name).trim_end_matches('\0').to_owned(),
    }
}
