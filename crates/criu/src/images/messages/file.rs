//! Open files: `files.img`, `fdinfo-N.img`, and what regular files may be remapped to.

use super::socket::{InetSk, NetlinkSk, UnixSk};

/// What a descriptor is, by CRIU's number (`fd_types`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum FileType {
    Undefined = 0,
    Reg = 1,
    Pipe = 2,
    Fifo = 3,
    InetSk = 4,
    UnixSk = 5,
    Eventfd = 6,
    Eventpoll = 7,
    Inotify = 8,
    Signalfd = 9,
    PacketSk = 10,
    Tty = 11,
    Fanotify = 12,
    NetlinkSk = 13,
    Ns = 14,
    Tun = 15,
    Ext = 16,
    Timerfd = 17,
    Memfd = 18,
    BpfMap = 19,
    Pidfd = 20,
}

impl FileType {
    /// The name a person would use.
    pub fn name(self) -> &'static str {
        match self {
            Self::Undefined => "undefined",
            Self::Reg => "file",
            Self::Pipe => "pipe",
            Self::Fifo => "fifo",
            Self::InetSk => "inet socket",
            Self::UnixSk => "unix socket",
            Self::Eventfd => "eventfd",
            Self::Eventpoll => "eventpoll",
            Self::Inotify => "inotify",
            Self::Signalfd => "signalfd",
            Self::PacketSk => "packet socket",
            Self::Tty => "terminal",
            Self::Fanotify => "fanotify",
            Self::NetlinkSk => "netlink socket",
            Self::Ns => "namespace",
            Self::Tun => "tun device",
            Self::Ext => "external file",
            Self::Timerfd => "timerfd",
            Self::Memfd => "memfd",
            Self::BpfMap => "bpf map",
            Self::Pidfd => "pidfd",
        }
    }
}

/// `fdinfo-N.img`: an entry of a descriptor table.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Fdinfo {
    #[prost(uint32, required, tag = "1")]
    pub id: u32,
    #[prost(uint32, required, tag = "2")]
    pub flags: u32,
    #[prost(enumeration = "FileType", required, tag = "3")]
    pub r#type: i32,
    #[prost(uint32, required, tag = "4")]
    pub fd: u32,
    #[prost(string, optional, tag = "5")]
    pub xattr_security_selinux: Option<String>,
}

/// `files.img`: an open file, with the one member set that its type asks for. Kinds that no thaw allows are opaque.
#[derive(Clone, PartialEq, prost::Message)]
pub struct File {
    #[prost(enumeration = "FileType", required, tag = "1")]
    pub r#type: i32,
    #[prost(uint32, required, tag = "2")]
    pub id: u32,
    #[prost(message, optional, boxed, tag = "3")]
    pub reg: Option<Box<RegFile>>,
    #[prost(message, optional, boxed, tag = "4")]
    pub isk: Option<Box<InetSk>>,
    #[prost(bytes = "vec", optional, tag = "5")]
    pub nsf: Option<Vec<u8>>,
    #[prost(bytes = "vec", optional, tag = "6")]
    pub psk: Option<Vec<u8>>,
    #[prost(message, optional, boxed, tag = "7")]
    pub nlsk: Option<Box<NetlinkSk>>,
    #[prost(message, optional, boxed, tag = "8")]
    pub efd: Option<Box<Eventfd>>,
    #[prost(message, optional, boxed, tag = "9")]
    pub epfd: Option<Box<Eventpoll>>,
    #[prost(message, optional, boxed, tag = "10")]
    pub sgfd: Option<Box<Signalfd>>,
    #[prost(bytes = "vec", optional, tag = "11")]
    pub tunf: Option<Vec<u8>>,
    #[prost(message, optional, boxed, tag = "12")]
    pub tfd: Option<Box<Timerfd>>,
    #[prost(message, optional, boxed, tag = "13")]
    pub ify: Option<Box<Inotify>>,
    #[prost(bytes = "vec", optional, tag = "14")]
    pub ffy: Option<Vec<u8>>,
    #[prost(bytes = "vec", optional, tag = "15")]
    pub ext: Option<Vec<u8>>,
    #[prost(message, optional, boxed, tag = "16")]
    pub usk: Option<Box<UnixSk>>,
    #[prost(message, optional, boxed, tag = "17")]
    pub fifo: Option<Box<Fifo>>,
    #[prost(message, optional, boxed, tag = "18")]
    pub pipe: Option<Box<Pipe>>,
    #[prost(message, optional, boxed, tag = "19")]
    pub tty: Option<Box<TtyFile>>,
    #[prost(message, optional, boxed, tag = "20")]
    pub memfd: Option<Box<Memfd>>,
    #[prost(bytes = "vec", optional, tag = "21")]
    pub bpf: Option<Vec<u8>>,
    #[prost(message, optional, boxed, tag = "22")]
    pub pidfd: Option<Box<Pidfd>>,
}

