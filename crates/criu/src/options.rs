//! What a caller may choose for a dump or a restore. The rest is fixed here, with the reason.

use crate::rpc::{CgroupMode, InheritFd, NetworkLock, Options};
use crate::worker::{Given, LOG_FILE};

/// How much CRIU writes to its log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(i32)]
pub enum LogLevel {
    /// Errors and warnings only: the fastest.
    Warnings = 2,
    /// What it does.
    Info = 3,
    /// Everything, as the translation of failures likes it (some causes are only told by a debug line).
    #[default]
    Debug = 4,
}

/// What becomes of established TCP connections.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Connections {
    /// A dump with an established connection fails and names it.
    #[default]
    Refuse,
    /// They are dumped, and closed (as by a reset) when restored.
    Close,
    /// They are kept: packets are dropped by nftables rules while frozen, and the address must be the same.
    Keep,
}

impl Connections {
    fn apply(self, options: &mut Options) {
        match self {
            Self::Refuse => {}
            Self::Close => options.tcp_close = Some(true),
            Self::Keep => options.tcp_established = Some(true),
        }
        // Locking costs an nft or iptables run; nothing needs it unless a connection has to survive.
        let lock = if self == Self::Keep { NetworkLock::Nftables } else { NetworkLock::Skip };
        options.network_lock = Some(lock.into());
    }
}

/// A dump. The tasks always run on afterwards: whoever wants them gone kills them when the image is safe.
#[derive(Clone, Debug)]
pub struct DumpOptions {
    /// The root of the process tree, as PID in the container.
    pub pid: i32,
    /// Established TCP connections.
    pub connections: Connections,
    /// Allow unix sockets whose peer is outside the tree.
    pub external_unix_sockets: bool,
    /// Files that are left out, for whoever restores to bring: `file[MOUNT:INODE]`, both hexadecimal.
    pub external: Vec<String>,
    /// Dump file locks (needed if there are any).
    pub file_locks: bool,
    /// Deleted files up to this many bytes are dumped with their contents.
    pub ghost_limit: u32,
    /// Keep open files that were replaced or renamed over by a hard link `link_remap.N` beside them. The links exist
    /// from the dump until the tasks run on, so the root file system must be read while [`crate::DumpStage::PostDump`]
    /// is held. Without this, such a file fails the dump.
    pub link_remap: bool,
    /// Seconds after which CRIU gives up, and the tasks run on.
    pub timeout: u32,
    /// What goes to the log.
    pub log_level: LogLevel,
}

impl DumpOptions {
    /// A dump of a tree with everything else at its default.
    pub fn new(pid: i32) -> Self {
        Self {
            pid,
            connections: Connections::default(),
            external_unix_sockets: false,
            external: Vec::new(),
            file_locks: true,
            ghost_limit: 64 << 20,
            link_remap: true,
            timeout: 60,
            log_level: LogLevel::default(),
        }
    }

    pub(crate) fn to_rpc(&self, images: Given) -> Options {
        let mut options = Options {
            pid: Some(self.pid),
            leave_running: Some(true),
            external_unix_sockets: Some(self.external_unix_sockets),
            external: self.external.clone(),
            file_locks: Some(self.file_locks),
            ghost_limit: Some(self.ghost_limit),
            timeout: Some(self.timeout),
            link_remap: Some(self.link_remap),
            ..base(images, self.log_level)
        };
        self.connections.apply(&mut options);
        options
    }
}

/// A restore.
#[derive(Clone, Debug, Default)]
pub struct RestoreOptions {
    /// Files taken from descriptors of the worker instead of being made anew: CRIU's name of the file
    /// (`pipe:[inode]` at the time of the dump, or a path without its leading slash) and the descriptor.
    pub inherit: Vec<(String, Given)>,
    /// Established TCP connections, as they were dumped.
    pub connections: Connections,
    /// Unix sockets whose peer was outside the tree are connected again by path.
    pub external_unix_sockets: bool,
    /// Leave memory to a page server that listens on `lazy-pages.socket` in the work directory.
    pub lazy_pages: bool,
    /// LSM label instead of the dumped one, as CRIU wants it: `apparmor:NAME`, `selinux:CONTEXT`.
    pub lsm_profile: Option<String>,
    /// Do not compare the access modes of files with those at the dump.
    pub skip_file_mode_check: bool,
    /// What goes to the log.
    pub log_level: LogLevel,
}

impl RestoreOptions {
    pub(crate) fn to_rpc(&self, images: Given) -> Options {
        let inherit = |(key, given): &(String, Given)| InheritFd { key: key.clone(), fd: given.number() };
        let mut options = Options {
            inherit_fd: self.inherit.iter().map(inherit).collect(),
            external_unix_sockets: Some(self.external_unix_sockets),
            file_locks: Some(true),
            lazy_pages: Some(self.lazy_pages),
            lsm_profile: self.lsm_profile.clone(),
            skip_file_rwx_check: Some(self.skip_file_mode_check),
            ..base(images, self.log_level)
        };
        self.connections.apply(&mut options);
        options
    }
}

fn base(images: Given, log_level: LogLevel) -> Options {
    Options {
        images_dir_fd: -1,
        images_dir: Some(images.path()),
        log_file: Some(LOG_FILE.to_owned()),
        log_level: Some(log_level as i32),
        notify_scripts: Some(true),
        // The tree's cgroups are the container's, which the runtime made: CRIU is started in them.
        manage_cgroups_mode: Some(CgroupMode::Ignore.into()),
        ..Options::default()
    }
}
