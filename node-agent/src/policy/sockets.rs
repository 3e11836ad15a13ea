//! Sockets of the internet, unix and netlink families.

use woodfrog_criu::images::SocketState;
use woodfrog_criu::images::messages::socket::{InetSk, NetlinkSk, SkOpts, UnixSk};

use super::Rules;
use super::capability::CapSet;
use super::files::{need_gid, need_uid};
use super::paths::{Access, Opening, check_form};
use super::requirement::{Need, Requirement};
use super::violation::TAMPERED;

const SUPPORTED: &str = "freeze the pod without this socket; it is not supported";

const SOCK_STREAM: u32 = 1;
const SOCK_DGRAM: u32 = 2;
const SOCK_RAW: u32 = 3;
/// Largest buffer of a socket without CAP_NET_ADMIN, bytes: CRIU sets sizes past the system's limit
/// (`SO_SNDBUFFORCE`), since the kernel's own tuning goes past it too.
const MAX_BUFFER: u32 = 64 << 20;
/// Highest `SO_PRIORITY` without CAP_NET_ADMIN.
const MAX_PRIORITY: u32 = 6;

pub(super) fn inet(rules: &mut Rules<'_>, socket: &InetSk, who: &str) {
    let mut need = |field, value: String, need| {
        rules.requirements.push(Requirement { who: who.into(), field, value, need });
    };
    match (socket.r#type, socket.proto) {
        // TCP; UDP, UDP-Lite, and echo requests of ordinary users.
        (SOCK_STREAM, 6) | (SOCK_DGRAM, 17 | 136 | 1 | 58) => {}
        (SOCK_RAW, protocol) => {
            need("type", format!("raw, protocol {protocol}"), Need::Capability(CapSet::NET_RAW))
        }
        (kind, protocol) => {
            let value = format!("type {kind} protocol {protocol}");
            rules.report.refuse(who, "type", value, "TCP, UDP and ICMP sockets", SUPPORTED);
        }
    }
    let words = match socket.family {
        2 => 1,
        10 => 4,
        family => return rules.report.refuse(who, "family", family, "IPv4 and IPv6", SUPPORTED),
    };
    let shaped = socket.src_addr.len() == words && [0, words].contains(&socket.dst_addr.len());
    rules.report.require(shaped, who, "src_addr", "of another family", "addresses of its family", TAMPERED);
    for (field, port) in [("src_port", socket.src_port), ("dst_port", socket.dst_port)] {
        rules.report.require(port <= 0xffff, who, field, port, "a port", TAMPERED);
    }
    let described = rules.images.sockets().find(|other| other.file_id == socket.id);
    if socket.r#type == SOCK_STREAM
        && let Some(connection) = described.filter(|other| other.state == SocketState::Connected)
    {
        let peer = connection.peer.map_or_else(|| "no peer".into(), |peer| peer.to_string());
        let (value, need) = (format!("connected to {peer}"), Need::Connections);
        rules.requirements.push(Requirement { who: who.into(), field: "state", value, need });
    }
    let low = (1..1024).contains(&socket.src_port) && socket.dst_port == 0;
    if low {
        let (value, need) = (socket.src_port.to_string(), Need::Port(socket.src_port as u16));
        rules.requirements.push(Requirement { who: who.into(), field: "src_port", value, need });
    }
    namespace(rules, socket.ns_id, who);
    options(rules, &socket.opts, who);
}

