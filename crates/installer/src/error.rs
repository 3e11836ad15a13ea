//! Why a host was left as it was.

use std::io;
use std::path::PathBuf;

use crate::systemd::InitError;

/// Why a host was left, or put back, as it was.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file or directory of the host.
    #[error("{action} {}: {source}", path.display())]
    Io {
        /// What was tried, such as "write".
        action: &'static str,
        /// The path as we see it.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// The host does not run systemd.
    #[error("{} does not run systemd (no /run/systemd/system): run node-agent cri-shim as a service by other means and point kubelet at {endpoint}", root.display(), endpoint = crate::SHIM_ENDPOINT)]
    NoSystemd {
        /// The host's root.
        root: PathBuf,
    },
    /// Containers sleep whom nobody would wake.
    #[error("not all containers that sleep are awake: {reason}; delete their pods, or run this again")]
    Asleep {
        /// The agent's word.
        reason: String,
    },
    /// Another installer is at work.
    #[error("another installer holds {}: wait for it and run this again", path.display())]
    Busy {
        /// The lock.
        path: PathBuf,
    },
    /// A binary to install is not there.
    #[error("{} is not there: name the directory that has node-agent, woodfrog, woodfrog-init and woodfrog-pager with --from", path.display())]
    NoBinary {
        /// Where it should be.
        path: PathBuf,
    },
    /// The disk is full.
    #[error("{} has {free} bytes free, {needed} are needed: make room", path.display())]
    NoSpace {
        /// The directory.
        path: PathBuf,
        /// Free for root, in bytes.
        free: u64,
        /// Needed, in bytes.
        needed: u64,
    },
    /// kubelet is not one that we know how to point somewhere.
    #[error("{what}: {advice}; then install with --kubelet none")]
    Unsupported {
        /// What was found.
        what: String,
        /// What to set by hand.
        advice: String,
    },
    /// kubelet's endpoint cannot be changed where it is set.
    #[error("cannot change containerRuntimeEndpoint in {path}: {reason}; set it to {endpoint} by hand")]
    Edit {
        /// The file on the host.
        path: String,
        /// Why.
        reason: String,
        /// What it should be.
        endpoint: String,
    },
    /// The container runtime does not answer.
    #[error("the container runtime at {endpoint} does not answer CRI Version: {reason}")]
    Runtime {
        /// Its endpoint.
        endpoint: String,
        /// What it said.
        reason: String,
    },
    /// A container runtime that Woodfrog cannot thaw with.
    #[error("the container runtime at {endpoint} is {name}: Woodfrog works with containerd")]
    OtherRuntime {
        /// Its endpoint.
        endpoint: String,
        /// What it calls itself.
        name: String,
    },
    /// The shim was started and does not answer.
    #[error("the shim does not answer at {endpoint} within {seconds} s ({reason}): see journalctl -u {unit}", unit = crate::UNIT)]
    ShimSilent {
        /// The shim's endpoint.
        endpoint: String,
        /// How long we waited.
        seconds: u64,
        /// The last attempt's error.
        reason: String,
    },
    /// kubelet was restarted and does not stay up.
    #[error("kubelet does not stay up within {seconds} s (it is {state}): see journalctl -u kubelet")]
    KubeletDown {
        /// How long we waited.
        seconds: u64,
        /// What systemd says of it.
        state: String,
    },
    /// Earlier attempts with these binaries took kubelet down.
    #[error(
        "{attempts} attempts to install {version} were rolled back, the last because: {reason}; kubelet is not restarted again for it: run woodfrog node install --again on the node once that is mended"
    )]
    GivenUp {
        /// How many.
        attempts: u32,
        /// The version that failed.
        version: String,
        /// What went wrong.
        reason: String,
    },
    /// kubelet was pointed at the shim by hand.
    #[error(
        "kubelet was pointed at the shim by hand: point it back at the container runtime and restart it, then run this with --kubelet-is-back; without the shim it could start nothing"
    )]
    ByHand,
    /// systemd.
    #[error(transparent)]
    Init(#[from] InitError),
    /// Something failed, and putting things back failed too.
    #[error("{cause}; and then, putting things back: {}", problems.join("; "))]
    NotRolledBack {
        /// What failed first.
        cause: Box<Error>,
        /// What could not be put back.
        problems: Vec<String>,
    },
}

impl Error {
    /// For `map_err` of an IO error.
    pub(crate) fn io(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { action, path, source }
    }
}