impl File {
    /// Its type.
    pub fn kind(&self) -> FileType {
        FileType::try_from(self.r#type).unwrap_or(FileType::Undefined)
    }

    /// Exactly the member that the type asks for is set, and its own id, where it has one, is the entry's.
    pub(crate) fn is_consistent(&self) -> bool {
        let members = [
            (FileType::Reg, self.reg.as_ref().map(|e| e.id)),
            (FileType::InetSk, self.isk.as_ref().map(|e| e.id)),
            (FileType::Ns, self.nsf.as_ref().map(|_| self.id)),
            (FileType::PacketSk, self.psk.as_ref().map(|_| self.id)),
            (FileType::NetlinkSk, self.nlsk.as_ref().map(|e| e.id)),
            (FileType::Eventfd, self.efd.as_ref().map(|e| e.id)),
            (FileType::Eventpoll, self.epfd.as_ref().map(|e| e.id)),
            (FileType::Signalfd, self.sgfd.as_ref().map(|e| e.id)),
            (FileType::Tun, self.tunf.as_ref().map(|_| self.id)),
            (FileType::Timerfd, self.tfd.as_ref().map(|e| e.id)),
            (FileType::Inotify, self.ify.as_ref().map(|e| e.id)),
            (FileType::Fanotify, self.ffy.as_ref().map(|_| self.id)),
            (FileType::Ext, self.ext.as_ref().map(|_| self.id)),
            (FileType::UnixSk, self.usk.as_ref().map(|e| e.id)),
            (FileType::Fifo, self.fifo.as_ref().map(|e| e.id)),
            (FileType::Pipe, self.pipe.as_ref().map(|e| e.id)),
            (FileType::Tty, self.tty.as_ref().map(|e| e.id)),
            (FileType::Memfd, self.memfd.as_ref().map(|e| e.id)),
            (FileType::BpfMap, self.bpf.as_ref().map(|_| self.id)),
            (FileType::Pidfd, self.pidfd.as_ref().map(|e| e.id)),
        ];
        members
            .iter()
            .all(|(kind, id)| if *kind as i32 == self.r#type { *id == Some(self.id) } else { id.is_none() })
            && members.iter().any(|(kind, _)| *kind as i32 == self.r#type)
    }

    /// The owner to be signalled, for the kinds that have one.
    pub fn fown(&self) -> Option<&Fown> {
        None.or(self.reg.as_ref().map(|e| &e.fown))
            .or(self.isk.as_ref().map(|e| &e.fown))
            .or(self.nlsk.as_ref().map(|e| &e.fown))
            .or(self.efd.as_ref().map(|e| &e.fown))
            .or(self.epfd.as_ref().map(|e| &e.fown))
            .or(self.sgfd.as_ref().map(|e| &e.fown))
            .or(self.tfd.as_ref().map(|e| &e.fown))
            .or(self.ify.as_ref().map(|e| &e.fown))
            .or(self.usk.as_ref().map(|e| &e.fown))
            .or(self.pipe.as_ref().map(|e| &e.fown))
            .or(self.tty.as_ref().map(|e| &e.fown))
            .or(self.memfd.as_ref().map(|e| &e.fown))
            .or(self.pidfd.as_ref().map(|e| &e.fown))
    }
}

/// Who is signalled when a file becomes ready (`F_SETOWN_EX`), and with whose user ids.
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub struct Fown {
    #[prost(uint32, required, tag = "1")]
    pub uid: u32,
    #[prost(uint32, required, tag = "2")]
    pub euid: u32,
    #[prost(uint32, required, tag = "3")]
    pub signum: u32,
    #[prost(uint32, required, tag = "4")]
    pub pid_type: u32,
    #[prost(uint32, required, tag = "5")]
    pub pid: u32,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct RegFile {
    #[prost(uint32, required, tag = "1")]
    pub id: u32,
    #[prost(uint32, required, tag = "2")]
    pub flags: u32,
    #[prost(uint64, required, tag = "3")]
    pub pos: u64,
    #[prost(message, required, tag = "5")]
    pub fown: Fown,
    #[prost(string, required, tag = "6")]
    pub name: String,
    #[prost(sint32, optional, tag = "7")]
    pub mnt_id: Option<i32>,
    #[prost(uint64, optional, tag = "8")]
    pub size: Option<u64>,
    #[prost(bool, optional, tag = "9")]
    pub ext: Option<bool>,
    #[prost(uint32, optional, tag = "10")]
    pub mode: Option<u32>,
    #[prost(uint32, repeated, packed = "false", tag = "11")]
    pub build_id: Vec<u32>,
    #[prost(uint32, optional, tag = "12")]
    pub checksum: Option<u32>,
    #[prost(uint32, optional, tag = "13")]
    pub checksum_config: Option<u32>,
    #[prost(uint32, optional, tag = "14")]
    pub checksum_parameter: Option<u32>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct Eventfd {
    #[prost(uint32, required, tag = "1")]
    pub id: u32,
    #[prost(uint32, required, tag = "2")]
    pub flags: u32,
    #[prost(message, required, tag = "3")]
    pub fown: Fown,
    #[prost(uint64, required, tag = "4")]
    pub counter: u64,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct Eventpoll {
    #[prost(uint32, required, tag = "1")]
    pub id: u32,
    #[prost(uint32, required, tag = "2")]
    pub flags: u32,
    #[prost(message, required, tag = "3")]
    pub fown: Fown,
    #[prost(bytes = "vec", repeated, tag = "4")]
    pub tfd: Vec<Vec<u8>>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct Signalfd {
    #[prost(uint32, required, tag = "1")]
    pub id: u32,
    #[prost(uint32, required, tag = "2")]
    pub flags: u32,
    #[prost(message, required, tag = "3")]
    pub fown: Fown,
    #[prost(uint64, required, tag = "4")]
    pub sigmask: u64,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct Timerfd {
    #[prost(uint32, required, tag = "1")]
    pub id: u32,
    #[prost(uint32, required, tag = "2")]
    pub flags: u32,
    #[prost(message, required, tag = "3")]
    pub fown: Fown,
    #[prost(uint32, required, tag = "4")]
    pub clockid: u32,
    #[prost(uint64, required, tag = "5")]
    pub ticks: u64,
    #[prost(uint32, required, tag = "6")]
    pub settime_flags: u32,
    #[prost(uint64, required, tag = "7")]
    pub vsec: u64,
    #[prost(uint64, required, tag = "8")]
    pub vnsec: u64,
    #[prost(uint64, required, tag = "9")]
    pub isec: u64,
    #[prost(uint64, required, tag = "10")]
    pub insec: u64,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct Inotify {
    #[prost(uint32, required, tag = "1")]
    pub id: u32,
    #[prost(uint32, required, tag = "2")]
    pub flags: u32,
    #[prost(message, required, tag = "4")]
    pub fown: Fown,
    #[prost(message, repeated, tag = "5")]
    pub wd: Vec<InotifyWatch>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct InotifyWatch {
    #[prost(uint32, required, tag = "1")]
    pub id: u32,
    #[prost(uint64, required, tag = "2")]
    pub i_ino: u64,
    #[prost(uint32, required, tag = "3")]
    pub mask: u32,
    #[prost(uint32, required, tag = "4")]
    pub ignored_mask: u32,
    #[prost(uint32, required, tag = "5")]
    pub s_dev: u32,
    #[prost(uint32, required, tag = "6")]
    pub wd: u32,
    #[prost(message, required, tag = "7")]
    pub f_handle: FileHandle,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct FileHandle {
    #[prost(uint32, required, tag = "1")]
    pub bytes: u32,
    #[prost(uint32, required, tag = "2")]
    pub r#type: u32,
    #[prost(uint64, repeated, packed = "false", tag = "3")]
    pub handle: Vec<u64>,
    #[prost(string, optional, tag = "4")]
    pub path: Option<String>,
    #[prost(uint32, optional, tag = "5")]
    pub mnt_id: Option<u32>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct Fifo {
    #[prost(uint32, required, tag = "1")]
    pub id: u32,
    #[prost(uint32, required, tag = "2")]
    pub pipe_id: u32,
    #[prost(uint32, optional, tag = "3")]
    pub regf_id: Option<u32>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct Pipe {
    #[prost(uint32, required, tag = "1")]
    pub id: u32,
    #[prost(uint32, required, tag = "2")]
    pub pipe_id: u32,
    #[prost(uint32, required, tag = "3")]
    pub flags: u32,
    #[prost(message, required, tag = "4")]
    pub fown: Fown,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct TtyFile {
    #[prost(uint32, required, tag = "1")]
    pub id: u32,
    #[prost(uint32, required, tag = "2")]
    pub tty_info_id: u32,
    #[prost(uint32, required, tag = "3")]
    pub flags: u32,
    #[prost(message, required, tag = "4")]
    pub fown: Fown,
    #[prost(uint32, optional, tag = "6")]
    pub regf_id: Option<u32>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct Memfd {
    #[prost(uint32, required, tag = "1")]
    pub id: u32,
    #[prost(uint32, required, tag = "2")]
    pub flags: u32,
    #[prost(uint64, required, tag = "3")]
    pub pos: u64,
    #[prost(message, required, tag = "4")]
    pub fown: Fown,
    #[prost(uint32, required, tag = "5")]
    pub inode_id: u32,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct Pidfd {
    #[prost(uint32, required, tag = "1")]
    pub id: u32,
    #[prost(uint32, required, tag = "2")]
    pub ino: u32,
    #[prost(uint32, required, tag = "3")]
    pub flags: u32,
    #[prost(int32, required, tag = "4")]
    pub nspid: i32,
    #[prost(message, required, tag = "5")]
    pub fown: Fown,
}

/// `remap-fpath.img`: a file that had no name any more at the dump.
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub struct Remap {
    #[prost(uint32, required, tag = "1")]
    pub orig_id: u32,
    #[prost(uint32, required, tag = "2")]
    pub remap_id: u32,
    #[prost(enumeration = "RemapType", optional, tag = "3")]
    pub remap_type: Option<i32>,
}

/// How such a file comes back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum RemapType {
    /// By a second link that CRIU made at the dump.
    Linked = 0,
    /// By making it anew from `ghost-file-ID.img`.
    Ghost = 1,
    /// A file of a dead process in procfs.
    Procfs = 2,
}

/// `ghost-file-ID.img`, first entry; contents follow.
#[derive(Clone, PartialEq, prost::Message)]
pub struct GhostFile {
    #[prost(uint32, required, tag = "1")]
    pub uid: u32,
    #[prost(uint32, required, tag = "2")]
    pub gid: u32,
    #[prost(uint32, required, tag = "3")]
    pub mode: u32,
    #[prost(uint32, optional, tag = "4")]
    pub dev: Option<u32>,
    #[prost(uint64, optional, tag = "5")]
    pub ino: Option<u64>,
    #[prost(uint32, optional, tag = "6")]
    pub rdev: Option<u32>,
    #[prost(bytes = "vec", optional, tag = "7")]
    pub atim: Option<Vec<u8>>,
    #[prost(bytes = "vec", optional, tag = "8")]
    pub mtim: Option<Vec<u8>>,
    #[prost(bool, optional, tag = "9")]
    pub chunks: Option<bool>,
    #[prost(uint64, optional, tag = "10")]
    pub size: Option<u64>,
    #[prost(string, optional, tag = "11")]
    pub symlnk_target: Option<String>,
}