pub(super) fn unix(rules: &mut Rules<'_>, socket: &UnixSk, who: &str) {
    let known = matches!(socket.r#type, 1 | 2 | 5);
    rules.report.require(known, who, "type", socket.r#type, "stream, datagram, seqpacket", SUPPORTED);
    // External, CRIU's own, restored by a plugin, inherited: all come from outside.
    let value = format!("{:#x}", socket.uflags);
    rules.report.require(
        socket.uflags == 0,
        who,
        "uflags",
        value,
        "no socket from outside the checkpoint",
        SUPPORTED,
    );
    let other = |ino: u32| {
        rules.images.files.values().any(|file| file.usk.as_ref().is_some_and(|unix| unix.ino == ino))
    };
    let inside = socket.peer == 0 || other(socket.peer);
    rules.report.require(inside, who, "peer", socket.peer, "a socket of the checkpoint", SUPPORTED);
    rules.report.require(
        socket.name.len() <= 108,
        who,
        "name",
        socket.name.len(),
        "at most 108 bytes",
        TAMPERED,
    );
    if let Some(first) = socket.name.first()
        && *first != 0
    {
        path(rules, socket, who);
    }
    if let Some(perms) = &socket.file_perms {
        let value = format!("{:o}", perms.mode);
        rules.report.require(
            perms.mode & 0o6_000 == 0,
            who,
            "file_perms",
            value,
            "no set-id bits",
            SUPPORTED,
        );
        need_uid(rules, who, "file_perms uid", perms.uid);
        need_gid(rules, who, "file_perms gid", perms.gid);
    }
    namespace(rules, socket.ns_id, who);
    options(rules, &socket.opts, who);
}

/// A name in the file system. CRIU removes what is there and binds anew, in `name_dir` if the name is relative.
fn path(rules: &mut Rules<'_>, socket: &UnixSk, who: &str) {
    let bytes = socket.name.strip_suffix(&[0]).unwrap_or(&socket.name);
    let Ok(name) = std::str::from_utf8(bytes) else {
        return rules.report.refuse(who, "name", "no UTF-8", "a path", SUPPORTED);
    };
    let full = match &socket.name_dir {
        Some(dir) if !name.starts_with('/') => format!("{}/{name}", dir.trim_end_matches('/')),
        Some(dir) => {
            check_form(&mut rules.report, who, "name_dir", dir);
            name.to_owned()
        }
        None => name.to_owned(),
    };
    if check_form(&mut rules.report, who, "name", &full) {
        let opening = Opening { path: full, access: Access::Bind, kind: None, who: who.into() };
        rules.openings.push(opening);
    }
}

pub(super) fn netlink(rules: &mut Rules<'_>, socket: &NetlinkSk, who: &str) {
    // Route, socket diagnosis, kernel events, generic.
    let known = matches!(socket.protocol, 0 | 4 | 15 | 16);
    let allowed = "route, sock_diag, kobject_uevent, generic";
    rules.report.require(known, who, "protocol", socket.protocol, allowed, SUPPORTED);
    // Everyone may listen to the groups of route and of kernel events.
    let listens = socket.groups.iter().any(|word| *word != 0);
    if listens && !matches!(socket.protocol, 0 | 15) {
        let (value, need) = (format!("{:?}", socket.groups), Need::Capability(CapSet::NET_ADMIN));
        rules.requirements.push(Requirement { who: who.into(), field: "groups", value, need });
    }
    namespace(rules, socket.ns_id, who);
    options(rules, &socket.opts, who);
}

fn namespace(rules: &mut Rules<'_>, id: Option<u32>, who: &str) {
    let own = rules.images.inventory.root_ids.as_ref().and_then(|ids| ids.net_ns_id);
    let same = id.is_none() || id == own;
    rules.report.require(
        same,
        who,
        "ns_id",
        id.unwrap_or(0),
        "the container's own network namespace",
        SUPPORTED,
    );
}

fn options(rules: &mut Rules<'_>, options: &SkOpts, who: &str) {
    let mut privileged = |field, value: u32, limit: u32| {
        if value > limit {
            let need = Need::Capability(CapSet::NET_ADMIN);
            rules.requirements.push(Requirement { who: who.into(), field, value: value.to_string(), need });
        }
    };
    privileged("so_mark", options.so_mark.unwrap_or(0), 0);
    privileged("so_priority", options.so_priority.unwrap_or(0), MAX_PRIORITY);
    privileged("so_sndbuf", options.so_sndbuf, MAX_BUFFER);
    privileged("so_rcvbuf", options.so_rcvbuf, MAX_BUFFER);
}
