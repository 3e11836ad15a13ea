//! The messages of CRIU's RPC (`criu swrk`): what this crate uses of them, with the tags of CRIU's
//! `images/rpc.proto`. One message is one SEQPACKET datagram; unknown fields are ignored.
//!
//! ```text
//!   us                       CRIU
//!   Request{Dump, opts}  ──►
//!                        ◄── Response{Notify, notify{script}}     (only with notify_scripts)
//!   Request{Notify, ok}  ──►                                      … any number of times
//!                        ◄── Response{Dump, success, cr_errno…}   and the worker ends
//! ```

use prost::{Enumeration, Message};

/// `criu_req_type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Enumeration)]
#[repr(i32)]
pub(crate) enum Kind {
    /// What a response to a request that was not understood has.
    Empty = 0,
    Dump = 1,
    Restore = 2,
    Notify = 6,
    FeatureCheck = 9,
}

/// `criu_cg_mode`: what CRIU does about cgroups.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Enumeration)]
#[repr(i32)]
pub(crate) enum CgroupMode {
    Ignore = 0,
}

/// `criu_network_lock_method`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Enumeration)]
#[repr(i32)]
pub(crate) enum NetworkLock {
    Iptables = 1,
    Nftables = 2,
    Skip = 3,
}

/// `criu_req`.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Request {
    #[prost(enumeration = "Kind", required, tag = "1")]
    pub(crate) kind: i32,
    #[prost(message, optional, tag = "2")]
    pub(crate) options: Option<Options>,
    #[prost(bool, optional, tag = "3")]
    pub(crate) notify_success: Option<bool>,
    #[prost(message, optional, tag = "5")]
    pub(crate) features: Option<Features>,
}

/// `criu_opts`.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Options {
    /// Always -1: it would be looked up by the PID of the peer, which is 0 across PID namespaces.
    #[prost(int32, required, tag = "1")]
    pub(crate) images_dir_fd: i32,
    #[prost(string, optional, tag = "68")]
    pub(crate) images_dir: Option<String>,
    #[prost(int32, optional, tag = "2")]
    pub(crate) pid: Option<i32>,
    #[prost(bool, optional, tag = "3")]
    pub(crate) leave_running: Option<bool>,
    #[prost(bool, optional, tag = "4")]
    pub(crate) external_unix_sockets: Option<bool>,
    #[prost(bool, optional, tag = "5")]
    pub(crate) tcp_established: Option<bool>,
    #[prost(bool, optional, tag = "8")]
    pub(crate) file_locks: Option<bool>,
    #[prost(int32, optional, tag = "9")]
    pub(crate) log_level: Option<i32>,
    #[prost(string, optional, tag = "10")]
    pub(crate) log_file: Option<String>,
    #[prost(bool, optional, tag = "12")]
    pub(crate) notify_scripts: Option<bool>,
    #[prost(bool, optional, tag = "18")]
    pub(crate) link_remap: Option<bool>,
    #[prost(message, repeated, tag = "27")]
    pub(crate) inherit_fd: Vec<InheritFd>,
    #[prost(enumeration = "CgroupMode", optional, tag = "34")]
    pub(crate) manage_cgroups_mode: Option<i32>,
    #[prost(uint32, optional, tag = "35")]
    pub(crate) ghost_limit: Option<u32>,
    #[prost(string, repeated, tag = "37")]
    pub(crate) external: Vec<String>,
    #[prost(uint32, optional, tag = "45")]
    pub(crate) timeout: Option<u32>,
    #[prost(bool, optional, tag = "46")]
    pub(crate) tcp_skip_in_flight: Option<bool>,
    #[prost(bool, optional, tag = "48")]
    pub(crate) lazy_pages: Option<bool>,
    #[prost(bool, optional, tag = "52")]
    pub(crate) tcp_close: Option<bool>,
    #[prost(string, optional, tag = "53")]
    pub(crate) lsm_profile: Option<String>,
    #[prost(enumeration = "NetworkLock", optional, tag = "64")]
    pub(crate) network_lock: Option<i32>,
    #[prost(bool, optional, tag = "66")]
    pub(crate) skip_file_rwx_check: Option<bool>,
}

/// `inherit_fd`: take a file from a descriptor that CRIU was started with.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct InheritFd {
    #[prost(string, required, tag = "1")]
    pub(crate) key: String,
    #[prost(int32, required, tag = "2")]
    pub(crate) fd: i32,
}

/// `criu_features`: asked for in a request, answered in a response.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Features {
    #[prost(bool, optional, tag = "1")]
    pub(crate) mem_track: Option<bool>,
    #[prost(bool, optional, tag = "2")]
    pub(crate) lazy_pages: Option<bool>,
    #[prost(bool, optional, tag = "3")]
    pub(crate) pidfd_store: Option<bool>,
}

/// `criu_resp`.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Response {
    #[prost(enumeration = "Kind", required, tag = "1")]
    pub(crate) kind: i32,
    #[prost(bool, required, tag = "2")]
    pub(crate) success: bool,
    #[prost(message, optional, tag = "4")]
    pub(crate) restore: Option<RestoreResponse>,
    #[prost(message, optional, tag = "5")]
    pub(crate) notify: Option<Notify>,
    #[prost(int32, optional, tag = "7")]
    pub(crate) errno: Option<i32>,
    #[prost(message, optional, tag = "8")]
    pub(crate) features: Option<Features>,
    #[prost(string, optional, tag = "9")]
    pub(crate) message: Option<String>,
}

/// `criu_restore_resp`.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct RestoreResponse {
    #[prost(int32, required, tag = "1")]
    pub(crate) pid: i32,
}

/// `criu_notify`.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Notify {
    #[prost(string, optional, tag = "1")]
    pub(crate) script: Option<String>,
    #[prost(int32, optional, tag = "2")]
    pub(crate) pid: Option<i32>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_has_the_bytes_of_crius_own_encoding() {
        let options = Options { images_dir_fd: -1, pid: Some(300), ..Options::default() };
        let request = Request { kind: Kind::Dump.into(), options: Some(options), ..Request::default() };
        // type = 1; opts { images_dir_fd = -1 (ten bytes of varint), pid = 300 }
        let expected = [
            0x08, 0x01, 0x12, 0x0e, 0x08, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01, 0x10,
            0xac, 0x02,
        ];
        assert_eq!(request.encode_to_vec(), expected);
    }

    #[test]
    fn zero_is_sent_where_crius_default_differs() {
        let options = Options { manage_cgroups_mode: Some(CgroupMode::Ignore.into()), ..Options::default() };
        // tag 34, varint: 0x90 0x02
        assert!(options.encode_to_vec().ends_with(&[0x90, 0x02, 0x00]));
    }
}
