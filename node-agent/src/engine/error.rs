//! Why the engine did not do what it was asked.

use std::io;
use std::path::PathBuf;

use woodfrog_criu::images::ImageError;
use woodfrog_criu::{Cause, CriuError, WorkerError};
use woodfrog_image::{BaseError, BuildError, StoreError};
use woodfrog_protocol::agent::Finding;

use super::hooks::HookError;
use super::publish::PublishError;
use super::runtime::RuntimeError;
use super::unshare::UnshareError;

/// Errors of the engine.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// A request of a newer release.
    #[error("this agent does not know that request: use binaries of one release on a node")]
    Unknown,
    /// A token that names no control directory.
    #[error("{0:?} is no token of a managed container")]
    Token(String),
    /// No container has that name.
    #[error("no managed container is called {0:?}: `woodfrog ps` lists them")]
    NoContainer(String),
    /// Several containers have that name.
    #[error("{name:?} may be any of {}: say NAMESPACE/POD/CONTAINER", candidates.join(", "))]
    Ambiguous {
        /// What was asked for.
        name: String,
        /// The containers that have it.
        candidates: Vec<String>,
    },
    /// A control directory cannot be used.
    #[error("control directory {path}: {source}")]
    ControlDirectory {
        /// The directory.
        path: PathBuf,
        /// The kernel's word.
        source: io::Error,
    },
    /// A file of the agent's state cannot be written or removed.
    #[error("the agent's state {path}: {source}")]
    State {
        /// The file.
        path: PathBuf,
        /// The kernel's word.
        source: io::Error,
    },
    /// The runtime did not answer or does not know.
    #[error(transparent)]
    Runtime(RuntimeError),
    /// Its init has not connected, or is not asked anything any more.
    #[error("{0}")]
    NoConnection(String),
    /// A freeze failed.
    #[error(transparent)]
    Freeze(Box<FreezeError>),
    /// A bug.
    #[error("the agent failed inside: its log has the backtrace")]
    Panic,
}

impl From<FreezeError> for EngineError {
    fn from(source: FreezeError) -> Self {
        Self::Freeze(Box::new(source))
    }
}

impl EngineError {
    /// One of a bounded set of words, for metrics and Events.
    pub fn category(&self) -> &'static str {
        match self {
            Self::Unknown => "unknown_request",
            Self::Token(_) | Self::NoContainer(_) | Self::Ambiguous { .. } => "no_container",
            Self::NoConnection(_) => "no_connection",
            Self::ControlDirectory { .. } => "control_directory",
            Self::State { .. } => "state",
            Self::Runtime(_) => "runtime",
            Self::Freeze(e) => e.category(),
            Self::Panic => "internal",
        }
    }

    /// More, a line each.
    pub fn details(&self) -> Vec<String> {
        match self {
            Self::Freeze(e) => e.details(),
            _ => Vec::new(),
        }
    }
}

/// Why a freeze failed. The applications run on.
#[derive(Debug, thiserror::Error)]
pub enum FreezeError {
    /// It could not work.
    #[error("{} cannot be frozen: {}", .containers.join(" and "), .findings.iter().map(|f| f.message.as_str()).collect::<Vec<_>>().join("; "))]
    Preflight {
        /// The containers that cannot be frozen.
        containers: Vec<String>,
        /// All reasons, each with its container.
        findings: Vec<Finding>,
    },
    /// It is being frozen already.
    #[error("{0} is being frozen already")]
    Busy(String),
    /// No target, or one container twice.
    #[error("{0}")]
    Request(String),
    /// The destination.
    #[error("image {image}: {source}")]
    Publish {
        /// Its reference.
        image: String,
        /// What is wrong.
        source: PublishError,
    },
    /// A hook before the checkpoint.
    #[error("{container}: before the checkpoint: {source}")]
    Hook {
        /// The container.
        container: String,
        /// What is wrong.
        source: HookError,
    },
    /// The container's init.
    #[error("{container}: {message}")]
    Init {
        /// The container.
        container: String,
        /// What is wrong.
        message: String,
    },
    /// The runtime.
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
    /// The base image.
    #[error("{container}: {source}")]
    Base {
        /// The container.
        container: String,
        /// What is wrong.
        source: BaseError,
    },
    /// CRIU did not start.
    #[error("{container}: {source}")]
    Worker {
        /// The container.
        container: String,
        /// What is wrong.
        source: WorkerError,
    },
    /// CRIU failed.
    #[error("{container}: {source}")]
    Dump {
        /// The container.
        container: String,
        /// What is wrong.
        source: CriuError,
    },
    /// What CRIU wrote.
    #[error("{container}: {source}")]
    Images {
        /// The container.
        container: String,
        /// What is wrong.
        source: ImageError,
    },
    /// Another container of the same freeze failed.
    #[error("{container} runs on, since another container could not be frozen")]
    Abandoned {
        /// The container.
        container: String,
    },
    /// Somebody wants it while its state is being saved.
    #[error("{container} runs on, since somebody wants it")]
    GaveWay {
        /// The container.
        container: String,
    },
    /// Memory that it shares with others.
    #[error("{container}: {source}")]
    Shared {
        /// The container.
        container: String,
        /// What is wrong.
        source: UnshareError,
    },
    /// A directory cannot be used.
    #[error("cannot use {path}: {source}")]
    Directory {
        /// The directory.
        path: PathBuf,
        /// The kernel's word.
        source: io::Error,
    },
    /// The blob store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The image.
    #[error("{container}: {source}")]
    Build {
        /// The container.
        container: String,
        /// What is wrong.
        source: BuildError,
    },
    /// A bug.
    #[error("the agent failed inside: its log has the backtrace")]
    Panic,
}

impl FreezeError {
    /// One of a bounded set of words, for metrics and Events.
    pub fn category(&self) -> &'static str {
        match self {
            Self::Preflight { .. } => "preflight",
            Self::Busy(_) => "busy",
            Self::Request(_) => "request",
            Self::Publish { source, .. } => source.category(),
            Self::Hook { .. } => "hook",
            Self::Init { .. } => "init",
            Self::Runtime(_) => "runtime",
            Self::Base { .. } => "base_image",
            Self::Worker { .. } => "criu",
            Self::Dump { source, .. } => source.category(),
            Self::Images { .. } => "image",
            Self::Abandoned { .. } => "abandoned",
            Self::GaveWay { .. } => "gave_way",
            Self::Shared { .. } => "shared_memory",
            Self::Directory { .. } | Self::Store(_) => "storage",
            Self::Build { .. } => "image",
            Self::Panic => "internal",
        }
    }

    /// Whether the same may go well in a moment: connections come and go.
    pub fn may_pass(&self) -> bool {
        let Self::Dump { source, .. } = self else { return false };
        let cause = source.failure().map(|failure| &failure.cause);
        matches!(cause, Some(Cause::Connection { .. } | Cause::ConnectionInFlight { .. }))
    }

    /// More, a line each: advice of the preflight, CRIU's own lines.
    pub fn details(&self) -> Vec<String> {
        match self {
            Self::Preflight { findings, .. } => {
                findings.iter().map(|f| format!("{}: {}", f.message, f.advice)).collect()
            }
            Self::Dump { source, .. } => source.failure().map(|f| f.lines.clone()).unwrap_or_default(),
            _ => causes(self),
        }
    }
}

/// What lies behind an error, a line each.
fn causes(error: &dyn std::error::Error) -> Vec<String> {
    std::iter::successors(error.source(), |e| e.source()).map(ToString::to_string).collect()
}
