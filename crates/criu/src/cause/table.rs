//! Which error lines mean which cause.
//!
//! The texts are those of CRIU 4.2; the tests hold excerpts of logs of real failures. A line that no pattern knows
//! leaves [`Cause::Unknown`], and the lines speak for themselves.

use super::Cause;
use crate::log::{self, Line};
use crate::pattern::captures;

/// What a pattern's row may use: the captures, the error line, and all lines before it.
struct Found<'a> {
    captures: Vec<&'a str>,
    line: Line<'a>,
    before: &'a [&'a str],
    pid: Option<i32>,
}

impl Found<'_> {
    fn string(&self, index: usize) -> String {
        self.captures[index].to_owned()
    }

    /// A path of the container: CRIU leaves out the leading slash.
    fn path(&self, index: usize) -> String {
        format!("/{}", self.captures[index].trim_start_matches('/'))
    }

    fn number<T: std::str::FromStr + Default>(&self, index: usize) -> T {
        self.captures[index].parse().unwrap_or_default()
    }

    /// The last line before the error that matches.
    fn earlier(&self, pattern: &str) -> Option<Vec<&str>> {
        self.before.iter().rev().find_map(|line| captures(pattern, line))
    }
}

type Row = (&'static str, fn(&Found<'_>) -> Cause);

/// The first row that matches any error line is the cause; so the specific come before the general.
const TABLE: &[Row] = &[
    ("anon_inode:[io_uring]", |found| Cause::IoUring { pid: found.pid }),
    // The kernel lets every kind of file through SCM_RIGHTS but io_uring's (EINVAL in `__scm_fp_copy`, Linux 6.7).
    ("send_fds failed (-22)", |found| Cause::IoUring { pid: found.pid }),
    ("Connected TCP socket in image", |_| Cause::ConnectionInImage),
    ("Connected TCP socket, consider", |found| Cause::Connection {
        inode: found.earlier("Searching for socket 0x{} family").and_then(|c| hex(c[0])).unwrap_or_default(),
        addresses: None,
    }),
    ("In-flight connection (l) for {}", |found| Cause::ConnectionInFlight {
        inode: hex(found.captures[0]).unwrap_or_default(),
    }),
    ("External socket is used", |found| {
        external_unix_socket(found, "Runaway socket: ino {} peer_ino {} name {}")
    }),
    ("Can't dump half of stream unix connection", |found| {
        external_unix_socket(found, "Ext stream not supported: ino {} peer_ino {} name {}")
    }),
    ("Can't dump name-less external socket", |found| {
        external_unix_socket(found, "Ext dgram w/o name: ino {} peer_ino {} name {}")
    }),
    ("Unsupported proto {} for socket", |found| Cause::UnsupportedSocket {
        what: format!("protocol {} of an IP socket{}", found.captures[0], mptcp(found.captures[0])),
    }),
    ("Unknown socket collected (family {})", |found| Cause::UnsupportedSocket {
        what: format!("address family {}", found.captures[0]),
    }),
    ("Unsupported socket family: {}", |found| Cause::UnsupportedSocket {
        what: format!("address family {}", found.captures[0]),
    }),
    ("Can't dump file {} of that type [{}] (chr {})", device),
    ("Can't dump file {} of that type [{}] (blk {})", device),
    ("Can't dump file {} of that type [{}] ({} {})", |found| Cause::UnsupportedDescriptor {
        what: found.string(3),
        fd: found.number(0),
        pid: found.pid,
    }),
    ("Can't dump ghost file {} of {} size", |found| Cause::DeletedFile {
        path: found.path(0),
        bytes: found.number(1),
    }),
    ("Can't create link remap for {}. Use", |found| Cause::RenamedFile { path: found.path(0) }),
    ("Can't lookup mount={} for fd={} path={}", |found| Cause::ForeignMount {
        path: found.path(2),
        fd: found.number(1),
        pid: found.pid,
    }),
    ("Can't dump nested {} namespace", |found| Cause::Namespace { kind: found.string(0) }),
    ("Nested mount namespaces are not supported", |_| Cause::Namespace { kind: "mnt".to_owned() }),
    ("doesn't have a proper root mount", |_| Cause::Namespace { kind: "mnt".to_owned() }),
    ("net: IP tool failed", |_| Cause::Namespace { kind: "net".to_owned() }),
    ("doesn't belong to the target user namespace", |_| Cause::Namespace { kind: "user".to_owned() }),
    ("Found slave peer index {} without correspond master", |_| Cause::Terminal),
    ("Found dangling tty", |_| Cause::Terminal),
    ("Can't get rlimit {}: Operation not permitted", |found| Cause::ResourceLimits { pid: found.pid }),
    ("seccomp: ", |_| Cause::Seccomp),
    ("Unable to detach from {}: No such process", |found| Cause::NoProcess { pid: found.number(0) }),
    ("Can't fork for {}: File exists", |found| Cause::PidTaken { pid: found.number(0) }),
    ("File {} has bad size {} (expect {})", |found| Cause::FileSize {
        path: found.path(0),
        found: found.number(1),
        expected: found.number(2),
    }),
    ("File {} has bad mode {} (expect {})", |found| Cause::FileMode {
        path: found.path(0),
        found: found.string(1),
        expected: found.string(2),
    }),
    ("Can't open file {} on restore: {}", |found| Cause::FileGone {
        path: found.path(0),
        reason: found.string(1),
    }),
    ("Can't open file {}: {}", |found| Cause::FileGone { path: found.path(0), reason: found.string(1) }),
    ("FPU feature required by image", processor),
    ("CPU xfeatures has unsupported bits", processor),
    ("CPU xsave size mismatch", processor),
    ("CPU xsave max size mismatch", processor),
    ("CPU instruction capabilities do not match", processor),
    ("CPU capabilities do not match", processor),
    ("FPU xsave area present", processor),
    ("Not supported images version {}", |found| Cause::ImageVersion { version: found.string(0) }),
    ("Magic doesn't match for {}", broken_image),
    ("Failed unpacking object", broken_image),
    ("Unexpected EOF", broken_image),
    ("Img trimmed", broken_image),
    ("Read {} bytes while {} expected from", broken_image),
    ("Timeout reached", |_| Cause::Timeout),
    ("No space left on device", |_| Cause::NoSpace),
];

