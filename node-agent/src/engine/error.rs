//! Why the engine did not do what it was asked.

use std::io;
use std::path::PathBuf;

use super::freeze::FreezeError;
use super::runtime::RuntimeError;

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
    /// The runtime did not answer or does not know.
    #[error(transparent)]
    Runtime(RuntimeError),
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
            Self::ControlDirectory { .. } => "control_directory",
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
