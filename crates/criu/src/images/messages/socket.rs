//! Sockets: members of `files.img`, and `tcp-stream-INO.img`.

use super::file::Fown;

#[derive(Clone, PartialEq, prost::Message)]
pub struct InetSk {
    #[prost(uint32, required, tag = "1")]
    pub id: u32,
    #[prost(uint32, required, tag = "2")]
    pub ino: u32,
    #[prost(uint32, required, tag = "3")]
    pub family: u32,
    #[prost(uint32, required, tag = "4")]
    pub r#type: u32,
    #[prost(uint32, required, tag = "5")]
    pub proto: u32,
    #[prost(uint32, required, tag = "6")]
    pub state: u32,
    #[prost(uint32, required, tag = "7")]
    pub src_port: u32,
    #[prost(uint32, required, tag = "8")]
    pub dst_port: u32,
    #[prost(uint32, required, tag = "9")]
    pub flags: u32,
    #[prost(uint32, required, tag = "10")]
    pub backlog: u32,
    #[prost(uint32, repeated, packed = "false", tag = "11")]
    pub src_addr: Vec<u32>,
    #[prost(uint32, repeated, packed = "false", tag = "12")]
    pub dst_addr: Vec<u32>,
    #[prost(message, required, tag = "13")]
    pub fown: Fown,
    #[prost(message, required, tag = "14")]
    pub opts: SkOpts,
    #[prost(bool, optional, tag = "15")]
    pub v6only: Option<bool>,
    #[prost(message, optional, tag = "16")]
    pub ip_opts: Option<IpOpts>,
    #[prost(string, optional, tag = "17")]
    pub ifname: Option<String>,
    #[prost(uint32, optional, tag = "18")]
    pub ns_id: Option<u32>,
    #[prost(int32, optional, tag = "19")]
    pub shutdown: Option<i32>,
    #[prost(bytes = "vec", optional, tag = "20")]
    pub tcp_opts: Option<Vec<u8>>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct IpOpts {
    #[prost(bool, optional, tag = "1")]
    pub freebind: Option<bool>,
    #[prost(bytes = "vec", optional, tag = "4")]
    pub raw: Option<Vec<u8>>,
    #[prost(bool, optional, tag = "5")]
    pub pktinfo: Option<bool>,
    #[prost(uint32, optional, tag = "6")]
    pub tos: Option<u32>,
    #[prost(uint32, optional, tag = "7")]
    pub ttl: Option<u32>,
}

/// Socket options that all families share (`SOL_SOCKET`).
#[derive(Clone, PartialEq, prost::Message)]
pub struct SkOpts {
    #[prost(uint32, required, tag = "1")]
    pub so_sndbuf: u32,
    #[prost(uint32, required, tag = "2")]
    pub so_rcvbuf: u32,
    #[prost(uint64, required, tag = "3")]
    pub so_snd_tmo_sec: u64,
    #[prost(uint64, required, tag = "4")]
    pub so_snd_tmo_usec: u64,
    #[prost(uint64, required, tag = "5")]
    pub so_rcv_tmo_sec: u64,
    #[prost(uint64, required, tag = "6")]
    pub so_rcv_tmo_usec: u64,
    #[prost(bool, optional, tag = "7")]
    pub reuseaddr: Option<bool>,
    #[prost(uint32, optional, tag = "8")]
    pub so_priority: Option<u32>,
    #[prost(uint32, optional, tag = "9")]
    pub so_rcvlowat: Option<u32>,
    #[prost(uint32, optional, tag = "10")]
    pub so_mark: Option<u32>,
    #[prost(bool, optional, tag = "11")]
    pub so_passcred: Option<bool>,
    #[prost(bool, optional, tag = "12")]
    pub so_passsec: Option<bool>,
    #[prost(bool, optional, tag = "13")]
    pub so_dontroute: Option<bool>,
    #[prost(bool, optional, tag = "14")]
    pub so_no_check: Option<bool>,
    #[prost(string, optional, tag = "15")]
    pub so_bound_dev: Option<String>,
    #[prost(fixed64, repeated, packed = "false", tag = "16")]
    pub so_filter: Vec<u64>,
    #[prost(bool, optional, tag = "17")]
    pub so_reuseport: Option<bool>,
    #[prost(bool, optional, tag = "18")]
    pub so_broadcast: Option<bool>,
    #[prost(bool, optional, tag = "19")]
    pub so_keepalive: Option<bool>,
    #[prost(uint32, optional, tag = "20")]
    pub tcp_keepcnt: Option<u32>,
    #[prost(uint32, optional, tag = "21")]
    pub tcp_keepidle: Option<u32>,
    #[prost(uint32, optional, tag = "22")]
    pub tcp_keepintvl: Option<u32>,
    #[prost(uint32, optional, tag = "23")]
    pub so_oobinline: Option<u32>,
    #[prost(uint32, optional, tag = "24")]
    pub so_linger: Option<u32>,
    #[prost(uint32, optional, tag = "25")]
    pub so_buf_lock: Option<u32>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct UnixSk {
    #[prost(uint32, required, tag = "1")]
    pub id: u32,
    #[prost(uint32, required, tag = "2")]
    pub ino: u32,
    #[prost(uint32, required, tag = "3")]
    pub r#type: u32,
    #[prost(uint32, required, tag = "4")]
    pub state: u32,
    #[prost(uint32, required, tag = "5")]
    pub flags: u32,
    #[prost(uint32, required, tag = "6")]
    pub uflags: u32,
    #[prost(uint32, required, tag = "7")]
    pub backlog: u32,
    #[prost(uint32, required, tag = "8")]
    pub peer: u32,
    #[prost(message, required, tag = "9")]
    pub fown: Fown,
    #[prost(message, required, tag = "10")]
    pub opts: SkOpts,
    /// A path with its ending zero byte, or an abstract name that begins with one.
    #[prost(bytes = "vec", required, tag = "11")]
    pub name: Vec<u8>,
    #[prost(int32, optional, tag = "12")]
    pub shutdown: Option<i32>,
    #[prost(message, optional, tag = "13")]
    pub file_perms: Option<FilePerms>,
    #[prost(string, optional, tag = "14")]
    pub name_dir: Option<String>,
    #[prost(bool, optional, tag = "15")]
    pub deleted: Option<bool>,
    #[prost(uint32, optional, tag = "16")]
    pub ns_id: Option<u32>,
    #[prost(sint32, optional, tag = "17")]
    pub mnt_id: Option<i32>,
}

#[derive(Clone, Copy, PartialEq, prost::Message)]
pub struct FilePerms {
    #[prost(uint32, required, tag = "1")]
    pub mode: u32,
    #[prost(uint32, required, tag = "2")]
    pub uid: u32,
    #[prost(uint32, required, tag = "3")]
    pub gid: u32,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct NetlinkSk {
    #[prost(uint32, required, tag = "1")]
    pub id: u32,
    #[prost(uint32, required, tag = "2")]
    pub ino: u32,
    #[prost(uint32, required, tag = "3")]
    pub protocol: u32,
    #[prost(uint32, required, tag = "4")]
    pub state: u32,
    #[prost(uint32, required, tag = "6")]
    pub flags: u32,
    #[prost(uint32, required, tag = "7")]
    pub portid: u32,
    #[prost(uint32, repeated, packed = "false", tag = "8")]
    pub groups: Vec<u32>,
    #[prost(uint32, required, tag = "9")]
    pub dst_portid: u32,
    #[prost(uint32, required, tag = "10")]
    pub dst_group: u32,
    #[prost(message, required, tag = "11")]
    pub fown: Fown,
    #[prost(message, required, tag = "12")]
    pub opts: SkOpts,
    #[prost(uint32, optional, tag = "13")]
    pub ns_id: Option<u32>,
}

/// `tcp-stream-INO.img`, first entry; the contents of both queues follow.
#[derive(Clone, PartialEq, prost::Message)]
pub struct TcpStreamEntry {
    #[prost(uint32, required, tag = "1")]
    pub inq_len: u32,
    #[prost(uint32, required, tag = "2")]
    pub inq_seq: u32,
    #[prost(uint32, required, tag = "3")]
    pub outq_len: u32,
    #[prost(uint32, required, tag = "4")]
    pub outq_seq: u32,
    #[prost(uint32, required, tag = "5")]
    pub opt_mask: u32,
    #[prost(uint32, required, tag = "6")]
    pub snd_wscale: u32,
    #[prost(uint32, required, tag = "7")]
    pub mss_clamp: u32,
    #[prost(uint32, optional, tag = "8")]
    pub rcv_wscale: Option<u32>,
    #[prost(uint32, optional, tag = "9")]
    pub timestamp: Option<u32>,
    #[prost(bool, optional, tag = "10")]
    pub cork: Option<bool>,
    #[prost(bool, optional, tag = "11")]
    pub nodelay: Option<bool>,
    #[prost(uint32, optional, tag = "12")]
    pub unsq_len: Option<u32>,
    #[prost(uint32, optional, tag = "13")]
    pub snd_wl1: Option<u32>,
    #[prost(uint32, optional, tag = "14")]
    pub snd_wnd: Option<u32>,
    #[prost(uint32, optional, tag = "15")]
    pub max_window: Option<u32>,
    #[prost(uint32, optional, tag = "16")]
    pub rcv_wnd: Option<u32>,
    #[prost(uint32, optional, tag = "17")]
    pub rcv_wup: Option<u32>,
}
