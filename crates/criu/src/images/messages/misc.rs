//! The rest: `inventory.img`, `seccomp.img`, `timens-0.img`, `memfd.img`, `tty-info.img`, `filelocks.img`.

use super::task::KobjIds;

/// `inventory.img`: what the dump as a whole was.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Inventory {
    #[prost(uint32, required, tag = "1")]
    pub img_version: u32,
    #[prost(bool, optional, tag = "2")]
    pub fdinfo_per_id: Option<bool>,
    #[prost(message, optional, tag = "3")]
    pub root_ids: Option<KobjIds>,
    #[prost(bool, optional, tag = "4")]
    pub ns_per_id: Option<bool>,
    #[prost(uint32, optional, tag = "5")]
    pub root_cg_set: Option<u32>,
    #[prost(enumeration = "LsmType", optional, tag = "6")]
    pub lsmtype: Option<i32>,
    #[prost(uint64, optional, tag = "8")]
    pub dump_uptime: Option<u64>,
    #[prost(uint32, optional, tag = "9")]
    pub pre_dump_mode: Option<u32>,
    #[prost(bool, optional, tag = "10")]
    pub tcp_close: Option<bool>,
    #[prost(uint32, optional, tag = "11")]
    pub network_lock_method: Option<u32>,
    #[prost(message, optional, tag = "12")]
    pub plugins_entry: Option<Plugins>,
    #[prost(string, optional, tag = "13")]
    pub dump_criu_run_id: Option<String>,
    #[prost(bool, optional, tag = "14")]
    pub allow_uprobes: Option<bool>,
}

/// The security module whose labels the image holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum LsmType {
    None = 0,
    Selinux = 1,
    Apparmor = 2,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct Plugins {
    #[prost(string, repeated, tag = "12")]
    pub plugins: Vec<String>,
}

/// `seccomp.img`: all filters of all tasks; a chain is linked from its newest filter by `prev`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Seccomp {
    #[prost(message, repeated, tag = "1")]
    pub seccomp_filters: Vec<SeccompFilter>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct SeccompFilter {
    /// An array of the kernel's `struct sock_filter`, 8 bytes each.
    #[prost(bytes = "vec", required, tag = "1")]
    pub filter: Vec<u8>,
    #[prost(uint32, optional, tag = "2")]
    pub prev: Option<u32>,
    #[prost(uint32, optional, tag = "3")]
    pub flags: Option<u32>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct Timens {
    #[prost(message, required, tag = "1")]
    pub monotonic: Timespec,
    #[prost(message, required, tag = "2")]
    pub boottime: Timespec,
}

#[derive(Clone, Copy, PartialEq, prost::Message)]
pub struct Timespec {
    #[prost(uint64, required, tag = "1")]
    pub tv_sec: u64,
    #[prost(uint64, required, tag = "2")]
    pub tv_nsec: u64,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct MemfdInode {
    #[prost(string, required, tag = "1")]
    pub name: String,
    #[prost(uint32, required, tag = "2")]
    pub uid: u32,
    #[prost(uint32, required, tag = "3")]
    pub gid: u32,
    #[prost(uint64, required, tag = "4")]
    pub size: u64,
    #[prost(uint32, required, tag = "5")]
    pub shmid: u32,
    #[prost(uint32, required, tag = "6")]
    pub seals: u32,
    #[prost(uint64, required, tag = "7")]
    pub inode_id: u64,
    #[prost(uint32, optional, tag = "8")]
    pub hugetlb_flag: Option<u32>,
    #[prost(uint32, optional, tag = "9")]
    pub mode: Option<u32>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct TtyInfo {
    #[prost(uint32, required, tag = "1")]
    pub id: u32,
    #[prost(enumeration = "TtyType", required, tag = "2")]
    pub r#type: i32,
    #[prost(bool, required, tag = "3")]
    pub locked: bool,
    #[prost(bool, required, tag = "4")]
    pub exclusive: bool,
    #[prost(bool, required, tag = "5")]
    pub packet_mode: bool,
    #[prost(uint32, required, tag = "6")]
    pub sid: u32,
    #[prost(uint32, required, tag = "7")]
    pub pgrp: u32,
    #[prost(uint32, required, tag = "8")]
    pub rdev: u32,
    #[prost(bytes = "vec", optional, tag = "9")]
    pub termios: Option<Vec<u8>>,
    #[prost(bytes = "vec", optional, tag = "10")]
    pub termios_locked: Option<Vec<u8>>,
    #[prost(bytes = "vec", optional, tag = "11")]
    pub winsize: Option<Vec<u8>>,
    #[prost(message, optional, tag = "12")]
    pub pty: Option<TtyPty>,
    #[prost(uint32, optional, tag = "13")]
    pub dev: Option<u32>,
    #[prost(uint32, optional, tag = "14")]
    pub uid: Option<u32>,
    #[prost(uint32, optional, tag = "15")]
    pub gid: Option<u32>,
}

#[derive(Clone, Copy, PartialEq, prost::Message)]
pub struct TtyPty {
    #[prost(uint32, required, tag = "1")]
    pub index: u32,
}

/// What a terminal is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum TtyType {
    Unknown = 0,
    Pty = 1,
    Console = 2,
    Vt = 3,
    Ctty = 4,
    External = 5,
    Serial = 6,
}

#[derive(Clone, Copy, PartialEq, prost::Message)]
pub struct FileLock {
    #[prost(uint32, required, tag = "1")]
    pub flag: u32,
    #[prost(uint32, required, tag = "2")]
    pub r#type: u32,
    #[prost(int32, required, tag = "3")]
    pub pid: i32,
    #[prost(int32, required, tag = "4")]
    pub fd: i32,
    #[prost(int64, required, tag = "5")]
    pub start: i64,
    #[prost(int64, required, tag = "6")]
    pub len: i64,
}
