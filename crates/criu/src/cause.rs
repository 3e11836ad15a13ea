//! Known causes of failures, and how they are told to people.

mod table;
#[cfg(test)]
mod tests;

use std::fmt;
use std::net::SocketAddr;

/// Why a dump or a restore failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cause {
    /// A task uses io_uring, which CRIU cannot dump.
    IoUring {
        /// The task, as PID in the container, if the log names it.
        pid: Option<i32>,
    },
    /// An established TCP connection, and connections were to be refused.
    Connection {
        /// Inode of the socket.
        inode: u64,
        /// Its own address and its peer's, if the socket could be found in the container.
        addresses: Option<(SocketAddr, SocketAddr)>,
    },
    /// A TCP connection that nobody has accepted yet.
    ConnectionInFlight {
        /// Inode of the listening or connecting socket.
        inode: u64,
    },
    /// The image holds an established connection, and the restore was not told what to do about it.
    ConnectionInImage,
    /// A unix socket whose peer is not in the tree.
    ExternalUnixSocket {
        /// The peer's address, if it has one.
        path: Option<String>,
        /// Inode of the peer.
        inode: u64,
    },
    /// A socket of a kind that CRIU does not know.
    UnsupportedSocket {
        /// What is known of it.
        what: String,
    },
    /// An open device file.
    Device {
        /// `MAJOR:MINOR`.
        number: String,
        /// The descriptor.
        fd: i32,
        /// The task, as PID in the container.
        pid: Option<i32>,
    },
    /// A descriptor of a kind that CRIU does not know, such as `[perf_event]`.
    UnsupportedDescriptor {
        /// What the kernel calls it.
        what: String,
        /// The descriptor.
        fd: i32,
        /// The task, as PID in the container.
        pid: Option<i32>,
    },
    /// An open file that has been deleted and is too large to be taken along.
    DeletedFile {
        /// Its last name.
        path: String,
        /// Its size in bytes.
        bytes: u64,
    },
    /// An open file whose name has gone while others remain, and links were not allowed.
    RenamedFile {
        /// Its last name.
        path: String,
    },
    /// An open file on a mount that the container does not have.
    ForeignMount {
        /// Its path there.
        path: String,
        /// The descriptor.
        fd: i32,
        /// The task, as PID in the container.
        pid: Option<i32>,
    },
    /// A task in namespaces of its own.
    Namespace {
        /// Which.
        kind: String,
    },
    /// A terminal whose other end is not in the tree.
    Terminal,
    /// A task whose resource limits this node may not read (see [`crate::can_override_resource_limits`]).
    ResourceLimits {
        /// The task, as PID in the container.
        pid: Option<i32>,
    },
    /// Seccomp filters that could not be read or set.
    Seccomp,
    /// There is no such process.
    NoProcess {
        /// PID in the container.
        pid: i32,
    },
    /// The PID of a task belongs to another process of the container.
    PidTaken {
        /// PID in the container.
        pid: i32,
    },
    /// A file has another size than at the dump.
    FileSize {
        /// Path in the container.
        path: String,
        /// Bytes now.
        found: u64,
        /// Bytes at the dump.
        expected: u64,
    },
    /// A file has another mode than at the dump.
    FileMode {
        /// Path in the container.
        path: String,
        /// Octal mode now.
        found: String,
        /// Octal mode at the dump.
        expected: String,
    },
    /// A file that was open, mapped or a working directory cannot be opened.
    FileGone {
        /// Path in the container.
        path: String,
        /// The system's reason.
        reason: String,
    },
    /// The processor lacks what the image needs.
    Processor {
        /// What.
        what: String,
    },
    /// The images were written in a version that this CRIU does not read.
    ImageVersion {
        /// That version.
        version: String,
    },
    /// An image file is damaged or missing.
    BrokenImage {
        /// CRIU's words.
        what: String,
    },
    /// The tasks could not be stopped in time.
    Timeout,
    /// A file system is full.
    NoSpace,
    /// Not known; see the lines of the log.
    Unknown,
}