impl Cause {
    /// `message` is CRIU's own first error, used where the log has none.
    pub(crate) fn find(message: Option<&str>, log: &str) -> Self {
        let lines: Vec<&str> = log.lines().collect();
        let errors: Vec<usize> = (0..lines.len()).filter(|index| log::is_error(lines[*index])).collect();
        // "Dump files (pid: 300) failed with -1" says whose.
        let named = errors.iter().find_map(|index| captures("(pid: {}) failed with", lines[*index]));
        let pid = named.and_then(|captures| captures[0].parse().ok());
        for (pattern, make) in TABLE {
            for index in &errors {
                let line = Line::parse(lines[*index]);
                if let Some(captures) = captures(pattern, line.text) {
                    let before = &lines[..*index];
                    return make(&Found { captures, line, before, pid });
                }
            }
        }
        match message {
            Some(message) if errors.is_empty() => Self::find(None, &format!("Error (criu): {message}")),
            _ => Self::Unknown,
        }
    }
}

fn hex(text: &str) -> Option<u64> {
    u64::from_str_radix(text.trim(), 16).ok()
}

fn external_unix_socket(found: &Found<'_>, pattern: &str) -> Cause {
    let Some(peer) = found.earlier(pattern) else {
        return Cause::ExternalUnixSocket { path: None, inode: 0 };
    };
    let path = (peer[2] != "null").then(|| peer[2].to_owned());
    Cause::ExternalUnixSocket { path, inode: peer[0].parse().unwrap_or_default() }
}

fn device(found: &Found<'_>) -> Cause {
    Cause::Device { number: found.string(2), fd: found.number(0), pid: found.pid }
}

fn processor(found: &Found<'_>) -> Cause {
    Cause::Processor { what: found.line.text.to_owned() }
}

fn broken_image(found: &Found<'_>) -> Cause {
    Cause::BrokenImage { what: found.line.text.to_owned() }
}

fn mptcp(protocol: &str) -> &'static str {
    if protocol == "262" { " (MPTCP; in Go programs GODEBUG=multipathtcp=0 turns it off)" } else { "" }
}