impl Cause {
    /// A word out of a fixed set, for metrics and events.
    pub fn category(&self) -> &'static str {
        match self {
            Self::IoUring { .. } => "io-uring",
            Self::Connection { .. } | Self::ConnectionInFlight { .. } | Self::ConnectionInImage => {
                "connection"
            }
            Self::ExternalUnixSocket { .. } => "external-unix-socket",
            Self::UnsupportedSocket { .. } => "unsupported-socket",
            Self::Device { .. } => "device",
            Self::UnsupportedDescriptor { .. } => "unsupported-descriptor",
            Self::DeletedFile { .. } | Self::RenamedFile { .. } => "deleted-file",
            Self::ForeignMount { .. } => "foreign-mount",
            Self::Namespace { .. } => "namespace",
            Self::Terminal => "terminal",
            Self::ResourceLimits { .. } => "resource-limits",
            Self::Seccomp => "seccomp",
            Self::NoProcess { .. } => "no-process",
            Self::PidTaken { .. } => "pid-taken",
            Self::FileSize { .. } | Self::FileMode { .. } => "file-changed",
            Self::FileGone { .. } => "file-gone",
            Self::Processor { .. } => "processor",
            Self::ImageVersion { .. } => "image-version",
            Self::BrokenImage { .. } => "broken-image",
            Self::Timeout => "timeout",
            Self::NoSpace => "no-space",
            Self::Unknown => "unknown",
        }
    }
}

/// A task by PID, where it is known.
struct Task(Option<i32>);

impl fmt::Display for Task {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(pid) => write!(f, "process {pid}"),
            None => f.write_str("a process"),
        }
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::IoUring { pid } => {
                write!(f, "{} uses io_uring, which cannot be frozen; forbid it by seccomp", Task(*pid))
            }
            Self::Connection { addresses: Some((local, remote)), .. } => {
                write!(
                    f,
                    "TCP connection {local} to {remote} is established; close it, or allow Close or Keep"
                )
            }
            Self::Connection { inode, addresses: None } => {
                write!(f, "TCP socket {inode} is connected; close it, or allow Close or Keep")
            }
            Self::ConnectionInFlight { inode } => {
                write!(f, "TCP socket {inode} has a connection that is not accepted yet; try again")
            }
            Self::ConnectionInImage => {
                f.write_str("the image holds an established TCP connection; restore with Close or Keep")
            }
            Self::ExternalUnixSocket { path: Some(path), .. } => {
                write!(f, "a unix socket is connected to {path}, whose process is outside the tree")
            }
            Self::ExternalUnixSocket { path: None, inode } => {
                write!(f, "a unix socket is connected to socket {inode}, whose process is outside the tree")
            }
            Self::UnsupportedSocket { what } => write!(f, "a socket cannot be frozen: {what}"),
            Self::Device { number, fd, pid } => {
                write!(
                    f,
                    "{} has device {number} open as descriptor {fd}; devices cannot be frozen",
                    Task(*pid)
                )
            }
            Self::UnsupportedDescriptor { what, fd, pid } => {
                write!(f, "{} has {what} open as descriptor {fd}, which cannot be frozen", Task(*pid))
            }
            Self::DeletedFile { path, bytes } => {
                write!(f, "deleted file {path} is still open and too large to keep ({bytes} bytes)")
            }
            Self::RenamedFile { path } => write!(f, "open file {path} has lost its name; allow link remaps"),
            Self::ForeignMount { path, fd, pid } => {
                write!(
                    f,
                    "{} has {path} open as descriptor {fd}, on a mount that is not the container's",
                    Task(*pid)
                )
            }
            Self::Namespace { kind } => write!(f, "a process lives in a {kind} namespace of its own"),
            Self::Terminal => f.write_str("a terminal is open whose other end is outside the tree"),
            Self::ResourceLimits { pid } => write!(
                f,
                "the resource limits of {} cannot be read, since it runs as another user and this node lacks \
                 CAP_SYS_RESOURCE",
                Task(*pid)
            ),
            Self::Seccomp => f.write_str("seccomp filters cannot be read or set"),
            Self::NoProcess { pid } => write!(f, "there is no process {pid} in the container"),
            Self::PidTaken { pid } => write!(f, "PID {pid} belongs to another process of the container"),
            Self::FileSize { path, found, expected } => {
                write!(f, "file {path} has {found} bytes, and had {expected} when it was frozen")
            }
            Self::FileMode { path, found, expected } => {
                write!(f, "file {path} has mode {found}, and had {expected} when it was frozen")
            }
            Self::FileGone { path, reason } => write!(f, "file {path} cannot be opened: {reason}"),
            Self::Processor { what } => write!(f, "this processor is not compatible with the image: {what}"),
            Self::ImageVersion { version } => write!(f, "CRIU images of version {version} cannot be read"),
            Self::BrokenImage { what } => write!(f, "the CRIU images are damaged: {what}"),
            Self::Timeout => f.write_str("the processes could not be stopped in time"),
            Self::NoSpace => f.write_str("no space is left for the CRIU images"),
            Self::Unknown => f.write_str("unknown cause"),
        }
    }
}
